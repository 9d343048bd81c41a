"""Configurations of the variational auto-encoders that are made to disentangle: each latent one factor of the data."""

from typing import Literal

from huggingface_hub.dataclasses import strict, validated_field

from .configuration_base import at_least
from .configuration_vae import GaussianLatentConfig


@strict
class BetaVAEConfig(GaussianLatentConfig):
    r"""
    Configuration of [`BetaVAEModel`].

    Args:
        capacity_weight (`float`, *optional*, defaults to 100.0):
            Weight of |KL - capacity| (gamma of Burgess et al. 2018). With `max_capacity=0` it is the weight of the KL
            term itself (beta of Higgins et al. 2017).
        max_capacity (`float`, *optional*, defaults to 25.0):
            Nats that the latents may hold at the end of the schedule, and in evaluation mode.
        capacity_warmup_steps (`int`, *optional*, defaults to 10000):
            Training steps (calls of `forward` in training mode) over which the capacity grows linearly from 0. The
            count is saved with the model.
    """

    model_type = "hfae_beta_vae"

    latent_size: int = validated_field(at_least(1), default=10)
    capacity_weight: float | int = validated_field(at_least(0), default=100.0)
    max_capacity: float | int = validated_field(at_least(0), default=25.0)
    capacity_warmup_steps: int = validated_field(at_least(0), default=10_000)


@strict
class BetaTCVAEConfig(GaussianLatentConfig):
    r"""
    Configuration of [`BetaTCVAEModel`]. With three equal weights the loss is that of a VAE with this beta.

    Args:
        mutual_information_weight (`float`, *optional*, defaults to 1.0):
            Weight of I(x; z), alpha of Chen et al. 2018.
        total_correlation_weight (`float`, *optional*, defaults to 6.0):
            Weight of KL(q(z) || prod_j q(z_j)), beta of Chen et al. 2018.
        dimension_kl_weight (`float`, *optional*, defaults to 1.0):
            Weight of sum_j KL(q(z_j) || p(z_j)), gamma of Chen et al. 2018.
        initial_kl_scale (`float`, *optional*, defaults to 1.0):
            Factor on all three weights in the first training step. Begun high, only what matters most for the
            reconstruction is encoded, in latents of their own; the rest joins as it falls.
        kl_decay_steps (`int`, *optional*, defaults to 0):
            Training steps (calls of `forward` in training mode) over which that factor falls, exponentially, to 1. The
            count is saved with the model.
    """

    model_type = "hfae_beta_tcvae"

    latent_size: int = validated_field(at_least(1), default=10)
    mutual_information_weight: float | int = validated_field(at_least(0), default=1.0)
    total_correlation_weight: float | int = validated_field(at_least(0), default=6.0)
    dimension_kl_weight: float | int = validated_field(at_least(0), default=1.0)
    initial_kl_scale: float | int = validated_field(at_least(0.01), default=1.0)
    kl_decay_steps: int = validated_field(at_least(0), default=0)


@strict
class FactorVAEConfig(GaussianLatentConfig):
    r"""
    Configuration of [`FactorVAEModel`].

    Args:
        total_correlation_weight (`float`, *optional*, defaults to 10.0):
            Weight of the discriminator's estimate of the total correlation, gamma of Kim & Mnih 2018.
        kl_weight (`float`, *optional*, defaults to 1.0):
            Weight of the KL term; 1 in the paper.
        initial_kl_scale (`float`, *optional*, defaults to 1.0):
            Factor on the weight of the KL term in the first training step. Begun high, only what matters most for the
            reconstruction is encoded, and the discriminator has few latents to tell apart; the rest joins as it falls.
        kl_decay_steps (`int`, *optional*, defaults to 0):
            Training steps (calls of `forward` in training mode) over which that factor falls, exponentially, to 1. The
            count is saved with the model.
        discriminator_hidden_sizes (`tuple[int, ...]`, *optional*, defaults to `(256, 256, 256)`):
            Widths of the layers of the discriminator, which tells latents from latents whose dimensions were exchanged
            between images; Kim & Mnih have six of 1,000.
    """

    model_type = "hfae_factor_vae"

    latent_size: int = validated_field(at_least(1), default=10)
    total_correlation_weight: float | int = validated_field(at_least(0), default=10.0)
    kl_weight: float | int = validated_field(at_least(0), default=1.0)
    initial_kl_scale: float | int = validated_field(at_least(0.01), default=1.0)
    kl_decay_steps: int = validated_field(at_least(0), default=0)
    discriminator_hidden_sizes: list[int] | tuple[int, ...] = validated_field(at_least(1), default=(256, 256, 256))


@strict
class DIPVAEConfig(GaussianLatentConfig):
    r"""
    Configuration of [`DIPVAEModel`].

    Args:
        covariance (`str`, *optional*, defaults to `"aggregate"`):
            What is drawn to the identity: the covariance of the posterior means (`"means"`, DIP-VAE-I of Kumar et al.
            2018) or of the samples of all posteriors together (`"aggregate"`, DIP-VAE-II).
        off_diagonal_weight (`float`, *optional*, defaults to 10.0):
            Weight of the squared covariances of different latents.
        diagonal_weight (`float`, *optional*, defaults to 10.0):
            Weight of the squared differences of the variances from 1.
    """

    model_type = "hfae_dip_vae"

    latent_size: int = validated_field(at_least(1), default=10)
    covariance: Literal["means", "aggregate"] = "aggregate"
    off_diagonal_weight: float | int = validated_field(at_least(0), default=10.0)
    diagonal_weight: float | int = validated_field(at_least(0), default=10.0)


__all__ = ["BetaVAEConfig", "BetaTCVAEConfig", "FactorVAEConfig", "DIPVAEConfig"]
