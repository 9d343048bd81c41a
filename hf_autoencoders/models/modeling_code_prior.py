"""Autoregressive prior of discrete codes: what van den Oord et al. 2017 draw from, with a transformer in the place of
their PixelCNN (as Esser et al. 2021, https://arxiv.org/abs/2012.09841).

    codes (B, num_codebooks, h, w) -> sequence (B, h w num_codebooks) of tokens, behind the token of a class or of none
                                          |
                    GPT-2 of transformers, log p(code | all codes before, class)

The sequence goes through the grid row by row, and at each place through its codebooks. Each codebook has tokens of its
own, and at each position only those of its codebook have any probability: log p(codes) is exact.
"""

from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList
from transformers.utils import can_return_tuple

from .configuration_prior import CodePriorConfig
from .layers import check_codes
from .outputs import CodePriorOutput
from .prior_base import PreTrainedPrior, check_sampling


@dataclass
class CodePriorState:
    """Codes that are being written one by one, see [`CodePriorModel.start`].

    Attributes:
        tokens (`torch.LongTensor` of shape `(batch_size, 1)`): the last token, which the transformer has not read yet.
        position (`int`): how many codes there are already.
        cache: keys and values of all tokens before the last.
    """

    tokens: torch.LongTensor
    position: int = -1
    cache: DynamicCache = field(default_factory=DynamicCache)


class CodePriorModel(PreTrainedPrior):
    """The probability of codes of a discrete auto-encoder, and new codes.

    ```python
    log_prob = prior.log_prob(codes)                    # (B,), nats
    codes = prior.sample(16, classes=torch.arange(16) % 10)
    images = autoencoder.decode_codes(codes)            # or autoencoder.sample(16, prior=prior, classes=...)
    loss = prior(codes, classes=classes).loss           # nats per example
    ```
    """

    config_class = CodePriorConfig
    base_model_prefix = "code_prior"
    main_input_name = "codes"
    supports_gradient_checkpointing = True
    gives_codes = True
    _no_split_modules = ["GPT2Block"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: CodePriorConfig):
        super().__init__(config)
        gpt2 = GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.num_positions,
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=config.num_code_tokens,
            eos_token_id=None,
            pad_token_id=None,
            attn_implementation=config._attn_implementation,
        )
        self.language_model = GPT2LMHeadModel(gpt2)
        self.post_init()

    # ---- codes and tokens

    @property
    def _axes(self) -> str:
        """Names of the axes of codes after the first, for messages."""
        axes = ["height", "width"] if len(self.config.codes_shape) == 3 else ["positions"]
        axes = ["num_codebooks", *axes] if len(self.config.codes_shape) > 1 else axes
        return ", ".join([*axes, *("more" for _ in self.config.codes_shape[len(axes) :])])

    def _to_sequence(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes `(B, *codes_shape)` in the order in which they are written, `(B, num_positions)`."""
        return codes.flatten(1) if codes.ndim == 2 else codes.flatten(2).mT.flatten(1)

    def _to_codes(self, sequence: torch.Tensor) -> torch.Tensor:
        """The inverse: `(B, *codes_shape)`."""
        shape = tuple(self.config.codes_shape)
        if len(shape) == 1:
            return sequence
        return sequence.unflatten(1, (-1, self.config.num_codebooks)).mT.unflatten(2, shape[1:])

    def _first_token(self, position: torch.Tensor | int) -> torch.Tensor | int:
        """The token of code 0 of the codebook whose turn it is."""
        return position % self.config.num_codebooks * self.config.num_codes

    def _own_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Of logits `(B, num_positions, vocab_size)` those of each position's codebook, float32 `(..., num_codes)`."""
        config = self.config
        logits = logits[..., : config.num_code_tokens].float()
        if config.num_codebooks == 1:
            return logits
        books = logits.unflatten(1, (-1, config.num_codebooks)).unflatten(3, (config.num_codebooks, config.num_codes))
        return books.diagonal(dim1=2, dim2=3).movedim(-1, 2).flatten(1, 2)

    def _start_tokens(self, batch_size: int, classes: torch.Tensor | None) -> torch.Tensor:
        """`(batch_size, 1)`: the token of each one's class."""
        config, device = self.config, self.device
        if classes is None:
            return torch.full((batch_size, 1), config.num_code_tokens, device=device)
        if config.num_classes == 0:
            raise ValueError("this prior knows no classes (num_classes is 0 in its configuration): leave classes out")
        if not torch.is_tensor(classes) or classes.is_floating_point() or classes.dtype == torch.bool:
            kind = classes.dtype if torch.is_tensor(classes) else type(classes).__name__
            raise TypeError(f"classes must be an integer tensor, got {kind}")
        if tuple(classes.shape) != (batch_size,):
            raise ValueError(
                f"classes must have shape ({batch_size},), one for each example, got {tuple(classes.shape)}"
            )
        if not torch.compiler.is_compiling() and classes.numel():
            low, high = classes.aminmax()
            if low < -1 or high >= config.num_classes:
                raise ValueError(
                    f"classes must be from 0 to {config.num_classes - 1}, or -1 for none, got {low} to {high}"
                )
        return (config.num_code_tokens + 1 + classes.long().to(device)).unsqueeze(1)

    # ---- probabilities

    @can_return_tuple
    def forward(
        self,
        codes: torch.Tensor,
        classes: torch.Tensor | None = None,
        class_noise: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> CodePriorOutput:
        """
        Args:
            codes (`torch.LongTensor` of shape `(batch_size, *codes_shape)`): in `[0, num_codes)`.
            classes (`torch.LongTensor` of shape `(batch_size,)`, *optional*): class of each example; -1: not known.
            class_noise (`torch.FloatTensor` of shape `(batch_size,)`, *optional*): uniform noise in [0, 1); where it is
                below `class_dropout` the class is not looked at. Default: drawn in training mode, none in evaluation
                mode.
            return_loss (`bool`, *optional*, defaults to `True`): also compute the loss, nats per example.
            output_hidden_states, output_attentions (`bool`, *optional*): of GPT-2, see there.
        """
        config = self.config
        check_codes(codes, tuple(config.codes_shape), self._axes, config.num_codes)
        start = self._start_tokens(codes.shape[0], classes)
        if classes is not None and config.class_dropout > 0:
            if class_noise is None and self.training:
                class_noise = torch.rand(codes.shape[0], device=start.device)
            if class_noise is not None:
                hidden = class_noise[:, None] < config.class_dropout
                start = torch.where(hidden, config.num_code_tokens, start)
        sequence = self._to_sequence(codes.long().to(start.device))
        tokens = sequence + self._first_token(torch.arange(config.num_positions, device=start.device))
        inputs = torch.cat([start, tokens[:, :-1]], dim=1)
        extra = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        extra = {name: getattr(config, name) if value is None else value for name, value in extra.items()}
        output = self.language_model(input_ids=inputs, use_cache=False, **extra)
        logits = self._own_logits(output.logits)
        log_prob = logits.log_softmax(-1).gather(2, sequence.unsqueeze(2)).squeeze(2).sum(1)
        return CodePriorOutput(
            log_prob=log_prob,
            loss=-log_prob.mean() if return_loss else None,
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def log_prob(self, codes: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        """log p(codes | classes) in nats, float32 `(batch_size,)`, of codes `(batch_size, *codes_shape)`.

        In training mode classes are dropped and noise is added, as in `forward`: call `eval()` first.
        """
        return self(codes, classes=classes, return_loss=False).log_prob

    # ---- codes one by one

    def start(self, batch_size: int = 1, classes: torch.Tensor | None = None) -> CodePriorState:
        """Begin new codes, to be asked for and written one position after the other:

        ```python
        state = prior.start(batch_size)
        logits = prior.next_logits(state)             # float32 (batch_size, num_codes), of the first position
        for position in range(1, prior.config.num_positions):
            logits = prior.next_logits(state, codes)  # codes (batch_size,): what stands at the position before
        ```

        `prior.to_sequence(codes)` has codes in this order, `prior.to_codes(sequence)` puts them back into their shape.

        Whoever codes with these probabilities has to go this way on both sides, with equal batches: rounding differs
        between this and `forward`, and between batch sizes, threads and machines. In evaluation mode on one machine the
        same calls give the same bits.
        """
        return CodePriorState(self._start_tokens(batch_size, classes))

    @torch.no_grad()
    def next_logits(self, state: CodePriorState, codes: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the next position, float32 `(batch_size, num_codes)`, see [`start`]; `state` moves on.

        Args:
            state: of these codes.
            codes (`torch.LongTensor` of shape `(batch_size,)`): of the position before; None for the first position.

        Raises:
            ValueError: all codes are written, or codes are given, or missing, where they should not be.
        """
        config = self.config
        state.position += 1
        if state.position >= config.num_positions:
            raise ValueError(f"all {config.num_positions} codes are written already")
        if (codes is None) != (state.position == 0):
            raise ValueError("give codes for every position but the first: those of the position before")
        if codes is not None:
            if not torch.is_tensor(codes) or tuple(codes.shape) != (len(state.tokens),):
                found = tuple(codes.shape) if torch.is_tensor(codes) else type(codes).__name__
                raise ValueError(f"codes must be a tensor of shape ({len(state.tokens)},), got {found}")
            check_codes(codes.unsqueeze(1), (1,), "positions", config.num_codes)
            state.tokens = (codes.long().to(self.device) + self._first_token(state.position - 1)).unsqueeze(1)
        output = self.language_model(input_ids=state.tokens, past_key_values=state.cache, use_cache=True)
        first = self._first_token(state.position)
        return output.logits[:, -1, first : first + config.num_codes].float()

    def to_sequence(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes `(batch_size, *codes_shape)` in the order in which they are written, `(batch_size, num_positions)`."""
        check_codes(codes, tuple(self.config.codes_shape), self._axes, self.config.num_codes)
        return self._to_sequence(codes)

    def to_codes(self, sequence: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_sequence`."""
        check_codes(sequence, (self.config.num_positions,), "num_positions", self.config.num_codes)
        return self._to_codes(sequence)

    # ---- new codes

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        classes: torch.Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """New codes `(num_samples, *codes_shape)`, int64, on the model's device.

        Args:
            classes (`torch.LongTensor` of shape `(num_samples,)`, *optional*): class of each; -1: any.
            temperature: divides the logits; below 1 keeps to what is likely.
            top_k: draw from the k likeliest values of each code only.
            generator: of the random numbers; on the CPU the same seed gives the same codes.

        Raises:
            ValueError: `num_samples` or `top_k` below 1, a temperature that is not above 0, classes that there are not.
        """
        check_sampling(num_samples, temperature)
        if top_k is not None and top_k < 1:
            raise ValueError(f"expected top_k >= 1, got {top_k}")
        state, codes, written = self.start(num_samples, classes), None, []
        for _ in range(self.config.num_positions):
            logits = self.next_logits(state, codes) / temperature
            if top_k is not None and top_k < logits.shape[1]:
                logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
            device = logits.device if generator is None else generator.device
            codes = logits.softmax(-1).to(device).multinomial(1, generator=generator)[:, 0].to(logits.device)
            written.append(codes)
        return self._to_codes(torch.stack(written, dim=1))

    @torch.no_grad()
    def generate(self, num_samples: int = 1, classes: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        """New codes `(num_samples, *codes_shape)` by `GenerationMixin.generate` of transformers, for what `sample` does
        not do: greedy and beam search, top-p, contrastive and assisted ways ... Random numbers are the global ones.

        Args:
            kwargs: of `generate`: `do_sample=True, top_p=0.9`, `num_beams=4` ...
        """
        check_sampling(num_samples, kwargs.get("temperature", 1.0))
        start, length = self._start_tokens(num_samples, classes), self.config.num_positions
        processors = LogitsProcessorList([*kwargs.pop("logits_processor", ()), _OnlyCodesOfTheirCodebook(self)])
        written = self.language_model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=length,
            logits_processor=processors,
            **{"renormalize_logits": True, **kwargs},  # the codes of a codebook share all probability
        )
        firsts = self._first_token(torch.arange(length, device=written.device))
        return self._to_codes(written[:, 1:] - firsts)

    # ---- the auto-encoder

    def _shape_problem(self, config) -> str:
        theirs = tuple(getattr(config, "codes_shape", ())), getattr(config, "num_codes", None)
        own = tuple(self.config.codes_shape), self.config.num_codes
        if theirs == own:
            return ""
        found = f"codes of shape {theirs[0]} with {theirs[1]} values" if theirs[1] else "no discrete codes"
        return f"it is one of codes of shape {own[0]} with {own[1]} values, but {config.model_type} has {found}"


class _OnlyCodesOfTheirCodebook(LogitsProcessor):
    """Takes all probability from tokens that do not stand for a code of the codebook whose turn it is."""

    def __init__(self, model: CodePriorModel):
        self.model = model

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        first = self.model._first_token(input_ids.shape[1] - 1)
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        allowed[:, first : first + self.model.config.num_codes] = True
        return scores.masked_fill(~allowed, -torch.inf)


__all__ = ["CodePriorModel"]
