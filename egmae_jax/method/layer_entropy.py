"""Entropy-based layer selection: entropy of the layers' outputs, and the choice of layers.

The Shannon entropy of each convolution's output is measured on calibration images. Layers of low
entropy are considered under-used and are trained; the others stay frozen ("Entropy-Based
Convolutional Layer Selection for Transfer Learning in Brain Tumor Detection").
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MODES = ("all", "head", "low_entropy", "random")
_FINE_BINS = 4096  # bins of a channel's histogram while its range is still unknown


def select(
    mode: str,
    sizes: Mapping[str, int],
    total: int,
    *,
    share: float,
    entropies: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[str]:
    """Chooses the layers to train.

    Args:
        mode: one of MODES: all layers, none but the head, those of lowest entropy, or random ones.
        sizes: number of parameters of each layer.
        total: number of all parameters; those of the head, which is not in `sizes`, always train.
        share: smallest fraction of all parameters, including the head's, that must train. Layers
            are added until it is reached; if it is below 1, at least one layer stays frozen. Only
            for 'low_entropy' and 'random'.
        entropies: entropy of each layer's output; only for 'low_entropy'.
        seed: seed of the order; only for 'random'.

    Returns:
        The chosen layers in the order of their choice.
    """
    if mode in ("all", "head"):
        return list(sizes) if mode == "all" else []
    if mode == "low_entropy":
        assert entropies is not None
        order = sorted(sizes, key=lambda layer: entropies[layer])
    else:
        order = [list(sizes)[i] for i in np.random.default_rng(seed).permutation(len(sizes))]
    count = total - sum(sizes.values())
    chosen: list[str] = []
    for layer in order:
        if count >= share * total or (share < 1 and len(chosen) == len(order) - 1):
            break
        chosen.append(layer)
        count += sizes[layer]
    return chosen


class Histogram(NamedTuple):
    """Histogram of each channel of a layer's output, whose bins widen to include larger values.

    Bin i of channel c has width w = 2 ** exponent[c] and begins at (first[c] + i) * w. Widening
    merges pairs of bins, so the result does not depend on the order of the images.
    """

    counts: jax.Array  # int32 [C, _FINE_BINS]
    exponent: jax.Array  # int32 [C]
    first: jax.Array  # int32 [C]
    low: jax.Array  # float32 [C], the smallest value so far
    high: jax.Array  # float32 [C], the largest value so far


def empty_histogram(channels: int) -> Histogram:
    """Returns the histogram of a layer with `channels` channels before the first image."""
    return Histogram(
        jnp.zeros((channels, _FINE_BINS), jnp.int32),
        jnp.full(channels, -126, jnp.int32),
        jnp.zeros(channels, jnp.int32),
        jnp.full(channels, jnp.inf),
        jnp.full(channels, -jnp.inf),
    )


def add(state: Histogram, x: jax.Array, valid: jax.Array) -> Histogram:
    """Adds the activations of a batch to a histogram.

    Args:
        state: histogram of the previous batches.
        x: activations [B, H, W, C].
        valid: [B], 0 for padding, which is not counted.
    """
    channels = x.shape[-1]
    rows = jnp.moveaxis(x.astype(jnp.float32), -1, 0).reshape(channels, -1)  # [C, B * H * W]
    counted = jnp.repeat(valid > 0, x.shape[1] * x.shape[2])
    low = jnp.minimum(state.low, jnp.where(counted, rows, jnp.inf).min(axis=1))
    high = jnp.maximum(state.high, jnp.where(counted, rows, -jnp.inf).max(axis=1))
    # The bins must cover all values and must not be finer than the resolution of float32.
    finest = jnp.maximum(jnp.abs(low), jnp.abs(high)) * 2.0**-24
    width = jnp.maximum(jnp.maximum((high - low) / (_FINE_BINS - 2), finest), 2.0**-100)
    exponent = jnp.maximum(jnp.ceil(jnp.log2(width)).astype(jnp.int32), state.exponent)
    scale = jnp.ldexp(jnp.float32(1), -exponent)
    first = jnp.floor(low * scale).astype(jnp.int32)

    start = jnp.arange(channels)[:, None] * _FINE_BINS
    # Indices of the previous bins in the new grid, where they are merged.
    widening = jnp.minimum(exponent - state.exponent, 31)[:, None]
    old = (state.first[:, None] + jnp.arange(_FINE_BINS)) >> widening
    old = old - first[:, None] + start
    new = jnp.floor(rows * scale[:, None]).astype(jnp.int32) - first[:, None] + start
    counts = jnp.zeros(channels * _FINE_BINS, jnp.int32)
    for bins, amounts in ((old, state.counts), (new, counted.astype(jnp.int32)[None])):
        amounts = jnp.broadcast_to(amounts, bins.shape)
        bins = jnp.where(amounts > 0, bins, counts.size)  # an index out of range is dropped
        counts = counts.at[bins.reshape(-1)].add(amounts.reshape(-1), mode="drop")
    return Histogram(counts.reshape(channels, _FINE_BINS), exponent, first, low, high)


def channel_entropies(histogram: Histogram, num_bins: int = 256) -> np.ndarray:
    """Computes the entropy of each channel's values, float [C], in nats.

    Args:
        histogram: histogram of a layer, as numpy arrays.
        num_bins: number of bins over the range of each channel; each collects 8 to 16 fine bins.
    """
    width = np.ldexp(1.0, histogram.exponent)[:, None]
    centres = (histogram.first[:, None] + np.arange(_FINE_BINS) + 0.5) * width
    extent = np.maximum(histogram.high - histogram.low, np.finfo(np.float32).tiny)[:, None]
    positions = (centres - histogram.low[:, None]) / extent * num_bins
    bins = np.clip(positions, 0, num_bins - 1).astype(int)
    bins += np.arange(len(bins))[:, None] * num_bins  # one row of bins per channel
    counts = np.bincount(
        bins.reshape(-1), np.asarray(histogram.counts).reshape(-1), minlength=len(bins) * num_bins
    ).reshape(-1, num_bins)
    p = counts / counts.sum(axis=1, keepdims=True)
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=1)
