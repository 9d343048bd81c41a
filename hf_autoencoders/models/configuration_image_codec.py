"""Configuration of the learned image codec."""

from typing import Literal

from huggingface_hub.dataclasses import strict, validated_field

from .configuration_base import ImageAutoencoderConfig, at_least, in_range


@strict
class ImageCodecConfig(ImageAutoencoderConfig):
    r"""
    Configuration of [`ImageCodecModel`]. It takes images of any size: `image_size` is that of the corpus it was trained
    on, for tools that need one, and restricts nothing.

    `architecture` is `"conv"` (5x5 convolutions and generalised divisive normalisation, Balle et al. 2017) or
    `"resnet"` (5x5 convolutions, each followed by residual blocks without normalisation). Each entry of `hidden_sizes`
    halves height and width; the last is the number of channels of the latents.

    Args:
        entropy_model (`str`, *optional*, defaults to `"mean_scale_hyperprior"`):
            What predicts the latents, and so what their bytes cost: `"factorized"` (one learned distribution for each
            channel, Balle et al. 2017), `"scale_hyperprior"` (Gaussians whose scales are sent along, Balle et al. 2018)
            or `"mean_scale_hyperprior"` (means, too; Minnen et al. 2018).
        hyper_size (`int`, *optional*, defaults to 64):
            Channels of the hyperprior's layers and of what it sends; used by the two hyperpriors.
        lambdas (`tuple[float, ...]`, *optional*, defaults to `(0.0016, 0.0032, 0.0075, 0.015, 0.03, 0.06)`):
            What distortion costs, in rising order: loss = bits per pixel + lambda x 255^2 x mean squared error. One
            network serves them all; `quality` 0 stands for the first, 1 for the second, and what lies between for
            rates between (Cui et al. 2021).
    """

    model_type = "hfae_image_codec"
    attribute_map = {"hidden_size": "hyper_size"}
    any_image_size = True

    architecture: Literal["conv", "resnet"] = "resnet"
    hidden_sizes: list[int] | tuple[int, ...] = validated_field(at_least(1), default=(32, 64, 128, 128))
    num_residual_blocks: int = validated_field(at_least(1), default=1)
    entropy_model: Literal["factorized", "scale_hyperprior", "mean_scale_hyperprior"] = "mean_scale_hyperprior"
    hyper_size: int = validated_field(in_range(1, 4096), default=64)
    lambdas: list[float | int] | tuple[float | int, ...] = validated_field(
        at_least(0), default=(0.0016, 0.0032, 0.0075, 0.015, 0.03, 0.06)
    )

    @property
    def stride(self) -> int:
        """Pixels along one side of an image for one place of the latents."""
        return 2 ** len(self.hidden_sizes)

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of an image of `image_size`, padded to whole strides, before and after each halving."""
        height, width = self.latent_grid(*self.input_shape[1:])
        return [(height << level, width << level) for level in range(len(self.hidden_sizes), -1, -1)]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the latents of an image of `image_size`: (channels, height, width)."""
        return (self.hidden_sizes[-1], *self.latent_grid(*self.input_shape[1:]))

    def latent_grid(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the latents of an image."""
        return -(-height // self.stride), -(-width // self.stride)

    def hyper_grid(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what the hyperprior sends of an image."""
        return tuple(-(-side // 4) for side in self.latent_grid(height, width))

    @property
    def max_quality(self) -> int:
        """The highest quality; 0 is the lowest."""
        return len(self.lambdas) - 1

    def validate_lambdas(self):
        if not self.lambdas:
            raise ValueError("lambdas is empty: give at least one")
        if list(self.lambdas) != sorted(set(self.lambdas)) or self.lambdas[0] <= 0:
            raise ValueError(
                f"lambdas must be above 0 and rise, so that a higher quality is better, got {self.lambdas}"
            )


__all__ = ["ImageCodecConfig"]
