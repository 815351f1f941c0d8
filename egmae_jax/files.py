"""Files that are whole or not there: written beside their place, then renamed."""

import json
import os
from pathlib import Path
from typing import Any

from egmae_jax import sharding

REMAKE = "delete it and run again"  # for what the same command makes anew
RESTORE = "restore it, or start in another --workdir"  # for what it cannot


class DamagedFileError(ValueError):
    """A file of the workdir cannot be read; the message names it and says what to do."""

    def __init__(self, path: Path, reason: object, remedy: str = REMAKE):
        super().__init__(f"{path} is damaged ({reason}): {remedy}.")


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
