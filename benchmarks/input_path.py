"""How fast do batches arrive? Images per second of every way to feed a model, against the floor of the same run.

    python benchmarks/input_path.py                                   # random 28x28 gray images
    python benchmarks/input_path.py --size 64 --channels 3 --rows 20000 --batch_size 256

The floor gathers the rows of a uint8 tensor that lies in memory and divides by 255. Converting first and dividing in
place is what `to_pixel_values` does, and often faster: the floor is listed that way too, to compare like with like.
All ways take turns in every round, so what else the machine does hits them alike; medians over the rounds are compared.
The aim for `ImageBatches` from the memory-mapped cache is at most 2 times the floor's time.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from hf_autoencoders.data import ImageArrays, ImageBatches, image_arrays, to_pixel_values
from hf_autoencoders.models.image_processing_autoencoder import AutoencoderImageProcessor


def make_corpus(images: np.ndarray):
    import datasets
    import PIL.Image

    pictures = [PIL.Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)) for image in images]
    return datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features(image=datasets.Image()))


def main(arguments=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=55_000, help="images in the corpus")
    parser.add_argument("--size", type=int, default=28, help="height and width in pixels")
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3))
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--slow_rows", type=int, default=1024, help="images for the ways that decode at every step")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    shape = (options.rows, options.channels, options.size, options.size)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    in_memory = torch.from_numpy(images)
    corpus = make_corpus(images[: options.slow_rows])
    processor = AutoencoderImageProcessor(size=options.size, num_channels=options.channels)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.uint8"
        images.tofile(file)
        mapped = np.memmap(file, dtype=np.uint8, mode="c", shape=shape)
        batches = ImageBatches(ImageArrays(mapped), options.batch_size, shuffle=True, seed=0, drop_last=True)
        num_batches = len(batches)

        def floor() -> int:
            for batch in range(num_batches):
                in_memory.index_select(0, batches.rows(batch)) / 255
            return num_batches * options.batch_size

        def floor_in_place() -> int:
            for batch in range(num_batches):
                in_memory.index_select(0, batches.rows(batch)).to(torch.float32).div_(255)
            return num_batches * options.batch_size

        def image_batches() -> int:
            for batch in batches:
                to_pixel_values(batch["images"], "cpu")
            return num_batches * options.batch_size

        def data_loader() -> int:
            dataset = torch.utils.data.TensorDataset(in_memory)
            for (batch,) in torch.utils.data.DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True):
                batch / 255
            return num_batches * options.batch_size

        def decode_every_step() -> int:
            rows = np.random.default_rng(0).permutation(len(corpus))
            for start in range(0, len(rows), options.batch_size):
                processor(corpus[rows[start : start + options.batch_size]]["image"], return_tensors="pt")
            return len(rows)

        def decode_once() -> int:
            with tempfile.TemporaryDirectory() as cache:
                return len(image_arrays(corpus, processor, cache_dir=cache, progress=False))

        ways = {
            "floor: uint8 in memory, index_select, / 255": floor,
            "floor, divided in place": floor_in_place,
            "ImageBatches from the memory map + to_pixel_values": image_batches,
            "TensorDataset + DataLoader (in memory)": data_loader,
            "decode and process at every step": decode_every_step,
            "image_arrays (once per corpus)": decode_once,
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way()  # warm up
        for _ in range(options.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                count = way()
                rates[name].append(count / (time.perf_counter() - start))

    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = next(iter(medians.values()))
    print(f"{options.rows} images of {options.channels}x{options.size}x{options.size}, batches of {options.batch_size}")
    print(f"{'':<52}{'images/s':>12}{'time / floor':>14}")
    for name, rate in medians.items():
        print(f"{name:<52}{rate:>12,.0f}{best / rate:>14.2f}")
    result = {name: {"images_per_s": rate, "time_over_floor": best / rate} for name, rate in medians.items()}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
