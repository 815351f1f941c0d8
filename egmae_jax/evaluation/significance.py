"""Confidence intervals of metrics over rounds, and paired tests of classifiers on the same images.

The bootstrap draws groups of images, the same groups for all classifiers and for all rounds with
the same test images. McNemar's test permutes groups. By default an interval covers the mean of the
networks at hand; with `random_rounds` it covers the mean of the recipe over all seeds or folds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from egmae_jax.evaluation import bootstrap
from egmae_jax.evaluation.bootstrap import FEWEST_GROUPS, Evidence
from egmae_jax.evaluation.metrics import weighted_metrics


class Round(NamedTuple):
    """Predictions of several classifiers for the test images of one round."""

    ids: np.ndarray  # str [N]
    labels: np.ndarray  # int [N]
    probabilities: Sequence[np.ndarray]  # float [N, num_classes] of each classifier
    groups: np.ndarray  # int [N]; images of one group are not independent


class McNemar(NamedTuple):
    """McNemar's exact test of two classifiers in one round."""

    only_first: int  # images that only the first classifier predicts correctly
    only_second: int  # images that only the second classifier predicts correctly
    groups: int  # number of groups with such images
    p: float  # two-sided p-value


class Estimate(NamedTuple):
    """A mean over rounds with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


class Resampled:
    """Metrics of several classifiers, with intervals by a bootstrap of groups of test images.

    With fewer than three groups every interval is the metric's whole range, such as (0, 1).

    Args:
        rounds: predictions of one or more rounds, each with the same classifiers.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.
        random_rounds: whether intervals cover the recipe's mean over all seeds or folds, instead of
            the mean of these networks. It needs at least two rounds; the interval of a single round
            always covers its networks.

    Attributes:
        evidence: number of groups of all test images, each test set counted once.
    """

    def __init__(
        self,
        rounds: Sequence[Round],
        *,
        resamples: int,
        seed: int = 0,
        random_rounds: bool = False,
    ):
        self._rounds = rounds
        self._random_rounds = random_rounds
        rng = np.random.default_rng(seed)
        self._draws, weights_of, self.evidence = resample(rounds, rng, resamples)
        self._values: list[dict[str, np.ndarray]] = []  # per round: metric -> [classifiers, 1 + R]
        for round_, weights in zip(rounds, weights_of, strict=True):
            each = [weighted_metrics(round_.labels, p, weights) for p in round_.probabilities]
            self._values.append({name: np.stack([m[name] for m in each]) for name in each[0]})

    def estimate(self, classifier: int, metric: str) -> Estimate:
        """Returns a classifier's mean of one of `metrics.INTERVAL_METRICS` over rounds."""
        values = self._of_rounds(metric)[classifier]
        mean = float(values[:, 0].mean())
        limits = bootstrap.interval(metric, mean, self._variance(values), self.evidence)
        return Estimate(mean, *limits)

    def difference(self, first: int, second: int, metric: str, *, comparisons: int = 1) -> Estimate:
        """Returns the second classifier's metric minus the first's, as a mean over rounds.

        Args:
            first: index of the classifier whose metric is subtracted.
            second: index of the other classifier.
            metric: one of `metrics.INTERVAL_METRICS`.
            comparisons: number of differences whose intervals contain all true values 95 % of the
                time (Bonferroni).
        """
        pairs = ((r.probabilities[first], r.probabilities[second]) for r in self._rounds)
        if all(np.array_equal(*pair) for pair in pairs):
            return Estimate(0.0, 0.0, 0.0)
        by_classifier = self._of_rounds(metric)
        values = by_classifier[second] - by_classifier[first]
        mean = float(values[:, 0].mean())
        limits = bootstrap.interval_of_difference(
            metric, mean, self._variance(values), self.evidence, comparisons
        )
        return Estimate(mean, *limits)

    def _of_rounds(self, metric: str) -> np.ndarray:
        """Returns a metric on all test images and on R resamples, [classifiers, rounds, 1 + R]."""
        return np.stack([values[metric] for values in self._values], axis=1)

    def _variance(self, values: np.ndarray) -> bootstrap.Variance:
        """Returns the variance of the mean over rounds, from values [rounds, 1 + R]."""
        covariance = bootstrap.covariance(values[:, 1:], self._draws)
        if self._random_rounds:
            return bootstrap.variance_of_recipe(values[:, 0], covariance)
        return bootstrap.variance_of_networks(covariance)


def resample(
    rounds: Sequence[Round], rng: np.random.Generator, resamples: int
) -> tuple[list[int], list[np.ndarray], Evidence]:
    """Draws bootstrap weights of the rounds' test images, equal within a group.

    Rounds with the same test images share a draw. Different test sets are drawn separately, unless
    they share groups, which happens if folds are split by image, or one has too few groups.

    Returns:
        The index of each round's draw; the weights of each round's images, float [1 + R, N], whose
        first row is 1; and the number of groups of all test images.
    """
    keys = [r.ids.tobytes() for r in rounds]
    test_sets = dict(zip(keys, rounds, strict=True))
    names = list(test_sets)
    evidence = bootstrap.count_groups(
        np.concatenate([r.labels for r in test_sets.values()]),
        np.concatenate([r.groups for r in test_sets.values()]),
        num_classes=rounds[0].probabilities[0].shape[1],
    )
    counts = [len(np.unique(r.groups)) for r in test_sets.values()]
    together = evidence.groups < sum(counts) or min(counts) < FEWEST_GROUPS
    weights: dict[bytes, np.ndarray] = {}
    for drawn in [names] if together else [[name] for name in names]:
        labels = np.concatenate([test_sets[name].labels for name in drawn])
        groups = np.concatenate([test_sets[name].groups for name in drawn])
        if evidence.groups >= FEWEST_GROUPS:
            resampled = bootstrap.bootstrap_weights(labels, groups, rng, resamples)
        else:  # `interval` does not use the resamples
            resampled = np.ones((2, len(labels)))
        each = np.concatenate([np.ones((1, len(labels))), resampled])
        ends = np.cumsum([len(test_sets[name].labels) for name in drawn])[:-1]
        weights |= zip(drawn, np.split(each, ends, axis=1), strict=True)
    draws = [0 if together else names.index(key) for key in keys]
    return draws, [weights[key] for key in keys], evidence


def mcnemar(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray
) -> McNemar:
    """Tests whether two classifiers are equally accurate, by an exact permutation of groups.

    Under the null hypothesis the two classifiers are exchangeable within each group. All
    permutations are enumerated, none is sampled. With groups of single images this is McNemar's
    exact (binomial) test.

    Args:
        labels: label of each image, int [N].
        first: probabilities of the first classifier, float [N, num_classes].
        second: probabilities of the second classifier, float [N, num_classes].
        groups: group of each image, int [N]; images of one group are not independent.
    """
    first_right, second_right = (p.argmax(axis=1) == labels for p in (first, second))
    _, members = np.unique(groups, return_inverse=True)
    gains = np.bincount(members, second_right.astype(float) - first_right).astype(int)  # per group
    discordant = np.bincount(members, first_right != second_right) > 0
    sizes = np.abs(gains[gains != 0])
    p = 1.0
    if len(sizes):
        # Probabilities of the signed sums -total, -total + 2, ..., total.
        chances = np.ones(1)
        for size in sizes:
            moved = np.zeros(len(chances) + size)
            moved[size:] += chances / 2
            moved[: len(chances)] += chances / 2
            chances = moved
        sums = np.arange(len(chances)) * 2 - sizes.sum()
        p = min(float(chances[np.abs(sums) >= abs(gains.sum())].sum()), 1.0)
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    return McNemar(only_first, only_second, int(discordant.sum()), p)
