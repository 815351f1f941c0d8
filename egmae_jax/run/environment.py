"""Settings and machines that change the numbers of a run, beside its config.

The same config gives other bits under `JAX_ENABLE_X64`, under another precision of matrix products
or with a flag of XLA's. Such settings are recorded in the workdir's environment.json when a run
begins, and a start under others is refused. What nobody can hold a run to, another kind of device,
processor or version of a library, is recorded beside them and logged.
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
from egmae_jax.core.files import RESTORE, DamagedFileError, read_json, write_json
from egmae_jax.core.platform import DETERMINISTIC, flags_of, is_deterministic
from egmae_jax.run.config import ConfigError, differences, flatten

# Settings of JAX by the names that they are set by: jax.config.update("jax_enable_x64", True), or
# the environment variable JAX_ENABLE_X64.
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
# Flags that only say where files are written to or read from, how many threads compile, or how many
# devices a CPU is: a run may go on without them.
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
    """Settings of this process that change numbers, JSON-like, by the names they are set by.

    'deterministic' is `main.py --deterministic`; flags of XLA_FLAGS have their own names.
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
    """This machine: "platform", "device", "processor" if it is a CPU, "versions" by package."""
    device = jax.devices()[0]
    content: dict[str, Any] = {"platform": device.platform, "device": device.device_kind}
    if device.platform == "cpu":
        content["processor"] = _processor()
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a mere checkout
            versions[package] = importlib.metadata.version(package)
    return content | {"versions": versions}


def require_same(path: Path, *, begun: bool) -> None:
    """Refuses to go on under other settings than a run began with; warns of another machine.

    All hosts call it; their settings must be the same, too.

    Args:
        path: path of environment.json.
        begun: whether there is a run to go on with.

    Raises:
        ConfigError: names every setting that differs, with both values.
        DamagedFileError: the file cannot be read.
    """
    now = settings()
    checksum = float(zlib.crc32(repr(now).encode()))
    largest, smallest = hosts.agree(checksum, -checksum)
    if largest != -smallest:
        raise ConfigError(
            "The hosts have different settings, which would give each other numbers; on this one: "
            + ", ".join(f"{name}={value!r}" for name, value in now.items())
        )
    if not begun:
        return
    content = recorded(path)
    before, machines = content["settings"], content["machines"]
    of_one_version = [name for name in _JAX_SETTINGS if (name in before) != (name in now)]
    if changes := differences(before, now, free=of_one_version):
        raise ConfigError(
            "The workdir holds a run under other settings of JAX or XLA; going on would mix two "
            "kinds of numbers. Use the same settings or another --workdir.\n  "
            + "\n  ".join(changes)
        )
    here = machine()
    if here not in machines:
        logger.warning(
            "The run has been on another machine or other versions: %s. It goes on, and what it "
            "computes from here agrees with that up to rounding; results.json lists both.",
            "; ".join(differences(flatten(machines[-1]), flatten(here))),
        )


def record(path: Path, *, begun: bool) -> None:
    """Writes environment.json, or adds this machine to the one of a run that has begun."""
    machines, here = recorded(path)["machines"] if begun else [], machine()
    if here not in machines:
        write_json(path, {"settings": settings(), "machines": [*machines, here]})


def recorded(path: Path) -> dict[str, Any]:
    """The content of environment.json: "settings", and the distinct "machines" in their order.

    Raises:
        DamagedFileError: the file cannot be read, or lacks one of these.
    """
    content = read_json(path, RESTORE)
    if not (content.get("settings") and content.get("machines")):
        raise DamagedFileError(path, "it names no settings or no machine", RESTORE)
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value if isinstance(value.value, str) else value.name
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _processor() -> str:
    """Model of the processor if the system tells it: its vector units decide how sums are made."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
