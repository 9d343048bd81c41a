"""Rate-distortion curves: the BD-rate of curves that are known, and the measuring of codecs."""

import json

import numpy as np
import pytest
import tiny
import torch

from hf_autoencoders.evaluation import rate_distortion as rd

PSNRS = np.array([28.0, 30, 32, 35, 37])
RATES = 2 ** ((PSNRS - 30) / 5)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.25, 0.5])
def test_bd_rate_of_a_factor_is_the_factor(factor):
    assert rd.bd_rate(RATES, PSNRS, factor * RATES, PSNRS) == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_bd_rate_of_other_points_on_the_same_curve():
    psnrs = np.array([29.0, 31, 33.5, 36])
    assert rd.bd_rate(RATES, PSNRS, 0.9 * 2 ** ((psnrs - 30) / 5), psnrs) == pytest.approx(-10, abs=1e-9)
    wide = np.linspace(20, 45, 6)  # only what both reach counts
    assert rd.bd_rate(RATES, PSNRS, 0.9 * 2 ** ((wide - 30) / 5), wide) == pytest.approx(-10, abs=1e-9)


def test_bd_rate_averages_the_logarithm_over_psnr():
    """log rates that differ by a line a + b PSNR: the mean difference is that in the middle of the range."""
    for slope in (-0.02, 0.01):
        rates = RATES * np.exp(-0.1 + slope * (PSNRS - 30))
        expected = np.expm1(-0.1 + slope * (PSNRS.min() + PSNRS.max() - 60) / 2)
        assert rd.bd_rate(RATES, PSNRS, rates, PSNRS) == pytest.approx(100 * expected, rel=1e-6)


def test_bd_rate_turns_round():
    forth = rd.bd_rate(RATES, PSNRS, 0.8 * RATES**1.05, PSNRS)
    back = rd.bd_rate(0.8 * RATES**1.05, PSNRS, RATES, PSNRS)
    assert (1 + forth / 100) * (1 + back / 100) == pytest.approx(1)


def test_bd_rate_does_not_depend_on_the_order_of_points():
    order = [3, 0, 4, 1, 2]
    assert rd.bd_rate(RATES[order], PSNRS[order], 0.9 * RATES, PSNRS) == pytest.approx(-10)


@pytest.mark.parametrize(
    ("rates", "psnrs", "message"),
    [
        ([1.0], [30.0], "at least two points, got 1"),
        ([1.0, 2.0], [30.0, 29.0], "PSNR must rise"),
        ([0.0, 2.0], [30.0, 31.0], "PSNR must rise"),
        ([1.0, 2.0], [30.0, float("nan")], "PSNR must rise"),
        ([1.0, 2.0], [50.0, 60.0], "no PSNR in common: one begins at 50.00 dB, the other ends at 37.00"),
    ],
)
def test_curves_without_a_bd_rate_are_refused(rates, psnrs, message):
    with pytest.raises(ValueError, match=message):
        rd.bd_rate(RATES, PSNRS, rates, psnrs)


def gradients(channels, sizes=((40, 48), (33, 20))):
    images = []
    for height, width in sizes:
        y, x = np.mgrid[:height, :width]
        planes = [(3 * x + 2 * y + 40 * c + 10 * np.sin(x * y / 50)) % 256 for c in range(channels)]
        images.append(np.stack(planes).astype(np.uint8))
    return images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", rd.PILLOW_CODECS)
def test_codecs_of_pillow(name, channels):
    images = gradients(channels)
    low, high = (rd.measure_codec(rd.pillow_codec(name, quality), images) for quality in (10, 90))
    assert low["bits_per_pixel"] < high["bits_per_pixel"] and low["psnr"] < high["psnr"]
    assert low["encode_seconds_per_megapixel"] > 0 and "ms_ssim" not in low


def test_points_are_means_over_images():
    """A codec that adds 1, then 2, to images of two sizes."""
    added = iter((1, 2))
    codec = rd.Codec(
        lambda image: bytes(image.shape[1] * 4), lambda data: images[0] + 1 if next(added) == 1 else images[1] + 2
    )
    images = [np.zeros((3, 10, 20), np.uint8), np.zeros((3, 40, 10), np.uint8)]
    point = rd.measure_codec(codec, images)
    assert point["bits_per_pixel"] == pytest.approx((8 * 40 / 200 + 8 * 160 / 400) / 2)
    assert point["psnr"] == pytest.approx(20 * np.log10(255) - 10 * np.log10(4) / 2)
    lossless = rd.measure_codec(rd.Codec(lambda image: b"", lambda data: images[0]), images[:1])
    assert (lossless["bits_per_pixel"], lossless["psnr"]) == (0, 100)


def test_ms_ssim_of_large_images():
    pytest.importorskip("torchmetrics")
    images = gradients(3, sizes=[(176, 180)])
    low, high = (rd.measure_codec(rd.pillow_codec("jpeg", quality), images)["ms_ssim"] for quality in (5, 95))
    assert 0 < low < high < 1


def test_a_model_beside_pillow(tmp_path):
    model = tiny.model("image_codec-conv", num_channels=3)
    model.update_tables()
    images = gradients(3)
    result = rd.rate_distortion(model, images, corpus={"name": "gradients"}, command="this test")
    json.dumps(result, allow_nan=False)
    assert [point["quality"] for point in result["curves"]["model"]] == [0, 0.5, 1]
    assert set(result["curves"]) == {"model", *rd.PILLOW_CODECS} and result["corpus"]["rows"] == 2
    files = model.compress([torch.from_numpy(image) for image in images], quality=1)
    expected = np.mean([8 * len(f) / i[0].size for f, i in zip(files, images, strict=True)])
    point = result["curves"]["model"][-1]
    assert point["bits_per_pixel"] == pytest.approx(expected)
    header = np.mean([8 * 25 / image[0].size for image in images])
    assert point["estimated_bits_per_pixel"] == pytest.approx(expected - header, rel=0.2)  # words are of 32 bits
    assert set(result["bd_rate"]) | {key.removeprefix("bd_rate_") for key in result["not_measured"]} == set(
        rd.PILLOW_CODECS
    )
    pytest.importorskip("matplotlib")
    path = rd.draw_curves(result, tmp_path / "new" / "curves.png", title="gradients")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_wrong_images_are_refused():
    model = tiny.model("image_codec-conv")
    with pytest.raises(ValueError, match="no images"):
        rd.rate_distortion(model, [], corpus={})
    with pytest.raises(ValueError, match="expected uint8 images of 1 or 3 channels, got float64"):
        rd.rate_distortion(model, [np.zeros((1, 4, 4))], corpus={})
    with pytest.raises(ValueError, match="came back as"):
        rd.measure_codec(rd.Codec(lambda image: b"", lambda data: np.zeros((1, 2, 2), np.uint8)), gradients(1))
