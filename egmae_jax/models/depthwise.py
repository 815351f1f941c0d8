"""Depthwise 7x7 convolution, the hot spot of ConvNeXt, in the form that is fastest on the platform.

XLA has no fast grouped convolution on CPU. There the convolution is written as K*K shifted
multiply-adds, which XLA fuses into one vectorised loop, with a backward rule of its own. GPU and
TPU use XLA's convolution.
"""

import jax
import jax.numpy as jnp
from jax import lax


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution with stride 1, zero padding and output of the input's size.

    Args:
        x: [B, H, W, C].
        kernel: [K, K, 1, C], K odd.

    Returns:
        [B, H, W, C] in the dtype of `x`.
    """
    if jax.default_backend() == "cpu":
        return _shifted_conv(x, kernel)
    padding = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@jax.custom_vjp
def _shifted_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    size, height, width = kernel.shape[0], x.shape[1], x.shape[2]
    padded = _pad(x, size)
    kernel = kernel.astype(jnp.float32)  # a sum of 49 terms needs more than bfloat16's 8 bits
    total = jnp.zeros(x.shape, jnp.float32)
    for i in range(size):
        for j in range(size):
            total += padded[:, i : i + height, j : j + width, :] * kernel[i, j, 0]
    return total.astype(x.dtype)


def _shifted_conv_forward(x, kernel):
    return _shifted_conv(x, kernel), (x, kernel)


def _shifted_conv_backward(residuals, gradient):
    x, kernel = residuals
    return (
        # Correlating with the kernel turned by 180 degrees is the transpose of correlating with it.
        _shifted_conv(gradient, kernel[::-1, ::-1]),
        _kernel_gradient(x, gradient, kernel.shape[0]).astype(kernel.dtype),
    )


_shifted_conv.defvjp(_shifted_conv_forward, _shifted_conv_backward)


def _kernel_gradient(x: jax.Array, gradient: jax.Array, size: int) -> jax.Array:
    """Gradient of the kernel, [K, K, 1, C].

    A sum over all pixels for each tap would be K*K slow reductions. For one kernel row, the
    products of every input column with every output column are one matrix product a channel, and
    the taps are sums along its diagonals: more arithmetic, but of the kind that is fast.
    """
    batch, height, width, channels = x.shape
    columns = width + size - 1
    # [C, B, H + K - 1, W + K - 1] and [C, B*H, W]: a channel's matrices lie together.
    padded = _pad(x, size).astype(jnp.float32).transpose(3, 0, 1, 2)
    gradient = gradient.astype(jnp.float32).transpose(3, 0, 1, 2).reshape(channels, -1, width)

    def kernel_row(i):
        rows = lax.dynamic_slice_in_dim(padded, i, height, axis=2)
        rows = rows.reshape(channels, batch * height, columns)
        products = jnp.einsum("cnw,cnv->cwv", gradient, rows)
        taps = [jnp.trace(products[:, :, j : j + width], axis1=1, axis2=2) for j in range(size)]
        return jnp.stack(taps)[:, None, :]

    return lax.map(kernel_row, jnp.arange(size))


def _pad(x: jax.Array, size: int) -> jax.Array:
    padding = size // 2
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
