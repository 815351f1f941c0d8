"""Runs or resumes the experiments of docs/results.md, and writes the page's tables.

    python -m benchmarks.evidence --data=data --budget_minutes=110

Scores are written to docs/evidence/<experiment>_<data set>.json, one file for each sweep, and
from these the tables of README.md, docs/results.md and docs/howto/datasets.md. What a file holds
is not run again, even where its runs are gone, unless a comparison needs its predictions; delete
the file to repeat a sweep. After --budget_minutes the run that is under way saves a checkpoint; the
same command resumes it. --pages_only runs nothing. --only=audits audits the data sets, --only=demo
runs the demo, and --only=speed and --only=pipeline compare with PyTorch; nothing else should run on
the machine meanwhile.
"""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from benchmarks.evidence import audits, book, demo, plan, record, speed
from egmae_jax.core import console, preemption
from egmae_jax.sweep import run

# What --only names besides the sweeps, as functions of the options.
OTHERS = {
    "audits": lambda options: audits.write(options.data),
    "demo": lambda options: demo.write(options.out / "demo"),
    "speed": lambda options: speed.write_steps(),
    "pipeline": lambda options: speed.write_pipeline(options.data),
}


def main() -> int:
    """Runs the program; returns the exit status."""
    options = _parser().parse_args()
    console.set_up_logging()
    failures: dict[str, str] = {}
    names = [name for name in plan.EXPERIMENTS if options.only in ("", name)]
    parts = [(name, dataset) for name in names for dataset in plan.EXPERIMENTS[name].datasets]
    if options.dataset:
        parts = [part for part in parts if part[1] == options.dataset]
    if options.only in OTHERS:
        OTHERS[options.only](options)
    elif not options.pages_only:
        preemption.install()
        timer = threading.Timer(60 * options.budget_minutes, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        if options.budget_minutes:
            timer.start()
        try:
            for name, dataset in parts:
                failures |= _run(name, dataset, options)
        except preemption.Preempted as stop:
            print(f"{stop}\nThe same command resumes.")
    book.write_pages()
    for name, error in failures.items():
        print(f"{name} failed: {error}")
    return 1 if failures else 0


def _run(name: str, dataset: str, options: argparse.Namespace) -> dict[str, str]:
    """Runs what is not recorded of an experiment on a data set; returns errors by variant."""
    sweep = plan.read(plan.EXPERIMENTS[name], dataset, options.data, options.weights)
    out = options.out / name / dataset
    failures: dict[str, str] = {}
    while (part := record.remaining(name, dataset, sweep)).variants and not failures:
        run.check(part, out)
        try:
            failures = run.run(part, out)
        finally:  # also of a run that is stopped
            record.write(name, dataset, sweep, out)
    return failures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("benchmarks.evidence", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="ImageNet weights")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), help="for all runs")
    parser.add_argument("--only", default="", choices=("", *OTHERS, *plan.EXPERIMENTS))
    parser.add_argument("--dataset", default="", choices=("", *plan.DATA))
    parser.add_argument("--budget_minutes", type=float, default=0, help="0: until all are complete")
    parser.add_argument("--pages_only", action="store_true", help="only write the pages' tables")
    return parser


if __name__ == "__main__":
    sys.exit(main())
