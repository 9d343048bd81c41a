"""Training runs on texts: unpaired pools, tasks that make pairs out of them, batches, scores and examples.

Everything else about a run is in `training_run`. What is drawn for a batch (which summary is hidden in which text,
which words are dropped) is drawn for the whole batch by a generator of (seed, epoch, place in the epoch), so that any
number of processes sees the same examples, and a resumed run goes on with those it would have had.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from .data.text import LengthBucketedBatches, encode_texts, load_text_pools, token_lengths
from .data.text_noise import SimilarRows, drop_words, hide_in_carrier, random_span
from .evaluation.extractive import BigramCompressor
from .evaluation.summaries import (
    evaluate_summarizer,
    format_table,
    reconstruction_accuracy,
    restore_texts,
    rouge,
    summarize_texts,
    text_statistics,
)
from .training_parts import Batch
from .training_run import TrainingError, TrainingRun, as_training_error

BATCHES_PER_WINDOW = 16  # examples of a task are made for so many batches at once, and sorted by length within them

Pair = tuple[str, str]


# --------------------------------------------------------------------------------------------------------------- tasks


class TextTasks:
    """Pairs of strings made of two unpaired pools: each method draws one, with a `numpy` generator.

    Args:
        texts, summaries: the pools.
        pseudo_summaries: one for each text (`pseudo_summaries`), where `pseudo_pair` or `restored_pair` need them.
    """

    def __init__(self, texts: Sequence[str], summaries: Sequence[str], pseudo_summaries: Sequence[str] = ()):
        self.texts, self.summaries, self.pseudo_summaries = texts, summaries, pseudo_summaries
        self._similar: np.ndarray | None = None

    def find_similar(self, num_rows: int = 8, least_coverage: float = 0.5) -> None:
        """Find the texts that have the most in common with each summary: `hidden_pair` hides it in one of these, and
        `similar_pair` gives those that have at least `least_coverage` of it."""
        self._similar, coverage = SimilarRows(self.texts).find(self.summaries, num_rows, measure="coverage")
        self._pairs = np.argwhere((coverage >= least_coverage) & (self._similar >= 0))

    def span_pair(self, rng: np.random.Generator) -> Pair:
        """A text, and some words of it in a row: learn to copy."""
        text = _draw(self.texts, rng)
        return text, " ".join(random_span(text.split(), rng))

    def hidden_pair(self, rng: np.random.Generator, share_similar: float = 0.8) -> Pair:
        """A real summary scattered over a text, and the summary: learn to find what belongs into one. The text is a
        similar one in `share_similar` of the draws, else any."""
        row = int(rng.integers(len(self.summaries)))
        carrier = _draw(self.texts, rng)
        if self._similar is not None and rng.random() < share_similar:
            found = self._similar[row][self._similar[row] >= 0]
            carrier = self.texts[_draw(found, rng)] if len(found) else carrier
        summary = self.summaries[row]
        return " ".join(hide_in_carrier(summary.split(), carrier.split(), rng, drop_rate=0.1)), summary

    def similar_pair(self, rng: np.random.Generator) -> Pair:
        """A real summary and a text that has most of its words, though it is of another text."""
        if self._similar is None or not len(self._pairs):
            return self.hidden_pair(rng)
        row, place = _draw(self._pairs, rng)
        return self.texts[self._similar[row, place]], self.summaries[row]

    def pseudo_pair(self, rng: np.random.Generator) -> Pair:
        """A text and its pseudo summary: learn from search."""
        row = int(rng.integers(len(self.texts)))
        return self.texts[row], self.pseudo_summaries[row]

    def restored_pair(self, rng: np.random.Generator, share_pseudo: float = 0.7) -> Pair:
        """What is left of a text, and the text: its pseudo summary, or any of its words. For the reconstructor."""
        row = int(rng.integers(len(self.texts)))
        text = self.texts[row]
        if self.pseudo_summaries and rng.random() < share_pseudo:
            return " ".join(drop_words(self.pseudo_summaries[row].split(), 0.1, rng)), text
        return " ".join(drop_words(text.split(), rng.uniform(0.5, 0.8), rng)), text

    def summary(self, rng: np.random.Generator) -> str:
        """A real summary."""
        return _draw(self.summaries, rng)


def _draw(rows: Sequence[Any], rng: np.random.Generator) -> Any:
    return rows[int(rng.integers(len(rows)))]


def mixture(tasks: Mapping[Callable, float]) -> Callable[[np.random.Generator], Any]:
    """A task that is one of several, drawn anew each time with these shares."""
    chosen = [task for task, share in tasks.items() if share > 0]
    edges = np.cumsum([share for share in tasks.values() if share > 0])
    return lambda rng: chosen[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))](rng)


def from_pool(pairs: Sequence[Pair]) -> Callable[[np.random.Generator], Pair]:
    """A task that gives pairs made beforehand."""
    return lambda rng: tuple(_draw(pairs, rng))


def pseudo_summaries(texts: Sequence[str], summaries: Sequence[str], max_words: int, seed: int, **search) -> list[str]:
    """For each text the words of it that look most like a summary (`BigramCompressor`, with the options `search`), as
    many as a summary has that is drawn from the pool, though at most `max_words` and two thirds of the text."""
    rng = np.random.default_rng([seed, len(texts)])
    lengths = np.array([len(summary.split()) for summary in summaries])
    wanted = np.minimum(rng.choice(lengths, len(texts)), max_words)
    most = [max(1, 2 * len(text.split()) // 3) for text in texts]
    return BigramCompressor(texts, summaries, **search).compress_all(texts, [int(n) for n in np.minimum(wanted, most)])


def back_translations(model, tokenizer, summaries: Sequence[str], seed: int, batch_size: int = 64) -> list[Pair]:
    """A text that the reconstructor imagines for each of real summaries, and the summary (Sennrich et al. 2016)."""
    was_training, devices = model.training, [model.device] if model.device.type == "cuda" else []
    model.eval()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": 0.7, "no_repeat_ngram_size": 2}
        texts = restore_texts(model, tokenizer, summaries, batch_size=batch_size, **options)
    model.train(was_training)
    return [pair for pair in zip(texts, summaries, strict=True) if pair[0].strip()]


def token_counts(tokenizer, pool: Sequence[str]) -> torch.Tensor:
    """How often each token occurs in a pool, float32 `(len(tokenizer),)`."""
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    for start in range(0, len(pool), 4096):
        ids = tokenizer(list(pool[start : start + 4096])).input_ids
        counts += np.bincount(np.concatenate(ids), minlength=len(counts))
    return torch.from_numpy(counts).float()


# ------------------------------------------------------------------------------------------------------------- batches


class TaskBatches:
    """Batches of what a task makes, of near-equal length, the same whatever the number of processes.

    Rank r gets its contiguous slice of each batch, as with `LengthBucketedBatches`; an epoch has `num_batches`.
    """

    def __init__(self, task, num_batches: int, batch_size: int, seed: int, process_index: int, num_processes: int):
        self.task, self.num_batches, self.batch_size, self.seed = task, num_batches, batch_size, seed
        self.own = slice(batch_size * process_index // num_processes, batch_size * (process_index + 1) // num_processes)
        self.epoch = 0

    def iterate(self, start_batch: int = 0) -> Iterator[list[Any]]:
        """This rank's part of batches `start_batch`, `start_batch + 1`, ... of the epoch."""
        for batch in range(start_batch, self.num_batches):
            place = batch % BATCHES_PER_WINDOW
            if place == 0 or batch == start_batch:
                window = self._window(batch // BATCHES_PER_WINDOW)
            yield window[place][self.own]

    def _window(self, number: int) -> list[list[Any]]:
        count = min(BATCHES_PER_WINDOW, self.num_batches - number * BATCHES_PER_WINDOW)
        rng = np.random.default_rng([self.seed, self.epoch, number])
        examples = sorted((self.task(rng) for _ in range(count * self.batch_size)), key=_length)
        batches = [examples[start : start + self.batch_size] for start in range(0, len(examples), self.batch_size)]
        return [batches[place] for place in rng.permutation(count)]


def _length(example: str | Pair) -> int:
    """What an example costs: the decoder does more than the encoder."""
    return len(example) if isinstance(example, str) else len(example[0]) + 2 * len(example[1])


class TextBatches:
    """Rows of the pool of texts and, beside them, as many examples of each task in `tasks`.

    Attributes:
        rows: the batches of texts, which count the epochs.
        tasks: name -> `TaskBatches`; filled by `add`.
        with_texts: whether the model reads the texts themselves.
    """

    def __init__(self, rows: LengthBucketedBatches):
        self.rows, self.tasks, self.with_texts = rows, {}, True

    def add(self, name: str, task: Callable[[np.random.Generator], Any]) -> None:
        """Let each batch have examples of a task."""
        rows = self.rows
        seed = int(np.random.SeedSequence([rows.seed, *name.encode()]).generate_state(1)[0])
        self.tasks[name] = TaskBatches(task, len(rows), rows.batch_size, seed, rows.process_index, rows.num_processes)

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration goes through."""
        self.rows.set_epoch(epoch)
        for task in self.tasks.values():
            task.epoch = epoch

    def iterate(self, start_batch: int = 0) -> Iterator[dict[str, Any]]:
        """This rank's part of batches `start_batch`, ...: `rows`, `global_size`, and the examples by name."""
        tasks = {name: task.iterate(start_batch) for name, task in self.tasks.items()}
        for rows in self.rows.iterate(start_batch):
            yield rows | {name: next(task) for name, task in tasks.items()}


@dataclass(kw_only=True)
class TextBatch(Batch):
    """A batch of texts, and of what tasks made. Each field is ready for the model, `model(**batch.texts)`, or empty.

    Attributes:
        texts: `input_ids`, `attention_mask`, and `num_words`: as many as the real summaries have.
        pairs: `input_ids`, `attention_mask` and `labels`, for the summarizer.
        restored: `summary_ids`, `summary_mask`, `input_ids` and `attention_mask`, for the reconstructor.
        summaries: `target_ids` and `target_mask` of real summaries.
        num_tokens: by these names, how many tokens the loss is a mean over.
        shares: by these names, factors on such means: with them the gradient of an optimizer step is that of the
            mean over all its tokens, whatever the number of processes and of accumulated batches.
    """

    where: torch.device
    texts: dict[str, torch.Tensor] = field(default_factory=dict)
    pairs: dict[str, torch.Tensor] = field(default_factory=dict)
    restored: dict[str, torch.Tensor] = field(default_factory=dict)
    summaries: dict[str, torch.Tensor] = field(default_factory=dict)
    num_tokens: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.where


# ------------------------------------------------------------------------------------------------------------- the run


class TextTrainingRun(TrainingRun):
    """A run of a summarizer that learns from unpaired texts and summaries.

    Attributes, beside those of every run:
        pools: a `TextPools`.  tokenizer: of the model.
        batches: a `TextBatches`; the script adds tasks to it.
        num_words: words of a summary in evaluations.
    """

    row = "text"

    # ---- what a script fills in

    def part_fields(self) -> dict[str, dict[str, Any]]:
        """Fields of the sub-configurations by their name: all of a new model; of one that is continued, the changes."""
        return {}

    def search_options(self) -> dict[str, float]:
        """Of the `BigramCompressor`: the same for pseudo summaries and for the baseline that is to be beaten."""
        return {}

    def check(self) -> None:
        """Raise a `TrainingError` if flags and `config` do not go together."""

    # ---- corpus and model

    def _load_corpus(self) -> None:
        corpus, options, accelerator = self.arguments.corpus, self.options, self.accelerator
        self.processor = self.tokenizer = self._load_tokenizer()
        with accelerator.main_process_first(), as_training_error():
            self.pools = load_text_pools(
                corpus.texts,
                corpus.summaries,
                corpus.validation,
                text_column=corpus.text_column,
                summary_column=corpus.summary_column,
                config_name=corpus.dataset_config_name,
                revision=corpus.dataset_revision,
                max_texts=corpus.max_texts,
                lowercase=corpus.lowercase,
                seed=options.seed,
                cache_dir=corpus.cache_dir,
            )
        self.train = self.pools.texts
        self.validation = list(zip(self.pools.validation_texts, self.pools.validation_references, strict=True))
        lengths = [len(summary.split()) for summary in self.pools.summaries]
        self.median_words = int(np.median(lengths))
        self._choose_config()
        self.num_words = options.num_words or self.median_words
        self.check()
        with as_training_error():
            self.batches = TextBatches(
                LengthBucketedBatches(
                    token_lengths(self.tokenizer, self.train, self.config.max_source_tokens),
                    options.batch_size,
                    shuffle=True,
                    seed=options.seed,
                    drop_last=True,
                    process_index=accelerator.process_index,
                    num_processes=accelerator.num_processes,
                )
            )
        order = np.random.default_rng(options.seed).permutation(len(self.validation))[: options.num_scored]
        self.scored = [self.validation[row] for row in order]

    def _load_tokenizer(self):
        options, corpus = self.options, self.arguments.corpus
        t5 = getattr(self.arguments.extra, "t5_name_or_path", None)
        place = options.tokenizer_name_or_path or options.model_name_or_path or t5
        train = f"python training/train_tokenizer.py --texts {corpus.texts} --output_dir FOLDER"
        advice = f"Train one with `{train}`, then give --tokenizer_name_or_path FOLDER"
        if place is None:
            raise TrainingError(f"there is no tokenizer. {advice}")
        try:
            tokenizer = AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError) as error:
            raise TrainingError(f"no tokenizer can be read from {place}: {error}. {advice}") from error
        return tokenizer

    def _choose_config(self) -> None:
        self._fields = dict(self.arguments.model)
        parts = self.part_fields()
        t5 = getattr(self.arguments.extra, "t5_name_or_path", None)
        if t5 and not self.options.model_name_or_path:
            self._new_model = lambda: self.network  # it comes with its configuration
            model_class = self.arguments.variant.model_class()
            try:
                self.network = model_class.from_pretrained_t5(t5, **self._fields, **parts)
            except (OSError, ValueError) as error:
                raise TrainingError(f"no T5 can be read from {t5}: {error}") from error
            self.config = self.network.config
            return
        if not self.options.model_name_or_path:
            self.config = self._make_config(self._fields | parts)
            return
        self.config = self._make_config(self._fields)
        try:
            for part, fields in parts.items():
                for name, value in fields.items():
                    setattr(getattr(self.config, part), name, value)
            self.config.validate()
        except ValueError as error:
            raise TrainingError(f"the model cannot be built: {' '.join(str(error).split())}") from error

    def _build_model(self) -> None:
        super()._build_model()
        summarizer = self.network.summarizer
        before, unset = summarizer.initials.clone(), summarizer._all_tokens()
        with as_training_error():
            self.network.set_word_starts(self.tokenizer)
        if not torch.equal(before, unset) and not torch.equal(before, summarizer.initials):
            raise TrainingError(
                f"the tokenizer ({len(self.tokenizer)} tokens) is not the one that the model of "
                f"{self.options.model_name_or_path} was trained with: leave --tokenizer_name_or_path out"
            )
        if summarizer.copy_head is not None and not self.options.model_name_or_path:
            self.network.set_salience(
                *(token_counts(self.tokenizer, pool) for pool in (self.pools.texts, self.pools.summaries))
            )

    def _corpus_settings(self) -> dict[str, Any]:
        sizes = {"training summaries": len(self.pools.summaries), "tokens": len(self.tokenizer)}
        return super()._corpus_settings() | sizes

    def cached(self, name: str, make: Callable[[], list]) -> list:
        """What `make` returns, JSON, made once in a run by one process and kept in its folder `cache`."""
        path = self.output_dir / "cache" / f"{name}.json"
        with self.accelerator.main_process_first():
            if path.exists():
                return json.loads(path.read_text(encoding="utf-8"))
            made = make()
            if self.is_main:
                path.parent.mkdir(exist_ok=True)
                unfinished = path.with_suffix(".unfinished")
                unfinished.write_text(json.dumps(made), encoding="utf-8")
                unfinished.replace(path)
        return made

    # ---- batches

    def _make_batch(self, rows: dict[str, Any], global_size: int, seed: tuple[int, ...]) -> TextBatch:
        index, world = self.accelerator.process_index, self.accelerator.num_processes
        where = slice(global_size * index // world, global_size * (index + 1) // world)
        batch = TextBatch(rows=where, global_size=global_size, seed=seed, where=self.device)
        longest, most = self.config.max_source_tokens, self.config.max_summary_tokens
        if "pairs" in rows:
            sources, targets = zip(*rows["pairs"], strict=True)
            target = encode_texts(self.tokenizer, targets, most)
            target_mask = target["attention_mask"]
            labels = target["input_ids"].masked_fill(target_mask == 0, -100)
            batch.pairs = {**encode_texts(self.tokenizer, sources, longest), "labels": labels}
            batch.num_tokens["pairs"] = int(target_mask.sum())
        if "restored" in rows:
            codes, texts = zip(*rows["restored"], strict=True)
            code = encode_texts(self.tokenizer, codes, longest)
            batch.restored = {"summary_ids": code["input_ids"], "summary_mask": code["attention_mask"]}
            batch.restored |= encode_texts(self.tokenizer, texts, longest)
            batch.num_tokens["restored"] = int(batch.restored["attention_mask"].sum())
        if "summaries" in rows:
            target = encode_texts(self.tokenizer, rows["summaries"], most)
            batch.summaries = {"target_ids": target["input_ids"], "target_mask": target["attention_mask"]}
            batch.num_tokens["summaries"] = int(target["attention_mask"].sum())
        if self.batches.with_texts:
            texts = [self.train[row] for row in rows["rows"]]
            batch.texts = dict(encode_texts(self.tokenizer, texts, longest))
            batch.num_tokens["texts"] = int(batch.texts["attention_mask"].sum())
            if "summaries" in rows:  # not more words than the text has, nor more than fit
                lengths = [len(summary.split()) for summary in rows["summaries"]]
                most_words = [max(1, min(len(text.split()), most // 2)) for text in texts]
                batch.texts["num_words"] = torch.tensor(np.minimum(lengths, most_words))
        for name in ("pairs", "restored", "summaries", "texts"):
            on_device = {key: tensor.to(self.device) for key, tensor in getattr(batch, name).items()}
            setattr(batch, name, on_device)
        return batch

    def _batches_of_step(self, rows: Iterator[dict[str, Any]]) -> Iterator[TextBatch]:
        batches = list(super()._batches_of_step(rows))
        names = list(batches[0].num_tokens)
        own = torch.tensor([[batch.num_tokens[name] for name in names] for batch in batches], dtype=torch.float32)
        total, world = own.sum(0), self.accelerator.num_processes
        if world > 1:
            total = self.accelerator.reduce(total.to(self.device), reduction="sum").cpu()
        for batch, shares in zip(batches, (own * world / total).tolist(), strict=True):
            batch.shares = dict(zip(names, shares, strict=True))
            batch.weight = 1.0  # the shares say it
        yield from batches

    # ---- evaluation

    def score(self, model: torch.nn.Module) -> dict[str, float]:
        """How the model summarizes some validation pairs, greedily, and what its summaries tell the reconstructor.

        Every process scores them all: they are few, and all processes need the numbers.
        """
        texts, references = zip(*self.scored, strict=True)
        size = self.options.eval_batch_size
        summaries = summarize_texts(model, self.tokenizer, texts, num_words=self.num_words, batch_size=size)
        shuffled = summaries[1:] + summaries[:1]
        own, other = (
            reconstruction_accuracy(model, self.tokenizer, texts, codes, batch_size=size)
            for codes in (summaries, shuffled)
        )
        statistics = text_statistics(summaries, texts)
        return {
            "loss": own["reconstruction_loss"],
            "reconstruction_accuracy": own["reconstruction_accuracy"],
            "shuffled_reconstruction_accuracy": other["reconstruction_accuracy"],
            **rouge(summaries, references),
            **{name: float(value) for name, value in statistics.items()},
        }

    def examples(self, model: torch.nn.Module) -> str:
        """A few validation texts with the model's summary, the reference and the reconstruction."""
        chosen = self.scored[: self.options.num_examples]
        if not chosen:
            return ""
        texts = [text for text, _ in chosen]
        summaries = summarize_texts(model, self.tokenizer, texts, num_words=self.num_words)
        restored = restore_texts(model, self.tokenizer, summaries)
        blocks = [
            f"text            {text}\nsummary         {summary}\nreference       {reference}\nreconstruction  {again}\n"
            for (text, reference), summary, again in zip(chosen, summaries, restored, strict=True)
        ]
        return "\n".join(blocks)

    def _show(self, model: torch.nn.Module) -> None:
        if not self.is_main or not self.options.num_examples:
            return
        examples = self.examples(model)
        self._progress.write("\n" + examples)
        folder = self.output_dir / "examples"
        folder.mkdir(exist_ok=True)
        (folder / f"step-{self.step:08d}.txt").write_text(examples, encoding="utf-8")

    def _measure(self, model: torch.nn.Module) -> dict[str, Any]:
        measured = evaluate_summarizer(
            model,
            self.tokenizer,
            self.pools,
            num_words=self.num_words,
            compressor=BigramCompressor(self.pools.texts, self.pools.summaries, **self.search_options()),
            num_beams=self.options.num_beams,
            batch_size=self.options.eval_batch_size,
            num_shown=max(1, self.options.num_examples),
            seed=self.options.seed,
            command=self.arguments.command,
            cache_dir=self.arguments.corpus.cache_dir,
        )
        print(format_table(measured["table"]))
        return measured

    def _write_examples(self, model: torch.nn.Module, folder: Path) -> None:
        examples = self.examples(model)
        if examples:
            (folder / "examples.txt").write_text(examples, encoding="utf-8")
