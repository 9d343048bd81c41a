"""The feature extractor of every speech auto-encoder in this library.

A waveform becomes log-mel features, `input_features` float32 (batch_size, frames, num_mel_bins), normalised per mel bin
with statistics that are saved with it; `to_waveform` is the way back. It needs numpy, torch and transformers only (soxr
where it is asked to resample), and it travels to the Hub beside the weights, so it imports nothing of this package.

The scale of a waveform is decided by its dtype alone, never by looking at the values:

    floats           -1 .. 1, taken as they are
    int16, int32     divided by 32768, 2147483648
    uint8            0 .. 255 around 128, as in 8 bit WAV files
    other integers   refused: nobody can tell their scale
"""

import math
from functools import lru_cache

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging

logger = logging.get_logger(__name__)

INTEGER_SCALES = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}
LOUDEST = 10.0  # of a float waveform: above, it is one of integers that were only cast
SMALLEST_STD = 0.1  # of a mel bin when statistics are fitted: an empty band is not blown up
MOMENTUM = 0.99  # of the fast Griffin-Lim algorithm
FRAMES_PER_CALL = 500  # of Griffin-Lim on a CPU: what is worked on together stays in its caches
INVERSION_STEPS = 24
DOWNMIX = "Downmix stereo first: waveform.mean(axis) over its channels; pass a batch as a list of waveforms."


@lru_cache(maxsize=16)
def _mel_filters(num_bins: int, n_fft: int, sampling_rate: int, fmin: float, fmax: float, device) -> torch.Tensor:
    """Triangular filters on Slaney's mel scale, of equal area: float32 (n_fft // 2 + 1, num_bins)."""
    filters = mel_filter_bank(n_fft // 2 + 1, num_bins, fmin, fmax, sampling_rate, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters).to(device, torch.float32)


@lru_cache(maxsize=16)
def _window(length: int, device) -> torch.Tensor:
    return torch.hann_window(length, device=device)


class SpeechFeatureExtractor(SequenceFeatureExtractor):
    """Mono waveforms of any length -> normalised log-mel features, and back.

    The features are `log(max(log_floor, mel magnitudes))` of a centred short-time Fourier transform (Hann window, zeros
    beyond both ends), minus `mean`, divided by `std`. A waveform of n samples gives 1 + n // hop_length frames, which
    do not depend on what else is in the batch. `attention_mask` is 1 on them and 0 on padding frames, whose features
    are `padding_value`.

    Args:
        feature_size (`int`, defaults to 80): number of mel bins.
        sampling_rate (`int`, defaults to 16000): samples per second of what goes in and comes out.
        hop_length (`int`, defaults to 200): samples from one frame to the next; at most half of `win_length`.
        win_length (`int`, defaults to 800): samples that a frame sees.
        n_fft (`int`, defaults to 1024): size of the Fourier transform, at least `win_length`.
        fmin, fmax (`float`, defaults to 0 and half of the sampling rate): lowest and highest frequency in Hz.
        log_floor (`float`, defaults to 1e-5): smallest magnitude; silence becomes its logarithm.
        log_scale (`str`, defaults to "log"): "log" is the natural logarithm, "log10" what the vocoders of SpeechT5 and
            FastSpeech2Conformer take.
        mean, std (`float` or list of `feature_size` floats, defaults to 0 and 1): statistics of the log-mels;
            `fit_statistics` finds them.
        padding_value (`float`, defaults to 0): of padding frames, after normalisation: 0 is the mean.

    Raises:
        ValueError, TypeError: for options that do not fit together, and waveforms that are empty, not finite, of
            several channels, of another sampling rate or of an unknown scale, naming what was expected and what came.
    """

    _auto_class = "AutoFeatureExtractor"  # saving writes this file and `auto_map` too, so that it loads anywhere
    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16000,
        hop_length: int = 200,
        win_length: int = 800,
        n_fft: int = 1024,
        fmin: float = 0.0,
        fmax: float | None = None,
        log_floor: float = 1e-5,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        padding_value: float = 0.0,
        log_scale: str = "log",
        **kwargs,
    ):
        unknown = set(kwargs) - {"return_attention_mask", "padding_side"}
        if unknown and "feature_extractor_type" not in kwargs:  # which every saved file has, perhaps beside newer keys
            raise TypeError(f"SpeechFeatureExtractor has no option {', '.join(sorted(unknown))}.")
        if kwargs.get("padding_side", "right") != "right":
            raise ValueError(f"padding_side must be 'right', got {kwargs['padding_side']!r}.")
        sizes = {
            "feature_size": feature_size,
            "sampling_rate": sampling_rate,
            "hop_length": hop_length,
            "win_length": win_length,
            "n_fft": n_fft,
        }
        for name, value in sizes.items():
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}.")
        if not 2 * hop_length <= win_length <= n_fft:
            raise ValueError(
                "Expected 2 * hop_length <= win_length <= n_fft (with less overlap no waveform comes back), got "
                f"hop_length {hop_length}, win_length {win_length}, n_fft {n_fft}."
            )
        highest = sampling_rate / 2 if fmax is None else fmax
        if not 0 <= fmin < highest <= sampling_rate / 2:
            raise ValueError(
                f"Expected 0 <= fmin < fmax <= sampling_rate / 2 = {sampling_rate / 2:g} Hz, got fmin {fmin}, "
                f"fmax {fmax}."
            )
        if log_scale not in ("log", "log10"):
            raise ValueError(f"log_scale must be 'log' or 'log10', got {log_scale!r}.")
        if not 0 < log_floor < 1:
            raise ValueError(f"log_floor must be between 0 and 1 (exclusive), got {log_floor!r}.")
        super().__init__(int(feature_size), int(sampling_rate), float(padding_value), **kwargs)
        self.hop_length, self.win_length, self.n_fft = int(hop_length), int(win_length), int(n_fft)
        self.fmin, self.fmax, self.log_floor, self.log_scale = fmin, fmax, log_floor, log_scale
        self._set_statistics(mean, std)
        empty = int((self._filters("cpu").amax(dim=0) == 0).sum())
        if empty:
            raise ValueError(
                f"{empty} of {feature_size} mel bins lie between two frequencies of the Fourier transform: lower "
                f"feature_size, or raise n_fft ({n_fft})."
            )

    # ---- statistics

    def _set_statistics(self, mean, std) -> None:
        for name, value in {"mean": mean, "std": std}.items():
            if value is not None:
                array = np.asarray(value, dtype=np.float64)
                if array.shape not in ((), (self.feature_size,)):
                    raise ValueError(
                        f"{name} must be a number or one for each of the {self.feature_size} mel bins, got shape "
                        f"{array.shape}."
                    )
                if not np.isfinite(array).all() or (name == "std" and (array <= 0).any()):
                    raise ValueError(
                        f"{name} must be finite{' and greater than 0' if name == 'std' else ''}, got {value!r}."
                    )
                value = array.tolist()
            setattr(self, name, value)

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = 0.0 if self.mean is None else self.mean, 1.0 if self.std is None else self.std
        return like.new_tensor(mean), like.new_tensor(std)

    def normalize(self, log_mels: torch.Tensor) -> torch.Tensor:
        """Log-mels (..., num_mel_bins) -> features: minus `mean`, divided by `std`."""
        mean, std = self._statistics(log_mels)
        return (log_mels - mean) / std

    def denormalize(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., num_mel_bins) -> log-mels: `normalize`, undone."""
        mean, std = self._statistics(features)
        return features * std + mean

    def fit_statistics(self, waveforms=None, *, log_mels=None) -> "SpeechFeatureExtractor":
        """Set `mean` and `std` per mel bin from training clips, and return self. Streams: nothing is kept.

        Args:
            waveforms: iterable of mono waveforms (n,) at `sampling_rate`.
            log_mels: instead of them, iterable of what `log_mel` gives: (..., num_mel_bins), not normalised.

        Bins that hardly vary get a `std` of 0.1: a band that is empty in these clips is not blown up in others.
        """
        if (waveforms is None) == (log_mels is None):
            raise ValueError("Expected either waveforms or log_mels.")
        if log_mels is None:
            log_mels = (self.log_mel(torch.from_numpy(self._read(waveform))) for waveform in waveforms)
        count, total, squares = 0, np.zeros(self.feature_size), np.zeros(self.feature_size)
        for values in log_mels:
            values = np.asarray(values, dtype=np.float64)
            if values.shape[-1] != self.feature_size:
                raise ValueError(f"Expected log-mels of {self.feature_size} bins, got shape {values.shape}.")
            values = values.reshape(-1, self.feature_size)
            count, total, squares = count + len(values), total + values.sum(0), squares + np.square(values).sum(0)
        if count == 0:
            raise ValueError("There are no clips to fit statistics on.")
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
        self._set_statistics(mean, np.maximum(std, SMALLEST_STD))
        return self

    # ---- waveforms to features

    def _filters(self, device) -> torch.Tensor:
        fmax = self.sampling_rate / 2 if self.fmax is None else self.fmax
        return _mel_filters(self.feature_size, self.n_fft, self.sampling_rate, self.fmin, fmax, torch.device(device))

    def _stft(self, waveform: torch.Tensor) -> torch.Tensor:
        """(batch, n) -> complex64 (batch, frequencies, frames)."""
        window = _window(self.win_length, waveform.device)
        return torch.stft(
            waveform, self.n_fft, self.hop_length, self.win_length, window, pad_mode="constant", return_complex=True
        )

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform of so many samples."""
        return 1 + num_samples // self.hop_length

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Waveforms, float (n,) or (batch, n) -> log-mels, float32 (frames, num_mel_bins) or (batch, frames,
        num_mel_bins), not normalised. Differentiable, on the device of the waveform."""
        if waveform.ndim not in (1, 2) or waveform.shape[-1] == 0 or not waveform.is_floating_point():
            raise ValueError(
                f"Expected float waveforms (n,) or (batch, n) with n > 0, got {waveform.dtype} {tuple(waveform.shape)}."
            )
        batch = waveform.float().reshape(-1, waveform.shape[-1])
        magnitude = self._stft(batch).abs().transpose(1, 2) @ self._filters(batch.device)
        log = torch.log if self.log_scale == "log" else torch.log10
        return log(magnitude.clamp(min=self.log_floor)).reshape(*waveform.shape[:-1], -1, self.feature_size)

    def _read(self, clip) -> np.ndarray:
        """Any one waveform -> float32 (n,), checked."""
        if isinstance(clip, torch.Tensor):
            clip = clip.detach().cpu()
            clip = (clip.float() if clip.is_floating_point() else clip).numpy()
        try:
            array = np.asarray(clip)
        except ValueError as error:
            raise ValueError(f"Expected a waveform (n,), got rows of unequal lengths. {DOWNMIX}") from error
        if array.size == 0:
            raise ValueError(f"The waveform is empty, shape {array.shape}. Expected at least one sample.")
        if array.dtype.kind not in "fiu":
            raise TypeError(
                f"Expected a waveform of numbers, (n,), got {type(clip).__name__} of dtype {array.dtype}. Read files "
                "with soundfile, or hf_autoencoders.data.read_audio."
            )
        if array.ndim == 2 and 1 in array.shape:  # (channels, samples) or (samples, channels) of one channel
            array = array.reshape(-1)
        if array.ndim != 1:
            raise ValueError(f"Expected one channel, a waveform (n,), got shape {array.shape}. {DOWNMIX}")
        if array.dtype.kind == "f":
            peak = np.abs(array).max()
            if not np.isfinite(peak):
                raise ValueError("The waveform holds NaN or infinite values. Expected floats in [-1, 1].")
            if peak > LOUDEST:
                raise ValueError(
                    f"Float waveforms are in [-1, 1], got values up to {peak:g}. Divide 16 bit samples by 32768, or "
                    "pass them as int16."
                )
            return np.ascontiguousarray(array, dtype=np.float32)
        if array.dtype == np.uint8:
            return (array.astype(np.float32) - 128) / 128
        if array.dtype not in INTEGER_SCALES:
            raise TypeError(
                f"Waveforms of dtype {array.dtype} have no known scale. Expected floats in [-1, 1], int16, int32 or "
                "uint8: convert with .astype(numpy.int16) if these are 16 bit samples."
            )
        return (array / INTEGER_SCALES[array.dtype]).astype(np.float32)

    def _clips(self, raw_speech, sampling_rate: int | None) -> list[tuple]:
        """Whatever came -> [(waveform as it came, its sampling rate or None)]."""
        if isinstance(raw_speech, list | tuple):
            if not raw_speech:
                raise ValueError("Got an empty list. Expected at least one waveform.")
            if not isinstance(raw_speech[0], int | float | np.number):
                return [clip for item in raw_speech for clip in self._clips(item, sampling_rate)]
        elif isinstance(raw_speech, dict) or hasattr(raw_speech, "get_all_samples"):  # the latter: torchcodec's decoder
            try:
                array, own_rate = raw_speech["array"], int(raw_speech["sampling_rate"])
            except KeyError as error:
                raise ValueError(
                    "Expected a dict with 'array' and 'sampling_rate', as decoded audio of datasets, got one with "
                    f"{', '.join(map(repr, raw_speech))}. Read stored files with hf_autoencoders.data.read_audio."
                ) from error
            if sampling_rate not in (None, own_rate):
                raise ValueError(f"sampling_rate is {sampling_rate}, but the clip itself says {own_rate}.")
            return [(array, own_rate)]
        elif raw_speech is None or isinstance(raw_speech, str | bytes):
            raise TypeError(
                f"Expected a waveform, array or tensor (n,), got {type(raw_speech).__name__}. Read files with "
                "soundfile, or hf_autoencoders.data.read_audio."
            )
        return [(raw_speech, sampling_rate)]

    def _at_own_rate(self, clip, rate: int | None, resample: bool) -> np.ndarray:
        waveform = self._read(clip)
        if rate is None or rate == self.sampling_rate:
            return waveform
        if not resample:
            raise ValueError(
                f"The audio has {rate} samples per second, but this extractor, and the model trained with it, "
                f"{self.sampling_rate}. Pass resample=True to convert it."
            )
        if not isinstance(rate, int | np.integer) or rate < 1:
            raise ValueError(f"sampling_rate must be a positive int, got {rate!r}.")
        try:
            import soxr
        except ImportError as error:
            raise ImportError("Resampling needs soxr: pip install 'hf-autoencoders[audio]', or soxr alone.") from error
        resampled = soxr.resample(waveform, rate, self.sampling_rate)
        return resampled if len(resampled) else np.zeros(1, np.float32)  # of a sample or two

    def __call__(
        self,
        raw_speech,
        sampling_rate: int | None = None,
        resample: bool = False,
        padding=True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors=None,
        return_attention_mask: bool | None = None,
    ) -> BatchFeature:
        """Waveforms -> `input_features` and `attention_mask`.

        Args:
            raw_speech: one waveform (n,), array, tensor or list of floats; decoded audio of `datasets`, a dict with
                `array` and `sampling_rate`; or a list of any of these.
            sampling_rate: of the waveforms; where it is not this extractor's, that is an error, unless ...
            resample: ... it is to be converted (by soxr).
            padding: `True` or "longest", "max_length", or `False`.
            max_length, truncation, pad_to_multiple_of: as everywhere in transformers, in frames.
            return_tensors: "pt" or "np"; `None` for lists of arrays.

        Returns:
            `input_features` float32 (batch, frames, num_mel_bins); `attention_mask` int64 (batch, frames).
        """
        clips = self._clips(raw_speech, sampling_rate)
        if any(rate is None for _, rate in clips):
            logger.warning_once(
                "It is strongly recommended to pass the `sampling_rate` argument to `SpeechFeatureExtractor()`: audio "
                f"of another rate than {self.sampling_rate} goes unnoticed without it."
            )
        waveforms = [self._at_own_rate(clip, rate, resample) for clip, rate in clips]
        features = [self.normalize(self.log_mel(torch.from_numpy(waveform))).numpy() for waveform in waveforms]
        batch = self.pad(
            BatchFeature({"input_features": features}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
        )
        if "attention_mask" in batch:
            batch["attention_mask"] = [mask.astype(np.int64) for mask in batch["attention_mask"]]
        return batch.convert_to_tensors(return_tensors) if return_tensors is not None else batch

    # ---- and back

    def to_waveform(
        self, input_features, attention_mask=None, num_iterations: int = 32, vocoder=None, lengths=None
    ) -> list[torch.Tensor]:
        """Features -> waveforms, a list of float32 (n,) on the device of the features.

        The phase that features do not have is found by the fast Griffin-Lim algorithm (Perraudin et al. 2013), from the
        same start always: equal features give equal waveforms, whatever else is in the batch.

        Args:
            input_features: (batch, frames, num_mel_bins) or (frames, num_mel_bins), a list of the latter, or a model
                output with a `reconstruction`.
            attention_mask: (batch, frames), 1 on the frames to be heard; all where it is `None`.
            num_iterations: of Griffin-Lim.
            vocoder: a HiFi-GAN of transformers to be used instead of it (`SpeechT5HifiGan`,
                `FastSpeech2ConformerHifiGan` ...), trained on log-mels as this extractor makes them. Bins, hop and
                sampling rate are checked; `fmin`, `fmax`, `log_floor` and `log_scale` a vocoder does not tell.
            lengths: samples of each waveform; where `None`, (frames - 1/2) * hop_length, the middle of what can be.

        Raises:
            ValueError: features of another shape, not finite, or with no frames; a vocoder of other settings.
                TypeError: a vocoder that is none.
        """
        features, mask = self._read_features(input_features, attention_mask)
        frames = mask.sum(dim=1)
        if not bool((mask == (torch.arange(mask.shape[1], device=mask.device) < frames[:, None])).all()):
            raise ValueError("attention_mask must be 1 on the first frames of a row and 0 on the padding after them.")
        if not bool((frames > 0).all()):
            raise ValueError("A row of attention_mask has no frames: there is nothing to be heard.")
        if lengths is None:
            lengths = ((frames - 1) * self.hop_length + self.hop_length // 2).clamp(min=1)
        lengths = torch.as_tensor(lengths, device=features.device, dtype=torch.int64).reshape(-1)
        if len(lengths) != len(features):
            raise ValueError(f"Expected {len(features)} lengths, one for each row, got {len(lengths)}.")
        if not bool(((lengths > 0) & (lengths <= frames * self.hop_length)).all()):
            raise ValueError(
                f"lengths must be 1 to frames * hop_length samples, got {lengths.tolist()} for {frames.tolist()} "
                f"frames of {self.hop_length} samples."
            )
        log_mels = self.denormalize(features)
        rows = list(zip(log_mels, frames.tolist(), lengths.tolist(), strict=True))
        if vocoder is not None:
            self._check_vocoder(vocoder)
            return [self._vocode(vocoder, log_mel[:count])[:length] for log_mel, count, length in rows]
        if num_iterations < 0:
            raise ValueError(f"num_iterations must not be negative, got {num_iterations}.")
        waveforms: list = [None] * len(rows)
        for chunk in self._chunks(frames.tolist(), features.device.type):
            longest = int(frames[chunk].max())
            found = self._griffin_lim(log_mels[chunk, :longest], frames[chunk], lengths[chunk], num_iterations)
            for row, waveform in zip(chunk, found, strict=True):
                waveforms[row] = waveform[: rows[row][2]].clone()
        return waveforms

    def _read_features(self, features, mask) -> tuple[torch.Tensor, torch.Tensor]:
        features = getattr(features, "reconstruction", features)
        if features is None:
            raise TypeError("The model output has no `reconstruction`.")
        if isinstance(features, list | tuple):
            rows = [torch.as_tensor(row) for row in features]
            if not rows or any(row.ndim != 2 for row in rows):
                raise ValueError("Expected a list of features (frames, num_mel_bins).")
            if mask is None:
                mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
            features = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        features = torch.as_tensor(features).detach()
        features = features[None] if features.ndim == 2 else features
        if features.ndim != 3 or features.shape[-1] != self.feature_size or not features.is_floating_point():
            raise ValueError(
                f"Expected float features (batch, frames, {self.feature_size}) or (frames, {self.feature_size}), got "
                f"{features.dtype} {tuple(features.shape)}."
            )
        features = features.float()
        mask = torch.ones(features.shape[:2]) if mask is None else torch.as_tensor(mask)
        mask = (mask[None] if mask.ndim == 1 else mask).to(features.device) > 0
        if mask.shape != features.shape[:2]:
            raise ValueError(f"Expected attention_mask {tuple(features.shape[:2])}, got {tuple(mask.shape)}.")
        if not bool(torch.isfinite(features[mask]).all()):
            raise ValueError("The features hold NaN or infinite values: no waveform can be made of them.")
        return features, mask

    @staticmethod
    def _chunks(frames: list[int], device_type: str) -> list[list[int]]:
        """Rows of near-equal length together, so many that a CPU's caches hold them."""
        order, chunks = sorted(range(len(frames)), key=frames.__getitem__), []
        for row in order:
            full = device_type == "cpu" and chunks and (len(chunks[-1]) + 1) * frames[row] > FRAMES_PER_CALL
            if full or not chunks:
                chunks.append([])
            chunks[-1].append(row)
        return chunks

    def _magnitudes(self, log_mels: torch.Tensor) -> torch.Tensor:
        """Log-mels (batch, frames, bins) -> magnitudes >= 0 (batch, frames, n_fft // 2 + 1) that have them: least
        squares by multiplicative updates (Lee & Seung 2001)."""
        log_mels = log_mels if self.log_scale == "log" else log_mels * math.log(10)
        mels = log_mels.clamp(max=math.log(self.win_length)).exp()  # nothing in [-1, 1] is louder
        mels = torch.where(mels <= self.log_floor * 1.001, 0.0, mels)  # the floor itself is silence
        filters = self._filters(mels.device)
        projected, gram = mels @ filters.T, filters @ filters.T
        guess = projected
        for _ in range(INVERSION_STEPS):
            guess = guess * projected / (guess @ gram).clamp(min=1e-12)
        return guess

    def _griffin_lim(self, log_mels, frames, lengths, num_iterations: int) -> torch.Tensor:
        """-> (batch, samples), 0 beyond each row's length."""
        batch, most, _ = log_mels.shape
        window = _window(self.win_length, log_mels.device)
        samples = int(lengths.max())

        def istft(spectrum):
            return torch.istft(spectrum, self.n_fft, self.hop_length, self.win_length, window, length=samples)

        real = torch.arange(most, device=log_mels.device) < frames[:, None]
        magnitude = (self._magnitudes(log_mels) * real[..., None]).transpose(1, 2)
        # The inverse divides by the windows of all frames; a row shall be divided by those of its own. So that is what
        # it is multiplied with, and 0 beyond its length.
        pad = (self.n_fft - self.win_length) // 2
        padded = torch.nn.functional.pad(window, (pad, self.n_fft - self.win_length - pad))
        own = istft(torch.fft.rfft(padded)[None, :, None] * real[:, None, :])
        inside = torch.arange(samples, device=log_mels.device) < lengths[:, None]
        weight = inside / own.clamp(min=1e-3)

        start = torch.rand(most, self.n_fft // 2 + 1, generator=torch.Generator().manual_seed(0))
        angle = 2 * math.pi * start.T.to(log_mels.device)
        spectrum = torch.polar(magnitude, angle.expand_as(magnitude))
        previous = 0.0
        for _ in range(num_iterations):
            rebuilt = self._stft(istft(spectrum) * weight)[..., :most]
            phase = rebuilt - MOMENTUM / (1 + MOMENTUM) * previous
            spectrum = phase * (magnitude / phase.abs().clamp(min=1e-16))
            previous = rebuilt
        return istft(spectrum) * weight

    def _check_vocoder(self, vocoder) -> None:
        config = getattr(vocoder, "config", None)
        if not callable(vocoder) or not hasattr(config, "model_in_dim") or not hasattr(config, "upsample_rates"):
            raise TypeError(
                "Expected a HiFi-GAN of transformers as vocoder (its config has model_in_dim and upsample_rates), got "
                f"{type(vocoder).__name__}."
            )
        settings = {
            "mel bins (feature_size)": (self.feature_size, config.model_in_dim),
            "samples per frame (hop_length)": (self.hop_length, math.prod(config.upsample_rates)),
            "samples per second (sampling_rate)": (
                self.sampling_rate,
                getattr(config, "sampling_rate", self.sampling_rate),
            ),
        }
        wrong = [f"{name}: {ours} here, {theirs} there" for name, (ours, theirs) in settings.items() if ours != theirs]
        if wrong:
            raise ValueError(
                f"The vocoder was made for other features than these. {'; '.join(wrong)}. Train with an extractor of "
                "the vocoder's settings, or leave the vocoder out."
            )

    @staticmethod
    def _vocode(vocoder, log_mel: torch.Tensor) -> torch.Tensor:
        parameter = next(vocoder.parameters())
        with torch.no_grad():
            waveform = vocoder(log_mel[None].to(parameter.device, parameter.dtype))
        waveform = waveform if isinstance(waveform, torch.Tensor) else waveform[0]
        return waveform.reshape(-1).float().to(log_mel.device)


__all__ = ["SpeechFeatureExtractor"]
