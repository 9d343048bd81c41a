"""What auto-encoders have in common whose code is a vector and whose decoder is a likelihood p(x|z).

LikelihoodAutoencoder   networks, decoding, log p(x|z)            of all
GaussianVAE             + Gaussian posterior, sampling, interpolation of those with a continuous latent vector
"""

import torch
from transformers.utils import can_return_tuple

from .anomaly import DetectingAutoencoder
from .base import SamplesFromPrior
from .configuration_vae import GaussianLatentConfig, LikelihoodConfig
from .layers import LearnedScale, TrainingStepCounter, VectorDecoder, VectorEncoder, check_latents, check_pixel_values
from .losses import bernoulli_log_likelihood, discretized_logistic_log_likelihood, gaussian_log_likelihood
from .outputs import GaussianEncoderOutput


class LikelihoodAutoencoder(SamplesFromPrior, DetectingAutoencoder):
    """An image to a vector of numbers that say what its code is, and a vector of latents to p(x|z).

    Args:
        config: of the variant.
        num_outputs: numbers that the encoder gives.
        normalize: whether its features are normalised before the layer that gives them.
    """

    config_class = LikelihoodConfig
    has_prior = True

    def __init__(self, config: LikelihoodConfig, num_outputs: int, normalize: bool = False):
        super().__init__(config)
        self.encoder = VectorEncoder(config, num_outputs, normalize)
        self.decoder = VectorDecoder(config, config.latent_shape[0], config.spatial_broadcast)
        self.output_scale = (
            None
            if config.likelihood == "bernoulli"
            else LearnedScale(config.num_features or config.num_channels, bool(config.num_features))
        )
        self.training_steps = TrainingStepCounter()
        # reading a configuration and asking a model for its dtype cost as much as a layer of a small network
        self.likelihood, self.input_shape, self.latent_shape = (
            config.likelihood,
            config.input_shape,
            config.latent_shape,
        )

    def _encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """`(batch_size, num_outputs)`, and the output of every level of the encoder."""
        check_pixel_values(pixel_values, self.input_shape)
        return self.encoder(pixel_values.to(self.encoder.output.weight.dtype))

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Parameters of p(x|z): logits for the Bernoulli likelihood, means otherwise."""
        check_latents(latents, self.latent_shape)
        return self.decoder(latents.to(self.encoder.output.weight.dtype))

    def _mean_image(self, parameters: torch.Tensor) -> torch.Tensor:
        return parameters.sigmoid() if self.likelihood == "bernoulli" else parameters

    def _log_likelihood(self, parameters: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(parameters, pixel_values)
        if self.likelihood == "gaussian":
            return gaussian_log_likelihood(parameters, self.output_scale(), pixel_values)
        return discretized_logistic_log_likelihood(parameters, self.output_scale(), pixel_values)

    def _progress(self, *num_steps: int) -> list[torch.Tensor | float]:
        """For each number of steps the share of them that is over, from 0 to 1; 1 for 0 steps, and in evaluation mode.

        It counts a step of training: to be called once in each.
        """
        steps = self.training_steps() if self.training and any(num_steps) else None
        return [1.0 if steps is None or n == 0 else (steps / n).clamp(max=1.0) for n in num_steps]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Mean of p(x|z), `(batch_size, C, H, W)`, of latents `(batch_size, *config.latent_shape)`."""
        return self._mean_image(self._decode(latents))


def gaussian_parameters(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean, and float32 log-variance, `(batch_size, n)` each, of an encoder's outputs `(batch_size, 2 n)`."""
    mean, log_variance = outputs.chunk(2, dim=1)
    # exp() of anything beyond is 0 or infinite in float32, and a gradient of infinity ends the training
    return mean, log_variance.float().clamp(-30.0, 20.0)


def check_epsilon(
    epsilon: torch.Tensor, mean: torch.Tensor, latent_shape: tuple[int, ...], samples: int = 1, name: str = "epsilon"
) -> None:
    """Raise unless there is noise for each latent of each image, for as many samples of it."""
    check_latents(epsilon, latent_shape, name)
    rows, images = epsilon.shape[0], mean.shape[0]
    if rows != images * samples:
        raise ValueError(f"{name} has noise for {rows // samples} images, but pixel_values holds {images}")


def sample_gaussian(mean: torch.Tensor, log_variance: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    """mean + exp(log_variance / 2) epsilon, computed in float32, in the dtype of the mean."""
    return (mean.float() + torch.exp(0.5 * log_variance) * epsilon).to(mean.dtype)


class GaussianVAE(LikelihoodAutoencoder):
    """What variational auto-encoders with a Gaussian latent vector can do; a variant adds its loss, in `forward`."""

    config_class = GaussianLatentConfig

    def __init__(self, config: GaussianLatentConfig):
        super().__init__(config, 2 * config.latent_size)

    def _posterior(self, pixel_values: torch.Tensor):
        outputs, hidden_states = self._encode(pixel_values)
        return *gaussian_parameters(outputs), hidden_states

    @can_return_tuple
    def encode(self, pixel_values: torch.Tensor) -> GaussianEncoderOutput:
        """Posterior of images `(batch_size, C, H, W)` in [0, 1]; `latents` is its mean."""
        mean, log_variance, _ = self._posterior(pixel_values)
        return GaussianEncoderOutput(latents=mean, mean=mean, log_variance=log_variance.to(mean.dtype))

    def reconstruction_log_likelihood(self, pixel_values: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """log p(x|z) in nats, `(batch_size,)`, of images `(batch_size, C, H, W)`, latents `(batch_size, latent_size)`.

        A density for `likelihood="gaussian"`, a probability otherwise; grey pixels give the Bernoulli likelihood's
        cross-entropy.
        """
        check_pixel_values(pixel_values, self.input_shape)
        return self._log_likelihood(self._decode(latents), pixel_values)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        *,
        prior=None,
        **options,
    ) -> torch.Tensor:
        """Images `(num_samples, C, H, W)`: the decoder's means for latents drawn from N(0, temperature^2 I), or from
        another `prior`, see [`SamplesFromPrior`].

        Raises:
            ValueError: `num_samples` below 1, a negative temperature, or a prior of another auto-encoder.
        """
        if prior is not None:
            return super().sample(num_samples, generator, prior=prior, temperature=temperature, **options)
        if options:
            raise TypeError(f"{', '.join(options)}: the prior N(0, I) takes no such argument, give a prior that does")
        if num_samples < 1 or temperature < 0:
            raise ValueError(f"expected num_samples >= 1 and temperature >= 0, got {num_samples} and {temperature}")
        device = self.device if generator is None else generator.device
        latents = torch.randn(num_samples, self.config.latent_size, generator=generator, device=device)
        return self.decode(temperature * latents.to(self.device))

    @torch.no_grad()
    def interpolate(
        self, first: torch.Tensor, second: torch.Tensor, steps: int = 8, mode: str = "linear"
    ) -> torch.Tensor:
        """Images between two images, along a line or an arc between their posterior means.

        Args:
            first, second (`(batch_size, C, H, W)`): images in [0, 1].
            steps (`int`): images from the reconstruction of `first` to that of `second`, both included.
            mode (`str`): `"linear"`, or `"spherical"` (Shoemake 1985: constant angular speed, which keeps to the shell
                where a high-dimensional Gaussian has its mass).

        Returns:
            `(batch_size, steps, C, H, W)`.
        """
        if steps < 2:
            raise ValueError(f"expected steps >= 2 (both ends are included), got {steps}")
        if mode not in ("linear", "spherical"):
            raise ValueError(f'mode must be "linear" or "spherical", got {mode!r}')
        if first.shape != second.shape:
            raise ValueError(
                f"first and second must have the same shape, got {tuple(first.shape)} and {tuple(second.shape)}"
            )
        start, end = (self.encode(images).latents.float().unsqueeze(1) for images in (first, second))
        time = torch.linspace(0, 1, steps, device=start.device).view(1, steps, 1)
        weights = 1 - time, time
        if mode == "spherical":
            cosine = torch.nn.functional.cosine_similarity(start, end, dim=-1).unsqueeze(-1)
            angle = torch.acos(cosine.clamp(-1, 1))
            arc = torch.sin((1 - time) * angle) / torch.sin(angle), torch.sin(time * angle) / torch.sin(angle)
            nearly_parallel = torch.sin(angle) < 1e-4
            weights = tuple(torch.where(nearly_parallel, w, a) for w, a in zip(weights, arc, strict=True))
        latents = weights[0] * start + weights[1] * end
        return self.decode(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
