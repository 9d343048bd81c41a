"""Write the measured numbers of `docs/results/*.json` into the README, so that no number is typed by hand.

Each file is the `metrics.json` of one run, copied as it was written. Runs of one recipe with different seeds are called
NAME_seed0.json, NAME_seed1.json and so on, and share a row: the mean, and of some measures in brackets each of them.
`make style` rewrites what stands between the two marks in the README; `make check` fails while the two differ.
"""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_autoencoders.publishing import format_table
from hf_autoencoders.registry import VARIANTS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
START, END = "<!-- results: written by scripts/fill_readme.py -->", "<!-- end of results -->"

SPEECH_START, SPEECH_END = "<!-- speech: written by scripts/fill_readme.py -->", "<!-- end of speech -->"
SUMMARIES_START, SUMMARIES_END = "<!-- summaries: written by scripts/fill_readme.py -->", "<!-- end of summaries -->"
GENERATION_START, GENERATION_END = (
    "<!-- generation: written by scripts/fill_readme.py -->",
    "<!-- end of generation -->",
)

# What a row shows, where a run measured it: metric -> how it reads.
MEASURED = {
    "nll": "NLL {:.2f} nats",
    "bits_per_dimension": "{:.3f} bits/dim",
    "active_units": "{:.0f} active units",
    "mse": "MSE {:.5f}",
    "psnr": "PSNR {:.2f} dB",
    "ssim": "SSIM {:.3f}",
    "bits_per_image": "{:.0f} bits an image",
    "train_code_usage": "{:.1%} of codes used (training split)",
    "train_code_perplexity": "perplexity {:.0f}",
    "bit_entropy_mean": "{:.2f} bits of entropy a bit",
    "bit_entropy_min": "the least {:.2f}",
    "mig": "MIG {:.3f}",
    "factor_vae_score": "FactorVAE score {:.3f}",
    "dci_disentanglement": "DCI disentanglement {:.3f}",
    "sap": "SAP {:.3f}",
    "beta_vae_score": "beta-VAE score {:.3f}",
    "modularity": "modularity {:.3f}",
    "cluster_accuracy": "ACC {:.1%}",
    "cluster_nmi": "NMI {:.3f}",
    "cluster_ari": "ARI {:.3f}",
    "linear_probe_accuracy": "linear probe {:.2%}",
    "bd_rate_jpeg": "{:+.1f}% of bits against JPEG (BD-rate)",
    "bd_rate_webp": "{:+.1f}% against WebP",
    "auroc": "AUROC {:.3f}",
    "aupr": "AUPR {:.3f}",
    "f1": "F1 {:.3f}",
    "false_alarm_rate": "{:.1%} false alarms",
    "pixel_auroc": "pixels: AUROC {:.3f}",
    "aupro": "AUPRO {:.3f}",
}
COMPARED = {
    "pca_same_size_mse": "PCA of the same size: MSE {:.5f}",
    "pca_equal_bits_mse": "PCA of equal bits: MSE {:.5f}",
    "pca_mig": "PCA: MIG {:.3f}",
    "pca_factor_vae_score": "FactorVAE score {:.3f}",
    "pca_dci_disentanglement": "DCI disentanglement {:.3f}",
    "pca_sap": "SAP {:.3f}",
    "pca_beta_vae_score": "beta-VAE score {:.3f}",
    "pca_modularity": "modularity {:.3f}",
    "ica_mig": "ICA: MIG {:.3f}",
    "ica_factor_vae_score": "FactorVAE score {:.3f}",
    "ica_dci_disentanglement": "DCI disentanglement {:.3f}",
    "ica_sap": "SAP {:.3f}",
    "ica_beta_vae_score": "beta-VAE score {:.3f}",
    "ica_modularity": "modularity {:.3f}",
    "kmeans_cluster_accuracy": "k-means on pixels: ACC {:.1%}",
    "kmeans_cluster_nmi": "NMI {:.3f}",
    "kmeans_cluster_ari": "ARI {:.3f}",
    "pca_same_size_linear_probe_accuracy": "probe on PCA {:.2%}",
    "raw_pixels_linear_probe_accuracy": "probe on pixels {:.2%}",
    "pca_95_auroc": "AUROC of PCA with 95% of the variance {:.3f}",
    "pca_16_auroc": "with 16 components {:.3f}",
    "pca_32_auroc": "with 32 {:.3f}",
    "pca_64_auroc": "with 64 {:.3f}",
    "knn_auroc": "of nearest neighbours {:.3f}",
    "isolation_forest_auroc": "of an isolation forest {:.3f}",
}
# Of several runs, each of them is listed for these measures, and the mean alone for the others.
LISTED = {"mig", "factor_vae_score", "cluster_accuracy"}
# Of codes made of bits, "codes used" would count the two values of a bit: its entropy says more.
NOT_OF_BITS = {"train_code_usage", "train_code_perplexity"}

# Of models of speech, what is not in their tables.
MEASURED_SPEECH = {
    "reconstruction_error": "absolute error of the log-mels {:.3f}",
    "speaker_probe_content": "a probe finds the speaker in the content in {:.1%}",
    "speaker_linear_probe_content": "a linear one in {:.1%}",
    "word_probe_speaker": "the word in the speaker embedding in {:.1%}",
    "codes_per_second": "{:g} codes a second",
    "bits_per_second": "{:.0f} bits a second",
    "train_code_usage": "{:.1%} of the codes used (training split)",
    "real_time_factor": "a second of speech is converted in {:.3f} s on one core",
}
COMPARED_SPEECH = {
    "speaker_probe_mel": "the same probe on log-mels: speaker {:.1%}",
    "word_probe_mel": "word {:.1%}",
    "speaker_probe_chance": "by chance: speaker {:.1%}",
    "word_probe_chance": "word {:.1%}",
}


def sentence(shown: Mapping[str, str], *runs: Mapping[str, float]) -> str:
    """The numbers that all `runs` have and `shown` knows, in its order, as one line.

    Of several runs the mean, and for the measures of `LISTED` each of them in brackets.
    """
    names = [name for name in shown if all(name in values for values in runs)]
    return ", ".join(_number(shown[name], [values[name] for values in runs], name in LISTED) for name in names)


def _number(text: str, values: Sequence[float], listed: bool) -> str:
    """`text`, "MIG {:.3f}", of the mean of the values, maybe with each of them: "MIG 0.250 (0.200, 0.300)"."""
    before, number, after = re.fullmatch(r"(.*)(\{:[^{}]*\})(.*)", text).groups()
    each = f" ({', '.join(number.format(value) for value in values)})" if listed and len(values) > 1 else ""
    return f"{before}{number.format(statistics.fmean(values))}{each}{after}"


def same_but_for_seed(files: Sequence[Path]) -> list[list[Path]]:
    """Files whose names differ only in the number of `_seedN` together, by seed; the groups in the order of `files`."""
    groups: dict[Path, list[tuple[int, Path]]] = {}
    for file in files:
        found = re.fullmatch(r"(.+)_seed(\d+)", file.stem)
        name, seed = (found[1], int(found[2])) if found else (file.stem, 0)
        # a file without a seed in its name stands alone
        groups.setdefault(file.with_name(f"{name}_seed" if found else name), []).append((seed, file))
    return [[file for _, file in sorted(group)] for group in groups.values()]


def command(result: dict) -> str:
    """The command of one result; a corpus that lay on somebody's disk is `path/to/` it."""
    name = result["corpus"]["name"]
    if not name.startswith((".", "/", "~")):
        return result["command"]
    return result["command"].replace(f"--dataset {name}", f"--dataset path/to/{Path(name).name}")


def circumstances(result: dict) -> list[str]:
    """Seed, machine, version and date of one result."""
    version = f"transformers {result['versions']['transformers']}"
    return [f"seed {result['seed']}", result["machine"], version, result["date"][:10]]


def what(result: dict) -> tuple[str, str]:
    """What was measured on what: the second and third cell of a row."""
    corpus = result["corpus"]
    if "auroc" in result["metrics"]:
        classes = result["settings"].get("classes")
        name = f"{result['name']} as anomaly detector" + (f", mean of {classes} classes" if classes else "")
        return name, f"{Path(corpus['name']).name}, {corpus['split']} split ({corpus['rows']:,} images)"
    return result["name"], f"{Path(corpus['name']).name}, {corpus['split']} split ({corpus['rows']:,} images)"


def results_table(files: list[Path]) -> str:
    """Markdown: one row for each result, several seeds in one, and below, numbered alike, how each was obtained.

    Raises:
        ValueError: files that differ by their seed only, of different models or corpora.
    """
    if not files:
        return "No results are committed yet."
    rows = ["| | variant | corpus | measured | for comparison |", "|---|---|---|---|---|"]
    results = {file: json.loads(file.read_text()) for file in files}
    shared = circumstances(results[files[0]])
    shared = [fact for fact in shared if all(fact in circumstances(result) for result in results.values())]
    notes = []
    for number, group in enumerate(same_but_for_seed(files), start=1):
        runs = [results[file] for file in group]
        if len({what(run) for run in runs}) > 1:
            raise ValueError(f"{', '.join(file.name for file in group)} are not of one model on one corpus")
        name, place = what(runs[0])
        if len(runs) > 1:
            name += f", {len(runs)} seeds: mean (each)"
        metrics = [run["metrics"] for run in runs]
        if all("bit_entropy_mean" in values for values in metrics):
            metrics = [{k: v for k, v in values.items() if k not in NOT_OF_BITS} for values in metrics]
        measured, compared = sentence(MEASURED, *metrics), sentence(COMPARED, *(run["baselines"] for run in runs))
        rows.append(f"| {number} | {name} | {place} | {measured} | {compared} |")
        own = [fact for fact in circumstances(runs[0]) if fact not in shared]
        if len(runs) > 1:
            seeds = [str(run["seed"]) for run in runs]
            expected = [command(runs[0]).replace(f"--seed {seeds[0]}", f"--seed {seed}") for seed in seeds]
            if [command(run) for run in runs] != expected:
                raise ValueError(f"the commands of {', '.join(file.name for file in group)} differ by more than --seed")
            own = [f"seeds {', '.join(seeds)}", *(fact for fact in own if not fact.startswith("seed "))]
        notes.append("; ".join([f"{number}. `{command(runs[0])}`", *own]))
    how = f"How each number was obtained ({'; '.join(shared)}):" if shared else "How each number was obtained:"
    return "\n".join([*rows, "", how, "", *notes])


def between(text: str, start: str, end: str, content: str) -> str:
    """`text` with `content` between the two marks."""
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise ValueError(f"README.md must contain the marks {start!r} and {end!r}")
    return f"{before}{start}\n{content}\n{end}{after}"


def summaries_text(files: list[Path]) -> str:
    """Markdown: of each summarizer its table beside what needs no training, and how it was obtained."""
    parts = []
    for file in files:
        result = json.loads(file.read_text())
        metrics = result["metrics"]
        own, shuffled = metrics["reconstruction_accuracy"], metrics["shuffled_reconstruction_accuracy"]
        heading = f"**{result['corpus']['name']}**, {result['corpus']['rows']:,} validation pairs."
        restored = (
            f"From its own summary {own:.1%} of a text's tokens are restored, from another text's {shuffled:.1%} "
            f"(teacher forcing); mean deviation from the words asked for: {metrics['length_deviation']:.2f}."
        )
        how = f"`{result['command']}` ({'; '.join(circumstances(result))})"
        parts.append("\n\n".join([f"{heading} {restored}", format_table(result["table"]), how]))
    return "\n\n".join(parts) or "No results are committed yet."


def speech_text(files: list[Path]) -> str:
    """Markdown: of each model of speech its table, what is not in it, and how it was obtained."""
    parts = []
    for file in files:
        result = json.loads(file.read_text())
        corpus = result["corpus"]
        numbers = sentence(MEASURED_SPEECH, result["metrics"])
        compared = sentence(COMPARED_SPEECH, result["baselines"])
        text = f"**{result['name']}** on {Path(corpus['name']).name}, {corpus['rows']:,} {corpus['split']} clips"
        text += "".join(f"; {numbers}" for numbers in (numbers, compared) if numbers) + "."
        how = f"`{command(result)}` ({'; '.join(circumstances(result))})"
        parts.append("\n\n".join([text, format_table(result["table"]), how]))
    return "\n\n".join(parts) or "No results are committed yet."


# Sets of images that samples are compared beside: prefix in `baselines` -> how it reads.
IMAGE_SETS = {
    "": "the prior",
    "standard_normal_": "N(0, I)",
    "uniform_codes_": "uniformly random codes",
    "train_reconstructions_": "reconstructions of training images",
    "train_images_": "training images",
}
MEASURED_OF_SETS = {
    "frechet_distance": ("Frechet distance", "{:.2f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "bits_per_dimension": ("bits/dim", "{:.3f}"),
    "code_bits_per_image": ("bits of the codes", "{:.0f}"),
    "negative_elbo": ("negative ELBO, nats", "{:.1f}"),
}


def generation_text(files: list[Path]) -> str:
    """Markdown: of each prior its samples beside other sets of images, and how it was obtained."""
    parts = []
    for file in files:
        result = json.loads(file.read_text())
        settings = result["settings"]
        sets = {prefix: {} for prefix in IMAGE_SETS}
        sets[""] = result["metrics"]
        for name, value in result["baselines"].items():
            prefix = next(prefix for prefix in IMAGE_SETS if prefix and name.startswith(prefix))
            sets[prefix][name.removeprefix(prefix)] = value
        sets = {prefix: values for prefix, values in sets.items() if values}
        shown = [name for name in MEASURED_OF_SETS if name in result["metrics"]]
        rows = [
            "| | " + " | ".join(MEASURED_OF_SETS[name][0] for name in shown) + " |",
            "|---|" + "---:|" * len(shown),
        ]
        for prefix, values in sets.items():
            cells = [MEASURED_OF_SETS[name][1].format(values[name]) if name in values else "" for name in shown]
            rows.append(f"| {IMAGE_SETS[prefix]} | {' | '.join(cells)} |")
        accuracy = settings.get("accuracy_of_the_features_classifier")
        told = f", a classifier of {accuracy:.1%} accuracy" if accuracy else ""
        heading = (
            f"**{result['name']}** on {Path(result['corpus']['name']).name}, {settings['num_samples']:,} images of "
            f"each set; features `{settings['features']}`{told}."
        )
        how = f"`{command(result)}` ({'; '.join(circumstances(result))})"
        parts.append("\n\n".join([heading, "\n".join(rows), how]))
    return "\n\n".join(parts) or "No results are committed yet."


def filled(readme: str) -> str:
    """The README's text with the results as they are in `docs/results`."""
    files = {"image": [], "audio": [], "text": [], "latent": []}
    for file in sorted(RESULTS.glob("*.json")):
        files[VARIANTS[json.loads(file.read_text())["model_type"]].modality].append(file)
    readme = between(readme, START, END, results_table(files["image"]))
    readme = between(readme, GENERATION_START, GENERATION_END, generation_text(files["latent"]))
    readme = between(readme, SPEECH_START, SPEECH_END, speech_text(files["audio"]))
    return between(readme, SUMMARIES_START, SUMMARIES_END, summaries_text(files["text"]))


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text()))
