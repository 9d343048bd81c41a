"""The image processor: what goes in, what comes out, what is refused and in which words."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

from hf_autoencoders.models import image_processing_autoencoder
from hf_autoencoders.models.image_processing_autoencoder import AutoencoderImageProcessor

GRAY = np.random.default_rng(0).integers(0, 256, (20, 12), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (20, 12, 3), dtype=np.uint8)


def gray_processor(**kwargs):
    return AutoencoderImageProcessor(**{"size": (20, 12), "num_channels": 1, **kwargs})


def rgb_processor(**kwargs):
    return AutoencoderImageProcessor(**{"size": (20, 12), "num_channels": 3, **kwargs})


def pixels(processor, images, **kwargs):
    values = processor(images, return_tensors="pt", **kwargs)["pixel_values"]
    assert values.dtype == torch.float32 and values.min() >= 0 and values.max() <= 1
    return values


GRAY_INPUTS = {
    "PIL": PIL.Image.fromarray(GRAY),
    "PIL as RGB, as every stock pipeline makes it": PIL.Image.fromarray(GRAY).convert("RGB"),
    "PIL LA": PIL.Image.merge("LA", [PIL.Image.fromarray(GRAY), PIL.Image.new("L", (12, 20), 100)]),
    "PIL P": PIL.Image.fromarray(GRAY).convert("RGB").quantize(256, dither=0),
    "PIL 16 bit": PIL.Image.fromarray(GRAY.astype(np.uint16) * 257),
    "PIL float": PIL.Image.fromarray(GRAY.astype(np.float32) / 255),
    "numpy (H, W)": GRAY,
    "numpy (H, W, 1)": GRAY[..., None],
    "numpy (1, H, W)": GRAY[None],
    "numpy (H, W, 3)": np.repeat(GRAY[..., None], 3, axis=2),
    "numpy int64": GRAY.astype(np.int64),
    "numpy uint16": GRAY.astype(np.uint16) * 257,
    "numpy float32": GRAY.astype(np.float32) / 255,
    "numpy float64 RGB": np.repeat(GRAY[..., None], 3, axis=2) / 255,
    "numpy not contiguous": np.asfortranarray(GRAY),
    "numpy batch": GRAY[None, None],
    "torch (H, W)": torch.from_numpy(GRAY),
    "torch (1, H, W)": torch.from_numpy(GRAY)[None],
    "torch float": torch.from_numpy(GRAY)[None] / 255,
    "torch float with gradient": (torch.from_numpy(GRAY)[None] / 255).requires_grad_(),
    "torch batch": torch.from_numpy(GRAY)[None, None],
    "list": [GRAY],
    "nested list": [[GRAY]],
}


@pytest.mark.parametrize("name", GRAY_INPUTS)
def test_every_kind_of_gray_input_gives_the_same_pixels(name):
    values = pixels(gray_processor(), GRAY_INPUTS[name])
    assert values.shape == (1, 1, 20, 12)
    if name == "PIL P":  # the palette's own colours
        expected = np.array(GRAY_INPUTS[name].convert("RGB").convert("L"))
    else:
        expected = GRAY
    torch.testing.assert_close(values[0, 0], torch.from_numpy(expected) / 255, rtol=0, atol=1e-6)


RGB_INPUTS = {
    "PIL": PIL.Image.fromarray(RGB),
    "PIL RGBA": PIL.Image.fromarray(np.dstack([RGB, np.full((20, 12), 7, np.uint8)])),
    "numpy (H, W, 3)": RGB,
    "numpy (H, W, 4)": np.dstack([RGB, np.full((20, 12), 7, np.uint8)]),
    "numpy (3, H, W)": RGB.transpose(2, 0, 1),
    "torch (3, H, W)": torch.from_numpy(RGB).permute(2, 0, 1),
    "torch float64": torch.from_numpy(RGB).permute(2, 0, 1).double() / 255,
    "batch (N, H, W, 3)": RGB[None],
}


@pytest.mark.parametrize("name", RGB_INPUTS)
def test_every_kind_of_rgb_input_gives_the_same_pixels(name):
    values = pixels(rgb_processor(), RGB_INPUTS[name])
    expected = torch.from_numpy(RGB).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)


def test_gray_becomes_rgb_and_one_bit_becomes_black_and_white():
    values = pixels(rgb_processor(), GRAY)
    assert values.shape == (1, 3, 20, 12) and torch.equal(values[:, 0], values[:, 2])
    for one_bit in (PIL.Image.fromarray(GRAY > 127), GRAY > 127, torch.from_numpy(GRAY > 127)):
        values = pixels(gray_processor(), one_bit)
        assert torch.equal(values[0, 0], torch.from_numpy(GRAY > 127).float())


def test_colour_to_gray_is_the_same_for_all_kinds_and_what_a_pipeline_gives():
    image = PIL.Image.fromarray(RGB)
    expected = torch.from_numpy(np.array(image.convert("L")))[None, None] / 255
    for name, given in {"PIL": image, "numpy": RGB, "torch": torch.from_numpy(RGB)}.items():
        assert torch.equal(pixels(gray_processor(), given), expected), name
    torch.testing.assert_close(pixels(gray_processor(), RGB / 255), expected, rtol=0, atol=0.5 / 255 + 1e-6)
    for mode in ("CMYK", "YCbCr", "HSV", "P", "RGBA"):
        converted = image.convert(mode)
        through_pipeline = converted.convert("RGB")
        assert torch.equal(pixels(gray_processor(), converted), pixels(gray_processor(), through_pipeline)), mode


def test_palette_with_transparency_and_exif_orientation():
    palette = PIL.Image.fromarray(GRAY).convert("P")
    palette.info["transparency"] = bytes(range(256))
    assert pixels(gray_processor(), palette).shape == (1, 1, 20, 12)

    turned = PIL.Image.fromarray(GRAY)
    turned.getexif()[0x0112] = 6  # "rotate by 90 degrees to see it upright"
    values = pixels(AutoencoderImageProcessor(size=(12, 20)), turned)
    assert torch.equal(values[0, 0], torch.from_numpy(np.rot90(GRAY, -1).copy()) / 255)


@pytest.mark.parametrize("size", [8, 33, (7, 50), {"height": 64, "width": 3}])
def test_any_size_comes_out_at_the_models_size(size):
    processor = AutoencoderImageProcessor(size=size, num_channels=3)
    height, width = (processor.size.height, processor.size.width)
    values = pixels(processor, [GRAY, RGB, PIL.Image.fromarray(RGB), torch.rand(3, 41, 40)])
    assert values.shape == (4, 3, height, width)
    resized = np.array(PIL.Image.fromarray(RGB).resize((width, height), PIL.Image.Resampling.BILINEAR))
    assert torch.equal(values[2], torch.from_numpy(resized.transpose(2, 0, 1)) / 255)
    assert torch.equal(values[1], values[2])  # arrays and PIL images are resized alike


def test_float_images_are_resized_as_floats_and_stay_in_range():
    steps = np.zeros((1, 16, 16), np.float32)
    steps[:, :, 8:] = 1
    for resample in range(6):
        pixels(AutoencoderImageProcessor(size=40, resample=resample), steps)  # bicubic and Lanczos overshoot
    fine = np.linspace(0.5, 0.501, 256, dtype=np.float32).reshape(1, 16, 16)
    assert len(np.unique(pixels(AutoencoderImageProcessor(size=15), fine))) > 100  # not rounded to 8 bits on the way


def test_resample_is_configurable_and_the_right_size_is_not_touched():
    nearest = pixels(AutoencoderImageProcessor(size=40, resample=0), GRAY)
    assert set(np.unique(np.rint(nearest * 255))) <= set(np.unique(GRAY))
    assert not torch.equal(nearest, pixels(AutoencoderImageProcessor(size=40), GRAY))
    assert torch.equal(pixels(gray_processor(), GRAY, resample=0, size=40), nearest)
    assert pixels(gray_processor(do_resize=False, size=5), GRAY).shape == (1, 1, 20, 12)


def test_other_channel_counts_are_taken_as_they_are():
    processor = AutoencoderImageProcessor(size=10, num_channels=5)
    assert pixels(processor, np.random.rand(5, 20, 20)).shape == (1, 5, 10, 10)
    with pytest.raises(ValueError, match="C = 5.*shape \\(20, 12, 3\\)"):
        processor(RGB)


def test_post_process_gives_the_same_8_bit_images_back():
    images = np.random.default_rng(2).integers(0, 256, (4, 20, 12, 3), dtype=np.uint8)
    images[0].flat[:256] = np.arange(256)
    processor = rgb_processor()
    values = pixels(processor, images)
    assert (processor.post_process(values, output_type="np") == images).all()
    back = processor.post_process(values)
    assert all(
        image.mode == "RGB" and (np.asarray(image) == array).all() for image, array in zip(back, images, strict=True)
    )
    tensor = processor.post_process(SimpleNamespace(reconstruction=values), output_type="pt")
    assert tensor.dtype == torch.uint8 and torch.equal(tensor, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert torch.equal(pixels(processor, back), values)

    gray = gray_processor()
    (image,) = gray.post_process(pixels(gray, GRAY)[0].numpy())
    assert image.mode == "L" and (np.asarray(image) == GRAY).all()


def test_post_process_clips_and_takes_half_precision():
    values = torch.tensor([[-0.3, 0.0, 0.5, 1.0, 1.7]]).view(1, 1, 1, 5)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        got = gray_processor().post_process(values.to(dtype).requires_grad_(), output_type="np")
        assert got.ravel().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    "given, kind, message",
    [
        (torch.full((1, 1, 2, 2), float("nan")), ValueError, "NaN or infinite"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), TypeError, "float pixel values.*torch.uint8"),
        (torch.zeros(2, 2), ValueError, r"\(batch_size, C, H, W\).*\(2, 2\)"),
        (SimpleNamespace(reconstruction=None), TypeError, "model output with a `reconstruction`"),
        (torch.zeros(1, 2, 4, 4), ValueError, "1, 3 or 4 channels, got 2"),
    ],
)
def test_post_process_refuses(given, kind, message):
    with pytest.raises(kind, match=message):
        gray_processor().post_process(given)


def test_post_process_refuses_unknown_output_type():
    with pytest.raises(ValueError, match="'pil', 'np' or 'pt', got 'jpg'"):
        gray_processor().post_process(torch.zeros(1, 1, 2, 2), output_type="jpg")


NOT_AN_IMAGE = object()


@pytest.mark.parametrize(
    "given, kind, message",
    [
        (np.full((8, 8), np.nan), ValueError, "NaN or infinite.*floats in \\[0, 1\\]"),
        (np.full((8, 8), np.inf), ValueError, "NaN or infinite"),
        (np.full((8, 8), 255.0), ValueError, r"must be in \[0, 1\], got values from 255 to 255.*uint8"),
        (np.full((8, 8), -0.1), ValueError, r"must be in \[0, 1\], got values from -0.1"),
        (torch.full((1, 8, 8), 1.5), ValueError, r"must be in \[0, 1\], got values from 1.5"),
        (np.full((8, 8), 256), ValueError, "0..255, got values from 256.*uint16"),
        (np.full((8, 8), -1, np.int8), ValueError, "0..255, got values from -1"),
        (np.zeros((8, 8), complex), TypeError, "bools, integers or floats, got dtype complex128"),
        (np.zeros((0, 8), np.uint8), ValueError, r"empty.*\(0, 8\)"),
        (np.zeros((0, 3, 8, 8), np.uint8), ValueError, r"empty batch.*\(0, 3, 8, 8\)"),
        (PIL.Image.new("L", (0, 5)), ValueError, "empty: 0x5 pixels"),
        (np.zeros((8, 8, 2), np.uint8), ValueError, r"C = 1, 3 or 4, got no axis.*\(8, 8, 2\)"),
        (np.zeros((16, 8, 8), np.uint8), ValueError, r"Wrong number of channels.*\(16, 8, 8\).*\(N, 1, H, W\)"),
        (np.zeros((3, 20, 3), np.uint8), ValueError, "input_data_format='channels_first' or 'channels_last'"),
        (np.zeros(8, np.uint8), ValueError, r"\(H, W\), \(H, W, C\) or \(C, H, W\), got shape \(8,\)"),
        (np.zeros((1, 1, 1, 8, 8), np.uint8), ValueError, r"got shape \(1, 1, 1, 8, 8\)"),
        (PIL.Image.new("I", (8, 8)), ValueError, "mode 'I'.*no fixed range"),
        (PIL.Image.fromarray(np.full((8, 8), 7, np.float32)), ValueError, r"must be in \[0, 1\], got values from 7"),
        ([], ValueError, "empty list"),
        (None, TypeError, "Expected a PIL image.*got NoneType"),
        (NOT_AN_IMAGE, TypeError, "Expected a PIL image.*got object"),
        ([1, 2], TypeError, "got int"),
    ],
)
def test_bad_images_are_refused_by_name(given, kind, message):
    with pytest.raises(kind, match=message):
        gray_processor()(given, return_tensors="pt")


def test_input_data_format_settles_ambiguous_shapes():
    array = np.random.default_rng(3).integers(0, 256, (3, 20, 3), dtype=np.uint8)
    processor = AutoencoderImageProcessor(size=(20, 3), num_channels=3)
    first = pixels(processor, array, input_data_format="channels_first")
    assert torch.equal(first, torch.from_numpy(array)[None] / 255)
    last = AutoencoderImageProcessor(size=(3, 20), num_channels=3, input_data_format="channels_last")
    assert torch.equal(pixels(last, array), torch.from_numpy(array).permute(2, 0, 1)[None] / 255)


def test_files_are_read_and_unreadable_ones_named(tmp_path):
    PIL.Image.fromarray(GRAY).save(tmp_path / "good.png")
    expected = torch.from_numpy(GRAY)[None, None] / 255
    assert torch.equal(pixels(gray_processor(), str(tmp_path / "good.png")), expected)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="text.png cannot be read as an image"):
        gray_processor()(str(tmp_path / "text.png"))
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "short.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="short.png cannot be decoded"):
        gray_processor()(PIL.Image.open(tmp_path / "short.png"))
    with pytest.raises(ValueError, match="missing.png"):
        gray_processor()(str(tmp_path / "missing.png"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 0}, "size must be a positive int"),
        ({"size": {"shortest_edge": 3}}, "size must be a positive int.*shortest_edge"),
        ({"size": (1, 2, 3)}, "size must be a positive int"),
        ({"num_channels": 0}, "num_channels must be a positive int.*got 0"),
        ({"num_channels": "3"}, "num_channels must be a positive int"),
        ({"resample": 9}, "resample must be one of.*got 9"),
        ({"do_rescale": False}, "no option do_rescale.*always in \\[0, 1\\]"),
        ({"do_normalize": True}, "no option do_normalize"),
        ({"num_channel": 3}, "no option num_channel.*num_channels"),
        ({"input_data_format": "hwc"}, "hwc"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AutoencoderImageProcessor(**options)


def test_unknown_call_options_are_refused():
    with pytest.raises(TypeError, match="do_normalize"):
        gray_processor()(GRAY, do_normalize=True)


def test_images_of_different_sizes_do_not_stack():
    with pytest.raises(ValueError, match="different sizes"):
        gray_processor(do_resize=False)([GRAY, GRAY[:5]], return_tensors="pt")


@pytest.mark.parametrize("image_size, num_channels", [(28, 1), ((9, 14), 3)])
def test_for_model(image_size, num_channels):
    config = SimpleNamespace(image_size=image_size, num_channels=num_channels)
    processor = AutoencoderImageProcessor.for_model(config, resample=3)
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    assert pixels(processor, RGB).shape == (1, num_channels, *size) and processor.resample == 3


def test_save_and_load_by_class_and_by_remote_code(tmp_path, monkeypatch):
    from transformers import AutoImageProcessor
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    processor = rgb_processor(resample=3)
    processor.save_pretrained(tmp_path)
    assert AutoencoderImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    file = tmp_path / "preprocessor_config.json"
    saved = json.loads(file.read_text())
    assert saved["size"] == {"height": 20, "width": 12} and saved["num_channels"] == 3
    saved["auto_map"] = {"AutoImageProcessor": "image_processing_autoencoder.AutoencoderImageProcessor"}
    saved["a_key_of_a_later_version"] = 1
    file.write_text(json.dumps(saved))
    shutil.copy(image_processing_autoencoder.__file__, tmp_path)
    travelled = get_class_from_dynamic_module(saved["auto_map"]["AutoImageProcessor"], tmp_path)
    assert travelled is not AutoencoderImageProcessor
    for loaded in (
        travelled.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        assert torch.equal(pixels(loaded, RGB[:9]), pixels(processor, RGB[:9]))


def test_to_uint8_agrees_with_pixel_values():
    for processor in (gray_processor(size=(11, 9)), rgb_processor(size=(30, 9))):
        for image in (GRAY, RGB, PIL.Image.fromarray(RGB), PIL.Image.fromarray(GRAY > 100)):
            array = processor.to_uint8(image)
            assert array.dtype == np.uint8 and array.flags.c_contiguous
            assert torch.equal(torch.tensor(array)[None].float() / 255, pixels(processor, image))
    assert (gray_processor().to_uint8(GRAY.astype(np.float32) / 255)[0] == GRAY).all()
    assert (gray_processor().to_uint8(GRAY.astype(np.uint16) * 257)[0] == GRAY).all()
