"""Train a vector-quantised auto-encoder (van den Oord et al. 2017) on a corpus of images.

With all defaults, on the embedded handwritten digits (under a minute on two CPU cores):

    accelerate launch training/train_vqvae.py --dataset digits --output_dir runs/vqvae

With a recipe, on one GPU or as many as `accelerate config` was told of:

    accelerate launch training/train_vqvae.py --recipe training/recipes/vqvae_cifar10.yaml --mixed_precision bf16

To see that it runs, in a few seconds:

    python training/train_vqvae.py --max_steps 20 --hidden_sizes 8 16 --codebook_size 32 --output_dir runs/try
"""

from hf_autoencoders.evaluation.codes import CodeUsage
from hf_autoencoders.training_arguments import parse_arguments
from hf_autoencoders.training_images import ImageTrainingRun
from hf_autoencoders.training_parts import WeightedMeans

CODE_METRICS = ("code_usage", "code_perplexity")


def evaluate(run: ImageTrainingRun) -> dict[str, float]:
    """Loss and its parts, usage and perplexity of the codes over the whole validation split."""
    means, usage = WeightedMeans(), CodeUsage(run.config.num_codes, run.config.codes_shape[0])
    with run.evaluating() as model:
        for batch in run.validation_batches():
            output = model(batch.pixel_values)
            means.add(output, len(batch))
            usage.update(output.codes)
    usage.counts = run.sum_over_processes(usage.counts)
    code_metrics = (usage.usage().mean().item(), usage.perplexity().mean().item())
    return means.compute() | dict(zip(CODE_METRICS, code_metrics, strict=True))


def train(run: ImageTrainingRun) -> None:
    model, optimizer, schedule = run.model, run.optimizer, run.schedule
    for batches in run.steps():
        for batch in batches:  # more than one with --gradient_accumulation_steps
            with run.gradient_sync(batch):
                output = model(batch.pixel_values)
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
    run = ImageTrainingRun(parse_arguments("hfae_vqvae", __doc__, argv, higher_is_better=CODE_METRICS))
    train(run)
    run.finish()


if __name__ == "__main__":
    main()
