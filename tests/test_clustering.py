"""Agreement of clusters with classes against values known by hand, and under renaming."""

import itertools

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hf_autoencoders.evaluation.clustering import clustering_metrics, kmeans_clusters


def test_perfect_clusters_under_any_name():
    labels = np.array([0, 0, 1, 1, 2, 2])
    expected = {"accuracy": 1, "purity": 1, "normalized_mutual_information": 1, "adjusted_rand_index": 1}
    for names in itertools.permutations([5, 0, 7]):
        assert clustering_metrics(np.array(names)[labels], labels) == pytest.approx({**expected, "num_clusters": 3})


def test_known_table():
    # clusters x classes: [[3, 1], [0, 4]]
    clusters, labels = np.repeat([0, 0, 1], [3, 1, 4]), np.repeat([0, 1, 1], [3, 1, 4])
    result = clustering_metrics(clusters, labels)
    assert result["accuracy"] == result["purity"] == pytest.approx(7 / 8)

    def entropy(*shares):
        return -sum(share * np.log(share) for share in shares)

    parts = entropy(1 / 2, 1 / 2), entropy(3 / 8, 5 / 8)
    information = sum(parts) - entropy(3 / 8, 1 / 8, 1 / 2)
    assert result["normalized_mutual_information"] == pytest.approx(information / np.mean(parts))
    # pairs together in both 3 + 6, in clusters 6 + 6, in classes 3 + 10, of 28
    chance = 12 * 13 / 28
    assert result["adjusted_rand_index"] == pytest.approx((9 - chance) / ((12 + 13) / 2 - chance))


def test_the_matching_is_the_best_one_not_a_greedy_one():
    table = np.array([[10, 9, 0], [9, 0, 0], [0, 5, 1]])
    clusters = np.repeat(np.repeat([0, 1, 2], 3), table.ravel())
    labels = np.repeat(np.tile([0, 1, 2], 3), table.ravel())
    best = max(sum(table[i, order[i]] for i in range(3)) for order in itertools.permutations(range(3)))
    assert best == 19 > 10 + 5, "taking the largest entry first gives less"
    assert clustering_metrics(clusters, labels)["accuracy"] == pytest.approx(best / table.sum())


def test_clusters_in_excess_count_as_wrong_for_accuracy_and_right_for_purity():
    labels = np.repeat([0, 1], 10)
    halves = np.repeat([0, 1, 2, 3], [6, 4, 7, 3])
    result = clustering_metrics(halves, labels)
    assert result["accuracy"] == pytest.approx((6 + 7) / 20)
    assert result["purity"] == 1 and result["num_clusters"] == 4
    singles = clustering_metrics(np.arange(20), labels)
    assert singles["accuracy"] == pytest.approx(2 / 20) and singles["purity"] == 1
    assert singles["adjusted_rand_index"] == pytest.approx(0)


def test_one_cluster_for_all_is_the_commonest_class():
    result = clustering_metrics(np.full(10, 3), np.repeat([0, 1, 2], [2, 5, 3]))
    assert result == pytest.approx(
        {
            "accuracy": 0.5,
            "purity": 0.5,
            "normalized_mutual_information": 0,
            "adjusted_rand_index": 0,
            "num_clusters": 1,
        }
    )


def test_renaming_and_order_change_nothing_and_chance_is_chance():
    rng = np.random.default_rng(0)
    clusters, labels = rng.integers(0, 12, 4000), rng.integers(0, 10, 4000)
    result = clustering_metrics(clusters, labels)
    order = rng.permutation(4000)
    renamed = clustering_metrics(rng.permutation(12)[clusters][order] * 3 - 7, rng.permutation(10)[labels][order])
    assert renamed == pytest.approx(result)
    assert abs(result["adjusted_rand_index"]) < 0.01 and result["normalized_mutual_information"] < 0.02
    assert 0.1 < result["accuracy"] < result["purity"] < 0.2


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"same rows, at least one, got \(3,\) and \(4,\)"):
        clustering_metrics(np.zeros(3, dtype=int), np.zeros(4, dtype=int))
    with pytest.raises(ValueError, match=r"got \(3, 1\) and \(3, 1\)"):
        clustering_metrics(np.zeros((3, 1), dtype=int), np.zeros((3, 1), dtype=int))
    with pytest.raises(ValueError, match=r"at least one, got \(0,\)"):
        clustering_metrics(np.zeros(0, dtype=int), np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="`clusters` must be whole numbers, got float64"):
        clustering_metrics(np.zeros(3), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="`labels` must be whole numbers, got <U1"):
        clustering_metrics(np.zeros(3, dtype=int), np.array(["a", "b", "c"]))


def test_kmeans_finds_what_lies_apart_and_much_of_the_digits():
    apart = np.repeat([0, 120, 250], 5).astype(np.uint8)[:, None, None, None] + np.zeros((1, 1, 2, 2), np.uint8)
    clusters = kmeans_clusters(apart, 3)
    assert clusters.dtype == np.int64 and clustering_metrics(clusters, np.repeat([0, 1, 2], 5))["accuracy"] == 1

    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype(np.uint8)[:, None]
    clusters = kmeans_clusters(images, 10, seed=3)
    np.testing.assert_array_equal(clusters, kmeans_clusters(images, 10, seed=3))
    assert 0.7 < clustering_metrics(clusters, digits.target)["accuracy"] < 0.9


def test_kmeans_centres_of_other_images_give_each_image_the_nearest():
    train = np.repeat([0, 120, 250], 5).astype(np.uint8)[:, None, None, None] + np.zeros((1, 1, 2, 2), np.uint8)
    levels = np.array([59, 61, 180, 190, 255, 3], dtype=np.uint8)  # nearest: 0, 120, 120, 250, 250, 0
    found = kmeans_clusters(levels[:, None, None, None] + np.zeros((1, 1, 2, 2), np.uint8), 3, train_images=train)
    assert found.dtype == np.int64 and clustering_metrics(found, np.array([0, 1, 1, 2, 2, 0]))["accuracy"] == 1
    np.testing.assert_array_equal(kmeans_clusters(train, 3, train_images=train.copy()), kmeans_clusters(train, 3))


def test_kmeans_refuses():
    images = np.zeros((3, 1, 2, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match="2 images make no 3 clusters"):
        kmeans_clusters(images, 3, train_images=images[:2])
    with pytest.raises(ValueError, match=r"of one size, got \(1, 2, 2\) and \(1, 2, 1\)"):
        kmeans_clusters(images, 2, train_images=images[..., :1])
    with pytest.raises(ValueError, match="3 images make no 4 clusters"):
        kmeans_clusters(images, 4)
    with pytest.raises(ValueError, match="`num_clusters` must be a whole number >= 1, got 0"):
        kmeans_clusters(images, 0)
    with pytest.raises(ValueError, match="non-empty uint8 array"):
        kmeans_clusters(images / 255, 2)
