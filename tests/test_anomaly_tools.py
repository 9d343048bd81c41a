"""What users meet of anomaly detectors: pipeline, verbs of the command line, training script, code from the Hub."""

import csv
import importlib
import json
from io import BytesIO

import numpy as np
import pytest
import tiny
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures
from processes import WITHOUT_PACKAGE, run_python
from safetensors.torch import load_file, save_file
from transformers import AutoModel, pipeline

from hf_autoencoders import cli, cli_anomaly
from hf_autoencoders.data import image_arrays, load_corpus, load_masks
from hf_autoencoders.data.images import find_class
from hf_autoencoders.evaluation.anomaly import evaluate_anomalies
from hf_autoencoders.evaluation.pictures import heat_overlay
from hf_autoencoders.models.configuration_autoencoder import AutoencoderConfig
from hf_autoencoders.models.configuration_base import ANOMALY_SCORES
from hf_autoencoders.models.image_processing_autoencoder import AutoencoderImageProcessor
from hf_autoencoders.models.modeling_autoencoder import AutoencoderModel
from hf_autoencoders.training_run import TrainingRun

CONFIG = AutoencoderConfig(image_size=8, architecture="mlp", hidden_sizes=(16,), latent_size=4)


@pytest.fixture(scope="module")
def digits():
    splits = load_corpus("digits")
    processor = AutoencoderImageProcessor.for_model(CONFIG)
    return {name: image_arrays(splits[name], processor) for name in ("train", "validation")}


@pytest.fixture
def folder(digits, tmp_path):
    """A model folder with a detector, for which a 3 is normal."""
    torch.manual_seed(0)
    model = AutoencoderModel(CONFIG).eval()
    threes = digits["train"].images[digits["train"].labels == 3]
    model.fit_detector(threes[:60], threes[60:], score="latent_distance", false_alarm_rate=0.1)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def files(tmp_path):
    rows = load_corpus("digits")["validation"]
    paths = [str(tmp_path / f"digit{index}.png") for index in range(3)]
    for index, path in enumerate(paths):
        rows[index]["image"].save(path)
    return paths


def run(capsys, *argv):
    status = cli.main([str(word) for word in argv])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_the_pipeline_says_what_the_detector_says(folder, files, digits):
    detect = pipeline("anomaly-detection", model=str(folder))
    answers = detect(files, batch_size=2, output_type="array")
    found = AutoModel.from_pretrained(folder).detect(torch.from_numpy(digits["validation"].images[:3]) / 255)
    for row, answer in enumerate(answers):
        assert answer["score"] == pytest.approx(found.scores[row].item(), rel=1e-5)
        assert answer["p_value"] == found.p_values[row].item()
        assert answer["is_anomaly"] is found.is_anomaly[row].item()
        np.testing.assert_allclose(answer["heat_map"], found.maps[row].numpy(), rtol=1e-4, atol=1e-6)
    picture = detect(Pictures.open(files[0]))["heat_map"]
    assert picture.size == (8, 8) and picture.mode == "RGB"
    with pytest.raises(ValueError, match='output_type must be "pil" or "array"'):
        detect(files[0], output_type="png")
    with pytest.raises(TypeError, match="unknown argument.* threshold"):
        detect(files[0], threshold=3)


def test_the_pipeline_needs_a_detector(tmp_path):
    AutoencoderModel(CONFIG).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no detector: fit one with model.fit_detector"):
        pipeline("anomaly-detection", model=str(tmp_path))


def test_the_verbs_fit_detect_and_evaluate(tmp_path, files, capsys):
    assert cli_anomaly.SCORES == ANOMALY_SCORES
    torch.manual_seed(0)
    AutoencoderModel(CONFIG).save_pretrained(tmp_path / "plain")
    flags = ["--normal_class", "3", "--score", "density", "--false_alarm_rate", "0.1", "--quiet"]
    status, text = run(capsys, "fit-detector", tmp_path / "plain", "digits", *flags, "-o", tmp_path / "fitted")
    model = AutoModel.from_pretrained(tmp_path / "fitted")
    assert status == 0 and f"{model.anomaly_threshold:.6g}" in text and model.config.anomaly_score == "density"
    assert AutoModel.from_pretrained(tmp_path / "plain").detector is None

    status, text = run(capsys, "detect", tmp_path / "fitted", *files, "-o", tmp_path / "out")
    assert status == 0 and text.count("p-value") == 3
    rows = list(csv.DictReader((tmp_path / "out" / "anomalies.csv").open()))
    found = model.detect(AutoencoderImageProcessor.for_model(CONFIG)(files, return_tensors="pt")["pixel_values"])
    assert [row["image"] for row in rows] == files
    np.testing.assert_allclose([float(row["score"]) for row in rows], found.scores, rtol=1e-4)
    assert [int(row["is_anomaly"]) for row in rows] == found.is_anomaly.int().tolist()
    assert all((tmp_path / "out" / f"digit{index}.png").is_file() for index in range(3))

    output = tmp_path / "a.json"
    status, _ = run(capsys, "evaluate-anomalies", tmp_path / "fitted", "digits", "--normal_class", "3", "-o", output)
    result = json.loads(output.read_text())
    assert status == 0 and 0 < result["metrics"]["auroc"] <= 1 and "isolation_forest_auroc" in result["baselines"]
    assert result["corpus"]["normal_class"] == "3" and result["settings"]["nominal_false_alarm_rate"] == 0.1


def test_measuring_on_the_calibration_rows_is_told(tmp_path, capsys, caplog):
    torch.manual_seed(0)
    AutoencoderModel(CONFIG).save_pretrained(tmp_path / "model")
    corpus = [tmp_path / "model", "digits", "--normal_class", "3", "--quiet"]
    status, text = run(capsys, "fit-detector", *corpus, "--false_alarm_rate", "0.1", "--batch_size", "7")
    assert status == 0, text
    for split, told in (("validation", True), ("test", False)):
        caplog.clear()
        status, text = run(capsys, "evaluate-anomalies", *corpus, "--split", split, "-o", tmp_path / "a.json")
        assert status == 0 and ("are those that the detector was calibrated on" in caplog.text) is told, text


@pytest.fixture
def defects(tmp_path):
    """A folder of 200 images, "good" and from the 120th on "bad", where they have a mask. The last rows have a broken
    image or no label."""
    rng = np.random.default_rng(0)
    images, masks, labels = [], [], []
    for row in range(200):
        image, mask = rng.integers(0, 60, (8, 8), dtype=np.uint8), np.zeros((8, 8), np.uint8)
        if row >= 120:
            mask[row % 7 : row % 7 + 2, 3:5] = 1
            image[mask > 0] = 255
        picture = Pictures.fromarray(image)
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue() if row % 20 else b"broken", "path": None})
        masks.append(Pictures.fromarray(mask) if row >= 120 else None)
        labels.append(-1 if row % 20 == 1 else int(row >= 120))
    features = Features({"image": Image(), "mask": Image(), "label": ClassLabel(names=["good", "bad"])})
    dataset = Dataset.from_dict({"image": images, "mask": masks, "label": labels}, features=features)
    dataset.to_parquet(tmp_path / "defects.parquet")
    return tmp_path / "defects.parquet"


def test_masks_are_those_of_the_rows_that_are_measured(defects, tmp_path, capsys, monkeypatch):
    seen = {}

    def remember(model, train, rows, is_anomalous, *, masks, **options):
        seen.update(rows=rows, is_anomalous=is_anomalous, masks=masks, **options)
        return evaluate_anomalies(model, train, rows, is_anomalous, masks=masks, **options)

    monkeypatch.setattr("hf_autoencoders.evaluation.anomaly.evaluate_anomalies", remember)
    torch.manual_seed(0)
    AutoencoderModel(CONFIG).save_pretrained(tmp_path / "model")
    corpus = [tmp_path / "model", defects, "--normal_class", "good", "--validation_fraction", "0.4"]
    corpus += ["--skip_bad_images", "--quiet"]
    status, text = run(capsys, "fit-detector", *corpus, "--false_alarm_rate", "0.1")
    assert status == 0, text
    output = tmp_path / "a.json"
    status, text = run(capsys, "evaluate-anomalies", *corpus, "--mask_column", "mask", "-o", output)
    assert status == 0 and "rows have no label, and are left out" in text, text
    assert len(seen["rows"]) == len(seen["masks"]) == len(seen["is_anomalous"])
    assert (seen["masks"].any((1, 2)) == seen["is_anomalous"]).all()
    np.testing.assert_array_equal(seen["rows"][:, 0] == 255, seen["masks"])
    result = json.loads(output.read_text())
    assert result["corpus"]["unlabelled_rows"] > 0 and result["corpus"]["skipped_rows"] > 0
    assert 0 <= result["metrics"]["pixel_auroc"] <= 1


def test_the_verbs_take_models_of_tables(tmp_path, capsys):
    from hf_autoencoders.data import load_tables

    tables, processor = load_tables("breast_cancer", validation_fraction=0.3)
    torch.manual_seed(0)
    fields = {"input_shape": (30,), "architecture": "mlp", "hidden_sizes": (8,), "latent_size": 4}
    processor.save_pretrained(tmp_path / "table")
    AutoencoderModel(AutoencoderConfig(**fields)).save_pretrained(tmp_path / "table")
    corpus = ["breast_cancer", "--normal_class", "benign", "--validation_fraction", "0.3", "--quiet"]
    flags = ["--score", "latent_neighbors", "--false_alarm_rate", "0.1"]
    status, text = run(capsys, "fit-detector", tmp_path / "table", *corpus, *flags)
    assert status == 0, text
    model = AutoModel.from_pretrained(tmp_path / "table")
    benign = tables["validation"].values[tables["validation"].labels == 1]
    assert f"calibrated on {len(benign)} rows" in text
    scores = model.detect(torch.from_numpy(benign)).scores.sort().values
    torch.testing.assert_close(scores, model.detector.calibration_scores, rtol=1e-4, atol=1e-5)
    output = tmp_path / "a.json"
    status, text = run(capsys, "evaluate-anomalies", tmp_path / "table", *corpus, "-o", output)
    assert status == 0 and json.loads(output.read_text())["metrics"]["auroc"] > 0.8, text
    status, text = run(capsys, "evaluate-anomalies", tmp_path / "table", *corpus, "--mask_column", "mask")
    assert status == 2 and "rows of tables, which have no maps" in text
    status, text = run(capsys, "detect", tmp_path / "table", "row.csv")
    assert status == 2 and "reads rows of tables" in text


def test_mistakes_on_the_command_line_are_told_in_a_line(folder, tmp_path, files, capsys):
    AutoencoderModel(CONFIG).save_pretrained(tmp_path / "plain")
    for argv, message in (
        (["detect", tmp_path / "plain", files[0]], "no detector has been fitted"),
        (["evaluate-anomalies", folder, "digits", "--normal_class", "33"], "there is no class '33'"),
        (["fit-detector", folder, "digits", "--score", "likelihood"], "has no score 'likelihood'"),
        (["fit-detector", folder, "digits", "--false_alarm_rate", "0.0001"], "at least 9999 are needed"),
        (["fit-detector", folder, "digits", "--split", "train"], "rows that were held out"),
    ):
        status, text = run(capsys, *argv)
        assert status == 2 and message in text and "Traceback" not in text, text


def test_heat_is_where_the_map_is_high():
    heat = np.zeros((4, 4))
    heat[1, 2] = 1
    picture = heat_overlay(np.full((1, 4, 4), 100, np.uint8), heat, 0.0, 1.0)
    assert picture.shape == (4, 4, 3) and (picture[0, 0] == 100).all()
    assert picture[1, 2, 0] > picture[1, 2, 2] and (np.abs(picture.astype(int) - 100).sum(-1) > 0).sum() == 1


def test_classes_and_masks_of_a_corpus():
    assert find_class("good", ["good", "defect"]) == 0 and find_class("1", ["good", "defect"]) == 1
    for wrong, names in (("bad", ["good"]), ("2", ["good", "defect"]), ("x", None)):
        with pytest.raises(ValueError, match=f"there is no class '{wrong}'"):
            find_class(wrong, names)
    mask = Pictures.new("L", (8, 8))
    mask.putpixel((6, 2), 255)
    features = Features({"mask": Image(), "label": ClassLabel(names=["good", "defect"])})
    dataset = Dataset.from_dict({"mask": [None, mask], "label": [0, 1]}, features=features)
    masks = load_masks(dataset, "mask", (8, 8))
    assert masks.sum() == 1 and masks[1, 2, 6]
    zeros_and_ones = np.zeros((8, 8), np.uint8)
    zeros_and_ones[2, 6] = 1
    masked = Dataset.from_dict({"mask": [Pictures.fromarray(zeros_and_ones), mask]}, features=Features(mask=Image()))
    assert (load_masks(masked, "mask", (8, 8)) == masks[1]).all()
    assert (load_masks(dataset, "mask", (8, 8), skipped=[0]) == masks[1:]).all()
    with pytest.raises(ValueError, match="no column 'masks' of images"):
        load_masks(dataset, "masks", (8, 8))


# ---- training


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "training"))
    return importlib.import_module("train_anomaly_detector")


TINY = "--dataset digits --normal_class 3 --architecture mlp --hidden_sizes 16 --latent_size 4 --max_steps 12".split()
TINY += "--batch_size 16 --save_steps 4 --eval_steps 6 --false_alarm_rate 0.1 --calibration_fraction 0.3".split()
TINY += ["--disable_progress_bar"]


def test_a_run_calibrates_on_rows_it_did_not_train_on(script, tmp_path, monkeypatch, digits):
    seen = []
    original = script.inputs

    def remember(run, batch):
        if run.model.training:
            seen.append((batch.pixel_values * 255).round().to(torch.uint8))
        return original(run, batch)

    monkeypatch.setattr(script, "inputs", remember)
    script.main([*TINY, "--output_dir", str(tmp_path)])
    model = AutoModel.from_pretrained(tmp_path / "final")
    threes = digits["train"].images[digits["train"].labels == 3]
    trained = {image.tobytes() for image in torch.cat(seen).numpy()}
    held_out = np.stack([image for image in threes if image.tobytes() not in trained])
    assert trained <= {image.tobytes() for image in threes}
    assert model.config.num_calibration_scores == round(0.3 * len(threes)) == len(held_out)
    scores = model.detect(torch.from_numpy(held_out) / 255).scores.sort().values
    torch.testing.assert_close(scores, model.detector.calibration_scores, rtol=1e-4, atol=1e-5)
    metrics = json.loads((tmp_path / "final" / "metrics.json").read_text())
    assert {"auroc", "aupr", "f1", "false_alarm_rate"} <= set(metrics["metrics"]) and "knn_auroc" in metrics[
        "baselines"
    ]
    card = (tmp_path / "final" / "README.md").read_text()
    assert "Detect anomalies" in card and "anomalies.png" in card


def test_a_killed_run_continues_to_the_same_detector(script, tmp_path, monkeypatch):
    script.main([*TINY, "--output_dir", str(tmp_path / "whole")])

    class Killed(Exception):
        pass

    original, calls = TrainingRun.update_average, []

    def deadly(self):
        original(self)
        calls.append(1)
        if len(calls) == 7:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "update_average", deadly)
        with pytest.raises(Killed):
            script.main([*TINY, "--output_dir", str(tmp_path / "killed")])
    script.main([*TINY, "--output_dir", str(tmp_path / "killed"), "--resume_from_checkpoint", "latest"])
    one, other = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert "detector.calibration_scores" in one


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--normal_class", "33"], "there is no class '33'"),
        (["--calibration_fraction", "0"], "some rows must be left on both sides"),
        (["--false_alarm_rate", "0.001"], "cannot tell a false alarm rate of 0.001"),
        (["--mask_column", "mask"], "no column 'mask' of images"),
        (["--anomaly_score", "kl"], "has no score 'kl'"),
    ],
)
def test_what_cannot_become_a_detector_is_refused(script, flags, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        script.main([*TINY, "--max_steps", "1", *flags, "--output_dir", str(tmp_path)])


def test_a_detector_of_rows_of_a_table(script, tmp_path):
    flags = [*TINY, "--dataset", "breast_cancer", "--table", "--normal_class", "benign", "--validation_fraction", "0.3"]
    flags += ["--anomaly_score", "density", "--max_steps", "100", "--learning_rate", "0.01"]
    script.main([*flags, "--output_dir", str(tmp_path)])
    metrics = json.loads((tmp_path / "final" / "metrics.json").read_text())
    assert metrics["metrics"]["auroc"] > 0.8 and metrics["corpus"]["normal_class"] == "benign"
    assert AutoModel.from_pretrained(tmp_path / "final").detector.is_fitted
    with pytest.raises(SystemExit, match="rows of tables have no maps"):
        script.main([*flags, "--mask_column", "mask", "--output_dir", str(tmp_path / "other")])


def test_several_classes_need_one_that_is_normal(script, tmp_path):
    flags = [word for word in TINY if word not in ("--normal_class", "3")]
    with pytest.raises(SystemExit, match="are of 10 classes: say by --normal_class"):
        script.main([*flags, "--output_dir", str(tmp_path)])


def test_rows_without_a_label_are_no_anomalies(script, defects, tmp_path, caplog):
    flags = [*TINY, "--dataset", str(defects), "--normal_class", "good", "--on_bad_image", "skip"]
    flags += ["--validation_fraction", "0.4", "--mask_column", "mask", "--output_dir", str(tmp_path / "run")]
    script.main(flags)
    result = json.loads((tmp_path / "run" / "final" / "metrics.json").read_text())
    left_out = result["corpus"]["unlabelled_rows"]
    assert left_out > 0 and f"{left_out} of {result['corpus']['rows'] + left_out} validation rows" in caplog.text
    assert 0 <= result["metrics"]["pixel_auroc"] <= 1


@pytest.mark.parametrize(
    ("train", "flags", "message"),
    [
        (-1, [], "the training rows have no labels, so which class is normal is not known: .* --normal_class"),
        (0, ["--normal_class", "bad"], "no training row is of this class"),
    ],
)
def test_training_rows_must_say_what_is_normal(script, train, flags, message, tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["good", "bad"])})
    images = [Pictures.fromarray(image) for image in np.random.default_rng(0).integers(0, 255, (60, 8, 8), np.uint8)]
    for name, labels in (("train", [train] * 40), ("validation", [0, 1] * 10)):
        part = images[:40] if name == "train" else images[40:]
        rows = Dataset.from_dict({"image": part, "label": labels}, features=features)
        rows.to_parquet(tmp_path / f"{name}.parquet")
    argv = [word for word in TINY if word not in ("--normal_class", "3")]
    with pytest.raises(SystemExit, match=message):
        script.main([*argv, "--dataset", str(tmp_path), *flags, "--output_dir", str(tmp_path / "run")])


def test_the_one_class_protocol_averages_over_classes(script, tmp_path, capsys):
    one_class = importlib.import_module("one_class")
    argv = ["--classes", "1", "6", "--output_dir", str(tmp_path), *TINY]
    one_class.main(argv)
    each = [json.loads((tmp_path / name / "final" / "metrics.json").read_text()) for name in "16"]
    whole = json.loads((tmp_path / "metrics.json").read_text())
    assert each[0]["corpus"]["normal_class"] == "1" and whole["settings"]["classes"] == 2
    for group, name in (("metrics", "auroc"), ("baselines", "knn_auroc")):
        assert whole[group][name] == pytest.approx(np.mean([result[group][name] for result in each]))
    assert whole["metrics"]["auroc_6"] == each[1]["metrics"]["auroc"] and "one_class.py" in whole["command"]
    written = (tmp_path / "1" / "final" / "metrics.json").stat().st_mtime_ns
    one_class.main(argv)  # what is done is not done again
    assert (tmp_path / "1" / "final" / "metrics.json").stat().st_mtime_ns == written


# ---- code from the Hub

CHILD = """
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel

for folder in args["folders"]:
    expected = load_file(f"{folder}/expected.st")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    found = model.detect(expected["pixel_values"].clone())
    for name, value in expected.items():
        assert name == "pixel_values" or torch.equal(found[name], value), (folder, name)
processor = AutoFeatureExtractor.from_pretrained(args["table"], trust_remote_code=True)
row = processor({"a": 1.0, "b": 5.0}, return_tensors="pt")["pixel_values"]
assert row.tolist() == [[1.0, 2.0]], row
"""


def test_detectors_and_table_processors_travel_with_their_code(tmp_path):
    from hf_autoencoders.models.feature_extraction_table import TableProcessor

    folders = []
    for name, score in (("autoencoder-mlp", "latent_neighbors"), ("vqvae-ema", "feature_reconstruction")):
        model = tiny.model(name)
        model.fit_detector(tiny.images(model.config, 30, 1), tiny.images(model.config, 25, 2), score=score)
        model.save_pretrained(tmp_path / name)
        images = tiny.images(model.config, 5, 3)
        found = {key: value.contiguous() for key, value in model.detect(images).items()}
        save_file({"pixel_values": images, **found}, tmp_path / name / "expected.st")
        folders.append(str(tmp_path / name))
    table = AutoencoderModel(AutoencoderConfig(input_shape=(2,), architecture="mlp", hidden_sizes=(4,), latent_size=2))
    TableProcessor(["a", "b"], [0.0, 1.0], [1.0, 2.0]).save_pretrained(tmp_path / "table")
    table.save_pretrained(tmp_path / "table")
    arguments = {"folders": folders, "table": str(tmp_path / "table")}
    run_python(WITHOUT_PACKAGE + CHILD, tmp_path / "child", arguments=arguments)
