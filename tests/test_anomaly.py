"""Anomaly detectors: mathematics of scores and calibration, what is saved, maps, bad inputs."""

import math

import numpy as np
import pytest
import tiny
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from transformers import AutoModel

from hf_autoencoders.evaluation.anomaly import anomaly_metrics, baseline_scores, map_metrics
from hf_autoencoders.models.anomaly import code_kl, conformal_p_values, ledoit_wolf, smooth_maps
from hf_autoencoders.models.configuration_autoencoder import AutoencoderConfig
from hf_autoencoders.models.configuration_base import ANOMALY_SCORES, DETECTOR_FIELDS
from hf_autoencoders.models.modeling_autoencoder import AutoencoderModel

every_image_variant = pytest.mark.parametrize(
    "name",
    [tiny.FIRST[n.partition("-")[0]] for n in dict.fromkeys(name.partition("-")[0] for name in tiny.IMAGE_NAMES)],
)


def detector(name="autoencoder-mlp", score="reconstruction", rows=30, **options):
    """A tiny model of random weights with a detector, and new images for it."""
    model = tiny.model(name)
    train, calibration = tiny.images(model.config, 40, seed=1), tiny.images(model.config, rows, seed=2)
    model.fit_detector(train, calibration, score=score, **options)
    return model, tiny.images(model.config, 7, seed=3)


# ---- calibration


def test_p_values_count_calibration_scores_at_least_as_high():
    calibration = torch.tensor([1.0, 2.0, 2.0, 3.0])
    p = conformal_p_values(torch.tensor([0.0, 1.0, 2.0, 2.5, 3.0, 4.0]), calibration)
    torch.testing.assert_close(p, torch.tensor([5.0, 5.0, 4.0, 2.0, 2.0, 1.0]) / 5)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.31])
def test_false_alarms_are_at_most_as_frequent_as_promised(alpha):
    """Over many draws of calibration and test scores; for continuous scores exactly floor(alpha (n + 1)) / (n + 1)."""
    generator = torch.Generator().manual_seed(0)
    n, draws = 59, 20_000
    scores = torch.randn(draws, n + 1, generator=generator).exp()
    p = torch.stack([conformal_p_values(row[:1], row[1:].sort().values)[0] for row in scores])
    expected = math.floor(alpha * (n + 1) + 1e-9) / (n + 1)
    rate = (p <= alpha + 1e-7).float().mean().item()
    assert abs(rate - expected) < 4 * math.sqrt(expected * (1 - expected) / draws) and expected <= alpha


def test_p_values_of_normal_inputs_are_uniform():
    """Those of a real model, on images from the distribution it was calibrated on."""
    model = tiny.model("autoencoder-mlp")
    model.fit_detector(tiny.images(model.config, 50, 1), tiny.images(model.config, 999, 2), score="latent_distance")
    p = model.detect(tiny.images(model.config, 2000, 3)).p_values.sort().values
    largest_gap = (p - (torch.arange(2000) + 0.5) / 2000).abs().max()  # Kolmogorov-Smirnov, both samples are finite
    assert largest_gap < 1.95 * math.sqrt(1 / 2000 + 1 / 999)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 1 / 31])
def test_the_threshold_is_what_decides(alpha):
    model, _ = detector(false_alarm_rate=alpha, rows=30 if alpha < 0.05 else 39)
    images = tiny.images(model.config, 300, seed=5)
    found = model.detect(images)
    assert torch.equal(found.is_anomaly, found.scores > model.anomaly_threshold)
    n = model.config.num_calibration_scores
    on_threshold = (model.detector.calibration_scores > model.anomaly_threshold).sum().item()
    assert on_threshold + 1 == math.floor(alpha * (n + 1) + 1e-9)
    assert found.is_anomaly.any() or alpha < 0.05


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1, 0.3])
def test_calibration_needs_enough_rows_and_no_more(alpha):
    least = math.ceil(1 / alpha - 1e-9) - 1
    detector(rows=least, false_alarm_rate=alpha)
    with pytest.raises(ValueError, match=f"at least {least} are needed"):
        detector(rows=least - 1, false_alarm_rate=alpha)


# ---- scores


def test_covariance_is_that_of_scikit_learn():
    rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.randn(
        8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    rows = rows - rows.mean(0)
    expected = LedoitWolf(assume_centered=True).fit(rows.numpy()).covariance_
    np.testing.assert_allclose(ledoit_wolf(rows).numpy(), expected, rtol=1e-10)


def test_latent_distance_is_that_of_mahalanobis():
    model, images = detector(score="latent_distance")
    latents = model.encode(tiny.images(model.config, 40, seed=1)).latents.double()
    precision = torch.linalg.inv(ledoit_wolf(latents - latents.mean(0)))
    away = model.encode(images).latents.double() - latents.mean(0)
    expected = torch.einsum("bi,ij,bj->b", away, precision, away).sqrt()
    torch.testing.assert_close(model.detect(images).scores.double(), expected, rtol=1e-3, atol=1e-4)


def test_latent_neighbors_are_the_nearest_training_latents():
    model, _ = detector(score="latent_neighbors", num_reference_rows=20)
    train = tiny.images(model.config, 40, seed=1)
    model.fit_detector(train, tiny.images(model.config, 30, seed=2), score="latent_neighbors", num_reference_rows=20)
    white = model.detector.white_latents(model.encode(train[:20]).latents).flatten(1)
    distances = torch.cdist(white.double(), white.double())
    expected = distances.sort(dim=1).values[:, :5].mean(1)  # of which one is its own, at no distance
    torch.testing.assert_close(model.detect(train[:20]).scores.double(), expected, rtol=1e-4, atol=1e-4)


def test_density_of_a_linear_auto_encoder_is_that_of_probabilistic_pca():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([3.0, 2.0, 1.5] + [0.3] * 7)
    rows = torch.randn(6000, 10, generator=generator) * scales
    pca = PCA(3).fit(rows.numpy())
    config = AutoencoderConfig(input_shape=(10,), architecture="mlp", hidden_sizes=(), latent_size=3)
    model = AutoencoderModel(config).eval()
    axes, mean = torch.from_numpy(pca.components_).float(), torch.from_numpy(pca.mean_).float()
    with torch.no_grad():
        model.encoder.output.weight.copy_(axes), model.encoder.output.bias.copy_(-axes @ mean)
        model.decoder.input.weight.copy_(axes.T), model.decoder.input.bias.copy_(mean)
    model.fit_detector(rows, rows[:99].clone(), score="density")
    # the variance of what is left out is over 10 - 3 dimensions in PCA, over all 10 in a mean squared error
    model.detector.noise_variance.mul_(10 / 7)
    found = model.detect(rows[:500]).scores.double().numpy()
    expected = -pca.score_samples(rows[:500].numpy())
    np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), rtol=0, atol=0.05 * expected.std())


@pytest.mark.parametrize("name", ["vae-mlp", "binary_autoencoder-mlp", "joint_vae-mlp", "categorical_autoencoder-mlp"])
def test_likelihood_is_the_negative_variational_bound(name):
    name = name if name in tiny.NAMES else tiny.FIRST[name.partition("-")[0]]
    model, images = detector(name, "likelihood")
    outputs = model(**tiny.inputs(model.config, 7, seed=3))
    one_by_one = [model(**{k: v[i : i + 1] for k, v in tiny.inputs(model.config, 7, seed=3).items()}) for i in range(7)]
    scores = model.detect(images).scores
    expected = torch.stack([o.reconstruction_loss + o.kl_loss for o in one_by_one])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(code_kl(outputs).mean(), outputs.kl_loss, rtol=1e-4, atol=1e-4)


@every_image_variant
@pytest.mark.parametrize("score", ANOMALY_SCORES)
def test_every_variant_has_every_score_it_says(name, score):
    model = tiny.model(name)
    if score not in model.available_scores():
        with pytest.raises(ValueError, match=f"has no score '{score}': it has reconstruction"):
            detector(name, score)
        return
    model, images = detector(name, score)
    found = model.detect(images)
    assert found.scores.shape == found.p_values.shape == found.is_anomaly.shape == (7,)
    assert found.maps.shape == (7, *model.config.input_shape[1:])
    assert found.scores.std() > 0 or score.startswith("latent")  # of random weights all codes may be alike
    one = model.detect(images[3:4])
    torch.testing.assert_close(one.scores, found.scores[3:4], rtol=1e-3, atol=1e-5)


# ---- maps


@pytest.mark.parametrize("score", ["reconstruction", "feature_reconstruction"])
def test_a_map_shows_where_a_defect_was_planted(score):
    """On images of a corpus that a linear auto-encoder knows: ramps of any direction."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-0.5, 0.5, 16)
    a, b, c = torch.rand(3, 300, 1, 1, generator=generator)
    images = (0.3 + 0.4 * c + 0.3 * a * ramp[:, None] + 0.3 * b * ramp).unsqueeze(1)
    config = AutoencoderConfig(image_size=16, hidden_sizes=(8, 16), latent_size=3)
    torch.manual_seed(0)
    model = AutoencoderModel(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(images[:200]).loss.backward()
        optimizer.step()
    model.eval().fit_detector(images[:200], images[200:250], score=score, map_smoothing=1.0, map_pooling="max")
    broken = images[250:].clone()
    broken[:, :, 3:6, 9:12] = 1 - broken[:, :, 3:6, 9:12] * 0.2
    found = model.detect(broken)
    tops = found.maps.flatten(1).argmax(1)
    inside = ((tops // 16 >= 2) & (tops // 16 <= 6) & (tops % 16 >= 8) & (tops % 16 <= 12)).float().mean()
    assert inside > 0.9 and found.is_anomaly.float().mean() > 0.9
    torch.testing.assert_close(found.maps.amax((1, 2)), found.scores)


def test_smoothing_spreads_and_keeps_the_sum():
    maps = torch.zeros(1, 21, 21)
    maps[0, 10, 10] = 1
    smooth = smooth_maps(maps, 1.5)[0]
    x = torch.arange(-5, 6, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / 1.5) ** 2)
    torch.testing.assert_close(smooth[5:16, 5:16], torch.outer(kernel, kernel) / kernel.sum() ** 2)
    assert abs(smooth.sum().item() - 1) < 1e-5
    assert smooth_maps(maps, 0.0) is maps
    constant = torch.full((2, 5, 9), 0.7)  # smaller than the kernel, too
    torch.testing.assert_close(smooth_maps(constant, 3.0), constant)


# ---- saving


@every_image_variant
@pytest.mark.parametrize("score", ["latent_neighbors", "feature_reconstruction"])
def test_a_saved_detector_decides_alike_bit_for_bit(name, score, tmp_path):
    model, images = detector(name, score if score in tiny.model(name).available_scores() else "density")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert {n: getattr(loaded.config, n) for n in DETECTOR_FIELDS} == {
        n: getattr(model.config, n) for n in DETECTOR_FIELDS
    }
    one, other = model.detect(images), loaded.detect(images)
    assert all(torch.equal(one[key], other[key]) for key in one) and list(one) == list(other)
    assert loaded.anomaly_threshold == model.anomaly_threshold
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(buffer.dtype == torch.float32 for buffer in half.detector.buffers())


def test_models_without_a_detector_are_saved_as_before(tmp_path):
    model = tiny.model("autoencoder-mlp")
    model.save_pretrained(tmp_path)
    assert model.detector is None and not any("detector" in key for key in model.state_dict())
    text = (tmp_path / "config.json").read_text()
    assert not any(f'"{name}"' in text for name in (*DETECTOR_FIELDS, "num_features"))


def test_a_classifier_can_be_put_on_a_detector(tmp_path):
    from hf_autoencoders.models.modeling_autoencoder import AutoencoderForImageClassification

    model, images = detector("autoencoder-mlp", "latent_neighbors")
    model.save_pretrained(tmp_path)
    head, info = AutoencoderForImageClassification.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert not any("detector" in key for key in (*head.state_dict(), *info["missing_keys"], *info["unexpected_keys"]))
    assert head(images).logits.shape == (7, 3)


# ---- bad input


def test_wrong_requests_are_refused_and_leave_the_model_as_it_was():
    model, images = detector()
    before, threshold = model.config.to_dict(), model.anomaly_threshold
    train, calibration = tiny.images(model.config, 40, seed=1), tiny.images(model.config, 30, seed=2)
    for wrong, message in (
        ({"false_alarm_rate": 0.0}, "above 0 and below 1, got 0.0"),
        ({"false_alarm_rate": 1.0}, "above 0 and below 1, got 1.0"),
        ({"false_alarm_rate": float("nan")}, "above 0 and below 1, got nan"),
        ({"false_alarm_rate": 0.001}, "at least 999 are needed"),
        ({"score": "likelihood"}, "has no score 'likelihood': it has reconstruction, latent_distance"),
        ({"score": "surprise"}, "has no score 'surprise'"),
        ({"calibration": train}, "the same rows"),
        ({"train": train[:1]}, "at least 2 rows"),
        ({"train": train[:4], "score": "latent_neighbors"}, "5 or more training rows, got 4"),
        ({"calibration": torch.full_like(calibration, float("nan"))}, "the score of input 0 is nan"),
        ({"calibration": calibration[:, :, :-1]}, "pixel_values must have shape"),
        ({"map_pooling": "median"}, "map_pooling"),
        ({"map_smoothing": -1.0}, "map_smoothing"),
    ):
        with pytest.raises(Exception, match=message):
            model.fit_detector(**{"train": train, "calibration": calibration, **wrong})
        assert model.config.to_dict() == before and model.anomaly_threshold == threshold
    images[4, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the score of input 4 is nan"):
        model.detect(images)


def test_a_detector_is_of_one_model_though_a_configuration_may_be_of_several():
    config = tiny.config("autoencoder-mlp")
    one, other = AutoencoderModel(config).eval(), AutoencoderModel(config)
    one.fit_detector(tiny.images(config, 30, 1), tiny.images(config, 25, 2))
    assert config.anomaly_score == other.config.anomaly_score == "none" != one.config.anomaly_score
    assert AutoencoderModel(config).detector is None


def test_without_a_detector_nothing_is_detected():
    model = tiny.model("autoencoder-mlp")
    images = tiny.images(model.config)
    with pytest.raises(ValueError, match="no detector has been fitted: call model.fit_detector"):
        model.detect(images)
    new = tiny.model("autoencoder-mlp", anomaly_score="reconstruction", num_calibration_scores=20)
    with pytest.raises(ValueError, match="no detector has been fitted"):
        new.detect(images)
    with pytest.raises(ValueError, match="no detector has been fitted"):
        _ = new.anomaly_threshold


# ---- evaluation


def test_metrics_of_known_rankings():
    truth = np.array([0, 0, 0, 0, 1, 1], bool)
    metrics = anomaly_metrics(np.array([1, 2, 3, 5, 4, 6.0]), truth, np.array([0, 0, 0, 1, 0, 1], bool))
    assert metrics["auroc"] == pytest.approx(7 / 8) and metrics["false_alarm_rate"] == 0.25
    assert metrics["precision"] == metrics["recall"] == metrics["f1"] == 0.5
    assert metrics["aupr"] == pytest.approx((1 + 2 / 3) / 2)
    with pytest.raises(ValueError, match="all 6 rows are normal rows"):
        anomaly_metrics(np.arange(6), np.zeros(6, bool))
    with pytest.raises(ValueError, match="one score and one truth"):
        anomaly_metrics(np.arange(5), truth)


def test_map_metrics_of_a_perfect_and_of_a_blind_map():
    masks = np.zeros((3, 20, 20), bool)
    masks[0, 2:5, 3:9] = masks[0, 12:14, 12:14] = masks[1, 5:7, 5:7] = True
    perfect = map_metrics(masks + 0.0, masks)
    assert perfect["pixel_auroc"] == perfect["pixel_aupr"] == perfect["aupro"] == 1
    noise = np.random.default_rng(0).random(masks.shape)
    blind = map_metrics(noise, masks)
    assert abs(blind["pixel_auroc"] - 0.5) < 0.1 and abs(blind["aupro"] - 0.15) < 0.1  # the diagonal up to 0.3
    one_found = noise + 10 * masks
    one_found[0, 2:5, 3:9] -= 20  # the largest region is not seen at all: regions count alike
    assert map_metrics(one_found, masks)["aupro"] == pytest.approx(2 / 3, abs=0.01)
    with pytest.raises(ValueError, match="all of one kind"):
        map_metrics(noise, np.zeros_like(masks))


def test_baselines_find_what_is_plainly_different():
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(4, 80))
    train, normal = (rng.normal(size=(n, 4)) @ basis + 0.1 * rng.normal(size=(n, 80)) for n in (300, 50))
    odd = 3 * rng.normal(size=(50, 80))
    for name, scores in baseline_scores(train, np.concatenate([normal, odd])).items():
        assert anomaly_metrics(scores, np.arange(100) >= 50)["auroc"] > 0.95, name


def test_a_codec_takes_other_sizes_where_its_score_does():
    model, _ = detector("image_codec-conv", "feature_reconstruction")
    other = torch.rand(2, model.config.num_channels, 24, 17)
    assert model.detect(other).maps.shape == (2, 24, 17)
    model, _ = detector("image_codec-conv", "latent_distance")
    with pytest.raises(ValueError, match="images of the size that it was fitted with"):
        model.detect(other)
