"""What is special to the disentangling VAEs: terms against closed forms, players, schedules, several processes."""

import math
import sys
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from hf_autoencoders import VAEConfig, VAEModel
from hf_autoencoders.models.losses import aggregate_log_densities, exchange_dimensions
from hf_autoencoders.models.modeling_disentangled_vae import LatentDiscriminator
from hf_autoencoders.training_arguments import chosen_variant
from hf_autoencoders.training_run import TrainingError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
import train_disentangled_vae  # noqa: E402

FIRST = [tiny.FIRST[name] for name in ("beta_vae", "beta_tcvae", "factor_vae", "dip_vae")]


def correlated(rows: int, correlation: float, seed: int = 0) -> torch.Tensor:
    """Samples (rows, 2) of a Gaussian with variances 1."""
    first, second = torch.randn(2, rows, generator=torch.Generator().manual_seed(seed))
    return torch.stack([first, correlation * first + math.sqrt(1 - correlation**2) * second], dim=1)


# ---- beta-VAE


def test_capacity_grows_and_is_full_in_evaluation():
    model = tiny.model("beta_vae-capacity", capacity_warmup_steps=4, max_capacity=2.0, capacity_weight=3.0)
    inputs = tiny.training_inputs(model)
    for step in range(6):
        output = model.train()(**inputs)
        expected = output.reconstruction_loss + 3.0 * (output.kl_loss - 2.0 * min(step / 4, 1)).abs()
        torch.testing.assert_close(output.loss, expected)
    output = tiny.model("beta_vae-capacity", capacity_warmup_steps=4, max_capacity=2.0, capacity_weight=3.0)(**inputs)
    torch.testing.assert_close(output.loss, output.reconstruction_loss + 3.0 * (output.kl_loss - 2.0).abs())


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("beta_vae-capacity", {"max_capacity": 0, "capacity_weight": 2.5}),
        (
            "beta_tcvae-conv",
            {"mutual_information_weight": 2.5, "total_correlation_weight": 2.5, "dimension_kl_weight": 2.5},
        ),
    ],
)
def test_equal_weights_are_a_vae(name, fields):
    """Loss and gradients of a beta-VAE of Higgins et al., from the same weights and noise."""
    model = tiny.model(name, **fields).train()
    vae = VAEModel(VAEConfig(**tiny.CONV, latent_size=4, beta=2.5)).train()
    vae.load_state_dict(model.state_dict())
    inputs = tiny.training_inputs(model)
    for one in (model, vae):
        one(**inputs).loss.backward()
    torch.testing.assert_close(model(**inputs).loss, vae(**inputs).loss)
    for one, other in zip(model.parameters(), vae.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


# ---- beta-TC-VAE


def test_aggregate_densities_are_those_of_the_mixture():
    generator = torch.Generator().manual_seed(0)
    latents, means, log_variances = (torch.randn(n, 3, generator=generator) for n in (5, 7, 7))
    joint, marginals = aggregate_log_densities(latents, means, log_variances)
    normal = Normal(means, (0.5 * log_variances).exp())
    weights = Categorical(torch.ones(7))
    torch.testing.assert_close(joint, MixtureSameFamily(weights, Independent(normal, 1)).log_prob(latents))
    each = [
        MixtureSameFamily(weights, Normal(normal.loc[:, j], normal.scale[:, j])).log_prob(latents[:, j])
        for j in range(3)
    ]
    torch.testing.assert_close(marginals, sum(each))


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_total_correlation_of_a_gaussian(correlation):
    """-log(1 - r^2) / 2 of two Gaussian variables with correlation r, here after the posteriors' own noise."""
    means, variance = correlated(3000, correlation), 0.1
    latents = means + math.sqrt(variance) * torch.randn(3000, 2, generator=torch.Generator().manual_seed(1))
    joint, marginals = aggregate_log_densities(latents, means, torch.full_like(means, math.log(variance)))
    expected = -0.5 * math.log(1 - (correlation / (1 + variance)) ** 2)
    assert (joint - marginals).mean().item() == pytest.approx(expected, abs=0.06)


def test_the_parts_of_the_kl_add_up_and_are_weighted():
    weights = {"mutual_information_weight": 0.5, "total_correlation_weight": 4.0, "dimension_kl_weight": 2.0}
    model = tiny.model("beta_tcvae-conv", **weights)
    output = model(**tiny.training_inputs(model))
    parts = output.mutual_information_loss, output.total_correlation_loss, output.dimension_kl_loss
    torch.testing.assert_close(sum(parts), output.kl_loss)
    expected = sum(weight * part for weight, part in zip(weights.values(), parts, strict=True))
    torch.testing.assert_close(output.loss, output.reconstruction_loss + expected)


@pytest.mark.parametrize("name", ["beta_tcvae-conv", "factor_vae-conv"])
def test_the_kl_scale_falls_step_by_step(name):
    model = tiny.model(name, initial_kl_scale=8.0, kl_decay_steps=3).train()
    inputs = tiny.training_inputs(model)
    for step in range(5):
        output, scale = model(**inputs), 8.0 ** (1 - min(step / 3, 1))
        expected = output.reconstruction_loss + scale * output.kl_loss
        if name == "beta_tcvae-conv":
            expected = expected + scale * 2.0 * output.total_correlation_loss  # of weight 3, one of which is in the KL
        else:
            expected = expected + 10.0 * output.total_correlation_loss + output.discriminator_loss
        torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(model.eval()(**inputs).loss, output.loss)  # of the last step: 1 from then on


# ---- FactorVAE


def test_exchanged_dimensions_keep_their_values_and_lose_each_other():
    latents = correlated(4000, 0.9)
    noise = torch.rand(4000, 2, generator=torch.Generator().manual_seed(3))
    exchanged = exchange_dimensions(latents, noise)
    assert torch.equal(exchanged.sort(0).values, latents.sort(0).values)
    assert torch.corrcoef(latents.T)[0, 1] > 0.85 and torch.corrcoef(exchanged.T)[0, 1].abs() < 0.05
    assert torch.equal(exchange_dimensions(latents, noise), exchanged)


def test_each_player_has_gradients_of_its_own_loss_only():
    model = tiny.model("factor_vae-conv", total_correlation_weight=7.0).train()
    inputs = tiny.training_inputs(model)
    players = model.player_parameters()
    assert {p for own in players.values() for p in own} == set(model.parameters())
    assert not set(players["autoencoder"]) & set(players["discriminator"])
    gradients = {}
    for player, own in players.items():
        output = model(**inputs)
        alone = output.discriminator_loss
        if player == "autoencoder":
            alone = output.reconstruction_loss + output.kl_loss + 7.0 * output.total_correlation_loss
        gradients[player] = torch.autograd.grad(alone, own)
    output = model(**inputs)
    terms = output.reconstruction_loss + output.kl_loss + 7.0 * output.total_correlation_loss
    torch.testing.assert_close(output.loss, terms + output.discriminator_loss)
    output.loss.backward()
    for player, own in players.items():
        for parameter, gradient in zip(own, gradients[player], strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    untouched = torch.autograd.grad(
        model(**inputs).total_correlation_loss, players["discriminator"], allow_unused=True, retain_graph=True
    )
    assert all(gradient is None for gradient in untouched)


def test_discriminator_learns_the_total_correlation():
    """Of a Gaussian with r = 0.8: 0.511 nats."""
    torch.manual_seed(0)
    discriminator = LatentDiscriminator(2, (32, 32))
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=5e-3)
    for step in range(400):
        together = correlated(512, 0.8, seed=step)
        noise = torch.rand(512, 2, generator=torch.Generator().manual_seed(step + 10_000))
        apart = exchange_dimensions(together, noise)
        softplus = torch.nn.functional.softplus
        loss = (softplus(-discriminator(together)) + softplus(discriminator(apart))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    estimate = discriminator(correlated(20_000, 0.8, seed=99)).mean().item()
    assert estimate == pytest.approx(-0.5 * math.log(1 - 0.8**2), abs=0.1)


# ---- DIP-VAE


@pytest.mark.parametrize("covariance", ["means", "aggregate"])
def test_covariance_is_drawn_to_the_identity(covariance):
    model = tiny.model("dip_vae-aggregate", covariance=covariance, off_diagonal_weight=3.0, diagonal_weight=5.0)
    output = model(**tiny.training_inputs(model, batch_size=20))
    matrix = torch.cov(output.mean.T, correction=0)
    if covariance == "aggregate":
        matrix = matrix + output.log_variance.exp().mean(0).diag()
    off_diagonal = (matrix - matrix.diag().diag()).square().sum()
    diagonal = (matrix.diag() - 1).square().sum()
    torch.testing.assert_close(output.off_diagonal_loss, off_diagonal, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(output.diagonal_loss, diagonal)
    expected = output.reconstruction_loss + output.kl_loss + 3.0 * off_diagonal + 5.0 * diagonal
    torch.testing.assert_close(output.loss, expected)


# ---- all


@pytest.mark.parametrize("name", FIRST)
def test_it_is_a_vae(name):
    model = tiny.model(name)
    pixel_values = tiny.images(model.config)
    encoded = model.encode(pixel_values)
    assert torch.equal(encoded.latents, encoded.mean) and encoded.log_variance.shape == encoded.mean.shape
    assert model.sample(3).shape == (3, *model.config.input_shape)
    assert model.interpolate(pixel_values[:2], pixel_values[2:4], steps=3).shape == (2, 3, *model.config.input_shape)
    assert model.reconstruction_log_likelihood(pixel_values, encoded.latents).shape == (6,)


@pytest.mark.parametrize("name", FIRST)
def test_noise_for_other_images_is_refused(name):
    model = tiny.model(name)
    with pytest.raises(ValueError, match="noise for 3 images, but pixel_values holds 6"):
        model(tiny.images(model.config), epsilon=torch.zeros(3, model.config.latent_size))
    with pytest.raises(ValueError, match=r"epsilon must have shape \(batch_size, 4\), got \(6, 5\)"):
        model(tiny.images(model.config), epsilon=torch.zeros(6, model.config.latent_size + 1))


def test_noise_of_permutations_is_checked():
    model = tiny.model("factor_vae-conv")
    with pytest.raises(ValueError, match="permutation_noise has noise for 3 images, but pixel_values holds 6"):
        model(tiny.images(model.config), permutation_noise=torch.zeros(3, 4))


def test_covariance_is_computed_in_float32():
    """Of whitened latents the off-diagonal part is a difference of nearly equal sums, which bfloat16 does not hold."""
    model = tiny.model("dip_vae-aggregate")
    latents = torch.randn(2048, 4, generator=torch.Generator().manual_seed(0))
    arguments = latents, latents, torch.zeros_like(latents), torch.zeros(2048), None
    expected = model._penalty(*arguments)[1]["off_diagonal_loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model._penalty(*arguments)[1]["off_diagonal_loss"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def gradients_of_part(rank, folder, names, sizes):
    """One process of several: the gradients of its share of a batch, weighted as a training run does."""
    torch.set_num_threads(1)
    if len(sizes) > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(sizes))
    found, (start, end) = {}, (sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for name in names:
        model = tiny.model(name).train()
        inputs = {key: value[start:end] for key, value in tiny.training_inputs(model, sum(sizes)).items()}
        (model(**inputs).loss * (end - start) / sum(sizes)).backward()  # the sum over processes is the mean over rows
        found[name] = [parameter.grad for parameter in model.parameters()]
    torch.save(found, f"{folder}/{len(sizes)}-{rank}.pt")
    if len(sizes) > 1:
        dist.barrier()
        dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    """Of unequal shares of the batch; terms that relate its images to each other need all of it."""
    names = [*FIRST, "joint_vae-conv", "categorical_autoencoder-clustering"]
    torch.multiprocessing.spawn(gradients_of_part, (str(tmp_path), names, (7, 4)), nprocs=2)
    gradients_of_part(0, str(tmp_path), names, (11,))
    alone, first, second = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for name in names:
        for whole, one, other in zip(alone[name], first[name], second[name], strict=True):
            torch.testing.assert_close(
                one + other, whole, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: name + text
            )


# ---- the script


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--discriminator_learning_rate", "-1"],
            "--discriminator_learning_rate: expected a positive number, got -1.0",
        ),
        (["--discriminator_adam_beta1", "1.5"], "--discriminator_adam_beta1: expected a number from 0 up to"),
        (["--variant", "gan"], "invalid choice: 'gan'"),
    ],
)
def test_flags_are_checked(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        train_disentangled_vae.main(["--variant", "factor_vae", *flags])
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_flags_without_effect_are_refused(tmp_path):
    flags = ["--variant", "dip_vae", "--discriminator_learning_rate", "1e-3", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(
        TrainingError, match="discriminator_learning_rate: only --variant factor_vae has a discriminator"
    ):
        train_disentangled_vae.main(flags)
    assert not (tmp_path / "run").exists()


def test_a_recipe_names_its_variant(tmp_path):
    (tmp_path / "recipe.yaml").write_text("variant: beta_vae\n")
    recipe = ["--recipe", str(tmp_path / "recipe.yaml")]
    chosen = [
        chosen_variant("disentangled_vae", "beta_tcvae", argv)
        for argv in ([], recipe, [*recipe, "--variant", "dip_vae"])
    ]
    assert chosen == ["hfae_beta_tcvae", "hfae_beta_vae", "hfae_dip_vae"]
