"""Metrics against loops over classes, weighted ones against scikit-learn."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from egmae_jax.evaluation import bootstrap
from egmae_jax.evaluation.metrics import (
    TITLES,
    class_metrics,
    compute_metrics,
    cross_entropy,
    weighted_metrics,
)
from tests.evaluation.oracles import metrics_by_loops, random_predictions


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


def test_macro_averages_are_over_the_classes_that_occur(recwarn):
    labels, probabilities = random_predictions(3, 4)
    labels, probabilities = labels[labels != 2], probabilities[labels != 2]
    predicted, present = probabilities.argmax(axis=1), [0, 1, 3]
    assert 2 in predicted
    metrics = compute_metrics(labels, probabilities)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, predicted, labels=present, average="macro"
    )
    each = {c: (labels == c, probabilities[:, c]) for c in present}
    assert metrics == pytest.approx(
        {
            **{"accuracy": np.mean(predicted == labels), "precision": precision, "f1": f1},
            **{"recall": recall, "balanced_accuracy": recall},
            "auc": np.mean([sk.roc_auc_score(*x) for x in each.values()]),
            "pr_auc": np.mean([sk.average_precision_score(*x) for x in each.values()]),
            "specificity": np.mean([np.mean(predicted[labels != c] != c) for c in present]),
            "kappa": sk.cohen_kappa_score(labels, predicted),
            "ece": metrics["ece"],
        }
    )
    weighted = weighted_metrics(labels, probabilities, np.ones((1, len(labels))))
    assert {k: v[0] for k, v in weighted.items()} == pytest.approx(
        {k: metrics[k] for k in weighted}
    )
    by_class = class_metrics(labels, probabilities, "abcd")
    assert list(by_class) == ["a", "b", "d"]
    assert np.mean([row["auc"] for row in by_class.values()]) == pytest.approx(metrics["auc"])
    evidence, without = bootstrap.Evidence(9, (4, 5, 0, 3)), bootstrap.Evidence(9, (4, 5, 3))
    assert evidence.size("f1") == without.size("f1")
    assert evidence.degrees_of_freedom("f1") == without.degrees_of_freedom("f1")
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
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted, sample_weight=w),
            "kappa": sk.cohen_kappa_score(labels, predicted, sample_weight=w),
        }
        assert {name: values[r] for name, values in ours.items()} == pytest.approx(
            expected, abs=1e-12
        )
