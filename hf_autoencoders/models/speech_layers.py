"""Parts of the auto-encoders of speech: encoders of content and of speaker, decoder, classifier.

Inside, features are `(batch_size, channels, frames)`, and a mask `(batch_size, 1, frames)` is 1 for real frames and 0
for padding. Every layer sees zeros in the padding, as convolutions see beyond the ends, and statistics over time leave
it out: what comes out for a clip does not depend on what it is padded to.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_speech import SpeechAutoencoderConfig


def masked_statistics(hidden_state: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over the real frames, float32, each `(batch_size, channels, 1)`; 0 where there is none."""
    hidden_state, mask = hidden_state.float(), mask.float()
    count = mask.sum(-1, keepdim=True).clamp_min(1)
    mean = (hidden_state * mask).sum(-1, keepdim=True) / count
    variance = ((hidden_state - mean) * mask).square().sum(-1, keepdim=True) / count
    return mean, variance


def downsample_mask(mask: torch.Tensor, times: int) -> torch.Tensor:
    """The mask of frames after so many halvings, rounded up."""
    return mask[..., :: 2**times]


class MaskedInstanceNorm(nn.Module):
    """Mean 0 and variance 1 over the real frames of each channel (Ulyanov et al. 2016), without parameters."""

    epsilon = 1e-5

    def forward(self, hidden_state: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        mean, variance = masked_statistics(hidden_state, mask)
        normalised = (hidden_state.float() - mean) * torch.rsqrt(variance + self.epsilon)
        return (normalised * mask).to(hidden_state.dtype)


class AdaptiveInstanceNorm(nn.Module):
    """Instance normalisation whose scale and shift are made of a condition (Huang & Belongie 2017)."""

    def __init__(self, channels: int, condition_size: int):
        super().__init__()
        self.norm = MaskedInstanceNorm()
        self.affine = nn.Linear(condition_size, 2 * channels)

    def forward(self, hidden_state: torch.Tensor, mask: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift = self.affine(condition).unsqueeze(-1).chunk(2, dim=1)
        return (self.norm(hidden_state, mask) * (1 + scale) + shift) * mask


class SpeechBlock(GradientCheckpointingLayer):
    """Residual block of two convolutions over time, `(batch_size, channels, frames)`.

    Args:
        norm (`str`): before each activation: `"none"`, `"instance"`, or `"adaptive"` (made of `condition`).
        stride (`int`): 2 halves the number of frames, rounded up.
    """

    def __init__(self, config: SpeechAutoencoderConfig, norm: str, stride: int = 1):
        super().__init__()
        channels, size = config.hidden_size, config.kernel_size
        self.stride, self.adaptive = stride, norm == "adaptive"
        if norm == "none":
            self.norm1 = self.norm2 = None
        elif norm == "instance":
            self.norm1, self.norm2 = MaskedInstanceNorm(), MaskedInstanceNorm()
        else:
            self.norm1, self.norm2 = (AdaptiveInstanceNorm(channels, config.speaker_size) for _ in range(2))
        self.conv1 = nn.Conv1d(channels, channels, size, padding=size // 2)
        self.conv2 = nn.Conv1d(channels, channels, size, stride=stride, padding=size // 2)
        self.activation = ACT2FN[config.hidden_act]

    def _normalise(self, norm, hidden_state, mask, condition):
        if norm is None:
            return hidden_state
        return norm(hidden_state, mask, condition) if self.adaptive else norm(hidden_state, mask)

    def forward(
        self, hidden_state: torch.Tensor, mask: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        residual = self.activation(self._normalise(self.norm1, hidden_state, mask, condition)) * mask
        residual = self.conv1(residual) * mask
        residual = self.activation(self._normalise(self.norm2, residual, mask, condition)) * mask
        residual = self.conv2(residual)
        if self.stride > 1:
            hidden_state, mask = hidden_state[..., :: self.stride], mask[..., :: self.stride]
        return (hidden_state + residual) * mask


class ContentEncoder(nn.Module):
    """What is said: `(batch_size, num_mel_bins, frames)` to `(batch_size, hidden_size, latent frames)`."""

    def __init__(self, config: SpeechAutoencoderConfig):
        super().__init__()
        norm = "instance" if config.instance_norm else "none"
        size = config.kernel_size
        self.input = nn.Conv1d(config.num_mel_bins, config.hidden_size, size, padding=size // 2)
        strides = [2] * config.num_downsamplings + [1] * (config.num_encoder_blocks - config.num_downsamplings)
        self.blocks = nn.ModuleList(SpeechBlock(config, norm, stride) for stride in strides)
        self.norm = MaskedInstanceNorm() if config.instance_norm else None

    def forward(
        self, features: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """Returns the content, its mask, and the output of every block."""
        hidden_state = self.input(features) * mask
        hidden_states = ()
        for block in self.blocks:
            hidden_state = block(hidden_state, mask)
            mask = mask[..., :: block.stride]
            hidden_states += (hidden_state,)
        if self.norm is not None:
            hidden_state = self.norm(hidden_state, mask)
        return hidden_state, mask, hidden_states


class SpeakerEncoder(nn.Module):
    """Who says it: `(batch_size, num_mel_bins, frames)` to `(batch_size, num_outputs)`, whatever the order of frames.

    Mean and standard deviation over time of convolutional features (Snyder et al. 2018 call it statistics pooling).
    """

    def __init__(self, config: SpeechAutoencoderConfig, num_outputs: int):
        super().__init__()
        size = config.kernel_size
        self.input = nn.Conv1d(config.num_mel_bins, config.hidden_size, size, padding=size // 2)
        self.blocks = nn.ModuleList(SpeechBlock(config, "none") for _ in range(config.num_speaker_blocks))
        self.output = nn.Linear(2 * config.hidden_size, num_outputs)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden_state = self.input(features) * mask
        for block in self.blocks:
            hidden_state = block(hidden_state, mask)
        mean, variance = masked_statistics(hidden_state, mask)
        # the small number keeps the gradient of the root finite where nothing varies
        pooled = torch.cat([mean, (variance + 1e-5).sqrt()], dim=1).squeeze(-1)
        return self.output(pooled.to(self.output.weight.dtype))


class SpeechDecoder(nn.Module):
    """Content `(batch_size, latent_size, latent frames)` and speaker to features `(batch_size, num_mel_bins, frames)`.

    The frames double before each of the last blocks, by repetition. Adaptive instance normalisation puts the speaker
    in.
    """

    def __init__(self, config: SpeechAutoencoderConfig, latent_size: int):
        super().__init__()
        size = config.kernel_size
        self.num_upsamplings = config.num_downsamplings
        self.input = nn.Conv1d(latent_size, config.hidden_size, size, padding=size // 2)
        self.blocks = nn.ModuleList(SpeechBlock(config, "adaptive") for _ in range(config.num_decoder_blocks))
        self.norm = AdaptiveInstanceNorm(config.hidden_size, config.speaker_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Conv1d(config.hidden_size, config.num_mel_bins, size, padding=size // 2)

    def forward(self, latents: torch.Tensor, mask: torch.Tensor, speaker_embeddings: torch.Tensor) -> torch.Tensor:
        """`mask` is that of the output; the latents' is every 2**n-th frame of it."""
        level = self.num_upsamplings
        hidden_state = self.input(latents) * downsample_mask(mask, level)
        for index, block in enumerate(self.blocks):
            if level and len(self.blocks) - index <= level + 1:
                level -= 1
                size = downsample_mask(mask, level).shape[-1]
                hidden_state = hidden_state.repeat_interleave(2, dim=-1)[..., :size] * downsample_mask(mask, level)
            hidden_state = block(hidden_state, downsample_mask(mask, level), speaker_embeddings)
        hidden_state = self.activation(self.norm(hidden_state, mask, speaker_embeddings)) * mask
        return self.output(hidden_state) * mask


class SpeakerClassifier(nn.Module):
    """Logits of the speaker from content, frame by frame with some context, averaged: `(batch_size, num_speakers)`."""

    def __init__(self, latent_size: int, hidden_size: int, num_speakers: int):
        super().__init__()
        self.conv1 = nn.Conv1d(latent_size, hidden_size, 5, padding=2)
        self.conv2 = nn.Conv1d(hidden_size, hidden_size, 5, padding=2)
        self.output = nn.Linear(2 * hidden_size, num_speakers)

    def forward(self, latents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden_state = F.relu(self.conv1(latents * mask)) * mask
        hidden_state = F.relu(self.conv2(hidden_state)) * mask
        mean, variance = masked_statistics(hidden_state, mask)
        pooled = torch.cat([mean, (variance + 1e-5).sqrt()], dim=1).squeeze(-1)
        return self.output(pooled.to(self.output.weight.dtype))


def reverse_gradient(tensor: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
    """The same values; the gradient is turned round and times `strength` (Ganin & Lempitsky 2015)."""
    return tensor.detach() * (1 + strength) - tensor * strength


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `(batch_size, channels, frames)` over channels and all real frames of the batch, float32."""
    total = (values.float() * mask).sum()
    return total / (mask.float().sum() * values.shape[1]).clamp_min(1)
