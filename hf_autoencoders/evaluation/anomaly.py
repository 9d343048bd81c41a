"""Does a detector find what is not normal? Ranking, decisions at the stored threshold, and maps.

Beside it, on the same rows, what needs no auto-encoder: reconstruction from principal components, distance to the
nearest training inputs, an isolation forest. All of them see normal training inputs only.
"""

import datetime
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .evaluate import describe_machine, library_versions, variant_name

logger = logging.getLogger(__name__)

PCA_SIZES = (16, 32, 64)  # beside the one with 95% of the variance
NUM_NEIGHBORS, NEIGHBOR_ROWS = 5, 10_000
PRO_LIMIT = 0.3  # of false alarms among normal pixels


def anomaly_metrics(
    scores: np.ndarray, is_anomalous: np.ndarray, flagged: np.ndarray | None = None
) -> dict[str, float]:
    """How well scores tell anomalies from normal inputs.

    Args:
        scores: (rows,), higher is less normal.
        is_anomalous: (rows,) bool, the truth; both kinds must be there.
        flagged: (rows,) bool, what the detector decided.

    Returns:
        `auroc`, `aupr` (average precision; anomalies are the positives); of decisions `f1`, `precision`, `recall` and
        `false_alarm_rate`, the share of normal inputs that was called an anomaly.
    """
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

    scores, truth = np.asarray(scores, np.float64), np.asarray(is_anomalous, bool)
    if scores.shape != truth.shape or scores.ndim != 1:
        raise ValueError(f"expected one score and one truth for each row, got {scores.shape} and {truth.shape}")
    if truth.all() or not truth.any():
        kind = "anomalies" if truth.any() else "normal rows"
        raise ValueError(f"all {len(truth)} rows are {kind}: ranking needs both kinds")
    result = {"auroc": roc_auc_score(truth, scores), "aupr": average_precision_score(truth, scores)}
    if flagged is not None:
        flagged = np.asarray(flagged, bool)
        precision, recall, f1, _ = precision_recall_fscore_support(truth, flagged, average="binary", zero_division=0)
        result |= {"f1": f1, "precision": precision, "recall": recall, "false_alarm_rate": flagged[~truth].mean()}
    return {name: float(value) for name, value in result.items()}


def map_metrics(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """How well maps show where anomalies are.

    Args:
        maps: (rows, height, width), higher is less normal.
        masks: (rows, height, width) bool, anomalous pixels; of normal images none.

    Returns:
        `pixel_auroc`; `pixel_aupr`; `aupro`: the mean over anomalous regions (connected, 8 neighbours) of the share of
        their pixels above a threshold, averaged over thresholds up to those with 30% of the normal pixels above them
        (Bergmann et al. 2020), from 0 to 1.
    """
    from scipy import ndimage
    from sklearn.metrics import average_precision_score, roc_auc_score

    maps, masks = np.asarray(maps, np.float32), np.asarray(masks, bool)
    if maps.shape != masks.shape or maps.ndim != 3:
        raise ValueError(f"expected maps and masks of one shape (rows, height, width), got {maps.shape}, {masks.shape}")
    if masks.all() or not masks.any():
        raise ValueError("the masks are all of one kind: there must be normal and anomalous pixels")
    rates = np.linspace(0, PRO_LIMIT, 301)[1:]
    thresholds = np.quantile(maps[~masks], 1 - rates)
    overlaps = []
    for row in np.flatnonzero(masks.any((1, 2))):
        regions, count = ndimage.label(masks[row], np.ones((3, 3)))
        for region in range(1, count + 1):
            values = np.sort(maps[row][regions == region])
            overlaps.append(1 - np.searchsorted(values, thresholds, side="right") / len(values))
    return {
        "pixel_auroc": float(roc_auc_score(masks.ravel(), maps.ravel())),
        "pixel_aupr": float(average_precision_score(masks.ravel(), maps.ravel())),
        "aupro": float(np.mean(overlaps)),
    }


def baseline_scores(train: np.ndarray, rows: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores (rows,) of methods without an auto-encoder, by name.

    `pca_95` and `pca_16`, `pca_32`, `pca_64`: squared error of the reconstruction from principal components, as many as
    hold 95% of the variance, or that many; `knn`: mean distance to the 5 nearest training inputs, of at most 10,000
    drawn by the seed; `isolation_forest`: of 100 trees.

    Args:
        train, rows: (rows, ...) float or uint8 (taken as values / 255); normal training inputs, and what is scored.
    """
    from sklearn.decomposition import PCA
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import NearestNeighbors

    train, rows = (_flat(part) for part in (train, rows))
    pca = PCA(random_state=seed).fit(train)
    coefficients = pca.transform(rows)
    total = np.square(rows - pca.mean_).sum(1)
    left = total[:, None] - np.cumsum(np.square(coefficients), axis=1)
    enough = int(np.searchsorted(np.cumsum(pca.explained_variance_ratio_), 0.95)) + 1
    scores = {"pca_95": left[:, min(enough, left.shape[1]) - 1]}
    scores |= {f"pca_{size}": left[:, size - 1] for size in PCA_SIZES if size < min(train.shape)}
    chosen = np.random.default_rng(seed).permutation(len(train))[:NEIGHBOR_ROWS]
    neighbors = NearestNeighbors(n_neighbors=min(NUM_NEIGHBORS, len(chosen)), algorithm="brute").fit(train[chosen])
    scores["knn"] = neighbors.kneighbors(rows)[0].mean(1)
    scores["isolation_forest"] = -IsolationForest(random_state=seed).fit(train).score_samples(rows)
    return scores


@torch.no_grad()
def detect_rows(model, rows, batch_size: int = 500) -> dict[str, np.ndarray]:
    """What the model's detector says of inputs (rows, ...), uint8 images or floats as `forward` takes them: `scores`,
    `p_values`, `is_anomaly` and, where there are any, `maps`, as arrays."""
    parts: dict[str, list] = {}
    for batch in model._batches(rows, batch_size):
        for name, value in model.detect(batch).items():
            parts.setdefault(name, []).append(value.cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def evaluate_anomalies(
    model,
    train,
    rows,
    is_anomalous: np.ndarray,
    *,
    masks: np.ndarray | None = None,
    corpus: dict[str, Any],
    batch_size: int = 500,
    seed: int = 0,
    command: str | None = None,
) -> dict[str, Any]:
    """Measure the detector of a model, beside methods without an auto-encoder.

    Args:
        model: with a fitted detector.
        train: its normal training inputs, for the other methods: uint8 images or floats.
        rows, is_anomalous: what is scored, and which of it is not normal. Neither trained nor calibrated on; a
            warning is logged if the normal ones are just those of the calibration.
        masks: (rows, height, width) bool: where, for models with a map.
        corpus: what the rows are, at least `{"name": ..., "split": ...}`.

    Returns:
        As `evaluate_model`: `metrics` are those of [`anomaly_metrics`] and [`map_metrics`]; `baselines` the `auroc` and
        `aupr` of the other methods.
    """
    was_training = model.training
    model.eval()
    try:
        found = detect_rows(model, rows, batch_size)
    finally:
        model.train(was_training)
    if _are_calibration_scores(model, found["scores"][~np.asarray(is_anomalous, bool)]):
        logger.warning(
            "The %d normal rows are those that the detector was calibrated on: how many of them are false alarms says "
            "nothing about new rows. Measure on other rows: another split (--split test, say).",
            model.config.num_calibration_scores,
        )
    metrics = anomaly_metrics(found["scores"], is_anomalous, found["is_anomaly"])
    not_measured = {}
    if masks is not None and "maps" in found:
        metrics |= map_metrics(found["maps"], masks)
    elif masks is not None:
        not_measured["pixel_auroc"] = f"the score {model.config.anomaly_score} has no map"
    baselines = {}
    for name, scores in baseline_scores(train, rows, seed).items():
        ranking = anomaly_metrics(scores, is_anomalous)
        baselines |= {f"{name}_auroc": ranking["auroc"], f"{name}_aupr": ranking["aupr"]}
    config = model.config
    return {
        "model_type": config.model_type,
        "name": variant_name(config.model_type),
        "corpus": {**corpus, "rows": len(rows), "train_rows": len(train)},
        "metrics": metrics,
        "baselines": baselines,
        "not_measured": not_measured,
        "settings": {
            "anomaly_score": config.anomaly_score,
            "nominal_false_alarm_rate": config.false_alarm_rate,
            "calibration_rows": config.num_calibration_scores,
            "anomalous_rows": int(np.sum(is_anomalous)),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "seed": seed,
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": describe_machine(model.device),
        "versions": library_versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _are_calibration_scores(model, scores: np.ndarray) -> bool:
    """Whether these are the calibration scores, but for rounding, which depends on the rows of a batch."""
    calibration = model.detector.calibration_scores.float().cpu().numpy()  # rising
    return scores.shape == calibration.shape and np.allclose(np.sort(scores), calibration, rtol=1e-4, atol=1e-6)


def _flat(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows)
    scale = 255 if rows.dtype == np.uint8 else 1
    return rows.reshape(len(rows), -1).astype(np.float32) / scale
