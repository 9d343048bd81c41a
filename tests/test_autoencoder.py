"""What is special to the deterministic auto-encoder: noise, penalties, and the classifier on its encoder."""

import pytest
import tiny
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForImageClassification

from hf_autoencoders import AutoencoderConfig, AutoencoderForImageClassification, AutoencoderModel
from hf_autoencoders.models.losses import bernoulli_sparsity
from hf_autoencoders.models.modeling_autoencoder import corrupt

# ---- noise


def test_gaussian_noise():
    images = torch.rand(50, 3, 20, 20)
    noise = corrupt(images, "gaussian", 0.2) - images
    assert noise.std().item() == pytest.approx(0.2, rel=0.02) and abs(noise.mean().item()) < 0.005
    assert torch.equal(corrupt(images, "gaussian", 0.2, torch.ones_like(images)), images + 0.2)


@pytest.mark.parametrize(("kind", "share_of_ones"), [("masking", 0.0), ("salt_and_pepper", 0.15)])
def test_replacing_noise(kind, share_of_ones):
    images = torch.rand(50, 3, 20, 20) * 0.8 + 0.1
    noisy = corrupt(images, kind, 0.3)
    changed = noisy != images
    assert torch.equal(changed[:, 0], changed[:, 1]) and torch.equal(changed[:, 0], changed[:, 2])
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert noisy[changed].unique().tolist() == ([0.0, 1.0] if share_of_ones else [0.0])
    assert (noisy == 1).float().mean().item() == pytest.approx(share_of_ones, abs=0.02)


@pytest.mark.parametrize("kind", ["gaussian", "masking", "salt_and_pepper"])
def test_denoising_restores_the_clean_image_and_only_in_training(kind):
    model = tiny.model("autoencoder-denoising", noise=kind)
    images = tiny.images(model.config, 16)
    quiet = model(images)
    model.train()
    outputs = model(images)
    assert not torch.equal(outputs.latents, quiet.latents)
    assert outputs.reconstruction_loss.item() == pytest.approx((outputs.reconstruction - images).square().mean().item())
    draws = torch.rand_like(images)
    torch.testing.assert_close(model(images, noise=draws).latents, model(images, noise=draws).latents)
    model.encode(images)  # has no noise in either mode
    torch.testing.assert_close(model.encode(images).latents, quiet.latents)
    silent = tiny.model("autoencoder-denoising", noise=kind, noise_level=0.0).train()
    torch.testing.assert_close(silent(images).latents, quiet.latents)


# ---- losses


def test_reconstruction_losses():
    for loss, function in (("mse", torch.nn.MSELoss()), ("bce", torch.nn.BCELoss())):
        model = tiny.model("autoencoder-conv", reconstruction_loss=loss)
        images = tiny.images(model.config)
        outputs = model(images)
        torch.testing.assert_close(outputs.loss, function(outputs.reconstruction, images))
        torch.testing.assert_close(outputs.reconstruction, model.decode(outputs.latents))
        assert outputs.sparsity_loss is None and outputs.contractive_loss is None
    assert 0 < outputs.reconstruction.min() and outputs.reconstruction.max() < 1


def test_loss_is_the_weighted_sum_of_its_terms():
    model = tiny.model("autoencoder-contractive", sparsity_weight=0.5, contractive_weight=0.25)
    images = tiny.images(model.config)
    for outputs in (model(images), model.train()(images)):
        expected = outputs.reconstruction_loss + 0.5 * outputs.sparsity_loss + 0.25 * outputs.contractive_loss
        torch.testing.assert_close(outputs.loss, expected)
        torch.testing.assert_close(outputs.sparsity_loss, outputs.latents.abs().mean())
    model = tiny.model("autoencoder-sparse", sparsity_target=0.2)
    outputs = model(tiny.images(model.config))
    torch.testing.assert_close(outputs.sparsity_loss, bernoulli_sparsity(outputs.latents, 0.2))


@pytest.mark.parametrize("training", [False, True])
def test_contractive_penalty_of_a_linear_encoder_is_its_squared_frobenius_norm(training):
    model = tiny.model("autoencoder-linear", contractive_weight=1.0).train(training)
    expected = model.encoder.output.weight.square().sum().item()
    estimates = [model(tiny.images(model.config, 512, seed)).contractive_loss.item() for seed in range(8)]
    assert sum(estimates) / 8 == pytest.approx(expected, rel=0.05)


def test_contractive_penalty_of_a_deep_encoder():
    model = tiny.model("autoencoder-contractive", contractive_weight=1.0, hidden_act="tanh").train()
    image = tiny.images(model.config, 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: model.encode(x).latents[0], image)
    estimate = model(image.expand(4096, -1, -1, -1)).contractive_loss
    assert estimate.item() == pytest.approx(jacobian.square().sum().item(), rel=0.05)


def test_sparsity_penalty_makes_the_code_sparse():
    means = {}
    for weight in (0.0, 1.0):
        model = tiny.model("autoencoder-sparse", sparsity_weight=weight, sparsity_target=0.05).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for step in range(60):
            loss = model(tiny.images(model.config, 16, step)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        means[weight] = model.encode(tiny.images(model.config, 64, 999)).latents.mean().item()
    assert means[1.0] == pytest.approx(0.05, abs=0.02) and means[0.0] > 0.2


# ---- the classifier


def classifier(freeze_encoder):
    torch.manual_seed(0)
    return AutoencoderForImageClassification(
        tiny.config("autoencoder-conv", freeze_encoder=freeze_encoder, num_labels=3)
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_encoder(frozen, tmp_path):
    model = classifier(frozen)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    with_info, _ = AutoencoderForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    for each in (model, loaded, with_info):
        encoder = {parameter.requires_grad for parameter in each.autoencoder.parameters()}
        assert encoder == {not frozen}
        assert each.classifier.weight.requires_grad and each.classifier.bias.requires_grad
    thawed = AutoModelForImageClassification.from_pretrained(tmp_path, freeze_encoder=not frozen)
    assert {parameter.requires_grad for parameter in thawed.autoencoder.parameters()} == {frozen}
    assert not any("decoder" in key for key in model.state_dict())


def test_classifier_learns():
    model = classifier(freeze_encoder=False).train()
    images, labels = tiny.images(model.config, 30), torch.arange(30) % 3
    images[labels == 1] *= 0.2
    images[labels == 2] = 1 - images[labels == 2] * 0.2
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        outputs = model(images, labels=labels)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    assert outputs.logits.shape == (30, 3)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, labels))
    assert (model.eval()(images).logits.argmax(1) == labels).float().mean() > 0.95
    assert model(images).loss is None
    assert type(model(images, labels=labels, return_dict=False)) is tuple


def test_classifier_sees_what_the_encoder_gives(tmp_path):
    base = tiny.model("autoencoder-conv")
    base.save_pretrained(tmp_path)
    head = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=4)
    images = tiny.images(base.config)
    torch.testing.assert_close(head(images).logits, head.classifier(base.encode(images).latents))


# ---- configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": "kl"}, 'latent_activation="sigmoid"'),
        ({"architecture": "conv", "hidden_sizes": ()}, 'only architecture="mlp" allows that'),
        ({"image_size": (8, 8, 8)}, r"positive integer or \(height, width\)"),
        ({"image_size": 0}, r"positive integer or \(height, width\)"),
        ({"image_size": (8, -1)}, r"positive integer or \(height, width\)"),
        ({"noise_level": 1.5}, "from 0 to 1"),
        ({"sparsity_target": 0.0}, "from 1e-06"),
        ({"noise": "pepper"}, "salt_and_pepper"),
        ({"hidden_sizes": (8, 0)}, "at least 1"),
        ({"latent_size": 2.5}, "latent_size"),
        ({"latent_size": True}, "latent_size"),
        ({"hidden_act": "rilu"}, "gelu"),
    ],
    ids=str,
)
def test_nonsense_is_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        AutoencoderConfig(**fields)


def test_fields_that_do_not_fit_together_are_refused_when_a_model_is_built(tmp_path):
    tiny.model("autoencoder-conv").save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match='latent_activation="sigmoid"'):
        AutoencoderModel.from_pretrained(tmp_path, sparsity="kl")


def test_contractive_penalty_is_the_same_under_autocast():
    model = tiny.model("autoencoder-conv", contractive_weight=0.1).train()
    images = tiny.images(model.config)
    perturbation = torch.randn_like(images)
    exact = model(images, perturbation=perturbation).contractive_loss
    with torch.autocast("cpu", torch.bfloat16):
        penalty = model(images, perturbation=perturbation).contractive_loss
    torch.testing.assert_close(penalty, exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["noise", "perturbation"])
def test_random_numbers_of_another_shape_are_refused(name):
    model = tiny.model(tiny.FIRST["autoencoder"])
    with pytest.raises(ValueError, match=f"{name} must have the shape of pixel_values"):
        model(tiny.images(model.config), **{name: torch.ones(1, 1, 1, 1)})


def test_a_classifiers_encoder_says_that_it_has_no_decoder():
    classifier = AutoencoderForImageClassification(tiny.config(tiny.FIRST["autoencoder"]))
    with pytest.raises(ValueError, match="was built without a decoder"):
        classifier.autoencoder.decode(torch.zeros(2, classifier.config.latent_size))
