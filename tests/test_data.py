"""Corpora by name, decoding once, batches: what they promise, and what they say of a corpus that is amiss."""

import logging
import multiprocessing
import os
import signal
import time
from io import BytesIO

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from hf_autoencoders.data import (
    BadImageError,
    ImageArrays,
    ImageBatches,
    StreamingImageBatches,
    find_factor_columns,
    image_arrays,
    load_corpus,
    to_pixel_values,
)
from hf_autoencoders.models.image_processing_autoencoder import AutoencoderImageProcessor

NUM_ROWS = 25


def picture(row: int, height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (height, width), dtype=np.uint8)


def png(array: np.ndarray) -> dict:
    buffer = BytesIO()
    PIL.Image.fromarray(array).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def corpus(num_rows: int = NUM_ROWS, replace: dict | None = None, **columns) -> datasets.Dataset:
    images = [(replace or {}).get(row, png(picture(row))) for row in range(num_rows)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["even", "odd"]))
    labels = [row % 2 for row in range(num_rows)]
    dataset = datasets.Dataset.from_dict(
        {"image": images, "label": labels}, features=features, split=datasets.NamedSplit("train")
    )
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


def write_png(path, row: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(picture(row)).save(path)


PIXELS = np.stack([picture(row)[None] for row in range(NUM_ROWS)])


@pytest.fixture
def processor():
    return AutoencoderImageProcessor(size=(6, 5), num_channels=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_AUTOENCODERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets_cache"))
    return tmp_path / "cache" / "images"


# ---- corpora


def test_digits_are_scikit_learns_digits():
    from sklearn.datasets import load_digits

    splits = load_corpus("digits")
    assert {name: len(split) for name, split in splits.items()} == {"train": 1197, "validation": 300, "test": 300}
    assert splits["train"].features["label"].names == [str(digit) for digit in range(10)]
    rows = [(np.asarray(row["image"]), row["label"]) for split in splits.values() for row in split]
    ours = sorted((np.rint(image * (16 / 255)).astype(int).ravel().tolist(), label) for image, label in rows)
    digits = load_digits()
    theirs = sorted(
        (image.astype(int).ravel().tolist(), int(label))
        for image, label in zip(digits.images, digits.target, strict=True)
    )
    assert ours == theirs
    assert {np.asarray(row["image"]).max() for row in splits["test"].select(range(20))} <= {239, 255}


def test_digits_are_the_same_every_time_so_that_their_cache_is_found_again():
    first, again = load_corpus("digits"), load_corpus("digits", seed=7)
    assert all(first[name]._fingerprint == again[name]._fingerprint for name in first)
    stream = load_corpus("digits", streaming=True)["validation"]
    assert isinstance(stream, datasets.IterableDataset)
    assert next(iter(stream))["label"] == first["validation"][0]["label"]


@pytest.mark.parametrize("streaming", [False, True])
def test_local_corpora(tmp_path, processor, streaming):
    corpus(20).to_parquet(tmp_path / "parquet" / "train.parquet")
    corpus(5).to_parquet(tmp_path / "parquet" / "val.parquet")
    corpus(4).to_parquet(tmp_path / "parquet" / "test.parquet")
    datasets.DatasetDict(train=corpus(20), valid=corpus(5), test=corpus(4)).save_to_disk(tmp_path / "saved")
    for split, rows in {"train": 20, "validation": 5, "test": 4}.items():
        for row in range(rows):
            write_png(tmp_path / "folder" / split / ("odd" if row % 2 else "even") / f"{row}.png", row)
    for name in ("parquet", "saved", "folder"):
        splits = load_corpus(tmp_path / name, streaming=streaming)
        assert list(splits) == ["train", "validation", "test"]
        for split, rows in {"train": 20, "validation": 5, "test": 4}.items():
            if streaming:
                (batch,) = StreamingImageBatches(splits[split], processor, 20, shuffle=False, seed=0, drop_last=False)
                images, labels = batch["images"].numpy(), batch["labels"].numpy()
            else:
                arrays = image_arrays(splits[split], processor)
                images, labels = arrays.images, arrays.labels
                assert arrays.label_names == ["even", "odd"]
            order = np.argsort([image.tobytes() for image in images])  # an image folder has an order of its own
            expected = np.argsort([image.tobytes() for image in PIXELS[:rows]])
            assert (images[order] == PIXELS[:rows][expected]).all() and (labels[order] == expected % 2).all()


def test_a_validation_split_is_cut_by_seed_and_said(tmp_path, caplog):
    corpus(40, name=[str(row) for row in range(40)]).to_parquet(tmp_path / "all.parquet")
    file = tmp_path / "all.parquet"
    with caplog.at_level(logging.WARNING):
        splits = load_corpus(file, validation_fraction=0.25, seed=1)
    names = {split: set(rows["name"]) for split, rows in splits.items()}
    held_out = len(names["validation"])
    assert f"has no validation split: {held_out} of its 40 train rows are held out" in caplog.text
    assert 3 <= held_out <= 18 and len(names["train"]) == 40 - held_out and not names["train"] & names["validation"]
    assert set(load_corpus(file, validation_fraction=0.25, seed=1)["validation"]["name"]) == names["validation"]
    assert set(load_corpus(file, validation_fraction=0.25, seed=2)["validation"]["name"]) != names["validation"]
    assert set(load_corpus(file, validation_fraction=0.5, seed=1)["validation"]["name"]) > names["validation"]
    tiny = load_corpus(file, validation_fraction=1e-9), load_corpus(file, validation_fraction=1 - 1e-9)
    assert [len(splits["validation"]) for splits in tiny] == [1, 39]

    streams = load_corpus(file, validation_fraction=0.25, seed=1, streaming=True)
    assert {split: {row["name"] for row in rows} for split, rows in streams.items()} == names
    processor = AutoencoderImageProcessor(size=(6, 5))
    batches = list(StreamingImageBatches(streams["train"], processor, 40, shuffle=True, seed=0, drop_last=False))
    assert [len(batch["images"]) for batch in batches] == [len(names["train"])]


def shards(folder, rows_of_shard, **options):
    """A corpus of several parquet files, the rows in them numbered by their labels."""
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    folder.mkdir()
    for shard, rows in enumerate(rows_of_shard):
        images = [options.get("replace", {}).get(row, png(picture(row))) for row in rows]
        rows = datasets.Dataset.from_dict({"image": images, "label": rows}, features=features)
        rows.to_parquet(folder / f"train-{shard}.parquet")
    return folder


def test_training_never_sees_held_out_rows_whatever_the_order(tmp_path, processor):
    rows = np.arange(160)
    folder = shards(tmp_path / "one", rows.reshape(8, 20))
    in_memory = load_corpus(folder, validation_fraction=0.25)
    held_out = set(in_memory["validation"]["label"])
    assert 25 <= len(held_out) <= 55 and held_out | set(in_memory["train"]["label"]) == set(range(160))

    streams = load_corpus(folder, validation_fraction=0.25, streaming=True)
    for shuffle, buffer_size in ((False, 1), (True, 8), (True, 1000)):
        options = {"shuffle": shuffle, "seed": 3, "drop_last": False, "buffer_size": buffer_size}
        batches = {name: StreamingImageBatches(streams[name], processor, 16, **options) for name in streams}
        for epoch in range(4):
            for name, wanted in (("train", set(range(160)) - held_out), ("validation", held_out)):
                batches[name].set_epoch(epoch)
                seen = sum(rows_of(batches[name]), [])
                assert sorted(seen) == sorted(wanted)

    # the same images in other files, in another order, and kept another way
    other = shards(tmp_path / "other", [*np.random.default_rng(0).permutation(rows).reshape(2, 80)])
    assert set(load_corpus(other, validation_fraction=0.25)["validation"]["label"]) == held_out
    datasets.concatenate_datasets(list(in_memory.values())).save_to_disk(tmp_path / "saved")
    assert set(load_corpus(tmp_path / "saved", validation_fraction=0.25)["validation"]["label"]) == held_out
    # copies of an image stay on one side
    twice = shards(tmp_path / "twice", [rows, rows[::-1]])
    assert sorted(load_corpus(twice, validation_fraction=0.25)["validation"]["label"]) == sorted([*held_out] * 2)


def test_an_image_folder_is_split_alike_streaming_or_not(tmp_path, processor):
    for row in range(40):
        write_png(tmp_path / "folder" / ("odd" if row % 2 else "even") / f"{row}.png", row)
    splits = [load_corpus(tmp_path / "folder", validation_fraction=0.3, streaming=streaming) for streaming in (0, 1)]
    for name in ("train", "validation"):
        expected = image_arrays(splits[0][name], processor).images
        batches = stream_batches(splits[1][name], processor)
        images = np.concatenate([batch["images"].numpy() for batch in batches])
        assert sorted(map(bytes, images)) == sorted(map(bytes, expected)) and 3 < len(expected) < 37


def test_images_that_are_numbers_are_split_alike_streaming_or_not(tmp_path):
    values = {
        "list": (datasets.List(datasets.List(datasets.Value("float32"))), PIXELS[:, 0].astype(np.float32) / 3),
        "array": (datasets.Array2D((6, 5), "uint8"), PIXELS[:, 0]),
        "none": (datasets.Value("string"), [f"row {row}" for row in range(NUM_ROWS)]),
    }
    for name, (feature, column) in values.items():
        features = datasets.Features(pic=feature, row=datasets.Value("int64"))
        rows = datasets.Dataset.from_dict({"pic": column, "row": range(NUM_ROWS)}, features=features)
        rows.to_parquet(tmp_path / f"{name}.parquet")
        splits = [load_corpus(tmp_path / f"{name}.parquet", validation_fraction=0.4, streaming=s) for s in (0, 1)]
        found = [{split: {row["row"] for row in rows} for split, rows in parts.items()} for parts in splits]
        assert found[0] == found[1] and found[0]["validation"], name


def test_bad_images_of_a_stream_without_validation_split_are_named_or_skipped(tmp_path, processor):
    bad = {5: {"bytes": b"no image", "path": "five.png"}, 12: None, 19: png(picture(0))}
    bad[19]["bytes"] = bad[19]["bytes"][:60]
    folder = shards(tmp_path / "corpus", np.arange(24).reshape(4, 6), replace=bad)
    streams = load_corpus(folder, validation_fraction=0.3, streaming=True)
    labels, skipped = [], 0
    for stream in streams.values():
        batches = StreamingImageBatches(
            stream, processor, 24, shuffle=True, seed=0, drop_last=False, on_bad_image="skip", buffer_size=4
        )
        labels += sum(rows_of(batches), [])
        skipped += len(batches.skipped)
    assert sorted(labels) == [row for row in range(24) if row not in bad] and skipped == 3
    with pytest.raises(BadImageError, match=r"row \d+ of the stream.*on_bad_image='skip'"):
        for stream in streams.values():
            list(stream_batches(stream, processor))


def test_the_split_of_a_large_corpus_is_found_once(tmp_path, monkeypatch):
    from hf_autoencoders.data import corpora

    corpus(40).to_parquet(tmp_path / "all.parquet")
    first = load_corpus(tmp_path / "all.parquet")
    monkeypatch.setattr(corpora, "_share", lambda *_: pytest.fail("read again"))
    again = load_corpus(tmp_path / "all.parquet")
    assert first["validation"]._fingerprint == again["validation"]._fingerprint
    monkeypatch.undo()
    monkeypatch.setenv("HF_AUTOENCODERS_CACHE", str(tmp_path / "all.parquet" / "no folder"))
    assert load_corpus(tmp_path / "all.parquet")["validation"]["label"] == first["validation"]["label"]


@pytest.mark.parametrize("streaming", [False, True])
def test_two_validation_splits_are_refused(tmp_path, streaming):
    datasets.DatasetDict(train=corpus(), val=corpus(5), dev=corpus(6)).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="two splits that may be 'validation': 'val' and 'dev'"):
        load_corpus(tmp_path / "two", streaming=streaming)


def test_a_single_split_of_another_name_is_taken_for_train(tmp_path, caplog):
    datasets.DatasetDict(everything=corpus()).save_to_disk(tmp_path / "one")
    assert set(load_corpus(tmp_path / "one")) == {"train", "validation"}
    assert "'everything': it is taken for 'train'" in caplog.text
    corpus().save_to_disk(tmp_path / "plain")
    assert set(load_corpus(tmp_path / "plain")) == {"train", "validation"}


def test_corpora_that_cannot_be_loaded_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder .*nowhere"):
        load_corpus(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="folder holds no parquet files, images"):
        load_corpus(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="no .parquet file. Expected 'digits'"):
        load_corpus(tmp_path / "notes.txt")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match="broken.parquet' cannot be read.*(?i:parquet)"):
        load_corpus(tmp_path / "broken.parquet")
    datasets.DatasetDict(a=corpus(), b=corpus()).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="no split 'train'. Its splits are a, b"):
        load_corpus(tmp_path / "two")
    corpus(5).select([]).save_to_disk(tmp_path / "no_rows")
    with pytest.raises(ValueError, match="is empty: one of its saved splits has no rows"):
        load_corpus(tmp_path / "no_rows")
    corpus(0).to_parquet(tmp_path / "no_rows.parquet")
    with pytest.raises(ValueError, match="is empty: one of its splits has no rows"):
        load_corpus(tmp_path / "no_rows.parquet")
    with pytest.raises(ValueError, match="'digits' has no configurations"):
        load_corpus("digits", "big")
    with pytest.raises(ValueError, match="between 0 and 1"):
        load_corpus("digits", validation_fraction=1.0)
    with pytest.raises((FileNotFoundError, ConnectionError), match="someone/nothing"):
        load_corpus("someone/nothing")


def test_a_hub_corpus_is_asked_for_by_name_configuration_and_revision(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.DatasetDict(train=corpus())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_corpus("ylecun/mnist", "mnist", revision="abc")
    assert asked == [(("ylecun/mnist", "mnist"), {"revision": "abc", "streaming": False})]


# ---- decoding


def test_images_are_decoded_once_to_uint8(processor, cache, monkeypatch):
    arrays = image_arrays(corpus(), processor)
    assert isinstance(arrays.images, np.memmap) and arrays.images.dtype == np.uint8 and len(arrays) == NUM_ROWS
    assert (arrays.images == PIXELS).all()
    assert arrays.labels.dtype == np.int64 and arrays.labels.tolist() == [row % 2 for row in range(NUM_ROWS)]
    assert arrays.skipped == []
    subset = arrays.select([3, 1])
    assert (subset.images == PIXELS[[3, 1]]).all() and subset.labels.tolist() == [1, 1]

    monkeypatch.setattr(AutoencoderImageProcessor, "to_uint8", lambda *_: pytest.fail("decoded again"))
    assert (image_arrays(corpus(), processor).images == PIXELS).all()
    assert not list(cache.glob("*writing*"))


def test_pixels_are_those_of_the_processor(processor):
    dataset = corpus()
    for wanted in (processor, AutoencoderImageProcessor(size=9, num_channels=3, resample=3)):
        arrays = image_arrays(dataset, wanted)
        expected = wanted(list(dataset["image"]), return_tensors="pt")["pixel_values"]
        assert torch.equal(to_pixel_values(torch.from_numpy(arrays.images)), expected)


def test_the_cache_is_keyed_by_rows_processor_and_column(processor, cache):
    dataset = corpus(other=[0] * NUM_ROWS)
    image_arrays(dataset, processor)
    image_arrays(dataset.select([4, 2]), processor)
    image_arrays(dataset, AutoencoderImageProcessor(size=4))
    image_arrays(dataset, AutoencoderImageProcessor(size=4, resample=0))
    image_arrays(dataset, AutoencoderImageProcessor(size=4, num_channels=3))
    image_arrays(dataset, processor, on_bad_image="skip")
    image_arrays(corpus(replace={3: png(picture(77))}), processor)
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 7
    assert (image_arrays(dataset.select([4, 2]), processor).images == PIXELS[[4, 2]]).all()
    image_arrays(dataset, processor, label_column="none", extra_columns=["other"])  # labels are not part of it
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 7


def test_a_changed_file_is_decoded_anew(tmp_path, processor):
    for name, rows in (("file.parquet", [0, 1]), ("file.parquet", [2, 1])):
        corpus().select(rows).to_parquet(tmp_path / name)
        os.utime(tmp_path / name, (time.time() + rows[0], time.time() + rows[0]))
        splits = load_corpus(tmp_path / name, validation_fraction=0.5)
        got = {image_arrays(split, processor).images.tobytes() for split in splits.values()}
        assert got == {PIXELS[row].tobytes() for row in rows}


def test_a_damaged_cache_is_made_again(processor, cache):
    for damage in (
        lambda folder: (folder / "images.uint8").write_bytes(b"short"),
        lambda folder: (folder / "meta.json").write_text("{"),
        lambda folder: (folder / "meta.json").unlink(),
    ):
        image_arrays(corpus(), processor)
        (folder,) = (entry for entry in cache.iterdir() if entry.is_dir())
        damage(folder)
        assert (image_arrays(corpus(), processor).images == PIXELS).all()


def _slow_writer(started, cache):
    def slowly(self, image, decode=AutoencoderImageProcessor.to_uint8):
        started.set()
        time.sleep(0.2)
        return decode(self, image)

    AutoencoderImageProcessor.to_uint8 = slowly
    image_arrays(corpus(), AutoencoderImageProcessor(size=(6, 5)), cache_dir=cache)


def test_a_killed_writer_leaves_nothing_that_is_read(processor, cache):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    writer = context.Process(target=_slow_writer, args=(started, cache))
    writer.start()
    assert started.wait(60)
    time.sleep(0.3)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert len(list(cache.glob("*writing*"))) == 1
    assert (image_arrays(corpus(), processor, cache_dir=cache).images == PIXELS).all()
    assert not list(cache.glob("*writing*"))


def _reader(cache, results):
    decoded = []

    def counted(self, image, decode=AutoencoderImageProcessor.to_uint8):
        decoded.append(1)
        time.sleep(0.01)
        return decode(self, image)

    AutoencoderImageProcessor.to_uint8 = counted
    arrays = image_arrays(corpus(), AutoencoderImageProcessor(size=(6, 5)), cache_dir=cache)
    results.put((len(decoded), bool((arrays.images == PIXELS).all())))


def test_of_processes_asking_at_once_one_decodes(cache):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    readers = [context.Process(target=_reader, args=(cache, results)) for _ in range(3)]
    for reader in readers:
        reader.start()
    got = sorted(results.get(timeout=60) for _ in readers)
    for reader in readers:
        reader.join()
    assert got == [(0, True), (0, True), (NUM_ROWS, True)]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_keep_the_order(processor, num_threads):
    rows = [row % NUM_ROWS for row in range(500)]
    dataset = corpus().select(rows)
    assert (image_arrays(dataset, processor, num_threads=num_threads).images == PIXELS[rows]).all()


BAD = {
    "missing": (None, "the image is missing"),
    "not an image": ({"bytes": b"hello", "path": "hello.png"}, r"\(hello.png\).*cannot identify image file"),
    "cut short": ({"bytes": png(picture(1, 60, 60))["bytes"][:900], "path": None}, "cannot be decoded|truncated"),
    "no such file": ({"bytes": None, "path": "/nowhere/x.png"}, r"\(/nowhere/x.png\).*FileNotFoundError"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_bad_image_names_its_row_or_is_skipped_and_counted(processor, cache, caplog, kind, num_threads):
    value, message = BAD[kind]
    dataset = corpus(replace={7: value, 11: value})
    with pytest.raises(BadImageError, match=rf"(?s)row 7 of split 'train', column 'image'.*({message})"):
        image_arrays(dataset, processor, num_threads=num_threads)
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]
    arrays = image_arrays(dataset, processor, on_bad_image="skip", num_threads=num_threads, extra_columns=["label"])
    kept = np.delete(np.arange(NUM_ROWS), [7, 11])
    assert arrays.skipped == [7, 11] and (arrays.images == PIXELS[kept]).all()
    assert arrays.labels.tolist() == (kept % 2).tolist() == arrays.extra["label"].tolist()
    assert "2 of 25 rows are left out for their bad images: 7, 11." in caplog.text
    assert image_arrays(dataset, processor, on_bad_image="skip").skipped == [7, 11]  # from the cache


def test_a_bad_image_of_a_selection_names_its_stored_row(processor):
    dataset = corpus(replace={7: None}).select([3, 7])
    with pytest.raises(BadImageError, match=r"row 1 of split 'train' \(row 7 of the stored table\)"):
        image_arrays(dataset, processor)


def test_a_bad_file_of_an_image_folder_is_named(tmp_path, processor):
    for row in range(4):
        write_png(tmp_path / "train" / f"{row}.png", row)
    (tmp_path / "train" / "2.png").write_bytes(b"oops")
    splits = load_corpus(tmp_path, validation_fraction=0.25)
    with pytest.raises(BadImageError, match=r"column 'image' \(.*2.png\).*on_bad_image='skip'"):
        for split in splits.values():
            image_arrays(split, processor)


def test_a_refused_image_says_why(processor):
    features = datasets.Features(image=datasets.Array3D((6, 6, 2), "uint8"))
    dataset = datasets.Dataset.from_dict({"image": np.zeros((3, 6, 6, 2), np.uint8)}, features=features)
    with pytest.raises(
        BadImageError, match=r"row 0, column 'image': ValueError: Wrong number of channels.*\(6, 6, 2\)"
    ):
        image_arrays(dataset, processor)


def test_other_kinds_of_image_columns(processor):
    wanted = PIXELS[:3, 0]
    feature = datasets.List(datasets.List(datasets.Value("float32")))
    columns = {
        "Array2D": (wanted, datasets.Array2D((6, 5), "uint8")),
        "floats": ((wanted / 255).astype(np.float32), feature),
        "16 bit": (wanted.astype(np.uint16) * 257, datasets.Array2D((6, 5), "uint16")),
        "binary": ([png(image)["bytes"] for image in wanted], datasets.Value("binary")),
        "struct": (
            [png(image) for image in wanted],
            {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        ),
        "mode": ([png(image) for image in wanted], datasets.Image(mode="RGB")),
    }
    for name, (values, column) in columns.items():
        dataset = datasets.Dataset.from_dict({"pic": values}, features=datasets.Features(pic=column))
        assert (image_arrays(dataset, processor).images[:, 0] == wanted).all(), name


def test_labels_and_extra_columns(processor):
    dataset = corpus(
        scale=[row / 2 for row in range(NUM_ROWS)],
        name=[f"n{row}" for row in range(NUM_ROWS)],
        place=[[row, -row] for row in range(NUM_ROWS)],
        klass=[None if row == 3 else row for row in range(NUM_ROWS)],
    )
    arrays = image_arrays(dataset, processor, label_column="klass", extra_columns=["scale", "name", "place"])
    assert arrays.labels.tolist() == [-1 if row == 3 else row for row in range(NUM_ROWS)]
    assert arrays.label_names is None
    assert arrays.extra["scale"].tolist() == [row / 2 for row in range(NUM_ROWS)]
    assert arrays.extra["name"][5] == "n5" and arrays.extra["place"].shape == (NUM_ROWS, 2)
    assert arrays.select(slice(2, 4)).extra["scale"].tolist() == [1.0, 1.5]
    assert image_arrays(dataset, processor, label_column="none").labels is None


def with_factors() -> datasets.Dataset:
    """A corpus with columns of every kind, of which `label`, `width`, `bold` and `huge` may be factors."""
    columns = {
        "width": (datasets.Value("uint8"), [None if row == 3 else row % 4 for row in range(NUM_ROWS)]),
        "bold": (datasets.Value("bool"), [row % 3 == 0 for row in range(NUM_ROWS)]),
        "huge": (datasets.Value("int64"), [2**40 + row for row in range(NUM_ROWS)]),
        "id": (datasets.Value("int32"), list(range(NUM_ROWS))),
        "angle": (datasets.Value("float32"), [row / 2 for row in range(NUM_ROWS)]),
        "name": (datasets.Value("string"), [f"n{row}" for row in range(NUM_ROWS)]),
        "hash": (datasets.Value("uint64"), [2**64 - 1] * NUM_ROWS),
        "box": (datasets.List(datasets.Value("int64")), [[1, 2]] * NUM_ROWS),
    }
    dataset = corpus()
    for name, (feature, values) in columns.items():
        dataset = dataset.add_column(name, values, feature=feature)
    return dataset


def test_factor_columns_are_guessed_or_named():
    features = with_factors().features
    assert find_factor_columns(features) == ["label", "width", "bold", "huge"]
    assert find_factor_columns(corpus().features) == ["label"]
    assert find_factor_columns(features, ["huge", "id", "huge"]) == ["huge", "id"]
    assert find_factor_columns(features, ["none"]) == find_factor_columns(features, "none") == []
    with pytest.raises(ValueError, match=r"no column 'hue' for the factors. Its columns are: image \(Image\), label"):
        find_factor_columns(features, ["width", "hue"])
    for name in ("angle", "name", "hash", "box", "image"):
        with pytest.raises(ValueError, match=rf"'{name}' holds no whole numbers.*class_encode_column\('{name}'\)"):
            find_factor_columns(features, [name])


def test_factors_are_loaded_as_whole_numbers(processor):
    dataset = with_factors()
    names = find_factor_columns(dataset.features)
    arrays = image_arrays(dataset, processor, extra_columns=names)
    assert list(arrays.extra) == names and {column.dtype for column in arrays.extra.values()} == {np.dtype(np.int64)}
    assert arrays.extra["width"].tolist() == [-1 if row == 3 else row % 4 for row in range(NUM_ROWS)]
    assert arrays.extra["bold"].tolist() == [int(row % 3 == 0) for row in range(NUM_ROWS)]
    assert arrays.extra["huge"][5] == 2**40 + 5
    assert (arrays.extra["label"] == arrays.labels).all()  # which are what they were
    assert arrays.extra_names == {"label": ["even", "odd"]}
    named = dataset.cast_column("width", datasets.ClassLabel(names=["thin", "fine", "broad", "fat"]))
    named = image_arrays(named, processor, extra_columns=names).select(slice(2, 4))
    assert named.extra_names["width"] == ["thin", "fine", "broad", "fat"] and named.extra["width"].tolist() == [2, -1]
    picked = image_arrays(dataset.select([8, 3]), processor, extra_columns=names)
    assert picked.extra["width"].tolist() == [0, -1]


def test_values_below_zero_are_renumbered_and_rows_without_one_are_not(processor):
    """Attributes that are -1 or 1, as those of CelebA, beside what -1 stands for: no value."""
    rows = range(NUM_ROWS)
    columns = {
        "smile": [1 if row % 3 else -1 for row in rows],
        "tilt": [None if row == 2 else (row % 4 - 2) * 5 for row in rows],
        "width": [None if row == 2 else row % 4 for row in rows],
        "none": [None for _ in rows],
    }
    dataset = corpus()
    for name, values in columns.items():
        dataset = dataset.add_column(name, values, feature=datasets.Value("int64"))
    classes = datasets.ClassLabel(names=["a", "b"])
    dataset = dataset.add_column("class", [row % 3 - 1 for row in rows], feature=classes)
    arrays = image_arrays(dataset, processor, extra_columns=[*columns, "class"])
    assert arrays.extra["smile"].tolist() == [1 if row % 3 else 0 for row in rows]
    assert arrays.extra["tilt"].tolist() == [-1 if row == 2 else row % 4 for row in rows]
    assert arrays.extra["width"].tolist() == [-1 if row == 2 else row % 4 for row in rows]
    assert arrays.extra["none"].tolist() == [-1] * NUM_ROWS
    assert arrays.extra["class"].tolist() == [row % 3 - 1 for row in rows], "-1 of a class is none"
    assert arrays.extra_names == {"smile": ["-1", "1"], "tilt": ["-10", "-5", "0", "5"], "class": ["a", "b"]}
    labelled = image_arrays(dataset, processor, label_column="smile", extra_columns=["smile"])
    assert (labelled.extra["smile"] == labelled.labels).all() and labelled.labels.min() == -1, "likewise of a label"


def test_columns_are_guessed_or_the_error_lists_them(processor):
    dataset = corpus().rename_column("label", "kind")
    assert image_arrays(dataset, processor).label_names == ["even", "odd"]  # the only ClassLabel
    two = dataset.add_column("image2", [1] * NUM_ROWS).remove_columns("image2")
    two = datasets.concatenate_datasets([two, two.rename_columns({"image": "mask", "kind": "kind2"})], axis=1)
    arrays = image_arrays(two, processor)
    assert len(arrays) == NUM_ROWS and arrays.labels is None  # `image` by its name; two classes: none is guessed
    with pytest.raises(ValueError, match=r"several columns may be the images \(left, mask\).*image_column"):
        image_arrays(two.rename_column("image", "left"), processor)
    with pytest.raises(ValueError, match=r"no column 'img'.*image \(Image\), label \(ClassLabel\)"):
        image_arrays(corpus(), processor, image_column="img")
    with pytest.raises(ValueError, match="Column 'label' holds no images"):
        image_arrays(corpus(), processor, image_column="label")
    with pytest.raises(ValueError, match=r"no column holds images.*label \(ClassLabel\)"):
        image_arrays(corpus().remove_columns("image"), processor)
    with pytest.raises(ValueError, match="no column 'klass' for the labels"):
        image_arrays(corpus(), processor, label_column="klass")
    with pytest.raises(ValueError, match=r"no class numbers.*class_encode_column\('text'\)"):
        image_arrays(corpus(text=["a"] * NUM_ROWS), processor, label_column="text")
    with pytest.raises(ValueError, match="no column x, y. Its columns are: image, label"):
        image_arrays(corpus(), processor, extra_columns=["x", "y"])


def test_wrong_corpora_are_refused(processor):
    with pytest.raises(ValueError, match="empty"):
        image_arrays(corpus().select([]), processor)
    with pytest.raises(TypeError, match="got DatasetDict. Choose a split"):
        image_arrays(datasets.DatasetDict(train=corpus()), processor)
    with pytest.raises(TypeError, match="StreamingImageBatches for a stream"):
        image_arrays(corpus().to_iterable_dataset(), processor)
    with pytest.raises(ValueError, match="'raise' or 'skip', got 'ignore'"):
        image_arrays(corpus(), processor, on_bad_image="ignore")
    with pytest.raises(ValueError, match="None of the 2 images"):
        image_arrays(corpus(2, replace={0: None, 1: None}), processor, on_bad_image="skip")
    with pytest.raises(ValueError, match="do_resize"):
        image_arrays(corpus(), AutoencoderImageProcessor(do_resize=False))


# ---- batches


def arrays_of(num_rows: int = NUM_ROWS, labels: bool = True) -> ImageArrays:
    images = np.arange(num_rows, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(4, axis=3)
    return ImageArrays(images=images, labels=np.arange(num_rows) * 10 if labels else None)


def stream_of(num_rows: int = NUM_ROWS) -> datasets.IterableDataset:
    return corpus(num_rows).add_column("row", list(range(num_rows))).to_iterable_dataset(num_shards=4)


def make_batches(kind: str, processor, batch_size: int, **options):
    options = {"shuffle": True, "seed": 3, "drop_last": False, **options}
    if kind == "arrays":
        return ImageBatches(arrays_of(), batch_size, **options)
    return StreamingImageBatches(stream_of(), processor, batch_size, label_column="row", buffer_size=8, **options)


def rows_of(batches) -> list[list[int]]:
    return [batch["labels"].tolist() for batch in batches]


KINDS = ("arrays", "stream")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_ranks_together_are_the_single_process(kind, processor, drop_last, num_processes):
    single = rows_of(make_batches(kind, processor, 7, drop_last=drop_last))
    assert [len(batch) for batch in single] == [7, 7, 7] + ([] if drop_last else [4])
    ranks = [
        rows_of(make_batches(kind, processor, 7, drop_last=drop_last, process_index=rank, num_processes=num_processes))
        for rank in range(num_processes)
    ]
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == single
    sizes = [[len(part) for part in parts] for parts in zip(*ranks, strict=True)]
    assert all(max(parts) - min(parts) <= 1 and min(parts) >= 1 for parts in sizes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_resume_is_exact(kind, processor, shuffle):
    for epoch in (0, 4):
        batches = make_batches(kind, processor, 4, shuffle=shuffle)
        batches.set_epoch(epoch)
        whole = list(batches)
        for start in (0, 1, 5, 7):
            again = make_batches(kind, processor, 4, shuffle=shuffle)
            again.set_epoch(epoch)
            rest = list(again.iterate(start_batch=start))
            assert len(rest) == 7 - start
            for left, right in zip(whole[start:], rest, strict=True):
                assert torch.equal(left["images"], right["images"]) and torch.equal(left["labels"], right["labels"])


@pytest.mark.parametrize("kind", KINDS)
def test_order_depends_on_seed_and_epoch_alone(kind, processor):
    def epoch(number, seed=3, shuffle=True):
        batches = make_batches(kind, processor, 5, seed=seed, shuffle=shuffle)
        batches.set_epoch(number)
        return rows_of(batches)

    torch.manual_seed(1)
    np.random.seed(1)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    orders = [epoch(0), epoch(1), epoch(0, seed=4)]
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    torch.manual_seed(2)
    assert epoch(0) == orders[0] and orders[0] != orders[1] and orders[0] != orders[2]
    everything = list(range(0, NUM_ROWS * 10, 10)) if kind == "arrays" else list(range(NUM_ROWS))
    assert sum(epoch(0, shuffle=False), []) == sum(epoch(5, shuffle=False), []) == everything
    assert all(sorted(sum(order, [])) == everything for order in orders)


def test_batches_hold_the_right_rows():
    batches = ImageBatches(arrays_of(), 4, shuffle=True, seed=0, drop_last=False)
    assert len(batches) == 7
    for index, batch in enumerate(batches):
        rows = batches.rows(index)
        assert batch["images"].dtype == torch.uint8 and batch["images"].shape == (len(rows), 1, 1, 4)
        assert torch.equal(batch["images"][:, 0, 0, 0].long(), rows) and torch.equal(batch["labels"], rows * 10)
    assert "labels" not in next(iter(ImageBatches(arrays_of(labels=False), 4, shuffle=False, seed=0, drop_last=True)))
    batch["images"].zero_()  # a batch is a copy: the corpus stays as it is
    assert torch.equal(batches.images[:, 0, 0, 0].long(), torch.arange(NUM_ROWS))


def test_an_epoch_under_way_keeps_its_order():
    batches = ImageBatches(arrays_of(), 5, shuffle=True, seed=0, drop_last=False)
    expected = rows_of(batches)
    iterator = iter(batches)
    first = next(iterator)["labels"].tolist()
    batches.set_epoch(1)
    assert [first, *rows_of(iterator)] == expected


@pytest.mark.parametrize(
    "num_rows, batch_size, options, message",
    [
        (0, 4, {}, "empty"),
        (3, 4, {"drop_last": True}, "3 images make no full batch of 4"),
        (25, 0, {}, "batch_size must be at least 1"),
        (25, 4, {"seed": -1}, "seed must not be negative"),
        (25, 1, {"num_processes": 2}, "global batch of 1 cannot be shared by 2 processes"),
        (25, 4, {"num_processes": 2}, "last batch of 25 images has 1 of 4, fewer than the 2 processes.*drop_last"),
        (25, 4, {"process_index": 2, "num_processes": 2}, "process_index must be in 0..1"),
    ],
)
def test_impossible_batches_are_refused(num_rows, batch_size, options, message):
    with pytest.raises(ValueError, match=message):
        ImageBatches(arrays_of(num_rows), batch_size, **{"shuffle": False, "seed": 0, "drop_last": False, **options})


def test_a_start_beyond_the_epoch_is_refused():
    batches = ImageBatches(arrays_of(), 5, shuffle=False, seed=0, drop_last=False)
    assert list(batches.iterate(5)) == []
    with pytest.raises(ValueError, match="start_batch must be in 0..5"):
        batches.iterate(6)


def test_image_arrays_check_their_parts():
    with pytest.raises(ValueError, match="must be uint8.*float32"):
        ImageArrays(images=np.zeros((2, 1, 3, 3), np.float32))
    with pytest.raises(ValueError, match="labels has 3 entries for 2 images"):
        ImageArrays(images=np.zeros((2, 1, 3, 3), np.uint8), labels=np.zeros(3))


# ---- streams


def stream_batches(stream, processor, **options):
    return StreamingImageBatches(stream, processor, 5, **{"shuffle": False, "seed": 0, "drop_last": False, **options})


def test_a_stream_gives_the_pixels_of_the_arrays(processor):
    batches = stream_batches(corpus().to_iterable_dataset(), processor)
    got = list(batches)
    assert (np.concatenate([batch["images"].numpy() for batch in got]) == PIXELS).all()
    assert torch.cat([batch["labels"] for batch in got]).tolist() == [row % 2 for row in range(NUM_ROWS)]
    assert batches.label_names == ["even", "odd"]
    with pytest.raises(TypeError, match="length of a stream is unknown"):
        len(batches)
    assert len(stream_batches(corpus().to_iterable_dataset(), processor, num_rows=NUM_ROWS)) == 5


def test_a_stream_decodes_only_its_own_slice_and_nothing_before_the_resume(processor, monkeypatch):
    decoded = []
    decode = AutoencoderImageProcessor.to_uint8
    monkeypatch.setattr(AutoencoderImageProcessor, "to_uint8", lambda *args: decoded.append(1) or decode(*args))
    batches = stream_batches(corpus().to_iterable_dataset(), processor, process_index=1, num_processes=2)
    list(batches.iterate(start_batch=3))
    assert len(decoded) == 6


def test_bad_images_of_a_stream(processor):
    stream = corpus(replace={7: None, 8: {"bytes": b"x", "path": None}}).to_iterable_dataset()
    with pytest.raises(BadImageError, match=r"row 7 of the stream \(epoch 0\), column 'image'.*missing"):
        list(stream_batches(stream, processor))
    batches = stream_batches(stream, processor, on_bad_image="skip")
    assert [len(batch["images"]) for batch in batches] == [5, 3, 5, 5, 5] and batches.skipped == [7, 8]
    assert [len(batch["labels"]) for batch in batches.iterate(1)] == [3, 5, 5, 5] and batches.skipped == [7, 8]
    hopeless = corpus(5, replace=dict.fromkeys(range(5))).to_iterable_dataset()
    with pytest.raises(BadImageError, match="5 of the images in rows 0..4 of the stream are bad: 0 are left"):
        list(stream_batches(hopeless, processor, on_bad_image="skip"))


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_skipping_ranks_share_the_good_rows_evenly_and_know_their_number(processor, num_processes):
    bad = dict.fromkeys([0, 1, 2, 7, 8])
    ranks = []
    for rank in range(num_processes):
        stream = corpus(NUM_ROWS, replace=bad).add_column("row", list(range(NUM_ROWS))).to_iterable_dataset()
        shard = {"process_index": rank, "num_processes": num_processes, "label_column": "row"}
        batches = StreamingImageBatches(
            stream, processor, 8, shuffle=False, seed=0, drop_last=True, on_bad_image="skip", **shard
        )
        ranks.append(list(batches))
        assert batches.skipped == [0, 1, 2, 7, 8]
    together = [sum((part["labels"].tolist() for part in parts), []) for parts in zip(*ranks, strict=True)]
    assert together == [[3, 4, 5, 6], list(range(9, 16)), list(range(16, 24))]
    for parts in zip(*ranks, strict=True):
        sizes = [len(part["images"]) for part in parts]
        assert max(sizes) - min(sizes) <= 1 and {part["global_size"] for part in parts} == {sum(sizes)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_says_how_many_images_all_ranks_have(kind, processor):
    for rank in (0, 1, 2):
        batches = make_batches(kind, processor, 7, process_index=rank, num_processes=3)
        assert [batch["global_size"] for batch in batches] == [7, 7, 7, 4]


def test_wrong_streams_are_refused(processor, caplog):
    with pytest.raises(TypeError, match="IterableDataset .*got Dataset"):
        stream_batches(corpus(), processor)
    with pytest.raises(ValueError, match="no rows: the corpus is empty"):
        nothing = datasets.IterableDataset.from_generator(lambda: iter(()), features=corpus().features)
        list(stream_batches(nothing, processor))
    with pytest.raises(ValueError, match="no column 'x' for the images"):
        stream_batches(corpus().to_iterable_dataset(), processor, image_column="x")
    ranks = [
        stream_batches(corpus(11).to_iterable_dataset(), processor, process_index=rank, num_processes=2)
        for rank in (0, 1)
    ]
    assert [len(list(rank)) for rank in ranks] == [2, 2]  # the eleventh row is nobody's
    assert "last 1 rows of the stream are dropped" in caplog.text


def test_a_generator_without_known_columns_can_stream(processor):
    def rows(stored):
        for row in range(7):
            yield {"image": png(picture(row)) if stored else PIL.Image.fromarray(picture(row)), "label": row}

    def stream(stored, **options):
        return datasets.IterableDataset.from_generator(rows, gen_kwargs={"stored": stored}, **options)

    got = list(stream_batches(stream(True), processor))
    assert (np.concatenate([batch["images"].numpy() for batch in got]) == PIXELS[:7]).all()
    with pytest.raises(ValueError, match="make it with features="):
        stream_batches(stream(False), processor)
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    got = list(stream_batches(stream(False, features=features), processor))
    assert (np.concatenate([batch["images"].numpy() for batch in got]) == PIXELS[:7]).all()


# ---- pixels


def test_to_pixel_values_is_exact():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    values = to_pixel_values(images, "cpu")
    assert values.dtype == torch.float32 and torch.equal(values, images / 255)
    assert torch.equal((values * 255).round().to(torch.uint8), images)
    with pytest.raises(TypeError, match="uint8.*got dtype torch.float32"):
        to_pixel_values(values)
