"""Scores of branches against loops over classes."""

import json

import numpy as np
import pytest

from egmae_jax.evaluation.metrics import TITLES
from egmae_jax.evaluation.scores import score_branches, summarize
from egmae_jax.evaluation.significance import Resampled, Round
from tests.evaluation.oracles import branch, metrics_by_loops


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
        alone = Resampled([Round(*branches["mae"][:2], [p], branches["mae"].groups)], resamples=50)
        assert result["intervals"][name]["auc"] == pytest.approx(alone.estimate(0, "auc")[1:])
    json.dumps(result)


def test_summaries_have_means_and_sample_deviations_over_rounds():
    labels = np.arange(60) % 3
    branches = [branch(seed, labels) for seed in range(3)]
    rounds = [
        score_branches({"mae": x}, {"mae": x}, classes=("a", "b", "c"), resamples=2)
        for x in branches
    ]
    right = [x.probabilities.argmax(axis=1) == labels for x in branches]
    summary, by_class = (summarize(rounds, x)["mae"] for x in ("test", "by_class"))
    assert set(summary) == set(TITLES)
    assert list(by_class) == ["a", "b", "c"]
    for found, values in (
        (summary["accuracy"], [x.mean() for x in right]),
        (by_class["b"]["recall"], [x[labels == 1].mean() for x in right]),
    ):
        variance = sum((x - sum(values) / 3) ** 2 for x in values) / 2
        assert found == pytest.approx({"mean": sum(values) / 3, "std": variance**0.5})
    assert summarize(rounds[:1])["mae"]["accuracy"] == {"mean": right[0].mean(), "std": None}
