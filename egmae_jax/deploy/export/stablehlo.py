"""Writes a classifier as a StableHLO program, which `jax.export` loads without this package.

The weights are constants of the program. It is lowered for CPU, CUDA and TPU and for any batch
size, with matrix products and convolutions in full float32 precision.
"""

from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from egmae_jax.core import platform
from egmae_jax.core.files import write_atomically, write_json
from egmae_jax.data import samples
from egmae_jax.deploy.export.system import System

_PLATFORMS = ("cpu", "cuda", "tpu")


def lower(system: System) -> jax.export.Exported:
    """Lowers `System.probabilities` to StableHLO for all platforms and any batch size.

    The program maps images uint8 [batch, S, S, 3] to a dict of 'probabilities' and 'calibrated',
    float32 [batch, C] each.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    size = system.view.size
    images = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    with platform.portable(), jax.default_matmul_precision("highest"):
        return jax.export.export(jax.jit(system.probabilities), platforms=_PLATFORMS)(images)


def write(system: System, path: Path) -> None:
    """Writes the program and PATH.json, which describes its classes and its input images.

    Raises:
        ValueError: the weights exceed 2 GB, the limit of the format.
    """
    write_atomically(path, bytes(lower(system).serialize(vjp_order=0)))
    view = system.view
    description = {
        "jax": jax.__version__,
        "classes": list(system.classes),
        "input": {"shape": ["batch", view.size, view.size, 3], "dtype": "uint8"},
        "preprocessing": {
            "before": view.describe(),
            "image_size": view.size,
            "resize": view.resize,
            "resized_to": view.resized,
            "color": view.color,
            "intensity_range": samples.to_json(view.intensity),
        },
    }
    write_json(path.with_name(f"{path.name}.json"), description)


def load(path: Path) -> Any:
    """Loads a program as a jitted function of images uint8 [B, S, S, 3]."""
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
