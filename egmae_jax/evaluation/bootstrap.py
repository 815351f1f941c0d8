"""Confidence intervals of test metrics, by a bootstrap of groups of images.

Images of one patient, one lesion or one set of near-duplicates are no independent evidence, so the
groups that a split keeps together are resampled, and groups are what is counted. An interval is
that of the networks at hand, or that of the recipe of which each round trained one network. Both
come from variances: percentile intervals are too short with few groups, near 1 and with few rounds.
docs/decisions.md gives the reasons, `python -m benchmarks.coverage` the coverage.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from egmae_jax.core.errors import shorten_list

# Fewest groups of a test set, or of a stratum, whose weights vary as independent draws do.
FEWEST_GROUPS = 3
# Between Satterthwaite's (2) and Cochran's and Cox's approximation (about 1.6), see `_critical`.
_EXPONENT = 1.8
# Numbers of groups, in all and of each class, from which intervals cover at least .93
# (docs/results.md, "Do the intervals hold").
TRUSTED_GROUPS = 30
TRUSTED_GROUPS_OF_CLASS = 10


class Evidence(NamedTuple):
    """Number of groups of a test set, in all and of each class."""

    groups: int
    by_class: tuple[int, ...]  # groups that hold an image of the class

    def degrees_of_freedom(self, metric: str) -> float:
        """Degrees of freedom of the bootstrap's variance, by Satterthwaite, for classes alike.

        A macro average depends on its smallest class most, accuracy on all groups.
        """
        if metric == "accuracy":
            return max(self.groups - 1, 1)
        counts = np.maximum(self.by_class, 1)
        parts = 1 / counts
        return float(parts.sum() ** 2 / (parts**2 / np.maximum(counts - 1, 1)).sum())

    def size(self, metric: str) -> float:
        """Number of independent images that give as much evidence, for classes alike."""
        if metric == "accuracy":
            return self.groups
        counts = np.maximum(self.by_class, 1)
        return float(len(counts) ** 2 / (1 / counts).sum())


def too_few(evidence: Evidence, classes: Sequence[str]) -> str:
    """A warning where a test set has fewer groups than intervals need; '' where it has enough."""
    small = [
        f"{name} {count}"
        for name, count in zip(classes, evidence.by_class, strict=True)
        if count < TRUSTED_GROUPS_OF_CLASS
    ]
    if evidence.groups >= TRUSTED_GROUPS and not small:
        return ""
    by_class = f" ({shorten_list(small)})" if small else ""
    return (
        f"Few groups of test images: {evidence.groups}{by_class}. Intervals were found to cover "
        f"what they say from {TRUSTED_GROUPS} groups and {TRUSTED_GROUPS_OF_CLASS} of every class."
    )


def count_groups(labels: np.ndarray, groups: np.ndarray, num_classes: int) -> Evidence:
    """Counts the groups of a test set with labels int [N] and groups int [N]."""
    by_class = (len(np.unique(groups[labels == label])) for label in range(num_classes))
    return Evidence(len(np.unique(groups)), tuple(by_class))


def bootstrap_weights(
    labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator, resamples: int
) -> np.ndarray:
    """Weights of the images in each resample of the groups, float [R, N], equal within a group.

    This is the Bayesian bootstrap (Rubin 1981) of groups: Dirichlet weights, here of concentration
    (n - 2) / n, with which the weighted mean of n values has the variance s² / n, where s² divides
    by n - 1. No weight is zero, so every resample has every class, whichever classes a group spans.
    Weights are drawn in two stages: of strata, which are groups with the same rarest class, then of
    the groups in each. So the shares of classes vary as they would in another test set of the same
    population, and the variance within a class is unbiased, too. Strata of fewer than three groups
    are joined to others.

    Args:
        labels: int [N].
        groups: int [N], at least three different ones.
        rng: draws the weights.
        resamples: number of resamples R.

    Raises:
        ValueError: there are fewer than three groups.
    """
    _, members = np.unique(groups, return_inverse=True)
    strata = _strata(labels, members)
    weights = np.empty((resamples, members.max() + 1))
    shares = _dirichlet(rng, np.array([len(stratum) for stratum in strata]), resamples)
    for stratum, share in zip(strata, shares.T, strict=True):
        within = _dirichlet(rng, np.ones(len(stratum)), resamples)
        weights[:, stratum] = share[:, None] * within * weights.shape[1]
    return weights[:, members]


def _dirichlet(rng: np.random.Generator, counts: np.ndarray, resamples: int) -> np.ndarray:
    """Random shares [R, parts] around those of the counts; variance p (1 - p) / (n - 1)."""
    n = counts.sum()
    return rng.dirichlet(counts * (n - 2) / n, size=resamples)


def _strata(labels: np.ndarray, members: np.ndarray) -> list[np.ndarray]:
    """Partitions the groups, 0 to G - 1, by the rarest class that each holds."""
    holds = np.zeros((members.max() + 1, labels.max() + 1), bool)
    holds[members, labels] = True
    rarity = np.where(holds, holds.sum(axis=0), len(holds) + 1)
    rarest = rarity.argmin(axis=1)
    by_class = [np.flatnonzero(rarest == label) for label in range(holds.shape[1])]
    strata: list[np.ndarray] = []
    for stratum in sorted(filter(len, by_class), key=len):
        if strata and len(strata[-1]) < FEWEST_GROUPS:
            strata[-1] = np.concatenate([strata[-1], stratum])
        else:
            strata.append(stratum)
    if len(holds) < FEWEST_GROUPS:
        raise ValueError(f"{len(holds)} groups are too few to be resampled; it takes three.")
    if len(strata[-1]) < FEWEST_GROUPS:
        strata[-2:] = [np.concatenate(strata[-2:])]
    return strata


class Variance(NamedTuple):
    """Variance of a metric's mean over rounds."""

    cases: float  # due to the groups that were tested
    rounds: float = 0.0  # due to the seeds or folds; 0 for the networks at hand
    num_rounds: int = 1

    @property
    def total(self) -> float:
        """Variance due to cases and rounds."""
        return self.cases + self.rounds


def variance_of_networks(covariance: np.ndarray) -> Variance:
    """Variance of the mean of the networks at hand, from the rounds' `covariance`."""
    return Variance(float(covariance.sum()) / len(covariance) ** 2)


def variance_of_recipe(values: np.ndarray, covariance: np.ndarray) -> Variance:
    """Variance of the mean of networks that a recipe might train, over seeds and test sets.

    Rounds and groups are crossed and both are random, as readers and cases are in reader studies.
    The estimate is that of Obuchowski and Rockette (1995), with rounds for readers: the mean square
    between rounds over their number, plus the mean covariance of two rounds, due to their common
    cases. The latter is zero where each round has a test set of its own, as with folds.

    Args:
        values: [rounds], the metric.
        covariance: [rounds, rounds], that of the metric over resamples.
    """
    count = len(values)
    if count == 1:
        return variance_of_networks(covariance)
    between = float(covariance.sum() - np.trace(covariance)) / (count * (count - 1))
    return Variance(max(between, 0.0), float(np.var(values, ddof=1)) / count, count)


def interval(
    metric: str, mean: float, variance: Variance, evidence: Evidence
) -> tuple[float, float]:
    """The 95 % interval of a metric, within 0 to 1; 0 to 1 with fewer than three groups.

    That of AUC is computed on the logit scale. The others have Wilson's interval, with the sample
    size at which a proportion has this variance. Where no resample differs, as with a perfect
    metric, the size is that of the groups, for AUC as well.

    Args:
        metric: 'accuracy', 'auc' or the name of a macro average.
        mean: mean of the metric over rounds.
        variance: variance of that mean.
        evidence: groups of the test images.
    """
    if evidence.groups < FEWEST_GROUPS:
        return 0.0, 1.0
    t = _critical(variance, evidence.degrees_of_freedom(metric))
    of_one = mean * (1 - mean)  # variance of a single image
    varies = variance.total > 1e-12 and of_one > 0
    if metric == "auc" and varies:
        center, spread = special.logit(mean), t * variance.total**0.5 / of_one
        return float(special.expit(center - spread)), float(special.expit(center + spread))
    size = of_one / variance.total if varies else evidence.size(metric)
    center = (mean + t**2 / (2 * size)) / (1 + t**2 / size)
    spread = t * np.sqrt(of_one / size + t**2 / (4 * size**2)) / (1 + t**2 / size)
    return max(float(center - spread), 0.0), min(float(center + spread), 1.0)


def interval_of_difference(
    metric: str, mean: float, variance: Variance, evidence: Evidence
) -> tuple[float, float]:
    """The 95 % interval of the difference of two classifiers in a metric, within -1 to 1.

    Where no resample differs, though the classifiers do, it is that of two proportions without a
    discordant pair (Agresti and Min 2005). With fewer than three groups it is -1 to 1.

    Args:
        metric: as for `interval`.
        mean: mean of the difference over rounds.
        variance: variance of that mean.
        evidence: groups of the test images, which are the same for both.
    """
    if evidence.groups < FEWEST_GROUPS:
        return -1.0, 1.0
    t = _critical(variance, evidence.degrees_of_freedom(metric))
    varies = variance.total > 1e-12
    spread = t * (variance.total**0.5 if varies else 1 / (evidence.size(metric) + 2))
    return max(mean - spread, -1.0), min(mean + spread, 1.0)


def _critical(variance: Variance, degrees_of_freedom: float) -> float:
    """Critical value: the factor of the standard error in a 95 % interval.

    The variance due to rounds has few degrees of freedom, that due to cases has many. Let r be the
    share of the first. Student's t is exact where r is 0 or 1. Between them intervals are too short
    with Satterthwaite's degrees of freedom (coverage .88 with two rounds at r = .8) and too long
    with Cochran's and Cox's mean of the two t (.98 at r = .2). Here the squares are weighted by r
    to the power of 1.8, which covers .933 to .968 with two rounds, whatever r, and .944 to .959
    with three.
    """
    of_cases = stats.t.ppf(0.975, degrees_of_freedom)
    if variance.rounds <= 0:
        return float(of_cases)
    of_rounds = stats.t.ppf(0.975, variance.num_rounds - 1)
    share = (variance.rounds / variance.total) ** _EXPONENT
    return float(np.sqrt((1 - share) * of_cases**2 + share * of_rounds**2))


def covariance(values: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """Covariance [rounds, rounds] of a metric over resamples; 0 between rounds drawn apart.

    Args:
        values: [rounds, R], the metric on each resample.
        draws: [rounds], index of each round's draw of resamples.
    """
    return np.where(np.equal.outer(draws, draws), np.atleast_2d(np.cov(values)), 0.0)
