"""Measures of codes of speech: perfect codes are perfect, random ones are chance, and the table says which is which."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_autoencoders.evaluation import speech_codes as sc
from hf_autoencoders.evaluation.speech_codes import (
    PhoneSegment,
    abx_error,
    cluster_purity,
    code_times,
    dtw_distance,
    encode_speech,
    entropy_bits,
    evaluate_speech_codes,
    format_codes_table,
    kmeans_codes,
    labels_at,
    normalized_mutual_information,
    phone_purity,
    phone_segments,
    pooled_frames,
    shuffled_codes,
)

RNG = np.random.default_rng(0)


def test_purity_and_information_by_hand():
    codes = np.array([0, 0, 0, 1, 1, 2])
    phones = np.array(["a", "a", "b", "b", "b", "a"])
    assert phone_purity(codes, phones) == pytest.approx(5 / 6)  # 2 of 3, 2 of 2, 1 of 1
    assert cluster_purity(codes, phones) == pytest.approx(4 / 6)  # a: 2 of 3, b: 2 of 3
    assert phone_purity(phones, phones) == cluster_purity(phones, phones) == 1
    assert normalized_mutual_information(phones, phones) == pytest.approx(1)
    # H(phones) = 1 bit; H(codes) = 1/2 + 1/3 log2 3 + 1/6 log2 6; I = H(phones) - 1/2 h(1/3)
    h_third = -(1 / 3) * np.log2(1 / 3) - (2 / 3) * np.log2(2 / 3)
    h_codes = 0.5 + np.log2(3) / 3 + np.log2(6) / 6
    expected = (1 - 0.5 * h_third) / ((1 + h_codes) / 2)
    assert normalized_mutual_information(codes, phones) == pytest.approx(expected)
    assert normalized_mutual_information(codes, np.zeros(6, int)) == 0  # one speaker only
    assert entropy_bits(codes) == pytest.approx(h_codes)
    assert entropy_bits(np.arange(64)) == pytest.approx(6)


def test_random_codes_are_near_the_floor():
    phones = RNG.integers(0, 10, 20000)
    codes = RNG.integers(0, 32, 20000)
    assert phone_purity(codes, phones) < 0.14
    assert normalized_mutual_information(codes, phones) < 0.01
    shuffled = shuffled_codes(phones)
    assert (np.bincount(shuffled) == np.bincount(phones)).all()
    assert normalized_mutual_information(shuffled, phones) < 0.01
    assert (shuffled_codes(phones) == shuffled).all() and (shuffled_codes(phones, seed=1) != shuffled).any()


def test_times_of_codes_and_labels():
    assert code_times(3, 2, 100.0) == pytest.approx([0.005, 0.025, 0.045])  # middle of frames 0-1, 2-3, 4-5
    segments = [
        {"phone": "a", "start": 0.0, "end": 0.1},
        {"phone": "b", "start": 0.1, "end": 0.2},
        ("c", 0.3, 0.4),
    ]
    assert labels_at(segments, [0.0, 0.0999, 0.1, 0.25, 0.3, 0.4]).tolist() == ["a", "a", "b", "", "c", ""]
    assert labels_at([], [0.0, 1.0]).tolist() == ["", ""]


def test_segments_of_a_clip():
    features, times = np.arange(6.0)[:, None], np.arange(6) * 0.02
    found = phone_segments(features, times, [("a", 0.0, 0.04), ("", 0.04, 0.06), ("b", 0.061, 0.065)], speaker=7)
    assert [(s.phone, s.speaker, s.features.ravel().tolist()) for s in found] == [("a", 7, [0, 1]), ("b", 7, [3])]


def test_dtw_forgives_tempo_but_not_order():
    x, y, z = np.eye(3)
    slow, fast = np.stack([x, x, x, y, z]), np.stack([x, y, z, z])
    assert dtw_distance(slow, fast) == pytest.approx(0)
    assert dtw_distance(np.stack([x]), np.stack([y])) == pytest.approx(0.5)  # 90 of 180 degrees
    assert dtw_distance(np.stack([x]), np.stack([-x])) == pytest.approx(1)
    assert dtw_distance(np.stack([x, y]), np.stack([y, x])) > 0.3
    assert dtw_distance(slow * 5, fast * 0.1) == pytest.approx(0)  # lengths of vectors do not count


def segments(vector_of, phones=8, speakers=4, repeats=6, noise=0.0):
    return [
        PhoneSegment(str(p), s, vector_of(p, s) + noise * RNG.standard_normal((int(RNG.integers(1, 5)), 16)))
        for p in range(phones)
        for s in range(speakers)
        for _ in range(repeats)
    ]


def test_abx_of_an_oracle_of_chance_and_of_a_speaker():
    of_phone = RNG.standard_normal((8, 16))
    of_speaker = RNG.standard_normal((4, 16))
    perfect = segments(lambda p, s: of_phone[p], noise=0.01)
    random = segments(lambda p, s: RNG.standard_normal(16), repeats=30)
    voices = segments(lambda p, s: of_speaker[s])
    both = segments(lambda p, s: of_phone[p] + 3 * of_phone[(p + 3 * s) % 8])
    for across in (False, True):
        assert abx_error(perfect, across_speakers=across, num_triples=500) == 0
        assert abs(abx_error(random, across_speakers=across, num_triples=2000) - 0.5) < 0.04
        assert abx_error(voices, across_speakers=across, num_triples=500) == 0.5  # ties
    assert abx_error(both, across_speakers=False, num_triples=500) < 0.02
    assert abx_error(both, across_speakers=True, num_triples=500) > 0.3


def test_abx_is_drawn_by_its_seed_and_says_when_it_cannot():
    random = segments(lambda p, s: RNG.standard_normal(16))
    drawn = [abx_error(random, across_speakers=True, num_triples=301, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    one = [PhoneSegment(p, 0, np.ones((1, 2))) for p in "ab"]
    assert abx_error(one, across_speakers=False) is None and abx_error(one, across_speakers=True) is None
    assert abx_error([*one, one[0]], across_speakers=False, num_triples=5) == 0.5
    assert abx_error([], across_speakers=True) is None


def test_pooling_and_clusters():
    assert pooled_frames(np.arange(5.0)[:, None], 2).ravel().tolist() == [0.5, 2.5, 4]
    centers = 10 * RNG.standard_normal((6, 4))
    truth = [RNG.integers(0, 6, 200) for _ in range(4)]
    clips = [(centers[t] + 0.1 * RNG.standard_normal((200, 4))).astype(np.float32) for t in truth]
    codes, found = kmeans_codes(clips[:3], clips[3:], 6)
    assert found.shape == (6, 4) and phone_purity(codes[0], truth[3]) == 1
    again, _ = kmeans_codes(clips[:3], clips[3:], 6)
    assert (again[0] == codes[0]).all()
    with pytest.raises(ValueError, match="700 clusters.* 600"):
        kmeans_codes(clips[:3], clips[3:], 700)


class Oracle:
    """Codes that are the phone at every second frame: column 0 of the features carries it."""

    dtype, device, training = torch.float32, torch.device("cpu"), False
    config = SimpleNamespace(
        num_mel_bins=6,
        frame_rate=100.0,
        downsampling=2,
        codebook_size=8,
        num_codebooks=1,
        model_type="oracle",
    )

    def eval(self):
        self.training = False

    def train(self, mode):
        self.training = mode

    def encode(self, input_features, attention_mask):
        assert not self.training
        assert (input_features[attention_mask == 0] == 0).all()
        codes = input_features[:, ::2, 0].round().long()
        return SimpleNamespace(
            audio_codes=codes[:, None],
            latents=torch.nn.functional.one_hot(codes, 8).float(),
            attention_mask=attention_mask[:, ::2],
        )


def clips(num_clips, seed, phones=True, words=True):
    """Clips whose features tell the phone in column 0, and loudly the speaker in columns 1 to 4."""
    rng = np.random.default_rng(seed)
    features, starts, segments = [], [0], []
    speakers = np.arange(num_clips) % 4
    for speaker in speakers:
        said = rng.integers(1, 8, 12)
        lengths = 2 * rng.integers(2, 6, 12)
        column = np.repeat(said, lengths)
        frames = 0.1 * rng.standard_normal((len(column), 6))
        frames[:, 0] = column
        frames[:, 1 + speaker] += 40
        features.append(frames)
        starts.append(starts[-1] + len(column))
        ends = np.cumsum(lengths) / 100
        segments.append(
            [
                {"phone": "" if p == 1 else f"p{p}", "start": e - n / 100, "end": e}
                for p, n, e in zip(said, lengths, ends, strict=True)
            ]
        )
    return SimpleNamespace(
        features=np.concatenate(features).astype(np.float32),
        starts=np.array(starts),
        speakers=speakers,
        words=np.where(np.arange(num_clips) % 3 == 0, -1, np.arange(num_clips) % 5) if words else None,
        phones=segments if phones else None,
    )


EXTRACTOR = SimpleNamespace(sampling_rate=16000, hop_length=160)


def test_codes_of_clips_come_back_in_order_and_without_padding():
    validation = clips(7, 0)
    encoded = encode_speech(Oracle(), validation, batch_size=3)
    for i, (codes, latents) in enumerate(zip(encoded.codes, encoded.latents, strict=True)):
        column = validation.features[validation.starts[i] : validation.starts[i + 1], 0]
        assert codes.shape == (1, len(column) // 2) and (codes[0] == column[::2]).all()
        assert (latents.argmax(1) == codes[0]).all()


def test_the_table_of_an_oracle():
    model = Oracle()
    model.training = True
    result = evaluate_speech_codes(
        model, EXTRACTOR, clips(40, 1), clips(12, 2), num_triples=300, corpus={"name": "made"}, command="x"
    )
    assert model.training  # as it was
    metrics, baselines = result["metrics"], result["baselines"]
    assert metrics["phone_purity"] == 1 and metrics["phone_nmi"] == pytest.approx(1)
    assert metrics["abx_within_error"] == metrics["abx_across_error"] == 0
    assert metrics["speaker_nmi"] < 0.05
    assert metrics["codes_per_second"] == 50 and metrics["bits_per_second"] == 150
    assert metrics["entropy_bits_per_second"] < 150
    assert metrics["code_usage"] == metrics["train_code_usage"] == 7 / 8  # there is no phone 0
    assert baselines["kmeans_speaker_nmi"] > 0.5 > 0.05 > metrics["speaker_nmi"]  # clusters are speakers here
    assert baselines["kmeans_phone_purity"] < 0.8
    assert baselines["kmeans_normalized_speaker_nmi"] < baselines["kmeans_speaker_nmi"]
    assert baselines["shuffled_phone_purity"] < 0.4 and baselines["shuffled_phone_nmi"] < 0.1
    assert abs(baselines["shuffled_abx_across_error"] - 0.5) < 0.1
    assert result["settings"]["phones"] == 6  # without the pause
    assert result["not_measured"] == {} and 0 < metrics["word_nmi"] < 0.5
    assert result["corpus"] == {"name": "made", "rows": 12, "train_rows": 40}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    text = format_codes_table(result["table"])
    assert "| codes of the model " in text and "100.0%" in text and len(text.splitlines()) == 6


def test_without_phones_and_words_it_says_what_is_missing():
    result = evaluate_speech_codes(
        Oracle(), EXTRACTOR, clips(20, 1, False, False), clips(8, 2, False, False), num_triples=10, command="x"
    )
    assert set(result["not_measured"]) == {
        *("phone_purity", "cluster_purity", "phone_nmi", "abx_within_error", "abx_across_error", "word_nmi")
    }
    assert {"speaker_nmi", "code_usage"} <= set(result["metrics"])
    assert not {"phone_purity", "word_nmi"} & set(result["metrics"])
    assert "phone" not in format_codes_table(result["table"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="same frames.*\\(3,\\) and \\(2,\\)"):
        phone_purity(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="at least one"):
        normalized_mutual_information(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="expects 100.0 frames per second, the feature extractor gives 80"):
        evaluate_speech_codes(
            Oracle(), SimpleNamespace(sampling_rate=16000, hop_length=200), clips(4, 0), clips(4, 1), command="x"
        )
    narrow = clips(4, 0)
    narrow.features = narrow.features[:, :5]
    with pytest.raises(ValueError, match="train has 5 mel bins, the model 6"):
        evaluate_speech_codes(Oracle(), EXTRACTOR, narrow, clips(4, 1), command="x")
    with pytest.raises(ValueError, match="num_triples"):
        abx_error([], across_speakers=True, num_triples=0)
    model = Oracle()
    model.encode = lambda *_: SimpleNamespace(audio_codes=None)
    with pytest.raises(ValueError, match="Oracle gives no codes"):
        encode_speech(model, clips(4, 0))


def test_a_pause_is_what_the_corpus_calls_one():
    from hf_autoencoders.data.espeak import PAUSE

    assert sc.PAUSE == PAUSE
