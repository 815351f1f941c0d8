"""How an ASFF weighs mid-level detail against high-level semantics, by class.

`models.asff.fusion_weights` computes the weights of each image.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egmae_jax.evaluation.metrics import mean_std

BRANCHES = ("mid", "high")  # the network's third stage and its fourth


def by_class(weights: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Mean and sample deviation of the fusion weights over the images of each true class.

    Args:
        weights: [N, 2], in the order of BRANCHES; those of an image sum to 1.
        labels: int [N], every class present.
        classes: names of the classes.

    Returns:
        {class: {"images": n, "mid": {"mean": ..., "std": ...}, "high": ...}}; the deviation is None
        for a single image.
    """
    weights = np.asarray(weights, np.float64)
    result: dict[str, Any] = {}
    for label, name in enumerate(classes):
        members = weights[labels == label]
        result[name] = {"images": len(members)}
        result[name] |= {key: mean_std(x) for key, x in zip(BRANCHES, members.T, strict=True)}
    return result


def average(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Averages the results of `by_class` over rounds: {class: {"mid": {"mean", "std"}, "high"}}.

    Rounds in which a class has a single image, and so no deviation, do not count for that.
    """
    averages: dict[str, Any] = {name: {branch: {} for branch in BRANCHES} for name in rounds[0]}
    for name, branch, key in itertools.product(rounds[0], BRANCHES, ("mean", "std")):
        known = [row[name][branch][key] for row in rounds if row[name][branch][key] is not None]
        averages[name][branch][key] = float(np.mean(known)) if known else None
    return averages
