"""Metrics against loops over classes, weighted ones against scikit-learn."""

import json

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sk

from egmae_jax.evaluation.metrics import (
    TITLES,
    compute_metrics,
    cross_entropy,
    weighted_metrics,
)


def random_predictions(seed, num_classes, count=120, *, coarse=False):
    """Labels of all classes and probabilities that say something of them; coarse ones have ties."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % num_classes)
    logits = rng.normal(size=(count, num_classes)) + 1.2 * np.eye(num_classes)[labels]
    if coarse:
        logits = np.round(logits)
    return labels, special.softmax(logits, axis=1)


def pairs_in_order(scores, positive):
    """AUC by definition: the share of (positive, negative) pairs in order, ties a half."""
    p, n = scores[positive][:, None], scores[~positive][None, :]
    return ((p > n) + 0.5 * (p == n)).mean()


def average_precision(scores, positive):
    """Sum of precision times the gain of recall over falling thresholds."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = scores >= threshold
        new_recall = (called & positive).sum() / positive.sum()
        total += (new_recall - recall) * (called & positive).sum() / called.sum()
        recall = new_recall
    return total


def metrics_by_loops(labels, probabilities):
    num_classes = probabilities.shape[1]
    predicted = np.array([row.tolist().index(max(row)) for row in probabilities])
    rows = []
    for c in range(num_classes):
        tp = np.sum((predicted == c) & (labels == c))
        fp = np.sum((predicted == c) & (labels != c))
        fn = np.sum((predicted != c) & (labels == c))
        tn = np.sum((predicted != c) & (labels != c))
        positive, scores = labels == c, probabilities[:, c]
        rows.append(
            {
                "precision": tp / (tp + fp) if tp + fp else 0.0,
                "recall": tp / (tp + fn),
                "f1": 2 * tp / (2 * tp + fp + fn),
                "specificity": tn / (tn + fp),
                "auc": pairs_in_order(scores, positive),
                "pr_auc": average_precision(scores, positive),
            }
        )
    result = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    result["accuracy"] = np.mean(predicted == labels)
    result["ece"] = 0.0
    for k in range(15):
        inside = [i for i, p in enumerate(probabilities) if k / 15 < max(p) <= (k + 1) / 15]
        if inside:
            confidence = np.mean([max(probabilities[i]) for i in inside])
            accuracy = np.mean([predicted[i] == labels[i] for i in inside])
            result["ece"] += len(inside) / len(labels) * abs(accuracy - confidence)
    return result


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_metrics_are_those_of_loops_over_classes(num_classes, coarse):
    labels, probabilities = random_predictions(num_classes, num_classes, coarse=coarse)
    ours = compute_metrics(labels, probabilities)
    assert list(ours) == list(TITLES)
    assert ours == pytest.approx(metrics_by_loops(labels, probabilities), abs=1e-12)
    assert all(type(value) is float for value in ours.values())
    json.dumps(ours)


def test_a_class_that_is_never_predicted_has_precision_zero_without_a_warning(recwarn):
    labels = np.array([0, 0, 1, 2])
    probabilities = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1]])
    metrics = compute_metrics(labels, probabilities)
    assert metrics["precision"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    for name, values in weighted_metrics(labels, probabilities, np.ones((1, 4))).items():
        assert values[0] == pytest.approx(metrics[name]), name
    assert not recwarn


def test_cross_entropy_is_the_mean_negative_log_of_the_true_class():
    labels, probabilities = random_predictions(3, 4)
    expected = -np.mean([np.log(p[y]) for p, y in zip(probabilities, labels, strict=True)])
    assert cross_entropy(labels, probabilities) == pytest.approx(expected)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_weighted_metrics_are_scikit_learns_with_sample_weight(num_classes, coarse):
    labels, probabilities = random_predictions(5, num_classes, coarse=coarse)
    rng = np.random.default_rng(6)
    weights = np.concatenate(
        [
            rng.uniform(0, 2, (4, len(labels))),
            rng.integers(0, 3, (4, len(labels))),  # many zeros, as in a bootstrap
            np.ones((1, len(labels))),
        ]
    )
    ours = weighted_metrics(labels, probabilities, weights)
    predicted = probabilities.argmax(axis=1)
    for r, w in enumerate(weights):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            labels, predicted, average="macro", sample_weight=w, zero_division=0
        )
        expected = {
            "accuracy": sk.accuracy_score(labels, predicted, sample_weight=w),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "auc": np.mean(
                [
                    sk.roc_auc_score(labels == c, probabilities[:, c], sample_weight=w)
                    for c in range(num_classes)
                ]
            ),
        }
        assert {name: values[r] for name, values in ours.items()} == pytest.approx(
            expected, abs=1e-12
        )
