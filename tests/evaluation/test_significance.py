"""Intervals and tests against closed forms, enumeration and scipy."""

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from egmae_jax.evaluation import bootstrap
from egmae_jax.evaluation.metrics import INTERVAL_METRICS
from egmae_jax.evaluation.significance import Resampled, Round, mcnemar
from tests.evaluation.oracles import random_predictions


def drawn_round(seed, strengths, labels, groups=None):
    rng = np.random.default_rng(seed)
    truth = np.eye(3)[labels]
    probabilities = [
        special.softmax(s * truth + rng.normal(size=truth.shape), axis=1) for s in strengths
    ]
    ids = np.array([f"{i}.png" for i in range(len(labels))])
    groups = np.arange(len(labels)) if groups is None else groups
    return Round(ids, labels, probabilities, groups)


def of_one(labels, probabilities, groups, resamples):
    ids = np.arange(len(labels)).astype(str)
    return Resampled([Round(ids, labels, [probabilities], groups)], resamples=resamples)


LABELS = np.arange(90) % 3
PAIRS = np.arange(90) // 6 * 3 + LABELS  # of two images of a class


def wilson(mean, size, t):
    """By the quadratic it solves: (mean - x)² = t² x (1 - x) / size."""
    roots = np.roots([1 + t**2 / size, -(2 * mean + t**2 / size), mean**2])
    return sorted(roots.real)


def test_estimates_are_means_over_rounds_with_the_variance_of_the_same_draws():
    rounds = [drawn_round(seed, (1, 2), LABELS, PAIRS) for seed in range(2)]
    found = Resampled(rounds, resamples=60, seed=5)
    weights = bootstrap.bootstrap_weights(LABELS, PAIRS, np.random.default_rng(5), 60)
    freedom = {"accuracy": 45 - 1, "f1": 3 * 14}
    for metric, score in (
        ("accuracy", accuracy_score),
        ("f1", lambda *a, **k: f1_score(*a, average="macro", **k)),
    ):
        drawn, plain = np.zeros((2, 60)), np.zeros(2)
        for k in (0, 1):
            for x in rounds:
                said = x.probabilities[k].argmax(axis=1)
                plain[k] += score(LABELS, said) / 2
                for i, w in enumerate(weights):
                    drawn[k, i] += score(LABELS, said, sample_weight=w) / 2
        t = stats.t.ppf(0.975, freedom[metric])
        for k in (0, 1):
            size = plain[k] * (1 - plain[k]) / drawn[k].var(ddof=1)
            expected = (plain[k], *wilson(plain[k], size, t))
            assert found.estimate(k, metric) == pytest.approx(expected)
        error = t * (drawn[1] - drawn[0]).std(ddof=1)
        mean = plain[1] - plain[0]
        assert found.difference(0, 1, metric) == pytest.approx((mean, mean - error, mean + error))


def test_the_interval_of_kappa_is_that_of_a_proportion_scaled():
    """From -1 to 1, so that kappa may be negative; by the deviation of scikit-learn's kappa."""
    for strength in (-1.0, 1.0, 3.0):
        round_ = drawn_round(0, (strength,), LABELS, PAIRS)
        found = Resampled([round_], resamples=60, seed=5).estimate(0, "kappa")
        weights = bootstrap.bootstrap_weights(LABELS, PAIRS, np.random.default_rng(5), 60)
        said = round_.probabilities[0].argmax(axis=1)
        mean = cohen_kappa_score(LABELS, said)
        drawn = [(1 + cohen_kappa_score(LABELS, said, sample_weight=w)) / 2 for w in weights]
        share, t = (1 + mean) / 2, stats.t.ppf(0.975, 3 * 14)
        limits = wilson(share, share * (1 - share) / np.var(drawn, ddof=1), t)
        assert found == pytest.approx((mean, *(2 * x - 1 for x in limits)))
        assert found.low < found.mean < found.high
        assert found.mean * strength > 0


def test_copies_of_images_are_no_evidence():
    """Each image three times over as a group: the intervals of the images alone."""
    labels, probabilities = random_predictions(10, 3)
    alone = of_one(labels, probabilities, np.arange(len(labels)), 300)
    thrice = (np.repeat(x, 3, axis=0) for x in (labels, probabilities, np.arange(len(labels))))
    copied = of_one(*thrice, 300)
    for metric in INTERVAL_METRICS:
        assert copied.estimate(0, metric) == pytest.approx(alone.estimate(0, metric), abs=1e-12)


def test_of_two_groups_nothing_is_known():
    labels, probabilities = random_predictions(14, 2)
    found = of_one(labels, probabilities, np.arange(len(labels)) % 2, 100)
    for metric in INTERVAL_METRICS:
        assert found.estimate(0, metric)[1:] == ((-1, 1) if metric == "kappa" else (0, 1))


@pytest.mark.parametrize("name", ["accuracy", "f1", "auc"])
def test_perfect_figures_have_an_interval(name):
    """Wilson's of n right of n: n / (n + t²); of macro averages n is that of the classes' mean."""
    labels = np.array([0] * 40 + [1] * 10)
    found = of_one(labels, np.eye(2)[labels], np.arange(50), 50).estimate(0, name)
    if name == "accuracy":
        size, freedom = 50, 49
    else:
        size, freedom = 4 / (1 / 40 + 1 / 10), 0.125**2 / (1 / 40**2 / 39 + 1 / 10**2 / 9)
    low = size / (size + stats.t.ppf(0.975, freedom) ** 2)
    assert found == pytest.approx((1, low, 1))


def test_accuracy_varies_by_the_shares_of_the_classes():
    """Nearly all right in one class and all wrong in the other: a proportion of single images."""
    labels, accuracy = np.repeat([0, 1], 50), 0.47
    said = np.tile([0.9, 0.1], (100, 1))
    said[:3] = 0.1, 0.9  # or no resample would differ where shares do not
    found = of_one(labels, said, np.arange(100), 4000).estimate(0, "accuracy")
    low, high = wilson(accuracy, 99, stats.t.ppf(0.975, 99))  # 99 of the unbiased variance
    np.testing.assert_allclose(found, [accuracy, low, high], atol=0.004)


def test_rounds_on_the_same_images_draw_the_same_ones_and_others_their_own():
    once = drawn_round(0, (1, 2), LABELS)
    elsewhere = once._replace(
        ids=np.array([f"other {i}" for i in range(90)]), groups=100 + np.arange(90)
    )
    same = Resampled([once, once], resamples=400).estimate(0, "auc")
    apart = Resampled([once, elsewhere], resamples=400)
    alone = Resampled([once], resamples=400).estimate(0, "auc")
    assert same == pytest.approx(alone)
    assert apart.evidence == (180, (60, 60, 60))
    found = apart.estimate(0, "auc")
    assert found.mean == pytest.approx(alone.mean)
    assert found.high - found.low < 0.85 * (same.high - same.low)  # twice the images


def test_groups_that_reach_across_folds_are_drawn_with_all_their_images():
    """Folds that leak, of images split one by one: the second is a copy of the first."""
    once = drawn_round(0, (1, 2), LABELS)
    copy = once._replace(ids=np.array([f"copy {i}" for i in range(90)]))
    alone = Resampled([once], resamples=2000).estimate(0, "accuracy")
    both = Resampled([once, copy], resamples=2000)
    assert both.evidence == (90, (30, 30, 30))
    assert both.estimate(0, "accuracy") == pytest.approx(alone, abs=0.006)


def test_pairing_tells_apart_what_intervals_alone_do_not():
    base = drawn_round(0, (1,), LABELS).probabilities[0]
    better = base.copy()
    wrong = np.flatnonzero(base.argmax(axis=1) != LABELS)[:8]
    better[wrong] = np.eye(3)[LABELS[wrong]]
    rounds = [Round(np.arange(90).astype(str), LABELS, (base, better), np.arange(90))]
    found = Resampled(rounds, resamples=500)
    first, second = (found.estimate(k, "accuracy") for k in (0, 1))
    assert first.high > second.low
    assert found.difference(0, 1, "accuracy").low > 0
    same = found.difference(0, 0, "auc")
    assert same == (0, 0, 0)


def test_classifiers_that_are_never_right_apart_differ_by_no_more_than_was_seen():
    """Agresti and Min: as if half a pair more were in each cell of the table."""
    sure = np.eye(3)[LABELS]
    rounds = [Round(np.arange(90).astype(str), LABELS, (sure, sure / 2 + 1 / 6), np.arange(90))]
    found = Resampled(rounds, resamples=50).difference(0, 1, "accuracy")
    assert found.mean == 0
    assert found.high == -found.low == pytest.approx(stats.t.ppf(0.975, 89) / 92)


def right(*each):
    """Probabilities of two classes that are right (1) or wrong of labels 0."""
    return np.array([[0.9, 0.1] if x else [0.1, 0.9] for x in each])


def test_mcnemar_of_single_images_is_scipys_binomial_test():
    labels = np.zeros(20, int)
    first, second = right(*[1] * 9, *[0] * 11), right(0, *[1] * 14, *[0] * 5)
    found = mcnemar(labels, first, second, np.arange(20))
    assert found[:3] == (1, 6, 7)
    assert found.p == pytest.approx(2 * sum(math.comb(7, k) for k in (0, 1)) / 2**7)
    assert found.p == pytest.approx(stats.binomtest(1, 7).pvalue)
    assert mcnemar(labels, first, first, np.arange(20)).p == 1
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = (right(*rng.integers(0, 2, 60)) for _ in range(2))
        found = mcnemar(np.zeros(60, int), one, other, rng.permutation(60))
        expected = stats.binomtest(found.only_first, found.only_first + found.only_second)
        assert found.p == pytest.approx(expected.pvalue)


def test_mcnemar_exchanges_whole_groups():
    """Against all ways to exchange the classifiers' answers for a group, one by one."""
    rng = np.random.default_rng(1)
    groups = np.sort(rng.integers(0, 9, 30))
    one, other = rng.integers(0, 2, (2, 30))
    found = mcnemar(np.zeros(30, int), right(*one), right(*other), groups)
    seen = abs((other - one).sum())
    as_far = [
        abs(((other - one) * np.array(signs)[groups]).sum()) >= seen
        for signs in itertools.product((-1, 1), repeat=9)
    ]
    assert found.p == pytest.approx(np.mean(as_far))
