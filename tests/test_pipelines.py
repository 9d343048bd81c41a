"""Pipelines: our own of images, text-summarization and voice-conversion, and the stock image-feature-extraction."""

import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import tiny
import torch
from PIL import Image
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration, pipeline

import hf_autoencoders  # noqa: F401  (registers the task)
from hf_autoencoders import (
    AutoencoderConfig,
    AutoencoderImageProcessor,
    AutoencoderModel,
    VAEConfig,
    VAEModel,
    VQVAEConfig,
    VQVAEModel,
)
from hf_autoencoders.data.speech import resample
from hf_autoencoders.models.configuration_voice_conversion import VoiceConversionConfig
from hf_autoencoders.models.feature_extraction_speech import SpeechFeatureExtractor
from hf_autoencoders.models.modeling_voice_conversion import VoiceConversionModel

KINDS = ("autoencoder", "vae", "vqvae", "colour")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    mlp = {"image_size": (9, 8), "architecture": "mlp", "hidden_sizes": (16,), "latent_size": 4}
    grid = {"hidden_sizes": (8, 8), "codebook_size": 16, "embedding_dim": 4}
    models = {
        "autoencoder": AutoencoderModel(AutoencoderConfig(**mlp)),
        "vae": VAEModel(VAEConfig(**mlp)),
        "vqvae": VQVAEModel(VQVAEConfig(image_size=(9, 8), **grid)),
        "colour": VQVAEModel(VQVAEConfig(image_size=(9, 8), num_channels=3, **grid)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        AutoencoderImageProcessor.for_model(model.config).save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


@pytest.fixture(autouse=True)
def no_questions(monkeypatch):
    """With the package imported nobody is asked whether to run the code that lies beside the weights."""

    def ask(prompt=""):
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr("builtins.input", ask)


@pytest.fixture
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (9, 8), dtype=np.uint8)) for _ in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_equals_the_model(folders, images, kind):
    restore = pipeline("image-reconstruction", model=folders[kind], device="cpu")
    restored = restore(images)
    single = restore(images[0])
    pixel_values = restore.image_processor(images, return_tensors="pt")["pixel_values"]
    expected = restore.image_processor.post_process(restore.model(pixel_values).reconstruction)
    assert single.size == (8, 9) and single.mode == ("RGB" if kind == "colour" else "L")
    for image, other in zip(restored, expected, strict=True):
        assert np.abs(np.asarray(image).astype(int) - np.asarray(other)).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_with_everything_known_in_batches(folders, images, kind, tmp_path):
    images[1].save(tmp_path / "one.png")
    restore = pipeline("image-reconstruction", model=folders[kind], device="cpu", batch_size=2, output_type="dict")
    results = restore([images[0], str(tmp_path / "one.png"), images[2]])
    for image, result in zip(images, results, strict=True):
        pixel_values = restore.image_processor(image, return_tensors="pt")["pixel_values"]
        output = restore.model(pixel_values)
        error = (output.reconstruction - pixel_values).square().mean().item()
        assert result["mean_squared_error"] == pytest.approx(error, rel=1e-4)
        assert tuple(result["latents"].shape) == restore.model.config.latent_shape
        assert ("codes" in result) == (kind in ("vqvae", "colour"))
        if "codes" in result:
            assert torch.equal(result["codes"], output.codes[0])
        assert isinstance(result["image"], Image.Image)


@pytest.mark.parametrize("kind", KINDS)
def test_stock_feature_extraction_returns_the_latents(folders, images, kind):
    extract = pipeline("image-feature-extraction", model=folders[kind], device="cpu")
    features = extract(images, return_tensors=True)
    pixel_values = extract.image_processor(images, return_tensors="pt")["pixel_values"]
    latents = extract.model.eval().encode(pixel_values).latents
    for feature, latent in zip(features, latents, strict=True):
        torch.testing.assert_close(feature[0], latent, rtol=1e-4, atol=1e-5)
    assert np.shape(extract(images[0])) == (1, *extract.model.config.latent_shape)


def test_wrong_options_are_refused(folders, images):
    with pytest.raises(ValueError, match='output_type must be "pil" or "dict"'):
        pipeline("image-reconstruction", model=folders["vae"], device="cpu", output_type="numpy")
    restore = pipeline("image-reconstruction", model=folders["vae"], device="cpu")
    with pytest.raises(TypeError, match="colour"):
        restore(images[0], colour=True)


def test_the_pipeline_leaves_no_gradients(folders, images):
    restore = pipeline("image-reconstruction", model=folders["vqvae"], device="cpu", output_type="dict")
    assert not restore(images[0])["latents"].requires_grad


@pytest.mark.parametrize("name", ["categorical_autoencoder-resnet", "joint_vae-resnet"])
def test_clustering_equals_the_model(name, tmp_path):
    model = tiny.model(name)
    model.save_pretrained(tmp_path)
    AutoencoderImageProcessor.for_model(model.config).save_pretrained(tmp_path)
    height, width = model.config.input_shape[1:]
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (height, width), dtype=np.uint8)) for _ in range(3)]
    cluster = pipeline("image-clustering", model=str(tmp_path), device="cpu", batch_size=2)
    pixel_values = cluster.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        probabilities = model.encode(pixel_values).probabilities
    for variable in range(2):
        results = cluster(images, variable=variable)
        assert [result["cluster"] for result in results] == model.cluster(pixel_values, variable).tolist()
        scores = [result["score"] for result in results]
        assert scores == pytest.approx(probabilities[:, variable].amax(1).tolist(), rel=1e-4)
        assert all(set(result) == {"cluster", "score"} for result in results)
    assert cluster(images[0])["cluster"] == model.cluster(pixel_values[:1]).item()
    assert cluster(images[0], variable=np.int64(1)) == cluster(images[0], variable=1)
    for wrong, told in ((2, "2"), (-1, "-1"), ("0", "'0'"), (0.0, "0.0"), (True, "True")):
        with pytest.raises(ValueError, match=f"expected variable to be a whole number from 0 to 1, got {told}"):
            cluster(images[0], variable=wrong)
    with pytest.raises(TypeError, match="colour"):
        cluster(images[0], colour=True)


def test_models_without_clusters_are_refused(folders):
    with pytest.raises(ValueError, match="VAEModel has no cluster"):
        pipeline("image-clustering", model=folders["vae"], device="cpu")


# -- text


@pytest.fixture(scope="module")
def summarizer(tmp_path_factory):
    """Folder of a tiny summarizer, to which every token is a word, with its tokenizer; texts are cut at 80 tokens."""
    folder = tmp_path_factory.mktemp("summarizer")
    model = tiny.model("seq2seq2seq-pointer", max_source_tokens=80, max_summary_tokens=12)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


TEXTS = [*tiny.SENTENCES, "Öl: 5% teurer!"]


def by_hand(summarize, text, **options) -> str:
    """The summary of one text, without the pipeline."""
    ids = torch.tensor([summarize.tokenizer(text, truncation=True, max_length=80).input_ids])
    with torch.no_grad():
        summary = summarize.model.generate(ids, **options)
    if "num_words" in options:
        assert summarize.model.summarizer.count_words(summary) == options["num_words"]
    return " ".join(summarize.tokenizer.decode(summary[0], skip_special_tokens=True).split())


def test_summaries_have_the_words_asked_for(summarizer):
    summarize = pipeline("text-summarization", model=summarizer, device="cpu", num_words=3)
    results = summarize(TEXTS)
    assert [set(result) for result in results] == [{"summary_text", "num_words"}] * len(TEXTS)
    assert all(result["num_words"] == len(result["summary_text"].split()) <= 3 for result in results)
    expected = [by_hand(summarize, text, num_words=3, num_beams=4, max_new_tokens=24) for text in TEXTS]
    assert [result["summary_text"] for result in results] == expected
    assert summarize(TEXTS, batch_size=2) == results
    assert summarize(TEXTS[0]) == results[:1]
    assert list(summarize(text for text in TEXTS)) == results
    assert summarize(TEXTS[0], num_words=5) != results[:1]


def test_summaries_by_ratio_with_reconstruction(summarizer, monkeypatch):
    summarize = pipeline("text-summarization", model=summarizer, device="cpu", num_words=3)
    asked, generate = [], summarize.model.generate
    monkeypatch.setattr(summarize.model, "generate", lambda *a, **k: asked.append(k["num_words"]) or generate(*a, **k))
    results = summarize(TEXTS, ratio=0.5, num_beams=1, return_reconstruction=True, batch_size=8)
    (num_words,) = asked
    assert num_words.tolist() == [max(1, round(len(text.split()) / 2)) for text in TEXTS]
    ids = summarize.tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        room = {"num_words": num_words, "max_new_tokens": 8 * max(num_words.tolist())}
        codes = generate(ids.input_ids, attention_mask=ids.attention_mask, **room)
        restored = summarize.tokenizer.batch_decode(summarize.model.reconstruct(codes), skip_special_tokens=True)
    assert summarize.model.summarizer.count_words(codes).equal(num_words)
    assert [result["reconstruction_text"] for result in results] == [" ".join(text.split()) for text in restored]


def test_without_a_number_the_model_decides(summarizer):
    summarize = pipeline("text-summarization", model=summarizer, device="cpu", num_beams=2)
    assert summarize(TEXTS[0])[0]["summary_text"] == by_hand(summarize, TEXTS[0], num_beams=2)


def test_truncation_is_said(summarizer):
    summarize = pipeline("text-summarization", model=summarizer, device="cpu", num_words=3)
    results = summarize([TEXTS[4], " ".join(TEXTS), " ".join(TEXTS)], batch_size=2)
    assert [result.get("truncated") for result in results] == [None, True, True]
    expected = by_hand(summarize, " ".join(TEXTS), num_words=3, num_beams=4, max_new_tokens=24)
    assert results[1]["summary_text"] == expected


def test_what_cannot_be_summarized_is_refused(summarizer):
    summarize = pipeline("text-summarization", model=summarizer, device="cpu")
    for text in ("", "  \n"):
        with pytest.raises(ValueError, match="a text is empty: there is nothing to summarize"):
            summarize(["good", text])
    with pytest.raises(ValueError, match="expected a string, got int: '7'"):
        summarize([7])
    with pytest.raises(ValueError, match="give one of them"):
        summarize("good", num_words=3, ratio=0.5)
    with pytest.raises(ValueError, match="num_words must be a whole number >= 1, got 0"):
        summarize("good", num_words=0)
    with pytest.raises(ValueError, match="ratio must be above 0 and at most 1, got 1.5"):
        summarize("good", ratio=1.5)
    with pytest.raises(TypeError, match="colour.*takes num_words, ratio"):
        summarize("good", colour=True)


def test_tokenizers_and_models_of_others_are_refused(summarizer):
    tokenizer = AutoTokenizer.from_pretrained(summarizer)
    parts = {part: {**tiny.COPYING, "vocab_size": 300} for part in ("summarizer", "reconstructor")}
    model = tiny.model("seq2seq2seq-pointer", **parts)
    with pytest.raises(
        ValueError, match="the tokenizer has 320 tokens, but the model 300: they do not belong together"
    ):
        pipeline("text-summarization", model=model, tokenizer=tokenizer)
    t5 = T5ForConditionalGeneration(T5Config(**tiny.T5))
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has no reconstruct: expected a summarizer"):
        pipeline("text-summarization", model=t5, tokenizer=tokenizer)


MEL = {"sampling_rate": 8000, "hop_length": 100}


@pytest.fixture(scope="module")
def converter(tmp_path_factory):
    """Folder of a tiny voice converter with its feature extractor."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("converter")
    VoiceConversionModel(
        VoiceConversionConfig(**MEL, num_mel_bins=16, hidden_size=8, latent_size=4, speaker_size=6)
    ).save_pretrained(folder)
    SpeechFeatureExtractor(**MEL, feature_size=16, win_length=400, n_fft=512, mean=-3.0, std=2.0).save_pretrained(
        folder
    )
    return str(folder)


def recording(seed: int, num_samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def wav(waveform, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_conversion_equals_the_model(converter, tmp_path):
    convert = pipeline("voice-conversion", model=converter, device="cpu")
    source, targets = recording(0, 1730), [recording(1, 900), recording(2, 2500)]
    (tmp_path / "source.wav").write_bytes(wav(source))
    model, extractor = convert.model, convert.feature_extractor
    with torch.no_grad():
        features = [extractor(clip, sampling_rate=8000, return_tensors="pt").input_features for clip in targets]
        voice = torch.stack([model.encode_speaker(clip) for clip in features]).mean(0)
        inputs = extractor(source, sampling_rate=8000, return_tensors="pt").input_features
        expected = extractor.to_waveform(model.convert(inputs, speaker_embeddings=voice), lengths=[1730])[0].numpy()
    named = {"array": targets[1], "sampling_rate": 8000}
    for result in (
        convert({"source": str(tmp_path / "source.wav"), "target": [wav(targets[0]), named]}),
        convert(source, target=[targets[0], torch.from_numpy(targets[1])]),
        convert({"source": {"bytes": wav(source), "path": None}}, target=targets),
    ):
        assert set(result) == {"audio", "sampling_rate"} and result["sampling_rate"] == 8000
        assert result["audio"].dtype == np.float32 and result["audio"].shape == (1730,)
        np.testing.assert_allclose(result["audio"], expected, atol=1e-4)
    other = convert(source, target=targets[0])["audio"]
    assert np.abs(other - expected).max() > 1e-3


def test_conversions_in_batches_are_those_one_by_one(converter):
    convert = pipeline("voice-conversion", model=converter, device="cpu")
    pairs = [
        {"source": recording(0, 900), "target": [recording(1, 700), recording(2, 2100)]},
        {"source": recording(3, 2400), "target": recording(4, 400)},
        {"source": recording(5, 1000), "target": recording(6, 3000)},
    ]
    batched = convert(pairs, batch_size=3)
    for pair, result in zip(pairs, batched, strict=True):
        alone = convert(pair)["audio"]
        assert result["audio"].shape == pair["source"].shape
        np.testing.assert_allclose(result["audio"], alone, atol=1e-3 * np.abs(alone).max())


def test_recordings_of_other_rates_are_resampled(converter):
    convert = pipeline("voice-conversion", model=converter, device="cpu")
    seconds = np.arange(16000) / 16000
    tone = (0.3 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    fast = convert(wav(tone, 16000), target=wav(tone, 16000))["audio"]
    halved = resample(tone, 16000, 8000)
    slow = convert(halved, target=halved)["audio"]
    assert fast.shape == slow.shape == (8000,)
    np.testing.assert_allclose(fast, slow, atol=1e-3 * np.abs(slow).max())
    integers = {"array": (np.round(halved * 32767)).astype(np.int16), "sampling_rate": 8000}
    floats = (integers["array"] / 32768).astype(np.float32)
    np.testing.assert_array_equal(convert(integers, target=halved)["audio"], convert(floats, target=halved)["audio"])


def test_what_cannot_be_converted_is_refused(converter, folders):
    convert = pipeline("voice-conversion", model=converter, device="cpu")
    good = recording(0, 900)
    for bad, message in (
        (wav(np.stack([good, good], 1)), "2 channels"),
        (wav(np.append(good, np.nan)), "NaN or infinite"),
        (np.append(good, np.inf).astype(np.float32), "NaN or infinite"),
        (good[:0], "empty"),
        (b"noise", "cannot be read"),
        ({"array": good}, 'has no "sampling_rate": expected .* 8000 samples per second'),
        ({"array": good, "sampling_rate": None}, 'has no "sampling_rate"'),
    ):
        with pytest.raises(ValueError, match=message):
            convert({"source": bad, "target": good})
        with pytest.raises(ValueError, match=message):
            convert({"source": good, "target": [good, bad]})
    with pytest.raises(ValueError, match="there is no voice to convert to"):
        convert(good)
    with pytest.raises(ValueError, match="needs at least one recording"):
        convert(good, target=[])
    with pytest.raises(TypeError, match="colour.*takes target and vocoder"):
        convert(good, target=good, colour=1)
    with pytest.raises(FileNotFoundError):
        convert("no.wav", target=good)


def test_feature_extractors_and_models_of_others_are_refused(converter, folders):
    model = VoiceConversionModel.from_pretrained(converter)
    other = SpeechFeatureExtractor(feature_size=16, sampling_rate=16000, hop_length=100, win_length=400)
    with pytest.raises(ValueError, match="sampling_rate=16000, but the model sampling_rate=8000"):
        pipeline("voice-conversion", model=model, feature_extractor=other)
    with pytest.raises(ValueError, match="has no convert: expected a voice converter"):
        pipeline(
            "voice-conversion", model=AutoencoderModel.from_pretrained(folders["autoencoder"]), feature_extractor=other
        )


def test_importing_the_package_does_not_import_the_pipelines(script_env):
    code = "import sys, hf_autoencoders; assert 'transformers.pipelines' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=script_env, check=True)
