"""How much of a discrete code is in use? Usage and perplexity of codebooks, entropy of bits, over a whole split.

All are properties of the code *counts* over all rows. Averaging the perplexity of batches, as is often done, measures
the batch size as well: a batch of 100 codes can never use more than 100 entries.
"""

import numpy as np
import torch

from .checks import check_positive


class CodeUsage:
    """Counts how often each code is used, batch by batch, for one or several codebooks of equal size.

    Args:
        codebook_size: number of entries K of each codebook; codes are 0 .. K - 1.
        num_codebooks: number of codebooks (residual levels).
    """

    def __init__(self, codebook_size: int, num_codebooks: int = 1):
        check_positive("codebook_size", codebook_size)
        check_positive("num_codebooks", num_codebooks)
        self.counts = torch.zeros(num_codebooks, codebook_size, dtype=torch.int64)

    @torch.inference_mode()
    def update(self, codes: torch.Tensor) -> None:
        """Add a batch of codes: integers (batch_size, num_codebooks, ...), e.g. `model.encode(...).codes`."""
        num_codebooks, codebook_size = self.counts.shape
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise TypeError(f"`codes` must be integers, got {codes.dtype}")
        if codes.ndim < 2 or codes.shape[1] != num_codebooks:
            raise ValueError(
                f"`codes` must have shape (batch_size, {num_codebooks}, ...) for {num_codebooks} codebook(s), "
                f"got {tuple(codes.shape)}"
            )
        if codes.numel() == 0:
            return
        lowest, highest = codes.min().item(), codes.max().item()
        if lowest < 0 or highest >= codebook_size:
            raise ValueError(f"codes must lie in 0 .. {codebook_size - 1}, got codes from {lowest} to {highest}")
        for index in range(num_codebooks):
            self.counts[index] += torch.bincount(codes[:, index].flatten().long(), minlength=codebook_size).cpu()

    def usage(self) -> torch.Tensor:
        """Share of each codebook's entries used at least once: (num_codebooks,) float64 in (0, 1]."""
        self._require_codes()
        return (self.counts > 0).double().mean(dim=1)

    def perplexity(self) -> torch.Tensor:
        """exp of the entropy of each codebook's code frequencies: (num_codebooks,) float64 in [1, codebook_size].

        `codebook_size` when all codes are equally frequent, 1 when a single code is ever used.
        """
        self._require_codes()
        frequencies = self.counts.double() / self.counts.sum(dim=1, keepdim=True)
        return torch.special.entr(frequencies).sum(dim=1).exp()

    def _require_codes(self) -> None:
        if self.counts.sum() == 0:
            raise ValueError("no codes were counted: call `update` first")


def bit_entropies(codes: np.ndarray) -> np.ndarray:
    """Entropy in bits of each bit over a split: 1 where it is as often 0 as 1, 0 where it never changes.

    Args:
        codes: (rows, num_bits) whole numbers 0 and 1, e.g. `model.encode(...).codes` of a binary auto-encoder.

    Returns:
        (num_bits,) float64 in [0, 1]. Their sum is the most that the code carries; it is less where bits depend on each
        other.

    Raises:
        ValueError: another shape, no rows, or other values.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.size == 0:
        raise ValueError(f"`codes` must be (rows, num_bits) with at least one of each, got {codes.shape}")
    if not np.isin(codes, (0, 1)).all():
        raise ValueError(f"bits must be 0 or 1, got values from {codes.min()} to {codes.max()}")
    ones = codes.mean(axis=0, dtype=np.float64)
    shares = np.stack([ones, 1 - ones])
    return np.abs((shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=0))
