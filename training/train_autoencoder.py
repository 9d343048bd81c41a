"""Train a deterministic auto-encoder, plain, denoising, sparse or contractive, on a corpus of images.

With all defaults, on the embedded handwritten digits (under a minute on two CPU cores):

    accelerate launch training/train_autoencoder.py --dataset digits --output_dir runs/autoencoder

With a recipe, on one GPU or as many as `accelerate config` was told of:

    accelerate launch training/train_autoencoder.py --recipe training/recipes/autoencoder_mnist.yaml

To see that it runs, in a few seconds:

    python training/train_autoencoder.py --max_steps 20 --architecture mlp --hidden_sizes 32 --output_dir runs/try
"""

import torch

from hf_autoencoders.training_arguments import parse_arguments
from hf_autoencoders.training_images import ImageTrainingRun
from hf_autoencoders.training_parts import ImageBatch, WeightedMeans


def inputs(run: ImageTrainingRun, batch: ImageBatch) -> dict[str, torch.Tensor]:
    """Images of a batch and what is random about them: the same on any number of processes, and after a resume."""
    model_inputs = {"pixel_values": batch.pixel_values}
    if run.config.noise != "none":
        sampler = torch.randn if run.config.noise == "gaussian" else torch.rand
        model_inputs["noise"] = batch.draw(sampler, *run.config.input_shape)
    if run.config.contractive_weight:
        model_inputs["perturbation"] = batch.draw(torch.randn, *run.config.input_shape)
    return model_inputs


def evaluate(run: ImageTrainingRun) -> dict[str, float]:
    """Loss and its parts over the whole validation split; in evaluation mode images get no noise."""
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
    run = ImageTrainingRun(parse_arguments("hfae_autoencoder", __doc__, argv))
    train(run)
    run.finish()


if __name__ == "__main__":
    main()
