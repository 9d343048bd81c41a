"""The table of variants, and that the Auto classes know it whatever is imported first."""

import subprocess
import sys
import textwrap

import pytest
import transformers

import hf_autoencoders
from hf_autoencoders import VARIANTS, get_variant


def test_rows_name_things_that_exist():
    for model_type, variant in VARIANTS.items():
        config_class, model_class = variant.config_class(), variant.model_class()
        assert variant.model_type == model_type == config_class.model_type
        assert model_class.config_class is config_class
        if variant.modality == "latent":
            assert variant.processor_auto_class is None
        else:
            assert hasattr(transformers, variant.processor_auto_class)
        if variant.processor:
            assert variant.processor_class().__name__ == variant.processor.split(".")[1]
        else:
            assert variant.processor_class() is None and variant.modality in ("text", "latent")
        assert variant.title and variant.modality in ("image", "audio", "text", "latent")
        for auto_class, head in variant.head_classes().items():
            assert hasattr(transformers, auto_class)
            assert head.config_class is config_class and head.base_model_prefix == model_class.base_model_prefix


def test_names_are_safe():
    """Prefixed types never collide with those of transformers; a class called ...Tokenizer... would not load."""
    for variant in VARIANTS.values():
        assert variant.model_type.startswith("hfae_")
        for reference in variant.auto_map.values():
            assert "Tokenizer" not in reference and reference.count(".") == 1


def test_public_names():
    for name in hf_autoencoders.__all__:
        assert getattr(hf_autoencoders, name) is not None
        assert name in dir(hf_autoencoders)
    for variant in VARIANTS.values():
        assert {reference.split(".")[1] for reference in variant.auto_map.values()} <= set(hf_autoencoders.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        hf_autoencoders.Nothing  # noqa: B018


def test_get_variant():
    for variant in VARIANTS.values():
        assert get_variant(variant.name) is get_variant(variant.model_type) is variant
    with pytest.raises(
        ValueError, match="unknown variant 'gan': expected one of autoencoder, vae, beta_vae, beta_tcvae, "
    ):
        get_variant("gan")


def test_registering_again_changes_nothing():
    finders = list(sys.meta_path)
    hf_autoencoders.register_auto_classes()
    assert sys.meta_path == finders


ORDERS = {
    "package first": "import hf_autoencoders\nfrom transformers import AutoModel, AutoConfig, Trainer",
    "Auto classes first": "from transformers import AutoModel, AutoConfig, Trainer\nimport hf_autoencoders",
    "package, then PreTrainedModel": "import hf_autoencoders\nfrom transformers import PreTrainedModel",
    "package, then a T5": "import hf_autoencoders\nfrom transformers import T5ForConditionalGeneration, AutoModel",
    "package, then T5's configuration": "import hf_autoencoders\nfrom transformers import T5Config, AutoModel",
    "package, then another model": "import hf_autoencoders\nfrom transformers import BertModel, AutoModel",
    "a model's module first": "from hf_autoencoders.models.modeling_vae import VAEModel",
    "a configuration's module first": "from hf_autoencoders.models.configuration_vqvae import VQVAEConfig",
    "the processor's module first": (
        "from hf_autoencoders.models.image_processing_autoencoder import AutoencoderImageProcessor"
    ),
    "the feature extractor's module first": (
        "from hf_autoencoders.models.feature_extraction_speech import SpeechFeatureExtractor"
    ),
    "a speech model's module first": "from hf_autoencoders.models.modeling_speech_vqvae import SpeechVQVAEModel",
    "AutoFeatureExtractor first": "from transformers import AutoFeatureExtractor, AutoModel\nimport hf_autoencoders",
    "a prior's module first": "from hf_autoencoders.models.modeling_code_prior import CodePriorModel",
    "a text model's module first": "from hf_autoencoders.models.pointer_t5 import PointerT5ForConditionalGeneration",
    "a name of the package first": "from hf_autoencoders import AutoencoderForImageClassification",
}
KNOWN = """
    import transformers
    from hf_autoencoders import VARIANTS
    t5 = {"vocab_size": 8, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_layers": 1, "num_heads": 1}
    small = {"image": {"hidden_sizes": (4,)}, "text": {"summarizer": t5, "reconstructor": t5}}
    small |= {"audio": {"hidden_size": 4, "num_mel_bins": 4}, "latent": {"hidden_size": 4}}
    for model_type, variant in VARIANTS.items():
        config = transformers.AutoConfig.for_model(model_type, **small[variant.modality])
        assert type(config) is variant.config_class()
        assert type(transformers.AutoModel.from_config(config)) is variant.model_class()
        for auto_class, head in variant.head_classes().items():
            assert type(getattr(transformers, auto_class).from_config(config)) is head
        if variant.modality == "audio":
            auto = transformers.models.auto
            for mapping in (
                auto.feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING,
                auto.processing_auto.PROCESSOR_MAPPING,
            ):
                assert mapping[type(config)] is variant.processor_class()
            continue
        if not variant.processor:
            continue
        processors = transformers.models.auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING[type(config)]
        assert variant.processor_class() in (
            processors.values() if isinstance(processors, dict) else processors
        ), processors
"""


def test_registration_in_every_order_of_imports():
    """Each order in a process of its own, forked from one that has imported torch and nothing of ours."""
    script = """
    import os, sys, traceback
    import torch, torch._dynamo, torch.distributed.tensor, torch.distributed.fsdp  # what transformers would import, too
    import numpy, PIL.Image, huggingface_hub, safetensors, scipy.optimize
    assert not any(name.split(".")[0] in ("transformers", "hf_autoencoders") for name in sys.modules)
    orders, known = eval(sys.argv[1]), sys.argv[2]
    failed = []
    for name, order in orders.items():
        process = os.fork()
        if not process:
            try:
                exec(order + "\\n" + known, {})
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if os.waitpid(process, 0)[1]:
            failed.append(name)
    sys.exit(f"failed: {failed}" if failed else 0)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), repr(ORDERS), textwrap.dedent(KNOWN)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_heavy():
    script = (
        "import sys, hf_autoencoders; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
