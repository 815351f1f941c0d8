"""Fusions of branches against grids, closed forms and scikit-learn."""

import itertools
import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from egmae_jax.evaluation import ensemble
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.scores import score_branches
from egmae_jax.method import fusion


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def branches(count, labels, strengths, seed=0):
    """Probabilities of branches that know the label more or less well; float32, as predicted."""
    rng = np.random.default_rng(seed)
    truth = np.eye(count)[labels]
    logits = [s * truth + rng.standard_normal(truth.shape) for s in strengths]
    return [softmax(x).astype(np.float32) for x in logits]


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, 3, 300)


def test_the_mean_is_the_mean_and_fits_nothing(labels):
    p = branches(3, labels, (1, 2, 3))
    fused = ensemble.fit("mean", labels, p)
    np.testing.assert_allclose(fused.apply(p), sum(x.astype(float) for x in p) / 3, rtol=1e-12)
    assert fused.fitted == {}


def test_weights_of_three_branches_are_no_worse_than_any_of_a_grid(labels):
    p = branches(3, labels, (0.5, 1.5, 1.0))
    fused = ensemble.fit("weighted", labels, p)
    weights = fused.fitted["weights"]
    assert len(weights) == 3
    assert min(weights) >= 0
    assert sum(weights) == pytest.approx(1)
    stacked = np.stack(p).astype(float)
    of_truth = stacked[:, np.arange(len(labels)), labels]
    least = min(
        -np.log(a * of_truth[0] + b * of_truth[1] + (1 - a - b) * of_truth[2]).mean()
        for a, b in itertools.product(np.linspace(0, 1, 51), repeat=2)
        if a + b <= 1
    )
    loss = log_loss(labels, fused.apply(p))
    assert loss <= least + 1e-6
    assert loss < -np.log(of_truth.mean(axis=0)).mean()
    # Applied to other images it is their mixture by these weights.
    others = branches(3, labels, (1, 1, 1), seed=9)
    np.testing.assert_allclose(
        fused.apply(others), sum(w * x.astype(float) for w, x in zip(weights, others, strict=True))
    )


@pytest.mark.parametrize(("count", "strengths"), [(2, (1, 2)), (4, (0.5, 1, 2))])
def test_stacking_is_scikit_learns_regression_on_log_probabilities(count, strengths):
    labels = np.random.default_rng(2).integers(0, count, 200)
    p, others = (branches(count, labels, strengths, seed=s) for s in (0, 1))
    fused = ensemble.fit("stacked", labels, p)

    def features(probabilities):  # an image's row: the classes of the first branch, then the next
        return np.array(
            [[np.log(float(x)) for b in probabilities for x in b[i]] for i in range(len(labels))]
        )

    model = LogisticRegression(C=1.0, max_iter=1000).fit(features(p), labels)
    np.testing.assert_allclose(
        fused.apply(others), model.predict_proba(features(others)), rtol=1e-4, atol=1e-6
    )
    assert np.shape(fused.fitted["coefficients"])[1] == count * len(strengths)
    np.testing.assert_allclose(fused.fitted["intercepts"], model.intercept_, atol=1e-4)


@pytest.mark.parametrize("kind", fusion.KINDS)
def test_probabilities_of_zero_and_one_are_fused_to_probabilities(labels, kind):
    """Also where every branch excludes the truth."""
    rng = np.random.default_rng(0)
    p = [np.eye(3, dtype=np.float32)[rng.permutation(labels)] for _ in range(3)]
    wrong = labels[:20]
    for x in p:
        x[:20] = np.eye(3)[(wrong + 1) % 3]
    fused = ensemble.fit(kind, labels, p).apply(p)
    assert np.isfinite(fused).all()
    assert fused.min() >= 0
    np.testing.assert_allclose(fused.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("kind", fusion.KINDS)
def test_what_results_json_keeps_fuses_to_the_same_bits(labels, kind):
    p, others = (branches(3, labels, (1, 2), seed=s) for s in (0, 1))
    fused = ensemble.fit(kind, labels, p)
    kept = fusion.Fusion(kind, json.loads(json.dumps(fused.fitted)))
    np.testing.assert_array_equal(kept.apply(others), fused.apply(others))


def test_stacking_leaves_a_class_that_validation_lacks_at_zero(labels):
    p = branches(3, labels, (1, 2))
    seen = labels != 1
    fused = ensemble.fit("stacked", labels[seen], [x[seen] for x in p]).apply(p)
    assert not fused[:, 1].any()
    np.testing.assert_allclose(fused.sum(axis=1), 1)


@pytest.mark.parametrize("kind", ["weighted", "stacked"])
def test_what_is_fitted_sees_validation_labels_and_no_test_label(labels, kind):
    p, q = branches(3, labels, (0.5, 2.0)), branches(3, labels, (2.0, 0.5), seed=3)

    def fusion_of(validation_labels, test_labels):
        validation, test = (
            {
                name: Predictions(np.arange(300).astype(str), part_labels, x, np.arange(300))
                for name, x in zip("ab", probabilities, strict=True)
            }
            for part_labels, probabilities in ((validation_labels, p), (test_labels, q))
        )
        return score_branches(
            validation, test, classes=("a", "b", "c"), fusion_kind=kind, resamples=10
        )["fusion"]

    others = np.random.default_rng(5).permutation(labels)
    names = {"kind": kind, "branches": ["a", "b"]}
    assert fusion_of(labels, others) == {**names, **ensemble.fit(kind, labels, p).fitted}
    assert fusion_of(others, labels) == {**names, **ensemble.fit(kind, others, p).fitted}
