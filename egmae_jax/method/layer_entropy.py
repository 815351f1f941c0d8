"""Entropy-based layer selection: the entropy of a layer's output, and which layers it chooses.

The Shannon entropy of each convolution's output is measured on calibration images; the layers of
low entropy are held to be under-used, and are trained while the others stay as they were
(Entropy-Based Convolutional Layer Selection for Transfer Learning in Brain Tumor Detection).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MODES = ("all", "head", "low_entropy", "random")
_FINE_BINS = 4096  # bins of a channel's histogram while its range is not known


def select(
    mode: str,
    sizes: Mapping[str, int],
    total: int,
    *,
    share: float,
    entropies: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[str]:
    """Chooses the layers that train.

    Args:
        mode: one of MODES.
        sizes: the number of parameters of each layer.
        total: the number of all parameters; those of no layer, the classifier's, always train.
        share: layers are added, each whole, until at least this share of all parameters trains,
            the head's included; below 1 at least one layer stays frozen. 'low_entropy' and 'random'
            read it.
        entropies: entropy of each layer's output, for 'low_entropy'.
        seed: seed of the order, for 'random'.

    Returns:
        The layers in the order in which they were chosen.
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
    """Counts of a layer's values by channel, on a grid that widens as larger values come.

    Bins of channel c are `2 ** exponent[c]` wide and begin at multiples of that, the first at
    multiple `first[c]`. Widening joins pairs of bins, so the result does not depend on the order of
    the images.
    """

    counts: jax.Array  # int32 [C, _FINE_BINS]
    exponent: jax.Array  # int32 [C]
    first: jax.Array  # int32 [C]
    low: jax.Array  # float32 [C], the least value so far
    high: jax.Array  # float32 [C]


def empty_histogram(channels: int) -> Histogram:
    """The histogram of a layer with so many channels before any image was seen."""
    return Histogram(
        jnp.zeros((channels, _FINE_BINS), jnp.int32),
        jnp.full(channels, -126, jnp.int32),
        jnp.zeros(channels, jnp.int32),
        jnp.full(channels, jnp.inf),
        jnp.full(channels, -jnp.inf),
    )


def add(state: Histogram, x: jax.Array, valid: jax.Array) -> Histogram:
    """Counts the values of some images.

    Args:
        state: the histogram so far, of C channels.
        x: activations [B, H, W, C].
        valid: [B], 0 for padding, which does not count.
    """
    channels = x.shape[-1]
    rows = jnp.moveaxis(x.astype(jnp.float32), -1, 0).reshape(channels, -1)  # [C, B * H * W]
    counted = jnp.repeat(valid > 0, x.shape[1] * x.shape[2])
    low = jnp.minimum(state.low, jnp.where(counted, rows, jnp.inf).min(axis=1))
    high = jnp.maximum(state.high, jnp.where(counted, rows, -jnp.inf).max(axis=1))
    # So wide that all values fit, and no finer than float32 is.
    finest = jnp.maximum(jnp.abs(low), jnp.abs(high)) * 2.0**-24
    width = jnp.maximum(jnp.maximum((high - low) / (_FINE_BINS - 2), finest), 2.0**-100)
    exponent = jnp.maximum(jnp.ceil(jnp.log2(width)).astype(jnp.int32), state.exponent)
    scale = jnp.ldexp(jnp.float32(1), -exponent)
    first = jnp.floor(low * scale).astype(jnp.int32)

    start = jnp.arange(channels)[:, None] * _FINE_BINS
    # The bins so far, joined where the grid has widened.
    widening = jnp.minimum(exponent - state.exponent, 31)[:, None]
    old = (state.first[:, None] + jnp.arange(_FINE_BINS)) >> widening
    old = old - first[:, None] + start
    new = jnp.floor(rows * scale[:, None]).astype(jnp.int32) - first[:, None] + start
    counts = jnp.zeros(channels * _FINE_BINS, jnp.int32)
    for places, amounts in ((old, state.counts), (new, counted.astype(jnp.int32)[None])):
        amounts = jnp.broadcast_to(amounts, places.shape)
        places = jnp.where(amounts > 0, places, counts.size)  # else out of the array, and dropped
        counts = counts.at[places.reshape(-1)].add(amounts.reshape(-1), mode="drop")
    return Histogram(counts.reshape(channels, _FINE_BINS), exponent, first, low, high)


def channel_entropies(histogram: Histogram, num_bins: int = 256) -> np.ndarray:
    """Entropy of each channel's values over its range, [C], in nats.

    Eight to sixteen fine bins go to each of the `num_bins` over the range.
    """
    width = np.ldexp(1.0, histogram.exponent)[:, None]
    middles = (histogram.first[:, None] + np.arange(_FINE_BINS) + 0.5) * width
    extent = np.maximum(histogram.high - histogram.low, np.finfo(np.float32).tiny)[:, None]
    places = (middles - histogram.low[:, None]) / extent * num_bins
    bins = np.clip(places, 0, num_bins - 1).astype(int)
    bins += np.arange(len(bins))[:, None] * num_bins  # a row of bins a channel
    counts = np.bincount(
        bins.reshape(-1), np.asarray(histogram.counts).reshape(-1), minlength=len(bins) * num_bins
    ).reshape(-1, num_bins)
    p = counts / counts.sum(axis=1, keepdims=True)
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=1)
