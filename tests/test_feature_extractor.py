"""Waveforms to log-mels and back: equal to independent computations, saved whole, and clear about what they refuse."""

import copy
import json
import logging
import pickle
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from hf_autoencoders.models import feature_extraction_speech
from hf_autoencoders.models.feature_extraction_speech import SpeechFeatureExtractor

SMALL = {"feature_size": 20, "sampling_rate": 8000, "hop_length": 100, "win_length": 400, "n_fft": 512}


def voice(num_samples: int = 6000, seed: int = 0, rate: int = 8000) -> np.ndarray:
    """Something like a voice: a gliding pulse train through two resonances, with pauses, and a little noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(num_samples) / rate
    pitch = 110 + 20 * seed + 30 * np.sin(2 * np.pi * 1.7 * time + seed)
    pulses = np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0)
    response = np.zeros(300)
    for formant, width in ((500 + 60 * seed, 80), (1500 + 90 * seed, 120)):
        ring = np.arange(300) / rate
        response += np.exp(-np.pi * width * ring) * np.sin(2 * np.pi * formant * ring)
    sound = np.convolve(pulses, response)[:num_samples] * (np.sin(2 * np.pi * 2.3 * time) > -0.5)
    return (0.3 * sound + 0.002 * generator.standard_normal(num_samples)).astype(np.float32)


def features(extractor, clips, **options):
    options = {"sampling_rate": extractor.sampling_rate, "return_tensors": "pt", **options}
    return extractor(clips, **options).input_features


@pytest.fixture(scope="module")
def small():
    return SpeechFeatureExtractor(**SMALL).fit_statistics(voice(seed=seed) for seed in range(4))


# ---- waveforms to features


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        {},
        {"fmin": 80, "fmax": 7600, "log_scale": "log10", "log_floor": 1e-3},
        {"sampling_rate": 22050, "hop_length": 256, "win_length": 1024, "feature_size": 40},
    ],
)
def test_log_mels_are_those_of_an_independent_computation(options):
    extractor = SpeechFeatureExtractor(**options)
    rate = extractor.sampling_rate
    waveform = voice(rate=rate)
    filters = mel_filter_bank(
        extractor.n_fft // 2 + 1,
        extractor.feature_size,
        extractor.fmin,
        extractor.fmax or rate / 2,
        rate,
        norm="slaney",
        mel_scale="slaney",
    )
    expected = spectrogram(
        waveform,
        window_function(extractor.win_length, "hann"),
        extractor.win_length,
        extractor.hop_length,
        extractor.n_fft,
        power=1.0,
        pad_mode="constant",
        mel_filters=filters,
        mel_floor=extractor.log_floor,
        log_mel=extractor.log_scale,
    )
    got = features(extractor, waveform)
    assert got.shape == (1, 1 + len(waveform) // extractor.hop_length, extractor.feature_size)
    assert got.dtype == torch.float32
    # float32 against float64: 1e-5, but where the logarithm is of next to nothing
    np.testing.assert_allclose(got[0].numpy().T, expected, atol=1e-5 if extractor.log_floor >= 1e-3 else 1e-4)


def test_the_settings_of_a_vocoder_of_transformers_give_its_log_mels():
    from transformers import SpeechT5FeatureExtractor

    waveform = voice(16000, rate=16000)
    ours = SpeechFeatureExtractor(
        hop_length=256, win_length=1024, fmin=80, fmax=7600, log_floor=1e-10, log_scale="log10"
    )
    theirs = SpeechT5FeatureExtractor()(audio_target=waveform, sampling_rate=16000, return_tensors="pt").input_values
    got = features(ours, waveform)
    assert got.shape == theirs.shape
    inner = slice(2, -2)  # theirs mirrors the waveform at its ends, where ours is silent
    torch.testing.assert_close(got[:, inner], theirs[:, inner], atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_samples", [1, 2, 99, 100, 101, 799, 800, 4001])
def test_frames_of_any_length_and_what_padding_leaves_alone(small, num_samples):
    clip, longer = voice(5000, seed=1)[-num_samples:], voice(5000, seed=2)
    alone = small(clip, sampling_rate=8000, return_tensors="pt")
    frames = 1 + num_samples // 100
    assert small.num_frames(num_samples) == frames
    assert alone.input_features.shape == (1, frames, 20) and alone.attention_mask.tolist() == [[1] * frames]
    batch = small([longer, clip], sampling_rate=8000, return_tensors="pt", pad_to_multiple_of=8)
    assert batch.input_features.shape == (2, 56, 20)
    assert torch.equal(batch.input_features[1, :frames], alone.input_features[0])
    assert (batch.input_features[1, frames:] == 0).all()
    assert batch.attention_mask.dtype == torch.int64
    assert batch.attention_mask.sum(dim=1).tolist() == [51, frames]
    assert torch.isfinite(batch.input_features).all()


def test_padding_truncation_and_kinds_of_result(small):
    clips = [voice(1000), voice(3000)]
    cut = small(clips, sampling_rate=8000, max_length=16, truncation=True, padding="max_length", return_tensors="np")
    assert cut.input_features.shape == (2, 16, 20) and cut.attention_mask.sum(1).tolist() == [11, 16]
    assert isinstance(cut.input_features, np.ndarray) and cut.input_features.dtype == np.float32
    rows = small(clips, sampling_rate=8000, padding=False)
    assert [row.shape for row in rows["input_features"]] == [(11, 20), (31, 20)]
    assert (rows["input_features"][1][:16] == cut.input_features[1]).all()
    assert "attention_mask" not in small(clips, sampling_rate=8000, return_attention_mask=False)
    with pytest.raises(ValueError, match="max_length"):
        small(clips, sampling_rate=8000, truncation=True)


CLIP = voice(1500)
SAMPLES = np.rint(CLIP * 32767).astype(np.int16)
SAME_INPUTS = {
    "tensor": torch.from_numpy(SAMPLES.astype(np.float32) / 32768).requires_grad_(),
    "float64": SAMPLES / 32768,
    "list": (SAMPLES / 32768).tolist(),
    "tuple": tuple((SAMPLES / 32768).tolist()),
    "list of lists": [(SAMPLES / 32768).tolist()],
    "list of arrays": [SAMPLES / 32768],
    "int16": SAMPLES,
    "int16 tensor": torch.from_numpy(SAMPLES),
    "int32": SAMPLES.astype(np.int32) * 65536,
    "one channel first": SAMPLES[None],
    "one channel last": SAMPLES[:, None],
    "backwards in memory": SAMPLES[::-1].copy()[::-1],
    "dict": {"array": SAMPLES / 32768, "sampling_rate": 8000, "path": "x.wav"},
    "list of dicts": [{"array": SAMPLES, "sampling_rate": 8000}],
    "bfloat16 of silence": torch.zeros(1500, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", SAME_INPUTS)
def test_every_kind_of_input_gives_the_same_features(small, name):
    expected = features(small, SAMPLES.astype(np.float32) / 32768 * ("silence" not in name))
    torch.testing.assert_close(features(small, SAME_INPUTS[name]), expected, atol=1e-6, rtol=0)


def test_8_bit_samples_and_decoders_of_torchcodec(small):
    coarse = np.rint(CLIP * 127 + 128).astype(np.uint8)
    torch.testing.assert_close(features(small, coarse), features(small, (coarse - np.float32(128)) / 128))

    class Decoder:  # what datasets gives where torchcodec is installed
        get_all_samples = None

        def __getitem__(self, name):
            return {"array": CLIP, "sampling_rate": 8000}[name]

    assert torch.equal(features(small, [Decoder(), Decoder()]), features(small, [CLIP, CLIP]))


def test_silence_is_finite_and_comes_back_as_silence(small):
    quiet = features(small, np.zeros(1000, np.float32))
    assert torch.isfinite(quiet).all()
    torch.testing.assert_close(small.denormalize(quiet), torch.full_like(quiet, np.log(1e-5)), atol=1e-5, rtol=0)
    (waveform,) = small.to_waveform(quiet)
    assert waveform.abs().max() < 1e-4


UNEQUAL = [voice(10), [0.0]]


@pytest.mark.parametrize(
    "given, kind, message",
    [
        (np.array([0.1, np.nan]), ValueError, "NaN or infinite"),
        (torch.tensor([0.1, float("inf")]), ValueError, "NaN or infinite"),
        (np.zeros((2, 50), np.float32), ValueError, r"one channel.*\(2, 50\).*mean.*as a list"),
        (torch.zeros(50, 2), ValueError, r"one channel.*\(50, 2\).*mean"),
        (np.zeros((1, 1, 50)), ValueError, r"\(1, 1, 50\)"),
        (np.zeros(0, np.float32), ValueError, "waveform is empty"),
        ([], ValueError, "empty list"),
        ([[0.1, 0.2], []], ValueError, "empty"),
        (np.float32(0.5), ValueError, "one channel"),
        (np.full(10, 12000.0), ValueError, r"\[-1, 1\], got values up to 12000.*32768.*int16"),
        (np.arange(5), TypeError, "int64 have no known scale.*int16"),
        ([1, 2, 3], TypeError, "int64 have no known scale"),
        (np.zeros(5, np.uint16), TypeError, "uint16 have no known scale"),
        (np.zeros(5, bool), TypeError, "numbers.*bool"),
        (np.zeros(5, complex), TypeError, "numbers.*complex"),
        (None, TypeError, "got NoneType"),
        ("a.wav", TypeError, "got str.*read_audio"),
        (["a.wav"], TypeError, "got str.*read_audio"),
        (object(), TypeError, "got object"),
        ({"bytes": b"", "path": None}, ValueError, "'array' and 'sampling_rate'.*'bytes', 'path'.*read_audio"),
        ({"array": np.zeros(9), "sampling_rate": 44100}, ValueError, "44100.*8000|8000.*44100"),
        ([np.zeros(9), {"array": np.zeros((2, 9)), "sampling_rate": 8000}], ValueError, "one channel"),
    ],
)
def test_what_is_no_waveform_is_refused(small, given, kind, message):
    with pytest.raises(kind, match=message):
        small(given, sampling_rate=8000)


def test_another_rate_is_an_error_that_offers_resampling(small):
    pytest.importorskip("soxr")
    time = np.arange(16000) / 16000
    tone = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    for given, rate in ((tone, 16000), ({"array": tone, "sampling_rate": 16000}, None), ([tone, tone], 16000)):
        with pytest.raises(ValueError, match="16000 samples per second.*8000.*resample=True"):
            small(given, sampling_rate=rate)
    resampled = features(small, tone, sampling_rate=16000, resample=True)
    native = features(small, tone[::2])
    assert resampled.shape == native.shape
    own_bin = int(native[0, 40].argmax())
    torch.testing.assert_close(resampled[0, 8:-8, own_bin], native[0, 8:-8, own_bin], atol=1e-2, rtol=0)
    mixed = small([{"array": tone, "sampling_rate": 16000}, {"array": tone[::2], "sampling_rate": 8000}], resample=True)
    assert [len(row) for row in mixed["input_features"]] == [81, 81]
    assert features(small, tone[:1], sampling_rate=16000, resample=True).shape == (1, 1, 20)  # half a sample is left
    with pytest.raises(ValueError, match="positive int, got -1"):
        small(tone, sampling_rate=-1, resample=True)


def test_resampling_without_soxr_names_the_extra(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(ImportError, match=r"hf-autoencoders\[audio\]"):
        small(CLIP, sampling_rate=16000, resample=True)


def test_a_rate_that_is_not_told_is_warned_of_once(small, caplog):
    logger = logging.getLogger("transformers")
    feature_extraction_speech.logger.warning_once.cache_clear()
    logger.addHandler(caplog.handler)
    try:
        for _ in range(3):
            small(CLIP)
        small({"array": CLIP, "sampling_rate": 8000})
    finally:
        logger.removeHandler(caplog.handler)
    told = [record for record in caplog.records if "sampling_rate" in record.message]
    assert len(told) == 1 and "8000" in told[0].message


def test_log_mel_is_differentiable(small):
    waveform = torch.from_numpy(voice(900)).requires_grad_()
    loss = small.log_mel(waveform).square().mean()
    (gradient,) = torch.autograd.grad(loss, waveform)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    index = int(gradient.abs().argmax())
    step = torch.zeros(900)
    step[index] = 1e-3
    with torch.no_grad():
        change = small.log_mel(waveform + step).square().mean() - small.log_mel(waveform - step).square().mean()
    torch.testing.assert_close(change / 2e-3, gradient[index], rtol=0.05, atol=0)
    silent = torch.zeros(300, requires_grad=True)
    small.log_mel(silent).sum().backward()
    assert torch.isfinite(silent.grad).all()
    with pytest.raises(ValueError, match="float waveforms.*int64"):
        small.log_mel(torch.arange(900))


# ---- statistics, saving


def test_statistics_make_features_zero_mean_and_unit_variance(small):
    clips = [voice(seed=seed) for seed in range(4)]
    frames = torch.cat([features(small, clip)[0] for clip in clips])
    torch.testing.assert_close(frames.mean(dim=0), torch.zeros(20), atol=1e-4, rtol=0)
    torch.testing.assert_close(frames.std(dim=0, correction=0), torch.ones(20), atol=1e-4, rtol=0)
    plain = SpeechFeatureExtractor(**SMALL)
    raw = [plain.log_mel(torch.from_numpy(clip)) for clip in clips]
    again = SpeechFeatureExtractor(**SMALL).fit_statistics(log_mels=raw)
    np.testing.assert_allclose(again.mean, small.mean, rtol=1e-9)
    np.testing.assert_allclose(again.std, small.std, rtol=1e-9)
    torch.testing.assert_close(small.denormalize(features(small, clips[0])), raw[0][None], atol=1e-5, rtol=0)


def test_statistics_of_silence_and_wrong_ones():
    extractor = SpeechFeatureExtractor(**SMALL).fit_statistics([np.zeros(500)])
    assert extractor.std == [0.1] * 20
    assert torch.isfinite(features(extractor, CLIP)).all()
    with pytest.raises(ValueError, match="no clips"):
        extractor.fit_statistics([])
    with pytest.raises(ValueError, match="either waveforms or log_mels"):
        extractor.fit_statistics()
    with pytest.raises(ValueError, match="20 bins.*19"):
        extractor.fit_statistics(log_mels=[np.zeros((5, 19))])
    with pytest.raises(ValueError, match="NaN"):
        extractor.fit_statistics([np.full(500, np.nan)])


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"mean": [0.0] * 79}, ValueError, r"mean must be.*80 mel bins.*\(79,\)"),
        ({"std": 0}, ValueError, "std must be finite and greater than 0"),
        ({"std": [float("nan")] * 80}, ValueError, "std must be finite"),
        ({"feature_size": 0}, ValueError, "feature_size must be a positive int, got 0"),
        ({"sampling_rate": 16000.0}, ValueError, "sampling_rate must be a positive int"),
        ({"hop_length": 500}, ValueError, "2 \\* hop_length <= win_length <= n_fft.*500"),
        ({"win_length": 2048}, ValueError, "win_length 2048, n_fft 1024"),
        ({"fmax": 9000}, ValueError, "8000 Hz.*fmax 9000"),
        ({"fmin": 100, "fmax": 50}, ValueError, "fmin 100"),
        ({"log_scale": "dB"}, ValueError, "'log' or 'log10', got 'dB'"),
        ({"log_floor": 0}, ValueError, "log_floor"),
        ({"feature_size": 500}, ValueError, "mel bins lie between.*n_fft"),
        ({"num_mel_bins": 80}, TypeError, "no option num_mel_bins"),
        ({"padding_side": "left"}, ValueError, "padding_side must be 'right'"),
    ],
)
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_wrong_options_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        SpeechFeatureExtractor(**options)


def test_save_and_load_by_class_and_by_remote_code(small, tmp_path, monkeypatch):
    from transformers import AutoFeatureExtractor
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    expected = features(small, CLIP)
    small.save_pretrained(tmp_path)
    loaded = SpeechFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == small.to_dict() and loaded.mean == small.mean and loaded.std == small.std
    assert torch.equal(features(loaded, CLIP), expected)
    assert SpeechFeatureExtractor.from_pretrained(tmp_path, hop_length=50).hop_length == 50
    for copied in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(features(copied, CLIP), expected)

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    file = tmp_path / "preprocessor_config.json"
    saved = json.loads(file.read_text())
    assert set(saved) >= {
        "sampling_rate",
        "hop_length",
        "win_length",
        "n_fft",
        "fmin",
        "fmax",
        "log_floor",
        "log_scale",
    }
    assert len(saved["mean"]) == len(saved["std"]) == 20 and "window" not in saved and "mel_filters" not in saved
    saved["auto_map"] = {"AutoFeatureExtractor": "feature_extraction_speech.SpeechFeatureExtractor"}
    saved["a_key_of_a_later_version"] = 1
    file.write_text(json.dumps(saved))
    shutil.copy(feature_extraction_speech.__file__, tmp_path)
    travelled = get_class_from_dynamic_module(saved["auto_map"]["AutoFeatureExtractor"], tmp_path)
    assert travelled is not SpeechFeatureExtractor
    for loaded in (
        travelled.from_pretrained(tmp_path),
        AutoFeatureExtractor.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        assert torch.equal(features(loaded, CLIP), expected)


# ---- and back


def test_griffin_lim_finds_a_waveform_that_has_these_features(small):
    clips = [voice(6000, seed=1), voice(3333, seed=2), voice(950, seed=3)]
    batch = small(clips, sampling_rate=8000, return_tensors="pt")
    lengths = [len(clip) for clip in clips]

    def distance(waveforms):  # relative, of the mel magnitudes: spectral convergence
        got = small([*waveforms], sampling_rate=8000, return_tensors="pt").input_features
        wanted, got = (small.denormalize(values).exp() for values in (batch.input_features, got))
        mask = batch.attention_mask[..., None]
        return float(((got - wanted) * mask).norm() / (wanted * mask).norm())

    start = distance(small.to_waveform(batch.input_features, batch.attention_mask, 0, lengths=lengths))
    found = small.to_waveform(batch.input_features, batch.attention_mask, lengths=lengths)
    assert [tuple(waveform.shape) for waveform in found] == [(6000,), (3333,), (950,)]
    assert all(waveform.dtype == torch.float32 for waveform in found)
    assert start > 0.3 and distance(found) < 0.08
    assert distance(found) < distance(small.to_waveform(batch.input_features, batch.attention_mask, 4, lengths=lengths))

    again = small.to_waveform(batch.input_features, batch.attention_mask, lengths=lengths)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    for row, clip in enumerate(clips):  # the same alone, without padding, as array, and in a list
        alone = features(small, clip)
        for given in (alone, alone[0], alone.numpy(), [alone[0]]):
            (waveform,) = small.to_waveform(given, lengths=[len(clip)])
            torch.testing.assert_close(waveform, found[row], atol=2e-3, rtol=0)
    output = SimpleNamespace(reconstruction=alone)
    assert torch.equal(small.to_waveform(output, lengths=[950])[0], waveform)
    together = small.to_waveform([features(small, clip)[0] for clip in clips], lengths=lengths)
    assert all(torch.equal(one, other) for one, other in zip(together, found, strict=True))


@pytest.mark.parametrize("options", [{}, {"log_scale": "log10"}, {"hop_length": 200, "fmin": 50, "fmax": 3500}])
def test_the_magnitudes_have_these_mels(options):
    extractor = SpeechFeatureExtractor(**{**SMALL, **options})
    log_mels = extractor.log_mel(torch.from_numpy(voice()))[None]
    magnitudes = extractor._magnitudes(log_mels)
    back = (magnitudes @ extractor._filters("cpu")).clamp(min=extractor.log_floor)
    wanted = log_mels.exp() if extractor.log_scale == "log" else 10**log_mels
    assert (magnitudes >= 0).all() and (back - wanted).norm() < 1e-2 * wanted.norm()


def test_features_of_an_untrained_model_give_finite_waveforms(small):
    for value in (1e4, -1e4):
        (waveform,) = small.to_waveform(torch.full((20, 20), value))
        assert torch.isfinite(waveform).all()


def test_lengths_of_waveforms(small):
    for num_frames in (1, 2, 30):
        (waveform,) = small.to_waveform(torch.zeros(num_frames, 20))
        assert small.num_frames(len(waveform)) == num_frames
        (longest,) = small.to_waveform(torch.zeros(num_frames, 20), lengths=[num_frames * 100])
        assert len(longest) == num_frames * 100 and torch.isfinite(longest).all()
        assert longest.abs().max() < 10 * max(waveform.abs().max(), 1e-3)  # the end does not explode
    halves = small.to_waveform(torch.zeros(2, 5, 20, dtype=torch.bfloat16), torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]))
    assert [len(half) for half in halves] == [450, 150]
    extractor = SpeechFeatureExtractor(feature_size=4, hop_length=1, win_length=16, n_fft=16)
    assert len(extractor.to_waveform(torch.zeros(1, 4))[0]) == 1


@pytest.mark.parametrize(
    "given, options, kind, message",
    [
        (torch.zeros(2, 5, 19), {}, ValueError, r"\(batch, frames, 20\).*\(2, 5, 19\)"),
        (torch.zeros(2, 0, 20), {}, ValueError, "no frames"),
        (torch.zeros(2, 5, 20, dtype=torch.int64), {}, ValueError, "float features.*int64"),
        (torch.full((1, 5, 20), float("nan")), {}, ValueError, "NaN or infinite"),
        (torch.zeros(1, 5, 20), {"attention_mask": torch.ones(1, 4)}, ValueError, r"\(1, 5\), got \(1, 4\)"),
        (torch.zeros(1, 3, 20), {"attention_mask": torch.tensor([[0, 1, 1]])}, ValueError, "1 on the first frames"),
        (torch.zeros(1, 3, 20), {"lengths": [301]}, ValueError, r"lengths must be.*\[301\].*\[3\]"),
        (torch.zeros(1, 3, 20), {"lengths": [100, 100]}, ValueError, "1 lengths.*got 2"),
        (torch.zeros(1, 3, 20), {"num_iterations": -1}, ValueError, "num_iterations"),
        ([], {}, ValueError, "list of features"),
        (SimpleNamespace(reconstruction=None), {}, TypeError, "no `reconstruction`"),
        (torch.zeros(1, 3, 20), {"vocoder": torch.nn.Linear(20, 1)}, TypeError, "HiFi-GAN.*Linear"),
    ],
)
def test_to_waveform_refuses(small, given, options, kind, message):
    with pytest.raises(kind, match=message):
        small.to_waveform(given, **options)


@pytest.mark.parametrize("kind", ["SpeechT5HifiGan", "FastSpeech2ConformerHifiGan"])
def test_vocoders_of_transformers(small, kind):
    import transformers

    sizes = {"model_in_dim": 20, "upsample_initial_channel": 16, "upsample_rates": [5, 5, 4]}
    kernels = {"upsample_kernel_sizes": [11, 11, 8], "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]]}
    rate = {"sampling_rate": 8000} if kind == "SpeechT5HifiGan" else {}
    config = getattr(transformers, f"{kind}Config")(**sizes, **kernels, **rate)
    vocoder = getattr(transformers, kind)(config).eval()
    batch = small([voice(3000), voice(1250)], sampling_rate=8000, return_tensors="pt")
    waveforms = small.to_waveform(
        batch.input_features, batch.attention_mask, vocoder=vocoder, lengths=torch.tensor([3000, 1250])
    )
    assert [tuple(waveform.shape) for waveform in waveforms] == [(3000,), (1250,)]
    with torch.no_grad():  # it gets the log-mels of the real frames, not normalised
        expected = vocoder(small.log_mel(torch.from_numpy(voice(1250))[None]))
    torch.testing.assert_close(waveforms[1], expected.reshape(-1)[:1250], atol=1e-5, rtol=0)

    for option, message in {
        "feature_size": "feature_size.: 19 here, 20 there",
        "hop_length": "hop_length.: 80 here, 100 there",
    }.items():
        other = SpeechFeatureExtractor(**{**SMALL, option: {"feature_size": 19, "hop_length": 80}[option]})
        with pytest.raises(ValueError, match=message):
            other.to_waveform(torch.zeros(4, other.feature_size), vocoder=vocoder)
    if rate:
        other = SpeechFeatureExtractor(**{**SMALL, "sampling_rate": 16000})
        with pytest.raises(ValueError, match="sampling_rate.: 16000 here, 8000 there"):
            other.to_waveform(torch.zeros(4, 20), vocoder=vocoder)
