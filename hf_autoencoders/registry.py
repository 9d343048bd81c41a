"""The one table of variants, and their registration with the Auto classes of `transformers`.

Everything here is a name until it is asked for: importing this module imports neither torch nor transformers.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
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
        name: short name; files are called after it (`modeling_<name>.py`, `train_<name>.py`, `model_cards/<name>.md`).
        title: what a reader calls it.
        config, model, processor: `"module.Class"` in the models folder.
        heads: Auto class in `transformers` -> `"module.Class"`, beside `AutoModel`.
        modality: `"image"`, `"audio"` or `"text"`.
    """

    name: str
    title: str
    config: str
    model: str
    processor: str
    heads: dict[str, str] = field(default_factory=dict)
    modality: str = "image"

    @property
    def model_type(self) -> str:
        """`model_type` of the configuration."""
        return f"hfae_{self.name}"

    @property
    def auto_map(self) -> dict[str, str]:
        """What `config.json` of a published model says for each Auto class."""
        processor = {"image": "AutoImageProcessor"}[self.modality]
        return {"AutoConfig": self.config, "AutoModel": self.model, **self.heads, processor: self.processor}

    def config_class(self) -> type:
        """The configuration class."""
        return _resolve(self.config)

    def model_class(self) -> type:
        """The class that `AutoModel` gives."""
        return _resolve(self.model)

    def head_classes(self) -> dict[str, type]:
        """Auto class name -> model class, beside `AutoModel`."""
        return {auto_class: _resolve(reference) for auto_class, reference in self.heads.items()}

    def processor_class(self) -> type:
        """The processor class."""
        return _resolve(self.processor)


_IMAGE_PROCESSOR = "image_processing_autoencoder.AutoencoderImageProcessor"

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
            name="vqvae",
            title="Vector-quantised auto-encoder",
            config="configuration_vqvae.VQVAEConfig",
            model="modeling_vqvae.VQVAEModel",
            processor=_IMAGE_PROCESSOR,
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


def _register_configs() -> None:
    from transformers import AutoConfig

    for variant in VARIANTS.values():
        AutoConfig.register(variant.model_type, variant.config_class(), exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto import modeling_auto

    for variant in VARIANTS.values():
        classes = {"AutoModel": variant.model_class(), **variant.head_classes()}
        for auto_class, model_class in classes.items():
            getattr(modeling_auto, auto_class).register(variant.config_class(), model_class, exist_ok=True)


def _register_image_processors() -> None:
    from transformers import AutoImageProcessor

    for variant in VARIANTS.values():
        if variant.modality == "image":
            AutoImageProcessor.register(
                variant.config_class(), image_processor_classes={"pil": variant.processor_class()}, exist_ok=True
            )


_AFTER_IMPORT: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_image_processors,
}


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Registers the variants with an Auto class when the module of that class is first imported.

    Registration needs the classes, hence torch: a second or more that `import hf_autoencoders` alone shall not cost.
    """

    def find_spec(self, fullname, path=None, target=None):
        register = _AFTER_IMPORT.get(fullname)
        if register is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        exec_module = spec.loader.exec_module

        def exec_and_register(module):
            exec_module(module)
            register()

        spec.loader.exec_module = exec_and_register
        return spec


def register_auto_classes() -> None:
    """Make `AutoConfig`, `AutoModel`, the heads' Auto classes and `AutoImageProcessor` know every variant.

    What is imported already is told at once, the rest when it is imported. Called by `import hf_autoencoders`.
    """
    for module, register in _AFTER_IMPORT.items():
        if module in sys.modules:
            register()
    if not any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfterImport())
