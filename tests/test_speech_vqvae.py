"""The speech VQ-VAE: its codes. What it shares with the voice conversion model is tested there."""

import pytest
import tiny
import torch
from transformers import AutoModelForAudioTokenization
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from hf_autoencoders import SpeechVQVAEConfig
from hf_autoencoders.models.speech_layers import jitter_frames

every_configuration = pytest.mark.parametrize(
    "name", [name for name in tiny.SPEECH_NAMES if name.startswith("speech_vqvae")]
)
EMA, RESIDUAL = "speech_vqvae-ema", "speech_vqvae-residual"


def test_rates():
    """16 kHz, 200 samples a frame, two frames a code: 40 codes a second; of 128 values, 7 bits each."""
    config = SpeechVQVAEConfig()
    assert config.codes_per_second == 40 and config.bits_per_second == 280
    config = SpeechVQVAEConfig(num_codebooks=3, codebook_size=1024, num_downsamplings=3, hop_length=100)
    assert config.codes_per_second == 20 and config.bits_per_second == 600
    tiny_config = tiny.config(EMA)  # 8000 / 100 frames a second
    codes = tiny.model(EMA).encode(torch.randn(1, 80, 6)).audio_codes
    assert codes.shape[-1] == tiny_config.codes_per_second


@every_configuration
def test_codes_decode_to_what_their_latents_decode_to(name):
    model = tiny.model(name)
    features, mask = tiny.clips(model.config)
    encoded = model.encode(features, mask)
    codes, voices = encoded.audio_codes, model.encode_speaker(features, mask)
    assert codes.dtype == torch.int64 and 0 <= codes.min() and codes.max() < model.config.codebook_size
    assert encoded.codes is codes and len(codes.unique()) > 1
    real = encoded.attention_mask.unsqueeze(1).expand_as(codes).bool()
    assert not codes[~real].any() and not encoded.latents[encoded.attention_mask == 0].any()
    decoded = model.decode_codes(codes, voices, mask)
    torch.testing.assert_close(decoded, model.decode(encoded.latents, voices, mask))
    torch.testing.assert_close(decoded, model(features, mask).reconstruction)
    torch.testing.assert_close(model.decode_codes(codes.int(), voices, mask), decoded)
    for frames in (9, 10, 11, 12):
        if -(-frames // model.config.downsampling) == codes.shape[-1]:
            assert model.decode_codes(codes, voices, num_frames=frames).shape == (6, frames, 6)
    other = (codes + 1) % model.config.codebook_size
    assert not torch.allclose(model.decode_codes(other, voices, mask), decoded, atol=1e-4)


def test_latents_are_entries_of_the_codebook():
    model = tiny.model(RESIDUAL)
    features, mask = tiny.clips(model.config)
    encoded = model.encode(features, mask)
    quantizers = model.quantizer.quantizers
    entries = sum(quantizer.codebook[encoded.codes[:, index]] for index, quantizer in enumerate(quantizers))
    real = encoded.attention_mask.bool()
    torch.testing.assert_close(encoded.latents[real], entries[real])


def test_gradients_pass_the_codes_straight_through():
    """What the decoder wants of the latents is what the encoder's output is told, as if they were the same."""
    model = tiny.model("speech_vqvae-gradient", commitment_cost=0, codebook_cost=0)
    features, mask = tiny.clips(model.config)
    states = []
    model.content_encoder.register_forward_hook(lambda module, inputs, output: states.append(output[0]))
    norm = model.content_norm
    model.content_norm.register_forward_hook(lambda module, inputs, output: states.append(output))
    outputs = model(features, mask)
    assert norm is model.content_norm and len(states) == 2
    (wanted,) = torch.autograd.grad(outputs.reconstruction_loss, states[1], retain_graph=True)
    latents = outputs.latents.detach().requires_grad_()
    decoded = model.decode(latents, outputs.speaker_embeddings.detach(), mask)
    loss = (decoded - features).abs()[mask.bool()].mean()
    (expected,) = torch.autograd.grad(loss, latents)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(wanted.mT, expected)


def test_losses():
    model = tiny.model("speech_vqvae-gradient", commitment_cost=0.5, codebook_cost=2.0)
    inputs = tiny.inputs(model.config)
    states = []
    model.content_norm.register_forward_hook(lambda module, inputs, output: states.append(output.mT))
    outputs = model(**inputs)
    real = outputs.attention_mask.bool()
    squared = (states[0] - outputs.latents)[real].square().mean()
    torch.testing.assert_close(outputs.commitment_loss, squared)
    torch.testing.assert_close(outputs.codebook_loss, squared)
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_loss + 0.5 * squared + 2.0 * squared)


def test_codebook_starts_from_real_frames():
    """Padding is no vector to start k-means from, nor one to be counted."""
    model = tiny.model(EMA, instance_norm=False).train()
    features, mask = tiny.clips(model.config, 2, frames=40)
    mask[1], features[1] = 0, 0
    mask[0], features[0] = 1, torch.randn(40, 6)
    model(features, mask)
    quantizer = model.quantizer.quantizers[0]
    alone = tiny.model(EMA, instance_norm=False).train()
    alone(features[:1], mask[:1])
    for name, value in alone.quantizer.quantizers[0].state_dict().items():
        torch.testing.assert_close(quantizer.state_dict()[name], value, msg=name)
    torch.testing.assert_close(quantizer.usage.sum(), torch.tensor(8.0))


def test_it_is_an_audio_codec_to_transformers(tmp_path):
    model = tiny.model(EMA)
    assert isinstance(model, PreTrainedAudioTokenizerBase)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForAudioTokenization.from_pretrained(tmp_path)
    features, _ = tiny.clips(model.config)
    assert torch.equal(loaded.encode(features).audio_codes, model.encode(features).audio_codes)


def test_codes_are_the_same_in_half_precision(tmp_path):
    """The codebook stays in float32; what is rounded is the network before it."""
    model = tiny.model(EMA)
    model.save_pretrained(tmp_path)
    half = AutoModelForAudioTokenization.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.quantizer.quantizers[0].codebook.dtype == torch.float32
    features, mask = tiny.clips(model.config, 32)
    codes = [each.encode(features, mask).codes for each in (model, half)]
    assert (codes[0] == codes[1]).float().mean() > 0.9


WRONG_CODES = {
    "too large": (torch.full((2, 1, 3), 8), ValueError, "codes must be from 0 to 7, got values from 8 to 8"),
    "negative": (torch.full((2, 1, 3), -1), ValueError, "codes must be from 0 to 7, got values from -1 to -1"),
    "no codebooks": (torch.zeros(2, 3).long(), ValueError, r"\(batch_size, 1, latent frames\).*got \(2, 3\)"),
    "two codebooks": (torch.zeros(2, 2, 3).long(), ValueError, r"\(batch_size, 1, latent frames\).*got \(2, 2, 3\)"),
    "floats": (torch.zeros(2, 1, 3), TypeError, "float32"),
    "a list": ([[[1, 2, 3]]], TypeError, "list"),
}


@pytest.mark.parametrize("case", WRONG_CODES)
def test_wrong_codes_are_refused(case):
    model = tiny.model(EMA)
    wrong, error, message = WRONG_CODES[case]
    with pytest.raises(error, match=message):
        model.decode_codes(wrong, torch.zeros(2, 4))


def test_voices_and_lengths_that_do_not_fit_codes_are_refused():
    model = tiny.model(EMA)
    codes = torch.zeros(2, 1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"speaker_embeddings must have shape \(2, 4\), got \(3, 4\)"):
        model.decode_codes(codes, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="3 latent frames are those of 5 to 6 frames of features, got 7"):
        model.decode_codes(codes, torch.zeros(2, 4), num_frames=7)


# ---- time jitter


def test_jitter_takes_neighbours():
    latents = torch.arange(1.0, 7.0).view(1, 1, 6).repeat(2, 1, 1)
    mask = torch.tensor([[1.0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).unsqueeze(1)
    noise = torch.tensor([[0.1, 0.1, 0.5, 0.9, 0.5, 0.9], [0.5, 0.9, 0.9, 0.9, 0.1, 0.5]])
    jittered = jitter_frames(latents * mask, mask, noise, chance=0.5)
    assert jittered[0, 0].tolist() == [1, 1, 3, 5, 5, 6]  # the first and the last have one neighbour only
    assert jittered[1, 0].tolist() == [1, 3, 3, 0, 0, 0]  # padding is none
    assert torch.equal(jitter_frames(latents * mask, mask, noise, chance=0.1), latents * mask)


def test_jitter_is_for_training():
    model = tiny.model("speech_vqvae-jitter", time_jitter=1.0)
    features, mask = tiny.clips(model.config, 3, frames=24)
    noise = torch.rand(3, 12)
    calm = model(features, mask)
    assert torch.equal(model(features, mask, epsilon=noise).reconstruction, calm.reconstruction)
    model.train()
    jittered = model(features, mask, epsilon=noise)
    assert not torch.equal(jittered.latents, model(features, mask, epsilon=1 - noise).latents)
    assert torch.equal(model.encode(features, mask).latents, model.encode(features, mask).latents)
    with pytest.raises(ValueError, match=r"epsilon must have shape \(3, 12\), got \(3, 11\)"):
        model(features, mask, epsilon=noise[:, 1:])
