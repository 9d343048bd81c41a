"""Training runs of anomaly detectors: an auto-encoder learns normal images, held-out ones calibrate its detector.

Everything else about a run on images is in `training_images`.
"""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from .data.images import find_class, load_masks
from .evaluation.anomaly import evaluate_anomalies
from .evaluation.pictures import anomaly_grid
from .models.configuration_base import ANOMALY_SCORES
from .training_arguments import option
from .training_images import ImageTrainingRun
from .training_run import TrainingError

logger = logging.getLogger(__name__)


@dataclass
class AnomalyArguments:
    """What is normal, and how a detector is made of the finished model."""

    normal_class: str | None = option(
        None,
        "Name or number of the class that is normal: only its rows are trained on. All training rows if not given.",
    )
    calibration_fraction: float = option(0.1, "Share of the normal training rows to calibrate on, drawn by the seed.")
    anomaly_score: Literal[ANOMALY_SCORES] = option("latent_neighbors", "Score of the detector.")
    false_alarm_rate: float = option(0.05, "Share of normal images that the detector may call anomalies.")
    num_reference_rows: int = option(5000, "Latents of training images to keep, for `latent_neighbors`.")
    map_smoothing: float = option(0.0, "Pixels (standard deviation) by which maps are smoothed.")
    map_pooling: Literal["mean", "max"] = option("mean", "The score of a map: its mean, or its highest value.")
    mask_column: str | None = option(None, "Column of the validation rows with pictures of where an anomaly is.")


class AnomalyTrainingRun(ImageTrainingRun):
    """A run on normal images.

    Attributes, beside those of every run on images:
        train, validation: normal images only; the loss is of these.
        calibration: normal training images that are not trained on.
        everything: all validation images with a label, which the detector is measured on; `is_anomalous` (rows,) says
            which are not normal, `masks` (rows, height, width), if there are any, where.
        unlabelled: how many validation images are left out since they have no label.
    """

    def _default_output_dir(self) -> str:
        kind = f"-{self.arguments.extra.normal_class}" if self.arguments.extra.normal_class is not None else ""
        return f"runs/anomaly-{self.arguments.corpus.name}{kind}"

    def _choose_rows(self, splits: dict[str, Any]) -> None:
        extra, train, validation = self.arguments.extra, self.train, self.validation
        if self.arguments.corpus.streaming:
            raise TrainingError("a detector is calibrated on rows of the training split: leave out --streaming")
        if extra.mask_column and self.config.num_features:
            raise TrainingError("--mask_column: rows of tables have no maps to compare masks with. Leave it out")
        known = None if validation.labels is None else validation.labels >= 0
        if known is None or not known.any():
            raise TrainingError("the validation rows have no labels: what is an anomaly is known by its class")
        normal = None if extra.normal_class is None else find_class(extra.normal_class, validation.label_names)
        rows = np.arange(len(train))
        if normal is not None:
            rows = np.flatnonzero(train.labels == normal)
        elif train.labels is not None:
            present = np.unique(train.labels[train.labels >= 0])
            if len(present) > 1:
                raise TrainingError(
                    f"the training rows are of {len(present)} classes: say by --normal_class which of them is normal"
                )
            normal = int(present[0]) if len(present) else None
            rows = rows if normal is None else np.flatnonzero(train.labels == normal)
        if normal is None:
            raise TrainingError(
                "the training rows have no labels, so which class is normal is not known: label them with one class, "
                "or label all rows and say by --normal_class which of them is normal"
            )
        if not len(rows):
            raise TrainingError(
                f"--normal_class {extra.normal_class}: no training row is of this class. Give one that the training "
                "rows have, or label them"
            )
        rows = np.random.default_rng(self.options.seed).permutation(rows)
        held_out = round(extra.calibration_fraction * len(rows))
        if not 0 < held_out < len(rows):
            raise TrainingError(
                f"--calibration_fraction {extra.calibration_fraction} of {len(rows)} normal training rows is "
                f"{held_out}: some rows must be left on both sides"
            )
        if (held_out + 1) * extra.false_alarm_rate < 1:
            raise TrainingError(
                f"{held_out} calibration rows cannot tell a false alarm rate of {extra.false_alarm_rate}: raise "
                "--calibration_fraction or --false_alarm_rate"
            )
        self.calibration, self.train = train.select(np.sort(rows[:held_out])), train.select(np.sort(rows[held_out:]))
        self.unlabelled = int((~known).sum())
        if self.unlabelled and self.accelerator.is_main_process:
            logger.warning(
                "%d of %d validation rows have no label, and are left out of measuring.", self.unlabelled, len(known)
            )
        self.everything = validation.select(known) if self.unlabelled else validation
        self.is_anomalous = self.everything.labels != normal
        if self.is_anomalous.all() or not self.is_anomalous.any():
            kind = "normal" if self.is_anomalous.all() else "anomalous"
            raise TrainingError(
                f"the validation split has no row that is {kind}, of {len(self.everything)} with a label: nothing can "
                "be measured. Choose another --normal_class, or a corpus whose validation split has both kinds"
            )
        self.masks = None
        if extra.mask_column:
            size = self.config.input_shape[1:]
            self.masks = load_masks(splits["validation"], extra.mask_column, size, validation.skipped)[known]
        self.validation = self.everything.select(~self.is_anomalous)

    def _complete(self, model: torch.nn.Module) -> None:
        extra = self.arguments.extra
        try:
            model.fit_detector(
                self.train.images,
                self.calibration.images,
                score=extra.anomaly_score,
                false_alarm_rate=extra.false_alarm_rate,
                num_reference_rows=extra.num_reference_rows,
                map_smoothing=extra.map_smoothing,
                map_pooling=extra.map_pooling,
                batch_size=self.options.eval_batch_size,
            )
        except ValueError as error:
            raise TrainingError(f"no detector can be fitted: {error}") from error

    def _measure(self, model: torch.nn.Module) -> dict[str, Any]:
        normal = self.arguments.extra.normal_class
        described = self._described_corpus() | ({"normal_class": normal} if normal is not None else {})
        if self.unlabelled:
            described["unlabelled_rows"] = self.unlabelled
        return evaluate_anomalies(
            model,
            self.train.images,
            self.everything.images,
            self.is_anomalous,
            masks=self.masks,
            corpus=described,
            batch_size=self.options.eval_batch_size,
            seed=self.options.seed,
            command=self.arguments.command,
        )

    def _write_examples(self, model: torch.nn.Module, folder) -> None:
        super()._write_examples(model, folder)
        if not model.config.num_features and model.config.num_channels in (1, 3):
            anomalies = np.flatnonzero(self.is_anomalous)
            rows = np.concatenate(
                [np.flatnonzero(~self.is_anomalous)[:4], anomalies[:: max(1, len(anomalies) // 8)][:8]]
            )
            masks = None if self.masks is None else self.masks[rows]
            anomaly_grid(model, self.everything.images[rows], masks).save(folder / "anomalies.png")
