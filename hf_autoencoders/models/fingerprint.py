"""A name for the weights of a model, by which what belongs to it knows it again: priors, and files of codes."""

import hashlib

import torch
from torch import nn


def weights_fingerprint(model: nn.Module, exact: bool = False) -> str:
    """16 hexadecimal digits that name the weights of a model.

    Of the names, shapes and values of its floating-point parameters and buffers, values rounded to bfloat16: loading
    the same weights in bfloat16 or on another device does not change it, training them on does. With `exact` values are
    not rounded, and count with their dtype. An anomaly detector that is fitted to the model later changes nothing.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point() and not name.startswith("detector."):
            values = tensor.detach().to("cpu", tensor.dtype if exact else torch.bfloat16).reshape(-1)
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype if exact else ''}".encode())
            digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
