"""Configuration of the seq2seq2seq summarizer: two T5 models and a discriminator."""

from typing import Literal

from huggingface_hub.dataclasses import strict, validated_field
from transformers import T5Config

from .configuration_base import AutoencoderBaseConfig, at_least, from_zero_below, refuse_unknown_fields

FOR_SUMMARIES_ALONE = (
    "countdown_size",
    "selection_weight",
    "selection_ratio",
)  # fields that a reconstructor leaves at 0


@strict
class PointerT5Config(T5Config):
    r"""
    A T5 with, as options, a copy head and a countdown of words. All fields of `T5Config` are fields of it.

    Args:
        copy_head (`bool`, *optional*, defaults to `False`):
            Whether a pointer over the source mixes copied tokens into the output distribution (See et al. 2017).
        selection_weight (`float`, *optional*, defaults to 0.0):
            Weight of the copy head's content selector in the loss: cross-entropy of keeping each word of the source, in
            nats per word (Gehrmann et al. 2018).
        selection_ratio (`float`, *optional*, defaults to 0.0):
            When writing, copy only from so many words of the source for each word asked for, those likeliest to be
            kept; 0: from all.
        countdown_size (`int`, *optional*, defaults to 0):
            Size of the table that tells the decoder at each token how many words are still to come: numbers from 0 up
            to one less; higher ones count as the highest. 0: no countdown, the decoder decides on the length itself.
        default_words (`int`, *optional*, defaults to 8):
            Where the countdown starts when no number of words is asked for.
    """

    model_type = "hfae_pointer_t5"

    copy_head: bool = False
    selection_weight: float | int = validated_field(at_least(0), default=0.0)
    selection_ratio: float | int = validated_field(at_least(0), default=0.0)
    countdown_size: int = validated_field(at_least(0), default=0)
    default_words: int = validated_field(at_least(1), default=8)
    decoder_start_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        refuse_unknown_fields(self, kwargs)


@strict
class Seq2Seq2SeqDiscriminatorConfig(AutoencoderBaseConfig):
    r"""
    What keeps the summaries readable.

    Args:
        kind (`str`, *optional*, defaults to `"none"`):
            `"none"`; `"wgan_gp"`: a convolutional critic with gradient penalty scores whole summaries (Gulrajani et
            al. 2017; Wang & Lee 2018); `"critic"`: a recurrent discriminator judges every prefix (de Masson d'Autume et
            al. 2019); `"language_model"`: the divergence from a recurrent language model of the target sentences, which
            is trained beforehand and frozen then (Baziotis et al. 2019).
        vocab_size (`int`, *optional*, defaults to 32128):
            Tokens; that of the summarizer.
        hidden_size (`int`, *optional*, defaults to 128):
            Width of its embeddings and layers.
        num_layers (`int`, *optional*, defaults to 2):
            Convolutional blocks, or recurrent layers.
        gradient_penalty_weight (`float`, *optional*, defaults to 10.0):
            Weight of the gradient penalty of `"wgan_gp"`.
        discount (`float`, *optional*, defaults to 0.3):
            How much the score of a later prefix counts for an earlier word, with `estimator="reinforce"`.
    """

    model_type = "hfae_seq2seq2seq_discriminator"

    kind: Literal["none", "wgan_gp", "critic", "language_model"] = "none"
    vocab_size: int = validated_field(at_least(1), default=32128)
    hidden_size: int = validated_field(at_least(1), default=128)
    num_layers: int = validated_field(at_least(1), default=2)
    gradient_penalty_weight: float | int = validated_field(at_least(0), default=10.0)
    discount: float | int = validated_field(from_zero_below(1.0), default=0.3)


@strict
class Seq2Seq2SeqConfig(AutoencoderBaseConfig):
    r"""
    Configuration of [`Seq2Seq2SeqForConditionalGeneration`].

    Args:
        summarizer (`PointerT5Config` or `dict`, *optional*):
            The T5 that writes the summary; by default one of T5's default size with a copy head and a countdown.
        reconstructor (`PointerT5Config` or `dict`, *optional*):
            The T5 that restores the text from the summary; by default as the summarizer, but it has no countdown and no
            content selector: `countdown_size`, `selection_weight` and `selection_ratio` must be 0.
        discriminator (`Seq2Seq2SeqDiscriminatorConfig` or `dict`, *optional*):
            What keeps the summary readable; by default nothing.
        share_embeddings (`bool`, *optional*, defaults to `True`):
            Whether both T5s have one table of embeddings.
        max_summary_tokens (`int`, *optional*, defaults to 32):
            Tokens after which a summary is cut off.
        max_source_tokens (`int`, *optional*, defaults to 64):
            Longest text in tokens that the model was made for; tokenizers cut there.
        estimator (`str`, *optional*, defaults to `"straight_through"`):
            How gradients pass the discrete summary: `"straight_through"` (Gumbel-softmax; Jang et al. 2017) or
            `"reinforce"` (score function with a self-critical baseline; Rennie et al. 2017).
        gumbel_temperature (`float`, *optional*, defaults to 0.5):
            Of the Gumbel-softmax.
        word_dropout (`float`, *optional*, defaults to 0.5):
            Share of the tokens that the reconstructor's decoder does not see in training, so that it must read the
            summary (Bowman et al. 2016).
        reconstruction_weight (`float`, *optional*, defaults to 1.0):
            Weight of the reconstruction, nats per token of the text.
        adversarial_weight (`float`, *optional*, defaults to 1.0):
            Weight of the score that `"wgan_gp"` or `"critic"` gives.
        prior_weight (`float`, *optional*, defaults to 0.1):
            Weight of the divergence from `"language_model"`, nats per token of the summary.
        entropy_weight (`float`, *optional*, defaults to 0.0):
            Weight of the entropy of the summarizer's choices, which keeps it exploring; nats per token.
    """

    model_type = "hfae_seq2seq2seq"
    sub_configs = {
        "summarizer": PointerT5Config,
        "reconstructor": PointerT5Config,
        "discriminator": Seq2Seq2SeqDiscriminatorConfig,
    }

    summarizer: dict | T5Config | None = None
    reconstructor: dict | T5Config | None = None
    discriminator: dict | AutoencoderBaseConfig | None = None
    share_embeddings: bool = True
    max_summary_tokens: int = validated_field(at_least(1), default=32)
    max_source_tokens: int = validated_field(at_least(1), default=64)
    estimator: Literal["straight_through", "reinforce"] = "straight_through"
    gumbel_temperature: float | int = validated_field(at_least(1e-3), default=0.5)
    word_dropout: float | int = validated_field(from_zero_below(1.0), default=0.5)
    reconstruction_weight: float | int = validated_field(at_least(0), default=1.0)
    adversarial_weight: float | int = validated_field(at_least(0), default=1.0)
    prior_weight: float | int = validated_field(at_least(0), default=0.1)
    entropy_weight: float | int = validated_field(at_least(0), default=0.0)
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        if self.summarizer is None:
            self.summarizer = PointerT5Config(copy_head=True, countdown_size=25)
        self.summarizer = _sub_config(self.summarizer, PointerT5Config)
        if self.reconstructor is None:
            off = dict.fromkeys(FOR_SUMMARIES_ALONE, 0)
            self.reconstructor = PointerT5Config(**{**self.summarizer.to_diff_dict(), **off})
        self.reconstructor = _sub_config(self.reconstructor, PointerT5Config)
        if self.discriminator is None:
            self.discriminator = Seq2Seq2SeqDiscriminatorConfig(vocab_size=self.summarizer.vocab_size)
        self.discriminator = _sub_config(self.discriminator, Seq2Seq2SeqDiscriminatorConfig)
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder=None, encoder=None):
        """The summarizer's, which `generate` asks."""
        return self.summarizer

    @property
    def summary_words(self) -> int:
        """Words of a summary when no number is asked for: `default_words` of the summarizer."""
        return self.summarizer.default_words

    @property
    def hidden_size(self) -> int:
        """Width of the summarizer."""
        return self.summarizer.d_model

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the summarizer's encoder."""
        return self.summarizer.num_layers

    @property
    def num_attention_heads(self) -> int:
        """Attention heads of the summarizer."""
        return self.summarizer.num_heads

    def validate_architecture(self):
        sizes = {name: getattr(self, name).vocab_size for name in self.sub_configs}
        if self.discriminator.kind == "none":
            del sizes["discriminator"]
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(
                f"all parts must have the same vocab_size: the summary goes from one to the other; got {listed}"
            )
        wrong = {name: value for name in FOR_SUMMARIES_ALONE if (value := getattr(self.reconstructor, name)) > 0}
        if wrong:
            listed = ", ".join(f"{name} {value}" for name, value in wrong.items())
            raise ValueError(
                f"reconstructor: expected 0 for {', '.join(FOR_SUMMARIES_ALONE)}, got {listed}: these are for writing "
                "summaries; a text restored from one has no number of words asked for, and all of the summary in it"
            )
        if self.share_embeddings and self.summarizer.d_model != self.reconstructor.d_model:
            raise ValueError(
                f"share_embeddings needs one d_model: summarizer {self.summarizer.d_model}, reconstructor "
                f"{self.reconstructor.d_model}; make them equal or set share_embeddings=False"
            )


def _sub_config(value, config_class):
    """A part's configuration, from a dictionary or one of its own class or of a plain T5."""
    if isinstance(value, config_class):
        return value
    fields = dict(value if isinstance(value, dict) else value.to_dict())
    if not isinstance(value, dict) or fields.get("model_type") == "t5":
        fields["model_type"] = config_class.model_type  # a whole T5: with what its configuration derives
    return config_class(**fields)
