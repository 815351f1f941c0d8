"""Why tensors do not fit a network, in sentences that name them."""

import os
import re
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from egmae_jax import models
from egmae_jax.core.errors import shorten_list
from egmae_jax.models.timm_names import (
    OTHER_NAMES,
    Expected,
    as_timm,
    batch_counters,
    expected_tensors,
    num_classes,
    with_classifier,
)

_SPARSE = re.compile(r"\.dwconv\.kernel$")  # Facebook's pre-training of ConvNeXt V2
_SHOWN = 10  # tensors that an error names
# Of the first layer, whose tensors tell best what network they are of.
_STEM = re.compile(r": (.+[./])?(stem|conv1|features\.0|downsample_layers\.0|embeddings)\.")


def list_problems(tensors: Mapping[str, np.ndarray], expected: Expected) -> list[str]:
    """Names every tensor that is missing, extra, or of another shape or type than expected."""
    counters = batch_counters(expected)
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


def cause(
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
            f"{model_name} either; {len(problems)} tensors differ:\n  {name_some(problems)}"
        )
    return (
        f"{source} does not fit {model_name}; {len(problems)} tensors differ:\n  "
        f"{name_some(problems)}"
    )


def _problems_by_prefix(
    tensors: Mapping[str, np.ndarray], model_name: str, classifier: bool
) -> dict[str, list[str]]:
    """{what the names of a model begin with: what does not fit without it}, where most fits.

    With '' of the names that begin with none of the others, where there are others.
    """
    places = {path: key for key, (path, _, _) in expected_tensors(model_name, 1).items()}
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
    problems = {}
    for prefix, without in parts.items():
        _, without = as_timm(without, model_name)
        if not classifier:
            without = with_classifier(without, model_name)
        expected = expected_tensors(model_name, num_classes(without, model_name))
        if 2 * len(expected.keys() & without.keys()) > len(expected):
            problems[prefix] = list_problems(without, expected)
    return problems


def name_some(problems: Sequence[str]) -> str:
    """About ten of the problems, some of each kind, and how many more there are."""
    by_kind: dict[str, list[str]] = {}
    for problem in sorted(problems, key=lambda problem: not _STEM.search(problem)):
        by_kind.setdefault(problem.partition(":")[0], []).append(problem)
    most = _SHOWN // max(len(by_kind), 1)
    lines = []
    for kind, of_kind in by_kind.items():
        lines += of_kind[:most]
        if len(of_kind) > most:
            lines.append(f"and {len(of_kind) - most} more {kind}")
    return "\n  ".join(lines)
