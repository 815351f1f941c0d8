"""Fits the fusion of branches on the validation part (paper section 3.5)."""

from collections.abc import Sequence

import numpy as np
from scipy import optimize
from sklearn.linear_model import LogisticRegression

from egmae_jax.method.fusion import KINDS, TINY, Fusion


def fit(kind: str, labels: np.ndarray, probabilities: Sequence[np.ndarray]) -> Fusion:
    """Fits a fusion of branches on validation images.

    Args:
        kind: one of KINDS. 'mean' fits nothing. 'weighted' fits one weight per branch, such that
            the convex combination has the lowest cross-entropy. 'stacked' fits scikit-learn's
            multinomial logistic regression on the branches' log-probabilities (L2, C = 1).
        labels: label of each validation image, int [N].
        probabilities: probabilities of each branch for these images, float [N, C] each.

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
    """Returns branch weights [K], >= 0 with sum 1, that minimise the fused cross-entropy."""
    true_class = probabilities[:, np.arange(len(labels)), labels]  # [K, N]
    count = len(probabilities)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(weights @ true_class, TINY)
        return -np.log(mixed).mean(), -(true_class / mixed).mean(axis=1)

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
    """Concatenates the log-probabilities of all branches as features: [K, N, C] -> [N, K * C]."""
    logs = np.log(np.maximum(probabilities.astype(np.float64), TINY))
    return logs.transpose(1, 0, 2).reshape(logs.shape[1], -1)
