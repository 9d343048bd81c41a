"""Bottlenecks: what stands between encoder and decoder.

Vector quantisation follows van den Oord et al. 2017 (VQ-VAE), with moving averages as in its appendix A and in Razavi
et al. 2019, residual codebooks as in Zeghidour et al. 2021 (SoundStream), and finite scalar quantisation as in Mentzer
et al. 2024 (FSQ). Where it departs:

- Usage statistics are relative: 1 means that an entry gets the same share of the vectors as the average entry. So
  thresholds mean the same at every batch size, and an entry that is never chosen keeps its place (sum and count decay
  alike) until it is revived.
- All random choices (start of k-means, place of a revived entry) are a function of the number of updates so far. They
  touch no global generator, are the same on all processes, and the same after a resume.
- In training, search and update are one opaque operator: `torch.compile` could otherwise recompute the search in the
  backward pass from the codebook as it is after the update, which silently spoils the gradients.
"""

import re

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from .losses import is_distributed

# Entries of the block of distances that is held at once: it should stay in the cache of a CPU core.
CPU_BLOCK, ACCELERATOR_BLOCK = 2**19, 2**26
# Operators are global to a process, and every model from the Hub brings a copy of this file: each has its own.
OPERATORS = re.sub(r"\W", "_", __name__)


def nearest_codes(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the nearest codebook entry of each vector, by Euclidean distance.

    Args:
        vectors (`(N, D)`), codebook (`(K, D)`): float32.

    Returns:
        `(N,)`, int64. Memory beyond the result is a block of distances of bounded size (compiled for evaluation: the
        whole N x K block, since a compiled graph has no loop of unknown length).
    """
    squared_norms = codebook.square().sum(1)

    def search(block):  # |x - c|^2 = |c|^2 - 2 x.c + |x|^2, and the last term is the same for all c
        return torch.addmm(squared_norms, block, codebook.t(), alpha=-2).min(dim=1).indices

    if torch.compiler.is_compiling():  # one graph for every batch size
        return search(vectors)
    rows = max(64, (CPU_BLOCK if vectors.device.type == "cpu" else ACCELERATOR_BLOCK) // len(codebook))
    if len(vectors) <= rows:
        return search(vectors)
    return torch.cat([search(block) for block in vectors.split(rows)])


def _random_indices(seed: torch.Tensor, count: int, total: int) -> torch.Tensor:
    """`count` indices in [0, total), a hash of `seed` and position (splitmix64; multiplication wraps around)."""
    bits = torch.arange(count, device=seed.device) + (seed.long() + 1) * 7919317
    for multiplier, shift in ((-7046029254386353131, 30), (-4658895280553007687, 27), (-7723592293110705685, 31)):
        bits = bits * multiplier
        bits = bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))
    return (bits & (2**63 - 1)) % total


def _pick_vectors(vectors: torch.Tensor, seed: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the vectors of all processes, the same on each of them."""
    if not is_distributed():
        return vectors[_random_indices(seed, count, len(vectors))]
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=vectors.device)
    sizes[dist.get_rank()] = len(vectors)
    dist.all_reduce(sizes)
    first = sizes[: dist.get_rank()].sum()
    indices = _random_indices(seed, count, sizes.sum()) - first
    mine = (indices >= 0) & (indices < len(vectors))
    picked = vectors[indices.clamp(0, len(vectors) - 1)] * mine.unsqueeze(1)
    dist.all_reduce(picked)
    return picked


def _assign(vectors: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Nearest codes `(N,)`, and over all processes how many vectors `(K,)` and which sum `(K, D)` each entry got."""
    codes = nearest_codes(vectors, codebook)
    counts = torch.bincount(codes, minlength=len(codebook)).to(vectors.dtype)
    sums = torch.zeros_like(codebook).index_add_(0, codes, vectors)
    if is_distributed():
        totals = torch.cat([counts.unsqueeze(1), sums], dim=1)
        dist.all_reduce(totals)
        counts, sums = totals[:, 0], totals[:, 1:]
    return codes, counts, sums


def _quantize_and_update(
    vectors: torch.Tensor,
    codebook: torch.Tensor,
    usage: torch.Tensor,
    sums: torch.Tensor,
    num_updates: torch.Tensor,
    decay: float,
    dead_code_threshold: float,
    kmeans_iterations: int,
    cosine: bool,
    update_codebook: bool,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One training step of a codebook, in place: start or revive entries, assign the vectors, update the averages.

    Args:
        vectors (`(N, D)`): float32, without gradient.
        mask (`(N,)`, bool): the vectors that count; the others are padding, and get the code 0.
        codebook (`(K, D)`), usage (`(K,)`), sums (`(K, D)`), num_updates (`()`): the state of the quantiser.

    Returns:
        codes `(N,)` and their entries `(N, D)`, as they were before the moving average took this batch in.
    """
    num_codes = len(codebook)
    every_vector = vectors
    if mask is not None:
        vectors = vectors[mask]

    def place(entries):
        return F.normalize(entries, dim=-1) if cosine else entries

    if cosine:
        codebook.copy_(place(codebook))  # an optimizer may have moved it off the sphere
    if kmeans_iterations and num_updates.item() == 0:
        codebook.copy_(_pick_vectors(vectors, num_updates, num_codes))
        for iteration in range(kmeans_iterations):
            _, counts, totals = _assign(vectors, codebook)
            means = torch.where(
                (counts > 0).unsqueeze(1),
                totals / counts.clamp_min(1).unsqueeze(1),
                _pick_vectors(vectors, num_updates - iteration - 1, num_codes),
            )
            codebook.copy_(place(means))
        sums.copy_(codebook)
    if dead_code_threshold > 0:
        dead = usage < dead_code_threshold
        entries = _pick_vectors(vectors, num_updates, num_codes)
        codebook.copy_(torch.where(dead.unsqueeze(1), entries, codebook))
        sums.copy_(torch.where(dead.unsqueeze(1), entries, sums))
        usage.masked_fill_(dead, 1.0)

    codes, counts, totals = _assign(vectors, codebook)
    entries = codebook[codes]
    share = num_codes / counts.sum()
    usage.lerp_(counts * share, 1 - decay)
    sums.lerp_(totals * share, 1 - decay)
    if update_codebook:
        means = sums / usage.clamp_min(1e-8).unsqueeze(1)
        codebook.copy_(torch.where((usage > 1e-8).unsqueeze(1), place(means), codebook))
    num_updates.add_(1)
    if mask is not None:
        every_code = codes.new_zeros(len(every_vector)).masked_scatter_(mask, codes)
        return every_code, torch.zeros_like(every_vector).masked_scatter_(mask.unsqueeze(1), entries)
    return codes, entries


quantize_and_update = torch.library.custom_op(
    f"{OPERATORS}::quantize_and_update",
    _quantize_and_update,
    mutates_args=("codebook", "usage", "sums", "num_updates"),
)


@quantize_and_update.register_fake
def _(vectors, codebook, *_, **__):
    return vectors.new_empty(len(vectors), dtype=torch.int64), torch.empty_like(vectors)


def _mean_squared(one: torch.Tensor, other: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean squared difference of vectors `(N, D)`, over those of `mask`."""
    if mask is None:
        return F.mse_loss(one, other)
    total = (one - other).square().masked_fill(~mask.unsqueeze(1), 0).sum()
    return total / (mask.sum() * one.shape[1]).clamp_min(1)


class VectorQuantizer(nn.Module):
    """A learned codebook (van den Oord et al. 2017): each vector becomes its nearest entry.

    Args:
        codebook_size, embedding_dim (`int`): K entries of length D.
        codebook_update (`str`): `"ema"` or `"gradient"`.
        cosine (`bool`): normalise vectors and entries to length 1.
        decay, dead_code_threshold, kmeans_init: see [`VQVAEConfig`].
        seed (`int`): of the entries before training; the codebooks of a residual quantiser must differ.
    """

    kmeans_iterations = 10

    def __init__(
        self,
        codebook_size: int,
        embedding_dim: int,
        *,
        codebook_update: str = "ema",
        cosine: bool = False,
        decay: float = 0.99,
        dead_code_threshold: float = 0.05,
        kmeans_init: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        self.codebook_size, self.embedding_dim, self.seed = codebook_size, embedding_dim, seed
        self.codebook_update, self.cosine, self.decay = codebook_update, cosine, float(decay)
        self.dead_code_threshold, self.kmeans_init = float(dead_code_threshold), kmeans_init
        self.has_started = False  # this process has seen that num_updates is not 0
        state = self.initial_state()
        if codebook_update == "gradient":
            self.codebook = nn.Parameter(state.pop("codebook"))
        for name, value in state.items():
            self.register_buffer(name, value)

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The codebook and its statistics before training: entries N(0, 1/D), each of average use."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        shape = (self.codebook_size, self.embedding_dim)
        codebook = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
        codebook = F.normalize(codebook, dim=-1) if self.cosine else codebook * self.embedding_dim**-0.5
        return {
            "codebook": codebook,
            "usage": torch.ones(self.codebook_size, device="cpu", dtype=torch.float32),
            "sums": codebook.clone(),
            "num_updates": torch.zeros((), device="cpu", dtype=torch.float32),
        }

    def restart(self) -> None:
        """Start anew from k-means on the next training batch, where `kmeans_init` is set, and with new statistics.

        Encoder and codebook find each other early in training, and stay with what they found then.
        """
        self.num_updates.zero_()
        self.usage.fill_(1.0)
        self.has_started = False

    def _apply(self, fn, recurse=True):
        """Follow the model to another device, but stay float32 when it is cast (`.half()`, `.bfloat16()`)."""

        def keep_float32(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_float32, recurse)

    def forward(
        self, vectors: torch.Tensor, update: bool, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Quantise vectors.

        Args:
            vectors (`(N, D)`): float32.
            update (`bool`): whether this is a training step, which updates the codebook's statistics.
            mask (`(N,)`, bool): the vectors that are not padding. The others get the code 0, and count for nothing.

        Returns:
            the chosen entries `(N, D)` (without gradient to `vectors`), codes `(N,)`, the commitment loss and, for
            `codebook_update="gradient"`, the codebook loss: mean squared distances over all dimensions.
        """
        if self.cosine:
            vectors = F.normalize(vectors, dim=-1)
        if update:
            compiling = torch.compiler.is_compiling()
            step = quantize_and_update if compiling else _quantize_and_update
            # k-means looks at num_updates, for which a GPU has to be waited for: in the first step only
            start = self.kmeans_init and (compiling or not self.has_started)
            with torch.no_grad():
                codes, entries = step(
                    vectors.detach(),
                    self.codebook.detach(),
                    self.usage,
                    self.sums,
                    self.num_updates,
                    self.decay,
                    self.dead_code_threshold,
                    self.kmeans_iterations if start else 0,
                    self.cosine,
                    self.codebook_update == "ema",
                    mask,
                )
            if not compiling:
                self.has_started = True
        else:
            with torch.no_grad():
                codebook = self.codebook.float()
                codes = nearest_codes(vectors, F.normalize(codebook, dim=-1) if self.cosine else codebook)
                codes = codes if mask is None else codes * mask
                entries = self.decode(codes)
        codebook_loss = None
        if self.codebook_update == "gradient":
            entries = self.decode(codes)
            codebook_loss = _mean_squared(entries, vectors.detach(), mask)
        return entries, codes, _mean_squared(vectors, entries.detach(), mask), codebook_loss

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes `(...)` to entries `(..., D)`."""
        entries = F.embedding(codes, self.codebook).float()
        return F.normalize(entries, dim=-1) if self.cosine else entries


class ResidualVectorQuantizer(nn.Module):
    """A chain of codebooks, each coding what the ones before left over (Zeghidour et al. 2021); one is plain VQ.

    Args:
        num_codebooks (`int`): codebooks in the chain.
        kwargs: arguments of each [`VectorQuantizer`].
    """

    def __init__(self, num_codebooks: int, codebook_size: int, embedding_dim: int, **kwargs):
        super().__init__()
        self.quantizers = nn.ModuleList(
            VectorQuantizer(codebook_size, embedding_dim, seed=index, **kwargs) for index in range(num_codebooks)
        )

    def forward(
        self, latents: torch.Tensor, update: bool = False, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Quantise a grid of vectors, in float32 whatever the dtype or autocast.

        Args:
            latents (`(batch_size, D, *grid)`): a grid of any rank, e.g. `(height, width)` or `(frames,)`.
            update (`bool`): whether this is a training step, which updates the codebooks' statistics.
            mask (`(batch_size, *grid)`, bool): the places that are not padding. The others get the code 0.

        Returns:
            quantised latents of the same shape and dtype (straight-through), codes `(batch_size, num_codebooks,
            *grid)`, the commitment loss and the codebook loss (or `None`): means over codebooks and dimensions.
        """
        with torch.autocast(latents.device.type, enabled=False):
            channels_last = latents.float().movedim(1, -1)
            vectors = channels_last.reshape(-1, channels_last.shape[-1])
            residual, quantized, codes, commitment, codebook = vectors, 0.0, [], [], []
            mask = None if mask is None else mask.reshape(-1)
            for quantizer in self.quantizers:
                entries, level_codes, commitment_loss, codebook_loss = quantizer(residual, update, mask)
                residual, quantized = residual - entries.detach(), quantized + entries
                codes.append(level_codes)
                commitment.append(commitment_loss)
                codebook.append(codebook_loss)
            # Straight-through: the value of the entries, the gradient of the vectors (van den Oord et al. 2017).
            if quantizer.cosine:
                vectors = F.normalize(vectors, dim=-1)
            quantized = quantized.detach() + (vectors - vectors.detach())
        quantized = quantized.view(channels_last.shape).movedim(-1, 1).contiguous().to(latents.dtype)
        codes = torch.stack(codes, dim=1).view(*channels_last.shape[:-1], len(codes)).movedim(-1, 1).contiguous()
        codebook_loss = None if codebook[0] is None else torch.stack(codebook).mean()
        return quantized, codes, torch.stack(commitment).mean(), codebook_loss

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes `(batch_size, num_codebooks, *grid)` to quantised latents `(batch_size, D, *grid)`, float32."""
        latents = sum(quantizer.decode(codes[:, index]) for index, quantizer in enumerate(self.quantizers))
        return latents.movedim(-1, 1).contiguous()


class FiniteScalarQuantizer(nn.Module):
    """Round each of a few bounded dimensions to one of its levels (Mentzer et al. 2024): nothing to learn.

    Args:
        levels (`tuple[int, ...]`): levels of each dimension. A code is the mixed-radix number of the levels chosen,
            first dimension fastest.
    """

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self._levels = tuple(levels)
        for name, value in self.initial_state().items():
            self.register_buffer(name, value)

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The number of levels of each dimension."""
        # float32 as all state is: loading with another dtype turns the integer buffers of kept modules to float
        return {"levels": torch.tensor(self._levels, dtype=torch.float32, device="cpu")}

    def _radix(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The number of levels of each dimension, and what a step in it adds to the code; int64."""
        levels = self.levels.long()
        return levels, torch.cumprod(levels, 0) // levels

    def forward(self, latents: torch.Tensor, update: bool = False) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        """Quantise a grid of vectors, in float32 whatever the dtype or autocast.

        Args:
            latents (`(batch_size, len(levels), *grid)`): any real numbers.
            update (`bool`): of no effect here; there are no statistics.

        Returns:
            quantised latents of the same shape and dtype in [-1, 1] (straight-through), codes `(batch_size, 1,
            *grid)`, and `None` twice: there are no losses.
        """
        with torch.autocast(latents.device.type, enabled=False):
            vectors = latents.float().movedim(1, -1)
            levels, basis = self._radix()
            half_width = (levels - 1) * 1.001 / 2
            offset = 0.5 * (levels % 2 == 0)
            bounded = torch.tanh(vectors + torch.atanh(offset / half_width)) * half_width - offset
            steps = bounded.round()
            codes = ((steps.detach().long() + levels // 2) * basis).sum(-1)
            quantized = (steps.detach() + (bounded - bounded.detach())) / (levels // 2)
        return quantized.movedim(-1, 1).contiguous().to(latents.dtype), codes.unsqueeze(1), None, None

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes `(batch_size, 1, *grid)` to quantised latents `(batch_size, len(levels), *grid)`, float32."""
        levels, basis = self._radix()
        half = levels // 2
        steps = codes.squeeze(1).unsqueeze(-1) // basis % levels
        return ((steps - half) / half).movedim(-1, 1).contiguous()
