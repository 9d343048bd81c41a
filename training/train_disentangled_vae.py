"""Train a variational auto-encoder that is made to disentangle: beta-VAE, beta-TC-VAE, FactorVAE or DIP-VAE.

With all defaults, a beta-TC-VAE on the embedded handwritten digits (a minute on two CPU cores):

    accelerate launch training/train_disentangled_vae.py --dataset digits --output_dir runs/beta_tcvae

Another of the four, whose flags `--variant factor_vae --help` lists, on the embedded sprites, by a recipe:

    accelerate launch training/train_disentangled_vae.py --recipe training/recipes/factor_vae_sprites.yaml

To see that it runs, in a few seconds:

    python training/train_disentangled_vae.py --variant dip_vae --max_steps 20 --architecture mlp --hidden_sizes 32 --output_dir runs/try
"""  # noqa: E501  (command lines)

from dataclasses import dataclass
from typing import Literal

import torch

from hf_autoencoders.training_arguments import Arguments, chosen_variant, option, parse_arguments, variants_of
from hf_autoencoders.training_images import ImageTrainingRun
from hf_autoencoders.training_parts import ImageBatch, WeightedMeans
from hf_autoencoders.training_run import TrainingError

FAMILY, DEFAULT = "disentangled_vae", "beta_tcvae"


@dataclass
class DisentangledVAETrainingArguments:
    """Flags of this script alone."""

    variant: Literal[variants_of(FAMILY)] = option(DEFAULT, "What to train; the flags of the model are those of it.")
    discriminator_learning_rate: float | None = option(
        None, "Of the discriminator of a FactorVAE; `learning_rate` when not given."
    )
    discriminator_adam_beta1: float | None = option(None, "AdamW beta1 of it; `adam_beta1` when not given.")


def inputs(run: ImageTrainingRun, batch: ImageBatch) -> dict[str, torch.Tensor]:
    """Images and noise of a batch: the same on any number of processes, and after a resume."""
    size = run.config.latent_size
    noise = {"epsilon": batch.draw(torch.randn, size)}
    if run.arguments.extra.variant == "factor_vae":
        noise["permutation_noise"] = batch.draw(torch.rand, size)
    return {"pixel_values": batch.pixel_values, **noise}


def evaluate(run: ImageTrainingRun) -> dict[str, float]:
    """The loss and its parts over the whole validation split, in nats per example."""
    means = WeightedMeans()
    with run.evaluating() as model:
        for batch in run.validation_batches():
            means.add(model(**inputs(run, batch)), len(batch))
    return means.compute()


def train(run: ImageTrainingRun) -> None:
    model = run.model
    for batches in run.steps():
        for batch in batches:  # more than one with --gradient_accumulation_steps
            with run.gradient_sync(batch):
                output = model(**inputs(run, batch))
                run.backward(output.loss, batch)
            run.record(output, batch)
        run.clip_gradients()
        for player, optimizer in run.optimizers.items():  # one, or auto-encoder and discriminator
            optimizer.step()
            run.schedules[player].step()
            optimizer.zero_grad()
        run.update_average()

        if run.should_log:
            run.log()
        if run.should_evaluate:
            run.report(evaluate(run))
        if run.should_save:
            run.save_checkpoint()


def check_discriminator(arguments: Arguments) -> None:
    """Refuse flags that would have no effect."""
    given = sorted(name for name in arguments.explicit if name.startswith("discriminator_"))
    if given and arguments.extra.variant != "factor_vae":
        flags = ", ".join(f"--{name}" for name in given)
        raise TrainingError(f"{flags}: only --variant factor_vae has a discriminator, not {arguments.extra.variant}")


def main(argv: list[str] | None = None) -> None:
    model_type = chosen_variant(FAMILY, DEFAULT, argv)
    arguments = parse_arguments(model_type, __doc__, argv, DisentangledVAETrainingArguments)
    check_discriminator(arguments)
    run = ImageTrainingRun(arguments)
    train(run)
    run.finish()


if __name__ == "__main__":
    main()
