"""What the models return. Latents come first: stock feature-extraction pipelines take `outputs[0]`.

Shapes: `latents` is `(batch_size, latent_size)` for models with a latent vector, and
`(batch_size, embedding_dim, latent_height, latent_width)` for models with a latent grid.
"""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import ModelOutput


@dataclass
class EncoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor`): the code of each input.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): output of each level of the encoder.
    """

    latents: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class GaussianEncoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, latent_size)`): the posterior mean.
        mean, log_variance (`torch.FloatTensor` of shape `(batch_size, latent_size)`): the Gaussian posterior q(z|x).
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): output of each level of the encoder.
    """

    latents: torch.FloatTensor | None = None
    mean: torch.FloatTensor | None = None
    log_variance: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class QuantizedEncoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, embedding_dim, latent_height, latent_width)`): the
            quantised latents, sum of the chosen codebook entries.
        codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, latent_height, latent_width)`): indices in
            `[0, num_codes)`.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): output of each level of the encoder.
    """

    latents: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class DiscreteEncoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, *config.latent_shape)`): what the decoder takes of the
            codes: bits as 0 and 1, or one-hot vectors side by side; of a JointVAE, behind the Gaussian latents.
        codes (`torch.LongTensor` of shape `(batch_size, num_bits)` or `(batch_size, num_variables)`): the most probable
            values.
        probabilities (`torch.FloatTensor` of shape `(batch_size, num_bits)`, of a 1, or `(batch_size, num_variables,
            num_categories)`): the posterior of each bit or variable.
        mean, log_variance (`torch.FloatTensor` of shape `(batch_size, latent_size)`, *optional*): of the Gaussian part.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): output of each level of the encoder.
    """

    latents: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    probabilities: torch.FloatTensor | None = None
    mean: torch.FloatTensor | None = None
    log_variance: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class AutoencoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, latent_size)`): the code.
        reconstruction (`torch.FloatTensor` of the shape of `pixel_values`): the restored input, in its range.
        loss (`torch.FloatTensor` of shape `()`, *optional*): the sum of the terms below times their weights.
        reconstruction_loss (`torch.FloatTensor` of shape `()`, *optional*): mean over all input dimensions.
        sparsity_loss, contractive_loss (`torch.FloatTensor` of shape `()`, *optional*): the penalties, unweighted.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): output of each level of the encoder.
    """

    latents: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    sparsity_loss: torch.FloatTensor | None = None
    contractive_loss: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VAEOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, latent_size)`): the sample of q(z|x) that was decoded (its
            mean in evaluation mode, unless `epsilon` was given).
        reconstruction (`torch.FloatTensor` of the shape of `pixel_values`): mean of p(x|z).
        loss (`torch.FloatTensor` of shape `()`, *optional*): reconstruction loss + weight x KL term, nats per example.
        reconstruction_loss (`torch.FloatTensor` of shape `()`, *optional*): -log p(x|z), nats per example.
        kl_loss (`torch.FloatTensor` of shape `()`, *optional*): KL(q(z|x) || N(0, I)), nats per example, before free
            bits and weight.
        mean, log_variance (`torch.FloatTensor` of shape `(batch_size, latent_size)`): the Gaussian posterior q(z|x).
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): output of each level of the encoder.
    """

    latents: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    kl_loss: torch.FloatTensor | None = None
    mean: torch.FloatTensor | None = None
    log_variance: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class DisentangledVAEOutput(VAEOutput):
    """
    What a [`VAEOutput`] has, and the terms of the variant: each a `torch.FloatTensor` of shape `()`, nats per example,
    unweighted.

    Args:
        mutual_information_loss (*optional*): I(x; z), the three of a beta-TC-VAE add up to the KL term.
        total_correlation_loss (*optional*): KL(q(z) || prod_j q(z_j)), of a beta-TC-VAE or a FactorVAE.
        dimension_kl_loss (*optional*): sum_j KL(q(z_j) || p(z_j)), of a beta-TC-VAE.
        discriminator_loss (*optional*): cross-entropy of a FactorVAE's discriminator; log 2 where it tells nothing.
        off_diagonal_loss (*optional*): squared covariances of different latents, summed, of a DIP-VAE.
        diagonal_loss (*optional*): squared differences of the latents' variances from 1, summed, of a DIP-VAE.
    """

    mutual_information_loss: torch.FloatTensor | None = None
    total_correlation_loss: torch.FloatTensor | None = None
    dimension_kl_loss: torch.FloatTensor | None = None
    discriminator_loss: torch.FloatTensor | None = None
    off_diagonal_loss: torch.FloatTensor | None = None
    diagonal_loss: torch.FloatTensor | None = None


@dataclass
class DiscreteAutoencoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, *config.latent_shape)`): the sampled code that was decoded
            (the most probable one in evaluation mode); soft in training with `sampling="relaxed"`.
        codes (`torch.LongTensor` of shape `(batch_size, num_bits)` or `(batch_size, num_variables)`): its values.
        reconstruction (`torch.FloatTensor` of the shape of `pixel_values`): mean of p(x|z).
        loss (`torch.FloatTensor` of shape `()`, *optional*): the sum of the terms below times their weights, nats per
            example.
        reconstruction_loss (`torch.FloatTensor` of shape `()`, *optional*): -log p(x|z).
        kl_loss (`torch.FloatTensor` of shape `()`, *optional*): KL divergence of the posterior from the prior.
        mutual_information_loss, fine_mutual_information_loss (`torch.FloatTensor` of shape `()`, *optional*): minus the
            mutual information between the categories, or fine categories, of images and of changed views of them, of a
            categorical auto-encoder that was given such views.
        continuous_kl_loss, discrete_kl_loss (`torch.FloatTensor` of shape `()`, *optional*): the parts of `kl_loss` of
            a JointVAE.
        probabilities (`torch.FloatTensor`): see [`DiscreteEncoderOutput`].
        mean, log_variance (`torch.FloatTensor` of shape `(batch_size, latent_size)`, *optional*): of the Gaussian part.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): output of each level of the encoder.
    """

    latents: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    kl_loss: torch.FloatTensor | None = None
    balance_loss: torch.FloatTensor | None = None
    mutual_information_loss: torch.FloatTensor | None = None
    fine_mutual_information_loss: torch.FloatTensor | None = None
    continuous_kl_loss: torch.FloatTensor | None = None
    discrete_kl_loss: torch.FloatTensor | None = None
    probabilities: torch.FloatTensor | None = None
    mean: torch.FloatTensor | None = None
    log_variance: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VQVAEOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, embedding_dim, latent_height, latent_width)`): the
            quantised latents (straight-through: gradients pass to the encoder).
        codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, latent_height, latent_width)`): the indices.
        reconstruction (`torch.FloatTensor` of the shape of `pixel_values`): the restored input, in its range.
        loss (`torch.FloatTensor` of shape `()`, *optional*): the sum of the terms below times their weights.
        reconstruction_loss (`torch.FloatTensor` of shape `()`, *optional*): squared error, mean over all dimensions.
        commitment_loss (`torch.FloatTensor` of shape `()`, *optional*): squared distance of the encoder's output to its
            code, unweighted; absent for `quantizer="fsq"`.
        codebook_loss (`torch.FloatTensor` of shape `()`, *optional*): the same with gradients to the codebook, present
            for `codebook_update="gradient"`.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): output of each level of the encoder.
    """

    latents: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    codebook_loss: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SpeechEncoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, latent frames, latent_size)`): what is said; 0 in padding.
        audio_codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, latent frames)`, *optional*): indices in
            `[0, codebook_size)` of a quantised content; 0 in padding.
        attention_mask (`torch.LongTensor` of shape `(batch_size, latent frames)`): 1 for frames, 0 for padding.
        mean, log_variance (`torch.FloatTensor` of the shape of `latents`, *optional*): a Gaussian posterior.
    """

    latents: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    attention_mask: torch.LongTensor | None = None
    mean: torch.FloatTensor | None = None
    log_variance: torch.FloatTensor | None = None

    @property
    def codes(self) -> torch.LongTensor | None:
        """`audio_codes`, as the codes of other variants are called."""
        return self.audio_codes


@dataclass
class SpeechAutoencoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, latent frames, latent_size)`): what is said, after the
            bottleneck; 0 in padding.
        audio_codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, latent frames)`, *optional*): its indices,
            where it is quantised; 0 in padding.
        reconstruction (`torch.FloatTensor` of shape `(batch_size, frames, num_mel_bins)`): log-mels; 0 in padding.
        speaker_embeddings (`torch.FloatTensor` of shape `(batch_size, speaker_size)`): who says it.
        attention_mask (`torch.LongTensor` of shape `(batch_size, latent frames)`): of the latents.
        loss (`torch.FloatTensor` of shape `()`, *optional*): the sum of the terms below times their weights.
        reconstruction_loss (`torch.FloatTensor` of shape `()`, *optional*): absolute error of the log-mels, mean over
            mel bins and real frames.
        kl_loss (`torch.FloatTensor` of shape `()`, *optional*): KL(q(z|x) || N(0, I)) in nats per latent frame.
        commitment_loss, codebook_loss (`torch.FloatTensor` of shape `()`, *optional*): see [`VQVAEOutput`].
        speaker_adversarial_loss (`torch.FloatTensor` of shape `()`, *optional*): cross-entropy of the speaker, from the
            content: low where the content tells who speaks.
        voice_classifier_loss (`torch.FloatTensor` of shape `()`, *optional*): cross-entropy of the speaker, from the
            real clips.
        conversion_loss (`torch.FloatTensor` of shape `()`, *optional*): the same classifier's cross-entropy of the
            target speaker, from converted clips.
        content_consistency_loss (`torch.FloatTensor` of shape `()`, *optional*): mean squared difference between the
            content of clips and of their conversions.
        speaker_consistency_loss (`torch.FloatTensor` of shape `()`, *optional*): 1 - cosine similarity between the
            speaker embeddings of conversions and those they were made with.
        mean, log_variance (`torch.FloatTensor` of the shape of `latents`, *optional*): a Gaussian posterior.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): output of each block of the content encoder.
    """

    latents: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    speaker_embeddings: torch.FloatTensor | None = None
    attention_mask: torch.LongTensor | None = None
    loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    kl_loss: torch.FloatTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    codebook_loss: torch.FloatTensor | None = None
    speaker_adversarial_loss: torch.FloatTensor | None = None
    voice_classifier_loss: torch.FloatTensor | None = None
    conversion_loss: torch.FloatTensor | None = None
    content_consistency_loss: torch.FloatTensor | None = None
    speaker_consistency_loss: torch.FloatTensor | None = None
    mean: torch.FloatTensor | None = None
    log_variance: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None

    @property
    def codes(self) -> torch.LongTensor | None:
        """`audio_codes`, as the codes of other variants are called."""
        return self.audio_codes


@dataclass
class PointerT5Output(Seq2SeqLMOutput):
    """
    `Seq2SeqLMOutput`, and

    Args:
        nats (`torch.FloatTensor` of shape `(batch_size, target_length)`, *optional*): minus the log-probability of each
            label, 0 where there is none.
    """

    nats: torch.FloatTensor | None = None


@dataclass
class SummaryEncoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, length, hidden_size)`): the summary, as the reconstructor
            reads it.
        codes (`torch.LongTensor` of shape `(batch_size, length)`): token ids of the summary, 0 after its end.
    """

    latents: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None


@dataclass
class Seq2Seq2SeqOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, length, hidden_size)`): the sampled summary, embedded.
        codes (`torch.LongTensor` of shape `(batch_size, length)`): its token ids, 0 after its end.
        reconstruction_logits (`torch.FloatTensor` of shape `(batch_size, source_length, vocab_size)`): of the text, by
            teacher forcing; not in training mode where there is a copy head.
        loss (`torch.FloatTensor` of shape `()`, *optional*): the sum of all terms times their weights.
        reconstruction_loss (`torch.FloatTensor` of shape `()`, *optional*): nats per token of the text.
        reconstruction_accuracy (`torch.FloatTensor` of shape `()`, *optional*): share of tokens guessed right; present
            where `reconstruction_logits` are.
        adversarial_loss (`torch.FloatTensor` of shape `()`, *optional*): how little the discriminator believes.
        prior_loss (`torch.FloatTensor` of shape `()`, *optional*): KL(summarizer || language model), nats per token.
        policy_loss (`torch.FloatTensor` of shape `()`, *optional*): the score-function estimator's surrogate.
        entropy (`torch.FloatTensor` of shape `()`, *optional*): of the summarizer's choices, nats per token.
        discriminator_loss (`torch.FloatTensor` of shape `()`, *optional*): the discriminator's own.
        critic_gap (`torch.FloatTensor` of shape `()`, *optional*): mean score of real sentences less that of summaries.
        gradient_penalty (`torch.FloatTensor` of shape `()`, *optional*): unweighted.
    """

    latents: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    reconstruction_logits: torch.FloatTensor | None = None
    loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    reconstruction_accuracy: torch.FloatTensor | None = None
    adversarial_loss: torch.FloatTensor | None = None
    prior_loss: torch.FloatTensor | None = None
    policy_loss: torch.FloatTensor | None = None
    entropy: torch.FloatTensor | None = None
    discriminator_loss: torch.FloatTensor | None = None
    critic_gap: torch.FloatTensor | None = None
    gradient_penalty: torch.FloatTensor | None = None


@dataclass
class LatentPriorOutput(ModelOutput):
    """
    Args:
        log_prob (`torch.FloatTensor` of shape `(batch_size,)`): log-density of each example's latents, nats, float32.
        loss (`torch.FloatTensor` of shape `()`, *optional*): the mean of `-log_prob`.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): of a flow, what each of its steps makes of the latents,
            `(batch_size, latent_size)` each; the last is noise.
    """

    log_prob: torch.FloatTensor | None = None
    loss: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class CodePriorOutput(ModelOutput):
    """
    Args:
        log_prob (`torch.FloatTensor` of shape `(batch_size,)`): log-probability of each example's codes, nats, float32.
        loss (`torch.FloatTensor` of shape `()`, *optional*): the mean of `-log_prob`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_positions, num_codes)`): of each code given those before,
            in the order in which they are written, float32.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*): of GPT-2.
    """

    log_prob: torch.FloatTensor | None = None
    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class ImageCodecOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch_size, channels, latent_height, latent_width)`): the quantised
            latents, in the scale that the synthesis takes.
        reconstruction (`torch.FloatTensor` of the shape of `pixel_values`): the restored images.
        loss (`torch.FloatTensor` of shape `()`, *optional*): `rate + distortion`.
        reconstruction_loss (`torch.FloatTensor` of shape `()`, *optional*): mean squared error per input dimension.
        rate (`torch.FloatTensor` of shape `()`, *optional*): estimated bits per pixel, side information included.
        side_rate (`torch.FloatTensor` of shape `()`, *optional*): bits per pixel of the side information alone.
        distortion (`torch.FloatTensor` of shape `()`, *optional*): lambda x 255^2 x the squared error of each image,
            averaged over images.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): output of each level of the analysis.
    """

    latents: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    rate: torch.FloatTensor | None = None
    side_rate: torch.FloatTensor | None = None
    distortion: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class AnomalyOutput(ModelOutput):
    """
    Args:
        scores (`torch.FloatTensor` of shape `(batch_size,)`): high for what is unlike the training data; its unit is
            that of `config.anomaly_score`.
        p_values (`torch.FloatTensor` of shape `(batch_size,)`): share of normal inputs with such a score or a higher
            one, in (0, 1].
        is_anomaly (`torch.BoolTensor` of shape `(batch_size,)`): whether the p-value is at most
            `config.false_alarm_rate`.
        maps (`torch.FloatTensor` of shape `(batch_size, H, W)`, *optional*): the score of each pixel of an image; of
            other scores than `"reconstruction"` and `"feature_reconstruction"`, which are a mean or maximum of the
            map, the squared error of the reconstruction. None for rows of tables.
    """

    scores: torch.FloatTensor | None = None
    p_values: torch.FloatTensor | None = None
    is_anomaly: torch.BoolTensor | None = None
    maps: torch.FloatTensor | None = None
