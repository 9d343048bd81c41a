"""Measures of disentanglement against codes whose scores are known: perfect, random, rotated, constant, by hand."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score
from sklearn.svm import LinearSVC

from hf_autoencoders.evaluation import disentanglement
from hf_autoencoders.evaluation.baselines import fit_pca
from hf_autoencoders.evaluation.disentanglement import (
    _batches,
    beta_vae_score,
    dci,
    discretize,
    disentanglement_metrics,
    factor_vae_score,
    ica_codes,
    modularity,
    mutual_information,
    mutual_information_gap,
    normalized_mutual_information_matrix,
    pca_codes,
    sap_score,
)

SIZES = (2, 3, 4, 5)
CHANCE = float(np.mean([1 / size for size in SIZES]))


def all_combinations(sizes=SIZES, repeats: int = 25) -> np.ndarray:
    """Every combination of factors equally often: frequencies of independent factors are then exactly independent."""
    return np.array(list(itertools.product(*map(range, sizes))) * repeats)


def codes_of(kind: str, factors: np.ndarray, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    standard = (factors - factors.mean(0)) / factors.std(0)
    noise = rng.standard_normal((len(factors), 3))
    if kind == "random":
        return rng.standard_normal((len(factors), factors.shape[1] + 3))
    if kind == "rotated":
        both = np.concatenate([standard, noise], axis=1)
        return both @ np.linalg.qr(rng.standard_normal((both.shape[1],) * 2))[0]
    order = rng.permutation(factors.shape[1])
    return np.concatenate([standard[:, order] * [-2.0, 0.5, 1.0, -7.0] + 3, noise], axis=1)  # perfect


@pytest.fixture(scope="module")
def factors():
    return all_combinations()


@pytest.fixture(scope="module")
def scores(factors):
    return {
        kind: disentanglement_metrics(codes_of(kind, factors), factors) for kind in ("perfect", "random", "rotated")
    }


def test_perfect_codes_reach_the_ceiling_of_every_measure(factors, scores):
    perfect = scores["perfect"]
    assert perfect["mig"] == pytest.approx(1, abs=0.05), "noise knows a little of 3000 rows, by chance"
    for name in ("dci_disentanglement", "dci_completeness", "dci_informativeness"):
        assert perfect[name] == pytest.approx(1, abs=1e-9)
    assert perfect["factor_vae_score"] == 1 and perfect["beta_vae_score"] == pytest.approx(1, abs=0.002)
    assert perfect["num_active_dims"] == 7
    clean = factors * [3.0, -1.0, 0.2, 10.0]
    assert mutual_information_gap(clean, factors).gaps == pytest.approx([1, 1, 1, 1])
    assert modularity(clean, factors) == pytest.approx(1)


def test_random_codes_score_nothing_or_chance(scores):
    random = scores["random"]
    for name in ("mig", "dci_disentanglement", "dci_completeness", "sap"):
        assert 0 <= random[name] < 0.05, name
    assert random["dci_informativeness"] == pytest.approx(CHANCE, abs=0.04)
    assert random["factor_vae_score"] == pytest.approx(1 / 4, abs=0.04)
    assert random["beta_vae_score"] == pytest.approx(1 / 4, abs=0.04)


def test_rotated_codes_are_in_between(scores):
    for name in set(scores["perfect"]) - {"num_active_dims", "modularity"}:
        assert scores["random"][name] < scores["rotated"][name] < scores["perfect"][name], name
    for name in ("dci_disentanglement", "dci_completeness"):
        assert scores["random"][name] + 0.1 < scores["rotated"][name] < scores["perfect"][name] - 0.1


def test_no_measure_depends_on_order_sign_or_scale_of_the_dimensions(factors):
    codes = codes_of("rotated", factors)[:1500]
    moved = (codes * [-1.0, 2.0, -3.0, 0.5, 1.0, -1.5, 4.0] + 5)[:, [3, 1, 6, 0, 5, 2, 4]]
    sizes = {"num_train": 2000, "num_eval": 1000}
    first, second = (disentanglement_metrics(c, factors[:1500], **sizes) for c in (codes, moved))
    assert first.keys() == second.keys()
    assert list(second.values()) == pytest.approx(list(first.values()), abs=0.01)


def test_results_follow_the_seed_and_leave_the_global_random_state_alone(factors):
    codes, rows = codes_of("rotated", factors), slice(0, 600)
    state = np.random.get_state()[1].copy()
    same = [
        disentanglement_metrics(codes[rows], factors[rows], seed=seed, num_train=300, num_eval=200)
        for seed in (3, 3, 4)
    ]
    assert same[0] == same[1] != same[2]
    assert same[0]["mig"] == same[2]["mig"], "nothing is drawn for it"
    assert (state == np.random.get_state()[1]).all()


def test_names_and_types_are_those_of_a_metrics_file(scores):
    assert list(scores["perfect"]) == [
        "mig",
        "dci_disentanglement",
        "dci_completeness",
        "dci_informativeness",
        "sap",
        "factor_vae_score",
        "beta_vae_score",
        "modularity",
        "num_active_dims",
    ]
    assert {type(value) for value in scores["perfect"].values()} == {float, int}


# Mutual information


def test_bins_are_those_of_a_histogram():
    codes = np.random.default_rng(0).standard_normal((500, 3)) * [1, 100, 1e-3]
    for column, bins in zip(codes.T, discretize(codes, 20).T, strict=True):
        edges = np.histogram(column, 20)[1]
        np.testing.assert_array_equal(bins, np.digitize(column, edges[:-1]) - 1)
    assert (discretize(np.full((4, 1), 2.5)) == 0).all()
    assert discretize(np.array([[0], [1], [1]], dtype=bool))[:, 0].tolist() == [0, 19, 19]


def test_mutual_information_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    factors = rng.integers(0, [2, 7], size=(300, 2))
    codes = np.stack([factors[:, 0] + rng.integers(0, 2, 300), rng.integers(0, 9, 300)], axis=1)
    expected = [[mutual_info_score(code, factor) for factor in factors.T] for code in codes.T]
    np.testing.assert_allclose(mutual_information(codes, factors), expected, atol=1e-12)


def test_information_of_a_noisy_copy_is_known():
    factor = np.arange(1000) % 2
    copies = [np.where(np.arange(1000) // 2 % 10 < flipped, 1 - factor, factor) for flipped in (1, 3)]
    codes = np.stack([*copies, np.zeros(1000, dtype=int)], axis=1)  # 10 % and 30 % of bits flipped, and a constant
    known = [1 + p * math.log2(p) + (1 - p) * math.log2(1 - p) for p in (0.1, 0.3)]
    information = normalized_mutual_information_matrix(codes, factor[:, None] * 5 + 2)
    np.testing.assert_allclose(information[:, 0], [*known, 0], atol=1e-12)
    gap = mutual_information_gap(codes, factor[:, None])
    assert gap.mean == pytest.approx(known[0] - known[1]) and gap.gaps.shape == (1,)


def test_the_gap_of_more_values_than_bins_is_limited_by_the_bins():
    factors = all_combinations((40, 3), repeats=2)
    gaps = mutual_information_gap(factors.astype(float), factors).gaps
    assert gaps == pytest.approx([math.log(20) / math.log(40), 1])
    assert mutual_information_gap(factors, factors, num_bins=40).gaps == pytest.approx([1, 1])


def test_a_factor_in_two_dimensions_has_no_gap(factors):
    doubled = np.concatenate([factors, -factors], axis=1)
    assert mutual_information_gap(doubled, factors).mean == pytest.approx(0)
    assert sap_score(doubled, factors).score == pytest.approx(0)
    assert modularity(doubled, factors) == pytest.approx(1)
    assert factor_vae_score(doubled, factors, min_variance=0, num_train=500, num_eval=500).eval_accuracy == 1
    result = dci(doubled, factors)
    assert result.disentanglement == pytest.approx(1) and result.completeness < 0.9


def test_modularity_of_a_dimension_that_serves_two_of_three_factors_is_a_half():
    factors = all_combinations((2, 2, 2), repeats=4)
    both = 2 * factors[:, 0] + factors[:, 1]
    assert modularity(both[:, None], factors) == pytest.approx(1 / 2)
    assert modularity(both[:, None], factors[:, :2]) == pytest.approx(0)
    with_constant = np.stack([factors[:, 2], np.zeros(len(factors))], axis=1)
    assert modularity(with_constant, factors) == pytest.approx(1 / 2), "a constant counts 0"


# Predictors


def test_importances_of_a_perfect_code_name_its_dimensions(factors):
    result = dci(factors[:, [2, 0, 3, 1]], factors)
    np.testing.assert_allclose(result.importances, np.eye(4)[[2, 0, 3, 1]], atol=1e-12)


def test_dci_of_one_dimension_for_all_factors_is_complete_but_not_disentangled():
    factors = all_combinations((3, 3), repeats=50)
    codes = np.stack([3 * factors[:, 0] + factors[:, 1], np.zeros(len(factors))], axis=1)
    result = dci(codes, factors)
    assert result[:3] == pytest.approx((0, 1, 1))


def test_dci_and_sap_are_measured_on_other_rows():
    rng = np.random.default_rng(0)
    codes, factors = rng.standard_normal((200, 5)), rng.integers(0, 2, (200, 2))
    assert dci(codes, factors).informativeness == pytest.approx(0.5, abs=0.15), "by heart it would be near 1"


def test_sap_of_two_values_is_one_minus_chance():
    factors = all_combinations((2, 2, 2), repeats=50)
    result = sap_score(factors * [5.0, -0.1, 1.0], factors)
    assert np.diag(result.accuracies) == pytest.approx(1)
    assert result.score == pytest.approx(0.5, abs=0.06)


def test_a_factor_with_one_value_among_the_rows_to_learn_from_is_guessed(monkeypatch):
    """Both rare rows are among those measured: a constant is right on all others, whatever the dimension."""
    monkeypatch.setattr(disentanglement, "_split", lambda *_: (np.arange(60), np.arange(60, 90)))
    factors = np.stack([np.arange(90) >= 88, np.arange(90) % 2], axis=1).astype(int)
    codes = factors + np.random.default_rng(0).normal(0, 0.01, factors.shape)
    result = sap_score(codes, factors)
    np.testing.assert_allclose(result.accuracies[:, 0], 28 / 30)
    assert result.score == pytest.approx((result.accuracies[1, 1] - result.accuracies[0, 1]) / 2)
    assert result.accuracies[1, 1] == 1 and 0 <= dci(codes, factors).informativeness <= 1


def test_sap_agrees_with_the_slow_dual_solver():
    rng = np.random.default_rng(1)
    factors = rng.integers(0, 4, (900, 1))
    codes = np.stack([factors[:, 0] + rng.standard_normal(900) * 0.3, rng.standard_normal(900)], axis=1)
    codes = (codes - codes.mean(0)) / codes.std(0)
    result = sap_score(codes, factors, num_train=600)
    order = np.random.default_rng(0).permutation(900)
    train, measured = order[:600], order[600:]
    for dimension, accuracy in zip(codes.T[:, :, None], result.accuracies[:, 0], strict=True):
        machine = LinearSVC(C=0.01, class_weight="balanced", dual=True, max_iter=100_000, random_state=0)
        machine.fit(dimension[train], factors[train, 0])
        assert accuracy == pytest.approx(machine.score(dimension[measured], factors[measured, 0]), abs=0.02)


# Batches that share a factor's value


@pytest.mark.parametrize("pairs", [False, True])
def test_batches_share_one_factor_and_no_other(factors, pairs):
    seen = np.zeros(4)
    for fixed, rows in _batches(factors, 700, 32, seed=0, pairs=pairs):
        values = factors[rows]  # (n, 32, 4), or (2, n, 32, 4)
        shared = (values[0] == values[1]).all(axis=1) if pairs else (values == values[:, :1]).all(axis=1)
        np.testing.assert_array_equal(shared, np.eye(4, dtype=bool)[fixed])
        seen += np.bincount(fixed, minlength=4)
    assert seen.sum() == 700 and (seen > 130).all()


def test_batches_draw_values_as_often_as_they_are_among_the_rows():
    factors = np.stack([np.repeat([0, 7, 9], [300, 99, 1]), np.arange(400) % 2], axis=1)
    leaders = [
        factors[rows[fixed == 0, 0], 0]
        for fixed, rows in _batches(np.unique(factors, return_inverse=True)[1].reshape(-1, 2), 4000, 4, seed=0)
    ]
    values, counts = np.unique(np.concatenate(leaders), return_counts=True)
    assert values.tolist() == [0, 7], "a value of a single row is left out"
    assert counts / counts.sum() == pytest.approx([300 / 399, 99 / 399], abs=0.03)


def test_inactive_dimensions_take_no_part_in_the_votes():
    factors = all_combinations((3, 3), repeats=20)
    standard = (factors - 1) / factors.std(0)
    faint = standard * [1.0, 0.2]  # of variance 0.04
    result = factor_vae_score(faint, factors, num_train=1000, num_eval=1000)
    assert result.num_active_dims == 1 and result.eval_accuracy == pytest.approx(0.5, abs=0.05)
    assert factor_vae_score(faint, factors, min_variance=0.03, num_train=1000, num_eval=1000) == (1, 1, 2)
    assert factor_vae_score(faint / 100, factors) == (0, 0, 0)
    constant = np.concatenate([standard, np.ones((len(factors), 1))], axis=1)
    assert factor_vae_score(constant, factors, min_variance=0, num_train=1000, num_eval=1000) == (1, 1, 2)


def test_constant_codes_score_nothing_or_chance(factors):
    constant = disentanglement_metrics(np.ones((len(factors), 3)), factors)
    zero = {"mig", "dci_disentanglement", "dci_completeness", "sap", "factor_vae_score", "modularity"}
    assert {name: constant[name] for name in zero} == dict.fromkeys(zero, 0)
    assert constant["num_active_dims"] == 0
    assert constant["beta_vae_score"] == pytest.approx(1 / 4, abs=0.03)
    assert constant["dci_informativeness"] == pytest.approx(CHANCE, abs=0.04)


def test_constant_dimensions_change_nothing(factors):
    codes = codes_of("perfect", factors)
    padded = np.concatenate([codes, np.full((len(codes), 2), 4.0)], axis=1)
    assert mutual_information_gap(padded, factors).mean == mutual_information_gap(codes, factors).mean
    assert sap_score(padded, factors).score == pytest.approx(sap_score(codes, factors).score, abs=0.01)
    sizes = {"num_train": 500, "num_eval": 500}
    assert factor_vae_score(padded, factors, **sizes) == factor_vae_score(codes, factors, **sizes)
    assert beta_vae_score(padded, factors, **sizes) == pytest.approx(beta_vae_score(codes, factors, **sizes), abs=0.01)
    assert dci(padded, factors)[:3] == pytest.approx((1, 1, 1))


def test_bits_are_codes_too(factors):
    bits = np.stack([factors[:, 0] == 1, factors[:, 1] == 2, factors[:, 2] > 1], axis=1)
    assert mutual_information_gap(bits, factors).gaps[[0, 2]] == pytest.approx([1, 0.5])
    assert dci(bits, factors[:, :3])[:2] == pytest.approx((1, 1), abs=0.05)
    assert factor_vae_score(bits, factors[:, :2], num_train=500, num_eval=500).eval_accuracy > 0.9


# Bad input

MEASURES = [mutual_information_gap, dci, sap_score, factor_vae_score, beta_vae_score, modularity]


@pytest.mark.parametrize("measure", [*MEASURES, disentanglement_metrics, normalized_mutual_information_matrix])
def test_bad_input_is_refused(measure):
    codes, factors = np.random.default_rng(0).standard_normal((60, 3)), all_combinations((2, 3), repeats=10)
    with pytest.raises(ValueError, match=r"NaN or infinite values in dimensions \[1\]"):
        measure(np.where([False, True, False], math.nan, codes), factors)
    with pytest.raises(ValueError, match=r"\(rows, num_dims\).*got \(60, 3, 1\)"):
        measure(codes[:, :, None], factors)
    with pytest.raises(ValueError, match=r"at least one row, got \(0, 3\)"):
        measure(codes[:0], factors[:0])
    with pytest.raises(ValueError, match=r"\(rows, num_factors\) for the 60 rows of `codes`, got \(59, 2\)"):
        measure(codes, factors[:59])
    with pytest.raises(ValueError, match=r"got \(60,\)"):
        measure(codes, factors[:, 0])
    with pytest.raises(ValueError, match="whole numbers, got float64"):
        measure(codes, factors / 2)
    with pytest.raises(ValueError, match="numbers, got <U1"):
        measure(np.full((60, 2), "a"), factors)
    with pytest.raises(ValueError, match="factor 1 has the single value 4 in all rows"):
        measure(codes, np.where([False, True], 4, factors))


@pytest.mark.parametrize("measure", [dci, factor_vae_score, beta_vae_score, modularity, disentanglement_metrics])
def test_what_compares_factors_needs_two(measure):
    with pytest.raises(ValueError, match=r"got 2 dimension\(s\) and 1 factor\(s\)"):
        measure(np.random.default_rng(0).standard_normal((60, 2)), np.arange(60)[:, None] % 2)


@pytest.mark.parametrize("measure", [mutual_information_gap, dci, sap_score, disentanglement_metrics])
def test_what_compares_dimensions_needs_two(measure):
    with pytest.raises(ValueError, match=r"got 1 dimension\(s\)"):
        measure(np.arange(60.0)[:, None], all_combinations((2, 3), repeats=10))


@pytest.mark.parametrize("measure", [dci, sap_score, disentanglement_metrics])
def test_too_few_rows_are_refused(measure):
    factors = all_combinations((2, 3), repeats=10)[:29]
    with pytest.raises(ValueError, match="at least 30 rows .* got 29"):
        measure(factors.astype(float), factors)


def test_factors_without_shared_values_are_refused():
    factors = np.stack([np.arange(60), np.arange(60) % 2], axis=1)
    for measure in (factor_vae_score, beta_vae_score):
        with pytest.raises(ValueError, match="factor 0 needs two values that several rows share"):
            measure(factors.astype(float), factors)
    for name in ("num_train", "num_eval", "batch_size"):
        with pytest.raises(ValueError, match=f"`{name}` must be a whole number >= 1"):
            beta_vae_score(factors.astype(float), factors, **{name: 0})


# Codes without a model


def mixed_images(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images that are sums of two patterns, each of one of five strengths, and the strengths."""
    rng = np.random.default_rng(seed)
    strengths = rng.integers(0, 5, size=(rows, 2))
    patterns = np.random.default_rng(9).random((2, 36)) * 30
    patterns[1] = 0.6 * patterns[0] + 0.4 * patterns[1]  # not orthogonal, so that PCA mixes them
    return (strengths @ patterns).round().astype(np.uint8).reshape(rows, 1, 6, 6), strengths


def test_ica_finds_independent_factors_that_pca_mixes():
    (train, _), (images, strengths) = mixed_images(2000, 0), mixed_images(1000, 1)
    ica, pca = ica_codes(train, images, 2, seed=1), pca_codes(train, images, 2)
    assert ica.dtype == pca.dtype == np.float32 and ica.shape == pca.shape == (1000, 2)
    assert mutual_information_gap(ica, strengths).mean > mutual_information_gap(pca, strengths).mean + 0.5
    for codes in (ica, pca):
        np.testing.assert_allclose(np.cov(codes.T), np.eye(2), atol=0.12)
    whole = fit_pca(train)
    np.testing.assert_allclose(pca_codes(train[:5], images, 2, pca=whole), pca, atol=1e-4)
    np.testing.assert_allclose(ica_codes(train, images, 2, pca=whole, seed=1), ica, atol=1e-3)
    with pytest.raises(ValueError, match="this PCA holds 1 components, 2 were asked for"):
        pca_codes(train, images, 2, pca=fit_pca(train, 1))
    np.testing.assert_array_equal(ica, ica_codes(train, images, 2, seed=1))


def test_components_that_the_images_do_not_have_are_zero():
    factors = all_combinations((5, 5), repeats=20)
    images = np.zeros((len(factors), 1, 4, 4), dtype=np.uint8)
    images[:, 0, 0, :2] = factors * 50
    for codes in (pca_codes(images, images, 4), ica_codes(images, images, 4)):
        np.testing.assert_allclose(codes.var(axis=0), [1, 1, 0, 0], atol=1e-3)


def test_codes_of_equal_training_images_are_zero():
    images = mixed_images(50, 0)[0]
    for train in (np.repeat(images[:1], 40, axis=0), images[:1]):
        for codes in (pca_codes(train, images, 3), ica_codes(train, images, 3)):
            np.testing.assert_array_equal(codes, np.zeros((50, 3), dtype=np.float32))
