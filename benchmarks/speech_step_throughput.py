"""What do the training scripts on speech cost? Their loop against the same network in a hand-written PyTorch loop.

    python benchmarks/speech_step_throughput.py                    # two minutes on two idle CPU cores
    python benchmarks/speech_step_throughput.py --clock cpu --rounds 5

Ours is the loop of `training/train_voice_conversion.py` as it is: cut clips and other clips of the same speakers out of
the corpus, disguise them, model, speaker adversary, clipping, AdamW, schedule, loss terms and log lines. The other side
is plain modules with the same arithmetic and a dozen lines of loop, on the batches that ours has made: they cost it
nothing. It starts from the same weights and must give the same loss. Both take turns, so what else the machine does
hits them alike; the ratio is the median over turns of hand-written time / our time: 1 is as fast, the aim is 0.95.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hf_autoencoders.evaluation.evaluate import describe_machine
from hf_autoencoders.training_arguments import parse_arguments
from hf_autoencoders.training_speech import SpeechTrainingRun

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
import train_voice_conversion as script  # noqa: E402

CHUNK = 5  # steps of one turn, with one log line
AIM = 0.95
BINS, WIDTH, LATENT, SPEAKER, SPEAKERS, ADVERSARY = 80, 128, 32, 64, 8, 0.3


# -------------------------------------------------------------------------------- the same network, written out by hand


def statistics_of(x, mask):
    count = mask.sum(-1, keepdim=True)
    mean = (x * mask).sum(-1, keepdim=True) / count
    return mean, (((x - mean) * mask) ** 2).sum(-1, keepdim=True) / count


def instance_norm(x, mask):
    mean, variance = statistics_of(x, mask)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * mask


class HandBlock(nn.Module):
    def __init__(self, norm, speaker=False):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(WIDTH, WIDTH, 5, padding=2), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.affine = nn.Linear(SPEAKER, 4 * WIDTH) if speaker else None
        self.norm = norm

    def forward(self, x, mask, voice=None):
        h = self.conv1(x)
        h = instance_norm(h, mask) if self.norm else h
        if self.affine is not None:
            scale1, shift1, scale2, shift2 = self.affine(voice)[..., None].chunk(4, dim=1)
            h = h * (1 + scale1) + shift1
        h = self.conv2(F.gelu(h) * mask)
        h = instance_norm(h, mask) if self.norm else h
        if self.affine is not None:
            h = h * (1 + scale2) + shift2
        return (x + h) * mask


class HandConverter(nn.Module):
    """The parameters come in the order in which ours has them."""

    def __init__(self):
        super().__init__()
        self.content_in = nn.Conv1d(BINS, WIDTH, 5, padding=2)
        self.content = nn.ModuleList(HandBlock(True) for _ in range(3))
        self.content_out = nn.Conv1d(WIDTH, LATENT, 1)
        self.voice_in = nn.Conv1d(BINS, WIDTH, 5, padding=2)
        self.voice = nn.ModuleList(HandBlock(False) for _ in range(2))
        self.pooled, self.voice_out = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, SPEAKER)
        self.decoder_in = nn.Conv1d(LATENT, WIDTH, 5, padding=2)
        self.decoder = nn.ModuleList(HandBlock(True, speaker=True) for _ in range(4))
        self.decoder_out, self.average = nn.Conv1d(WIDTH, BINS, 1), nn.Linear(SPEAKER, BINS)
        sizes = [LATENT, WIDTH, WIDTH, WIDTH]
        self.adversary = nn.ModuleList(nn.Conv1d(i, o, 3, padding=1) for i, o in zip(sizes, sizes[1:], strict=False))
        self.adversary_out = nn.Conv1d(WIDTH, SPEAKERS, 1)

    def forward(self, batch):
        x, heard, other = (batch[f"{name}_features"].mT for name in ("input", "content", "speaker"))
        mask, other_mask = (batch[name][:, None].float() for name in ("attention_mask", "speaker_attention_mask"))
        h = (heard - statistics_of(heard, mask)[0]) * mask
        h = F.gelu(self.content_in(h)) * mask
        for block in self.content:
            h = block(h, mask)
        content = instance_norm(self.content_out(h), mask)

        h = F.gelu(self.voice_in(other * other_mask)) * other_mask
        for block in self.voice:
            h = block(h, other_mask)
        mean, variance = statistics_of(h, other_mask)
        h = torch.cat([mean, (variance + 1e-5).sqrt()], dim=1)[..., 0]
        voice = F.normalize(self.voice_out(F.gelu(self.pooled(h))), dim=-1) * SPEAKER**0.5

        h = self.decoder_in(content) * mask
        for block in self.decoder:
            h = block(h, mask, voice)
        rebuilt = (self.decoder_out(h) + self.average(voice)[..., None]) * mask
        loss = ((rebuilt - x).abs() * mask).sum() / (mask.sum() * BINS)

        h = content.detach() * (1 + ADVERSARY) - content * ADVERSARY  # turns the gradient round
        for conv in self.adversary:
            h = F.leaky_relu(conv(h), 0.1) * mask
        wanted = batch["speaker_ids"][:, None].expand(-1, h.shape[-1])
        entropy = F.cross_entropy(self.adversary_out(h), wanted, reduction="none")
        return loss + (entropy * mask[:, 0]).sum() / mask.sum()


class HandLoop:
    """A dozen lines of PyTorch: what one writes without any library."""

    def __init__(self, run: SpeechTrainingRun):
        self.net = HandConverter()
        with torch.no_grad():
            for to, of in zip(self.net.parameters(), run.network.parameters(), strict=True):
                to.copy_(of)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=run.options.learning_rate, weight_decay=0.0, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, run.max_steps)

    def train(self, batches) -> None:
        for batch in batches:
            loss = self.net(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        print(loss.item())


# ----------------------------------------------------------------------------------------------------------- measuring


def make_corpus(folder: Path, speakers: int = SPEAKERS, clips: int = 32, rate: int = 16000) -> Path:
    """Sounds of one second, in folders called after their speakers."""
    import soundfile

    rng = np.random.default_rng(0)
    for split, count in (("train", clips), ("validation", 2)):
        for speaker in range(speakers):
            place = folder / split / f"speaker{speaker}"
            place.mkdir(parents=True)
            for clip in range(count):
                soundfile.write(place / f"{clip}.wav", 0.1 * rng.standard_normal(rate), rate)
    return folder


def measure(scratch: Path, options) -> dict:
    """Seconds of `CHUNK` steps of our loop and of the hand-written one on the same batches, in turns."""
    flags = f"--dataset {make_corpus(scratch / 'corpus')} --cache_dir {scratch / 'cache'} --use_cpu --warmup_ratio 0"
    flags += f" --output_dir {scratch / 'run'} --batch_size {options.batch_size} --max_frames {options.max_frames}"
    flags += f" --max_steps {CHUNK * (options.rounds + 1)} --eval_steps 0 --save_steps 0 --logging_steps {CHUNK}"
    flags += f" --num_downsamplings 0 --speaker_adversarial_weight {ADVERSARY} --disable_progress_bar"
    run = SpeechTrainingRun(parse_arguments("hfae_voice_conversion", "", flags.split()))
    hand, ours, theirs, seen = HandLoop(run), [], [], []
    make_batch, all_steps = run._make_batch, run.steps

    def watched(*args):
        batch = make_batch(*args)
        seen.append(batch.inputs)
        return batch

    def check_same_loss(inputs) -> None:
        with torch.no_grad():
            mine, other = run.network(**inputs).loss, hand.net(inputs)
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg="not the same network")

    def steps():
        start = options.now()
        for number, batches in enumerate(all_steps(), start=1):
            if number == 1:
                batches = list(batches)
                check_same_loss(batches[0].inputs)
            yield batches
            if number % CHUNK == 0:
                ours.append(options.now() - start)
                start = options.now()
                hand.train(seen)
                theirs.append(options.now() - start)
                seen.clear()
                start = options.now()

    run._make_batch, run.steps = watched, steps
    script.train(run)
    ours, theirs = ours[1:], theirs[1:]  # the first ones warm up
    clips = CHUNK * options.batch_size
    return {
        "ratio": round(statistics.median(hand / our for hand, our in zip(theirs, ours, strict=True)), 3),
        "clips_per_second": round(clips / statistics.median(ours), 1),
        "handwritten_clips_per_second": round(clips / statistics.median(theirs), 1),
    }


def main(argv=None) -> dict:
    """Measure, print, and return (and perhaps write) the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help=f"turns of {CHUNK} steps each")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="`cpu` for machines that are not idle")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_frames", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    options.now = time.process_time if options.clock == "cpu" else time.perf_counter
    result = {"clock": options.clock, "machine": describe_machine(), "threads": options.threads}
    result |= {"batch_size": options.batch_size, "max_frames": options.max_frames}
    with tempfile.TemporaryDirectory() as name:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            numbers = measure(Path(name), options)
    result["voice_conversion"] = numbers
    print(
        f"voice_conversion {numbers['ratio']:5.3f} of the hand-written loop (aim {AIM}), "
        f"{numbers['clips_per_second']} clips/s"
    )
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
