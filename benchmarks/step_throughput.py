"""What do the training scripts cost? Their loop against the same network in a hand-written PyTorch loop.

    python benchmarks/step_throughput.py                    # all variants, about two minutes on two CPU cores
    python benchmarks/step_throughput.py --variants vae --rounds 9 --output step_throughput.json

`step`: the loop of the variant's script in `training/` as it is (configuration, model outputs, Accelerate, clipping,
schedule, loss terms and log lines) against plain modules, the same arithmetic and a dozen lines of loop; images in
memory. `epoch`: a whole pass over images on disk, then the validation split, then saving: a checkpoint that survives a
kill and the best model here, `torch.save` there. The hand-written networks start from the same weights and must give
the same loss.

Both take turns, so what else the machine does hits them alike; the ratio is the median over turns of hand-written time
/ our time: 1 is as fast, and the aims are at least 0.95 for `step` and 0.9 for `epoch`.
"""

import argparse
import contextlib
import importlib
import io
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hf_autoencoders import VARIANTS
from hf_autoencoders.evaluation.evaluate import describe_machine
from hf_autoencoders.training_images import ImageTrainingRun

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

LATENT, CODES, EMBEDDING, DECAY = 32, 512, 64, 0.99
CHUNK = 20  # steps of one turn, with one log line
MODEL_FLAGS = {
    "autoencoder": f"--architecture conv --hidden_sizes 32 64 --latent_size {LATENT}",
    "vae": "--architecture mlp --hidden_sizes 400 --latent_size 40",
    "beta_tcvae": f"--variant beta_tcvae --architecture conv --hidden_sizes 32 64 --latent_size {LATENT}",
    "binary_autoencoder": f"--variant binary_autoencoder --architecture conv --hidden_sizes 32 64 --num_bits {LATENT}",
    "vqvae": f"--hidden_sizes 32 64 --codebook_size {CODES} --embedding_dim {EMBEDDING} --no_kmeans_init "
    "--dead_code_threshold 0",
}


# ------------------------------------------------------------------------------- the same networks, written out by hand


class HandAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 49, LATENT),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 64 * 49), nn.Unflatten(1, (64, 7, 7)), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x, noise=None):
        return F.mse_loss(self.decoder(self.encoder(x)), x)


class HandConv(nn.Module):
    def __init__(self, outputs: int):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 49, outputs),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 64 * 49), nn.Unflatten(1, (64, 7, 7)), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1),
        )  # fmt: skip


class HandBetaTCVAE(HandConv):
    def __init__(self):
        super().__init__(2 * LATENT)

    def forward(self, x, noise):
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_variance) * noise
        bce = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") / len(x)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / len(x)
        distance = (z[:, None] - mean).square() * torch.exp(-log_variance)
        density = -0.5 * (distance + log_variance + math.log(2 * math.pi))
        joint, marginals = density.sum(2).logsumexp(1), density.logsumexp(1).sum(1)
        return bce + kl + 5.0 * ((joint - marginals).mean() + (LATENT - 1) * math.log(len(x)))


class HandBinary(HandConv):
    def __init__(self):
        super().__init__(LATENT)

    def forward(self, x, noise):
        logits = self.encoder(x)
        noise = noise.clamp(1e-7, 1 - 1e-7)
        perturbed = logits + torch.log(noise) - torch.log1p(-noise)
        soft = torch.sigmoid(perturbed / 0.5)
        bits = soft + ((perturbed > 0).float() - soft).detach()
        bce = F.binary_cross_entropy_with_logits(self.decoder(bits), x, reduction="sum")
        entropy = F.softplus(logits) - torch.sigmoid(logits) * logits
        return (bce + (math.log(2) - entropy).sum()) / len(x)


class HandVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 80))
        self.decoder = nn.Sequential(nn.Linear(40, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, x, noise):
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        logits = self.decoder(mean + torch.exp(0.5 * log_variance) * noise)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        return (F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="sum") + kl) / len(x)


class HandVQVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, EMBEDDING, 1)
        )
        self.register_buffer("codebook", torch.empty(CODES, EMBEDDING))
        self.register_buffer("usage", torch.empty(CODES))
        self.register_buffer("sums", torch.empty(CODES, EMBEDDING))
        self.decoder = nn.Sequential(
            nn.Conv2d(EMBEDDING, 64, 3, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x, noise=None):
        latents = self.encoder(x).permute(0, 2, 3, 1)
        vectors = latents.reshape(-1, EMBEDDING)
        with torch.no_grad():
            codebook = self.codebook
            codes = torch.addmm(codebook.square().sum(1), vectors, codebook.t(), alpha=-2).min(dim=1).indices
            entries = codebook[codes]
            if self.training:
                scale = CODES / len(codes)
                self.usage.lerp_(torch.bincount(codes, minlength=CODES).float() * scale, 1 - DECAY)
                self.sums.lerp_(torch.zeros_like(codebook).index_add_(0, codes, vectors) * scale, 1 - DECAY)
                codebook.copy_(self.sums / self.usage.clamp_min(1e-8).unsqueeze(1))
        commitment = F.mse_loss(vectors, entries)
        quantized = (vectors + (entries - vectors).detach()).view(latents.shape).permute(0, 3, 1, 2)
        return F.mse_loss(self.decoder(quantized), x) + 0.25 * commitment


HANDWRITTEN = {
    "autoencoder": HandAutoencoder,
    "vae": HandVAE,
    "beta_tcvae": HandBetaTCVAE,
    "binary_autoencoder": HandBinary,
    "vqvae": HandVQVAE,
}
NOISE = {  # variant -> argument of ours, sampler, numbers an image
    "vae": ("epsilon", torch.randn, 40),
    "beta_tcvae": ("epsilon", torch.randn, LATENT),
    "binary_autoencoder": ("uniform_noise", torch.rand, LATENT),
}


def same_weights(variant: str, model: nn.Module) -> nn.Module:
    """The hand-written network with the weights of ours."""
    hand = HANDWRITTEN[variant]()
    with torch.no_grad():
        for to, of in zip(hand.parameters(), model.parameters(), strict=True):
            to.copy_(of)
        if variant == "vqvae":
            quantizer = model.quantizer.quantizers[0]
            for name in ("codebook", "usage", "sums"):
                getattr(hand, name).copy_(getattr(quantizer, name))
    return hand.train()


class HandLoop:
    """A dozen lines of PyTorch: what one writes without any library."""

    def __init__(self, variant: str, run: ImageTrainingRun):
        options = run.options
        self.variant, self.batch_size = variant, options.batch_size
        self.net = same_weights(variant, run.network)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=options.learning_rate, weight_decay=0.0, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, run.max_steps)

    def noise(self, size: int):
        if self.variant not in NOISE:
            return None
        _, sampler, numbers = NOISE[self.variant]
        return sampler(size, numbers)

    def train(self, images: torch.Tensor, steps: int) -> None:
        step, losses = 0, []
        while step < steps:
            order = torch.randperm(len(images))
            for rows in order[: len(images) // self.batch_size * self.batch_size].split(self.batch_size):
                x = images[rows].float() / 255
                loss = self.net(x, self.noise(len(x)))
                loss.backward()
                nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
                step += 1
                losses.append(loss.detach())
                if step % 20 == 0:
                    print(step, torch.stack(losses).mean().item())
                    losses = []
                if step == steps:
                    return

    def evaluate_and_save(self, images: torch.Tensor, folder: Path) -> None:
        self.net.eval()
        with torch.no_grad():
            losses = [self.net(x.float() / 255, self.noise(len(x))) * len(x) for x in images.split(256)]
        print(sum(losses).item() / len(images))
        state = {"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, folder / "checkpoint.pt")


# ----------------------------------------------------------------------------------------------------------- measuring


def make_corpus(folder: Path, rows: int) -> None:
    """scikit-learn's digits, enlarged to 28 x 28 and repeated with noise, as a dataset on disk."""
    import datasets
    import PIL.Image
    from sklearn.datasets import load_digits

    digits, rng = load_digits().images / 16 * 255, np.random.default_rng(0)

    def picture(index: int):
        image = PIL.Image.fromarray(digits[index % len(digits)].astype(np.uint8)).resize((28, 28))
        return PIL.Image.fromarray(np.clip(np.asarray(image) + rng.normal(0, 8, (28, 28)), 0, 255).astype(np.uint8))

    def split(count: int):
        rows = {"image": [picture(index) for index in range(count)]}
        return datasets.Dataset.from_dict(rows, features=datasets.Features(image=datasets.Image()))

    datasets.DatasetDict(train=split(rows), validation=split(max(256, rows // 10))).save_to_disk(str(folder))


def script_of(variant: str):
    """The module `training/train_<family>.py`."""
    return importlib.import_module(f"train_{VARIANTS[f'hfae_{variant}'].family}")


def start_run(script, variant: str, flags: list[str], folder: Path) -> ImageTrainingRun:
    extra = [
        cls for cls in vars(script).values() if getattr(cls, "__module__", "") == script.__name__ and type(cls) is type
    ]
    common = f"--use_cpu --overwrite_output_dir --num_pictures 0 --warmup_ratio 0 --output_dir {folder}"
    arguments = script.parse_arguments(
        f"hfae_{variant}", "", [*MODEL_FLAGS[variant].split(), *common.split(), *flags], *extra
    )
    return ImageTrainingRun(arguments)


def check_same_loss(run: ImageTrainingRun, hand: nn.Module, variant: str) -> None:
    x = torch.from_numpy(np.array(run.train.images[:64])).float() / 255
    argument, sampler, numbers = NOISE.get(variant, (None, torch.randn, 1))
    noise = sampler(64, numbers)
    with torch.no_grad():
        run.network.eval(), hand.eval()
        ours = run.network(x, **({argument: noise} if argument else {})).loss
        theirs = hand(x, noise)
        run.network.train(), hand.train()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=f"{variant}: not the same network")


def measure_steps(variant: str, flags: list[str], options, scratch: Path) -> tuple[list[float], list[float], int]:
    """Seconds of `CHUNK` steps of our loop and of the hand-written one, in turns: the pause of one is the other's."""
    script = script_of(variant)
    length = ["--max_steps", str(CHUNK * (options.rounds + 1)), "--eval_steps", "0", "--save_steps", "0"]
    run = start_run(script, variant, [*flags, *length], scratch / "run")
    images = torch.from_numpy(np.array(run.train.images))
    run.batches.images = images  # in memory for both
    hand, ours, theirs = HandLoop(variant, run), [], []
    check_same_loss(run, hand.net, variant)
    all_steps = run.steps

    def steps():
        start = options.now()
        for number, batches in enumerate(all_steps(), start=1):
            yield batches
            if number % CHUNK == 0:
                ours.append(options.now() - start)
                start = options.now()
                hand.train(images, CHUNK)
                theirs.append(options.now() - start)
                start = options.now()

    run.steps = steps
    script.train(run)
    return ours[1:], theirs[1:], CHUNK * options.batch_size  # the first ones warm up


def measure_epochs(variant: str, flags: list[str], options, scratch: Path) -> tuple[list[float], list[float], int]:
    """Seconds of a pass over the images on disk, evaluation and saving: our loop and the hand-written one, in turns."""
    script, ours, theirs = script_of(variant), [], []
    for _ in range(max(2, options.rounds // 6) + 1):
        run = start_run(script, variant, [*flags, "--num_epochs", "1"], scratch / "run")
        hand = HandLoop(variant, run)
        start = options.now()
        script.train(run)
        middle = options.now()
        hand.train(torch.from_numpy(run.train.images), run.max_steps)
        hand.evaluate_and_save(torch.from_numpy(run.validation.images), scratch)
        ours.append(middle - start)
        theirs.append(options.now() - middle)
    return ours[1:], theirs[1:], run.max_steps * options.batch_size


def measure(variant: str, corpus: Path, options, scratch: Path) -> dict:
    """Ratios and throughput of one variant."""
    flags = ["--dataset", str(corpus), "--cache_dir", str(scratch / "cache"), "--batch_size", str(options.batch_size)]
    result = {}
    for name, how in (("step", measure_steps), ("epoch", measure_epochs)):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ours, theirs, images = how(variant, flags, options, scratch)
        result[name] = {
            "ratio": round(statistics.median(hand / our for hand, our in zip(theirs, ours, strict=True)), 3),
            "images_per_second": round(images / statistics.median(ours)),
            "handwritten_images_per_second": round(images / statistics.median(theirs)),
        }
    return result


def main(argv=None) -> dict:
    """Measure, print a table, and return (and perhaps write) the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(HANDWRITTEN), choices=list(HANDWRITTEN))
    parser.add_argument("--rounds", type=int, default=18, help="turns of 20 steps each; a sixth as many epochs")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="`cpu` for machines that are not idle")
    parser.add_argument("--rows", type=int, default=12_800, help="images of an epoch")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    options.now = time.process_time if options.clock == "cpu" else time.perf_counter
    result = {
        "clock": options.clock,
        "machine": describe_machine(),
        "threads": options.threads,
        "batch_size": options.batch_size,
    }
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_corpus(scratch / "corpus", options.rows)
        for variant in options.variants:
            result[variant] = measure(variant, scratch / "corpus", options, scratch)
            for what, aim in (("step", 0.95), ("epoch", 0.9)):
                numbers = result[variant][what]
                print(
                    f"{variant:12} {what:6} {numbers['ratio']:5.3f} of the hand-written loop (aim {aim}), "
                    f"{numbers['images_per_second']} images/s",
                    flush=True,
                )
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
