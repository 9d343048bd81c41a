"""The README's table of results: several seeds in a row, and what it shows of each kind of model."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("fill_readme", ROOT / "scripts" / "fill_readme.py")
fill_readme = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fill_readme)


@pytest.fixture
def write(tmp_path):
    """Writes a result file; returns its path."""

    def write(file: str, metrics: dict, baselines: dict | None = None, seed: int = 0, **fields) -> Path:
        corpus = {"name": "sprites", "split": "validation", "rows": 5000}
        result = {"name": "beta_tcvae", "corpus": corpus, "metrics": metrics, "baselines": baselines or {}}
        result |= {"seed": seed, "command": f"train --seed {seed}", "machine": "a quiet one", "date": "2025-01-31T10"}
        result |= {"versions": {"transformers": "5"}, **fields}
        path = tmp_path / f"{file}.json"
        path.write_text(json.dumps(result))
        return path

    return write


def test_files_that_differ_by_their_seed_come_together_in_the_order_of_seeds():
    names = ["a.json", "a_seed10.json", "a_seed9.json", "b_iw.json", "b_seed0_x.json", "b_seed1.json", "seed3.json"]
    groups = fill_readme.same_but_for_seed([Path("there") / name for name in names])
    assert [[file.name for file in group] for group in groups] == [
        ["a.json"],
        ["a_seed9.json", "a_seed10.json"],
        ["b_iw.json"],
        ["b_seed0_x.json"],
        ["b_seed1.json"],
        ["seed3.json"],
    ]


def test_several_runs_read_as_their_mean_and_each():
    shown = {"mig": "MIG {:.3f}", "psnr": "PSNR {:.2f} dB", "share": "{:.1%} of codes"}
    assert fill_readme.sentence(shown, {"share": 0.5, "mig": 0.25, "other": 1}) == "MIG 0.250, 50.0% of codes"
    runs = [{"mig": 0.2, "share": 0.5, "psnr": 20.0}, {"mig": 0.3, "share": 0.50001}, {"mig": 0.4, "share": 0.5}]
    assert fill_readme.sentence(shown, *runs) == "MIG 0.300 (0.200, 0.300, 0.400), 50.0% of codes"
    assert fill_readme.sentence(shown, {"psnr": 20.0}, {"psnr": 21.0}) == "PSNR 20.50 dB"  # is not listed


def test_seeds_share_a_row_and_each_says_how_it_was_obtained(write):
    measures = {"mse": 0.01, "mig": 0.2, "factor_vae_score": 0.8}
    pca = {"pca_mig": 0.011, "pca_sap": 0.006, "ica_mig": 0.02}
    files = [write(f"m_seed{seed}", measures | {"mig": mig}, pca, seed=seed) for seed, mig in enumerate((0.2, 0.4))]
    files.append(write("single", {"mse": 0.5}, seed=3))
    table = fill_readme.results_table(files)
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert rows == [
        "| 1 | beta_tcvae, 2 seeds: mean (each) | sprites, validation split (5,000 images) | MSE 0.01000, "
        "MIG 0.300 (0.200, 0.400), FactorVAE score 0.800 (0.800, 0.800) | PCA: MIG 0.011, SAP 0.006, ICA: MIG 0.020 |",
        "| 2 | beta_tcvae | sprites, validation split (5,000 images) | MSE 0.50000 |  |",
    ]
    _, _, notes = table.partition("How each number was obtained (a quiet one; transformers 5; 2025-01-31):\n\n")
    assert notes.splitlines() == [
        "1. `train --seed 0`; seeds 0, 1",
        "2. `train --seed 3`; seed 3",
    ]
    files[1] = write("m_seed1", measures, pca, seed=1, command="train --seed 1 --beta 2")
    with pytest.raises(ValueError, match="m_seed0.json, m_seed1.json differ by more than --seed"):
        fill_readme.results_table(files)


def test_what_is_shown_of_clusters_and_bits(write):
    clusters = {"cluster_accuracy": 0.95, "cluster_nmi": 0.9, "cluster_ari": 0.89, "train_code_usage": 1.0}
    kmeans = {"kmeans_cluster_accuracy": 0.53, "kmeans_cluster_nmi": 0.49}
    bits = {"mse": 0.01, "bits_per_image": 64, "bit_entropy_mean": 0.987, "bit_entropy_min": 0.9}
    bits |= {"train_code_usage": 1.0, "train_code_perplexity": 1.98}
    table = fill_readme.results_table(
        [write("c", clusters, kmeans), write("d", bits, {"pca_equal_bits_mse": 0.02, "pca_equal_bits": 64})]
    )
    assert (
        "| 100.0% of codes used (training split), ACC 95.0%, NMI 0.900, ARI 0.890 "
        "| k-means on pixels: ACC 53.0%, NMI 0.490 |" in table
    )
    assert (
        "| MSE 0.01000, 64 bits an image, 0.99 bits of entropy a bit, the least 0.90 | PCA of equal bits: MSE 0.02000 |"
        in table
    )


def test_runs_of_different_things_do_not_share_a_row(write):
    files = [write("m_seed0", {"mse": 0.1}), write("m_seed1", {"mse": 0.1}, name="vae")]
    with pytest.raises(ValueError, match="m_seed0.json, m_seed1.json are not of one model on one corpus"):
        fill_readme.results_table(files)


def test_samples_of_a_prior_stand_beside_other_images(write):
    metrics = {
        "frechet_distance": 12.346,
        "precision": 0.8,
        "recall": 0.7,
        "prior_nll": 20.0,
        "bits_per_dimension": 2.5,
    }
    baselines = {"uniform_codes_frechet_distance": 500, "uniform_codes_bits_per_dimension": 3.25}
    baselines |= {"train_images_frechet_distance": 1.0, "train_images_precision": 0.9, "train_images_recall": 0.95}
    settings = {"num_samples": 5000, "features": "lenet(mnist train, seed 0)"}
    settings["accuracy_of_the_features_classifier"] = 0.985
    text = fill_readme.generation_text([write("m", metrics, baselines, name="code_prior", settings=settings)])
    assert "5,000 images of each set; features `lenet(mnist train, seed 0)`, a classifier of 98.5% accuracy" in text
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| | Frechet distance | precision | recall | bits/dim |",
        "|---|---:|---:|---:|---:|",
        "| the prior | 12.35 | 0.800 | 0.700 | 2.500 |",
        "| uniformly random codes | 500.00 |  |  | 3.250 |",
        "| training images | 1.00 | 0.900 | 0.950 |  |",
    ]
