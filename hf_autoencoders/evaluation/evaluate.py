"""Ask a model every question it can answer, and write the answers as `metrics.json`.

What is measured depends on what a model offers, never on its name:

    every model                                   reconstruction: mse, psnr, ssim
    encode(...).log_variance and                  likelihood: nll, elbo, kl (nats per image), bits_per_dimension,
      reconstruction_log_likelihood(...)          active_units
    decode_codes(...)                             codes: usage and perplexity, on both splits; PCA of equal bits
    a vector no longer than an image              PCA of the same size
    labels, and latents no larger than an image   a linear probe on the latents, beside the same on PCA and raw pixels
    encode(...).mean, a vector, and two factors   measures of disentanglement, beside the same on PCA and ICA
    encode(...).probabilities of categories, and  clusters (of the first variable) beside k-means on the pixels
      labels, which serve to measure only
    encode(...).probabilities of bits             entropy of the bits
    compress and decompress                       bits per pixel and PSNR at each quality, of real bytes; bits against
                                                  JPEG and WebP at equal PSNR

Factors are columns of `extra` as in `factors.corpus_factors`, those that both splits have and of which 10 rows have
another than the commonest value. Where there are no two of them disentanglement is not measured, and where there are no
other columns either nothing is said of it.

The probes, and the quantisers of the PCA of equal bits, read at most `MAX_VALUES` numbers; of a corpus with more they
get rows drawn by the seed, the same for every representation, and `settings` says how many.

What could not be measured is listed with its reason under `not_measured`, so that a missing number is never a riddle.
"""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from .. import __version__
from ..data.images import to_pixel_values
from .baselines import MAX_PCA_DIMS, PCA, fit_pca, fit_quantized_pca, pca_reconstruction_mse
from .checks import check_positive, check_uint8_images
from .clustering import clustering_metrics, kmeans_clusters
from .codes import CodeUsage, bit_entropies
from .disentanglement import disentanglement_metrics, ica_codes, mutual_information_gap, pca_codes
from .factors import corpus_factors, why_no_factor
from .likelihood import (
    ActiveUnits,
    binarize_images,
    bits_per_dimension,
    dequantize_images,
    importance_sampled_log_likelihood,
)
from .probe import linear_probe
from .reconstruction import ReconstructionMeter, why_no_ssim

DEFAULT_BATCH_SIZE = 500
DEFAULT_IMPORTANCE_SAMPLES = 200
# Rows times numbers of a row that are held in memory at once, in float32 and a few copies of it (0.6 GB each): for the
# linear probes and for the quantisers of the PCA of equal bits. MNIST and CIFAR-10 are below it.
MAX_VALUES = 150_000_000
MAX_COMPRESSED = 100  # images that are compressed to bytes
MAX_ROWS = 10_000  # that disentanglement is measured on, and that ICA and k-means are fitted on
MIN_ROWS, MIN_ROWS_OF_OTHERS = 30, 10  # for disentanglement: in all, and of other values than a factor's commonest

LIKELIHOOD_IMAGES = {
    "bernoulli": "drawn as binary images from the grey levels",
    "gaussian": "8-bit levels with uniform noise added (dequantised)",
    "discretized_logistic": "8-bit levels as they are",
}


def evaluate_model(
    model,
    train,
    validation,
    *,
    corpus: dict[str, Any],
    num_importance_samples: int = DEFAULT_IMPORTANCE_SAMPLES,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    command: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a trained model on the rows of `validation`; `train` serves baselines, probe and training code usage.

    Args:
        model: an image auto-encoder of this package; evaluated where it is, in its dtype, in evaluation mode.
        train, validation: `ImageArrays` (`.images` uint8 (rows, channels, height, width), maybe memory-mapped;
            `.labels` int64 (rows,) or None; `.extra` columns by name), made with the processor of the model.
        corpus: what the numbers were measured on, at least `{"name": ..., "split": ...}`; rows are added.
        num_importance_samples: k of the importance-sampled likelihood.
        batch_size: images at once; no result depends on it beyond rounding.
        seed: of the noise in the likelihood.
        command: how to repeat this; the command line of this process by default.
        progress: show progress bars.

    Returns:
        A dictionary ready for JSON: `model_type`, `name`, `corpus`, `metrics` and `baselines` (flat, numbers only),
        `not_measured` (name to reason), `settings`, `seed`, `command`, `machine`, `versions`, `date` (UTC).
    """
    for name, arrays in (("train.images", train.images), ("validation.images", validation.images)):
        check_uint8_images(name, arrays)
    if missing := {"name", "split"} - set(corpus):
        raise ValueError(f"`corpus` must name what was measured, it lacks {sorted(missing)}")
    check_positive("num_importance_samples", num_importance_samples)
    check_positive("batch_size", batch_size)

    config = model.config
    not_measured: dict[str, str] = {}
    settings: dict[str, Any] = {"batch_size": batch_size, "dtype": str(model.dtype).removeprefix("torch.")}
    baselines: dict[str, float] = {}
    was_training = model.training
    model.eval()
    try:
        metrics = reconstruction_metrics(model, validation.images, batch_size=batch_size, progress=progress)
        if not math.isfinite(metrics["psnr"]):
            del metrics["psnr"]
            not_measured["psnr"] = "infinite: every reconstruction is exact"
        if reason := why_no_ssim(validation.images.shape[2:]):
            not_measured["ssim"] = reason

        if hasattr(model, "reconstruction_log_likelihood"):
            metrics |= likelihood_metrics(
                model,
                validation.images,
                num_importance_samples,
                batch_size=batch_size,
                seed=seed,
                progress=progress,
            )
            settings["num_importance_samples"] = num_importance_samples
            settings["likelihood_images"] = LIKELIHOOD_IMAGES[config.likelihood]

        if hasattr(model, "update_tables"):  # an image codec
            metrics |= _compression_metrics(model, validation.images, seed, not_measured, settings)

        has_codes = hasattr(model, "decode_codes")
        latent_size, image_size = math.prod(config.latent_shape), math.prod(validation.images.shape[1:])
        compact = latent_size <= image_size
        with torch.inference_mode():
            parts_of_code = model.encode(next(pixel_value_batches(model, validation.images[:1], 1)))
        mean, probabilities = (getattr(parts_of_code, name, None) for name in ("mean", "probabilities"))
        reason = f"the {latent_size} latents outnumber the {image_size} numbers of an image"
        no_probe = reason if not compact else _why_no_probe(train.labels, validation.labels)
        if no_probe:
            not_measured["linear_probe"] = no_probe
        num_bits = getattr(config, "bits_per_input", None)
        if has_codes and num_bits is None:
            not_measured["pca_same_size"] = not_measured["pca_equal_bits"] = (
                "the code is part discrete, part continuous: no PCA is of its size"
            )
        elif has_codes:
            not_measured["pca_same_size"] = "a discrete code is compared with PCA of equal bits"
        elif not compact:
            not_measured["pca_same_size"] = reason
        if has_codes:
            for name, images in (("", validation.images), ("train_", train.images)):
                label = f"encode {name or 'validation'}".rstrip("_") if progress else None
                codes = encode_images(model, images, batch_size=batch_size, keep_latents=False, progress=label).codes
                metrics |= {f"{name}{k}": v for k, v in code_metrics(codes, config.num_codes).items()}
                if name == "" and probabilities is not None and probabilities.ndim == 2:
                    entropies = bit_entropies(codes)
                    metrics |= {"bit_entropy_mean": entropies.mean(), "bit_entropy_min": entropies.min()}
                if name == "" and probabilities is not None and probabilities.ndim == 3:
                    measured = _cluster_metrics(
                        codes[:, 0], probabilities.shape[2], train.images, validation, seed, not_measured
                    )
                    metrics, baselines = metrics | measured[0], baselines | measured[1]
            if num_bits is not None:
                metrics["bits_per_image"] = float(num_bits)

        pca = None
        if image_size > MAX_PCA_DIMS:
            not_measured["pca"] = f"images of {image_size} dimensions are beyond the exact PCA of {MAX_PCA_DIMS}"
        elif num_bits is not None or (compact and not has_codes):
            pca = fit_pca(train.images)
        same_size = pca is not None and compact and not has_codes
        if same_size:
            baselines["pca_same_size_components"] = latent_size
            baselines["pca_same_size_mse"] = pca_reconstruction_mse(pca, validation.images, latent_size)
        if pca is not None and has_codes:
            values_of_a_row = min(len(pca.components), math.ceil(num_bits))
            rows = _drawn_rows(np.arange(len(train.images)), values_of_a_row, seed)
            if len(rows) < len(train.images):
                settings["pca_equal_bits_train_rows"] = len(rows)
            images = train.images if len(rows) == len(train.images) else train.images[rows]
            quantized = fit_quantized_pca(pca, images, num_bits)
            baselines["pca_equal_bits"] = quantized.bits
            baselines["pca_equal_bits_mse"] = quantized.mse(validation.images)

        if mean is not None and mean.ndim == 2:
            factors = _shared_factors(train, validation, seed, not_measured)
            if len(factors.names) > 1:
                measured = _disentanglement(
                    model, factors, train.images, validation.images, pca, seed, batch_size, not_measured
                )
                metrics, baselines = metrics | measured[0], baselines | measured[1]
                settings["disentanglement_rows"] = len(factors.rows)

        if not no_probe:
            parts = {}
            for split, arrays in (("train", train), ("validation", validation)):
                labelled = np.flatnonzero(np.asarray(arrays.labels) >= 0)
                rows = _drawn_rows(labelled, image_size, seed)
                if len(rows) < len(labelled):
                    settings[f"linear_probe_{split}_rows"] = len(rows)
                parts[split] = (arrays.images[rows], np.asarray(arrays.labels)[rows])

            def latents(split: str) -> np.ndarray:
                label = f"encode {split}" if progress else None
                return encode_images(model, parts[split][0], batch_size=batch_size, progress=label).latents

            represent = {"latents": latents, "raw_pixels": lambda split: parts[split][0]}
            if same_size:
                represent["pca_same_size"] = lambda split: pca.encode(parts[split][0], latent_size)
            for name in tqdm(represent, desc="linear probe", disable=not progress):
                result = linear_probe(
                    represent[name]("train"), parts["train"][1], represent[name]("validation"), parts["validation"][1]
                )
                (metrics if name == "latents" else baselines)[
                    "linear_probe_accuracy" if name == "latents" else f"{name}_linear_probe_accuracy"
                ] = result.accuracy
                if not result.converged:
                    settings[f"{name}_probe_iteration_limit_reached"] = result.num_iterations
    finally:
        model.train(was_training)

    return {
        "model_type": config.model_type,
        "name": variant_name(config.model_type),
        "corpus": {**corpus, "rows": len(validation.images), "train_rows": len(train.images)},
        "metrics": {name: float(value) for name, value in metrics.items()},
        "baselines": {name: float(value) for name, value in baselines.items()},
        "not_measured": not_measured,
        "settings": settings,
        "seed": seed,
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": describe_machine(model.device),
        "versions": library_versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def write_metrics(path: str | os.PathLike, result: dict[str, Any]) -> Path:
    """Write what `evaluate_model` returned as JSON, whole or not at all; refuses NaN and infinity. Returns the path."""
    path = Path(path)
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# One question each


@torch.inference_mode()
def reconstruction_metrics(
    model, images: np.ndarray, *, batch_size: int = DEFAULT_BATCH_SIZE, progress: bool = False
) -> dict[str, float]:
    """`mse`, `psnr` and, where it can be had, `ssim` of a model over uint8 images (rows, channels, height, width)."""
    meter = ReconstructionMeter()
    for pixel_values in pixel_value_batches(model, images, batch_size, "reconstruct" if progress else None):
        meter.update(pixel_values, model(pixel_values, return_loss=False).reconstruction)
    return meter.compute()


@torch.inference_mode()
def likelihood_metrics(
    model,
    images: np.ndarray,
    num_importance_samples: int = DEFAULT_IMPORTANCE_SAMPLES,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    max_decoder_rows: int = 8192,
    progress: bool = False,
) -> dict[str, float]:
    """Importance-sampled likelihood of a VAE over uint8 images (rows, channels, height, width).

    The images are made into what the likelihood is a distribution of: a Bernoulli gets binary images drawn from the
    grey levels, a Gaussian density gets dequantised ones, the discretised logistic the 8-bit levels themselves.

    Returns:
        `nll`: -log p(x), importance-sampled; `elbo`; `kl`: nats per image. `bits_per_dimension`: of `nll`, per binary
        pixel (Bernoulli) or per 8-bit level; a Gaussian's by the 256-level convention. `active_units`: latents whose
        posterior mean varies by more than 0.01 over the images.
    """
    likelihood = model.config.likelihood
    if likelihood not in LIKELIHOOD_IMAGES:
        raise ValueError(f"no rule for likelihood {likelihood!r}, there is one for {', '.join(LIKELIHOOD_IMAGES)}")
    image_noise, latent_noise = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    units = ActiveUnits()
    sums = {"log_likelihood": 0.0, "elbo": 0.0, "kl": 0.0}
    for pixel_values in pixel_value_batches(model, images, batch_size, "likelihood" if progress else None):
        if likelihood == "bernoulli":
            pixel_values = binarize_images(pixel_values, generator=image_noise)
        elif likelihood == "gaussian":
            pixel_values = dequantize_images(pixel_values, generator=image_noise)
        estimate = importance_sampled_log_likelihood(
            model, pixel_values, num_importance_samples, generator=latent_noise, max_decoder_rows=max_decoder_rows
        )
        units.update(model.encode(pixel_values).mean)
        for name in sums:
            sums[name] += getattr(estimate, name).sum().item()
    means = {name: total / len(images) for name, total in sums.items()}
    if not math.isfinite(means["log_likelihood"]):
        raise ValueError(f"the mean log-likelihood is {means['log_likelihood']}: the model's weights are not usable")
    return {
        "nll": -means["log_likelihood"],
        "elbo": means["elbo"],
        "kl": means["kl"],
        "bits_per_dimension": bits_per_dimension(
            means["log_likelihood"], math.prod(images.shape[1:]), density=likelihood == "gaussian"
        ),
        "active_units": units.compute(),
    }


def code_metrics(codes: np.ndarray, codebook_size: int) -> dict[str, float]:
    """Usage and perplexity of codes (rows, num_codebooks, ...) over a whole split.

    Returns:
        `code_usage` and `code_perplexity`, means over the codebooks; where there are several, also
        `code_usage_0`, `code_perplexity_0` and so on.
    """
    counter = CodeUsage(codebook_size, codes.shape[1])
    for first in range(0, len(codes), 65536):
        counter.update(torch.from_numpy(codes[first : first + 65536].astype(np.int64)))
    result = {}
    for name, values in (("code_usage", counter.usage()), ("code_perplexity", counter.perplexity())):
        result[name] = values.mean().item()
        if len(values) > 1:
            result |= {f"{name}_{index}": value for index, value in enumerate(values.tolist())}
    return result


def _compression_metrics(
    model, images: np.ndarray, seed: int, not_measured: dict[str, str], settings: dict[str, Any]
) -> dict[str, float]:
    """Real bytes of at most `MAX_COMPRESSED` images at each quality, and what they save against JPEG and WebP."""
    from .rate_distortion import rate_distortion

    if len(images) > MAX_COMPRESSED:
        rows = np.random.default_rng(seed).choice(len(images), MAX_COMPRESSED, replace=False)
        images, settings["compressed_rows"] = images[np.sort(rows)], MAX_COMPRESSED
    try:
        result = rate_distortion(model, list(images), corpus={})
    except (ValueError, ImportError) as error:  # no tables, other channels than 1 or 3; or a library is missing
        not_measured["compression"] = str(error)
        return {}
    not_measured |= result["not_measured"]
    metrics, curve = {}, result["curves"]["model"]
    for point in curve:
        if float(point["quality"]).is_integer():
            metrics[f"bits_per_pixel_{point['quality']:g}"] = point["bits_per_pixel"]
            metrics[f"compressed_psnr_{point['quality']:g}"] = point["psnr"]
    for name in ("encode_seconds_per_megapixel", "decode_seconds_per_megapixel"):
        metrics[name] = curve[len(curve) // 2][name]
    return metrics | {f"bd_rate_{name}": value for name, value in result["bd_rate"].items()}


def _cluster_metrics(
    clusters: np.ndarray,
    num_clusters: int,
    train_images: np.ndarray,
    validation,
    seed: int,
    not_measured: dict[str, str],
) -> tuple[dict[str, float], dict[str, float]]:
    """Agreement of the clusters (rows,) of the validation images with their labels, and that of k-means on pixels."""
    if validation.labels is None:
        not_measured["clusters"] = "the corpus has no labels"
        return {}, {}
    labels = np.asarray(validation.labels)
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        not_measured["clusters"] = "no validation row has a label"
        return {}, {}
    metrics, baselines = _named_clusters(clusters[rows], labels[rows]), {}
    if len(train_images) < num_clusters:
        not_measured["kmeans"] = f"{len(train_images)} training images make no {num_clusters} clusters"
    else:
        images = validation.images if len(rows) == len(labels) else validation.images[rows]
        drawn = train_images[_some_rows(np.arange(len(train_images)), seed)]
        found = kmeans_clusters(images, num_clusters, train_images=drawn, seed=seed)
        baselines = {f"kmeans_{name}": value for name, value in _named_clusters(found, labels[rows]).items()}
        del baselines["kmeans_num_clusters_used"]  # all of them
    return metrics, baselines


def _named_clusters(clusters: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`clustering_metrics` under the names that they have in `metrics.json`."""
    measured = clustering_metrics(clusters, labels)
    return {
        "cluster_accuracy": measured["accuracy"],
        "cluster_nmi": measured["normalized_mutual_information"],
        "cluster_ari": measured["adjusted_rand_index"],
        "class_purity": measured["purity"],
        "num_clusters_used": measured["num_clusters"],
    }


class _Factors(NamedTuple):
    """What is known of validation images in both splits."""

    rows: np.ndarray  # (num_rows,), of the split, in order
    names: list[str]
    values: np.ndarray  # (num_rows, num_factors) int64


def _shared_factors(train, validation, seed: int, not_measured: dict[str, str]) -> _Factors:
    """The factors that both splits have a column of, for at most `MAX_ROWS` validation rows that have them all.

    Columns that are no factors, or too rare to be measured, are told, and that less than two are left by that.
    """
    nothing = _Factors(np.empty(0, np.int64), [], np.empty((0, 0), np.int64))
    left_out = {name: why_no_factor(np.asarray(column)) for name, column in validation.extra.items()}
    left_out |= {name: "the training split has no such column" for name in left_out if name not in train.extra}
    rows, columns = nothing.rows, {}
    if names := [name for name in left_out if not left_out[name]]:
        try:
            rows, factors, _ = corpus_factors(validation, names)
        except ValueError as error:  # no row has them all
            factors, not_measured["disentanglement"] = [], str(error)
        chosen = _some_rows(np.arange(len(rows)), seed)
        rows = rows[chosen]
        columns = {factor.name: factor.values[chosen] for factor in factors}
        for name, column in columns.items() if len(rows) >= MIN_ROWS else ():
            counts = np.bincount(column)
            others = max(int(counts[counts > 1].sum() - counts.max()), 0)
            if others < MIN_ROWS_OF_OTHERS:
                told = f"{others} of {len(rows)} rows share a value other than its commonest"
                left_out[name] = f"{told}, it needs {MIN_ROWS_OF_OTHERS}"
    not_measured |= {f"mig_{name}": reason for name, reason in left_out.items() if reason}
    columns = {name: column for name, column in columns.items() if not left_out[name]}
    if len(columns) < 2 and any(left_out.values()):
        not_measured.setdefault("disentanglement", f"it compares factors, and there is {'one' if columns else 'none'}")
    if not columns:
        return nothing
    return _Factors(rows, list(columns), np.stack(list(columns.values()), axis=1))


def _disentanglement(
    model,
    factors: _Factors,
    train_images: np.ndarray,
    images: np.ndarray,
    pca: PCA | None,
    seed: int,
    batch_size: int,
    not_measured: dict[str, str],
) -> tuple[dict[str, float], dict[str, float]]:
    """Measures of disentanglement of the posterior means, with the gap of each factor, and those of PCA and ICA.

    Args:
        pca: of all training images, if it was fitted already.
    """
    shown = images if len(factors.rows) == len(images) else images[factors.rows]
    means = encode_means(model, shown, batch_size=batch_size)
    size = means.shape[1]
    if size < 2:
        not_measured["disentanglement"] = "it compares dimensions, and there is one"
    elif len(means) < MIN_ROWS:
        not_measured["disentanglement"] = f"{len(means)} validation rows have all factors, it needs {MIN_ROWS}"
    if "disentanglement" in not_measured:
        return {}, {}
    metrics = disentanglement_metrics(means, factors.values, seed=seed)
    gaps = mutual_information_gap(means, factors.values).gaps
    metrics |= {f"mig_{name}": gap for name, gap in zip(factors.names, gaps, strict=True)}

    image_size = math.prod(images.shape[1:])
    if image_size > MAX_PCA_DIMS or size > image_size:
        not_measured["disentanglement_of_pca_and_ica"] = not_measured.get(
            "pca", f"images of {image_size} dimensions have no {size} principal components"
        )
        return metrics, {}
    drawn = train_images[_some_rows(np.arange(len(train_images)), seed)]
    if pca is None:
        pca = fit_pca(drawn, size)
    baselines = {}
    codes = {"pca": pca_codes(drawn, shown, size, pca=pca), "ica": ica_codes(drawn, shown, size, pca=pca, seed=seed)}
    for name, values in codes.items():
        measured = disentanglement_metrics(values, factors.values, seed=seed)
        del measured["num_active_dims"]  # of codes whose variance is 1 by construction
        baselines |= {f"{name}_{key}": value for key, value in measured.items()}
    return metrics, baselines


def _some_rows(rows: np.ndarray, seed: int) -> np.ndarray:
    """`rows`, or `MAX_ROWS` of them, drawn by `seed` and in order."""
    if len(rows) <= MAX_ROWS:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, size=MAX_ROWS, replace=False))


class EncodedImages(NamedTuple):
    """The codes of a split."""

    latents: np.ndarray | None
    """(rows, *latent_shape) float32; None where they were not kept"""
    codes: np.ndarray | None
    """(rows, num_codebooks, ...) int32; None for models without a discrete code"""


@torch.inference_mode()
def encode_images(
    model,
    images: np.ndarray,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    keep_latents: bool = True,
    progress: str | None = None,
) -> EncodedImages:
    """Encode uint8 images (rows, channels, height, width) in batches.

    Args:
        keep_latents: False returns the codes alone, which take far less memory than the latents they stand for.
        progress: label of the progress bar; none by default.
    """
    latents: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    for pixel_values in pixel_value_batches(model, images, batch_size, progress):
        output = model.encode(pixel_values)
        if keep_latents:
            latents.append(output.latents.float().cpu().numpy())
        if getattr(output, "codes", None) is not None:
            codes.append(output.codes.cpu().numpy().astype(np.int32))
    return EncodedImages(
        np.concatenate(latents) if latents else None,
        np.concatenate(codes) if codes else None,
    )


@torch.inference_mode()
def encode_means(model, images: np.ndarray, *, batch_size: int = DEFAULT_BATCH_SIZE) -> np.ndarray:
    """Posterior means (rows, latent_size) float32 of uint8 images (rows, channels, height, width)."""
    means = [
        model.encode(values).mean.float().cpu().numpy() for values in pixel_value_batches(model, images, batch_size)
    ]
    return np.concatenate(means)


def pixel_value_batches(
    model, images: np.ndarray, batch_size: int, progress: str | None = None
) -> Iterator[torch.Tensor]:
    """Batches of uint8 images as float32 `pixel_values` in [0, 1] on the model's device, in order."""
    check_uint8_images("images", images)
    check_positive("batch_size", batch_size)
    with tqdm(total=len(images), desc=progress, unit="image", disable=progress is None, leave=False) as bar:
        for first in range(0, len(images), batch_size):
            batch = np.ascontiguousarray(images[first : first + batch_size])
            if not batch.flags.writeable:
                batch = batch.copy()  # torch warns about read-only memory
            yield to_pixel_values(torch.from_numpy(batch), model.device)
            bar.update(len(batch))


def _why_no_probe(train_labels, validation_labels) -> str | None:
    """Why these labels cannot serve a linear probe (a label below 0 means none), or None where they can."""
    if train_labels is None or validation_labels is None:
        return "the corpus has no labels"
    classes, measured = (
        np.unique(labels[labels >= 0]) for labels in map(np.asarray, (train_labels, validation_labels))
    )
    if len(classes) < 2:
        return f"the training rows have {len(classes)} classes, a probe needs two"
    return None if len(measured) else "no validation row has a label"


def _drawn_rows(rows: np.ndarray, values_of_a_row: int, seed: int) -> np.ndarray:
    """`rows`, or as many of them, drawn by `seed` and in order, as hold `MAX_VALUES` numbers."""
    most = max(1, MAX_VALUES // values_of_a_row)
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, size=most, replace=False))


# Where and with what


def describe_machine(device: torch.device | None = None) -> str:
    """One line: processor, number of cores, the GPU in use if any, torch version."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            processor = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [processor, f"{cores} cores", f"torch {torch.__version__}"]
    if device is not None and device.type == "cuda":
        parts.insert(2, torch.cuda.get_device_name(device))
    return ", ".join(parts)


def library_versions() -> dict[str, str]:
    """Versions of what decides the numbers; of this package "0+unknown" where it is a source tree not installed."""
    names = ("torch", "transformers", "datasets", "numpy", "scikit-learn", "torchmetrics")
    versions = {"python": platform.python_version(), "hf-autoencoders": __version__}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def variant_name(model_type: str) -> str:
    """The short name of a variant in the registry, or its model type."""
    from ..registry import VARIANTS

    return VARIANTS[model_type].name if model_type in VARIANTS else model_type
