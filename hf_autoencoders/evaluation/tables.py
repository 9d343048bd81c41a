"""How well does an auto-encoder rebuild rows of a table? Beside PCA with as many numbers."""

import datetime
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .evaluate import describe_machine, library_versions, variant_name


@torch.no_grad()
def evaluate_table(
    model,
    train,
    validation,
    *,
    corpus: dict[str, Any],
    batch_size: int = 500,
    seed: int = 0,
    command: str | None = None,
) -> dict[str, Any]:
    """Measure a model of rows on those of `validation`; `train` serves the baseline. Both are `TableRows`.

    Returns:
        As `evaluate_model`. `metrics`: `mse`, of standardised columns; `elbo`, nats for each row, where the decoder is
        a likelihood. `baselines`: `pca_same_size_mse`, and `mean_mse`, of what knows the means only.
    """
    from sklearn.decomposition import PCA

    was_training, config = model.training, model.config
    model.eval()
    try:
        squared_error = loss = 0.0
        for first in range(0, len(validation), batch_size):
            rows = torch.from_numpy(validation.values[first : first + batch_size]).to(model.device)
            outputs = model(rows)
            squared_error += (outputs.reconstruction.float() - rows).square().sum().item()
            if outputs.get("kl_loss") is not None:
                loss += (outputs.reconstruction_loss + outputs.kl_loss).item() * len(rows)
    finally:
        model.train(was_training)
    metrics = {"mse": squared_error / validation.values.size}
    if hasattr(model, "_log_likelihood"):
        metrics["elbo"] = -loss / len(validation)
    size = min(math.prod(config.latent_shape), *train.values.shape)
    pca = PCA(size, random_state=seed).fit(train.values)
    rebuilt = pca.inverse_transform(pca.transform(validation.values))
    return {
        "model_type": config.model_type,
        "name": variant_name(config.model_type),
        "corpus": {**corpus, "rows": len(validation), "train_rows": len(train)},
        "metrics": metrics,
        "baselines": {
            "pca_same_size_mse": float(np.square(rebuilt - validation.values).mean()),
            "mean_mse": float(np.square(validation.values - train.values.mean(0)).mean()),
        },
        "not_measured": {},
        "settings": {"batch_size": batch_size, "dtype": str(model.dtype).removeprefix("torch.")},
        "seed": seed,
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": describe_machine(model.device),
        "versions": library_versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
