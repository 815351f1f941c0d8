"""Prints the results of a run as tables in the terminal."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.box
import rich.table
import rich.text

from egmae_jax.core import console
from egmae_jax.evaluation.metrics import CLASS_METRICS, INTERVAL_METRICS, TITLES


def print_results(results: Mapping[str, Any]) -> None:
    """Prints the summary of results.json as tables."""
    dataset, rounds = results["dataset"], results["rounds"]
    over = f"mean ± standard deviation over {len(rounds)} rounds" if rounds[1:] else "one round"
    _print(f"\n{dataset['title']}: test, {over}")
    _print_table(
        [("Branch",), [TITLES[metric] for metric in INTERVAL_METRICS]],
        (
            [(branch,), [_mean_std(**metrics[name]) for name in INTERVAL_METRICS]]
            for branch, metrics in results["summary"].items()
        ),
    )
    # With folds every round has its own test part, and each image is tested once in total.
    tested = rounds if "counts" in rounds[0] else rounds[:1]
    counts = collections.Counter[str]()
    for row in tested:
        counts.update(row.get("counts", dataset["counts"])["test"])
    _print(
        f"{counts.total()} test images in {sum(row['groups'] for row in tested)} groups "
        f"({', '.join(f'{n} {c}' for c, n in counts.items())}), "
        f"protocol {dataset['protocol']!r}; precision, recall and F1 are macro averages, AUC is "
        f"one-vs-rest.\n{dataset['account']}."
    )
    _print_classes(results["summary_by_class"])
    for branch, weights in results.get("fusion_weights", {}).items():
        averaged = f", averaged over {len(rounds)} rounds" if rounds[1:] else ""
        _print(
            f"\n{branch}: fusion weights, mean ± standard deviation over a class's test images"
            f"{averaged}"
        )
        _print_table(
            [("Class",), ("Mid-level", "High-level")],
            (
                [(name,), [_mean_std(**row[key]) for key in ("mid", "high")]]
                for name, row in weights.items()
            ),
        )
    _print_warnings(results)


def _print_warnings(results: Mapping[str, Any]) -> None:
    """Prints warnings about random weights, unreadable images and leakage of test images."""
    sources = results["imagenet_weights"]
    if at_random := ", ".join(branch for branch, source in sources.items() if source == "none"):
        _print(
            f"{at_random} started from random weights (--config.imagenet.weights=none): these are "
            "not the method's figures.",
            style="bold yellow",
        )
    if skipped := len(results["dataset"]["skipped"]):
        _print(f"{skipped} unreadable images were left out.", style="bold yellow")
    if results["pretraining_saw_test"]:
        _print("Pre-training saw the test images.", style="bold yellow")


def _print_classes(summary: Mapping[str, Any]) -> None:
    """Prints metrics of each class against the rest; for more than two, of the last branch only."""
    last = list(summary)[-1]
    branches = summary if len(summary[last]) == 2 else {last: summary[last]}
    _print("\nEach class against the rest, means:")
    _print_table(
        [("Branch", "Class"), [TITLES[metric] for metric in CLASS_METRICS]],
        (
            [(branch, label), [_mean_std(metrics[m]["mean"]) for m in CLASS_METRICS]]
            for branch, classes in branches.items()
            for label, metrics in classes.items()
        ),
    )


def _print(text: str, style: str = "") -> None:
    console.terminal.print(text, style=style, highlight=False, markup=False)


def _print_table(
    headings: Sequence[Sequence[str]], rows: Iterable[Sequence[Sequence[str]]]
) -> None:
    """Prints a table of names and numbers.

    Args:
        headings: headings of the columns of names, and of the columns of numbers.
        rows: names and numbers of each row; the row of 'ensemble' is bold.
    """
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    names, numbers = headings
    for heading in names:  # wraps long names, so that the numbers fit
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    for row_names, row_numbers in rows:
        style = "bold" if row_names == ("ensemble",) else ""
        table.add_row(*map(rich.text.Text, row_names), *row_numbers, style=style)
    console.terminal.print(table)


def _mean_std(mean: float | None, std: float | None = None) -> str:
    """Formats '.914 ± .020', or '.914' if there is no standard deviation."""
    texts = [f"{x:.3f}".removeprefix("0") for x in (mean, std) if x is not None]
    return " ± ".join(texts)
