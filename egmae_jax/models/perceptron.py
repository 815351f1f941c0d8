"""The pointwise half of a ConvNeXt block: norm, linear, GELU, linear, layer scale.

ConvNeXt V2's has no layer scale, but a global response normalization between GELU and the second
matrix.

For training the norm's scale and shift are folded into the first matrix and the layer scale into
the second, which is the same function: (x * s + t) @ W + b = x @ (s[:, None] * W) + (t @ W + b).
Their gradients then come out of the small matrices instead of passes over all pixels, and less is
kept for the backward pass.

On CPU matrix products and reductions get the forms that are fastest there.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from egmae_jax.compilation import for_cpu, materialize, subroutine

EPSILON = 1e-6  # of the norms; timm's
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


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """[..., C], computed in float32; `scale` and `bias` [C]."""
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    return materialize((standardize(rows) * scale + bias).astype(x.dtype)).reshape(x.shape)


def standardize(x: jax.Array) -> jax.Array:
    """The channels' mean made 0 and their variance 1; computed in float32."""
    y = x.astype(jnp.float32)
    # Not E[y^2] - E[y]^2, which loses digits where the mean is large.
    y = y - y.mean(axis=-1, keepdims=True)
    return (y * lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + EPSILON)).astype(x.dtype)


def global_response_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Channels compete by their norms over an image (Woo et al. 2023, ConvNeXt V2).

    Args:
        x: [B, N, C], the N pixels of each image; the norms are computed in float32.
        scale: [C].
        bias: [C].
    """
    squares = jnp.square(x.astype(jnp.float32)).sum(axis=1, keepdims=True)
    # The root of 0 has no derivative; that of its norm is 0, as PyTorch's.
    norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    shares = norms / (norms.mean(axis=-1, keepdims=True) + EPSILON)
    return materialize(x + (x * (scale * shares).astype(x.dtype) + bias))


def vector_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[N] @ [N, K] -> [K]."""
    return _vector_product(x, kernel) if for_cpu() else x @ kernel


@jax.custom_vjp
def _vector_product(x, kernel):
    """XLA calls a library for products with two rows, but compiles a program for each with one."""
    return jnp.dot(_two_rows(x), kernel, preferred_element_type=jnp.float32)[0].astype(x.dtype)


def _two_rows(x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x, (2, len(x)))


def _vector_product_backward(residuals, gradient):
    x, kernel = residuals
    over_columns = (((1,), (1,)), ((), ()))
    return (
        lax.dot_general(_two_rows(gradient), kernel, over_columns)[0],
        x[:, None] * gradient,
    )


_vector_product.defvjp(lambda *args: (_vector_product(*args), args), _vector_product_backward)


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """[N, C] @ [C, K] + [K] -> [N, K]."""
    if for_cpu():
        return _linear(x, kernel, bias)
    return x @ kernel + bias


@jax.custom_vjp
def _linear(x, kernel, bias):
    return x @ kernel + bias


def _linear_forward(x, kernel, bias):
    return _linear(x, kernel, bias), (x, kernel)


def _linear_backward(residuals, gradient):
    """XLA transposes the left factor in memory first: that should be the narrower one."""
    x, kernel = residuals
    gradient = materialize(gradient)
    over_rows = functools.partial(lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())))
    narrow_input = kernel.shape[0] <= kernel.shape[1]
    return (
        lax.dot_general(gradient, kernel, (((1,), (1,)), ((), ()))),
        over_rows(x, gradient) if narrow_input else over_rows(gradient, x).T,
        # A matrix product is faster than a reduction over rows.
        _vector_product(jnp.ones(len(x), x.dtype), gradient),
    )


_linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x * Phi(x), by PyTorch's formula in float32 whatever the dtype of `x`.

    The backward rule computes Phi again, so that nothing but `x` is kept for it.
    """
    return materialize((x * _normal_cdf(x)).astype(x.dtype))


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + lax.erf(x.astype(jnp.float32) * math.sqrt(0.5)))


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    x = materialize(x)  # else Phi would be kept from the forward pass after all
    y = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * y * y) / math.sqrt(2 * math.pi)
    return (materialize((gradient * (_normal_cdf(x) + y * density)).astype(x.dtype)),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)
