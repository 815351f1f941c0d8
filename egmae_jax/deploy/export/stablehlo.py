"""A classifier as one StableHLO program that `jax.export` loads: no other file, no other package.

The weights are constants in it. It is lowered for CPU, CUDA and TPU, for any number of images, with
matrix products and convolutions in full float32 precision on each.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from egmae_jax.core import platform
from egmae_jax.core.files import write_atomically, write_json
from egmae_jax.data import samples
from egmae_jax.deploy.export.system import System
from egmae_jax.method import augment

PLATFORMS = ("cpu", "cuda", "tpu")


def lower(system: System) -> jax.export.Exported:
    """Lowers uint8 [batch, S, S, 3] -> {'probabilities', 'calibrated'}, [batch, C] each."""
    (batch,) = jax.export.symbolic_shape("batch")
    size = system.view.size
    images = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    with platform.portable(), jax.default_matmul_precision("highest"):
        return jax.export.export(jax.jit(system.probabilities), platforms=PLATFORMS)(images)


def write(system: System, path: Path) -> None:
    """Writes the program and, beside it, a JSON file that describes it.

    Raises:
        ValueError: the weights are more than the format holds, 2 GB.
    """
    program = lower(system)
    content = bytes(program.serialize(vjp_order=0))
    write_atomically(path, content)
    write_json(path.with_name(f"{path.name}.json"), _description(system, program, content))


def _description(system: System, program: jax.export.Exported, content: bytes) -> dict[str, Any]:
    size, resize, color, resized, intensity = system.view
    output = {"shape": ["batch", len(system.classes)], "dtype": "float32"}
    return {
        "format": "jax.export.Exported, serialized",
        "sha256": hashlib.sha256(content).hexdigest(),
        "jax": jax.__version__,
        "calling_convention_version": program.calling_convention_version,
        "platforms": list(program.platforms),
        "input": {"shape": ["batch", size, size, 3], "dtype": "uint8"},
        "preprocessing": {
            "before": system.view.in_words(),
            "image_size": size,
            "resize": resize,
            "resized_to": resized,
            "color": color,
            "intensity_range": samples.to_json(intensity),
            "within": "pixel / 255, less the mean, divided by the standard deviation",
            "mean": augment.MEAN,
            "std": augment.STD,
        },
        "outputs": {
            "probabilities": {**output, "of": "softmax" if system.fusion is None else "fusion"},
            "calibrated": {
                **output,
                "temperature": system.scaling.temperature,
                "least_probability": system.scaling.least,
            },
        },
        "classes": list(system.classes),
        "networks": {n.branch.name: n.branch.model_name for n in system.networks},
        "fusion": None if system.fusion is None else system.fusion._asdict(),
    }


def load(path: Path) -> Any:
    """Loads a program from its file; it is called with images."""
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
