"""Linear layers, LayerNorm, GELU and sums over rows, in forms that are fast on a CPU."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from egmae_jax.core import platform

EPSILON = 1e-6  # added to what divides: variances, and means of norms; timm's


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """[..., C] @ [C, K] + [K] -> [..., K]."""
    return _linear(x, kernel, bias) if platform.for_cpu() else linear_plain(x, kernel, bias)


def linear_plain(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes `linear` with JAX's own gradient."""
    return x @ kernel + bias


_linear = platform.custom_vjp(linear_plain)


def _linear_backward(residuals, gradient):
    """XLA transposes the left factor in memory first: that should be the narrower one."""
    x, kernel = residuals
    gradient = platform.materialize(gradient)
    rows, columns = (a.reshape(-1, a.shape[-1]) for a in (x, gradient))
    over_rows = functools.partial(lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())))
    narrow_input = kernel.shape[0] <= kernel.shape[1]
    return (
        gradient @ kernel.T,
        over_rows(rows, columns) if narrow_input else over_rows(columns, rows).T,
        column_sums(columns),
    )


_linear.defvjp(
    lambda x, kernel, bias: (linear_plain(x, kernel, bias), (x, kernel)), _linear_backward
)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalizes the channels of every pixel, [..., C], in float32; `scale` and `bias` are [C]."""
    affine = _affine if platform.for_cpu() else _affine_plain
    return platform.materialize(affine(standardize(x), scale, bias).astype(x.dtype))


def layer_norm_plain(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes `layer_norm` with JAX's own gradient."""
    return _affine_plain(standardize(x), scale, bias).astype(x.dtype)


def standardize(x: jax.Array) -> jax.Array:
    """Subtracts the channels' mean and divides by their deviation, in float32."""
    y = x.astype(jnp.float32)
    # Not E[y^2] - E[y]^2, which loses digits where the mean is large.
    y = y - y.mean(axis=-1, keepdims=True)
    return y * lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + EPSILON)


def _affine_plain(x, scale, bias):
    return x * scale + bias


_affine = platform.custom_vjp(_affine_plain)


def _affine_backward(residuals, gradient):
    x, scale = residuals
    rows, over_rows = (a.reshape(-1, a.shape[-1]) for a in (x, gradient))
    return gradient * scale, column_sums(over_rows * rows), column_sums(over_rows)


_affine.defvjp(lambda x, scale, bias: (_affine_plain(x, scale, bias), (x, scale)), _affine_backward)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x * Phi(x), in float32 whatever the dtype of `x`."""
    # Nothing but `x` is kept for the gradient; other compilers than a CPU's need no barrier for it.
    kept = jax.checkpoint(_gelu, prevent_cse=platform.for_cpu())
    return platform.materialize(kept(x))


def _gelu(x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


def column_sums(x: jax.Array) -> jax.Array:
    """[N, K] -> [K]. On CPU a matrix product is faster than a reduction over rows."""
    return _column_sums(x) if platform.for_cpu() else x.sum(axis=0)


@platform.custom_vjp
def _column_sums(x: jax.Array) -> jax.Array:
    """XLA calls a library for products with two rows, but compiles a program for each with one."""
    return jnp.dot(jnp.ones((2, len(x)), x.dtype), x, preferred_element_type=jnp.float32)[0].astype(
        x.dtype
    )


_column_sums.defvjp(
    lambda x: (_column_sums(x), x.shape),
    lambda shape, gradient: (jnp.broadcast_to(gradient, shape),),
)
