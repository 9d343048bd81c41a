"""What is special to the vector-quantised auto-encoder: codes, and how the bottleneck sits in the model."""

import copy

import pytest
import tiny
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_autoencoders import VQVAEConfig, VQVAEModel

NAMES = [name for name in tiny.NAMES if name.startswith("vqvae-")]
every_bottleneck = pytest.mark.parametrize("name", NAMES)


def trained(name, steps=3, **fields):
    model = tiny.model(name, **fields).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        loss = model(tiny.images(model.config, seed=step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@every_bottleneck
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_decode_to_exactly_the_reconstruction(name, dtype, tmp_path):
    model = trained(name)
    model.save_pretrained(tmp_path)
    model = VQVAEModel.from_pretrained(tmp_path, dtype=dtype)
    config, images = model.config, tiny.images(model.config)
    encoded, outputs = model.encode(images), model(images)
    assert encoded.codes.shape == (6, *config.codes_shape) and encoded.codes.dtype == torch.int64
    assert 0 <= encoded.codes.min() and encoded.codes.max() < config.num_codes
    assert torch.equal(encoded.codes, outputs.codes) and torch.equal(encoded.latents, outputs.latents)
    expected = model.decode(encoded.latents)
    assert expected.dtype == dtype
    assert torch.equal(model.decode_codes(encoded.codes), expected)
    assert torch.equal(outputs.reconstruction, expected)
    assert torch.equal(model.decode_codes(encoded.codes.int()), expected)


@every_bottleneck
def test_codes_are_found_in_float32(name, tmp_path):
    """In a bfloat16 model and under autocast: the codes are those of float32 arithmetic on the same latents."""
    model = trained(name)
    model.save_pretrained(tmp_path)
    half, images = VQVAEModel.from_pretrained(tmp_path, dtype=torch.bfloat16), tiny.images(model.config)
    seen = []
    for each in (model, half):
        each.quantizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = [model.encode(images).codes]
    codes.append(half.encode(images).codes)
    assert [latents.dtype for latents in seen] == [torch.bfloat16] * 2
    for latents, found in zip(list(seen), codes, strict=True):
        assert torch.equal(model.quantizer(latents.float())[1], found)
    assert all(value.dtype == torch.float32 for value in half.quantizer.state_dict().values())


@every_bottleneck
def test_any_code_can_be_decoded(name):
    model = tiny.model(name)
    codes = torch.randint(model.config.num_codes, (3, *model.config.codes_shape))
    assert model.decode_codes(codes).shape == (3, *model.config.input_shape)
    latents = model.quantizer.decode(codes)
    assert latents.shape == (3, *model.config.latent_shape)
    if model.config.num_codebooks == 1 and model.config.quantizer == "vq":
        assert torch.equal(model.quantizer(latents)[1], codes)  # an entry is its own nearest


@every_bottleneck
def test_wrong_codes_are_refused(name):
    model = tiny.model(name)
    shape, size = model.config.codes_shape, model.config.num_codes
    codes = torch.zeros(2, *shape, dtype=torch.int64)
    for wrong in (codes - 1, codes + size):
        with pytest.raises(ValueError, match=rf"codes must be from 0 to {size - 1}, got values from"):
            model.decode_codes(wrong)
    for wrong in (codes.float(), codes.bool(), codes.tolist()):
        with pytest.raises(TypeError, match="codes must be an integer tensor, got"):
            model.decode_codes(wrong)
    for wrong in (codes[0], codes.flatten(1), codes[..., 1:], torch.cat([codes, codes], 1)):
        with pytest.raises(ValueError, match=r"codes must have shape \(batch_size, .*num_codebooks, height, width"):
            model.decode_codes(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_weighted_sum_of_its_terms(name):
    model = tiny.model(name, commitment_cost=0.7, codebook_cost=0.3).train()
    images = tiny.images(model.config)
    outputs = model(images)
    expected = outputs.reconstruction_loss
    torch.testing.assert_close(expected, (outputs.reconstruction - images).square().mean())
    if model.config.quantizer == "fsq":
        assert outputs.commitment_loss is None and outputs.codebook_loss is None
    else:
        expected = expected + 0.7 * outputs.commitment_loss
    if model.config.codebook_update == "gradient":
        expected = expected + 0.3 * outputs.codebook_loss
    else:
        assert outputs.codebook_loss is None
    torch.testing.assert_close(outputs.loss, expected)


@every_bottleneck
def test_gradients_pass_the_bottleneck_unchanged(name):
    """The encoder gets the decoder's gradient at the quantised latents; cosine and FSQ through their own functions."""
    model = tiny.model(name, commitment_cost=0).train()
    images, kept = tiny.images(model.config), {}

    def keep(_, inputs, outputs):
        kept["before"], kept["after"] = inputs[0], outputs[0]
        inputs[0].retain_grad(), outputs[0].retain_grad()

    model.quantizer.register_forward_hook(keep)
    model(images).reconstruction_loss.backward()
    assert kept["after"].grad.abs().sum() > 0 and kept["before"].grad.abs().sum() > 0
    if model.config.quantizer == "vq" and model.config.codebook_distance == "euclidean":
        torch.testing.assert_close(kept["before"].grad, kept["after"].grad)


@every_bottleneck
def test_training_uses_the_codes_and_lowers_the_loss(name):
    model = tiny.model(name, ema_decay=0.9).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(120):
        outputs = model(tiny.images(model.config, 16, step % 5))
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        losses.append(outputs.reconstruction_loss.item())
    codes = model.eval().encode(tiny.images(model.config, 64, 7)).codes
    used = [codes[:, index].unique().numel() for index in range(codes.shape[1])]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert min(used) >= 6


@pytest.mark.parametrize("hidden_sizes", [(16, 32), (32, 64), (16, 32, 32)], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fsq_can_start_from_a_single_code(hidden_sizes, seed):
    """The small outputs of a new encoder all round to one code; the decoder must still pass a gradient to it."""
    config = VQVAEConfig(quantizer="fsq", hidden_sizes=hidden_sizes)
    torch.manual_seed(seed)
    model = VQVAEModel(config).train()
    model(tiny.images(config)).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.encoder.parameters())


def test_codebooks_change_in_training_only():
    model = trained("vqvae-ema")
    before = copy.deepcopy(model.quantizer.state_dict())
    images = tiny.images(model.config, seed=50)
    model(images), model.encode(images), model.train().encode(images)
    assert all(torch.equal(before[key], value) for key, value in model.quantizer.state_dict().items())
    model(images)
    assert model.quantizer.quantizers[0].num_updates.item() == 4
    assert not torch.equal(before["quantizers.0.codebook"], model.quantizer.quantizers[0].codebook)


def test_a_moving_average_codebook_is_no_parameter():
    for name, expected in (("vqvae-ema", False), ("vqvae-gradient", True)):
        names = [key for key, _ in tiny.model(name).named_parameters()]
        assert ("quantizer.quantizers.0.codebook" in names) is expected


def test_numbers_of_codes_and_bits():
    config = VQVAEConfig(image_size=28, hidden_sizes=(8, 8), codebook_size=512, num_codebooks=2)
    assert (config.num_codes, config.codes_shape, config.bits_per_input) == (512, (2, 7, 7), 2 * 49 * 9)
    config = VQVAEConfig(image_size=(9, 6), hidden_sizes=(8, 8), quantizer="fsq", fsq_levels=(8, 4))
    assert (config.num_codes, config.codes_shape, config.latent_shape) == (32, (1, 3, 2), (2, 3, 2))
    assert config.bits_per_input == 30


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "mlp"}, 'no grid of latents to quantise: use "conv" or "resnet"'),
        ({"quantizer": "fsq", "num_codebooks": 2}, "one implicit codebook, got num_codebooks=2"),
        ({"quantizer": "fsq", "fsq_levels": ()}, "at least one level"),
        ({"quantizer": "fsq", "fsq_levels": (8, 1)}, "at least 2"),
        ({"codebook_distance": "cosine", "num_codebooks": 2}, "leaves no residual"),
        ({"codebook_distance": "manhattan"}, "cosine"),
        ({"codebook_update": "adam"}, "gradient"),
        ({"codebook_size": 1}, "at least 2"),
        ({"ema_decay": 1}, "from 0 up to, but not including, 1"),
        ({"ema_decay": float("nan")}, "from 0 up to, but not including, 1"),
        ({"dead_code_threshold": 2}, "from 0 to 1"),
        ({"kmeans_init": 1}, "kmeans_init"),
    ],
    ids=str,
)
def test_nonsense_is_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        VQVAEConfig(**fields)


def test_fields_that_do_not_fit_together_are_refused_when_a_model_is_built(tmp_path):
    tiny.model("vqvae-ema").save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="no grid of latents"):
        VQVAEModel.from_pretrained(tmp_path, architecture="mlp")


def test_cosine_codes_are_those_of_evaluation_also_with_a_gradient_codebook():
    """An optimizer with weight decay moves entries off the sphere; the search must not see that."""
    model = tiny.model("vqvae-cosine-gradient", kmeans_init=False).train()
    images = tiny.images(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=1.0)
    for _ in range(10):
        loss = model(images).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codes = model(images).codes
    assert torch.equal(model.eval()(images).codes, codes)
    lengths = model.quantizer.quantizers[0].codebook.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_cast_model_keeps_its_codebook_in_float32_and_trains(update):
    model = tiny.model("vqvae-ema", codebook_update=update)
    before = copy.deepcopy(model.quantizer.state_dict())
    model.bfloat16().train()
    assert model.encoder.levels[0].conv.weight.dtype == torch.bfloat16
    for name, tensor in model.quantizer.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name]), name
    model(tiny.images(model.config)).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
