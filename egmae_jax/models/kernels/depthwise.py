"""Depthwise convolution, the hot spot of ConvNeXt, in the form that is fastest on a platform.

XLA's grouped convolution is slow on a CPU. There the convolution is a sum of K*K shifted and scaled
copies of the input, which XLA fuses into one vectorised loop over all cores, and has its own
backward rule. A TPU runs the program of `depthwise_tpu`, a GPU XLA's convolution.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from egmae_jax.core import sharding
from egmae_jax.core.platform import (
    by_platform,
    cast,
    custom_vjp,
    for_gpu,
    join,
    materialize,
    runs_tpu_kernels,
    subroutine,
)
from egmae_jax.models.kernels import depthwise_tpu
from egmae_jax.models.kernels.operations import column_sums, largest_divisor, pixel_sums

_MAX_ROWS = 7  # image rows that the kernel's gradient sums at a time


@subroutine
def depthwise_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Depthwise convolution with stride 1 and zero padding, which keeps the spatial size.

    Args:
        x: features [B, H, W, C].
        kernel: kernel [K, K, 1, C], K odd; cast to the dtype of `x`, as is the bias.
        bias: bias of each channel, [C].

    Returns:
        Features [B, H, W, C] in the dtype of `x`.
    """
    if for_gpu():
        return _conv_on_gpu(x, kernel, bias)
    kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
    if runs_tpu_kernels() and depthwise_tpu.is_supported(x, len(kernel)):
        return sharding.by_device(_conv_on_tpu, batched=1)(x, kernel, bias)
    return by_platform(x, kernel, bias, cpu=_shifted_conv, others=depthwise_conv_plain)


def depthwise_conv_plain(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Plain form of `depthwise_conv`: XLA's grouped convolution."""
    padding = kernel.shape[0] // 2
    y = lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return y + bias


def strided_depthwise_conv(
    x: jax.Array, kernel: jax.Array, strides: int, before: Sequence[int]
) -> jax.Array:
    """Depthwise convolution without bias to ⌈H / strides⌉ by ⌈W / strides⌉ pixels.

    Args:
        x: features [B, H, W, C].
        kernel: kernel [K, K, 1, C], K odd.
        strides: step along both axes.
        before: number of zeros before the first row and before the first column, at most K // 2.

    Returns:
        Features [B, ⌈H / strides⌉, ⌈W / strides⌉, C] in the dtype of `x`.
    """
    form = functools.partial(_subsampled_conv, strides=strides, before=tuple(before))
    plain = functools.partial(strided_depthwise_conv_plain, strides=strides, before=before)
    return by_platform(x, kernel, cpu=form, others=plain)


def strided_depthwise_conv_plain(
    x: jax.Array, kernel: jax.Array, strides: int, before: Sequence[int]
) -> jax.Array:
    """Plain form of `strided_depthwise_conv`: XLA's grouped convolution."""
    size = len(kernel)
    outputs = [-(-side // strides) for side in x.shape[1:3]]
    padding = [
        (low, (count - 1) * strides + size - side - low)
        for low, count, side in zip(before, outputs, x.shape[1:3], strict=True)
    ]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _subsampled_conv(
    x: jax.Array, kernel: jax.Array, strides: int, before: tuple[int, ...]
) -> jax.Array:
    """Keeps the pixels of a convolution with stride 1 that one with strides computes."""
    y = depthwise_conv(x, kernel, jnp.zeros(x.shape[-1:], x.dtype))
    row, column = (len(kernel) // 2 - low for low in before)
    return y[:, row::strides, column::strides]


@jax.custom_vjp
def _conv_on_gpu(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return depthwise_conv_plain(x, cast(kernel, x.dtype), bias.astype(x.dtype))


def _conv_on_gpu_forward(x, kernel, bias):
    """Casts and turns the kernels of all layers of one shape in one program."""
    # Together, or XLA would turn one of them where the optimizer updates it, and copy it for that.
    casted, turned = lax.optimization_barrier(
        (cast(kernel, x.dtype), cast(kernel[::-1, ::-1], x.dtype))
    )
    y = depthwise_conv_plain(x, casted, bias.astype(x.dtype))
    return y, (x, kernel, turned, bias)


def _conv_on_gpu_backward(residuals, gradient):
    x, kernel, turned, bias = residuals
    gradient = lax.optimization_barrier(gradient)
    no_bias = jnp.zeros(x.shape[-1:], x.dtype)
    images = x, gradient
    if min(x.shape[1:3]) <= len(kernel):
        # XLA only calls the library's program for the gradient of a kernel smaller than the image.
        rest = [max(0, len(kernel) + 1 - side) for side in x.shape[1:3]]
        margin = (0, 0), (0, rest[0]), (0, rest[1]), (0, 0)
        images = tuple(
            jnp.pad(join(image.astype(jnp.float32)).astype(x.dtype), margin) for image in images
        )
    padded, padded_gradient = images
    _, kernel_gradient = jax.vjp(
        lambda kernel: depthwise_conv_plain(padded, kernel, no_bias), kernel.astype(x.dtype)
    )
    return (
        depthwise_conv_plain(gradient, turned, no_bias),
        kernel_gradient(padded_gradient)[0].astype(kernel.dtype),
        pixel_sums(gradient).astype(bias.dtype),
    )


_conv_on_gpu.defvjp(_conv_on_gpu_forward, _conv_on_gpu_backward)


@jax.custom_vjp
def _conv_on_tpu(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return depthwise_tpu.conv(x, kernel, bias)


def _conv_on_tpu_backward(residuals, gradient):
    x, kernel = residuals
    no_bias = jnp.zeros(x.shape[-1:], x.dtype)
    return (
        depthwise_tpu.conv(gradient, kernel[::-1, ::-1], no_bias),
        depthwise_tpu.kernel_gradient(x, gradient, len(kernel)).astype(kernel.dtype),
        gradient.sum(axis=(0, 1, 2)),
    )


_conv_on_tpu.defvjp(
    lambda x, kernel, bias: (_conv_on_tpu(x, kernel, bias), (x, kernel)), _conv_on_tpu_backward
)


@jax.custom_jvp
def _shifted(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return materialize(_correlate(x, kernel) + bias)


@_shifted.defjvp
def _shifted_jvp(primals, tangents):
    """Derivative outside `platform.jit`, where the backward rule below is off.

    It uses XLA's convolution; JAX's own derivative of 49 multiply-adds takes 14 GB in a step.
    """
    (x, kernel, _), (x_tangent, kernel_tangent, bias_tangent) = primals, tangents
    tangent = depthwise_conv_plain(x_tangent, kernel, bias_tangent)
    tangent += depthwise_conv_plain(x, kernel_tangent, jnp.zeros_like(bias_tangent))
    return _shifted(*primals), tangent


_shifted_conv = custom_vjp(_shifted)


@jax.jit  # forward and backward pass share one trace
def _correlate(x: jax.Array, kernel: jax.Array) -> jax.Array:
    size, (batch, height, width, channels) = kernel.shape[0], x.shape
    padded = materialize(_pad(x, size))
    # A sum of 49 terms needs more than bfloat16's 8 bits.
    taps = kernel.astype(jnp.float32).reshape(-1)
    total = jnp.zeros(x.shape, jnp.float32)
    # By lax: operators and indices take longer to trace.
    for index, (i, j) in enumerate(np.ndindex(size, size)):
        window = lax.slice(padded, (0, i, j, 0), (batch, i + height, j + width, channels))
        tap = lax.slice(taps, (index * channels,), ((index + 1) * channels,))
        tap = lax.broadcast_in_dim(tap, x.shape, (3,))
        total = lax.add(total, lax.mul(window.astype(jnp.float32), tap))
    return total.astype(x.dtype)


def _shifted_conv_forward(x, kernel, bias):
    return _shifted_conv(x, kernel, bias), (x, kernel)


def _shifted_conv_backward(residuals, gradient):
    x, kernel = residuals
    return (
        # Correlating with the kernel turned by 180 degrees is the transpose of correlating with it.
        materialize(_correlate(gradient, kernel[::-1, ::-1])),
        _kernel_gradient(x, gradient, kernel.shape[0]).astype(kernel.dtype),
        column_sums(gradient.reshape(-1, gradient.shape[-1])),
    )


_shifted_conv.defvjp(_shifted_conv_forward, _shifted_conv_backward)


def _kernel_gradient(x: jax.Array, gradient: jax.Array, size: int) -> jax.Array:
    """Gradient of the kernel [K, K, 1, C]: grad[i, j, c] = sum over b, h, w of x * gradient.

    Here x is shifted by (i, j). On a CPU, reductions are slow and multiply-adds fast. So the loop
    adds products of a few image rows into arrays [K, W, C], one for each kernel column j, which
    stay in the cache; the sum over W follows once at the end.
    """
    batch, height, width, channels = x.shape
    padded, gradient = _pad(x, size).astype(jnp.float32), gradient.astype(jnp.float32)
    rows = largest_divisor(height, _MAX_ROWS)
    blocks = height // rows  # blocks of rows in an image

    # The barrier hides that these are constants; otherwise XLA compiles a loop body for each.
    columns = materialize([jnp.int32(j) for j in range(size)])
    cut = functools.partial(lax.dynamic_slice, allow_negative_indices=False)
    shape = size, width, channels

    def add_block(index, sums):
        start = index // blocks, index % blocks * rows, 0, 0
        pixels = cut(padded, start, (1, rows + size - 1, width + size - 1, channels))[0]
        factor = cut(gradient, start, (1, rows, width, channels))[0]
        pixels, factor = materialize((pixels, factor))
        factors = [jnp.broadcast_to(factor[row], shape) for row in range(rows)]

        def add(total, column):
            for row, factor in zip(np.arange(rows, dtype=np.int32), factors, strict=True):
                start = row, column, np.int32(0)  # Python integers would become extra operations
                total = lax.add(total, lax.mul(cut(pixels, start, shape), factor))
            return total

        return [add(total, column) for total, column in zip(sums, columns, strict=True)]

    sums = lax.fori_loop(0, batch * blocks, add_block, [jnp.zeros(shape, jnp.float32)] * size)
    return jnp.stack(sums).sum(axis=2).swapaxes(0, 1)[:, :, None, :]  # from [column, row, C]


def _pad(x: jax.Array, size: int) -> jax.Array:
    padding = size // 2
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
