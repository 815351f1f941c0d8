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
    first_validation, first_test = next(iter(validation.values())), next(iter(test.values()))
    labels, groups = first_test.labels, first_test.groups
    fitted_on = {name: branch.probabilities for name, branch in validation.items()}
    probabilities = {name: branch.probabilities for name, branch in test.items()}
    evidence = bootstrap.count_groups(labels, groups, len(classes))
    scores: dict[str, Any] = {
        "groups": evidence.groups,
        "groups_by_class": dict(zip(classes, evidence.by_class, strict=True)),
    }
    if len(test) > 1:
        branches = list(test)
        of_branches = [fitted_on[name] for name in branches]
        fusion = ensemble.fit(fusion_kind, first_validation.labels, of_branches)
        scores["fusion"] = {"kind": fusion_kind, "branches": branches, **fusion.fitted}
        fitted_on["ensemble"] = fusion.apply(of_branches)
        probabilities["ensemble"] = fusion.apply([probabilities[name] for name in branches])
    fits = {
        name: calibration.fit(first_validation.labels, p, first_validation.groups)
        for name, p in fitted_on.items()
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
