"""Reads checkpoints of PyTorch as they lie around: pickled, nested and prefixed."""

import argparse
import logging
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from egmae_jax.models.weights import CheckpointError, read

_NESTS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
_PREFIXES = re.compile(r"^((module|_orig_mod|model)\.)+")  # DataParallel, torch.compile, Lightning
_WAY_OUT = "Where you trust it: torch.save(model.state_dict(), FILE)."
logger = logging.getLogger(__name__)


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint by their names in the network, floats as float32.

    Args:
        path: safetensors, npz, or what `torch.load(weights_only=True)` reads. The weights may be
            nested ('state_dict', 'model', ...) and prefixed ('module.', ...).

    Raises:
        CheckpointError: the file is missing, damaged, or holds no weights of a network.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}; a checkpoint is expected.")
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
        # timm saves a training's command line beside the weights, which is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files bring whatever the unpickler stumbles upon
        raise CheckpointError(
            f"{path} cannot be read by torch.load(weights_only=True) ({type(error).__name__}): it "
            f"is damaged, or holds more than tensors, such as a whole model. {_WAY_OUT}"
        ) from None
    while isinstance(content, dict):
        nests = [name for name in _NESTS if isinstance(content.get(name), dict)]
        if not nests:
            break
        if len(nests) > 1:
            logger.warning("%s holds %s; %r is compared", path, ", ".join(nests), nests[0])
        content = content[nests[0]]
    values = content.values() if isinstance(content, dict) else []
    if not values or not all(isinstance(x, torch.Tensor) for x in values):
        raise CheckpointError(
            f"{path} holds no state dict of tensors but {str(content)[:60]!r}. {_WAY_OUT}"
        )
    return {
        str(name): (x.float() if x.is_floating_point() else x).detach().numpy()
        for name, x in content.items()
    }
