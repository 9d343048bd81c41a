"""Tiny configurations of every variant, for the checks that walk the table of variants.

A variant's own options stand here too, so that a new one is covered by every common check from its first day.
"""

import torch

from hf_autoencoders import VARIANTS

MLP = {"architecture": "mlp", "image_size": 6, "hidden_sizes": (16,)}
CONV = {"architecture": "conv", "image_size": 8, "hidden_sizes": (4, 8)}
ODD = {"architecture": "conv", "image_size": (5, 7), "num_channels": 3, "hidden_sizes": (8,), "hidden_act": "gelu"}
RESNET = {"architecture": "resnet", "image_size": (9, 6), "hidden_sizes": (4, 8), "num_residual_blocks": 1}

# model_type -> name -> fields of the configuration. The first of each variant stands for it where one is enough; each
# needs one with `architecture="resnet"`, which is the deep one.
FIELDS: dict[str, dict[str, dict]] = {
    "hfae_autoencoder": {
        "conv": {**CONV, "latent_size": 4},
        "mlp": {**MLP, "latent_size": 3, "reconstruction_loss": "bce"},
        "linear": {**MLP, "hidden_sizes": (), "latent_size": 3},
        "resnet": {**RESNET, "latent_size": 4},
        "denoising": {**CONV, "latent_size": 4, "noise": "gaussian"},
        "sparse": {**ODD, "latent_size": 4, "latent_activation": "sigmoid", "sparsity": "kl", "sparsity_weight": 0.1},
        "contractive": {**MLP, "latent_size": 4, "contractive_weight": 0.1, "sparsity": "l1"},
    },
    "hfae_vae": {
        "bernoulli": {**CONV, "latent_size": 4},
        "mlp": {**MLP, "latent_size": 3, "kl_warmup_steps": 4, "beta": 2.0},
        "gaussian": {**RESNET, "latent_size": 4, "likelihood": "gaussian", "free_bits": 0.1},
        "logistic": {**ODD, "latent_size": 4, "likelihood": "discretized_logistic"},
        "weighted": {**MLP, "latent_size": 3, "num_posterior_samples": 3},
    },
    "hfae_vqvae": {
        "ema": {**CONV, "codebook_size": 8, "embedding_dim": 4},
        "resnet": {**RESNET, "codebook_size": 8, "embedding_dim": 4},
        "gradient": {**CONV, "codebook_size": 8, "embedding_dim": 4, "codebook_update": "gradient"},
        "cosine": {**ODD, "codebook_size": 8, "embedding_dim": 4, "codebook_distance": "cosine"},
        "cosine-gradient": {
            **CONV,
            "codebook_size": 8,
            "embedding_dim": 4,
            "codebook_distance": "cosine",
            "codebook_update": "gradient",
        },
        "residual": {**CONV, "codebook_size": 8, "embedding_dim": 4, "num_codebooks": 3},
        "fsq": {**ODD, "quantizer": "fsq", "fsq_levels": (4, 3, 5)},
    },
}

VARIANT_NAMES = [variant.name for variant in VARIANTS.values()]
NAMES = [f"{VARIANTS[model_type].name}-{name}" for model_type, rows in FIELDS.items() for name in rows]
FIRST = {name.partition("-")[0]: name for name in reversed(NAMES)}  # variant -> its first name


def config(name: str, **fields):
    """The configuration called `variant-name` above; `fields` replace some of its fields."""
    variant, _, row = name.partition("-")
    model_type = f"hfae_{variant}"
    return VARIANTS[model_type].config_class()(**{**FIELDS[model_type][row], **fields})


def model(name: str, seed: int = 0, **fields):
    """A model of that configuration with the weights of `seed`, in evaluation mode."""
    torch.manual_seed(seed)
    variant = VARIANTS[f"hfae_{name.partition('-')[0]}"]
    return variant.model_class()(config(name, **fields)).eval()


def images(config, batch_size: int = 6, seed: int = 1) -> torch.Tensor:
    """Smooth random images `(batch_size, C, H, W)` in [0, 1], in steps of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = config.input_shape
    coarse = torch.rand(batch_size, channels, (height + 2) // 3, (width + 2) // 3, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (images * 255).round() / 255


def training_inputs(model, batch_size: int = 6, seed: int = 1) -> dict[str, torch.Tensor]:
    """What `forward` needs to compute the same loss at every call in training mode, too: images, and noise by name."""
    inputs = {"pixel_values": images(model.config, batch_size, seed)}
    if model.config.model_type == "hfae_vae":
        generator = torch.Generator().manual_seed(seed)
        inputs["epsilon"] = torch.randn(batch_size, model.config.latent_size, generator=generator)
    return inputs
