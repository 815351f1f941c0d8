"""Cycles of Pallas kernels on a TPU, which a compiled program does not state.

The compiler writes the schedule of each operation: a line for each bundle of instructions, which
takes a cycle, and the number of turns of each loop. Waiting for memory is not in it. Kernels are
compiled once more by themselves, in a process of their own, because the compiler reads its flags
when it is loaded, and writes hundreds of files for each operation.

python -m benchmarks.llo depthwise_conv:16,56,56,96:bfloat16 ... [--topology=v5e:2x2]
"""

import argparse
import dataclasses
import functools
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import hlo

_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(\w\w)?\s*:\s*(>*)")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder %\S+, (\d+) /\* loop exit test")


KERNELS = (
    "depthwise_conv",
    "depthwise_conv_sum",
    "depthwise_kernel_gradient",
    "block_mlp",
    "block_mlp_gradient",
)

_NAME = re.compile(rf"({'|'.join(KERNELS)})(_\d+_\d+_\d+)?(?:\.\d+)?")


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a kernel on features of a shape [B, H, W, C]."""

    kernel: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.kernel}:{','.join(map(str, self.shape))}:{self.dtype}"

    @classmethod
    def parse(cls, text: str) -> "Call":
        """Returns the call that `str` writes."""
        kernel, shape, dtype = text.split(":")
        return cls(kernel, tuple(map(int, shape.split(","))), dtype)


def with_cycles(operations: list[hlo.Operation], topology: str) -> list[hlo.Operation]:
    """Returns the operations, with cycles for the package's Pallas kernels on a TPU.

    Args:
        operations: operations of a program.
        topology: chips that it is compiled for, such as 'v5e:2x2'.

    Raises:
        RuntimeError: a kernel cannot be compiled by itself.
    """
    calls = [call_of(operation) for operation in operations]
    distinct = tuple(sorted({call for call in calls if call}, key=str))
    cycles = kernel_cycles(distinct, topology) if distinct else {}
    return [
        dataclasses.replace(operation, kernel_cycles=cycles[call]) if call else operation
        for operation, call in zip(operations, calls, strict=True)
    ]


def call_of(operation: hlo.Operation) -> Call | None:
    """Returns the call that an operation is; None if it is no kernel of `KERNELS`."""
    instruction = operation.instruction
    match = _NAME.fullmatch(instruction.name)
    if instruction.target != "tpu_custom_call" or not match:
        return None
    # The first result is [H, W, B, C] of a convolution, [pixels, B, C] of an MLP, and [K * K, C] of
    # a kernel's gradient, whose name has H, W and B.
    *pixels, batch, channels = hlo.dimensions(instruction.shape)[0]
    if match[2]:
        *pixels, batch = map(int, match[2].split("_")[1:])
    dtype = "float32" if "bf16" not in str(instruction) else "bfloat16"
    height, width = pixels if len(pixels) == 2 else (*pixels, 1)
    return Call(match[1], (batch, height, width, channels), dtype)


@functools.cache
def kernel_cycles(calls: tuple[Call, ...], topology: str) -> dict[Call, int]:
    """Returns the cycles of each call, from one process of their own."""
    command = [sys.executable, "-m", "benchmarks.llo", f"--topology={topology}", *map(str, calls)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    figures = dict(line.split() for line in done.stdout.splitlines() if line.count(":") == 2)
    return {call: int(figures[str(call)]) for call in calls}


def count_cycles(schedule: str) -> int:
    """Returns the cycles of a schedule: its bundles, those of loops once for each turn.

    The loop over the blocks of a kernel copies them in stages: it has two more turns, in which
    nothing is computed.
    """
    loops: list[dict[str, int]] = []  # that are open, from the outermost
    bundles: list[tuple[dict[str, int], ...]] = []  # the loops around each bundle
    is_staged = re.search(r"stage = \d \*/", schedule)
    for line in schedule.splitlines():
        match = _BUNDLE.match(line)
        if not match:
            continue
        label, depth = match[1], len(match[2])
        if depth or "{}" not in line:  # an empty bundle does not say how deep it lies
            loops = [x for x in loops if x["depth"] < depth + (label != "LB")]
        if label == "LB":
            loops.append({"depth": depth, "turns": 1})
        bundles.append(tuple(loops))
        if turns := _EXIT.search(line):
            loop = next(x for x in loops if x["depth"] == depth)
            loop["turns"] = int(turns[1]) - (2 if depth == 1 and is_staged else 0)
    return sum(math.prod(loop["turns"] for loop in inside) for inside in bundles)


def program(call: Call) -> tuple[Callable, tuple[Any, ...]]:
    """Returns a function that runs a kernel, and the shapes of its arguments."""
    import jax  # whose flags are set by now

    from egmae_jax.models.kernels import depthwise_tpu, mlp_tpu

    kernel, dtype = call.kernel, call.dtype
    batch, height, width, channels = call.shape
    features, rows = (
        jax.ShapeDtypeStruct(x, dtype) for x in (call.shape, (height, width, batch, channels))
    )
    vector, wide, square, oblong, other = (
        jax.ShapeDtypeStruct(x, "float32")
        for x in (
            (channels,),
            (4 * channels,),
            (7, 7, 1, channels),
            (channels, 4 * channels),
            (4 * channels, channels),
        )
    )
    if kernel == "depthwise_conv":
        return depthwise_tpu.conv, (features, square, vector)
    if kernel == "depthwise_conv_sum":
        return depthwise_tpu.conv, (features, square, vector, features)
    if kernel == "depthwise_kernel_gradient":
        gradient = functools.partial(depthwise_tpu.kernel_gradient, size=7)
        return gradient, (features, features)
    weights = mlp_tpu.Weights(vector, vector, oblong, wide, other, vector, vector)
    function = mlp_tpu.forward if kernel == "block_mlp" else mlp_tpu.backward
    return function, (rows, rows, jax.ShapeDtypeStruct((batch,), "float32"), weights)


def main(argv: list[str] | None = None) -> None:
    """Compiles kernels for a TPU and prints the cycles of each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("calls", nargs="+", help=f"KERNEL:B,H,W,C:DTYPE, of {', '.join(KERNELS)}")
    parser.add_argument("--topology", default="v5e:2x2")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}"

        import jax

        from benchmarks import aot, programs

        jax.config.update("jax_platforms", "cpu")
        mesh = aot.make_mesh(aot.make_topology("tpu", arguments.topology, 1, 1), 1, 1, 1)
        for call in map(Call.parse, arguments.calls):
            function, shapes = program(call)
            with aot.tracing("tpu", mesh):
                jax.jit(function).lower(*programs.replicated(shapes, mesh)).compile()
            paths = folder.glob(f"*-{call.kernel}[._]*final_bundles.txt")
            (path,) = (x for x in paths if "schedule-analysis" not in x.name)
            print(call, count_cycles(path.read_text()), flush=True)
            for path in folder.iterdir():
                path.unlink()


if __name__ == "__main__":
    main()
