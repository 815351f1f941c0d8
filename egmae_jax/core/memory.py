"""Memory available for images, on each device and on the host.

The memory limit of a container or a job (cgroup) counts as the host's memory.
"""

import os
from pathlib import Path

import jax

from egmae_jax.core import hosts

SHARE = 0.3  # share of memory for images; the rest is for the network and its gradients
_UNKNOWN = 8e9  # bytes, assumed if the system does not report its memory


def for_resident_images() -> float:
    """Returns the bytes that a data set may occupy on each device.

    This is the fraction SHARE of the smallest device's memory, or of the free host memory if that
    is less, because images are decoded on the host first. All hosts of a run must call it and get
    the same number.
    """
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    available = _free_on_host() / hosts.processes_on_this_host()
    if None in limits:  # CPU devices share the host's memory
        available /= len(devices)
    (negative,) = hosts.agree(-min([available, *(limit for limit in limits if limit)]))
    return SHARE * -negative


def for_decoded_images() -> float:
    """Returns the bytes that this process may use for decoded images.

    This is the fraction SHARE of the free host memory, divided by the run's processes on this host.
    """
    return SHARE * _free_on_host() / hosts.processes_on_this_host()


def _free_on_host(root: Path = Path("/")) -> float:
    """Returns the free memory of this host in bytes.

    Args:
        root: root of the file system, replaced in tests.
    """
    limits = [*_free_in_meminfo(root), *_free_in_cgroups(root)]
    if not limits:
        try:
            limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2]  # macOS
        except (AttributeError, ValueError):  # Windows
            limits = [_UNKNOWN]
    return min(limits)


def _free_in_meminfo(root: Path) -> list[float]:
    """Returns the available bytes in /proc/meminfo; empty except on Linux."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return []
    return [1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]


def _free_in_cgroups(root: Path) -> list[float]:
    """Returns the bytes left in each cgroup of this process that has a limit, versions 1 and 2."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    free = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inner = Path(path.lstrip("/"))
        for group in (inner, *inner.parents):  # a container may see the path on the host
            folder = mount / group
            try:
                allowed, used = ((folder / name).read_text().strip() for name in (limit, usage))
                stat = (folder / "memory.stat").read_text().splitlines()
            except OSError:  # no such group
                continue
            if allowed == "max":
                continue
            counters = {name: float(n) for name, n in (row.split() for row in stat)}
            # The system frees the page cache of inactive files on demand.
            cached = counters.get("inactive_file", counters.get("total_inactive_file", 0.0))
            free.append(max(0.0, float(allowed) - float(used) + cached))
    return free
