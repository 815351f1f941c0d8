"""Reads PyTorch checkpoints, also pickled ones with nested state dicts and prefixed names."""

import argparse
import logging
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from egmae_jax.models.weights import CheckpointError, read

_KEYS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
_PREFIXES = re.compile(r"^((module|_orig_mod|model)\.)+")  # DataParallel, torch.compile, Lightning
_WAY_OUT = "If you trust it, save only its weights: torch.save(model.state_dict(), FILE)."
logger = logging.getLogger(__name__)


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint.

    Args:
        path: safetensors or npz file, or a pickle that `torch.load(weights_only=True)` accepts. The
            state dict may lie under a key such as 'state_dict' or 'model', and its names may have
            prefixes such as 'module.'.

    Returns:
        Tensors by their names in the network, without prefixes; floats as float32.

    Raises:
        CheckpointError: the file is missing or damaged, or does not hold a state dict.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}; give the path of a checkpoint.")
    tensors = read(path) if path.suffix in {".safetensors", ".npz"} else _read_pickle(path)
    return {
        _PREFIXES.sub("", name): (
            x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
        )
        for name, x in tensors.items()
    }


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    import torch

    try:
        # timm saves the command-line arguments as a Namespace beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 (damaged files raise any kind of error)
        raise CheckpointError(
            f"{path} cannot be read by torch.load(weights_only=True) ({type(error).__name__}): it "
            f"is damaged, or holds more than tensors, such as a whole model. {_WAY_OUT}"
        ) from None
    while isinstance(content, dict):
        keys = [key for key in _KEYS if isinstance(content.get(key), dict)]
        if not keys:
            break
        if len(keys) > 1:
            logger.warning("%s contains %s; %r is used", path, ", ".join(keys), keys[0])
        content = content[keys[0]]
    values = content.values() if isinstance(content, dict) else []
    if not values or not all(isinstance(x, torch.Tensor) for x in values):
        raise CheckpointError(
            f"{path} does not contain a state dict of tensors but {str(content)[:60]!r}. {_WAY_OUT}"
        )
    return {
        str(name): (x.float() if x.is_floating_point() else x).detach().numpy()
        for name, x in content.items()
    }
