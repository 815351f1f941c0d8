"""Optimizers: AdamW with a decay mask, cosine annealing with warm-up, learning rates by layer."""

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
    """Linear warm-up from 0 to `peak`, then half a cosine down to 0 at `total_steps`."""
    warmup_steps = min(warmup_steps, total_steps - 1)
    return optax.join_schedules(
        [
            # The first step already moves: a rate of (step + 1) / warmup_steps, not step / ...
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
    """PyTorch's AdamW (decoupled decay times learning rate).

    Args:
        schedule: learning rate by step.
        params: all parameters of the network, or their shapes; only paths are read. The optimizer
            may be given some of them, those that train.
        weight_decay: decay of kernels; biases, norms, layer scales and embeddings do not decay.
        betas: decay rates of the first and the second moment.
        layer_decay: factor by which the learning rate falls from each layer to the one below it,
            from the head down to the stem; 1 gives all layers the same rate.
    """
    scales = None if layer_decay == 1.0 else layer_scales(params, layer_decay)

    def init(params: PyTree) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(
        gradients: PyTree, state: optax.ScaleByAdamState, params: PyTree
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        # Else the CPU compiler computes them again in the update of every parameter.
        rate, *corrections = platform.materialize(
            (schedule(state.count), *(_one_minus_power(beta, count) for beta in betas))
        )
        rates = jax.tree.map(lambda _: rate, params)
        if scales is not None:
            rates = jax.tree.map(lambda x: rate * x, restrict(scales, params))

        def update_leaf(decays: bool, *leaf: jax.Array) -> tuple[jax.Array, ...]:
            decay = weight_decay if decays else 0.0
            return _update(*leaf, *corrections, betas=tuple(betas), decay=decay)

        stepped = jax.tree.map(
            update_leaf, decay_mask(params), gradients, state.mu, state.nu, params, rates
        )
        updates, mu, nu = jax.tree.transpose(
            jax.tree.structure(params), jax.tree.structure((0, 0, 0)), stepped
        )
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


@functools.partial(jax.jit, static_argnames=("betas", "decay"))
def _update(gradient, mu, nu, parameter, rate, mu_share, nu_share, *, betas, decay):
    """Update and moments of one parameter (Loshchilov & Hutter 2019, algorithm 2).

    It is traced once for each shape: traced for all parameters, as by optax, it is most of a step's
    operations.
    """
    mu = betas[0] * mu + (1 - betas[0]) * gradient
    nu = betas[1] * nu + (1 - betas[1]) * gradient**2
    direction = (mu / mu_share) / (jnp.sqrt(nu / nu_share) + 1e-8)
    if decay:
        direction += decay * parameter
    return -rate * direction, mu, nu


def _one_minus_power(beta: float, count: jax.Array) -> jax.Array:
    """1 - beta ** count, of which float32 would lose the last digits."""
    return -jnp.expm1(count * math.log(beta)) if beta else jnp.ones(())


def decay_mask(params: PyTree) -> PyTree:
    """True for every leaf that decays: the kernels."""
    return traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", params)


def layer_scales(params: PyTree, decay: float) -> PyTree:
    """Learning-rate factor of each leaf: decay ** (number of layers above it), 1 for the head.

    The stem is layer 0, each block is a layer (with the downsampling before it), as is each Fire
    module of a SqueezeNet; the head is the last.

    Raises:
        ConfigError: no parameter's path is known as one of the stem or of a block.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    layers = sorted({_place(path) for path in flat})
    if layers == [_HEAD]:
        raise ConfigError(
            "finetune.layer_decay is below 1, but no layers are known of a network with parameters "
            f"such as {min(flat)}: set it to 1, or add its blocks' names to optim.py."
        )
    scales = {path: decay ** (len(layers) - 1 - layers.index(_place(path))) for path in flat}
    return traverse_util.unflatten_dict(scales, sep="/")


_BLOCK = re.compile(r"stages_(\d+)/(?:blocks_(\d+)|downsample)/|layer(\d+)_(\d+)/|features_(\d+)/")
_HEAD = (math.inf,)


def _place(path: str) -> tuple[float, ...]:
    """Sort key of the layer that a leaf belongs to."""
    if path.startswith("stem/"):
        return (-1,)
    match = _BLOCK.match(path)
    if match is None:
        return _HEAD
    stage, block, *others = match.groups()
    if stage is not None:
        return int(stage), int(block or 0)
    return tuple(int(number) for number in others if number is not None)
