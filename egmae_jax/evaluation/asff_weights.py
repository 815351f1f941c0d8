"""Statistics per class of the weights with which an ASFF fuses mid-level and high-level features.

`models.asff.fusion_weights` computes the weights of each image.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egmae_jax.evaluation.metrics import mean_std

BRANCHES = ("mid", "high")  # features of the third and the fourth stage of the network


def by_class(weights: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Returns mean and sample standard deviation of the fusion weights for each true class.

    Args:
        weights: fusion weights, float [N, 2] in the order of BRANCHES, with sum 1 per image.
        labels: label of each image, int [N], in which every class occurs.
        classes: names of the classes.

    Returns:
        {class: {"images": n, "mid": {"mean": ..., "std": ...}, "high": ...}}; the standard
        deviation is None for a single image.
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

    Rounds in which a class has a single image do not count for its standard deviation.
    """
    averages: dict[str, Any] = {name: {branch: {} for branch in BRANCHES} for name in rounds[0]}
    for name, branch, key in itertools.product(rounds[0], BRANCHES, ("mean", "std")):
        known = [row[name][branch][key] for row in rounds if row[name][branch][key] is not None]
        averages[name][branch][key] = float(np.mean(known)) if known else None
    return averages
