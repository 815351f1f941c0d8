"""Which layers of a network train, by the entropies of their outputs or otherwise."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from egmae_jax.core.files import DamagedFileError, read_sealed
from egmae_jax.method import layer_entropy
from egmae_jax.method.layer_entropy import Histogram
from egmae_jax.training.state import EVERYTHING, count_parameters, partition

PyTree = Any
HEAD = ("head/", "fusion/")  # parameters of no layer: they always train


class Selection(NamedTuple):
    """What trains of a network."""

    prefixes: tuple[str, ...]  # path prefixes of the parameters that train
    frozen: frozenset[str]  # addresses of the layers that do not train


def sizes(layers: Mapping[str, Sequence[str]], params: PyTree) -> dict[str, int]:
    """The number of parameters of each layer."""
    flat = {path: leaf.size for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    return {
        layer: sum(size for path, size in flat.items() if path.startswith(tuple(prefixes)))
        for layer, prefixes in layers.items()
    }


def selection(layers: Mapping[str, Sequence[str]], chosen: Iterable[str]) -> Selection:
    """What trains where `chosen` layers and the head do."""
    chosen = set(chosen)
    if chosen == set(layers):
        return Selection(EVERYTHING, frozenset())
    prefixes = [prefix for layer in layers if layer in chosen for prefix in layers[layer]]
    return Selection((*prefixes, *HEAD), frozenset(layers) - chosen)


def report(
    mode: str,
    layers: Mapping[str, Sequence[str]],
    params: PyTree,
    chosen: Sequence[str],
    entropies: Mapping[str, float] | None,
) -> dict[str, Any]:
    """The selection as JSON: parameters that train, and every layer from input to output."""
    counts = sizes(layers, params)
    total = count_parameters(params)
    trained = count_parameters(partition(params, selection(layers, chosen).prefixes)[0])
    return {
        "trainable": mode,
        "trainable_parameters": trained,
        "parameters": total,
        "layers": [
            {
                "layer": layer,
                "parameters": counts[layer],
                "entropy": None if entropies is None else entropies[layer],
                "trains": layer in chosen,
            }
            for layer in layers
        ],
    }


def read_report(path: Path, layers: Iterable[str]) -> list[str]:
    """The layers that train, of a `report` that was written to layers.json.

    Raises:
        DamagedFileError: it is none of these layers.
    """
    try:
        trains = {row["layer"]: row["trains"] for row in read_sealed(path)["layers"]}
    except (KeyError, TypeError) as error:
        raise DamagedFileError(path, repr(error)) from None
    if trains.keys() != set(layers) or not all(isinstance(x, bool) for x in trains.values()):
        raise DamagedFileError(path, "it does not say of every layer whether it trains")
    return [layer for layer, is_trained in trains.items() if is_trained]


def layer_entropies(
    model: Any, variables: PyTree, batches: Iterable[tuple[jax.Array, jax.Array]]
) -> dict[str, float]:
    """Mean entropy of the channels of every layer's output, in nats, from 0 to ln 256 = 5.545.

    A channel's entropy is that of the 256-bin histogram of its values over all pixels of all
    images, scaled to [0, 1] by their least and largest. The images are pooled, because a single
    image's entropy is bounded by ln(pixels), which falls from layer to layer whatever these do. The
    images are read once: the range need not be known before.

    Args:
        model: a `Model`, whose `layers` are measured.
        variables: variables of the model.
        batches: normalised images [B, H, W, 3] and validity [B], 0 for padding.

    Returns:
        {address: entropy}, in the order of `model.layers`.

    Raises:
        ValueError: there is no image.
    """
    state: dict[str, Histogram] | None = None
    for images, valid in batches:
        if state is None:
            shapes = jax.eval_shape(lambda x: _activations(model, variables, x), images)
            state = {
                layer: layer_entropy.empty_histogram(x.shape[-1]) for layer, x in shapes.items()
            }
        state = _update(state, variables, images, valid, model=model)
    if state is None:
        raise ValueError("Layer entropies need at least one image.")
    return {
        layer: float(
            np.mean(layer_entropy.channel_entropies(jax.tree.map(np.asarray, state[layer])))
        )
        for layer in model.layers
    }


def _activations(model: Any, variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
    _, state = model.apply(variables, images, mutable=["intermediates"])
    tapped = traverse_util.flatten_dict(state["intermediates"], sep="/")
    tapped = {path.removesuffix("/output"): x for path, x in tapped.items()}
    return {layer: tapped[layer] for layer in model.layers}


@functools.partial(jax.jit, static_argnames="model", donate_argnums=0)
def _update(
    state: dict[str, Histogram],
    variables: PyTree,
    images: jax.Array,
    valid: jax.Array,
    *,
    model: Any,
) -> dict[str, Histogram]:
    activations = _activations(model, variables, images)
    return {layer: layer_entropy.add(state[layer], x, valid) for layer, x in activations.items()}
