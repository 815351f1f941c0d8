"""Figures of the book of results: docs/evidence/<experiment>.svg."""

from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.evidence import plan
from benchmarks.evidence.record import FOLDER
from egmae_jax.report import published
from egmae_jax.sweep.variants import line

# The colours of Okabe and Ito.
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#767676"
_LINES = (_GREY, _BLUE, _ORANGE, "#009e73")
# Equal scores give an equal file, with text as text.
_SVG = {"svg.hashsalt": "egmae_jax", "svg.fonttype": "none"}

Rows = Mapping[str, dict[str, Any]]  # rows of docs/evidence that are compared, by variant


def draw(name: str, variants: Mapping[str, Rows], labels: Mapping[str, str]) -> str:
    """Draws the scores on test images of all variants of an experiment, a panel for each data set.

    Args:
        name: name of the experiment, and of the file.
        variants: by data set, the rows of docs/evidence that are compared, by the variant's name.
        labels: words for some names.

    Returns:
        Name of the file, which is written.
    """
    if plan.EXPERIMENTS[name].axis:
        figure = _draw_lines(variants, labels, plan.EXPERIMENTS[name].axis)
    elif plan.EXPERIMENTS[name].sweep == "epochs":
        figure = _draw_epochs(variants)
    else:
        figure = _draw_list(variants, labels)
    file = f"{name}.svg"
    with mpl.rc_context(_SVG):
        figure.savefig(FOLDER / file, metadata={"Date": None})
    return file


def _draw_list(variants: Mapping[str, Rows], labels: Mapping[str, str]) -> Figure:
    """AUC of each variant: mean and standard deviation, and each fold as a dot."""
    names = list(dict.fromkeys(x for rows in variants.values() for x in rows))
    figure = Figure(
        figsize=(1.8 + 2.6 * len(variants), 0.9 + 0.24 * len(names)), layout="constrained"
    )
    for axes, rows in _panels(figure, variants, sharey=True):
        for variant, row in rows.items():
            values, y = _values(row, "auc"), names.index(variant)
            axes.scatter(values, [y] * len(values), s=10, color=_GREY, zorder=1)
            error = np.std(values, ddof=1) if len(values) > 1 else None
            axes.errorbar(np.mean(values), y, xerr=error, fmt="o", color=_BLUE, capsize=3, ms=5)
        axes.set(xlabel="AUC on test images")
        axes.grid(axis="x", alpha=0.3)
    first = figure.axes[0]
    first.set_yticks(range(len(names)), [labels.get(x, x) for x in names])
    first.set_ylim(len(names) - 0.5, -0.5)
    return figure


def _draw_lines(variants: Mapping[str, Rows], labels: Mapping[str, str], axis: str) -> Figure:
    """AUC over the value after the slash of a variant's name, a line for each name before it."""
    figure = Figure(figsize=(1 + 3.2 * len(variants), 3.2), layout="constrained")
    names = list(dict.fromkeys(line(x) for rows in variants.values() for x in rows))
    for axes, rows in _panels(figure, variants):
        for name, color in zip(names, _LINES, strict=False):
            of_line = {float(x.rpartition("/")[2]): x for x in rows if line(x) == name}
            if of_line:
                x = sorted(of_line)
                scores = np.array([_values(rows[of_line[value]], "auc") for value in x])
                errors = scores.std(axis=1, ddof=1)
                style = {"color": color, "capsize": 3, "marker": "o", "ms": 4}
                axes.errorbar(x, scores.mean(axis=1), errors, label=labels.get(name, name), **style)
        positive = [y for y in x if y]
        if positive and max(x) / min(positive) > 10:
            axes.set_xscale("log")
        axes.set_xticks(x, [f"{value:g}" for value in x], minor=False)
        axes.minorticks_off()
        axes.set(xlabel=axis)
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="AUC on test images")
    figure.axes[0].legend(fontsize=8)
    return figure


def _draw_epochs(variants: Mapping[str, Rows]) -> Figure:
    """Accuracy of the paper's figure 2: epochs of pre-training / fine-tuning, and no pre-training.

    The band is the standard deviation without pre-training. The paper prints a number for its
    ensemble after 1000/15 epochs only, in tables 1 to 4.
    """
    figure = Figure(figsize=(1 + 3 * len(variants), 3.2), layout="constrained")
    for (axes, rows), dataset in zip(_panels(figure, variants), variants, strict=True):
        pairs = [x for x in rows if not x.startswith("0/")]
        for x, pair in enumerate(pairs):
            values = _values(rows[pair], "accuracy")
            axes.scatter([x] * len(values), values, s=10, color=_GREY, zorder=1)
        scores = [_values(rows[x], "accuracy") for x in pairs]
        means, errors = [np.mean(x) for x in scores], [np.std(x, ddof=1) for x in scores]
        axes.errorbar(
            range(len(pairs)), means, errors, color=_BLUE, capsize=3, marker="o", ms=5, label="MAE"
        )
        for name in (x for x in rows if x.startswith("0/")):
            values = _values(rows[name], "accuracy")
            mean, std = np.mean(values), np.std(values, ddof=1)
            axes.axhline(mean, color=_ORANGE, label=f"no pre-training, {name}")
            axes.axhspan(mean - std, mean + std, color=_ORANGE, alpha=0.15, linewidth=0)
        table = published.find_table(*plan.DATA[dataset].published)
        if table and "1000/15" in pairs:
            accuracy = table.rows[-1].accuracy
            style = {"marker": "*", "s": 70, "color": "black", "label": "published, 224 pixels"}
            axes.scatter([pairs.index("1000/15")], [accuracy], **style)
        axes.set_xticks(range(len(pairs)), pairs, rotation=30)
        axes.grid(axis="y", alpha=0.3)
        axes.set(xlabel="epochs: pre-training / fine-tuning")
    figure.axes[0].set(ylabel="accuracy on test images")
    figure.axes[0].legend(fontsize=8)
    return figure


def _panels(
    figure: Figure, variants: Mapping[str, Rows], *, sharey: bool = False
) -> Iterator[tuple[Axes, Rows]]:
    grid = figure.subplots(1, len(variants), sharey=sharey, squeeze=False)[0]
    for axes, (dataset, rows) in zip(grid, variants.items(), strict=True):
        axes.set_title(plan.DATA[dataset].title.replace(", ", ",\n"), fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        yield axes, rows


def _values(row: Mapping[str, Any], metric: str) -> list[float]:
    return [x["test"][metric] for x in row["rounds"]]
