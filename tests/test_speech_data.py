"""Recordings: reading, corpora by name, log-mels once, batches, other voices; and what is said of bad ones."""

import logging
from io import BytesIO

import datasets
import numpy as np
import pytest
import torch

soundfile = pytest.importorskip("soundfile")

from hf_autoencoders.data import (  # noqa: E402
    BadAudioError,
    SpeechBatches,
    SpeechClips,
    load_speech_corpus,
    perturb_voice,
    read_audio,
    resample,
    speech_clips,
    write_audio,
)
from hf_autoencoders.data import speech as speech_module  # noqa: E402
from hf_autoencoders.models.feature_extraction_speech import SpeechFeatureExtractor  # noqa: E402

RATE = 8000
SPEAKERS = ("ann", "bob", "cid")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_AUTOENCODERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets_cache"))
    return tmp_path / "cache"


def new_extractor(**options) -> SpeechFeatureExtractor:
    sizes = {"feature_size": 20, "sampling_rate": RATE, "hop_length": 100, "win_length": 400, "n_fft": 512}
    return SpeechFeatureExtractor(**{**sizes, **options})


def tone(row: int, num_samples: int | None = None, rate: int = RATE) -> np.ndarray:
    """A clip of its own pitch, length and loudness, exact in 16 bits."""
    num_samples = 1000 + 170 * row if num_samples is None else num_samples
    wave = (0.2 + 0.01 * row) * np.sin(2 * np.pi * (200 + 50 * row) * np.arange(num_samples) / rate)
    return (np.rint(wave * 32768) / 32768).astype(np.float32)


def flac(waveform: np.ndarray, rate: int = RATE) -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, waveform, rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def corpus(num_rows: int = 12, replace: dict | None = None, speakers=SPEAKERS, **columns) -> datasets.Dataset:
    """Clips of speakers by turns, as `load_speech_corpus` gives them."""
    rows = {
        "audio": [
            {"bytes": (replace or {}).get(row, flac(tone(row))), "path": f"{row}.flac"} for row in range(num_rows)
        ],
        "speaker": [speakers[row % len(speakers)] for row in range(num_rows)],
        **columns,
    }
    stored = datasets.Dataset.from_dict(rows, split=datasets.NamedSplit("train"))
    return stored.cast_column("audio", datasets.Audio(decode=False))


def write_wav(path, row: int, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), tone(row), RATE, subtype="PCM_16", **options)


def rows_of(split) -> list[int]:
    """Which tones a split holds."""
    lengths = [len(read_audio(audio)[0]) for audio in split["audio"]]
    return [(length - 1000) // 170 for length in lengths]


# ---- files


@pytest.mark.parametrize("suffix, tolerance", [("wav", 0), ("flac", 0), ("ogg", 0.05), ("mp3", 0.05)])
def test_what_is_written_is_read(tmp_path, suffix, tolerance):
    path = tmp_path / "new" / f"clip.{suffix}"
    waveform = tone(5, 4000)
    write_audio(path, torch.from_numpy(waveform), RATE)
    for source in (path, str(path), path.read_bytes(), {"bytes": path.read_bytes(), "path": None}, open(path, "rb")):
        got, rate = read_audio(source)
        assert rate == RATE and got.dtype == np.float32 and got.ndim == 1
        inner = slice(600, 3400)
        assert np.abs(got[inner] - waveform[inner]).max() <= tolerance or suffix == "mp3"  # which comes back delayed
    assert read_audio({"bytes": None, "path": str(path)})[1] == RATE


def test_stereo_is_an_error_that_says_how_to_downmix(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(str(path), np.stack([tone(1), tone(1) / 2], axis=1), RATE)
    with pytest.raises(ValueError, match="stereo.wav has 2 channels, expected one.*downmix=True"):
        read_audio(path)
    np.testing.assert_allclose(read_audio(path, downmix=True)[0], 0.75 * tone(1), atol=1e-4)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no audio file.*missing.wav"):
        read_audio(tmp_path / "missing.wav")
    (tmp_path / "text.wav").write_text("no audio")
    words = r"text.wav cannot be read: its content is no audio that libsndfile knows\. Expected WAV.*ffmpeg\.$"
    with pytest.raises(ValueError, match=words) as raised:
        read_audio(tmp_path / "text.wav")
    assert "Format not recognised" in str(raised.value.__cause__)
    with pytest.raises(IsADirectoryError, match="is a folder, expected an audio file"):
        read_audio(tmp_path)
    with pytest.raises(ValueError, match="The audio cannot be read"):
        read_audio(b"no audio")
    with pytest.raises(ValueError, match="missing"):
        read_audio({"bytes": None, "path": None})
    soundfile.write(str(tmp_path / "empty.wav"), np.zeros(0), RATE)
    with pytest.raises(ValueError, match="empty.wav is empty"):
        read_audio(tmp_path / "empty.wav")
    soundfile.write(str(tmp_path / "nan.wav"), np.array([0.1, np.nan]), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match="nan.wav holds NaN"):
        read_audio(tmp_path / "nan.wav")


def test_write_audio_refuses_and_makes_the_too_loud_quieter(tmp_path, caplog):
    write_audio(tmp_path / "loud.wav", 4 * tone(5), RATE)
    np.testing.assert_allclose(read_audio(tmp_path / "loud.wav")[0], tone(5) / np.abs(tone(5)).max(), atol=1e-3)
    assert "divided by it" not in caplog.text  # 4 * 0.25 is 1
    with caplog.at_level(logging.WARNING):
        write_audio(tmp_path / "loud.wav", 8 * tone(5), RATE)
    assert "reaches 2.00" in caplog.text and np.abs(read_audio(tmp_path / "loud.wav")[0]).max() > 0.99
    for wrong in (np.zeros((2, 9)), np.zeros(0), np.array([np.nan])):
        with pytest.raises(ValueError, match="finite waveform"):
            write_audio(tmp_path / "x.wav", wrong, RATE)
    with pytest.raises(ValueError, match="x.m4a has no suffix of an audio format"):
        write_audio(tmp_path / "x.m4a", tone(1), RATE)


def test_resampling_keeps_what_is_heard(tmp_path):
    at_16k, at_8k = tone(4, 8000, rate=16000), tone(4, 4000, rate=8000)
    got = resample(at_16k, 16000, 8000)
    assert got.dtype == np.float32 and got.shape == (4000,)
    np.testing.assert_allclose(got[200:-200], at_8k[200:-200], atol=2e-4)
    assert (resample(at_8k, 8000, 8000) == at_8k).all()
    assert len(resample(at_16k[:1], 16000, 8000)) == 1
    soundfile.write(str(tmp_path / "a.wav"), at_16k, 16000)
    got, rate = read_audio(tmp_path / "a.wav", 8000)
    assert rate == 8000 and got.shape == (4000,)
    with pytest.raises(ValueError, match="at least 1"):
        resample(at_8k, 0, 8000)


def test_without_soundfile_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"hf-autoencoders\[audio\]"):
        read_audio(flac(tone(1)))


# ---- corpora


def test_folders_of_speakers(tmp_path):
    for row in range(9):
        deeper = "chapter" if row % 2 else "."
        write_wav(tmp_path / "voices" / SPEAKERS[row % 3] / deeper / f"{row}.{'flac' if row < 4 else 'wav'}", row)
    (tmp_path / "voices" / "README.txt").write_text("notes")
    splits = load_speech_corpus(tmp_path / "voices")
    assert list(splits) == ["train", "validation"]
    assert splits["train"].column_names == ["audio", "speaker"]
    assert splits["train"].features["audio"] == datasets.Audio(decode=False)
    for split in splits.values():
        assert split["speaker"][:] == [SPEAKERS[row % 3] for row in rows_of(split)]
    assert sorted(rows_of(splits["train"]) + rows_of(splits["validation"])) == list(range(9))
    assert set(splits["train"]["speaker"]) == set(SPEAKERS)


def test_folders_with_splits(tmp_path):
    for row in range(8):
        split = "train" if row < 6 else "valid"
        write_wav(tmp_path / split / SPEAKERS[row % 2] / f"{row}.wav", row)
    splits = load_speech_corpus(tmp_path)
    assert {name: sorted(rows_of(split)) for name, split in splits.items()} == {
        "train": list(range(6)),
        "validation": [6, 7],
    }
    assert set(splits["validation"]["speaker"]) == {"ann", "bob"}


def test_folders_with_metadata(tmp_path, caplog):
    for row in range(6):
        write_wav(tmp_path / "clips" / f"{row}.wav", row)
    lines = [f"clips/{row}.wav,{SPEAKERS[row % 2]},{'yes' if row < 3 else 'no'}" for row in range(5)]
    table = tmp_path / "metadata.csv"
    table.write_text("\n".join(["file_name,speaker,text", *lines]))
    with caplog.at_level(logging.WARNING):
        splits = load_speech_corpus(tmp_path)
    assert "1 of 6 audio files" in caplog.text
    train = splits["train"]
    assert train.column_names == ["audio", "speaker", "text"]
    assert train["text"][:] == ["yes" if row < 3 else "no" for row in rows_of(train)]
    assert train["speaker"][:] == [SPEAKERS[row % 2] for row in rows_of(train)]
    assert "text" not in load_speech_corpus(tmp_path, text_column="none")["train"].column_names
    with pytest.raises(ValueError, match="no column 'who' for the speaker.*file_name, speaker, text"):
        load_speech_corpus(tmp_path, speaker_column="who")

    table.write_text("\n".join(["file_name,reader,said", *lines]))
    again = load_speech_corpus(tmp_path, text_column="said")["train"]
    assert sorted(again["speaker"][:]) == sorted(train["speaker"][:]) and set(again["text"]) <= {"yes", "no"}
    table.unlink()
    lines = (f'{{"file_name": "{row}.wav", "speaker": {row % 2}, "text": "yes"}}\n' for row in range(5))
    (tmp_path / "clips" / "metadata.jsonl").write_text("".join(lines))
    third = load_speech_corpus(tmp_path)["train"]
    assert third["speaker"][:] == [str(row % 2) for row in rows_of(third)] and set(third["text"]) == {"yes"}
    (tmp_path / "clips" / "metadata.jsonl").unlink()
    table.write_text("file_name,speaker\nclips/none.wav,ann")
    with pytest.raises(FileNotFoundError, match="line 2.*clips/none.wav"):
        load_speech_corpus(tmp_path)
    table.write_text("path,speaker\nclips/0.wav,ann")
    with pytest.raises(ValueError, match="line 2: no 'file_name'.*path, speaker"):
        load_speech_corpus(tmp_path)


def test_recordings_without_a_speaker_are_refused(tmp_path):
    write_wav(tmp_path / "0.wav", 0)
    write_wav(tmp_path / "ann" / "1.wav", 1)
    with pytest.raises(ValueError, match="Who speaks in .*0.wav.*SPEAKER/any.wav"):
        load_speech_corpus(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_speech_corpus(str(tmp_path / "nowhere"))


def test_folders_of_links_and_relative_paths(tmp_path, monkeypatch):
    for row in range(4):  # as in the cache of the Hub
        write_wav(tmp_path / "blobs" / f"{row}.wav", row)
        (tmp_path / "snapshot" / "clips").mkdir(parents=True, exist_ok=True)
        (tmp_path / "snapshot" / "clips" / f"{row}.wav").symlink_to(tmp_path / "blobs" / f"{row}.wav")
    lines = [f"clips/{row}.wav,{SPEAKERS[row % 2]}" for row in range(4)]
    (tmp_path / "snapshot" / "metadata.csv").write_text("\n".join(["file_name,speaker", *lines]))
    monkeypatch.chdir(tmp_path)
    for name in ("snapshot", "./snapshot", tmp_path / "snapshot"):
        splits = load_speech_corpus(name)
        assert sum(map(len, splits.values())) == 4 and set(splits["train"]["speaker"]) == {"ann", "bob"}


def test_a_repository_of_audio_files_is_explained(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ImportError("To support encoding audio data, please install 'torchcodec'.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="someone/voices.*audio files.*hf download --repo-type dataset someone/voices"):
        load_speech_corpus("someone/voices")


def test_a_changed_file_is_another_corpus(tmp_path):
    for row in range(4):
        write_wav(tmp_path / SPEAKERS[row % 2] / f"{row}.wav", row)
    fingerprints = [load_speech_corpus(tmp_path)["train"]._fingerprint for _ in range(2)]
    assert fingerprints[0] == fingerprints[1]
    for row in range(4):
        write_wav(tmp_path / SPEAKERS[row % 2] / f"{row}.wav", row + 1)
    assert load_speech_corpus(tmp_path)["train"]._fingerprint != fingerprints[0]


@pytest.mark.parametrize("kind", ["audio feature", "struct", "bytes", "saved to disk"])
def test_parquet_and_saved_corpora(tmp_path, kind):
    words = datasets.ClassLabel(names=["no", "yes"])
    stored = corpus(speaker_id=[row % 3 for row in range(12)], word=[row % 2 for row in range(12)])
    stored = stored.remove_columns("speaker").cast_column("word", words)
    if kind == "struct":
        stored = stored.cast_column("audio", {"bytes": datasets.Value("binary"), "path": datasets.Value("string")})
    if kind == "bytes":
        contents = [audio["bytes"] for audio in stored["audio"]]
        stored = stored.remove_columns("audio").add_column("recording", contents)
    if kind == "saved to disk":
        datasets.DatasetDict({"train": stored, "test": stored.select([0])}).save_to_disk(str(tmp_path / "corpus"))
    else:
        (tmp_path / "corpus").mkdir()
        stored.to_parquet(str(tmp_path / "corpus" / "train-00000-of-00001.parquet"))
        stored.select([0]).to_parquet(str(tmp_path / "corpus" / "test-00000-of-00001.parquet"))
    splits = load_speech_corpus(tmp_path / "corpus")
    assert set(splits) == {"train", "validation", "test"}
    train = splits["train"]
    assert train.features["audio"] == datasets.Audio(decode=False)
    assert train["speaker"][:] == [str(row % 3) for row in rows_of(train)]
    assert train["label"][:] == [row % 2 for row in rows_of(train)] and train.features["label"].names == ["no", "yes"]
    if kind != "saved to disk":
        one = load_speech_corpus(tmp_path / "corpus" / "train-00000-of-00001.parquet", text_column="none")
        assert sum(map(len, one.values())) == 12 and "label" not in one["train"].column_names


def test_missing_columns_are_named(tmp_path):
    def saved(dataset) -> str:
        folder = tmp_path / dataset._fingerprint
        dataset.save_to_disk(str(folder))
        return str(folder)

    with pytest.raises(ValueError, match="no column that names the speaker.*audio.*speaker_column"):
        load_speech_corpus(saved(corpus().remove_columns("speaker")))
    with pytest.raises(ValueError, match="no column of audio.*speaker \\(string\\).*audio_column"):
        load_speech_corpus(saved(corpus().remove_columns("audio")))
    path = saved(corpus(mood=[0.5] * 12))
    with pytest.raises(ValueError, match="no column 'who' for the speaker.*mood"):
        load_speech_corpus(path, speaker_column="who")
    with pytest.raises(ValueError, match="Column 'mood'.*holds no speaker"):
        load_speech_corpus(path, speaker_column="mood")
    with pytest.raises(ValueError, match="Column 'speaker'.*holds no audio"):
        load_speech_corpus(path, audio_column="speaker")
    with pytest.raises(ValueError, match="no column 'said' for the text"):
        load_speech_corpus(path, text_column="said")
    with pytest.raises(ValueError, match="2 rows have no speaker, 3, 4"):
        load_speech_corpus(saved(corpus(speakers=("a", "b", "a", "", None, "b"), num_rows=6)))
    with pytest.raises(ValueError, match="validation_fraction"):
        load_speech_corpus(path, validation_fraction=1)


def test_validation_is_chosen_by_what_is_heard(tmp_path, caplog):
    stored = corpus(40)
    order = np.random.default_rng(0).permutation(40)
    held_out = {}
    for name, dataset in {"one": stored, "other": stored.select(order)}.items():
        dataset.save_to_disk(str(tmp_path / name))
        with caplog.at_level(logging.WARNING):
            held_out[name] = set(rows_of(load_speech_corpus(tmp_path / name, validation_fraction=0.2)["validation"]))
    assert "no validation split" in caplog.text and "audio and seed 0" in caplog.text
    assert held_out["one"] == held_out["other"] and 2 <= len(held_out["one"]) <= 16
    assert (
        set(rows_of(load_speech_corpus(tmp_path / "one", validation_fraction=0.2, seed=1)["validation"]))
        != (held_out["one"])
    )
    assert set(rows_of(load_speech_corpus(tmp_path / "one", validation_fraction=0.1)["validation"])) < held_out["one"]


def test_nobody_loses_his_only_recording_to_validation(tmp_path):
    corpus(12, speakers=[f"s{row % 9}" for row in range(12)]).save_to_disk(str(tmp_path / "few"))
    splits = load_speech_corpus(tmp_path / "few", validation_fraction=0.9)
    assert set(splits["validation"]["speaker"]) <= set(splits["train"]["speaker"])
    assert len(set(splits["train"]["speaker"])) == 9
    corpus(3).save_to_disk(str(tmp_path / "single"))
    with pytest.raises(ValueError, match="3 recordings of as many speakers"):
        load_speech_corpus(tmp_path / "single")


def test_whole_speakers_are_held_out(tmp_path):
    path = tmp_path / "corpus"
    datasets.DatasetDict({"train": corpus(12), "validation": corpus(15).select(range(12, 15))}).save_to_disk(str(path))
    splits = load_speech_corpus(path, held_out_speakers=["bob"])
    assert list(splits) == ["train", "validation", "unseen"]
    assert rows_of(splits["unseen"]) == [1, 4, 7, 10, 13]
    assert set(splits["train"]["speaker"]) == set(splits["validation"]["speaker"]) == {"ann", "cid"}
    assert set(load_speech_corpus(path, held_out_speakers="ann")["unseen"]["speaker"]) == {"ann"}
    chosen = [
        set(load_speech_corpus(path, held_out_speakers=2, seed=seed)["unseen"]["speaker"]) for seed in (0, 0, 1, 2)
    ]
    assert len(chosen[0]) == 2 and chosen[0] == chosen[1] and len(set(map(frozenset, chosen))) > 1
    with pytest.raises(ValueError, match="no speaker dan to hold out.*ann, bob, cid"):
        load_speech_corpus(path, held_out_speakers=["dan"])
    with pytest.raises(ValueError, match="3 speakers: cannot hold out 3"):
        load_speech_corpus(path, held_out_speakers=3)


def test_the_embedded_corpus_by_name(monkeypatch):
    from hf_autoencoders.data import espeak

    phones = [[{"phone": "a", "start": 0.0, "end": 0.1}] for _ in range(12)]
    words = datasets.ClassLabel(names=["taxi"])
    spoken = corpus(language=["en"] * 12, text=["x"] * 12, label=[-1] * 12, phones=phones).cast_column("label", words)
    monkeypatch.setattr(espeak, "load_espeak_corpus", lambda: {"train": spoken, "validation": spoken.select([0, 3])})
    splits = load_speech_corpus(held_out_speakers=["bob"])
    assert sorted(splits["train"].column_names) == ["audio", "label", "phones", "speaker", "text"]
    assert rows_of(splits["unseen"]) == [1, 4, 7, 10] and rows_of(splits["validation"]) == [0, 3]
    clips = speech_clips(splits["train"], new_extractor())
    assert clips.words.tolist() == [-1] * 8 and clips.word_names == ["taxi"]
    assert clips.phones[0][0]["phone"] == "a"
    with pytest.raises(ValueError, match="'espeak' has no configurations"):
        load_speech_corpus("espeak", "x")


# ---- clips


def test_clips_are_what_the_extractor_makes_of_the_recordings():
    extractor, dataset = new_extractor(), corpus(text=[["yes", "no"][row % 2] for row in range(12)])
    clips = speech_clips(dataset, extractor, fit=True)
    assert len(clips) == 12 and clips.features.dtype == np.float32
    np.testing.assert_allclose(clips.features.mean(axis=0), 0, atol=1e-4)
    assert extractor.mean is not None
    waveforms = [tone(row) for row in range(12)]
    expected = extractor(waveforms, sampling_rate=RATE, return_tensors="pt")
    features, mask = clips.pad(slice(None))
    torch.testing.assert_close(features, expected.input_features, atol=1e-5, rtol=0)
    assert torch.equal(mask, expected.attention_mask) and clips.lengths.tolist() == mask.sum(1).tolist()
    for row in (0, 5, -1):
        assert (clips.clip(row) == features[row][: clips.lengths[row]].numpy()).all()
        assert (clips.waveform(row) == waveforms[row]).all() and clips.num_samples[row] == len(waveforms[row])
    assert clips.speaker_names == list(SPEAKERS) and clips.speakers.tolist() == [row % 3 for row in range(12)]
    assert clips.word_names == ["no", "yes"] and clips.words.tolist() == [1 - row % 2 for row in range(12)]
    some = clips.select([7, 2])
    assert (some.clip(0) == clips.clip(7)).all() and (some.waveform(1) == waveforms[2]).all()
    assert some.speakers.tolist() == [1, 2] and some.word_names == clips.word_names and len(some) == 2
    assert len(clips.select(clips.speakers == 0)) == 4


def test_clips_are_made_once(monkeypatch):
    dataset, extractor = corpus(), new_extractor()
    first = speech_clips(dataset, extractor, fit=True)
    monkeypatch.setattr(speech_module, "_write_log_mels", lambda *args: pytest.fail("decoded again"))
    assert (speech_clips(dataset, extractor).features == first.features).all()
    other = new_extractor(mean=1.0, std=2.0)
    expected = (first.features * np.float32(extractor.std) + np.float32(extractor.mean) - 1) / 2
    np.testing.assert_allclose(speech_clips(dataset, other).features, expected, atol=1e-5)
    assert (speech_clips(dataset, extractor).features == first.features).all()
    for changed in ({"extractor": new_extractor(fmin=100.0)}, {"dataset": dataset.select(range(11))}):
        with pytest.raises(pytest.fail.Exception, match="decoded again"):
            speech_clips(changed.get("dataset", dataset), changed.get("extractor", extractor))


def test_a_damaged_cache_is_made_again(cache):
    dataset, extractor = corpus(), new_extractor(mean=0.0)
    expected = np.array(speech_clips(dataset, extractor).features)
    (log_mels,) = cache.glob("speech/*/log_mels.float32")
    (features,) = cache.glob("speech/*/features-*.float32")
    for file in (log_mels, features):
        file.write_bytes(file.read_bytes()[:100])
        assert (speech_clips(dataset, extractor).features == expected).all()
    key = log_mels.parent.name
    (cache / "speech" / f"{key}.writing-dead").mkdir()
    log_mels.unlink()
    speech_clips(dataset, extractor)
    assert not list(cache.glob("speech/*.writing-*"))


def test_names_known_from_training_keep_their_numbers():
    dataset = corpus(6, speakers=("cid", "zoe", "bob"), text=["no", "maybe"] * 3)
    clips = speech_clips(dataset, new_extractor(), speakers=SPEAKERS, words=["yes", "no"])
    assert clips.speaker_names == [*SPEAKERS, "zoe"] and clips.speakers.tolist() == [2, 3, 1] * 2
    assert clips.word_names == ["yes", "no", "maybe"] and clips.words.tolist() == [1, 2] * 3
    sentences = speech_clips(corpus(text=[f"sentence {row}" for row in range(12)]), new_extractor())
    assert sentences.words is None and sentences.word_names is None


def test_bad_audio_is_named_or_skipped(caplog):
    stereo = flac(np.stack([tone(7)] * 2, axis=1))
    bad = {2: b"no audio", 5: stereo, 9: flac(np.zeros(0, np.float32))}
    dataset = corpus(replace=bad)
    with pytest.raises(
        BadAudioError, match=r"Bad audio in row 2 of split 'train', column 'audio' \(2.flac\).*on_bad_audio"
    ) as raised:
        speech_clips(dataset, new_extractor())
    assert ".." not in str(raised.value) and ". Repair or remove the row" in str(raised.value)
    with caplog.at_level(logging.WARNING):
        clips = speech_clips(dataset, new_extractor(), on_bad_audio="skip")
    assert clips.skipped == [2, 5, 9] and "3 of 12 rows are left out for their bad audio: 2, 5, 9" in caplog.text
    kept = [0, 1, 3, 4, 6, 7, 8, 10, 11]
    assert clips.speakers.tolist() == [row % 3 for row in kept]
    assert all((clips.waveform(index) == tone(row)).all() for index, row in enumerate(kept))
    mixed = speech_clips(dataset, new_extractor(), on_bad_audio="skip", downmix=True)
    assert mixed.skipped == [2, 9] and (mixed.waveform(4) == tone(7)).all()
    with pytest.raises(ValueError, match="None of the 2 recordings"):
        speech_clips(corpus(2, replace={0: b"x", 1: b"x"}), new_extractor(), on_bad_audio="skip")


def test_other_sampling_rates_are_resampled_and_said(caplog):
    other = {1: flac(tone(1, 2340, rate=16000), 16000), 3: flac(tone(3, 4530, rate=24000), 24000)}
    with caplog.at_level(logging.WARNING):
        clips = speech_clips(corpus(5, replace=other), new_extractor(), fit=True)
    assert "Resampled to 8000 samples per second: 1 clips of 16000, 1 clips of 24000" in caplog.text
    assert clips.num_samples.tolist() == [1000, 1170, 1340, 1510, 1680]
    np.testing.assert_allclose(clips.waveform(1)[100:-100], tone(1)[100:-100], atol=1e-3)


def test_a_clip_of_one_sample_and_silence():
    silent = {0: flac(np.zeros(1, np.float32)), 1: flac(np.zeros(900, np.float32))}
    clips = speech_clips(corpus(4, replace=silent), new_extractor(), fit=True)
    assert clips.lengths.tolist()[:2] == [1, 10] and np.isfinite(clips.features).all()


@pytest.mark.parametrize(
    "given, options, kind, message",
    [
        (lambda: {"train": corpus()}, {}, TypeError, "got dict. Choose a split"),
        (lambda: corpus().remove_columns("speaker"), {}, ValueError, "no column 'speaker'.*audio"),
        (lambda: corpus().select([]), {}, ValueError, "corpus is empty"),
        (corpus, {"on_bad_audio": "ignore"}, ValueError, "'raise' or 'skip'"),
    ],
)
def test_speech_clips_refuses(given, options, kind, message):
    with pytest.raises(kind, match=message):
        speech_clips(given(), new_extractor(), **options)


def test_clips_that_do_not_fit_together_are_refused():
    features = np.zeros((10, 4), np.float32)
    good = {"features": features, "starts": np.array([0, 4, 10]), "speakers": np.zeros(2, int), "speaker_names": ["a"]}
    assert len(SpeechClips(**good)) == 2
    for wrong, message in (
        ({"features": features.astype(np.float64)}, "float32"),
        ({"starts": np.array([0, 4, 9])}, "number of frames"),
        ({"starts": np.array([0, 0, 10])}, "rise from 0"),
        ({"speakers": np.zeros(3, int)}, "speakers has 3 entries for 2 clips"),
        ({"words": np.zeros(1, int)}, "words has 1 entries"),
    ):
        with pytest.raises(ValueError, match=message):
            SpeechClips(**{**good, **wrong})
    with pytest.raises(ValueError, match="no waveforms"):
        SpeechClips(**good).waveform(0)


# ---- batches


def numbered_clips(num_clips: int = 29, num_speakers: int = 4) -> SpeechClips:
    """Clips whose frames say which clip and which frame they are."""
    lengths = 3 + np.arange(num_clips) * 7 % 11
    number = np.repeat(np.arange(num_clips), lengths)
    frame = np.concatenate([np.arange(length) for length in lengths])
    speakers = np.arange(num_clips) % num_speakers
    speakers[-1] = num_speakers  # has one clip only
    return SpeechClips(
        features=np.stack([number, frame], axis=1).astype(np.float32),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        speakers=speakers,
        speaker_names=[str(name) for name in range(num_speakers + 1)],
    )


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) if isinstance(one[name], torch.Tensor) else one[name] == other[name]
        for name in one
    )


OPTIONS = {"shuffle": True, "seed": 3, "drop_last": False}


@pytest.mark.parametrize("options", [{}, {"max_frames": 5}, {"bucket_by_length": True}, {"shuffle": False}])
def test_batches_hold_each_clip_once_with_another_of_its_speaker(options):
    clips = numbered_clips()
    seen = []
    for batch in SpeechBatches(clips, 6, **{**OPTIONS, **options}):
        rows, speakers = batch["rows"].numpy(), batch["speaker_ids"].numpy()
        seen += rows.tolist()
        assert (speakers == clips.speakers[rows]).all()
        assert batch["global_frames"] == batch["attention_mask"].sum() and batch["global_size"] == len(rows)
        for prefix in ("input_", "speaker_"):
            features = batch[f"{prefix}features"].numpy()
            mask = batch["attention_mask" if prefix == "input_" else "speaker_attention_mask"].numpy()
            assert mask.dtype == np.int64 and features.dtype == np.float32 and features.shape[:2] == mask.shape
            assert mask.sum(1).max() == mask.shape[1] and (features[mask == 0] == 0).all()
            for row, speaker, own_mask, own in zip(rows, speakers, mask, features, strict=True):
                real = own[: own_mask.sum()]
                number = int(real[0, 0])
                length = min(clips.lengths[number], options.get("max_frames", 99))
                assert (real[:, 0] == number).all() and len(real) == length
                assert (np.diff(real[:, 1]) == 1).all()  # frames in their order, none left out
                assert clips.speakers[number] == speaker
                only_one = (clips.speakers == speaker).sum() == 1
                assert (number == row) == (prefix == "input_" or only_one)
    assert sorted(seen) == list(range(29))
    assert (seen == list(range(29))) == (options.get("shuffle") is False)


def test_other_clips_and_parts_are_drawn_evenly():
    clips, others, starts = numbered_clips(), [], []
    batches = SpeechBatches(clips, 29, max_frames=3, **{**OPTIONS, "drop_last": True})
    for epoch in range(300):
        batches.set_epoch(epoch)
        (batch,) = batches
        place = batch["rows"].tolist().index(8)
        others.append(int(batch["speaker_features"][place, 0, 0]))
        starts.append(int(batch["input_features"][place, 0, 1]))
    own = [row for row in range(28) if row % 4 == 0 and row != 8]
    assert sorted(set(others)) == own
    assert min(others.count(row) for row in own) > 300 / len(own) / 2
    assert sorted(set(starts)) == list(range(int(clips.lengths[8]) - 3 + 1))


@pytest.mark.parametrize("options", [{}, {"max_frames": 4}, {"bucket_by_length": True, "max_frames": 6}])
def test_any_number_of_processes_shares_the_same_batches(options):
    clips = numbered_clips()
    alone = list(SpeechBatches(clips, 6, **OPTIONS, **options))
    for num_processes in (2, 3, 5):
        ranks = [
            list(SpeechBatches(clips, 6, process_index=rank, num_processes=num_processes, **OPTIONS, **options))
            for rank in range(num_processes)
        ]
        for whole, *parts in zip(alone, *ranks, strict=True):
            joined = {
                name: torch.cat([part[name] for part in parts]) if isinstance(value, torch.Tensor) else value
                for name, value in whole.items()
            }
            assert same(joined, whole)
            assert all(part["global_frames"] == whole["global_frames"] for part in parts)


def test_a_position_is_all_that_a_resume_needs():
    clips = numbered_clips()
    batches = SpeechBatches(clips, 6, max_frames=4, **OPTIONS)
    batches.set_epoch(2)
    whole = list(batches)
    torch.manual_seed(99)
    np.random.seed(99)
    again = SpeechBatches(clips, 6, max_frames=4, **OPTIONS)
    list(again)
    again.set_epoch(2)
    for start in range(len(batches) + 1):
        assert len(list(again.iterate(start))) == len(whole) - start
        assert all(same(one, other) for one, other in zip(again.iterate(start), whole[start:], strict=True))
    batches.set_epoch(3)
    assert not same(next(iter(batches)), whole[0])
    iterator = batches.iterate()
    batches.set_epoch(2)
    assert not same(next(iterator), whole[0])  # an iteration stays in its epoch
    fixed = SpeechBatches(clips, 6, **{**OPTIONS, "shuffle": False}, max_frames=4)
    first = list(fixed)
    fixed.set_epoch(5)
    assert all(same(one, other) for one, other in zip(fixed, first, strict=True))


def test_batches_of_like_lengths_need_less_padding():
    clips = numbered_clips(400)

    def padding(**options) -> float:
        masks = [batch["attention_mask"] for batch in SpeechBatches(clips, 8, **OPTIONS, **options)]
        return sum(int((mask == 0).sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding(bucket_by_length=True) < 0.1 < 0.2 < padding()


@pytest.mark.parametrize(
    "size, options, message",
    [
        (0, {}, "batch_size must be at least 1"),
        (30, {"drop_last": True}, "29 rows make no full batch of 30"),
        (7, {"num_processes": 2}, "The last batch of 29 rows has 1 of 7"),
        (4, {"max_frames": 0}, "max_frames must be at least 1"),
        (4, {"seed": -1}, "seed must not be negative"),
    ],
)
def test_batches_refuse(size, options, message):
    with pytest.raises(ValueError, match=message):
        SpeechBatches(numbered_clips(), size, **{**OPTIONS, **options})
    with pytest.raises(ValueError, match=r"start_batch must be in 0\.\.5"):
        SpeechBatches(numbered_clips(), 6, **OPTIONS).iterate(6)


# ---- other voices


def spoken(extractor, *waveforms):
    batch = extractor([*waveforms], sampling_rate=RATE, return_tensors="pt")
    return batch.input_features, batch.attention_mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


NOTHING = {"formant_shift": 0.0, "equalizer": 0.0}


def test_no_perturbation_is_none_and_others_are_drawn_by_the_generator():
    extractor = new_extractor(mean=-3.0, std=2.0)
    features, mask = spoken(extractor, tone(3, 2000), tone(4, 1000))
    kept = perturb_voice(features, mask, seeded(), feature_extractor=extractor, **NOTHING)
    torch.testing.assert_close(kept, features, atol=1e-5, rtol=0)
    changed = perturb_voice(features, mask, seeded(), feature_extractor=extractor)
    assert torch.equal(changed, perturb_voice(features, mask, seeded(), feature_extractor=extractor))
    assert not torch.equal(changed, perturb_voice(features, mask, seeded(1), feature_extractor=extractor))
    assert changed.shape == features.shape and (changed[mask == 0] == 0).all() and torch.isfinite(changed).all()
    unmasked = perturb_voice(features, None, seeded(), feature_extractor=extractor)
    assert torch.equal(unmasked[mask == 1], changed[mask == 1]) and (unmasked[mask == 0] != 0).any()
    half = perturb_voice(features.bfloat16(), mask, seeded(), feature_extractor=extractor)
    assert half.dtype == torch.bfloat16


def test_rows_of_several_processes_get_what_they_get_of_one():
    extractor = new_extractor()
    features, mask = spoken(extractor, *[tone(row, 1500) for row in range(5)])
    options = {"feature_extractor": extractor}
    whole = perturb_voice(features, mask, seeded(), **options)
    for rows in (slice(0, 2), slice(2, 5)):
        part = perturb_voice(features[rows], mask[rows], seeded(), **options, rows=rows, num_rows=5)
        assert torch.equal(part, whole[rows])
    changes = (whole - features).flatten(1)
    assert len({round(float(change.abs().sum()), 4) for change in changes}) == 5  # each row in a voice of its own
    with pytest.raises(ValueError, match="not the 3 that came"):
        perturb_voice(features[:3], mask[:3], seeded(), **options, rows=slice(0, 2), num_rows=5)


@pytest.mark.parametrize("log_scale", ["log", "log10"])
def test_the_frequencies_are_multiplied(monkeypatch, log_scale):
    extractor = new_extractor(feature_size=64, log_scale=log_scale, mean=-2.0, std=1.5)

    def sounds(*frequencies):
        time = np.arange(4000) / RATE
        return spoken(extractor, sum(0.2 * np.sin(2 * np.pi * frequency * time) for frequency in frequencies))

    features, mask = sounds(400, 1800)
    for highest in (0.0, 1.0):  # the lowest and the highest draw of a uniform number
        factor = float(np.exp((2 * highest - 1) * 0.2))
        monkeypatch.setattr(
            torch, "rand", lambda *shape, highest=highest, generator=None, device=None: torch.full(shape, highest)
        )
        moved = perturb_voice(
            features, mask, seeded(), feature_extractor=extractor, **{**NOTHING, "formant_shift": 0.2}
        )
        expected, _ = sounds(400 * factor, 1800 * factor)
        inner = slice(5, -5)
        for low, high in ((0, 25), (25, 64)):
            peaks = [int(x[0, inner, low:high].mean(0).argmax()) for x in (features, moved, expected)]
            assert abs(peaks[1] - peaks[2]) <= 1 < abs(peaks[0] - peaks[2])


@pytest.mark.parametrize("log_scale", ["log", "log10"])
def test_gains_bend_the_spectrum_and_keep_the_floor(log_scale):
    extractor = new_extractor(log_scale=log_scale, std=3.0)
    unit = 1.0 if log_scale == "log" else 1 / np.log(10)
    noise = np.random.default_rng(0).normal(scale=0.1, size=(64, 1500)).astype(np.float32)  # far above the floor
    features, mask = spoken(extractor, *noise)
    bent = perturb_voice(features, mask, seeded(), feature_extractor=extractor, **{**NOTHING, "equalizer": 0.5})
    change = extractor.denormalize(bent) - extractor.denormalize(features)
    assert change.std(dim=1).max() < 1e-4 and 0.35 * unit < change[:, 0, 0].std() < 0.65 * unit
    assert change[:, 0].diff(dim=1).abs().max() < change[:, 0].abs().max()  # smooth
    quiet = extractor(np.zeros(1500), sampling_rate=RATE, return_tensors="pt")
    for generator in map(seeded, range(8)):
        darker = perturb_voice(quiet.input_features, None, generator, feature_extractor=extractor)
        floor = np.log(1e-5) * unit
        assert extractor.denormalize(darker).min() > floor - 1e-3


def test_perturb_voice_refuses():
    extractor = new_extractor()
    features = torch.zeros(2, 5, 20)
    with pytest.raises(ValueError, match=r"\(batch, frames, 20\), got \(2, 5, 19\)"):
        perturb_voice(torch.zeros(2, 5, 19), None, seeded(), feature_extractor=extractor)
    with pytest.raises(ValueError, match="formant_shift must be at least 0, got -0.1"):
        perturb_voice(features, None, seeded(), feature_extractor=extractor, formant_shift=-0.1)
