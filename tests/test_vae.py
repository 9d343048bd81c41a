"""What is special to the variational auto-encoder: the bound, its schedule, samples and interpolation."""

import types

import pytest
import tiny
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.distributions import Bernoulli, Normal, kl_divergence

from hf_autoencoders import VAEConfig, VAEModel

LIKELIHOODS = ["bernoulli", "gaussian", "discretized_logistic"]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_is_the_negative_bound_in_nats_per_example(likelihood):
    model = tiny.model("vae-bernoulli", likelihood=likelihood)
    inputs = tiny.training_inputs(model)
    outputs = model(**inputs)
    encoded = model.encode(inputs["pixel_values"])
    posterior = Normal(encoded.mean, (encoded.log_variance / 2).exp())
    torch.testing.assert_close(outputs.latents, encoded.mean + posterior.stddev * inputs["epsilon"])
    torch.testing.assert_close(outputs.kl_loss, kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean())
    log_likelihood = model.reconstruction_log_likelihood(inputs["pixel_values"], outputs.latents)
    assert log_likelihood.shape == (6,)
    torch.testing.assert_close(outputs.reconstruction_loss, -log_likelihood.mean())
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + outputs.kl_loss)
    if likelihood == "bernoulli":
        expected = Bernoulli(probs=outputs.reconstruction).log_prob(inputs["pixel_values"].round()).flatten(1).sum(1)
        torch.testing.assert_close(
            model.reconstruction_log_likelihood(inputs["pixel_values"].round(), outputs.latents), expected
        )
    if likelihood == "gaussian":
        density = Normal(outputs.reconstruction, model.output_scale().exp()).log_prob(inputs["pixel_values"])
        torch.testing.assert_close(log_likelihood, density.flatten(1).sum(1))


def test_noise_is_drawn_in_training_only():
    model = tiny.model("vae-bernoulli")
    images = tiny.images(model.config)
    assert torch.equal(model(images).latents, model.encode(images).mean)
    model.train()
    draws = torch.stack([model(images).latents for _ in range(400)])
    encoded = model.encode(images)
    torch.testing.assert_close(draws.mean(0), encoded.mean, rtol=0, atol=0.3)
    torch.testing.assert_close(draws.std(0), (encoded.log_variance / 2).exp(), rtol=0.2, atol=0)


def test_beta_and_free_bits():
    images = tiny.images(tiny.config("vae-bernoulli"))
    outputs = tiny.model("vae-bernoulli", beta=3.0)(images)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + 3.0 * outputs.kl_loss)
    free = tiny.model("vae-bernoulli", beta=3.0, free_bits=0.7)(images)
    torch.testing.assert_close(free.kl_loss, outputs.kl_loss)  # reported as it is
    kl = 0.5 * (free.mean.square() + free.log_variance.exp() - 1 - free.log_variance)
    charged = kl.mean(0).clamp(min=0.7).sum()
    torch.testing.assert_close(free.loss, free.reconstruction_loss + 3.0 * charged)


def test_kl_warmup_is_linear_counts_training_steps_and_is_saved(tmp_path):
    model = tiny.model("vae-mlp", beta=2.0, kl_warmup_steps=4)
    images = tiny.images(model.config)

    def weight(outputs):
        return ((outputs.loss - outputs.reconstruction_loss) / outputs.kl_loss).item()

    model.train()
    assert [weight(model(images)) for _ in range(3)] == pytest.approx([0.0, 0.5, 1.0], abs=1e-4)
    model.eval()
    assert [weight(model(images)) for _ in range(2)] == pytest.approx([2.0, 2.0], abs=1e-3)  # the whole bound, no count
    model.train()(images, return_loss=False)
    assert model.training_steps.steps.item() == 3
    model.save_pretrained(tmp_path)
    loaded = VAEModel.from_pretrained(tmp_path).train()
    assert [weight(loaded(images)) for _ in range(3)] == pytest.approx([1.5, 2.0, 2.0], abs=1e-3)


def test_sampling():
    model = tiny.model("vae-logistic")
    one, same, other = (model.sample(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == (5, *model.config.input_shape) and not one.requires_grad
    assert torch.equal(one, same) and not torch.equal(one, other)
    state = torch.get_rng_state()
    model.sample(2, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    torch.testing.assert_close(model.sample(4), model.decode(_normal(3, 4, 4)).detach())
    cold = model.sample(3, temperature=0.0)
    torch.testing.assert_close(cold, model.decode(torch.zeros(3, 4)).detach())
    for wrong in ({"num_samples": 0}, {"num_samples": 2, "temperature": -1.0}):
        with pytest.raises(ValueError, match="num_samples >= 1 and temperature >= 0"):
            model.sample(**wrong)


def _normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mode", ["linear", "spherical"])
def test_interpolation_starts_and_ends_at_the_reconstructions(mode):
    model = tiny.model("vae-gaussian")
    first, second = tiny.images(model.config, 3, seed=1), tiny.images(model.config, 3, seed=2)
    frames = model.interpolate(first, second, steps=5, mode=mode)
    assert frames.shape == (3, 5, *model.config.input_shape)
    torch.testing.assert_close(frames[:, 0], model(first).reconstruction)
    torch.testing.assert_close(frames[:, -1], model(second).reconstruction)
    same = model.interpolate(first, first, steps=3, mode=mode)
    torch.testing.assert_close(same, model(first).reconstruction.unsqueeze(1).expand_as(same))


def paths(model, start, end, monkeypatch, **kwargs):
    """The latents that `interpolate` decodes between two latents."""
    latents = iter([start, end])
    monkeypatch.setattr(model, "encode", lambda _: types.SimpleNamespace(latents=next(latents)))
    monkeypatch.setattr(model, "decode", lambda latents: latents)
    return model.interpolate(start, end, **kwargs)


def test_linear_path(monkeypatch):
    start, end = torch.randn(6, 4), torch.randn(6, 4)
    path = paths(tiny.model("vae-bernoulli"), start, end, monkeypatch, steps=5)
    for index in range(5):
        torch.testing.assert_close(path[:, index], start + index / 4 * (end - start))


def test_spherical_path_keeps_norm_and_angular_speed(monkeypatch):
    start, end = (3 * torch.nn.functional.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    path = paths(tiny.model("vae-bernoulli"), start, end, monkeypatch, steps=9, mode="spherical")
    torch.testing.assert_close(path.norm(dim=2), torch.full((6, 9), 3.0))
    angles = torch.acos(torch.nn.functional.cosine_similarity(path[:, 1:], path[:, :-1], dim=2).clamp(-1, 1))
    whole = torch.acos(torch.nn.functional.cosine_similarity(start, end, dim=1))
    torch.testing.assert_close(angles, (whole / 8).unsqueeze(1).expand(6, 8), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0])
def test_spherical_path_between_parallel_vectors_is_finite(factor, monkeypatch):
    start = torch.randn(2, 4)
    path = paths(tiny.model("vae-bernoulli"), start, factor * start, monkeypatch, steps=4, mode="spherical")
    assert path.isfinite().all()
    torch.testing.assert_close(path[:, 0], start)
    torch.testing.assert_close(path[:, -1], factor * start)


def test_wrong_interpolations_are_refused():
    model = tiny.model("vae-bernoulli")
    images = tiny.images(model.config)
    with pytest.raises(ValueError, match=r"steps >= 2 \(both ends are included\), got 1"):
        model.interpolate(images, images, steps=1)
    with pytest.raises(ValueError, match='"linear" or "spherical", got \'cubic\''):
        model.interpolate(images, images, mode="cubic")
    with pytest.raises(ValueError, match="the same shape"):
        model.interpolate(images, images[:2])
    with pytest.raises(ValueError, match="pixel_values must have shape"):
        model.interpolate(images[..., 1:], images[..., 1:])


def test_wrong_epsilon_is_refused():
    model = tiny.model("vae-bernoulli")
    with pytest.raises(ValueError, match=r"epsilon must have shape \(batch_size, 4\)"):
        model(tiny.images(model.config), epsilon=torch.zeros(6, 5))
    with pytest.raises((ValueError, RuntimeError)):
        model(tiny.images(model.config), epsilon=torch.zeros(5, 4))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_extreme_encoders_give_finite_losses_and_gradients(likelihood):
    model = tiny.model("vae-bernoulli", likelihood=likelihood).train()
    model.encoder.output.bias.data[4:] = torch.tensor([1e4, -1e4, 90.0, -90.0])  # log-variances
    outputs = model(**tiny.training_inputs(model))
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("likelihood", ["gaussian", "discretized_logistic"])
def test_output_scale_is_learned_with_the_rest(likelihood):
    model = tiny.model("vae-bernoulli", likelihood=likelihood).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for step in range(150):
        loss = model(tiny.images(model.config, 32, step % 4)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 50
    if likelihood == "gaussian":  # at the optimum the scale is the root mean squared error
        images = tiny.images(model.config, 32, 0)
        error = (model(images).reconstruction - images).square().mean().sqrt().item()
        assert model.output_scale().exp().item() == pytest.approx(error, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"likelihood": "laplace"}, "discretized_logistic"),
        ({"beta": -1}, "at least 0"),
        ({"beta": float("inf")}, "finite"),
        ({"kl_warmup_steps": 0.5}, "kl_warmup_steps"),
        ({"free_bits": float("nan")}, "at least 0"),
        ({"latent_size": 0}, "at least 1"),
    ],
    ids=str,
)
def test_nonsense_is_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        VAEConfig(**fields)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_importance_weighted_bound(likelihood):
    """Burda et al. 2016, equation 8, written out with torch.distributions."""
    model = tiny.model("vae-bernoulli", likelihood=likelihood, beta=1.0)
    images = tiny.images(model.config)
    epsilon = torch.randn(len(images), 7, model.config.latent_size)
    encoded = model.encode(images)
    posterior = Normal(encoded.mean, (encoded.log_variance / 2).exp())
    log_weights = []
    for noise in epsilon.unbind(1):
        latents = posterior.mean + posterior.stddev * noise
        log_ratio = Normal(0.0, 1.0).log_prob(latents).sum(1) - posterior.log_prob(latents).sum(1)
        log_weights.append(model.reconstruction_log_likelihood(images, latents) + log_ratio)
    expected = -torch.stack(log_weights).logsumexp(0).mean() + torch.tensor(7.0).log()
    outputs = model(images, epsilon=epsilon)
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(outputs.latents, posterior.mean + posterior.stddev * epsilon[:, 0])
    assert outputs.reconstruction.shape == images.shape
    single = model(images, epsilon=epsilon[:, :1])
    torch.testing.assert_close(single.loss, model(images, epsilon=epsilon[:, 0]).loss)
    assert outputs.loss < -torch.stack(log_weights).mean()  # tighter than the bound of one sample (Jensen)


def test_free_bits_do_not_fit_several_samples():
    with pytest.raises(StrictDataclassError, match="use free_bits=0 with num_posterior_samples=3"):
        VAEConfig(num_posterior_samples=3, free_bits=0.1)


def test_noise_for_another_number_of_images_is_refused():
    model = tiny.model("vae-bernoulli")
    images = tiny.images(model.config)
    for shape in ((1, model.config.latent_size), (1, 3, model.config.latent_size)):
        with pytest.raises(ValueError, match="epsilon has noise for 1 images, but pixel_values holds"):
            model(images, epsilon=torch.zeros(shape))
