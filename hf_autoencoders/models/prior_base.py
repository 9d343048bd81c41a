"""What the learned priors share: they belong to the latents or codes of one auto-encoder, and of no other."""

from transformers import PreTrainedModel

from .base import PreTrainedAutoencoder
from .configuration_prior import PriorConfig
from .fingerprint import weights_fingerprint


def check_sampling(num_samples: int, temperature: float) -> None:
    """Raise a ValueError unless a prior can be sampled so."""
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"expected num_samples to be a whole number >= 1, got {num_samples!r}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"expected a temperature above 0, got {temperature}")


class PreTrainedPrior(PreTrainedAutoencoder):
    """Base class of priors over latents or codes. It holds no auto-encoder: `model.sample(n, prior=prior)` decodes."""

    config_class = PriorConfig
    input_modalities = ("latent",)
    supports_gradient_checkpointing = False
    gives_codes = False  # else latents

    def _shape_problem(self, config) -> str:
        """Why the latents or codes of an auto-encoder's configuration are not those of this prior; empty if so."""
        raise NotImplementedError

    def check_autoencoder(self, autoencoder: PreTrainedModel) -> None:
        """Check that this prior is one of what that auto-encoder encodes.

        Raises:
            ValueError: it is not: its latents or codes have another shape, or its weights are not those that the prior
                was trained with.
        """
        if problem := self._shape_problem(autoencoder.config):
            raise ValueError(f"this prior does not fit the auto-encoder: {problem}")
        expected = self.config.autoencoder_fingerprint
        if expected and (found := weights_fingerprint(autoencoder)) != expected:
            name = self.config.autoencoder or "an auto-encoder that its configuration does not name"
            raise ValueError(
                f"this prior was trained on the codes or latents of {name}, with weights of fingerprint {expected}, "
                f"but the auto-encoder has {found}: load the auto-encoder that the prior was trained with, or train a "
                "prior for this one (training/train_prior.py)"
            )
