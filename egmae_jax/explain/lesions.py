"""Where the noise falls: over images, and relative to the outlines of lesions."""

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
_ROUNDING = 1e-5  # differences below it count as none: their ranks mean nothing


def regions(lesion: np.ndarray, patch_size: int) -> dict[str, np.ndarray]:
    """Divides an image by its lesion: bool [H, W] of each of REGIONS.

    'inside' is the lesion, 'ring' what is within a patch's width around it, 'outside' the rest;
    'core' are the patches that lie wholly inside.
    """
    distance = cv2.distanceTransform((~lesion).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near = (distance <= patch_size) & ~lesion
    whole = np.asarray(_blocks(lesion, patch_size).all(axis=(1, 3)))
    core = to_pixels(whole, lesion.shape[0])
    return {"core": core, "inside": lesion, "ring": near, "outside": ~lesion & ~near}


def _blocks(values: np.ndarray, patch_size: int) -> np.ndarray:
    """[H, W] -> [H/P, P, W/P, P]."""
    height, width = values.shape
    return values.reshape(height // patch_size, patch_size, width // patch_size, patch_size)


def measure_lesion(panel: Panels, lesion: np.ndarray) -> dict[str, Any]:
    """Measures where the corruption of one image falls relative to its lesion.

    A pixel has the values of its patch, so a patch on the border counts in each region by its share
    that lies there; 'core' has no such patches.

    Args:
        panel: the image as pre-training sees it.
        lesion: bool [H, W] of the same view, with any True.

    Returns:
        'area_share'; of each quantity the mean in every region ('entropy' in nats, 'noise_variance'
        in squared normalised units, 'masked_share', 'contrast', the standard deviation of the grey
        values within a patch); 'noise_share' and 'masked_within', the shares of the total noise
        variance and of the masked area that are inside; their ratios to the area's share,
        'noise_enrichment' and 'mask_enrichment'. None where there is nothing to share.
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
    places = regions(lesion, patch)
    result: dict[str, Any] = {"area_share": float(lesion.mean())}
    for name, values in quantities.items():
        result[name] = {
            region: float(values[where].mean()) if where.any() else None
            for region, where in places.items()
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
    """Averages the rows of `measure_lesion` over images, with paired tests.

    The tests are Wilcoxon's signed-rank tests, two-sided, of inside (core) against ring and
    outside, and of the logarithm of an enrichment against 0. Images of one group (near-duplicates,
    a patient) are no independent evidence: their mean counts once.
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
        # A lesion without any noise gets the lowest rank.
        logarithms = [None if ratio is None else math.log(max(ratio, 1e-6)) for ratio in ratios]
        summary[name] = {**average(ratios), "p": _wilcoxon(logarithms, groups)}
    return summary


def measure_image(panel: Panels) -> dict[str, float]:
    """Means over an image: entropy, noise variance, the shares of masked and of flat patches."""
    return {
        "entropy": float(panel.entropy.mean()),
        "noise_variance": float(np.square(panel.sigma).mean()),
        "masked_share": float(panel.mask.mean()),
        "flat_share": float((panel.entropy == 0).mean()),
    }


def summarize_images(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Averages the rows of `measure_image` over images."""
    means = {name: average([row[name] for row in rows]) for name in rows[0]}
    return {"images": len(rows), **means}


def average(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation of the values that are there; None of too few."""
    present = [value for value in values if value is not None]
    return mean_std(present) if present else {"mean": None, "std": None}


def _wilcoxon(differences: Sequence[float | None], groups: Sequence[int]) -> float | None:
    """Wilcoxon's p-value of the groups' mean differences; None of too few."""
    members: dict[int, list[float]] = {}
    for group, difference in zip(groups, differences, strict=True):
        if difference is not None:
            members.setdefault(group, []).append(difference)
    means = [float(np.mean(values)) for values in members.values()]
    means = [0.0 if abs(mean) < _ROUNDING else mean for mean in means]
    return float(stats.wilcoxon(means).pvalue) if len(means) > 1 and any(means) else None
