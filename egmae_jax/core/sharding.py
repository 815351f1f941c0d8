"""Device mesh, and sharding of arrays.

A mesh has three axes. Along 'data', batches are sharded and parameters are replicated. Along
'fsdp', batches are sharded too, as are the large parameters and their optimizer state (Rajbhandari
et al. 2020). Along 'copy', all devices compute the same; this axis is longer than 1 if a batch
cannot be divided among all devices. `jax.jit` gives the results of a single device: it inserts an
all-reduce of the gradients along 'data', and an all-gather of each parameter along 'fsdp'.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from egmae_jax.core import platform
from egmae_jax.core.hosts import DeviceError

PyTree = Any
_BATCH = P(("data", "fsdp"))  # for arrays whose first axis is the batch
_SPLIT_ELEMENTS = 2**14  # smaller parameters are replicated: sharding costs more than it saves


def require_devices() -> None:
    """Initialises JAX's devices.

    Raises:
        DeviceError: JAX finds no device.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: JAX_PLATFORMS=cuda
        platforms = os.environ.get("JAX_PLATFORMS")
        setting = f" with JAX_PLATFORMS={platforms!r}" if platforms else ""
        reason = str(error).split("(")[0].strip(" .") or "no reason given"
        raise DeviceError(
            f"JAX finds no device{setting} ({reason}). Install the extra gpu or tpu: "
            "pip install -e '.[gpu]'."
        ) from error


def mesh_shape(count: int, data: int, fsdp: int, batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """Returns the number of devices along the axes 'data', 'fsdp' and 'copy'.

    Args:
        count: total number of devices.
        data: number along 'data'; -1: as many as the devices and the batch sizes allow.
        fsdp: number along 'fsdp'.
        batch_sizes: batch sizes that must be divisible by data * fsdp.

    Raises:
        DeviceError: the devices or a batch size cannot be divided in this way.
    """
    for field, value in (("data", data), ("fsdp", fsdp)):
        if value < 1 and not (field == "data" and value == -1):
            raise DeviceError(f"mesh.{field} is {value}; it must be positive.")
    images = f"batches of {', '.join(map(str, batch_sizes))} images"
    if data == -1:
        common = math.gcd(count, *batch_sizes)
        if common % fsdp:
            raise DeviceError(
                f"{count} devices do not divide into {images} and {fsdp} along mesh.fsdp."
            )
        data = common // fsdp
    if count % (data * fsdp):
        raise DeviceError(
            f"{count} devices do not divide into {data} along mesh.data times {fsdp} along "
            "mesh.fsdp."
        )
    if any(size % (data * fsdp) for size in batch_sizes):
        raise DeviceError(f"{images} do not divide into {data * fsdp} parts.")
    return data, fsdp, count // (data * fsdp)


def make_mesh(data: int = -1, fsdp: int = 1, batch_sizes: Sequence[int] = ()) -> Mesh:
    """Returns a mesh of all devices of all hosts; for the arguments see `mesh_shape`."""
    shape = mesh_shape(jax.device_count(), data, fsdp, batch_sizes)
    return jax.make_mesh(shape, ("data", "fsdp", "copy"), axis_types=(AxisType.Auto,) * 3)


def local_mesh() -> Mesh:
    """Returns a mesh of one device of this host, for computations too small to distribute."""
    return Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "copy"))


def divisible(batch_size: int, mesh: Mesh) -> int:
    """Returns the smallest batch size >= `batch_size` that can be divided among the devices."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-batch_size // parts) * parts


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of replicated arrays, which every device has in full."""
    return NamedSharding(mesh, P())


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Replicates every array over all devices; all hosts must pass the same values.

    JAX arrays are copied, never aliased. On CPU, the result may share the memory of numpy arrays
    (in JAX 0.10, of those aligned to 64 bytes), so do not write to them afterwards.
    """
    return place(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Places every array according to its sharding; all hosts must pass the same full arrays."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding, may_alias=False)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, shardings)


def state_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns the shardings of parameters and optimizer state.

    Large arrays are sharded along 'fsdp', by their longest axis that is divisible; all others are
    replicated.

    Args:
        tree: arrays, or anything with a shape.
        mesh: the mesh.
    """
    shards = mesh.shape["fsdp"]

    def choose_sharding(x: Any) -> NamedSharding:
        axes = sorted(range(len(x.shape)), key=lambda axis: -x.shape[axis])
        axis = next((axis for axis in axes if x.shape[axis] % shards == 0), None)
        if shards == 1 or axis is None or np.prod(x.shape) < _SPLIT_ELEMENTS:
            return replicated(mesh)
        return NamedSharding(mesh, P(*[None] * axis, "fsdp"))

    return jax.tree.map(choose_sharding, tree)


def to_host(tree: PyTree) -> PyTree:
    """Returns full numpy arrays of arrays that may be sharded; all hosts must call it."""

    def gather_array(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_replicated and not x.is_fully_addressable:
            assert isinstance(x.sharding, NamedSharding)
            assert isinstance(x.sharding.mesh, Mesh)
            x = jax.jit(lambda x: x, out_shardings=replicated(x.sharding.mesh))(x)
        return np.array(x)

    return jax.tree.map(gather_array, tree)


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Returns the sorted indices of the rows of a batch that the devices of this host hold."""
    slices = NamedSharding(mesh, _BATCH).addressable_devices_indices_map((batch_size,)).values()
    rows = [np.arange(batch_size)[index] for index in slices if index is not None]
    return np.unique(np.concatenate(rows))


def place_batches(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places this host's rows of a sequence of batches on its devices.

    Args:
        tree: arrays [steps, rows, ...] with the rows of `local_rows`.
        mesh: the mesh.

    Returns:
        Arrays [steps, B, ...] with the rows of all hosts, sharded along the batch.
    """
    sharding = NamedSharding(mesh, P(None, *_BATCH))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def keep_state(tree: PyTree, mesh: Mesh) -> PyTree:
    """Within jit, constrains parameters and optimizer state to `state_shardings`."""
    return _constrain(tree, state_shardings(tree, mesh), mesh)


def split_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Within jit, shards the first axis of every array over the devices."""
    return _constrain(tree, NamedSharding(mesh, _BATCH), mesh)


def gather(tree: PyTree, mesh: Mesh) -> PyTree:
    """Within jit, replicates every array on all devices."""
    return _constrain(tree, replicated(mesh), mesh)


def batch_parts() -> int:
    """Returns the number of parts that batches are split into in the program being traced."""
    mesh = platform.mesh()
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def by_device(function: Callable, *, batched: int) -> Callable:
    """Makes a function that each device runs on its part of a batch; so a kernel need not be split.

    Args:
        function: the function; its result is split, too.
        batched: number of arguments, trees whose first axis is the batch; the others are not split.
    """
    mesh = platform.mesh()
    if mesh is None or mesh.size == 1:
        return function

    def call(*args: Any) -> Any:
        specs = (_BATCH,) * batched + (P(),) * (len(args) - batched)
        split = jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=_BATCH, check_vma=False
        )
        return split(*args)

    return call


def _constrain(tree: PyTree, shardings: PyTree, mesh: Mesh) -> PyTree:
    if mesh.size == 1:
        return tree  # hundreds of constraints without effect would lengthen tracing
    return jax.lax.with_sharding_constraint(tree, shardings)
