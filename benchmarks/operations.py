"""GELU, LayerNorm and matrix products of a ConvNeXt block, with PyTorch's and lower bounds.

python -m benchmarks.operations [--batch=16] [--shapes=56x96,28x192,14x384,7x768] \
    [--dtype=float32] [--rounds=5] [--json=FILE]

Forward is the operation, both is forward and all gradients. The floor of GELU and LayerNorm is the
memory they must move, that of the products (C -> 4C) the fastest product measured in the same run.
Ours are the layers of `egmae_jax.models.layers`, each as a program of its own: in a network the
compiler joins some of them with their neighbours. The depthwise convolution has
`benchmarks.depthwise`.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import torch
import torch.nn.functional as F

from benchmarks import timing
from egmae_jax.models.kernels import operations
from egmae_jax.models.layers import LayerNorm, Linear

SHAPES = "56x96,28x192,14x384,7x768"  # of ConvNeXt-Tiny's stages at 224 pixels: height, channels
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure(rows: int, channels: int, dtype: str, rounds: int, repeats: int) -> dict[str, Any]:
    """Returns the milliseconds of each operation on [rows, channels]; GELU has 4 * channels."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32), dtype)

    x, wide = array(rows, channels), array(rows, 4 * channels)
    kernel, bias = array(channels, 4 * channels), array(4 * channels)
    compared: dict[str, tuple[Callable, Callable, tuple[jax.Array, ...]]] = {
        "GELU": (operations.gelu, F.gelu, (wide,)),
        "LayerNorm": (
            lambda x, scale, bias: LayerNorm().apply({"params": {"scale": scale, "bias": bias}}, x),
            lambda x, *affine: F.layer_norm(x, x.shape[-1:], *affine, eps=1e-6),
            (x, array(channels), array(channels)),
        ),
        "product": (
            lambda x, kernel, bias: Linear(kernel.shape[1], x.dtype).apply(
                {"params": {"kernel": kernel, "bias": bias}}, x
            ),
            lambda x, kernel, bias: torch.addmm(bias, x, kernel),
            (x, kernel, bias),
        ),
    }
    result = {}
    for name, (ours, theirs, arguments) in compared.items():
        weight = jax.eval_shape(ours, *arguments)
        weight = array(*weight.shape)
        runs = _ours(ours, arguments, weight, repeats) | _theirs(theirs, arguments, weight, repeats)
        for run in runs.values():
            jax.block_until_ready(run())
        result[name] = timing.median_ms(runs, rounds, repeats)
    return result


def _ours(function, arguments, weight, repeats):
    def both(weight, *arguments):
        value, gradients = jax.vjp(function, *arguments)
        return value, gradients(weight)

    forward = timing.repeated(function, repeats)
    both = timing.repeated(both, repeats)
    return {
        "ours forward": lambda: forward(*arguments),
        "ours both": lambda: both(weight, *arguments),
    }


def _theirs(function, arguments, weight, repeats):
    def tensor(x):
        values = torch.from_numpy(np.array(x.astype(jnp.float32)))
        return values.to(DEVICE, getattr(torch, str(x.dtype)))

    leaves = [tensor(x).requires_grad_() for x in arguments]
    weight = tensor(weight)

    def wait():
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    def forward():
        with torch.no_grad():
            for _ in range(repeats):
                function(*leaves)
        wait()

    def both():
        for _ in range(repeats):
            torch.autograd.grad(function(*leaves), leaves, weight)
        wait()

    return {"PyTorch forward": forward, "PyTorch both": both}


def floors(rows: int, channels: int, dtype: str, ceilings: dict[str, float]) -> dict[str, Any]:
    """Returns lower bounds in milliseconds, from the bytes moved and the products."""
    array = rows * channels * jnp.dtype(dtype).itemsize / ceilings["copy_bytes_per_s"]
    product = 8 * rows * channels**2 / ceilings["product_flops_per_s"]
    # Forward reads and writes one array; the gradient reads two more and writes one.
    return {
        "GELU": [1e3 * 4 * array * n for n in (2, 5)],
        "LayerNorm": [1e3 * array * n for n in (2, 5)],
        "product": [1e3 * product * n for n in (1, 3)],
    }


def main(argv: list[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    repeats = timing.default_repeats()
    ceilings = {
        "copy_bytes_per_s": timing.copy_bandwidth(arguments.rounds),
        "product_flops_per_s": timing.product_flops(arguments.dtype, arguments.rounds),
    }
    columns = ("ours forward", "PyTorch forward", "ours both", "PyTorch both")
    table = rich.table.Table("", "ms", *columns, "floor")
    result: dict[str, Any] = dict(ceilings)
    for name in arguments.shapes.split(","):
        height, channels = map(int, name.split("x"))
        rows = arguments.batch * height * height
        figures = measure(rows, channels, arguments.dtype, arguments.rounds, repeats)
        lowest = floors(rows, channels, arguments.dtype, ceilings)
        for index, (operation, row) in enumerate(figures.items()):
            cells = [f"{row[column]:.3g}" for column in columns]
            floor = " / ".join(f"{value:.2g}" for value in lowest[operation])
            table.add_row("" if index else name, operation, *cells, floor)
        table.add_section()
        result[name] = {"ms": figures, "floor_ms": lowest}
    console = rich.console.Console()
    console.print(table)
    console.print(
        f"{timing.machine()}, torch {torch.__version__}, batch {arguments.batch}, "
        f"{arguments.dtype}; a copy moves {ceilings['copy_bytes_per_s'] / 1e9:.0f} GB/s, a "
        f"product reaches {ceilings['product_flops_per_s'] / 1e9:.0f} GFLOP/s"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
