"""Thresholds against scikit-learn's ROC curve, small cases by hand, intervals that count groups."""

import numpy as np
import pytest
from sklearn import metrics as sk

from egmae_jax.evaluation import operating_points as op
from egmae_jax.evaluation.operating_points import TARGETS, Target
from egmae_jax.evaluation.significance import Estimate, Round
from tests.evaluation.oracles import random_predictions

SPECIFICITY_90, SENSITIVITY_90 = Target("specificity", 0.9), Target("sensitivity", 0.9)


def two_classes(scores):
    scores = np.array(scores)
    return np.stack([1 - scores, scores], axis=1)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_thresholds_are_the_best_points_of_scikit_learns_roc_curve(num_classes, coarse):
    labels, p = random_predictions(3, num_classes, coarse=coarse)
    chosen = op.choose_thresholds(labels, p)
    rates = op.operating_points(labels, p, chosen)
    for label in range(num_classes):
        alarms, hits, _ = sk.roc_curve(labels == label, p[:, label], drop_intermediate=False)
        for k, (rate, level) in enumerate(TARGETS):
            specificity, sensitivity = rates.specificity[label, k], rates.sensitivity[label, k]
            if rate == "specificity":
                reached = 1 - alarms >= level - 1e-12
                assert sensitivity == pytest.approx(hits[reached].max())
                assert specificity >= level
            else:
                reached = hits >= level - 1e-12
                assert specificity == pytest.approx((1 - alarms)[reached].max())
                assert sensitivity >= level


def test_thresholds_of_validation_are_applied_to_test():
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    scores = [0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 0.7, 0.9]
    chosen = op.choose_thresholds(labels, two_classes(scores), [SPECIFICITY_90])
    assert chosen[1, 0] == 0.7  # nine of ten are below
    tested = two_classes([0.6, 0.7, 0.71, 0.2, 0.7, 0.699])
    rates = op.operating_points(np.array([0, 0, 0, 0, 1, 1]), tested, chosen)
    assert rates.specificity[1, 0] == 0.5  # 0.7 itself is called
    assert rates.sensitivity[1, 0] == 0.5


def test_ties_are_on_one_side_and_an_unreachable_specificity_calls_none():
    labels = np.array([0] * 5 + [1] * 3)
    scores = two_classes([0.1, 0.2, 0.2, 0.9, 0.9, 0.2, 0.9, 0.9])
    chosen = op.choose_thresholds(labels, scores, [SPECIFICITY_90, SENSITIVITY_90])
    assert chosen[1].tolist() == [np.inf, 0.2]
    rates = op.operating_points(labels, scores, chosen)
    assert (rates.sensitivity[1].tolist(), rates.specificity[1].tolist()) == ([0, 1], [1, 0.2])


def test_absent_classes_have_no_rates():
    scores = two_classes([0.2, 0.6, 0.8])
    without = op.choose_thresholds(np.zeros(3, int), scores, [SPECIFICITY_90, SENSITIVITY_90])
    assert np.isnan(without).tolist() == [[True, False], [False, True]]
    rates = op.operating_points(np.zeros(3, int), scores, np.array([[0.5], [0.7]]))
    assert rates.specificity[1, 0] == pytest.approx(2 / 3)
    assert np.isnan(rates.sensitivity[1, 0])
    assert np.isnan(rates.specificity[0, 0])
    rates = op.operating_points(np.array([0, 1, 1]), scores, without)
    assert np.isnan(rates.specificity[1]).tolist() == [False, True]
    targets = [SPECIFICITY_90, SENSITIVITY_90]
    tested = round_of(np.array([0, 0, 1]), scores)
    first, second = op.estimate([tested], [[without]], targets=targets, resamples=9)[0][1]
    assert (first.thresholds, first.sensitivity) == ((np.inf,), (0, 0, 1))  # of one group
    assert np.isnan(second.sensitivity).all()


def round_of(labels, probabilities, groups=None):
    groups = np.arange(len(labels)) if groups is None else groups
    return Round(np.arange(len(labels)).astype(str), labels, [probabilities], groups)


def test_weights_are_those_of_repeated_images():
    labels, p = random_predictions(5, 3)
    counts = np.random.default_rng(0).integers(1, 4, (2, len(labels)))
    chosen = op.choose_thresholds(labels, p)
    weighted = op.operating_points(labels, p, chosen, counts.astype(float))
    for k, times in enumerate(counts):
        repeated = op.operating_points(np.repeat(labels, times), np.repeat(p, times, 0), chosen)
        for got, expected in zip(weighted, repeated, strict=True):
            np.testing.assert_allclose(got[k], expected)


def test_intervals_count_groups_and_not_images():
    labels, p = random_predictions(7, 3)
    groups = np.arange(len(labels))
    chosen = [[op.choose_thresholds(labels, p)]]
    alone = op.estimate([round_of(labels, p)], chosen, resamples=4000)
    doubled = (np.repeat(x, 2, axis=0) for x in (labels, p, groups))
    twice = op.estimate([round_of(*doubled)], chosen, resamples=4000)
    independent = (np.tile(x, (2, 1)[: x.ndim]) for x in (labels, p))
    more = op.estimate([round_of(*independent)], chosen, resamples=4000)
    for c in range(3):
        for t in range(len(TARGETS)):
            for rate in ("sensitivity", "specificity"):
                one, two, four = (getattr(x[0][c][t], rate) for x in (alone, twice, more))
                np.testing.assert_allclose(one, two, atol=1e-9)
                assert four.high - four.low < one.high - one.low


def test_the_interval_of_a_specificity_is_near_wilsons():
    labels = np.array([0] * 50 + [1] * 50)
    scores = two_classes(np.r_[np.full(40, 0.2), np.full(10, 0.8), np.full(50, 0.8)])
    cuts = np.array([[0.5], [0.5]])
    point = op.estimate(
        [round_of(labels, scores)], [[cuts]], targets=[SPECIFICITY_90], resamples=5000
    )[0][1][0]
    wilson = (0.669, 0.888)  # of 40 in 50
    assert point.specificity == pytest.approx((0.8, *wilson), abs=0.012)
    assert point.sensitivity.low == pytest.approx(0.93, abs=0.012)  # of 50 in 50
    assert point.sensitivity.high == 1


def test_rounds_are_averaged():
    labels, p = random_predictions(1, 2)
    _, other = random_predictions(2, 2)
    cuts = [[op.choose_thresholds(labels, p)], [op.choose_thresholds(labels, other)]]
    rounds = [round_of(labels, p), round_of(labels, other)]
    (point, *_) = op.estimate(rounds, cuts, resamples=20)[0][1]
    each = [op.operating_points(labels, x, c[0]) for x, c in zip((p, other), cuts, strict=True)]
    assert point.sensitivity.mean == pytest.approx(np.mean([r.sensitivity[1, 0] for r in each]))
    assert point.thresholds == (cuts[0][0][1, 0], cuts[1][0][1, 0])


def test_predictive_values_are_those_of_bayes():
    """Textbook: prevalence .01, sensitivity .9, specificity .95."""
    ppv, npv = op.predictive_values(Estimate(0.9, 0.8, 0.95), Estimate(0.95, 0.9, 0.99), 0.01)
    assert ppv.mean == pytest.approx(0.009 / (0.009 + 0.0495))
    assert npv.mean == pytest.approx(0.9405 / (0.9405 + 0.001))
    assert ppv.low == pytest.approx(0.008 / (0.008 + 0.099))
    assert ppv.low < ppv.mean < ppv.high
    assert npv.low < npv.mean < npv.high
    nobody, _ = op.predictive_values(Estimate(0, 0, 0.1), Estimate(1, 0.9, 1), 0.3)
    assert np.isnan(nobody.mean)


def test_predictive_values_at_the_prevalence_of_the_images_are_shares_of_them():
    labels, p = random_predictions(4, 2)
    called = p[:, 1] >= 0.5
    sensitivity, specificity = op.operating_points(labels, p, np.array([[0.5], [0.5]]))
    se, sp = (Estimate(x, x, x) for x in (sensitivity[1, 0], specificity[1, 0]))
    ppv, npv = op.predictive_values(se, sp, labels.mean())
    assert ppv.mean == pytest.approx(labels[called].mean())
    assert npv.mean == pytest.approx(1 - labels[~called].mean())


def test_net_benefit_is_the_formula_of_vickers_and_elkin():
    labels, p = random_predictions(6, 3)
    cuts = np.array([0.1, 0.25, 0.5, 0.9])
    model, treat_all = op.net_benefit(labels, p, cuts)
    for c in range(3):
        for k, cut in enumerate(cuts):
            called, odds = p[:, c] >= cut, cut / (1 - cut)
            true, false = (called & (labels == c)).sum(), (called & (labels != c)).sum()
            assert model[c, k] == pytest.approx((true - false * odds) / len(labels))
            prevalence = np.mean(labels == c)
            assert treat_all[c, k] == pytest.approx(prevalence - (1 - prevalence) * odds)
    absent = op.net_benefit(np.zeros(4, int), np.tile([0.4, 0.6], (4, 1)), np.array([0.5]))
    assert absent.model[:, 0].tolist() == [0, -1]
