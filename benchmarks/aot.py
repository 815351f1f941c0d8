"""Compiles a run's programs for an accelerator that is not here, and shows what they cost there.

python -m benchmarks.aot --platform=tpu|gpu [--topology=v5e:4x4|v6e:2x2|h200|h100|a100] \
    [--work=train,pretrain,inference,entropy] [--model=convnext_tiny] [--batch=16] \
    [--image_size=224] [--dtype=bfloat16] [--devices=1] [--hosts=1] [--fsdp=1] [--peer] \
    [--largest_batch] [--json=FILE]

The compilers are those of libtpu (`pip install -e '.[aot]'`) and of jax[cuda12]; no device is
needed. A TPU's compiler states the cycles that it expects of each operation; for a GPU the kernels
of a step are counted. Nothing is autotuned, so a real GPU may choose other algorithms. The roofline
is an estimate: the least time of each operation by its bytes and products, at the peak figures of
the device. The batch is that of all devices together. `--peer` compiles the same work in plain Flax
and optax (`benchmarks/plain_flax.py`), which is given its crops.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import FrozenConfigDict

from benchmarks import hlo, llo, plain_flax, programs
from egmae_jax import models
from egmae_jax.core import platform, sharding
from egmae_jax.method.corruption import patch_entropy
from egmae_jax.models.kernels import mlp_tpu
from egmae_jax.training import finetune, loop

PyTree = Any
WORKS = ("train", "pretrain", "inference", "entropy")


@dataclasses.dataclass(frozen=True)
class Device:
    """Peak rates and memory of a device."""

    flops: float  # bfloat16 products, FLOP/s
    bandwidth: float  # of its memory, bytes/s
    memory: float  # bytes
    clock: float  # cycles/s of a TPU's core
    # A GPU's multiprocessors, units of each, shared memory in bytes of each and L2 cache in bytes.
    cores: int = 0
    units: int = 0
    shared: int = 0
    cache: int = 0
    capability: tuple[int, int] = (0, 0)


DEVICES = {
    "v4": Device(275e12, 1.228e12, 32e9, 1.05e9),
    "v5e": Device(197e12, 0.819e12, 16e9, 1.5e9),
    "v5p": Device(459e12, 2.765e12, 95e9, 1.75e9),
    "v6e": Device(918e12, 1.64e12, 32e9, 1.75e9),
    "a100": Device(312e12, 2.039e12, 80e9, 1.41e9, 108, 64, 164 << 10, 40 << 20, (8, 0)),
    "h100": Device(989e12, 3.35e12, 80e9, 1.98e9, 132, 128, 228 << 10, 50 << 20, (9, 0)),
    "h200": Device(989e12, 4.8e12, 141e9, 1.98e9, 132, 128, 228 << 10, 50 << 20, (9, 0)),
}
# Parts of a step by what the path of an operation contains; the first that fits is taken.
PARTS = (
    ("crop", ("augment", "_resample", "random_resized_crop", "resized_random_crop")),
    ("corruption", ("entropy", "corrupt", "_add_noise")),
    ("depthwise", ("conv_dw", "depthwise_")),
    ("norm and MLP", ("block_mlp",)),
    ("norm", ("/norm/", "layer_norm", "batch_norm", "/bn")),
    ("MLP", ("/mlp/", "/fc1/", "/fc2/")),
    ("head", ("/head/", "softmax", "smooth_labels")),
    ("decoder", ("/decoder/",)),
    ("stem, downsampling", ("/stem/", "/downsample/")),
    ("optimizer", ("optimizer", "_update")),
)


def describe_gpu(device: Device) -> str:
    """Returns the text by which XLA's GPU compiler knows a device."""
    major, minor = device.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: {device.shared}
  shared_memory_per_block_optin: {device.shared - 1024}
  core_count: {device.cores}  fpus_per_core: {device.units}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {device.bandwidth:.0f}  l2_cache_size: {device.cache}
  clock_rate_ghz: {device.clock / 1e9}  device_memory_size: {device.memory:.0f}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
"""


def make_topology(target: str, topology: str, devices: int, hosts: int) -> Any:
    """Returns a description of devices that are not here.

    Args:
        target: 'tpu' or 'gpu'.
        topology: chips such as 'v5e:2x2', or name of a GPU.
        devices: number of GPUs; a TPU's topology states its own number.
        hosts: number of hosts that the GPUs are in.

    Raises:
        SystemExit: the compiler is not installed.
    """
    try:
        if target == "tpu":
            os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no metadata server to ask
            os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nor a device that others could take
            return topologies.get_topology_desc(topology, "tpu")
        return topologies.get_topology_desc(
            "",
            "cuda",
            topology=f"1x{hosts}x{devices // hosts}",
            target_config=describe_gpu(DEVICES[topology]),
        )
    except (RuntimeError, ImportError) as error:
        package = "'.[aot]'" if target == "tpu" else "'jax[cuda12]'"
        raise SystemExit(
            f"The compiler for {target} is not here ({str(error).splitlines()[0]}): "
            f"pip install {package}"
        ) from error


def make_mesh(topology: Any, devices: int, fsdp: int, batch: int) -> Mesh:
    """Returns a mesh of the first devices of a topology, as of a run."""
    shape = sharding.mesh_shape(devices, -1, fsdp, (batch,))
    chosen = np.array(topology.devices[:devices]).reshape(shape)
    return Mesh(chosen, ("data", "fsdp", "copy"), axis_types=(AxisType.Auto,) * 3)


@contextlib.contextmanager
def tracing(target: str, mesh: Mesh) -> Iterator[None]:
    """Traces and lowers within the block for the devices of a mesh that is not here."""
    device = jax.sharding.AbstractDevice(mesh.devices.flat[0].device_kind, 1, target)
    abstract = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with (
        platform.tracing_for(target, elsewhere=mesh.size),
        jax.sharding.use_abstract_mesh(abstract),
    ):
        yield


def lower(work: str, config: FrozenConfigDict, batch: int, mesh: Mesh) -> Any:
    """Traces and lowers one of our programs for the devices of a mesh."""
    size = config.data.image_size
    pixels = programs.split(jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8), mesh)
    if work == "entropy":
        entropy = functools.partial(
            patch_entropy,
            patch_size=config.corruption.patch_size,
            num_bins=config.entropy.num_bins,
            color=config.entropy.color,
        )
        return platform.jit(entropy).lower(pixels)
    if work == "inference":
        model, variables = programs.classifier_variables(config)
        predict = platform.jit(functools.partial(finetune.class_probabilities, model=model))
        return predict.lower(programs.replicated(variables, mesh), pixels)
    step = programs.make_step(work, config)
    key = programs.replicated(jax.eval_shape(lambda: jax.random.key(0)), mesh)
    feed = programs.resident_steps(batch, size, mesh)
    state = programs.placed(step.state, mesh)
    return loop.compile_steps(step.function, mesh).lower(state, feed, key, loop._MIN_STEPS)


def lower_peer(work: str, config: FrozenConfigDict, batch: int, mesh: Mesh) -> Any:
    """Traces and lowers the same work in plain Flax and optax."""
    step, (state, *rest) = plain_flax.make_step(work, config, batch)
    state, rest = programs.replicated(state, mesh), [*rest]
    rest[0] = programs.split(rest[0], mesh)
    rest[1:] = [programs.replicated(x, mesh) for x in rest[1:]]
    return jax.jit(step, donate_argnums=() if work == "inference" else 0).lower(state, *rest)


def compile_and_read(lowering: Callable[[], Any], topology: str) -> dict[str, Any]:
    """Compiles a program for a topology and reads its figures.

    A program with an instruction that this jaxlib does not know, which libtpu may use for a newer
    chip, has the memory alone and the key 'unread', with the reason.
    """
    device = DEVICES[topology.split(":")[0]]
    jax.clear_caches()  # of what was traced for this machine
    started = time.perf_counter()
    compiled = lowering().compile()
    seconds = time.perf_counter() - started
    unread, operations = "", []
    try:
        operations = llo.with_cycles(hlo.Program(compiled.as_text()).step(), topology)
    except jax.errors.JaxRuntimeError as error:
        unread = str(error).splitlines()[0]
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    roofline = [x.seconds(device.flops, device.bandwidth) for x in operations]
    # The cycles of kernels in Pallas do not include waiting for memory.
    estimate = sum(
        max(x.cycles / device.clock, bound) for x, bound in zip(operations, roofline, strict=True)
    )
    parts: dict[str, dict[str, float]] = {}
    for operation, bound in zip(operations, roofline, strict=True):
        row = parts.setdefault(part_of(operation), collections.Counter())
        row["cycles"] += operation.cycles
        row["kernels"] += operation.times
        row["roofline_s"] += bound
    order = sorted(
        range(len(operations)), key=lambda i: (operations[i].cycles, roofline[i]), reverse=True
    )
    return {
        **({"unread": unread} if unread else {}),
        "cycles": sum(x.cycles for x in operations),
        "kernels": sum(x.times for x in operations),
        "kinds": hlo.count_by_kind(operations),
        "parts": parts,
        "dearest": [
            {
                "name": operations[i].instruction.name,
                "path": operations[i].instruction.path,
                "shape": operations[i].instruction.shape,
                "times": operations[i].times,
                "cycles": operations[i].cycles,
                "roofline_s": roofline[i],
            }
            for i in order[:10]
        ],
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        # A device holds its arguments and temporary arrays; results that replace arguments are in
        # the place of these.
        "peak_bytes": memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "bytes_accessed": cost.get("bytes accessed") or sum(x.bytes * x.times for x in operations),
        "flops": cost.get("flops") or sum(x.flops * x.times for x in operations),
        "roofline_s": sum(roofline),
        "estimate_s": estimate,
        "collectives": hlo.collectives(operations),
        "compile_s": seconds,
    }


def part_of(operation: hlo.Operation) -> str:
    """Returns the part of a step that an operation belongs to, by where it was traced."""
    if operation.kind == "collective":
        return "collectives"
    path = operation.instruction.path
    if operation.opcodes <= {"fusion", "convert", "parameter", "bitcast", "copy", "transpose"}:
        return "copies" if "convert" not in operation.opcodes else "casts"
    return next((name for name, words in PARTS if any(w in path for w in words)), "other")


def largest_batch(lowering: Callable[[int], Any], device: Device, multiple: int) -> int:
    """Returns the largest batch whose program fits the device's memory, within a tenth.

    Memory grows almost linearly with the batch, so the search follows the line through the two
    largest batches that fit, and halves the interval only after a batch that does not.

    Args:
        lowering: traces and lowers the program for a batch.
        device: the device.
        multiple: number that divides all batches.
    """

    def peak(count: int) -> float:
        jax.clear_caches()
        try:
            memory = lowering(count * multiple).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return math.inf
        return memory.temp_size_in_bytes + memory.argument_size_in_bytes

    low, low_peak, high, count = 0, 0.0, math.inf, 1
    while True:
        now = peak(count)
        if now > device.memory:
            high, guess = count, (low + count) // 2
        else:
            more = int(0.97 * (device.memory - now) * (count - low) / max(1.0, now - low_peak))
            # The first batch says little: most of its memory is not of the images.
            guess = count + (3 if low == 0 else more)
            low, low_peak = count, now
        count = int(max(low + 1, min(guess, high - 1)))
        if count >= high or (count - low <= low // 10):
            return low * multiple


def print_work(console: rich.console.Console, work: str, row: dict[str, Any], tpu: bool) -> None:
    """Prints the tables of one program."""

    def cost(figures: dict[str, Any]) -> str:
        return f"{figures['cycles'] / 1e6:.2f}" if tpu else f"{figures['kernels']:.0f}"

    unit = "million cycles" if tpu else "kernels"
    table = rich.table.Table(work, unit, "roofline ms", box=None, pad_edge=False)
    ranked = sorted(
        row["parts"].items(), key=lambda x: x[1]["cycles" if tpu else "kernels"], reverse=True
    )
    for part, figures in [*ranked, ("all", row)]:
        table.add_row(part, cost(figures), f"{1e3 * figures['roofline_s']:.3f}")
    if "peer_cycles" in row:
        peer = {"cycles": row["peer_cycles"], "kernels": row["peer_kernels"]}
        table.add_row("plain Flax", cost(peer), f"{1e3 * row['peer_roofline_s']:.3f}")
    temporary, arguments, accessed, flops = (
        row[key] / 1e9 for key in ("temp_bytes", "argument_bytes", "bytes_accessed", "flops")
    )
    if "unread" in row:
        console.print(
            f"{work}: {temporary:.3f} GB temporary, {arguments:.3f} GB arguments, compiled in "
            f"{row['compile_s']:.0f} s; jaxlib {jax.lib.__version__} cannot read the operations of "
            f"this program ({row['unread']}).\n"
        )
        return
    console.print(table)
    kinds = ", ".join(f"{count} {kind}" for kind, count in row["kinds"].items())
    console.print(
        f"{kinds}\n{temporary:.3f} GB temporary, {arguments:.3f} GB arguments, {accessed:.1f} GB "
        f"accessed, {flops:.1f} GFLOP, compiled in {row['compile_s']:.0f} s"
    )
    console.print(f"at least {1e3 * row['estimate_s']:.1f} ms by cycles and roofline, an estimate")
    for kind, figures in row["collectives"].items():
        console.print(f"{figures['count']} {kind} of {figures['bytes'] / 1e6:.1f} MB together")
    if "largest_batch" in row:
        console.print(f"the largest batch that fits is about {row['largest_batch']}")
    table = rich.table.Table("dearest operations", unit, "times", "ms", box=None, pad_edge=False)
    for x in row["dearest"]:
        path = x["path"].rsplit("one_step/", 1)[-1]
        figure = f"{x['cycles'] / 1e6:.3f}" if tpu else ""
        table.add_row(path[-60:], figure, str(x["times"]), f"{1e3 * x['roofline_s']:.3f}")
    console.print(table)
    console.print()


def main(argv: list[str] | None = None) -> None:
    """Compiles, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--platform", required=True, choices=("tpu", "gpu"))
    parser.add_argument("--topology", help="v5e:2x2, v6e:2x4, h200, h100, a100, ...")
    parser.add_argument("--work", default="train,pretrain,inference,entropy")
    parser.add_argument("--model", default="convnext_tiny", choices=models.names())
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--hosts", type=int, default=1, help="hosts of the GPUs")
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--largest_batch", action="store_true")
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    works = arguments.work.split(",")
    if unknown := set(works) - set(WORKS):
        parser.error(f"--work={', '.join(unknown)}: choose from {', '.join(WORKS)}")
    tpu = arguments.platform == "tpu"
    name = arguments.topology or ("v5e:2x2" if tpu else "h200")
    if (device := DEVICES.get(name.split(":")[0])) is None or (device.cores > 0) == tpu:
        known = [key for key, x in DEVICES.items() if (x.cores == 0) == tpu]
        parser.error(f"--topology={name}: choose from {', '.join(known)}, a TPU's with its shape")
    if arguments.peer and not arguments.model.startswith("convnext_"):
        parser.error(f"--peer: the plain form of {arguments.model} is not written")
    jax.config.update("jax_platforms", "cpu")
    topology = make_topology(arguments.platform, name, arguments.devices, arguments.hosts)
    mesh = make_mesh(topology, arguments.devices, arguments.fsdp, arguments.batch)
    config = programs.make_config(arguments.model, arguments.image_size, dtype=arguments.dtype)
    console = rich.console.Console(highlight=False)
    result: dict[str, Any] = {"settings": vars(arguments) | {"topology": name}}
    for work in works:
        with tracing(arguments.platform, mesh):
            program = functools.partial(lower, work, config, mesh=mesh)
            row = compile_and_read(lambda program=program: program(arguments.batch), name)
            if arguments.largest_batch:
                # The kernels of a TPU take 16 images at a time.
                multiple = mlp_tpu.BATCH_TILE if tpu else 1
                multiple *= mesh.shape["data"] * mesh.shape["fsdp"]
                row["largest_batch"] = largest_batch(program, device, multiple)
        if arguments.peer and work != "entropy":
            peer = functools.partial(lower_peer, work, config, arguments.batch, mesh)
            figures = compile_and_read(peer, name)
            row |= {f"peer_{key}": figures[key] for key in ("cycles", "kernels", "temp_bytes")}
            row |= {f"peer_{key}": figures[key] for key in ("roofline_s", "compile_s", "kinds")}
        print_work(console, work, row, tpu)
        result[work] = row
        if arguments.json:  # after each, since compiling takes minutes
            with open(arguments.json, "w") as file:
                json.dump(result, file, indent=2)
    console.print(
        f"{arguments.model}, {arguments.image_size} pixels, batch {arguments.batch}, "
        f"{arguments.dtype}, {arguments.devices} of {name}, jax {jax.__version__}; "
        "compiled, not run"
    )


if __name__ == "__main__":
    main()
