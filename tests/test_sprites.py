"""Sprites: their geometry, their symmetries, and the corpus made of them."""

import datasets
import numpy as np
import pytest

from hf_autoencoders.data import image_arrays, load_corpus, load_sprites_corpus, render_sprites, sprites
from hf_autoencoders.data.sprites import FACTOR_NAMES, FACTOR_SIZES, FACTOR_VALUES, SHAPES
from hf_autoencoders.models.image_processing_autoencoder import AutoencoderImageProcessor

SQUARE, ELLIPSE, HEART = range(3)
FEW = {"train": 1500, "validation": 200, "test": 100}
AREAS = (4 * 9.6**2, np.pi * 12.8 * 7.2, (4 + np.pi) * 5.65**2)  # a heart is a square and two halves of a disc


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_AUTOENCODERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def some_factors(rows: int, shape: int | None = None) -> np.ndarray:
    factors = np.random.default_rng(0).integers(0, FACTOR_SIZES, (rows, 5))
    if shape is not None:
        factors[:, 0] = shape
    return factors


def moved(factors: np.ndarray, **columns) -> np.ndarray:
    factors = factors.copy()
    for name, values in columns.items():
        factors[:, FACTOR_NAMES.index(name)] = values
    return factors


def factors_of(split) -> np.ndarray:
    return np.stack([np.asarray(split[name]) for name in FACTOR_NAMES], axis=1)


def test_factors_are_those_of_dsprites():
    assert FACTOR_SIZES == (3, 6, 40, 32, 32) and np.prod(FACTOR_SIZES) == 737_280
    assert FACTOR_VALUES["scale"] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert FACTOR_VALUES["orientation"][10] == pytest.approx(np.pi / 2)
    assert FACTOR_VALUES["orientation"][39] < 2 * np.pi - 0.1


def test_pixels_are_black_or_white():
    images = render_sprites(some_factors(70))
    assert images.dtype == np.uint8 and images.shape == (70, 1, 64, 64) and set(np.unique(images)) == {0, 255}
    assert render_sprites(some_factors(70)[:0]).shape == (0, 1, 64, 64)
    border = np.concatenate([images[:, 0, [0, -1]].ravel(), images[:, 0, :, [0, -1]].ravel()])
    assert not border.any()  # no shape is cut off


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_area_and_place(shape):
    size = 512
    factors = some_factors(40, shape)
    inside = render_sprites(factors, size)[:, 0] == 255
    scale = np.take(FACTOR_VALUES["scale"], factors[:, 1])
    assert inside.sum((1, 2)) * (64 / size) ** 2 / scale**2 == pytest.approx(AREAS[shape], rel=0.02)
    if shape != HEART:  # of which the centre is not its centre of mass
        middles = (np.arange(size) + 0.5) * 64 / size
        for axis, column in ((1, 3), (2, 4)):
            mean = (inside.sum(axis) * middles).sum(1) / inside.sum((1, 2))
            assert mean == pytest.approx(16 + 32 * factors[:, column] / 31, abs=0.1)


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_orientation_turns_clockwise(shape):
    factors = some_factors(60, shape)
    turned = moved(
        factors, orientation=(factors[:, 2] + 10) % 40, pos_x=31 - factors[:, 4], pos_y=factors[:, 3]
    )  # the whole picture by a quarter
    assert (np.rot90(render_sprites(factors), -1, axes=(2, 3)) == render_sprites(turned)).all()


def test_heart_stands_on_its_tip():
    factors = moved(some_factors(30, HEART), orientation=0)
    images = render_sprites(factors)
    assert (images[..., ::-1] == render_sprites(moved(factors, pos_x=31 - factors[:, 3]))).all()
    widths = (images[:, 0] == 255).sum(2)
    for width in widths:
        rows = np.flatnonzero(width)
        assert width[rows[-1]] <= 3 and width[rows[1]] > 3
        assert (np.diff(width[rows[len(rows) // 2 :]]) <= 0).all()


@pytest.mark.parametrize("shape, symmetry", [(SQUARE, 10), (ELLIPSE, 20), (HEART, 40)])
def test_symmetries_are_exact_and_there_are_no_others(shape, symmetry):
    factors = moved(np.zeros((40, 5), int), shape=shape, scale=0, orientation=np.arange(40), pos_x=9, pos_y=20)
    images = render_sprites(factors)
    assert (images == images[np.arange(40) % symmetry]).all()
    assert len(np.unique(images.reshape(40, -1), axis=0)) == symmetry


def test_larger_scales_cover_smaller_ones():
    factors = some_factors(50)
    smaller, larger = (render_sprites(moved(factors, scale=scale)) for scale in (2, 3))
    assert (smaller <= larger).all() and (smaller < larger).any((1, 2, 3)).all()


def test_any_size_shows_the_same():
    factors = some_factors(40)
    images = render_sprites(factors)
    assert (render_sprites(factors, 192)[:, :, 1::3, 1::3] == images).all()  # the middles of the same pixels
    assert render_sprites(factors, 7).shape == (40, 1, 7, 7)


def test_rows_are_drawn_by_themselves():
    factors = some_factors(100)
    alone = np.concatenate([render_sprites(row[None]) for row in factors])
    assert (render_sprites(factors) == alone).all()


def test_wrong_factors_are_refused():
    for factors in (np.zeros((2, 4), int), np.zeros(5, int), np.zeros((2, 5))):
        with pytest.raises(ValueError, match=r"whole numbers \(rows, 5\) with columns shape, scale.*got"):
            render_sprites(factors)
    with pytest.raises(ValueError, match="'orientation' must be from 0 to 39, got 40"):
        render_sprites([[0, 0, 40, 0, 0]])
    with pytest.raises(ValueError, match="'shape' must be from 0 to 2, got -1"):
        render_sprites([[0, 0, 0, 0, 0], [-1, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        render_sprites([[0] * 5], 0)


# ---- the corpus


def test_corpus_holds_images_and_factors(monkeypatch):
    monkeypatch.setattr(sprites, "NUM_IMAGES", FEW)
    splits = load_corpus("sprites")
    assert {name: len(split) for name, split in splits.items()} == FEW
    features = splits["train"].features
    assert features["shape"].names == list(SHAPES) and isinstance(features["image"], datasets.Image)
    assert [features[name].dtype for name in FACTOR_NAMES[1:]] == ["int32"] * 4
    arrays = image_arrays(splits["test"], AutoencoderImageProcessor(size=64, num_channels=1))
    factors = factors_of(splits["test"])
    assert (arrays.images == render_sprites(factors)).all()
    assert (arrays.labels == factors[:, 0]).all() and arrays.label_names == list(SHAPES)  # what probes look for
    stream = load_corpus("sprites", streaming=True)["validation"]
    assert isinstance(stream, datasets.IterableDataset)
    assert next(iter(stream))["pos_x"] == splits["validation"][0]["pos_x"]
    with pytest.raises(ValueError, match="embedded corpus 'sprites' has no configurations or revisions"):
        load_corpus("sprites", revision="main")


def test_corpus_is_drawn_evenly_and_no_image_is_in_two_splits():
    parts = sprites._combinations({"train": 30_000, "validation": 20_000, "test": 10_000})
    assert [len(part) for part in parts.values()] == [30_000, 20_000, 10_000]
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows, axis=0)) == len(rows)
    symmetry = np.array([10, 20, 40])
    seen = {
        name: {tuple(row) for row in moved(part, orientation=part[:, 2] % symmetry[part[:, 0]]).tolist()}
        for name, part in parts.items()
    }
    assert all(len(seen[name]) < len(part) for name, part in parts.items())  # there are equal images
    assert not (seen["train"] & seen["validation"] or seen["train"] & seen["test"] or seen["validation"] & seen["test"])
    for part in parts.values():
        for column, size in zip(part.T, FACTOR_SIZES, strict=True):
            deviation = np.bincount(column, minlength=size) - len(part) / size
            assert np.abs(deviation).max() < 5 * np.sqrt(len(part) / size)


def test_corpus_is_made_once_and_found_again(tmp_path, monkeypatch):
    first, elsewhere = load_sprites_corpus(FEW), load_sprites_corpus(FEW, cache_dir=tmp_path / "elsewhere")
    monkeypatch.setattr(sprites, "render_sprites", None)
    again = load_sprites_corpus(FEW)
    for name, split in first.items():
        assert split._fingerprint == again[name]._fingerprint == elsewhere[name]._fingerprint
        assert (factors_of(split) == factors_of(again[name])).all()
    with pytest.raises(TypeError):  # another corpus is made anew
        load_sprites_corpus({**FEW, "test": 101})


def test_where_nothing_can_be_kept_the_corpus_is_made_all_the_same(tmp_path):
    (tmp_path / "file").write_text("no folder")
    splits = load_sprites_corpus({"train": 5, "validation": 5}, cache_dir=tmp_path / "file")
    assert [len(split) for split in splits.values()] == [5, 5]


def test_wrong_numbers_of_images_are_refused():
    for wrong in ({}, {"train": 5, "validation": 0}, {"train": 737_280, "validation": 1}):
        with pytest.raises(ValueError, match=r"num_images must be at least 1 for each split and 737,2\d\d in all"):
            load_sprites_corpus(wrong)
