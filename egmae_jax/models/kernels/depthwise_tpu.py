"""Depthwise convolution for TPUs, in Pallas.

XLA's convolution also keeps the batch in the sublanes and the channels in the lanes of a vector,
but takes two cycles for each multiply-add of vectors (v5e, by `benchmarks.aot`). Here a block of
output pixels stays in registers while the taps of the kernel pass: a little over half a cycle.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from egmae_jax.core import sharding
from egmae_jax.models.kernels.operations import largest_divisor

_SUBLANES, _LANES = 8, 128  # of a vector of float32
_BATCH_TILE = 16  # images at a time; as many rows as a tile of bfloat16 has
_MOST_PIXELS = 8  # output pixels at a time: more do not fit the 64 registers
_MEMORY = 112 * 2**20  # bytes of a core's own memory (128 MiB of a v5e) that a program may take


def is_supported(x: jax.ShapeDtypeStruct | jax.Array, size: int) -> bool:
    """Whether `conv` computes this, [B, H, W, C], by a kernel of `size` x `size` pixels."""
    batch, height, width, _ = x.shape
    if batch % (_BATCH_TILE * sharding.batch_parts()) or size % 2 == 0:
        return False
    pixel = _BATCH_TILE * _LANES  # with fewer channels, too
    block = height * width * pixel * x.dtype.itemsize
    padded = (height + size - 1) * (width + size - 1) * pixel * 4
    return 6 * block + padded < _MEMORY  # inputs and output are double-buffered


@jax.jit  # so equal blocks share a trace
def conv(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, residual: jax.Array | None = None
) -> jax.Array:
    """Depthwise convolution with stride 1 and zero padding, if `is_supported`.

    Args:
        x: features [B, H, W, C].
        kernel: kernel [K, K, 1, C], K odd.
        bias: bias of each channel, [C].
        residual: features [B, H, W, C] to add to the result, in the dtype of `x`.

    Returns:
        Features [B, H, W, C] in the dtype of `x`; sums are float32.
    """
    size, channels = kernel.shape[0], x.shape[-1]
    features = [a.transpose(1, 2, 0, 3) for a in (x, residual) if a is not None]
    arguments = kernel.reshape(size**2, channels), bias[None], *features
    y = lax.platform_dependent(
        *arguments,
        tpu=functools.partial(_convolve, size=size),
        default=functools.partial(_convolve, size=size, interpret=True),
    )
    return y.transpose(2, 0, 1, 3)


@functools.partial(jax.jit, static_argnames="size")
def kernel_gradient(x: jax.Array, gradient: jax.Array, size: int) -> jax.Array:
    """Gradient of `conv` by its kernel, float32 [K, K, 1, C].

    Args:
        x: features [B, H, W, C].
        gradient: gradient of the result [B, H, W, C].
        size: K.
    """
    arguments = (a.transpose(1, 2, 0, 3) for a in (x, gradient))
    sums = lax.platform_dependent(
        *arguments,
        tpu=functools.partial(_correlate, size=size),
        default=functools.partial(_correlate, size=size, interpret=True),
    )
    return sums.reshape(size, size, 1, x.shape[-1])


def _correlate(x: jax.Array, gradient: jax.Array, *, size: int, interpret=False) -> jax.Array:
    """Sums of the products of shifted [H, W, B, C] and [H, W, B, C]: [K * K, C]."""
    height, width, batch, channels = x.shape
    lanes = min(channels, _LANES)
    pixels = pl.BlockSpec((height, width, _BATCH_TILE, lanes), lambda c, b: (0, 0, b, c))
    return pl.pallas_call(
        functools.partial(_gradient_kernel, size=size),
        jax.ShapeDtypeStruct((size**2, channels), jnp.float32),
        grid=(pl.cdiv(channels, lanes), batch // _BATCH_TILE),
        in_specs=[pixels, pixels],
        out_specs=pl.BlockSpec((size**2, lanes), lambda c, b: (0, c)),
        scratch_shapes=[
            pltpu.VMEM((height + size - 1, width + size - 1, _BATCH_TILE, lanes), jnp.float32),
            pltpu.VMEM((size**2, _SUBLANES, lanes), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_MEMORY + 2**20),
        cost_estimate=pl.CostEstimate(
            flops=2 * size**2 * math.prod(x.shape), bytes_accessed=2 * x.nbytes, transcendentals=0
        ),
        interpret=interpret,
        # With the shape, which the result does not tell a reader of the compiled program.
        name=f"depthwise_kernel_gradient_{height}_{width}_{batch}",
    )(x, gradient)


def _convolve(
    taps: jax.Array, bias: jax.Array, x: jax.Array, *residual: jax.Array, size: int, interpret=False
) -> jax.Array:
    """Convolves [H, W, B, C] with taps [K * K, C]; without a TPU the program is interpreted."""
    height, width, batch, channels = x.shape
    lanes = min(channels, _LANES)
    pixels = pl.BlockSpec((height, width, _BATCH_TILE, lanes), lambda b, c: (0, 0, b, c))
    return pl.pallas_call(
        functools.partial(_kernel, size=size),
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(batch // _BATCH_TILE, pl.cdiv(channels, lanes)),
        in_specs=[
            pl.BlockSpec((size**2, lanes), lambda b, c: (0, c)),
            pl.BlockSpec((1, lanes), lambda b, c: (0, c)),
            *[pixels] * (1 + len(residual)),
        ],
        out_specs=pixels,
        scratch_shapes=[
            pltpu.VMEM((height + size - 1, width + size - 1, _BATCH_TILE, lanes), jnp.float32),
            pltpu.VMEM((size**2, _SUBLANES, lanes), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_MEMORY + 2**20),
        cost_estimate=pl.CostEstimate(
            flops=2 * size**2 * math.prod(x.shape),
            bytes_accessed=(2 + len(residual)) * x.nbytes,
            transcendentals=0,
        ),
        interpret=interpret,
        name="depthwise_conv_sum" if residual else "depthwise_conv",
    )(taps, bias, x, *residual)


def _kernel(taps_ref, bias_ref, x_ref, *refs, size: int) -> None:
    """Convolves [H, W, B, C].

    The last references are a residual, if any, the output, and arrays for the padded input and for
    taps that fill whole vectors.
    """
    *residual_refs, out_ref, padded_ref, wide_taps_ref = refs
    height, width, batch, lanes = out_ref.shape
    margin = size // 2
    _pad(x_ref, padded_ref, margin)
    wide = (_SUBLANES, lanes)
    for tap in range(size**2):
        wide_taps_ref[tap] = jnp.broadcast_to(taps_ref[tap : tap + 1].astype(jnp.float32), wide)
    bias = jnp.broadcast_to(bias_ref[...].astype(jnp.float32), wide)
    pixels = largest_divisor(width, _MOST_PIXELS)
    rows, blocks = range(0, batch, _SUBLANES), width // pixels

    def add_taps(step: jax.Array, _: None) -> None:
        row, first = lax.div(step, blocks), lax.rem(step, blocks) * pixels
        sums = [[bias for _ in rows] for _ in range(pixels)]
        for i in range(size):
            values = [
                [padded_ref[row + i, first + k, r : r + _SUBLANES] for r in rows]
                for k in range(pixels + size - 1)
            ]
            for j in range(size):
                tap = wide_taps_ref[i * size + j]
                for k in range(pixels):
                    sums[k] = [s + x * tap for s, x in zip(sums[k], values[k + j], strict=True)]
        for k, parts in enumerate(sums):
            total = jnp.concatenate(parts)
            for ref in residual_refs:
                total += ref[row, first + k].astype(jnp.float32)
            out_ref[row, first + k] = total.astype(out_ref.dtype)

    lax.fori_loop(0, height * blocks, add_taps, None)


def _gradient_kernel(x_ref, gradient_ref, out_ref, padded_ref, sums_ref, *, size: int) -> None:
    """Adds the products of [H, W, B, C] to `out_ref`; `sums_ref` has rows for each tap."""
    height, width, batch, _ = x_ref.shape
    _pad(x_ref, padded_ref, size // 2)
    sums_ref[...] = jnp.zeros_like(sums_ref)
    pixels = largest_divisor(width, _MOST_PIXELS)
    rows, blocks = range(0, batch, _SUBLANES), width // pixels

    def add_products(step: jax.Array, _: None) -> None:
        row, first = lax.div(step, blocks), lax.rem(step, blocks) * pixels
        wide = [gradient_ref[row, first + k].astype(jnp.float32) for k in range(pixels)]
        factors = [[x[r : r + _SUBLANES] for r in rows] for x in wide]
        for i in range(size):
            values = [
                [padded_ref[row + i, first + k, r : r + _SUBLANES] for r in rows]
                for k in range(pixels + size - 1)
            ]
            for j in range(size):
                products = [
                    v * f
                    for k in range(pixels)
                    for v, f in zip(values[k + j], factors[k], strict=True)
                ]
                sums_ref[i * size + j] += sum(products[1:], products[0])

    lax.fori_loop(0, height * blocks, add_products, None)

    @pl.when(pl.program_id(1) == 0)
    def clear() -> None:
        out_ref[...] = jnp.zeros_like(out_ref)

    for tap in range(size**2):
        out_ref[tap : tap + 1] += sums_ref[tap].sum(axis=0, keepdims=True)


def _pad(x_ref: Any, padded_ref: Any, margin: int) -> None:
    """Copies [H, W, B, C] into the middle of a larger array of float32, whose margin becomes 0."""
    height, width = x_ref.shape[:2]
    rows, columns, *rest = padded_ref.shape
    empty = jnp.zeros((columns, *rest), jnp.float32)
    for row in (*range(margin), *range(height + margin, rows)):
        padded_ref[row] = empty

    def copy_row(row: jax.Array, _: None) -> None:
        padded_ref[row + margin, :margin] = empty[:margin]
        padded_ref[row + margin, margin + width :] = empty[:margin]
        padded_ref[row + margin, margin : margin + width] = x_ref[row].astype(jnp.float32)

    lax.fori_loop(0, height, copy_row, None)
