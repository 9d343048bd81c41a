"""Measures of drawn images against closed forms; the bound on bits; pipeline and command line with a prior."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import pipeline

from hf_autoencoders import (
    CodePriorConfig,
    CodePriorModel,
    LatentPriorConfig,
    LatentPriorModel,
    VAEModel,
    VQVAEModel,
    cli,
)
from hf_autoencoders.data import image_arrays, load_corpus
from hf_autoencoders.data.images import ImageArrays
from hf_autoencoders.evaluation import generation
from hf_autoencoders.evaluation.generation import (
    HogFeatures,
    LeNetFeatures,
    bits_of_codes,
    evaluate_samples,
    fit_log_scales,
    frechet_distance,
    make_features,
    precision_recall,
    to_uint8,
)
from hf_autoencoders.models.fingerprint import weights_fingerprint
from hf_autoencoders.models.losses import discretized_logistic_log_likelihood

RANDOM = np.random.default_rng(0)


def exactly(mean: np.ndarray, covariance: np.ndarray, rows: int = 50) -> np.ndarray:
    """Rows whose mean and sample covariance are exactly these."""
    values = RANDOM.standard_normal((rows, len(mean)))
    values -= values.mean(0)
    values = values @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(values, rowvar=False)))).T
    return values @ np.linalg.cholesky(covariance).T + mean


# ---- distances


def test_frechet_distance_of_gaussians_that_share_axes():
    """|m1 - m2|^2 + sum (s1 - s2)^2 where the covariances commute."""
    means, stds = RANDOM.standard_normal((2, 4)), RANDOM.uniform(0.5, 2, (2, 4))
    axes = np.linalg.qr(RANDOM.standard_normal((4, 4)))[0]
    sets = [exactly(mean, axes @ np.diag(std**2) @ axes.T) for mean, std in zip(means, stds, strict=True)]
    expected = np.square(means[0] - means[1]).sum() + np.square(stds[0] - stds[1]).sum()
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(sets[0], sets[0]) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_any_gaussians():
    """In one dimension (m1 - m2)^2 + (s1 - s2)^2; else the matrix root of scipy, of matrices that do not commute."""
    from scipy.linalg import sqrtm

    one, other = (exactly(np.array([m]), np.array([[s**2]])) for m, s in ((0.5, 1.0), (2.0, 3.0)))
    assert frechet_distance(one, other) == pytest.approx(1.5**2 + 2.0**2)
    factors = RANDOM.standard_normal((2, 5, 5))
    covariances = factors @ factors.transpose(0, 2, 1) + np.eye(5)
    means = RANDOM.standard_normal((2, 5))
    sets = [exactly(mean, covariance) for mean, covariance in zip(means, covariances, strict=True)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(*sets) == pytest.approx(frechet_distance(*sets[::-1]), rel=1e-8)


def test_frechet_distance_of_samples_nears_that_of_the_gaussians():
    samples = RANDOM.standard_normal((2, 20_000, 3))
    assert frechet_distance(samples[0], samples[1]) < 0.01
    assert frechet_distance(samples[0], 2 * samples[1] + 1) == pytest.approx(3 + 3, rel=0.05)


def test_too_few_rows_and_nan_are_refused():
    rows = RANDOM.standard_normal((8, 8))
    with pytest.raises(ValueError, match="the first set has 8 rows of 8 features.*take more images"):
        frechet_distance(rows, RANDOM.standard_normal((9, 8)))
    with pytest.raises(ValueError, match="second holds NaN"):
        frechet_distance(RANDOM.standard_normal((9, 8)), np.full((9, 8), np.nan))
    with pytest.raises(ValueError, match=r"must be features of shape \(rows, features\), got \(9,\)"):
        frechet_distance(np.zeros(9), rows)
    with pytest.raises(ValueError, match="both sets need the same features"):
        frechet_distance(RANDOM.standard_normal((9, 8)), RANDOM.standard_normal((9, 7)))
    with pytest.raises(ValueError, match="3 rows have no 3 neighbours"):
        precision_recall(rows[:3], rows)


def test_precision_and_recall_of_what_is_known():
    """Of one of two modes all is precise and half recalled; of both and something else the other way around."""
    modes = RANDOM.standard_normal((2, 500, 2)) + np.array([[[0, 0]], [[100, 0]]])
    both, elsewhere = modes.reshape(-1, 2), RANDOM.standard_normal((1000, 2)) + 1000
    again = RANDOM.standard_normal((1000, 2))
    assert precision_recall(both, both) == (1.0, 1.0)
    assert precision_recall(both, elsewhere) == (0.0, 0.0)
    precision, recall = precision_recall(both, again)
    assert precision > 0.95 and recall == pytest.approx(0.5, abs=0.03)
    precision, recall = precision_recall(again, both)
    assert precision == pytest.approx(0.5, abs=0.03) and recall > 0.95


def test_precision_by_hand():
    """k = 1: the balls around 0, 1 and 3 reach 1, 1 and 2 far."""
    real, generated = np.array([[0.0], [1.0], [3.0]]), np.array([[-0.9], [1.9], [4.9], [5.1]])
    assert precision_recall(real, generated, neighbours=1)[0] == 0.75


# ---- features


@pytest.fixture(scope="module")
def digits():
    """Train and validation images of the embedded digits."""
    processor = VAEModel(VAEModel.config_class(image_size=8)).config
    from hf_autoencoders import AutoencoderImageProcessor

    splits = load_corpus("digits")
    return [image_arrays(splits[n], AutoencoderImageProcessor.for_model(processor)) for n in ("train", "validation")]


def test_lenet_features(digits):
    random_before = torch.get_rng_state()
    features = LeNetFeatures(*digits, corpus="digits", seed=0, num_epochs=30)
    assert torch.equal(torch.get_rng_state(), random_before)
    assert features.name == "lenet(digits train, seed 0)" and features.accuracy > 0.9
    found = features(digits[1].images[:50])
    assert found.shape == (50, 64)
    again = LeNetFeatures(*digits, corpus="digits", seed=0, num_epochs=30)
    assert np.array_equal(again(digits[1].images[:50]), found)
    noise = RANDOM.integers(0, 256, digits[1].images[:200].shape, dtype=np.uint8)
    halves = [features(digits[0].images[first : first + 200]) for first in (0, 200)]
    assert frechet_distance(halves[0], features(noise)) > 5 * frechet_distance(*halves)


def test_features_of_corpora_without_labels(digits):
    images = ImageArrays(images=digits[0].images[:20], labels=None)
    features = make_features("auto", images, images, corpus="digits")
    assert isinstance(features, HogFeatures) and features(images.images).shape == (20, 128)
    colour = RANDOM.integers(0, 256, (3, 3, 13, 10), dtype=np.uint8)
    assert features(colour).shape == (3, 128) and np.isfinite(features(colour)).all()
    with pytest.raises(ValueError, match="labels of two classes at least: use HogFeatures"):
        make_features("lenet", images, images, corpus="digits")
    with pytest.raises(ValueError, match='must be "auto", "lenet" or "hog"'):
        make_features("inception", images, images, corpus="digits")
    with pytest.raises(ValueError, match="8 x 8 pixels at least, got 7 x 9"):
        features(np.zeros((2, 1, 7, 9), np.uint8))


def test_images_are_compared_as_files_have_them():
    assert to_uint8(torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5])).tolist() == [0, 0, 128, 255, 255]


# ---- bits


def test_scales_are_those_that_the_residuals_have():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(200, 2, 8, 8, generator=generator).clamp(1e-6, 1 - 1e-6)
    scales = torch.tensor([0.02, 0.05]).view(2, 1, 1)
    pixel_values = ((0.5 + scales * uniform.logit()) * 255).round() / 255
    found = fit_log_scales(torch.full_like(pixel_values, 0.5), pixel_values)
    torch.testing.assert_close(found.exp(), scales, rtol=0.03, atol=0)
    best = discretized_logistic_log_likelihood(torch.full_like(pixel_values, 0.5), found, pixel_values).mean()
    for change in (-0.1, 0.1):
        other = discretized_logistic_log_likelihood(torch.full_like(pixel_values, 0.5), found + change, pixel_values)
        assert other.mean() < best


def vqvae_and_prior(**fields):
    torch.manual_seed(0)
    model = VQVAEModel(VQVAEModel.config_class(image_size=8, hidden_sizes=(8, 8), codebook_size=7, embedding_dim=4))
    sizes = {"codes_shape": model.config.codes_shape, "num_codes": 7, **fields}
    whose = {"autoencoder_fingerprint": weights_fingerprint(model)}
    return model.eval(), CodePriorModel(CodePriorConfig(**sizes, **tiny.GPT2, **whose)).eval()


def test_the_bound_is_what_its_definition_says(digits):
    model, prior = vqvae_and_prior()
    images = digits[1].images[:40]
    bits = bits_of_codes(model, prior, digits[0].images[:100], images, batch_size=16)
    assert bits.uniform_code_bits == pytest.approx(4 * math.log2(7))
    pixel_values = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        codes = model.encode(pixel_values).codes
        own = -prior.log_prob(codes).mean().item() / math.log(2)
        scales = torch.tensor(bits.log_scales).view(-1, 1, 1)
        rest = -discretized_logistic_log_likelihood(model.decode_codes(codes), scales, pixel_values).mean().item()
    assert bits.code_bits == pytest.approx(own, rel=1e-4)
    assert bits.image_bits == pytest.approx(rest / math.log(2), rel=1e-4)
    assert bits.bits_per_dimension == pytest.approx((own + rest / math.log(2)) / 64, rel=1e-4)
    assert bits.uniform_bits_per_dimension > 0


def test_the_bound_is_above_the_true_bits():
    """Of two codes all can be summed over: -log2 p(x) itself, below the bound for every image."""
    torch.manual_seed(1)
    fields = {"image_size": 4, "hidden_sizes": (8, 8), "codebook_size": 5, "embedding_dim": 2}
    model = VQVAEModel(VQVAEModel.config_class(**fields)).eval()
    prior = CodePriorModel(CodePriorConfig(codes_shape=(1, 1, 1), num_codes=5, **tiny.GPT2)).eval()
    images = RANDOM.integers(0, 256, (6, 1, 4, 4), dtype=np.uint8)
    every = torch.arange(5).view(5, 1, 1, 1)
    for image in images:
        bits = bits_of_codes(model, prior, images, image[None])
        scales, pixel_values = torch.tensor(bits.log_scales).view(-1, 1, 1), torch.from_numpy(image[None]) / 255
        with torch.no_grad():
            given = discretized_logistic_log_likelihood(
                model.decode_codes(every), scales, pixel_values.expand(5, -1, -1, -1)
            )
            true = -torch.logsumexp(prior.log_prob(every) + given, 0).item() / math.log(2)
        assert true <= 16 * bits.bits_per_dimension + 1e-4


# ---- all of it


def vae_and_prior():
    torch.manual_seed(0)
    model = VAEModel(VAEModel.config_class(image_size=8, architecture="mlp", hidden_sizes=(16,), latent_size=3)).eval()
    whose = {"autoencoder_fingerprint": weights_fingerprint(model)}
    return model, LatentPriorModel(LatentPriorConfig(latent_shape=(3,), hidden_size=8, num_couplings=2, **whose)).eval()


@pytest.mark.parametrize("kind", ["vae", "vqvae"])
def test_samples_are_measured_beside_what_bounds_them(kind, digits, monkeypatch):
    monkeypatch.setattr(generation, "LENET_STEPS", 20)
    model, prior = vae_and_prior() if kind == "vae" else vqvae_and_prior()
    options = {"corpus": {"name": "digits", "split": "validation"}, "num_samples": 120, "seed": 1}
    result = evaluate_samples(model, prior, *digits, **options)
    again = evaluate_samples(model, prior, *digits, **options)
    assert (result["metrics"], result["baselines"]) == (again["metrics"], again["baselines"])
    json.dumps(result, allow_nan=False)
    baselines, plain = result["baselines"], "standard_normal" if kind == "vae" else "uniform_codes"
    assert baselines["train_images_frechet_distance"] < result["metrics"]["frechet_distance"]
    for name in ("train_images", "train_reconstructions", plain):
        assert 0 <= baselines[f"{name}_precision"] <= 1 and baselines[f"{name}_frechet_distance"] >= 0
    assert result["name"] == prior.config.model_type.removeprefix("hfae_")
    alone = evaluate_samples(model, None, *digits, **options)
    assert alone["metrics"]["frechet_distance"] == baselines[f"{plain}_frechet_distance"]
    if kind == "vae":
        # a flow begins as the identity: the same prior as N(0, I), so the same bound
        assert result["metrics"]["negative_elbo"] == pytest.approx(baselines["standard_normal_negative_elbo"], rel=1e-5)
    else:
        assert result["metrics"]["bits_per_dimension"] > 0 and baselines["uniform_codes_bits_per_dimension"] > 0
    with pytest.raises(ValueError, match="60 rows of 64 features.*take more images"):
        evaluate_samples(model, prior, *digits, **{**options, "num_samples": 60})
    with pytest.raises(ValueError, match="num_samples is 5000, but the smaller split has 300 images"):
        evaluate_samples(model, prior, *digits, **{**options, "num_samples": 5000})
    with pytest.raises(ValueError, match="does not fit the auto-encoder"):
        evaluate_samples(tiny.model("vae-bernoulli"), prior, *digits, **options)


def test_plain_auto_encoders_are_measured_with_a_prior(digits, monkeypatch):
    monkeypatch.setattr(generation, "LENET_STEPS", 20)
    model = tiny.model("autoencoder-conv")
    prior = LatentPriorModel(LatentPriorConfig(latent_shape=model.config.latent_shape, hidden_size=8)).eval()
    options = {"corpus": {"name": "digits", "split": "validation"}, "num_samples": 100}
    result = evaluate_samples(model, prior, *digits, **options)
    assert "prior_nll" in result["metrics"] and "standard_normal_frechet_distance" not in result["baselines"]
    with pytest.raises(ValueError, match="AutoencoderModel has no prior of its own: give one"):
        evaluate_samples(model, None, *digits, **options)


# ---- pipeline and command line


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved auto-encoders and their priors, by name."""
    folder = tmp_path_factory.mktemp("models")
    pairs = {"vae": vae_and_prior(), "vqvae": vqvae_and_prior(num_classes=4)}
    for name, (model, prior) in pairs.items():
        model.save_pretrained(folder / name)
        prior.save_pretrained(folder / f"{name}_prior")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["vae", "vqvae"])
def test_pipeline(kind, folders):
    generate = pipeline("image-generation", model=folders[kind], prior=folders[f"{kind}_prior"], device="cpu")
    images, same, other = (generate(3, seed=seed) for seed in (0, 0, 1))
    assert [image.size for image in images] == [(8, 8)] * 3 and len(generate()) == 1
    assert [i.tobytes() for i in images] == [i.tobytes() for i in same] != [i.tobytes() for i in other]
    model, prior = vae_and_prior() if kind == "vae" else vqvae_and_prior(num_classes=4)
    expected = to_uint8(model.sample(3, torch.Generator().manual_seed(0), prior=prior))
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), expected[:, 0])
    if kind == "vqvae":
        by_class = generate(4, seed=0, classes=2, top_k=2, temperature=0.5)
        assert [i.tobytes() for i in by_class] == [
            i.tobytes() for i in generate(4, seed=0, classes=[2] * 4, top_k=2, temperature=0.5)
        ]
        with pytest.raises(ValueError, match="classes must be from 0 to 3"):
            generate(1, classes=4)
    with pytest.raises(ValueError, match="expected a temperature above 0"):
        generate(1, temperature=0)
    for wrong in (0, 2.5, "three", True):
        with pytest.raises(ValueError, match="expected the number of images to draw"):
            generate(wrong)
    with pytest.raises(TypeError, match=r"unknown argument\(s\) number: this pipeline takes prior, seed"):
        generate(1, number=3)


def test_pipeline_of_what_does_not_fit(folders):
    assert len(pipeline("image-generation", model=folders["vae"], device="cpu")(2)) == 2  # its own prior
    with pytest.raises(ValueError, match="VQVAEModel has no prior of its own: give the one"):
        pipeline("image-generation", model=folders["vqvae"], device="cpu")
    with pytest.raises(ValueError, match="this prior does not fit the auto-encoder"):
        pipeline("image-generation", model=folders["vqvae"], prior=folders["vae_prior"], device="cpu")
    with pytest.raises(ValueError, match="expected a prior of latents or codes, got VAEModel"):
        pipeline("image-generation", model=folders["vqvae"], prior=folders["vae"], device="cpu")


def command(capsys, *argv: str) -> tuple[int, str, str]:
    status = cli.main([str(word) for word in argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_command_line(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generation, "LENET_STEPS", 20)
    for kind, flags in (("vae", ["--temperature", 0.7]), ("vqvae", ["--classes", 1, 3])):
        picture = tmp_path / f"{kind}.png"
        prior = ["--prior", folders[f"{kind}_prior"]]
        status, _, error = command(capsys, "sample", folders[kind], *prior, *flags, "-n", 4, "-o", picture)
        assert status == 0 and picture.is_file(), error
    for argv, message in (
        (["sample", folders["vqvae"]], "has no prior to sample from: give --prior"),
        (["sample", folders["vqvae"], "--prior", folders["vae_prior"]], "does not fit the auto-encoder"),
        (["sample", folders["vqvae"], "--prior", folders["vae"]], "holds a VAEModel: expected a prior"),
        (
            ["sample", folders["vqvae"], "--prior", folders["vqvae_prior"], "--classes", 4],
            "classes must be from 0 to 3",
        ),
        (["sample", folders["vqvae"], "--prior", folders["vqvae_prior"], "--temperature", 0], "temperature above 0"),
        (["sample", folders["vae"], "--classes", 1], "--classes is for priors of codes"),
        (["sample", folders["vae_prior"]], "expected an image auto-encoder"),
        (["sample", folders["vae"], "--prior", tmp_path / "nowhere"], "no such folder"),
        (["evaluate-samples", folders["vae"], "digits", "-n", 20], "20 rows of 64 features"),
    ):
        status, _, error = command(
            capsys, *argv, *([] if argv[0] == "evaluate-samples" else ["-o", tmp_path / "x.png"])
        )
        assert status == 2 and message in error and "Traceback" not in error, error
    argv = ["evaluate-samples", folders["vqvae"], "digits", "--prior", folders["vqvae_prior"], "-n", 100]
    status, printed, error = command(capsys, *argv)
    assert status == 0 and "uniform_codes_frechet_distance" in printed, error
    measured = json.loads((Path(folders["vqvae_prior"]) / "metrics.json").read_text())
    assert measured["model_type"] == "hfae_code_prior" and measured["command"].startswith(
        "hf-autoencoders evaluate-samples"
    )
    card = (Path(folders["vqvae_prior"]) / "README.md").read_text()
    assert "-log2 p(x)" in card and "Frechet distance" in card
