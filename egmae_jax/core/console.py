"""The terminal: log lines, progress bars, errors."""

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

# Names of classes and files are printed as they are: neither :cat: nor [red] means anything.
terminal = rich.console.Console(emoji=False)
logger = logging.getLogger(__name__)


def set_up_logging(*, quiet: bool = False) -> None:
    """Sends the project's log lines to the terminal; those of the libraries from warnings up.

    Args:
        quiet: shows errors alone, as all hosts of a run but one do.
    """
    terminal.quiet = quiet
    absl.logging.set_verbosity(absl.logging.WARNING)
    if terminal.is_terminal:
        handler: logging.Handler = rich.logging.RichHandler(
            console=terminal, show_path=False, log_time_format="%H:%M:%S"
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:  # into a file or pipe: whole lines, nothing wrapped
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    project = logging.getLogger("egmae_jax")
    project.handlers = [handler]
    project.setLevel(logging.ERROR if quiet else logging.INFO)
    project.propagate = False


class ProgressBar:
    """Progress of one stage: a bar with images/s, loss and time left, or a line an epoch.

    The bar needs a terminal; into a file or a pipe goes one line an epoch instead.
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
        """Moves the bar."""
        status = f"loss {loss:.4f}, {images_per_second:.0f} images/s"
        self._bar.update(self._task, completed=step, status=status)

    def epoch(self, epoch: int, epochs: int, row: Mapping[str, float]) -> None:
        """Says how an epoch went, where no bar shows it."""
        if not terminal.is_terminal and (epoch == epochs or epoch % max(1, epochs // 20) == 0):
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
            logger.info("%s: epoch %d/%d, %s", self._title, epoch, epochs, numbers)


@contextlib.contextmanager
def progress_of_images(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with images a minute and the time left; yields what moves it on. None into a pipe."""
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
        bar.update(task, advance=count, status=f"{60 * speed:.0f} a minute" if speed else "")

    with bar:
        yield advance


def print_predictions(counts: Mapping[str, int], seconds: float, out: object) -> None:
    """Says how many images are predicted to be of each class, how fast, and where it is written."""
    total = sum(counts.values())
    each = ", ".join(f"{label} {count}" for label, count in counts.items())
    terminal.print(
        f"{total} images in {seconds:.1f} s ({60 * total / seconds:.0f} a minute): {each}",
        highlight=False,
        markup=False,
    )
    terminal.print(f"Written to {out}", highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def user_errors(status: int = 1) -> Iterator[None]:
    """Ends the program with a sentence where the user can mend what is wrong; decorates a `main`.

    Only the message of a `UserError` is shown, and that Ctrl-C stopped it, with status 130. All
    other exceptions are faults of this program: they pass, and Python shows their traceback.

    Args:
        status: exit status of the program after such an error.
    """
    try:
        yield
    except UserError as error:
        fail(str(error), status)
    except KeyboardInterrupt:
        print_stopped("by Ctrl-C, before it was done.")
        sys.exit(130)


def fail(message: str, status: int = 1) -> NoReturn:
    """Ends the program with a message instead of a traceback."""
    _print_error("Error:", message)
    sys.exit(status)


def print_stopped(message: str) -> None:
    """Says on the terminal that the program was stopped, such as 'by Ctrl-C: ...'."""
    if terminal.is_terminal:
        terminal.show_cursor(True)  # which a progress bar hides
    _print_error("Stopped", message)


def _print_error(heading: str, message: str) -> None:
    # File names may hold what rich takes for markup, and what a terminal takes for a command.
    shown = "".join(x if x == "\n" or unicodedata.category(x) != "Cc" else repr(x)[1:-1]
                    for x in message)  # fmt: skip
    text = rich.text.Text.assemble((heading, "bold red"), " ", shown)
    rich.console.Console(stderr=True).print(text, highlight=False, soft_wrap=True)
