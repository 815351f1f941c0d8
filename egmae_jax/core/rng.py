"""Where randomness comes from: fold_in(seed of the round, stage, step), and nothing else.

No generator state is carried along or saved, so a resumed run draws what an unbroken one draws.
"""

import zlib

import jax


def stage_id(name: str) -> int:
    """A number for a stage's name, e.g. 'pretrain' or 'finetune/mae', equal in every process."""
    return zlib.crc32(name.encode()) >> 1  # fits int32


def stage_key(seed: int, stage: str) -> jax.Array:
    """The key of a stage; a step's is fold_in(stage key, step). Each round has a seed."""
    return jax.random.fold_in(jax.random.key(seed), stage_id(stage))
