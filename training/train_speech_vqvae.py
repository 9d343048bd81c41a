"""Train a vector-quantised auto-encoder of speech (van den Oord et al. 2017) on recordings of several speakers.

With all defaults, on the embedded synthetic voices:

    accelerate launch training/train_speech_vqvae.py --dataset espeak --output_dir runs/speech_vqvae

With a recipe, on one GPU or as many as `accelerate config` was told of:

    accelerate launch training/train_speech_vqvae.py --recipe training/recipes/speech_vqvae_commands.yaml --mixed_precision bf16

To see that it runs, in a few seconds:

    python training/train_speech_vqvae.py --max_steps 20 --hidden_size 32 --no_final_evaluation --output_dir runs/try
"""  # noqa: E501  (command lines)

from hf_autoencoders.evaluation.codes import CodeUsage
from hf_autoencoders.training_arguments import parse_arguments
from hf_autoencoders.training_parts import WeightedMeans
from hf_autoencoders.training_speech import SpeechTrainingRun

CODE_METRICS = ("code_usage", "code_perplexity")


def evaluate(run: SpeechTrainingRun) -> dict[str, float]:
    """Loss and its parts over all frames of the validation split, usage and perplexity of the codes."""
    means, usage = WeightedMeans(), CodeUsage(run.config.codebook_size, run.config.num_codebooks)
    with run.evaluating() as model:
        for batch in run.validation_batches():
            output = model(**batch.inputs)
            means.add(output, batch.num_frames)
            usage.update(output.audio_codes.mT[output.attention_mask.bool()])
    usage.counts = run.sum_over_processes(usage.counts)
    code_metrics = (usage.usage().mean().item(), usage.perplexity().mean().item())
    return means.compute() | dict(zip(CODE_METRICS, code_metrics, strict=True))


def train(run: SpeechTrainingRun) -> None:
    model, optimizer, schedule = run.model, run.optimizer, run.schedule
    for batches in run.steps():
        run.restart_codebooks()  # with --codebook_restarts
        run.teach_classifier(batches)  # with --classifier_first
        for batch in batches:  # more than one with --gradient_accumulation_steps
            with run.gradient_sync(batch):
                output = model(**batch.inputs)
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
    run = SpeechTrainingRun(parse_arguments("hfae_speech_vqvae", __doc__, argv, higher_is_better=CODE_METRICS))
    train(run)
    run.finish()


if __name__ == "__main__":
    main()
