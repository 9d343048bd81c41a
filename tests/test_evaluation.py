"""The mathematics of the evaluation: analytic values, invariances, comparisons with scikit-learn and brute force."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA as SklearnPCA

import hf_autoencoders
from hf_autoencoders.data import ImageArrays
from hf_autoencoders.evaluation import baselines, evaluate, pictures
from hf_autoencoders.evaluation.clustering import clustering_metrics
from hf_autoencoders.evaluation.codes import CodeUsage, bit_entropies
from hf_autoencoders.evaluation.disentanglement import disentanglement_metrics
from hf_autoencoders.evaluation.evaluate import (
    code_metrics,
    encode_images,
    evaluate_model,
    likelihood_metrics,
    reconstruction_metrics,
    write_metrics,
)
from hf_autoencoders.evaluation.likelihood import (
    ActiveUnits,
    binarize_images,
    bits_per_dimension,
    dequantize_images,
    gaussian_kl,
    importance_sampled_log_likelihood,
)
from hf_autoencoders.evaluation.probe import linear_probe
from hf_autoencoders.evaluation.reconstruction import (
    ReconstructionMeter,
    peak_signal_to_noise_ratio,
    squared_error,
    structural_similarity,
)

# Reconstruction


def test_mse_is_exact_over_unequal_batches():
    images, reconstruction = torch.rand(7, 3, 12, 13), torch.rand(7, 3, 12, 13)
    meter = ReconstructionMeter()
    for first, last in ((0, 3), (3, 6), (6, 7)):
        meter.update(images[first:last], reconstruction[first:last])
    result = meter.compute()
    expected = (images.double() - reconstruction.double()).square().mean().item()
    assert result["mse"] == pytest.approx(expected, rel=1e-6)
    assert result["psnr"] == pytest.approx(10 * math.log10(1 / expected), rel=1e-6)
    assert result["ssim"] == pytest.approx(structural_similarity(images, reconstruction).mean().item(), rel=1e-9)


def test_psnr_of_known_errors():
    assert peak_signal_to_noise_ratio(0.01) == pytest.approx(20)
    assert peak_signal_to_noise_ratio(1.0) == pytest.approx(0)
    assert peak_signal_to_noise_ratio(0.0) == math.inf
    with pytest.raises(ValueError, match=">= 0"):
        peak_signal_to_noise_ratio(math.nan)


def test_squared_error_of_a_constant_difference():
    images = torch.full((4, 1, 5, 6), 0.25)
    assert squared_error(images, images + 0.5).tolist() == pytest.approx([0.25] * 4)


def test_ssim_of_constant_images_is_the_luminance_term():
    # without structure SSIM is (2 a b + c1) / (a^2 + b^2 + c1), c1 = 0.01^2
    a, b, c1 = 0.2, 0.6, 0.01**2
    score = structural_similarity(torch.full((1, 1, 16, 16), a), torch.full((1, 1, 16, 16), b))
    assert score.item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-3)


def test_ssim_is_one_for_equal_images_symmetric_and_of_each_image():
    first, second = torch.rand(3, 3, 16, 17), torch.rand(3, 3, 16, 17)
    assert structural_similarity(first, first).tolist() == pytest.approx([1, 1, 1])
    forward = structural_similarity(first, second)
    assert torch.allclose(forward, structural_similarity(second, first))
    assert forward[1:2].item() == pytest.approx(structural_similarity(first[1:2], second[1:2]).item(), rel=1e-5)


def test_images_below_the_ssim_window_are_refused_by_the_function_and_left_out_by_the_meter():
    images = torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="8 x 8 are smaller than one window"):
        structural_similarity(images, images)
    meter = ReconstructionMeter()
    meter.update(images, images * 0.5)
    assert set(meter.compute()) == {"mse", "psnr"}


@pytest.mark.parametrize(
    ("images", "reconstruction", "error", "message"),
    [
        (torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 1), ValueError, r"same shape.*\(2, 1, 8, 8\).*\(2, 1, 8, 1\)"),
        (torch.rand(2, 8, 8), torch.rand(2, 8, 8), ValueError, r"\(batch_size, channels, height, width\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.rand(2, 1, 8, 8), TypeError, "torch.uint8"),
        (np.zeros((2, 1, 8, 8)), torch.rand(2, 1, 8, 8), TypeError, "ndarray"),
        (torch.rand(0, 1, 8, 8), torch.rand(0, 1, 8, 8), ValueError, "at least one image"),
    ],
)
def test_reconstruction_refuses(images, reconstruction, error, message):
    with pytest.raises(error, match=message):
        squared_error(images, reconstruction)


def test_a_reconstruction_of_nan_is_an_error_not_a_number():
    meter = ReconstructionMeter()
    meter.update(torch.rand(1, 1, 8, 8), torch.full((1, 1, 8, 8), math.nan))
    with pytest.raises(ValueError, match="NaN"):
        meter.compute()


# Likelihood


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(W z + b, s^2 I), q(z|x) = the true posterior, moved by `shift` standard deviations.

    p(x) = N(b, W W^T + s^2 I) and, as long as W^T W is diagonal, the true posterior is a diagonal Gaussian.
    """

    def __init__(self, num_dims=12, latent_size=3, scale=0.3, shift=0.0, widen=1.0):
        generator = torch.Generator().manual_seed(1)
        basis = torch.linalg.qr(torch.randn(num_dims, latent_size, generator=generator, dtype=torch.float64))[0]
        self.weight = basis * torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
        self.bias = torch.rand(num_dims, generator=generator, dtype=torch.float64)
        self.scale, self.shift, self.widen = scale, shift, widen
        self.largest_batch = 0

    def encode(self, pixel_values):
        x = pixel_values.flatten(1).double()
        precision = 1 + self.weight.square().sum(dim=0) / self.scale**2
        mean = (x - self.bias) @ self.weight / self.scale**2 / precision
        deviation = precision.rsqrt()
        mean = mean + self.shift * deviation
        log_variance = (2 * (self.widen * deviation).log()).expand_as(mean)
        return type("Posterior", (), {"mean": mean.float(), "log_variance": log_variance.float()})

    def reconstruction_log_likelihood(self, pixel_values, latents):
        self.largest_batch = max(self.largest_batch, len(latents))
        difference = pixel_values.flatten(1).double() - latents.double() @ self.weight.T - self.bias
        log_density = -0.5 * (difference / self.scale).square() - math.log(self.scale) - 0.5 * math.log(2 * math.pi)
        return log_density.sum(dim=1)

    def log_likelihood(self, pixel_values):
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(len(self.bias), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(pixel_values.flatten(1).double())


@pytest.mark.parametrize("num_samples", [1, 2, 17])
def test_likelihood_is_exact_for_any_number_of_samples_under_the_true_posterior(num_samples):
    model, images = LinearGaussian(), torch.rand(5, 1, 3, 4)
    estimate = importance_sampled_log_likelihood(model, images, num_samples, generator=np.random.default_rng(0))
    assert estimate.log_likelihood.dtype == torch.float64
    torch.testing.assert_close(estimate.log_likelihood, model.log_likelihood(images), rtol=0, atol=2e-5)


def test_likelihood_converges_from_below_under_another_posterior():
    model, images = LinearGaussian(shift=0.7, widen=1.4), torch.rand(400, 1, 3, 4)
    exact = model.log_likelihood(images).mean().item()
    generator = np.random.default_rng(0)
    gaps = [
        exact - importance_sampled_log_likelihood(model, images, k, generator=generator).log_likelihood.mean().item()
        for k in (1, 4, 16, 64, 1024)
    ]
    assert all(wider > narrower for wider, narrower in zip(gaps, gaps[1:], strict=False))
    assert gaps[0] > 0.5 and abs(gaps[-1]) < 0.01


def test_elbo_is_the_likelihood_minus_the_divergence_from_the_true_posterior():
    model, images = LinearGaussian(shift=0.7, widen=1.4), torch.rand(50, 1, 3, 4)
    estimate = importance_sampled_log_likelihood(model, images, 4000, generator=np.random.default_rng(0))
    divergence = 3 * (0.5 * (1.4**2 + 0.7**2 - 1) - math.log(1.4))  # KL(N(shift, widen^2) || N(0, 1)) of each latent
    gap = (model.log_likelihood(images) - estimate.elbo).mean().item()
    assert gap == pytest.approx(divergence, rel=0.02)
    assert (estimate.elbo < estimate.log_likelihood).all()


def test_likelihood_does_not_depend_on_batches_or_memory_bound():
    model, images = LinearGaussian(shift=0.5), torch.rand(11, 1, 3, 4)
    whole = importance_sampled_log_likelihood(model, images, 10, generator=np.random.default_rng(3))
    for rows, batch in ((1, 11), (4, 11), (10, 3), (35, 5), (8192, 1)):
        generator = np.random.default_rng(3)
        parts = [
            importance_sampled_log_likelihood(model, part, 10, generator=generator, max_decoder_rows=rows)
            for part in images.split(batch)
        ]
        for field in ("log_likelihood", "elbo", "kl"):
            together = torch.cat([getattr(part, field) for part in parts])
            torch.testing.assert_close(together, getattr(whole, field), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("max_decoder_rows", [1, 7, 64])
def test_likelihood_decodes_no_more_rows_at_once_than_allowed_and_honours_k(max_decoder_rows):
    class Counting(LinearGaussian):
        total = 0

        def reconstruction_log_likelihood(self, pixel_values, latents):
            self.total += len(latents)
            return super().reconstruction_log_likelihood(pixel_values, latents)

    model = Counting()
    images = torch.rand(6, 1, 3, 4)
    importance_sampled_log_likelihood(
        model, images, 13, generator=np.random.default_rng(0), max_decoder_rows=max_decoder_rows
    )
    assert model.total == 6 * 13
    assert model.largest_batch <= max_decoder_rows


def test_likelihood_equals_the_definition_by_brute_force():
    model, images = LinearGaussian(shift=0.5, widen=0.8), torch.rand(3, 1, 3, 4)
    noise = torch.from_numpy(np.random.default_rng(5).standard_normal((3, 6, 3), dtype=np.float32)).double()
    posterior = model.encode(images)
    mean, deviation = posterior.mean.double(), (0.5 * posterior.log_variance.double()).exp()
    weights = torch.empty(3, 6, dtype=torch.float64)
    for i in range(3):
        q = torch.distributions.Normal(mean[i], deviation[i])
        for k in range(6):
            z = mean[i] + deviation[i] * noise[i, k]
            log_p_z = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
            log_p_x = model.reconstruction_log_likelihood(images[i : i + 1], z[None])[0]
            weights[i, k] = (log_p_x + log_p_z - q.log_prob(z).sum()).exp()
    estimate = importance_sampled_log_likelihood(model, images, 6, generator=np.random.default_rng(5))
    torch.testing.assert_close(estimate.log_likelihood, weights.mean(dim=1).log(), rtol=0, atol=1e-5)


def test_likelihood_of_thousands_of_nats_neither_overflows_nor_loses_digits():
    class Shifted(LinearGaussian):
        def reconstruction_log_likelihood(self, pixel_values, latents):
            return super().reconstruction_log_likelihood(pixel_values, latents) - 5000

    images = torch.rand(4, 1, 3, 4)
    plain = importance_sampled_log_likelihood(LinearGaussian(shift=1.0), images, 50, generator=np.random.default_rng(0))
    moved = importance_sampled_log_likelihood(Shifted(shift=1.0), images, 50, generator=np.random.default_rng(0))
    torch.testing.assert_close(moved.log_likelihood, plain.log_likelihood - 5000, rtol=0, atol=1e-9)


def test_likelihood_leaves_the_global_random_state_alone():
    images = torch.rand(2, 1, 3, 4)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    importance_sampled_log_likelihood(LinearGaussian(), images, 5, generator=np.random.default_rng(0))
    assert torch.equal(state, torch.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()


def test_likelihood_refuses_bad_input():
    generator = np.random.default_rng(0)
    images = torch.rand(2, 1, 3, 4)
    with pytest.raises(ValueError, match=r"\[0, 1\], got values from"):
        importance_sampled_log_likelihood(LinearGaussian(), images * 255, 5, generator=generator)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        importance_sampled_log_likelihood(LinearGaussian(), images * math.nan, 5, generator=generator)
    for k in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="num_samples"):
            importance_sampled_log_likelihood(LinearGaussian(), images, k, generator=generator)


def test_gaussian_kl_against_torch():
    mean, log_variance = torch.randn(4, 5), torch.randn(4, 5)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean.double(), (0.5 * log_variance.double()).exp()),
        torch.distributions.Normal(torch.zeros(4, 5, dtype=torch.float64), 1.0),
    ).sum(dim=1)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(4, 1\)"):
        gaussian_kl(mean, log_variance[:, :1])


def test_bits_per_dimension():
    assert bits_per_dimension(-784 * math.log(2), 784, density=False) == pytest.approx(1)
    # the uniform density on [0, 1] gives each of 256 levels the same probability: 8 bits
    assert bits_per_dimension(0.0, 784, density=True) == pytest.approx(8)
    # a density of 256 on one level's cell is probability 1: no bits
    assert bits_per_dimension(784 * math.log(256), 784, density=True) == pytest.approx(0)


def test_binarized_images_have_the_grey_levels_as_their_mean():
    grey = torch.tensor([0.0, 0.2, 0.7, 1.0]).view(1, 1, 2, 2).expand(20000, 1, 2, 2)
    binary = binarize_images(grey, generator=np.random.default_rng(0))
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    means = binary.mean(dim=0).flatten().tolist()
    assert means[0] == 0 and means[3] == 1
    assert means[1:3] == pytest.approx([0.2, 0.7], abs=0.015)


def test_binarized_images_follow_the_seed_not_the_batches():
    grey = torch.rand(10, 1, 3, 5)
    whole = binarize_images(grey, generator=np.random.default_rng(1))
    generator = np.random.default_rng(1)
    assert torch.equal(whole, torch.cat([binarize_images(part, generator=generator) for part in grey.split(3)]))
    assert not torch.equal(whole, binarize_images(grey, generator=np.random.default_rng(2)))
    assert torch.equal(whole, binarize_images(whole, generator=generator)), "binary images stay as they are"


def test_dequantized_images_stay_in_their_cells():
    levels = torch.arange(256).view(1, 1, 16, 16).expand(50, 1, 16, 16)
    images = dequantize_images(levels / 255, generator=np.random.default_rng(0))
    assert torch.equal((images * 256).floor().long(), levels)
    assert (images * 256 - levels).mean().item() == pytest.approx(0.5, abs=0.01)


def test_active_units_against_numpy_and_large_offsets():
    means = torch.randn(1000, 4) * torch.tensor([1.0, 0.11, 0.09, 0.0]) + torch.tensor([0.0, 1000.0, 5.0, 3.0])
    units = ActiveUnits()
    for part in means.split(333):
        units.update(part)
    np.testing.assert_allclose(units.variances().numpy(), means.double().numpy().var(axis=0), rtol=1e-9, atol=1e-15)
    assert units.compute() == int((means.double().numpy().var(axis=0) > 0.01).sum()) == 2


# Codes


def test_code_usage_and_perplexity_of_known_counts():
    usage = CodeUsage(8, num_codebooks=2)
    uniform = torch.arange(8).repeat(4).view(4, 1, 8)
    usage.update(torch.cat([uniform, torch.full_like(uniform, 3)], dim=1))
    assert usage.usage().tolist() == [1.0, 1 / 8]
    assert usage.perplexity().tolist() == pytest.approx([8, 1])


def test_code_usage_is_of_the_split_not_of_the_batches():
    codes = torch.randint(0, 50, (64, 1, 3, 3))
    whole, parts = CodeUsage(64), CodeUsage(64)
    whole.update(codes)
    for part in codes.split(5):
        parts.update(part)
    assert torch.equal(whole.counts, parts.counts)
    _, counts = np.unique(codes.numpy(), return_counts=True)
    frequencies = counts / counts.sum()
    assert whole.perplexity().item() == pytest.approx(np.exp(-(frequencies * np.log(frequencies)).sum()))
    assert whole.usage().item() == len(counts) / 64


def test_code_metrics_reports_each_of_several_codebooks():
    codes = np.stack([np.arange(4), np.zeros(4, dtype=np.int64)], axis=1)
    metrics = code_metrics(codes, 4)
    assert metrics["code_usage"] == pytest.approx((1 + 0.25) / 2)
    assert metrics["code_perplexity_0"] == pytest.approx(4) and metrics["code_perplexity_1"] == pytest.approx(1)
    assert set(code_metrics(codes[:, :1], 4)) == {"code_usage", "code_perplexity"}


def test_code_usage_refuses():
    usage = CodeUsage(8)
    with pytest.raises(ValueError, match="no codes were counted"):
        usage.perplexity()
    with pytest.raises(ValueError, match=r"0 .. 7, got codes from 0 to 8"):
        usage.update(torch.tensor([[0, 8]]).view(1, 1, 2))
    with pytest.raises(ValueError, match=r"\(batch_size, 1, ...\)"):
        usage.update(torch.zeros(2, 3, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="float32"):
        usage.update(torch.zeros(2, 1))


def test_entropy_of_bits_is_that_of_a_coin():
    codes = np.stack([np.arange(16) % 2, np.arange(16) < 4, np.zeros(16), np.ones(16)], axis=1).astype(np.int32)
    quarter = -0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)
    np.testing.assert_allclose(bit_entropies(codes), [1, quarter, 0, 0], atol=1e-12)
    np.testing.assert_allclose(bit_entropies(1 - codes), bit_entropies(codes), atol=1e-12)
    drawn = np.random.default_rng(0).integers(0, 2, (50, 3))
    usage = CodeUsage(2, 3)
    usage.update(torch.from_numpy(drawn))
    np.testing.assert_allclose(bit_entropies(drawn), usage.perplexity().log2().numpy(), atol=1e-12)
    for wrong in (np.zeros(3), np.zeros((0, 3)), np.zeros((2, 3, 1))):
        with pytest.raises(ValueError, match=r"\(rows, num_bits\) with at least one of each"):
            bit_entropies(wrong)
    with pytest.raises(ValueError, match="must be 0 or 1, got values from 0 to 2"):
        bit_entropies(np.array([[0, 1, 2]]))


# Baselines


def structured_images(rows: int, seed: int = 0) -> np.ndarray:
    """Images of low effective rank: (rows, 1, 6, 7) uint8."""
    generator = np.random.default_rng(seed)
    basis = np.random.default_rng(9).standard_normal((5, 42)) * np.array([[30], [20], [12], [6], [3]])
    images = 128 + generator.standard_normal((rows, 5)) @ basis + generator.standard_normal((rows, 42)) * 2
    return images.clip(0, 255).astype(np.uint8).reshape(rows, 1, 6, 7)


def test_pca_agrees_with_scikit_learn():
    train, validation = structured_images(500), structured_images(200, seed=1)
    flat_train, flat_validation = (x.reshape(len(x), -1) / 255 for x in (train, validation))
    reference = SklearnPCA(4, svd_solver="full").fit(flat_train)
    pca = baselines.fit_pca(train, 4, batch_size=77)
    np.testing.assert_allclose(pca.mean, reference.mean_, atol=1e-6)
    np.testing.assert_allclose(np.abs(pca.components @ reference.components_.T), np.eye(4), atol=1e-3)
    np.testing.assert_allclose(pca.variances, reference.explained_variance_ * 499 / 500, rtol=1e-4)
    restored = reference.inverse_transform(reference.transform(flat_validation))
    expected = np.square(restored - flat_validation).mean()
    assert baselines.pca_reconstruction_mse(pca, validation, 4, batch_size=33) == pytest.approx(expected, rel=1e-4)


def test_pca_error_falls_to_zero_with_all_components():
    images = structured_images(300)
    pca = baselines.fit_pca(images)
    errors = [baselines.pca_reconstruction_mse(pca, images, k) for k in (1, 2, 3, 5, 20, 42)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-10


def test_lloyd_max_of_a_gaussian_is_max_1960():
    values = np.sort(np.random.default_rng(0).standard_normal(200_000))
    # J. Max, "Quantizing for minimum distortion", 1960, table I: mean squared error for unit variance
    for num_levels, expected in ((1, 1.0), (2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497)):
        levels = baselines.lloyd_max(values, num_levels)
        assert len(levels) == num_levels
        assert np.square(baselines.quantize(values, levels) - values).mean() == pytest.approx(expected, rel=0.02)
    np.testing.assert_allclose(baselines.lloyd_max(values, 4), [-1.510, -0.4528, 0.4528, 1.510], atol=0.02)


def test_quantize_picks_the_nearest_level():
    levels, values = np.array([-2.0, 0.1, 0.5, 3.0]), np.random.default_rng(0).standard_normal(1000) * 2
    nearest = levels[np.abs(values[:, None] - levels).argmin(axis=1)]
    np.testing.assert_array_equal(baselines.quantize(values, levels), nearest)
    np.testing.assert_array_equal(baselines.quantize(values, np.array([0.3])), np.full(1000, 0.3))


def test_quantized_pca_keeps_its_budget_and_improves_with_it():
    train, validation = structured_images(2000), structured_images(500, seed=1)
    pca = baselines.fit_pca(train)
    errors = []
    for bits in (1, 4, 9, 18.5, 40):
        quantized = baselines.fit_quantized_pca(pca, train, bits)
        assert bits - 1 <= quantized.bits <= bits + 1e-9
        errors.append(quantized.mse(validation))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < np.square(validation.reshape(500, -1) / 255 - pca.mean).mean(), "a bit is better than none"


def test_quantized_pca_is_close_to_the_rate_distortion_bound_of_a_gaussian():
    generator = np.random.default_rng(0)
    deviations = np.array([40, 30, 15, 8, 4, 2])
    rotation = np.linalg.qr(generator.standard_normal((6, 6)))[0]
    flat = 128 + (generator.standard_normal((40000, 6)) * deviations) @ rotation
    images = np.rint(flat).clip(0, 255).astype(np.uint8).reshape(-1, 1, 2, 3)
    pca = baselines.fit_pca(images)
    for bits in (6, 12, 20):
        # reverse water-filling: sum of 1/2 log2(variance / level) over the components above the level
        low, high = 1e-12, pca.variances[0]
        for _ in range(200):
            level = math.sqrt(low * high)
            rate = 0.5 * np.log2(np.maximum(pca.variances / level, 1)).sum()
            low, high = (level, high) if rate > bits else (low, level)
        bound = np.minimum(pca.variances, level).sum() / 6
        error = baselines.fit_quantized_pca(pca, images, bits).mse(images)
        # fixed-length scalar quantisers stay within pi sqrt(3) / 2 = 2.72 of the bound (Panter and Dite 1951)
        assert bound < error < 2.72 * bound


def test_quantized_pca_beats_every_uniform_allocation():
    train = structured_images(3000)
    pca = baselines.fit_pca(train)
    best = baselines.fit_quantized_pca(pca, train, 12).mse(train)
    coefficients = pca.encode(train)
    for num_components, bits in ((1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)):
        restored = np.empty((len(train), num_components), dtype=np.float32)
        for column in range(num_components):
            values = coefficients[:, column].astype(np.float64)
            levels = baselines.lloyd_max(np.sort(values), 2 ** min(bits, 8))
            restored[:, column] = baselines.quantize(values, levels)
        assert best < np.square(pca.decode(restored) - train.reshape(len(train), -1) / 255).mean()


def test_baselines_refuse():
    images = structured_images(50)
    with pytest.raises(ValueError, match="uint8 array"):
        baselines.fit_pca(images / 255)
    with pytest.raises(ValueError, match="4096 dimensions, these images have 4225"):
        baselines.fit_pca(np.zeros((3, 1, 65, 65), dtype=np.uint8))
    with pytest.raises(ValueError, match="42 dimensions have no 43"):
        baselines.fit_pca(images, 43)
    pca = baselines.fit_pca(images, 2)
    with pytest.raises(ValueError, match="holds 2 components, 3"):
        baselines.pca_reconstruction_mse(pca, images, 3)
    with pytest.raises(ValueError, match="num_bits"):
        baselines.fit_quantized_pca(pca, images, 0)


# Probe


def test_linear_probe_finds_what_is_linear_and_only_that():
    generator = np.random.default_rng(0)
    features = generator.standard_normal((2000, 3)).astype(np.float32)
    linear = (features @ [1.0, -2.0, 0.5] > 0).astype(np.int64)
    exclusive_or = ((features[:, 0] > 0) ^ (features[:, 1] > 0)).astype(np.int64)
    result = linear_probe(features[:1500], linear[:1500], features[1500:], linear[1500:])
    assert result.accuracy > 0.97 and result.converged
    assert linear_probe(features[:1500], exclusive_or[:1500], features[1500:], exclusive_or[1500:]).accuracy < 0.6


def test_linear_probe_does_not_depend_on_scale_or_offset_of_a_feature():
    generator = np.random.default_rng(0)
    features = generator.standard_normal((600, 2, 2)).astype(np.float32)
    labels = features.reshape(600, -1)[:, :3].argmax(axis=1)
    moved = features * np.array([[1e-3, 50], [1, 7]], dtype=np.float32) + 3
    plain = linear_probe(features[:400], labels[:400], features[400:], labels[400:])
    assert linear_probe(moved[:400], labels[:400], moved[400:], labels[400:]).accuracy == pytest.approx(
        plain.accuracy, abs=0.02
    )


def test_linear_probe_refuses():
    features, labels = np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2
    with pytest.raises(ValueError, match="two classes"):
        linear_probe(features, labels * 0, features, labels)
    with pytest.raises(ValueError, match=r"got \(20, 3\) and \(19,\)"):
        linear_probe(features, labels[:19], features, labels)
    with pytest.raises(ValueError, match="same size, got 3 and 2"):
        linear_probe(features, labels, features[:, :2], labels)
    with pytest.raises(ValueError, match="NaN"):
        linear_probe(features * np.nan, labels, features, labels)


# Pictures


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_tiny_images_are_enlarged_without_smoothing(channels, mode):
    images = torch.rand(1, channels, 4, 5)
    picture = pictures.image_grid(images)
    assert picture.mode == mode
    border, factor = pictures.GROUP_SEPARATOR, pictures.TILE_SIZE // 4
    assert picture.size == (2 * border + 5 * factor, 2 * border + 4 * factor)
    inner = np.asarray(picture)[border:-border, border:-border][::factor, ::factor]
    expected = (images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(inner.reshape(expected.shape), expected)


def test_reconstructions_stand_below_their_originals():
    images = torch.rand(5, 1, 8, 8)
    picture = np.asarray(pictures.reconstruction_grid(images, 1 - images, columns=3))
    tile, border = 72, pictures.GROUP_SEPARATOR
    step = tile + pictures.SEPARATOR
    for index in range(5):
        top = border + (index // 3) * (2 * tile + pictures.SEPARATOR + pictures.GROUP_SEPARATOR)
        left = border + (index % 3) * step
        original = picture[top : top + tile : 9, left : left + tile : 9]
        below = picture[top + step : top + step + tile : 9, left : left + tile : 9]
        np.testing.assert_array_equal(original, (images[index, 0] * 255).round().byte().numpy())
        np.testing.assert_array_equal(below, ((1 - images[index, 0]) * 255).round().byte().numpy())


def test_pictures_clip_like_a_screen_and_refuse_other_shapes():
    extremes = np.asarray(pictures.image_grid(torch.tensor([-3.0, 7.0]).view(1, 1, 1, 2)))
    assert set(np.unique(extremes)) == {0, 255}
    with pytest.raises(ValueError, match="1 channel .* or 3"):
        pictures.image_grid(torch.rand(2, 2, 8, 8))
    with pytest.raises(ValueError, match="same shape"):
        pictures.reconstruction_grid(torch.rand(2, 1, 8, 8), torch.rand(3, 1, 8, 8))
    with pytest.raises(ValueError, match="steps, channels, height, width"):
        pictures.interpolation_strip(torch.rand(8, 8))
    one, many = (
        pictures.interpolation_strip(torch.rand(6, 1, 8, 8)),
        pictures.interpolation_strip(torch.rand(2, 6, 1, 8, 8)),
    )
    assert one.width == many.width and one.height < many.height


# Models


def tiny_models():
    """One tiny untrained model of each kind, on 8x8 images."""
    from hf_autoencoders import AutoencoderConfig, AutoencoderModel, VAEConfig, VAEModel, VQVAEConfig, VQVAEModel

    torch.manual_seed(0)
    mlp = {"image_size": 8, "architecture": "mlp", "hidden_sizes": (16,), "latent_size": 4}
    conv = {"image_size": 8, "hidden_sizes": (8, 16), "codebook_size": 16, "embedding_dim": 4, "kmeans_init": False}
    return {
        "autoencoder": AutoencoderModel(AutoencoderConfig(**mlp)),
        "vae": VAEModel(VAEConfig(**mlp)),
        "vae_gaussian": VAEModel(VAEConfig(**mlp, likelihood="gaussian")),
        "vae_logistic": VAEModel(VAEConfig(**mlp, likelihood="discretized_logistic")),
        "vqvae": VQVAEModel(VQVAEConfig(**conv)),
        "residual_vqvae": VQVAEModel(VQVAEConfig(**conv, num_codebooks=2)),
        "fsq": VQVAEModel(VQVAEConfig(**{**conv, "quantizer": "fsq", "fsq_levels": (4, 3)})),
    }


MODELS = list(tiny_models())


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def digit_arrays(rows: int, seed: int = 0, labels: bool = True) -> ImageArrays:
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = np.random.default_rng(seed).choice(len(digits.images), rows, replace=False)
    images = (digits.images[chosen] * 255 / 16).round().astype(np.uint8)[:, None]
    return ImageArrays(images, digits.target[chosen].astype(np.int64) if labels else None)


def test_likelihood_of_a_linear_gaussian_vae_model_is_its_analytic_likelihood():
    """VAEModel with linear encoder and decoder, weights by hand, against N(x; b, W W^T + s^2 I)."""
    from hf_autoencoders import VAEConfig, VAEModel

    num_dims, latent_size, scale = 12, 3, 0.25
    config = VAEConfig(
        image_size=(3, 4), architecture="mlp", hidden_sizes=(), latent_size=latent_size, likelihood="gaussian"
    )
    model = VAEModel(config).eval()
    reference = LinearGaussian(num_dims, latent_size, scale)
    precision = 1 + reference.weight.square().sum(dim=0) / scale**2
    gain = reference.weight.T / scale**2 / precision[:, None]  # posterior mean = gain (x - b)
    with torch.no_grad():
        model.decoder.input.weight.copy_(reference.weight)
        model.decoder.input.bias.copy_(reference.bias)
        model.encoder.output.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        model.encoder.output.bias.copy_(torch.cat([-gain @ reference.bias, -precision.log()]))
        model.output_scale.raw.fill_(math.log(math.expm1(math.log(scale) - model.output_scale.minimum)))
    images = torch.rand(6, 1, 3, 4)
    exact = reference.log_likelihood(images)
    for k in (1, 5):
        estimate = importance_sampled_log_likelihood(model, images, k, generator=np.random.default_rng(0))
        torch.testing.assert_close(estimate.log_likelihood, exact, rtol=0, atol=1e-4)
        assert estimate.elbo.mean().item() == pytest.approx(exact.mean().item(), abs=3 / math.sqrt(6 * k))

    with torch.no_grad():  # a posterior twice as wide and off by half a deviation: from below, and converging
        model.encoder.output.bias += torch.cat([0.5 * precision.rsqrt(), torch.full((3,), math.log(2.0))])
    images = torch.rand(300, 1, 3, 4)
    exact = reference.log_likelihood(images).mean().item()
    generator = np.random.default_rng(0)
    gaps = [
        exact - importance_sampled_log_likelihood(model, images, k, generator=generator).log_likelihood.mean().item()
        for k in (1, 10, 100, 1000)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > -0.01 and gaps[0] > 0.3 and abs(gaps[3]) < 0.01


@pytest.mark.parametrize("name", MODELS)
def test_evaluate_model_measures_what_the_model_offers(models, name, tmp_path):
    model = models[name].train()
    train, validation = digit_arrays(300), digit_arrays(61, seed=1)
    result = evaluate_model(
        model, train, validation, corpus={"name": "digits", "split": "validation"}, num_importance_samples=3, seed=7
    )
    assert model.training, "the mode of the model is left as it was"
    metrics, baselines_ = result["metrics"], result["baselines"]
    assert {"mse", "psnr"} <= set(metrics) and "ssim" in result["not_measured"]
    likelihood = {"nll", "elbo", "kl", "bits_per_dimension", "active_units"}
    assert likelihood.isdisjoint(metrics) if not name.startswith("vae") else likelihood <= set(metrics)
    discrete = name in ("vqvae", "residual_vqvae", "fsq")
    codes = {"code_usage", "code_perplexity", "train_code_usage", "train_code_perplexity", "bits_per_image"}
    assert codes <= set(metrics) if discrete else codes.isdisjoint(metrics)
    assert ("pca_equal_bits_mse" in baselines_) == discrete and ("pca_same_size_mse" in baselines_) != discrete
    assert 0 <= metrics["linear_probe_accuracy"] <= 1 and 0.8 < baselines_["raw_pixels_linear_probe_accuracy"] <= 1
    assert result["corpus"] == {"name": "digits", "split": "validation", "rows": 61, "train_rows": 300}
    assert result["seed"] == 7 and "torch" in result["machine"] and result["versions"]["torch"] == torch.__version__
    assert result["versions"]["hf-autoencoders"] == hf_autoencoders.__version__
    assert result["model_type"] == model.config.model_type and result["name"] == model.config.model_type[5:]
    path = write_metrics(tmp_path / "run" / "metrics.json", result)
    assert json.loads(path.read_text()) == result
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("name", MODELS)
def test_metrics_do_not_depend_on_the_batch_size(models, name):
    model, images = models[name].eval(), digit_arrays(50).images
    results = []
    for batch_size in (50, 7):
        result = reconstruction_metrics(model, images, batch_size=batch_size)
        if name.startswith("vae"):
            result |= likelihood_metrics(model, images, 5, batch_size=batch_size, max_decoder_rows=11 * batch_size)
        results.append(result)
    assert results[0] == pytest.approx(results[1], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_metrics_on_a_gpu_are_those_of_the_cpu(name):
    train, validation = digit_arrays(100), digit_arrays(40, seed=1)
    corpus = {"name": "digits", "split": "validation"}
    results = [
        evaluate_model(tiny_models()[name].to(device), train, validation, corpus=corpus, num_importance_samples=5)
        for device in ("cpu", "cuda")
    ]
    for part in ("metrics", "baselines"):
        assert results[0][part] == pytest.approx(results[1][part], rel=0.02)
    assert torch.cuda.get_device_name() in results[1]["machine"]


def test_reconstruction_metrics_agree_with_the_models_own_loss(models):
    model, images = models["autoencoder"].eval(), digit_arrays(40).images
    loss = model(torch.from_numpy(images).float() / 255).reconstruction_loss.item()
    assert reconstruction_metrics(model, images, batch_size=9)["mse"] == pytest.approx(loss, rel=1e-5)


def test_kl_agrees_with_the_models_own_loss(models):
    model, images = models["vae"].eval(), (digit_arrays(40).images > 127).astype(np.uint8) * 255
    output = model(torch.from_numpy(images).float() / 255)
    metrics = likelihood_metrics(model, images, 50)
    assert metrics["kl"] == pytest.approx(output.kl_loss.item(), rel=1e-5)
    assert metrics["bits_per_dimension"] == pytest.approx(metrics["nll"] / 64 / math.log(2))
    assert -metrics["elbo"] >= metrics["nll"]


def test_encode_images_equals_encode_and_reads_memory_mapped_images(models, tmp_path):
    images = digit_arrays(23).images
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for name in ("vae", "residual_vqvae"):
        expected = models[name].eval().encode(torch.from_numpy(images).float() / 255)
        encoded = encode_images(models[name], mapped, batch_size=10)
        np.testing.assert_allclose(encoded.latents, expected.latents.detach().numpy(), atol=1e-6)
        if name == "residual_vqvae":
            np.testing.assert_array_equal(encoded.codes, expected.codes.numpy())
        else:
            assert encoded.codes is None


def test_evaluate_model_without_labels_and_with_colour():
    from hf_autoencoders import VQVAEConfig, VQVAEModel

    model = VQVAEModel(VQVAEConfig(image_size=(12, 15), num_channels=3, hidden_sizes=(8,), codebook_size=8))
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 12, 15), dtype=np.uint8)
    result = evaluate_model(
        model, ImageArrays(images), ImageArrays(images[:9]), corpus={"name": "noise", "split": "validation"}
    )
    assert -1 < result["metrics"]["ssim"] < 1
    assert "linear_probe_accuracy" not in result["metrics"]
    assert result["baselines"]["pca_equal_bits"] <= result["metrics"]["bits_per_image"]


def test_rows_without_a_label_are_left_out_of_the_probe(models):
    train, validation = digit_arrays(200), digit_arrays(60, seed=1)
    corpus = {"name": "digits", "split": "validation"}
    expected = evaluate_model(models["autoencoder"], train, validation.select(slice(0, 50)), corpus=corpus)
    validation.labels[50:] = -1
    result = evaluate_model(models["autoencoder"], train, validation, corpus=corpus)
    assert result["metrics"]["linear_probe_accuracy"] == expected["metrics"]["linear_probe_accuracy"]


@pytest.mark.parametrize("name", ["autoencoder", "fsq"])
def test_what_a_large_corpus_is_held_in_memory_for_is_bounded_by_drawn_rows(models, name, monkeypatch):
    train, validation = digit_arrays(300), digit_arrays(61, seed=1)
    corpus = {"name": "digits", "split": "validation"}
    whole = evaluate_model(models[name], train, validation, corpus=corpus)
    assert not {key for key in whole["settings"] if key.endswith("_rows")}

    def probe(*arrays):
        sizes.append([len(array) for array in arrays])
        assert max(array.size for array in arrays) <= 3000
        return linear_probe(*arrays)

    def quantized(pca, images, bits):
        assert len(images) * min(math.prod(images.shape[1:]), math.ceil(bits)) <= 3000
        return baselines.fit_quantized_pca(pca, images, bits)

    sizes = []
    monkeypatch.setattr(evaluate, "MAX_VALUES", 3000)
    monkeypatch.setattr(evaluate, "linear_probe", probe)
    monkeypatch.setattr(evaluate, "fit_quantized_pca", quantized)
    results = [evaluate_model(models[name], train, validation, corpus=corpus, seed=seed) for seed in (0, 0, 1)]
    rows = 3000 // math.prod(train.images.shape[1:])
    assert all(size == [rows] * 4 for size in sizes) and len(sizes) >= 6
    settings = results[0]["settings"]
    assert settings["linear_probe_train_rows"] == rows
    assert ("pca_equal_bits_train_rows" in settings) == (name == "fsq")
    assert settings["linear_probe_validation_rows"] == rows
    assert results[0]["metrics"] == results[1]["metrics"] and results[0]["baselines"] == results[1]["baselines"]
    assert results[0]["baselines"] != results[2]["baselines"]
    assert results[0]["metrics"]["mse"] == whole["metrics"]["mse"] and results[0]["corpus"]["train_rows"] == 300


def test_labels_that_cannot_be_probed_are_told(models):
    train, validation = digit_arrays(40), digit_arrays(20, seed=1)
    corpus = {"name": "digits", "split": "validation"}
    validation.labels[:] = -1
    result = evaluate_model(models["autoencoder"], train, validation, corpus=corpus)
    assert result["not_measured"]["linear_probe"] == "no validation row has a label"
    train.labels[:] = 3
    result = evaluate_model(models["autoencoder"], train, digit_arrays(20, seed=1), corpus=corpus)
    assert result["not_measured"]["linear_probe"] == "the training rows have 1 classes, a probe needs two"
    assert not any("probe" in name for name in {**result["metrics"], **result["baselines"]})


def test_evaluate_model_refuses(models):
    arrays = digit_arrays(20)
    corpus = {"name": "digits", "split": "validation"}
    with pytest.raises(ValueError, match="lacks .'name'"):
        evaluate_model(models["vae"], arrays, arrays, corpus={"split": "validation"})
    with pytest.raises(ValueError, match="validation.images.*non-empty uint8"):
        evaluate_model(models["vae"], arrays, arrays.select(slice(0, 0)), corpus=corpus)
    with pytest.raises(ValueError, match="num_importance_samples"):
        evaluate_model(models["vae"], arrays, arrays, corpus=corpus, num_importance_samples=0)
    broken = tiny_models()["vae"]
    with torch.no_grad():
        broken.decoder.input.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        evaluate_model(broken, arrays, arrays, corpus=corpus)


def test_metrics_are_never_written_half_or_with_nan(tmp_path):
    path = write_metrics(tmp_path / "metrics.json", {"metrics": {"mse": 1.0}})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(path, {"metrics": {"mse": math.nan}})
    assert json.loads(path.read_text()) == {"metrics": {"mse": 1.0}}
    assert len(list(tmp_path.iterdir())) == 1


def test_draw_model_draws_what_the_model_offers(models, tmp_path):
    images = digit_arrays(30).images
    drawn = pictures.draw_model(models["autoencoder"], images, tmp_path / "autoencoder")
    assert [path.name for path in drawn] == ["reconstructions.png"]
    drawn = pictures.draw_model(models["vae"], images, tmp_path / "vae", num_images=5)
    assert [path.name for path in drawn] == ["reconstructions.png", "samples.png", "interpolations.png"]
    again = pictures.draw_model(models["vae"], images, tmp_path / "again", num_images=5)
    for first, second in zip(drawn, again, strict=True):
        assert first.read_bytes() == second.read_bytes(), "a seed draws one picture"
        assert Image.open(first).mode == "L"


# Codes that mean something, whatever model makes them


class Seen(torch.nn.Module):
    """Restores images as they are; the first pixels are what its code is made of."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, latent_size: int, **fields):
        super().__init__()
        self.config = SimpleNamespace(model_type="seen", latent_shape=(latent_size,), **fields)

    def forward(self, pixel_values, return_loss=True):
        return SimpleNamespace(reconstruction=pixel_values)


class SeenFactors(Seen):
    """Posterior means: shape, side, and nothing."""

    def __init__(self):
        super().__init__(3)

    def encode(self, pixel_values):
        pixels = pixel_values.flatten(1)
        mean = torch.stack([pixels[:, 0], 3 * pixels[:, 1], 0 * pixels[:, 0]], dim=1)
        return SimpleNamespace(latents=mean, mean=mean, log_variance=torch.zeros_like(mean))


class SeenClasses(Seen):
    """Two variables of four categories, the first of which is a shape under another number; the second is 0."""

    def __init__(self):
        super().__init__(8, num_codes=4, bits_per_input=4.0)

    def encode(self, pixel_values):
        shapes = (pixel_values.flatten(1)[:, 0] * 255 / 80).round().long()
        codes = torch.stack([(shapes + 1) % 4, 0 * shapes], dim=1)
        probabilities = torch.nn.functional.one_hot(codes, 4).float()
        return SimpleNamespace(latents=probabilities.flatten(1), codes=codes, probabilities=probabilities)

    def decode_codes(self, codes):
        raise NotImplementedError


def seen_arrays(rows: int, seed: int = 0) -> ImageArrays:
    """Shape (3 values) and side (2) in the first two pixels of 4x4 images, noise in the others."""
    rng = np.random.default_rng(seed)
    shape, side = rng.integers(0, 3, rows), rng.integers(0, 2, rows)
    images = rng.integers(0, 60, (rows, 1, 4, 4)).astype(np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = 80 * shape, 255 * side
    return ImageArrays(images, shape, extra={"shape": shape, "side": side, "row": np.arange(rows)})


SEEN = {"name": "seen", "split": "validation"}


def test_disentanglement_of_posterior_means_is_measured_where_two_factors_are_known():
    train, validation = seen_arrays(400), seen_arrays(300, seed=1)
    result = evaluate_model(SeenFactors(), train, validation, corpus=SEEN)
    metrics, others = result["metrics"], result["baselines"]
    for name in ("mig", "mig_shape", "mig_side"):
        assert 0.98 < metrics[name] <= 1, "but for what chance tells the second best dimension"
    assert metrics["mig"] == pytest.approx((metrics["mig_shape"] + metrics["mig_side"]) / 2)
    assert "mig_row" not in metrics and metrics["factor_vae_score"] == 1 and metrics["dci_disentanglement"] > 0.95
    means = SeenFactors().encode(torch.from_numpy(validation.images).float() / 255).mean.numpy()
    factors = np.stack([validation.extra["shape"], validation.extra["side"]], axis=1)
    expected = disentanglement_metrics(means, factors)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    for name in ("pca", "ica"):
        assert {f"{name}_{key}" for key in expected} - {f"{name}_num_active_dims"} <= set(others)
        assert 0 <= others[f"{name}_mig"] < 1
    assert result["settings"]["disentanglement_rows"] == 300 and "disentanglement" not in result["not_measured"]


def test_factors_are_those_of_both_splits_and_rows_those_that_have_them():
    train, validation = seen_arrays(400), seen_arrays(300, seed=1)
    expected = evaluate_model(SeenFactors(), train, validation.select(slice(0, 250)), corpus=SEEN)
    for column in ("shape", "side"):
        validation.extra[column][250:] = -1
    validation.extra["of_one_split"] = np.arange(300) % 2
    result = evaluate_model(SeenFactors(), train, validation, corpus=SEEN)
    assert result["metrics"]["mig"] == expected["metrics"]["mig"] and "mig_of_one_split" not in result["metrics"]
    assert result["settings"]["disentanglement_rows"] == 250
    assert {name: result["not_measured"][name] for name in ("mig_row", "mig_of_one_split")} == {
        "mig_row": "300 values in 300 rows",
        "mig_of_one_split": "the training split has no such column",
    }
    del train.extra["side"]  # one factor is left
    result = evaluate_model(SeenFactors(), train, validation, corpus=SEEN)
    assert not any("mig" in name for name in [*result["metrics"], *result["baselines"]])
    assert result["not_measured"]["disentanglement"] == "it compares factors, and there is one"


def test_a_rare_factor_is_left_out_and_told(tmp_path):
    """Two ones in 300 rows may not be among the rows that a classifier learns from."""
    train, validation = seen_arrays(400), seen_arrays(300, seed=1)
    expected = evaluate_model(SeenFactors(), train, validation, corpus=SEEN)
    for count in (1, 2, 9, 10):
        for arrays in (train, validation):
            arrays.extra["rare"] = (np.arange(len(arrays)) < count).astype(int)
        result = evaluate_model(SeenFactors(), train, validation, corpus=SEEN)
        shared = count if count > 1 else 0
        reason = f"{shared} of 300 rows share a value other than its commonest, it needs 10"
        assert result["not_measured"].get("mig_rare") == (reason if count < 10 else None)
        assert ("mig_rare" in result["metrics"]) == (count == 10)
        if count < 10:
            assert result["metrics"] == expected["metrics"] and result["baselines"] == expected["baselines"]
        write_metrics(tmp_path / "metrics.json", result)
    for arrays in (train, validation):  # many values, one row each, of which no batch can be drawn
        arrays.extra["rare"] = np.maximum(np.arange(len(arrays)) - len(arrays) + 21, 0)
    assert "mig_rare" in evaluate_model(SeenFactors(), train, validation, corpus=SEEN)["not_measured"]
    for arrays in (train, validation):
        arrays.extra = {"shape": arrays.extra["shape"], "rare": (np.arange(len(arrays)) < 2).astype(int)}
    result = evaluate_model(SeenFactors(), train, validation, corpus=SEEN)
    assert result["not_measured"]["disentanglement"] == "it compares factors, and there is one"


def test_factors_that_no_row_has_together_are_told():
    train, validation = seen_arrays(400), seen_arrays(300, seed=1)
    validation.extra["shape"][:150], validation.extra["side"][150:] = -1, -1
    result = evaluate_model(SeenFactors(), train, validation, corpus=SEEN)
    assert result["not_measured"]["disentanglement"].startswith("no image has all of shape, side: name fewer")
    assert result["not_measured"]["mig_row"] == "300 values in 300 rows"


def test_training_images_that_are_one_and_the_same_are_measured(tmp_path):
    train, validation = seen_arrays(400), seen_arrays(300, seed=1)
    train.images[:] = train.images[0]
    result = evaluate_model(SeenFactors(), train, validation, corpus=SEEN)
    assert result["baselines"]["ica_mig"] == result["baselines"]["pca_mig"] == 0
    write_metrics(tmp_path / "metrics.json", result)


def test_disentanglement_that_cannot_be_measured_is_told(monkeypatch):
    train, validation = seen_arrays(400), seen_arrays(300, seed=1)
    result = evaluate_model(SeenFactors(), train, validation.select(slice(0, 29)), corpus=SEEN)
    assert result["not_measured"]["disentanglement"] == "29 validation rows have all factors, it needs 30"

    class OneDimension(SeenFactors):
        def encode(self, pixel_values):
            output = super().encode(pixel_values)
            return SimpleNamespace(latents=output.latents, mean=output.mean[:, :1])

    result = evaluate_model(OneDimension(), train, validation, corpus=SEEN)
    assert result["not_measured"]["disentanglement"] == "it compares dimensions, and there is one"
    monkeypatch.setattr(evaluate, "MAX_PCA_DIMS", 15)
    result = evaluate_model(SeenFactors(), train, validation, corpus=SEEN)
    reason = "images of 16 dimensions are beyond the exact PCA of 15"
    assert result["not_measured"]["disentanglement_of_pca_and_ica"] == result["not_measured"]["pca"] == reason
    assert result["metrics"]["mig"] > 0.98 and "pca_mig" not in result["baselines"]


def test_of_many_rows_some_are_measured(monkeypatch):
    train, validation = seen_arrays(400), seen_arrays(300, seed=1)
    sizes = []

    def ica(train_images, images, *args, **options):
        sizes.append((len(train_images), len(images)))
        return np.zeros((len(images), 3), dtype=np.float32)

    monkeypatch.setattr(evaluate, "MAX_ROWS", 100)
    monkeypatch.setattr(evaluate, "ica_codes", ica)
    results = [evaluate_model(SeenFactors(), train, validation, corpus=SEEN, seed=seed) for seed in (0, 0, 1)]
    assert sizes == [(100, 100)] * 3
    assert results[0]["metrics"] == results[1]["metrics"] != results[2]["metrics"]
    assert results[0]["settings"]["disentanglement_rows"] == 100


def test_clusters_are_held_against_labels_beside_k_means():
    train, validation = seen_arrays(400), seen_arrays(300, seed=1)
    result = evaluate_model(SeenClasses(), train, validation, corpus=SEEN)
    names = {"cluster_accuracy", "cluster_nmi", "cluster_ari", "class_purity"}
    assert {name: result["metrics"][name] for name in names} == pytest.approx(dict.fromkeys(names, 1))
    assert result["metrics"]["num_clusters_used"] == 3
    assert {name for name in result["baselines"] if name.startswith("kmeans_")} == {f"kmeans_{name}" for name in names}
    found = baselines_of_kmeans(train, validation, 4)
    assert result["baselines"]["kmeans_cluster_accuracy"] == found["accuracy"] < 1
    assert "mig" not in result["metrics"] and "bit_entropy_mean" not in result["metrics"]

    validation.labels[:] = np.where(np.arange(300) < 200, validation.labels, -1)
    validation.labels[:100] = 7  # a third of the labelled rows, of all shapes: they are of one class now
    result = evaluate_model(SeenClasses(), train, validation, corpus=SEEN)
    shapes = SeenClasses().encode(torch.from_numpy(validation.images[:200]).float() / 255).codes[:, 0].numpy()
    expected = clustering_metrics(shapes, validation.labels[:200])
    assert result["metrics"]["cluster_accuracy"] == expected["accuracy"] < 0.8


def baselines_of_kmeans(train, validation, num_clusters):
    from hf_autoencoders.evaluation.clustering import kmeans_clusters

    found = kmeans_clusters(validation.images, num_clusters, train_images=train.images)
    return clustering_metrics(found, validation.labels)


def test_clusters_that_cannot_be_measured_are_told():
    train, validation = seen_arrays(400), seen_arrays(300, seed=1)
    result = evaluate_model(SeenClasses(), train.select(slice(0, 3)), validation, corpus=SEEN)
    assert result["not_measured"]["kmeans"] == "3 training images make no 4 clusters"
    assert result["metrics"]["cluster_accuracy"] == 1
    result = evaluate_model(SeenClasses(), train, ImageArrays(validation.images), corpus=SEEN)
    assert result["not_measured"]["clusters"] == "the corpus has no labels"
    validation.labels[:] = -1
    result = evaluate_model(SeenClasses(), train, validation, corpus=SEEN)
    assert result["not_measured"]["clusters"] == "no validation row has a label"
    assert not any("cluster" in name for name in {**result["metrics"], **result["baselines"]})


DISCRETE = {
    "hfae_binary_autoencoder": {"num_bits": 5},
    "hfae_categorical_autoencoder": {"num_categories": 6},
    "hfae_joint_vae": {"num_categories": 6, "latent_size": 3},
    "hfae_beta_tcvae": {"latent_size": 4},
}


@pytest.mark.parametrize("model_type", DISCRETE)
def test_models_whose_codes_mean_something_are_measured(model_type, tmp_path):
    from hf_autoencoders import VARIANTS

    torch.manual_seed(0)
    variant = VARIANTS[model_type]
    fields = {"image_size": 8, "architecture": "mlp", "hidden_sizes": (16,), **DISCRETE[model_type]}
    model = variant.model_class()(variant.config_class()(**fields))
    train, validation = digit_arrays(300), digit_arrays(61, seed=1)
    for arrays in (train, validation):
        arrays.extra = {"label": arrays.labels, "ink": (arrays.images.mean(axis=(1, 2, 3)) > 75).astype(np.int64)}
    result = evaluate_model(model, train, validation, corpus=SEEN, num_importance_samples=2)
    json.loads(write_metrics(tmp_path / "metrics.json", result).read_text())
    metrics, others, missing = result["metrics"], result["baselines"], result["not_measured"]
    continuous, classes = model_type in ("hfae_joint_vae", "hfae_beta_tcvae"), "num_categories" in fields
    assert ("mig" in metrics) == ("ica_sap" in others) == ("mig_ink" in metrics) == continuous
    assert ("cluster_accuracy" in metrics) == ("kmeans_cluster_nmi" in others) == classes
    assert ("bit_entropy_min" in metrics) == ("num_bits" in fields)
    assert ("nll" in metrics) == (model_type == "hfae_beta_tcvae")
    discrete = model_type in ("hfae_binary_autoencoder", "hfae_categorical_autoencoder")
    assert ("bits_per_image" in metrics) == ("pca_equal_bits_mse" in others) == discrete
    assert ("code_usage" in metrics) == (model_type != "hfae_beta_tcvae")
    assert ("pca_equal_bits" in missing) == (model_type == "hfae_joint_vae")
    if discrete:
        assert metrics["bits_per_image"] == pytest.approx({5: 5, 6: math.log2(6)}[5 if "num_bits" in fields else 6])
    if "num_bits" in fields:
        assert 0 <= metrics["bit_entropy_min"] <= metrics["bit_entropy_mean"] <= 1
    assert 0 <= metrics["linear_probe_accuracy"] <= 1


@pytest.mark.parametrize("name", MODELS)
def test_labels_alone_are_no_factors(models, name):
    """The numbers of models of earlier versions stay what they were."""
    train, validation = digit_arrays(200), digit_arrays(60, seed=1)
    plain = evaluate_model(models[name], train, validation, corpus=SEEN, num_importance_samples=2)
    for arrays in (train, validation):
        arrays.extra = {"label": arrays.labels}
    again = evaluate_model(models[name], train, validation, corpus=SEEN, num_importance_samples=2)
    for part in ("metrics", "baselines", "not_measured", "settings"):
        assert again[part] == plain[part]
    assert not any(word in key for key in plain["metrics"] for word in ("mig", "cluster", "entropy"))
