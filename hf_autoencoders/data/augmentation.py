"""Random geometric changes of images, as tensor operations on the device of a batch.

What is random comes as an argument, so that a training run decides where it is drawn: with `Batch.draw` the same row
gets the same change on any number of processes.

```python
images = random_affine(batch.pixel_values, batch.draw(torch.rand, 6), rotation_degrees=10, scale=1.2)
images = elastic_deformation(images, batch.draw(torch.randn, 2, 4, 4), strength_pixels=1.0)
```
"""

import math

import torch
import torch.nn.functional as F


def random_affine(
    pixel_values: torch.Tensor,
    noise: torch.Tensor,
    *,
    rotation_degrees: float = 0.0,
    scale: float = 1.0,
    shear_degrees: float = 0.0,
    translation: float = 0.0,
) -> torch.Tensor:
    """Stretch, shear, turn and shift each image about its centre, in this order; what comes in at the border is 0.

    Noise of 0.5 everywhere, or ranges that are all as by default, change nothing. Every range is used evenly.

    Args:
        pixel_values: float (batch, channels, height, width).
        noise: (batch, 6) in [0, 1), on the same device: of the rotation, the stretch of the width and of the height,
            the shear, the shift to the right and down.
        rotation_degrees: turn by -this (clockwise) to this (counter-clockwise).
        scale: multiply width and height by 1 / this to this, each by its own factor, evenly in the logarithm. At least
            1.
        shear_degrees: lean by -this (left) to this (right). From 0 to below 90.
        translation: shift by -this to this, as a share of the width and of the height.

    Returns:
        Of the shape and dtype of `pixel_values`, within its range or 0; computed in float32, bilinearly.

    Raises:
        ValueError: pixel values that are no such floats, noise of another shape, or a range that is none.
    """
    _check(pixel_values, noise, (6,))
    for name, value, low, high in (
        ("rotation_degrees", rotation_degrees, 0, math.inf),
        ("scale", scale, 1, math.inf),
        ("shear_degrees", shear_degrees, 0, 90),
        ("translation", translation, 0, math.inf),
    ):
        if not low <= value < high:
            raise ValueError(f"{name} must be from {low} to below {high}, got {value}.")
    height, width = pixel_values.shape[-2:]
    turn, stretch_x, stretch_y, lean, right, down = (2 * noise.float() - 1).unbind(1)
    angle = turn * math.radians(rotation_degrees)
    cos, sin, tan = angle.cos(), angle.sin(), (lean * math.radians(shear_degrees)).tan()
    scale_x, scale_y = scale**stretch_x, scale**stretch_y
    # out = R S Z in + shift, so a pixel of the result is read at Z^-1 S^-1 R^-1 (out - shift). As y goes down, R is
    # [[cos, sin], [-sin, cos]], and a lean to the right S is [[1, -tan], [0, 1]].
    matrix = torch.stack(
        [(cos + tan * sin) / scale_x, (tan * cos - sin) / scale_x, sin / scale_y, cos / scale_y], dim=1
    ).view(-1, 2, 2)
    half = torch.tensor([width / 2, height / 2], device=noise.device)  # pixels of a unit of the grid
    shift = 2 * translation * torch.stack([right, down], dim=1)  # in such units
    matrix = matrix * half / half[:, None]
    offset = -(matrix * shift[:, None, :]).sum(2, keepdim=True)
    return _read_at(pixel_values, torch.cat([matrix, offset], dim=2))


def elastic_deformation(pixel_values: torch.Tensor, noise: torch.Tensor, strength_pixels: float) -> torch.Tensor:
    """Bend each image: its pixels are read where a smooth random field points to; outside the image is 0.

    Args:
        pixel_values: float (batch, channels, height, width).
        noise: (batch, 2, rows, columns) standard normal, on the same device: how far to the right and how far down of
            itself a pixel is read, at the points of a coarse grid that is laid over the image, corners on corners;
            between them bicubically. The fewer points, the smoother: 3 x 3 to 8 x 8 are usual. 0 changes nothing.
        strength_pixels: what noise of 1 is, in pixels. Not negative. Keep it well below the distance of two points of
            the grid: beyond, the image folds over.

    Returns:
        Of the shape and dtype of `pixel_values`, within its range or 0; computed in float32, bilinearly.

    Raises:
        ValueError: pixel values that are no such floats, noise of another shape, or a negative strength.
    """
    _check(pixel_values, noise, (2, None, None))
    if not 0 <= strength_pixels < math.inf:
        raise ValueError(f"strength_pixels must not be negative, got {strength_pixels}.")
    size = height, width = pixel_values.shape[-2:]
    field = F.interpolate(noise.float(), size=size, mode="bicubic", align_corners=True) * strength_pixels
    units = torch.tensor([2 / width, 2 / height], device=noise.device)  # of the grid, in a pixel
    identity = torch.eye(2, 3, device=noise.device).expand(len(noise), 2, 3)
    return _read_at(pixel_values, identity, field.movedim(1, 3) * units)


def random_crop(pixel_values: torch.Tensor, noise: torch.Tensor, size: int) -> torch.Tensor:
    """A square of each image, `size` pixels high and wide, every place as likely.

    Args:
        pixel_values: float (batch, channels, height, width).
        noise: (batch, 2) in [0, 1), on the same device: of the place down and to the right.
        size: from 1 to the smaller of height and width.

    Raises:
        ValueError: pixel values that are no such floats, noise of another shape, or a square that does not fit.
    """
    _check(pixel_values, noise, (2,))
    height, width = pixel_values.shape[-2:]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size must be from 1 to {min(height, width)} for images of {height} x {width}, got {size}.")
    free = torch.tensor([height - size + 1, width - size + 1], device=noise.device)
    top, left = (noise.double() * free).long().unbind(1)
    span = torch.arange(size, device=noise.device)
    rows, columns = top[:, None] + span, left[:, None] + span
    batch = torch.arange(len(pixel_values), device=noise.device)
    cut = pixel_values[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (batch, size, size, channels)
    return cut.permute(0, 3, 1, 2)


def _read_at(
    pixel_values: torch.Tensor, matrices: torch.Tensor, displacement: torch.Tensor | None = None
) -> torch.Tensor:
    """The images read at the pixels' places times `matrices` (batch, 2, 3), plus a displacement (batch, height, width,
    2), in units of `grid_sample`: 2 is the width, or the height."""
    with torch.autocast(pixel_values.device.type, enabled=False):  # bfloat16 has not the digits for places
        grid = F.affine_grid(matrices, list(pixel_values.shape), align_corners=False)
        grid = grid if displacement is None else grid + displacement
        read = F.grid_sample(pixel_values.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return read.to(pixel_values.dtype)


def _check(pixel_values: torch.Tensor, noise: torch.Tensor, shape: tuple[int | None, ...]) -> None:
    if pixel_values.ndim != 4 or not pixel_values.is_floating_point():
        raise ValueError(
            "pixel_values must be float (batch, channels, height, width), "
            f"got {pixel_values.dtype} {tuple(pixel_values.shape)}."
        )
    wanted = (len(pixel_values), *shape)
    if noise.ndim != len(wanted) or any(size not in (None, got) for size, got in zip(wanted, noise.shape, strict=True)):
        described = ", ".join("any" if size is None else str(size) for size in wanted)
        raise ValueError(f"noise must be of shape ({described}) for these pixel_values, got {tuple(noise.shape)}.")
