"""What every model of this package inherits."""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_base import ImageAutoencoderConfig
from .portable import PortableModel


class PreTrainedAutoencoder(PortableModel):
    """Base class of all models of this package: initialisation, and the conventions that `transformers` asks for."""

    config_class = ImageAutoencoderConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["ResidualBlock"]
    accepts_loss_kwargs = False  # else Trainer does not divide the loss by the accumulation steps

    def __init__(self, config: ImageAutoencoderConfig, *args, **kwargs):
        config.validate()  # again: fields set after construction, by `from_pretrained(path, field=value)`, were not all
        super().__init__(config, *args, **kwargs)

    @classmethod
    def is_custom_code(cls) -> bool:
        # transformers skips `_init_weights` for containers of classes from outside its own package. Ours is written
        # with `transformers.initialization`, which leaves loaded tensors alone, so nothing may be skipped.
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's default weights for linear and convolutional layers (He et al. 2015, uniform), zero biases.

        A module with parameters or buffers of its own has a method `initial_state() -> dict[str, Tensor]`.
        """
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif hasattr(module, "initial_state"):
            for name, value in module.initial_state().items():
                init.copy_(getattr(module, name), value)
        else:
            super()._init_weights(module)
