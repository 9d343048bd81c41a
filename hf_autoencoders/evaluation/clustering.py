"""Are clusters classes? For codes of one or a few categories, beside k-means on the pixels.

clustering_metrics   agreement of clusters with the classes, whatever the clusters are called
kmeans_clusters      what clustering the pixels gives, without a model
"""

import numpy as np

from .checks import check_positive, check_uint8_images


def clustering_metrics(clusters: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well the clusters of some rows agree with their classes; no result depends on the names of either.

    `accuracy` is the share of rows right when clusters are named by classes one to one, as well as can be (Hungarian
    matching, as in Xie et al. 2016, https://arxiv.org/abs/1511.06335). Clusters in excess of the classes get no name,
    and their rows count as wrong; likewise the rows of classes in excess of the clusters. `purity` is the share of rows
    right when each cluster is named by its commonest class, several clusters by the same one if need be; it rises with
    the number of clusters whatever they mean, to 1 for one row each.

    Args:
        clusters, labels: (rows,) whole numbers.

    Returns:
        `accuracy` and `purity` in (0, 1]; `normalized_mutual_information` in [0, 1], over the mean of both entropies,
        and `adjusted_rand_index` in [-0.5, 1], 0 for chance (both scikit-learn's); `num_clusters`, how many are used.

    Raises:
        ValueError: other shapes, no rows, or no whole numbers.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    clusters, labels = np.asarray(clusters), np.asarray(labels)
    if clusters.ndim != 1 or clusters.shape != labels.shape or len(clusters) == 0:
        raise ValueError(
            f"`clusters` and `labels` must be (rows,) of the same rows, at least one, got {clusters.shape} "
            f"and {labels.shape}"
        )
    for name, values in (("clusters", clusters), ("labels", labels)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"`{name}` must be whole numbers, got {values.dtype}")
    table = contingency_matrix(clusters, labels)
    matched = table[linear_sum_assignment(table, maximize=True)].sum()
    return {
        "accuracy": float(matched / len(labels)),
        "purity": float(table.max(axis=1).sum() / len(labels)),
        "normalized_mutual_information": float(normalized_mutual_info_score(labels, clusters)),
        "adjusted_rand_index": float(adjusted_rand_score(labels, clusters)),
        "num_clusters": len(table),
    }


def kmeans_clusters(
    images: np.ndarray, num_clusters: int, *, train_images: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Clusters of images by k-means (scikit-learn's, the best of ten starts) on their pixels in [0, 1].

    Args:
        images: uint8 (rows, channels, height, width).
        num_clusters: how many clusters.
        train_images: what the centres are found on, of the same size, at least `num_clusters`; `images` by default.
        seed: of the first centres.

    Returns:
        (rows,) int64 in 0 .. num_clusters - 1, of `images`.

    Raises:
        ValueError: other images, or fewer than clusters.
    """
    from sklearn.cluster import KMeans

    train_images = images if train_images is None else train_images
    check_uint8_images("images", images)
    check_uint8_images("train_images", train_images)
    check_positive("num_clusters", num_clusters)
    if images.shape[1:] != train_images.shape[1:]:
        raise ValueError(
            f"`images` and `train_images` must be of one size, got {images.shape[1:]} and {train_images.shape[1:]}"
        )
    if len(train_images) < num_clusters:
        raise ValueError(f"{len(train_images)} images make no {num_clusters} clusters")

    def pixels(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(rows), -1).astype(np.float32) / 255

    found = KMeans(num_clusters, n_init=10, random_state=seed).fit(pixels(train_images))
    return (found.labels_ if images is train_images else found.predict(pixels(images))).astype(np.int64)
