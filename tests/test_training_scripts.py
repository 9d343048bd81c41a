"""The training scripts as users run them: `accelerate launch`, kill -9, resume, two processes, publishing.

Each child process costs seconds to start, so there are few; `tests/test_training_run.py` has the many cases.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hub_server import HubServer, User
from safetensors.torch import load_file

from hf_autoencoders import ImageCodecModel

TRAINING = Path(__file__).resolve().parents[1] / "training"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
TWO = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]  # port 0: any that is free
TINY = "--hidden_sizes 8 --codebook_size 16 --embedding_dim 4 --disable_progress_bar --no_final_evaluation".split()
SHORT = [*TINY, *"--batch_size 48 --max_steps 24 --logging_steps 2 --eval_steps 8 --save_steps 5".split()]

# Runs the script named first, and kills this process with signal 9: in its n-th optimizer step, or in the middle of
# writing its n-th checkpoint. `RANK` is set where there are several processes.
KILLER = """
import os, runpy, signal, sys
from accelerate import Accelerator
from hf_autoencoders.training_run import TrainingRun

where, count, rank = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1)
owner, name = {"step": (TrainingRun, "update_average"), "checkpoint": (Accelerator, "save_state")}[where]
original, calls = getattr(owner, name), []

def deadly(self, *args, **kwargs):
    calls.append(1)
    result = original(self, *args, **kwargs)
    if len(calls) == count and os.environ.get("RANK", "0") == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, deadly)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(command: list, env: dict, cwd: Path, expect: int | None = 0) -> str:
    """Run a command to its end and return what it printed; `expect=None` for one that must fail."""
    done = subprocess.run(
        [str(word) for word in command],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert (done.returncode != 0) if expect is None else (done.returncode == expect), done.stdout[-8000:]
    return done.stdout


def script(variant: str) -> Path:
    return TRAINING / f"train_{variant}.py"


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def assert_same_run(first: Path, second: Path) -> None:
    """Bit-identical weights, and the same log without a line twice or missing."""
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys() and not [name for name in one if not torch.equal(one[name], two[name])]
    assert metrics(first) == metrics(second)
    assert not list(second.rglob(".unfinished-*"))


@pytest.fixture
def killer(tmp_path) -> Path:
    (tmp_path / "killer.py").write_text(KILLER)
    return tmp_path / "killer.py"


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    """A run on one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("one")
    env = {**os.environ, "PYTHONPATH": str(TRAINING.parent), "ACCELERATE_USE_CPU": "true"}
    run([sys.executable, script("vqvae"), *SHORT, "--output_dir", "run"], env, folder)
    return folder / "run"


def test_all_defaults(script_env, tmp_path):
    output = run([*LAUNCH, script("vqvae")], script_env, tmp_path)
    folder = tmp_path / "runs" / "vqvae-digits"
    assert "the finished model is in runs/vqvae-digits/final" in output and "validation loss" in output
    measured = json.loads((folder / "final" / "metrics.json").read_text())
    assert measured["command"] == "accelerate launch training/train_vqvae.py"
    assert measured["metrics"]["mse"] < 0.075  # the mean image has 0.074
    assert (folder / "final" / "reconstructions.png").exists() and (folder / "final" / "README.md").exists()


def test_recipe_and_publishing(script_env, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("hidden_sizes: [8]\nlatent_size: 4\nmax_steps: 4\ndisable_progress_bar: true\n")
    flags = ["--recipe", recipe, "--output_dir", "run", "--num_importance_samples", "2"]
    hub_flags = ["--push_to_hub", "--hub_model_id", "alice/digits", "--hub_private_repo"]
    with HubServer(tmp_path / "hub", [User("alice", "alice-token-0123456789")]) as hub:
        env = {**script_env, **hub.env("alice-token-0123456789", home=tmp_path / "home")}
        env |= {name: script_env[name] for name in ("PYTHONPATH", "ACCELERATE_USE_CPU")} | {"HF_HUB_OFFLINE": "0"}
        refused = [sys.executable, script("vae"), *flags, *hub_flags]
        output = run(refused, env | {"HF_TOKEN": "not-a-token"}, tmp_path, expect=1)
        assert "the Hub does not know the token" in output and not (tmp_path / "run").exists()
        output = run([*LAUNCH, script("vae"), *flags, *hub_flags], env, tmp_path)
        repo = next(repo for repo in hub.repos.values() if repo.id == "alice/digits")
        files = set(repo.tree("main"))
    assert "published as alice/digits" in output and "alice-token" not in output
    assert repo.private and {"README.md", "config.json", "model.safetensors", "modeling_vae.py", "recipe.yaml"} <= files
    assert not [name for name in files if "checkpoint" in name]


def test_speech_with_a_recipe(script_env, tmp_path):
    """Recordings in folders called after their speakers; the recipe of the demo, cut short."""
    rng = np.random.default_rng(0)
    for clip in range(12):
        place = tmp_path / "voices" / f"speaker{clip % 2}"
        place.mkdir(parents=True, exist_ok=True)
        soundfile.write(place / f"{clip}.wav", 0.1 * rng.standard_normal(2000), 8000)
    recipe = TRAINING / "recipes" / "speech_vqvae_espeak.yaml"
    flags = (
        "--dataset voices --max_steps 2 --eval_steps 2 --batch_size 4 --no_final_evaluation --num_examples 2".split()
    )
    flags += "--hidden_size 8 --num_mel_bins 16 --codebook_size 8 --no_final_evaluation".split()
    output = run([*LAUNCH, script("speech_vqvae"), "--recipe", recipe, *flags], script_env, tmp_path)
    assert "the finished model is in runs/speech_vqvae-voices/final" in output and "code_usage" in output
    names = {path.name for path in (tmp_path / "runs" / "speech_vqvae-voices" / "final").iterdir()}
    assert {"conversions.png", "example-1-converted.wav", "preprocessor_config.json"} <= names


def test_kill_and_resume(one_process, killer, script_env, tmp_path):
    """Killed from outside at some moment, then in the middle of writing a checkpoint, then left to end."""
    command = [sys.executable, script("vqvae"), *SHORT, "--output_dir", "run"]
    process = subprocess.Popen(
        [str(word) for word in command],
        env=script_env,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list((tmp_path / "run").glob("checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    resume = [*command[1:], "--resume_from_checkpoint", "latest"]
    run([sys.executable, killer, "checkpoint", 2, 0, *resume], script_env, tmp_path, expect=-signal.SIGKILL)
    assert list((tmp_path / "run" / "checkpoints").glob(".unfinished-step-*"))  # half of one lies there
    run([sys.executable, *resume], script_env, tmp_path)
    assert_same_run(one_process, tmp_path / "run")


CODEC = (
    "--hidden_sizes 8 8 --hyper_size 4 --crop_size 6 --random_flip --batch_size 8 --max_steps 12 --eval_steps 6".split()
)
CODEC += "--save_steps 5 --logging_steps 3 --disable_progress_bar --no_final_evaluation --num_pictures 0".split()


def test_image_codec_with_crops_is_killed_and_resumed(killer, script_env, tmp_path):
    """Crops, flips, lambdas and noise come back, and the finished model has tables."""
    command = [script("image_codec"), *CODEC, "--output_dir"]
    run([sys.executable, *command, "whole"], script_env, tmp_path)
    run([sys.executable, killer, "step", 8, 0, *command, "run"], script_env, tmp_path, expect=-signal.SIGKILL)
    run([sys.executable, *command, "run", "--resume_from_checkpoint", "latest"], script_env, tmp_path)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    codec = ImageCodecModel.from_pretrained(tmp_path / "run" / "final")
    assert codec.decompress(codec.compress(torch.rand(1, 1, 9, 5)))[0].shape == (1, 9, 5)


@pytest.mark.slow  # the mechanism is that of the others; it takes half a minute
def test_image_codec_on_two_processes(script_env, tmp_path):
    for launcher, folder in (([sys.executable], "one"), (TWO, "two")):
        run([*launcher, script("image_codec"), *CODEC, "--output_dir", folder], script_env, tmp_path)
    for name, tensor in weights(tmp_path / "one").items():
        if tensor.is_floating_point():
            torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, rtol=1e-3, atol=1e-4)


def test_two_processes(one_process, killer, script_env, tmp_path):
    """They give the model of one process within rounding; and when one is killed, a resume is exact."""
    run([*TWO, script("vqvae"), *SHORT, "--output_dir", "whole"], script_env, tmp_path)
    command = json.loads((tmp_path / "whole" / "final" / "run.json").read_text())["command"]
    assert command.startswith("accelerate launch --multi_gpu --num_processes 2 training/train_vqvae.py --hidden_sizes")
    for name, tensor in weights(one_process).items():
        torch.testing.assert_close(weights(tmp_path / "whole")[name], tensor, rtol=1e-3, atol=1e-5)
    for two, one in zip(metrics(tmp_path / "whole"), metrics(one_process), strict=True):
        assert two.pop("split") == one.pop("split") and two == pytest.approx(one, rel=1e-3)

    flags = [script("vqvae"), *SHORT, "--output_dir", "killed"]
    run([*TWO, killer, "step", 13, 1, *flags], script_env, tmp_path, expect=None)
    assert [path.name for path in sorted((tmp_path / "killed" / "checkpoints").glob("step-*"))][-1] == "step-00000010"
    run([*TWO, *flags, "--resume_from_checkpoint", "latest"], script_env, tmp_path)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
