"""What is special to priors: exact probabilities, inverses, sampling, the auto-encoder they belong to, and training."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from sklearn.mixture import GaussianMixture

from hf_autoencoders import (
    CodePriorConfig,
    CodePriorModel,
    LatentPriorConfig,
    LatentPriorModel,
    VAEModel,
    VQVAEModel,
)
from hf_autoencoders.models.fingerprint import weights_fingerprint
from hf_autoencoders.training_priors import encode_split, fit_mixture, published_name
from hf_autoencoders.training_run import TrainingError

ROOT = Path(__file__).resolve().parents[1]
LATENT = ["latent_prior-realnvp", "latent_prior-mixture", "latent_prior-diag"]
CODE = ["code_prior-grid", "code_prior-residual", "code_prior-vector"]
VAE = {"image_size": 8, "architecture": "mlp", "hidden_sizes": (16,), "latent_size": 3}
VQVAE = {"image_size": 8, "hidden_sizes": (8, 8), "codebook_size": 7, "embedding_dim": 4}


def shaken(name: str, scale: float = 0.3, **fields):
    """A model none of whose weights is as it was initialised."""
    model = tiny.model(name, **fields)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- priors of latents


def standard_normal(*shape: int) -> LatentPriorModel:
    return LatentPriorModel(LatentPriorConfig(latent_shape=shape, prior="standard_normal")).eval()


def test_standard_normal_is_that_of_torch(tmp_path):
    model, latents = standard_normal(2, 3), normal(5, 2, 3)
    torch.testing.assert_close(model.log_prob(latents), torch.distributions.Normal(0, 1).log_prob(latents).sum((1, 2)))
    mean, std = normal(2, 3, seed=1), 0.5 + normal(2, 3, seed=2).abs()
    model.set_statistics(mean, std)
    expected = torch.distributions.Normal(mean, std).log_prob(latents).sum((1, 2))
    torch.testing.assert_close(model.log_prob(latents), expected)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(LatentPriorModel.from_pretrained(tmp_path).log_prob(latents), expected)
    drawn = model.sample(20_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.std(0), std, rtol=0.03, atol=0)
    cold = model.sample(20_000, temperature=0.5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cold.std(0), 0.5 * std, rtol=0.03, atol=0)


@pytest.mark.parametrize("name", LATENT)
def test_statistics_are_a_change_of_variables(name):
    """log p(latents) = log p(standardised) - sum of log std, whatever the density."""
    model, shape = shaken(name), tiny.config(name).latent_shape
    values, mean, std = normal(4, *shape), normal(*shape, seed=1), 0.5 + normal(*shape, seed=2).abs()
    before = model.log_prob(values)
    model.set_statistics(mean, std)
    torch.testing.assert_close(model.log_prob(values * std + mean), before - std.log().sum())


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_mixture_is_that_of_scikit_learn(covariance):
    """Fitted by expectation-maximisation, it gives the densities of the mixture that was fitted."""
    latents = torch.cat([normal(300, 3) @ normal(3, 3, seed=1), 2 + 0.5 * normal(300, 3, seed=2)])
    config = LatentPriorConfig(latent_shape=(3,), prior="gaussian_mixture", num_components=2, covariance=covariance)
    model = LatentPriorModel(config).eval()
    fit_mixture(model, latents, seed=3)
    options = {"covariance_type": covariance, "reg_covar": 1e-4, "random_state": 3}
    fitted = GaussianMixture(2, **options).fit(latents.double().numpy())
    expected = torch.from_numpy(fitted.score_samples(latents.double().numpy())).float()
    torch.testing.assert_close(model.log_prob(latents), expected, rtol=1e-3, atol=1e-3)
    drawn = model.sample(40_000, generator=torch.Generator().manual_seed(0))
    mean = fitted.weights_ @ fitted.means_
    own = [c if covariance == "full" else np.diag(c) for c in fitted.covariances_]
    squares = [w * (c + np.outer(m, m)) for w, c, m in zip(fitted.weights_, own, fitted.means_, strict=True)]
    torch.testing.assert_close(drawn.mean(0).double(), torch.from_numpy(mean), rtol=0, atol=0.05)
    expected = torch.from_numpy(sum(squares) - np.outer(mean, mean))
    torch.testing.assert_close(drawn.T.cov().double(), expected, rtol=0.06, atol=0.06)


def test_mixture_is_that_of_torch():
    model = shaken("latent_prior-mixture")
    density, values = model.density, normal(6, 4)
    factors = density.factors()
    components = torch.distributions.MultivariateNormal(density.means, precision_matrix=factors.mT @ factors)
    expected = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=density.logits), components
    ).log_prob(values)
    torch.testing.assert_close(model.log_prob(values), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [2, 5, 8])
def test_flow_is_invertible_and_its_determinant_that_of_its_jacobian(size):
    model = shaken("latent_prior-realnvp", latent_shape=(size,), num_couplings=5)
    values = normal(6, size)
    states, log_determinant = model.density(values)
    torch.testing.assert_close(model.density.inverse(states[-1]), values, rtol=1e-4, atol=1e-4)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: model.density(row[None])[0][-1][0]))(values)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_determinant, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        model.log_prob(values), torch.distributions.Normal(0, 1).log_prob(states[-1]).sum(1) + log_determinant
    )


def test_flow_begins_as_the_identity_and_stretches_within_its_bound():
    model, values = tiny.model("latent_prior-realnvp"), normal(6, 5)
    assert torch.equal(model.density(values)[0][-1], values)
    far = shaken("latent_prior-realnvp", scale=50.0, max_log_scale=0.5)
    log_scale, shift = far.density.steps[0].parameters_for(values)
    mask = far.density.steps[0].mask.bool()
    assert 0.4 < log_scale.abs().max() <= 0.5 and not log_scale[:, mask].any() and not shift[:, mask].any()


def test_the_density_of_a_flow_sums_to_one():
    model = shaken("latent_prior-realnvp", latent_shape=(2,), max_log_scale=0.5)
    axis = torch.linspace(-12, 12, 400)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    with torch.no_grad():
        mass = model.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=0.02)


def test_a_flow_learns_what_no_gaussian_is():
    """Two moons: 1.43 nats of a full Gaussian, less of a flow."""
    angle = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * math.pi
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    latents = torch.cat([upper, torch.tensor([1.0, 0.5]) - upper]) + 0.1 * normal(4000, 2)
    model = LatentPriorModel(LatentPriorConfig(latent_shape=(2,), num_couplings=6, hidden_size=32))
    model.set_statistics(latents.mean(0), latents.std(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(200):
        loss = model(latents[torch.randint(4000, (256,), generator=torch.Generator().manual_seed(step))]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gaussian = torch.distributions.MultivariateNormal(latents.mean(0), latents.T.cov()).log_prob(latents).mean()
    assert model(latents).loss < -gaussian - 0.4


@pytest.mark.parametrize("name", LATENT)
def test_latents_are_drawn_by_seed(name):
    model = shaken(name)
    one, same, other = (model.sample(4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and one.shape == (4, *model.config.latent_shape)
    for wrong in ({"num_samples": 0}, {"num_samples": 2.5}, {"num_samples": 2, "temperature": 0}):
        with pytest.raises(ValueError, match="expected (num_samples|a temperature)"):
            model.sample(**wrong)
    with pytest.raises(ValueError, match="expected a temperature above 0, got nan"):
        model.sample(2, temperature=float("nan"))


def test_wrong_latents_and_statistics_are_refused():
    model = tiny.model("latent_prior-diag")
    with pytest.raises(ValueError, match=r"latents must have shape \(batch_size, 2, 3\), got \(4, 3, 2\)"):
        model(torch.zeros(4, 3, 2))
    with pytest.raises(TypeError, match="latents must be a floating-point tensor, got torch.int64"):
        model(torch.zeros(4, 2, 3).long())
    with pytest.raises(ValueError, match=r"std must have shape \(2, 3\), got \(3,\)"):
        model.set_statistics(torch.zeros(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match="mean is not finite: the latents hold NaN"):
        model.set_statistics(torch.full((2, 3), torch.nan), torch.ones(2, 3))
    with pytest.raises(StrictDataclassError, match="at least 2 numbers"):
        LatentPriorConfig(latent_shape=(1,))


# ---- priors of codes


@pytest.mark.parametrize("name", CODE)
def test_probabilities_of_all_codes_sum_to_one(name):
    """Every one of the codes there can be, of a small prior; so nothing leaks to tokens that are no codes of theirs."""
    shape = {1: (3,), 3: (2, 1, 2)}[len(tiny.config(name).codes_shape)]
    model = shaken(name, codes_shape=shape, num_codes=3)
    codes = torch.cartesian_prod(*[torch.arange(3)] * math.prod(shape)).view(-1, *shape)
    for classes in (None, torch.full((len(codes),), 1)) if model.config.num_classes else (None,):
        mass = model.log_prob(codes, classes=classes).exp().sum()
        assert mass.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", CODE)
def test_codes_one_by_one_have_the_probabilities_of_all_at_once(name):
    model = shaken(name)
    inputs = tiny.inputs(model.config)
    outputs, sequence = model(**inputs), model.to_sequence(inputs["codes"])
    assert torch.equal(model.to_codes(sequence), inputs["codes"])
    state, before = model.start(6, inputs.get("classes")), None
    for position in range(model.config.num_positions):
        logits = model.next_logits(state, before)
        torch.testing.assert_close(logits, outputs.logits[:, position], rtol=1e-4, atol=1e-5)
        before = sequence[:, position]
    with pytest.raises(ValueError, match="codes are written already"):
        model.next_logits(state, before)


def test_a_code_depends_on_those_before_and_on_none_after():
    model = shaken("code_prior-residual")
    codes = tiny.inputs(model.config)["codes"]
    before = model(codes).logits
    for position in range(model.config.num_positions):
        sequence = model.to_sequence(codes)
        sequence[:, position] = (sequence[:, position] + 1) % model.config.num_codes
        changed = (model(model.to_codes(sequence)).logits - before).abs().amax((0, 2)) > 1e-6
        assert changed.tolist() == [False] * (position + 1) + [True] * (model.config.num_positions - position - 1)


def test_the_sequence_goes_by_rows_with_the_codebooks_of_a_place_side_by_side():
    model = tiny.model("code_prior-residual")  # (2 codebooks, 2, 2)
    codes = torch.tensor([[[[0, 1], [2, 3]], [[4, 0], [1, 2]]]])
    assert model.to_sequence(codes).tolist() == [[0, 4, 1, 0, 2, 1, 3, 2]]


@pytest.mark.parametrize("name", CODE)
def test_generate_of_transformers_draws_the_same(name):
    """Greedy, with and without a cache; beam search finds codes at least as likely."""
    model = shaken(name)
    greedy = model.sample(5, top_k=1)
    for options in ({"use_cache": True}, {"use_cache": False}):
        assert torch.equal(model.generate(5, do_sample=False, **options), greedy)
    beams = model.generate(5, do_sample=False, num_beams=4)
    assert (model.log_prob(beams) >= model.log_prob(greedy) - 1e-4).all()
    drawn = model.generate(50, do_sample=True, top_p=0.9)
    assert drawn.min() >= 0 and drawn.max() < model.config.num_codes


def test_codes_are_drawn_with_their_probabilities_and_by_seed():
    model = shaken("code_prior-vector", codes_shape=(2,))
    everything = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    for options, classes in (({}, None), ({}, 1), ({"temperature": 0.5}, None)):
        chosen = None if classes is None else torch.full((4000,), classes)
        drawn = model.sample(4000, classes=chosen, generator=torch.Generator().manual_seed(0), **options)
        found = torch.bincount(2 * drawn[:, 0] + drawn[:, 1], minlength=4) / 4000
        logits = model(everything, classes=None if classes is None else chosen[:4]).logits
        logits = logits / options.get("temperature", 1)
        expected = logits.log_softmax(-1).gather(2, everything.unsqueeze(2)).sum((1, 2)).exp()
        torch.testing.assert_close(found, expected, rtol=0, atol=0.03)
    one, same, other = (model.sample(40, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_class_dropout_hides_classes():
    model = shaken("code_prior-grid", class_dropout=0.5)
    inputs = tiny.inputs(model.config)
    noise = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.7, 0.8])
    hidden = torch.where(noise < 0.5, -1, inputs["classes"])
    expected = model(inputs["codes"], classes=hidden).log_prob
    torch.testing.assert_close(model(**inputs, class_noise=noise).log_prob, expected)
    assert not torch.allclose(model(**inputs).log_prob, expected)
    none = model.log_prob(inputs["codes"])
    torch.testing.assert_close(model(inputs["codes"], classes=torch.full((6,), -1)).log_prob, none)


def test_wrong_codes_and_classes_are_refused():
    model = tiny.model("code_prior-grid")  # (1, 2, 3), 8 codes, 3 classes
    codes = torch.zeros(2, 1, 2, 3, dtype=torch.long)
    for wrong, error, message in (
        (codes[..., :2], ValueError, r"codes must have shape \(batch_size, 1, 2, 3\).*got \(2, 1, 2, 2\)"),
        (codes.float(), TypeError, "codes must be an integer tensor, got torch.float32"),
        (codes + 8, ValueError, "codes must be from 0 to 7, got values from 8 to 8"),
        (codes - 1, ValueError, "codes must be from 0 to 7"),
    ):
        with pytest.raises(error, match=message):
            model(wrong)
    for wrong, error, message in (
        (torch.tensor([0, 3]), ValueError, "classes must be from 0 to 2, or -1 for none, got 0 to 3"),
        (torch.tensor([-2, 0]), ValueError, "classes must be from 0 to 2"),
        (torch.tensor([0]), ValueError, r"classes must have shape \(2,\).*got \(1,\)"),
        (torch.tensor([0.0, 1.0]), TypeError, "classes must be an integer tensor, got torch.float32"),
        ([0, 1], TypeError, "classes must be an integer tensor, got list"),
    ):
        for call in (lambda wrong=wrong: model(codes, classes=wrong), lambda wrong=wrong: model.sample(2, wrong)):
            with pytest.raises(error, match=message):
                call()
    without = tiny.model("code_prior-residual")
    with pytest.raises(ValueError, match="this prior knows no classes"):
        without.sample(2, classes=torch.tensor([0, 1]))
    for options in ({"temperature": 0}, {"temperature": -1.0}, {"top_k": 0}):
        with pytest.raises(ValueError, match="expected (a temperature above 0|top_k >= 1), got"):
            model.sample(2, **options)
    with pytest.raises(StrictDataclassError, match="hidden_size must be a multiple of num_attention_heads"):
        CodePriorConfig(hidden_size=10, num_attention_heads=4)


# ---- the auto-encoder


def vae(seed: int = 0, **fields) -> VAEModel:
    torch.manual_seed(seed)
    return VAEModel(VAEModel.config_class(**{**VAE, **fields})).eval()


def vqvae(seed: int = 0) -> VQVAEModel:
    torch.manual_seed(seed)
    return VQVAEModel(VQVAEModel.config_class(**VQVAE)).eval()


def prior_of(autoencoder):
    """A prior of what an auto-encoder encodes, that knows its weights."""
    config, whose = (
        autoencoder.config,
        {"autoencoder_fingerprint": weights_fingerprint(autoencoder), "autoencoder": "a"},
    )
    torch.manual_seed(7)
    if hasattr(config, "codes_shape"):
        sizes = {"codes_shape": config.codes_shape, "num_codes": config.num_codes, "num_classes": 2}
        return CodePriorModel(CodePriorConfig(**sizes, **tiny.GPT2, **whose)).eval()
    return LatentPriorModel(LatentPriorConfig(latent_shape=config.latent_shape, hidden_size=8, **whose)).eval()


@pytest.mark.parametrize("make", [vae, vqvae])
def test_an_autoencoder_draws_from_its_prior(make):
    model = make()
    prior = prior_of(model)
    images = model.sample(3, torch.Generator().manual_seed(0), prior=prior)
    drawn = prior.sample(3, generator=torch.Generator().manual_seed(0))
    expected = model.decode_codes(drawn) if prior.gives_codes else model.decode(drawn)
    assert torch.equal(images, expected) and images.shape == (3, 1, 8, 8)
    other = make(seed=1)
    with pytest.raises(
        ValueError, match=r"trained on the codes or latents of a, with weights of fingerprint [0-9a-f]{16}"
    ):
        other.sample(3, prior=prior)
    with pytest.raises(ValueError, match="expected a prior of latents or codes of this package, got VAEModel"):
        model.sample(3, prior=vae())


def test_a_prior_of_something_else_is_refused():
    with pytest.raises(
        ValueError, match=r"does not fit.*of latents of shape \(3,\), but hfae_vqvae has latents of shape"
    ):
        vqvae().sample(2, prior=prior_of(vae()))
    with pytest.raises(
        ValueError, match=r"of codes of shape \(1, 2, 2\) with 7 values, but hfae_vae has no discrete codes"
    ):
        vae().sample(2, prior=prior_of(vqvae()))
    for name in ("autoencoder-conv", "vqvae-ema"):
        with pytest.raises(ValueError, match="has no prior of its own to sample from: give one"):
            tiny.model(name).sample(2)
    joint = tiny.model("joint_vae-conv")
    with pytest.raises(ValueError, match="part discrete, part continuous"):
        joint.sample(2, prior=prior_of(vae()))
    with pytest.raises(TypeError, match=r"classes: the prior N\(0, I\) takes no such argument"):
        vae().sample(2, classes=torch.tensor([0, 1]))


def test_every_discrete_variant_draws_from_a_prior():
    for name in ("binary_autoencoder-conv", "categorical_autoencoder-conv", "vqvae-residual", "vqvae-fsq"):
        model = tiny.model(name)
        assert model.sample(2, prior=prior_of(model)).shape == (2, *model.config.input_shape)
    model = tiny.model("autoencoder-conv")
    assert model.sample(2, prior=prior_of(model)).shape == (2, *model.config.input_shape)


def test_a_fingerprint_is_of_the_weights(tmp_path):
    model = vqvae()
    found = weights_fingerprint(model)
    assert found == weights_fingerprint(vqvae()) != weights_fingerprint(vqvae(seed=1))
    model.save_pretrained(tmp_path)
    assert weights_fingerprint(VQVAEModel.from_pretrained(tmp_path)) == found
    half = VQVAEModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert weights_fingerprint(half) == found
    half.sample(2, prior=prior_of(model))
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)
    assert weights_fingerprint(model) != found
    with pytest.raises(StrictDataclassError, match="expected 16 hexadecimal digits"):
        LatentPriorConfig(autoencoder_fingerprint="xyz")


# ---- training

QUICK = "--use_cpu --disable_progress_bar --num_pictures 0 --batch_size 32 --max_steps 6 --eval_steps 3 --save_steps 2"
SMALL = {"vae": "--num_couplings 2 --hidden_size 8", "vqvae": "--hidden_size 8 --num_hidden_layers 1 --dropout 0.1"}


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("autoencoders")
    for name, make in (("vae", vae), ("vqvae", vqvae)):
        make().save_pretrained(folder / name / "final")
    return {name: folder / name / "final" for name in ("vae", "vqvae")}


def train(autoencoder: Path, output_dir: Path, *flags) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    if str(ROOT / "training") not in sys.path:
        sys.path.insert(0, str(ROOT / "training"))
    own = SMALL.get(autoencoder.parent.name, "").split()
    command = [*QUICK.split(), *own, "--autoencoder", autoencoder, "--output_dir", output_dir, *flags]
    importlib.import_module("train_prior").main([str(word) for word in command])
    return output_dir


@pytest.mark.parametrize("name", ["vae", "vqvae"])
def test_the_script_trains_a_prior_that_knows_its_autoencoder(name, autoencoders, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_autoencoders.evaluation.generation.LENET_STEPS", 20)
    folder = train(autoencoders[name], tmp_path / "run", "--num_generated", 100, "--num_pictures", 6) / "final"
    model, prior_class = (vae(), LatentPriorModel) if name == "vae" else (vqvae(), CodePriorModel)
    prior = prior_class.from_pretrained(folder)
    assert prior.config.autoencoder == name and prior.config.autoencoder_fingerprint == weights_fingerprint(model)
    assert model.sample(2, prior=prior).shape == (2, 1, 8, 8)
    measured = json.loads((folder / "metrics.json").read_text())
    assert measured["settings"]["num_samples"] == 100 and measured["settings"]["features"].startswith("lenet(digits")
    plain = "standard_normal" if name == "vae" else "uniform_codes"
    assert {"frechet_distance", "precision", "recall", "prior_nll"} <= set(measured["metrics"])
    assert f"{plain}_frechet_distance" in measured["baselines"]
    assert (folder / "samples.png").is_file() and not (folder / "preprocessor_config.json").exists()
    card = (folder / "README.md").read_text()
    assert f"auto-encoder `{name}`" in card and "Frechet distance" in card and str(tmp_path) not in card
    if name == "vqvae":
        assert prior.config.num_classes == 10 and measured["metrics"]["code_bits_per_image"] > 0


@pytest.mark.parametrize("name", ["vae", "vqvae"])
def test_a_killed_run_goes_on_to_the_same_weights(name, autoencoders, tmp_path, monkeypatch):
    from hf_autoencoders.training_run import TrainingRun

    flags = ("--no_final_evaluation", "--average_decay", 0.9)
    whole = train(autoencoders[name], tmp_path / "whole", *flags)
    with monkeypatch.context() as patch:
        steps, original = [], TrainingRun.update_average

        def deadly(run):
            steps.append(1)
            if len(steps) == 5:
                raise KeyboardInterrupt
            original(run)

        patch.setattr(TrainingRun, "update_average", deadly)
        with pytest.raises(KeyboardInterrupt):
            train(autoencoders[name], tmp_path / "killed", *flags)
    killed = train(autoencoders[name], tmp_path / "killed", *flags, "--resume_from_checkpoint", "latest")
    one, other = (load_file(folder / "final" / "model.safetensors") for folder in (whole, killed))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["vae", "vqvae"])
def test_two_processes_see_what_one_sees(name, autoencoders, tmp_path, monkeypatch):
    """The inputs of the halves of each batch, one after the other, are those of the whole batch."""
    from hf_autoencoders.training_priors import PriorTrainingRun

    train(autoencoders[name], tmp_path / "run", "--no_final_evaluation")
    script = importlib.import_module("train_prior")
    seen: dict[tuple[int, int], list] = {}
    original = PriorTrainingRun._batch_of

    def spy(run, split, rows, global_size, seed):
        if split == "train":
            whole = script.inputs(run, original(run, split, rows, global_size, seed))
            parts = []
            for index in range(2):
                accelerator = type("", (), {"process_index": index, "num_processes": 2})
                real, run.accelerator = run.accelerator, accelerator
                half = rows[global_size * index // 2 : global_size * (index + 1) // 2]
                parts.append(script.inputs(run, original(run, split, half, global_size, seed)))
                run.accelerator = real
            seen[seed] = [(whole[key], torch.cat([part[key] for part in parts])) for key in whole]
        return original(run, split, rows, global_size, seed)

    monkeypatch.setattr(PriorTrainingRun, "_batch_of", spy)
    train(autoencoders[name], tmp_path / "again", "--no_final_evaluation")
    assert len(seen) == 6
    assert all(torch.equal(one, other) for pairs in seen.values() for one, other in pairs)


def test_mixtures_train_from_what_expectation_maximisation_found(autoencoders, tmp_path):
    flags = "--prior gaussian_mixture --num_components 2 --no_final_evaluation --latents means".split()
    folder = train(autoencoders["vae"], tmp_path / "run", *flags, "--learning_rate", 1e-9)
    from hf_autoencoders.data import image_arrays, load_corpus

    processor = importlib.import_module("hf_autoencoders").AutoencoderImageProcessor.for_model(vae().config)
    images = image_arrays(load_corpus("digits")["train"], processor).images
    latents = encode_split(vae(), images).values
    trained = LatentPriorModel.from_pretrained(folder / "final")
    expected = GaussianMixture(2, reg_covar=1e-4, random_state=0).fit(
        ((latents - latents.mean(0)) / latents.std(0)).double().numpy()
    )
    nats = -expected.lower_bound_ + latents.std(0).log().sum().item()
    assert trained(latents).loss.item() == pytest.approx(nats, abs=0.05)


def test_what_cannot_be_trained_is_said(autoencoders, tmp_path, monkeypatch):
    for flags, message in (
        (["--autoencoder", tmp_path / "nowhere"], "--autoencoder .*nowhere"),
        (["--variant", "code_prior"], "of latents, not codes: use --variant latent_prior"),
        (["--prior", "standard_normal"], "has nothing to learn"),
        (["--streaming"], "--streaming does not go with priors"),
    ):
        with monkeypatch.context() as patch, pytest.raises(TrainingError, match=message):
            patch.setitem(SMALL, "vae", "")
            train(autoencoders["vae"], tmp_path / "run", *flags, "--no_final_evaluation")
    broken = vae()
    with torch.no_grad():
        broken.encoder.output.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="latents that are not finite, first for image 0"):
        encode_split(broken, np.zeros((3, 1, 8, 8), np.uint8))
    assert published_name("organisation/name") == "organisation/name"
    (tmp_path / "runs" / "mine" / "final").mkdir(parents=True)
    assert published_name(str(tmp_path / "runs" / "mine" / "final")) == "mine"


@pytest.mark.parametrize("prior", ["standard_normal", "gaussian_mixture", "realnvp"])
def test_a_prior_of_latents_stays_in_float32(prior):
    model = LatentPriorModel(LatentPriorConfig(latent_shape=(4,), prior=prior, hidden_size=8, num_components=2)).eval()
    latents = torch.randn(3, 4)
    expected = model.log_prob(latents)
    model.half()
    found = model.log_prob(latents)
    assert model.dtype == torch.float32 and torch.equal(found, expected)
    assert model.sample(2).shape == (2, 4)
