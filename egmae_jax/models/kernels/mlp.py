"""The pointwise half of a ConvNeXt block: norm, linear, GELU, linear, layer scale.

ConvNeXt V2's has no layer scale, but a global response normalization between GELU and the second
matrix.

For training the norm's scale and shift are folded into the first matrix and the layer scale into
the second, which is the same function: (x * s + t) @ W + b = x @ (s[:, None] * W) + (t @ W + b).
Their gradients then come out of the small matrices instead of passes over all pixels, and less is
kept for the backward pass.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from egmae_jax.core.platform import for_cpu, materialize, subroutine
from egmae_jax.models.kernels.operations import (
    gelu,
    global_response_norm,
    linear,
    standardize,
    vector_product,
)

# On CPU: the widest activation of what is computed at a time, which then stays in the cache; and up
# to how many channels computing it again for the gradients takes less time than keeping it.
_BLOCK_BYTES = 10e6
_RECOMPUTED_CHANNELS = 192


class Perceptron(NamedTuple):
    """The parameters, float32, in the order of the layers; C channels."""

    norm_scale: jax.Array  # [C]
    norm_bias: jax.Array  # [C]
    kernel1: jax.Array  # [C, 4C]
    bias1: jax.Array  # [4C]
    kernel2: jax.Array  # [4C, C]
    bias2: jax.Array  # [C]
    gamma: jax.Array | None = None  # [C], the layer scale
    grn_scale: jax.Array | None = None  # [4C], of the global response normalization
    grn_bias: jax.Array | None = None  # [4C]

    def folded(self) -> "Perceptron":
        """The same function with neutral norm parameters and layer scale."""
        folded = self._replace(
            norm_scale=jnp.ones_like(self.norm_scale),
            norm_bias=jnp.zeros_like(self.norm_bias),
            kernel1=self.norm_scale[:, None] * self.kernel1,
            bias1=vector_product(self.norm_bias, self.kernel1) + self.bias1,
        )
        if self.gamma is None:
            return folded
        return folded._replace(
            kernel2=self.kernel2 * self.gamma,
            bias2=self.bias2 * self.gamma,
            gamma=jnp.ones_like(self.gamma),
        )


@functools.partial(subroutine, static_argnames=("train", "rematerialize"))
def perceptron(
    x: jax.Array,
    params: Perceptron,
    skip: jax.Array,
    scales: jax.Array | None = None,
    *,
    train: bool,
    rematerialize: bool = False,
) -> jax.Array:
    """skip + scales * layers(x), of every pixel. Blocks of one shape share one trace, being jitted.

    Args:
        x: [B, H, W, C].
        params: of the layers.
        skip: [B, H, W, C], what the block began with.
        scales: [B], of drop path; None is ones.
        train: gradients will be asked for.
        rematerialize: keeps nothing but `x` for them and computes the layers again, which takes
            less memory, the wide activations being most of what a step keeps, and more
            multiplications. On CPU it is done for narrow layers anyway.
    """
    params = params.folded() if train else params
    params = jax.tree.map(lambda leaf: leaf.astype(x.dtype), params)
    channels, pixels = x.shape[-1], x.shape[1] * x.shape[2]
    rows, blocks = x.reshape(-1, channels), 1
    layers: Callable[..., jax.Array] = functools.partial(_layers, pixels=pixels)
    if for_cpu() and (not train or channels <= _RECOMPUTED_CHANNELS):
        wide = rows.shape[0] * params.kernel1.shape[1] * x.dtype.itemsize
        blocks = _num_blocks(x.shape[0], wide)
    if train and (rematerialize or blocks > 1):
        # In a loop nothing can be merged with what is kept, so no barrier need prevent it.
        layers = jax.checkpoint(layers, prevent_cse=blocks == 1)
    if blocks == 1:
        result = layers(rows, params)
    else:
        parts = rows.reshape(blocks, -1, channels)  # each of whole images
        result = lax.map(lambda part: layers(part, params), parts)
    update = result.reshape(x.shape)
    if scales is not None:
        update *= scales[:, None, None, None].astype(update.dtype)
    return skip + update


def _num_blocks(batch: int, size: float) -> int:
    """The least number of equal parts of the batch that keeps each part's size in the cache."""
    divisors = (n for n in range(1, batch + 1) if batch % n == 0)
    return next((n for n in divisors if size / n <= _BLOCK_BYTES), batch)


def _layers(x: jax.Array, params: Perceptron, *, pixels: int) -> jax.Array:
    """[N, C] -> [N, C], of images that have so many `pixels`."""
    # XLA drops the products with ones and sums with zeros of folded parameters.
    x = materialize(standardize(x) * params.norm_scale + params.norm_bias)
    x = materialize(linear(x, params.kernel1, params.bias1))
    x = gelu(x)
    if params.grn_scale is not None and params.grn_bias is not None:
        images = x.reshape(-1, pixels, x.shape[-1])
        x = global_response_norm(images, params.grn_scale, params.grn_bias).reshape(x.shape)
    x = linear(x, params.kernel2, params.bias2)
    return x if params.gamma is None else x * params.gamma
