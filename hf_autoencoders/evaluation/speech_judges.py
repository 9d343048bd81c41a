"""Which word is it, and whose voice? Small networks that have learned it from real recordings and nothing else.

They judge converted speech. They share nothing with any model inside a voice converter, so a converter cannot have been
trained to please them. What they say of real recordings that they have not heard is what to compare with.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

logger = logging.getLogger(__name__)

CACHE_FORMAT = 1
CHANNELS = (16, 32, 48, 64)
EMBEDDING_SIZE = 128
NUM_STEPS = {"word": 800, "speaker": 500}
MAX_TIMES_HEARD = 100  # each clip, in training
FRAMES_PER_CALL = 8192  # of one batch of those to be judged, padding included
COSINE_SCALE, MARGIN = 16.0, 0.15  # of the speakers' logits (Wang et al. 2018)


class SpeechJudge:
    """A classifier of log-mel features: four convolutions over time and frequency, pooled over time.

    Trained on the CPU with AdamW and a learning rate that falls to 0, on disguised clips: other levels, equalisers and
    noises, gaps, and for words other formants. One or two minutes on one core. The result is kept on disk by a hash of
    the clips, their classes and the settings.

    Args:
        clips: features of each clip, float32 (frames, num_mel_bins).
        classes: whole numbers from 0, one for each clip.
        num_classes: how many there are, at least 2.
        kind: `"word"`, or `"speaker"`, whose classes become directions of the embedding (additive margin softmax, Wang
            et al. 2018), so that voices not heard in training can be compared, too.
        seed: of the weights, the order and the disguises.
        num_steps: of its training; 800 for words, 500 for speakers by default. Small corpora get fewer.
        batch_size, learning_rate: likewise.
        max_frames: of a clip in training; longer ones are cut, anew each time.
        cache_dir: where trained judges are kept; `judges` beside the other caches of this package by default.
            `False`: nowhere.
    """

    def __init__(
        self,
        clips: Sequence[np.ndarray],
        classes: np.ndarray,
        num_classes: int,
        kind: Literal["word", "speaker"],
        seed: int = 0,
        *,
        num_steps: int | None = None,
        batch_size: int = 48,
        learning_rate: float = 4e-3,
        max_frames: int = 160,
        cache_dir: str | os.PathLike | bool | None = None,
    ):
        classes = np.asarray(classes)
        if kind not in ("word", "speaker"):
            raise ValueError(f'kind must be "word" or "speaker", got {kind!r}')
        if len(clips) != len(classes) or not len(clips):
            raise ValueError(
                f"expected one class for each of some clips, got {len(clips)} clips, {len(classes)} classes"
            )
        if num_classes < 2 or classes.min() < 0 or classes.max() >= num_classes:
            raise ValueError(
                f"a judge tells at least 2 classes apart, in [0, num_classes): got num_classes={num_classes} and "
                f"classes from {classes.min()} to {classes.max()}"
            )
        self.kind, self.num_mel_bins = kind, clips[0].shape[-1]
        if self.num_mel_bins < 2:
            raise ValueError(f"a judge needs at least 2 mel bins, got {self.num_mel_bins}")
        num_steps = NUM_STEPS[kind] if num_steps is None else num_steps
        num_steps = min(num_steps, max(100, MAX_TIMES_HEARD * len(clips) // batch_size))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = _JudgeNetwork(self.num_mel_bins, num_classes, cosine=kind == "speaker")
        settings = {
            "format": CACHE_FORMAT,
            "kind": kind,
            "num_classes": num_classes,
            "seed": seed,
            "num_steps": num_steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "max_frames": max_frames,
        }
        file = None
        if cache_dir is not False:
            file = _cache_file(None if cache_dir is True else cache_dir, settings, clips, classes)
        if file is None or not self._load(file):
            _train(self.network, clips, classes, kind, num_steps, batch_size, learning_rate, max_frames, seed)
            if file is not None:
                self._save(file)
        self.network.eval()

    def classify(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """The most likely class of each clip (frames, num_mel_bins): int64 (num_clips,)."""
        return self._run(clips, self.network).argmax(-1)

    def embed(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """What tells voices apart, of length 1: float32 (num_clips, 128). Their product is the cosine."""
        return self._run(clips, lambda features, mask: F.normalize(self.network.embed(features, mask), dim=-1))

    @torch.no_grad()
    def _run(self, clips: Sequence[np.ndarray], function) -> np.ndarray:
        order = sorted(range(len(clips)), key=lambda row: len(clips[row]))
        result = None
        while order:
            most = max(1, FRAMES_PER_CALL // len(clips[order[-1]]))
            batch, order = order[-most:], order[:-most]
            values = function(*_pad([clips[row] for row in batch])).numpy()
            if result is None:
                result = np.empty((len(clips), values.shape[-1]), np.float32)
            result[batch] = values
        if result is None:
            raise ValueError("there are no clips to judge")
        return result

    def _save(self, file: Path) -> None:
        from safetensors.torch import save_file

        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            save_file(self.network.state_dict(), temporary)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    def _load(self, file: Path) -> bool:
        """Take the weights from the cache; False where there are none that can be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            self.network.load_state_dict(load_file(file))
        except FileNotFoundError:
            return False
        except (OSError, SafetensorError, RuntimeError) as error:
            logger.warning("%s cannot be read (%s): the judge is trained again", file, error)
            return False
        return True


class _JudgeNetwork(nn.Module):
    def __init__(self, num_mel_bins: int, num_classes: int, cosine: bool):
        super().__init__()
        sizes = [1, *CHANNELS]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(*pair, 3, padding=1) for pair in zip(sizes, sizes[1:], strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in CHANNELS)
        self.dropout = nn.Dropout(0.3)
        self.project = nn.Linear(2 * CHANNELS[-1] * math.ceil(num_mel_bins / 2 ** len(CHANNELS)), EMBEDDING_SIZE)
        # centred, or the cosines of all voices would be near 1
        self.centre = nn.BatchNorm1d(EMBEDDING_SIZE, affine=False) if cosine else nn.Identity()
        self.output = nn.Linear(EMBEDDING_SIZE, num_classes, bias=not cosine)
        self.cosine = cosine

    def embed(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, frames, bins) and mask (batch, frames) -> (batch, 128)."""
        hidden, mask = _halve_frames(features.unsqueeze(1), mask)
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            hidden = F.relu(norm(convolution(hidden)))
            if index == 1:  # 4 frames of features from here on
                hidden, mask = _halve_frames(hidden, mask)
            hidden = F.max_pool2d(hidden, (1, 2), ceil_mode=True) * mask[:, None, :, None]
        hidden = hidden.transpose(1, 2).flatten(2)  # (batch, frames, channels x bins); nothing in it is below 0
        mean = hidden.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        return self.centre(self.project(self.dropout(torch.cat([mean, hidden.amax(1)], dim=1))))

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        embedding = self.embed(features, mask)
        if self.cosine:
            return COSINE_SCALE * F.linear(F.normalize(embedding, dim=-1), F.normalize(self.output.weight, dim=-1))
        return self.output(F.relu(embedding))


def _halve_frames(hidden: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of two frames each, padding not counted: (batch, channels, frames, bins), (batch, frames)."""
    odd = hidden.shape[2] % 2
    hidden, mask = F.pad(hidden, (0, 0, 0, odd)), F.pad(mask, (0, odd))
    counts = mask.unflatten(1, (-1, 2)).sum(2)
    total = (hidden * mask[:, None, :, None]).unflatten(2, (-1, 2)).sum(3)
    return total / counts.clamp_min(1)[:, None, :, None], (counts > 0).to(mask.dtype)


def _pad(clips: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips in one tensor (batch, frames, bins), 0 in the padding, and its mask (batch, frames)."""
    features = torch.zeros(len(clips), max(map(len, clips)), clips[0].shape[-1])
    mask = torch.zeros(features.shape[:2])
    for row, clip in enumerate(clips):
        features[row, : len(clip)] = torch.from_numpy(np.array(clip, np.float32))
        mask[row, : len(clip)] = 1
    return features, mask


def disguise(features: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """The same word, or the same voice, in another recording: features (batch, frames, bins), normalised.

    For both: another level, background that fills the gaps, noise, and up to 10 frames and 8 bins wiped out. For a word
    also another equaliser and formants moved by up to 3% of the bins; a voice may not lose its own.
    """
    batch, frames, bins = features.shape

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=generator)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    if kind == "word":
        places = torch.arange(bins) + (uniform(batch, 1) * 2 - 1) * 0.03 * bins
        places = places.clamp(0, bins - 1.001)
        lower = places.floor().long()
        share = (places - lower).unsqueeze(1)
        lower = lower.unsqueeze(1).expand(-1, frames, -1)
        features = features.gather(2, lower) * (1 - share) + features.gather(2, lower + 1) * share
        features = features + F.interpolate(0.3 * normal(batch, 1, 6), bins, mode="linear", align_corners=True)
    features = features + (0.3 if kind == "word" else 0.15) * normal(batch, 1, 1)
    features = torch.logaddexp(features * 4, (uniform(batch, 1, 1) * 2.5 - 4) * 4) / 4  # background
    features = features + 0.25 * uniform(batch, 1, 1) * normal(batch, frames, bins)
    for size, most, axis in ((frames, 10, 1), (bins, 8, 2)):
        first = (uniform(batch, 1) * size).floor()
        length = (uniform(batch, 1) * min(most, size // 4)).floor()
        places = torch.arange(size)
        gone = (places >= first) & (places < first + length)
        features = features.masked_fill(gone.unsqueeze(3 - axis), 0.0)
    return features


def _train(network, clips, classes, kind, num_steps, batch_size, learning_rate, max_frames, seed) -> None:
    """Fit `network`; the global random state stays as it was."""
    noise, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps + 1)
    targets = torch.from_numpy(np.asarray(classes, np.int64))
    rows = np.array([], dtype=np.int64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        network.train()
        for step in range(num_steps):
            while len(rows) < batch_size:
                rows = np.concatenate([rows, noise.permutation(len(clips))])
            drawn, rows = rows[:batch_size], rows[batch_size:]
            batch = []
            for row in drawn:
                first = noise.integers(max(1, len(clips[row]) - max_frames + 1))
                batch.append(clips[row][first : first + max_frames])
            features, mask = _pad(batch)
            features = disguise(features, kind, generator) * mask.unsqueeze(-1)
            logits = network(features, mask)
            if kind == "speaker":
                logits = logits - COSINE_SCALE * MARGIN * F.one_hot(targets[drawn], logits.shape[-1])
            loss = F.cross_entropy(logits, targets[drawn], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            if step % 100 == 99:
                logger.info("%s judge, step %d of %d: loss %.3f", kind, step + 1, num_steps, loss.item())
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise FloatingPointError("the judge's weights are not finite: its training failed, lower learning_rate")


def network_probe(
    train_clips: Sequence[np.ndarray],
    train_labels: np.ndarray,
    clips: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    num_steps: int = 600,
    batch_size: int = 48,
    max_frames: int = 100,
    seed: int = 0,
) -> float:
    """How well a small network learns to tell classes from sequences: its accuracy on others.

    Two convolutions over 5 frames each, mean and deviation over time, a linear layer. Unlike a linear probe of pooled
    features it hears what is in the order of frames and in what dimensions do together, so that a code whose means
    and deviations are made equal, as instance normalisation does, keeps nothing from it.

    Args:
        train_clips, clips: sequences, float32 (frames, size); in training cut to `max_frames`, anew each time.
        train_labels, labels: (num_clips,) integers from 0.
        num_steps: of AdamW, the learning rate falls to 0; small corpora get fewer.
    """
    every = np.concatenate([np.asarray(clip, np.float32) for clip in train_clips])
    mean, std = every.mean(0), np.maximum(every.std(0), 1e-3)
    num_steps = min(num_steps, max(100, MAX_TIMES_HEARD * len(train_clips) // batch_size))
    targets, noise, rows = torch.from_numpy(np.asarray(train_labels, np.int64)), np.random.default_rng(seed), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _ProbeNetwork(every.shape[1], int(max(np.max(train_labels), np.max(labels))) + 1)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_steps + 1)
        for _ in range(num_steps):
            while len(rows) < batch_size:
                rows = [*rows, *noise.permutation(len(train_clips)).tolist()]
            drawn, rows = rows[:batch_size], rows[batch_size:]
            firsts = [int(noise.integers(max(1, len(train_clips[row]) - max_frames + 1))) for row in drawn]
            batch = [train_clips[row][first : first + max_frames] for row, first in zip(drawn, firsts, strict=True)]
            loss = F.cross_entropy(network(*_pad([(clip - mean) / std for clip in batch])), targets[drawn])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        heard = [network(*_pad([(clip - mean) / std])).argmax(-1).item() for clip in clips]
    return float((np.array(heard) == np.asarray(labels)).mean())


class _ProbeNetwork(nn.Module):
    def __init__(self, size: int, num_classes: int, channels: int = 96):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(width, channels, 5, padding=2) for width in (size, channels))
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(2))
        self.output = nn.Linear(2 * channels, num_classes)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden, mask = features.mT, mask.unsqueeze(1)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = F.relu(norm(convolution(hidden))) * mask
        count = mask.sum(-1).clamp_min(1)
        mean = hidden.sum(-1) / count
        variance = ((hidden - mean.unsqueeze(-1)) * mask).square().sum(-1) / count
        return self.output(torch.cat([mean, (variance + 1e-5).sqrt()], dim=1))


def _cache_file(cache_dir, settings: dict, clips: Sequence[np.ndarray], classes: np.ndarray) -> Path:
    from ..data.images import default_cache_dir

    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(np.ascontiguousarray(classes, np.int64).tobytes())
    for clip in clips:
        digest.update(f"{clip.shape}".encode())
        digest.update(np.ascontiguousarray(clip, np.float32).tobytes())
    folder = default_cache_dir().with_name("judges") if cache_dir is None else Path(cache_dir)
    return folder / f"{digest.hexdigest()[:24]}.safetensors"
