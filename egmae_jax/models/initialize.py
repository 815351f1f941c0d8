"""Initial parameters without compiling anything.

`jax.jit(model.init)` compiles a random number generator for every leaf: 16 s for ConvNeXt-Tiny on
two cores. Shapes come from abstract evaluation instead and values from numpy, by the same rules the
modules declare (a test compares the two). A leaf's values depend on the seed and its path alone,
not on the platform, the number of devices or the JAX version.
"""

import zlib
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

PyTree = Any


def abstract_params(module: nn.Module, *inputs: jax.ShapeDtypeStruct) -> PyTree:
    """Shapes and dtypes of the parameters that `module.init` would make for these inputs."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def initial_params(module: nn.Module, seed: int, *inputs: jax.ShapeDtypeStruct) -> PyTree:
    """Fresh parameters, a nested dict of float32 numpy arrays.

    Args:
        module: the model.
        seed: any integer >= 0.
        *inputs: shapes of the module's call arguments; spatial size does not matter.
    """
    flat = traverse_util.flatten_dict(abstract_params(module, *inputs), sep="/")
    return traverse_util.unflatten_dict(
        {path: _initial_value(path, leaf.shape, seed) for path, leaf in flat.items()}, sep="/"
    )


def _initial_value(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    match path.rsplit("/", 1)[-1]:
        case "kernel" | "mask_embedding":
            rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
            return (0.02 * rng.standard_normal(shape)).astype(np.float32)
        case "scale":
            return np.ones(shape, np.float32)
        case "gamma":
            return np.full(shape, 1e-6, np.float32)
        case "bias" | "mask_token":
            return np.zeros(shape, np.float32)
    raise NotImplementedError(f"no initialisation rule for the parameter {path!r}")
