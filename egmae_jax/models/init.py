"""Initial variables of a network, without compilation.

`jax.jit(model.init)` would compile a random number generator for every leaf. Here shapes come from
abstract evaluation and values from numpy, with the distributions that the modules declare (a test
compares them). The values of a leaf depend only on the seed and its path, not on the platform, the
number of devices or the JAX version.
"""

import concurrent.futures
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.models.model import MIN_SIDE, Model

PyTree = Any
KERNEL_INITS = ("timm", "fan_in")
_OUTPUT_KERNELS = ("head/fc/kernel", "decoder/predict/kernel")
_CONSTANTS = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0, "mask_token": 0.0}
_CONSTANTS |= {"grn_scale": 0.0, "grn_bias": 0.0}


def smallest_inputs(network: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns shapes of inputs: an image, and for an autoencoder also a mask of its patches."""
    is_autoencoder = isinstance(network, MaskedAutoencoder)
    multiple = (network.encoder if is_autoencoder else network).side_multiple
    side = math.ceil(MIN_SIDE / multiple) * multiple
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, 1, 1), jnp.float32)
    return (image, mask) if is_autoencoder else (image,)


def abstract_variables(module: Any, *inputs: jax.ShapeDtypeStruct) -> PyTree:
    """Returns the shapes and dtypes of the variables that `module.init` would create.

    Args:
        module: the network.
        *inputs: shapes and dtypes of the module's call arguments; by default `smallest_inputs`.
    """
    inputs = inputs or smallest_inputs(module)
    return jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *inputs)


def initial_variables(
    module: Model | MaskedAutoencoder,
    seed: int,
    *inputs: jax.ShapeDtypeStruct,
    kernel_init: str = "timm",
    layer_scale: float = 1e-6,
) -> PyTree:
    """Draws initial variables with the structure of `module.init`, as float32 numpy arrays.

    Args:
        module: the network. If it has no `initial_std`, see `Model`, the variables are those of
            `module.init`, which takes longer as it is compiled.
        seed: any integer >= 0.
        *inputs: shapes and dtypes of the module's call arguments; the image size does not matter.
            The default is `smallest_inputs`.
        kernel_init: one of KERNEL_INITS. 'timm' draws kernels with the module's standard deviation.
            'fan_in' draws them with fan_in ** -0.5, except those of the layers that predict classes
            or pixels; with timm's 0.02, narrow networks are almost linear and learn slowly. A
            network without `initial_std` ignores it.
        layer_scale: initial value of every block's gamma; ConvNeXt V2 has none.

    Returns:
        {"params": ..., "batch_stats": ...}; "batch_stats" only for networks with batch norms.
    """
    inputs = inputs or smallest_inputs(module)
    if module.initial_std is None:
        arrays = [jnp.zeros(x.shape, x.dtype) for x in inputs]
        variables = jax.jit(module.init)(jax.random.key(seed), *arrays)
        return jax.tree.map(np.asarray, variables)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        name = path.rsplit("/", 1)[-1]
        std = module.initial_std(path, shape)
        if not std:
            value = _constant(path, layer_scale) if std is None else 0
            return np.full(shape, value, np.float32)
        if kernel_init == "fan_in" and name == "kernel" and path not in _OUTPUT_KERNELS:
            std = math.prod(shape[:-1]) ** -0.5
        rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
        return np.float32(std) * rng.standard_normal(shape, np.float32)

    flat = traverse_util.flatten_dict(abstract_variables(module, *inputs))
    paths = ["/".join(path) for _, *path in flat]  # within 'params' or 'batch_stats'
    shapes = [leaf.shape for leaf in flat.values()]
    with concurrent.futures.ThreadPoolExecutor() as pool:  # numpy releases the GIL when it draws
        values = dict(zip(flat, pool.map(draw, paths, shapes), strict=True))
    return traverse_util.unflatten_dict(values)


def _constant(path: str, layer_scale: float) -> float:
    """Returns the initial value of the elements of a constant leaf."""
    name = path.rsplit("/", 1)[-1]
    if name == "gamma":
        return layer_scale
    if name not in _CONSTANTS:
        raise NotImplementedError(f"no initialisation rule for the variable {path!r}")
    return _CONSTANTS[name]
