"""All measurements of a GPU by one unattended command, in less than eight minutes.

python -m benchmarks.gpu --out=FOLDER [--minutes=7.5] [--model=convnext_tiny] [--image_size=224] \
    [--batches=16,64,256,1024] [--dtype=bfloat16] [--images=780] [--preset=1000/15]

Runs the benchmarks below one after another, each a process of its own with its own limit, in the
order of their worth. What the time does not suffice for is left out and said so; what fails does
not stop the others. FOLDER gets every benchmark's JSON and output, and `summary.json`.

    steps at each batch      benchmarks.train_step, the first with a profile
    the recipe               main.py on generated images, as many as BUSI has: wall time
    the first batch again    with the same bits in every run (main.py's --deterministic)
    memory                   benchmarks.train_memory
    depthwise, corruption, operations    forms of single operations, with their floors
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import rich.console
import rich.table

from benchmarks.train_step import PEERS

LEAST_SECONDS = 20  # a benchmark that has less left is not begun


class Item(NamedTuple):
    """One benchmark."""

    name: str
    command: list[str]  # after the interpreter
    limit: float  # seconds


def make_items(arguments: argparse.Namespace) -> list[Item]:
    """Returns the benchmarks, the most important first."""
    model = [f"--model={arguments.model}", f"--image_size={arguments.image_size}"]
    batches = arguments.batches.split(",")

    def module(name: str, file: str, *flags: str) -> list[str]:
        return ["-m", f"benchmarks.{name}", *flags, f"--json={arguments.out / file}"]

    def steps(batch: str, *flags: str) -> Item:
        command = module("train_step", f"steps_{batch}.json", *model, f"--batch={batch}")
        return Item(f"steps_{batch}", [*command, f"--dtype={arguments.dtype}", *flags], 150)

    recipe = ["-m", "benchmarks.recipe", f"--images={arguments.images}", *model]
    recipe += [f"--preset={arguments.preset}", f"--dtype={arguments.dtype}"]
    recipe += [f"--json={arguments.out / 'recipe.json'}"]
    peer = ["--rounds=3", f"--peer={next(iter(PEERS))}", "--work=train,pretrain"]
    first, *others = (
        steps(batch, *(["--profile"] if batch == batches[0] else peer)) for batch in batches
    )
    bits = [*model, f"--batch={batches[0]}", f"--dtype={arguments.dtype}", *peer, "--deterministic"]
    forms = f"--dtype={arguments.dtype}"
    return [
        first,
        *others[-1:],
        Item("recipe", recipe, 240),
        *others[:-1],
        Item("deterministic", module("train_step", "deterministic.json", *bits), 90),
        Item("depthwise", module("depthwise", "depthwise.json", forms), 60),
        Item("corruption", module("corruption", "corruption.json"), 60),
        Item("operations", module("operations", "operations.json", forms), 40),
        Item("memory", module("train_memory", "memory.json", *model, forms), 90),
    ]


def run(item: Item, seconds: float, folder: Path) -> str:
    """Runs a benchmark; returns 'done' or the reason why it failed."""
    if seconds < LEAST_SECONDS:
        return "left out: no time"
    with open(folder / f"{item.name}.txt", "w") as output:
        try:
            process = subprocess.run(
                [sys.executable, *item.command],
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=min(item.limit, seconds),
            )
        except subprocess.TimeoutExpired as error:
            return f"stopped after {error.timeout:.0f} s"
    return "done" if process.returncode == 0 else f"failed, see {item.name}.txt"


def main(argv: list[str] | None = None) -> None:
    """Runs all benchmarks and prints a summary."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batches", default="16,64,256,1024")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--images", type=int, default=780)
    parser.add_argument("--preset", default="1000/15")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = rich.console.Console()
    deadline = time.monotonic() + 60 * arguments.minutes
    summary: dict[str, Any] = {}
    for item in make_items(arguments):
        started = time.monotonic()
        status = run(item, deadline - started, arguments.out)
        took = time.monotonic() - started
        console.print(f"{item.name}: {status} ({took:.0f} s)", highlight=False)
        path = arguments.out / f"{item.name}.json"
        result = json.loads(path.read_text()) if path.is_file() else None
        summary[item.name] = {"status": status, "seconds": took, "result": result}
        # After each, so that what stops this command loses nothing.
        (arguments.out / "summary.json").write_text(json.dumps(summary, indent=2))
    console.print(_table(summary))
    if recipe := summary["recipe"]["result"]:
        console.print(f"recipe: {recipe['seconds']:.0f} s, {recipe['note']}", highlight=False)


def _table(summary: dict[str, Any]) -> rich.table.Table:
    table = rich.table.Table("images/s", "batch", "ours", "reference", "ratio", "peak GB")
    for entry in summary.values():
        result = entry["result"] or {}
        for work in ("train", "pretrain", "inference"):
            if f"{work}_ours_s" not in result:
                continue
            batch, ours = result["batch"], result[f"{work}_ours_s"]
            ratio, peak = result[f"{work}_ratio"], result.get(f"{work}_ours_peak_bytes")
            table.add_row(
                f"{work}, deterministic" if result.get("deterministic") else work,
                str(batch),
                f"{batch / ours:.0f}",
                f"{batch / ours / ratio:.0f}" if ratio else "failed",
                f"{ratio:.2f}" if ratio else "",
                f"{peak / 1e9:.1f}" if peak else "",
            )
    return table


if __name__ == "__main__":
    main()
