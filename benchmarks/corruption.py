"""Forms of the patch entropy and of the noise, and their share of a pre-training step.

python -m benchmarks.corruption [--batch=16] [--image_size=224] [--forms=library,sort,...] \
    [--rounds=5] [--repeats=100] [--step_ms=MS | --step --model=convnext_tiny] [--json=FILE]

Entropies are of patches of 16x16 pixels, each channel for itself, natural logarithm. Times are of
one batch, medians of rounds that alternate between the forms; on a GPU a program computes it
`--repeats` times. Every form is first compared with the library's. The loop over patches is
scikit-image's shannon_entropy on `--loop_images` images, scaled to the batch; the goal is to be 100
times as fast. The share of a step, given or measured, should be below 2 % on a GPU, 5 % on a CPU.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from jax import lax
from jax.scipy.special import xlogy

from benchmarks import timing
from egmae_jax.method.corruption import corrupt
from egmae_jax.method.entropy import (
    _count_by_comparison,
    _count_by_scatter,
    patch_entropy,
    patchify,
)

PATCH = 16
TOLERANCE = 1e-5


def make_images(batch: int, size: int) -> dict[str, np.ndarray]:
    """Returns images, uint8 [B, S, S, 3]: smooth with little noise, noise alone, or mostly dark."""
    rng = np.random.default_rng(0)
    shape = (batch, size, size, 3)
    coarse = rng.random((batch, size // PATCH, size // PATCH, 3), np.float32)
    smooth = 255 * np.asarray(jax.image.resize(coarse, shape, "cubic"))
    natural = np.clip(smooth + rng.normal(0, 2, shape), 0, 255).astype(np.uint8)
    return {
        "natural": natural,
        "noise": rng.integers(0, 256, shape, np.uint8),
        "dark": np.where(natural > 200, natural, 0).astype(np.uint8),
    }


# Forms of the entropy: of each row of uint8 [R, N], float32 [R]


def _of_counts(counts: jax.Array, total: int) -> jax.Array:
    p = counts.astype(jnp.float32) / total
    return -xlogy(p, p).sum(axis=-1)


def scatter(values: jax.Array) -> jax.Array:
    """Entropy from a histogram by scattered additions, as the package computes it on a GPU."""
    return _of_counts(_count_by_scatter(values.astype(jnp.int32), 256), values.shape[-1])


def sort(values: jax.Array) -> jax.Array:
    """Entropy without a histogram, from the lengths of runs of equal sorted values."""
    values = jnp.sort(values, axis=-1)
    total = values.shape[-1]
    position = jnp.arange(total)
    change = values[:, 1:] != values[:, :-1]
    edge = jnp.ones((len(values), 1), bool)
    first, last = jnp.concatenate([edge, change], 1), jnp.concatenate([change, edge], 1)
    start = lax.cummax(jnp.where(first, position, 0), axis=1)
    p = (position - start + 1).astype(jnp.float32) / total
    return -jnp.where(last, xlogy(p, p), 0).sum(axis=-1)


def compare(values: jax.Array) -> jax.Array:
    """Entropy from a histogram by comparing every value with every bin at once."""
    equal = values[:, None, :] == jnp.arange(256, dtype=jnp.uint8)[:, None]
    return _of_counts(equal.sum(axis=-1, dtype=jnp.int32), values.shape[-1])


def compare_parts(values: jax.Array) -> jax.Array:
    """The same for some values at a time, counted in 8 bits, as the package does on a CPU."""
    return _of_counts(_count_by_comparison(values, 256), values.shape[-1])


def nibbles(values: jax.Array) -> jax.Array:
    """Entropy from a 16x16 histogram: the product of one-hot upper and lower halves of the bits."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    digits = jnp.arange(16, dtype=jnp.uint8)
    upper = ((values >> 4)[..., None] == digits).astype(dtype)  # [R, N, 16]
    lower = ((values & 15)[..., None] == digits).astype(dtype)
    counts = jnp.einsum("rna,rnb->rab", upper, lower, preferred_element_type=jnp.float32)
    return _of_counts(counts.reshape(-1, 256), values.shape[-1])


def _of_images(form: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Returns the entropy [B, h, w] by a form whose input are rows of values."""
    values = patchify(images, PATCH).swapaxes(-1, -2)  # [B, h, w, C, N]
    return form(values.reshape(-1, values.shape[-1])).reshape(values.shape[:-1]).mean(axis=-1)


FORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "library": functools.partial(patch_entropy, patch_size=PATCH),
    **{
        form.__name__: functools.partial(_of_images, form)
        for form in (scatter, sort, compare, compare_parts, nibbles)
    },
}


def entropy_times(
    images: np.ndarray, forms: list[str], rounds: int, repeats: int
) -> dict[str, float | str]:
    """Returns the milliseconds of each form, or the reason why it did not run."""
    pixels = jnp.asarray(images)
    expected = np.asarray(FORMS["library"](pixels))
    times: dict[str, float | str] = dict.fromkeys(forms, "")
    runs = {}
    for form in forms:
        try:
            program = timing.repeated(FORMS[form], repeats)
            error = np.abs(np.asarray(program(pixels)[-1]) - expected).max()
            if not error < TOLERANCE:
                raise ValueError(f"differs by {error:.2g}")
            runs[form] = functools.partial(program, pixels)
        except Exception as problem:  # one form that fails should not end the others
            times[form] = timing.failure(problem)
    return times | timing.median_ms(runs, rounds, repeats)


def loop_ms(images: np.ndarray, batch: int) -> float:
    """Returns the milliseconds of scikit-image's entropy by patch, scaled to a batch."""
    from skimage.measure import shannon_entropy

    size = images.shape[1]
    corners = range(0, size, PATCH)
    started = time.perf_counter()
    for image, row, column in itertools.product(images, corners, corners):
        patch = image[row : row + PATCH, column : column + PATCH]
        np.mean([shannon_entropy(patch[..., c], base=math.e) for c in range(patch.shape[-1])])
    return 1e3 * (time.perf_counter() - started) * batch / len(images)


# Forms of the noise: float32 of the shape, standard normal


def _normal_flat(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns normal values of a shape, with the bits of jax.random.normal."""
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


def _halves(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns integers below 2^16, float32 [2, n/2]: both halves of half as many random words."""
    words = jax.random.bits(key, (math.prod(shape) // 2,))
    return jnp.stack([words >> 16, words & 0xFFFF]).astype(jnp.float32)


def _erf_inv_16(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns normal values from 16 random bits by the inverse distribution; at most 4.2."""
    uniform = (_halves(key, shape) + 0.5) * 2.0**-15 - 1
    return math.sqrt(2) * lax.erf_inv(uniform).reshape(shape)


def _box_muller_16(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns pairs of normal values from a radius and an angle of 16 random bits; at most 4.9."""
    first, second = _halves(key, shape)
    radius = jnp.sqrt(-2 * jnp.log((first + 0.5) * 2.0**-16))
    angle = second * (2 * math.pi * 2.0**-16)
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)]).reshape(shape)


# All depend on the key alone and not on how arrays are sharded; the values of rbg and unsafe_rbg
# depend on the platform, too. The library's is 'normal, flat'.
NOISES: dict[str, tuple[str, Callable[..., jax.Array]]] = {
    "normal": ("threefry2x32", jax.random.normal),
    "normal, flat": ("threefry2x32", _normal_flat),
    "erf_inv, 16 bits": ("threefry2x32", _erf_inv_16),
    "Box-Muller, 16 bits": ("threefry2x32", _box_muller_16),
    "normal, philox": ("philox4x32", jax.random.normal),
    "normal, rbg": ("rbg", jax.random.normal),
    "normal, unsafe_rbg": ("unsafe_rbg", jax.random.normal),
}


def noise_times(shape: tuple[int, ...], rounds: int, repeats: int) -> dict[str, float | str]:
    """Returns the milliseconds of each form of the noise."""
    times: dict[str, float | str] = dict.fromkeys(NOISES, "")
    runs = {}
    for name, (generator, normal) in NOISES.items():
        try:
            program = timing.repeated(functools.partial(normal, shape=shape), repeats)
            key = jax.random.key(0, impl=generator)
            variance = float(jnp.var(program(key)[-1]))
            if not abs(variance - 1) < 8 * math.sqrt(2 / math.prod(shape)):
                raise ValueError(f"has a variance of {variance:.3f}")
            runs[name] = functools.partial(program, key)
        except Exception as problem:  # one form that fails should not end the others
            times[name] = timing.failure(problem)
    return times | timing.median_ms(runs, rounds, repeats)


def corruption_times(images: np.ndarray, rounds: int, repeats: int) -> dict[str, float]:
    """Returns the milliseconds of `corrupt` alone, and with the entropy as in a step."""
    key, pixels = jax.random.key(0), jnp.asarray(images)

    def corrupted(key, pixels, entropy):
        normalised = pixels.astype(jnp.float32) / 127.5 - 1
        return corrupt(key, normalised, entropy, kind="entropy_noise", patch_size=PATCH)

    def both(key, pixels):
        return corrupted(key, pixels, FORMS["library"](pixels))

    programs = {
        "corrupt": (timing.repeated(corrupted, repeats), key, pixels, FORMS["library"](pixels)),
        "entropy and corrupt": (timing.repeated(both, repeats), key, pixels),
    }
    runs = {name: functools.partial(*program) for name, program in programs.items()}
    for run in runs.values():
        jax.block_until_ready(run())  # compiles
    return timing.median_ms(runs, rounds, repeats)


def pretrain_step_ms(model: str, image_size: int, batch: int, rounds: int) -> float:
    """Returns the milliseconds of a whole pre-training step (`benchmarks.train_step`)."""
    from benchmarks import inputs, programs, train_step

    steps = 2  # in one dispatch
    config = programs.make_config(model, image_size)
    images = inputs.make_images(batch, image_size)
    run = train_step.OurTraining("pretrain", config, images, steps)
    run()
    return timing.median_ms({"step": run}, rounds, steps)["step"]


def main(argv: list[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=timing.default_repeats())
    parser.add_argument("--loop_images", type=int, default=1)
    parser.add_argument("--step_ms", type=float, help="of a pre-training step, if known")
    parser.add_argument("--step", action="store_true", help="measure a pre-training step")
    parser.add_argument("--model", default="convnext_tiny", help="of the step")
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    rounds, repeats, batch = arguments.rounds, arguments.repeats, arguments.batch
    images = make_images(batch, arguments.image_size)
    forms = arguments.forms.split(",")
    entropies = {
        name: entropy_times(array, forms, rounds, repeats) for name, array in images.items()
    }
    natural = images["natural"]
    result: dict[str, Any] = {
        "machine": timing.machine(),
        "batch": batch,
        "image_size": arguments.image_size,
        "entropy_ms": entropies,
        "noise_ms": noise_times(natural.shape, rounds, repeats),
        "corruption_ms": corruption_times(natural, rounds, repeats),
    }
    table = rich.table.Table("", *(f"{name} ms" for name in images))
    for form in forms:
        table.add_row(f"entropy: {form}", *(_cell(times[form]) for times in entropies.values()))
    if importlib.util.find_spec("skimage"):
        count = arguments.loop_images
        loops = {name: loop_ms(array[:count], batch) for name, array in images.items()}
        result["loop_ms"] = loops
        table.add_row("entropy: scikit-image, by patches", *map(_cell, loops.values()))
        if "library" in forms:
            result["loop_ratio"] = {
                name: loops[name] / entropies[name]["library"] for name in images
            }
            table.add_row("  over the library's", *map(_cell, result["loop_ratio"].values()))
    table.add_section()
    for name, value in result["noise_ms"].items():
        table.add_row(f"noise: {name}", _cell(value))
    table.add_section()
    for name, value in result["corruption_ms"].items():
        table.add_row(name, _cell(value))
    step_ms = arguments.step_ms
    if arguments.step:
        step_ms = pretrain_step_ms(arguments.model, arguments.image_size, batch, rounds)
    if step_ms:
        result["step_ms"] = step_ms
        result["share_of_step"] = result["corruption_ms"]["entropy and corrupt"] / step_ms
        table.add_row("  of a pre-training step", f"{100 * result['share_of_step']:.2f} %")
    console = rich.console.Console()
    console.print(table)
    console.print(
        f"{timing.machine()}, batch {batch}, {arguments.image_size} pixels"
        + (f", step {step_ms:.4g} ms" if step_ms else "")
    )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2))


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


if __name__ == "__main__":
    main()
