"""Shannon entropy of image patches (paper section 3.3, the formula below equation 4).

H[k] = -sum_i p_i[k] log p_i[k]     `patch_entropy`, from the 8-bit image before normalisation
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from egmae_jax.core.platform import for_cpu

COLORS = ("per_channel", "joint", "luma")
# Weights w of Pillow's grey value, floor((w . rgb) / 65536 + 1/2).
LUMA = (19595, 38470, 7471)


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images into non-overlapping patches: [B, H, W, C] -> [B, H/P, W/P, P*P, C].

    Raises:
        ValueError: H or W is not divisible by `patch_size`.
    """
    batch, height, width, channels = images.shape
    p = patch_size
    if height % p or width % p:
        raise ValueError(
            f"{height}x{width} images cannot be cut into patches of {p}x{p}: both sides must be "
            f"divisible by {p}."
        )
    x = images.reshape(batch, height // p, p, width // p, p, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // p, width // p, p * p, channels)


@functools.partial(jax.jit, static_argnames=("patch_size", "num_bins", "color", "base"))
def patch_entropy(
    images: jax.Array,
    patch_size: int,
    *,
    num_bins: int = 256,
    color: str = "per_channel",
    base: float = math.e,
) -> jax.Array:
    """Computes the Shannon entropy of every patch (paper section 3.3, below equation 4).

    Args:
        images: uint8 [B, H, W, C], before normalisation.
        patch_size: P, a divisor of H and W.
        num_bins: number of bins of equal width over the 256 values; a divisor of 256.
        color: 'per_channel' averages the channels' entropies, 'joint' pools the values of all
            channels into one histogram, 'luma' uses the grey value (ITU-R 601, as Pillow's 'L').
        base: base of the logarithm; e gives nats.

    Returns:
        float32 [B, H/P, W/P] in [0, log(min(num_bins, number of values in a patch))]. The entropy
        of a patch of one colour is exactly 0.

    Raises:
        TypeError: the images are not uint8.
        ValueError: another argument is out of range.
    """
    _require_valid(images, patch_size, num_bins, color, base)
    values = patchify(images, patch_size)  # [B, h, w, P*P, C]
    if color == "per_channel":
        values = values.swapaxes(-1, -2)  # [B, h, w, C, P*P], one histogram per channel
    elif color == "joint":
        values = values.reshape(*values.shape[:3], 1, -1)  # [B, h, w, 1, P*P*C]
    else:
        values = _luma(values)[..., None, :]  # [B, h, w, 1, P*P]
    counts = _histograms(values.astype(jnp.int32) // (256 // num_bins), num_bins)
    counts, total = counts.astype(jnp.float32), values.shape[-1]
    # XLA multiplies by the reciprocal, so p of a flat patch would not be exactly 1.
    p = jnp.where(counts == total, 1.0, counts / total)
    entropy = -xlogy(p, p).sum(axis=-1).mean(axis=-1) / math.log(base)
    return jnp.maximum(entropy, 0.0)  # turns -0 into 0


def _require_valid(
    images: jax.Array, patch_size: int, num_bins: int, color: str, base: float
) -> None:
    """Raises TypeError or ValueError as `patch_entropy` documents."""
    if images.dtype != jnp.uint8:
        raise TypeError(
            f"patch_entropy takes uint8 images before normalisation; got {images.dtype}."
        )
    if patch_size < 1:
        raise ValueError(f"patch_size must be at least 1; got {patch_size}.")
    if not 1 <= num_bins <= 256 or 256 % num_bins:
        raise ValueError(f"num_bins must be a divisor of 256; got {num_bins}.")
    if color not in COLORS:
        raise ValueError(f"color must be one of {', '.join(COLORS)}; got {color!r}.")
    if base <= 1:
        raise ValueError(f"base must be greater than 1; got {base}.")


def _luma(rgb: jax.Array) -> jax.Array:
    """Converts to greyscale, uint8 [..., 3] -> [...], bit-identical to Pillow's convert('L')."""
    return ((rgb.astype(jnp.int32) * jnp.array(LUMA, jnp.int32)).sum(axis=-1) + 0x8000) >> 16


def _histograms(bins: jax.Array, num_bins: int) -> jax.Array:
    """Counts the values in each bin: int32 [..., N], below num_bins -> integers [..., num_bins].

    If all 256 values of a patch are in one bin, its count may overflow to 0. The entropy is then 0
    all the same, because 0 log 0 = 1 log 1 = 0.
    """
    rows = bins.reshape(-1, bins.shape[-1])
    count = _count_by_comparison if for_cpu() else _count_by_scatter
    return count(rows, num_bins).reshape(*bins.shape[:-1], num_bins)


def _count_by_comparison(rows: jax.Array, num_bins: int) -> jax.Array:
    """Counts by comparing a few values at a time with all bins: [R, N] -> [R, num_bins].

    This is the fastest way on CPU, and its time does not depend on the values.
    """
    total = rows.shape[1]
    chunk = math.gcd(total, 16)
    dtype = jnp.uint8 if total <= 256 else jnp.uint16 if total < 2**16 else jnp.int32
    columns = rows.T.astype(jnp.uint8)
    all_bins = jnp.arange(num_bins, dtype=jnp.uint8)

    def count(index, counts):
        values = jax.lax.dynamic_slice_in_dim(columns, index * chunk, chunk)
        return sum(((row[:, None] == all_bins).astype(dtype) for row in values), counts)

    zeros = jnp.zeros((len(rows), num_bins), dtype)
    return jax.lax.fori_loop(0, total // chunk, count, zeros)


def _count_by_scatter(rows: jax.Array, num_bins: int) -> jax.Array:
    """Counts by adding ones into the bins: [R, N] -> [R, num_bins].

    The counts are integers because scattering floats is very slow on GPUs if many updates hit one
    bin (jax-ml/jax#38806), as those of a dark patch do. Each row has its own array, since a common
    array would be summed over the devices that share a batch.
    """
    zeros = jnp.zeros(num_bins, jnp.int32)
    return jax.vmap(lambda row: zeros.at[row].add(1, mode="promise_in_bounds"))(rows)
