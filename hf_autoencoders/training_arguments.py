"""The command line of the training scripts: flags of the corpus, the run and the model's configuration, and recipes.

Everything that can be known to be wrong before anything is loaded is refused here, with a message and exit code 2.
"""

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import json
import math
import os
import re
import shlex
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, parse_flag_from_env
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from transformers import HfArgumentParser, PreTrainedConfig

from .models.configuration_base import DETECTOR_FIELDS
from .models.configuration_prior import PriorConfig
from .registry import VARIANTS


def option(default: Any, help: str, **kwargs) -> Any:
    """A field of a dataclass of flags, with its default and the words that `--help` says of it."""
    return field(default=default, metadata={"help": help, **kwargs})


@dataclass
class CorpusArguments:
    """What to train on."""

    _argument_group_name: typing.ClassVar[str] = "corpus"

    cache_dir: str | None = option(None, "Where what was read once is kept between runs.")

    @property
    def name(self) -> str:
        """A short name of the corpus."""
        raise NotImplementedError


@dataclass
class ImageCorpusArguments(CorpusArguments):
    """Which images to train on."""

    dataset: str = option(
        "digits",
        "`digits` or `sprites` (embedded), the id of a dataset on the Hub, or a parquet file, image folder or saved "
        "dataset.",
    )
    dataset_config_name: str | None = option(None, "Configuration of a dataset on the Hub.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of a dataset on the Hub.")
    streaming: bool = option(False, "Read the corpus as it trains instead of decoding it once to disk first.")
    max_streamed_images: int = option(
        10_000, "With --streaming: images of each split that evaluation reads (training has no limit)."
    )
    image_column: str | None = option(None, "Column with the images; guessed when not given.")
    label_column: str | None = option(
        None,
        "Column with the labels, used by the evaluation; guessed when not given; `none`: no labels, only factors.",
    )
    factor_columns: list[str] | None = option(
        None,
        "Columns with factors of variation (whole numbers, classes, booleans), used by the evaluation; `none` for "
        "none; guessed when not given. Not read with --streaming.",
    )
    validation_fraction: float = option(0.1, "Share of the training rows to hold out if there is no validation split.")
    table: bool = option(
        False,
        "The corpus is a table of numbers: `breast_cancer` or `wine` (embedded), a CSV or parquet file, or a dataset "
        "on the Hub. Needs --architecture mlp, and --likelihood gaussian where there is a likelihood.",
    )
    table_columns: list[str] | None = option(None, "Columns of the table; all of numbers when not given.")
    on_bad_image: Literal["raise", "skip"] = option(
        "raise", "What to do with unreadable images: stop, or skip and count."
    )

    @property
    def name(self) -> str:
        """The corpus in one word, for names of folders and runs."""
        return Path(self.dataset.rstrip("/")).name.split(".")[0]


@dataclass
class TextCorpusArguments(CorpusArguments):
    """Which texts and summaries to train on. They are not paired; the pairs of the validation split only measure."""

    texts: str = option(
        "docstrings",
        "Texts: `docstrings` (embedded), the id of a dataset on the Hub, a parquet file, or a folder.",
    )
    summaries: str | None = option(None, "Summaries of other texts; when not given, those of the corpus of the texts.")
    validation: str | None = option(None, "Pairs to measure with; when not given, those of the corpus of the texts.")
    text_column: str = option("text", "Column with the texts.")
    summary_column: str = option("summary", "Column with the summaries.")
    dataset_config_name: str | None = option(None, "Configuration of the texts' dataset on the Hub.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of the texts' dataset on the Hub.")
    max_texts: int | None = option(None, "Keep so many texts, chosen by the seed.")
    lowercase: bool = option(False, "Lower-case everything: for summaries written in another case than texts.")

    @property
    def name(self) -> str:
        """The corpus in one word, for names of folders and runs: that of the texts."""
        return Path(self.texts.rstrip("/")).name.split(".")[0]


@dataclass
class AudioCorpusArguments(CorpusArguments):
    """Which recordings to train on. Nobody needs to have said the same as another."""

    dataset: str = option(
        "espeak",
        "`espeak` (embedded: synthetic voices), the id of a dataset on the Hub, a parquet file, or a folder: of "
        "parquet files, or SPEAKER/*.wav.",
    )
    dataset_config_name: str | None = option(None, "Configuration of a dataset on the Hub.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of a dataset on the Hub.")
    audio_column: str | None = option(None, "Column with the recordings; guessed when not given.")
    speaker_column: str | None = option(None, "Column that says who speaks; guessed when not given.")
    text_column: str | None = option(
        None, "Column with the word that is said, used by the evaluation; guessed when not given."
    )
    validation_fraction: float = option(0.1, "Share of the training rows to hold out if there is no validation split.")
    held_out_speakers: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Speakers that training never hears, by name, or how many of them the seed shall choose: for "
            "measuring conversions to and from unseen voices."
        },
    )
    on_bad_audio: Literal["raise", "skip"] = option(
        "raise", "What to do with recordings that cannot be read, are empty or hold NaN: stop, or skip and count."
    )

    @property
    def name(self) -> str:
        """The corpus in one word, for names of folders and runs."""
        return Path(self.dataset.rstrip("/")).name.split(".")[0]

    @property
    def held_out(self) -> list[str] | int:
        """`held_out_speakers` as names or as a number."""
        names = self.held_out_speakers
        return int(names[0]) if len(names) == 1 and names[0].isdecimal() else names


SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "polynomial", "inverse_sqrt")


@dataclass
class RunArguments:
    """How to train."""

    _argument_group_name: typing.ClassVar[str] = "training"

    output_dir: str | None = option(None, "Folder of this run; `runs/<variant>-<dataset>` when not given.")
    overwrite_output_dir: bool = option(False, "Delete the run that `output_dir` holds and start anew.")
    resume_from_checkpoint: str | None = option(
        None, "`latest`, or the path of one checkpoint of this run: continue, to the same weights as if never stopped."
    )
    model_name_or_path: str | None = option(
        None, "Start from these weights and their configuration; model flags that are given override it."
    )
    seed: int = option(0, "Seed of everything random.")
    batch_size: int = option(64, "Rows of one forward pass, over all processes together.")
    gradient_accumulation_steps: int = option(1, "Batches added up for one optimizer step.")
    num_epochs: float = option(10.0, "Passes over the training split, unless `max_steps` is given.")
    max_steps: int | None = option(None, "Optimizer steps.")
    learning_rate: float = option(1e-3, "Highest learning rate of AdamW.")
    weight_decay: float = option(
        0.0, "AdamW weight decay of matrices and kernels; biases, norms, scales and codebooks have none."
    )
    adam_beta1: float = option(0.9, "AdamW beta1.")
    adam_beta2: float = option(0.999, "AdamW beta2.")
    adam_epsilon: float = option(1e-8, "AdamW epsilon.")
    lr_scheduler_type: Literal[SCHEDULES] = option("cosine", "Shape of the learning rate over the run.")
    warmup_ratio: float = option(0.05, "Share of the steps in which the learning rate rises from 0.")
    max_grad_norm: float = option(1.0, "Gradients are scaled down to this norm; 0: never.")
    average_decay: float = option(
        0.0, "Keep a moving average of the weights with this decay, evaluate and publish it; 0: off."
    )
    mixed_precision: Literal["no", "bf16", "fp16"] | None = option(
        None, "Autocast type; what `accelerate config` says when not given."
    )
    torch_compile: bool = option(False, "Compile the model with torch.compile.")
    deterministic: bool = option(False, "Use deterministic algorithms only; exact resume on GPUs needs it.")
    use_cpu: bool = option(False, "Train on the CPU even where there is a GPU.")
    logging_steps: int = option(20, "Steps between two lines of training metrics.")
    eval_steps: int | None = option(
        None, "Steps between two evaluations; default: once an epoch (streaming: 1000), 0: never."
    )
    eval_batch_size: int = option(256, "Rows of one evaluation pass, over all processes together.")
    early_stopping_patience: int | None = option(None, "Stop after this many evaluations without improvement.")
    early_stopping_threshold: float = option(0.0, "Least change of the metric that counts as improvement.")
    metric_for_best_model: str = option(
        "loss", "Evaluation metric that decides which model is best: a loss, or another number the script reports."
    )
    final_weights: Literal["last", "best"] = option(
        "last", "Weights that become `final`: of the last step or the best."
    )
    save_steps: int | None = option(
        None,
        "Steps between two checkpoints, and at the end; default: once an epoch (streaming: 1000), 0: never.",
    )
    checkpoint_total_limit: int = option(2, "Checkpoints kept; older ones are deleted.")
    report_to: list[str] = field(
        default_factory=list,
        metadata={"help": "Trackers of Accelerate: tensorboard, trackio, wandb ... (metrics.jsonl is always written)."},
    )
    disable_progress_bar: bool = option(False, "No progress bar.")
    final_evaluation: bool = option(True, "Measure the finished model for its card (metrics.json).")
    push_to_hub: bool = option(False, "Upload `final` to the Hub when the run is done.")
    hub_model_id: str | None = option(None, "Repository to upload to: ORGANISATION/NAME.")
    hub_private_repo: bool = option(False, "Create the repository as a private one.")


@dataclass
class ImageRunArguments(RunArguments):
    """How to train on images."""

    num_pictures: int = option(24, "Images in the reconstruction and sample pictures of each evaluation; 0: none.")
    num_importance_samples: int = option(200, "Samples of the likelihood in the final evaluation of a VAE.")


@dataclass
class PriorRunArguments(RunArguments):
    """How to train a prior."""

    num_pictures: int = option(30, "Samples in the picture of each evaluation; 0: none.")
    num_generated: int | None = option(
        None, "Samples that the final evaluation compares; when not given 5000, or as many as the smaller split has."
    )


@dataclass
class TextRunArguments(RunArguments):
    """How to train on texts."""

    tokenizer_name_or_path: str | None = option(
        None, "Folder or Hub id of the tokenizer; that of `--model_name_or_path` or `--t5_name_or_path` when not given."
    )
    discriminator_learning_rate: float | None = option(None, "Of the discriminator; `learning_rate` when not given.")
    discriminator_adam_beta1: float | None = option(None, "Of the discriminator; `adam_beta1` when not given.")
    num_scored: int = option(256, "Validation pairs that each evaluation summarizes and scores.")
    num_examples: int = option(5, "Text, summary and reconstruction to show at each evaluation; 0: none.")
    num_words: int | None = option(
        None, "Words of a summary in evaluations; when not given, as many as the summaries to learn from have (median)."
    )
    num_beams: int = option(4, "Beams of the final evaluation; those before it are greedy.")


@dataclass
class AudioRunArguments(RunArguments):
    """How to train on speech. Mel bins, sampling rate and hop are fields of the model."""

    win_length: int | None = option(None, "Samples that a frame sees; 4 x hop_length when not given.")
    n_fft: int | None = option(None, "Size of the Fourier transform; the next power of 2 when not given.")
    fmin: float = option(0.0, "Lowest frequency of the mel bins, Hz.")
    fmax: float | None = option(None, "Highest frequency, Hz; half of the sampling rate when not given.")
    log_floor: float = option(1e-5, "Smallest mel magnitude: what is quieter is silence.")
    max_frames: int = option(
        128, "Train on so many frames of a clip, cut out anew at each step; shorter clips are padded. 0: whole clips."
    )
    other_clip: bool = option(True, "Take the speaker's voice from another clip of the same speaker.")
    formant_shift: float = option(
        0.15,
        "Let the content encoder hear a disguised voice (Choi et al. 2021), whose frequencies are shifted by up to "
        "this share; 0: not shifted.",
    )
    equalizer: float = option(0.5, "And whose spectrum is bent by so much (standard deviation, natural log); 0: not.")
    virtual_speaker_shift: float = option(
        0.0, "Make new speakers of half of the rows, by shifting all frequencies by up to this share; 0: none."
    )
    classifier_learning_rate: float = option(
        1e-3, "Of the classifiers of speakers that the model learns against, from the first step to the last."
    )
    classifier_adam_beta1: float = option(0.5, "AdamW beta1 of these classifiers.")
    classifier_first: bool = option(
        False, "In each step, let the classifier of the content learn first, and then the model against it."
    )
    codebook_restarts: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Shares of the run (0.2 0.5 ...) after which the codebooks begin anew, from k-means on what the "
            "content is by then."
        },
    )
    num_pairs: int | None = option(
        None, "Conversions of each kind that the final evaluation judges; one of each clip when not given."
    )
    num_target_clips: int = option(1, "In the final evaluation, clips of a speaker whose voices are averaged.")
    num_examples: int = option(4, "Examples in the picture of each evaluation; 0: none.")


# Arguments that may differ between a run and its continuation: they leave the weights as they are.
FREE_ON_RESUME = (
    "output_dir overwrite_output_dir resume_from_checkpoint cache_dir logging_steps save_steps checkpoint_total_limit "
    "num_pictures num_generated num_examples num_pairs num_target_clips num_beams report_to disable_progress_bar "
    "final_weights final_evaluation num_importance_samples push_to_hub hub_model_id hub_private_repo"
).split()

ARGUMENTS_OF_MODALITY = {
    "image": (ImageCorpusArguments, ImageRunArguments),
    "text": (TextCorpusArguments, TextRunArguments),
    "audio": (AudioCorpusArguments, AudioRunArguments),
    "latent": (ImageCorpusArguments, PriorRunArguments),
}

# Fields of configurations that the corpus decides when they are not given, and from what.
FROM_CORPUS = {
    "image_size": "that of the corpus",
    "num_channels": "that of the corpus",
    "num_features": "0 for images, that of the corpus for tables",
    "sampling_rate": "that of the corpus",
    "hop_length": "12.5 milliseconds",
}

# Fields of the configurations of priors that their auto-encoder and the corpus decide.
OF_AUTOENCODER = {"latent_shape", "codes_shape", "num_codes", "num_classes", "autoencoder", "autoencoder_fingerprint"}

# Flags that say nothing about how to repeat a run, or that only its owner should know.
NOT_PUBLISHED = ("output_dir", "cache_dir", "hub_model_id", "resume_from_checkpoint")


@dataclass
class Arguments:
    """The parsed command line of one training script."""

    variant: Any  # row of the registry
    corpus: CorpusArguments
    run: RunArguments
    model: dict[str, Any]  # configuration fields
    extra: Any  # the script's own arguments, an instance of the class it gave
    explicit: set[str]  # names given on the command line or in the recipe
    command: str
    # numbers that the script's evaluation has beside the losses of the model
    higher_is_better: frozenset[str] = frozenset()
    lower_is_better: frozenset[str] = frozenset()


def parse_arguments(
    model_type: str,
    description: str,
    argv: Sequence[str] | None = None,
    extra: type | None = None,
    higher_is_better: Sequence[str] = (),
    lower_is_better: Sequence[str] = (),
) -> Arguments:
    """The command line of a training script: flags of the corpus, the run, the model's configuration and `--recipe`.

    Args:
        model_type: of the variant to train, e.g. "hfae_vae"; its configuration's own fields become flags.
        description: text above the flags in `--help`.
        argv: the command line without the program; `sys.argv[1:]` when not given.
        extra: dataclass of flags that this script alone has.
        higher_is_better: metrics that the script's evaluation adds to the losses of the model, of which more is better.
        lower_is_better: those of which less is better. If there are any, the evaluation has no losses but these.

    Raises:
        SystemExit: with code 2 and a message, for unknown flags or recipe keys, for values that are not allowed, and
            for flags that would have no effect.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    variant = VARIANTS[model_type]
    config_class = variant.config_class()
    groups = [*ARGUMENTS_OF_MODALITY[variant.modality], model_arguments(config_class)] + ([extra] if extra else [])
    _check_names_differ(groups)
    parser = HfArgumentParser(
        groups, description=description, allow_abbrev=False, formatter_class=_HelpFormatter, conflict_handler="error"
    )
    parser.add_argument(
        "--recipe", help="YAML or JSON file with flags and their values; the command line overrides it."
    )
    actions = {action.dest: action for action in parser._actions}
    for action in parser._actions:
        action.nargs = "*" if action.nargs == "+" else action.nargs  # an empty list is a value

    pre_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    pre_parser.add_argument("--recipe")
    recipe = pre_parser.parse_known_args(argv)[0].recipe
    full_argv = (_recipe_flags(recipe, set(actions) - {"help", "recipe"}, parser) if recipe else []) + argv

    corpus, run, model, *rest = parser.parse_args_into_dataclasses(
        _refuse_unknown(parser, full_argv), look_for_args_file=False
    )
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    explicit = set(vars(parser.parse_args(full_argv))) - {"recipe"}

    model_fields = {name: value for name, value in dataclasses.asdict(model).items() if value is not None}
    if isinstance(model_fields.get("image_size"), list) and len(model_fields["image_size"]) == 1:
        model_fields["image_size"] = model_fields["image_size"][0]
    _check_arguments(corpus, run, rest, parser)
    metrics = [*(lower_is_better or _losses(variant.model_class())), *higher_is_better]
    if run.metric_for_best_model not in metrics:
        parser.error("--metric_for_best_model: " + _unknown("metric", run.metric_for_best_model, metrics, metrics))
    counted = {"num_speakers": 2} if variant.modality == "audio" else {}  # by the run, in the corpus
    try:
        config_class(**model_fields, **counted)
    except (StrictDataclassError, ValueError) as error:
        parser.error(f"the model cannot be built: {' '.join(str(error).split())}")
    command = command_line(Path(sys.argv[0]), argv)
    rest = rest[0] if extra else None
    better = {"higher_is_better": frozenset(higher_is_better), "lower_is_better": frozenset(lower_is_better)}
    return Arguments(variant, corpus, run, model_fields, rest, explicit, command, **better)


def chosen_variant(family: str, default: str, argv: Sequence[str] | None = None) -> str:
    """The `model_type` that `--variant` names, on the command line or in the recipe, for a script of several variants.

    `--variant` is to be one of the script's own flags, whose choices are [`variants_of`] the family.

    Args:
        family: of the variants.  default: short name of the variant to train when none is named.
    """
    name = named_flag("variant", argv)
    return f"hfae_{name if name in variants_of(family) else default}"


def named_flag(flag: str, argv: Sequence[str] | None = None) -> str | None:
    """The value of a flag on the command line or, where it is not there, in the recipe, before either is read as a
    whole."""
    pre_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    pre_parser.add_argument("--recipe")
    pre_parser.add_argument(f"--{flag}", dest="value")
    known = pre_parser.parse_known_args(list(sys.argv[1:] if argv is None else argv))[0]
    if known.value is None and known.recipe:
        with contextlib.suppress(
            OSError, ValueError, yaml.YAMLError, AttributeError
        ):  # said when it is read as a whole
            text = Path(known.recipe).read_text(encoding="utf-8")
            return (json.loads(text) if known.recipe.endswith(".json") else yaml.safe_load(text)).get(flag)
    return known.value


def variants_of(family: str) -> tuple[str, ...]:
    """Short names of the variants that one script trains."""
    return tuple(variant.name for variant in VARIANTS.values() if variant.family == family)


def command_line(script: Path, argv: Sequence[str]) -> str:
    """How to repeat this run, fit for publishing: with the launcher, and without what is private or for once."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # `accelerate launch` sets it always
        several = ["--multi_gpu", "--num_processes", processes] if processes != "1" else []
        launcher = ["accelerate", "launch", *several]
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = ["torchrun", "--nproc_per_node", processes]
    else:
        launcher = ["python"]
    name = f"training/{script.name}" if script.resolve().parent.name == "training" else script.name
    words, left = [], list(argv)
    while left:
        word = left.pop(0)
        if word.split("=")[0] in [f"--{flag}" for flag in NOT_PUBLISHED]:
            if "=" not in word and left:
                left.pop(0)
        else:
            flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
            words.append(flag + equals + without_folder(value))
    return shlex.join([*launcher, name, *words])


def without_folder(value: Any) -> Any:
    """Of an absolute path its last part, which tells nothing about a computer; anything else as it is."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Paragraphs of the description stay as they are; the defaults of flags are shown."""

    def _fill_text(self, text, width, indent):
        return "".join(indent + line for line in text.splitlines(keepends=True))

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def model_arguments(config_class: type[PreTrainedConfig]) -> type:
    """A dataclass with the configuration's own fields, their defaults, and their words in its docstring as help.

    Those of `FROM_CORPUS` default to None. Sub-configurations, token ids and the number of speakers are no flags.
    """
    words = field_descriptions(config_class)
    left_out = {f.name for f in dataclasses.fields(PreTrainedConfig)} | set(config_class.sub_configs)
    left_out |= {"tie_word_embeddings", "pad_token_id", "eos_token_id", "decoder_start_token_id", "num_speakers"}
    left_out |= OF_AUTOENCODER if issubclass(config_class, PriorConfig) else set()
    left_out |= DETECTOR_FIELDS  # of a model that is trained already
    fields = []
    for config_field in dataclasses.fields(config_class):
        name, default = config_field.name, config_field.default
        if name in left_out:
            continue
        flag_type = _flag_type(config_field.type)
        metadata = {"help": words[name].replace("%", "%%")}
        if name in FROM_CORPUS:
            metadata["help"] += f" (default: {FROM_CORPUS[name]})"
            fields.append((name, flag_type | None, field(default=None, metadata=metadata)))
        elif isinstance(default, (list, tuple)):
            fields.append((name, flag_type, field(default_factory=lambda d=default: list(d), metadata=metadata)))
        else:
            fields.append((name, flag_type, field(default=default, metadata=metadata)))
    made = dataclasses.make_dataclass("ModelArguments", fields)
    made._argument_group_name = "model"
    return made


def field_descriptions(config_class: type) -> dict[str, str]:
    """Field name -> its text in the `Args:` section of the docstring of the class or of its base classes."""
    words = {}
    for cls in reversed(config_class.__mro__):
        docstring = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
        entries = re.findall(r"^ {4}(\w+(?:, \w+)*) \(.*\):\n((?: {8}.*\n?)+)", docstring, re.MULTILINE)
        for names, text in entries:
            words |= dict.fromkeys(names.split(", "), " ".join(text.replace("`", "").split()))
    return words


def _flag_type(annotation: Any) -> Any:
    """The type that argparse can read for the annotation of a configuration field."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        sequences = [member for member in members if typing.get_origin(member) in (list, tuple)]
        if sequences:
            return list[_flag_type(typing.get_args(sequences[0])[0])]
        return float if float in members else members[0]
    return annotation


def _check_names_differ(groups: list[type]) -> None:
    owners: dict[str, str] = {}
    for group in groups:
        for group_field in dataclasses.fields(group):
            other = owners.setdefault(group_field.name, group.__name__)
            if other != group.__name__:
                raise ValueError(f"the flag {group_field.name} is in both {other} and {group.__name__}: rename one")


def _refuse_unknown(parser: HfArgumentParser, argv: list[str]) -> list[str]:
    """`argv`, or an error that names the unknown flags and what they may have been meant to be."""
    unknown = [argument for argument in parser.parse_known_args(argv)[1]]
    if unknown:
        known = [option for option in parser._option_string_actions if option.startswith("--")]
        parser.error("; ".join(_unknown("flag", word.split("=")[0], known) for word in unknown))
    return argv


def _unknown(kind: str, word: str, known: Sequence[str], listed: Sequence[str] = ()) -> str:
    close = difflib.get_close_matches(word, known, n=2)
    where = f", there are {', '.join(listed)}" if listed else ", see --help"
    return f"unknown {kind} {word}" + (f" (did you mean {' or '.join(close)}?)" if close else where)


def _losses(model_class: type) -> list[str]:
    """The scalars among the outputs of a model."""
    output_class = inspect.signature(model_class.forward).return_annotation
    return [f.name for f in dataclasses.fields(output_class) if f.name.split("_")[-1] == "loss"]


def _recipe_flags(path: str, known: set[str], parser: argparse.ArgumentParser) -> list[str]:
    """The command line that a recipe file stands for."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        recipe = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"recipe {path} cannot be read: {' '.join(str(error).split())}")
    if not isinstance(recipe, dict):
        parser.error(f"recipe {path}: expected flags and their values, got {type(recipe).__name__}")
    unknown = [_unknown("key", str(key), sorted(known)) for key in recipe if key not in known]
    if unknown:
        parser.error(f"recipe {path}: " + "; ".join(unknown))
    flags = []
    for key, value in recipe.items():
        if isinstance(value, dict):
            parser.error(f"recipe {path}: {key}: expected a value or a list, got a mapping")
        if value is not None:  # null is the default
            flags += [f"--{key}", *map(str, value)] if isinstance(value, list) else [f"--{key}={value}"]
    return flags


def _check_arguments(corpus: CorpusArguments, run: RunArguments, extra: list[Any], parser: HfArgumentParser) -> None:
    smallest = {
        "batch_size": 1,
        "eval_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "logging_steps": 1,
        "checkpoint_total_limit": 1,
        "max_steps": 1,
        "early_stopping_patience": 1,
        "eval_steps": 0,
        "save_steps": 0,
        "num_pictures": 0,
        "num_importance_samples": 1,
        "num_generated": 1,
        "max_grad_norm": 0,
        "weight_decay": 0,
        "seed": 0,
        "max_streamed_images": 1,
        "max_texts": 1,
        "num_scored": 1,
        "num_examples": 0,
        "num_words": 1,
        "num_beams": 1,
        "max_frames": 0,
        "num_pairs": 1,
        "num_target_clips": 1,
        "win_length": 1,
        "n_fft": 1,
        "fmin": 0,
        "equalizer": 0,
    }
    values = vars(corpus) | vars(run)
    for group in extra:
        values |= vars(group)
    if values.get("streaming") and values.get("factor_columns") not in (None, ["none"]):
        parser.error("--factor_columns cannot be read with --streaming: leave out one of them")
    for name, least in smallest.items():
        value = values.get(name)
        if value is not None and not value >= least:
            parser.error(f"--{name}: expected at least {least}, got {value}")
    for name in (
        "learning_rate",
        "num_epochs",
        "adam_epsilon",
        "discriminator_learning_rate",
        "classifier_learning_rate",
    ):
        if values.get(name) is not None and not 0 < values[name] < math.inf:
            parser.error(f"--{name}: expected a positive number, got {values[name]}")
    betas = ("adam_beta1", "adam_beta2", "discriminator_adam_beta1", "classifier_adam_beta1")
    for name in ("average_decay", "warmup_ratio", *betas):
        if values.get(name) is not None and not 0 <= values[name] < 1:
            parser.error(f"--{name}: expected a number from 0 up to, but not including, 1, got {values[name]}")
    for share in values.get("codebook_restarts", ()):
        if not 0 < share < 1:
            parser.error(f"--codebook_restarts: expected shares between 0 and 1, got {share}")
    for name in ("formant_shift", "virtual_speaker_shift"):
        if name in values and not 0 <= values[name] < 1:
            parser.error(f"--{name}: expected a share from 0 up to, but not including, 1, got {values[name]}")
    if run.push_to_hub and not run.hub_model_id:
        parser.error("--push_to_hub needs --hub_model_id ORGANISATION/NAME")
    if run.push_to_hub:
        try:
            validate_repo_id(run.hub_model_id)
        except HFValidationError as error:
            parser.error(f"--hub_model_id: {error}")
    if run.resume_from_checkpoint and run.overwrite_output_dir:
        parser.error("--resume_from_checkpoint continues a run, --overwrite_output_dir deletes it: give one of them")
    if run.eval_steps == 0:
        if run.final_weights == "best":
            parser.error("--final_weights best needs evaluations to find the best: --eval_steps 0 has none")
        if run.early_stopping_patience:
            parser.error("--early_stopping_patience counts evaluations: --eval_steps 0 has none")
    on_cpu = run.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if run.mixed_precision == "fp16" and on_cpu:
        parser.error("--mixed_precision fp16 does not work on the CPU: use bf16")
    trackers, installed = LoggerType.list(), [str(tracker) for tracker in get_available_trackers()]
    for name in run.report_to:
        if name not in trackers:
            parser.error("--report_to: " + _unknown("tracker", name, trackers, trackers))
        if name not in ["all", *installed]:
            package = name.replace("_", "-")
            parser.error(f"--report_to {name} needs a package that is not installed: pip install {package}")
