"""A run's folder: who may use it, and whether what it holds belongs to this run."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock
from ml_collections import ConfigDict

from egmae_jax.config import ConfigError, require_same
from egmae_jax.files import RESTORE, read_json, write_json


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keeps every other process from using the folder; a killed one lets go of it.

    Raises:
        ConfigError: it cannot be written to, or is in use.
    """
    _require_writable(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    holder, path = workdir / ".holder", workdir / ".lock"
    handle = filelock.FileLock(path)
    try:
        handle.acquire(timeout=0)
    except filelock.Timeout:
        who = holder.read_text() if holder.exists() else "another process"
        raise ConfigError(f"--workdir={workdir} is in use by {who}; one run at a time.") from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        handle.release()
        if {entry.name for entry in workdir.iterdir()} <= {path.name}:  # stopped before any work
            path.unlink(missing_ok=True)
            workdir.rmdir()


def has_begun(workdir: Path) -> bool:
    """Whether a stage has left anything there, if only its checkpoints."""
    patterns = ("pretrain", "export", "predictions", "round_*/*")
    return any(path.is_dir() for pattern in patterns for path in workdir.glob(pattern))


def require_same_run(workdir: Path, config: ConfigDict) -> None:
    """Refuses to go on with another config than the one that the run began with.

    Raises:
        ConfigError: the config differs, or is lost.
        DamagedFileError: config.json cannot be read.
    """
    record = _record(workdir)
    if record.exists():
        require_same(read_json(record, RESTORE), config)
    elif has_begun(workdir):
        raise ConfigError(f"--workdir={workdir} holds a run, but not its config.json: {RESTORE}.")


def record_config(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json, which `require_same_run` holds later runs to."""
    write_json(_record(workdir), config.to_dict())


def _record(workdir: Path) -> Path:
    return workdir / "config.json"


def _require_writable(workdir: Path) -> None:
    existing = next(
        path for path in (workdir.resolve(), *workdir.resolve().parents) if path.exists()
    )
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        kind = "not writable" if existing.is_dir() else "a file, not a folder"
        raise ConfigError(f"--workdir={workdir} cannot be written to: {existing} is {kind}.")
