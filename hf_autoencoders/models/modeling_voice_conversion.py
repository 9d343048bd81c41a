"""Voice conversion by feature disentanglement: an auto-encoder of speech whose code is content and speaker, apart.

After AdaIN-VC (Chou et al. 2019, https://arxiv.org/abs/1904.05742), with the choices of bottleneck of AutoVC (Qian et
al. 2019: a narrow one) and VQVC+ (Wu et al. 2020: quantised content). Departures: instance normalisation ignores
padding, the speaker embedding is pooled mean and standard deviation, the reconstruction is one stage of convolutions,
and the speaker may be taken from another clip than the content, which may be disguised (Choi et al. 2021, NANSY).
"""

import torch

from .configuration_voice_conversion import VoiceConversionConfig
from .losses import gaussian_kl
from .speech_base import PreTrainedSpeechAutoencoder, make_quantizer
from .speech_layers import masked_mean


class VoiceConversionModel(PreTrainedSpeechAutoencoder):
    """What one speaker says, in the voice of another.

    ```python
    source = feature_extractor(source_waveform, sampling_rate=rate, return_tensors="pt")
    target = feature_extractor(target_waveform, sampling_rate=rate, return_tensors="pt")
    features = model.convert(source.input_features, target.input_features)     # (1, frames of the source, mel bins)
    waveform = feature_extractor.to_waveform(features)[0]

    content = model.encode(source.input_features).latents                       # (1, latent frames, latent_size)
    speaker = model.encode_speaker(target.input_features)                       # (1, speaker_size)
    features = model.decode(content, speaker)
    ```
    """

    config_class = VoiceConversionConfig
    base_model_prefix = "voice_conversion"
    bottleneck_losses = {"kl_loss": "kl_weight", "commitment_loss": "commitment_cost", "codebook_loss": "codebook_cost"}

    def __init__(self, config: VoiceConversionConfig):
        super().__init__(config, config.latent_size * (2 if config.content_bottleneck == "kl" else 1))
        self.quantizer = make_quantizer(config) if config.content_bottleneck == "vq" else None
        if self.quantizer is not None:
            self._keep_in_fp32_modules_strict = ["quantizer"]  # as in `VQVAEModel`
        self.post_init()

    def _bottleneck(self, content: torch.Tensor, mask: torch.Tensor, epsilon: torch.Tensor | None, training: bool):
        if self.config.content_bottleneck == "none":
            content = self._normalise(content, mask)
            return content, None, {"content": content}
        if self.config.content_bottleneck == "vq":
            return self._quantize(content, mask, training)
        mean, log_variance = content.float().chunk(2, dim=1)
        mean = self._normalise(mean, mask)
        if epsilon is None:
            epsilon = torch.randn_like(mean) if training else torch.zeros_like(mean)
        elif epsilon.shape != mean.mT.shape:
            raise ValueError(f"epsilon must have shape {tuple(mean.mT.shape)}, got {tuple(epsilon.shape)}")
        else:
            epsilon = epsilon.float().mT
        latents = mean + torch.exp(0.5 * log_variance) * epsilon
        kl_loss = masked_mean(gaussian_kl(mean, log_variance), mask) * mean.shape[1]
        dtype = content.dtype
        terms = {
            "content": mean.to(dtype),
            "kl_loss": kl_loss,
            "mean": (mean * mask).mT,
            "log_variance": (log_variance * mask).mT,
        }
        return latents.to(dtype), None, terms


__all__ = ["VoiceConversionModel"]
