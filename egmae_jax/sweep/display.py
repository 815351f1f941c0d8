"""Shows the summary of a sweep: tables on the terminal and a figure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egmae_jax.explain.lettering import use_fallback_fonts
from egmae_jax.report.render import number

COLUMNS = {"accuracy": "Accuracy", "f1": "F1", "auc": "AUC"}
_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#767676"  # Okabe and Ito's

Row = Mapping[str, Any]


def show(summary: Mapping[str, Any]) -> None:
    """Prints validation figures, the choice, test figures of what is shown, and what is missing."""
    terminal = rich.console.Console(highlight=False, emoji=False, markup=False)
    complete = [row for row in summary["variants"] if row["status"] == "complete"]
    over = _over(complete)
    if complete:
        terminal.print(f"\nValidation, {over}:")
        terminal.print(_table(complete, "validation"))
        terminal.print(summary["selection"])
        terminal.print(f"Chosen on validation: {summary['chosen']}", style="bold")
    if tested := [row for row in complete if "test" in row]:
        groups = sorted({row["test_groups"] for row in tested})
        counted = " to ".join(map(str, dict.fromkeys((groups[0], groups[-1]))))
        terminal.print(f"\nTest, {over}, images in {counted} groups; {_shown(summary)}:")
        terminal.print(_table(tested, "test"))
    if compared := [row for row in complete if row.get("difference")]:
        terminal.print(f"Test, difference to {summary['baseline']} (95 % interval):")
        terminal.print(_table(compared, "difference"))
        terminal.print(summary["differences"])
    for row in summary["variants"]:
        if row["status"] != "complete":
            error = f" ({row['error']})" if "error" in row else ""
            terminal.print(f"{row['name']}: {row['status']}{error}", style="bold yellow")
        elif row.get("difference", ...) is None:
            terminal.print(
                f"{row['name']}: other rounds or test images than {summary['baseline']}, not "
                "compared."
            )


def _shown(summary: Mapping[str, Any]) -> str:
    """Which variants have test figures, and what those are not for."""
    if summary["all_on_test"]:
        return "all variants, for an ablation: nothing may be chosen from this"
    return "the chosen and the baseline"


def _over(rows: Sequence[Row]) -> str:
    several = any(row["rounds"] > 1 for row in rows)
    return "mean ± standard deviation over rounds" if several else "one round"


def _table(rows: Sequence[Row], part: str) -> rich.table.Table:
    """Fits 80 columns with the longest name of configs/sweeps, 'entropy_noise_0.05'."""
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, padding=0)
    table.add_column("Variant", overflow="fold")
    titles = list(COLUMNS.values())
    for title in titles if part == "difference" else ["Rounds", *titles]:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        figures = [row[part][metric] for metric in COLUMNS]
        if part == "difference":
            limits = [(_signed(x["mean"]), _signed(x["low"]), _signed(x["high"])) for x in figures]
            cells = [f"{mean} ({low} {high})" for mean, low, high in limits]
        else:
            cells = [str(row["rounds"]), *map(_mean_std, figures)]
        table.add_row(row["name"], *cells, style="bold" if row["is_chosen"] else "")
    return table


def _mean_std(figures: Mapping[str, Any]) -> str:
    std = "" if figures["std"] is None else f" ± {number(figures['std'])}"
    return f"  {number(figures['mean'])}{std}"


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "") + number(value)


@use_fallback_fonts()
def draw(summary: Mapping[str, Any]) -> Figure:
    """Validation of all variants, test of those that are shown, and differences on test images."""
    rows = [row for row in summary["variants"] if row["status"] == "complete"]
    tested = [row for row in rows if "test" in row]
    over = _over(rows) + ("; small: the rounds" if any(row["rounds"] > 1 for row in rows) else "")
    # (part of a row, variants, what draws a metric of one, label)
    lines: list[tuple[str, list[Row], Callable, str]] = [
        ("validation", rows, _draw_figures, f"validation: {over}"),
        ("test", tested, _draw_figures, f"test of {_shown(summary)}: {over}"),
    ]
    if any(row.get("difference") for row in rows):
        compared = [row for row in tested if row.get("difference") or row["is_baseline"]]
        label = f"test: difference to {summary['baseline']}, 95 % interval"
        lines.append(("difference", compared, _draw_difference, label))
    heights = [0.9 + 0.32 * len(variants) for _, variants, _, _ in lines]
    figure = Figure(figsize=(10, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(f"Chosen on validation: {summary['chosen']}", parse_math=False)
    grid = figure.subplots(
        len(lines), len(COLUMNS), sharey="row", squeeze=False, height_ratios=heights
    )
    for line, (part, variants, draw_one, label) in zip(grid, lines, strict=True):
        for axes, (metric, title) in zip(line, COLUMNS.items(), strict=True):
            for place, row in enumerate(variants):
                draw_one(axes, place, row, row.get(part), metric)
            axes.set_title(f"{title}: {part}")
            axes.locator_params(axis="x", nbins=5)
            axes.grid(axis="x", alpha=0.3)
        names = [row["name"] + (" (chosen)" if row["is_chosen"] else "") for row in variants]
        line[0].set_yticks(np.arange(len(variants)), names, parse_math=False)
        line[0].set_ylim(len(variants) - 0.4, -0.6)
        line[1].set_xlabel(label, parse_math=False)
    return figure


def _look(row: Row) -> dict[str, Any]:
    color = _GREEN if row["is_chosen"] else _ORANGE if row["is_baseline"] else _BLUE
    return {"color": color, "marker": "D" if row["is_baseline"] else "o", "markersize": 7}


def _draw_figures(axes: Axes, place: int, row: Row, part: Mapping[str, Any], metric: str) -> None:
    """Draws mean and deviation of a variant, and the values of its rounds below."""
    figures = part[metric]
    axes.errorbar(
        figures["mean"], place, xerr=figures["std"], capsize=4, linewidth=1.8, **_look(row)
    )
    if len(values := figures["rounds"]) > 1:
        axes.scatter(values, np.full(len(values), place + 0.25), s=12, color=_GREY, zorder=3)


def _draw_difference(
    axes: Axes, place: int, row: Row, part: Mapping[str, Any] | None, metric: str
) -> None:
    """Draws difference and interval of a variant; the baseline, without any, is at 0."""
    figures = part[metric] if part else {"mean": 0, "low": 0, "high": 0}
    axes.axvline(0, color=_ORANGE, linewidth=1.5)
    look = _look(row)
    axes.plot([figures["low"], figures["high"]], [place, place], color=look["color"], linewidth=1.8)
    axes.plot(figures["mean"], place, **look)
