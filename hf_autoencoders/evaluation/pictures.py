"""Pictures for people: reconstructions under their originals, samples, interpolations. PNG through Pillow.

`draw_model` draws all that a model offers. The other functions take images in [0, 1] (values outside are clipped, as a
screen would) with 1 or 3 channels and return a `PIL.Image`; tiny images are enlarged by whole factors without
smoothing, so that one pixel stays one visible square.
"""

import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.images import to_pixel_values
from .checks import check_images, check_positive, check_same_shape, check_uint8_images

TILE_SIZE = 72  # pixels: images are enlarged until their shorter side is at least about this
SEPARATOR = 2  # pixels between tiles
GROUP_SEPARATOR = 10  # pixels between groups of tiles and around the picture
BACKGROUND = 255


@torch.inference_mode()
def draw_model(
    model, images: np.ndarray, output_dir: str | os.PathLike, *, num_images: int = 24, seed: int = 0
) -> list[Path]:
    """Draw what a model makes of some images, and what it makes from nothing where it has a prior.

    Args:
        model: an image auto-encoder of this package.
        images: uint8 (rows, channels, height, width); `num_images` of them, evenly spread over the rows, are drawn.
        output_dir: folder of the pictures; it is made if needed.
        seed: of the samples.

    Returns:
        Paths of `reconstructions.png`, of `samples.png` (models with a prior of their own) and of `interpolations.png`
        (models with `interpolate`, at least two images).
    """
    check_uint8_images("images", images)
    check_positive("num_images", num_images)
    rows = np.unique(np.linspace(0, len(images) - 1, num_images).astype(int))
    pixel_values = to_pixel_values(torch.from_numpy(np.asarray(images[rows])), model.device)
    drawn = {"reconstructions.png": reconstruction_grid(pixel_values, reconstruct(model, pixel_values))}
    if getattr(model, "has_prior", False):
        generator = torch.Generator().manual_seed(seed)
        drawn["samples.png"] = image_grid(model.sample(60, generator=generator), columns=12)
    if hasattr(model, "interpolate") and len(rows) >= 2:
        first, second = pixel_values[0 : len(rows) // 2 * 2 : 2][:5], pixel_values[1::2][:5]
        drawn["interpolations.png"] = interpolation_strip(model.interpolate(first, second, steps=12))
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, picture in drawn.items():
        picture.save(output_dir / name)
    return [output_dir / name for name in drawn]


@torch.inference_mode()
def reconstruct(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """The reconstruction of `pixel_values` (batch_size, channels, height, width) in evaluation mode, same shape."""
    was_training = model.training
    model.eval()
    try:
        return model(pixel_values, return_loss=False).reconstruction
    finally:
        model.train(was_training)


@torch.no_grad()
def anomaly_grid(model, images: np.ndarray, masks: np.ndarray | None = None) -> Image.Image:
    """Images, their reconstructions, and heat maps over them, one below the other; then masks of the truth, if given.

    Args:
        model: with a fitted detector.
        images: uint8 (rows, channels, height, width), 1 or 3 channels.
        masks: (rows, height, width) bool.
    """
    check_uint8_images("images", images)
    pixel_values = to_pixel_values(torch.from_numpy(np.asarray(images)), model.device)
    found = model.eval().detect(pixel_values)
    maps = found.maps.cpu().numpy()
    top = np.quantile(maps, 0.999)
    heat = np.stack([heat_overlay(image, one, 0.0, top) for image, one in zip(images, maps, strict=True)])
    shown = [pixel_values, reconstruct(model, pixel_values), torch.from_numpy(heat).permute(0, 3, 1, 2).float() / 255]
    if masks is not None:
        shown.append(torch.from_numpy(np.asarray(masks)).float().unsqueeze(1))
    tiles = [_tiles(part.cpu().expand(-1, 3, -1, -1) if part.shape[1] == 1 else part.cpu()) for part in shown]
    return _paste(tiles, [SEPARATOR] * len(tiles))


def heat_overlay(image: np.ndarray, heat_map: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """A heat map over an image, uint8 (height, width, 3): the image in grey where the map is low, then red, yellow.

    Args:
        image: uint8 (channels, height, width), 1 or 3 channels.
        heat_map: (height, width).
        lowest, highest: values of the map that are shown as none and as all.
    """
    grey = np.asarray(image, np.float32).mean(0)
    heat = np.clip((heat_map - lowest) / max(highest - lowest, 1e-12), 0, 1)[..., None]
    color = np.concatenate([np.full_like(heat, 255), 255 * np.clip(2 * heat - 1, 0, 1), np.zeros_like(heat)], axis=-1)
    share = np.clip(2 * heat, 0, 1) * 0.8
    return ((1 - share) * grey[..., None] + share * color).round().astype(np.uint8)


def reconstruction_grid(images: torch.Tensor, reconstruction: torch.Tensor, columns: int = 12) -> Image.Image:
    """Each original with its reconstruction below it, `columns` pairs in a row.

    Args:
        images, reconstruction: (num_images, channels, height, width) in [0, 1], 1 or 3 channels.
    """
    check_images("images", images)
    check_images("reconstruction", reconstruction)
    check_same_shape("images", images, "reconstruction", reconstruction)
    check_positive("columns", columns)
    originals, outputs = _tiles(images), _tiles(reconstruction)
    rows, gaps = [], []
    for first in range(0, len(originals), columns):
        rows += [originals[first : first + columns], outputs[first : first + columns]]
        gaps += [SEPARATOR, GROUP_SEPARATOR]
    return _paste(rows, gaps)


def image_grid(images: torch.Tensor, columns: int | None = None) -> Image.Image:
    """Images side by side, row after row; as square a grid as their number allows unless `columns` is given.

    Args:
        images: (num_images, channels, height, width) in [0, 1], 1 or 3 channels.
    """
    check_images("images", images)
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    check_positive("columns", columns)
    tiles = _tiles(images)
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    return _paste(rows, [SEPARATOR] * len(rows))


def interpolation_strip(interpolations: torch.Tensor) -> Image.Image:
    """One row of images from left to right, or one row for each pair of end points.

    Args:
        interpolations: (steps, channels, height, width), or (num_pairs, steps, channels, height, width), in [0, 1].
    """
    if isinstance(interpolations, torch.Tensor) and interpolations.ndim == 4:
        interpolations = interpolations[None]
    if not isinstance(interpolations, torch.Tensor) or interpolations.ndim != 5:
        found = (
            tuple(interpolations.shape) if isinstance(interpolations, torch.Tensor) else type(interpolations).__name__
        )
        raise ValueError(
            "`interpolations` must be a tensor (steps, channels, height, width) or "
            f"(num_pairs, steps, channels, height, width), got {found}"
        )
    rows = []
    for strip in interpolations:
        check_images("interpolations", strip)
        rows.append(_tiles(strip))
    return _paste(rows, [GROUP_SEPARATOR] * len(rows))


def _tiles(images: torch.Tensor) -> list[Image.Image]:
    """Enlarged 8-bit images."""
    channels, height, width = images.shape[1:]
    if channels not in (1, 3):
        raise ValueError(f"pictures need 1 channel (grey) or 3 (RGB), these images have {channels}")
    factor = max(1, round(TILE_SIZE / min(height, width)))
    levels = images.detach().cpu().float().clamp(0, 1).nan_to_num(0).mul(255).round().byte()
    arrays = levels.permute(0, 2, 3, 1).numpy()
    if channels == 1:
        arrays = arrays[..., 0]
    size = (width * factor, height * factor)
    return [Image.fromarray(np.ascontiguousarray(array)).resize(size, Image.Resampling.NEAREST) for array in arrays]


def _paste(rows: list[list[Image.Image]], gaps: list[int]) -> Image.Image:
    """Rows of equally large tiles on a light background; `gaps[i]` pixels below row i."""
    tile = rows[0][0]
    columns = max(len(row) for row in rows)
    width = 2 * GROUP_SEPARATOR + columns * (tile.width + SEPARATOR) - SEPARATOR
    height = 2 * GROUP_SEPARATOR + len(rows) * tile.height + sum(gaps[:-1])
    background = BACKGROUND if tile.mode == "L" else (BACKGROUND,) * 3
    picture = Image.new(tile.mode, (width, height), background)
    top = GROUP_SEPARATOR
    for row, gap in zip(rows, gaps, strict=True):
        for column, image in enumerate(row):
            picture.paste(image, (GROUP_SEPARATOR + column * (tile.width + SEPARATOR), top))
        top += tile.height + gap
    return picture
