"""Auto-encoders whose code is discrete and says what is there: bits, classes, or classes with continuous latents.

    pixel_values -> encoder -> log-odds -> sampled code -> latents -> decoder -> reconstruction

    binary        bits, each there or not there                latents (B, num_bits), of 0 and 1
    categorical   one-hot variables: one is a clustering       latents (B, num_variables * num_categories)
    JointVAE      Gaussian latents and one-hot variables       latents (B, latent_size + num_variables * num_categories)
                  (Dupont 2018, https://arxiv.org/abs/1804.00104)

The loss is in nats per example: the variational bound with a uniform prior over the codes, and what a variant adds. How
gradients pass the sampled code: `sampling` in the configuration. In evaluation mode the code is the most probable one.
"""

import math

import torch
from torch.nn import functional as F
from transformers.utils import can_return_tuple

from .code_compression import CompressesCodes
from .configuration_discrete_autoencoder import (
    BinaryAutoencoderConfig,
    CategoricalAutoencoderConfig,
    DiscreteLatentConfig,
    JointVAEConfig,
)
from .layers import check_codes, check_latents, check_pixel_values
from .likelihood_base import LikelihoodAutoencoder, check_epsilon, gaussian_parameters, sample_gaussian
from .losses import bernoulli_sparsity, gather_batch, gaussian_kl, joint_mutual_information
from .outputs import DiscreteAutoencoderOutput, DiscreteEncoderOutput


def logistic_noise(uniform_noise: torch.Tensor) -> torch.Tensor:
    """Samples of the logistic distribution from uniform ones in [0, 1)."""
    uniform_noise = uniform_noise.float().clamp(1e-7, 1 - 1e-7)
    return torch.log(uniform_noise) - torch.log1p(-uniform_noise)


def gumbel_noise(uniform_noise: torch.Tensor) -> torch.Tensor:
    """Samples of the Gumbel distribution from uniform ones in [0, 1)."""
    return -torch.log(-torch.log(uniform_noise.float().clamp(1e-7, 1 - 1e-7)))


def pass_gradients(hard: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """The values of `hard` with the gradient of `soft` (straight-through)."""
    return soft + (hard - soft).detach()


def check_uniform_noise(noise: torch.Tensor, pixel_values: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless there is noise of this shape for each image."""
    expected = (pixel_values.shape[0], *shape)
    if not torch.is_tensor(noise) or noise.shape != expected:
        got = tuple(noise.shape) if torch.is_tensor(noise) else type(noise).__name__
        raise ValueError(f"uniform_noise must be a tensor of shape {expected}, got {got}")


class DiscreteAutoencoder(LikelihoodAutoencoder):
    """What auto-encoders with a discrete code share: temperature, samples of the prior."""

    code_axis = "num_variables"  # what the numbers of a code are called

    def __init__(self, config: DiscreteLatentConfig, num_outputs: int, normalize: bool = False):
        super().__init__(config, num_outputs, normalize)
        self.post_init()

    def _temperature(self, progress: torch.Tensor | float) -> torch.Tensor | float:
        first, last = self.config.initial_temperature, self.config.final_temperature
        return first * (last / first) ** progress

    def _check_codes(self, codes: torch.Tensor) -> torch.Tensor:
        check_codes(codes, self.config.codes_shape, self.code_axis, self.config.num_codes)
        return codes.long()

    @torch.no_grad()
    def sample(
        self, num_samples: int, generator: torch.Generator | None = None, *, prior=None, **options
    ) -> torch.Tensor:
        """Images `(num_samples, C, H, W)`: the decoder's means for codes drawn from the uniform prior, or from another
        `prior`, see [`SamplesFromPrior`].

        Raises:
            ValueError: `num_samples` below 1, or a prior of another auto-encoder.
        """
        if prior is not None:
            return super().sample(num_samples, generator, prior=prior, **options)
        if options:
            raise TypeError(f"{', '.join(options)}: the uniform prior takes no such argument, give a prior that does")
        if num_samples < 1:
            raise ValueError(f"expected num_samples >= 1, got {num_samples}")
        device = self.device if generator is None else generator.device
        shape = (num_samples, *self.config.codes_shape)
        codes = torch.randint(self.config.num_codes, shape, generator=generator, device=device)
        return self.decode_codes(codes.to(self.device), *self._sample_rest(num_samples, generator, device))

    def _sample_rest(self, num_samples: int, generator: torch.Generator | None, device) -> tuple[torch.Tensor, ...]:
        """What `decode_codes` takes beside the codes."""
        return ()

    def _output(self, pixel_values, latents, codes, probabilities, hidden_states, output_hidden_states, loss, **terms):
        parameters = self._decode(latents)
        if loss is not None:
            terms = {"reconstruction_loss": -self._log_likelihood(parameters, pixel_values).mean(), **terms}
            loss = terms["reconstruction_loss"] + loss
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return DiscreteAutoencoderOutput(
            latents=latents,
            codes=codes,
            reconstruction=self._mean_image(parameters),
            loss=loss,
            probabilities=probabilities,
            hidden_states=hidden_states if output_hidden_states else None,
            **terms,
        )


class BinaryAutoencoderModel(CompressesCodes, DiscreteAutoencoder):
    """Images to bits and back.

    ```python
    outputs = model.encode(pixel_values)              # outputs.codes: (B, num_bits), 0 or 1, and .probabilities of a 1
    images = model.decode_codes(outputs.codes)        # (B, C, H, W), equal to model.decode(outputs.latents)
    loss = model(pixel_values).loss                   # nats per example
    ```
    """

    config_class = BinaryAutoencoderConfig
    base_model_prefix = "binary_autoencoder"
    code_axis = "num_bits"

    def __init__(self, config: BinaryAutoencoderConfig):
        super().__init__(config, config.num_bits)

    @can_return_tuple
    def encode(self, pixel_values: torch.Tensor) -> DiscreteEncoderOutput:
        """The most probable bits of images `(batch_size, C, H, W)` in [0, 1]."""
        outputs, _ = self._encode(pixel_values)
        codes = (outputs > 0).long()
        probabilities = outputs.float().sigmoid().to(outputs.dtype)
        return DiscreteEncoderOutput(latents=codes.to(outputs.dtype), codes=codes, probabilities=probabilities)

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Images `(batch_size, C, H, W)` of bits `(batch_size, num_bits)`.

        Raises:
            TypeError, ValueError: codes of another dtype or shape, or other than 0 and 1.
        """
        return self.decode(self._check_codes(codes).to(self.encoder.output.weight.dtype))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        uniform_noise: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
    ) -> DiscreteAutoencoderOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, C, H, W)`): images in [0, 1].
            uniform_noise (`torch.FloatTensor` of shape `(batch_size, num_bits)`, *optional*): noise of the sample, from
                0 to 1. Default: drawn in training mode; in evaluation mode the most probable bits are decoded.
            return_loss (`bool`, *optional*, defaults to `True`): also compute the losses.
            output_hidden_states (`bool`, *optional*): also return the output of each level of the encoder.
        """
        config = self.config
        outputs, hidden_states = self._encode(pixel_values)
        logits = outputs.float()
        probabilities = logits.sigmoid()
        [progress] = self._progress(config.temperature_decay_steps)
        if uniform_noise is None and self.training:
            uniform_noise = torch.rand_like(logits)
        if uniform_noise is None:
            latents = (logits > 0).float()
            codes = latents.long()
        else:
            check_uniform_noise(uniform_noise, pixel_values, self.latent_shape)
            perturbed = logits + logistic_noise(uniform_noise)
            hard = (perturbed > 0).float()
            codes = hard.long()
            soft = torch.sigmoid(perturbed / self._temperature(progress))
            latents = {
                "relaxed": soft,
                "straight_through": pass_gradients(hard, probabilities),
                "straight_through_relaxed": pass_gradients(hard, soft),
            }[config.sampling]
        loss, terms = None, {}
        if return_loss:
            # KL from fair coins: log 2 less the entropy, without the logarithm of a probability of 0
            entropy = F.softplus(logits) - probabilities * logits
            terms["kl_loss"] = (math.log(2) - entropy).sum(1).mean()
            terms["balance_loss"] = bernoulli_sparsity(probabilities, 0.5, self.training)
            loss = config.beta * terms["kl_loss"] + config.balance_weight * terms["balance_loss"]
        latents, probabilities = latents.to(outputs.dtype), probabilities.to(outputs.dtype)
        return self._output(
            pixel_values, latents, codes, probabilities, hidden_states, output_hidden_states, loss, **terms
        )


def sample_categorical(
    log_probabilities: torch.Tensor,
    uniform_noise: torch.Tensor | None,
    sampling: str,
    temperature: torch.Tensor | float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One-hot vectors `(batch_size, num_variables, num_categories)`, as `sampling` says, and their indices.

    Without noise, of the most probable category.
    """
    num_categories = log_probabilities.shape[-1]
    if uniform_noise is None:
        codes = log_probabilities.argmax(-1)
        return F.one_hot(codes, num_categories).to(log_probabilities.dtype), codes
    perturbed = log_probabilities + gumbel_noise(uniform_noise)
    codes = perturbed.argmax(-1)
    hard = F.one_hot(codes, num_categories).to(log_probabilities.dtype)
    if sampling == "straight_through":
        return pass_gradients(hard, log_probabilities.exp()), codes
    soft = torch.softmax(perturbed / temperature, dim=-1)
    return (soft if sampling == "relaxed" else pass_gradients(hard, soft)), codes


class OneHotAutoencoder(DiscreteAutoencoder):
    """What auto-encoders with one-hot variables share."""

    def __init__(self, config: DiscreteLatentConfig, num_outputs: int, normalize: bool = False):
        self.one_hot_shape = (config.num_variables, config.num_categories)
        super().__init__(config, num_outputs + math.prod(self.one_hot_shape), normalize)

    def _log_probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Float32 `(batch_size, num_variables, num_categories)`, of the last outputs of the encoder."""
        return outputs[:, -math.prod(self.one_hot_shape) :].float().unflatten(1, self.one_hot_shape).log_softmax(-1)

    def _one_hot(self, codes: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_variables * num_categories)` of codes `(batch_size, num_variables)`."""
        one_hot = F.one_hot(self._check_codes(codes), self.config.num_categories).flatten(1)
        return one_hot.to(self.encoder.output.weight.dtype)

    def _sample_codes(self, log_probabilities: torch.Tensor, uniform_noise, pixel_values, progress):
        if uniform_noise is None and self.training:
            uniform_noise = torch.rand_like(log_probabilities)
        if uniform_noise is not None:
            check_uniform_noise(uniform_noise, pixel_values, self.one_hot_shape)
        temperature = self._temperature(progress)
        return sample_categorical(log_probabilities, uniform_noise, self.config.sampling, temperature)

    def cluster(self, pixel_values: torch.Tensor, variable: int = 0) -> torch.Tensor:
        """The cluster of each image: its most probable category of one variable, int64 `(batch_size,)`.

        Raises:
            ValueError: there is no such variable.
        """
        if not 0 <= variable < self.config.num_variables:
            raise ValueError(f"expected a variable from 0 to {self.config.num_variables - 1}, got {variable}")
        return self.encode(pixel_values).codes[:, variable]


def categorical_kl(log_probabilities: torch.Tensor) -> torch.Tensor:
    """KL from the uniform distribution of `(batch_size, num_variables, num_categories)`: `(batch_size,)`, nats."""
    kl = (log_probabilities.exp() * log_probabilities).sum(-1) + math.log(log_probabilities.shape[-1])
    return kl.sum(1)


def mutual_information(probabilities: torch.Tensor, of_views: torch.Tensor, training: bool = False) -> torch.Tensor:
    """I(c; c') between the categories of images and of changed views of them, summed over variables, nats.

    Of the joint distribution that a batch has on average, made symmetric (Ji et al. 2019, section 3.1). From 0, where
    all images have the same probabilities, to log `num_categories` for each variable, where all categories are equally
    frequent and every image is in one of them, for certain, with its view.

    Args:
        probabilities, of_views (`(batch_size, num_variables, num_categories)`): of images, and of a view of each.
        training (`bool`): whether the batch is that of all processes, see [`gather_batch`].
    """
    (one, other), _ = gather_batch(probabilities.float(), of_views.float(), training=training)
    with torch.autocast(one.device.type, enabled=False):
        joint = torch.einsum("bvk,bvl->vkl", one, other) / one.shape[0]
    return joint_mutual_information(0.5 * (joint + joint.mT)).sum()


class CategoricalAutoencoderModel(CompressesCodes, OneHotAutoencoder):
    """Images to classes that nobody named, and back.

    With `mutual_information_weight` the classes are those that views of an image have in common (invariant information
    clustering, Ji et al. 2019, https://arxiv.org/abs/1807.06653). The paper teaches few and many classes in turn, over
    the whole of its training; here the many, the fine ones, come first, and groups of them start the few. The features
    are normalised before the layer that gives the classes: without, training stays where every image is equally likely
    in every class.

    ```python
    outputs = model.encode(pixel_values)              # outputs.codes: (B, num_variables), and .probabilities
    classes = model.cluster(pixel_values)             # (B,), the first variable
    images = model.decode_codes(outputs.codes)        # (B, C, H, W): what is typical of the class
    loss = model(pixel_values).loss                   # nats per example
    ```
    """

    config_class = CategoricalAutoencoderConfig
    base_model_prefix = "categorical_autoencoder"

    def __init__(self, config: CategoricalAutoencoderConfig):
        super().__init__(config, config.num_fine_categories, normalize=True)

    def _fine_probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Float32 `(batch_size, 1, num_fine_categories)`, of the first outputs of the encoder."""
        return outputs[:, : self.config.num_fine_categories].float().softmax(1).unsqueeze(1)

    @can_return_tuple
    def encode(self, pixel_values: torch.Tensor) -> DiscreteEncoderOutput:
        """The most probable categories of images `(batch_size, C, H, W)` in [0, 1]."""
        outputs, _ = self._encode(pixel_values)
        log_probabilities = self._log_probabilities(outputs)
        latents, codes = sample_categorical(log_probabilities, None, self.config.sampling, 1.0)
        return DiscreteEncoderOutput(
            latents=latents.flatten(1).to(outputs.dtype),
            codes=codes,
            probabilities=log_probabilities.exp().to(outputs.dtype),
        )

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Images `(batch_size, C, H, W)` of codes `(batch_size, num_variables)`.

        Raises:
            TypeError, ValueError: codes of another dtype or shape, or outside `[0, config.num_categories)`.
        """
        return self.decode(self._one_hot(codes))

    @torch.no_grad()
    def fine_joint(self, pixel_values: torch.Tensor, augmented_pixel_values: torch.Tensor) -> torch.Tensor:
        """How often an image is in one fine category and its view in another: sums over images of the products of
        their probabilities, float64 on the CPU, `(num_fine_categories, num_fine_categories)`.

        Raises:
            ValueError: the model has no fine categories.
        """
        self._require_fine_categories()
        outputs, of_views, _ = self._encode_with_views(pixel_values, augmented_pixel_values)
        one, other = (self._fine_probabilities(o).squeeze(1).to("cpu", torch.float64) for o in (outputs, of_views))
        return one.T @ other

    @torch.no_grad()
    def group_fine_categories(self, groups: torch.Tensor) -> None:
        """Start each category from a group of fine ones: its weights and bias are the mean of theirs.

        Args:
            groups (`torch.LongTensor` of shape `(num_fine_categories,)`): the category that each is to belong to.

        Raises:
            ValueError: the model has no fine categories, or these are no such groups.
            TypeError: `groups` is no integer tensor.
        """
        self._require_fine_categories()
        if not torch.is_tensor(groups):
            raise TypeError(f"groups must be an integer tensor, got {type(groups).__name__}")
        check_codes(
            groups.unsqueeze(0), (self.config.num_fine_categories,), "num_fine_categories", self.config.num_codes
        )
        layer = self.encoder.output
        members = F.one_hot(groups.long(), self.config.num_categories).to(layer.weight)
        shares = (members / members.sum(0).clamp_min(1)).T
        for parameter in (layer.weight, layer.bias):
            fine, own = parameter.split([self.config.num_fine_categories, self.config.num_categories])
            own.copy_(shares @ fine)

    def _encode_with_views(self, pixel_values: torch.Tensor, views: torch.Tensor):
        """What `_encode` gives of images, and the numbers of their views, in one pass."""
        check_pixel_values(pixel_values, self.input_shape)
        if not torch.is_tensor(views) or views.shape != pixel_values.shape:
            got = tuple(views.shape) if torch.is_tensor(views) else type(views).__name__
            expected = tuple(pixel_values.shape)
            raise ValueError(f"augmented_pixel_values must have the shape of pixel_values, {expected}, got {got}")
        outputs, hidden_states = self._encode(torch.cat([pixel_values, views]))
        outputs, of_views = outputs.chunk(2)
        return outputs, of_views, tuple(state.chunk(2)[0] for state in hidden_states)

    def _require_fine_categories(self) -> None:
        if not self.config.num_fine_categories:
            raise ValueError("this model has no fine categories: set num_fine_categories in the configuration")

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        uniform_noise: torch.Tensor | None = None,
        augmented_pixel_values: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
    ) -> DiscreteAutoencoderOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, C, H, W)`): images in [0, 1].
            uniform_noise (`torch.FloatTensor` of shape `(batch_size, num_variables, num_categories)`, *optional*):
                noise of the sample, from 0 to 1. Default: drawn in training mode; in evaluation mode the most probable
                category is decoded.
            augmented_pixel_values (`torch.FloatTensor` of the shape of `pixel_values`, *optional*): changed views of
                the same images, of which the categories shall be the same. With a `mutual_information_weight` above 0
                needed for the loss in training mode; in evaluation mode that term is left out without them.
            return_loss (`bool`, *optional*, defaults to `True`): also compute the losses.
            output_hidden_states (`bool`, *optional*): also return the output of each level of the encoder.
        """
        config = self.config
        views = augmented_pixel_values if return_loss and config.mutual_information_weight > 0 else None
        if views is None:
            if self.training and return_loss and config.mutual_information_weight > 0:
                raise ValueError(
                    "the mutual information needs changed views of the images in training: pass "
                    "augmented_pixel_values, or set mutual_information_weight=0 in the configuration"
                )
            outputs, hidden_states = self._encode(pixel_values)
        else:
            outputs, of_views, hidden_states = self._encode_with_views(pixel_values, views)
        log_probabilities = self._log_probabilities(outputs)
        cooling, grouping = self._progress(config.temperature_decay_steps, config.fine_steps)
        latents, codes = self._sample_codes(log_probabilities, uniform_noise, pixel_values, cooling)
        loss, terms = None, {}
        if return_loss:
            terms["kl_loss"] = categorical_kl(log_probabilities).mean()
            loss = config.beta * terms["kl_loss"]
            if views is not None:
                both = log_probabilities.exp(), self._log_probabilities(of_views).exp()
                information = -mutual_information(*both, self.training)
                terms["mutual_information_loss"] = information
                if config.num_fine_categories:
                    both = self._fine_probabilities(outputs), self._fine_probabilities(of_views)
                    terms["fine_mutual_information_loss"] = -mutual_information(*both, self.training)
                    has_begun = (grouping >= 1).float() if torch.is_tensor(grouping) else 1.0
                    information = has_begun * information + terms["fine_mutual_information_loss"]
                loss = loss + config.mutual_information_weight * information
        latents, probabilities = latents.flatten(1).to(outputs.dtype), log_probabilities.exp().to(outputs.dtype)
        return self._output(
            pixel_values, latents, codes, probabilities, hidden_states, output_hidden_states, loss, **terms
        )


class JointVAEModel(OneHotAutoencoder):
    """Images to what kind they are and how they vary, and back (Dupont 2018).

    ```python
    outputs = model.encode(pixel_values)            # .codes (B, num_variables), .mean (B, latent_size); .latents: both
    images = model.decode(outputs.latents)            # (B, C, H, W)
    images = model.decode_codes(codes, continuous)    # of classes, and of Gaussian latents (0 when not given)
    loss = model(pixel_values).loss                   # nats per example
    ```
    """

    config_class = JointVAEConfig
    takes_prior = False
    base_model_prefix = "joint_vae"

    def __init__(self, config: JointVAEConfig):
        super().__init__(config, 2 * config.latent_size)

    def _parts(self, outputs: torch.Tensor):
        mean, log_variance = gaussian_parameters(outputs[:, : 2 * self.config.latent_size])
        return mean, log_variance, self._log_probabilities(outputs)

    @can_return_tuple
    def encode(self, pixel_values: torch.Tensor) -> DiscreteEncoderOutput:
        """Posterior means and most probable categories of images `(batch_size, C, H, W)` in [0, 1]."""
        outputs, _ = self._encode(pixel_values)
        mean, log_variance, log_probabilities = self._parts(outputs)
        one_hot, codes = sample_categorical(log_probabilities, None, self.config.sampling, 1.0)
        return DiscreteEncoderOutput(
            latents=torch.cat([mean, one_hot.flatten(1).to(mean.dtype)], dim=1),
            codes=codes,
            probabilities=log_probabilities.exp().to(outputs.dtype),
            mean=mean,
            log_variance=log_variance.to(mean.dtype),
        )

    def decode_codes(self, codes: torch.Tensor, continuous: torch.Tensor | None = None) -> torch.Tensor:
        """Images `(batch_size, C, H, W)` of codes `(batch_size, num_variables)`.

        Args:
            continuous (`torch.FloatTensor` of shape `(batch_size, latent_size)`, *optional*): the Gaussian latents;
                their prior mean, 0, when not given.

        Raises:
            TypeError, ValueError: codes of another dtype or shape, or outside `[0, config.num_categories)`.
        """
        one_hot = self._one_hot(codes)
        if continuous is None:
            continuous = one_hot.new_zeros(one_hot.shape[0], self.config.latent_size)
        check_latents(continuous, (self.config.latent_size,), "continuous")
        if continuous.shape[0] != one_hot.shape[0]:
            raise ValueError(f"continuous has {continuous.shape[0]} rows, but codes has {one_hot.shape[0]}")
        return self.decode(torch.cat([continuous.to(one_hot.dtype), one_hot], dim=1))

    def _sample_rest(self, num_samples, generator, device):
        size = (num_samples, self.config.latent_size)
        return (torch.randn(size, generator=generator, device=device).to(self.device),)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        epsilon: torch.Tensor | None = None,
        uniform_noise: torch.Tensor | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
    ) -> DiscreteAutoencoderOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, C, H, W)`): images in [0, 1].
            epsilon (`torch.FloatTensor` of shape `(batch_size, latent_size)`, *optional*): standard normal noise of the
                Gaussian part. Default: drawn in training mode, zero (the posterior mean) in evaluation mode.
            uniform_noise (`torch.FloatTensor` of shape `(batch_size, num_variables, num_categories)`, *optional*):
                noise of the one-hot part, from 0 to 1. Default: drawn in training mode; in evaluation mode the most
                probable category is decoded.
            return_loss (`bool`, *optional*, defaults to `True`): also compute the losses.
            output_hidden_states (`bool`, *optional*): also return the output of each level of the encoder.
        """
        config = self.config
        outputs, hidden_states = self._encode(pixel_values)
        mean, log_variance, log_probabilities = self._parts(outputs)
        cooling, filling = self._progress(config.temperature_decay_steps, config.capacity_warmup_steps)
        if epsilon is None and self.training:
            epsilon = torch.randn(mean.shape, device=mean.device)
        continuous = mean
        if epsilon is not None:
            check_epsilon(epsilon, mean, (config.latent_size,))
            continuous = sample_gaussian(mean, log_variance, epsilon)
        one_hot, codes = self._sample_codes(log_probabilities, uniform_noise, pixel_values, cooling)
        loss, terms = None, {}
        if return_loss:
            largest = config.num_variables * math.log(config.num_categories)
            capacities = config.max_continuous_capacity, min(config.max_discrete_capacity, largest)
            continuous_kl = gaussian_kl(mean, log_variance).sum(1)
            discrete_kl = categorical_kl(log_probabilities)
            all_kl, _ = gather_batch(continuous_kl, discrete_kl, training=self.training)
            distances = [(kl.mean() - filling * c).abs() for kl, c in zip(all_kl, capacities, strict=True)]
            loss = config.capacity_weight * sum(distances)
            terms["kl_loss"] = (continuous_kl + discrete_kl).mean()
            terms |= {"continuous_kl_loss": continuous_kl.mean(), "discrete_kl_loss": discrete_kl.mean()}
        latents = torch.cat([continuous, one_hot.flatten(1).to(continuous.dtype)], dim=1)
        return self._output(
            pixel_values,
            latents,
            codes,
            log_probabilities.exp().to(outputs.dtype),
            hidden_states,
            output_hidden_states,
            loss,
            mean=mean,
            log_variance=log_variance.to(mean.dtype),
            **terms,
        )


__all__ = ["BinaryAutoencoderModel", "CategoricalAutoencoderModel", "JointVAEModel"]
