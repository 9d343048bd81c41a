"""Configuration of the vector-quantised auto-encoder."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict, validated_field

from .configuration_base import ImageAutoencoderConfig, at_least, from_zero_below, in_range


@strict
class VQVAEConfig(ImageAutoencoderConfig):
    r"""
    Configuration of [`VQVAEModel`]. `architecture` is `"conv"` or `"resnet"`: the code is a grid.

    Args:
        quantizer (`str`, *optional*, defaults to `"vq"`):
            `"vq"` (learned codebooks, van den Oord et al. 2017) or `"fsq"` (finite scalar quantisation, Mentzer et al.
            2024: a fixed grid, nothing to learn).
        codebook_size (`int`, *optional*, defaults to 512):
            Entries of each codebook (`"vq"`).
        embedding_dim (`int`, *optional*, defaults to 64):
            Length of a codebook entry (`"vq"`).
        num_codebooks (`int`, *optional*, defaults to 1):
            More than one: residual quantisation, each codebook codes what the ones before left over (`"vq"`).
        fsq_levels (`tuple[int, ...]`, *optional*, defaults to `(8, 8, 8)`):
            Levels of each dimension (`"fsq"`); their product is the number of codes.
        codebook_update (`str`, *optional*, defaults to `"ema"`):
            `"ema"` (exponential moving averages of the vectors assigned to an entry) or `"gradient"` (codebook loss;
            the optimizer keeps what it knew of an entry that is revived).
        codebook_distance (`str`, *optional*, defaults to `"euclidean"`):
            `"euclidean"` or `"cosine"` (vectors and entries are normalised to length 1; one codebook only).
        ema_decay (`float`, *optional*, defaults to 0.99):
            Decay of the moving averages; for `"gradient"` it is that of the usage statistics.
        commitment_cost (`float`, *optional*, defaults to 0.25):
            Weight of the commitment loss, which keeps the encoder's output close to its code.
        codebook_cost (`float`, *optional*, defaults to 1.0):
            Weight of the codebook loss (`codebook_update="gradient"`).
        kmeans_init (`bool`, *optional*, defaults to `True`):
            Start the codebooks from k-means on the first training batch.
        dead_code_threshold (`float`, *optional*, defaults to 0.05):
            An entry whose moving average of use falls below this share of the average entry's is put on a vector of
            the current batch, and its statistics start anew. 0 switches revival off.
    """

    model_type = "hfae_vqvae"
    attribute_map = {"hidden_size": "embedding_dim"}

    quantizer: Literal["vq", "fsq"] = "vq"
    codebook_size: int = validated_field(at_least(2), default=512)
    embedding_dim: int = validated_field(at_least(1), default=64)
    num_codebooks: int = validated_field(at_least(1), default=1)
    fsq_levels: list[int] | tuple[int, ...] = validated_field(at_least(2), default=(8, 8, 8))
    codebook_update: Literal["ema", "gradient"] = "ema"
    codebook_distance: Literal["euclidean", "cosine"] = "euclidean"
    ema_decay: float | int = validated_field(from_zero_below(1), default=0.99)
    commitment_cost: float | int = validated_field(at_least(0), default=0.25)
    codebook_cost: float | int = validated_field(at_least(0), default=1.0)
    kmeans_init: bool = True
    dead_code_threshold: float | int = validated_field(in_range(0, 1), default=0.05)

    @property
    def num_codes(self) -> int:
        """Values that one code can take: `codebook_size`, or the product of `fsq_levels`."""
        return math.prod(self.fsq_levels) if self.quantizer == "fsq" else self.codebook_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the latents of one input: (dimensions, height, width)."""
        dims = len(self.fsq_levels) if self.quantizer == "fsq" else self.embedding_dim
        return (dims, *self.level_sizes[-1])

    @property
    def codes_shape(self) -> tuple[int, int, int]:
        """Shape of the codes of one input: (num_codebooks, height, width)."""
        return (self.num_codebooks, *self.level_sizes[-1])

    @property
    def bits_per_input(self) -> float:
        """Bits that the codes of one input take when every value is equally likely."""
        return math.prod(self.codes_shape) * math.log2(self.num_codes)

    def validate_quantizer(self):
        if self.architecture == "mlp":
            raise ValueError('architecture="mlp" has no grid of latents to quantise: use "conv" or "resnet"')
        if self.num_codebooks > 1 and self.quantizer == "fsq":
            raise ValueError(f'quantizer="fsq" has one implicit codebook, got num_codebooks={self.num_codebooks}')
        if self.num_codebooks > 1 and self.codebook_distance == "cosine":
            raise ValueError(
                'codebook_distance="cosine" leaves no residual to quantise again: use num_codebooks=1, '
                f'or codebook_distance="euclidean" with num_codebooks={self.num_codebooks}'
            )
        if self.quantizer == "fsq" and not self.fsq_levels:
            raise ValueError('quantizer="fsq" needs at least one level in fsq_levels, got none')


__all__ = ["VQVAEConfig"]
