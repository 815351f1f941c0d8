"""Measures how entropy and noise are distributed over images, and relative to lesions."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from scipy import stats

from egmae_jax.evaluation.metrics import mean_std
from egmae_jax.explain.panels import Panels, to_pixels

REGIONS = ("core", "inside", "ring", "outside")
_QUANTITIES = ("entropy", "noise_variance", "masked_share", "contrast")
_ROUNDING = 1e-5  # smaller differences are rounding errors and count as 0 in the rank tests


def regions(lesion: np.ndarray, patch_size: int) -> dict[str, np.ndarray]:
    """Returns masks of the regions of an image relative to its lesion.

    Args:
        lesion: lesion mask, bool [H, W].
        patch_size: side of a patch in pixels.

    Returns:
        Masks by name, bool [H, W]: 'inside', the lesion; 'core', the patches that lie entirely in
        the lesion; 'ring', the pixels up to one patch size around it; and 'outside', the rest.
    """
    distance = cv2.distanceTransform((~lesion).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ring = (distance <= patch_size) & ~lesion
    is_inside = np.asarray(_blocks(lesion, patch_size).all(axis=(1, 3)))
    core = to_pixels(is_inside, lesion.shape[0])
    return {"core": core, "inside": lesion, "ring": ring, "outside": ~lesion & ~ring}


def _blocks(values: np.ndarray, patch_size: int) -> np.ndarray:
    """Reshapes pixels into patches: [H, W] -> [H/P, P, W/P, P]."""
    height, width = values.shape
    return values.reshape(height // patch_size, patch_size, width // patch_size, patch_size)


def measure_lesion(panel: Panels, lesion: np.ndarray) -> dict[str, Any]:
    """Measures how the corruption of one image is distributed relative to its lesion.

    Every pixel has the values of its patch, so a patch on the outline of the lesion counts in each
    region in proportion to its area there. The region 'core' has no such patches.

    Args:
        panel: image as pre-training sees it.
        lesion: lesion mask of the same view, bool [H, W], not empty.

    Returns:
        - 'area_share': the lesion's share of the area.
        - 'entropy' (nats), 'noise_variance' (squared normalised units), 'masked_share' and
          'contrast' (standard deviation of the grey values in a patch): the mean in each of
          REGIONS, None in an empty region.
        - 'noise_share' and 'masked_within': the lesion's shares of the total noise variance and of
          the masked area, None without noise or without masked patches.
        - 'noise_enrichment' and 'mask_enrichment': these shares, divided by 'area_share'.
    """
    side = lesion.shape[0]
    grey = panel.pixels.mean(axis=-1)
    patch = side // panel.mask.shape[0]
    quantities = {
        "entropy": to_pixels(panel.entropy, side),
        "noise_variance": to_pixels(np.square(panel.sigma), side),
        "masked_share": to_pixels(panel.mask, side),
        "contrast": to_pixels(_blocks(grey, patch).std(axis=(1, 3)), side),
    }
    masks = regions(lesion, patch)
    result: dict[str, Any] = {"area_share": float(lesion.mean())}
    for name, values in quantities.items():
        result[name] = {
            region: float(values[mask].mean()) if mask.any() else None
            for region, mask in masks.items()
        }
    for share, enrichment, name in (
        ("noise_share", "noise_enrichment", "noise_variance"),
        ("masked_within", "mask_enrichment", "masked_share"),
    ):
        values = quantities[name].astype(np.float64)
        total = values.sum()
        result[share] = float(values[lesion].sum() / total) if total else None
        result[enrichment] = result[share] / result["area_share"] if total else None
    return result


def summarize_lesions(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Averages the results of `measure_lesion` over images, with paired tests.

    The tests are two-sided Wilcoxon signed-rank tests: of 'core' and 'inside' against 'ring' and
    'outside', and of the logarithm of an enrichment against 0. Images of one group (near-duplicates
    or one patient) are not independent, so the mean of a group counts as one observation.

    Args:
        rows: results of `measure_lesion`, each with the image's 'group'.

    Returns:
        Mean and standard deviation of each quantity by region, and of the differences between
        regions and the enrichments, these with the p-value 'p'.
    """
    groups = [row["group"] for row in rows]
    summary: dict[str, Any] = {
        "images": len(rows),
        "groups": len(set(groups)),
        "images_with_core": sum(row["entropy"]["core"] is not None for row in rows),
        "area_share": average([row["area_share"] for row in rows]),
    }
    for name in _QUANTITIES:
        summary[name] = {region: average([row[name][region] for row in rows]) for region in REGIONS}
        for first, second in itertools.product(("core", "inside"), ("ring", "outside")):
            pairs = [(row[name][first], row[name][second]) for row in rows]
            differences = [None if None in pair else pair[0] - pair[1] for pair in pairs]
            p = _wilcoxon(differences, groups)
            summary[name][f"{first} - {second}"] = {**average(differences), "p": p}
    for name in ("noise_enrichment", "mask_enrichment"):
        ratios = [row[name] for row in rows]
        # The lower limit gives a lesion without noise the lowest rank.
        logarithms = [None if ratio is None else math.log(max(ratio, 1e-6)) for ratio in ratios]
        summary[name] = {**average(ratios), "p": _wilcoxon(logarithms, groups)}
    return summary


def measure_image(panel: Panels) -> dict[str, float]:
    """Measures one image: mean entropy and noise variance, shares of masked and of flat patches."""
    return {
        "entropy": float(panel.entropy.mean()),
        "noise_variance": float(np.square(panel.sigma).mean()),
        "masked_share": float(panel.mask.mean()),
        "flat_share": float((panel.entropy == 0).mean()),
    }


def summarize_images(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Averages the results of `measure_image` over images."""
    means = {name: average([row[name] for row in rows]) for name in rows[0]}
    return {"images": len(rows), **means}


def average(values: Sequence[float | None]) -> dict[str, float | None]:
    """Returns mean and standard deviation of the values that are not None; None for too few."""
    present = [value for value in values if value is not None]
    return mean_std(present) if present else {"mean": None, "std": None}


def _wilcoxon(differences: Sequence[float | None], groups: Sequence[int]) -> float | None:
    """Returns the p-value of Wilcoxon's test of the groups' mean differences, None for too few."""
    members: dict[int, list[float]] = {}
    for group, difference in zip(groups, differences, strict=True):
        if difference is not None:
            members.setdefault(group, []).append(difference)
    means = [float(np.mean(values)) for values in members.values()]
    means = [0.0 if abs(mean) < _ROUNDING else mean for mean in means]
    return float(stats.wilcoxon(means).pvalue) if len(means) > 1 and any(means) else None
