"""Forms of the 7x7 depthwise convolution and its gradients, compared with memory bandwidth.

python -m benchmarks.depthwise [--batch=16] [--dtype=float32] [--shapes=56x96,28x192,14x384,7x768] \
    [--forms=library,grouped,shifted,pallas,pytorch] [--rounds=5] [--repeats=100] [--json=FILE]

Times are of one application, medians of rounds in which the forms take turns; on a GPU a program
applies it `--repeats` times. The floor is the bytes that must be read and written, over the
bandwidth of a large copy in the same run; what fits a GPU's second-level cache can be faster. Every
result is first compared with `shifted` in float32. The Pallas form is for GPUs; on CPU, where it is
interpreted, it is timed only if `--forms` names it.
"""

import argparse
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from jax import lax

from benchmarks import timing
from egmae_jax.models.kernels.depthwise import depthwise_conv

SIZE = 7
SHAPES = "56x96,28x192,14x384,7x768"  # of ConvNeXt-Tiny's stages at 224 pixels: height, channels
WORKS = ("forward", "input_gradient", "kernel_gradient")
TOLERANCE = 0.02  # of the largest value; a GPU multiplies float32 as TF32

Conv = Callable[[jax.Array, jax.Array], jax.Array]


def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves by XLA's grouped convolution, which is cuDNN's on a GPU."""
    padding = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _with_gradients(conv: Conv, kernel_gradient: Callable[..., jax.Array]) -> Conv:
    """Adds a backward rule to a convolution: correlation with the kernel rotated by 180 degrees."""
    function = jax.custom_vjp(conv)

    def backward(residuals, gradient):
        x, kernel = residuals
        by_kernel = kernel_gradient(x, gradient, kernel.shape[0])
        return conv(gradient, kernel[::-1, ::-1]), by_kernel.astype(kernel.dtype)

    function.defvjp(lambda x, kernel: (conv(x, kernel), (x, kernel)), backward)
    return function


# Shifted multiply-adds


def _shifts(x: jax.Array, size: int) -> list[jax.Array]:
    """Returns the K*K shifted views of the zero-padded image, by rows of the kernel."""
    padding, (height, width) = size // 2, x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]


def _shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    taps = kernel.astype(jnp.float32).reshape(-1, x.shape[-1])
    return sum(
        view * tap for view, tap in zip(_shifts(x, kernel.shape[0]), taps, strict=True)
    ).astype(x.dtype)


def _shifted_kernel_gradient(x: jax.Array, gradient: jax.Array, size: int) -> jax.Array:
    gradient = gradient.astype(jnp.float32)
    sums = [(view * gradient).sum(axis=(0, 1, 2)) for view in _shifts(x, size)]
    return jnp.stack(sums).reshape(size, size, 1, -1)


shifted = _with_gradients(_shifted, _shifted_kernel_gradient)


# Pallas, imported where it is used: a version of JAX without Triton should fail there alone


def _pallas(x: jax.Array, kernel: jax.Array) -> jax.Array:
    from benchmarks import depthwise_pallas

    return depthwise_pallas.conv(x, kernel)


def _pallas_kernel_gradient(x: jax.Array, gradient: jax.Array, size: int) -> jax.Array:
    from benchmarks import depthwise_pallas

    return depthwise_pallas.kernel_gradient(x, gradient, size)


pallas = _with_gradients(_pallas, _pallas_kernel_gradient)


def library(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves by the form that the models use."""
    return depthwise_conv(x, kernel, jnp.zeros(x.shape[-1], x.dtype))


FORMS: dict[str, Conv] = {
    "library": library,
    "grouped": grouped,
    "shifted": shifted,
    "pallas": pallas,
}


def works_of(conv: Conv) -> dict[str, Callable[..., jax.Array]]:
    """Returns the convolution and its gradients, as functions of (x, kernel, output gradient)."""

    def gradients(x, kernel, gradient):
        return jax.vjp(conv, x, kernel)[1](gradient)

    return {
        "forward": lambda x, kernel, gradient: conv(x, kernel),
        "input_gradient": lambda *arrays: gradients(*arrays)[0],
        "kernel_gradient": lambda *arrays: gradients(*arrays)[1],
    }


def pytorch_run(work: str, arrays: tuple[jax.Array, ...], repeats: int) -> Callable[[], Any]:
    """Returns `repeats` runs of PyTorch's convolution or a gradient; on a GPU as one CUDA graph."""
    import torch

    on_gpu = jax.default_backend() == "gpu"
    torch.backends.cudnn.benchmark = True
    x, kernel, gradient = (
        torch.from_numpy(np.array(array, np.float32))
        .permute(order)
        .to("cuda" if on_gpu else "cpu", getattr(torch, array.dtype.name))
        .contiguous(memory_format=torch.channels_last)
        for array, order in zip(arrays, ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)), strict=True)
    )
    channels, padding = x.shape[1], [kernel.shape[-1] // 2] * 2

    def backward(which: int) -> torch.Tensor:
        wanted = [which == 0, which == 1, False]
        settings = [1, 1], padding, [1, 1], False, [0, 0], channels, wanted
        return torch.ops.aten.convolution_backward(gradient, x, kernel, None, *settings)[which]

    def run() -> torch.Tensor:
        for _ in range(repeats):
            if work == "forward":
                result = torch.nn.functional.conv2d(x, kernel, padding=padding, groups=channels)
            else:
                result = backward(("input_gradient", "kernel_gradient").index(work))
        return result

    return _captured(run) if on_gpu else run


def _captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """Returns the run as a CUDA graph, so that no time passes between its kernels."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()  # chooses cuDNN's algorithms, which cannot be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = run()

    def replay() -> torch.Tensor:
        graph.replay()
        torch.cuda.synchronize()
        return result

    return replay


def _run_of(form: str, work: str, arrays: tuple[jax.Array, ...], repeats: int):
    """Returns the run of a form and its result."""
    if form == "pytorch":
        run = pytorch_run(work, arrays, repeats)
        order = (2, 3, 1, 0) if work == "kernel_gradient" else (0, 2, 3, 1)
        return run, run().permute(order).float().cpu().numpy()
    program = timing.repeated(works_of(FORMS[form])[work], repeats)
    return lambda: program(*arrays), np.asarray(program(*arrays)[-1], np.float32)


def measure(
    shape: tuple[int, ...], forms: list[str], dtype: str, rounds: int, repeats: int
) -> dict[str, dict[str, float | str]]:
    """Returns the milliseconds of each form and work, or the reason why it did not run.

    Args:
        shape: [B, H, W, C].
        forms: names of `FORMS`, and 'pytorch'.
        dtype: of all arrays.
        rounds: the median is over so many.
        repeats: applications in one program.
    """
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((SIZE, SIZE, 1, shape[-1]), np.float32) / SIZE
    x, gradient = rng.standard_normal((2, *shape), np.float32)
    arrays = tuple(jnp.asarray(array, dtype) for array in (x, kernel, gradient))
    exact = tuple(array.astype(jnp.float32) for array in arrays)
    table: dict[str, dict[str, float | str]] = {form: {} for form in forms}
    for work in WORKS:
        expected = np.asarray(jax.jit(works_of(shifted)[work])(*exact))
        runs = {}
        for form in forms:
            try:
                run, result = _run_of(form, work, arrays, repeats)
                error = np.abs(result - expected).max() / np.abs(expected).max()
                if not error < TOLERANCE:
                    raise ValueError(f"differs by {error:.2g} of the largest value")
                runs[form] = run
            except Exception as problem:  # one form that fails should not end the others
                table[form][work] = timing.failure(problem)
        for form, value in timing.median_ms(runs, rounds, repeats).items():
            table[form][work] = value
    return table


def default_forms() -> list[str]:
    """Returns the forms that are timed by default on this platform."""
    forms = [name for name in FORMS if name != "pallas" or jax.default_backend() == "gpu"]
    return [*forms, "pytorch"] if importlib.util.find_spec("torch") else forms


def main(argv: list[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--shapes", default=SHAPES, help="HEIGHTxCHANNELS,...")
    parser.add_argument("--forms", help="of " + ", ".join([*FORMS, "pytorch"]))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=timing.default_repeats())
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    forms = arguments.forms.split(",") if arguments.forms else default_forms()
    bandwidth = timing.copy_bandwidth(arguments.rounds)
    table = rich.table.Table("", "", *(f"{work.replace('_', ' ')} ms" for work in WORKS))
    milliseconds = {}
    for name in arguments.shapes.split(","):
        height, channels = map(int, name.split("x"))
        shape = (arguments.batch, height, height, channels)
        rows = measure(shape, forms, arguments.dtype, arguments.rounds, arguments.repeats)
        # Two arrays of the shape are read or written, whatever the work; kernels are small.
        array_bytes = math.prod(shape) * jnp.dtype(arguments.dtype).itemsize
        floor = 1e3 * 2 * array_bytes / bandwidth
        milliseconds[name] = rows | {"floor": dict.fromkeys(WORKS, floor)}
        for index, (form, row) in enumerate(milliseconds[name].items()):
            cells = (row[w] if isinstance(row[w], str) else f"{row[w]:.3g}" for w in WORKS)
            table.add_row("" if index else name, form, *cells)
        table.add_section()
    console = rich.console.Console()
    console.print(table)
    console.print(
        f"{timing.machine()}, batch {arguments.batch}, {arguments.dtype}; "
        f"a copy moves {bandwidth / 1e9:.0f} GB/s"
    )
    if arguments.json:
        result = {
            "machine": timing.machine(),
            "batch": arguments.batch,
            "dtype": arguments.dtype,
            "copy_bytes_per_s": bandwidth,
            "ms": milliseconds,
        }
        Path(arguments.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
