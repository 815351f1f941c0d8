"""What every command that trains does before it: log, signals, hosts and devices."""

import gc

from egmae_jax.core import console, hosts, platform, preemption, sharding


def start_training(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    deterministic: bool = False,
) -> None:
    """Prepares the process for training.

    Args:
        coordinator: address and port of process 0; None: detected.
        num_processes: number of processes; None: detected.
        process_id: index of this process; None: detected.
        deterministic: whether a GPU must give bit-identical results in every run.
    """
    console.set_up_logging()
    if deterministic:
        platform.make_deterministic()
    preemption.install()
    hosts.join(coordinator, num_processes, process_id)
    sharding.require_devices()
    console.set_up_logging(quiet=not hosts.is_primary())
    preemption.install()  # again, because JAX replaces the SIGTERM handler when hosts join
    gc.freeze()  # the garbage collector skips imported objects, which makes tracing faster
