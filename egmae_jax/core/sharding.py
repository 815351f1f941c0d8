"""Devices and hosts: the mesh, where arrays lie on it, what hosts tell each other.

The only module that knows devices. A mesh has three axes. Along 'data' batches are split and
parameters are whole; along 'fsdp' batches are split as well, and so are the large parameters and
their optimizer state (Rajbhandari et al. 2020). Along 'copy' all compute the same, where a batch
does not divide into as many parts as there are devices. `jax.jit` sees to it that the results are
those of one device: it adds one all-reduce of the gradients along 'data', and along 'fsdp' an
all-gather of each parameter where it is used.

On several hosts every process runs the same program on its own devices. What only a clock or a
signal tells one of them goes through `agree`, and one of them writes the files (`is_primary`).
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
from jax._src import distributed  # the only way to the coordination service's keys and values
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from egmae_jax.core.errors import UserError

PyTree = Any
_BATCH = P(("data", "fsdp"))  # for arrays whose first axis is the batch
_SPLIT_ELEMENTS = 2**14  # parameters with fewer stay whole: splitting saves less than it costs
# How the schedulers that JAX knows say that there are several processes.
_CLUSTERS = (
    lambda env: int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env,
    lambda env: int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1,
    lambda env: "," in env.get("TPU_WORKER_HOSTNAMES", ""),  # on GKE
    # A TPU VM, whose hosts its metadata tell; JAX sets both variables when it is imported.
    lambda env: env.get("TPU_ML_PLATFORM") == "JAX" and "TPU_SKIP_MDS_QUERY" not in env,
    lambda env: "MEGASCALE_COORDINATOR_ADDRESS" in env,
)


class DeviceError(UserError):
    """The devices or hosts that were asked for cannot be had; the message says which and why."""


# --- Hosts ---------------------------------------------------------------------------------------


def join_hosts(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: int = 100,
) -> None:
    """Joins the processes of a run; before any device is used.

    Args:
        coordinator: address and port of process 0, such as '10.0.0.1:1234'. Without it TPU pods,
            SLURM and Open MPI are recognised, and elsewhere the process is alone.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        timeout_seconds: silence after which the others take a process for dead, and end.

    Raises:
        DeviceError: only some of the three are given, or the processes do not find each other.
    """
    given = [x is not None for x in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise DeviceError("--coordinator, --num_processes and --process_id belong together.")
    if not any(given) and not any(is_there(os.environ) for is_there in _CLUSTERS):
        return
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=timeout_seconds,
        )
    except (ValueError, RuntimeError) as error:  # a wrong address or number, a process that is away
        raise DeviceError(f"The hosts cannot be joined: {error}") from error
    if jax.default_backend() == "cpu":
        # In a program that XLA reads back from the cache the exchanges between CPUs have lost their
        # order (JAX 0.10): each host may begin with another one, and all wait without end.
        jax.config.update("jax_enable_compilation_cache", False)


def require_devices() -> None:
    """Starts JAX's backend.

    Raises:
        DeviceError: there is none.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter of JAX_PLATFORMS=cuda
        wanted = os.environ.get("JAX_PLATFORMS")
        asked = f", JAX_PLATFORMS being {wanted!r}" if wanted else ""
        reason = str(error).split("(")[0].strip(" .") or "no reason given"
        raise DeviceError(
            f"JAX finds no device{asked} ({reason}). The extras gpu and tpu install what it needs: "
            "pip install -e '.[gpu]'."
        ) from error


def is_primary() -> bool:
    """Whether this process writes the files and speaks on the terminal."""
    # Without hosts to join no device need be touched to know.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def has_hosts() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized()


def host() -> tuple[int, int]:
    """Place of this process in the coordination service, which 0 runs, and how many there are.

    Touches no device, which while JAX ends would start it anew.
    """
    if not has_hosts():
        return 0, 1
    return distributed.global_state.process_id, distributed.global_state.num_processes


def set_key(key: str, value: str) -> None:
    """Sets a key that the other processes can read at once, whatever they are doing.

    Any thread may call it. Where the coordination service is gone, nothing happens.
    """
    client = distributed.global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if client is not None:
            client.key_value_set(key, value, allow_overwrite=True)


def get_key(key: str) -> str | None:
    """Reads the value that a process has set; None if there is none or the service is gone."""
    client = distributed.global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # NOT_FOUND is one
        return client.key_value_try_get(key) if client is not None else None
    return None


def count_keys(folder: str) -> int:
    """Counts the keys set by processes that begin with 'folder/'."""
    client = distributed.global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        return len(client.key_value_dir_get(folder)) if client is not None else 0
    return 0


def wait_for_all(what: str) -> None:
    """Goes on when all processes are here; what one wrote before, all can read then."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(what)


def agree(*values: float) -> tuple[float, ...]:
    """The largest of each value over all processes, which all call it in the same order."""
    if not jax.distributed.is_initialized():
        return values
    gathered = multihost_utils.process_allgather(np.asarray(values, np.float64))
    return tuple(np.asarray(gathered).reshape(-1, len(values)).max(axis=0).tolist())


@functools.cache
def processes_on_this_host() -> int:
    """How many processes of the run share this machine's memory; all call it."""
    if not has_hosts():
        return 1
    name = np.uint32(zlib.crc32(socket.gethostname().encode()))
    return int((multihost_utils.process_allgather(name) == name).sum())


# --- Devices -------------------------------------------------------------------------------------


def mesh_shape(count: int, data: int, fsdp: int, batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """How many devices there are along 'data', 'fsdp' and 'copy'.

    Args:
        count: number of all devices.
        data: along 'data'; -1 takes as many as there are and the batches can be divided among.
        fsdp: along 'fsdp'.
        batch_sizes: that are split along both.

    Raises:
        DeviceError: there are not so many, or a batch cannot be divided so.
    """
    for field, ways in (("data", data), ("fsdp", fsdp)):
        if ways < 1 and not (field == "data" and ways == -1):
            raise DeviceError(f"mesh.{field} is {ways}; it must be positive.")
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
    """A mesh of all devices of all hosts; see `mesh_shape`."""
    shape = mesh_shape(jax.device_count(), data, fsdp, batch_sizes)
    return jax.make_mesh(shape, ("data", "fsdp", "copy"), axis_types=(AxisType.Auto,) * 3)


def local_mesh() -> Mesh:
    """One device of this host, for what is too little to share."""
    return Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "copy"))


def divisible(batch_size: int, mesh: Mesh) -> int:
    """The least number from `batch_size` on that the devices can share."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-batch_size // parts) * parts


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that are whole on every device."""
    return NamedSharding(mesh, P())


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts a whole copy of every array on every device; all hosts must have the same ones.

    JAX arrays are copied, never aliased. A CPU may go on using the memory of numpy arrays (JAX 0.10
    does where they begin at a multiple of 64 bytes): do not write to them afterwards.
    """
    return place(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Puts every array where its sharding says; all hosts must have the same whole arrays."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding, may_alias=False)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, shardings)


def state_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Where parameters and optimizer state lie: large arrays are split along 'fsdp'.

    An array is split along its longest axis that can be; small ones are whole on every device.
    """
    ways = mesh.shape["fsdp"]

    def of(x: Any) -> NamedSharding:
        axes = sorted(range(len(x.shape)), key=lambda axis: -x.shape[axis])
        axis = next((axis for axis in axes if x.shape[axis] % ways == 0), None)
        if ways == 1 or axis is None or np.prod(x.shape) < _SPLIT_ELEMENTS:
            return replicated(mesh)
        return NamedSharding(mesh, P(*[None] * axis, "fsdp"))

    return jax.tree.map(of, tree)


def to_host(tree: PyTree) -> PyTree:
    """Whole numpy arrays of arrays that may be split over devices and hosts; all hosts call it."""

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_replicated and not x.is_fully_addressable:
            assert isinstance(x.sharding, NamedSharding)
            assert isinstance(x.sharding.mesh, Mesh)
            x = jax.jit(lambda x: x, out_shardings=replicated(x.sharding.mesh))(x)
        return np.array(x)

    return jax.tree.map(whole, tree)


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """The rows of every batch that this host reads: those of its own devices, in order."""
    slices = NamedSharding(mesh, _BATCH).addressable_devices_indices_map((batch_size,)).values()
    rows = [np.arange(batch_size)[index] for index in slices if index is not None]
    return np.unique(np.concatenate(rows))


def place_batches(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts this host's rows of some batches [steps, rows, ...] on its devices.

    Returns:
        Arrays [steps, B, ...] of all hosts' rows, each batch split over the devices.
    """
    sharding = NamedSharding(mesh, P(None, *_BATCH))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def keep_state(tree: PyTree, mesh: Mesh) -> PyTree:
    """Inside jit: keeps parameters and optimizer state where `state_shardings` has them."""
    return _constrain(tree, state_shardings(tree, mesh), mesh)


def split_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Inside jit: splits every array's first axis over the devices."""
    return _constrain(tree, NamedSharding(mesh, _BATCH), mesh)


def gather(tree: PyTree, mesh: Mesh) -> PyTree:
    """Inside jit: makes every array whole on every device."""
    return _constrain(tree, replicated(mesh), mesh)


def _constrain(tree: PyTree, shardings: PyTree, mesh: Mesh) -> PyTree:
    if mesh.size == 1:
        return tree  # hundreds of constraints that say nothing would be traced
    return jax.lax.with_sharding_constraint(tree, shardings)
