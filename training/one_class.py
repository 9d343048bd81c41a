"""The one-class protocol: each class of a corpus is normal in turn, and results are averaged over classes.

    python training/one_class.py --recipe training/recipes/anomaly_digits.yaml --output_dir runs/one-class-digits

    python training/one_class.py --recipe training/recipes/anomaly_mnist.yaml --dataset mnist --output_dir runs/x

All other flags go to `train_anomaly_detector.py`, which runs once for each class, into `OUTPUT_DIR/CLASS`. A class that
is done is not run again. The averages are written to `OUTPUT_DIR/metrics.json`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import train_anomaly_detector

from hf_autoencoders.evaluation.evaluate import write_metrics
from hf_autoencoders.training_arguments import command_line


def average(results: dict[str, dict]) -> dict:
    """One `metrics.json` of those of the classes: means of metrics and baselines, and `auroc` of each class."""
    first = next(iter(results.values()))
    means = {
        group: {name: float(np.mean([r[group][name] for r in results.values()])) for name in first[group]}
        for group in ("metrics", "baselines")
    }
    of_classes = {f"auroc_{name}": result["metrics"]["auroc"] for name, result in results.items()}
    corpus = {name: value for name, value in first["corpus"].items() if name not in ("normal_class", "train_rows")}
    settings = {name: value for name, value in first["settings"].items() if name not in ("anomalous_rows",)}
    settings["classes"] = len(results)
    return first | means | {"metrics": means["metrics"] | of_classes, "corpus": corpus, "settings": settings}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument(
        "--classes", nargs="+", default=[str(n) for n in range(10)], help="Names or numbers. Default: 0-9."
    )
    argv = sys.argv[1:] if argv is None else argv
    arguments, passed = parser.parse_known_args(argv)
    results = {}
    for name in arguments.classes:
        folder = arguments.output_dir / name
        if not (folder / "final" / "metrics.json").is_file():
            flags = ["--normal_class", name, "--output_dir", str(folder), "--overwrite_output_dir"]
            train_anomaly_detector.main([*passed, *flags])
        results[name] = json.loads((folder / "final" / "metrics.json").read_text(encoding="utf-8"))
        print(name, {key: round(value, 4) for key, value in results[name]["metrics"].items()}, flush=True)
    result = average(results) | {"command": command_line(Path(__file__), argv)}
    print(f"written to {write_metrics(arguments.output_dir / 'metrics.json', result)}")
    for group in ("metrics", "baselines"):
        print(group, {name: round(value, 4) for name, value in result[group].items()})


if __name__ == "__main__":
    main()
