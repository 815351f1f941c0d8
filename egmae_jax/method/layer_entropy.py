"""Entropy-based layer selection: which layers of a pre-trained network to fine-tune.

The Shannon entropy of each convolution's output is measured on calibration images; the layers of
low entropy are held to be under-used, and are trained while the others stay as they were
(Entropy-Based Convolutional Layer Selection for Transfer Learning in Brain Tumor Detection).
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from egmae_jax.core.files import DamagedFileError, read_sealed
from egmae_jax.training import trainable

PyTree = Any
MODES = ("all", "head", "low_entropy", "random")
HEAD = ("head/", "fusion/")  # parameters of no layer: they always train
_FINE_BINS = 4096  # of a channel's histogram while its range is not known


class Selection(NamedTuple):
    """What trains of a network."""

    prefixes: tuple[str, ...]  # of the paths of the parameters that train
    frozen: frozenset[str]  # addresses of the layers that do not


def select(
    mode: str,
    layers: Mapping[str, Sequence[str]],
    params: PyTree,
    *,
    share: float,
    entropies: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[str]:
    """The layers that train, in the order they were chosen in.

    Args:
        mode: one of MODES.
        layers: of the model, address -> path prefixes (`model.layers`).
        params: of the model.
        share: layers are added, each whole, until at least this share of all parameters trains,
            the head's included; below 1 at least one layer stays frozen. 'low_entropy' and 'random'
            read it.
        entropies: of the layers, for 'low_entropy'.
        seed: of the order, for 'random'.
    """
    if mode in ("all", "head"):
        return list(layers) if mode == "all" else []
    if mode == "low_entropy":
        assert entropies is not None
        order = sorted(layers, key=lambda layer: entropies[layer])
    else:
        order = [list(layers)[i] for i in np.random.default_rng(seed).permutation(len(layers))]
    total = trainable.count(params)
    counts = sizes(layers, params)
    count = total - sum(counts.values())  # the head
    chosen: list[str] = []
    for layer in order:
        if count >= share * total or (share < 1 and len(chosen) == len(order) - 1):
            break
        chosen.append(layer)
        count += counts[layer]
    return chosen


def sizes(layers: Mapping[str, Sequence[str]], params: PyTree) -> dict[str, int]:
    """The number of parameters of each layer."""
    flat = {
        path: leaf.size
        for path, leaf in traverse_util.flatten_dict(trainable.split(params)[0], sep="/").items()
    }
    return {
        layer: sum(size for path, size in flat.items() if path.startswith(tuple(prefixes)))
        for layer, prefixes in layers.items()
    }


def selection(layers: Mapping[str, Sequence[str]], chosen: Iterable[str]) -> Selection:
    """What trains where `chosen` layers and the head do."""
    chosen = set(chosen)
    if chosen == set(layers):
        return Selection(trainable.EVERYTHING, frozenset())
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
    total = trainable.count(params)
    trained = trainable.count(trainable.split(params, selection(layers, chosen).prefixes)[0])
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


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draws a bar a layer, from input to output, for a `report` with entropies."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    layers = result["layers"]
    colors = {True: "#d55e00", False: "#56b4e9"}
    figure = Figure(figsize=(8, 1.4 + 0.2 * len(layers)), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        range(len(layers)),
        [layer["entropy"] for layer in layers],
        color=[colors[layer["trains"]] for layer in layers],
    )
    axes.set_yticks(range(len(layers)), [layer["layer"] for layer in layers], fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, math.log(256))
    axes.set_xlabel("entropy of the output's channels, nats (at most ln 256)", fontsize=9)
    share = result["trainable_parameters"] / result["parameters"]
    axes.set_title(f"{result['trainable']}: {share:.1%} of the parameters train", fontsize=10)
    handles = [
        Patch(color=colors[True], label="trains"),
        Patch(color=colors[False], label="frozen"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


# --- Entropy of the layers -----------------------------------------------------------------------


class _Histogram(NamedTuple):
    """Counts of a layer's values by channel, on a grid that widens as larger values come.

    Bins of channel c are `2 ** exponent[c]` wide and begin at multiples of that, the first at
    multiple `first[c]`. Widening joins pairs of bins, so the result does not depend on the order of
    the images.
    """

    counts: jax.Array  # int32 [C, _FINE_BINS]
    exponent: jax.Array  # int32 [C]
    first: jax.Array  # int32 [C]
    low: jax.Array  # float32 [C], the least value so far
    high: jax.Array  # float32 [C]


def layer_entropies(
    model: nn.Module, params: PyTree, batches: Iterable[tuple[jax.Array, jax.Array]]
) -> dict[str, float]:
    """Mean entropy of the channels of every layer's output, in nats, from 0 to ln 256 = 5.545.

    A channel's entropy is that of the 256-bin histogram of its values over all pixels of all
    images, scaled to [0, 1] by their least and largest. The images are pooled, because a single
    image's entropy is bounded by ln(pixels), which falls from layer to layer whatever these do. The
    images are seen once: the range need not be known before.

    Args:
        model: with `layers`.
        params: of the model.
        batches: normalised images [B, H, W, 3] and validity [B], 0 for padding.

    Returns:
        {address: entropy}, in the order of `model.layers`.

    Raises:
        ValueError: there is no image.
    """
    state: dict[str, _Histogram] | None = None
    for images, valid in batches:
        if state is None:
            shapes = jax.eval_shape(lambda x: _activations(model, params, x), images)
            state = {layer: _empty(x.shape[-1]) for layer, x in shapes.items()}
        state = _update(state, params, images, valid, model=model)
    if state is None:
        raise ValueError("Layer entropies need at least one image.")
    return {
        layer: float(np.mean(_channel_entropies(jax.tree.map(np.asarray, state[layer]))))
        for layer in model.layers
    }


def _activations(model: nn.Module, params: PyTree, images: jax.Array) -> dict[str, jax.Array]:
    _, state = model.apply({"params": params}, images, mutable=["intermediates"])
    tapped = traverse_util.flatten_dict(state["intermediates"], sep="/")
    tapped = {path.removesuffix("/output"): x for path, x in tapped.items()}
    return {layer: tapped[layer] for layer in model.layers}


def _empty(channels: int) -> _Histogram:
    return _Histogram(
        jnp.zeros((channels, _FINE_BINS), jnp.int32),
        jnp.full(channels, -126, jnp.int32),
        jnp.zeros(channels, jnp.int32),
        jnp.full(channels, jnp.inf),
        jnp.full(channels, -jnp.inf),
    )


@functools.partial(jax.jit, static_argnames="model", donate_argnums=0)
def _update(
    state: dict[str, _Histogram],
    params: PyTree,
    images: jax.Array,
    valid: jax.Array,
    *,
    model: nn.Module,
) -> dict[str, _Histogram]:
    activations = _activations(model, params, images)
    return {layer: _add(state[layer], x, valid) for layer, x in activations.items()}


def _add(state: _Histogram, x: jax.Array, valid: jax.Array) -> _Histogram:
    """Counts the values of some images [B, H, W, C]."""
    channels = x.shape[-1]
    rows = jnp.moveaxis(x.astype(jnp.float32), -1, 0).reshape(channels, -1)  # [C, B * H * W]
    counted = jnp.repeat(valid > 0, x.shape[1] * x.shape[2])
    low = jnp.minimum(state.low, jnp.where(counted, rows, jnp.inf).min(axis=1))
    high = jnp.maximum(state.high, jnp.where(counted, rows, -jnp.inf).max(axis=1))
    # So wide that all values fit, and no finer than float32 is.
    finest = jnp.maximum(jnp.abs(low), jnp.abs(high)) * 2.0**-24
    width = jnp.maximum(jnp.maximum((high - low) / (_FINE_BINS - 2), finest), 2.0**-100)
    exponent = jnp.maximum(jnp.ceil(jnp.log2(width)).astype(jnp.int32), state.exponent)
    scale = jnp.ldexp(jnp.float32(1), -exponent)
    first = jnp.floor(low * scale).astype(jnp.int32)

    start = jnp.arange(channels)[:, None] * _FINE_BINS
    # The bins so far, joined where the grid has widened.
    widening = jnp.minimum(exponent - state.exponent, 31)[:, None]
    old = (state.first[:, None] + jnp.arange(_FINE_BINS)) >> widening
    old = old - first[:, None] + start
    new = jnp.floor(rows * scale[:, None]).astype(jnp.int32) - first[:, None] + start
    counts = jnp.zeros(channels * _FINE_BINS, jnp.int32)
    for places, amounts in ((old, state.counts), (new, counted.astype(jnp.int32)[None])):
        amounts = jnp.broadcast_to(amounts, places.shape)
        places = jnp.where(amounts > 0, places, counts.size)  # else out of the array, and dropped
        counts = counts.at[places.reshape(-1)].add(amounts.reshape(-1), mode="drop")
    return _Histogram(counts.reshape(channels, _FINE_BINS), exponent, first, low, high)


def _channel_entropies(histogram: _Histogram, num_bins: int = 256) -> np.ndarray:
    """[C]. Eight to sixteen fine bins go to each of the `num_bins` over the range."""
    width = np.ldexp(1.0, histogram.exponent)[:, None]
    middles = (histogram.first[:, None] + np.arange(_FINE_BINS) + 0.5) * width
    extent = np.maximum(histogram.high - histogram.low, np.finfo(np.float32).tiny)[:, None]
    places = (middles - histogram.low[:, None]) / extent * num_bins
    bins = np.clip(places, 0, num_bins - 1).astype(int)
    bins += np.arange(len(bins))[:, None] * num_bins  # a row of bins a channel
    counts = np.bincount(
        bins.reshape(-1), np.asarray(histogram.counts).reshape(-1), minlength=len(bins) * num_bins
    ).reshape(-1, num_bins)
    p = counts / counts.sum(axis=1, keepdims=True)
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=1)
