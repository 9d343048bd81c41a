"""Rows of tables: configuration, processor, corpora, models, training, detectors."""

import json
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoFeatureExtractor, AutoModel, pipeline

from hf_autoencoders.data.tables import load_tables
from hf_autoencoders.evaluation.anomaly import anomaly_metrics, baseline_scores
from hf_autoencoders.models.configuration_autoencoder import AutoencoderConfig
from hf_autoencoders.models.configuration_disentangled_vae import BetaVAEConfig
from hf_autoencoders.models.configuration_vae import VAEConfig
from hf_autoencoders.models.configuration_vqvae import VQVAEConfig
from hf_autoencoders.models.feature_extraction_table import TableProcessor
from hf_autoencoders.models.modeling_autoencoder import AutoencoderModel
from hf_autoencoders.models.modeling_disentangled_vae import BetaVAEModel
from hf_autoencoders.models.modeling_vae import VAEModel
from hf_autoencoders.publishing import check_folder, save_for_hub

TABLE = {"architecture": "mlp", "hidden_sizes": (16,), "latent_size": 3}


def small_table(rows=40, seed=0):
    values = np.random.default_rng(seed).normal([1.0, -20.0, 300.0], [0.1, 5.0, 40.0], size=(rows, 3))
    return dict(zip(("a", "b", "c"), values.T, strict=True))


# ---- configuration and models


def test_input_shape_says_what_an_input_is():
    config = AutoencoderConfig(input_shape=(30,), **TABLE)
    assert config.input_shape == (30,) and config.num_features == 30 and config.num_input_dims == 30
    image = AutoencoderConfig(input_shape=(3, 20, 28))
    assert image.input_shape == (3, 20, 28) and image.num_channels == 3 and image.num_features == 0
    assert AutoencoderConfig(input_shape=(1, 8, 8)).image_size == 8
    assert AutoencoderConfig.from_dict(config.to_dict()).input_shape == (30,)


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (AutoencoderConfig, {"input_shape": (30,)}, 'use architecture="mlp", not "conv"'),
        (AutoencoderConfig, {"input_shape": (3, 4), **TABLE}, "or \\(num_channels, height, width\\), got \\(3, 4\\)"),
        (AutoencoderConfig, {"input_shape": (30,), **TABLE, "reconstruction_loss": "bce"}, 'reconstruction_loss="mse"'),
        (VAEConfig, {"input_shape": (30,), **TABLE}, 'use likelihood="gaussian", not "bernoulli"'),
        (VQVAEConfig, {"input_shape": (30,)}, 'use architecture="mlp"'),
        (AutoencoderConfig, {"num_features": -1, **TABLE}, "num_features"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(config_class, fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        config_class(**fields)


@pytest.mark.parametrize("noise", ["none", "gaussian", "masking", "salt_and_pepper"])
def test_an_auto_encoder_of_rows_trains(noise):
    torch.manual_seed(0)
    model = AutoencoderModel(AutoencoderConfig(input_shape=(3,), noise=noise, noise_level=0.2, **TABLE))
    rows = torch.randn(64, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = model.eval()(rows).loss.item()
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        model(rows).loss.backward()
        optimizer.step()
    assert model.eval()(rows).loss.item() < 0.5 * before
    outputs = model(rows)
    assert outputs.reconstruction.shape == (64, 3) and outputs.latents.shape == (64, 3)


def test_masking_hides_single_numbers_of_a_row():
    from hf_autoencoders.models.modeling_autoencoder import corrupt

    hidden = corrupt(torch.ones(1000, 5), "masking", 0.3, torch.rand(1000, 5)) == 0
    assert abs(hidden.float().mean() - 0.3) < 0.03 and (hidden.sum(1) % 5 != 0).any()


@pytest.mark.parametrize(("config_class", "model_class"), [(VAEConfig, VAEModel), (BetaVAEConfig, BetaVAEModel)])
def test_the_gaussian_likelihood_of_rows_has_a_scale_for_each_column(config_class, model_class):
    model = model_class(config_class(input_shape=(4,), likelihood="gaussian", **TABLE)).eval()
    rows = torch.randn(7, 4)
    latents = model.encode(rows).latents
    scale = model.output_scale().exp()
    assert scale.shape == (4,)
    expected = torch.distributions.Normal(model.decode(latents), scale).log_prob(rows).sum(1)
    torch.testing.assert_close(model.reconstruction_log_likelihood(rows, latents), expected, rtol=1e-4, atol=1e-4)
    assert model.sample(5).shape == (5, 4) and torch.isfinite(model(rows).loss)


def test_wrong_rows_are_refused():
    model = AutoencoderModel(AutoencoderConfig(input_shape=(3,), **TABLE))
    for wrong, message in (
        (torch.rand(2, 4), r"must have shape \(batch_size, 3\)"),
        (torch.rand(2, 1, 3, 1), r"must have shape \(batch_size, 3\)"),
        (torch.ones(2, 3, dtype=torch.int64), "reads rows of tables.*got torch.int64"),
        (np.ones((2, 3)), "reads rows of tables.*got ndarray"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            model(wrong)


# ---- processor


def test_the_processor_standardises_and_undoes_it():
    table = small_table()
    processor = TableProcessor.fit(table, ["a", "b", "c"])
    values = processor(table)["pixel_values"]
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(values.std(0), 1, atol=1e-6)
    for name, column in processor.post_process(torch.from_numpy(values)).items():
        np.testing.assert_allclose(column, table[name], rtol=1e-5)
    in_order = np.stack([table[name] for name in "abc"], axis=1)
    as_rows = [dict(zip("cba", row[::-1], strict=True)) for row in in_order]
    for same in (in_order, as_rows, Dataset.from_dict(table)[:]):
        np.testing.assert_array_equal(processor(same)["pixel_values"], values)
    one = processor(as_rows[3], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(one, torch.from_numpy(values[3:4]))


def test_the_processor_refuses_what_it_cannot_know():
    processor = TableProcessor(["a", "b"], [0.0, 1.0], [1.0, 2.0])
    for wrong, message in (
        ({"a": 1.0}, "column 'b' is missing; the columns are a, b"),
        ({"a": 1.0, "b": 2.0, "d": 3.0}, "unknown column 'd'; the columns are a, b"),
        ([{"a": 1.0, "b": 2.0}, {"a": 1.0}], "column 'b' is missing"),
        ({"a": [1.0, float("nan")], "b": [1.0, 2.0]}, "row 1 has nan in column 'a'"),
        ({"a": [1.0, 2.0], "b": [float("inf"), 2.0]}, "row 0 has inf in column 'b'"),
        ({"a": [1.0, None], "b": [1.0, 2.0]}, "a value of column 'a' is missing"),
        ({"a": ["x"], "b": [1.0]}, "values of column 'a' of type <U1"),
        (np.ones((2, 3)), r"rows of 2 columns, got an array of shape \(2, 3\)"),
        (np.ones((0, 2)), r"rows of 2 columns, got an array of shape \(0, 2\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            processor(wrong)
    with pytest.raises(ValueError, match="column 'b' is the same in all 3 rows"):
        TableProcessor.fit({"a": [1.0, 2.0, 3.0], "b": [0.1, 0.1, 0.1]}, ["a", "b"])
    for wrong in ({"mean": [0.0]}, {"std": [1.0, 0.0]}, {"columns": ["a", "a"]}):
        with pytest.raises(ValueError, match="expected as many|standard deviations positive"):
            TableProcessor(**({"columns": ["a", "b"], "mean": [0.0, 0.0], "std": [1.0, 1.0]} | wrong))


# ---- corpora


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_embedded_tables(name):
    tables, processor = load_tables(name, validation_fraction=0.3)
    train, validation = tables["train"], tables["validation"]
    assert len(train) + len(validation) == {"wine": 178, "breast_cancer": 569}[name]
    assert train.values.shape[1] == len(processor.columns) == {"wine": 13, "breast_cancer": 30}[name]
    np.testing.assert_allclose(train.values.mean(0), 0, atol=1e-5)
    assert set(train.labels) == set(range(len(train.label_names)))


def test_tables_of_files(tmp_path):
    Dataset.from_dict({**small_table(), "label": ["x", "y"] * 20, "remark": ["-"] * 40}).to_csv(tmp_path / "t.csv")
    tables, processor = load_tables(tmp_path / "t.csv")
    assert processor.columns == ["a", "b", "c"] and tables["train"].label_names == ["x", "y"]
    chosen, other = load_tables(tmp_path / "t.csv", columns=["c", "a"], label_column="none")
    assert other.columns == ["c", "a"] and chosen["train"].labels is None
    again, same = load_tables(tmp_path / "t.csv", processor=other)
    assert same is other and again["train"].values.shape[1] == 2
    for wrong, message in (
        ({"columns": ["d"]}, "no column 'd'"),
        ({"columns": ["remark"]}, "of type"),
        ({"label_column": "d"}, "no column 'd' for the labels"),
        ({"validation_fraction": 1.0}, "between 0 and 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            load_tables(tmp_path / "t.csv", **wrong)
    with pytest.raises(FileNotFoundError):
        load_tables(tmp_path / "other.csv")


@pytest.mark.parametrize(("common", "rare", "names"), [("good", "bad", ["bad", "good"]), (1, 0, ["0", "1"])])
def test_a_class_may_be_missing_from_the_training_rows(common, rare, names, tmp_path):
    for name, labels in (("train", [common] * 40), ("validation", [common, rare, None, rare])):
        Dataset.from_dict({**small_table(len(labels)), "label": labels}).to_parquet(tmp_path / f"{name}.parquet")
    tables, _ = load_tables(tmp_path)
    assert tables["train"].label_names == tables["validation"].label_names == names
    assert tables["train"].labels.tolist() == [1] * 40
    assert tables["validation"].labels.tolist() == [1, 0, -1, 0]


# ---- training, saving, detecting


@pytest.mark.parametrize("script", ["train_autoencoder", "train_vae"])
def test_the_training_scripts_take_tables(script, tmp_path, monkeypatch, root):
    monkeypatch.syspath_prepend(str(root / "training"))
    sys.modules.pop(script, None)
    module = __import__(script)
    argv = ["--dataset", "wine", "--table", "--architecture", "mlp", "--hidden_sizes", "16", "--latent_size", "3"]
    argv += ["--max_steps", "60", "--batch_size", "32", "--learning_rate", "0.01", "--disable_progress_bar"]
    argv += ["--likelihood", "gaussian"] if script == "train_vae" else []
    module.main([*argv, "--validation_fraction", "0.3", "--output_dir", str(tmp_path / "run")])
    folder = tmp_path / "run" / "final"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["metrics"]["mse"] < 0.8 * metrics["baselines"]["mean_mse"]
    check_folder(folder)
    assert "rows of a table" in (folder / "README.md").read_text()
    processor, model = AutoFeatureExtractor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    assert type(processor) is TableProcessor and len(processor.columns) == model.config.num_features == 13
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoFeatureExtractor"] == "feature_extraction_table.TableProcessor"
    assert "AutoImageProcessor" not in config["auto_map"]
    with pytest.raises(SystemExit, match='architecture="mlp"'):
        module.main(["--dataset", "wine", "--table", "--max_steps", "1", "--output_dir", str(tmp_path / "other")])


def test_a_detector_of_tables_finds_tumours(tmp_path):
    """Trained on benign ones alone; malignant ones are the anomalies. Through the folder and the pipeline."""
    tables, processor = load_tables("breast_cancer", validation_fraction=0.3)
    train, validation = tables["train"], tables["validation"]
    benign = train.values[train.labels == train.label_names.index("benign")]
    fitted, calibration = benign[:200], benign[200:]
    torch.manual_seed(0)
    model = AutoencoderModel(
        AutoencoderConfig(input_shape=(30,), architecture="mlp", hidden_sizes=(32,), latent_size=8)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rows = torch.from_numpy(fitted)
    for _ in range(400):
        optimizer.zero_grad()
        model(rows).loss.backward()
        optimizer.step()
    model.eval().fit_detector(fitted, calibration, score="density", false_alarm_rate=0.05)
    found = model.detect(torch.from_numpy(validation.values))
    malignant = validation.labels == train.label_names.index("malignant")
    metrics = anomaly_metrics(found.scores.numpy(), malignant, found.is_anomaly.numpy())
    assert metrics["auroc"] > 0.9 and metrics["false_alarm_rate"] < 0.15 and found.maps is None
    assert min(len(s) for s in baseline_scores(fitted, validation.values).values()) == len(validation)

    save_for_hub(model, tmp_path, processor=processor)
    assert "Detect anomalies" in (tmp_path / "README.md").read_text()
    detect = pipeline("anomaly-detection", model=str(tmp_path))
    row = {name: column[5] for name, column in processor.post_process(validation.values).items()}
    answer = detect(row)
    assert set(answer) == {"score", "p_value", "is_anomaly"}
    assert answer["score"] == pytest.approx(found.scores[5].item(), rel=1e-3)
    in_order = [row[name] for name in processor.columns]
    assert detect(in_order) == detect(tuple(in_order)) == answer
    assert detect([in_order, in_order]) == [answer, answer] == detect([row, row])
    with pytest.raises(ValueError, match="unknown column 'age'"):
        detect(row | {"age": 3.0})
