"""The encoder of a finished pre-training as a file for timm."""

from pathlib import Path

import numpy as np
from ml_collections import FrozenConfigDict

from egmae_jax.models import timm, transfer
from egmae_jax.run.config import load_config
from egmae_jax.run.workdir import Paths
from egmae_jax.training import pretrain


def write(workdir: Path) -> Path:
    """Writes encoder.safetensors of a run whose (first) pre-training is finished.

    The file has timm's names and loads strictly into `timm.create_model(name, num_classes=0)`. The
    norm before the classifier, which pre-training does not train, is the identity's scale and bias.

    Args:
        workdir: folder of the run.

    Returns:
        The path of the file.

    Raises:
        DamagedFileError: config.json or the autoencoder is missing or damaged.
    """
    config = FrozenConfigDict(load_config(workdir / "config.json"))
    paths = Paths.of(workdir, config)
    model = pretrain.create_autoencoder(config)
    params = transfer.load_autoencoder(paths.autoencoder(0), model)["encoder"]
    width = model.encoder.dims[-1]
    norm = {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}
    path = workdir / "encoder.safetensors"
    timm.save(
        {"params": {**params, "head": {"norm": norm}}}, path, config.model.name, classifier=False
    )
    return path
