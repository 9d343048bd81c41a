"""A T5 that can copy from its source and count its words: both halves of the seq2seq2seq summarizer.

Words are counted by the tokens that begin one (buffer `initials`); by default every token does.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LogitsProcessor, LogitsProcessorList, T5ForConditionalGeneration
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .configuration_seq2seq2seq import PointerT5Config
from .outputs import PointerT5Output


class CopyHead(nn.Module):
    """Mixes the distribution over the vocabulary with one over the tokens of the source (See et al. 2017).

    The attention that points at the source is a product of three: of content, of place, and of selection. The second
    looks where in the source the last tokens stand and expects to go on from there, over the rest of a word or with a
    jump to the beginning of another; how likely each length of a jump is, is learned. (Transformers learn the first of
    it by themselves, as "induction heads", Olsson et al. 2022, but a small one needs ten times the examples for it.)
    The third is how likely each word of the source is to be kept at all: a content selector (Gehrmann et al. 2018,
    Bottom-Up Abstractive Summarization), which reads the encoder and adds a number for each token, `salience`, that may
    begin as a statistic of the corpus, and one for each place of a word, `position`. Without it the likeliest thing to
    copy next is always the next word.
    """

    MAX_JUMP = 24  # tokens
    MAX_POSITION = 64  # words
    PAIR_WEIGHT = 30.0  # of a place where the last two tokens stand, against one where only the last does

    def __init__(self, size: int, vocab_size: int):
        super().__init__()
        self.salience = nn.Parameter(torch.empty(vocab_size))
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.gate = nn.Linear(3 * size, 1)
        self.keep = nn.Linear(size, 1)
        self.position = nn.Parameter(torch.empty(self.MAX_POSITION))
        self.jump = nn.Parameter(torch.empty(self.MAX_JUMP))
        self.stay = nn.Parameter(torch.empty(()))
        self.place_weight = nn.Parameter(torch.empty(()))

    def initial_state(self) -> dict[str, torch.Tensor]:
        """Short jumps are likelier than long ones; a word is rather finished than left."""
        return {
            "jump": -0.15 * torch.arange(self.MAX_JUMP),
            "stay": torch.tensor(3.0),
            "place_weight": torch.tensor(1.0),
            "salience": torch.zeros_like(self.salience),
            "position": torch.zeros_like(self.position),
        }

    @staticmethod
    def matches(tokens: torch.Tensor, source_tokens: torch.Tensor, distance: int) -> torch.Tensor:
        """Whether the source has each of `tokens` `(batch_size, length)` so many places before each of its own
        `(batch_size, length, source_length)`. In front of it stands the token with which the decoder starts, 0."""
        length = source_tokens.shape[1]
        if source_tokens.ndim == 3:
            before = F.pad(source_tokens.float(), (0, 0, distance, 0))[:, :length]
            index = tokens.clamp_min(0)[:, None, :].expand(-1, length, -1)
            found = before.gather(-1, index).transpose(1, 2)
        else:
            before = F.pad(source_tokens, (distance, 0), value=-2)[:, :length]
            found = (tokens[:, :, None] == before[:, None, :]).float()
        found = found * (tokens > 0)[..., None]  # 0 is padding everywhere but in front
        in_front = F.pad((tokens == 0)[..., None].float(), (distance - 1, length))[..., :length]
        return found + in_front

    def places(self, last, previous, source_tokens: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
        """How likely each place of the source comes next, by where the last token, and the one before it, stand
        `(batch_size, length, source_length)`. All 0 where the last token stands nowhere."""
        after = self.matches(last, source_tokens, 1)
        after = after * (1 + self.PAIR_WEIGHT * self.matches(previous, source_tokens, 2))
        after = after / after.sum(-1, keepdim=True).clamp_min(1.0)
        begins, stay, jump = begins.float()[:, None], self.stay.float().sigmoid(), self.jump.float().softmax(0)
        leaves = after * (begins + (1 - begins) * (1 - stay))
        kernel = F.pad(jump[1:], (1, 0)).flip(0)[None, None]
        rows = F.pad(leaves.flatten(0, 1)[:, None], (self.MAX_JUMP - 1, 0))
        jumps = F.conv1d(rows, kernel).view(after.shape) * begins
        return jumps + after * (begins * jump[0] + (1 - begins) * stay)

    def selection(self, source_states, source_tokens, begins) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-odds of each token of the source, if it begins a word, to be kept, and the salience of each, float32
        `(batch_size, source_length)`."""
        soft = source_tokens.ndim == 3
        salience = source_tokens.float() @ self.salience.float() if soft else self.salience[source_tokens].float()
        place = (begins.float().cumsum(1).long() - 1).clamp(0, self.MAX_POSITION - 1)
        return self.keep(source_states)[..., 0].float() + salience + self.position[place].float(), salience

    def forward(self, states, inputs, source_states, source_mask, source_tokens, begins, last, previous, most=None):
        """Where it points `(batch_size, length, source_length)`, and how far to trust that `(batch_size, length, 1)`;
        float32.

        Args:
            states, inputs (`(batch_size, length, size)`): output of the decoder, and its embedded inputs.
            source_states (`(batch_size, source_length, size)`): output of the encoder.
            source_mask (`(batch_size, source_length)`): 1 at tokens.
            source_tokens: ids `(batch_size, source_length)`, or soft tokens `(batch_size, source_length, vocab_size)`.
            begins (`(batch_size, source_length)`): 1 at tokens that begin a word.
            last, previous (`(batch_size, length)`): ids of the decoder's inputs and of those before them (-1: none), or
                None if they are not known.
            most (`(batch_size,)`): point at so many words at most, those likeliest to be kept; None: at all.
        """
        scores = self.query(states) @ self.key(source_states).transpose(1, 2) * states.shape[-1] ** -0.5
        scores, absent = scores.float(), source_mask[:, None, :] == 0
        begins = begins.float()
        selection, salience = self.selection(source_states, source_tokens, begins)
        # Within a word, salience tells punctuation, which summaries leave out, from the rest of the word.
        scores = scores + torch.where(begins > 0.5, F.logsigmoid(selection), salience)[:, None, :]
        if last is not None:
            places = self.places(last, previous, source_tokens, begins).masked_fill(absent, 0.0)
            scores = scores + self.place_weight.float() * (places + 1e-3).log()
        if most is not None:
            candidates = selection.masked_fill((begins < 0.5) | absent[:, 0], -torch.inf)
            ranked = candidates.sort(dim=1, descending=True).values
            least = ranked.gather(1, (most - 1).clamp(0, ranked.shape[1] - 1)[:, None])
            scores = scores.masked_fill(((begins > 0.5) & (candidates < least))[:, None, :], -1e9)
        attention = scores.masked_fill(absent, -1e9).softmax(-1)
        context = attention.to(source_states.dtype) @ source_states
        gate = self.gate(torch.cat([states, context, inputs.to(states.dtype)], dim=-1)).float().sigmoid()
        return attention, gate

    def selection_loss(self, source_states, source_mask, source_tokens, begins, labels) -> torch.Tensor:
        """Cross-entropy of keeping each word of the source (a token that begins one) that is among the labels, nats per
        word of the source."""
        kept = (source_tokens[:, :, None] == labels[:, None, :]).any(-1).float()
        words = begins.float() * source_mask.float()
        logits, _ = self.selection(source_states, source_tokens, begins)
        losses = F.binary_cross_entropy_with_logits(logits, kept, reduction="none")
        return (losses * words).sum() / words.sum().clamp_min(1.0)

    @staticmethod
    def log_mixture(attention, gate, source_tokens, logits) -> torch.Tensor:
        """Log-probabilities of all tokens, float32 `(batch_size, length, vocab_size)`, from those of the vocabulary
        (`logits`) and the tokens pointed at."""
        generated = (1 - gate) * logits.float().softmax(-1)
        if source_tokens.ndim == 3:
            mixture = generated + (gate * attention) @ source_tokens.float()
        else:
            index = source_tokens[:, None, :].expand(-1, attention.shape[1], -1)
            mixture = generated.scatter_add(-1, index, gate * attention)
        return mixture.clamp_min(1e-9).log()

    @staticmethod
    def label_nats(attention, gate, source_tokens, logits, labels) -> torch.Tensor:
        """Minus the log-probability of each label `(batch_size, length)` alone, which takes half the time of all."""
        flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        if source_tokens.ndim == 3:
            index = labels[:, None, :].expand(-1, source_tokens.shape[1], -1)
            is_label = source_tokens.float().gather(-1, index).transpose(1, 2)
        else:
            is_label = labels[:, :, None] == source_tokens[:, None, :]
        copied = (attention * is_label).sum(-1)
        gate = gate[..., 0]
        probability = (1 - gate) * (-flat.view_as(labels)).exp() + gate * copied
        return -probability.clamp_min(1e-9).log()


def shifted(ids: torch.Tensor) -> torch.Tensor:
    """The token before each one `(batch_size, length)`; -1 before the first."""
    return F.pad(ids[:, :-1], (1, 0), value=-1)


class WordBudget(LogitsProcessor):
    """Lets a summary have exactly so many words: no end before, no new word after.

    Args:
        initials (`(vocab_size,)`, bool): which tokens begin a word.
        num_words (`(batch_size,)`): words of each row.
        eos_token_ids: tokens that end a summary.
        pad_token_id: a token that is none.
        start: length of the prompt of the decoder.
    """

    def __init__(self, initials, num_words, eos_token_ids: list[int], pad_token_id: int, start: int = 1):
        self.initials, self.num_words, self.start = initials, num_words, start
        self.eos_token_ids, self.pad_token_id = eos_token_ids, pad_token_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        num_words = self.num_words.repeat_interleave(len(scores) // len(self.num_words))
        written = self.initials[input_ids[:, self.start :]].sum(1)
        forbidden = forbidden_tokens(
            self.initials, num_words - written, written == 0, self.eos_token_ids, self.pad_token_id
        )
        return scores.masked_fill(forbidden, -torch.inf)


def forbidden_tokens(
    initials: torch.Tensor,
    remaining: torch.Tensor,
    first: torch.Tensor,
    eos_token_ids: list[int],
    pad_token_id: int,
) -> torch.Tensor:
    """Which next tokens the number of words forbids, bool `(*remaining.shape, vocab_size)`.

    Args:
        initials (`(vocab_size,)`, bool): which tokens begin a word.
        remaining, first (`(...)`): how many words are still to begin; whether no word has begun yet.
        eos_token_ids: tokens that end a summary.
        pad_token_id: a token that is none.
    """
    tokens = torch.arange(len(initials), device=initials.device)
    ends = torch.isin(tokens, tokens.new_tensor(eos_token_ids))
    more = (remaining > 0)[..., None]
    forbidden = (more & ends) | (~more & initials) | (first[..., None] & more & ~initials)
    return forbidden | (tokens == pad_token_id)


class PointerT5ForConditionalGeneration(T5ForConditionalGeneration):
    """A T5 with, by its configuration, a copy head and a countdown of words. Without both it computes what T5 does.

    Where there is a copy head, `logits` are log-probabilities; with `labels`, in training mode, they are not computed.
    """

    config_class = PointerT5Config
    config: PointerT5Config

    def __init__(self, config: PointerT5Config):
        super().__init__(config)
        self.copy_head = CopyHead(config.d_model, config.vocab_size) if config.copy_head else None
        self.countdown = nn.Embedding(config.countdown_size, config.d_model) if config.countdown_size else None
        self.register_buffer("initials", self._all_tokens())
        self.post_init()

    def _all_tokens(self) -> torch.Tensor:
        """Every token counts as a word, except padding and the end."""
        starts = torch.ones(self.config.vocab_size, dtype=torch.bool)
        for special in (self.config.pad_token_id, *self.eos_token_ids):
            if special is not None and special < len(starts):
                starts[special] = False
        return starts

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end a sequence."""
        ends = self.config.eos_token_id
        return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)

    @classmethod
    def is_custom_code(cls) -> bool:
        return False  # see `PreTrainedAutoencoder`

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        size = self.config.d_model
        if isinstance(module, CopyHead):
            for linear, std in (
                (module.query, size**-0.5),
                (module.key, size**-0.5),
                (module.gate, (3 * size) ** -0.5),
            ):
                init.normal_(linear.weight, std=std * self.config.initializer_factor)
            init.ones_(module.gate.bias)  # most of a summary is copied
            init.zeros_(module.keep.weight)
            init.zeros_(module.keep.bias)
            for name, value in module.initial_state().items():
                init.copy_(getattr(module, name), value)
        elif isinstance(module, nn.Embedding) and module is getattr(self, "countdown", None):
            init.zeros_(module.weight)  # a T5 from elsewhere begins as it was
        else:
            super()._init_weights(module)
        if module is self and hasattr(self, "initials"):
            init.copy_(self.initials, self._all_tokens())

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities in float32 of what `forward` calls logits; after a copy head they are that already."""
        return logits.float() if self.copy_head is not None else logits.float().log_softmax(-1)

    def count_words(self, ids: torch.Tensor) -> torch.Tensor:
        """Words that begin in each row of token ids `(batch_size, length)`; negative ids (of labels) are none."""
        return (self.initials[ids.clamp_min(0)] & (ids >= 0)).sum(-1)

    def remaining_words(self, decoder_input_ids: torch.Tensor, num_words: torch.Tensor | None = None) -> torch.Tensor:
        """How many words are still to begin after each decoder input `(batch_size, length)`, of `num_words` a row."""
        if num_words is None:
            num_words = torch.full_like(decoder_input_ids[:, 0], self.config.default_words)
        begun = self.initials[decoder_input_ids].long()
        begun[:, 0] = 0  # the start token
        return num_words[:, None] - begun.cumsum(1)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: tuple | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        decoder_source_ids: torch.Tensor | None = None,
        decoder_num_words: torch.LongTensor | None = None,
        decoder_remaining_words: torch.LongTensor | None = None,
        decoder_previous_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> PointerT5Output:
        r"""
        As of `T5ForConditionalGeneration`, and

        decoder_source_ids (`torch.Tensor`, *optional*):
            What the copy head copies: token ids `(batch_size, source_length)`, or soft tokens of shape `(batch_size,
            source_length, vocab_size)`. By default `input_ids`; needed when these are not given.
        decoder_num_words (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Where the countdown starts; by default the number of words of `labels`, or `config.default_words`.
        decoder_remaining_words (`torch.LongTensor` of shape `(batch_size, target_length)`, *optional*):
            The countdown itself, where `decoder_input_ids` is only the end of what was written.
        decoder_previous_ids (`torch.LongTensor` of shape `(batch_size, target_length)`, *optional*):
            The token before each of `decoder_input_ids`, -1 where there is none; likewise.
        """
        return_dict = kwargs.pop("return_dict", None)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) is None:
                kwargs[name] = getattr(self.config, name)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
        elif isinstance(encoder_outputs, (tuple, list)):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        source_states = encoder_outputs.last_hidden_state

        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
        if decoder_inputs_embeds is None:
            decoder_inputs_embeds = self.shared(decoder_input_ids)
            if self.countdown is not None:
                if decoder_remaining_words is None:
                    if decoder_num_words is None and labels is not None:
                        decoder_num_words = self.count_words(labels)
                    decoder_remaining_words = self.remaining_words(decoder_input_ids, decoder_num_words)
                remaining = decoder_remaining_words.clamp(0, self.config.countdown_size - 1)
                decoder_inputs_embeds = decoder_inputs_embeds + self.countdown(remaining)
        outputs = self.decoder(
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            past_key_values=past_key_values,
            encoder_hidden_states=source_states,
            encoder_attention_mask=attention_mask,
            use_cache=use_cache,
            **kwargs,
        )
        states = outputs.last_hidden_state
        if self.config.scale_decoder_outputs:
            states = states * self.config.d_model**-0.5
        logits = self.lm_head(states)
        if self.copy_head is not None:
            source = input_ids if decoder_source_ids is None else decoder_source_ids
            if source is None:
                raise ValueError(
                    "the copy head copies tokens, but only their embeddings or encodings came: give "
                    "decoder_source_ids, (batch_size, source_length) token ids, too"
                )
            if attention_mask is None:
                attention_mask = torch.ones_like(source_states[..., 0], dtype=torch.long)
            if decoder_previous_ids is None and decoder_input_ids is not None:
                decoder_previous_ids = shifted(decoder_input_ids)
            begins = source.float() @ self.initials.float() if source.ndim == 3 else self.initials[source]
            most = None
            if self.config.selection_ratio and labels is None:
                if decoder_num_words is None:
                    decoder_num_words = torch.full_like(source_states[:, 0, 0], self.config.default_words)
                most = (decoder_num_words * self.config.selection_ratio).ceil().long()
            attention, gate = self.copy_head(
                outputs.last_hidden_state,
                decoder_inputs_embeds,
                source_states,
                attention_mask,
                source,
                begins,
                decoder_input_ids,
                decoder_previous_ids,
                most,
            )
        loss = nats = None
        if labels is not None:
            known = labels.clamp_min(0)
            if self.copy_head is not None:
                nats = self.copy_head.label_nats(attention, gate, source, logits, known)
            else:
                nats = F.cross_entropy(logits.float().flatten(0, 1), known.flatten(), reduction="none")
                nats = nats.view_as(known)
            nats = nats.masked_fill(labels < 0, 0.0)
            loss = nats.sum() / (labels >= 0).sum()
            if self.copy_head is not None and self.config.selection_weight and source.ndim == 2:
                selected = self.copy_head.selection_loss(source_states, attention_mask, source, begins, labels)
                loss = loss + self.config.selection_weight * selected
        if self.copy_head is not None:
            training = self.training and labels is not None
            logits = None if training else self.copy_head.log_mixture(attention, gate, source, logits)
        result = PointerT5Output(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=source_states,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            nats=nats,
        )
        return result if return_dict else result.to_tuple()

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, decoder_num_words=None, **kwargs):
        """Inputs of the next step; the countdown is taken from all tokens written so far."""
        inputs = super().prepare_inputs_for_generation(input_ids, next_sequence_length, **kwargs)
        length = inputs["decoder_input_ids"].shape[1]
        if self.countdown is not None:
            inputs["decoder_remaining_words"] = self.remaining_words(input_ids, decoder_num_words)[:, -length:]
        if self.copy_head is not None:
            inputs["decoder_previous_ids"] = shifted(input_ids)[:, -length:]
            inputs["decoder_num_words"] = decoder_num_words
        return inputs

    def generate(self, inputs=None, generation_config=None, logits_processor=None, num_words=None, **kwargs):
        r"""
        `GenerationMixin.generate`, and

        num_words (`int` or `torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Write exactly so many words. By default the decoder decides when to end, with its countdown (if it has one)
            started at `config.default_words`.
        """
        source = inputs if inputs is not None else kwargs.get("input_ids")
        if self.copy_head is not None and source is not None:
            kwargs.setdefault("decoder_source_ids", source)
        if num_words is not None:
            encoded = kwargs.get("encoder_outputs")
            rows = source if source is not None else kwargs.get("inputs_embeds")
            rows = encoded[0] if rows is None else rows
            num_words = torch.as_tensor(num_words, device=rows.device)
            if num_words.is_floating_point() or num_words.ndim > 1 or (num_words < 1).any():
                raise ValueError(
                    f"num_words: expected whole numbers from 1, one or one a row; got {num_words.tolist()}"
                )
            if num_words.ndim == 1 and len(num_words) != len(rows):
                raise ValueError(f"num_words has {len(num_words)} numbers for {len(rows)} rows")
            num_words = num_words.expand(len(rows)).contiguous()
            kwargs["decoder_num_words"] = num_words
            prompt = kwargs.get("decoder_input_ids")
            start = 1 if prompt is None else prompt.shape[1]
            budget = WordBudget(self.initials, num_words, self.eos_token_ids, self.config.pad_token_id, start)
            logits_processor = LogitsProcessorList([*(logits_processor or ()), budget])
        return super().generate(inputs, generation_config, logits_processor=logits_processor, **kwargs)
