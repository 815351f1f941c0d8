"""Names and axis orders of the variables in timm, torchvision, Facebook's and Hugging Face's code.

The tables `PATTERNS` and `OTHER_NAMES` define the whole translation.
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
from egmae_jax.models.layouts import CONV, DENSE, DENSE_AS_CONV, VECTOR, Layout

PyTree = Any

# In timm, the MLPs of these small ConvNeXts are 1x1 convolutions (`conv_mlp=True`).
_CONV_MLP = re.compile(r"convnext(v2)?_(atto|femto|pico|nano)")
_MLP = "MLP"  # placeholder in PATTERNS for DENSE or DENSE_AS_CONV, depending on the model

_Patterns = tuple[tuple[str, str, Layout | str], ...]
Expected = dict[str, tuple[str, tuple[int, ...], Layout]]

_CONVNEXT: _Patterns = (
    (r"stem/conv/kernel", r"stem.0.weight", CONV),
    (r"stem/conv/bias", r"stem.0.bias", VECTOR),
    (r"stem/norm/scale", r"stem.1.weight", VECTOR),
    (r"stem/norm/bias", r"stem.1.bias", VECTOR),
    (r"stages_(\d+)/downsample/norm/scale", r"stages.\1.downsample.0.weight", VECTOR),
    (r"stages_(\d+)/downsample/norm/bias", r"stages.\1.downsample.0.bias", VECTOR),
    (r"stages_(\d+)/downsample/conv/kernel", r"stages.\1.downsample.1.weight", CONV),
    (r"stages_(\d+)/downsample/conv/bias", r"stages.\1.downsample.1.bias", VECTOR),
    (r"stages_(\d+)/blocks_(\d+)/gamma", r"stages.\1.blocks.\2.gamma", VECTOR),
    (r"stages_(\d+)/blocks_(\d+)/conv_dw/kernel", r"stages.\1.blocks.\2.conv_dw.weight", CONV),
    (r"stages_(\d+)/blocks_(\d+)/conv_dw/bias", r"stages.\1.blocks.\2.conv_dw.bias", VECTOR),
    (r"stages_(\d+)/blocks_(\d+)/norm/scale", r"stages.\1.blocks.\2.norm.weight", VECTOR),
    (r"stages_(\d+)/blocks_(\d+)/norm/bias", r"stages.\1.blocks.\2.norm.bias", VECTOR),
    (r"stages_(\d+)/blocks_(\d+)/(fc\d)/kernel", r"stages.\1.blocks.\2.mlp.\3.weight", _MLP),
    (r"stages_(\d+)/blocks_(\d+)/(fc\d)/bias", r"stages.\1.blocks.\2.mlp.\3.bias", VECTOR),
    (r"stages_(\d+)/blocks_(\d+)/grn_scale", r"stages.\1.blocks.\2.mlp.grn.weight", VECTOR),
    (r"stages_(\d+)/blocks_(\d+)/grn_bias", r"stages.\1.blocks.\2.mlp.grn.bias", VECTOR),
    (r"head/norm/scale", r"head.norm.weight", VECTOR),
    (r"head/norm/bias", r"head.norm.bias", VECTOR),
    (r"head/fc/kernel", r"head.fc.weight", DENSE),
    (r"head/fc/bias", r"head.fc.bias", VECTOR),
)
_BACKBONE: _Patterns = (
    (r"stem/conv/kernel", r"conv1.weight", CONV),
    (r"stem/bn/scale", r"bn1.weight", VECTOR),
    (r"stem/bn/bias", r"bn1.bias", VECTOR),
    (r"stem/bn/(mean|var)", r"bn1.running_\1", VECTOR),
    (r"(layer\d)_(\d+)/(conv\d)/kernel", r"\1.\2.\3.weight", CONV),
    (r"(layer\d)_(\d+)/(bn\d)/scale", r"\1.\2.\3.weight", VECTOR),
    (r"(layer\d)_(\d+)/(bn\d)/bias", r"\1.\2.\3.bias", VECTOR),
    (r"(layer\d)_(\d+)/(bn\d)/(mean|var)", r"\1.\2.\3.running_\4", VECTOR),
    (r"(layer\d)_(\d+)/downsample/conv/kernel", r"\1.\2.downsample.0.weight", CONV),
    (r"(layer\d)_(\d+)/downsample/bn/scale", r"\1.\2.downsample.1.weight", VECTOR),
    (r"(layer\d)_(\d+)/downsample/bn/bias", r"\1.\2.downsample.1.bias", VECTOR),
    (r"(layer\d)_(\d+)/downsample/bn/(mean|var)", r"\1.\2.downsample.1.running_\3", VECTOR),
)
# By `models.family`: (path of the variable as a regular expression, key in PyTorch, layout).
PATTERNS: dict[str, _Patterns] = {
    "convnext": _CONVNEXT,
    "resnet": (
        *_BACKBONE,
        (r"head/fc/kernel", r"fc.weight", DENSE),
        (r"head/fc/bias", r"fc.bias", VECTOR),
    ),
    # Neither library has this network: timm's names for the backbone, names of our own otherwise.
    "asff_resnet": (
        *_BACKBONE,
        (r"fusion/(mid|high)/conv/kernel", r"fusion.\1.conv.weight", CONV),
        (r"fusion/(mid|high)/bn/scale", r"fusion.\1.bn.weight", VECTOR),
        (r"fusion/(mid|high)/bn/bias", r"fusion.\1.bn.bias", VECTOR),
        (r"fusion/(mid|high)/bn/(mean|var)", r"fusion.\1.bn.running_\2", VECTOR),
        (r"fusion/(fc\d)/kernel", r"fusion.\1.weight", DENSE),
        (r"fusion/(fc\d)/bias", r"fusion.\1.bias", VECTOR),
        (r"head/fc/kernel", r"head.fc.weight", DENSE),
        (r"head/fc/bias", r"head.fc.bias", VECTOR),
    ),
    "squeezenet": (
        (r"features_(\d+)/kernel", r"features.\1.weight", CONV),
        (r"features_(\d+)/bias", r"features.\1.bias", VECTOR),
        (r"features_(\d+)/(\w+)/kernel", r"features.\1.\2.weight", CONV),
        (r"features_(\d+)/(\w+)/bias", r"features.\1.\2.bias", VECTOR),
        (r"head/fc/kernel", r"classifier.1.weight", DENSE_AS_CONV),
        (r"head/fc/bias", r"classifier.1.bias", VECTOR),
    ),
}


def _block(theirs: str, timms: str) -> tuple[tuple[str, str], ...]:
    """Returns the patterns of a ConvNeXt block in Facebook's and Hugging Face's names.

    Args:
        theirs: regular expression of the block's prefix there, with two groups.
        timms: replacement with the block's prefix in timm.
    """
    return (
        (rf"{theirs}\.(?:gamma|layer_scale_parameter)", rf"{timms}.gamma"),
        (rf"{theirs}\.dwconv\.(weight|bias)", rf"{timms}.conv_dw.\3"),
        (rf"{theirs}\.(?:norm|layernorm)\.(weight|bias)", rf"{timms}.norm.\3"),
        (rf"{theirs}\.pwconv([12])\.(weight|bias)", rf"{timms}.mlp.fc\3.\4"),
        (rf"{theirs}\.grn\.(?:gamma|weight)", rf"{timms}.mlp.grn.weight"),
        (rf"{theirs}\.grn\.(?:beta|bias)", rf"{timms}.mlp.grn.bias"),
    )


_HF = r"(?:convnext(?:v2)?\.)?"  # prefix of a classifier's backbone; a backbone alone has none
# By library: key of a ConvNeXt's first tensor there, and (key there as a regular expression, key in
# timm). The shapes differ only by axes of length 1.
OTHER_NAMES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "Facebook's": (
        r"downsample_layers\.0\.0\.weight",
        (
            (r"downsample_layers\.0\.([01])\.(weight|bias)", r"stem.\1.\2"),
            (r"downsample_layers\.(\d+)\.([01])\.(weight|bias)", r"stages.\1.downsample.\2.\3"),
            *_block(r"stages\.(\d+)\.(\d+)", r"stages.\1.blocks.\2"),
            (r"norm\.(weight|bias)", r"head.norm.\1"),
            (r"head\.(weight|bias)", r"head.fc.\1"),
        ),
    ),
    "Hugging Face's": (
        rf"{_HF}embeddings\.patch_embeddings\.weight",
        (
            (rf"{_HF}embeddings\.patch_embeddings\.(weight|bias)", r"stem.0.\1"),
            (rf"{_HF}embeddings\.layernorm\.(weight|bias)", r"stem.1.\1"),
            (
                rf"{_HF}encoder\.stages\.(\d+)\.downsampling_layer\.([01])\.(weight|bias)",
                r"stages.\1.downsample.\2.\3",
            ),
            *_block(rf"{_HF}encoder\.stages\.(\d+)\.layers\.(\d+)", r"stages.\1.blocks.\2"),
            (rf"{_HF}layernorm\.(weight|bias)", r"head.norm.\1"),
            (r"classifier\.(weight|bias)", r"head.fc.\1"),
        ),
    ),
    "torchvision's": (
        r"features\.0\.0\.weight",
        (
            (r"features\.0\.([01])\.(weight|bias)", r"stem.\1.\2"),
            *(
                (rf"features\.{2 * i}\.([01])\.(weight|bias)", rf"stages.{i}.downsample.\1.\2")
                for i in (1, 2, 3)
            ),
            *(
                (rf"features\.{2 * i + 1}\.(\d+)\.{theirs}", rf"stages.{i}.blocks.\1.{timms}")
                for i in range(4)
                for theirs, timms in (
                    (r"layer_scale", "gamma"),
                    (r"block\.0\.(weight|bias)", r"conv_dw.\2"),
                    (r"block\.2\.(weight|bias)", r"norm.\2"),
                    (r"block\.3\.(weight|bias)", r"mlp.fc1.\2"),
                    (r"block\.5\.(weight|bias)", r"mlp.fc2.\2"),
                )
            ),
            (r"classifier\.0\.(weight|bias)", r"head.norm.\1"),
            (r"classifier\.2\.(weight|bias)", r"head.fc.\1"),
        ),
    ),
}


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
    mlp_layout = DENSE_AS_CONV if _CONV_MLP.fullmatch(model_name) else DENSE
    expected = {}
    for path, leaf in flatten(abstract).items():
        key, layout = _translate(path, model_name)
        layout = mlp_layout if layout is _MLP else layout
        # A broadcast array has the shape, but needs no memory.
        their_shape = layout.to_torch(np.broadcast_to(np.float32(0), leaf.shape)).shape
        expected[key] = (path, their_shape, layout)
    return expected


def as_timm(
    tensors: Mapping[str, np.ndarray], model_name: str
) -> tuple[str, dict[str, np.ndarray]]:
    """Translates the names of a ConvNeXt's tensors to timm's.

    Args:
        tensors: tensors by name.
        model_name: one of `models.names()`.

    Returns:
        The library of the names, such as "Facebook's" ('' for timm's), and the tensors by timm's
        names. Tensors of other models and with unknown names are not changed.
    """
    if models.family(model_name) != "convnext":
        return "", dict(tensors)
    for library, (first, patterns) in OTHER_NAMES.items():
        if not any(re.fullmatch(first, key) for key in tensors):
            continue
        names = {key: _first_match(patterns, key) or key for key in tensors}
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


def batch_counters(keys: Iterable[str]) -> set[str]:
    """Returns PyTorch's keys of the batch counters, which its batch norms save but do not use."""
    return {
        key.replace("running_mean", "num_batches_tracked")
        for key in keys
        if key.endswith("running_mean")
    }


def _translate(path: str, model_name: str) -> tuple[str, Any]:
    patterns = registry.patterns(model_name) or PATTERNS[models.family(model_name)]
    for pattern, key, layout in patterns:
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
