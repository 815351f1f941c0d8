"""Scores of branches against loops over classes, intervals against closed forms."""

import json

import numpy as np
import pytest
from scipy import special, stats

from egmae_jax.evaluation.metrics import TITLES, WEIGHTED_METRICS, compute_metrics
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.scores import (
    bootstrap_intervals,
    score_branches,
    summarize,
    summarize_classes,
)
from tests.evaluation.test_metrics import metrics_by_loops, random_predictions


def test_intervals_contain_the_point_estimates_and_follow_the_seed():
    labels, probabilities = random_predictions(9, 3)
    point = compute_metrics(labels, probabilities)
    options = {"groups": np.arange(len(labels)), "resamples": 500}
    intervals = bootstrap_intervals(labels, probabilities, seed=0, **options)
    assert tuple(intervals) == WEIGHTED_METRICS
    for name, (low, high) in intervals.items():
        assert low < point[name] < high, name
    json.dumps(intervals)
    assert bootstrap_intervals(labels, probabilities, seed=0, **options) == intervals
    assert bootstrap_intervals(labels, probabilities, seed=1, **options) != intervals


def test_copies_of_images_are_no_evidence():
    """Each image three times over as a group: the intervals of the images alone."""
    labels, probabilities = random_predictions(10, 3)
    alone = bootstrap_intervals(
        labels, probabilities, groups=np.arange(len(labels)), seed=0, resamples=300
    )
    thrice = bootstrap_intervals(
        *(np.repeat(labels, 3), np.repeat(probabilities, 3, axis=0)),
        groups=np.repeat(np.arange(len(labels)), 3),
        seed=0,
        resamples=300,
    )
    for name, limits in alone.items():
        np.testing.assert_allclose(thrice[name], limits, atol=1e-12, err_msg=name)


def test_of_two_groups_nothing_is_known():
    labels, probabilities = random_predictions(14, 2)
    found = bootstrap_intervals(
        labels, probabilities, groups=np.arange(len(labels)) % 2, seed=0, resamples=100
    )
    assert all(limits == [0, 1] for limits in found.values())


@pytest.mark.parametrize("name", ["accuracy", "f1", "auc"])
def test_perfect_figures_have_an_interval(name):
    """Wilson's of n right of n: n / (n + t²); of macro averages n is that of the classes' mean."""
    labels = np.array([0] * 40 + [1] * 10)
    found = bootstrap_intervals(
        labels, np.eye(2)[labels], groups=np.arange(50), seed=0, resamples=50
    )
    if name == "accuracy":
        size, freedom = 50, 49
    else:
        size, freedom = 4 / (1 / 40 + 1 / 10), 0.125**2 / (1 / 40**2 / 39 + 1 / 10**2 / 9)
    low = size / (size + stats.t.ppf(0.975, freedom) ** 2)
    assert found[name] == pytest.approx([low, 1])


def branch(seed, labels):
    logits = np.random.default_rng(seed).normal(size=(len(labels), 3)) + np.eye(3)[labels]
    probabilities = special.softmax(logits, axis=1).astype(np.float32)
    ids = np.array([f"{i}.png" for i in range(len(labels))])
    return Predictions(ids, labels, probabilities, np.arange(len(labels)) // 2)


def test_the_score_holds_every_branch_and_the_ensemble():
    labels = np.arange(60) % 3
    branches = {"imagenet": branch(0, labels), "mae": branch(1, labels)}
    result = score_branches(branches, branches, classes=("a", "b", "c"), resamples=50)
    assert set(result) == {
        *("test", "by_class", "intervals", "confusion", "calibration", "fusion"),
        *("groups", "groups_by_class"),
    }
    assert result["groups"] == 30
    assert result["groups_by_class"] == {"a": 20, "b": 20, "c": 20}  # 0 and 1, 2 and 0, 1 and 2
    assert result["fusion"] == {"kind": "mean", "branches": ["imagenet", "mae"]}
    mean = (branches["imagenet"].probabilities.astype(float) + branches["mae"].probabilities) / 2
    for name, p in {
        "imagenet": branches["imagenet"].probabilities,
        "mae": branches["mae"].probabilities,
        "ensemble": mean,
    }.items():
        assert result["test"][name] == pytest.approx(metrics_by_loops(labels, p), abs=1e-6)
        for key in ("precision", "recall", "specificity", "f1", "auc", "pr_auc"):
            mean = np.mean([row[key] for row in result["by_class"][name].values()])
            assert mean == pytest.approx(result["test"][name][key])
        counts = np.zeros((3, 3), int)
        np.add.at(counts, (labels, p.argmax(axis=1)), 1)
        assert result["confusion"][name] == counts.tolist()
        low, high = result["intervals"][name]["accuracy"]
        assert low <= result["test"][name]["accuracy"] <= high
    json.dumps(result)


def rounds_of(*accuracies):
    others = dict.fromkeys(TITLES, 0.5)
    return [{"test": {"mae": {**others, "accuracy": a}}} for a in accuracies]


def test_summaries_have_means_and_sample_deviations_over_rounds():
    labels = np.arange(60) % 3
    branches = [branch(seed, labels) for seed in range(3)]
    rounds = [
        score_branches({"mae": x}, {"mae": x}, classes=("a", "b", "c"), resamples=2)
        for x in branches
    ]
    right = [x.probabilities.argmax(axis=1) == labels for x in branches]
    summary, by_class = summarize(rounds)["mae"], summarize_classes(rounds)["mae"]
    assert set(summary) == set(TITLES)
    assert list(by_class) == ["a", "b", "c"]
    for found, values in (
        (summary["accuracy"], [x.mean() for x in right]),
        (by_class["b"]["recall"], [x[labels == 1].mean() for x in right]),
    ):
        variance = sum((x - sum(values) / 3) ** 2 for x in values) / 2
        assert found == pytest.approx({"mean": sum(values) / 3, "std": variance**0.5})
    assert summarize(rounds[:1])["mae"]["accuracy"] == {"mean": right[0].mean(), "std": None}
