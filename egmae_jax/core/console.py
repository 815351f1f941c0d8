"""What a run shows on the terminal: log lines, a progress bar, the table of results."""

import collections
import contextlib
import logging
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import absl.logging
import rich.box
import rich.console
import rich.logging
import rich.progress
import rich.table
import rich.text

from egmae_jax.core.errors import UserError

# Names of classes and files are printed as they are: neither :cat: nor [red] means anything.
_console = rich.console.Console(emoji=False)
logger = logging.getLogger(__name__)


def set_up_logging(*, quiet: bool = False) -> None:
    """Sends the project's log lines to the terminal; those of the libraries from warnings up.

    Args:
        quiet: shows errors alone, as all hosts of a run but one do.
    """
    _console.quiet = quiet
    absl.logging.set_verbosity(absl.logging.WARNING)
    if _console.is_terminal:
        handler: logging.Handler = rich.logging.RichHandler(
            console=_console, show_path=False, log_time_format="%H:%M:%S"
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
            console=_console,
            disable=not _console.is_terminal or first_step >= total_steps,
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
        if not _console.is_terminal and (epoch == epochs or epoch % max(1, epochs // 20) == 0):
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
        console=_console,
        disable=not _console.is_terminal,
    )
    task = bar.add_task(title, total=total, status="compiling")

    def advance(count: int) -> None:
        speed = bar.tasks[task].speed
        bar.update(task, advance=count, status=f"{60 * speed:.0f} a minute" if speed else "")

    with bar:
        yield advance


_COLUMNS = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "auc": "AUC",
}


def print_results(results: Mapping[str, Any]) -> None:
    """Prints the summary of results.json as a table."""
    dataset = results["dataset"]
    rounds = len(results["rounds"])
    over = f"mean ± standard deviation over {rounds} rounds" if rounds > 1 else "one round"
    _console.print(f"\n{dataset['title']}: test, {over}", highlight=False)
    # Fits 80 columns with the longest name and deviations.
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Branch", no_wrap=True)
    for title in _COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for branch, metrics in results["summary"].items():
        cells = (_mean_std(metrics[name]) for name in _COLUMNS)
        table.add_row(branch, *cells, style="bold" if branch == "ensemble" else "")
    _console.print(table)
    # With folds every round has a test part of its own, and an image is tested once in all.
    counts = collections.Counter[str]()
    for round_ in results["rounds"] if "counts" in results["rounds"][0] else [dataset]:
        counts.update(round_["counts"]["test"])
    rounds_tested = results["rounds"] if "counts" in results["rounds"][0] else results["rounds"][:1]
    groups = sum(row["groups"] for row in rounds_tested)
    _console.print(
        f"{counts.total()} test images in {groups} groups "
        f"({', '.join(f'{n} {c}' for c, n in counts.items())}), "
        f"protocol {dataset['protocol']!r}; precision, recall and F1 are macro averages, AUC is "
        "one-vs-rest.",
        highlight=False,
        markup=False,
    )
    if "account" in dataset:  # older results have none
        _console.print(f"{dataset['account']}.", highlight=False, markup=False)
    _print_classes(results["summary_by_class"])
    for branch, weights in results.get("fusion_weights", {}).items():
        _print_fusion_weights(branch, weights, rounds)
    weights = results["imagenet_weights"]
    at_random = ", ".join(branch for branch, source in weights.items() if source == "none")
    if at_random:
        _console.print(
            f"[bold yellow]{at_random} started from random weights[/] "
            "(--config.imagenet.weights=none): these are not the method's figures.",
            highlight=False,
        )
    if dataset["skipped"]:
        count = len(dataset["skipped"])
        _console.print(f"[bold yellow]{count} unreadable images left out.[/]", highlight=False)
    if results["pretraining_saw_test"]:
        _console.print("[bold yellow]Pre-training saw the test images.[/]", highlight=False)


_CLASS_COLUMNS = {
    "precision": "Precision",
    "recall": "Recall",
    "specificity": "Specificity",
    "f1": "F1",
    "auc": "AUC",
    "pr_auc": "PR-AUC",
}


def _print_classes(summary: Mapping[str, Any]) -> None:
    """Every class against the rest: of two classes for all branches, else for the last one."""
    last = list(summary)[-1]
    shown = summary if len(summary[last]) == 2 else {last: summary[last]}
    _console.print("\nEach class against the rest, means:", highlight=False)
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Branch", no_wrap=True)
    table.add_column("Class", overflow="fold")  # a long name takes lines, not the figures' place
    for title in _CLASS_COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for branch, classes in shown.items():
        for label, metrics in classes.items():
            cells = (_mean_std({"mean": metrics[m]["mean"], "std": None}) for m in _CLASS_COLUMNS)
            table.add_row(branch, rich.text.Text(label), *cells)
    _console.print(table)


def _print_fusion_weights(branch: str, weights: Mapping[str, Any], rounds: int) -> None:
    """Of one branch, as `evaluation.fusion_weights.average` gives them."""
    over = f", averaged over {rounds} rounds" if rounds > 1 else ""
    _console.print(
        f"\n{branch}: fusion weights, mean ± standard deviation over a class's test images{over}",
        highlight=False,
        markup=False,
    )
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
    table.add_column("Class", overflow="fold")
    for heading in ("Mid-level", "High-level"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in weights.items():
        table.add_row(rich.text.Text(name), *(_mean_std(row[key]) for key in ("mid", "high")))
    _console.print(table)


def print_layers(title: str, report: Mapping[str, Any]) -> None:
    """Prints a layer selection as a table, the lowest entropy first."""
    share = report["trainable_parameters"] / report["parameters"]
    _console.print(
        f"\n{title}: {report['trainable_parameters']:,} of {report['parameters']:,} parameters "
        f"train ({share:.1%})",
        highlight=False,
    )
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
    for heading in ("Layer", "Entropy", "Parameters", ""):
        table.add_column(heading, justify="left" if heading == "Layer" else "right")
    for row in sorted(report["layers"], key=lambda row: row["entropy"]):
        trains = "trains" if row["trains"] else ""
        table.add_row(row["layer"], f"{row['entropy']:.3f}", f"{row['parameters']:,}", trains)
    _console.print(table)


def print_predictions(counts: Mapping[str, int], seconds: float, out: object) -> None:
    """Says how many images are predicted to be of each class, how fast, and where it is written."""
    total = sum(counts.values())
    each = ", ".join(f"{label} {count}" for label, count in counts.items())
    _console.print(
        f"{total} images in {seconds:.1f} s ({60 * total / seconds:.0f} a minute): {each}",
        highlight=False,
        markup=False,
    )
    _console.print(f"Written to {out}", highlight=False, markup=False, soft_wrap=True)


def _mean_std(value: Mapping[str, float | None]) -> str:
    mean, std = (None if x is None else f"{x:.3f}".lstrip("0") for x in value.values())
    return f"{mean}" if std is None else f"{mean} ± {std}"


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
        stopped("by Ctrl-C, before it was done.")
        sys.exit(130)


def fail(message: str, status: int = 1) -> NoReturn:
    """Ends the program with a message instead of a traceback."""
    _say("Error:", message)
    sys.exit(status)


def stopped(message: str) -> None:
    """Says on the terminal that the program was stopped, such as 'by Ctrl-C: ...'."""
    if _console.is_terminal:
        _console.show_cursor(True)  # which a progress bar hides
    _say("Stopped", message)


def _say(heading: str, message: str) -> None:
    # File names may hold what rich takes for markup, and what a terminal takes for a command.
    shown = "".join(x if x == "\n" or unicodedata.category(x) != "Cc" else repr(x)[1:-1]
                    for x in message)  # fmt: skip
    text = rich.text.Text.assemble((heading, "bold red"), " ", shown)
    rich.console.Console(stderr=True).print(text, highlight=False, soft_wrap=True)
