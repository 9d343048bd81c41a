"""Write the measured numbers of `docs/results/*.json` into the README, so that no number is typed by hand.

Each file is the `metrics.json` of one run, copied as it was written. `make style` rewrites what stands between the two
marks in the README; `make check` fails while the two differ.
"""

import json
from pathlib import Path

from hf_autoencoders.publishing import format_table
from hf_autoencoders.registry import VARIANTS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
START, END = "<!-- results: written by scripts/fill_readme.py -->", "<!-- end of results -->"

SPEECH_START, SPEECH_END = "<!-- speech: written by scripts/fill_readme.py -->", "<!-- end of speech -->"
SUMMARIES_START, SUMMARIES_END = "<!-- summaries: written by scripts/fill_readme.py -->", "<!-- end of summaries -->"

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
    "linear_probe_accuracy": "linear probe {:.2%}",
}
COMPARED = {
    "pca_same_size_mse": "PCA of the same size: MSE {:.5f}",
    "pca_equal_bits_mse": "PCA of equal bits: MSE {:.5f}",
    "pca_same_size_linear_probe_accuracy": "probe on PCA {:.2%}",
    "raw_pixels_linear_probe_accuracy": "probe on pixels {:.2%}",
}

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


def sentence(shown: dict[str, str], values: dict[str, float]) -> str:
    """The numbers of `values` that `shown` knows, in its order, as one line."""
    return ", ".join(text.format(values[name]) for name, text in shown.items() if name in values)


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


def results_table(files: list[Path]) -> str:
    """Markdown: one row for each result, and below, numbered alike, how each was obtained."""
    if not files:
        return "No results are committed yet."
    rows = ["| | variant | corpus | measured | for comparison |", "|---|---|---|---|---|"]
    results = [json.loads(file.read_text()) for file in files]
    shared = [fact for fact in circumstances(results[0]) if all(fact in circumstances(result) for result in results)]
    notes = []
    for number, result in enumerate(results, start=1):
        corpus = result["corpus"]
        place = f"{Path(corpus['name']).name}, {corpus['split']} split ({corpus['rows']:,} images)"
        measured, compared = sentence(MEASURED, result["metrics"]), sentence(COMPARED, result["baselines"])
        rows.append(f"| {number} | {result['name']} | {place} | {measured} | {compared} |")
        own = [fact for fact in circumstances(result) if fact not in shared]
        notes.append(f"{number}. " + "; ".join([f"`{command(result)}`", *own]))
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


def filled(readme: str) -> str:
    """The README's text with the results as they are in `docs/results`."""
    files = {"image": [], "audio": [], "text": []}
    for file in sorted(RESULTS.glob("*.json")):
        files[VARIANTS[json.loads(file.read_text())["model_type"]].modality].append(file)
    readme = between(readme, START, END, results_table(files["image"]))
    readme = between(readme, SPEECH_START, SPEECH_END, speech_text(files["audio"]))
    return between(readme, SUMMARIES_START, SUMMARIES_END, summaries_text(files["text"]))


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text()))
