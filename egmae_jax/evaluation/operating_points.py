"""Operating points of a classifier: sensitivity and specificity at thresholds, and their use.

Each class is tested against the rest: an image is called positive if the probability of the class
is at least the threshold. Thresholds are chosen on validation images and applied to test images, so
the specificity achieved there differs from the one aimed at; both are reported.

    thresholds = choose_thresholds(validation.labels, validation.probabilities)
    sensitivity, specificity = operating_points(test.labels, test.probabilities, thresholds)
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from egmae_jax.evaluation import bootstrap
from egmae_jax.evaluation.bootstrap import Evidence
from egmae_jax.evaluation.significance import Estimate, Round, resample


class Target(NamedTuple):
    """A rate that a threshold must reach on validation images."""

    rate: Literal["specificity", "sensitivity"]
    level: float


TARGETS = tuple(
    itertools.starmap(Target, itertools.product(("specificity", "sensitivity"), (0.9, 0.95, 0.99)))
)


class Rates(NamedTuple):
    """Rates of each class against the rest at T thresholds, float [..., C, T].

    Without images of a class, its sensitivity is NaN; without images of the rest, its specificity.
    """

    sensitivity: np.ndarray
    specificity: np.ndarray


class Point(NamedTuple):
    """An operating point of one class against the rest, over all rounds."""

    target: Target
    thresholds: tuple[float, ...]  # threshold of each round
    sensitivity: Estimate  # on test images, mean over rounds
    specificity: Estimate


class NetBenefit(NamedTuple):
    """Net benefit of each class against the rest, in true positives per image, float [C, P]."""

    model: np.ndarray  # of calling an image positive from the threshold probability on
    treat_all: np.ndarray  # of calling every image positive; of calling none, it is 0


def choose_thresholds(
    labels: np.ndarray, probabilities: np.ndarray, targets: Sequence[Target] = TARGETS
) -> np.ndarray:
    """Chooses the threshold of each class and target on validation images.

    Of the probabilities that occur, it is the lowest with at least the specificity aimed at, or the
    highest with at least the sensitivity. Equal probabilities are on one side of it.

    Args:
        labels: label of each image, int [N].
        probabilities: predicted probabilities, float [N, num_classes].
        targets: T rates to reach.

    Returns:
        Thresholds, float64 [num_classes, T]. `inf`, which calls no image positive, if no lower one
        reaches the specificity, because images of the rest have the highest probability of all. NaN
        if there are no images of which the rate is a share.
    """
    thresholds = np.empty((probabilities.shape[1], len(targets)))
    for label, scores in enumerate(probabilities.T):
        candidates = np.append(np.unique(scores).astype(np.float64), np.inf)
        positive, negative = (np.sort(scores[x]) for x in (labels == label, labels != label))
        for k, target in enumerate(targets):
            own = positive if target.rate == "sensitivity" else negative
            if not len(own):
                thresholds[label, k] = np.nan
                continue
            below = np.searchsorted(own, candidates)  # number of images below each candidate
            if target.rate == "specificity":
                reached = below / len(own) >= target.level
                thresholds[label, k] = candidates[reached][0]
            else:
                reached = (len(own) - below) / len(own) >= target.level
                thresholds[label, k] = candidates[reached][-1]
    return thresholds


def operating_points(
    labels: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    weights: np.ndarray | None = None,
) -> Rates:
    """Computes sensitivity and specificity of each class against the rest at given thresholds.

    Args:
        labels: label of each image, int [N].
        probabilities: predicted probabilities, float [N, C].
        thresholds: thresholds of each class, float [C, T]. The rates at a threshold of NaN are NaN.
        weights: sample weights, float [R, N], for R results at once; None: all 1.

    Returns:
        Rates, float [C, T] or, with weights, [R, C, T].
    """
    actual = labels[:, None] == np.arange(probabilities.shape[1])  # [N, C]
    called = probabilities[:, :, None] >= thresholds  # [N, C, T]
    weighted = np.ones((1, len(labels))) if weights is None else weights
    rates = []
    for own, right in ((actual, called), (~actual, ~called)):
        hits = np.tensordot(weighted, own[:, :, None] & right, axes=1)  # [R, C, T]
        with np.errstate(invalid="ignore"):
            rate = hits / (weighted @ own)[:, :, None]
        rate[:, np.isnan(thresholds)] = np.nan
        rates.append(rate[0] if weights is None else rate)
    return Rates(*rates)


def estimate(
    rounds: Sequence[Round],
    thresholds: Sequence[Sequence[np.ndarray]],
    *,
    targets: Sequence[Target] = TARGETS,
    resamples: int,
    seed: int = 0,
) -> list[list[list[Point]]]:
    """Estimates test sensitivity and specificity as means over rounds, with 95 % intervals.

    Groups of test images are resampled, with the thresholds as they are. An interval is Wilson's,
    see `bootstrap.interval`; of sensitivity it counts the groups with images of the class, of
    specificity those with other images. A rate that is undefined in a round is NaN.

    Args:
        rounds: test predictions of one or more rounds, each with the same classifiers.
        thresholds: thresholds by round and classifier, float [C, T] each.
        targets: the T targets that the thresholds were chosen for.
        resamples: number of bootstrap resamples R.
        seed: seed of the resamples.

    Returns:
        Operating points by classifier, class and target.
    """
    draws, weights, _ = resample(rounds, np.random.default_rng(seed), resamples)
    num_classes = rounds[0].probabilities[0].shape[1]
    of_class = _evidence(rounds, num_classes)

    def point(k: int, c: int, t: int, rates: Sequence[np.ndarray]) -> Point:
        means = (
            _estimate(values[:, :, c, t], draws, evidence)
            for values, evidence in zip(rates, of_class[c], strict=True)
        )
        return Point(targets[t], tuple(float(cuts[k][c, t]) for cuts in thresholds), *means)

    points = []
    for k in range(len(rounds[0].probabilities)):
        each = [
            operating_points(r.labels, r.probabilities[k], cuts[k], w)
            for r, cuts, w in zip(rounds, thresholds, weights, strict=True)
        ]
        rates = [np.stack(x) for x in zip(*each, strict=True)]  # [rounds, 1 + R, C, T], twice
        points.append(
            [[point(k, c, t, rates) for t in range(len(targets))] for c in range(num_classes)]
        )
    return points


def _evidence(rounds: Sequence[Round], num_classes: int) -> list[list[Evidence]]:
    """Counts, for each class, the groups with test images of it and those with other images."""
    test_sets = list({r.ids.tobytes(): r for r in rounds}.values())
    labels = np.concatenate([r.labels for r in test_sets])
    groups = np.concatenate([r.groups for r in test_sets])
    return [
        [Evidence(len(np.unique(groups[x])), ()) for x in (labels == c, labels != c)]
        for c in range(num_classes)
    ]


def _estimate(values: np.ndarray, draws: Sequence[int], evidence: Evidence) -> Estimate:
    """Estimates the mean over rounds of a share, from values float [rounds, 1 + R]."""
    mean = float(values[:, 0].mean())
    if np.isnan(mean):
        return Estimate(np.nan, np.nan, np.nan)
    variance = bootstrap.variance_of_networks(bootstrap.covariance(values[:, 1:], draws))
    return Estimate(mean, *bootstrap.interval("accuracy", mean, variance, evidence))


def predictive_values(
    sensitivity: Estimate, specificity: Estimate, prevalence: float
) -> tuple[Estimate, Estimate]:
    """Returns positive and negative predictive value at a prevalence, by Bayes' theorem.

    Both values rise with sensitivity and specificity. Their limits are those at both lower and at
    both upper limits of the two, so the intervals are at least as wide as 95 % intervals, however
    the two rates are correlated. A value is NaN if no image is called so.

    Args:
        sensitivity: sensitivity of the class against the rest, with its interval.
        specificity: specificity, with its interval.
        prevalence: share of the class in the population, from 0 to 1.
    """
    se, sp = (np.array(x, np.float64) for x in (sensitivity, specificity))
    with np.errstate(invalid="ignore"):
        hits, misses = se * prevalence, (1 - se) * prevalence
        ppv = hits / (hits + (1 - sp) * (1 - prevalence))
        npv = sp * (1 - prevalence) / (sp * (1 - prevalence) + misses)
    return Estimate(*ppv.tolist()), Estimate(*npv.tolist())


def net_benefit(
    labels: np.ndarray, probabilities: np.ndarray, threshold_probabilities: np.ndarray
) -> NetBenefit:
    """Computes the decision curve of each class against the rest (Vickers and Elkin 2006).

    At a threshold probability p, a false positive costs p / (1 - p) of a true positive's benefit:
    the net benefit is TP / N - FP / N · p / (1 - p). It holds for the prevalence of these images.

    Args:
        labels: label of each image, int [N].
        probabilities: calibrated probabilities, float [N, C].
        threshold_probabilities: P threshold probabilities, below 1.
    """
    num_classes = probabilities.shape[1]
    prevalence = (np.bincount(labels, minlength=num_classes) / len(labels))[:, None]
    cuts = np.tile(threshold_probabilities, (num_classes, 1))
    sensitivity, specificity = operating_points(labels, probabilities, cuts)
    hits, alarms = np.nan_to_num(sensitivity) * prevalence, np.nan_to_num(1 - specificity)
    odds = threshold_probabilities / (1 - threshold_probabilities)
    return NetBenefit(hits - alarms * (1 - prevalence) * odds, prevalence - (1 - prevalence) * odds)
