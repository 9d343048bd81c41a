"""A tokenizer of one's own, for a corpus of one's own."""

import logging
import re
from collections.abc import Iterable
from io import BytesIO

import numpy as np

logger = logging.getLogger(__name__)

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # 0, 1, 2, as T5 has them
TRAINING_THREADS = 4  # fixed: sums of floats, and so the vocabulary, depend on it
CONTROL_SCORE = -1000.0  # of bytes and special tokens: no segmentation of a text that merely spells them prefers them


def text_normalizer(lowercase: bool = False):
    """What is done to a text before it is cut into pieces: Unicode NFKC, lower case if wanted, white space (and what
    looks like none) collapsed to single spaces, none at the ends. A `tokenizers` normalizer."""
    from tokenizers import Regex, normalizers

    steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])]
    return normalizers.Sequence(
        [*steps, normalizers.Replace(Regex("[\\s\u200b\u2581\ufeff]+"), " "), normalizers.Strip()]
    )


def train_tokenizer(
    lines: Iterable[str],
    vocab_size: int,
    *,
    lowercase: bool = False,
    num_sentinels: int = 100,
    max_lines: int | None = 200_000,
    model_max_length: int = 512,
    seed: int = 0,
):
    """A `PreTrainedTokenizerFast` in the manner of T5 (Raffel et al. 2020), its pieces learnt from `lines`: a unigram
    model (Kudo 2018) by SentencePiece.

    Ids: `<pad>` 0, `</s>` 1, `<unk>` 2, 256 bytes, the pieces, then `<extra_id_{num_sentinels - 1}>` ...
    `<extra_id_0>`. All of them are in the vocabulary: `len(tokenizer)`, `tokenizer.vocab_size` and the `vocab_size`
    asked for are one number, the one a model's configuration takes. Characters without a piece become their UTF-8
    bytes, so any text comes back, normalised (`text_normalizer`), and `<unk>` never occurs. The ids of a text are those
    that SentencePiece gives to the normalised text, followed by `</s>`.

    Args:
        lines: sentences; texts and summaries alike.
        lowercase: the tokenizer lower-cases whatever it is given.
        num_sentinels: how many `<extra_id_N>`, for masked spans.
        max_lines: learn from so many lines, chosen by the seed; `None`: from all.
        model_max_length: the tokenizer's own limit, when it is asked to truncate without saying to what.

    The same lines and settings give the same tokenizer.

    Raises:
        ValueError: there are no lines; or they are too few, or of too many characters, for the size of the vocabulary.
    """
    import sentencepiece
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = text_normalizer(lowercase)
    lines = [line for line in map(normalizer.normalize_str, lines) if line]
    if not lines:
        raise ValueError("There are no lines to learn a vocabulary from.")
    if num_sentinels < 0:
        raise ValueError(f"num_sentinels must not be negative, got {num_sentinels}.")
    smallest = 3 + 256 + num_sentinels
    if vocab_size <= smallest:
        raise ValueError(
            f"vocab_size must be above {smallest} (3 special tokens, 256 bytes, {num_sentinels} sentinels), "
            f"got {vocab_size}."
        )
    if max_lines is not None and max_lines < len(lines):
        logger.info("The vocabulary is learnt from %d of %d lines.", max_lines, len(lines))
        kept = np.sort(np.random.default_rng(seed).permutation(len(lines))[:max_lines])
        lines = [lines[number] for number in kept]

    model = BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size - num_sentinels,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece=PAD,
            eos_piece=EOS,
            unk_piece=UNK,
            byte_fallback=True,
            character_coverage=0.99995,  # rarer characters are bytes
            required_chars="<>x0123456789ABCDEF",  # else a text that spells "<0x41>" would come out as that byte
            normalization_rule_name="identity",  # done already
            max_sentence_length=max(len(line.encode()) for line in lines) + 1,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_explanation(str(error), len(lines), vocab_size, num_sentinels)) from error
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    def entry(number: int) -> tuple[str, float]:
        plain = not (pieces.is_control(number) or pieces.is_unknown(number) or pieces.is_byte(number))
        return pieces.id_to_piece(number), pieces.get_score(number) if plain else CONTROL_SCORE

    sentinels = [f"<extra_id_{number}>" for number in reversed(range(num_sentinels))]
    vocabulary = [entry(number) for number in range(pieces.get_piece_size())]
    vocabulary += [(sentinel, CONTROL_SCORE) for sentinel in sentinels]

    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, 1)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens=sentinels,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        truncation_side="right",
        clean_up_tokenization_spaces=False,
    )
    if len(wrapped) != vocab_size:
        raise RuntimeError(f"The tokenizer has {len(wrapped)} tokens instead of {vocab_size}.")
    return wrapped


def _explanation(error: str, num_lines: int, vocab_size: int, num_sentinels: int) -> str:
    """SentencePiece's message, in the terms of `train_tokenizer`."""
    most = re.search(r"value <= (\d+)", error)
    if most:
        return (
            f"{num_lines} lines are too few for a vocabulary of {vocab_size}: give more lines, or a vocab_size of at "
            f"most {int(most[1]) + num_sentinels}."
        )
    least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", error)
    if least:
        return (
            f"A vocabulary of {vocab_size} is too small for the characters of these lines: vocab_size must be at least "
            f"{int(least[1]) + num_sentinels}."
        )
    return f"SentencePiece cannot learn a vocabulary of {vocab_size} from {num_lines} lines: {error}"
