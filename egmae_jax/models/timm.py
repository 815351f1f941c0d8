"""Checkpoints of timm and torchvision into our variables and back, without torch.

A checkpoint is a safetensors or npz file with timm's names (SqueezeNet: torchvision's; ResNet's are
the same in both), or of a ConvNeXt with Facebook's, Hugging Face's or torchvision's. `PATTERNS` and
`OTHER_NAMES` are the whole translation; a file must hold exactly the tensors the model has, or the
error says how many are missing, extra or of another shape, and which. Nothing is loaded by half.
"""

import functools
import itertools
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from egmae_jax import models
from egmae_jax.core.errors import shorten_list
from egmae_jax.core.tensors import write_safetensors
from egmae_jax.models import registry, weights
from egmae_jax.models.init import abstract_variables
from egmae_jax.models.layouts import CONV, DENSE, DENSE_AS_CONV, VECTOR, Layout
from egmae_jax.models.weights import CheckpointError

PyTree = Any
logger = logging.getLogger(__name__)


# timm builds the blocks' MLP of its small ConvNeXts from 1x1 convolutions (`conv_mlp=True`).
_CONV_MLP = re.compile(r"convnext(v2)?_(atto|femto|pico|nano)")
_MLP = "MLP"  # stands in PATTERNS for DENSE or DENSE_AS_CONV, by model

_Patterns = tuple[tuple[str, str, Layout | str], ...]
_Expected = dict[str, tuple[str, tuple[int, ...], Layout]]

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
_SPARSE = re.compile(r"\.dwconv\.kernel$")  # of Facebook's pre-training of ConvNeXt V2
_SHOWN = 10  # tensors that an error names
_STEM = re.compile(r": (.+[./])?(stem|conv1|features\.0|downsample_layers\.0|embeddings)\.")


def load(
    source: str | os.PathLike = "timm/convnext_tiny.fb_in1k",
    model_name: str = "convnext_tiny",
    *,
    finite: bool = True,
    classifier: bool = True,
) -> PyTree:
    """Reads a checkpoint of timm's or torchvision's.

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
    leaves = _flatten(variables).items()
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
        tensors: of every variable of the model, and no others but batch norm's counters.
        model_name: one of `models.names()`.
        source: where they come from, for the error.
        classifier: refuses tensors without one; else its place is taken by zeros.

    Returns:
        Variables, as of `load`.

    Raises:
        CheckpointError: the tensors do not fit the model; says why, and names those that differ.
    """
    given = tensors
    library, tensors = as_timm(tensors, model_name)
    if not classifier:
        tensors = _with_classifier(tensors, model_name)
    expected = _expected(model_name, _num_classes(tensors, model_name))
    problems = _problems(tensors, expected)
    if problems:
        raise CheckpointError(_cause(given, problems, model_name, source, classifier))
    if library:
        logger.info("%s has %s names of a ConvNeXt: read as timm's", source, library)
    with np.errstate(over="ignore"):  # becomes infinite, which `load` tells
        flat = {
            our_path: np.ascontiguousarray(layout.to_jax(tensors[key]), np.float32)
            for key, (our_path, _, layout) in expected.items()
        }
    return _unflatten(flat)


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
            continue  # of two networks
        shapes = {k: x for k, (_, x, _) in _expected(model_name, 1).items()}
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


def fits(tensors: Mapping[str, np.ndarray], model_name: str) -> bool:
    """Whether `convert` would take them."""
    _, tensors = as_timm(tensors, model_name)
    if classifier_bias(model_name) not in tensors:
        return False
    return not _problems(tensors, _expected(model_name, _num_classes(tensors, model_name)))


def _with_classifier(tensors: dict[str, np.ndarray], model_name: str) -> dict[str, np.ndarray]:
    zeros = {
        key: np.zeros(shape, np.float32)
        for key, (our_path, shape, _) in _expected(model_name, 1).items()
        if our_path.startswith("head/fc/")
    }
    return tensors if tensors.keys() & zeros.keys() else zeros | tensors


def _num_classes(tensors: Mapping[str, np.ndarray], model_name: str) -> int:
    bias = classifier_bias(model_name)
    return tensors[bias].size if bias in tensors else 1


def _cause(
    tensors: Mapping[str, np.ndarray],
    problems: list[str],
    model_name: str,
    source: str | os.PathLike,
    classifier: bool,
) -> str:
    """Why tensors do not fit a model, in a sentence, and which of them."""
    if any(map(_SPARSE.search, tensors)):
        return (
            f"{source} is of ConvNeXt V2's sparse pre-training (FCMAE), which is not converted. "
            "Take fine-tuned weights, or timm's of the same pre-training, such as "
            "timm/convnextv2_atto.fcmae."
        )
    by_prefix = _problems_by_prefix(tensors, model_name, classifier)
    fitting = [prefix for prefix, left in by_prefix.items() if not left]
    if "" in fitting:
        others = [key for key in tensors if key.startswith(tuple(by_prefix.keys() - {""}))]
        return (
            f"{source} has the tensors of {model_name} and {len(others)} others "
            f"({shorten_list(others, most=3)}): save it without these (docs/pytorch.md)."
        )
    if len(fitting) > 1:
        return (
            f"{source} has the tensors of {model_name} several times, under names that begin with "
            f"{' and '.join(map(repr, fitting))}: save those of one without it (docs/pytorch.md)."
        )
    if fitting:
        (prefix,) = fitting
        others = [key for key in tensors if not key.startswith(prefix)]
        alone = (
            f", and without the {len(others)} others ({shorten_list(others, most=3)})"
            if others
            else ""
        )
        return (
            f"{source} has the tensors of {model_name} under names that begin with {prefix!r}: "
            f"save them without it{alone} (docs/pytorch.md)."
        )
    if by_prefix:
        prefix, problems = min(by_prefix.items(), key=lambda item: len(item[1]))
        return (
            f"{source} has names that begin with {prefix!r}, and without it does not fit "
            f"{model_name} either; {len(problems)} tensors differ:\n  {_lines(problems)}"
        )
    return (
        f"{source} does not fit {model_name}; {len(problems)} tensors differ:\n  {_lines(problems)}"
    )


def _problems_by_prefix(
    tensors: Mapping[str, np.ndarray], model_name: str, classifier: bool
) -> dict[str, list[str]]:
    """{what the names of a model begin with: what does not fit without it}, where most fits.

    With '' of the names that begin with none of the others, where there are others.
    """
    places = {path: key for key, (path, _, _) in _expected(model_name, 1).items()}
    first = next(key for path, key in places.items() if path.startswith(("stem/", "features_0/")))
    anchors = [re.escape(first)]
    if models.family(model_name) == "convnext":
        anchors += [anchor for anchor, _ in OTHER_NAMES.values()]
    ends = re.compile(rf"(.+?[./])(?:{'|'.join(anchors)})")
    prefixes = tuple(dict.fromkeys(match[1] for match in map(ends.fullmatch, tensors) if match))
    parts = {
        prefix: {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
        for prefix in prefixes
    }
    if prefixes:
        parts[""] = {k: x for k, x in tensors.items() if not k.startswith(prefixes)}
    found = {}
    for prefix, without in parts.items():
        _, without = as_timm(without, model_name)
        if not classifier:
            without = _with_classifier(without, model_name)
        expected = _expected(model_name, _num_classes(without, model_name))
        if 2 * len(expected.keys() & without.keys()) > len(expected):
            found[prefix] = _problems(without, expected)
    return found


def _lines(problems: Sequence[str]) -> str:
    """At most ten of the problems, some of each kind, and how many more there are."""
    if len(problems) > _SHOWN:  # then rather the first layer's, which tell what it is
        problems = sorted(problems, key=lambda problem: not _STEM.search(problem))
    by_kind: dict[str, list[str]] = {}
    for problem in problems:
        by_kind.setdefault(problem.partition(":")[0], []).append(problem)
    in_turn = [x for each in itertools.zip_longest(*by_kind.values()) for x in each if x]
    shown = set(in_turn[:_SHOWN])
    lines = [x for of_kind in by_kind.values() for x in of_kind if x in shown]
    rest = [
        f"{len(of_kind) - len(shown.intersection(of_kind))} {kind}"
        for kind, of_kind in by_kind.items()
        if not shown.issuperset(of_kind)
    ]
    if rest:
        lines.append(f"and {len(problems) - len(lines)} more: {', '.join(rest)}")
    return "\n  ".join(lines)


def _problems(tensors: Mapping[str, np.ndarray], expected: _Expected) -> list[str]:
    counters = _counters(expected)
    tensors = {key: x for key, x in tensors.items() if key not in counters}
    problems = [  # a classifier that is missing does not say of how many classes
        f"missing: {key}" + f" {shape}" * (not path.startswith("head/fc/"))
        for key, (path, shape, _) in expected.items()
        if key not in tensors
    ]
    problems += [
        f"extra: {key} {tuple(x.shape)}" for key, x in tensors.items() if key not in expected
    ]
    problems += [
        f"shape: {key} is {tuple(tensors[key].shape)}, the model's is {shape}"
        for key, (_, shape, _) in expected.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    problems += [
        f"dtype: {key} is {x.dtype}, not a floating-point type"
        for key, x in tensors.items()
        if not jnp.issubdtype(x.dtype, jnp.floating)  # knows bfloat16, numpy does not
    ]
    return problems


def save(variables: PyTree, path: str | os.PathLike, model_name: str) -> None:
    """Writes a classifier's variables as a safetensors file that PyTorch's model loads strictly.

    Raises:
        CheckpointError: the variables are not those of `model_name`; names all that differ.
    """
    flat = {name: np.asarray(leaf) for name, leaf in _flatten(variables).items()}
    classes = flat["head/fc/bias"].shape[0] if "head/fc/bias" in flat else 1
    expected = _expected(model_name, classes)
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
        raise CheckpointError(f"these are not the variables of {model_name}:\n  {_lines(problems)}")
    tensors |= dict.fromkeys(_counters(expected), np.zeros((), np.int64))
    write_safetensors(Path(path), tensors)


@functools.lru_cache(maxsize=8)
def _expected(model_name: str, classes: int) -> _Expected:
    """PyTorch's key -> (our path, its shape there, layout), for every variable of the model."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    abstract = abstract_variables(models.create(model_name, classes), image)
    mlp_layout = DENSE_AS_CONV if _CONV_MLP.fullmatch(model_name) else DENSE
    expected = {}
    for path, leaf in _flatten(abstract).items():
        key, layout = _translate(path, model_name)
        layout = mlp_layout if layout is _MLP else layout
        # Broadcast zeros have the shape but take no memory.
        their_shape = layout.to_torch(np.broadcast_to(np.float32(0), leaf.shape)).shape
        expected[key] = (path, their_shape, layout)
    return expected


def _flatten(variables: PyTree) -> dict[str, Any]:
    """Leaves of all collections by path, 'stem/bn/scale', 'stem/bn/mean', as PyTorch keeps them."""
    return {
        path: leaf
        for collection in variables.values()
        for path, leaf in traverse_util.flatten_dict(collection, sep="/").items()
    }


def _unflatten(flat: Mapping[str, Any]) -> PyTree:
    """The inverse of `_flatten`."""
    statistics = {path: x for path, x in flat.items() if path.endswith(("/mean", "/var"))}
    variables = {"params": {path: x for path, x in flat.items() if path not in statistics}}
    if statistics:
        variables["batch_stats"] = statistics
    return {name: traverse_util.unflatten_dict(x, sep="/") for name, x in variables.items()}


def classifier_bias(model_name: str) -> str:
    """PyTorch's key of the classifier's bias, which has as many elements as there are classes."""
    return _translate("head/fc/bias", model_name)[0]


def _counters(keys: Iterable[str]) -> set[str]:
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
