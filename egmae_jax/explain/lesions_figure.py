"""Figure lesions.png: entropy by region, and the lesions' share of the noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egmae_jax.explain.fonts import use_fallback_fonts
from egmae_jax.explain.lesions import REGIONS, average

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
Rows = Sequence[Mapping[str, Any]]


@use_fallback_fonts()
def draw_lesions(rows: Rows, title: str) -> Figure:
    """Draws entropy by region, and the lesions' share of the noise over their share of the area.

    For corruptions that mask patches without noise, it draws the share of the masked area instead.

    Args:
        rows: results of `lesions.measure_lesion`, each with the image's 'label'.
        title: title of the figure.
    """
    by_class = {
        label: [row for row in rows if row["label"] == label]
        for label in sorted({row["label"] for row in rows})
    }
    share, quantity = "noise_share", "noise variance"
    if any(row[share] is None for row in rows):
        share, quantity = "masked_within", "masked area"
    figure = Figure(figsize=(8.5, 4.4), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=12)
    regions, shares = figure.subplots(1, 2)
    _draw_regions(regions, by_class)
    _draw_shares(shares, by_class, share, quantity)
    for axis in (regions, shares):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_regions(axis: Axes, by_class: Mapping[str, Rows]) -> None:
    means = []
    for k, rows in enumerate(by_class.values()):
        color = _COLORS[k % len(_COLORS)]
        entropy = np.array([[row["entropy"][region] for region in REGIONS] for row in rows], float)
        axis.plot(entropy.T, color=color, alpha=0.3, lw=1)  # NaN in an empty region
        mean = [average([row["entropy"][region] for row in rows])["mean"] for region in REGIONS]
        means += axis.plot(np.array(mean, float), color=color, marker="o", linewidth=2.5)
    axis.set_xticks(range(4), ["whole patches\ninside", "inside", "ring\naround", "outside"])
    axis.set(
        ylabel="mean entropy H (nats)",
        title="Entropy by region\n(bold: mean over the images of a class that have the region)",
    )
    legend = axis.legend(handles=means, labels=["class"] * len(means), frameon=False)
    for entry, label in zip(legend.get_texts(), by_class, strict=True):
        entry.set_parse_math(False)  # a legend would hide a class called _x or alter $x$
        entry.set_text(label)


def _draw_shares(axis: Axes, by_class: Mapping[str, Rows], share: str, quantity: str) -> None:
    for k, rows in enumerate(by_class.values()):
        points = 100 * np.array([[row["area_share"], row[share]] for row in rows], float)
        axis.scatter(*points.T, color=_COLORS[k % len(_COLORS)], alpha=0.8)
    axis.axline((0, 0), slope=1, color="grey", linewidth=1, linestyle="--")
    axis.set(
        xlabel="lesion's share of the area (%)",
        ylabel=f"lesion's share of the {quantity} (%)",
        title=f"Below the line: less {quantity}\nthan the lesion's share of the area",
    )
