"""Corpora by name, through `datasets`: the embedded default, anything on the Hub, anything on disk."""

import logging
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "training": "train",
}
DIGITS_SPLIT_SEED, DIGITS_HELD_OUT = 0, 300


def load_corpus(
    name_or_path,
    config_name: str | None = None,
    *,
    revision: str | None = None,
    streaming: bool = False,
    seed: int = 0,
    validation_fraction: float = 0.1,
) -> dict:
    """A corpus as `{"train": ..., "validation": ..., ["test": ...]}` of `datasets.Dataset` (or `IterableDataset` when
    streaming).

    Args:
        name_or_path: one of
            - `"digits"`: the embedded corpus, 1,797 handwritten 8x8 digits (no network, no files; `./digits` is a
              folder);
            - a `.parquet` file, which becomes `train`;
            - a folder: of `save_to_disk`, of parquet files (`train*.parquet`, `validation*.parquet`, ...) or of images
              (`train/<class>/*.png` or `<class>/*.png`), whatever `datasets.load_dataset` recognises;
            - the id of a dataset on the Hub.
        config_name: the configuration of a Hub dataset that has several.
        revision: branch, tag or commit of a Hub dataset. Pin it to repeat a run.
        streaming: read rows as they are needed instead of preparing the whole corpus on disk first.
        seed, validation_fraction: a corpus without a validation split gets one: this fraction of `train`, chosen by
            this seed. Said in the log.

    Raises:
        FileNotFoundError: there is no such corpus. ValueError: no split can serve as `train`, or it is empty.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must be between 0 and 1 (exclusive), got {validation_fraction}.")
    name = str(name_or_path)
    if name == "digits":
        if config_name or revision:
            raise ValueError("The embedded corpus 'digits' has no configurations or revisions.")
        splits = load_digits_corpus()
        return {key: split.to_iterable_dataset() for key, split in splits.items()} if streaming else splits
    splits = _load(name, config_name, revision, streaming)
    return _with_validation(_named_splits(name, splits), name, seed, validation_fraction)


def _load(name: str, config_name, revision, streaming) -> dict:
    import datasets
    import pyarrow as pa

    try:
        return _load_from(Path(name).expanduser(), name, config_name, revision, streaming)
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowInvalid) as error:
        raise ValueError(f"Corpus {name!r} cannot be read: {error.__cause__ or error}") from error
    except ValueError as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"Corpus {name!r} is empty: one of its splits has no rows ({error}).") from error
        raise


def _load_from(path: Path, name: str, config_name, revision, streaming) -> dict:
    import datasets

    if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):  # save_to_disk
        try:
            loaded = datasets.load_from_disk(str(path))
        except IndexError as error:  # datasets saves a split without rows, and cannot read it again
            raise ValueError(f"Corpus {name!r} is empty: one of its saved splits has no rows.") from error
        loaded = loaded if isinstance(loaded, dict) else {"train": loaded}
        return {key: split.to_iterable_dataset() for key, split in loaded.items()} if streaming else dict(loaded)
    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(
                f"{name} is a file but no .parquet file. Expected 'digits', a .parquet file, a folder (parquet files, "
                "images, or save_to_disk) or the id of a dataset on the Hub."
            )
        return datasets.load_dataset("parquet", data_files={"train": str(path)}, streaming=streaming)
    if not path.is_dir() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"There is no file or folder {name}.")
    try:
        if path.is_dir():
            return datasets.load_dataset(str(path), config_name, streaming=streaming)
        return datasets.load_dataset(name, config_name, revision=revision, streaming=streaming)
    except (
        FileNotFoundError
    ) as error:  # and its children: DatasetNotFoundError, EmptyDatasetError, DataFilesNotFoundError
        what = (
            "folder holds no parquet files, images or other data"
            if path.is_dir()
            else "is no file, no folder, and not found on the Hub"
        )
        raise FileNotFoundError(f"No corpus {name!r}: it {what} ({error})") from error


def _named_splits(name: str, splits: dict) -> dict:
    named = {SPLIT_NAMES.get(str(key), str(key)): split for key, split in splits.items()}
    if "train" not in named:
        if len(named) != 1:
            raise ValueError(f"Corpus {name!r} has no split 'train'. Its splits are {', '.join(named)}.")
        only = next(iter(named))
        logger.warning("Corpus %r has one split, %r: it is taken for 'train'.", name, only)
        named = {"train": named[only]}
    order = ("train", "validation", "test")
    return {key: named[key] for key in (*order, *(key for key in named if key not in order)) if key in named}


def _with_validation(splits: dict, name: str, seed: int, fraction: float) -> dict:
    import datasets

    train = splits["train"]
    if isinstance(train, datasets.Dataset) and len(train) == 0:
        raise ValueError(f"Corpus {name!r} is empty: its split 'train' has no rows.")
    if "validation" in splits:
        return splits
    if isinstance(train, datasets.Dataset):
        if len(train) < 2:
            raise ValueError(f"Corpus {name!r} has one row: a validation split cannot be cut from it.")
        size = min(max(1, round(len(train) * fraction)), len(train) - 1)
        order = np.random.RandomState(seed).permutation(len(train))
        held_out, kept = np.sort(order[:size]), np.sort(order[size:])
        logger.warning(
            "Corpus %r has no validation split: %d of its %d train rows are held out (seed %d).",
            name,
            size,
            len(train),
            seed,
        )
        cut = {"train": train.select(kept), "validation": train.select(held_out)}
    else:
        # The length of a stream is unknown: each row is held out by a hash of the seed and its position.
        def held_out(position: int) -> bool:
            return zlib.crc32(f"{seed}:{position}".encode()) < fraction * 2**32

        logger.warning(
            "Corpus %r has no validation split: %g of its train rows are held out (seed %d).", name, fraction, seed
        )
        cut = {
            "train": train.filter(lambda position: not held_out(position), with_indices=True, input_columns=[]),
            "validation": train.filter(held_out, with_indices=True, input_columns=[]),
        }
    return {**cut, **{key: split for key, split in splits.items() if key != "train"}}


def load_digits_corpus() -> dict:
    """The embedded corpus: scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set
    (Alpaydin & Kaynak 1998), 1,797 gray 8x8 images, classes 0 to 9. Columns `image`, `label`; splits train 1,197 /
    validation 300 / test 300, always the same.

    The 17 gray levels 0..16 become `round(level * 255 / 16)`: 0 is 0, 16 is 255, and `round(pixel * 16 / 255)` gives
    the level back.
    """
    import datasets
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    )
    order = np.random.RandomState(DIGITS_SPLIT_SEED).permutation(len(pixels))
    parts = np.split(order, [len(order) - 2 * DIGITS_HELD_OUT, len(order) - DIGITS_HELD_OUT])

    def png(image: np.ndarray) -> dict:
        buffer = BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    return {
        name: datasets.Dataset.from_dict(
            {"image": [png(pixels[row]) for row in rows], "label": digits.target[rows].tolist()},
            features=features,
            split=datasets.NamedSplit(name),
        )
        for name, rows in zip(("train", "validation", "test"), map(np.sort, parts), strict=True)
    }
