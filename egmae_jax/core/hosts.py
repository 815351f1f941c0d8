"""Processes of a run on several hosts, and communication between them.

Every process runs the same program on its own devices. Values that may differ between hosts, such
as times and signals, go through `agree`; one host writes the files (`is_primary`).
"""

import contextlib
import functools
import os
import socket
import zlib

import jax
import numpy as np
from jax._src import distributed  # the only way to the coordination service's keys and values
from jax.experimental import multihost_utils

from egmae_jax.core.errors import UserError

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


def join(
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


def is_primary() -> bool:
    """Whether this process writes the files and the terminal output: process 0 of the run."""
    # `jax.process_index` would initialise the devices, so ask it only on several hosts.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def is_multihost() -> bool:
    """Whether the run has several hosts, connected by `join`."""
    return jax.distributed.is_initialized()


def index_and_count() -> tuple[int, int]:
    """Returns the index of this process in the coordination service and the number of processes.

    Process 0 runs the service. Unlike `jax.process_index`, this never initialises the devices,
    which would restart JAX while it shuts down.
    """
    if not is_multihost():
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
    if not is_multihost():
        return 1
    name = np.uint32(zlib.crc32(socket.gethostname().encode()))
    return int((multihost_utils.process_allgather(name) == name).sum())
