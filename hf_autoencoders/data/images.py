"""Images of a corpus -> batches for a model, without per-image Python in the step loop.

    datasets.Dataset
        -- image_arrays: decode and resize once, by the processor's own rules -->  ImageArrays, uint8, memory-mapped
        -- ImageBatches: shuffle by own seed, slice by rank, one index_select -->  uint8 tensors
        -- to_pixel_values: on the device                                     -->  float32 in [0, 1]

Corpora larger than disk: `StreamingImageBatches` has the interface of `ImageBatches` over a `datasets.IterableDataset`.
"""

import copy
import hashlib
import itertools
import json
import logging
import os
import shutil
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

CACHE_FORMAT = 1
ROWS_PER_READ = 64
THREADS_FROM_BYTES = 4096  # encoded size of an image from which decoding outweighs the hand-over between threads
IMAGE_COLUMN_NAMES = ("image", "img", "images", "picture", "photo", "pixel_values")
LABEL_COLUMN_NAMES = ("label", "labels", "class", "target", "fine_label", "category", "digit")
ROW_NUMBER_NAMES = ("id", "idx", "index", "row", "image_id", "__index_level_0__")  # they say nothing about the image


class BadImageError(ValueError):
    """An image of a corpus is missing, cannot be decoded, or is refused by the processor. Names its row and column."""


@dataclass
class ImageArrays:
    """A split, decoded.

    Attributes:
        images: uint8 (num_images, num_channels, height, width), memory-mapped where it comes from the cache.
        labels: int64 (num_images,) or `None`; -1 where a row has no label.
        label_names: names of the classes by label, or `None`.
        skipped: rows of the split left out because their image is bad (`on_bad_image="skip"`).
        extra: further columns by name, one entry per image: factors, say, as `find_factor_columns` names them. Whole
            numbers, classes and booleans are int64, -1 where a row has none. So that this says nothing else, whole
            numbers some of which are below 0 are renumbered: 0 for the lowest, 1 for the next, and so on.
        extra_names: names of the classes, by number, of those further columns that have them; of renumbered columns
            what the numbers were.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    label_names: list[str] | None = None
    skipped: list[int] = field(default_factory=list)
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    extra_names: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                "images must be uint8 (num_images, num_channels, height, width), "
                f"got {self.images.dtype} {self.images.shape}."
            )
        for name, column in {"labels": self.labels, **self.extra}.items():
            if column is not None and len(column) != len(self.images):
                raise ValueError(f"{name} has {len(column)} entries for {len(self.images)} images.")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows) -> "ImageArrays":
        """These images (indices, slice or mask), with their labels and extra columns."""
        return ImageArrays(
            images=self.images[rows],
            labels=None if self.labels is None else self.labels[rows],
            label_names=self.label_names,
            extra={name: column[rows] for name, column in self.extra.items()},
            extra_names=self.extra_names,
        )


# ---- columns


def _is_image(feature) -> bool:
    """Whether a column of this feature can hold images: Image, {bytes, path}, binary, or nested numbers of two or
    three axes."""
    import datasets

    if isinstance(feature, datasets.Image | datasets.Array2D | datasets.Array3D):
        return True
    if isinstance(feature, dict):
        return "bytes" in feature
    depth = 0
    while hasattr(feature, "feature"):
        feature, depth = feature.feature, depth + 1
    dtype = getattr(feature, "dtype", "")
    return (
        dtype in ("binary", "large_binary")
        if depth == 0
        else depth in (2, 3) and any(kind in dtype for kind in ("int", "float", "bool"))
    )


def find_image_column(features, image_column: str | None = None) -> str:
    """The column of the images: the one asked for, else the only one that can be, else by its usual names."""
    import datasets

    listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    if image_column is not None:
        if image_column not in features:
            raise ValueError(f"The corpus has no column {image_column!r} for the images. Its columns are: {listed}.")
        if not _is_image(features[image_column]):
            raise ValueError(
                f"Column {image_column!r} holds no images but {features[image_column]}. The columns are: {listed}."
            )
        return image_column
    candidates = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    candidates = candidates or [name for name, feature in features.items() if _is_image(feature)]
    if len(candidates) == 1:
        return candidates[0]
    for name in IMAGE_COLUMN_NAMES:
        if name in candidates:
            return name
    problem = f"several columns may be the images ({', '.join(candidates)})" if candidates else "no column holds images"
    raise ValueError(f"Cannot tell the image column: {problem}. Name it by image_column. The columns are: {listed}.")


def find_label_column(features, label_column: str | None = None) -> str | None:
    """The column of the classes: the one asked for (`"none"` for no labels), else by its usual names, else the only
    ClassLabel, else `None`."""
    import datasets

    if label_column == "none":
        return None

    if label_column is not None:
        listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        if label_column not in features:
            raise ValueError(f"The corpus has no column {label_column!r} for the labels. Its columns are: {listed}.")
        if not _is_whole_number(features[label_column]):
            raise ValueError(
                f"Column {label_column!r} holds no class numbers but {features[label_column]}. "
                f"Encode it first: dataset.class_encode_column({label_column!r})."
            )
        return label_column
    for name in LABEL_COLUMN_NAMES:
        if _is_whole_number(features.get(name)):
            return name
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return classes[0] if len(classes) == 1 else None


def find_factor_columns(features, factor_columns=None) -> list[str]:
    """The columns of the factors of variation (attributes) of the images, in their order: those asked for (`["none"]`
    for none), else all whole numbers, classes and booleans, but for those whose name says that they only number the
    rows (`ROW_NUMBER_NAMES`). A single label is a factor as well.

    Raises:
        ValueError: one asked for does not exist, or holds something else.
    """
    if factor_columns is None:
        return [name for name, feature in features.items() if _is_factor(feature) and name not in ROW_NUMBER_NAMES]
    if isinstance(factor_columns, str):
        factor_columns = [factor_columns]
    if list(factor_columns) == ["none"]:
        return []
    listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    for name in factor_columns:
        if name not in features:
            raise ValueError(f"The corpus has no column {name!r} for the factors. Its columns are: {listed}.")
        if not _is_factor(features[name]):
            raise ValueError(
                f"Column {name!r} holds no whole numbers, classes or booleans but {features[name]}. "
                f"Encode it first: dataset.class_encode_column({name!r})."
            )
    return list(dict.fromkeys(factor_columns))


def _is_whole_number(feature) -> bool:
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return True
    return isinstance(feature, datasets.Value) and ("int" in feature.dtype or feature.dtype == "bool")


def _is_factor(feature) -> bool:
    return _is_whole_number(feature) and feature.dtype != "uint64"  # hashes, which int64 cannot hold


def _dtype(feature) -> str:
    while hasattr(feature, "feature"):
        feature = feature.feature
    return getattr(feature, "dtype", "")


def _undecoded(dataset, image_column: str):
    """The dataset with its Image column as stored ({bytes, path}), so that reading a row decodes nothing."""
    import datasets

    if isinstance(dataset.features[image_column], datasets.Image):
        return dataset.cast_column(image_column, datasets.Image(decode=False))
    return dataset


# ---- decoding


def _decode(value, feature, processor) -> np.ndarray:
    """A stored image -> uint8 (num_channels, height, width), by the processor's rules."""
    import datasets
    import PIL.Image

    if value is None or (isinstance(value, dict) and value.get("bytes") is None and value.get("path") is None):
        raise ValueError("the image is missing (None)")
    if isinstance(value, bytes):
        value = {"bytes": value}
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        if content is None and "://" in path:  # a stream may hand out addresses: datasets knows how to read them
            image = datasets.Image().decode_example({"bytes": None, "path": path})
        else:
            image = PIL.Image.open(path if content is None else BytesIO(content))
        try:
            mode = getattr(feature, "mode", None)
            return processor.to_uint8(image.convert(mode) if mode and mode != image.mode else image)
        finally:
            image.close()
    if isinstance(value, list):
        value = np.asarray(value, dtype=_dtype(feature))
    return processor.to_uint8(value)


def _decode_or_error(value, feature, processor):
    try:
        return _decode(value, feature, processor)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on broken bytes; the caller decides, and names the row
        return error


def _path_of(value) -> str:
    path = value.get("path") if isinstance(value, dict) else None
    return f" ({path})" if path else ""


def _bad_image(error: Exception, place: str, value) -> BadImageError:
    bad = BadImageError(
        f"{place}{_path_of(value)}: {type(error).__name__}: {error}. "
        "Repair or remove the row, or leave such rows out with on_bad_image='skip'."
    )
    bad.__cause__ = error
    return bad


def _place(dataset, row: int, image_column: str) -> str:
    split = f" of split {str(dataset.split)!r}" if dataset.split is not None else ""
    indices = getattr(dataset, "_indices", None)  # of a selection: where the row lies in the table it was taken from
    origin = f" (row {indices.column(0)[row].as_py()} of the stored table)" if indices is not None else ""
    return f"Bad image in row {row}{split}{origin}, column {image_column!r}"


def _decoded_rows(dataset, image_column: str, processor, num_threads: int | None):
    """Yields (stored value, decoded array or exception) per row, in order; several threads for images worth it."""
    feature = dataset.features[image_column]
    raw = _undecoded(dataset, image_column).with_format("arrow", columns=[image_column])
    tables = raw.iter(batch_size=ROWS_PER_READ)

    def decode(values: list) -> list:
        return [(value, _decode_or_error(value, feature, processor)) for value in values]

    reads = (table[image_column].to_pylist() for table in tables)
    first = next(reads)
    if num_threads is None:
        sizes = [len(value["bytes"] or b"") or THREADS_FROM_BYTES for value in first if isinstance(value, dict)]
        num_threads = min(8, os.cpu_count() or 1) if sizes and np.mean(sizes) >= THREADS_FROM_BYTES else 1
    if num_threads <= 1:
        yield from decode(first)
        for values in reads:
            yield from decode(values)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        per_task = max(1, ROWS_PER_READ // num_threads)
        pending: deque = deque()
        try:
            for values in itertools.chain([first], reads):
                for start in range(0, len(values), per_task):
                    pending.append(pool.submit(decode, values[start : start + per_task]))
                while len(pending) > 2 * num_threads:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for task in pending:
                task.cancel()


def default_cache_dir() -> Path:
    """Where decoded images are kept: `$HF_AUTOENCODERS_CACHE`, else `hf_autoencoders` beside the other Hugging Face
    caches."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_AUTOENCODERS_CACHE") or Path(HF_HOME) / "hf_autoencoders").expanduser() / "images"


def image_arrays(
    dataset,
    processor,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    extra_columns: list[str] | tuple[str, ...] = (),
    cache_dir=None,
    on_bad_image: str = "raise",
    num_threads: int | None = None,
    progress: bool = True,
) -> ImageArrays:
    """Every image of a split, decoded and resized once by the processor's rules, as one memory-mapped uint8 array.

    The result is cached by the dataset's fingerprint, the processor's settings and the column, so the next run starts
    at once.
    The cache is written aside and renamed when complete: a killed writer leaves nothing that is ever read, and of
    several processes asking at once one decodes while the others wait for it.

    Args:
        dataset: a `datasets.Dataset` (one split).
        processor: an image processor with `to_uint8`, such as `AutoencoderImageProcessor`.
        image_column, label_column: guessed when `None`; `label_column="none"` for no labels.
        extra_columns: further columns to load (factors, names ...), as `ImageArrays.extra`.
        cache_dir: see `default_cache_dir`. Delete it whenever the room is needed.
        on_bad_image: "raise", or "skip" to leave bad rows out, count and list them (`ImageArrays.skipped`).
        num_threads: for decoding; chosen by the size of the images when `None`.
        progress: show a progress bar when decoding takes longer than a second.

    Raises:
        BadImageError: an image is missing, cannot be decoded or is refused by the processor; names row, column, split
            and file.
        ValueError: the split is empty, or a column does not exist (listing those that do). TypeError: not a
            `datasets.Dataset`.
    """
    import datasets

    if on_bad_image not in ("raise", "skip"):
        raise ValueError(f"on_bad_image must be 'raise' or 'skip', got {on_bad_image!r}.")
    if not isinstance(dataset, datasets.Dataset):
        hint = " Choose a split first." if isinstance(dataset, dict) else ""
        hint = " Use StreamingImageBatches for a stream." if isinstance(dataset, datasets.IterableDataset) else hint
        raise TypeError(f"Expected a datasets.Dataset, got {type(dataset).__name__}.{hint}")
    if not processor.do_resize:
        raise ValueError("image_arrays needs images of one size: set the processor's do_resize to True.")
    image_column = find_image_column(dataset.features, image_column)
    label_column = find_label_column(dataset.features, label_column)
    missing = [name for name in extra_columns if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The corpus has no column {', '.join(missing)}. Its columns are: {', '.join(dataset.column_names)}."
        )
    if len(dataset) == 0:
        raise ValueError("The corpus is empty: it has no rows.")

    folder = _cached_images(
        dataset, processor, image_column, Path(cache_dir or default_cache_dir()), on_bad_image, num_threads, progress
    )
    meta = json.loads((folder / "meta.json").read_text())
    skipped = meta["skipped"]
    if skipped:
        logger.warning(
            "%d of %d rows are left out for their bad images: %s.", len(skipped), len(dataset), _listed(skipped)
        )
    # "c": pages are shared and never written back; torch refuses to be quiet about read-only arrays
    images = np.memmap(folder / "images.uint8", dtype=np.uint8, mode="c", shape=tuple(meta["shape"]))
    kept = np.delete(np.arange(len(dataset)), skipped) if skipped else slice(None)

    labels, label_names = None, None
    if label_column is not None:
        labels = _read_labels(dataset, label_column)[kept]
        label_names = getattr(dataset.features[label_column], "names", None)
    extra, names = {}, {}
    for name in extra_columns:
        column, names[name] = _read_extra(dataset, name, is_label=name == label_column)
        extra[name] = column[kept]
    return ImageArrays(
        images=images,
        labels=labels,
        label_names=label_names,
        skipped=skipped,
        extra=extra,
        extra_names={name: found for name, found in names.items() if found},
    )


def images_of_own_size(
    dataset,
    processor,
    *,
    image_column: str | None = None,
    max_images: int | None = None,
    on_bad_image: str = "raise",
) -> list[np.ndarray]:
    """Images of a split as they are, uint8 `(num_channels, height, width)` each, by the processor's rules but for size.

    Args:
        dataset: a `datasets.Dataset` (one split).
        processor: an image processor with `to_uint8`.
        image_column: guessed when `None`.
        max_images: only the first so many.
        on_bad_image: "raise", or "skip" to leave bad rows out.

    Raises:
        BadImageError: an image is missing, cannot be decoded or is refused by the processor.
        ValueError: no images, or no such column.
    """
    image_column = find_image_column(dataset.features, image_column)
    dataset = dataset.select(range(min(len(dataset), max_images or len(dataset))))
    processor = copy.copy(processor)
    processor.do_resize = False
    images = []
    for row, (value, image) in enumerate(_decoded_rows(dataset, image_column, processor, None)) if len(dataset) else ():
        if isinstance(image, np.ndarray):
            images.append(image)
        elif on_bad_image == "raise":
            raise _bad_image(image, _place(dataset, row, image_column), value)
    if not images:
        raise ValueError("The corpus has no images that can be read.")
    return images


def find_class(name: str, label_names: list[str] | None) -> int:
    """The label of a class given by its name, or by its number.

    Raises:
        ValueError: there is no such class.
    """
    if label_names and name in label_names:
        return label_names.index(name)
    if name.isdecimal() and (not label_names or int(name) < len(label_names)):
        return int(name)
    known = ", ".join(label_names or []) or "the numbers of the labels"
    raise ValueError(f"there is no class {name!r}: expected one of {known}")


def load_masks(dataset, mask_column: str, size: tuple[int, int], skipped: Sequence[int] = ()) -> np.ndarray:
    """Masks of all rows, bool (rows, height, width): where the picture of a column is not black. No picture: nowhere.
    Rows that `ImageArrays.skipped` names are left out.

    Raises:
        ValueError: there is no such column of images.
    """
    import datasets

    if mask_column not in dataset.features or not isinstance(dataset.features[mask_column], datasets.Image):
        listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in dataset.features.items())
        raise ValueError(
            f"The corpus has no column {mask_column!r} of images for the masks. Its columns are: {listed}."
        )
    masks = np.zeros((len(dataset), *size), dtype=bool)
    for row, mask in enumerate(dataset[mask_column]):
        if mask is not None:  # the nearest pixel, not a mean: what is not black stays so, be it 1 or 255
            masks[row] = np.asarray(mask.convert("L").resize(size[::-1], 0)) > 0
    return np.delete(masks, list(skipped), axis=0)


def _listed(rows: list[int], most: int = 20) -> str:
    return ", ".join(map(str, rows[:most])) + (f" and {len(rows) - most} more" if len(rows) > most else "")


def _read_labels(dataset, label_column: str) -> np.ndarray:
    import pyarrow as pa

    column = dataset.with_format("arrow", columns=[label_column])[:][label_column]
    return column.cast(pa.int64()).fill_null(-1).to_numpy().astype(np.int64)


def _read_extra(dataset, column: str, is_label: bool) -> tuple[np.ndarray, list[str] | None]:
    """A column as it is in `ImageArrays.extra`, and the names of its values, by number, where they have some.

    Values below 0 are renumbered, since -1 stands for rows without one; but not those of labels and classes, whose -1
    is just that.
    """
    feature = dataset.features[column]
    names = getattr(feature, "names", None)
    if not _is_factor(feature):
        return np.asarray(dataset.with_format("numpy", columns=[column])[:][column]), names
    values = _read_labels(dataset, column)
    if is_label or names or values.min() >= 0:
        return values, names
    known = dataset.with_format("arrow", columns=[column])[:][column].is_valid().to_numpy()
    different, renumbered = np.unique(values[known], return_inverse=True)
    if not len(different) or different[0] >= 0:  # all below 0 are rows without a value
        return values, names
    values[known] = renumbered
    return values, [str(value) for value in different.tolist()]


def _cached_images(dataset, processor, image_column, cache_dir: Path, on_bad_image, num_threads, progress) -> Path:
    import PIL
    from filelock import FileLock

    size = processor.size
    settings = {
        "format": CACHE_FORMAT,
        "fingerprint": dataset._fingerprint,
        "rows": len(dataset),
        "column": image_column,
        "shape": [processor.num_channels, size.height, size.width],
        "resample": int(processor.resample),
        "input_data_format": str(processor.input_data_format),
        "on_bad_image": on_bad_image,
        "pillow": PIL.__version__,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_dir / key
    if _is_complete(folder):
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(str(cache_dir / f"{key}.lock")):
        if _is_complete(folder):
            return folder
        for stale in cache_dir.glob(
            f"{key}.writing-*"
        ):  # of writers that were killed: the lock says that none is alive
            shutil.rmtree(stale, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)  # damaged from outside: sizes do not fit
        writing = cache_dir / f"{key}.writing-{uuid.uuid4().hex[:8]}"
        try:
            writing.mkdir()
            _write_images(dataset, processor, image_column, writing, on_bad_image, num_threads, progress)
            os.replace(writing, folder)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            raise
    return folder


def _is_complete(folder: Path) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return (folder / "images.uint8").stat().st_size == int(np.prod(meta["shape"]))
    except (OSError, ValueError, KeyError):
        return False


def _write_images(dataset, processor, image_column, folder: Path, on_bad_image, num_threads, progress) -> None:
    from tqdm.auto import tqdm

    skipped: list[int] = []
    shape = (processor.num_channels, processor.size.height, processor.size.width)
    rows = _decoded_rows(dataset, image_column, processor, num_threads)
    bar = tqdm(
        rows, total=len(dataset), desc="Decoding images", unit="image", delay=1, disable=None if progress else True
    )
    with open(folder / "images.uint8", "wb") as file:
        for row, (value, image) in enumerate(bar):
            if isinstance(image, Exception):
                if on_bad_image == "raise":
                    raise _bad_image(image, _place(dataset, row, image_column), value)
                skipped.append(row)
            else:
                file.write(image.data)
        file.flush()
        os.fsync(file.fileno())
    if len(skipped) == len(dataset):
        raise ValueError(
            f"None of the {len(dataset)} images of column {image_column!r} can be read: nothing is left after skipping."
        )
    meta = {"shape": [len(dataset) - len(skipped), *shape], "skipped": skipped}
    (folder / "meta.json").write_text(json.dumps(meta))


# ---- batches


def _check_batching(batch_size, seed, process_index, num_processes) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not 0 <= process_index < num_processes:
        raise ValueError(
            f"process_index must be in 0..{num_processes - 1} for {num_processes} processes, got {process_index}."
        )
    if batch_size < num_processes:
        raise ValueError(
            f"A global batch of {batch_size} cannot be shared by {num_processes} processes: each needs an image."
        )
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")


def _rank_slice(num_rows: int, process_index: int, num_processes: int) -> slice:
    """The contiguous part of a global batch that belongs to a rank: sizes differ by one at most."""
    return slice(num_rows * process_index // num_processes, num_rows * (process_index + 1) // num_processes)


class ImageBatches:
    """Batches of an `ImageArrays`, the same whatever the number of processes.

    `batch_size` is global. Rank r gets its contiguous slice of each global batch, as even as possible, so the ranks'
    slices one after the other are the single-process batch, and every rank yields the same number of batches. The
    order of an epoch depends on (seed, epoch) only: an own generator, never the global ones, so position is all that
    a resume needs: `set_epoch(e)`, then `iterate(start_batch=k)` continues exactly and reads none of the rows before.

    Yields dicts: `images` uint8 (rank_batch_size, num_channels, height, width), `labels` int64 (rank_batch_size,)
    where there are any, and `global_size` (int), the images of all ranks together.

    Raises:
        ValueError: no batch comes out at all; or the last, partial batch of `drop_last=False` has fewer images than
            processes.
    """

    def __init__(
        self,
        arrays: ImageArrays,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        _check_batching(batch_size, seed, process_index, num_processes)
        if len(arrays) == 0:
            raise ValueError("The corpus is empty: there are no images to batch.")
        if drop_last and len(arrays) < batch_size:
            raise ValueError(
                f"{len(arrays)} images make no full batch of {batch_size}: lower batch_size or set drop_last to False."
            )
        last = len(arrays) % batch_size
        if not drop_last and 0 < last < num_processes:
            raise ValueError(
                f"The last batch of {len(arrays)} images has {last} of {batch_size}, fewer than the {num_processes} "
                "processes: set drop_last to True or choose another batch_size."
            )
        self.arrays, self.batch_size, self.shuffle, self.seed, self.drop_last = (
            arrays,
            batch_size,
            shuffle,
            seed,
            drop_last,
        )
        self.process_index, self.num_processes = process_index, num_processes
        self.images = torch.from_numpy(arrays.images)
        self.labels = None if arrays.labels is None else torch.from_numpy(np.ascontiguousarray(arrays.labels))
        self.set_epoch(0)

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return len(self.arrays) // self.batch_size if self.drop_last else -(-len(self.arrays) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration goes through: it fixes the order."""
        self.epoch = epoch
        if self.shuffle:
            self._order = torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(len(self.arrays)))
        else:
            self._order = torch.arange(len(self.arrays))

    def rows(self, batch: int) -> torch.Tensor:
        """Indices (into `arrays`) of the whole global batch, int64 (global_batch_size,)."""
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iterate()

    def iterate(self, start_batch: int = 0) -> Iterator[dict[str, Any]]:
        """This rank's part of batches `start_batch`, `start_batch + 1`, ... of the epoch."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch must be in 0..{len(self)} (batches per epoch), got {start_batch}.")
        return self._iterate(start_batch, self._order)

    def _iterate(self, start_batch: int, order: torch.Tensor) -> Iterator[dict[str, Any]]:
        for batch in range(start_batch, len(self)):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            global_size = len(rows)
            rows = rows[_rank_slice(global_size, self.process_index, self.num_processes)]
            item = {"images": self.images.index_select(0, rows), "global_size": global_size}
            if self.labels is not None:
                item["labels"] = self.labels.index_select(0, rows)
            yield item


class StreamingImageBatches:
    """`ImageBatches` over a `datasets.IterableDataset`: for corpora larger than disk.

    Every rank reads the whole stream but decodes its own slice of each global batch only, so the batches are those of
    a single process. Differences that a stream forces:

    - `len()` raises `TypeError` unless `num_rows` is given: train by steps.
    - `shuffle=True` shuffles within a buffer of `buffer_size` rows (and the order of files), by (seed, epoch).
    - `iterate(start_batch=k)` is exact, but has to read (not decode) the rows before.
    - With `on_bad_image="skip"` a batch is `batch_size` rows of the stream without the bad ones, `global_size` of them
      over all ranks. To know which are bad every rank decodes the whole batch, and so shares the good ones evenly;
      clean corpora are read faster with "raise". `skipped` lists the positions in the epoch's stream that were left
      out since the iteration began, the same on every rank.
    - A last batch with fewer rows than processes is dropped, with a warning.
    """

    def __init__(
        self,
        dataset,
        processor,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        process_index: int = 0,
        num_processes: int = 1,
        image_column: str | None = None,
        label_column: str | None = None,
        on_bad_image: str = "raise",
        buffer_size: int = 10_000,
        num_rows: int | None = None,
    ):
        import datasets
        import pyarrow as pa

        _check_batching(batch_size, seed, process_index, num_processes)
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(f"on_bad_image must be 'raise' or 'skip', got {on_bad_image!r}.")
        if not isinstance(dataset, datasets.IterableDataset):
            raise TypeError(f"Expected a datasets.IterableDataset (a streamed split), got {type(dataset).__name__}.")
        if dataset.features is None:
            try:
                dataset = dataset._resolve_features()  # reads the first rows
            except pa.ArrowInvalid as error:
                raise ValueError(
                    f"The columns of the stream are unknown: make it with features=... ({error})"
                ) from error
        if not dataset.features:
            raise ValueError("The corpus is empty: the stream has no rows.")
        self.image_column = find_image_column(dataset.features, image_column)
        self.label_column = find_label_column(dataset.features, label_column)
        self._feature = dataset.features[self.image_column]
        self.label_names = getattr(dataset.features[self.label_column], "names", None) if self.label_column else None
        columns = [self.image_column] + ([self.label_column] if self.label_column else [])
        stream = _undecoded(dataset.select_columns(columns), self.image_column)
        self._stream = stream.shuffle(seed=seed, buffer_size=buffer_size) if shuffle else stream
        self.processor, self.batch_size, self.drop_last = processor, batch_size, drop_last
        self.shuffle, self.seed, self.on_bad_image, self.num_rows = shuffle, seed, on_bad_image, num_rows
        self.process_index, self.num_processes = process_index, num_processes
        self.skipped: list[int] = []
        self.set_epoch(0)

    def __len__(self) -> int:
        if self.num_rows is None:
            raise TypeError("The length of a stream is unknown: train by steps, or give num_rows.")
        return self.num_rows // self.batch_size if self.drop_last else -(-self.num_rows // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the rows; the same epoch gives the same order."""
        self.epoch = epoch
        if self.shuffle:  # else it would change the order of the files all the same
            self._stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iterate()

    def iterate(self, start_batch: int = 0) -> Iterator[dict[str, Any]]:
        """The batches of this epoch from `start_batch` on, for a run that is resumed."""
        if start_batch < 0:
            raise ValueError(f"start_batch must not be negative, got {start_batch}.")
        return self._iterate(start_batch)

    def _own(self, num_rows: int) -> slice:
        return _rank_slice(num_rows, self.process_index, self.num_processes)

    def _iterate(self, start_batch: int) -> Iterator[dict[str, Any]]:
        self.skipped = []
        # not IterableDataset.skip: what it returns has forgotten the epoch
        batches = self._stream.iter(batch_size=self.batch_size, drop_last_batch=self.drop_last)
        position, batch = start_batch * self.batch_size, None
        for batch in itertools.islice(batches, start_batch, None):
            values = batch[self.image_column]
            if len(values) < self.num_processes:
                logger.warning(
                    "The last %d rows of the stream are dropped: fewer than processes (%d).",
                    len(values),
                    self.num_processes,
                )
                break
            skipping = self.on_bad_image == "skip"
            own = slice(0, len(values)) if skipping else self._own(len(values))
            images, kept = [], []
            for index in range(own.start, own.stop):
                image = _decode_or_error(values[index], self._feature, self.processor)
                if not isinstance(image, Exception):
                    images.append(image)
                    kept.append(index)
                elif skipping:
                    self.skipped.append(position + index)
                else:
                    place = f"Bad image in row {position + index} of the stream (epoch {self.epoch})"
                    raise _bad_image(image, f"{place}, column {self.image_column!r}", values[index])
            global_size = len(images) if skipping else len(values)
            if skipping:
                if global_size < self.num_processes:
                    raise BadImageError(
                        f"{len(values) - global_size} of the images in rows {position}..{position + len(values) - 1} "
                        f"of the stream are bad: {global_size} are left for {self.num_processes} processes."
                    )
                own = self._own(global_size)
                images, kept = images[own], kept[own]
            item = {"images": torch.from_numpy(np.stack(images)), "global_size": global_size}
            if self.label_column:
                labels = [batch[self.label_column][index] for index in kept]
                item["labels"] = torch.tensor(
                    [-1 if label is None else int(label) for label in labels], dtype=torch.int64
                )
            yield item
            position += len(values)
        if batch is None and start_batch == 0:
            raise ValueError(
                f"The stream has no {'full batch' if self.drop_last else 'rows'}: the corpus is empty or too small."
            )


def to_pixel_values(images: torch.Tensor, device=None) -> torch.Tensor:
    """uint8 (..., height, width) -> float32 in [0, 1], converted on `device` (a quarter of the bytes travel)."""
    if images.dtype != torch.uint8:
        raise TypeError(f"Expected uint8 images in 0..255, got dtype {images.dtype}.")
    return images.to(device, non_blocking=True).to(torch.float32).div_(255)
