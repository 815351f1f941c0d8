"""How far a metric of a test set may be from the truth: a bootstrap of groups, and intervals of it.

Images of a patient, a lesion or a set of near-duplicates are no independent evidence, so what is
resampled are the groups that a split keeps together, and everything counts groups. Which networks
are meant decides what varies: those at hand, or a recipe of which each round trained one. Both are
intervals from variances: a percentile interval is too short of few groups, near 1 and of few
rounds. docs/decisions.md has the reasons, `python -m benchmarks.coverage` what they cover.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

# A stratum needs as many for weights that vary as independent draws do; fewer are joined to others.
_FEWEST_IN_STRATUM = 3
# Between Satterthwaite's (2) and Cochran's and Cox's approximation (about 1.6), see `_critical`.
_EXPONENT = 1.8
# From how many groups, in all and of each class, an interval covers at least .93; of so few it may
# be rather too long (docs/results.md).
TRUSTED_GROUPS = 30
TRUSTED_GROUPS_OF_CLASS = 10


class Evidence(NamedTuple):
    """How many groups tell of a test set."""

    groups: int
    by_class: tuple[int, ...]  # that hold an image of the class

    def joined(self, other: "Evidence") -> "Evidence":
        """Of two test sets that share no group, such as two folds."""
        by_class = tuple(a + b for a, b in zip(self.by_class, other.by_class, strict=True))
        return Evidence(self.groups + other.groups, by_class)

    def degrees_of_freedom(self, metric: str) -> float:
        """Of the bootstrap's variance, by Satterthwaite, were all classes as hard as each other.

        A macro average hangs on its smallest class, accuracy on all groups.
        """
        if metric == "accuracy":
            return max(self.groups - 1, 1)
        counts = np.maximum(self.by_class, 1)
        parts = 1 / counts
        return float(parts.sum() ** 2 / (parts**2 / np.maximum(counts - 1, 1)).sum())

    def size(self, metric: str) -> float:
        """Of a sample of single images that would tell as much, were all classes equally hard."""
        if metric == "accuracy":
            return self.groups
        counts = np.maximum(self.by_class, 1)
        return float(len(counts) ** 2 / (1 / counts).sum())


def too_few(evidence: Evidence, classes: Sequence[str]) -> str:
    """A sentence where a test set has fewer groups than intervals need; else ''.

    Args:
        evidence: of the test set.
        classes: names.
    """
    found = [
        f"{name} {count}"
        for name, count in zip(classes, evidence.by_class, strict=True)
        if count < TRUSTED_GROUPS_OF_CLASS
    ]
    if evidence.groups >= TRUSTED_GROUPS and not found:
        return ""
    of_classes = f" ({', '.join(found[:10])}{', ...' if len(found) > 10 else ''})" if found else ""
    return (
        f"Few groups of test images: {evidence.groups}{of_classes}. Intervals were found to cover "
        f"what they say from {TRUSTED_GROUPS} groups and {TRUSTED_GROUPS_OF_CLASS} of every class."
    )


class Interval(NamedTuple):
    """Of 95 %."""

    low: float
    high: float


def count_groups(labels: np.ndarray, groups: np.ndarray, num_classes: int) -> Evidence:
    """Counts the groups of a test set.

    Args:
        labels: int [N].
        groups: int [N].
        num_classes: of the classifier.
    """
    by_class = (len(np.unique(groups[labels == label])) for label in range(num_classes))
    return Evidence(len(np.unique(groups)), tuple(by_class))


def bootstrap_weights(
    labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator, resamples: int
) -> np.ndarray:
    """How much each image weighs in each resample of the groups, [R, N]; all of a group the same.

    It is the Bayesian bootstrap (Rubin 1981) of the groups: Dirichlet weights, here with the
    concentration (n - 2) / n, whose weighted mean of n values has the variance s²/n with s² of
    n - 1. No weight is zero, so every class is in every resample, whichever classes a group spans.
    Weights are drawn in two stages, of strata and of the groups within each, where strata are
    groups with the same rarest class: the shares of the classes vary as they would in another test
    set from the same population, and within a class, too, the variance is unbiased. Strata of fewer
    than three groups are joined to others.

    Args:
        labels: int [N].
        groups: int [N], at least three different ones.
        rng: draws the weights.
        resamples: R.
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
    """Shares of parts that were counted, whose variance is p (1 - p) / (n - 1): [R, parts]."""
    n = counts.sum()
    return rng.dirichlet(counts * (n - 2) / n, size=resamples)


def _strata(labels: np.ndarray, members: np.ndarray) -> list[np.ndarray]:
    """The groups, 0 to G - 1, by the rarest class that each holds."""
    holds = np.zeros((members.max() + 1, labels.max() + 1), bool)
    holds[members, labels] = True
    rarity = np.where(holds, holds.sum(axis=0), len(holds) + 1)
    rarest = rarity.argmin(axis=1)
    by_class = [np.flatnonzero(rarest == label) for label in range(holds.shape[1])]
    strata: list[np.ndarray] = []
    for stratum in sorted(filter(len, by_class), key=len):
        if strata and len(strata[-1]) < _FEWEST_IN_STRATUM:
            strata[-1] = np.concatenate([strata[-1], stratum])
        else:
            strata.append(stratum)
    if len(holds) < _FEWEST_IN_STRATUM:
        raise ValueError(f"{len(holds)} groups are too few to be resampled; it takes three.")
    if len(strata[-1]) < _FEWEST_IN_STRATUM:
        strata[-2:] = [np.concatenate(strata[-2:])]
    return strata


def can_resample(num_groups: int) -> bool:
    """Whether there are groups enough to tell anything."""
    return num_groups >= _FEWEST_IN_STRATUM


class Variance(NamedTuple):
    """Of a mean over rounds."""

    cases: float  # by the groups
    rounds: float = 0.0  # by the rounds; 0 where the networks at hand are meant
    num_rounds: int = 1

    @property
    def total(self) -> float:
        """Both."""
        return self.cases + self.rounds


def of_networks(covariance: np.ndarray) -> Variance:
    """Of the mean of the very networks at hand, over test sets.

    Args:
        covariance: [rounds, rounds], of the metric by the groups.
    """
    return Variance(float(covariance.sum()) / len(covariance) ** 2)


def of_recipe(values: np.ndarray, covariance: np.ndarray) -> Variance:
    """Of the mean of all networks that a recipe might train, over test sets.

    Rounds and groups are crossed and both are random, as readers and cases are in reader studies;
    this is the estimate of Obuchowski and Rockette (1995), with rounds for readers: the mean square
    between rounds over their number, and the mean covariance of two rounds by their common cases.
    With a test set for each round (folds) the latter is zero.

    Args:
        values: [rounds], the metric.
        covariance: [rounds, rounds], of the metric by the groups.
    """
    count = len(values)
    if count == 1:
        return of_networks(covariance)
    between = float(covariance.sum() - np.trace(covariance)) / (count * (count - 1))
    return Variance(max(between, 0.0), float(np.var(values, ddof=1)) / count, count)


def interval(metric: str, mean: float, variance: Variance, evidence: Evidence) -> Interval:
    """The 95 % interval of a metric, within 0 to 1.

    Of AUC on the scale of its logit. Of the others Wilson's, with the sample size at which a
    proportion has this variance; of AUC too where no resample differs, as of a perfect one, with
    the number of groups for that size.

    Args:
        metric: 'accuracy', 'auc' or a macro average.
        mean: over rounds.
        variance: of it.
        evidence: what it was tested on.
    """
    if not can_resample(evidence.groups):
        return Interval(0.0, 1.0)
    t = _critical(variance, evidence.degrees_of_freedom(metric))
    of_one = mean * (1 - mean)
    varies = variance.total > 1e-12 and of_one > 0
    if metric == "auc" and varies:
        center, spread = special.logit(mean), t * variance.total**0.5 / of_one
        return Interval(*(float(special.expit(center + sign * spread)) for sign in (-1, 1)))
    size = of_one / variance.total if varies else evidence.size(metric)
    center = (mean + t**2 / (2 * size)) / (1 + t**2 / size)
    spread = t * np.sqrt(of_one / size + t**2 / (4 * size**2)) / (1 + t**2 / size)
    return Interval(max(float(center - spread), 0.0), min(float(center + spread), 1.0))


def interval_of_difference(
    metric: str, mean: float, variance: Variance, evidence: Evidence
) -> Interval:
    """The 95 % interval of the difference of a metric of two classifiers, within -1 to 1.

    Where it differs in no resample, though the classifiers do, it is that of two proportions
    without a discordant pair (Agresti and Min 2005), not empty.

    Args:
        metric: as of `interval`.
        mean: of the difference, over rounds.
        variance: of it.
        evidence: what both were tested on.
    """
    if not can_resample(evidence.groups):
        return Interval(-1.0, 1.0)
    t = _critical(variance, evidence.degrees_of_freedom(metric))
    varies = variance.total > 1e-12
    spread = t * (variance.total**0.5 if varies else 1 / (evidence.size(metric) + 2))
    return Interval(max(mean - spread, -1.0), min(mean + spread, 1.0))


def _critical(variance: Variance, degrees_of_freedom: float) -> float:
    """What the standard error is multiplied by.

    The variance of the rounds is known by few degrees of freedom and that of the cases by many.
    Where the share r of the first is 0 or 1 Student's t is exact; between them Satterthwaite's
    degrees of freedom make intervals too short (.88 of two rounds at r = .8) and Cochran's and
    Cox's mean of the two t too long (.98 at r = .2). The squares are joined by r to the power of
    1.8, which covers .933 to .968 for all r, of two rounds, and .944 to .959 of three.
    """
    of_cases = stats.t.ppf(0.975, degrees_of_freedom)
    if variance.rounds <= 0:
        return float(of_cases)
    of_rounds = stats.t.ppf(0.975, variance.num_rounds - 1)
    share = (variance.rounds / variance.total) ** _EXPONENT
    return float(np.sqrt((1 - share) * of_cases**2 + share * of_rounds**2))


def covariance(values: np.ndarray, draws: Sequence[int]) -> np.ndarray:
    """Of the rounds' metric by the groups, [rounds, rounds]; 0 between rounds drawn apart.

    Args:
        values: [rounds, R], the metric on resamples.
        draws: [rounds], which draw of resamples a round has.
    """
    return np.where(np.equal.outer(draws, draws), np.atleast_2d(np.cov(values)), 0.0)
