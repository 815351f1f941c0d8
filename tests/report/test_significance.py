"""Intervals and tests against loops over scikit-learn and closed forms."""

import math

import numpy as np
import pytest
from scipy import special
from sklearn.metrics import accuracy_score, f1_score

from egmae_jax import evaluate
from egmae_jax.report.significance import Resampled, Round, mcnemar


def drawn_round(seed, strengths, labels):
    rng = np.random.default_rng(seed)
    truth = np.eye(3)[labels]
    probabilities = [
        special.softmax(s * truth + rng.normal(size=truth.shape), axis=1) for s in strengths
    ]
    ids = np.array([f"{i}.png" for i in range(len(labels))])
    return Round(ids, labels, probabilities)


LABELS = np.arange(90) % 3


def test_estimates_are_means_over_rounds_with_quantiles_of_the_same_draws():
    rounds = [drawn_round(seed, (1, 2), LABELS) for seed in range(2)]
    found = Resampled(rounds, resamples=200, seed=5)
    weights = evaluate.bootstrap_weights(LABELS, np.random.default_rng(5), 200)
    for metric, score in (
        ("accuracy", accuracy_score),
        ("f1", lambda *a, **k: f1_score(*a, average="macro", **k)),
    ):
        drawn, plain = np.zeros((2, 200)), np.zeros(2)
        for k in (0, 1):
            for x in rounds:
                said = x.probabilities[k].argmax(axis=1)
                plain[k] += score(LABELS, said) / 2
                for i, w in enumerate(weights):
                    drawn[k, i] += score(LABELS, said, sample_weight=w) / 2
        for k in (0, 1):
            low, high = np.quantile(drawn[k], (0.025, 0.975))
            assert found.estimate(k, metric) == pytest.approx((plain[k], low, high))
        low, high = np.quantile(drawn[1] - drawn[0], (0.025, 0.975))
        expected = (plain[1] - plain[0], low, high)
        assert found.difference(0, 1, metric) == pytest.approx(expected)


def test_rounds_on_the_same_images_draw_the_same_ones_and_others_their_own():
    once = drawn_round(0, (1, 2), LABELS)
    elsewhere = once._replace(ids=np.array([f"other {i}" for i in range(90)]))
    same = Resampled([once, once], resamples=400).estimate(0, "auc")
    apart = Resampled([once, elsewhere], resamples=400).estimate(0, "auc")
    alone = Resampled([once], resamples=400).estimate(0, "auc")
    assert same == pytest.approx(alone)
    assert apart.mean == pytest.approx(alone.mean)
    assert apart.high - apart.low < 0.85 * (same.high - same.low)  # twice the images


def test_pairing_tells_apart_what_intervals_alone_do_not():
    base = drawn_round(0, (1,), LABELS).probabilities[0]
    better = base.copy()
    wrong = np.flatnonzero(base.argmax(axis=1) != LABELS)[:8]
    better[wrong] = np.eye(3)[LABELS[wrong]]
    found = Resampled([Round(np.arange(90).astype(str), LABELS, (base, better))], resamples=500)
    first, second = (found.estimate(k, "accuracy") for k in (0, 1))
    assert first.high > second.low
    assert found.difference(0, 1, "accuracy").low > 0
    same = found.difference(0, 0, "auc")
    assert same == (0, 0, 0)


def test_mcnemar_is_the_binomial_test_of_the_images_that_one_alone_has_right():
    labels = np.zeros(20, int)
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    first = np.array([right] * 9 + [wrong] * 11)
    second = np.array([wrong] * 1 + [right] * 14 + [wrong] * 5)
    found = mcnemar(labels, first, second)
    assert (found.only_first, found.only_second) == (1, 6)
    assert found.p == pytest.approx(2 * sum(math.comb(7, k) for k in (0, 1)) / 2**7)
    assert mcnemar(labels, first, first).p == 1
