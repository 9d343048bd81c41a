"""Verbs of the command line about bytes: `compress`, `decompress`, `rate-distortion`."""

import argparse
from pathlib import Path

from .cli import Mistake, _as_in_training, _load_model, _mistakes, _progress, _require

SUFFIX = ".hfae"  # of compressed files
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
LOSSLESS_SUFFIXES = (".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")  # that decompressed images are written in
LACK = "no way to bytes: image codecs have, and models with discrete codes"


def compress_verb(arguments: argparse.Namespace) -> None:
    """`compress IN OUT`: an image file, or every image of a folder."""
    from tqdm.auto import tqdm

    pairs = _pairs(arguments, IMAGE_SUFFIXES, SUFFIX, (SUFFIX,))
    model, processor, prior = _load_coder(arguments, "compress")
    of_codes, sizes = _is_of_codes(model), [0, 0, 0]
    for source, target in tqdm(pairs, desc="compress", disable=not _progress(arguments) or len(pairs) == 1):
        with _mistakes(f"{source}: "):
            image = _read_image(source, model.config.num_channels)
            if of_codes:  # the processor brings the image to the size that these models have
                (data,) = model.compress(processor(image, return_tensors="pt")["pixel_values"], prior)
            else:
                (data,) = model.compress([image], quality=arguments.quality)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        counts = (len(data), source.stat().st_size, image.width * image.height)
        sizes = [total + count for total, count in zip(sizes, counts, strict=True)]
    written = f"written to {arguments.output}: " + (f"{len(pairs)} files, " if Path(arguments.input).is_dir() else "")
    told = f"{written}{sizes[0]:,} bytes from {sizes[1]:,}, "
    if of_codes:
        height, width = model.config.input_shape[1:]
        print(
            f"{told}{8 * sizes[0] / len(pairs):.0f} bits an image of {height} x {width} pixels, the size of this model"
        )
    else:
        print(f"{told}{8 * sizes[0] / sizes[2]:.3f} bits per pixel")


def decompress_verb(arguments: argparse.Namespace) -> None:
    """`decompress IN OUT`: a compressed file, or every one of a folder."""
    from tqdm.auto import tqdm

    pairs = _pairs(arguments, (SUFFIX,), ".png", LOSSLESS_SUFFIXES)
    model, processor, prior = _load_coder(arguments, "decompress")
    options = {} if arguments.max_pixels is None else {"max_pixels": arguments.max_pixels}
    options |= {} if prior is None else {"prior": prior}
    for source, target in tqdm(pairs, desc="decompress", disable=not _progress(arguments) or len(pairs) == 1):
        with _mistakes(f"{source}: ", advice={"max_pixels": "--max_pixels"}):
            (image,) = model.decompress([source.read_bytes()], **options)
            picture = processor.post_process(image.float() / 255)[0]
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, **({"lossless": True} if target.suffix.lower() == ".webp" else {}))
    print(f"written to {arguments.output}" + (f": {len(pairs)} files" if Path(arguments.input).is_dir() else ""))


def _is_of_codes(model) -> bool:
    """Whether what the model compresses are its discrete codes; else it is an image codec."""
    return hasattr(model, "decompress_codes")


def _load_coder(arguments: argparse.Namespace, verb: str) -> tuple:
    """A model that can compress, its image processor, and the prior that `--prior` names, or None."""
    from .cli_generation import load_prior

    model, processor = _load_model(arguments)
    _require(model, verb, arguments, LACK)
    unused = ("quality", "max_pixels") if _is_of_codes(model) else ("prior",)
    for name in unused:
        if getattr(arguments, name, None) is not None:
            raise Mistake(f"--{name} does not go with {arguments.model}, which is a {type(model).__name__}")
    return model, processor, load_prior(arguments)


def rate_distortion_verb(arguments: argparse.Namespace) -> None:
    """`rate-distortion MODEL CORPUS -o DIR`: curves of the model, JPEG and WebP as JSON and as a picture."""
    import torch

    from .data import load_corpus
    from .data.images import images_of_own_size
    from .evaluation.evaluate import write_metrics
    from .evaluation.rate_distortion import draw_curves, rate_distortion

    folder = Path(arguments.output)
    if folder.is_file():
        raise Mistake(f"{folder} is a file: expected a folder to write to, name one with --output")
    model, processor = _load_model(arguments)
    _require(model, "update_tables", arguments, "no rates to choose from: an image codec has")
    _as_in_training(arguments, ("image_column",))
    with _mistakes():
        splits = load_corpus(
            arguments.corpus,
            arguments.config_name,
            revision=arguments.corpus_revision,
            validation_fraction=arguments.validation_fraction,
        )
        if arguments.split not in splits:
            raise Mistake(f"{arguments.corpus} has no split {arguments.split!r}: expected one of {', '.join(splits)}")
        images = images_of_own_size(
            splits[arguments.split],
            processor,
            image_column=arguments.image_column,
            max_images=arguments.max_images,
            on_bad_image="skip" if arguments.skip_bad_images else "raise",
        )
        model.compress([torch.from_numpy(images[0])])  # refuses a model without tables, or says what is not installed
    result = rate_distortion(
        model,
        images,
        corpus={"name": Path(arguments.corpus).name, "split": arguments.split},
        qualities=arguments.qualities,
        command=arguments.command_line,
        progress=_progress(arguments),
    )
    print("codec            quality  bits/pixel     PSNR   estimate without header")
    for name, curve in result["curves"].items():
        for point in curve:
            estimate = point.get("estimated_bits_per_pixel")
            told = f"{name:<15} {point['quality']:>8g} {point['bits_per_pixel']:>11.4f} {point['psnr']:>8.2f}"
            print(told if estimate is None else f"{told} {estimate:>12.4f}")
    for name, percent in result["bd_rate"].items():
        print(f"bits against {name} at equal PSNR (BD-rate): {percent:+.1f}%")
    print(f"written to {write_metrics(folder / 'rate_distortion.json', result)}")
    with _mistakes():
        picture = draw_curves(result, folder / "rate_distortion.png", title=f"{result['corpus']['name']}")
    print(f"written to {picture}")


def _pairs(
    arguments: argparse.Namespace, inputs: tuple[str, ...], suffix: str, outputs: tuple[str, ...]
) -> list[tuple[Path, Path]]:
    """What to read and where to write it: one file, or OUT/name for every file of a folder that ends like an input."""
    source, target = Path(arguments.input), Path(arguments.output)
    if not source.is_dir():
        if not source.is_file():
            raise FileNotFoundError(f"no such file or folder: {source}")
        if target.is_dir():
            raise Mistake(f"{target} is a folder: expected a file to write to")
        if target.suffix.lower() not in outputs:
            raise Mistake(f"{target}: expected a file that ends in {', '.join(outputs)}")
        if target.resolve() == source.resolve():
            raise Mistake(f"{target} is the input, too: choose another file to write to")
        return [(source, target)]
    if target.is_file():
        raise Mistake(f"{source} is a folder and {target} a file: name a folder to write to")
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix.lower() in inputs)
    if not files:
        raise Mistake(f"{source} holds no files that end in {', '.join(inputs)}")
    taken: dict[Path, Path] = {}
    for path in files:
        place = (target / path.relative_to(source)).with_suffix(suffix)
        if place in taken:
            raise Mistake(f"{taken[place]} and {path} would both be written to {place}: rename one of them")
        taken[place] = path
    if overwritten := {place.resolve() for place in taken} & {path.resolve() for path in files}:
        raise Mistake(f"{sorted(overwritten)[0]} is one of the inputs: choose another folder to write to")
    return [(path, place) for place, path in taken.items()]


def _read_image(path: Path, num_channels: int):
    """An image file as the mode that a model of so many channels takes, where nothing is lost by that.

    A photograph is turned as its EXIF orientation says, which the compressed file has no place for.
    """
    import PIL.Image
    import PIL.ImageOps

    with PIL.Image.open(path) as file:
        image = PIL.ImageOps.exif_transpose(file)
        image.load()
    wanted, harmless = ("L", ("1",)) if num_channels == 1 else ("RGB", ("1", "L", "P"))
    if image.mode in harmless and "transparency" not in image.info:
        return image.convert(wanted)
    return image  # the model refuses other modes than its own, and says so
