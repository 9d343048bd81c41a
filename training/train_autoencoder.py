"""Train a deterministic auto-encoder, plain, denoising, sparse or contractive, on a corpus of images.

With all defaults, on the embedded handwritten digits (under a minute on two CPU cores):

    accelerate launch training/train_autoencoder.py --dataset digits --output_dir runs/autoencoder

With a recipe, on one GPU or as many as `accelerate config` was told of:

    accelerate launch training/train_autoencoder.py --recipe training/recipes/autoencoder_mnist.yaml --mixed_precision bf16

To see that it runs, in a few seconds:

    python training/train_autoencoder.py --max_steps 20 --architecture mlp --hidden_sizes 32 --output_dir runs/try
"""

from hf_autoencoders.training_run import TrainingRun, WeightedMeans, parse_arguments


def evaluate(run: TrainingRun) -> dict[str, float]:
    """Loss and its parts over the whole validation split; the images get no noise."""
    means = WeightedMeans()
    with run.evaluating() as model:
        for batch in run.validation_batches():
            means.add(model(batch.pixel_values), len(batch))
    return means.compute()


def train(run: TrainingRun) -> None:
    accelerator, model, optimizer, schedule = run.accelerator, run.model, run.optimizer, run.schedule
    for batches in run.steps():
        for batch in batches:  # more than one with --gradient_accumulation_steps
            with run.gradient_sync(batch):
                output = model(batch.pixel_values)
                accelerator.backward(output.loss * batch.weight)
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
    run = TrainingRun(parse_arguments("hfae_autoencoder", __doc__, argv))
    train(run)
    run.finish()


if __name__ == "__main__":
    main()
