"""Folders that are ready for the Hub, and their cards."""

import json
import re
import shutil

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

from hf_autoencoders import VARIANTS, AutoencoderForImageClassification, VQVAEModel, publishing
from hf_autoencoders.models import portable
from hf_autoencoders.publishing import (
    IncompleteFolderError,
    check_folder,
    published_files,
    push_folder,
    render_card,
    save_for_hub,
    write_card,
)

METRICS = {
    "model_type": "hfae_vqvae",
    "name": "vqvae",
    "corpus": {"name": "digits", "split": "validation", "rows": 180},
    "metrics": {"mse": 0.0123456, "psnr": 19.1, "code_usage": 1.0, "code_usage_0": 1.0, "something_new": 3.5},
    "baselines": {"pca_equal_bits_mse": 0.0234567},
    "seed": 7,
    "command": "hf-autoencoders evaluate runs/vqvae digits",
    "machine": "a quiet one, 2 cores",
    "date": "2025-01-31T10:00:00+00:00",
}
RUN = {
    "command": "accelerate launch training/train_vqvae.py --dataset digits",
    "arguments": {"dataset": "digits", "seed": 5, "learning_rate": 0.001, "output_dir": "elsewhere/private"},
    "machine": "a loud one",
    "versions": {"torch": "2.13.0"},
}


def tiny_model(variant="hfae_vqvae", **options):
    variant = VARIANTS[variant]
    return variant.model_class()(variant.config_class()(**{"image_size": 12, "hidden_sizes": (8, 8), **options})).eval()


IMAGE_CLASSES = [
    cls
    for row in VARIANTS.values()
    for cls in (row.model_class(), *row.head_classes().values())
    if row.modality == "image"
]
TEXT = "seq2seq2seq-pointer"
SPEECH = ("voice_conversion-none", "speech_vqvae-ema")


@pytest.fixture
def folder(tmp_path):
    """A complete folder of a VQ-VAE with numbers."""
    return save_for_hub(tiny_model(), tmp_path / "vqvae-digits", metrics=METRICS, run=RUN)


def problems(folder) -> list[str]:
    with pytest.raises(IncompleteFolderError) as error:
        check_folder(folder)
    return [line[2:] for line in str(error.value).splitlines() if line.startswith("- ")]


# -- saving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", IMAGE_CLASSES, ids=lambda cls: cls.__name__)
def test_save_pretrained_is_all_it_takes(tmp_path, model_class):
    """Code, full `auto_map`, processor and card, for models and heads; and nothing lingers on the classes."""
    model = model_class(model_class.config_class(image_size=[11, 14], hidden_sizes=(8, 8), num_channels=3))
    model.save_pretrained(tmp_path)
    check_folder(tmp_path)
    assert set(published_files(tmp_path)) == {path.name for path in tmp_path.iterdir()}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == VARIANTS[config["model_type"]].auto_map
    pixel_values = AutoImageProcessor.from_pretrained(tmp_path)(Image.new("RGB", (9, 9)), return_tensors="pt")[
        "pixel_values"
    ]
    assert pixel_values.shape == (1, 3, *((9, 9) if model.config.any_image_size else (11, 14)))
    assert model_class._auto_class is None
    loaded = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert model.config.to_dict() == {**loaded, "_name_or_path": ""}


def test_the_registry_and_the_files_that_travel_agree():
    for row in VARIANTS.values():
        processor = {row.processor_auto_class: row.processor} if row.processor else {}
        for model_class in (row.model_class(), *row.head_classes().values()):
            assert portable.auto_map(model_class) | processor == row.auto_map


def test_a_model_of_the_hub_saved_by_local_classes_takes_its_code_along(folder, tmp_path):
    """transformers would write the `auto_map` that it read, and no file."""
    model = AutoModel.from_pretrained(folder)
    assert type(model) is VQVAEModel and "AutoModel" in model.config.auto_map
    model.save_pretrained(tmp_path / "again")
    check_folder(tmp_path / "again")


def test_configuration_and_processor_alone_take_their_code_along(folder, tmp_path):
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path / "config")
    assert (tmp_path / "config" / "configuration_vqvae.py").is_file()
    AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "processor")
    saved = json.loads((tmp_path / "processor" / "preprocessor_config.json").read_text())
    assert saved["auto_map"] == {"AutoImageProcessor": "image_processing_autoencoder.AutoencoderImageProcessor"}
    assert (tmp_path / "processor" / "image_processing_autoencoder.py").is_file()


def test_a_users_own_class_is_saved_without_code(tmp_path):
    """Its file may need others that cannot travel: transformers would fail on it."""

    class Mine(VQVAEModel):
        pass

    model = Mine(tiny_model().config)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("modeling_*")) and not (tmp_path / "README.md").exists()
    assert "test_publishing.py" not in {path.name for path in tmp_path.iterdir()}
    assert torch.equal(next(Mine.from_pretrained(tmp_path).parameters()), next(model.parameters()))


def test_other_processes_write_nothing(tmp_path):
    tiny_model().save_pretrained(tmp_path / "rank-1", is_main_process=False)
    assert not (tmp_path / "rank-1").exists() or not list((tmp_path / "rank-1").iterdir())


def test_processor_and_card_that_are_there_stay(tmp_path):
    row = VARIANTS["hfae_vqvae"]
    row.processor_class()(size=12, num_channels=1, resample=0).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("Mine.")
    tiny_model().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["resample"] == 0
    assert (tmp_path / "README.md").read_text() == "Mine."


def test_a_text_model_and_its_tokenizer_are_saved_side_by_side(tmp_path):
    model = tiny.model(TEXT)
    model.save_pretrained(tmp_path)
    assert problems(tmp_path) == ["tokenizer.json is missing", "tokenizer_config.json is missing"]
    check_folder(tmp_path, processor=False)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == VARIANTS["hfae_seq2seq2seq"].auto_map
    assert not (tmp_path / "preprocessor_config.json").exists()
    assert 'tokenizer.push_to_hub("' in (tmp_path / "README.md").read_text()
    tiny.tokenizer().save_pretrained(tmp_path)
    check_folder(tmp_path)
    assert set(published_files(tmp_path)) == {path.name for path in tmp_path.iterdir()}
    assert {"generation_config.json", "tokenizer.json", "pointer_t5.py"} <= set(published_files(tmp_path))


def test_save_for_hub_takes_or_keeps_a_tokenizer(tmp_path):
    model = tiny.model(TEXT)
    with pytest.raises(IncompleteFolderError, match=r"tokenizer.json is missing[\s\S]*tokenizer.save_pretrained"):
        save_for_hub(model, tmp_path / "summarizer")
    assert not list((tmp_path / "summarizer").iterdir())
    folder = save_for_hub(model, tmp_path / "summarizer", processor=tiny.tokenizer())
    assert "tokenizer.push_to_hub" not in (folder / "README.md").read_text()
    before = (folder / "tokenizer.json").read_bytes()
    (folder / "model.safetensors").unlink()
    save_for_hub(tiny.model("seq2seq2seq-wgan"), folder)
    check_folder(folder)
    assert (folder / "tokenizer.json").read_bytes() == before
    sentence = tiny.SENTENCES[0]
    assert AutoTokenizer.from_pretrained(folder)(sentence).input_ids == tiny.tokenizer()(sentence).input_ids


@pytest.mark.parametrize("name", SPEECH)
def test_a_speech_model_and_its_feature_extractor_are_saved_side_by_side(tmp_path, name):
    """Its statistics are learned, so no other may stand for it; with the package, nobody is asked about code."""
    model = tiny.model(name)
    variant, extractor = VARIANTS[model.config.model_type], tiny.feature_extractor(model.config)
    model.save_pretrained(tmp_path)
    assert problems(tmp_path)[0] == "preprocessor_config.json is missing"
    check_folder(tmp_path, processor=False)
    assert 'feature_extractor.push_to_hub("' in (tmp_path / "README.md").read_text()
    extractor.save_pretrained(tmp_path)
    check_folder(tmp_path)
    assert set(published_files(tmp_path)) == {path.name for path in tmp_path.iterdir()}
    assert "feature_extraction_speech.py" in published_files(tmp_path)
    for auto_class in (AutoFeatureExtractor, AutoProcessor):
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is variant.processor_class() and loaded.to_dict() == extractor.to_dict()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == variant.auto_map


def test_save_for_hub_takes_or_keeps_a_feature_extractor(tmp_path):
    model = tiny.model(SPEECH[0])
    with pytest.raises(
        IncompleteFolderError, match=r"preprocessor_config.json is missing[\s\S]*feature_extractor.save"
    ):
        save_for_hub(model, tmp_path / "voices")
    assert not list((tmp_path / "voices").iterdir())
    extractor = tiny.feature_extractor(model.config)
    kinds = ("source", "target", "converted")
    sounds = [tmp_path / f"example-{number}-{name}.wav" for number in (1, 2, 10) for name in kinds]
    for sound in sounds:
        sound.write_bytes(b"RIFF")
    Image.new("L", (4, 4)).save(tmp_path / "conversions.png")
    pictures = [*sounds, tmp_path / "conversions.png"]
    folder = save_for_hub(model, tmp_path / "voices", processor=extractor, pictures=pictures)
    before = (folder / "preprocessor_config.json").read_bytes()
    (folder / "model.safetensors").unlink()
    save_for_hub(tiny.model("voice_conversion-vq"), folder)
    check_folder(folder)
    assert (folder / "preprocessor_config.json").read_bytes() == before
    assert {path.name for path in pictures} <= set(published_files(folder))
    text = (folder / "README.md").read_text()
    assert "feature_extractor.push_to_hub" not in text
    assert "- [example 1 converted](example-1-converted.wav)" in text and "](conversions.png)" in text
    places = [text.index(f"]({sound.name})") for sound in sounds]
    assert places == sorted(places), "by number, and what goes in before what comes out"
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == VARIANTS["hfae_voice_conversion"].auto_map


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_mel_bins", 7, "feature_size is 6, but num_mel_bins of the model 7"),
        ("sampling_rate", 16000, "sampling_rate is 8000, but sampling_rate of the model 16000"),
        ("hop_length", 80, "hop_length is 100, but hop_length of the model 80"),
    ],
)
def test_a_feature_extractor_of_other_features_is_refused(tmp_path, field, value, message):
    extractor = tiny.feature_extractor(tiny.config(SPEECH[0]))
    with pytest.raises(IncompleteFolderError, match=f"preprocessor_config.json: {message}"):
        save_for_hub(tiny.model(SPEECH[0], **{field: value}), tmp_path, processor=extractor)


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path):
    other = {part: {**tiny.COPYING, "vocab_size": 319} for part in ("summarizer", "reconstructor")}
    message = "tokenizer.json: the tokenizer has 320 tokens, but the model 319: they do not belong together"
    with pytest.raises(IncompleteFolderError, match=message):
        save_for_hub(tiny.model(TEXT, **other), tmp_path, processor=tiny.tokenizer())
    assert publishing.vocabulary_problem(32100, 32128) == ""  # T5's own
    assert publishing.vocabulary_problem(320, 448) != ""
    tiny.model(TEXT).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    assert "tokenizer.json is no tokenizer" in problems(tmp_path)[0]


def test_save_for_hub(folder, tmp_path):
    check_folder(folder)
    assert json.loads((folder / "metrics.json").read_text()) == METRICS
    run = json.loads((folder / "run.json").read_text())
    assert run == {**RUN, "arguments": {"dataset": "digits", "seed": 5, "learning_rate": 0.001}}  # no path of ours
    assert [path.name for path in tmp_path.iterdir()] == ["vqvae-digits"]
    assert (folder / "README.md").read_text().count("# vqvae-digits: ") == 1
    assert not any(path.name.startswith(".") for path in folder.iterdir())


def test_saving_again_replaces_what_is_ours_and_nothing_else(folder):
    before = (folder / "model.safetensors").read_bytes()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.bin").write_bytes(b"x")
    Image.new("L", (4, 4)).save(folder / "samples.png")
    model = tiny_model(codebook_size=100)
    save_for_hub(model, folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file() and not (folder / "model.safetensors").exists()
    check_folder(folder)
    save_for_hub(model, folder)
    assert not list(folder.glob("model*-of-*")) and not (folder / "model.safetensors.index.json").exists()
    assert (folder / "model.safetensors").read_bytes() != before
    assert (folder / "checkpoints" / "optimizer.bin").is_file()
    files = published_files(folder)
    assert {"samples.png", "metrics.json", "run.json"} <= set(files)  # kept, as nothing newer was given
    assert not any(name.endswith((".bin", ".pkl")) or "/" in name for name in files)
    assert "![Samples from the prior.](samples.png)" in (folder / "README.md").read_text()


@pytest.mark.parametrize("stage", ["weights", "card", "check"])
def test_a_save_that_fails_leaves_the_folder_as_it_was(folder, monkeypatch, stage):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    targets = {
        "weights": "transformers.modeling_utils.safe_save_file",
        "card": "hf_autoencoders.publishing.render_card",
    }
    monkeypatch.setattr(targets.get(stage, "hf_autoencoders.publishing.check_folder"), fail)
    with pytest.raises(OSError, match="No space left"):
        save_for_hub(tiny_model(codebook_size=100), folder, metrics={"metrics": {"mse": 1.0}})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"metrics": {"mse": float("nan")}}, "finite number for mse, got nan"),
        ({"metrics": {"mse": "low"}}, "finite number for mse, got 'low'"),
        ({"metrics": {}, "baselines": {"pca": float("inf")}}, "finite number for pca"),
        (
            {"metrics": {"mse": 1.0}, "model_type": "hfae_vae"},
            'measured on a "hfae_vae", but the model is a "hfae_vqvae"',
        ),
        ({"mse": 0.1}, 'expected {"metrics": {name: number}'),
        ([1], 'expected {"metrics": {name: number}'),
        ({"metrics": {"mse": 1.0}, "table": [{"name": "model"}]}, 'expected rows of summary_table under "table"'),
        ("{", "is not JSON"),
    ],
)
def test_wrong_metrics_are_refused(tmp_path, metrics, message):
    if not isinstance(metrics, dict):
        text = metrics if isinstance(metrics, str) else json.dumps(metrics)
        metrics = tmp_path / "metrics.json"
        metrics.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        save_for_hub(tiny_model(), tmp_path / "model", metrics=metrics)
    assert not list((tmp_path / "model").iterdir())


def test_missing_metrics_and_foreign_models_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_for_hub(tiny_model(), tmp_path / "model", metrics=tmp_path / "nowhere.json")
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8)
    with pytest.raises(ValueError, match="expected a model of this package .*hfae_vae.* got model_type 'vit'"):
        save_for_hub(ViTModel(config), tmp_path / "model")


# -- checking ----------------------------------------------------------------------------------------------------------


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


SPOILED = {
    "no configuration": (lambda d: (d / "config.json").unlink(), "config.json is missing"),
    "no JSON": (lambda d: (d / "config.json").write_text("{"), "config.json is not JSON"),
    "another model": (lambda d: edit_json(d / "config.json", model_type="vit"), "model_type 'vit', expected one of"),
    "no auto_map": (lambda d: edit_json(d / "config.json", auto_map={}), "auto_map in config.json has no AutoModel"),
    "no code": (lambda d: (d / "modeling_vqvae.py").unlink(), "there is no file modeling_vqvae.py"),
    "no sibling": (lambda d: (d / "layers.py").unlink(), "layers.py is imported by another file but missing"),
    "no class": (lambda d: (d / "modeling_vqvae.py").write_text("x = 1"), "modeling_vqvae.py has no such class"),
    "needs us": (
        lambda d: (d / "layers.py").write_text("from hf_autoencoders.models import base"),
        "layers.py imports hf_autoencoders",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors is missing or damaged"),
    "short weights": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-1]),
        "model.safetensors is missing or damaged",
    ),
    "pickled weights": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        "pickled weights are not published",
    ),
    "no processor": (lambda d: (d / "preprocessor_config.json").unlink(), "preprocessor_config.json is missing"),
    "no card": (lambda d: (d / "README.md").unlink(), "README.md (the model card) is missing"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_incomplete_folders_are_refused_before_anything_is_sent(folder, case, monkeypatch):
    spoil, message = SPOILED[case]
    spoil(folder)
    assert any(message in problem for problem in problems(folder))
    monkeypatch.setattr(publishing, "HfApi", None)  # calling it would raise TypeError
    with pytest.raises(IncompleteFolderError, match="not a complete model folder"):
        push_folder(folder, "alice/model")


def test_all_problems_are_listed_at_once(folder):
    (folder / "README.md").unlink()
    (folder / "outputs.py").unlink()
    assert len(problems(folder)) == 2


def test_a_folder_of_something_else_is_refused(tmp_path):
    assert "config.json is missing" in problems(tmp_path)


# -- cards -------------------------------------------------------------------------------------------------------------


def test_card_says_what_was_measured(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert {"hf_autoencoders", "vqvae"} <= set(card.data.tags)
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        name: value for name, value in METRICS["metrics"].items() if name != "code_usage_0"
    }
    assert (results["mse"].dataset_type, results["mse"].dataset_split) == ("digits", "validation")
    for text in ("| 0.01235 |", "| 0.02346 |", "`something_new`", "seed 7", METRICS["command"], METRICS["machine"]):
        assert text in card.text, text
    for text in (RUN["command"], "| `learning_rate` | 0.001 |", "a loud one", "torch 2.13.0"):
        assert text in card.text, text
    assert "elsewhere/private" not in card.text


def test_card_leaves_out_what_was_not_measured(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None and card.data.datasets is None
    assert "Not measured" in card.text and "was not recorded" in card.text
    assert "|---|" not in card.text


@pytest.mark.parametrize("name", tiny.NAMES)
def test_cards_hold_for_every_option(tmp_path, name):
    """Every name in the template is known, nothing is left unfilled, every question of a card has its section."""
    tiny.model(name).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert not re.search(r"\{\{|\}\}|\{%|%\}|\{#|None|\bnan\b|More Information|Undefined", text)
    sections = ["What it is", "Use", "Training", "Evaluation", "Limits", "Bias", "Citation"]
    if name in tiny.SPEECH_NAMES:
        sections.insert(-1, "Ethics")
        assert "consent" in text
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == sections
    assert "\n\n\n\n" not in text


def test_numbers_of_somebody_else_do_not_stop_a_save(tmp_path):
    (tmp_path / "metrics.json").write_text('{"epoch": 3}')
    tiny_model().save_pretrained(tmp_path)
    assert "Not measured" in (tmp_path / "README.md").read_text()


def snippets(card) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


@pytest.mark.parametrize("model_class", IMAGE_CLASSES, ids=lambda cls: cls.__name__)
def test_code_in_cards_runs(tmp_path, monkeypatch, model_class, capsys):
    model = model_class(model_class.config_class(image_size=12, hidden_sizes=(8, 8)))
    if hasattr(model, "update_tables"):
        model.update_tables()
    model.save_pretrained(tmp_path / "model")
    Image.new("RGB", (30, 20), "white").save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    (code,) = snippets(str(render_card(tmp_path / "model", str(tmp_path / "model"))))
    names = {}
    exec(compile(code, "card", "exec"), names)
    if model_class is AutoencoderForImageClassification:
        assert capsys.readouterr().out.startswith("LABEL_")
    elif model.config.any_image_size:
        assert names["pixels"].shape == (1, 20, 30)
    else:
        assert names["images"][0].size == (12, 12)


def test_code_in_cards_of_text_models_runs(tmp_path, monkeypatch):
    folder = save_for_hub(tiny.model(TEXT), tmp_path / "model", processor=tiny.tokenizer())
    (code,) = snippets(str(render_card(folder, str(folder))))
    names = {}
    exec(compile(code, "card", "exec"), names)
    assert len(names["summaries"]) == len(names["restored"]) == 1 and names["model"].config.summary_words == 4


@pytest.mark.parametrize("name", SPEECH)
def test_code_in_cards_of_speech_models_runs(tmp_path, monkeypatch, name):
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    model = tiny.model(name)
    folder = save_for_hub(model, tmp_path / "model", processor=tiny.feature_extractor(model.config))
    monkeypatch.chdir(tmp_path)
    for file, rate in (("source.wav", 16000), ("target.wav", 8000)):
        soundfile.write(file, torch.linspace(0, 500, 4000).sin().numpy() / 2, rate)
    (code,) = snippets(str(render_card(folder, str(folder))))
    names = {}
    exec(compile(code, "card", "exec"), names)
    written, rate = soundfile.read("converted.wav" if name == SPEECH[0] else "decoded.wav")
    assert rate == 8000 and 1500 < len(written) <= 2200


def test_card_of_a_voice_converter_shows_it_beside_its_baselines(tmp_path):
    row = {"name": "real", "label": "real clips", "target": 0.99, "source": None, "closer": None, "word": 0.98}
    converted = {"name": "converted", "label": "converted", "target": 0.9123, "source": 0.05, "closer": None}
    table = [{**row, "both": 0.97}, {**converted, "word": 0.9, "both": 0.85}]
    metrics = {
        "model_type": "hfae_voice_conversion",
        "metrics": {"target_speaker": 0.9123, "reconstruction_error": 0.25, "speaker_probe_content": 0.4},
        "baselines": {"real_target": 0.99, "speaker_probe_mel": 0.95},
        "table": table,
        "corpus": {"name": "digits", "split": "validation", "rows": 300, "languages": ["en"]},
        "settings": {"num_target_clips": 3},
    }
    model = tiny.model(SPEECH[0])
    save_for_hub(model, tmp_path, processor=tiny.feature_extractor(model.config), metrics=metrics)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "audio-to-audio" and card.data.language == ["en"]
    assert {"audio", "speech", "voice-conversion", "hfae_voice_conversion"} <= set(card.data.tags)
    for line in (
        r"\| converted +\| +91.2% \| +5.0% \| +90.0% \| +85.0% \|",
        r"\| Absolute error of the log-mels, mean \| 0.25 \|",
        r"\| Probe for the speaker on the log-mels, accuracy \(baseline\) \| 0.95 \|",
        r"Measured on: corpus `digits`, validation split, 300 clips.",
        r"The voice to convert to was taken from 3 clips of the target, averaged.",
    ):
        assert re.search(f"^{line}$", card.text, re.MULTILINE), line
    assert "real_target" not in card.text


def test_card_of_speech_codes_shows_them_beside_k_means(tmp_path):
    row = {"name": "model", "label": "codes of the model", "phone_purity": 0.7, "phone_nmi": 0.5, "speaker_nmi": 0.02}
    table = [row, {**row, "name": "kmeans", "label": "k-means on log-mels", "speaker_nmi": 0.1}]
    metrics = {"metrics": {"phone_nmi": 0.5, "bits_per_second": 560.0}, "table": table}
    model = tiny.model(SPEECH[1])
    save_for_hub(model, tmp_path, processor=tiny.feature_extractor(model.config), metrics=metrics)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "audio-to-audio" and "| Bits per second | 560 |" in card.text
    assert re.search(r"^\| k-means on log-mels +\| +70.0% \| +0.500 \| +0.100 \|$", card.text, re.MULTILINE)


def test_card_of_a_summarizer_shows_it_beside_its_baselines(tmp_path):
    row = {"name": "model", "label": "model", "rouge1": 31.84, "rouge2": 12.5, "rougeL": 30.7, "words": 6.5}
    row |= {"copy_rate": 0.93, "repetition_rate": 0.01, "perplexity": 45.2}
    lead = row | {"name": "lead", "label": "first 6 words", "rouge1": 26.7, "perplexity": None}
    metrics = {
        "model_type": "hfae_seq2seq2seq",
        "metrics": {"rouge1": 31.84, "words": 6.5, "length_deviation": 0.25},
        "baselines": {"lead_rouge1": 26.7},
        "table": [row, lead],
        "examples": [{"text": "a long\ntext | of words", "summary": "long text", "reconstruction": "a long```"}],
        "corpus": {"name": "docstrings", "split": "validation", "rows": 1200},
    }
    run = {"command": "train --stage autoencode", "arguments": {"stage": "autoencode", "texts": "docstrings"}}
    save_for_hub(tiny.model(TEXT), tmp_path, processor=tiny.tokenizer(), metrics=metrics, run=run)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "summarization" and card.data.library_name == "transformers"
    assert {result.task_type for result in card.data.eval_results} == {"summarization"}
    for line in (
        r"\| model +\| +31.8 \| +12.5 \| +30.7 \| +6.5 \| +93% \| +1.0% \| +45 \|",
        r"\| first 6 words +\| +26.7 .*",
        r"\| Words more or fewer than asked for, mean \| 0.25 \|",
        r"text            a long text \| of words",
        r"reconstruction  a long...",
        r"Measured on: corpus `docstrings`, validation split, 1,200 texts.",
        r"\| `stage` \| autoencode \|",
    ):
        assert re.search(f"^{line}$", card.text, re.MULTILINE), line
    assert "ROUGE-1, F1 x 100" not in card.text and "lead_rouge1" not in card.text  # the table has them


def test_card_of_a_disentangling_vae_names_its_measures(tmp_path):
    metrics = {
        "metrics": {"mig": 0.25, "mig_pos_x": 0.75, "num_active_dims": 4.0},
        "baselines": {"pca_mig": 0.0123, "ica_factor_vae_score": 0.5, "pca_same_size_mse": 0.02, "kmeans_oddity": 1.5},
        "corpus": {"name": "sprites", "split": "validation"},
    }
    folder = save_for_hub(tiny_model("hfae_beta_tcvae"), tmp_path / "model", metrics=metrics)
    card = ModelCard.load(folder / "README.md")
    for line in (
        "| MIG (mutual information gap) | 0.25 |",
        "| MIG of the factor `pos_x` | 0.75 |",
        "| Latent dimensions whose mean varies (variance above 0.05) | 4 |",
        "| PCA: MIG (mutual information gap) (baseline) | 0.0123 |",
        "| ICA: FactorVAE score (baseline) | 0.5 |",
        "| PCA with as many components: mean squared error (baseline) | 0.02 |",
        "| `kmeans_oddity` (baseline) | 1.5 |",
    ):
        assert f"{line}\n" in card.text, line
    names = {result.metric_type: result.metric_name for result in card.data.eval_results}
    assert names["mig_pos_x"] == "MIG of the factor pos_x" and set(names) == set(metrics["metrics"])


CODES_WITH_A_MEANING = [
    row.model_type for row in VARIANTS.values() if row.family.startswith(("disentangled", "discrete"))
]


@pytest.mark.parametrize("model_type", CODES_WITH_A_MEANING)
def test_cards_say_what_the_latents_mean(tmp_path, model_type):
    """With numbers and a report: the report is in its section, its pictures are there, and all of it is published."""
    from hf_autoencoders.data import ImageArrays
    from hf_autoencoders.evaluation.latent_report import report_beside

    assert len(CODES_WITH_A_MEANING) == 7 and publishing.shows_latent_report(VARIANTS[model_type])
    torch.manual_seed(0)
    model = tiny_model(model_type)
    kind = torch.arange(90).numpy() % 3
    images = (kind[:, None, None, None] * 100 + torch.zeros(90, 1, 12, 12).numpy()).astype("uint8")
    arrays = ImageArrays(images, extra={"kind": kind})
    report_beside(model, arrays, tmp_path, num_permutations=199, num_images=2, corpus={"name": "kinds"})
    metrics = {"metrics": {"mse": 0.5, "mig": 0.1}, "baselines": {"pca_mig": 0.2}}
    save_for_hub(model, tmp_path, metrics=metrics)
    card = (tmp_path / "README.md").read_text()
    _, _, section = card.partition("### What the latents mean")
    section, _, _ = section.partition("\n## Training")
    assert (tmp_path / "latent_report.md").read_text().strip() in section
    assert "hf-autoencoders latent-report" in section and "Mutual information above chance on 90 images" in section
    assert not re.search(r"\{\{|\}\}|\{%|None|\bnan\b|Undefined|^#{1,3} ", section, re.MULTILINE)
    assert len(snippets(card)) == 1 and "\n\n\n\n" not in card
    links = re.findall(r"!\[[^]]*\]\((latent_report/[^)]*)\)", section)
    files = set(published_files(tmp_path))
    assert set(links) <= files and {"latent_report.md", "latent_report/index.html"} <= files
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == files
    page = (tmp_path / "latent_report" / "index.html").read_text()
    assert {f"latent_report/{name}" for name in re.findall(r'<img src="([^"]*)"', page)} <= files


def test_only_the_page_and_the_pictures_of_a_report_are_published(folder):
    (folder / "latent_report").mkdir()
    for name in ("index.html", "bit_0.png", "latent_report.json", "notes.txt", "weights.bin"):
        (folder / "latent_report" / name).write_text("x")
    published = {name for name in published_files(folder) if "/" in name}
    assert published == {f"latent_report/{name}" for name in ("index.html", "bit_0.png", "latent_report.json")}
    assert not publishing.shows_latent_report(VARIANTS["hfae_vqvae"])


def test_card_of_a_classifier(tmp_path):
    config = AutoencoderForImageClassification.config_class(image_size=12, hidden_sizes=(8, 8), num_labels=7)
    AutoencoderForImageClassification(config).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert "7 classes" in card.text and "AutoModelForImageClassification.from_pretrained(model_id" in card.text


def test_card_is_written_again_until_somebody_edits_it(folder):
    write_card(folder, model_id="alice/first", tags=["mnist"])
    assert 'model_id = "alice/first"' in (folder / "README.md").read_text()
    write_card(folder)  # keeps what it was told before
    text = (folder / "README.md").read_text()
    assert 'model_id = "alice/first"' in text and "- mnist" in text
    edited = text.replace(publishing.CARD_MARK, "").replace("## Limits", "## Limits, in my words")
    (folder / "README.md").write_text(edited)
    write_card(folder, model_id="alice/second")
    save_for_hub(tiny_model(), folder)
    assert (folder / "README.md").read_text() == edited


def test_corpus_of_the_hub_is_linked_and_a_local_one_is_not(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    for name, revision, linked in (
        ("ylecun/mnist", "main", True),
        ("data/mnist", None, False),  # no such folder here, but there may have been one where the model was trained
        ("data/mine", "main", False),  # a folder, which has no revisions
        ("/data/mnist", "main", False),
    ):
        corpus = {"name": name, "split": "test", "config_name": "plain", "revision": revision}
        edit_json(folder / "metrics.json", corpus=corpus)
        card = render_card(folder, "model")
        assert card.data.datasets == ([name] if linked else None)
        assert {result.dataset_type for result in card.data.eval_results} == {name if linked else name.split("/")[-1]}
        assert f"corpus `{name}`, configuration `plain`, test split" in card.text


def test_card_names_the_bound_that_was_trained(tmp_path):
    for samples, bound in ((1, "negative evidence lower bound in nats"), (5, "of 5 posterior samples, in nats")):
        folder = save_for_hub(tiny_model("hfae_vae", num_posterior_samples=samples), tmp_path / str(samples))
        text = (folder / "README.md").read_text()
        assert bound in text and ("burda2016importance" in text) == (samples > 1)


def test_templates_come_with_the_installed_package(root, tmp_path, monkeypatch):
    """In the wheel they lie within the package; the source tree has them beside it."""
    assert '"model_cards" = "hf_autoencoders/model_cards"' in (root / "pyproject.toml").read_text()
    row = VARIANTS["hfae_vae"]
    monkeypatch.setattr(publishing, "PACKAGE_FOLDER", tmp_path / "hf_autoencoders")
    with pytest.raises(FileNotFoundError, match="is the installation complete"):
        publishing.card_template(row)
    shutil.copytree(root / "model_cards", tmp_path / "hf_autoencoders" / "model_cards")
    assert publishing.card_template(row) == (root / "model_cards" / "vae.md").read_text()
