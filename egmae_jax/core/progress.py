"""Progress of a training stage on the terminal or in the log."""

import datetime
import logging
from collections.abc import Callable, Mapping

from egmae_jax.core import console

logger = logging.getLogger(__name__)
_LINES = 20  # largest number of epochs without validation that are shown per stage


class ProgressBar:
    """Progress bar of one stage with images/s, loss and time left, and a table of its epochs.

    If the output is a file or a pipe, it logs lines on finished epochs instead, at most about 20
    per stage.

    Args:
        title: name of the stage.
        total_steps: number of steps of the stage.
        first_step: number of steps done before, if the stage is resumed.
        seconds_left: estimates the time left of the whole run from the number of steps done in the
            stage and the images/s; None: it is not shown.
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        first_step: int,
        seconds_left: Callable[[int, float], float] | None = None,
    ):
        self._title = title
        self._seconds_left = seconds_left
        self._columns: list[str] = []  # headings of the table that was begun
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
        """Moves the bar to `step` and updates loss, images/s and time left beside it."""
        status = f"loss {loss:.4f}, {images_per_second:.0f} images/s"
        if self._seconds_left is not None:
            left = datetime.timedelta(seconds=round(self._seconds_left(step, images_per_second)))
            status += f", left: run {left}, stage"  # the bar shows the stage's time behind it
        self._bar.update(self._task, completed=step, status=status)

    def epoch(self, epoch: int, epochs: int, row: Mapping[str, float]) -> None:
        """Shows loss and validation metrics of a finished epoch, or logs all metrics to a file.

        Args:
            epoch: number of the epoch, from 1.
            epochs: total number of epochs.
            row: metrics of the epoch.
        """
        is_due = epoch == epochs or epoch % max(1, epochs // _LINES) == 0
        if console.terminal.is_terminal:
            shown = {k: v for k, v in row.items() if k == "loss" or "validation_" in k}
            if is_due or len(shown) > 1:
                self._print(f"{epoch}/{epochs}", shown)
        elif is_due:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
            logger.info("%s: epoch %d/%d, %s", self._title, epoch, epochs, numbers)

    def _print(self, epoch: str, row: Mapping[str, float]) -> None:
        """Prints a line of the table of epochs, and its headings if they are not those above it."""
        columns = [name.replace("validation_", "val. ").replace("_", " ") for name in row]
        if columns != self._columns:
            self._columns = columns
            headings = "  ".join(f"{name:>8}" for name in columns)
            console.terminal.print(f"{self._title}\n{'epoch':>9}  {headings}")
        values = zip(columns, row.values(), strict=True)
        cells = "  ".join(f"{value:>{max(8, len(name))}.4f}" for name, value in values)
        console.terminal.print(f"{epoch:>9}  {cells}")
