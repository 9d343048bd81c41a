"""Training runs of priors: the corpus is encoded once by a frozen auto-encoder, then only latents or codes are seen.

Everything else about a run is in `training_run`, and what concerns images in `training_images`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HFValidationError

from .data.corpora import load_corpus
from .data.images import ImageBatches, image_arrays
from .evaluation.evaluate import pixel_value_batches
from .evaluation.generation import evaluate_samples
from .evaluation.pictures import image_grid
from .models.fingerprint import weights_fingerprint
from .models.image_processing_autoencoder import AutoencoderImageProcessor
from .training_images import ImageTrainingRun
from .training_parts import Batch
from .training_run import TrainingError, as_training_error

EM_ROWS = 20_000  # training rows that expectation-maximisation reads


@dataclass(kw_only=True)
class PriorBatch(Batch):
    """A batch of what a frozen auto-encoder made of images.

    Attributes:
        values: latents, float32, or codes, int64: (rows of this process, *shape).
        log_variance: of the posterior whose mean `values` are; None for codes and for auto-encoders without one.
        classes: int64 (rows of this process,), -1 where not known; None where there are none.
    """

    values: torch.Tensor
    log_variance: torch.Tensor | None = None
    classes: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.values.device


@dataclass
class EncodedSplit:
    """A split as the auto-encoder sees it.

    Attributes:
        values: latents float32, posterior means of a VAE, or codes int64, (rows, *shape).
        log_variance: float32 of the shape of `values`; None where there is none.
        classes: int64 (rows,); None where the corpus, or the prior, has none.
    """

    values: torch.Tensor
    log_variance: torch.Tensor | None = None
    classes: torch.Tensor | None = field(default=None)


@torch.inference_mode()
def encode_split(autoencoder, images: np.ndarray, batch_size: int = 500) -> EncodedSplit:
    """What an auto-encoder makes of uint8 images (rows, channels, height, width): codes if it has any, else latents.

    Raises:
        ValueError: latents that are not finite.
    """
    values, log_variances = [], []
    for pixel_values in pixel_value_batches(autoencoder, images, batch_size):
        output = autoencoder.encode(pixel_values)
        if hasattr(autoencoder.config, "codes_shape"):
            values.append(output.codes.cpu())
            continue
        values.append(output.latents.float().cpu())
        if getattr(output, "log_variance", None) is not None:
            log_variances.append(output.log_variance.float().cpu())
    encoded = EncodedSplit(torch.cat(values), torch.cat(log_variances) if log_variances else None)
    if encoded.values.is_floating_point() and not encoded.values.isfinite().all():
        row = int((~encoded.values.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"the auto-encoder gives latents that are not finite, first for image {row}: it is not usable")
    return encoded


def load_autoencoder(name: str):
    """A frozen auto-encoder of images, by folder or Hub id, and the processor of its images.

    Raises:
        TrainingError: there is none, or it is of another kind.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        model = AutoModel.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError, HFValidationError) as error:
        raise TrainingError(f"--autoencoder {name}: {' '.join(str(error).split())[:300]}") from error
    if not hasattr(model, "takes_prior"):
        raise TrainingError(f"--autoencoder {name} holds a {type(model).__name__}: expected an auto-encoder of images")
    if not model.takes_prior:
        raise TrainingError(
            f"--autoencoder {name} holds a {type(model).__name__}, whose latents are part discrete, part continuous: "
            "there is no prior of both"
        )
    if model.config.num_features:
        raise TrainingError(f"--autoencoder {name} is one of rows of tables: expected an auto-encoder of images")
    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except OSError:  # saved without one: what fits the configuration is known
        processor = AutoencoderImageProcessor.for_model(model.config)
    return model.eval().requires_grad_(False), processor


def published_name(name: str) -> str:
    """What a configuration says of an auto-encoder: a Hub id as it is, of a folder the last part that names it."""
    path = Path(name)
    if not path.exists():
        return name
    parts = [part for part in path.resolve().parts if part not in ("final", "best")]
    return parts[-1]


class RowBatches(ImageBatches):
    """The rows of a split that each batch has, in the order in which `ImageBatches` has their images."""

    def _iterate(self, start_batch: int, order: torch.Tensor) -> Iterator[dict[str, Any]]:
        for batch in range(start_batch, len(self)):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            bounds = [len(rows) * (self.process_index + end) // self.num_processes for end in (0, 1)]
            yield {"rows": rows[slice(*bounds)], "global_size": len(rows)}


class PriorTrainingRun(ImageTrainingRun):
    """A run whose batches hold what a frozen auto-encoder made of images.

    Attributes, beside those of every run:
        autoencoder: frozen.  encoded: the two splits, by name, as it sees them, on the device.
    """

    def _load_corpus(self) -> None:
        corpus, options, accelerator, extra = (
            self.arguments.corpus,
            self.options,
            self.accelerator,
            self.arguments.extra,
        )
        if corpus.streaming:
            raise TrainingError("--streaming does not go with priors: the corpus is encoded once, before training")
        if not extra.autoencoder:
            raise TrainingError(
                "--autoencoder is missing: the folder or Hub id of the auto-encoder to train a prior for"
            )
        self.autoencoder, image_processor = load_autoencoder(extra.autoencoder)
        self.autoencoder.to(self.device)
        self.processor = None
        of_codes = self.arguments.variant.name == "code_prior"
        if of_codes != hasattr(self.autoencoder.config, "codes_shape"):
            kind = "latents, not codes: use --variant latent_prior" if of_codes else "codes: use --variant code_prior"
            raise TrainingError(
                f"--autoencoder {extra.autoencoder} holds a {type(self.autoencoder).__name__} of {kind}"
            )
        columns = {
            "image_column": corpus.image_column,
            "label_column": corpus.label_column,
            "on_bad_image": corpus.on_bad_image,
        }
        with accelerator.main_process_first(), as_training_error():  # the others find the decoded images on disk
            splits = load_corpus(
                corpus.dataset,
                corpus.dataset_config_name,
                revision=corpus.dataset_revision,
                validation_fraction=corpus.validation_fraction,
            )
            self.train, self.validation = (
                image_arrays(splits[name], image_processor, cache_dir=corpus.cache_dir, **columns)
                for name in ("train", "validation")
            )
        with as_training_error():
            self.encoded = {
                name: encode_split(self.autoencoder, arrays.images)
                for name, arrays in (("train", self.train), ("validation", self.validation))
            }
            shard = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
            shuffled = {"shuffle": True, "seed": options.seed, "drop_last": True}
            self.batches = RowBatches(self.train, options.batch_size, **shuffled, **shard)
            size = options.eval_batch_size
            while 0 < len(self.validation) % size < shard["num_processes"] < size:
                size -= 1  # a last batch with fewer images than processes leaves one with nothing to do
            self._validation_batches = RowBatches(
                self.validation, size, shuffle=False, seed=0, drop_last=False, **shard
            )
        num_classes = self._choose_classes() if of_codes else 0
        for split in self.encoded.values():
            for name, value in vars(split).items():
                setattr(split, name, None if value is None else value.to(self.device))
        theirs = self.autoencoder.config
        of_autoencoder = {"num_classes": num_classes} if of_codes else {}
        for name in ("codes_shape", "num_codes") if of_codes else ("latent_shape",):
            of_autoencoder[name] = getattr(theirs, name)
        of_autoencoder |= {
            "autoencoder": published_name(extra.autoencoder),
            "autoencoder_fingerprint": weights_fingerprint(self.autoencoder),
        }
        self.config = self._make_config(dict(self.arguments.model), of_autoencoder)
        if not of_codes and self.config.prior == "standard_normal":
            raise TrainingError(
                "--prior standard_normal has nothing to learn: use LatentPriorModel(LatentPriorConfig(...)), or "
                "--prior gaussian_mixture --num_components 1 for one Gaussian of the latents' mean and covariance"
            )

    def _choose_classes(self) -> int:
        """Put the labels of the corpus, where it has any that are wanted, into the splits. Returns their number."""
        if not self.arguments.extra.class_conditional or self.train.labels is None:
            return 0
        num_classes = int(np.max(self.train.labels)) + 1
        if num_classes < 1:
            return 0
        for name, arrays in (("train", self.train), ("validation", self.validation)):
            labels = np.full(len(arrays), -1) if arrays.labels is None else np.array(arrays.labels)
            labels[labels >= num_classes] = -1  # of the validation split alone: the prior cannot know them
            self.encoded[name].classes = torch.from_numpy(labels)
        return num_classes

    def _corpus_settings(self) -> dict[str, Any]:
        return super()._corpus_settings() | {"fingerprint of the auto-encoder": self.config.autoencoder_fingerprint}

    def _new_model(self) -> torch.nn.Module:
        model = super()._new_model()
        if model.gives_codes:
            return model
        split, samples = self.encoded["train"], self.arguments.extra.latents == "samples"
        mean, variance = split.values.mean(0), split.values.var(0)
        if samples and split.log_variance is not None:
            variance = variance + split.log_variance.exp().mean(0)
        with as_training_error():
            model.to(self.device).set_statistics(mean, variance.sqrt())
        if self.config.prior == "gaussian_mixture":
            generator = torch.Generator().manual_seed(self.options.seed)
            rows = torch.randperm(len(split.values), generator=generator)[:EM_ROWS]
            values = split.values[rows].cpu()
            if samples and split.log_variance is not None:
                noise = torch.randn(values.shape, generator=generator)
                values = values + torch.exp(0.5 * split.log_variance[rows].cpu()) * noise
            with as_training_error():
                fit_mixture(model, values, seed=self.options.seed)
        return model

    def _make_batch(self, rows: dict[str, Any], global_size: int, seed: tuple[int, ...]) -> PriorBatch:
        return self._batch_of("train", rows["rows"], global_size, seed)

    def _batch_of(self, split: str, rows: torch.Tensor, global_size: int, seed: tuple[int, ...]) -> PriorBatch:
        index, world = self.accelerator.process_index, self.accelerator.num_processes
        where = slice(global_size * index // world, global_size * (index + 1) // world)
        encoded, rows = self.encoded[split], rows.to(self.device)
        parts = {name: None if value is None else value[rows] for name, value in vars(encoded).items()}
        return PriorBatch(rows=where, global_size=global_size, seed=seed, **parts)

    def validation_batches(self) -> Iterator[PriorBatch]:
        """This process's part of the validation split, in order; nothing is dropped."""
        total, size = len(self.validation), self._validation_batches.batch_size
        for index, rows in enumerate(self._validation_batches):
            seed = (self.options.seed, 0, index)
            yield self._batch_of("validation", rows["rows"], min(size, total - index * size), seed)

    def pictures(self, model: torch.nn.Module) -> dict[str, Any]:
        """PIL images by name: samples, of classes one after the other where the prior knows any. Empty for images that
        are neither grey nor RGB."""
        count = self.options.num_pictures
        if not count or self.autoencoder.config.num_channels not in (1, 3):
            return {}
        options = {}
        if getattr(self.config, "num_classes", 0):
            options["classes"] = torch.arange(count) % self.config.num_classes
        generator = torch.Generator().manual_seed(self.options.seed)
        return {"samples": image_grid(self.autoencoder.sample(count, generator, prior=model, **options))}

    def _measure(self, model: torch.nn.Module) -> dict[str, Any]:
        with as_training_error():
            return evaluate_samples(
                self.autoencoder,
                model,
                self.train,
                self.validation,
                corpus=self._described_corpus(),
                num_samples=self.options.num_generated,
                seed=self.options.seed,
                command=self.arguments.command,
            )

    def _can_report(self) -> bool:
        return False


def fit_mixture(model, latents: torch.Tensor, seed: int = 0) -> None:
    """Fit a prior that is a mixture of Gaussians by expectation-maximisation (that of scikit-learn), in its place.

    Args:
        model: with `prior="gaussian_mixture"`, and its statistics set.  latents: `(rows, *latent_shape)`.

    Raises:
        ValueError: fewer rows than Gaussians, or latents that are not finite.
    """
    from sklearn.mixture import GaussianMixture

    config, density = model.config, model.density
    rows = latents.flatten(1).double().cpu()
    mean, std = (tensor.double().cpu() for tensor in (model.statistics.mean, model.statistics.std))
    fitted = GaussianMixture(
        config.num_components, covariance_type=config.covariance, reg_covar=1e-4, max_iter=100, random_state=seed
    ).fit(((rows - mean) / std).numpy())
    factors = torch.from_numpy(fitted.precisions_cholesky_)  # upper triangular: noise = (values - mean) @ factor
    with torch.no_grad():
        density.logits.copy_(torch.from_numpy(fitted.weights_).log())
        density.means.copy_(torch.from_numpy(fitted.means_))
        if config.covariance == "full":
            density.off_diagonal.copy_(factors.mT.tril(-1))
            factors = factors.diagonal(dim1=1, dim2=2)
        density.log_precision.copy_(factors.log())
