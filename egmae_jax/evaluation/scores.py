"""Scores of every branch and of the ensemble (paper sections 3.5 and 4.4)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from egmae_jax.evaluation import bootstrap, calibration, ensemble
from egmae_jax.evaluation.bootstrap import FEWEST_GROUPS, Variance
from egmae_jax.evaluation.metrics import (
    CLASS_METRICS,
    WEIGHTED_METRICS,
    class_metrics,
    compute_metrics,
    confusion_matrix,
    cross_entropy,
    mean_std,
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
    """Scores every branch, and their ensemble where there are several.

    Args:
        validation: predictions by branch; fusion and temperatures are fitted on these.
        test: predictions by branch; these are scored.
        classes: names of the classes.
        fusion_kind: one of `fusion.KINDS`.
        resamples: number of bootstrap resamples.

    Returns:
        One round of results.json: "groups" of the test images, "groups_by_class", what the "fusion"
        of several branches fitted, and by branch (one being "ensemble") the "test" metrics, those
        "by_class", the "intervals", "confusion" and "calibration" (see `calibration.Fit`, with
        "ece" and "loss" of the calibrated test probabilities).
    """
    labels, groups = _labels_and_groups(test)
    fitted_on = {name: branch.probabilities for name, branch in validation.items()}
    probabilities = {name: branch.probabilities for name, branch in test.items()}
    evidence = bootstrap.count_groups(labels, groups, len(classes))
    scores: dict[str, Any] = {
        "groups": evidence.groups,
        "groups_by_class": dict(zip(classes, evidence.by_class, strict=True)),
    }
    validation_labels, validation_groups = _labels_and_groups(validation)
    if len(test) > 1:
        fusion = ensemble.fit(fusion_kind, validation_labels, [fitted_on[name] for name in test])
        scores["fusion"] = {"kind": fusion_kind, "branches": list(test), **fusion.fitted}
        for part in (fitted_on, probabilities):
            part["ensemble"] = fusion.apply([part[name] for name in test])
    for name, p in probabilities.items():
        fit = calibration.fit(validation_labels, fitted_on[name], validation_groups)
        of_classifier = {
            "test": compute_metrics(labels, p),
            "by_class": class_metrics(labels, p, classes),
            "intervals": bootstrap_intervals(labels, p, groups=groups, seed=0, resamples=resamples),
            "confusion": confusion_matrix(labels, p.argmax(axis=1), len(classes)).tolist(),
            "calibration": _calibrated(labels, p, fit),
        }
        for key, value in of_classifier.items():
            scores.setdefault(key, {})[name] = value
    return scores


def _labels_and_groups(part: Mapping[str, Predictions]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups of the images of a part, which are the same for all branches."""
    branch = next(iter(part.values()))
    return branch.labels, branch.groups


def _calibrated(
    labels: np.ndarray, probabilities: np.ndarray, fit: calibration.Fit
) -> dict[str, Any]:
    """A temperature as results.json has it, with the metrics of calibrated test probabilities."""
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
    """95 % intervals of a network's accuracy, precision, recall, F1 and AUC.

    Groups are resampled, not images (`bootstrap.bootstrap_weights`). With fewer than three groups
    an interval is 0 to 1.

    Args:
        labels: int [N].
        probabilities: [N, num_classes].
        groups: int [N], equal for images of one patient, lesion or set of near-duplicates, which
            are no independent evidence; `np.arange(N)` where all images are independent.
        seed: seed of the resamples.
        resamples: number of resamples.

    Returns:
        {metric of WEIGHTED_METRICS: [low, high]}.
    """
    evidence = bootstrap.count_groups(labels, groups, probabilities.shape[1])
    if evidence.groups < FEWEST_GROUPS:
        return {name: [0.0, 1.0] for name in WEIGHTED_METRICS}
    rng = np.random.default_rng(seed)
    weights = bootstrap.bootstrap_weights(labels, groups, rng, resamples)
    resampled = weighted_metrics(labels, probabilities, weights)
    whole = weighted_metrics(labels, probabilities, np.ones((1, len(labels))))
    return {
        name: list(
            bootstrap.interval(
                name, float(whole[name][0]), Variance(float(values.var(ddof=1))), evidence
            )
        )
        for name, values in resampled.items()
    }


def summarize(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and sample deviation of every metric over rounds: {branch: {metric: {"mean", "std"}}}.

    The deviation (n - 1) is None for a single round.
    """
    return {
        branch: {name: mean_std([r["test"][branch][name] for r in rounds]) for name in metrics}
        for branch, metrics in rounds[0]["test"].items()
    }


def summarize_classes(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same for each class against the rest: {branch: {class: {metric: {"mean", "std"}}}}."""
    return {
        branch: {
            label: {
                name: mean_std([r["by_class"][branch][label][name] for r in rounds])
                for name in CLASS_METRICS
            }
            for label in classes
        }
        for branch, classes in rounds[0]["by_class"].items()
    }
