"""Texts: the embedded corpus, pools by name, batches of like length, the tokenizer, and noise."""

import importlib
import logging
import random
import re
import sys

import datasets
import numpy as np
import pytest
import torch

from hf_autoencoders.data import (
    LengthBucketedBatches,
    encode_texts,
    load_docstrings,
    load_text_pools,
    token_lengths,
    train_tokenizer,
)
from hf_autoencoders.data import docstrings as docstrings_module
from hf_autoencoders.data.docstrings import PACKAGES, docstrings_of, parse_docstring
from hf_autoencoders.data.text_noise import SimilarRows, drop_words, hide_in_carrier, random_span, shuffle_words
from hf_autoencoders.data.tokenizer import text_normalizer

SMALL = {  # of the standard library: read in a second
    "texts": ("asyncio", "email", "logging"),
    "summaries": ("unittest", "xml", "urllib", "http"),
    "validation": ("multiprocessing", "importlib", "concurrent", "typing", "_pyio"),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("docstrings")


@pytest.fixture(scope="module")
def small(cache):
    return load_docstrings(cache, SMALL)


@pytest.fixture(scope="module")
def lines(small):
    return list(small["texts"]["text"]) + list(small["summaries"]["summary"])


@pytest.fixture(scope="module")
def tokenizer(lines):
    return train_tokenizer(lines, 1200, lowercase=True)


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets_cache"))


# ---- the embedded corpus


def test_docstrings_are_prose_of_separate_packages(small):
    assert {part: len(rows) > 50 for part, rows in small.items()} == dict.fromkeys(SMALL, True)
    for part, rows in small.items():
        assert {source.split(".")[0] for source in rows["source"]} <= set(SMALL[part])
        for text in rows["text"] if "text" in rows.column_names else []:
            assert 12 <= len(text.split()) <= 60 and text[0].isupper() and not re.search(r"``|>>>|:\w+:`|  ", text)
        for summary in rows["summary"] if "summary" in rows.column_names else []:
            assert 3 <= len(summary.split()) <= 16 and not summary.endswith(".") and "\n" not in summary
    texts, summaries = small["texts"]["text"], small["summaries"]["summary"]
    assert len(set(texts)) == len(texts) and len(set(summaries)) == len(summaries)
    assert not set(texts) & set(small["validation"]["text"])
    assert not set(summaries) & set(small["validation"]["summary"])


def test_docstrings_are_read_once(small, cache, monkeypatch):
    def fail(*arguments):
        raise AssertionError("read again")

    monkeypatch.setattr(docstrings_module, "_parts", fail)
    again = load_docstrings(cache, SMALL)
    assert {part: rows.to_dict() for part, rows in again.items()} == {part: r.to_dict() for part, r in small.items()}
    with pytest.raises(AssertionError, match="read again"):
        load_docstrings(cache, {**SMALL, "texts": ("asyncio",)})


def test_a_damaged_cache_is_read_anew(tmp_path):
    few = {"texts": ("logging",), "summaries": ("json", "gzip"), "validation": ("typing",)}
    first = load_docstrings(tmp_path, few)["texts"].to_dict()
    (file,) = tmp_path.glob("*.json")
    file.write_text(file.read_text()[:100])
    assert load_docstrings(tmp_path, few)["texts"].to_dict() == first


def test_missing_packages_are_left_out_and_too_little_is_an_error(tmp_path, caplog, monkeypatch):
    few = {"texts": ("logging", "no_such_package"), "summaries": ("json", "gzip"), "validation": ("typing",)}
    with caplog.at_level(logging.WARNING):
        assert len(load_docstrings(tmp_path, few)["texts"]) > 5
    assert "no_such_package" in caplog.text
    with pytest.raises(ValueError, match=r"no package give 0 rows for texts, at least 1 are needed. Install no_such"):
        load_docstrings(tmp_path, {**few, "texts": ("no_such_package",)})
    with pytest.raises(ValueError, match="assigned twice"):
        load_docstrings(tmp_path, {**few, "texts": ("json",)})
    monkeypatch.setattr(docstrings_module, "PACKAGES", few)
    with pytest.raises(ValueError, match="at least 1000 are needed"):
        load_docstrings(tmp_path)


def test_every_package_of_the_default_is_installed_with_this_one():
    names = [name for assigned in PACKAGES.values() for name in assigned]
    assert len(set(names)) == len(names)
    assert [name for name in names if docstrings_module._version(name) is None] == []


def test_docstrings_are_parsed_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "explosive_package"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text('"""Module line."""\nraise RuntimeError("imported")\n')
    (package / "inner.py").write_text('class A:\n    """Class line."""\n    def f(self):\n        "Method line."\n')
    (package / "broken.py").write_text('"""Broken line."""\ndef (')
    (package / "tests" / "test_it.py").write_text('"""Test line."""')
    monkeypatch.syspath_prepend(tmp_path)
    assert list(docstrings_of("explosive_package")) == [
        ("explosive_package", "Module line."),
        ("explosive_package.inner.A", "Class line."),
        ("explosive_package.inner.A.f", "Method line."),
    ]


@pytest.mark.parametrize(
    "docstring, summary, text",
    [
        (
            """Fill ``x`` with the values of a :class:`~torch.Tensor`.

            This is done in place, e.g. for a view, and the memory of the tensor is shared
            with the caller [1]_. See [`~x.Y`] for
            the details of it.

            Parameters
            ----------
            x : int
                The input of it.
            """,
            "Fill x with the values of a torch.Tensor",
            "This is done in place, e.g. for a view, and the memory of the tensor is shared with the caller. "
            "See x.Y for the details of it.",
        ),
        ("f(x, y=1) -> int", "", ""),  # a signature
        ("Compute it.\n\n>>> f(1)\n2", "", ""),  # too short; a doctest
        ("See https://x.org for what is in it.\n", "", ""),
        (
            "Return the mean of x.\n\nReturn the mean of x. It is the sum of all that is in x, over its length.",
            "Return the mean of x",
            "",
        ),
        (
            "Return the mean of it.\n\n- one of the many things that it does with all of the values\n- another",
            "Return the mean of it",
            "",
        ),
    ],
)
def test_what_is_taken_from_a_docstring(docstring, summary, text):
    assert parse_docstring(docstring) == (summary, text)


def test_texts_end_with_a_sentence():
    sentence = "Each of these sentences has ten words of the language."
    assert parse_docstring("Say the same thing often.\n\n" + " ".join([sentence] * 9))[1] == " ".join([sentence] * 6)


# ---- pools


def parquet(path, **columns):
    datasets.Dataset.from_dict(columns).to_parquet(path)
    return str(path)


TEXTS = [f"Text number {row} is  long" for row in range(40)]
TITLES = [f"Title {row}" for row in range(40)]


def test_pools_of_three_files(tmp_path, caplog):
    pairs = {"text": ["A b", None, "C d", "Text number 3 is long"], "summary": ["x", "y", " ", "Title 7"]}
    with caplog.at_level(logging.INFO):
        pools = load_text_pools(
            parquet(tmp_path / "a.parquet", text=[*TEXTS, " ", None]),
            parquet(tmp_path / "b.parquet", title=[*TITLES, ""]),
            parquet(tmp_path / "c.parquet", text=pairs["text"], title=pairs["summary"]),
            summary_column="title",
        )
    assert pools.texts == [" ".join(text.split()) for text in TEXTS if " 3 " not in text]
    assert pools.summaries == [title for title in TITLES if title != "Title 7"]
    assert pools.validation_texts == ["A b", "Text number 3 is long"]
    assert pools.validation_references == ["x", "Title 7"]
    assert pools.name == "a + b"
    assert pools.descriptions["texts"].endswith("2 left out (empty), 1 left out (also in validation)")
    assert all(note in caplog.text for note in pools.descriptions.values())
    assert str(tmp_path) not in str(pools.descriptions)


def test_a_folder_of_pairs_gives_unpaired_pools(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    parquet(folder / "train.parquet", text=TEXTS, summary=TITLES)
    parquet(folder / "validation.parquet", text=["V w"], summary=["V"])
    pools = load_text_pools(str(folder), lowercase=True)
    assert len(pools.texts) == len(pools.summaries) == 20
    numbers = [{re.search(r"\d+", row)[0] for row in rows} for rows in (pools.texts, pools.summaries)]
    assert not numbers[0] & numbers[1]
    assert (pools.validation_texts, pools.validation_references) == (["v w"], ["v"])
    assert load_text_pools(str(folder), lowercase=True) == pools
    other = load_text_pools(str(folder), seed=1, max_texts=5)
    assert len(other.texts) == 5 and {text.lower() for text in other.texts} != set(pools.texts[:5])
    assert "5 of them kept" in other.descriptions["texts"]


def test_what_is_amiss_with_a_pool_is_said(tmp_path):
    texts = parquet(tmp_path / "texts.parquet", text=TEXTS, number=list(range(40)))
    titles = parquet(tmp_path / "titles.parquet", summary=TITLES)
    pairs = parquet(tmp_path / "pairs.parquet", text=TEXTS[:2], summary=TITLES[:2])
    blank = parquet(tmp_path / "blank.parquet", summary=["", " "])
    for arguments, options, message in [
        ((texts, titles), {}, r"no validation pairs.*--validation"),
        ((texts, None, pairs), {}, r"no column 'summary'. Its columns are: text \(string\), number .*--summaries"),
        ((texts, titles, pairs), {"text_column": "body"}, "no column 'body'"),
        ((texts, titles, pairs), {"text_column": "number"}, "holds no text|no column 'number'"),
        ((texts, titles, texts), {}, "no column 'summary'"),
        ((texts, blank, pairs), {}, "no summaries to train on: 0 rows .*2 left out"),
        ((texts, titles, pairs), {"max_texts": 0}, "max_texts"),
        (("docstrings",), {"revision": "main"}, "no configurations"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_text_pools(*arguments, **options)
    with pytest.raises(FileNotFoundError):
        load_text_pools(str(tmp_path / "none.parquet"))


def test_pools_of_docstrings(small, monkeypatch):
    monkeypatch.setattr(docstrings_module, "load_docstrings", lambda cache_dir: small)
    pools = load_text_pools(lowercase=True)
    assert pools.texts == [text.lower() for text in small["texts"]["text"]]
    assert pools.summaries == [text.lower() for text in small["summaries"]["summary"]]
    assert pools.validation_references == [text.lower() for text in small["validation"]["summary"]]
    assert pools.name == "docstrings"


# ---- batches


LENGTHS = np.random.default_rng(0).gamma(6, 5, size=2077).astype(int) + 3


def batches(num_processes=1, process_index=0, epoch=0, **options):
    settings = {"shuffle": True, "seed": 3, "drop_last": False, **options}
    made = LengthBucketedBatches(LENGTHS, 16, process_index=process_index, num_processes=num_processes, **settings)
    made.set_epoch(epoch)
    return made


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_hold_every_row_once(shuffle, drop_last):
    made = batches(shuffle=shuffle, drop_last=drop_last)
    items = list(made)
    rows = np.concatenate([item["rows"] for item in items])
    assert rows.dtype == np.int64 and len(items) == len(made) == (129 if drop_last else 130)
    assert [item["global_size"] for item in items] == [16] * 129 + [13] * (not drop_last)
    assert sorted(rows) == list(range(2077)) if not drop_last else len(set(rows)) == 129 * 16


def test_batches_waste_little_and_are_shuffled():
    made = batches(drop_last=True)
    padded = sum(LENGTHS[item["rows"]].max() * 16 for item in made)
    assert padded < 1.1 * sum(LENGTHS[item["rows"]].sum() for item in made)
    means = np.array([LENGTHS[item["rows"]].mean() for item in made])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3  # not from short to long
    first, again, other = (np.concatenate([b["rows"] for b in batches(epoch=epoch)]) for epoch in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first, np.concatenate([item["rows"] for item in batches(seed=4)]))


def test_batches_of_several_processes_and_after_a_resume_are_the_same():
    whole = list(batches(epoch=2))
    ranks = [list(batches(3, rank, epoch=2)) for rank in range(3)]
    for item, *parts in zip(whole, *ranks, strict=True):
        assert np.array_equal(item["rows"], np.concatenate([part["rows"] for part in parts]))
        assert {part["global_size"] for part in parts} == {item["global_size"]}
    resumed = list(batches(epoch=2).iterate(start_batch=100))
    assert [list(item["rows"]) for item in resumed] == [list(item["rows"]) for item in whole[100:]]
    with pytest.raises(ValueError, match="start_batch"):
        batches().iterate(131)


def test_batches_that_cannot_be_are_refused():
    settings = {"shuffle": True, "seed": 0, "drop_last": False}
    with pytest.raises(ValueError, match="empty"):
        LengthBucketedBatches([], 4, **settings)
    with pytest.raises(ValueError, match="no full batch"):
        LengthBucketedBatches([1, 2], 4, **{**settings, "drop_last": True})
    with pytest.raises(ValueError, match="fewer than the 3 processes"):
        LengthBucketedBatches([1] * 10, 8, **settings, num_processes=3)
    assert len(list(LengthBucketedBatches([1, 2], 4, **settings))) == 1


# ---- tokenizer


ODD_TEXTS = [
    "Héllo WORLD, naïve",
    "日本語 и русский",
    "a 👨‍👩‍👧 🎉 b",
    "<0x41> x\u200by\ufeff",
    "",
    " a \t\n b ",
    "▁x",
    "１２３ ﬁ",
]


def test_vocabulary_is_of_the_size_asked_for(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == 1200
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 1100, 1199]) == [
        "<pad>", "</s>", "<unk>", "<extra_id_99>", "<extra_id_0>",
    ]  # fmt: skip
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.bos_token_id is None and "token_type_ids" not in tokenizer("a")
    assert tokenizer("hide <extra_id_0> it").input_ids.count(1199) == 1


def test_any_text_comes_back_normalised(tokenizer, lines):
    for lowercase in (True, False):
        own = tokenizer if lowercase else train_tokenizer(lines[:400], 700, num_sentinels=0)
        for text in ODD_TEXTS + lines[::50]:
            ids = own(text).input_ids
            assert ids[-1] == 1 and 2 not in ids
            assert own.decode(ids, skip_special_tokens=True) == text_normalizer(lowercase).normalize_str(text)
    assert text_normalizer(True).normalize_str(ODD_TEXTS[0]) == "héllo world, naïve"
    assert text_normalizer().normalize_str(" a \t\n b\u200b") == "a b"


def test_ids_are_those_of_sentencepiece(lines, monkeypatch):
    import sentencepiece

    made = []
    processor = sentencepiece.SentencePieceProcessor
    monkeypatch.setattr(
        sentencepiece, "SentencePieceProcessor", lambda **options: made.append(processor(**options)) or made[-1]
    )
    tokenizer = train_tokenizer(lines, 1200, lowercase=True)
    normalizer = text_normalizer(True)
    for text in lines + ODD_TEXTS:
        assert tokenizer(text).input_ids[:-1] == made[0].encode(normalizer.normalize_str(text))


def test_reloads_the_same_through_auto_tokenizer(tokenizer, lines, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ODD_TEXTS + lines[::20] + ["<extra_id_5> UPPER </s>"]:
        assert again(text).input_ids == tokenizer(text).input_ids
        assert again.decode(again(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)
    assert (len(again), again.model_max_length, again.pad_token_id) == (1200, 512, 0)
    assert again.model_input_names == ["input_ids", "attention_mask"]


def test_the_same_lines_give_the_same_tokenizer(lines, caplog):
    random.seed(1)
    with caplog.at_level(logging.INFO):
        made = [train_tokenizer(iter(lines), 600, max_lines=300, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (tokenizer.backend_tokenizer.to_str() for tokenizer in made)
    assert first == again != other
    assert f"300 of {len(lines)} lines" in caplog.text


def test_too_little_for_a_vocabulary_is_said(lines):
    with pytest.raises(ValueError, match="no lines"):
        train_tokenizer(["", "  "], 1000)
    with pytest.raises(ValueError, match="must be above 359"):
        train_tokenizer(lines, 359)
    with pytest.raises(ValueError, match=r"10 lines are too few for a vocabulary of 5000.*at most (\d+)") as caught:
        train_tokenizer(lines[:10], 5000)
    most = int(re.search(r"at most (\d+)", str(caught.value))[1])
    assert len(train_tokenizer(lines[:10], most)) == most
    many = [chr(0x4E00 + number) * 3 for number in range(600)]
    with pytest.raises(ValueError, match="at least") as caught:
        train_tokenizer(many, 400)
    least = int(re.search(r"at least (\d+)", str(caught.value))[1])
    assert len(train_tokenizer(many, least)) == least


def test_batches_of_tokens_are_padded_and_cut_not_silently(tokenizer, caplog):
    texts = ["a b", "the function returns the value of the message " * 3, "c"]
    lengths = token_lengths(tokenizer, texts)
    whole = encode_texts(tokenizer, texts, 100)
    assert whole["input_ids"].dtype == whole["attention_mask"].dtype == torch.int64 and whole.num_truncated == 0
    assert whole["attention_mask"].sum(1).tolist() == lengths.tolist() and whole["input_ids"].shape[1] == lengths.max()
    assert (whole["input_ids"][whole["attention_mask"] == 0] == 0).all()
    expected = tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(whole["input_ids"], expected["input_ids"])
    with caplog.at_level(logging.WARNING):
        cut = encode_texts(tokenizer, texts, 7)
        assert token_lengths(tokenizer, texts, 7).tolist() == np.minimum(lengths, 7).tolist()
    assert cut.num_truncated == 1 and cut["input_ids"].shape == (3, 7) and cut["input_ids"][1, -1] == 1
    assert torch.equal(cut["input_ids"][1, :-1], whole["input_ids"][1, :6])
    assert "1 of 3 texts are longer than 7 tokens" in caplog.text and "will be cut" in caplog.text
    with pytest.raises(ValueError, match="max_tokens"):
        encode_texts(tokenizer, texts, 1)


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "training")
    return importlib.import_module("train_tokenizer")


def test_tokenizer_script(script, tmp_path, capsys):
    from transformers import AutoTokenizer

    texts = parquet(tmp_path / "t.parquet", text=[f"The {word} is {word}." for word in sys.stdlib_module_names])
    titles = parquet(tmp_path / "s.parquet", summary=[f"{word} it is" for word in sys.stdlib_module_names])
    pairs = parquet(tmp_path / "v.parquet", text=["A thing is here."], summary=["A thing"])
    arguments = ["--texts", texts, "--summaries", titles, "--validation", pairs, "--lowercase"]
    arguments += ["--vocab_size", "420", "--num_sentinels", "10", "--output_dir", str(tmp_path / "out")]
    script.main(arguments)
    printed = capsys.readouterr().out
    assert "420 tokens" in printed and "tokens per text" in printed and "tokens per summary" in printed
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 420
    with pytest.raises(SystemExit):
        script.main(arguments)
    script.main([*arguments, "--overwrite_output_dir", "--vocab_size", "410"])
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 410


def test_tokenizer_script_overwrites_nothing_unasked(script, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        script.main(["--output_dir", str(tmp_path)])
    assert stopped.value.code == 2 and "--overwrite_output_dir" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        script.main(["--output_dir", str(tmp_path / "new"), "--texts", str(tmp_path / "none.parquet")])
    assert stopped.value.code == 2 and "none.parquet" in capsys.readouterr().err
    assert (tmp_path / "note.txt").exists() and not (tmp_path / "new").exists()


# ---- noise


WORDS = "the central bank said on monday that it would buy dollars to slow the fall of the currency".split()


def test_spans_and_dropped_words_keep_their_order():
    rng = np.random.default_rng(0)
    lengths = set()
    for _ in range(200):
        span = random_span(WORDS, rng, 3, 6)
        lengths.add(len(span))
        assert f" {' '.join(span)} " in f" {' '.join(WORDS)} "
    assert lengths == {3, 4, 5, 6}
    assert random_span(["a", "b"], rng, 3, 6) == ["a", "b"]
    kept = [drop_words(range(1000), 0.3, rng) for _ in range(5)]
    assert all(row == sorted(row) and 620 < len(row) < 780 for row in kept) and kept[0] != kept[1]
    assert drop_words(WORDS, 0, rng) == WORDS and len(drop_words(WORDS, 1, rng)) == 1 and drop_words([], 0.5, rng) == []


def test_shuffled_words_stay_near():
    rng = np.random.default_rng(0)
    moved = [np.abs(np.array(shuffle_words(range(60), 3, rng)) - np.arange(60)).max() for _ in range(100)]
    assert max(moved) == 3 and min(moved) > 0
    assert sorted(shuffle_words(range(60), 3, rng)) == list(range(60))
    assert shuffle_words(WORDS, 0, rng) == WORDS


def test_a_summary_is_hidden_in_order():
    rng = np.random.default_rng(0)
    summary = "Central bank may sell dollars".split()
    results = [hide_in_carrier(summary, WORDS, rng) for _ in range(50)]
    for result in results:
        rest = iter(result)
        assert all(word in rest for word in summary)  # a subsequence
        assert "central" not in result and "bank" in result and result.count("dollars") == 1
        left = [word for word in result if word not in ("Central", "may", "sell")]
        assert left == [word for word in WORDS if word != "central"]  # shared words keep the carrier's places
    assert len({tuple(result) for result in results}) > 10
    assert results[:3] == [hide_in_carrier(summary, WORDS, rng) for rng in [np.random.default_rng(0)] for _ in range(3)]
    assert hide_in_carrier(summary, [], rng) == summary and hide_in_carrier([], WORDS, rng) == WORDS
    assert len(hide_in_carrier(["x"] * 5, WORDS * 9, rng, max_words=20)) == 20
    dropped = [len(hide_in_carrier(["x1"] * 5, WORDS, rng, drop_rate=0.5)) - len(WORDS) for _ in range(200)]
    assert 2 < np.mean(dropped) < 3


def test_similar_rows_are_those_that_share_rare_words():
    pool = ["the bank of england cut rates", "the rates of the grain trade rose", "a ship sank", "the bank of japan"]
    pool += [f"the filler of row {number} of it" for number in range(200)]
    similar = SimilarRows(pool)
    rows, scores = similar.find(["Grain rates", "ship", "zzz of the", "bank of japan"], 2, batch_size=3)
    assert rows.tolist() == [[1, 0], [2, -1], [-1, -1], [3, 0]]
    assert rows.dtype == np.int64 and scores.dtype == np.float32
    assert (scores[rows < 0] == 0).all() and (0 < scores[rows >= 0]).all() and (scores <= 1 + 1e-6).all()
    exact, score = SimilarRows(pool, max_share=1).find(pool[:4])
    assert exact[:, 0].tolist() == [0, 1, 2, 3] and score == pytest.approx(1)
    coverage = SimilarRows(pool, max_share=1).find(["ship sank", "ship zzz"], measure="coverage")[1][:, 0]
    assert coverage[0] == pytest.approx(1) and 0.3 < coverage[1] < 0.7
