"""What a training loop is made of: batches with their noise, exact means, averaged weights, a clock."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object


@dataclass(kw_only=True)
class Batch:
    """This process's part of one batch.

    Attributes:
        rows: which rows of the whole batch these are.
        global_size: rows of the whole batch, over all processes.
        weight: factor on the mean loss of these rows. With it the gradient, which is averaged over processes and added
            up over accumulated batches, is that of the mean over all rows of the optimizer step.
        is_last: whether the optimizer step follows.
        seed: numbers that belong to this batch of this run alone: all that is drawn for it depends on them.
    """

    rows: slice
    global_size: int
    weight: float = 1.0
    is_last: bool = True
    seed: tuple[int, ...] = (0,)
    _draws: int = 0

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        raise NotImplementedError

    def draw(self, sampler: Callable[..., torch.Tensor], *shape: int) -> torch.Tensor:
        """Noise of shape (rows of this process, *shape), float32 on the device: `batch.draw(torch.randn, 40)`.

        Drawn for the whole batch from a generator seeded by run, step and number of the draw, and then cut: the same
        row gets the same noise on any number of processes and after any resume.
        """
        shape = (self.global_size, *shape)
        return sampler(*shape, generator=self.generator(), device=self.device)[self.rows][: len(self)]

    def generator(self) -> torch.Generator:
        """A new generator on the device, seeded by run, step and number of the draw: for what is drawn otherwise."""
        digest = hashlib.blake2b(repr((*self.seed, self._draws)).encode(), digest_size=7).digest()
        self._draws += 1
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest, "big"))


@dataclass(kw_only=True)
class ImageBatch(Batch):
    """A batch of images.

    Attributes:
        pixel_values: float32 (rows of this process, channels, height, width) in [0, 1], on the device.
    """

    pixel_values: torch.Tensor

    def __len__(self) -> int:
        return len(self.pixel_values)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.pixel_values.device


class WeightedMeans:
    """Means over all rows of a split of every scalar in the model's outputs: exact for uneven batches and processes.

    Terms that relate the rows of a batch to each other (total correlation, mutual information, a covariance) are means
    of what each process's batches gave, and depend on their size and number.

    ```python
    means = WeightedMeans()
    for batch in run.validation_batches():
        means.add(model(batch.pixel_values), len(batch))
    metrics = means.compute()       # on all processes
    ```
    """

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.rows = 0

    def add(self, output: dict[str, torch.Tensor], rows: int) -> None:
        """Count in the scalars of `output`, each a mean over `rows` rows."""
        for name, value in loss_terms(output).items():
            term = value.to("cpu" if value.device.type == "mps" else value.device, torch.float64) * rows
            self.sums[name] = self.sums[name] + term if name in self.sums else term
        self.rows += rows

    def compute(self) -> dict[str, float]:
        """The means, the same on all processes; every process must call it."""
        parts = gather_object([({name: value.item() for name, value in self.sums.items()}, self.rows)])
        rows = sum(count for _, count in parts)
        names = dict.fromkeys(name for sums, _ in parts for name in sums)
        return {name: sum(sums.get(name, 0.0) for sums, _ in parts) / rows for name in names}


def loss_terms(output: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The scalars of a model output: `loss` and its parts."""
    return {
        name: value.detach()
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and value.ndim == 0 and value.is_floating_point()
    }


class AveragedWeights:
    """Exponential moving average of parameters, in float32; the decay rises from 0.1 to `decay` as it goes."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float):
        self.parameters = list(parameters)
        self.decay = decay
        self.updates = 0
        self.averages = [p.detach().float().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now; once after each optimizer step."""
        self.updates += 1
        decay = min(self.decay, self.updates / (9 + self.updates))
        torch._foreach_lerp_(self.averages, [p.detach().float() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters hold the averages inside the block and have their own values again after it."""
        own = [p.detach().clone() for p in self.parameters]
        try:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.averages)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, own)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)


class Clock:
    """Steps per second between two calls of `rate`, not counting what happens in `paused`."""

    def __init__(self, step: int = 0):
        self._step, self._since, self._excluded, self._depth = step, time.perf_counter(), 0.0, 0

    def rate(self, step: int) -> float:
        """Steps per second since the last call."""
        now = time.perf_counter()
        rate = (step - self._step) / max(now - self._since - self._excluded, 1e-9)
        self._step, self._since, self._excluded = step, now, 0.0
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time does not count."""
        start, self._depth = time.perf_counter(), self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:  # the outermost counts
                self._excluded += time.perf_counter() - start
