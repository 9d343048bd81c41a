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

from .configuration_vae import VAEConfig
from .likelihood_base import GaussianVAE, check_epsilon, sample_gaussian
from .losses import gaussian_kl, gaussian_log_ratio, sum_with_free_bits
from .outputs import VAEOutput


class VAEModel(GaussianVAE):
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
        self.post_init()

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
            check_epsilon(epsilon, mean, self.latent_shape, num_samples)
            location, spread = mean, log_variance
            if num_samples > 1:
                location, spread = (t.repeat_interleave(num_samples, dim=0) for t in (mean, log_variance))
            latents = sample_gaussian(location, spread, epsilon)
        parameters = self._decode(latents)

        loss = reconstruction_loss = kl_loss = None
        if return_loss:
            kl = gaussian_kl(mean, log_variance)
            targets = pixel_values if num_samples == 1 else pixel_values.repeat_interleave(num_samples, dim=0)
            log_likelihood = self._log_likelihood(parameters, targets)
            reconstruction_loss = -log_likelihood.mean()
            kl_loss = kl.sum(1).mean()
            kl_weight = config.beta * self._progress(config.kl_warmup_steps)[0]
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
