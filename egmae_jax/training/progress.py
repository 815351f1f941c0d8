"""Progress of a training stage on the terminal or in the log."""

import logging
from collections.abc import Mapping

from egmae_jax.core import console

logger = logging.getLogger(__name__)


class ProgressBar:
    """Progress bar of one stage with images/s, loss and time left.

    If the output is a file or a pipe, it logs lines on finished epochs instead, at most about 20
    per stage.

    Args:
        title: name of the stage.
        total_steps: number of steps of the stage.
        first_step: number of steps done before, if the stage is resumed.
    """

    def __init__(self, title: str, total_steps: int, first_step: int):
        self._title = title
        self._bar = console.progress_bar("steps", is_shown=first_step < total_steps)
        self._task = self._bar.add_task(
            title, total=total_steps, completed=first_step, status="compiling"
        )

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float, images_per_second: float) -> None:
        """Moves the bar to `step` and updates the loss and the images/s beside it."""
        status = f"loss {loss:.4f}, {images_per_second:.0f} images/s"
        self._bar.update(self._task, completed=step, status=status)

    def epoch(self, epoch: int, epochs: int, row: Mapping[str, float]) -> None:
        """Logs the metrics of a finished epoch if the output is not a terminal.

        Args:
            epoch: number of the epoch, from 1.
            epochs: total number of epochs.
            row: metrics of the epoch.
        """
        if not console.terminal.is_terminal and (
            epoch == epochs or epoch % max(1, epochs // 20) == 0
        ):
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
            logger.info("%s: epoch %d/%d, %s", self._title, epoch, epochs, numbers)
