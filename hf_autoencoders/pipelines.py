"""Pipelines of `transformers` for what an auto-encoder is used for.

```python
import hf_autoencoders  # makes transformers know the tasks below
from transformers import pipeline

restore = pipeline("image-reconstruction", model="path/or/hub-id")
restore("digit.png")                       # a PIL image; a list of images gives a list
restore("digit.png", output_type="dict")   # {"image": PIL image, "mean_squared_error": float, "latents": tensor, ...}

cluster = pipeline("image-clustering", model="path/or/hub-id")
cluster(["digit.png", "other.png"])        # [{"cluster": 3, "score": 0.98}, ...]

generate = pipeline("image-generation", model="path/or/hub-id", prior="path/or/hub-id/of/its/prior")
generate(16, seed=0)                       # 16 PIL images; a model with a prior of its own needs no other
generate(3, classes=[7, 7, 2])             # of a prior of codes that knows classes
detect = pipeline("anomaly-detection", model="path/or/hub-id")   # with a detector: see `fit_detector`
detect("part.png")     # {"score": 0.4, "p_value": 0.003, "is_anomaly": True, "heat_map": PIL image}
detect({"alcohol": 12.3, "ash": 2.1, ...})             # a row of a table: no heat map

summarize = pipeline("text-summarization", model="path/or/hub-id")
summarize("A long sentence ...", num_words=8)              # [{"summary_text": "...", "num_words": 8}]
summarize(["A long sentence ...", "Another"], ratio=0.4)   # one such dictionary for each

convert = pipeline("voice-conversion", model="path/or/hub-id")
convert({"source": "said.wav", "target": "voice.wav"})      # {"audio": float32 array, "sampling_rate": int}
convert("said.wav", target=["voice.wav", "voice2.wav"])     # several clips of the voice are averaged
```

Features need no pipeline of their own: the stock `pipeline("image-feature-extraction", model=...)` returns the latents.

`import hf_autoencoders` arranges that this module is imported when `transformers.pipelines` is.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForSeq2SeqLM, Pipeline
from transformers.image_utils import load_image
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

from .evaluation.pictures import heat_overlay
from .publishing import vocabulary_problem

logger = logging.get_logger(__name__)

IMAGE_RECONSTRUCTION = "image-reconstruction"
IMAGE_CLUSTERING = "image-clustering"
IMAGE_GENERATION = "image-generation"
ANOMALY_DETECTION = "anomaly-detection"
TEXT_SUMMARIZATION = "text-summarization"  # "summarization" alone is a task that transformers 5 removed, and refuses
VOICE_CONVERSION = "voice-conversion"
TOKENS_PER_WORD = 8  # at most, on average over the words of a summary


class ImageReconstructionPipeline(Pipeline):
    """Images through an auto-encoder and back, as PIL images of the model's size.

    Called with one image (path, URL, base64 text or PIL image), a list of them or a dataset column. Arrays and tensors
    are refused: make them PIL images first, or call the model itself. `batch_size` batches them.

    Args, at construction or in the call:
        output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`: the reconstruction as a PIL image. `"dict"`: that
            as `image`, and `mean_squared_error` (float, per dimension, between the processed input in [0, 1] and the
            reconstruction), `latents` (tensor `latent_shape`) and, for models with a discrete code, `codes`.
        timeout (`float`, *optional*): seconds to wait for an image from the web.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, output_type: str | None = None, timeout: float | None = None, **unknown):
        if unknown:
            raise TypeError(f"unknown argument(s) {', '.join(unknown)}: this pipeline takes output_type and timeout")
        if output_type not in (None, "pil", "dict"):
            raise ValueError(f'output_type must be "pil" or "dict", got {output_type!r}')
        preprocess = {} if timeout is None else {"timeout": timeout}
        return preprocess, {}, {} if output_type is None else {"output_type": output_type}

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        return self.image_processor(load_image(image, timeout=timeout), return_tensors="pt")

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = self.model(**model_inputs, return_loss=False)
        names = ("reconstruction", "latents", "codes")
        found = {name: outputs[name] for name in names if outputs.get(name) is not None}
        return {"pixel_values": model_inputs["pixel_values"], **found}

    def postprocess(self, model_outputs: dict[str, Any], output_type: str = "pil") -> Any:
        reconstruction = model_outputs["reconstruction"]
        image = self.image_processor.post_process(reconstruction)[0]
        if output_type == "pil":
            return image
        difference = reconstruction.float() - model_outputs["pixel_values"].float()
        result = {"image": image, "mean_squared_error": difference.square().mean().item()}
        return result | {name: model_outputs[name][0] for name in ("latents", "codes") if name in model_outputs}


class ImageClusteringPipeline(Pipeline):
    """Images to the clusters of an auto-encoder with a one-hot code, which are numbers without a name.

    Called with one image (path, URL, base64 text or PIL image), a list of them or a dataset column. `batch_size`
    batches them. The answer for each is `cluster` (int, from 0) and `score` (float): the model's probability of it.

    Args, at construction or in the call:
        variable (`int`, *optional*, defaults to 0): which of the one-hot variables, where there are several.
        timeout (`float`, *optional*): seconds to wait for an image from the web.

    Raises:
        ValueError: a model without clusters, or without such a variable.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "cluster"):
            raise ValueError(
                f"{type(self.model).__name__} has no cluster: expected a categorical auto-encoder or JointVAE of "
                "hf_autoencoders"
            )

    def _sanitize_parameters(self, variable: int | None = None, timeout: float | None = None, **unknown):
        if unknown:
            raise TypeError(f"unknown argument(s) {', '.join(unknown)}: this pipeline takes variable and timeout")
        count = getattr(self.model.config, "num_variables", 1)
        is_number = isinstance(variable, Integral) and not isinstance(variable, bool)
        if variable is not None and not (is_number and 0 <= variable < count):
            raise ValueError(f"expected variable to be a whole number from 0 to {count - 1}, got {variable!r}")
        preprocess = {} if timeout is None else {"timeout": timeout}
        return preprocess, {}, {} if variable is None else {"variable": variable}

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        return self.image_processor(load_image(image, timeout=timeout), return_tensors="pt")

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        return {"probabilities": self.model.encode(model_inputs["pixel_values"]).probabilities}

    def postprocess(self, model_outputs: dict[str, Any], variable: int = 0) -> dict[str, Any]:
        score, cluster = model_outputs["probabilities"][0, variable].float().max(0)
        return {"cluster": cluster.item(), "score": score.item()}


class ImageGenerationPipeline(Pipeline):
    """New images of an auto-encoder and a prior of its latents or codes.

    Called with the number of images, 1 when not given; the answer is a list of as many PIL images.

    Args, at construction or in the call:
        prior (`str` or prior, *optional*): the prior, or its folder or Hub id, which is loaded with the code that
            comes with it where the model was. By default the model's own: N(0, I) of a VAE, uniform codes of a model
            whose code is discrete by variational inference.
        seed (`int`, *optional*): of all that is random; the same images on the CPU. Without one they differ each time.
        classes (*optional*): class of each image, or one for all; of a prior of codes that knows classes.
        temperature, top_k (*optional*): of the prior's `sample`.

    Raises:
        ValueError: a model without a prior where none is given, a prior of another auto-encoder, options out of range.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, prior=None, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "has_prior"):
            raise ValueError(f"{type(self.model).__name__} draws no images: expected an auto-encoder of images")
        self.prior = self._load_prior(prior)
        if self.prior is None and not self.model.has_prior:
            raise ValueError(
                f"{type(self.model).__name__} has no prior of its own: give the one that was trained for it, prior=..."
            )

    def _load_prior(self, prior):
        if isinstance(prior, str):
            remote = type(self.model).__module__.startswith("transformers_modules.")
            prior = AutoModel.from_pretrained(prior, trust_remote_code=remote)
        if prior is not None:
            if not hasattr(prior, "check_autoencoder"):
                raise ValueError(f"expected a prior of latents or codes, got {type(prior).__name__}")
            prior.check_autoencoder(self.model)
            prior = prior.eval().to(self.model.device)
        return prior

    def _sanitize_parameters(self, prior=None, seed=None, classes=None, temperature=None, top_k=None, **unknown):
        if unknown:
            raise TypeError(
                f"unknown argument(s) {', '.join(unknown)}: this pipeline takes prior, seed, classes, temperature and "
                "top_k"
            )
        given = {"prior": prior, "seed": seed, "classes": classes, "temperature": temperature, "top_k": top_k}
        return {}, {name: value for name, value in given.items() if value is not None}, {}

    def __call__(self, num_images: int = 1, **kwargs):
        if isinstance(num_images, bool) or not isinstance(num_images, Integral) or num_images < 1:
            raise ValueError(f"expected the number of images to draw, a whole number >= 1, got {num_images!r}")
        return super().__call__({"num_images": int(num_images)}, **kwargs)

    def preprocess(self, inputs: dict[str, int]) -> dict[str, Any]:
        return inputs

    def _forward(self, model_inputs: dict[str, Any], prior=None, seed=None, classes=None, **options) -> dict[str, Any]:
        count = model_inputs["num_images"]
        prior = self.prior if prior is None else self._load_prior(prior)
        if classes is not None:
            chosen = torch.as_tensor(classes)
            options["classes"] = chosen.expand(count) if chosen.ndim == 0 else chosen
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return {"images": self.model.sample(count, generator, prior=prior, **options)}

    def postprocess(self, model_outputs: dict[str, Any]) -> list:
        return self.image_processor.post_process(model_outputs["images"])


class AnomalyDetectionPipeline(Pipeline):
    """Images, or rows of tables, to whether they are unlike what a model was trained on, by its detector.

    Called with one image (path, URL, base64 text or PIL image) or, of a model of tables, one row (a dictionary of its
    columns, or its numbers in their order), with a list of them or a dataset column. `batch_size` batches them. The
    answer for each is `score` (float), `p_value` (float), `is_anomaly` (bool) and, of an image, `heat_map`.

    Args, at construction or in the call:
        output_type (`str`, *optional*, defaults to `"pil"`): the heat map as a PIL image over the input, scaled to the
            highest value of this image; `"array"`: as it is, float32 (H, W).
        timeout (`float`, *optional*): seconds to wait for an image from the web.

    Raises:
        ValueError: a model without a detector, or without its processor.
    """

    _load_processor = False
    _load_image_processor = None  # which of the two there is, the configuration says
    _load_feature_extractor = None
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "detect"):
            raise ValueError(f"{type(self.model).__name__} has no detect: expected an auto-encoder of hf_autoencoders")
        if self.model.detector is None:
            raise ValueError("this model has no detector: fit one with model.fit_detector, and save the model")
        self.of_table = bool(self.model.config.num_features)
        self.make_inputs = self.feature_extractor if self.of_table else self.image_processor
        if self.make_inputs is None:
            kind = "table processor, as feature_extractor=..." if self.of_table else "image processor"
            raise ValueError(f"the model came without its {kind}: save it beside the model, or pass it")

    def _sanitize_parameters(self, output_type: str | None = None, timeout: float | None = None, **unknown):
        if unknown:
            raise TypeError(f"unknown argument(s) {', '.join(unknown)}: this pipeline takes output_type and timeout")
        if output_type not in (None, "pil", "array"):
            raise ValueError(f'output_type must be "pil" or "array", got {output_type!r}')
        preprocess = {} if timeout is None else {"timeout": timeout}
        return preprocess, {}, {} if output_type is None else {"output_type": output_type}

    def __call__(self, inputs, **kwargs):
        if self.of_table and isinstance(inputs, (list, tuple)) and inputs and all(isinstance(x, Real) for x in inputs):
            inputs = np.asarray(inputs)  # one row: of a list each item would be one
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: Any, timeout: float | None = None) -> dict[str, Any]:
        inputs = inputs if self.of_table else load_image(inputs, timeout=timeout)
        return self.make_inputs(inputs, return_tensors="pt")

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        found = self.model.detect(model_inputs["pixel_values"])
        return {"pixel_values": model_inputs["pixel_values"], **found}

    def postprocess(self, model_outputs: dict[str, Any], output_type: str = "pil") -> dict[str, Any]:
        names = {"score": "scores", "p_value": "p_values", "is_anomaly": "is_anomaly"}
        result = {name: model_outputs[key][0].item() for name, key in names.items()}
        if "maps" not in model_outputs:
            return result
        heat_map = model_outputs["maps"][0].float().cpu().numpy()
        if output_type == "pil":
            image = (model_outputs["pixel_values"][0].float().cpu().clamp(0, 1) * 255).round().numpy()
            heat_map = Image.fromarray(heat_overlay(image, heat_map, 0.0, float(heat_map.max())))
        return result | {"heat_map": heat_map}


class TextSummarizationPipeline(Pipeline):
    """Texts to summaries of the number of words asked for, by a model with `generate(num_words=...)` and `reconstruct`.

    Called with one string, a list of them, a generator or a dataset column. `batch_size` batches them. The answer is a
    list with one dictionary for each text (of generators and datasets an iterator over them): `summary_text`,
    `num_words` (of it, as white space separates them), `reconstruction_text` if that is wanted and, where the text was
    cut to the longest input of the model, `truncated`, which is True.

    Args, at construction or in the call:
        num_words (`int`, *optional*): write exactly so many words. By default the model ends where it wants to.
        ratio (`float`, *optional*): write that share of the words of each text, in (0, 1], at least one word. One of
            the two.
        num_beams (`int`, *optional*, defaults to 4): of `generate`; 1 is greedy.
        return_reconstruction (`bool`, *optional*, defaults to `False`): also what the model makes of the summary alone.

    Raises:
        ValueError: a text without a word, a model that cannot do it, or a tokenizer that belongs to another model.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        lacking = [name for name in ("generate", "reconstruct") if not hasattr(self.model, name)]
        if lacking:
            raise ValueError(
                f"{type(self.model).__name__} has no {lacking[0]}: expected a summarizer of hf_autoencoders"
            )
        check_tokenizer(self.tokenizer, self.model)

    def _sanitize_parameters(
        self,
        num_words: int | None = None,
        ratio: float | None = None,
        num_beams: int | None = None,
        return_reconstruction: bool | None = None,
        **unknown,
    ):
        if unknown:
            raise TypeError(
                f"unknown argument(s) {', '.join(unknown)}: this pipeline takes num_words, ratio, num_beams and "
                "return_reconstruction; for all of generate call the model itself"
            )
        if num_words is not None and ratio is not None:
            raise ValueError("num_words and ratio both say how long a summary shall be: give one of them")
        for name, value in (("num_words", num_words), ("num_beams", num_beams)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, got {ratio!r}")
        given = {"num_words": num_words, "ratio": ratio}
        preprocess = {} if num_words is None and ratio is None else given  # a call's length replaces the pipeline's
        forward = {"num_beams": num_beams, "return_reconstruction": return_reconstruction}
        return preprocess, {name: value for name, value in forward.items() if value is not None}, {}

    def __call__(self, inputs, **kwargs):
        return super().__call__([inputs] if isinstance(inputs, str) else inputs, **kwargs)

    def preprocess(self, text: str, num_words: int | None = None, ratio: float | None = None) -> dict[str, Any]:
        if not isinstance(text, str):
            raise ValueError(f"expected a string, got {type(text).__name__}: {str(text)[:60]!r}")
        if not text.split():
            raise ValueError("a text is empty: there is nothing to summarize. Leave such texts out")
        if ratio is not None:
            num_words = max(1, round(ratio * len(text.split())))
        inputs, truncated = encode_text(self.tokenizer, text, self.model.config.max_source_tokens)
        # tensors, so that they can be batched; -1: no number of words was asked for
        wanted = torch.tensor([-1 if num_words is None else num_words])
        return {**inputs, "num_words": wanted, "truncated": torch.tensor([truncated])}

    def _forward(
        self, model_inputs: dict[str, Any], num_beams: int = 4, return_reconstruction: bool = False
    ) -> dict[str, Any]:
        num_words = model_inputs["num_words"].flatten()
        wanted = {}
        if (num_words > 0).all():  # with room for words of many tokens: the number is met, not cut off
            room = max(self.model.config.max_summary_tokens, TOKENS_PER_WORD * num_words.max().item())
            wanted = {"num_words": num_words, "max_new_tokens": room}
        texts = {name: model_inputs[name] for name in ("input_ids", "attention_mask")}
        summary_ids = self.model.generate(**texts, **wanted, num_beams=num_beams)
        outputs = {"summary_ids": summary_ids, "truncated": model_inputs["truncated"]}
        if return_reconstruction:
            outputs["text_ids"] = self.model.reconstruct(summary_ids, num_beams=num_beams)
        return outputs

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        def text_of(ids) -> str:
            return " ".join(self.tokenizer.decode(ids[0], skip_special_tokens=True).split())

        summary = text_of(model_outputs["summary_ids"])
        result = {"summary_text": summary, "num_words": len(summary.split())}
        if model_outputs["truncated"].item():
            result["truncated"] = True
        if "text_ids" in model_outputs:
            result["reconstruction_text"] = text_of(model_outputs["text_ids"])
        return result


class VoiceConversionPipeline(Pipeline):
    """What one recording says, in the voice of others, by a model with `convert`.

    Called with `{"source": recording, "target": recording or list of recordings}`, with a list or a generator of them,
    or with a source and `target=`. A recording is a path, the bytes of a file, a waveform (n,) at the model's sampling
    rate, or `{"array", "sampling_rate"}` or `{"bytes", "path"}` as datasets have them; one of another rate is
    resampled. The voices of several target clips are averaged. `batch_size` batches them.

    The answer is `audio`, float32 (n,), as long as the source, and its `sampling_rate`.

    Args, at construction or in the call:
        target (*optional*): the voice for all sources, which are then given alone.
        vocoder (*optional*): a HiFi-GAN of transformers that makes the waveform; Griffin-Lim by default. See
            `SpeechFeatureExtractor.to_waveform`.

    Raises:
        ValueError: a recording that is empty, not finite, stereo, of unknown rate or cannot be read; a source without a
            target; a model that cannot convert, or a feature extractor that belongs to another one.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        lacking = [name for name in ("convert", "encode_speaker") if not hasattr(self.model, name)]
        if lacking:
            raise ValueError(
                f"{type(self.model).__name__} has no {lacking[0]}: expected a voice converter of hf_autoencoders"
            )
        check_feature_extractor(self.feature_extractor, self.model)

    def _sanitize_parameters(self, target=None, vocoder=None, **unknown):
        if unknown:
            raise TypeError(f"unknown argument(s) {', '.join(unknown)}: this pipeline takes target and vocoder")
        preprocess = {} if target is None else {"target": target}
        return preprocess, {}, {} if vocoder is None else {"vocoder": vocoder}

    def preprocess(self, inputs: Any, target: Any = None) -> dict[str, torch.Tensor]:
        if isinstance(inputs, Mapping) and "source" in inputs:
            source, target = inputs["source"], inputs.get("target", target)
        else:
            source = inputs
        if target is None:
            raise ValueError('there is no voice to convert to: pass {"source": ..., "target": ...}, or target=...')
        waveform = self._waveform(source)
        voices = [self._features(self._waveform(clip)) for clip in _clips(target)]
        features = self._features(waveform)
        # The clips of the voice go one after the other, so that those of several rows can be batched: clip 1, 2, ...,
        # and 0 for padding.
        numbers = torch.cat([torch.full((1, clip.shape[1]), number) for number, clip in enumerate(voices, start=1)], 1)
        return {
            "input_features": features,
            "attention_mask": torch.ones(features.shape[:2], dtype=torch.long),
            "speaker_features": torch.cat(voices, 1),
            "speaker_clips": numbers,
            "num_samples": torch.tensor([len(waveform)]),
        }

    def _waveform(self, recording: Any) -> np.ndarray:
        """Any recording as a checked waveform (n,) at the rate of the model."""
        from .data.speech import read_audio

        rate = self.feature_extractor.sampling_rate
        if isinstance(recording, Mapping) and "array" in recording:
            if recording.get("sampling_rate") is None:
                raise ValueError(
                    'a recording {"array": ...} has no "sampling_rate": expected {"array": ..., "sampling_rate": ...}; '
                    f"pass the array alone if it has {rate} samples per second"
                )
            recording, rate = recording["array"], int(recording["sampling_rate"])
        elif not isinstance(recording, np.ndarray | torch.Tensor):
            recording, rate = read_audio(recording)
        return self.feature_extractor._at_own_rate(recording, rate, resample=True)

    def _features(self, waveform: np.ndarray) -> torch.Tensor:
        rate = self.feature_extractor.sampling_rate
        return self.feature_extractor(waveform, sampling_rate=rate, return_tensors="pt")["input_features"]

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        voices = []
        for features, numbers in zip(model_inputs["speaker_features"], model_inputs["speaker_clips"], strict=True):
            clips = [features[numbers == number] for number in range(1, int(numbers.max()) + 1)]
            voices.append(torch.stack([self.model.encode_speaker(clip[None])[0] for clip in clips]).mean(0))
        features, mask = model_inputs["input_features"], model_inputs["attention_mask"]
        converted = self.model.convert(features, attention_mask=mask, speaker_embeddings=torch.stack(voices))
        return {"features": converted, "attention_mask": mask, "num_samples": model_inputs["num_samples"]}

    def postprocess(self, model_outputs: dict[str, torch.Tensor], vocoder=None) -> dict[str, Any]:
        waveform = self.feature_extractor.to_waveform(
            model_outputs["features"].float(),
            model_outputs["attention_mask"],
            vocoder=vocoder,
            lengths=model_outputs["num_samples"].flatten(),
        )[0]
        return {"audio": waveform.cpu().numpy(), "sampling_rate": self.feature_extractor.sampling_rate}


def _clips(target: Any) -> list:
    """The recordings of a voice, one or more."""
    clips = list(target) if isinstance(target, list | tuple) else [target]
    if not clips:
        raise ValueError("the voice to convert to needs at least one recording, got an empty list")
    return clips


def check_feature_extractor(feature_extractor, model) -> None:
    """Check that a feature extractor can belong to a model of speech.

    Raises:
        ValueError: it cannot: its features have another size or rate.
    """
    config = model.config
    for own, name in (
        ("feature_size", "num_mel_bins"),
        ("sampling_rate", "sampling_rate"),
        ("hop_length", "hop_length"),
    ):
        found, expected = getattr(feature_extractor, own, None), getattr(config, name, None)
        if found != expected:
            raise ValueError(
                f"the feature extractor has {own}={found}, but the model {name}={expected}: they do not belong "
                "together. Load the feature extractor that was saved with the model"
            )


def check_tokenizer(tokenizer, model) -> None:
    """Check that a tokenizer can belong to a model of text.

    Raises:
        ValueError: it cannot: their vocabularies differ by more than the padding of a table.
    """
    if problem := vocabulary_problem(len(tokenizer), model.config.get_text_config().vocab_size):
        raise ValueError(f"{problem}. Load the tokenizer that was saved with the model")


def encode_text(tokenizer, text: str, max_tokens: int) -> tuple[Mapping[str, torch.Tensor], bool]:
    """Token ids of one text, `input_ids` and `attention_mask` `(1, length)`, and whether it was cut to `max_tokens`.

    The first time a text is cut the log says so.
    """
    encoded = tokenizer(text, verbose=False)
    length = len(encoded["input_ids"])
    if length > max_tokens:
        logger.warning_once(
            f"A text is longer than the {max_tokens} tokens that the model reads, and is cut there: results that have "
            '"truncated" say nothing of the rest. Said once.'
        )
        encoded = tokenizer(text, truncation=True, max_length=max_tokens)
    tensors = {name: torch.tensor([encoded[name]]) for name in ("input_ids", "attention_mask")}
    return tensors, length > max_tokens


def register() -> None:
    """Make `transformers.pipeline` know the tasks of this package. Importing this module does it."""
    known = PIPELINE_REGISTRY.get_supported_tasks()
    for task, pipeline_class, auto_class, kind in (
        (IMAGE_RECONSTRUCTION, ImageReconstructionPipeline, AutoModel, "image"),
        (IMAGE_CLUSTERING, ImageClusteringPipeline, AutoModel, "image"),
        (IMAGE_GENERATION, ImageGenerationPipeline, AutoModel, "image"),
        (ANOMALY_DETECTION, AnomalyDetectionPipeline, AutoModel, "image"),
        (TEXT_SUMMARIZATION, TextSummarizationPipeline, AutoModelForSeq2SeqLM, "text"),
        (VOICE_CONVERSION, VoiceConversionPipeline, AutoModel, "audio"),
    ):
        if task not in known:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class=pipeline_class, pt_model=auto_class, type=kind)


register()
