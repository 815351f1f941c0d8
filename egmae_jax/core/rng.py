"""Random keys of stages and steps, derived from the round's seed only.

No generator state is saved, so a resumed run draws the same numbers as an uninterrupted one.
"""

import zlib

import jax
from jax import lax

from egmae_jax.core import platform


def stage_id(name: str) -> int:
    """Returns a number for a stage's name, such as 'finetune/mae', equal in every process."""
    return zlib.crc32(name.encode()) >> 1  # fits int32


def stage_key(seed: int, stage: str) -> jax.Array:
    """Returns the random key of a stage; the key of a step is `fold_in(stage key, step)`.

    Args:
        seed: seed of the round.
        stage: name of the stage, such as 'pretrain' or 'finetune/mae'.
    """
    return jax.random.fold_in(jax.random.key(seed), stage_id(stage))


def split(key: jax.Array, count: int) -> jax.Array:
    """Returns the keys of `jax.random.split`, which a GPU computes in one kernel."""
    keys = jax.random.split(key, count)
    # Else XLA computes a half of each key by itself, where only that half is used.
    return lax.optimization_barrier(keys) if platform.for_gpu() else keys
