"""Accuracy of simple classifiers on frozen features, which tells what an encoder has learnt.

A linear probe is a logistic regression on standardised features. k-nearest-neighbour classification
takes the majority among the training images with the most similar features, by cosine.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

NEIGHBOURS = 20  # as in DINO (Caron et al. 2021), or all training images if they are fewer
_ITERATIONS = 500  # limit for L-BFGS; more hardly change the accuracy


def score(
    features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, held_out_labels: np.ndarray
) -> dict[str, float]:
    """Fits both classifiers on training images and scores them on held-out ones.

    Args:
        features: features of the training images, float [N, D].
        labels: their classes, int [N].
        held_out: features of the held-out images, float [M, D].
        held_out_labels: their classes, int [M].

    Returns:
        "probe_accuracy" of the linear probe and "knn_accuracy" of the k nearest neighbours.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(features, labels)
    count = min(NEIGHBOURS, len(features))
    neighbours = KNeighborsClassifier(count, metric="cosine").fit(features, labels)
    return {
        "probe_accuracy": float(probe.score(held_out, held_out_labels)),
        "knn_accuracy": float(neighbours.score(held_out, held_out_labels)),
    }


def majority_accuracy(labels: np.ndarray, held_out_labels: np.ndarray) -> float:
    """Returns the accuracy of always predicting the most frequent class of the training images.

    Args:
        labels: classes of the training images, int [N].
        held_out_labels: classes of the held-out images, int [M].
    """
    return float(np.mean(held_out_labels == np.bincount(labels).argmax()))
