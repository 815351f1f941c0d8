"""Depthwise 7x7 convolution, the hot spot of ConvNeXt, in the form that is fastest on the platform.

XLA has no fast grouped convolution on CPU. There the convolution is written as K*K shifted
multiply-adds, which XLA fuses into one vectorised loop, with a backward rule of its own. Explicit
loops around them keep XLA (0.10) from fusing them with what follows instead, which would write all
K*K shifted images to memory. GPU and TPU use XLA's convolution.
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
    size, (height, width, channels) = kernel.shape[0], x.shape[1:]
    kernel = kernel.astype(jnp.float32)  # a sum of 49 terms needs more than bfloat16's 8 bits

    def one_image(padded):
        total = jnp.zeros((height, width, channels), jnp.float32)
        for i in range(size):
            for j in range(size):
                total += padded[i : i + height, j : j + width] * kernel[i, j, 0]
        return total.astype(x.dtype)

    return lax.map(one_image, _pad(x, size))


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
    """Gradient of the kernel, [K, K, 1, C]: for each tap the sum over all pixels.

    The K taps of a kernel row are summed over the image's rows together, each as an array
    [B, W, C], and over the rest once at the end: reductions are slow, multiply-adds fast.
    """
    batch, height, width, channels = x.shape
    padded, gradient = _pad(x, size).astype(jnp.float32), gradient.astype(jnp.float32)

    def kernel_row(i):
        def add_row(row, sums):
            pixels = lax.dynamic_index_in_dim(padded, i + row, axis=1, keepdims=False)
            factor = lax.dynamic_index_in_dim(gradient, row, axis=1, keepdims=False)
            return [total + pixels[:, j : j + width] * factor for j, total in enumerate(sums)]

        zeros = [jnp.zeros((batch, width, channels), jnp.float32)] * size
        sums = lax.fori_loop(0, height, add_row, zeros)
        return jnp.stack([total.sum(axis=(0, 1)) for total in sums])[:, None, :]

    return lax.map(kernel_row, jnp.arange(size))


def _pad(x: jax.Array, size: int) -> jax.Array:
    padding = size // 2
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
