"""Runs on speech: log-mels and their statistics, disguised voices, exact resume, any number of processes, what is
refused. The voices are made here of harmonics and resonances, in a moment.

`tests/test_training_run.py` has what all runs share.
"""

import importlib
import io
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel

from hf_autoencoders.training_arguments import parse_arguments
from hf_autoencoders.training_run import TrainingError, TrainingRun
from hf_autoencoders.training_speech import SpeechTrainingRun

ROOT = Path(__file__).resolve().parents[1]
RATE = 4000
MODEL = "--num_mel_bins 16 --hidden_size 8 --num_encoder_blocks 1 --num_decoder_blocks 1 --num_speaker_blocks 1".split()
MODEL += "--speaker_size 4 --latent_size 4 --codebook_size 8".split()
QUICK = "--use_cpu --disable_progress_bar --no_final_evaluation --num_examples 0 --max_frames 24".split()
STEPS = "--batch_size 8 --max_steps 7 --logging_steps 2 --eval_steps 4 --save_steps 2 --eval_batch_size 5".split()
OBJECTIVES = "--speaker_adversarial_weight 0.1 --conversion_weight 0.1 --content_consistency_weight 0.1".split()
SMOOTH = ["--adam_epsilon", "0.01"]  # AdamW makes a large step of a gradient that is 0 but for rounding
FLAGS = {  # of one run of each script that does all it can
    "voice_conversion": [
        *OBJECTIVES,
        "--classifier_first",
        "--content_bottleneck",
        "kl",
        "--virtual_speaker_shift",
        "0.1",
    ],
    "speech_vqvae": "--average_decay 0.9 --num_codebooks 2 --time_jitter 0.3 --codebook_restarts 0.3 0.6".split(),
}


def voice(speaker: int, word: int, seconds: float, seed: int) -> np.ndarray:
    """Harmonics of the speaker's pitch under two resonances that move as the word says, and a little noise."""
    rng = np.random.default_rng([speaker, word, seed])
    time = np.arange(int(RATE * seconds)) / RATE
    pitch = (90 + 35 * speaker) * (1 + 0.03 * rng.standard_normal())
    resonance = 400 + 120 * word + 300 * np.sin(np.pi * time / seconds + word) + 40 * speaker
    sound = np.zeros_like(time)
    for harmonic in range(1, int(RATE / 2 / pitch)):
        gain = np.exp(-(((harmonic * pitch - resonance) / 250) ** 2)) + 0.3 / harmonic
        sound += gain * np.sin(2 * np.pi * harmonic * pitch * time + harmonic)
    return (0.2 * sound / np.abs(sound).max() + 0.002 * rng.standard_normal(len(time))).astype(np.float32)


def stored(waveform: np.ndarray, rate: int = RATE) -> dict:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format="WAV", subtype="FLOAT")
    return {"bytes": file.getvalue(), "path": None}


def write_corpus(folder: Path, speakers: int = 3, clips: int = 12, column: bool = True, bad: bool = False) -> Path:
    folder.mkdir(parents=True)
    for split, count in (("train", clips), ("validation", 4)):
        rows = {"audio": [], "speaker": [], "label": []}
        for speaker in range(speakers):
            for index in range(count):
                seconds = 0.3 + 0.03 * (index % 5)
                rows["audio"].append(stored(voice(speaker, index % 2, seconds, index + 100 * (split == "train"))))
                rows["speaker"].append(f"speaker{speaker}")
                rows["label"].append(index % 2)
        if bad and split == "train":
            rows["audio"][1] = stored(np.full(800, np.nan, dtype=np.float32))
        if not column:
            del rows["speaker"]
        string = datasets.Value("string")
        features = {"audio": {"bytes": datasets.Value("binary"), "path": string}, "label": datasets.ClassLabel(2)}
        features |= {"speaker": string} if column else {}
        data = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        data.to_parquet(folder / f"{split}-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Parquet files of three made-up voices."""
    return write_corpus(tmp_path_factory.mktemp("voices") / "corpus")


def script(variant: str):
    if str(ROOT / "training") not in sys.path:
        sys.path.insert(0, str(ROOT / "training"))
    return importlib.import_module(f"train_{variant}")


def train(variant: str, corpus: Path, output_dir, *flags) -> Path:
    """Run the script's `main` in this process; `flags` come last, so they override."""
    AcceleratorState._reset_state(reset_partial_state=True)
    own = [] if "--model_name_or_path" in map(str, flags) else MODEL
    argv = ["--dataset", str(corpus), *own, *QUICK, *STEPS, "--output_dir", str(output_dir), *map(str, flags)]
    script(variant).main(argv)
    return Path(output_dir)


def start(corpus: Path, output_dir, *flags, variant: str = "voice_conversion") -> SpeechTrainingRun:
    """A run that has not made a step."""
    AcceleratorState._reset_state(reset_partial_state=True)
    argv = ["--dataset", str(corpus), *MODEL, *QUICK, *STEPS, "--output_dir", str(output_dir), *map(str, flags)]
    return SpeechTrainingRun(parse_arguments(f"hfae_{variant}", "", argv))


def metrics(folder: Path, split: str | None = None) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("clips_per_second", None)
    return [line for line in lines if split in (None, line["split"])]


def weights(folder: Path, name: str = "final") -> dict[str, torch.Tensor]:
    return load_file(folder / name / "model.safetensors")


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def assert_close(first: Path, second: Path) -> None:
    """The same weights within rounding."""
    for name, tensor in weights(first).items():
        if not name.startswith("training_steps"):
            torch.testing.assert_close(weights(second)[name], tensor, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> dict[str, Path]:
    """One run of each script that nobody disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    return {variant: train(variant, corpus, folder / variant, *flags) for variant, flags in FLAGS.items()}


# ------------------------------------------------------------------------------------------------------- what it leaves


@pytest.mark.parametrize("variant", FLAGS)
def test_a_run_leaves_everything(variant, corpus, finished):
    folder = finished[variant]
    lines = metrics(folder)
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 6, 7]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [4, 7]
    assert all({"loss", "reconstruction_loss", "epoch"} <= line.keys() for line in lines)
    expected = {"voice_conversion": "kl_loss", "speech_vqvae": "commitment_loss"}[variant]
    assert all(line[expected] > 0 for line in lines)
    if variant == "speech_vqvae":
        assert 0 < lines[-1]["code_usage"] <= 1 and 1 <= lines[-1]["code_perplexity"] <= 8
    model = AutoModel.from_pretrained(folder / "final")
    extractor = AutoFeatureExtractor.from_pretrained(folder / "final")
    assert model.config.sampling_rate == extractor.sampling_rate == RATE and model.config.num_speakers == 3
    assert model.config.hop_length == extractor.hop_length == 50
    inputs = extractor(voice(0, 0, 0.4, 0), sampling_rate=RATE, return_tensors="pt")
    assert model.convert(inputs.input_features, inputs.input_features).shape == inputs.input_features.shape
    recipe = yaml.safe_load((folder / "final" / "recipe.yaml").read_text())
    assert recipe["hidden_size"] == 8 and "output_dir" not in recipe and recipe["dataset"] == "corpus"


def test_statistics_are_those_of_the_training_clips_and_go_with_the_model(corpus, finished, tmp_path):
    """From a model, they are its own, whatever the new corpus sounds like."""
    first = AutoFeatureExtractor.from_pretrained(finished["voice_conversion"] / "final")
    clips = datasets.load_dataset("parquet", data_files=str(corpus / "train-00000.parquet"), split="train")
    mels = []
    for row in clips.cast_column("audio", datasets.Audio(decode=False))["audio"]:
        waveform, _ = soundfile.read(io.BytesIO(row["bytes"]), dtype="float32")
        mels.append(first.log_mel(torch.from_numpy(waveform)))
    frames = torch.cat(mels).double()
    np.testing.assert_allclose(first.mean, frames.mean(0), rtol=1e-4)
    np.testing.assert_allclose(first.std, frames.std(0, unbiased=False).clamp_min(0.1), rtol=1e-3)

    other = write_corpus(tmp_path / "other", speakers=2)
    flags = ["--model_name_or_path", finished["voice_conversion"] / "final"]
    second = train("voice_conversion", other, tmp_path / "run", *flags)
    again = AutoFeatureExtractor.from_pretrained(second / "final")
    assert again.mean == first.mean and again.std == first.std
    model = AutoModel.from_pretrained(second / "final")
    assert model.config.num_speakers == 2  # and the classifiers are new, the rest goes on
    with pytest.raises(TrainingError, match="--fmin has no effect: the model of .* has its own mel settings"):
        train("voice_conversion", other, tmp_path / "no", *flags, "--fmin", "50")


def test_a_corpus_of_another_rate_is_resampled(corpus, tmp_path):
    run = start(corpus, tmp_path, "--sampling_rate", "2000", "--num_mel_bins", "8")
    assert run.processor.sampling_rate == run.config.sampling_rate == 2000 and run.config.hop_length == 25
    assert run.train.waveform(0).shape == (600,) and run.train.features.shape[1] == 8


def test_pictures_sounds_and_speakers_held_out(corpus, tmp_path):
    flags = ["--num_examples", "3", "--held_out_speakers", "speaker1"]
    folder = train("voice_conversion", corpus, tmp_path / "run", *flags)
    names = {path.name for path in (folder / "examples").iterdir()}
    assert {"step-00000004.png", "step-00000007.png", "step-00000007-2-converted.wav"} <= names
    assert (folder / "final" / "conversions.png").stat().st_size > 1000
    waveform, rate = soundfile.read(folder / "final" / "example-1-converted.wav")
    assert rate == RATE and np.isfinite(waveform).all() and np.abs(waveform).max() > 0.001
    run = start(corpus, tmp_path / "other", "--held_out_speakers", "1")
    assert len(run.train.speaker_names) == 2 and len(run.unseen.speaker_names) == 1
    assert not set(run.train.speaker_names) & set(run.unseen.speaker_names)


def test_classifiers_have_a_learning_rate_of_their_own(corpus, tmp_path):
    """It stays where it is, and every parameter is in one group."""
    flags = [
        *OBJECTIVES,
        "--classifier_learning_rate",
        "0.02",
        "--weight_decay",
        "0.1",
        "--lr_scheduler_type",
        "linear",
    ]
    run = start(corpus, tmp_path, *flags, "--warmup_ratio", "0.5", "--max_steps", "4")
    names = {parameter: name for name, parameter in run.network.named_parameters()}
    groups = [[names[p] for p in group["params"]] for group in run.optimizer.param_groups]
    assert sorted(name for group in groups for name in group) == sorted(names.values())
    assert {name.partition(".")[0] for name in groups[-1]} == {"content_classifier", "voice_classifier"}
    assert run.optimizer.param_groups[-1]["betas"][0] == 0.5
    rates = []
    for batches in run.steps():
        for batch in batches:
            run.backward(run.model(**batch.inputs).loss, batch)
        rates.append([group["lr"] for group in run.optimizer.param_groups])
        run.clip_gradients()
        run.optimizer.step()
        run.schedule.step()
        run.optimizer.zero_grad()
    assert [rate[0] for rate in rates] == pytest.approx([0, 0.0005, 0.001, 0.0005])
    assert [rate[-1] for rate in rates] == [0.02] * 4


def test_the_classifier_learns_first(corpus, tmp_path):
    """Its step moves nothing else, makes it better on this batch, and is the only one it gets."""
    flags = ["--speaker_adversarial_weight", "1", "--classifier_first", "--classifier_learning_rate", "0.02"]
    run = start(corpus, tmp_path, *flags, "--warmup_ratio", "0", "--num_downsamplings", "0")
    batches = next(run.steps())

    def state() -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in run.network.named_parameters()}

    def moved(before: dict[str, torch.Tensor]) -> set[str]:
        return {name.partition(".")[0] for name, value in state().items() if not torch.equal(value, before[name])}

    before, loss = state(), run.model(**batches[0].inputs).speaker_adversarial_loss
    run.teach_classifier(batches)
    assert moved(before) == {"content_classifier"}
    output, middle = run.model(**batches[0].inputs), state()
    assert output.speaker_adversarial_loss < loss
    run.backward(output.loss, batches[0])
    run.clip_gradients()
    run.optimizer.step()
    assert moved(middle) == {"content_encoder", "speaker_encoder", "decoder"}


# -------------------------------------------------------------------------------------------------------------- batches


def test_the_same_seed_draws_the_same_batches(corpus, tmp_path):
    """Cut, other clip, disguise and noise: the same again, others in other steps, and none at evaluation."""
    flags = [*FLAGS["voice_conversion"], "--average_decay", "0"]

    def batches(seed: int, name: str) -> list[dict[str, torch.Tensor]]:
        run = start(corpus, tmp_path / name, *flags, "--seed", seed)
        steps = run.steps()
        return [next(iter(next(steps))).inputs for _ in range(6)] + [next(run.validation_batches()).inputs]

    one, same, other = batches(0, "one"), batches(0, "same"), batches(1, "other")
    names = {"input_features", "attention_mask", "speaker_features", "speaker_attention_mask", "speaker_ids"}
    assert one[0].keys() == names | {"content_features", "epsilon"} and one[-1].keys() == names
    for first, second, third in zip(one[:-1], same, other, strict=False):
        assert_equal(first, second)
        assert first["content_features"].shape == first["input_features"].shape
        assert not torch.equal(first["content_features"], first["input_features"])
        assert first["input_features"].shape[1] <= 24 and (first["attention_mask"].sum(1) > 8).all()
        padding = first["attention_mask"] == 0
        assert (first["content_features"][padding] == 0).all() and (first["input_features"][padding] == 0).all()
        shape = third["input_features"].shape
        assert shape != first["input_features"].shape or not torch.equal(third["epsilon"], first["epsilon"])


def test_undisguised_batches_are_the_clips(corpus, tmp_path):
    run = start(corpus, tmp_path, "--formant_shift", "0", "--equalizer", "0", "--max_frames", "0", "--no_other_clip")
    batch = next(iter(next(run.steps())))
    assert batch.inputs.keys() == {"input_features", "attention_mask"}
    clips = [torch.from_numpy(run.train.clip(index)) for index in range(len(run.train))]
    for row, mask in zip(batch.inputs["input_features"], batch.inputs["attention_mask"], strict=True):
        assert any(len(clip) == mask.sum() and torch.equal(clip, row[mask.bool()]) for clip in clips)


def test_batches_count_by_their_frames(corpus, tmp_path):
    """With accumulation, the gradient is that of the mean over all frames of the step."""
    run = start(corpus, tmp_path, "--max_frames", "0", "--batch_size", "4", "--gradient_accumulation_steps", "3")
    batches = list(next(run.steps()))
    frames = [int(batch.inputs["attention_mask"].sum()) for batch in batches]
    assert len(set(frames)) > 1
    assert [batch.weight for batch in batches] == pytest.approx([count / sum(frames) for count in frames])


def test_accumulated_batches_equal_one_large_batch(corpus, tmp_path):
    flags = "--max_frames 0 --no_other_clip --formant_shift 0 --equalizer 0 --max_steps 3 --eval_steps 0".split()
    flags += SMOOTH  # a step is an epoch: all clips in it
    large = train("voice_conversion", corpus, tmp_path / "large", *flags, "--batch_size", "36")
    flags += ["--gradient_accumulation_steps", "4", "--batch_size", "9"]
    small = train("voice_conversion", corpus, tmp_path / "small", *flags)
    assert_close(large, small)


# --------------------------------------------------------------------------------------- exact resume, other precisions


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


@pytest.mark.parametrize("variant", FLAGS)
def test_resume_is_exact(variant, corpus, finished, tmp_path, monkeypatch):
    original = TrainingRun.update_average

    def deadly(self):
        if self.step == 5:
            raise Killed
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "update_average", deadly)
        with pytest.raises(Killed):
            train(variant, corpus, tmp_path, *FLAGS[variant])
    torch.manual_seed(12345)  # whatever the new process starts with
    train(variant, corpus, tmp_path, *FLAGS[variant], "--resume_from_checkpoint", "latest")
    assert_equal(weights(tmp_path), weights(finished[variant]))
    assert metrics(tmp_path) == metrics(finished[variant])


@pytest.mark.parametrize("variant", FLAGS)
def test_bf16(variant, corpus, finished, tmp_path):
    folder = train(variant, corpus, tmp_path, *FLAGS[variant], "--mixed_precision", "bf16")
    assert weights(folder).keys() == weights(finished[variant]).keys()
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())
    first, other = metrics(finished[variant])[0], metrics(folder)[0]
    assert other["reconstruction_loss"] == pytest.approx(first["reconstruction_loss"], rel=0.05)


@pytest.mark.parametrize("variant", FLAGS)
def test_two_processes_give_the_model_of_one(variant, corpus, tmp_path, script_env):
    """Within rounding, clips of different lengths included; all objectives but those on conversions, which pair the
    clips of one process."""
    flags = "--max_frames 0 --virtual_speaker_shift 0.1 --max_steps 4 --speaker_adversarial_weight 0.1".split()
    flags += ["--classifier_first"] if variant == "voice_conversion" else ["--time_jitter", "0.3"]
    flags += ["--num_downsamplings", "0", *SMOOTH]  # else a clip of odd length has half a frame of content more
    flags += ["--content_bottleneck", "kl"] if variant == "voice_conversion" else []
    one = train(variant, corpus, tmp_path / "one", *flags)
    argv = ["--dataset", corpus, *MODEL, *QUICK, *STEPS, "--output_dir", tmp_path / "two", *flags]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launch, "--main_process_port", "0", ROOT / "training" / f"train_{variant}.py", *argv]
    environment = {**script_env, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [str(word) for word in command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert_close(one, tmp_path / "two")
    for two, single in zip(metrics(tmp_path / "two"), metrics(one), strict=True):
        assert two.pop("split") == single.pop("split") and two == pytest.approx(single, rel=2e-3)


def test_it_learns(corpus, tmp_path):
    """The reconstruction comes closer, and further than the mean of a clip is."""
    flags = "--max_steps 120 --batch_size 16 --learning_rate 0.01 --hidden_size 16 --formant_shift 0 --equalizer 0"
    folder = train("voice_conversion", corpus, tmp_path, *flags.split(), "--logging_steps", "10", "--eval_steps", "60")
    train_lines, validation = metrics(folder, "train"), metrics(folder, "validation")
    assert train_lines[-1]["reconstruction_loss"] < 0.6 * train_lines[0]["reconstruction_loss"]
    assert validation[-1]["reconstruction_loss"] < 0.5  # 0.8 is the mean absolute value of normal features


# ------------------------------------------------------------------------------------------------------ what is refused


def test_objectives_on_speakers_need_speakers(tmp_path):
    alone = write_corpus(tmp_path / "alone", speakers=1)
    for flag in ("--speaker_adversarial_weight", "--conversion_weight"):
        with pytest.raises(TrainingError, match=f"{flag} needs at least 2 speakers .* has 1"):
            train("voice_conversion", alone, tmp_path / "run", flag, "0.1")
    folder = train("voice_conversion", alone, tmp_path / "run", "--max_steps", "2", "--num_examples", "2")
    assert (folder / "final" / "conversions.png").exists()


def test_a_corpus_without_speakers_is_refused(corpus, tmp_path):
    nobody = write_corpus(tmp_path / "nobody", column=False)
    with pytest.raises(TrainingError, match="no column that names the speaker.* audio.* label"):
        train("voice_conversion", nobody, tmp_path / "run")
    with pytest.raises(TrainingError, match="no column 'who' for the speaker"):
        train("voice_conversion", corpus, tmp_path / "run", "--speaker_column", "who")


def test_recordings_that_cannot_be_read(tmp_path):
    broken = write_corpus(tmp_path / "broken", bad=True)
    with pytest.raises(TrainingError, match="NaN"):
        train("voice_conversion", broken, tmp_path / "run")
    folder = train("voice_conversion", broken, tmp_path / "run", "--on_bad_audio", "skip", "--max_steps", "2")
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert settings["unreadable clips left out"] == 1 and settings["training clips"] == 35


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "2000"], "lower batch_size"),
        (["--held_out_speakers", "nobody"], "nobody"),
        (["--n_fft", "64"], "n_fft"),
        (["--num_mel_bins", "300"], "mel bins"),
    ],
)
def test_runs_that_cannot_be(flags, message, corpus, tmp_path):
    with pytest.raises(TrainingError, match=message):
        train("voice_conversion", corpus, tmp_path, *flags)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--formant_shift", "1"], "--formant_shift: expected a share from 0"),
        (["--equalizer", "-1"], "--equalizer: expected at least 0"),
        (["--max_frames", "-1"], "--max_frames: expected at least 0"),
        (["--num_pairs", "0"], "--num_pairs: expected at least 1"),
        (["--num_speakers", "3"], "unknown flag --num_speakers"),
        (["--num_mel_bins", "0"], "expected at least 1, got 0"),
    ],
)
def test_wrong_command_lines_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        parse_arguments("hfae_voice_conversion", "", argv)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_other_arguments_are_refused_on_resume(corpus, finished):
    flags = [*FLAGS["speech_vqvae"], "--resume_from_checkpoint", "latest", "--formant_shift", "0.3"]
    with pytest.raises(TrainingError, match="formant_shift was 0.15, is 0.3"):
        train("speech_vqvae", corpus, finished["speech_vqvae"], *flags)
