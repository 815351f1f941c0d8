"""Terminal output: log lines, progress bars and error messages."""

import contextlib
import logging
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import absl.logging
import rich.box
import rich.console
import rich.logging
import rich.progress
import rich.table
import rich.text

from egmae_jax.core.errors import UserError

# Class and file names may contain rich's markup, such as :cat: or [red]; print them unchanged.
terminal = rich.console.Console(emoji=False)
logger = logging.getLogger(__name__)


def set_up_logging(*, quiet: bool = False) -> None:
    """Sends this package's log lines to the terminal; libraries log only warnings and errors.

    Args:
        quiet: whether to show only errors, as on all hosts of a run except the primary one.
    """
    terminal.quiet = quiet
    absl.logging.set_verbosity(absl.logging.WARNING)
    if terminal.is_terminal:
        handler: logging.Handler = rich.logging.RichHandler(
            console=terminal, show_path=False, log_time_format="%H:%M:%S"
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:  # in a file or pipe, rich would wrap long lines
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    project = logging.getLogger("egmae_jax")
    project.handlers = [handler]
    project.setLevel(logging.ERROR if quiet else logging.INFO)
    project.propagate = False


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
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.completed}/{task.total} steps"),
            rich.progress.TextColumn("{task.fields[status]}"),
            rich.progress.TimeRemainingColumn(compact=True),
            console=terminal,
            disable=not terminal.is_terminal or first_step >= total_steps,
        )
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
        if not terminal.is_terminal and (epoch == epochs or epoch % max(1, epochs // 20) == 0):
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
            logger.info("%s: epoch %d/%d, %s", self._title, epoch, epochs, numbers)


@contextlib.contextmanager
def progress_of_images(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar with images per minute and time left, if the output is a terminal.

    Args:
        title: text before the bar.
        total: number of images.

    Yields:
        A function that advances the bar by a number of images.
    """
    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TextColumn("{task.completed}/{task.total} images"),
        rich.progress.TextColumn("{task.fields[status]}"),
        rich.progress.TimeRemainingColumn(compact=True),
        console=terminal,
        disable=not terminal.is_terminal,
    )
    task = bar.add_task(title, total=total, status="compiling")

    def advance(count: int) -> None:
        speed = bar.tasks[task].speed
        bar.update(task, advance=count, status=f"{60 * speed:.0f} per minute" if speed else "")

    with bar:
        yield advance


def print_predictions(counts: Mapping[str, int], seconds: float, out: object) -> None:
    """Prints the number of images predicted for each class, the speed and the output path.

    Args:
        counts: number of images predicted for each class.
        seconds: duration of the prediction.
        out: path of the predictions.
    """
    total = sum(counts.values())
    by_class = ", ".join(f"{label} {count}" for label, count in counts.items())
    terminal.print(
        f"{total} images in {seconds:.1f} s ({60 * total / seconds:.0f} per minute): {by_class}",
        highlight=False,
        markup=False,
    )
    terminal.print(f"Written to {out}", highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def user_errors(status: int = 1) -> Iterator[None]:
    """Ends the program with a message and no traceback after a `UserError`; decorates a `main`.

    Ctrl-C ends the program with a message and exit status 130. All other exceptions are bugs of
    this program; they propagate, and Python prints their traceback.

    Args:
        status: exit status of the program after a `UserError`.
    """
    try:
        yield
    except UserError as error:
        fail(str(error), status)
    except KeyboardInterrupt:
        print_stopped("by Ctrl-C before it was finished.")
        sys.exit(130)


def fail(message: str, status: int = 1) -> NoReturn:
    """Prints an error message and ends the program with exit status `status`."""
    _print_error("Error:", message)
    sys.exit(status)


def print_stopped(message: str) -> None:
    """Prints 'Stopped' and the message, such as 'by Ctrl-C before it was finished.'."""
    if terminal.is_terminal:
        terminal.show_cursor(True)  # a progress bar hides it
    _print_error("Stopped", message)


def _print_error(heading: str, message: str) -> None:
    # File names may contain rich's markup and control characters of the terminal.
    escaped = "".join(x if x == "\n" or unicodedata.category(x) != "Cc" else repr(x)[1:-1]
                      for x in message)  # fmt: skip
    text = rich.text.Text.assemble((heading, "bold red"), " ", escaped)
    rich.console.Console(stderr=True).print(text, highlight=False, soft_wrap=True)
