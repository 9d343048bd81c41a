"""The learned image codec: real bytes, exactness, rates, and what it refuses."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
import tiny
import torch
from hub_server import HubServer, User
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from processes import run_python

from hf_autoencoders import ImageCodecConfig, ImageCodecModel, cli
from hf_autoencoders.data.augmentation import random_crop
from hf_autoencoders.models import modeling_image_codec as codec
from hf_autoencoders.models.container import CompressedFileError
from hf_autoencoders.models.entropy_coding import PRECISION

NAMES = [name for name in tiny.IMAGE_NAMES if name.startswith("image_codec-")]
TOKEN = "alice-token-0123456789"


def pictures(batch_size=1, channels=3, size=(24, 40), seed=0):
    """Smooth images with edges, `(batch_size, channels, *size)` in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch_size, channels, 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return (smooth + 0.3 * (smooth[:, :1] > 0.5)).clamp(0, 1)


def small(entropy_model="mean_scale_hyperprior", **fields):
    fields = {"hidden_sizes": (12, 16), "hyper_size": 8, "lambdas": (0.003, 0.01, 0.03), **fields}
    torch.manual_seed(0)
    return ImageCodecModel(ImageCodecConfig(num_channels=3, image_size=32, entropy_model=entropy_model, **fields))


def trained(entropy_model, steps=150):
    """A small codec after some training on made pictures, with tables."""
    model = small(entropy_model, architecture="conv").train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    torch.manual_seed(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
        loss = model(pictures(8, size=(32, 32), seed=step)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval().update_tables()
    return model


@pytest.fixture(scope="module", params=["factorized", "scale_hyperprior", "mean_scale_hyperprior"])
def model(request):
    return trained(request.param)


def to_uint8(images):
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


# ---- bytes


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (17, 30), (3, 70)])
@pytest.mark.parametrize("quality", [0, 0.7, 2])
def test_images_of_any_size_come_back_as_they_are_reconstructed(model, size, quality):
    images = pictures(2, size=size)
    files = model.compress(images, quality=quality)
    decoded = model.decompress(files)
    kept = round(quality * codec.QUALITY_STEPS) / codec.QUALITY_STEPS
    with torch.no_grad():
        expected = to_uint8(model(images, quality=kept, return_loss=False).reconstruction)
    assert all(image.dtype == torch.uint8 and image.shape == (3, *size) for image in decoded)
    # means come from integers: a latent in a thousand, midway between two, is rounded to the other
    original, decoded = (images * 255).double(), torch.stack(decoded)
    errors = [(restored.double() - original).square().mean().item() for restored in (decoded, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.1, abs=1)
    if model.config.entropy_model == "factorized":
        assert torch.equal(decoded, expected)


def test_bytes_are_what_was_estimated(model):
    """On images as large as photographs, where the header and the last word of the coder do not count."""
    images = pictures(3, size=(256, 384), seed=5)
    for quality in (0, 1, 2):
        payload = sum(map(len, model.compress(images, quality=quality))) - 3 * 26
        with torch.no_grad():
            estimate = model(images, quality=quality).rate.item() * images[:, 0].numel() / 8
        assert payload == pytest.approx(estimate, rel=0.01)


def test_higher_quality_is_better_and_larger(model):
    images, sizes, errors = pictures(2, size=(64, 64), seed=9), [], []
    for quality in (0, 0.5, 1, 1.5, 2):
        files = model.compress(images, quality=quality)
        errors.append((torch.stack(model.decompress(files)).float() / 255 - images).square().mean().item())
        sizes.append(sum(map(len, files)))
    assert errors == sorted(errors, reverse=True)
    if model.config.entropy_model != "factorized":  # whose priors need longer to learn how little there is
        assert sizes == sorted(sizes)


def test_other_images_and_other_threads_change_no_pixel(model):
    images = [*pictures(3, size=(20, 28)), *pictures(2, size=(40, 16))]
    files = model.compress(images)
    decoded = model.decompress(files)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4 if threads == 1 else 1)
        again = model.decompress(files[::-1])[::-1]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(decoded, again, strict=True))
    for one, other in zip(decoded, model.decompress(files, exact=False), strict=True):
        assert (one.int() - other.int()).abs().max() <= 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.decompress(files[:1])[0], decoded[0])


@pytest.mark.parametrize("fields", [{"architecture": "conv"}, {"num_residual_blocks": 2}], ids=str)
def test_tiles_do_not_show(fields, monkeypatch):
    model = small("factorized", hidden_sizes=(6, 8, 8), **fields)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.update_tables()
    files = model.compress(pictures(1, size=(150, 203)))
    (whole,) = model.decompress(files)
    for tile in (1, 3, 8):
        monkeypatch.setattr(codec, "TILE", tile)
        assert torch.equal(model.decompress(files)[0], whole)


def test_kinds_of_images_that_can_be_compressed(model):
    image = to_uint8(pictures(1, size=(20, 28)))[0]
    file = model.compress([image])[0]
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    for same in ([image.float() / 255], image[None], picture, [picture]):
        assert model.compress(same) == [file]
    assert torch.equal(model.decompress(file)[0], model.decompress([file])[0])


READ = """
import sys
sys.path.insert(0, args["root"])
import torch
torch.set_num_threads(3)
import hf_autoencoders
from pathlib import Path
from transformers import AutoModel
model = AutoModel.from_pretrained(args["repo"])
for number, file in enumerate(args["files"]):
    image = model.decompress([bytes.fromhex(file)])[0]
    Path(args["folder"], f"{number}.bin").write_bytes(image.numpy().tobytes())
"""
PUSH = """
import sys
sys.path.insert(0, args["root"])
import hf_autoencoders
from hf_autoencoders.publishing import push_folder
push_folder(args["folder"], args["repo"])
"""


def test_another_process_decodes_the_same_pixels_from_the_hub(tmp_path, root):
    """Neither on where in memory the weights of a file lie, nor on the number of threads."""
    model = trained("mean_scale_hyperprior", steps=30)
    images = [*pictures(3, size=(45, 52)), *pictures(1, size=(96, 64))]
    model.save_pretrained(tmp_path / "model")
    files = [file.hex() for file in model.compress(images, quality=1.3)]
    with HubServer(tmp_path / "hub", [User("alice", TOKEN)]) as hub:
        env = hub.env(TOKEN, home=tmp_path / "home")
        run_python(
            PUSH, tmp_path / "push", env, {"root": str(root), "folder": str(tmp_path / "model"), "repo": "alice/codec"}
        )
        arguments = {"root": str(root), "repo": "alice/codec", "files": files, "folder": str(tmp_path)}
        run_python(READ, tmp_path / "read", env, arguments)
    for number, image in enumerate(model.decompress([bytes.fromhex(file) for file in files])):
        assert (tmp_path / f"{number}.bin").read_bytes() == image.numpy().tobytes()


# ---- exactness of what decides on symbols


def test_the_integer_synthesis_is_that_of_python_integers():
    model = small()
    torch.nn.init.normal_(model.coder.hyperprior.synthesis[2].bias)
    model.update_tables()
    hyperprior = model.coder.hyperprior
    z = torch.randint(-9, 10, (1, 8, 2, 3), generator=torch.Generator().manual_seed(0)).float()
    mean, index = hyperprior.integer_synthesize(z, (7, 11))

    def layer(hidden, number):
        weight, bias = getattr(hyperprior, f"weight{number}").tolist(), getattr(hyperprior, f"bias{number}").tolist()
        shift = getattr(hyperprior, f"shift{number}").item()
        height, width, outputs = len(hidden[0]), len(hidden[0][0]), []
        for out, of_input in enumerate(weight):
            plane = [[bias[out]] * width for _ in range(height)]
            for (y, x), (channel, kernel) in itertools.product(np.ndindex(height, width), enumerate(of_input)):
                for dy, dx in np.ndindex(3, 3):
                    if 0 <= y + dy - 1 < height and 0 <= x + dx - 1 < width:
                        plane[y][x] += kernel[dy][dx] * hidden[channel][y + dy - 1][x + dx - 1]
            limit = 2**codec.RANGE_BITS
            outputs.append([[max(-limit, min(limit, (v + 2 ** (shift - 1)) >> shift)) for v in row] for row in plane])
        return outputs

    def doubled(hidden):
        planes = torch.tensor(hidden)[None].clamp_min(0)
        return torch.nn.functional.pixel_shuffle(planes, 2)[0].tolist()

    hidden = (z[0].long() * 2**codec.FRACTION_BITS).tolist()
    output = torch.tensor(layer(doubled(layer(doubled(layer(hidden, 0)), 1)), 2))[:, :7, :11]
    unit = 2**codec.FRACTION_BITS
    expected = (output[:16] * codec.SCALE_SLOPE + codec.SCALE_OFFSET * unit + unit // 2) // unit
    assert torch.equal(index[0], expected.clamp(0, codec.NUM_SCALES - 1))
    assert torch.equal(mean[0] * unit, output[16:].double())
    assert index.unique().numel() > 3 and mean.unique().numel() > 10


def test_sums_of_the_integer_synthesis_cannot_be_rounded():
    """The largest partial sum that weights, hidden values and bias of the widest hyperprior allow is below 2^53."""
    widest = 2**12  # what the configuration accepts
    largest = 9 * widest * 2 ** (codec.WEIGHT_BITS - 1) * 2**codec.RANGE_BITS
    assert largest + 2 ** (codec.RANGE_BITS + codec.WEIGHT_BITS) < 2**53
    with pytest.raises(StrictDataclassError, match="hyper_size"):
        ImageCodecConfig(hyper_size=widest + 1)
    model = small()
    with torch.no_grad():
        for number, conv in enumerate(model.coder.hyperprior.synthesis):
            conv.weight.mul_(10.0**number)
            conv.bias.fill_(1e9)
    model.update_tables()
    for number in range(3):
        assert getattr(model.coder.hyperprior, f"weight{number}").abs().max() <= 2 ** (codec.WEIGHT_BITS - 1)
        assert getattr(model.coder.hyperprior, f"bias{number}").abs().max() <= 2.0 ** (
            codec.RANGE_BITS + codec.WEIGHT_BITS
        )


def test_the_integer_synthesis_is_close_to_that_of_training(model):
    if model.coder.hyperprior is None:
        pytest.skip("it has none")
    z = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0)).mul(3).round()
    mean, index = model.coder.hyperprior.integer_synthesize(z, (16, 16))
    with torch.no_grad():
        expected_mean, expected_index = model.coder.hyperprior.synthesize(z, (16, 16))
    torch.testing.assert_close(mean.float(), expected_mean, atol=0.02, rtol=0.01)
    inside = (expected_index > 0.5) & (expected_index < codec.NUM_SCALES - 1.5)
    assert (index - expected_index)[inside].abs().max() < 1.0


def test_integers_of_a_half_precision_model_are_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = ImageCodecModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    image = pictures(1, size=(32, 32))
    file = half.compress(image)
    assert half.decompress(file)[0].shape == (3, 32, 32)
    with pytest.raises(CompressedFileError, match="another model"):  # other pixels, so another fingerprint
        model.decompress(file)


# ---- probabilities


def test_the_factorized_prior_is_a_distribution():
    prior = codec.FactorizedPrior(2, 3)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    values = torch.arange(-400, 401.0).expand(2, 3, 1, -1)
    probabilities = prior(values, torch.tensor([0, 1]))
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum((2, 3)), torch.ones(2, 3), atol=1e-4, rtol=0)
    assert not torch.allclose(probabilities[0], probabilities[1])
    prior.update_tables()
    counts = prior.counts.double() / 2**PRECISION
    for quality, channel in itertools.product(range(2), range(3)):
        first = prior.lowest[quality, channel].item() + 400
        expected = probabilities[quality, channel, 0, first : first + 256]
        torch.testing.assert_close(counts[quality, channel, :-1].float(), expected, atol=1e-4, rtol=0)


def test_gaussian_likelihoods_are_those_of_scipy():
    from scipy.stats import norm

    distance, scale = torch.tensor([0.0, 0.3, -4.0, 20.0]), torch.tensor([0.11, 1.0, 2.5, 64.0])
    expected = norm.cdf((distance + 0.5) / scale) - norm.cdf((distance - 0.5) / scale)
    torch.testing.assert_close(codec.gaussian_likelihood(distance, scale), torch.from_numpy(expected).float())
    tables = codec.gaussian_tables() / 2**PRECISION
    middle = codec.GAUSSIAN_REACH
    for row, scale in ((0, codec.MIN_SCALE), (codec.NUM_SCALES - 1, codec.MAX_SCALE)):
        expected = norm.cdf((np.arange(3) + 0.5) / scale) - norm.cdf((np.arange(3) - 0.5) / scale)
        np.testing.assert_allclose(tables[row, middle : middle + 3], expected, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_rate_and_weighted_distortion(name):
    model = tiny.model(name)
    images = tiny.images(model.config)
    for quality in range(len(model.config.lambdas)):
        output = model(images, quality=quality)
        error = (output.reconstruction - images).square().mean()
        assert output.distortion.item() == pytest.approx(
            model.config.lambdas[quality] * 255**2 * error.item(), rel=1e-5
        )
        torch.testing.assert_close(output.loss, output.rate + output.distortion)
        assert output.reconstruction_loss.item() == pytest.approx(error.item(), rel=1e-5)
        assert 0 <= output.side_rate < output.rate
        assert (output.side_rate > 0) == (model.config.entropy_model != "factorized")
    mixed = model(images, quality=torch.arange(len(images)) % len(model.config.lambdas))
    parts = [model(images[i : i + 1], quality=i % len(model.config.lambdas)).loss for i in range(len(images))]
    torch.testing.assert_close(mixed.loss, torch.stack(parts).mean())


def test_gains_are_interpolated_geometrically():
    coder = small().coder
    with torch.no_grad():
        coder.log_gain += torch.randn_like(coder.log_gain)
    gain, inverse = coder.gains(torch.tensor([0.0, 0.25, 1.0, 2.0]))
    torch.testing.assert_close(gain[1], gain[0] ** 0.75 * gain[2] ** 0.25)
    torch.testing.assert_close(inverse[3].flatten(), coder.log_inverse_gain[2].exp())


def test_a_new_model_is_a_wavelet_transform():
    """Orthonormal filters: what is dropped is all that is lost, and fine rounding loses next to nothing."""
    filters = codec.haar_bands(3, (12, 48))
    for bands in filters:
        flat = bands.flatten(1)
        torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat)), atol=1e-5, rtol=0)
    images = pictures(4, size=(32, 32))
    for architecture in ("conv", "resnet"):
        errors = []
        for widths in ((12, 48), (12, 24)):
            model = small(architecture=architecture, hidden_sizes=widths, lambdas=(1.0,)).eval()
            with torch.no_grad():
                model.coder.log_gain += 3
                model.coder.log_inverse_gain -= 3
                errors.append(model(images).reconstruction_loss.item())
        assert errors[0] < errors[1] < 0.02 and (architecture == "conv" or errors[0] < 2e-3)


def test_training_lowers_the_loss_at_all_rates(model):
    first, last = small(model.config.entropy_model, architecture="conv").eval(), model
    images = pictures(8, size=(32, 32), seed=1000)
    with torch.no_grad():
        for quality in range(3):
            assert last(images, quality=quality).loss < first(images, quality=quality).loss


def test_crops_are_parts_of_the_images():
    images = torch.arange(2 * 3 * 9 * 7.0).view(2, 3, 9, 7)
    noise = torch.tensor([[0.0, 0.0], [0.999, 0.5]])
    cut = random_crop(images, noise, 5)
    assert torch.equal(cut[0], images[0, :, :5, :5]) and torch.equal(cut[1], images[1, :, 4:, 1:6])
    with pytest.raises(ValueError, match="from 1 to 7 for images of 9 x 7, got 8"):
        random_crop(images, noise, 8)
    counts = torch.zeros(5)
    for start in random_crop(images[:1].expand(500, -1, -1, -1), torch.rand(500, 2), 5)[:, 0, 0, 0] // 7:
        counts[int(start)] += 1
    assert counts.min() > 60


# ---- what is refused


def test_a_model_without_tables_is_refused():
    model = tiny.model("image_codec-conv")
    for call in (lambda: model.compress(tiny.images(model.config)), lambda: model.decompress([b""])):
        with pytest.raises(ValueError, match=r"no tables.*call model.update_tables\(\) after training"):
            call()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(1, 1, 8, 8), ValueError, r"expected images \(3, height, width\), not empty, got \(1, 8, 8\)"),
        (torch.rand(1, 4, 8, 8), ValueError, "got .4, 8, 8"),
        (torch.rand(1, 3, 0, 8), ValueError, "not empty"),
        (torch.full((1, 3, 4, 4), float("nan")), ValueError, r"finite and in \[0, 1\]"),
        (torch.full((1, 3, 4, 4), 1.5), ValueError, r"finite and in \[0, 1\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), TypeError, "expected PIL images, or tensors.*got torch.int64"),
        (["photo.png"], TypeError, "got str"),
        ([Image.new("RGBA", (4, 4))], ValueError, r"of mode RGB, got one of mode RGBA: image.convert\('RGB'\)"),
        ([Image.new("L", (4, 4))], ValueError, "got one of mode L"),
    ],
    ids="gray alpha empty nan range integers path rgba-picture gray-picture".split(),
)
def test_wrong_images_are_refused(images, error, message):
    model = small()
    model.update_tables()
    with pytest.raises(error, match=message):
        model.compress(images)


@pytest.mark.parametrize("quality", [-0.1, 2.01, float("nan"), float("inf")])
def test_wrong_qualities_are_refused(quality):
    model = small()
    model.update_tables()
    for call in (model.compress, model, model.encode):
        with pytest.raises(ValueError, match="quality must be from 0 to 2, got"):
            call(pictures(), quality=quality)


@pytest.mark.parametrize("lambdas", [(), (0.0, 1.0), (0.02, 0.01), (0.01, 0.01)])
def test_wrong_lambdas_are_refused(lambdas):
    with pytest.raises(StrictDataclassError, match="lambdas"):
        ImageCodecConfig(lambdas=lambdas)


def test_changed_files_are_refused(model):
    (file,) = model.compress(pictures(1, size=(16, 16)))
    generator = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(file)
        changed[generator.integers(len(file))] ^= 1 << generator.integers(8)
        with pytest.raises(CompressedFileError):
            model.decompress([bytes(changed)])
    for end in range(len(file)):
        with pytest.raises(CompressedFileError):
            model.decompress([file[:end]])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.synthesis[0].conv.weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(CompressedFileError, match="written by another model"):
        other.decompress([file])


def test_hostile_files_with_a_good_checksum_are_refused_in_bounded_time(model):
    """Large sizes before anything is allocated; a payload of anything is decoded to the end, or refused."""
    make = lambda payload, **fields: codec.Container(  # noqa: E731
        "image codec",
        model.fingerprint(),
        {"quality": 16, "height": 16, "width": 16, "channels": 3} | fields,
        payload,
    ).to_bytes()
    for fields, message in (
        ({"height": 2**31, "width": 2**31}, "pixels, allowed are 1 to"),
        ({"height": 0}, "pixels, allowed are 1 to"),
        ({"height": 1, "width": 2**25}, "more than twice the 33554432 that are allowed"),
        ({"channels": 1}, "1 channels"),
        ({"quality": 33}, "quality 2.06"),
    ):
        with pytest.raises(CompressedFileError, match=message):
            model.decompress([make(b"\0", **fields)])
    (file,) = model.compress(pictures(1, size=(16, 16)))
    with pytest.raises(CompressedFileError, match="allowed are 1 to 255"):
        model.decompress([file], max_pixels=255)
    generator = np.random.default_rng(0)
    for length in (0, 1, 5, 40, 300):
        for _ in range(5):
            payload = bytes([0]) + generator.bytes(length)
            try:
                assert model.decompress([make(payload)])[0].shape == (3, 16, 16)
            except CompressedFileError as error:
                assert "damaged" in str(error)


def test_latents_that_are_no_numbers_are_refused():
    model = small()
    model.update_tables()
    with torch.no_grad():
        model.analysis[1].conv.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="latents are not usable"):
        model.compress(pictures())


@pytest.mark.parametrize("entropy_model", ["factorized", "mean_scale_hyperprior"])
def test_any_latents_can_be_coded(entropy_model):
    """Outliers far outside of every table, by escapes."""
    model = small(entropy_model)
    model.update_tables()
    y = 50 * torch.randn(1, 16, 3, 5, generator=torch.Generator().manual_seed(0))
    y[0, 0, 0, 0], y[0, 3, 1, 1] = 1e5, -2e4
    payload = model.coder.write(y, steps=16)
    latents = model.coder.read(payload, 16, (3, 5))
    gain, inverse = model.coder.gains(torch.tensor([1.0]))
    assert ((latents / inverse - y * gain).abs() <= 0.51).all()


# ---- the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec") / "model"
    trained("mean_scale_hyperprior", steps=20).save_pretrained(folder)
    return folder


def save_picture(path, mode="RGB", size=(30, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = to_uint8(pictures(1, size=size[::-1]))[0].permute(1, 2, 0).numpy()
    Image.fromarray(array).convert(mode).save(path)
    return str(path)


def test_compress_and_decompress_a_file(folder, tmp_path, capsys):
    source, compressed, restored = save_picture(tmp_path / "a.png"), tmp_path / "a.hfae", tmp_path / "b.png"
    assert cli.main(["compress", source, str(compressed), "--model", str(folder), "--quality", "1.5"]) == 0
    assert "bits per pixel" in capsys.readouterr().out
    assert cli.main(["decompress", str(compressed), str(restored), "--model", str(folder)]) == 0
    model = ImageCodecModel.from_pretrained(folder)
    expected = model.decompress(model.compress(Image.open(source), quality=1.5))[0]
    assert np.array_equal(np.asarray(Image.open(restored)), expected.permute(1, 2, 0).numpy())


def test_compress_and_decompress_folders(folder, tmp_path, capsys):
    for name, mode in (("one.png", "RGB"), ("deep/two.bmp", "P"), ("deep/three.png", "L")):
        save_picture(tmp_path / "in" / name, mode)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    assert cli.main(["compress", str(tmp_path / "in"), str(tmp_path / "files"), "--model", str(folder)]) == 0
    assert "3 files" in capsys.readouterr().out
    assert cli.main(["decompress", str(tmp_path / "files"), str(tmp_path / "out"), "--model", str(folder)]) == 0
    restored = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert restored == ["deep/three.png", "deep/two.png", "one.png"]
    assert all(Image.open(tmp_path / "out" / name).size == (30, 20) for name in restored)


def test_rate_distortion_writes_numbers_and_a_picture(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for number in range(3):
        save_picture(tmp_path / "in" / f"{number}.png", size=(40 + number, 30))
    argv = ["rate-distortion", str(folder), str(tmp_path / "in"), "--split", "train", "-o", str(tmp_path / "out")]
    assert cli.main([*argv, "--validation_fraction", "0.4"]) == 0
    result = json.loads((tmp_path / "out" / "rate_distortion.json").read_text())
    assert result["corpus"] == {"name": "in", "split": "train", "rows": 2}
    assert len(result["curves"]["model"]) == 5 and "BD-rate" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "rate_distortion.png").size[0] > 300


def test_mistakes_on_the_command_line_are_told(folder, tmp_path, capsys):
    image, alpha = save_picture(tmp_path / "a.png"), save_picture(tmp_path / "alpha.png", "RGBA")
    (tmp_path / "bad.hfae").write_bytes(b"HFAE and no more than that, which is not enough")
    (tmp_path / "empty").mkdir()
    save_picture(tmp_path / "twice" / "a.png"), save_picture(tmp_path / "twice" / "a.jpg")
    tiny.model("image_codec-conv").save_pretrained(tmp_path / "untrained")
    tiny.model("vae-mlp").save_pretrained(tmp_path / "vae")
    for argv, message in (
        (["compress", image, "a.jpg"], "a.jpg: expected a file that ends in .hfae"),
        (["compress", "nowhere.png", "a.hfae"], "no such file or folder: nowhere.png"),
        (["compress", alpha, "a.hfae"], "alpha.png: this model compresses images of mode RGB, got one of mode RGBA"),
        (["compress", image, "a.hfae", "--quality", "7"], "quality must be from 0 to 2, got 7"),
        (["compress", str(tmp_path / "empty"), "out"], "holds no files that end in .png"),
        (["compress", str(tmp_path / "twice"), "out"], "would both be written to"),
        (["compress", str(tmp_path / "bad.hfae"), "a.hfae"], "bad.hfae: cannot identify image file"),
        (["compress", image, "a.hfae", "--model", str(tmp_path / "vae")], "no way to bytes"),
        (["compress", image, "a.hfae", "--model", str(tmp_path / "untrained")], "call model.update_tables()"),
        (["decompress", str(tmp_path / "bad.hfae"), "a.png"], "bad.hfae: the compressed file is"),
        (["decompress", str(tmp_path / "bad.hfae"), "a.jpg"], "a.jpg: expected a file that ends in .png"),
        (
            ["reconstruct", str(folder), image, save_picture(tmp_path / "large.png", size=(50, 20)), "-o", "out"],
            "a.png has 20 x 30 pixels and",
        ),
        (["rate-distortion", str(tmp_path / "vae"), "digits", "-o", str(tmp_path)], "no rates to choose from"),
    ):
        if argv[0] in ("compress", "decompress") and "--model" not in argv:
            argv = [*argv, "--model", str(folder)]
        assert cli.main(argv) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1] and "Traceback" not in lines[-1], (argv, lines)


def test_the_config_says_the_sizes():
    config = ImageCodecConfig(image_size=(30, 65), hidden_sizes=(4, 8, 6))
    assert (config.stride, config.latent_shape, config.hyper_grid(30, 65)) == (8, (6, 4, 9), (1, 3))
    assert config.latent_grid(8, 9) == (1, 2) and math.prod(config.latent_shape) == 216


def test_conversion_to_half_precision_leaves_the_coder_alone(tmp_path):
    model = tiny.model("image_codec-conv")
    model.update_tables()
    before = {name: tensor.clone() for name, tensor in model.coder.state_dict().items()}
    model.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.coder.state_dict().items())
    images = tiny.images(model.config)
    assert model(images).loss.isfinite()
    (restored,) = model.decompress(model.compress(images[:1]))
    assert restored.shape == images.shape[1:]
