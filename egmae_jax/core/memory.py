"""How much memory there is for images: on a device, and of the host.

The limits of a container or a job (cgroups) count as the host's memory.
"""

import os
from pathlib import Path

import jax

from egmae_jax.core import sharding

SHARE = 0.3  # share of memory for images; the rest is for the network and its gradients
_UNKNOWN = 8e9  # bytes, where the system does not say


def for_resident_images() -> float:
    """Bytes that a set of images may take on each device: SHARE of what the smallest has.

    Never more than that share of the host's memory, where the set is decoded first. All hosts of a
    run call it and get the same.
    """
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    available = _of_the_host() / sharding.processes_on_this_host()
    if None in limits:  # CPUs, which share the host's
        available /= len(devices)
    (least,) = sharding.agree(-min([available, *(limit for limit in limits if limit)]))
    return SHARE * -least


def for_decoded_images() -> float:
    """Bytes that this process may keep decoded images in: SHARE of what is free on the host."""
    return SHARE * _of_the_host() / sharding.processes_on_this_host()


def _of_the_host(root: Path = Path("/")) -> float:
    """Bytes that can be taken on this host now.

    Args:
        root: root of the file system, which tests replace.
    """
    limits = [*_free(root), *_free_in_cgroups(root)]
    if not limits:
        try:
            limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2]  # macOS
        except (AttributeError, ValueError):  # Windows
            limits = [_UNKNOWN]
    return min(limits)


def _free(root: Path) -> list[float]:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return []
    return [1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]


def _free_in_cgroups(root: Path) -> list[float]:
    """What is left of the limit of every group that the process is in, of versions 1 and 2."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
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
        for group in (inner, *inner.parents):  # in a container the path may be the host's
            folder = mount / group
            try:
                most, used = ((folder / name).read_text().strip() for name in (limit, usage))
                stat = (folder / "memory.stat").read_text().splitlines()
            except OSError:  # no such group
                continue
            if most == "max":
                continue
            cached = {name: float(n) for name, n in (row.split() for row in stat)}
            files = cached.get("inactive_file", cached.get("total_inactive_file", 0.0))
            # Files that were read give way.
            left.append(max(0.0, float(most) - float(used) + files))
    return left
