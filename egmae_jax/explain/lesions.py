"""Where the noise falls: over images, and relative to the outlines of lesions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from egmae_jax.explain.lettering import fonts_of_all_letters
from egmae_jax.explain.panels import Panels, to_pixels

REGIONS = ("core", "inside", "ring", "outside")
_ROUNDING = 1e-5
_CLASS_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def regions(lesion: np.ndarray, patch_size: int) -> dict[str, np.ndarray]:
    """{region: bool [H, W]} of REGIONS.

    'inside' is the lesion, 'ring' what is within a patch's width around it, 'outside' the rest;
    'core' is of the lesion those patches that lie wholly in it.
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
    """Where the corruption of one image falls relative to its lesion.

    A pixel has the values of its patch, so a patch on the border counts in each region by the share
    of it that lies there; 'core' has none of these.

    Args:
        panel: of the image.
        lesion: bool [H, W] of the same view, with any True.

    Returns:
        'area_share'; of each quantity the mean in every region ('entropy' in nats, 'noise_variance'
        in squared normalised units, 'masked_share', 'grey' value 0 ... 255, 'contrast', the
        standard deviation of grey within a patch); 'noise_share' and 'masked_within', the shares of
        the total noise variance and of the masked area that are inside; their ratios to the area's
        share, 'noise_enrichment' and 'mask_enrichment'. None where there is nothing to share.
    """
    side = lesion.shape[0]
    grey = panel.pixels.mean(axis=-1)
    patch = side // panel.mask.shape[0]
    quantities = {
        "entropy": to_pixels(panel.entropy, side),
        "noise_variance": to_pixels(np.square(panel.sigma), side),
        "masked_share": to_pixels(panel.mask, side),
        "grey": grey,
        "contrast": to_pixels(_blocks(grey, patch).std(axis=(1, 3)), side),
    }
    parts = regions(lesion, patch)
    found: dict[str, Any] = {"area_share": float(lesion.mean())}
    for name, values in quantities.items():
        found[name] = {
            region: float(values[where].mean()) if where.any() else None
            for region, where in parts.items()
        }
    for share, enrichment, name in (
        ("noise_share", "noise_enrichment", "noise_variance"),
        ("masked_within", "mask_enrichment", "masked_share"),
    ):
        values = quantities[name].astype(np.float64)
        total = values.sum()
        found[share] = float(values[lesion].sum() / total) if total else None
        found[enrichment] = found[share] / found["area_share"] if total else None
    return found


def summarize_lesions(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over images of what `measure_lesion` found, with paired tests.

    The tests are Wilcoxon's signed-rank tests, two-sided, of inside (core) against ring and
    outside, and of the logarithm of an enrichment against 0. Images of one group (near-duplicates,
    a patient) are no independent evidence: their mean counts once.
    """
    groups = [row["group"] for row in rows]
    summary: dict[str, Any] = {
        "images": len(rows),
        "groups": len(set(groups)),
        "images_with_core": sum(row["entropy"]["core"] is not None for row in rows),
        "area_share": _mean_sd([row["area_share"] for row in rows]),
    }
    for name in ("entropy", "noise_variance", "masked_share", "grey", "contrast"):
        values = {region: [row[name][region] for row in rows] for region in REGIONS}
        summary[name] = {region: _mean_sd(values[region]) for region in REGIONS}
        for first in ("core", "inside"):
            for second in ("ring", "outside"):
                differences = _differences(values[first], values[second])
                summary[name][f"{first} - {second}"] = _tested(differences, groups)
    for enrichment in ("noise_enrichment", "mask_enrichment"):
        ratios = [row[enrichment] for row in rows]
        present = [ratio for ratio in ratios if ratio is not None]
        summary[enrichment] = {
            **_mean_sd(ratios),
            "median": float(np.median(present)) if present else None,
            "images_above_1": sum(ratio > 1 for ratio in present),
            "p": _tested([_logarithm(ratio) for ratio in ratios], groups)["p"],
        }
    return summary


def summarize_images(panels: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation over images of what `measure_image` found."""
    summary: dict[str, Any] = {"images": len(panels)}
    for name in panels[0] if panels else ():
        summary[name] = _mean_sd([row[name] for row in panels])
    return summary


def measure_image(panel: Panels) -> dict[str, float]:
    """Means over an image: entropy, noise variance, the shares of masked and of flat patches."""
    return {
        "entropy": float(panel.entropy.mean()),
        "noise_variance": float(np.square(panel.sigma).mean()),
        "masked_share": float(panel.mask.mean()),
        "flat_share": float((panel.entropy == 0).mean()),
    }


def _mean_sd(values: Sequence[float | None]) -> dict[str, float | None]:
    present = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(present)) if present else None,
        "sd": float(np.std(present, ddof=1)) if len(present) > 1 else None,
    }


def _differences(
    first: Sequence[float | None], second: Sequence[float | None]
) -> list[float | None]:
    pairs = zip(first, second, strict=True)
    return [None if a is None or b is None else a - b for a, b in pairs]


def _logarithm(ratio: float | None) -> float | None:
    return None if ratio is None else math.log(max(ratio, 1e-6))  # no noise at all: the lowest rank


def _tested(differences: Sequence[float | None], groups: Sequence[int]) -> dict[str, Any]:
    """Mean and standard deviation over images; p of the groups' means. None where there are none.

    Differences that are but rounding errors are 0: their ranks say nothing.
    """
    members: dict[int, list[float]] = {}
    for group, difference in zip(groups, differences, strict=True):
        if difference is not None:
            members.setdefault(group, []).append(difference)
    means = [float(np.mean(values)) for values in members.values()]
    means = [0.0 if abs(mean) < _ROUNDING else mean for mean in means]
    p = float(stats.wilcoxon(means).pvalue) if len(means) > 1 and any(means) else None
    return {**_mean_sd(differences), "p": p}


@fonts_of_all_letters()
def draw_lesions(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Entropy by region, the lesion's share of the noise against that of the area, enrichment.

    Of the kinds that add no noise, masked patches stand in for it.

    Args:
        rows: of `measure_lesion`, with the image's 'label' besides.
        title: what stands above.
    """
    labels = sorted({row["label"] for row in rows})
    colors = {label: _CLASS_COLORS[k % len(_CLASS_COLORS)] for k, label in enumerate(labels)}
    noise = all(row["noise_share"] is not None for row in rows)
    share, enrichment, what = (
        ("noise_share", "noise_enrichment", "noise variance")
        if noise
        else ("masked_within", "mask_enrichment", "masked area")
    )
    figure = Figure(figsize=(12.5, 4.4), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=12)
    by_region, by_share, ratio = figure.subplots(1, 3)
    spread = np.random.default_rng(0)
    means_of: list[Line2D] = []
    for k, label in enumerate(labels):
        of_class = [row for row in rows if row["label"] == label]
        for row in of_class:
            values = [row["entropy"][region] for region in REGIONS]
            known = [(x, value) for x, value in enumerate(values) if value is not None]
            by_region.plot(*zip(*known, strict=True), color=colors[label], alpha=0.3, linewidth=1)
        means = [
            _mean_sd([row["entropy"][region] for row in of_class])["mean"] for region in REGIONS
        ]
        known = [(x, value) for x, value in enumerate(means) if value is not None]
        means_of += by_region.plot(
            *zip(*known, strict=True), color=colors[label], marker="o", linewidth=2.5
        )
        shared = [row for row in of_class if row[share] is not None]
        by_share.scatter(
            [100 * row["area_share"] for row in shared],
            [100 * row[share] for row in shared],
            color=colors[label],
            alpha=0.8,
            s=28,
        )
        ratios = [row[enrichment] for row in shared]
        x = k + spread.uniform(-0.12, 0.12, len(ratios))
        ratio.scatter(x, ratios, color=colors[label], alpha=0.8, s=28)
        if ratios:
            ratio.hlines(np.mean(ratios), k - 0.28, k + 0.28, color=colors[label], linewidth=2.5)
    by_region.set_xticks(range(4), ["whole patches\ninside", "inside", "ring\naround", "outside"])
    by_region.set(
        ylabel="mean entropy H (nats)",
        title="Entropy by region\n(bold: mean of a class, of the images that have it)",
    )
    legend = by_region.legend(handles=means_of, labels=["class"] * len(labels), frameon=False)
    for entry, label in zip(legend.get_texts(), labels, strict=True):
        entry.set_parse_math(False)  # a class may be called $x$, or, which labels hide, _x
        entry.set_text(label)
    highest = 100 * max([row[name] or 0 for row in rows for name in ("area_share", share)])
    by_share.plot(
        [0, 1.05 * highest], [0, 1.05 * highest], color="grey", linewidth=1, linestyle="--"
    )
    by_share.set(
        xlabel="lesion's share of the area (%)",
        ylabel=f"lesion's share of the {what} (%)",
        title=f"Below the line: less {what}\nthan the lesion's area",
    )
    ratio.axhline(1, color="grey", linewidth=1, linestyle="--")
    ratio.set_xticks(range(len(labels)), labels, parse_math=False)
    ratio.set_xlim(-0.6, len(labels) - 0.4)
    ratio.set(
        ylabel=f"share of the {what} / of the area",
        title=f"Enrichment of the {what}\nin lesions (line: mean)",
    )
    for axis in (by_region, by_share, ratio):
        axis.spines[["top", "right"]].set_visible(False)
    return figure
