"""Does a summary read like one? Perplexity under a language model that has seen real summaries and nothing else.

The judge is a small recurrent network, trained here on the pool of summaries. It shares nothing with any language
model inside a summarizer, so a summarizer cannot have been trained to please it. Low is good, but only up to a point:
what to compare with is what the references themselves get, and a summary of stock phrases gets less than that.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

logger = logging.getLogger(__name__)

CACHE_FORMAT = 1
IGNORED = -100
MAX_PRESENTED = 48_000  # summaries, counted each time they are learned from: about a minute on one core
TOKENS_PER_CALL = 4096  # of one evaluation batch, padding included


class LanguageModelJudge:
    """A language model of summaries: GRU (Cho et al. 2014), input and output embeddings tied (Press & Wolf 2017).

    Trained on the CPU with AdamW and a learning rate that falls to 0; the weights of the epoch with the lowest held-out
    perplexity are kept, and training ends when it has not fallen for two epochs. About a minute on one core,
    whatever the pool. The result is kept on disk by a hash of the pool, the tokenizer and the settings.

    Its vocabulary is the tokens that occur in the pool; the others share one class, evenly, so its perplexities are
    those of a distribution over all strings.

    Args:
        summaries: the pool, in the manner of which others are judged.
        tokenizer: splits summaries into tokens; perplexity is per word, so that tokenizers can be compared.
        seed: of the held-out slice, the initial weights, the dropout and the order of the batches.
        max_summaries: a larger pool is cut to so many, drawn by the seed.
        hidden_size: of the recurrent layer; the embeddings have half of it.
        max_epochs: at most so many; a larger pool gets fewer, as many as make about `MAX_PRESENTED` summaries in all.
        cache_dir: where trained judges are kept; `judges` beside the other caches of this package by default.
            `False`: nowhere.

    Attributes:
        held_out_perplexity: per word, of the slice that it was not trained on.
    """

    def __init__(
        self,
        summaries: Sequence[str],
        tokenizer,
        seed: int = 0,
        *,
        max_summaries: int = 12_000,
        hidden_size: int = 256,
        max_epochs: int = 10,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        dropout: float = 0.3,
        cache_dir: str | os.PathLike | bool | None = None,
    ):
        pool = sorted({" ".join(summary.split()) for summary in summaries} - {""})
        if len(pool) < 20:
            raise ValueError(f"a language model needs at least 20 different summaries to learn from, got {len(pool)}")
        self.tokenizer = tokenizer
        pool = [pool[row] for row in np.random.default_rng(seed).permutation(len(pool))[:max_summaries]]
        rows = self._tokenize(pool)
        used = sorted({token for row in rows for token in row})
        # class 0 is the end of a summary, and what stands before its first token; 1 is every token not in the pool
        self._classes = {token: number for number, token in enumerate(used, start=2)}
        self._others = math.log(max(1, len(tokenizer) - len(used)))
        with torch.random.fork_rng(devices=[]):  # building layers draws numbers, which nobody needs
            self.network = _GRULanguageModel(len(used) + 2, hidden_size, dropout)

        num_held_out = max(1, min(1000, len(pool) // 20))
        settings = {
            "format": CACHE_FORMAT,
            "tokenizer": [sorted(tokenizer.get_vocab().items()), self._tokenize(["A b, c's 1."])],
            "seed": seed,
            "hidden_size": hidden_size,
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "dropout": dropout,
            "held_out": num_held_out,
        }
        file = None
        if cache_dir is not False:
            file = _cache_file(None if cache_dir is True else cache_dir, settings, pool)
        if file is None or not self._load(file):
            encoded = [self._encode(row) for row in rows]
            held_out, training = encoded[:num_held_out], encoded[num_held_out:]
            epochs = max(1, min(max_epochs, math.ceil(MAX_PRESENTED / len(training))))
            _train(self.network, training, held_out, epochs, batch_size, learning_rate, seed)
            if file is not None:
                self._save(file)
        self.network.eval()
        self.held_out_perplexity = self.perplexity(pool[:num_held_out])

    def perplexity(self, summaries: Sequence[str]) -> float:
        """exp of the nats per word over all summaries; the end of each counts as a word (an empty one is an end)."""
        if not len(summaries):
            raise ValueError("there are no summaries to judge")
        return math.exp(self.nats(summaries).sum() / sum(len(summary.split()) + 1 for summary in summaries))

    @torch.no_grad()
    def nats(self, summaries: Sequence[str]) -> np.ndarray:
        """-log p of each whole summary, its end included: float64 (num_summaries,)."""
        tokens = self._tokenize([" ".join(summary.split()) for summary in summaries])
        rows = [self._encode(row) for row in tokens]
        result = np.array([self._others * row.count(1) for row in rows])
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        while order:
            longest = len(rows[order[-1]]) + 1
            batch, order = order[-max(1, TOKENS_PER_CALL // longest) :], order[: -max(1, TOKENS_PER_CALL // longest)]
            result[batch] += _nats(self.network, [rows[row] for row in batch]).double().sum(1).numpy()
        return result

    def _tokenize(self, lines: list[str]) -> list[list[int]]:
        return self.tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"] if lines else []

    def _encode(self, tokens: list[int]) -> list[int]:
        return [self._classes.get(token, 1) for token in tokens]

    def _save(self, file: Path) -> None:
        from safetensors.torch import save_file

        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            save_file(self.network.state_dict(), temporary)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    def _load(self, file: Path) -> bool:
        """Take the weights from the cache; False where there are none that can be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            self.network.load_state_dict(load_file(file))
        except FileNotFoundError:
            return False
        except (OSError, SafetensorError, RuntimeError) as error:
            logger.warning("%s cannot be read (%s): the judge is trained again", file, error)
            return False
        return True


class _GRULanguageModel(nn.Module):
    def __init__(self, num_classes: int, hidden_size: int, dropout: float):
        super().__init__()
        self.embeddings = nn.Embedding(num_classes, hidden_size // 2)
        self.recurrent = nn.GRU(hidden_size // 2, hidden_size, batch_first=True)
        self.project = nn.Linear(hidden_size, hidden_size // 2)
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                nn.init.zeros_(parameter)
            else:
                std = 0.1 if name.startswith("embeddings") else parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, classes: torch.Tensor) -> torch.Tensor:
        """(batch, length) classes -> (batch, length, num_classes) logits of the next one."""
        states = self.recurrent(self.dropout(self.embeddings(classes)))[0]
        return F.linear(self.dropout(self.project(states)), self.embeddings.weight, self.bias)


def _nats(network: nn.Module, rows: list[list[int]]) -> torch.Tensor:
    """(rows, longest + 1): -log p of each class of a row and of its end, 0 at padding."""
    longest = max(map(len, rows)) + 1
    inputs = torch.zeros(len(rows), longest, dtype=torch.long)
    targets = torch.full((len(rows), longest), IGNORED)
    for number, row in enumerate(rows):
        inputs[number, 1 : len(row) + 1] = targets[number, : len(row)] = torch.tensor(row, dtype=torch.long)
        targets[number, len(row)] = 0
    logits = network(inputs).flatten(0, 1)  # classes last in memory, too: transposed, this takes 1.6 times as long
    return F.cross_entropy(logits, targets.flatten(), reduction="none", ignore_index=IGNORED).view_as(targets)


def _train(network, training, held_out, epochs: int, batch_size: int, learning_rate: float, seed: int) -> None:
    """Fit `network`; it is left with the weights of its best epoch, and the global random state as it was."""
    batches_per_epoch = math.ceil(len(training) / batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * batches_per_epoch + 1, pct_start=0.1
    )
    network.reset_parameters(torch.Generator().manual_seed(seed))
    lengths = np.array([len(row) for row in training])
    order_noise = np.random.default_rng(seed)
    best, best_weights, waited = math.inf, None, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        for epoch in range(epochs):
            network.train()
            # near-equal lengths in a batch: sorted with noise, then cut, then shuffled
            order = np.argsort(lengths + order_noise.random(len(lengths)), kind="stable")
            for batch in order_noise.permutation(batches_per_epoch):
                rows = [training[row] for row in order[batch * batch_size : (batch + 1) * batch_size]]
                loss = _nats(network, rows).sum() / sum(len(row) + 1 for row in rows)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            network.eval()
            with torch.no_grad():
                parts = [held_out[first : first + 64] for first in range(0, len(held_out), 64)]
                value = sum(_nats(network, part).double().sum().item() for part in parts)
            logger.info("judge, epoch %d of %d: %.1f held-out nats a summary", epoch + 1, epochs, value / len(held_out))
            if value < best:
                best, waited = value, 0
                best_weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            elif (waited := waited + 1) == 2:
                break
    if best_weights is None:
        raise FloatingPointError("the judge's held-out loss is not finite: its training failed, lower learning_rate")
    network.load_state_dict(best_weights)


def _cache_file(cache_dir: str | os.PathLike | None, settings: dict, pool: list[str]) -> Path:
    from ..data.images import default_cache_dir

    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update("\n".join(pool).encode())
    folder = default_cache_dir().with_name("judges") if cache_dir is None else Path(cache_dir)
    return folder / f"{digest.hexdigest()[:24]}.safetensors"
