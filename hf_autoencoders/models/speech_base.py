"""What the auto-encoders of speech share: content and speaker apart, together again, and what keeps them apart.

    content_features --> [content encoder] --> bottleneck --> latents ----+
                                                                         [decoder] --> reconstruction
    speaker_features --> [speaker encoder] --> speaker embedding ---------+

After AdaIN-VC (Chou et al. 2019): instance normalisation takes the speaker out of the content, adaptive instance
normalisation puts one in. Voices are exchanged by taking the two from different clips.
"""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .base import PreTrainedAutoencoder
from .bottlenecks import ResidualVectorQuantizer
from .configuration_speech import QuantizerConfig, SpeechAutoencoderConfig
from .layers import TrainingStepCounter
from .outputs import SpeechAutoencoderOutput, SpeechEncoderOutput
from .speech_layers import (
    ContentClassifier,
    ContentEncoder,
    MaskedInstanceNorm,
    SpeakerEncoder,
    SpeechDecoder,
    VoiceClassifier,
    downsample_mask,
    halved,
    masked_mean,
    reverse_gradient,
)


def check_features(name: str, features: torch.Tensor, num_mel_bins: int, ranks: tuple[int, ...] = (3,)) -> None:
    """Raise unless `features` is a floating-point tensor `(batch_size, frames, num_mel_bins)` of one frame at least."""
    if not torch.is_tensor(features) or not features.is_floating_point():
        kind = features.dtype if torch.is_tensor(features) else type(features).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor, got {kind}. "
            "Use the model's feature extractor: feature_extractor(waveform, sampling_rate=..., return_tensors='pt')."
        )
    if features.ndim not in ranks or features.shape[-1] != num_mel_bins or features.shape[-2] < 1:
        shapes = " or ".join(
            f"({'batch_size, clips' if rank == 4 else 'batch_size'}, frames, {num_mel_bins})" for rank in ranks
        )
        raise ValueError(
            f"{name} must have shape {shapes}, with {num_mel_bins} mel bins (num_mel_bins of the configuration) "
            f"last, got {tuple(features.shape)}"
        )


def as_mask(name: str, attention_mask: torch.Tensor | None, features: torch.Tensor) -> torch.Tensor:
    """The mask of features `(..., frames, num_mel_bins)` as floats `(-1, 1, frames)`; all ones if there is none."""
    if attention_mask is None:
        return features.new_ones((features.shape[:-2].numel(), 1, features.shape[-2]))
    if tuple(attention_mask.shape) != tuple(features.shape[:-1]):
        raise ValueError(f"{name} must have shape {tuple(features.shape[:-1])}, got {tuple(attention_mask.shape)}")
    return attention_mask.to(features.dtype).reshape(-1, 1, features.shape[-2])


def make_quantizer(config: QuantizerConfig) -> ResidualVectorQuantizer:
    """The quantiser of a configuration, for latents `(batch_size, latent_size, frames)`."""
    return ResidualVectorQuantizer(
        config.num_codebooks,
        config.codebook_size,
        config.latent_size,
        codebook_update=config.codebook_update,
        decay=config.ema_decay,
        dead_code_threshold=config.dead_code_threshold,
        kmeans_init=config.kmeans_init,
    )


class PreTrainedSpeechAutoencoder(PreTrainedAutoencoder):
    """Content encoder, bottleneck, speaker encoder and decoder, on log-mel features. A variant adds its bottleneck."""

    config_class = SpeechAutoencoderConfig
    main_input_name = "input_features"
    input_modalities = ("audio",)
    _no_split_modules = ["SpeechBlock"]
    bottleneck_losses: dict[str, str] = {}  # what `_bottleneck` may give -> field of the configuration with its weight

    def __init__(self, config: SpeechAutoencoderConfig, num_bottleneck_inputs: int):
        super().__init__(config)
        self.content_encoder = ContentEncoder(config, num_bottleneck_inputs)
        self.content_norm = MaskedInstanceNorm() if config.instance_norm else None
        self.speaker_encoder = SpeakerEncoder(config, config.speaker_size)
        self.decoder = SpeechDecoder(config)
        adversarial, converting = config.speaker_adversarial_weight > 0, config.conversion_weight > 0
        self.content_classifier = ContentClassifier(config) if adversarial else None
        self.voice_classifier = VoiceClassifier(config) if converting else None
        self.training_steps = TrainingStepCounter()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    # ---- the two encoders

    def _bottleneck(self, content: torch.Tensor, mask: torch.Tensor, epsilon: torch.Tensor | None, training: bool):
        """Latents `(batch_size, latent_size, frames)`, codes or None, and by name: losses, what else belongs into the
        output, and `content`: the latents before noise or rounding."""
        raise NotImplementedError

    def _quantize(self, content: torch.Tensor, mask: torch.Tensor, training: bool):
        """The bottleneck of variants with a `quantizer`."""
        content = self._normalise(content, mask)
        latents, codes, commitment_loss, codebook_loss = self.quantizer(content, training, mask.squeeze(1).bool())
        terms = {"content": content, "commitment_loss": commitment_loss, "codebook_loss": codebook_loss}
        return latents, codes, {name: value for name, value in terms.items() if value is not None}

    def _content(
        self,
        features: torch.Tensor,
        mask: torch.Tensor,
        epsilon: torch.Tensor | None = None,
        training: bool = False,
    ):
        """What `_bottleneck` gives for features `(batch_size, frames, num_mel_bins)`, the mask, and hidden states."""
        content, mask, hidden_states = self.content_encoder(features.to(mask.dtype).mT * mask, mask)
        latents, codes, terms = self._bottleneck(content, mask, epsilon, training)
        return latents * mask, codes, terms, mask, hidden_states

    def _normalise(self, content: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean 0 and variance 1 over the frames of a clip, where the content encoder normalises at all."""
        return content if self.content_norm is None else self.content_norm(content, mask)

    @can_return_tuple
    def encode(self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None) -> SpeechEncoderOutput:
        """What is said in clips, without who says it.

        Args:
            input_features (`torch.FloatTensor` of shape `(batch_size, frames, num_mel_bins)`): log-mels.
            attention_mask (`torch.LongTensor` of shape `(batch_size, frames)`, *optional*): 0 for padding.
        """
        check_features("input_features", input_features, self.config.num_mel_bins)
        input_features = input_features.to(self.content_encoder.output.weight.dtype)
        mask = as_mask("attention_mask", attention_mask, input_features)
        latents, codes, terms, latent_mask, _ = self._content(input_features, mask)
        kept = {name: terms[name] for name in ("mean", "log_variance") if name in terms}
        return SpeechEncoderOutput(
            latents=latents.mT, audio_codes=codes, attention_mask=latent_mask.squeeze(1).long(), **kept
        )

    def encode_content(self, *args, **kwargs) -> SpeechEncoderOutput:
        """Another name of [`encode`]."""
        return self.encode(*args, **kwargs)

    def encode_speaker(
        self, speaker_features: torch.Tensor, speaker_attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The embedding of a voice.

        Args:
            speaker_features (`torch.FloatTensor` of shape `(batch_size, frames, num_mel_bins)`, or `(batch_size, clips,
                frames, num_mel_bins)`): a clip of each speaker, or several, whose embeddings are averaged.
            speaker_attention_mask (`torch.LongTensor` of shape `speaker_features.shape[:-1]`, *optional*): 0 for
                padding; a clip that is all padding does not count.

        Returns:
            `(batch_size, speaker_size)`.
        """
        check_features("speaker_features", speaker_features, self.config.num_mel_bins, ranks=(3, 4))
        speaker_features = speaker_features.to(self.content_encoder.output.weight.dtype)
        mask = as_mask("speaker_attention_mask", speaker_attention_mask, speaker_features)
        clips = speaker_features.reshape(-1, *speaker_features.shape[-2:])
        embeddings = self._embed(clips.mT * mask, mask)
        if speaker_features.ndim == 3:
            return embeddings
        batch_size, num_clips = speaker_features.shape[:2]
        counts = mask.amax(-1).view(batch_size, num_clips, 1)
        return (embeddings.view(batch_size, num_clips, -1) * counts).sum(1) / counts.sum(1).clamp_min(1)

    def _embed(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Speaker embeddings of the length sqrt(speaker_size), as that of standard normal vectors."""
        embeddings = self.speaker_encoder(features, mask)
        length = self.config.speaker_size**0.5
        return (F.normalize(embeddings.float(), dim=-1) * length).to(embeddings.dtype)

    # ---- and back

    def decode(
        self,
        latents: torch.Tensor,
        speaker_embeddings: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_frames: int | None = None,
    ) -> torch.Tensor:
        """Log-mels of content in a voice.

        Args:
            latents (`torch.FloatTensor` of shape `(batch_size, latent frames, latent_size)`): of [`encode`].
            speaker_embeddings (`torch.FloatTensor` of shape `(batch_size, speaker_size)`): of [`encode_speaker`].
            attention_mask (`torch.LongTensor` of shape `(batch_size, frames)`, *optional*): of the features wanted.
            num_frames (`int`, *optional*): how many frames are wanted when there is no mask; `latent frames x
                downsampling` when not given.

        Returns:
            `(batch_size, frames, num_mel_bins)`, 0 in the padding.
        """
        config = self.config
        for name, value, rank, size in (
            ("latents", latents, 3, config.latent_size),
            ("speaker_embeddings", speaker_embeddings, 2, config.speaker_size),
        ):
            if not torch.is_tensor(value) or not value.is_floating_point():
                kind = value.dtype if torch.is_tensor(value) else type(value).__name__
                raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
            if value.ndim != rank or value.shape[-1] != size or value.shape[0] != latents.shape[0]:
                sizes = f"batch_size, latent frames, {size}" if rank == 3 else f"{len(latents)}, {size}"
                raise ValueError(f"{name} must have shape ({sizes}), got {tuple(value.shape)}")
        batch_size = latents.shape[0]  # len() is a constant to torch.export
        if attention_mask is not None and (attention_mask.ndim != 2 or attention_mask.shape[0] != batch_size):
            raise ValueError(
                f"attention_mask must have shape ({batch_size}, frames), got {tuple(attention_mask.shape)}"
            )
        frames = attention_mask.shape[-1] if attention_mask is not None else num_frames
        frames = latents.shape[1] * config.downsampling if frames is None else frames
        if halved(frames, config.num_downsamplings) != latents.shape[1]:
            raise ValueError(
                f"{latents.shape[1]} latent frames are those of {(latents.shape[1] - 1) * config.downsampling + 1} to "
                f"{latents.shape[1] * config.downsampling} frames of features, got {frames} of them"
            )
        dtype = self.content_encoder.output.weight.dtype
        mask = latents.new_ones((batch_size, 1, frames), dtype=dtype)
        if attention_mask is not None:
            mask = mask * attention_mask.unsqueeze(1).to(dtype)
        return self._decode(latents.to(dtype).mT, mask, speaker_embeddings.to(dtype)).mT

    def _decode(self, latents: torch.Tensor, mask: torch.Tensor, speaker_embeddings: torch.Tensor) -> torch.Tensor:
        """The same with channels before frames, and a mask `(batch_size, 1, frames)`."""
        return self.decoder(latents * downsample_mask(mask, self.config.num_downsamplings), mask, speaker_embeddings)

    @torch.no_grad()
    def convert(
        self,
        input_features: torch.Tensor,
        speaker_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        speaker_attention_mask: torch.Tensor | None = None,
        speaker_embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the first clips say, in the voice of the second ones.

        Args:
            input_features (`torch.FloatTensor` of shape `(batch_size, frames, num_mel_bins)`): what is said.
            speaker_features: the voice, see [`encode_speaker`]; or `speaker_embeddings` that it gave.
            attention_mask, speaker_attention_mask: 1 for frames, 0 for padding.

        Returns:
            log-mels `(batch_size, frames, num_mel_bins)`, as many frames as there came in, 0 in the padding.
        """
        if (speaker_features is None) == (speaker_embeddings is None):
            raise ValueError("convert needs the voice to convert to: either speaker_features or speaker_embeddings")
        if speaker_embeddings is None:
            speaker_embeddings = self.encode_speaker(speaker_features, speaker_attention_mask)
        if speaker_embeddings.shape[0] == 1:
            speaker_embeddings = speaker_embeddings.expand(input_features.shape[0], -1)
        latents = self.encode(input_features, attention_mask, return_dict=True).latents
        return self.decode(latents, speaker_embeddings, attention_mask, input_features.shape[1])

    # ---- training

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        speaker_features: torch.Tensor | None = None,
        speaker_attention_mask: torch.Tensor | None = None,
        content_features: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
        epsilon: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
    ) -> SpeechAutoencoderOutput:
        """
        Args:
            input_features (`torch.FloatTensor` of shape `(batch_size, frames, num_mel_bins)`): log-mels to restore.
            attention_mask (`torch.LongTensor` of shape `(batch_size, frames)`, *optional*): 0 for padding.
            speaker_features (`torch.FloatTensor`, *optional*): where to take the voice from, best another clip of the
                same speaker, see [`encode_speaker`]; `input_features` when not given.
            speaker_attention_mask (`torch.LongTensor`, *optional*): their mask.
            content_features (`torch.FloatTensor` of the shape of `input_features`, *optional*): where to take the
                content from, such as the same clip in a disguised voice (Choi et al. 2021); `input_features` when not
                given.
            speaker_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*): who speaks, in `[0, num_speakers)`.
                Without, the objectives that classify speakers are left out.
            epsilon (`torch.FloatTensor`, *optional*): noise of the bottleneck, drawn in training mode when not given.
                Of a Gaussian posterior: standard normal, `(batch_size, latent frames, latent_size)`; 0 in evaluation
                mode when not given. Of the time jitter: uniform in [0, 1), `(batch_size, latent frames)`.
            return_loss (`bool`, *optional*, defaults to `True`): also compute the losses.
            output_hidden_states (`bool`, *optional*): also return the output of each block of the content encoder.
        """
        config = self.config
        check_features("input_features", input_features, config.num_mel_bins)
        dtype = self.content_encoder.output.weight.dtype
        mask = as_mask("attention_mask", attention_mask, input_features.to(dtype))
        if content_features is None:
            content_features = input_features
        elif content_features.shape != input_features.shape:
            raise ValueError(
                f"content_features must have the shape of input_features, {tuple(input_features.shape)}, "
                f"got {tuple(content_features.shape)}"
            )
        encoded = self._content(content_features, mask, epsilon, self.training)
        latents, codes, terms, latent_mask, hidden_states = encoded
        if speaker_features is None:
            speaker_features, speaker_attention_mask = input_features, attention_mask
        speaker_embeddings = self.encode_speaker(speaker_features, speaker_attention_mask)
        for name, value in (("speaker_features", speaker_embeddings), ("speaker_ids", speaker_ids)):
            if value is not None and value.shape[0] != input_features.shape[0]:
                raise ValueError(
                    f"{name} must be as many as input_features, {input_features.shape[0]}, got {value.shape[0]}"
                )
        if speaker_ids is not None and (speaker_ids.ndim != 1 or speaker_ids.is_floating_point()):
            raise ValueError(
                f"speaker_ids must be whole numbers of shape (batch_size,), got {speaker_ids.dtype} "
                f"{tuple(speaker_ids.shape)}"
            )
        reconstruction = self._decode(latents, mask, speaker_embeddings)
        losses = {}
        if return_loss:
            distance = (reconstruction.float() - input_features.float().mT).abs()
            losses["reconstruction_loss"] = loss = masked_mean(distance, mask)
            for name, weight in self.bottleneck_losses.items():
                if name in terms:
                    losses[name] = terms[name]
                    loss = loss + getattr(config, weight) * terms[name]
            encoded = (latents, terms["content"], latent_mask)
            features = input_features.to(dtype).mT
            disentangling, more = self._disentangle(features, mask, encoded, speaker_embeddings, speaker_ids)
            losses |= more
            losses["loss"] = loss + disentangling
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        return SpeechAutoencoderOutput(
            latents=latents.mT,
            audio_codes=codes,
            reconstruction=reconstruction.mT,
            speaker_embeddings=speaker_embeddings,
            attention_mask=latent_mask.squeeze(1).long(),
            mean=terms.get("mean"),
            log_variance=terms.get("log_variance"),
            hidden_states=tuple(state.mT for state in hidden_states) if output_hidden_states else None,
            **losses,
        )

    def _disentangle(self, features, mask, encoded, speaker_embeddings, speaker_ids):
        """The weighted sum of the objectives that keep content and speaker apart, and each of them by name.

        Classifiers learn at full strength from the first step; what works against or through them rises from 0.
        """
        config, total, losses = self.config, 0.0, {}
        latents, content, latent_mask = encoded
        strength = 1.0
        if config.disentangling_warmup_steps > 0:
            strength = (self.training_steps() / config.disentangling_warmup_steps).clamp(max=1)
        if self.content_classifier is not None and speaker_ids is not None:
            reversed_content = reverse_gradient(content, strength * config.speaker_adversarial_weight)
            logits = self.content_classifier(reversed_content.to(content.dtype), latent_mask)
            entropies = F.cross_entropy(
                logits.float(), speaker_ids.unsqueeze(1).expand(-1, logits.shape[-1]), reduction="none"
            )
            losses["speaker_adversarial_loss"] = masked_mean(entropies.unsqueeze(1), latent_mask)
            total = total + losses["speaker_adversarial_loss"]
        if not config.converts_in_training:
            return total, losses
        # Each clip in the voice of the one before it in the batch: batches are shuffled.
        targets = speaker_embeddings.detach().roll(1, 0)
        converted = self._decode(latents, mask, targets)
        if self.voice_classifier is not None and speaker_ids is not None:
            logits = self.voice_classifier(features * mask, mask)
            losses["voice_classifier_loss"] = F.cross_entropy(logits.float(), speaker_ids)
            frozen = {name: weight.detach() for name, weight in self.voice_classifier.named_parameters()}
            logits = functional_call(self.voice_classifier, frozen, (converted, mask))
            losses["conversion_loss"] = F.cross_entropy(logits.float(), speaker_ids.roll(1, 0))
            total = total + losses["voice_classifier_loss"]
            total = total + strength * config.conversion_weight * losses["conversion_loss"]
        if config.content_consistency_weight > 0:
            again, _, _ = self.content_encoder(converted, mask)
            again = self._normalise(again[:, : config.latent_size], latent_mask)
            distance = (again.float() - content.detach().float()).square()
            losses["content_consistency_loss"] = masked_mean(distance, latent_mask)
            total = total + strength * config.content_consistency_weight * losses["content_consistency_loss"]
        if config.speaker_consistency_weight > 0:
            similarity = F.cosine_similarity(self._embed(converted, mask).float(), targets.float())
            losses["speaker_consistency_loss"] = (1 - similarity).mean()
            total = total + strength * config.speaker_consistency_weight * losses["speaker_consistency_loss"]
        return total, losses
