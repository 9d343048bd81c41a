"""Learned image codec: a compressive auto-encoder, whose latents become bytes.

    pixel_values (B, C, H, W) -> analysis -> y (B, M, h, w) -> x gain -> round -> entropy coder -> bytes
                                                                           |
    reconstruction (B, C, H, W) <- synthesis <- latents (B, M, h, w) <- x inverse gain

Transforms: Balle et al. 2017 (https://arxiv.org/abs/1611.01704); entropy models: the same, Balle et al. 2018
(https://arxiv.org/abs/1802.01436, scale hyperprior) and Minnen et al. 2018 (https://arxiv.org/abs/1809.02736, means);
one network for several rates: Cui et al. 2021 (https://arxiv.org/abs/2003.02150), a gain for each latent channel and
lambda, interpolated geometrically between lambdas.
"""

import copy
import hashlib
import itertools
import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .anomaly import DetectingAutoencoder
from .configuration_image_codec import ImageCodecConfig
from .container import DEFAULT_MAX_PIXELS, CompressedFileError, Container, one_or_many
from .entropy_coding import SymbolDecoder, SymbolEncoder, SymbolTables, quantize_table
from .layers import Float32Module, ResidualBlock, check_pixel_values
from .outputs import EncoderOutput, ImageCodecOutput

MIN_LIKELIHOOD = 1e-9
INITIAL_GAIN = 10.0  # of the middle lambda: with less, most latents of a new model round to zero
NOISE_AT_START = 0.05  # share of the usual random weights that is added to the filters a new model starts with
MIN_SCALE, MAX_SCALE, NUM_SCALES = 0.11, 64.0, 64  # standard deviations of the Gaussians, spaced logarithmically
TILE = 64  # places of the latents, down and across, that are decompressed at once
GAUSSIAN_REACH = 352  # symbols farther from the mean than 5.5 times the largest scale are escapes
TABLE_WIDTH = 257  # of the learned distributions: 256 symbols and the escape
QUALITY_STEPS = 16  # of a quality, between two lambdas, that files tell apart
WEIGHT_BITS, FRACTION_BITS, RANGE_BITS = 15, 10, 22  # of the integer hyper-synthesis
SCALE_SLOPE, SCALE_OFFSET = 32, 24  # of the scale's index in the hyperprior's output: 0 is a standard deviation of 1.2


def bits(likelihood: torch.Tensor) -> torch.Tensor:
    """Bits of each row `(B, ...)`, `(B,)`. Below `MIN_LIKELIHOOD` the gradient is that at it."""
    bounded = likelihood + (likelihood.clamp_min(MIN_LIKELIHOOD) - likelihood).detach()
    return -bounded.log2().flatten(1).sum(dim=1)


class FactorizedPrior(nn.Module):
    """A learned univariate distribution for each channel and quality (Balle et al. 2018, appendix 6.1).

    The cumulative distribution is a small monotonic network: matrices made positive by softplus, and gated tanh.
    """

    sizes = (1, 3, 3, 3, 1)

    def __init__(self, num_qualities: int, channels: int):
        super().__init__()
        self.rows = (num_qualities, channels)
        for name, value in self.initial_state().items():
            if value.is_floating_point():
                setattr(self, name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The parameters of a new prior, about 10 wide, and no tables; for `_init_weights`."""
        layers = len(self.sizes) - 1
        counts = torch.zeros(*self.rows, TABLE_WIDTH, dtype=torch.int32, device="cpu")
        state = {"counts": counts, "lowest": torch.zeros(self.rows, dtype=torch.int32, device="cpu")}
        for layer in range(layers):
            fan_in, fan_out = self.sizes[layer : layer + 2]
            matrix = math.log(math.expm1(1 / 10 ** (1 / layers) / fan_out))
            state[f"matrix{layer}"] = torch.full((*self.rows, fan_out, fan_in), matrix, device="cpu")
            bias = torch.linspace(-0.5, 0.5, fan_out, device="cpu") if fan_out > 1 else torch.zeros(1, device="cpu")
            state[f"bias{layer}"] = bias[:, None].repeat(*self.rows, 1, 1)
            if layer < layers - 1:
                state[f"factor{layer}"] = torch.zeros(*self.rows, fan_out, 1, device="cpu")
        return state

    def logits(self, values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Log odds of the cumulative distribution: values `(B, channels, n)` of qualities `index` `(B,)`."""
        hidden = values[:, :, None]
        for layer in range(len(self.sizes) - 1):
            matrix, bias = (getattr(self, f"{name}{layer}")[index] for name in ("matrix", "bias"))
            hidden = F.softplus(matrix) @ hidden + bias
            if layer < len(self.sizes) - 2:
                hidden = hidden + getattr(self, f"factor{layer}")[index].tanh() * hidden.tanh()
        return hidden.squeeze(2)

    def forward(self, values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Probability of the unit interval around each value `(B, channels, h, w)`."""
        flat = values.flatten(2)
        lower, upper = self.logits(flat - 0.5, index), self.logits(flat + 0.5, index)
        sign = -(lower + upper).sign().detach()  # on the side where the sigmoid does not saturate
        return ((sign * upper).sigmoid() - (sign * lower).sigmoid()).abs().view_as(values)

    @torch.no_grad()
    def update_tables(self) -> None:
        """Make the integer tables: the `TABLE_WIDTH - 1` integers around the median of each distribution."""
        qualities, channels = self.rows
        grid = torch.arange(-4 * TABLE_WIDTH, 4 * TABLE_WIDTH + 1, device=self.matrix0.device).float()
        for quality in range(qualities):
            index = torch.tensor([quality], device=grid.device)
            cumulative = self.logits(grid.expand(1, channels, -1), index)[0]  # (channels, grid)
            median = grid[(cumulative < 0).sum(dim=1).clamp_max(len(grid) - 1)]
            lowest = median - TABLE_WIDTH // 2
            symbols = lowest[:, None] + torch.arange(TABLE_WIDTH - 1, device=grid.device)
            probabilities = self(symbols[None, :, :, None], index)[0, :, :, 0].double().cpu().numpy()
            probabilities /= np.maximum(1.0, probabilities.sum(axis=1, keepdims=True))
            counts = np.stack([quantize_table(row) for row in probabilities])
            self.counts[quality] = torch.from_numpy(counts)
            self.lowest[quality] = lowest.int()

    def tables(self) -> SymbolTables:
        """The tables; that of a channel at a quality is row `quality x channels + channel`."""
        return SymbolTables(self.counts.flatten(0, 1).cpu().numpy(), self.lowest.flatten().cpu().numpy())


def gaussian_likelihood(distance: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Probability of the unit interval at this distance from the mean of a Gaussian."""
    distance = distance.abs()
    upper, lower = ((shift - distance) / (scale * 2**0.5) for shift in (0.5, -0.5))
    return 0.5 * (torch.erfc(-upper) - torch.erfc(-lower))


def gaussian_tables() -> np.ndarray:
    """Counts `(NUM_SCALES, 2 x GAUSSIAN_REACH + 2)` of the integers from -GAUSSIAN_REACH on around a mean of 0."""
    scales = np.geomspace(MIN_SCALE, MAX_SCALE, NUM_SCALES)[:, None]
    edges = np.arange(-GAUSSIAN_REACH, GAUSSIAN_REACH + 2) - 0.5
    cumulative = torch.special.ndtr(torch.from_numpy(edges / scales)).numpy()
    return np.stack([quantize_table(row) for row in np.diff(cumulative)])


class Hyperprior(nn.Module):
    """Side information about the latents: `z`, from which mean and scale of each follow.

    What follows from `z` must be the same to the last bit where it is coded and where it is decoded. So there is a
    second edition of the synthesis, `integer_synthesize`: weights are integers of at most `WEIGHT_BITS` bits, hidden
    values integers in steps of 2^-FRACTION_BITS, cut off at 2^RANGE_BITS. Its sums are computed in float64 by matrix
    products. Every partial sum is an integer below 2^53, so none is rounded, whatever the order, the machine, or the
    number of threads. Scales are indices into a list, means multiples of 2^-FRACTION_BITS.
    """

    def __init__(self, config: ImageCodecConfig):
        super().__init__()
        size, channels = config.hyper_size, config.hidden_sizes[-1]
        self.num_outputs = 2 if config.entropy_model == "mean_scale_hyperprior" else 1
        self.prior = FactorizedPrior(len(config.lambdas), size)
        self.analysis = nn.ModuleList(
            (
                nn.Conv2d(channels, size, kernel_size=3, padding=1),
                nn.Conv2d(size, size, kernel_size=5, stride=2, padding=2),
                nn.Conv2d(size, size, kernel_size=5, stride=2, padding=2),
            )
        )
        self.synthesis = nn.ModuleList(
            (
                nn.Conv2d(size, 4 * size, kernel_size=3, padding=1),
                nn.Conv2d(size, 4 * size, kernel_size=3, padding=1),
                nn.Conv2d(size, self.num_outputs * channels, kernel_size=3, padding=1),
            )
        )
        for name, value in self.initial_state().items():
            self.register_buffer(name, value)

    def initial_state(self) -> dict[str, torch.Tensor]:
        """No integer weights and no tables; for `_init_weights`."""
        state = {"counts": torch.zeros(NUM_SCALES, 2 * GAUSSIAN_REACH + 2, dtype=torch.int32, device="cpu")}
        for layer, conv in enumerate(self.synthesis):
            state[f"weight{layer}"] = torch.zeros(conv.weight.shape, dtype=torch.int32, device="cpu")
            state[f"bias{layer}"] = torch.zeros(conv.bias.shape, dtype=torch.int64, device="cpu")
            state[f"shift{layer}"] = torch.zeros((), dtype=torch.int64, device="cpu")
        return state

    @torch.no_grad()
    def update_tables(self) -> None:
        """Make the integer weights and the tables."""
        self.prior.update_tables()
        self.counts.copy_(torch.from_numpy(gaussian_tables()))
        for layer, conv in enumerate(self.synthesis):
            weight, bias = conv.weight.double(), conv.bias.double()
            largest = max(weight.abs().max().item(), 2.0**-6)
            shift = WEIGHT_BITS - 1 - math.ceil(math.log2(largest))
            getattr(self, f"shift{layer}").fill_(shift)
            getattr(self, f"weight{layer}").copy_((weight * 2.0**shift).round())
            limit = 2.0 ** (RANGE_BITS + WEIGHT_BITS)
            getattr(self, f"bias{layer}").copy_((bias * 2.0 ** (shift + FRACTION_BITS)).round().clamp(-limit, limit))

    def _integer_layer(self, hidden: torch.Tensor, layer: int) -> torch.Tensor:
        """A 3x3 convolution of integers `(1, C, h, w)`, float64, rounded back to steps of 2^-FRACTION_BITS."""
        weight, bias, shift = (getattr(self, f"{name}{layer}") for name in ("weight", "bias", "shift"))
        patches = F.unfold(hidden, kernel_size=3, padding=1)  # (1, 9 C, h w)
        sums = weight.flatten(1).double() @ patches + bias.double()[:, None]
        half_up = (sums + 2.0 ** (shift.item() - 1)) * 2.0 ** -shift.item()
        limit = 2.0**RANGE_BITS
        return half_up.floor().clamp(-limit, limit).unflatten(2, hidden.shape[2:])

    @torch.no_grad()
    def integer_synthesize(self, z: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Means (float64, multiples of 2^-FRACTION_BITS) and scale indices (int64), `(1, M, *grid)`, of an integer `z`
        `(1, hyper_size, h, w)`."""
        unit = 2.0**FRACTION_BITS
        hidden = z.double().clamp(-(2.0 ** (RANGE_BITS - FRACTION_BITS)), 2.0 ** (RANGE_BITS - FRACTION_BITS)) * unit
        hidden = F.pixel_shuffle(self._integer_layer(hidden, 0), 2).clamp_min(0)
        hidden = F.pixel_shuffle(self._integer_layer(hidden, 1), 2).clamp_min(0)
        output = self._integer_layer(hidden, 2)[:, :, : grid[0], : grid[1]]
        index, *mean = output.chunk(self.num_outputs, dim=1)
        index = ((index * SCALE_SLOPE + (SCALE_OFFSET + 0.5) * unit) / unit).floor().clamp(0, NUM_SCALES - 1).long()
        return (mean[0] / unit if mean else torch.zeros_like(output[:, : index.shape[1]])), index

    def gaussians(self) -> SymbolTables:
        """The tables of latents, a row for each scale."""
        return SymbolTables(self.counts.cpu().numpy(), np.full(NUM_SCALES, -GAUSSIAN_REACH))

    def analyze(self, latents: torch.Tensor) -> torch.Tensor:
        """`(B, M, h, w)` to `(B, hyper_size, ceil(h/4), ceil(w/4))`, before rounding."""
        first, second, third = self.analysis
        return third(second(first(latents).relu()).relu())

    def synthesize(self, z: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and scale indices, `(B, M, *grid)`, of a rounded `z`."""
        first, second, third = self.synthesis
        hidden = F.pixel_shuffle(first(z), 2).relu()
        output = third(F.pixel_shuffle(second(hidden), 2).relu())[:, :, : grid[0], : grid[1]]
        index, *mean = output.chunk(self.num_outputs, dim=1)
        return (mean[0] if mean else torch.zeros_like(index)), index * SCALE_SLOPE + SCALE_OFFSET


def straight_through_round(values: torch.Tensor) -> torch.Tensor:
    """Rounded values, with the gradient of the values."""
    return values + (values.round() - values).detach()


class InwardClamp(torch.autograd.Function):
    """`values.clamp(low, high)` whose gradient passes inside the range, and outside of it where a step of descent leads
    back: what lies outside can return, and nothing is driven farther out."""

    @staticmethod
    def forward(ctx, values: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.save_for_backward(values)
        ctx.low, ctx.high = low, high
        return values.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        """The gradient with respect to `values`; the bounds have none."""
        (values,) = ctx.saved_tensors
        outward = ((values < ctx.low) & (gradient > 0)) | ((values > ctx.high) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None, None


class LatentCoder(Float32Module):
    """Gains, rounding and the rate of latents; always in float32."""

    def __init__(self, config: ImageCodecConfig):
        super().__init__()
        self.num_qualities, self.channels = len(config.lambdas), config.hidden_sizes[-1]
        self.lambdas = tuple(config.lambdas)
        for name, value in self.initial_state().items():
            setattr(self, name, nn.Parameter(value))
        if config.entropy_model == "factorized":
            self.prior, self.hyperprior = FactorizedPrior(self.num_qualities, self.channels), None
        else:
            self.prior, self.hyperprior = None, Hyperprior(config)

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The gains of a new model, for `_init_weights`: steps of rounding in proportion to lambda^-1/2, as at high
        rates, where a step d costs a distortion of d^2 / 12."""
        middle = math.exp(sum(map(math.log, self.lambdas)) / self.num_qualities)
        gain = [math.log(INITIAL_GAIN) + 0.5 * math.log(value / middle) for value in self.lambdas]
        gain = torch.tensor(gain, device="cpu")
        gain = gain[:, None].repeat(1, self.channels)
        return {"log_gain": gain, "log_inverse_gain": -gain}

    def gains(self, quality: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gain and inverse gain `(B, M, 1, 1)` of real qualities `(B,)`, in their dtype."""
        low = quality.floor().clamp(0, self.num_qualities - 1)
        share = (quality - low)[:, None]
        low = low.long()
        high = (low + 1).clamp_max(self.num_qualities - 1)
        tables = (table.to(quality.dtype) for table in (self.log_gain, self.log_inverse_gain))
        logs = (torch.lerp(table[low], table[high], share) for table in tables)
        gain, inverse = (log.exp()[:, :, None, None] for log in logs)
        return gain, inverse

    def forward(self, y: torch.Tensor, quality: torch.Tensor, noise: tuple = (None, None), rate: bool = True):
        """Rounded latents `(B, M, h, w)` in the scale of `y`, and bits of each image `(B,)`: of latents, of `z`.

        Rounding passes its gradient straight through. In training the rate is that of latents with uniform noise
        in place of rounding, which makes it smooth (Balle et al. 2017; the mixture: Minnen & Singh 2020).
        """
        with torch.autocast(y.device.type, enabled=False):
            y = y.float()
            gain, inverse = self.gains(quality)
            index = (quality + 0.5).floor().long()  # of the nearest lambda
            scaled = y * gain

            def disturbed(values, noise):
                if not self.training:
                    return values.round()
                return values + (torch.rand(values.shape, device=values.device) if noise is None else noise) - 0.5

            side_bits = torch.zeros_like(quality)
            if self.hyperprior is None:
                rounded = straight_through_round(scaled)
                likelihood = self.prior(disturbed(scaled, noise[0]), index) if rate else None
            else:
                z = self.hyperprior.analyze(scaled)
                mean, scale_index = self.hyperprior.synthesize(straight_through_round(z), tuple(y.shape[2:]))
                rounded = straight_through_round(scaled - mean) + mean
                likelihood = None
                if rate:
                    side_bits = bits(self.hyperprior.prior(disturbed(z, noise[1]), index))
                    if self.training:
                        scale_index = InwardClamp.apply(scale_index, 0.0, NUM_SCALES - 1.0)
                    else:
                        scale_index = scale_index.clamp(0, NUM_SCALES - 1).round()
                    scale = MIN_SCALE * (scale_index * (math.log(MAX_SCALE / MIN_SCALE) / (NUM_SCALES - 1))).exp()
                    likelihood = gaussian_likelihood(disturbed(scaled - mean, noise[0]), scale)
            return rounded * inverse, bits(likelihood) if rate else None, side_bits

    def update_tables(self) -> None:
        """Make the integer tables, from which symbols are coded, of the learned distributions."""
        (self.prior if self.hyperprior is None else self.hyperprior).update_tables()

    @property
    def has_tables(self) -> bool:
        """Whether the tables have been made."""
        prior = self.prior if self.hyperprior is None else self.hyperprior.prior
        return bool((prior.counts > 0).all())

    def _rows(self, steps: int, prior: FactorizedPrior, shape: tuple[int, ...]) -> np.ndarray:
        """For each symbol of shape `(1, channels, h, w)`, the row of its table at a quality of so many steps: that of
        the nearest lambda."""
        nearest = (steps + QUALITY_STEPS // 2) // QUALITY_STEPS
        channels = np.arange(shape[1]) + nearest * prior.rows[1]
        return np.broadcast_to(channels[:, None], (shape[1], shape[2] * shape[3])).ravel()

    @torch.no_grad()
    def write(self, y: torch.Tensor, steps: int) -> bytes:
        """The bytes of the latents `(1, M, h, w)` of one image at a quality of so many steps."""
        encoder, y = SymbolEncoder(), y.float()
        quality = torch.tensor([steps / QUALITY_STEPS], device=y.device)
        scaled = y * self.gains(quality)[0]
        if self.hyperprior is None:
            encoder.add(_symbols(scaled), self._rows(steps, self.prior, y.shape), self.prior.tables())
            return encoder.to_bytes()
        z = self.hyperprior.analyze(scaled).round()
        rows = self._rows(steps, self.hyperprior.prior, z.shape)
        encoder.add(_symbols(z), rows, self.hyperprior.prior.tables())
        mean, index = self.hyperprior.integer_synthesize(z, tuple(y.shape[2:]))
        encoder.add(_symbols(scaled - mean), index.flatten().cpu().numpy(), self.hyperprior.gaussians())
        return encoder.to_bytes()

    @torch.no_grad()
    def read(self, payload: bytes, steps: int, grid: tuple[int, int]) -> torch.Tensor:
        """The latents `(1, M, *grid)` for the synthesis, float64, of what `write` has written."""
        decoder, device = SymbolDecoder(payload), self.log_gain.device

        def read(rows, tables, shape):
            return torch.from_numpy(decoder.read(rows, tables)).view(shape).to(device)

        shape = (1, self.channels, *grid)
        if self.hyperprior is None:
            latents = read(self._rows(steps, self.prior, shape), self.prior.tables(), shape).double()
        else:
            prior = self.hyperprior.prior
            side = (1, prior.rows[1], -(-grid[0] // 4), -(-grid[1] // 4))
            z = read(self._rows(steps, prior, side), prior.tables(), side)
            mean, index = self.hyperprior.integer_synthesize(z, grid)
            latents = mean + read(index.flatten().cpu().numpy(), self.hyperprior.gaussians(), shape)
        decoder.finish()
        return latents * self.gains(torch.tensor([steps / QUALITY_STEPS], device=device, dtype=torch.float64))[1]


def _symbols(values: torch.Tensor) -> np.ndarray:
    return values.round().double().flatten().cpu().numpy()


class DivisiveNormalization(nn.Module):
    """Generalised divisive normalisation in its simplified form (Balle et al. 2017; Johnston et al. 2019):
    `x / (beta + gamma |x|)` over channels at each place, or the product instead, for synthesis."""

    def __init__(self, channels: int, inverse: bool = False):
        super().__init__()
        self.channels, self.inverse = channels, inverse
        for name, value in self.initial_state().items():
            setattr(self, name, nn.Parameter(value))

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The parameters of a new layer, for `_init_weights`."""
        return {
            "beta": torch.ones(self.channels, device="cpu"),
            "gamma": 0.1 * torch.eye(self.channels, device="cpu")[:, :, None, None],
        }

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        norm = F.conv2d(hidden_state.abs(), self.gamma.abs(), self.beta.abs() + 1e-4)
        return hidden_state * norm if self.inverse else hidden_state / norm


def haar_bands(num_channels: int, hidden_sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """For each level, orthonormal filters `(out, in, 2, 2)` of a wavelet packet transform by Haar's filters.

    Level by level each channel is split into four bands, and those are kept that have most energy in photographs, whose
    averages are like their neighbours and whose differences are like noise. Colours are first made lightness and two
    differences, by the cosine transform over channels.
    """
    size = max(num_channels, 1)
    k, n = torch.arange(size, device="cpu")[:, None], torch.arange(size, device="cpu")
    mixing = (math.pi / size * (n + 0.5) * k).cos() * (2 / size) ** 0.5
    mixing[0] /= 2**0.5
    energies = [(1.0 if channel == 0 else 0.05, True) for channel in range(size)]  # and whether only averages led here
    signs = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], device="cpu") / 2
    levels = []
    for depth, width in enumerate(hidden_sizes):
        split = []
        for channel, (energy, smooth) in enumerate(energies):
            shares = (3.5, 0.2, 0.2, 0.1) if smooth else (1, 1, 1, 1)
            split += [(energy * share, smooth and not band, channel, band) for band, share in enumerate(shares)]
        split = sorted(split, key=lambda row: -row[0])[:width]
        filters = torch.zeros(width, len(energies), 2, 2, device="cpu")
        for place, (_, _, channel, band) in enumerate(split):
            filters[place, channel] = signs[band].view(2, 2)
        levels.append(torch.einsum("ockl,cd->odkl", filters, mixing) if depth == 0 else filters)
        energies = [(energy, smooth) for energy, smooth, _, _ in split]
    return levels


class AnalysisLevel(nn.Module):
    """Halve height and width, then refine: `(B, in, 2h, 2w)` to `(B, out, h, w)`."""

    def __init__(self, config: ImageCodecConfig, in_channels: int, out_channels: int, last: bool):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=5, stride=2, padding=2)
        if config.architecture == "conv":
            self.blocks = nn.ModuleList([] if last else [DivisiveNormalization(out_channels)])
        else:
            blocks = (
                ResidualBlock(out_channels, config.hidden_act, normalize=False)
                for _ in range(config.num_residual_blocks)
            )
            self.blocks = nn.ModuleList(blocks)

    def start_as(self, filters: torch.Tensor) -> None:
        """Initial weights: these filters `(<= out, <= in, 2, 2)`, and a little noise."""
        weight = self.conv.weight * NOISE_AT_START
        weight[: len(filters), : filters.shape[1], 2:4, 2:4] += filters.to(weight)
        init.copy_(self.conv.weight, weight)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        hidden_state = self.conv(hidden_state)
        for block in self.blocks:
            hidden_state = block(hidden_state)
        return hidden_state


class SynthesisLevel(nn.Module):
    """Refine, then double height and width: `(B, in, h, w)` to `(B, out, 2h, 2w)`; the mirror of [`AnalysisLevel`]."""

    def __init__(self, config: ImageCodecConfig, in_channels: int, out_channels: int, first: bool):
        super().__init__()
        if config.architecture == "conv":
            self.blocks = nn.ModuleList([] if first else [DivisiveNormalization(in_channels, inverse=True)])
            self.conv = nn.ConvTranspose2d(
                in_channels, out_channels, kernel_size=5, stride=2, padding=2, output_padding=1
            )
            self.shuffle = nn.Identity()
        else:
            blocks = (
                ResidualBlock(in_channels, config.hidden_act, normalize=False)
                for _ in range(config.num_residual_blocks)
            )
            self.blocks = nn.ModuleList(blocks)
            self.conv = nn.Conv2d(in_channels, 4 * out_channels, kernel_size=3, padding=1)
            self.shuffle = nn.PixelShuffle(2)

    def start_as(self, filters: torch.Tensor) -> None:
        """Initial weights: the inverse of these filters, and a little noise."""
        weight = self.conv.weight * NOISE_AT_START
        outputs, inputs = filters.shape[1], len(filters)
        if isinstance(self.conv, nn.ConvTranspose2d):
            weight[:inputs, :outputs, 2:4, 2:4] += filters.to(weight)
        else:  # channels of the convolution: place 2 x row + column of the first output, of the second ...
            weight[: 4 * outputs, :inputs, 1, 1] += filters.permute(1, 2, 3, 0).reshape(4 * outputs, inputs).to(weight)
        init.copy_(self.conv.weight, weight)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_state = block(hidden_state)
        return self.shuffle(self.conv(hidden_state))


class ImageCodecModel(DetectingAutoencoder):
    """Images of any size to bytes and back.

    ```python
    model.update_tables()                                    # once after training; they are saved with the model
    data = model.compress(pixel_values, quality=2.5)         # list of bytes, one for each image
    images = model.decompress(data)                          # list of uint8 tensors (C, H, W)
    loss = model(pixel_values).loss                          # bits per pixel + lambda x 255^2 x MSE
    ```
    """

    config_class = ImageCodecConfig
    base_model_prefix = "image_codec"
    _keep_in_fp32_modules_strict = ["coder"]  # probabilities and scales do not bear 8 bits of mantissa

    def __init__(self, config: ImageCodecConfig):
        super().__init__(config)
        widths = [config.num_channels, *config.hidden_sizes]
        last = len(config.hidden_sizes) - 1
        self.analysis = nn.ModuleList(
            AnalysisLevel(config, widths[i], widths[i + 1], last=i == last) for i in range(last + 1)
        )
        self.synthesis = nn.ModuleList(
            SynthesisLevel(config, widths[i + 1], widths[i], first=i == last) for i in range(last, -1, -1)
        )
        self.coder = LatentCoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ResidualBlock):
            init.zeros_(module.conv2.weight)  # it begins as the identity
        elif module is self:  # the last to be called, when all layers have their random weights
            bands = haar_bands(self.config.num_channels, self.config.hidden_sizes)
            for level, mirror, filters in zip(self.analysis, reversed(self.synthesis), bands, strict=True):
                level.start_as(filters)
                mirror.start_as(filters)

    def _quality(self, quality, batch_size: int, device: torch.device) -> torch.Tensor:
        """Qualities `(B,)` as float32: the given one or ones, in training drawn, else the middle one."""
        if torch.is_tensor(quality):
            return quality.to(device, torch.float32).expand(batch_size)
        if quality is None and self.training:
            return torch.randint(len(self.config.lambdas), (batch_size,), device=device).float()
        quality = self.config.max_quality / 2 if quality is None else quality
        if not 0 <= quality <= self.config.max_quality:
            raise ValueError(f"quality must be from 0 to {self.config.max_quality}, got {quality}")
        return torch.full((batch_size,), float(quality), device=device)

    def _analyze(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Latents before gain and rounding, and the output of every level."""
        check_pixel_values(pixel_values, (self.config.num_channels, None, None))
        height, width = pixel_values.shape[2:]
        hidden_state = pixel_values.to(self.analysis[0].conv.weight.dtype) - 0.5
        pad = (-width % self.config.stride, -height % self.config.stride)
        if any(pad):
            hidden_state = F.pad(hidden_state, (0, pad[0], 0, pad[1]), mode="replicate")
        # a quarter faster on CPUs: the kernels need not reorder what they are given
        hidden_state = hidden_state.contiguous(memory_format=torch.channels_last)
        hidden_states = ()
        for level in self.analysis:
            hidden_state = level(hidden_state)
            hidden_states += (hidden_state,)
        return hidden_state, hidden_states

    @can_return_tuple
    def encode(self, pixel_values: torch.Tensor, quality: float | torch.Tensor | None = None) -> EncoderOutput:
        """Quantised latents `(B, M, h, w)` of images in [0, 1], in the scale that `decode` takes."""
        y, _ = self._analyze(pixel_values)
        quality = self._quality(quality, y.shape[0], y.device)
        return EncoderOutput(latents=self.coder(y, quality, rate=False)[0].to(y.dtype))

    def decode(self, latents: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Images `(B, C, *size)` of latents `(B, M, h, w)`; values may leave [0, 1] slightly.

        Args:
            latents: as `encode` gives them.
            size: height and width of the images; `config.image_size` by default where the latents are of that size,
                else whole multiples of `config.stride`.
        """
        channels = self.config.hidden_sizes[-1]
        if not torch.is_tensor(latents) or not latents.is_floating_point():
            kind = latents.dtype if torch.is_tensor(latents) else type(latents).__name__
            raise TypeError(f"latents must be a floating-point tensor, got {kind}")
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ValueError(
                f"latents must have shape (batch_size, {channels}, height, width), got {tuple(latents.shape)}"
            )
        if size is None:
            own = tuple(latents.shape[1:]) == self.config.latent_shape
            size = (
                self.config.input_shape[1:] if own else tuple(self.config.stride * side for side in latents.shape[2:])
            )
        return self._synthesize(self.synthesis, latents)[:, :, : size[0], : size[1]]

    @staticmethod
    def _synthesize(synthesis: nn.ModuleList, latents: torch.Tensor) -> torch.Tensor:
        """Images `(B, C, stride x h, stride x w)` of latents `(B, M, h, w)`."""
        hidden_state = latents.to(synthesis[0].conv.weight.dtype).contiguous(memory_format=torch.channels_last)
        for level in synthesis:
            hidden_state = level(hidden_state)
        return hidden_state + 0.5

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        quality: float | torch.Tensor | None = None,
        uniform_noise: torch.Tensor | None = None,
        hyper_noise: torch.Tensor | None = None,
    ) -> ImageCodecOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, C, height, width)`): images in [0, 1], of any size.
            return_loss (`bool`, *optional*, defaults to `True`): also compute loss, rate and distortion.
            output_hidden_states (`bool`, *optional*): also return the output of each level of the analysis.
            quality (`float` or `torch.FloatTensor` of shape `(batch_size,)`, *optional*):
                From 0 to `config.max_quality`. By default a lambda is drawn for each image in training mode, and the
                quality is the middle one in evaluation mode.
            uniform_noise, hyper_noise (`torch.FloatTensor`, *optional*):
                Numbers from [0, 1) in place of those drawn in training mode: of shape `(batch_size, hidden_sizes[-1],
                *latent_grid)`, and `(batch_size, hyper_size, *hyper_grid)`.
        """
        y, hidden_states = self._analyze(pixel_values)
        quality = self._quality(quality, y.shape[0], y.device)
        latents, latent_bits, side_bits = self.coder(y, quality, (uniform_noise, hyper_noise), return_loss)
        latents = latents.to(y.dtype)
        reconstruction = self.decode(latents, tuple(pixel_values.shape[2:]))
        loss = reconstruction_loss = rate = side_rate = distortion = None
        if return_loss:
            num_pixels = pixel_values.shape[2] * pixel_values.shape[3]
            errors = (reconstruction.float() - pixel_values.float()).square().flatten(1).mean(dim=1)
            logs = torch.tensor(self.config.lambdas, device=y.device).log()
            low = quality.floor().long()
            weight = torch.lerp(logs[low], logs[(low + 1).clamp_max(len(logs) - 1)], quality - low).exp()
            rate, side_rate = ((part / num_pixels).mean() for part in (latent_bits + side_bits, side_bits))
            distortion = (weight * 255**2 * errors).mean()
            reconstruction_loss = errors.mean()
            loss = rate + distortion
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return ImageCodecOutput(
            latents=latents,
            reconstruction=reconstruction,
            loss=loss,
            reconstruction_loss=reconstruction_loss,
            rate=rate,
            side_rate=side_rate,
            distortion=distortion,
            hidden_states=hidden_states if output_hidden_states else None,
        )

    # ---- bytes

    def _pixels(self, synthesis: nn.ModuleList, latents: torch.Tensor) -> torch.Tensor:
        """The image `(C, stride x h, stride x w)`, uint8, of latents `(1, M, h, w)`: tile by tile, so that memory is
        bounded whatever the size, with enough of the neighbours of a tile that its pixels are those of the whole."""
        config, (height, width) = self.config, latents.shape[2:]
        stride, blocks = config.stride, config.num_residual_blocks if config.architecture == "resnet" else 0
        # a level reaches 1 + 2 x blocks of its places, and its places are half as far apart as those before it
        margin = 2 * (1 + 2 * blocks) + 1
        image = torch.empty(
            config.num_channels, stride * height, stride * width, dtype=torch.uint8, device=latents.device
        )
        for top, left in itertools.product(range(0, height, TILE), range(0, width, TILE)):
            up, before = min(top, margin), min(left, margin)
            part = latents[:, :, top - up : top + TILE + margin, left - before : left + TILE + margin]
            pixels = self._synthesize(synthesis, part)[0, :, stride * up :, stride * before :]
            pixels = pixels[:, : stride * TILE, : stride * TILE]
            place = image[:, stride * top : stride * (top + TILE), stride * left : stride * (left + TILE)]
            place.copy_((pixels[:, : place.shape[1], : place.shape[2]].clamp(0, 1) * 255).round())
        return image

    def update_tables(self) -> None:
        """Make the integer tables that `compress` and `decompress` need; after training, before saving. They follow
        from the weights, and become stale when these change."""
        self.coder.update_tables()

    def fingerprint(self) -> bytes:
        """8 bytes that differ for models that would decode the same file differently."""
        config = self.config
        digest = hashlib.blake2b(digest_size=8)
        digest.update(
            repr((config.architecture, config.hidden_act, config.entropy_model, config.num_channels)).encode()
        )
        for name, tensor in self.state_dict().items():
            decodes = not tensor.is_floating_point() or "inverse_gain" in name
            if name.startswith("synthesis.") or (name.startswith("coder.") and decodes):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.digest()

    def _check_tables(self) -> None:
        if not self.coder.has_tables:
            raise ValueError(
                "this model has no tables for its entropy coder yet: call model.update_tables() after training, and "
                "save the model again"
            )

    def _check_image(self, image) -> torch.Tensor:
        """One image as pixel values `(1, C, height, width)`."""
        channels = self.config.num_channels
        if isinstance(image, PIL.Image.Image):
            mode = {1: "L", 3: "RGB"}.get(channels)
            if image.mode != mode:
                raise ValueError(
                    f"this model compresses images of mode {mode}, got one of mode {image.mode}: "
                    f"image.convert({mode!r}) drops what it cannot keep"
                )
            image = torch.from_numpy(np.array(image)).view(image.height, image.width, channels).permute(2, 0, 1)
        if not torch.is_tensor(image) or not (image.is_floating_point() or image.dtype == torch.uint8):
            got = image.dtype if torch.is_tensor(image) else type(image).__name__
            raise TypeError(f"expected PIL images, or tensors of floats in [0, 1] or of uint8, got {got}")
        if image.ndim != 3 or image.shape[0] != channels or 0 in image.shape:
            raise ValueError(f"expected images ({channels}, height, width), not empty, got {tuple(image.shape)}")
        if image.dtype == torch.uint8:
            image = image.float() / 255
        if not (image.isfinite().all() and image.min() >= 0 and image.max() <= 1):
            raise ValueError("pixel values must be finite and in [0, 1]: use the model's image processor")
        return image[None].to(self.device)

    @torch.no_grad()
    def compress(self, images, quality: float | None = None) -> list[bytes]:
        """The bytes of each image: a whole file, see `container.py`.

        Args:
            images: pixel values `(batch_size, C, H, W)` in [0, 1], or a list of images of any sizes: such tensors
                `(C, H, W)`, uint8 tensors, or PIL images of mode L or RGB.
            quality: from 0 to `config.max_quality`, kept in steps of 1/16; the middle by default.

        Raises:
            ValueError: images that are empty, out of range, or of other channels; a quality out of range; a model
                without tables. TypeError: something else than images. ImportError: `constriction` is not installed.
        """
        self._check_tables()
        quality = self.config.max_quality / 2 if quality is None else quality
        if not 0 <= quality <= self.config.max_quality:
            raise ValueError(f"quality must be from 0 to {self.config.max_quality}, got {quality}")
        steps = round(quality * QUALITY_STEPS)
        single = isinstance(images, PIL.Image.Image)
        fingerprint, files = self.fingerprint(), []
        with torch.autocast(self.device.type, enabled=False):
            for image in [images] if single else images:
                pixel_values = self._check_image(image)
                fields = dict(zip(("channels", "height", "width"), pixel_values.shape[1:], strict=True))
                y, _ = self._analyze(pixel_values)
                payload = self.coder.write(y, steps)
                files.append(Container("image codec", fingerprint, {**fields, "quality": steps}, payload).to_bytes())
        return files

    @torch.no_grad()
    def decompress(
        self, data: Sequence[bytes], max_pixels: int = DEFAULT_MAX_PIXELS, exact: bool = True
    ) -> list[torch.Tensor]:
        """The images `(C, height, width)`, uint8, of what `compress` wrote, one by one.

        What symbols a file holds never depends on where it is read, see `entropy_coding.py` and [`Hyperprior`]. Their
        synthesis is computed in floating point: in float32 its last bits differ with the processor, the number of
        threads, and where in memory the weights lie, and once in a hundred thousand pixels that decides how one is
        rounded. In float64 such differences are about 1e-14 and a pixel that they could change does not occur in
        practice: the images are the same everywhere.

        Args:
            data: the files.
            max_pixels: the largest `height x width` that is accepted.
            exact: synthesise in float64; without, in the dtype of the model, about three times as fast.

        Raises:
            CompressedFileError: a file that this model did not write, or that has been altered since, or is larger than
                allowed. ValueError: a model without tables. ImportError: `constriction` is not installed.
        """
        self._check_tables()
        fingerprint, images = self.fingerprint(), []
        synthesis = copy.deepcopy(self.synthesis).double() if exact else self.synthesis
        with torch.autocast(self.device.type, enabled=False):
            for file in one_or_many(data):
                container = Container.from_bytes(file, "image codec", fingerprint, max_pixels)
                height, width, channels, steps = (
                    container.fields[name] for name in ("height", "width", "channels", "quality")
                )
                if channels != self.config.num_channels or steps > self.config.max_quality * QUALITY_STEPS:
                    raise CompressedFileError(
                        f"the compressed file is damaged: {channels} channels at quality {steps / QUALITY_STEPS}"
                    )
                grid = self.config.latent_grid(height, width)
                # what it costs: a thin image far more than itself
                padded = grid[0] * grid[1] * self.config.stride**2
                if padded > 2 * max(max_pixels, self.config.stride**2):
                    raise CompressedFileError(
                        f"the compressed file is of {height} x {width} pixels, for which {padded} are computed: more "
                        f"than twice the {max_pixels} that are allowed"
                    )
                latents = self.coder.read(container.payload, steps, grid)
                images.append(self._pixels(synthesis, latents)[:, :height, :width].contiguous())
        return images


__all__ = ["ImageCodecModel"]
