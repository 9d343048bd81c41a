"""The checks that every variant passes: they walk the registry, on the tiny configurations of `tiny.py`."""

import copy
import dataclasses
import inspect
import itertools
import pickle
import warnings

import pytest
import tiny
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, Trainer, TrainingArguments

from hf_autoencoders import VARIANTS
from hf_autoencoders.models.configuration_base import DETECTOR_FIELDS
from hf_autoencoders.models.configuration_seq2seq2seq import FOR_SUMMARIES_ALONE
from hf_autoencoders.models.layers import ResidualBlock
from hf_autoencoders.models.speech_layers import SpeechBlock

every_configuration = pytest.mark.parametrize("name", tiny.NAMES)
every_variant = pytest.mark.parametrize("name", tiny.FIRST.values(), ids=list(tiny.FIRST))
IMAGE_VARIANTS = [variant for variant in VARIANTS.values() if variant.modality == "image"]
every_image_configuration = pytest.mark.parametrize("name", tiny.IMAGE_NAMES)
every_image_variant = pytest.mark.parametrize("name", [tiny.FIRST[row.name] for row in IMAGE_VARIANTS])
DEEP = [name for name in tiny.IMAGE_NAMES if tiny.config(name).architecture == "resnet"] + tiny.SPEECH_NAMES
HEADS = [  # that are put on the model that AutoModel gives
    (variant, auto_class)
    for variant in VARIANTS.values()
    for auto_class, reference in variant.heads.items()
    if reference != variant.model
]


def variant_of(name):
    return VARIANTS[f"hfae_{name.partition('-')[0]}"]


def trained(name, steps=2, seed=0, **fields):
    """A model after a few training steps, in evaluation mode: no tensor of its state is as it was initialised."""
    model = tiny.model(name, seed, **fields).train()
    train(model, steps, seed)
    if hasattr(model, "set_word_starts"):
        model.set_word_starts(tiny.tokenizer())
    return model.eval()


def train(model, steps=2, seed=0, forward=None, learning_rate=0.05, inputs=tiny.inputs):
    """Losses of training steps on random batches, with noise from the global generator."""
    forward = model if forward is None else forward
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    losses = []
    for step in range(steps):
        loss = forward(**inputs(model.config, seed=100 * seed + step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_equal_outputs(one, other):
    assert list(one) == list(other)
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}")


def assert_close_outputs(one, other, **tolerances):
    assert list(one) == list(other)
    for key in one:
        torch.testing.assert_close(one[key], other[key], **tolerances, msg=lambda text, key=key: f"{key}: {text}")


def aliases(model) -> dict[str, set[str]]:
    """Key of the state -> all keys of the same tensor, itself included."""
    places = {key: value.data_ptr() for key, value in model.state_dict().items()}
    return {key: {other for other in places if places[other] == place} for key, place in places.items()}


def assert_equal_states(one, other, **tolerances):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    for key in one:
        tolerances = tolerances or {"rtol": 0, "atol": 0}
        torch.testing.assert_close(one[key], other[key], **tolerances, msg=lambda text, key=key: f"{key}: {text}")


# ---- the table


def test_every_variant_has_tiny_configurations():
    assert set(tiny.FIELDS) == set(VARIANTS)
    deep = {variant.name for variant in VARIANTS.values() if variant.modality in ("image", "audio")}
    assert {name.partition("-")[0] for name in DEEP} == deep


# ---- saving and loading


@every_configuration
def test_auto_classes_load_what_was_saved(name, tmp_path):
    model, variant = trained(name), variant_of(name)
    model.save_pretrained(tmp_path)

    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is variant.config_class()
    assert config.to_dict() | {"_name_or_path": ""} == model.config.to_dict()

    for auto_class in ("AutoModel", *(key for key, reference in variant.heads.items() if reference == variant.model)):
        loaded, info = getattr(transformers, auto_class).from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is variant.model_class()
        assert not any(info.values()), info
        assert not loaded.training
        assert_equal_states(model, loaded)
        inputs = tiny.training_inputs(model)
        assert_equal_outputs(model(**inputs), loaded(**inputs))
        if model.can_generate():
            assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
            assert torch.equal(loaded.generate(inputs["input_ids"]), model.generate(inputs["input_ids"]))


@every_image_configuration
def test_image_processors_load_with_the_model(name, tmp_path):
    model, variant = tiny.model(name), variant_of(name)
    config = model.config
    model.save_pretrained(tmp_path)
    pixel_values = tiny.images(config)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is variant.processor_class()
    array = tiny.images(config).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    array = list(array[..., 0]) if config.num_channels == 1 else list(array)
    processed = processor(array, input_data_format="channels_last", return_tensors="pt").pixel_values
    torch.testing.assert_close(processed, pixel_values)


@every_configuration
def test_from_config_builds_the_same_model(name):
    model = tiny.model(name)
    torch.manual_seed(0)
    assert_equal_states(model, AutoModel.from_config(tiny.config(name)))


@pytest.mark.parametrize(("variant", "auto_class"), HEADS, ids=str)
def test_heads_load_from_a_base_model(variant, auto_class, tmp_path):
    base = trained(tiny.FIRST[variant.name])
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    head, info = getattr(transformers, auto_class).from_pretrained(
        tmp_path / "base", num_labels=3, output_loading_info=True
    )
    assert type(head) is variant.head_classes()[auto_class]
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    new = {key for key in head.state_dict() if not key.startswith(f"{head.base_model_prefix}.")}
    assert new and set(info["missing_keys"]) == new
    base_state = base.state_dict()
    for key, value in head.base_model.state_dict().items():
        assert torch.equal(value, base_state[key]), key
    for key in new:
        value = head.state_dict()[key]
        assert value.isfinite().all() and value.abs().max() < 1, key
    pixel_values = tiny.images(head.config)
    head.save_pretrained(tmp_path / "head")
    loaded = getattr(transformers, auto_class).from_pretrained(tmp_path / "head")
    assert_equal_outputs(head.eval()(pixel_values), loaded(pixel_values))


@every_configuration
@pytest.mark.parametrize("kept_half", [0, 1])
def test_partial_checkpoints_keep_what_is_there_and_initialise_the_rest(name, kept_half):
    model = trained(name)
    state = model.state_dict()
    kept = dict(itertools.islice(state.items(), kept_half, None, 2))
    torch.manual_seed(1)
    loaded = type(model).from_pretrained(
        None, config=tiny.config(name), state_dict={k: v.clone() for k, v in kept.items()}
    )
    fresh, same = tiny.model(name, seed=2), aliases(model)
    buffers = dict(loaded.named_buffers())
    for key, value in loaded.state_dict().items():
        expected = fresh.state_dict()[key]
        assert value.dtype == expected.dtype and value.device.type == "cpu"
        if same[key] & set(kept):
            assert torch.equal(value, state[key]), f"{key} was overwritten"
        elif key in buffers or expected.numel() > 1 == expected.unique().numel():
            assert torch.equal(value, expected), f"{key} is not as initialised"
        elif expected.numel() == 1:
            assert torch.equal(value, expected) or value.abs() < 1, key
        else:
            assert value.abs().max() <= expected.abs().max() * 2 and value.std() >= expected.std() / 2, key


@every_configuration
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_loading(name, dtype, tmp_path):
    model = trained(name)
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    kept = set(getattr(half, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept |= set(getattr(half, "_keep_in_fp32_modules", None) or ())
    of_floats = name.startswith("latent_prior")  # the only one to stay in float32 as a whole
    assert half.dtype == (torch.float32 if of_floats else dtype)
    for key, value in half.state_dict().items():
        original = model.state_dict()[key]
        if kept & set(key.split(".")):
            assert torch.equal(value, original), f"{key} should have stayed as it was"
        else:
            assert value.dtype == (dtype if original.is_floating_point() else original.dtype), key
    inputs = tiny.training_inputs(model)
    expected, outputs = model(**inputs), half(**inputs)
    if name in tiny.PRIOR_NAMES:
        assert outputs.log_prob.dtype == torch.float32
    else:
        assert outputs.latents.dtype == dtype and outputs.get("reconstruction", outputs.latents).dtype == dtype
    assert outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=0.05, atol=0.01)
    assert type(outputs.loss.item()) is float
    half.train()(**inputs).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in half.parameters() if parameter.grad is not None)


@every_variant
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_map(name, device_map, tmp_path):
    model = trained(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, device_map=device_map)
    inputs = tiny.inputs(model.config)
    torch.testing.assert_close(loaded(**inputs).loss.cpu(), model(**inputs).loss)


@every_configuration
def test_copies(name):
    model = trained(name)
    inputs = tiny.inputs(model.config)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal_outputs(model(**inputs), other(**inputs))
        train(other)  # and a copy shares nothing with its original
        assert not torch.equal(model(**inputs).loss, other(**inputs).loss)


def test_corrupt_weights_are_refused(tmp_path):
    model = tiny.model(tiny.NAMES[0])
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    for wrong in (data[: len(data) // 2], b"", b"not a safetensors file at all"):
        file.write_bytes(wrong)
        with pytest.raises(Exception, match=r"(?i)safetensors|header|deserializ|incomplete|corrupt"):
            AutoModel.from_pretrained(tmp_path)


@every_variant
def test_weights_of_another_size_are_refused(name, tmp_path):
    model = tiny.model(name)
    model.save_pretrained(tmp_path)
    if name in tiny.SPEECH_NAMES + tiny.PRIOR_NAMES:
        other = tiny.config(name, hidden_size=2 * model.config.hidden_size)
    elif name in tiny.TEXT_NAMES:
        other = tiny.config(name, **{part: {**tiny.COPYING, "d_ff": 48} for part in ("summarizer", "reconstructor")})
    else:
        other = tiny.config(name, hidden_sizes=tuple(2 * size for size in model.config.hidden_sizes))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModel.from_pretrained(tmp_path, config=other)


# ---- training


@every_configuration
def test_every_parameter_gets_a_gradient(name):
    model = tiny.model(name).train()
    inputs = tiny.training_inputs(model)
    model(**inputs).loss.backward()
    if name == "seq2seq2seq-prior":  # which is trained beforehand
        model(target_ids=inputs["target_ids"]).loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", DEEP)
def test_gradient_checkpointing_gives_the_same_gradients(name):
    plain = tiny.model(name).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    calls = {plain: 0, checkpointed: 0}

    def count(model):
        def hook(*_):
            calls[model] += 1

        return hook

    for model in (plain, checkpointed):
        for block in [module for module in model.modules() if isinstance(module, (ResidualBlock, SpeechBlock))]:
            block.conv1.register_forward_hook(count(model))
        model(**tiny.training_inputs(model)).loss.backward()
    assert calls[checkpointed] == 2 * calls[plain] > 0  # once more in the backward pass
    for (key, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda text, key=key: f"{key}: {text}")
    assert_equal_states(plain, checkpointed)


@every_configuration
def test_training_is_a_function_of_the_seed(name):
    first, second, other = (tiny.model(name).train() for _ in range(3))
    losses = train(first, steps=3, seed=5)
    assert train(second, steps=3, seed=5) == losses
    assert_equal_states(first, second)
    assert train(other, steps=3, seed=6) != losses


@every_configuration
def test_evaluation_is_deterministic_and_changes_nothing(name):
    model = trained(name)
    before = copy.deepcopy(model)
    inputs = tiny.inputs(model.config)
    first = model(**inputs)
    torch.manual_seed(99)
    assert_equal_outputs(first, model(**inputs))
    if "pixel_values" in inputs:
        encoded = model.encode(inputs["pixel_values"])
        assert torch.equal(model.decode(encoded.latents), first.reconstruction)
    elif name in tiny.PRIOR_NAMES:
        main = inputs.pop(model.main_input_name)
        assert torch.equal(model.log_prob(main, **inputs), first.log_prob)
        encoded = None
    elif "input_features" in inputs:
        mask = inputs["attention_mask"]
        encoded = model.encode(inputs["content_features"], mask)
        voice = model.encode_speaker(inputs["speaker_features"], inputs["speaker_attention_mask"])
        assert torch.equal(model.decode(encoded.latents, voice, mask), first.reconstruction)
    else:
        inputs.pop("target_ids", None)
        encoded = model.encode(**inputs, num_words=model.config.summary_words)
        assert torch.equal(encoded.codes, first.codes)
    assert encoded is None or torch.equal(encoded.latents, first.latents)
    assert_equal_states(before, model)


@every_configuration
def test_encoding_never_trains(name):
    """`encode`, `decode` and a prior's `sample` may be called on a model in training mode and leave its state alone."""
    model = trained(name).train()
    before = copy.deepcopy(model)
    inputs = tiny.inputs(model.config)
    if "pixel_values" in inputs:
        model.decode(model.encode(inputs["pixel_values"]).latents)
    elif "input_features" in inputs:
        voice = model.encode_speaker(inputs["speaker_features"], inputs["speaker_attention_mask"])
        encoded = model.encode(inputs["input_features"], inputs["attention_mask"])
        model.decode(encoded.latents, voice, inputs["attention_mask"])
        model.convert(inputs["input_features"], inputs["speaker_features"], inputs["attention_mask"])
        assert_equal_outputs(encoded, model.encode(inputs["input_features"], inputs["attention_mask"]))
    elif name in tiny.PRIOR_NAMES:
        model.sample(3)
    else:
        model.decode_codes(model.encode(inputs["input_ids"]).codes)
    assert_equal_states(before, model)
    assert model.training


@every_configuration
def test_bfloat16_autocast(name):
    model = trained(name)
    inputs = tiny.training_inputs(model)
    expected = model(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model.train()(**inputs)
        evaluated = model.eval()(**inputs)
    for key, value in outputs.items():  # losses and their parts
        assert not key.endswith("loss") or value.dtype == torch.float32, key
    torch.testing.assert_close(evaluated.loss, expected.loss, rtol=0.05, atol=0.01)
    outputs.loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), key


def trainer(model, folder, **arguments):
    inputs = tiny.training_inputs(model, batch_size=32)
    if "input_features" in inputs:  # the same
        inputs["attention_mask"], inputs["speaker_attention_mask"] = (
            torch.ones_like(inputs[name]) for name in ("attention_mask", "speaker_attention_mask")
        )
        arguments = {"label_names": [], **arguments}
    elif "attention_mask" in inputs:  # else a row's weight in the mean over tokens depends on the others of its batch
        inputs["input_ids"], inputs["attention_mask"] = inputs["input_ids"].clamp_min(1), inputs["input_ids"] * 0 + 1
        # one step: in a second, rounding may already decide on another word of a summary
        arguments = {"max_steps": 1, "label_names": [], **arguments}
    rows = [{key: value[index] for key, value in inputs.items()} for index in range(32)]
    arguments = {"max_steps": 2, "learning_rate": 0.5, "optim": "sgd", "lr_scheduler_type": "constant", **arguments}
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, max_grad_norm=0, **arguments
    )
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:8])


# The moving averages of a codebook take every forward pass in, so micro-batches do differ from one batch there. What
# relates the images of a batch to each other differs, too: those variants are here without, or with a weight of 0.
ACCUMULATING = {
    **{name: (row, {}) for name, row in tiny.FIRST.items()},
    "vqvae": ("vqvae-fsq", {}),
    "speech_vqvae": ("speech_vqvae-gradient", {}),
    "beta_vae": ("beta_vae-resnet", {}),
    "beta_tcvae": ("beta_tcvae-mlp", {}),
    "categorical_autoencoder": ("categorical_autoencoder-conv", {"temperature_decay_steps": 0}),
    "dip_vae": ("dip_vae-aggregate", {"off_diagonal_weight": 0, "diagonal_weight": 0}),
    "joint_vae": ("joint_vae-conv", {"max_continuous_capacity": 0, "max_discrete_capacity": 0}),
}
del ACCUMULATING["factor_vae"]  # exchanges latents between the images of a batch, whatever the weight


@pytest.mark.parametrize(("name", "fields"), ACCUMULATING.values(), ids=list(ACCUMULATING))
def test_trainer_with_gradient_accumulation(name, fields, tmp_path):
    whole = tiny.model(name, **fields)
    parts = copy.deepcopy(whole)
    start = copy.deepcopy(whole)
    runs = [
        trainer(whole, tmp_path / "whole", per_device_train_batch_size=16),
        trainer(parts, tmp_path / "parts", per_device_train_batch_size=4, gradient_accumulation_steps=4),
    ]
    losses = [run.train().training_loss for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for (key, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    assert not torch.equal(whole(**tiny.training_inputs(whole)).loss, start(**tiny.training_inputs(whole)).loss)


@every_variant
def test_trainer_evaluates_and_predicts(name, tmp_path):
    run = trainer(tiny.model(name), tmp_path, per_device_train_batch_size=8, per_device_eval_batch_size=4)
    run.train()
    metrics = run.evaluate()
    model, batches = run.model.eval(), run.get_eval_dataloader()
    with torch.no_grad():
        expected = sum(model(**batch).loss.item() for batch in batches) / 2
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    predictions = run.predict(run.eval_dataset).predictions
    first = predictions[0] if isinstance(predictions, tuple) else predictions
    assert len(first) == 8  # the latents; of priors, the log-probabilities
    run.save_model(str(tmp_path / "saved"))
    assert_equal_states(run.model, AutoModel.from_pretrained(tmp_path / "saved"))


# ---- torch.compile and torch.export

MLP = {"architecture": "mlp", "hidden_sizes": (8,)}
COMPILED = {  # as little to compile as shows every kind of state and randomness
    "autoencoder-contractive": {"noise": "masking"},
    "vae-mlp": {},
    "beta_vae-capacity": MLP,
    "beta_tcvae-mlp": {"total_correlation_weight": 3.0},
    "factor_vae-conv": MLP,
    "dip_vae-aggregate": MLP,
    "categorical_autoencoder-clustering": {},
    "binary_autoencoder-mlp": {"sampling": "straight_through_relaxed"},
    "joint_vae-conv": MLP,
    "vqvae-ema": {"hidden_sizes": (4,)},
    "vqvae-gradient": {"hidden_sizes": (4,), "num_codebooks": 2},
    "image_codec-conv": {"hidden_sizes": (4,)},
    "voice_conversion-plain": {
        "num_encoder_blocks": 1,
        "num_decoder_blocks": 1,
        "instance_norm": True,
        "content_bottleneck": "kl",
    },
    "speech_vqvae-residual": {"num_downsamplings": 1, "num_encoder_blocks": 1, "num_decoder_blocks": 1},
    "latent_prior-realnvp": {"num_couplings": 1},
    "code_prior-grid": {"num_hidden_layers": 1, "class_dropout": 0.5},
}


def test_every_variant_but_those_of_text_is_compiled():
    """Those of text sample from themselves, token by token, until all rows have ended."""
    compiled = {variant.name for variant in VARIANTS.values() if variant.modality != "text"}
    assert {name.partition("-")[0] for name in COMPILED} == compiled


def compiled_cases():
    """Kernels of speech models and priors take long to build. All but that is what the other backend does."""
    for name in COMPILED:
        takes_long = name in tiny.SPEECH_NAMES + tiny.PRIOR_NAMES
        yield pytest.param(name, "inductor", marks=pytest.mark.slow if takes_long else ())
        if takes_long:
            yield name, "aot_eager_decomp_partition"


@pytest.mark.parametrize(("name", "backend"), compiled_cases())
def test_compiled_training_and_evaluation_equal_eager(name, backend):
    eager = tiny.model(name, **COMPILED[name]).train()
    model = copy.deepcopy(eager)
    inputs = tiny.inputs(eager.config, seed=7)
    with torch._inductor.config.patch(fallback_random=True, compile_threads=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        # at a higher rate, training speech models makes differences of rounding grow a hundredfold within six steps
        options = {"steps": 6, "learning_rate": 0.01 if name in tiny.SPEECH_NAMES else 0.05}
        eager_losses, compiled_losses = train(eager, **options), train(model, **options, forward=compiled)
        assert compiled_losses == pytest.approx(eager_losses, rel=1e-4)
        assert_equal_states(eager, model, rtol=1e-3, atol=1e-5)
        model.load_state_dict(eager.state_dict())
        model.eval(), eager.eval()
        with torch.no_grad():
            expected, outputs = eager(**inputs), compiled(**inputs)
    assert list(outputs) == list(expected)
    for key in expected:
        torch.testing.assert_close(outputs[key], expected[key], rtol=1e-4, atol=1e-5)


class EncodeDecode(torch.nn.Module):
    """A round trip through the codes where there are any, else through the latents."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        encoded = self.model.encode(pixel_values)
        if "codes" in encoded:
            return self.model.decode_codes(encoded.codes)
        return self.model.decode(encoded.latents)


@every_image_configuration
def test_export_with_dynamic_batch(name):
    model = trained(name)
    dynamic = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}}
    for module in (model, EncodeDecode(model)):
        program = torch.export.export(module, (), {"pixel_values": tiny.images(model.config)}, dynamic_shapes=dynamic)
        for batch_size in (1, 5):
            pixel_values = tiny.images(model.config, batch_size)
            expected, outputs = module(pixel_values), program.module()(pixel_values=pixel_values)
            if torch.is_tensor(expected):
                expected, outputs = {"images": expected}, {"images": outputs}
            assert list(outputs) == list(expected)
            for key in expected:
                torch.testing.assert_close(outputs[key], expected[key])


class EncodeDecodeSpeech(torch.nn.Module):
    """Speech through its codes, where there are any that can be decoded, else through the latents; in its own voice."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_features, attention_mask):
        encoded = self.model.encode(input_features, attention_mask)
        voice = self.model.encode_speaker(input_features, attention_mask)
        if hasattr(self.model, "decode_codes"):
            return self.model.decode_codes(encoded.audio_codes, voice, attention_mask)
        return self.model.decode(encoded.latents, voice, attention_mask)


@pytest.mark.parametrize("name", ["voice_conversion-none", "voice_conversion-kl", "speech_vqvae-residual"])
def test_export_of_speech_with_dynamic_batch_and_length(name):
    model = trained(name)
    features, mask = tiny.clips(model.config, 3, frames=11)
    inputs = {"input_features": features, "attention_mask": mask}
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("frames", min=5, max=4000)}
    for module in (model, EncodeDecodeSpeech(model)):
        program = torch.export.export(module, (), inputs, dynamic_shapes=dict.fromkeys(inputs, sizes))
        for batch_size, frames in ((2, 11), (5, 6), (2, 13)):
            features, mask = tiny.clips(model.config, batch_size, seed=2, frames=frames)
            expected, outputs = module(features, mask), program.module()(input_features=features, attention_mask=mask)
            if torch.is_tensor(expected):
                expected, outputs = {"features": expected}, {"features": outputs}
            assert_close_outputs(outputs, expected)


# ---- the contract of forward


@every_image_configuration
def test_outputs(name):
    model = trained(name)
    config = model.config
    pixel_values = tiny.images(config)
    outputs = model(pixel_values)
    assert next(iter(outputs)) == "latents" and outputs[0] is outputs.latents
    assert outputs.latents.shape == (6, *config.latent_shape)
    assert outputs.reconstruction.shape == pixel_values.shape
    for key, value in outputs.items():
        if key.endswith("loss"):
            assert value.shape == () and value.dtype == torch.float32 and value.isfinite(), key
    assert outputs.loss is not None and outputs.reconstruction_loss is not None
    as_tuple = model(pixel_values, return_dict=False)
    assert type(as_tuple) is tuple and len(as_tuple) == len(outputs)
    assert all(torch.equal(one, other) for one, other in zip(as_tuple, outputs.to_tuple(), strict=True))
    without = model(pixel_values, return_loss=False)
    assert not any(key.endswith("loss") for key in without)
    assert torch.equal(without.reconstruction, outputs.reconstruction)
    levels = model(pixel_values, output_hidden_states=True).hidden_states
    assert len(levels) == len(config.hidden_sizes)


@pytest.mark.parametrize("name", tiny.SPEECH_NAMES)
def test_outputs_of_speech(name):
    model = trained(name)
    config, inputs = model.config, tiny.inputs(model.config)
    outputs = model(**inputs)
    assert next(iter(outputs)) == "latents" and outputs[0] is outputs.latents
    latent_frames = -(-11 // config.downsampling)
    assert outputs.latents.shape == (6, latent_frames, config.latent_size)
    assert outputs.attention_mask.shape == (6, latent_frames) and outputs.attention_mask.dtype == torch.int64
    assert outputs.reconstruction.shape == inputs["input_features"].shape
    assert outputs.speaker_embeddings.shape == (6, config.speaker_size)
    if outputs.audio_codes is not None:
        assert outputs.audio_codes.shape == (6, config.num_codebooks, latent_frames)
        assert outputs.codes is outputs.audio_codes and outputs.codes.dtype == torch.int64
    for padding, padded in ((inputs["attention_mask"], "reconstruction"), (outputs.attention_mask, "latents")):
        assert not outputs[padded][padding == 0].any()
    for key, value in outputs.items():
        if key.endswith("loss"):
            assert value.shape == () and value.dtype == torch.float32 and value.isfinite(), key
    assert outputs.loss is not None and outputs.reconstruction_loss is not None
    as_tuple = model(**inputs, return_dict=False)
    assert type(as_tuple) is tuple and len(as_tuple) == len(outputs)
    without = model(**inputs, return_loss=False)
    assert not any(key.endswith("loss") for key in without)
    assert torch.equal(without.reconstruction, outputs.reconstruction)
    levels = model(**inputs, output_hidden_states=True).hidden_states
    assert len(levels) == config.num_encoder_blocks
    assert levels[-1].shape == (6, latent_frames, config.hidden_size)


@pytest.mark.parametrize("name", tiny.PRIOR_NAMES)
def test_export_of_priors_with_dynamic_batch(name):
    model = trained(name)
    inputs = tiny.inputs(model.config)
    sizes = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, sizes))
    for batch_size in (1, 5):
        inputs = tiny.inputs(model.config, batch_size)
        assert_close_outputs(program.module()(**inputs), model(**inputs))


@pytest.mark.parametrize("name", tiny.PRIOR_NAMES)
def test_outputs_of_priors(name):
    model = trained(name)
    inputs = tiny.inputs(model.config)
    outputs = model(**inputs)
    assert next(iter(outputs)) == "log_prob" and outputs[0] is outputs.log_prob
    assert outputs.log_prob.shape == (6,) and outputs.log_prob.isfinite().all()
    torch.testing.assert_close(outputs.loss, -outputs.log_prob.mean())
    as_tuple = model(**inputs, return_dict=False)
    assert type(as_tuple) is tuple and len(as_tuple) == len(outputs)
    without = model(**inputs, return_loss=False)
    assert "loss" not in without and torch.equal(without.log_prob, outputs.log_prob)


@every_variant
def test_forward_is_made_for_the_trainer(name):
    model_class = variant_of(name).model_class()
    parameters = inspect.signature(model_class.forward).parameters
    assert list(parameters)[1] == model_class.main_input_name
    assert parameters["return_loss"].default is True
    assert model_class.accepts_loss_kwargs is False
    if name not in tiny.TEXT_NAMES:
        assert not any("label" in parameter for parameter in parameters)


def wrong_pixel_values(config):
    images = tiny.images(config, batch_size=2)
    channels, height, width = config.input_shape
    size = "height, width" if config.any_image_size else f"{height}, {width}"
    expected = rf"\(batch_size, {channels}, {size}\)"
    yield "a list", images.tolist(), TypeError, "must be a torch.Tensor, got list"
    yield "an array", images.numpy(), TypeError, "must be a torch.Tensor, got ndarray"
    yield "uint8", (images * 255).byte(), TypeError, r"floating point.*got torch.uint8.*divide uint8 images by 255"
    yield "one image", images[0], ValueError, expected
    yield "flat", images.flatten(1), ValueError, expected
    yield "channels last", images.permute(0, 2, 3, 1).reshape(2, height, width, channels), ValueError, expected
    yield "other channels", torch.cat([images, images], 1), ValueError, expected + r".*got \(2, "
    yield "other size", images[..., :-1], ValueError, expected + ".*image processor"


@every_image_variant
@pytest.mark.parametrize("case", [case[0] for case in wrong_pixel_values(tiny.config(tiny.NAMES[0]))])
def test_wrong_inputs_are_refused(name, case):
    model = tiny.model(name)
    wrong, error, message = next(row[1:] for row in wrong_pixel_values(model.config) if row[0] == case)
    if case == "other size" and model.config.any_image_size:
        pytest.skip("it takes images of any size")
    for call in (model, model.train(), model.encode):
        with pytest.raises(error, match=message):
            call(wrong)
        model.eval()


@every_image_variant
def test_wrong_latents_are_refused(name):
    model = tiny.model(name)
    shape = model.config.latent_shape
    for wrong in (torch.zeros(2, shape[0] + 1, *shape[1:]), torch.zeros(2, *shape, 1), torch.zeros(shape)):
        with pytest.raises(ValueError, match=rf"latents must have shape \(batch_size, {shape[0]}.*got \("):
            model.decode(wrong)
    for wrong in (torch.zeros(2, *shape).long(), [1.0]):
        with pytest.raises(TypeError, match="latents must be a floating-point tensor, got"):
            model.decode(wrong)


# ---- configurations

FIELD_OF_HEADS = {"freeze_encoder"}
NETWORK = {  # fields of all image auto-encoders -> two values
    "image_size": (8, 9),
    "num_channels": (1, 3),
    "hidden_sizes": ((4, 8), (4, 12)),
    "num_residual_blocks": (1, 2),
    "hidden_act": ("relu", "tanh"),
    "architecture": ("conv", "resnet"),
}
VQ = {"content_bottleneck": "vq", "codebook_size": 8}
SPEECH = {  # fields of all auto-encoders of speech
    "num_mel_bins": ({}, (6, 5)),
    "hidden_size": ({}, (8, 6)),
    "num_encoder_blocks": ({}, (2, 3)),
    "num_decoder_blocks": ({}, (2, 3)),
    "num_speaker_blocks": ({}, (1, 2)),
    "num_downsamplings": ({}, (1, 2)),
    "kernel_size": ({}, (3, 5)),
    "hidden_act": ({}, ("relu", "tanh")),
    "instance_norm": ({}, (True, False)),
    "speaker_size": ({}, (4, 5)),
    "num_speakers": ({"speaker_adversarial_weight": 0.5}, (3, 4)),
    "speaker_adversarial_weight": ({"num_speakers": 3}, (0.5, 1.0)),
    "conversion_weight": ({"num_speakers": 3}, (0.5, 1.0)),
    "content_consistency_weight": ({}, (0.5, 1.0)),
    "speaker_consistency_weight": ({}, (0.5, 1.0)),
    "disentangling_warmup_steps": ({"content_consistency_weight": 0.5}, (2, 4)),
    "latent_size": ({}, (3, 4)),
    "codebook_size": (VQ, (8, 4)),
    "num_codebooks": (VQ, (1, 2)),
    "codebook_update": (VQ, ("ema", "gradient")),
    "ema_decay": (VQ, (0.9, 0.5)),
    "commitment_cost": (VQ, (0.25, 0.5)),
    "codebook_cost": ({**VQ, "codebook_update": "gradient"}, (1.0, 0.5)),
    "kmeans_init": (VQ, (True, False)),
    "dead_code_threshold": ({**VQ, "kmeans_init": False, "ema_decay": 0.5}, (0.0, 0.5)),
}
WITHOUT_CHOICE = {  # the same where content is always quantised
    field: ({name: value for name, value in needed.items() if name != "content_bottleneck"}, values)
    for field, (needed, values) in SPEECH.items()
}
GAUSSIAN = {  # fields of all auto-encoders with a Gaussian latent vector
    "latent_size": ({}, (4, 5)),
    "likelihood": ({}, ("bernoulli", "gaussian")),
    "spatial_broadcast": ({}, (False, True)),
}
DISCRETE = {  # fields of all auto-encoders with a discrete code
    "likelihood": ({}, ("bernoulli", "gaussian")),
    "spatial_broadcast": ({}, (False, True)),
    "sampling": ({}, ("straight_through", "relaxed")),
    "initial_temperature": ({"sampling": "relaxed", "temperature_decay_steps": 4}, (1.0, 2.0)),
    "final_temperature": ({"sampling": "relaxed"}, (0.5, 0.7)),
    "temperature_decay_steps": ({"sampling": "relaxed"}, (2, 4)),
}
# variant -> field -> (other fields needed to see it, two values). Every field of a configuration has to be here.
MIXTURE = {"prior": "gaussian_mixture"}
EFFECTS = {
    "latent_prior": {
        "latent_shape": ({}, ((5,), (4,))),
        "prior": ({}, ("realnvp", "gaussian_mixture")),
        "num_components": (MIXTURE, (3, 2)),
        "covariance": (MIXTURE, ("full", "diag")),
        "num_couplings": ({}, (3, 4)),
        "hidden_size": ({}, (8, 6)),
        "num_hidden_layers": ({}, (1, 2)),
        "max_log_scale": ({}, (0.01, 2.0)),
    },
    "code_prior": {
        "codes_shape": ({}, ((1, 2, 3), (2, 3, 1))),
        "num_codes": ({}, (8, 7)),
        "num_classes": ({}, (3, 0)),
        "class_dropout": ({}, (0.0, 1.0)),
        "hidden_size": ({}, (8, 6)),
        "num_hidden_layers": ({}, (2, 1)),
        "num_attention_heads": ({}, (2, 4)),
        "dropout": ({}, (0.0, 0.5)),
    },
    "voice_conversion": {
        **SPEECH,
        "content_bottleneck": ({}, ("none", "kl")),
        "kl_weight": ({"content_bottleneck": "kl"}, (0.1, 0.2)),
    },
    "speech_vqvae": {**WITHOUT_CHOICE, "time_jitter": ({}, (0.0, 0.5))},
    "autoencoder": {
        "latent_size": ({}, (4, 5)),
        "latent_activation": ({}, ("none", "relu")),
        "reconstruction_loss": ({}, ("mse", "bce")),
        "noise": ({}, ("none", "masking")),
        "noise_level": ({"noise": "gaussian"}, (0.1, 0.2)),
        "sparsity": ({}, ("none", "l1")),
        "sparsity_weight": ({"sparsity": "l1"}, (0.1, 0.2)),
        "sparsity_target": ({"sparsity": "kl", "latent_activation": "sigmoid"}, (0.05, 0.1)),
        "contractive_weight": ({}, (0.1, 0.2)),
    },
    "vae": {
        **GAUSSIAN,
        "beta": ({}, (1.0, 2.0)),
        "kl_warmup_steps": ({}, (4, 8)),
        "free_bits": ({}, (0.0, 0.5)),
        "num_posterior_samples": ({}, (1, 3)),
    },
    "categorical_autoencoder": {
        **DISCRETE,
        "num_categories": ({}, (5, 4)),
        "num_variables": ({}, (1, 2)),
        "beta": ({}, (1.0, 2.0)),
        "mutual_information_weight": ({}, (0.0, 1.0)),
        "num_fine_categories": ({"mutual_information_weight": 1.0}, (0, 8)),
        "fine_steps": ({"mutual_information_weight": 1.0, "num_fine_categories": 8}, (0, 2)),
    },
    "binary_autoencoder": {
        **DISCRETE,
        "num_bits": ({}, (5, 4)),
        "beta": ({}, (1.0, 2.0)),
        "balance_weight": ({}, (1.0, 2.0)),
    },
    "joint_vae": {
        **DISCRETE,
        "latent_size": ({}, (4, 5)),
        "num_categories": ({}, (5, 4)),
        "num_variables": ({}, (1, 2)),
        "capacity_weight": ({}, (1.0, 2.0)),
        "max_continuous_capacity": ({"capacity_warmup_steps": 0}, (1.0, 2.0)),
        "max_discrete_capacity": ({"capacity_warmup_steps": 0}, (0.1, 0.2)),
        "capacity_warmup_steps": ({}, (2, 4)),
    },
    "beta_vae": {
        **GAUSSIAN,
        "capacity_weight": ({}, (1.0, 2.0)),
        "max_capacity": ({}, (1.0, 2.0)),
        "capacity_warmup_steps": ({}, (2, 4)),
    },
    "beta_tcvae": {
        **GAUSSIAN,
        "mutual_information_weight": ({}, (1.0, 2.0)),
        "total_correlation_weight": ({}, (1.0, 2.0)),
        "dimension_kl_weight": ({}, (1.0, 2.0)),
        "initial_kl_scale": ({"kl_decay_steps": 4}, (2.0, 4.0)),
        "kl_decay_steps": ({"initial_kl_scale": 2.0}, (2, 4)),
    },
    "factor_vae": {
        **GAUSSIAN,
        "total_correlation_weight": ({}, (1.0, 2.0)),
        "kl_weight": ({}, (1.0, 2.0)),
        "initial_kl_scale": ({"kl_decay_steps": 4}, (2.0, 4.0)),
        "kl_decay_steps": ({"initial_kl_scale": 2.0}, (2, 4)),
        "discriminator_hidden_sizes": ({}, ((8, 6), (8,))),
    },
    "dip_vae": {
        **GAUSSIAN,
        "covariance": ({}, ("means", "aggregate")),
        "off_diagonal_weight": ({}, (1.0, 2.0)),
        "diagonal_weight": ({}, (1.0, 2.0)),
    },
    "vqvae": {
        "quantizer": ({}, ("vq", "fsq")),
        "codebook_size": ({}, (8, 4)),
        "embedding_dim": ({}, (4, 5)),
        "num_codebooks": ({}, (1, 2)),
        "fsq_levels": ({"quantizer": "fsq"}, ((4, 3), (4, 3, 5))),
        "codebook_update": ({}, ("ema", "gradient")),
        "codebook_distance": ({}, ("euclidean", "cosine")),
        "ema_decay": ({}, (0.9, 0.5)),
        "commitment_cost": ({}, (0.25, 0.5)),
        "codebook_cost": ({"codebook_update": "gradient"}, (1.0, 0.5)),
        "kmeans_init": ({}, (True, False)),
        "dead_code_threshold": ({"kmeans_init": False, "ema_decay": 0.5}, (0.0, 0.5)),
    },
    "image_codec": {
        "entropy_model": ({}, ("scale_hyperprior", "mean_scale_hyperprior")),
        "hyper_size": ({}, (4, 5)),
        "lambdas": ({}, ((2e-5, 1e-4), (2e-5, 2e-4))),
    },
    "seq2seq2seq": {
        "summarizer": ({}, (tiny.POINTER, {**tiny.POINTER, "num_layers": 1})),
        "reconstructor": ({}, (tiny.COPYING, {**tiny.COPYING, "num_layers": 1})),
        "discriminator": ({}, ({**tiny.JUDGE, "kind": "none"}, {**tiny.JUDGE, "kind": "critic"})),
        "share_embeddings": ({}, (True, False)),
        "max_summary_tokens": ({}, (6, 3)),
        "estimator": ({}, ("straight_through", "reinforce")),
        "gumbel_temperature": ({}, (0.5, 1.0)),
        "word_dropout": ({}, (0.5, 0.1)),
        "reconstruction_weight": ({}, (1.0, 0.5)),
        "adversarial_weight": ({"discriminator": {**tiny.JUDGE, "kind": "wgan_gp"}}, (1.0, 0.5)),
        "prior_weight": ({"discriminator": {**tiny.JUDGE, "kind": "language_model"}}, (0.1, 0.5)),
        "entropy_weight": ({}, (0.0, 0.1)),
    },
}
POINTER_EFFECTS = {
    "copy_head": ({}, (True, False)),
    "countdown_size": ({}, (6, 0)),
    "default_words": ({}, (4, 2)),
    "selection_weight": ({}, (0.0, 1.0)),
    "selection_ratio": ({"default_words": 4}, (0.0, 0.25)),  # copy from all words, or from one
}
WITH_LABELS = {"selection_weight"}  # fields that change the supervised loss alone
CHANGE_SAMPLES = {"selection_ratio"}  # fields that decide on what is written, and the loss follows
# variant -> part with a configuration of its own -> field -> (fields of the part needed to see it, two values)
PART_EFFECTS = {
    "seq2seq2seq": {
        "summarizer": POINTER_EFFECTS,
        "reconstructor": {"copy_head": POINTER_EFFECTS["copy_head"]},
        "discriminator": {
            "kind": ({}, ("wgan_gp", "critic")),
            "hidden_size": ({}, (8, 6)),
            "num_layers": ({}, (1, 2)),
            "gradient_penalty_weight": ({}, (10.0, 5.0)),
            "discount": ({"kind": "critic"}, (0.3, 0.6)),
        },
    }
}
SPECIAL_TOKENS = {"pad_token_id", "eos_token_id", "decoder_start_token_id", "tie_word_embeddings"}  # of transformers
# where tokenizers cut; what has to be that of the other parts; what the whole refuses in a reconstructor, or is of it
NOT_IN_THE_LOSS = {
    "seq2seq2seq": {"max_source_tokens"},
    **dict.fromkeys(("voice_conversion", "speech_vqvae"), {"sampling_rate", "hop_length"}),  # of the features
    **dict.fromkeys(("latent_prior", "code_prior"), {"autoencoder", "autoencoder_fingerprint"}),  # whose it is
    "discriminator": {"vocab_size"},
    "reconstructor": {"default_words", *FOR_SUMMARIES_ALONE},
}


def own_fields(config_class):
    """The fields that the classes of this package add to those of transformers."""
    bases = [base for base in config_class.__mro__ if base.__module__.startswith("transformers.")]
    theirs = {field.name for base in bases if dataclasses.is_dataclass(base) for field in dataclasses.fields(base)}
    return {field.name for field in dataclasses.fields(config_class)} - theirs - SPECIAL_TOKENS


def network_fields(variant):
    return NETWORK if variant.modality == "image" else {}


def test_every_field_is_covered():
    for variant in VARIANTS.values():
        fields = own_fields(variant.config_class()) - FIELD_OF_HEADS - NOT_IN_THE_LOSS.get(variant.name, set())
        fields -= {*DETECTOR_FIELDS, "num_features"}  # see test_anomaly.py and test_tables.py
        expected = {*network_fields(variant), *EFFECTS[variant.name]}
        assert fields == expected, "a field of a configuration without a test of its effect"
        for part, part_class in variant.config_class().sub_configs.items():
            fields = own_fields(part_class) - NOT_IN_THE_LOSS.get(part, set())
            assert fields == {*PART_EFFECTS[variant.name][part]}, f"a field of {part} without a test of its effect"


@pytest.mark.parametrize(
    ("variant", "field"),
    [(row.name, field) for row in VARIANTS.values() for field in (*network_fields(row), *EFFECTS[row.name])],
)
def test_every_field_changes_the_loss(variant, field):
    needed, values = EFFECTS[variant].get(field) or ({"architecture": "resnet"}, NETWORK[field])
    row = {key: value for key, value in needed.items() if key != field}
    if f"hfae_{variant}" in [row.model_type for row in IMAGE_VARIANTS]:
        row = {"image_size": 8, "num_channels": 1, "num_residual_blocks": 1, "hidden_act": "relu", **row}
    losses = [
        train(tiny.model(tiny.FIRST[variant], **{**row, field: value}).train(), steps=4, learning_rate=0.01)
        for value in values
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("variant", "part", "field"),
    [(variant, part, field) for variant, parts in PART_EFFECTS.items() for part in parts for field in parts[part]],
)
def test_every_field_of_a_part_changes_the_loss(variant, part, field):
    needed, values = PART_EFFECTS[variant][part][field]
    whole = {"estimator": "reinforce"} if field == "discount" else {}
    bases = {
        "summarizer": tiny.POINTER,
        "reconstructor": tiny.COPYING,
        "discriminator": {**tiny.JUDGE, "kind": "wgan_gp"},
    }
    models = [
        tiny.model(tiny.FIRST[variant], **whole, **{part: {**bases[part], **needed, field: value}}) for value in values
    ]
    if field in CHANGE_SAMPLES:
        inputs = tiny.training_inputs(models[0])
        for model in models:  # untrained, all words are equally likely to be kept, and none are shut out
            torch.nn.init.normal_(model.summarizer.copy_head.salience, generator=torch.Generator().manual_seed(0))
        codes = [model(**inputs).codes.tolist() for model in models]
        written = [model.generate(inputs["input_ids"], num_words=4).tolist() for model in models]
        assert codes[0] != codes[1] and written[0] != written[1]
    inputs_of = labelled if field in WITH_LABELS else tiny.inputs
    losses = [train(model.train(), steps=4, learning_rate=0.01, inputs=inputs_of) for model in models]
    assert losses[0] != losses[1]
    if field in WITH_LABELS:
        assert losses[1][0] > losses[0][0]  # of equal weights: by the term itself, not by what became of it


def labelled(config, seed=0):
    """Texts, and the beginning of each as the summary that is wanted."""
    inputs = tiny.texts(config, seed=seed)
    labels = inputs["input_ids"][:, :3]
    return {"input_ids": inputs["input_ids"], "labels": labels.masked_fill(labels == 0, -100)}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
def test_fields_are_checked(variant, tmp_path):
    """Each numeric field refuses another type, NaN, infinity and what is below its range, at construction and later."""
    config_class = variant.config_class()
    config = tiny.config(tiny.FIRST[variant.name])
    config.save_pretrained(tmp_path)
    for name in own_fields(config_class):
        default = getattr(config_class(), name)
        wrong = ["nonsense"] if name in config_class.sub_configs else ["nonsense", None]
        if name == "autoencoder":  # any text may be its name
            wrong = [7, None]
        if type(default) in (int, float, tuple):
            wrong += [-1, (-1,)] if type(default) is tuple else [-1]
        if type(default) is float:
            wrong += [float("nan"), float("inf")]
        for value in wrong:
            for attempt in (
                lambda name=name, value=value: config_class(**{name: value}),
                lambda name=name, value=value: setattr(copy.deepcopy(config), name, value),
                lambda name=name, value=value: AutoConfig.from_pretrained(tmp_path, **{name: value}),
                lambda name=name, value=value: AutoModel.from_pretrained(tmp_path, **{name: value}),
            ):
                with pytest.raises(StrictDataclassError, match=rf"'{name}'[\s\S]*(expected|Expected|must be one of)"):
                    attempt()


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
def test_misspelt_fields_are_refused(variant, tmp_path):
    config_class = variant.config_class()
    fields = {"image": "hidden_sizes", "audio": "hidden_size", "text": "word_dropout", "latent": "hidden_size"}
    field = fields[variant.modality]
    misspelt = field.replace("d", "", 1)
    with pytest.raises(TypeError, match=f"has no field {misspelt}: did you mean {field}?"):
        config_class(**{misspelt: (4,)})
    with pytest.raises(TypeError, match="has no field colour"):
        AutoConfig.for_model(variant.model_type, colour="red")
    config = config_class(num_labels=5, output_hidden_states=True, torch_dtype="bfloat16")  # what transformers knows
    assert (config.num_labels, config.dtype) == (5, torch.bfloat16)
    config.of_a_newer_version = 7
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).of_a_newer_version == 7


@every_configuration
def test_configurations_survive_json(name, tmp_path):
    config = tiny.config(name)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    for field in own_fields(type(config)):
        one, other = getattr(config, field), getattr(loaded, field)
        if field in config.sub_configs:
            assert type(other) is type(one) and other.to_dict() == one.to_dict(), field
        else:
            assert (tuple(other) if isinstance(one, tuple) else other) == one, field
    assert type(config)(**config.to_dict()).to_dict() == config.to_dict()
    if name in tiny.IMAGE_NAMES:
        assert AutoConfig.from_pretrained(tmp_path, num_channels=2).num_channels == 2
        assert loaded.input_shape == config.input_shape and loaded.latent_shape == config.latent_shape
    elif name in tiny.SPEECH_NAMES:
        assert AutoConfig.from_pretrained(tmp_path, speaker_size=7).speaker_size == 7
    elif name in tiny.PRIOR_NAMES:
        assert AutoConfig.from_pretrained(tmp_path, autoencoder="mine").autoencoder == "mine"
    else:
        assert AutoConfig.from_pretrained(tmp_path, word_dropout=0.25).word_dropout == 0.25


def test_configuration_files_keep_their_annotations():
    """`from __future__ import annotations` would silently switch the type checks of the fields off."""
    for variant in VARIANTS.values():
        for cls in variant.config_class().__mro__:
            if cls.__module__.startswith("hf_autoencoders."):
                assert "from __future__" not in inspect.getsource(inspect.getmodule(cls))


@every_variant
def test_only_safetensors_are_written(name, tmp_path):
    model = trained(name)
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl", ".pth")] == []
    saved, same = set(load_file(tmp_path / "model.safetensors")), aliases(model)
    assert saved <= set(same) and all(len(saved & keys) == 1 for keys in same.values())  # shared tensors once
