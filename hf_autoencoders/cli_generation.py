"""Verbs of the command line about drawing images: `sample` with a prior, and `evaluate-samples`."""

import argparse
from pathlib import Path

from .cli import (
    METRICS,
    Mistake,
    _corpus,
    _load_images,
    _load_model,
    _load_weights,
    _mistakes,
    _refuse_folder,
    _renew_card,
)


def load_prior(arguments: argparse.Namespace):
    """The prior that `--prior` names, on the device of the model; None where it is not given."""
    from transformers import AutoModel

    if arguments.prior is None:
        return None
    names = {"model": arguments.prior, "revision": arguments.prior_revision}
    named = argparse.Namespace(**{**vars(arguments), **names})
    return _load_weights(named, AutoModel, lambda model: hasattr(model, "check_autoencoder"), "a prior")


def draw_samples(model, arguments: argparse.Namespace):
    """Images `(num_samples, C, H, W)` as the flags of `sample` say."""
    import torch

    prior = load_prior(arguments)
    if prior is None and not getattr(model, "has_prior", False):
        raise Mistake(
            f"{arguments.model} holds a {type(model).__name__} model, which has no prior to sample from: give --prior, "
            "which training/train_prior.py trains"
        )
    options = {}
    if arguments.temperature is not None:
        options["temperature"] = arguments.temperature
    if arguments.classes is not None:
        if prior is None or not prior.gives_codes:
            raise Mistake("--classes is for priors of codes that know classes: give one with --prior")
        options["classes"] = torch.tensor(arguments.classes).repeat(-(-arguments.num_samples // len(arguments.classes)))
        options["classes"] = options["classes"][: arguments.num_samples]
    generator = torch.Generator().manual_seed(arguments.seed)
    try:
        return model.sample(arguments.num_samples, generator=generator, prior=prior, **options)
    except (ValueError, TypeError) as error:  # a prior of another auto-encoder, a class that there is not
        raise Mistake(str(error)) from error


def evaluate_samples_verb(arguments: argparse.Namespace) -> None:
    """Measure samples, and write one JSON."""
    from .evaluation.evaluate import write_metrics
    from .evaluation.generation import evaluate_samples

    _refuse_folder(arguments.output)
    model, processor = _load_model(arguments)
    prior = load_prior(arguments)
    train, measured = _load_images(arguments, processor, ["train", arguments.split])
    with _mistakes():
        result = evaluate_samples(
            model,
            prior,
            train,
            measured,
            corpus=_corpus(arguments, measured),
            num_samples=arguments.num_samples,
            features=arguments.features,
            temperature=1.0 if arguments.temperature is None else arguments.temperature,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            command=arguments.command_line,
        )
    for title in ("metrics", "baselines", "settings"):
        print(title)
        for name, value in result[title].items():
            print(f"  {name:<44} {f'{value:.6g}' if isinstance(value, float) else value}")
    folder = Path(arguments.prior) if arguments.prior and Path(arguments.prior).is_dir() else None
    output = Path(arguments.output or (folder or Path()) / (METRICS if folder else "samples.json"))
    print(f"written to {write_metrics(output, result)}")
    if folder and output.resolve() == (folder / METRICS).resolve():
        _renew_card(folder, prior.config.model_type)
