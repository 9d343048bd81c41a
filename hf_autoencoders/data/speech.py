"""Recordings of a corpus -> batches for a model.

    load_speech_corpus: corpora by name                                     -->  datasets with audio, speaker [, text]
    speech_clips: decode, resample, log-mel once, by the feature extractor  -->  SpeechClips, float32, memory-mapped
    SpeechBatches: shuffle by own seed, crop, slice by rank                 -->  float32 tensors and masks
    perturb_voice: the same speech in another voice, on the device          -->  float32 tensors

Audio is read with soundfile and resampled with soxr (extra `audio`); `datasets` itself decodes only with torchcodec,
which is not needed here.
"""

import contextlib
import csv
import hashlib
import json
import logging
import math
import os
import shutil
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .corpora import SPLIT_NAMES, _load, _named_splits, _shares
from .images import _check_batching, _listed, _place, _rank_slice, default_cache_dir
from .text import LengthBucketedBatches

logger = logging.getLogger(__name__)

CACHE_FORMAT = 1
ROWS_PER_TASK = 16
FRAMES_PER_READ = 100_000
EQUALIZER_POINTS = 6  # of the gain curve of `perturb_voice`
SYSTEM_ERROR = 2  # of libsndfile
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".rf64", ".caf")
AUDIO_COLUMN_NAMES = ("audio", "speech", "recording", "clip", "wav")
SPEAKER_COLUMN_NAMES = ("speaker", "speaker_id", "speaker_name", "spk", "spk_id", "client_id", "voice", "reader")
TEXT_COLUMN_NAMES = ("text", "sentence", "transcription", "transcript", "normalized_text")
WORD_COLUMN_NAMES = ("label", "word", "keyword", "digit", "command")
SPLITS = {"train", "validation", "test", *SPLIT_NAMES}
LAYOUT = (
    "Expected SPEAKER/any.wav (also .flac, .ogg, .mp3 ...), with train/ and validation/ above it or not; or a "
    "metadata.csv (or .jsonl) with columns file_name, speaker and perhaps text."
)


class BadAudioError(ValueError):
    """A recording of a corpus is missing, cannot be decoded, or is refused. Names its row and column."""


# ---- files


def _need(module: str):
    import importlib

    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: soundfile without its library
        raise ImportError(f"Audio needs {module}: pip install 'hf-autoencoders[audio]' ({error}).") from error


def read_audio(source, sampling_rate: int | None = None, *, downmix: bool = False) -> tuple[np.ndarray, int]:
    """A recording -> (waveform float32 (n,) in [-1, 1], samples per second).

    Args:
        source: a file's path, its bytes, an open file, or `{"bytes", "path"}` as datasets store it.
        sampling_rate: resample to this; `None` keeps the file's own.
        downmix: average the channels of stereo. Without it, more than one channel is an error.

    Raises:
        FileNotFoundError: there is no such file. IsADirectoryError: it is a folder. ValueError: it is no audio, empty,
            not finite, or has several channels. ImportError: soundfile or soxr are missing (extra `audio`).
    """
    soundfile = _need("soundfile")
    name = ""
    if isinstance(source, dict):
        content, path = source.get("bytes"), source.get("path")
        if content is None and path is None:
            raise ValueError("The audio is missing (None).")
        name, source = path or "", path if content is None else content
    if isinstance(source, bytes | bytearray):
        file = BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if "://" in name:  # a dataset may hand out addresses: datasets knows how to read them
            from datasets.utils.file_utils import xopen

            with xopen(name, "rb") as opened:
                file = BytesIO(opened.read())
        elif Path(name).expanduser().is_dir():
            raise IsADirectoryError(f"{name} is a folder, expected an audio file.")
        elif not Path(name).expanduser().is_file():
            raise FileNotFoundError(f"There is no audio file {name}.")
        else:
            file = str(Path(name).expanduser())
    else:
        file = source
    what = f"The audio {name}".rstrip() if name else "The audio"
    try:
        waveform, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        reason = "its content is no audio that libsndfile knows"
        if getattr(error, "code", None) == SYSTEM_ERROR:  # no right to read it, a broken disk
            reason = "the system refuses"
        raise ValueError(
            f"{what} cannot be read: {reason}. Expected WAV, FLAC, OGG, MP3 or what else libsndfile reads; convert "
            "other formats first, for example with ffmpeg."
        ) from error
    if len(waveform) == 0:
        raise ValueError(f"{what} is empty: it has no samples.")
    channels = waveform.shape[1]
    if channels > 1 and not downmix:
        raise ValueError(
            f"{what} has {channels} channels, expected one. To average them, pass downmix=True, or write a mono file."
        )
    waveform = waveform[:, 0] if channels == 1 else waveform.mean(axis=1)
    if not np.isfinite(waveform).all():
        raise ValueError(f"{what} holds NaN or infinite values.")
    if sampling_rate is not None and sampling_rate != rate:
        return resample(waveform, rate, sampling_rate), sampling_rate
    return np.ascontiguousarray(waveform), rate


def write_audio(path, waveform, sampling_rate: int) -> None:
    """Write a waveform (n,), floats in [-1, 1], as 16 bit file; the suffix of the path says which format.

    A waveform that goes beyond [-1, 1] is made quieter as a whole, with a warning, and not clipped.

    Raises:
        ValueError: not one channel, empty, not finite, or a suffix that is no audio format.
    """
    soundfile = _need("soundfile")
    waveform = np.asarray(waveform.detach().cpu() if isinstance(waveform, torch.Tensor) else waveform, np.float32)
    if waveform.ndim != 1 or waveform.size == 0 or not np.isfinite(waveform).all():
        raise ValueError(f"Expected a finite waveform (n,) with n > 0, got shape {waveform.shape}.")
    peak = float(np.abs(waveform).max())
    if peak > 1:
        logger.warning("%s: the waveform reaches %.2f and is divided by it, to stay in [-1, 1].", path, peak)
        waveform = waveform / peak
    path = Path(path).expanduser()
    if path.suffix.lstrip(".").upper() not in soundfile.available_formats():
        raise ValueError(f"{path} has no suffix of an audio format: expected .wav, .flac, .ogg or .mp3.")
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), waveform, sampling_rate)


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """A waveform (n,) at another rate, float32: soxr in its high quality. At least one sample comes out."""
    if from_rate < 1 or to_rate < 1:
        raise ValueError(f"Sampling rates must be at least 1, got {from_rate} and {to_rate}.")
    waveform = np.ascontiguousarray(waveform, dtype=np.float32)
    if from_rate == to_rate:
        return waveform
    resampled = _need("soxr").resample(waveform, from_rate, to_rate)
    return resampled if len(resampled) else np.zeros(1, np.float32)


# ---- corpora


def load_speech_corpus(
    name: str = "espeak",
    config_name: str | None = None,
    *,
    revision: str | None = None,
    audio_column: str | None = None,
    speaker_column: str | None = None,
    text_column: str | None = None,
    validation_fraction: float = 0.1,
    held_out_speakers: int | Sequence[str] = (),
    seed: int = 0,
) -> dict:
    """A corpus of recordings as `{"train": ..., "validation": ... [, "unseen": ...]}` of `datasets.Dataset`.

    Their columns: `audio`, an `Audio(decode=False)`; `speaker`, a string; where there are any, `text`, a string,
    `label`, a `ClassLabel` of the words said (-1: none of them), and `phones`, a list of `{"phone", "start", "end"}` in
    seconds.

    Args:
        name: one of
            - `"espeak"`: the embedded corpus, synthetic voices in five languages (see `load_espeak_corpus`; `./espeak`
              is a folder);
            - the id of a dataset on the Hub, a `.parquet` file, a folder of parquet files (`train*.parquet`,
              `validation*.parquet`) or of `save_to_disk`, with columns for audio and speaker;
            - a folder of recordings: `SPEAKER/any.wav` (or .flac, .ogg, .mp3 ...; folders below a speaker's are his
              too), with `train/` and `validation/` above it or not; or with a `metadata.csv` (or `.jsonl`): columns
              `file_name`, `speaker` (else the folder is) and perhaps `text`.
        config_name, revision: configuration, and branch, tag or commit, of a dataset on the Hub. Pin the revision to
            repeat a run.
        audio_column, speaker_column, text_column: by their usual names where `None`. A text column may be one of
            classes, the words; `"none"` for no text.
        validation_fraction, seed: a corpus without a validation split gets one: about this fraction of `train`, chosen
            by the seed and by what the recordings hold, never by where they lie. Nobody loses his only recording.
        held_out_speakers: names of speakers, or how many (chosen by the seed among those with no fewer clips than the
            median): all their clips, of all splits, are the split `unseen`.

    Raises:
        FileNotFoundError: there is no such corpus. ValueError: it lacks a column (listing those there are), a named
            speaker, or its `train` is empty.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must be between 0 and 1 (exclusive), got {validation_fraction}.")
    name = str(name)
    path = Path(name).expanduser()
    if name == "espeak":
        from .espeak import load_espeak_corpus

        if config_name or revision:
            raise ValueError("The embedded corpus 'espeak' has no configurations or revisions.")
        splits = load_espeak_corpus()
    elif path.is_dir() and (files := _audio_files(path)):
        splits = _load_folder(path, files, speaker_column, text_column)
        speaker_column = text_column = None
    else:
        try:
            splits = _named_splits(name, _load(name, config_name, revision, False))
        except ImportError as error:  # a repository of audio files, which datasets itself wants to decode
            raise ValueError(
                f"Corpus {name!r} holds audio files and no parquet ({error}). Download it (hf download --repo-type "
                f"dataset {name} --local-dir FOLDER) and name the folder."
            ) from error
    splits = {key: _columns(split, name, audio_column, speaker_column, text_column) for key, split in splits.items()}
    splits = _hold_out_speakers(splits, name, held_out_speakers, seed)
    if len(splits["train"]) == 0:
        raise ValueError(f"Corpus {name!r} is empty: its split 'train' has no rows.")
    if "validation" not in splits:
        splits = _with_validation(splits, name, validation_fraction, seed)
    return splits


def _audio_files(folder: Path) -> list[Path]:
    """Recordings below a folder, sorted, absolute; none where it is a folder of `save_to_disk`."""
    if any((folder / file).exists() for file in ("dataset_dict.json", "state.json")):
        return []
    files = (file for file in Path(os.path.abspath(folder)).rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
    return sorted(file for file in files if file.is_file() and not file.name.startswith("."))


def _load_folder(folder: Path, files: list[Path], speaker_column, text_column) -> dict:
    import datasets

    listed = {}
    for table in sorted((*folder.rglob("metadata.csv"), *folder.rglob("metadata.jsonl"))):
        for line, row in _read_table(table):
            file = Path(os.path.abspath(table.parent / row["file_name"]))  # not resolved: it may be a link to elsewhere
            if not file.is_file():
                raise FileNotFoundError(f"{table}, line {line}: there is no file {row['file_name']!r}.")
            listed[file] = row
    if listed:
        left_out = len(set(files) - set(listed))
        if left_out:
            logger.warning(
                "%d of %d audio files in %s are not in its metadata: left out.", left_out, len(files), folder
            )
        files = sorted(listed)
    columns = list(next(iter(listed.values()))) if listed else []
    speaker_column = _folder_column(speaker_column, SPEAKER_COLUMN_NAMES, columns, "speaker", folder)
    if text_column != "none":
        text_column = _folder_column(text_column, (*TEXT_COLUMN_NAMES, *WORD_COLUMN_NAMES), columns, "text", folder)
    places = {file: Path(os.path.relpath(file, folder)).parts for file in files}
    tops = {parts[0] for parts in places.values()}
    by_split = "train" in {SPLIT_NAMES.get(top, top) for top in tops} and tops <= SPLITS

    rows: dict[str, list] = {}
    for file, parts in places.items():
        split, parts = (parts[0], parts[1:]) if by_split else ("train", parts)
        row = listed.get(file, {})
        speaker = row.get(speaker_column) if speaker_column else parts[0] if len(parts) > 1 else None
        if speaker in (None, ""):
            raise ValueError(f"Who speaks in {file}? {LAYOUT}")
        status = file.stat()
        rows.setdefault(SPLIT_NAMES.get(split, split), []).append(
            {
                "audio": {"bytes": None, "path": str(file)},
                "speaker": str(speaker),
                "text": str(row.get(text_column) or ""),
                "state": f"{status.st_size} {status.st_mtime_ns}",  # a changed file is another fingerprint
            }
        )
    string = datasets.Value("string")
    features = {"audio": {"bytes": datasets.Value("binary"), "path": string}}
    features = datasets.Features(features | {"speaker": string, "text": string, "state": string})
    dropped = ["state"] + ["text"] * (not listed or text_column in (None, "none"))
    return {
        split: datasets.Dataset.from_list(
            rows[split], features=features, split=datasets.NamedSplit(split)
        ).remove_columns(dropped)
        for split in sorted(rows)
    }


def _read_table(table: Path) -> Iterator[tuple[int, dict]]:
    """Line numbers and rows of a metadata.csv or metadata.jsonl."""
    with open(table, newline="", encoding="utf-8-sig") as file:
        lines = csv.DictReader(file) if table.suffix == ".csv" else map(json.loads, filter(str.strip, file))
        for line, row in enumerate(lines, start=1 + (table.suffix == ".csv")):
            if not row.get("file_name"):
                raise ValueError(
                    f"{table}, line {line}: no 'file_name'. Its columns are: {', '.join(map(str, row))}. {LAYOUT}"
                )
            yield line, row


def _folder_column(asked, names, columns: list[str], what: str, folder: Path) -> str | None:
    if asked is not None and asked not in columns:
        raise ValueError(
            f"There is no column {asked!r} for the {what} in the metadata of {folder}. Its columns are: "
            f"{', '.join(columns) or '(there is no metadata.csv)'}."
        )
    return asked or next((name for name in names if name in columns), None)


def _columns(dataset, corpus: str, audio_column, speaker_column, text_column):
    """The dataset with columns of our names, its audio not decoded."""
    import datasets

    features = dataset.features
    listed = ", ".join(f"{name} ({getattr(kind, 'dtype', type(kind).__name__)})" for name, kind in features.items())

    def find(asked, names, holds, what):
        if asked is not None and asked not in features:
            raise ValueError(f"Corpus {corpus!r} has no column {asked!r} for the {what}. Its columns are: {listed}.")
        if asked is not None and not holds(features[asked]):
            raise ValueError(f"Column {asked!r} of corpus {corpus!r} holds no {what}. Its columns are: {listed}.")
        return asked or next((name for name in names if name in features and holds(features[name])), None)

    def is_audio(kind) -> bool:
        stored = isinstance(kind, dict) and "bytes" in kind or getattr(kind, "dtype", "") in ("binary", "large_binary")
        return isinstance(kind, datasets.Audio) or stored

    def is_string(kind) -> bool:
        return getattr(kind, "dtype", None) in ("string", "large_string")

    def is_class(kind) -> bool:
        return isinstance(kind, datasets.ClassLabel)

    def is_name(kind) -> bool:
        return is_string(kind) or is_class(kind) or "int" in str(getattr(kind, "dtype", ""))

    audios = [name for name, kind in features.items() if isinstance(kind, datasets.Audio)]
    audio = find(
        audio_column, (*audios[:1], *AUDIO_COLUMN_NAMES) if len(audios) == 1 else AUDIO_COLUMN_NAMES, is_audio, "audio"
    )
    if audio is None:
        audio = next((name for name, kind in features.items() if is_audio(kind)), None)
    if audio is None:
        raise ValueError(f"Corpus {corpus!r} has no column of audio. Its columns are: {listed}. Name it: audio_column.")
    speaker = find(speaker_column, SPEAKER_COLUMN_NAMES, is_name, "speaker")
    if speaker is None:
        raise ValueError(
            f"Corpus {corpus!r} has no column that names the speaker. Its columns are: {listed}. Name it: "
            "speaker_column."
        )
    found = {"audio": audio, "speaker": speaker}
    if text_column == "none":
        pass
    elif text_column is not None:
        text = find(text_column, (), lambda kind: is_string(kind) or is_class(kind), "text")
        found["label" if is_class(features[text]) else "text"] = text
    else:
        found["text"] = find(None, (*TEXT_COLUMN_NAMES, *WORD_COLUMN_NAMES), is_string, "text")
        found["label"] = find(None, WORD_COLUMN_NAMES, is_class, "label")
    if "phones" in features:
        found["phones"] = "phones"
    found = {ours: theirs for ours, theirs in found.items() if theirs is not None}

    dataset = dataset.select_columns(list(found.values()))
    for ours, theirs in found.items():
        if ours != theirs:
            dataset = dataset.rename_column(theirs, ours)
    dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
    kind = dataset.features["speaker"]
    if not is_string(kind):
        names = [kind.int2str(value) if is_class(kind) else str(value) for value in dataset["speaker"]]
        dataset = dataset.remove_columns("speaker").add_column("speaker", names)
    missing = [row for row, speaker in enumerate(dataset["speaker"]) if not speaker]
    if missing:
        raise ValueError(f"Corpus {corpus!r}: {len(missing)} rows have no speaker, {_listed(missing)}. Remove them.")
    return dataset


def _hold_out_speakers(splits: dict, corpus: str, held_out, seed: int) -> dict:
    import datasets

    counts = Counter(speaker for split in splits.values() for speaker in split["speaker"])
    if isinstance(held_out, int):
        if not 0 <= held_out < len(counts):
            raise ValueError(
                f"Corpus {corpus!r} has {len(counts)} speakers: cannot hold out {held_out} of them and train on others."
            )
        median = float(np.median(list(counts.values()))) if counts else 0
        eligible = sorted(speaker for speaker, count in counts.items() if count >= median)
        if held_out > len(eligible):
            eligible = sorted(counts)
        held_out = [eligible[i] for i in np.random.default_rng(seed).permutation(len(eligible))[:held_out]]
    held_out = [held_out] if isinstance(held_out, str) else list(held_out)
    unknown = sorted(set(held_out) - set(counts))
    if unknown:
        raise ValueError(
            f"Corpus {corpus!r} has no speaker {', '.join(unknown)} to hold out. Its speakers are: "
            f"{', '.join(sorted(counts)[:50])}{' ...' if len(counts) > 50 else ''}."
        )
    if not held_out:
        return splits
    if "unseen" in splits:
        raise ValueError(f"Corpus {corpus!r} has a split 'unseen' already: leave held_out_speakers out.")
    kept, unseen = {}, []
    for key, split in splits.items():
        mine = np.isin(np.asarray(split["speaker"][:], dtype=object).astype(str), held_out)
        kept[key] = split.select(np.flatnonzero(~mine))
        unseen.append(split.select(np.flatnonzero(mine)))
    unseen = datasets.concatenate_datasets([part for part in unseen if len(part)])
    logger.info("Corpus %r: %d clips of %d speakers are held out whole.", corpus, len(unseen), len(held_out))
    empty = [key for key in kept if key != "train" and len(kept[key]) == 0]
    return {key: split for key, split in kept.items() if key not in empty} | {"unseen": unseen}


def _with_validation(splits: dict, corpus: str, fraction: float, seed: int) -> dict:
    train = splits["train"]
    if len(train) < 2:
        raise ValueError(f"Corpus {corpus!r} has one row: a validation split cannot be cut from it.")
    shares = _shares(train.select_columns("audio"), seed)
    held_out = shares < fraction
    if not held_out.any():  # of a handful of rows
        held_out[shares.argmin()] = True
    speakers = np.asarray(train["speaker"][:], dtype=object)
    for speaker in sorted(set(speakers) - set(speakers[~held_out])):
        mine = np.flatnonzero(speakers == speaker)
        held_out[mine[shares[mine].argmax()]] = False
    if not held_out.any():
        raise ValueError(
            f"Corpus {corpus!r} has {len(train)} recordings of as many speakers: none can be held out for validation."
        )
    logger.warning(
        "Corpus %r has no validation split: %d of its %d train rows are held out (by their audio and seed %d).",
        corpus,
        held_out.sum(),
        len(train),
        seed,
    )
    cut = {"train": train.select(np.flatnonzero(~held_out)), "validation": train.select(np.flatnonzero(held_out))}
    return cut | {key: split for key, split in splits.items() if key != "train"}


# ---- clips


@dataclass
class SpeechClips:
    """A split, as log-mel features.

    Attributes:
        features: float32 (total_frames, num_mel_bins), normalised, all clips one after the other; memory-mapped where
            they come from the cache.
        starts: int64 (num_clips + 1,): clip i is `features[starts[i]:starts[i + 1]]`.
        speakers: int64 (num_clips,), indices into `speaker_names`.
        words: int64 (num_clips,), indices into `word_names`, -1 for none of them; or `None`.
        sampling_rate: of the waveforms, samples per second.
        num_samples: int64 (num_clips,): length of each waveform.
        phones: of each clip, a list of `{"phone", "start", "end"}` in seconds; or `None`.
        skipped: rows of the split left out because their audio is bad (`on_bad_audio="skip"`).
    """

    features: np.ndarray
    starts: np.ndarray
    speakers: np.ndarray
    speaker_names: list[str]
    words: np.ndarray | None = None
    word_names: list[str] | None = None
    sampling_rate: int = 16000
    num_samples: np.ndarray | None = None
    phones: list | None = None
    skipped: list[int] = field(default_factory=list)
    read_waveform: Any = field(default=None, repr=False)  # index -> waveform

    def __post_init__(self):
        if self.features.dtype != np.float32 or self.features.ndim != 2:
            raise ValueError(
                "features must be float32 (total_frames, num_mel_bins), "
                f"got {self.features.dtype} {self.features.shape}."
            )
        if len(self.starts) == 0 or self.starts[-1] != len(self.features) or (np.diff(self.starts) < 1).any():
            raise ValueError(f"starts must rise from 0 to {len(self.features)}, the number of frames.")
        for name in ("speakers", "words", "phones", "num_samples"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self):
                raise ValueError(f"{name} has {len(column)} entries for {len(self)} clips.")

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each clip, int64 (num_clips,)."""
        return np.diff(self.starts)

    def clip(self, index: int) -> np.ndarray:
        """Features of a clip, float32 (frames, num_mel_bins)."""
        index = range(len(self))[index]
        return self.features[self.starts[index] : self.starts[index + 1]]

    def waveform(self, index: int) -> np.ndarray:
        """The recording of a clip, float32 (num_samples,) at `sampling_rate`; decoded at each call."""
        if self.read_waveform is None:
            raise ValueError("These clips were made of features: there are no waveforms.")
        return self.read_waveform(range(len(self))[index])

    def pad(self, rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips as the model takes them: `input_features` (num_rows, longest, num_mel_bins), `attention_mask`."""
        rows = np.arange(len(self))[rows]
        return _gather(self, rows, np.zeros(len(rows), np.int64), self.lengths[rows], int(self.lengths[rows].max()))

    def select(self, rows) -> "SpeechClips":
        """These clips (indices, slice or mask), their features copied. Names stay as they are."""
        rows = np.arange(len(self))[rows]
        parts = [self.clip(row) for row in rows]
        features = np.concatenate([np.empty((0, self.features.shape[1]), np.float32), *parts])
        return SpeechClips(
            features=features,
            starts=np.cumsum([0, *map(len, parts)]).astype(np.int64),
            speakers=self.speakers[rows],
            speaker_names=self.speaker_names,
            words=None if self.words is None else self.words[rows],
            word_names=self.word_names,
            sampling_rate=self.sampling_rate,
            num_samples=None if self.num_samples is None else self.num_samples[rows],
            phones=None if self.phones is None else [self.phones[row] for row in rows],
            read_waveform=self.read_waveform and _Renumbered(self.read_waveform, rows),
        )


@dataclass
class _Renumbered:
    read: Any
    rows: np.ndarray

    def __call__(self, index: int) -> np.ndarray:
        return self.read(int(self.rows[index]))


@dataclass
class _Recordings:
    """Row -> waveform, of a dataset."""

    dataset: Any
    sampling_rate: int
    downmix: bool

    def __call__(self, row: int) -> np.ndarray:
        stored = self.dataset[int(row)]["audio"]
        return read_audio(stored, self.sampling_rate, downmix=self.downmix)[0]


def speech_clips(
    dataset,
    feature_extractor,
    *,
    fit: bool = False,
    cache_dir=None,
    speakers: Sequence[str] | None = None,
    words: Sequence[str] | None = None,
    on_bad_audio: str = "raise",
    downmix: bool = False,
    progress: bool = True,
) -> SpeechClips:
    """Every recording of a split, decoded, resampled to the extractor's rate where it has another (said in the log),
    and turned into normalised log-mels once, as one memory-mapped float32 array.

    The result is cached by the dataset's fingerprint and the extractor's settings, so the next run starts at once. The
    cache is written aside and renamed when complete.

    Args:
        dataset: a split of `load_speech_corpus`: columns `audio` and `speaker`; `label` (or few `text`s) are the words.
        feature_extractor: a `SpeechFeatureExtractor`.
        fit: set the extractor's statistics by these clips first. For the training split of a new model, only.
        cache_dir: by default `speech` beside the other caches (see `default_cache_dir`). Delete it whenever the room is
            needed.
        speakers, words: names with known numbers (`speaker_names`, `word_names` of the training split). Others that
            occur are added after them.
        on_bad_audio: "raise", or "skip" to leave bad rows out, count and list them (`SpeechClips.skipped`).
        downmix: average the channels of stereo, which is bad audio without it.
        progress: show a progress bar when it takes longer than a second.

    Raises:
        BadAudioError: a recording is missing, cannot be decoded or is refused; names row, column, split and file.
        ValueError: the split is empty, or lacks a column. TypeError: not a `datasets.Dataset`.
    """
    import datasets

    if on_bad_audio not in ("raise", "skip"):
        raise ValueError(f"on_bad_audio must be 'raise' or 'skip', got {on_bad_audio!r}.")
    if not isinstance(dataset, datasets.Dataset):
        hint = " Choose a split first." if isinstance(dataset, dict) else ""
        raise TypeError(f"Expected a datasets.Dataset, got {type(dataset).__name__}.{hint}")
    for column in ("audio", "speaker"):
        if column not in dataset.column_names:
            raise ValueError(
                f"The split has no column {column!r}. Its columns are: {', '.join(dataset.column_names)}. "
                "load_speech_corpus finds and names them."
            )
    if len(dataset) == 0:
        raise ValueError("The corpus is empty: it has no rows.")
    dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
    folder = _cached_log_mels(
        dataset,
        feature_extractor,
        Path(cache_dir or default_cache_dir().with_name("speech")),
        on_bad_audio,
        downmix,
        progress,
    )
    meta = json.loads((folder / "meta.json").read_text())
    if meta["skipped"]:
        logger.warning(
            "%d of %d rows are left out for their bad audio: %s.",
            len(meta["skipped"]),
            len(dataset),
            _listed(meta["skipped"]),
        )
    if meta["rates"]:
        logger.warning(
            "Resampled to %d samples per second: %s.",
            feature_extractor.sampling_rate,
            ", ".join(f"{count} clips of {rate}" for rate, count in sorted(meta["rates"].items())),
        )
    starts, num_samples = np.load(folder / "starts.npy"), np.load(folder / "num_samples.npy")
    shape = (int(starts[-1]), feature_extractor.feature_size)
    log_mels = np.memmap(folder / "log_mels.float32", dtype=np.float32, mode="r", shape=shape)
    if fit:
        feature_extractor.fit_statistics(
            log_mels=(log_mels[start : start + FRAMES_PER_READ] for start in range(0, shape[0], FRAMES_PER_READ))
        )
    features = _normalised(folder, log_mels, feature_extractor)

    kept = np.delete(np.arange(len(dataset)), meta["skipped"])
    own = dataset.select(kept)
    speaker_ids, speaker_names = _numbered(own["speaker"][:], speakers)
    word_ids, word_names = _words(own, words)
    read = _Renumbered(_Recordings(dataset, feature_extractor.sampling_rate, downmix), kept)
    return SpeechClips(
        features=features,
        starts=starts,
        speakers=speaker_ids,
        speaker_names=speaker_names,
        words=word_ids,
        word_names=word_names,
        sampling_rate=feature_extractor.sampling_rate,
        num_samples=num_samples,
        phones=list(own["phones"][:]) if "phones" in own.column_names else None,
        skipped=meta["skipped"],
        read_waveform=read,
    )


def _numbered(values, known) -> tuple[np.ndarray, list[str]]:
    names = list(known or ())
    names += sorted(set(values) - set(names))
    number = {name: index for index, name in enumerate(names)}
    return np.asarray([number[value] for value in values], dtype=np.int64), names


def _words(dataset, known) -> tuple[np.ndarray | None, list[str] | None]:
    """Of a column of classes; else of texts, where each is said four times on average."""
    if "label" in dataset.column_names:
        kind, labels = dataset.features["label"], dataset["label"][:]
        values = [kind.names[label] if label is not None and label >= 0 else None for label in labels]
        known = known or kind.names
    elif "text" in dataset.column_names:
        values = [text or None for text in dataset["text"][:]]
        if not known and len(set(values)) > max(2, len(values) / 4):
            return None, None
    else:
        return None, None
    told = {value for value in values if value is not None}
    numbers, names = _numbered(sorted(told), known)
    number = dict(zip(sorted(told), numbers.tolist(), strict=True))
    return np.asarray([number.get(value, -1) for value in values], dtype=np.int64), names


def _cached_log_mels(dataset, extractor, cache_dir: Path, on_bad_audio, downmix, progress) -> Path:
    from filelock import FileLock

    options = extractor.to_dict()
    settings = {
        "format": CACHE_FORMAT,
        "fingerprint": dataset._fingerprint,
        "rows": len(dataset),
        "on_bad_audio": on_bad_audio,
        "downmix": downmix,
        "libsndfile": _need("soundfile").__libsndfile_version__,
        **{name: options[name] for name in ("feature_size", "sampling_rate", "hop_length", "win_length", "n_fft")},
        **{name: options[name] for name in ("fmin", "fmax", "log_floor", "log_scale")},
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_dir / key
    if _is_complete(folder, extractor.feature_size):
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(str(cache_dir / f"{key}.lock")):
        if _is_complete(folder, extractor.feature_size):
            return folder
        for stale in cache_dir.glob(f"{key}.writing-*"):  # of writers that were killed: the lock says none is alive
            shutil.rmtree(stale, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)  # damaged from outside: sizes do not fit
        writing = cache_dir / f"{key}.writing-{uuid.uuid4().hex[:8]}"
        try:
            writing.mkdir()
            _write_log_mels(dataset, extractor, writing, on_bad_audio, downmix, progress)
            os.replace(writing, folder)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            raise
    return folder


def _is_complete(folder: Path, num_bins: int) -> bool:
    try:
        json.loads((folder / "meta.json").read_text())
        frames = int(np.load(folder / "starts.npy")[-1])
        return (folder / "log_mels.float32").stat().st_size == 4 * frames * num_bins
    except (OSError, ValueError):
        return False


def _write_log_mels(dataset, extractor, folder: Path, on_bad_audio, downmix, progress) -> None:
    from tqdm.auto import tqdm

    def convert(values: list) -> list:
        return [(value, *_log_mel_or_error(value, extractor, downmix)) for value in values]

    lengths, num_samples, skipped, rates = [], [], [], Counter()
    rows = _in_order(convert, dataset)
    bar = tqdm(rows, total=len(dataset), desc="Reading audio", unit="clip", delay=1, disable=None if progress else True)
    with open(folder / "log_mels.float32", "wb") as file:
        for row, (value, log_mel, rate, count) in enumerate(bar):
            if isinstance(log_mel, Exception):
                if on_bad_audio == "raise":
                    raise _bad_audio(log_mel, _place(dataset, row, "audio"), value)
                skipped.append(row)
                continue
            file.write(log_mel.data)
            lengths.append(len(log_mel))
            num_samples.append(count)
            rates[rate] += 1
        file.flush()
        os.fsync(file.fileno())
    if not lengths:
        raise ValueError(f"None of the {len(dataset)} recordings can be read: nothing is left after skipping.")
    rates.pop(extractor.sampling_rate, None)
    np.save(folder / "starts.npy", np.cumsum([0, *lengths], dtype=np.int64))
    np.save(folder / "num_samples.npy", np.asarray(num_samples, dtype=np.int64))
    (folder / "meta.json").write_text(json.dumps({"skipped": skipped, "rates": rates}))


def _log_mel_or_error(value, extractor, downmix: bool) -> tuple:
    try:
        waveform, rate = read_audio(value, downmix=downmix)
        waveform = resample(waveform, rate, extractor.sampling_rate)
        log_mel = extractor.log_mel(torch.from_numpy(waveform)).numpy()
        return np.ascontiguousarray(log_mel), rate, len(waveform)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # decoders raise anything on broken bytes; the caller decides, and names the row
        return error, 0, 0


def _bad_audio(error: Exception, place: str, value) -> BadAudioError:
    path = value.get("path") if isinstance(value, dict) else None
    bad = BadAudioError(
        f"{place.replace('Bad image', 'Bad audio')}{f' ({path})' if path else ''}: {type(error).__name__}: "
        f"{str(error).removesuffix('.')}. Repair or remove the row, or leave such rows out with on_bad_audio='skip'."
    )
    bad.__cause__ = error
    return bad


def _in_order(convert, dataset) -> Iterator:
    """`convert` of the stored audio of all rows, a list of rows at a time, in several threads, in order."""
    tables = dataset.with_format("arrow", columns=["audio"]).iter(batch_size=ROWS_PER_TASK)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pending: deque = deque()
        try:
            for table in tables:
                pending.append(pool.submit(convert, table["audio"].to_pylist()))
                while len(pending) > 16:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for task in pending:
                task.cancel()


def _normalised(folder: Path, log_mels: np.ndarray, extractor) -> np.ndarray:
    """The features by the extractor's statistics, memory-mapped; written beside the log-mels at first."""
    statistics = json.dumps([extractor.mean, extractor.std])
    file = folder / f"features-{hashlib.sha256(statistics.encode()).hexdigest()[:16]}.float32"
    if not file.exists() or file.stat().st_size != log_mels.nbytes:
        writing = folder / f"{file.name}.writing-{uuid.uuid4().hex[:8]}"
        try:
            with open(writing, "wb") as out:
                for start in range(0, len(log_mels), FRAMES_PER_READ):
                    part = torch.from_numpy(np.array(log_mels[start : start + FRAMES_PER_READ]))
                    out.write(np.ascontiguousarray(extractor.normalize(part).numpy()).data)
            os.replace(writing, file)
        finally:
            with contextlib.suppress(OSError):
                writing.unlink()
    # "c": pages are shared and never written back; torch refuses to be quiet about read-only arrays
    return np.memmap(file, dtype=np.float32, mode="c", shape=log_mels.shape)


# ---- batches


def _gather(clips: SpeechClips, rows, offsets, lengths, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames [offset, offset + length) of clips, padded with 0: (rows, longest, bins), and the mask int64."""
    features = np.zeros((len(rows), longest, clips.features.shape[1]), dtype=np.float32)
    begins = clips.starts[rows] + offsets
    for target, begin, length in zip(features, begins.tolist(), lengths.tolist(), strict=True):
        target[:length] = clips.features[begin : begin + length]
    mask = np.arange(longest) < lengths[:, None]
    return torch.from_numpy(features), torch.from_numpy(mask.astype(np.int64))


class SpeechBatches:
    """Batches of `SpeechClips`, each row with another clip of its speaker, the same whatever the number of processes.

    `batch_size` is global. Rank r gets its contiguous slice of each global batch, so the ranks' slices one after the
    other are the single-process batch (padded to its longest row on every rank). What is in a batch depends on (seed,
    epoch, batch) only: `set_epoch(e)`, then `iterate(start_batch=k)` continues a run exactly.

    Yields dicts:
        `input_features` float32 (rank_batch_size, frames, num_mel_bins), `attention_mask` int64: a clip, or a random
            part of `max_frames` of it;
        `speaker_features`, `speaker_attention_mask`: of another clip of the same speaker, drawn at random; of the same
            clip where he has one only;
        `speaker_ids` int64 (rank_batch_size,); `rows` int64, the numbers of the clips; `global_size` and
            `global_frames` (int), the rows, and the real frames of `input_features`, of all ranks together.

    Args:
        shuffle: `False`: the clips in their order, and the same parts and other clips of them in every epoch.
        max_frames: cut longer clips to a part of so many frames; `None` for whole clips.
        bucket_by_length: rows of near-equal length together (see `LengthBucketedBatches`): less padding.

    Raises:
        ValueError: no batch comes out at all; or the last, partial batch has fewer rows than processes.
    """

    def __init__(
        self,
        clips: SpeechClips,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        process_index: int = 0,
        num_processes: int = 1,
        max_frames: int | None = None,
        bucket_by_length: bool = False,
    ):
        _check_batching(batch_size, seed, process_index, num_processes)
        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {max_frames}.")
        self.clips, self.batch_size, self.shuffle, self.seed = clips, batch_size, shuffle, seed
        self.process_index, self.num_processes = process_index, num_processes
        self.max_frames, self._lengths = max_frames, clips.lengths
        lengths = self._lengths if max_frames is None else np.minimum(self._lengths, max_frames)
        self._batches = LengthBucketedBatches(
            lengths if bucket_by_length else np.zeros_like(lengths),
            batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            process_index=process_index,
            num_processes=num_processes,
        )
        # the clips of each speaker one after the other, and where each clip lies among them
        self._by_speaker = np.argsort(clips.speakers, kind="stable")
        _, first, inverse, counts = np.unique(
            clips.speakers[self._by_speaker], return_index=True, return_inverse=True, return_counts=True
        )
        self._first, self._count, self._place = (np.empty(len(clips), dtype=np.int64) for _ in range(3))
        self._first[self._by_speaker] = first[inverse]
        self._count[self._by_speaker] = counts[inverse]
        self._place[self._by_speaker] = np.arange(len(clips)) - first[inverse]
        self.set_epoch(0)

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return len(self._batches)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration goes through: it fixes the order, the parts and the other clips."""
        self.epoch = epoch
        self._batches.set_epoch(epoch)

    def rows(self, batch: int) -> np.ndarray:
        """Numbers of the clips of the whole global batch, int64 (global_batch_size,)."""
        return self._batches.rows(batch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iterate()

    def iterate(self, start_batch: int = 0) -> Iterator[dict[str, Any]]:
        """This rank's part of batches `start_batch`, `start_batch + 1`, ... of the epoch."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch must be in 0..{len(self)} (batches per epoch), got {start_batch}.")
        return self._iterate(start_batch, [self.rows(batch) for batch in range(start_batch, len(self))], self.epoch)

    def _iterate(self, start_batch: int, batches: list[np.ndarray], epoch: int) -> Iterator[dict[str, Any]]:
        for batch, rows in enumerate(batches, start=start_batch):
            yield self._batch(rows, np.random.default_rng([self.seed, epoch if self.shuffle else 0, batch]))

    def _batch(self, rows: np.ndarray, generator: np.random.Generator) -> dict[str, Any]:
        chance = generator.random((3, len(rows)))  # other clip, part of the clip, part of the other clip
        count, place = self._count[rows], self._place[rows]
        other = (chance[0] * (count - 1)).astype(np.int64)
        other += (other >= place) & (count > 1)
        others = self._by_speaker[self._first[rows] + other]
        own = _rank_slice(len(rows), self.process_index, self.num_processes)
        features, mask, num_frames = self._parts(rows, chance[1], own)
        speaker_features, speaker_mask, _ = self._parts(others, chance[2], own)
        return {
            "input_features": features,
            "attention_mask": mask,
            "speaker_features": speaker_features,
            "speaker_attention_mask": speaker_mask,
            "speaker_ids": torch.from_numpy(self.clips.speakers[rows[own]]),
            "rows": torch.from_numpy(rows[own]),
            "global_size": len(rows),
            "global_frames": num_frames,
        }

    def _parts(self, rows, chance, own: slice) -> tuple[torch.Tensor, torch.Tensor, int]:
        whole = self._lengths[rows]
        lengths = whole if self.max_frames is None else np.minimum(whole, self.max_frames)
        offsets = (chance * (whole - lengths + 1)).astype(np.int64)
        features, mask = _gather(self.clips, rows[own], offsets[own], lengths[own], int(lengths.max()))
        return features, mask, int(lengths.sum())


# ---- other voices


def _to_mel(hertz: torch.Tensor) -> torch.Tensor:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    return torch.where(hertz < 1000, hertz * 3 / 200, 15 + (hertz.clamp(min=1) / 1000).log() * 27 / math.log(6.4))


def _to_hertz(mel: torch.Tensor) -> torch.Tensor:
    return torch.where(mel < 15, mel * 200 / 3, 1000 * ((mel - 15) * math.log(6.4) / 27).exp())


def perturb_voice(
    input_features: torch.Tensor,
    attention_mask: torch.Tensor | None,
    generator: torch.Generator,
    *,
    feature_extractor,
    formant_shift: float = 0.17,
    equalizer: float = 0.5,
    rows: slice | None = None,
    num_rows: int | None = None,
) -> torch.Tensor:
    """The same speech in other voices: information perturbation (Choi et al. 2021), on log-mels. What a content encoder
    hears in place of its input, so that it cannot tell the voice by its timbre.

    Each row draws: a factor, log-uniform in exp(-formant_shift) .. exp(formant_shift), by which all its frequencies,
    so formants and pitch, are multiplied; and a gain curve over the frequency, piecewise linear between
    `EQUALIZER_POINTS` independent normal values of standard deviation `equalizer`. Gains are logarithms of magnitudes,
    in nats (1 nat is 8.7 dB).

    Args:
        input_features: normalised log-mels, (batch, frames, num_mel_bins), on any device.
        attention_mask: (batch, frames) or `None`; frames with 0 come back as 0.
        generator: gives the random numbers; on the device of the features, or on the CPU.
        feature_extractor: of these features: its statistics, frequencies and floor.
        rows, num_rows: which rows of a batch of how many these are, where several processes share it: each row gets
            what it would get of one process. The whole batch where `None`.

    Returns:
        Features of the same shape and dtype.
    """
    if input_features.ndim != 3 or input_features.shape[-1] != feature_extractor.feature_size:
        raise ValueError(
            f"Expected features (batch, frames, {feature_extractor.feature_size}), got {tuple(input_features.shape)}."
        )
    for name, value in {"formant_shift": formant_shift, "equalizer": equalizer}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0, got {value}.")
    batch, _, num_bins = input_features.shape
    device = input_features.device

    num_rows = batch if num_rows is None else num_rows

    def draw(kind, *shape):
        drawn = kind(num_rows, *shape, generator=generator, device=generator.device)
        return (drawn if rows is None else drawn[rows]).to(device)

    log_mels = feature_extractor.denormalize(input_features.float())
    if len(range(num_rows)[rows or slice(None)]) != batch:
        raise ValueError(f"rows {rows} of a batch of {num_rows} are not the {batch} that came.")
    factors = ((2 * draw(torch.rand, 1) - 1) * formant_shift).exp()
    points = draw(torch.randn, 1, EQUALIZER_POINTS) * equalizer
    if formant_shift > 0:
        highest = feature_extractor.sampling_rate / 2 if feature_extractor.fmax is None else feature_extractor.fmax
        ends = _to_mel(torch.tensor([feature_extractor.fmin, highest], dtype=torch.float32, device=device))
        step = (ends[1] - ends[0]) / (num_bins + 1)
        centres = _to_hertz(ends[0] + step * torch.arange(1, num_bins + 1, device=device))
        position = ((_to_mel(centres / factors) - ends[0]) / step - 1).clamp(0, num_bins - 1)
        below = position.floor().clamp(max=num_bins - 2)
        weight = (position - below)[:, None]
        below = below.long()[:, None].expand_as(log_mels)
        log_mels = torch.lerp(log_mels.gather(2, below), log_mels.gather(2, below + 1), weight)
    curve = torch.nn.functional.interpolate(points, size=num_bins, mode="linear", align_corners=True)
    to_scale, floor = (1.0, math.log) if feature_extractor.log_scale == "log" else (1 / math.log(10), math.log10)
    log_mels = (log_mels + curve * to_scale).clamp(min=floor(feature_extractor.log_floor))
    features = feature_extractor.normalize(log_mels)
    if attention_mask is not None:
        features = features * (attention_mask[..., None] > 0)
    return features.to(input_features.dtype)
