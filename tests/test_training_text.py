"""Runs on texts: tasks, batches, the three stages of the seq2seq2seq script, exact resume, what is refused.

`tests/test_training_run.py` has what all runs share.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from hf_autoencoders.data import train_tokenizer
from hf_autoencoders.data.text import LengthBucketedBatches
from hf_autoencoders.training_run import TrainingError, TrainingRun
from hf_autoencoders.training_text import TextBatches, TextTasks, TextTrainingRun, mixture, pseudo_summaries

ROOT = Path(__file__).resolve().parents[1]
WORDS = "red blue green old new big small cat dog horse sees finds wants house tree river song very often today".split()
QUICK = "--use_cpu --disable_progress_bar --no_final_evaluation --num_scored 4 --num_examples 1 --num_words 3".split()
STEPS = "--batch_size 8 --max_steps 5 --logging_steps 2 --eval_steps 4 --save_steps 2 --eval_batch_size 4".split()
MODEL = "--d_model 16 --d_kv 4 --d_ff 16 --num_layers 1 --num_heads 2 --max_summary_tokens 8".split()
MODEL += "--max_source_tokens 16 --discriminator_hidden_size 8 --discriminator_num_layers 1".split()


def sentence(rng: np.random.Generator, least: int, most: int) -> str:
    return " ".join(rng.choice(WORDS, int(rng.integers(least, most))))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, Path]:
    """Parquet files of made-up sentences, and a tokenizer."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    texts, summaries = ([sentence(rng, *lengths) for _ in range(64)] for lengths in ((6, 14), (2, 5)))
    pairs = {"text": [sentence(rng, 6, 14) for _ in range(8)], "summary": [sentence(rng, 2, 5) for _ in range(8)]}
    for name, columns in (("texts", {"text": texts}), ("summaries", {"summary": summaries}), ("pairs", pairs)):
        datasets.Dataset.from_dict(columns).to_parquet(folder / f"{name}.parquet")
    tokenizer = train_tokenizer(texts + summaries, 318, num_sentinels=2)
    tokenizer.save_pretrained(folder / "tokenizer")
    return {name: folder / f"{name}.parquet" for name in ("texts", "summaries", "pairs")} | {
        "tokenizer": folder / "tokenizer"
    }


def script():
    if str(ROOT / "training") not in sys.path:
        sys.path.insert(0, str(ROOT / "training"))
    return importlib.import_module("train_seq2seq2seq")


def flags_of(corpus: dict[str, Path]) -> list[str]:
    flags = {"--texts": "texts", "--summaries": "summaries", "--validation": "pairs"}
    return [word for flag, name in flags.items() for word in (flag, str(corpus[name]))]


def train(corpus, output_dir, *flags) -> Path:
    """Run the script's `main` in this process; `flags` come last, so they override."""
    AcceleratorState._reset_state(reset_partial_state=True)
    script().main([*flags_of(corpus), *QUICK, *STEPS, "--output_dir", str(output_dir), *map(str, flags)])
    return Path(output_dir)


def metrics(folder: Path, split: str | None = None) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("texts_per_second", None)
    return [line for line in lines if split in (None, line["split"])]


def weights(folder: Path, name: str = "final") -> dict[str, torch.Tensor]:
    return load_file(folder / name / "model.safetensors")


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


STAGES = {
    "warm_start": ["--discriminator", "language_model"],
    "autoencode": ["--back_translation_share", "0.2"],
    "adversarial": ["--discriminator", "wgan_gp", "--discriminator_learning_rate", "0.01", "--average_decay", "0.9"],
}


@pytest.fixture(scope="module")
def stages(corpus, tmp_path_factory) -> dict[str, tuple[Path, list[str]]]:
    """One run of each stage that nobody disturbed, each from the one before; and its flags."""
    folder, begin = tmp_path_factory.mktemp("stages"), [*MODEL, "--tokenizer_name_or_path", str(corpus["tokenizer"])]
    runs = {}
    for stage, own in STAGES.items():
        flags = [*begin, "--stage", stage, *own]
        runs[stage] = train(corpus, folder / stage, *flags), flags
        begin = ["--model_name_or_path", str(folder / stage / "final")]
    return runs


# ------------------------------------------------------------------------------------------------------ tasks, batches


def test_tasks_make_pairs_of_the_two_pools():
    texts = ["one two three four five six seven eight", "alpha beta gamma delta epsilon zeta eta theta"]
    summaries = ["three five", "gamma eta zeta"]
    tasks, rng = TextTasks(texts, summaries, ["two six", "beta zeta"]), np.random.default_rng(0)
    tasks.find_similar(num_rows=1)
    for _ in range(20):
        text, span = tasks.span_pair(rng)
        assert text in texts and span in text
        carrier, summary = tasks.hidden_pair(rng, share_similar=1.0)
        assert summary in summaries and len(carrier.split()) >= 6
        assert tasks.similar_pair(rng) in list(zip(texts, summaries, strict=True))
        assert tasks.pseudo_pair(rng) in [(texts[0], "two six"), (texts[1], "beta zeta")]
        code, text = tasks.restored_pair(rng)
        assert set(code.split()) < set(text.split()) and text in texts
    assert {tasks.summary(rng) for _ in range(20)} == set(summaries)


def test_a_mixture_has_its_shares():
    rng = np.random.default_rng(0)
    task = mixture({(lambda rng: "a"): 3.0, (lambda rng: "b"): 0.0, (lambda rng: "c"): 1.0})
    drawn = [task(rng) for _ in range(2000)]
    assert drawn.count("b") == 0 and drawn.count("a") / len(drawn) == pytest.approx(0.75, abs=0.03)


def test_pseudo_summaries_have_lengths_of_summaries_and_words_of_texts():
    rng = np.random.default_rng(0)
    texts, summaries = [sentence(rng, 6, 14) for _ in range(50)], [sentence(rng, 2, 5) for _ in range(50)]
    made = pseudo_summaries(texts, summaries, max_words=3, seed=0)
    assert {len(summary.split()) for summary in made} == {2, 3}
    assert all(set(summary.split()) <= set(text.split()) for summary, text in zip(made, texts, strict=True))
    assert made == pseudo_summaries(texts, summaries, max_words=3, seed=0)


def test_batches_of_tasks_are_the_same_on_any_number_of_processes_and_after_a_resume():
    def batches(process_index=0, num_processes=1, epoch=1):
        rows = LengthBucketedBatches(
            [3] * 200,
            6,
            shuffle=True,
            seed=5,
            drop_last=True,
            process_index=process_index,
            num_processes=num_processes,
        )
        made = TextBatches(rows)
        made.add("summaries", lambda rng: "x" * int(rng.integers(1, 100)))
        made.add("pairs", lambda rng: ("y" * int(rng.integers(1, 100)), "z"))
        made.set_epoch(epoch)
        return made

    whole = list(batches().iterate())
    parts = [list(batches(index, 4).iterate()) for index in range(4)]
    for name in ("rows", "summaries", "pairs"):
        together = [[row for part in step for row in part[name]] for step in zip(*parts, strict=True)]
        assert together == [list(batch[name]) for batch in whole]
    for start in (1, 16, 20, 33):
        later = list(batches().iterate(start))
        assert [batch["summaries"] for batch in later] == [batch["summaries"] for batch in whole[start:]]
    other = list(batches(epoch=2).iterate())
    assert other[0]["summaries"] != whole[0]["summaries"]
    spread = np.mean([np.ptp([len(text) for text in batch["summaries"]]) for batch in whole])
    assert spread < 15  # of 1 to 99: batches are of near-equal length


def test_steps_are_means_over_tokens(corpus, stages, tmp_path, monkeypatch):
    """Accumulated batches count by their tokens, not alike."""
    seen, original = [], TextTrainingRun.record

    def record(self, terms, batch):
        seen.append((self.step, batch.num_tokens["pairs"], batch.shares["pairs"]))
        original(self, terms, batch)

    monkeypatch.setattr(TextTrainingRun, "record", record)
    train(corpus, tmp_path, *stages["warm_start"][1], "--gradient_accumulation_steps", "3", "--max_steps", "2")
    for step in (1, 2):
        counts = [count for number, count, _ in seen if number == step]
        assert [share for number, _, share in seen if number == step] == pytest.approx(
            [count / sum(counts) for count in counts]
        )
        assert len(set(counts)) > 1


# --------------------------------------------------------------------------------------------------------------- stages


def test_the_stages_leave_a_summarizer(stages):
    for stage, (folder, _) in stages.items():
        lines = metrics(folder)
        assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 5]
        evaluated = metrics(folder, "validation")[-1]
        assert {"rouge1", "loss", "distinct_rate", "copy_rate", "shuffled_reconstruction_accuracy"} <= evaluated.keys()
        own = {
            "warm_start": {"summarizer_loss", "reconstruction_loss", "language_model_loss"},
            "autoencode": {"prior_loss", "anchor_loss", "entropy"},
            "adversarial": {"critic_gap", "adversarial_loss", "discriminator_learning_rate"},
        }[stage]
        assert own <= lines[0].keys(), stage
        assert "reconstruction  " in (folder / "examples" / "step-00000004.txt").read_text()
        model = AutoModelForSeq2SeqLM.from_pretrained(folder / "final")
        tokenizer = AutoTokenizer.from_pretrained(folder / "final")
        inputs = tokenizer(["the big red dog sees the old house"], return_tensors="pt")
        summary = tokenizer.batch_decode(model.generate(**inputs, num_words=3), skip_special_tokens=True)[0]
        assert len(summary.split()) <= 3
        recipe = yaml.safe_load((folder / "final" / "recipe.yaml").read_text())
        assert recipe["stage"] == stage and recipe["texts"] == "texts.parquet"


def test_each_stage_moves_its_players(stages):
    warm, auto, last = (weights(folder) for folder, _ in stages.values())
    judge = [name for name in warm if name.startswith("discriminator.")]
    assert judge and all(torch.equal(warm[name], auto[name]) for name in judge)  # the language model is frozen
    for one, two in ((warm, auto), (auto, last)):
        for part in ("summarizer", "reconstructor"):
            moved = [not torch.equal(one[n], two[n]) for n in two if n.startswith(part) and "word_starts" not in n]
            assert np.mean(moved) > 0.8
    assert any(name.startswith("discriminator.blocks") for name in last)


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_exact(stage, corpus, stages, tmp_path, monkeypatch):
    reference, flags = stages[stage]
    original, calls = TrainingRun.update_average, []

    def deadly(self):
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "update_average", deadly)
        with pytest.raises(Killed):
            train(corpus, tmp_path, *flags)
    torch.manual_seed(12345)  # whatever the new process starts with
    train(corpus, tmp_path, *flags, "--resume_from_checkpoint", "latest")
    assert_equal(weights(tmp_path), weights(reference))
    assert_equal(weights(tmp_path, "best"), weights(reference, "best"))
    assert metrics(tmp_path) == metrics(reference)


def test_the_discriminator_warms_up_alone(corpus, stages, tmp_path):
    begin = stages["autoencode"][0] / "final"
    flags = ["--model_name_or_path", begin, "--stage", "adversarial", "--discriminator", "critic"]
    folder = train(corpus, tmp_path / "frozen", *flags, "--discriminator_warmup_steps", "9", "--anchor_weight", "0")
    before, after = weights(begin.parent), weights(folder)
    parts = [name for name in before if not name.startswith("discriminator.")]
    assert all(torch.equal(before[name], after[name]) for name in parts)
    gaps = [line["discriminator_loss"] for line in metrics(folder, "train")]
    assert gaps[-1] != gaps[0]
    folder = train(corpus, tmp_path / "turns", *flags, "--discriminator_steps", "3", "--estimator", "reinforce")
    assert not all(torch.equal(before[name], weights(folder)[name]) for name in parts)
    assert "policy_loss" in metrics(folder, "train")[0]


@pytest.mark.parametrize("stage", ["warm_start", "adversarial"])
def test_two_processes_equal_one(stage, corpus, stages, script_env, tmp_path):
    """Within rounding where losses are means over given tokens; nearly, where they are over each process's samples."""
    reference, flags = stages[stage]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0"]
    command += [str(ROOT / "training" / "train_seq2seq2seq.py"), *flags_of(corpus), *QUICK, *STEPS, *map(str, flags)]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path)],
        env={**os.environ, **script_env, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    # which token is the likeliest, and which is sampled, may turn on the last bit, and then all that follows
    steps = {"warm_start": 3, "adversarial": 1}[stage]
    for one, two in list(zip(metrics(reference, "train"), metrics(tmp_path, "train"), strict=True))[:steps]:
        one.pop("reconstruction_accuracy", None), two.pop("reconstruction_accuracy", None)
        assert two.pop("split") == one.pop("split")
        assert two == pytest.approx(one, rel=1e-3 if stage == "warm_start" else 3e-2, abs=1e-2)


def test_final_evaluation(corpus, stages, tmp_path, capsys):
    flags = [*stages["warm_start"][1], "--final_evaluation", "true", "--num_beams", "2", "--max_steps", "1"]
    folder = train(corpus, tmp_path, *flags, "--cache_dir", tmp_path / "cache")
    measured = json.loads((folder / "final" / "metrics.json").read_text())
    assert {"rouge1", "reconstruction_accuracy", "length_deviation"} <= measured["metrics"].keys()
    assert measured["table"] and measured["settings"]["num_processes_of_training"] == 1
    assert "ROUGE-1" in capsys.readouterr().out and "rouge" in (folder / "final" / "README.md").read_text().lower()


def test_from_a_t5_in_a_folder(corpus, tmp_path):
    size = len(AutoTokenizer.from_pretrained(corpus["tokenizer"]))
    config = T5Config(vocab_size=size, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    t5 = T5ForConditionalGeneration(config)
    t5.save_pretrained(tmp_path / "t5")
    flags = ["--tokenizer_name_or_path", corpus["tokenizer"], "--t5_name_or_path", tmp_path / "t5"]
    flags += ["--max_steps", "1", "--max_summary_tokens", "8", "--max_source_tokens", "16", "--learning_rate", "1e-9"]
    folder = train(corpus, tmp_path / "run", *flags)
    after = weights(folder)
    torch.testing.assert_close(after["summarizer.shared.weight"], t5.shared.weight.data, rtol=0, atol=1e-6)
    assert "summarizer.copy_head.query.weight" in after
    with pytest.raises(TrainingError, match="--d_ff has no effect"):
        train(corpus, tmp_path / "misfit", *flags, "--d_ff", "32")


# -------------------------------------------------------------------------------------------------------------- refused


def test_runs_that_cannot_be(corpus, stages, tmp_path):
    tokenizer = ["--tokenizer_name_or_path", corpus["tokenizer"]]
    begun = ["--model_name_or_path", stages["warm_start"][0] / "final"]
    datasets.Dataset.from_dict({"summary": ["", " "]}).to_parquet(tmp_path / "empty.parquet")
    other = train_tokenizer(["another language altogether, with other words"] * 9, 302, num_sentinels=2)
    other.save_pretrained(tmp_path / "other")
    cases = [
        ([], "there is no tokenizer.*train_tokenizer.py"),
        (["--tokenizer_name_or_path", tmp_path / "nowhere"], "no tokenizer can be read.*train_tokenizer.py"),
        ([*tokenizer, "--summaries", tmp_path / "empty.parquet"], "There are no summaries to train on"),
        ([*tokenizer, "--summary_column", "headline"], "has no column 'headline'"),
        ([*begun, "--tokenizer_name_or_path", tmp_path / "other"], "is not the one that the model"),
        ([*tokenizer, "--stage", "autoencode"], "needs a model after warm_start"),
        ([*begun, "--stage", "adversarial", "--discriminator", "none"], "needs a --discriminator"),
        ([*begun, "--stage", "autoencode", "--discriminator", "critic"], "does not train a discriminator"),
        ([*tokenizer, "--back_translation_share", "1"], "needs a trained reconstructor"),
        ([*tokenizer, "--hidden_share", "-1"], "shares of the pairs"),
        ([*tokenizer, "--batch_size", "4000"], "lower batch_size"),
    ]
    for number, (flags, message) in enumerate(cases):
        with pytest.raises(TrainingError, match=f"(?s){message}"):
            train(corpus, tmp_path / str(number), *MODEL, *flags)
        assert not (tmp_path / str(number) / "run.json").exists()


def test_every_flag_has_words(capsys):
    with pytest.raises(SystemExit) as end:
        script().main(["--help"])
    assert end.value.code == 0 and "--stage warm_start --tokenizer_name_or_path" in capsys.readouterr().out
    assert all(len(flag.metadata["help"]) > 9 for flag in dataclasses.fields(script().Seq2Seq2SeqTrainingArguments))


def test_wrong_command_lines_are_refused(capsys):
    for flags, message in (
        (["--metric_for_best_model", "beauty"], "there are loss, repetition_rate, rouge1"),
        (["--discriminator_learning_rate", "0"], "--discriminator_learning_rate: expected a positive number"),
        (["--num_beams", "0"], "--num_beams: expected at least 1"),
        (["--stage", "finish"], "invalid choice: 'finish'"),
        (["--num_pictures", "3"], "unknown flag --num_pictures"),
        (["--vocab_size", "3"], "unknown flag --vocab_size"),
    ):
        with pytest.raises(SystemExit) as end:
            script().main(flags)
        assert end.value.code == 2 and message in capsys.readouterr().err
