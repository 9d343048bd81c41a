"""Argument checks shared by the evaluation functions."""

import numpy as np
import torch


def check_images(name: str, images: torch.Tensor) -> None:
    """Raise unless `images` is a non-empty floating point tensor (batch_size, channels, height, width)."""
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(images).__name__}")
    if images.ndim != 4 or images.numel() == 0:
        raise ValueError(
            f"`{name}` must have shape (batch_size, channels, height, width) with at least one image, "
            f"got {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise TypeError(f"`{name}` must be floating point in [0, 1], got {images.dtype}; divide 8-bit images by 255")


def check_unit_range(name: str, images: torch.Tensor) -> None:
    """Raise unless every value of `images` lies in [0, 1] (NaN does not)."""
    lowest, highest = images.min().item(), images.max().item()
    if not (lowest >= 0.0 and highest <= 1.0):
        raise ValueError(f"`{name}` must lie in [0, 1], got values from {lowest:g} to {highest:g}")


def check_same_shape(first_name: str, first: torch.Tensor, second_name: str, second: torch.Tensor) -> None:
    """Raise unless both tensors have one shape (broadcasting would hide the mistake)."""
    if first.shape != second.shape:
        raise ValueError(
            f"`{first_name}` and `{second_name}` must have the same shape, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )


def check_uint8_images(name: str, images: np.ndarray) -> None:
    """Raise unless `images` is a non-empty uint8 array (rows, channels, height, width), e.g. `ImageArrays.images`."""
    if getattr(images, "ndim", None) != 4 or len(images) == 0 or images.dtype != np.uint8:
        found = f"{images.dtype} {images.shape}" if hasattr(images, "shape") else type(images).__name__
        raise ValueError(
            f"`{name}` must be a non-empty uint8 array (rows, channels, height, width) such as "
            f"`ImageArrays.images`, got {found}"
        )


def check_positive(name: str, value: int) -> None:
    """Raise unless `value` is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}")
