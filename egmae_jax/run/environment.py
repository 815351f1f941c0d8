"""Records the settings and machines that affect a run's numbers, in environment.json.

`JAX_ENABLE_X64`, the matmul precision and XLA flags change the results of a config. They are
recorded when a run begins, and it cannot resume under other settings. It can resume on another
device, processor or library version; these are recorded and logged.
"""

import contextlib
import enum
import importlib.metadata
import logging
import os
import platform
import zlib
from pathlib import Path
from typing import Any

import jax

from egmae_jax.core import hosts
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import RESTORE, DamagedFileError, read_json, write_json
from egmae_jax.core.platform import DETERMINISTIC, flags_of, is_deterministic
from egmae_jax.run.config import differences, flatten

# JAX settings, named as in jax.config.update("jax_enable_x64", True).
_JAX_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_explicit_x64_dtypes",
    "jax_allow_f16_reductions",
    "jax_softmax_custom_jvp",
    "jax_use_direct_linearize",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_high_dynamic_range_gumbel",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_optimization_level",
    "jax_exec_time_optimization_effort",
)
_VARIABLES = ("NVIDIA_TF32_OVERRIDE",)  # environment variables that cuBLAS and cuDNN read
_FLAG_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# Flags for file locations, compilation threads and the number of CPU devices, which may change on
# resume because they do not affect results.
_FREE_FLAGS = (
    "xla_force_host_platform_device_count",
    "xla_dump_",
    "xla_gpu_dump_",
    "xla_hlo_profile",
    "xla_gpu_cuda_data_dir",
    "xla_gpu_force_compilation_parallelism",
    "xla_gpu_enable_llvm_module_compilation_parallelism",
    "xla_gpu_kernel_cache_file",
    "xla_gpu_per_fusion_autotune_cache_dir",
    "xla_cpu_parallel_codegen_split_count",
)
_PACKAGES = (
    "egmae_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "pillow",
    "opencv-python-headless",
)

logger = logging.getLogger(__name__)


def settings() -> dict[str, Any]:
    """Returns the settings of this process that affect numbers, by name, as JSON values.

    The names are those of JAX settings and environment variables, XLA flags such as
    `--xla_gpu_deterministic_ops`, and 'deterministic' for `main.py --deterministic`.
    """
    values: dict[str, Any] = {
        name: _plain(getattr(jax.config, name))
        for name in _JAX_SETTINGS
        if hasattr(jax.config, name)
    }
    values |= {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    values["deterministic"] = is_deterministic()
    for variable in _FLAG_VARIABLES:
        for flag, value in sorted(flags_of(variable).items()):
            if flag != DETERMINISTIC and not flag.startswith(_FREE_FLAGS):
                values[f"--{flag}"] = value
    return values


def machine() -> dict[str, Any]:
    """Describes this machine: "platform", "device", "processor" (CPU only) and "versions"."""
    device = jax.devices()[0]
    content: dict[str, Any] = {"platform": device.platform, "device": device.device_kind}
    if device.platform == "cpu":
        content["processor"] = _processor()
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not installed
            versions[package] = importlib.metadata.version(package)
    return content | {"versions": versions}


def require_same(path: Path, *, recorded: bool) -> None:
    """Checks that the settings are those the run began with, and warns about another machine.

    All hosts must call it, and their settings must be equal.

    Args:
        path: path of environment.json.
        recorded: whether the workdir holds the record of a run, which this one resumes.

    Raises:
        ConfigError: settings differ; the message lists each with both values.
        DamagedFileError: the file cannot be read.
    """
    now = settings()
    checksum = float(zlib.crc32(repr(now).encode()))
    largest, smallest = hosts.agree(checksum, -checksum)
    if largest != -smallest:
        raise ConfigError(
            "The hosts have different settings and would compute different numbers. This host has: "
            + ", ".join(f"{name}={value!r}" for name, value in now.items())
        )
    if not recorded:
        return
    content = read(path)
    before, machines = content["settings"], content["machines"]
    only_in_one_version = [name for name in _JAX_SETTINGS if (name in before) != (name in now)]
    if changes := differences(before, now, free=only_in_one_version):
        raise ConfigError(
            "The workdir holds a run under other settings of JAX or XLA, which change its numbers. "
            "Use the same settings or another --workdir.\n  " + "\n  ".join(changes)
        )
    here = machine()
    if here not in machines:
        logger.warning(
            "The run resumes on another machine or with other versions: %s. From here its numbers "
            "may differ by rounding; results.json lists all machines.",
            "; ".join(differences(flatten(machines[-1]), flatten(here))),
        )


def record(path: Path, *, recorded: bool) -> None:
    """Writes environment.json; adds this machine to it, if it is new, for a run on record."""
    machines, here = read(path)["machines"] if recorded else [], machine()
    if here not in machines:
        write_json(path, {"settings": settings(), "machines": [*machines, here]})


def read(path: Path) -> dict[str, Any]:
    """Reads environment.json: "settings", and the distinct "machines" in order of use.

    Raises:
        DamagedFileError: the file cannot be read, or lacks settings or machines.
    """
    content = read_json(path, RESTORE)
    if not (content.get("settings") and content.get("machines")):
        raise DamagedFileError(path, "it lacks settings or machines", RESTORE)
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value if isinstance(value.value, str) else value.name
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _processor() -> str:
    """Returns the CPU model, whose vector units affect the order of sums."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
