"""Priors of continuous latents: a standard normal, a mixture of Gaussians, or a normalizing flow.

    latents (B, *latent_shape) -> flat -> (latents - mean) / std -> density -> log_prob (B,)

A VAE is decoded from N(0, I), but its encoder does not quite give that: what lies between is a hole from which it has
never learned to decode (Rosca et al. 2018), and a plain auto-encoder has no prior at all. A second model of the latents
closes it (Dai & Wipf 2019, https://arxiv.org/abs/1903.05789; Ghosh et al. 2020, https://arxiv.org/abs/1903.12436).

RealNVP is that of Dinh et al. 2017 (https://arxiv.org/abs/1605.08803) on vectors. Where it departs from the paper: no
multiple scales; in the place of batch normalisation a learned scale and shift of each dimension (actnorm of Kingma &
Dhariwal 2018, begun at the identity, since what comes in is standardised); couplings begin as the identity.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .configuration_prior import LatentPriorConfig
from .layers import Float32Module, check_latents
from .outputs import LatentPriorOutput
from .prior_base import PreTrainedPrior, check_sampling

SMALLEST_STD = 1e-3  # of a latent: one that is always the same is taken for one that varies by this


def standard_normal_log_prob(noise: torch.Tensor) -> torch.Tensor:
    """log N(noise; 0, I) in nats, summed over the last axis."""
    return -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1)


class LatentStatistics(nn.Module):
    """Mean and standard deviation of each latent, over the training rows."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        for name, value in self.initial_state().items():
            self.register_buffer(name, value)

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The buffers of a new model, for `_init_weights`: they change nothing."""
        return {"mean": torch.zeros(self.size, device="cpu"), "std": torch.ones(self.size, device="cpu")}


class StandardNormal(nn.Module):
    """N(0, I)."""

    def __init__(self, config: LatentPriorConfig):
        super().__init__()

    def log_prob(self, values: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Nats, `(B,)`, of `(B, latent_size)`; a density without steps has nothing else to show."""
        return standard_normal_log_prob(values), None

    def sample(self, noise: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Values for standard normal noise `(B, latent_size)`."""
        return noise


class GaussianMixture(nn.Module):
    """Gaussians by the Cholesky factors of their precisions: component k has precision W_k^T W_k, W_k lower triangular
    with `exp(log_precision[k])` on its diagonal and `off_diagonal[k]` below (`covariance="full"`)."""

    def __init__(self, config: LatentPriorConfig):
        super().__init__()
        size, count = config.latent_size, config.num_components
        self.logits = nn.Parameter(torch.zeros(count))
        self.means = nn.Parameter(torch.zeros(count, size))
        self.log_precision = nn.Parameter(torch.zeros(count, size))
        self.off_diagonal = nn.Parameter(torch.zeros(count, size, size)) if config.covariance == "full" else None

    def factors(self) -> torch.Tensor:
        """W, `(num_components, latent_size, latent_size)`."""
        return torch.diag_embed(self.log_precision.exp()) + self.off_diagonal.tril(-1)

    def log_prob(self, values: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Nats, `(B,)`, of `(B, latent_size)`; a density without steps has nothing else to show."""
        away = values.unsqueeze(1) - self.means  # (B, num_components, latent_size)
        if self.off_diagonal is None:
            noise = away * self.log_precision.exp()
        else:
            noise = torch.einsum("kij,bkj->bki", self.factors(), away)
        log_probs = standard_normal_log_prob(noise) + self.log_precision.sum(1)
        return (self.logits.log_softmax(0) + log_probs).logsumexp(1), None

    def sample(self, noise: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Values for standard normal noise `(B, latent_size)`; the components are drawn."""
        device = noise.device if generator is None else generator.device
        chosen = self.logits.softmax(0).to(device).multinomial(len(noise), replacement=True, generator=generator)
        chosen = chosen.to(noise.device)
        if self.off_diagonal is None:
            return self.means[chosen] + noise * torch.exp(-self.log_precision[chosen])
        spread = torch.linalg.solve_triangular(self.factors()[chosen], noise.unsqueeze(2), upper=False)
        return self.means[chosen] + spread.squeeze(2)


class AffineCoupling(nn.Module):
    """Where `mask` is 0: values * exp(log_scale) + shift, both of what stands where `mask` is 1, which stays.

    The masks take turns: every other dimension, the rest, the first half, the second.
    """

    def __init__(self, config: LatentPriorConfig, index: int):
        super().__init__()
        self.size, self.index, self.max_log_scale = config.latent_size, index, config.max_log_scale
        self.register_buffer("mask", self.initial_state()["mask"])
        widths = [self.size, *[config.hidden_size] * config.num_hidden_layers]
        layers = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.network = nn.Sequential(*layers)
        self.output = nn.Linear(widths[-1], 2 * self.size)

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The mask."""
        places = torch.arange(self.size, device="cpu")
        kept = places % 2 == 0 if self.index % 4 < 2 else places < self.size // 2
        return {"mask": (kept if self.index % 2 == 0 else ~kept).float()}

    def parameters_for(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log_scale, within `max_log_scale`, and shift, `(B, latent_size)` each; both 0 where `mask` is 1."""
        log_scale, shift = self.output(self.network(values * self.mask)).chunk(2, dim=1)
        changed = 1 - self.mask
        return self.max_log_scale * torch.tanh(log_scale / self.max_log_scale) * changed, shift * changed

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step from latents to noise: the values, and the log-determinant of its Jacobian `(B,)`."""
        log_scale, shift = self.parameters_for(values)
        return values * log_scale.exp() + shift, log_scale.sum(1)

    def inverse(self, values: torch.Tensor) -> torch.Tensor:
        """The values that `forward` makes these of."""
        log_scale, shift = self.parameters_for(values)
        return (values - shift) * torch.exp(-log_scale)


class ActNorm(nn.Module):
    """values * exp(log_scale) + shift, of each dimension; begun at the identity."""

    def __init__(self, size: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(size))
        self.shift = nn.Parameter(torch.zeros(size))

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The identity."""
        return {name: torch.zeros_like(value, device="cpu") for name, value in self.named_parameters()}

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return values * self.log_scale.exp() + self.shift, self.log_scale.sum()

    def inverse(self, values: torch.Tensor) -> torch.Tensor:
        """The values that `forward` makes these of."""
        return (values - self.shift) * torch.exp(-self.log_scale)


class RealNVP(nn.Module):
    """An invertible network from latents to standard normal noise."""

    def __init__(self, config: LatentPriorConfig):
        super().__init__()
        steps = []
        for index in range(config.num_couplings):
            steps += [AffineCoupling(config, index), ActNorm(config.latent_size)]
        self.steps = nn.ModuleList(steps)

    def forward(self, values: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """What each step makes of values `(B, latent_size)`, of which the last is noise, and the log-determinant of the
        Jacobian of them all `(B,)`."""
        log_determinant, states = values.new_zeros(values.shape[0]), []
        for step in self.steps:
            values, change = step(values)
            log_determinant = log_determinant + change
            states.append(values)
        return tuple(states), log_determinant

    def inverse(self, noise: torch.Tensor) -> torch.Tensor:
        """Values of noise."""
        for step in reversed(self.steps):
            noise = step.inverse(noise)
        return noise

    def log_prob(self, values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Nats, `(B,)`, of `(B, latent_size)`, and what the steps make of these."""
        states, log_determinant = self(values)
        return standard_normal_log_prob(states[-1]) + log_determinant, states

    def sample(self, noise: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Values for standard normal noise `(B, latent_size)`."""
        return self.inverse(noise)


DENSITIES = {"standard_normal": StandardNormal, "gaussian_mixture": GaussianMixture, "realnvp": RealNVP}


class LatentPriorModel(Float32Module, PreTrainedPrior):
    """The density of the latents of an auto-encoder, and new latents.

    ```python
    prior.set_statistics(train_latents.mean(0), train_latents.std(0))   # once, before training
    log_prob = prior.log_prob(latents)                                  # (B,), nats
    images = autoencoder.decode(prior.sample(16))                       # or autoencoder.sample(16, prior=prior)
    loss = prior(latents).loss                                          # nats per example
    ```

    All of it is computed in float32, and stays in float32 in a model that is loaded as bfloat16, or converted to it.
    """

    config_class = LatentPriorConfig
    base_model_prefix = "latent_prior"
    main_input_name = "latents"
    _no_split_modules = ["AffineCoupling"]
    _keep_in_fp32_modules_strict = ["statistics", "density"]

    def __init__(self, config: LatentPriorConfig):
        super().__init__(config)
        self.statistics = LatentStatistics(config.latent_size)
        self.density = DENSITIES[config.prior](config)
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """float32. transformers asks the parameters, and a standard normal has none."""
        return self.statistics.mean.dtype

    @property
    def device(self) -> torch.device:
        """Where the model is; likewise."""
        return self.statistics.mean.device

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GaussianMixture):
            for parameter in module.parameters():
                (init.normal_ if parameter is module.means else init.zeros_)(parameter)
        elif isinstance(module, AffineCoupling):  # begin as the identity
            init.zeros_(module.output.weight)
            init.zeros_(module.output.bias)

    @torch.no_grad()
    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Standardise latents by these from now on.

        Args:
            mean, std (`torch.FloatTensor` of shape `(*latent_shape)`): over the training rows; a standard deviation
                below 0.001 counts as that.

        Raises:
            ValueError: another shape, or values that are not finite.
        """
        for name, value, least in (("mean", mean, -math.inf), ("std", std, SMALLEST_STD)):
            if tuple(value.shape) != tuple(self.config.latent_shape):
                raise ValueError(f"{name} must have shape {tuple(self.config.latent_shape)}, got {tuple(value.shape)}")
            if not value.isfinite().all():
                raise ValueError(f"{name} is not finite: the latents hold NaN or infinite values")
            getattr(self.statistics, name).copy_(value.flatten().clamp_min(least))

    @can_return_tuple
    def forward(
        self, latents: torch.Tensor, return_loss: bool = True, output_hidden_states: bool | None = None
    ) -> LatentPriorOutput:
        """
        Args:
            latents (`torch.FloatTensor` of shape `(batch_size, *latent_shape)`): as the auto-encoder gives them.
            return_loss (`bool`, *optional*, defaults to `True`): also compute the loss, nats per example.
            output_hidden_states (`bool`, *optional*): also return what each step of a flow makes of the latents.
        """
        check_latents(latents, tuple(self.config.latent_shape))
        with torch.autocast(latents.device.type, enabled=False):
            mean, std = self.statistics.mean, self.statistics.std
            values = (latents.flatten(1).float() - mean) / std
            log_prob, states = self.density.log_prob(values)
            log_prob = log_prob - std.log().sum()
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return LatentPriorOutput(
            log_prob=log_prob,
            loss=-log_prob.mean() if return_loss else None,
            hidden_states=states if output_hidden_states else None,
        )

    def log_prob(self, latents: torch.Tensor) -> torch.Tensor:
        """log p(latents) in nats, float32 `(batch_size,)`, of latents `(batch_size, *latent_shape)`."""
        return self(latents, return_loss=False).log_prob

    @torch.no_grad()
    def sample(
        self, num_samples: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """New latents `(num_samples, *latent_shape)`, float32, on the model's device.

        Args:
            temperature: factor on the noise; below 1 keeps to what is likely.
            generator: of the random numbers; on the CPU the same seed gives the same latents.

        Raises:
            ValueError: `num_samples` below 1 or a temperature that is not above 0.
        """
        check_sampling(num_samples, temperature)
        mean, std = self.statistics.mean, self.statistics.std
        device = mean.device if generator is None else generator.device
        noise = torch.randn(num_samples, self.config.latent_size, generator=generator, device=device)
        values = self.density.sample(temperature * noise.to(mean.device), generator)
        return (values * std + mean).unflatten(1, tuple(self.config.latent_shape))

    def _shape_problem(self, config) -> str:
        theirs, own = tuple(getattr(config, "latent_shape", ())), tuple(self.config.latent_shape)
        if theirs == own:
            return ""
        return f"it is one of latents of shape {own}, but {config.model_type} has latents of shape {theirs}"


__all__ = ["LatentPriorModel"]
