"""Device mesh, sharding of arrays, and communication between hosts.

A mesh has three axes. Along 'data', batches are sharded and parameters are replicated. Along
'fsdp', batches are sharded too, as are the large parameters and their optimizer state (Rajbhandari
et al. 2020). Along 'copy', all devices compute the same; this axis is longer than 1 if a batch
cannot be divided among all devices. `jax.jit` gives the results of a single device: it inserts an
all-reduce of the gradients along 'data', and an all-gather of each parameter along 'fsdp'.

On several hosts, every process runs the same program on its own devices. Values that may differ
between hosts, such as times and signals, go through `agree`; one host writes the files
(`is_primary`).
"""

import contextlib
import functools
import math
import os
import socket
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # JAX has no public access to the coordination service
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from egmae_jax.core.errors import UserError

PyTree = Any
_BATCH = P(("data", "fsdp"))  # for arrays whose first axis is the batch
_SPLIT_ELEMENTS = 2**14  # smaller parameters are replicated: sharding costs more than it saves
# Whether one of the schedulers that JAX recognises has started several processes.
_CLUSTERS = (
    lambda env: int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env,
    lambda env: int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1,
    lambda env: "," in env.get("TPU_WORKER_HOSTNAMES", ""),  # on GKE
    # On a TPU VM, JAX asks the metadata server for the hosts; it sets both variables on import.
    lambda env: env.get("TPU_ML_PLATFORM") == "JAX" and "TPU_SKIP_MDS_QUERY" not in env,
    lambda env: "MEGASCALE_COORDINATOR_ADDRESS" in env,
)


class DeviceError(UserError):
    """The requested devices or hosts are not available; the message says which and why."""


# --- Hosts ---------------------------------------------------------------------------------------


def join_hosts(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: int = 100,
) -> None:
    """Connects the processes of a run on several hosts; must be called before a device is used.

    Args:
        coordinator: address and port of process 0, such as '10.0.0.1:1234'. None: TPU pods, SLURM
            and Open MPI are recognised; without them the run has a single process.
        num_processes: number of processes.
        process_id: index of this process, from 0.
        timeout_seconds: seconds without a heartbeat after which the other processes consider a
            process dead and stop.

    Raises:
        DeviceError: only some of `coordinator`, `num_processes` and `process_id` are set, or the
            processes cannot connect.
    """
    is_set = [x is not None for x in (coordinator, num_processes, process_id)]
    if any(is_set) and not all(is_set):
        raise DeviceError(
            "--coordinator, --num_processes and --process_id belong together: set all or none."
        )
    if not any(is_set) and not any(is_active(os.environ) for is_active in _CLUSTERS):
        return
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=timeout_seconds,
        )
    except (ValueError, RuntimeError) as error:  # a wrong address or number, an absent process
        raise DeviceError(f"The hosts cannot be joined: {error}") from error
    if jax.default_backend() == "cpu":
        # CPU programs from the compilation cache have lost the order of their collectives (JAX
        # 0.10), so hosts may start with different ones and deadlock.
        jax.config.update("jax_enable_compilation_cache", False)


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


def is_primary() -> bool:
    """Whether this process writes the files and the terminal output: process 0 of the run."""
    # `jax.process_index` would initialise the devices, so ask it only on several hosts.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def has_hosts() -> bool:
    """Whether the run has several hosts, connected by `join_hosts`."""
    return jax.distributed.is_initialized()


def host() -> tuple[int, int]:
    """Returns the index of this process in the coordination service and the number of processes.

    Process 0 runs the service. Unlike `jax.process_index`, this never initialises the devices,
    which would restart JAX while it shuts down.
    """
    if not has_hosts():
        return 0, 1
    return distributed.global_state.process_id, distributed.global_state.num_processes


def set_key(key: str, value: str) -> None:
    """Sets a key in the coordination service, which other processes read by `get_key`.

    Any thread may call it. It does nothing if the service has ended.
    """
    client = distributed.global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if client is not None:
            client.key_value_set(key, value, allow_overwrite=True)


def get_key(key: str) -> str | None:
    """Returns the value of a key that a process has set; None without it or without a service."""
    client = distributed.global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # includes NOT_FOUND
        return client.key_value_try_get(key) if client is not None else None
    return None


def count_keys(folder: str) -> int:
    """Returns the number of keys that begin with '<folder>/'; 0 if the service has ended."""
    client = distributed.global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        return len(client.key_value_dir_get(folder)) if client is not None else 0
    return 0


def wait_for_all(name: str) -> None:
    """Waits until all processes of the run have called this with the same name.

    Files that any of them wrote before can be read by all afterwards.

    Args:
        name: name of the barrier.
    """
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(name)


def agree(*values: float) -> tuple[float, ...]:
    """Returns the largest of each value over all processes.

    All processes must call it, and in the same order relative to other collectives.
    """
    if not jax.distributed.is_initialized():
        return values
    gathered = multihost_utils.process_allgather(np.asarray(values, np.float64))
    return tuple(np.asarray(gathered).reshape(-1, len(values)).max(axis=0).tolist())


@functools.cache
def processes_on_this_host() -> int:
    """Returns the number of the run's processes on this machine; all processes must call it."""
    if not has_hosts():
        return 1
    name = np.uint32(zlib.crc32(socket.gethostname().encode()))
    return int((multihost_utils.process_allgather(name) == name).sum())


# --- Devices -------------------------------------------------------------------------------------


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


def _constrain(tree: PyTree, shardings: PyTree, mesh: Mesh) -> PyTree:
    if mesh.size == 1:
        return tree  # hundreds of constraints without effect would lengthen tracing
    return jax.lax.with_sharding_constraint(tree, shardings)
