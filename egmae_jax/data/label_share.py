"""Draws the training images whose labels are used, if that is only a share of them."""

from collections.abc import Sequence

import numpy as np

from egmae_jax.data import splits
from egmae_jax.data.datasets import DataError


def draw(
    labels: np.ndarray, groups: np.ndarray, classes: Sequence[str], *, share: float, seed: int
) -> np.ndarray:
    """Draws whole groups of images, so that each class keeps about its share of images.

    Groups with the same rarest class are a stratum. Of each stratum, in random order, the first
    groups are drawn, at least one, whose images come nearest to the share; of two equally near
    numbers, the larger. With the same seed, a smaller share is therefore a subset of a larger one.

    Args:
        labels: class of each image, int [N].
        groups: group of each image, int [N].
        classes: names of the classes.
        share: share of the images to draw, above 0 and at most 1.
        seed: seed of the random order of the groups.

    Returns:
        bool [N], True for images that are drawn.

    Raises:
        DataError: no image of a class is drawn.
    """
    rng = np.random.default_rng(seed)
    members, content = splits.count_by_group(labels, groups)
    total = content.sum(axis=0)
    rarest = np.where(content > 0, total, total.max() + 1).argmin(axis=1)
    shuffled = rng.permutation(len(content))
    drawn = np.zeros(len(content), bool)
    for stratum in np.unique(rarest):
        ordered = shuffled[rarest[shuffled] == stratum]
        images = content[ordered].sum(axis=1).cumsum()
        distance = np.round(np.abs(images - share * images[-1]), 9)
        drawn[ordered[: np.flatnonzero(distance == distance.min())[-1] + 1]] = True
    kept = drawn[members]
    if missing := [name for c, name in enumerate(classes) if not (labels[kept] == c).any()]:
        raise DataError(
            f"finetune.label_share={share:g} keeps no label of the class {missing[0]!r}, whose "
            "images are in groups (patients, lesions, near-duplicates) with rarer classes; use a "
            "larger share or another seed."
        )
    return kept
