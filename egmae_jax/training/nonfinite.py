"""Finds the step whose loss or gradient is not finite; `run.nonfinite` says what becomes of it.

The loss of every step and the state after every dispatch are checked. If one is NaN or infinite,
the steps since the last checkpoint are repeated, the suspect ones singly, to find the first bad
step, because a gradient that is not finite shows only in the loss of a later step. Checking all
gradients within the step would increase its compile time on CPU by half.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egmae_jax.core.errors import UserError

PyTree = Any


class NonFiniteError(UserError):
    """The loss or a gradient is NaN or infinite; the message names the step and remedies."""


@jax.jit
def _all_finite(tree: PyTree) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def is_finite(state: PyTree, losses: np.ndarray) -> bool:
    """Whether a state and the losses of the steps that led to it are finite."""
    return bool(np.isfinite(losses).all()) and bool(_all_finite(state))


class BadStep(NamedTuple):
    """The first step whose loss or gradient is not finite."""

    before: Any  # state before the step
    history: dict[str, np.ndarray]  # metrics of the finite steps before it, [steps] each
    loss: float  # loss of the step; if it is finite, the gradient is not


def find_bad_step(
    state: Any,
    run: Callable[[Any, int], tuple[Any, dict[str, np.ndarray]]],
    *,
    first: int,
    last: int,
) -> BadStep | None:
    """Repeats steps until one is not finite.

    Args:
        state: state of the last checkpoint, or the initial one; it is donated.
        run: runs steps, (state, largest number of steps) -> (new state, metrics).
        first: number of the first suspect step; the steps before it were finite.
        last: number of the step at which the repetition ends; it is not repeated.

    Returns:
        The bad step, with the metrics of the finite steps from `first` on. None if the device gave
        other results this time: all steps are finite, or one before `first` is not.
    """
    while (step := int(state.step)) < first:
        state, _ = run(state, first - step)
    if not _all_finite(state):
        return None
    rows: list[dict[str, np.ndarray]] = []
    while int(state.step) < last:
        before = jax.tree.map(jnp.copy, state)
        state, metrics = run(state, 1)
        if not is_finite(state, metrics["loss"]):
            history = {
                name: np.concatenate([row[name] for row in rows] or [x[:0]])
                for name, x in metrics.items()
            }
            return BadStep(before, history, float(metrics["loss"][0]))
        rows.append(metrics)
    return None
