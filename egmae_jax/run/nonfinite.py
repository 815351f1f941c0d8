"""What a run does about steps and values that are not finite: reports, skips, advice."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from egmae_jax.core import hosts
from egmae_jax.core.files import RESTORE, read_sealed, write_sealed
from egmae_jax.training.nonfinite import NonFiniteError

_HINT = (
    "A lower config.{0}.learning_rate or a longer config.{0}.warmup_epochs usually helps (in a new "
    "workdir); with model.dtype='bfloat16', so does 'float32'."
)


def require_finite(values: Any, subject: str, stage: str) -> None:
    """Raises NonFiniteError, '<subject> are not finite ...', if an array has NaN or infinity.

    The message suggests another learning rate of the stage, 'pretrain' or 'finetune'.
    """
    if not np.isfinite(values).all():
        text = f"{subject} are not finite: the training diverged. {_HINT.format(stage)}"
        raise NonFiniteError(text)


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
