"""Checkpoints of timm and torchvision into our variables and back, without torch.

A checkpoint is a safetensors or npz file with timm's names (SqueezeNet: torchvision's; ResNet's are
the same in both), or of a ConvNeXt with Facebook's, Hugging Face's or torchvision's. `timm_names`
is the translation. A file must hold exactly the tensors the model has, or the error says how many
are missing, extra or of another shape, and which. Nothing is loaded by half.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from egmae_jax.core.tensors import write_safetensors
from egmae_jax.models import weights
from egmae_jax.models.timm_names import (
    as_timm,
    batch_counters,
    classifier_bias,
    expected_tensors,
    flatten,
    num_classes,
    unflatten,
    with_classifier,
)
from egmae_jax.models.timm_problems import cause, list_problems, name_some
from egmae_jax.models.weights import CheckpointError

PyTree = Any
logger = logging.getLogger(__name__)


def load(
    source: str | os.PathLike = "timm/convnext_tiny.fb_in1k",
    model_name: str = "convnext_tiny",
    *,
    finite: bool = True,
    classifier: bool = True,
) -> PyTree:
    """Reads a checkpoint in timm's or torchvision's names.

    Args:
        source: a `.safetensors` or `.npz` file, a folder that holds `model.safetensors`, or a hub
            id such as `timm/convnext_tiny.fb_in1k`. A hub id is looked up in the local hub cache
            first, so a machine without network reads what another call has fetched.
        model_name: one of `models.names()`.
        finite: refuses values that are NaN or infinite, which every result would be then.
        classifier: refuses a file without one, as of `num_classes=0`; else its place is taken by
            zeros.

    Returns:
        Variables for `model.apply`: {"params": ..., "batch_stats": ...}, nested dicts of float32
        numpy arrays, the latter of networks with batch norms only. The classifier keeps the
        checkpoint's number of classes.

    Raises:
        MissingWeightsError: nothing to be had at `source`; the message says how to get it.
        CheckpointError: a pickle, a damaged file, or tensors that do not fit the model.
        AccessError: the system does not let the file be read.
    """
    path = weights.locate(source)
    variables = convert(weights.read(path), model_name, path, classifier=classifier)
    leaves = flatten(variables).items()
    bad = [name for name, leaf in leaves if not np.isfinite(leaf).all()]
    if finite and bad:
        raise CheckpointError(
            f"{path} holds values that are NaN, infinite or too large for float32, in {len(bad)} "
            f"tensors: {', '.join(bad[:10])}{', ...' * (len(bad) > 10)}."
        )
    return variables


def convert(
    tensors: Mapping[str, np.ndarray],
    model_name: str,
    source: str | os.PathLike,
    *,
    classifier: bool = True,
) -> PyTree:
    """Converts tensors in PyTorch's names and layouts into our variables.

    Args:
        tensors: one for every variable of the model, and no others but batch norm's counters.
        model_name: one of `models.names()`.
        source: where they come from, for the error.
        classifier: refuses tensors without one; else its place is taken by zeros.

    Returns:
        Variables, as of `load`.

    Raises:
        CheckpointError: the tensors do not fit the model; says why, and names those that differ.
    """
    library, renamed = as_timm(tensors, model_name)
    if not classifier:
        renamed = with_classifier(renamed, model_name)
    expected = expected_tensors(model_name, num_classes(renamed, model_name))
    if problems := list_problems(renamed, expected):
        raise CheckpointError(cause(tensors, problems, model_name, source, classifier))
    if library:
        logger.info("%s has %s names of a ConvNeXt: read as timm's", source, library)
    with np.errstate(over="ignore"):  # becomes infinite, which `load` tells
        flat = {
            our_path: np.ascontiguousarray(layout.to_jax(renamed[key]), np.float32)
            for key, (our_path, _, layout) in expected.items()
        }
    return unflatten(flat)


def fits(tensors: Mapping[str, np.ndarray], model_name: str) -> bool:
    """Whether `convert` would take the tensors."""
    _, tensors = as_timm(tensors, model_name)
    if classifier_bias(model_name) not in tensors:
        return False
    expected = expected_tensors(model_name, num_classes(tensors, model_name))
    return not list_problems(tensors, expected)


def save(variables: PyTree, path: str | os.PathLike, model_name: str) -> None:
    """Writes a classifier's variables as a safetensors file that PyTorch's model loads strictly.

    Raises:
        CheckpointError: the variables are not those of `model_name`; names all that differ.
    """
    flat = {name: np.asarray(leaf) for name, leaf in flatten(variables).items()}
    classes = flat["head/fc/bias"].shape[0] if "head/fc/bias" in flat else 1
    expected = expected_tensors(model_name, classes)
    leaves = {our_path: (key, shape, layout) for key, (our_path, shape, layout) in expected.items()}

    problems = [f"missing: {name}" for name in leaves if name not in flat]
    problems += [f"extra: {name} {x.shape}" for name, x in flat.items() if name not in leaves]
    tensors = {}
    for name, x in flat.items():
        if name in leaves:
            key, shape, layout = leaves[name]
            tensors[key] = layout.to_torch(x).astype(np.float32)
            if tensors[key].shape != shape:
                problems.append(f"shape: {name} as {key} is {tensors[key].shape}, not {shape}")
    if problems:
        raise CheckpointError(
            f"these are not the variables of {model_name}:\n  {name_some(problems)}"
        )
    tensors |= dict.fromkeys(batch_counters(expected), np.zeros((), np.int64))
    write_safetensors(Path(path), tensors)
