"""The latent report: its statistics against known values, and its pages for every kind of code there is."""

import html
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import mutual_info_score
from torch import nn

from hf_autoencoders import AutoencoderConfig, AutoencoderModel, VAEConfig, VAEModel, VQVAEConfig, VQVAEModel
from hf_autoencoders.data import ImageArrays
from hf_autoencoders.evaluation.factors import corpus_factors
from hf_autoencoders.evaluation.latent_report import (
    format_latent_report,
    latent_report,
    permutation_test,
    report_beside,
)
from hf_autoencoders.evaluation.pictures import GROUP_SEPARATOR, SEPARATOR

# The test


def test_information_is_that_of_scikit_learn_and_chance_that_of_theory():
    rng = np.random.default_rng(0)
    factors = rng.integers(0, [2, 7], size=(2000, 2))
    columns = np.stack([factors[:, 0] + rng.integers(0, 2, 2000), rng.integers(0, 9, 2000)], axis=1)
    tested = permutation_test(columns, factors, num_permutations=200)
    expected = [[mutual_info_score(column, factor) for factor in factors.T] for column in columns.T]
    np.testing.assert_allclose(tested.nats, expected, atol=1e-12)
    theory = [[(len(set(c)) - 1) * (len(set(f)) - 1) / 4000 for f in factors.T] for c in columns.T]
    np.testing.assert_allclose(tested.chance, theory, rtol=0.15)
    assert tested.p_values[0, 0] == pytest.approx(1 / 201)
    assert (tested.p_values.ravel()[1:] > 0.05).all()


def test_p_values_hold_for_all_columns_and_factors_at_once():
    """Of experiments in which nothing is to be found, a tenth reports a p-value up to 0.1 anywhere."""
    found = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        columns, factors = rng.integers(0, 4, (80, 6)), rng.integers(0, 3, (80, 2))
        p_values = permutation_test(columns, factors, num_permutations=49, seed=seed).p_values
        assert ((p_values >= 1 / 50) & (p_values <= 1)).all()
        found += p_values.min() <= 0.1
    assert 0.04 < found / 150 < 0.16


def test_a_constant_knows_nothing_and_the_seed_decides():
    factors = np.arange(60)[:, None] % 3
    columns = np.concatenate([np.full((60, 1), 4), factors, np.random.default_rng(0).integers(0, 5, (60, 1))], axis=1)
    tested = permutation_test(columns, factors, num_permutations=99)
    assert tested.nats[0, 0] == pytest.approx(0, abs=1e-12) and tested.p_values[0, 0] == 1
    assert tested.nats[1, 0] == pytest.approx(math.log(3)) and tested.p_values[1, 0] == 0.01
    again, other = (permutation_test(columns, factors, num_permutations=99, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(tested.chance, again.chance)
    assert (tested.chance[1:] != other.chance[1:]).all()


def test_permutation_test_refuses():
    columns = np.zeros((5, 2), dtype=int)
    with pytest.raises(ValueError, match=r"same rows, got \(5, 2\) and \(4, 1\)"):
        permutation_test(columns, np.zeros((4, 1), dtype=int))
    with pytest.raises(ValueError, match="`factors` must be whole numbers >= 0, got float64"):
        permutation_test(columns, np.zeros((5, 1)))
    with pytest.raises(ValueError, match="`columns` must be whole numbers >= 0, got int64 from -1 on"):
        permutation_test(columns - 1, np.zeros((5, 1), dtype=int))
    with pytest.raises(ValueError, match="num_permutations"):
        permutation_test(columns, columns, num_permutations=0)


# Factors


def arrays_with(rows=60, **columns) -> ImageArrays:
    labels, label_names = columns.pop("labels", None), columns.pop("label_names", None)
    names = columns.pop("extra_names", {})
    images = np.zeros((rows, 1, 4, 4), dtype=np.uint8)
    return ImageArrays(images, labels, label_names, extra=columns, extra_names=names)


def test_factors_are_the_columns_that_can_be():
    rows = np.arange(60)
    arrays = arrays_with(
        labels=rows % 2,
        kind=rows % 3,
        odd=rows % 2 == 1,
        number=rows,
        weight=rows / 2,
        constant=rows * 0,
        extra_names={"kind": ["a", "b", "c"]},
    )
    chosen, factors, left_out = corpus_factors(arrays)
    assert chosen.tolist() == rows.tolist() and [factor.name for factor in factors] == ["kind", "odd"]
    assert factors[0].value_names == ["a", "b", "c"] and factors[1].value_names == ["0", "1"]
    assert factors[0].entropy == pytest.approx(math.log(3))
    assert left_out == {
        "number": "60 values in 60 rows",
        "weight": "float64 of shape (60,)",
        "constant": "1 values in 60 rows",
    }
    assert [factor.name for factor in corpus_factors(arrays, ["label"])[1]] == ["label"]


def test_labels_are_the_factor_where_there_is_no_other():
    labels = np.where(np.arange(60) < 10, -1, np.arange(60) % 3 * 2)
    rows, (factor,), left_out = corpus_factors(arrays_with(labels=labels, label_names=["x", "y", "z"]))
    assert rows.tolist() == list(range(10, 60)) and left_out == {}
    assert factor.name == "label" and factor.value_names == ["x", "z", "4"], "a class without a name is its number"
    np.testing.assert_array_equal(factor.values * 2, labels[10:])


def test_rows_that_lack_a_factor_are_left_out_and_negative_values_are_values():
    rows = np.arange(60)
    arrays = arrays_with(missing=np.where(rows < 6, -1, rows % 2), signed=rows % 3 - 2)
    chosen, factors, _ = corpus_factors(arrays)
    assert chosen.tolist() == list(range(6, 60))
    assert factors[1].value_names == ["-2", "-1", "0"]


def test_a_factor_of_some_rows_has_the_values_of_these():
    factor = corpus_factors(arrays_with(kind=np.arange(60) % 3, extra_names={"kind": ["a", "b", "c"]}))[1][0]
    some = factor.select(np.array([2, 3, 5]))
    assert (some.name, some.values.tolist(), some.value_names) == ("kind", [1, 0, 1], ["a", "c"])


def test_factors_are_refused():
    arrays = arrays_with(number=np.arange(60), kind=np.arange(60) % 3)
    with pytest.raises(ValueError, match=r"no column 'x' to be a factor: expected one of \['kind', 'number'\]"):
        corpus_factors(arrays, ["x"])
    with pytest.raises(ValueError, match="'number' is no factor: expected whole numbers .* got 60 values in 60 rows"):
        corpus_factors(arrays, ["kind", "number"])
    with pytest.raises(ValueError, match=r"says what its images show \(it has none\)"):
        corpus_factors(arrays_with())
    with pytest.raises(ValueError, match=r"\(label: 1 values in 60 rows\)"):
        corpus_factors(arrays_with(labels=np.zeros(60, dtype=int)))
    with pytest.raises(ValueError, match=r"'side' is no factor: .* 1 values in 30 rows, -1 \(unknown\) in 30$"):
        corpus_factors(arrays_with(side=np.arange(60) % 2 * 2 - 1), ["side"])
    parity = np.arange(60) % 2
    apart = arrays_with(a=np.where(np.arange(60) < 30, parity, -1), b=np.where(np.arange(60) < 30, -1, parity))
    message = "no image has all of a, b: name fewer with --factor_columns / factors="
    for names in (None, ["a", "b"]):
        with pytest.raises(ValueError, match=message):
            corpus_factors(apart, names)
    assert corpus_factors(apart, ["b"])[0].tolist() == list(range(30, 60))


# Models of every kind, whose codes are what they show


class Fake(nn.Module):
    """The first pixels of an image are its code; decoding paints the first pixels."""

    config = SimpleNamespace(model_type="fake")
    device = torch.device("cpu")

    def paint(self, values):
        images = torch.zeros(len(values), 16)
        images[:, : values.shape[1]] = values.float()
        return images.view(-1, 1, 4, 4)


class Gaussian(Fake):
    """Dimensions: kind, twice side, a constant; of fixed variances."""

    variances = torch.tensor([1e-4, 0.01, 1.0])

    def encode(self, pixel_values):
        pixels = pixel_values.flatten(1)
        mean = torch.stack([pixels[:, 0], 2 * pixels[:, 1], 0 * pixels[:, 0]], dim=1)
        log_variance = self.variances.log().expand_as(mean)
        return SimpleNamespace(latents=mean, mean=mean, log_variance=log_variance)

    def decode(self, latents):
        return self.paint(latents / torch.tensor([1.0, 2.0, 1.0]))


class Broken(Gaussian):
    """Its first mean is NaN."""

    def encode(self, pixel_values):
        output = super().encode(pixel_values)
        output.mean[0, 0] = math.nan
        return output


class Bits(Fake):
    """Bits: kind is "c", side, always 1, side but for one row in five."""

    def encode(self, pixel_values):
        pixels = pixel_values.flatten(1)
        bits = torch.stack(
            [pixels[:, 0] == 1, pixels[:, 1] == 1, pixels[:, 0] >= 0, (pixels[:, 1] == 1) ^ (pixels[:, 2] == 1)], dim=1
        ).long()
        return SimpleNamespace(latents=bits.float(), codes=bits, probabilities=bits.float())

    def decode_codes(self, codes):
        assert codes.dtype == torch.int64
        return self.paint(codes)


def one_hot_of(codes, num_classes):
    return nn.functional.one_hot(codes, num_classes).float()


class Classes(Fake):
    """Variables: kind as class 2, 0, 1; always 3; of 4 classes."""

    num_variables = 2

    def encode(self, pixel_values):
        kind = (2 * pixel_values.flatten(1)[:, 0]).round().long()
        codes = torch.stack([(kind + 2) % 3, torch.full_like(kind, 3)], dim=1)[:, : self.num_variables]
        return SimpleNamespace(latents=codes.float(), codes=codes, probabilities=one_hot_of(codes, 4))

    def decode_codes(self, codes):
        return self.paint(codes / 3)


class OneVariable(Classes):
    num_variables = 1


class Joint(Fake):
    """The side as a dimension, the kind as a class of 3."""

    def encode(self, pixel_values):
        pixels = pixel_values.flatten(1)
        codes = (2 * pixels[:, :1]).round().long()
        mean = pixels[:, 1:2] - 0.5
        latents = torch.cat([mean, one_hot_of(codes, 3).flatten(1)], dim=1)
        return SimpleNamespace(
            latents=latents, mean=mean, log_variance=mean * 0, codes=codes, probabilities=one_hot_of(codes, 3)
        )

    def decode(self, latents):
        assert latents.shape[1] == 1 + 3 and (latents[:, 1:].sum(dim=1) == 1).all()
        kind = latents[:, 1:] @ torch.tensor([0.0, 0.5, 1.0])
        return self.paint(torch.stack([kind, latents[:, 0] + 0.5], dim=1))


def corpus(rows=300) -> ImageArrays:
    """Kind (3 values) in the first pixel, side (2) in the second, noise in the third (one row in five)."""
    index = np.arange(rows)
    kind, side = index % 3, index // 3 % 2
    images = np.zeros((rows, 1, 4, 4), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = kind * 127.5 + 0.5, side * 255
    images[:, 0, 0, 2] = (index // 6 % 5 == 0) * 255
    names = {"kind": ["a", "b", "c"], "side": ["left|<right>", "right"]}
    return ImageArrays(images, extra={"kind": kind, "side": side}, extra_names=names)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """name -> what `latent_report` returns and the folder it wrote."""
    result = {}
    for kind in (Gaussian, Bits, Classes, OneVariable, Joint):
        folder = tmp_path_factory.mktemp(kind.__name__)
        torch.manual_seed(0)
        report = latent_report(kind(), corpus(), folder, corpus={"name": "fake", "split": "test"}, num_permutations=199)
        result[kind.__name__] = report, folder
    return result


def tiles(path: Path, columns: int) -> np.ndarray:
    """The images (rows, columns, 4, 4) in [0, 1] of a picture of 4x4 images."""
    picture = np.asarray(Image.open(path))
    size = 4 * 18
    rows = (len(picture) - 2 * GROUP_SEPARATOR + GROUP_SEPARATOR) // (size + GROUP_SEPARATOR)
    cut = np.empty((rows, columns, 4, 4))
    for i in range(rows):
        for j in range(columns):
            top, left = GROUP_SEPARATOR + i * (size + GROUP_SEPARATOR), GROUP_SEPARATOR + j * (size + SEPARATOR)
            cut[i, j] = picture[top + 9 : top + size : 18, left + 9 : left + size : 18] / 255
    assert picture.shape[1] == 2 * GROUP_SEPARATOR + columns * (size + SEPARATOR) - SEPARATOR
    return cut


def test_dimensions_are_sorted_by_their_kl_and_name_their_factor(reports):
    report, folder = reports["Gaussian"]
    assert [(c["kind"], c["index"]) for c in report["components"]] == [("dimension", i) for i in (0, 1, 2)]
    kind, side, constant = report["components"]
    assert kind["kl"] > side["kl"] and kind["variance"] < side["variance"]
    means = np.array([0, 0.5, 1])
    known = {0: np.square(means).mean(), 1: (0 + 4) / 2, 2: 0.0}
    for component, index in ((side, 1), (kind, 0), (constant, 2)):
        v = Gaussian.variances[index].item()
        assert component["kl"] == pytest.approx(0.5 * (known[index] + v - 1 - math.log(v)), abs=0.01)
    assert (side["factor"], side["sure"], kind["factor"], kind["sure"]) == ("side", True, "kind", True)
    for component in (side, kind):
        entry = component["information"][component["factor"]]
        assert entry["share"] == pytest.approx(1) and entry["p_value"] == pytest.approx(1 / 200)
        (other,) = set(component["information"]) - {component["factor"]}
        assert component["information"][other]["share"] < 0.02 and component["information"][other]["p_value"] > 0.01
    assert kind["information"]["kind"]["bits"] == pytest.approx(math.log2(3), abs=0.02)
    assert not constant["sure"] and constant["kl"] == 0 == constant["variance"]
    assert constant["information"]["kind"] == {"bits": 0, "share": 0, "p_value": 1}


def test_a_traversal_moves_one_dimension_and_nothing_else(reports):
    _, folder = reports["Gaussian"]
    drawn = tiles(folder / "dimension_0.png", columns=9)
    assert len(drawn) == 4
    np.testing.assert_allclose(drawn[:, :, 0, 0], np.linspace(0, 1, 9) * np.ones((4, 1)), atol=0.01)
    shown = corpus().images[np.linspace(0, 299, 4).astype(int), 0, 0, 1] / 255
    np.testing.assert_allclose(drawn[:, :, 0, 1], np.repeat(shown[:, None], 9, axis=1), atol=0.01)


def test_bits_are_sorted_by_entropy_and_say_for_which_values_they_are_set(reports):
    report, folder = reports["Bits"]
    by_index = {component["index"]: component for component in report["components"]}
    assert [component["index"] for component in report["components"]][-2:] == [0, 2], "by falling entropy"
    assert by_index[0]["entropy_bits"] == pytest.approx(math.log2(3) - 2 / 3) and by_index[2]["entropy_bits"] == 0
    kind, side, constant, noisy = (by_index[index] for index in range(4))
    assert kind["probabilities"] == {"a": 0, "b": 0, "c": 1}
    assert kind["present_for"] == "c" and kind["absent_for"] in "ab" and kind["frequency"] == pytest.approx(1 / 3)
    assert side["factor"] == "side" and side["information"]["side"]["bits"] == pytest.approx(1, abs=0.01)
    assert noisy["probabilities"] == pytest.approx({"left|<right>": 0.2, "right": 0.8})
    known = 1 + 0.2 * math.log2(0.2) + 0.8 * math.log2(0.8)
    assert noisy["information"]["side"]["bits"] == pytest.approx(known, abs=0.01)
    assert not constant["sure"]
    off, on = tiles(folder / "bit_1.png", columns=12)
    assert (off[:, 0, 1] == 0).all() and (on[:, 0, 1] == 1).all()
    np.testing.assert_array_equal(off[:, 0, [0, 2, 3]], on[:, 0, [0, 2, 3]])
    assert len(np.unique(off[:, 0, 0])) == 2, "images differ in the other bits"


def test_the_share_is_of_what_is_left_of_the_entropy_above_chance(tmp_path):
    """Where chance is a good part of the entropy, as here, the share of the whole entropy is another number."""
    arrays = corpus(60)
    arrays.extra["many"] = np.arange(60) % 12
    report = latent_report(Gaussian(), arrays, tmp_path, num_permutations=99)
    entropy = {factor["name"]: factor["entropy_bits"] for factor in report["factors"]}["many"]
    means = np.stack([arrays.extra["kind"], arrays.extra["side"], 0 * arrays.extra["side"]], axis=1)
    table = np.stack([arrays.extra[factor["name"]] for factor in report["factors"]], axis=1)
    tested = permutation_test(means, table, num_permutations=99)
    column = [factor["name"] for factor in report["factors"]].index("many")
    nats, chance = tested.nats[0, column], tested.chance[0, column]
    kind = next(component for component in report["components"] if component["index"] == 0)
    share = kind["information"]["many"]["share"]
    assert share == pytest.approx((nats - chance) / (entropy * math.log(2) - chance))
    assert share > 1.05 * (nats - chance) / (entropy * math.log(2))
    for text in ((tmp_path / name).read_text() for name in ("latent_report.md", "index.html")):
        assert re.search(r"what is left of (the factor's|the entropy of the factor)", html.unescape(text))


def test_a_bit_is_of_the_factor_that_it_knows_most_bits_of(tmp_path):
    arrays = corpus()
    index = np.arange(len(arrays))
    many = index % 3 + 3 * (index // 3 % 2) + 6 * (index // 6 % 5)  # all that there is, in 30 values
    arrays = ImageArrays(arrays.images, extra={"side": arrays.extra["side"], "many": many})
    report = latent_report(Bits(), arrays, tmp_path, num_permutations=99)
    noisy = next(component for component in report["components"] if component["index"] == 3)
    assert noisy["information"]["side"]["share"] > noisy["information"]["many"]["share"]
    assert noisy["factor"] == "many" and noisy["information"]["many"]["bits"] == pytest.approx(1, abs=0.1)


def test_classes_have_their_labels_and_prototypes(reports):
    report, folder = reports["OneVariable"]
    (variable,) = report["components"]
    assert variable["kind"] == "variable" and variable["factor"] == "kind" and variable["sure"]
    assert variable["entropy_bits"] == pytest.approx(math.log2(3))
    found = {entry["class"]: (entry["value"], entry["rows"], entry["share"]) for entry in variable["classes"]}
    assert found == {2: ("a", 100, 1), 0: ("b", 100, 1), 1: ("c", 100, 1)}
    assert variable["classes"][0]["counts"].keys() == {"a", "b", "c"}
    drawn = tiles(folder / "variable_0.png", columns=3)
    assert len(drawn) == 1, "nothing is left that could differ"
    expected = [entry["class"] / 3 for entry in variable["classes"]]
    np.testing.assert_allclose(drawn[0, :, 0, 0], expected, atol=0.01)

    report, folder = reports["Classes"]
    assert [component["index"] for component in report["components"]] == [0, 1]
    constant = report["components"][1]
    assert not constant["sure"] and [entry["class"] for entry in constant["classes"]] == [3]
    drawn = tiles(folder / "variable_0.png", columns=3)
    assert drawn.shape[0] == 4 and (drawn[:, :, 0, 1] == 1).all(), "the other variable stays"


def test_dimensions_and_classes_of_one_model_are_decoded_together(reports):
    report, folder = reports["Joint"]
    assert [(c["kind"], c["factor"], c["sure"]) for c in report["components"]] == [
        ("dimension", "side", True),
        ("variable", "kind", True),
    ]
    classes = [entry["class"] for entry in report["components"][1]["classes"]]
    drawn = tiles(folder / "variable_0.png", columns=3)
    np.testing.assert_allclose(drawn[:, :, 0, 0], np.array(classes) / 2 * np.ones((4, 1)), atol=0.01)
    assert np.allclose(drawn[0, :, 0, 1], 0.5, atol=0.01), "the first row is the middle of the prior"
    sides = corpus().images[np.linspace(0, 299, 4).astype(int)[1:], 0, 0, 1] / 255
    np.testing.assert_allclose(drawn[1:, 0, 0, 1], sides, atol=0.01)


class Tags(HTMLParser):
    """Which tags are open, and what the page refers to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.links, self.ids, self.text = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.pictures.append(attributes["src"])
        if tag == "a":
            self.links.append(attributes["href"])
        if "id" in attributes:
            self.ids.append("#" + attributes["id"])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("name", ["Gaussian", "Bits", "Classes", "OneVariable", "Joint"])
def test_the_folder_holds_one_report_in_three_forms(reports, name):
    report, folder = reports[name]
    assert json.loads((folder / "latent_report.json").read_text()) == report
    assert report["corpus"] == {"name": "fake", "split": "test", "rows": 300} and report["model_type"] == "fake"
    page = Tags((folder / "index.html").read_text())
    assert page.open == [] and page.links == page.ids
    assert page.pictures == [component["picture"] for component in report["components"]]
    assert {path.name for path in folder.iterdir()} == {
        "index.html",
        "latent_report.json",
        "latent_report.md",
        *page.pictures,
    }
    text = " ".join(page.text)
    assert "300 images of fake test" in text and "kind (3 values), side (2 values)" in text
    markdown = (folder / "latent_report.md").read_text()
    assert markdown == format_latent_report(report) + "\n"
    for table in re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, "each row has as many cells, whatever the names of values"


def test_sentences_claim_only_what_is_sure(reports):
    text = {name: " ".join(Tags((reports[name][1] / "index.html").read_text()).text) for name in reports}
    assert "Dimension 1 knows 100% of side (p ≤ 0.005)." in text["Gaussian"]
    assert "Dimension 2 tells nothing of any factor that chance would not (p = 1)." in text["Gaussian"]
    assert "bit of side (p ≤ 0.005): mostly 1 for right (80%), 0 for left|<right> (20%)" in text["Bits"]
    markdown = (reports["Gaussian"][1] / "latent_report.md").read_text()
    assert re.search(r"^\| 1 \| 2\.\d\d \| side \| 100% \| ≤ 0\.005 \| - \|$", markdown, re.MULTILINE)
    assert "| 2 | 0.00 | - | - | 1 | - |" in markdown


def test_reports_follow_the_seed_and_the_mode_of_the_model_is_left(tmp_path):
    torch.manual_seed(0)
    model = VAEModel(VAEConfig(image_size=4, architecture="mlp", hidden_sizes=(8,), latent_size=3)).train()
    first, second, other = (
        latent_report(model, corpus(), tmp_path / str(n), num_permutations=49, seed=seed, batch_size=size)
        for n, (seed, size) in enumerate([(0, 300), (0, 7), (1, 300)])
    )
    assert model.training
    differing = [(a, b) for a, b in zip(first["components"], second["components"], strict=True) if a != b]
    for a, b in differing:  # by rounding
        assert a["kl"] == pytest.approx(b["kl"], rel=1e-5) and a["information"] == b["information"]
    assert first["components"] != other["components"]
    kls = [component["kl"] for component in first["components"]]
    assert kls == sorted(kls, reverse=True)
    pixel_values = torch.from_numpy(corpus().images).float() / 255
    assert sum(kls) == pytest.approx(model.eval()(pixel_values).kl_loss.item(), rel=1e-4)


def test_latents_without_a_posterior_are_sorted_by_variance(tmp_path):
    config = AutoencoderConfig(image_size=4, architecture="mlp", hidden_sizes=(8,), latent_size=3)
    report = latent_report(AutoencoderModel(config), corpus(), tmp_path, num_permutations=19)
    variances = [component["variance"] for component in report["components"]]
    assert variances == sorted(variances, reverse=True) and "kl" not in report["components"][0]
    assert "variance" in (tmp_path / "latent_report.md").read_text()


def test_of_many_rows_some_are_drawn(tmp_path, monkeypatch):
    from hf_autoencoders.evaluation import latent_report as module

    monkeypatch.setattr(module, "MAX_PICTURES", 2)
    options = {"num_permutations": 9, "max_rows": 120}
    reports = [latent_report(Gaussian(), corpus(), tmp_path, seed=seed, **options) for seed in (0, 0, 1)]
    assert reports[0]["corpus"] == {"rows": 120}
    assert reports[0]["components"] == reports[1]["components"] != reports[2]["components"]
    assert [component.get("picture") for component in reports[0]["components"]].count(None) == 1


def test_a_report_beside_a_model_has_its_page_in_a_folder_and_shows_what_is_sure(tmp_path):
    """The text of the card shows the two dimensions that know a factor, not the constant; an older report is gone."""
    (tmp_path / "latent_report").mkdir()
    (tmp_path / "latent_report" / "dimension_77.png").touch()
    report = report_beside(Gaussian(), corpus(), tmp_path, num_permutations=199)
    names = {path.name for path in (tmp_path / "latent_report").iterdir()}
    pictures = {f"dimension_{index}.png" for index in range(3)}
    assert names == {"index.html", "latent_report.json"} | pictures
    assert {path.name for path in tmp_path.iterdir()} == {"latent_report", "latent_report.md"}
    text = (tmp_path / "latent_report.md").read_text()
    assert text.startswith(format_latent_report(report))
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert sorted(links) == ["latent_report/dimension_0.png", "latent_report/dimension_1.png"]
    assert all((tmp_path / link).is_file() for link in links)
    assert "*Dimension 0 knows 100% of kind (p" in text and "all else stays as it is.*" in text
    with pytest.raises(ValueError, match="latents of this model hold NaN"):
        report_beside(Broken(), corpus(), tmp_path, num_permutations=9)
    assert {path.name for path in (tmp_path / "latent_report").iterdir()} == names, "what was there stays"


def test_text_for_a_card_is_bounded_and_harmless(tmp_path, monkeypatch):
    from hf_autoencoders.evaluation import latent_report as module

    arrays = corpus()
    arrays.extra["*a_b* <i>"] = arrays.extra.pop("kind")
    report = latent_report(Gaussian(), arrays, tmp_path, num_permutations=199)
    monkeypatch.setattr(module, "MAX_CARD_PICTURES", 1)
    text = format_latent_report(report, pictures="there")
    assert text.count("![") == 1
    assert "![" not in format_latent_report(report)
    assert not re.search(r"^#{1,3} |```|\{\{|\bNone\b", text, re.MULTILINE)
    captions = [line for line in text.splitlines() if line.startswith("*Dimension")]
    assert all("<" not in line.replace("\\<", "") for line in captions)


def test_what_has_no_parts_is_refused(tmp_path):
    vqvae = VQVAEModel(VQVAEConfig(image_size=4, hidden_sizes=(8,), codebook_size=4, embedding_dim=2))
    with pytest.raises(ValueError, match="expected codes .* got codes .* and no probabilities: a grid of codes"):
        latent_report(vqvae, corpus(), tmp_path)

    with pytest.raises(ValueError, match="latents of this model hold NaN"):
        latent_report(Broken(), corpus(), tmp_path)
    with pytest.raises(ValueError, match="`num_images` must be a whole number >= 1"):
        latent_report(Gaussian(), corpus(), tmp_path, num_images=0)
    assert list(tmp_path.iterdir()) == []
