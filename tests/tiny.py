"""Tiny configurations of every variant, for the checks that walk the table of variants.

A variant's own options stand here too, so that a new one is covered by every common check from its first day.
"""

import functools

import torch

from hf_autoencoders import VARIANTS
from hf_autoencoders.data.tokenizer import train_tokenizer

MLP = {"architecture": "mlp", "image_size": 6, "hidden_sizes": (16,)}
CONV = {"architecture": "conv", "image_size": 8, "hidden_sizes": (4, 8)}
ODD = {"architecture": "conv", "image_size": (5, 7), "num_channels": 3, "hidden_sizes": (8,), "hidden_act": "gelu"}
RESNET = {"architecture": "resnet", "image_size": (9, 6), "hidden_sizes": (4, 8), "num_residual_blocks": 1}

VOCAB_SIZE = 320  # of the tokenizer below
T5 = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0,
}
COPYING = {**T5, "copy_head": True}
POINTER = {**COPYING, "countdown_size": 6}
JUDGE = {"vocab_size": VOCAB_SIZE, "hidden_size": 8, "num_layers": 1}
SUMMARIZER = {
    "summarizer": {**POINTER, "default_words": 4},
    "reconstructor": COPYING,
    "max_summary_tokens": 6,
    "max_source_tokens": 12,
}

SPEECH = {
    "num_mel_bins": 6,
    "sampling_rate": 8000,
    "hop_length": 100,
    "hidden_size": 8,
    "num_encoder_blocks": 2,
    "num_decoder_blocks": 2,
    "num_speaker_blocks": 1,
    "kernel_size": 3,
    "speaker_size": 4,
    "latent_size": 3,
}
DISENTANGLING = {
    "num_speakers": 3,
    "speaker_adversarial_weight": 0.5,
    "conversion_weight": 0.5,
    "content_consistency_weight": 0.5,
    "speaker_consistency_weight": 0.5,
}
CODES = {**SPEECH, "codebook_size": 8}
GPT2 = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}

# model_type -> name -> fields of the configuration. The first of each variant stands for it where one is enough; each
# variant of images needs one with `architecture="resnet"`, which is the deep one.
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
    "hfae_beta_vae": {
        "capacity": {**CONV, "latent_size": 4, "capacity_warmup_steps": 4, "max_capacity": 0.5, "capacity_weight": 2.0},
        "resnet": {**RESNET, "latent_size": 4, "max_capacity": 0, "capacity_weight": 4.0},
    },
    "hfae_beta_tcvae": {
        "conv": {**CONV, "latent_size": 4, "total_correlation_weight": 3.0},
        "resnet": {
            **RESNET,
            "latent_size": 4,
            "dimension_kl_weight": 2.0,
            "initial_kl_scale": 4.0,
            "kl_decay_steps": 4,
        },
        "mlp": {**MLP, "latent_size": 3, "total_correlation_weight": 1.0},
    },
    "hfae_factor_vae": {
        "conv": {**CONV, "latent_size": 4, "discriminator_hidden_sizes": (8, 6)},
        "resnet": {**RESNET, "latent_size": 4, "initial_kl_scale": 4.0, "kl_decay_steps": 4, "kl_weight": 0.5},
    },
    "hfae_dip_vae": {
        "aggregate": {**CONV, "latent_size": 4},
        "resnet": {**RESNET, "latent_size": 4, "covariance": "means", "spatial_broadcast": True},
    },
    "hfae_categorical_autoencoder": {
        "conv": {**CONV, "num_categories": 5, "temperature_decay_steps": 4},
        "resnet": {**RESNET, "num_categories": 4, "num_variables": 2, "sampling": "straight_through"},
        "clustering": {
            **MLP,
            "num_categories": 3,
            "mutual_information_weight": 2.0,
            "num_fine_categories": 5,
            "fine_steps": 2,
        },
    },
    "hfae_binary_autoencoder": {
        "conv": {**CONV, "num_bits": 5},
        "resnet": {**RESNET, "num_bits": 4, "sampling": "relaxed", "temperature_decay_steps": 4},
        "mlp": {**MLP, "num_bits": 4, "sampling": "straight_through", "balance_weight": 2.0},
    },
    "hfae_joint_vae": {
        "conv": {**CONV, "latent_size": 3, "num_categories": 4, "max_continuous_capacity": 0.5},
        "resnet": {**RESNET, "latent_size": 3, "num_categories": 3, "num_variables": 2, "capacity_warmup_steps": 4},
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
    "hfae_image_codec": {
        "conv": {**CONV, "hyper_size": 4, "lambdas": (2e-5, 1e-4)},
        "resnet": {**RESNET, "hyper_size": 4, "lambdas": (2e-5, 1e-4), "entropy_model": "scale_hyperprior"},
        "factorized": {
            **CONV,
            "num_channels": 3,
            "image_size": (5, 7),
            "lambdas": (1e-5,),
            "entropy_model": "factorized",
        },
    },
    "hfae_seq2seq2seq": {
        "pointer": SUMMARIZER,
        "plain": {**SUMMARIZER, "summarizer": T5, "reconstructor": {**T5, "d_model": 8}, "share_embeddings": False},
        "wgan": {**SUMMARIZER, "discriminator": {**JUDGE, "kind": "wgan_gp"}},
        "critic": {**SUMMARIZER, "discriminator": {**JUDGE, "kind": "critic"}, "estimator": "reinforce"},
        "prior": {**SUMMARIZER, "discriminator": {**JUDGE, "kind": "language_model"}, "entropy_weight": 0.1},
    },
    "hfae_voice_conversion": {
        "none": SPEECH,
        "kl": {**SPEECH, "content_bottleneck": "kl", "num_downsamplings": 0, **DISENTANGLING},
        "vq": {**CODES, "content_bottleneck": "vq", "num_downsamplings": 2, **DISENTANGLING, "conversion_weight": 0},
        "plain": {**SPEECH, "instance_norm": False, **DISENTANGLING, "disentangling_warmup_steps": 4},
    },
    "hfae_speech_vqvae": {
        "ema": CODES,
        "jitter": {**CODES, "time_jitter": 0.4},
        "gradient": {**CODES, "codebook_update": "gradient", "kmeans_init": False, "dead_code_threshold": 0},
        "residual": {**CODES, "num_codebooks": 2, "num_downsamplings": 2, **DISENTANGLING},
    },
    "hfae_latent_prior": {
        "realnvp": {"latent_shape": (5,), "num_couplings": 3, "hidden_size": 8},
        "mixture": {"latent_shape": (4,), "prior": "gaussian_mixture", "num_components": 3},
        "diag": {"latent_shape": (2, 3), "prior": "gaussian_mixture", "num_components": 2, "covariance": "diag"},
    },
    "hfae_code_prior": {
        "grid": {**GPT2, "codes_shape": (1, 2, 3), "num_codes": 8, "num_classes": 3},
        "residual": {**GPT2, "codes_shape": (2, 2, 2), "num_codes": 5},
        "vector": {**GPT2, "codes_shape": (6,), "num_codes": 2, "num_classes": 2, "class_dropout": 0},
    },
}

VARIANT_NAMES = [variant.name for variant in VARIANTS.values()]
NAMES = [f"{VARIANTS[model_type].name}-{name}" for model_type, rows in FIELDS.items() for name in rows]
FIRST = {name.partition("-")[0]: name for name in reversed(NAMES)}  # variant -> its first name
IMAGE_NAMES, TEXT_NAMES, SPEECH_NAMES, PRIOR_NAMES = (
    [name for name in NAMES if VARIANTS[f"hfae_{name.partition('-')[0]}"].modality == modality]
    for modality in ("image", "text", "audio", "latent")
)


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


SENTENCES = (
    "oil prices rose sharply on monday after the exporters agreed to cut output",
    "the central bank left its interest rate where it was and said nothing more",
    "a new method finds the shortest path through a maze of any number of rooms",
    "exporters said that prices of oil would rise again if output was cut on monday",
)


@functools.cache
def tokenizer():
    """A tokenizer with `VOCAB_SIZE` tokens."""
    return train_tokenizer(SENTENCES, VOCAB_SIZE, num_sentinels=2)


def texts(config, batch_size: int = 6, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random rows of tokens, of different lengths: `input_ids` and `attention_mask`, and `target_ids` for a
    discriminator."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = config.summarizer.vocab_size

    def rows(length: int) -> torch.Tensor:
        ids = torch.randint(3, vocab_size, (batch_size, length), generator=generator)
        for row, end in enumerate(torch.randint(2, length, (batch_size,), generator=generator).tolist()):
            ids[row, end], ids[row, end + 1 :] = 1, 0
        ids[0] = torch.cat([ids[0, :1].expand(length - 1), ids.new_ones(1)])  # one of full length
        return ids

    input_ids = rows(9)
    inputs = {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}
    return inputs | ({"target_ids": rows(5)} if config.discriminator.kind != "none" else {})


def clips(config, batch_size: int = 6, seed: int = 1, frames: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features `(batch_size, frames, num_mel_bins)` that vary slowly, and the mask of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch_size, config.num_mel_bins, (frames + 2) // 3 + 1, generator=generator)
    features = torch.nn.functional.interpolate(coarse, size=frames, mode="linear").mT.contiguous()
    lengths = torch.randint(1, frames + 1, (batch_size,), generator=generator)
    lengths[0] = frames
    mask = (torch.arange(frames) < lengths[:, None]).long()
    return features * mask[..., None], mask


def speech(config, batch_size: int = 6, seed: int = 1) -> dict[str, torch.Tensor]:
    """A batch of clips, for each another one of the same speaker, and where content comes from a disguised one."""
    features, mask = clips(config, batch_size, seed)
    speaker_features, speaker_mask = clips(config, batch_size, seed + 1, frames=8)
    inputs = {
        "input_features": features,
        "attention_mask": mask,
        "speaker_features": speaker_features,
        "speaker_attention_mask": speaker_mask,
        "content_features": features + 0.1 * clips(config, batch_size, seed + 2)[0] * mask[..., None],
    }
    return inputs | ({"speaker_ids": torch.arange(batch_size) % config.num_speakers} if config.num_speakers else {})


def encoded(config, batch_size: int = 6, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random latents or codes of a prior, and classes where it knows any; the first one's is not known."""
    generator = torch.Generator().manual_seed(seed)
    if config.model_type == "hfae_latent_prior":
        return {"latents": torch.randn(batch_size, *config.latent_shape, generator=generator)}
    codes = torch.randint(config.num_codes, (batch_size, *config.codes_shape), generator=generator)
    classes = {"classes": torch.arange(batch_size) % config.num_classes} if config.num_classes else {}
    if classes:
        classes["classes"][0] = -1
    return {"codes": codes, **classes}


def feature_extractor(config):
    """An extractor for the waveforms of a speech model, with statistics."""
    processor_class = VARIANTS[config.model_type].processor_class()
    mean = [-5 + 0.1 * index for index in range(config.num_mel_bins)]
    sizes = {"hop_length": config.hop_length, "win_length": 4 * config.hop_length, "n_fft": 512}
    return processor_class(config.num_mel_bins, config.sampling_rate, mean=mean, std=2.5, **sizes)


def inputs(config, batch_size: int = 6, seed: int = 1) -> dict[str, torch.Tensor]:
    """What `forward` takes to go through the whole auto-encoder."""
    if VARIANTS[config.model_type].modality == "audio":
        return speech(config, batch_size, seed)
    if VARIANTS[config.model_type].modality == "latent":
        return encoded(config, batch_size, seed)
    if config.model_type == "hfae_seq2seq2seq":
        return texts(config, batch_size, seed)
    batch = {"pixel_values": images(config, batch_size, seed)}
    if config.model_type == "hfae_categorical_autoencoder" and config.mutual_information_weight > 0:
        batch["augmented_pixel_values"] = batch["pixel_values"].roll(1, dims=-1)
    return batch


def training_inputs(model, batch_size: int = 6, seed: int = 1) -> dict[str, torch.Tensor]:
    """What `forward` needs to compute the same loss at every call in training mode, too: inputs, and noise by name."""
    batch = inputs(model.config, batch_size, seed)
    generator = torch.Generator().manual_seed(seed)
    if hasattr(model, "_posterior") or model.config.model_type == "hfae_joint_vae":  # Gaussian latents
        batch["epsilon"] = torch.randn(batch_size, model.config.latent_size, generator=generator)
    if model.config.model_type == "hfae_factor_vae":
        batch["permutation_noise"] = torch.rand(batch_size, model.config.latent_size, generator=generator)
    if model.config.model_type == "hfae_binary_autoencoder":
        batch["uniform_noise"] = torch.rand(batch_size, model.config.num_bits, generator=generator)
    if "classes" in batch:
        batch["class_noise"] = torch.rand(batch_size, generator=generator)
    if hasattr(model.config, "num_categories"):
        size = (batch_size, model.config.num_variables, model.config.num_categories)
        batch["uniform_noise"] = torch.rand(size, generator=generator)
    if getattr(model.config, "content_bottleneck", None) == "kl":
        frames = -(-batch["input_features"].shape[1] // model.config.downsampling)
        batch["epsilon"] = torch.randn(batch_size, frames, model.config.latent_size, generator=generator)
    if getattr(model.config, "time_jitter", 0) > 0:
        frames = -(-batch["input_features"].shape[1] // model.config.downsampling)
        batch["epsilon"] = torch.rand(batch_size, frames, generator=generator)
    if model.config.model_type == "hfae_image_codec":
        size = model.config.input_shape[1:]
        batch["quality"] = torch.arange(batch_size) % len(model.config.lambdas) * 1.0
        batch["uniform_noise"] = torch.rand(batch_size, *model.config.latent_shape, generator=generator)
        if model.config.entropy_model != "factorized":
            shape = (batch_size, model.config.hyper_size, *model.config.hyper_grid(*size))
            batch["hyper_noise"] = torch.rand(shape, generator=generator)
    if model.config.model_type == "hfae_seq2seq2seq":
        size = (batch_size, model.config.max_summary_tokens, VOCAB_SIZE)
        batch["noise"] = torch.rand(size, generator=generator)
        batch["dropout_noise"] = torch.rand(batch["input_ids"].shape, generator=generator)
    return batch
