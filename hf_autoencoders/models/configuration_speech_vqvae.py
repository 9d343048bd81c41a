"""Configuration of the vector-quantised auto-encoder of speech."""

import math

from huggingface_hub.dataclasses import strict, validated_field

from .configuration_base import at_least
from .configuration_speech import QuantizerConfig


@strict
class SpeechVQVAEConfig(QuantizerConfig):
    r"""
    Configuration of [`SpeechVQVAEModel`].

    Args:
        latent_size (`int`, *optional*, defaults to 64):
            Length of a codebook entry.
    """

    model_type = "hfae_speech_vqvae"

    latent_size: int = validated_field(at_least(1), default=64)

    @property
    def codes_per_second(self) -> float:
        """Codes of one codebook per second of speech, one for each frame of latents."""
        return self.frame_rate / self.downsampling

    @property
    def bits_per_second(self) -> float:
        """Bits that the codes of one second take when every value is equally likely."""
        return self.codes_per_second * self.num_codebooks * math.log2(self.codebook_size)


__all__ = ["SpeechVQVAEConfig"]
