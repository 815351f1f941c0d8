"""Depthwise convolution and its kernel gradient for GPUs, in Pallas with Triton.

A program computes ROWS rows of COLUMNS pixels and CHANNELS channels, in float32 in registers. For
each column of the kernel it loads a row of pixels once for all output rows that the row reaches:
ROWS + K - 1 loads for ROWS * K multiply-adds. Nothing is padded, loads beyond the image give zeros.

Triton wants blocks whose sizes are powers of two; rows are not in a block. All stages of a ConvNeXt
at 224 pixels have a multiple of 7 rows. On CPU the kernels are interpreted, for tests.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton  # deprecated since JAX 0.11, without a date

from egmae_jax.core.platform import for_cpu

ROWS, COLUMNS, CHANNELS = 7, 8, 32


def _load(ref: Any, image: jax.Array, row: jax.Array, columns: jax.Array, channels: jax.Array):
    """Loads a part of one row of an image, float32 [COLUMNS, CHANNELS], with zeros outside."""
    _, height, width, depth = ref.shape
    row_inside = (row >= 0) & (row < height)
    pixels_inside = row_inside & (columns >= 0) & (columns < width)
    mask = pixels_inside[:, None] & (channels < depth)[None, :]
    block = ref.at[image, row, columns[:, None], channels[None, :]]
    return triton.load(block, mask=mask, other=0).astype(jnp.float32)


def _conv_kernel(x_ref, kernel_ref, out_ref):
    """Convolves x [B, H, W, C]; one program for each block of rows, columns and channels."""
    (size, _, depth), (_, height, width, _) = kernel_ref.shape, out_ref.shape
    row_blocks, padding = pl.cdiv(height, ROWS), size // 2
    image, first_row = pl.program_id(0) // row_blocks, pl.program_id(0) % row_blocks * ROWS
    columns = pl.program_id(1) * COLUMNS + jnp.arange(COLUMNS)
    channels = pl.program_id(2) * CHANNELS + jnp.arange(CHANNELS)

    def add_column_of_taps(j, sums):
        taps = [
            triton.load(kernel_ref.at[i, j, channels], mask=channels < depth, other=0)
            for i in range(size)
        ]
        for r in range(ROWS + size - 1):
            pixels = _load(x_ref, image, first_row + r - padding, columns + j - padding, channels)
            for k in range(max(0, r - size + 1), min(ROWS, r + 1)):  # output rows this one reaches
                sums[k] += pixels * taps[r - k][None, :]
        return sums

    zeros = [jnp.zeros((COLUMNS, CHANNELS), jnp.float32)] * ROWS
    sums = lax.fori_loop(0, size, add_column_of_taps, zeros)
    mask = (columns < width)[:, None] & (channels < depth)[None, :]
    for k, total in enumerate(sums):
        row = first_row + k
        block = out_ref.at[image, row, columns[:, None], channels[None, :]]
        triton.store(block, total.astype(out_ref.dtype), mask=mask & (row < height))


def _kernel_gradient_kernel(x_ref, gradient_ref, out_ref):
    """Sums the kernel gradient; one program for each block of rows, kernel column and channels.

    Each sums the pixels of its rows into [row block, :, column, channels] of the output.
    """
    _, size, _, depth = out_ref.shape
    _, height, width, _ = x_ref.shape
    row_blocks, padding = pl.cdiv(height, ROWS), size // 2
    image, first_row = pl.program_id(0) // row_blocks, pl.program_id(0) % row_blocks * ROWS
    j = pl.program_id(1)
    channels = pl.program_id(2) * CHANNELS + jnp.arange(CHANNELS)

    def add_columns(block, sums):
        columns = block * COLUMNS + jnp.arange(COLUMNS)
        factors = [
            _load(gradient_ref, image, first_row + k, columns, channels) for k in range(ROWS)
        ]
        for r in range(ROWS + size - 1):
            pixels = _load(x_ref, image, first_row + r - padding, columns + j - padding, channels)
            for k in range(max(0, r - size + 1), min(ROWS, r + 1)):
                sums[r - k] += pixels * factors[k]
        return sums

    zeros = [jnp.zeros((COLUMNS, CHANNELS), jnp.float32)] * size
    sums = lax.fori_loop(0, pl.cdiv(width, COLUMNS), add_columns, zeros)
    for i, total in enumerate(sums):
        block = out_ref.at[pl.program_id(0), i, j, channels]
        triton.store(block, total.sum(axis=0), mask=channels < depth)


def _call(kernel: Callable[..., None], shape: tuple[int, ...], dtype: Any, grid: Any):
    return pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct(shape, dtype),
        grid=grid,
        interpret=for_cpu(),
        # Its type chooses Triton; without, JAX 0.10 takes Mosaic GPU, which has no such loads.
        compiler_params=triton.CompilerParams(num_warps=4),
    )


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves x [B, H, W, C] with a kernel [K, K, 1, C], in the dtype of `x`."""
    batch, height, width, channels = x.shape
    blocks = batch * pl.cdiv(height, ROWS), pl.cdiv(width, COLUMNS), pl.cdiv(channels, CHANNELS)
    taps = kernel[:, :, 0].astype(jnp.float32)
    return _call(_conv_kernel, x.shape, x.dtype, blocks)(x, taps)


def kernel_gradient(x: jax.Array, gradient: jax.Array, size: int) -> jax.Array:
    """Returns the kernel gradient, float32 [K, K, 1, C], given that of the output; `size` is K."""
    batch, height, _, channels = x.shape
    parts = batch * pl.cdiv(height, ROWS)
    shape, blocks = (parts, size, size, channels), (parts, size, pl.cdiv(channels, CHANNELS))
    sums = _call(_kernel_gradient_kernel, shape, jnp.float32, blocks)(x, gradient)
    return sums.sum(axis=0)[:, :, None]
