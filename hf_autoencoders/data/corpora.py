"""Corpora by name, through `datasets`: the embedded ones, anything on the Hub, anything on disk."""

import contextlib
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
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
SPLIT_RULE = 1  # of `_share`: part of the name under which its results are kept


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
            - `"digits"`: an embedded corpus, 1,797 handwritten 8x8 digits (no network, no files; `./digits` is a
              folder);
            - `"sprites"`: an embedded corpus, 70,000 drawn 64x64 shapes whose factors of variation are known (made
              once, in seconds, and kept beside the decoded images);
            - a `.parquet` file, which becomes `train`;
            - a folder: of `save_to_disk`, of parquet files (`train*.parquet`, `validation*.parquet`, ...) or of images
              (`train/<class>/*.png` or `<class>/*.png`), whatever `datasets.load_dataset` recognises;
            - the id of a dataset on the Hub.
        config_name: the configuration of a Hub dataset that has several.
        revision: branch, tag or commit of a Hub dataset. Pin it to repeat a run.
        streaming: read rows as they are needed instead of preparing the whole corpus on disk first.
        seed, validation_fraction: a corpus without a validation split gets one: about this fraction of `train`. Which
            rows is a matter of this seed and of what their images hold, never of where they lie: the same rows are
            held out streaming or not, in any order, copies of an image stay on one side, and those of a smaller
            fraction are among those of a larger one. Said in the log. The images are read (not decoded) for it; of a
            corpus that is not streamed, once. The seed of a training run has no part in this.

    Raises:
        FileNotFoundError: there is no such corpus. ValueError: no split can serve as `train`, it is empty, or two
            splits are the validation split by their names.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must be between 0 and 1 (exclusive), got {validation_fraction}.")
    name = str(name_or_path)
    if name in ("digits", "sprites"):
        from .sprites import load_sprites_corpus

        if config_name or revision:
            raise ValueError(f"The embedded corpus {name!r} has no configurations or revisions.")
        splits = load_digits_corpus() if name == "digits" else load_sprites_corpus()
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
                f"{name} is a file but no .parquet file. Expected 'digits', 'sprites', a .parquet file, a folder "
                "(parquet files, images, or save_to_disk) or the id of a dataset on the Hub."
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
    named, called = {}, {}
    for key, split in splits.items():
        ours = SPLIT_NAMES.get(str(key), str(key))
        if ours in named:
            raise ValueError(
                f"Corpus {name!r} has two splits that may be {ours!r}: {called[ours]!r} and {str(key)!r}. "
                "Rename or remove one of them."
            )
        named[ours], called[ours] = split, str(key)
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
        shares = _shares(train, seed)
        held_out = shares < fraction
        if not held_out.any():  # of a handful of rows
            held_out[shares.argmin()] = True
        if held_out.all():
            held_out[shares.argmax()] = False
        logger.warning(
            "Corpus %r has no validation split: %d of its %d train rows are held out (by their images and seed %d).",
            name,
            held_out.sum(),
            len(train),
            seed,
        )
        cut = {"train": train.select(np.flatnonzero(~held_out)), "validation": train.select(np.flatnonzero(held_out))}
    else:
        logger.warning(
            "Corpus %r has no validation split: about %g of its train rows are held out (by their images and seed %d).",
            name,
            fraction,
            seed,
        )
        if train.features is None:
            train = train._resolve_features()  # reads the first rows
        if not train.features:
            raise ValueError(f"Corpus {name!r} is empty: its split 'train' has no rows.")
        features, (stored, dtypes) = train.features, _stored(train)

        def part(validation: bool):
            options = {"dtypes": dtypes, "seed": seed, "fraction": fraction, "validation": validation}
            rows = stored.filter(_is_of_part, input_columns=list(dtypes), fn_kwargs=options)
            for column in dtypes:
                if stored.features[column] != features[column]:
                    rows = rows.cast_column(column, features[column])
            return rows

        cut = {"train": part(False), "validation": part(True)}
    return {**cut, **{key: split for key, split in splits.items() if key != "train"}}


def _stored(dataset) -> tuple:
    """The dataset with what tells its rows apart (their images; all columns where there are none) as it is stored, so
    that reading a row decodes nothing; and these columns with their numbers' dtypes, or ""."""
    import datasets

    from .images import _dtype, _is_image

    features = dataset.features
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    columns = columns or [name for name, feature in features.items() if _is_image(feature)] or list(features)
    for name in columns:
        if isinstance(features[name], datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(mode=features[name].mode, decode=False))
    return dataset, {name: str(_dtype(features[name])) if _is_image(features[name]) else "" for name in columns}


def _share(values, dtypes, seed: int) -> float:
    """Where a row lies in [0, 1), by a hash of the seed and of what it holds: below the fraction it is held out."""
    digest = hashlib.blake2b(f"{seed}:".encode(), digest_size=8)
    for value, dtype in zip(values, dtypes, strict=True):
        digest.update(_content(value, dtype))
    return int.from_bytes(digest.digest(), "big") / 2**64


def _content(value, dtype: str) -> bytes:
    """The bytes of a stored image: its file's, wherever that is."""
    from datasets.utils.file_utils import xopen

    if value is None or isinstance(value, bytes):
        return value or b""
    if isinstance(value, dict) and value.get("bytes") is not None:
        return value["bytes"]
    if isinstance(value, dict) and value.get("path"):
        try:
            with xopen(value["path"], "rb") as file:
                return file.read()
        except OSError:  # whoever decodes it says what is wrong with it
            return Path(value["path"]).name.encode()
    if dtype and not isinstance(value, dict):
        with contextlib.suppress(ValueError):  # rows of unequal lengths
            return np.asarray(value, dtype=dtype).tobytes()
    return repr(value).encode()


def _is_of_part(*values, dtypes: dict, seed: int, fraction: float, validation: bool) -> bool:
    return (_share(values, dtypes.values(), seed) < fraction) is validation


def _shares(dataset, seed: int) -> np.ndarray:
    """`_share` of every row, float64 (rows,); kept beside the decoded images, as it takes reading the whole corpus."""
    from .images import ROWS_PER_READ, default_cache_dir

    key = hashlib.sha256(f"{SPLIT_RULE}:{dataset._fingerprint}:{seed}".encode()).hexdigest()[:24]
    file = default_cache_dir().with_name("splits") / f"{key}.npy"
    with contextlib.suppress(OSError, ValueError):  # not there, or not whole
        shares = np.load(file, allow_pickle=False)
        if shares.shape == (len(dataset),):
            return shares
    stored, dtypes = _stored(dataset)
    tables = stored.with_format("arrow", columns=list(dtypes)).iter(batch_size=ROWS_PER_READ)
    rows = (row for table in tables for row in zip(*(table[name].to_pylist() for name in dtypes), strict=True))
    shares = np.fromiter((_share(row, dtypes.values(), seed) for row in rows), dtype=np.float64, count=len(dataset))
    writing = file.with_name(f"{key}.writing-{uuid.uuid4().hex[:8]}.npy")
    with contextlib.suppress(OSError):  # then the next run reads the corpus again
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(writing, shares)
        os.replace(writing, file)
    return shares


def load_digits_corpus() -> dict:
    """The embedded corpus `digits`: scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set
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

    return {
        name: datasets.Dataset.from_dict(
            {"image": [to_png(Image.fromarray(pixels[row])) for row in rows], "label": digits.target[rows].tolist()},
            features=features,
            split=datasets.NamedSplit(name),
        )
        for name, rows in zip(("train", "validation", "test"), map(np.sort, parts), strict=True)
    }


def to_png(image) -> dict:
    """A PIL image as a column of images stores it."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def kept_on_disk(folder: Path, splits: Iterable[str], make: Callable[[], dict]) -> dict:
    """The splits that lie in a folder of the cache; if they do not, or not whole, those that `make` gives, kept there.

    They are written aside and renamed when complete. Where nothing can be written, the next run makes them again.
    """
    import datasets

    def kept() -> dict:
        return {name: datasets.load_from_disk(str(folder / name)) for name in splits}

    with contextlib.suppress(OSError, ValueError):  # not there, or not whole
        return kept()
    made = make()
    writing = folder.with_name(f"{folder.name}.writing-{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(OSError):
        for name, rows in made.items():
            with _no_progress_bars():
                rows.save_to_disk(str(writing / name))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(writing, folder)
        made = kept()  # under the fingerprints that the next run finds, so that its decoded images are found, too
    shutil.rmtree(writing, ignore_errors=True)
    return made


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    import datasets

    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
