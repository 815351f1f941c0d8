"""Tables and figure of the summary of a sweep."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import rich.table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egmae_jax.core import console
from egmae_jax.core.numbers import format_mean_std, number
from egmae_jax.explain.fonts import use_fallback_fonts

COLUMNS = {"accuracy": "Accuracy", "f1": "F1", "auc": "AUC"}
# The colours of Okabe and Ito.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#767676"

Row = Mapping[str, Any]


def show(summary: Mapping[str, Any]) -> None:
    """Prints a sweep's validation results, chosen variant, test results, and incomplete variants.

    Args:
        summary: result of `summary.summarize`.
    """
    terminal = console.terminal
    complete = [row for row in summary["variants"] if row["status"] == "complete"]
    over = describe_rounds(complete)
    if complete:
        terminal.print(f"\nValidation, {over}:")
        terminal.print(_table(complete, "validation"))
        terminal.print(summary["selection"])
        terminal.print(f"Chosen on validation: {summary['chosen']}", style="bold")
    if tested := [row for row in complete if "test" in row]:
        groups = sorted({row["test_groups"] for row in tested})
        counted = " to ".join(map(str, dict.fromkeys((groups[0], groups[-1]))))
        terminal.print(f"\nTest, {over}, images in {counted} groups; {describe_tested(summary)}:")
        terminal.print(_table(tested, "test"))
    if compared := [row for row in complete if row.get("difference")]:
        terminal.print(f"Test, difference to {name_baseline(summary)} (95 % interval):")
        terminal.print(_table(compared, "difference"))
        terminal.print(summary["differences"])
    for row in summary["variants"]:
        if row["status"] != "complete":
            error = f" ({row['error']})" if "error" in row else ""
            terminal.print(f"{row['name']}: {row['status']}{error}", style="bold yellow")
        elif row.get("difference", ...) is None:
            terminal.print(
                f"{row['name']}: not compared, because its rounds or test images differ from those "
                f"of {name_baseline(summary)}."
            )


def name_baseline(summary: Mapping[str, Any]) -> str:
    """Names the variant that the others are compared with, or the line, at the same value."""
    axis = summary["axis"]
    return f"{summary['baseline']} at the same {axis}" if axis else summary["baseline"]


def describe_tested(summary: Mapping[str, Any]) -> str:
    """Describes which variants have test results, and that an ablation is not for choosing."""
    if summary["all_on_test"]:
        return "all variants, for an ablation: nothing may be chosen from it"
    return "the chosen variant and the baseline"


def describe_rounds(rows: Sequence[Row]) -> str:
    """Describes over which rounds the results are averaged."""
    several = any(row["rounds"] > 1 for row in rows)
    return "mean ± standard deviation over rounds" if several else "one round"


def _table(rows: Sequence[Row], part: str) -> rich.table.Table:
    """Builds a table of one part of the rows: 'validation', 'test' or 'difference'.

    It fits 80 columns with the longest name in configs/sweeps, 'entropy_noise_0.05'.
    """
    is_difference, titles = part == "difference", list(COLUMNS.values())
    table = console.table(
        ["Variant"],
        titles if is_difference else ["Rounds", *titles],
        padding=0 if is_difference else 1,
    )
    for row in rows:
        figures = [row[part][metric] for metric in COLUMNS]
        if is_difference:
            limits = [(_signed(x["mean"]), _signed(x["low"]), _signed(x["high"])) for x in figures]
            cells = [f"{mean} ({low} {high})" for mean, low, high in limits]
        else:
            cells = [str(row["rounds"]), *(format_mean_std(x["mean"], x["std"]) for x in figures)]
        table.add_row(row["name"], *cells, style="bold" if row["is_chosen"] else "")
    return table


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "") + number(value)


@use_fallback_fonts()
def draw(summary: Mapping[str, Any]) -> Figure:
    """Draws a sweep's validation results, test results, and differences to the baseline.

    Args:
        summary: result of `summary.summarize`, with at least one complete variant.
    """
    rows = [row for row in summary["variants"] if row["status"] == "complete"]
    tested = [row for row in rows if "test" in row]
    over = describe_rounds(rows)
    over += "; small: single rounds" if any(row["rounds"] > 1 for row in rows) else ""
    # (part of a row, variants, function that draws one metric of a variant, label)
    lines: list[tuple[str, list[Row], Callable, str]] = [
        ("validation", rows, _draw_figures, f"validation: {over}"),
        ("test", tested, _draw_figures, f"test of {describe_tested(summary)}: {over}"),
    ]
    if any(row.get("difference") for row in rows):
        compared = [row for row in tested if row.get("difference") or row["is_baseline"]]
        label = f"test: difference to {name_baseline(summary)}, 95 % interval"
        lines.append(("difference", compared, _draw_difference, label))
    heights = [0.9 + 0.32 * len(variants) for _, variants, _, _ in lines]
    figure = Figure(figsize=(10, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(f"Chosen on validation: {summary['chosen']}", parse_math=False)
    grid = figure.subplots(
        len(lines), len(COLUMNS), sharey="row", squeeze=False, height_ratios=heights
    )
    for line, (part, variants, draw_one, label) in zip(grid, lines, strict=True):
        for axes, (metric, title) in zip(line, COLUMNS.items(), strict=True):
            for y, row in enumerate(variants):
                draw_one(axes, y, row, row.get(part), metric)
            axes.set_title(f"{title}: {part}")
            axes.locator_params(axis="x", nbins=5)
            axes.grid(axis="x", alpha=0.3)
        names = [row["name"] + (" (chosen)" if row["is_chosen"] else "") for row in variants]
        line[0].set_yticks(np.arange(len(variants)), names, parse_math=False)
        line[0].set_ylim(len(variants) - 0.4, -0.6)
        line[1].set_xlabel(textwrap.fill(label, 80), parse_math=False)
    return figure


def _style(row: Row) -> dict[str, Any]:
    color = _GREEN if row["is_chosen"] else _ORANGE if row["is_baseline"] else _BLUE
    return {"color": color, "marker": "D" if row["is_baseline"] else "o", "markersize": 7}


def _draw_figures(axes: Axes, y: int, row: Row, part: Mapping[str, Any], metric: str) -> None:
    """Draws mean and standard deviation of a variant, and the values of its rounds below."""
    figures = part[metric]
    axes.errorbar(figures["mean"], y, xerr=figures["std"], capsize=4, linewidth=1.8, **_style(row))
    if len(values := figures["rounds"]) > 1:
        axes.scatter(values, np.full(len(values), y + 0.25), s=12, color=_GREY, zorder=3)


def _draw_difference(
    axes: Axes, y: int, row: Row, part: Mapping[str, Any] | None, metric: str
) -> None:
    """Draws the difference of a variant with its interval; the baseline is at 0."""
    figures = part[metric] if part else {"mean": 0, "low": 0, "high": 0}
    axes.axvline(0, color=_ORANGE, linewidth=1.5)
    style = _style(row)
    axes.plot([figures["low"], figures["high"]], [y, y], color=style["color"], linewidth=1.8)
    axes.plot(figures["mean"], y, **style)
