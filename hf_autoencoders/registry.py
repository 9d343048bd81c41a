"""The one table of variants, and their registration with the Auto classes of `transformers`.

Everything here is a name until it is asked for: importing this module imports neither torch nor transformers.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

MODELS_PACKAGE = "hf_autoencoders.models"


def _resolve(reference: str) -> Any:
    """The object called `"module.Name"` in the models folder."""
    module, name = reference.split(".")
    return getattr(importlib.import_module(f"{MODELS_PACKAGE}.{module}"), name)


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Args:
        name: short name; recipes and card are called after it (`recipes/<name>_*.yaml`, `model_cards/<name>.md`).
        title: what a reader calls it.
        config, model: `"module.Class"` in the models folder.
        processor: likewise; None where it is a class of transformers, as the tokenizers are.
        heads: Auto class in `transformers` -> `"module.Class"`, beside `AutoModel`.
        modality: `"image"`, `"audio"`, `"text"`, or `"latent"`: a prior, which reads the latents or codes of an
            auto-encoder and has no processor.
        family: close kin that share their files (`modeling_<family>.py`, `train_<family>.py`); its own when not given.
    """

    name: str
    title: str
    config: str
    model: str
    processor: str | None = None
    heads: dict[str, str] = field(default_factory=dict)
    modality: str = "image"
    family: str = ""

    def __post_init__(self):
        object.__setattr__(self, "family", self.family or self.name)

    @property
    def model_type(self) -> str:
        """`model_type` of the configuration."""
        return f"hfae_{self.name}"

    @property
    def processor_auto_class(self) -> str | None:
        """The Auto class that loads what makes model inputs; None for a prior, whose inputs an auto-encoder makes."""
        auto_classes = {"image": "AutoImageProcessor", "audio": "AutoFeatureExtractor", "text": "AutoTokenizer"}
        return auto_classes.get(self.modality)

    @property
    def auto_map(self) -> dict[str, str]:
        """What `config.json` of a published model says for each Auto class."""
        processor = {self.processor_auto_class: self.processor} if self.processor else {}
        return {"AutoConfig": self.config, "AutoModel": self.model, **self.heads, **processor}

    def config_class(self) -> type:
        """The configuration class."""
        return _resolve(self.config)

    def model_class(self) -> type:
        """The class that `AutoModel` gives."""
        return _resolve(self.model)

    def head_classes(self) -> dict[str, type]:
        """Auto class name -> model class, beside `AutoModel`."""
        return {auto_class: _resolve(reference) for auto_class, reference in self.heads.items()}

    def processor_class(self) -> type | None:
        """The processor class; None where it is one of transformers, which `processor_auto_class` finds."""
        return _resolve(self.processor) if self.processor else None


_IMAGE_PROCESSOR = "image_processing_autoencoder.AutoencoderImageProcessor"
_FEATURE_EXTRACTOR = "feature_extraction_speech.SpeechFeatureExtractor"

VARIANTS: dict[str, Variant] = {
    variant.model_type: variant
    for variant in (
        Variant(
            name="autoencoder",
            title="Auto-encoder",
            config="configuration_autoencoder.AutoencoderConfig",
            model="modeling_autoencoder.AutoencoderModel",
            processor=_IMAGE_PROCESSOR,
            heads={"AutoModelForImageClassification": "modeling_autoencoder.AutoencoderForImageClassification"},
        ),
        Variant(
            name="vae",
            title="Variational auto-encoder",
            config="configuration_vae.VAEConfig",
            model="modeling_vae.VAEModel",
            processor=_IMAGE_PROCESSOR,
        ),
        Variant(
            name="beta_vae",
            title="beta-VAE with a capacity",
            config="configuration_disentangled_vae.BetaVAEConfig",
            model="modeling_disentangled_vae.BetaVAEModel",
            processor=_IMAGE_PROCESSOR,
            family="disentangled_vae",
        ),
        Variant(
            name="beta_tcvae",
            title="beta-TC-VAE",
            config="configuration_disentangled_vae.BetaTCVAEConfig",
            model="modeling_disentangled_vae.BetaTCVAEModel",
            processor=_IMAGE_PROCESSOR,
            family="disentangled_vae",
        ),
        Variant(
            name="factor_vae",
            title="FactorVAE",
            config="configuration_disentangled_vae.FactorVAEConfig",
            model="modeling_disentangled_vae.FactorVAEModel",
            processor=_IMAGE_PROCESSOR,
            family="disentangled_vae",
        ),
        Variant(
            name="dip_vae",
            title="DIP-VAE",
            config="configuration_disentangled_vae.DIPVAEConfig",
            model="modeling_disentangled_vae.DIPVAEModel",
            processor=_IMAGE_PROCESSOR,
            family="disentangled_vae",
        ),
        Variant(
            name="categorical_autoencoder",
            title="Categorical auto-encoder",
            config="configuration_discrete_autoencoder.CategoricalAutoencoderConfig",
            model="modeling_discrete_autoencoder.CategoricalAutoencoderModel",
            processor=_IMAGE_PROCESSOR,
            family="discrete_autoencoder",
        ),
        Variant(
            name="binary_autoencoder",
            title="Binary auto-encoder",
            config="configuration_discrete_autoencoder.BinaryAutoencoderConfig",
            model="modeling_discrete_autoencoder.BinaryAutoencoderModel",
            processor=_IMAGE_PROCESSOR,
            family="discrete_autoencoder",
        ),
        Variant(
            name="joint_vae",
            title="JointVAE",
            config="configuration_discrete_autoencoder.JointVAEConfig",
            model="modeling_discrete_autoencoder.JointVAEModel",
            processor=_IMAGE_PROCESSOR,
            family="discrete_autoencoder",
        ),
        Variant(
            name="vqvae",
            title="Vector-quantised auto-encoder",
            config="configuration_vqvae.VQVAEConfig",
            model="modeling_vqvae.VQVAEModel",
            processor=_IMAGE_PROCESSOR,
        ),
        Variant(
            name="image_codec",
            title="Learned image codec",
            config="configuration_image_codec.ImageCodecConfig",
            model="modeling_image_codec.ImageCodecModel",
            processor=_IMAGE_PROCESSOR,
        ),
        Variant(
            name="seq2seq2seq",
            title="Seq2seq2seq summarizer",
            config="configuration_seq2seq2seq.Seq2Seq2SeqConfig",
            model="modeling_seq2seq2seq.Seq2Seq2SeqForConditionalGeneration",
            heads={"AutoModelForSeq2SeqLM": "modeling_seq2seq2seq.Seq2Seq2SeqForConditionalGeneration"},
            modality="text",
        ),
        Variant(
            name="voice_conversion",
            title="Voice conversion auto-encoder",
            config="configuration_voice_conversion.VoiceConversionConfig",
            model="modeling_voice_conversion.VoiceConversionModel",
            processor=_FEATURE_EXTRACTOR,
            modality="audio",
        ),
        Variant(
            name="speech_vqvae",
            title="Vector-quantised auto-encoder of speech",
            config="configuration_speech_vqvae.SpeechVQVAEConfig",
            model="modeling_speech_vqvae.SpeechVQVAEModel",
            processor=_FEATURE_EXTRACTOR,
            heads={"AutoModelForAudioTokenization": "modeling_speech_vqvae.SpeechVQVAEModel"},
            modality="audio",
        ),
        Variant(
            name="latent_prior",
            title="Prior of latents",
            config="configuration_prior.LatentPriorConfig",
            model="modeling_latent_prior.LatentPriorModel",
            modality="latent",
            family="prior",
        ),
        Variant(
            name="code_prior",
            title="Prior of codes",
            config="configuration_prior.CodePriorConfig",
            model="modeling_code_prior.CodePriorModel",
            modality="latent",
            family="prior",
        ),
    )
}


def get_variant(name: str) -> Variant:
    """The row of a variant, by short name or `model_type`.

    Raises:
        ValueError: there is no such variant; the message lists those there are.
    """
    variant = VARIANTS.get(name) or VARIANTS.get(f"hfae_{name}")
    if variant is None:
        known = ", ".join(variant.name for variant in VARIANTS.values())
        raise ValueError(f"unknown variant {name!r}: expected one of {known}")
    return variant


def _auto_classes(variant: Variant) -> Iterator[tuple[str, Callable[[], None]]]:
    """For each Auto class of a variant: its module in transformers, and the call that registers it."""
    auto = "transformers.models.auto"

    def register_config():
        from transformers import AutoConfig

        AutoConfig.register(variant.model_type, variant.config_class(), exist_ok=True)

    yield f"{auto}.configuration_auto", register_config

    for auto_class, reference in {"AutoModel": variant.model, **variant.heads}.items():

        def register_model(auto_class=auto_class, reference=reference):
            modeling_auto = sys.modules[f"{auto}.modeling_auto"]
            getattr(modeling_auto, auto_class).register(variant.config_class(), _resolve(reference), exist_ok=True)

        yield f"{auto}.modeling_auto", register_model

    if variant.modality == "audio":
        # AutoProcessor, too: it would try an image processor first, and ask whether to run code for that
        for auto_class, module in (
            ("AutoFeatureExtractor", "feature_extraction_auto"),
            ("AutoProcessor", "processing_auto"),
        ):

            def register_feature_extractor(auto_class=auto_class, module=module):
                auto_class = getattr(sys.modules[f"{auto}.{module}"], auto_class)
                auto_class.register(variant.config_class(), variant.processor_class(), exist_ok=True)

            yield f"{auto}.{module}", register_feature_extractor

    if variant.modality != "image":
        return

    def register_processor():
        # not from the top of transformers, where version 5.17 has it only beside torchvision
        sys.modules[f"{auto}.image_processing_auto"].AutoImageProcessor.register(
            variant.config_class(), image_processor_classes={"pil": variant.processor_class()}, exist_ok=True
        )

    yield f"{auto}.image_processing_auto", register_processor

    def register_no_video_processor():
        # A pipeline looks for every kind of processor. For a video processor it takes the name of our image processor
        # in a saved folder, and would ask the user whether to run code for it, did it not find an entry of ours.
        mapping = sys.modules[f"{auto}.video_processing_auto"].VIDEO_PROCESSOR_MAPPING
        mapping.register(variant.config_class(), {"torchvision": None}, exist_ok=True)

    yield f"{auto}.video_processing_auto", register_no_video_processor


def _register_table_processor() -> None:
    """`AutoFeatureExtractor` finds the processor of tables by the name that its file has; no configuration leads to it,
    since a model of images has the same."""
    base = _resolve("configuration_base.ImageAutoencoderConfig")
    auto = sys.modules["transformers.models.auto.feature_extraction_auto"].AutoFeatureExtractor
    auto.register(base, _resolve("feature_extraction_table.TableProcessor"), exist_ok=True)


class _AutoRegistration(importlib.abc.MetaPathFinder):
    """Registers the variants with each Auto class, and the pipelines, once transformers' module for these is imported.

    Registration needs the classes, hence torch: a second or more that `import hf_autoencoders` alone shall not cost. It
    also needs modules of transformers that may be half imported at that moment, since nearly all of them lead to the
    Auto classes and back. So it waits until no module of transformers, and none of our own models, is half imported.
    """

    def __init__(self):
        self.pending = [row for variant in VARIANTS.values() for row in _auto_classes(variant)]
        self.pending.append(("transformers.models.auto.feature_extraction_auto", _register_table_processor))
        register_pipelines = partial(importlib.import_module, "hf_autoencoders.pipelines")
        self.pending.append(("transformers.pipelines", register_pipelines))
        self.running: set[str] = set()  # modules whose code has started and not yet ended

    def find_spec(self, fullname, path=None, target=None):
        if not self.pending or not fullname.startswith(("transformers.", f"{MODELS_PACKAGE}.")):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        exec_module = spec.loader.exec_module

        def exec_and_register(module):
            self.running.add(fullname)
            try:
                exec_module(module)
            finally:
                self.running.discard(fullname)
            self.register()

        spec.loader.exec_module = exec_and_register
        return spec

    def register(self) -> None:
        """Register everything that can be registered now."""
        for row in list(self.pending):
            auto_module, call = row
            if auto_module in sys.modules and row in self.pending and not self.running:
                self.pending.remove(row)
                call()


def register_auto_classes() -> None:
    """Make `AutoConfig`, `AutoModel`, the heads' Auto classes, those of processors, and `pipeline` know every variant.

    `AutoTokenizer` needs no telling: a saved tokenizer names its class itself. What is imported already is told at
    once, the rest when it is imported. Called by `import hf_autoencoders`.
    """
    if any(isinstance(finder, _AutoRegistration) for finder in sys.meta_path):
        return
    finder = _AutoRegistration()
    sys.meta_path.insert(0, finder)
    finder.register()
