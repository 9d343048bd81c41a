"""Are the codes of speech like phonemes, and free of who speaks?

    phone_purity, cluster_purity      does a code stand for one phone, and a phone for one code?
    normalized_mutual_information     how much a code tells of the phone, and of the speaker
    abx_error                         are two realisations of a phone closer than two phones, also across speakers?
    kmeans_codes                      what clustering the log-mels gives at the same size and rate, without a model
    evaluate_speech_codes             all of these for a model, beside the baselines, as `metrics.json`

Purity and mutual information rise with the number of codes whatever these mean, so they say something only beside
others of the same number: k-means, and the same codes shuffled in time.
"""

import datetime
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from .checks import check_positive
from .codes import CodeUsage
from .evaluate import describe_machine, library_versions, variant_name

PAUSE = ""  # the phone of silence: left out, as every code tells it from speech
KMEANS_FRAMES = 60_000  # drawn from training for the clustering
NO_PHONES = "the corpus has no times of phones"


# Codes and labels of the same frames


def contingency(codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How often each code and each label come together: int64 (different codes, different labels).

    Args:
        codes, labels: (frames,) integers or strings, of the same frames.

    Raises:
        ValueError: other shapes, or no frame.
    """
    codes, labels = np.asarray(codes), np.asarray(labels)
    if codes.ndim != 1 or codes.shape != labels.shape or len(codes) == 0:
        raise ValueError(
            f"codes and labels must be (frames,) of the same frames, at least one, got {codes.shape} and {labels.shape}"
        )
    code_index, label_index = (np.unique(values, return_inverse=True)[1] for values in (codes, labels))
    table = np.zeros((code_index.max() + 1, label_index.max() + 1), dtype=np.int64)
    np.add.at(table, (code_index, label_index), 1)
    return table


def phone_purity(codes: np.ndarray, phones: np.ndarray) -> float:
    """Share of frames whose phone is the commonest one of their code, in (0, 1] (Hsu et al. 2021, HuBERT).

    It is the accuracy of telling the phone from the code when each code is named by its commonest phone.
    """
    table = contingency(codes, phones)
    return float(table.max(axis=1).sum() / table.sum())


def cluster_purity(codes: np.ndarray, phones: np.ndarray) -> float:
    """Share of frames whose code is the commonest one of their phone, in (0, 1]; falls where codes are many."""
    return phone_purity(phones, codes)


def normalized_mutual_information(codes: np.ndarray, labels: np.ndarray) -> float:
    """Mutual information of codes and labels over the mean of their entropies, in [0, 1] (scikit-learn's NMI).

    0 where they are independent, or where all frames have the same label; 1 where each tells the other.
    """
    from sklearn.metrics import normalized_mutual_info_score

    table = contingency(codes, labels)
    if min(table.shape) == 1:
        return 0.0
    return float(normalized_mutual_info_score(np.asarray(labels).astype(str), np.asarray(codes).astype(str)))


def entropy_bits(codes: np.ndarray) -> float:
    """Entropy of the frequencies of codes, bits per code: what an ideal coder that knows them needs."""
    counts = np.unique(np.asarray(codes), return_counts=True)[1]
    frequencies = counts / counts.sum()
    return float(-(frequencies * np.log2(frequencies)).sum())


def shuffled_codes(codes: np.ndarray, seed: int = 0) -> np.ndarray:
    """The same codes at other frames: the floor of every measure of what a code means."""
    return np.random.default_rng(seed).permutation(np.asarray(codes))


def labels_at(segments: Sequence, times: np.ndarray) -> np.ndarray:
    """The label at each time.

    Args:
        segments: `{"phone", "start", "end"}` in seconds, or (phone, start, end), in order.
        times: (frames,) seconds.

    Returns:
        (frames,) strings; `PAUSE` where there is no segment.
    """
    times = np.asarray(times, dtype=np.float64)
    if not len(segments):
        return np.full(len(times), PAUSE, dtype=object)
    names, starts, ends = zip(*map(_segment, segments), strict=True)
    index = np.searchsorted(starts, times, side="right") - 1
    inside = (index >= 0) & (times < np.asarray(ends)[index])
    return np.where(inside, np.array([*names], dtype=object)[index], PAUSE)


def _segment(segment) -> tuple[str, float, float]:
    return (segment["phone"], segment["start"], segment["end"]) if isinstance(segment, dict) else tuple(segment)


def code_times(num_codes: int, downsampling: int, frame_rate: float) -> np.ndarray:
    """Seconds into the clip of the middle of each code, where a code stands for `downsampling` frames of features."""
    return (np.arange(num_codes) * downsampling + (downsampling - 1) / 2) / frame_rate


# ABX


class PhoneSegment(NamedTuple):
    """One realisation of a phone."""

    phone: str
    speaker: Any
    features: np.ndarray
    """(frames, size)"""


def phone_segments(features: np.ndarray, times: np.ndarray, segments: Sequence, speaker) -> list[PhoneSegment]:
    """Cut the features of a clip, (frames, size) at (frames,) seconds, into its phones, without the pauses.

    A phone between two frames gets the frame that is nearest to its middle.
    """
    features, times = np.asarray(features), np.asarray(times)
    if len(features) != len(times) or len(times) == 0:
        raise ValueError(f"features and times must be of the same frames, got {len(features)} and {len(times)}")
    result = []
    for phone, start, end in map(_segment, segments):
        if phone == PAUSE:
            continue
        first, last = np.searchsorted(times, [start, end])
        if first == last:
            first = int(np.abs(times - (start + end) / 2).argmin())
            last = first + 1
        result.append(PhoneSegment(phone, speaker, features[first:last]))
    return result


def dtw_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean angle between the frames of two segments (frames, size) along the best alignment, in [0, 1] (1 is 180°).

    Dynamic time warping; the mean is over the steps of the path with the least sum.
    """
    one, other = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (one, other))
    cost = np.arccos(np.clip(one @ other.T, -1, 1)) / np.pi
    rows, columns = cost.shape
    if rows == 1 or columns == 1:
        return float(cost.mean())
    best = [[(0.0, 0)] * columns for _ in range(rows)]  # least sum, steps on the way
    for i, row in enumerate(cost.tolist()):
        for j, value in enumerate(row):
            if i and j:
                before = min(best[i - 1][j], best[i][j - 1], best[i - 1][j - 1])
            else:
                before = best[i - 1][j] if i else best[i][j - 1] if j else (0.0, 0)
            best[i][j] = (before[0] + value, before[1] + 1)
    total, steps = best[-1][-1]
    return total / steps


def abx_error(
    segments: Sequence[PhoneSegment], *, across_speakers: bool, num_triples: int = 3000, seed: int = 0
) -> float | None:
    """Share of triples (A, B, X) in which X, the same phone as A, is closer to B, another phone (Schatz et al. 2013).

    A and B are of one speaker; X is of the same one, or of another (`across_speakers`). 0 is perfect, 0.5 is chance; a
    tie counts half. Pairs of phones are drawn first, each as often as any other, then a speaker, then segments.
    Segments are compared by `dtw_distance`, without their neighbours (where ZeroSpeech takes triphones).

    Args:
        segments: of `phone_segments`.
        num_triples: how many are drawn, by `seed`.

    Returns:
        the error, or None where no triple can be drawn: two phones of a speaker are needed, and of one of them a second
        segment, or across speakers one of another speaker.
    """
    check_positive("num_triples", num_triples)
    rng = np.random.default_rng(seed)
    by_phone: dict[str, dict[Any, list[int]]] = {}
    for index, segment in enumerate(segments):
        by_phone.setdefault(segment.phone, {}).setdefault(segment.speaker, []).append(index)
    pairs = []  # (phone of A and X, phone of B, speakers of A and B)
    for same, owners in by_phone.items():
        able = {s for s, of in owners.items() if (len(owners) > 1 if across_speakers else len(of) > 1)}
        for other, others in by_phone.items():
            speakers = sorted(able & others.keys(), key=str) if other != same else []
            if speakers:
                pairs.append((same, other, speakers))
    if not pairs:
        return None
    errors = 0.0
    for _ in range(num_triples):
        same, other, speakers = pairs[rng.integers(len(pairs))]
        speaker = speakers[rng.integers(len(speakers))]
        b = rng.choice(by_phone[other][speaker])
        if across_speakers:
            a = rng.choice(by_phone[same][speaker])
            x = rng.choice([i for s, of in by_phone[same].items() if s != speaker for i in of])
        else:
            a, x = rng.choice(by_phone[same][speaker], size=2, replace=False)
        to_a = dtw_distance(segments[a].features, segments[x].features)
        to_b = dtw_distance(segments[b].features, segments[x].features)
        errors += 0.5 if math.isclose(to_a, to_b, abs_tol=1e-7) else float(to_a > to_b)
    return errors / num_triples


# Codes without a model


def pooled_frames(features: np.ndarray, downsampling: int) -> np.ndarray:
    """Means of each `downsampling` frames in a row: (frames, size) to (ceil(frames / downsampling), size)."""
    check_positive("downsampling", downsampling)
    features = np.asarray(features, dtype=np.float32)
    starts = np.arange(0, len(features), downsampling)
    return np.add.reduceat(features, starts) / np.diff([*starts, len(features)])[:, None]


def normalized_clip(features: np.ndarray) -> np.ndarray:
    """Features (frames, size) with mean 0 and variance 1 over the frames of the clip: the voice's average removed."""
    return (features - features.mean(0)) / (features.std(0) + 1e-3)


def kmeans_codes(
    train: Sequence[np.ndarray], validation: Sequence[np.ndarray], codebook_size: int, *, seed: int = 0
) -> tuple[list[np.ndarray], np.ndarray]:
    """Codes of validation clips by clustering the frames of training clips (scikit-learn's k-means).

    Args:
        train, validation: clips, each (frames, size). `KMEANS_FRAMES` frames of training, drawn by `seed`, are used.

    Returns:
        codes (frames,) of each validation clip, and the centres (codebook_size, size).
    """
    from sklearn.cluster import KMeans

    check_positive("codebook_size", codebook_size)
    frames = np.concatenate(list(train))
    if len(frames) < codebook_size:
        raise ValueError(f"{codebook_size} clusters need as many training frames, there are {len(frames)}")
    if len(frames) > KMEANS_FRAMES:
        frames = frames[np.sort(np.random.default_rng(seed).choice(len(frames), KMEANS_FRAMES, replace=False))]
    clustering = KMeans(codebook_size, n_init=1, max_iter=100, random_state=seed).fit(frames)
    return [clustering.predict(np.ascontiguousarray(clip)) for clip in validation], clustering.cluster_centers_


# Codes of a model


class EncodedSpeech(NamedTuple):
    """The codes of clips."""

    codes: list[np.ndarray]
    """of each clip: (num_codebooks, codes) int64"""
    latents: list[np.ndarray] | None
    """of each clip: (codes, latent_size) float32; None where they were not kept"""


@torch.inference_mode()
def encode_speech(
    model, clips, *, batch_size: int = 32, keep_latents: bool = True, progress: str | None = None
) -> EncodedSpeech:
    """Encode all clips of a `SpeechClips`, clips of about equal length together.

    Args:
        model: anything with `encode(input_features, attention_mask)` that gives `audio_codes`, `latents` and
            `attention_mask`; evaluated where it is, in its dtype.
        progress: label of the progress bar; none by default.
    """
    check_positive("batch_size", batch_size)
    starts = np.asarray(clips.starts)
    lengths = np.diff(starts)
    codes: list = [None] * len(lengths)
    latents: list = [None] * len(lengths)
    order = np.argsort(lengths, kind="stable")
    for first in tqdm(range(0, len(order), batch_size), desc=progress, disable=progress is None, leave=False):
        rows = order[first : first + batch_size]
        features = torch.zeros(len(rows), int(lengths[rows].max()), clips.features.shape[1])
        mask = torch.zeros(features.shape[:2], dtype=torch.int64)
        for position, row in enumerate(rows):
            length = int(lengths[row])
            features[position, :length] = torch.from_numpy(np.array(clips.features[starts[row] : starts[row + 1]]))
            mask[position, :length] = 1
        output = model.encode(features.to(model.device, model.dtype), mask.to(model.device))
        if output.audio_codes is None:
            raise ValueError(f"{type(model).__name__} gives no codes: its content is not quantised")
        for position, row in enumerate(rows):
            length = int(output.attention_mask[position].sum())
            codes[row] = output.audio_codes[position, :, :length].cpu().numpy()
            latents[row] = output.latents[position, :length].float().cpu().numpy()
    return EncodedSpeech(codes, latents if keep_latents else None)


def evaluate_speech_codes(
    model,
    feature_extractor,
    train,
    validation,
    *,
    batch_size: int = 32,
    num_triples: int = 3000,
    seed: int = 0,
    corpus: dict[str, Any] | None = None,
    command: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure the codes of a trained model on `validation`; k-means learns from `train`.

    What is measured with phones leaves the pauses out. Where a corpus has no times of phones, what can be measured is
    what codes tell of speaker and word.

    Args:
        model: a `SpeechVQVAEModel`, or another model of this package with `encode(...).audio_codes`. Of several
            codebooks the first is compared; ABX compares the latents, sums over all of them.
        feature_extractor: the model's.
        train, validation: `SpeechClips` made with it: `features`, `starts`, `speakers`, and `words` and `phones` where
            the corpus has them.
        batch_size: clips at once.
        num_triples: of ABX, within and across speakers each.
        seed: of the clusterings, the shuffling, and the triples, which are the same ones for all rows of the table.
        corpus: what the numbers were measured on; rows are added.
        command: how to repeat this; the command line of this process by default.
        progress: show progress bars.

    Returns:
        A dictionary ready for JSON, as that of `evaluate_model`, and `table`: rows for the model, k-means on log-mels,
        k-means on log-mels normalised within each clip, and the model's codes shuffled, all of the same number and
        rate. `metrics` has the numbers of the model's row, `baselines` those of the others, with the row's name before
        them:

        `phone_purity`, `cluster_purity`, `phone_nmi`: higher is better; `speaker_nmi`: lower is better; `word_nmi`: of
        the codes of words, where the corpus has words; `abx_within_error`, `abx_across_error`: 0.5 is chance;
        `code_usage`, `code_perplexity`: see `CodeUsage`; `entropy_bits_per_second`: what an ideal coder needs. Of the
        model also `bits_per_second`, `codes_per_second`, and usage and perplexity in training (`train_...`).
    """
    config = model.config
    for name, clips in (("train", train), ("validation", validation)):
        if clips.features.shape[1] != config.num_mel_bins:
            raise ValueError(
                f"{name} has {clips.features.shape[1]} mel bins, the model {config.num_mel_bins}: "
                "make the clips with the model's feature extractor"
            )
    if (rate := feature_extractor.sampling_rate / feature_extractor.hop_length) != config.frame_rate:
        raise ValueError(f"the model expects {config.frame_rate} frames per second, the feature extractor gives {rate}")
    not_measured: dict[str, str] = {}
    was_training = model.training
    model.eval()
    try:
        encoded = encode_speech(
            model, validation, batch_size=batch_size, progress="encode validation" if progress else None
        )
        encoded_train = encode_speech(
            model, train, batch_size=batch_size, keep_latents=False, progress="encode train" if progress else None
        )
    finally:
        model.train(was_training)

    counts = [codes.shape[1] for codes in encoded.codes]
    times = [code_times(count, config.downsampling, config.frame_rate) for count in counts]
    if validation.phones is None:
        phones = None
        names = ("phone_purity", "cluster_purity", "phone_nmi", "abx_within_error", "abx_across_error")
        not_measured |= dict.fromkeys(names, NO_PHONES)
    else:
        phones = [labels_at(validation.phones[i], times[i]) for i in range(len(counts))]
    words = None if validation.words is None else np.repeat(np.asarray(validation.words), counts)
    if words is None or (words >= 0).sum() == 0:
        words = None
        not_measured["word_nmi"] = "the corpus has no words"
    speakers = np.repeat(np.asarray(validation.speakers), counts)
    kept = np.ones(len(speakers), dtype=bool) if phones is None else np.concatenate(phones) != PAUSE
    codes_per_second = config.frame_rate / config.downsampling

    def row(name: str, label: str, codes: np.ndarray, latents: list[np.ndarray]) -> dict[str, Any]:
        usage = CodeUsage(config.codebook_size)
        usage.update(torch.from_numpy(codes[None, None].astype(np.int64)))
        result: dict[str, Any] = {"name": name, "label": label}
        if phones is not None:
            spoken = np.concatenate(phones)[kept].astype(str)
            result["phone_purity"] = phone_purity(codes[kept], spoken)
            result["cluster_purity"] = cluster_purity(codes[kept], spoken)
            result["phone_nmi"] = normalized_mutual_information(codes[kept], spoken)
            segments = []
            for i, features in enumerate(latents):
                segments += phone_segments(features, times[i], validation.phones[i], int(validation.speakers[i]))
            for kind in ("within", "across"):
                error = abx_error(segments, across_speakers=kind == "across", num_triples=num_triples, seed=seed)
                if error is None:
                    not_measured[f"abx_{kind}_error"] = "no triple of segments can be drawn"
                else:
                    result[f"abx_{kind}_error"] = error
        result["speaker_nmi"] = normalized_mutual_information(codes[kept], speakers[kept])
        if words is not None:
            spoken_words = kept & (words >= 0)
            result["word_nmi"] = normalized_mutual_information(codes[spoken_words], words[spoken_words])
        result["code_usage"] = usage.usage().item()
        result["code_perplexity"] = usage.perplexity().item()
        result["entropy_bits_per_second"] = entropy_bits(codes) * codes_per_second
        return result

    codes = np.concatenate([clip[0] for clip in encoded.codes])
    table = [row("model", "codes of the model", codes, encoded.latents)]
    mels = {
        split: [
            np.asarray(clips.features[start:end], dtype=np.float32)
            for start, end in zip(clips.starts[:-1], clips.starts[1:], strict=True)
        ]
        for split, clips in (("train", train), ("validation", validation))
    }
    for name, label, prepare in (
        ("kmeans", "k-means on log-mels", lambda clip: clip),
        ("kmeans_normalized", "k-means on log-mels normalised in each clip", normalized_clip),
    ):
        prepared = {
            split: [pooled_frames(prepare(clip), config.downsampling) for clip in clips]
            for split, clips in mels.items()
        }
        of_clips, centers = kmeans_codes(prepared["train"], prepared["validation"], config.codebook_size, seed=seed)
        table.append(row(name, label, np.concatenate(of_clips), [centers[clip] for clip in of_clips]))
    order = shuffled_codes(np.arange(len(codes)), seed)
    latents = np.split(np.concatenate(encoded.latents)[order], np.cumsum(counts)[:-1])
    table.append(row("shuffled", "codes of the model, shuffled in time", codes[order], latents))

    numbers = [{key: value for key, value in line.items() if key not in ("name", "label")} for line in table]
    usage = CodeUsage(config.codebook_size)
    for clip in encoded_train.codes:
        usage.update(torch.from_numpy(clip[None, :1]))
    metrics = numbers[0] | {
        "train_code_usage": usage.usage().item(),
        "train_code_perplexity": usage.perplexity().item(),
        "codes_per_second": codes_per_second,
        "bits_per_second": codes_per_second * getattr(config, "num_codebooks", 1) * math.log2(config.codebook_size),
    }
    return {
        "model_type": config.model_type,
        "name": variant_name(config.model_type),
        "corpus": {**(corpus or {}), "rows": len(counts), "train_rows": len(train.starts) - 1},
        "metrics": metrics,
        "baselines": {
            f"{line['name']}_{key}": value
            for line, values in zip(table[1:], numbers[1:], strict=True)
            for key, value in values.items()
        },
        "table": table,
        "not_measured": not_measured,
        "settings": {
            "batch_size": batch_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "codebook_size": config.codebook_size,
            "num_triples": num_triples,
            "phones": None if phones is None else len(set(np.concatenate(phones)[kept])),
            "frames": int(kept.sum()),
            "speakers": len(np.unique(speakers)),
        },
        "seed": seed,
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": describe_machine(model.device),
        "versions": library_versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def format_codes_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of the `table` of `evaluate_speech_codes` as Markdown, aligned so that it reads in a terminal, too."""
    columns = {
        "phone_purity": ("phone purity", ".1%"),
        "phone_nmi": ("NMI phone", ".3f"),
        "speaker_nmi": ("NMI speaker", ".3f"),
        "word_nmi": ("NMI word", ".3f"),
        "abx_within_error": ("ABX within", ".1%"),
        "abx_across_error": ("ABX across", ".1%"),
        "code_usage": ("used", ".1%"),
        "entropy_bits_per_second": ("bits/s", ".0f"),
    }
    columns = {key: value for key, value in columns.items() if any(key in row for row in rows)}
    cells = [["", *(title for title, _ in columns.values())]]
    for row in rows:
        cells.append([row["label"], *(format(row[k], f) if k in row else "-" for k, (_, f) in columns.items())])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join([c[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(c[1:], widths[1:], strict=True))]) + " |"
        for c in cells
    ]
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])
