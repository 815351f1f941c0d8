"""Parameters of pre-trained networks: their files, and how a new network starts from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from egmae_jax.core.files import DamagedFileError
from egmae_jax.core.tensors import read_safetensors, write_safetensors
from egmae_jax.models.init import abstract_variables
from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.models.timm_problems import differences

PyTree = Any


class MisfitError(ValueError):
    """Variables are not those of a network.

    Attributes:
        problems: what is missing, extra or of another shape, as `timm_problems.differences` lists.
    """

    def __init__(self, problems: Sequence[str]):
        super().__init__("The pre-trained variables do not fit:\n  " + "\n  ".join(problems))
        self.problems = problems


def require_fit(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    """Checks that two sets of leaves, by path, have the same paths and shapes.

    Raises:
        MisfitError: leaves are missing, extra or of another shape; the message names all of them.
    """
    shapes, found = ({path: x.shape for path, x in leaves.items()} for leaves in (expected, actual))
    if problems := differences(shapes, found):
        raise MisfitError(problems)


def save_params(path: Path, params: PyTree) -> None:
    """Writes parameters to a safetensors file, with names such as 'encoder/stem/conv/kernel'."""
    flat = traverse_util.flatten_dict(params, sep="/")
    write_safetensors(path, {name: np.asarray(leaf) for name, leaf in flat.items()})


def load_params(path: Path) -> PyTree:
    """Reads the parameters that `save_params` wrote, as a nested dict of numpy arrays.

    Raises:
        DamagedFileError: the file is missing or damaged.
    """
    try:
        flat = read_safetensors(path)
    except ValueError as error:
        raise DamagedFileError(path, error) from None
    groups = {name[:i] for name in flat for i, letter in enumerate(name) if letter == "/"}
    if both := sorted(groups & flat.keys()):
        raise DamagedFileError(path, f"{both[0]!r} is a tensor and a group of tensors")
    return traverse_util.unflatten_dict(flat, sep="/")


def load_autoencoder(path: Path, model: MaskedAutoencoder) -> PyTree:
    """Reads the parameters of a pre-trained autoencoder.

    Args:
        path: safetensors file that `save_params` wrote.
        model: the masked autoencoder.

    Raises:
        DamagedFileError: the file is missing or damaged, does not fit the model, or has values that
            are not finite float32.
    """
    params, expected = load_params(path), abstract_variables(model)["params"]
    try:
        require_fit(*(traverse_util.flatten_dict(x, sep="/") for x in (expected, params)))
    except MisfitError as error:
        raise DamagedFileError(path, error) from None
    if not all(x.dtype == np.float32 and np.isfinite(x).all() for x in jax.tree.leaves(params)):
        raise DamagedFileError(path, "it holds values that are not finite float32")
    return params


def start_pretraining(fresh: PyTree, weights: Mapping[str, np.ndarray]) -> tuple[PyTree, bool]:
    """Returns the parameters at the start of pre-training that continues from other weights.

    Args:
        fresh: initial parameters of the masked autoencoder.
        weights: parameters by path, such as 'encoder/stem/conv/kernel'. They must have all of the
            encoder. Their decoder and mask token are taken only if they have all of them in the
            same shapes.

    Returns:
        The parameters, and whether decoder and mask token are those of `weights`.

    Raises:
        MisfitError: the encoder does not fit; the message names the leaves that differ.
    """
    flat = traverse_util.flatten_dict(fresh, sep="/")
    (encoder, rest), (new_encoder, new_rest) = (
        (
            {path: leaf for path, leaf in leaves.items() if path.startswith("encoder/")},
            {path: leaf for path, leaf in leaves.items() if not path.startswith("encoder/")},
        )
        for leaves in (flat, weights)
    )
    require_fit(encoder, new_encoder)
    shapes, new_shapes = ({k: x.shape for k, x in leaves.items()} for leaves in (rest, new_rest))
    has_decoder = shapes == new_shapes
    flat |= new_encoder | (new_rest if has_decoder else {})
    return traverse_util.unflatten_dict(flat, sep="/"), has_decoder


def start_finetuning(fresh: PyTree, pretrained: PyTree, *, keep_fresh: Sequence[str]) -> PyTree:
    """Returns the variables at the start of fine-tuning: pre-trained ones with a new head.

    Args:
        fresh: initial variables of the classifier, {"params": ..., "batch_stats": ...}.
        pretrained: pre-trained variables.
        keep_fresh: path prefixes of the leaves to take from `fresh`, such as 'head/'. `pretrained`
            must have all other leaves, with the same shapes, and no further ones.

    Raises:
        MisfitError: leaves are missing, extra or of another shape; the message names all of them.
    """
    kept = tuple(f"{collection}/{prefix}" for collection in fresh for prefix in keep_fresh)
    flat_fresh, flat_pretrained = (
        traverse_util.flatten_dict(tree, sep="/") for tree in (fresh, pretrained)
    )
    expected, actual = (
        {path: leaf for path, leaf in flat.items() if not path.startswith(kept)}
        for flat in (flat_fresh, flat_pretrained)
    )
    require_fit(expected, actual)
    return traverse_util.unflatten_dict(flat_fresh | actual, sep="/")
