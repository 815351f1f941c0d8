"""The branches of a run, which are the classifiers that it fine-tunes and fuses.

The paper has two (section 3.1): 'mae', pre-trained on the target images, and 'imagenet'. Other
backbones can be added or can replace them; each starts from its own ImageNet weights.
"""

from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax import models
from egmae_jax.core.errors import ConfigError


class Branch(NamedTuple):
    """One classifier of a run."""

    name: str  # 'mae', 'imagenet' or the name of its model
    model_name: str  # name of a registered model

    @property
    def is_mae(self) -> bool:
        """Whether the branch starts from the run's own pre-training."""
        return self.name == "mae"


def from_config(config: ConfigDict | FrozenConfigDict) -> tuple[Branch, ...]:
    """Returns the branches of a config, in the order of config.branches.

    Raises:
        ConfigError: there is no branch, a name occurs twice or is neither 'mae', 'imagenet' nor a
            model, or the model of 'mae' is not a ConvNeXt.
    """
    names = tuple(config.branches)
    if len(set(names)) < len(names):
        raise ConfigError(f"{names} names a branch twice.")
    if not names:
        raise ConfigError("there is none; the paper's are 'imagenet' and 'mae'.")
    models_of = {"mae": config.model.name, "imagenet": config.imagenet.model or config.model.name}
    branches = tuple(Branch(name, models_of.get(name, name)) for name in names)
    for branch in branches:
        network = models.create(branch.model_name, num_classes=1)  # ConfigError if it is unknown
        if branch.is_mae and not network.can_pretrain:
            raise ConfigError(
                f"'mae' cannot pre-train model.name={branch.model_name}; it must be a ConvNeXt."
            )
    return branches


def classifier(
    branch: Branch,
    config: ConfigDict | FrozenConfigDict,
    num_classes: int,
    *,
    frozen: frozenset[str] = frozenset(),
) -> models.Model:
    """Creates the network of a branch.

    Args:
        branch: the branch.
        config: config of the run.
        num_classes: number of outputs.
        frozen: names of layers whose batch norms keep their running statistics.
    """
    return models.create(
        branch.model_name,
        num_classes,
        drop_path_rate=config.finetune.drop_path_rate,
        dtype=jnp.dtype(config.model.dtype),
        remat=config.model.rematerialize,
        frozen=frozen,
        imagenet_input=True,
    )
