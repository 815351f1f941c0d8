"""Convolution with gradients in the form that is fastest on the platform.

XLA's CPU compiler runs a convolution fast only if the axes of its arrays are in the order batch,
height, width, channels. Outside a loop, XLA transposes other arrays into this order, but not inside
one (JAX 0.10), and training steps run in a loop: there the kernel's gradient, whose batch axis is
the channels, takes a hundred times as long. So on a CPU both gradients are convolutions in the
usual order.

A TPU's compiler takes half a minute for the kernel's gradient of ConvNeXt's stem, and the result
takes twice as long as the product of matrices that it is, because windows do not overlap.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from egmae_jax.core.platform import custom_vjp, for_cpu, materialize, target

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv2d(x: jax.Array, kernel: jax.Array, strides: int, padding: int) -> jax.Array:
    """Convolution of [B, H, W, C] with [K, K, C, F], padded with zeros, to [B, H', W', F]."""
    if for_cpu():
        return _conv(x, kernel, strides, padding)
    size = kernel.shape[0]
    is_patches = target() == "tpu" and padding == 0 and size == strides
    if is_patches and not any(side % size for side in x.shape[1:3]):
        return _patch_conv(x, kernel)
    return conv2d_plain(x, kernel, strides, padding)


def conv2d_plain(x: jax.Array, kernel: jax.Array, strides: int, padding: int) -> jax.Array:
    """Computes `conv2d` with JAX's own gradients."""
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS
    )


@custom_vjp
def _patch_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of the patches [K, K] that make up [B, H, W, C]."""
    return conv2d_plain(x, kernel, len(kernel), 0)


def _patch_conv_backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    _, x_backward = jax.vjp(lambda x: conv2d_plain(x, kernel, len(kernel), 0), x)
    batch, rows, columns, _ = gradient.shape
    patches = x.reshape(batch, rows, len(kernel), columns, len(kernel), x.shape[-1])
    kernel_gradient = jnp.einsum(
        "bhiwjc,bhwf->ijcf", patches, gradient, preferred_element_type=jnp.float32
    )
    return *x_backward(gradient), kernel_gradient.astype(kernel.dtype)


_patch_conv.defvjp(lambda x, kernel: (_patch_conv(x, kernel), (x, kernel)), _patch_conv_backward)


@functools.partial(custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, kernel: jax.Array, strides: int, padding: int) -> jax.Array:
    return _in_order(x, kernel, [(padding, padding)] * 2, strides=strides)


def _conv_backward(
    strides: int, padding: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    size = kernel.shape[0]
    # Rows and columns at the far side that no window reaches.
    rest = [
        side + 2 * padding - size - (outputs - 1) * strides
        for side, outputs in zip(x.shape[1:3], gradient.shape[1:3], strict=True)
    ]
    before = size - 1 - padding
    x_gradient = _in_order(
        gradient,
        kernel[::-1, ::-1].swapaxes(2, 3),
        [(before, before + r) for r in rest],
        x_dilation=strides,
    )
    kernel_gradient = _in_order(
        x.transpose(3, 1, 2, 0),  # [C, H, W, B]
        gradient.transpose(1, 2, 0, 3),  # [H', W', B, F]
        [(padding, padding - r) for r in rest],
        kernel_dilation=strides,
    )  # [C, K, K, F]
    return x_gradient, kernel_gradient.transpose(1, 2, 0, 3)


_conv.defvjp(lambda x, kernel, *static: (_conv(x, kernel, *static), (x, kernel)), _conv_backward)


def _in_order(
    x: jax.Array,
    kernel: jax.Array,
    padding: Sequence[tuple[int, int]],
    *,
    strides: int = 1,
    x_dilation: int = 1,
    kernel_dilation: int = 1,
) -> jax.Array:
    """Convolution whose operands XLA does not swap.

    XLA swaps image and kernel if the kernel is larger, so the image is padded first.
    """
    if x.shape[1] < kernel.shape[0] or x.shape[2] < kernel.shape[1]:
        dilated = [(low, high, x_dilation - 1) for low, high in padding]
        zero = jnp.zeros((), x.dtype)
        x = materialize(lax.pad(x, zero, [(0, 0, 0), *dilated, (0, 0, 0)]))
        padding, x_dilation = [(0, 0)] * 2, 1
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        lhs_dilation=(x_dilation,) * 2,
        rhs_dilation=(kernel_dilation,) * 2,
        dimension_numbers=_DIMENSIONS,
    )
