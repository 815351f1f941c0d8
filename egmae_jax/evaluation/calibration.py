"""Temperature scaling of probabilities, bounded by what the validation images support.

Temperature scaling (Guo et al. 2017) divides the logits, here the logarithms of the probabilities,
by one number that is fitted on validation images. It changes the confidence of the predictions, but
not the predicted classes.

With few images the maximum-likelihood temperature is overconfident: if ten of ten predictions are
correct, it approaches 0, and every probability becomes 0 or 1. But by Laplace's rule of succession,
after n correct predictions the next is correct with probability `(n + 1) / (n + 2)`. Therefore the
number n of independent validation images (of groups, because images of a group are alike) bounds
the probabilities in two ways:

1. The targets of the fit are not one-hot: the true class has `(n + 1) / (n + 2)`, the others share
   the rest. These are Platt's targets (1999, section 2.2) for any number of classes. With more
   images, the temperature approaches the maximum-likelihood one.
2. Scaled probabilities are mixed with the uniform distribution, so that even a probability of 1
   becomes `(n + 1) / (n + 2)`. All images have the same mix, so their ranking does not change.

With fewer than `FEWEST` images no temperature is fitted, because its variance would cost more than
the fit gains (`docs/results.md`, "Calibration"); the probabilities are mixed nevertheless.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import optimize, special

TINY = 1e-12  # lower bound of probabilities before the logarithm
FEWEST = 30  # independent validation images needed to fit a temperature
NUM_BINS = 15
_HOTTEST, _COLDEST = 100.0, 0.01
_HELD_BACK = 1.1  # ratio to the maximum-likelihood temperature above which the limit is reported

Limit = Literal["", "hottest", "coldest", "evidence", "too_few"]


class Reliability(NamedTuple):
    """Reliability diagram: confidence and accuracy in bins of the confidence, all [NUM_BINS]."""

    images: np.ndarray  # number of images in the bin
    confidence: np.ndarray  # mean probability of the predicted class; NaN in an empty bin
    accuracy: np.ndarray  # share of correct predictions; NaN in an empty bin


class Scaling(NamedTuple):
    """Temperature scaling followed by a mix with the uniform distribution."""

    temperature: float  # divides the logits
    least: float = 0.0  # lower bound of every class's probability

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrates probabilities [N, num_classes]; returns float64 [N, num_classes]."""
        scaled = special.softmax(_logits(probabilities) / self.temperature, axis=1)
        return self.least + (1 - scaled.shape[1] * self.least) * scaled


class Fit(NamedTuple):
    """A temperature fitted on validation images, and the evidence for it.

    Attributes:
        temperature: divisor of the logits; 1 if none was fitted.
        least: lower bound of every class's probability, see `least_probability`.
        evidence: number of groups of the validation images, which count as independent.
        likeliest: maximum-likelihood temperature, which ignores that number.
        limit: reason why the temperature is limited. 'hottest' and 'coldest': it is at an end of
            the searched range; 'evidence': with more such images it would be at least a tenth
            lower; 'too_few': none was fitted, because there are fewer than FEWEST groups or only
            one class; '': it is not limited.
    """

    temperature: float
    least: float
    evidence: int
    likeliest: float
    limit: Limit

    @property
    def scaling(self) -> Scaling:
        """Calibration that applies this fit to probabilities."""
        return Scaling(self.temperature, self.least)


def fit(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray) -> Fit:
    """Fits a temperature on validation images.

    Args:
        labels: label of each image, int [N].
        probabilities: probabilities of a classifier, float [N, num_classes].
        groups: group of each image, int [N], equal for images that are not independent, such as
            those of one patient.
    """
    num_classes = probabilities.shape[1]
    evidence = len(np.unique(groups))
    least = least_probability(evidence, num_classes)
    likeliest = fit_temperature(labels, probabilities, np.inf)
    if evidence < FEWEST or len(np.unique(labels)) < 2:
        return Fit(1.0, least, evidence, likeliest, "too_few")
    temperature = fit_temperature(labels, probabilities, evidence)
    limit: Limit = ""
    if temperature > 0.99 * _HOTTEST:
        limit = "hottest"
    elif temperature < _COLDEST / 0.99:
        limit = "coldest"
    elif temperature > _HELD_BACK * likeliest:
        limit = "evidence"
    return Fit(temperature, least, evidence, likeliest, limit)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray, evidence: float) -> float:
    """Returns the temperature in [.01, 100] with the lowest cross-entropy to Platt's targets.

    Args:
        labels: label of each validation image, int [N].
        probabilities: probabilities of a classifier, float [N, num_classes].
        evidence: number of independent images, which determines the targets. With `np.inf` the
            targets are one-hot, and the result is the maximum-likelihood temperature.
    """
    count, num_classes = probabilities.shape
    least = least_probability(evidence, num_classes)
    targets = np.full((count, num_classes), least)
    targets[np.arange(count), labels] = 1 - (num_classes - 1) * least
    logits = _logits(probabilities)

    def loss(log_temperature: float) -> float:
        logs = special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return -(targets * logs).sum(axis=1).mean()

    bounds = (np.log(_COLDEST), np.log(_HOTTEST))
    result = optimize.minimize_scalar(loss, bounds=bounds, method="bounded")
    return float(np.exp(result.x))


def least_probability(evidence: float, num_classes: int) -> float:
    """Returns the lower bound of a class's probability, `1 / ((n + 2) (num_classes - 1))`.

    By Laplace's rule of succession, after n = `evidence` correct predictions all other classes
    together have the probability `1 / (n + 2)`.
    """
    return 1 / ((evidence + 2) * (num_classes - 1))


def explain(calibration: Mapping[str, Any]) -> str:
    """Returns a sentence that explains why a temperature is limited; '' if it is not.

    Args:
        calibration: "calibration" of a classifier in a round of results.json.
    """
    temperature, evidence = calibration["temperature"], calibration["evidence"]
    surest = f"{(evidence + 1) / (evidence + 2):.3g}"
    return {
        "hottest": f"No temperature was hot enough; {_HOTTEST:g} is the highest: all classes are "
        "almost equally probable, and a low calibration error only means that the classifier's "
        "confidence was unfounded.",
        "coldest": f"No temperature was cold enough; {_COLDEST} is the lowest.",
        "evidence": f"The likeliest temperature, {calibration['likeliest_temperature']:.3g}, "
        f"claims more than {evidence} independent validation images support; {temperature:.3g} is "
        f"used, and no probability is above {surest}.",
        "too_few": f"Not fitted (temperature 1): the {evidence} independent validation images "
        f"are fewer than {FEWEST} or all of one class. Because they are so few, no probability is "
        f"above {surest}.",
    }.get(calibration["limit"], "")


def explain_rounds(rounds: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """Returns sentences that explain why temperatures are limited, each once for all rounds.

    Args:
        rounds: "rounds" of results.json.
        names: names of the classifiers to explain.
    """
    classifiers: dict[str, list[str]] = {}  # by sentence, with the rounds unless it holds in all
    for name in names:
        sentences = [explain(row["calibration"][name]) for row in rounds]
        for sentence in filter(None, dict.fromkeys(sentences)):
            at = [str(i) for i, other in enumerate(sentences) if other == sentence]
            where = (
                "" if len(at) == len(rounds) else f" (round{'s'[: len(at) - 1]} {', '.join(at)})"
            )
            classifiers.setdefault(sentence, []).append(name + where)
    return [f"Calibration of {', '.join(c)}: {sentence}" for sentence, c in classifiers.items()]


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, np.float64), TINY))


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> Reliability:
    """Returns confidence and accuracy of the predictions, in NUM_BINS bins of equal width."""
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
    """Returns the expected calibration error (ECE) of the predicted class, in 15 equal bins.

    It is the mean over the images of `abs(accuracy - confidence)` in the image's bin.
    """
    bins = reliability(labels, probabilities)
    gaps = np.abs(bins.accuracy - bins.confidence) * bins.images
    return float(np.nansum(gaps) / len(labels))
