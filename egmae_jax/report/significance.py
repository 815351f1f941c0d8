"""How sure figures are, and whether classifiers differ on the same test images.

McNemar's test by a permutation of groups, and a bootstrap of groups, the same ones for all
classifiers and for all rounds that test the same images. Unless rounds are random as well, an
interval says nothing of other seeds; their spread does.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from egmae_jax.evaluation import bootstrap
from egmae_jax.evaluation.bootstrap import Evidence
from egmae_jax.evaluation.metrics import weighted_metrics


class Round(NamedTuple):
    """What classifiers say of the test images of a round."""

    ids: np.ndarray  # str [N]
    labels: np.ndarray  # int [N]
    probabilities: Sequence[np.ndarray]  # [N, num_classes] each
    groups: np.ndarray  # int [N]; images of a group are no independent evidence


class McNemar(NamedTuple):
    """Of one round."""

    only_first: int  # images that only the first classifier has right
    only_second: int
    groups: int  # that hold such images
    p: float  # exact, two-sided


class Estimate(NamedTuple):
    """The mean over rounds with its 95 % interval."""

    mean: float
    low: float
    high: float


class Resampled:
    """Metrics of several classifiers with intervals by a bootstrap of their test images' groups.

    Args:
        rounds: at least one, all of the same classifiers.
        resamples: how often the groups are drawn.
        seed: of the draws.
        random_rounds: intervals are of the mean over all rounds that might have been, as seeds and
            folds are drawn, instead of these networks' mean. Of a single round they cannot be.

    Attributes:
        evidence: the groups of all test images, each test set counted once.
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
        self._draws, weights_of, self.evidence = _resample(rounds, rng, resamples)
        self._values: list[dict[str, np.ndarray]] = []  # of each round [classifiers, 1 + R]
        for tested, weights in zip(rounds, weights_of, strict=True):
            each = [weighted_metrics(tested.labels, p, weights) for p in tested.probabilities]
            self._values.append({name: np.stack([m[name] for m in each]) for name in each[0]})

    def estimate(self, classifier: int, metric: str) -> Estimate:
        """Of accuracy, precision, recall, f1 or auc."""
        values = self._of_rounds(metric)[classifier]
        mean = float(values[:, 0].mean())
        limits = bootstrap.interval(metric, mean, self._variance(values), self.evidence)
        return Estimate(mean, *limits)

    def difference(self, first: int, second: int, metric: str) -> Estimate:
        """By how much the second classifier's metric exceeds the first's."""
        if all(np.array_equal(r.probabilities[first], r.probabilities[second])
               for r in self._rounds):  # fmt: skip
            return Estimate(0.0, 0.0, 0.0)
        of_rounds = self._of_rounds(metric)
        values = of_rounds[second] - of_rounds[first]
        mean = float(values[:, 0].mean())
        limits = bootstrap.interval_of_difference(
            metric, mean, self._variance(values), self.evidence
        )
        return Estimate(mean, *limits)

    def _of_rounds(self, metric: str) -> np.ndarray:
        """[classifiers, rounds, 1 + R]."""
        return np.stack([values[metric] for values in self._values], axis=1)

    def _variance(self, values: np.ndarray) -> bootstrap.Variance:
        """Of the mean over rounds of values [rounds, 1 + R]."""
        covariance = bootstrap.covariance(values[:, 1:], self._draws)
        if self._random_rounds:
            return bootstrap.of_recipe(values[:, 0], covariance)
        return bootstrap.of_networks(covariance)


def _resample(
    rounds: Sequence[Round], rng: np.random.Generator, resamples: int
) -> tuple[list[int], list[np.ndarray], Evidence]:
    """Draws the groups of the rounds' test images.

    Returns:
        Which draw each round has; how much its images weigh [1 + R, N], first as they are; and the
        groups in all. Rounds that test the same images have the same draw, and so do folds that
        groups reach across, as with data.protocol='image_level'.
    """
    keys = [tested.ids.tobytes() for tested in rounds]
    test_sets = dict(zip(keys, rounds, strict=True))
    num_groups = [len(np.unique(tested.groups)) for tested in test_sets.values()]
    in_all = len(np.unique(np.concatenate([tested.groups for tested in test_sets.values()])))
    together = in_all < sum(num_groups) or not all(map(bootstrap.can_resample, num_groups))
    names = list(test_sets)
    weights: dict[bytes, np.ndarray] = {}
    found: list[Evidence] = []
    for drawn in [names] if together else [[name] for name in names]:
        labels, groups = (
            np.concatenate([getattr(test_sets[name], field) for name in drawn])
            for field in ("labels", "groups")
        )
        num_classes = rounds[0].probabilities[0].shape[1]
        evidence = bootstrap.count_groups(labels, groups, num_classes)
        each = np.ones((3, len(labels)))  # of which no interval is made
        if bootstrap.can_resample(evidence.groups):
            each = np.concatenate(
                [each[:1], bootstrap.bootstrap_weights(labels, groups, rng, resamples)]
            )
        ends = np.cumsum([len(test_sets[name].labels) for name in drawn])[:-1]
        weights |= zip(drawn, np.split(each, ends, axis=1), strict=True)
        found.append(evidence)
    draws = [0 if together else names.index(key) for key in keys]
    return draws, [weights[key] for key in keys], functools.reduce(Evidence.joined, found)


def mcnemar(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray
) -> McNemar:
    """The exact test of two classifiers being right equally often, by a permutation of groups.

    If they were, exchanging them for all images of a group would be as likely as not. The test is
    of the images that one alone has right, over all ways to exchange them, which are counted, not
    drawn. With groups of single images it is McNemar's exact test, a binomial one.

    Args:
        labels: int [N].
        first: probabilities [N, num_classes].
        second: likewise.
        groups: int [N].
    """
    one, other = (p.argmax(axis=1) == labels for p in (first, second))
    _, members = np.unique(groups, return_inverse=True)
    gains = np.bincount(members, other.astype(float) - one).astype(int)  # of each group
    discordant = np.bincount(members, one != other) > 0
    sizes = np.abs(gains[gains != 0])
    p = 1.0
    if len(sizes):
        chances = np.ones(1)  # of the sums -total, -total + 2, ... total of the sizes with any sign
        for size in sizes:
            moved = np.zeros(len(chances) + size)
            moved[size:] += chances / 2
            moved[: len(chances)] += chances / 2
            chances = moved
        sums = np.arange(len(chances)) * 2 - sizes.sum()
        p = min(float(chances[np.abs(sums) >= abs(gains.sum())].sum()), 1.0)
    return McNemar(int((one & ~other).sum()), int((other & ~one).sum()), int(discordant.sum()), p)
