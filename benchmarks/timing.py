"""Shared by benchmarks of single operations: repetition in one program, alternating rounds."""

import collections
import math
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from egmae_jax.core import platform


def default_repeats() -> int:
    """Returns how often an operation is repeated in one dispatch, which is costly on a GPU."""
    return 1 if jax.default_backend() == "cpu" else 100


def repeated(function: Callable[..., Any], repeats: int) -> Callable[..., Any]:
    """Returns a program that applies `function` to the same arguments `repeats` times.

    Optimization barriers make each application wait for the one before it. A turn of the loop has
    several of them, since counting takes a GPU a kernel of its own.

    Returns:
        A compiled function with the results of the last turn.
    """
    per_turn = math.gcd(repeats, 5)

    def turn(_, carry):
        arguments, results = carry[0], []
        for _ in range(per_turn):
            result = function(*arguments)
            arguments, result = lax.optimization_barrier((arguments, result))
            results.append(result)
        return arguments, results

    def program(*arguments):
        if repeats == 1:
            return [function(*arguments)]
        shapes = jax.eval_shape(function, *arguments)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        # All results are returned, so that none is left out.
        return lax.fori_loop(0, repeats // per_turn, turn, (arguments, [zeros] * per_turn))[1]

    return platform.jit(program)


def median_ms(
    runs: Mapping[str, Callable[[], Any]], rounds: int, repeats: int = 1
) -> dict[str, float]:
    """Returns the milliseconds of one application, as medians over alternating rounds.

    Their order is drawn anew each round: other libraries' threads spin for a while after their
    work, at the cost of what comes next.

    Args:
        runs: what to time, each doing `repeats` applications. JAX's results are waited for; other
            libraries' runs must wait themselves. All have run before.
        rounds: how often each is run.
        repeats: applications in a run.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    shuffled = random.Random(0)
    for _ in range(rounds):
        for name in shuffled.sample(list(runs), len(runs)):
            started = time.perf_counter()
            jax.block_until_ready(runs[name]())
            times[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(values) / repeats for name, values in times.items()}


def copy_bandwidth(rounds: int) -> float:
    """Returns bytes/s read and written when 1 is added to a float32 array larger than caches."""
    repeats = 10
    add = repeated(lambda x: x + 1, repeats)
    x = jnp.zeros(2**25 if jax.default_backend() == "cpu" else 2**28, jnp.float32)
    jax.block_until_ready(add(x))
    return 2 * x.nbytes / (median_ms({"copy": lambda: add(x)}, rounds, repeats)["copy"] / 1e3)


def failure(error: Exception) -> str:
    """Returns the text of a table's cell for a form that does not run here."""
    lines = str(error).strip().splitlines()
    return f"failed: {lines[0][:80] if lines else type(error).__name__}"


def machine() -> str:
    """Returns the device and the version of JAX."""
    return f"{jax.devices()[0].device_kind}, jax {jax.__version__}"


def product_flops(dtype: str, rounds: int) -> float:
    """Returns the FLOP/s of a square matrix product."""
    repeats = 10
    side = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((side, side), dtype)
    product = repeated(lambda a, b: a @ b, repeats)
    jax.block_until_ready(product(x, x))
    milliseconds = median_ms({"product": lambda: product(x, x)}, rounds, repeats)["product"]
    return 2 * side**3 / (milliseconds / 1e3)


def ceilings(dtype: str, rounds: int) -> dict[str, float]:
    """Returns the rates that the device reaches for matrix products and memory."""
    return {
        "matrix_flops_per_s": product_flops(dtype, rounds),
        "copy_bytes_per_s": copy_bandwidth(rounds),
    }


def top_kernels(run: Callable[[], Any], steps: int, count: int = 20) -> dict[str, float]:
    """Returns the milliseconds a step of the longest kernels (GPU) or operations (CPU).

    Args:
        run: does `steps` steps and waits for them.
        steps: to divide by.
        count: how many to name.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        devices = [plane for plane in planes if plane.name.startswith("/device:")]
        totals: collections.Counter[str] = collections.Counter()
        for plane in devices or planes:
            for line in plane.lines:
                # A GPU's kernels are on its streams, and once more on lines that sum them up. A
                # CPU's threads also record Python ('$...') and the program as a whole.
                if devices and not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    if devices or re.fullmatch(r"[\w-]+(\.\d+)*", event.name):
                        totals[re.sub(r"(\.\d+)+$", "", event.name)] += event.duration_ns
    return {name: ns / 1e6 / steps for name, ns in totals.most_common(count)}
