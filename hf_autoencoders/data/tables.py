"""Tables of numbers: columns of a corpus become rows for an auto-encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .images import LABEL_COLUMN_NAMES, ROW_NUMBER_NAMES

EMBEDDED = ("breast_cancer", "wine")  # of scikit-learn


@dataclass
class TableRows:
    """Rows of a split.

    Attributes:
        values: (rows, columns) float32, standardised by the processor.
        labels: int64 (rows,), or `None`; -1 where a row has no label.
        label_names: names of the classes by label, or `None`.
    """

    values: np.ndarray
    labels: np.ndarray | None = None
    label_names: list[str] | None = None
    skipped: tuple[int, ...] = ()

    @property
    def images(self) -> np.ndarray:
        """`values`, under the name by which batches and evaluations read inputs of any kind."""
        return self.values

    def __len__(self) -> int:
        return len(self.values)

    def select(self, rows) -> "TableRows":
        """These rows (indices, slice or mask), with their labels."""
        return TableRows(self.values[rows], None if self.labels is None else self.labels[rows], self.label_names)


def load_tables(
    name_or_path,
    config_name: str | None = None,
    *,
    revision: str | None = None,
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    processor=None,
) -> tuple[dict[str, TableRows], object]:
    """The splits of a table, standardised, and the `TableProcessor` that did it.

    Args:
        name_or_path: `"breast_cancer"` or `"wine"` (embedded, of scikit-learn), a `.csv` or `.parquet` file, a folder
            of parquet files, or the id of a dataset on the Hub.
        columns: those to read; when not given, all columns of numbers but the labels and row numbers.
        label_column: the classes; guessed by the usual names when not given, `"none"` for none.
        validation_fraction, seed: without a validation split, this share of the rows is held out, drawn by the seed.
        processor: to use instead of one whose statistics are those of the training rows.

    Raises:
        ValueError: there are no columns of numbers, or unknown ones are asked for; a value is missing or not finite.
    """
    from ..models.feature_extraction_table import TableProcessor

    splits = _load(str(name_or_path), config_name, revision)
    if "validation" not in splits:
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1 (exclusive), got {validation_fraction}.")
        cut = splits["train"].train_test_split(test_size=validation_fraction, seed=seed)
        splits = {"train": cut["train"], "validation": cut["test"]} | {k: v for k, v in splits.items() if k != "train"}
    features = splits["train"].features
    listed = ", ".join(features)
    if label_column not in (None, "none") and label_column not in features:
        raise ValueError(f"The table has no column {label_column!r} for the labels. Its columns are: {listed}.")
    label = None
    if label_column != "none":
        label = label_column or next((name for name in LABEL_COLUMN_NAMES if name in features), None)
    if processor is not None:
        columns = processor.columns
    if columns is None:
        left_out = {label, *ROW_NUMBER_NAMES}
        columns = [name for name, f in features.items() if _is_number(f) and name not in left_out]
    if not columns:
        raise ValueError(f"The table has no columns of numbers. Its columns are: {listed}.")
    if unknown := [name for name in columns if name not in features]:
        raise ValueError(f"The table has no column {unknown[0]!r}. Its columns are: {listed}.")
    raw = {name: split.select_columns(list(columns)).with_format(None)[:] for name, split in splits.items()}
    processor = processor or TableProcessor.fit(raw["train"], columns)
    names = getattr(features[label], "names", None) if label else None
    is_numbered = names is not None
    if label is not None and not is_numbered:  # of all splits: a class may be missing from one of them
        found = {str(v) for s in splits.values() if label in s.features for v in s[label][:] if v is not None}
        names = sorted(found)
    tables = {}
    for name, split in splits.items():
        labels = None
        if label is not None and label in split.features:
            numbers = [-1 if v is None else v if is_numbered else names.index(str(v)) for v in split[label][:]]
            labels = np.array(numbers, np.int64)
        tables[name] = TableRows(processor(raw[name])["pixel_values"], labels, names)
    return tables, processor


def _is_number(feature) -> bool:
    import datasets

    kinds = ("int", "uint", "float", "bool", "double")
    return (
        isinstance(feature, datasets.Value)
        and not isinstance(feature, datasets.ClassLabel)
        and feature.dtype.startswith(kinds)
    )


def _load(name: str, config_name, revision) -> dict:
    import datasets

    from .corpora import _load as load_splits
    from .corpora import _named_splits

    if name in EMBEDDED:
        import sklearn.datasets

        bunch = getattr(sklearn.datasets, f"load_{name}")()
        names = [str(feature).replace(" ", "_").replace("/", "_") for feature in bunch.feature_names]
        features = datasets.Features({n: datasets.Value("float64") for n in names})
        features["label"] = datasets.ClassLabel(names=[str(target) for target in bunch.target_names])
        columns = dict(zip(names, bunch.data.T.tolist(), strict=True)) | {"label": bunch.target.tolist()}
        return {"train": datasets.Dataset.from_dict(columns, features=features)}
    if name.endswith(".csv"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"there is no file {name}")
        return {"train": datasets.Dataset.from_csv(name)}
    return _named_splits(name, load_splits(name, config_name, revision, False))
