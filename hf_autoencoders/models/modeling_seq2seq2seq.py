"""The seq2seq2seq summarizer: an auto-encoder of text whose code is a readable summary, learned without pairs.

    text -> [summarizer, a T5] -> summary -> [reconstructor, a T5] -> text
                                     |
                     [discriminator] knows real sentences of the kind that a summary should be

After Wang & Lee 2018 (Learning to Encode Text as Human-Readable Summaries using Generative Adversarial Networks) and
Baziotis et al. 2019 (SEQ^3). Departures: both networks are T5 models (Raffel et al. 2020); the copy head of the
summarizer (See et al. 2017) attends by a head of its own; the number of words is told to the decoder at each token, by
an embedding of how many are still to come; a summary is sampled with a cache first, and gradients come from one
parallel pass over it, which gives the same numbers as a step by step loop in half its time.

Words here are counted by the tokens that begin one: see `set_word_starts`.
"""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import GenerationMixin, T5ForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from .configuration_seq2seq2seq import PointerT5Config, Seq2Seq2SeqConfig
from .outputs import Seq2Seq2SeqOutput, SummaryEncoderOutput
from .pointer_t5 import PointerT5ForConditionalGeneration, forbidden_tokens
from .portable import PortableModel
from .text_discriminators import JUDGES, gradient_penalty, initialize_judge, masked_mean

WORD_MARK = "\u2581"  # with which sentencepiece begins the first token of a word


class Seq2Seq2SeqForConditionalGeneration(PortableModel, GenerationMixin):
    r"""
    Summarizer, reconstructor and discriminator (see the head of the file).

    ```python
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSeq2SeqLM.from_pretrained(path)
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    summary_ids = model.generate(**inputs, num_words=8, num_beams=4)
    text_ids = model.reconstruct(summary_ids)
    ```
    """

    config_class = Seq2Seq2SeqConfig
    config: Seq2Seq2SeqConfig
    main_input_name = "input_ids"
    input_modalities = ("text",)
    base_model_prefix = "summarizer"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = False
    _no_split_modules = ["T5Block"]
    _keep_in_fp32_modules = ["wo"]
    _tied_weights_keys = {"reconstructor.shared.weight": "summarizer.shared.weight"}

    def __init__(self, config: Seq2Seq2SeqConfig):
        config.validate()
        super().__init__(config)
        self.summarizer = PointerT5ForConditionalGeneration._from_config(config.summarizer)
        self.reconstructor = PointerT5ForConditionalGeneration._from_config(config.reconstructor)
        kind = config.discriminator.kind
        self.discriminator = JUDGES[kind](config.discriminator) if kind != "none" else None
        if not config.share_embeddings:
            self._tied_weights_keys = None
        self.post_init()
        self.generation_config.max_length = None
        self.generation_config.max_new_tokens = config.max_summary_tokens

    @classmethod
    def is_custom_code(cls) -> bool:
        return False  # see `PreTrainedAutoencoder`

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not initialize_judge(module):
            super()._init_weights(module)

    # ---- what transformers asks of a sequence to sequence model

    def get_encoder(self):
        """The encoder of the summarizer."""
        return self.summarizer.encoder

    def get_decoder(self):
        """The decoder of the summarizer."""
        return self.summarizer.decoder

    def get_input_embeddings(self):
        return self.summarizer.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.summarizer.set_input_embeddings(value)
        if self.config.share_embeddings:
            self.reconstructor.set_input_embeddings(value)

    def get_output_embeddings(self):
        """The summarizer's output layer, which is its table of embeddings."""
        return self.summarizer.lm_head

    def set_output_embeddings(self, value):
        """Replace the summarizer's output layer."""
        self.summarizer.lm_head = value

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels shifted to the right: the decoder's inputs."""
        return self.summarizer.prepare_decoder_input_ids_from_labels(labels)

    def player_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of each player of the adversarial game: one optimizer for each."""
        players = {"autoencoder": [*self.summarizer.parameters(), *self.reconstructor.parameters()]}
        players["autoencoder"] = list(dict.fromkeys(players["autoencoder"]))  # shared ones once
        if self.discriminator is not None:
            players["discriminator"] = list(self.discriminator.parameters())
        return players

    @classmethod
    def from_pretrained_t5(cls, name_or_path: str, *, revision: str | None = None, **fields):
        """A model both of whose halves begin as a T5 of the Hub, or of a folder.

        Args:
            name_or_path: e.g. `"google-t5/t5-small"`.
            revision: branch, tag or commit.
            fields: of [`Seq2Seq2SeqConfig`]. `summarizer` and `reconstructor` may be dictionaries of fields that are
                not T5's: `{"countdown_size": 25}`.

        Raises:
            ValueError: not a T5, or one whose weights do not fit.
        """
        t5 = T5ForConditionalGeneration.from_pretrained(name_or_path, revision=revision, dtype=torch.float32)
        own = {name: fields.pop(name, None) or {} for name in ("summarizer", "reconstructor")}
        own["summarizer"] = {"countdown_size": 25, **own["summarizer"]}
        base = t5.config.to_dict() | {"model_type": PointerT5Config.model_type, "decoder_start_token_id": 0}
        parts = {name: PointerT5Config(**base | part) for name, part in own.items()}
        model = cls(cls.config_class(**parts, **fields))
        for part in (model.summarizer, model.reconstructor):
            missing, unexpected = part.load_state_dict(t5.state_dict(), strict=False)
            new = [name for name in missing if not name.startswith(("copy_head.", "countdown.", "initials"))]
            if new or unexpected:
                raise ValueError(
                    f"{name_or_path} does not fill a T5: it lacks {new[:3]} and has {unexpected[:3]} beside"
                )
        model.tie_weights()
        return model.eval()

    def set_word_starts(self, tokenizer) -> None:
        """Tell the model which tokens begin a word; saved with it.

        Args:
            tokenizer: one that marks the first token of a word with U+2581, as sentencepiece does, and that has as many
                tokens as the model.

        Raises:
            ValueError: tokenizer and model have different vocabularies, or no token begins a word.
        """
        size = self.config.summarizer.vocab_size
        if len(tokenizer) > size:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the model {size}: build the model with "
                f"vocab_size={len(tokenizer)}, or call model.resize_token_embeddings({len(tokenizer)})"
            )
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        starts = torch.tensor([token.startswith(WORD_MARK) for token in tokens] + [False] * (size - len(tokens)))
        if not starts.any():
            raise ValueError(f"no token of this tokenizer begins with {WORD_MARK!r}: words cannot be counted")
        for part in (self.summarizer, self.reconstructor):
            part.initials.copy_(starts)

    @torch.no_grad()
    def set_salience(self, text_counts: torch.Tensor, summary_counts: torch.Tensor) -> None:
        """Let the copy head begin with what the two pools say of each token: the log of how much commoner it is in
        summaries than in texts, within 4 nats. Training goes on from there.

        Args:
            text_counts, summary_counts (`(vocab_size,)`): how often each token occurs in each pool.

        Raises:
            ValueError: the summarizer has no copy head.
        """
        if self.summarizer.copy_head is None:
            raise ValueError("set_salience is for summarizers with a copy head")
        ratio = summary_counts.sum() / text_counts.sum()
        odds = (summary_counts + ratio.clamp_max(1.0)) / (text_counts + (1 / ratio).clamp_max(1.0))
        self.summarizer.copy_head.salience.copy_((odds / ratio).log().clamp(-4, 4))

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        """As of `PreTrainedModel`; all parts are resized. New tokens begin a word."""
        result = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        size = result.num_embeddings
        if not self.config.share_embeddings:
            self.reconstructor.resize_token_embeddings(size, None, mean_resizing)
        for part in (self.summarizer, self.reconstructor):
            part.lm_head.weight = part.shared.weight
            part.lm_head.out_features = size
            part.config.vocab_size = size
            added = part.initials.new_ones(max(0, size - len(part.initials)))
            part.initials = torch.cat([part.initials, added])[:size]
            if part.copy_head is not None:
                salience = part.copy_head.salience
                added = salience.new_zeros(max(0, size - len(salience)))
                part.copy_head.salience = nn.Parameter(torch.cat([salience.data, added])[:size])
        self.config.discriminator.vocab_size = size
        if self.discriminator is not None:
            judge = self.discriminator
            judge.embeddings = self._get_resized_embeddings(judge.embeddings, size, mean_resizing=mean_resizing)
            if hasattr(judge, "bias"):
                added = judge.bias.new_zeros(max(0, size - len(judge.bias)))
                judge.bias = nn.Parameter(torch.cat([judge.bias.data, added])[:size])
        return result

    # ---- inference

    def generate(self, inputs=None, generation_config=None, logits_processor=None, num_words=None, **kwargs):
        r"""
        Summaries: all that `GenerationMixin.generate` does, and

        num_words (`int` or `torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Write exactly so many words. By default the summarizer ends where it wants to, about
            `config.summary_words`.

        Returns:
            `torch.LongTensor` of shape `(batch_size, length)`, or a `ModelOutput`, as of `GenerationMixin`.
        """
        self.summarizer.generation_config = self.generation_config
        return self.summarizer.generate(inputs, generation_config, logits_processor, num_words, **kwargs)

    def reconstruct(self, summary_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs):
        """Texts from their summaries alone.

        Args:
            summary_ids (`torch.LongTensor` of shape `(batch_size, length)`): as `generate` gives them.
            attention_mask (`(batch_size, length)`, *optional*): by default 1 wherever there is no padding.
            kwargs: of `GenerationMixin.generate`; `max_new_tokens` is `config.max_source_tokens` if not given.

        Returns:
            `torch.LongTensor` of shape `(batch_size, text_length)`.
        """
        if attention_mask is None:
            attention_mask = self._code_mask(summary_ids)
        if not {"max_new_tokens", "max_length", "generation_config"} & set(kwargs):
            kwargs["max_new_tokens"] = self.config.max_source_tokens
        return self.reconstructor.generate(summary_ids, attention_mask=attention_mask, **kwargs)

    def encode(self, input_ids, attention_mask=None, num_words=None, **kwargs) -> SummaryEncoderOutput:
        """The code of texts: summaries, greedily chosen unless `kwargs` (of `generate`) say otherwise.

        Returns:
            [`SummaryEncoderOutput`]: `codes`, token ids `(batch_size, length)`, and `latents`, their embeddings.
        """
        codes = self.generate(input_ids, attention_mask=attention_mask, num_words=num_words, **kwargs)[:, 1:]
        return SummaryEncoderOutput(latents=self.reconstructor.shared(codes), codes=codes)

    def decode_codes(self, codes: torch.LongTensor, **kwargs) -> torch.LongTensor:
        """Token ids of the texts that summaries stand for: `reconstruct`."""
        return self.reconstruct(codes, **kwargs)

    def _code_mask(self, ids: torch.Tensor) -> torch.Tensor:
        """1 at tokens `(batch_size, length)`. The decoder's start token is padding too, and is no token."""
        return (ids != self.config.pad_token_id).long()

    # ---- training

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        summary_ids: torch.LongTensor | None = None,
        summary_mask: torch.Tensor | None = None,
        target_ids: torch.LongTensor | None = None,
        target_mask: torch.Tensor | None = None,
        num_words: torch.LongTensor | None = None,
        noise: torch.Tensor | None = None,
        dropout_noise: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        encoder_outputs: tuple | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        return_loss: bool = True,
        return_dict: bool | None = None,
        **kwargs,
    ):
        r"""
        What is given decides what is computed:

        - `labels`, or `decoder_input_ids`: the summarizer as a sequence to sequence model, with its cross-entropy;
        - `summary_ids`: the reconstructor's loss on `input_ids`, read from these summaries;
        - `target_ids` without `input_ids`: the language model's loss on real sentences;
        - otherwise: the auto-encoder. A summary is sampled (in evaluation mode: chosen greedily), the text
          reconstructed from it, and every term of the loss computed. With `target_ids`, unpaired real sentences, the
          discriminator's own loss is part of it. Each player has a gradient from its own loss only.

        Args:
            input_ids, attention_mask (`(batch_size, source_length)`): texts.
            labels (`(batch_size, target_length)`): token ids to learn, -100 where there are none.
            summary_ids, summary_mask (`(batch_size, length)`): summaries to reconstruct from.
            target_ids, target_mask (`(any, length)`): real sentences of the target kind, with their end token.
            num_words (`(batch_size,)`): words of each summary; by default `config.summary_words`.
            noise (`(batch_size, max_summary_tokens, vocab_size)`): uniform in [0, 1), decides on the sample.
            dropout_noise (`(batch_size, source_length)`): uniform in [0, 1), decides on the words dropped.
            return_loss: whether to compute losses.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) is None:
                kwargs[name] = getattr(self.config, name)
        if labels is not None or decoder_input_ids is not None or decoder_inputs_embeds is not None:
            return self._summarize(
                input_ids,
                attention_mask,
                labels,
                num_words,
                return_loss,
                return_dict,
                {
                    "decoder_input_ids": decoder_input_ids,
                    "decoder_inputs_embeds": decoder_inputs_embeds,
                    "encoder_outputs": encoder_outputs,
                    **kwargs,
                },
            )
        if input_ids is None:
            output = self._target_forward(target_ids, target_mask)
        else:
            if attention_mask is None:
                attention_mask = self._code_mask(input_ids)
            if summary_ids is not None:
                if summary_mask is None:
                    summary_mask = self._code_mask(summary_ids)
                terms, _ = self._reconstruct(summary_ids, summary_mask, input_ids, attention_mask, dropout_noise)
                output = Seq2Seq2SeqOutput(loss=terms["reconstruction_loss"], codes=summary_ids, **terms)
            else:
                output = self._autoencode(
                    input_ids, attention_mask, target_ids, target_mask, num_words, noise, dropout_noise, encoder_outputs
                )
        if not return_loss:
            for name in [name for name in output if output[name].ndim == 0]:
                output[name] = None
            output = Seq2Seq2SeqOutput(**output)
        return output if return_dict else output.to_tuple()

    def _summarize(self, input_ids, attention_mask, labels, num_words, return_loss, return_dict, kwargs):
        """The summarizer as a sequence to sequence model."""
        if labels is not None:
            if num_words is None:
                num_words = self.summarizer.count_words(labels)
            if kwargs["decoder_input_ids"] is None and kwargs["decoder_inputs_embeds"] is None:
                kwargs["decoder_input_ids"] = self.summarizer._shift_right(labels)
        return self.summarizer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels if return_loss else None,
            decoder_num_words=num_words,
            return_dict=return_dict,
            **kwargs,
        )

    def _target_forward(self, target_ids, target_mask) -> Seq2Seq2SeqOutput:
        if target_ids is None:
            raise ValueError("expected input_ids (texts), or target_ids (sentences of the target kind)")
        if self.config.discriminator.kind != "language_model":
            raise ValueError(
                f'target_ids alone train a language model, but discriminator.kind is "{self.config.discriminator.kind}"'
            )
        mask = self._code_mask(target_ids) if target_mask is None else target_mask
        tokens = F.one_hot(target_ids, self.config.discriminator.vocab_size)
        log_probs = self.discriminator(self.discriminator.embed(tokens), mask)
        nats = -log_probs.gather(-1, target_ids[..., None])[..., 0]
        loss = masked_mean(nats, mask)
        return Seq2Seq2SeqOutput(loss=loss, discriminator_loss=loss)

    def _reconstruct(self, summary, summary_mask, input_ids, attention_mask, dropout_noise=None, soft=None):
        """The reconstructor, taught by the text itself: terms of the loss, and nats per token of each row.

        `soft`: one-hot rows with a gradient, in place of the ids `summary`.
        """
        decoder_inputs = self.reconstructor._shift_right(input_ids)
        if self.training and self.config.word_dropout:
            if dropout_noise is None:
                dropout_noise = torch.rand(decoder_inputs.shape, device=decoder_inputs.device)
            dropped = dropout_noise[:, : decoder_inputs.shape[1]] < self.config.word_dropout
            dropped[:, 0] = False
            decoder_inputs = decoder_inputs.masked_fill(dropped, 2)  # <unk>
        source = {"input_ids": summary}
        if soft is not None:
            weight = self.reconstructor.shared.weight
            source = {"inputs_embeds": soft.to(weight.dtype) @ weight, "decoder_source_ids": soft}
        output = self.reconstructor(
            **source,
            attention_mask=summary_mask,
            decoder_input_ids=decoder_inputs,
            labels=input_ids.masked_fill(attention_mask == 0, -100),
            return_dict=True,
        )
        nats, logits = output.nats, output.logits
        terms = {"reconstruction_loss": masked_mean(nats, attention_mask)}
        if logits is not None:
            right = logits.argmax(-1) == input_ids
            terms["reconstruction_logits"] = logits
            terms["reconstruction_accuracy"] = masked_mean(right, attention_mask)
        return terms, nats.sum(1) / attention_mask.sum(1)

    @torch.no_grad()
    def _sample(self, states, attention_mask, input_ids, num_words, gumbel) -> torch.Tensor:
        """Summaries `(batch_size, length)` with their end, then padding: exactly `num_words` words, if they fit.

        `gumbel` `(batch_size, max_summary_tokens, vocab_size)` is added to the log-probabilities; None: greedy.
        """
        summarizer, starts = self.summarizer, self.summarizer.initials
        ends = summarizer.eos_token_ids
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        token = torch.full_like(input_ids[:, :1], self.config.decoder_start_token_id)
        previous = torch.full_like(token, -1)
        remaining, done, written = num_words, torch.zeros_like(num_words, dtype=torch.bool), []
        for step in range(self.config.max_summary_tokens):
            logits = summarizer(
                attention_mask=attention_mask,
                encoder_outputs=(states,),
                decoder_input_ids=token,
                decoder_source_ids=input_ids,
                decoder_num_words=num_words,
                decoder_remaining_words=remaining[:, None],
                decoder_previous_ids=previous,
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
            ).logits[:, -1]
            scores = summarizer.log_probs(logits)
            forbidden = forbidden_tokens(starts, remaining, remaining == num_words, ends, self.config.pad_token_id)
            scores = scores.masked_fill(forbidden, -torch.inf)
            if gumbel is not None:
                scores = scores + gumbel[:, step]
            previous, token = token, scores.argmax(-1).masked_fill(done, self.config.pad_token_id)
            remaining = remaining - (starts[token] & ~done).long()
            written.append(token)
            done = done | torch.isin(token, token.new_tensor(ends))
            token = token[:, None]
            if done.all():
                break
        return torch.stack(written, dim=1)

    def _autoencode(
        self, input_ids, attention_mask, target_ids, target_mask, num_words, noise, dropout_noise, encoder_outputs
    ) -> Seq2Seq2SeqOutput:
        config, summarizer = self.config, self.summarizer
        if num_words is None:
            num_words = torch.full_like(input_ids[:, 0], config.summary_words)
        gumbel = None
        if self.training:
            if noise is None:
                size = (len(input_ids), config.max_summary_tokens, summarizer.config.vocab_size)
                noise = torch.rand(size, device=input_ids.device)
            gumbel = -(-noise.float().clamp(1e-20, 1 - 1e-7).log()).log()
            if dropout_noise is None:
                dropout_noise = torch.rand(input_ids.shape, device=input_ids.device)
        if encoder_outputs is None:
            encoder_outputs = summarizer.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        states = encoder_outputs[0]
        codes = self._sample(states.detach(), attention_mask, input_ids, num_words, gumbel)
        mask = self._code_mask(codes)

        # The same tokens once more, in one parallel pass with gradients.
        decoder_input_ids = summarizer._shift_right(codes)
        remaining = summarizer.remaining_words(decoder_input_ids, num_words)
        logits = summarizer(
            attention_mask=attention_mask,
            encoder_outputs=(states,),
            decoder_input_ids=decoder_input_ids,
            decoder_source_ids=input_ids,
            decoder_num_words=num_words,
            decoder_remaining_words=remaining,
            return_dict=True,
        ).logits
        scores = summarizer.log_probs(logits)
        first = remaining == num_words[:, None]
        ends, pad = summarizer.eos_token_ids, config.pad_token_id
        forbidden = forbidden_tokens(summarizer.initials, remaining, first, ends, pad)
        allowed = scores.masked_fill(forbidden, -1e9).log_softmax(-1)
        one_hot = F.one_hot(codes, scores.shape[-1]).to(scores.dtype)
        straight_through = config.estimator == "straight_through"
        soft = None
        if straight_through:
            tempered = allowed if gumbel is None else allowed + gumbel[:, : codes.shape[1]]
            soft = (tempered / config.gumbel_temperature).softmax(-1)
            soft = one_hot + soft - soft.detach()

        terms, nats = self._reconstruct(codes, mask, input_ids, attention_mask, dropout_noise, soft)
        loss = config.reconstruction_weight * terms["reconstruction_loss"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and config.entropy_weight > 0):
            entropy = masked_mean(-(allowed.exp() * allowed).sum(-1), mask)
        loss = loss - config.entropy_weight * entropy
        terms["entropy"] = entropy.detach()

        kind = config.discriminator.kind
        prefix_scores = None
        if kind == "language_model":
            log_prior = self._frozen_judge(one_hot, mask)
            terms["prior_loss"] = masked_mean((scores.exp() * (scores - log_prior)).sum(-1), mask)
            loss = loss + config.prior_weight * terms["prior_loss"]
        elif kind != "none":
            prefix_scores = self._frozen_judge(one_hot if soft is None else soft, mask)
            if straight_through:
                where = mask if kind == "critic" else torch.ones_like(prefix_scores)
                terms["adversarial_loss"] = masked_mean(
                    F.softplus(-prefix_scores) if kind == "critic" else -prefix_scores, where
                )
                loss = loss + config.adversarial_weight * terms["adversarial_loss"]
            if target_ids is not None:
                mixture = torch.full((len(codes),), 0.5) if noise is None else noise[:, -1, -1]
                terms |= self._judge_losses(one_hot, mask, target_ids, target_mask, mixture)
                loss = loss + terms["discriminator_loss"]
        if not straight_through and self.training:
            with torch.no_grad():
                greedy = self._sample(states, attention_mask, input_ids, num_words, None)
                greedy_mask = self._code_mask(greedy)
                greedy_nats = self._reconstruct(greedy, greedy_mask, input_ids, attention_mask, dropout_noise)[1]
            advantage = self._advantage(prefix_scores, nats.detach(), greedy_nats, mask)
            log_probs = allowed.gather(-1, codes[..., None])[..., 0]
            terms["policy_loss"] = -masked_mean(advantage * log_probs, mask)
            loss = loss + terms["policy_loss"]
        latents = self.reconstructor.shared(codes)
        return Seq2Seq2SeqOutput(latents=latents, codes=codes, loss=loss, **terms)

    def _frozen_judge(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the discriminator says of soft tokens; its parameters get no gradient from it."""
        judge = self.discriminator
        frozen = {name: parameter.detach() for name, parameter in judge.named_parameters()}
        embedded = tokens.to(judge.embeddings.weight.dtype) @ frozen["embeddings.weight"]
        return functional_call(judge, frozen, (embedded, mask))

    def _judge_losses(self, fake: torch.Tensor, fake_mask, target_ids, target_mask, mixture) -> dict:
        """The discriminator's own loss, on what the summarizer wrote and on as many real sentences."""
        judge, config = self.discriminator, self.config.discriminator
        if len(target_ids) != len(fake):
            raise ValueError(f"expected as many target_ids as texts, {len(fake)}, got {len(target_ids)}")
        real_mask = self._code_mask(target_ids) if target_mask is None else target_mask
        length = max(target_ids.shape[1], fake.shape[1])

        def embedded(tokens, mask):
            extra = length - tokens.shape[1]
            return judge.embed(F.pad(tokens.detach(), (0, 0, 0, extra))), F.pad(mask.to(fake_mask.dtype), (0, extra))

        real, real_mask = embedded(F.one_hot(target_ids, config.vocab_size), real_mask)
        fake, fake_mask = embedded(fake, fake_mask)
        real_scores, fake_scores = judge(real, real_mask), judge(fake, fake_mask)
        if config.kind == "wgan_gp":
            either = torch.maximum(real_mask, fake_mask)
            real, fake = real * real_mask[..., None], fake * fake_mask[..., None]
            penalty = gradient_penalty(judge, real, fake, either, mixture.to(real.device))
            gap = (real_scores - fake_scores).float().mean()
            loss = config.gradient_penalty_weight * penalty - gap
            return {"discriminator_loss": loss, "critic_gap": gap.detach(), "gradient_penalty": penalty.detach()}
        loss = masked_mean(F.softplus(-real_scores), real_mask) + masked_mean(F.softplus(fake_scores), fake_mask)
        gap = masked_mean(real_scores.sigmoid(), real_mask) - masked_mean(fake_scores.sigmoid(), fake_mask)
        return {"discriminator_loss": loss, "critic_gap": gap.detach()}

    @torch.no_grad()
    def _advantage(self, prefix_scores, nats, greedy_nats, mask) -> torch.Tensor:
        """How much better than expected each token of a sampled summary was `(batch_size, length)`.

        The reconstruction `nats` `(batch_size,)` is compared with that of the greedy summary of the same text (Rennie
        et al. 2017), and its advantage counts for all tokens; the discriminator's scores with those of the batch at
        the same place.
        """
        config = self.config
        advantage = config.reconstruction_weight * (greedy_nats - nats)[:, None] * mask
        if prefix_scores is not None:
            rewards = prefix_scores.sigmoid() * 2 - 1 if config.discriminator.kind == "critic" else prefix_scores
            rewards = rewards.float().expand(mask.shape) * mask
            returns, following = [], torch.zeros_like(rewards[:, 0])
            for reward in reversed(rewards.unbind(1)):
                following = reward + config.discriminator.discount * following
                returns.append(following)
            returns = torch.stack(returns[::-1], dim=1)
            mean = (returns * mask).sum(0) / mask.sum(0).clamp_min(1)
            advantage = advantage + config.adversarial_weight * (returns - mean) * mask
        return advantage
