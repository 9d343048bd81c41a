"""What is known of the images of a corpus: factors of variation, which codes are held against.

corpus_factors   the columns of a corpus that are factors
why_no_factor    what keeps a column from being one
"""

from typing import NamedTuple

import numpy as np

MAX_FACTOR_VALUES, MIN_ROWS_OF_A_VALUE = 100, 5  # a column of more values, or fewer rows of each, is no factor
LABEL = "label"  # name of the factor made of `ImageArrays.labels`


class Factor(NamedTuple):
    """An attribute of images."""

    name: str
    values: np.ndarray
    """(rows,) int64 in 0 .. number of values - 1"""
    value_names: list[str]

    @property
    def entropy(self) -> float:
        """In nats."""
        shares = np.bincount(self.values) / len(self.values)
        return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())

    def select(self, rows: np.ndarray) -> "Factor":
        """The factor of these rows, with the values that they have."""
        return _factor(self.name, self.values[rows], self.value_names)


def corpus_factors(arrays, names: list[str] | None = None) -> tuple[np.ndarray, list[Factor], dict[str, str]]:
    """The factors of a corpus, and the rows that have them.

    Args:
        arrays: `ImageArrays`; -1 in a column without lower values means that a row has none.
        names: which columns of `arrays.extra`, or "label" for its labels. By default all further columns of whole
            numbers with 2 to 100 values that come 5 times on average; the labels if there is none.

    Returns:
        rows, int64, those that have all factors; a `Factor` for each, of these rows; and further columns that were left
        out, with the reason.

    Raises:
        ValueError: a column asked for is not there or no factor, or none is found, or no image has them all.
    """
    columns, value_names = dict(arrays.extra), dict(arrays.extra_names)
    if arrays.labels is not None and LABEL not in columns:
        columns[LABEL], value_names[LABEL] = arrays.labels, arrays.label_names
    if unknown := [name for name in names or () if name not in columns]:
        raise ValueError(f"there is no column {unknown[0]!r} to be a factor: expected one of {sorted(columns)}")
    columns = {name: np.asarray(column) for name, column in columns.items()}
    reasons = {name: why_no_factor(column) for name, column in columns.items()}
    if names is None:
        names = [name for name in arrays.extra if not reasons[name]] or [n for n in columns if not reasons[n]]
        left_out = {name: reasons[name] for name in arrays.extra if reasons[name]}
    else:
        left_out = {}
    expected = f"whole numbers of 2 to {MAX_FACTOR_VALUES} values, each {MIN_ROWS_OF_A_VALUE} times on average"
    if not names:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "it has none"
        raise ValueError(f"no column of the corpus says what its images show ({told}): expected {expected}")
    for name in names:
        if reasons[name]:
            raise ValueError(f"column {name!r} is no factor: expected {expected}, got {reasons[name]}")
    rows = np.flatnonzero(np.all([_is_known(columns[name]) for name in names], axis=0))
    if not len(rows):
        raise ValueError(f"no image has all of {', '.join(names)}: name fewer with --factor_columns / factors=")
    return rows, [_factor(name, columns[name][rows], value_names.get(name)) for name in names], left_out


def _is_known(column: np.ndarray) -> np.ndarray:
    return (column > -1) | (column.min() < -1)


def why_no_factor(column: np.ndarray) -> str | None:
    """Why a column (rows, ...) of `ImageArrays.extra`, or labels, cannot be a factor, or None where it can."""
    if column.ndim != 1 or not (np.issubdtype(column.dtype, np.integer) or column.dtype == bool):
        return f"{column.dtype} of shape {column.shape}"
    column = column.astype(np.int64)
    known = column[_is_known(column)]
    num_values = len(np.unique(known))
    if not 2 <= num_values <= min(MAX_FACTOR_VALUES, len(known) // MIN_ROWS_OF_A_VALUE):
        others = len(column) - len(known)
        return f"{num_values} values in {len(known)} rows" + (f", -1 (unknown) in {others}" if others else "")
    return None


def _factor(name: str, column: np.ndarray, value_names: list[str] | None) -> Factor:
    values, renumbered = np.unique(column.astype(np.int64), return_inverse=True)
    known = value_names or []
    return Factor(name, renumbered, [known[v] if 0 <= v < len(known) else str(v) for v in values.tolist()])
