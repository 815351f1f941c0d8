"""What a run prints: the table of its results, and of its layers."""

import collections
from collections.abc import Mapping
from typing import Any

import rich.box
import rich.table
import rich.text

from egmae_jax.core import console
from egmae_jax.evaluation.metrics import CLASS_METRICS, TITLES, WEIGHTED_METRICS


def print_results(results: Mapping[str, Any]) -> None:
    """Prints the summary of results.json as a table."""
    dataset = results["dataset"]
    rounds = len(results["rounds"])
    over = f"mean ± standard deviation over {rounds} rounds" if rounds > 1 else "one round"
    console.terminal.print(f"\n{dataset['title']}: test, {over}", highlight=False)
    # Fits 80 columns with the longest name and deviations.
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Branch", no_wrap=True)
    for metric in WEIGHTED_METRICS:
        table.add_column(TITLES[metric], justify="right", no_wrap=True)
    for branch, metrics in results["summary"].items():
        cells = (_mean_std(metrics[name]) for name in WEIGHTED_METRICS)
        table.add_row(branch, *cells, style="bold" if branch == "ensemble" else "")
    console.terminal.print(table)
    # With folds every round has a test part of its own, and an image is tested once in all.
    counts = collections.Counter[str]()
    for round_ in results["rounds"] if "counts" in results["rounds"][0] else [dataset]:
        counts.update(round_["counts"]["test"])
    rounds_tested = results["rounds"] if "counts" in results["rounds"][0] else results["rounds"][:1]
    groups = sum(row["groups"] for row in rounds_tested)
    console.terminal.print(
        f"{counts.total()} test images in {groups} groups "
        f"({', '.join(f'{n} {c}' for c, n in counts.items())}), "
        f"protocol {dataset['protocol']!r}; precision, recall and F1 are macro averages, AUC is "
        "one-vs-rest.",
        highlight=False,
        markup=False,
    )
    if "account" in dataset:  # older results have none
        console.terminal.print(f"{dataset['account']}.", highlight=False, markup=False)
    _print_classes(results["summary_by_class"])
    for branch, weights in results.get("fusion_weights", {}).items():
        _print_fusion_weights(branch, weights, rounds)
    weights = results["imagenet_weights"]
    at_random = ", ".join(branch for branch, source in weights.items() if source == "none")
    if at_random:
        console.terminal.print(
            f"[bold yellow]{at_random} started from random weights[/] "
            "(--config.imagenet.weights=none): these are not the method's figures.",
            highlight=False,
        )
    if dataset["skipped"]:
        count = len(dataset["skipped"])
        console.terminal.print(
            f"[bold yellow]{count} unreadable images left out.[/]", highlight=False
        )
    if results["pretraining_saw_test"]:
        console.terminal.print("[bold yellow]Pre-training saw the test images.[/]", highlight=False)


def _print_classes(summary: Mapping[str, Any]) -> None:
    """Every class against the rest: of two classes for all branches, else for the last one."""
    last = list(summary)[-1]
    shown = summary if len(summary[last]) == 2 else {last: summary[last]}
    console.terminal.print("\nEach class against the rest, means:", highlight=False)
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Branch", no_wrap=True)
    table.add_column("Class", overflow="fold")  # a long name takes lines, not the figures' place
    for metric in CLASS_METRICS:
        table.add_column(TITLES[metric], justify="right", no_wrap=True)
    for branch, classes in shown.items():
        for label, metrics in classes.items():
            cells = (_mean_std({"mean": metrics[m]["mean"], "std": None}) for m in CLASS_METRICS)
            table.add_row(branch, rich.text.Text(label), *cells)
    console.terminal.print(table)


def _print_fusion_weights(branch: str, weights: Mapping[str, Any], rounds: int) -> None:
    """Prints one branch's weights, as `evaluation.fusion_weights.average` gives them."""
    over = f", averaged over {rounds} rounds" if rounds > 1 else ""
    console.terminal.print(
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
    console.terminal.print(table)


def print_layers(title: str, report: Mapping[str, Any]) -> None:
    """Prints a layer selection as a table, the lowest entropy first."""
    share = report["trainable_parameters"] / report["parameters"]
    console.terminal.print(
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
    console.terminal.print(table)


def _mean_std(value: Mapping[str, float | None]) -> str:
    mean, std = (None if x is None else f"{x:.3f}".lstrip("0") for x in value.values())
    return f"{mean}" if std is None else f"{mean} ± {std}"
