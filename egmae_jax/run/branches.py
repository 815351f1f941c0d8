"""The classifiers that a run fine-tunes: which network each is and what it starts from.

The paper has two (section 3.1): 'mae', pre-trained on the target images, and 'imagenet'. Any other
backbone can stand beside or instead of them, each starting from its own ImageNet weights.
"""

from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax import models
from egmae_jax.core.errors import ConfigError


class Branch(NamedTuple):
    """One classifier."""

    name: str  # 'mae', 'imagenet', or that of its model
    model_name: str

    @property
    def is_mae(self) -> bool:
        """Whether it starts from our own pre-training."""
        return self.name == "mae"


def of(config: ConfigDict | FrozenConfigDict) -> tuple[Branch, ...]:
    """The branches that a config names, in the order of config.branches.

    Raises:
        ConfigError: a name is neither 'mae', 'imagenet' nor a model's, or there twice.
    """
    names = tuple(config.branches)
    if len(set(names)) < len(names):
        raise ConfigError(f"{names} names a branch twice.")
    if not names:
        raise ConfigError("there is none; the paper's are 'imagenet' and 'mae'.")
    models_of = {"mae": config.model.name, "imagenet": config.imagenet.model or config.model.name}
    branches = tuple(Branch(name, models_of.get(name, name)) for name in names)
    for branch in branches:
        kind = models.family(branch.model_name)  # raises where there is no such model
        if branch.is_mae and kind != "convnext":
            raise ConfigError(
                f"'mae' pre-trains model.name={branch.model_name}; only a ConvNeXt can be."
            )
    return branches


def classifier(
    branch: Branch,
    config: ConfigDict | FrozenConfigDict,
    num_classes: int,
    *,
    frozen: frozenset[str] = frozenset(),
) -> models.Model:
    """Creates the network of a branch; batch norms of `frozen` layers keep their statistics."""
    kind, rate = models.family(branch.model_name), config.finetune.drop_path_rate
    return models.create(
        branch.model_name,
        num_classes,
        drop_path_rate=0.0 if kind == "squeezenet" else rate,
        dtype=jnp.dtype(config.model.dtype),
        remat=config.model.rematerialize and kind == "convnext",
        frozen=frozen,
    )
