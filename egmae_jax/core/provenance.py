"""Provenance of a result: versions, commit, devices and command."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
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


def describe_process() -> dict[str, Any]:
    """Describes this process as a JSON object.

    Returns:
        "versions" by package, "commit" (see `_commit`), "devices" such as '8 x NVIDIA H100', number
        of "hosts", "platform" and "command".
    """
    versions = {name: _version(name) for name in ("egmae_jax", *_PACKAGES)}
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()} | versions,
        "commit": _commit(),
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "hosts": jax.process_count(),
        "platform": platform.platform(),
        "command": shlex.join(sys.argv),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return "not installed"


def _commit() -> str | None:
    """Returns the commit of the git clone with this code, or None without a clone.

    The suffix '-dirty' marks uncommitted changes.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, check=True, text=True, timeout=10
        ).stdout.strip()

    here = Path(__file__)
    try:
        git("ls-files", "--error-unmatch", here.name)  # fails if the clone only holds a virtualenv
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
