"""Compilation with the fastest options of each platform (CPU, GPU, TPU).

If several arrays are computed from one, XLA's CPU compiler fuses that one into each of them: it is
computed several times, in loops that are no longer vectorised. `materialize` prevents this by an
optimization barrier. By default the CPU compiler removes barriers before fusion; the options of
`jit` keep them.
"""

import contextlib
import contextvars
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import Mesh

_CPU_OPTIONS = {
    "xla_disable_hlo_passes": ",".join(
        (
            "cse_barrier_expander",  # removes optimization barriers
            "small-while-loop-hoisting",  # crashes on barriers over several arrays
            # These take a tenth of the compile time, and no step is faster by them.
            "simplify-while-loops",
            "while-loop-invariant-code-motion",
            "post_scatter_expansion_simplification",
        )
    ),
    # YNNPACK's fusions are slower than XLA's own reductions and matrix products at our shapes, and
    # they recompute arrays that should be computed once.
    "xla_cpu_experimental_ynn_fusion_type": "",
    "xla_cpu_prefer_vector_width": 512,  # bits; no effect on processors with shorter vectors
}


# Platform that functions are traced for; None: the platform of this machine.
_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("_target", default=None)
# Number of devices of the other machine that programs are compiled for; 0: this machine's.
_elsewhere = contextvars.ContextVar("_elsewhere", default=0)
# Devices that the batches of the program being traced are split over; None: not known.
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("_mesh", default=None)
# Whether the backward rules of `custom_vjp` are used; only within `jit`.
_use_backward_rules = contextvars.ContextVar("_use_backward_rules", default=False)


def for_cpu() -> bool:
    """Whether the program that is being traced will run on CPUs only."""
    return target() == "cpu"


def target() -> str:
    """Returns the platform that is traced for: 'cpu', 'gpu', 'tpu', or 'any' of them."""
    return _target.get() or jax.default_backend()


def device_count() -> int:
    """Returns the number of devices on all hosts of the machine that is compiled for."""
    return _elsewhere.get() or jax.device_count()


def for_gpu() -> bool:
    """Whether a whole program is traced by `jit` that will run on GPUs only."""
    return target() == "gpu" and within_jit()


def within_jit() -> bool:
    """Whether a whole program or step is traced, whose functions may have their own gradients."""
    return _use_backward_rules.get()


@contextlib.contextmanager
def over(mesh: Mesh) -> Iterator[None]:
    """Traces functions within the block for batches that are split over a mesh."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def mesh() -> Mesh | None:
    """Returns the mesh of `over`."""
    return _mesh.get()


def runs_tpu_kernels() -> bool:
    """Whether a whole program is traced for TPUs and may run kernels in Pallas.

    The compiler cannot split these over several devices, but `sharding.by_device` can.
    """
    is_known = device_count() == 1 or mesh() is not None
    return target() == "tpu" and within_jit() and is_known


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Traces functions within the block for all platforms, for export.

    The batch size may be symbolic.
    """
    with tracing_for("any"):
        yield


@contextlib.contextmanager
def tracing_for(platform: str, *, elsewhere: int = 0) -> Iterator[None]:
    """Traces functions within the block as on another platform.

    A machine with a CPU can thus check the code for a GPU. JAX reuses functions that it has traced
    before for another platform unless `jax.clear_caches()` is called.

    Args:
        platform: 'cpu', 'gpu', 'tpu', or 'any' for a program that runs on all of them.
        elsewhere: number of devices if programs are also compiled for another machine, without the
            options of this machine's compiler; 0 compiles them for this one.
    """
    tokens = _target.set(platform), _elsewhere.set(elsewhere)
    try:
        yield
    finally:
        _target.reset(tokens[0])
        _elsewhere.reset(tokens[1])


def by_platform(*args: Any, cpu: Callable, others: Callable) -> Any:
    """Returns `cpu(*args)` on a CPU and `others(*args)` elsewhere.

    A program that is traced within `portable` contains both and chooses when it runs.
    """
    if _target.get() != "any":
        return cpu(*args) if for_cpu() else others(*args)

    def on_cpu(*args):
        with tracing_for("cpu"):
            return cpu(*args)

    return lax.platform_dependent(*args, cpu=on_cpu, default=others)


_EMPTY_MESH = jax.sharding.AbstractMesh((), ())


def jit(function: Callable, **kwargs: Any) -> Any:
    """Compiles a whole program, like `jax.jit`, with the platform's options.

    Plain `jax.jit` gives the same results, but runs more slowly on CPU. Calling this function
    initialises the devices.

    Args:
        function: the function to compile; functions that it calls need no `jit` of their own.
        **kwargs: further arguments of `jax.jit`.
    """

    @functools.wraps(function)
    def traced(*args, **named):
        # JAX traces backward rules in an empty mesh. With the same mesh here, it reuses traces.
        with jax.sharding.use_abstract_mesh(_EMPTY_MESH):
            return with_backward_rules(function)(*args, **named)

    return jax.jit(traced, compiler_options={} if _elsewhere.get() else _options(), **kwargs)


def with_backward_rules(function: Callable) -> Callable:
    """Decorates a training step: it has the forms of `jit` if it is compiled by `jax.jit`, too.

    Only gradients are taken in it, so functions may have their own, see `custom_vjp`.
    """

    @functools.wraps(function)
    def traced(*args, **named):
        token = _use_backward_rules.set(True)
        try:
            return function(*args, **named)
        finally:
            _use_backward_rules.reset(token)

    return traced


@contextlib.contextmanager
def compilation_cache(folder: Path) -> Iterator[None]:
    """Stores compiled programs in a folder unless JAX_COMPILATION_CACHE_DIR is set."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        yield
        return
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(folder))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


DETERMINISTIC = "xla_gpu_deterministic_ops"  # name of an XLA flag
# Other spellings of booleans that XLA accepts; a flag without a value is true.
_BOOLEANS = {"": "true", "1": "true", "0": "false"}


def make_deterministic() -> None:
    """Makes GPU programs bit-reproducible by an XLA flag; must be called before a device is used.

    Without the flag, XLA chooses the fastest kernels by timing them, so the choice may differ
    between processes, and some kernels sum in no fixed order. CPU programs are always reproducible.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{DETERMINISTIC}=true"


def is_deterministic() -> bool:
    """Whether XLA_FLAGS asks for bit-reproducible GPU programs, see `make_deterministic`."""
    return flags_of("XLA_FLAGS").get(DETERMINISTIC) == "true"


def flags_of(variable: str) -> dict[str, str]:
    """Parses the flags in an environment variable, such as XLA_FLAGS; the last of a name counts.

    Returns:
        The value of each flag by its name without dashes; booleans are 'true' or 'false'.
    """
    words = os.environ.get(variable, "").split()
    pairs = (word.lstrip("-").partition("=") for word in words if word.startswith("-"))
    return {name: _BOOLEANS.get(value, value) for name, _, value in pairs}


def subroutine(function: Callable, static_argnames: Sequence[str] = ()) -> Callable:
    """Makes a function whose calls with equal shapes are traced, and on a CPU compiled, only once.

    A network of equal blocks calls its kernels many times. `jax.jit` within a program shares the
    trace too, but not if the target platform has changed since, and XLA inlines its calls and then
    optimises each anew.

    Args:
        function: the function.
        static_argnames: names of its arguments that are static, as in `jax.jit`.
    """

    @functools.partial(jax.jit, static_argnums=0, static_argnames=static_argnames)
    def traced(trace_key, *args, **named):
        del trace_key  # only makes JAX trace again for another platform
        with set_xla_metadata(inlineable="true"):  # for the functions called within
            return function(*args, **named)

    @functools.wraps(function)
    def call(*args, **named):
        with set_xla_metadata(inlineable="false" if for_cpu() else "true"):
            return traced((_target.get(), _use_backward_rules.get(), _mesh.get()), *args, **named)

    return call


class custom_vjp:  # named and used as JAX's
    """`jax.custom_vjp` whose backward rule is used only within `jit` and `with_backward_rules`.

    The rules of the kernels are faster than JAX's derivatives, but a function with one has no
    forward-mode derivative. Elsewhere JAX differentiates the function itself, so `jax.jvp` and
    `jax.hessian` work on the networks.

    Args:
        function: the function to differentiate.
        nondiff_argnums: positions of the arguments without a gradient, as in `jax.custom_vjp`.
    """

    def __init__(self, function: Callable, nondiff_argnums: Sequence[int] = ()):
        functools.update_wrapper(self, function)
        self._function = function
        self._with_rule = jax.custom_vjp(function, nondiff_argnums=nondiff_argnums)

    def defvjp(self, forward: Callable, backward: Callable) -> None:
        """Sets the forward and the backward function, as `jax.custom_vjp.defvjp` does."""
        self._with_rule.defvjp(forward, backward)

    def __call__(self, *args: Any) -> Any:
        return (self._with_rule if _use_backward_rules.get() else self._function)(*args)


@functools.cache
def _options() -> dict[str, Any]:
    """Returns the `_CPU_OPTIONS` that this version of XLA supports; none on other platforms."""
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _CPU_OPTIONS.items() if _is_supported({name: value})}


def _is_supported(options: dict[str, Any]) -> bool:
    """Whether XLA compiles a small program with these options, and correctly."""

    def program(x):
        return lax.optimization_barrier(jnp.exp(x)) + 1

    try:
        return float(jax.jit(program, compiler_options=options)(0.0)) == 2.0
    except (RuntimeError, ValueError):  # JAX's own errors are RuntimeErrors
        return False


def materialize(tree: Any) -> Any:
    """Returns the same arrays, which on CPU are written to memory once and not fused.

    On other platforms it does nothing, because their compilers fuse well.
    """
    return lax.optimization_barrier(tree) if for_cpu() else tree


def materialize_gradient(x: jax.Array) -> jax.Array:
    """Returns `x`, whose gradient is written to memory once on a GPU and not computed again."""
    return _materialize_gradient(x) if for_gpu() else x


@custom_vjp
def _materialize_gradient(x: jax.Array) -> jax.Array:
    return x


_materialize_gradient.defvjp(lambda x: (x, None), lambda _, g: (lax.optimization_barrier(g),))


def join(x: jax.Array) -> jax.Array:
    """Returns `x`, and lets a GPU compute what follows in one kernel with what follows others.

    XLA runs operations of equal shape in one kernel if they read the same array and none depends on
    another. So here each of these arrays of floats is multiplied by a one from the same array,
    which changes no value. The barrier hides from XLA that it is a one; an array of equal numbers
    would be filled by a kernel.
    """
    return _join(x) if for_gpu() else x


@custom_vjp
def _join(x: jax.Array) -> jax.Array:
    return x * lax.optimization_barrier(jnp.array([1, 0], x.dtype))[0]


_join.defvjp(lambda x: (_join(x), None), lambda _, gradient: (gradient,))


def materialize_scalars(*scalars: jax.Array) -> list[jax.Array]:
    """Returns the same numbers, which are not computed again for each array that they scale.

    On a GPU they lie in one array, so that arrays of equal shape are scaled in one kernel, as
    after `join`.
    """
    if for_gpu():
        return list(lax.optimization_barrier(jnp.stack(scalars)))
    return list(materialize(scalars))


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """Casts a parameter to the compute dtype; on a GPU those of equal shape in one kernel."""
    return x if x.dtype == dtype else join(x).astype(dtype)
