"""The networks that all variants share: any size, any number of channels."""

import pytest
import torch

from hf_autoencoders.models.configuration_autoencoder import AutoencoderConfig
from hf_autoencoders.models.layers import (
    ImageDecoder,
    ImageEncoder,
    LearnedScale,
    TrainingStepCounter,
    VectorDecoder,
    VectorEncoder,
)
from hf_autoencoders.models.losses import gaussian_log_likelihood


@pytest.mark.parametrize("architecture", ["mlp", "conv", "resnet"])
@pytest.mark.parametrize("num_channels", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, (1, 9), (5, 7), 28, 32, (33, 47), (64, 6)], ids=str)
def test_every_size_comes_back(architecture, num_channels, size):
    config = AutoencoderConfig(
        architecture=architecture,
        image_size=size,
        num_channels=num_channels,
        hidden_sizes=(6, 5, 4),
        num_residual_blocks=1,
    )
    channels, height, width = config.input_shape
    assert (height, width) == (size if isinstance(size, tuple) else (size, size))
    images = torch.rand(2, *config.input_shape)
    features, levels = ImageEncoder(config)(images)
    assert features.shape == (2, *config.feature_shape) and len(levels) == 3 and levels[-1] is features
    assert ImageDecoder(config)(features).shape == images.shape
    vectors, _ = VectorEncoder(config, 7)(images)
    assert vectors.shape == (2, 7)
    assert VectorDecoder(config, 7)(vectors).shape == images.shape


@pytest.mark.parametrize("architecture", ["conv", "resnet"])
def test_level_sizes_are_halves_rounded_up(architecture):
    config = AutoencoderConfig(architecture=architecture, image_size=(33, 47), hidden_sizes=(8, 8, 8))
    assert config.level_sizes == [(33, 47), (17, 24), (9, 12), (5, 6)]
    assert config.feature_shape == (8, 5, 6)
    levels = ImageEncoder(config)(torch.rand(1, 1, 33, 47))[1]
    assert [tuple(level.shape[2:]) for level in levels] == config.level_sizes[1:]


def test_a_linear_autoencoder_is_linear():
    config = AutoencoderConfig(architecture="mlp", hidden_sizes=(), image_size=4)
    encoder, decoder = VectorEncoder(config, 3), VectorDecoder(config, 3)
    a, b = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    between = decoder(encoder(0.3 * a + 0.7 * b)[0])
    torch.testing.assert_close(between, 0.3 * decoder(encoder(a)[0]) + 0.7 * decoder(encoder(b)[0]))


def test_every_pixel_depends_on_the_features_and_every_feature_on_the_pixels():
    config = AutoencoderConfig(image_size=(5, 7), hidden_sizes=(4, 4), hidden_act="gelu")
    encoder, decoder = ImageEncoder(config), ImageDecoder(config)
    features = encoder(torch.rand(1, 1, 5, 7))[0].detach()
    jacobian = torch.autograd.functional.jacobian(lambda f: decoder(f).flatten(), features)
    assert (jacobian.flatten(1).abs().sum(1) > 0).all()
    jacobian = torch.autograd.functional.jacobian(lambda x: encoder(x)[0].flatten(), torch.rand(1, 1, 5, 7))
    assert (jacobian.flatten(1).abs().sum(0) > 0).all()


def test_step_counter():
    counter = TrainingStepCounter()
    assert [counter().item() for _ in range(3)] == [0, 1, 2]
    counter.eval()
    assert [counter().item() for _ in range(2)] == [3, 3]
    restored = TrainingStepCounter()
    restored.load_state_dict(counter.state_dict())
    assert restored().item() == 3


def test_the_best_learned_scale_is_the_root_mean_squared_error():
    mean, targets = torch.zeros(16, 2, 8, 8), torch.randn(16, 2, 8, 8) * torch.tensor([0.05, 0.6]).view(2, 1, 1)
    scale = LearnedScale(2)
    optimizer = torch.optim.Adam(scale.parameters(), lr=0.2)
    for _ in range(300):
        loss = -gaussian_log_likelihood(mean, scale(), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = targets.square().mean((0, 2, 3)).sqrt()
    torch.testing.assert_close(scale().exp().flatten(), expected, rtol=1e-3, atol=0)
    scale.raw.data.fill_(-1e3)
    assert scale().tolist() == [[[LearnedScale.minimum]]] * 2  # a perfect reconstruction does not run away
