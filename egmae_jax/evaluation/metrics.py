"""The metrics of a part's probabilities (paper section 4.4), by scikit-learn."""

from collections.abc import Sequence

import numpy as np
from sklearn import metrics as sk

from egmae_jax.evaluation import calibration

METRICS = ("accuracy", "precision", "recall", "f1", "auc", "specificity", "pr_auc", "ece")
WEIGHTED_METRICS = ("accuracy", "precision", "recall", "f1", "auc")  # which have intervals
CLASS_METRICS = (
    "precision",
    "recall",
    "specificity",
    "f1",
    "auc",
    "pr_auc",
)  # one against the rest


def compute_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The paper's metrics and the project's own, by scikit-learn.

    Precision, recall, F1, specificity and PR-AUC are macro averages; AUC is one-vs-rest, macro; ECE
    is the expected calibration error of the predicted class over 15 bins of equal width.

    Args:
        labels: int [N], every class present.
        probabilities: [N, num_classes].
    """
    labels = np.asarray(labels)
    num_classes = probabilities.shape[1]
    classes = np.arange(num_classes)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, predicted, labels=classes, average="macro", zero_division=0
    )
    one_hot = np.eye(num_classes)[labels]
    confusion = confusion_matrix(labels, predicted, num_classes)
    actual, said = confusion.sum(axis=1), confusion.sum(axis=0)
    true_negatives = len(labels) - actual - said + np.diag(confusion)
    return {
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        # Of the one-hot labels: one-vs-rest, macro, for two classes as well as for more.
        "auc": float(sk.roc_auc_score(one_hot, probabilities, average="macro")),
        "specificity": float(np.mean(true_negatives / (len(labels) - actual))),
        "pr_auc": float(sk.average_precision_score(one_hot, probabilities, average="macro")),
        "ece": calibration.expected_error(labels, probabilities),
    }


def class_metrics(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """For every class against the rest: precision, recall (sensitivity), specificity, F1, AUCs.

    Args:
        labels: int [N], every class present.
        probabilities: [N, num_classes].
        classes: their names.

    Returns:
        {class: {metric of CLASS_METRICS: value}}.
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
    }


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log-probability of the true class (paper equation 10)."""
    return float(sk.log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1])))


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """int [num_classes, num_classes]: rows are true classes, columns predicted ones."""
    return sk.confusion_matrix(labels, predicted, labels=np.arange(num_classes))


def weighted_metrics(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The paper's five metrics under many weightings of the images at once.

    Equal to scikit-learn's with `sample_weight`, which does one weighting at a time.

    Args:
        labels: int [N].
        probabilities: [N, num_classes].
        weights: [R, N]; no class may weigh nothing.

    Returns:
        Arrays [R].
    """
    classes = np.arange(probabilities.shape[1])
    actual = labels == classes[:, None]  # [C, N]
    said = probabilities.argmax(axis=1) == classes[:, None]
    hits, actual_weight, said_weight = (
        weights @ x.T for x in (actual & said, actual, said)
    )  # [R, C]
    f1 = 2 * hits / (actual_weight + said_weight)
    precision = hits / np.where(said_weight > 0, said_weight, 1)
    aucs = [_weighted_auc(probabilities[:, c], actual[c], weights) for c in classes]
    return {
        "accuracy": hits.sum(axis=1) / weights.sum(axis=1),
        "precision": precision.mean(axis=1),
        "recall": (hits / actual_weight).mean(axis=1),
        "f1": f1.mean(axis=1),
        "auc": np.mean(aucs, axis=0),
    }


def _weighted_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R]: the weighted share of (positive, negative) pairs in the right order, ties a half."""
    order = np.argsort(scores)
    _, starts = np.unique(scores[order], return_index=True)
    up, down = (
        np.add.reduceat((weights * x)[:, order], starts, axis=1) for x in (positive, ~positive)
    )
    below = np.cumsum(down, axis=1) - down / 2
    return (up * below).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))
