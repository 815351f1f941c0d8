"""Optimizers: AdamW with a decay mask, cosine annealing with warm-up, learning rates by layer."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from egmae_jax import compilation, trainable

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
        params: all of the network, or their shapes; only paths are read. What the optimizer is
            given may be some of them, those that train.
        weight_decay: of kernels; biases, norms, layer scales and embeddings do not decay.
        betas: of the moments.
        layer_decay: learning rates fall by this factor a layer, from the head down to the stem;
            1 gives all layers the same.
    """
    # Else the CPU compiler computes the schedule again in the update of every parameter.
    once = lambda step: compilation.materialize(schedule(step))  # noqa: E731
    optimizer = optax.adamw(
        once, b1=betas[0], b2=betas[1], weight_decay=weight_decay, mask=decay_mask
    )
    if layer_decay == 1.0:
        return optimizer
    # Scaling the update scales step and decay alike: PyTorch's parameter groups with own rates.
    return optax.chain(optimizer, _scale_by(layer_scales(params, layer_decay)))


def decay_mask(params: PyTree) -> PyTree:
    """True for every leaf that decays: the kernels."""
    return traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", params)


def layer_scales(params: PyTree, decay: float) -> PyTree:
    """Learning-rate factor of every leaf: decay ** (layers above it), 1 for the head.

    The stem is layer 0, each block one layer (with the downsampling before it), the head the last.
    Of SqueezeNet each Fire module is a block.

    Raises:
        ValueError: no parameter's path is known as one of the stem or of a block.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    layers = sorted({_place(path) for path in flat})
    if layers == [_HEAD]:
        raise ValueError(
            "finetune.layer_decay is below 1, but no layers are known of a network with parameters "
            f"such as {min(flat)}: set it to 1, or add its blocks' names to optim.py."
        )
    scales = {path: decay ** (len(layers) - 1 - layers.index(_place(path))) for path in flat}
    return traverse_util.unflatten_dict(scales, sep="/")


_BLOCK = re.compile(r"stages_(\d+)/(?:blocks_(\d+)|downsample)/|layer(\d+)_(\d+)/|features_(\d+)/")
_HEAD = (math.inf,)


def _place(path: str) -> tuple[float, ...]:
    """Of a leaf's layer; they are sorted as the layers are."""
    if path.startswith("stem/"):
        return (-1,)
    match = _BLOCK.match(path)
    if match is None:
        return _HEAD
    stage, block, *others = match.groups()
    if stage is not None:
        return int(stage), int(block or 0)
    return tuple(int(number) for number in others if number is not None)


def _scale_by(scales: PyTree) -> optax.GradientTransformation:
    def scale(updates: PyTree, _: PyTree) -> PyTree:
        factors = trainable.restrict(scales, updates)
        return jax.tree.map(lambda update, factor: update * factor, updates, factors)

    return optax.stateless(scale)
