"""GELU, and sums over all pixels, in the forms that are fastest on a platform."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from egmae_jax.core import platform


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x * Phi(x), computed in float32 for every dtype of `x`.

    The backward pass keeps only `x`; JAX's own rule would keep two more arrays of its size.
    """
    # Without the barriers, each matrix product would recompute the value and its gradient.
    # The compilers of accelerators recompute them only where that is faster.
    checkpointed = jax.checkpoint(gelu_plain, prevent_cse=platform.for_cpu())
    return platform.materialize(checkpointed(platform.materialize(x)))


def gelu_plain(x: jax.Array) -> jax.Array:
    """Plain form of `gelu`, with JAX's own gradient."""
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


def largest_divisor(number: int, most: int) -> int:
    """Returns the largest divisor of a number that is at most `most`, which is 1 or more."""
    return max(n for n in range(1, most + 1) if number % n == 0)


def broadcast_to(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jnp.broadcast_to` of a bias or scale [C] to all pixels, `shape` [..., C].

    Its gradient is a sum over pixels, which `column_sums` or `pixel_sums` computes.
    """
    if platform.for_cpu() or (platform.for_gpu() and len(shape) > 2):
        return _broadcast(vector, shape)
    return jnp.broadcast_to(vector, shape)


@functools.partial(platform.custom_vjp, nondiff_argnums=(1,))
def _broadcast(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(vector, shape)


def _broadcast_backward(shape: tuple[int, ...], _: None, gradient: jax.Array) -> tuple[jax.Array]:
    if platform.for_gpu():
        return (pixel_sums(gradient).astype(gradient.dtype),)
    return (column_sums(platform.materialize(gradient.reshape(-1, shape[-1]))),)


_broadcast.defvjp(
    lambda vector, shape: (jnp.broadcast_to(vector, shape), None), _broadcast_backward
)


def column_sums(x: jax.Array) -> jax.Array:
    """Sums of the columns of a matrix, [N, K] -> [K]: on a CPU a faster matrix product."""
    return _column_sums(x) if platform.for_cpu() else column_sums_plain(x)


def column_sums_plain(x: jax.Array) -> jax.Array:
    """Plain form of `column_sums`, a reduction."""
    return x.sum(axis=0)


@platform.custom_vjp
def _column_sums(x: jax.Array) -> jax.Array:
    # XLA calls a library for two rows of ones, but compiles a program of its own for a single row.
    ones = jnp.ones((2, len(x)), x.dtype)
    return jnp.dot(ones, x, preferred_element_type=jnp.float32)[0].astype(x.dtype)


_column_sums.defvjp(
    lambda x: (_column_sums(x), x.shape),
    lambda shape, gradient: (jnp.broadcast_to(gradient, shape),),
)


_MOST_ROWS = 31  # of more, XLA's GPU compiler makes a kernel that it joins with one other at most


def pixel_sums(x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Sums over all pixels for GPUs, [B, ..., C] -> float32 [C], with weights of the images [B].

    It sums a few pixels at a time, in kernels that XLA joins with those of all other calls of the
    same shape, and the images last, which XLA does where the sums are used.
    """
    x = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
    while (pixels := x.shape[1]) > 1:
        rows = largest_divisor(pixels, _MOST_ROWS)
        rows = pixels if rows == 1 else rows
        x = platform.join(x).reshape(len(x), pixels // rows, rows, -1).sum(axis=2)
        x = jax.lax.optimization_barrier(x)  # else XLA makes one sum of all of them
    # If devices share the batch, each sum over images is a kernel of its own unless it is joined.
    return pixel_sums_plain(platform.join(x), weights)


def pixel_sums_plain(x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Plain form of `pixel_sums`, a reduction."""
    if weights is not None:
        x = x.astype(jnp.float32) * jnp.expand_dims(weights, range(1, x.ndim))
    return x.sum(axis=tuple(range(x.ndim - 1)), dtype=jnp.float32)
