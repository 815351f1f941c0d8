"""What a sweep came to: the variants side by side, and paired with the baseline."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text
from matplotlib.figure import Figure

from egmae_jax import evaluate
from egmae_jax.evaluate import Predictions
from egmae_jax.files import DamagedFileError, write_atomically, write_json
from egmae_jax.report.significance import Resampled, Round
from egmae_jax.saved_run import RunError, SavedRun
from egmae_jax.sweep import sharing
from egmae_jax.sweep.variants import Sweep, Variant

METRICS = {"accuracy": "Accuracy", "f1": "F1", "auc": "AUC"}
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#767676"  # Okabe and Ito's, told apart by all
_NOTE = (
    "Differences: the same rounds and test images, mean over rounds; 95 % intervals of a bootstrap "
    "that draws rounds and, within each class, images; not corrected for several comparisons."
)


class Scored(NamedTuple):
    """A variant that is complete: what its ensemble, or its only branch, says."""

    branch: str
    rounds: list[dict[str, float]]  # metrics
    predictions: list[Predictions]  # of the test images, one a round


def summarize(
    sweep: Sweep, out: Path, failures: Mapping[str, str], *, resamples: int
) -> dict[str, Any]:
    """Scores the variants that are complete.

    Args:
        sweep: the sweep.
        out: its folder.
        failures: why a variant has failed, by name.
        resamples: of the bootstrap.

    Returns:
        The content of summary.json.
    """
    scored, failures = {}, dict(failures)
    for variant in sweep.variants:
        workdir = out / variant.folder
        if variant.name not in failures and (workdir / "results.json").exists():
            try:
                scored[variant.name] = score(workdir)
            except (RunError, DamagedFileError) as error:
                failures[variant.name] = str(error)
    baseline = scored.get(sweep.baseline)
    return {
        "baseline": sweep.baseline,
        "differences": _NOTE,
        "variants": [
            _row(variant, out, scored.get(variant.name), baseline, failures, resamples)
            | {"is_baseline": variant.name == sweep.baseline}
            for variant in sweep.variants
        ],
    }


def score(workdir: Path) -> Scored:
    """What a complete run says of its test images.

    Raises:
        RunError, DamagedFileError: a file of it cannot be read.
    """
    run = SavedRun(workdir)
    rounds = run.results()["rounds"]
    branch = list(rounds[0]["test"])[-1]
    predictions = []
    for index in run.rounds:
        each = [
            evaluate.load_predictions(run.paths.predictions(b.name, index, "test"))
            for b in run.branches
        ]
        fusion = run.ensemble(index).fusion
        if fusion is not None:
            fused = fusion.apply([one.probabilities for one in each])
            each = [each[0]._replace(probabilities=fused)]
        predictions.append(each[0])
    return Scored(branch, [r["test"][branch] for r in rounds], predictions)


def _row(
    variant: Variant,
    out: Path,
    found: Scored | None,
    baseline: Scored | None,
    failures: Mapping[str, str],
    resamples: int,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": variant.name,
        "workdir": variant.folder,
        "changes": {k: list(v) if isinstance(v, tuple) else v for k, v in variant.changes.items()},
        "pretraining_from": sharing.taken_from(variant, out),
    }
    if found is None:
        if variant.name in failures:
            return row | {"status": "failed", "error": failures[variant.name]}
        return row | {"status": "not complete"}
    metrics = {}
    for name in METRICS:
        values = [scores[name] for scores in found.rounds]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        metrics[name] = {"mean": float(np.mean(values)), "std": std, "rounds": values}
    row |= {"status": "complete", "branch": found.branch, "metrics": metrics}
    if baseline is not None and baseline is not found:
        row["difference"] = paired_difference(
            found.predictions, baseline.predictions, resamples=resamples
        )
    return row


def paired_difference(
    ours: Sequence[Predictions], theirs: Sequence[Predictions], *, resamples: int
) -> dict[str, Any] | None:
    """How much better ours are, round by round of the same images, with a 95 % interval.

    A resample draws rounds, and within each class images.

    Args:
        ours: one a round.
        theirs: one a round.
        resamples: of the bootstrap.

    Returns:
        {metric of METRICS: {"mean", "low", "high"}}; None where rounds or images are not the same.
    """
    pairs = list(zip(ours, theirs, strict=False))
    if len(ours) != len(theirs) or not all(
        np.array_equal(a.ids, b.ids) and np.array_equal(a.labels, b.labels) for a, b in pairs
    ):
        return None
    rounds = [Round(a.ids, a.labels, (b.probabilities, a.probabilities)) for a, b in pairs]
    resampled = Resampled(rounds, resamples=resamples, draw_rounds=True)
    return {name: resampled.difference(0, 1, name)._asdict() for name in METRICS}


# --- What one sees --------------------------------------------------------------------------------


def write(summary: Mapping[str, Any], out: Path) -> None:
    """Writes summary.json, summary.csv and summary.png.

    Raises:
        RunError: no variant has been run; nothing is written.
    """
    if all(row["status"] == "not complete" for row in summary["variants"]):
        names = ", ".join(row["name"] for row in summary["variants"])
        raise RunError(f"{out} holds no complete run of this sweep ({names}): is it another's?")
    write_json(out / "summary.json", summary)
    write_atomically(out / "summary.csv", _csv(summary))
    if any(row["status"] == "complete" for row in summary["variants"]):
        picture = io.BytesIO()
        draw(summary).savefig(picture, format="png")
        write_atomically(out / "summary.png", picture.getvalue())
    else:
        (out / "summary.png").unlink(missing_ok=True)


def _csv(summary: Mapping[str, Any]) -> str:
    """A row a variant; empty cells for what is not known."""
    rows = []
    for row in summary["variants"]:
        cells = {"variant": row["name"], "status": row["status"], "branch": row.get("branch", "")}
        complete = row["status"] == "complete"
        cells["rounds"] = len(row["metrics"]["accuracy"]["rounds"]) if complete else ""
        for name in METRICS:
            of_metric = row["metrics"][name] if complete else {}
            difference = (row.get("difference") or {}).get(name, {})
            cells |= {
                name: of_metric.get("mean", ""),
                f"{name}_std": of_metric.get("std", ""),
                f"{name}_difference": difference.get("mean", ""),
                f"{name}_difference_low": difference.get("low", ""),
                f"{name}_difference_high": difference.get("high", ""),
            }
        rows.append(cells)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def show(summary: Mapping[str, Any]) -> None:
    """Prints the variants' figures, their differences to the baseline, and which are missing."""
    terminal = rich.console.Console(highlight=False, emoji=False)
    rows = summary["variants"]
    complete = [row for row in rows if row["status"] == "complete"]
    if complete:
        several = any(len(row["metrics"]["accuracy"]["rounds"]) > 1 for row in complete)
        what = "mean ± standard deviation over rounds" if several else "one round"
        terminal.print(f"\nTest, {what}:")
        terminal.print(_table(complete, ["Rounds", *METRICS.values()], _figures))
    if compared := [row for row in complete if row.get("difference")]:
        terminal.print(f"Difference to {summary['baseline']} (95 % interval):", markup=False)
        terminal.print(_table(compared, list(METRICS.values()), _differences))
        terminal.print(_NOTE)
    for row in rows:
        if row["status"] == "complete" and "difference" in row and row["difference"] is None:
            terminal.print(
                f"{row['name']}: other rounds or test images than {summary['baseline']}, not "
                "compared.",
                markup=False,
            )
        elif row["status"] != "complete":
            text = rich.text.Text(f"{row['name']}: {row['status']}", "bold yellow")
            terminal.print(text + (f" ({row['error']})" if "error" in row else ""))


def _table(rows: Sequence[Mapping[str, Any]], titles: Sequence[str], cells: Any) -> Any:
    # Fits 80 columns with the longest name of configs/sweeps, 'entropy_noise_0.05'.
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, padding=0)
    table.add_column("Variant", overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        style = "bold" if row["is_baseline"] else ""
        table.add_row(rich.text.Text(row["name"]), *cells(row), style=style)
    return table


def _figures(row: Mapping[str, Any]) -> list[str]:
    cells = [str(len(row["metrics"]["accuracy"]["rounds"]))]
    for name in METRICS:
        mean, std = row["metrics"][name]["mean"], row["metrics"][name]["std"]
        cells.append("  " + _short(mean) + ("" if std is None else f" ± {_short(std)}"))
    return cells


def _differences(row: Mapping[str, Any]) -> list[str]:
    found = [row["difference"][name] for name in METRICS]
    return [f"{_short(x['mean'], '+')} ({_short(x['low'], '+')} {_short(x['high'], '+')})"
            for x in found]  # fmt: skip


def _short(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}".replace("0.", ".", 1)


def draw(summary: Mapping[str, Any]) -> Figure:
    """Above, each variant's rounds, mean and standard deviation; below, what differs."""
    rows = [row for row in summary["variants"] if row["status"] == "complete"]
    compared = any(row.get("difference") for row in rows)
    names = [row["name"] for row in rows]
    height = 1.1 + 0.32 * len(rows)
    figure = Figure(figsize=(10, height * (2 if compared else 1) + 0.3), layout="constrained")
    grid = figure.subplots(2 if compared else 1, len(METRICS), sharey=True, squeeze=False)
    places = np.arange(len(rows))
    several = any(len(row["metrics"]["accuracy"]["rounds"]) > 1 for row in rows)
    for column, (name, title) in enumerate(METRICS.items()):
        axes = grid[0, column]
        for place, row in zip(places, rows, strict=True):
            found = row["metrics"][name]
            color = _ORANGE if row["is_baseline"] else _BLUE
            axes.errorbar(
                found["mean"], place, xerr=found["std"], fmt="D" if row["is_baseline"] else "o",
                color=color, capsize=4, markersize=7, linewidth=1.8,
            )  # fmt: skip
            each = found["rounds"]
            if several:
                axes.scatter(each, np.full(len(each), place + 0.25), s=12, color=_GREY, zorder=3)
        axes.set_title(title)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x", alpha=0.3)
        if compared:
            _draw_differences(grid[1, column], rows, name, title)
    grid[0, 0].set_yticks(places, names, parse_math=False)
    grid[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    what = "mean ± standard deviation over rounds; small: the rounds" if several else "one round"
    grid[0, 1].set_xlabel(f"test: {what}")
    if compared:
        text = f"difference to {summary['baseline']}, 95 % interval"
        grid[1, 1].set_xlabel(text, parse_math=False)
    return figure


def _draw_differences(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, title: str) -> None:
    axes.axvline(0, color=_ORANGE, linewidth=1.5)
    for place, row in enumerate(rows):
        if row["is_baseline"]:
            axes.plot(0, place, "D", color=_ORANGE, markersize=7)
        elif row.get("difference"):
            found = row["difference"][name]
            axes.plot([found["low"], found["high"]], [place, place], color=_BLUE, linewidth=1.8)
            axes.plot(found["mean"], place, "o", color=_BLUE, markersize=7)
    axes.set_title(f"{title}: difference")
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", alpha=0.3)
