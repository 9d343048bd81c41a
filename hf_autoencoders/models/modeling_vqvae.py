"""Vector-quantised auto-encoder (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937).

    pixel_values (B, C, H, W) -> encoder -> (B, D, h, w) -> quantizer -> codes (B, num_codebooks, h, w)
                                                                |
    reconstruction (B, C, H, W) <- decoder <----- latents (B, D, h, w)

The choices of bottleneck (one codebook, residual codebooks, FSQ) and how they depart from the papers: `bottlenecks.py`.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .anomaly import DetectingAutoencoder
from .base import SamplesFromPrior
from .bottlenecks import FiniteScalarQuantizer, ResidualVectorQuantizer
from .code_compression import CompressesCodes
from .configuration_vqvae import VQVAEConfig
from .layers import ImageDecoder, ImageEncoder, check_codes, check_latents, check_pixel_values
from .outputs import QuantizedEncoderOutput, VQVAEOutput


class VQVAEModel(CompressesCodes, SamplesFromPrior, DetectingAutoencoder):
    """Images to a grid of discrete codes and back.

    ```python
    outputs = model.encode(pixel_values)              # outputs.codes: (B, num_codebooks, h, w), int64
    images = model.decode_codes(outputs.codes)        # (B, C, H, W), equal to model.decode(outputs.latents)
    files = model.compress(pixel_values)              # list of bytes; fewer with a prior of the codes, prior=prior
    images = model.decompress(files)                  # list of uint8 tensors (C, H, W)
    loss = model(pixel_values).loss
    ```
    """

    config_class = VQVAEConfig
    base_model_prefix = "vqvae"
    # The codebook and its statistics stay float32 in a model that is loaded as bfloat16: 1% of the codes would differ.
    _keep_in_fp32_modules_strict = ["quantizer"]

    def __init__(self, config: VQVAEConfig):
        super().__init__(config)
        channels, latent_dim = config.hidden_sizes[-1], config.latent_shape[0]
        self.encoder = ImageEncoder(config)
        self.to_latents = nn.Conv2d(channels, latent_dim, kernel_size=1)
        if config.quantizer == "fsq":
            self.quantizer = FiniteScalarQuantizer(config.fsq_levels)
        else:
            self.quantizer = ResidualVectorQuantizer(
                config.num_codebooks,
                config.codebook_size,
                config.embedding_dim,
                codebook_update=config.codebook_update,
                cosine=config.codebook_distance == "cosine",
                decay=config.ema_decay,
                dead_code_threshold=config.dead_code_threshold,
                kmeans_init=config.kmeans_init,
            )
        self.from_latents = nn.Conv2d(latent_dim, channels, kernel_size=3, padding=1)
        self.decoder = ImageDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # A new encoder's small outputs all round to the code of zero. With zero biases as well, everything after it is
        # zero, a ReLU passes no gradient there, and nothing but the last bias ever learns.
        if self.config.quantizer == "fsq" and module is self.from_latents:
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.bias, -bound, bound)

    def _quantize(self, pixel_values: torch.Tensor, update: bool = False):
        check_pixel_values(pixel_values, self.config.input_shape)
        features, hidden_states = self.encoder(pixel_values.to(self.to_latents.weight.dtype))
        return hidden_states, *self.quantizer(self.to_latents(features), update)

    @can_return_tuple
    def encode(self, pixel_values: torch.Tensor) -> QuantizedEncoderOutput:
        """Codes and quantised latents of images `(batch_size, C, H, W)` in [0, 1]; never changes the codebooks."""
        _, latents, codes, _, _ = self._quantize(pixel_values)
        return QuantizedEncoderOutput(latents=latents, codes=codes)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images `(batch_size, C, H, W)` of latents `(batch_size, D, h, w)`; values may leave [0, 1] slightly."""
        check_latents(latents, self.config.latent_shape)
        return self.decoder(self.from_latents(latents.to(self.from_latents.weight.dtype)))

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Images `(batch_size, C, H, W)` of codes `(batch_size, num_codebooks, h, w)`.

        Raises:
            TypeError, ValueError: codes of another dtype or shape, or outside `[0, config.num_codes)`.
        """
        check_codes(codes, self.config.codes_shape, "num_codebooks, height, width", self.config.num_codes)
        return self.decode(self.quantizer.decode(codes.long()))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
    ) -> VQVAEOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, C, H, W)`): images in [0, 1].
            return_loss (`bool`, *optional*, defaults to `True`): also compute the losses.
            output_hidden_states (`bool`, *optional*): also return the output of each level of the encoder.
        """
        hidden_states, latents, codes, commitment_loss, codebook_loss = self._quantize(pixel_values, self.training)
        reconstruction = self.decode(latents)
        loss = reconstruction_loss = None
        if return_loss:
            loss = reconstruction_loss = F.mse_loss(reconstruction.float(), pixel_values.float())
            if commitment_loss is not None:
                loss = loss + self.config.commitment_cost * commitment_loss
            if codebook_loss is not None:
                loss = loss + self.config.codebook_cost * codebook_loss
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return VQVAEOutput(
            latents=latents,
            codes=codes,
            reconstruction=reconstruction,
            loss=loss,
            reconstruction_loss=reconstruction_loss,
            commitment_loss=commitment_loss if return_loss else None,
            codebook_loss=codebook_loss if return_loss else None,
            hidden_states=hidden_states if output_hidden_states else None,
        )


__all__ = ["VQVAEModel"]
