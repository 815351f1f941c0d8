"""Gain of each form of `egmae_jax.models.kernels`: the fine-tuning step without it.

python -m benchmarks.forms [--model=convnext_tiny] [--batch=16] [--image_size=224] [--rounds=5] \
    [--steps=1] [--forms=depthwise,...] [--json=FILE]

One process compiles the step as it is, and once for each form with the plain form in its place. The
programs take turns; times are medians over the rounds, of the clock and of all threads together,
which other processes disturb less.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import rich.console
import rich.table

from benchmarks import programs, timing, train_step
from benchmarks.inputs import make_images
from egmae_jax import models
from egmae_jax.models import convnext, efficientnet, layers
from egmae_jax.models.kernels import convolution, depthwise, operations

# Where each form is called, its name there, and the plain form.
FORMS: dict[str, tuple[ModuleType, str, Callable]] = {
    "depthwise": (convnext, "depthwise_conv", depthwise.depthwise_conv_plain),
    "gelu": (layers, "gelu", operations.gelu_plain),
    "broadcast_to": (operations, "_broadcast", jnp.broadcast_to),
    "conv2d": (layers, "conv2d", convolution.conv2d_plain),
    "strided": (  # of EfficientNet
        efficientnet,
        "strided_depthwise_conv",
        depthwise.strided_depthwise_conv_plain,
    ),
}


def measure(training: Any, forms: list[str], rounds: int, steps: int) -> dict[str, dict[str, Any]]:
    """Returns the milliseconds of a step, wall and CPU time, with all forms and without each."""
    programs = {"all": training.program}
    for form in forms:
        jax.clear_caches()  # of what was traced with the other form
        with mock.patch.object(*FORMS[form]):
            programs[form], _, _ = training.compile()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, training.program in programs.items():
            started = time.perf_counter(), time.process_time()
            training()
            if turn:  # the first warms up
                ends = time.perf_counter(), time.process_time()
                clock, cpu = (1e3 * (b - a) / steps for a, b in zip(started, ends, strict=True))
                times[name].append((clock, cpu))
    medians = {name: map(statistics.median, zip(*x, strict=True)) for name, x in times.items()}
    return {name: dict(zip(("ms", "cpu_ms"), x, strict=True)) for name, x in medians.items()}


def main(argv: list[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="convnext_tiny", choices=models.names())
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument(
        "--forms", default="depthwise,gelu,broadcast_to,conv2d", help=", ".join(FORMS)
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    config = programs.make_config(arguments.model, arguments.image_size)
    images = make_images(arguments.batch, arguments.image_size)
    training = train_step.OurTraining("train", config, images, arguments.steps)
    result = measure(training, arguments.forms.split(","), arguments.rounds, arguments.steps)
    table = rich.table.Table("without", "ms a step", "CPU ms", "share of the step's CPU time")
    for name, row in result.items():
        share = row["cpu_ms"] / result["all"]["cpu_ms"] - 1
        table.add_row(name, f"{row['ms']:.0f}", f"{row['cpu_ms']:.0f}", f"{share:+.1%}")
    console = rich.console.Console()
    console.print(table)
    console.print(f"{timing.machine()}, {arguments.model}, batch {arguments.batch}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
