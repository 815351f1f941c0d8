"""Terminal output: log lines, progress bars and error messages."""

import contextlib
import logging
import sys
import unicodedata
from collections.abc import Iterable, Iterator
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
terminal = rich.console.Console(emoji=False, highlight=False, markup=False)
logger = logging.getLogger(__name__)

# Libraries that log, some with tracebacks, what this package's own error or warning says.
_REPEATING = ("huggingface_hub", "imagecodecs", "pydicom", "tifffile", "torch.onnx")


def set_up_logging(*, quiet: bool = False) -> None:
    """Sends this package's log lines to the terminal; libraries log only warnings and errors.

    Args:
        quiet: whether to show only errors, as on all hosts of a run except the primary one.
    """
    terminal.quiet = quiet
    absl.logging.set_verbosity(absl.logging.WARNING)
    for library in _REPEATING:
        logging.getLogger(library).setLevel(logging.CRITICAL)
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


def table(names: Iterable[str], numbers: Iterable[str], *, padding: int = 1) -> rich.table.Table:
    """Creates a table without rows, whose names wrap so that the numbers fit.

    Args:
        names: headings of the columns of names, which come first.
        numbers: headings of the columns of numbers.
        padding: spaces behind each column.
    """
    result = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, padding=(0, padding, 0, 0))
    for heading in names:
        result.add_column(heading, overflow="fold")
    for heading in numbers:
        result.add_column(heading, justify="right", no_wrap=True)
    return result


def progress_bar(unit: str, *, is_shown: bool = True) -> rich.progress.Progress:
    """Creates a progress bar with a count, a text and the time left, visible on a terminal only.

    Its tasks need a field `status`, the text.

    Args:
        unit: what is counted, such as 'steps'.
        is_shown: whether it is visible at all.
    """
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TextColumn(f"{{task.completed}}/{{task.total}} {unit}"),
        rich.progress.TextColumn("{task.fields[status]}"),
        rich.progress.TimeRemainingColumn(compact=True),
        console=terminal,
        disable=not (is_shown and terminal.is_terminal),
    )


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
