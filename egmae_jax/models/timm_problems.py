"""Error messages for tensors that do not fit a network."""

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
    add_classifier,
    as_timm,
    batch_counters,
    expected_tensors,
    num_classes,
)

_SPARSE = re.compile(r"\.dwconv\.kernel$")  # in Facebook's sparse pre-training of ConvNeXt V2
_MAX_LISTED = 10  # tensors named in a message
# Tensors of the first layer are listed first, because they identify a network best.
_STEM = re.compile(r": (.+[./])?(stem|conv1|features\.0|downsample_layers\.0|embeddings)\.")


def list_problems(tensors: Mapping[str, np.ndarray], expected: Expected) -> list[str]:
    """Lists every tensor that is missing, extra, or of another shape or not of a float dtype.

    Args:
        tensors: tensors by timm's names.
        expected: result of `expected_tensors`.
    """
    counters = batch_counters(expected)
    tensors = {key: x for key, x in tensors.items() if key not in counters}
    problems = [  # the shape of a missing classifier is unknown
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
        if not jnp.issubdtype(x.dtype, jnp.floating)  # np.issubdtype does not know bfloat16
    ]
    return problems


def explain_misfit(
    tensors: Mapping[str, np.ndarray],
    problems: list[str],
    model_name: str,
    source: str | os.PathLike,
    classifier: bool,
) -> str:
    """Returns a message that explains why tensors do not fit a model, and names those that differ.

    Args:
        tensors: tensors by the names in the checkpoint.
        problems: result of `list_problems`.
        model_name: one of `models.names()`.
        source: origin of the tensors.
        classifier: whether the tensors must include a classifier.
    """
    if any(map(_SPARSE.search, tensors)):
        return (
            f"{source} comes from ConvNeXt V2's sparse pre-training (FCMAE), which cannot be "
            "converted. Use fine-tuned weights, or timm's weights of the same pre-training, such "
            "as timm/convnextv2_atto.fcmae."
        )
    by_prefix = _problems_by_prefix(tensors, model_name, classifier)
    fitting = [prefix for prefix, remaining in by_prefix.items() if not remaining]
    if "" in fitting:
        others = [key for key in tensors if key.startswith(tuple(by_prefix.keys() - {""}))]
        return (
            f"{source} has the tensors of {model_name} and {len(others)} others "
            f"({shorten_list(others, most=3)}): save it without these (docs/pytorch.md)."
        )
    if len(fitting) > 1:
        return (
            f"{source} has the tensors of {model_name} several times, under names that begin with "
            f"{' and '.join(map(repr, fitting))}: save one of these sets without its prefix "
            "(docs/pytorch.md)."
        )
    if fitting:
        (prefix,) = fitting
        others = [key for key in tensors if not key.startswith(prefix)]
        without_others = (
            f", and without the {len(others)} others ({shorten_list(others, most=3)})"
            if others
            else ""
        )
        return (
            f"{source} has the tensors of {model_name} under names that begin with {prefix!r}: "
            f"save them without it{without_others} (docs/pytorch.md)."
        )
    if by_prefix:
        prefix, problems = min(by_prefix.items(), key=lambda item: len(item[1]))
        return (
            f"{source} has names that begin with {prefix!r}, and without it does not fit "
            f"{model_name} either; {len(problems)} tensors differ:\n  {format_problems(problems)}"
        )
    return (
        f"{source} does not fit {model_name}; {len(problems)} tensors differ:\n  "
        f"{format_problems(problems)}"
    )


def _problems_by_prefix(
    tensors: Mapping[str, np.ndarray], model_name: str, classifier: bool
) -> dict[str, list[str]]:
    """Finds prefixes of names without which most tensors of a model fit.

    Returns:
        The remaining problems by prefix. If there are prefixes, '' stands for the names without
        any of them.
    """
    keys = {path: key for key, (path, _, _) in expected_tensors(model_name, 1).items()}
    first = next(key for path, key in keys.items() if path.startswith(("stem/", "features_0/")))
    anchors = [re.escape(first)]
    if models.family(model_name) == "convnext":
        anchors += [anchor for anchor, _ in OTHER_NAMES.values()]
    prefixed = re.compile(rf"(.+?[./])(?:{'|'.join(anchors)})")
    prefixes = tuple(dict.fromkeys(match[1] for match in map(prefixed.fullmatch, tensors) if match))
    groups = {
        prefix: {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
        for prefix in prefixes
    }
    if prefixes:
        groups[""] = {k: x for k, x in tensors.items() if not k.startswith(prefixes)}
    problems = {}
    for prefix, group in groups.items():
        _, group = as_timm(group, model_name)
        if not classifier:
            group = add_classifier(group, model_name)
        expected = expected_tensors(model_name, num_classes(group, model_name))
        if 2 * len(expected.keys() & group.keys()) > len(expected):
            problems[prefix] = list_problems(group, expected)
    return problems


def format_problems(problems: Sequence[str]) -> str:
    """Formats about ten of the problems, some of each kind, and the number of the others."""
    by_kind: dict[str, list[str]] = {}
    for problem in sorted(problems, key=lambda problem: not _STEM.search(problem)):
        by_kind.setdefault(problem.partition(":")[0], []).append(problem)
    most = _MAX_LISTED // max(len(by_kind), 1)
    lines = []
    for kind, group in by_kind.items():
        lines += group[:most]
        if len(group) > most:
            lines.append(f"and {len(group) - most} more {kind}")
    return "\n  ".join(lines)
