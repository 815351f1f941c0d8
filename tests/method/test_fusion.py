"""Fusion by JAX, for an export, against fusion by numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from egmae_jax.evaluation import ensemble
from egmae_jax.method import fusion


@pytest.mark.parametrize("kind", fusion.KINDS)
def test_branches_are_fused_by_jax_as_by_numpy(kind):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)  # of four classes one is not there
    branches = rng.dirichlet(np.ones(4), (3, 40)).astype(np.float32)
    branches[0, 0] = np.eye(4)[0]  # logarithms of 0
    fitted = ensemble.fit(kind, labels, list(branches))
    fused = fitted.apply(list(jnp.asarray(branches)))
    np.testing.assert_allclose(fused, fitted.apply(list(branches)), atol=1e-6)
