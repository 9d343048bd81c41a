"""Pipelines: our own image-reconstruction, and the stock image-feature-extraction, for every image variant."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import hf_autoencoders  # noqa: F401  (registers the task)
from hf_autoencoders import (
    AutoencoderConfig,
    AutoencoderImageProcessor,
    AutoencoderModel,
    VAEConfig,
    VAEModel,
    VQVAEConfig,
    VQVAEModel,
)

KINDS = ("autoencoder", "vae", "vqvae", "colour")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    mlp = {"image_size": (9, 8), "architecture": "mlp", "hidden_sizes": (16,), "latent_size": 4}
    grid = {"hidden_sizes": (8, 8), "codebook_size": 16, "embedding_dim": 4}
    models = {
        "autoencoder": AutoencoderModel(AutoencoderConfig(**mlp)),
        "vae": VAEModel(VAEConfig(**mlp)),
        "vqvae": VQVAEModel(VQVAEConfig(image_size=(9, 8), **grid)),
        "colour": VQVAEModel(VQVAEConfig(image_size=(9, 8), num_channels=3, **grid)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        AutoencoderImageProcessor.for_model(model.config).save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


@pytest.fixture(autouse=True)
def no_questions(monkeypatch):
    """With the package imported nobody is asked whether to run the code that lies beside the weights."""

    def ask(prompt=""):
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr("builtins.input", ask)


@pytest.fixture
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (9, 8), dtype=np.uint8)) for _ in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_equals_the_model(folders, images, kind):
    restore = pipeline("image-reconstruction", model=folders[kind], device="cpu")
    restored = restore(images)
    single = restore(images[0])
    pixel_values = restore.image_processor(images, return_tensors="pt")["pixel_values"]
    expected = restore.image_processor.post_process(restore.model(pixel_values).reconstruction)
    assert single.size == (8, 9) and single.mode == ("RGB" if kind == "colour" else "L")
    for image, other in zip(restored, expected, strict=True):
        assert np.abs(np.asarray(image).astype(int) - np.asarray(other)).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_with_everything_known_in_batches(folders, images, kind, tmp_path):
    images[1].save(tmp_path / "one.png")
    restore = pipeline("image-reconstruction", model=folders[kind], device="cpu", batch_size=2, output_type="dict")
    results = restore([images[0], str(tmp_path / "one.png"), images[2]])
    for image, result in zip(images, results, strict=True):
        pixel_values = restore.image_processor(image, return_tensors="pt")["pixel_values"]
        output = restore.model(pixel_values)
        error = (output.reconstruction - pixel_values).square().mean().item()
        assert result["mean_squared_error"] == pytest.approx(error, rel=1e-4)
        assert tuple(result["latents"].shape) == restore.model.config.latent_shape
        assert ("codes" in result) == (kind in ("vqvae", "colour"))
        if "codes" in result:
            assert torch.equal(result["codes"], output.codes[0])
        assert isinstance(result["image"], Image.Image)


@pytest.mark.parametrize("kind", KINDS)
def test_stock_feature_extraction_returns_the_latents(folders, images, kind):
    extract = pipeline("image-feature-extraction", model=folders[kind], device="cpu")
    features = extract(images, return_tensors=True)
    pixel_values = extract.image_processor(images, return_tensors="pt")["pixel_values"]
    latents = extract.model.eval().encode(pixel_values).latents
    for feature, latent in zip(features, latents, strict=True):
        torch.testing.assert_close(feature[0], latent, rtol=1e-4, atol=1e-5)
    assert np.shape(extract(images[0])) == (1, *extract.model.config.latent_shape)


def test_wrong_options_are_refused(folders, images):
    with pytest.raises(ValueError, match='output_type must be "pil" or "dict"'):
        pipeline("image-reconstruction", model=folders["vae"], device="cpu", output_type="numpy")
    restore = pipeline("image-reconstruction", model=folders["vae"], device="cpu")
    with pytest.raises(TypeError, match="colour"):
        restore(images[0], colour=True)


def test_the_pipeline_leaves_no_gradients(folders, images):
    restore = pipeline("image-reconstruction", model=folders["vqvae"], device="cpu", output_type="dict")
    assert not restore(images[0])["latents"].requires_grad


def test_importing_the_package_does_not_import_the_pipelines(script_env):
    code = "import sys, hf_autoencoders; assert 'transformers.pipelines' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=script_env, check=True)
