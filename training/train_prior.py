"""Train a prior of the latents or codes of a trained auto-encoder: what it needs to draw new images.

A prior of latents (a flow, or a mixture of Gaussians) for auto-encoders and VAEs, one of codes (a transformer, by class
where the corpus has labels) for all with a discrete code. The auto-encoder is frozen, and encodes the corpus once.

    accelerate launch training/train_vae.py --recipe training/recipes/vae_digits.yaml --output_dir runs/vae_digits
    accelerate launch training/train_prior.py --recipe training/recipes/latent_prior_digits.yaml

    accelerate launch training/train_vqvae.py --recipe training/recipes/vqvae_digits.yaml --output_dir runs/vqvae_digits
    accelerate launch training/train_prior.py --recipe training/recipes/code_prior_digits.yaml

To see that it runs, in a few seconds:

    python training/train_prior.py --autoencoder runs/vae_digits/final --max_steps 20 --output_dir runs/try
"""

from dataclasses import dataclass, field
from typing import Literal

import torch

from hf_autoencoders.training_arguments import chosen_variant, named_flag, parse_arguments, variants_of
from hf_autoencoders.training_parts import WeightedMeans
from hf_autoencoders.training_priors import PriorBatch, PriorTrainingRun


@dataclass
class PriorTrainingArguments:
    """Flags of this script alone."""

    variant: Literal[variants_of("prior")] | None = field(
        default=None, metadata={"help": "Of latents or of codes; what the auto-encoder has, when not given."}
    )
    autoencoder: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the auto-encoder, trained on the same corpus."}
    )
    latents: Literal["samples", "means"] = field(
        default="samples",
        metadata={"help": "Of a VAE: samples of the posterior, drawn anew at each step, or its means."},
    )
    class_conditional: bool = field(
        default=True, metadata={"help": "Let a prior of codes know the classes of a corpus with labels."}
    )


def inputs(run: PriorTrainingRun, batch: PriorBatch) -> dict[str, torch.Tensor]:
    """What the model reads: the same on any number of processes, and after a resume."""
    if run.arguments.variant.name == "code_prior":
        classes = {} if batch.classes is None else {"classes": batch.classes}
        if classes and run.model.training:
            classes["class_noise"] = batch.draw(torch.rand)
        return {"codes": batch.values, **classes}
    latents = batch.values
    if batch.log_variance is not None and run.arguments.extra.latents == "samples":
        latents = latents + torch.exp(0.5 * batch.log_variance) * batch.draw(torch.randn, *latents.shape[1:])
    return {"latents": latents}


def evaluate(run: PriorTrainingRun) -> dict[str, float]:
    """Nats per example over the whole validation split; of a prior that knows classes, given these."""
    means = WeightedMeans()
    with run.evaluating() as model:
        for batch in run.validation_batches():
            means.add(model(**inputs(run, batch)), len(batch))
    return means.compute()


def train(run: PriorTrainingRun) -> None:
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


def prior_for(autoencoder: str | None) -> str:
    """The variant that fits an auto-encoder: of codes where it has any. What cannot be read is for the run to say."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(autoencoder) if autoencoder else None
    except (OSError, ValueError):
        config = None
    return "code_prior" if hasattr(config, "codes_shape") else "latent_prior"


def main(argv: list[str] | None = None) -> None:
    model_type = chosen_variant("prior", prior_for(named_flag("autoencoder", argv)), argv)
    run = PriorTrainingRun(parse_arguments(model_type, __doc__, argv, PriorTrainingArguments))
    train(run)
    run.finish()


if __name__ == "__main__":
    main()
