"""The wide layers of a ConvNeXt block, some images of the batch at a time on a CPU.

Between the two matrices a pixel has four times as many channels. In the shallow stages these
activations are larger than a CPU's cache; in parts of the batch they stay in it, and computing them
again for the gradients takes less time than keeping them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from egmae_jax.core.platform import for_cpu, subroutine
from egmae_jax.models.kernels.operations import EPSILON, gelu, linear

_CACHE_BYTES = 10e6  # the largest wide activation of a part
_RECOMPUTED_CHANNELS = 192  # up to so many, recomputing takes less time than keeping


class MlpParams(NamedTuple):
    """Parameters of two linear layers, in the dtype of compute; V2 has a norm between them."""

    kernel1: jax.Array  # [C, 4C]
    bias1: jax.Array  # [4C]
    kernel2: jax.Array  # [4C, C]
    bias2: jax.Array  # [C]
    grn_scale: jax.Array | None = None  # [4C]
    grn_bias: jax.Array | None = None  # [4C]


def mlp_plain(x: jax.Array, params: MlpParams, *, remat: bool = False) -> jax.Array:
    """Computes `mlp` for the whole batch at once."""
    layers = jax.checkpoint(_layers) if remat else _layers
    return layers(x, params)


def mlp(x: jax.Array, params: MlpParams, *, remat: bool = False) -> jax.Array:
    """Computes fc2(gelu(fc1(x))), or fc2(grn(gelu(fc1(x)))) of ConvNeXt V2.

    Args:
        x: [B, H, W, C].
        params: parameters of the layers.
        remat: keeps nothing but `x` for the gradients and computes the wide activations again,
            which a CPU does for narrow layers anyway.

    Returns:
        [B, H, W, C].
    """
    parts = 1
    if for_cpu() and x.shape[-1] <= _RECOMPUTED_CHANNELS:
        wide_bytes = x[..., 0].size * len(params.bias1) * x.dtype.itemsize
        parts = num_parts(len(x), wide_bytes)
    return _in_parts(x, params, parts=parts, remat=remat)


@functools.partial(subroutine, static_argnames=("parts", "remat"))
def _in_parts(x: jax.Array, params: MlpParams, *, parts: int, remat: bool) -> jax.Array:
    if parts == 1:
        return mlp_plain(x, params, remat=remat)
    # In a loop nothing can be merged with what is kept, so no barrier need prevent it.
    layers = jax.checkpoint(_layers, prevent_cse=False)
    by_parts = x.reshape(parts, -1, *x.shape[1:])
    return lax.map(lambda part: layers(part, params), by_parts).reshape(x.shape)


def _layers(x: jax.Array, params: MlpParams) -> jax.Array:
    y = gelu(linear(x, params.kernel1, params.bias1))
    if params.grn_scale is not None and params.grn_bias is not None:
        y = global_response_norm(y, params.grn_scale, params.grn_bias)
    return linear(y, params.kernel2, params.bias2)


def num_parts(batch: int, wide_bytes: float) -> int:
    """The least number of equal parts of a batch whose wide activations fit the cache each."""
    divisors = (n for n in range(1, batch + 1) if batch % n == 0)
    return next((n for n in divisors if wide_bytes / n <= _CACHE_BYTES), batch)


def global_response_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Lets the channels of an image compete by their norms over it (Woo et al. 2023, section 3).

    Args:
        x: [B, H, W, C]; the norms are computed in float32.
        scale: [C].
        bias: [C].
    """
    squares = jnp.square(x.astype(jnp.float32)).sum(axis=(1, 2), keepdims=True)
    # The root has no derivative at 0; that of a norm of zeros is 0, as PyTorch's.
    norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    shares = norms / (norms.mean(axis=-1, keepdims=True) + EPSILON)
    return x + (x * (scale * shares).astype(x.dtype) + bias)
