"""The fields that all auto-encoders of speech share."""

from typing import Literal

from huggingface_hub.dataclasses import strict, validated_field

from .configuration_base import AutoencoderBaseConfig, at_least, from_zero_below, in_range


def odd(value: int) -> None:
    """A field validator: a positive odd number."""
    if value < 1 or value % 2 == 0:
        raise ValueError(f"expected a positive odd number, got {value}")


@strict
class SpeechAutoencoderConfig(AutoencoderBaseConfig):
    r"""
    The fields that all auto-encoders of speech share. Use the configuration of a variant, not this class.

    Args:
        num_mel_bins (`int`, *optional*, defaults to 80):
            Mel bands of the input, `feature_size` of the feature extractor.
        sampling_rate (`int`, *optional*, defaults to 16000):
            Samples per second of the waveforms that the features were made of, as the feature extractor has it.
        hop_length (`int`, *optional*, defaults to 200):
            Samples from one frame of features to the next, as the feature extractor has it.
        hidden_size (`int`, *optional*, defaults to 128):
            Channels of all convolutions.
        num_encoder_blocks (`int`, *optional*, defaults to 3):
            Residual blocks of the content encoder.
        num_decoder_blocks (`int`, *optional*, defaults to 4):
            Residual blocks of the decoder.
        num_speaker_blocks (`int`, *optional*, defaults to 2):
            Residual blocks of the speaker encoder.
        num_downsamplings (`int`, *optional*, defaults to 1):
            How often the content encoder halves the number of frames.
        kernel_size (`int`, *optional*, defaults to 5):
            Frames under each kernel, odd.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation between layers: `"relu"`, `"gelu"`, `"silu"` or `"tanh"`.
        instance_norm (`bool`, *optional*, defaults to `True`):
            Give each channel of the content encoder, and the content itself, mean 0 and variance 1 over the frames of a
            clip, which takes away what is the same in all of them: part of the speaker and the microphone (Chou et al.
            2019).
        speaker_size (`int`, *optional*, defaults to 64):
            Length of the speaker embedding.
        num_speakers (`int`, *optional*, defaults to 0):
            Speakers that `speaker_ids` tell apart in training, for the objectives that classify them.
        speaker_adversarial_weight (`float`, *optional*, defaults to 0.0):
            Strength with which the content encoder works against a classifier of the speaker that reads the content
            (gradient reversal, Ganin & Lempitsky 2015; for voice conversion Chou et al. 2018). Needs `num_speakers`.
        conversion_weight (`float`, *optional*, defaults to 0.0):
            Weight of the cross-entropy of the target speaker, by a classifier that learns from the real clips alone,
            for each clip converted to the voice of another one of the batch (Kameoka et al. 2019, ACVAE-VC). Needs
            `num_speakers`.
        content_consistency_weight (`float`, *optional*, defaults to 0.0):
            Weight of the distance between the content of a clip and that of its conversion to another voice.
        speaker_consistency_weight (`float`, *optional*, defaults to 0.0):
            Weight of the distance between the speaker embedding that a clip is converted with and that of the result.
        disentangling_warmup_steps (`int`, *optional*, defaults to 0):
            Training steps over which the four weights above rise from 0.
    """

    num_mel_bins: int = validated_field(at_least(1), default=80)
    sampling_rate: int = validated_field(at_least(1), default=16000)
    hop_length: int = validated_field(at_least(1), default=200)
    hidden_size: int = validated_field(at_least(1), default=128)
    num_encoder_blocks: int = validated_field(at_least(1), default=3)
    num_decoder_blocks: int = validated_field(at_least(1), default=4)
    num_speaker_blocks: int = validated_field(at_least(1), default=2)
    num_downsamplings: int = validated_field(in_range(0, 8), default=1)
    kernel_size: int = validated_field(odd, default=5)
    hidden_act: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    instance_norm: bool = True
    speaker_size: int = validated_field(at_least(1), default=64)
    num_speakers: int = validated_field(at_least(0), default=0)
    speaker_adversarial_weight: float | int = validated_field(at_least(0), default=0.0)
    conversion_weight: float | int = validated_field(at_least(0), default=0.0)
    content_consistency_weight: float | int = validated_field(at_least(0), default=0.0)
    speaker_consistency_weight: float | int = validated_field(at_least(0), default=0.0)
    disentangling_warmup_steps: int = validated_field(at_least(0), default=0)

    @property
    def frame_rate(self) -> float:
        """Frames of features per second."""
        return self.sampling_rate / self.hop_length

    @property
    def downsampling(self) -> int:
        """Frames of features under one frame of latents."""
        return 2**self.num_downsamplings

    @property
    def converts_in_training(self) -> bool:
        """Whether an objective looks at clips converted to the voice of another one of the batch."""
        return max(self.conversion_weight, self.content_consistency_weight, self.speaker_consistency_weight) > 0

    def validate_levels(self):
        if self.num_downsamplings > self.num_encoder_blocks:
            raise ValueError(
                "a block of the content encoder halves the frames once at most: expected num_downsamplings of at most "
                f"num_encoder_blocks={self.num_encoder_blocks}, got {self.num_downsamplings}"
            )

    def validate_speakers(self):
        for name in ("speaker_adversarial_weight", "conversion_weight"):
            if getattr(self, name) > 0 and self.num_speakers < 2:
                raise ValueError(
                    f"{name}={getattr(self, name)} needs at least 2 speakers to tell apart, got "
                    f"num_speakers={self.num_speakers}"
                )


@strict
class QuantizerConfig(SpeechAutoencoderConfig):
    r"""
    The fields of auto-encoders of speech with learned codebooks; their meaning is that in [`VQVAEConfig`].

    Args:
        codebook_size (`int`, *optional*, defaults to 128):
            Entries of each codebook.
        num_codebooks (`int`, *optional*, defaults to 1):
            More than one: residual quantisation.
        codebook_update (`str`, *optional*, defaults to `"ema"`):
            `"ema"` or `"gradient"`.
        ema_decay (`float`, *optional*, defaults to 0.99):
            Decay of the moving averages.
        commitment_cost (`float`, *optional*, defaults to 0.25):
            Weight of the commitment loss.
        codebook_cost (`float`, *optional*, defaults to 1.0):
            Weight of the codebook loss (`codebook_update="gradient"`).
        kmeans_init (`bool`, *optional*, defaults to `True`):
            Start the codebooks from k-means on the first training batch.
        dead_code_threshold (`float`, *optional*, defaults to 0.05):
            Share of the average use below which an entry is put on a vector of the current batch. 0: never.
    """

    codebook_size: int = validated_field(at_least(2), default=128)
    num_codebooks: int = validated_field(at_least(1), default=1)
    codebook_update: Literal["ema", "gradient"] = "ema"
    ema_decay: float | int = validated_field(from_zero_below(1), default=0.99)
    commitment_cost: float | int = validated_field(at_least(0), default=0.25)
    codebook_cost: float | int = validated_field(at_least(0), default=1.0)
    kmeans_init: bool = True
    dead_code_threshold: float | int = validated_field(in_range(0, 1), default=0.05)
