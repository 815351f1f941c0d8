"""The page of a sweep: tables of its variants, and scores over the values of its axis."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FixedLocator, NullLocator

from egmae_jax.core.numbers import number
from egmae_jax.report.render import environment
from egmae_jax.report.svg import new_figure, style, to_svg
from egmae_jax.sweep import display
from egmae_jax.sweep.variants import line as line_of

Row = Mapping[str, Any]


def render(summary: Mapping[str, Any], out: Path) -> str:
    """Renders the HTML page of a sweep.

    Args:
        summary: result of `summary.summarize`, with at least one complete variant.
        out: folder of the sweep; the page links to the reports of its runs.
    """
    complete = [row for row in summary["variants"] if row["status"] == "complete"]
    parts = [part for part in ("validation", "test") if any(part in row for row in complete)]
    return (
        environment()
        .get_template("sweep.html.j2")
        .render(
            title="Sweep",
            summary=summary,
            rows=complete,
            parts=parts,
            columns=display.COLUMNS,
            over=display.describe_rounds(complete),
            tested=display.describe_tested(summary),
            baseline=display.name_baseline(summary),
            curves=[
                [curve(summary["axis"], complete, part, metric) for metric in display.COLUMNS]
                for part in (parts if summary["axis"] else [])
            ],
            reports=[x["name"] for x in complete if (out / x["workdir"] / "report.html").is_file()],
        )
    )


def curve(axis: str, rows: Sequence[Row], part: str, metric: str) -> Markup:
    """Draws a metric over the values of the axis, a line for each recipe.

    The line is the mean over rounds, the band one standard deviation. The values are on a
    logarithmic scale, each with the number of training images whose labels were used.

    Args:
        axis: field that the variants set, such as 'finetune.label_share'.
        rows: complete variants of `summary.summarize`, named '<line>/<value>'.
        part: 'validation' or 'test'.
        metric: one of `display.COLUMNS`.
    """
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if part in row:
            lines.setdefault(line_of(row["name"]), []).append(row)
    labels: dict[float, list[float]] = {}
    ends = []
    with new_figure(3.6, 3.4) as (figure, axes):
        for k, (name, line) in enumerate(lines.items()):
            line.sort(key=lambda row: row["changes"][axis])
            x = [row["changes"][axis] for row in line]
            mean = np.array([row[part][metric]["mean"] for row in line])
            spread = np.array([row[part][metric]["std"] or 0.0 for row in line])
            look = style(k)
            axes.plot(x, mean, **look, linewidth=1.5, marker="o", markersize=4, label=name)
            axes.fill_between(
                x, mean - spread, mean + spread, color=look["color"], alpha=0.13, linewidth=0
            )
            for row in line:
                labels.setdefault(row["changes"][axis], []).append(row["labelled_images"])
            values = (f"{number(y)} at {value:g}" for value, y in zip(x, mean, strict=True))
            ends.append(f"{name} {', '.join(values)}")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(list(labels)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(
            list(labels), [f"{x:g}\n{np.mean(images):.0f}" for x, images in labels.items()]
        )
        axes.set(title=f"{display.COLUMNS[metric]}: {part}", ylabel=display.COLUMNS[metric])
        axes.set_xlabel(f"{axis}\nlabelled training images")
        figure.legend(loc="outside lower center", handlelength=2.6, ncols=2)
        return to_svg(figure, f"{metric} on {part} images over {axis}: {'; '.join(ends)}.")
