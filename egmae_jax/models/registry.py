"""The networks by timm's and torchvision's names: `models.create("convnext_tiny", num_classes=3)`.

A network's file registers its names; `models/__init__.py` imports the files. CONTRIBUTING.md says
what a network needs.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from egmae_jax.core.errors import ConfigError
from egmae_jax.models.layouts import Layout

# Path of our parameter (a regular expression), its key in PyTorch, its layout.
Patterns = tuple[tuple[str, str, Layout | str], ...]


class Model(Protocol):
    """A classifier, a Linen module: normalised images [B, H, W, 3] -> logits [B, num_classes].

    Attributes:
        num_classes: width of the classifier, whose parameters are at `head/fc/`.
        dtype: compute dtype; logits and parameters are float32.
        frozen: keys of `layers` whose batch norms keep their running statistics in training.
        fresh_prefixes: path prefixes of the parameters that ImageNet weights do not give.
        stride: input pixels, along each side, per feature of the last stage.
        min_size: least side of an image in pixels.
        needs_multiple: whether a side must be a multiple of the stride.
        layers: address of each spatial convolution -> path prefixes of the layer's parameters, from
            input to output; an address is that of a `models.layers.tap`.
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
        """Normalised images [B, H, W, 3] -> the last map of features [B, h, w, C]."""

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array: ...


class Spec(NamedTuple):
    """What is known of a network by its name."""

    family: str  # names its table of parameters, `models.timm_names.PATTERNS`
    build: Callable[..., Any]  # (num_classes, drop_path_rate, dtype, frozen) -> the module
    weights: str  # hub id or address of its ImageNet weights; '' if there are none
    backbone: str  # the network whose ImageNet weights it starts from; mostly itself
    patterns: Patterns  # names of parameters, where `models.timm_names.PATTERNS` lacks the family


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
    """Makes a network known by a name.

    Args:
        name: timm's or torchvision's, where they have the network.
        build: called with the keywords num_classes, drop_path_rate, dtype and frozen, returns a
            `Model`.
        family: networks of one family share names of parameters, see `models.timm_names.PATTERNS`.
        weights: hub id of its ImageNet weights, with its full tag.
        backbone: another network whose ImageNet weights it starts from.
        patterns: names of its parameters in PyTorch, (regular expression of our path, key, layout),
            unless `models.timm_names.PATTERNS` has the family. Runs are saved in these names.
    """
    _SPECS[name] = Spec(family, build, weights, backbone or name, patterns)


def names() -> tuple[str, ...]:
    """Every name that `create` takes."""
    return tuple(_SPECS)


def family(name: str) -> str:
    """'convnext', 'resnet', 'squeezenet', 'asff_resnet' or a registered one.

    Raises:
        ConfigError: no such model; the message names the nearest.
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
    """The network `name` with a classifier of `num_classes` outputs.

    Args:
        name: one of `names()`.
        num_classes: width of the classifier.
        drop_path_rate: drop path of the last residual block; 0 for SqueezeNet, which has none.
        dtype: compute dtype, float32 or bfloat16.
        remat: see `ConvNeXt`; False for all others.
        frozen: layers, keys of the network's `layers`, that training leaves alone: their batch
            norms keep and use their running statistics.

    Returns:
        A Linen module, see `Model`.

    Raises:
        ConfigError: no such model.
        ValueError: no such layers, or an option that the model does not have.
    """
    spec = _spec(name)
    options = {"drop_path_rate": drop_path_rate, "dtype": dtype, "frozen": frozenset(frozen)}
    if remat:
        if spec.family != "convnext":
            raise ValueError(f"remat is for ConvNeXt; {name} does not have it.")
        options["remat"] = True
    model = spec.build(num_classes=num_classes, **options)
    if unknown := sorted(model.frozen - model.layers.keys()):
        raise ValueError(
            f"{name} has no layers {', '.join(unknown)}; it has {', '.join(model.layers)}."
        )
    return model


def imagenet_model(name: str) -> str:
    """The network whose ImageNet weights the network `name` starts from.

    They give every variable but those below its `fresh_prefixes`.
    """
    return _spec(name).backbone


def patterns(name: str) -> Patterns:
    """The network's own names of parameters in PyTorch; () if `timm_names.PATTERNS` has them."""
    return _spec(name).patterns


def default_weights(name: str) -> str:
    """Hub id of the ImageNet weights for the network `imagenet_model(name)`.

    For SqueezeNet the address of a pickle; `models.weights.locate` says how to convert it.
    """
    return _spec(imagenet_model(name)).weights


def _spec(name: str) -> Spec:
    if name in _SPECS:
        return _SPECS[name]
    nearest = difflib.get_close_matches(name, names(), n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigError(f"There is no model {name!r}.{hint} Known: {', '.join(names())}.")
