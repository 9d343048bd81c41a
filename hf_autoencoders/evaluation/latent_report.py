"""What does each part of a code stand for? A page for people, and the same as JSON and Markdown.

    latent_report           encode a corpus, measure, draw, write `index.html`, `latent_report.json`, `.md` and pictures
    report_beside           the same for the folder of a model, whose card takes it up
    permutation_test        information of codes on factors, beside that of chance
    format_latent_report    the Markdown tables, for a model card

What is reported depends on what `encode` of the model gives, never on its name:

    mean, log_variance (rows, size)                    dimensions, sorted by their KL from N(0, 1)
    codes and probabilities (rows, num_bits)           bits, sorted by entropy
    codes (rows, n), probabilities (rows, n, classes)  variables, sorted by entropy, and each of their classes
    latents (rows, size) alone                         dimensions without a posterior, sorted by variance

Dimensions come with bits or variables where the model has both. Decoded are changed codes: by `decode_codes`, or where
there are dimensions by `decode`, from dimensions and then bits, or the one-hot classes of all variables, in one vector.

How sure is it? The mutual information of finite rows is never 0, so its mean over permutations of the rows (with all
factors moved together) is subtracted, and its p-value is the share of permutations in which any part of the code, for
any factor, was as many standard deviations above its mean (Westfall and Young 1993, single-step maxT): the probability
that chance alone would have shown anything like it anywhere on the page.
"""

import datetime
import html
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..models.losses import gaussian_kl
from .checks import check_positive, check_uint8_images
from .disentanglement import NUM_BINS, discretize
from .evaluate import DEFAULT_BATCH_SIZE, library_versions, pixel_value_batches, variant_name, write_metrics
from .factors import Factor, corpus_factors
from .pictures import interpolation_strip

NUM_PERMUTATIONS = 999
SIGNIFICANCE = 0.01  # p-values below it are called sure
MAX_ROWS = 10_000
MAX_PICTURES = 64  # of each kind
STEPS = 9  # of a traversal
TRAVERSAL_QUANTILES = 0.01, 0.99
MAX_CLASSES_DRAWN = 20
MAX_CARD_PICTURES = 8  # of a card; the page has them all


# Information


class Information(NamedTuple):
    """Of each column of codes on each factor, (num_columns, num_factors) float64 each."""

    nats: np.ndarray
    """Mutual information, from the frequencies"""
    chance: np.ndarray
    """Its mean over permutations"""
    p_values: np.ndarray
    """In [1 / (num_permutations + 1), 1], corrected for the number of columns and factors"""


def permutation_test(
    columns: np.ndarray, factors: np.ndarray, *, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0
) -> Information:
    """Mutual information of discrete columns and factors, and what it is when the rows are shuffled.

    Args:
        columns: (rows, num_columns) whole numbers >= 0.
        factors: (rows, num_factors) whole numbers >= 0.
        num_permutations: more of them allow smaller p-values.
        seed: of the permutations.

    Raises:
        ValueError: other shapes, or negative or no whole numbers.
    """
    check_positive("num_permutations", num_permutations)
    columns, factors = np.asarray(columns), np.asarray(factors)
    for name, values in (("columns", columns), ("factors", factors)):
        if values.ndim != 2 or values.size == 0 or len(values) != len(columns):
            raise ValueError(
                f"`columns` and `factors` must be (rows, ...) of the same rows, got {columns.shape} and {factors.shape}"
            )
        if not np.issubdtype(values.dtype, np.integer) or values.min() < 0:
            raise ValueError(f"`{name}` must be whole numbers >= 0, got {values.dtype} from {values.min()} on")
    rows = len(columns)
    counts = np.arange(rows + 1)
    n_log_n = counts * np.log(np.maximum(counts, 1))

    def entropies(values: np.ndarray) -> np.ndarray:
        return np.array([np.log(rows) - n_log_n[np.bincount(column)].sum() / rows for column in values.T])

    sizes = columns.max(axis=0) + 1
    starts = np.cumsum(sizes) - sizes
    shifted = columns + starts  # all columns in one table
    factor_sizes = factors.max(axis=0) + 1
    separate = entropies(columns)[:, None] + entropies(factors)

    def information(order: np.ndarray | slice) -> np.ndarray:
        joint = np.empty(separate.shape)
        for index, size in enumerate(factor_sizes):
            keys = shifted * size + factors[order, index, None]
            table = np.bincount(keys.ravel(), minlength=sizes.sum() * size)
            sums = np.add.reduceat(n_log_n[table].reshape(-1, size).sum(axis=1), starts)
            joint[:, index] = np.log(rows) - sums / rows
        return np.maximum(separate - joint, 0)

    rng = np.random.default_rng(seed)
    observed = information(slice(None))
    shuffled = np.stack([information(rng.permutation(rows)) for _ in range(num_permutations)])
    both = np.concatenate([observed[None], shuffled])  # standardised alike, else the observed order would stand out
    deviation = both.std(axis=0)
    varies = deviation > 1e-12  # not where a column is constant
    scores = np.where(varies, (both - both.mean(axis=0)) / np.where(varies, deviation, 1), -np.inf)
    highest = scores[1:].max(axis=(1, 2))
    as_high = (highest[:, None, None] >= scores[0]).sum(axis=0)
    return Information(observed, shuffled.mean(axis=0), (1 + as_high) / (1 + num_permutations))


# What the model makes of the images


class _Codes(NamedTuple):
    """What `encode` gives, for all rows."""

    means: torch.Tensor | None  # (rows, size)
    log_variances: torch.Tensor | None  # likewise
    codes: torch.Tensor | None  # (rows, num_bits or num_variables) int64
    num_classes: int | None  # of each variable; None for bits

    @property
    def kind(self) -> str:
        return "bit" if self.num_classes is None else "variable"


def _encode(model, images: np.ndarray, batch_size: int, progress: bool) -> _Codes:
    outputs = []
    for pixel_values in pixel_value_batches(model, images, batch_size, "encode" if progress else None):
        output = model.encode(pixel_values)
        fields = {name: getattr(output, name, None) for name in ("mean", "log_variance", "codes", "latents")}
        probabilities = getattr(output, "probabilities", None)
        classes = None if probabilities is None else probabilities.shape[1:]
        outputs.append({name: value.cpu() for name, value in fields.items() if value is not None})
    parts = {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}
    codes = parts.get("codes")
    if codes is not None and (codes.ndim != 2 or classes is None or classes[0] != codes.shape[1]):
        raise ValueError(
            "expected codes (rows, parts) beside probabilities (rows, parts) or (rows, parts, classes), got codes "
            f"{tuple(codes.shape)} and {'no probabilities' if classes is None else ('rows', *classes)}: a grid of "
            "codes has no parts of its own that could be reported"
        )
    means = parts.get("mean", parts["latents"] if codes is None else None)
    if means is not None and means.ndim != 2:
        raise ValueError(f"expected a vector of latents (rows, size) of each image, got {tuple(means.shape)}")
    for name, values in {"latents": means, "codes": codes}.items():
        if values is not None and not torch.isfinite(values).all():
            raise ValueError(f"the {name} of this model hold NaN or infinite values")
    num_classes = classes[1] if codes is not None and len(classes) == 2 else None
    log_variances = parts.get("log_variance")
    return _Codes(
        None if means is None else means.float(),
        None if log_variances is None else log_variances.float(),
        None if codes is None else codes.long(),
        num_classes,
    )


def _decode(model, means: torch.Tensor | None, codes: torch.Tensor | None, num_classes: int | None) -> torch.Tensor:
    """Images (rows, channels, height, width) of changed codes."""
    if means is None:
        return model.decode_codes(codes.to(model.device)).float().cpu()
    parts = [means]
    if codes is not None:
        one_hot = codes if num_classes is None else torch.nn.functional.one_hot(codes, num_classes).flatten(1)
        parts.append(one_hot.float())
    return model.decode(torch.cat(parts, dim=1).to(model.device)).float().cpu()


def _strip(model, rows: list[tuple], num_classes: int | None):
    """A picture with one row for each (means (steps, size) or None, codes (steps, parts) or None)."""
    images = [_decode(model, means, codes, num_classes) for means, codes in rows]
    return interpolation_strip(torch.stack(images))


def _repeat(codes: _Codes, row: int, steps: int) -> tuple:
    """The code of one image `steps` times, to be changed."""
    return tuple(None if values is None else values[row].repeat(steps, 1) for values in (codes.means, codes.codes))


def _traversal(model, codes: _Codes, index: int, rows: list[int]):
    """One row for each image: dimension `index` from its 1st to its 99th percentile, all else as it is."""
    path = torch.linspace(*np.quantile(codes.means[:, index].numpy(), TRAVERSAL_QUANTILES).tolist(), STEPS)
    strips = []
    for row in rows:
        means, kept = _repeat(codes, row, STEPS)
        means[:, index] = path
        strips.append((means, kept))
    return _strip(model, strips, codes.num_classes)


def _switch(model, codes: _Codes, index: int, rows: list[int]):
    """One column for each image: bit `index` off above, on below."""
    strips = []
    for value in (0, 1):
        changed = codes.codes[rows].clone()
        changed[:, index] = value
        strips.append((None if codes.means is None else codes.means[rows], changed))
    return _strip(model, strips, codes.num_classes)


def _prototypes(model, codes: _Codes, index: int, classes: list[int], rows: list[int]):
    """One column for each class of variable `index`, one row for each image, all else as it is.

    With dimensions beside it the first row has them at the prior's mean, 0; a variable that is all there is has one
    row.
    """
    strips, alone = [], codes.codes.shape[1] == 1
    for number, row in enumerate(rows[:1] if alone and codes.means is None else rows):
        means, changed = _repeat(codes, row, len(classes))
        changed[:, index] = torch.tensor(classes)
        if number == 0 and means is not None:
            means.zero_()
        strips.append((means, changed))
    return _strip(model, strips, codes.num_classes)


# The report


@torch.inference_mode()
def latent_report(
    model,
    arrays,
    output_dir: str | os.PathLike,
    *,
    factors: list[str] | None = None,
    corpus: dict[str, Any] | None = None,
    num_images: int = 4,
    max_rows: int = MAX_ROWS,
    num_permutations: int = NUM_PERMUTATIONS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    command: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write what each dimension, bit or class of a model stands for, with pictures of it.

    Args:
        model: an image auto-encoder of this package, or one that encodes and decodes as the module's text says.
        arrays: `ImageArrays` with factors, see `factors.corpus_factors`.
        output_dir: folder of `index.html`, its pictures, `latent_report.json` and `latent_report.md`; made if needed.
        factors: names of the columns that are factors; found when not given.
        corpus: what the images are, for example `{"name": ..., "split": ...}`.
        num_images: images that are changed for a picture.
        max_rows: of more rows as many are drawn.
        num_permutations: of the test.
        batch_size: images at once.
        seed: of the drawn rows and of the permutations.
        command: how to repeat this; the command line of this process by default.
        progress: show progress bars.

    Returns:
        What `latent_report.json` holds: `factors`, and `components` with for each `kind` ("dimension", "bit" or
        "variable"), `index`, `information` by factor (`bits` above chance; `share`, which these are of what is left of
        the factor's entropy above chance, in [0, 1]; `p_value`), `factor`, the one it knows most of (dimensions and
        variables by share, bits by bits), whether that is `sure` (p-value below 0.01), and `picture`. Of a dimension
        `variance` (of means over rows) and `kl` (nats), of the others `entropy_bits`. A bit has P(bit = 1) for each
        value of the factor in `probabilities`, a variable its used `classes` with `rows`, the commonest value, its
        `share`, and the `counts` of all values.

    Raises:
        ValueError: no factor, or a model whose code is no vector of dimensions, bits or variables.
    """
    check_uint8_images("arrays.images", arrays.images)
    for name, value in (("num_images", num_images), ("max_rows", max_rows), ("batch_size", batch_size)):
        check_positive(name, value)
    rows, known, left_out = corpus_factors(arrays, factors)
    if len(rows) > max_rows:
        chosen = np.sort(np.random.default_rng(seed).choice(len(rows), max_rows, replace=False))
        rows, known = rows[chosen], [factor.select(chosen) for factor in known]
    was_training = model.training
    model.eval()
    try:
        codes = _encode(model, arrays.images[rows], batch_size, progress)
        components = _components(codes, known, num_permutations, seed)
        output_dir = Path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        shown = np.unique(np.linspace(0, len(rows) - 1, num_images).astype(int)).tolist()
        many = np.unique(np.linspace(0, len(rows) - 1, 3 * num_images).astype(int)).tolist()
        drawn = dict.fromkeys(("dimension", "bit", "variable"), 0)
        for component in components:
            kind, index = component["kind"], component["index"]
            if drawn[kind] == MAX_PICTURES:
                continue
            drawn[kind] += 1
            if kind == "dimension":
                picture = _traversal(model, codes, index, shown)
            elif kind == "bit":
                picture = _switch(model, codes, index, many)
            else:
                classes = [entry["class"] for entry in component["classes"][:MAX_CLASSES_DRAWN]]
                picture = _prototypes(model, codes, index, classes, shown)
            component["picture"] = f"{kind}_{index}.png"
            picture.save(output_dir / component["picture"])
    finally:
        model.train(was_training)

    report = {
        "model_type": model.config.model_type,
        "name": variant_name(model.config.model_type),
        "corpus": {**(corpus or {}), "rows": len(rows)},
        "factors": [
            {"name": f.name, "num_values": len(f.value_names), "entropy_bits": f.entropy / math.log(2)} for f in known
        ],
        "left_out": left_out,
        "components": components,
        "settings": {
            "num_permutations": num_permutations,
            "significance": SIGNIFICANCE,
            "num_bins": NUM_BINS,
            "batch_size": batch_size,
        },
        "seed": seed,
        "command": command or shlex.join(sys.argv),
        "versions": library_versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_metrics(output_dir / "latent_report.json", report)
    (output_dir / "latent_report.md").write_text(format_latent_report(report) + "\n", encoding="utf-8")
    (output_dir / "index.html").write_text(_page(report), encoding="utf-8")
    return report


def report_beside(model, arrays, folder: str | os.PathLike, **options) -> dict[str, Any]:
    """Write the report of a model into its folder: `latent_report/`, the page, and `latent_report.md` for the card.

    Args:
        model, arrays, options: see `latent_report`, which also says what is returned and raised.
        folder: of the model's weights; made if needed. A report that lies in it is replaced.
    """
    folder, name = Path(folder), "latent_report"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".report-") as temporary:
        report = latent_report(model, arrays, Path(temporary) / name, **options)
        (Path(temporary) / name / f"{name}.md").unlink()
        shutil.rmtree(folder / name, ignore_errors=True)
        (Path(temporary) / name).rename(folder / name)
        text = format_latent_report(report, pictures=name)
        (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    return report


def _components(codes: _Codes, factors: list[Factor], num_permutations: int, seed: int) -> list[dict[str, Any]]:
    """What is measured of each part of the code: the list in the report, without its pictures."""
    columns, size = [], 0
    if codes.means is not None:
        size = codes.means.shape[1]
        columns.append(discretize(codes.means.numpy()))
    if codes.codes is not None:
        columns.append(codes.codes.numpy())
    table = np.stack([factor.values for factor in factors], axis=1)
    tested = permutation_test(np.concatenate(columns, axis=1), table, num_permutations=num_permutations, seed=seed)
    bits = np.maximum(tested.nats - tested.chance, 0) / math.log(2)
    entropies = np.array([factor.entropy for factor in factors])
    room = entropies - tested.chance
    shares = np.where(room > 1e-9, bits * math.log(2) / np.where(room > 1e-9, room, 1), 0)

    def common(kind: str, index: int, row: int) -> dict[str, Any]:
        best = int((bits if kind == "bit" else shares)[row].argmax())
        information = {
            factor.name: {"bits": bits[row, j], "share": shares[row, j], "p_value": tested.p_values[row, j]}
            for j, factor in enumerate(factors)
        }
        return {
            "kind": kind,
            "index": index,
            "factor": factors[best].name,
            "sure": bool(tested.p_values[row, best] < SIGNIFICANCE),
            "information": {name: {k: float(v) for k, v in entry.items()} for name, entry in information.items()},
        }

    dimensions, discrete = [], []
    if codes.means is not None:
        variances = codes.means.double().var(dim=0, correction=0).tolist()
        kl = None
        if codes.log_variances is not None:
            kl = gaussian_kl(codes.means.double(), codes.log_variances.double()).mean(dim=0)
        for index in range(size):
            extra = {} if kl is None else {"kl": kl[index].item()}
            dimensions.append(common("dimension", index, index) | extra | {"variance": variances[index]})
        dimensions.sort(key=lambda component: -component.get("kl", component["variance"]))
    if codes.codes is not None:
        by_name = {factor.name: factor for factor in factors}
        for index, column in enumerate(codes.codes.numpy().T):
            component = common(codes.kind, index, size + index)
            factor = by_name[component["factor"]]
            shares_of_values = np.bincount(column) / len(column)
            shares_of_values = shares_of_values[shares_of_values > 0]
            component["entropy_bits"] = float(abs((shares_of_values * np.log2(shares_of_values)).sum()))
            describe = _describe_bit if codes.kind == "bit" else _describe_variable
            discrete.append(component | describe(column, factor))
        discrete.sort(key=lambda component: -component["entropy_bits"])
    return dimensions + discrete


def _describe_bit(column: np.ndarray, factor: Factor) -> dict[str, Any]:
    """How often the bit is 1, also for each value of a factor, and for which most and least."""
    shares = np.bincount(factor.values, weights=column) / np.bincount(factor.values)
    return {
        "frequency": float(column.mean()),
        "probabilities": dict(zip(factor.value_names, shares.tolist(), strict=True)),
        "present_for": factor.value_names[int(shares.argmax())],
        "absent_for": factor.value_names[int(shares.argmin())],
    }


def _describe_variable(column: np.ndarray, factor: Factor) -> dict[str, Any]:
    """The used classes, by falling number of rows, and the values of the factor in them."""
    classes = []
    for value in np.unique(column):
        counts = np.bincount(factor.values[column == value], minlength=len(factor.value_names))
        classes.append(
            {
                "class": int(value),
                "rows": int(counts.sum()),
                "value": factor.value_names[int(counts.argmax())],
                "share": float(counts.max() / counts.sum()),
                "counts": dict(zip(factor.value_names, counts.tolist(), strict=True)),
            }
        )
    return {"classes": sorted(classes, key=lambda entry: -entry["rows"])}


# For people


def _p_value(p_value: float, report: dict[str, Any]) -> str:
    smallest = 1 / (1 + report["settings"]["num_permutations"])
    return f"≤ {smallest:.2g}" if p_value <= smallest * 1.001 else f"{p_value:.2g}"


def _others(component: dict[str, Any], report: dict[str, Any]) -> str:
    """The other factors that the component surely knows 5 % of, the most known first."""
    known = {
        name: entry["share"]
        for name, entry in component["information"].items()
        if name != component["factor"] and entry["p_value"] < SIGNIFICANCE and entry["share"] >= 0.05
    }
    return ", ".join(f"{name} {share:.0%}" for name, share in sorted(known.items(), key=lambda item: -item[1]))


def format_latent_report(report: dict[str, Any], pictures: str | None = None) -> str:
    """The report as Markdown tables: one for dimensions, one for bits, one for the classes of each variable.

    Args:
        report: what `latent_report` returned.
        pictures: the folder of the page as a link from the text; of the parts that surely know a factor, and of
            variables, the first eight pictures are shown then. None by default.
    """
    blocks = []
    for kind in ("dimension", "bit"):
        rows = [_columns(component, report) for component in report["components"] if component["kind"] == kind]
        if rows:
            blocks.append(_markdown([list(rows[0]), *(list(row.values()) for row in rows)]))
    for component in report["components"]:
        if component["kind"] == "variable":
            columns = [f"class of variable {component['index']}", "rows", f"commonest {component['factor']}", "share"]
            cells = [[str(e["class"]), str(e["rows"]), e["value"], f"{e['share']:.0%}"] for e in component["classes"]]
            blocks += [_sentence(component, report), _markdown([columns, *cells])]
    blocks.append(_legend(report))
    if pictures is not None:
        shown = [c for c in report["components"] if "picture" in c and (c["sure"] or c["kind"] == "variable")]
        for component in shown[:MAX_CARD_PICTURES]:
            name = f"{component['kind']} {component['index']}"
            blocks.append(f"![decoded images of {name}]({pictures}/{component['picture']})")
            blocks.append(f"*{_escaped(_sentence(component, report))} {_about(component)}*")
        blocks.append(f"All pictures are on the page `{pictures}/index.html` beside the weights.")
    return "\n\n".join(blocks)


def _escaped(text: str) -> str:
    """Text for a line of Markdown: names of factors and values may hold marks."""
    return re.sub(r"([*_`\[\]<>])", r"\\\1", text)


def _about(component: dict[str, Any]) -> str:
    """How to read the picture of a part of the code."""
    if component["kind"] == "dimension":
        return (
            "Each row is one image; from left to right this dimension goes from its 1st to its 99th percentile, all "
            "else stays as it is."
        )
    if component["kind"] == "bit":
        return "Each column is one image; the bit is 0 above and 1 below, all else stays as it is."
    many = len(component["classes"]) > MAX_CLASSES_DRAWN
    first = f" (the first {MAX_CLASSES_DRAWN})" if many else ""
    return (
        f"One column for each class, in the order of the table{first}; rows differ in the rest of the code, where "
        "there is one."
    )


def _columns(component: dict[str, Any], report: dict[str, Any]) -> dict[str, str]:
    """Column title to cell, of a dimension or bit."""
    best = component["information"][component["factor"]]
    sure, p_value = component["sure"], _p_value(best["p_value"], report)
    cells = {component["kind"]: str(component["index"])}
    if component["kind"] == "dimension":
        if "kl" in component:
            cells["KL (nats)"] = f"{component['kl']:.2f}"
        else:
            cells["variance"] = f"{component['variance']:.3g}"
        cells["knows most of"] = component["factor"] if sure else "-"
        cells["share of it"] = f"{best['share']:.0%}" if sure else "-"
        return cells | {"p": p_value, "also knows": _others(component, report) or "-"}
    cells["entropy (bits)"] = f"{component['entropy_bits']:.2f}"
    cells["knows most of"] = component["factor"] if sure else "-"
    cells["bits of it"] = f"{best['bits']:.2f}" if sure else "-"
    ends = {"mostly 1 for": "present_for", "mostly 0 for": "absent_for"}
    for title, end in ends.items():
        value = component[end]
        cells[title] = f"{value} ({component['probabilities'][value]:.0%})" if sure else "-"
    return cells | {"p": p_value}


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _sentence(component: dict[str, Any], report: dict[str, Any]) -> str:
    """What the component stands for."""
    name, factor = f"{component['kind'].capitalize()} {component['index']}", component["factor"]
    best = component["information"][factor]
    if not component["sure"]:
        return f"{name} tells nothing of any factor that chance would not (p = {best['p_value']:.2g})."
    p_value = _p_value(best["p_value"], report)
    p_value = p_value if p_value.startswith("≤") else f"= {p_value}"
    others = _others(component, report)
    also = f", also {others}" if others else ""
    if component["kind"] != "bit":
        return f"{name} knows {best['share']:.0%} of {factor} (p {p_value}){also}."
    ends = [
        f"{component[end]} ({component['probabilities'][component[end]]:.0%})" for end in ("present_for", "absent_for")
    ]
    return (
        f"{name} knows {best['bits']:.2f} bit of {factor} (p {p_value}): mostly 1 for {ends[0]}, 0 for {ends[1]}{also}."
    )


def _images(report: dict[str, Any]) -> str:
    """How many images of what."""
    corpus = report["corpus"]
    name = corpus.get("name", "")
    name = Path(name).name if Path(name).is_absolute() else name  # where it lies tells nothing
    place = " ".join(filter(None, [name, corpus.get("split")]))
    return f"{corpus['rows']} images" + (f" of {place}" if place else "")


def _legend(report: dict[str, Any]) -> str:
    return (
        f"Mutual information above chance on {_images(report)}, in bits or as a share of what is left of the factor's "
        "entropy above chance; p: permutation test over all parts of the code and all factors at once "
        f"({report['settings']['num_permutations']} permutations); - where p is not below {SIGNIFICANCE}."
    )


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2.2em; } p.note { color: #666; font-size: 0.9em; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25em 0.7em; text-align: right; border-bottom: 1px solid #e4e4e4; }
th { font-weight: 600; } td:first-child, th:first-child { text-align: left; }
div.wide { overflow-x: auto; } img { max-width: 100%; border: 1px solid #e4e4e4; } a { color: #15599c; }
code { background: #f4f4f4; padding: 0.1em 0.3em; overflow-wrap: anywhere; }
"""


def _page(report: dict[str, Any]) -> str:
    """`index.html`."""
    names = [factor["name"] for factor in report["factors"]]
    title = f"Latent report: {report['name']}"
    factors = ", ".join(f"{f['name']} ({f['num_values']} values)" for f in report["factors"])
    reasons = "; ".join(f"{name} ({reason})" for name, reason in report["left_out"].items())
    left_out = f" Left out: {reasons}." if reasons else ""
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(f'{_images(report)}. Factors: {factors}.{left_out}')}</p>",
        "<p>Each cell is the share of a factor that a part of the code knows (mutual information above chance, over "
        "what is left of the entropy of the factor above chance), or how much of it a bit knows, at most 1 bit. Bold: "
        "a permutation test over all cells at once gives p below "
        f"{SIGNIFICANCE}.</p>",
        _overview(report, names),
    ]
    for component in report["components"]:
        body += _section(component, report)
    body.append(
        f'<p class="note">{html.escape(_legend(report))} Dimensions are cut into {report["settings"]["num_bins"]} bins '
        f"of equal width. Made {html.escape(report['date'])} by <code>{html.escape(report['command'])}</code></p>"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _overview(report: dict[str, Any], names: list[str]) -> str:
    rows = []
    for component in report["components"]:
        kind, index = component["kind"], component["index"]
        cells = [f'<a href="#{kind}_{index}">{kind} {index}</a>', _size(component)]
        shades = []
        for name in names:
            entry = component["information"][name]
            known = entry["bits" if kind == "bit" else "share"]
            number = f"{known:.2f} bit" if kind == "bit" else f"{known:.0%}"
            cells.append(f"<b>{number}</b>" if entry["p_value"] < SIGNIFICANCE else number)
            shades.append(known)
        rows.append(_row(cells, [0, 0, *shades]))
    head = "".join(f"<th>{html.escape(title)}</th>" for title in ["part of the code", "size", *names])
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n' + "\n".join(rows) + "\n</table></div>"


def _row(cells: list[str], shades: list[float]) -> str:
    """A row of a table whose cells are the darker the nearer their shade is to 1."""
    styles = [f' style="background: rgba(21, 89, 156, {0.6 * shade:.2f})"' if shade > 0.005 else "" for shade in shades]
    return "<tr>" + "".join(f"<td{style}>{cell}</td>" for cell, style in zip(cells, styles, strict=True)) + "</tr>"


def _size(component: dict[str, Any]) -> str:
    if "kl" in component:
        return f"{component['kl']:.2f} nats"
    if "entropy_bits" in component:
        return f"{component['entropy_bits']:.2f} bits"
    return f"variance {component['variance']:.3g}"


def _section(component: dict[str, Any], report: dict[str, Any]) -> list[str]:
    kind, index = component["kind"], component["index"]
    lines = [
        f'<h2 id="{kind}_{index}">{kind.capitalize()} {index} &middot; {_size(component)}</h2>',
        f"<p>{html.escape(_sentence(component, report))}</p>",
    ]
    if kind == "bit" and component["sure"]:
        probabilities = component["probabilities"]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in [component["factor"], *probabilities])
        cells = ["P(bit = 1)", *(f"{share:.0%}" for share in probabilities.values())]
        row = _row(cells, [0, *probabilities.values()])
        lines.append(f'<div class="wide"><table>\n<tr>{head}</tr>\n{row}\n</table></div>')
    if kind == "variable":
        values = list(component["classes"][0]["counts"])
        titles = ["class", "rows", f"commonest {component['factor']}", "share"]
        few = len(values) <= MAX_CLASSES_DRAWN
        head = "".join(f"<th>{html.escape(title)}</th>" for title in titles + (values if few else []))
        rows = []
        for entry in component["classes"]:
            cells = [str(entry["class"]), str(entry["rows"]), html.escape(entry["value"]), f"{entry['share']:.0%}"]
            counts = list(entry["counts"].values()) if few else []
            rows.append(_row(cells + list(map(str, counts)), [0] * 4 + [count / entry["rows"] for count in counts]))
        lines.append(f'<div class="wide"><table>\n<tr>{head}</tr>\n' + "\n".join(rows) + "\n</table></div>")
    if "picture" in component:
        lines.append(f'<p class="note">{_about(component)}</p>')
        lines.append(f'<img src="{component["picture"]}" alt="decoded images of {kind} {index}">')
    return lines
