"""Selection of the layers to train, and the entropies of their outputs."""

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
from egmae_jax.models.model import Model
from egmae_jax.training.state import EVERYTHING, count_parameters, partition

PyTree = Any
HEAD = ("head/", "fusion/")  # path prefixes of parameters outside of all layers; they always train


class Selection(NamedTuple):
    """Trainable parameters and frozen layers of a network."""

    prefixes: tuple[str, ...]  # path prefixes of the trainable parameters
    frozen: frozenset[str]  # addresses of the frozen layers


def sizes(layers: Mapping[str, Sequence[str]], params: PyTree) -> dict[str, int]:
    """Returns the number of parameters of each layer.

    Args:
        layers: path prefixes of each layer's parameters, see `Model.layers`.
        params: parameters of the network.
    """
    flat = {path: leaf.size for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    return {
        layer: sum(size for path, size in flat.items() if path.startswith(tuple(prefixes)))
        for layer, prefixes in layers.items()
    }


def selection(layers: Mapping[str, Sequence[str]], chosen: Iterable[str]) -> Selection:
    """Returns the selection that trains the chosen layers and the head.

    Args:
        layers: path prefixes of each layer's parameters, see `Model.layers`.
        chosen: addresses of the layers to train.
    """
    chosen = set(chosen)
    if chosen == set(layers):
        return Selection(EVERYTHING, frozenset())
    prefixes = [prefix for layer in layers if layer in chosen for prefix in layers[layer]]
    return Selection((*prefixes, *HEAD), frozenset(layers) - chosen)


def make_report(
    mode: str,
    layers: Mapping[str, Sequence[str]],
    params: PyTree,
    chosen: Sequence[str],
    entropies: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Returns a selection as JSON: number of trainable parameters, and each layer.

    Args:
        mode: one of `layer_entropy.MODES`.
        layers: path prefixes of each layer's parameters, from input to output.
        params: parameters of the network.
        chosen: addresses of the layers to train.
        entropies: entropy of each layer's output; None if it was not measured.
    """
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
    """Returns the addresses of the layers to train from `make_report` in layers.json.

    Args:
        path: path of the file.
        layers: addresses of all layers of the network.

    Raises:
        DamagedFileError: the file is missing, damaged, or of other layers.
    """
    try:
        trains = {row["layer"]: row["trains"] for row in read_sealed(path)["layers"]}
    except (KeyError, TypeError) as error:
        raise DamagedFileError(path, repr(error)) from None
    if trains.keys() != set(layers) or not all(isinstance(x, bool) for x in trains.values()):
        raise DamagedFileError(path, "its layers are not those of the network")
    return [layer for layer, is_trained in trains.items() if is_trained]


def layer_entropies(
    model: Model, variables: PyTree, batches: Iterable[tuple[jax.Array, jax.Array]]
) -> dict[str, float]:
    """Measures the mean entropy of the channels of every layer's output.

    The entropy of a channel is that of a histogram of its values at all pixels of all images, with
    256 bins between the smallest and the largest value. The images are pooled, because the entropy
    of a single image is at most ln(number of pixels), which falls from layer to layer. The images
    are read only once.

    Args:
        model: the `Model` whose `layers` are measured.
        variables: variables of the model.
        batches: normalised images [B, H, W, 3] and their validity [B], 0 for padding.

    Returns:
        Entropy by layer address in nats, from 0 to ln 256 = 5.545, in the order of `model.layers`.

    Raises:
        ValueError: there is no batch.
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


def _activations(model: Model, variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
    _, state = model.apply(variables, images, mutable=["intermediates"])
    outputs = traverse_util.flatten_dict(state["intermediates"], sep="/")
    outputs = {path.removesuffix("/output"): x for path, x in outputs.items()}
    return {layer: outputs[layer] for layer in model.layers}


@functools.partial(jax.jit, static_argnames="model", donate_argnums=0)
def _update(
    state: dict[str, Histogram],
    variables: PyTree,
    images: jax.Array,
    valid: jax.Array,
    *,
    model: Model,
) -> dict[str, Histogram]:
    activations = _activations(model, variables, images)
    return {layer: layer_entropy.add(state[layer], x, valid) for layer, x in activations.items()}
