"""The command line as a user meets it: verbs, outputs, and one line for every mistake."""

import csv
import inspect
import io
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch
from datasets import Dataset
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import pipeline

import hf_autoencoders
from hf_autoencoders import (
    AutoencoderConfig,
    AutoencoderImageProcessor,
    AutoencoderModel,
    VAEConfig,
    VAEModel,
    VQVAEConfig,
    VQVAEModel,
    cli,
)
from hf_autoencoders.data import image_arrays, load_corpus, load_text_pools
from hf_autoencoders.evaluation import evaluate
from hf_autoencoders.evaluation.summaries import evaluate_summarizer, format_table
from hf_autoencoders.evaluation.voice_conversion import DEFAULT_BATCH_SIZE as SPEECH_BATCH_SIZE
from hf_autoencoders.models.configuration_speech_vqvae import SpeechVQVAEConfig
from hf_autoencoders.models.configuration_voice_conversion import VoiceConversionConfig
from hf_autoencoders.models.feature_extraction_speech import SpeechFeatureExtractor
from hf_autoencoders.models.modeling_seq2seq2seq import Seq2Seq2SeqForConditionalGeneration
from hf_autoencoders.models.modeling_speech_vqvae import SpeechVQVAEModel
from hf_autoencoders.models.modeling_voice_conversion import VoiceConversionModel
from hf_autoencoders.training_arguments import ImageCorpusArguments


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder of a tiny saved model on 8x8 images."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    mlp = {"image_size": 8, "architecture": "mlp", "hidden_sizes": (16,), "latent_size": 4}
    models = {
        "autoencoder": AutoencoderModel(AutoencoderConfig(**mlp)),
        "vae": VAEModel(VAEConfig(**mlp)),
        "vqvae": VQVAEModel(VQVAEConfig(image_size=8, hidden_sizes=(8, 8), codebook_size=16, embedding_dim=4)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


@pytest.fixture
def digit_files(tmp_path):
    """Three PNG files of digits."""
    rows = load_corpus("digits")["validation"]
    paths = []
    for index in range(3):
        paths.append(str(tmp_path / f"digit{index}.png"))
        rows[index]["image"].save(paths[-1])
    return paths


def run(capsys, *argv: str) -> str:
    """Standard output of a command that succeeds."""
    status = cli.main([*argv])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def fail(capsys, *argv: str) -> str:
    """The one line of a command that fails."""
    status = cli.main([*argv])
    message = capsys.readouterr().err
    lines = [line for line in message.splitlines() if line.startswith("hf-autoencoders")]
    assert status == 2 and len(lines) == 1 and "Traceback" not in message, message
    return lines[0]


@pytest.mark.parametrize("name", ["autoencoder", "vae", "vqvae"])
def test_evaluate_writes_one_json(folders, name, tmp_path, capsys):
    output, pictures = tmp_path / "out" / "metrics.json", tmp_path / "pictures"
    argv = ["evaluate", folders[name], "digits", "--split", "test", "--num_importance_samples", "2"]
    printed = run(capsys, *argv, "--seed", "3", "-o", str(output), "--pictures", str(pictures))
    result = json.loads(output.read_text())
    assert result["command"].startswith(f"hf-autoencoders evaluate {folders[name]} digits --split test")
    assert result["corpus"] == {"name": "digits", "split": "test", "rows": 300, "train_rows": 1197}
    assert result["versions"]["hf-autoencoders"] == hf_autoencoders.__version__
    assert result["seed"] == 3 and result["name"] == name
    assert f"{result['metrics']['mse']:.6g}" in printed and "ssim" in printed
    assert (pictures / "reconstructions.png").is_file()
    assert (pictures / "samples.png").is_file() == (name == "vae")


@pytest.fixture
def trained(folders, tmp_path, monkeypatch):
    """Makes a model folder as a training run leaves it, and a corpus without a validation split."""
    monkeypatch.setenv("HF_AUTOENCODERS_CACHE", str(tmp_path / "cache"))
    load_corpus("digits")["train"].select(range(200)).to_parquet(tmp_path / "corpus.parquet")

    def make(name="final", inside=True, **arguments):
        folder = shutil.copytree(folders["autoencoder"], tmp_path / "run" / name, dirs_exist_ok=True)
        arguments = {"dataset": str(tmp_path / "corpus.parquet"), "validation_fraction": 0.2} | arguments
        run = (folder if inside else folder.parent) / "run.json"
        run.write_text(json.dumps({"command": "python train.py", "arguments": arguments}))
        return folder, str(tmp_path / "corpus.parquet")

    return make


def rows_of_validation(capsys, folder, corpus, *argv) -> tuple[int, int]:
    output = Path(folder).parent / "numbers.json"
    run(capsys, "evaluate", str(folder), corpus, "-o", str(output), *argv)
    result = json.loads(output.read_text())
    return result["corpus"]["rows"], result["corpus"]["train_rows"]


@pytest.mark.parametrize("inside", [True, False])
def test_evaluate_holds_out_the_rows_that_training_held_out(trained, inside, capsys):
    folder, corpus = trained("best", inside=inside)

    def rows(fraction):
        return len(load_corpus(corpus, validation_fraction=fraction)["validation"])

    assert rows(0.1) < rows(0.2) < rows(0.3)
    assert rows_of_validation(capsys, folder, corpus) == (rows(0.2), 200 - rows(0.2))
    assert rows_of_validation(capsys, folder, corpus, "--seed", "5")[0] == rows(0.2)
    assert rows_of_validation(capsys, folder, corpus, "--validation_fraction", "0.1")[0] == rows(0.1)  # of the same
    message = fail(capsys, "evaluate", str(folder), corpus, "--validation_fraction", "0.3")
    assert "was trained on" in message and "with --validation_fraction 0.2: with 0.3" in message
    assert "0.3" in fail(
        capsys, "encode", str(folder), corpus, "--validation_fraction", "0.3", "-o", str(folder / "codes")
    )
    other = shutil.copyfile(corpus, Path(corpus).with_name("other.parquet"))  # for all that is known
    assert rows_of_validation(capsys, folder, str(other), "--validation_fraction", "0.3")[0] == rows(0.3)
    assert rows_of_validation(capsys, folder, str(other))[0] == rows(0.1)


@pytest.mark.parametrize("moved", [False, True])
def test_evaluate_knows_the_corpus_of_a_published_record_by_its_name(trained, moved, capsys, tmp_path):
    published = {"dataset": "corpus.parquet", "image_column": "image"}
    folder, corpus = trained("final", **published)
    if not moved:  # the run beside it knows more
        trained("best", inside=False, image_column="image")
    message = fail(capsys, "evaluate", str(folder), corpus, "--validation_fraction", "0.3")
    assert "with --validation_fraction 0.2: with 0.3" in message
    held_out = len(load_corpus(corpus, validation_fraction=0.2)["validation"])
    assert rows_of_validation(capsys, folder, corpus)[0] == held_out
    if not moved:  # so other files of that name are others
        (tmp_path / "other").mkdir()
        other = shutil.copyfile(corpus, tmp_path / "other" / "corpus.parquet")
        assert rows_of_validation(capsys, folder, str(other))[0] < held_out


def test_evaluate_of_final_finds_the_corpora_of_the_run(trained, tmp_path):
    arguments = {"summaries": str(tmp_path / "summaries.parquet"), "seed": 3}
    folder, corpus = trained("final", dataset="corpus.parquet", summaries="summaries.parquet", seed=3)
    trained("best", inside=False, **arguments)
    found = cli._training_of(cli._parser().parse_args(["evaluate", str(folder), corpus]))
    assert found["summaries"] == arguments["summaries"] and found["dataset"] == corpus
    trained("best", inside=False, **{**arguments, "seed": 4})  # of another run
    found = cli._training_of(cli._parser().parse_args(["evaluate", str(folder), corpus]))
    assert found["summaries"] == "summaries.parquet" and found["seed"] == 3


def test_evaluate_reads_the_columns_that_training_read(trained, capsys, monkeypatch, tmp_path):
    folder, corpus = trained(label_column="none", image_column="image", validation_fraction=0.1)
    monkeypatch.chdir(tmp_path)  # the same file by another name
    assert cli.main(["evaluate", str(folder), "corpus.parquet", "-o", str(tmp_path / "numbers.json")]) == 0
    assert "as in training: --image_column image --label_column none" in capsys.readouterr().err
    result = json.loads((tmp_path / "numbers.json").read_text())
    assert result["not_measured"]["linear_probe"] == "the corpus has no labels"
    assert result["settings"]["validation_fraction"] == 0.1
    (folder / "run.json").write_text("[]")
    assert rows_of_validation(capsys, folder, corpus)[0] == result["corpus"]["rows"]


def test_evaluate_reads_factors(folders, trained, capsys, monkeypatch, tmp_path):
    seen, evaluate_model = [], evaluate.evaluate_model

    def measure(model, train, measured, **options):
        seen.append([sorted(images.extra) for images in (train, measured)])
        return evaluate_model(model, train, measured, **options)

    monkeypatch.setattr(evaluate, "evaluate_model", measure)
    folder, corpus = trained(factor_columns=["ink", "label"])
    dataset = load_corpus("digits")["train"].select(range(200))
    dataset.add_column("ink", [row % 5 for row in range(200)]).to_parquet(corpus)
    argv = [corpus, "-o", str(tmp_path / "numbers.json")]
    run(capsys, "evaluate", folders["autoencoder"], *argv)
    run(capsys, "evaluate", folders["autoencoder"], *argv, "--factor_columns", "ink")
    run(capsys, "evaluate", folders["autoencoder"], *argv, "--factor_columns", "none")
    assert seen == [[["ink", "label"]] * 2, [["ink"]] * 2, [[]] * 2]
    assert cli.main(["evaluate", str(folder), *argv]) == 0
    assert "as in training: --validation_fraction 0.2 --factor_columns ink label" in capsys.readouterr().err
    assert seen[-1] == [["ink", "label"]] * 2
    message = fail(capsys, "evaluate", folders["autoencoder"], *argv, "--factor_columns", "hue")
    assert "no column 'hue' for the factors" in message


def test_latent_report_writes_a_page(folders, tmp_path, capsys):
    output = tmp_path / "deep" / "report"
    printed = run(
        capsys, "latent-report", folders["vae"], "digits", "--split", "test", "--seed", "3", "-o", str(output)
    )
    assert f"written to {output / 'index.html'}" in printed
    assert (output / "latent_report.md").read_text() in printed
    report = json.loads((output / "latent_report.json").read_text())
    assert report["corpus"] == {"name": "digits", "split": "test", "rows": 300} and report["seed"] == 3
    assert report["command"].startswith(f"hf-autoencoders latent-report {folders['vae']} digits --split test")
    assert [factor["num_values"] for factor in report["factors"]] == [10] and len(report["components"]) == 4
    assert all((output / component["picture"]).is_file() for component in report["components"])


def test_latent_report_reads_factors_by_their_names(folders, tmp_path, capsys):
    dataset = load_corpus("digits")["train"].select(range(200))
    dataset = dataset.add_column("ink", [row % 5 for row in range(200)]).add_column("number", list(range(200)))
    dataset.to_parquet(tmp_path / "corpus.parquet")
    argv = ["latent-report", folders["vae"], str(tmp_path / "corpus.parquet"), "--split", "train"]
    run(capsys, *argv, "-o", str(tmp_path / "guessed"))
    report = json.loads((tmp_path / "guessed" / "latent_report.json").read_text())
    assert [factor["name"] for factor in report["factors"]] == ["label", "ink"] and "number" in report["left_out"]
    page = (tmp_path / "guessed" / "index.html").read_text()
    assert "183 images of corpus.parquet train" in page and "Left out: number (183 values in 183 rows)" in page
    run(capsys, *argv, "-o", str(tmp_path / "named"), "--factor_columns", "ink")
    report = json.loads((tmp_path / "named" / "latent_report.json").read_text())
    assert [factor["name"] for factor in report["factors"]] == ["ink"]
    message = fail(capsys, *argv, "-o", str(tmp_path / "none"), "--factor_columns", "none", "--label_column", "none")
    assert "--label_column none with --factor_columns none leaves no factors to report: name some" in message
    run(capsys, *argv, "-o", str(tmp_path / "classes"), "--factor_columns", "none")
    report = json.loads((tmp_path / "classes" / "latent_report.json").read_text())
    assert [factor["name"] for factor in report["factors"]] == ["label"], "as the help says"
    run(capsys, *argv, "-o", str(tmp_path / "still"), "--label_column", "none")
    report = json.loads((tmp_path / "still" / "latent_report.json").read_text())
    assert [factor["name"] for factor in report["factors"]] == ["label", "ink"], "likewise"
    message = fail(capsys, "latent-report", folders["vqvae"], "digits", "-o", str(tmp_path / "none"))
    assert "a grid of codes has no parts of its own" in message
    assert not (tmp_path / "none").exists()


def test_latent_report_of_a_folder_becomes_a_part_of_it(folders, tmp_path, capsys, monkeypatch):
    """Beside the weights, in the card and among what is published; elsewhere with -o, and of no model folder here."""
    from hf_autoencoders import BinaryAutoencoderConfig, BinaryAutoencoderModel
    from hf_autoencoders.publishing import published_files

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = BinaryAutoencoderConfig(image_size=8, architecture="mlp", hidden_sizes=(16,), num_bits=3)
    BinaryAutoencoderModel(config).save_pretrained("model")
    before = Path("model/README.md").read_text()
    run(capsys, "latent-report", "model", "digits", "-o", "elsewhere")
    assert Path("model/README.md").read_text() == before and not Path("model/latent_report").exists()
    printed = run(capsys, "latent-report", "model", "digits")
    assert "written to model/latent_report/index.html" in printed and not Path("latent_report").exists()
    text = Path("model/latent_report.md").read_text().strip()
    assert text in Path("model/README.md").read_text() and text not in before
    files = published_files("model")
    assert {"latent_report.md", "latent_report/index.html", "latent_report/bit_0.png"} <= set(files)
    Path("model/README.md").write_text("Mine.")
    run(capsys, "latent-report", "model", "digits", "--seed", "1")
    assert Path("model/README.md").read_text() == "Mine."
    shutil.rmtree("model/latent_report")
    dataset = load_corpus("digits")["validation"]
    dataset.remove_columns("label").to_parquet("bare.parquet")
    message = fail(capsys, "latent-report", "model", "bare.parquet", "--split", "train")
    assert "no column of the corpus says what its images show (it has none): expected whole numbers" in message
    parity = [row % 2 for row in range(len(dataset))]
    apart = [[value if (row < 100) == early else None for row, value in enumerate(parity)] for early in (True, False)]
    dataset.add_column("a", apart[0]).add_column("b", apart[1]).to_parquet("apart.parquet")
    message = fail(capsys, "latent-report", "model", "apart.parquet", "--split", "train")
    assert "no image has all of label, a, b: name fewer with --factor_columns" in message
    assert not Path("model/latent_report").exists() and not list(Path("model").glob(".report-*"))


def test_evaluate_puts_the_numbers_where_publish_takes_them_from(trained, capsys, monkeypatch, tmp_path):
    from hf_autoencoders.publishing import published_files, save_for_hub

    folder, corpus = trained()
    save_for_hub(AutoencoderModel.from_pretrained(folder), folder)
    monkeypatch.chdir(tmp_path)
    printed = run(capsys, "evaluate", str(folder), corpus)
    assert f"written to {folder}/metrics.json" in printed and not (tmp_path / "metrics.json").exists()
    psnr = json.loads((folder / "metrics.json").read_text())["metrics"]["psnr"]
    assert f"{psnr:.2f}" in (folder / "README.md").read_text() and "metrics.json" in published_files(folder)
    before = (folder / "README.md").read_text()
    run(capsys, "evaluate", str(folder), corpus, "--split", "train", "-o", "elsewhere.json")
    assert (folder / "README.md").read_text() == before and (tmp_path / "elsewhere.json").is_file()


def test_encode_writes_codes_or_latents_with_labels(folders, tmp_path, capsys):
    output = tmp_path / "deep" / "codes.safetensors"
    run(capsys, "encode", folders["vqvae"], "digits", "-o", str(output))
    codes = load_file(output)
    assert set(codes) == {"codes", "labels"} and codes["codes"].shape == (300, 1, 2, 2)
    assert codes["codes"].dtype == np.int32 and codes["labels"].shape == (300,)

    output = tmp_path / "latents.safetensors"
    run(capsys, "encode", folders["vae"], "digits", "--split", "test", "-o", str(output), "--batch_size", "77")
    model = VAEModel.from_pretrained(folders["vae"])
    from hf_autoencoders import AutoencoderImageProcessor

    images = image_arrays(load_corpus("digits")["test"], AutoencoderImageProcessor.for_model(model.config)).images
    expected = model.encode(torch.from_numpy(np.array(images)).float() / 255).latents
    np.testing.assert_allclose(load_file(output)["latents"], expected.detach().numpy(), atol=1e-5)


def test_reconstruct_writes_an_image_for_each_input(folders, digit_files, tmp_path, capsys):
    printed = run(capsys, "reconstruct", folders["vqvae"], *digit_files, "-o", str(tmp_path / "out"))
    assert printed.count("mean squared error") == 3
    for index in range(3):
        image = Image.open(tmp_path / "out" / f"digit{index}.png")
        assert image.size == (8, 8) and image.mode == "L"
    # in batches of one the same
    run(capsys, "reconstruct", folders["vqvae"], *digit_files, "-o", str(tmp_path / "one"), "--batch_size", "1")
    for index in range(3):
        one, all_ = (np.asarray(Image.open(tmp_path / d / f"digit{index}.png")).astype(int) for d in ("one", "out"))
        assert np.abs(one - all_).max() <= 1


def test_cluster_writes_a_line_for_each_input(folders, digit_files, tmp_path, capsys):
    model = tiny.model("categorical_autoencoder-conv", num_variables=2)
    model.save_pretrained(tmp_path / "model")
    output = tmp_path / "new" / "clusters.csv"
    argv = ["cluster", str(tmp_path / "model"), *digit_files, "-o", str(output), "--batch_size", "2"]
    assert f"written to {output}" in run(capsys, *argv, "--variable", "1")
    with open(output, newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["image"] for line in lines] == digit_files
    processor = AutoencoderImageProcessor.for_model(model.config)
    with torch.no_grad():
        encoded = model.encode(processor(digit_files, return_tensors="pt")["pixel_values"])
    assert [int(line["cluster"]) for line in lines] == encoded.codes[:, 1].tolist()
    expected = encoded.probabilities[:, 1].amax(1).tolist()
    assert [float(line["score"]) for line in lines] == pytest.approx(expected, rel=1e-4)
    assert "variables from 0 to 1" in fail(capsys, *argv, "--variable", "2")
    assert "which has no clusters" in fail(capsys, "cluster", folders["vae"], *digit_files, "-o", str(output))
    argv = ["cluster", str(tmp_path / "model"), *digit_files, "-o", digit_files[0]]
    assert "is one of the input images" in fail(capsys, *argv)


def test_sample_and_interpolate_draw_pictures(folders, digit_files, tmp_path, capsys):
    first, second, other = (str(tmp_path / f"{name}.png") for name in ("a", "b", "c"))
    for path, seed in ((first, "1"), (second, "1"), (other, "2")):
        run(capsys, "sample", folders["vae"], "-n", "6", "--columns", "3", "-o", path, "--seed", seed)
    pixels = [np.asarray(Image.open(path)) for path in (first, second, other)]
    assert (pixels[0] == pixels[1]).all() and (pixels[0] != pixels[2]).any()
    strip = str(tmp_path / "strip.png")
    run(capsys, "interpolate", folders["vae"], *digit_files[:2], "-o", strip, "--steps", "5", "--mode", "spherical")
    assert Image.open(strip).width > 5 * 64


@pytest.fixture(scope="module")
def summarizer(tmp_path_factory):
    """Folder of a tiny summarizer, to which every token is a word, with its tokenizer; texts are cut at 80 tokens."""
    folder = tmp_path_factory.mktemp("summarizer")
    tiny.model("seq2seq2seq-pointer", max_source_tokens=80).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def news(tmp_path):
    """Parquet files: texts, summaries of others, and pairs, in columns of unusual names."""
    words = " ".join(tiny.SENTENCES).split()
    headlines = [f"{first} {second}" for first, second in itertools.pairwise(words)]
    pairs = {"body": [*tiny.SENTENCES], "head": ["Oil prices rose", "bank left rate", "maze path", "prices rise"]}
    columns = {
        "texts": {"body": [f"{text} now" for text in tiny.SENTENCES]},
        "summaries": {"head": headlines},
        "pairs": pairs,
    }
    for name, content in columns.items():
        Dataset.from_dict(content).to_parquet(tmp_path / f"{name}.parquet")
    return {name: str(tmp_path / f"{name}.parquet") for name in columns}


def test_evaluate_measures_a_summarizer(summarizer, news, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_AUTOENCODERS_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(summarizer, tmp_path / "model")
    corpora = ["--summaries", news["summaries"], "--validation", news["pairs"]]
    columns = ["--text_column", "body", "--summary_column", "head", "--lowercase"]
    argv = ["evaluate", str(folder), news["texts"], "--num_words", "3", "--num_beams", "1", "--seed", "5"]
    printed = run(capsys, *argv, *corpora, *columns)
    result = json.loads((folder / "metrics.json").read_text())
    assert format_table(result["table"]) in printed and f"written to {folder}/metrics.json" in printed
    assert f"{result['metrics']['reconstruction_loss']:.6g}" in printed
    assert result["corpus"]["rows"] == 4 and result["seed"] == 5 and result["name"] == "seq2seq2seq"
    assert result["settings"]["num_words"] == 3 and result["settings"]["num_beams"] == 1
    assert {example["reference"] for example in result["examples"]} >= {"oil prices rose"}, "lower-cased"
    pools = load_text_pools(
        news["texts"], *(news["summaries"], news["pairs"]), text_column="body", summary_column="head", lowercase=True
    )
    model, tokenizer = Seq2Seq2SeqForConditionalGeneration.from_pretrained(folder), tiny.tokenizer()
    same = evaluate_summarizer(model, tokenizer, pools, num_words=3, num_beams=1, seed=5)
    assert result["metrics"] == same["metrics"] and result["baselines"] == same["baselines"]

    arguments = {"texts": news["texts"], "summaries": news["summaries"], "validation": news["pairs"]}
    arguments |= {"text_column": "body", "summary_column": "head", "lowercase": True}
    (folder / "run.json").write_text(json.dumps({"command": "python train.py", "arguments": arguments}))
    assert cli.main([*argv, "-o", str(tmp_path / "other.json")]) == 0
    told = capsys.readouterr().err
    assert "as in training: --summaries" in told and "--text_column body --summary_column head --lowercase" in told
    assert json.loads((tmp_path / "other.json").read_text())["metrics"] == result["metrics"]


def test_evaluate_refuses_flags_of_the_other_kind(summarizer, folders, news, capsys):
    for flags in (["--summaries", "digits"], ["--lowercase"], ["--num_beams", "2"], ["--num_words", "3"]):
        message = fail(capsys, "evaluate", folders["vae"], "digits", *flags)
        assert f"{flags[0]} is for text models, but {folders['vae']} is an image model" in message
    of_images = (["--label_column", "none"], ["--factor_columns", "x"], ["--skip_bad_images"])
    for flags in (*of_images, ["--split", "test"], ["--pictures", "p"]):
        message = fail(capsys, "evaluate", summarizer, news["texts"], *flags)
        kinds = "image and audio" if flags[0] in ("--split", "--pictures") else "image"
        assert f"{flags[0]} is for {kinds} models, but {summarizer} is a text model" in message
    assert "has no column 'text'. Its columns are: body" in fail(
        capsys, "evaluate", summarizer, news["texts"], "--validation", news["pairs"]
    )
    assert not (Path(summarizer) / "metrics.json").exists()


def by_pipeline(summarizer, lines, **options):
    summarize = pipeline("text-summarization", model=summarizer, device="cpu", **options)
    return [summarize(line)[0] if line.strip() else {"summary_text": ""} for line in lines]


def test_summarize_writes_a_line_for_each_line(summarizer, tmp_path, capsys):
    lines = [*tiny.SENTENCES[:2], "", tiny.SENTENCES[2], "  ", " ".join(tiny.SENTENCES)]
    (tmp_path / "in.txt").write_text("\r\n".join(lines), encoding="utf-8")  # no end of line after the last
    argv = ["summarize", str(tmp_path / "in.txt"), "--model", summarizer, "-o"]
    assert cli.main([*argv, str(tmp_path / "a" / "out.txt"), "--num_words", "3", "--batch_size", "2"]) == 0
    told = capsys.readouterr().err
    assert f"6 lines written to {tmp_path}/a/out.txt; 1 of them longer than 80 tokens and cut there" in told
    expected = [result["summary_text"] for result in by_pipeline(summarizer, lines, num_words=3)]
    assert (tmp_path / "a" / "out.txt").read_text("utf-8") == "\n".join(expected) + "\n"
    printed = run(capsys, *argv, "-", "--ratio", "0.25", "--num_beams", "1", "--reconstruct")
    options = {"ratio": 0.25, "num_beams": 1, "return_reconstruction": True}
    for line, result in zip(printed.splitlines(), by_pipeline(summarizer, lines, **options), strict=True):
        assert line == "\t".join([result["summary_text"], *filter(None, [result.get("reconstruction_text")])])


def test_summarize_reads_standard_input(summarizer, capsys, monkeypatch):
    source = io.TextIOWrapper(io.BytesIO(f"{tiny.SENTENCES[0]}\n\n".encode()))
    monkeypatch.setattr(sys, "stdin", source)
    printed = run(capsys, "summarize", "-", "--model", summarizer, "-o", "-", "--num_words", "2")
    assert printed == by_pipeline(summarizer, tiny.SENTENCES[:1], num_words=2)[0]["summary_text"] + "\n\n"


def test_what_was_summarized_before_an_interrupt_is_there(summarizer, tmp_path, capsys, monkeypatch):
    from hf_autoencoders.pipelines import TextSummarizationPipeline

    (tmp_path / "in.txt").write_text("\n".join(tiny.SENTENCES))
    calls, original = [], TextSummarizationPipeline.__call__

    def interrupted(self, texts, **options):
        calls.append(texts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, texts, **options)

    monkeypatch.setattr(TextSummarizationPipeline, "__call__", interrupted)
    argv = ["summarize", str(tmp_path / "in.txt"), "--model", summarizer, "-o", str(tmp_path / "out.txt")]
    assert cli.main([*argv, "--batch_size", "3", "--num_words", "3"]) == 130
    told = capsys.readouterr().err
    assert f"3 lines written to {tmp_path}/out.txt" in told and "interrupted" in told
    monkeypatch.undo()
    expected = by_pipeline(summarizer, tiny.SENTENCES[:3], num_words=3)
    assert (tmp_path / "out.txt").read_text().splitlines() == [result["summary_text"] for result in expected]


def test_mistakes_of_summarize_are_told(summarizer, folders, tmp_path, capsys):
    file = tmp_path / "in.txt"
    file.write_text("good\n")
    output = ["-o", str(tmp_path / "out.txt")]
    assert "no such file" in fail(capsys, "summarize", str(tmp_path / "gone"), "--model", summarizer, *output)
    assert "is the input, too" in fail(capsys, "summarize", str(file), "--model", summarizer, "-o", str(file))
    assert f"cannot load {folders['vae']}" in fail(capsys, "summarize", str(file), "--model", folders["vae"], *output)
    message = fail(capsys, "sample", summarizer)
    assert "holds a Seq2Seq2SeqForConditionalGeneration: expected an image auto-encoder" in message
    assert not (tmp_path / "out.txt").exists() and file.read_text() == "good\n"
    file.write_bytes(b"good\n\xff\xfe\n")
    assert "line 2 is not UTF-8" in fail_after(capsys, "summarize", str(file), "--model", summarizer, *output)
    smaller = {part: {**tiny.COPYING, "vocab_size": 300} for part in ("summarizer", "reconstructor")}
    tiny.model("seq2seq2seq-pointer", **smaller).save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    message = fail(capsys, "summarize", str(file), "--model", str(tmp_path / "other"), *output)
    assert "the tokenizer has 320 tokens, but the model 300" in message


def fail_after(capsys, *argv: str) -> str:
    """What a command says that fails after it has begun to write."""
    assert cli.main([*argv]) == 2
    return capsys.readouterr().err


SPEAKERS = {"ann": 120, "bob": 180, "cat": 260}  # Hz


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    """Folder of recordings, `SPEAKER/take.wav`, at 8000 samples per second."""
    folder = tmp_path_factory.mktemp("speakers")
    random = np.random.default_rng(0)
    for speaker, pitch in SPEAKERS.items():
        (folder / speaker).mkdir()
        for take in range(7):
            phase = 2 * np.pi * pitch * np.arange(1500 + 100 * take) / 8000
            waveform = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 8))
            waveform = 0.2 * waveform + 0.01 * random.standard_normal(len(phase))
            soundfile.write(folder / speaker / f"{take}.wav", waveform, 8000)
    return str(folder)


@pytest.fixture(scope="module")
def speech_models(tmp_path_factory):
    """name -> folder of a tiny model of speech with its feature extractor."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("speech")
    mel = {"sampling_rate": 8000, "hop_length": 100}
    fields = {**mel, "num_mel_bins": 16, "hidden_size": 8, "latent_size": 4, "speaker_size": 6}
    models = {
        "converter": VoiceConversionModel(VoiceConversionConfig(**fields)),
        "codes": SpeechVQVAEModel(SpeechVQVAEConfig(**fields, codebook_size=8, num_codebooks=2)),
    }
    extractor = SpeechFeatureExtractor(**mel, feature_size=16, win_length=400, n_fft=512, mean=-3.0, std=2.0)
    for name, model in models.items():
        model.save_pretrained(folder / name)
        extractor.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


def test_evaluate_measures_a_voice_converter(speech_models, speakers, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_AUTOENCODERS_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(speech_models["converter"], tmp_path / "run" / "final")
    arguments = {"validation_fraction": 0.4, "held_out_speakers": ["cat"], "seed": 7, "num_target_clips": 2}
    arguments["dataset"] = Path(speakers).name  # as published
    (folder / "run.json").write_text(json.dumps({"command": "python train.py", "arguments": arguments}))
    argv = ["evaluate", str(folder), speakers, "--seed", "1", "--num_pairs", "5", "--pictures", str(tmp_path)]
    assert cli.main(argv) == 0
    printed = capsys.readouterr()
    result = json.loads((folder / "metrics.json").read_text())
    assert "as in training: --validation_fraction 0.4" in printed.err and "--held_out_speakers cat" in printed.err
    assert "| converted " in printed.out and f"{result['metrics']['target_speaker']:.6g}" in printed.out
    assert "as in training: --num_target_clips 2" in printed.err and result["settings"]["num_target_clips"] == 2
    assert result["seed"] == 1 and result["corpus"]["unseen_rows"] == 7 and result["corpus"]["speakers"] == 2
    assert result["corpus"]["rows"] + result["corpus"]["train_rows"] == 14
    assert "word_judge" in result["not_measured"] and "seen_to_unseen_closer" in result["metrics"]
    assert (tmp_path / "conversions.png").is_file()
    message = fail(capsys, *argv, "--held_out_speakers", "bob")
    assert "held out cat: others it has heard. Leave out --held_out_speakers" in message
    assert "with 0.5 the validation split would hold" in fail(capsys, *argv, "--validation_fraction", "0.5")


def test_evaluate_measures_codes_of_speech(speech_models, speakers, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_AUTOENCODERS_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "metrics.json"
    printed = run(capsys, "evaluate", speech_models["codes"], speakers, "-o", str(output))
    result = json.loads(output.read_text())
    assert result["name"] == "speech_vqvae" and result["corpus"]["rows"] + result["corpus"]["train_rows"] == 21
    assert "code_usage" in result["metrics"] and "code_usage" in printed


def test_bad_audio_of_a_corpus_is_told_with_flags(speech_models, speakers, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_AUTOENCODERS_CACHE", str(tmp_path / "cache"))
    corpus = shutil.copytree(speakers, tmp_path / "corpus")
    argv = ["encode", speech_models["converter"], str(corpus), "--split", "train", "-o", str(tmp_path / "encoded")]
    soundfile.write(corpus / "ann" / "0.wav", np.zeros((900, 2)), 8000)
    soundfile.write(corpus / "ann" / "1.wav", np.zeros((900, 2)), 8000)
    message = fail(capsys, *argv, "--validation_fraction", "0.01")
    assert "leave such rows out with --skip_bad_audio" in message and "Average them first" in message


def test_evaluate_of_speech_refuses_flags_of_other_kinds(speech_models, speakers, folders, capsys):
    for flags in (["--label_column", "none"], ["--num_importance_samples", "3"], ["--skip_bad_images"]):
        message = fail(capsys, "evaluate", speech_models["converter"], speakers, *flags)
        assert f"{flags[0]} is for image models, but {speech_models['converter']} is an audio model" in message
    message = fail(capsys, "encode", folders["vae"], "digits", "--skip_bad_audio", "-o", "x")
    assert f"--skip_bad_audio is for audio models, but {folders['vae']} is an image model" in message
    message = fail(capsys, "evaluate", speech_models["converter"], speakers, "--split", "test")
    assert "a model of speech is measured on the split validation" in message


@pytest.mark.parametrize("name", ["converter", "codes"])
def test_encode_writes_codes_or_latents_of_speech(speech_models, speakers, name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_AUTOENCODERS_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "encoded.safetensors"
    printed = run(capsys, "encode", speech_models[name], speakers, "--split", "train", "-o", str(output))
    tensors = load_file(output)
    content = {"converter": "latents", "codes": "codes"}[name]
    assert set(tensors) == {content, "starts", "speakers", "speaker_embeddings"} and f"{content} " in printed
    clips = len(tensors["speakers"])
    assert tensors["starts"].shape == (clips + 1,) and tensors["starts"][-1] == len(tensors[content])
    assert tensors["speaker_embeddings"].shape == (clips, 6)
    assert tensors[content].shape[1] == {"converter": 4, "codes": 2}[name]
    with safe_open(output, "np") as file:
        assert json.loads(file.metadata()["speaker_names"]) == list(SPEAKERS)
    if name == "converter":
        message = fail(capsys, "encode", speech_models[name], speakers, "--content", "codes", "-o", str(output))
        assert "has no discrete codes: use --content latents" in message
        message = fail(capsys, "encode", speech_models[name], speakers, "--split", "unseen", "-o", str(output))
        assert "has no split 'unseen': expected one of train, validation" in message


def test_convert_voice_writes_a_recording(speech_models, speakers, tmp_path, capsys):
    source, targets = f"{speakers}/ann/3.wav", [f"{speakers}/bob/0.wav", str(tmp_path / "fast.wav")]
    waveform = np.sin(np.arange(5000) / 7)
    soundfile.write(targets[1], waveform, 16000)
    output, picture = tmp_path / "out" / "converted.flac", tmp_path / "mels.png"
    argv = ["convert-voice", source, *targets, "--model", speech_models["converter"], "-o", str(output)]
    assert cli.main([*argv, "--picture", str(picture)]) == 0
    printed = capsys.readouterr()
    assert f"{targets[1]}: resampled from 16000 to 8000 samples per second" in printed.err
    assert f"written to {output}" in printed.out and f"written to {picture}" in printed.out
    audio, rate = soundfile.read(output, dtype="float32")
    assert rate == 8000 and audio.shape == (1800,)
    convert = pipeline("voice-conversion", model=speech_models["converter"], device="cpu")
    expected = convert(source, target=targets)["audio"]
    np.testing.assert_allclose(audio, expected / max(1, np.abs(expected).max()), atol=1e-3)
    drawn = Image.open(picture)
    assert drawn.width > 3 * 16 and drawn.height > 80


def test_targets_without_a_voice_are_told(speech_models, speakers, tmp_path, capsys):
    good = f"{speakers}/ann/0.wav"
    soundfile.write(tmp_path / "silent.wav", np.zeros(900), 8000)
    soundfile.write(tmp_path / "short.wav", 0.1 * np.sin(np.arange(400)), 8000)
    targets = [str(tmp_path / "silent.wav"), str(tmp_path / "short.wav"), good]
    argv = ["--model", speech_models["converter"], "-o", str(tmp_path / "out.wav")]
    assert cli.main(["convert-voice", good, *targets, *argv]) == 0
    told = capsys.readouterr().err
    assert f"{targets[0]} is silent" in told and f"{targets[1]} lasts 0.05 seconds: too short" in told
    assert cli.main(["convert-voice", targets[0], good, *argv]) == 0  # of a source it is no matter
    assert "silent" not in capsys.readouterr().err


def test_mistakes_of_convert_voice_are_told(speech_models, speakers, folders, tmp_path, capsys):
    good, output = f"{speakers}/ann/0.wav", str(tmp_path / "out.wav")
    model = ["--model", speech_models["converter"]]
    bad = {"stereo": np.zeros((900, 2)), "nan": np.full(900, np.nan), "empty": np.zeros(0)}
    bad["loud"] = np.linspace(0, 20000, 900)
    (tmp_path / "folder.wav").mkdir()
    for name, waveform in bad.items():
        soundfile.write(tmp_path / f"{name}.wav", waveform, 8000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no recording")
    for name, words in (
        ("stereo", "2 channels, expected one. To average them, use --downmix"),
        ("nan", "NaN or infinite"),
        ("empty", "empty"),
        ("loud", "got values up to 20000. Scale the recording to [-1, 1]."),
        ("folder", "is a folder"),
        ("text", "cannot be read: its content is no audio that libsndfile knows. Expected"),
        ("missing", "no audio file"),
    ):
        path = str(tmp_path / f"{name}.wav")
        for files in ([path, good], [good, good, path]):
            message = fail(capsys, "convert-voice", *files, *model, "-o", output)
            assert words in message and path in message
    run(capsys, "convert-voice", str(tmp_path / "stereo.wav"), good, *model, "-o", output, "--downmix")
    message = fail(capsys, "convert-voice", good, good, *model, "-o", good)
    assert f"{good} is an input, too" in message
    message = fail(capsys, "convert-voice", good, good, *model, "-o", str(tmp_path / "out.txt"))
    assert "expected a file that ends in .wav, .flac, .ogg" in message
    new = str(tmp_path / "new.wav")
    for picture, words in (
        (str(tmp_path / "picture.txt"), "expected a picture that ends in .png"),
        (good, f"{good} is an input, too"),
        (new, f"{new} is the output, too"),
    ):
        assert words in fail(capsys, "convert-voice", good, good, *model, "-o", new, "--picture", picture)
    assert not Path(new).exists()
    message = fail(capsys, "convert-voice", good, good, "--model", folders["vae"], "-o", output)
    assert "holds a VAEModel: expected an auto-encoder of speech" in message
    broken = shutil.copytree(speech_models["converter"], tmp_path / "broken")
    (broken / "preprocessor_config.json").unlink()
    message = fail(capsys, "convert-voice", good, good, "--model", str(broken), "-o", output)
    assert "cannot load the feature extractor" in message


def test_variants_lists_the_registry(capsys):
    from hf_autoencoders import VARIANTS

    printed = run(capsys, "variants")
    for variant in VARIANTS.values():
        assert variant.name in printed and variant.model_type in printed and variant.title in printed


def test_a_model_saved_without_processor_gets_the_one_that_fits(folders, tmp_path, capsys):
    folder = shutil.copytree(folders["vae"], tmp_path / "model")
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    run(capsys, "encode", str(folder), "digits", "-o", str(tmp_path / "latents.safetensors"))


def test_mistakes_are_one_line_that_names_them(folders, digit_files, tmp_path, capsys):
    output = ["-o", str(tmp_path / "out")]
    missing = str(tmp_path / "nowhere")
    assert f"no such folder: {missing}" in fail(capsys, "sample", missing)
    assert "organisation/nowhere" in fail(capsys, "sample", "organisation/nowhere")
    assert "has no prior to sample from" in fail(capsys, "sample", folders["vqvae"])
    assert "has no interpolation" in fail(capsys, "interpolate", folders["autoencoder"], *digit_files[:2])
    assert "no split 'holdout': expected one of train, validation, test" in fail(
        capsys, "evaluate", folders["vae"], "digits", "--split", "holdout", *output
    )
    assert "has no discrete codes" in fail(capsys, "encode", folders["vae"], "digits", "--content", "codes", *output)
    assert "steps" in fail(capsys, "interpolate", folders["vae"], *digit_files[:2], "--steps", "1")
    assert "label" in fail(capsys, "evaluate", folders["vae"], "digits", "--label_column", "colour", *output)
    assert "device 'toaster'" in fail(capsys, "sample", folders["vae"], "--device", "toaster")
    assert not (tmp_path / "out").exists()


def test_mistakes_with_files_are_named(folders, digit_files, tmp_path, capsys):
    output = ["-o", str(tmp_path / "out")]
    (tmp_path / "text.png").write_text("not an image")
    assert f"no such file: {tmp_path}/gone.png" in fail(
        capsys, "reconstruct", folders["vae"], str(tmp_path / "gone.png"), *output
    )
    assert f"{tmp_path}/text.png" in fail(capsys, "reconstruct", folders["vae"], str(tmp_path / "text.png"), *output)
    assert "would both be written" in fail(
        capsys, "reconstruct", folders["vae"], digit_files[0], digit_files[0], *output
    )
    before = open(digit_files[0], "rb").read()
    assert "is one of the input images" in fail(
        capsys, "reconstruct", folders["vae"], digit_files[0], "-o", str(tmp_path)
    )
    assert open(digit_files[0], "rb").read() == before


def test_a_folder_to_write_a_file_to_is_refused_before_anything_is_loaded(tmp_path, capsys):
    first, second = "first.png", "second.png"
    for argv in (
        ["evaluate", "no/model", "digits"],
        ["encode", "no/model", "digits"],
        ["cluster", "no/model", first],
        ["sample", "no/model"],
        ["interpolate", "no/model", first, second],
        ["summarize", "text.txt", "--model", "no/model"],
    ):
        message = fail(capsys, *argv, "-o", str(tmp_path))
        assert f"{tmp_path} is a folder: expected a file to write to, name one with --output" in message


def test_corrupt_and_incomplete_weights_are_refused(folders, tmp_path, capsys):
    from safetensors.torch import load_file as load_tensors
    from safetensors.torch import save_file

    folder = shutil.copytree(folders["vae"], tmp_path / "truncated")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"cannot load {folder}" in fail(capsys, "sample", str(folder))

    folder = shutil.copytree(folders["vae"], tmp_path / "encoder_only")
    tensors = load_tensors(folder / "model.safetensors")
    encoder = {name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.")}
    save_file(encoder, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 4 of the weights of VAEModel, for example decoder." in fail(capsys, "sample", str(folder))


def test_a_classifier_which_has_no_decoder_is_refused(tmp_path, capsys):
    from hf_autoencoders import AutoencoderForImageClassification

    config = AutoencoderConfig(image_size=8, architecture="mlp", hidden_sizes=(16,), latent_size=4, num_labels=10)
    AutoencoderForImageClassification(config).save_pretrained(tmp_path / "classifier")
    message = fail(capsys, "evaluate", str(tmp_path / "classifier"), "digits", "-o", str(tmp_path / "metrics.json"))
    assert "saved without its decoder" in message


def test_publish_checks_the_folder_before_it_sends_anything(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    fail(capsys, "publish", str(tmp_path), "organisation/name")


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        cli.main(["sample", str(tmp_path / "nowhere"), "--debug"])


def test_our_own_faults_keep_their_traceback(monkeypatch, folders):
    monkeypatch.setattr(VAEModel, "sample", lambda *args, **kwargs: {}["a fault of ours"])
    with pytest.raises(KeyError):
        cli.main(["sample", folders["vae"]])


@pytest.mark.parametrize("fault", [RuntimeError("shapes"), ValueError("a fault of ours")])
def test_what_goes_wrong_after_loading_keeps_its_traceback(monkeypatch, folders, capsys, tmp_path, fault):
    def fail_(*args, **kwargs):
        raise fault

    monkeypatch.setattr(VAEModel, "encode", fail_)
    with pytest.raises(type(fault), match=str(fault)):
        cli.main(["encode", folders["vae"], "digits", "-o", str(tmp_path / "latents")])
    fault = torch.OutOfMemoryError("no memory: a smaller --batch_size helps")
    assert "no memory" in fail(capsys, "encode", folders["vae"], "digits", "-o", str(tmp_path / "latents"))


def test_weights_that_are_not_numbers_are_refused(folders, tmp_path, capsys):
    model = AutoencoderModel.from_pretrained(folders["autoencoder"])
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    message = fail(capsys, "evaluate", str(tmp_path / "broken"), "digits", "-o", str(tmp_path / "metrics.json"))
    assert "1 of the weights hold NaN or infinite values" in message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "VERB"),
        (["evaluat", "a", "b"], "invalid choice"),
        (["sample", "a", "-n", "0"], "expected a whole number >= 1, got '0'"),
        (["sample", "a", "--seed", "-1"], "expected a whole number >= 0, got '-1'"),
        (["evaluate", "a", "b", "--validation_fraction", "1"], "between 0 and 1 (exclusive), got '1'"),
        (["sample", "a", "--samples", "3"], "unrecognized arguments"),
        (["sample", "a", "--num", "3"], "unrecognized arguments"),
        (["encode", "a", "digits"], "-o/--output"),
    ],
)
def test_wrong_arguments_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_defaults_are_those_of_the_library():
    arguments = cli._parser().parse_args(["evaluate", "model", "corpus"])
    assert cli.BATCH_SIZE == evaluate.DEFAULT_BATCH_SIZE and cli.SPEECH_BATCH_SIZE == SPEECH_BATCH_SIZE
    for flags in cli.FLAGS.values():
        assert {name: getattr(arguments, name) for name in flags} == flags
    options = inspect.signature(evaluate_summarizer).parameters
    assert (cli.TEXT_BATCH_SIZE, cli.NUM_BEAMS) == (options["batch_size"].default, options["num_beams"].default)
    assert arguments.num_importance_samples == evaluate.DEFAULT_IMPORTANCE_SAMPLES
    assert arguments.trust_remote_code is False
    for function in (load_corpus, ImageCorpusArguments):
        default = inspect.signature(function).parameters["validation_fraction"].default
        assert default == cli.VALIDATION_FRACTION


def test_help_imports_nothing_heavy(script_env):
    code = (
        "import sys; from hf_autoencoders import cli\n"
        "try: cli.main(['evaluate', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "cli.main(['variants'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], env=script_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--num_importance_samples" in done.stdout
