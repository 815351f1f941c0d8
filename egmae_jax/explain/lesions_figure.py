"""The figure lesions.png: entropy by region, and the lesions' share of the noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egmae_jax.explain.lesions import REGIONS, mean_sd
from egmae_jax.explain.lettering import fonts_of_all_letters

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
Rows = Sequence[Mapping[str, Any]]


@fonts_of_all_letters()
def draw_lesions(rows: Rows, title: str) -> Figure:
    """Draws entropy by region, and the lesions' share of the noise against that of the area.

    Masked patches stand in for the noise of corruptions that add none.

    Args:
        rows: rows of `lesions.measure_lesion`, each with the image's 'label' besides.
        title: text above the figure.
    """
    by_class = {
        label: [row for row in rows if row["label"] == label]
        for label in sorted({row["label"] for row in rows})
    }
    if all(row["noise_share"] is not None for row in rows):
        share, enrichment, quantity = "noise_share", "noise_enrichment", "noise variance"
    else:
        share, enrichment, quantity = "masked_within", "mask_enrichment", "masked area"
    figure = Figure(figsize=(12.5, 4.4), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=12)
    regions, shares, ratios = figure.subplots(1, 3)
    _draw_regions(regions, by_class)
    _draw_shares(shares, by_class, share, quantity)
    _draw_ratios(ratios, by_class, enrichment, quantity)
    for axis in (regions, shares, ratios):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_regions(axis: Axes, by_class: Mapping[str, Rows]) -> None:
    means = []
    for k, rows in enumerate(by_class.values()):
        color = _COLORS[k % len(_COLORS)]
        for row in rows:
            axis.plot(*_known([row["entropy"][r] for r in REGIONS]), color=color, alpha=0.3, lw=1)
        mean = [mean_sd([row["entropy"][region] for row in rows])["mean"] for region in REGIONS]
        means += axis.plot(*_known(mean), color=color, marker="o", linewidth=2.5)
    axis.set_xticks(range(4), ["whole patches\ninside", "inside", "ring\naround", "outside"])
    axis.set(
        ylabel="mean entropy H (nats)",
        title="Entropy by region\n(bold: mean of a class, of the images that have it)",
    )
    legend = axis.legend(handles=means, labels=["class"] * len(means), frameon=False)
    for entry, label in zip(legend.get_texts(), by_class, strict=True):
        entry.set_parse_math(False)  # a class may be called $x$, or _x, which labels hide
        entry.set_text(label)


def _known(values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    places = [k for k, value in enumerate(values) if value is not None]
    return places, [value for value in values if value is not None]


def _draw_shares(axis: Axes, by_class: Mapping[str, Rows], share: str, quantity: str) -> None:
    highest = 0.0
    for k, rows in enumerate(by_class.values()):
        points = [(100 * r["area_share"], 100 * r[share]) for r in rows if r[share] is not None]
        axis.scatter(*np.reshape(points, (-1, 2)).T, color=_COLORS[k % len(_COLORS)], alpha=0.8)
        highest = max(highest, *np.ravel(points), 0.0)
    axis.plot([0, 1.05 * highest], [0, 1.05 * highest], color="grey", linewidth=1, linestyle="--")
    axis.set(
        xlabel="lesion's share of the area (%)",
        ylabel=f"lesion's share of the {quantity} (%)",
        title=f"Below the line: less {quantity}\nthan the lesion's area",
    )


def _draw_ratios(axis: Axes, by_class: Mapping[str, Rows], enrichment: str, quantity: str) -> None:
    rng = np.random.default_rng(0)
    for k, rows in enumerate(by_class.values()):
        color = _COLORS[k % len(_COLORS)]
        ratios = [row[enrichment] for row in rows if row[enrichment] is not None]
        axis.scatter(k + rng.uniform(-0.12, 0.12, len(ratios)), ratios, color=color, alpha=0.8)
        if ratios:
            axis.hlines(np.mean(ratios), k - 0.28, k + 0.28, color=color, linewidth=2.5)
    axis.axhline(1, color="grey", linewidth=1, linestyle="--")
    axis.set_xticks(range(len(by_class)), list(by_class), parse_math=False)
    axis.set_xlim(-0.6, len(by_class) - 0.4)
    axis.set(
        ylabel=f"share of the {quantity} / of the area",
        title=f"Enrichment of the {quantity}\nin lesions (line: mean)",
    )
