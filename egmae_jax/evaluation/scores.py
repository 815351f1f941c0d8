"""Scores of every branch and of their ensemble (paper sections 3.5 and 4.4), and over rounds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egmae_jax.evaluation import bootstrap, calibration, ensemble
from egmae_jax.evaluation.bootstrap import Variance
from egmae_jax.evaluation.metrics import (
    CLASS_METRICS,
    METRICS,
    WEIGHTED_METRICS,
    class_metrics,
    compute_metrics,
    confusion_matrix,
    cross_entropy,
    weighted_metrics,
)
from egmae_jax.evaluation.predictions import Predictions


def score_branches(
    validation: Mapping[str, Predictions],
    test: Mapping[str, Predictions],
    *,
    classes: Sequence[str],
    fusion_kind: str = "mean",
    resamples: int,
) -> dict[str, Any]:
    """Metrics, intervals and confusion matrices of every branch and of their ensemble.

    Args:
        validation: by branch; the fusion is fitted on these.
        test: by branch; these are scored.
        classes: names.
        fusion_kind: one of `fusion.KINDS`.
        resamples: of the bootstrap.

    Returns:
        {"groups": of the test images, "groups_by_class": {class: groups that hold one of it},
        "test": {branch: metrics}, "by_class": {branch: {class: metrics}}, "intervals":
        {branch: ...}, "confusion": {branch: ...}, "calibration": {branch: what was fitted on
        validation (`calibration.Fit`), "ece" and "loss" of the calibrated probabilities}}, with
        'ensemble' among the branches where there are several, and what its "fusion" fitted.
    """
    seen = {
        split: {name: branch.probabilities for name, branch in predictions.items()}
        for split, predictions in (("validation", validation), ("test", test))
    }
    labels, of_validation = (next(iter(part.values())).labels for part in (test, validation))
    groups = next(iter(test.values())).groups
    evidence = bootstrap.count_groups(labels, groups, len(classes))
    scores: dict[str, Any] = {
        "groups": evidence.groups,
        "groups_by_class": dict(zip(classes, evidence.by_class, strict=True)),
    }
    if len(test) > 1:
        fused = ensemble.fit(
            fusion_kind, of_validation, [seen["validation"][name] for name in test]
        )
        for part in seen.values():
            part["ensemble"] = fused.apply([part[name] for name in test])
        scores["fusion"] = {"kind": fusion_kind, "branches": list(test), **fused.fitted}
    probabilities = seen["test"]
    of_one = next(iter(validation.values())).groups
    fits = {
        name: calibration.fit(of_validation, p, of_one) for name, p in seen["validation"].items()
    }
    return scores | {
        "test": {name: compute_metrics(labels, p) for name, p in probabilities.items()},
        "by_class": {name: class_metrics(labels, p, classes) for name, p in probabilities.items()},
        "intervals": {
            name: bootstrap_intervals(labels, p, groups=groups, seed=0, resamples=resamples)
            for name, p in probabilities.items()
        },
        "confusion": {
            name: confusion_matrix(labels, p.argmax(axis=1), p.shape[1]).tolist()
            for name, p in probabilities.items()
        },
        "calibration": {
            name: _calibrated(labels, p, fits[name]) for name, p in probabilities.items()
        },
    }


def _calibrated(
    labels: np.ndarray, probabilities: np.ndarray, fit: calibration.Fit
) -> dict[str, Any]:
    scaled = fit.scaling.apply(probabilities)
    return {
        "temperature": fit.temperature,
        "least_probability": fit.least,
        "evidence": fit.evidence,
        "likeliest_temperature": fit.likeliest,
        "limit": fit.limit,
        "ece": calibration.expected_error(labels, scaled),
        "loss": cross_entropy(labels, scaled),
    }


def bootstrap_intervals(
    labels: np.ndarray, probabilities: np.ndarray, *, groups: np.ndarray, seed: int, resamples: int
) -> dict[str, list[float]]:
    """95 % intervals of accuracy, precision, recall, F1 and AUC: how sure they are for a network.

    Groups are resampled, not images (`bootstrap.bootstrap_weights`). Of fewer than three groups
    nothing is known: an interval is 0 to 1.

    Args:
        labels: int [N].
        probabilities: [N, num_classes].
        groups: int [N]; images of a group (a patient, a lesion, near-duplicates) are no independent
            evidence. `np.arange(N)` says that every image is.
        seed: of the resamples.
        resamples: of the groups.
    """
    evidence = bootstrap.count_groups(labels, groups, probabilities.shape[1])
    if not bootstrap.can_resample(evidence.groups):
        return {name: [0.0, 1.0] for name in WEIGHTED_METRICS}
    rng = np.random.default_rng(seed)
    weights = bootstrap.bootstrap_weights(labels, groups, rng, resamples)
    drawn = weighted_metrics(labels, probabilities, weights)
    whole = weighted_metrics(labels, probabilities, np.ones((1, len(labels))))
    return {
        name: list(
            bootstrap.interval(
                name, float(whole[name][0]), Variance(float(values.var(ddof=1))), evidence
            )
        )
        for name, values in drawn.items()
    }


def summarize(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over rounds of every branch's metrics: {branch: {metric: ...}}.

    The deviation is the sample's (n - 1); it is None for a single round.
    """
    return {
        branch: {name: _mean_std([r["test"][branch][name] for r in rounds]) for name in METRICS}
        for branch in rounds[0]["test"]
    }


def summarize_classes(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """As `summarize`, of every class against the rest: {branch: {class: {metric: ...}}}."""
    return {
        branch: {
            label: {
                name: _mean_std([r["by_class"][branch][label][name] for r in rounds])
                for name in CLASS_METRICS
            }
            for label in classes
        }
        for branch, classes in rounds[0]["by_class"].items()
    }


def _mean_std(values: Sequence[float]) -> dict[str, float | None]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std}
