"""Grad-CAM (Selvaraju et al. 2017): regions that raise the score of a class, at any layer.

    heat = gradcam(model, variables, images)  # [B, H, W], of the predicted class

The heat is no finer than the grid of its layer: `layer_at` gives both. The conventions are those of
the package `pytorch-grad-cam`, against which the results are tested: the gradient is the logit's; a
channel weighs as much as the mean of its gradient; the weighted sum is cut off below 0 and scaled
to [0, 1] for each image; it is resized as by OpenCV's linear interpolation, and scaled once more.

For the test images of a run: egmae explain --workdir=FOLDER --out=FOLDER
"""

import difflib
import functools
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from egmae_jax.core import platform
from egmae_jax.core.errors import UserError
from egmae_jax.models.init import abstract_variables

PyTree = Any
Classes = int | Sequence[int] | jax.typing.ArrayLike | None
_USUAL_SIZE = 224  # every model takes it; which layers there are does not depend on it
_LEAST_SIDE = 7  # cells of the coarsest default grid: that of ImageNet's 224 pixels
_PREDICTED = -1  # stands for the predicted class
_TINY = 1e-7  # pytorch-grad-cam's: heat that is 0 everywhere stays 0


class LayerError(UserError):
    """The network has no such layer to explain; the message names the nearest."""


class Explanation(NamedTuple):
    """Heat and logits of a batch, computed in one pass."""

    heat: jax.Array  # float32 [B, H, W], in [0, 1]
    classes: jax.Array  # int32 [B], classes that are explained
    logits: jax.Array  # float32 [B, num_classes]


class Layer(NamedTuple):
    """An activation that heat is computed from, for images of one size."""

    address: str  # such as 'stages_3/blocks_2'
    grid: tuple[int, int]  # its rows and columns: the heat is no finer
    part: str = ""  # part of the score that passes the layer, in words; '' for all of it

    def __str__(self) -> str:
        facts = [f"layer {self.address}", f"{self.grid[0]} x {self.grid[1]} grid"]
        if min(self.grid) < _LEAST_SIDE:
            facts.append(f"coarser than {_LEAST_SIDE} x {_LEAST_SIDE}")
        return ", ".join([*facts, *([self.part] if self.part else [])])


def gradcam(
    model: nn.Module,
    variables: PyTree,
    images: jax.typing.ArrayLike,
    *,
    layer: str | None = None,
    classes: Classes = None,
) -> jax.Array:
    """Computes heat maps of a batch; compiled once for a model, layer and shape.

    An image in which nothing raises the score of the class has no heat: zeros.

    Args:
        model: a classifier, (images) -> logits [B, num_classes].
        variables: its variables, `{"params": ..., "batch_stats": ...}`.
        images: float32 [B, H, W, 3] as the model takes them (`augment.normalize`).
        layer: address of an activation, one of `layers`; None: that of `layer_at`.
        classes: classes to explain, one for each image or one for all; None: the predicted ones.

    Returns:
        float32 [B, H, W]; the hottest pixel of each image is 1.

    Raises:
        LayerError: the model has no such layer.
        ValueError: the model has no such class.
    """
    return explain(model, variables, images, layer=layer, classes=classes).heat


def explain(
    model: nn.Module,
    variables: PyTree,
    images: jax.typing.ArrayLike,
    *,
    layer: str | None = None,
    classes: Classes = None,
) -> Explanation:
    """Computes heat maps as `gradcam` does, and returns the explained classes and logits, too."""
    images = jnp.asarray(images)
    batch, height, width = images.shape[:3]
    layer = layer_at(model, (height, width), layer).address
    chosen = np.asarray(_PREDICTED if classes is None else classes)
    if classes is not None:
        last = _taps(model, height, width).num_classes - 1
        fits = chosen.dtype.kind in "iu" and chosen.shape in ((), (batch,))
        if not fits or ((chosen < 0) | (chosen > last)).any():
            raise ValueError(
                f"classes are {chosen.tolist()}; expected is a whole number from 0 to {last}, or "
                f"one for each of {batch} images."
            )
    chosen = np.broadcast_to(chosen, (batch,)).astype(np.int32)
    return _program()(variables, images, chosen, model=model, layer=layer)


def pad_batch(array: np.ndarray, size: int) -> np.ndarray:
    """The array with copies of its first row up to `size` rows.

    A last batch that is smaller then needs no program of its own; the caller drops what is computed
    of the copies.
    """
    return array[np.where(np.arange(size) < len(array), np.arange(size), 0)]


def layers(model: nn.Module) -> tuple[str, ...]:
    """Every address that `gradcam` takes, in the order in which the model computes them."""
    return tuple(_taps(model, _USUAL_SIZE, _USUAL_SIZE).shapes)


def layer_at(
    model: nn.Module, image_size: int | tuple[int, int] = _USUAL_SIZE, address: str | None = None
) -> Layer:
    """The layer of an address, with its grid for images of a size.

    Without an address it is the output of the deepest block whose grid has at least 7 x 7 cells. At
    224 pixels that is the last block, which pytorch-grad-cam recommends for convolutional networks:
    ResNet's layer4[-1], ConvNeXt's stages[-1].blocks[-1], SqueezeNet's features[-1]. Of smaller
    images the last block's grid is too coarse to point at anything (2 x 2 of 64 pixels), and an
    earlier one is taken; where no grid is as large, the deepest block of the largest.

    Args:
        model: a classifier, (images) -> logits [B, num_classes].
        image_size: pixels of a side, or (height, width).
        address: one of `layers`; None: the default layer.

    Raises:
        LayerError: the model has no such layer.
    """
    shapes = _taps(model, *np.broadcast_to(image_size, 2).tolist()).shapes
    address = address or _default(shapes)
    if address not in shapes:
        nearest = difflib.get_close_matches(address, shapes, n=3, cutoff=0.0)
        raise LayerError(
            f"There is no layer {address!r}. The nearest: {', '.join(nearest)}. "
            "explain.gradcam.layers(model) lists them all."
        )
    _, rows, columns, _ = shapes[address].shape
    partial = getattr(model, "partial_layers", {})
    part = next((part for prefix, part in partial.items() if address.startswith(prefix)), "")
    return Layer(address, (rows, columns), part)


def _default(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> str:
    """Address of the default layer; a block is what has tapped activations inside."""
    blocks = [a for a in shapes if any(b.startswith(f"{a}/") for b in shapes)] or [*shapes]
    sides = {address: min(shapes[address].shape[1:3]) for address in blocks}
    least = min(_LEAST_SIDE, max(sides.values()))
    return [address for address in blocks if sides[address] >= least][-1]


class _Taps(NamedTuple):
    shapes: dict[str, jax.ShapeDtypeStruct]  # activations of one image, by address
    paths: dict[str, tuple[str, ...]]  # path in the collection 'intermediates', by address
    num_classes: int


@functools.lru_cache(maxsize=64)
def _taps(model: nn.Module, height: int, width: int) -> _Taps:
    """The activations that `models.layers.tap` names and that have rows and columns.

    Raises:
        ValueError: there are none.
    """
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    order: list[tuple[str, ...]] = []

    def run(variables: PyTree, images: jax.Array) -> tuple[jax.Array, dict]:
        logits, state = model.apply(variables, images, mutable=["intermediates"])
        activations = traverse_util.flatten_dict(dict(state).get("intermediates", {}))
        order.extend(activations)  # JAX sorts what it returns: blocks_10 before blocks_2
        return logits, activations

    logits, activations = jax.eval_shape(run, abstract_variables(model, image), image)
    paths = {_address(path): path for path in order if activations[path].ndim == 4}
    if not paths:
        raise ValueError(f"{type(model).__name__} taps no activation (models.layers.tap).")
    shapes = {address: activations[path] for address, path in paths.items()}
    return _Taps(shapes, paths, logits.shape[-1])


def _address(path: tuple[str, ...]) -> str:
    *modules, name = path
    return "/".join(modules if name == "output" and modules else path)


@functools.cache
def _program() -> Callable[..., Explanation]:
    return platform.jit(_explain, static_argnames=("model", "layer"))


def _explain(
    variables: PyTree,
    images: jax.Array,
    classes: jax.Array,
    *,
    model: nn.Module,
    layer: str,
) -> Explanation:
    batch, height, width = images.shape[:3]
    taps = _taps(model, height, width)
    path, shape = taps.paths[layer], taps.shapes[layer]

    def score(perturbation):
        perturbations = traverse_util.unflatten_dict({path: perturbation})
        perturbed = {**variables, "perturbations": perturbations}
        logits, state = model.apply(perturbed, images, mutable=["intermediates"])
        logits = cast(jax.Array, logits)
        predicted = logits.argmax(axis=-1).astype(jnp.int32)
        chosen = jnp.where(classes == _PREDICTED, predicted, classes)
        # No image has a part in another's logits: the gradient of the sum is that of each.
        total = jnp.take_along_axis(logits, chosen[:, None], axis=1).sum()
        activation = traverse_util.flatten_dict(state["intermediates"])[path]
        return total, (activation, chosen, logits)

    nothing = jnp.zeros((batch, *shape.shape[1:]), shape.dtype)
    gradient, (activation, chosen, logits) = jax.grad(score, has_aux=True)(nothing)
    weights = gradient.astype(jnp.float32).mean(axis=(1, 2))  # [B, C]
    heat = jnp.einsum(
        "bhwc,bc->bhw", activation.astype(jnp.float32), weights, precision=jax.lax.Precision.HIGHEST
    )
    heat = _scale(jax.nn.relu(heat))
    heat = jax.image.resize(heat, (batch, height, width), "linear", antialias=False)
    return Explanation(_scale(heat), chosen, logits.astype(jnp.float32))


def _scale(heat: jax.Array) -> jax.Array:
    """Scales each image to [0, 1]; applied twice it does so also where the range is near _TINY."""
    heat = heat - heat.min(axis=(1, 2), keepdims=True)
    return heat / (_TINY + heat.max(axis=(1, 2), keepdims=True))


if __name__ == "__main__":
    runpy.run_module("egmae_jax.commands.explain", run_name="__main__")
