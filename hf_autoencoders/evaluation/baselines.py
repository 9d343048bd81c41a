"""What would a linear code have reached? PCA with as many numbers, and PCA with as many *bits*.

The second is the fair rival of a discrete auto-encoder: PCA coefficients are quantised and share out a bit budget.

The quantised coder is made strong on purpose. Reverse water-filling (Cover and Thomas, "Elements of information
theory", section 10.3) says how a budget is best spent on independent components: on whichever component lowers the
error most per bit, components below the water level getting none. Here that rule is followed with the quantisers that
are really used: each coefficient has a Lloyd-Max quantiser (Max 1960; Lloyd 1982) fitted on the training rows, and the
number of levels L (not only powers of two) is raised where the measured error falls most per added bit. An image costs
sum(log2 L) bits at a fixed length, as the codes of a VQ-VAE cost log2(codebook_size) each; neither is entropy coded.
"""

import heapq
import math
from dataclasses import dataclass

import numpy as np

from .checks import check_positive, check_uint8_images

MAX_PCA_DIMS = 4096  # the covariance is dims x dims, and its eigenvectors cost dims ** 3

# Numbers of levels a quantiser may have: every step is at most about half a bit.
LEVELS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)


@dataclass
class PCA:
    """Principal components of a set of images, flattened to `dims` numbers in [0, 1]."""

    mean: np.ndarray
    """(dims,) float32"""
    components: np.ndarray
    """(num_components, dims) float32, orthonormal rows, by falling variance"""
    variances: np.ndarray
    """(num_components,) float64, variance of each coefficient over the training rows"""

    def encode(self, images: np.ndarray, num_components: int | None = None, batch_size: int = 4096) -> np.ndarray:
        """uint8 images (rows, channels, height, width) to coefficients (rows, num_components) float32."""
        components = self.components[:num_components]
        coefficients = np.empty((len(images), len(components)), dtype=np.float32)
        for first, batch in _flat_batches(images, batch_size):
            coefficients[first : first + len(batch)] = (batch - self.mean) @ components.T
        return coefficients

    def decode(self, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients (rows, k) to flat images (rows, dims) float32, around [0, 1]."""
        return coefficients @ self.components[: coefficients.shape[1]] + self.mean


def fit_pca(images: np.ndarray, num_components: int | None = None, *, batch_size: int = 4096) -> PCA:
    """Exact PCA of uint8 images, read once in batches (memory-mapped arrays are never loaded whole).

    Args:
        images: (rows, channels, height, width) uint8; taken as images / 255.
        num_components: how many components to keep; all by default. At most channels * height * width.

    Raises:
        ValueError: images of more than 4096 dimensions, whose covariance would not be worth its memory.
    """
    check_uint8_images("images", images)
    num_dims = math.prod(images.shape[1:])
    if num_dims > MAX_PCA_DIMS:
        raise ValueError(f"exact PCA is limited to {MAX_PCA_DIMS} dimensions, these images have {num_dims}")
    num_components = num_dims if num_components is None else num_components
    check_positive("num_components", num_components)
    if num_components > num_dims:
        raise ValueError(f"images of {num_dims} dimensions have no {num_components} principal components")

    # Sums are taken around the first batch's mean, so that float32 products do not cancel.
    shift = next(_flat_batches(images, batch_size))[1].mean(axis=0)
    total, products = np.zeros(num_dims), np.zeros((num_dims, num_dims))
    for _, batch in _flat_batches(images, batch_size):
        batch -= shift
        total += batch.sum(axis=0, dtype=np.float64)
        products += batch.T @ batch
    offset = total / len(images)
    covariance = products / len(images) - np.outer(offset, offset)
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(variances)[::-1][:num_components]
    return PCA(
        mean=(shift + offset).astype(np.float32),
        components=np.ascontiguousarray(vectors[:, order].T, dtype=np.float32),
        variances=np.maximum(variances[order], 0.0),
    )


def pca_reconstruction_mse(pca: PCA, images: np.ndarray, num_components: int, *, batch_size: int = 4096) -> float:
    """MSE per dimension of images rebuilt from their first `num_components` coefficients, not clamped."""
    check_uint8_images("images", images)
    check_positive("num_components", num_components)
    if num_components > len(pca.components):
        raise ValueError(f"this PCA holds {len(pca.components)} components, {num_components} were asked for")
    error = 0.0
    for _, batch in _flat_batches(images, batch_size):
        coefficients = (batch - pca.mean) @ pca.components[:num_components].T
        error += np.square(pca.decode(coefficients) - batch).sum(dtype=np.float64)
    return float(error / images.size)


def lloyd_max(sorted_values: np.ndarray, num_levels: int, *, max_iterations: int = 200) -> np.ndarray:
    """The quantiser of `num_levels` levels with (locally) least squared error on the given values.

    Args:
        sorted_values: (rows,) rising.
        num_levels: number of levels L >= 1.

    Returns:
        Levels, rising, (at most L,) float64: fewer where the values hold fewer distinct numbers.
    """
    check_positive("num_levels", num_levels)
    values = np.asarray(sorted_values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or (np.diff(values) < 0).any():
        raise ValueError(f"`sorted_values` must be a rising, non-empty vector, got shape {values.shape}")
    sums = np.concatenate([[0.0], np.cumsum(values)])
    levels = np.unique(values[((np.arange(num_levels) + 0.5) / num_levels * len(values)).astype(int)])
    for _ in range(max_iterations):
        edges = np.searchsorted(values, (levels[1:] + levels[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(values)]])
        counts = np.diff(edges)
        updated = (np.diff(sums[edges]) / np.maximum(counts, 1))[counts > 0]
        if len(updated) == len(levels) and np.allclose(updated, levels, rtol=0, atol=1e-6 * (values[-1] - values[0])):
            return updated
        levels = updated
    return levels


def quantize(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Replace each value by the nearest of the rising `levels`."""
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]


@dataclass
class QuantizedPCA:
    """A PCA whose coefficients are each rounded to one of a few fitted levels."""

    pca: PCA
    levels: list[np.ndarray]
    """One vector of levels for each component that got bits"""
    component_indices: np.ndarray
    """(len(levels),) which component each belongs to"""

    @property
    def bits(self) -> float:
        """Bits for one image at a fixed length: the sum of log2(number of levels)."""
        return float(sum(math.log2(len(levels)) for levels in self.levels))

    def mse(self, images: np.ndarray, *, batch_size: int = 4096) -> float:
        """MSE per dimension of uint8 images rebuilt from their rounded coefficients, not clamped."""
        check_uint8_images("images", images)
        components = self.pca.components[self.component_indices]
        error = 0.0
        for _, batch in _flat_batches(images, batch_size):
            coefficients = (batch - self.pca.mean) @ components.T
            for column, levels in enumerate(self.levels):
                coefficients[:, column] = quantize(coefficients[:, column], levels)
            error += np.square(coefficients @ components + self.pca.mean - batch).sum(dtype=np.float64)
        return float(error / images.size)


def fit_quantized_pca(pca: PCA, images: np.ndarray, num_bits: float, *, batch_size: int = 4096) -> QuantizedPCA:
    """Spend `num_bits` per image on PCA coefficients so that the training error is as small as greed makes it.

    Args:
        pca: fitted on the same images, with all the components that may be worth a bit.
        images: training images, uint8 (rows, channels, height, width); the quantisers are fitted on them.
        num_bits: budget of one image; the result spends at most that, see `QuantizedPCA.bits`.
    """
    check_uint8_images("images", images)
    if not (math.isfinite(num_bits) and num_bits > 0):
        raise ValueError(f"`num_bits` must be positive, got {num_bits}")
    # Two levels are one bit, so no more components can take part than there are bits.
    num_candidates = min(len(pca.components), math.ceil(num_bits))
    columns = np.ascontiguousarray(pca.encode(images, num_candidates, batch_size).T)

    def quantizer(index: int, step: int) -> tuple[np.ndarray, float]:
        values = columns[index].astype(np.float64)
        levels = lloyd_max(values, LEVELS[step])
        return levels, float(np.square(quantize(values, levels) - values).mean())

    def offer(index: int, step: int, error: float) -> None:
        """Put the next quantiser of a component on the heap, by error removed per added bit."""
        if step + 1 < len(LEVELS):
            levels, next_error = quantizer(index, step + 1)
            added_bits = math.log2(LEVELS[step + 1] / LEVELS[step])
            heapq.heappush(heap, ((next_error - error) / added_bits, index, step + 1, levels, next_error))

    heap: list = []
    chosen: dict[int, np.ndarray] = {}
    remaining = float(num_bits)
    # Variances fall, so does what a first bit can remove: components enter the race in order, one ahead of need.
    entered = 0
    while True:
        while entered < num_candidates and (not heap or -heap[0][0] < pca.variances[entered]):
            columns[entered].sort()
            offer(entered, 0, float(columns[entered].var(dtype=np.float64)))
            entered += 1
        if not heap:
            break
        _, index, step, levels, error = heapq.heappop(heap)
        added_bits = math.log2(LEVELS[step] / LEVELS[step - 1])
        if added_bits > remaining + 1e-9:
            continue  # too dear; a cheaper step of another component may still fit
        remaining -= added_bits
        chosen[index] = levels
        offer(index, step, error)

    indices = sorted(index for index, levels in chosen.items() if len(levels) > 1)
    return QuantizedPCA(pca, [chosen[index] for index in indices], np.array(indices, dtype=np.int64))


def _flat_batches(images: np.ndarray, batch_size: int):
    """(first row, float32 batch (rows, dims) in [0, 1]) over uint8 images."""
    check_positive("batch_size", batch_size)
    for first in range(0, len(images), batch_size):
        batch = np.asarray(images[first : first + batch_size])
        yield first, batch.reshape(len(batch), -1).astype(np.float32) / 255
