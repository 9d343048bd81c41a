"""Sprites whose factors of variation are known: white shapes on black, with the factors of dSprites.

    factors (shape, scale, orientation, pos_x, pos_y)  -- render_sprites -->  uint8 images of any size
    load_sprites_corpus: some of the 737,280 combinations as a corpus

The factors and their values are those of Matthey, Higgins, Hassabis and Lerchner, "dSprites: Disentanglement testing
Sprites dataset" (2017), but that 40 steps of the orientation make a full turn here and the first is not repeated. The
shapes are drawn anew, close to theirs; nothing is downloaded.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .corpora import kept_on_disk, to_png

SHAPES = ("square", "ellipse", "heart")
FACTOR_VALUES = {
    "shape": SHAPES,
    "scale": tuple(np.linspace(0.5, 1, 6).tolist()),
    "orientation": tuple((2 * np.pi * np.arange(40) / 40).tolist()),  # radians; clockwise as seen
    "pos_x": tuple(np.linspace(0, 1, 32).tolist()),  # of the shape's centre, from left to right
    "pos_y": tuple(np.linspace(0, 1, 32).tolist()),  # from top to bottom
}
"""What the numbers of a factor stand for, in their order."""
FACTOR_NAMES = tuple(FACTOR_VALUES)
FACTOR_SIZES = tuple(len(values) for values in FACTOR_VALUES.values())
"""How many values each factor has: the factors of combination `i` are `np.unravel_index(i, FACTOR_SIZES)`."""
SYMMETRY = {"square": 10, "ellipse": 20, "heart": 40}
"""Orientations so many steps apart give the same image of this shape."""

NUM_IMAGES = {"train": 60_000, "validation": 5_000, "test": 5_000}  # of the corpus
CORPUS_SEED = 0
RULES = 1  # of how images are made and chosen: part of the cache's name

# Lengths are in 64ths of the image, at scale 1.
CENTRES = (16, 48)  # of the shapes at positions 0 and 1
SQUARE = 9.6  # half a side
ELLIPSE = (12.8, 7.2)  # half the axes
HEART = 5.65  # half a side of a square on its tip, with a disc on both upper sides
HEART_CENTRE = 0.35  # of that square, below the centre
IMAGES_AT_ONCE = 32  # their arrays fit the cache of a core


def render_sprites(factors, image_size: int = 64) -> np.ndarray:
    """Draw sprites, without anti-aliasing: a pixel is white where its middle is inside the shape.

    A square turned by a quarter and an ellipse turned by half are the same image, bit for bit (`SYMMETRY`).

    Args:
        factors: whole numbers (rows, 5), the columns as in `FACTOR_NAMES`, each from 0 to below its `FACTOR_SIZES`.
        image_size: pixels of a side.

    Returns:
        uint8 (rows, 1, image_size, image_size), 0 or 255.

    Raises:
        ValueError: factors of another shape, kind or range, or an image without pixels.
    """
    factors = np.asarray(factors)
    if factors.ndim != 2 or factors.shape[1] != len(FACTOR_NAMES) or not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(
            f"factors must be whole numbers (rows, {len(FACTOR_NAMES)}) with columns {', '.join(FACTOR_NAMES)}, "
            f"got {factors.dtype} {factors.shape}."
        )
    for name, size, column in zip(FACTOR_NAMES, FACTOR_SIZES, factors.T, strict=True):
        if wrong := column[(column < 0) | (column >= size)].tolist():
            raise ValueError(f"Factor {name!r} must be from 0 to {size - 1}, got {wrong[0]}.")
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}.")

    middles = (np.arange(image_size) + 0.5) * (64 / image_size)
    images = np.empty((len(factors), 1, image_size, image_size), dtype=np.uint8)
    for index, (shape, draw) in enumerate(zip(SHAPES, (_in_square, _in_ellipse, _in_heart), strict=True)):
        rows = np.flatnonzero(factors[:, 0] == index)
        for start in range(0, len(rows), IMAGES_AT_ONCE):
            chunk = rows[start : start + IMAGES_AT_ONCE]
            images[chunk, 0] = draw(*_own_coordinates(factors[chunk], shape, middles))
    return images


def _own_coordinates(factors: np.ndarray, shape: str, middles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels lie in the shape's own system, which is shifted, turned and scaled: float32 (rows, size, size)
    twice, to its right and down."""
    _, scale, orientation, *position = factors.T
    angle = np.take(FACTOR_VALUES["orientation"], orientation % SYMMETRY[shape])
    if shape == "heart":  # its square lies straight in a system turned by 45 degrees
        angle = angle + np.pi / 4
    scale = np.take(FACTOR_VALUES["scale"], scale)[:, None]
    cos, sin = np.cos(angle)[:, None] / scale, np.sin(angle)[:, None] / scale
    first, last = CENTRES
    x, y = (middles - (first + (last - first) * np.take(FACTOR_VALUES["pos_x"], p))[:, None] for p in position)
    right, down = ((cos * x)[:, None, :], (sin * y)[:, :, None]), ((-sin * x)[:, None, :], (cos * y)[:, :, None])
    return tuple(a.astype(np.float32) + b.astype(np.float32) for a, b in (right, down))


def _in_square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _white((np.abs(x) < SQUARE) & (np.abs(y) < SQUARE))


def _in_ellipse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x * np.float32(1 / ELLIPSE[0]), y * np.float32(1 / ELLIPSE[1])
    return _white(x * x + y * y < 1)


def _in_heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """In a system turned by 45 degrees: the square's sides at negative x and y are the upper ones, with the discs."""
    x, y = x - np.float32(HEART_CENTRE / np.sqrt(2)), y - np.float32(HEART_CENTRE / np.sqrt(2))
    half = np.float32(HEART)
    square = (np.abs(x) < half) & (np.abs(y) < half)
    x_squared, y_squared, area = x * x, y * y, half * half
    x, y = x + half, y + half
    return _white(square | (x * x + y_squared < area) | (x_squared + y * y < area))


def _white(inside: np.ndarray) -> np.ndarray:
    return inside.view(np.uint8) * np.uint8(255)


def load_sprites_corpus(num_images: Mapping[str, int] | None = None, cache_dir=None) -> dict:
    """The embedded corpus `sprites` as `{"train": ..., "validation": ..., "test": ...}` of `datasets.Dataset`.

    Columns: `image`, 64x64, one bit; the factors, as numbers from 0 to below their `FACTOR_SIZES`: `shape`, a
    `ClassLabel`; `scale`, `orientation`, `pos_x`, `pos_y`, int32. The combinations are drawn once and for all, evenly,
    none twice, from the 737,280. Those that give the same image (`SYMMETRY`) are in one split: an image of `test` is
    not in `train` under another orientation. So of a square its orientation is known modulo 10 only, of an ellipse
    modulo 20. The images are made once, in seconds, and kept.

    Args:
        num_images: how many of each split; by default 60,000, 5,000 and 5,000. Other numbers are another draw.
        cache_dir: where they are kept; by default `sprites` in `$HF_AUTOENCODERS_CACHE`, else in `hf_autoencoders`
            beside the other Hugging Face caches.

    Raises:
        ValueError: a split without images, or more images than there are combinations.
    """
    from .images import default_cache_dir

    num_images = dict(NUM_IMAGES if num_images is None else num_images)
    key = json.dumps([RULES, num_images])
    parts = _combinations(num_images)
    folder = Path(cache_dir) if cache_dir else default_cache_dir().with_name("sprites")
    folder /= hashlib.sha256(key.encode()).hexdigest()[:24]
    return kept_on_disk(folder, parts, lambda: {name: _dataset(name, factors) for name, factors in parts.items()})


def _combinations(num_images: dict[str, int]) -> dict[str, np.ndarray]:
    """The factors of every split's images, int64 (rows, 5)."""
    total, spare = int(np.prod(FACTOR_SIZES)), 4 * len(num_images)  # up to 4 combinations give the same image
    wanted = sum(num_images.values())
    if not num_images or min(num_images.values()) < 1 or wanted + spare > total:
        raise ValueError(
            f"num_images must be at least 1 for each split and {total - spare:,} in all at most, got {num_images}."
        )
    random = np.random.RandomState(CORPUS_SEED)
    factors = np.stack(np.unravel_index(random.permutation(total)[: wanted + spare], FACTOR_SIZES), axis=1)
    seen = factors.copy()
    seen[:, 2] %= np.take([SYMMETRY[shape] for shape in SHAPES], factors[:, 0])
    # the images in a random order, equal ones side by side; a split ends between two that differ
    place = random.permutation(total)[np.ravel_multi_index(seen.T, FACTOR_SIZES)]
    order = np.argsort(place, kind="stable")
    parts, start = {}, 0
    for name, count in num_images.items():
        stop = start + count
        parts[name] = factors[np.sort(order[start:stop])]
        while stop < len(order) and place[order[stop]] == place[order[stop - 1]]:
            stop += 1
        start = stop
    return parts


def _dataset(name: str, factors: np.ndarray):
    import datasets
    from PIL import Image

    numbers = dict.fromkeys(FACTOR_NAMES[1:], datasets.Value("int32"))
    features = datasets.Features(image=datasets.Image(), shape=datasets.ClassLabel(names=list(SHAPES)), **numbers)
    size = 64
    bits = np.packbits(render_sprites(factors, size)[:, 0], axis=-1)
    columns = {column: factors[:, index].tolist() for index, column in enumerate(FACTOR_NAMES)}
    images = [to_png(Image.frombytes("1", (size, size), image.tobytes())) for image in bits]
    return datasets.Dataset.from_dict({"image": images, **columns}, features=features, split=datasets.NamedSplit(name))
