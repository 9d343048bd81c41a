"""Verbs of the command line about anomalies: `fit-detector`, `detect` and `evaluate-anomalies`.

`cli` registers them; what all verbs share is there.
"""

import argparse
import sys
from pathlib import Path

SCORES = (  # of models.configuration_base; a test holds them equal
    "reconstruction",
    "likelihood",
    "kl",
    "latent_distance",
    "latent_neighbors",
    "density",
    "feature_reconstruction",
)


def add_verbs(verb, model, corpus, batch_size, seed) -> None:
    """Add the verbs to the parser; the arguments are the helpers of `cli._parser`."""
    normal = "name or number of the class that is normal; all rows are when not given"
    sub = verb(
        "fit-detector",
        fit_detector,
        "make a trained model of images an anomaly detector, and save it in its folder",
        "Normal rows of the training split say what is usual; normal rows of --split, which the model has not been "
        "trained on, calibrate. Measure the detector on other rows: give evaluate-anomalies another --split.",
    )
    model(sub)
    corpus(sub, "calibrate on", speech=False)
    sub.add_argument("--score", choices=SCORES, default="reconstruction", help="what is high for an anomaly")
    sub.add_argument("--false_alarm_rate", type=float, default=0.05, help="share of normal images called anomalies")
    sub.add_argument("--normal_class", metavar="CLASS", help=normal)
    sub.add_argument("--num_reference_rows", type=int, default=5000, help="latents to keep, for latent_neighbors")
    sub.add_argument("--map_smoothing", type=float, default=0.0, metavar="PIXELS", help="smooth maps by so much")
    sub.add_argument("--map_pooling", choices=("mean", "max"), default="mean", help="the score of a map")
    sub.add_argument("-o", "--output", metavar="FOLDER", help="save the detector there instead of in MODEL")
    batch_size(sub)

    sub = verb(
        "detect",
        detect,
        "say of images whether they are anomalies",
        "Prints score, p-value and decision of each; with --output writes them as a table, and heat maps over images.",
    )
    model(sub)
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    sub.add_argument("-o", "--output", metavar="FOLDER", help="folder for anomalies.csv and the heat maps")
    batch_size(sub)

    sub = verb(
        "evaluate-anomalies",
        evaluate,
        "measure a detector on rows of both kinds, beside PCA, nearest neighbours and an isolation forest",
        "Writes a JSON file as evaluate does. --split should not be the one that fit-detector calibrated on "
        "(validation, if it was not told otherwise): false alarms on those rows say nothing about new ones.",
    )
    model(sub)
    corpus(sub, "measure on", speech=False)
    sub.add_argument(
        "--normal_class", metavar="CLASS", required=True, help="name or number of the class that is normal"
    )
    sub.add_argument("--mask_column", help="column with pictures of where an anomaly is")
    sub.add_argument("-o", "--output", metavar="FILE", default="anomalies.json", help="JSON file with the numbers")
    batch_size(sub)
    seed(sub)


def fit_detector(arguments: argparse.Namespace) -> None:
    """Calibrate a model on normal images of a corpus and save it with its detector."""
    from . import cli
    from .publishing import save_for_hub

    loaded, processor = _load(arguments)
    folder = Path(arguments.output or arguments.model)
    if not arguments.output and not folder.is_dir():
        raise cli.Mistake(f"{arguments.model} is on the Hub: say by --output in which folder to save the detector")
    if arguments.split == "train":
        raise cli.Mistake("--split train: the model has seen these rows; calibrate on rows that were held out")
    train, calibration = _read(arguments, loaded, processor)
    train, calibration = (_normal(arguments, rows)[0] for rows in (train, calibration))
    with cli._mistakes():
        loaded.fit_detector(
            train,
            calibration,
            score=arguments.score,
            false_alarm_rate=arguments.false_alarm_rate,
            num_reference_rows=arguments.num_reference_rows,
            map_smoothing=arguments.map_smoothing,
            map_pooling=arguments.map_pooling,
            batch_size=arguments.batch_size,
        )
        save_for_hub(loaded, folder, processor=processor)
    print(f"calibrated on {len(calibration)} rows: an anomaly is what scores above {loaded.anomaly_threshold:.6g}")
    print(f"saved to {folder}")


def detect(arguments: argparse.Namespace) -> None:
    """Print score, p-value and decision for image files; write them and heat maps if asked to."""
    import csv

    import numpy as np
    import torch
    from PIL import Image

    from . import cli
    from .evaluation.pictures import heat_overlay

    pictures = cli._output_files(arguments.images, arguments.output) if arguments.output else []
    loaded, processor = _load(arguments)
    cli._require(loaded, "detect", arguments, "no anomaly scores")
    if loaded.config.num_features:
        raise cli.Mistake(
            f'{arguments.model} reads rows of tables: use pipeline("anomaly-detection", model=...) in Python'
        )
    pixel_values = cli._read_images(processor, arguments.images, loaded.device)
    with cli._mistakes():
        threshold = loaded.anomaly_threshold
        parts = [loaded.detect(part) for part in pixel_values.split(arguments.batch_size)]
    scores, p_values, decisions, maps = (
        torch.cat([part[name] for part in parts]).cpu() for name in ("scores", "p_values", "is_anomaly", "maps")
    )
    rows = list(zip(arguments.images, scores.tolist(), p_values.tolist(), decisions.tolist(), strict=True))
    for path, score, p_value, decision in rows:
        print(f"{path}  score {score:.6g}  p-value {p_value:.4g}  {'anomaly' if decision else 'normal'}")
    if not arguments.output:
        return
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "anomalies.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "score", "p_value", "is_anomaly", "threshold"))
        table.writerows((p, f"{s:.6g}", f"{v:.6g}", int(d), f"{threshold:.6g}") for p, s, v, d in rows)
    if loaded.config.num_channels in (1, 3):
        images = (pixel_values.cpu().clamp(0, 1) * 255).round().numpy()
        highest = float(np.quantile(maps.numpy(), 0.999))
        for path, image, heat_map in zip(pictures, images, maps.numpy(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(heat_overlay(image, heat_map, 0.0, highest)).save(path)
    print(f"written to {folder}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure a detector on a split with anomalies, and write the numbers."""
    from . import cli
    from .evaluation.anomaly import evaluate_anomalies
    from .evaluation.evaluate import write_metrics

    cli._refuse_folder(arguments.output)
    loaded, processor = _load(arguments)
    cli._require(loaded, "detect", arguments, "no anomaly scores")
    if arguments.mask_column and loaded.config.num_features:
        raise cli.Mistake(f"--mask_column: {arguments.model} reads rows of tables, which have no maps. Leave it out")
    train, rows = _read(arguments, loaded, processor)
    masks = _masks(arguments, loaded, rows) if arguments.mask_column else None
    train, _ = _normal(arguments, train)
    _, is_normal = _normal(arguments, rows)
    known = rows.labels >= 0
    described = cli._corpus(arguments, rows) | {"normal_class": arguments.normal_class}
    if unlabelled := int((~known).sum()):
        print(f"{unlabelled} of {len(rows)} rows have no label, and are left out", file=sys.stderr)
        described["unlabelled_rows"] = unlabelled
        rows, is_normal, masks = rows.select(known), is_normal[known], None if masks is None else masks[known]
    with cli._mistakes():
        result = evaluate_anomalies(
            loaded,
            train,
            rows.images,
            ~is_normal,
            masks=masks,
            corpus=described,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            command=arguments.command_line,
        )
    for title in ("metrics", "baselines"):
        print(title)
        for name, value in result[title].items():
            print(f"  {name:<40} {value:.6g}")
    print(f"written to {write_metrics(arguments.output, result)}")


def _load(arguments: argparse.Namespace) -> tuple:
    """A model of images or of tables, ready to be used, and its processor."""
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

    from . import cli

    with cli._mistakes(f"cannot load {cli._checked_name(arguments)}: "):
        config = AutoConfig.from_pretrained(arguments.model, **cli._source(arguments))
    if not getattr(config, "num_features", 0):
        return cli._load_model(arguments)
    loaded = cli._load_weights(
        arguments, AutoModel, lambda found: hasattr(found, "detect"), "an auto-encoder of tables"
    )
    with cli._mistakes(f"cannot load the table processor of {arguments.model}: "):
        return loaded, AutoFeatureExtractor.from_pretrained(arguments.model, **cli._source(arguments))


def _read(arguments: argparse.Namespace, loaded, processor) -> list:
    """The training split of the corpus, and the one that `--split` names."""
    from . import cli

    names = ["train", arguments.split]
    if not loaded.config.num_features:
        return cli._load_images(arguments, processor, names)
    from .data import load_tables

    with cli._mistakes():
        tables, _ = load_tables(
            arguments.corpus,
            arguments.config_name,
            revision=arguments.corpus_revision,
            label_column=arguments.label_column,
            validation_fraction=arguments.validation_fraction or cli.VALIDATION_FRACTION,
            processor=processor,
        )
        if unknown := [name for name in names if name not in tables]:
            raise cli.Mistake(f"{arguments.corpus} has no split {unknown[0]!r}: expected one of {', '.join(tables)}")
    return [tables[name] for name in names]


def _masks(arguments: argparse.Namespace, loaded, rows):
    """Where anomalies are, of the rows that `_read` found in the split that `--split` names."""
    from . import cli
    from .data import load_corpus, load_masks

    with cli._mistakes():
        splits = load_corpus(
            arguments.corpus,
            arguments.config_name,
            revision=arguments.corpus_revision,
            validation_fraction=arguments.validation_fraction,  # `_read` has set it as in training
        )
        size = loaded.config.input_shape[1:]
        return load_masks(splits[arguments.split], arguments.mask_column, size, rows.skipped)


def _normal(arguments: argparse.Namespace, rows) -> tuple:
    """The normal images of a split, and which of all these are (rows,)."""
    import numpy as np

    from . import cli
    from .data.images import find_class

    if arguments.normal_class is None:
        return rows.images, np.ones(len(rows), bool)
    if rows.labels is None:
        raise cli.Mistake(f"--normal_class {arguments.normal_class}: {arguments.corpus} has no column of classes")
    with cli._mistakes("--normal_class: "):
        is_normal = rows.labels == find_class(arguments.normal_class, rows.label_names)
    if not is_normal.any():
        raise cli.Mistake(f"--normal_class: {arguments.corpus} has no row of class {arguments.normal_class}")
    return rows.images[is_normal], is_normal
