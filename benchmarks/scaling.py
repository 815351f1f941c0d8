"""What a step computes and sends, and a model of its time on many devices. Needs no accelerator.

python -m benchmarks.scaling [--model=convnext_tiny] [--image_size=224] [--batch=16] \
    [--dtype=bfloat16] [--utilisation=.2] [--fsdp=1] [--json=FILE]

The first table is counted, from the programs of a run in the forms that accelerators run: FLOPs by
XLA of a single step (of a loop it counts the body once); bytes kept for the gradients by
differentiating, from shapes; bytes sent from the program compiled for eight simulated devices. The
second is computed from the first and from the hardware's peak figures, of `--batch` images a
device: a model, not a measurement. Formulas and sources are in docs/scaling.md.
"""

import argparse
import collections
import dataclasses
import functools
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
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import FrozenConfigDict

from benchmarks.inputs import NUM_CLASSES, make_images
from egmae_jax import models
from egmae_jax.core import sharding
from egmae_jax.data.pipeline import Images, StreamedSteps
from egmae_jax.models.init import abstract_variables
from egmae_jax.run import branches, default_config
from egmae_jax.training import finetune, loop, optim, pretrain
from egmae_jax.training.state import TrainState

PyTree = Any
WORKS = ("pretrain", "finetune")
DEVICES = 8  # simulated, to read from the compiled program what they send
# Of a step's compute, the share of the backward pass, under which gradients can travel.
BACKWARD = 2 / 3


@dataclasses.dataclass(frozen=True)
class System:
    """Devices and their peak figures, in FLOP/s and bytes/s; docs/scaling.md has the sources."""

    name: str
    hosts: int  # domains of fast links: all of a TPU slice is one
    devices: int  # of each
    flops: float  # bfloat16, dense
    memory: float
    link: float  # that a device sends within its domain
    network: float = 0.0  # that a domain sends to others


SYSTEMS = (
    System("8 x A100", 1, 8, 312e12, 2.039e12, 300e9),
    System("8 x H100", 1, 8, 989e12, 3.35e12, 450e9),
    System("8 x H200", 1, 8, 989e12, 4.8e12, 450e9),
    System("2 x 8 H100, InfiniBand", 2, 8, 989e12, 3.35e12, 450e9, 8 * 50e9),
    System("2 x 8 H100, 100 Gb/s", 2, 8, 989e12, 3.35e12, 450e9, 12.5e9),
    # 4 x 4 chips are a mesh without wraparound: those at an edge have half the links.
    System("TPU v5e-16", 1, 16, 197e12, 0.819e12, 100e9),
    System("TPU v5e-256", 1, 256, 197e12, 0.819e12, 200e9),
)


# --- Counted -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    """A step function and the shapes of its state."""

    function: Callable
    state: TrainState
    config: FrozenConfigDict


def make_config(model: str, image_size: int, dtype: str) -> FrozenConfigDict:
    """The default recipe at another size."""
    config = default_config.get_config()
    config.update_from_flattened_dict(
        {
            "model.name": model,
            "model.dtype": dtype,
            "data.image_size": image_size,
            "finetune.resize": round(image_size * 236 / 224),
        }
    )
    return FrozenConfigDict(config)


def make_step(work: str, config: FrozenConfigDict) -> Step:
    """Of a work, from shapes alone."""
    size, patch = config.data.image_size, config.corruption.patch_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    if work == "pretrain":
        model: Any = pretrain.create_autoencoder(config)
        mask = jax.ShapeDtypeStruct((1, size // patch, size // patch), np.float32)
        inputs, function = (image, mask), pretrain.pretrain_step
    else:
        model = branches.classifier(branches.Branch("mae", config.model.name), config, NUM_CLASSES)
        inputs, function = (image,), finetune.finetune_step
    variables, section = abstract_variables(model, *inputs), config[work]
    params = variables["params"]
    schedule = optim.cosine_schedule(section.learning_rate, total_steps=10**6, warmup_steps=10)
    optimizer = optim.adamw(
        schedule, params, weight_decay=section.weight_decay, betas=section.betas
    )
    state = TrainState(
        jax.ShapeDtypeStruct((), np.int32),
        params,
        variables.get("batch_stats", {}),
        jax.eval_shape(optimizer.init, params),
    )
    function = functools.partial(function, model=model, optimizer=optimizer, config=config)
    return Step(function, state, config)


def nbytes(tree: PyTree) -> int:
    """Of all arrays."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def batch_shapes(batch: int, size: int) -> Images:
    """Of random images, somewhat larger than the crops."""
    one = make_images(1, size)
    return Images(*(jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in one))


def step_flops(step: Step, batch: int) -> float:
    """By XLA's analysis of the program before it is optimized."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    images = batch_shapes(batch, step.config.data.image_size)
    lowered = jax.jit(step.function).lower(step.state, images, key)
    return lowered.cost_analysis()["flops"]


def kept_bytes(step: Step, batch: int) -> int:
    """Of the arrays that the forward pass leaves to the backward pass, parameters among them."""
    kept = 0

    def differentiate(function: Callable, *, has_aux: bool) -> Callable:
        def run(params: PyTree) -> tuple[Any, PyTree]:
            nonlocal kept
            value, backward, aux = jax.vjp(function, params, has_aux=has_aux)
            kept = nbytes(backward)
            return (value, aux), backward(jnp.ones_like(value))[0]

        return run

    key = jax.eval_shape(lambda: jax.random.key(0))
    images = batch_shapes(batch, step.config.data.image_size)
    with mock.patch("jax.value_and_grad", differentiate):  # of the step, whose loss is within
        jax.eval_shape(lambda *x: step.function(*x), step.state, images, key)  # traced anew
    return kept


def sent_bytes(step: Step, batch: int, fsdp: int) -> dict[str, int]:
    """By kind: the arrays that a device takes part in reducing or gathering in a step."""
    mesh = sharding.make_mesh(-1, fsdp, (batch,))
    rows = NamedSharding(mesh, P(None, ("data", "fsdp")))
    images = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype, sharding=rows),
        batch_shapes(batch, step.config.data.image_size),
    )
    steps = StreamedSteps(images, jax.ShapeDtypeStruct((), np.int32))
    key = jax.eval_shape(lambda: jax.random.key(0))
    program = loop.compile_steps(step.function, mesh).lower(
        _placed(step.state, mesh), steps, key, 2
    )
    text = program.compile({"xla_backend_optimization_level": 0}).as_text()
    total: collections.Counter[str] = collections.Counter()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        for dtype, shape in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", shapes):
            count = int(np.prod([int(n) for n in shape.split(",") if n]))
            total[kind] += count * int(re.sub(r"\D", "", dtype)) // 8
    return dict(total)


def _placed(tree: PyTree, mesh: Mesh) -> PyTree:
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        tree,
        sharding.state_shardings(tree, mesh),
    )


def count(work: str, config: FrozenConfigDict, batch: int, fsdp: int) -> dict[str, Any]:
    """Of a step: what grows with the images, an image, and what does not."""
    # The forms that accelerators run: a CPU's go through a batch image by image.
    with mock.patch("jax.default_backend", return_value="gpu"):
        step = make_step(work, config)
        flops = [step_flops(step, n * batch) for n in (1, 2)]
        kept = [kept_bytes(step, n * batch) for n in (1, 2)]
        sent = sent_bytes(step, DEVICES * batch, fsdp)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(step.state.params)),
        "parameter_bytes": nbytes(step.state.params),
        "optimizer_bytes": nbytes(step.state.opt_state),
        "image_bytes": nbytes(batch_shapes(1, config.data.image_size)),
        "flops_an_image": (flops[1] - flops[0]) / batch,
        "flops_a_step": 2 * flops[0] - flops[1],
        "kept_bytes_an_image": (kept[1] - kept[0]) / batch,
        "sent_bytes": sent,
    }


# --- Computed ------------------------------------------------------------------------------------


def predict(
    counted: dict[str, Any], system: System, batch: int, utilisation: float
) -> dict[str, float]:
    """The model of a step with `batch` images a device; seconds, and the batch that hides sending.

    A step's time lies between `step_s`, where all that can be is sent during the backward pass, and
    `serial_s`, where nothing is.
    """
    parameters, sent = counted["parameter_bytes"], counted["sent_bytes"]
    # Each kept array is written and read, and so is its gradient.
    an_image = {
        "compute_s": counted["flops_an_image"] / (system.flops * utilisation),
        "memory_s": 4 * counted["kept_bytes_an_image"] / system.memory,
    }
    # Weights are read twice, gradients written and read; AdamW reads and writes what it keeps.
    once = (6 * parameters + 2 * counted["optimizer_bytes"]) / system.memory
    compute, memory = (batch * seconds for seconds in an_image.values())
    memory += once
    n, hosts = system.devices, system.hosts
    passed = 2 * sent["all-reduce"] + sent.get("all-gather", 0)  # around a ring, by every device
    sending = (n - 1) / n * passed / system.link
    if hosts > 1:
        sending += (hosts - 1) / hosts * passed / system.network
    busy = max(compute, memory)
    step = busy + max(0.0, sending - BACKWARD * busy)
    return {
        "compute_s": compute,
        "memory_s": memory,
        "sending_s": sending,
        "step_s": step,
        "serial_s": busy + sending,
        "images_per_s": n * hosts * batch / step,
        "serial_images_per_s": n * hosts * batch / (busy + sending),
        "hiding_batch": _hiding_batch(sending / BACKWARD, *an_image.values(), once),
    }


def _hiding_batch(seconds: float, compute: float, memory: float, once: float) -> float:
    """The images a device that keep it busy so long."""
    return max(1.0, min(seconds / compute, (seconds - once) / memory))


def print_tables(result: dict[str, Any]) -> None:
    """The counted figures, and the model's."""
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
    columns = ("compute", "memory", "sending", "step ms", "k images/s", "hides")
    for work in WORKS:
        table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
        for name in (work, *columns):
            table.add_column(name, no_wrap=True)
        for name, figures in result[work]["systems"].items():
            ms = [f"{1e3 * figures[f'{part}_s']:.3g}" for part in ("compute", "memory", "sending")]
            steps = f"{1e3 * figures['step_s']:.3g}-{1e3 * figures['serial_s']:.3g}"
            rates = (figures["serial_images_per_s"] / 1e3, figures["images_per_s"] / 1e3)
            images = "-".join(f"{rate:.3g}" for rate in rates)
            table.add_row(name, *ms, steps, images, f"{np.ceil(figures['hiding_batch']):.0f}")
        console.print(table)


def main(argv: list[str] | None = None) -> None:
    """Counts, computes, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="convnext_tiny", choices=models.names())
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16, help="images a device")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--utilisation", type=float, default=0.2, help="share of the peak FLOP/s")
    parser.add_argument("--fsdp", type=int, default=1, help="mesh.fsdp of the simulated devices")
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    config = make_config(arguments.model, arguments.image_size, arguments.dtype)
    result: dict[str, Any] = {}
    for work in WORKS:
        counted = count(work, config, arguments.batch, arguments.fsdp)
        predicted = {
            system.name: predict(counted, system, arguments.batch, arguments.utilisation)
            for system in SYSTEMS
        }
        result[work] = {"counted": counted, "systems": predicted}
    print_tables(result)
    rich.console.Console().print(
        f"{arguments.model}, {arguments.image_size} pixels, {arguments.dtype}, {arguments.batch} "
        f"images a device, {arguments.utilisation:.0%} of the peak FLOP/s assumed; computed, not "
        "measured"
    )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(vars(arguments) | result, file, indent=2)


if __name__ == "__main__":
    main()
