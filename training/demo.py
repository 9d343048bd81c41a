"""Load a trained VQ-VAE from its folder, put it to use on digits it has never seen, and draw a picture of it.

    python training/demo.py runs/demo/final

FOLDER is what `training/train_vqvae.py` wrote, or any other `save_pretrained` folder of a VQ-VAE for 8x8 digits.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import logging

import hf_autoencoders  # noqa: F401  (makes the Auto classes know the auto-encoders)
from hf_autoencoders.data import image_arrays, load_corpus, to_pixel_values
from hf_autoencoders.evaluation.baselines import fit_pca, fit_quantized_pca
from hf_autoencoders.evaluation.codes import CodeUsage

GREY_LEVELS = 17  # the corpus counts ink in 0..16


def decibels(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio of images in [0, 1]."""
    return -10 * math.log10(mean_squared_error)


def draw(path: Path, images, reconstruction, codes, usage, num_codes: int, numbers: list[str]) -> None:
    """One column for each class of digit: the image, its codes as numbered tiles, and what they are decoded to."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(12, 5.4), layout="constrained")
    digits, below = figure.subfigures(2, 1, height_ratios=[3.1, 1])
    axes = digits.subplots(3, len(images))
    shades = plt.get_cmap("turbo")
    for column, (image, rebuilt, grid) in enumerate(zip(images, reconstruction, codes, strict=True)):
        axes[0, column].imshow(image, cmap="gray_r", vmin=0, vmax=1)
        axes[1, column].imshow(grid / num_codes, cmap=shades, vmin=0, vmax=1, alpha=0.55)
        for (row, place), code in np.ndenumerate(grid):
            axes[1, column].text(place, row, code, ha="center", va="center", fontsize=8)
        axes[2, column].imshow(rebuilt, cmap="gray_r", vmin=0, vmax=1)
    for row, name in enumerate(["unseen digit", "its codes", "decoded\nfrom the codes"]):
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    left, right = below.subplots(1, 2, width_ratios=[1.2, 1])
    left.bar(np.arange(num_codes), np.sort(usage)[::-1], width=1.0, color="#3b6ea5")
    left.set(xlabel=f"the {num_codes} codes, by use", ylabel="times used", xlim=(-0.5, num_codes - 0.5))
    left.spines[["top", "right"]].set_visible(False)
    right.axis("off")
    right.text(0, 1, "\n".join(numbers), va="top", fontsize=10.5, linespacing=1.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@torch.inference_mode()
def main() -> None:
    """Load, encode, decode, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a trained VQ-VAE")
    parser.add_argument("--picture", type=Path, help="where to draw the picture (default: FOLDER/demo.png)")
    arguments = parser.parse_args()
    picture = arguments.picture or arguments.folder / "demo.png"

    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(arguments.folder).eval()
    processor = AutoImageProcessor.from_pretrained(arguments.folder)
    corpus = load_corpus("digits")
    train, test = (image_arrays(corpus[split], processor) for split in ("train", "test"))

    pixel_values = to_pixel_values(torch.from_numpy(np.array(test.images)), "cpu")
    seen = model.encode(to_pixel_values(torch.from_numpy(np.array(train.images)), "cpu"))
    unseen = model.encode(pixel_values)
    # The codes are all that a receiver needs: decode them alone, and compare with the images.
    rebuilt = model.decode_codes(unseen.codes)
    error = (rebuilt - pixel_values).square().mean().item()

    bits = model.config.bits_per_input
    raw_bits = pixel_values[0].numel() * math.log2(GREY_LEVELS)
    linear_error = fit_quantized_pca(fit_pca(train.images), train.images, bits).mse(test.images)
    usage = CodeUsage(model.config.num_codes, model.config.codes_shape[0])
    usage.update(seen.codes)
    neighbours = {}
    pairs = {"latents": (seen.latents, unseen.latents), "pixels": (train.images, test.images)}
    for name, pair in pairs.items():
        known, asked = (np.asarray(values, dtype=np.float32).reshape(len(values), -1) for values in pair)
        neighbours[name] = KNeighborsClassifier(1).fit(known, train.labels).score(asked, test.labels)

    grid = " x ".join(map(str, model.config.codes_shape[1:]))
    numbers = [
        f"{len(test)} digits the model has never seen",
        f"{bits:.0f} bits each, {grid} codes of {model.config.num_codes}   (raw: {raw_bits:.0f} bits)",
        f"PSNR {decibels(error):.1f} dB   (PCA with as many bits: {decibels(linear_error):.1f} dB)",
        f"{usage.usage().mean():.0%} of the codes in use, perplexity {usage.perplexity().mean():.0f}",
        f"nearest neighbour names the digit: {neighbours['latents']:.1%}   (pixels: {neighbours['pixels']:.1%})",
    ]
    columns = [int(np.flatnonzero(test.labels == label)[0]) for label in np.unique(test.labels)]
    draw(
        picture,
        pixel_values[columns, 0].numpy(),
        rebuilt[columns, 0].numpy(),
        unseen.codes[columns, 0].numpy(),
        usage.counts.sum(0).numpy(),
        model.config.num_codes,
        numbers,
    )
    print(f"\nLoaded back with AutoModel.from_pretrained({str(arguments.folder)!r}): {type(model).__name__}")
    print("\n".join(f"  {line}" for line in numbers))
    print(f"\n  model   {arguments.folder}/   (config, safetensors, processor, code and card: ready for the Hub)")
    print(f"  picture {picture}")


if __name__ == "__main__":
    main()
