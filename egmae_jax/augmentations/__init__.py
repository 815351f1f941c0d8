"""Augmentations besides the paper's: by name, as `finetune.augment` lists them, and at test time.

`augmentations.parse` reads texts such as 'rotate(15)' and 'mixup(0.2)'; `augmentations.tta` has the
views whose class probabilities `evaluation.tta` averages.
"""

from egmae_jax.augmentations import mixing, single  # importing registers their names
from egmae_jax.augmentations.base import (
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
