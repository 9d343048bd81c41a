"""Train an auto-encoder whose code is discrete: one-hot categories, bits, or categories with Gaussian latents.

With all defaults, a categorical auto-encoder on the embedded handwritten digits (a minute on two CPU cores); by its
recipe it sorts them into classes that nobody named:

    accelerate launch training/train_discrete_autoencoder.py --dataset digits --output_dir runs/categorical
    accelerate launch training/train_discrete_autoencoder.py --recipe training/recipes/categorical_autoencoder_digits.yaml

Another of the three, whose flags `--variant binary_autoencoder --help` lists:

    accelerate launch training/train_discrete_autoencoder.py --variant binary_autoencoder --num_bits 32

To see that it runs, in a few seconds:

    python training/train_discrete_autoencoder.py --variant joint_vae --max_steps 20 --architecture mlp --hidden_sizes 32 --output_dir runs/try
"""  # noqa: E501  (command lines)

from dataclasses import asdict, dataclass
from typing import Literal

import torch

from hf_autoencoders.data.augmentation import elastic_deformation, random_affine
from hf_autoencoders.evaluation.codes import CodeUsage
from hf_autoencoders.training_arguments import Arguments, chosen_variant, option, parse_arguments, variants_of
from hf_autoencoders.training_clusters import find_last_fine_step, start_categories
from hf_autoencoders.training_images import ImageTrainingRun
from hf_autoencoders.training_parts import ImageBatch, WeightedMeans
from hf_autoencoders.training_run import TrainingError

FAMILY, DEFAULT = "discrete_autoencoder", "categorical_autoencoder"
CODE_METRICS = ("code_usage", "code_perplexity")
ELASTIC_GRID = 5  # points along height and width that are moved at random


@dataclass
class DiscreteAutoencoderTrainingArguments:
    """Flags of this script alone. Changed views are those of `--mutual_information_weight`."""

    variant: Literal[variants_of(FAMILY)] = option(DEFAULT, "What to train; the flags of the model are those of it.")
    rotation_degrees: float = option(20.0, "Of changed views: turn by up to this.")
    scale: float = option(1.16, "Of changed views: stretch or shrink width and height, each by up to this factor.")
    shear_degrees: float = option(11.0, "Of changed views: lean by up to this.")
    translation: float = option(0.07, "Of changed views: shift by up to this share of width and height.")
    elastic_strength: float = option(
        1.0, "Of changed views: bend, by so many pixels (standard deviation of 5 x 5 points)."
    )


def changed_views(run: ImageTrainingRun, batch: ImageBatch) -> torch.Tensor:
    """The images of a batch, each turned, stretched, leant, shifted and bent at random."""
    ranges = asdict(run.arguments.extra)
    ranges.pop("variant"), ranges.pop("elastic_strength")
    images = random_affine(batch.pixel_values, batch.draw(torch.rand, 6), **ranges)
    noise = batch.draw(torch.randn, 2, ELASTIC_GRID, ELASTIC_GRID)
    return elastic_deformation(images, noise, run.arguments.extra.elastic_strength)


def inputs(run: ImageTrainingRun, batch: ImageBatch) -> dict[str, torch.Tensor]:
    """Images and noise of a batch: the same on any number of processes, and after a resume."""
    config, variant = run.config, run.arguments.extra.variant
    if variant == "binary_autoencoder":
        return {"pixel_values": batch.pixel_values, "uniform_noise": batch.draw(torch.rand, config.num_bits)}
    noise = {"uniform_noise": batch.draw(torch.rand, config.num_variables, config.num_categories)}
    if variant == "joint_vae":
        noise["epsilon"] = batch.draw(torch.randn, config.latent_size)
    elif config.mutual_information_weight > 0:
        noise["augmented_pixel_values"] = changed_views(run, batch)
    return {"pixel_values": batch.pixel_values, **noise}


def evaluate(run: ImageTrainingRun) -> dict[str, float]:
    """Loss and its parts, with noise and views as in training, and usage and perplexity of the most probable codes,
    over the whole validation split."""
    means, usage = WeightedMeans(), CodeUsage(run.config.num_codes, run.config.codes_shape[0])
    with run.evaluating() as model:
        for batch in run.validation_batches():
            means.add(model(**inputs(run, batch)), len(batch))
            usage.update(model.encode(batch.pixel_values).codes)
    usage.counts = run.sum_over_processes(usage.counts)
    code_metrics = (usage.usage().mean().item(), usage.perplexity().mean().item())
    return means.compute() | dict(zip(CODE_METRICS, code_metrics, strict=True))


def train(run: ImageTrainingRun) -> None:
    model, optimizer, schedule = run.model, run.optimizer, run.schedule
    last_fine_step = find_last_fine_step(run)  # 0 where there are no fine categories
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
        if run.step == last_fine_step:
            start_categories(run, lambda images: changed_views(run, images))

        if run.should_log:
            run.log()
        if run.should_evaluate:
            run.report(evaluate(run))
        if run.should_save:
            run.save_checkpoint()


def check_views(arguments: Arguments) -> None:
    """Refuse views that cannot be made, or that nothing looks at."""
    weight = arguments.model.get("mutual_information_weight", 0)
    if arguments.run.model_name_or_path and "mutual_information_weight" not in arguments.explicit:
        config = arguments.variant.config_class().from_pretrained(arguments.run.model_name_or_path)
        weight = getattr(config, "mutual_information_weight", 0)
    ranges = asdict(arguments.extra)
    ranges.pop("variant")
    if not weight and (given := [f"--{name}" for name in ranges if name in arguments.explicit]):
        raise TrainingError(
            f"{', '.join(given)}: only a categorical_autoencoder with --mutual_information_weight above 0 looks at "
            "changed views of the images"
        )
    strength = ranges.pop("elastic_strength")
    try:
        image = random_affine(torch.zeros(1, 1, 2, 2), torch.zeros(1, 6), **ranges)
        elastic_deformation(image, torch.zeros(1, 2, 2, 2), strength)
    except ValueError as error:
        raise TrainingError(f"the changed views cannot be made: {error}") from error


def main(argv: list[str] | None = None) -> None:
    model_type = chosen_variant(FAMILY, DEFAULT, argv)
    extra = DiscreteAutoencoderTrainingArguments
    arguments = parse_arguments(model_type, __doc__, argv, extra, higher_is_better=CODE_METRICS)
    check_views(arguments)
    run = ImageTrainingRun(arguments)
    train(run)
    run.finish()


if __name__ == "__main__":
    main()
