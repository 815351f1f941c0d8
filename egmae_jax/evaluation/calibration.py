"""Whether a probability of .8 is right four times of five, and the temperature that mends it.

Temperature scaling (Guo et al. 2017) divides the logits, here the logarithms of the probabilities,
by one number. It is fitted on validation images and changes no prediction, only how sure it is.

Of few images the likeliest temperature claims too much: where ten of ten are right it is as near to
0 as it may be, and every probability 0 or 1. Ten right images show that one in twelve may be wrong:
by Laplace's rule of succession the next is right with probability `(n + 1) / (n + 2)`. So two
things follow from the number n of independent validation images, or of groups where images of a
group are alike:

1. The labels that the temperature is fitted to are no zeros and ones. The true class has
   `(n + 1) / (n + 2)` and the others share the rest: Platt's targets (1999, section 2.2) against
   the same overfitting, for any number of classes. The more images, the nearer is the temperature
   to the likeliest.
2. Scaled probabilities are mixed with as much of the uniform distribution as takes certainty itself
   to `(n + 1) / (n + 2)`, so that no image, however unlike those of validation, gets more. The mix
   is the same for every image: whatever is computed from an order of probabilities stays.

From fewer than `FEWEST` images no temperature is fitted, and only the second applies: the
temperature would vary by more than the error that it mends (`docs/results.md`, "Calibration").
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import optimize, special

TINY = 1e-12  # below it a probability's logarithm says nothing more
FEWEST = 30  # validation images, or groups of them, that a temperature is fitted to
NUM_BINS = 15
_HOTTEST, _COLDEST = 100.0, 0.01
_HELD_BACK = 1.1  # times the likeliest temperature, from which the bound is worth a word

Limit = Literal["", "hottest", "coldest", "evidence", "too_few"]


class Reliability(NamedTuple):
    """Of each bin of confidence, the probability of the predicted class; all [NUM_BINS]."""

    images: np.ndarray  # how many
    confidence: np.ndarray  # their mean; NaN where there are none
    accuracy: np.ndarray  # likewise


class Scaling(NamedTuple):
    """What is done to probabilities to calibrate them."""

    temperature: float
    least: float = 0.0  # probability that no class falls below

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float64 [N, num_classes]; see `scale`."""
        return scale(probabilities, self.temperature, self.least)


class Fit(NamedTuple):
    """A temperature fitted on validation images, and what it rests on."""

    temperature: float
    least: float  # probability that no class falls below: see `least_probability`
    evidence: int  # validation images, or groups of them, that count as independent
    likeliest: float  # the temperature without regard to how few they are
    # What acted: 'hottest' and 'coldest', the ends of the range searched; 'evidence', more images
    # alike would have made it colder by a tenth or more; 'too_few', the temperature is not fitted
    # but 1, of fewer than FEWEST images or of images of one class; '' where nothing did.
    limit: Limit

    @property
    def scaling(self) -> Scaling:
        """What is done to probabilities by it."""
        return Scaling(self.temperature, self.least)


def fit(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray | None = None) -> Fit:
    """Fits what validation images support.

    Args:
        labels: int [N], of validation images.
        probabilities: [N, num_classes], of the same.
        groups: [N], equal for images that are no independent evidence, such as those of one
            patient; None where every image is.
    """
    num_classes = probabilities.shape[1]
    evidence = len(labels) if groups is None else len(np.unique(groups))
    least = least_probability(evidence, num_classes)
    likeliest = fit_temperature(labels, probabilities, np.inf)
    if evidence < FEWEST or len(np.unique(labels)) < 2:
        return Fit(1.0, least, evidence, likeliest, "too_few")
    temperature = fit_temperature(labels, probabilities, evidence)
    limit: Limit = ""
    if is_at_limit(temperature):
        limit = "hottest" if temperature > 1 else "coldest"
    elif temperature > _HELD_BACK * likeliest:
        limit = "evidence"
    return Fit(temperature, least, evidence, likeliest, limit)


def fit_temperature(
    labels: np.ndarray, probabilities: np.ndarray, evidence: float | None = None
) -> float:
    """The temperature of least cross-entropy with Platt's targets, within .01 and 100.

    Args:
        labels: int [N], of validation images.
        probabilities: [N, num_classes].
        evidence: how many independent images they count as, which the targets follow from; None:
            N. Of infinitely many it is the likeliest temperature.
    """
    count, num_classes = probabilities.shape
    least = least_probability(count if evidence is None else evidence, num_classes)
    targets = np.full((count, num_classes), least)
    targets[np.arange(count), labels] = 1 - (num_classes - 1) * least
    logits = _logits(probabilities)

    def loss(log_temperature: float) -> float:
        logs = special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return -(targets * logs).sum(axis=1).mean()

    bounds = (np.log(_COLDEST), np.log(_HOTTEST))
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def least_probability(evidence: float, num_classes: int) -> float:
    """What n independent images leave to each class but the true one, all of them being right.

    `1 / (n + 2)` is left to all of these together by Laplace's rule of succession.
    """
    return 1 / ((evidence + 2) * (num_classes - 1))


def is_at_limit(temperature: float) -> bool:
    """Whether a temperature is at an end of the range that is searched, .01 or 100.

    At the hot end every class is all but equally probable, at the cold end every image certain.
    """
    return not _COLDEST / 0.99 < temperature < 0.99 * _HOTTEST


def explain(calibration: Mapping[str, Any]) -> str:
    """What acted on a fit, as a sentence; '' where nothing did.

    Args:
        calibration: of a classifier, in a round of results.json, of any version.
    """
    temperature = calibration["temperature"]
    if "least_probability" not in calibration:  # of an older version
        if temperature >= 1:
            return _HOTTEST_SENTENCE if is_at_limit(temperature) else ""
        return (
            f"The temperature {temperature:.3g} was fitted without regard to how few images there "
            "were, by an older version: probabilities can be surer than these support. "
            "--stage=evaluate fits it anew."
        )
    evidence = calibration["evidence"]
    surest = f"{(evidence + 1) / (evidence + 2):.3g}"
    match calibration["limit"]:
        case "hottest":
            return _HOTTEST_SENTENCE
        case "coldest":
            return f"No temperature was cold enough; {_COLDEST} is the lowest."
        case "evidence":
            return (
                f"The likeliest temperature, {calibration['likeliest_temperature']:.3g}, claims "
                f"more than {evidence} independent validation images support; {temperature:.3g} is "
                f"used, and no probability is above {surest}."
            )
        case "too_few":
            return (
                f"Not fitted (temperature 1): {evidence} independent validation images are too "
                f"few, or of one class only; at least {FEWEST} are needed. No probability is above "
                f"{surest}, which is what they support."
            )
    return ""


def explain_rounds(rounds: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """What acted on the fits of all rounds, a sentence each, with the classifiers and rounds.

    Args:
        rounds: of results.json.
        names: of the classifiers.
    """
    of_sentence: dict[str, dict[str, list[str]]] = {}
    for name in names:
        for index, row in enumerate(rounds):
            if sentence := explain(row["calibration"][name]):
                of_sentence.setdefault(sentence, {}).setdefault(name, []).append(str(index))
    return [
        f"Calibration of {_whose(found, len(rounds))}: {sentence}"
        for sentence, found in of_sentence.items()
    ]


def _whose(rounds_of: Mapping[str, Sequence[str]], num_rounds: int) -> str:
    return ", ".join(
        name
        if len(rounds) == num_rounds
        else f"{name} (round{'s' * (len(rounds) > 1)} {', '.join(rounds)})"
        for name, rounds in rounds_of.items()
    )


_HOTTEST_SENTENCE = (
    f"No temperature was hot enough; {_HOTTEST:g} is the highest: every class is all but equally "
    "probable, and a low calibration error means no more than that no certainty was right."
)


def scale(probabilities: np.ndarray, temperature: float, least: float = 0.0) -> np.ndarray:
    """Probabilities as sure as a temperature says, and none below the least.

    Args:
        probabilities: [N, num_classes].
        temperature: that the logits are divided by.
        least: probability that every class has at least: `Fit.least`.

    Returns:
        float64 [N, num_classes].
    """
    scaled = special.softmax(_logits(probabilities) / temperature, axis=1)
    return least + (1 - scaled.shape[1] * least) * scaled


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
