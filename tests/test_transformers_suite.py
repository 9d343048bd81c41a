"""The model tests of transformers itself, on every variant: one class of tests for each row of the registry.

They ship in the source distribution of transformers; `scripts/fetch_transformers_tests.py` unpacks them. That has the
common test files only, not the sub-packages they import three names from; those names are defined here.
Cases that cannot apply are overridden one by one, each with its reason.
"""

import importlib
import inspect
import os
import sys
import types
import unittest
import unittest.mock
from pathlib import Path

import pytest
import tiny
import torch
from transformers.models.auto import modeling_auto

from hf_autoencoders import VARIANTS, AutoencoderImageProcessor

# Those with every kind of layer.
IMAGE_NAMES = [name for name in tiny.IMAGE_NAMES if tiny.config(name).architecture == "resnet"]
TEXT_NAMES = ["seq2seq2seq-pointer", "seq2seq2seq-critic"]
SPEECH_NAMES = ["voice_conversion-plain", "voice_conversion-vq", "speech_vqvae-residual"]
PRIOR_NAMES = ["latent_prior-realnvp", "latent_prior-mixture", "code_prior-residual"]
TABLES = {
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForAudioTokenization": "MODEL_FOR_AUDIO_TOKENIZATION_NAMES",
}
FOLDER = Path(os.environ["HFAE_TRANSFORMERS_TESTS"])
if not (FOLDER / "test_modeling_common.py").is_file():
    pytest.skip(
        f"the tests of transformers are not in {FOLDER}: run scripts/fetch_transformers_tests.py, as `make test` does",
        allow_module_level=True,
    )

PACKAGE = "transformers_tests"
STAND_INS = {
    # Its export tests are for the exporters of transformers; ours are in test_models_common.py.
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    # Asked for by isinstance only. Its tests are not in the distribution; ours are in test_seq2seq2seq.py.
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    # Values other than the defaults for the fields that every configuration has.
    "utils.test_configuration_utils": {
        "config_common_kwargs": {
            "return_dict": False,
            "output_hidden_states": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 5,
            "architectures": ["BertModel"],
            "id2label": {0: "label"},
            "label2id": {"label": 0},
            "problem_type": "regression",
        }
    },
}


def import_from_suite(module: str):
    """A module of the suite, imported as part of a package that is not called `tests`, as ours is."""
    if PACKAGE not in sys.modules:
        names = ["", *{name.split(".")[0] for name in STAND_INS}, *STAND_INS]
        for name in names:
            full_name = f"{PACKAGE}.{name}" if name else PACKAGE
            sys.modules[full_name] = stand_in = types.ModuleType(full_name)
            stand_in.__path__ = [str(FOLDER)] if not name else []
            vars(stand_in).update(STAND_INS.get(name, {}))
    # Its configuration tests look for the `__init__.py` beside them, which is not there, and never use what they find.
    with unittest.mock.patch("transformers.utils.direct_transformers_import"):
        return importlib.import_module(f"{PACKAGE}.{module}")


modeling_common = import_from_suite("test_modeling_common")
ModelTesterMixin, GenerationTesterMixin = modeling_common.ModelTesterMixin, modeling_common.GenerationTesterMixin
ConfigTester = import_from_suite("test_configuration_common").ConfigTester
with unittest.mock.patch.dict(sys.modules, fetch_hub_objects_for_ci=unittest.mock.Mock()):  # of their CI; unused here
    image_processing_common = import_from_suite("test_image_processing_common")


class ModelTester:
    """What the suite asks about a model: its configuration and a batch of inputs."""

    batch_size = 4
    is_training = True

    def __init__(self, name: str):
        self.name = name
        if name in tiny.TEXT_NAMES:
            self.seq_length = self.encoder_seq_length = self.decoder_seq_length = 7
            self.image_size = self.patch_size = 1  # asked for where `forward` takes `noise`, as those of images do
            self.hidden_size, self.num_hidden_layers = tiny.T5["d_model"], tiny.T5["num_layers"]
            self.num_attention_heads, self.vocab_size = tiny.T5["num_heads"], tiny.VOCAB_SIZE

    def get_config(self):
        return tiny.config(self.name)

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        if self.name in tiny.TEXT_NAMES:
            source, target = (
                torch.randint(3, tiny.VOCAB_SIZE, (self.batch_size, length))
                for length in (self.encoder_seq_length, self.decoder_seq_length)
            )
            mask = torch.ones_like(source)
            return config, {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target}
        if self.name in tiny.SPEECH_NAMES:
            return config, tiny.speech(config, self.batch_size)
        if self.name in tiny.PRIOR_NAMES:
            return config, tiny.encoded(config, self.batch_size)
        return config, {"pixel_values": tiny.images(config, self.batch_size)}


class VariantTests(ModelTesterMixin):
    """The suite, set up for auto-encoders."""

    name: str  # of the tiny configuration
    test_can_init_all_missing_weights_before_2023 = True  # the year is that of a copyright line, which our files lack

    def setUp(self):
        self.variant = VARIANTS[f"hfae_{self.name.partition('-')[0]}"]
        classes = (self.variant.model_class(), *self.variant.head_classes().values())
        self.all_model_classes = tuple(dict.fromkeys(classes))
        self.model_tester = ModelTester(self.name)
        # The suite knows a head by its place in the tables of native models, which registration leaves alone.
        for auto_class, model_class in self.variant.head_classes().items():
            table = getattr(modeling_auto, TABLES[auto_class])
            patch = unittest.mock.patch.dict(table, {self.variant.model_type: model_class.__name__})
            patch.start()
            self.addCleanup(patch.stop)

    def test_base_model_prefix_loads_base_weights(self):
        # It does nothing for models that are not in the table of base models. They are not in it for all tests because
        # base models have no loss there, and would not be trained.
        name = self.variant.model_class().__name__
        with unittest.mock.patch.dict(modeling_auto.MODEL_MAPPING_NAMES, {self.variant.model_type: name}):
            super().test_base_model_prefix_loads_base_weights()


class ImageVariantTests(VariantTests):
    """The suite, set up for image auto-encoders."""

    has_attentions = False
    test_resize_embeddings = False

    def test_config(self):
        tester = ConfigTester(
            self,
            config_class=self.variant.config_class(),
            has_text_modality=False,
            common_properties=["hidden_size", "num_channels"],
            image_size=12,
            num_channels=2,
        )
        tester.run_common_tests()

    def test_hidden_states_output(self):
        # It expects (batch, sequence, width) of each layer; ours are the maps of each level of the encoder.
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = model_class(config).eval()
            by_argument = model(**inputs, output_hidden_states=True).hidden_states
            expected = [
                (self.model_tester.batch_size, channels, *size)
                for channels, size in zip(config.hidden_sizes, config.level_sizes[1:], strict=True)
            ]
            self.assertEqual([tuple(state.shape) for state in by_argument], expected)
            self.assertIsNone(model(**inputs).hidden_states)
            model.config.output_hidden_states = True
            for one, other in zip(model(**inputs).hidden_states, by_argument, strict=True):
                self.assertTrue(torch.equal(one, other))

    @unittest.skip("There are no embeddings of inputs; the encoder starts with a layer on the pixels.")
    def test_model_get_set_embeddings(self):
        pass


class SpeechVariantTests(VariantTests):
    """The suite, set up for auto-encoders of speech."""

    has_attentions = False
    test_resize_embeddings = False

    def test_config(self):
        tester = ConfigTester(
            self,
            config_class=self.variant.config_class(),
            has_text_modality=False,
            common_properties=["hidden_size", "num_mel_bins"],
            num_mel_bins=12,
            hidden_size=10,
        )
        tester.run_common_tests()

    def test_hidden_states_output(self):
        # It expects as many frames of each layer as of the input; here the first blocks halve their number.
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = model_class(config).eval()
            by_argument = model(**inputs, output_hidden_states=True).hidden_states
            frames, expected = inputs["input_features"].shape[1], []
            for block in range(config.num_encoder_blocks):
                frames = (frames + 1) // 2 if block < config.num_downsamplings else frames
                expected.append((self.model_tester.batch_size, frames, config.hidden_size))
            self.assertEqual([tuple(state.shape) for state in by_argument], expected)
            self.assertIsNone(model(**inputs).hidden_states)
            model.config.output_hidden_states = True
            for one, other in zip(model(**inputs).hidden_states, by_argument, strict=True):
                self.assertTrue(torch.equal(one, other))

    @unittest.skip("There are no embeddings of inputs; the encoder starts with a layer on the features.")
    def test_model_get_set_embeddings(self):
        pass

    @unittest.skip(
        "Hidden states are given frames first: as views of what goes on, channels first, through the network."
    )
    def test_retain_grad_hidden_states_attentions(self):
        pass


class PriorVariantTests(VariantTests):
    """The suite, set up for priors of latents and codes."""

    has_attentions = False
    test_resize_embeddings = False

    def test_config(self):
        tester = ConfigTester(
            self,
            config_class=self.variant.config_class(),
            has_text_modality=False,
            common_properties=["hidden_size", "num_hidden_layers"],
            hidden_size=12,
            num_hidden_layers=1,
        )
        tester.run_common_tests()

    @unittest.skip("A prior says how likely latents or codes are; what its layers have found is no output.")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("The same.")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip("Latents have no embeddings, and codes only those within the GPT-2, tokens of classes among them.")
    def test_model_get_set_embeddings(self):
        pass


class TextVariantTests(VariantTests, GenerationTesterMixin):
    """The suite, set up for the summarizer: what it is to the suite is its first half, a sequence to sequence model."""

    is_encoder_decoder = True

    def test_config(self):
        # Two parts are of one class; the suite loads a part from the file of the whole, and finds the first of a class.
        class Tester(ConfigTester):
            def create_and_test_config_from_and_save_pretrained_composite(self):
                pass

        common = ["hidden_size", "num_attention_heads", "num_hidden_layers"]
        tester = Tester(self, config_class=self.variant.config_class(), has_text_modality=False)
        tester.run_common_tests()
        for name in common:
            self.assertTrue(hasattr(self.variant.config_class()(), name))

    @unittest.skip("The summarizer is no base model of which a configuration of the whole could be read.")
    def test_correct_missing_keys(self):
        pass

    def check_training_gradient_checkpointing(self, *args, **kwargs):
        # It wants a gradient for every parameter. With labels only the summarizer learns; all parts do without.
        def whole_auto_encoder(inputs, model_class, return_labels=False):
            targets = {} if self.name == "seq2seq2seq-pointer" else {"target_ids": inputs["decoder_input_ids"]}
            return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], **targets}

        with unittest.mock.patch.object(self, "_prepare_for_class", whole_auto_encoder):
            super().check_training_gradient_checkpointing(*args, **kwargs)

    def test_encoder_decoder_loss_no_double_shift(self):
        # It differentiates by the logits. The loss of a copy head takes the labels' probabilities alone, beside them.
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            labels = inputs.pop("decoder_input_ids")
            outputs = model_class(config).eval()(**inputs, labels=labels)
            for shift, equal in ((0, True), (1, False)):
                logits = outputs.logits[:, : labels.shape[1] - shift].flatten(0, 1)
                expected = torch.nn.functional.cross_entropy(logits, labels[:, shift:].flatten())
                self.assertEqual(torch.isclose(outputs.loss, expected, rtol=1e-4).item(), equal)


# Marked slow by the suite: kernels of attention, which these models lack; compilation (ours: test_models_common.py); a
# processor in a process that does not know this package. Hidden, so that `-m slow` selects our own tests only.
for tests in (VariantTests, image_processing_common.ImageProcessingTestMixin):
    for name, test in inspect.getmembers(tests, callable):
        if any(mark.name == "slow" for mark in getattr(test, "pytestmark", ())):
            setattr(tests, name, None)


def test_every_variant_is_here():
    names = IMAGE_NAMES + TEXT_NAMES + SPEECH_NAMES + PRIOR_NAMES
    assert {name.partition("-")[0] for name in names} == set(tiny.VARIANT_NAMES)


for names, tests in (
    (IMAGE_NAMES, ImageVariantTests),
    (TEXT_NAMES, TextVariantTests),
    (SPEECH_NAMES, SpeechVariantTests),
    (PRIOR_NAMES, PriorVariantTests),
):
    for name in names:
        class_name = "".join(part.capitalize() for part in name.split("-")) + "Test"
        globals()[class_name] = type(class_name, (tests, unittest.TestCase), {"name": name})
del name, names, test, tests


class ImageProcessorTester(image_processing_common.ImageProcessingTester):
    """What the suite asks about an image processor."""

    def __init__(self, parent, **kwargs):
        super().__init__(parent, **{"size": {"height": 18, "width": 20}, "num_channels": 3, **kwargs})

    def _get_image_processing_classes(self):
        return {"pil": AutoencoderImageProcessor}


class ImageProcessorTest(image_processing_common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageProcessorTester

    @unittest.skip("It passes image_mean and do_convert_rgb, which this processor refuses: pixels stay in [0, 1].")
    def test_call_numpy_4_channels(self):
        pass

    @unittest.skip("It sets do_convert_rgb, which this processor does not have: num_channels says what comes out.")
    def test_image_processor_from_dict_with_kwargs_has_attributes(self):
        pass

    @unittest.skip("Demanded of new models of transformers itself; this processor has to work without torchvision.")
    def test_new_models_require_torchvision_backend(self):
        pass
