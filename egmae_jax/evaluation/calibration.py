"""Temperature scaling of probabilities, bounded by what the validation images support.

Temperature scaling (Guo et al. 2017) divides the logits, here the logarithms of the probabilities,
by one number that is fitted on validation images. It changes how sure predictions are, and none of
the predictions.

With few images the likeliest temperature is overconfident: where ten of ten are right it approaches
0, and every probability becomes 0 or 1. Ten right images do not exclude that one in twelve is
wrong: by Laplace's rule of succession the next is right with probability `(n + 1) / (n + 2)`. So
the number n of independent validation images (of groups, where images of a group are alike) bounds
the probabilities twice:

1. The targets of the fit are not one-hot: the true class has `(n + 1) / (n + 2)`, the others share
   the rest. These are Platt's targets (1999, section 2.2) for any number of classes. The more
   images there are, the closer the temperature is to the likeliest.
2. Scaled probabilities are mixed with the uniform distribution, so that even certainty becomes
   `(n + 1) / (n + 2)`. The mix is the same for all images: their order does not change.

With fewer than `FEWEST` images no temperature is fitted, since it would vary by more than the error
that it mends (`docs/results.md`, "Calibration"); the probabilities are mixed all the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import optimize, special

TINY = 1e-12  # probabilities are cut off below it before their logarithm is taken
FEWEST = 30  # independent validation images needed to fit a temperature
NUM_BINS = 15
_HOTTEST, _COLDEST = 100.0, 0.01
_HELD_BACK = 1.1  # ratio to the likeliest temperature above which the bound is reported

Limit = Literal["", "hottest", "coldest", "evidence", "too_few"]


class Reliability(NamedTuple):
    """Confidence and accuracy in bins of the predicted class's probability; all [NUM_BINS]."""

    images: np.ndarray  # number of images in the bin
    confidence: np.ndarray  # mean confidence; NaN in an empty bin
    accuracy: np.ndarray  # share of correct predictions; NaN in an empty bin


class Scaling(NamedTuple):
    """A calibration: a temperature, and a mix with the uniform distribution."""

    temperature: float  # divides the logits
    least: float = 0.0  # probability that every class has at least

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrates probabilities [N, num_classes]; returns float64 [N, num_classes]."""
        scaled = special.softmax(_logits(probabilities) / self.temperature, axis=1)
        return self.least + (1 - scaled.shape[1] * self.least) * scaled


class Fit(NamedTuple):
    """A temperature fitted on validation images, and what it rests on.

    Attributes:
        temperature: divides the logits; 1 where none was fitted.
        least: probability that every class has at least: see `least_probability`.
        evidence: number of independent validation images, or of their groups.
        likeliest: the temperature without regard to that number.
        limit: what bounded the temperature. 'hottest' and 'coldest': an end of the range that is
            searched; 'evidence': with more images of the kind it would be at least a tenth lower;
            'too_few': none was fitted, for fewer than FEWEST images or for images of one class; '':
            nothing.
    """

    temperature: float
    least: float
    evidence: int
    likeliest: float
    limit: Limit

    @property
    def scaling(self) -> Scaling:
        """The calibration of this fit."""
        return Scaling(self.temperature, self.least)


def fit(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray) -> Fit:
    """Fits a temperature on validation images.

    Args:
        labels: int [N].
        probabilities: [N, num_classes].
        groups: int [N], equal for images that are no independent evidence, such as those of one
            patient.
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
    """The temperature of lowest cross-entropy with Platt's targets, between .01 and 100.

    Args:
        labels: int [N], of validation images.
        probabilities: [N, num_classes].
        evidence: number of independent images that they count as, which decides the targets. With
            `np.inf` the targets are one-hot and the temperature is the likeliest.
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
    """The probability of each other class after n images that were all predicted correctly.

    By Laplace's rule of succession the other classes have `1 / (n + 2)` together.
    """
    return 1 / ((evidence + 2) * (num_classes - 1))


def explain(calibration: Mapping[str, Any]) -> str:
    """A sentence on what bounded a temperature; '' where nothing did.

    Args:
        calibration: calibration of a classifier in a round of results.json.
    """
    temperature, evidence = calibration["temperature"], calibration["evidence"]
    surest = f"{(evidence + 1) / (evidence + 2):.3g}"
    return {
        "hottest": f"No temperature was hot enough; {_HOTTEST:g} is the highest: every class is "
        "all but equally probable, and a low calibration error means no more than that no "
        "certainty was right.",
        "coldest": f"No temperature was cold enough; {_COLDEST} is the lowest.",
        "evidence": f"The likeliest temperature, {calibration['likeliest_temperature']:.3g}, "
        f"claims more than {evidence} independent validation images support; {temperature:.3g} is "
        f"used, and no probability is above {surest}.",
        "too_few": f"Not fitted (temperature 1): {evidence} independent validation images are too "
        f"few, or of one class only; at least {FEWEST} are needed. No probability is above "
        f"{surest}, which is what they support.",
    }.get(calibration["limit"], "")


def explain_rounds(rounds: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """Sentences on what bounded the temperatures of all rounds, each once.

    Args:
        rounds: the rounds of results.json.
        names: classifiers to explain.
    """
    concerned: dict[str, list[str]] = {}  # sentence -> classifiers, with their rounds if not all
    for name in names:
        sentences = [explain(row["calibration"][name]) for row in rounds]
        for sentence in filter(None, dict.fromkeys(sentences)):
            at = [str(i) for i, other in enumerate(sentences) if other == sentence]
            where = (
                "" if len(at) == len(rounds) else f" (round{'s'[: len(at) - 1]} {', '.join(at)})"
            )
            concerned.setdefault(sentence, []).append(name + where)
    return [f"Calibration of {', '.join(c)}: {sentence}" for sentence, c in concerned.items()]


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, np.float64), TINY))


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> Reliability:
    """Confidence and accuracy of the predictions, in NUM_BINS bins of equal width."""
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
    """Expected calibration error of the predicted class.

    It is the mean over the images of `abs(accuracy - confidence)` of their bin, of 15 bins of equal
    width.
    """
    bins = reliability(labels, probabilities)
    gaps = np.abs(bins.accuracy - bins.confidence) * bins.images
    return float(np.nansum(gaps) / len(labels))
