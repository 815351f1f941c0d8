"""What a sweep came to: which variant validation chooses, and what the test images say of it.

Who compares variants on test images and takes the best has chosen by them, and they flatter it.
So the choice is by validation AUC, as that of the epochs, and test figures are shown of the chosen
and of the baseline alone, unless all are asked for, as an ablation needs.
"""

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

from egmae_jax.core.files import DamagedFileError, write_atomically, write_json
from egmae_jax.evaluation.metrics import compute_metrics
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.significance import Resampled, Round
from egmae_jax.explain.lettering import fonts_of_all_letters
from egmae_jax.run.saved_run import RunError, SavedRun
from egmae_jax.sweep import sharing
from egmae_jax.sweep.variants import Sweep, Variant

METRICS = {"accuracy": "Accuracy", "f1": "F1", "auc": "AUC"}
_CRITERION = "auc"
_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#767676"  # Okabe and Ito's
_ABLATION = "for an ablation: nothing may be chosen from this"
_NOTE = (
    "Differences: the same rounds and test images, mean over rounds; 95 % intervals of what the "
    "recipes differ by on other rounds and cases, by the variance between rounds and a bootstrap "
    "of groups of images; not corrected for several comparisons."
)
_NOTE_OF_ONE_ROUND = (
    "Of one round an interval knows of other cases alone, not of other seeds: run several."
)


class Scored(NamedTuple):
    """A variant that is complete: what its ensemble, or its only branch, says."""

    branch: str
    fusion: str | None  # of `fusion.KINDS`; None for a single branch
    validation: list[Predictions]  # one a round
    test: list[Predictions]


def summarize(
    sweep: Sweep,
    out: Path,
    failures: Mapping[str, str],
    *,
    resamples: int,
    all_on_test: bool = False,
) -> dict[str, Any]:
    """Scores the variants that are complete and chooses one of them on validation images.

    Args:
        sweep: the sweep.
        out: its folder.
        failures: why a variant has failed, by name.
        resamples: of the bootstrap.
        all_on_test: scores all variants on test images, not the chosen and the baseline alone.

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
    validation = {name: _metrics(found.validation) for name, found in scored.items()}
    chosen = _best(validation)
    baseline = scored.get(sweep.baseline)
    variants = []
    for variant in sweep.variants:
        name = variant.name
        row = _row(variant, out, scored.get(name), failures)
        row |= {"is_baseline": name == sweep.baseline, "is_chosen": name == chosen}
        if name in scored:
            row["validation"] = validation[name]
            if all_on_test or name in (chosen, sweep.baseline):
                row["test"] = _metrics(scored[name].test)
                row["test_groups"] = _num_groups(scored[name].test)
                if baseline is not None and name != sweep.baseline:
                    row["difference"] = paired_difference(
                        scored[name].test, baseline.test, resamples=resamples
                    )
        variants.append(row)
    return {
        "baseline": sweep.baseline,
        "chosen": chosen,
        "selection": _selection(scored, len(sweep.variants)),
        "all_on_test": all_on_test,
        "test": f"all variants, {_ABLATION}" if all_on_test else "the chosen and the baseline",
        "differences": _differences_note(scored),
        "variants": variants,
    }


def score(workdir: Path) -> Scored:
    """What a complete run says of its validation and test images.

    Raises:
        RunError, DamagedFileError: a file of it cannot be read.
    """
    run = SavedRun(workdir)
    branch = list(run.results()["rounds"][0]["test"])[-1]
    said: dict[str, list[Predictions]] = {"validation": [], "test": []}
    kind = None
    for index in run.rounds:
        fusion = run.ensemble(index).fusion
        for split, rounds in said.items():
            each = [run.predictions(b, index, split) for b in run.branches]
            if fusion is not None:
                kind = fusion.kind
                fused = fusion.apply([one.probabilities for one in each])
                each = [each[0]._replace(probabilities=fused)]
            rounds.append(each[0])
    return Scored(branch, kind, **said)


def _metrics(rounds: Sequence[Predictions]) -> dict[str, dict[str, Any]]:
    """{metric of METRICS: {"mean", "std" (n - 1, None for one round), "rounds"}}."""
    each = [compute_metrics(said.labels, said.probabilities) for said in rounds]
    found = {}
    for name in METRICS:
        values = [metrics[name] for metrics in each]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        found[name] = {"mean": float(np.mean(values)), "std": std, "rounds": values}
    return found


def _best(validation: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The variant of the highest validation AUC; of equals the first; None where there is none."""
    return max(validation, key=lambda name: validation[name][_CRITERION]["mean"], default=None)


def _num_groups(rounds: Sequence[Predictions]) -> int:
    """Of all test images, an image counted once."""
    return len(np.unique(np.concatenate([said.groups for said in rounds])))


def _selection(scored: Mapping[str, Scored], variants: int) -> str:
    """Sentences on how was chosen, and what the validation figures are worth."""
    found = [
        "Chosen on validation: the highest AUC there, mean over rounds, of "
        f"{len(scored)} complete variants of {variants}. Validation figures flatter, for they also "
        "chose the epoch of every network."
    ]
    fitted = [name for name, x in scored.items() if x.fusion not in (None, "mean")]
    if fitted:
        found.append(
            f"More so those of {', '.join(fitted)}, whose fusion was fitted on these images."
        )
    names = list(scored)
    others = [name for name in names if not _same_images(scored[name], scored[names[0]])]
    if others:
        found.append(
            f"Of other validation images than {names[0]}, so that the choice compares figures of "
            f"different images: {', '.join(others)}."
        )
    return " ".join(found)


def _same_images(one: Scored, other: Scored) -> bool:
    return len(one.validation) == len(other.validation) and all(
        np.array_equal(a.ids, b.ids) for a, b in zip(one.validation, other.validation, strict=True)
    )


def _differences_note(scored: Mapping[str, Scored]) -> str:
    one_round = any(len(found.test) == 1 for found in scored.values())
    return f"{_NOTE} {_NOTE_OF_ONE_ROUND}" if one_round else _NOTE


def _row(
    variant: Variant, out: Path, found: Scored | None, failures: Mapping[str, str]
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
    return row | {"status": "complete", "branch": found.branch, "rounds": len(found.test)}


def paired_difference(
    ours: Sequence[Predictions], theirs: Sequence[Predictions], *, resamples: int
) -> dict[str, Any] | None:
    """How much better ours are, round by round of the same images, with a 95 % interval.

    The interval is of what two recipes differ by, over rounds and cases that might have been
    others: `bootstrap.of_recipe`.

    Args:
        ours: one a round.
        theirs: one a round.
        resamples: of the bootstrap of groups.

    Returns:
        {metric of METRICS: {"mean", "low", "high"}}; None where rounds or images are not the same.
    """
    pairs = list(zip(ours, theirs, strict=False))
    if len(ours) != len(theirs) or not all(
        np.array_equal(a.ids, b.ids) and np.array_equal(a.labels, b.labels) for a, b in pairs
    ):
        return None
    rounds = [Round(a.ids, a.labels, (b.probabilities, a.probabilities), a.groups)
              for a, b in pairs]  # fmt: skip
    resampled = Resampled(rounds, resamples=resamples, random_rounds=True)
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
    """A row a variant; empty cells for what is not known, or not shown."""
    rows = []
    for row in summary["variants"]:
        cells = {
            "variant": row["name"],
            "status": row["status"],
            "branch": row.get("branch", ""),
            "rounds": row.get("rounds", ""),
            "chosen_on_validation": str(row["is_chosen"]).lower(),
        }
        for part in ("validation", "test"):
            for name in METRICS:
                of_metric = row.get(part, {}).get(name, {})
                cells[f"{part}_{name}"] = of_metric.get("mean", "")
                cells[f"{part}_{name}_std"] = of_metric.get("std", "")
        for name in METRICS:
            difference = (row.get("difference") or {}).get(name, {})
            cells |= {
                f"test_{name}_difference": difference.get("mean", ""),
                f"test_{name}_difference_low": difference.get("low", ""),
                f"test_{name}_difference_high": difference.get("high", ""),
            }
        rows.append(cells)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def show(summary: Mapping[str, Any]) -> None:
    """Prints the choice on validation, test figures of what it shows, and what is missing."""
    terminal = rich.console.Console(highlight=False, emoji=False)
    rows = summary["variants"]
    complete = [row for row in rows if row["status"] == "complete"]
    titles = ["Rounds", *METRICS.values()]
    if complete:
        over = _over(complete)
        terminal.print(f"\nValidation, {over}:")
        terminal.print(_table(complete, titles, lambda row: _figures(row, "validation")))
        terminal.print(f"{summary['selection']}", markup=False)
        terminal.print(f"Chosen on validation: {summary['chosen']}", markup=False, style="bold")
    if tested := [row for row in complete if "test" in row]:
        groups = sorted({row["test_groups"] for row in tested})
        counted = " to ".join(map(str, dict.fromkeys((groups[0], groups[-1]))))
        terminal.print(
            f"\nTest, {over}, images in {counted} groups; {summary['test']}:", markup=False
        )
        terminal.print(_table(tested, titles, lambda row: _figures(row, "test")))
    if compared := [row for row in complete if row.get("difference")]:
        ending = f", {_ABLATION}" if summary["all_on_test"] else ""
        terminal.print(
            f"Test, difference to {summary['baseline']} (95 % interval){ending}:", markup=False
        )
        terminal.print(_table(compared, list(METRICS.values()), _differences))
        terminal.print(summary["differences"])
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


def _over(rows: Sequence[Mapping[str, Any]]) -> str:
    several = any(row["rounds"] > 1 for row in rows)
    return "mean ± standard deviation over rounds" if several else "one round"


def _table(rows: Sequence[Mapping[str, Any]], titles: Sequence[str], cells: Any) -> Any:
    # Fits 80 columns with the longest name of configs/sweeps, 'entropy_noise_0.05'.
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, padding=0)
    table.add_column("Variant", overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        style = "bold" if row["is_chosen"] else ""
        table.add_row(rich.text.Text(row["name"]), *cells(row), style=style)
    return table


def _figures(row: Mapping[str, Any], part: str) -> list[str]:
    cells = [str(row["rounds"])]
    for name in METRICS:
        mean, std = row[part][name]["mean"], row[part][name]["std"]
        cells.append("  " + _short(mean) + ("" if std is None else f" ± {_short(std)}"))
    return cells


def _differences(row: Mapping[str, Any]) -> list[str]:
    found = [row["difference"][name] for name in METRICS]
    return [f"{_short(x['mean'], '+')} ({_short(x['low'], '+')} {_short(x['high'], '+')})"
            for x in found]  # fmt: skip


def _short(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}".replace("0.", ".", 1)


@fonts_of_all_letters()
def draw(summary: Mapping[str, Any]) -> Figure:
    """Validation of all variants, test of those that are shown, and what differs on test images."""
    rows = [row for row in summary["variants"] if row["status"] == "complete"]
    tested = [row for row in rows if "test" in row]
    compared = [row for row in tested if row.get("difference") or row["is_baseline"]]
    parts = [("validation", rows), ("test", tested)]
    if any(row.get("difference") for row in rows):
        parts.append(("difference", compared))
    heights = [0.9 + 0.32 * len(shown) for _, shown in parts]
    figure = Figure(figsize=(10, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(f"Chosen on validation: {summary['chosen']}", parse_math=False)
    grid = figure.subplots(
        len(parts), len(METRICS), sharey="row", squeeze=False, height_ratios=heights
    )
    several = any(row["rounds"] > 1 for row in rows)
    what = "mean ± standard deviation over rounds; small: the rounds" if several else "one round"
    ending = f", {_ABLATION}" if summary["all_on_test"] else ""
    labels = {
        "validation": f"validation: {what}",
        "test": f"test{ending or ' of ' + summary['test']}: {what}",
        "difference": f"test: difference to {summary['baseline']}, 95 % interval{ending}",
    }
    for axes, (part, shown) in zip(grid, parts, strict=True):
        for column, (name, title) in enumerate(METRICS.items()):
            (_draw_differences if part == "difference" else _draw_figures)(
                axes[column], shown, name, part
            )
            axes[column].set_title(f"{title}: {part}")
            axes[column].locator_params(axis="x", nbins=5)
            axes[column].grid(axis="x", alpha=0.3)
        names = [row["name"] + (" (chosen)" if row["is_chosen"] else "") for row in shown]
        axes[0].set_yticks(np.arange(len(shown)), names, parse_math=False)
        axes[0].set_ylim(len(shown) - 0.4, -0.6)
        axes[1].set_xlabel(labels[part], parse_math=False)
    return figure


def _look(row: Mapping[str, Any]) -> tuple[str, str]:
    """Colour and marker of a variant."""
    color = _GREEN if row["is_chosen"] else _ORANGE if row["is_baseline"] else _BLUE
    return color, "D" if row["is_baseline"] else "o"


def _draw_figures(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, part: str) -> None:
    for place, row in enumerate(rows):
        found = row[part][name]
        color, marker = _look(row)
        axes.errorbar(
            found["mean"], place, xerr=found["std"], fmt=marker, color=color, capsize=4,
            markersize=7, linewidth=1.8,
        )  # fmt: skip
        if len(found["rounds"]) > 1:
            places = np.full(len(found["rounds"]), place + 0.25)
            axes.scatter(found["rounds"], places, s=12, color=_GREY, zorder=3)


def _draw_differences(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, part: str) -> None:
    axes.axvline(0, color=_ORANGE, linewidth=1.5)
    for place, row in enumerate(rows):
        color, marker = _look(row)
        found = (row.get(part) or {}).get(name, {"mean": 0, "low": 0, "high": 0})
        axes.plot([found["low"], found["high"]], [place, place], color=color, linewidth=1.8)
        axes.plot(found["mean"], place, marker, color=color, markersize=7)
