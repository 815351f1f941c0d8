"""Finds steps whose loss or gradient is not finite, reports them, and skips them if allowed.

The loss of every step and the whole state after every dispatch are checked. Where one is NaN or
infinite, the steps since the last checkpoint are repeated, at last one by one, to find the first
that is at fault: a gradient that is not finite shows only in the loss of a later step. Checking all
gradients inside the step would make it compile half as long again on a CPU.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egmae_jax.core import sharding
from egmae_jax.core.errors import UserError
from egmae_jax.core.files import RESTORE, read_sealed, write_sealed

PyTree = Any


HINT = (
    "A lower config.{0}.learning_rate or a longer config.{0}.warmup_epochs usually helps (in a new "
    "workdir); with model.dtype='bfloat16', so does 'float32'."
)


class NonFiniteError(UserError):
    """The loss or a gradient is NaN or infinite; the message says where and what to try."""


@jax.jit
def _all_finite(tree: PyTree) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def is_finite(state: PyTree, losses: np.ndarray) -> bool:
    """Whether a state, and the losses of the steps that led to it, are finite."""
    return bool(np.isfinite(losses).all()) and bool(_all_finite(state))


class BadStep(NamedTuple):
    """The first step that is not finite."""

    before: Any  # the state that it began from
    history: dict[str, np.ndarray]  # metrics of the good steps before it
    loss: float  # the step's loss; where it is finite, its gradient is not


def find(
    state: Any,
    run: Callable[[Any, int], tuple[Any, dict[str, np.ndarray]]],
    *,
    first: int,
    last: int,
) -> BadStep | None:
    """Repeats steps until one is not finite.

    Args:
        state: state of the last checkpoint, or the initial one; donated.
        run: (state, number of steps at most) -> the state after them, and their metrics.
        first: number of the first step that may be at fault.
        last: number of the step before which the repetition ends.

    Returns:
        The step, with the metrics of the good steps from `first` on. None if a step before `first`
        was not finite this time, or all steps were.
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
            good = {
                name: np.concatenate([row[name] for row in rows] or [x[:0]])
                for name, x in metrics.items()
            }
            return BadStep(before, good, float(metrics["loss"][0]))
        rows.append(metrics)
    return None


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is done about steps that are not finite.

    Attributes:
        folder: folder of a JSON file for each of them.
        max_skipped: how many in a row are skipped; 0 stops at the first.
    """

    folder: Path
    max_skipped: int = 0

    def forget(self, stage: str, round_index: int, *, after_step: int) -> None:
        """Deletes the files of a stage's later steps, which will be repeated."""
        if not sharding.is_primary():
            return
        for path in self.folder.glob(self._name(stage, round_index, "*")):
            if int(path.stem.rpartition("_")[2]) > after_step:
                path.unlink()

    def skipped(self) -> list[dict[str, Any]]:
        """Descriptions of the skipped steps of all stages.

        Raises:
            DamagedFileError: a file is not what was written.
        """
        rows = [read_sealed(path, RESTORE) for path in self.folder.glob("*.json")]
        rows = [row for row in rows if row["skipped"]]
        return sorted(rows, key=lambda row: (row["stage"], row["round"], row["step"]))

    @staticmethod
    def _name(stage: str, round_index: int, step: int | str) -> str:
        return f"round_{round_index}_{stage.replace('/', '_')}_step_{step}.json"

    def leave_out(self, description: Mapping[str, Any], *, in_a_row: int) -> str:
        """Writes what is known of a step into a file, and decides whether it may be skipped.

        Args:
            description: "stage", "round", "step" and "epoch" (from 1), "loss", "learning_rate" and
                "images", the files of its batch.
            in_a_row: how many steps just before it were skipped.

        Returns:
            A sentence for the log, if the step may be skipped.

        Raises:
            NonFiniteError: the step may not be skipped.
        """
        stage, step, loss = (description[name] for name in ("stage", "step", "loss"))
        is_loss, skipped = not math.isfinite(loss), in_a_row < self.max_skipped
        culprit = "loss" if is_loss else "gradient"
        path = self.folder / self._name(stage, description["round"], step)
        if sharding.is_primary():
            findings = {"not_finite": culprit, "loss": str(loss) if is_loss else loss}
            write_sealed(path, {**description, **findings, "skipped": skipped})
        value, epoch = f" ({loss})" if is_loss else "", description["epoch"]
        what = f"The {culprit} of {stage} is not finite{value} at step {step} (epoch {epoch})"
        if skipped:
            return f"{what}: skipped; {path} names its images"
        before = f" after {in_a_row} that were skipped" if in_a_row else ""
        raise NonFiniteError(
            f"{what}{before}; stopped. {path} names its images. The state before it is saved, so "
            f"the same command repeats the step. {HINT.format(stage.split('/')[0])} "
            f"--config.nonfinite.max_skipped={in_a_row + 1} goes on without such steps, so many in "
            "a row."
        )
