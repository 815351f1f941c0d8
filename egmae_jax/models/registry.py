"""Registry of networks by timm's and torchvision's names.

The module of a network registers its names, and `models/__init__.py` imports these modules.
CONTRIBUTING.md describes how to add a network.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from egmae_jax.core.registry import Registry
from egmae_jax.method import augment
from egmae_jax.models.layouts import Layout

# (path of the variable as a regular expression, its key in PyTorch, its layout).
Patterns = tuple[tuple[str, str, Layout], ...]
# By library: key of a network's first tensor there as a regular expression, and (key there as a
# regular expression, key in timm; '' for a tensor that timm's network does not have).
OtherNames = dict[str, tuple[str, tuple[tuple[str, str], ...]]]


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, of pixel values / 255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalization(augment.MEAN, augment.STD)
INCEPTION = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # timm's name of this one

MIN_SIDE = 32  # smallest side of an image, in pixels, for all networks


class Model(Protocol):
    """Interface of a classifier, a Linen module: images [B, H, W, 3] -> logits [B, num_classes].

    Attributes:
        num_classes: number of classes; the parameters of the classifier are at `head/fc/`.
        dtype: compute dtype; logits and parameters are float32.
        fresh_prefixes: path prefixes of the parameters that ImageNet weights do not contain.
        side_multiple: number of pixels that must divide the sides of an image; 1 for any side.
        layers: path prefixes of each convolutional layer's parameters by the layer's address, from
            input to output; an address is the path of a `models.layers.tap`.

    A model may also have

    - `initial_std`, a method, see `models.init.initial_variables`; without it, `init` draws its
      variables;
    - `drop_path_rate`, a field, the drop-path rate of its last residual block;
    - `frozen`, a field, the keys of `layers` whose batch norms keep their running statistics in
      training;
    - `remat`, a field, whether the backward pass recomputes wide activations;
    - `convert_from_imagenet`, a field, a `Normalization` to which it converts images that are
      normalised by ImageNet's mean and standard deviation; None: it takes images as they are;
    - `can_pretrain = True` if it can be the encoder of `models.mae.MaskedAutoencoder`;
    - `has_fusion_weights = True` if `models.asff.fusion_weights` accepts it;
    - `torch_modules`, a property, the paths of its modules by their names in PyTorch, whose outputs
      `egmae compare` compares, from input to logits;
    - `depth_groups`, a property, the path prefixes of its stem and of each block, from input to
      output, whose learning rates `finetune.layer_decay` scales; a downsampling belongs to the
      block beside it, and the head to none;
    - `cam_layers`, addresses from which the default layer of Grad-CAM is chosen, from input to
      output; without it, those of all blocks;
    - `global_pool` and `fixed_input_size`, its settings in timm's configuration if they are not
      'avg' and False; with the latter also `timm_options`, a method, the arguments with which timm
      creates it for images of a side in pixels;
    - `partial_layers`, words for the layers that feed only a part of the logits, by prefix of their
      addresses.
    """

    num_classes: int
    dtype: Any
    fresh_prefixes: Sequence[str]
    side_multiple: int

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
        build: function that returns a `Model`. Its keywords are num_classes and dtype, and of
            drop_path_rate, frozen and remat those that the network has as fields; one with variable
            keywords gets drop_path_rate and frozen.
        weights: hub id of its ImageNet weights with the full tag; '' if there are none.
        backbone: name of the network whose ImageNet weights it starts from; '' for its own.
        patterns: names of its variables in PyTorch and in the weight files of runs, (path as a
            regular expression, key, layout).
        library: 'timm' or 'torchvision' if it has the same network under this name, so that a run's
            weights can be exported for it and compared with it. The address of the network's first
            layer must be the path of a convolution, which is timm's `first_conv`.
        normalization: mean and standard deviation of the images that its ImageNet weights expect.
            If they are not ImageNet's, the network must have the field `convert_from_imagenet`.
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
) -> Any:
    """Creates a network.

    Args:
        name: one of `names()`.
        num_classes: number of classes.
        drop_path_rate: drop-path rate of the last residual block, if the network has some.
        dtype: compute dtype, float32 or bfloat16.
        remat: whether the backward pass recomputes wide activations, if the network can, as
            `ConvNeXt` can.
        frozen: frozen layers, keys of the network's `layers`; their batch norms, if any, use and
            keep the running statistics in training.
        imagenet_input: whether all images are normalised by ImageNet's mean and standard deviation
            (`augment.normalize`), as those of a run are. A network whose weights expect others
            (`normalization`) then converts them itself; else it takes images as in timm.

    Returns:
        A Linen module, see `Model`.

    Raises:
        ConfigError: there is no such network; the message suggests a similar name.
        ValueError: the network has no such layers.
    """
    entry = NETWORKS.get(name)
    frozen = frozenset(frozen)
    fields = {"drop_path_rate": drop_path_rate, "frozen": frozen, "remat": remat}
    parameters = inspect.signature(entry.build).parameters
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    known = {*parameters, *(("drop_path_rate", "frozen") if takes_any else ())}
    options = {field: value for field, value in fields.items() if field in known}
    if imagenet_input and entry.normalization != IMAGENET:
        options["convert_from_imagenet"] = entry.normalization
    model = entry.build(num_classes=num_classes, dtype=dtype, **options)
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
