"""How much memory images may take."""

import types

import jax
import pytest

from egmae_jax.core import memory

GB = 10**9


def host(root, *, available, cgroups="", **files):
    """A file system that says so much is available, with files below sys/fs/cgroup."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(
        f"MemTotal: 999999999 kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB\n"
    )
    (root / "proc" / "self" / "cgroup").write_text(cgroups)
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    return root


def test_without_limits_it_is_what_the_system_has_available(tmp_path):
    available = memory._free_on_host(host(tmp_path, available=64 * GB))
    assert available == pytest.approx(64 * GB)


def test_what_a_container_may_take_is_its_limit_less_what_it_uses(tmp_path):
    """Version 2; what was read from files gives way."""
    root = host(
        tmp_path,
        available=64 * GB,
        cgroups="0::/\n",
        memory_DOT_max=10 * GB,
        memory_DOT_current=5 * GB,
        memory_DOT_stat=f"anon {2 * GB}\ninactive_file {3 * GB}\n",
    )
    assert memory._free_on_host(root) == 8 * GB


def test_of_nested_groups_the_least_counts_and_max_is_no_limit(tmp_path):
    job, step = "job__", "job__step__"
    files = {
        f"{step}memory_DOT_max": "max",
        f"{step}memory_DOT_current": 1 * GB,
        f"{step}memory_DOT_stat": "anon 0",
        f"{job}memory_DOT_max": 4 * GB,
        f"{job}memory_DOT_current": 1 * GB,
        f"{job}memory_DOT_stat": "anon 0",
    }
    root = host(tmp_path, available=64 * GB, cgroups="0::/job/step\n", **files)
    assert memory._free_on_host(root) == 3 * GB


def test_the_limit_of_a_job_in_groups_of_version_1_counts(tmp_path):
    folder = "memory__slurm__job_7__"
    files = {
        f"{folder}memory_DOT_limit_in_bytes": 6 * GB,
        f"{folder}memory_DOT_usage_in_bytes": 2 * GB,
        f"{folder}memory_DOT_stat": f"cache {GB}\ntotal_inactive_file {GB}\n",
    }
    cgroups = "5:cpuset:/\n4:memory:/slurm/job_7\n0::/\n"
    root = host(tmp_path, available=64 * GB, cgroups=cgroups, **files)
    assert memory._free_on_host(root) == 5 * GB


def devices(monkeypatch, *limits):
    """Devices of so many bytes; None is a CPU."""
    devices = [
        types.SimpleNamespace(memory_stats=lambda n=n: n and {"bytes_limit": n, "bytes_in_use": 1})
        for n in limits
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


@pytest.mark.parametrize(
    ("limits", "available", "expected"),
    [
        ((60 * GB, 48 * GB), 500 * GB, 0.3 * 48 * GB),  # the smallest GPU's
        ((60 * GB,), 20 * GB, 0.3 * 20 * GB),  # decoded in the host's memory first
        ((None,), 20 * GB, 0.3 * 20 * GB),
        ((None,) * 4, 20 * GB, 0.3 * 5 * GB),  # each has a copy of the images
    ],
)
def test_resident_images_take_a_share_of_the_smallest_device(
    monkeypatch, limits, available, expected
):
    devices(monkeypatch, *limits)
    monkeypatch.setattr(memory, "_free_on_host", lambda: available)
    assert memory.for_resident_images() == pytest.approx(expected)


def test_all_hosts_take_what_the_least_of_them_has(monkeypatch):
    devices(monkeypatch, 60 * GB)
    monkeypatch.setattr(memory, "_free_on_host", lambda: 500 * GB)
    monkeypatch.setattr(memory.hosts, "processes_on_this_host", lambda: 2)
    monkeypatch.setattr(memory.hosts, "agree", lambda *values: (max(*values, -40.0 * GB),))
    assert memory.for_resident_images() == pytest.approx(0.3 * 40 * GB)
    assert memory.for_decoded_images() == pytest.approx(0.3 * 250 * GB)
