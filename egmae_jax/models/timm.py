"""Converts checkpoints of timm and torchvision into variables of this package and back.

torch is not needed. A checkpoint is a safetensors or npz file with timm's names (for SqueezeNet
torchvision's; for ResNet both are the same). ConvNeXt checkpoints may also have the names of
Facebook, Hugging Face or torchvision, and those of other networks the names that they were
registered with, which `timm_names` translates. A file must have exactly the
tensors of the model; otherwise an error names those that are missing, extra or of another shape.
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
    add_classifier,
    as_timm,
    batch_counters,
    expected_tensors,
    flatten,
    num_classes,
    unflatten,
)
from egmae_jax.models.timm_problems import (
    differences,
    explain_misfit,
    format_problems,
    list_problems,
)
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
    """Reads a checkpoint of timm or torchvision.

    Args:
        source: a `.safetensors` or `.npz` file, a folder with `model.safetensors`, or a hub id such
            as `timm/convnext_tiny.fb_in1k`. A hub id is looked up in the local hub cache first, so
            no network is needed once it has been downloaded.
        model_name: one of `models.names()`.
        finite: whether to refuse NaN and infinite values.
        classifier: whether to refuse a file without a classifier, such as one saved with
            `num_classes=0`; otherwise the classifier is filled with zeros.

    Returns:
        Variables for `model.apply`: {"params": ..., "batch_stats": ...}, nested dicts of float32
        numpy arrays; "batch_stats" only for networks with batch norms. The classifier has the
        checkpoint's number of classes.

    Raises:
        MissingWeightsError: there are no weights at `source`; the message tells how to get them.
        CheckpointError: the file is a pickle or damaged, or its tensors do not fit the model.
        AccessError: the system denies access to the file.
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
    """Converts tensors with PyTorch's names and axis orders into variables of this package.

    Args:
        tensors: one tensor for every variable of the model; batch counters of batch norms are
            ignored, and other tensors are refused.
        model_name: one of `models.names()`.
        source: origin of the tensors, for error messages.
        classifier: whether to refuse tensors without a classifier; otherwise it is filled with
            zeros.

    Returns:
        Variables, as `load` returns them.

    Raises:
        CheckpointError: the tensors do not fit the model; the message names those that differ.
    """
    library, renamed = as_timm(tensors, model_name)
    if not classifier:
        renamed = add_classifier(renamed, model_name)
    expected = expected_tensors(model_name, num_classes(renamed, model_name))
    if problems := list_problems(renamed, expected):
        raise CheckpointError(explain_misfit(tensors, problems, model_name, source))
    if library:
        logger.info("%s has %s names of its tensors, which are translated", source, library)
    with np.errstate(over="ignore"):  # too large values become infinite, which `load` checks
        flat = {
            our_path: np.ascontiguousarray(layout.to_jax(renamed[key]), np.float32)
            for key, (our_path, _, layout) in expected.items()
        }
    return unflatten(flat)


def save(
    variables: PyTree, path: str | os.PathLike, model_name: str, *, classifier: bool = True
) -> None:
    """Writes a model's variables to a safetensors file that the PyTorch model loads strictly.

    Args:
        variables: {"params": ..., "batch_stats": ...}.
        path: path of the file.
        model_name: one of `models.names()`.
        classifier: whether the variables have a classifier; timm has none with `num_classes=0`.

    Raises:
        CheckpointError: the variables are not those of the model; the message names those that
            differ.
    """
    flat = {name: np.asarray(leaf) for name, leaf in flatten(variables).items()}
    classes = flat["head/fc/bias"].shape[0] if "head/fc/bias" in flat else 1
    expected = expected_tensors(model_name, classes)
    leaves = {
        our_path: (key, shape, layout)
        for key, (our_path, shape, layout) in expected.items()
        if classifier or not our_path.startswith("head/fc/")
    }

    # Those that the model does not have keep their axes, for the message.
    in_torch = {
        name: leaves[name][2].to_torch(x) if name in leaves else x for name, x in flat.items()
    }
    labels = {name: f"{name} as {key}" for name, (key, _, _) in leaves.items()}
    shapes = {labels[name]: shape for name, (_, shape, _) in leaves.items()}
    found = {labels.get(name, name): x.shape for name, x in in_torch.items()}
    if problems := differences(shapes, found):
        raise CheckpointError(
            f"The variables are not those of {model_name}:\n  {format_problems(problems)}"
        )
    tensors = {leaves[name][0]: x.astype(np.float32) for name, x in in_torch.items()}
    tensors |= dict.fromkeys(batch_counters(expected), np.zeros((), np.int64))
    write_safetensors(Path(path), tensors)
