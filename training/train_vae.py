"""Train a variational auto-encoder (Kingma & Welling 2014) on a corpus of images.

With all defaults, on the embedded handwritten digits (under a minute on two CPU cores):

    accelerate launch training/train_vae.py --dataset digits --output_dir runs/vae

With a recipe, on one GPU or as many as `accelerate config` was told of:

    accelerate launch training/train_vae.py --recipe training/recipes/vae_mnist.yaml --mixed_precision bf16

To see that it runs, in a few seconds:

    python training/train_vae.py --max_steps 20 --architecture mlp --hidden_sizes 32 --output_dir runs/try
"""

from dataclasses import dataclass, field

import torch

from hf_autoencoders.training_arguments import parse_arguments
from hf_autoencoders.training_images import ImageTrainingRun
from hf_autoencoders.training_parts import ImageBatch, WeightedMeans


@dataclass
class VAETrainingArguments:
    """Flags of this script alone."""

    dynamic_binarization: bool = field(
        default=False,
        metadata={"help": "Draw black-and-white images from the grey levels anew at each step (Burda et al. 2015)."},
    )


def inputs(run: ImageTrainingRun, batch: ImageBatch) -> dict[str, torch.Tensor]:
    """Images and posterior noise of a batch: the same on any number of processes, and after a resume."""
    pixel_values = batch.pixel_values
    epsilon = batch.draw(torch.randn, run.config.num_posterior_samples, run.config.latent_size)
    if run.arguments.extra.dynamic_binarization:
        pixel_values = (batch.draw(torch.rand, *pixel_values.shape[1:]) < pixel_values).to(pixel_values.dtype)
    return {"pixel_values": pixel_values, "epsilon": epsilon}


def evaluate(run: ImageTrainingRun) -> dict[str, float]:
    """The bound and its parts over the whole validation split, in nats per example."""
    means = WeightedMeans()
    with run.evaluating() as model:
        for batch in run.validation_batches():
            means.add(model(**inputs(run, batch)), len(batch))
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
    run = ImageTrainingRun(parse_arguments("hfae_vae", __doc__, argv, VAETrainingArguments))
    train(run)
    run.finish()


if __name__ == "__main__":
    main()
