"""Registry of networks by timm's and torchvision's names.

The module of a network registers its names, and `models/__init__.py` imports these modules.
CONTRIBUTING.md describes how to add a network.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp

from egmae_jax.core.registry import Registry
from egmae_jax.models.layouts import Layout
from egmae_jax.models.model import IMAGENET, Model, Normalization

# (path of the variable as a regular expression, its key in PyTorch, its layout).
Patterns = tuple[tuple[str, str, Layout], ...]
# By library: key of a network's first tensor there as a regular expression, and (key there as a
# regular expression, key in timm; '' for a tensor that timm's network does not have).
OtherNames = dict[str, tuple[str, tuple[tuple[str, str], ...]]]


class Spec(NamedTuple):
    """Registered properties of a network."""

    build: Callable[..., Any]  # see `register`
    weights: str  # hub id or URL of its ImageNet weights; '' if there are none
    backbone: str  # name of the network whose ImageNet weights it starts from, usually its own
    patterns: Patterns  # names of its variables in PyTorch
    library: str  # 'timm' or 'torchvision', which has the network under its name; '' if neither
    normalization: Normalization  # of the images that its ImageNet weights expect
    other_names: OtherNames  # names of its tensors in other libraries


NETWORKS: Registry[Spec] = Registry("model")


def register(
    name: str,
    build: Callable[..., Any],
    *,
    weights: str = "",
    backbone: str = "",
    patterns: Patterns = (),
    library: str = "",
    normalization: Normalization = IMAGENET,
    other_names: OtherNames | None = None,
) -> None:
    """Registers a network under a name for `create`.

    Args:
        name: name of the network; timm's or torchvision's if one of them has it.
        build: subclass of `Model`, or function that takes the fields of `Model` by name and
            returns one.
        weights: hub id of its ImageNet weights with the full tag; '' if there are none.
        backbone: name of the network whose ImageNet weights it starts from; '' for its own.
        patterns: names of its variables in PyTorch and in the weight files of runs, (path as a
            regular expression, key, layout).
        library: 'timm' or 'torchvision' if it has the same network under this name, so that a run's
            weights can be exported for it and compared with it. The address of the network's first
            layer must be the path of a convolution, which is timm's `first_conv`.
        normalization: mean and standard deviation of the images that its ImageNet weights expect.
            If they are not ImageNet's, the network must apply `Model.converted` to its images.
        other_names: names of its tensors in other libraries, which are translated to timm's.

    Raises:
        ValueError: a network of the package has this name.
    """
    spec = Spec(
        build, weights, backbone or name, patterns, library, normalization, other_names or {}
    )
    NETWORKS.register(name)(spec)


def names() -> tuple[str, ...]:
    """Returns the names of all registered networks."""
    return NETWORKS.names()


def library(name: str) -> str:
    """Returns the library that has a network: 'timm', 'torchvision' or, if neither has it, ''."""
    return NETWORKS.get(name).library


def normalization(name: str) -> Normalization:
    """Returns the mean and standard deviation of the images that a network's weights expect."""
    return NETWORKS.get(name).normalization


def create(
    name: str,
    num_classes: int,
    *,
    drop_path_rate: float = 0.0,
    dtype: Any = jnp.float32,
    remat: bool = False,
    frozen: Iterable[str] = (),
    imagenet_input: bool = False,
) -> Model:
    """Creates a network.

    Args:
        name: one of `names()`.
        num_classes: number of classes.
        drop_path_rate: drop-path rate of the last residual block; other networks ignore it.
        dtype: compute dtype, float32 or bfloat16.
        remat: whether the backward pass recomputes wide activations, if the network can.
        frozen: frozen layers, keys of the network's `layers`; their batch norms, if any, use and
            keep the running statistics in training.
        imagenet_input: whether all images are normalised by ImageNet's mean and standard deviation
            (`augment.normalize`), as those of a run are. A network whose weights expect others
            (`normalization`) then converts them itself; else it takes images as in timm.

    Returns:
        The Linen module.

    Raises:
        ConfigError: there is no such network; the message suggests a similar name.
        ValueError: the network has no such layers.
    """
    entry = NETWORKS.get(name)
    frozen = frozenset(frozen)
    converts = imagenet_input and entry.normalization != IMAGENET
    model: Model = entry.build(
        num_classes=num_classes,
        dtype=dtype,
        drop_path_rate=drop_path_rate,
        remat=remat,
        frozen=frozen,
        convert_from_imagenet=entry.normalization if converts else None,
    )
    if unknown := sorted(frozen - model.layers.keys()):
        raise ValueError(
            f"{name} has no layers {', '.join(unknown)}; it has {', '.join(model.layers)}."
        )
    return model


def imagenet_model(name: str) -> str:
    """Returns the name of the network whose ImageNet weights the network `name` starts from.

    These weights contain all variables except those below the network's `fresh_prefixes`.
    """
    return NETWORKS.get(name).backbone


def default_weights(name: str) -> str:
    """Returns the hub id of the ImageNet weights that the network `name` starts from.

    For SqueezeNet it is the URL of a pickle; the error of `models.weights.locate` tells how to
    convert it.
    """
    return NETWORKS.get(imagenet_model(name)).weights
