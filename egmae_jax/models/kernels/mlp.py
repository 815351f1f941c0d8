"""Linear layers and MLPs of blocks, in the fewest kernels on a GPU and without keeping GELU."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from egmae_jax.core import platform
from egmae_jax.models.kernels.operations import gelu_plain, largest_divisor, pixel_sums

_MOST_TERMS = 1024  # pixels in one sum of a kernel's gradient


def mlp(
    x: jax.Array,
    kernel1: jax.Array,
    bias1: jax.Array,
    kernel2: jax.Array,
    bias2: jax.Array,
    gamma: jax.Array | None = None,
    scales: jax.Array | None = None,
) -> jax.Array:
    """Computes `mlp_plain`; within a program for GPUs, the backward pass computes GELU again.

    There, `scales` have no gradient.
    """
    gamma = jnp.ones(bias2.shape, bias2.dtype) if gamma is None else gamma
    scales = jnp.ones(len(x), jnp.float32) if scales is None else scales
    form = _mlp if platform.for_gpu() else mlp_plain
    return form(x, kernel1, bias1, kernel2, bias2, gamma, scales)


def mlp_plain(
    x: jax.Array,
    kernel1: jax.Array,
    bias1: jax.Array,
    kernel2: jax.Array,
    bias2: jax.Array,
    gamma: jax.Array,
    scales: jax.Array,
) -> jax.Array:
    """Applies two linear layers with GELU between them to each pixel, and scales the result.

    Args:
        x: features [B, H, W, C].
        kernel1: kernel of the first layer, [C, D]; cast to the dtype of `x`.
        bias1: its bias, [D].
        kernel2: kernel of the second layer, [D, F]; cast to the dtype of `x`.
        bias2: its bias, [F].
        gamma: factor of each channel, [F].
        scales: factor of each example, [B].

    Returns:
        Features [B, H, W, F] in the dtype of `x`.
    """
    y = linear_plain(gelu_plain(linear_plain(x, kernel1, bias1)), kernel2, bias2)
    return _by_example(scales, y * gamma.astype(y.dtype))


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes `linear_plain`; within a program for GPUs with the gradients of `mlp`."""
    return (_linear if platform.for_gpu() else linear_plain)(x, kernel, bias)


def linear_plain(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Applies a linear layer to each pixel.

    Args:
        x: features [B, ..., C].
        kernel: kernel [C, F]; cast to the dtype of `x`.
        bias: bias [F].

    Returns:
        Features [B, ..., F] in the dtype of `x`.
    """
    # XLA adds the bias in the kernel of the product if it is a parameter as it stands, in float32.
    kernel = platform.cast(kernel, x.dtype)
    return (jnp.dot(x, kernel, preferred_element_type=jnp.float32) + bias).astype(x.dtype)


@jax.custom_vjp
def _linear(*arguments: jax.Array) -> jax.Array:
    return linear_plain(*arguments)


def _linear_backward(residuals, gradient):
    x, kernel, bias = residuals
    gradient = lax.optimization_barrier(gradient)
    return (
        jnp.dot(gradient, platform.cast(kernel, x.dtype).T),
        _kernel_gradient(x, gradient).astype(kernel.dtype),
        pixel_sums(gradient).astype(bias.dtype),
    )


_linear.defvjp(lambda *arguments: (_linear(*arguments), arguments), _linear_backward)


@jax.custom_vjp
def _mlp(*arguments: jax.Array) -> jax.Array:
    return mlp_plain(*arguments)


def _mlp_forward(x, kernel1, bias1, kernel2, bias2, gamma, scales):
    y = linear_plain(x, kernel1, bias1)
    z = linear_plain(gelu_plain(y), kernel2, bias2)
    out = _by_example(scales, z * gamma.astype(z.dtype))
    return out, (x, y, z, kernel1, bias1, kernel2, bias2, gamma, scales)


def _mlp_backward(residuals, gradient):
    """Scales the kernel, sums and what GELU's kernel writes instead of the gradient itself.

    The scaled gradient would be written by one more kernel, and read in its stead.
    """
    x, y, z, kernel1, bias1, kernel2, bias2, gamma, scales = residuals
    y, gradient = lax.optimization_barrier((y, gradient))  # else GELU is kept for here
    activations, gelu_gradient = jax.vjp(gelu_plain, y)
    scaled_kernel2 = platform.join(kernel2 * gamma).astype(x.dtype)
    (y_gradient,) = gelu_gradient(jnp.dot(gradient, scaled_kernel2.T))
    y_gradient = lax.optimization_barrier(_by_example(scales, y_gradient))
    kernel2_gradient = gamma * _kernel_gradient(_by_example(scales, activations), gradient)
    return (
        jnp.dot(y_gradient, platform.cast(kernel1, x.dtype).T),
        _kernel_gradient(x, y_gradient).astype(kernel1.dtype),
        pixel_sums(y_gradient).astype(bias1.dtype),
        kernel2_gradient.astype(kernel2.dtype),
        (gamma * pixel_sums(gradient, scales)).astype(bias2.dtype),
        pixel_sums(gradient.astype(jnp.float32) * z, scales).astype(gamma.dtype),
        jnp.zeros_like(scales),
    )


_mlp.defvjp(_mlp_forward, _mlp_backward)


def _by_example(scales: jax.Array, x: jax.Array) -> jax.Array:
    """Scales each example of [B, ..., C] by its factor in `scales` [B]."""
    return x * jnp.expand_dims(scales, range(1, x.ndim)).astype(x.dtype)


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
