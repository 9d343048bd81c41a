"""Variational auto-encoders that are made to disentangle: each latent is to stand for one factor of the data.

    pixel_values -> encoder -> mean, log_variance (B, latent_size) -> z -> decoder -> reconstruction

All four have the networks of a VAE and its bound; they differ in what they add to it, in nats per example:

    beta-VAE       capacity_weight |KL - capacity|, in the place of KL     Burgess et al. 2018, arxiv.org/abs/1804.03599
    beta-TC-VAE    KL taken apart, the total correlation weighted more     Chen et al. 2018, arxiv.org/abs/1802.04942
    FactorVAE      the total correlation, told by a discriminator          Kim & Mnih 2018, arxiv.org/abs/1802.05983
    DIP-VAE        how far the covariance of the latents is from identity  Kumar et al. 2018, arxiv.org/abs/1711.00848

The terms are not linear in the batch. In training they are of the whole batch, over all processes; each micro-batch of
gradient accumulation is a batch of its own.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import can_return_tuple

from .configuration_disentangled_vae import BetaTCVAEConfig, BetaVAEConfig, DIPVAEConfig, FactorVAEConfig
from .configuration_vae import GaussianLatentConfig
from .likelihood_base import GaussianVAE, check_epsilon, sample_gaussian
from .losses import aggregate_log_densities, exchange_dimensions, gather_batch, gaussian_kl, gaussian_log_density
from .outputs import DisentangledVAEOutput


class DisentangledVAE(GaussianVAE):
    """Networks, posterior and bound of a VAE; what a variant adds to the reconstruction loss is its `_penalty`."""

    def __init__(self, config: GaussianLatentConfig):
        super().__init__(config)
        self.post_init()

    def _penalty(
        self,
        latents: torch.Tensor,
        mean: torch.Tensor,
        log_variance: torch.Tensor,
        kl: torch.Tensor,
        permutation_noise: torch.Tensor | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What is added to the reconstruction loss, and the terms it is made of, by name; all scalars.

        Args:
            kl (`(batch_size,)`): KL term of each image.
        """
        raise NotImplementedError

    def _kl_scale(self) -> torch.Tensor | float:
        """`initial_kl_scale` in the first training step, 1 after `kl_decay_steps`."""
        [progress] = self._progress(self.config.kl_decay_steps)
        return self.config.initial_kl_scale ** (1 - progress)

    def _forward(
        self, pixel_values, epsilon, return_loss, output_hidden_states, permutation_noise=None
    ) -> DisentangledVAEOutput:
        mean, log_variance, hidden_states = self._posterior(pixel_values)
        if epsilon is None and self.training:
            epsilon = torch.randn(mean.shape, device=mean.device)
        latents = mean
        if epsilon is not None:
            check_epsilon(epsilon, mean, self.latent_shape)
            latents = sample_gaussian(mean, log_variance, epsilon)
        parameters = self._decode(latents)

        loss, terms = None, {}
        if return_loss:
            reconstruction_loss = -self._log_likelihood(parameters, pixel_values).mean()
            kl = gaussian_kl(mean, log_variance).sum(1)
            kl_loss = kl.mean()
            penalty, terms = self._penalty(latents.float(), mean.float(), log_variance, kl, permutation_noise)
            loss = reconstruction_loss + penalty
            terms = {"reconstruction_loss": reconstruction_loss, "kl_loss": kl_loss, **terms}
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return DisentangledVAEOutput(
            latents=latents,
            reconstruction=self._mean_image(parameters),
            loss=loss,
            mean=mean,
            log_variance=log_variance.to(mean.dtype),
            hidden_states=hidden_states if output_hidden_states else None,
            **terms,
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        epsilon: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
    ) -> DisentangledVAEOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, C, H, W)`): images in [0, 1].
            epsilon (`torch.FloatTensor` of shape `(batch_size, latent_size)`, *optional*): standard normal noise of the
                sample. Default: drawn in training mode, zero (the posterior mean) in evaluation mode. The loss is an
                estimate of what is trained only with noise.
            return_loss (`bool`, *optional*, defaults to `True`): also compute the losses.
            output_hidden_states (`bool`, *optional*): also return the output of each level of the encoder.
        """
        return self._forward(pixel_values, epsilon, return_loss, output_hidden_states)


class BetaVAEModel(DisentangledVAE):
    """A VAE that is held to a capacity, which grows: loss = reconstruction + capacity_weight |KL - capacity|.

    Burgess et al. 2018. What matters most for the reconstruction is encoded first, and gets a latent of its own. With
    `max_capacity=0` it is the beta-VAE of Higgins et al. 2017.
    """

    config_class = BetaVAEConfig
    base_model_prefix = "beta_vae"

    def _penalty(self, latents, mean, log_variance, kl, permutation_noise):
        [progress] = self._progress(self.config.capacity_warmup_steps)
        capacity = self.config.max_capacity * progress
        (kl,), _ = gather_batch(kl, training=self.training)
        return self.config.capacity_weight * (kl.mean() - capacity).abs(), {}


class BetaTCVAEModel(DisentangledVAE):
    """A VAE whose KL term is taken apart (Chen et al. 2018):

        KL = I(x; z) + KL(q(z) || prod_j q(z_j)) + sum_j KL(q(z_j) || p(z_j))

    and whose second part, the total correlation, costs more. The densities q(z) and q(z_j) are those of the mixture of
    the batch's posteriors. That is the paper's minibatch-weighted estimate but for a constant, which has no gradient:
    the size of the corpus. The KL itself is computed in closed form, so with equal weights the loss is that of a VAE.
    """

    config_class = BetaTCVAEConfig
    base_model_prefix = "beta_tcvae"

    def _penalty(self, latents, mean, log_variance, kl, permutation_noise):
        config = self.config
        (all_means, all_log_variances), _ = gather_batch(mean, log_variance, training=self.training)
        log_joint, log_marginals = aggregate_log_densities(latents, all_means, all_log_variances)
        log_prior = gaussian_log_density(latents, torch.zeros_like(latents), torch.zeros_like(latents)).sum(1)
        total_correlation = (log_joint - log_marginals).mean()
        dimension_kl = (log_marginals - log_prior).mean()
        lowest = config.mutual_information_weight
        penalty = lowest * kl.mean() + (config.total_correlation_weight - lowest) * total_correlation
        penalty = self._kl_scale() * (penalty + (config.dimension_kl_weight - lowest) * dimension_kl)
        return penalty, {
            "mutual_information_loss": kl.mean() - total_correlation - dimension_kl,
            "total_correlation_loss": total_correlation,
            "dimension_kl_loss": dimension_kl,
        }


class LatentDiscriminator(nn.Module):
    """Latents `(batch_size, latent_size)` to the log-odds `(batch_size,)` that they belong together: an MLP."""

    def __init__(self, latent_size: int, hidden_sizes: tuple[int, ...]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise((latent_size, *hidden_sizes, 1)))

    def forward(self, latents: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """`frozen`: gradients pass to the latents, not to the parameters."""
        hidden_state = latents
        for index, layer in enumerate(self.layers):
            hidden_state = hidden_state if index == 0 else F.leaky_relu(hidden_state, 0.2)
            weight, bias = (layer.weight.detach(), layer.bias.detach()) if frozen else (layer.weight, layer.bias)
            hidden_state = F.linear(hidden_state, weight, bias)
        return hidden_state.squeeze(1).float()


class FactorVAEModel(DisentangledVAE):
    """A VAE whose total correlation is told by a discriminator (Kim & Mnih 2018).

    The discriminator learns to tell latents of images from latents whose dimensions were exchanged between images; its
    log-odds estimate log q(z) / prod_j q(z_j), whose mean the auto-encoder is charged for. Its own loss is a part of
    `loss`, and each of the two has the gradient of its own losses only, so one backward pass serves both. They are
    two players with an optimizer each where `player_parameters` is asked, as our script does, and learn with one
    otherwise. The paper draws a second batch to exchange between; here it is the same, with the gradient stopped.
    """

    config_class = FactorVAEConfig
    base_model_prefix = "factor_vae"

    def __init__(self, config: FactorVAEConfig):
        super(DisentangledVAE, self).__init__(config)
        self.discriminator = LatentDiscriminator(config.latent_size, config.discriminator_hidden_sizes)
        self.post_init()

    def player_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of each player of the adversarial game: one optimizer for each."""
        own = list(self.discriminator.parameters())
        others = [p for name, p in self.named_parameters() if not name.startswith("discriminator.")]
        return {"autoencoder": others, "discriminator": own}

    def _penalty(self, latents, mean, log_variance, kl, permutation_noise):
        dtype = self.discriminator.layers[0].weight.dtype
        total_correlation = self.discriminator(latents.to(dtype), frozen=True).mean()
        own = latents.detach()
        if permutation_noise is None and self.training:
            permutation_noise = torch.rand_like(own)
        elif permutation_noise is None:
            rows, columns = (torch.arange(size, device=own.device) for size in own.shape)
            permutation_noise = (rows[:, None] * (1 - 2 * (columns % 2))).float()
        check_epsilon(permutation_noise, mean, self.latent_shape, name="permutation_noise")
        (rows, noise), place = gather_batch(own, permutation_noise, training=self.training)
        exchanged = exchange_dimensions(rows, noise)[place]
        together, apart = self.discriminator(own.to(dtype)), self.discriminator(exchanged.to(dtype))
        discriminator_loss = 0.5 * (F.softplus(-together) + F.softplus(apart)).mean()
        penalty = self.config.kl_weight * self._kl_scale() * kl.mean()
        penalty = penalty + self.config.total_correlation_weight * total_correlation + discriminator_loss
        return penalty, {"total_correlation_loss": total_correlation, "discriminator_loss": discriminator_loss}

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        epsilon: torch.Tensor | None = None,
        permutation_noise: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
    ) -> DisentangledVAEOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, C, H, W)`): images in [0, 1].
            epsilon (`torch.FloatTensor` of shape `(batch_size, latent_size)`, *optional*): standard normal noise of the
                sample. Default: drawn in training mode, zero (the posterior mean) in evaluation mode.
            permutation_noise (`torch.FloatTensor` of shape `(batch_size, latent_size)`, *optional*): random numbers
                whose order within a column says between which images that latent is exchanged. Default: drawn in
                training mode; in evaluation mode every second latent is that of the images in reverse order.
            return_loss (`bool`, *optional*, defaults to `True`): also compute the losses.
            output_hidden_states (`bool`, *optional*): also return the output of each level of the encoder.
        """
        return self._forward(pixel_values, epsilon, return_loss, output_hidden_states, permutation_noise)


class DIPVAEModel(DisentangledVAE):
    """A VAE whose latents are drawn to be uncorrelated and of variance 1, all images together (Kumar et al. 2018)."""

    config_class = DIPVAEConfig
    base_model_prefix = "dip_vae"

    def _penalty(self, latents, mean, log_variance, kl, permutation_noise):
        (means, variances), _ = gather_batch(mean, log_variance.exp(), training=self.training)
        centred = means - means.mean(0)
        with torch.autocast(means.device.type, enabled=False):
            covariance = centred.T @ centred / means.shape[0]
        diagonal = covariance.diagonal()
        off_diagonal_loss = (covariance - diagonal.diag()).square().sum()
        if self.config.covariance == "aggregate":
            diagonal = diagonal + variances.mean(0)
        diagonal_loss = (diagonal - 1).square().sum()
        penalty = kl.mean() + self.config.off_diagonal_weight * off_diagonal_loss
        penalty = penalty + self.config.diagonal_weight * diagonal_loss
        return penalty, {"off_diagonal_loss": off_diagonal_loss, "diagonal_loss": diagonal_loss}


__all__ = ["BetaVAEModel", "BetaTCVAEModel", "FactorVAEModel", "DIPVAEModel"]
