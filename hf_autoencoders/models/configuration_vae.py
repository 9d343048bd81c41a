"""Configuration of the variational auto-encoder, and what all those with a Gaussian latent vector share."""

from typing import Literal

from huggingface_hub.dataclasses import strict, validated_field

from .configuration_base import ImageAutoencoderConfig, at_least


@strict
class LikelihoodConfig(ImageAutoencoderConfig):
    r"""
    The fields of image auto-encoders whose decoder is a likelihood. Use the configuration of a variant, not this class.

    Args:
        likelihood (`str`, *optional*, defaults to `"bernoulli"`):
            p(x|z): `"bernoulli"` (binary or grey pixels), `"gaussian"` or `"discretized_logistic"` (256 levels); the
            last two learn one scale for each channel.
        spatial_broadcast (`bool`, *optional*, defaults to `False`):
            Begin the decoder with one small network for all places, which is given the latents and the place (Watters
            et al. 2019): where things move, their positions are easier to disentangle. Not with `architecture="mlp"`.
    """

    likelihood: Literal["bernoulli", "gaussian", "discretized_logistic"] = "bernoulli"
    spatial_broadcast: bool = False

    def validate_spatial_broadcast(self):
        if self.spatial_broadcast and self.architecture == "mlp":
            raise ValueError('spatial_broadcast needs places: use architecture="conv" or "resnet", not "mlp"')

    def validate_likelihood_of_rows(self):
        if self.num_features and self.likelihood != "gaussian":
            raise ValueError(f'columns of a table are any numbers: use likelihood="gaussian", not "{self.likelihood}"')


@strict
class GaussianLatentConfig(LikelihoodConfig):
    r"""
    The fields that all variational auto-encoders share. Use the configuration of a variant, not this class.

    Args:
        latent_size (`int`, *optional*, defaults to 32):
            Dimensions of the Gaussian latent variable.
    """

    attribute_map = {"hidden_size": "latent_size"}

    latent_size: int = validated_field(at_least(1), default=32)

    @property
    def latent_shape(self) -> tuple[int]:
        """Shape of the latents of one input: (latent_size,)."""
        return (self.latent_size,)


@strict
class VAEConfig(GaussianLatentConfig):
    r"""
    Configuration of [`VAEModel`].

    Args:
        beta (`float`, *optional*, defaults to 1.0):
            Weight of the KL term; 1 is the variational bound, other values are a beta-VAE (Higgins et al. 2017).
        kl_warmup_steps (`int`, *optional*, defaults to 0):
            Training steps (calls of `forward` in training mode) over which the weight of the KL term grows linearly
            from 0 to `beta`. The count is saved with the model.
        free_bits (`float`, *optional*, defaults to 0.0):
            Nats of each latent dimension, averaged over the batch, that the KL term does not charge (Kingma et al.
            2016).
        num_posterior_samples (`int`, *optional*, defaults to 1):
            Samples of the posterior in training. More than one gives the importance-weighted bound (Burda et al. 2016),
            which is tighter and costs as many passes of the decoder.
    """

    model_type = "hfae_vae"

    beta: float | int = validated_field(at_least(0), default=1.0)
    kl_warmup_steps: int = validated_field(at_least(0), default=0)
    free_bits: float | int = validated_field(at_least(0), default=0.0)
    num_posterior_samples: int = validated_field(at_least(1), default=1)

    def validate_bound(self):
        if self.num_posterior_samples > 1 and self.free_bits > 0:
            raise ValueError(
                "free_bits needs the KL term, which the importance-weighted bound does not have: "
                f"use free_bits=0 with num_posterior_samples={self.num_posterior_samples}"
            )


__all__ = ["VAEConfig"]
