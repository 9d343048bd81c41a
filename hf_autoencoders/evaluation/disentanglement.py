"""Does each dimension of a code stand for one factor of the data? Six measures, and linear codes to compare with.

    mutual_information_gap   one dimension knows a factor, and the second best knows much less of it
    dci                      importances of a predictor: one factor per dimension, one dimension per factor
    sap_score                one dimension alone tells a factor by a line, and the second best does not
    factor_vae_score         where a factor is held fixed, one and the same dimension varies least
    beta_vae_score           where a factor is held fixed, a linear classifier sees which one
    modularity               a dimension knows of one factor only
    disentanglement_metrics  all of them by name
    pca_codes, ica_codes     codes without a model

All are functions of `codes` (rows, num_dims), e.g. posterior means or bits, and of the true `factors` (rows,
num_factors), whole numbers. Formulas and sample sizes are those of Locatello et al. 2019,
https://arxiv.org/abs/1811.12359, with these departures, for all of them: rows are given, not drawn from a simulator, so
batches that share a factor's value are drawn from the given rows, with replacement, values as frequent as among these;
and up to rounding no result depends on the scale or sign of a dimension, except for which ones count as active.

Every measure is of its own scale, and most are less than 1 for a perfect code and more than 0 for a random one (each
says when): compare models with each other, with `pca_codes`, and never one measure with another.
"""

import warnings
from typing import NamedTuple

import numpy as np

from .baselines import PCA, fit_pca
from .checks import check_positive

NUM_BINS = 20
NUM_TRAIN, NUM_EVAL = 10_000, 5_000  # rows, or batches, that a classifier learns from and is measured on
BATCH_SIZE = 64  # rows that share a factor's value
MIN_VARIANCE = 0.05  # of an active dimension, over all rows
NUM_TREES, MAX_DEPTH, MIN_LEAF = 10, 12, 4  # of the random forests of `dci`
SVM_C = 0.01
NUM_COMPONENTS = 10  # of PCA and ICA
BATCHES_AT_ONCE = 500


# Mutual information


class MutualInformationGap(NamedTuple):
    """How far the dimension that knows most of a factor is ahead of the second."""

    mean: float
    """MIG: mean of the gaps, in [0, 1]"""
    gaps: np.ndarray
    """(num_factors,) float64 in [0, 1], shares of the factor's entropy"""


def discretize(codes: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Each dimension cut into bins of equal width between its least and largest value; a constant one is one bin.

    Args:
        codes: (rows, num_dims) numbers.
        num_bins: number of bins.

    Returns:
        (rows, num_dims) int64 in 0 .. num_bins - 1.
    """
    check_positive("num_bins", num_bins)
    codes = _check_codes(codes)
    lowest, width = codes.min(axis=0), np.ptp(codes, axis=0)
    shares = (codes - lowest) / np.where(width > 0, width, 1)
    return np.minimum((shares * num_bins).astype(np.int64), num_bins - 1)


def mutual_information(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Mutual information of each pair of columns in nats, from their frequencies: (num_dims, num_factors) float64 >= 0.

    Such an estimate is too high by about (values of the one - 1)(values of the other - 1) / (2 rows) nats.

    Args:
        codes: (rows, num_dims) whole numbers >= 0, e.g. from `discretize`.
        factors: (rows, num_factors) whole numbers >= 0.
    """
    code_sizes, factor_sizes = codes.max(axis=0) + 1, factors.max(axis=0) + 1
    result = np.empty((codes.shape[1], factors.shape[1]))
    for i, code_size in enumerate(code_sizes):
        for j, factor_size in enumerate(factor_sizes):
            table = np.bincount(codes[:, i] * factor_size + factors[:, j], minlength=code_size * factor_size)
            table = table.reshape(code_size, factor_size)
            parts = _entropy(table.sum(axis=1)), _entropy(table.sum(axis=0)), _entropy(table)
            result[i, j] = max(parts[0] + parts[1] - parts[2], 0.0)
    return result


def normalized_mutual_information_matrix(
    codes: np.ndarray, factors: np.ndarray, *, num_bins: int = NUM_BINS
) -> np.ndarray:
    """Which share of each factor does each dimension know? Mutual information over the factor's entropy.

    Args:
        codes: (rows, num_dims) numbers; cut into `num_bins` bins of equal width.
        factors: (rows, num_factors) whole numbers.

    Returns:
        (num_dims, num_factors) float64 in [0, 1].

    Raises:
        ValueError: NaN, other shapes, or a factor with a single value.
    """
    codes, factors = _check(codes, factors)
    entropies = np.array([_entropy(np.bincount(column)) for column in factors.T])
    return np.minimum(mutual_information(discretize(codes, num_bins), factors) / entropies, 1.0)


def mutual_information_gap(codes: np.ndarray, factors: np.ndarray, *, num_bins: int = NUM_BINS) -> MutualInformationGap:
    """Chen et al. 2018, "Isolating sources of disentanglement", https://arxiv.org/abs/1802.04942.

    A perfect code scores 1 where a factor has at most `num_bins` values, log(num_bins) / log(values) for more equally
    frequent ones; independent codes score about 0. A code that spreads a factor over two dimensions scores 0, even if
    both serve nothing else. As in Locatello et al., histograms take the place of the posterior; all rows given are
    used, where they draw 10,000.

    Args:
        codes: (rows, num_dims) numbers, at least two dimensions.
        factors: (rows, num_factors) whole numbers.
        num_bins: bins of each dimension.

    Raises:
        ValueError: NaN, other shapes, or a factor with a single value.
    """
    _check(codes, factors, min_dims=2)
    information = np.sort(normalized_mutual_information_matrix(codes, factors, num_bins=num_bins), axis=0)
    gaps = information[-1] - information[-2]
    return MutualInformationGap(float(gaps.mean()), gaps)


def modularity(codes: np.ndarray, factors: np.ndarray, *, num_bins: int = NUM_BINS) -> float:
    """Ridgeway and Mozer 2018, "Learning deep disentangled embeddings", https://arxiv.org/abs/1802.05312.

    Mean over dimensions of 1 - (sum of the squares of its information on the other factors) / (square of its largest x
    (num_factors - 1)), in [0, 1]. 1 where every dimension knows of one factor; it does not ask whether all factors are
    there, nor how much is known. As in Locatello et al. a dimension without any information (a constant) counts 0;
    pure noise counts anything, as its information is that of chance.

    Args:
        codes: (rows, num_dims) numbers; cut into `num_bins` bins of equal width.
        factors: (rows, num_factors) whole numbers, at least two factors.

    Raises:
        ValueError: NaN, other shapes, or a factor with a single value.
    """
    codes, factors = _check(codes, factors, min_factors=2)
    squares = np.square(mutual_information(discretize(codes, num_bins), factors))
    largest = squares.max(axis=1)
    informed = largest > 1e-20  # beyond the rounding of entropies
    others = squares.sum(axis=1) - largest
    scores = np.where(informed, 1 - others / np.where(informed, largest * (factors.shape[1] - 1), 1), 0.0)
    return float(scores.mean())


# Predictors


class DCI(NamedTuple):
    """What a predictor of the factors finds important."""

    disentanglement: float
    """In [0, 1]; 1 where each dimension serves one factor"""
    completeness: float
    """In [0, 1]; 1 where each factor is served by one dimension"""
    informativeness: float
    """Accuracy on held-out rows, mean over factors, in [0, 1]"""
    importances: np.ndarray
    """(num_dims, num_factors) float64, each column sums to 1"""


def dci(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    seed: int = 0,
    num_train: int = NUM_TRAIN,
    num_eval: int = NUM_EVAL,
) -> DCI:
    """Eastwood and Williams 2018, "A framework for the quantitative evaluation of disentangled representations".

    https://openreview.net/forum?id=By-7dz-AZ. A random forest predicts each factor from all dimensions; disentanglement
    is 1 - the entropy (base num_factors) of a dimension's importances, weighted by how important the dimension is,
    completeness 1 - the entropy (base num_dims) of a factor's. Forests as in the paper, since the gradient boosting of
    Locatello et al. takes minutes; not as in the paper, whose depth is searched, all have 10 trees of at most 12 levels
    with at least 4 rows in a leaf, and are classifiers, so that informativeness is an accuracy (as in Locatello et
    al.), not an error. Perfect codes score 1, random ones about 0 and an accuracy near chance. Importances of a factor
    sum to 1 even where no dimension knows it, and then lower both scores.

    Args:
        codes: (rows, num_dims) numbers, at least two dimensions.
        factors: (rows, num_factors) whole numbers, at least two factors.
        seed: of the split into rows to learn from and to measure on (two to one), and of the forests.
        num_train, num_eval: at most so many rows.

    Raises:
        ValueError: NaN, other shapes, a factor with a single value, or fewer than 30 rows.
    """
    from sklearn.ensemble import RandomForestClassifier

    codes, factors = _check(codes, factors, min_dims=2, min_factors=2)
    train, measured = _split(len(codes), num_train, num_eval, seed)
    importances, accuracies = np.zeros((codes.shape[1], factors.shape[1])), []
    for index, column in enumerate(factors.T):
        forest = RandomForestClassifier(
            NUM_TREES, max_depth=MAX_DEPTH, min_samples_leaf=MIN_LEAF, max_features=None, random_state=seed
        )
        forest.fit(codes[train], column[train])
        accuracies.append(forest.score(codes[measured], column[measured]))
        importances[:, index] = forest.feature_importances_
    return DCI(
        disentanglement=_one_minus_entropy(importances),
        completeness=_one_minus_entropy(importances.T),
        informativeness=float(np.mean(accuracies)),
        importances=importances,
    )


def _one_minus_entropy(importances: np.ndarray) -> float:
    """1 - entropy of each row (base: its length), weighted by the rows' sums."""
    sums = importances.sum(axis=1)
    if sums.sum() == 0:
        return 0.0  # nothing tells anything
    shares = importances[sums > 0] / sums[sums > 0, None]
    logs = np.log(np.where(shares > 0, shares, 1))
    scores = 1 + (shares * logs).sum(axis=1) / np.log(importances.shape[1])
    return float((scores * sums[sums > 0]).sum() / sums.sum())


class SAP(NamedTuple):
    """How far the dimension that tells a factor best is ahead of the second."""

    score: float
    """Mean over factors of the difference between the two best accuracies, in [0, 1)"""
    accuracies: np.ndarray
    """(num_dims, num_factors) float64 in [0, 1], of each dimension alone, on held-out rows"""


def sap_score(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    seed: int = 0,
    num_train: int = NUM_TRAIN,
    num_eval: int = NUM_EVAL,
) -> SAP:
    """Kumar et al. 2018, "Variational inference of disentangled latent concepts", https://arxiv.org/abs/1711.00848.

    A linear support vector machine (one class against the rest, squared hinge loss, C = 0.01, balanced classes, as in
    Locatello et al.) predicts each factor from each dimension alone. Its primal problem, of two unknowns, is solved
    (Locatello et al. solve the dual one, which has an unknown per row, and takes minutes), on standardised dimensions.

    The other dimensions of a perfect code guess, so its score is 1 - chance for a factor of two values, 0.5, and less
    where the values are many: a line cannot cut out the middle ones. Random codes score about 0. So does a factor of
    which the rows to learn from have a single value, which all dimensions guess alike.

    Args:
        codes: (rows, num_dims) numbers, at least two dimensions.
        factors: (rows, num_factors) whole numbers.
        seed: of the split into rows to learn from and to measure on (two to one).
        num_train, num_eval: at most so many rows.

    Raises:
        ValueError: NaN, other shapes, a factor with a single value, or fewer than 30 rows.
    """
    from sklearn.svm import LinearSVC

    codes, factors = _check(codes, factors, min_dims=2)
    codes = _standardized(codes)
    train, measured = _split(len(codes), num_train, num_eval, seed)
    accuracies = np.empty((codes.shape[1], factors.shape[1]))
    for j, column in enumerate(factors.T):
        values = np.unique(column[train])
        if len(values) < 2:  # nothing to tell apart: each dimension guesses the one value, as a forest of `dci` does
            accuracies[:, j] = (column[measured] == values[0]).mean()
            continue
        for i in range(codes.shape[1]):
            dimension = codes[:, i : i + 1]
            machine = LinearSVC(C=SVM_C, class_weight="balanced", dual=False).fit(dimension[train], column[train])
            accuracies[i, j] = machine.score(dimension[measured], column[measured])
    ordered = np.sort(accuracies, axis=0)
    return SAP(float((ordered[-1] - ordered[-2]).mean()), accuracies)


# Batches that share a factor's value


class FactorVAEScore(NamedTuple):
    """Accuracies of telling the fixed factor from the dimension that varies least."""

    eval_accuracy: float
    """The score, in [0, 1]"""
    train_accuracy: float
    num_active_dims: int
    """Dimensions that took part, of variance at least `min_variance`"""


def factor_vae_score(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    seed: int = 0,
    min_variance: float = MIN_VARIANCE,
    batch_size: int = BATCH_SIZE,
    num_train: int = NUM_TRAIN,
    num_eval: int = NUM_EVAL,
) -> FactorVAEScore:
    """Kim and Mnih 2018, "Disentangling by factorising", https://arxiv.org/abs/1802.05983.

    Rows of a batch share the value of one factor. The batch votes for the dimension of the lowest variance relative to
    that of all rows; a dimension is then taken for the factor that most of its votes came from. 1 for a perfect code,
    1 / num_factors for a random one. Dimensions of low variance over all rows are left out; without any the score is 0.

    Args:
        codes: (rows, num_dims) numbers.
        factors: (rows, num_factors) whole numbers, at least two factors.
        seed: of the batches.
        min_variance: of a dimension that counts as active: 0.05 as in Locatello et al., meant for posterior means under
            a prior of variance 1. 0 keeps all but constants.
        batch_size: rows that share a factor's value.
        num_train, num_eval: batches that name the dimensions, and that are guessed.

    Raises:
        ValueError: NaN, other shapes, or a factor with a single value, or without a value that is shared.
    """
    codes, factors = _check(codes, factors, min_factors=2)
    for name, value in (("num_train", num_train), ("num_eval", num_eval), ("batch_size", batch_size - 1)):
        check_positive(name, value)
    variances = codes.var(axis=0, ddof=1)
    active = (variances >= min_variance) & (np.ptp(codes, axis=0) > 0)
    if not active.any():
        return FactorVAEScore(0.0, 0.0, 0)
    codes = codes[:, active] / np.sqrt(variances[active])
    fixed, votes = [], []
    for indices, rows in _batches(factors, num_train + num_eval, batch_size, seed):
        fixed.append(indices)
        votes.append(codes[rows].var(axis=1).argmin(axis=1))
    fixed, votes = np.concatenate(fixed), np.concatenate(votes)
    counts = np.zeros((codes.shape[1], factors.shape[1]), dtype=np.int64)
    np.add.at(counts, (votes[:num_train], fixed[:num_train]), 1)
    right = counts.argmax(axis=1)[votes] == fixed
    return FactorVAEScore(float(right[num_train:].mean()), float(right[:num_train].mean()), int(active.sum()))


class BetaVAEScore(NamedTuple):
    """Accuracies of telling the fixed factor from mean absolute differences."""

    eval_accuracy: float
    """The score, in [0, 1]"""
    train_accuracy: float


def beta_vae_score(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    num_train: int = NUM_TRAIN,
    num_eval: int = NUM_EVAL,
) -> BetaVAEScore:
    """Higgins et al. 2017, "beta-VAE", https://openreview.net/forum?id=Sy2fzU9gl.

    The two rows of a pair share the value of one factor, the same factor for all pairs of a batch. Logistic regression
    tells the factor from the mean of |z1 - z2| over the batch, standardised (which Locatello et al. leave out). 1 for a
    perfect code and for many that are not, e.g. for rotated ones; 1 / num_factors for a random code.

    Args:
        codes: (rows, num_dims) numbers.
        factors: (rows, num_factors) whole numbers, at least two factors.
        seed: of the pairs.
        batch_size: pairs of a batch.
        num_train, num_eval: batches that the regression learns from, and that are guessed.

    Raises:
        ValueError: NaN, other shapes, or a factor with a single value, or without a value that is shared.
    """
    from sklearn.linear_model import LogisticRegression

    codes, factors = _check(codes, factors, min_factors=2)
    for name, value in (("num_train", num_train), ("num_eval", num_eval), ("batch_size", batch_size)):
        check_positive(name, value)
    codes = _standardized(codes)
    fixed, differences = [], []
    for indices, rows in _batches(factors, num_train + num_eval, batch_size, seed, pairs=True):
        fixed.append(indices)
        differences.append(np.abs(codes[rows[0]] - codes[rows[1]]).mean(axis=1))
    fixed, differences = np.concatenate(fixed), _standardized(np.concatenate(differences))
    regression = LogisticRegression(max_iter=500).fit(differences[:num_train], fixed[:num_train])
    right = regression.predict(differences) == fixed
    return BetaVAEScore(float(right[num_train:].mean()), float(right[:num_train].mean()))


def _batches(factors: np.ndarray, num_batches: int, batch_size: int, seed: int, pairs: bool = False):
    """Yield (fixed factor (n,), rows) of `num_batches` batches, some at a time.

    The rows, (n, batch_size), of a batch share the value of the factor; with `pairs` they are (2, n, batch_size), and
    the two of a pair share it. Values of a single row are left out: copies of it would share all factors.
    """
    rng = np.random.default_rng(seed)
    groups = []
    for index, column in enumerate(factors.T):
        counts = np.bincount(column)
        shared = counts[column] > 1
        if len(np.unique(column[shared])) < 2:
            raise ValueError(
                f"factor {index} needs two values that several rows share, its values come {counts.tolist()} times"
            )
        order = np.argsort(column, kind="stable")
        groups.append((order, np.cumsum(counts) - counts, counts, np.flatnonzero(shared)))

    for first in range(0, num_batches, BATCHES_AT_ONCE):
        fixed = rng.integers(factors.shape[1], size=min(BATCHES_AT_ONCE, num_batches - first))
        rows = np.empty((2 if pairs else 1, len(fixed), batch_size), dtype=np.int64)
        for index, (order, starts, counts, candidates) in enumerate(groups):
            chosen = np.flatnonzero(fixed == index)
            shape = (len(chosen), batch_size)
            leaders = rng.choice(candidates, shape if pairs else (len(chosen), 1))
            values = factors[leaders, index]
            if pairs:
                rows[0, chosen] = leaders
            rows[-1, chosen] = order[starts[values] + (rng.random(shape) * counts[values]).astype(np.int64)]
        yield fixed, rows if pairs else rows[0]


# All of them


def disentanglement_metrics(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    seed: int = 0,
    min_variance: float = MIN_VARIANCE,
    num_bins: int = NUM_BINS,
    num_train: int = NUM_TRAIN,
    num_eval: int = NUM_EVAL,
) -> dict[str, float]:
    """All measures of this file by name; about ten seconds for 10,000 rows of 10 dimensions and 5 factors on one core.

    Args:
        codes: (rows, num_dims) numbers, at least two dimensions.
        factors: (rows, num_factors) whole numbers, at least two factors.
        seed: of everything drawn.
        min_variance: of a dimension that counts as active, see `factor_vae_score`.
        num_bins: bins of each dimension, see `mutual_information_gap`.
        num_train, num_eval: rows or batches that classifiers learn from, and are measured on.

    Returns:
        `mig`, `dci_disentanglement`, `dci_completeness`, `dci_informativeness`, `sap`, `factor_vae_score`,
        `beta_vae_score`, `modularity`, all in [0, 1], and `num_active_dims`.

    Raises:
        ValueError: NaN, other shapes, a factor with a single value, or fewer than 30 rows.
    """
    codes, factors = _check(codes, factors, min_dims=2, min_factors=2)
    sizes = {"seed": seed, "num_train": num_train, "num_eval": num_eval}
    importances = dci(codes, factors, **sizes)
    votes = factor_vae_score(codes, factors, min_variance=min_variance, **sizes)
    return {
        "mig": mutual_information_gap(codes, factors, num_bins=num_bins).mean,
        "dci_disentanglement": importances.disentanglement,
        "dci_completeness": importances.completeness,
        "dci_informativeness": importances.informativeness,
        "sap": sap_score(codes, factors, **sizes).score,
        "factor_vae_score": votes.eval_accuracy,
        "beta_vae_score": beta_vae_score(codes, factors, **sizes).eval_accuracy,
        "modularity": modularity(codes, factors, num_bins=num_bins),
        "num_active_dims": votes.num_active_dims,
    }


# Codes without a model


def pca_codes(
    train_images: np.ndarray, images: np.ndarray, num_components: int = NUM_COMPONENTS, *, pca: PCA | None = None
) -> np.ndarray:
    """Principal components of training images as a code of others: what a linear code disentangles.

    Args:
        train_images, images: uint8 (rows, channels, height, width), at most 4096 numbers each.
        num_components: dimensions of the code.
        pca: the principal components of training images, at least `num_components`, where they are fitted already.

    Returns:
        (rows, num_components) float32, of variance 1 over the training rows, as a prior would have them, so that all
        that vary count as active; 0 in components these do not have.
    """
    pca = _first_components(train_images, num_components, pca)
    varying = _varying(pca)
    codes = np.zeros((len(images), num_components), dtype=np.float32)
    codes[:, varying] = pca.encode(images)[:, varying] / np.sqrt(pca.variances[varying])
    return codes


def ica_codes(
    train_images: np.ndarray,
    images: np.ndarray,
    num_components: int = NUM_COMPONENTS,
    *,
    pca: PCA | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Independent components (scikit-learn's FastICA) within the first principal components, as `pca_codes`.

    At most 1,000 steps are taken: of images without distinct independent components, such as shapes at any place, there
    is no solution to settle on, and the result is where the last step was.

    Args:
        train_images, images: uint8 (rows, channels, height, width), at most 4096 numbers each.
        num_components: dimensions of the code.
        pca: as in `pca_codes`.
        seed: of the first guess.

    Returns:
        (rows, num_components) float32, of variance 1 over the training rows; 0 in components these do not have, in all
        of them where the training images are one and the same.
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    pca = _first_components(train_images, num_components, pca)
    varying = _varying(pca)
    codes = np.zeros((len(images), num_components), dtype=np.float32)
    if not varying.any():
        return codes
    ica = FastICA(whiten="unit-variance", random_state=seed, max_iter=1000, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ica.fit(pca.encode(train_images)[:, varying])
    codes[:, varying] = ica.transform(pca.encode(images)[:, varying])
    return codes


def _first_components(train_images: np.ndarray, num_components: int, pca: PCA | None) -> PCA:
    if pca is None:
        return fit_pca(train_images, num_components)
    if len(pca.components) < num_components:
        raise ValueError(f"this PCA holds {len(pca.components)} components, {num_components} were asked for")
    return PCA(pca.mean, pca.components[:num_components], pca.variances[:num_components])


def _varying(pca: PCA) -> np.ndarray:
    """Which components the training images have, more than rounding: (num_components,) bool."""
    return pca.variances > 1e-6 * max(pca.variances[0], 1e-6)


# Checks and parts


def _check_codes(codes: np.ndarray) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.size == 0:
        raise ValueError(f"`codes` must have shape (rows, num_dims) with at least one row, got {codes.shape}")
    if not (np.issubdtype(codes.dtype, np.number) or codes.dtype == bool) or np.iscomplexobj(codes):
        raise ValueError(f"`codes` must be numbers, got {codes.dtype}")
    codes = codes.astype(np.float64)
    if not np.isfinite(codes).all():
        bad = np.flatnonzero(~np.isfinite(codes).all(axis=0)).tolist()
        raise ValueError(f"`codes` hold NaN or infinite values in dimensions {bad}")
    return codes


def _check(
    codes: np.ndarray, factors: np.ndarray, min_dims: int = 1, min_factors: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Codes as float64, and factors renumbered to 0 .. number of their values - 1, or an error."""
    codes, factors = _check_codes(codes), np.asarray(factors)
    if factors.ndim != 2 or len(factors) != len(codes):
        raise ValueError(
            f"`factors` must have shape (rows, num_factors) for the {len(codes)} rows of `codes`, got {factors.shape}"
        )
    if not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"`factors` must be whole numbers, got {factors.dtype}")
    if codes.shape[1] < min_dims or factors.shape[1] < min_factors:
        raise ValueError(
            f"this measure compares dimensions and factors: it needs at least {min_dims} and {min_factors}, "
            f"got {codes.shape[1]} dimension(s) and {factors.shape[1]} factor(s)"
        )
    columns = []
    for index, column in enumerate(factors.T):
        values, renumbered = np.unique(column, return_inverse=True)
        if len(values) < 2:
            raise ValueError(f"factor {index} has the single value {values[0]} in all rows: leave it out")
        columns.append(renumbered)
    return codes, np.stack(columns, axis=1)


def _split(num_rows: int, num_train: int, num_eval: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and to measure on, drawn: two thirds and one third, or less."""
    check_positive("num_train", num_train)
    check_positive("num_eval", num_eval)
    if num_rows < 30:
        raise ValueError(f"a classifier needs at least 30 rows to learn from and be measured on, got {num_rows}")
    order, border = np.random.default_rng(seed).permutation(num_rows), 2 * num_rows // 3
    return order[: min(border, num_train)], order[border:][:num_eval]


def _standardized(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1; constant ones are 0."""
    constant = np.ptp(values, axis=0) == 0
    deviation = np.where(constant, 1, values.std(axis=0))
    return np.where(constant, 0, (values - values.mean(axis=0)) / deviation)


def _entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the frequencies of counts."""
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())
