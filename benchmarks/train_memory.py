"""Peak memory of fine-tuning steps compared with PyTorch, by batch and with remat.

python -m benchmarks.train_memory [--model=convnext_tiny] [--image_size=224] [--dtype=float32] \
    [--batches=16,32] [--limit_gigabytes=G] [--json=FILE]

Every line is a process of its own. On a CPU the peak is that of its resident memory, less what it
had before the model was built (libraries and their code); on a GPU what the framework's allocator
says. The reference is as in `benchmarks.train_step`. Batches that do not fit say so; the largest
that fits within `--limit_gigabytes`, if given, is read off the line through the first two batches.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

SIDES = ("ours", "ours, rematerialized", "reference")


def measure(side: str, arguments: argparse.Namespace, batch: int) -> dict[str, float]:
    """Returns the peak bytes and the seconds of a step of this process."""
    import jax
    import psutil
    import torch

    from benchmarks import inputs, programs, train_step
    from benchmarks.pytorch_reference import training

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    training.make_fast()
    config = programs.make_config(
        arguments.model,
        arguments.image_size,
        dtype=arguments.dtype,
        rematerialize=side == "ours, rematerialized",
    )
    images = inputs.make_images(batch, arguments.image_size)
    steps = 2
    resident = _Resident(psutil.Process())
    if side == "reference":
        run: Any = train_step.reference(
            "train", config, images, steps, next(iter(train_step.PEERS))
        )
    else:
        run = train_step.OurTraining("train", config, images, steps)
        resident.peak = 0  # of the steps, not of the compiler
    run()
    seconds = train_step.seconds(run) / steps
    if not train_step.CUDA:
        peak = resident.stop()
    elif side == "reference":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    return {"peak_bytes": peak, "step_s": seconds}


class _Resident:
    """Samples the resident memory of the process twenty times a second."""

    def __init__(self, process: Any):
        self._process, self._start = process, process.memory_info().rss
        self.peak, self._stopped = 0, False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped:
            self.peak = max(self.peak, self._process.memory_info().rss)
            time.sleep(0.05)

    def stop(self) -> int:
        self._stopped = True
        self._thread.join()
        return self.peak - self._start


def main(argv: list[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batches", default="16,32")
    parser.add_argument("--limit_gigabytes", type=float)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # a process of the table
    arguments = parser.parse_args(argv)
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments, int(arguments.batches))))
        return

    import rich.console
    import rich.table

    table = rich.table.Table("", "batch", "peak GB", "ms a step")
    result: dict[str, Any] = {}
    batches = [int(batch) for batch in arguments.batches.split(",")]
    for side in SIDES:
        figures = {}
        for batch in batches:
            command = [sys.executable, "-m", "benchmarks.train_memory", f"--side={side}"]
            command += [f"--model={arguments.model}", f"--image_size={arguments.image_size}"]
            command += [f"--dtype={arguments.dtype}", f"--batches={batch}"]
            process = subprocess.run(command, capture_output=True, text=True)
            if process.returncode:
                reason = (process.stderr.strip().splitlines() or ["killed"])[-1]
                table.add_row(side, str(batch), f"failed: {reason[:60]}", "")
                continue
            figures[batch] = json.loads(process.stdout.splitlines()[-1])
            peak, step = figures[batch]["peak_bytes"], figures[batch]["step_s"]
            table.add_row(side, str(batch), f"{peak / 1e9:.2f}", f"{1e3 * step:.4g}")
        result[side] = {"figures": figures}
        if len(figures) > 1 and arguments.limit_gigabytes:
            (a, b), limit = list(figures)[:2], 1e9 * arguments.limit_gigabytes
            an_image = (figures[b]["peak_bytes"] - figures[a]["peak_bytes"]) / (b - a)
            if an_image <= 0:  # batches so small that they do not show
                continue
            largest = int((limit - figures[a]["peak_bytes"]) / an_image) + a
            result[side] |= {"bytes_an_image": an_image, "largest_batch": largest}
            table.add_row("", f"{largest}", f"fits {arguments.limit_gigabytes:g}", "", style="dim")
    rich.console.Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
