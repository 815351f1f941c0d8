"""Files that are whole or not there: written beside their place, then renamed.

What is read may be damaged, or written by somebody else: readers say so, and take no more memory
than a file can fill.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from egmae_jax import sharding
from egmae_jax.errors import UserError

REMAKE = "delete it and run again"  # for what the same command makes anew
RESTORE = "restore it, or start in another --workdir"  # for what it cannot
REEVALUATE = "run main.py with --stage=evaluate, which makes it anew"  # for results.json
_MOST_INFLATED = 100  # times its file that an npz may unpack to: weights do not compress so well


class DamagedFileError(UserError):
    """A file of the workdir cannot be read; the message names it and says what to do."""

    def __init__(self, path: Path, reason: object, remedy: str = REMAKE):
        what = f"is damaged ({reason})" if path.exists() else "is missing"
        super().__init__(f"{path} {what}: {remedy}.")


class StorageError(UserError):
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
        if reason is None or "NCCL" in str(error):  # whose shared memory is no disk
            raise
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # Orbax's, which says it again
        left = (f"{f} has {_free(f) / 1e9:.3g} GB left" for f in folders)
        raise StorageError(
            f"A file could not be written ({reason}): {', '.join(left)}. What was saved before is "
            "whole: the same command goes on once this is mended."
        ) from error


def _free(folder: Path) -> int:
    """Bytes left where a folder is, or would be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes `content` to `path` so that no reader, and no crash, ever sees half of it.

    Of several hosts one writes.
    """
    if not sharding.is_primary():
        return
    with open_atomically(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def require_output(path: Path, suffixes: Sequence[str], inputs: Iterable[Path] = ()) -> None:
    """Asks of a file that a user wants written that nothing of theirs is lost by it.

    Raises:
        ValueError: it ends otherwise, is a folder or a device, or is one of the files read.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join(suffixes)}.")
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no file"
        raise ValueError(f"{path} is {kind}; a file is to be written.")
    if path.exists() and any(path.samefile(x) for x in inputs if x.exists()):
        raise ValueError(f"{path} is one of the files to be read; it would be overwritten.")


@contextlib.contextmanager
def open_atomically(path: Path, mode: str, **options: Any) -> Iterator[IO[Any]]:
    """A file to write that is at `path` once the block ends, and not at all if it fails.

    Args:
        path: of the file; its folder is made.
        mode: 'w' or 'wb'.
        **options: of `open`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def natural_key(name: str) -> list[tuple[bool, Any]]:
    """Sorts 'benign (2).png' before 'benign (10).png'."""
    parts = (int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", name))
    return [(isinstance(x, str), x) for x in parts]


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Bytes of a path that are no UTF-8 become what JSON has for them.
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def read_json(path: Path, remedy: str = REMAKE, kind: type = dict) -> Any:
    """Reads a JSON file whose content is of a `kind`, dict or list.

    Raises:
        DamagedFileError: it is none; the message ends with the `remedy`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (ValueError, OSError) as error:
        raise DamagedFileError(path, error, remedy) from None
    except RecursionError:
        raise DamagedFileError(path, "it is nested too deeply", remedy) from None
    if not isinstance(content, kind):
        found = type(content).__name__
        raise DamagedFileError(path, f"it holds a {found}, not a {kind.__name__}", remedy)
    return content


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")  # nor what `write_json` writes


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object with the SHA-256 of its content, which `read_sealed` holds it to."""
    write_json(path, value | {"sha256": _digest(value)})


def read_sealed(path: Path, remedy: str = REMAKE) -> dict[str, Any]:
    """Reads what `write_sealed` wrote.

    Raises:
        DamagedFileError: it is not what was written.
    """
    value = read_json(path, remedy)
    if value.pop("sha256", None) != _digest(value):
        raise DamagedFileError(path, "it is not what was written", remedy)
    return value


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, none of which claims more than the file can hold.

    Raises:
        ValueError: it is none, or holds pickled objects, a name twice, or arrays of another size
            than they claim, or unpacks to a hundred times its size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            inflated = sum(member.file_size for member in members)
            if inflated > _MOST_INFLATED * path.stat().st_size:
                raise ValueError(f"it unpacks to {inflated} bytes: it could be a bomb")
            if len({member.filename for member in members}) < len(members):
                raise ValueError("it holds two arrays of one name")
            for member in members:
                _require_npy(archive, member)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # damaged archives bring whatever the readers stumble upon
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _require_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Compares the size an array claims with what is there: numpy takes that much memory first.

    Raises:
        ValueError: they differ, or it is no array.
    """
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):  # what numpy writes
            raise ValueError(f"{member.filename} is of npy version {version}")
        read = np.lib.format.read_array_header_2_0
        if version == (1, 0):
            read = np.lib.format.read_array_header_1_0
        shape, _, dtype = read(file)
        claimed = file.tell() + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and claimed != member.file_size:
        raise ValueError(f"{member.filename} has {member.file_size} bytes, but claims {claimed}")
