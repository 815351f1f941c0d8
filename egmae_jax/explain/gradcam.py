"""Grad-CAM (Selvaraju et al. 2017): heat maps of the regions that raise the score of a class.

    heat = gradcam(model, variables, images)  # [B, H, W], of the predicted class

A heat map is no finer than the grid of its layer; `layer_at` returns both. The conventions are
those of the package `pytorch-grad-cam`, against which the results are tested: the weight of a
channel is the gradient of the logit, averaged over positions; the weighted sum is clipped below 0,
scaled to [0, 1] for each image, resized as by OpenCV's linear interpolation, and scaled again.

For the test images of a run, use `egmae explain --workdir=FOLDER --out=FOLDER`.
"""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from egmae_jax.core import platform
from egmae_jax.core.errors import UserError
from egmae_jax.models.init import abstract_variables
from egmae_jax.models.model import Model

PyTree = Any
Classes = int | Sequence[int] | jax.typing.ArrayLike | None
_USUAL_SIZE = 224  # every model accepts it, and the set of layers does not depend on the size
_MIN_SIDE = 7  # cells per side of the coarsest default grid: the last one at 224 pixels
_PREDICTED = -1  # class index that stands for the predicted class
_EPSILON = 1e-7  # as in pytorch-grad-cam; keeps a heat map of zeros at 0


class LayerError(UserError):
    """The network has no such layer; the message names the most similar ones."""


class Explanation(NamedTuple):
    """Heat maps and logits of a batch."""

    heat: jax.Array  # heat maps, float32 [B, H, W], in [0, 1]
    classes: jax.Array  # explained class of each image, int32 [B]
    logits: jax.Array  # float32 [B, num_classes]


class Layer(NamedTuple):
    """An activation from which heat maps are computed, for images of one size."""

    address: str  # address in the model, such as 'stages_3/blocks_2'
    grid: tuple[int, int]  # numbers of rows and columns of the activation
    feeds: str = ""  # words for the part of the network that it feeds; '' if it feeds all logits

    def __str__(self) -> str:
        facts = [f"layer {self.address}", f"{self.grid[0]} x {self.grid[1]} grid"]
        if min(self.grid) < _MIN_SIDE:
            facts.append(f"coarser than {_MIN_SIDE} x {_MIN_SIDE}")
        return ", ".join([*facts, *([self.feeds] if self.feeds else [])])


def gradcam(
    model: Model,
    variables: PyTree,
    images: jax.typing.ArrayLike,
    *,
    layer: str | None = None,
    classes: Classes = None,
) -> jax.Array:
    """Computes Grad-CAM heat maps of a batch.

    The program is compiled once per model, layer and shape of the images.

    Args:
        model: classifier, (images) -> logits [B, num_classes].
        variables: variables of the model, `{"params": ..., "batch_stats": ...}`.
        images: normalised images, float32 [B, H, W, 3]; see `augment.normalize`.
        layer: address of an activation, one of `layers`; None: the default layer, see `layer_at`.
        classes: classes to explain, one per image or one for all; None: the predicted classes.

    Returns:
        Heat maps, float32 [B, H, W]. The maximum of each is 1, or 0 if no region raises the score.

    Raises:
        LayerError: the model has no such layer.
        ValueError: the model has no such class, or the number of classes is not that of images.
    """
    return explain(model, variables, images, layer=layer, classes=classes).heat


def explain(
    model: Model,
    variables: PyTree,
    images: jax.typing.ArrayLike,
    *,
    layer: str | None = None,
    classes: Classes = None,
) -> Explanation:
    """Computes heat maps as `gradcam` does, with the explained classes and the logits."""
    images = jnp.asarray(images)
    batch, height, width = images.shape[:3]
    layer = layer_at(model, (height, width), layer).address
    chosen = np.asarray(_PREDICTED if classes is None else classes)
    if classes is not None:
        last = _taps(model, height, width).num_classes - 1
        fits = chosen.dtype.kind in "iu" and chosen.shape in ((), (batch,))
        if not fits or ((chosen < 0) | (chosen > last)).any():
            raise ValueError(
                f"classes is {chosen.tolist()}; it must be an integer from 0 to {last}, or one for "
                f"each of the {batch} images."
            )
    chosen = np.broadcast_to(chosen, (batch,)).astype(np.int32)
    return _program()(variables, images, chosen, model=model, layer=layer)


def layers(model: Model) -> tuple[str, ...]:
    """Returns all layer addresses that `gradcam` accepts, in order of computation."""
    return tuple(_taps(model, _USUAL_SIZE, _USUAL_SIZE).shapes)


def layer_at(
    model: Model, image_size: int | tuple[int, int] = _USUAL_SIZE, address: str | None = None
) -> Layer:
    """Returns a layer of a model and its grid, by default a deep layer that still localises.

    The default is the output of the deepest block whose grid has at least 7 x 7 cells. At 224
    pixels it is the last block, which pytorch-grad-cam recommends for convolutional networks:
    ResNet's layer4[-1], ConvNeXt's stages[-1].blocks[-1], SqueezeNet's features[-1]. For smaller
    images the grid of the last block is too coarse (2 x 2 cells at 64 pixels), so an earlier block
    is taken. If no grid has 7 x 7 cells, it is the deepest block with the largest grid. Some
    networks name other candidates, also pytorch-grad-cam's: of a transformer, whose last block
    feeds the logits by its class token alone, the first norm of each block.

    Args:
        model: classifier, (images) -> logits [B, num_classes].
        image_size: side of square images in pixels, or (height, width).
        address: address of an activation, one of `layers`; None: the default layer.

    Raises:
        LayerError: the model has no such layer.
    """
    shapes = _taps(model, *np.broadcast_to(image_size, 2).tolist()).shapes
    address = address or _default(shapes, model.cam_layers)
    if address not in shapes:
        nearest = difflib.get_close_matches(address, shapes, n=3, cutoff=0.0)
        raise LayerError(
            f"There is no layer {address!r}. The nearest: {', '.join(nearest)}. "
            "explain.gradcam.layers(model) lists them all."
        )
    _, rows, columns, _ = shapes[address].shape
    partial = model.partial_layers.items()
    feeds = next((words for prefix, words in partial if address.startswith(prefix)), "")
    return Layer(address, (rows, columns), feeds)


def _default(shapes: Mapping[str, jax.ShapeDtypeStruct], candidates: Sequence[str]) -> str:
    """Returns the address of the default layer; a block is a module that contains other taps."""
    blocks = [*candidates] or [a for a in shapes if any(b.startswith(f"{a}/") for b in shapes)]
    blocks = blocks or [*shapes]
    sides = {address: min(shapes[address].shape[1:3]) for address in blocks}
    min_side = min(_MIN_SIDE, max(sides.values()))
    return [address for address in blocks if sides[address] >= min_side][-1]


class _Taps(NamedTuple):
    """Activations of a model that have rows and columns, and its number of classes."""

    shapes: dict[str, jax.ShapeDtypeStruct]  # shapes for one image, by address
    paths: dict[str, tuple[str, ...]]  # path in the collection 'intermediates', by address
    num_classes: int


@functools.lru_cache(maxsize=64)
def _taps(model: Model, height: int, width: int) -> _Taps:
    """Lists the activations with rows and columns that the model taps with `models.layers.tap`.

    Raises:
        ValueError: the model taps no such activation.
    """
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    order: list[tuple[str, ...]] = []

    def run(variables: PyTree, images: jax.Array) -> tuple[jax.Array, dict]:
        logits, state = model.apply(variables, images, mutable=["intermediates"])
        activations = traverse_util.flatten_dict(dict(state).get("intermediates", {}))
        order.extend(activations)  # eval_shape sorts by name: blocks_10 before blocks_2
        return logits, activations

    logits, activations = jax.eval_shape(run, abstract_variables(model, image), image)
    paths = {_address(path): path for path in order if activations[path].ndim == 4}
    if not paths:
        raise ValueError(f"{type(model).__name__} taps no activation with models.layers.tap.")
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
    model: Model,
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
        # The logits of an image depend on no other, so the gradient of the sum is that of each.
        total = jnp.take_along_axis(logits, chosen[:, None], axis=1).sum()
        activation = traverse_util.flatten_dict(state["intermediates"])[path]
        return total, (activation, chosen, logits)

    zeros = jnp.zeros((batch, *shape.shape[1:]), shape.dtype)
    gradient, (activation, chosen, logits) = jax.grad(score, has_aux=True)(zeros)
    weights = gradient.astype(jnp.float32).mean(axis=(1, 2))  # [B, C]
    heat = jnp.einsum(
        "bhwc,bc->bhw", activation.astype(jnp.float32), weights, precision=jax.lax.Precision.HIGHEST
    )
    heat = _scale(jax.nn.relu(heat))
    heat = jax.image.resize(heat, (batch, height, width), "linear", antialias=False)
    return Explanation(_scale(heat), chosen, logits.astype(jnp.float32))


def _scale(heat: jax.Array) -> jax.Array:
    """Scales each heat map to [0, 1]; applied twice, also one whose range is close to _EPSILON."""
    heat = heat - heat.min(axis=(1, 2), keepdims=True)
    return heat / (_EPSILON + heat.max(axis=(1, 2), keepdims=True))
