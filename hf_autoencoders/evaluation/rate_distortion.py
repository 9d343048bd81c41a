"""How many bytes for how good an image? A learned codec beside JPEG and WebP.

All codecs are measured alike: an 8-bit image goes in, bytes come out, and from the bytes alone an 8-bit image. Rates
are of whole files, headers included. A point of a curve is one setting (a quality) over all images: the mean of their
bits per pixel, and the mean of their PSNRs, in decibels, each of the error over all pixels and channels.

JPEG and WebP are those of Pillow, with its defaults: JPEG with chroma halved in both directions (4:2:0) and fixed
Huffman tables, WebP lossy with method 4. Beside them stand JPEG with Huffman tables made for each image
(`jpeg_optimized`) and the same with chroma in full (`jpeg_444`).
"""

import datetime
import io
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from .evaluate import describe_machine, library_versions
from .reconstruction import has_torchmetrics

PILLOW_CODECS = {  # name -> Pillow's format and options
    "jpeg": ("JPEG", {}),
    "jpeg_optimized": ("JPEG", {"optimize": True}),
    "jpeg_444": ("JPEG", {"optimize": True, "subsampling": 0}),
    "webp": ("WEBP", {}),
}
PILLOW_QUALITIES = (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95)
MS_SSIM_SIDE = 176  # pixels from which five scales of windows of 11 fit


class Codec(NamedTuple):
    """A way from one image `(channels, height, width)` uint8 to bytes, and back."""

    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes], np.ndarray]


def pillow_codec(name: str, quality: int) -> Codec:
    """JPEG or WebP of Pillow, by a name of `PILLOW_CODECS`; grey images or RGB."""
    file_format, options = PILLOW_CODECS[name]

    def encode(image: np.ndarray) -> bytes:
        file = io.BytesIO()
        array = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        PIL.Image.fromarray(array).save(file, file_format, quality=quality, **options)
        return file.getvalue()

    def decode(data: bytes) -> np.ndarray:
        image = PIL.Image.open(io.BytesIO(data))
        array = np.asarray(image)
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))

    return Codec(encode, decode)


def model_codec(model, quality: float) -> Codec:
    """A model with `compress` and `decompress` at one quality."""

    def encode(image: np.ndarray) -> bytes:
        return model.compress([torch.from_numpy(image)], quality=quality)[0]

    def decode(data: bytes) -> np.ndarray:
        return model.decompress([data])[0].cpu().numpy()

    return Codec(encode, decode)


@torch.no_grad()
def estimated_rate(model, quality: float, images: Sequence[np.ndarray]) -> float:
    """Bits per pixel that a model expects, without the header of a file: the mean over images uint8 (C, H, W)."""
    pixel_values = (torch.from_numpy(image)[None].to(model.device).float() / 255 for image in images)
    return float(np.mean([model(image, quality=quality).rate.item() for image in pixel_values]))


def measure_codec(codec: Codec, images: Sequence[np.ndarray]) -> dict[str, float]:
    """One point of a rate-distortion curve.

    Args:
        codec: what to measure.
        images: uint8 (channels, height, width) with 1 or 3 channels, of any sizes.

    Returns:
        `bits_per_pixel` and `psnr` (dB), means over images; `ms_ssim` where torchmetrics is installed and all images
        have sides of at least 176 pixels; `encode_seconds_per_megapixel` and `decode_seconds_per_megapixel`, of all
        images together.
    """
    rates, psnrs, similarities, seconds, pixels = [], [], [], [0.0, 0.0], 0
    with_similarity = has_torchmetrics() and min(min(image.shape[1:]) for image in images) >= MS_SSIM_SIDE
    for image in images:
        start = time.perf_counter()
        data = codec.encode(image)
        middle = time.perf_counter()
        decoded = codec.decode(data)
        seconds[0], seconds[1] = seconds[0] + middle - start, seconds[1] + time.perf_counter() - middle
        if len(decoded) == 3 and len(image) == 1:  # WebP has no grey images
            decoded = np.asarray(PIL.Image.fromarray(decoded.transpose(1, 2, 0)).convert("L"))[None]
        if decoded.shape != image.shape:
            raise ValueError(f"an image of shape {image.shape} came back as {decoded.shape}")
        error = np.square(decoded.astype(np.float64) - image).mean() / 255**2
        size = image.shape[1] * image.shape[2]
        rates.append(8 * len(data) / size)
        psnrs.append(-10 * math.log10(max(error, 1e-10)))  # 100 dB where nothing is lost
        pixels += size
        if with_similarity:
            similarities.append(_ms_ssim(image, decoded))
    point = {"bits_per_pixel": float(np.mean(rates)), "psnr": float(np.mean(psnrs))}
    if with_similarity:
        point["ms_ssim"] = float(np.mean(similarities))
    names = ("encode_seconds_per_megapixel", "decode_seconds_per_megapixel")
    return point | {name: 1e6 * value / pixels for name, value in zip(names, seconds, strict=True)}


def _ms_ssim(image: np.ndarray, decoded: np.ndarray) -> float:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    one, other = (torch.from_numpy(array)[None].float() / 255 for array in (image, decoded))
    return multiscale_structural_similarity_index_measure(other, one, data_range=1.0).item()


def bd_rate(
    anchor_rates: Sequence[float], anchor_psnrs: Sequence[float], rates: Sequence[float], psnrs: Sequence[float]
) -> float:
    """By how many percent a codec's rate differs from that of another, the anchor, at equal PSNR; negative is better.

    The logarithm of the rate is interpolated over PSNR by piecewise cubic polynomials that do not overshoot (PCHIP),
    and averaged over the PSNRs that both curves reach (Bjontegaard 2001, VCEG-M33, with PCHIP in place of one
    polynomial).

    Raises:
        ValueError: a curve of fewer than two points, rates that are not positive, PSNRs that do not rise with the rate,
            or curves without a PSNR in common.
    """
    from scipy.interpolate import PchipInterpolator

    curves = []
    for name, curve_rates, curve_psnrs in (("anchor", anchor_rates, anchor_psnrs), ("codec", rates, psnrs)):
        order = np.argsort(curve_rates)
        x, y = np.asarray(curve_psnrs, float)[order], np.asarray(curve_rates, float)[order]
        if len(x) < 2 or len(x) != len(y):
            raise ValueError(f"the curve of the {name} needs at least two points, got {len(y)} rates, {len(x)} PSNRs")
        if not (y[0] > 0 and np.isfinite(x).all() and np.isfinite(y).all() and (np.diff(x) > 0).all()):
            raise ValueError(f"on the curve of the {name} PSNR must rise with the rate, got {x.tolist()}")
        curves.append((x, PchipInterpolator(x, np.log(y))))
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if low >= high:
        raise ValueError(f"the curves have no PSNR in common: one begins at {low:.2f} dB, the other ends at {high:.2f}")
    means = [interpolator.integrate(low, high) / (high - low) for _, interpolator in curves]
    return float(100 * math.expm1(means[1] - means[0]))


def model_qualities(max_quality: int) -> list[float]:
    """Qualities that a model is measured at: every lambda, and halfway between two."""
    return [step / 2 for step in range(2 * max_quality + 1)]


def rate_distortion(
    model,
    images: Sequence[np.ndarray],
    *,
    corpus: dict[str, Any],
    qualities: Sequence[float] | None = None,
    command: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Rate-distortion curves of a model and of JPEG and WebP on the same images.

    Args:
        model: with `compress` and `decompress`, its tables made.
        images: uint8 (channels, height, width), of any sizes.
        corpus: what the images are, for the record.
        qualities: of the model; those of `model_qualities` by default.
        command: how to repeat this.
        progress: show a progress bar.

    Returns:
        A dictionary ready for JSON: `curves` (codec to a list of points, each with its `quality`; those of the model
        with `estimated_bits_per_pixel`, which lack the header of a file), `bd_rate` (percent against each codec of
        Pillow, where it can be had), `not_measured` (name to reason), `corpus`, `command`, `machine`, `threads`,
        `versions`, `date`.
    """
    if not len(images):
        raise ValueError("there are no images to measure on")
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or len(image) not in (1, 3):
            raise ValueError(f"expected uint8 images of 1 or 3 channels, got {image.dtype} {image.shape}")
    qualities = model_qualities(model.config.max_quality) if qualities is None else list(qualities)
    codecs = [("model", quality, model_codec(model, quality)) for quality in qualities]
    codecs += [(name, quality, pillow_codec(name, quality)) for name in PILLOW_CODECS for quality in PILLOW_QUALITIES]
    codecs[0][2].encode(images[0])  # what is done once is not timed
    curves: dict[str, list[dict[str, float]]] = {}
    for name, quality, codec in tqdm(codecs, desc="measure", disable=not progress):
        estimate = {"estimated_bits_per_pixel": estimated_rate(model, quality, images)} if name == "model" else {}
        curves.setdefault(name, []).append({"quality": quality, **measure_codec(codec, images), **estimate})
    differences, not_measured = {}, {}
    for name in PILLOW_CODECS:
        try:
            differences[name] = bd_rate(*_columns(curves[name]), *_columns(curves["model"]))
        except ValueError as error:
            not_measured[f"bd_rate_{name}"] = str(error)
    return {
        "curves": curves,
        "bd_rate": differences,
        "not_measured": not_measured,
        "corpus": {**corpus, "rows": len(images)},
        "command": command,
        "machine": describe_machine(model.device),
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _columns(curve: list[dict[str, float]]) -> tuple[list[float], list[float]]:
    """Rates and PSNRs of the points that a BD-rate can use: those whose PSNR is above that of all lower rates."""
    kept: list[dict[str, float]] = []
    for point in sorted(curve, key=lambda point: point["bits_per_pixel"]):
        if not kept or point["psnr"] > kept[-1]["psnr"]:
            kept.append(point)
    return [point["bits_per_pixel"] for point in kept], [point["psnr"] for point in kept]


def draw_curves(result: dict[str, Any], path: str | Path, title: str | None = None) -> Path:
    """A plot of PSNR over bits per pixel of every codec in what `rate_distortion` returned, as a PNG. Returns the path.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing rate-distortion curves needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(6.4, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    styles = {
        "model": ("this codec", "o-", "#b5261e"),
        "webp": ("WebP", "s--", "#1f6f8b"),
        "jpeg": ("JPEG", "^--", "#444444"),
        "jpeg_optimized": ("JPEG, optimised tables", "v:", "#888888"),
    }
    limit = 1.25 * max(point["bits_per_pixel"] for point in result["curves"]["model"])
    for name, (label, style, color) in styles.items():
        points = sorted(result["curves"].get(name, []), key=lambda point: point["bits_per_pixel"])
        points = [point for point in points if point["bits_per_pixel"] <= limit]
        if name in result["bd_rate"]:
            label += f" (this codec: {result['bd_rate'][name]:+.0f}% bits)"
        columns = ([point[key] for point in points] for key in ("bits_per_pixel", "psnr"))
        axes.plot(*columns, style, color=color, label=label, markersize=4, linewidth=1.6)
    axes.set(xlabel="bits per pixel, whole files", ylabel="PSNR, dB", xlim=(0, limit))
    if title:
        axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
