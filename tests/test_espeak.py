"""The embedded corpus of speech: what is said is where it is said to be."""

import sys
from io import BytesIO

import numpy as np
import pytest

from hf_autoencoders.data import espeak
from hf_autoencoders.data.espeak import PAUSE, VOICES, WORDS, Espeak, load_espeak_corpus

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
try:
    Espeak.load()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

FEW = ("en-us+f2", "de+david")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return load_espeak_corpus(tmp_path_factory.mktemp("espeak"))


def waveform(row):
    samples, rate = soundfile.read(BytesIO(row["audio"]["bytes"]), dtype="float32")
    assert rate == 16000 and samples.ndim == 1
    return samples


def test_every_voice_says_its_own_sentences_and_every_word(corpus):
    train, validation = corpus["train"], corpus["validation"]
    assert len(train) == 16 * (24 + 12 * 4) and len(validation) == 16 * (4 + 12)
    sentences = [row for part in (train, validation) for row in zip(part["text"], part["label"], strict=True)]
    texts = [text for text, label in sentences if label == -1]
    assert len(set(texts)) == len(texts) == 16 * 28  # non-parallel, and validation holds none of train
    assert len(set(train["id"]) | set(validation["id"])) == len(train) + len(validation)
    for part, times in ((train, 4), (validation, 1)):
        names = part.features["label"].names
        said = sorted((s, names[label]) for s, label in zip(part["speaker"], part["label"], strict=True) if label >= 0)
        assert said == sorted((voice, word) for voice in VOICES for word in WORDS for _ in range(times))
    assert {row["language"] for row in validation} == {"en-us", "en", "de", "es", "fr", "it"}


def test_phones_cover_the_clip_and_silence_is_silent(corpus):
    quiet, sounding = [], []
    for row in corpus["validation"]:
        samples, phones = waveform(row), row["phones"]
        assert 0.2 < len(samples) / 16000 < 6
        assert 0.03 < np.abs(samples).max() < 0.999  # neither silent nor clipped
        ends = [0.0, *(phone["end"] for phone in phones)]
        assert [phone["start"] for phone in phones] == ends[:-1]
        assert all(phone["end"] > phone["start"] for phone in phones)
        assert abs(ends[-1] - len(samples) / 16000) < 0.001
        assert not any(set(phone["phone"]) & set("ˈˌː()_") for phone in phones)
        for phone in phones:
            part = np.abs(samples[round(16000 * phone["start"]) : round(16000 * phone["end"])])
            if phone["phone"] == PAUSE:
                quiet.append(part.mean() if len(part) else 0)
            elif phone["phone"] in set("aeiou"):
                sounding.append(part.mean())
    assert np.percentile(quiet, 95) < 0.2 * np.percentile(sounding, 5)


def test_phone_times_are_those_of_the_sounds(corpus):
    """Hissing phones are where the high frequencies are; the closure of a stop is within the stop."""

    def high_share(samples):
        power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
        return power[len(power) * 3 // 8 :].sum() / power.sum()  # above 3 kHz

    shares = {"s": [], "ɑ": [], "o": [], "m": []}
    closures = []
    for row in corpus["train"].select(range(0, 1152, 3)):
        samples = waveform(row)
        for phone in row["phones"]:
            part = samples[round(16000 * phone["start"]) : round(16000 * phone["end"])]
            if phone["phone"] in shares and len(part) > 400:
                shares[phone["phone"]].append(high_share(part))
            if phone["phone"] == "k" and phone["start"] > 0.1 and len(part) > 1000:
                closures.append(np.abs(part[:320]).mean() / np.abs(part).max())
    assert min(map(len, shares.values())) > 20
    assert np.percentile(shares["s"], 10) > 0.5
    assert max(np.percentile(shares[vowel], 90) for vowel in ("ɑ", "o", "m")) < 0.4
    assert len(closures) > 50 and np.median(closures) < 0.1


def test_the_corpus_is_kept_and_comes_out_the_same(tmp_path, monkeypatch):
    first = load_espeak_corpus(tmp_path / "a", voices=FEW)
    Espeak.load().speak("something else", FEW[0])
    again = load_espeak_corpus(tmp_path / "b", voices=FEW)
    assert first["train"][:] == again["train"][:] and first["validation"][:] == again["validation"][:]

    def spoken_again(*_, **__):
        raise AssertionError("the corpus was made again")

    monkeypatch.setattr(espeak, "_speak_in_a_new_process", spoken_again)
    kept = load_espeak_corpus(tmp_path / "a", voices=FEW)
    assert kept["train"][:] == first["train"][:] and kept["train"].features == first["train"].features
    assert str(kept["train"].split) == "train"
    with pytest.raises(AssertionError, match="made again"):
        load_espeak_corpus(tmp_path / "a", voices=FEW[:1])


def test_a_broken_cache_is_made_again(tmp_path):
    first = load_espeak_corpus(tmp_path, voices=FEW[:1])
    (folder,) = tmp_path.iterdir()
    (folder / "train" / "state.json").unlink()
    assert load_espeak_corpus(tmp_path, voices=FEW[:1])["train"][:] == first["train"][:]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_it_reads_without_a_cache_it_can_write(tmp_path):
    (tmp_path / "file").write_text("")
    assert len(load_espeak_corpus(tmp_path / "file" / "below", voices=FEW[:1])["train"]) == 24 + 12 * 4


def test_voices_differ():
    """The voice, not only the words: the same word of two voices has another mean spectrum than of one voice twice."""

    def spectrum(voice, pitch):
        spoken = Espeak.load().speak("safari", voice, pitch=pitch)
        frames = np.lib.stride_tricks.sliding_window_view(spoken.waveform, 512)[::256] * np.hanning(512)
        power = np.abs(np.fft.rfft(frames)) ** 2
        return np.log(power.mean(0).reshape(-1)[1:].reshape(32, 8).mean(1) + 1e-6)

    own = [np.abs(spectrum(voice, 48) - spectrum(voice, 52)).mean() for voice in VOICES]
    spectra = [spectrum(voice, 50) for voice in VOICES]
    other = [np.abs(a - b).mean() for i, a in enumerate(spectra) for b in spectra[:i]]
    assert np.median(other) > 2 * np.median(own)


def test_wrong_voices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no voice 'en-us\\+nobody'"):  # the library itself would speak as plain en-us
        Espeak.load().speak("hello", "en-us+nobody")
    with pytest.raises(ValueError, match="no voice 'en-xx'"):
        Espeak.load().speak("hello", "en-xx")
    with pytest.raises(ValueError, match="no voice 'de\\+nobody'"):
        load_espeak_corpus(tmp_path, voices=("de+nobody",))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no sentences for voice 'fi'.*en, de"):
        load_espeak_corpus(voices=("fi",))
    with pytest.raises(ValueError, match="different ones"):
        load_espeak_corpus(voices=("de", "de"))
    with pytest.raises(ValueError, match="speaks nothing"):
        Espeak.load().speak("", "de")


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch):
    def nothing(name, *_):
        raise OSError(name)

    monkeypatch.setattr(espeak.ctypes, "CDLL", nothing)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    Espeak.load.cache_clear()
    try:
        with pytest.raises(ImportError, match=r"apt install libespeak-ng1.*pip install espeakng-loader.*\[audio\]"):
            Espeak.load()
    finally:
        Espeak.load.cache_clear()
