"""Configurations of the learned priors: densities of what an auto-encoder's encoder gives, so that its decoder has
something to draw from."""

import math
import re
from typing import Any, Literal

from huggingface_hub.dataclasses import strict, validated_field

from .configuration_base import AutoencoderBaseConfig, at_least, from_zero_below, in_range


def positive_shape(value: Any) -> None:
    """A field validator: the shape of one row of latents or codes, without the batch."""
    if not value or not all(size >= 1 for size in value):
        raise ValueError(f"expected a shape of at least one axis, of sizes of at least 1, got {value}")


def fingerprint_or_nothing(value: Any) -> None:
    """A field validator: what `weights_fingerprint` gives, or an empty string."""
    if not re.fullmatch(r"[0-9a-f]{16}|", value):
        raise ValueError(f"expected 16 hexadecimal digits, or nothing, got {value!r}")


@strict
class PriorConfig(AutoencoderBaseConfig):
    r"""
    The fields that all priors share. Use the configuration of a variant, not this class.

    Args:
        autoencoder (`str`, *optional*, defaults to `""`):
            Repository or folder name of the auto-encoder that the prior was trained on; empty when unknown.
        autoencoder_fingerprint (`str`, *optional*, defaults to `""`):
            Fingerprint of its weights. Sampling with any other auto-encoder is refused; empty: not checked.
    """

    autoencoder: str = ""
    autoencoder_fingerprint: str = validated_field(fingerprint_or_nothing, default="")


@strict
class LatentPriorConfig(PriorConfig):
    r"""
    Configuration of [`LatentPriorModel`].

    Args:
        latent_shape (`tuple[int, ...]`, *optional*, defaults to `(32,)`):
            Shape of the latents of one input, as the auto-encoder's configuration has it.
        prior (`str`, *optional*, defaults to `"realnvp"`):
            `"standard_normal"` (nothing to learn), `"gaussian_mixture"` or `"realnvp"` (a normalizing flow, Dinh et al.
            2017); all of them of standardised latents.
        num_components (`int`, *optional*, defaults to 10):
            Gaussians of the mixture (`"gaussian_mixture"`).
        covariance (`str`, *optional*, defaults to `"full"`):
            `"full"` or `"diag"`: of each Gaussian (`"gaussian_mixture"`).
        num_couplings (`int`, *optional*, defaults to 8):
            Affine couplings; each changes one half of the latents and reads the other (`"realnvp"`).
        hidden_size (`int`, *optional*, defaults to 256):
            Width of the networks of the couplings (`"realnvp"`).
        num_hidden_layers (`int`, *optional*, defaults to 2):
            Hidden layers of these networks (`"realnvp"`).
        max_log_scale (`float`, *optional*, defaults to 2.0):
            Bound on the logarithm of the factor by which one coupling stretches a latent (`"realnvp"`).
    """

    model_type = "hfae_latent_prior"

    latent_shape: list[int] | tuple[int, ...] = validated_field(positive_shape, default=(32,))
    prior: Literal["standard_normal", "gaussian_mixture", "realnvp"] = "realnvp"
    num_components: int = validated_field(at_least(1), default=10)
    covariance: Literal["full", "diag"] = "full"
    num_couplings: int = validated_field(at_least(1), default=8)
    hidden_size: int = validated_field(at_least(1), default=256)
    num_hidden_layers: int = validated_field(at_least(1), default=2)
    max_log_scale: float | int = validated_field(in_range(0.01, 10), default=2.0)

    @property
    def latent_size(self) -> int:
        """Numbers in the latents of one input."""
        return math.prod(self.latent_shape)

    def validate_couplings(self):
        if self.prior == "realnvp" and self.latent_size < 2:
            raise ValueError(
                f'prior="realnvp" changes one half of the latents given the other: expected a latent_shape of at least '
                f'2 numbers, got {tuple(self.latent_shape)}; use prior="gaussian_mixture"'
            )


@strict
class CodePriorConfig(PriorConfig):
    r"""
    Configuration of [`CodePriorModel`].

    Args:
        codes_shape (`tuple[int, ...]`, *optional*, defaults to `(1, 7, 7)`):
            Shape of the codes of one input, as the auto-encoder's configuration has it: `(num_codebooks, height,
            width)` of a grid, `(num_codes,)` of a vector.
        num_codes (`int`, *optional*, defaults to 512):
            Values that one code can take, as the auto-encoder's configuration has it.
        num_classes (`int`, *optional*, defaults to 0):
            Classes that samples can be asked for; 0: an unconditional prior.
        class_dropout (`float`, *optional*, defaults to 0.1):
            Share of the training examples whose class is kept from the model, so that it can sample without, too.
        hidden_size (`int`, *optional*, defaults to 128):
            Width of the transformer.
        num_hidden_layers (`int`, *optional*, defaults to 4):
            Its blocks.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Attention heads of each block.
        dropout (`float`, *optional*, defaults to 0.0):
            Of attention, embeddings and the output of each layer. Each process draws its own: with it, two processes
            train another model than one.
    """

    model_type = "hfae_code_prior"

    codes_shape: list[int] | tuple[int, ...] = validated_field(positive_shape, default=(1, 7, 7))
    num_codes: int = validated_field(at_least(2), default=512)
    num_classes: int = validated_field(at_least(0), default=0)
    class_dropout: float | int = validated_field(in_range(0, 1), default=0.1)
    hidden_size: int = validated_field(at_least(1), default=128)
    num_hidden_layers: int = validated_field(at_least(1), default=4)
    num_attention_heads: int = validated_field(at_least(1), default=4)
    dropout: float | int = validated_field(from_zero_below(1), default=0.0)

    @property
    def num_codebooks(self) -> int:
        """Codes at one place of the grid: the first axis of `codes_shape`; 1 where the codes are a vector."""
        return self.codes_shape[0] if len(self.codes_shape) > 1 else 1

    @property
    def num_positions(self) -> int:
        """Codes of one input."""
        return math.prod(self.codes_shape)

    @property
    def num_code_tokens(self) -> int:
        """Tokens that stand for codes: each codebook has its own."""
        return self.num_codebooks * self.num_codes

    @property
    def vocab_size(self) -> int:
        """Tokens in all: those of codes, the one that begins a sequence of no class, and one for each class."""
        return self.num_code_tokens + 1 + self.num_classes

    def validate_heads(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )


__all__ = ["LatentPriorConfig", "CodePriorConfig"]
