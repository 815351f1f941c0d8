"""Random augmentations by name, as `finetune.augment` lists them: 'rotate(15)', 'mixup(0.2)'."""

from egmae_jax.method.augmentations import mixing, single  # importing registers their names
from egmae_jax.method.augmentations.base import (
    AUGMENTATIONS,
    Augmentation,
    Geometric,
    Mixing,
    apply,
    mix,
    names,
    parse,
    register,
)

AUGMENTATIONS.reserve()

__all__ = [
    "Augmentation",
    "Geometric",
    "Mixing",
    "apply",
    "mix",
    "mixing",
    "names",
    "parse",
    "register",
    "single",
]
