"""Configurations of auto-encoders whose code is discrete: bits, one-hot variables, or both with continuous latents."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict, validated_field

from .configuration_base import at_least
from .configuration_vae import LikelihoodConfig


@strict
class DiscreteLatentConfig(LikelihoodConfig):
    r"""
    The fields that all auto-encoders with a discrete code share. Use the configuration of a variant, not this class.

    Args:
        sampling (`str`, *optional*, defaults to `"straight_through_relaxed"`):
            How gradients pass the sampled code in training. `"relaxed"`: a soft sample is decoded, of the
            Gumbel-softmax or binary concrete distribution (Jang et al. 2017; Maddison et al. 2017).
            `"straight_through_relaxed"`: it is made hard on the way forward. `"straight_through"`: a hard sample, whose
            gradient is taken for that of its probabilities (Bengio et al. 2013). In evaluation mode the code is the
            most probable one.
        initial_temperature (`float`, *optional*, defaults to 1.0):
            Temperature of the relaxed distribution in the first training step.
        final_temperature (`float`, *optional*, defaults to 0.5):
            And after `temperature_decay_steps`; in between it falls exponentially.
        temperature_decay_steps (`int`, *optional*, defaults to 0):
            Training steps (calls of `forward` in training mode) over which it falls; 0: it is final from the start. The
            count is saved with the model.
    """

    sampling: Literal["relaxed", "straight_through", "straight_through_relaxed"] = "straight_through_relaxed"
    initial_temperature: float | int = validated_field(at_least(0.01), default=1.0)
    final_temperature: float | int = validated_field(at_least(0.01), default=0.5)
    temperature_decay_steps: int = validated_field(at_least(0), default=0)


@strict
class BinaryAutoencoderConfig(DiscreteLatentConfig):
    r"""
    Configuration of [`BinaryAutoencoderModel`].

    Args:
        num_bits (`int`, *optional*, defaults to 32):
            Bits of the code.
        beta (`float`, *optional*, defaults to 1.0):
            Weight of the KL divergence of the bits' posterior from fair coins; with 1 the loss is the variational
            bound, unless `sampling="relaxed"`.
        balance_weight (`float`, *optional*, defaults to 0.0):
            Weight of the KL divergence between a fair coin and the mean of a bit over the batch, summed over bits: with
            it no bit is always the same.
    """

    model_type = "hfae_binary_autoencoder"
    attribute_map = {"hidden_size": "num_bits"}

    num_bits: int = validated_field(at_least(1), default=32)
    beta: float | int = validated_field(at_least(0), default=1.0)
    balance_weight: float | int = validated_field(at_least(0), default=0.0)

    @property
    def latent_shape(self) -> tuple[int]:
        """Shape of the latents of one input: (num_bits,)."""
        return (self.num_bits,)

    @property
    def codes_shape(self) -> tuple[int]:
        """Shape of the codes of one input: (num_bits,)."""
        return (self.num_bits,)

    @property
    def num_codes(self) -> int:
        """Values that one code can take: 2."""
        return 2

    @property
    def bits_per_input(self) -> float:
        """Bits of the code of one input."""
        return float(self.num_bits)


@strict
class CategoricalAutoencoderConfig(DiscreteLatentConfig):
    r"""
    Configuration of [`CategoricalAutoencoderModel`].

    Args:
        num_categories (`int`, *optional*, defaults to 10):
            Values of each one-hot variable.
        num_variables (`int`, *optional*, defaults to 1):
            One-hot variables of the code.
        beta (`float`, *optional*, defaults to 1.0):
            Weight of the KL divergence of the posterior from the uniform distribution; with 1, and 0 for the weight
            below, the loss is the variational bound.
        mutual_information_weight (`float`, *optional*, defaults to 0.0):
            Weight of the mutual information between the category of an image and that of a changed view of it, which
            is raised (Ji et al. 2019): an image and its views in one category, clearly, and categories of equal size.
            In training the views have to be given to `forward`.
        num_fine_categories (`int`, *optional*, defaults to 0):
            Values of another one-hot variable, which the mutual information alone teaches and which is no part of the
            code (over-clustering): it finds the kinds of images more reliably than few categories do, which then start
            from groups of them, see `group_fine_categories`. 0: none.
        fine_steps (`int`, *optional*, defaults to 0):
            Training steps (calls of `forward` in training mode) in which the mutual information is that of the fine
            categories alone. The count is saved with the model.
    """

    model_type = "hfae_categorical_autoencoder"
    attribute_map = {"hidden_size": "num_categories"}

    num_categories: int = validated_field(at_least(2), default=10)
    num_variables: int = validated_field(at_least(1), default=1)
    beta: float | int = validated_field(at_least(0), default=1.0)
    mutual_information_weight: float | int = validated_field(at_least(0), default=0.0)
    num_fine_categories: int = validated_field(at_least(0), default=0)
    fine_steps: int = validated_field(at_least(0), default=0)

    def validate_fine_categories(self):
        if self.num_fine_categories == 0:
            if self.fine_steps > 0:
                raise ValueError(f"fine_steps={self.fine_steps} needs num_fine_categories above num_categories")
            return
        if self.num_fine_categories <= self.num_categories:
            raise ValueError(
                f"expected num_fine_categories above num_categories={self.num_categories}, or 0, "
                f"got {self.num_fine_categories}"
            )
        if self.num_variables > 1:
            raise ValueError(f"num_fine_categories needs num_variables=1, got {self.num_variables}")
        if self.mutual_information_weight == 0:
            raise ValueError("num_fine_categories needs mutual_information_weight above 0, which alone teaches them")

    @property
    def latent_shape(self) -> tuple[int]:
        """Shape of the latents of one input: (num_variables * num_categories,), the one-hot vectors side by side."""
        return (self.num_variables * self.num_categories,)

    @property
    def codes_shape(self) -> tuple[int]:
        """Shape of the codes of one input: (num_variables,)."""
        return (self.num_variables,)

    @property
    def num_codes(self) -> int:
        """Values that one code can take: `num_categories`."""
        return self.num_categories

    @property
    def bits_per_input(self) -> float:
        """Bits that the codes of one input take when every value is equally likely."""
        return self.num_variables * math.log2(self.num_categories)


@strict
class JointVAEConfig(DiscreteLatentConfig):
    r"""
    Configuration of [`JointVAEModel`].

    Args:
        latent_size (`int`, *optional*, defaults to 10):
            Dimensions of the Gaussian part of the latents.
        num_categories (`int`, *optional*, defaults to 10):
            Values of each one-hot variable.
        num_variables (`int`, *optional*, defaults to 1):
            One-hot variables.
        capacity_weight (`float`, *optional*, defaults to 30.0):
            Weight of |KL - capacity| of either part (gamma of Dupont 2018).
        max_continuous_capacity (`float`, *optional*, defaults to 5.0):
            Nats that the Gaussian part may hold at the end of the schedule, and in evaluation mode.
        max_discrete_capacity (`float`, *optional*, defaults to 5.0):
            Nats that the one-hot part may hold; never more than `num_variables` log `num_categories` count.
        capacity_warmup_steps (`int`, *optional*, defaults to 10000):
            Training steps (calls of `forward` in training mode) over which both capacities grow linearly from 0. The
            count is saved with the model.
    """

    model_type = "hfae_joint_vae"
    attribute_map = {"hidden_size": "latent_size"}

    latent_size: int = validated_field(at_least(1), default=10)
    num_categories: int = validated_field(at_least(2), default=10)
    num_variables: int = validated_field(at_least(1), default=1)
    capacity_weight: float | int = validated_field(at_least(0), default=30.0)
    max_continuous_capacity: float | int = validated_field(at_least(0), default=5.0)
    max_discrete_capacity: float | int = validated_field(at_least(0), default=5.0)
    capacity_warmup_steps: int = validated_field(at_least(0), default=10_000)

    @property
    def latent_shape(self) -> tuple[int]:
        """Shape of the latents of one input: the Gaussian ones, then the one-hot vectors side by side."""
        return (self.latent_size + self.num_variables * self.num_categories,)

    @property
    def codes_shape(self) -> tuple[int]:
        """Shape of the codes of one input: (num_variables,)."""
        return (self.num_variables,)

    @property
    def num_codes(self) -> int:
        """Values that one code can take: `num_categories`."""
        return self.num_categories


__all__ = ["BinaryAutoencoderConfig", "CategoricalAutoencoderConfig", "JointVAEConfig"]
