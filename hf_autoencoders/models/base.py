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


class SamplesFromPrior:
    """What an image auto-encoder does with a prior of its latents or codes: `model.sample(16, prior=prior)`."""

    has_prior = False  # of its own, to sample from without another
    takes_prior = True

    @torch.no_grad()
    def sample(
        self, num_samples: int, generator: torch.Generator | None = None, *, prior=None, **options
    ) -> torch.Tensor:
        """Images `(num_samples, C, H, W)`, decoded from what a prior draws.

        Args:
            generator: of the random numbers; on the CPU the same seed gives the same images.
            prior ([`LatentPriorModel`] or [`CodePriorModel`]): a prior of the latents or codes of this auto-encoder.
            options: of the prior's `sample`: `temperature`; of a prior of codes also `classes` and `top_k`.

        Raises:
            ValueError: there is no prior, it belongs to another auto-encoder, or an option is out of its range.
        """
        if prior is None:
            raise ValueError(
                f"{type(self).__name__} has no prior of its own to sample from: give one, sample({num_samples}, "
                "prior=prior); training/train_prior.py trains it"
            )
        if not self.takes_prior:
            raise ValueError(
                f"the latents of {type(self).__name__} are part discrete, part continuous: no prior has both"
            )
        if not hasattr(prior, "check_autoencoder"):
            raise ValueError(f"expected a prior of latents or codes of this package, got {type(prior).__name__}")
        prior.check_autoencoder(self)
        drawn = prior.sample(num_samples, generator=generator, **options).to(self.device)
        return self.decode_codes(drawn) if prior.gives_codes else self.decode(drawn)
