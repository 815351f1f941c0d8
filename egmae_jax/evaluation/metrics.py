"""Metrics of predicted probabilities (paper section 4.4), computed by scikit-learn.

Every class occurs in the test part of a run. In images from elsewhere a class may be absent: macro
averages are then over the classes that occur.
"""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn import metrics as sk

from egmae_jax.core.registry import Registry
from egmae_jax.evaluation import calibration

Metric = Callable[[np.ndarray, np.ndarray], float]  # (labels [N], probabilities [N, C]) -> value
TITLES: dict[str, str] = {}  # headings of all metrics, by their names in results.json
_METRICS: Registry[Metric] = Registry("metric")
PAPER_METRICS = ("accuracy", "precision", "recall", "f1", "auc")  # columns of the paper's tables
INTERVAL_METRICS = (*PAPER_METRICS, "balanced_accuracy", "kappa")  # have intervals
CLASS_METRICS = ("precision", "recall", "specificity", "f1", "auc", "pr_auc")


def register(name: str, title: str) -> Callable[[Metric], Metric]:
    """Registers the decorated metric for results.json, the report and exports.

    Args:
        name: key of the metric in results.json.
        title: heading of the metric in tables.

    Raises:
        ValueError: a metric of the package has this name.
    """
    add = _METRICS.register(name)
    TITLES[name] = title
    return add


def compute_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Computes all registered metrics; returns them by name.

    Args:
        labels: label of each image, int [N], in which at least two classes occur.
        probabilities: predicted probabilities, float [N, num_classes].
    """
    labels = np.asarray(labels)
    return {name: float(metric(labels, probabilities)) for name, metric in _METRICS.entries.items()}


@register("accuracy", "Accuracy")
def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Share of the images whose most probable class is the true class."""
    return sk.accuracy_score(labels, probabilities.argmax(axis=1))


@register("precision", "Precision")
def precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Macro average of the classes' precision; 0 for a class that is never predicted."""
    predicted, present = probabilities.argmax(axis=1), np.unique(labels)
    return sk.precision_score(labels, predicted, labels=present, average="macro", zero_division=0)


@register("recall", "Recall")
def recall(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Macro average of the classes' recall."""
    predicted, present = probabilities.argmax(axis=1), np.unique(labels)
    return sk.recall_score(labels, predicted, labels=present, average="macro")


@register("f1", "F1")
def f1(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Macro average of the classes' F1 score."""
    predicted, present = probabilities.argmax(axis=1), np.unique(labels)
    return sk.f1_score(labels, predicted, labels=present, average="macro")


@register("auc", "AUC")
def auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve, one-vs-rest and macro-averaged, also for two classes."""
    present = np.unique(labels)
    return sk.roc_auc_score(labels[:, None] == present, probabilities[:, present], average="macro")


@register("specificity", "Specificity")
def specificity(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Macro average of the classes' specificity, one-vs-rest."""
    predicted = probabilities.argmax(axis=1)
    return np.mean([np.mean(predicted[labels != c] != c) for c in np.unique(labels)])


@register("pr_auc", "PR-AUC")
def pr_auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Average precision (area under the precision-recall curve), one-vs-rest, macro-averaged."""
    present = np.unique(labels)
    truth = labels[:, None] == present
    return sk.average_precision_score(truth, probabilities[:, present], average="macro")


@register("balanced_accuracy", "Balanced accuracy")
def balanced_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean of the classes' recalls, which macro-averaged recall equals."""
    return recall(labels, probabilities)


@register("kappa", "Cohen's kappa")
def kappa(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Cohen's kappa of the predicted classes, unweighted: agreement beyond that of chance."""
    return sk.cohen_kappa_score(labels, probabilities.argmax(axis=1))


register("ece", "ECE")(calibration.expected_error)
_METRICS.reserve()


def class_metrics(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Computes CLASS_METRICS for each class against the rest; recall is the sensitivity.

    Args:
        labels: label of each image, int [N], in which at least two classes occur.
        probabilities: predicted probabilities, float [N, num_classes].
        classes: names of the classes.

    Returns:
        {class: {metric: value}} of the classes that occur.
    """
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(classes)), zero_division=0
    )
    return {
        name: {
            "precision": float(precision[c]),
            "recall": float(recall[c]),
            "specificity": float(np.mean(predicted[labels != c] != c)),
            "f1": float(f1[c]),
            "auc": float(sk.roc_auc_score(labels == c, probabilities[:, c])),
            "pr_auc": float(sk.average_precision_score(labels == c, probabilities[:, c])),
        }
        for c, name in enumerate(classes)
        if c in labels
    }


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log-probability of the true class (paper equation 10)."""
    return float(sk.log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1])))


def weighted_metrics(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Computes INTERVAL_METRICS for R vectors of sample weights at once.

    The results equal scikit-learn's with `sample_weight`, which takes one vector at a time.

    Args:
        labels: label of each image, int [N].
        probabilities: predicted probabilities, float [N, num_classes].
        weights: sample weights, float [R, N]; in each row every class that occurs has a positive
            weight.

    Returns:
        {metric: float [R]}.
    """
    classes = np.unique(labels)
    actual = labels == classes[:, None]  # [C, N] of the C classes that occur
    predicted = probabilities.argmax(axis=1) == classes[:, None]
    # Weights of true positives, actual positives and predicted positives, [R, C] each.
    hits, actual_weight, predicted_weight = (
        weights @ x.T for x in (actual & predicted, actual, predicted)
    )
    f1 = 2 * hits / (actual_weight + predicted_weight)
    precision = hits / np.where(predicted_weight > 0, predicted_weight, 1)
    aucs = [
        _weighted_auc(probabilities[:, c], positive, weights)
        for c, positive in zip(classes, actual, strict=True)
    ]
    accuracy = hits.sum(axis=1) / weights.sum(axis=1)
    recall = (hits / actual_weight).mean(axis=1)
    by_chance = (actual_weight * predicted_weight).sum(axis=1) / weights.sum(axis=1) ** 2
    return {
        "accuracy": accuracy,
        "precision": precision.mean(axis=1),
        "recall": recall,
        "f1": f1.mean(axis=1),
        "auc": np.mean(aucs, axis=0),
        "balanced_accuracy": recall,
        "kappa": (accuracy - by_chance) / (1 - by_chance),
    }


def _weighted_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUCs [R]: weighted share of (positive, negative) pairs in order; a tie counts half."""
    order = np.argsort(scores)
    _, starts = np.unique(scores[order], return_index=True)
    up, down = (
        np.add.reduceat((weights * x)[:, order], starts, axis=1) for x in (positive, ~positive)
    )
    below = np.cumsum(down, axis=1) - down / 2
    return (up * below).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))


def mean_std(values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """Returns {"mean", "std"}: mean and sample standard deviation (n - 1), None for one value."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std}
