"""Configuration of the vector-quantised auto-encoder of speech."""

import math

from huggingface_hub.dataclasses import strict, validated_field

from .configuration_base import at_least, in_range
from .configuration_speech import QuantizerConfig


@strict
class SpeechVQVAEConfig(QuantizerConfig):
    r"""
    Configuration of [`SpeechVQVAEModel`].

    Args:
        latent_size (`int`, *optional*, defaults to 64):
            Length of a codebook entry.
        time_jitter (`float`, *optional*, defaults to 0.0):
            Chance that a latent frame gives way to one of its two neighbours in training, so that a code stands for
            more than one moment (Chorowski et al. 2019).
    """

    model_type = "hfae_speech_vqvae"

    latent_size: int = validated_field(at_least(1), default=64)
    time_jitter: float | int = validated_field(in_range(0, 1), default=0.0)

    @property
    def codes_per_second(self) -> float:
        """Codes of one codebook per second of speech, one for each frame of latents."""
        return self.frame_rate / self.downsampling

    @property
    def bits_per_second(self) -> float:
        """Bits that the codes of one second take when every value is equally likely."""
        return self.codes_per_second * self.num_codebooks * math.log2(self.codebook_size)


__all__ = ["SpeechVQVAEConfig"]
