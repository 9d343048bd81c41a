"""Do frozen features know the class? A linear probe, always beside raw pixels and PCA under the same classifier."""

import warnings
from typing import NamedTuple

import numpy as np

from .checks import check_positive

MAX_ITERATIONS = 200
REGULARIZATION_C = 1.0


class ProbeResult(NamedTuple):
    """What a linear probe reached."""

    accuracy: float
    """Share of validation rows classified correctly, in [0, 1]."""
    converged: bool
    """False where the optimiser stopped at its iteration limit before its tolerance."""
    num_iterations: int


def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    *,
    max_iterations: int = MAX_ITERATIONS,
) -> ProbeResult:
    """Train multinomial logistic regression on frozen features and measure its accuracy on other rows.

    Features are standardised with the training rows' mean and deviation (constant features stay 0), then
    scikit-learn's `LogisticRegression(C=1.0, solver="lbfgs", tol=1e-4, max_iter=200)` is fitted in float32: L2
    regularised, deterministic, no hyper-parameter is searched, so the same settings serve every representation.

    Args:
        train_features, validation_features: (rows, ...) numbers; trailing dimensions are flattened.
        train_labels, validation_labels: (rows,) integers.
        max_iterations: limit of the optimiser. The 784 raw pixels of 55,000 MNIST digits converge in about 180; the
            result says whether a fit converged.

    Raises:
        ValueError: rows and labels disagree, features are not finite, or fewer than two classes are present.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    check_positive("max_iterations", max_iterations)
    train_features = _flat_features("train", train_features, train_labels)
    validation_features = _flat_features("validation", validation_features, validation_labels)
    if train_features.shape[1] != validation_features.shape[1]:
        raise ValueError(
            f"train and validation features must have the same size, got {train_features.shape[1]} "
            f"and {validation_features.shape[1]}"
        )
    if len(np.unique(train_labels)) < 2:
        raise ValueError("a linear probe needs at least two classes among the training labels")

    scaler = StandardScaler(copy=False).fit(train_features)  # in place: these are copies of ours
    classifier = LogisticRegression(C=REGULARIZATION_C, solver="lbfgs", tol=1e-4, max_iter=max_iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported in the result
        classifier.fit(scaler.transform(train_features), train_labels)
    accuracy = classifier.score(scaler.transform(validation_features), validation_labels)
    num_iterations = int(np.max(classifier.n_iter_))
    return ProbeResult(float(accuracy), num_iterations < max_iterations, num_iterations)


def _flat_features(split: str, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim < 2 or len(features) == 0 or labels.shape != (len(features),):
        raise ValueError(
            f"{split} features must have shape (rows, ...) and labels (rows,) with at least one row, "
            f"got {features.shape} and {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{split} labels must be integers, got {labels.dtype}")
    features = features.reshape(len(features), -1).astype(np.float32)
    if not np.isfinite(features).all():
        raise ValueError(f"{split} features hold NaN or infinite values")
    return features
