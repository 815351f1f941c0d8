"""Temperature scaling against a grid and known truths; the bins of reliability."""

import numpy as np
import pytest
from scipy import special
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from egmae_jax import calibration, evaluate
from egmae_jax.evaluate import Predictions


def drawn(count, classes, seed=0):
    """Logits, and labels drawn from what they say."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((count, classes))
    chances = special.softmax(logits, axis=1)
    return logits, np.array([rng.choice(classes, p=p) for p in chances])


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_spoilt_the_probabilities_is_found(classes, temperature):
    logits, labels = drawn(20000, classes)
    spoilt = special.softmax(logits * temperature, axis=1)
    found = calibration.fit_temperature(labels, spoilt)
    assert found == pytest.approx(temperature, rel=0.05)
    np.testing.assert_allclose(
        calibration.scale(spoilt, temperature), special.softmax(logits, axis=1), atol=1e-3
    )
    if temperature != 1:
        before, after = (
            calibration.expected_error(labels, p)
            for p in (spoilt, calibration.scale(spoilt, found))
        )
        assert after < 0.02 < 0.05 < before


def test_no_temperature_of_a_grid_is_better():
    logits, labels = drawn(60, 3)
    p = special.softmax(1.7 * logits, axis=1)
    best = log_loss(labels, calibration.scale(p, calibration.fit_temperature(labels, p)))
    for temperature in np.geomspace(0.05, 20, 400):
        assert best <= log_loss(labels, calibration.scale(p, temperature)) + 1e-9


def test_scaling_changes_no_prediction_and_is_finite_for_certain_probabilities():
    labels = np.array([0, 1, 2, 0])
    p = np.array([[1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0], [0.5, 0.3, 0.2]], np.float32)
    temperature = calibration.fit_temperature(labels, p)
    scaled = calibration.scale(p, temperature)
    assert np.isfinite(scaled).all()
    np.testing.assert_array_equal(scaled.argmax(axis=1), p.argmax(axis=1))
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    right = calibration.fit_temperature(labels, np.eye(3)[labels])  # all right, all certain
    assert 0.01 <= right <= 100


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


def test_the_temperature_is_fitted_on_validation_alone():
    logits, labels = drawn(300, 3)
    ids = np.array([str(i) for i in range(300)])
    p = special.softmax(2 * logits, axis=1)
    validation = {name: Predictions(ids, labels, p) for name in ("a", "b")}
    test = {name: Predictions(ids, labels[::-1], p) for name in ("a", "b")}
    found = evaluate.score(validation, test, classes=("x", "y", "z"), resamples=2)["calibration"]
    assert found.keys() == {"a", "b", "ensemble"}
    expected = calibration.fit_temperature(labels, p)
    assert found["a"]["temperature"] == expected
    assert found["ensemble"]["temperature"] == pytest.approx(expected)
    scaled = calibration.scale(p, expected)
    assert found["a"]["ece"] == calibration.expected_error(labels[::-1], scaled)
    assert found["a"]["loss"] == pytest.approx(log_loss(labels[::-1], scaled))
