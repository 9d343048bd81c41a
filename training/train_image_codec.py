"""Train a learned image codec (Balle et al. 2018) on a corpus of images.

With all defaults, on the embedded handwritten digits (under a minute on two CPU cores):

    accelerate launch training/train_image_codec.py --dataset digits --output_dir runs/image_codec

With a recipe, on photographs of one size:

    accelerate launch training/train_image_codec.py --recipe training/recipes/image_codec_photos.yaml \
        --dataset path/to/photos --mixed_precision bf16

To see that it runs, in a few seconds:

    python training/train_image_codec.py --max_steps 20 --hidden_sizes 8 16 --hyper_size 8 --output_dir runs/try
"""

from dataclasses import dataclass

import torch

from hf_autoencoders.data.augmentation import random_crop
from hf_autoencoders.training_arguments import option, parse_arguments
from hf_autoencoders.training_images import ImageTrainingRun
from hf_autoencoders.training_parts import ImageBatch, WeightedMeans


@dataclass
class ImageCodecTrainingArguments:
    """Flags of this script alone."""

    crop_size: int | None = option(None, "Train on random squares of so many pixels; whole images when not given.")
    random_flip: bool = option(False, "Turn half of the training images left to right.")


def inputs(run: ImageTrainingRun, batch: ImageBatch) -> dict[str, torch.Tensor]:
    """Images, qualities and noise of a batch: the same on any number of processes, and after a resume."""
    extra, config, pixel_values = run.arguments.extra, run.config, batch.pixel_values
    if extra.crop_size:
        pixel_values = random_crop(pixel_values, batch.draw(torch.rand, 2), extra.crop_size)
    if extra.random_flip:
        mirrored = batch.draw(torch.rand)[:, None, None, None] < 0.5
        pixel_values = torch.where(mirrored, pixel_values.flip(3), pixel_values)
    size = tuple(pixel_values.shape[2:])
    row = {
        "pixel_values": pixel_values,
        "quality": (batch.draw(torch.rand) * len(config.lambdas)).floor(),
        "uniform_noise": batch.draw(torch.rand, config.hidden_sizes[-1], *config.latent_grid(*size)),
    }
    if config.entropy_model != "factorized":
        row["hyper_noise"] = batch.draw(torch.rand, config.hyper_size, *config.hyper_grid(*size))
    return row


def evaluate(run: ImageTrainingRun) -> dict[str, float]:
    """Loss and its parts, with rounded latents, over the whole validation split: the mean over all lambdas, and bits
    per pixel and squared error at each."""
    means = WeightedMeans()
    with run.evaluating() as model:
        for batch in run.validation_batches():
            rows = [model(batch.pixel_values, quality=quality) for quality in range(len(run.config.lambdas))]
            terms = {
                name: torch.stack([row[name] for row in rows]).mean() for name in rows[0] if rows[0][name].ndim == 0
            }
            for quality, row in enumerate(rows):
                terms |= {f"rate_{quality}": row.rate, f"mse_{quality}": row.reconstruction_loss}
            means.add(terms, len(batch))
        model.update_tables()  # of the weights that are published, which are in place here
    return means.compute()


def train(run: ImageTrainingRun) -> None:
    model, optimizer, schedule = run.model, run.optimizer, run.schedule
    for batches in run.steps():
        for batch in batches:  # more than one with --gradient_accumulation_steps
            with run.gradient_sync(batch):
                output = model(**inputs(run, batch))
                run.backward(output.loss, batch)
            run.record(output, batch)
        run.clip_gradients()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        run.update_average()

        if run.should_log:
            run.log()
        if run.should_evaluate:
            run.report(evaluate(run))
        if run.should_save:
            run.save_checkpoint()


def main(argv: list[str] | None = None) -> None:
    run = ImageTrainingRun(parse_arguments("hfae_image_codec", __doc__, argv, ImageCodecTrainingArguments))
    train(run)
    with run.evaluating() as model:
        model.update_tables()
    run.finish()


if __name__ == "__main__":
    main()
