"""GELU, and sums over all pixels, in the forms that are fastest on a CPU."""

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


def broadcast_to(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jnp.broadcast_to` of a bias or scale [C] to all pixels, `shape` [..., C].

    Its gradient is a sum over pixels, which `column_sums` computes.
    """
    return _broadcast(vector, shape) if platform.for_cpu() else jnp.broadcast_to(vector, shape)


@functools.partial(platform.custom_vjp, nondiff_argnums=(1,))
def _broadcast(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(vector, shape)


_broadcast.defvjp(
    lambda vector, shape: (jnp.broadcast_to(vector, shape), None),
    lambda shape, _, gradient: (
        column_sums(platform.materialize(gradient.reshape(-1, shape[-1]))),
    ),
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
