"""Temperature scaling against a grid and known truths; the bins of reliability."""

import numpy as np
import pytest
from scipy import optimize, special
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from egmae_jax.evaluation import calibration
from egmae_jax.evaluation.calibration import Scaling
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.scores import score_branches


def drawn(count, classes, seed=0):
    """Logits, and labels drawn from their probabilities."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((count, classes))
    chances = special.softmax(logits, axis=1)
    return logits, np.array([rng.choice(classes, p=p) for p in chances])


def fit(labels, probabilities):
    """Of images that are all independent."""
    return calibration.fit(labels, probabilities, np.arange(len(labels)))


@pytest.mark.parametrize(("classes", "temperature"), [(2, 0.5), (5, 3.0)])
def test_the_temperature_that_spoilt_the_probabilities_is_found(classes, temperature):
    logits, labels = drawn(20000, classes)
    spoilt = special.softmax(logits * temperature, axis=1)
    found = calibration.fit_temperature(labels, spoilt, 20000)
    assert found == pytest.approx(temperature, rel=0.05)
    np.testing.assert_allclose(
        Scaling(temperature).apply(spoilt), special.softmax(logits, axis=1), atol=1e-3
    )
    before, after = (
        calibration.expected_error(labels, p) for p in (spoilt, Scaling(found).apply(spoilt))
    )
    assert after < 0.02 < 0.05 < before


def test_bins_are_scikit_learns():
    logits, labels = drawn(500, 2)
    p = special.softmax(logits, axis=1)
    bins = calibration.reliability(labels, p)
    accuracy, confidence = calibration_curve(
        p.argmax(axis=1) == labels, p.max(axis=1), n_bins=calibration.NUM_BINS
    )
    filled = bins.images > 0
    assert bins.images.sum() == 500
    np.testing.assert_allclose(bins.accuracy[filled], accuracy)
    np.testing.assert_allclose(bins.confidence[filled], confidence)
    assert np.isnan(bins.accuracy[~filled]).all()


def test_the_temperature_is_fitted_on_groups_of_validation_images_alone():
    logits, labels = drawn(300, 3)
    ids = np.array([str(i) for i in range(300)])
    p = special.softmax(2 * logits, axis=1)
    groups = np.arange(300) // 2
    validation = {name: Predictions(ids, labels, p, groups) for name in ("a", "b")}
    test = {name: Predictions(ids, labels[::-1], p, groups) for name in ("a", "b")}
    result = score_branches(validation, test, classes=("x", "y", "z"), resamples=2)["calibration"]
    assert result.keys() == {"a", "b", "ensemble"}
    temperature = calibration.fit_temperature(labels, p, 150)
    scaled = Scaling(temperature, 1 / 152 / 2).apply(p)
    assert result["ensemble"]["temperature"] == pytest.approx(temperature)
    assert result["a"]["temperature"] == temperature
    assert result["a"]["evidence"] == 150
    assert result["a"]["least_probability"] == pytest.approx(1 / 152 / 2)
    assert result["a"]["ece"] == calibration.expected_error(labels[::-1], scaled)
    assert result["a"]["loss"] == pytest.approx(log_loss(labels[::-1], scaled))


# --- No more certainty than the images support ------------------------------------------------


@pytest.mark.parametrize("count", [10, 300])
def test_images_that_are_all_right_give_the_confidence_of_laplaces_rule_and_no_more(count):
    labels = np.arange(count) % 2
    p = np.where(np.eye(2)[labels] == 1, 0.6, 0.4)  # all right, all alike
    temperature = calibration.fit_temperature(labels, p, count)
    succession = (count + 1) / (count + 2)
    # Where all images are alike the best confidence is the target itself: by its definition.
    assert Scaling(temperature).apply(p).max(axis=1) == pytest.approx(succession, rel=1e-4)
    assert temperature == pytest.approx(np.log(0.6 / 0.4) / np.log(count + 1), rel=1e-3)
    assert calibration.fit_temperature(labels, p, np.inf) < 0.02


@pytest.mark.parametrize(("classes", "count"), [(2, 1), (3, 10), (8, 100)])
def test_no_image_gets_more_certainty_than_the_validation_images_support(count, classes):
    labels = np.arange(count) % classes
    p = np.where(np.eye(classes)[labels] == 1, 0.9, 0.1 / (classes - 1))
    odd = np.eye(classes)[[0]]  # an image that the network is certain of, and wrong perhaps
    scaled = fit(labels, p).scaling.apply(np.concatenate([p, odd]))
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    assert scaled.max() <= (count + 1) / (count + 2) + 1e-12
    assert scaled.min() >= 1 / (count + 2) / (classes - 1) - 1e-12
    np.testing.assert_allclose(scaled[-1].max(), (count + 1) / (count + 2), rtol=1e-6)
    np.testing.assert_array_equal(scaled.argmax(axis=1), [*labels, 0])


def test_of_many_images_the_temperature_is_the_likeliest():
    logits, labels = drawn(20000, 4)
    p = special.softmax(2.5 * logits, axis=1)
    logs = np.log(p)

    def slope(t):  # of the likelihood: zero at its maximum (Guo et al. 2017)
        chances = special.softmax(logs / t, axis=1)
        return (logs[np.arange(20000), labels] - (chances * logs).sum(axis=1)).mean()

    likeliest = optimize.brentq(slope, 0.5, 10)
    found = fit(labels, p)
    assert found.likeliest == pytest.approx(likeliest, rel=1e-4)
    assert found.temperature == pytest.approx(likeliest, rel=2e-3)
    assert found.limit == ""
    assert calibration.explain(row_of(found)) == ""


def row_of(found):
    """A fit as results.json has it."""
    row = {"temperature": found.temperature, "evidence": found.evidence, "limit": found.limit}
    return row | {"likeliest_temperature": found.likeliest}


def test_images_of_a_group_are_one_piece_of_evidence():
    logits, labels = drawn(40, 3)
    p = special.softmax(logits, axis=1)
    alone = fit(labels, p)
    twice = calibration.fit(np.tile(labels, 2), np.tile(p, (2, 1)), np.tile(np.arange(40), 2))
    assert twice.evidence == 40
    assert twice.temperature == pytest.approx(alone.temperature, rel=1e-4)
    assert twice.least == alone.least


LABELS = np.arange(60) % 2
RIGHT = np.where(np.eye(2)[LABELS] == 1, 0.7, 0.3)


@pytest.mark.parametrize(
    ("labels", "probabilities", "limit", "sentence"),
    [
        (LABELS, RIGHT, "evidence", "claims more than 60 independent validation images support"),
        (LABELS[:29], RIGHT[:29], "too_few", "29 independent validation images are fewer than 30"),
        (0 * LABELS, RIGHT, "too_few", "Not fitted"),  # of one class
        (LABELS, RIGHT[:, ::-1], "hottest", "100 is the highest"),
        (LABELS, 0.5 + (RIGHT - 0.5) / 2000, "coldest", "0.01 is the lowest"),
    ],
)
def test_what_bounds_a_temperature_is_explained(labels, probabilities, limit, sentence):
    found = fit(labels, probabilities)
    assert found.limit == limit
    assert (found.temperature == 1) == (limit == "too_few")
    assert sentence in calibration.explain(row_of(found))


def test_sentences_of_several_rounds_are_joined():
    fine = row_of(calibration.Fit(1.4, 0.01, 60, 1.4, ""))
    hot = row_of(calibration.Fit(99.9, 0.01, 60, 99.9, "hottest"))
    rounds = [{"calibration": {"a": hot, "b": fine, "c": hot}}]
    rounds.append({"calibration": {"a": fine, "b": fine, "c": hot}})
    (sentence,) = calibration.explain_rounds(rounds, ["a", "b", "c"])
    assert sentence.startswith("Calibration of a (round 0), c: No temperature was hot enough")
