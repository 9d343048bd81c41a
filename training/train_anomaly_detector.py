"""Train an auto-encoder on normal images, and make a calibrated anomaly detector of it.

The embedded handwritten digits, where a 3 is normal and every other digit an anomaly (under a minute on two CPU cores):

    accelerate launch training/train_anomaly_detector.py --recipe training/recipes/anomaly_digits.yaml

With another class, on a corpus of your own:

    accelerate launch training/train_anomaly_detector.py --recipe training/recipes/anomaly_mnist.yaml \
        --dataset path/to/mnist --normal_class 8

Corpora whose training split is normal altogether need no --normal_class. What the detector is worth is measured on the
validation split, which has both kinds. All classes in turn: `training/one_class.py`. To make a detector of a model
that is trained already, of any variant: `hf-autoencoders fit-detector`.
"""

import torch

from hf_autoencoders.training_anomalies import AnomalyArguments, AnomalyTrainingRun
from hf_autoencoders.training_arguments import parse_arguments
from hf_autoencoders.training_parts import ImageBatch, WeightedMeans


def inputs(run: AnomalyTrainingRun, batch: ImageBatch) -> dict[str, torch.Tensor]:
    """Images of a batch and what is random about them: the same on any number of processes, and after a resume."""
    model_inputs = {"pixel_values": batch.pixel_values}
    if run.config.noise != "none":
        sampler = torch.randn if run.config.noise == "gaussian" else torch.rand
        model_inputs["noise"] = batch.draw(sampler, *run.config.input_shape)
    if run.config.contractive_weight:
        model_inputs["perturbation"] = batch.draw(torch.randn, *run.config.input_shape)
    return model_inputs


def evaluate(run: AnomalyTrainingRun) -> dict[str, float]:
    """Loss and its parts over the normal images of the validation split."""
    means = WeightedMeans()
    with run.evaluating() as model:
        for batch in run.validation_batches():
            means.add(model(**inputs(run, batch)), len(batch))
    return means.compute()


def train(run: AnomalyTrainingRun) -> None:
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
    run = AnomalyTrainingRun(parse_arguments("hfae_autoencoder", __doc__, argv, extra=AnomalyArguments))
    train(run)
    run.finish()  # which fits the detector, measures it and saves it with the model


if __name__ == "__main__":
    main()
