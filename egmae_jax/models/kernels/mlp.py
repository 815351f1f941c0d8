"""Linear layer, GELU, linear layer, in the fewest kernels on a GPU and without keeping GELU."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from egmae_jax.core import platform
from egmae_jax.models.kernels.operations import gelu_plain, largest_divisor, pixel_sums

_MOST_TERMS = 1024  # pixels in one sum of a kernel's gradient


def mlp(
    x: jax.Array, kernel1: jax.Array, bias1: jax.Array, kernel2: jax.Array, bias2: jax.Array
) -> jax.Array:
    """Computes `mlp_plain`; within a program for GPUs, the backward pass computes GELU again."""
    form = _mlp if platform.for_gpu() else mlp_plain
    return form(x, kernel1, bias1, kernel2, bias2)


def mlp_plain(
    x: jax.Array, kernel1: jax.Array, bias1: jax.Array, kernel2: jax.Array, bias2: jax.Array
) -> jax.Array:
    """Applies two linear layers with GELU between them to each pixel.

    Args:
        x: features [B, H, W, C].
        kernel1: kernel of the first layer, [C, D]; cast to the dtype of `x`.
        bias1: its bias, [D].
        kernel2: kernel of the second layer, [D, F]; cast to the dtype of `x`.
        bias2: its bias, [F].

    Returns:
        Features [B, H, W, F] in the dtype of `x`.
    """
    return _linear(gelu_plain(_linear(x, kernel1, bias1)), kernel2, bias2)


def _linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    # XLA adds the bias in the kernel of the product if it is a parameter as it stands, in float32.
    kernel = platform.cast(kernel, x.dtype)
    return (jnp.dot(x, kernel, preferred_element_type=jnp.float32) + bias).astype(x.dtype)


@jax.custom_vjp
def _mlp(*arguments: jax.Array) -> jax.Array:
    return mlp_plain(*arguments)


def _mlp_forward(x, kernel1, bias1, kernel2, bias2):
    y = _linear(x, kernel1, bias1)
    return _linear(gelu_plain(y), kernel2, bias2), (x, y, kernel1, bias1, kernel2, bias2)


def _mlp_backward(residuals, gradient):
    x, y, kernel1, bias1, kernel2, bias2 = residuals
    y, gradient = lax.optimization_barrier((y, gradient))  # else GELU is kept for here
    activations, gelu_gradient = jax.vjp(gelu_plain, y)
    (y_gradient,) = gelu_gradient(jnp.dot(gradient, platform.cast(kernel2, x.dtype).T))
    y_gradient = lax.optimization_barrier(y_gradient)
    return (
        jnp.dot(y_gradient, platform.cast(kernel1, x.dtype).T),
        _kernel_gradient(x, y_gradient).astype(kernel1.dtype),
        pixel_sums(y_gradient).astype(bias1.dtype),
        _kernel_gradient(activations, gradient).astype(kernel2.dtype),
        pixel_sums(gradient).astype(bias2.dtype),
    )


_mlp.defvjp(_mlp_forward, _mlp_backward)


def _kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Gradient of a linear layer's kernel, float32 [C, F], from [B, H, W, C] and [B, H, W, F].

    A sum over very many pixels is cut here: XLA would sum its parts in a kernel for each layer.
    """
    pixels = math.prod(x.shape[1:-1])
    if pixels <= _MOST_TERMS:
        x, gradient = (y.reshape(-1, y.shape[-1]) for y in (x, gradient))
        return jnp.dot(x.T, gradient, preferred_element_type=jnp.float32)
    terms = largest_divisor(pixels, _MOST_TERMS)
    x, gradient = (y.reshape(len(y), pixels // terms, terms, -1) for y in (x, gradient))
    parts = lax.optimization_barrier(
        jnp.einsum("bpnc,bpnf->bpcf", x, gradient, preferred_element_type=jnp.float32)
    )
    return lax.optimization_barrier(platform.join(parts).sum(axis=1)).sum(axis=0)
