"""How sure figures are, and whether classifiers differ on the same test images.

McNemar's exact test, and a bootstrap over test images: they are drawn with replacement within each
class, the same ones for all classifiers and for all rounds that test the same images. Unless rounds
are drawn as well, an interval says nothing of other seeds; their spread does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from egmae_jax import evaluate


class Round(NamedTuple):
    """What classifiers say of the test images of a round."""

    ids: np.ndarray  # str [N]
    labels: np.ndarray  # int [N]
    probabilities: Sequence[np.ndarray]  # [N, num_classes] each


class McNemar(NamedTuple):
    """Of one round."""

    only_first: int  # images that only the first classifier has right
    only_second: int
    p: float  # exact, two-sided


class Estimate(NamedTuple):
    """The mean over rounds with its 95 % interval."""

    mean: float
    low: float
    high: float


class Resampled:
    """Metrics of several classifiers on resamples of their test images.

    Args:
        rounds: at least one, all of the same classifiers.
        resamples: how often is drawn.
        seed: of the draws.
        draw_rounds: also draws rounds, with replacement, as for classifiers that were trained
            differently in each: then seeds are part of what is not known.
    """

    def __init__(
        self,
        rounds: Sequence[Round],
        *,
        resamples: int,
        seed: int = 0,
        draw_rounds: bool = False,
    ):
        rng = np.random.default_rng(seed)
        drawn: dict[bytes, np.ndarray] = {}
        self._values: list[dict[str, np.ndarray]] = []  # of each round [classifiers, 1 + R]
        for tested in rounds:
            key = tested.ids.tobytes()
            if key not in drawn:
                weights = evaluate.bootstrap_weights(tested.labels, rng, resamples)
                drawn[key] = np.concatenate([np.ones((1, len(tested.labels))), weights])
            each = [
                evaluate.weighted_metrics(tested.labels, p, drawn[key])
                for p in tested.probabilities
            ]
            self._values.append({name: np.stack([m[name] for m in each]) for name in each[0]})
        # How much each round weighs, [rounds, 1 + R].
        self._weights = np.full((len(rounds), 1 + resamples), 1 / len(rounds))
        if draw_rounds:
            even = np.full(len(rounds), 1 / len(rounds))
            self._weights[:, 1:] = rng.multinomial(len(rounds), even, size=resamples).T * even[0]

    def estimate(self, classifier: int, metric: str) -> Estimate:
        """Of accuracy, precision, recall, f1 or auc."""
        return _estimate(self._mean(metric)[classifier])

    def difference(self, first: int, second: int, metric: str) -> Estimate:
        """By how much the second classifier's metric exceeds the first's."""
        values = self._mean(metric)
        return _estimate(values[second] - values[first])

    def _mean(self, metric: str) -> np.ndarray:
        of_rounds = np.stack([values[metric] for values in self._values], axis=1)
        return (of_rounds * self._weights).sum(axis=1)


def _estimate(values: np.ndarray) -> Estimate:
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return Estimate(float(values[0]), float(low), float(high))


def mcnemar(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> McNemar:
    """The exact test (a binomial one) of two classifiers being right equally often.

    Args:
        labels: int [N].
        first: probabilities [N, num_classes].
        second: likewise.
    """
    one, other = (p.argmax(axis=1) == labels for p in (first, second))
    only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
    discordant = only_first + only_second
    p = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p)
