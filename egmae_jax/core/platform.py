"""How programs are compiled: by the options that are fastest on the platform.

XLA's CPU compiler fuses an array that several others are computed from into each of them, and so
computes an expensive one several times, in loops that no longer vectorise. `materialize` marks what
must be computed once. The mark is an optimization barrier, which the CPU compiler drops before it
fuses unless the options of `jit` tell it not to.
"""

import contextlib
import contextvars
import functools
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

_CPU_OPTIONS = {
    "xla_disable_hlo_passes": ",".join(
        (
            "cse_barrier_expander",  # removes optimization barriers
            "small-while-loop-hoisting",  # crashes on barriers over several arrays
            # A tenth of the time that compiling takes, for nothing: no step is faster by them.
            "simplify-while-loops",
            "while-loop-invariant-code-motion",
            "post_scatter_expansion_simplification",
        )
    ),
    # YNNPACK's fusions are slower than XLA's own reductions and matrix products at our shapes, and
    # take in what should be computed once.
    "xla_cpu_experimental_ynn_fusion_type": "",
    "xla_cpu_prefer_vector_width": 512,  # bits; of no effect where the processor has fewer
}


# What functions are traced for, where that is not the machine's own platform.
_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("_target", default=None)
# Whether backward rules of `custom_vjp` count: within `jit`.
_own_gradients = contextvars.ContextVar("_own_gradients", default=False)


def for_cpu() -> bool:
    """Whether what is being traced will run on a CPU and nowhere else."""
    return (_target.get() or jax.default_backend()) == "cpu"


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """What is traced within runs on every platform, as an exported program must.

    A batch may then be of symbolic size.
    """
    with tracing_for("any"):
        yield


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """What is traced within gets the forms of a platform, 'cpu', 'gpu' or 'tpu', wherever it runs.

    So a CPU can check them. What JAX has traced before, for another platform, it uses again unless
    `jax.clear_caches()` is called.
    """
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def by_platform(*args: Any, cpu: Callable, others: Callable) -> Any:
    """`cpu(*args)` on a CPU, `others(*args)` elsewhere; a portable program holds both."""
    if _target.get() != "any":
        return cpu(*args) if for_cpu() else others(*args)

    def on_cpu(*args):
        with tracing_for("cpu"):
            return cpu(*args)

    return lax.platform_dependent(*args, cpu=on_cpu, default=others)


_EMPTY_MESH = jax.sharding.AbstractMesh((), ())


def jit(function: Callable, **kwargs: Any) -> Any:
    """`jax.jit` with the platform's options, for whole programs; functions within need none.

    A program that is compiled by plain `jax.jit` gives the same results, on CPU more slowly.
    Call it only when the devices may be initialised.
    """

    @functools.wraps(function)
    def traced(*args, **named):
        token = _own_gradients.set(True)
        try:
            # JAX traces backward rules in the empty mesh; in another, all would be traced twice.
            with jax.sharding.use_abstract_mesh(_EMPTY_MESH):
                return function(*args, **named)
        finally:
            _own_gradients.reset(token)

    return jax.jit(traced, compiler_options=_options(), **kwargs)


@contextlib.contextmanager
def compilation_cache(folder: Path) -> Iterator[None]:
    """Keeps compiled programs in a folder, unless JAX_COMPILATION_CACHE_DIR names another."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        yield
        return
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(folder))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


DETERMINISTIC = "xla_gpu_deterministic_ops"  # a flag of XLA's
_BOOLEANS = {
    "": "true",
    "1": "true",
    "0": "false",
}  # how else XLA takes them, a bare flag being true


def make_deterministic() -> None:
    """Asks for GPU programs that compute the same bits every time; before a device is used.

    Without it XLA times several kernels and takes the fastest, which need not be the same in the
    next process, and some add up in no fixed order. A CPU computes the same bits anyway.
    """
    os.environ["XLA_FLAGS"] = f"{_flag_text('XLA_FLAGS')} --{DETERMINISTIC}=true"


def is_deterministic() -> bool:
    """Whether such programs are asked for."""
    return flags_of("XLA_FLAGS").get(DETERMINISTIC) == "true"


def flags_of(variable: str) -> dict[str, str]:
    """The flags in an environment variable, such as XLA_FLAGS, without their dashes.

    As XLA reads them: the last of equal names counts, and a text that begins with no dash names a
    file of flags.
    """
    text = _flag_text(variable)
    try:
        words = shlex.split(text)
    except ValueError:  # an open quote; XLA says so itself
        words = text.split()
    pairs = (word.lstrip("-").partition("=") for word in words if word.startswith("-"))
    return {name: _BOOLEANS.get(value, value) for name, _, value in pairs}


def _flag_text(variable: str) -> str:
    text = os.environ.get(variable, "").strip()
    if not text or text.startswith("-"):
        return text
    try:
        return Path(text).read_text(errors="replace")
    except OSError:  # which XLA passes over, too
        return ""


def subroutine(function: Callable, static_argnames: Sequence[str] = ()) -> Callable:
    """`jax.jit` for a part that a program calls many times with the same shapes, such as a block.

    It is traced once. On CPU, where optimising it takes longest, that is done once, too: the
    compiler is told not to merge the calls into the program until it has done so.
    """

    @functools.partial(jax.jit, static_argnums=0, static_argnames=static_argnames)
    def traced(forms, *args, **named):
        del forms  # makes JAX trace anew for another platform
        with set_xla_metadata(inlineable="true"):  # what is called from within
            return function(*args, **named)

    @functools.wraps(function)
    def call(*args, **named):
        with set_xla_metadata(inlineable="false" if for_cpu() else "true"):
            return traced((_target.get(), _own_gradients.get()), *args, **named)

    return call


class custom_vjp:
    """`jax.custom_vjp` whose backward rule counts only in what `jit` of this module compiles.

    Elsewhere JAX derives the function itself, so that `jax.jvp` and `jax.hessian` work on the
    networks, which no function with a backward rule of its own allows.
    """

    def __init__(self, function: Callable, nondiff_argnums: Sequence[int] = ()):
        functools.update_wrapper(self, function)
        self._function = function
        self._with_rule = jax.custom_vjp(function, nondiff_argnums=nondiff_argnums)

    def defvjp(self, forward: Callable, backward: Callable) -> None:
        """Sets the rule, as `jax.custom_vjp.defvjp` does."""
        self._with_rule.defvjp(forward, backward)

    def __call__(self, *args: Any) -> Any:
        return (self._with_rule if _own_gradients.get() else self._function)(*args)


@functools.cache
def _options() -> dict[str, Any]:
    """The `_CPU_OPTIONS` that this version of XLA takes; none on other platforms."""
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _CPU_OPTIONS.items() if _works({name: value})}


def _works(options: dict[str, Any]) -> bool:
    def program(x):
        return lax.optimization_barrier(jnp.exp(x)) + 1

    try:
        return float(jax.jit(program, compiler_options=options)(0.0)) == 2.0
    except (RuntimeError, ValueError):  # JAX's own errors are RuntimeErrors
        return False


def materialize(tree: Any) -> Any:
    """Returns the same arrays, written to memory before anything is computed from them.

    On other platforms than the CPU nothing is done: their compilers fuse well.
    """
    return lax.optimization_barrier(tree) if for_cpu() else tree
