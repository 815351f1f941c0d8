"""What docs/evidence keeps of a sweep: scores by variant and round.

Where each round has test images and a pre-training of its own (folds), the differences between
variants follow from these. Where rounds share them (seeds), their intervals need the predictions,
and are kept, too.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import plan
from egmae_jax.core.files import read_json, write_json
from egmae_jax.evaluation import ensemble
from egmae_jax.evaluation.metrics import compute_metrics
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.method.fusion import KINDS
from egmae_jax.run.saved_run import SavedRun
from egmae_jax.sweep import summary
from egmae_jax.sweep.summary import ScoredVariant
from egmae_jax.sweep.variants import Sweep

FOLDER = Path(__file__).parents[2] / "docs/evidence"
METRICS = ("accuracy", "f1", "auc")
RESAMPLES = 1000


def write(name: str, dataset: str, sweep: Sweep, out: Path) -> None:
    """Adds the complete runs of a sweep to docs/evidence/<name>_<dataset>.json.

    Args:
        name: one of plan.EXPERIMENTS.
        dataset: one of its data sets.
        sweep: the sweep, with all variants.
        out: folder of the sweep, where some variants may be missing.
    """
    scored: dict[str, ScoredVariant] = {}
    kept = read(name, dataset)
    rows = {row["name"]: row for row in kept.get("variants", ())}
    results: dict[str, Any] = {}
    for variant in sweep.variants:
        workdir = out / variant.folder
        if (workdir / "results.json").exists():
            results = read_json(workdir / "results.json")
            parts = {variant.name: summary.score(workdir)} if sweep.axis else None
            for row_name, each in (parts or score(variant.name, workdir)).items():
                scored[row_name] = each
                rows[row_name] = {
                    "name": row_name,
                    "variant": variant.name,
                    "changes": variant.changes,
                    "commit": results["made_with"]["commit"],
                    "rounds": [
                        {"fold": k, "seed": row["seed"], **_scores(each, k)}
                        for k, row in enumerate(results["rounds"])
                    ],
                }
    if not results:
        return
    order = [variant.name for variant in sweep.variants]
    recorded = sorted(rows.values(), key=lambda row: order.index(row["variant"]))
    counts = results["dataset"]["counts"]
    record = {
        "command": _command(name, dataset),
        "protocol": results["dataset"]["protocol"],
        "classes": results["dataset"]["classes"],
        "images": int(sum(sum(part.values()) for part in counts.values())),
        "versions": results["made_with"]["versions"],
        "complete": {row["variant"] for row in recorded} == set(order),
        "tuned": sweep.tuned,
        "variants": recorded,
    }
    if not plan.EXPERIMENTS[name].in_folds:
        record["differences"] = kept.get("differences", {}) | _differences(name, scored)
    write_json(path_of(name, dataset), record)


def read(name: str, dataset: str) -> dict[str, Any]:
    """Returns what is recorded of an experiment as it is planned now, or an empty dict."""
    path = path_of(name, dataset)
    record = read_json(path) if path.exists() else {}
    return record if record.get("command") == _command(name, dataset) else {}


def remaining(name: str, dataset: str, sweep: Sweep) -> Sweep:
    """Returns a sweep with the variants that have to be run to complete a record.

    These are the ones that are not recorded and, where rounds are seeds, those of a contrast that
    is not, which needs the predictions of both.
    """
    record, experiment = read(name, dataset), plan.EXPERIMENTS[name]
    needed = {x.name for x in sweep.variants}
    needed -= {row["variant"] for row in record.get("variants", ())}
    if not experiment.in_folds:
        for contrast in experiment.contrasts:
            if contrast.title not in record.get("differences", {}):
                needed |= {*contrast.first, *contrast.second}
    return sweep._replace(variants=tuple(x for x in sweep.variants if x.name in needed))


def _differences(name: str, scored: dict[str, ScoredVariant]) -> dict[str, Any]:
    """Returns the contrasts of rounds that share test images, by title: mean and interval."""
    contrasts = plan.EXPERIMENTS[name].contrasts
    found = {}
    for title, (first,), (second,) in contrasts:
        if first in scored and second in scored:
            found[title] = summary.paired_difference(
                scored[first].test,
                scored[second].test,
                resamples=RESAMPLES,
                comparisons=len(contrasts),
            )
    return found


def path_of(name: str, dataset: str) -> Path:
    """Returns the file of an experiment on a data set."""
    return FOLDER / f"{name}_{dataset}.json"


def _command(name: str, dataset: str) -> str:
    experiment = plan.EXPERIMENTS[name]
    return plan.command(experiment, dataset, f"runs/evidence/{name}/{dataset}")


def score(name: str, workdir: Path) -> dict[str, ScoredVariant]:
    """Scores a run: its only branch by the variant's name, or each branch and each fusion.

    Names of the latter are '<variant>, <branch>' and '<variant>, <fusion>'; the fusions are fitted
    on the validation images of each round.
    """
    scored = summary.score(workdir)
    run = SavedRun(workdir)
    if len(run.branches) == 1:
        return {name: scored}
    parts = {
        part: [{b.name: run.predictions(b, k, part) for b in run.branches} for k in run.rounds]
        for part in ("validation", "test")
    }
    found = {}
    for branch in run.branches:
        each = {part: [x[branch.name] for x in rounds] for part, rounds in parts.items()}
        found[f"{name}, {branch.name}"] = scored._replace(branch=branch.name, fusion=None, **each)
    for kind in KINDS:
        fused: dict[str, list[Predictions]] = {"validation": [], "test": []}
        for validation, test in zip(parts["validation"], parts["test"], strict=True):
            probabilities = [x.probabilities for x in validation.values()]
            fusion = ensemble.fit(kind, next(iter(validation.values())).labels, probabilities)
            for part, each in (("validation", validation), ("test", test)):
                mixed = fusion.apply([x.probabilities for x in each.values()])
                fused[part].append(next(iter(each.values()))._replace(probabilities=mixed))
        found[f"{name}, {kind}"] = scored._replace(fusion=kind, **fused)
    return found


def _scores(scored: ScoredVariant, k: int) -> dict[str, Any]:
    """Returns the scores of fold k, rounded to the fifth place, and the sizes of its test part."""
    parts: dict[str, Any] = {}
    for part in ("validation", "test"):
        predictions = getattr(scored, part)[k]
        metrics = compute_metrics(predictions.labels, predictions.probabilities)
        parts[part] = {metric: round(metrics[metric], 5) for metric in METRICS}
    test = scored.test[k]
    return parts | {"test_images": len(test.ids), "test_groups": len(np.unique(test.groups))}
