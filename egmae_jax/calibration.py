"""Whether a probability of .8 is right four times of five, and the temperature that mends it.

Temperature scaling (Guo et al. 2017) divides the logits, here the logarithms of the probabilities,
by one number. It is fitted on validation images and changes no prediction, only how sure it is.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, special

TINY = 1e-12  # below it a probability's logarithm says nothing more
_HOTTEST = 100.0
NUM_BINS = 15


class Reliability(NamedTuple):
    """Of each bin of confidence, the probability of the predicted class; all [NUM_BINS]."""

    images: np.ndarray  # how many
    confidence: np.ndarray  # their mean; NaN where there are none
    accuracy: np.ndarray  # likewise


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature of least cross-entropy, within .01 and 100.

    Args:
        labels: int [N], of validation images.
        probabilities: [N, num_classes].
    """

    def loss(log_temperature: float) -> float:
        logs = special.log_softmax(_logits(probabilities) / np.exp(log_temperature), axis=1)
        return -logs[np.arange(len(labels)), labels].mean()

    bounds = (-np.log(_HOTTEST), np.log(_HOTTEST))
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def is_at_limit(temperature: float) -> bool:
    """Whether no temperature was hot enough: what it gives is all but equal for every class."""
    return temperature > 0.99 * _HOTTEST


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [N, num_classes] as sure as the temperature says, float64 of the same shape."""
    return special.softmax(_logits(probabilities) / temperature, axis=1)


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, np.float64), TINY))


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> Reliability:
    """Confidence and accuracy of the predicted class, in NUM_BINS bins of equal width."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    count, confident, right = (
        np.bincount(bins, weights=weights, minlength=NUM_BINS)
        for weights in (None, confidence, correct)
    )
    with np.errstate(invalid="ignore"):
        return Reliability(count, confident / count, right / count)


def expected_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The ECE: `abs(accuracy - confidence)` of each bin, weighted by its share of the images."""
    bins = reliability(labels, probabilities)
    gaps = np.abs(bins.accuracy - bins.confidence) * bins.images
    return float(np.nansum(gaps) / len(labels))
