"""Optimizers: AdamW with a decay mask, cosine annealing with warm-up, learning rates by layer."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

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
        params: the parameters, or their shapes; only paths are read.
        weight_decay: of kernels; biases, norms, layer scales and embeddings do not decay.
        betas: of the moments.
        layer_decay: learning rates fall by this factor a layer, from the head down to the stem;
            1 gives all layers the same.
    """
    optimizer = optax.adamw(
        schedule, b1=betas[0], b2=betas[1], weight_decay=weight_decay, mask=decay_mask(params)
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

    The stem is layer 0, each block (ConvNeXt's, with the downsampling before it, ResNet's, a Fire
    module) one layer, the head the last.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    blocks = sorted({block for block in map(_block, flat) if block is not None})
    layer_of_block = {block: index for index, block in enumerate(blocks, start=1)}

    def layer(path: str) -> int:
        if path.startswith(_STEMS):
            return 0
        if block := _block(path):
            return layer_of_block[block]
        if match := re.match(r"stages_(\d+)/downsample/", path):
            return layer_of_block[int(match[1]), 0]
        return len(blocks) + 1

    scales = {path: decay ** (len(blocks) + 1 - layer(path)) for path in flat}
    return traverse_util.unflatten_dict(scales, sep="/")


_STEMS = ("stem/", "features_0/")
_BLOCK = re.compile(r"(?:stages_(\d+)/blocks_|layer(\d)_|features_)(\d+)/")


def _block(path: str) -> tuple[int, int] | None:
    """Stage and number of the block that a parameter belongs to."""
    match = _BLOCK.match(path)
    if match is None or path.startswith(_STEMS):
        return None
    return int(match[1] or match[2] or 0), int(match[3])


def _scale_by(scales: PyTree) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda update, scale: update * scale, updates, scales)
    )
