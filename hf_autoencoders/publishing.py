"""From a trained model to a folder, and to a repository on the Hub, that anyone can load.

    save_for_hub(model, "vqvae-digits", processor=processor, metrics=metrics)
    push_folder("vqvae-digits", "organisation/vqvae-digits")

Such a folder holds `config.json` with a full `auto_map`, `model.safetensors`, `preprocessor_config.json` or a
tokenizer, the code that these name, `README.md` (the model card) and, where they are there, `metrics.json`, `run.json`,
`recipe.yaml`, pictures and sounds, and what the latents mean: `latent_report.md`, a part of the card, with its page and
pictures in `latent_report/`. The card is a function of the folder: the text of `model_cards/<variant>.md`, filled with
what configuration, run and metrics say. What was not measured is not in it. Whoever edits a card takes its first
comment line out, and owns it then.

`model.save_pretrained` and `model.push_to_hub` lead here too (`models/portable.py`).
"""

import ast
import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import tokenizers
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from .registry import VARIANTS, Variant

logger = logging.get_logger(__name__)

PACKAGE_FOLDER = Path(__file__).parent
CONFIG, PROCESSOR, CARD = "config.json", "preprocessor_config.json", "README.md"
GENERATION = "generation_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")  # what `AutoTokenizer` needs
TOKENIZER_FILES = (*TOKENIZER, "special_tokens_map.json")  # the last one of versions of transformers before 5
METRICS, RUN, RECIPE = "metrics.json", "run.json", "recipe.yaml"
LATENT_REPORT, LATENT_PAGE = "latent_report.md", "latent_report"  # of the card, and the folder of its page and pictures
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICTURES = {
    "reconstructions.png": "Validation images (above) and their reconstructions (below).",
    "samples.png": "Samples from the prior.",
    "anomalies.png": "Validation images, their reconstructions, heat maps of the detector and, if known, the truth.",
    "conversions.png": "Log-mels of validation clips: source, reconstruction, target voice, conversion.",
}
DETECTOR_SECTION = """
## Detect anomalies

The model holds a calibrated detector: the score is `{{ config.anomaly_score }}`. An input is called an anomaly if
at most
{{ "%g" | format(100 * config.false_alarm_rate) }}% of normal inputs score as high, by
{{ config.num_calibration_scores }} normal inputs that it was not trained on. What is
normal is what those were: on inputs from elsewhere the share of false alarms is another one.

```python
found = model.detect(**inputs)  # .scores, .p_values, .is_anomaly{{ "" if config.num_features else ", .maps" }}
```
"""
SOUNDS, SOUND_KINDS = "example-*.wav", ("source", "target", "converted")
LICENSE = "apache-2.0"
TABLE_PROCESSOR = "feature_extraction_table.TableProcessor"  # of models whose inputs are rows of a table
PRIVATE_ARGUMENTS = ("output_dir", "cache_dir", "hub_model_id")  # of a run: they say nothing about the model
CARD_MARK = (
    "<!-- Written by hf_autoencoders from config.json and metrics.json. Delete this line to keep your own edits. -->"
)


# modality -> how its processor, which no model knows, comes into the folder
SAVED_BESIDE = {
    "text": ", and tokenizer.save_pretrained(folder)",
    "audio": ", and feature_extractor.save_pretrained(folder)",
}


class IncompleteFolderError(ValueError):
    """A folder that is not fit to be published; the message lists everything that is wrong with it."""


# -- the folder --------------------------------------------------------------------------------------------------------


def save_for_hub(
    model,
    output_dir: str | os.PathLike,
    *,
    processor=None,
    metrics: Mapping | str | os.PathLike | None = None,
    run: Mapping | str | os.PathLike | None = None,
    pictures: Sequence[str | os.PathLike] = (),
    model_id: str | None = None,
    max_shard_size: int | str = "50GB",
) -> Path:
    """Write everything that a published model needs to a folder.

    The files are written and checked beside their places first, then moved there one by one, so a save that fails (full
    disk, wrong metrics) leaves an older good one untouched. Other files in the folder, such as checkpoints, stay.

    Args:
        model: a model of this package, also one that was loaded with `trust_remote_code=True`.
        output_dir: the folder; it is made if needed.
        processor: the image processor, tokenizer or feature extractor the model was trained with. By default the image
            processor that fits its configuration. A tokenizer or feature extractor has to be given, unless one lies in
            the folder, which is kept.
        metrics: what was measured, as written by `hf-autoencoders evaluate`, or a path to it. Without it, a
            `metrics.json` that lies in the folder is kept.
        run: how it was trained, as a training run's `run.json` has it (`{"command": ..., "arguments": {...},
            "machine": ..., "versions": {...}}`), or a path to that; kept likewise.
        pictures: PNG and WAV files to publish; the card shows those that `PICTURES` names and links those that `SOUNDS`
            matches, also those that lie in the folder already.
        model_id: `"organisation/name"`, for the card's code example. By default the folder's name until it is pushed.
        max_shard_size: as in `save_pretrained`.

    Returns:
        Path: the folder.

    Raises:
        ValueError: a model of an unknown type, metrics of another model type, a folder that fails [`check_folder`].
        FileNotFoundError: `metrics` or a picture that does not exist.
    """
    variant = variant_of(model.config)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    model_id = model_id or _card_model_id(output_dir) or output_dir.resolve().name
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".saving-") as name:
        folder = Path(name)
        if metrics is None and (output_dir / METRICS).is_file():
            metrics = output_dir / METRICS
        if metrics is not None:
            _write_json(folder / METRICS, read_metrics(metrics, variant))
        if run is None and (output_dir / RUN).is_file():
            run = output_dir / RUN
        if run is not None:
            run = dict(run if isinstance(run, Mapping) else json.loads(Path(run).read_text("utf-8")))
            arguments = run.get("arguments", {})
            run["arguments"] = {name: value for name, value in arguments.items() if name not in PRIVATE_ARGUMENTS}
            _write_json(folder / RUN, run)
        kept = [*PICTURES, CARD, LATENT_REPORT, *_sounds(output_dir)]
        if processor is None:
            kept += TOKENIZER_FILES
            if getattr(model.config, "num_features", 0):
                kept += [PROCESSOR, f"{TABLE_PROCESSOR.partition('.')[0]}.py"]
            if variant.modality == "audio":
                kept += [PROCESSOR, f"{variant.processor.partition('.')[0]}.py"]
        kept = [output_dir / name for name in kept if (output_dir / name).is_file()]
        for file in (*kept, *map(Path, pictures)):
            shutil.copyfile(file, folder / file.name)
        if processor is not None:
            processor.save_pretrained(folder)
        saved = save_processor(model.config, folder)
        model.config.auto_map = dict(variant.auto_map)
        if getattr(model.config, "num_features", 0):
            model.config.auto_map = {k: v for k, v in variant.auto_map.items() if k != "AutoImageProcessor"} | saved
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        write_card(folder, model_id=model_id)
        check_folder(folder)
        written = sorted((file for file in folder.iterdir() if file.is_file()), key=lambda file: file.name == CONFIG)
        for file in written:  # the configuration last: a folder without it is not taken for a model
            file.replace(output_dir / file.name)
        names = {file.name for file in written}
        for file in (*output_dir.glob("model-*-of-*.safetensors"), output_dir / WEIGHTS_INDEX, output_dir / WEIGHTS):
            if file.name not in names:
                file.unlink(missing_ok=True)  # of an earlier save, in other shards
    return output_dir


def save_processor(config, folder: str | os.PathLike) -> dict[str, str]:
    """Write the image processor that fits a configuration, with its code, unless the folder has a processor already.

    Tokenizers and feature extractors are not written: their vocabulary and statistics are learned, and no configuration
    has them. Returns the processor's entry of `auto_map` where its code is in the folder.
    """
    variant = variant_of(config)
    if not variant.processor:
        return {}
    if getattr(config, "num_features", 0):  # of a table: its columns and their statistics are in no configuration
        module = TABLE_PROCESSOR.partition(".")[0]
        return {"AutoFeatureExtractor": TABLE_PROCESSOR} if (Path(folder) / f"{module}.py").is_file() else {}
    if variant.modality == "image" and not (Path(folder) / PROCESSOR).is_file():
        variant.processor_class().for_model(config).save_pretrained(folder)
    module = variant.processor.partition(".")[0]
    return {variant.processor_auto_class: variant.processor} if (Path(folder) / f"{module}.py").is_file() else {}


def published_files(folder: str | os.PathLike) -> list[str]:
    """The files that [`push_folder`] uploads, relative to the folder, which may hold checkpoints and logs as well."""
    folder = Path(folder)
    names = [CONFIG, GENERATION, PROCESSOR, *TOKENIZER_FILES, CARD, METRICS, RUN, RECIPE, WEIGHTS, WEIGHTS_INDEX]
    names += [*PICTURES, *_sounds(folder), LATENT_REPORT]
    page = folder / LATENT_PAGE
    names += [file.relative_to(folder).as_posix() for file in (page / "index.html", page / f"{LATENT_PAGE}.json")]
    names += [file.relative_to(folder).as_posix() for file in page.glob("*.png")]
    names += [file.name for file in (*folder.glob("model-*-of-*.safetensors"), *_code_files(folder))]
    return sorted(name for name in set(names) if (folder / name).is_file())


def check_folder(folder: str | os.PathLike, *, processor: bool = True) -> None:
    """Check that a folder will load where this package is not installed. It reads no weights, and takes milliseconds.

    Args:
        folder: the folder.
        processor: whether the folder must hold a tokenizer (of a text model) or feature extractor (of speech), too.

    Raises:
        IncompleteFolderError: with all that is missing or wrong.
    """
    folder, problems = Path(folder), []
    config = _read_json(folder / CONFIG, problems)
    if config is not None and config.get("model_type") not in VARIANTS:
        known = ", ".join(VARIANTS)
        problems.append(f"{CONFIG} has model_type {config.get('model_type')!r}, expected one of {known}")
    if not _weights_complete(folder):
        problems.append(f"{WEIGHTS} is missing or damaged (pickled weights are not published)")
    wanted = {CONFIG: ["AutoConfig", "AutoModel"]} if config is not None else {}
    variant = VARIANTS.get((config or {}).get("model_type"))
    if variant is not None:
        wanted[CONFIG] += list(variant.heads)
        of_table = bool(config.get("num_features"))
        if of_table and (processor or (folder / PROCESSOR).is_file()):
            wanted[PROCESSOR] = ["AutoFeatureExtractor"]
        elif variant.processor and (processor or variant.modality == "image" or (folder / PROCESSOR).is_file()):
            wanted[PROCESSOR] = [variant.processor_auto_class]
        if variant.modality == "text":
            problems += _tokenizer_problems(folder, variant.config_class().from_dict(config), processor)
        if variant.modality == "audio":
            problems += _feature_extractor_problems(folder, variant.config_class().from_dict(config))
    for name, auto_classes in wanted.items():
        entries = ((config if name == CONFIG else _read_json(folder / name, problems)) or {}).get("auto_map") or {}
        problems += [f"auto_map in {name} has no {auto}" for auto in auto_classes if auto not in entries]
        for auto, reference in entries.items():
            module, _, class_name = str(reference).partition(".")
            if "--" in module or not (folder / f"{module}.py").is_file():
                problems.append(f"auto_map in {name}: {auto} is {reference}, but there is no file {module}.py")
            elif class_name not in _classes(folder / f"{module}.py"):
                problems.append(f"auto_map in {name}: {auto} is {reference}, but {module}.py has no such class")
    for file in _code_files(folder):
        if not file.is_file():
            problems.append(f"{file.name} is imported by another file but missing")
        elif "hf_autoencoders" in _imports(file):
            problems.append(f"{file.name} imports hf_autoencoders, which is not installed where the model is loaded")
    if not (folder / CARD).is_file():
        problems.append(f"{CARD} (the model card) is missing")
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise IncompleteFolderError(
            f"{folder} is not a complete model folder of hf_autoencoders:\n{listed}\n"
            "Write it with save_for_hub(model, folder) or model.save_pretrained(folder)"
            f"{SAVED_BESIDE.get(variant.modality, '') if variant else ''}."
        )


def _tokenizer_problems(folder: Path, config, required: bool) -> list[str]:
    """What is wrong with the tokenizer that lies in the folder of a text model."""
    missing = [name for name in TOKENIZER if not (folder / name).is_file()]
    if missing:
        return [f"{name} is missing" for name in missing] if required or len(missing) < len(TOKENIZER) else []
    try:
        num_tokens = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER[0])).get_vocab_size()
    except Exception as error:  # of the library's own kind, which is Exception
        return [f"{TOKENIZER[0]} is no tokenizer: {error}"]
    problem = vocabulary_problem(num_tokens, config.get_text_config().vocab_size)
    return [f"{TOKENIZER[0]}: {problem}"] if problem else []


def _feature_extractor_problems(folder: Path, config) -> list[str]:
    """Where the feature extractor in the folder of a speech model makes other features than the model was made for."""
    theirs = _read_json(folder / PROCESSOR, []) or {}
    names = {"feature_size": "num_mel_bins", "sampling_rate": "sampling_rate", "hop_length": "hop_length"}
    return [
        f"{PROCESSOR}: {name} is {theirs[name]}, but {field} of the model {getattr(config, field)}"
        for name, field in names.items()
        if name in theirs and theirs[name] != getattr(config, field)
    ]


def vocabulary_problem(num_tokens: int, vocab_size: int) -> str:
    """Why a tokenizer of `num_tokens` tokens cannot belong to a model of `vocab_size`; empty when it may.

    The model may have up to 127 tokens more: tables are padded to multiples of 64 or 128, as T5's are.
    """
    if vocab_size - 128 < num_tokens <= vocab_size:
        return ""
    return f"the tokenizer has {num_tokens} tokens, but the model {vocab_size}: they do not belong together"


def variant_of(config) -> Variant:
    """The registry's row of a configuration.

    Raises:
        ValueError: a configuration of another package.
    """
    variant = VARIANTS.get(getattr(config, "model_type", None))
    if variant is None:
        known = ", ".join(VARIANTS)
        raise ValueError(f"expected a model of this package ({known}), got model_type {config.model_type!r}")
    return variant


def _code_files(folder: Path) -> list[Path]:
    """The files that the `auto_map`s of a folder name and what these import, there or not."""
    files = set()
    for name in (CONFIG, PROCESSOR):
        for reference in ((_read_json(folder / name, []) or {}).get("auto_map") or {}).values():
            file = folder / f"{str(reference).partition('.')[0]}.py"
            if file.is_file():
                try:
                    files |= {file, *map(Path, get_relative_import_files(file))}
                except FileNotFoundError as error:  # transformers opens what it finds imported
                    files |= {file, Path(error.filename)}
    return sorted(files)


def _classes(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.ClassDef)}


def _imports(file: Path) -> set[str]:
    """Top-level names of the packages that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def _weights_complete(folder: Path) -> bool:
    try:
        if (folder / WEIGHTS_INDEX).is_file() and not (folder / WEIGHTS).is_file():
            shards = set(json.loads((folder / WEIGHTS_INDEX).read_text("utf-8"))["weight_map"].values())
        else:
            shards = {WEIGHTS}
        return all(_safetensors_header(folder / shard) for shard in shards)
    except (OSError, ValueError, KeyError):
        return False


def _safetensors_header(file: Path) -> dict[str, dict]:
    """The tensors of a file by name, from its header; empty when the file is shorter or longer than that says."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > 100_000_000:
            return {}
        tensors = json.loads(stream.read(length))
    tensors.pop("__metadata__", None)
    end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    return tensors if file.stat().st_size == 8 + length + end else {}


def _sounds(folder: Path) -> list[str]:
    """Names of the example sounds: by number, and of one example what goes in before what comes out."""

    def place(name: str) -> tuple:
        _, number, kind = [*Path(name).stem.split("-", 2), ""][:3]
        known = SOUND_KINDS.index(kind) if kind in SOUND_KINDS else len(SOUND_KINDS)
        return (not number.isdecimal(), int(number) if number.isdecimal() else 0, known, name)

    return sorted((file.name for file in folder.glob(SOUNDS)), key=place)


def _read_json(file: Path, problems: list[str]) -> dict | None:
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        problems.append(f"{file.name} is missing")
    except ValueError as error:
        problems.append(f"{file.name} is not JSON: {error}")
    return None


def _write_json(file: Path, data) -> None:
    file.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", "utf-8")


# -- the card ----------------------------------------------------------------------------------------------------------

# name in metrics.json -> what it is called in the card
METRIC_NAMES = {
    "mse": "Mean squared error per dimension",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "nll": "Negative log-likelihood, nats per image (importance-sampled)",
    "elbo": "Evidence lower bound, nats per image",
    "kl": "KL term, nats per image",
    "bits_per_dimension": "Bits per dimension",
    "active_units": "Active latent dimensions",
    "code_usage": "Share of the codes in use",
    "code_perplexity": "Code perplexity",
    "train_code_usage": "Share of the codes in use, training split",
    "train_code_perplexity": "Code perplexity, training split",
    "bits_per_image": "Bits per image",
    "bit_entropy_mean": "Entropy of a bit, mean, bits",
    "bit_entropy_min": "Entropy of a bit, smallest, bits",
    "linear_probe_accuracy": "Linear probe on the latents, accuracy",
    "accuracy": "Accuracy",
    "mig": "MIG (mutual information gap)",
    "dci_disentanglement": "DCI disentanglement",
    "dci_completeness": "DCI completeness",
    "dci_informativeness": "DCI informativeness",
    "sap": "SAP",
    "factor_vae_score": "FactorVAE score",
    "beta_vae_score": "beta-VAE score",
    "modularity": "Modularity",
    "num_active_dims": "Latent dimensions whose mean varies (variance above 0.05)",
    "cluster_accuracy": "Clusters and classes: accuracy (ACC)",
    "cluster_nmi": "Clusters and classes: normalised mutual information (NMI)",
    "cluster_ari": "Clusters and classes: adjusted Rand index (ARI)",
    "class_purity": "Images whose class is the commonest one of their cluster, share",
    "num_clusters_used": "Clusters in use",
    "rouge1": "ROUGE-1, F1 x 100",
    "rouge2": "ROUGE-2, F1 x 100",
    "rougeL": "ROUGE-L, F1 x 100",
    "words": "Words of a summary",
    "copy_rate": "Share of its words that are in the text",
    "repetition_rate": "Share of its words that occurred before",
    "novel_bigram_rate": "Share of its pairs of neighbours that are none in the text",
    "distinct_rate": "Different summaries among all",
    "empty_rate": "Empty summaries among all",
    "perplexity": "Perplexity per word under a language model of real summaries",
    "length_deviation": "Words more or fewer than asked for, mean",
    "truncated_rate": "Share of the texts that were cut to the longest input",
    "reconstruction_accuracy": "Tokens of the text predicted from its summary and the tokens before, share",
    "reconstruction_loss": "The same, nats per token",
    "shuffled_reconstruction_accuracy": "The share from the summary of another text",
    "shuffled_reconstruction_loss": "From the summary of another text, nats per token",
    "accuracy_ratio": "Own summary over another's, ratio of the shares",
    "content_reconstruction_accuracy": "The share, of words that are not among the commonest",
    "shuffled_content_reconstruction_accuracy": "The same from the summary of another text",
    "content_accuracy_ratio": "Own summary over another's, ratio of these shares",
    "target_speaker": "Conversions judged to be the target speaker, share",
    "source_speaker": "Conversions judged to be the source speaker still, share",
    "word_kept": "Conversions whose word is judged to be the source's, share",
    "both": "Conversions of the target speaker with the word kept, share",
    "reconstruction_speaker": "Reconstructions judged to be the speaker, share",
    "reconstruction_word": "Reconstructions whose word is judged to be right, share",
    "reconstruction_both": "Reconstructions with both right, share",
    "reconstruction_error": "Absolute error of the log-mels, mean",
    "seen_to_unseen_closer": "To unseen voices: closer to the target than to the source, share",
    "seen_to_unseen_word": "To unseen voices: word kept, share",
    "seen_to_unseen_both": "To unseen voices: both, share",
    "unseen_to_unseen_closer": "Between unseen voices: closer to the target than to the source, share",
    "unseen_to_unseen_word": "Between unseen voices: word kept, share",
    "unseen_to_unseen_both": "Between unseen voices: both, share",
    "speaker_probe_content": "Probe for the speaker on the content, accuracy",
    "speaker_linear_probe_content": "Linear probe for the speaker on the content, accuracy",
    "word_probe_content": "Probe for the word on the content, accuracy",
    "word_probe_speaker": "Probe for the word on the speaker embedding, accuracy",
    "speaker_probe_mel": "Probe for the speaker on the log-mels, accuracy",
    "speaker_linear_probe_mel": "Linear probe for the speaker on the log-mels, accuracy",
    "word_probe_mel": "Probe for the word on the log-mels, accuracy",
    "speaker_probe_chance": "The most frequent speaker, accuracy",
    "word_probe_chance": "The most frequent word, accuracy",
    "real_time_factor": "Seconds to convert a second of speech, one core",
    "phone_purity": "Frames whose phone is the commonest one of their code, share",
    "cluster_purity": "Frames whose code is the commonest one of their phone, share",
    "phone_nmi": "Mutual information of codes and phones, normalised",
    "speaker_nmi": "Mutual information of codes and speakers, normalised",
    "word_nmi": "Mutual information of codes and words, normalised",
    "abx_within_error": "ABX error within speakers",
    "abx_across_error": "ABX error across speakers",
    "entropy_bits_per_second": "Entropy of the codes, bits per second",
    "bits_per_second": "Bits per second",
    "codes_per_second": "Codes per second",
    "frechet_distance": "Frechet distance to validation images",
    "precision": "Precision",
    "recall": "Recall",
    "prior_nll": "Latents or codes under the prior, nats per image",
    "code_bits_per_image": "Bits of the codes, per image",
    "negative_elbo": "Negative evidence lower bound, nats per image",
    "encode_seconds_per_megapixel": "Compressing a megapixel, seconds",
    "decode_seconds_per_megapixel": "Decompressing a megapixel, seconds",
    "bd_rate_jpeg": "Bits against JPEG at equal PSNR (BD-rate), %",
    "bd_rate_jpeg_optimized": "Bits against JPEG with optimised tables (BD-rate), %",
    "bd_rate_jpeg_444": "Bits against such JPEG with chroma in full (BD-rate), %",
    "bd_rate_webp": "Bits against WebP at equal PSNR (BD-rate), %",
    "auroc": "Area under the ROC curve (AUROC)",
    "aupr": "Average precision (AUPR)",
    "f1": "F1 at the stored threshold",
    "false_alarm_rate": "Normal inputs called anomalies",
    "pixel_auroc": "AUROC of pixels",
    "pixel_aupr": "AUPR of pixels",
    "aupro": "Overlap with regions up to 30% false alarms (AUPRO)",
    **{
        f"{who}_{measure.lower()}": f"{called}: {measure}"
        for who, called in (
            ("pca_95", "PCA with 95% of the variance"),
            ("pca_16", "PCA with 16 components"),
            ("pca_32", "PCA with 32 components"),
            ("pca_64", "PCA with 64 components"),
            ("knn", "5 nearest neighbours"),
            ("isolation_forest", "Isolation forest"),
        )
        for measure in ("AUROC", "AUPR")
    },
    "pca_same_size_mse": "PCA with as many components: mean squared error",
    "pca_same_size_components": "PCA with as many components: components",
    "pca_equal_bits": "PCA coefficients in as many bits: bits",
    "pca_equal_bits_mse": "PCA coefficients in as many bits: mean squared error",
    "raw_pixels_linear_probe_accuracy": "Linear probe on the pixels, accuracy",
    "pca_same_size_linear_probe_accuracy": "Linear probe on PCA with as many components, accuracy",
}
OTHERS = {  # prefix of a baseline -> whose number it is
    "pca": "PCA",
    "ica": "ICA",
    "kmeans": "k-means",
    "train_images": "Training images",
    "train_reconstructions": "Reconstructions of training images",
    "standard_normal": "N(0, I)",
    "uniform_codes": "Uniformly random codes",
}
UNITS = {
    "image": "images",
    "text": "texts",
    "audio": "clips",
    "latent": "images",
}  # modality -> what a corpus has rows of
QUALITY_METRICS = {"bits_per_pixel": "bits per pixel", "compressed_psnr": "PSNR, dB"}  # of a codec at each quality
PIPELINE_TAGS = {
    "AutoModel": "image-feature-extraction",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForSeq2SeqLM": "summarization",
}
INDEXED_METRIC = re.compile(r"(train_)?code_(usage|perplexity)_\d+")  # of one codebook of several: not in the card


def metric_name(name: str) -> str:
    """What a number of `metrics.json` is called in the card: its own name where nobody gave it another.

    A baseline that is a metric of the model for another code, "pca_mig", is called as that.
    """
    if name in METRIC_NAMES:
        return METRIC_NAMES[name]
    rate, _, quality = name.rpartition("_")
    if rate in QUALITY_METRICS and quality.isdecimal():
        return f"Quality {quality}: {QUALITY_METRICS[rate]}"
    if name.startswith("mig_"):
        return f"MIG of the factor `{name.removeprefix('mig_')}`"
    for who, called in OTHERS.items():
        rest = name.removeprefix(f"{who}_")
        if rest != name and rest in METRIC_NAMES:
            return f"{called}: {METRIC_NAMES[rest]}"
    return f"`{name}`"


def read_metrics(metrics: Mapping | str | os.PathLike, variant: Variant | None = None) -> dict:
    """The content of a `metrics.json`, checked for what the card needs of it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, not an object with an object of numbers under "metrics", or of another model type.
    """
    where = "metrics"
    if not isinstance(metrics, Mapping):
        where = str(metrics)
        try:
            metrics = json.loads(Path(metrics).read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
    values = metrics.get("metrics") if isinstance(metrics, Mapping) else None
    if not isinstance(values, Mapping):
        raise ValueError(f'{where}: expected {{"metrics": {{name: number}}, ...}}, got {str(metrics)[:100]!r}')
    for name, value in {**values, **(metrics.get("baselines") or {})}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{where}: expected a finite number for {name}, got {value!r}")
    try:
        if metrics.get("table"):
            format_table(metrics["table"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{where}: expected rows of summary_table under "table", but {error!r}') from None
    if variant is not None and metrics.get("model_type", variant.model_type) != variant.model_type:
        raise ValueError(f'{where}: measured on a "{metrics["model_type"]}", but the model is a "{variant.model_type}"')
    return dict(metrics)


def card_template(variant: Variant, of_table: bool = False) -> str:
    """The text of `model_cards/<variant>.md`, of models of tables `model_cards/table.md`: of the installed package, or
    of the repository it is run from."""
    name = "table.md" if of_table else f"{variant.name}.md"
    for folder in (PACKAGE_FOLDER / "model_cards", PACKAGE_FOLDER.parent / "model_cards"):
        if (folder / name).is_file():
            return (folder / name).read_text("utf-8")
    raise FileNotFoundError(
        f"model_cards/{name} is neither in the package nor beside it: is the installation complete?"
    )


def _latent_report(folder: Path) -> str:
    """What a report of the latents, if one lies in the folder, says of them in Markdown."""
    file = folder / LATENT_REPORT
    return file.read_text("utf-8").strip() + "\n" if file.is_file() else ""


def shows_latent_report(variant: Variant) -> bool:
    """Whether the card of a variant has a place for what each of its latents means: where the variant promises that
    they mean something."""
    return "{{ latent_report }}" in card_template(variant)


def write_card(folder: str | os.PathLike, *, model_id: str | None = None, tags: Sequence[str] = ()) -> None:
    """Write, or write again, the `README.md` of a model folder; one that is not ours, or was edited, stays as it is.

    Args:
        folder: with `config.json` and weights, and `metrics.json` and pictures if there are any.
        model_id: what the code example loads, `"organisation/name"`; by default what the card says already, or the
            name of the folder.
        tags: more tags for the metadata.
    """
    folder = Path(folder)
    file = folder / CARD
    if file.is_file() and CARD_MARK not in file.read_text("utf-8"):
        return
    model_id = model_id or _card_model_id(folder) or folder.resolve().name
    file.write_text(str(render_card(folder, model_id, tags)), "utf-8")


def render_card(folder: str | os.PathLike, model_id: str, tags: Sequence[str] = ()) -> ModelCard:
    """The card of a model folder: its variant's template, filled from the files beside the weights."""
    folder = Path(folder)
    config_dict = json.loads((folder / CONFIG).read_text("utf-8"))
    variant = VARIANTS[config_dict["model_type"]]
    config = variant.config_class().from_dict(config_dict)
    architecture = (config.architectures or [variant.model.partition(".")[2]])[0]
    heads = {reference.partition(".")[2]: auto_class for auto_class, reference in variant.heads.items()}
    auto_class = heads.get(architecture, "AutoModel")
    try:
        metrics = read_metrics(folder / METRICS, variant) if (folder / METRICS).is_file() else {}
    except ValueError as error:  # `save_pretrained` goes to all kinds of folders
        logger.warning(f"The model card has no numbers: {error}")
        metrics = {}
    run = _read_json(folder / RUN, []) or {}
    shards = [file for file in folder.glob("model*.safetensors")]
    shapes = [tensor["shape"] for shard in shards for tensor in _safetensors_header(shard).values()]
    name = next((part for part in reversed(model_id.split("/")) if part not in ("final", "best", "")), variant.name)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    of_table = bool(getattr(config, "num_features", 0))
    detector = getattr(config, "anomaly_score", "none") != "none"
    body = environment.from_string(card_template(variant, of_table) + (DETECTOR_SECTION if detector else "")).render(
        title=variant.title,
        model_id=model_id,
        name=name,
        auto_class=auto_class,
        config=config,
        num_parameters=sum(map(math.prod, shapes)),
        evaluation=_evaluation_section(metrics, "rows" if of_table else UNITS[variant.modality]),
        examples=_examples_section(metrics),
        training=_training_section(run),
        corpus=_corpus(metrics, run).get("name", ""),
        tokenizer=all((folder / name).is_file() for name in TOKENIZER),
        feature_extractor=(folder / PROCESSOR).is_file(),
        latent_report=_latent_report(folder),
        pictures="".join(
            f"![{text}]({name})\n\n*{text}*\n\n" for name, text in PICTURES.items() if (folder / name).is_file()
        ),
        sounds="".join(f"- [{name.partition('.')[0].replace('-', ' ')}]({name})\n" for name in _sounds(folder)),
    )
    tags_of_modality = {"audio": "audio-to-audio", "latent": "unconditional-image-generation"}
    tag = tags_of_modality.get(variant.modality) or PIPELINE_TAGS[auto_class]
    own_tags = {"hf_autoencoders", "autoencoder", variant.name.replace("_", "-"), config.model_type}
    own_tags |= {"audio", "speech"} if variant.modality == "audio" else set()
    data = ModelCardData(
        license=LICENSE,
        library_name="transformers",
        pipeline_tag=tag,
        tags=sorted({*own_tags, *tags, *_card_tags(folder)}),
        **({"language": languages} if (languages := _corpus(metrics, run).get("languages")) else {}),
        **({"model_name": name, "eval_results": results} if (results := _eval_results(metrics, tag)) else {}),
        **({"datasets": [_corpus(metrics, run)["name"]]} if _is_from_hub(_corpus(metrics, run)) else {}),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{CARD_MARK}\n\n{body.strip()}\n")


def _corpus(metrics: Mapping, run: Mapping) -> dict:
    """What is known of the corpus: `name`, maybe `config_name`, `revision`, `split`, `rows`."""
    arguments = run.get("arguments") or {}
    name = arguments.get("dataset") or arguments.get("texts")
    of_run = {"name": name, "revision": arguments.get("dataset_revision")}
    return dict(metrics.get("corpus") or {name: value for name, value in of_run.items() if value})


def _is_from_hub(corpus: Mapping) -> bool:
    """Whether it is known to be a dataset of the Hub: `data/mnist` may be a folder where the model was trained.

    Only a dataset of the Hub has a revision, so one whose revision was not recorded is named, but not linked.
    """
    looks_alike = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", corpus.get("name", ""))
    return bool(corpus.get("revision") and looks_alike and not Path(corpus["name"]).exists())


def _eval_results(metrics: Mapping, pipeline_tag: str) -> list[EvalResult]:
    """The measured numbers as the Hub's `model-index` wants them."""
    corpus = metrics.get("corpus") or {}
    if not corpus.get("name"):
        return []
    task = PIPELINE_TAGS["AutoModel"] if pipeline_tag == "image-classification" else pipeline_tag
    return [
        EvalResult(
            task_type="image-classification" if name == "accuracy" else task,
            dataset_type=corpus["name"] if _is_from_hub(corpus) else Path(corpus["name"]).name,
            dataset_name=Path(corpus["name"]).name,
            dataset_config=corpus.get("config_name"),
            dataset_split=corpus.get("split"),
            dataset_revision=corpus.get("revision"),
            metric_type=name,
            metric_name=metric_name(name).replace("`", ""),
            metric_value=value,
        )
        for name, value in metrics["metrics"].items()
        if not INDEXED_METRIC.fullmatch(name)
    ]


def _evaluation_section(metrics: Mapping, unit: str) -> str:
    """The tables of measured numbers, with where they come from; empty when nothing was measured."""
    if not metrics.get("metrics"):
        return ""
    table = metrics.get("table") or []  # has the baselines, and some of the model's numbers
    rows = ["| measured | value |", "|---|---|"]
    for group, note in (("metrics", ""), ("baselines", " (baseline)")):
        for name, value in (metrics.get(group) or {}).items():
            if group == "metrics":
                in_table = table and name in table[0]
            else:
                in_table = any(name.startswith(f"{row['name']}_") for row in table)
            if not INDEXED_METRIC.fullmatch(name) and not in_table:
                rows.append(f"| {metric_name(name)}{note} | {_number(value)} |")
    corpus = metrics.get("corpus") or {}
    facts = []
    if corpus.get("name"):
        facts.append(f"corpus `{corpus['name']}`")
        facts += [f"configuration `{corpus['config_name']}`"] if corpus.get("config_name") else []
        facts += [f"{corpus['split']} split"] if corpus.get("split") else []
        facts += [f"{corpus['rows']:,} {unit}"] if corpus.get("rows") else []
    facts += [f"seed {metrics['seed']}"] if metrics.get("seed") is not None else []
    facts += [str(metrics[key]) for key in ("machine", "date") if metrics.get(key)]
    text = "\n".join(rows) + "\n"
    if table:
        text = f"{format_table(table)}\n\n{text}"
    text += f"\nMeasured on: {', '.join(facts)}.\n" if facts else ""
    if clips := (metrics.get("settings") or {}).get("num_target_clips"):
        text += "\nThe voice to convert to was taken from "
        text += "one clip of the target.\n" if clips == 1 else f"{clips} clips of the target, averaged.\n"
    return text + (f"\n```bash\n{metrics['command']}\n```\n" if metrics.get("command") else "")


def format_table(rows: Sequence[Mapping]) -> str:
    """The `table` of a `metrics.json` as Markdown: of summaries, of conversions or of speech codes."""
    from .evaluation import speech_codes, summaries, voice_conversion

    if "target" in rows[0]:
        return voice_conversion.format_table(rows)
    return speech_codes.format_codes_table(rows) if "speaker_nmi" in rows[0] else summaries.format_table(rows)


def _examples_section(metrics: Mapping, most: int = 5) -> str:
    """Some of `metrics["examples"]`, `{"text": ..., "summary": ..., ...}` each, as they are; empty without any."""
    blocks = []
    for example in (metrics.get("examples") or [])[:most]:
        texts = {name: " ".join(str(text).split()) for name, text in example.items() if isinstance(text, str)}
        width = max(map(len, texts), default=0)
        blocks.append("\n".join(f"{name.ljust(width)}  {text.replace('```', '...')}" for name, text in texts.items()))
    return "```text\n" + "\n\n".join(blocks) + "\n```\n" if blocks else ""


def _training_section(run: Mapping) -> str:
    """The command, the arguments and the machine of the training; empty when the folder does not know them."""
    text = f"```bash\n{run['command']}\n```\n" if run.get("command") else ""
    arguments = {k: v for k, v in (run.get("arguments") or {}).items() if v not in (None, [], "")}
    if arguments:
        if "max_steps" in arguments:
            arguments.pop("num_epochs", None)  # it did not count
        shown = "stage texts summaries dataset seed batch_size gradient_accumulation_steps num_epochs max_steps "
        shown += "learning_rate weight_decay lr_scheduler_type warmup_ratio max_grad_norm average_decay mixed_precision"
        rows = [f"| `{name}` | {arguments[name]} |" for name in shown.split() if name in arguments]
        text += "\n| argument | value |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
    versions = run.get("versions") or {}
    facts = [str(run["machine"])] if run.get("machine") else []
    facts += [", ".join(f"{name} {version}" for name, version in versions.items())] if versions else []
    return text + (f"\nOn {'; '.join(facts)}.\n" if facts else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _card_model_id(folder: Path) -> str | None:
    """What the code example of a card loads."""
    if not (folder / CARD).is_file():
        return None
    found = re.search(r'^model_id = "([^"]+)"$', (folder / CARD).read_text("utf-8"), re.MULTILINE)
    return found and found[1]


def _card_tags(folder: Path) -> list[str]:
    """The tags of the card that is there already."""
    with contextlib.suppress(Exception):  # no card, or metadata that somebody spoiled: it is about to be written again
        return list(ModelCard.load(folder / CARD).data.tags or [])
    return []


# -- the Hub -----------------------------------------------------------------------------------------------------------


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    processor: bool = True,
):
    """Upload a folder that [`save_for_hub`] wrote; of other files in it, such as checkpoints, nothing.

    The card in the folder is written again first (unless it was edited), so that its code example names `repo_id`.
    A push that changes nothing makes no commit.

    Args:
        folder: the folder.
        repo_id: `"organisation/name"`, or `"name"` for the user's own namespace; created if needed.
        private: whether to create the repository as a private one; by default what the organisation says. A repository
            that exists stays as it is.
        token: of the Hub; by default the one of `hf auth login` or `HF_TOKEN`.
        revision: branch to commit to, created if needed.
        commit_message, commit_description: of the commit.
        create_pr: open a pull request instead of committing to the branch.
        processor: whether the folder must hold a tokenizer (of a text model) or feature extractor (of speech), too.

    Returns:
        huggingface_hub.CommitInfo: with `commit_url`, `oid` and, with `create_pr`, `pr_url`.

    Raises:
        IncompleteFolderError: the folder fails [`check_folder`]; nothing was sent then.
        huggingface_hub.errors.HfHubHTTPError: no right to write (403), unknown token (401), or the Hub's own trouble.
    """
    check_folder(folder, processor=processor)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    write_card(folder, model_id=repo_id)
    return _upload(
        api, Path(folder), repo_id, published_files(folder), revision, commit_message, commit_description, create_pr
    )


def push_model(
    model,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = "50GB",
    tags: Sequence[str] | None = None,
):
    """What `model.push_to_hub(repo_id, ...)` does, see [`push_folder`] for the arguments.

    A card and a processor that the repository has already stay as they are: a model alone does not know better. It does
    not know its tokenizer or feature extractor at all: that has a `push_to_hub(repo_id)` of its own, as the card says.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    branch = revision if revision and api.revision_exists(repo_id, revision) else None
    there = set(api.list_repo_files(repo_id, revision=branch))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size or "50GB")
        write_card(folder, model_id=repo_id, tags=tags or ())
        check_folder(folder, processor=False)
        files = [name for name in published_files(folder) if name not in {CARD, PROCESSOR} & there]
        return _upload(api, Path(folder), repo_id, files, revision, commit_message, commit_description, create_pr)


def _upload(api, folder, repo_id, files, revision, commit_message, commit_description, create_pr):
    if revision and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=[re.sub(r"([\[\]*?])", r"[\1]", name) for name in files],
        delete_patterns=[name for name in (WEIGHTS, WEIGHTS_INDEX, "model-*-of-*.safetensors") if name not in files],
        revision=revision,
        commit_message=commit_message or "Upload model",
        commit_description=commit_description,
        create_pr=create_pr,
    )
