"""Variational auto-encoder (Kingma & Welling 2014, https://arxiv.org/abs/1312.6114).

    pixel_values (B, C, H, W) -> encoder -> mean, log_variance (B, latent_size)
                                                      |
                                      z = mean + exp(log_variance / 2) epsilon
                                                      |
    reconstruction (B, C, H, W)  <-  decoder  <-------+      (the mean of p(x|z))

The loss is the negative evidence lower bound in nats per example. Where it departs from the paper: the weight of the
KL term may be other than 1 (beta-VAE, Higgins et al. 2017), grow in the first steps (Bowman et al. 2016; Sonderby et
al. 2016) or leave some nats free (Kingma et al. 2016); with several samples the bound is the importance-weighted one
(Burda et al. 2016, https://arxiv.org/abs/1509.00519).
"""

import math

import torch
from transformers.utils import can_return_tuple

from .base import PreTrainedAutoencoder
from .configuration_vae import VAEConfig
from .layers import LearnedScale, TrainingStepCounter, VectorDecoder, VectorEncoder, check_latents, check_pixel_values
from .losses import (
    bernoulli_log_likelihood,
    discretized_logistic_log_likelihood,
    gaussian_kl,
    gaussian_log_likelihood,
    gaussian_log_ratio,
    sum_with_free_bits,
)
from .outputs import GaussianEncoderOutput, VAEOutput


class VAEModel(PreTrainedAutoencoder):
    """Images to a Gaussian posterior over a latent vector, and latent vectors to images.

    ```python
    latents = model.encode(pixel_values).latents       # (B, latent_size), the posterior mean
    images = model.decode(latents)                     # (B, C, H, W) in [0, 1]
    images = model.sample(16)                          # from the prior N(0, I)
    frames = model.interpolate(first, second, steps=8) # (B, 8, C, H, W)
    loss = model(pixel_values).loss                    # nats per example
    ```
    """

    config_class = VAEConfig
    base_model_prefix = "vae"

    def __init__(self, config: VAEConfig):
        super().__init__(config)
        self.encoder = VectorEncoder(config, 2 * config.latent_size)
        self.decoder = VectorDecoder(config, config.latent_size)
        self.output_scale = None if config.likelihood == "bernoulli" else LearnedScale(config.num_channels)
        self.training_steps = TrainingStepCounter()
        # reading a configuration and asking a model for its dtype cost as much as a layer of a small network
        self.likelihood, self.input_shape, self.latent_shape = (
            config.likelihood,
            config.input_shape,
            config.latent_shape,
        )
        self.post_init()

    def _posterior(self, pixel_values: torch.Tensor):
        check_pixel_values(pixel_values, self.input_shape)
        outputs, hidden_states = self.encoder(pixel_values.to(self.encoder.output.weight.dtype))
        mean, log_variance = outputs.chunk(2, dim=1)
        # exp() of anything beyond is 0 or infinite in float32, and a gradient of infinity ends the training
        return mean, log_variance.float().clamp(-30.0, 20.0), hidden_states

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Parameters of p(x|z): logits for the Bernoulli likelihood, means otherwise."""
        check_latents(latents, self.latent_shape)
        return self.decoder(latents.to(self.decoder.input.weight.dtype))

    def _mean_image(self, parameters: torch.Tensor) -> torch.Tensor:
        return parameters.sigmoid() if self.likelihood == "bernoulli" else parameters

    def _log_likelihood(self, parameters: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(parameters, pixel_values)
        if self.likelihood == "gaussian":
            return gaussian_log_likelihood(parameters, self.output_scale(), pixel_values)
        return discretized_logistic_log_likelihood(parameters, self.output_scale(), pixel_values)

    @can_return_tuple
    def encode(self, pixel_values: torch.Tensor) -> GaussianEncoderOutput:
        """Posterior of images `(batch_size, C, H, W)` in [0, 1]; `latents` is its mean."""
        mean, log_variance, _ = self._posterior(pixel_values)
        return GaussianEncoderOutput(latents=mean, mean=mean, log_variance=log_variance.to(mean.dtype))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Mean of p(x|z), `(batch_size, C, H, W)`, of latents `(batch_size, latent_size)`."""
        return self._mean_image(self._decode(latents))

    def reconstruction_log_likelihood(self, pixel_values: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """log p(x|z) in nats, `(batch_size,)`, of images `(batch_size, C, H, W)`, latents `(batch_size, latent_size)`.

        A density for `likelihood="gaussian"`, a probability otherwise; grey pixels give the Bernoulli likelihood's
        cross-entropy.
        """
        check_pixel_values(pixel_values, self.input_shape)
        return self._log_likelihood(self._decode(latents), pixel_values)

    @torch.no_grad()
    def sample(
        self, num_samples: int, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> torch.Tensor:
        """Images `(num_samples, C, H, W)`: the decoder's means for latents drawn from N(0, temperature^2 I).

        Raises:
            ValueError: `num_samples` below 1 or a negative temperature.
        """
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

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        epsilon: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
    ) -> VAEOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, C, H, W)`): images in [0, 1].
            epsilon (`torch.FloatTensor` of shape `(batch_size, latent_size)`, *optional*): standard normal noise of the
                sample. Default: drawn in training mode, zero (the posterior mean) in evaluation mode. The loss is an
                unbiased estimate of the bound only with noise. Shape `(batch_size, num_samples, latent_size)` gives
                the importance-weighted bound of that many samples; `latents` and `reconstruction` are of the first.
            return_loss (`bool`, *optional*, defaults to `True`): also compute the losses.
            output_hidden_states (`bool`, *optional*): also return the output of each level of the encoder.
        """
        config = self.config
        mean, log_variance, hidden_states = self._posterior(pixel_values)
        if epsilon is None and self.training:
            epsilon = torch.randn(len(mean), config.num_posterior_samples, mean.shape[1], device=mean.device)
        latents, num_samples = mean, 1
        if epsilon is not None:  # the samples of one image side by side: (batch_size * num_samples, latent_size)
            if epsilon.ndim == 3:
                num_samples, epsilon = epsilon.shape[1], epsilon.flatten(0, 1)
            check_latents(epsilon, self.latent_shape)
            if len(epsilon) != len(mean) * num_samples:
                raise ValueError(
                    f"epsilon has noise for {len(epsilon) // num_samples} images, but pixel_values holds {len(mean)}"
                )
            location, scale = mean.float(), torch.exp(0.5 * log_variance)
            if num_samples > 1:
                location, scale = (t.repeat_interleave(num_samples, dim=0) for t in (location, scale))
            latents = (location + scale * epsilon).to(mean.dtype)
        parameters = self._decode(latents)

        loss = reconstruction_loss = kl_loss = None
        if return_loss:
            kl = gaussian_kl(mean, log_variance)
            targets = pixel_values if num_samples == 1 else pixel_values.repeat_interleave(num_samples, dim=0)
            log_likelihood = self._log_likelihood(parameters, targets)
            reconstruction_loss = -log_likelihood.mean()
            kl_loss = kl.sum(1).mean()
            kl_weight, kl_warmup_steps = config.beta, config.kl_warmup_steps
            if kl_warmup_steps and self.training:
                kl_weight = kl_weight * (self.training_steps() / kl_warmup_steps).clamp(max=1.0)
            if num_samples == 1:
                free_bits = config.free_bits
                charged = sum_with_free_bits(kl, free_bits, self.training) if free_bits else kl_loss
                loss = reconstruction_loss + kl_weight * charged
            else:
                samples, noise = (t.unflatten(0, (-1, num_samples)) for t in (latents, epsilon))
                log_ratio = gaussian_log_ratio(samples, noise, log_variance)
                log_weights = log_likelihood.unflatten(0, (-1, num_samples)) + kl_weight * log_ratio
                loss = math.log(num_samples) - log_weights.logsumexp(1).mean()
        if num_samples > 1:
            latents, parameters = latents[::num_samples], parameters[::num_samples]
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        return VAEOutput(
            latents=latents,
            reconstruction=self._mean_image(parameters),
            loss=loss,
            reconstruction_loss=reconstruction_loss,
            kl_loss=kl_loss,
            mean=mean,
            log_variance=log_variance.to(mean.dtype),
            hidden_states=hidden_states if output_hidden_states else None,
        )


__all__ = ["VAEModel"]
