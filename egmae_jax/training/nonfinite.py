"""Finds steps whose loss or gradient is not finite, reports them, and skips them if allowed.

The loss of every step and the state after every dispatch are checked. If one is NaN or infinite,
the steps since the last checkpoint are repeated, the suspect ones singly, to find the first bad
step, because a gradient that is not finite shows only in the loss of a later step. Checking all
gradients within the step would increase its compile time on CPU by half.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egmae_jax.core import hosts
from egmae_jax.core.errors import UserError
from egmae_jax.core.files import RESTORE, read_sealed, write_sealed

PyTree = Any


_HINT = (
    "A lower config.{0}.learning_rate or a longer config.{0}.warmup_epochs usually helps (in a new "
    "workdir); with model.dtype='bfloat16', so does 'float32'."
)


class NonFiniteError(UserError):
    """The loss or a gradient is NaN or infinite; the message names the step and remedies."""


def require_finite(values: Any, subject: str, stage: str) -> None:
    """Raises NonFiniteError, '<subject> are not finite ...', if an array has NaN or infinity.

    The message suggests another learning rate of the stage, 'pretrain' or 'finetune'.
    """
    if not np.isfinite(values).all():
        text = f"{subject} are not finite: the training diverged. {_HINT.format(stage)}"
        raise NonFiniteError(text)


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


@dataclasses.dataclass(frozen=True)
class Policy:
    """How to treat steps that are not finite.

    Attributes:
        folder: folder for a JSON file about each of these steps.
        max_skipped: largest number of consecutive steps to skip; 0 stops at the first.
    """

    folder: Path
    max_skipped: int = 0

    def forget(self, stage: str, round_index: int, *, after_step: int) -> None:
        """Deletes the files about a stage's steps after `after_step`, which will be repeated."""
        if not hosts.is_primary():
            return
        for path in self.folder.glob(self._name(stage, round_index, "*")):
            if int(path.stem.rpartition("_")[2]) > after_step:
                path.unlink()

    def skipped(self) -> list[dict[str, Any]]:
        """Reads the descriptions of the skipped steps of all stages, see `record_bad_step`.

        Raises:
            DamagedFileError: a file is damaged.
        """
        rows = [read_sealed(path, RESTORE) for path in self.folder.glob("*.json")]
        rows = [row for row in rows if row["skipped"]]
        return sorted(rows, key=lambda row: (row["stage"], row["round"], row["step"]))

    @staticmethod
    def _name(stage: str, round_index: int, step: int | str) -> str:
        return f"round_{round_index}_{stage.replace('/', '_')}_step_{step}.json"

    def record_bad_step(self, description: Mapping[str, Any], *, in_a_row: int) -> str:
        """Writes a file about a step that is not finite, and decides whether to skip it.

        Args:
            description: "stage", "round", "step" and "epoch" (from 1), "loss", "learning_rate" and
                "images", the files of the batch.
            in_a_row: number of consecutive steps skipped just before this one.

        Returns:
            A warning for the log if the step is skipped.

        Raises:
            NonFiniteError: the step must not be skipped.
        """
        stage, step, loss = (description[name] for name in ("stage", "step", "loss"))
        is_loss, is_skipped = not math.isfinite(loss), in_a_row < self.max_skipped
        culprit = "loss" if is_loss else "gradient"
        path = self.folder / self._name(stage, description["round"], step)
        if hosts.is_primary():
            findings = {"not_finite": culprit, "loss": str(loss) if is_loss else loss}
            write_sealed(path, {**description, **findings, "skipped": is_skipped})
        value, epoch = f" ({loss})" if is_loss else "", description["epoch"]
        problem = f"The {culprit} of {stage} is not finite{value} at step {step} (epoch {epoch})"
        if is_skipped:
            return f"{problem}: skipped; {path} names its images"
        before = f" after {in_a_row} that were skipped" if in_a_row else ""
        limit = in_a_row + 1
        raise NonFiniteError(
            f"{problem}{before}; stopped. {path} names its images. The state before this step is "
            f"saved, so the same command repeats the step. {_HINT.format(stage.split('/')[0])} "
            f"--config.nonfinite.max_skipped={limit} skips up to {limit} such steps in a row."
        )
