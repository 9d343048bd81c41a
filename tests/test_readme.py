"""The README is run: its Python blocks in order, as one session; its commands against the flags that really exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from hf_autoencoders.data.speech import write_audio
from hf_autoencoders.publishing import save_for_hub

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Every command line in the shell blocks, as words, without what precedes the program's name."""
    lines = []
    for text in TEXTS.values():
        for block in blocks(text, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words:
                    lines.append(words)
    return lines


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory, script_env):
    """A folder in which `runs/demo` is what `make demo` leaves there, after a few steps of training."""
    folder = tmp_path_factory.mktemp("readme")
    train = [sys.executable, str(ROOT / "training/train_vqvae.py"), "--output_dir", "runs/demo", "--use_cpu", "true"]
    train += ["--recipe", str(ROOT / "training/recipes/vqvae_digits.yaml"), "--max_steps", "3", "--num_pictures", "0"]
    run = subprocess.run(train, cwd=folder, env=script_env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="session")
def converter_run(demo_run):
    """The same folder, in which `runs/demo-speech` has what `make demo-speech` leaves there, untrained."""
    model = tiny.model("voice_conversion-none", num_mel_bins=80)
    extractor = tiny.feature_extractor(model.config)
    folder = save_for_hub(model, demo_run / "runs/demo-speech/voice_conversion/final", processor=extractor)
    for name, rate in (("source", 8000), ("target", 16000)):
        waveform = torch.linspace(0, 500, 6000).sin() / 2
        write_audio(folder / f"example-1-{name}.wav", waveform, rate)
    return demo_run


@pytest.fixture(scope="session")
def summarizer_run(converter_run):
    """The same folder, in which the end of `runs/demo-text` is what `make demo-text` leaves there, but untrained."""
    demo_run, tokenizer = converter_run, tiny.tokenizer()
    model = tiny.model("seq2seq2seq-pointer", max_summary_tokens=64, max_source_tokens=64)
    model.set_word_starts(tokenizer)
    save_for_hub(model, demo_run / "runs/demo-text/3_adversarial/final", processor=tokenizer)
    return demo_run


def test_python_blocks_run(summarizer_run, monkeypatch):
    monkeypatch.chdir(summarizer_run)
    session = {"__name__": "readme"}
    for number, block in enumerate(blocks(TEXTS["README.md"], "python"), start=1):
        exec(compile(block, f"README.md, Python block {number}", "exec"), session)
    # what the comments beside the code say
    assert session["inputs"].pixel_values.shape == (1, 1, 8, 8)
    assert session["codes"].shape == (1, 1, 4, 4)
    assert session["image"].size == (8, 8)
    assert session["latents"].shape == (2, 16)
    assert session["images"].shape == (2, 3, 28, 20)
    assert session["samples"].shape == (4, 3, 28, 20)
    assert session["drawn"].shape == (4, 1, 8, 8) and [p.size for p in session["pictures"]] == [(8, 8)] * 4
    assert len(session["files"]) == 2 and session["restored"][1].shape == (3, 70, 45)
    assert session["same"][0].shape == (1, 8, 8)
    assert len(session["features"][0]) == 8
    assert session["clusters"].shape == (2,) and session["prototypes"].shape == (10, 1, 28, 28)
    assert session["binary"].codes.shape == (2, 32) and session["difference"].shape == (2, 1, 28, 28)
    assert session["traversal"].shape == (7, 1, 28, 28)
    assert session["found"].maps.shape == (1, 8, 8) and session["answer"]["heat_map"].size == (8, 8)
    assert session["content"].shape[0] == session["voice"].shape[0] == 1
    assert session["converted"].shape == session["source"].shape == (1, 61, 80) != session["target"].shape
    assert Path("converted.wav").stat().st_size > 2 * 5900
    (summary,), end = session["summary_ids"], session["summarizer"].config.eos_token_id
    assert end in summary, "cut off before its last word: the tiny model of the fixture needs more tokens"
    assert len(session["tokenizer"].decode(summary, skip_special_tokens=True).split()) == 6
    assert session["restored_ids"].shape[0] == 1 < session["restored_ids"].shape[1]


def test_demo_draws_its_picture(demo_run, tmp_path, script_env):
    picture = tmp_path / "demo.png"
    demo = [sys.executable, str(ROOT / "training/demo.py"), "runs/demo/final", "--picture", str(picture)]
    run = subprocess.run(demo, cwd=demo_run, env=script_env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "PSNR" in run.stdout and picture.stat().st_size > 10_000


@pytest.fixture(scope="session")
def help_text(script_env):
    """What a program of the repository says to `--help`."""
    texts = {}

    def ask(*program: str) -> str:
        if program not in texts:
            command = [sys.executable, *program, "--help"]
            run = subprocess.run(command, cwd=ROOT, env=script_env, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
            texts[program] = run.stdout
        return texts[program]

    return ask


def test_flags_in_commands_exist(help_text):
    checked = 0
    for words in commands():
        if words[:2] == ["accelerate", "launch"]:
            place = next(index for index, word in enumerate(words) if word.endswith(".py"))
            program, rest = (words[place],), words[place + 1 :]
            launcher_flags = [word for word in words[2:place] if word.startswith("--")]
            assert set(launcher_flags) <= {"--multi_gpu", "--num_processes", "--num_machines", "--mixed_precision"}
            assert (ROOT / words[place]).is_file(), words[place]
        elif words[0] == "python" and words[1].endswith(".py"):
            program, rest = (words[1],), words[2:]
        elif words[0] == "hf-autoencoders":
            verb = () if words[1].startswith("-") else (words[1],)
            program, rest = ("-m", "hf_autoencoders.cli", *verb), words[1 + len(verb) :]
        else:
            continue
        for word in rest:
            if word.startswith("--") and word != "--help":
                assert re.search(rf"{re.escape(word.split('=')[0])}\b", help_text(*program)), (
                    f"{shlex.join(words)}: {word}"
                )
            if word.startswith(("training/", "model_cards/")):
                assert (ROOT / word).exists(), f"{shlex.join(words)}: {word}"
        help_text(*program)
        checked += 1
    assert checked >= 5
