"""What is special to auto-encoders with a discrete code: bounds by enumeration, gradients, schedules, clusterings."""

import itertools
import math
import sys
from pathlib import Path

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from huggingface_hub.errors import StrictDataclassError
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence

from hf_autoencoders import CategoricalAutoencoderConfig
from hf_autoencoders.models.losses import joint_mutual_information
from hf_autoencoders.models.modeling_discrete_autoencoder import (
    categorical_kl,
    gumbel_noise,
    logistic_noise,
    mutual_information,
    pass_gradients,
    sample_categorical,
)
from hf_autoencoders.training_arguments import parse_arguments
from hf_autoencoders.training_clusters import find_last_fine_step, group_categories
from hf_autoencoders.training_images import ImageTrainingRun
from hf_autoencoders.training_run import TrainingError

ROOT = Path(__file__).resolve().parents[1]
FIRST = [tiny.FIRST[name] for name in ("binary_autoencoder", "categorical_autoencoder", "joint_vae")]
ONE_HOT = ["categorical_autoencoder-resnet", "joint_vae-resnet"]


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def widened(model):
    """The same model, whose posteriors differ more from image to image."""
    with torch.no_grad():
        model.encoder.output.weight.mul_(8)
        model.decoder.input.weight.mul_(8)
    return model


# ---- divergences and bounds


def test_kl_of_bits():
    model = widened(tiny.model("binary_autoencoder-conv"))
    output = model(tiny.images(model.config))
    expected = kl_divergence(Bernoulli(output.probabilities), Bernoulli(torch.tensor(0.5))).sum(1).mean()
    torch.testing.assert_close(output.kl_loss, expected)


def test_kl_of_categories():
    logits = 3 * torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    expected = kl_divergence(Categorical(logits=logits), Categorical(torch.ones(5))).sum(1)
    torch.testing.assert_close(categorical_kl(logits.log_softmax(-1)), expected)


def test_kl_of_certain_codes_is_finite():
    """Probabilities of 0 cost nothing, and have a gradient."""
    logits = torch.tensor([[[200.0, 0.0, -200.0]]], requires_grad=True)
    kl = categorical_kl(logits.log_softmax(-1)).sum()
    kl.backward()
    assert kl.item() == pytest.approx(math.log(3)) and logits.grad.isfinite().all()
    model = tiny.model("binary_autoencoder-conv")
    with torch.no_grad():
        model.encoder.output.bias.fill_(500)
    output = model.train()(tiny.images(model.config))
    output.loss.backward()
    assert output.kl_loss.item() == pytest.approx(5 * math.log(2), rel=1e-5)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def enumerated(model, pixel_values):
    """log p(x, code) and log q(code|x) of all codes, `(batch_size, codes)` each, in nats."""
    config = model.config
    codes = torch.tensor(list(itertools.product(range(config.num_codes), repeat=config.codes_shape[0])))
    probabilities = model.encode(pixel_values).probabilities
    if probabilities.ndim == 2:  # of bits
        probabilities = torch.stack([1 - probabilities, probabilities], dim=2)
    log_posterior = torch.stack(
        [probabilities[:, range(codes.shape[1]), code].log().sum(1) for code in codes], dim=1
    )  # codes are independent
    images = model.decode_codes(codes)
    log_likelihood = torch.stack([Independent(Bernoulli(image), 3).log_prob(pixel_values) for image in images], dim=1)
    return log_likelihood - math.log(len(codes)), log_posterior


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("binary_autoencoder-mlp", {"num_bits": 3}),
        ("categorical_autoencoder-conv", {"num_categories": 4}),
        ("categorical_autoencoder-conv", {"num_categories": 2, "num_variables": 2}),
    ],
)
@torch.no_grad()
def test_the_loss_is_the_variational_bound(name, fields):
    """By all codes: below log p(x), and the mean of the sampled loss is the expectation."""
    model = widened(tiny.model(name, sampling="straight_through", temperature_decay_steps=0, **fields))
    pixel_values = tiny.images(model.config, batch_size=3).round()  # binary, so that the likelihood is one
    log_joint, log_posterior = enumerated(model, pixel_values)
    torch.testing.assert_close(log_posterior.logsumexp(1), torch.zeros(3), rtol=0, atol=1e-5)
    bound = (log_posterior.exp() * (log_joint - log_posterior)).sum(1)
    assert (bound < log_joint.logsumexp(1)).all()
    samples = 4000
    repeated = pixel_values.repeat(samples, 1, 1, 1)
    shape = model.config.codes_shape if name.startswith("binary") else model.one_hot_shape
    loss = model(repeated, uniform_noise=uniform(3 * samples, *shape)).loss.item()
    assert loss == pytest.approx(-bound.mean().item(), rel=0.005)


# ---- samples and their gradients


def test_noise_gives_logistic_and_gumbel_samples():
    """Their means and variances; and bits and categories are drawn as often as their probabilities say."""
    noise = uniform(200_000)
    logistic, gumbel = logistic_noise(noise), gumbel_noise(noise)
    assert logistic.mean().item() == pytest.approx(0, abs=0.02)
    assert logistic.var().item() == pytest.approx(math.pi**2 / 3, rel=0.02)
    assert gumbel.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert gumbel.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)
    assert logistic_noise(torch.tensor([0.0, 1.0])).isfinite().all()
    assert gumbel_noise(torch.tensor([0.0, 1.0])).isfinite().all()
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    log_probabilities = probabilities.log().expand(50_000, 1, 3)
    _, codes = sample_categorical(log_probabilities, uniform(50_000, 1, 3), "relaxed", 0.5)
    torch.testing.assert_close(codes.flatten().bincount() / 50_000, probabilities, rtol=0, atol=0.01)
    assert (logistic + math.log(0.2 / 0.8) > 0).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_straight_through_has_hard_values_and_soft_gradients():
    logits = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    noise, direction = uniform(6, 2, 5), torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1))
    found, soft = {}, {}
    for sampling in ("relaxed", "straight_through", "straight_through_relaxed"):
        own = logits.clone().requires_grad_()
        sample, codes = sample_categorical(own.log_softmax(-1), noise, sampling, 0.7)
        (sample * direction).sum().backward()
        found[sampling] = own.grad
        if sampling == "relaxed":
            torch.testing.assert_close(sample.sum(-1), torch.ones(6, 2))
            assert torch.equal(sample.argmax(-1), codes) and ((sample > 0.01) & (sample < 0.99)).any()
        else:
            torch.testing.assert_close(sample, torch.nn.functional.one_hot(codes, 5).float(), rtol=0, atol=1e-6)
    own = logits.clone().requires_grad_()
    (own.softmax(-1) * direction).sum().backward()
    soft["straight_through"] = own.grad
    torch.testing.assert_close(found["straight_through"], soft["straight_through"])
    torch.testing.assert_close(found["straight_through_relaxed"], found["relaxed"])
    hard = torch.tensor([1.0, 0.0])
    assert torch.equal(pass_gradients(hard, torch.tensor([0.25, 0.5])), hard)


@pytest.mark.parametrize("name", ["binary_autoencoder-conv", "categorical_autoencoder-conv"])
def test_relaxed_samples_tend_to_hard_ones(name):
    fields = {"initial_temperature": 0.01, "final_temperature": 0.01, "temperature_decay_steps": 0}
    cold, hard = (tiny.model(name, sampling=s, **fields) for s in ("relaxed", "straight_through"))
    warm = tiny.model(name, sampling="relaxed", final_temperature=1.0, temperature_decay_steps=0)
    inputs = tiny.training_inputs(cold)
    with torch.no_grad():
        cold, warm, hard = (model(**inputs).latents for model in (cold, warm, hard))
    assert (cold - hard).abs().mean() < 0.02 < (warm - hard).abs().mean()


def test_the_temperature_falls_exponentially():
    fields = {"sampling": "relaxed", "initial_temperature": 2.0, "final_temperature": 0.5, "temperature_decay_steps": 4}
    model = tiny.model("categorical_autoencoder-conv", **fields).train()
    inputs = tiny.training_inputs(model)
    for step in range(6):
        temperature = 2.0 * 0.25 ** min(step / 4, 1)
        expected, _ = sample_categorical(
            model._log_probabilities(model._encode(inputs["pixel_values"])[0]),
            inputs["uniform_noise"],
            "relaxed",
            temperature,
        )
        torch.testing.assert_close(model(**inputs).latents, expected.flatten(1), rtol=1e-4, atol=1e-6)


# ---- the mutual information of views


def test_mutual_information_of_known_cases():
    one_hot = torch.eye(4)[torch.arange(12) % 4].unsqueeze(1)
    assert mutual_information(one_hot, one_hot).item() == pytest.approx(math.log(4), rel=1e-5)
    other = torch.eye(4)[torch.arange(16) // 4].unsqueeze(1)  # every pair once
    both = torch.eye(4)[torch.arange(16) % 4].unsqueeze(1)
    assert mutual_information(both, other).item() == pytest.approx(0, abs=1e-6)
    even = torch.full((5, 1, 4), 0.25)
    assert mutual_information(even, even).item() == pytest.approx(0, abs=1e-6)
    certain = torch.eye(4)[[2, 2, 2]].unsqueeze(1)  # all in one category
    assert mutual_information(certain, certain).item() == pytest.approx(0, abs=1e-6)


def test_mutual_information_is_that_of_the_mean_joint_distribution():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(9, 2, 4, generator=generator).mul(2).softmax(-1) for _ in range(2))
    expected = 0.0
    for variable in range(2):
        joint = sum(torch.outer(p, q) for p, q in zip(one[:, variable], other[:, variable], strict=True)) / 9
        joint = (joint + joint.T) / 2
        margin = joint.sum(0)
        independent = Categorical(torch.outer(margin, margin).flatten())
        expected += kl_divergence(Categorical(joint.flatten()), independent).item()
        assert joint_mutual_information(joint).item() == pytest.approx(
            kl_divergence(Categorical(joint.flatten()), independent).item(), rel=1e-4
        )
    found = mutual_information(one, other).item()
    assert found == pytest.approx(expected, rel=1e-4)
    assert mutual_information(other, one).item() == pytest.approx(found, rel=1e-4)
    order = torch.tensor([2, 0, 3, 1])  # categories by other names
    assert mutual_information(one[..., order], other[..., order]).item() == pytest.approx(found, rel=1e-4)


def test_terms_of_a_clustering():
    """The categories' own mutual information counts when the fine ones have had their steps."""
    model = tiny.model("categorical_autoencoder-clustering", mutual_information_weight=3.0, beta=0.5).train()
    inputs = tiny.training_inputs(model)
    for step in range(4):
        output = model(**inputs)
        terms = output.fine_mutual_information_loss + (output.mutual_information_loss if step >= 2 else 0)
        torch.testing.assert_close(output.loss, output.reconstruction_loss + 0.5 * output.kl_loss + 3.0 * terms)
    with torch.no_grad():
        own, view = (model.encode(inputs[name]).probabilities for name in ("pixel_values", "augmented_pixel_values"))
    torch.testing.assert_close(output.mutual_information_loss, -mutual_information(own, view))
    evaluated = model.eval()(**inputs)
    terms = evaluated.fine_mutual_information_loss + evaluated.mutual_information_loss
    bound = evaluated.reconstruction_loss + 0.5 * evaluated.kl_loss
    torch.testing.assert_close(evaluated.loss, bound + 3.0 * terms)
    without = model(inputs["pixel_values"], inputs["uniform_noise"])
    torch.testing.assert_close(without.loss, bound)
    assert "mutual_information_loss" not in without and "fine_mutual_information_loss" not in without


def test_views_are_needed_in_training():
    model = tiny.model("categorical_autoencoder-clustering").train()
    inputs = tiny.training_inputs(model)
    views = inputs.pop("augmented_pixel_values")
    with pytest.raises(ValueError, match="pass augmented_pixel_values, or set mutual_information_weight=0"):
        model(**inputs)
    assert model(**inputs, return_loss=False).reconstruction is not None
    for wrong in (views[:-1], views[..., :-1]):
        with pytest.raises(ValueError, match="augmented_pixel_values must have the shape of pixel_values"):
            model(**inputs, augmented_pixel_values=wrong)
    plain = tiny.model("categorical_autoencoder-conv").train()
    assert "mutual_information_loss" not in plain(**tiny.training_inputs(plain))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fine_steps": 5}, "needs num_fine_categories"),
        ({"num_fine_categories": 10, "mutual_information_weight": 1}, "above num_categories=10"),
        ({"num_fine_categories": 20, "mutual_information_weight": 1, "num_variables": 2}, "needs num_variables=1"),
        ({"num_fine_categories": 20}, "needs mutual_information_weight above 0"),
    ],
)
def test_fine_categories_that_cannot_be(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        CategoricalAutoencoderConfig(**fields)


# ---- few clusters from many


def blocks(sizes: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A joint matrix of categories that are confused within groups only, in random order, and their groups."""
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    generator = torch.Generator().manual_seed(seed)
    groups = groups[torch.randperm(len(groups), generator=generator)]
    joint = torch.rand(len(groups), len(groups), generator=generator, dtype=torch.float64)
    return joint * torch.where(groups[:, None] == groups, 1.0, 0.02), groups


def test_grouping_finds_the_blocks():
    joint, groups = blocks((3, 2, 4, 3))
    found = group_categories(joint, 4, torch.Generator().manual_seed(0))
    assert torch.equal(found[:, None] == found, groups[:, None] == groups)
    again = group_categories(joint, 4, torch.Generator().manual_seed(0))
    assert torch.equal(found, again) and found.dtype == torch.int64


def test_grouping_keeps_the_most_information():
    """Against all groupings of six categories into two."""
    joint, _ = blocks((3, 3), seed=1)
    joint = joint + joint.rot90() * 0.3
    joint = joint + joint.T
    joint = joint / joint.sum()

    def information(groups) -> float:
        members = torch.eye(2, dtype=torch.float64)[torch.as_tensor(groups)]
        return joint_mutual_information(members.T @ joint @ members).item()

    best = max(information(groups) for groups in itertools.product((0, 1), repeat=6))
    found = group_categories(joint, 2, torch.Generator().manual_seed(0), num_restarts=20)
    assert information(found) == pytest.approx(best)


@torch.no_grad()
def test_categories_start_from_their_groups():
    model = tiny.model("categorical_autoencoder-clustering")  # 5 fine categories, 3 categories
    layer, groups = model.encoder.output, torch.tensor([1, 0, 1, 2, 0])
    features = torch.randn(7, layer.in_features, generator=torch.Generator().manual_seed(0))
    before = layer(features)
    model.group_fine_categories(groups)
    after = layer(features)
    assert torch.equal(after[:, :5], before[:, :5])
    for category in range(3):
        torch.testing.assert_close(after[:, 5 + category], before[:, :5][:, groups == category].mean(1))
    # where the fine categories of a group are alike, and sure, so is the category
    layer.weight[:5] = 10 * torch.eye(3, layer.in_features)[groups]
    layer.bias[:5] = 0
    model.group_fine_categories(groups)
    logits = layer(torch.eye(3, layer.in_features))
    assert logits[:, 5:].argmax(1).tolist() == [0, 1, 2]
    fine = logits[:, :5].softmax(1)
    assert torch.stack([fine[:, groups == c].sum(1) for c in range(3)], 1).argmax(1).tolist() == [0, 1, 2]


@torch.no_grad()
def test_the_joint_distribution_of_fine_categories():
    model = tiny.model("categorical_autoencoder-clustering")
    inputs = tiny.inputs(model.config)
    joint = model.fine_joint(inputs["pixel_values"], inputs["augmented_pixel_values"])
    assert joint.shape == (5, 5) and joint.dtype == torch.float64 and joint.sum().item() == pytest.approx(6)
    halves = [model.fine_joint(*(inputs[k][part] for k in ("pixel_values", "augmented_pixel_values")))
              for part in (slice(0, 2), slice(2, 6))]  # fmt: skip
    torch.testing.assert_close(sum(halves), joint, rtol=1e-5, atol=1e-8)
    output = model(**inputs)
    joint = (joint + joint.T) / joint.sum() / 2
    assert output.fine_mutual_information_loss.item() == pytest.approx(
        -joint_mutual_information(joint).item(), abs=1e-6
    )


def test_wrong_groups_are_refused():
    model = tiny.model("categorical_autoencoder-clustering")
    with pytest.raises(ValueError, match="from 0 to 2"):
        model.group_fine_categories(torch.tensor([0, 1, 2, 3, 0]))
    with pytest.raises(ValueError, match="must have shape"):
        model.group_fine_categories(torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match="integer"):
        model.group_fine_categories(torch.zeros(5))
    plain = tiny.model("categorical_autoencoder-conv")
    with pytest.raises(ValueError, match="has no fine categories"):
        plain.group_fine_categories(torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="has no fine categories"):
        plain.fine_joint(tiny.images(plain.config), tiny.images(plain.config))


# ---- codes, samples, clusters


@pytest.mark.parametrize("name", [*FIRST, *ONE_HOT, "binary_autoencoder-resnet"])
@torch.no_grad()
def test_codes_decode_to_what_their_latents_do(name):
    model = tiny.model(name)
    encoded = model.encode(tiny.images(model.config))
    assert encoded.codes.shape == (6, *model.config.codes_shape)
    assert encoded.codes.max() < model.config.num_codes and encoded.latents.shape == (6, *model.config.latent_shape)
    rest = () if encoded.mean is None else (encoded.mean,)
    assert torch.equal(model.decode_codes(encoded.codes, *rest), model.decode(encoded.latents))
    if rest:
        at_mean = encoded.latents.clone()
        at_mean[:, : model.config.latent_size] = 0
        assert torch.equal(model.decode_codes(encoded.codes), model.decode(at_mean))


@pytest.mark.parametrize("name", FIRST)
def test_samples_follow_the_seed(name):
    model = tiny.model(name)
    one, same, other = (model.sample(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == (5, *model.config.input_shape) and torch.equal(one, same) and not torch.equal(one, other)
    with pytest.raises(ValueError, match="num_samples >= 1"):
        model.sample(0)


@pytest.mark.parametrize("name", ONE_HOT)
@torch.no_grad()
def test_clusters_are_the_most_probable_categories(name):
    model = tiny.model(name)
    pixel_values = tiny.images(model.config)
    probabilities = model.encode(pixel_values).probabilities
    for variable in range(2):
        assert torch.equal(model.cluster(pixel_values, variable), probabilities[:, variable].argmax(1))
    with pytest.raises(ValueError, match="expected a variable from 0 to 1, got 2"):
        model.cluster(pixel_values, 2)


@pytest.mark.parametrize("name", FIRST)
def test_wrong_codes_and_noise_are_refused(name):
    model = tiny.model(name)
    axes, size = model.code_axis, model.config.codes_shape[0]
    with pytest.raises(ValueError, match=rf"\(batch_size, {axes}\)"):
        model.decode_codes(torch.zeros(2, size + 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"from 0 to {model.config.num_codes - 1}"):
        model.decode_codes(torch.full((2, size), model.config.num_codes))
    with pytest.raises(TypeError, match="integer"):
        model.decode_codes(torch.zeros(2, size))
    pixel_values = tiny.images(model.config)
    with pytest.raises(ValueError, match="uniform_noise must be a tensor of shape"):
        model(pixel_values, uniform_noise=torch.rand(6, size + 1))
    noise = tiny.training_inputs(model)["uniform_noise"]
    with pytest.raises(ValueError, match="uniform_noise must be a tensor of shape"):
        model(pixel_values, uniform_noise=noise[:-1])


# ---- JointVAE


def test_both_capacities_grow_and_are_full_in_evaluation():
    fields = {"capacity_weight": 3.0, "max_continuous_capacity": 2.0, "max_discrete_capacity": 50.0}
    model = tiny.model("joint_vae-resnet", capacity_warmup_steps=4, **fields)
    inputs = tiny.training_inputs(model)
    largest = 2 * math.log(3)  # two variables of three categories hold no more

    def expected(output, share: float) -> torch.Tensor:
        distances = (output.continuous_kl_loss - 2.0 * share).abs(), (output.discrete_kl_loss - largest * share).abs()
        return output.reconstruction_loss + 3.0 * sum(distances)

    for step in range(6):
        output = model.train()(**inputs)
        torch.testing.assert_close(output.loss, expected(output, min(step / 4, 1)))
        torch.testing.assert_close(output.kl_loss, output.continuous_kl_loss + output.discrete_kl_loss)
    output = model.eval()(**inputs)
    torch.testing.assert_close(output.loss, expected(output, 1.0))


def test_kl_of_the_gaussian_part():
    model = widened(tiny.model("joint_vae-conv"))
    output = model(tiny.images(model.config))
    posterior = Normal(output.mean, (0.5 * output.log_variance).exp())
    prior = Normal(torch.zeros(()), torch.ones(()))
    torch.testing.assert_close(output.continuous_kl_loss, kl_divergence(posterior, prior).sum(1).mean())


# ---- training


def script():
    if str(ROOT / "training") not in sys.path:
        sys.path.insert(0, str(ROOT / "training"))
    import train_discrete_autoencoder

    return train_discrete_autoencoder


QUICK = "--use_cpu --disable_progress_bar --no_final_evaluation --num_pictures 0 --architecture mlp --hidden_sizes 8"


def train(folder, flags: str) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    script().main([*QUICK.split(), *flags.split(), "--output_dir", str(folder)])
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--scale 1.2", "--scale: only a categorical_autoencoder with --mutual_information_weight"),
        ("--variant binary_autoencoder --translation 0.1 --scale 1.1", "--scale, --translation: only"),
        ("--mutual_information_weight 1 --scale 0.9", "changed views cannot be made: scale must be from 1"),
        ("--mutual_information_weight 1 --elastic_strength -1", "must not be negative"),
        (
            "--mutual_information_weight 1 --num_fine_categories 20 --fine_steps 9 --max_steps 9",
            "--fine_steps 9: the run is over after 9 steps",
        ),
    ],
)
def test_flags_without_effect_are_refused(flags, message, tmp_path):
    with pytest.raises(TrainingError, match=message):
        train(tmp_path, flags)


def test_the_step_that_ends_the_fine_ones(tmp_path):
    flags = "--mutual_information_weight 1 --num_fine_categories 20 --fine_steps 7 --gradient_accumulation_steps 2"
    argv = [*QUICK.split(), *flags.split(), "--max_steps", "9", "--output_dir", str(tmp_path)]
    AcceleratorState._reset_state(reset_partial_state=True)
    extra = script().DiscreteAutoencoderTrainingArguments
    run = ImageTrainingRun(parse_arguments("hfae_categorical_autoencoder", "", argv, extra))
    assert find_last_fine_step(run) == 4
    run.network.training_steps.steps += 5  # of weights that have learned before
    assert find_last_fine_step(run) == 1
    run.network.training_steps.steps += 5
    assert find_last_fine_step(run) == 0


def test_categories_start_where_the_fine_steps_end(tmp_path, monkeypatch):
    """Weights, moments and average of the categories are those of the groups, and training goes on from there."""
    seen, module = [], script()
    original = module.start_categories

    def start(run, views):
        original(run, views)
        layer, fine = run.network.encoder.output, run.config.num_fine_categories
        moments = [run.optimizer.state[p] for p in (layer.weight, layer.bias)]
        assert all((m["exp_avg"][fine:] == 0).all() and (m["exp_avg"][:fine] != 0).any() for m in moments)
        for moment in moments:
            expected = moment["exp_avg_sq"][:fine].mean().expand_as(moment["exp_avg_sq"][fine:])
            torch.testing.assert_close(moment["exp_avg_sq"][fine:], expected)
        [average] = [a for p, a in zip(run.average.parameters, run.average.averages, strict=True) if p is layer.weight]
        assert torch.equal(average[fine:], layer.weight[fine:]) and not torch.equal(average[:fine], layer.weight[:fine])
        members = torch.linalg.lstsq(layer.weight[:fine].T, layer.weight[fine:].T).solution
        torch.testing.assert_close(members.sum(0), torch.ones(3), rtol=0, atol=1e-2)  # means of fine ones
        seen.append(run.step)

    monkeypatch.setattr(module, "start_categories", start)
    flags = "--num_categories 3 --mutual_information_weight 50 --num_fine_categories 5 --fine_steps 4 --max_steps 6"
    train(tmp_path, f"{flags} --average_decay 0.9 --batch_size 64 --eval_steps 0 --save_steps 0")
    assert seen == [4]


def test_a_bit_that_is_always_the_same_is_drawn_back():
    """The gradient of its balance does not vanish where the bit is all but certain."""
    model = tiny.model("binary_autoencoder-conv", beta=0, balance_weight=1.0).train()
    with torch.no_grad():
        model.encoder.output.bias[0] = -12.0  # probability 6e-6 of a 1
    inputs = tiny.training_inputs(model)
    output = model(**inputs)
    mean = output.probabilities.mean(0).clamp(1e-6, 1 - 1e-6)
    expected = (-0.5 * (4 * mean * (1 - mean)).log()).sum()  # KL(1/2 || mean)
    torch.testing.assert_close(output.balance_loss, expected, rtol=1e-4, atol=1e-6)
    gradient = torch.autograd.grad(output.balance_loss, model.encoder.output.bias)[0]
    assert gradient[0] == pytest.approx(-0.5, abs=0.01)
    torch.testing.assert_close(output.loss, output.reconstruction_loss + output.balance_loss)
