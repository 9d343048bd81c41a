"""Quantisers: search, moving averages, revival, residual codes and FSQ, against the textbook and by hand."""

import importlib
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from hf_autoencoders.models import bottlenecks
from hf_autoencoders.models.bottlenecks import (
    FiniteScalarQuantizer,
    ResidualVectorQuantizer,
    VectorQuantizer,
    nearest_codes,
)
from hf_autoencoders.models.losses import bernoulli_sparsity, sum_with_free_bits


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if torch.is_tensor(value):
                self.elements = max(self.elements, value.numel())
        return result


def clusters(count, centres, spread=0.05, seed=0):
    """`count` points around `centres` `(K, D)`, at least one around each."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.cat([torch.arange(len(centres)), torch.randint(len(centres), (count,), generator=generator)])
    chosen = chosen[:count][torch.randperm(count, generator=generator)]
    return centres[chosen] + spread * torch.randn(count, centres.shape[1], generator=generator)


# ---- search


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 129, 1000])
def test_nearest_codes_equal_brute_force(count, monkeypatch):
    monkeypatch.setattr(bottlenecks, "CPU_BLOCK", 64 * 7)  # blocks of 64 rows
    vectors, codebook = torch.randn(count, 5) + 3, torch.randn(7, 5) + 3
    distances = (vectors.double()[:, None] - codebook.double()).square().sum(-1)
    assert torch.equal(nearest_codes(vectors, codebook), distances.argmin(1))


def test_an_entry_is_its_own_nearest_code():
    codebook = torch.randn(300, 6)
    assert torch.equal(nearest_codes(codebook, codebook), torch.arange(300))


def test_memory_stays_bounded():
    count, size, dim = 20_000, 1024, 16
    quantizer = VectorQuantizer(size, dim)
    quantizer.kmeans_iterations = 1
    vectors = torch.randn(count, dim)
    for update in (False, True):
        with LargestTensor() as largest:
            quantizer(vectors, update)
        assert largest.elements <= max(count * dim, bottlenecks.CPU_BLOCK, 64 * size)


# ---- moving averages


def test_moving_averages_equal_the_textbook():
    """Van den Oord et al. 2017, appendix A.1, in numpy, with counts where ours are relative to the average entry's."""
    size, dim, count, decay = 6, 3, 50, 0.9
    quantizer = VectorQuantizer(size, dim, decay=decay, kmeans_init=False, dead_code_threshold=0)
    codebook = quantizer.codebook.double().numpy().copy()
    counts = np.full(size, count / size)
    sums = codebook * counts[:, None]
    for step in range(8):
        vectors = torch.randn(count, dim, generator=torch.Generator().manual_seed(step))
        x = vectors.double().numpy()
        codes = ((x[:, None] - codebook) ** 2).sum(-1).argmin(1)
        entries, ours, commitment, _ = quantizer(vectors, update=True)
        assert ours.tolist() == codes.tolist()
        np.testing.assert_allclose(entries.numpy(), codebook[codes], rtol=1e-5)  # those before the update
        assert commitment.item() == pytest.approx(((x - codebook[codes]) ** 2).mean(), rel=1e-5)
        for k in range(size):
            counts[k] = decay * counts[k] + (1 - decay) * (codes == k).sum()
            sums[k] = decay * sums[k] + (1 - decay) * x[codes == k].sum(0)
            codebook[k] = sums[k] / counts[k]
        np.testing.assert_allclose(quantizer.codebook.numpy(), codebook, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(quantizer.usage.numpy() * count / size, counts, rtol=1e-5)
    assert quantizer.num_updates.item() == 8


def test_an_entry_that_is_never_chosen_keeps_its_place():
    quantizer = VectorQuantizer(4, 2, decay=0.9, kmeans_init=False, dead_code_threshold=0)
    quantizer.codebook[3] = torch.tensor([100.0, 100.0])
    quantizer.sums[3] = quantizer.codebook[3]
    for _ in range(300):
        quantizer(torch.randn(32, 2), update=True)
    torch.testing.assert_close(quantizer.codebook[3], torch.tensor([100.0, 100.0]))
    assert quantizer.usage[3] < 1e-6 and quantizer.codebook.isfinite().all()


def test_dead_entries_are_revived_with_new_statistics():
    quantizer = VectorQuantizer(4, 2, decay=0.5, kmeans_init=False, dead_code_threshold=0.1)
    quantizer.codebook[3] = torch.tensor([100.0, 100.0])
    quantizer.sums[3] = quantizer.codebook[3]
    revived_at = None
    for step in range(6):
        vectors = torch.randn(64, 2)
        before = quantizer.usage[3].item()
        codes = quantizer(vectors, update=True)[1]
        if before < 0.1:
            revived_at = step
            break
        assert before == pytest.approx(0.5**step) and (codes != 3).all()
    assert revived_at == 4  # 0.5 ** 4 < 0.1
    chosen = vectors[codes == 3]
    assert len(chosen) > 0  # its place is a vector of the batch: it is used at once
    place = quantizer.sums[3] * 2 - chosen.sum(0) * 4 / 64  # undo the moving average: sums was set to the place
    assert (vectors - place).square().sum(1).min() < 1e-8
    assert quantizer.usage[3].item() == pytest.approx(0.5 * 1 + 0.5 * len(chosen) * 4 / 64)
    torch.testing.assert_close(quantizer.codebook[3], quantizer.sums[3] / quantizer.usage[3])


def test_revival_brings_a_collapsed_codebook_to_life():
    centres = torch.randn(32, 4) * 3
    used = {}
    for threshold in (0, 0.1):
        quantizer = VectorQuantizer(32, 4, decay=0.8, kmeans_init=False, dead_code_threshold=threshold)
        quantizer.codebook += 50
        quantizer.sums += 50
        for step in range(60):
            quantizer(clusters(256, centres, seed=step), update=True)
        used[threshold] = quantizer(clusters(1024, centres, seed=99), update=False)[1].unique().numel()
    assert used[0] <= 4 and used[0.1] >= 24


def test_kmeans_start_lowers_the_distortion():
    centres = torch.randn(16, 8)
    vectors = clusters(600, centres)
    errors = {}
    for kmeans in (False, True):
        quantizer = VectorQuantizer(16, 8, kmeans_init=kmeans, dead_code_threshold=0)
        quantizer(vectors, update=True)
        errors[kmeans] = quantizer(vectors, update=False)[2].item()
    quantizer = VectorQuantizer(16, 8)
    quantizer.codebook.copy_(vectors[torch.randperm(600)[:16]])
    errors["vectors at random"] = quantizer(vectors, update=False)[2].item()
    assert errors[True] < 0.7 * errors["vectors at random"] < errors[False]
    quantizer = VectorQuantizer(16, 8, decay=1.0, dead_code_threshold=0)  # a frozen average: only the start moves it
    quantizer(vectors, update=True)
    started = quantizer.codebook.clone()
    quantizer(vectors + 5, update=True)
    torch.testing.assert_close(quantizer.codebook, started)


def test_kmeans_with_fewer_vectors_than_entries():
    quantizer = VectorQuantizer(64, 3)
    quantizer(torch.randn(5, 3), update=True)
    assert quantizer.codebook.isfinite().all()
    assert quantizer(torch.randn(5, 3), update=False)[2].isfinite()


def test_training_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    quantizer = VectorQuantizer(16, 4, dead_code_threshold=1)
    vectors = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        quantizer(vectors, update=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_picks_are_spread_evenly_and_differ_between_updates():
    picks = torch.stack([bottlenecks._random_indices(torch.tensor(float(seed)), 1000, 10) for seed in range(50)])
    counts = torch.bincount(picks.flatten(), minlength=10)
    assert (counts - 5000).abs().max() < 5 * math.sqrt(5000)
    assert len({tuple(row.tolist()) for row in picks}) == 50


# ---- gradients


def test_gradients_of_a_learned_codebook():
    quantizer = VectorQuantizer(5, 3, codebook_update="gradient", kmeans_init=False, dead_code_threshold=0)
    assert isinstance(quantizer.codebook, torch.nn.Parameter)
    start = quantizer.codebook.detach().clone()
    vectors = torch.randn(20, 3, requires_grad=True)
    entries, codes, commitment, codebook_loss = quantizer(vectors, update=True)
    assert torch.equal(quantizer.codebook, start)  # the optimizer moves it, nothing else
    assert commitment.item() == pytest.approx(codebook_loss.item())
    (grad_codebook,) = torch.autograd.grad(codebook_loss, quantizer.codebook, retain_graph=True)
    expected = torch.zeros(5, 3).index_add_(0, codes, (entries - vectors).detach() * 2 / vectors.numel())
    torch.testing.assert_close(grad_codebook, expected)
    (grad_vectors,) = torch.autograd.grad(commitment, vectors, retain_graph=True)
    torch.testing.assert_close(grad_vectors, (vectors - entries).detach() * 2 / vectors.numel())
    with pytest.raises(RuntimeError, match="not.*used|unused|does not require grad"):
        torch.autograd.grad(codebook_loss, vectors)


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_straight_through(update, num_codebooks):
    quantizer = ResidualVectorQuantizer(num_codebooks, 6, 4, codebook_update=update)
    latents = torch.randn(2, 4, 3, 5, requires_grad=True)
    quantized, codes, _, _ = quantizer(latents, update=True)
    assert quantized.shape == latents.shape and codes.shape == (2, num_codebooks, 3, 5) and codes.dtype == torch.int64
    weights = torch.randn_like(quantized)
    (quantized * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)
    quantized, codes, _, _ = quantizer(latents)
    torch.testing.assert_close(quantized, quantizer.decode(codes))


def test_any_grid():
    quantizer = ResidualVectorQuantizer(2, 8, 4)
    for grid in ((), (7,), (2, 3), (2, 3, 4)):
        latents = torch.randn(5, 4, *grid)
        quantized, codes, _, _ = quantizer(latents)
        assert quantized.shape == latents.shape and codes.shape == (5, 2, *grid)
        torch.testing.assert_close(quantizer.decode(codes), quantized)


# ---- cosine, residual


def test_cosine_codes_do_not_depend_on_length():
    quantizer = ResidualVectorQuantizer(1, 12, 4, cosine=True)
    latents = torch.randn(3, 4, 5, 5)
    for _ in range(3):
        quantizer(latents, update=True)
    quantized, codes, _, _ = quantizer(latents)
    scaled, scaled_codes, _, _ = quantizer(latents * torch.rand(3, 1, 5, 5).add(0.01) * 100)
    assert torch.equal(codes, scaled_codes)
    torch.testing.assert_close(quantized, scaled)
    torch.testing.assert_close(quantized.norm(dim=1), torch.ones(3, 5, 5))
    entries = torch.nn.functional.normalize(quantizer.quantizers[0].codebook, dim=-1)
    cosines = torch.einsum("bdhw,kd->bkhw", torch.nn.functional.normalize(latents, dim=1), entries)
    assert torch.equal(codes[:, 0], cosines.argmax(1))
    torch.testing.assert_close(quantizer.quantizers[0].codebook.norm(dim=1), torch.ones(12))


def test_each_residual_codebook_brings_the_error_down():
    quantizer = ResidualVectorQuantizer(4, 16, 6, decay=0.9)
    latents = torch.randn(400, 6)
    for _ in range(10):
        quantizer(latents, update=True)
    _, codes, _, _ = quantizer(latents)
    partial, errors = 0.0, [latents.square().mean().item()]
    for index, level in enumerate(quantizer.quantizers):
        partial = partial + level.decode(codes[:, index])
        errors.append((latents - partial).square().mean().item())
    assert all(after < 0.9 * before for before, after in zip(errors, errors[1:], strict=False)), errors
    books = [level.codebook for level in quantizer.quantizers]
    assert not torch.equal(books[0], books[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_inside(dtype):
    for quantizer in (
        ResidualVectorQuantizer(2, 64, 8),
        ResidualVectorQuantizer(1, 64, 8, cosine=True),
        FiniteScalarQuantizer((8,) * 8),
    ):
        latents = (torch.randn(4, 8, 16, 16) + 3).to(dtype)  # an offset is what low precision distances fail on
        quantized, codes, _, _ = quantizer(latents)
        assert quantized.dtype == dtype
        assert torch.equal(codes, quantizer(latents.float())[1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(codes, quantizer(latents)[1])
            assert quantizer.decode(codes).dtype == torch.float32


# ---- FSQ


def fsq_inputs(quantizer, levels):
    """A vector in the middle of the cell of each code."""
    steps = quantizer.decode(torch.arange(math.prod(levels)).view(-1, 1)).double()
    levels = torch.tensor(levels, dtype=torch.float64)
    steps = (steps * (levels // 2)).round()
    half_width, offset = (levels - 1) * 1.001 / 2, 0.5 * (levels % 2 == 0)
    return torch.atanh((steps + offset) / half_width) - torch.atanh(offset / half_width)


@pytest.mark.parametrize("levels", [(2,), (3,), (2, 2), (8, 5, 3), (8, 8, 8), (7, 5, 5, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fsq_codes_and_levels_are_one_to_one(levels, dtype):
    quantizer, number = FiniteScalarQuantizer(levels), math.prod(levels)
    everything = torch.arange(number).view(-1, 1)
    vectors = quantizer.decode(everything)
    assert vectors.shape == (number, len(levels)) and vectors.unique(dim=0).shape[0] == number
    assert vectors.min() >= -1 and vectors.max() <= 1
    for dim, count in enumerate(levels):
        spacing = vectors[:, dim].unique().diff()
        assert len(spacing) == count - 1 and torch.allclose(spacing, torch.tensor(1.0 / (count // 2)))
    quantized, codes, commitment, codebook = quantizer(fsq_inputs(quantizer, levels).to(dtype))
    assert commitment is None and codebook is None
    assert torch.equal(codes, everything)
    assert torch.equal(quantized, vectors.to(dtype))


def test_fsq_reaches_every_code_and_is_monotonic():
    quantizer = FiniteScalarQuantizer((8, 5))
    codes = quantizer(6 * torch.randn(20_000, 2))[1]
    assert codes.unique().tolist() == list(range(40))
    ramp = torch.linspace(-20, 20, 2001).unsqueeze(1).expand(-1, 2)
    assert (quantizer(ramp)[0].diff(dim=0) >= 0).all()


def test_fsq_gradient_is_that_of_the_bounding_function():
    quantizer = FiniteScalarQuantizer((8, 5))
    latents = torch.randn(30, 2, requires_grad=True)
    quantizer(latents)[0].sum().backward()
    levels = torch.tensor([8.0, 5.0])
    half_width, offset = (levels - 1) * 1.001 / 2, torch.tensor([0.5, 0.0])
    inner = latents.detach() + torch.atanh(offset / half_width)
    torch.testing.assert_close(latents.grad, half_width * (1 - torch.tanh(inner) ** 2) / (levels // 2))


def test_two_copies_of_the_code_in_one_process():
    """As when two models are loaded with remote code: each copy has operators of its own."""
    copies = []
    for name in ("copied_one", "copied_two"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(bottlenecks.__file__).parent)]
        sys.modules[name] = package
        copies.append(importlib.import_module(f"{name}.bottlenecks"))
    vectors = torch.randn(40, 4)
    results = []
    for module in (bottlenecks, *copies):
        quantizer = module.VectorQuantizer(8, 4)
        state = [quantizer.codebook, quantizer.usage, quantizer.sums, quantizer.num_updates]
        codes, _ = module.quantize_and_update(vectors, *state, 0.9, 0.05, 5, False, True)
        results.append((codes, quantizer.codebook))
    assert len({module.OPERATORS for module in (bottlenecks, *copies)}) == 3
    for codes, codebook in results[1:]:
        assert torch.equal(codes, results[0][0]) and torch.equal(codebook, results[0][1])


# ---- several processes


def quantize_part(rank, folder, sizes, kwargs, steps):
    """One process of several: its share of each batch through the quantiser. Leaves the state in a file."""
    torch.set_num_threads(1)
    if len(sizes) > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(sizes))
    quantizer = ResidualVectorQuantizer(**kwargs)
    centres = torch.randn(24, 4, generator=torch.Generator().manual_seed(9)) * 2
    codes = []
    for step in range(steps):
        batch = clusters(sum(sizes), centres + 0.5 * step, spread=0.3, seed=step)
        start = sum(sizes[:rank])
        codes.append(quantizer(batch[start : start + sizes[rank]], update=True)[1])
    # terms that are not linear in the mean over the batch: 30 rows a process, or 60 in one
    rows = clusters(60, centres, spread=0.3, seed=99)[30 * rank : 30 * rank + 60 // len(sizes)]
    weight = torch.ones(4, requires_grad=True)
    kl, activations = (rows * weight).square(), torch.sigmoid(rows * weight)
    (sum_with_free_bits(kl, 2.5, training=True) + bernoulli_sparsity(activations, 0.1, training=True)).backward()
    torch.save(
        {"state": quantizer.state_dict(), "codes": codes, "grad": weight.grad}, f"{folder}/{len(sizes)}-{rank}.pt"
    )
    if len(sizes) > 1:
        dist.destroy_process_group()


def test_two_processes_learn_what_one_does(tmp_path):
    """Codebooks on unequal shares of the batch, k-means start and revivals included; and terms of the batch mean."""
    kwargs = {"num_codebooks": 2, "codebook_size": 16, "embedding_dim": 4, "decay": 0.7, "dead_code_threshold": 0.3}
    steps, sizes = 6, (70, 30)
    torch.multiprocessing.spawn(quantize_part, (str(tmp_path), sizes, kwargs, steps), nprocs=2)
    quantize_part(0, str(tmp_path), (100,), kwargs, steps)
    alone, first, second = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for key, value in alone["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), f"{key} differs between the processes"
        torch.testing.assert_close(first["state"][key], value, rtol=1e-4, atol=1e-5)
    for one, other, whole in zip(first["codes"], second["codes"], alone["codes"], strict=True):
        assert torch.equal(torch.cat([one, other]), whole)
    torch.testing.assert_close((first["grad"] + second["grad"]) / 2, alone["grad"])  # as DistributedDataParallel does
    assert not torch.allclose(first["grad"], second["grad"], rtol=1e-2)
    without = ResidualVectorQuantizer(**{**kwargs, "dead_code_threshold": 0})  # so revivals did happen
    centres = torch.randn(24, 4, generator=torch.Generator().manual_seed(9)) * 2
    for step in range(steps):
        without(clusters(100, centres + 0.5 * step, spread=0.3, seed=step), update=True)
    assert not torch.allclose(without.quantizers[0].codebook, alone["state"]["quantizers.0.codebook"], atol=1e-2)
