"""Configuration of the deterministic auto-encoder."""

from typing import Literal

from huggingface_hub.dataclasses import strict, validated_field

from .configuration_base import ImageAutoencoderConfig, at_least, in_range


@strict
class AutoencoderConfig(ImageAutoencoderConfig):
    r"""
    Configuration of [`AutoencoderModel`] and [`AutoencoderForImageClassification`].

    Args:
        latent_size (`int`, *optional*, defaults to 32):
            Length of the code.
        latent_activation (`str`, *optional*, defaults to `"none"`):
            Activation of the code: `"none"`, `"relu"`, `"sigmoid"` or `"tanh"`.
        reconstruction_loss (`str`, *optional*, defaults to `"mse"`):
            `"mse"` (squared error) or `"bce"` (cross-entropy of pixels in [0, 1]; the output goes through a sigmoid).
            Both are means over all input dimensions.
        noise (`str`, *optional*, defaults to `"none"`):
            Noise on the input in training, for a denoising auto-encoder (Vincent et al. 2010): `"gaussian"`,
            `"masking"` (pixels set to 0) or `"salt_and_pepper"` (pixels set to 0 or 1).
        noise_level (`float`, *optional*, defaults to 0.3):
            Standard deviation of the Gaussian noise, or share of the pixels that are changed.
        sparsity (`str`, *optional*, defaults to `"none"`):
            Penalty on the code: `"l1"` (mean absolute value) or `"kl"` (divergence of each unit's mean activation
            from `sparsity_target`, Ng 2011; needs `latent_activation="sigmoid"`).
        sparsity_weight (`float`, *optional*, defaults to 0.001):
            Weight of the sparsity penalty.
        sparsity_target (`float`, *optional*, defaults to 0.05):
            Mean activation wanted by `sparsity="kl"`.
        contractive_weight (`float`, *optional*, defaults to 0.0):
            Weight of the squared Frobenius norm of the encoder's Jacobian (Rifai et al. 2011), estimated from the
            change of the code under a small random change of the input.
        freeze_encoder (`bool`, *optional*, defaults to `False`):
            For the classifier: train the classification layer only.
    """

    model_type = "hfae_autoencoder"
    attribute_map = {"hidden_size": "latent_size"}

    latent_size: int = validated_field(at_least(1), default=32)
    latent_activation: Literal["none", "relu", "sigmoid", "tanh"] = "none"
    reconstruction_loss: Literal["mse", "bce"] = "mse"
    noise: Literal["none", "gaussian", "masking", "salt_and_pepper"] = "none"
    noise_level: float | int = validated_field(in_range(0, 1), default=0.3)
    sparsity: Literal["none", "l1", "kl"] = "none"
    sparsity_weight: float | int = validated_field(at_least(0), default=0.001)
    sparsity_target: float = validated_field(in_range(1e-6, 1 - 1e-6), default=0.05)
    contractive_weight: float | int = validated_field(at_least(0), default=0.0)
    freeze_encoder: bool = False

    @property
    def latent_shape(self) -> tuple[int]:
        """Shape of the latents of one input: (latent_size,)."""
        return (self.latent_size,)

    def validate_loss_of_rows(self):
        if self.num_features and self.reconstruction_loss == "bce":
            raise ValueError('columns of a table are any numbers: use reconstruction_loss="mse", not "bce"')

    def validate_sparsity(self):
        if self.sparsity == "kl" and self.latent_activation != "sigmoid":
            raise ValueError(
                'sparsity="kl" compares mean activations in (0, 1) with sparsity_target: set latent_activation='
                f'"sigmoid", not "{self.latent_activation}"'
            )


__all__ = ["AutoencoderConfig"]
