"""The command line: `hf-autoencoders VERB ...`. Every verb loads what it is told and makes one call into the library.

Nothing heavy is imported before the arguments are understood, so `--help` and a mistyped flag answer at once. A mistake
of the user (a missing file, a wrong name, an unreadable image) ends in one line and exit status 2; `--debug` shows the
traceback. What goes wrong once model and images are loaded is a fault of ours, unless files or memory are to blame, and
keeps its traceback.
"""

import argparse
import contextlib
import copy
import json
import os
import shlex
import sys
from pathlib import Path

from . import __version__, cli_anomaly

PROGRAM = "hf-autoencoders"
METRICS, RUN, LATENT_PAGE = "metrics.json", "run.json", "latent_report"  # beside the weights of a published model
BATCH_SIZE = 500  # of evaluation.evaluate; a test holds them equal
TEXT_BATCH_SIZE, NUM_BEAMS = 64, 4  # of evaluation.summaries, likewise
IMPORTANCE_SAMPLES = 200
VALIDATION_FRACTION = 0.1  # of training, likewise
# Flags of evaluate and encode that are not for every kind of model, with what they are when not given.
IMAGE_FLAGS = {
    "split": "validation",
    "validation_fraction": None,
    "image_column": None,
    "label_column": None,
    "factor_columns": None,
    "skip_bad_images": False,
    "num_importance_samples": IMPORTANCE_SAMPLES,
    "pictures": None,
}
TEXT_FLAGS = dict.fromkeys(
    ("summaries", "validation", "text_column", "summary_column", "lowercase", "num_words", "num_beams")
)
AUDIO_FLAGS = {
    **dict.fromkeys(("validation_fraction", "audio_column", "speaker_column", "text_column", "held_out_speakers")),
    "split": "validation",
    "skip_bad_audio": False,
    "num_pairs": None,
    "num_target_clips": None,
    "pictures": None,
}
FLAGS = {"image": IMAGE_FLAGS, "text": TEXT_FLAGS, "audio": AUDIO_FLAGS}
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# What messages of the library advise -> what there is on the command line.
ADVICE = {
    "on_bad_audio='skip'": "--skip_bad_audio",
    "on_bad_image='skip'": "--skip_bad_images",
    "Divide 16 bit samples by 32768, or pass them as int16": "Scale the recording to [-1, 1]",
    "To average them, pass downmix=True, or write a mono file": "Average them first, or write a mono file",
}
SILENCE, SHORTEST_VOICE = 1e-4, 0.1  # peak, and seconds, below which no voice can be heard
SPEECH_BATCH_SIZE = 32  # of evaluation.voice_conversion


class Mistake(ValueError):
    """Of the user: told in one line."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0, or 2 after a mistake of the user, 130 when interrupted)."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    arguments.command_line = shlex.join([PROGRAM, *argv])
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.debug or not (isinstance(error, (Mistake, OSError)) or _is_out_of_memory(error)):
            raise
        print(f"{PROGRAM} {arguments.verb}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


# -- verbs -------------------------------------------------------------------------------------------------------------


def _evaluate(arguments: argparse.Namespace) -> None:
    _refuse_folder(arguments.output)
    kind = _modality(arguments)
    _refuse(arguments, kind)
    measured = None
    if kind == "text":
        model, result = _measure_summarizer(arguments)
    elif kind == "audio":
        model, result, measured = _measure_speech(arguments)
    else:
        model, result, measured = _measure_images(arguments)
    titles = ("metrics", "baselines", "not_measured") if kind == "image" else ("metrics", "not_measured")
    for title in titles:
        if result[title]:
            print(title.replace("_", " "))
            for name, value in result[title].items():
                print(f"  {name:<40} {value if isinstance(value, str) else f'{value:.6g}'}")

    from .evaluation.evaluate import write_metrics

    folder = Path(arguments.model) if Path(arguments.model).is_dir() else None
    output = Path(arguments.output or (folder or Path()) / METRICS)
    print(f"written to {write_metrics(output, result)}")
    if folder and output.resolve() == (folder / METRICS).resolve():
        _renew_card(folder, model.config.model_type)
    if arguments.pictures and kind == "audio":
        from .evaluation.voice_conversion import conversion_picture

        picture = conversion_picture(model, measured, seed=arguments.seed)
        _save(picture, str(Path(arguments.pictures) / "conversions.png"))
    elif arguments.pictures:
        from .evaluation.pictures import draw_model

        for picture in draw_model(model, measured, arguments.pictures, seed=arguments.seed):
            print(f"written to {picture}")


def _measure_images(arguments: argparse.Namespace) -> tuple:
    """An image model, its numbers, and the images they were measured on."""
    from .evaluation.evaluate import evaluate_model

    model, processor = _load_model(arguments)
    train, measured = _load_images(arguments, processor, ["train", arguments.split], factors=True)
    result = evaluate_model(
        model,
        train,
        measured,
        corpus=_corpus(arguments, measured),
        num_importance_samples=arguments.num_importance_samples,
        batch_size=arguments.batch_size or BATCH_SIZE,
        seed=arguments.seed,
        command=arguments.command_line,
        progress=_progress(arguments),
    )
    result["settings"]["validation_fraction"] = arguments.validation_fraction
    return model, result, measured.images


def _measure_summarizer(arguments: argparse.Namespace) -> tuple:
    """A summarizer and its numbers, whose table is printed."""
    from .data import load_text_pools
    from .evaluation.readability import LanguageModelJudge
    from .evaluation.summaries import evaluate_summarizer, format_table

    model, tokenizer = _load_summarizer(arguments)
    _texts_as_in_training(arguments)
    with _mistakes():
        pools = load_text_pools(
            arguments.corpus,
            arguments.summaries,
            arguments.validation,
            text_column=arguments.text_column or "text",
            summary_column=arguments.summary_column or "summary",
            config_name=arguments.config_name,
            revision=arguments.corpus_revision,
            lowercase=bool(arguments.lowercase),
            seed=arguments.seed,
        )
        judge = LanguageModelJudge(pools.summaries, tokenizer, seed=arguments.seed)  # refuses too few of them
    result = evaluate_summarizer(
        model,
        tokenizer,
        pools,
        num_words=arguments.num_words,
        num_beams=arguments.num_beams or NUM_BEAMS,
        batch_size=arguments.batch_size or TEXT_BATCH_SIZE,
        seed=arguments.seed,
        command=arguments.command_line,
        judge=judge,
        progress=_progress(arguments),
    )
    print(format_table(result["table"]))
    return model, result


def _measure_speech(arguments: argparse.Namespace) -> tuple:
    """A model of speech, its numbers, whose table is printed, and the clips they were measured on."""
    from .evaluation.speech_codes import evaluate_speech_codes, format_codes_table
    from .evaluation.voice_conversion import evaluate_voice_conversion, format_table

    if arguments.split != "validation":
        raise Mistake(f"--split {arguments.split}: a model of speech is measured on the split validation")
    model, extractor = _load_speech_model(arguments)
    splits = _load_speech(arguments, extractor)
    common = {
        "corpus": _corpus(arguments, splits["validation"]),
        "batch_size": arguments.batch_size or SPEECH_BATCH_SIZE,
        "seed": arguments.seed,
        "command": arguments.command_line,
        "progress": _progress(arguments),
    }
    if hasattr(model, "decode_codes"):
        result = evaluate_speech_codes(model, extractor, splits["train"], splits["validation"], **common)
        print(format_codes_table(result["table"]))
    else:
        result = evaluate_voice_conversion(
            model,
            extractor,
            splits["train"],
            splits["validation"],
            unseen=splits.get("unseen"),
            num_pairs=arguments.num_pairs,
            num_target_clips=_num_target_clips(arguments),
            **common,
        )
        print(format_table(result["table"]))
    result["settings"]["validation_fraction"] = arguments.validation_fraction
    return model, result, splits["validation"]


def _encode(arguments: argparse.Namespace) -> None:
    from safetensors.numpy import save_file

    _refuse_folder(arguments.output)
    kind = _modality(arguments)
    if kind != "text":  # of those, loading tells what is wrong
        _refuse(arguments, kind)
    tensors, names = _encode_speech(arguments) if kind == "audio" else (_encode_images(arguments), {})
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    metadata = {"model": arguments.model, "corpus": arguments.corpus, "split": arguments.split, **names}
    save_file(tensors, arguments.output, metadata)
    for name, array in tensors.items():
        print(f"{name} {array.dtype} {tuple(array.shape)}")
    print(f"written to {arguments.output}")


def _encode_images(arguments: argparse.Namespace) -> dict:
    """What there is to write of images: their codes or latents, and labels."""
    from .evaluation.evaluate import encode_images

    model, processor = _load_model(arguments)
    (images,) = _load_images(arguments, processor, [arguments.split])
    content = _content_of(model, arguments, hasattr(model, "decode_codes"))
    encoded = encode_images(
        model,
        images.images,
        batch_size=arguments.batch_size or BATCH_SIZE,
        keep_latents=content == "latents",
        progress=f"encode {arguments.split}" if _progress(arguments) else None,
    )
    labels = {} if images.labels is None else {"labels": images.labels}
    return {content: getattr(encoded, content), **labels}


def _encode_speech(arguments: argparse.Namespace) -> tuple[dict, dict]:
    """What there is to write of recordings, all clips one after the other, and the names of speakers and words."""
    import numpy as np

    from .evaluation.voice_conversion import clip_features, encode_clips

    model, extractor = _load_speech_model(arguments)
    splits = _load_speech(arguments, extractor, [arguments.split])
    clips = splits[arguments.split]
    content = _content_of(model, arguments, getattr(model, "quantizer", None) is not None)
    parts, voices = encode_clips(
        model,
        clip_features(clips),
        batch_size=arguments.batch_size or SPEECH_BATCH_SIZE,
        codes=content == "codes",
        progress=f"encode {arguments.split}" if _progress(arguments) else None,
    )
    if content == "codes":
        parts = [part.T.astype(np.int32) for part in parts]
    tensors = {
        content: np.concatenate(parts),
        "starts": np.cumsum([0, *map(len, parts)]),
        "speaker_embeddings": voices,
        "speakers": np.asarray(clips.speakers, np.int64),
    }
    names = {"speaker_names": json.dumps(list(clips.speaker_names))}
    if clips.words is not None:
        tensors["words"] = np.asarray(clips.words, np.int64)
        names["word_names"] = json.dumps(list(clips.word_names))
    return tensors, names


def _content_of(model, arguments: argparse.Namespace, has_codes: bool) -> str:
    """What `encode` shall write; codes are written without being asked for by models that are made for them."""
    if arguments.content == "codes" and not has_codes:
        raise Mistake(f"{arguments.model} has no discrete codes: use --content latents")
    return arguments.content or ("codes" if hasattr(model, "decode_codes") else "latents")


def _latent_report(arguments: argparse.Namespace) -> None:
    from .evaluation.latent_report import format_latent_report, latent_report, report_beside

    if arguments.label_column == "none" and arguments.factor_columns == ["none"]:
        raise Mistake(
            "--label_column none with --factor_columns none leaves no factors to report: name some with "
            "--factor_columns, or leave out one of the two"
        )
    folder = Path(arguments.model) if Path(arguments.model).is_dir() and not arguments.output else None
    write, output = (report_beside, folder) if folder else (latent_report, Path(arguments.output or LATENT_PAGE))
    model, processor = _load_model(arguments)
    (images,) = _load_images(arguments, processor, [arguments.split], factors=True)
    try:
        report = write(
            model,
            images,
            output,
            corpus=_corpus(arguments, images),
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            command=arguments.command_line,
            progress=_progress(arguments),
        )
    except ValueError as error:  # no factors in the corpus, or no parts in the code
        raise Mistake(str(error)) from error
    print(format_latent_report(report))
    print(f"written to {(folder / LATENT_PAGE if folder else output) / 'index.html'}")
    if folder:
        _renew_card(folder, model.config.model_type)


def _reconstruct(arguments: argparse.Namespace) -> None:
    from .evaluation.pictures import reconstruct
    from .evaluation.reconstruction import squared_error

    outputs = _output_files(arguments.images, arguments.output)
    model, processor = _load_model(arguments)
    pixel_values = _read_images(processor, arguments.images, model.device)
    for first in range(0, len(outputs), arguments.batch_size):
        rows = slice(first, first + arguments.batch_size)
        reconstruction = reconstruct(model, pixel_values[rows])
        errors = squared_error(pixel_values[rows], reconstruction)
        for path, image, error in zip(outputs[rows], processor.post_process(reconstruction), errors, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            print(f"{path}  mean squared error {error:.6g}")


def _cluster(arguments: argparse.Namespace) -> None:
    import csv

    import torch

    _refuse_folder(arguments.output)
    if Path(arguments.output).resolve() in {Path(image).resolve() for image in arguments.images}:
        raise Mistake(f"{arguments.output} is one of the input images: choose another file with --output")
    model, processor = _load_model(arguments)
    _require(model, "cluster", arguments, "no clusters")
    if arguments.variable >= model.config.num_variables:
        last = model.config.num_variables - 1
        raise Mistake(f"--variable {arguments.variable}: {arguments.model} has variables from 0 to {last}")
    pixel_values = _read_images(processor, arguments.images, model.device)
    with torch.no_grad():
        parts = [model.encode(part).probabilities for part in pixel_values.split(arguments.batch_size)]
    scores, clusters = torch.cat(parts)[:, arguments.variable].float().max(1)
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    with open(arguments.output, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "cluster", "score"))
        for path, cluster, score in zip(arguments.images, clusters.tolist(), scores.tolist(), strict=True):
            rows.writerow((path, cluster, f"{score:.6g}"))
    print(f"written to {arguments.output}")


def _sample(arguments: argparse.Namespace) -> None:
    from .cli_generation import draw_samples
    from .evaluation.pictures import image_grid

    _refuse_folder(arguments.output)
    model, _ = _load_model(arguments)
    _save(image_grid(draw_samples(model, arguments), arguments.columns), arguments.output)


def _evaluate_samples(arguments: argparse.Namespace) -> None:
    from .cli_generation import evaluate_samples_verb

    evaluate_samples_verb(arguments)


def _interpolate(arguments: argparse.Namespace) -> None:
    from .evaluation.pictures import interpolation_strip

    _refuse_folder(arguments.output)
    model, processor = _load_model(arguments)
    _require(model, "interpolate", arguments, "no interpolation")
    first, second = _read_images(processor, [arguments.first, arguments.second], model.device).split(1)
    if arguments.steps < 2:
        raise Mistake(f"--steps must be at least 2, both ends included, got {arguments.steps}")
    images = model.interpolate(first, second, steps=arguments.steps, mode=arguments.mode)
    _save(interpolation_strip(images), arguments.output)


def _summarize(arguments: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from .pipelines import TextSummarizationPipeline

    _refuse_folder(arguments.output)
    if arguments.input != "-" and not Path(arguments.input).is_file():
        raise FileNotFoundError(f"no such file: {arguments.input}")
    if arguments.output != "-" and Path(arguments.output).resolve() == Path(arguments.input).resolve():
        raise Mistake(f"{arguments.output} is the input, too: choose another file with --output")
    model, tokenizer = _load_summarizer(arguments)
    with _mistakes():
        summarize = TextSummarizationPipeline(
            model=model,
            tokenizer=tokenizer,
            device=model.device,
            num_words=arguments.num_words,
            ratio=arguments.ratio,
            num_beams=arguments.num_beams,
            return_reconstruction=arguments.reconstruct,
        )
    total = None
    if arguments.input != "-":
        with open(arguments.input, "rb") as file:
            total = sum(1 for _ in file)
    done = truncated = 0
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if arguments.input == "-" else stack.enter_context(open(arguments.input, "rb"))
        output = sys.stdout
        if arguments.output != "-":
            Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
            output = stack.enter_context(open(arguments.output, "w", encoding="utf-8"))
        bar = stack.enter_context(tqdm(total=total, unit="line", disable=not _progress(arguments), leave=False))
        try:
            for lines in _line_batches(source, arguments):
                texts = [line for line in lines if line.strip()]
                results = iter(summarize(texts, batch_size=arguments.batch_size) if texts else ())
                for line in lines:
                    result = next(results) if line.strip() else {"summary_text": ""}
                    truncated += "truncated" in result
                    columns = [result["summary_text"], *filter(None, [result.get("reconstruction_text")])]
                    output.write("\t".join(columns) + "\n")
                output.flush()  # whatever happens next, these are there
                done += len(lines)
                bar.update(len(lines))
        finally:
            bar.close()
            where = "" if arguments.output == "-" else f" written to {arguments.output}"
            cut = f"; {truncated} of them longer than {model.config.max_source_tokens} tokens and cut there"
            print(f"{done} lines{where}{cut if truncated else ''}", file=sys.stderr)


def _convert_voice(arguments: argparse.Namespace) -> None:
    import torch

    from .data.speech import read_audio, write_audio
    from .pipelines import VoiceConversionPipeline

    inputs = [arguments.source, *arguments.targets]
    outputs = [arguments.output, *filter(None, [arguments.picture])]
    if len({Path(path).resolve() for path in outputs}) < len(outputs):
        raise Mistake(f"{arguments.picture} is the output, too: choose another file for --picture")
    if overwritten := {Path(path).resolve() for path in inputs} & {Path(path).resolve() for path in outputs}:
        raise Mistake(f"{overwritten.pop()} is an input, too: choose another file to write to")
    if Path(arguments.output).suffix.lower() not in AUDIO_SUFFIXES:
        raise Mistake(f"{arguments.output}: expected a file that ends in {', '.join(AUDIO_SUFFIXES)}")
    if arguments.picture and Path(arguments.picture).suffix.lower() not in PICTURE_SUFFIXES:
        raise Mistake(f"{arguments.picture}: expected a picture that ends in {', '.join(PICTURE_SUFFIXES)}")
    model, extractor = _load_speech_model(arguments)
    rate, recordings = extractor.sampling_rate, []
    for number, path in enumerate(inputs):
        try:
            with _mistakes(advice={"pass downmix=True": "use --downmix"}):
                waveform, own_rate = read_audio(path, downmix=arguments.downmix)
                # refuses what is no recording
                recordings.append(extractor._at_own_rate(waveform, own_rate, resample=True))
        except Mistake as error:
            raise Mistake(str(error) if path in str(error) else f"{path}: {error}") from error
        if own_rate != rate:
            print(f"{path}: resampled from {own_rate} to {rate} samples per second", file=sys.stderr)
        if number and abs(waveform).max() < SILENCE:
            print(f"{path} is silent: there is no voice to be heard in it", file=sys.stderr)
        elif number and len(waveform) < SHORTEST_VOICE * own_rate:
            seconds = len(waveform) / own_rate
            print(f"{path} lasts {seconds:.2g} seconds: too short to hear a voice in it", file=sys.stderr)
    with _mistakes():
        convert = VoiceConversionPipeline(model=model, feature_extractor=extractor, device=model.device)
    audio = convert({"source": recordings[0], "target": recordings[1:]})["audio"]
    with _mistakes():
        write_audio(arguments.output, audio, rate)
    print(f"written to {arguments.output}")
    if arguments.picture:
        from .evaluation.mel_pictures import mel_picture

        clips = [*recordings[:2], read_audio(arguments.output)[0]]
        panels = [torch.from_numpy(extractor(clip, sampling_rate=rate)["input_features"][0]) for clip in clips]
        with _mistakes():
            _save(mel_picture([dict(zip(("source", "target", "converted"), panels, strict=True))]), arguments.picture)


def _compress(arguments: argparse.Namespace) -> None:
    from .cli_compression import compress_verb

    compress_verb(arguments)


def _decompress(arguments: argparse.Namespace) -> None:
    from .cli_compression import decompress_verb

    decompress_verb(arguments)


def _rate_distortion(arguments: argparse.Namespace) -> None:
    from .cli_compression import rate_distortion_verb

    rate_distortion_verb(arguments)


def _line_batches(source, arguments: argparse.Namespace):
    """Lines of a binary file, so many at once as are not blank, with the blank ones between them."""
    lines, texts = [], 0
    for number, raw in enumerate(source, 1):
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise Mistake(f"{arguments.input}: line {number} is not UTF-8 text: {error}") from error
        lines.append(line)
        texts += bool(line.strip())
        if texts == arguments.batch_size:
            yield lines
            lines, texts = [], 0
    if lines:
        yield lines


def _publish(arguments: argparse.Namespace) -> None:
    from .publishing import push_folder

    with _mistakes():
        commit = push_folder(
            arguments.folder,
            arguments.repo_id,
            private=True if arguments.private else None,
            revision=arguments.revision,
            commit_message=arguments.commit_message,
            create_pr=arguments.create_pr,
        )
    print(commit.pr_url or commit.commit_url)


def _variants(arguments: argparse.Namespace) -> None:
    from .registry import VARIANTS

    rows = [("name", "model_type", "modality", "Auto classes", "")]
    for variant in VARIANTS.values():
        rows.append(
            (
                variant.name,
                variant.model_type,
                variant.modality,
                ", ".join(["AutoModel", *variant.heads]),
                variant.title,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# -- loading -----------------------------------------------------------------------------------------------------------


def _modality(arguments: argparse.Namespace) -> str:
    """What the model reads, by its configuration: "image", "text" or "audio"; of one that is not ours "image", and
    loading it tells what is wrong."""
    from transformers import AutoConfig

    from .registry import VARIANTS

    with _mistakes(f"cannot load {_checked_name(arguments)}: "):
        config = AutoConfig.from_pretrained(arguments.model, **_source(arguments))
    return VARIANTS[config.model_type].modality if config.model_type in VARIANTS else "image"


def _refuse(arguments: argparse.Namespace, kind: str) -> None:
    """Refuse flags that were given, but are for models of other kinds."""
    for flag in dict.fromkeys(flag for flags in FLAGS.values() for flag in flags):
        kinds = [name for name, flags in FLAGS.items() if flag in flags]
        default = FLAGS[kinds[0]][flag]
        if kind not in kinds and getattr(arguments, flag, default) != default:
            article = "a" if kind == "text" else "an"
            raise Mistake(
                f"--{flag} is for {' and '.join(kinds)} models, but {arguments.model} is {article} {kind} model"
            )


def _load_model(arguments: argparse.Namespace):
    """An image model, ready to be used, and its image processor."""
    from transformers import AutoImageProcessor, AutoModel

    def is_right(model) -> bool:
        return all(hasattr(model, name) for name in ("encode", "decode")) and hasattr(model.config, "latent_shape")

    name = arguments.model
    model = _load_weights(arguments, AutoModel, is_right, "an image auto-encoder")
    with _mistakes(f"cannot load the image processor of {name}: "):
        try:
            processor = AutoImageProcessor.from_pretrained(name, **_source(arguments))
        except OSError:  # saved without one: what fits the configuration is known
            from .models.image_processing_autoencoder import AutoencoderImageProcessor

            processor = AutoencoderImageProcessor.for_model(model.config)
    return model, processor


def _load_summarizer(arguments: argparse.Namespace):
    """A summarizer, ready to be used, and its tokenizer."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    def is_right(model) -> bool:
        return all(hasattr(model, name) for name in ("generate", "reconstruct"))

    model = _load_weights(arguments, AutoModelForSeq2SeqLM, is_right, "a summarizer of this package")
    with _mistakes(f"cannot load the tokenizer of {arguments.model}: "):
        return model, AutoTokenizer.from_pretrained(arguments.model, **_source(arguments))


def _load_speech_model(arguments: argparse.Namespace):
    """A model of speech, ready to be used, and its feature extractor."""
    from transformers import AutoFeatureExtractor, AutoModel

    from .pipelines import check_feature_extractor

    def is_right(model) -> bool:
        return all(hasattr(model, name) for name in ("convert", "encode_speaker"))

    model = _load_weights(arguments, AutoModel, is_right, "an auto-encoder of speech")
    with _mistakes(
        f"cannot load the feature extractor of {arguments.model}: "
    ):  # it has statistics, nothing replaces it
        extractor = AutoFeatureExtractor.from_pretrained(arguments.model, **_source(arguments))
        check_feature_extractor(extractor, model)
    return model, extractor


def _source(arguments: argparse.Namespace) -> dict:
    return {"revision": arguments.revision, "trust_remote_code": arguments.trust_remote_code}


def _checked_name(arguments: argparse.Namespace) -> str:
    name = arguments.model
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"no such folder: {name}")
    return name


def _load_weights(arguments: argparse.Namespace, auto_class, is_right, expected: str):
    """The model that `auto_class` finds, complete and in evaluation mode on the device asked for."""
    import torch
    from transformers.utils import logging

    if not _progress(arguments):
        logging.disable_progress_bar()
    name = _checked_name(arguments)
    with _mistakes(f"cannot load {name}: "):
        model, loading = auto_class.from_pretrained(name, output_loading_info=True, **_source(arguments))
    if not is_right(model):
        raise Mistake(f"{name} holds a {type(model).__name__}: expected {expected}")
    if missing := sorted(loading["missing_keys"]):
        raise Mistake(
            f"{name} lacks {len(missing)} of the weights of {type(model).__name__}, for example {missing[0]}: "
            "an encoder that was saved without its decoder cannot be used here"
        )
    broken = [key for key, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise Mistake(f"{name}: {len(broken)} of the weights hold NaN or infinite values, for example {broken[0]}")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.eval().to(device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise Mistake(f"device {device!r} cannot be used: {error}") from error


def _training_of(arguments: argparse.Namespace) -> dict:
    """The arguments of the training run that made the model, as its `run.json` has them; empty when there is none."""
    from transformers.utils import cached_file

    name = arguments.model
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # none, or of another program
        if Path(name).is_dir():  # `final/`, `best/` and checkpoints lie in the folder of their run
            files = [Path(name).resolve() / RUN, Path(name).resolve().parent / RUN]
            records = [found for found in map(_arguments_of, files) if found]
            # where both are of one run, that of `final/` is a published one: its paths have lost their folders
            return records[-1] if len(records) == 2 and _is_published(*records) else records[0] if records else {}
        else:
            quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
            return _arguments_of(cached_file(name, RUN, revision=arguments.revision, **quiet))
    return {}


def _arguments_of(file) -> dict:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return dict(json.loads(Path(file).read_text("utf-8"))["arguments"])
    return {}


def _is_published(record: dict, whole: dict) -> bool:
    """Whether the arguments of one run are those of another, apart from the folders of its paths."""
    from .training_arguments import without_folder

    return all(value in (whole.get(name), without_folder(whole.get(name))) for name, value in record.items())


def _as_in_training(arguments: argparse.Namespace, columns: tuple[str, ...]) -> None:
    """Read the corpus as the training of the model did, where that was on the same one, and refuse to measure on rows
    it was trained on."""
    run = _training_of(arguments)
    fraction = arguments.validation_fraction
    if not _is_corpus_of(run.get("dataset"), arguments):
        arguments.validation_fraction = fraction or VALIDATION_FRACTION
        return
    taken = []
    trained_fraction = run.get("validation_fraction") or VALIDATION_FRACTION
    if fraction and fraction > trained_fraction:
        # the rows of a smaller fraction are among those of a larger one
        raise Mistake(
            f"{arguments.model} was trained on {arguments.corpus} with --validation_fraction {trained_fraction:g}: "
            f"with {fraction:g} the validation split would hold rows it was trained on. Leave out the flag"
        )
    if fraction is None and trained_fraction != VALIDATION_FRACTION:
        taken.append(f"--validation_fraction {trained_fraction:g}")
    arguments.validation_fraction = fraction or trained_fraction
    _take_over(arguments, run, columns, taken)


def _speech_as_in_training(arguments: argparse.Namespace) -> int:
    """Read recordings as the training of the model did, where that was on the same corpus, and refuse to measure on
    clips it was trained on. Returns the seed that the splits are made with."""
    columns = ("audio_column", "speaker_column", "text_column")
    _as_in_training(arguments, columns)
    run = _training_of(arguments)
    if not _is_corpus_of(run.get("dataset"), arguments):
        return 0
    trained = [str(name) for name in run.get("held_out_speakers") or []]
    if arguments.held_out_speakers is None and trained:
        arguments.held_out_speakers = trained
        print(f"as in training: --held_out_speakers {' '.join(trained)}", file=sys.stderr)
    elif arguments.held_out_speakers is not None and arguments.held_out_speakers != trained:
        held_out = " ".join(trained) or "nobody"
        raise Mistake(
            f"the training of {arguments.model} on {arguments.corpus} held out {held_out}: others it has heard. "
            "Leave out --held_out_speakers"
        )
    return int(run.get("seed") or 0)


def _texts_as_in_training(arguments: argparse.Namespace) -> None:
    """Read texts and summaries as the training of the model did, where that was on the same texts."""
    run = _training_of(arguments)
    if _is_corpus_of(run.get("texts"), arguments):
        _take_over(arguments, run, ("summaries", "validation", "text_column", "summary_column", "lowercase"), [])


def _is_corpus_of(trained_on, arguments: argparse.Namespace) -> bool:
    """Whether a run's corpus is the one of the command line.

    A published record has of a local corpus its last name only, so files and folders of that name count.
    """
    trained_on, corpus = str(trained_on), Path(arguments.corpus)
    if trained_on == arguments.corpus or Path(trained_on).resolve() == corpus.resolve():
        return True
    return corpus.exists() and Path(os.path.abspath(corpus)).name == trained_on


def _num_target_clips(arguments: argparse.Namespace) -> int:
    """Clips that a voice is taken from: if it was not said how many, as the training of the model measured it."""
    trained = _training_of(arguments).get("num_target_clips")
    if arguments.num_target_clips is None and isinstance(trained, int) and trained > 1:
        print(f"as in training: --num_target_clips {trained}", file=sys.stderr)
        return trained
    return arguments.num_target_clips or 1


def _take_over(arguments: argparse.Namespace, run: dict, flags: tuple[str, ...], taken: list[str]) -> None:
    """Set flags that were not given to what they were in training, and tell so, with what was `taken` before."""
    names = {"config_name": "dataset_config_name", "corpus_revision": "dataset_revision"}
    for flag in (*names, *flags):
        value = run.get(names.get(flag, flag))
        if getattr(arguments, flag) is None and value:
            setattr(arguments, flag, value)
            if value is True:
                taken.append(f"--{flag}")
            elif (flag, value) not in (("text_column", "text"), ("summary_column", "summary")):  # the defaults
                taken.append(f"--{flag} {' '.join(value) if isinstance(value, list) else value}")
    if taken:
        print(f"as in training: {' '.join(taken)}", file=sys.stderr)


def _renew_card(folder: Path, model_type: str) -> None:
    """Put what was measured into the card of a model folder, unless that has none or its owner's."""
    from .publishing import CARD, VARIANTS, write_card

    if (folder / CARD).is_file() and model_type in VARIANTS:
        write_card(folder)


def _load_images(arguments: argparse.Namespace, processor, names: list[str], factors: bool = False) -> list:
    """The named splits of the corpus, decoded, with their factors if asked for."""
    from .data import find_factor_columns, image_arrays, load_corpus

    _as_in_training(arguments, ("image_column", "label_column", *(["factor_columns"] if factors else [])))
    if not processor.do_resize:  # of a model that takes any size: of one size all the same, to be one array
        processor = copy.copy(processor)
        processor.do_resize = True
    with _mistakes():
        splits = load_corpus(
            arguments.corpus,
            arguments.config_name,
            revision=arguments.corpus_revision,
            validation_fraction=arguments.validation_fraction,
        )
        if unknown := [name for name in names if name not in splits]:
            raise Mistake(f"{arguments.corpus} has no split {unknown[0]!r}: expected one of {', '.join(splits)}")
        decoded = {
            name: image_arrays(
                splits[name],
                processor,
                image_column=arguments.image_column,
                label_column=arguments.label_column,
                extra_columns=find_factor_columns(splits[name].features, arguments.factor_columns) if factors else (),
                on_bad_image="skip" if arguments.skip_bad_images else "raise",
                progress=_progress(arguments),
            )
            for name in dict.fromkeys(names)
        }
    return [decoded[name] for name in names]


def _load_speech(arguments: argparse.Namespace, extractor, names: list[str] | None = None) -> dict:
    """Splits of the corpus, read: those named, else all of them."""
    from .data.speech import load_speech_corpus, speech_clips

    seed = _speech_as_in_training(arguments)
    held_out = arguments.held_out_speakers or []
    if len(held_out) == 1 and held_out[0].isdecimal():
        held_out = int(held_out[0])
    reading = {"on_bad_audio": "skip" if arguments.skip_bad_audio else "raise", "progress": _progress(arguments)}
    with _mistakes():
        splits = load_speech_corpus(
            arguments.corpus,
            arguments.config_name,
            revision=arguments.corpus_revision,
            audio_column=arguments.audio_column,
            speaker_column=arguments.speaker_column,
            text_column=arguments.text_column,
            validation_fraction=arguments.validation_fraction,
            held_out_speakers=held_out,
            seed=seed,
        )
        if unknown := [name for name in names or [] if name not in splits]:
            raise Mistake(f"{arguments.corpus} has no split {unknown[0]!r}: expected one of {', '.join(splits)}")
        known: dict = {}
        result = {}
        for name in names or [name for name in ("train", "validation", "unseen") if name in splits]:
            result[name] = speech_clips(splits[name], extractor, **reading, **known)
            if name == "train":
                known = {"speakers": result[name].speaker_names, "words": result[name].word_names}
    return result


def _corpus(arguments: argparse.Namespace, images) -> dict:
    """What the numbers were measured on."""
    corpus = {"name": arguments.corpus, "split": arguments.split}
    optional = {
        "config_name": arguments.config_name,
        "revision": arguments.corpus_revision,
        "skipped_rows": len(images.skipped),
    }
    return corpus | {name: value for name, value in optional.items() if value}


def _read_images(processor, paths: list[str], device):
    """pixel_values (len(paths), C, H, W) of image files; an unreadable one is named."""
    import torch

    batch = []
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such file: {path}")
        try:
            batch.append(processor(path, return_tensors="pt")["pixel_values"])
        except (ValueError, TypeError, OSError) as error:
            raise Mistake(f"{path}: {error}") from error
    for path, image in zip(paths, batch, strict=True):
        if image.shape != batch[0].shape:
            first, other = (f"{one.shape[2]} x {one.shape[3]}" for one in (batch[0], image))
            raise Mistake(
                f"{paths[0]} has {first} pixels and {path} {other}: where the model does not fix the size, this verb "
                "takes images of one size"
            )
    return torch.cat(batch).to(device)


def _output_files(images: list[str], folder: str) -> list[Path]:
    """DIR/name.png for every input; two inputs of one name, or an input that would be overwritten, are refused."""
    taken: dict[Path, str] = {}
    inputs = {Path(image).resolve() for image in images}
    for image in images:
        path = Path(folder) / f"{Path(image).stem}.png"
        if path in taken:
            raise Mistake(f"{taken[path]} and {image} would both be written to {path}: rename one of them")
        if path.resolve() in inputs:
            raise Mistake(f"{path} is one of the input images: choose another folder with --output")
        taken[path] = image
    return list(taken)


def _require(model, method: str, arguments: argparse.Namespace, lack: str) -> None:
    if not hasattr(model, method):
        raise Mistake(f"{arguments.model} holds a {type(model).__name__} model, which has {lack}")


def _refuse_folder(path: str | None) -> None:
    """Before anything is computed that could not be written."""
    if path and Path(path).is_dir():
        raise Mistake(f"{path} is a folder: expected a file to write to, name one with --output")


def _save(picture, path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    print(f"written to {path}")


def _progress(arguments: argparse.Namespace) -> bool:
    return sys.stderr.isatty() and not arguments.quiet


@contextlib.contextmanager
def _mistakes(prefix: str = "", advice: dict[str, str] | None = None):
    """Around what reads or sends what the user named: its errors say what the user can mend, with the `ADVICE` in the
    words of the command line, that of the verb first."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError, StrictDataclassError  # the former of the library it speaks HTTP with
    from safetensors import SafetensorError

    kinds = (OSError, ValueError, RuntimeError, ImportError, DatasetsError, StrictDataclassError, SafetensorError)
    try:
        yield
    except (*kinds, HTTPError) as error:
        message = str(error) or type(error).__name__
        for library, command_line in ((advice or {}) | ADVICE).items():
            message = message.replace(library, command_line)
        raise Mistake(prefix + message) from error


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# -- arguments ---------------------------------------------------------------------------------------------------------


def _whole_number(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text!r}")
    return int(text)


def _ratio(text: str) -> float:
    return 1.0 if text in ("1", "1.0") else _fraction(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1 (exclusive), got {text!r}")
    return value


class _Help(argparse.HelpFormatter):
    """Room for long flags, and defaults where there is one to tell."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _get_help_string(self, action):
        told = action.option_strings and isinstance(action.default, (str, int)) and action.default is not False
        return f"{action.help} (default: %(default)s)" if told and action.default != argparse.SUPPRESS else action.help


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Measure, use and publish auto-encoders. MODEL is a folder or a model id on the Hub; CORPUS is "
        '"digits", "sprites", "docstrings" or "espeak" (embedded), a dataset id on the Hub, a .parquet file, or a '
        "folder of parquet files, images or recordings.",
        epilog=f"{PROGRAM} VERB --help explains a verb. Training: see training/README.md.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-V", "--version", action="version", version=f"{PROGRAM} {__version__}", help="show the version"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, run, help: str, description: str = "") -> argparse.ArgumentParser:
        description = f"{help[0].upper()}{help[1:]}. {description}".strip()
        sub = verbs.add_parser(name, help=help, description=description, formatter_class=_Help, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    def model(sub: argparse.ArgumentParser, flag: bool = False) -> None:
        name = {"dest": "model", "required": True} if flag else {}
        sub.add_argument("--model" if flag else "model", metavar="MODEL", help="folder or model id on the Hub", **name)
        options = sub.add_argument_group("model")
        options.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
        options.add_argument(
            "--trust_remote_code",
            action="store_true",
            help="run code that comes with a model this package does not know",
        )
        options.add_argument("--device", help='"cpu", "cuda", "cuda:1" ...; a GPU if there is one when not given')
        sub.add_argument("--quiet", action="store_true", help="no progress bars")

    def corpus(sub: argparse.ArgumentParser, use: str, speech: bool = True, factors: str | None = None) -> None:
        embedded = '"digits" or "sprites"' + (' (images), "espeak" (speech)' if speech else "")
        sub.add_argument("corpus", metavar="CORPUS", help=f"{embedded}, dataset id on the Hub, .parquet file or folder")
        options = sub.add_argument_group("corpus")
        options.add_argument("--split", default="validation", help=f"split to {use}")
        options.add_argument(
            "--validation_fraction",
            type=_fraction,
            metavar="SHARE",
            help="share of the training rows held out as validation if the corpus has no such split; when not given, "
            f"as in the training of the model if that was on this corpus, else {VALIDATION_FRACTION}",
        )
        options.add_argument("--config_name", help="configuration of a dataset that has several")
        options.add_argument("--corpus_revision", help="branch, tag or commit of a dataset on the Hub")
        options.add_argument("--image_column", help="column with the images; guessed when not given")
        classes = 'column with the classes, "none" for none; guessed when not given'
        also = "; whatever is said here, it may be one of the --factor_columns, too"
        options.add_argument("--label_column", help=classes + (also if factors else ""))
        if factors:
            options.add_argument(
                "--factor_columns",
                nargs="+",
                metavar="NAME",
                help="columns with factors of variation of images; when not given, all columns of whole numbers, the "
                f'classes among them even with --label_column none; "none" for none: {factors}',
            )
        options.add_argument("--skip_bad_images", action="store_true", help="leave out unreadable images")
        if not speech:
            return
        options = sub.add_argument_group("corpus of a speech model")
        options.add_argument("--audio_column", help="column with the recordings; guessed when not given")
        options.add_argument("--speaker_column", help="column that says who speaks; guessed when not given")
        options.add_argument(
            "--held_out_speakers",
            nargs="+",
            metavar="NAME",
            help="speakers, or how many, that are the split unseen; as in the training of the model when not given",
        )
        options.add_argument("--skip_bad_audio", action="store_true", help="leave out unreadable recordings")

    def batch_size(sub: argparse.ArgumentParser, default: int = BATCH_SIZE, unit: str = "images") -> None:
        sub.add_argument("--batch_size", type=_whole_number, default=default, help=f"{unit} at once")

    def output(sub: argparse.ArgumentParser, default: str | None, help: str) -> None:
        sub.add_argument("-o", "--output", default=default, required=default is None, metavar="PATH", help=help)

    def seed(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--seed", type=_seed, default=0, help="seed of everything random")

    evaluate = verb(
        "evaluate",
        _evaluate,
        "measure a model and write one JSON",
        "Of images: reconstruction for every model, likelihood for VAEs, code usage for discrete codes, PCA of the "
        "same size or of equal bits, a linear probe where there are labels, how well dimensions match the factors of "
        "the corpus, how well clusters match labels, the entropy of bits. Of texts: ROUGE, readability, length "
        "and reconstruction of the summaries, beside what needs no training. Of speech: do conversions take the voice "
        "and keep the word, in the ears of judges made of real recordings, and what do content and speaker know of "
        "each other; or how much codes are like phones. On a model folder the numbers go into "
        "its metrics.json and card (in the place of those of its training), which is what publish uploads; --output "
        "keeps them apart.",
    )
    model(evaluate)
    corpus(evaluate, "measure; train serves the baselines", factors="nothing is said of disentanglement then")
    texts = evaluate.add_argument_group(
        "corpus of a text model",
        'CORPUS has the texts; "docstrings" is embedded. What is not given is as in the training of the model if that '
        "was on these texts.",
    )
    texts.add_argument("--summaries", metavar="CORPUS", help="summaries of other texts; of the same corpus by default")
    texts.add_argument("--validation", metavar="CORPUS", help="pairs to measure with; of the same corpus by default")
    texts.add_argument("--text_column", help='column with the texts; "text" when not given, of speech guessed')
    texts.add_argument("--summary_column", help='column with the summaries; "summary" when not given')
    texts.add_argument("--lowercase", action="store_true", default=None, help="lower-case everything")
    texts.add_argument(
        "--num_words", type=_whole_number, metavar="N", help="write exactly so many words; else the model decides"
    )
    texts.add_argument(
        "--num_beams",
        type=_whole_number,
        metavar="N",
        help=f"of the search; 1 is greedy, {NUM_BEAMS} when not given",
    )
    evaluate.add_argument(
        "--batch_size",
        type=_whole_number,
        help=f"images, texts or clips at once; {BATCH_SIZE}, {TEXT_BATCH_SIZE} and {SPEECH_BATCH_SIZE} when not given",
    )
    evaluate.add_argument(
        "--num_pairs", type=_whole_number, metavar="N", help="conversions of speech; each clip once when not given"
    )
    evaluate.add_argument(
        "--num_target_clips",
        type=_whole_number,
        metavar="N",
        help="clips that a voice is taken from, averaged; when not given, as in the training of the model, else 1",
    )
    evaluate.add_argument(
        "--num_importance_samples",
        type=_whole_number,
        default=IMPORTANCE_SAMPLES,
        metavar="K",
        help="samples of the likelihood of a VAE",
    )
    seed(evaluate)
    evaluate.add_argument(
        "-o", "--output", metavar="PATH", help=f"file of the numbers; MODEL/{METRICS} for a folder, else ./{METRICS}"
    )
    evaluate.add_argument("--pictures", metavar="DIR", help="also draw reconstructions and samples into this folder")

    encode = verb("encode", _encode, "write the latents or codes of a corpus to a safetensors file")
    model(encode)
    corpus(encode, "encode")
    encode.add_argument("--text_column", help="column with the words that are said; guessed when not given")
    encode.add_argument(
        "--batch_size",
        type=_whole_number,
        help=f"images or clips at once; {BATCH_SIZE} and {SPEECH_BATCH_SIZE} when not given",
    )
    encode.add_argument(
        "--content", choices=("latents", "codes"), help="what to write; codes for models that have them by default"
    )
    output(
        encode,
        None,
        "safetensors file: latents or codes, and labels where the corpus has them; of speech those of all clips one "
        "after the other, where each starts, speaker embeddings, speakers and words",
    )

    report = verb(
        "latent-report",
        _latent_report,
        "write a page that says what each part of a code of images stands for",
        "Which dimension, bit or class knows which factor of the images, how much of it and how surely, with pictures "
        "of what changes when it changes. Factors are columns of whole numbers with few values, the classes among "
        "them. Written are index.html with its pictures, latent_report.json and latent_report.md. In a model folder "
        "the last becomes a part of the card, where that has a place for it, and publish uploads them all; --output "
        "keeps them apart.",
    )
    model(report)
    corpus(report, "encode", speech=False, factors="the classes are the only factor then")
    batch_size(report)
    seed(report)
    report.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help=f"folder of the page; MODEL/{LATENT_PAGE} for a folder, else ./{LATENT_PAGE}",
    )

    reconstruct = verb("reconstruct", _reconstruct, "pass image files through a model and back")
    model(reconstruct)
    reconstruct.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    batch_size(reconstruct)
    output(reconstruct, None, "folder of the reconstructions, PNG of the model's size under the names of the inputs")

    cluster = verb("cluster", _cluster, "say into which cluster of a model image files fall")
    model(cluster)
    cluster.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    cluster.add_argument(
        "--variable",
        type=_seed,
        default=0,
        metavar="N",
        help="which one-hot variable, where there are several",
    )
    batch_size(cluster)
    output(cluster, "clusters.csv", "CSV file: image, cluster, and the probability of it as score")

    cli_anomaly.add_verbs(verb, model, corpus, batch_size, seed)

    def prior(sub: argparse.ArgumentParser) -> None:
        options = sub.add_argument_group("prior")
        options.add_argument(
            "--prior", metavar="PRIOR", help="folder or Hub id of a prior of the model; its own when not given"
        )
        options.add_argument("--prior_revision", metavar="REVISION", help="branch, tag or commit of that")
        options.add_argument("--temperature", type=float, help="below 1 keeps to what is likely; 1 when not given")

    sample = verb("sample", _sample, "draw new images from a model with a prior")
    model(sample)
    prior(sample)
    sample.add_argument("--classes", type=int, nargs="+", metavar="N", help="classes to draw, by number, in turn")
    sample.add_argument("-n", "--num_samples", type=_whole_number, default=16, help="number of images")
    sample.add_argument("--columns", type=_whole_number, help="images in a row; as square as can be when not given")
    seed(sample)
    output(sample, "samples.png", "picture")

    judge = verb(
        "evaluate-samples",
        _evaluate_samples,
        "measure the images that a model draws from a prior",
        "Frechet distance, precision and recall between samples and images of a corpus, in features that are named; "
        "beside them the same of training images, of reconstructions, and of samples without a learned prior; bits or "
        "nats of the images. On the folder of a prior the numbers go into its metrics.json and card.",
    )
    model(judge)
    prior(judge)
    corpus(judge, "compare with; train serves the features and the baselines", speech=False)
    judge.add_argument(
        "-n", "--num_samples", type=_whole_number, help="images of each set; 5000, or the smaller split, when not given"
    )
    judge.add_argument(
        "--features",
        choices=("auto", "lenet", "hog"),
        default="auto",
        help="a small classifier of the corpus, or gradients; auto: the former where there are labels",
    )
    batch_size(judge)
    seed(judge)
    judge.add_argument(
        "-o", "--output", metavar="PATH", help=f"PRIOR/{METRICS} for a folder, else ./samples.json, when not given"
    )

    interpolate = verb("interpolate", _interpolate, "walk from one image to another through the latents")
    model(interpolate)
    interpolate.add_argument("first", metavar="FROM", help="image file")
    interpolate.add_argument("second", metavar="TO", help="image file")
    interpolate.add_argument("--steps", type=_whole_number, default=12, help="images, both ends included")
    interpolate.add_argument("--mode", choices=("linear", "spherical"), default="linear", help="path in latent space")
    output(interpolate, "interpolation.png", "picture")

    summarize = verb(
        "summarize",
        _summarize,
        "write a short version of every line of a text file",
        "Line by line, blank lines stay blank. Results are written as they come, so nothing is lost when it is "
        "interrupted.",
    )
    summarize.add_argument("input", metavar="INPUT", help="text file, UTF-8; - for standard input")
    model(summarize, flag=True)
    length = summarize.add_mutually_exclusive_group()
    length.add_argument("--num_words", type=_whole_number, metavar="N", help="write exactly so many words")
    length.add_argument("--ratio", type=_ratio, metavar="R", help="write this share of the words of the line")
    summarize.add_argument("--num_beams", type=_whole_number, default=4, metavar="N", help="of the search; 1 is greedy")
    summarize.add_argument(
        "--reconstruct", action="store_true", help="after a tab, also what the model makes of the summary alone"
    )
    batch_size(summarize, 32, "lines")
    output(summarize, None, "text file with as many lines; - for standard output")

    convert = verb(
        "convert-voice",
        _convert_voice,
        "say what one recording says in the voice of another",
        "The voices of several targets are averaged. What is written is as long as the source, one channel at the "
        "sampling rate of the model.",
    )
    convert.add_argument("source", metavar="SOURCE", help="recording of what is said: WAV, FLAC, OGG, MP3")
    convert.add_argument("targets", nargs="+", metavar="TARGET", help="recording of the voice, whatever it says")
    model(convert, flag=True)
    convert.add_argument("--downmix", action="store_true", help="average the channels of stereo recordings")
    convert.add_argument(
        "--picture",
        metavar="PATH",
        help=f"also draw source, first target and result as log-mels: {', '.join(PICTURE_SUFFIXES)}",
    )
    output(convert, None, f"recording to write: {', '.join(AUDIO_SUFFIXES)}")

    def code_prior(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--prior", metavar="PRIOR", help="folder or Hub id of a prior of the model's codes: smaller files, slower"
        )
        sub.add_argument("--prior_revision", metavar="REVISION", help="branch, tag or commit of that")

    compress = verb(
        "compress",
        _compress,
        "write an image file, or every one of a folder, as bytes of a learned codec",
        "By an image codec at the image's own size; by a model with discrete codes, such as a VQ-VAE, at the model's "
        "size. Alpha, and more than 8 bits, have no place in it and are refused; EXIF orientation is applied.",
    )
    compress.add_argument("input", metavar="IN", help="image file, or a folder of them")
    compress.add_argument("output", metavar="OUT", help="file that ends in .hfae, or a folder")
    model(compress, flag=True)
    compress.add_argument(
        "--quality", type=float, metavar="Q", help="of a codec, from 0 to its lambdas less 1; the middle when not given"
    )
    code_prior(compress)

    decompress = verb(
        "decompress", _decompress, "write the images of compressed files", "It takes the model that compressed them."
    )
    decompress.add_argument("input", metavar="IN", help="file that ends in .hfae, or a folder of them")
    decompress.add_argument("output", metavar="OUT", help="PNG or another lossless image file, or a folder of PNG")
    model(decompress, flag=True)
    decompress.add_argument(
        "--max_pixels", type=_whole_number, metavar="N", help="refuse larger images; 33,554,432 when not given"
    )
    code_prior(decompress)

    curves = verb(
        "rate-distortion",
        _rate_distortion,
        "compare a learned codec with JPEG and WebP",
        "Real bytes and PSNR at several qualities, each image at its own size; how many percent of bits are saved at "
        "equal PSNR (BD-rate); seconds per megapixel. Written are rate_distortion.json and rate_distortion.png.",
    )
    model(curves)
    corpus(curves, "measure", speech=False)
    curves.add_argument("--max_images", type=_whole_number, metavar="N", help="only the first so many images")
    curves.add_argument("--qualities", type=float, nargs="+", metavar="Q", help="of the model; when not given, many")
    output(curves, None, "folder to write to")

    publish = verb("publish", _publish, "upload a model folder, with its card and code, to the Hub")
    publish.add_argument("folder", metavar="FOLDER", help="what a training run or save_for_hub wrote")
    publish.add_argument("repo_id", metavar="REPO_ID", help="organisation/name; created if needed")
    publish.add_argument("--private", action="store_true", help="create a private repository")
    publish.add_argument("--revision", help="branch to commit to")
    publish.add_argument("--commit_message", help="message of the commit")
    publish.add_argument("--create_pr", action="store_true", help="open a pull request instead")

    verb("variants", _variants, "list the kinds of auto-encoder there are")
    return parser


if __name__ == "__main__":
    from hf_autoencoders import cli  # files with more verbs know this one, and its Mistake, by that name

    sys.exit(cli.main())
