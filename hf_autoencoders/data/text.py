"""Texts and summaries of a corpus -> batches of tokens.

    load_text_pools: corpora by name                                     -->  TextPools, plain strings, unpaired
    token_lengths: once per run                                          -->  tokens of every row
    LengthBucketedBatches: shuffle by own seed, sort within windows      -->  row numbers of each batch
    encode_texts: of a batch, when it is needed (about 50 us a sentence) -->  int64 tensors

A summarizer that learns without parallel data sees two pools: texts to be summarized, and summaries of *other* texts,
from which it learns what a summary looks like. True pairs are needed to measure it, never to train it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .corpora import SPLIT_NAMES, _load
from .images import _check_batching, _rank_slice

logger = logging.getLogger(__name__)

BATCHES_PER_WINDOW = 50  # rows are sorted by length within so many batches: near-equal lengths, and still shuffled
ROWS_PER_CALL = 4096


@dataclass
class TextPools:
    """Unpaired training texts and summaries, and pairs to measure with.

    Attributes:
        texts: sentences or paragraphs to be summarized.
        summaries: real summaries (headlines, titles ...) of other texts: row i has nothing to do with `texts[i]`.
        validation_texts, validation_references: true pairs, row by row; none of them is in the two pools.
        name: of the corpus, for titles and cards.
        descriptions: where each of `texts`, `summaries`, `validation` comes from, and how many rows were left out.
    """

    texts: list[str]
    summaries: list[str]
    validation_texts: list[str]
    validation_references: list[str]
    name: str = ""
    descriptions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if len(self.validation_texts) != len(self.validation_references):
            raise ValueError(
                f"There are {len(self.validation_texts)} validation texts and {len(self.validation_references)} "
                "references: they must be pairs."
            )


def load_text_pools(
    texts: str = "docstrings",
    summaries: str | None = None,
    validation: str | None = None,
    *,
    text_column: str = "text",
    summary_column: str = "summary",
    config_name: str | None = None,
    revision: str | None = None,
    max_texts: int | None = None,
    lowercase: bool = False,
    seed: int = 0,
    cache_dir=None,
) -> TextPools:
    """Texts, summaries and validation pairs, each from a corpus by its name.

    Args:
        texts: `"docstrings"` (embedded: what installed packages say of their functions, see `load_docstrings`; a folder
            of that name is `./docstrings`), the id of a dataset on the Hub, a `.parquet` file, or a folder (of
            `save_to_disk` or of parquet files); split `train`, column `text_column`.
        summaries: the same, column `summary_column`. `None`: of the corpus of the texts. Of a corpus of pairs, half of
            the rows (which, is a matter of the seed) give texts and the other half summaries: no pair is seen.
        validation: a corpus with both columns: its split `validation`, else `test`, else `train`. `None`: the
            `validation` split of the corpus of the texts.
        config_name, revision: configuration, and branch, tag or commit, of `texts` on the Hub (and of the other two
            where they have the same name). Pin the revision to repeat a run.
        max_texts: keep so many texts, chosen by the seed.
        lowercase: lower-case everything. Do so where summaries are written in another case than texts (headlines), or
            a discriminator will tell them apart by that.
        cache_dir: where the embedded corpus is kept between runs.

    White space is collapsed. Rows that are empty, and training rows that are also validation rows, are left out and
    counted in the log.

    Raises:
        FileNotFoundError: there is no such corpus. ValueError: it lacks the column, nothing is left of a pool, or there
            are no validation pairs.
    """
    if max_texts is not None and max_texts < 1:
        raise ValueError(f"max_texts must be at least 1, got {max_texts}.")
    options = {"lowercase": lowercase, "cache_dir": cache_dir}

    def corpus(name):
        return _Corpus(name, *((config_name, revision) if name == texts else (None, None)), **options)

    text_corpus = corpus(texts)
    pair_corpus = text_corpus if validation is None else corpus(validation)
    summary_corpus = text_corpus if summaries is None else corpus(summaries)
    pairs, pair_note = pair_corpus.pairs(text_column, summary_column, given=validation is not None)

    of_texts = of_summaries = None  # all rows
    if summary_corpus is text_corpus and not text_corpus.embedded:
        text_corpus.need("train", text_column)
        text_corpus.need("train", summary_column, "Give a corpus of summaries by `summaries` (--summaries).")
        num_rows = len(text_corpus.splits["train"])
        order = np.random.default_rng([seed, num_rows]).permutation(num_rows)
        of_texts, of_summaries = np.sort(order[num_rows // 2 :]), np.sort(order[: num_rows // 2])
    text_rows, text_note = text_corpus.pool("texts", text_column, of_texts, pairs[0])
    summary_rows, summary_note = summary_corpus.pool("summaries", summary_column, of_summaries, pairs[1])
    if max_texts is not None and max_texts < len(text_rows):
        kept = np.sort(np.random.default_rng(seed).permutation(len(text_rows))[:max_texts])
        text_rows = [text_rows[row] for row in kept]
        text_note += f", {max_texts} of them kept"
    notes = {"texts": text_note, "summaries": summary_note, "validation": pair_note}
    for what, note in notes.items():
        logger.info("%s: %s", what, note)
    names = dict.fromkeys((text_corpus.label, summary_corpus.label))
    return TextPools(text_rows, summary_rows, *pairs, name=" + ".join(names), descriptions=notes)


class _Corpus:
    """A corpus of strings: its splits, and what was left out of them."""

    def __init__(self, name, config_name, revision, *, lowercase: bool, cache_dir):
        self.name, self.lowercase, self.embedded = str(name), lowercase, str(name) == "docstrings"
        path = Path(self.name).expanduser()
        self.label = path.stem if path.exists() and not self.embedded else self.name  # no paths in names and cards
        if self.embedded:
            from .docstrings import load_docstrings

            if config_name or revision:
                raise ValueError("The embedded corpus 'docstrings' has no configurations or revisions.")
            self.splits = load_docstrings(cache_dir)
        else:
            loaded = _load(self.name, config_name, revision, False)
            self.splits = {SPLIT_NAMES.get(str(key), str(key)): split for key, split in loaded.items()}
            if len(self.splits) == 1:
                self.splits = {"train": next(iter(self.splits.values()))}

    def need(self, split: str, column: str, advice: str = "Name the right one.") -> None:
        if split not in self.splits:
            raise ValueError(f"Corpus {self.name!r} has no split {split!r}. Its splits are {', '.join(self.splits)}.")
        features = self.splits[split].features
        columns = ", ".join(f"{name} ({getattr(kind, 'dtype', kind)})" for name, kind in features.items())
        if column not in features:
            raise ValueError(f"Corpus {self.name!r} has no column {column!r}. Its columns are: {columns}. {advice}")
        if getattr(features[column], "dtype", None) not in ("string", "large_string"):
            raise ValueError(f"Column {column!r} of corpus {self.name!r} holds no text. Its columns are: {columns}.")

    def read(self, split: str, column: str, rows=None) -> list[str]:
        """The column's strings, cleaned; those that are missing or blank are ''."""
        data = self.splits[split] if rows is None else self.splits[split].select(rows)
        strings = (" ".join(text.split()) if text else "" for text in data[column])
        return [text.lower() for text in strings] if self.lowercase else list(strings)

    def pool(self, kind: str, column: str, rows, held_out: list[str]) -> tuple[list[str], str]:
        """The strings of a column to train on, and what to say of them."""
        split = "train"
        if self.embedded:
            split, column = kind, {"texts": "text", "summaries": "summary"}[kind]
        self.need(split, column)
        strings, held_out = self.read(split, column, rows), set(held_out)
        filled = [string for string in strings if string]
        kept = [string for string in filled if string not in held_out]
        left_out = {"empty": len(strings) - len(filled), "also in validation": len(filled) - len(kept)}
        note = f"{len(kept)} rows of column {column!r} of {self.label} ({split}){_left_out(left_out)}"
        if not kept:
            raise ValueError(f"There are no {kind} to train on: {note}.")
        return kept, note

    def pairs(self, text_column: str, summary_column: str, *, given: bool) -> tuple[tuple[list, list], str]:
        order = ("validation", "test", "train") if given else ("validation",)
        split = next((name for name in order if name in self.splits), None)
        advice = "Give true pairs of text and summary by `validation` (--validation)."
        if split is None:
            raise ValueError(
                f"There are no validation pairs: corpus {self.name!r} has no split 'validation' "
                f"(its splits are {', '.join(self.splits)}). {advice}"
            )
        if self.embedded:
            text_column, summary_column = "text", "summary"
        self.need(split, text_column, advice)
        self.need(split, summary_column, advice)
        both = list(zip(self.read(split, text_column), self.read(split, summary_column), strict=True))
        kept = [pair for pair in both if all(pair)]
        note = f"{len(kept)} pairs of {self.label} ({split}){_left_out({'empty': len(both) - len(kept)})}"
        if not kept:
            raise ValueError(f"There are no validation pairs: {note}. {advice}")
        return tuple(map(list, zip(*kept, strict=True))), note


def _left_out(counts: dict[str, int]) -> str:
    return "".join(f", {count} left out ({why})" for why, count in counts.items() if count)


# ---- tokens


class EncodedTexts(dict):
    """`input_ids` and `attention_mask`, int64 (batch, longest), to be passed on as `model(**encoded)`.

    Attributes:
        num_truncated: rows that were cut to the most tokens allowed.
    """

    num_truncated: int = 0


_told: set[int] = set()


def encode_texts(tokenizer, texts: Sequence[str], max_tokens: int) -> EncodedTexts:
    """Token ids of a batch, padded on the right to its longest row.

    Rows of more than `max_tokens` tokens (the end of sequence counts) are cut to that, the end of sequence kept. How
    many, is in `num_truncated` of the result, and the first time in the log; `token_lengths` tells it of a whole pool.

    Raises:
        ValueError: there are no texts, `max_tokens` is below 2, or the tokenizer has no padding token.
    """
    if not len(texts):
        raise ValueError("There are no texts to encode.")
    if max_tokens < 2:
        raise ValueError(f"max_tokens must be at least 2 (a token and the end of sequence), got {max_tokens}.")
    if tokenizer.pad_token_id is None:
        raise ValueError("The tokenizer has no padding token: set tokenizer.pad_token.")
    rows = tokenizer(list(texts), verbose=False)["input_ids"]
    too_long = [number for number, ids in enumerate(rows) if len(ids) > max_tokens]
    if too_long:
        cut = tokenizer([texts[number] for number in too_long], truncation=True, max_length=max_tokens)["input_ids"]
        for number, ids in zip(too_long, cut, strict=True):
            rows[number] = ids
        if max_tokens not in _told:
            _told.add(max_tokens)
            logger.warning(
                "%d of %d texts are longer than %d tokens and are cut; said once.", len(too_long), len(rows), max_tokens
            )
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    mask = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.full(mask.shape, tokenizer.pad_token_id, dtype=np.int64)
    input_ids[mask] = np.concatenate(rows)
    encoded = EncodedTexts(
        input_ids=torch.from_numpy(input_ids), attention_mask=torch.from_numpy(mask.astype(np.int64))
    )
    encoded.num_truncated = len(too_long)
    return encoded


def token_lengths(tokenizer, texts: Sequence[str], max_tokens: int | None = None) -> np.ndarray:
    """Tokens of every text, the end of sequence included, at most `max_tokens`: int64 (num_texts,), as
    `LengthBucketedBatches` takes them. How many texts are longer is said in the log."""
    lengths = np.empty(len(texts), dtype=np.int64)
    for start in range(0, len(texts), ROWS_PER_CALL):
        rows = tokenizer(list(texts[start : start + ROWS_PER_CALL]), verbose=False)["input_ids"]
        lengths[start : start + len(rows)] = [len(ids) for ids in rows]
    if max_tokens is None:
        return lengths
    num_long = int((lengths > max_tokens).sum())
    if num_long:
        logger.warning(
            "%d of %d texts (%.1f %%) are longer than %d tokens (the longest has %d): they will be cut.",
            num_long,
            len(texts),
            100 * num_long / len(texts),
            max_tokens,
            lengths.max(),
        )
    return np.minimum(lengths, max_tokens)


# ---- batches


class LengthBucketedBatches:
    """Batches of rows of near-equal length, the same whatever the number of processes.

    Rows are shuffled, sorted by length within windows of 50 batches, cut into batches, and the batches are shuffled:
    every row once an epoch, little padding. As with `ImageBatches`, `batch_size` is global, rank r gets its contiguous
    slice of each global batch, the ranks' slices one after the other are the single-process batch, and the order of an
    epoch depends on (seed, epoch) only: `set_epoch(e)`, then `iterate(start_batch=k)` continues a run exactly.
    Rows that make no full batch come last (`drop_last` leaves them out: others in each epoch, of any length).

    Yields dicts: `rows`, int64 (rank_batch_size,), the numbers of this rank's rows; `global_size` (int), the rows of
    all ranks together.

    Args:
        lengths: of every row, in tokens (`token_lengths`) or any other unit.
        shuffle: `False`: windows and batches in the corpus' order, the same in every epoch.

    Raises:
        ValueError: no batch comes out at all; or the last, partial batch has fewer rows than processes.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        _check_batching(batch_size, seed, process_index, num_processes)
        self.lengths = np.asarray(lengths)
        num_rows = len(self.lengths)
        if num_rows == 0:
            raise ValueError("The pool is empty: there are no rows to batch.")
        if drop_last and num_rows < batch_size:
            raise ValueError(
                f"{num_rows} rows make no full batch of {batch_size}: lower batch_size or set drop_last to False."
            )
        last = num_rows % batch_size
        if not drop_last and 0 < last < num_processes:
            raise ValueError(
                f"The last batch of {num_rows} rows has {last} of {batch_size}, fewer than the {num_processes} "
                "processes: set drop_last to True or choose another batch_size."
            )
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.process_index, self.num_processes = process_index, num_processes
        self.set_epoch(0)

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        num_rows = len(self.lengths)
        return num_rows // self.batch_size if self.drop_last else -(-num_rows // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration goes through: it fixes the order."""
        self.epoch = epoch
        generator = np.random.default_rng([self.seed, epoch])
        num_rows = len(self.lengths)
        order = generator.permutation(num_rows) if self.shuffle else np.arange(num_rows)
        full = num_rows - num_rows % self.batch_size
        window = self.batch_size * BATCHES_PER_WINDOW
        windows = [order[start : min(start + window, full)] for start in range(0, full, window)]
        by_length = [rows[np.argsort(self.lengths[rows], kind="stable")] for rows in windows]
        batches = np.concatenate([*by_length, order[:0]]).reshape(-1, self.batch_size)
        if self.shuffle:
            batches = batches[generator.permutation(len(batches))]
        self._order = np.concatenate([batches.reshape(-1), order[full:]]).astype(np.int64)

    def rows(self, batch: int) -> np.ndarray:
        """Row numbers of the whole global batch, int64 (global_batch_size,)."""
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def __iter__(self) -> Iterator[dict]:
        return self.iterate()

    def iterate(self, start_batch: int = 0) -> Iterator[dict]:
        """This rank's part of batches `start_batch`, `start_batch + 1`, ... of the epoch."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch must be in 0..{len(self)} (batches per epoch), got {start_batch}.")
        return self._iterate(start_batch, self._order)

    def _iterate(self, start_batch: int, order: np.ndarray) -> Iterator[dict]:
        for batch in range(start_batch, len(self)):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            own = _rank_slice(len(rows), self.process_index, self.num_processes)
            yield {"rows": rows[own], "global_size": len(rows)}
