"""AdamW with a weight-decay mask and layer-wise learning rates, and the cosine schedule."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from egmae_jax.core import platform
from egmae_jax.core.errors import ConfigError
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
            # step + 1, because with step the first learning rate would be 0.
            lambda step: peak * (step + 1) / max(warmup_steps, 1),
            lambda step: (
                peak
                * 0.5
                * (1 + jnp.cos(jnp.pi * jnp.minimum(step / (total_steps - warmup_steps), 1.0)))
            ),
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
) -> optax.GradientTransformation:
    """AdamW as in PyTorch, with weight decay decoupled and scaled by the learning rate.

    Args:
        schedule: learning rate by step.
        params: all parameters of the network, or their shapes; only their paths are read. The
            optimizer itself may be applied to only the trainable ones.
        weight_decay: weight decay of kernels; biases, norms, layer scales and embeddings have none.
        betas: decay rates of the first and the second moment.
        layer_decay: factor between the learning rates of adjacent layers, from the head to the
            stem; 1 gives all layers the same learning rate.
    """
    scales = None if layer_decay == 1.0 else layer_rate_factors(params, layer_decay)

    def init(params: PyTree) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(
        gradients: PyTree, state: optax.ScaleByAdamState, params: PyTree
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        # Without the barrier, the CPU compiler computes these numbers again for every parameter.
        rate, *corrections = platform.materialize(
            (schedule(state.count), *(_one_minus_power(beta, count) for beta in betas))
        )
        rates = jax.tree.map(lambda _: rate, params)
        if scales is not None:
            rates = jax.tree.map(lambda x: rate * x, restrict(scales, params))

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

    return optax.GradientTransformation(init, update)


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


def layer_rate_factors(params: PyTree, decay: float) -> PyTree:
    """Returns the learning-rate factor of each leaf: decay ** (number of layers above it).

    The layers are the stem, each block (with the downsampling before it) or Fire module, and the
    head, whose factor is 1.

    Raises:
        ConfigError: no path is that of a stem or a block.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    positions = {path: _layer_position(path) for path in flat}
    layers = sorted(set(positions.values()))
    if layers == [_HEAD]:
        raise ConfigError(
            "finetune.layer_decay is below 1, but training/optim.py does not know the layers of "
            f"this network, with parameters such as {min(flat)}: set finetune.layer_decay to 1, or "
            "add the names of its blocks to optim.py."
        )
    scales = {path: decay ** (len(layers) - 1 - layers.index(x)) for path, x in positions.items()}
    return traverse_util.unflatten_dict(scales, sep="/")


_BLOCK = re.compile(r"stages_(\d+)/(?:blocks_(\d+)|downsample)/|layer(\d+)_(\d+)/|features_(\d+)/")
_HEAD = (math.inf,)


def _layer_position(path: str) -> tuple[float, ...]:
    """Returns the position of a leaf's layer as a sort key, from the stem to the head."""
    if path.startswith("stem/"):
        return (-1,)
    match = _BLOCK.match(path)
    if match is None:
        return _HEAD
    stage, block, *others = match.groups()
    if stage is not None:
        return int(stage), int(block or 0)
    return tuple(int(number) for number in others if number is not None)
