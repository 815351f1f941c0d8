"""Chooses a variant on validation images and compares it with the baseline on test images.

The test results of a variant that was chosen by test results are too optimistic. Variants are
therefore chosen by validation AUC, as epochs are by default, and test results are computed only for
the chosen variant and the baseline, unless `all_on_test` is set for an ablation.
"""

import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from egmae_jax.core.errors import UserError
from egmae_jax.core.files import write_atomically, write_json
from egmae_jax.evaluation.metrics import compute_metrics, mean_std
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.significance import Resampled, Round
from egmae_jax.report.comparison import same_images
from egmae_jax.report.table import csv_text
from egmae_jax.run.saved_run import RunError, SavedRun
from egmae_jax.sweep import display, page
from egmae_jax.sweep.run import pretraining_source
from egmae_jax.sweep.variants import Sweep, Variant, line

METRICS = tuple(display.COLUMNS)
_NOTE = (
    "Differences are means over rounds, on the same rounds and test images. Their 95 % intervals "
    "are for the recipes, over other rounds and cases: from the variance between rounds and a "
    "bootstrap of groups of images. "
)
_NOTE_OF_COMPARISONS = (
    "The {count} intervals of a metric contain all true differences together 95 % of the time "
    "(Bonferroni). "
)
_NOTE_OF_ONE_ROUND = (
    "With one round, an interval accounts only for other cases, not for other seeds: run several "
    "rounds."
)


class ScoredVariant(NamedTuple):
    """Predictions of a complete variant's ensemble, or of its only branch."""

    branch: str  # name of the branch, or 'ensemble'
    fusion: str | None  # value of the config field fusion.kind; None for a single branch
    validation: list[Predictions]  # one per round
    test: list[Predictions]  # one per round
    labelled_images: float  # training images whose labels were used, mean over rounds


def summarize(
    sweep: Sweep,
    out: Path,
    failures: Mapping[str, str],
    *,
    resamples: int,
    all_on_test: bool = False,
) -> dict[str, Any]:
    """Scores the complete variants and chooses one of them on validation images.

    Args:
        sweep: the sweep.
        out: folder of the sweep.
        failures: error messages of the variants that failed, by name.
        resamples: number of bootstrap resamples.
        all_on_test: whether all variants are scored on test images, instead of only the chosen
            variant and the baseline.

    Returns:
        The content of summary.json.
    """
    scored, failures = _score_all(sweep, out, failures)
    validation = {name: _metrics(x.validation) for name, x in scored.items()}
    order = sorted(validation, key=lambda name: validation[name]["auc"]["mean"])
    chosen = order[-1] if order else None
    compared = _best_settings(order) if sweep.tuned else {name: name for name in order}
    baseline_of = functools.partial(_baseline_of, sweep, compared)
    on_test = set(compared.values())
    if not all_on_test:
        on_test &= {chosen, baseline_of(chosen)} if chosen else set()
    comparisons = sum(baseline_of(name) in on_test - {name} for name in on_test)
    rows = []
    for variant in sweep.variants:
        name = variant.name
        row = _row(variant, out, scored.get(name), failures.get(name))
        row |= {"is_baseline": name == baseline_of(name), "is_chosen": name == chosen}
        if name in on_test:
            row |= _test(name, baseline_of(name), scored, resamples, comparisons)
        rows.append(row)
    return {
        "baseline": sweep.baseline,
        "axis": sweep.axis,
        "tuned": sweep.tuned,
        "chosen": chosen,
        "selection": _selection(scored, len(rows), sweep.tuned),
        "all_on_test": all_on_test,
        "differences": _note(scored, comparisons),
        "variants": rows,
    }


def _row(
    variant: Variant, out: Path, scored: ScoredVariant | None, failure: str | None
) -> dict[str, Any]:
    """Returns the entry of a variant in summary.json without its test scores.

    Args:
        variant: the variant.
        out: folder of the sweep.
        scored: its predictions; None if it is not complete.
        failure: its error message; None if it did not fail.
    """
    row: dict[str, Any] = {
        "name": variant.name,
        "workdir": variant.folder,
        "changes": variant.changes,
        "pretraining_from": pretraining_source(variant, out),
        "status": "not complete",
    }
    if failure is not None:
        return row | {"status": "failed", "error": failure}
    if scored is None:
        return row
    return row | {
        "status": "complete",
        "validation": _metrics(scored.validation),
        "branch": scored.branch,
        "rounds": len(scored.test),
        "labelled_images": scored.labelled_images,
    }


def _note(scored: Mapping[str, ScoredVariant], comparisons: int) -> str:
    """Returns sentences on what the intervals of differences mean."""
    one_round = any(len(x.test) == 1 for x in scored.values())
    counted = _NOTE_OF_COMPARISONS.format(count=comparisons) * (comparisons > 1)
    return (_NOTE + counted + _NOTE_OF_ONE_ROUND * one_round).strip()


def _best_settings(order: Sequence[str]) -> dict[str, str]:
    """Returns the best setting of each variant, {variant: '<variant>/<setting>'}.

    Args:
        order: names of the complete variants, by increasing validation AUC.
    """
    return {line(name): name for name in order}


def _baseline_of(sweep: Sweep, compared: Mapping[str, str], name: str) -> str | None:
    """Returns the name of the variant that a variant is compared with, in its best setting."""
    return compared.get(sweep.baseline) if sweep.tuned else sweep.baseline_of(name)


def _test(
    name: str,
    baseline: str | None,
    scored: Mapping[str, ScoredVariant],
    resamples: int,
    comparisons: int,
) -> dict[str, Any]:
    """Scores a variant on test images, with its difference to the baseline if that is complete."""
    test = scored[name].test
    groups = np.unique(np.concatenate([x.groups for x in test]))
    figures: dict[str, Any] = {"test": _metrics(test), "test_groups": len(groups)}
    if baseline and name != baseline and baseline in scored:
        figures["difference"] = paired_difference(
            test, scored[baseline].test, resamples=resamples, comparisons=comparisons
        )
    return figures


def _score_all(
    sweep: Sweep, out: Path, failures: Mapping[str, str]
) -> tuple[dict[str, ScoredVariant], dict[str, str]]:
    """Scores the complete variants.

    Returns:
        The scored variants, and `failures` with the errors of runs that cannot be read.
    """
    scored, errors = {}, dict(failures)
    for variant in sweep.variants:
        workdir = out / variant.folder
        if variant.name not in errors and (workdir / "results.json").exists():
            try:
                scored[variant.name] = score(workdir)
            except UserError as error:
                errors[variant.name] = str(error)
    return scored, errors


def score(workdir: Path) -> ScoredVariant:
    """Reads the predictions of a complete run for its validation and test images.

    Raises:
        RunError: the run has not been evaluated.
        DamagedFileError: a file of the run cannot be read.
    """
    run = SavedRun(workdir)
    branch = "ensemble" if len(run.branches) > 1 else run.branches[0].name
    parts: dict[str, list[Predictions]] = {"validation": [], "test": []}
    for index in run.rounds:
        ensemble = run.ensemble(index)
        for part, rounds in parts.items():
            each = {b.name: run.predictions(b, index, part) for b in run.branches}
            probabilities = {name: x.probabilities for name, x in each.items()}
            fused = ensemble.apply(probabilities, calibrated=False)[branch]
            rounds.append(next(iter(each.values()))._replace(probabilities=fused))
    fusion = run.config.fusion.kind if branch == "ensemble" else None
    return ScoredVariant(branch, fusion, **parts, labelled_images=_labelled_images(run.results()))


def _labelled_images(results: Mapping[str, Any]) -> float:
    """Returns the number of training images whose labels a run used, as a mean over its rounds."""
    counts = [
        row["labelled"]["images"]
        if "labelled" in row
        else sum(row.get("counts", results["dataset"]["counts"])["train"].values())
        for row in results["rounds"]
    ]
    return float(np.mean(counts))


def _metrics(rounds: Sequence[Predictions]) -> dict[str, dict[str, Any]]:
    """Returns the metrics over rounds, {metric: {"mean": ..., "std": ..., "rounds": values}}."""
    each = [compute_metrics(x.labels, x.probabilities) for x in rounds]
    values = {name: [metrics[name] for metrics in each] for name in METRICS}
    return {name: {**mean_std(x), "rounds": x} for name, x in values.items()}


def _selection(scored: Mapping[str, ScoredVariant], variants: int, tuned: bool) -> str:
    """Returns sentences on how the variant was chosen, and the bias of its validation results."""
    sentences = [
        "Chosen on validation: the highest mean validation AUC over rounds, of "
        f"{len(scored)} complete variants of {variants}. Validation results are too optimistic, "
        "because they also chose the epoch of every network."
    ]
    if tuned:
        sentences.append("The setting of each variant was chosen in the same way.")
    if fitted := [name for name, x in scored.items() if x.fusion not in (None, "mean")]:
        sentences.append(
            f"This applies even more to {', '.join(fitted)}, whose fusion was fitted on these "
            "images."
        )
    first, *others = scored or [""]
    others = [n for n in others if not _same_rounds(scored[n].validation, scored[first].validation)]
    if others:
        sentences.append(
            f"The validation images of {', '.join(others)} differ from those of {first}: the "
            "choice compares results on different images."
        )
    return " ".join(sentences)


def _same_rounds(ours: Sequence[Predictions], theirs: Sequence[Predictions]) -> bool:
    return len(ours) == len(theirs) and all(map(same_images, ours, theirs))


def paired_difference(
    ours: Sequence[Predictions],
    theirs: Sequence[Predictions],
    *,
    resamples: int,
    comparisons: int = 1,
) -> dict[str, Any] | None:
    """Computes the mean differences of two recipes on the same rounds and images.

    The 95 % intervals are for the recipes, over other rounds and cases; see
    `bootstrap.variance_of_recipe`.

    Args:
        ours: test predictions of the first recipe, one per round.
        theirs: test predictions of the second recipe, whose metrics are subtracted.
        resamples: number of bootstrap resamples.
        comparisons: number of differences whose intervals contain all true values 95 % of the time.

    Returns:
        {metric: {"mean": ..., "low": ..., "high": ...}}; None if the rounds or images differ.
    """
    if not _same_rounds(ours, theirs):
        return None
    rounds = [
        Round(a.ids, a.labels, (b.probabilities, a.probabilities), a.groups)
        for a, b in zip(ours, theirs, strict=True)
    ]
    resampled = Resampled(rounds, resamples=resamples, random_rounds=True)
    return {
        name: resampled.difference(0, 1, name, comparisons=comparisons)._asdict()
        for name in METRICS
    }


def write(summary: Mapping[str, Any], out: Path) -> None:
    """Writes summary.json and .csv and, if a variant is complete, summary.png and .html.

    Args:
        summary: result of `summarize`.
        out: folder of the sweep.

    Raises:
        RunError: no variant is complete or has failed; no file is written.
    """
    statuses = {row["status"] for row in summary["variants"]}
    if statuses == {"not complete"}:
        names = ", ".join(row["name"] for row in summary["variants"])
        raise RunError(
            f"{out} holds no complete run of this sweep ({names}): is it another sweep's?"
        )
    write_json(out / "summary.json", summary)
    write_atomically(out / "summary.csv", csv_text([_columns(row) for row in summary["variants"]]))
    if "complete" in statuses:
        picture = io.BytesIO()
        display.draw(summary).savefig(picture, format="png")
        write_atomically(out / "summary.png", picture.getvalue())
        write_atomically(out / "summary.html", page.render(summary, out).encode())


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns of a variant for summary.csv; None for missing values."""
    columns = {
        "variant": row["name"],
        "status": row["status"],
        "branch": row.get("branch"),
        "rounds": row.get("rounds"),
        "labelled_images": row.get("labelled_images"),
        "chosen_on_validation": str(row["is_chosen"]).lower(),
    }
    for part in ("validation", "test"):
        for name in METRICS:
            figures = row.get(part, {}).get(name, {})
            columns[f"{part}_{name}"] = figures.get("mean")
            columns[f"{part}_{name}_std"] = figures.get("std")
    for name in METRICS:
        difference = (row.get("difference") or {}).get(name, {})
        for key, end in (("mean", ""), ("low", "_low"), ("high", "_high")):
            columns[f"test_{name}_difference{end}"] = difference.get(key)
    return columns
