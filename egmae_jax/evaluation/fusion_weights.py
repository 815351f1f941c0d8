"""How an ASFF weighs mid-level detail against high-level semantics, image by image and by class.

`models.asff.fusion_weights` computes them; a run gives those of its test images in results.json.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BRANCHES = ("mid", "high")  # of the network: its third stage and its fourth


def by_class(weights: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Mean and sample deviation of the weights over the images of each true class.

    Args:
        weights: [N, 2] by BRANCHES; each image's sum to 1.
        labels: int [N].
        classes: their names; those without an image are left out.

    Returns:
        {class: {"images": n, "mid": {"mean": ..., "std": ...}, "high": ...}}; the deviation is None
        for a single image.
    """
    found: dict[str, Any] = {}
    for label, name in enumerate(classes):
        members = np.asarray(weights, np.float64)[labels == label]
        if not len(members):
            continue
        found[name] = {"images": len(members)}
        for branch, values in zip(BRANCHES, members.T, strict=True):
            std = float(values.std(ddof=1)) if len(values) > 1 else None
            found[name][branch] = {"mean": float(values.mean()), "std": std}
    return found


def average(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{class: {"mid": {"mean": ..., "std": ...}, "high": ...}}: `by_class` averaged over rounds."""
    averaged: dict[str, Any] = {}
    for name in dict.fromkeys(name for found in rounds for name in found):
        rows = [found[name] for found in rounds if name in found]
        averaged[name] = {}
        for branch in BRANCHES:
            known = {
                key: [x for row in rows if (x := row[branch][key]) is not None]
                for key in ("mean", "std")
            }
            averaged[name][branch] = {
                key: float(np.mean(values)) if values else None for key, values in known.items()
            }
    return averaged
