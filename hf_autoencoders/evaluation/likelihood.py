"""How probable are images under a VAE? Importance-sampled likelihood, evidence lower bound, bits, active units.

log p(x) is estimated with k samples z_i from the encoder's posterior q(z|x) (Burda, Grosse and Salakhutdinov,
"Importance weighted autoencoders", 2016):

    log p(x)  >=  E[ log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x) ]

a lower bound in expectation that tightens as k grows and is exact for every k where q is the true posterior. k = 1 is
the evidence lower bound (ELBO). Weights are combined in float64 by logsumexp.

Which data? A Bernoulli likelihood is a distribution over {0, 1} only: its nats on grey images are a cross-entropy, no
likelihood. `binarize_images` draws the binary images (dynamic binarisation, Salakhutdinov and Murray 2008). A
Gaussian is a density: its number can be compared with probabilities of 8-bit images after `bits_per_dimension(...,
density=True)`, and is a bound on a code length for `dequantize_images` only (Theis, van den Oord and Bethge 2016).

Noise comes from a `numpy.random.Generator` that the caller passes: the global random state is never touched, and an
image gets the same noise whatever the batch size, the memory bound or the device.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from .checks import check_images, check_positive, check_unit_range

LOG_2PI = math.log(2 * math.pi)
NUM_LEVELS = 256  # of 8-bit images


class LikelihoodEstimate(NamedTuple):
    """Estimates of one batch, in nats per image, (batch_size,) float64 on the CPU."""

    log_likelihood: torch.Tensor
    """The importance-weighted estimate of log p(x) with exactly the k samples asked for."""
    elbo: torch.Tensor
    """Evidence lower bound: mean of log p(x|z) over the same k samples, minus `kl`."""
    kl: torch.Tensor
    """KL(q(z|x) || N(0, I)) in closed form."""


@torch.inference_mode()
def importance_sampled_log_likelihood(
    model,
    pixel_values: torch.Tensor,
    num_samples: int,
    *,
    generator: np.random.Generator,
    max_decoder_rows: int = 8192,
) -> LikelihoodEstimate:
    """Estimate log p(x) of each image with `num_samples` posterior samples in bounded memory.

    Args:
        model: has `encode(pixel_values)` with `.mean` and `.log_variance` (batch_size, latent_size), a standard normal
            prior, and `reconstruction_log_likelihood(pixel_values, latents) -> (batch_size,)` nats.
        pixel_values: (batch_size, channels, height, width) in [0, 1].
        num_samples: k, honoured exactly.
        generator: source of the noise, for example `numpy.random.default_rng(0)`.
        max_decoder_rows: at most this many latents pass the decoder at once, for images and samples together.

    Returns:
        `LikelihoodEstimate` with fields of shape (batch_size,) in nats.
    """
    check_images("pixel_values", pixel_values)
    check_unit_range("pixel_values", pixel_values)
    check_positive("num_samples", num_samples)
    check_positive("max_decoder_rows", max_decoder_rows)
    posterior = model.encode(pixel_values)
    mean, log_variance = posterior.mean, posterior.log_variance

    images_at_once = max(1, max_decoder_rows // num_samples)
    samples_at_once = min(num_samples, max_decoder_rows)
    log_likelihood, mean_log_p_x = [], []
    for first in range(0, len(pixel_values), images_at_once):
        images = pixel_values[first : first + images_at_once]
        noise = generator.standard_normal((len(images), num_samples, mean.shape[1]), dtype=np.float32)
        noise = torch.from_numpy(noise)
        log_weights, log_p_x = [], []
        for epsilon in noise.split(samples_at_once, dim=1):
            weights, log_p = _log_importance_weights(
                model, images, mean[first : first + len(images)], log_variance[first : first + len(images)], epsilon
            )
            log_weights.append(weights)
            log_p_x.append(log_p)
        log_likelihood.append(torch.cat(log_weights, dim=1).logsumexp(dim=1) - math.log(num_samples))
        mean_log_p_x.append(torch.cat(log_p_x, dim=1).mean(dim=1))

    kl = gaussian_kl(mean, log_variance)
    return LikelihoodEstimate(torch.cat(log_likelihood), torch.cat(mean_log_p_x) - kl, kl)


def _log_importance_weights(model, images, mean, log_variance, epsilon) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(x|z) + log p(z) - log q(z|x) and log p(x|z) of z = mean + exp(log_variance / 2) * epsilon.

    `epsilon` is (num_images, num_samples, latent_size); both results are (num_images, num_samples), float64, on the
    CPU.
    """
    num_images, num_samples, latent_size = epsilon.shape
    scale = (0.5 * log_variance.float()).exp()
    latents = mean.float()[:, None] + scale[:, None] * epsilon.to(mean.device)
    # log q(z|x) from the noise itself: exact even where (z - mean) / scale would have been rounded
    log_q = -0.5 * (epsilon.double().square().sum(dim=2) + latent_size * LOG_2PI)
    log_q = log_q - 0.5 * log_variance.cpu().double().sum(dim=1, keepdim=True)
    log_p_z = -0.5 * (latents.cpu().double().square().sum(dim=2) + latent_size * LOG_2PI)
    log_p_x = model.reconstruction_log_likelihood(
        images.repeat_interleave(num_samples, dim=0), latents.flatten(0, 1).to(mean.dtype)
    )
    if log_p_x.shape != (num_images * num_samples,):
        raise ValueError(
            "`reconstruction_log_likelihood` must return one number per row, shape "
            f"({num_images * num_samples},), got {tuple(log_p_x.shape)}"
        )
    log_p_x = log_p_x.cpu().double().reshape(num_images, num_samples)
    return log_p_x + log_p_z - log_q, log_p_x


def gaussian_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) summed over latents: (batch_size,) float64 nats on the CPU."""
    if mean.ndim != 2 or mean.shape != log_variance.shape:
        raise ValueError(
            "`mean` and `log_variance` must both have shape (batch_size, latent_size), "
            f"got {tuple(mean.shape)} and {tuple(log_variance.shape)}"
        )
    mean, log_variance = mean.cpu().double(), log_variance.cpu().double()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


def binarize_images(pixel_values: torch.Tensor, *, generator: np.random.Generator) -> torch.Tensor:
    """Draw binary images: each value is 1 with the probability of its grey level (dynamic binarisation).

    Args:
        pixel_values: (batch_size, channels, height, width) in [0, 1].
        generator: source of the draws, for example `numpy.random.default_rng(0)`.

    Returns:
        Zeros and ones with the shape, dtype and device of `pixel_values`. 0 and 1 are kept as they are.
    """
    check_images("pixel_values", pixel_values)
    check_unit_range("pixel_values", pixel_values)
    uniform = torch.from_numpy(generator.random(tuple(pixel_values.shape), dtype=np.float32)).to(pixel_values.device)
    return (uniform < pixel_values).to(pixel_values.dtype)


def dequantize_images(pixel_values: torch.Tensor, *, generator: np.random.Generator) -> torch.Tensor:
    """Spread 8-bit images over their cells: (n + u) / 256 with u uniform in [0, 1), for x = n / 255.

    A density's negative log2 on such images, per dimension and plus 8 bits, is an upper bound on the bits of the
    8-bit images themselves (Theis et al. 2016).

    Args:
        pixel_values: (batch_size, channels, height, width), 8-bit levels n / 255.
        generator: source of the noise.

    Returns:
        Images in [0, 1] with the shape, dtype and device of `pixel_values`.
    """
    check_images("pixel_values", pixel_values)
    check_unit_range("pixel_values", pixel_values)
    uniform = torch.from_numpy(generator.random(tuple(pixel_values.shape), dtype=np.float32)).to(pixel_values.device)
    # in steps of 2 ** -15, so that n + u is exact in float32 and never rounds up into the next cell
    uniform = ((uniform * 2**15).floor() + 0.5) / 2**15
    return (((pixel_values.float() * 255).round() + uniform) / NUM_LEVELS).to(pixel_values.dtype)


def bits_per_dimension(log_likelihood_nats: float, num_dims: int, *, density: bool) -> float:
    """Bits for each dimension of an image: -log2 p(x) / num_dims.

    Args:
        log_likelihood_nats: mean log-likelihood per image, nats.
        num_dims: channels * height * width.
        density: True where p is a density over [0, 1] (Gaussian). An 8-bit level is a cell 1/256 wide, so its
            probability is about the density times 1/256 and 8 bits are added for each dimension (the 256-level
            convention). False where p is a probability of the levels already (Bernoulli on binary images, discretised
            logistic on 8-bit images).
    """
    check_positive("num_dims", num_dims)
    return -log_likelihood_nats / (num_dims * math.log(2)) + (math.log2(NUM_LEVELS) if density else 0.0)


class ActiveUnits:
    """Counts the latents that vary with the image: Var_x(E[z|x]) > threshold (Burda et al. 2016, threshold 0.01).

    The variance of the posterior means is taken over all rows given to `update`, in float64, by merging each batch's
    mean and squared deviations (Chan, Golub and LeVeque 1979).
    """

    def __init__(self, threshold: float = 0.01):
        self.threshold = threshold
        self._count, self._mean, self._squares = 0, None, None

    @torch.inference_mode()
    def update(self, mean: torch.Tensor) -> None:
        """Add the posterior means of a batch: (batch_size, latent_size)."""
        if mean.ndim != 2 or (self._mean is not None and mean.shape[1] != len(self._mean)):
            expected = "latent_size" if self._mean is None else len(self._mean)
            raise ValueError(f"`mean` must have shape (batch_size, {expected}), got {tuple(mean.shape)}")
        if len(mean) == 0:
            return
        mean = mean.cpu().double()
        batch_mean = mean.mean(dim=0)
        batch_squares = (mean - batch_mean).square().sum(dim=0)
        if self._mean is None:
            self._count, self._mean, self._squares = len(mean), batch_mean, batch_squares
            return
        total = self._count + len(mean)
        delta = batch_mean - self._mean
        self._squares = self._squares + batch_squares + delta.square() * (self._count * len(mean) / total)
        self._mean = self._mean + delta * (len(mean) / total)
        self._count = total

    def variances(self) -> torch.Tensor:
        """Variance of each latent's posterior mean over the rows: (latent_size,) float64."""
        if self._mean is None:
            raise ValueError("no posterior means were added: call `update` first")
        return self._squares / self._count

    def compute(self) -> int:
        """Number of active latents."""
        return int((self.variances() > self.threshold).sum())
