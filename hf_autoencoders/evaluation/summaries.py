"""How good are summaries, and do they hold what is needed to restore the text?

    rouge             overlap with references that the summarizer has never seen
    text_statistics   length, copying, repetition: without them no ROUGE can be read
    readability       perplexity under a language model of real summaries, see `LanguageModelJudge`
    summary_table     all of these, beside what extraction without a model reaches at the same length
    evaluate_summarizer   a model's summaries in that table, and what its reconstructor makes of them

ROUGE here is F1 times 100 as `rouge-score` computes it with its stemmer. It rises with length up to that of the
references and beyond, so it means something only beside baselines of equal length, which the table therefore has.
"""

import datetime
import importlib.metadata
import importlib.util
import logging
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..data.text import encode_texts
from .checks import check_positive
from .evaluate import describe_machine, library_versions, variant_name
from .extractive import (
    BigramCompressor,
    count_words,
    lead_words,
    oracle_extract,
    random_words,
    rouge_tokenizer,
    word_key,
)
from .readability import LanguageModelJudge

logger = logging.getLogger(__name__)

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
COMMON_WORDS = 100  # the commonest words of the texts carry little content
BIGRAM_WORDS = 8  # default length of the bigram search
NO_ROUGE = "ROUGE is computed by rouge-score, which is not installed: pip install rouge-score"


# Summaries as strings


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), F1 times 100, by `rouge-score` with its stemmer.

    Args:
        predictions, references: as many of the one as of the other, row by row.

    Returns:
        `rouge1`, `rouge2`, `rougeL`, in [0, 100]. An empty prediction scores 0.

    Raises:
        ImportError: `rouge-score` is not installed.
    """
    _check_pairs("predictions", predictions, "references", references)
    tokenizer = rouge_tokenizer()
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES), tokenizer=tokenizer)
    scores = [
        scorer.score(reference, prediction) for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {name: 100 * float(np.mean([score[name].fmeasure for score in scores])) for name in ROUGE_TYPES}


def has_rouge_score() -> bool:
    """Whether the library that computes ROUGE is installed."""
    return importlib.util.find_spec("rouge_score") is not None


def text_statistics(summaries: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """What summaries look like. Words are what white space separates, compared by `word_key`.

    Args:
        summaries, texts: each summary and what it summarizes.

    Returns:
        `words`: mean number of a summary. `copy_rate`: share of all summary words that occur in their text.
        `repetition_rate`: share that occur earlier in the same summary. `novel_bigram_rate`: share of pairs of
        neighbours that are not neighbours in the text. `distinct_rate`: different summaries among all.
        `empty_rate`: share without a word. Shares lie in [0, 1]; of nothing they are 0.
    """
    _check_pairs("summaries", summaries, "texts", texts)
    words = copied = repeated = bigrams = novel = 0
    for summary, text in zip(summaries, texts, strict=True):
        keys, source = _keys(summary), _keys(text)
        known, source_pairs = set(source), set(zip(source, source[1:], strict=False))
        pairs = list(zip(keys, keys[1:], strict=False))
        words += len(keys)
        copied += sum(key in known for key in keys)
        repeated += len(keys) - len(set(keys))
        bigrams += len(pairs)
        novel += sum(pair not in source_pairs for pair in pairs)
    return {
        "words": words / len(summaries),
        "copy_rate": copied / max(1, words),
        "repetition_rate": repeated / max(1, words),
        "novel_bigram_rate": novel / max(1, bigrams),
        "distinct_rate": len({" ".join(_keys(summary)) for summary in summaries}) / len(summaries),
        "empty_rate": sum(not summary.split() for summary in summaries) / len(summaries),
    }


def summary_table(
    predictions: dict[str, Sequence[str]],
    texts: Sequence[str],
    references: Sequence[str],
    *,
    compressor: BigramCompressor | None = None,
    judge: LanguageModelJudge | None = None,
    num_words: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Measure summaries beside baselines of the same length.

    Args:
        predictions: name to summaries, one for each text. A name of a baseline is not allowed.
        texts, references: the pairs, which no prediction may have been trained on.
        compressor: gives the rows `log_odds`, `bigram` and `bigram_8`; they are left out without it.
        judge: gives `perplexity`; None without it.
        num_words: N, the length of the baselines; by default the mean of the first prediction, rounded.
        seed: of the random words.

    Returns:
        One dictionary a row: `name`, `label` (in words), `rouge1`, `rouge2`, `rougeL` (None of the references, and
        where `rouge-score` is missing), what `text_statistics` tells, `perplexity` per word. The rows: the predictions;
        `lead`, the first N words; `random`, N words in order; `full_text`; `log_odds`, `bigram`, extraction of N words
        by the two pools, and `bigram_8` of 8 where N is another; `oracle`, the best N or fewer words for those who know
        the reference; `reference`.
    """
    _check_pairs("texts", texts, "references", references)
    if num_words is None:
        if not predictions:
            raise ValueError("without `predictions`, `num_words` must say how long the baselines shall be")
        first = next(iter(predictions.values()))
        num_words = max(1, round(sum(len(summary.split()) for summary in first) / max(1, len(first))))
    check_positive("num_words", num_words)

    rows: dict[str, tuple[str, Sequence[str]]] = {
        "lead": (f"first {num_words} words", [lead_words(text, num_words) for text in texts]),
        "random": (
            f"{num_words} random words",
            [random_words(text, num_words, (seed, row)) for row, text in enumerate(texts)],
        ),
        "full_text": ("full text", texts),
    }
    if compressor is not None:
        keep = compressor.log_odds.keep
        rows["log_odds"] = (f"log-odds, {num_words} words", [keep(text, max_words=num_words) for text in texts])
        rows["bigram"] = (f"bigram search, {num_words} words", compressor.compress_all(texts, num_words))
        if num_words != BIGRAM_WORDS:
            label = f"bigram search, {BIGRAM_WORDS} words"
            rows[f"bigram_{BIGRAM_WORDS}"] = (label, compressor.compress_all(texts, BIGRAM_WORDS))
    if has_rouge_score():
        best = [oracle_extract(*pair, num_words) for pair in zip(texts, references, strict=True)]
        rows["oracle"] = (f"oracle, up to {num_words} words", best)
    rows["reference"] = ("reference", references)
    if taken := set(predictions) & set(rows):
        raise ValueError(f"{sorted(taken)} are names of baselines: call these predictions something else")

    table = []
    rows = {name: (name, summaries) for name, summaries in predictions.items()} | rows
    for name, (label, summaries) in tqdm(rows.items(), desc="measure summaries", disable=not progress, leave=False):
        _check_pairs(name, summaries, "texts", texts)
        scores = dict.fromkeys(ROUGE_TYPES)
        if name != "reference" and has_rouge_score():
            scores = rouge(summaries, references)
        perplexity = None if judge is None else judge.perplexity(summaries)
        table.append(
            {"name": name, "label": label, **scores, **text_statistics(summaries, texts), "perplexity": perplexity}
        )
    return table


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `summary_table` as Markdown, aligned so that it can be read in a terminal, too."""
    columns = {
        "": lambda row: row["label"],
        "ROUGE-1": lambda row: _number(row["rouge1"], ".1f"),
        "ROUGE-2": lambda row: _number(row["rouge2"], ".1f"),
        "ROUGE-L": lambda row: _number(row["rougeL"], ".1f"),
        "words": lambda row: _number(row["words"], ".1f"),
        "copied": lambda row: _number(row["copy_rate"], ".0%"),
        "repeated": lambda row: _number(row["repetition_rate"], ".1%"),
        "perplexity": lambda row: _number(row["perplexity"], ".0f"),
    }
    cells = [list(columns), *([show(row) for show in columns.values()] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(row: list[str]) -> str:
        first, *others = (
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    return "\n".join(line(row) for row in [cells[0], rule, *cells[1:]])


# Summaries of a model


def evaluate_summarizer(
    model,
    tokenizer,
    pools,
    *,
    num_words: int | None = None,
    num_beams: int = 4,
    no_repeat_ngram_size: int = 2,
    batch_size: int = 64,
    max_examples: int | None = None,
    num_shown: int = 5,
    seed: int = 0,
    corpus: dict[str, Any] | None = None,
    command: str | None = None,
    judge: LanguageModelJudge | None = None,
    compressor: BigramCompressor | None = None,
    cache_dir=None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a trained summarizer on the validation pairs of `pools`; its pools of texts and summaries make baselines.

    Args:
        model: a `Seq2Seq2SeqForConditionalGeneration`; evaluated where it is, in its dtype, in evaluation mode.
        tokenizer: its tokenizer, a fast one.
        pools: a `TextPools`.
        num_words: write exactly so many words; by default the model ends where it wants to.
        num_beams, no_repeat_ngram_size: of `generate`.
        batch_size: texts at once.
        max_examples: measure on so many pairs, drawn by the seed; on all by default.
        num_shown: how many of them are kept as examples, drawn by the seed.
        seed: of what is drawn, the random words, the shuffled summaries and the judge.
        corpus: what the numbers were measured on; name and sources of `pools` by default. Rows are added.
        command: how to repeat this; the command line of this process by default.
        judge, compressor: made of the pools by default; give them to use them more than once.
        cache_dir: of the judge.
        progress: show progress bars.

    Returns:
        A dictionary ready for JSON, as that of `evaluate_model`, and `table` (rows of `summary_table`) and `examples`
        (`text`, `summary`, `reference`, `reconstruction`). In `metrics`, beside the model's row of the table:

        `length_deviation`: mean |words written - words asked for|, the latter `num_words` or `config.summary_words`.
        `truncated_rate`: share of texts that were cut to `config.max_source_tokens`.
        `reconstruction_accuracy`: share of the text's tokens, its end included, that the reconstructor predicts from
        the summary and the tokens before; `reconstruction_loss`: nats per token. `shuffled_...`: the same from the
        summary of another text; `content_...`: over the tokens of words that are not among the `COMMON_WORDS`
        commonest of the texts. `accuracy_ratio`, `content_accuracy_ratio`: own over shuffled; 1 is a summary that
        tells nothing.
    """
    if not pools.validation_texts:
        raise ValueError("there are no validation pairs to measure with")
    check_positive("batch_size", batch_size)
    check_positive("num_beams", num_beams)
    rng = np.random.default_rng(seed)
    rows = np.arange(len(pools.validation_texts))
    if max_examples is not None:
        check_positive("max_examples", max_examples)
        rows = np.sort(rng.permutation(rows)[:max_examples])
    texts = [pools.validation_texts[row] for row in rows]
    references = [pools.validation_references[row] for row in rows]
    wanted = model.config.summary_words if num_words is None else num_words

    not_measured: dict[str, str] = {}
    if not has_rouge_score():
        not_measured["rouge"] = NO_ROUGE
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_words": num_words,
        "num_beams": num_beams,
        "no_repeat_ngram_size": no_repeat_ngram_size,
    }
    if compressor is None:
        compressor = BigramCompressor(pools.texts, pools.summaries)
    if judge is None:
        judge = LanguageModelJudge(pools.summaries, tokenizer, seed=seed, cache_dir=cache_dir)
    settings["judge_held_out_perplexity"] = judge.held_out_perplexity

    was_training = model.training
    model.eval()
    try:
        summaries = summarize_texts(
            model,
            tokenizer,
            texts,
            num_words=num_words,
            num_beams=num_beams,
            no_repeat_ngram_size=no_repeat_ngram_size,
            batch_size=batch_size,
            progress=progress,
        )
        common = {word for word, _ in count_words("texts", pools.texts).most_common(COMMON_WORDS)}
        metrics = {
            "length_deviation": float(np.mean([abs(len(summary.split()) - wanted) for summary in summaries])),
            **reconstruction_accuracy(
                model, tokenizer, texts, summaries, common_words=common, batch_size=batch_size, progress=progress
            ),
        }
        if len(texts) > 1:
            partners = np.empty(len(texts), dtype=int)
            order = rng.permutation(len(texts))
            partners[order] = np.roll(order, 1)
            shuffled = reconstruction_accuracy(
                model,
                tokenizer,
                texts,
                [summaries[row] for row in partners],
                common_words=common,
                batch_size=batch_size,
                progress=progress,
            )
            shuffled.pop("truncated_rate")
            metrics |= {f"shuffled_{name}": value for name, value in shuffled.items()}
            for kind in ("", "content_"):
                below = metrics.get(f"shuffled_{kind}reconstruction_accuracy")
                if below:
                    metrics[f"{kind}accuracy_ratio"] = metrics[f"{kind}reconstruction_accuracy"] / below
                else:
                    not_measured[f"{kind}accuracy_ratio"] = "nothing is right with a shuffled summary"
        else:
            not_measured["shuffled_reconstruction_accuracy"] = "one pair cannot be shuffled"
        shown = np.sort(rng.permutation(len(texts))[:num_shown])
        restored = restore_texts(model, tokenizer, [summaries[row] for row in shown], batch_size=batch_size)
    finally:
        model.train(was_training)

    table = summary_table(
        {"model": summaries},
        texts,
        references,
        compressor=compressor,
        judge=judge,
        seed=seed,
        progress=progress,
    )
    own, *others = ({k: v for k, v in row.items() if isinstance(v, float)} for row in table)
    names = [row["name"] for row in table[1:]]
    corpus = corpus or {"name": pools.name, "split": "validation", **pools.descriptions}
    versions = library_versions()
    for name in ("rouge-score", "tokenizers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "model_type": model.config.model_type,
        "name": variant_name(model.config.model_type),
        "corpus": {
            **corpus,
            "rows": len(texts),
            "train_texts": len(pools.texts),
            "train_summaries": len(pools.summaries),
        },
        "metrics": own | metrics,
        "baselines": {f"{name}_{k}": v for name, row in zip(names, others, strict=True) for k, v in row.items()},
        "table": table,
        "examples": [
            {
                "text": texts[row],
                "summary": summaries[row],
                "reference": references[row],
                "reconstruction": reconstruction,
            }
            for row, reconstruction in zip(shown, restored, strict=True)
        ],
        "not_measured": not_measured,
        "settings": settings,
        "seed": seed,
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": describe_machine(model.device),
        "versions": versions,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


@torch.inference_mode()
def summarize_texts(
    model,
    tokenizer,
    texts: Sequence[str],
    *,
    num_words: int | None = None,
    batch_size: int = 64,
    progress: bool = False,
    **generate_kwargs,
) -> list[str]:
    """Summaries of texts, in their order; `generate_kwargs` go to `generate`. White space in them is collapsed."""
    result = [""] * len(texts)
    if num_words is not None:
        generate_kwargs["num_words"] = num_words
    for rows in _batches(texts, batch_size, "summarize" if progress else None):
        encoded = encode_texts(tokenizer, [texts[row] for row in rows], model.config.max_source_tokens)
        ids = model.generate(**{name: tensor.to(model.device) for name, tensor in encoded.items()}, **generate_kwargs)
        for row, summary in zip(rows, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            result[row] = " ".join(summary.split())
    return result


@torch.inference_mode()
def restore_texts(model, tokenizer, summaries: Sequence[str], *, batch_size: int = 64, **generate_kwargs) -> list[str]:
    """What the reconstructor writes when it has read the summaries alone; in their order. No three tokens come twice in
    a row of them, unless `no_repeat_ngram_size` says otherwise."""
    generate_kwargs = {"no_repeat_ngram_size": 3, **generate_kwargs}
    result = [""] * len(summaries)
    for rows in _batches(summaries, batch_size):
        encoded = encode_texts(tokenizer, [summaries[row] for row in rows], model.config.max_source_tokens)
        ids = model.reconstruct(
            encoded["input_ids"].to(model.device), encoded["attention_mask"].to(model.device), **generate_kwargs
        )
        for row, text in zip(rows, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            result[row] = text
    return result


@torch.inference_mode()
def reconstruction_accuracy(
    model,
    tokenizer,
    texts: Sequence[str],
    summaries: Sequence[str],
    *,
    common_words: set[str] = frozenset(),
    batch_size: int = 64,
    progress: bool = False,
) -> dict[str, float]:
    """How well the reconstructor predicts each token of the texts from the summaries and the tokens before it.

    Args:
        texts, summaries: row by row; the summaries as strings, which is all that a reader of them has.
        common_words: `word_key`s of words that are not content.

    Returns:
        `reconstruction_accuracy` (share of all tokens, the end included), `reconstruction_loss` (nats per token),
        `content_reconstruction_accuracy` (over the tokens of words not in `common_words`; missing where there are
        none), `truncated_rate` (share of texts that were cut).
    """
    _check_pairs("summaries", summaries, "texts", texts)
    right = content_right = nats = 0.0
    tokens = content_tokens = truncated = 0
    for rows in _batches(texts, batch_size, "reconstruct" if progress else None):
        batch = [texts[row] for row in rows]
        encoded = encode_texts(tokenizer, batch, model.config.max_source_tokens)
        code = encode_texts(tokenizer, [summaries[row] for row in rows], model.config.max_source_tokens)
        truncated += encoded.num_truncated
        input_ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        logits = model(
            input_ids=input_ids.to(model.device),
            attention_mask=encoded["attention_mask"].to(model.device),
            summary_ids=code["input_ids"].to(model.device),
            summary_mask=code["attention_mask"].to(model.device),
        ).reconstruction_logits
        hits = (logits.argmax(-1).cpu() == input_ids) & mask
        losses = F.cross_entropy(logits.float().flatten(0, 1), input_ids.flatten().to(model.device), reduction="none")
        content = _content_tokens(tokenizer, batch, input_ids.shape, common_words) & mask
        right += hits.sum().item()
        tokens += mask.sum().item()
        nats += losses.cpu()[mask.flatten()].double().sum().item()
        content_right += (hits & content).sum().item()
        content_tokens += content.sum().item()
    result = {"reconstruction_accuracy": right / tokens, "reconstruction_loss": nats / tokens}
    if content_tokens:
        result["content_reconstruction_accuracy"] = content_right / content_tokens
    return result | {"truncated_rate": truncated / len(texts)}


def _content_tokens(tokenizer, texts: list[str], shape: torch.Size, common_words: set[str]) -> torch.Tensor:
    """Bool of `shape` (batch_size, length): which tokens lie in words that are not common. Needs a fast tokenizer."""
    content, without_content = torch.zeros(shape, dtype=torch.bool), {*common_words, ""}
    offsets = tokenizer(texts, return_offsets_mapping=True, truncation=True, max_length=shape[1], verbose=False)[
        "offset_mapping"
    ]
    for row, (text, places) in enumerate(zip(texts, offsets, strict=True)):
        counts = np.zeros(len(text) + 1, dtype=bool)  # the last one is of tokens without characters
        for word in re.finditer(r"\S+", text):
            counts[word.start() : word.end()] = word_key(word.group()) not in without_content
        ends = np.array([end - 1 if end > begin else len(text) for begin, end in places])
        content[row, : len(ends)] = torch.from_numpy(counts[ends])
    return content


def _batches(texts: Sequence[str], batch_size: int, progress: str | None = None):
    """Row numbers in batches of near-equal length, the longest first: what does not fit into memory shows soon."""
    check_positive("batch_size", batch_size)
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    with tqdm(total=len(order), desc=progress, unit="text", disable=progress is None, leave=False) as bar:
        for first in range(0, len(order), batch_size):
            yield order[first : first + batch_size]
            bar.update(len(order[first : first + batch_size]))


def _keys(text: str) -> list[str]:
    return [word_key(word) or word for word in text.split()]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _check_pairs(first_name: str, first: Sequence[str], second_name: str, second: Sequence[str]) -> None:
    for name, values in ((first_name, first), (second_name, second)):
        if isinstance(values, str) or not len(values):
            found = "one string" if isinstance(values, str) else "nothing"
            raise ValueError(f"`{name}` must be a list of at least one string, got {found}")
    if len(first) != len(second):
        raise ValueError(f"`{first_name}` and `{second_name}` must be pairs, got {len(first)} and {len(second)}")
