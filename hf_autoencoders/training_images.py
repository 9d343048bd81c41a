"""Training runs on images: corpus, pictures at each evaluation, and measurements and latents of the finished model.

Everything else about a run is in `training_run`.
"""

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps

from .data.corpora import load_corpus
from .data.images import (
    ImageArrays,
    ImageBatches,
    StreamingImageBatches,
    find_factor_columns,
    find_image_column,
    image_arrays,
    to_pixel_values,
)
from .data.tables import load_tables
from .evaluation.evaluate import evaluate_model
from .evaluation.factors import corpus_factors
from .evaluation.latent_report import report_beside
from .evaluation.pictures import image_grid, reconstruction_grid
from .evaluation.tables import evaluate_table
from .models.image_processing_autoencoder import AutoencoderImageProcessor
from .publishing import shows_latent_report
from .training_arguments import without_folder
from .training_parts import ImageBatch
from .training_run import TrainingError, TrainingRun, as_training_error, read_rows

REPORT_ROWS, REPORT_IMAGES = 2_000, 3  # of the latent report of a finished model


class ImageTrainingRun(TrainingRun):
    """A run whose batches have `pixel_values`.

    Attributes, beside those of every run:
        train, validation: the decoded images, with their factors in `extra` (of a corpus that is not streamed).
        rows_skipped: unreadable images that were due in a step, of a stream; in each epoch anew.
    """

    row = "image"

    def _load_corpus(self) -> None:
        corpus, options, accelerator = self.arguments.corpus, self.options, self.accelerator
        columns = {
            "image_column": corpus.image_column,
            "label_column": corpus.label_column,
            "on_bad_image": corpus.on_bad_image,
        }
        shard = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
        shuffled = {"shuffle": True, "seed": options.seed, "drop_last": True}
        if corpus.table:
            self._load_table()
            return
        with accelerator.main_process_first(), as_training_error():  # the others find the decoded images on disk
            splits = load_corpus(
                corpus.dataset,
                corpus.dataset_config_name,
                revision=corpus.dataset_revision,
                streaming=corpus.streaming,
                validation_fraction=corpus.validation_fraction,
            )
            self._choose_config(splits["train"])
            # of a model that takes any size, too, the images are of one size here
            reader = AutoencoderImageProcessor.for_model(self.config, do_resize=True)
            if corpus.streaming:
                self.train, self.validation = (
                    _read_stream(splits[name], reader, corpus.max_streamed_images, columns)
                    for name in ("train", "validation")
                )
            else:
                self.train, self.validation = (
                    image_arrays(
                        splits[name],
                        reader,
                        extra_columns=find_factor_columns(splits[name].features, corpus.factor_columns),
                        cache_dir=corpus.cache_dir,
                        **columns,
                    )
                    for name in ("train", "validation")
                )
        with as_training_error():
            self._choose_rows(splits)
            if corpus.streaming:
                self.batches = StreamingImageBatches(
                    splits["train"], reader, options.batch_size, **shuffled, **shard, **columns
                )
            else:
                self.batches = ImageBatches(self.train, options.batch_size, **shuffled, **shard)
            self._batch_validation()

    def _batch_validation(self) -> None:
        size, num_processes = self.options.eval_batch_size, self.accelerator.num_processes
        while 0 < len(self.validation) % size < num_processes < size:
            size -= 1  # a last batch with fewer images than processes leaves one with nothing to do
        shard = {"process_index": self.accelerator.process_index, "num_processes": num_processes}
        self._validation_batches = ImageBatches(self.validation, size, shuffle=False, seed=0, drop_last=False, **shard)

    def _load_table(self) -> None:
        """Set what `_load_corpus` sets, of rows of a table; `train` and `validation` are `TableRows`."""
        corpus, options, accelerator = self.arguments.corpus, self.options, self.accelerator
        if corpus.streaming:
            raise TrainingError("--table reads the whole table: leave out --streaming")
        with as_training_error():
            tables, self.processor = load_tables(
                corpus.dataset,
                corpus.dataset_config_name,
                revision=corpus.dataset_revision,
                columns=corpus.table_columns,
                label_column=corpus.label_column,
                validation_fraction=corpus.validation_fraction,
            )
            self.train, self.validation = tables["train"], tables["validation"]
            self.config = self._make_config(self.arguments.model, {"num_features": len(self.processor.columns)})
            self._choose_rows({})
            self.batches = ImageBatches(
                self.train,
                options.batch_size,
                shuffle=True,
                seed=options.seed,
                drop_last=True,
                process_index=accelerator.process_index,
                num_processes=accelerator.num_processes,
            )
            self._batch_validation()

    def _choose_rows(self, splits: dict[str, Any]) -> None:
        """Leave rows out of `train` and `validation`, which were made of these datasets."""

    def _choose_config(self, dataset) -> None:
        """The model's configuration, with the corpus's image size and channels if none are given, and its processor."""
        fields = dict(self.arguments.model)
        if not self.options.model_name_or_path and not {"image_size", "num_channels"} <= set(fields):
            fields = _image_format(dataset, self.arguments.corpus.image_column) | fields
        self.config = self._make_config(fields)
        self.processor = AutoencoderImageProcessor.for_model(self.config)

    @property
    def epoch_steps(self) -> float | None:
        """Optimizer steps in one pass over the data; None for a stream, whose length is not known."""
        return None if self.arguments.corpus.streaming else super().epoch_steps

    def _corpus_settings(self) -> dict[str, Any]:
        skipped = len(self.train.skipped) + len(self.validation.skipped)
        return super()._corpus_settings() | {"unreadable images left out": skipped}

    def _make_batch(self, rows: dict[str, Any], global_size: int, seed: tuple[int, ...]) -> ImageBatch:
        index, world = self.accelerator.process_index, self.accelerator.num_processes
        where = slice(global_size * index // world, global_size * (index + 1) // world)
        images = rows["images"]
        pixel_values = images.to(self.device) if self.config.num_features else to_pixel_values(images, self.device)
        return ImageBatch(pixel_values=pixel_values, rows=where, global_size=global_size, seed=seed)

    def validation_batches(self) -> Iterator[ImageBatch]:
        """This process's part of the validation split, in order; nothing is dropped."""
        total, size = len(self.validation), self._validation_batches.batch_size
        for index, rows in enumerate(self._validation_batches):
            yield self._make_batch(rows, min(size, total - index * size), (self.options.seed, 0, index))

    def _show(self, model: torch.nn.Module) -> None:
        pictures = self.pictures(model)
        if not self.is_main:
            return
        (self.output_dir / "images").mkdir(exist_ok=True)
        for name, picture in pictures.items():
            picture.save(self.output_dir / "images" / f"{name}-{self.step:08d}.png")
            for tracker in self.accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    tracker.log_images({name: np.asarray(picture.convert("RGB"))[None]}, step=self.step)

    def _described_corpus(self) -> dict[str, str]:
        """What the finished model is measured on."""
        corpus = self.arguments.corpus
        described = {"name": without_folder(corpus.dataset), "split": "validation"}
        described |= {"config_name": corpus.dataset_config_name} if corpus.dataset_config_name else {}
        return described | ({"revision": corpus.dataset_revision} if corpus.dataset_revision else {})

    def _measure(self, model: torch.nn.Module) -> dict[str, Any]:
        if self.config.num_features:
            return evaluate_table(
                model,
                self.train,
                self.validation,
                corpus=self._described_corpus(),
                seed=self.options.seed,
                command=self.arguments.command,
            )
        return evaluate_model(
            model,
            self.train,
            self.validation,
            corpus=self._described_corpus(),
            num_importance_samples=self.options.num_importance_samples,
            seed=self.options.seed,
            command=self.arguments.command,
        )

    def _write_examples(self, model: torch.nn.Module, folder: Path) -> None:
        for name, picture in self.pictures(model).items():
            picture.save(folder / f"{name}.png")
        if self.options.final_evaluation and self._can_report():
            report_beside(
                model,
                self.validation,
                folder,
                corpus=self._described_corpus(),
                num_images=REPORT_IMAGES,
                max_rows=REPORT_ROWS,
                seed=self.options.seed,
                command=self.arguments.command,
            )

    def _can_report(self) -> bool:
        """Whether to write what each latent means: where the variant's card has a place for it, which those have whose
        latents are made to mean something, and the corpus knows something of its images that can be drawn."""
        if self.config.num_features or not shows_latent_report(self.arguments.variant):
            return False
        if self.config.num_channels not in (1, 3):
            return False
        try:
            rows, _, _ = corpus_factors(self.validation)
        except ValueError:  # no factors, no labels
            return False
        return len(rows) > 0

    def pictures(self, model: torch.nn.Module) -> dict[str, Any]:
        """PIL images by name: validation images over their reconstructions and, where there is a prior, samples.

        Empty for images that are neither grey nor RGB.
        """
        count = min(self.options.num_pictures, len(self.validation))
        if not count or self.config.num_features or self.config.num_channels not in (1, 3):
            return {}
        images = torch.from_numpy(np.array(self.validation.images[:count]))
        pixel_values = to_pixel_values(images, self.device)
        with torch.no_grad():
            reconstruction = model(pixel_values, return_loss=False).reconstruction
            pictures = {"reconstructions": reconstruction_grid(pixel_values, reconstruction)}
            if getattr(model, "has_prior", False):
                generator = torch.Generator(self.device).manual_seed(self.options.seed)
                pictures["samples"] = image_grid(model.sample(count, generator=generator))
        return pictures


def _image_format(dataset, image_column: str | None) -> dict[str, Any]:
    """`image_size` and `num_channels` of the first readable image of a split."""
    import datasets

    if dataset.features is None:  # a stream that has not been looked at
        dataset = dataset._resolve_features()
    column = find_image_column(dataset.features, image_column)
    rows = dataset.select_columns([column])
    if isinstance(dataset.features[column], datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    for row in islice(rows, 100):
        value = row[column]
        with contextlib.suppress(OSError, ValueError, TypeError, SyntaxError):
            value = {"bytes": value, "path": None} if isinstance(value, bytes) else value
            if isinstance(value, dict):
                image = ImageOps.exif_transpose(datasets.Image().decode_example(value))
                channels = 3 if image.mode == "P" or len(image.getbands()) > 2 else 1
                height, width = image.height, image.width
            else:
                array = np.asarray(value)
                height, width = array.shape[-2:] if array.ndim == 2 or array.shape[0] in (1, 3) else array.shape[:2]
                channels = 3 if array.ndim == 3 and 3 in (array.shape[0], array.shape[-1]) else 1
            return {"image_size": height if height == width else [height, width], "num_channels": channels}
    raise TrainingError(
        f"none of the first images of column {column} can be read: give --image_size and --num_channels"
    )


def _read_stream(dataset, processor, limit: int, columns: dict[str, Any]) -> ImageArrays:
    """The first images of a streamed split, in memory."""
    size = min(limit, 64)
    batches = StreamingImageBatches(dataset, processor, size, shuffle=False, seed=0, drop_last=False, **columns)
    images, labels, count = [], [], 0
    for batch in read_rows(iter(batches)):
        images.append(batch["images"].numpy())
        labels.append(batch["labels"].numpy() if "labels" in batch else None)
        count += len(images[-1])
        if count >= limit:
            break
    return ImageArrays(
        images=np.concatenate(images)[:limit],
        labels=None if labels[0] is None else np.concatenate(labels)[:limit],
        label_names=batches.label_names,
        skipped=list(batches.skipped),
    )
