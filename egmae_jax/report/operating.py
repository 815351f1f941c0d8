"""Tables and decision curves of operating points, for the report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from egmae_jax.core.errors import ConfigError, shorten_list
from egmae_jax.core.numbers import number
from egmae_jax.evaluation.operating_points import Point, net_benefit, predictive_values
from egmae_jax.report import figures
from egmae_jax.report.content import Content


def read_prevalence(values: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    """Reads the prevalence of classes, as --prevalence states it.

    Args:
        values: 'CLASS=SHARE' each; of two classes also 'SHARE', of the second, and one share gives
            the other.
        classes: names of the classes.

    Raises:
        ConfigError: a class is unknown or missing, a share is not between 0 and 1, or the shares
            are more than 1 in all.
    """
    prevalence: dict[str, float] = {}
    for value in values:
        name, equals, text = value.rpartition("=")
        if not equals and len(classes) == 2:
            name = classes[1]
        if name not in classes:
            raise ConfigError(
                f"--prevalence={value}: give CLASS=SHARE, such as {classes[-1]}=0.05; the classes "
                f"are {shorten_list(classes)}."
            )
        try:
            prevalence[name] = float(text)
        except ValueError:
            prevalence[name] = np.nan
        if not 0 < prevalence[name] < 1:
            raise ConfigError(f"--prevalence={value}: the share must be a number between 0 and 1.")
    if len(classes) == 2 and len(prevalence) == 1:
        ((name, share),) = prevalence.items()
        prevalence[classes[1 - classes.index(name)]] = 1 - share
    if sum(prevalence.values()) > 1 + 1e-9:
        raise ConfigError("--prevalence: the shares of the classes are more than 1 in all.")
    return prevalence


def tables(run: Content, prevalence: Mapping[str, float]) -> dict[str, list[dict[str, Any]]]:
    """Returns the operating points of each classifier, the last first, for the template.

    Args:
        run: content of the run.
        prevalence: stated prevalence by class; others have only that of the test part.

    Returns:
        By classifier a dict per class: "name", "groups" of validation images with the class and
        with the rest, "test" and "stated" prevalence (None if not stated), and "rows": a pair of
        the `Point` and its "cells", texts of value and interval.
    """
    counts, groups = run.tested_counts, run.validated_groups
    result = {}
    for k, classifier in reversed(list(enumerate(run.classifiers))):
        blocks = []
        for c, name in enumerate(run.classes):
            of_test, stated = counts[name] / sum(counts.values()), prevalence.get(name)
            shares = [of_test] + ([] if stated is None else [stated])
            blocks.append(
                {
                    "name": name,
                    "groups": groups[c],
                    "test": of_test,
                    "stated": stated,
                    "rows": [_row(point, shares) for point in run.operating_points[k][c]],
                }
            )
        result[classifier] = blocks
    return result


def _row(point: Point, shares: Sequence[float]) -> dict[str, Any]:
    estimates = [point.sensitivity, point.specificity]
    for share in shares:
        estimates += predictive_values(point.sensitivity, point.specificity, share)
    thresholds = ", ".join(map(threshold_text, point.thresholds))
    return {"target": point.target, "thresholds": thresholds, "estimates": estimates}


def threshold_text(threshold: float) -> str:
    """Formats a threshold: '.98712', '∞ (calls none)', or '–' without images to choose it by."""
    if np.isnan(threshold):
        return "\N{EN DASH}"
    return f"{threshold:.5g}".removeprefix("0") if np.isfinite(threshold) else "∞ (calls none)"


def decision_curves(run: Content) -> list[Markup]:
    """Draws the decision curves of each class, on calibrated test probabilities."""
    benefits = {
        name: [
            net_benefit(r.labels, r.probabilities[k], figures.THRESHOLDS) for r in run.calibrated
        ]
        for k, name in enumerate(run.classifiers)
    }
    return [figures.decision_curve(benefits, name, c) for c, name in enumerate(run.classes)]


def describe(run: Content, *, rate: str = "specificity", level: float = 0.95) -> list[str]:
    """Returns a sentence per class on the last classifier's operating point for a target."""
    sentences = []
    for name, points in zip(run.classes, run.operating_points[-1], strict=True):
        (point,) = (p for p in points if p.target == (rate, level))
        achieved = (
            f"{title} {number(x.mean)} ({number(x.low)} to {number(x.high)})"
            for title, x in (("sensitivity", point.sensitivity), ("specificity", point.specificity))
        )
        sentences.append(f"{name} against the rest: {', '.join(achieved)}")
    return sentences
