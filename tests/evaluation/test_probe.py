"""Linear probe and nearest neighbours on frozen features, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from egmae_jax.evaluation import probe


@pytest.fixture
def blobs():
    """Three classes in eight dimensions, of unequal size: features and labels of two parts."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 8))
    labels = rng.permutation(np.repeat([0, 1, 2], [60, 40, 20]))
    features = (centres[labels] + rng.standard_normal((120, 8))).astype(np.float32)
    return features[:80], labels[:80], features[80:], labels[80:]


def test_scores_are_those_of_the_definitions(blobs):
    features, labels, held_out, held_out_labels = blobs
    scores = probe.score(*blobs)
    mean, std = features.mean(axis=0), features.std(axis=0)
    regression = LogisticRegression(max_iter=500).fit((features - mean) / std, labels)
    accuracy = regression.score((held_out - mean) / std, held_out_labels)
    assert scores["probe_accuracy"] == pytest.approx(accuracy)
    unit, held_out_unit = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, held_out)
    )
    nearest = np.argsort(-held_out_unit @ unit.T, axis=1)[:, : probe.NEIGHBOURS]
    votes = [np.bincount(labels[row], minlength=3).argmax() for row in nearest]
    assert scores["knn_accuracy"] == pytest.approx(np.mean(votes == held_out_labels))


def test_features_that_tell_nothing_give_the_share_of_the_largest_class(blobs):
    features, labels, held_out, held_out_labels = blobs
    scores = probe.score(np.ones_like(features), labels, np.ones_like(held_out), held_out_labels)
    majority = probe.majority_accuracy(labels, held_out_labels)
    assert majority == pytest.approx(np.mean(held_out_labels == np.bincount(labels).argmax()))
    assert scores["probe_accuracy"] == pytest.approx(majority)


def test_a_few_images_are_enough():
    features = np.eye(4, dtype=np.float32)
    scores = probe.score(features, np.array([0, 0, 1, 1]), features, np.array([0, 0, 1, 1]))
    assert scores["probe_accuracy"] == 1
