"""Likelihoods, divergences and penalties against independent formulas."""

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from hf_autoencoders.models.losses import (
    bernoulli_log_likelihood,
    bernoulli_sparsity,
    discretized_logistic_log_likelihood,
    gaussian_kl,
    gaussian_log_likelihood,
    sum_with_free_bits,
)

LEVELS = torch.arange(256) / 255


def logistic_reference(mean, log_scale, levels=256):
    """log probability of every level, in float64, by differences of the cumulative distribution."""
    edges = (np.arange(levels - 1) + 0.5) / (levels - 1)
    z = (edges - mean) / np.exp(log_scale)
    below = np.concatenate([[0.0], np.where(z < 0, np.exp(np.minimum(z, 0)), 1) / (1 + np.exp(-np.abs(z))), [1.0]])
    above = np.concatenate([[1.0], np.where(z > 0, np.exp(-np.maximum(z, 0)), 1) / (1 + np.exp(-np.abs(z))), [0.0]])
    mass = np.where(below[1:] < 0.5, np.diff(below), -np.diff(above))  # whichever tail is the exact one
    with np.errstate(divide="ignore"):
        return np.log(mass)


@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.001, 0.5, 0.77, 1.0, 1.4])
@pytest.mark.parametrize("log_scale", [-7.0, -5.0, -2.0, 0.0, 3.0])
def test_discretized_logistic(mean, log_scale):
    log_mass = discretized_logistic_log_likelihood(
        torch.full((256, 1), mean), torch.tensor(log_scale), LEVELS.unsqueeze(1)
    )
    assert log_mass.dtype == torch.float32 and log_mass.shape == (256,) and log_mass.isfinite().all()
    assert log_mass.double().exp().sum().item() == pytest.approx(1.0, abs=2e-5)
    reference = logistic_reference(mean, log_scale)
    seen = reference > -25  # beyond, differences of the float64 distribution lose their digits
    np.testing.assert_allclose(log_mass.numpy()[seen], reference[seen], rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("log_scale", [-7.0, -4.0, 0.0, 20.0])
def test_discretized_logistic_has_finite_gradients(log_scale):
    mean = torch.linspace(-50, 50, 101).repeat(256, 1).requires_grad_()
    scale = torch.tensor(log_scale, requires_grad=True)
    discretized_logistic_log_likelihood(mean, scale, LEVELS.unsqueeze(1).expand_as(mean)).sum().backward()
    assert mean.grad.isfinite().all() and scale.grad.isfinite()


def test_discretized_logistic_of_other_levels():
    levels = torch.tensor([[0.0], [0.5], [1.0]])
    log_mass = discretized_logistic_log_likelihood(torch.full((3, 1), 0.4), torch.tensor(-1.0), levels, num_levels=3)
    assert log_mass.exp().sum().item() == pytest.approx(1)


def test_gaussian_log_likelihood():
    mean, targets = torch.randn(5, 3, 4, 2), torch.rand(5, 3, 4, 2)
    log_scale = torch.tensor([-3.0, 0.0, 1.0]).view(3, 1, 1)
    expected = Normal(mean, log_scale.exp()).log_prob(targets).flatten(1).sum(1)
    torch.testing.assert_close(gaussian_log_likelihood(mean, log_scale, targets), expected)


def test_bernoulli_log_likelihood():
    logits, binary, grey = 5 * torch.randn(5, 3, 4, 2), torch.rand(5, 3, 4, 2).round(), torch.rand(5, 3, 4, 2)
    expected = Bernoulli(logits=logits).log_prob(binary).flatten(1).sum(1)
    torch.testing.assert_close(bernoulli_log_likelihood(logits, binary), expected)
    p = logits.double().sigmoid()
    expected = (grey * p.log() + (1 - grey) * (1 - p).log()).flatten(1).sum(1).float()
    torch.testing.assert_close(bernoulli_log_likelihood(logits, grey), expected)
    assert bernoulli_log_likelihood(torch.tensor([[1e4, -1e4]]), torch.tensor([[1.0, 0.0]])).item() == 0


def test_gaussian_kl():
    mean, log_variance = torch.randn(6, 4), torch.randn(6, 4)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
    assert gaussian_kl(torch.zeros(1, 1), torch.zeros(1, 1)).item() == 0


def test_free_bits_charge_what_the_batch_spends_beyond_them():
    kl = torch.tensor([[0.1, 3.0], [0.3, 5.0]], requires_grad=True)
    assert sum_with_free_bits(kl, 0.0).item() == pytest.approx(4.2)
    total = sum_with_free_bits(kl, 0.5)
    assert total.item() == pytest.approx(0.5 + 4.0)
    total.backward()
    assert kl.grad.tolist() == [[0.0, 0.5], [0.0, 0.5]]  # no pull on the dimension that is below


def test_bernoulli_sparsity():
    activations = torch.rand(64, 5)
    expected = kl_divergence(Bernoulli(torch.tensor(0.1)), Bernoulli(activations.mean(0))).sum()
    torch.testing.assert_close(bernoulli_sparsity(activations, 0.1), expected)
    assert bernoulli_sparsity(torch.full((4, 3), 0.05), 0.05).item() == pytest.approx(0, abs=1e-6)
    assert bernoulli_sparsity(torch.tensor([[0.0, 1.0]]), 0.05).isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_compute_in_float32(dtype):
    one, other = torch.randn(4, 2, 3, 3).to(dtype), torch.rand(4, 2, 3, 3).to(dtype)
    scale = torch.full((2, 1, 1), -2.0)
    pairs = [
        (bernoulli_log_likelihood(one, other), bernoulli_log_likelihood(one.float(), other.float())),
        (gaussian_log_likelihood(one, scale, other), gaussian_log_likelihood(one.float(), scale, other.float())),
        (gaussian_kl(one, other), gaussian_kl(one.float(), other.float())),
        (bernoulli_sparsity(other.flatten(1), 0.1), bernoulli_sparsity(other.flatten(1).float(), 0.1)),
        (
            discretized_logistic_log_likelihood(one, scale, other),
            discretized_logistic_log_likelihood(one.float(), scale, other.float()),
        ),
    ]
    for half, full in pairs:
        assert half.dtype == torch.float32 and torch.equal(half, full)
