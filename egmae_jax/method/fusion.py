"""Fusing the branches' probabilities: their mean (paper section 3.5), or fitted on validation.

The weighted mean and the stacking are the paper's future work. They see the validation part only,
which also chose each branch's epoch: the test part stays untouched.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression

KINDS = ("mean", "weighted", "stacked")
TINY = 1e-6  # below it a probability's logarithm says nothing more


class Fusion(NamedTuple):
    """How branches are fused."""

    kind: str  # of KINDS
    fitted: Mapping[str, Any]  # JSON-like: what was fitted, which results.json keeps

    def apply(self, probabilities: Sequence[np.ndarray]) -> np.ndarray:
        """The branches' probabilities, [N, C] each and in the order of the fit, -> fused [N, C]."""
        stacked = np.stack(probabilities).astype(np.float64)
        if self.kind == "mean":
            return stacked.mean(axis=0)
        if self.kind == "weighted":
            return np.tensordot(self.fitted["weights"], stacked, 1)
        scores = _features(stacked) @ np.transpose(self.fitted["coefficients"])
        scores += self.fitted["intercepts"]
        if scores.shape[1] == 1:  # of two classes scikit-learn has the second's
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
        fused = np.zeros(stacked.shape[1:])  # a class that validation lacks stays at 0
        fused[:, self.fitted["classes"]] = special.softmax(scores, axis=1)
        return fused


def fit(kind: str, labels: np.ndarray, probabilities: Sequence[np.ndarray]) -> Fusion:
    """Fits a fusion on the validation part.

    Args:
        kind: one of KINDS. 'mean' fits nothing. 'weighted' takes the convex combination of least
            cross-entropy, one weight a branch. 'stacked' is a multinomial logistic regression on
            the branches' log-probabilities (scikit-learn's, L2 with C = 1).
        labels: int [N], of the validation images.
        probabilities: of each branch, [N, C].

    Raises:
        ValueError: `kind` is unknown.
    """
    stacked = np.stack(probabilities).astype(np.float64)  # [K, N, C]
    if kind == "mean":
        return Fusion(kind, {})
    if kind == "weighted":
        return Fusion(kind, {"weights": _best_weights(labels, stacked).tolist()})
    if kind == "stacked":
        model = LogisticRegression(max_iter=1000).fit(_features(stacked), labels)
        fitted = {
            "classes": model.classes_.tolist(),
            "coefficients": model.coef_.tolist(),
            "intercepts": model.intercept_.tolist(),
        }
        return Fusion(kind, fitted)
    raise ValueError(f"fusion.kind must be one of {', '.join(KINDS)}; got {kind!r}.")


def _best_weights(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """[K], not negative, of sum 1: the cross-entropy of the weighted mean is convex in them."""
    of_truth = probabilities[:, np.arange(len(labels)), labels]  # [K, N]
    count = len(probabilities)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(weights @ of_truth, TINY)
        return -np.log(mixed).mean(), -(of_truth / mixed).mean(axis=1)

    result = optimize.minimize(
        loss,
        np.full(count, 1 / count),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
    )
    weights = np.clip(result.x, 0, None)
    return weights / weights.sum()


def _features(probabilities: np.ndarray) -> np.ndarray:
    """[K, N, C] -> [N, K * C], log-probabilities."""
    logs = np.log(np.maximum(probabilities.astype(np.float64), TINY))
    return logs.transpose(1, 0, 2).reshape(logs.shape[1], -1)
