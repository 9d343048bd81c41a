"""Anomaly scores of a trained auto-encoder, and a detector that is saved with it.

A detector is a model, a score of inputs that is high for the unusual, and the scores of normal inputs that the model
was not trained on. By these a score becomes a p-value, whatever the model and the score are (split conformal inference,
Vovk et al. 2005; for outliers Bates et al. 2023, https://arxiv.org/abs/2104.08279): of n calibration scores and a new
normal input all n + 1 ranks are equally likely, so p = (1 + number of calibration scores >= score) / (n + 1) is at most
alpha in at most a share alpha of the normal inputs. That holds on average over draws of the calibration inputs; with
given ones the share varies by about sqrt(alpha (1 - alpha) / n).
"""

import copy
import math

import torch
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .base import PreTrainedAutoencoder
from .configuration_base import ANOMALY_SCORES, ImageAutoencoderConfig
from .layers import Float32Module
from .losses import gaussian_kl
from .outputs import AnomalyOutput

NUM_NEIGHBORS = 5


def conformal_p_values(scores: torch.Tensor, calibration_scores: torch.Tensor) -> torch.Tensor:
    """(1 + number of calibration scores >= score) / (n + 1), float32, of `scores` `(batch_size,)` and of n rising
    `calibration_scores`."""
    n = calibration_scores.numel()
    at_least_as_high = n - torch.searchsorted(calibration_scores, scores.contiguous())
    return (1 + at_least_as_high).float() / (n + 1)


def smooth_maps(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Maps `(batch_size, H, W)` convolved with a Gaussian of `sigma` pixels, cut at 3 sigma; borders are repeated."""
    if not sigma:
        return maps
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=maps.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(maps.dtype)
    maps = F.pad(maps.unsqueeze(1), (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(maps, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)).squeeze(1)


def ledoit_wolf(rows: torch.Tensor) -> torch.Tensor:
    """Covariance of centred `rows` `(n, d)`, drawn towards a multiple of the identity (Ledoit and Wolf 2004)."""
    n, d = rows.shape
    covariance = rows.T @ rows / n
    scale = covariance.diagonal().mean()
    distance = (covariance - scale * torch.eye(d).to(covariance)).square().sum()
    noise = (rows.square().sum(1).square().sum() / n - covariance.square().sum()) / n
    shrinkage = (noise / distance.clamp_min(torch.finfo(rows.dtype).tiny)).clamp(0, 1)
    return (1 - shrinkage) * covariance + shrinkage * scale * torch.eye(d).to(covariance)


def code_kl(outputs: ModelOutput) -> torch.Tensor | None:
    """KL term of each input, nats, `(batch_size,)`, of what a model returned; None where its code has no posterior."""
    terms = []
    if outputs.get("log_variance") is not None:
        terms.append(gaussian_kl(outputs.mean, outputs.log_variance.float()).sum(1))
    if outputs.get("probabilities") is not None:
        p = outputs.probabilities.float()
        p = p if p.ndim == 3 else torch.stack([p, 1 - p], dim=-1)  # of a bit, the probability of a 1
        terms.append((torch.xlogy(p, p).sum(-1) + math.log(p.shape[-1])).sum(1))
    return sum(terms) if terms else None


class AnomalyDetector(Float32Module):
    """What a detector knows beside its model, as buffers: float32, fixed in size by the configuration.

    calibration_scores (n,)   rising
    latent_mean (P, D), latent_whitening (D, D)   of the D numbers of a latent at each of its P places (one, for a
                              vector): white numbers are `(latent - mean) @ whitening`
    reference_latents (R, P D)   white latents of training inputs
    feature_scales (levels,), noise_variance ()   mean squared errors of training inputs, of features and of inputs
    """

    def __init__(self, config: ImageAutoencoderConfig):
        super().__init__()
        score, latent_shape = config.anomaly_score, config.latent_shape
        size, places = latent_shape[0], math.prod(latent_shape[1:])
        self.sizes = {"calibration_scores": (config.num_calibration_scores,), "is_fitted": ()}
        if score in ("latent_distance", "latent_neighbors", "density"):
            self.sizes |= {"latent_mean": (places, size), "latent_whitening": (size, size)}
        if score == "latent_neighbors":
            self.sizes["reference_latents"] = (config.num_reference_rows, places * size)
        if score == "density":
            self.sizes["noise_variance"] = ()
        if score == "feature_reconstruction":
            self.sizes["feature_scales"] = (len(config.hidden_sizes),)
        for name, value in self.initial_state().items():
            self.register_buffer(name, value)

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The buffers of a detector that knows nothing yet, for `_init_weights`."""
        return {name: torch.zeros(size, device="cpu") for name, size in self.sizes.items()}

    def white_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """`(batch_size, P, D)` of latents `(batch_size, D, ...)`: mean 0 and covariance I over training inputs."""
        latents = latents.float().flatten(2).mT if latents.ndim > 2 else latents.float().unsqueeze(1)
        if latents.shape[1] != self.latent_mean.shape[0]:
            raise ValueError(
                f"the detector knows latents of {self.latent_mean.shape[0]} places, got {latents.shape[1]}: this score "
                "takes images of the size that it was fitted with"
            )
        return (latents - self.latent_mean) @ self.latent_whitening


class DetectingAutoencoder(PreTrainedAutoencoder):
    """Base class of all auto-encoders of images and of rows of tables: what they can do about anomalies.

    ```python
    model.fit_detector(train, calibration, score="latent_neighbors", false_alarm_rate=0.05)   # normal inputs only
    model.save_pretrained(folder)                                                             # detector included
    outputs = AutoModel.from_pretrained(folder).detect(pixel_values)   # .scores, .p_values, .is_anomaly, .maps
    ```
    """

    def __init__(self, config: ImageAutoencoderConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        self.detector = None if config.anomaly_score == "none" else AnomalyDetector(config)
        if self.detector is not None:  # p-values compare scores with those of the calibration
            self._keep_in_fp32_modules_strict = [*(self._keep_in_fp32_modules_strict or ()), "detector"]

    def available_scores(self) -> tuple[str, ...]:
        """The scores that this variant has."""
        lacking = set() if hasattr(self, "_log_likelihood") else {"likelihood", "kl"}
        if not self.config.hidden_sizes:
            lacking.add("feature_reconstruction")
        return tuple(score for score in ANOMALY_SCORES if score not in lacking)

    @torch.no_grad()
    def fit_detector(
        self,
        train,
        calibration,
        score: str = "reconstruction",
        false_alarm_rate: float = 0.05,
        num_reference_rows: int = 5000,
        map_smoothing: float = 0.0,
        map_pooling: str = "mean",
        batch_size: int = 500,
    ) -> None:
        """Make this model a detector, which is saved with it from now on. It replaces one that was fitted before.

        Args:
            train: normal inputs, of training or like those, `(rows, *input_shape)`: float as `forward` takes them, or
                uint8 images. What a score needs to know of normal inputs is computed on them.
            calibration: further normal inputs, which neither the model nor `train` has seen.
            score (`str`): which score, see [`ImageAutoencoderConfig`].
            false_alarm_rate (`float`): share of normal inputs that may be called anomalies, in (0, 1).
            num_reference_rows (`int`): at most so many rows of `train`, the first, are kept by `"latent_neighbors"`.
            map_smoothing, map_pooling: see [`ImageAutoencoderConfig`].
            batch_size (`int`): inputs at once.

        Raises:
            ValueError: a score that this variant does not have, a rate outside (0, 1), fewer calibration rows than the
                rate needs, the same rows for both, or scores that are not finite.
        """
        config = self.config
        if score not in self.available_scores():
            raise ValueError(
                f"{type(self).__name__} has no score {score!r}: it has {', '.join(self.available_scores())}"
            )
        if not 0 < false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate must be above 0 and below 1, got {false_alarm_rate}")
        if (len(calibration) + 1) * false_alarm_rate < 1 - 1e-9:
            raise ValueError(
                f"{len(calibration)} calibration rows cannot tell a false alarm rate of {false_alarm_rate}: at least "
                f"{math.ceil(1 / false_alarm_rate - 1e-9) - 1} are needed, or a higher rate"
            )
        if train is calibration:
            raise ValueError(
                "train and calibration are the same rows: calibrate on rows that were held out of training"
            )
        if len(train) < 2:
            raise ValueError(f"expected at least 2 rows of normal training data, got {len(train)}")
        if score == "latent_neighbors" and min(len(train), num_reference_rows) < NUM_NEIGHBORS:
            raise ValueError(f"latent_neighbors needs {NUM_NEIGHBORS} or more training rows, got {len(train)}")
        fields = {
            "anomaly_score": score,
            "false_alarm_rate": float(false_alarm_rate),
            "num_calibration_scores": len(calibration),
            "num_reference_rows": min(len(train), num_reference_rows) if score == "latent_neighbors" else 0,
            "map_smoothing": float(map_smoothing),
            "map_pooling": map_pooling,
        }
        before = config, self.detector
        was_training = self.training
        self.eval()
        try:
            self.config = config = copy.deepcopy(config)  # other models may have been made of the same one
            for name, value in fields.items():
                setattr(config, name, value)
            config.validate()
            self.detector = AnomalyDetector(config).to(self.device)
            self._learn_normal(train, batch_size)
            scores = torch.cat([self._scores(rows)[0] for rows in self._batches(calibration, batch_size)])
            _check_finite(scores)
            self.detector.calibration_scores.copy_(scores.sort().values)
            self.detector.is_fitted.fill_(1)
        except BaseException:
            self.config, self.detector = before
            raise
        finally:
            self.train(was_training)

    @torch.no_grad()
    def detect(self, pixel_values: torch.Tensor) -> AnomalyOutput:
        """Score, p-value and decision for each input `(batch_size, *input_shape)`, and a map where the score has one.

        The model should be in evaluation mode, and in the dtype in which it was calibrated.

        Raises:
            ValueError: no detector has been fitted, or an input leads to a score that is not finite.
        """
        detector = self._fitted_detector()
        scores, maps = self._scores(pixel_values)
        _check_finite(scores)
        p_values = conformal_p_values(scores, detector.calibration_scores.float())
        # by whole numbers: (1 + rank) <= alpha (n + 1), which rounding of p-values cannot upset
        n = detector.calibration_scores.numel()
        ranks = (p_values * (n + 1)).round()
        is_anomaly = ranks <= math.floor(self.config.false_alarm_rate * (n + 1) + 1e-9)
        return AnomalyOutput(scores=scores, p_values=p_values, is_anomaly=is_anomaly, maps=maps)

    @property
    def anomaly_threshold(self) -> float:
        """The score above which an input is called an anomaly: one of the calibration scores.

        Raises:
            ValueError: no detector has been fitted.
        """
        scores = self._fitted_detector().calibration_scores
        allowed = math.floor(self.config.false_alarm_rate * (scores.numel() + 1) + 1e-9)
        return scores[-allowed].item()

    def _fitted_detector(self) -> AnomalyDetector:
        if self.detector is None or not self.detector.is_fitted:
            raise ValueError(
                "no detector has been fitted: call model.fit_detector(train, calibration) with normal data, or "
                "`hf-autoencoders fit-detector`, and save the model"
            )
        return self.detector

    def _batches(self, rows, batch_size: int):
        for first in range(0, len(rows), batch_size):
            batch = torch.as_tensor(rows[first : first + batch_size]).to(self.device)
            yield batch.float() / 255 if batch.dtype == torch.uint8 else batch

    def _learn_normal(self, train, batch_size: int) -> None:
        """Fill the statistics that the chosen score needs, from normal inputs."""
        score, detector = self.config.anomaly_score, self.detector
        latents, errors, features = [], [], []
        if score in ("reconstruction", "likelihood", "kl"):
            return
        for rows in self._batches(train, batch_size):
            outputs = self(rows, return_loss=False, output_hidden_states=True)
            if hasattr(detector, "latent_mean"):
                latents.append(outputs.latents.float())
            errors.append((outputs.reconstruction.float() - rows.float()).square().flatten(1).mean(1))
            if hasattr(detector, "feature_scales"):
                features.append(torch.stack([d.flatten(1).mean(1) for d in self._feature_errors(outputs)], dim=1))
        if features:
            detector.feature_scales.copy_(torch.cat(features).mean(0).clamp_min(1e-12))
        if hasattr(detector, "noise_variance"):
            detector.noise_variance.copy_(torch.cat(errors).mean().clamp_min(1e-12))
        if latents:
            latents = torch.cat(latents)
            values = latents.double().flatten(2).mT if latents.ndim > 2 else latents.double().unsqueeze(1)
            detector.latent_mean.copy_(values.mean(0))
            variances, axes = torch.linalg.eigh(ledoit_wolf((values - values.mean(0)).flatten(0, 1)))
            detector.latent_whitening.copy_(axes * variances.clamp_min(1e-12).rsqrt())
            if hasattr(detector, "reference_latents"):
                chosen = latents[: len(detector.reference_latents)]
                detector.reference_latents.copy_(detector.white_latents(chosen).flatten(1))

    def _feature_errors(self, outputs: ModelOutput) -> list[torch.Tensor]:
        """For each level of the encoder, squared differences between features of input and reconstruction, averaged
        over channels: `(batch_size, h, w)`, or `(batch_size, width)` as they are."""
        again = self(outputs.reconstruction, return_loss=False, output_hidden_states=True)
        pairs = zip(outputs.hidden_states, again.hidden_states, strict=True)
        differences = [(one.float() - other.float()).square() for one, other in pairs]
        return [d.mean(1) if d.ndim == 4 else d for d in differences]

    def _scores(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores `(batch_size,)`, float32, and maps `(batch_size, H, W)`, None for rows of tables."""
        config, detector = self.config, self.detector
        score = config.anomaly_score
        outputs = self(pixel_values, return_loss=False, output_hidden_states=True)
        errors = (outputs.reconstruction.float() - pixel_values.float()).square()
        maps = smooth_maps(errors.mean(1), config.map_smoothing) if errors.ndim == 4 else None
        if score == "reconstruction":
            return self._pool(errors if maps is None else maps), maps
        if score == "feature_reconstruction":
            levels = [d / s for d, s in zip(self._feature_errors(outputs), detector.feature_scales, strict=True)]
            if levels[0].ndim == 2:  # fully connected: features have no place
                return torch.stack([level.mean(1) for level in levels]).mean(0), maps
            size = tuple(pixel_values.shape[2:])
            resized = [F.interpolate(d.unsqueeze(1), size, mode="bilinear", align_corners=False) for d in levels]
            maps = smooth_maps(torch.cat(resized, dim=1).mean(1), config.map_smoothing)
            return self._pool(maps), maps
        if score in ("likelihood", "kl"):
            kl = code_kl(outputs)
            if score == "kl":
                return kl, maps
            return kl - self._log_likelihood(self._decode(outputs.latents), pixel_values).float(), maps
        white = detector.white_latents(outputs.latents).flatten(1)
        squared_distance = white.square().sum(1)
        if score == "latent_distance":
            return squared_distance.sqrt(), maps
        if score == "density":
            return 0.5 * (errors.flatten(1).sum(1) / detector.noise_variance + squared_distance), maps
        # exact differences: by products, small distances would be rounding
        distances = torch.cdist(white, detector.reference_latents, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.topk(NUM_NEIGHBORS, largest=False).values.mean(1), maps

    def _pool(self, maps: torch.Tensor) -> torch.Tensor:
        values = maps.flatten(1)
        return values.amax(1) if self.config.map_pooling == "max" else values.mean(1)


def _check_finite(scores: torch.Tensor) -> None:
    if not torch.isfinite(scores).all():
        row = int((~torch.isfinite(scores)).nonzero()[0])
        raise ValueError(f"the score of input {row} is {scores[row].item()}: its values must be finite numbers")
