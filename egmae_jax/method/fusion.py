"""Fusion of the branches' class probabilities (paper section 3.5, equation 11).

Equation 11 is the mean. The weighted mean and stacking are future work in the paper;
`evaluation.ensemble` fits them on validation images.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

KINDS = ("mean", "weighted", "stacked")
TINY = 1e-6  # lower bound of probabilities before the logarithm, in stacking


class Fusion(NamedTuple):
    """Kind and fitted parameters of a fusion of K branches."""

    kind: str  # one of KINDS
    # Parameters as JSON, as in results.json. 'mean': none. 'weighted': "weights" [K]. 'stacked':
    # "classes" [S], "coefficients" [S, K * C] and "intercepts" [S] of a logistic regression.
    fitted: Mapping[str, Any]

    def apply(self, probabilities: Sequence[Any]) -> Any:
        """Fuses the probabilities of K branches.

        Args:
            probabilities: one array [N, C] per branch, in the order of the fit. JAX arrays are
                fused in float32, as in exported programs, and NumPy arrays in float64.

        Returns:
            Fused probabilities [N, C], of the same kind of array.
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
        if scores.shape[1] == 1:  # for two classes, scikit-learn gives the second score only
            scores = xp.concatenate([xp.zeros_like(scores), scores], axis=1)
        odds = xp.exp(scores - scores.max(axis=1, keepdims=True))
        # Classes without validation images get probability 0.
        one_hot = np.eye(num_classes, dtype=dtype)[np.asarray(self.fitted["classes"])]
        return odds / odds.sum(axis=1, keepdims=True) @ one_hot
