"""How good are the images that a model draws?

Two sets of images are compared through features of them: by the Frechet distance between Gaussians of their mean and
covariance (Heusel et al. 2017), and by improved precision and recall (Kynkaanniemi et al. 2019). Heusel's Inception
network has to be downloaded and was trained on photographs; the features here are had offline and carry their name:

    LeNetFeatures   of a corpus with labels: a small classifier, trained on its training images alone
    HogFeatures     of a corpus without: histograms of oriented gradients (Dalal & Triggs 2005), nothing is learned

A Frechet distance depends on the features and on the number of images, so numbers compare only where both are equal.
What it can reach is said by the same number between validation and training images, and between validation images and
reconstructions of those training images.

The bound on bits per dimension of a model of codes c, with c(x) those of the encoder:

    -log2 p(x) = -log2 sum_c p(c) p(x|c) <= -log2 p(c(x)) - log2 p(x|c(x))

where p(x|c) is a logistic distribution around the decoded image, cut into 256 levels, with one scale for each channel,
fitted on training images. `uniform` codes cost log2(number of values) bits each.
"""

import datetime
import math
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional as F

from ..models.losses import discretized_logistic_log_likelihood
from .checks import check_positive, check_uint8_images
from .evaluate import (
    DEFAULT_BATCH_SIZE,
    describe_machine,
    encode_images,
    library_versions,
    pixel_value_batches,
    variant_name,
)

DEFAULT_NUM_SAMPLES = 5_000
NEIGHBOURS = 3  # of precision and recall
LENET_STEPS, LENET_BATCH_SIZE = 1_200, 128
SCALE_IMAGES = 2_000  # training images that the scales of p(x|codes) are fitted on


# ------------------------------------------------------------------------------------------------------------ distances


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The squared 2-Wasserstein distance between Gaussians of the mean and covariance of two sets of features.

    Args:
        first, second: (rows, features); the numbers of rows may differ, but the distance of fewer rows is larger.

    Returns:
        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), 0 or more.

    Raises:
        ValueError: other shapes, values that are not finite, or no more rows than features: a covariance of full rank
            needs more.
    """
    first, second = (_checked_features(name, rows) for name, rows in (("first", first), ("second", second)))
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"both sets need the same features, got {first.shape[1]} and {second.shape[1]}")
    for name, rows in (("first", first), ("second", second)):
        if len(rows) <= rows.shape[1]:
            raise ValueError(
                f"the {name} set has {len(rows)} rows of {rows.shape[1]} features, a covariance needs more "
                "rows than features to be of full rank: take more images, or fewer features"
            )
    means, covariances = zip(*((rows.mean(0), np.cov(rows, rowvar=False)) for rows in (first, second)), strict=True)
    covariances = [np.atleast_2d(covariance) for covariance in covariances]
    # tr (C1 C2)^(1/2): the eigenvalues of C1 C2 are those of S C2 S with S = C1^(1/2), which is symmetric
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    distance = np.square(means[0] - means[1]).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared
    return max(0.0, float(distance))


def precision_recall(real: np.ndarray, generated: np.ndarray, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Improved precision and recall.

    Args:
        real, generated: features (rows, features); equally many rows, for the two numbers to compare.
        neighbours: k; a set's manifold is the balls around its rows that reach to their k-th nearest neighbour.

    Returns:
        The share of generated rows within the real manifold, and of real rows within the generated one.

    Raises:
        ValueError: other shapes, values that are not finite, or no more than `neighbours` rows.
    """
    sets = [torch.from_numpy(_checked_features(n, rows)) for n, rows in (("real", real), ("generated", generated))]
    for rows in sets:
        if len(rows) <= neighbours:
            raise ValueError(f"{len(rows)} rows have no {neighbours} neighbours each: take more images")
    radii = []
    for rows in sets:
        parts = [torch.cdist(part, rows).kthvalue(neighbours + 1, dim=1).values for part in rows.split(1024)]
        radii.append(torch.cat(parts))
    shares = []
    for inner, outer, radius in ((sets[1], sets[0], radii[0]), (sets[0], sets[1], radii[1])):
        inside = [(torch.cdist(part, outer) <= radius).any(1) for part in inner.split(1024)]
        shares.append(torch.cat(inside).double().mean().item())
    return shares[0], shares[1]


def _checked_features(name: str, rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or not rows.shape[1]:
        raise ValueError(f"{name} must be features of shape (rows, features), got {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{name} holds NaN or infinite features")
    return rows


# ------------------------------------------------------------------------------------------------------------- features


class _LeNet(nn.Module):
    def __init__(self, channels: int, size: tuple[int, int], num_features: int, num_classes: int):
        super().__init__()
        height, width = size
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
        )  # fmt: skip
        places = math.ceil(math.ceil(height / 2) / 2) * math.ceil(math.ceil(width / 2) / 2)
        self.hidden = nn.Linear(32 * places, num_features)
        self.output = nn.Linear(num_features, num_classes)

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return F.relu(self.hidden(self.convolutions(pixel_values).flatten(1)))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.output(self.features(pixel_values))


class LeNetFeatures:
    """The last hidden layer, 64 wide, of a LeNet-like classifier of the corpus's own training images.

    Attributes:
        name: with the corpus and seed, for metrics.  accuracy: on the validation images.
    """

    def __init__(self, train, validation, *, corpus: str, seed: int = 0, num_epochs: int | None = None):
        """Train it.

        Args:
            train, validation: `ImageArrays` with labels.  corpus: its name.
            num_epochs: passes over the training images; by default as many as make about `LENET_STEPS` steps.

        Raises:
            ValueError: there are no labels, or but one class.
        """
        labels = None if train.labels is None else np.asarray(train.labels)
        rows = np.empty(0, int) if labels is None else np.flatnonzero(labels >= 0)
        if len(rows) == 0 or len(np.unique(labels[rows])) < 2:
            raise ValueError("a classifier needs labels of two classes at least: use HogFeatures")
        check_uint8_images("train.images", train.images)
        size, num_classes = train.images.shape[1:], int(labels.max()) + 1
        batch_size = min(LENET_BATCH_SIZE, len(rows))
        steps = len(rows) // batch_size
        num_epochs = num_epochs or max(1, round(LENET_STEPS / steps))
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.network = _LeNet(size[0], size[1:], 64, num_classes)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_epochs * steps)
        random = np.random.default_rng(seed)
        for _ in range(num_epochs):
            order = random.permutation(rows)
            for first in range(0, steps * batch_size, batch_size):
                chosen = order[first : first + batch_size]
                loss = F.cross_entropy(self.network(_as_pixels(train.images[chosen])), torch.from_numpy(labels[chosen]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self.network.eval()
        self.accuracy = float("nan")
        if validation.labels is not None:
            known = np.flatnonzero(np.asarray(validation.labels) >= 0)
            logits = self._run(self.network, validation.images[known])
            self.accuracy = float((logits.argmax(1) == np.asarray(validation.labels)[known]).mean())
        self.name = f"lenet({corpus} train, seed {seed})"

    @staticmethod
    @torch.inference_mode()
    def _run(function, images: np.ndarray) -> np.ndarray:
        parts = [function(_as_pixels(images[first : first + 1000])) for first in range(0, len(images), 1000)]
        return torch.cat(parts).double().numpy()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features (rows, 64) of uint8 images (rows, channels, height, width)."""
        check_uint8_images("images", images)
        return self._run(self.network.features, images)


class HogFeatures:
    """Histograms of oriented gradients of 4 x 4 cells, 8 orientations: 128 numbers, of any corpus."""

    name = "hog(4x4 cells, 8 orientations)"
    accuracy = float("nan")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features (rows, 128) of uint8 images (rows, channels, height, width) of 8 x 8 pixels at least."""
        try:
            from skimage.feature import hog
        except ImportError as error:
            raise ImportError("these features are computed by scikit-image: pip install scikit-image") from error
        check_uint8_images("images", images)
        height, width = images.shape[2:]
        if min(height, width) < 8:
            raise ValueError(f"these features need images of 8 x 8 pixels at least, got {height} x {width}")
        options = {"orientations": 8, "pixels_per_cell": (height // 4, width // 4), "cells_per_block": (1, 1)}
        rows = []
        for image in images:
            found = hog(image.transpose(1, 2, 0), channel_axis=2, feature_vector=False, **options)
            rows.append(found[:4, :4].ravel())
        return np.stack(rows).astype(np.float64)


def make_features(name: str, train, validation, *, corpus: str, seed: int = 0):
    """`"lenet"`, `"hog"`, or `"auto"`: the former where the corpus has labels of two classes or more."""
    if name not in ("auto", "lenet", "hog"):
        raise ValueError(f'features must be "auto", "lenet" or "hog", got {name!r}')
    labels = train.labels
    classes = 0 if labels is None else len(np.unique(labels[np.asarray(labels) >= 0]))
    if name == "lenet" or (name == "auto" and classes > 1):
        return LeNetFeatures(train, validation, corpus=corpus, seed=seed)
    return HogFeatures()


def _as_pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(images)).float().div_(255)


def to_uint8(pixel_values: torch.Tensor) -> np.ndarray:
    """Images `(rows, channels, height, width)` in [0, 1] as a picture file has them."""
    return (pixel_values.detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()


# ------------------------------------------------------------------------------------------------------- bits of images


class CodeBits(NamedTuple):
    """Bits per dimension of images, by the bound at the head of the file; means over the images."""

    bits_per_dimension: float
    """all of it: codes by the prior, and the image given them"""
    uniform_bits_per_dimension: float
    """the same with codes that cost as much whatever they are"""
    code_bits: float
    """-log2 p(codes) by the prior, of one image"""
    uniform_code_bits: float
    image_bits: float
    """-log2 p(x|codes), of one image"""
    log_scales: tuple[float, ...]
    """of the logistic distribution, for each channel, in units of the pixel range [0, 1]"""


def fit_log_scales(means: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """For each channel the log scale of a discretised logistic around `means` that makes the images likeliest.

    Args:
        means, pixel_values: `(rows, channels, height, width)` in [0, 1], the latter 8-bit levels.

    Returns:
        `(channels, 1, 1)` float32.
    """
    scales = []
    for mean, values in zip(means.split(1, 1), pixel_values.split(1, 1), strict=True):

        def loss(log_scale: float, mean=mean, values=values) -> float:
            return -discretized_logistic_log_likelihood(mean, torch.tensor(log_scale), values).double().sum().item()

        scales.append(minimize_scalar(loss, bounds=(-9.0, 1.0), method="bounded", options={"xatol": 1e-3}).x)
    return torch.tensor(scales, dtype=torch.float32).view(-1, 1, 1)


@torch.inference_mode()
def bits_of_codes(
    autoencoder, prior, train_images: np.ndarray, images: np.ndarray, *, batch_size: int = DEFAULT_BATCH_SIZE
) -> CodeBits:
    """Bits per dimension of uint8 images under an auto-encoder with codes and a prior of these, without classes."""
    rows = np.linspace(0, len(train_images) - 1, min(SCALE_IMAGES, len(train_images))).astype(int)

    def decoded(part: np.ndarray):
        for pixel_values in pixel_value_batches(autoencoder, part, batch_size):
            codes = autoencoder.encode(pixel_values).codes
            yield pixel_values.cpu(), codes, autoencoder.decode_codes(codes).float().cpu()

    fitted = [(pixel_values, mean) for pixel_values, _, mean in decoded(train_images[rows])]
    log_scales = fit_log_scales(torch.cat([mean for _, mean in fitted]), torch.cat([values for values, _ in fitted]))
    code_nats = image_nats = 0.0
    for pixel_values, codes, mean in decoded(images):
        code_nats -= prior.log_prob(codes.to(prior.device)).double().sum().item()
        image_nats -= discretized_logistic_log_likelihood(mean, log_scales, pixel_values).double().sum().item()
    code_bits, image_bits = (nats / len(images) / math.log(2) for nats in (code_nats, image_nats))
    dims, uniform = math.prod(images.shape[1:]), float(autoencoder.config.bits_per_input)
    return CodeBits(
        bits_per_dimension=(code_bits + image_bits) / dims,
        uniform_bits_per_dimension=(uniform + image_bits) / dims,
        code_bits=code_bits,
        uniform_code_bits=uniform,
        image_bits=image_bits,
        log_scales=tuple(log_scales.flatten().tolist()),
    )


# -------------------------------------------------------------------------------------------------- all of it, at once


def draw_uint8(draw, num_samples: int, batch_size: int = DEFAULT_BATCH_SIZE) -> np.ndarray:
    """uint8 images of `draw(n)`, called until there are `num_samples`."""
    sizes = [min(batch_size, num_samples - first) for first in range(0, num_samples, batch_size)]
    return np.concatenate([to_uint8(draw(size)) for size in sizes])


def plain_samples(autoencoder, generator: torch.Generator):
    """What an auto-encoder is sampled from without a learned prior: the name of that, and a function of the number.

    N(0, I), or uniformly random codes; of a plain auto-encoder, which promises neither, None and None.
    """
    config, device = autoencoder.config, autoencoder.device
    if getattr(autoencoder, "has_prior", False):
        name = "uniform_codes" if hasattr(config, "codes_shape") else "standard_normal"
        return name, lambda count: autoencoder.sample(count, generator=generator)
    if hasattr(autoencoder, "decode_codes"):

        def decoded(count: int) -> torch.Tensor:
            codes = torch.randint(config.num_codes, (count, *config.codes_shape), generator=generator)
            with torch.no_grad():
                return autoencoder.decode_codes(codes.to(device))

        return "uniform_codes", decoded
    return None, None


def evaluate_samples(
    autoencoder,
    prior,
    train,
    validation,
    *,
    corpus: dict[str, Any],
    num_samples: int | None = None,
    features: str = "auto",
    temperature: float = 1.0,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    command: str | None = None,
) -> dict[str, Any]:
    """Measure what an auto-encoder draws from a prior.

    Args:
        autoencoder: of images.  prior: of its latents or codes; None measures N(0, I), or uniformly random codes.
        train, validation: `ImageArrays` made with the processor of the auto-encoder.
        corpus: at least `{"name": ..., "split": ...}`.
        num_samples: images of each set that are compared, by default `DEFAULT_NUM_SAMPLES`, or as many as the smaller
            split has.
        features: see [`make_features`].  temperature: of the prior.
        seed: of the features, of the samples, and of which images are taken.
        command: how to repeat this; the command line of this process by default.

    Returns:
        A dictionary ready for JSON as that of `evaluate_model`. `metrics`, of the samples: `frechet_distance`,
        `precision`, `recall`; of a prior `prior_nll` (nats per image, of latents or codes), and what `CodeBits` has
        or, of a VAE, `negative_elbo` with the prior. `baselines`: the same of `train_images_`,
        `train_reconstructions_` and `standard_normal_` or `uniform_codes_`, all against the same validation images.

    Raises:
        ValueError: too few images for a Frechet distance, more samples than a split has images, a prior of another
            auto-encoder, or no prior at all.
    """
    for name, arrays in (("train.images", train.images), ("validation.images", validation.images)):
        check_uint8_images(name, arrays)
    if missing := {"name", "split"} - set(corpus):
        raise ValueError(f"`corpus` must name what was measured, it lacks {sorted(missing)}")
    most = min(len(train.images), len(validation.images))
    num_samples = min(DEFAULT_NUM_SAMPLES, most) if num_samples is None else num_samples
    check_positive("num_samples", num_samples)
    if num_samples > most:
        raise ValueError(f"num_samples is {num_samples}, but the smaller split has {most} images: sets of equal size")
    generator = torch.Generator().manual_seed(seed)
    plain_name, plain = plain_samples(autoencoder, generator)
    if prior is not None:
        prior.check_autoencoder(autoencoder)
        prior.eval()
    elif plain is None:
        raise ValueError(f"{type(autoencoder).__name__} has no prior of its own: give one")
    was_training = autoencoder.training
    autoencoder.eval()
    try:
        name = Path(corpus["name"]).name
        measure = make_features(features, train, validation, corpus=name, seed=seed)
        random = np.random.default_rng(seed)
        chosen = [np.sort(random.choice(len(a.images), num_samples, replace=False)) for a in (train, validation)]
        train_images, real_images = train.images[chosen[0]], validation.images[chosen[1]]
        real = measure(real_images)

        def compared(images: np.ndarray) -> dict[str, float]:
            found = measure(images)
            precision, recall = precision_recall(real, found)
            return {"frechet_distance": frechet_distance(real, found), "precision": precision, "recall": recall}

        with torch.inference_mode():
            batches = pixel_value_batches(autoencoder, train_images, batch_size)
            restored = [to_uint8(autoencoder(batch, return_loss=False).reconstruction) for batch in batches]
        sets = {"train_images": train_images, "train_reconstructions": np.concatenate(restored)}
        if plain is not None:
            sets[plain_name] = draw_uint8(plain, num_samples, batch_size)
        results = {name: compared(images) for name, images in sets.items()}
        settings: dict[str, Any] = {"num_samples": num_samples, "features": measure.name, "neighbours": NEIGHBOURS}
        if math.isfinite(measure.accuracy):
            settings["accuracy_of_the_features_classifier"] = round(measure.accuracy, 4)
        if prior is None:
            metrics = results.pop(plain_name)
            settings["prior"] = plain_name
        else:
            options = {} if temperature == 1 else {"temperature": temperature}
            settings |= {"prior": prior.config.model_type.removeprefix("hfae_"), "temperature": temperature}
            generator = torch.Generator().manual_seed(seed)
            drawn = draw_uint8(
                lambda count: autoencoder.sample(count, generator=generator, prior=prior, **options),
                num_samples,
                batch_size,
            )
            nats, plain_nats = _likelihoods(autoencoder, prior, train, validation, batch_size, seed, settings)
            metrics = compared(drawn) | nats
            if plain_nats:
                results[plain_name] |= plain_nats
    finally:
        autoencoder.train(was_training)
    model_type = (autoencoder if prior is None else prior).config.model_type
    return {
        "model_type": model_type,
        "name": variant_name(model_type),
        "corpus": {**corpus, "rows": len(validation.images), "train_rows": len(train.images)},
        "metrics": {name: float(value) for name, value in metrics.items()},
        "baselines": {
            f"{name}_{key}": float(value) for name, numbers in results.items() for key, value in numbers.items()
        },
        "not_measured": {},
        "settings": settings,
        "seed": seed,
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": describe_machine(autoencoder.device),
        "versions": library_versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


@torch.inference_mode()
def _likelihoods(
    autoencoder, prior, train, validation, batch_size: int, seed: int, settings: dict[str, Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """Of a prior of codes the bits, of one of latents the nats, over the validation images; and what the plain prior
    gives in their place."""
    images = validation.images
    if prior.gives_codes:
        bits = bits_of_codes(autoencoder, prior, train.images, images, batch_size=batch_size)
        settings["log_scales_of_the_images"] = [round(scale, 4) for scale in bits.log_scales]
        nats = {"prior_nll": bits.code_bits * math.log(2)}
        return (
            nats | {"bits_per_dimension": bits.bits_per_dimension, "code_bits_per_image": bits.code_bits},
            {
                "bits_per_dimension": bits.uniform_bits_per_dimension,
                "code_bits_per_image": bits.uniform_code_bits,
            },
        )
    if not hasattr(autoencoder, "reconstruction_log_likelihood"):
        latents = encode_images(autoencoder, images, batch_size=batch_size).latents
        parts = [prior.log_prob(torch.from_numpy(part).to(prior.device)) for part in np.array_split(latents, 50)]
        return {"prior_nll": -torch.cat(parts).double().mean().item()}, {}
    noise = torch.Generator().manual_seed(seed)
    nll = learned_bound = plain_bound = 0.0
    for pixel_values in pixel_value_batches(autoencoder, images, batch_size):
        posterior = autoencoder.encode(pixel_values)
        mean, log_variance = posterior.mean.float(), posterior.log_variance.float()
        epsilon = torch.randn(mean.shape, generator=noise).to(mean.device)
        latents = mean + torch.exp(0.5 * log_variance) * epsilon
        fixed = autoencoder.reconstruction_log_likelihood(pixel_values, latents).double()
        # log q(z|x) but for its constant, which log N(z; 0, I) shares; the prior's log-density has it within
        entropy = 0.5 * (epsilon.square() + log_variance).double().sum(1)
        constant = 0.5 * mean.shape[1] * math.log(2 * math.pi)
        learned = prior.log_prob(latents).double()
        plain = -0.5 * latents.double().square().sum(1)
        nll -= learned.sum().item() / len(images)
        learned_bound -= (fixed + learned + entropy + constant).sum().item() / len(images)
        plain_bound -= (fixed + plain + entropy).sum().item() / len(images)
    return {"prior_nll": nll, "negative_elbo": learned_bound}, {"negative_elbo": plain_bound}
