"""How close is a reconstruction to its image? MSE, PSNR and SSIM.

All three compare images in [0, 1] as the model returns them: a reconstruction is not clamped, so the MSE here is the
number a model trained on squared error minimises. Means are exact over rows: a small last batch weighs what it holds.
"""

import importlib.util
import math

import torch

from .checks import check_images, check_same_shape

SSIM_WINDOW = 11  # pixels; Wang et al. 2004: Gaussian weights with standard deviation 1.5, cut to 11 x 11


def squared_error(images: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """Squared error of each image, averaged over its dimensions.

    Args:
        images, reconstruction: (batch_size, channels, height, width), floating point.

    Returns:
        (batch_size,) float64 on the CPU; its mean over all rows of a split is the MSE of the split.
    """
    check_images("images", images)
    check_images("reconstruction", reconstruction)
    check_same_shape("images", images, "reconstruction", reconstruction)
    difference = reconstruction.float() - images.float()
    return difference.square().flatten(1).mean(dim=1).cpu().double()


def peak_signal_to_noise_ratio(mean_squared_error: float) -> float:
    """PSNR in decibels of an MSE between images in [0, 1]: 10 log10(1 / MSE); infinite for an exact reconstruction.

    Of a whole split this is the PSNR of the pooled error, not the mean of each image's PSNR, which one perfectly
    reconstructed image would make infinite.
    """
    if not mean_squared_error >= 0:
        raise ValueError(f"a mean squared error is >= 0, got {mean_squared_error}")
    return -10 * math.log10(mean_squared_error) if mean_squared_error > 0 else math.inf


def structural_similarity(images: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """SSIM of each image (Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment", 2004).

    Gaussian window of 11 x 11 pixels, data range 1, K1 = 0.01, K2 = 0.03, borders reflected, averaged over channels;
    computed by `torchmetrics`.

    Args:
        images, reconstruction: (batch_size, channels, height, width) in [0, 1], height and width at least 11.

    Returns:
        (batch_size,) float64 on the CPU, in [-1, 1]; 1 for equal images.

    Raises:
        ValueError: the images are smaller than the window. There is no agreed SSIM for them; MSE and PSNR remain.
    """
    check_images("images", images)
    check_images("reconstruction", reconstruction)
    check_same_shape("images", images, "reconstruction", reconstruction)
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(why_no_ssim(images.shape[-2:]))
    if not has_torchmetrics():
        raise ImportError(why_no_ssim(images.shape[-2:]))
    from torchmetrics.functional.image import structural_similarity_index_measure

    scores = structural_similarity_index_measure(
        reconstruction.float(), images.float(), data_range=1.0, reduction="none"
    )
    return scores.cpu().double()


def has_torchmetrics() -> bool:
    """Whether the library that computes SSIM is installed."""
    return importlib.util.find_spec("torchmetrics") is not None


def why_no_ssim(size: tuple[int, int]) -> str | None:
    """Why SSIM cannot be had for images of this (height, width) here; None where it can."""
    if min(size) < SSIM_WINDOW:
        return (
            f"SSIM compares windows of {SSIM_WINDOW} x {SSIM_WINDOW} pixels; "
            f"images of {size[0]} x {size[1]} are smaller than one window"
        )
    if not has_torchmetrics():
        return "SSIM is computed by torchmetrics, which is not installed: pip install torchmetrics"
    return None


class ReconstructionMeter:
    """Running MSE, PSNR and SSIM over the batches of a split, each row weighing the same.

    SSIM is left out where it cannot be had: `why_no_ssim` says why.
    """

    def __init__(self):
        self.num_images = 0
        self._squared_error = 0.0
        self._similarity = 0.0
        self._size = None

    @torch.inference_mode()
    def update(self, images: torch.Tensor, reconstruction: torch.Tensor) -> None:
        """Add a batch: two tensors (batch_size, channels, height, width) in [0, 1]."""
        self._squared_error += squared_error(images, reconstruction).sum().item()
        self._size = tuple(images.shape[-2:])
        if why_no_ssim(self._size) is None:
            self._similarity += structural_similarity(images, reconstruction).sum().item()
        self.num_images += len(images)

    def compute(self) -> dict[str, float]:
        """`mse` (per dimension), `psnr` (dB, of the pooled error) and `ssim` (where it can be had)."""
        if self.num_images == 0:
            raise ValueError("no images were compared: call `update` first")
        mse = self._squared_error / self.num_images
        if not math.isfinite(mse):
            raise ValueError("the reconstructions hold NaN or infinite values: the model's weights are not usable")
        result = {"mse": mse, "psnr": peak_signal_to_noise_ratio(mse)}
        if why_no_ssim(self._size) is None:
            result["ssim"] = self._similarity / self.num_images
        return result
