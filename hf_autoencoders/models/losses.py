"""Likelihoods, divergences and penalties, always computed in float32.

Functions named `..._log_likelihood` and `gaussian_kl` return nats; the former are summed over the dimensions of an
example, shape `(batch_size,)`. A model's `loss` is the mean over the batch.
"""

import torch
import torch.distributed as dist
from torch.nn import functional as F


def bernoulli_log_likelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p(x) of independent Bernoulli pixels. Grey targets in [0, 1] give the negative cross-entropy.

    Args:
        logits, targets (`(batch_size, ...)`): log-odds of a pixel being 1, and the pixels.

    Returns:
        `(batch_size,)`, nats.
    """
    nll = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return -nll.flatten(1).sum(1)


def gaussian_log_likelihood(mean: torch.Tensor, log_scale: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log density of independent Gaussian pixels of standard deviation exp(log_scale).

    Args:
        mean, targets (`(batch_size, ...)`): the predicted mean, and the pixels.
        log_scale (broadcastable to `mean`): log of the standard deviation, in units of the pixel range [0, 1].

    Returns:
        `(batch_size,)`, nats (of a density: may be positive).
    """
    standardised = (targets.float() - mean.float()) * torch.exp(-log_scale)
    log_density = -0.5 * standardised.square() - log_scale - 0.9189385332046727  # log(2 pi) / 2
    return log_density.flatten(1).sum(1)


def discretized_logistic_log_likelihood(
    mean: torch.Tensor, log_scale: torch.Tensor, targets: torch.Tensor, num_levels: int = 256
) -> torch.Tensor:
    """log probability of pixels on a grid of `num_levels` values in [0, 1] (Kingma et al. 2016; Salimans et al. 2017).

    Each level has the mass of a logistic distribution within half a step around it; the first and the last level have
    the tails as well, so that the levels' probabilities sum to one.

    Args:
        mean, targets (`(batch_size, ...)`): location of the logistic distribution, and the pixels.
        log_scale (broadcastable to `mean`): log of its scale, in units of the pixel range [0, 1].

    Returns:
        `(batch_size,)`, nats.
    """
    step = 1.0 / (num_levels - 1)
    targets, inverse_scale = targets.float(), torch.exp(-log_scale)
    centred = targets - mean.float()
    upper = (centred + step / 2) * inverse_scale
    lower = (centred - step / 2) * inverse_scale
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), without cancellation
    log_below, log_above = F.logsigmoid(upper), F.logsigmoid(-lower)
    log_mass = log_below + log_above + torch.log(-torch.expm1(-step * inverse_scale))
    log_mass = torch.where(targets < step / 2, log_below, log_mass)
    log_mass = torch.where(targets > 1 - step / 2, log_above, log_mass)
    return log_mass.flatten(1).sum(1)


def gaussian_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each dimension (Kingma & Welling 2014, appendix B).

    Args:
        mean, log_variance (`(batch_size, latent_size)`).

    Returns:
        `(batch_size, latent_size)`, nats.
    """
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


def gaussian_log_density(values: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """log N(values; mean, exp(log_variance)) of each number, nats; the three shapes broadcast."""
    standardised = (values - mean).square() * torch.exp(-log_variance)
    return -0.5 * (standardised + log_variance + 1.8378770664093453)  # log(2 pi)


def aggregate_log_densities(
    latents: torch.Tensor, means: torch.Tensor, log_variances: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log q(z) and sum_j log q(z_j), where q is the mixture of the posteriors of a batch (Chen et al. 2018).

    Args:
        latents (`(batch_size, latent_size)`): where to evaluate the densities.
        means, log_variances (`(num_posteriors, latent_size)`): of the mixture's components, of equal weight.

    Returns:
        two tensors `(batch_size,)`, nats. Their difference, averaged over samples of q, estimates the total correlation
        KL(q(z) || prod_j q(z_j)); of few posteriors in many dimensions it is too high.
    """
    log_densities = gaussian_log_density(latents.unsqueeze(1), means, log_variances)  # (batch, posteriors, latents)
    log_count = torch.zeros_like(means[:, 0]).logsumexp(0)
    log_joint = log_densities.sum(2).logsumexp(1) - log_count
    log_marginals = (log_densities.logsumexp(1) - log_count).sum(1)
    return log_joint, log_marginals


def exchange_dimensions(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Each column of `latents` in an order of its own: samples of prod_j q(z_j) from samples of q(z).

    Args:
        latents, noise (`(batch_size, latent_size)`): the order of a column is that of the numbers in it of `noise`.
    """
    return latents.gather(0, noise.argsort(0))


def joint_mutual_information(joint: torch.Tensor) -> torch.Tensor:
    """I(row; column) in nats of joint distributions `(..., rows, columns)`, each of which sums to 1: `(...)`."""

    def minus_entropy(probabilities: torch.Tensor) -> torch.Tensor:
        return probabilities * probabilities.clamp_min(1e-9).log()

    of_margins = minus_entropy(joint.sum(-1)).sum(-1) + minus_entropy(joint.sum(-2)).sum(-1)
    return minus_entropy(joint).sum((-1, -2)) - of_margins


def gaussian_log_ratio(latents: torch.Tensor, epsilon: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """log N(z; 0, I) - log q(z|x) of samples z = mean + exp(log_variance / 2) epsilon.

    Args:
        latents, epsilon (`(batch_size, num_samples, latent_size)`): the samples, and their noise.
        log_variance (`(batch_size, latent_size)`): of the posterior.

    Returns:
        `(batch_size, num_samples)`, nats; minus its mean over samples tends to the KL divergence.
    """
    log_ratio = epsilon.float().square() - latents.float().square() + log_variance.float().unsqueeze(1)
    return 0.5 * log_ratio.sum(-1)


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradients are summed likewise."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor):
        total = tensor.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return _SumOverProcesses.apply(gradient)


def batch_mean(values: torch.Tensor, training: bool) -> torch.Tensor:
    """Mean over the batch dimension; in training, over the batches of all processes.

    For terms that are not linear in that mean: with it, two processes give the gradients of one. Gradients flow back to
    the rows of every process. In evaluation the batch is this process's own, so that one may evaluate alone.
    """
    mean = values.mean(0)
    return _SumOverProcesses.apply(mean) / dist.get_world_size() if training and is_distributed() else mean


class _GatherRows(torch.autograd.Function):
    """Rows of all processes; their gradients, summed over the processes, go back to where they came from."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor, sizes: list[int]):
        ctx.place = slice(sum(sizes[: dist.get_rank()]), sum(sizes[: dist.get_rank() + 1]))
        padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return _SumOverProcesses.apply(gradient)[ctx.place], None


def gather_batch(*tensors: torch.Tensor, training: bool) -> tuple[list[torch.Tensor], slice]:
    """In training, the rows of all processes: for terms that relate the rows of a batch to each other.

    With it two processes give the gradients of one; see [`batch_mean`], which is enough for means.

    Args:
        tensors (`(batch_size, ...)`): of the same number of rows, which may differ between processes.
        training (`bool`): False leaves everything as it is.

    Returns:
        the gathered tensors, `(batch size of all processes, ...)`, and which of their rows are those of this process.
    """
    if not (training and is_distributed()):
        return list(tensors), slice(None)
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=tensors[0].device)
    sizes[dist.get_rank()] = len(tensors[0])
    dist.all_reduce(sizes)
    sizes = sizes.tolist()
    start = sum(sizes[: dist.get_rank()])
    return [_GatherRows.apply(tensor, sizes) for tensor in tensors], slice(start, start + len(tensors[0]))


def sum_with_free_bits(kl: torch.Tensor, free_bits: float, training: bool = False) -> torch.Tensor:
    """Sum over dimensions of max(batch mean of the KL, free_bits) (Kingma et al. 2016).

    Args:
        kl (`(batch_size, latent_size)`): nats per dimension.
        free_bits (`float`): nats per dimension that cost nothing; 0 gives the plain sum.
        training (`bool`): whether the mean is over all processes, see [`batch_mean`].

    Returns:
        a scalar, nats per example.
    """
    return batch_mean(kl, training).clamp_min(free_bits).sum()


def bernoulli_sparsity(activations: torch.Tensor, target: float, training: bool = False) -> torch.Tensor:
    """KL(target || mean activation) of Bernoulli variables, summed over the units (Ng 2011, Sparse autoencoder).

    Args:
        activations (`(batch_size, latent_size)`): in (0, 1).
        target (`float`): wanted mean activation of each unit.
        training (`bool`): whether the mean is over all processes, see [`batch_mean`].

    Returns:
        a scalar, nats.
    """
    mean = batch_mean(activations.float(), training).clamp(1e-6, 1 - 1e-6)
    target = torch.full_like(mean, target)
    kl = target * (target / mean).log() + (1 - target) * ((1 - target) / (1 - mean)).log()
    return kl.sum()
