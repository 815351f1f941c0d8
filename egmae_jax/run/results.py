"""Scores the branches and their ensemble, and writes results.json (paper sections 3.5, 4.4)."""

import logging
from typing import Any

from egmae_jax.core import hosts, provenance
from egmae_jax.core.files import REEVALUATE, DamagedFileError, read_sealed, write_json
from egmae_jax.data import audit, samples
from egmae_jax.evaluation import asff_weights, calibration
from egmae_jax.evaluation.predictions import Predictions, load_predictions
from egmae_jax.evaluation.scores import score_branches, summarize
from egmae_jax.run import environment, tables
from egmae_jax.run.context import Run
from egmae_jax.run.imagenet import ImagenetWeights
from egmae_jax.run.prediction import has_fusion_weights

logger = logging.getLogger(__name__)


def score_run(run: Run, imagenet: ImagenetWeights) -> dict[str, Any]:
    """Scores predictions, writes results.json and audit.json, prints and returns the results."""
    config = run.config
    results: dict[str, Any] = {
        "config": config.to_dict(),
        "dataset": _dataset(run),
        "pretraining_saw_test": _pretraining_saw_test(run),
        "pretraining": [read_sealed(run.paths.pretraining_report(i)) for i in run.pretrainings],
        "branches": {branch.name: branch.model_name for branch in run.branches},
        "imagenet_weights": imagenet.sources,
        "imagenet_sha256": imagenet.recorded(),
        "skipped_steps": run.policy.skipped(),
        "rounds": [_score(run, round_index) for round_index in run.rounds],
    }
    if run.pretrainings and run.data.unlabelled is not None:
        results["pretraining_unlabelled"] = [
            run.data.unlabelled.report(i) for i in run.pretrainings
        ]
    if run.pretrainings and config.pretrain.weights:
        results["pretraining_started_from"] = _started_from(run)
    results["summary"] = summarize(results["rounds"])
    results["summary_by_class"] = summarize(results["rounds"], "by_class")
    if asff_branches := [b.name for b in run.branches if has_fusion_weights(b)]:
        results["fusion_weights"] = {
            name: asff_weights.average([r["fusion_weights"][name] for r in results["rounds"]])
            for name in asff_branches
        }
    results["made_with"] = provenance.describe_process() | environment.read(run.paths.environment)
    if hosts.is_primary():
        write_json(run.paths.audit, audit.audit(run.data.prepared))
        write_json(run.paths.results, results)
    for sentence in calibration.explain_rounds(results["rounds"], results["summary"]):
        logger.warning("%s", sentence)
    tables.print_results(results)
    return results


def _dataset(run: Run) -> dict[str, Any]:
    """Returns the entry "dataset" of results.json: classes, and the numbers of images by use."""
    prepared, left_out = run.data.prepared, run.data.left_out
    return {
        "name": prepared.name,
        "title": prepared.title,
        "classes": list(prepared.classes),
        "citation": prepared.citation,
        "counts": run.data.counts(0),
        "protocol": run.config.data.protocol,
        "duplicate_groups": len(prepared.near_duplicates),
        "found": prepared.num_found,
        "left_out": sum(left_out.values()),
        "left_out_by_reason": left_out,
        "other_classes": dict(prepared.other_classes),
        "account": run.data.account,
        "made_parts": list(run.data.made_parts),
        "skipped": list(prepared.skipped),
        "intensity_range": samples.to_json(prepared.intensity),
    }


def _started_from(run: Run) -> list[dict[str, Any]]:
    """Returns the weights that each pre-training started from, see `pretrained`; [] without any."""
    if not run.config.pretrain.weights:
        return []
    return [read_sealed(run.paths.started_from(split)) for split in run.pretrainings]


def _pretraining_saw_test(run: Run) -> bool:
    """Whether a pre-training saw test images, without labels, or images of their groups."""
    if not run.pretrainings:
        return False
    folders = run.data.unlabelled
    reports = [folders.report(i)["groups_of"] for i in run.pretrainings] if folders else []
    reports += [record["seen"] or {} for record in _started_from(run)]
    return "test" in run.config.pretrain.splits or any(r.get("test") for r in reports)


def _predictions(run: Run, branch: str, round_index: int, part: str) -> Predictions:
    """Loads the predictions of one part; raises DamagedFileError if they are of other images."""
    path = run.paths.predictions(branch, round_index, part)
    predictions = load_predictions(path)
    files = [run.data.prepared.files[i] for i in run.data.indices(round_index, part)]
    if predictions.ids.tolist() != files:
        raise DamagedFileError(path, f"its images are not those of the {part} part", REEVALUATE)
    return predictions


def _score(run: Run, round_index: int) -> dict[str, Any]:
    """Returns the entry of one round in results.json."""
    names = [branch.name for branch in run.branches]
    predictions = {
        part: {name: _predictions(run, name, round_index, part) for name in names}
        for part in ("validation", "test")
    }
    scores = score_branches(
        predictions["validation"],
        predictions["test"],
        classes=run.data.prepared.classes,
        fusion_kind=run.config.fusion.kind,
        resamples=run.config.evaluation.bootstrap_resamples,
    )
    row: dict[str, Any] = {"round": round_index, "seed": run.config.seed + round_index}
    row["trainable"] = {name: read_sealed(run.paths.layers(name, round_index)) for name in names}
    weights = {
        branch.name: read_sealed(run.paths.fusion_weights(branch.name, round_index))
        for branch in run.branches
        if has_fusion_weights(branch)
    }
    if weights:
        row["fusion_weights"] = weights
    if run.config.finetune.label_share < 1:
        row["labelled"] = run.data.labelled(round_index)
    if run.data.num_splits > 1:  # dataset.counts hold only for the first round
        row["counts"] = run.data.counts(round_index)
    return row | scores
