"""Encoders and decoders for images of any size, shared by all variants.

    image (C, H, W) -> ImageEncoder -> features -> [flatten, linear] -> latent vector          (VectorEncoder)
    latent vector -> [linear, unflatten] -> features -> ImageDecoder -> image (C, H, W)         (VectorDecoder)

The features are a vector for `architecture="mlp"` and a map `(hidden_sizes[-1], h, w)` for `"conv"` and `"resnet"`,
where each level halves height and width, odd sizes rounded up. The decoder doubles and crops to the sizes of the
encoder's levels, so every image size comes back exactly.
"""

import math
import re
from itertools import pairwise

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_base import ImageAutoencoderConfig


def check_pixel_values(pixel_values: torch.Tensor, input_shape: tuple[int | None, ...]) -> None:
    """Raise unless `pixel_values` is a floating-point tensor of shape `(batch_size, *input_shape)`; None is any size.

    Only shape and dtype are looked at, so nothing waits for the device; values are checked by the image processor.
    """
    if len(input_shape) == 1:
        return check_rows(pixel_values, input_shape[0])
    if not torch.is_tensor(pixel_values):
        raise TypeError(
            f"pixel_values must be a torch.Tensor, got {type(pixel_values).__name__}. "
            "Use the model's image processor: processor(images, return_tensors='pt')."
        )
    if not pixel_values.is_floating_point():
        raise TypeError(
            f"pixel_values must be floating point with values in [0, 1], got {pixel_values.dtype}. "
            "Use the model's image processor, or divide uint8 images by 255."
        )
    if pixel_values.ndim != 4 or any(
        wanted not in (None, size) for size, wanted in zip(pixel_values.shape[1:], input_shape, strict=True)
    ):
        channels, height, width = (
            wanted or name for wanted, name in zip(input_shape, ("num_channels", "height", "width"), strict=True)
        )
        raise ValueError(
            f"pixel_values must have shape (batch_size, {channels}, {height}, {width}), which is (batch_size, "
            f"num_channels, height, width) of the configuration, got {tuple(pixel_values.shape)}. "
            "Use the model's image processor, or set image_size and num_channels in the configuration."
        )


def check_rows(rows: torch.Tensor, num_features: int) -> None:
    """Raise unless `rows` is a floating-point tensor of shape `(batch_size, num_features)`."""
    if not torch.is_tensor(rows) or not rows.is_floating_point():
        got = rows.dtype if torch.is_tensor(rows) else type(rows).__name__
        raise TypeError(
            "this model reads rows of tables: pixel_values must be a floating-point tensor of standardised numbers, "
            f"got {got}. Use the model's table processor: processor(rows, return_tensors='pt')."
        )
    if rows.ndim != 2 or rows.shape[1] != num_features:
        raise ValueError(
            f"this model reads rows of tables: pixel_values must have shape (batch_size, {num_features}), which is "
            f"(batch_size, num_features) of the configuration, got {tuple(rows.shape)}. "
            "Use the model's table processor."
        )


def check_latents(latents: torch.Tensor, latent_shape: tuple[int, ...], name: str = "latents") -> None:
    """Raise unless `latents` is a floating-point tensor of shape `(batch_size, *latent_shape)`."""
    if not torch.is_tensor(latents) or not latents.is_floating_point():
        kind = latents.dtype if torch.is_tensor(latents) else type(latents).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
    if tuple(latents.shape[1:]) != latent_shape:
        expected = ", ".join(map(str, ("batch_size", *latent_shape)))
        raise ValueError(f"{name} must have shape ({expected}), got {tuple(latents.shape)}")


def check_codes(codes: torch.Tensor, codes_shape: tuple[int | None, ...], axes: str, num_codes: int) -> None:
    """Raise unless `codes` is an integer tensor `(batch_size, *codes_shape)` with values in `[0, num_codes)`.

    Args:
        codes_shape: sizes after the first; None where any size will do.
        axes: their names, for the message, such as `"num_codebooks, height, width"`.
    """
    if not torch.is_tensor(codes) or codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        kind = codes.dtype if torch.is_tensor(codes) else type(codes).__name__
        raise TypeError(f"codes must be an integer tensor, got {kind}")
    sizes = codes.shape[1:]
    if len(sizes) != len(codes_shape) or any(e not in (None, s) for e, s in zip(codes_shape, sizes, strict=True)):
        names = ["batch_size", *axes.split(", ")]
        expected = ", ".join(n if e is None else str(e) for n, e in zip(names, (None, *codes_shape), strict=True))
        raise ValueError(f"codes must have shape ({expected}), which is ({', '.join(names)}), got {tuple(codes.shape)}")
    if not torch.compiler.is_compiling() and codes.numel():
        low, high = codes.aminmax()
        if low < 0 or high >= num_codes:
            raise ValueError(f"codes must be from 0 to {num_codes - 1}, got values from {low} to {high}")


class TrainingStepCounter(nn.Module):
    """Counts training steps in a buffer that is saved with the model, for schedules that are part of the loss."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", self.initial_state()["steps"])

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The buffer of a new model, for `_init_weights`."""
        return {"steps": torch.zeros((), dtype=torch.int64, device="cpu")}

    def forward(self) -> torch.Tensor:
        """The number of steps before this one, as a float32 scalar; in training mode, count this one."""
        if not self.training:
            return self.steps.float()
        return count_step(self.steps) if torch.compiler.is_compiling() else _count_step(self.steps)


def _count_step(steps: torch.Tensor) -> torch.Tensor:
    before = steps.to(torch.float32, copy=True)
    steps.add_(1)
    return before


# Opaque to torch.compile, which could otherwise read the count again in the backward pass, after it has moved on.
# Operators are global to a process, and every model from the Hub brings a copy of this file: each has its own.
OPERATORS = re.sub(r"\W", "_", __name__)
count_step = torch.library.custom_op(f"{OPERATORS}::count_step", _count_step, mutates_args=("steps",))


@count_step.register_fake
def _(steps):
    return steps.new_empty((), dtype=torch.float32)


class Float32Module(nn.Module):
    """A module that `.half()` and `.to(torch.bfloat16)` of the model leave in float32, bit for bit. In
    `from_pretrained` it is `_keep_in_fp32_modules_strict` that does so."""

    def _apply(self, fn, recurse: bool = True):
        def keep(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            halved = tensor.dtype == torch.float32 and applied.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(applied.device) if halved else applied

        return super()._apply(keep, recurse)


class LearnedScale(nn.Module):
    """One scale for each channel of the output, learned (Rybkin et al. 2021): log scale `(C, 1, 1)`, at least -7.
    Of rows of tables, one for each column: `(num_features,)`."""

    minimum = -7.0

    def __init__(self, num_channels: int, of_columns: bool = False):
        super().__init__()
        self.shape = (num_channels,) if of_columns else (num_channels, 1, 1)
        self.raw = nn.Parameter(self.initial_state()["raw"])

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The parameter of a new model, for `_init_weights`."""
        return {"raw": torch.full(self.shape, 5.0, device="cpu")}

    def forward(self) -> torch.Tensor:
        return self.minimum + nn.functional.softplus(self.raw.float())


class MLPLayer(nn.Module):
    """Linear layer and activation: `(batch_size, in_features)` to `(batch_size, out_features)`."""

    def __init__(self, in_features: int, out_features: int, hidden_act: str):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.activation = ACT2FN[hidden_act]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(hidden_state))


class MLPUpLayer(nn.Module):
    """Activation and linear layer, the mirror of [`MLPLayer`]."""

    def __init__(self, in_features: int, out_features: int, hidden_act: str):
        super().__init__()
        self.activation = ACT2FN[hidden_act]
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return self.linear(self.activation(hidden_state))


class ResidualBlock(GradientCheckpointingLayer):
    """Pre-activation residual block (He et al. 2016) with group normalisation, or none: `(batch_size, channels, h, w)`
    to the same shape."""

    def __init__(self, channels: int, hidden_act: str, normalize: bool = True):
        super().__init__()
        groups = math.gcd(channels, 8)
        self.norm1 = nn.GroupNorm(groups, channels) if normalize else nn.Identity()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels) if normalize else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.activation = ACT2FN[hidden_act]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        residual = self.conv1(self.activation(self.norm1(hidden_state)))
        residual = self.conv2(self.activation(self.norm2(residual)))
        return hidden_state + residual


class DownLevel(nn.Module):
    """Halve height and width (rounded up), then refine: `(B, in, h, w)` to `(B, out, ceil(h/2), ceil(w/2))`."""

    def __init__(self, config: ImageAutoencoderConfig, in_channels: int, out_channels: int):
        super().__init__()
        blocks = config.num_residual_blocks if config.architecture == "resnet" else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(out_channels, config.hidden_act) for _ in range(blocks))
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        hidden_state = self.conv(hidden_state)
        for block in self.blocks:
            hidden_state = block(hidden_state)
        return self.activation(hidden_state)


class UpLevel(nn.Module):
    """Refine, then double height and width and crop: `(B, in, h, w)` to `(B, out, *output_size)`."""

    def __init__(self, config: ImageAutoencoderConfig, in_channels: int, out_channels: int, output_size: tuple):
        super().__init__()
        blocks = config.num_residual_blocks if config.architecture == "resnet" else 0
        self.blocks = nn.ModuleList(ResidualBlock(in_channels, config.hidden_act) for _ in range(blocks))
        self.activation = ACT2FN[config.hidden_act]
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        # doubling gives even sizes: even if nothing is cut off, a slice would copy its gradient
        self.crop = tuple(slice(size) for size in output_size) if any(size % 2 for size in output_size) else None

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_state = block(hidden_state)
        hidden_state = self.conv(self.activation(hidden_state))
        return hidden_state if self.crop is None else hidden_state[:, :, self.crop[0], self.crop[1]]


class ImageEncoder(nn.Module):
    """Image to features: `(batch_size, C, H, W)` to `(batch_size, *config.feature_shape)`."""

    def __init__(self, config: ImageAutoencoderConfig):
        super().__init__()
        self.flatten = config.architecture == "mlp"
        widths = [config.num_input_dims if self.flatten else config.num_channels, *config.hidden_sizes]
        self.levels = nn.ModuleList(
            MLPLayer(i, o, config.hidden_act) if self.flatten else DownLevel(config, i, o) for i, o in pairwise(widths)
        )

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Returns the features, and the output of every level."""
        hidden_state, hidden_states = pixel_values.flatten(1) if self.flatten else pixel_values, ()
        for level in self.levels:
            hidden_state = level(hidden_state)
            hidden_states += (hidden_state,)
        return hidden_state, hidden_states


class ImageDecoder(nn.Module):
    """Features to image, the mirror of [`ImageEncoder`]; the last layer is linear."""

    def __init__(self, config: ImageAutoencoderConfig):
        super().__init__()
        self.image_shape = config.input_shape
        if config.architecture == "mlp":
            widths = [*reversed(config.hidden_sizes), config.num_input_dims]
            levels = [MLPUpLayer(i, o, config.hidden_act) for i, o in pairwise(widths)]
        else:
            widths = [*reversed(config.hidden_sizes), config.num_channels]
            sizes = config.level_sizes[-2::-1]
            levels = [UpLevel(config, i, o, size) for (i, o), size in zip(pairwise(widths), sizes, strict=True)]
        self.levels = nn.ModuleList(levels)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """`(batch_size, *config.feature_shape)` to `(batch_size, C, H, W)`."""
        for level in self.levels:
            hidden_state = level(hidden_state)
        return hidden_state.unflatten(1, self.image_shape) if hidden_state.ndim == 2 else hidden_state


class VectorEncoder(nn.Module):
    """Image to a vector of `num_outputs` numbers: [`ImageEncoder`], flatten, layer normalisation if wanted, linear."""

    def __init__(self, config: ImageAutoencoderConfig, num_outputs: int, normalize: bool = False):
        super().__init__()
        num_features = math.prod(config.feature_shape)
        self.image_encoder = ImageEncoder(config)
        self.norm = nn.LayerNorm(num_features) if normalize else None
        self.output = nn.Linear(num_features, num_outputs)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Returns `(batch_size, num_outputs)`, and the output of every level of the image encoder."""
        features, hidden_states = self.image_encoder(pixel_values)
        features = features.flatten(1)
        if self.norm is not None:
            features = self.norm(features)
        return self.output(features), hidden_states


class SpatialBroadcast(nn.Module):
    """Latent vector to the first feature map of a decoder, everywhere by one small network of the vector and the place
    (Watters et al. 2019, https://arxiv.org/abs/1901.07017). Places are numbers to it, which helps to encode them.

    `(batch_size, latent_size)` to `(batch_size, channels, height, width)`, before an activation.
    """

    def __init__(self, latent_size: int, feature_shape: tuple[int, int, int], hidden_act: str):
        super().__init__()
        channels, self.height, self.width = feature_shape
        self.of_latents = nn.Linear(latent_size, channels)
        self.of_place = nn.Linear(2, channels, bias=False)
        self.output = nn.Linear(channels, channels)
        self.activation = ACT2FN[hidden_act]

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        sides = (torch.linspace(-2, 2, side, device=latents.device) for side in (self.height, self.width))
        place = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).to(latents.dtype)  # (height, width, 2)
        hidden_state = self.of_latents(latents)[:, None, None] + self.of_place(place)
        return self.output(self.activation(hidden_state)).permute(0, 3, 1, 2)


class VectorDecoder(nn.Module):
    """Latent vector to image: linear, unflatten (or [`SpatialBroadcast`]), [`ImageDecoder`]."""

    def __init__(self, config: ImageAutoencoderConfig, latent_size: int, spatial_broadcast: bool = False):
        super().__init__()
        self.feature_shape = None if spatial_broadcast else config.feature_shape
        if spatial_broadcast:
            self.input = SpatialBroadcast(latent_size, config.feature_shape, config.hidden_act)
        else:
            self.input = nn.Linear(latent_size, math.prod(config.feature_shape))
        self.image_decoder = ImageDecoder(config)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """`(batch_size, latent_size)` to `(batch_size, C, H, W)`, before any output activation."""
        features = self.input(latents)
        return self.image_decoder(features.unflatten(1, self.feature_shape) if self.feature_shape else features)
