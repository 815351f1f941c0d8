"""Figures of the book of results: docs/evidence/<experiment>.svg."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.evidence import plan
from benchmarks.evidence.record import FOLDER

_BLUE, _GREY = "#0072b2", "#767676"
# Equal scores give an equal file, with text as text.
_SVG = {"svg.hashsalt": "egmae_jax", "svg.fonttype": "none"}


def draw(name: str, variants: dict[str, dict[str, dict[str, Any]]], labels: dict[str, str]) -> str:
    """Draws the test AUC of all variants: mean and standard deviation, and each fold as a dot.

    Args:
        name: name of the experiment, and of the file.
        variants: by data set, the rows of docs/evidence that are compared, by the variant's name.
        labels: words for some names.

    Returns:
        Name of the file, which is written.
    """
    names = list(dict.fromkeys(x for rows in variants.values() for x in rows))
    height = 0.9 + 0.24 * len(names)
    figure = Figure(figsize=(1.8 + 2.6 * len(variants), height), layout="constrained")
    grid = figure.subplots(1, len(variants), sharey=True, squeeze=False)[0]
    for axes, (dataset, rows) in zip(grid, variants.items(), strict=True):
        for variant, row in rows.items():
            values, y = [x["test"]["auc"] for x in row["rounds"]], names.index(variant)
            axes.scatter(values, [y] * len(values), s=10, color=_GREY, zorder=1)
            error = np.std(values, ddof=1) if len(values) > 1 else None
            axes.errorbar(np.mean(values), y, xerr=error, fmt="o", color=_BLUE, capsize=3, ms=5)
        axes.set(title=plan.DATA[dataset].title, xlabel="AUC on test images")
        axes.title.set_fontsize(10)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_yticks(range(len(names)), [labels.get(x, x) for x in names])
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    file = f"{name}.svg"
    with mpl.rc_context(_SVG):
        figure.savefig(FOLDER / file, metadata={"Date": None})
    return file
