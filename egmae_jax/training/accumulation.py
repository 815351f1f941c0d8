"""Gradient accumulation: the gradient of a batch as a sum over microbatches, to save memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def value_and_gradients(
    loss_fn: Callable[..., tuple[jax.Array, tuple[Any, dict[str, jax.Array], PyTree]]],
    params: PyTree,
    carry: PyTree,
    batch: PyTree,
    keys: PyTree,
    *,
    num_microbatches: int,
) -> tuple[jax.Array, dict[str, jax.Array], PyTree, PyTree]:
    """Differentiates the mean loss of a batch, one microbatch after the other.

    Args:
        loss_fn: (params, carry, microbatch, keys) -> (mean loss, (weight, metrics, carry)). The
            weight is the number that the mean is over. Metrics are averaged over microbatches.
        params: parameters to differentiate by.
        carry: running statistics, which the microbatches update one after the other.
        batch: arrays [B, ...].
        keys: random keys; each microbatch has its own.
        num_microbatches: number of microbatches, each of B / num_microbatches images.

    Returns:
        Mean loss of the batch, metrics, last running statistics, and gradients.
    """
    differentiate = jax.value_and_grad(loss_fn, has_aux=True)
    if num_microbatches == 1:
        (loss, (_, metrics, carry)), gradients = differentiate(params, carry, batch, keys)
        return loss, metrics, carry, gradients
    microbatches = jax.tree.map(lambda x: _split(x, num_microbatches), batch)
    keys = jax.tree.map(lambda key: jax.random.split(key, num_microbatches), keys)

    def add(totals: PyTree, batch_and_keys: PyTree) -> tuple[PyTree, None]:
        weight_sum, loss_sum, metric_sums, carry, gradient_sums = totals
        (loss, (weight, metrics, carry)), gradients = differentiate(params, carry, *batch_and_keys)
        sums = jax.tree.map(
            lambda total, x: total + weight * x, (loss_sum, gradient_sums), (loss, gradients)
        )
        metric_sums = jax.tree.map(jnp.add, metric_sums, metrics)
        return (weight_sum + weight, sums[0], metric_sums, carry, sums[1]), None

    first = jax.tree.map(lambda x: x[0], (microbatches, keys))
    (loss, (weight, metrics, _)), _ = jax.eval_shape(differentiate, params, carry, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (weight, loss, metrics))
    start = (*zeros, carry, jax.tree.map(jnp.zeros_like, params))
    (weight, loss, metrics, carry, gradients), _ = jax.lax.scan(add, start, (microbatches, keys))
    weight = jnp.maximum(weight, 1e-12)  # 0 if no pixel of the batch is masked
    loss, gradients = jax.tree.map(lambda x: x / weight, (loss, gradients))
    return loss, jax.tree.map(lambda x: x / num_microbatches, metrics), carry, gradients


def _split(x: jax.Array, num_microbatches: int) -> jax.Array:
    """Splits a batch [B, ...] into microbatches [num_microbatches, B / num_microbatches, ...].

    A microbatch has every num_microbatches-th image, so that every device has an equal share of it.
    """
    return jnp.moveaxis(x.reshape(-1, num_microbatches, *x.shape[1:]), 1, 0)
