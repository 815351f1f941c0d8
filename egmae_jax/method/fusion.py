"""Fusing the branches' probabilities: their mean (paper section 3.5, equation 11), and two others.

The weighted mean and the stacking are the paper's future work; `evaluation.ensemble` fits them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

KINDS = ("mean", "weighted", "stacked")
TINY = 1e-6  # below it a probability's logarithm says nothing more


class Fusion(NamedTuple):
    """How branches are fused."""

    kind: str  # one of KINDS
    # JSON-like, which results.json keeps. 'weighted': "weights", a number per branch. 'stacked':
    # "classes" [S], "coefficients" [S, K * C] and "intercepts" [S] of a logistic regression.
    fitted: Mapping[str, Any]

    def apply(self, probabilities: Sequence[Any]) -> Any:
        """Fuses the probabilities of K branches.

        Args:
            probabilities: one array [N, C] per branch, in the order of the fit. JAX's arrays are
                fused by JAX in float32, as an exported program does it, NumPy's in float64.

        Returns:
            Fused probabilities [N, C].
        """
        xp = probabilities[0].__array_namespace__()  # numpy or jax.numpy
        dtype = np.float64 if xp is np else np.float32
        stacked = xp.stack(probabilities).astype(dtype)  # [K, N, C]
        if self.kind == "mean":
            return stacked.mean(axis=0)
        if self.kind == "weighted":
            return xp.tensordot(np.asarray(self.fitted["weights"], dtype), stacked, 1)
        count, _, num_classes = stacked.shape
        coefficients = np.asarray(self.fitted["coefficients"], dtype)
        coefficients = coefficients.reshape(-1, count, num_classes)
        scores = xp.einsum("knc,skc->ns", xp.log(xp.maximum(stacked, TINY)), coefficients)
        scores = scores + np.asarray(self.fitted["intercepts"], dtype)
        if scores.shape[1] == 1:  # for two classes scikit-learn has the second's alone
            scores = xp.concatenate([xp.zeros_like(scores), scores], axis=1)
        odds = xp.exp(scores - scores.max(axis=1, keepdims=True))
        # A class that validation lacks stays at 0.
        places = np.eye(num_classes, dtype=dtype)[np.asarray(self.fitted["classes"])]
        return odds / odds.sum(axis=1, keepdims=True) @ places
