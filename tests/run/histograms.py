"""Entropies of layers' outputs by numpy, and batches as evaluation gives them."""

import jax.numpy as jnp
import numpy as np

TOLERANCE = 0.02  # nat: values near the border of two bins may be counted in the other one


def numpy_entropies(values):
    """[C] of [B, H, W, C]: of np.histogram over each channel's range, all images pooled."""
    entropies = []
    for channel in np.moveaxis(values.astype(np.float64), -1, 0):
        counts, _ = np.histogram(channel, bins=256)
        p = counts[counts > 0] / counts.sum()
        entropies.append(-(p * np.log(p)).sum() if np.ptp(channel) > 0 else 0.0)
    return np.array(entropies)


def in_batches(values, size):
    """Batches as evaluation gives them: the last one padded by other images."""
    for start in range(0, len(values), size):
        batch = values[start : start + size]
        padding = size - len(batch)
        filler = np.full((padding, *values.shape[1:]), 1e6, values.dtype)
        valid = np.r_[np.ones(len(batch)), np.zeros(padding)]
        yield jnp.asarray(np.concatenate([batch, filler])), jnp.asarray(valid)
