"""Confidence intervals of test metrics, by a bootstrap of groups of images.

Images of one patient, one lesion or one set of near-duplicates are not independent. Therefore the
groups that a split keeps together are resampled and counted, not the images. An interval covers
either the mean of the networks at hand or the mean of the recipe, of which each round trained one
network. Both are computed from variances, because percentile intervals are too short with few
groups, for metrics near 1, and with few rounds. docs/decisions.md gives the reasons;
`python -m benchmarks.coverage` measures the coverage.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from egmae_jax.core.errors import shorten_list

# Smallest number of groups in a test set or stratum: Dirichlet weights need (n - 2) / n > 0.
FEWEST_GROUPS = 3
# Between the approximations of Satterthwaite (2) and of Cochran and Cox (about 1.6): `_critical`.
_EXPONENT = 1.8
# Numbers of groups, in total and per class, from which intervals cover at least .93
# (docs/results.md, "Do the intervals hold").
TRUSTED_GROUPS = 30
TRUSTED_GROUPS_OF_CLASS = 10


class Evidence(NamedTuple):
    """Number of groups in a test set, in total and per class."""

    groups: int
    by_class: tuple[int, ...]  # number of groups with an image of each class

    def degrees_of_freedom(self, metric: str) -> float:
        """Returns Satterthwaite's degrees of freedom of the bootstrap's variance of a metric.

        Classes are assumed to be equally difficult. A macro average depends most on the smallest
        class, accuracy on all groups alike.
        """
        if metric == "accuracy":
            return max(self.groups - 1, 1)
        counts = self._counts
        parts = 1 / counts
        return float(parts.sum() ** 2 / (parts**2 / np.maximum(counts - 1, 1)).sum())

    def size(self, metric: str) -> float:
        """Returns the effective number of images for a metric, if classes are equally difficult."""
        if metric == "accuracy":
            return self.groups
        counts = self._counts
        return float(len(counts) ** 2 / (1 / counts).sum())

    @property
    def _counts(self) -> np.ndarray:
        """Numbers of groups of the classes that occur, which macro averages are over."""
        return np.array([count for count in self.by_class if count])


def few_groups_warning(evidence: Evidence, classes: Sequence[str]) -> str:
    """Returns a warning if a test set has too few groups for reliable intervals, else ''."""
    small = [
        f"{name} {count}"
        for name, count in zip(classes, evidence.by_class, strict=True)
        if count < TRUSTED_GROUPS_OF_CLASS
    ]
    if evidence.groups >= TRUSTED_GROUPS and not small:
        return ""
    by_class = f" ({shorten_list(small)})" if small else ""
    return (
        f"Few groups of test images: {evidence.groups}{by_class}. Intervals are reliable "
        f"from {TRUSTED_GROUPS} groups in total and {TRUSTED_GROUPS_OF_CLASS} of every class."
    )


def count_groups(labels: np.ndarray, groups: np.ndarray, num_classes: int) -> Evidence:
    """Counts the groups of a test set, given label and group of each image, int [N] each."""
    by_class = (len(np.unique(groups[labels == label])) for label in range(num_classes))
    return Evidence(len(np.unique(groups)), tuple(by_class))


def bootstrap_weights(
    labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator, resamples: int
) -> np.ndarray:
    """Draws weights of the images in each resample, float [R, N], equal within a group.

    This is the Bayesian bootstrap (Rubin 1981) of groups, with Dirichlet weights of concentration
    (n - 2) / n: with these the weighted mean of n values has the variance s² / n, where s² is the
    sample variance. No weight is zero, so every class occurs in every resample. Weights are drawn
    in two stages: first for strata, which are groups with the same rarest class, then for the
    groups in each stratum. Thus class shares vary as between test sets of the same population, and
    the variance within a class is unbiased. Strata of fewer than three groups are merged.

    Args:
        labels: label of each image, int [N].
        groups: group of each image, int [N], with at least three groups.
        rng: random generator.
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
    """Draws shares float [R, K] around p = counts / n, with the variance p (1 - p) / (n - 1)."""
    n = counts.sum()
    return rng.dirichlet(counts * (n - 2) / n, size=resamples)


def _strata(labels: np.ndarray, members: np.ndarray) -> list[np.ndarray]:
    """Partitions the groups 0 to G - 1 by the rarest class of each, and merges small strata."""
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
        raise ValueError(f"Resampling needs at least three groups; there are {len(holds)}.")
    if len(strata[-1]) < FEWEST_GROUPS:
        strata[-2:] = [np.concatenate(strata[-2:])]
    return strata


class Variance(NamedTuple):
    """Variance of a metric's mean over rounds."""

    cases: float  # variance due to the choice of test groups
    rounds: float = 0.0  # variance due to seeds or folds; 0 for the networks at hand
    num_rounds: int = 1

    @property
    def total(self) -> float:
        """Sum of the variances due to cases and rounds."""
        return self.cases + self.rounds


def variance_of_networks(covariance: np.ndarray) -> Variance:
    """Returns the variance of the mean of the networks at hand, from `covariance`'s result."""
    return Variance(float(covariance.sum()) / len(covariance) ** 2)


def variance_of_recipe(values: np.ndarray, covariance: np.ndarray) -> Variance:
    """Returns the variance of a recipe's mean metric, over seeds (or folds) and test sets.

    Rounds and groups are crossed random effects, like readers and cases in reader studies. The
    estimate follows Obuchowski and Rockette (1995), with rounds as readers: the mean square between
    rounds divided by their number, plus the mean covariance of two rounds, which is due to their
    common cases. That covariance is zero if each round has its own test set, as with folds.

    Args:
        values: metric of each round, float [rounds].
        covariance: covariance of the metric over resamples, float [rounds, rounds].
    """
    count = len(values)
    if count == 1:
        return variance_of_networks(covariance)
    between = float(covariance.sum() - np.trace(covariance)) / (count * (count - 1))
    return Variance(max(between, 0.0), float(np.var(values, ddof=1)) / count, count)


def interval(
    metric: str, mean: float, variance: Variance, evidence: Evidence
) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a metric; its range with fewer than three groups.

    The interval of AUC is computed on the logit scale. Other metrics have Wilson's interval, with
    the sample size at which a proportion has this variance. If the metric is the same on all
    resamples, such as 1, Wilson's interval for the effective number of groups is used, for AUC too.
    Cohen's kappa, from -1 to 1, is first scaled to a proportion: of two equally frequent classes,
    (kappa + 1) / 2 is the accuracy.

    Args:
        metric: 'accuracy', 'auc', 'kappa' or the name of a macro average.
        mean: mean of the metric over rounds.
        variance: variance of that mean.
        evidence: number of groups of the test images.
    """
    if metric == "kappa":
        halved = Variance(variance.cases / 4, variance.rounds / 4, variance.num_rounds)
        low, high = interval("proportion", (mean + 1) / 2, halved, evidence)
        return 2 * low - 1, 2 * high - 1
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
    metric: str, mean: float, variance: Variance, evidence: Evidence, comparisons: int = 1
) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the difference in a metric of two classifiers.

    If the difference is the same on all resamples, the interval is that of two proportions without
    a discordant pair (Agresti and Min 2005). With fewer than three groups it is (-1, 1).

    Args:
        metric: 'accuracy', 'auc' or the name of a macro average.
        mean: mean of the difference over rounds.
        variance: variance of that mean.
        evidence: number of groups of the test images, which both classifiers share.
        comparisons: number of differences whose intervals contain all true values 95 % of the time
            (Bonferroni).
    """
    if evidence.groups < FEWEST_GROUPS:
        return -1.0, 1.0
    t = _critical(variance, evidence.degrees_of_freedom(metric), comparisons)
    varies = variance.total > 1e-12
    spread = t * (variance.total**0.5 if varies else 1 / (evidence.size(metric) + 2))
    return max(mean - spread, -1.0), min(mean + spread, 1.0)


def _critical(variance: Variance, degrees_of_freedom: float, comparisons: int = 1) -> float:
    """Returns the critical value, the factor of the standard error in a 95 % interval.

    Of several simultaneous intervals, each has the level 1 - .05 / comparisons.

    The variance due to rounds has few degrees of freedom, that due to cases has many. Let r be the
    share of the former. Student's t is exact if r is 0 or 1. In between, intervals are too short
    with Satterthwaite's degrees of freedom (coverage .88 with two rounds at r = .8) and too long
    with Cochran's and Cox's mean of the two t (.98 at r = .2). Here the squares are weighted by r
    to the power of 1.8: the coverage is then .933 to .968 with two rounds, for any r, and .944 to
    .959 with three.
    """
    quantile = 1 - 0.025 / comparisons
    of_cases = stats.t.ppf(quantile, degrees_of_freedom)
    if variance.rounds <= 0:
        return float(of_cases)
    of_rounds = stats.t.ppf(quantile, variance.num_rounds - 1)
    share = (variance.rounds / variance.total) ** _EXPONENT
    return float(np.sqrt((1 - share) * of_cases**2 + share * of_rounds**2))


def covariance(values: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """Returns the covariance of a metric between rounds, over resamples, float [rounds, rounds].

    Args:
        values: metric on each resample, float [rounds, R].
        draws: index of each round's draw of resamples, int [rounds]; rounds of different draws have
            the covariance 0.
    """
    return np.where(np.equal.outer(draws, draws), np.atleast_2d(np.cov(values)), 0.0)
