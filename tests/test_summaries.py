"""Evaluation of summaries: known scores, brute force, rankings, and the way from a model to its table."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_autoencoders.data.text import TextPools, encode_texts
from hf_autoencoders.data.tokenizer import train_tokenizer
from hf_autoencoders.evaluation import extractive, summaries
from hf_autoencoders.evaluation.evaluate import write_metrics
from hf_autoencoders.evaluation.extractive import (
    BigramCompressor,
    WordLogOdds,
    lead_words,
    oracle_extract,
    random_words,
    strip_word,
    word_key,
    words_of,
)
from hf_autoencoders.evaluation.readability import LanguageModelJudge
from hf_autoencoders.evaluation.summaries import (
    evaluate_summarizer,
    format_table,
    reconstruction_accuracy,
    rouge,
    summary_table,
    text_statistics,
)


def news(number: int, seed: int):
    """Sentences and their headlines from a small grammar: (texts, headlines), row by row."""
    rng = np.random.default_rng(seed)
    firms = [f"{a}{b}" for a in ("Al", "Be", "Cor", "Dun") for b in ("tex", "co", "mart", "bank", "lab")]
    verbs = {"buys": "bought", "sells": "sold", "sees": "expected", "cuts": "reduced", "gets": "received"}
    things = ["oil fields", "grain", "steel mills", "loans", "new shares", "gold", "jobs"]
    texts, headlines = [], []
    for _ in range(number):
        firm, verb, thing = rng.choice(firms), rng.choice(list(verbs)), rng.choice(things)
        day, amount = rng.choice(["Monday", "Friday"]), rng.integers(2, 99)
        texts.append(f"The firm {firm} said on {day}, that it {verb} {thing} of {amount} mln in the U.S. this year.")
        headlines.append(f"{firm} {verb} {thing} in {rng.choice(['big', 'new', 'third'])} deal")
    return texts, headlines


@pytest.fixture(scope="module")
def pools():
    texts, headlines = news(400, 0), news(400, 1)
    validation = news(40, 2)
    return TextPools(texts[0], headlines[1], *validation, name="news", descriptions={"texts": "a grammar"})


@pytest.fixture(scope="module")
def tokenizer(pools):
    return train_tokenizer(pools.texts + pools.summaries, 340, num_sentinels=0)


@pytest.fixture(scope="module")
def judge(pools, tokenizer):
    return LanguageModelJudge(pools.summaries, tokenizer, hidden_size=64, max_epochs=8, cache_dir=False)


@pytest.fixture(scope="module")
def compressor(pools):
    return BigramCompressor(pools.texts, pools.summaries)


# Extraction


def test_words_lose_their_punctuation_and_keep_what_belongs_to_them():
    words = {
        "(U.S.": "U.S.",
        '"fine,"': "fine",
        "ended.": "ended",
        "1.5.": "1.5",
        "-": "",
        "year's": "year's",
        "...": "",
    }
    assert {word: strip_word(word) for word in words} == words
    assert word_key("(U.S.") == "u.s."
    assert words_of(' "Well," - she said ... ') == ["Well", "she", "said"]


def test_lead_and_random_words():
    text = "one  two, three four five"
    assert lead_words(text, 3) == "one two, three"
    assert lead_words(text, 9) == "one two, three four five"
    drawn = {random_words(text, 3, seed) for seed in range(60)}
    assert len(drawn) == math.comb(5, 3), "every subset of the words can come"
    places = {word: place for place, word in enumerate(text.split())}
    for words in map(str.split, drawn):
        assert [places[word] for word in words] == sorted({places[word] for word in words}), "order kept, no word twice"
    assert random_words(text, 3, 5) == random_words(text, 3, 5)
    with pytest.raises(ValueError, match="num_words"):
        lead_words(text, 0)


def test_log_odds_are_the_ratio_of_smoothed_shares():
    odds = WordLogOdds(["the cat sat on the mat", "The end."], ["cat mat", "cat wins"], smoothing=1.0)
    # 8 words of texts, 4 of summaries: a text's word has the weight of half a summary's
    assert odds.score("Cat") == pytest.approx(math.log((2 + 1) / (1 + 2) * 8 / 4))
    assert odds.score("the") == pytest.approx(math.log((0 + 1) / (3 + 2) * 8 / 4))
    assert odds.score("wins") >= odds.score("cat") > odds.score("on") > odds.score("the")
    assert odds.score("zebra") == extractive.UNSEEN_SCORE
    assert odds.keep("The cat, the mat, the end", threshold=0.2) == "cat mat"
    assert odds.keep("The cat, the mat, the end", threshold=0.2, max_words=1) == "cat"
    assert odds.keep("the on", threshold=5) == "on", "no text is left without a summary"
    narrow = WordLogOdds(["the " * 1000], ["cat " * 1000], limit=2.0)
    assert (narrow.score("cat"), narrow.score("the")) == (2, -2)


def test_log_odds_tell_headline_words_from_sentence_words(pools, compressor):
    score = compressor.log_odds.score
    assert min(map(score, ("deal", "buys", "Altex", "gold"))) > max(map(score, ("the", "said", "that", "it")))


@pytest.mark.parametrize("weights", [{}, {"bigram_weight": 2.0, "gap_penalty": 0.0}, {"position_penalty": 0.7}])
def test_bigram_search_finds_what_trying_everything_finds(pools, weights):
    compressor = BigramCompressor(pools.texts, pools.summaries, **weights)
    for text in (pools.texts[0], "Altex buys buys oil in in third deal zebra said", pools.texts[3].lower()):
        words = words_of(text)
        for num_words in (1, 2, 4):
            every = list(itertools.combinations(range(len(words)), num_words))
            scores = [compressor.score(text, chosen) for chosen in every]
            found = compressor.compress(text, num_words).split()
            among = [index for index, chosen in enumerate(every) if [words[place] for place in chosen] == found]
            assert among, f"{found} is not in the order of the text"
            assert max(scores[index] for index in among) == pytest.approx(max(scores), abs=1e-9)


def test_bigram_scores_are_the_documented_sum():
    texts, headlines = ["a b c d e"] * 5, ["a c", "a c", "a d", "b"]
    compressor = BigramCompressor(
        texts, headlines, bigram_weight=2.0, gap_penalty=0.25, position_penalty=0.5, discount=0.75
    )
    odds = [compressor.log_odds.score(word) for word in "abcde"]

    def ratio(count, of_left, followers, share):  # log p(right | left) / p(right), interpolated with p(right)
        discounted = max(count - 0.75, 0) / of_left + 0.75 * followers / of_left * share
        return math.log(discounted / share)

    total = 11  # pairs: 4 begins, 3 within, 4 ends
    # begin -> a: 3 of 4, two followers; a -> c: 2 of 3, two followers; c -> end: 2 of 2, one follower
    pairs = ratio(3, 4, 2, 3 / total) + ratio(2, 3, 2, 2 / total) + ratio(2, 2, 1, 4 / total)
    assert compressor.score("a b c d e", [0, 2]) == pytest.approx(odds[0] + odds[2] - 0.5 * 2 + 2 * pairs - 0.25)
    # a -> b and b -> d were never seen, and b d is a gap; a word no summary has is neutral
    unseen = ratio(3, 4, 2, 3 / total) + ratio(0, 3, 2, 1) + ratio(0, 1, 1, 1) + ratio(1, 1, 1, 4 / total)
    assert compressor.score("a b c d e", [0, 1, 3]) == pytest.approx(
        sum(odds[i] for i in (0, 1, 3)) - 2 + 2 * unseen - 0.25
    )
    twice = compressor.score("e e", [0, 1]) - compressor.score("e", [0])
    assert twice == pytest.approx(odds[4] - 0.5 - compressor.repetition_penalty)


def test_compress_all_takes_a_length_for_each_text(compressor, pools):
    seen = []
    result = compressor.compress_all(pools.texts[:3], [1, 5, 99], progress=seen.append)
    assert [len(summary.split()) for summary in result] == [1, 5, len(words_of(pools.texts[2]))]
    assert result[1] == compressor.compress(pools.texts[1], 5) and seen == [1, 1, 1]
    with pytest.raises(ValueError, match="2 for 3 texts"):
        compressor.compress_all(pools.texts[:3], [1, 5])


def test_pools_without_words_are_refused():
    with pytest.raises(ValueError, match="`summaries` hold no words"):
        WordLogOdds(["a text"], ["", " - "])
    with pytest.raises(TypeError, match="`texts` must be many strings"):
        WordLogOdds("a text", ["a summary"])
    with pytest.raises(ValueError, match="bigram_weight"):
        BigramCompressor(["a"], ["b"], bigram_weight=-1)


def test_oracle_is_the_best_extract_for_rouge_1():
    text, reference = "the market fell as banks sold shares, traders said in london", "Bank sells share on market fall"
    for num_words in (1, 2, 4):
        found = rouge([oracle_extract(text, reference, num_words)], [reference])["rouge1"]
        every = [
            " ".join(chosen)
            for length in range(1, num_words + 1)
            for chosen in itertools.combinations(words_of(text), length)
        ]
        assert found == pytest.approx(max(rouge([chosen], [reference])["rouge1"] for chosen in every))
    assert oracle_extract("nothing in common", reference, 3) == "nothing"
    assert oracle_extract("market market market", reference, 3) == "market"


# Scores


def test_rouge_of_known_pairs():
    assert rouge(["the cat sat", "A dog!"], ["the cat sat", "a dog"]) == pytest.approx(
        {"rouge1": 100, "rouge2": 100, "rougeL": 100}
    )
    assert rouge(["one two"], ["three four"]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}
    # recall 2/4, precision 2/2; no common pair; the longest common sub-sequence is one word
    assert rouge(["four one"], ["one two three four"]) == pytest.approx(
        {"rouge1": 100 * 2 / 3, "rouge2": 0, "rougeL": 100 / 3}
    )
    assert rouge(["banks", ""], ["bank", "bank"])["rouge1"] == 50, "stemmed; an empty prediction counts"
    with pytest.raises(ValueError, match="must be pairs, got 1 and 2"):
        rouge(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="one string"):
        rouge("a", ["a"])


def test_text_statistics_of_known_summaries():
    result = text_statistics(["Cat sat cat new", "", "the cat", "The cat."], ["the cat sat down"] * 4)
    assert result == pytest.approx(
        {
            "words": 8 / 4,
            "copy_rate": 7 / 8,
            "repetition_rate": 1 / 8,
            "novel_bigram_rate": 2 / 5,
            "distinct_rate": 3 / 4,
            "empty_rate": 1 / 4,
        }
    )
    assert text_statistics([""], ["a text"])["copy_rate"] == 0


def test_perplexity_ranks_summaries_as_a_reader_would(pools, judge):
    real = pools.validation_references
    rng = np.random.default_rng(0)
    shuffled = [" ".join(rng.permutation(line.split())) for line in real]
    lead = [lead_words(text, 8) for text in pools.validation_texts]
    of_real, of_shuffled, of_lead = map(judge.perplexity, (real, shuffled, lead))
    assert of_real < 0.5 * of_shuffled and of_real < 0.5 * of_lead
    assert judge.held_out_perplexity == pytest.approx(of_real, rel=0.4)
    # 20 firms, 5 verbs, 7 things, 3 kinds of deal and nothing else to guess: 2100 in 7.3 words
    words = np.mean([len(line.split()) + 1 for line in real])
    assert of_real >= 0.95 * 2100 ** (1 / words)


def test_perplexity_is_per_word_and_of_a_distribution(judge):
    one, other = judge.nats(["Altex buys gold"])[0], judge.nats(["Beco  sells grain "])[0]
    both = judge.perplexity(["Altex buys gold", "Beco sells grain"])
    assert both == pytest.approx(math.exp((one + other) / 8), rel=1e-5)
    assert judge.perplexity([""]) == pytest.approx(math.exp(judge.nats([""])[0]))
    # all first tokens, and the end at once, together have probability 1; tokens unknown to the pool share a class
    logits = judge.network(torch.zeros(1, 1, dtype=torch.long))[0, 0]
    probability = logits.double().softmax(-1)
    assert judge.nats([""])[0] == pytest.approx(-probability[0].log().item(), rel=1e-5)
    bytes_of_a_letter = judge.tokenizer("ß", add_special_tokens=False)["input_ids"]
    assert not set(bytes_of_a_letter[-2:]) & set(judge._classes)
    path = [0, *(judge._classes.get(token, 1) for token in bytes_of_a_letter), 0]
    log_probs = judge.network(torch.tensor([path[:-1]])).double().log_softmax(-1)[0]
    expected = -sum(log_probs[place, following].item() for place, following in enumerate(path[1:]))
    unknown = len(judge.tokenizer) - len(judge._classes)
    assert judge.nats(["ß"])[0] == pytest.approx(expected + 2 * math.log(unknown), rel=1e-5)


def test_judge_is_repeatable_and_kept(pools, tokenizer, tmp_path, monkeypatch):
    def build(seed=0, **kwargs):
        return LanguageModelJudge(
            pools.summaries[:80], tokenizer, seed, hidden_size=16, max_epochs=1, cache_dir=tmp_path, **kwargs
        )

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = build()
    assert torch.equal(torch.get_rng_state(), before), "the caller's randomness is not touched"
    (kept,) = tmp_path.glob("*")
    kept.rename(tmp_path / "aside")
    again = build()
    assert np.array_equal(first.nats(pools.summaries[:9]), again.nats(pools.summaries[:9]))

    def never(*_):
        raise AssertionError("trained although it is kept")

    with monkeypatch.context() as patch:
        patch.setattr("hf_autoencoders.evaluation.readability._train", never)
        assert np.array_equal(build().nats(pools.summaries[:9]), first.nats(pools.summaries[:9]))
        for other in ({"seed": 1}, {"dropout": 0.1}):
            with pytest.raises(AssertionError, match="trained although"):
                build(**other)
    kept.write_bytes(b"broken")
    assert np.array_equal(build().nats(pools.summaries[:9]), first.nats(pools.summaries[:9]))
    with pytest.raises(ValueError, match="at least 20 different summaries"):
        LanguageModelJudge(["the same"] * 100, tokenizer)


# The table


def test_table_has_baselines_of_the_models_length(pools, compressor, judge):
    texts, references = pools.validation_texts, pools.validation_references
    mine = [lead_words(text, 4 + row % 2 * 3) for row, text in enumerate(texts)]  # 5.5 words, rounded to 6
    rows = {
        row["name"]: row for row in summary_table({"mine": mine}, texts, references, compressor=compressor, judge=judge)
    }
    assert list(rows) == [
        "mine", "lead", "random", "full_text", "log_odds", "bigram", "bigram_8", "oracle", "reference",
    ]  # fmt: skip
    assert rows["mine"]["words"] == 5.5
    assert [rows[name]["words"] for name in ("lead", "random", "bigram", "bigram_8")] == [6, 6, 6, 8]
    assert rows["oracle"]["words"] <= 6
    assert rows["lead"]["rouge1"] == pytest.approx(rouge([lead_words(text, 6) for text in texts], references)["rouge1"])
    assert all(rows["oracle"]["rouge1"] >= row["rouge1"] for row in rows.values() if row["rouge1"] is not None)
    assert rows["reference"]["rouge1"] is None
    assert rows["reference"]["perplexity"] == min(row["perplexity"] for row in rows.values())
    assert rows["full_text"]["copy_rate"] == 1
    assert rows["bigram"]["rouge1"] > rows["lead"]["rouge1"] > 0
    with pytest.raises(ValueError, match="names of baselines"):
        summary_table({"lead": mine}, texts, references)
    with pytest.raises(ValueError, match="must be pairs"):
        summary_table({"mine": mine[:-1]}, texts, references)


def test_table_without_rouge_score_lacks_only_what_needs_it(pools, monkeypatch):
    monkeypatch.setattr(summaries, "has_rouge_score", lambda: False)
    texts, references = pools.validation_texts[:5], pools.validation_references[:5]
    rows = summary_table({}, texts, references, num_words=3)
    assert [row["name"] for row in rows] == ["lead", "random", "full_text", "reference"]
    assert all(row["rouge1"] is None and row["perplexity"] is None and row["words"] > 0 for row in rows)


def test_format_table_is_aligned_markdown(pools, judge):
    rows = summary_table({}, pools.validation_texts, pools.validation_references, num_words=7, judge=judge)
    lines = format_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == len(rows) + 2
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    header = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    lead = dict(zip(header, (cell.strip() for cell in lines[2].split("|")[1:-1]), strict=True))
    assert lead[""] == "first 7 words" and lead["words"] == "7.0" and lead["copied"] == "100%"
    assert lead["ROUGE-1"] == f"{rows[0]['rouge1']:.1f}" and lead["perplexity"] == f"{rows[0]['perplexity']:.0f}"
    assert lines[-1].split("|")[2].strip() == "", "the references have no ROUGE"


# A model


class WordFinder:
    """Stands for a model: predicts a token where it occurs in the summary, and token 0 where it does not."""

    config = SimpleNamespace(max_source_tokens=6)
    device = torch.device("cpu")

    def __call__(self, input_ids, attention_mask, summary_ids, summary_mask):
        assert input_ids.shape == attention_mask.shape and summary_ids.shape == summary_mask.shape
        known = ((input_ids[:, :, None] == summary_ids[:, None]) & (summary_mask[:, None] == 1)).any(-1)
        return SimpleNamespace(reconstruction_logits=torch.nn.functional.one_hot(input_ids * known, 10).float())


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_reconstruction_accuracy_counts_tokens_and_content_tokens(batch_size):
    words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", "the", "gold", "grain", "jobs"])}
    words_only = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words_only.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words_only, pad_token="<pad>", eos_token="</s>")
    texts = ["the gold the grain the", "the jobs", "jobs jobs jobs jobs jobs jobs jobs"]
    codes = ["gold the", "the", "gold"]
    result = reconstruction_accuracy(WordFinder(), tokenizer, texts, codes, common_words={"the"}, batch_size=batch_size)
    # right: the gold the the </s>, the </s>, </s>; the third text is cut to five words and its end
    assert result["reconstruction_accuracy"] == pytest.approx((5 + 2 + 1) / (6 + 3 + 6))
    assert result["content_reconstruction_accuracy"] == pytest.approx((1 + 0 + 0) / (2 + 1 + 5))
    assert result["truncated_rate"] == pytest.approx(1 / 3)
    wrong = math.log(10 - 1 + math.e)
    assert result["reconstruction_loss"] == pytest.approx(wrong - 8 / 15, rel=1e-5)


def test_content_tokens_are_all_tokens_of_words_that_are_not_common(tokenizer):
    texts = ["The gold, that Altex said - buys", "in the"]
    encoded = encode_texts(tokenizer, texts, 64)["input_ids"]
    content = summaries._content_tokens(tokenizer, texts, encoded.shape, {"the", "that", "said", "in"})
    assert tokenizer.decode(encoded[0][content[0]]) == "gold, Altex buys"
    assert not content[1].any()


@pytest.fixture(scope="module")
def model(tokenizer):
    from hf_autoencoders.models.configuration_seq2seq2seq import Seq2Seq2SeqConfig
    from hf_autoencoders.models.modeling_seq2seq2seq import Seq2Seq2SeqForConditionalGeneration

    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = Seq2Seq2SeqConfig(
        summarizer={**size, "copy_head": True, "countdown_size": 12, "default_words": 5},
        reconstructor={**size, "copy_head": True},
        max_source_tokens=48,
        max_summary_tokens=40,
    )
    model = Seq2Seq2SeqForConditionalGeneration(config)
    model.set_word_starts(tokenizer)
    return model


def test_evaluate_summarizer_measures_a_model(model, tokenizer, pools, compressor, judge, tmp_path, monkeypatch):
    model.train()
    codes = []

    def spy(model, tokenizer, texts, summaries, **kwargs):
        codes.append((texts, summaries))
        return reconstruction_accuracy(model, tokenizer, texts, summaries, **kwargs)

    monkeypatch.setattr(summaries, "reconstruction_accuracy", spy)
    options = {"num_words": 3, "num_beams": 2, "batch_size": 8, "num_shown": 12, "command": "me"}
    result = evaluate_summarizer(
        model, tokenizer, pools, **options, compressor=compressor, judge=judge, max_examples=12
    )
    assert model.training, "left as it was"
    json.loads(write_metrics(tmp_path / "metrics.json", result).read_text())
    metrics, baselines = result["metrics"], result["baselines"]
    assert result["model_type"] == "hfae_seq2seq2seq" and result["corpus"]["rows"] == 12
    assert result["corpus"]["name"] == "news" and result["command"] == "me"
    assert {row["name"] for row in result["table"]} >= {"model", "lead", "bigram", "oracle", "reference"}
    assert all(isinstance(value, float) for value in [*metrics.values(), *baselines.values()])
    written = np.array([len(example["summary"].split()) for example in result["examples"]])
    assert metrics["words"] == pytest.approx(written.mean()) and baselines["lead_words"] == round(written.mean())
    assert metrics["length_deviation"] == pytest.approx(abs(written - 3).mean()) and abs(written.mean() - 3) < 1
    assert metrics["rouge1"] == result["table"][0]["rouge1"]
    (texts, own), (same_texts, others) = codes[:2]
    assert texts == same_texts and sorted(own) == sorted(others)
    assert all(mine != other for mine, other in zip(own, others, strict=True) if own.count(mine) == 1)
    for kind in ("", "content_"):
        own, shuffled = (metrics[f"{name}{kind}reconstruction_accuracy"] for name in ("", "shuffled_"))
        assert 0 <= own <= 1
        if shuffled:
            assert metrics[f"{kind}accuracy_ratio"] == pytest.approx(own / shuffled)
        else:
            assert f"{kind}accuracy_ratio" in result["not_measured"]
    assert len(result["examples"]) == 12
    for example in result["examples"]:
        row = pools.validation_texts.index(example["text"])
        assert example["reference"] == pools.validation_references[row]
        assert isinstance(example["reconstruction"], str)
    again = evaluate_summarizer(
        model, tokenizer, pools, **{**options, "batch_size": 5}, compressor=compressor, judge=judge, max_examples=12
    )
    assert again["metrics"] == pytest.approx(metrics, rel=1e-4), "no result depends on the batch size"
    assert again["examples"] == result["examples"]


def test_evaluation_without_a_number_of_words_compares_with_the_default(model, tokenizer, pools, compressor, judge):
    result = evaluate_summarizer(
        model, tokenizer, pools, num_beams=1, compressor=compressor, judge=judge, max_examples=1, num_shown=1
    )
    (example,) = result["examples"]
    assert result["metrics"]["length_deviation"] == abs(len(example["summary"].split()) - 5)
    assert "shuffled_reconstruction_accuracy" in result["not_measured"]
    empty = TextPools(pools.texts, pools.summaries, [], [])
    with pytest.raises(ValueError, match="no validation pairs"):
        evaluate_summarizer(model, tokenizer, empty)
