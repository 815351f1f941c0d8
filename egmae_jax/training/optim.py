"""AdamW with a weight-decay mask and layer-wise learning rates, and the cosine schedule."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from egmae_jax.core import platform
from egmae_jax.training.state import restrict

PyTree = Any


def cosine_schedule(peak: float, *, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Returns a schedule with linear warm-up to `peak` and cosine annealing to 0.

    Args:
        peak: learning rate at the end of the warm-up.
        total_steps: step at which the learning rate reaches 0.
        warmup_steps: number of warm-up steps.
    """
    warmup_steps = min(warmup_steps, total_steps - 1)
    return optax.join_schedules(
        [
            # The first step has a learning rate above 0, the last of the warm-up has the peak.
            optax.linear_schedule(peak / max(warmup_steps, 1), peak, warmup_steps - 1),
            optax.cosine_decay_schedule(peak, total_steps - warmup_steps),
        ],
        [warmup_steps],
    )


def adamw(
    schedule: optax.Schedule,
    params: PyTree,
    *,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    layer_decay: float = 1.0,
    depth_groups: Sequence[Sequence[str]] = (),
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW as in PyTorch, with weight decay decoupled and scaled by the learning rate.

    Args:
        schedule: learning rate by step.
        params: all parameters of the network, or their shapes; only their paths are read. The
            optimizer itself may be applied to only the trainable ones.
        weight_decay: weight decay of kernels; biases, norms, layer scales and embeddings have none.
        betas: decay rates of the first and the second moment.
        layer_decay: factor between the learning rates of adjacent groups, from the head to the
            stem; 1 gives all of them the same learning rate.
        depth_groups: the network's `depth_groups`, see `layer_rate_factors`.
        clip_norm: largest global norm of the gradients, which scales larger ones down; 0: none.
    """
    scales = None if layer_decay == 1.0 else layer_rate_factors(params, layer_decay, depth_groups)

    def update(
        gradients: PyTree, state: optax.ScaleByAdamState, params: PyTree
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        count = state.count + 1
        rate, *corrections = platform.materialize_scalars(
            schedule(state.count), *(_one_minus_power(beta, count) for beta in betas)
        )
        rates = _rates(rate, params, scales)

        def update_leaf(decays: bool, *leaf: jax.Array) -> tuple[jax.Array, ...]:
            decay = weight_decay if decays else 0.0
            return _update(*leaf, *corrections, betas=tuple(betas), decay=decay)

        results = jax.tree.map(
            update_leaf, decay_mask(params), gradients, state.mu, state.nu, params, rates
        )
        updates, mu, nu = jax.tree.transpose(
            jax.tree.structure(params), jax.tree.structure((0, 0, 0)), results
        )
        return updates, optax.ScaleByAdamState(count, mu, nu)

    optimizer = optax.GradientTransformation(_initial_state, update)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer


def _initial_state(params: PyTree) -> optax.ScaleByAdamState:
    zeros = optax.tree.zeros_like(params)
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)


def _rates(rate: jax.Array, params: PyTree, scales: PyTree | None) -> PyTree:
    """Returns the learning rate of each parameter, `rate` times its factor if there are factors."""
    if scales is None:
        return jax.tree.map(lambda _: rate, params)
    return jax.tree.map(lambda x: rate * x, restrict(scales, params))


@functools.partial(jax.jit, static_argnames=("betas", "decay"))
def _update(gradient, mu, nu, parameter, rate, mu_correction, nu_correction, *, betas, decay):
    """Returns the update and the moments of one parameter (Loshchilov & Hutter 2019, algorithm 2).

    It is traced once per shape. optax traces it once per parameter, which makes up most operations
    of a step.
    """
    mu = betas[0] * mu + (1 - betas[0]) * gradient
    nu = betas[1] * nu + (1 - betas[1]) * gradient**2
    direction = (mu / mu_correction) / (jnp.sqrt(nu / nu_correction) + 1e-8)
    if decay:
        direction += decay * parameter
    return -rate * direction, mu, nu


def _one_minus_power(beta: float, count: jax.Array) -> jax.Array:
    """Returns 1 - beta ** count, without the rounding errors of computing it so in float32."""
    return -jnp.expm1(count * math.log(beta)) if beta else jnp.ones(())


def decay_mask(params: PyTree) -> PyTree:
    """Returns for each leaf whether it has weight decay, which only kernels have."""
    return traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", params)


def layer_rate_factors(
    params: PyTree, decay: float, depth_groups: Sequence[Sequence[str]]
) -> PyTree:
    """Returns the learning-rate factor of each leaf: decay ** (number of groups from its own on).

    Args:
        params: parameters, or their shapes; only their paths are read.
        decay: factor between adjacent groups.
        depth_groups: path prefixes of each group, from the stem to the last block, see
            `models.Model`; what none contains, such as the head, has the factor 1.
    """
    groups = [tuple(group) for group in depth_groups]

    def factor(path: tuple[Any, ...], _: Any) -> float:
        name = "/".join(path)
        place = next((i for i, group in enumerate(groups) if name.startswith(group)), len(groups))
        return decay ** (len(groups) - place)

    return traverse_util.path_aware_map(factor, params)
