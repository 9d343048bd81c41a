"""Does converted speech keep the word and take the other voice, and do content and speaker know of each other?

    conversion_table   judges of word and voice, on real recordings, on copies of the source, on what the model makes of
                       a clip in its own voice, and on conversions
    one_shot_table     the same for voices that were never heard in training: is the result closer to the target's
                       recordings than to the source's?
    leakage_probes     classifiers of the speaker on the content, and of the word on the speaker embedding
    evaluate_voice_conversion   all of these, the reconstruction error and the speed, in one dictionary

Whatever a model makes goes to a waveform and back to log-mels before it is judged, and copies of the source do, too:
what cannot be heard does not count.
"""

import datetime
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from .checks import check_positive
from .codes import CodeUsage
from .evaluate import describe_machine, library_versions, variant_name
from .mel_pictures import mel_picture
from .probe import linear_probe
from .speech_judges import SpeechJudge, network_probe

DEFAULT_BATCH_SIZE = 32
MIN_CLIPS_PER_WORD = 5  # on average: a text that hardly comes twice is no class
MAX_PROBE_CLIPS = 4000
MAX_TIMED_SECONDS = 20.0  # of speech, one pass
NUM_TIMED_PASSES = 3


class VoiceJudges(NamedTuple):
    """Who judges. None where the corpus has no two words, or no two speakers."""

    speaker: SpeechJudge | None
    word: SpeechJudge | None
    speaker_names: list[str]
    """names of the speaker judge's classes"""
    word_names: list[str]
    not_measured: dict[str, str]
    """judge that is missing -> the reason"""

    def words_of(self, clips) -> np.ndarray:
        """The word of each clip as the judge counts them, int64 (num_clips,); -1 where it knows none."""
        return _renamed(clips.words, clips.word_names, self.word_names, len(clips))

    def speakers_of(self, clips) -> np.ndarray:
        """Likewise the speakers."""
        return _renamed(clips.speakers, clips.speaker_names, self.speaker_names, len(clips))


def train_judges(train, seed: int = 0, *, cache_dir=None) -> VoiceJudges:
    """Judges of the speakers and words of real clips, a `SpeechClips`; see [`SpeechJudge`]."""
    clips, missing, judges = clip_features(train), {}, {}
    speaker_names, word_names = list(train.speaker_names), list(train.word_names or [])
    for kind, classes, names in (("speaker", train.speakers, speaker_names), ("word", train.words, word_names)):
        present = np.array([], np.int64) if classes is None else np.unique(classes[classes >= 0])
        if classes is None or len(present) < 2:
            missing[kind] = f"the training clips have {len(present)} different {kind}s, a judge needs two"
        elif kind == "word" and len(classes) < MIN_CLIPS_PER_WORD * len(present):
            missing[kind] = (
                f"{len(present)} different texts in {len(classes)} training clips: a judge of words needs "
                f"{MIN_CLIPS_PER_WORD} clips of each on average"
            )
        else:
            rows = np.flatnonzero(classes >= 0)
            judges[kind] = SpeechJudge(
                [clips[row] for row in rows], classes[rows], len(names), kind, seed, cache_dir=cache_dir
            )
    return VoiceJudges(judges.get("speaker"), judges.get("word"), speaker_names, word_names, missing)


class Pairs(NamedTuple):
    """What is to be converted: the clip `sources[i]` to the voice of the clips `targets[i]`."""

    sources: np.ndarray
    """int64 (num_pairs,): rows of the source clips"""
    targets: list[np.ndarray]
    """rows of the target clips, one or more for each pair"""


def draw_pairs(
    source_speakers: Sequence[str],
    target_speakers: Sequence[str],
    num_pairs: int | None = None,
    num_target_clips: int = 1,
    seed: int = 0,
    *,
    min_other_clips: int = 0,
) -> Pairs:
    """Each source clip with a target speaker, never its own.

    Args:
        source_speakers, target_speakers: of each clip that may be a source, and that may be a target.
        num_pairs: as many as there are sources by default. Fewer: of sources drawn without replacement; more: sources
            come again, with other targets.
        num_target_clips: of each target; all those he has where they are fewer.
        min_other_clips: a speaker is a target only if so many clips of him are left after that.

    Raises:
        ValueError: there is no such pair.
    """
    if num_pairs is not None:
        check_positive("num_pairs", num_pairs)
    check_positive("num_target_clips", num_target_clips)
    random = np.random.default_rng(seed)
    source_speakers, target_speakers = np.asarray(source_speakers), np.asarray(target_speakers)
    clips_of = {name: np.flatnonzero(target_speakers == name) for name in sorted(set(target_speakers.tolist()))}
    clips_of = {name: rows for name, rows in clips_of.items() if len(rows) > min_other_clips}
    names = list(clips_of)
    possible = np.array([row for row, name in enumerate(source_speakers) if set(names) - {name}], dtype=np.int64)
    if not len(possible):
        raise ValueError(
            f"a conversion needs a target speaker other than the source's: the sources have "
            f"{len(set(source_speakers.tolist()))} speakers, the possible targets {len(names)}"
        )
    sources: list[int] = []
    while len(sources) < (len(possible) if num_pairs is None else num_pairs):
        sources += random.permutation(possible).tolist()
    sources = sources[: num_pairs or len(possible)]
    targets = []
    for source in sources:
        name = random.choice([name for name in names if name != source_speakers[source]])
        number = min(num_target_clips, len(clips_of[name]) - min_other_clips)
        targets.append(random.choice(clips_of[name], number, replace=False))
    return Pairs(np.array(sources), targets)


# Clips as arrays


def clip_features(clips) -> list[np.ndarray]:
    """Features of each clip of a `SpeechClips`, float32 (frames, num_mel_bins)."""
    return [clips.clip(row) for row in range(len(clips))]


@torch.no_grad()
def convert_clips(
    model,
    sources: Sequence[np.ndarray],
    targets: Sequence[Sequence[np.ndarray]],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: str | None = None,
) -> list[np.ndarray]:
    """Each source in the voice of its target clips, by `model.convert`: float32 (frames, num_mel_bins), in order."""
    result: list[np.ndarray] = [None] * len(sources)
    for rows in _batches([len(clip) for clip in sources], batch_size, progress):
        features, mask = _padded([sources[row] for row in rows], model.device)
        most = max(len(targets[row]) for row in rows)
        clips = [clip for row in rows for clip in [*targets[row], *[None] * (most - len(targets[row]))]]
        voices, voice_mask = (
            tensor.unflatten(0, (len(rows), most)) for tensor in _padded(clips, model.device)
        )  # a clip that is all padding does not count
        converted = model.convert(features, voices, attention_mask=mask, speaker_attention_mask=voice_mask)
        for row, clip in zip(rows, converted.float().cpu().numpy(), strict=True):
            result[row] = clip[: len(sources[row])]
    return result


def through_waveform(
    feature_extractor, clips: Sequence[np.ndarray], *, progress: str | None = None
) -> list[np.ndarray]:
    """Features as they are once they have been sound: by Griffin-Lim, and again to features of as many frames."""
    result: list[np.ndarray] = [None] * len(clips)
    for rows in _batches([len(clip) for clip in clips], 64, progress):
        features, mask = _padded([clips[row] for row in rows], "cpu")
        waveforms = feature_extractor.to_waveform(features, mask)
        for row, waveform in zip(rows, waveforms, strict=True):
            heard = feature_extractor.normalize(feature_extractor.log_mel(waveform)).numpy()
            result[row] = heard[: len(clips[row])]
    return result


# Questions


def judge_clips(
    judges: VoiceJudges,
    clips: Sequence[np.ndarray],
    targets: np.ndarray,
    words: np.ndarray,
    sources: np.ndarray | None = None,
) -> dict[str, float | None]:
    """Shares of clips in [0, 1] that are judged to be of the target speaker (`target`), still of the source (`source`),
    the right word (`word`), and of both target speaker and right word (`both`); None where it cannot be told.

    Args:
        clips: features (frames, num_mel_bins).
        targets, sources: speakers, and `words`, as the judges count them; int64 (num_clips,). Clips whose word is
            below 0 do not count for the word.
    """
    result = dict.fromkeys(("target", "source", "word", "both"))
    if judges.speaker is not None:
        heard = judges.speaker.classify(clips)
        is_target = heard == targets
        result["target"] = float(is_target.mean())
        if sources is not None:
            result["source"] = float((heard == sources).mean())
    known = np.flatnonzero(words >= 0)
    if judges.word is not None and len(known):
        is_word = judges.word.classify([clips[row] for row in known]) == words[known]
        result["word"] = float(is_word.mean())
        if judges.speaker is not None:
            result["both"] = float((is_word & is_target[known]).mean())
    return result


def conversion_table(
    model,
    feature_extractor,
    judges: VoiceJudges,
    clips,
    *,
    num_pairs: int | None = None,
    num_target_clips: int = 1,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Judge clips of known speakers, a `SpeechClips`, and what a model makes of them.

    Returns:
        Rows `name`, `label`, and what `judge_clips` tells: `real`, the clips as they are; `copy`, the sources as if
        they were conversions; `reconstruction`, the sources in the voice of themselves; `converted`. The last two are
        missing, as `copy` is, where there are not two speakers.
    """
    features, speakers, words = clip_features(clips), judges.speakers_of(clips), judges.words_of(clips)
    known = np.flatnonzero(speakers >= 0)
    if not len(known):
        raise ValueError("no clip is of a speaker that the judges know")
    rows = [
        _row("real", "real clips", judge_clips(judges, [features[row] for row in known], speakers[known], words[known]))
    ]

    def heard(sources, targets, what):
        label = what if progress else None
        made = convert_clips(model, sources, targets, batch_size=batch_size, progress=label)
        return through_waveform(feature_extractor, made, progress=label)

    if len(set(speakers[known].tolist())) < 2:
        own = [features[row] for row in known]
        made = judge_clips(judges, heard(own, [[clip] for clip in own], "reconstruct"), speakers[known], words[known])
        return [*rows, _row("reconstruction", "own voice", made)]
    pairs = draw_pairs(speakers[known], speakers[known], num_pairs, num_target_clips, seed)
    sources = known[pairs.sources]
    targets = [known[target] for target in pairs.targets]
    target_speakers = speakers[[target[0] for target in targets]]
    source_clips = [features[row] for row in sources]
    copies = through_waveform(feature_extractor, source_clips, progress="copy" if progress else None)
    again = heard(source_clips, [[clip] for clip in source_clips], "reconstruct")
    converted = heard(source_clips, [[features[row] for row in target] for target in targets], "convert")
    said, spoke = words[sources], speakers[sources]
    return [
        *rows,
        _row("copy", "source copied", judge_clips(judges, copies, target_speakers, said, spoke)),
        _row("reconstruction", "own voice", judge_clips(judges, again, spoke, said)),
        _row("converted", "converted", judge_clips(judges, converted, target_speakers, said, spoke)),
    ]


def one_shot_table(
    model,
    feature_extractor,
    judges: VoiceJudges,
    sources,
    targets,
    *,
    name: str,
    label: str,
    num_pairs: int | None = None,
    num_target_clips: int = 1,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Convert to voices that were not heard in training. Source and target are compared by the speaker judge's
    embeddings: by the cosine to the mean of each one's real clips, but for those that the conversion was made of.

    Args:
        sources, targets: `SpeechClips`; the same, or of different speakers.
        name, label: of what is done; put before the rows' own.

    Returns:
        Rows `{name}_real` (the target's own clips, those that the voice is taken from), `{name}_copy`,
        `{name}_converted`: with `closer`, the share that is closer to the target, `word`, and `both` of these.

    Raises:
        ValueError: there is no speaker judge, or no target with a clip to compare with.
    """
    if judges.speaker is None:
        raise ValueError(f"voices cannot be compared: {judges.not_measured['speaker']}")
    same = sources is targets
    parts = [clip_features(sources)] if same else [clip_features(sources), clip_features(targets)]
    features = [clip for part in parts for clip in part]
    first = 0 if same else len(sources)  # row of the first target
    names = [_names_of(sources)] if same else [_names_of(sources), _names_of(targets)]
    speakers = np.concatenate(names)
    counts = {speaker: int((speakers == speaker).sum()) for speaker in set(speakers.tolist())}
    usable = np.array([row for row, speaker in enumerate(names[0]) if counts[speaker] >= 2], dtype=np.int64)
    pairs = draw_pairs(names[0][usable], names[-1], num_pairs, num_target_clips, seed, min_other_clips=1)
    source_rows = usable[pairs.sources]
    target_rows = [first + target for target in pairs.targets]
    words = judges.words_of(sources)
    embeddings = judges.speaker.embed(features)
    sums = {speaker: embeddings[speakers == speaker].sum(0) for speaker in counts}

    def closer(heard: np.ndarray, pair: int, without: Sequence[int]) -> bool:
        """Whether an embedding is closer to the target of the pair, `without` these clips, than to the source."""
        cosines = []
        for speaker in (speakers[target_rows[pair][0]], speakers[source_rows[pair]]):
            gone = [row for row in set(without) if speakers[row] == speaker]
            mean = sums[speaker] - embeddings[gone].sum(0)
            cosines.append(float(heard @ mean) / max(1e-9, float(np.linalg.norm(mean))))
        return cosines[0] > cosines[1]

    used = [[source, *target] for source, target in zip(source_rows, target_rows, strict=True)]
    source_clips = [features[row] for row in source_rows]
    made = convert_clips(
        model,
        source_clips,
        [[features[row] for row in target] for target in target_rows],
        batch_size=batch_size,
        progress="convert" if progress else None,
    )
    rows = []
    target_words = judges.words_of(targets)
    target_clips = [int(target[0]) for target in target_rows]
    for kind, title, clips, said in (
        (
            "real",
            "real clips of the target",
            [features[row] for row in target_clips],
            target_words[np.array(target_clips) - first],
        ),
        ("copy", "source copied", through_waveform(feature_extractor, source_clips), words[source_rows]),
        ("converted", "converted", through_waveform(feature_extractor, made), words[source_rows]),
    ):
        heard = judges.speaker.embed(clips)
        is_closer = np.array([closer(heard[pair], pair, used[pair]) for pair in range(len(clips))])
        row = {"closer": float(is_closer.mean())}
        known = np.flatnonzero(said >= 0)
        if judges.word is not None and len(known):
            is_word = judges.word.classify([clips[row] for row in known]) == said[known]
            row |= {"word": float(is_word.mean()), "both": float((is_word & is_closer[known]).mean())}
        rows.append(_row(f"{name}_{kind}", f"{label}: {title}", row))
    return rows


def leakage_probes(model, train, validation, *, batch_size: int = DEFAULT_BATCH_SIZE, seed: int = 0) -> dict[str, dict]:
    """What classifiers find in the two parts of the code. They learn from `train` and are measured on `validation`.

    The speaker is looked for in the content by a small network ([`network_probe`]) and by a linear classifier of its
    mean and standard deviation over time, which instance normalisation alone makes blind; the word in both
    by a linear classifier. Of a large corpus `MAX_PROBE_CLIPS` training clips are drawn by the seed.

    Returns:
        `metrics`: accuracies `speaker_probe_content`, `speaker_linear_probe_content`, `word_probe_content`,
        `word_probe_speaker`.
        `baselines`: the same classifiers on log-mels, `speaker_probe_mel`, `speaker_linear_probe_mel` and
        `word_probe_mel`, and the most frequent class, `speaker_probe_chance` and `word_probe_chance`. `not_measured`.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(train))[:MAX_PROBE_CLIPS])
    splits = [(train, rows), (validation, np.arange(len(validation)))]
    found = []  # of each split: representations by name
    for clips, kept in splits:
        features = clip_features(clips)
        features = [features[row] for row in kept]
        content, voices = encode_clips(model, features, batch_size=batch_size)
        found.append({"content": content, "speaker": voices, "mel": features})
    result: dict[str, dict] = {"metrics": {}, "baselines": {}, "not_measured": {}}
    for kind, column, representations in (
        ("speaker", "speakers", ("content", "mel")),
        ("word", "words", ("content", "speaker", "mel")),
    ):
        names = getattr(train, f"{kind}_names")
        known, labels = [], []
        for clips, kept in splits:
            ids = _renamed(getattr(clips, column), getattr(clips, f"{kind}_names"), names or [], len(clips))[kept]
            known.append(np.flatnonzero(ids >= 0))
            labels.append(ids[known[-1]])
        classes, counts = np.unique(labels[0], return_counts=True)
        if len(classes) < 2 or not len(labels[1]):
            result["not_measured"][f"{kind}_probe"] = f"the training clips have {len(classes)} different {kind}s"
            continue
        if kind == "word" and len(labels[0]) < MIN_CLIPS_PER_WORD * len(classes):
            result["not_measured"]["word_probe"] = f"{len(classes)} different texts in {len(labels[0])} clips"
            continue
        result["baselines"][f"{kind}_probe_chance"] = float((labels[1] == classes[counts.argmax()]).mean())
        for representation in representations:
            place = result["baselines" if representation == "mel" else "metrics"]
            train_values, values = (
                [split[representation][row] for row in rows] for split, rows in zip(found, known, strict=True)
            )
            if kind == "speaker":
                place[f"speaker_probe_{representation}"] = network_probe(
                    train_values, labels[0], values, labels[1], seed=seed
                )
            name = "speaker_linear_probe" if kind == "speaker" else "word_probe"
            pool = np.stack if representation == "speaker" else _pooled
            place[f"{name}_{representation}"] = linear_probe(
                pool(train_values), labels[0], pool(values), labels[1]
            ).accuracy
    return result


@torch.no_grad()
def encode_clips(
    model, clips: Sequence[np.ndarray], *, batch_size: int = DEFAULT_BATCH_SIZE, codes: bool = False, progress=None
) -> tuple[list[np.ndarray], np.ndarray]:
    """The two parts of the code of each clip.

    Args:
        clips: features (frames, num_mel_bins).
        codes: discrete codes, int64 (num_codebooks, latent frames), instead of latents.

    Returns:
        What is said: latents float32 (latent frames, latent_size) of each clip, and who says it: float32 (num_clips,
        speaker_size).
    """
    content: list[np.ndarray] = [None] * len(clips)
    voices: list[np.ndarray] = [None] * len(clips)
    for rows in _batches([len(clip) for clip in clips], batch_size, progress):
        features, mask = _padded([clips[row] for row in rows], model.device)
        encoded = model.encode(features, mask)
        if codes and encoded.audio_codes is None:
            raise ValueError(f"this {type(model).__name__} has no discrete codes")
        values = encoded.audio_codes.mT if codes else encoded.latents.float()
        lengths = encoded.attention_mask.sum(-1).tolist()
        embeddings = model.encode_speaker(features, mask).float().cpu().numpy()
        for row, value, length, voice in zip(rows, values.cpu().numpy(), lengths, embeddings, strict=True):
            content[row] = value[:length].T if codes else value[:length]
            voices[row] = voice
    return content, np.stack(voices)


@torch.no_grad()
def reconstruction_error(model, clips, *, batch_size: int = DEFAULT_BATCH_SIZE) -> float:
    """Mean absolute difference between features and what the model makes of them in their own voice, of a
    `SpeechClips`, over all frames and mel bins."""
    features = clip_features(clips)
    made = convert_clips(model, features, [[clip] for clip in features], batch_size=batch_size)
    total = sum(float(np.abs(clip - own).sum(dtype=np.float64)) for clip, own in zip(made, features, strict=True))
    return total / sum(clip.size for clip in features)


@torch.no_grad()
def real_time_factor(model, feature_extractor, clips) -> float:
    """Seconds that one core of the CPU takes for a second of speech, from waveform to converted waveform, clip by clip:
    features, `convert`, Griffin-Lim. The fastest of three passes over up to 20 seconds of a `SpeechClips`."""
    waveforms, seconds = [], 0.0
    for row in range(len(clips)):
        waveforms.append(clips.waveform(row))
        seconds += len(waveforms[-1]) / clips.sampling_rate
        if seconds >= MAX_TIMED_SECONDS:
            break
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(NUM_TIMED_PASSES):
            start = time.perf_counter()
            target = feature_extractor(waveforms[0], sampling_rate=clips.sampling_rate, return_tensors="pt")
            for waveform in waveforms:
                source = feature_extractor(waveform, sampling_rate=clips.sampling_rate, return_tensors="pt")
                converted = model.convert(source["input_features"], target["input_features"])
                feature_extractor.to_waveform(converted)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times) / seconds


def conversion_picture(model, clips, *, num_pairs: int = 4, seed: int = 0):
    """Some conversions within a `SpeechClips` as log-mels, a `PIL.Image`: source, target and result, a row for each.
    Where there is one speaker only: clips, and what the model makes of them in their own voice."""
    features, speakers = clip_features(clips), _names_of(clips)
    if len(set(speakers)) < 2:
        rows = range(min(num_pairs, len(clips)))
        made = convert_clips(model, [features[row] for row in rows], [[features[row]] for row in rows])
        panels = [{"clip": features[row], "own voice": made[row]} for row in rows]
    else:
        pairs = draw_pairs(speakers, speakers, num_pairs, seed=seed)
        sources, targets = (
            [features[row] for row in rows] for rows in (pairs.sources, [target[0] for target in pairs.targets])
        )
        made = convert_clips(model, sources, [[target] for target in targets])
        panels = [
            {"source": source, "target": target, "converted": converted}
            for source, target, converted in zip(sources, targets, made, strict=True)
        ]
    return mel_picture([{name: torch.tensor(np.array(clip)) for name, clip in row.items()} for row in panels])


# All of it


def evaluate_voice_conversion(
    model,
    feature_extractor,
    train,
    validation,
    *,
    unseen=None,
    num_pairs: int | None = None,
    num_target_clips: int = 1,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    judges: VoiceJudges | None = None,
    corpus: dict[str, Any] | None = None,
    command: str | None = None,
    cache_dir=None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a trained voice converter.

    Args:
        model: a `VoiceConversionModel` or `SpeechVQVAEModel`; evaluated where it is, in its dtype, in evaluation mode.
        feature_extractor: the one it was trained with.
        train: `SpeechClips` it was trained on; judges and probes learn from them.
        validation: clips of the same speakers, which are converted and whose voices are taken.
        unseen: clips of speakers it was not trained on.
        num_pairs: conversions of each kind; one for each source clip by default.
        num_target_clips: of a speaker whose voice is taken, averaged.
        batch_size: clips at once; no result depends on it beyond rounding.
        seed: of the pairs and the judges.
        judges: made of `train` by default; give them to use them more than once.
        corpus: what the numbers were measured on; rows and speakers are added.
        command: how to repeat this; the command line of this process by default.
        cache_dir: of the judges.
        progress: show progress bars.

    Returns:
        A dictionary ready for JSON, as that of `evaluate_model`, and `table`: the rows of `conversion_table`, and of
        `one_shot_table` to unseen speakers from validation clips (`seen_to_unseen`) and, where there are two, from each
        other (`unseen_to_unseen`). In `metrics`, shares in [0, 1]:

        `target_speaker`, `source_speaker`, `word_kept`, `both`: of the conversions. `reconstruction_speaker`,
        `reconstruction_word`, `reconstruction_both`: of clips in their own voice. `reconstruction_error`: see there.
        `seen_to_unseen_closer`, `..._word`, `..._both`, `unseen_to_unseen_...`: one-shot. `speaker_probe_content` and
        the like: see `leakage_probes`. `code_usage`, `code_perplexity`: of quantised content. `real_time_factor`.
        In `baselines`: the other rows of the table, and what the probes reach on log-mels and by chance.
    """
    if corpus is not None and (missing := {"name", "split"} - set(corpus)):
        raise ValueError(f"`corpus` must name what was measured, it lacks {sorted(missing)}")
    for name, clips in (("train", train), ("validation", validation), ("unseen", unseen)):
        if clips is not None and (not len(clips) or clips.features.shape[1] != model.config.num_mel_bins):
            raise ValueError(
                f"`{name}` must hold clips of {model.config.num_mel_bins} mel bins, got {len(clips)} clips of "
                f"{clips.features.shape[1]}"
            )
    if unseen is not None and (heard := sorted(set(_names_of(unseen)) & set(_names_of(train)))):
        raise ValueError(f"`unseen` must hold other speakers than `train`: {heard[0]!r} is in both")
    judges = judges or train_judges(train, seed, cache_dir=cache_dir)
    not_measured = {f"{kind}_judge": reason for kind, reason in judges.not_measured.items()}
    options = {
        "num_pairs": num_pairs,
        "num_target_clips": num_target_clips,
        "batch_size": batch_size,
        "seed": seed,
        "progress": progress,
    }
    was_training = model.training
    model.eval()
    try:
        table = conversion_table(model, feature_extractor, judges, validation, **options)
        if len(table) == 2:
            not_measured["conversion"] = "the validation clips are of one speaker only"
        for name, label, sources in (
            ("seen_to_unseen", "to an unseen voice", validation),
            ("unseen_to_unseen", "between unseen voices", unseen),
        ):
            reason = "no clips of unseen speakers were given" if unseen is None else None
            if reason is None:
                try:
                    table += one_shot_table(
                        model, feature_extractor, judges, sources, unseen, name=name, label=label, **options
                    )
                except ValueError as error:
                    reason = str(error)
            if reason:
                not_measured[name] = reason
        probes = leakage_probes(model, train, validation, batch_size=batch_size, seed=seed)
        metrics = {"reconstruction_error": reconstruction_error(model, validation, batch_size=batch_size)}
        metrics |= _code_metrics(model, validation, batch_size)
        if model.device.type != "cpu":
            not_measured["real_time_factor"] = f"it is that of one core of the CPU, but the model is on {model.device}"
        else:
            metrics["real_time_factor"] = real_time_factor(model, feature_extractor, validation)
    finally:
        model.train(was_training)

    baselines = {}
    columns = {"target": "target_speaker", "source": "source_speaker", "word": "word_kept", "both": "both"}
    for row in table:
        values = {key: value for key, value in row.items() if key not in ("name", "label") and value is not None}
        if row["name"] == "converted":
            metrics |= {columns[key]: value for key, value in values.items()}
        elif row["name"] == "reconstruction":
            values = {"speaker" if key == "target" else key: value for key, value in values.items()}
            metrics |= {f"reconstruction_{key}": value for key, value in values.items()}
        elif row["name"].endswith("_converted"):
            metrics |= {f"{row['name'].removesuffix('converted')}{key}": value for key, value in values.items()}
        else:
            baselines |= {f"{row['name']}_{key}": value for key, value in values.items()}
    seconds = None if validation.num_samples is None else validation.num_samples.sum() / validation.sampling_rate
    described = {"rows": len(validation), "train_rows": len(train), "speakers": len(set(_names_of(train)))}
    described |= {} if unseen is None else {"unseen_rows": len(unseen), "unseen_speakers": len(set(_names_of(unseen)))}
    described |= {} if seconds is None else {"seconds": round(float(seconds), 1)}
    return {
        "model_type": model.config.model_type,
        "name": variant_name(model.config.model_type),
        "corpus": {**(corpus or {}), **described},
        "metrics": _floats(metrics | probes["metrics"]),
        "baselines": _floats(baselines | probes["baselines"]),
        "table": table,
        "not_measured": not_measured | probes["not_measured"],
        "settings": {
            "num_pairs": num_pairs,
            "num_target_clips": num_target_clips,
            "batch_size": batch_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "judged": "after Griffin-Lim: log-mels to waveform to log-mels",
            "probe": "two convolutions and pooling over time",
            "linear_probe": "logistic regression, of sequences on mean and standard deviation over time",
        },
        "seed": seed,
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": describe_machine(model.device),
        "versions": library_versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `conversion_table` and `one_shot_table` as Markdown, aligned to be read in a terminal, too."""
    columns = {
        "": "label",
        "target speaker": "target",
        "still source": "source",
        "closer to target": "closer",
        "word kept": "word",
        "both": "both",
    }
    columns = {title: key for title, key in columns.items() if any(row[key] is not None for row in rows)}
    cells = [list(columns)]
    for row in rows:
        first, *others = (row[key] for key in columns.values())
        cells.append([first, *("" if value is None else f"{value:.1%}" for value in others)])
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = []
    for first, *others in cells:
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("| " + " | ".join([first.ljust(widths[0]), *padded]) + " |")
    return "\n".join(lines)


def _row(name: str, label: str, values: dict[str, float | None]) -> dict[str, Any]:
    return {"name": name, "label": label, **dict.fromkeys(("target", "source", "closer", "word", "both")), **values}


def _floats(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _names_of(clips) -> np.ndarray:
    """The name of each clip's speaker."""
    return np.array(clips.speaker_names, dtype=object)[clips.speakers]


def _renamed(ids: np.ndarray | None, names: list[str] | None, wanted: list[str], number: int) -> np.ndarray:
    """Indices into `names` as indices into `wanted`; -1 where there is none."""
    if ids is None or not names:
        return np.full(number, -1)
    places = {name: place for place, name in enumerate(wanted)}
    table = np.array([*(places.get(name, -1) for name in names), -1])
    return table[np.asarray(ids)]  # -1 is the last


def _code_metrics(model, clips, batch_size: int) -> dict[str, float]:
    """Usage and perplexity of the codes of a quantised content, over a split."""
    if getattr(model, "quantizer", None) is None:
        return {}
    codes, _ = encode_clips(model, clip_features(clips), batch_size=batch_size, codes=True)
    counter = CodeUsage(model.config.codebook_size, model.config.num_codebooks)
    counter.update(torch.from_numpy(np.concatenate(codes, axis=1))[None])
    return {"code_usage": counter.usage().mean().item(), "code_perplexity": counter.perplexity().mean().item()}


def _pooled(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Mean and standard deviation over time: float32 (num_clips, 2 * size)."""
    return np.stack([np.concatenate([clip.mean(0), clip.std(0)]) for clip in clips]).astype(np.float32)


def _padded(clips: Sequence[np.ndarray | None], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips in one tensor (batch, frames, bins), 0 in the padding, and its mask; None is all padding."""
    present = [clip for clip in clips if clip is not None]
    features = torch.zeros(len(clips), max(map(len, present)), present[0].shape[-1])
    mask = torch.zeros(features.shape[:2], dtype=torch.long)
    for row, clip in enumerate(clips):
        if clip is not None:
            features[row, : len(clip)] = torch.from_numpy(np.array(clip, np.float32))
            mask[row, : len(clip)] = 1
    return features.to(device), mask.to(device)


def _batches(lengths: Sequence[int], batch_size: int, progress: str | None = None) -> Iterator[list[int]]:
    """Row numbers in batches of near-equal length, the longest first: what does not fit into memory shows soon."""
    check_positive("batch_size", batch_size)
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    with tqdm(total=len(order), desc=progress, unit="clip", disable=progress is None, leave=False) as bar:
        for first in range(0, len(order), batch_size):
            yield order[first : first + batch_size]
            bar.update(len(order[first : first + batch_size]))
