"""Names and axis orders of the variables in timm, torchvision, Facebook's and Hugging Face's code.

The tables that networks are registered with define the whole translation.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from egmae_jax import models
from egmae_jax.models import registry
from egmae_jax.models.init import abstract_variables
from egmae_jax.models.layouts import Layout

PyTree = Any

Expected = dict[str, tuple[str, tuple[int, ...], Layout]]


@functools.lru_cache(maxsize=8)
def expected_tensors(model_name: str, classes: int) -> Expected:
    """Returns the tensors of a model in PyTorch.

    Args:
        model_name: one of `models.names()`.
        classes: number of classes.

    Returns:
        (path of our variable, shape in PyTorch, layout) by PyTorch's key.
    """
    abstract = abstract_variables(models.create(model_name, classes))
    expected = {}
    for path, leaf in flatten(abstract).items():
        key, layout = _translate(path, model_name)
        # A broadcast array has the shape, but needs no memory.
        their_shape = layout.to_torch(np.broadcast_to(np.float32(0), leaf.shape)).shape
        expected[key] = (path, their_shape, layout)
    return expected


def as_timm(
    tensors: Mapping[str, np.ndarray], model_name: str
) -> tuple[str, dict[str, np.ndarray]]:
    """Translates the names of a network's tensors in other libraries to timm's.

    Args:
        tensors: tensors by name.
        model_name: one of `models.names()`.

    Returns:
        The library of the names, such as "Facebook's" ('' for timm's), and the tensors by timm's
        names. Tensors with unknown names are not changed.
    """
    for library, (first, patterns) in registry.NETWORKS.get(model_name).other_names.items():
        if not any(re.fullmatch(first, key) for key in tensors):
            continue
        translated = {key: _first_match(patterns, key) for key in tensors}
        names = {k: k if name is None else name for k, name in translated.items() if name != ""}
        if len(set(names.values())) < len(names):
            continue  # two networks in one file
        shapes = {k: x for k, (_, x, _) in expected_tensors(model_name, 1).items()}
        return library, {
            name: _drop_unit_axes(tensors[key], shapes.get(name)) for key, name in names.items()
        }
    return "", dict(tensors)


def _first_match(patterns: Iterable[tuple[str, str]], key: str) -> str | None:
    matches = ((re.fullmatch(pattern, key), name) for pattern, name in patterns)
    return next((match.expand(name) for match, name in matches if match), None)


def _drop_unit_axes(x: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """Reshapes a tensor if its shape differs from `shape` only by axes of length 1."""
    if shape is None or [n for n in x.shape if n != 1] != [n for n in shape if n != 1]:
        return x
    return x.reshape(shape)


def add_classifier(tensors: dict[str, np.ndarray], model_name: str) -> dict[str, np.ndarray]:
    """Adds a classifier of zeros for one class to tensors by timm's names if they have none."""
    zeros = {
        key: np.zeros(shape, np.float32)
        for key, (our_path, shape, _) in expected_tensors(model_name, 1).items()
        if our_path.startswith("head/fc/")
    }
    return tensors if tensors.keys() & zeros.keys() else zeros | tensors


def num_classes(tensors: Mapping[str, np.ndarray], model_name: str) -> int:
    """Returns the number of classes of tensors by timm's names; 1 without a classifier."""
    bias = classifier_bias(model_name)
    return tensors[bias].size if bias in tensors else 1


def classifier_bias(model_name: str) -> str:
    """Returns PyTorch's key of the classifier's bias, whose length is the number of classes."""
    return _translate("head/fc/bias", model_name)[0]


def module_name(path: str, model_name: str) -> str:
    """Returns PyTorch's name of the module with a variable: 'stem.0' of 'stem/conv/kernel'."""
    return _translate(path, model_name)[0].rpartition(".")[0]


def batch_counters(keys: Iterable[str]) -> set[str]:
    """Returns PyTorch's keys of the batch counters, which its batch norms save but do not use."""
    return {
        key.replace("running_mean", "num_batches_tracked")
        for key in keys
        if key.endswith("running_mean")
    }


def _translate(path: str, model_name: str) -> tuple[str, Layout]:
    for pattern, key, layout in registry.NETWORKS.get(model_name).patterns:
        match = re.fullmatch(pattern, path)
        if match:
            return match.expand(key), layout
    raise NotImplementedError(f"no pattern for the variable {path!r}")


def flatten(variables: PyTree) -> dict[str, Any]:
    """Merges the leaves of all collections into one dict by path, as in a PyTorch state_dict.

    Examples of paths are 'stem/bn/scale' and 'stem/bn/mean', without the names of the collections.
    """
    return {
        path: leaf
        for collection in variables.values()
        for path, leaf in traverse_util.flatten_dict(collection, sep="/").items()
    }


def unflatten(flat: Mapping[str, Any]) -> PyTree:
    """The inverse of `flatten`."""
    statistics = {path: x for path, x in flat.items() if path.endswith(("/mean", "/var"))}
    variables = {"params": {path: x for path, x in flat.items() if path not in statistics}}
    if statistics:
        variables["batch_stats"] = statistics
    return {name: traverse_util.unflatten_dict(x, sep="/") for name, x in variables.items()}
