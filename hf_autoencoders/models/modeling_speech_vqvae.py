"""Vector-quantised auto-encoder of speech (van den Oord et al. 2017, section 4.3; van Niekerk et al. 2020).

Codes stand for short stretches of speech, whoever says them: the decoder is told the speaker, so the codes need not
say who it is, and what is left of speech without its speaker is close to phonemes. Departures: encoder and decoder are
those of the voice conversion model (instance normalisation in, adaptive instance normalisation out), on log-mels
instead of waveforms, and the decoder is not autoregressive.
"""

import torch
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from .configuration_speech_vqvae import SpeechVQVAEConfig
from .layers import check_codes
from .speech_base import PreTrainedSpeechAutoencoder, make_quantizer
from .speech_layers import jitter_frames


class SpeechVQVAEModel(PreTrainedSpeechAutoencoder, PreTrainedAudioTokenizerBase):
    """Speech to discrete codes, and back in any voice.

    ```python
    inputs = feature_extractor(waveform, sampling_rate=rate, return_tensors="pt")
    codes = model.encode(**inputs).audio_codes                      # (1, num_codebooks, codes), int64
    voice = model.encode_speaker(inputs.input_features)             # (1, speaker_size)
    features = model.decode_codes(codes, voice)                     # (1, frames, mel bins)
    waveform = feature_extractor.to_waveform(features)[0]
    ```
    """

    config_class = SpeechVQVAEConfig
    base_model_prefix = "speech_vqvae"
    bottleneck_losses = {"commitment_loss": "commitment_cost", "codebook_loss": "codebook_cost"}
    _keep_in_fp32_modules_strict = ["quantizer"]  # as in `VQVAEModel`

    def __init__(self, config: SpeechVQVAEConfig):
        super().__init__(config, config.latent_size)
        self.quantizer = make_quantizer(config)
        self.post_init()

    def _bottleneck(self, content: torch.Tensor, mask: torch.Tensor, epsilon: torch.Tensor | None, training: bool):
        latents, codes, terms = self._quantize(content, mask, training)
        if training and self.config.time_jitter > 0:
            shape = (latents.shape[0], latents.shape[2])
            noise = torch.rand(shape, device=latents.device) if epsilon is None else epsilon
            if tuple(noise.shape) != shape:
                raise ValueError(f"epsilon must have shape {shape}, got {tuple(noise.shape)}")
            latents = jitter_frames(latents, mask, noise, self.config.time_jitter)
        return latents, codes, terms

    def decode_codes(
        self,
        audio_codes: torch.Tensor,
        speaker_embeddings: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_frames: int | None = None,
    ) -> torch.Tensor:
        """Log-mels of codes in a voice; the same as [`decode`] of their latents.

        Args:
            audio_codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, latent frames)`): of [`encode`].
            speaker_embeddings, attention_mask, num_frames: see [`decode`].

        Returns:
            `(batch_size, frames, num_mel_bins)`.

        Raises:
            TypeError, ValueError: codes of another dtype or shape, or outside `[0, codebook_size)`.
        """
        config = self.config
        check_codes(audio_codes, (config.num_codebooks, None), "num_codebooks, latent frames", config.codebook_size)
        return self.decode(self.quantizer.decode(audio_codes.long()).mT, speaker_embeddings, attention_mask, num_frames)


__all__ = ["SpeechVQVAEModel"]
