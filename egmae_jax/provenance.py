"""What made a result: versions, devices, the command."""

import importlib.metadata
import platform
import shlex
import sys
from typing import Any

import jax

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scikit-learn",
    "pillow",
)


def describe() -> dict[str, Any]:
    """JSON-like: "versions" by package, "devices" and "command"."""
    versions = {name: _version(name) for name in ("egmae_jax", *_PACKAGES)}
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()} | versions,
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "hosts": jax.process_count(),
        "platform": platform.platform(),
        "command": shlex.join(sys.argv),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # of a checkout that is not installed
        return "not installed"
