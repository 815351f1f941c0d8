"""Computation and communication of a step, and a model of its time on many devices.

python -m benchmarks.scaling [--model=convnext_tiny] [--image_size=224] [--batch=16] \
    [--dtype=bfloat16] [--compiled=FILE,FILE] [--fsdp=1] [--json=FILE]

The first table is counted, from the programs of a run in the forms that accelerators run: FLOPs by
XLA of a single step (of a loop it counts the body once); bytes kept for the gradients by
differentiating, from shapes; bytes sent from the program compiled for eight simulated devices. The
second is computed from the first, from what `benchmarks.aot --json` says of a step on one device,
and from the peak figures of links, of `--batch` images a device: a model, not a measurement.
Formulas and sources are in docs/scaling.md.
"""

import argparse
import collections
import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
import rich.console
import rich.table
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import FrozenConfigDict

from benchmarks.programs import Step, batch_shapes, make_config, make_step, placed
from egmae_jax import models
from egmae_jax.core import sharding
from egmae_jax.data.pipeline import StreamedSteps
from egmae_jax.training import loop

PyTree = Any
WORKS = ("pretrain", "train")
DEVICES = 8  # simulated, to read from the compiled program what they send
# Of a step's compute, the share of the backward pass, under which gradients can travel.
BACKWARD = 2 / 3


@dataclasses.dataclass(frozen=True)
class System:
    """Devices and the bandwidths of their links in bytes/s; sources are in docs/scaling.md."""

    name: str
    device: str  # as `benchmarks.aot` names it
    hosts: int  # domains of fast links: all of a TPU slice is one
    devices: int  # of each
    link: float  # that a device sends within its domain
    network: float = 0.0  # that a domain sends to others


SYSTEMS = (
    System("8 x A100", "a100", 1, 8, 300e9),
    System("8 x H100", "h100", 1, 8, 450e9),
    System("8 x H200", "h200", 1, 8, 450e9),
    System("2 x 8 H100, InfiniBand", "h100", 2, 8, 450e9, 8 * 50e9),
    System("2 x 8 H200, InfiniBand", "h200", 2, 8, 450e9, 8 * 50e9),
    System("2 x 8 H100, 100 Gb/s", "h100", 2, 8, 450e9, 12.5e9),
    # Few chips are a mesh without wraparound: those at an edge have half the links.
    System("TPU v5e-16", "v5e", 1, 16, 100e9),
    System("TPU v5e-256", "v5e", 1, 256, 200e9),
    System("TPU v6e-8", "v6e", 1, 8, 200e9),
)


# --- Counted -------------------------------------------------------------------------------------


def nbytes(tree: PyTree) -> int:
    """Returns the total size of all arrays in bytes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def step_flops(step: Step, batch: int, size: int) -> float:
    """Returns the operations of a step, by XLA's analysis of the unoptimized program."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    images = batch_shapes(batch, size)
    lowered = jax.jit(step.function).lower(step.state, images, key)
    return lowered.cost_analysis()["flops"]


def kept_bytes(step: Step, batch: int, size: int) -> int:
    """Returns the bytes that the forward pass keeps for the backward pass, with parameters."""
    kept = 0

    def differentiate(function: Callable, *, has_aux: bool) -> Callable:
        def run(params: PyTree, *others: PyTree) -> tuple[Any, PyTree]:
            nonlocal kept
            value, backward, aux = jax.vjp(lambda x: function(x, *others), params, has_aux=has_aux)
            kept = nbytes(backward)
            return (value, aux), backward(jnp.ones_like(value))[0]

        return run

    key = jax.eval_shape(lambda: jax.random.key(0))
    images = batch_shapes(batch, size)
    with mock.patch("jax.value_and_grad", differentiate):  # of the step, whose loss is within
        jax.eval_shape(lambda *x: step.function(*x), step.state, images, key)  # traced anew
    return kept


def sent_bytes(step: Step, batch: int, size: int, fsdp: int) -> dict[str, int]:
    """Returns the bytes that a device reduces or gathers in a step, by kind."""
    mesh = sharding.make_mesh(-1, fsdp, (batch,))
    rows = NamedSharding(mesh, P(None, ("data", "fsdp")))
    images = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype, sharding=rows),
        batch_shapes(batch, size),
    )
    steps = StreamedSteps(images, jax.ShapeDtypeStruct((), np.int32))
    key = jax.eval_shape(lambda: jax.random.key(0))
    program = loop.compile_steps(step.function, mesh).lower(placed(step.state, mesh), steps, key, 2)
    text = program.compile({"xla_backend_optimization_level": 0}).as_text()
    total: collections.Counter[str] = collections.Counter()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        for dtype, shape in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", shapes):
            count = int(np.prod([int(n) for n in shape.split(",") if n]))
            total[kind] += count * int(re.sub(r"\D", "", dtype)) // 8
    return dict(total)


def count(work: str, config: FrozenConfigDict, batch: int, fsdp: int) -> dict[str, Any]:
    """Returns the operations and bytes of a step, for each image and independent of images."""
    size = config.data.image_size
    # The forms that accelerators run: a CPU's go through a batch image by image.
    with mock.patch("jax.default_backend", return_value="gpu"):
        step = make_step(work, config)
        flops = [step_flops(step, n * batch, size) for n in (1, 2)]
        kept = [kept_bytes(step, n * batch, size) for n in (1, 2)]
        sent = sent_bytes(step, DEVICES * batch, size, fsdp)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(step.state.params)),
        "parameter_bytes": nbytes(step.state.params),
        "optimizer_bytes": nbytes(step.state.opt_state),
        "image_bytes": nbytes(batch_shapes(1, size)),
        "flops_an_image": (flops[1] - flops[0]) / batch,
        "flops_a_step": 2 * flops[0] - flops[1],
        "kept_bytes_an_image": (kept[1] - kept[0]) / batch,
        "sent_bytes": sent,
    }


# --- Computed ------------------------------------------------------------------------------------


def read_compiled(
    paths: list[str], work: str, settings: dict[str, Any]
) -> dict[str, dict[int, float]]:
    """Returns the seconds of a step on one device by its batch, for each device.

    They are the sum over operations of the greater of roofline and, on a TPU, cycles.

    Args:
        paths: files of `benchmarks.aot --json`.
        work: 'pretrain' or 'train'.
        settings: model, image size and dtype of the steps.

    Raises:
        ValueError: a file is of other settings or of several devices.
    """
    seconds: dict[str, dict[int, float]] = {}
    for path in paths:
        with open(path) as file:
            content = json.load(file)
        theirs = content["settings"]
        wrong = [key for key, value in settings.items() if theirs[key] != value]
        if wrong or theirs["devices"] != 1:
            raise ValueError(f"{path} is of other settings: {', '.join(wrong or ['devices'])}")
        if work not in content:
            continue
        name = theirs["topology"].split(":")[0]
        seconds.setdefault(name, {})[theirs["batch"]] = content[work]["estimate_s"]
    return seconds


def busy_line(seconds: dict[int, float]) -> tuple[float, float]:
    """Returns the fixed seconds of a step and those of an image, from one batch or two."""
    if len(seconds) == 1:
        ((batch, step),) = seconds.items()
        return 0.0, step / batch
    small, large = min(seconds), max(seconds)
    image = (seconds[large] - seconds[small]) / (large - small)
    return max(0.0, seconds[small] - small * image), image


def predict(
    counted: dict[str, Any], system: System, batch: int, seconds: dict[int, float]
) -> dict[str, float]:
    """Models a step with `batch` images a device: seconds, and the batch that hides sending.

    A step's time lies between `step_s`, where all that can be is sent during the backward pass, and
    `serial_s`, where nothing is.

    Args:
        counted: result of `count`.
        system: the devices.
        batch: images a device.
        seconds: of a step on one of these devices by its batch, see `read_compiled`.
    """
    sent = counted["sent_bytes"]
    once, image = busy_line(seconds)
    busy = once + batch * image
    n, hosts = system.devices, system.hosts
    passed = 2 * sent["all-reduce"] + sent.get("all-gather", 0)  # around a ring, by every device
    sending = (n - 1) / n * passed / system.link
    if hosts > 1:
        sending += (hosts - 1) / hosts * passed / system.network
    step = busy + max(0.0, sending - BACKWARD * busy)
    return {
        "busy_s": busy,
        "sending_s": sending,
        "step_s": step,
        "serial_s": busy + sending,
        "images_per_s": n * hosts * batch / step,
        "serial_images_per_s": n * hosts * batch / (busy + sending),
        "hiding_batch": max(1.0, (sending / BACKWARD - once) / image),
    }


def print_tables(result: dict[str, Any]) -> None:
    """Prints the counts and the results of the model."""
    console = rich.console.Console()
    table = rich.table.Table("", *WORKS)

    def row(name: str, figure: Callable[[dict[str, Any]], str]) -> None:
        table.add_row(name, *(figure(result[work]["counted"]) for work in WORKS))

    row("parameters", lambda c: f"{c['parameters']:,}")
    row("MB of parameters, as of gradients", lambda c: f"{c['parameter_bytes'] / 1e6:.4g}")
    row("MB of optimizer state", lambda c: f"{c['optimizer_bytes'] / 1e6:.4g}")
    row("GFLOP an image", lambda c: f"{c['flops_an_image'] / 1e9:.4g}")
    row("GFLOP a step besides", lambda c: f"{c['flops_a_step'] / 1e9:.2g}")
    row("MB kept an image", lambda c: f"{c['kept_bytes_an_image'] / 1e6:.4g}")
    row("MB read an image", lambda c: f"{c['image_bytes'] / 1e6:.2g}")
    for kind in sorted({kind for work in WORKS for kind in result[work]["counted"]["sent_bytes"]}):
        row(f"MB in {kind}", lambda c, k=kind: f"{c['sent_bytes'].get(k, 0) / 1e6:.4g}")
    console.print(table)
    columns = ("busy", "sending", "step ms", "k images/s", "hides")
    for work in (work for work in WORKS if result[work]["systems"]):
        table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
        for name in (work, *columns):
            table.add_column(name, no_wrap=True)
        for name, figures in result[work]["systems"].items():
            ms = [f"{1e3 * figures[f'{part}_s']:.3g}" for part in ("busy", "sending")]
            steps = f"{1e3 * figures['step_s']:.3g}-{1e3 * figures['serial_s']:.3g}"
            rates = (figures["serial_images_per_s"] / 1e3, figures["images_per_s"] / 1e3)
            images = "-".join(f"{rate:.3g}" for rate in rates)
            table.add_row(name, *ms, steps, images, f"{np.ceil(figures['hiding_batch']):.0f}")
        console.print(table)


def main(argv: list[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="convnext_tiny", choices=models.names())
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16, help="images a device")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--compiled", default="", help="files of benchmarks.aot --json")
    parser.add_argument("--fsdp", type=int, default=1, help="mesh.fsdp of the simulated devices")
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    config = make_config(arguments.model, arguments.image_size, dtype=arguments.dtype)
    result: dict[str, Any] = {}
    for work in WORKS:
        counted = count(work, config, arguments.batch, arguments.fsdp)
        settings = {key: getattr(arguments, key) for key in ("model", "image_size", "dtype")}
        compiled = read_compiled([x for x in arguments.compiled.split(",") if x], work, settings)
        predicted = {
            system.name: predict(counted, system, arguments.batch, compiled[system.device])
            for system in SYSTEMS
            if system.device in compiled
        }
        result[work] = {"counted": counted, "systems": predicted}
    print_tables(result)
    rich.console.Console().print(
        f"{arguments.model}, {arguments.image_size} pixels, {arguments.dtype}, {arguments.batch} "
        "images a device; computed, not measured"
    )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(vars(arguments) | result, file, indent=2)


if __name__ == "__main__":
    main()
