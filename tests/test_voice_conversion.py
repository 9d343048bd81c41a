"""The voice conversion auto-encoder, and what it shares with the speech VQ-VAE: masks, voices, losses, bad inputs."""

import copy

import pytest
import tiny
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F

from hf_autoencoders import SpeechVQVAEConfig, VoiceConversionConfig
from hf_autoencoders.models.speech_layers import (
    MaskedInstanceNorm,
    downsample_mask,
    halve_frames,
    halved,
    reverse_gradient,
)

every_configuration = pytest.mark.parametrize("name", tiny.SPEECH_NAMES)
NONE = "voice_conversion-none"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def loss_gradients(model, of, **inputs):
    """Gradients of the loss by the parameters whose names begin with `of`."""
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if name.startswith(of)}


def content_mask(model, mask):
    """1 for every latent frame that holds a real frame."""
    return mask[:, :: model.config.downsampling]


# ---- any length, and padding


@every_configuration
def test_outputs_of_a_clip_do_not_depend_on_its_padding(name):
    """Not even where the padding holds rubbish, and whatever the other clips of the batch are."""
    model = tiny.model(name)
    config = model.config
    clips = [tiny.clips(config, 1, seed, frames)[0] for seed, frames in ((3, 7), (4, 13), (5, 1))]
    batch = torch.full((3, 15, config.num_mel_bins), 50.0)
    mask = torch.zeros(3, 15, dtype=torch.int64)
    for row, clip in enumerate(clips):
        batch[row, : clip.shape[1]], mask[row, : clip.shape[1]] = clip[0], 1
    together = model(batch, mask, return_loss=False)
    converted = model.convert(batch, batch.flip(0), mask, mask.flip(0))
    for row, clip in enumerate(clips):
        alone = model(clip, return_loss=False)
        frames, latent_frames = clip.shape[1], alone.latents.shape[1]
        for key, size in (("reconstruction", frames), ("latents", latent_frames)):
            torch.testing.assert_close(together[key][row, :size], alone[key][0], **CLOSE)
            assert not together[key][row, size:].any()
        if alone.codes is not None:
            assert torch.equal(together.codes[row, :, :latent_frames], alone.codes[0])
            assert not together.codes[row, :, latent_frames:].any()
        assert together.attention_mask[row].sum() == latent_frames
        torch.testing.assert_close(together.speaker_embeddings[row], alone.speaker_embeddings[0], **CLOSE)
        torch.testing.assert_close(converted[row, :frames], model.convert(clip, clips[2 - row])[0], **CLOSE)


@every_configuration
def test_losses_gradients_and_codebooks_do_not_depend_on_padding(name):
    models = [tiny.model(name).train() for _ in range(2)]
    inputs = tiny.training_inputs(models[0])
    more = {"speaker_ids": inputs["speaker_ids"]} if "speaker_ids" in inputs else {}
    for key in inputs.keys() - more.keys():
        extra = 8 if key != "epsilon" else 8 // models[0].config.downsampling
        more[key] = F.pad(inputs[key], (0, 0, 0, extra) if inputs[key].ndim == 3 else (0, extra))
    outputs = [model(**batch) for model, batch in zip(models, (inputs, more), strict=True)]
    for key in outputs[0]:
        if key.endswith("loss"):
            torch.testing.assert_close(outputs[0][key], outputs[1][key], **CLOSE)
    for output in outputs:
        output.loss.backward()
    for (key, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        message = {"msg": lambda text, key=key: f"{key}: {text}"}
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, **message)
    for (key, one), other in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, key=key: f"{key}: {text}", **CLOSE)


def test_instance_normalisation_and_its_gradient():
    """Mean 0 and variance 1 over real frames; the gradient that is written out is that of the function."""
    norm, mask = MaskedInstanceNorm(), torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).unsqueeze(1).double()
    hidden_state = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    for row, frames in enumerate((5, 3)):
        clip = norm(hidden_state, mask)[row]
        torch.testing.assert_close(clip[:, :frames].mean(-1), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
        torch.testing.assert_close(clip[:, :frames].var(-1, correction=0), torch.ones(3).double(), atol=1e-3, rtol=0)
        assert not clip[:, frames:].any()
    assert torch.autograd.gradcheck(lambda value: norm(value, mask), hidden_state)


def test_halving():
    """Means of pairs of real frames; a frame without a partner stands for itself."""
    frames = torch.tensor([[1.0, 3, 5, 7, 9], [1, 3, 5, 0, 0]]).unsqueeze(1)
    mask = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).unsqueeze(1)
    assert halve_frames(frames, mask).squeeze(1).tolist() == [[2, 6, 9], [2, 5, 0]]
    assert halve_frames(frames[..., :4], mask[..., :4]).squeeze(1).tolist() == [[2, 6], [2, 5]]
    assert downsample_mask(mask, 1).squeeze(1).tolist() == [[1, 1, 1], [1, 1, 0]]
    for size in range(1, 20):
        for times in range(4):
            lengths = torch.arange(1, size + 1)
            masks = (torch.arange(size) < lengths[:, None]).float().unsqueeze(1)
            halves = downsample_mask(masks, times)
            assert halves.shape[-1] == halved(size, times) == -(-size // 2**times)
            assert torch.equal(halves.sum((1, 2)).long(), (lengths + 2**times - 1) // 2**times)


@pytest.mark.parametrize("num_downsamplings", [0, 1, 2, 3])
def test_as_many_frames_come_out_as_went_in(num_downsamplings):
    model = tiny.model(NONE, num_downsamplings=num_downsamplings, num_encoder_blocks=3)
    for frames in range(1, 21):
        features, _ = tiny.clips(model.config, 2, frames=frames)
        encoded = model.encode(features)
        assert encoded.latents.shape == (2, -(-frames // 2**num_downsamplings), 3)
        assert encoded.attention_mask.all()
        converted = model.convert(features, features.flip(0))
        assert converted.shape == features.shape and converted.isfinite().all()
        whole = model.decode(encoded.latents, model.encode_speaker(features))
        assert whole.shape[1] == encoded.latents.shape[1] * 2**num_downsamplings


@every_configuration
def test_silence_one_frame_and_nothing_stay_finite(name):
    model = tiny.model(name).train()
    features, mask = torch.zeros(4, 5, 6), torch.ones(4, 5, dtype=torch.int64)
    features[1] = 3.0
    mask[2, 1:], mask[3] = 0, 0
    inputs = {"input_features": features, "attention_mask": mask}
    inputs |= {"speaker_ids": torch.tensor([0, 1, 2, 0])} if model.config.num_speakers else {}
    outputs = model(**inputs)
    assert all(value.isfinite().all() for value in outputs.values())
    outputs.loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


# ---- voices


def test_content_does_not_hear_what_is_the_same_in_every_frame():
    """A constant added to a mel bin, as a microphone adds it, changes the voice and not the content."""
    model = tiny.model(NONE)
    features, mask = tiny.clips(model.config, 3)
    offset = torch.randn(1, 1, 6)
    one, other = (model(value, mask, return_loss=False) for value in (features, features + offset))
    torch.testing.assert_close(one.latents, other.latents, **CLOSE)
    assert not torch.allclose(one.speaker_embeddings, other.speaker_embeddings, atol=1e-3)
    plain = tiny.model("voice_conversion-plain")
    one, other = (plain.encode(value, mask).latents for value in (features, features + offset))
    assert not torch.allclose(one, other, atol=1e-3)


@every_configuration
def test_conversion_to_its_own_voice_is_the_reconstruction(name):
    model = tiny.model(name)
    features, mask = tiny.clips(model.config)
    outputs = model(features, mask)
    assert torch.equal(model.convert(features, features, mask, mask), outputs.reconstruction)
    voices = outputs.speaker_embeddings
    assert torch.equal(model.convert(features, attention_mask=mask, speaker_embeddings=voices), outputs.reconstruction)
    swapped = model.convert(features, features.flip(0), mask, mask.flip(0))
    assert not torch.allclose(swapped, outputs.reconstruction, atol=1e-4)
    assert torch.equal(swapped, model.decode(outputs.latents, voices.flip(0), mask))
    assert not model.convert(features, features, mask, mask).requires_grad


def test_several_clips_of_a_voice_are_averaged():
    model = tiny.model(NONE)
    features, mask = tiny.clips(model.config, 6, seed=4)
    single = model.encode_speaker(features, mask).view(2, 3, -1)
    features, mask = features.view(2, 3, 11, 6), mask.view(2, 3, 11)
    torch.testing.assert_close(model.encode_speaker(features, mask), single.mean(1))
    torch.testing.assert_close(
        model.encode_speaker(features, mask), model.encode_speaker(features.flip(1), mask.flip(1))
    )
    fewer = mask.clone()
    fewer[0, 2] = 0  # two clips of the first speaker, three of the second
    expected = torch.stack([single[0, :2].mean(0), single[1].mean(0)])
    torch.testing.assert_close(model.encode_speaker(features, fewer), expected)
    source, source_mask = tiny.clips(model.config, 2, seed=9)
    converted = model.convert(source, features, source_mask, fewer)
    torch.testing.assert_close(converted, model.convert(source, None, source_mask, speaker_embeddings=expected))
    outputs = model(source, source_mask, features, fewer)
    torch.testing.assert_close(outputs.speaker_embeddings, expected)
    torch.testing.assert_close(outputs.reconstruction, converted)


def test_one_voice_for_a_whole_batch():
    model = tiny.model(NONE)
    source, target = tiny.clips(model.config, 4)[0], tiny.clips(model.config, 1, seed=5)[0]
    converted = model.convert(source, target)
    torch.testing.assert_close(converted, model.convert(source, target.expand(4, -1, -1)))


def test_content_may_be_taken_from_another_clip_than_is_restored():
    model = tiny.model(NONE)
    inputs = tiny.inputs(model.config)
    mask = inputs["attention_mask"]
    outputs = model(**inputs)
    torch.testing.assert_close(outputs.latents, model.encode(inputs["content_features"], mask).latents)
    voices = model.encode_speaker(inputs["speaker_features"], inputs["speaker_attention_mask"])
    torch.testing.assert_close(outputs.speaker_embeddings, voices)
    distance = (outputs.reconstruction - inputs["input_features"]).abs()[mask.bool()]  # of real frames
    torch.testing.assert_close(outputs.reconstruction_loss, distance.mean())
    torch.testing.assert_close(outputs.loss, distance.mean())


# ---- objectives


def test_reversed_gradients():
    values = torch.randn(4, 3, requires_grad=True)
    for strength in (0.0, 0.5, torch.tensor(2.0)):
        torch.testing.assert_close(reverse_gradient(values, strength), values)
        (gradient,) = torch.autograd.grad((reverse_gradient(values, strength) ** 2).sum(), values)
        torch.testing.assert_close(gradient, -strength * 2 * values.detach())


def test_content_works_against_its_classifier():
    """The encoder's gradient has minus `weight` times that of the cross-entropy; the classifier's has it as it is."""
    weights = (0.5, 2.0)
    models = [tiny.model(NONE, num_speakers=3, speaker_adversarial_weight=weight) for weight in weights]
    inputs = tiny.inputs(models[0].config)
    encoder, classifier = (
        [loss_gradients(model, part, **inputs) for model in models]
        for part in ("content_encoder.", "content_classifier.")
    )
    model = models[0]
    mask = content_mask(model, inputs["attention_mask"])
    latents = model.encode(inputs["content_features"], inputs["attention_mask"]).latents
    logits = model.content_classifier(latents.mT, mask.unsqueeze(1).float()).mT[mask.bool()]
    ids = inputs["speaker_ids"].unsqueeze(1).expand(mask.shape)[mask.bool()]
    model.zero_grad()
    cross_entropy = F.cross_entropy(logits, ids)
    torch.testing.assert_close(model(**inputs).speaker_adversarial_loss, cross_entropy)
    cross_entropy.backward()
    plain = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    for name in encoder[0]:
        difference = encoder[1][name] - encoder[0][name]
        torch.testing.assert_close(difference, -(weights[1] - weights[0]) * plain[name], **CLOSE)
    assert any(value.abs().max() > 1e-3 for value in encoder[0].values())
    for name in classifier[0]:
        torch.testing.assert_close(classifier[0][name], plain[name], **CLOSE)
        torch.testing.assert_close(classifier[1][name], plain[name], **CLOSE)
    assert models[0](**inputs).loss == models[1](**inputs).loss  # the weight is in the gradient alone


def test_the_voice_classifier_learns_from_real_clips_only():
    fields = {"num_speakers": 3, "conversion_weight": 0.5}
    models = [tiny.model(NONE, **{**fields, "conversion_weight": weight}) for weight in (0.5, 50.0)]
    inputs = tiny.inputs(models[0].config)
    gradients = [loss_gradients(model, "voice_classifier.", **inputs) for model in models]
    model = models[0]
    model.zero_grad()
    mask = inputs["attention_mask"].unsqueeze(1).float()
    cross_entropy = F.cross_entropy(model.voice_classifier(inputs["input_features"].mT, mask), inputs["speaker_ids"])
    cross_entropy.backward()
    assert gradients[0]
    for name, value in model.named_parameters():
        if name in gradients[0]:
            torch.testing.assert_close(gradients[0][name], value.grad, **CLOSE)
            torch.testing.assert_close(gradients[1][name], value.grad, **CLOSE)
    decoder = [loss_gradients(model, "decoder.", **inputs)["decoder.output.weight"] for model in models]
    assert not torch.allclose(decoder[0], decoder[1], atol=1e-2)  # while the decoder does hear it


def test_conversion_losses_are_of_clips_in_the_voice_of_another():
    """Each objective, computed again from the public methods."""
    fields = {name: value for name, value in tiny.DISENTANGLING.items() if name != "speaker_adversarial_weight"}
    model = tiny.model(NONE, **fields)
    inputs = tiny.inputs(model.config)
    outputs = model(**inputs)
    mask, ids = inputs["attention_mask"], inputs["speaker_ids"]
    targets = outputs.speaker_embeddings.roll(1, 0)
    converted = model.decode(outputs.latents, targets, mask)
    logits = model.voice_classifier(converted.mT, mask.unsqueeze(1).float())
    torch.testing.assert_close(outputs.conversion_loss, F.cross_entropy(logits, ids.roll(1, 0)))
    difference = (model.encode(converted, mask).latents - outputs.latents)[content_mask(model, mask).bool()]
    torch.testing.assert_close(outputs.content_consistency_loss, difference.square().mean(), **CLOSE)
    similarity = F.cosine_similarity(model.encode_speaker(converted, mask), targets)
    torch.testing.assert_close(outputs.speaker_consistency_loss, (1 - similarity).mean(), **CLOSE)
    expected = outputs.reconstruction_loss + outputs.voice_classifier_loss
    terms = ("conversion_loss", "content_consistency_loss", "speaker_consistency_loss")
    torch.testing.assert_close(outputs.loss, expected + 0.5 * sum(outputs[term] for term in terms))


def test_without_speakers_classifiers_rest():
    model = tiny.model("voice_conversion-plain").train()
    inputs = tiny.inputs(model.config)
    outputs = model(**{key: value for key, value in inputs.items() if key != "speaker_ids"})
    names = {key for key in outputs if key.endswith("_loss")}
    assert names == {"reconstruction_loss", "content_consistency_loss", "speaker_consistency_loss"}


def test_objectives_rise_over_the_first_steps():
    model = tiny.model("voice_conversion-plain", content_consistency_weight=0, speaker_consistency_weight=0).train()
    inputs = tiny.inputs(model.config)
    shares = []
    for _ in range(6):
        outputs = model(**inputs)
        rest = outputs.loss - outputs.reconstruction_loss - outputs.voice_classifier_loss
        rest = rest - outputs.speaker_adversarial_loss
        shares.append((rest / outputs.conversion_loss).item())
    torch.testing.assert_close(torch.tensor(shares), 0.5 * torch.tensor([0, 0.25, 0.5, 0.75, 1, 1]))
    model.eval()(**inputs)
    assert model.training_steps.steps == 6


def test_gaussian_content():
    model = tiny.model(
        "voice_conversion-kl", num_downsamplings=1, kl_weight=0.1, **dict.fromkeys(tiny.DISENTANGLING, 0)
    )
    inputs = tiny.training_inputs(model)
    mask = content_mask(model, inputs["attention_mask"]).bool()
    outputs = model(**inputs)
    posterior = torch.distributions.Normal(outputs.mean[mask], torch.exp(0.5 * outputs.log_variance[mask]))
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(outputs.kl_loss, divergence)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + 0.1 * divergence)
    sample = outputs.mean + torch.exp(0.5 * outputs.log_variance) * inputs["epsilon"] * mask.unsqueeze(-1)
    torch.testing.assert_close(outputs.latents, sample)
    del inputs["epsilon"]
    assert torch.equal(model(**inputs).latents, outputs.mean)  # in evaluation mode
    noisy = [model.train()(**inputs).latents for _ in range(2)]
    assert not torch.equal(*noisy)
    encoded = model.encode(inputs["content_features"], inputs["attention_mask"])
    assert torch.equal(encoded.latents, outputs.mean) and torch.equal(encoded.log_variance, outputs.log_variance)


def test_quantised_content_passes_gradients_straight_through():
    model = tiny.model("voice_conversion-vq", commitment_cost=0, **dict.fromkeys(tiny.DISENTANGLING, 0))
    gradients = loss_gradients(model, "content_encoder.", **tiny.inputs(model.config))
    assert gradients["content_encoder.output.weight"].abs().max() > 1e-4


# ---- what is refused


def test_rules_between_fields():
    with pytest.raises(StrictDataclassError, match="num_downsamplings of at most num_encoder_blocks=1, got 2"):
        VoiceConversionConfig(num_encoder_blocks=1, num_downsamplings=2)
    for name in ("speaker_adversarial_weight", "conversion_weight"):
        for speakers in (0, 1):
            with pytest.raises(
                StrictDataclassError, match=f"{name}=1.0 needs at least 2 speakers .*num_speakers={speakers}"
            ):
                SpeechVQVAEConfig(**{name: 1.0, "num_speakers": speakers})
    with pytest.raises(StrictDataclassError, match="expected a positive odd number, got 4"):
        VoiceConversionConfig(kernel_size=4)


FEATURES = torch.zeros(2, 5, 6)
MASK = torch.ones(2, 5, dtype=torch.int64)
SHAPE = r"must have shape \(batch_size, frames, 6\), with 6 mel bins \(num_mel_bins of the configuration\)"
WRONG_FEATURES = {
    "another number of mel bins": (torch.zeros(2, 5, 7), ValueError, SHAPE + r" last, got \(2, 5, 7\)"),
    "mel bins first": (torch.zeros(2, 6, 5), ValueError, SHAPE),
    "a channel": (torch.zeros(2, 1, 5, 6), ValueError, SHAPE + r".*got \(2, 1, 5, 6\)"),
    "one clip": (torch.zeros(5, 6), ValueError, SHAPE),
    "no frames": (torch.zeros(2, 0, 6), ValueError, SHAPE + r".*got \(2, 0, 6\)"),
    "a waveform": (torch.zeros(2, 16000), ValueError, SHAPE),
    "whole numbers": (
        torch.zeros(2, 5, 6).long(),
        TypeError,
        "must be a floating-point tensor, got torch.int64.*extractor",
    ),
    "an array": (
        torch.zeros(2, 5, 6).numpy(),
        TypeError,
        "must be a floating-point tensor, got ndarray.*feature extractor",
    ),
}


@every_configuration
@pytest.mark.parametrize("case", WRONG_FEATURES)
def test_wrong_features_are_refused(name, case):
    model = tiny.model(name)
    wrong, error, message = WRONG_FEATURES[case]
    calls = [model, model.encode, model.encode_content]
    calls += [lambda features: model.convert(features, FEATURES), copy.deepcopy(model).train()]
    for call in calls:
        with pytest.raises(error, match=f"^input_features {message}"):
            call(wrong)
    if case != "a channel":  # which are several clips of a voice
        message = message.replace(r", 6\),", r", 6\) or \(batch_size, clips, frames, 6\),", 1)
        for call in (model.encode_speaker, lambda features: model.convert(FEATURES, features)):
            with pytest.raises(error, match=f"^speaker_features {message}"):
                call(wrong)


def wrong_calls(model):
    features, mask = FEATURES, MASK
    latents, voices = model.encode(features).latents, model.encode_speaker(features)
    three = torch.zeros(3, 5, 6)
    shape = r"attention_mask must have shape \(2, 5\), got"
    yield lambda: model(features, mask[:, :4]), ValueError, shape
    yield lambda: model(features, mask[0]), ValueError, shape
    yield lambda: model.encode(features, mask[:1]), ValueError, shape
    yield lambda: model(features, mask, features, mask[:, :4]), ValueError, "speaker_" + shape
    yield (
        lambda: model(features, content_features=features[:, :4]),
        ValueError,
        r"the shape of input_features, \(2, 5, 6",
    )
    yield lambda: model(features, speaker_features=three), ValueError, "speaker_features must be as many as.*2, got 3"
    ids = torch.zeros(3, dtype=torch.int64)
    yield (
        lambda: model(features, speaker_ids=ids),
        ValueError,
        "speaker_ids must be as many as input_features, 2, got 3",
    )
    message = r"speaker_ids must be whole numbers of shape \(batch_size,\), got torch"
    yield lambda: model(features, speaker_ids=torch.zeros(2)), ValueError, message
    yield lambda: model(features, speaker_ids=torch.zeros(2, 1).long()), ValueError, message
    message = "needs the voice to convert to: either speaker_features or speaker_embeddings"
    yield lambda: model.convert(features), ValueError, message
    yield lambda: model.convert(features, features, speaker_embeddings=voices), ValueError, message
    message = r"speaker_embeddings must have shape \(2, 4\), got \(3, 4\)"
    yield lambda: model.convert(features, three), ValueError, message
    yield lambda: model.decode(latents, voices[[0, 1, 1]]), ValueError, message
    yield lambda: model.decode(latents, voices[:, :3]), ValueError, "speaker_embeddings must have shape"
    yield lambda: model.decode(latents, voices.tolist()), TypeError, "speaker_embeddings must be .*got list"
    yield (
        lambda: model.decode(latents[0], voices),
        ValueError,
        r"latents must have shape \(batch_size, latent frames, 3\)",
    )
    yield lambda: model.decode(latents[..., :2], voices), ValueError, "latents must have shape"
    yield (
        lambda: model.decode(latents.long(), voices),
        TypeError,
        "latents must be a floating-point tensor, got torch.int64",
    )
    message = "3 latent frames are those of 5 to 6 frames of features, got"
    for frames in (4, 7):
        yield lambda frames=frames: model.decode(latents, voices, num_frames=frames), ValueError, message
    yield lambda: model.decode(latents, voices, mask[:, :4]), ValueError, message
    for wrong in (mask[0], mask[:1]):
        yield (
            lambda wrong=wrong: model.decode(latents, voices, wrong),
            ValueError,
            r"mask must have shape \(2, frames\), got",
        )


@pytest.mark.parametrize("name", [NONE, "speech_vqvae-ema"])
def test_what_does_not_fit_together_is_refused(name):
    model = tiny.model(name)
    for call, error, message in wrong_calls(model):
        with pytest.raises(error, match=message):
            call()


def test_noise_of_another_shape_is_refused():
    model = tiny.model("voice_conversion-kl")
    with pytest.raises(ValueError, match=r"epsilon must have shape \(2, 5, 3\), got \(2, 5, 4\)"):
        model(FEATURES, epsilon=torch.zeros(2, 5, 4))
