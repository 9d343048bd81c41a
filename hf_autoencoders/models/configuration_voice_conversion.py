"""Configuration of the voice conversion auto-encoder."""

from typing import Literal

from huggingface_hub.dataclasses import strict, validated_field

from .configuration_base import at_least
from .configuration_speech import QuantizerConfig


@strict
class VoiceConversionConfig(QuantizerConfig):
    r"""
    Configuration of [`VoiceConversionModel`]. The fields of the codebook are used with `content_bottleneck="vq"`.

    Args:
        content_bottleneck (`str`, *optional*, defaults to `"none"`):
            What narrows the content, beside its width: `"none"`, `"kl"` (a Gaussian posterior, pulled to N(0, I)) or
            `"vq"` (learned codebooks, which take more of the speaker away).
        latent_size (`int`, *optional*, defaults to 32):
            Dimensions of the content of one frame.
        kl_weight (`float`, *optional*, defaults to 0.01):
            Weight of the KL term (`content_bottleneck="kl"`).
    """

    model_type = "hfae_voice_conversion"

    content_bottleneck: Literal["none", "kl", "vq"] = "none"
    latent_size: int = validated_field(at_least(1), default=32)
    kl_weight: float | int = validated_field(at_least(0), default=0.01)


__all__ = ["VoiceConversionConfig"]
