"""Scores of every branch and of the ensemble (paper sections 3.5 and 4.4)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from egmae_jax.evaluation import calibration, ensemble
from egmae_jax.evaluation.metrics import (
    INTERVAL_METRICS,
    class_metrics,
    compute_metrics,
    cross_entropy,
    mean_std,
)
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.significance import Resampled, Round


def score_branches(
    validation: Mapping[str, Predictions],
    test: Mapping[str, Predictions],
    *,
    classes: Sequence[str],
    fusion_kind: str = "mean",
    resamples: int,
) -> dict[str, Any]:
    """Scores every branch and, if there are several, their ensemble.

    Args:
        validation: validation predictions by branch, on which fusion and temperatures are fitted.
        test: test predictions by branch, which are scored.
        classes: names of the classes.
        fusion_kind: one of `fusion.KINDS`.
        resamples: number of bootstrap resamples.

    Returns:
        One round of results.json: the number of "groups" of the test images, "groups_by_class", the
        fitted "fusion" if there are several branches, and for each branch and "ensemble" the "test"
        metrics, the metrics "by_class", the "intervals", the "confusion" matrix and "calibration"
        (see `calibration.Fit`, with "ece" and "loss" of the calibrated test probabilities).
    """
    # Images, labels and groups of a part are the same for all branches.
    validated, tested = next(iter(validation.values())), next(iter(test.values()))
    fitted_on = {name: branch.probabilities for name, branch in validation.items()}
    probabilities = {name: branch.probabilities for name, branch in test.items()}
    scores: dict[str, Any] = {}
    if len(test) > 1:
        fusion = ensemble.fit(fusion_kind, validated.labels, [fitted_on[name] for name in test])
        scores["fusion"] = {"kind": fusion_kind, "branches": list(test), **fusion.fitted}
        for part in (fitted_on, probabilities):
            part["ensemble"] = fusion.apply([part[name] for name in test])
    fits = {
        name: calibration.fit(validated.labels, p, validated.groups)
        for name, p in fitted_on.items()
    }
    images = Round(tested.ids, tested.labels, list(probabilities.values()), tested.groups)
    return scores | score_images(images, fits, classes=classes, resamples=resamples)


def score_images(
    images: Round,
    fits: Mapping[str, calibration.Fit],
    *,
    classes: Sequence[str],
    resamples: int,
) -> dict[str, Any]:
    """Scores classifiers on images, with calibrations that were fitted before.

    Args:
        images: labels and groups of the images, and the probabilities of each classifier.
        fits: calibration of each classifier by its name, in the order of the probabilities.
        classes: names of the classes.
        resamples: number of bootstrap resamples.

    Returns:
        As `score_branches`, without "fusion".
    """
    resampled = Resampled([images], resamples=resamples)
    scores: dict[str, Any] = {"groups": resampled.evidence.groups}
    scores["groups_by_class"] = dict(zip(classes, resampled.evidence.by_class, strict=True))
    for k, (name, fit) in enumerate(fits.items()):
        p = images.probabilities[k]
        confusion = confusion_matrix(images.labels, p.argmax(axis=1), labels=range(len(classes)))
        entries = {
            "test": compute_metrics(images.labels, p),
            "by_class": class_metrics(images.labels, p, classes),
            "intervals": {m: list(resampled.estimate(k, m)[1:]) for m in INTERVAL_METRICS},
            "confusion": confusion.tolist(),
            "calibration": _calibrated(images.labels, p, fit),
        }
        for key, value in entries.items():
            scores.setdefault(key, {})[name] = value
    return scores


def _calibrated(
    labels: np.ndarray, probabilities: np.ndarray, fit: calibration.Fit
) -> dict[str, Any]:
    """Returns the entry of a fit in results.json, with metrics of calibrated test probabilities."""
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


def summarize(rounds: Sequence[Mapping[str, Any]], field: str = "test") -> dict[str, Any]:
    """Computes mean and sample standard deviation over rounds of every metric.

    Args:
        rounds: "rounds" of results.json.
        field: "test", or "by_class" for each class against the rest.

    Returns:
        The field with {"mean", "std"} in place of each number, such as {branch: {metric: {"mean",
        "std"}}}. The standard deviation (n - 1) is None for a single round.
    """
    return _over_rounds([row[field] for row in rounds])


def _over_rounds(values: Sequence[Any]) -> dict[str, Any]:
    if isinstance(values[0], Mapping):
        return {key: _over_rounds([value[key] for value in values]) for key in values[0]}
    return mean_std(values)
