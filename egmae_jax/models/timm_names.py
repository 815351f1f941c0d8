"""What timm, torchvision, Facebook and Hugging Face call our variables, and how theirs lie.

`PATTERNS` and `OTHER_NAMES` are the whole translation.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from egmae_jax import models
from egmae_jax.models import registry
from egmae_jax.models.init import abstract_variables
from egmae_jax.models.layouts import CONV, DENSE, DENSE_AS_CONV, VECTOR, Layout

PyTree = Any

# timm builds the blocks' MLP of its small ConvNeXts from 1x1 convolutions (`conv_mlp=True`).
_CONV_MLP = re.compile(r"convnext(v2)?_(atto|femto|pico|nano)")
_MLP = "MLP"  # stands in PATTERNS for DENSE or DENSE_AS_CONV, by model

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
# our path (a regular expression), their key, layout; by `models.family`
PATTERNS: dict[str, _Patterns] = {
    "convnext": _CONVNEXT,
    "resnet": (
        *_BACKBONE,
        (r"head/fc/kernel", r"fc.weight", DENSE),
        (r"head/fc/bias", r"fc.bias", VECTOR),
    ),
    # Neither library has it: timm's names for the backbone, ours in PyTorch's style for the rest.
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


def _block(there: str, here: str) -> tuple[tuple[str, str], ...]:
    """Facebook's and Hugging Face's names in a ConvNeXt's block, which differ but in the norm's."""
    return (
        (rf"{there}\.(?:gamma|layer_scale_parameter)", rf"{here}.gamma"),
        (rf"{there}\.dwconv\.(weight|bias)", rf"{here}.conv_dw.\3"),
        (rf"{there}\.(?:norm|layernorm)\.(weight|bias)", rf"{here}.norm.\3"),
        (rf"{there}\.pwconv([12])\.(weight|bias)", rf"{here}.mlp.fc\3.\4"),
        (rf"{there}\.grn\.(?:gamma|weight)", rf"{here}.mlp.grn.weight"),
        (rf"{there}\.grn\.(?:beta|bias)", rf"{here}.mlp.grn.bias"),
    )


_HF = r"(?:convnext(?:v2)?\.)?"  # before a classifier's names, not before a backbone's alone
# What others call the tensors of a ConvNeXt: the first tensor's key, and (their key, a regular
# expression; timm's). Shapes differ by axes of length 1 alone.
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
    """PyTorch's key -> (our path, its shape there, layout), for every variable of the model."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    abstract = abstract_variables(models.create(model_name, classes), image)
    mlp_layout = DENSE_AS_CONV if _CONV_MLP.fullmatch(model_name) else DENSE
    expected = {}
    for path, leaf in flatten(abstract).items():
        key, layout = _translate(path, model_name)
        layout = mlp_layout if layout is _MLP else layout
        # Broadcast zeros have the shape but take no memory.
        their_shape = layout.to_torch(np.broadcast_to(np.float32(0), leaf.shape)).shape
        expected[key] = (path, their_shape, layout)
    return expected


def as_timm(
    tensors: Mapping[str, np.ndarray], model_name: str
) -> tuple[str, dict[str, np.ndarray]]:
    """Whose names the tensors have if not timm's ('' for these), and the tensors by timm's.

    Tensors that are no ConvNeXt's, and those of unknown names, stay as they are.
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
            name: _without_ones(tensors[key], shapes.get(name)) for key, name in names.items()
        }
    return "", dict(tensors)


def _first_match(patterns: Iterable[tuple[str, str]], key: str) -> str | None:
    matches = ((re.fullmatch(pattern, key), name) for pattern, name in patterns)
    return next((match.expand(name) for match, name in matches if match), None)


def _without_ones(x: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """The tensor in a shape that differs from its own by axes of length 1, if it does."""
    if shape is None or [n for n in x.shape if n != 1] != [n for n in shape if n != 1]:
        return x
    return x.reshape(shape)


def with_classifier(tensors: dict[str, np.ndarray], model_name: str) -> dict[str, np.ndarray]:
    """Tensors in timm's names, with a classifier of zeros where they have none."""
    zeros = {
        key: np.zeros(shape, np.float32)
        for key, (our_path, shape, _) in expected_tensors(model_name, 1).items()
        if our_path.startswith("head/fc/")
    }
    return tensors if tensors.keys() & zeros.keys() else zeros | tensors


def num_classes(tensors: Mapping[str, np.ndarray], model_name: str) -> int:
    """Number of classes of tensors in timm's names; 1 where there is no classifier."""
    bias = classifier_bias(model_name)
    return tensors[bias].size if bias in tensors else 1


def classifier_bias(model_name: str) -> str:
    """PyTorch's key of the classifier's bias, which has as many elements as there are classes."""
    return _translate("head/fc/bias", model_name)[0]


def batch_counters(keys: Iterable[str]) -> set[str]:
    """PyTorch's batch norms count their batches and never use the count with a momentum of 0.1."""
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
    """Leaves of all collections by path, 'stem/bn/scale', 'stem/bn/mean', as PyTorch keeps them."""
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
