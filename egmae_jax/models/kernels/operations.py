"""What the channels of every pixel go through: linear layer, LayerNorm, GELU.

On CPU matrix products and reductions get the forms that are fastest there.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from egmae_jax.core.platform import for_cpu, materialize

EPSILON = 1e-6  # of the norms; timm's


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """[..., C], computed in float32; `scale` and `bias` [C]."""
    rows = standardize(x.reshape(-1, x.shape[-1]).astype(jnp.float32))
    rows = _affine(rows, scale, bias) if for_cpu() else rows * scale + bias
    return materialize(rows.astype(x.dtype)).reshape(x.shape)


@jax.custom_vjp
def _affine(x, scale, bias):
    return x * scale + bias


def _affine_backward(residuals, gradient):
    x, scale = residuals
    return gradient * scale, column_sums(gradient * x), column_sums(gradient)


_affine.defvjp(lambda x, scale, bias: (_affine(x, scale, bias), (x, scale)), _affine_backward)


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


def column_sums(x: jax.Array) -> jax.Array:
    """[N, K] -> [K]. On CPU a matrix product is faster than a reduction over rows."""
    return _vector_product(jnp.ones(len(x), x.dtype), x) if for_cpu() else x.sum(axis=0)


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
        column_sums(gradient),
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
