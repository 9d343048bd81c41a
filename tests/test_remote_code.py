"""Every variant, saved, loads and trains in a process that has never heard of this package."""

import json

import pytest
import tiny
import torch
from processes import WITHOUT_PACKAGE, run_python
from safetensors.torch import load_file, save_file

from hf_autoencoders import VARIANTS, publishing

CHILD = """
import torch
INPUTS = ("pixel_values", "augmented_pixel_values", "input_features", "speaker_features", "input_ids", "attention_mask")
INPUTS += ("latents", "codes", "classes")  # of priors, if there is no image
from pathlib import Path
from PIL import Image
from safetensors.torch import load_file
import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer
from transformers import pipeline

def check(folder, auto_class):
    # Copied to where new tensors are: kernels of some processors round otherwise in the middle of a file in memory.
    expected = {name: tensor.clone() for name, tensor in load_file(f"{folder}/expected.st").items()}
    names = INPUTS if "log_prob" in expected else INPUTS[:-3]
    inputs = {name: expected.pop(name) for name in list(expected) if name in names}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    with torch.no_grad():
        if "input_ids" in inputs:
            outputs = {"summary_ids": model.generate(**inputs, num_words=3, num_beams=2)}
            outputs["text_ids"] = model.reconstruct(outputs["summary_ids"])
        elif "input_features" in inputs:
            outputs = model(**inputs, return_loss=False)
            outputs["converted"] = model.convert(**inputs)
        else:
            outputs = model(**inputs, return_loss=False) if auto_class == "AutoModel" else model(**inputs)
    for name, value in expected.items():
        assert torch.equal(outputs[name], value), (folder, name)
    return model, inputs

for folder, auto_class in args["models"]:
    model, inputs = check(folder, auto_class)
    config = model.config
    if "input_ids" in inputs:
        check(folder, "AutoModel")
        processor_class = AutoTokenizer
        processor = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        ids = processor(args["sentence"], return_tensors="pt").input_ids
        assert ids.tolist() == [args["sentence_ids"]]
        assert processor.decode(ids[0], skip_special_tokens=True) == args["sentence"]
    elif "input_features" in inputs:
        check(folder, "AutoModel")
        processor_class = AutoFeatureExtractor
        processor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
        assert type(processor).__module__.startswith("transformers_modules.")
        assert type(AutoProcessor.from_pretrained(folder, trust_remote_code=True)).__name__ == type(processor).__name__
        waveform = torch.tensor(args["waveform"])
        processed = processor(waveform, sampling_rate=config.sampling_rate, return_tensors="pt").input_features
        assert torch.equal(processed[0], torch.tensor(args["features"])), "of another feature extractor"
        assert len(processor.to_waveform(model.convert(processed, processed))[0]) > 0
    elif "log_prob" in load_file(f"{folder}/expected.st"):
        processor_class = processor = None
        assert torch.isfinite(model.log_prob(model.sample(3))).all()
    else:
        processor_class = AutoImageProcessor
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        processed = processor(Image.new("RGB", (40, 30), "white"), return_tensors="pt")
        size = (30, 40) if config.any_image_size else config.input_shape[1:]
        assert processed["pixel_values"].shape[1:] == (config.num_channels, *size), processed["pixel_values"].shape

    # what came from there can be saved again, and is complete again
    again = folder + "-again"
    model.save_pretrained(again)
    if processor is not None:
        processor.save_pretrained(again)
    Path(again, "expected.st").write_bytes(Path(folder, "expected.st").read_bytes())
    check(again, auto_class)
    if processor is not None:
        processor_class.from_pretrained(again, trust_remote_code=True)

    # and it trains
    model.train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    if auto_class == "AutoModelForImageClassification":
        inputs["labels"] = torch.zeros(len(inputs["pixel_values"]), dtype=torch.int64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())

# stock pipelines find model and processor
folder, auto_class = args["models"][0]
model, _ = check(folder, auto_class)
features = pipeline("image-feature-extraction", model=folder, trust_remote_code=True, device="cpu")
assert len(features(Image.new("RGB", (40, 30)))[0]) == model.config.latent_size

# a model of foreign classes is published by the package
del sys.modules["hf_autoencoders"]
sys.path.insert(0, args["root"])
from hf_autoencoders.publishing import save_for_hub
assert type(model).__module__.startswith("transformers_modules.")
save_for_hub(model, folder + "-published")
"""


def models():
    """(name, Auto class, model) of every variant with each of its options, and of its heads."""
    for name in tiny.IMAGE_NAMES:
        yield name, "AutoModel", tiny.model(name)
    for name in tiny.TEXT_NAMES:
        yield name, "AutoModelForSeq2SeqLM", tiny.model(name)
    for name in tiny.SPEECH_NAMES:
        heads = VARIANTS[f"hfae_{name.partition('-')[0]}"].heads
        yield name, next(iter(heads), "AutoModel"), tiny.model(name)
    for name in tiny.PRIOR_NAMES:
        yield name, "AutoModel", tiny.model(name)
    for variant in VARIANTS.values():
        for auto_class, model_class in variant.head_classes().items():
            if model_class is variant.model_class():
                continue
            yield f"{variant.name}-{auto_class}", auto_class, model_class(tiny.config(tiny.FIRST[variant.name])).eval()


NOT_ASKED = ("target_ids", "content_features", "speaker_attention_mask", "speaker_ids")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, root):
    """Folders of every variant and head, after the child process has been through all of them."""
    base = tmp_path_factory.mktemp("remote-code")
    folders = []
    for name, auto_class, model in models():
        inputs = {key: value for key, value in tiny.inputs(model.config).items() if key not in NOT_ASKED}
        folder = base / name
        model.save_pretrained(folder)
        with torch.no_grad():
            if "input_ids" in inputs:
                tiny.tokenizer().save_pretrained(folder)
                outputs = {"summary_ids": model.generate(**inputs, num_words=3, num_beams=2)}
                outputs["text_ids"] = model.reconstruct(outputs["summary_ids"])
            elif "input_features" in inputs:
                tiny.feature_extractor(model.config).save_pretrained(folder)
                outputs = model(**inputs, return_loss=False)
                outputs["converted"] = model.convert(**inputs)
            else:
                outputs = model(**inputs, return_loss=False) if auto_class == "AutoModel" else model(**inputs)
        tensors = {name: value.clone() for name, value in outputs.items() if isinstance(value, torch.Tensor)}
        tensors = {name: value.contiguous() for name, value in {**tensors, **inputs}.items()}
        save_file(tensors, folder / "expected.st")
        folders.append((str(folder), auto_class))
    sentence = tiny.SENTENCES[0]
    arguments = {"models": folders, "root": str(root), "sentence": sentence}
    arguments["sentence_ids"] = tiny.tokenizer()(sentence).input_ids
    config = tiny.config(tiny.SPEECH_NAMES[0])
    arguments["waveform"] = torch.linspace(0, 300, 1000).sin().tolist()
    inputs = tiny.feature_extractor(config)(arguments["waveform"], sampling_rate=config.sampling_rate)
    arguments["features"] = inputs["input_features"][0].tolist()
    run_python(WITHOUT_PACKAGE + CHILD, base / "child", arguments=arguments)
    return base


def test_loads_trains_and_saves_without_the_package(saved):
    """Outputs (of text models: summaries and what is restored from them; of speech models: conversions, too) equal bit
    for bit, by AutoConfig, AutoModel, every head's Auto class, AutoImageProcessor, AutoTokenizer, AutoFeatureExtractor
    and AutoProcessor."""
    assert {path.name for path in saved.glob("*-again")} == {f"{name}-again" for name, _, _ in models()}


@pytest.mark.parametrize("name", [name for name, _, _ in models()])
def test_saved_again_is_complete(saved, name):
    """Only the card is missing: it comes with the package."""
    with pytest.raises(publishing.IncompleteFolderError) as error:
        publishing.check_folder(saved / f"{name}-again")
    assert [line for line in str(error.value).splitlines() if line.startswith("- ")] == [
        "- README.md (the model card) is missing"
    ]
    folders = (saved / name, saved / f"{name}-again")
    first, again = (json.loads((folder / "config.json").read_text())["auto_map"] for folder in folders)
    assert {
        **again,
        **{key: value for key, value in first.items() if key == "AutoImageProcessor"},
    } == first  # it is in its own file


def test_foreign_classes_are_published(saved):
    """`save_for_hub` of a model that was loaded with trust_remote_code."""
    name, _, model = next(models())
    folder = saved / f"{name}-published"
    publishing.check_folder(folder)
    assert publishing.published_files(folder) == publishing.published_files(saved / name)
    expected = {name: tensor.clone() for name, tensor in load_file(saved / name / "expected.st").items()}
    loaded = type(model).from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(loaded(expected["pixel_values"]).latents, expected["latents"])
