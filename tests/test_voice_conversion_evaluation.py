"""Judges, tables and probes of voice conversion: on synthetic voices, whose right answers are known."""

import json
import types

import numpy as np
import pytest
import torch

from hf_autoencoders.data.speech import SpeechClips
from hf_autoencoders.evaluation import voice_conversion
from hf_autoencoders.evaluation.evaluate import write_metrics
from hf_autoencoders.evaluation.probe import linear_probe
from hf_autoencoders.evaluation.speech_judges import SpeechJudge, network_probe
from hf_autoencoders.evaluation.voice_conversion import (
    VoiceJudges,
    conversion_table,
    convert_clips,
    draw_pairs,
    encode_clips,
    evaluate_voice_conversion,
    format_table,
    judge_clips,
    leakage_probes,
    one_shot_table,
    through_waveform,
    train_judges,
)
from hf_autoencoders.models.configuration_voice_conversion import VoiceConversionConfig
from hf_autoencoders.models.feature_extraction_speech import SpeechFeatureExtractor
from hf_autoencoders.models.modeling_voice_conversion import VoiceConversionModel

RATE, BINS, SECONDS = 8000, 32, 0.25
VOICES = {"ann": 100, "bob": 140, "cat": 200, "dan": 280, "eve": 118, "fay": 238}  # Hz
WORDS = {"wa": (500, 1400), "wi": (1400, 500), "wo": (800, 2600)}  # the formant glides from here to there


def speak(voice: str, word: str, take: int) -> np.ndarray:
    """A buzz of the voice's pitch through the word's gliding formant; every take is a little different."""
    random = np.random.default_rng([*voice.encode(), *word.encode(), take])
    seconds = np.arange(int(SECONDS * RATE)) / RATE
    pitch = VOICES[voice] * random.uniform(0.98, 1.02)
    formant = np.linspace(*WORDS[word], len(seconds)) * random.uniform(0.95, 1.05)
    waveform = 0
    for harmonic in range(1, int(RATE / 2 / pitch)):
        gain = np.exp(-(((harmonic * pitch - formant) / 400) ** 2)) + 0.05
        waveform = waveform + gain * np.sin(2 * np.pi * harmonic * pitch * seconds + random.uniform(0, 6.28))
    waveform = waveform + 0.01 * random.standard_normal(len(seconds))
    return (0.3 * waveform / np.abs(waveform).max()).astype(np.float32)


@pytest.fixture(scope="module")
def extractor():
    return SpeechFeatureExtractor(
        feature_size=BINS, sampling_rate=RATE, hop_length=100, win_length=400, n_fft=512, mean=-3.0, std=2.0
    )


def corpus(extractor, voices, takes) -> SpeechClips:
    """Every word of these voices, in these takes."""
    voices = list(voices)
    rows = [(voice, word, take) for voice in voices for word in WORDS for take in takes]
    waveforms = [speak(*row) for row in rows]
    features = [extractor.normalize(extractor.log_mel(torch.from_numpy(waveform))).numpy() for waveform in waveforms]
    return SpeechClips(
        features=np.concatenate(features),
        starts=np.cumsum([0, *map(len, features)]),
        speakers=np.array([voices.index(voice) for voice, _, _ in rows]),
        speaker_names=voices,
        words=np.array([list(WORDS).index(word) for _, word, _ in rows]),
        word_names=list(WORDS),
        sampling_rate=RATE,
        num_samples=np.array([len(waveform) for waveform in waveforms]),
        read_waveform=waveforms.__getitem__,
    )


SEEN, UNSEEN = list(VOICES)[:4], list(VOICES)[4:]


@pytest.fixture(scope="module")
def train(extractor):
    return corpus(extractor, SEEN, range(5))


@pytest.fixture(scope="module")
def validation(extractor):
    return corpus(extractor, SEEN, range(100, 103))


@pytest.fixture(scope="module")
def unseen(extractor):
    return corpus(extractor, UNSEEN, range(3))


@pytest.fixture(scope="module")
def judge_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("judges")


@pytest.fixture(scope="module")
def judges(train, judge_cache):
    return train_judges(train, cache_dir=judge_cache)


class Oracle:
    """Converts by looking up a recording of the target that says the same word; or fails in a way that is known."""

    def __init__(self, *corpora, fault=None):
        self.corpora, self.fault, self.device = corpora, fault, torch.device("cpu")

    def _find(self, clip) -> tuple[str, int]:
        for clips in self.corpora:
            for row in range(len(clips)):
                if np.array_equal(clips.clip(row), clip):
                    return clips.speaker_names[clips.speakers[row]], int(clips.words[row])
        raise AssertionError("this clip was not handed to the evaluation as it is")

    def convert(self, input_features, speaker_features, attention_mask, speaker_attention_mask):
        assert attention_mask.all() and input_features.ndim == 3 and speaker_features.ndim == 4
        if self.fault == "copy":
            return input_features
        result = []
        for source, voices, mask in zip(input_features, speaker_features, speaker_attention_mask, strict=True):
            _, word = self._find(source.numpy())
            speakers = {self._find(voice.numpy())[0] for voice in voices[mask.any(1)]}
            assert len(speakers) == 1  # all clips of a target are of one speaker
            if self.fault == "word":
                word = (word + 1) % len(WORDS)
            clips = next(clips for clips in self.corpora if speakers <= set(clips.speaker_names))
            speaker = clips.speaker_names.index(*speakers)
            found = np.flatnonzero((clips.speakers == speaker) & (clips.words == word))
            result.append(torch.from_numpy(np.array(clips.clip(found[-1]))))
        return torch.stack(result)


def rows_of(table) -> dict:
    return {row["name"]: row for row in table}


# judges


def test_judges_know_words_and_voices_they_have_not_heard_those_takes_of(judges, validation, extractor):
    real = [validation.clip(row) for row in range(len(validation))]
    for clips in (real, through_waveform(extractor, real)):
        assert (judges.speaker.classify(clips) == validation.speakers).mean() > 0.95
        assert (judges.word.classify(clips) == validation.words).mean() > 0.95


def test_the_embedding_tells_voices_apart_that_were_not_heard_in_training(judges, unseen):
    embeddings = judges.speaker.embed([unseen.clip(row) for row in range(len(unseen))])
    torch.testing.assert_close(np.linalg.norm(embeddings, axis=1), np.ones(len(unseen), np.float32))
    cosine = embeddings @ embeddings.T
    same = unseen.speakers[:, None] == unseen.speakers
    assert cosine[same & ~np.eye(len(unseen), dtype=bool)].mean() > cosine[~same].mean() + 0.1


def test_a_judge_does_not_care_what_is_in_the_batch(judges, validation):
    clips = [validation.clip(0), np.tile(validation.clip(5), (3, 1)), validation.clip(7)[:5]]
    together = judges.speaker.embed(clips)
    for row, clip in enumerate(clips):
        np.testing.assert_allclose(judges.speaker.embed([clip])[0], together[row], atol=1e-5)


def test_judges_are_kept_and_repeat_themselves(train, validation, judge_cache, tmp_path, monkeypatch):
    clips, classes = [train.clip(row) for row in range(24)], train.words[:24]
    real = [validation.clip(row) for row in range(6)]
    settings = {"num_steps": 5, "cache_dir": tmp_path}
    state = torch.get_rng_state()
    first = SpeechJudge(clips, classes, 3, "word", **settings)
    assert torch.equal(state, torch.get_rng_state())
    again = SpeechJudge(clips, classes, 3, "word", num_steps=5, cache_dir=False)
    np.testing.assert_array_equal(first.embed(real), again.embed(real))

    def no_training(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr("hf_autoencoders.evaluation.speech_judges._train", no_training)
    np.testing.assert_array_equal(first.embed(real), SpeechJudge(clips, classes, 3, "word", **settings).embed(real))
    for other in ({"seed": 1}, {"num_steps": 6}, {"num_classes": 4}):
        with pytest.raises(AssertionError, match="trained again"):
            SpeechJudge(clips, classes, **{"num_classes": 3, "kind": "word", **settings, **other})
    changed = [clips[0] + 1e-3, *clips[1:]]
    with pytest.raises(AssertionError, match="trained again"):
        SpeechJudge(changed, classes, 3, "word", **settings)


def test_judges_refuse_what_they_cannot_learn(train):
    clips = [train.clip(row) for row in range(4)]
    with pytest.raises(ValueError, match="got 4 clips, 3 classes"):
        SpeechJudge(clips, [0, 1, 0], 2, "word")
    with pytest.raises(ValueError, match=r"num_classes=2 and classes from 0 to 2"):
        SpeechJudge(clips, [0, 1, 2, 0], 2, "word")
    with pytest.raises(ValueError, match='kind must be "word" or "speaker"'):
        SpeechJudge(clips, [0, 1, 0, 1], 2, "words")


def test_judges_that_cannot_be_had_say_why(train):
    one = train.select(train.speakers == 0)
    one.speaker_names, one.words = ["ann"], None
    judges = train_judges(one)
    assert judges.speaker is None and judges.word is None
    assert judges.not_measured["speaker"] == "the training clips have 1 different speakers, a judge needs two"
    assert "0 different words" in judges.not_measured["word"]
    texts = train.select(slice(8))
    texts.words, texts.word_names = np.arange(8), list("abcdefgh")
    assert "8 different texts in 8 training clips" in train_judges(texts).not_measured["word"]


# pairs


def test_pairs_never_have_the_source_as_target():
    speakers = np.array(["a"] * 4 + ["b"] * 3 + ["c"])
    pairs = draw_pairs(speakers, speakers, num_target_clips=2)
    assert sorted(pairs.sources) == list(range(8))
    for source, target in zip(pairs.sources, pairs.targets, strict=True):
        (name,) = set(speakers[target])
        assert name != speakers[source]
        assert len(set(target)) == len(target) == (1 if name == "c" else 2)
    again = draw_pairs(speakers, speakers, num_target_clips=2)
    assert all(np.array_equal(*two) for two in zip(pairs.targets, again.targets, strict=True))
    other = draw_pairs(speakers, speakers, num_target_clips=2, seed=1)
    assert not np.array_equal(pairs.sources, other.sources)
    more = draw_pairs(speakers, speakers, 20)
    assert np.bincount(more.sources).min() >= 2 and len(more.targets) == 20
    left = draw_pairs(speakers, speakers, 20, 3, min_other_clips=1)
    assert {(speakers[target[0]], len(target)) for target in left.targets} == {("a", 3), ("b", 2)}
    with pytest.raises(ValueError, match="the sources have 1 speakers, the possible targets 1"):
        draw_pairs(["a", "a"], ["a"])


# tables


def test_the_table_of_an_oracle_and_of_known_faults(judges, validation, extractor):
    table = rows_of(conversion_table(Oracle(validation), extractor, judges, validation, num_target_clips=2))
    assert list(table) == ["real", "copy", "reconstruction", "converted"]
    for name in ("real", "reconstruction", "converted"):
        assert table[name]["target"] > 0.95 and table[name]["word"] > 0.95 and table[name]["both"] > 0.9
    assert table["converted"]["source"] < 0.05
    assert table["copy"]["target"] < 0.05 and table["copy"]["source"] > 0.95 and table["copy"]["word"] > 0.95
    assert table["copy"]["both"] < 0.05

    copy = rows_of(conversion_table(Oracle(validation, fault="copy"), extractor, judges, validation))["converted"]
    assert copy["target"] < 0.05 and copy["source"] > 0.95 and copy["word"] > 0.95
    wrong = rows_of(conversion_table(Oracle(validation, fault="word"), extractor, judges, validation))["converted"]
    assert wrong["target"] > 0.95 and wrong["word"] < 0.05 and wrong["both"] < 0.05


def test_to_unseen_voices(judges, validation, unseen, extractor):
    settings = {"name": "x", "label": "to unseen"}
    for sources in (validation, unseen):
        table = rows_of(one_shot_table(Oracle(validation, unseen), extractor, judges, sources, unseen, **settings))
        assert list(table) == ["x_real", "x_copy", "x_converted"]
        assert table["x_real"]["closer"] > 0.9 and table["x_converted"]["closer"] > 0.9
        assert table["x_copy"]["closer"] < 0.1 and table["x_copy"]["both"] < 0.1
        assert table["x_copy"]["word"] > 0.9 and table["x_converted"]["both"] > 0.9
    with pytest.raises(ValueError, match="a conversion needs a target speaker"):
        first = unseen.select(unseen.speakers == 0)
        one_shot_table(Oracle(first), extractor, judges, first, first, **settings)


def test_a_clip_of_the_voice_taken_is_not_compared_with(judges, validation, unseen, extractor):
    """Each unseen voice has two clips; of the pair's own clips nothing is left in the means but the other one."""
    few = unseen.select([0, 1, 9, 10])
    first = few.clip(0)
    few.features = np.concatenate([first, first, first, few.clip(3)])  # 9, now a clip of another voice, is taken or not
    seen = []

    class Spy:
        def embed(self, clips):
            result = judges.speaker.embed(clips)
            seen.append(len(clips))
            return result

    spied = judges._replace(speaker=Spy())
    table = one_shot_table(Oracle(validation, fault="copy"), extractor, spied, few, few, name="x", label="x", seed=0)
    assert seen[0] == 4 and len(table) == 3  # every clip is embedded once, then each row's


def test_without_words_or_a_second_speaker(train, validation, extractor, judges):
    no_words = judges._replace(word=None)
    row = rows_of(conversion_table(Oracle(validation), extractor, no_words, validation))["converted"]
    assert row["target"] > 0.95 and row["word"] is None and row["both"] is None
    one = validation.select(validation.speakers == 1)
    table = rows_of(conversion_table(Oracle(one), extractor, judges, one))
    assert list(table) == ["real", "reconstruction"] and table["reconstruction"]["word"] > 0.95


def test_format_table():
    rows = [
        {
            "name": "real",
            "label": "real clips",
            "target": 1.0,
            "source": None,
            "closer": None,
            "word": 0.5,
            "both": 0.5,
        },
        {"name": "x", "label": "converted", "target": 0.25, "source": 0.125, "closer": None, "word": 1.0, "both": None},
    ]
    assert format_table(rows).splitlines() == [
        "|            | target speaker | still source | word kept |  both |",
        "| ---------- | -------------: | -----------: | --------: | ----: |",
        "| real clips |         100.0% |              |     50.0% | 50.0% |",
        "| converted  |          25.0% |        12.5% |    100.0% |       |",
    ]


def test_judging_counts_by_hand():
    class Fixed:
        def __init__(self, answers):
            self.answers = np.array(answers)

        def classify(self, clips):
            return np.array([self.answers[int(clip[0, 0])] for clip in clips])

    clips = [np.full((2, 3), row, np.float32) for row in range(4)]
    judges = VoiceJudges(Fixed([0, 1, 1, 2]), Fixed([5, 5, 6, 7]), [], [], {})
    answer = judge_clips(judges, clips, np.array([0, 1, 0, 0]), np.array([5, 6, 6, -1]), np.array([1, 0, 1, 2]))
    assert answer == {"target": 0.5, "source": 0.5, "word": pytest.approx(2 / 3), "both": pytest.approx(1 / 3)}


# probes


class Coder:
    """A code that holds what it is told to: the speaker, the word, or noise."""

    device, quantizer = torch.device("cpu"), None

    def __init__(self, *corpora, content, speaker):
        self.parts, self.known = (content, speaker), {}
        self.generator = torch.Generator().manual_seed(0)
        for clips in corpora:
            for row in range(len(clips)):
                self.known[clips.clip(row).tobytes()] = int(clips.speakers[row]), int(clips.words[row])

    def _code(self, what, features, mask):
        lengths = mask.sum(1).tolist()
        keys = [self.known[clip[:length].numpy().tobytes()] for clip, length in zip(features, lengths, strict=True)]
        if what == "noise":
            return torch.randn(len(keys), 4, generator=self.generator)
        return torch.nn.functional.one_hot(torch.tensor(keys)[:, ("speaker", "word").index(what)], 4).float()

    def encode(self, features, mask):
        latents = self._code(self.parts[0], features, mask)[:, None].repeat(1, features.shape[1], 1)
        latents = latents * mask.unsqueeze(-1) + 100.0 * (1 - mask.unsqueeze(-1))  # padding must not count
        return types.SimpleNamespace(latents=latents, audio_codes=None, attention_mask=mask)

    def encode_speaker(self, features, mask):
        return self._code(self.parts[1], features, mask)


def test_probes_find_what_is_there_and_nothing_where_there_is_nothing(train, validation):
    # clips of unequal length, so that there is padding
    found = leakage_probes(Coder(train, validation, content="speaker", speaker="word"), train, validation)
    assert found["metrics"]["speaker_probe_content"] == 1 and found["metrics"]["word_probe_speaker"] == 1
    assert found["metrics"]["speaker_linear_probe_content"] == 1 and found["metrics"]["word_probe_content"] < 0.6
    assert found["baselines"]["speaker_probe_chance"] == 0.25
    assert found["baselines"]["word_probe_chance"] == pytest.approx(1 / 3)
    assert found["baselines"]["speaker_probe_mel"] > 0.9 and found["baselines"]["speaker_linear_probe_mel"] > 0.9
    assert found["baselines"]["word_probe_mel"] > 0.7 and found["not_measured"] == {}
    found = leakage_probes(Coder(train, validation, content="noise", speaker="noise"), train, validation)
    assert found["metrics"]["speaker_probe_content"] < 0.5 and found["metrics"]["word_probe_speaker"] < 0.6
    assert found["metrics"]["speaker_linear_probe_content"] < 0.5


def test_the_network_probe_hears_what_instance_normalisation_hides_from_a_linear_one():
    """Two classes of sequences, each dimension of mean 0 and deviation 1: in one of them two dimensions go together."""
    random = np.random.default_rng(0)

    def draw(number):
        labels, clips = random.integers(0, 2, number), []
        for label in labels:
            clip = random.standard_normal((40, 3))
            clip[:, 1] = clip[:, 1] if label else clip[:, 0] + 0.3 * clip[:, 1]
            clips.append(((clip - clip.mean(0)) / clip.std(0)).astype(np.float32))
        return clips, labels

    train, validation = draw(60), draw(40)
    assert network_probe(*train, *validation) > 0.9
    pooled = [
        np.stack([np.concatenate([clip.mean(0), clip.std(0)]) for clip in clips]) for clips in (train[0], validation[0])
    ]
    assert linear_probe(pooled[0], train[1], pooled[1], validation[1]).accuracy < 0.8


def test_probes_without_words_say_so(train, validation):
    silent, other = train.select(slice(None)), validation.select(slice(None))
    silent.words = other.words = None
    coder = Coder(train, validation, content="word", speaker="speaker")
    found = leakage_probes(coder, silent, other)
    assert found["not_measured"] == {"word_probe": "the training clips have 0 different words"}
    assert not any(name.startswith("word") for name in found["metrics"] | found["baselines"])


# a model of this package


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    fields = {"num_mel_bins": BINS, "sampling_rate": RATE, "hop_length": 100, "hidden_size": 8, "latent_size": 4}
    return VoiceConversionModel(VoiceConversionConfig(**fields, content_bottleneck="vq", codebook_size=8)).eval()


def test_clips_are_converted_as_one_by_one(model, validation):
    lengths = [5, 20, 9]
    sources = [validation.clip(row)[:length] for row, length in enumerate(lengths)]
    targets = [[validation.clip(9)], [validation.clip(10)[:7], validation.clip(11)], [validation.clip(12)]]
    together = convert_clips(model, sources, targets)
    for source, target, converted in zip(sources, targets, together, strict=True):
        voice = torch.stack([model.encode_speaker(torch.tensor(clip)[None])[0] for clip in target]).mean(
            0, keepdim=True
        )
        expected = model.convert(torch.tensor(source)[None], speaker_embeddings=voice)[0].numpy()
        np.testing.assert_allclose(converted, expected, atol=1e-5)


def test_clips_are_encoded_as_one_by_one(model, validation):
    clips = [validation.clip(0)[:7], validation.clip(1)]
    latents, voices = encode_clips(model, clips)
    codes, _ = encode_clips(model, clips, codes=True)
    for row, clip in enumerate(clips):
        expected = model.encode(torch.tensor(clip)[None])
        np.testing.assert_allclose(latents[row], expected.latents[0].detach().numpy(), atol=1e-5)
        np.testing.assert_array_equal(codes[row], expected.audio_codes[0].numpy())
        np.testing.assert_allclose(voices[row], model.encode_speaker(torch.tensor(clip)[None])[0].detach(), atol=1e-5)


def test_the_whole_evaluation(model, extractor, train, validation, unseen, judge_cache, tmp_path):
    model.train()
    result = evaluate_voice_conversion(
        model,
        extractor,
        train,
        validation,
        unseen=unseen,
        num_pairs=12,
        corpus={"name": "buzzes", "split": "validation"},
        command="me",
        cache_dir=judge_cache,
    )
    assert model.training
    model.eval()
    assert [row["name"] for row in result["table"]] == [
        *("real", "copy", "reconstruction", "converted"),
        *("seen_to_unseen_real", "seen_to_unseen_copy", "seen_to_unseen_converted"),
        *("unseen_to_unseen_real", "unseen_to_unseen_copy", "unseen_to_unseen_converted"),
    ]
    assert set(result["metrics"]) == {
        *("target_speaker", "source_speaker", "word_kept", "both"),
        *("reconstruction_speaker", "reconstruction_word", "reconstruction_both", "reconstruction_error"),
        *(f"{one}_to_unseen_{what}" for one in ("seen", "unseen") for what in ("closer", "word", "both")),
        *("speaker_probe_content", "speaker_linear_probe_content", "word_probe_content", "word_probe_speaker"),
        *("code_usage", "code_perplexity", "real_time_factor"),
    }
    assert result["not_measured"] == {}
    assert result["baselines"]["real_target"] > 0.95 and result["baselines"]["copy_source"] > 0.95
    assert result["corpus"] == {
        **{"name": "buzzes", "split": "validation", "rows": 36, "train_rows": 60, "speakers": 4},
        **{"unseen_rows": 18, "unseen_speakers": 2, "seconds": 9.0},
    }
    reconstruction = model(torch.tensor(np.stack([validation.clip(row) for row in range(36)])), return_loss=False)
    error = np.abs(reconstruction.reconstruction.detach().numpy() - validation.features.reshape(36, -1, BINS)).mean()
    assert result["metrics"]["reconstruction_error"] == pytest.approx(error, rel=1e-4)
    assert 0 < result["metrics"]["real_time_factor"] < 10
    assert json.loads(write_metrics(tmp_path / "metrics.json", result).read_text())["command"] == "me"

    with pytest.raises(ValueError, match="'ann' is in both"):
        evaluate_voice_conversion(model, extractor, train, validation, unseen=validation)
    with pytest.raises(ValueError, match="it lacks \\['split'\\]"):
        evaluate_voice_conversion(model, extractor, train, validation, corpus={"name": "x"})


def test_the_evaluation_of_one_speaker_without_words(model, extractor, train, validation, monkeypatch):
    one, other = (clips.select(clips.speakers == 0) for clips in (train, validation))
    one.words = other.words = None
    monkeypatch.setattr(voice_conversion, "real_time_factor", lambda *args: 1.0)
    result = evaluate_voice_conversion(model, extractor, one, other, command="me")
    assert set(result["metrics"]) == {"reconstruction_error", "code_usage", "code_perplexity", "real_time_factor"}
    assert set(result["not_measured"]) == {
        *("speaker_judge", "word_judge", "conversion", "seen_to_unseen", "unseen_to_unseen"),
        *("speaker_probe", "word_probe"),
    }
