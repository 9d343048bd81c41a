"""Rows of a table to what an auto-encoder reads, and back: columns in a fixed order, standardised.

It needs numpy and transformers only, and travels to the Hub beside the weights, so it imports nothing of this package.
Numbers are never guessed: a missing, unknown, infinite or NaN one is an error that names the column.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin


class TableProcessor(FeatureExtractionMixin):
    """Rows of a table -> `pixel_values`, float32 (rows, number of columns): (value - mean) / std of each column.

    It is called with a mapping of columns to numbers, or to sequences of them (a pandas data frame is one); with a list
    of such rows; or with an array of one row (columns,), or of several (rows, columns), in the order of `columns`.

    Args:
        columns (list of `str`): names, in their order.
        mean, std (list of `float`): of each column, of training rows; `fit` finds them.

    Raises:
        ValueError, TypeError: columns that are missing or unknown, values that are missing, not finite or no numbers.
    """

    _auto_class = "AutoFeatureExtractor"  # saving writes this file and `auto_map` too, so that it loads anywhere
    model_input_names = ["pixel_values"]

    def __init__(self, columns: Sequence[str], mean: Sequence[float], std: Sequence[float], **kwargs):
        if not len(columns) or not len(columns) == len(mean) == len(std) or len(set(columns)) < len(columns):
            raise ValueError(
                f"expected as many means and standard deviations as columns of different names, got {len(columns)} "
                f"columns, {len(mean)} means and {len(std)} standard deviations"
            )
        numbers = np.asarray([mean, std], dtype=np.float64)
        if not np.isfinite(numbers).all() or not (numbers[1] > 0).all():
            raise ValueError("means must be finite numbers and standard deviations positive ones")
        super().__init__(**kwargs)
        self.columns, self.mean, self.std = list(columns), list(map(float, mean)), list(map(float, std))

    @classmethod
    def fit(cls, rows: Any, columns: Sequence[str]) -> "TableProcessor":
        """The processor with the statistics of training rows, given in any form in which it takes rows.

        Raises:
            ValueError: a column that is always the same: it says nothing, leave it out.
        """
        unscaled = cls(columns, [0.0] * len(columns), [1.0] * len(columns))
        values = unscaled._array(rows)
        std = values.std(axis=0)
        # of a constant column the deviation may be rounding, not 0
        constant = [name for name, s, top in zip(columns, std, np.abs(values).max(0), strict=True) if s <= 1e-9 * top]
        if constant:
            raise ValueError(f"column {constant[0]!r} is the same in all {len(values)} rows: leave it out")
        return cls(columns, values.mean(axis=0).tolist(), std.tolist())

    def __call__(self, rows: Any, return_tensors: str | None = None) -> BatchFeature:
        """`pixel_values`, float32 (rows, columns); as tensors with `return_tensors="pt"`."""
        values = (self._array(rows) - self.mean) / self.std
        return BatchFeature({"pixel_values": values.astype(np.float32)}, tensor_type=return_tensors)

    def post_process(self, values: Any) -> dict[str, np.ndarray]:
        """Column -> numbers (rows,) in its own unit, of model outputs (rows, columns)."""
        values = values.detach().float().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
        if values.ndim != 2 or values.shape[1] != len(self.columns):
            raise ValueError(f"expected (rows, {len(self.columns)}), got {values.shape}")
        return dict(zip(self.columns, (values * np.float64(self.std) + self.mean).T, strict=True))

    def _array(self, rows: Any) -> np.ndarray:
        """float64 (rows, columns), checked."""
        if isinstance(rows, Sequence) and len(rows) and isinstance(rows[0], Mapping):
            for row in rows:
                self._check_names(row)
            rows = {name: [row[name] for row in rows] for name in self.columns}
        if isinstance(rows, Mapping) or hasattr(rows, "columns"):
            self._check_names(rows.keys())
            rows = np.stack([self._numbers(rows[name], name) for name in self.columns], axis=-1)
        rows = self._numbers(rows, None)
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != len(self.columns) or len(rows) == 0:
            raise ValueError(f"expected rows of {len(self.columns)} columns, got an array of shape {rows.shape}")
        if not np.isfinite(rows).all():
            row, column = np.argwhere(~np.isfinite(rows))[0]
            raise ValueError(
                f"row {row} has {rows[row, column]} in column {self.columns[column]!r}: fill or leave it out"
            )
        return rows

    def _check_names(self, names: Any) -> None:
        names = list(names)
        if missing := [name for name in self.columns if name not in names]:
            raise ValueError(f"column {missing[0]!r} is missing; the columns are {', '.join(self.columns)}")
        if unknown := [name for name in names if name not in self.columns]:
            raise ValueError(f"unknown column {unknown[0]!r}; the columns are {', '.join(self.columns)}")

    @staticmethod
    def _numbers(values: Any, name: str | None) -> np.ndarray:
        values = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
        if values.dtype == object and any(value is None for value in values.ravel()):
            raise ValueError(f"a value of column {name!r} is missing: fill it, or leave the row out")
        if values.dtype.kind not in "biuf":
            of = "" if name is None else f" of column {name!r}"
            raise TypeError(f"expected numbers, got values{of} of type {values.dtype}")
        return values.astype(np.float64)


__all__ = ["TableProcessor"]
