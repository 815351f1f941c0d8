"""What docs/evidence keeps of a sweep: scores by variant and fold, and the contrasts."""

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
from egmae_jax.sweep.variants import Sweep, line

FOLDER = Path(__file__).parents[2] / "docs/evidence"
METRICS = ("accuracy", "f1", "auc")
RESAMPLES = 1000


def write(name: str, dataset: str, sweep: Sweep, out: Path) -> None:
    """Writes docs/evidence/<name>_<dataset>.json from the complete runs of a sweep."""
    scored, rows = {}, []
    results: dict[str, Any] = {}
    for variant in sweep.variants:
        workdir = out / variant.folder
        if not (workdir / "results.json").exists():
            continue
        results = read_json(workdir / "results.json")
        for name_of_row, each in score(variant.name, workdir).items():
            scored[name_of_row] = each
            rounds = [
                {"fold": k, "seed": row["seed"], **_scores(each, k)}
                for k, row in enumerate(results["rounds"])
            ]
            rows.append({"name": name_of_row, "changes": variant.changes, "rounds": rounds})
    if not rows:
        return
    experiment = plan.EXPERIMENTS[name]
    chosen = best_settings(rows) if sweep.tuned else {row["name"]: row["name"] for row in rows}
    pairs = [[chosen.get(x) for x in pair] for pair in experiment.contrasts]
    contrasts = []
    for first, second in pairs:
        if first and second:
            found = summary.paired_difference(
                scored[first].test,
                scored[second].test,
                resamples=RESAMPLES,
                comparisons=len(experiment.contrasts),
            )
            contrasts.append({"first": first, "second": second, "difference": found})
    counts = results["dataset"]["counts"]
    write_json(
        path_of(name, dataset),
        {
            "command": _command(name, dataset),
            "protocol": results["dataset"]["protocol"],
            "classes": results["dataset"]["classes"],
            "images": int(sum(sum(part.values()) for part in counts.values())),
            "made_with": {key: results["made_with"][key] for key in ("commit", "versions")},
            "complete": all((out / x.folder / "results.json").exists() for x in sweep.variants),
            "tuned": sweep.tuned,
            "variants": rows,
            "comparisons": len(experiment.contrasts),
            "contrasts": contrasts,
        },
    )


def path_of(name: str, dataset: str) -> Path:
    """Returns the file of an experiment on a data set."""
    return FOLDER / f"{name}_{dataset}.json"


def is_complete(name: str, dataset: str) -> bool:
    """Whether all variants are recorded, of the experiment as it is planned now."""
    path = path_of(name, dataset)
    kept = read_json(path) if path.exists() else {}
    return kept.get("complete", False) and kept["command"] == _command(name, dataset)


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


def best_settings(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Returns the setting of each variant with the best validation AUC, by the variant's name."""
    order = sorted(rows, key=lambda row: np.mean([x["validation"]["auc"] for x in row["rounds"]]))
    return {line(row["name"]): row["name"] for row in order}


def _scores(scored: ScoredVariant, k: int) -> dict[str, Any]:
    """Returns the scores of fold k, rounded to the fifth place, and the sizes of its test part."""
    parts: dict[str, Any] = {}
    for part in ("validation", "test"):
        predictions = getattr(scored, part)[k]
        metrics = compute_metrics(predictions.labels, predictions.probabilities)
        parts[part] = {metric: round(metrics[metric], 5) for metric in METRICS}
    test = scored.test[k]
    return parts | {"test_images": len(test.ids), "test_groups": len(np.unique(test.groups))}
