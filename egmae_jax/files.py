"""Files that are whole or not there: written beside their place, then renamed."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from egmae_jax import sharding

REMAKE = "delete it and run again"  # for what the same command makes anew
RESTORE = "restore it, or start in another --workdir"  # for what it cannot


class DamagedFileError(ValueError):
    """A file of the workdir cannot be read; the message names it and says what to do."""

    def __init__(self, path: Path, reason: object, remedy: str = REMAKE):
        super().__init__(f"{path} is damaged ({reason}): {remedy}.")


class StorageError(RuntimeError):
    """A disk takes no more; the message says which, and that nothing is lost."""


_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextlib.contextmanager
def storage_errors_told(*folders: Path) -> Iterator[None]:
    """Turns the errors of full, broken and read-only disks into a sentence.

    They are known by the system's words: not all libraries that write raise OSError.

    Args:
        folders: that are written to.

    Raises:
        StorageError: in place of such an error.
    """
    try:
        yield
    except Exception as error:
        reason = next((r for r in map(os.strerror, _STORAGE) if r in str(error)), None)
        if reason is None:
            raise
        left = (f"{f} has {shutil.disk_usage(f).free / 1e9:.3g} GB left" for f in folders)
        raise StorageError(
            f"A file could not be written ({reason}): {', '.join(left)}. What was saved before is "
            "whole: the same command goes on once this is mended."
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes `content` to `path` so that no reader, and no crash, ever sees half of it.

    Of several hosts one writes.
    """
    if not sharding.is_primary():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    data = content.encode() if isinstance(content, str) else content
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def read_json(path: Path, remedy: str = REMAKE) -> Any:
    """Reads a JSON file.

    Raises:
        DamagedFileError: it is none; the message ends with the `remedy`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFileError(path, error, remedy) from None


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object with the SHA-256 of its content, which `read_sealed` holds it to."""
    write_json(path, value | {"sha256": _digest(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Reads what `write_sealed` wrote.

    Raises:
        DamagedFileError: it is not what was written.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.pop("sha256", None) != _digest(value):
        raise DamagedFileError(path, "it is not what was written")
    return value


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
