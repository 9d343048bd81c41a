"""Deterministic auto-encoder, and a classifier on its encoder.

    pixel_values (B, C, H, W) -> [noise] -> encoder -> latents (B, latent_size)
                                                              |
    reconstruction (B, C, H, W)  <-  decoder  <---------------+

Options: denoising (Vincent et al. 2010), sparse (Ng 2011) and contractive (Rifai et al. 2011) auto-encoders. The
contractive penalty departs from the paper: instead of the Jacobian of one sigmoid layer in closed form, it is estimated
for any encoder from the change of the code under a small random change of the input.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import can_return_tuple

from .anomaly import DetectingAutoencoder
from .base import PreTrainedAutoencoder, SamplesFromPrior
from .configuration_autoencoder import AutoencoderConfig
from .layers import VectorDecoder, VectorEncoder, check_latents, check_pixel_values
from .losses import bernoulli_sparsity
from .outputs import AutoencoderOutput, EncoderOutput


def corrupt(pixel_values: torch.Tensor, noise: str, level: float, draws: torch.Tensor | None = None) -> torch.Tensor:
    """Noisy copies of images `(batch_size, C, H, W)`, see [`AutoencoderConfig`]; a pixel's channels change together.
    Of rows `(batch_size, num_features)` each number by itself.

    `draws`, of the same shape, are the random numbers: standard normal for `"gaussian"`, uniform in [0, 1) otherwise.
    """
    if noise == "gaussian":
        return pixel_values + level * (torch.randn_like(pixel_values) if draws is None else draws)
    channel = slice(1) if pixel_values.ndim == 4 else slice(None)
    uniform = torch.rand_like(pixel_values[:, channel]) if draws is None else draws[:, channel]
    value = torch.zeros_like(uniform)
    if noise == "salt_and_pepper":
        value = (uniform < level / 2).to(value.dtype)
    return torch.where(uniform < level, value, pixel_values)


class AutoencoderModel(SamplesFromPrior, DetectingAutoencoder):
    """Images to a latent vector and back.

    ```python
    latents = model.encode(pixel_values).latents   # (B, latent_size)
    images = model.decode(latents)                 # (B, C, H, W)
    loss = model(pixel_values).loss
    ```

    Args:
        add_decoder (`bool`): `False` builds the encoder only, for heads that need no reconstruction.
    """

    config_class = AutoencoderConfig
    base_model_prefix = "autoencoder"
    contraction_step = 1e-2  # standard deviation of the change of the input, in units of the pixel range

    def __init__(self, config: AutoencoderConfig, add_decoder: bool = True):
        super().__init__(config)
        self.encoder = VectorEncoder(config, config.latent_size)
        self.latent_activation = ACT2FN["linear" if config.latent_activation == "none" else config.latent_activation]
        self.decoder = VectorDecoder(config, config.latent_size) if add_decoder else None
        self.detector = self.detector if add_decoder else None
        # reading a configuration costs as much as a small layer
        self.input_shape, self.latent_shape = config.input_shape, config.latent_shape
        self.post_init()

    def _encode(self, pixel_values: torch.Tensor):
        check_pixel_values(pixel_values, self.input_shape)
        latents, hidden_states = self.encoder(pixel_values.to(self.encoder.output.weight.dtype))
        return self.latent_activation(latents), hidden_states

    @can_return_tuple
    def encode(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> EncoderOutput:
        """Latents `(batch_size, latent_size)` of images `(batch_size, C, H, W)` in [0, 1]."""
        latents, hidden_states = self._encode(pixel_values)
        return EncoderOutput(latents=latents, hidden_states=hidden_states if output_hidden_states else None)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        if self.decoder is None:
            raise ValueError("this auto-encoder was built without a decoder: load it with AutoModel to decode")
        check_latents(latents, self.latent_shape)
        return self.decoder(latents.to(self.decoder.input.weight.dtype))

    def _output(self, decoded: torch.Tensor) -> torch.Tensor:
        return decoded.sigmoid() if self.config.reconstruction_loss == "bce" else decoded

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images `(batch_size, C, H, W)` of latents `(batch_size, latent_size)`.

        Values are in [0, 1] for `reconstruction_loss="bce"` and may leave it slightly for `"mse"`.
        """
        return self._output(self._decode(latents))

    def _contraction(
        self, pixel_values: torch.Tensor, latents: torch.Tensor, draws: torch.Tensor | None
    ) -> torch.Tensor:
        """Mean over the batch of the squared Frobenius norm of d latents / d pixel_values.

        For e ~ N(0, I) and a small s, E |f(x + s e) - f(x)|^2 / s^2 is that norm, for a linear encoder at any s. In
        evaluation mode e is the same at every call: random-looking signs, which serve as well as normal numbers.
        """
        if draws is None and self.training:
            draws = torch.randn_like(pixel_values)
        elif draws is None:
            index = torch.arange(pixel_values.numel(), device=pixel_values.device) % 65521
            odd = (index * index % 65521 * index + 7 * index) % 65521 % 2  # a cubic polynomial modulo a prime
            draws = (1 - 2 * odd).to(pixel_values.dtype).view_as(pixel_values)
        changed = pixel_values + self.contraction_step * draws
        device_type = pixel_values.device.type
        if torch.is_autocast_enabled(device_type):  # bfloat16 has not the digits for so small a change
            with torch.autocast(device_type, enabled=False):
                change = self._encode(changed)[0] - self._encode(pixel_values)[0]
        else:
            change = self._encode(changed)[0] - latents
        change = change.float()
        return change.square().sum(1).mean() / self.contraction_step**2

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        noise: torch.Tensor | None = None,
        perturbation: torch.Tensor | None = None,
    ) -> AutoencoderOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, C, H, W)`): images in [0, 1].
            return_loss (`bool`, *optional*, defaults to `True`): also compute the losses.
            output_hidden_states (`bool`, *optional*): also return the output of each level of the encoder.
            noise (`torch.FloatTensor` of shape `(batch_size, C, H, W)`, *optional*): the random numbers of
                `config.noise`, see [`corrupt`]; drawn when not given. Used in training mode only.
            perturbation (`torch.FloatTensor` of shape `(batch_size, C, H, W)`, *optional*): the standard normal numbers
                of the contractive penalty; when not given, drawn in training mode and fixed otherwise.
        """
        config, inputs = self.config, pixel_values
        for name, draws in (("noise", noise), ("perturbation", perturbation)):
            if draws is not None and draws.shape != pixel_values.shape:
                shapes = f"{tuple(pixel_values.shape)}, got {tuple(draws.shape)}"
                raise ValueError(f"{name} must have the shape of pixel_values, {shapes}")
        if self.training and config.noise != "none":
            check_pixel_values(pixel_values, self.input_shape)
            inputs = corrupt(pixel_values, config.noise, config.noise_level, noise)
        latents, hidden_states = self._encode(inputs)
        decoded = self._decode(latents)

        loss = reconstruction_loss = sparsity_loss = contractive_loss = None
        if return_loss:
            compare = F.mse_loss if config.reconstruction_loss == "mse" else F.binary_cross_entropy_with_logits
            loss = reconstruction_loss = compare(decoded.float(), pixel_values.float())
            if config.sparsity != "none":
                if config.sparsity == "l1":
                    sparsity_loss = latents.float().abs().mean()
                else:
                    sparsity_loss = bernoulli_sparsity(latents, config.sparsity_target, self.training)
                loss = loss + config.sparsity_weight * sparsity_loss
            if config.contractive_weight > 0:
                contractive_loss = self._contraction(inputs, latents, perturbation)
                loss = loss + config.contractive_weight * contractive_loss
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        return AutoencoderOutput(
            latents=latents,
            reconstruction=self._output(decoded),
            loss=loss,
            reconstruction_loss=reconstruction_loss,
            sparsity_loss=sparsity_loss,
            contractive_loss=contractive_loss,
            hidden_states=hidden_states if output_hidden_states else None,
        )


class AutoencoderForImageClassification(PreTrainedAutoencoder):
    """A linear classifier on the code of an auto-encoder's encoder.

    Load it from a trained auto-encoder: `from_pretrained(path, num_labels=10)`. With `config.freeze_encoder` only the
    classification layer learns; otherwise the encoder is fine-tuned with it.
    """

    config_class = AutoencoderConfig
    base_model_prefix = "autoencoder"
    _keys_to_ignore_on_load_unexpected = [r"(^|\.)(decoder|detector)\."]

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.autoencoder = AutoencoderModel(config, add_decoder=False)
        self.classifier = nn.Linear(config.latent_size, config.num_labels)
        self.post_init()
        self._freeze_encoder()

    def _freeze_encoder(self) -> None:
        if self.config.freeze_encoder:
            self.autoencoder.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        # `requires_grad=False` does not survive loading
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze_encoder()
        return loaded

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, C, H, W)`): images in [0, 1].
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): classes in `[0, num_labels)`, for the
                cross-entropy loss.
            output_hidden_states (`bool`, *optional*): also return the output of each level of the encoder.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        encoded = self.autoencoder.encode(
            pixel_values, output_hidden_states=bool(output_hidden_states), return_dict=True
        )
        logits = self.classifier(encoded.latents)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)


__all__ = ["AutoencoderForImageClassification", "AutoencoderModel"]
