"""Discrete codes as bytes: what is decoded is what was encoded, and costs what the prior says."""

import copy
import functools
import math
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FIELDS

from hf_autoencoders import VARIANTS, CodePriorConfig, CodePriorModel, VQVAEConfig, VQVAEModel, cli
from hf_autoencoders.models.code_compression import counts_of_logits
from hf_autoencoders.models.container import CompressedFileError, Container
from hf_autoencoders.models.entropy_coding import PRECISION

CODED = [
    (model_type, name)
    for model_type in ("hfae_vqvae", "hfae_binary_autoencoder", "hfae_categorical_autoencoder")
    for name in FIELDS[model_type]
]


def build(model_type="hfae_vqvae", name="residual"):
    torch.manual_seed(0)
    variant = VARIANTS[model_type]
    return variant.model_class()(variant.config_class()(**FIELDS[model_type][name])).eval()


def prior_of(model, **fields):
    torch.manual_seed(1)
    config = CodePriorConfig(
        codes_shape=model.config.codes_shape,
        num_codes=model.config.num_codes,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        **fields,
    )
    prior = CodePriorModel(config).eval()
    with torch.no_grad():
        prior.language_model.transformer.wte.weight.normal_(0, 0.5)  # what a new one finds likely is nearly uniform
    return prior


@pytest.mark.parametrize("model_type, name", CODED)
def test_codes_come_back_with_and_without_a_prior(model_type, name):
    model = build(model_type, name)
    pixel_values = torch.rand(3, *model.config.input_shape)
    codes = model.encode(pixel_values).codes
    for prior in (None, prior_of(model)):
        files = model.compress(pixel_values, prior=prior)
        assert len(files) == 3 and all(isinstance(file, bytes) for file in files)
        assert torch.equal(model.decompress_codes(files, prior), codes)
        images = model.decompress(files, prior)
        expected = (model.decode_codes(codes).clamp(0, 1) * 255).round()
        for image, wanted in zip(images, expected, strict=True):
            assert image.dtype == torch.uint8 and image.shape == wanted.shape
            assert (image.float() - wanted).abs().max() <= 1  # decoded one by one, not in a batch
        assert all(torch.equal(model.decompress([f], prior)[0], i) for f, i in zip(files, images, strict=True))


def test_a_file_costs_what_the_prior_says():
    model = VQVAEModel(VQVAEConfig(image_size=32, hidden_sizes=(4,), codebook_size=16, embedding_dim=4)).eval()
    pixel_values = torch.rand(4, 1, 32, 32)
    codes = model.encode(pixel_values).codes
    header = 4 + 2 + 8 + 3 + 2 + 4 + 1  # magic, version and kind, fingerprint, sizes, length, checksum, no escapes
    plain = sum(map(len, model.compress(pixel_values))) / 4 - header
    assert plain == pytest.approx(16 * 16 * math.log2(16) / 8, abs=5)
    prior = prior_of(model)
    bits = -prior.log_prob(codes).mean().item() / math.log(2)
    with_prior = (
        sum(map(len, model.compress(pixel_values, prior=prior))) / 4 - header - 4
    )  # and a checksum of the codes
    assert with_prior == pytest.approx(bits / 8, rel=0.01, abs=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-60, 60), min_size=2, max_size=40))
def test_counts_are_of_all_codes_and_add_up(logits):
    counts = counts_of_logits(torch.tensor(logits))
    assert len(counts) == len(logits) + 1 and counts.min() >= 1 and counts.sum() == 2**PRECISION
    # differences far below the step of rounding change nothing, unless a logit lies at the edge of one
    rounded = (torch.tensor(logits).double() * 256).round() / 256
    assert (counts_of_logits(rounded + 1e-6) == counts_of_logits(rounded)).all()


@functools.cache
def files_with_models():
    model = build()
    prior = prior_of(model)
    pixel_values = torch.rand(1, *model.config.input_shape)
    return [(model, own, model.compress(pixel_values, prior=own)[0]) for own in (None, prior)]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused(data):
    model, prior, file = data.draw(st.sampled_from(files_with_models()))
    changed = bytearray(file)
    if data.draw(st.booleans()):
        changed = changed[: data.draw(st.integers(0, len(file) - 1))]
    else:
        bit = data.draw(st.integers(0, 8 * len(file) - 1))
        changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CompressedFileError):
        model.decompress([bytes(changed)], prior)


@settings(max_examples=100, deadline=None)
@given(payload=st.binary(max_size=40), fields=st.tuples(*[st.integers(0, 2**32 - 1)] * 3))
def test_forged_files_are_refused_in_bounded_memory(payload, fields):
    """Checksum and fingerprint are right: whoever wants harm can compute them."""
    model, prior, file = files_with_models()[1]
    fingerprint, own = file[6:14], model._code_fields()
    for shape in (own, dict(zip(own, fields, strict=True))):
        try:
            codes = model.decompress_codes([Container("codes", fingerprint, shape, payload).to_bytes()], prior)
        except CompressedFileError:
            continue
        assert tuple(codes.shape[1:]) == tuple(model.config.codes_shape)


def test_other_models_and_priors_are_refused():
    model, other = build(), build(name="ema")
    prior = prior_of(model)
    pixel_values = torch.rand(1, *model.config.input_shape)
    (plain,), (coded,) = model.compress(pixel_values), model.compress(pixel_values, prior=prior)
    with pytest.raises(CompressedFileError, match="another model"):
        other.decompress([plain])
    with pytest.raises(CompressedFileError, match="the prior if there was one"):
        model.decompress([coded])
    with pytest.raises(CompressedFileError, match="the prior if there was one"):
        model.decompress([plain], prior)
    with pytest.raises(ValueError, match="does not fit"):
        other.compress(torch.rand(1, *other.config.input_shape), prior=prior)
    with pytest.raises(ValueError, match="prior of codes"):
        model.compress(pixel_values, prior=model)
    with pytest.raises(ValueError, match="float32"):
        model.compress(pixel_values, prior=prior_of(model).bfloat16())
    half = copy.deepcopy(model).bfloat16()  # decodes to other pixels
    with pytest.raises(CompressedFileError, match="another model"):
        half.decompress([plain])
    assert model.decompress([]) == [] and torch.equal(model.decompress(bytearray(plain))[0], model.decompress(plain)[0])
    with pytest.raises(ValueError, match="evaluation mode"):
        model.compress(pixel_values, prior=prior_of(model).train())
    with pytest.raises(ValueError, match="pixel_values must have shape"):
        model.compress(torch.rand(1, 1, 3, 3))


def test_a_machine_that_rounds_otherwise_refuses(monkeypatch):
    """What the checksum of the codes is for: logits that differ by more than rounding forgives."""
    model = build()
    prior = prior_of(model)
    files = model.compress(torch.rand(2, *model.config.input_shape), prior=prior)
    next_logits = prior.next_logits
    monkeypatch.setattr(prior, "next_logits", lambda *args: next_logits(*args).roll(1, dims=1))
    with pytest.raises(CompressedFileError, match="rounds|otherwise"):
        model.decompress(files, prior)


def test_last_bits_of_the_weights_do_not_matter():
    """What other processors, thread counts and places in memory change is less than this."""
    model = VQVAEModel(VQVAEConfig(image_size=32, hidden_sizes=(4,), codebook_size=64, embedding_dim=4)).eval()
    prior = prior_of(model)
    pixel_values = torch.rand(2, 1, 32, 32)
    codes = model.encode(pixel_values).codes
    files = model.compress(pixel_values, prior)

    class Elsewhere(CodePriorModel):
        error = 1e-14

        def double(self):
            with torch.no_grad():
                for parameter in super().double().parameters():
                    parameter *= 1 + self.error * torch.randn_like(parameter)
            return self

    prior.__class__ = Elsewhere
    assert torch.equal(model.decompress_codes(files, prior), codes)
    Elsewhere.error = 1e-5  # more than any machine: refused
    with pytest.raises(CompressedFileError):
        model.decompress_codes(files, prior)


def test_compress_and_decompress_on_the_command_line(tmp_path, capsys):
    model = VQVAEModel(VQVAEConfig(image_size=8, hidden_sizes=(4,), codebook_size=8, embedding_dim=4)).eval()
    prior = prior_of(model)
    model.save_pretrained(tmp_path / "model")
    prior.save_pretrained(tmp_path / "prior")
    (tmp_path / "in").mkdir()
    for index in range(2):
        pixels = torch.randint(256, (8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        PIL.Image.fromarray(pixels.numpy()).save(tmp_path / "in" / f"{index}.png")

    def run(*argv, status=0):
        assert cli.main([*map(str, argv), "--model", str(tmp_path / "model"), "--quiet"]) == status
        return capsys.readouterr()

    flags = ["--prior", tmp_path / "prior"]
    told = run("compress", tmp_path / "in", tmp_path / "files", *flags).out
    assert "2 files" in told and "bits an image of 8 x 8 pixels, the size of this model" in told
    run("decompress", tmp_path / "files", tmp_path / "out", *flags)
    for index in range(2):
        image = PIL.Image.open(tmp_path / "in" / f"{index}.png")
        pixel_values = torch.from_numpy(np.array(image))[None, None].float() / 255
        (expected,) = model.decompress(model.compress(pixel_values, prior), prior)
        found = torch.from_numpy(np.array(PIL.Image.open(tmp_path / "out" / f"{index}.png")))
        assert torch.equal(found, expected[0])
    assert "the prior if there was one" in run("decompress", tmp_path / "files", tmp_path / "o", status=2).err
    assert (
        "--quality does not go with" in run("compress", tmp_path / "in", tmp_path / "f", "--quality", 1, status=2).err
    )


def test_another_process_decodes_the_same(tmp_path):
    model = build()
    prior = prior_of(model)
    model.save_pretrained(tmp_path / "model")
    prior.save_pretrained(tmp_path / "prior")
    files = model.compress(torch.rand(2, *model.config.input_shape), prior=prior)
    for index, file in enumerate(files):
        (tmp_path / f"{index}.hfae").write_bytes(file)
    torch.save(model.decompress(files, prior), tmp_path / "expected.pt")
    script = f"""
import pathlib, torch
from transformers import AutoModel
folder = pathlib.Path({str(tmp_path)!r})
model, prior = (AutoModel.from_pretrained(folder / name, trust_remote_code=True) for name in ("model", "prior"))
files = [(folder / f"{{index}}.hfae").read_bytes() for index in range(2)]
images = model.decompress(files, prior)
assert all(torch.equal(a, b) for a, b in zip(images, torch.load(folder / "expected.pt"), strict=True))
import sys
assert "hf_autoencoders" not in sys.modules
print("equal")
"""
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stdout.strip() == "equal", done.stderr
