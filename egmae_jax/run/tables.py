"""Prints the results of a run as tables in the terminal."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from egmae_jax.core import console
from egmae_jax.core.numbers import format_mean_std, number
from egmae_jax.evaluation.metrics import CLASS_METRICS, PAPER_METRICS, TITLES


def print_results(results: Mapping[str, Any]) -> None:
    """Prints the summary of results.json as tables."""
    dataset, rounds = results["dataset"], results["rounds"]
    over = f"mean ± standard deviation over {len(rounds)} rounds" if rounds[1:] else "one round"
    console.terminal.print(f"\n{dataset['title']}: test, {over}")
    _print_table(
        [("Branch",), [TITLES[metric] for metric in PAPER_METRICS]],
        (
            [(branch,), [format_mean_std(**metrics[name]) for name in PAPER_METRICS]]
            for branch, metrics in results["summary"].items()
        ),
    )
    # With folds every round has its own test part, and each image is tested once in total.
    tested = rounds if "counts" in rounds[0] else rounds[:1]
    counts = collections.Counter[str]()
    for row in tested:
        counts.update(row.get("counts", dataset["counts"])["test"])
    console.terminal.print(
        f"{counts.total()} test images in {sum(row['groups'] for row in tested)} groups "
        f"({', '.join(f'{n} {c}' for c, n in counts.items())}), "
        f"protocol {dataset['protocol']!r}; precision, recall and F1 are macro averages, AUC is "
        f"one-vs-rest.\n{dataset['account']}."
    )
    _print_classes(results["summary_by_class"])
    for branch, weights in results.get("fusion_weights", {}).items():
        averaged = f", averaged over {len(rounds)} rounds" if rounds[1:] else ""
        console.terminal.print(
            f"\n{branch}: fusion weights, mean ± standard deviation over a class's test images"
            f"{averaged}"
        )
        _print_table(
            [("Class",), ("Mid-level", "High-level")],
            (
                [(name,), [format_mean_std(**row[key]) for key in ("mid", "high")]]
                for name, row in weights.items()
            ),
        )
    _print_warnings(results)


def _print_warnings(results: Mapping[str, Any]) -> None:
    """Prints warnings about random weights, unreadable images and leakage of test images."""
    sources = results["imagenet_weights"]
    if at_random := ", ".join(branch for branch, source in sources.items() if source == "none"):
        console.terminal.print(
            f"{at_random} started from random weights (--config.imagenet.weights=none): these are "
            "not the method's figures.",
            style="bold yellow",
        )
    if skipped := len(results["dataset"]["skipped"]):
        console.terminal.print(f"{skipped} unreadable images were left out.", style="bold yellow")
    if sentence := describe_labels(results):
        console.terminal.print(sentence)
    if results["pretraining_saw_test"]:
        console.terminal.print("Pre-training saw the test images.", style="bold yellow")


def describe_labels(results: Mapping[str, Any]) -> str:
    """Says how many labels of training images fine-tuning used; '' if all."""
    labelled = [row["labelled"] for row in results["rounds"] if "labelled" in row]
    if not labelled:
        return ""
    counts = [sorted({row[key] for row in labelled}) for key in ("images", "of")]
    used, of = (str(x[0]) if len(x) == 1 else f"{x[0]} to {x[-1]}" for x in counts)
    share = results["config"]["finetune"]["label_share"]
    return (
        f"Fine-tuning used the labels of {used} of {of} training images "
        f"(finetune.label_share={share:g})."
    )


def _print_classes(summary: Mapping[str, Any]) -> None:
    """Prints metrics of each class against the rest; for more than two, of the last branch only."""
    last = list(summary)[-1]
    branches = summary if len(summary[last]) == 2 else {last: summary[last]}
    console.terminal.print("\nEach class against the rest, means:")
    _print_table(
        [("Branch", "Class"), [TITLES[metric] for metric in CLASS_METRICS]],
        (
            [(branch, label), [number(metrics[m]["mean"]) for m in CLASS_METRICS]]
            for branch, classes in branches.items()
            for label, metrics in classes.items()
        ),
    )


def _print_table(
    headings: Sequence[Sequence[str]], rows: Iterable[Sequence[Sequence[str]]]
) -> None:
    """Prints a table of names and numbers.

    Args:
        headings: headings of the columns of names, and of the columns of numbers.
        rows: names and numbers of each row; the row of 'ensemble' is bold.
    """
    table = console.table(*headings)
    for names, numbers in rows:
        table.add_row(*names, *numbers, style="bold" if names == ("ensemble",) else "")
    console.terminal.print(table)
