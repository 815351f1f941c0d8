"""Error messages for tensors that do not fit a network."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from egmae_jax.models.timm_names import Expected, batch_counters

_SPARSE = re.compile(r"\.dwconv\.kernel$")  # in Facebook's sparse pre-training of ConvNeXt V2
_MAX_LISTED = 10  # tensors named in a message
# Tensors of the first layer are listed first, because they identify a network best.
_STEM = re.compile(r": (.+[./])?(stem|conv1|features\.0|downsample_layers\.0|embeddings)\.")


def differences(
    expected: Mapping[str, tuple[int, ...] | None], actual: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Lists which tensors are missing, extra or of another shape, in this order.

    Args:
        expected: shape of each tensor of the model by name; None if any will do.
        actual: shape of each tensor at hand by name.
    """
    shared = [name for name in expected if name in actual]
    return [
        *(f"missing: {k} {x or ''}".rstrip() for k, x in expected.items() if k not in actual),
        *(f"extra: {k} {x}" for k, x in actual.items() if k not in expected),
        *(
            f"shape: {k} is {actual[k]}, the model's is {expected[k]}"
            for k in shared
            if expected[k] not in (None, actual[k])
        ),
    ]


def list_problems(tensors: Mapping[str, np.ndarray], expected: Expected) -> list[str]:
    """Lists every tensor that is missing, extra, or of another shape or not of a float dtype.

    Args:
        tensors: tensors by timm's names.
        expected: result of `expected_tensors`.
    """
    counters = batch_counters(expected)
    tensors = {key: x for key, x in tensors.items() if key not in counters}
    shapes = {  # that of a missing classifier is unknown
        key: None if path.startswith("head/fc/") and key not in tensors else shape
        for key, (path, shape, _) in expected.items()
    }
    problems = differences(shapes, {key: tuple(x.shape) for key, x in tensors.items()})
    problems += [
        f"dtype: {key} is {x.dtype}, not a floating-point type"
        for key, x in tensors.items()
        if not jnp.issubdtype(x.dtype, jnp.floating)  # np.issubdtype does not know bfloat16
    ]
    return problems


def explain_misfit(
    tensors: Iterable[str], problems: Sequence[str], model_name: str, source: str | os.PathLike
) -> str:
    """Returns a message that explains why tensors do not fit a model, and names those that differ.

    Args:
        tensors: names of the tensors in the checkpoint.
        problems: result of `list_problems`.
        model_name: one of `models.names()`.
        source: origin of the tensors.
    """
    if any(map(_SPARSE.search, tensors)):
        return (
            f"{source} comes from ConvNeXt V2's sparse pre-training (FCMAE), which cannot be "
            "converted. Use fine-tuned weights, or timm's weights of the same pre-training, such "
            "as timm/convnextv2_atto.fcmae."
        )
    return (
        f"{source} does not fit {model_name}; {len(problems)} tensors differ:\n  "
        f"{format_problems(problems)}"
    )


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
