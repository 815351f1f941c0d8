"""Registry of networks by timm's and torchvision's names.

The module of a network registers its names, and `models/__init__.py` imports these modules.
CONTRIBUTING.md describes how to add a network.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from egmae_jax.core.errors import ConfigError
from egmae_jax.models.layouts import Layout

# (path of the variable as a regular expression, its key in PyTorch, its layout).
Patterns = tuple[tuple[str, str, Layout | str], ...]


class Model(Protocol):
    """Interface of a classifier, a Linen module: images [B, H, W, 3] -> logits [B, num_classes].

    Attributes:
        num_classes: number of classes; the parameters of the classifier are at `head/fc/`.
        dtype: compute dtype; logits and parameters are float32.
        frozen: keys of `layers` whose batch norms keep their running statistics in training.
        fresh_prefixes: path prefixes of the parameters that ImageNet weights do not contain.
        stride: input pixels per feature of the last stage, along each axis.
        min_size: smallest side of an image in pixels.
        needs_multiple: whether the sides of an image must be multiples of `stride`.
        layers: path prefixes of each convolutional layer's parameters by the layer's address, from
            input to output; an address is the path of a `models.layers.tap`.

    A model may also have a method `initial_std`, see `models.init.initial_variables`; without it,
    `init` draws its variables.
    """

    num_classes: int
    dtype: Any
    frozen: frozenset[str]
    fresh_prefixes: Sequence[str]
    stride: int
    min_size: int
    needs_multiple: bool

    @property
    def layers(self) -> dict[str, tuple[str, ...]]: ...

    @property
    def init(self) -> Callable[..., Any]: ...

    @property
    def apply(self) -> Callable[..., Any]: ...

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the last feature map: normalised images [B, H, W, 3] -> [B, h, w, C]."""

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array: ...


class Spec(NamedTuple):
    """Registered properties of a network."""

    family: str  # key of its parameter names in `models.timm_names.PATTERNS`
    build: Callable[..., Any]  # (num_classes, drop_path_rate, dtype, frozen) -> Linen module
    weights: str  # hub id or URL of its ImageNet weights; '' if there are none
    backbone: str  # name of the network whose ImageNet weights it starts from, usually its own
    patterns: Patterns  # parameter names, if `models.timm_names.PATTERNS` lacks the family


_SPECS: dict[str, Spec] = {}


def register(
    name: str,
    build: Callable[..., Any],
    *,
    family: str,
    weights: str = "",
    backbone: str = "",
    patterns: Patterns = (),
) -> None:
    """Registers a network under a name for `create`.

    Args:
        name: name of the network; timm's or torchvision's if one of them has it.
        build: function of the keywords num_classes, drop_path_rate, dtype and frozen that returns a
            `Model`.
        family: name that networks with the same parameter names share, see
            `models.timm_names.PATTERNS`.
        weights: hub id of its ImageNet weights with the full tag; '' if there are none.
        backbone: name of the network whose ImageNet weights it starts from; '' for its own.
        patterns: names of its variables in PyTorch and in the weight files of runs, (path as a
            regular expression, key, layout); not needed if `models.timm_names.PATTERNS` has the
            family.
    """
    _SPECS[name] = Spec(family, build, weights, backbone or name, patterns)


def names() -> tuple[str, ...]:
    """Returns the names of all registered networks."""
    return tuple(_SPECS)


def family(name: str) -> str:
    """Returns the family of a network, such as 'convnext', 'resnet' or 'squeezenet'.

    Raises:
        ConfigError: there is no such network; the message suggests a similar name.
    """
    return _spec(name).family


def create(
    name: str,
    num_classes: int,
    *,
    drop_path_rate: float = 0.0,
    dtype: Any = jnp.float32,
    remat: bool = False,
    frozen: Iterable[str] = (),
) -> Any:
    """Creates a network.

    Args:
        name: one of `names()`.
        num_classes: number of classes.
        drop_path_rate: drop-path rate of the last residual block; must be 0 for SqueezeNet.
        dtype: compute dtype, float32 or bfloat16.
        remat: whether the backward pass recomputes wide activations, see `ConvNeXt`; only for
            ConvNeXt.
        frozen: frozen layers, keys of the network's `layers`; their batch norms use and keep the
            running statistics in training.

    Returns:
        A Linen module, see `Model`.

    Raises:
        ConfigError: there is no such network; the message suggests a similar name.
        ValueError: the network has no such layers or does not support an option.
    """
    spec = _spec(name)
    options = {"drop_path_rate": drop_path_rate, "dtype": dtype, "frozen": frozenset(frozen)}
    if remat:
        if spec.family != "convnext":
            raise ValueError(f"remat is for ConvNeXt; {name} does not support it.")
        options["remat"] = True
    model = spec.build(num_classes=num_classes, **options)
    if unknown := sorted(model.frozen - model.layers.keys()):
        raise ValueError(
            f"{name} has no layers {', '.join(unknown)}; it has {', '.join(model.layers)}."
        )
    return model


def imagenet_model(name: str) -> str:
    """Returns the name of the network whose ImageNet weights the network `name` starts from.

    These weights contain all variables except those below the network's `fresh_prefixes`.
    """
    return _spec(name).backbone


def patterns(name: str) -> Patterns:
    """Returns the PyTorch names registered with a network; () if `timm_names.PATTERNS` has them."""
    return _spec(name).patterns


def default_weights(name: str) -> str:
    """Returns the hub id of the ImageNet weights that the network `name` starts from.

    For SqueezeNet it is the URL of a pickle; the error of `models.weights.locate` tells how to
    convert it.
    """
    return _spec(imagenet_model(name)).weights


def _spec(name: str) -> Spec:
    if name in _SPECS:
        return _SPECS[name]
    nearest = difflib.get_close_matches(name, names(), n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigError(f"There is no model {name!r}.{hint} Known: {', '.join(names())}.")
