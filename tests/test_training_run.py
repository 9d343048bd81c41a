"""The shared run module, in this process: arguments, exact resume, checkpoints, logs, guards. Runs take a few steps.

`tests/test_training_scripts.py` starts the same scripts as users do, kills them, and runs them on two processes.
"""

import dataclasses
import importlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file

from hf_autoencoders import VARIANTS, training_arguments, training_run
from hf_autoencoders.training_arguments import parse_arguments
from hf_autoencoders.training_images import ImageTrainingRun
from hf_autoencoders.training_parts import AveragedWeights, ImageBatch, WeightedMeans
from hf_autoencoders.training_run import NonFiniteError, TrainingError, TrainingRun

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "autoencoder": ["--hidden_sizes", "8", "--latent_size", "4", "--noise", "gaussian", "--contractive_weight", "0.1"],
    "vae": ["--hidden_sizes", "8", "--latent_size", "4", "--dynamic_binarization"],
    "vqvae": ["--hidden_sizes", "8", "--codebook_size", "16", "--embedding_dim", "4"],
    # two optimizers
    "factor_vae": "--variant factor_vae --hidden_sizes 8 --latent_size 4 --discriminator_hidden_sizes 8".split(),
    # categories that start from groups of fine ones at the end of step 4
    "categorical_autoencoder": [
        *"--variant categorical_autoencoder --hidden_sizes 8 --num_categories 3 --mutual_information_weight 5".split(),
        *"--num_fine_categories 5 --fine_steps 4".split(),
    ],
}
LATENTS = {"beta_tcvae": ["--hidden_sizes", "8", "--latent_size", "3"]}  # whose latents are to mean something
QUICK = "--use_cpu --disable_progress_bar --no_final_evaluation --num_pictures 0 --batch_size 32".split()
STEPS = "--max_steps 9 --logging_steps 2 --eval_steps 4 --save_steps 3".split()


def script(variant: str):
    """The module `training/train_<family>.py` that trains a variant."""
    if str(ROOT / "training") not in sys.path:
        sys.path.insert(0, str(ROOT / "training"))
    return importlib.import_module(f"train_{VARIANTS[f'hfae_{variant}'].family}")


def train(variant: str, output_dir, *flags: str) -> Path:
    """Run a script's `main` in this process with a tiny model; `flags` come last, so they override."""
    AcceleratorState._reset_state(reset_partial_state=True)
    script(variant).main(
        [*{**TINY, **LATENTS}[variant], *QUICK, *STEPS, "--output_dir", str(output_dir), *map(str, flags)]
    )
    return Path(output_dir)


def metrics(folder: Path, split: str | None = None) -> list[dict]:
    """The lines of `metrics.jsonl` without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return [line for line in lines if split in (None, line["split"])]


def weights(folder: Path, name: str = "final") -> dict[str, torch.Tensor]:
    return load_file(folder / name / "model.safetensors")


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (folder / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, Path]:
    """One run of each script that nobody disturbed."""
    return {name: train(name, tmp_path_factory.mktemp("finished") / name, "--average_decay", "0.9") for name in TINY}


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


def kill_at(monkeypatch, target, name: str, count: int = 1, after: bool = False) -> None:
    """Let the `count`-th call of `target.name` end the run, before or after it did its work."""
    original, calls = getattr(target, name), []

    def deadly(*args, **kwargs):
        calls.append(1)
        if len(calls) == count and not after:
            raise Killed
        result = original(*args, **kwargs)
        if len(calls) == count:
            raise Killed
        return result

    monkeypatch.setattr(target, name, deadly)


# ---------------------------------------------------------------------------------------------------------- arguments


def refused(capsys, *argv: str, variant: str = "vqvae") -> str:
    """The message with which a command line is refused."""
    with pytest.raises(SystemExit) as error:
        parse_arguments(f"hfae_{variant}", "", list(argv))
    assert error.value.code == 2
    return capsys.readouterr().err.split("error: ")[-1]


@pytest.mark.parametrize("variant", TINY)
def test_help_explains_every_flag(variant, capsys):
    with pytest.raises(SystemExit) as end:
        script(variant).main([*(["--variant", variant] if "--variant" in TINY[variant] else []), "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    name = script(variant).__name__
    assert f"accelerate launch training/{name}.py" in text  # the docstring's command lines, unwrapped
    entries = re.findall(r"^  (--\w+).*?\n((?: {20,}.*\n)*)", text, re.MULTILINE)
    fields = re.findall(r"^  (--\w+)", text, re.MULTILINE)
    assert len(fields) > 60 and not [name for name, words in entries if not words.strip() and f"{name} " not in text]
    model = training_arguments.model_arguments(VARIANTS[f"hfae_{variant}"].config_class())
    assert {f"--{flag.name}" for flag in dataclasses.fields(model)} <= set(fields)
    assert "(default: 512)" in text if variant == "vqvae" else True


def test_every_flag_has_words():
    for model_type, variant in VARIANTS.items():
        model = training_arguments.model_arguments(variant.config_class())
        for group in (*training_arguments.ARGUMENTS_OF_MODALITY[variant.modality], model):
            for flag in dataclasses.fields(group):
                assert len(flag.metadata["help"]) > 10, (model_type, flag.name)


def test_flags_of_the_model_are_those_of_its_configuration():
    arguments = parse_arguments(
        "hfae_vqvae",
        "",
        "--hidden_sizes 8 16 --image_size 12 20 --ema_decay 0.5 --no_kmeans_init --commitment_cost 1".split(),
    )
    config = VARIANTS["hfae_vqvae"].config_class()(**arguments.model)
    assert list(config.hidden_sizes) == [8, 16] and config.input_shape == (1, 12, 20)
    assert config.ema_decay == 0.5 and config.kmeans_init is False and config.commitment_cost == 1.0
    assert parse_arguments("hfae_vqvae", "", ["--image_size", "12"]).model["image_size"] == 12
    linear = parse_arguments("hfae_vae", "", ["--architecture", "mlp", "--hidden_sizes"])
    assert linear.model["hidden_sizes"] == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--codebook_sise", "8"], "unknown flag --codebook_sise (did you mean --codebook_size"),
        (["--latent_size", "8"], "unknown flag --latent_size"),  # of another variant
        (["--learn", "1"], "unknown flag --learn"),  # no abbreviations: a new flag would change their meaning
        (["stray"], "unknown flag stray"),
        (["--batch_size", "many"], "invalid int value: 'many'"),
        (["--batch_size", "0"], "--batch_size: expected at least 1, got 0"),
        (["--learning_rate", "nan"], "--learning_rate: expected a positive number, got nan"),
        (["--average_decay", "1"], "--average_decay: expected a number from 0 up to"),
        (["--lr_scheduler_type", "wavy"], "invalid choice: 'wavy'"),
        (["--codebook_size", "1"], "expected at least 2, got 1"),
        (["--architecture", "mlp"], "has no grid of latents to quantise"),
        (["--push_to_hub"], "--push_to_hub needs --hub_model_id"),
        (["--resume_from_checkpoint", "latest", "--overwrite_output_dir"], "give one of them"),
        (["--recipe", "nowhere.yaml"], "recipe nowhere.yaml cannot be read"),
        (["--final_weights", "best", "--eval_steps", "0"], "--final_weights best needs evaluations"),
        (["--early_stopping_patience", "2", "--eval_steps", "0"], "--early_stopping_patience counts evaluations"),
        (["--max_streamed_images", "0"], "--max_streamed_images: expected at least 1, got 0"),
        (["--streaming", "--factor_columns", "ink"], "--factor_columns cannot be read with --streaming"),
        (["--mixed_precision", "fp16", "--use_cpu"], "fp16 does not work on the CPU: use bf16"),
        (["--report_to", "tensorbord"], "unknown tracker tensorbord (did you mean tensorboard?)"),
        (["--metric_for_best_model", "losss"], "unknown metric losss (did you mean loss"),
        (["--metric_for_best_model", "beauty"], "there are loss, reconstruction_loss, commitment_loss, codebook_loss"),
        (["--push_to_hub", "--hub_model_id", "a/b/c"], "--hub_model_id: "),
    ],
)
def test_wrong_command_lines_are_refused(argv, message, capsys):
    assert message in refused(capsys, *argv)


def test_trackers_that_are_not_installed_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    message = "--report_to comet_ml needs a package that is not installed: pip install comet-ml"
    assert message in refused(capsys, "--report_to", "comet_ml")


def test_fp16_by_accelerate_config_is_refused_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(TrainingError, match="fp16"):
        train("vae", tmp_path)


def test_recipe_gives_defaults_that_the_command_line_overrides(tmp_path):
    for name, dump in (("recipe.yaml", yaml.safe_dump), ("recipe.json", json.dumps)):
        recipe = tmp_path / name
        recipe.write_text(dump({"hidden_sizes": [4, 8], "seed": 3, "streaming": True, "eval_steps": None}))
        arguments = parse_arguments("hfae_vqvae", "", ["--seed", "5", "--recipe", str(recipe)])
        assert arguments.model["hidden_sizes"] == [4, 8] and arguments.run.seed == 5 and arguments.corpus.streaming
        assert arguments.run.eval_steps is None and {"seed", "hidden_sizes", "streaming"} <= arguments.explicit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rte: 1", "unknown key learning_rte (did you mean learning_rate"),
        ("recipe: other.yaml", "unknown key recipe"),
        ("- 1", "expected flags and their values, got list"),
        ("seed: {a: 1}", "seed: expected a value or a list, got a mapping"),
        ("seed: red", "invalid int value: 'red'"),
        ("seed: [", "cannot be read"),
        ("", "expected flags and their values, got NoneType"),
    ],
)
def test_wrong_recipes_are_refused(text, message, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(text)
    assert message in refused(capsys, "--recipe", str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize("recipe", sorted((ROOT / "training" / "recipes").iterdir()), ids=lambda path: path.name)
def test_recipes_fit_their_script(recipe, monkeypatch):
    class Parsed(Exception):
        pass

    def stop(arguments):
        raise Parsed

    names = [variant.name for variant in VARIANTS.values() if recipe.name.startswith(f"{variant.name}_")]
    if recipe.name.startswith("anomaly_"):  # detectors are auto-encoders, with a script of their own
        script("autoencoder")
        module = importlib.import_module("train_anomaly_detector")
    else:
        module = script(max(names, key=len))
    run_class = [name for name in vars(module) if name.endswith("Run")][-1]  # its own comes after what it builds on
    monkeypatch.setattr(module, run_class, stop)
    with pytest.raises(Parsed):
        module.main(["--recipe", str(recipe)])


@pytest.mark.parametrize(
    ("env", "launcher"),
    [
        ({}, "python"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch"),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4"},
            "accelerate launch --multi_gpu --num_processes 4",
        ),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, "torchrun --nproc_per_node 2"),
    ],
)
def test_the_command_is_what_ran_without_what_is_private(env, launcher, monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "training" / "train_vqvae.py")])
    argv = "--output_dir /private/run --cache_dir=/private --hub_model_id me/x --dataset /private/cats --seed 3".split()
    argv += ["--resume_from_checkpoint", "latest", "--hidden_sizes", "8", "16", "--model_name_or_path=/private/start"]
    command = parse_arguments("hfae_vqvae", "", argv).command
    kept = "--dataset cats --seed 3 --hidden_sizes 8 16 --model_name_or_path=start"
    assert command == f"{launcher} training/train_vqvae.py {kept}"


# ------------------------------------------------------------------------------------------------------ parts of a run


def test_draws_do_not_depend_on_the_number_of_processes():
    pixel_values = torch.zeros(7, 1, 2, 2)

    def draws(rows: slice, step: int = 4) -> list[torch.Tensor]:
        batch = ImageBatch(pixel_values=pixel_values[rows], rows=rows, global_size=7, seed=(0, step, 0))
        return [batch.draw(torch.randn, 3), batch.draw(torch.rand, 1, 2, 2)]

    whole, first, second = draws(slice(0, 7)), draws(slice(0, 3)), draws(slice(3, 7))
    for together, one, two in zip(whole, first, second, strict=True):
        assert torch.equal(together, torch.cat([one, two]))
    assert not torch.equal(whole[0], draws(slice(0, 7), step=5)[0])
    assert whole[1].min() >= 0 and whole[1].max() < 1 and whole[0].min() < 0


def test_weighted_means_are_exact_for_uneven_batches():
    values = torch.rand(11, dtype=torch.float64)
    means = WeightedMeans()
    for batch in values.split(4):
        means.add({"loss": batch.mean(), "codes": torch.zeros(3), "count": torch.tensor(1)}, len(batch))
    assert means.compute() == {"loss": pytest.approx(values.mean().item(), abs=1e-12)}


def test_averaged_weights():
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    average, expected = AveragedWeights([parameter], decay=0.9), torch.zeros(3)
    for update in range(1, 200):
        parameter.data.fill_(update)
        average.update()
        decay = min(0.9, update / (9 + update))
        expected = decay * expected + (1 - decay) * parameter.float()
    assert average.averages[0].dtype == torch.float32
    torch.testing.assert_close(average.averages[0], expected.data)
    before = parameter.detach().clone()
    with average.in_place():
        torch.testing.assert_close(parameter.float(), expected.data, rtol=0.01, atol=0)
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("name", training_arguments.SCHEDULES)
def test_schedules(name, tmp_path):
    folder = train("vqvae", tmp_path, "--lr_scheduler_type", name, "--warmup_ratio", "0.3", "--logging_steps", "1")
    rates = [line["learning_rate"] for line in metrics(folder, "train")]
    assert len(rates) == 9 and max(rates) <= 1e-3
    if name != "constant":
        assert rates[0] < rates[1] < rates[2] == pytest.approx(1e-3)
    if name in ("linear", "cosine", "polynomial"):
        assert rates[-1] == pytest.approx(0, abs=1e-7) and rates[2:] == sorted(rates[2:], reverse=True)


# ---------------------------------------------------------------------------------------------------- what a run leaves


@pytest.mark.parametrize("variant", TINY)
def test_a_run_leaves_everything(variant, finished):
    from transformers import AutoImageProcessor, AutoModel

    folder = finished[variant]
    assert checkpoints(folder) == [6, 9]  # rotated: 3 is gone
    lines = metrics(folder)
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 6, 8, 9]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [4, 8, 9]
    assert all({"loss", "reconstruction_loss", "epoch"} <= line.keys() for line in lines)
    assert lines[0]["epoch"] == pytest.approx(2 / (1197 // 32), abs=1e-4)
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"]["batch_size"] == 32 and record["settings"]["num_processes"] == 1
    assert record["machine"] and record["versions"]["torch"] == torch.__version__
    model = AutoModel.from_pretrained(folder / "final")
    processor = AutoImageProcessor.from_pretrained(folder / "final")
    image = np.zeros((8, 8), dtype=np.uint8)
    assert model(**processor(image, return_tensors="pt"), return_loss=False).reconstruction.shape == (1, 1, 8, 8)
    recipe = yaml.safe_load((folder / "final" / "recipe.yaml").read_text())
    assert recipe["hidden_sizes"] == [8] and "output_dir" not in recipe and "use_cpu" not in recipe
    assert not list(folder.rglob(f"{training_run.TEMPORARY}*"))


def test_train_lines_are_means_over_their_window(tmp_path):
    each = metrics(train("vae", tmp_path / "each", "--logging_steps", "1"), "train")
    windows = metrics(train("vae", tmp_path / "windows", "--logging_steps", "4"), "train")
    assert [line["step"] for line in windows] == [4, 8, 9]
    for window, steps in zip(windows, (each[:4], each[4:8], each[8:]), strict=True):
        assert window["kl_loss"] == pytest.approx(np.mean([line["kl_loss"] for line in steps]), rel=1e-6)


def test_validation_is_exact_over_all_rows(tmp_path):
    """Batches of 256 and 44 images, against one pass over all 300."""
    folder = train("autoencoder", tmp_path, "--noise", "none", "--contractive_weight", "0")
    model = VARIANTS["hfae_autoencoder"].model_class().from_pretrained(folder / "final")
    from hf_autoencoders.data import image_arrays, load_corpus
    from hf_autoencoders.models.image_processing_autoencoder import AutoencoderImageProcessor

    images = image_arrays(load_corpus("digits")["validation"], AutoencoderImageProcessor.for_model(model.config)).images
    with torch.no_grad():
        loss = model(torch.from_numpy(np.array(images)).float() / 255).loss.item()
    assert metrics(folder, "validation")[-1]["loss"] == pytest.approx(loss, rel=1e-5)


def test_pictures_and_final_evaluation(tmp_path):
    folder = train(
        "vae", tmp_path, "--num_pictures", "6", "--final_evaluation", "true", "--num_importance_samples", "2"
    )
    for name in ("reconstructions", "samples"):
        assert (folder / "final" / f"{name}.png").stat().st_size > 200
        assert [path.name for path in sorted((folder / "images").glob(f"{name}*"))] == [
            f"{name}-{step:08d}.png" for step in (4, 8, 9)
        ]
    measured = json.loads((folder / "final" / "metrics.json").read_text())
    assert measured["seed"] == 0 and measured["corpus"]["name"] == "digits"
    assert measured["settings"]["num_importance_samples"] == 2 and measured["metrics"]["mse"] > 0
    assert "nll" in (folder / "final" / "README.md").read_text().lower()


@pytest.mark.parametrize("labels", [True, False])
def test_the_finished_model_says_what_its_latents_mean(tmp_path, labels):
    """Where its card has a place for that, the corpus says something of its images, and it is measured at all."""
    flags = ["--num_importance_samples", "2", "--final_evaluation", "true"]
    flags += [] if labels else ["--label_column", "none", "--factor_columns", "none"]
    final = train("beta_tcvae", tmp_path / "run", *flags) / "final"
    assert (final / "latent_report.md").is_file() == (final / "latent_report").is_dir() == labels
    if not labels:
        return
    text = (final / "latent_report.md").read_text().strip()
    assert text in (final / "README.md").read_text()
    report = json.loads((final / "latent_report" / "latent_report.json").read_text())
    assert report["corpus"] == {"name": "digits", "split": "validation", "rows": 300} and report["seed"] == 0
    assert report["command"] == json.loads((final / "metrics.json").read_text())["command"]
    names = {"index.html", "latent_report.json", *(f"dimension_{index}.png" for index in range(3))}
    assert {path.name for path in (final / "latent_report").iterdir()} == names
    assert not (train("vae", tmp_path / "plain", *flags) / "final" / "latent_report.md").exists()
    assert not (train("beta_tcvae", tmp_path / "quick") / "final" / "latent_report.md").exists()


def test_what_is_published_names_no_folder_of_this_computer(pictures, finished, tmp_path):
    (pictures / "train" / "017.png").unlink()
    (tmp_path / "recipe.yaml").write_text(f"dataset: {pictures}\n")
    first = train("autoencoder", tmp_path / "first", "--recipe", tmp_path / "recipe.yaml", "--batch_size", "8")
    flags = ["--recipe", tmp_path / "recipe.yaml", "--cache_dir", tmp_path / "cache", "--batch_size", "8"]
    flags += ["--model_name_or_path", first / "final", "--final_evaluation", "true", "--hub_model_id", "me/secret"]
    folder = train("autoencoder", tmp_path / "run", *flags)
    for final in (first / "final", folder / "final"):
        texts = {path.name: path.read_bytes() for path in final.iterdir() if path.is_file()}
        assert {"run.json", "README.md", "recipe.yaml"} <= texts.keys()
        assert not [name for name, text in texts.items() if str(tmp_path).encode() in text]
    measured, record = (json.loads((folder / "final" / name).read_text()) for name in ("metrics.json", "run.json"))
    for command in (measured["command"], record["command"]):
        assert "--output_dir" not in command and "secret" not in command and "--recipe recipe.yaml" in command
    assert measured["corpus"]["name"] == "images" and measured["settings"]["num_processes_of_training"] == 1
    assert record["settings"]["dataset"] == "images" and record["settings"]["num_processes"] == 1


def test_tensorboard(tmp_path):
    folder = train("vqvae", tmp_path, "--report_to", "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "trackers")).Reload()
    assert {"train/loss", "validation/code_perplexity", "train/learning_rate"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("validation/loss")] == [4, 8, 9]


def test_code_usage_is_that_of_the_whole_split(finished):
    line = metrics(finished["vqvae"], "validation")[-1]
    assert 0 < line["code_usage"] <= 1 and 1 <= line["code_perplexity"] <= 16


# --------------------------------------------------------------------------------------------------------- exact resume


@pytest.mark.parametrize("variant", TINY)
@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("step", 5),  # in the middle of a step, two steps after a checkpoint
        ("save_state", 2),  # in the middle of writing the second checkpoint: files are there, the rest is not
        ("_put_in_place", 5),  # written, but not yet under its name
        ("rmtree", 1),  # in the middle of deleting an old one, or of replacing `best`
        ("step", 2),  # before the first checkpoint
    ],
)
def test_resume_is_exact_wherever_it_was_killed(variant, where, count, finished, tmp_path, monkeypatch):
    from accelerate import Accelerator

    with monkeypatch.context() as patch:
        if where == "step":
            kill_at(patch, TrainingRun, "update_average", count)
        elif where == "save_state":
            kill_at(patch, Accelerator, "save_state", count, after=True)
        elif where == "_put_in_place":
            kill_at(patch, training_run, "_put_in_place", count)
        else:
            kill_at(patch, training_run.shutil, "rmtree", count)
        with pytest.raises(Killed):
            train(variant, tmp_path, "--average_decay", "0.9")
    torch.manual_seed(12345)  # whatever the new process starts with
    train(variant, tmp_path, "--average_decay", "0.9", "--resume_from_checkpoint", "latest")
    assert_equal(weights(tmp_path), weights(finished[variant]))
    assert_equal(weights(tmp_path, "best"), weights(finished[variant], "best"))
    assert metrics(tmp_path) == metrics(finished[variant])  # no line twice, none missing
    assert checkpoints(tmp_path) == checkpoints(finished[variant])
    assert not list(tmp_path.rglob(f"{training_run.TEMPORARY}*"))


def test_resume_across_epochs_with_accumulation(tmp_path, monkeypatch):
    """Steps of three batches, twelve batches an epoch: positions within an epoch, at its end, and in the next one."""
    flags = ["--batch_size", "96", "--gradient_accumulation_steps", "5", "--logging_steps", "4"]
    reference = train("vae", tmp_path / "reference", *flags)
    for count in (4, 7):
        with monkeypatch.context() as patch:
            kill_at(patch, TrainingRun, "update_average", count)
            with pytest.raises(Killed):
                train("vae", tmp_path / str(count), *flags)
        train("vae", tmp_path / str(count), *flags, "--resume_from_checkpoint", "latest")
        assert_equal(weights(tmp_path / str(count)), weights(reference))
        assert metrics(tmp_path / str(count)) == metrics(reference)


def test_damaged_checkpoints_are_passed_over(finished, tmp_path, monkeypatch, capsys):
    kill_at(monkeypatch, TrainingRun, "update_average", 8)
    with pytest.raises(Killed):
        train("vqvae", tmp_path, "--average_decay", "0.9")
    monkeypatch.undo()
    assert checkpoints(tmp_path) == [3, 6]
    with open(tmp_path / "checkpoints" / "step-00000006" / "optimizer.bin", "r+b") as file:
        file.truncate(100)
    train("vqvae", tmp_path, "--average_decay", "0.9", "--resume_from_checkpoint", "latest")
    assert "step-00000006" in capsys.readouterr().out
    assert_equal(weights(tmp_path), weights(finished["vqvae"]))
    assert metrics(tmp_path) == metrics(finished["vqvae"])


def test_resume_from_a_named_checkpoint_and_of_a_finished_run(finished, tmp_path, monkeypatch):
    folder = train("vae", tmp_path, "--average_decay", "0.9")
    for checkpoint in (folder / "checkpoints" / "step-00000006", "latest"):
        (folder / "final" / "model.safetensors").unlink()
        train("vae", tmp_path, "--average_decay", "0.9", "--resume_from_checkpoint", checkpoint)
        assert_equal(weights(folder), weights(finished["vae"]))
        assert metrics(folder) == metrics(finished["vae"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "16"], "batch_size was 32, is 16"),
        (["--seed", "1"], "seed was 0, is 1"),
        (["--learning_rate", "0.1"], "learning_rate was 0.001, is 0.1"),
        (["--hidden_sizes", "4"], "hidden_sizes was [8], is [4]"),
        (["--max_steps", "10"], "max_steps was 9, is 10"),
    ],
)
def test_other_arguments_are_refused_on_resume(flags, message, finished, tmp_path):
    before = metrics(finished["vae"])
    with pytest.raises(TrainingError, match=re.escape(message)):
        train("vae", finished["vae"], "--average_decay", "0.9", "--resume_from_checkpoint", "latest", *flags)
    assert metrics(finished["vae"]) == before and checkpoints(finished["vae"]) == [6, 9]


def test_an_output_dir_that_holds_a_run_is_refused(finished, tmp_path):
    with pytest.raises(TrainingError, match="already holds a run.*--resume_from_checkpoint latest"):
        train("vae", finished["vae"])
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="is a file"):
        train("vae", tmp_path / "file")
    with pytest.raises(TrainingError, match="not a whole checkpoint. Checkpoints of .*: step-00000006, step-00000009"):
        train("vae", finished["vae"], "--resume_from_checkpoint", finished["vae"] / "checkpoints" / "step-00000007")
    with pytest.raises(TrainingError, match="is not one of"):
        other = finished["vqvae"] / "checkpoints" / "step-00000006"
        train("vae", finished["vae"], "--resume_from_checkpoint", other)


def test_overwrite_starts_anew_and_leaves_other_files_alone(tmp_path):
    first = train("vqvae", tmp_path, "--seed", "1", "--average_decay", "0.9")
    (tmp_path / "notes.txt").write_text("mine")
    second = train("vqvae", tmp_path, "--overwrite_output_dir", "--max_steps", "2")
    assert first == second and (tmp_path / "notes.txt").read_text() == "mine"
    assert checkpoints(tmp_path) == [2] and [line["step"] for line in metrics(tmp_path)] == [2, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_run(number, finished, tmp_path, monkeypatch):
    original, handler = TrainingRun.clip_gradients, signal.getsignal(number)

    def clip_gradients(self):
        if self.step == 5:
            os.kill(os.getpid(), number)
        original(self)

    monkeypatch.setattr(TrainingRun, "clip_gradients", clip_gradients)
    with pytest.raises(SystemExit) as end:
        train("vae", tmp_path, "--average_decay", "0.9")
    assert end.value.code == 128 + number and signal.getsignal(number) == handler
    assert checkpoints(tmp_path) == [3, 5] and not (tmp_path / "final").exists()
    train("vae", tmp_path, "--average_decay", "0.9", "--resume_from_checkpoint", "latest")
    assert_equal(weights(tmp_path), weights(finished["vae"]))
    assert metrics(tmp_path) == metrics(finished["vae"])


def test_a_signal_saves_where_nothing_else_does(finished, tmp_path, monkeypatch, capsys):
    original = TrainingRun.clip_gradients

    def clip_gradients(self):
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "clip_gradients", clip_gradients)
        with pytest.raises(SystemExit):
            train("vae", tmp_path, "--average_decay", "0.9", "--save_steps", "0")
    assert checkpoints(tmp_path) == [5]
    assert "continue with --resume_from_checkpoint latest" in capsys.readouterr().out
    train("vae", tmp_path, "--average_decay", "0.9", "--save_steps", "0", "--resume_from_checkpoint", "latest")
    assert_equal(weights(tmp_path), weights(finished["vae"]))


# --------------------------------------------------------------------------------------------------------------- guards


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    """The step is named, and no checkpoint holds anything of it, though nothing looks at single steps."""
    original = TrainingRun.record

    def record(self, output, batch):
        if self.step == 5:
            output["loss"] = output["loss"] * float("nan")
        original(self, output, batch)

    monkeypatch.setattr(TrainingRun, "record", record)
    message = "the loss of step 5 is not finite.*The last good checkpoint is .*00000003"
    with pytest.raises(NonFiniteError, match=message):
        train("vqvae", tmp_path, "--logging_steps", "100", "--eval_steps", "0")
    assert checkpoints(tmp_path) == [3] and not (tmp_path / "final").exists()
    saved = load_file(tmp_path / "checkpoints" / "step-00000003" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    """A gradient can be NaN where the loss is not: the step before a checkpoint."""
    original = TrainingRun.clip_gradients

    def clip(self):
        if self.step == 6:
            next(self.network.parameters()).grad.fill_(float("nan"))
        original(self)

    monkeypatch.setattr(TrainingRun, "clip_gradients", clip)
    with pytest.raises(NonFiniteError, match="after step 6 .* of the model's tensors are not finite"):
        train("vae", tmp_path, "--eval_steps", "0")
    assert checkpoints(tmp_path) == [3]


def test_final_weights_that_are_not_finite_are_not_written(tmp_path, monkeypatch):
    """The last gradient is NaN, and nothing looks at the weights after it but the end."""
    original = TrainingRun.clip_gradients

    def clip(self):
        if self.step == 9:
            next(self.network.parameters()).grad.fill_(float("nan"))
        original(self)

    monkeypatch.setattr(TrainingRun, "clip_gradients", clip)
    with pytest.raises(NonFiniteError, match="after step 9 .* of the model's tensors are not finite"):
        train("vae", tmp_path, "--eval_steps", "0", "--save_steps", "0")
    assert not (tmp_path / "final").exists()


def test_weight_decay_is_for_matrices_and_kernels(tmp_path):
    vae = ["hfae_vae", "--hidden_sizes", "8", "--latent_size", "4", "--likelihood", "gaussian"]
    vae += ["--architecture", "resnet"]
    vqvae = ["hfae_vqvae", *TINY["vqvae"], "--codebook_update", "gradient"]
    for model_type, *flags in (vae, vqvae):
        AcceleratorState._reset_state(reset_partial_state=True)
        folder = tmp_path / model_type
        flags += [*QUICK, "--max_steps", "1", "--weight_decay", "0.1", "--output_dir", str(folder)]
        run = ImageTrainingRun(parse_arguments(model_type, "", flags))
        names = {parameter: name for name, parameter in run.network.named_parameters()}
        decayed, others = ({names[p]: p for p in group["params"]} for group in run.optimizer.param_groups)
        assert run.optimizer.param_groups[0]["weight_decay"] == 0.1
        assert run.optimizer.param_groups[1]["weight_decay"] == 0.0
        assert decayed and all(name.endswith("weight") and p.ndim in (2, 4) for name, p in decayed.items())
        alone = {name for name, p in others.items() if p.ndim > 1}
        assert alone == ({"output_scale.raw"} if model_type == "hfae_vae" else {"quantizer.quantizers.0.codebook"})
        assert len(decayed) + len(others) == len(names)


def test_an_exploding_run_says_so(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step \d+ .*not finite.*Lower --learning_rate"):
        train("vae", tmp_path, "--learning_rate", "1e30", "--max_grad_norm", "0", "--warmup_ratio", "0")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "2000"], "lower batch_size"),
        (["--dataset", "./nowhere"], "nowhere"),
        (["--image_column", "picture"], "has no column 'picture'"),
    ],
)
def test_runs_that_cannot_be(flags, message, tmp_path):
    with pytest.raises(TrainingError, match=re.escape(message)):
        train("vae", tmp_path, *flags)


def test_a_loss_that_this_model_lacks_ends_the_run_at_once(tmp_path):
    with pytest.raises(TrainingError, match="--metric_for_best_model codebook_loss: this model has loss"):
        train("vqvae", tmp_path, "--metric_for_best_model", "codebook_loss", "--eval_steps", "9")
    assert not metrics(tmp_path) and not checkpoints(tmp_path)


ALICE = {"name": "alice", "orgs": [{"name": "lab", "roleInOrg": "write"}, {"name": "club", "roleInOrg": "read"}]}


@pytest.mark.parametrize(
    ("repo_id", "answer", "message"),
    [
        ("alice/digits", ALICE, None),
        ("digits", ALICE, None),
        ("lab/digits", ALICE, None),
        ("club/digits", ALICE, "alice has no right to write for club"),
        ("bob/digits", ALICE, "alice has no right to write for bob"),
        ("alice/digits", ALICE | {"auth": {"accessToken": {"role": "read"}}}, "the token of alice may only read"),
        ("alice/digits", LocalTokenNotFoundError("no token"), "needs a token of the Hub"),
        ("alice/digits", OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        ("alice/digits", RuntimeError("no route"), "the Hub cannot be reached: no route"),
    ],
)
def test_the_right_to_push_is_checked_before_anything_else(repo_id, answer, message, tmp_path, monkeypatch):
    def whoami(self):
        if isinstance(answer, Exception):
            raise answer
        return answer

    class Reached(Exception):
        pass

    def claim(self):
        raise Reached

    monkeypatch.setattr(training_run.HfApi, "whoami", whoami)
    monkeypatch.setattr(TrainingRun, "_claim_output_dir", claim)
    with pytest.raises(TrainingError if message else Reached, match=message):
        train("vae", tmp_path / "run", "--push_to_hub", "--hub_model_id", repo_id)


# ----------------------------------------------------------------------------------------------------- ways of training


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    flags = ["--noise", "none", "--contractive_weight", "0", "--save_steps", "0", "--max_steps", "6"]
    large = train("autoencoder", tmp_path / "large", *flags, "--batch_size", "64")
    small = train("autoencoder", tmp_path / "small", *flags, "--gradient_accumulation_steps", "4", "--batch_size", "16")
    for name, tensor in weights(large).items():
        torch.testing.assert_close(weights(small)[name], tensor, rtol=1e-4, atol=1e-6)
    assert [line["loss"] for line in metrics(small)] == pytest.approx(
        [line["loss"] for line in metrics(large)], rel=1e-5
    )


def test_final_holds_the_averaged_weights(finished):
    state = torch.load(finished["vae"] / "checkpoints" / "step-00000009" / "custom_checkpoint_1.pkl", weights_only=True)
    last, final = load_file(finished["vae"] / "checkpoints/step-00000009/model.safetensors"), weights(finished["vae"])
    assert state["updates"] == 9 and any(not torch.equal(last[name], final[name]) for name in final)
    assert all(any(torch.equal(average, tensor) for tensor in final.values()) for average in state["averages"])


def test_early_stopping_and_best(tmp_path):
    flags = ["--early_stopping_patience", "2", "--early_stopping_threshold", "1000", "--eval_steps", "1"]
    folder = train("vae", tmp_path, *flags, "--final_weights", "best", "--max_steps", "50", "--save_steps", "20")
    assert json.loads((folder / "best" / "best.json").read_text())["step"] == 1
    assert checkpoints(folder) == [3]  # stopped after two evaluations without improvement
    assert_equal(weights(folder), weights(folder, "best"))
    train("vae", tmp_path, *flags, "--max_steps", "50", "--resume_from_checkpoint", "latest", "--save_steps", "20")
    assert checkpoints(folder) == [3] and metrics(folder)[-1]["step"] == 3  # still stopped
    assert_equal(weights(folder), load_file(folder / "checkpoints" / "step-00000003" / "model.safetensors"))


def test_more_codes_in_use_are_better(tmp_path):
    folder = train("vqvae", tmp_path, "--metric_for_best_model", "code_perplexity", "--eval_steps", "1")
    values = [line["code_perplexity"] for line in metrics(folder, "validation")]
    best = json.loads((folder / "best" / "best.json").read_text())
    assert best["value"] == max(values) > min(values) and best["step"] == values.index(max(values)) + 1


def test_evaluation_leaves_training_alone(tmp_path):
    often = train("autoencoder", tmp_path / "often", "--eval_steps", "1", "--num_pictures", "4")
    never = train("autoencoder", tmp_path / "never", "--eval_steps", "0")
    assert_equal(weights(often), weights(never))


def test_bf16(tmp_path):
    folder = train("vqvae", tmp_path, "--mixed_precision", "bf16")
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights(folder).values())
    assert json.loads((folder / "run.json").read_text())["settings"]["mixed_precision"] == "bf16"


def test_streaming(tmp_path, monkeypatch):
    flags = ["--streaming", "--batch_size", "256", "--max_streamed_images", "100"]
    reference = train("vae", tmp_path / "reference", *flags)
    assert metrics(reference)[-1]["epoch"] == 2.0
    with monkeypatch.context() as patch:
        kill_at(patch, TrainingRun, "update_average", 7)
        with pytest.raises(Killed):
            train("vae", tmp_path / "killed", *flags)
    train("vae", tmp_path / "killed", *flags, "--resume_from_checkpoint", "latest")
    assert_equal(weights(tmp_path / "killed"), weights(reference))
    arguments = parse_arguments("hfae_vqvae", "", [*QUICK, "--streaming", "--output_dir", str(tmp_path / "endless")])
    with pytest.raises(TrainingError, match="--streaming needs --max_steps"):
        ImageTrainingRun(arguments)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of 40 images to train on, the one in row 17 unreadable, and 10 for validation."""
    from PIL import Image

    for split, count in (("train", 40), ("validation", 10)):
        (tmp_path / "images" / split).mkdir(parents=True)
        for index in range(count):
            picture = np.random.default_rng(index).integers(0, 256, (6, 9, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "images" / split / f"{index:03d}.png")
    (tmp_path / "images" / "train" / "017.png").write_bytes(b"not an image")
    return tmp_path / "images"


@pytest.fixture
def stream(pictures, tmp_path) -> Path:
    """The same as parquet files, which are streamed."""
    import datasets

    for split in ("train", "validation"):
        files = sorted((pictures / split).iterdir())
        rows = {"image": [{"bytes": file.read_bytes(), "path": file.name} for file in files]}
        features = datasets.Features({"image": datasets.Image()})
        (tmp_path / "stream").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "stream" / f"{split}.parquet")
    return tmp_path / "stream"


def test_unreadable_images_of_a_stream(stream, tmp_path):
    """Found in the middle of the loop: said without a trace, with the row."""
    flags = ["--dataset", stream, "--streaming", "--batch_size", "8", "--max_streamed_images", "8"]
    with pytest.raises(TrainingError, match="(?s)row .* of the stream .*on_bad_image"):
        train("vqvae", tmp_path / "raise", *flags)


def test_steps_without_unreadable_images_are_means_over_the_others(stream, tmp_path, monkeypatch):
    steps, original = {}, TrainingRun.record

    def record(self, output, batch):
        steps.setdefault(self.step, []).append((len(batch), batch.weight))
        original(self, output, batch)

    monkeypatch.setattr(TrainingRun, "record", record)
    flags = ["--dataset", stream, "--streaming", "--batch_size", "8", "--gradient_accumulation_steps", "2"]
    folder = train("vqvae", tmp_path / "run", *flags, "--on_bad_image", "skip", "--max_steps", "5")
    rows = [sum(count for count, _ in batches) for batches in steps.values()]
    assert sorted(rows) == [15, 15, 16, 16, 16]  # two epochs of 39 images
    for batches, total in zip(steps.values(), rows, strict=True):
        assert [weight for _, weight in batches] == pytest.approx([count / total for count, _ in batches])
    record = json.loads((folder / "run.json").read_text())
    assert record["unreadable images skipped in training steps"] == 2
    assert record["settings"]["training images"] == 39 and record["settings"]["unreadable images left out"] == 1


def test_training_goes_on_from_other_weights(finished, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    flags = [*QUICK, "--model_name_or_path", str(finished["vae"] / "final"), "--max_steps", "1", "--eval_steps", "1"]
    changed = ["--learning_rate", "1e-9", "--num_posterior_samples", "3"]
    script("vae").main([*flags, "--output_dir", str(tmp_path), *changed])
    for name, tensor in weights(finished["vae"]).items():
        torch.testing.assert_close(weights(tmp_path)[name], tensor, rtol=0, atol=1e-6)
    config = json.loads((tmp_path / "final" / "config.json").read_text())
    assert config["num_posterior_samples"] == 3 and config["beta"] == 1.0  # what was given, and what was there
    arguments = parse_arguments(
        "hfae_vae", "", [*flags, "--latent_size", "5", "--output_dir", str(tmp_path / "misfit")]
    )
    with pytest.raises(TrainingError, match="do not fit the model flags given"):
        ImageTrainingRun(arguments)


@pytest.fixture
def factors(tmp_path) -> Path:
    """A saved dataset: digits with a factor, and one more in the validation split."""
    import datasets

    from hf_autoencoders.data import load_corpus

    splits = {name: split.select(range(80)) for name, split in load_corpus("digits").items() if name != "test"}
    splits = {name: split.add_column("ink", [row % 5 for row in range(80)]) for name, split in splits.items()}
    splits["validation"] = splits["validation"].add_column("even", [row % 2 == 0 for row in range(80)])
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "factors")
    return tmp_path / "factors"


def test_a_run_has_the_factors_of_its_corpus(factors, tmp_path):
    def run(*flags: str) -> ImageTrainingRun:
        AcceleratorState._reset_state(reset_partial_state=True)
        flags = [
            *TINY["vqvae"],
            *QUICK,
            "--max_steps",
            "1",
            "--dataset",
            str(factors),
            "--overwrite_output_dir",
            *flags,
        ]
        return ImageTrainingRun(parse_arguments("hfae_vqvae", "", [*flags, "--output_dir", str(tmp_path / "run")]))

    guessed = run()
    assert list(guessed.train.extra) == ["label", "ink"]
    assert list(guessed.validation.extra) == ["label", "ink", "even"]
    assert guessed.train.extra["ink"].tolist() == [row % 5 for row in range(80)]
    assert (guessed.train.extra["label"] == guessed.train.labels).all() and guessed.train.label_names
    named = run("--factor_columns", "ink", "--label_column", "none")
    assert list(named.train.extra) == list(named.validation.extra) == ["ink"] and named.train.labels is None
    assert run("--factor_columns", "none").validation.extra == {}
    assert run("--streaming").validation.extra == {}
    with pytest.raises(TrainingError, match="no column 'even' for the factors"):
        run("--factor_columns", "ink", "even")


def test_unreadable_images(pictures, tmp_path):
    flags = ["--dataset", pictures, "--cache_dir", tmp_path / "cache", "--batch_size", "8"]
    with pytest.raises(TrainingError, match="(?s)row 17.*on_bad_image"):
        train("vqvae", tmp_path / "raise", *flags)
    folder = train("vqvae", tmp_path / "skip", *flags, "--on_bad_image", "skip")
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert settings["training images"] == 39 and settings["unreadable images left out"] == 1
    assert settings["image_size"] == [6, 9] and settings["num_channels"] == 3
