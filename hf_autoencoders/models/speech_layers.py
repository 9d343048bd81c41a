"""Parts of the auto-encoders of speech: encoders of content and of speaker, decoder, classifier.

Inside, features are `(batch_size, channels, frames)`, and a mask `(batch_size, 1, frames)` is 1 for real frames and 0
for padding. Every layer sees zeros in the padding, as convolutions see beyond the ends, and statistics over time leave
it out: what comes out for a clip does not depend on what it is padded to.
"""

from itertools import pairwise

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


def halved(frames: int, times: int = 1) -> int:
    """How many frames are left after so many halvings, rounded up.

    In the words of pooling layers: torch.export has to see that it is the same number.
    """
    for _ in range(times):
        frames = (frames - 1) // 2 + 1
    return frames


def downsample_mask(mask: torch.Tensor, times: int) -> torch.Tensor:
    """The mask `(batch_size, 1, frames)` after so many halvings: 1 where one of two frames is real."""
    for _ in range(times):
        mask = (F.avg_pool1d(F.pad(mask, (0, 1)), 2) > 0).to(mask.dtype)
    return mask


EPSILON = 1e-5  # of a variance; no attribute of the class below, where torch.compile does not find it


class _Standardise(torch.autograd.Function):
    """Instance normalisation over real frames, with its gradient written out: what autograd makes of it goes over the
    memory more often, and a training step takes 7% to 25% longer on a CPU."""

    @staticmethod
    def forward(ctx, hidden_state, mask, per_frame):
        hidden_state = hidden_state * mask
        exact = torch.promote_types(hidden_state.dtype, torch.float32)
        mean = hidden_state.sum(-1, keepdim=True, dtype=exact) * per_frame
        centred = torch.addcmul(hidden_state, mask, mean.to(mask.dtype), value=-1)
        norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True, dtype=exact)
        inverse_deviation = torch.rsqrt(norm.square() * per_frame + EPSILON).to(mask.dtype)
        normalised = centred * inverse_deviation
        ctx.save_for_backward(normalised, inverse_deviation, mask, per_frame)
        return normalised

    @staticmethod
    def backward(ctx, gradient):
        normalised, inverse_deviation, mask, per_frame = ctx.saved_tensors
        gradient = gradient * mask
        exact = torch.promote_types(gradient.dtype, torch.float32)
        mean = gradient.sum(-1, keepdim=True, dtype=exact) * per_frame
        slope = (gradient * normalised).sum(-1, keepdim=True, dtype=exact) * per_frame
        gradient = torch.addcmul(gradient, mask, mean.to(mask.dtype), value=-1)
        gradient = torch.addcmul(gradient, normalised, slope.to(mask.dtype), value=-1)
        return gradient * inverse_deviation, None, None


class MaskedInstanceNorm(nn.Module):
    """Mean 0 and variance 1 over the real frames of each channel (Ulyanov et al. 2016), without parameters.

    Sums are taken in float32, whatever the dtype.
    """

    def forward(self, hidden_state: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        per_frame = 1 / mask.float().sum(-1, keepdim=True).clamp_min(1)
        return _Standardise.apply(hidden_state, mask.to(hidden_state.dtype), per_frame)


def subtract_mean(hidden_state: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean 0 over the real frames of each channel; 0 in the padding."""
    mean, _ = masked_statistics(hidden_state, mask)
    return (hidden_state - mean.to(hidden_state.dtype)) * mask


class SpeechBlock(GradientCheckpointingLayer):
    """Residual block of two convolutions over time: `(batch_size, channels, frames)` to the same shape.

    Args:
        norm (`bool`): normalise after each convolution (instance normalisation).
        speaker_size (`int`): scale and shift what was normalised by a condition of this length (Huang & Belongie 2017:
            adaptive instance normalisation); 0: there is none.
    """

    def __init__(self, config: SpeechAutoencoderConfig, norm: bool, speaker_size: int = 0):
        super().__init__()
        channels, size = config.hidden_size, config.kernel_size
        self.conv1 = nn.Conv1d(channels, channels, size, padding=size // 2)
        self.conv2 = nn.Conv1d(channels, channels, min(size, 3), padding=min(size, 3) // 2)
        self.norm = MaskedInstanceNorm() if norm else None
        self.affine = nn.Linear(speaker_size, 4 * channels) if speaker_size else None
        self.activation = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_state: torch.Tensor, mask: torch.Tensor, speaker_embeddings: torch.Tensor | None = None
    ) -> torch.Tensor:
        residual = self.conv1(hidden_state)
        if self.norm is not None:
            residual = self.norm(residual, mask)
        if self.affine is not None:
            scale1, shift1, scale2, shift2 = self.affine(speaker_embeddings).unsqueeze(-1).chunk(4, dim=1)
            residual = torch.addcmul(shift1, residual, 1 + scale1)
        residual = self.conv2(self.activation(residual) * mask)
        if self.norm is not None:
            residual = self.norm(residual, mask)
        if self.affine is not None:
            residual = torch.addcmul(shift2, residual, 1 + scale2)
        return (hidden_state + residual) * mask


def halve_frames(hidden_state: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Means of each two real frames in a row: `(batch_size, channels, frames)` to `(..., (frames + 1) // 2)`."""
    counts = F.avg_pool1d(F.pad(mask, (0, 1)), 2)  # 1, 1/2 or 0; of an odd number of frames the last has none beside it
    return F.avg_pool1d(F.pad(hidden_state, (0, 1)), 2) / counts.clamp_min(0.5)


class ContentEncoder(nn.Module):
    """What is said: `(batch_size, num_mel_bins, frames)` to `(batch_size, num_outputs, latent frames)`."""

    def __init__(self, config: SpeechAutoencoderConfig, num_outputs: int):
        super().__init__()
        size = config.kernel_size
        self.num_downsamplings = config.num_downsamplings
        self.instance_norm = config.instance_norm
        self.input = nn.Conv1d(config.num_mel_bins, config.hidden_size, size, padding=size // 2)
        self.activation = ACT2FN[config.hidden_act]
        self.blocks = nn.ModuleList(SpeechBlock(config, config.instance_norm) for _ in range(config.num_encoder_blocks))
        self.output = nn.Conv1d(config.hidden_size, num_outputs, 1)

    def forward(
        self, features: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """Returns the content, its mask, and the output of every block."""
        if self.instance_norm:
            features = subtract_mean(features, mask)
        hidden_state = self.activation(self.input(features))
        mask = mask.to(hidden_state.dtype)  # under autocast: a product with float32 would be float32
        hidden_state, hidden_states = hidden_state * mask, ()
        for index, block in enumerate(self.blocks):
            hidden_state = block(hidden_state, mask)
            if index < self.num_downsamplings:
                hidden_state, mask = halve_frames(hidden_state, mask), downsample_mask(mask, 1)
            hidden_states += (hidden_state,)
        return self.output(hidden_state) * mask, mask, hidden_states


class StatisticsPooling(nn.Module):
    """Mean and standard deviation of each channel over the real frames (Snyder et al. 2018), then two linear layers:
    `(batch_size, hidden_size, frames)` to `(batch_size, num_outputs)`."""

    def __init__(self, config: SpeechAutoencoderConfig, num_outputs: int):
        super().__init__()
        self.hidden = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.hidden_size, num_outputs)

    def forward(self, hidden_state: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        mean, variance = masked_statistics(hidden_state, mask)
        # the small number keeps the gradient of the root finite where nothing varies
        pooled = torch.cat([mean, (variance + 1e-5).sqrt()], dim=1).squeeze(-1)
        return self.output(self.activation(self.hidden(pooled.to(self.hidden.weight.dtype))))


class SpeakerEncoder(nn.Module):
    """Who says it: `(batch_size, num_mel_bins, frames)` to `(batch_size, num_outputs)`."""

    def __init__(self, config: SpeechAutoencoderConfig, num_outputs: int):
        super().__init__()
        size = config.kernel_size
        self.input = nn.Conv1d(config.num_mel_bins, config.hidden_size, size, padding=size // 2)
        self.activation = ACT2FN[config.hidden_act]
        self.blocks = nn.ModuleList(SpeechBlock(config, norm=False) for _ in range(config.num_speaker_blocks))
        self.pooling = StatisticsPooling(config, num_outputs)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden_state = self.activation(self.input(features))
        mask = mask.to(hidden_state.dtype)
        hidden_state = hidden_state * mask
        for block in self.blocks:
            hidden_state = block(hidden_state, mask)
        return self.pooling(hidden_state, mask)


class SpeechDecoder(nn.Module):
    """Content `(batch_size, latent_size, latent frames)` and speaker to features `(batch_size, num_mel_bins, frames)`.

    Latent frames are repeated first. The speaker comes in by adaptive instance normalisation, and by what is added to
    every frame of the output: the average spectrum of a voice.
    """

    def __init__(self, config: SpeechAutoencoderConfig):
        super().__init__()
        size = config.kernel_size
        self.downsampling, self.num_downsamplings = config.downsampling, config.num_downsamplings
        self.input = nn.Conv1d(config.latent_size, config.hidden_size, size, padding=size // 2)
        blocks = (SpeechBlock(config, True, config.speaker_size) for _ in range(config.num_decoder_blocks))
        self.blocks = nn.ModuleList(blocks)
        self.output = nn.Conv1d(config.hidden_size, config.num_mel_bins, 1)
        self.average = nn.Linear(config.speaker_size, config.num_mel_bins)

    def forward(self, latents: torch.Tensor, mask: torch.Tensor, speaker_embeddings: torch.Tensor) -> torch.Tensor:
        """`mask` is that of the output; the latents' is every 2**n-th frame of it."""
        hidden_state = self.input(latents)
        mask = mask.to(hidden_state.dtype)
        if self.downsampling > 1:
            frames = torch.arange(mask.shape[-1], device=mask.device)
            hidden_state = hidden_state[..., frames // self.downsampling]
        hidden_state = hidden_state * mask
        for block in self.blocks:
            hidden_state = block(hidden_state, mask, speaker_embeddings)
        return (self.output(hidden_state) + self.average(speaker_embeddings).unsqueeze(-1)) * mask


class ContentClassifier(nn.Module):
    """Logits of the speaker at each frame of the content: `(batch_size, num_speakers, latent frames)`."""

    def __init__(self, config: SpeechAutoencoderConfig):
        super().__init__()
        sizes = [config.latent_size, *[config.hidden_size] * 3]
        self.convs = nn.ModuleList(nn.Conv1d(i, o, 3, padding=1) for i, o in pairwise(sizes))
        self.output = nn.Conv1d(config.hidden_size, config.num_speakers, 1)

    def forward(self, latents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            latents = F.leaky_relu(conv(latents), 0.1)
            latents = latents * mask.to(latents.dtype)
        return self.output(latents)


class VoiceClassifier(nn.Module):
    """Logits of the speaker of a clip: `(batch_size, num_mel_bins, frames)` to `(batch_size, num_speakers)`."""

    def __init__(self, config: SpeechAutoencoderConfig):
        super().__init__()
        sizes = [config.num_mel_bins, *[config.hidden_size] * 3]
        self.convs = nn.ModuleList(nn.Conv1d(i, o, 5, padding=2) for i, o in pairwise(sizes))
        self.pooling = StatisticsPooling(config, config.num_speakers)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            features = F.leaky_relu(conv(features), 0.1)
            features = features * mask.to(features.dtype)
        return self.pooling(features, mask)


def jitter_frames(latents: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor, chance: float) -> torch.Tensor:
    """Latents `(batch_size, channels, frames)` of which some have given way to their left or right neighbours.

    Args:
        noise (`(batch_size, frames)`): uniform in [0, 1): below `chance` / 2 for the left one, above 1 - `chance` / 2
            for the right one.
    """
    step = (noise > 1 - chance / 2).long() - (noise < chance / 2).long()
    last = mask.squeeze(1).long().sum(-1, keepdim=True) - 1
    source = torch.arange(latents.shape[-1], device=latents.device) + step
    source = torch.minimum(source, last).clamp_min(0)
    return latents.gather(2, source.unsqueeze(1).expand_as(latents)) * mask


def reverse_gradient(tensor: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
    """The same values; the gradient is turned round and times `strength` (Ganin & Lempitsky 2015)."""
    return tensor.detach() * (1 + strength) - tensor * strength


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `(batch_size, channels, frames)` over channels and all real frames of the batch, float32."""
    total = (values.float() * mask).sum()
    return total / (mask.float().sum() * values.shape[1]).clamp_min(1)
