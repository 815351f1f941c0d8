"""Atomic writes and checked reads of files.

A file is written under a temporary name and then renamed, so a reader sees all of it or none. The
readers assume that a file may be damaged or malicious: they raise an error that names it, and
allocate no more memory than its content needs.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from egmae_jax.core.errors import UserError

# Remedies that end the message of a `DamagedFileError`.
REMAKE = "delete it and run again"  # for files that the same command recreates
RESTORE = "restore it, or start in another --workdir"  # for files that it cannot recreate
REEVALUATE = "run main.py with --stage=evaluate, which recreates it"  # for results.json
# Largest ratio of an npz's unpacked size to its file size; weights compress far less.
_MAX_COMPRESSION_RATIO = 100


class DamagedFileError(UserError):
    """A file is missing, unreadable or damaged; the message names it and a remedy.

    Args:
        path: path of the file.
        reason: what is wrong with it, in words or as the exception that reading it raised.
        remedy: what the user can do, as an imperative.
    """

    def __init__(self, path: Path, reason: object, remedy: str = REMAKE):
        if isinstance(reason, OSError) and not isinstance(reason, FileNotFoundError):
            problem = f"cannot be read ({reason.strerror or reason})"
        else:
            problem = f"is damaged ({reason})" if os.path.exists(path) else "is missing"
        super().__init__(f"{path} {problem}: {remedy}.")


class AccessError(UserError):
    """A file or folder cannot be read or written; the message names it and the reason."""


class StorageError(UserError):
    """A disk is full, broken or read-only; the message names the folders and their free space."""


_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# Errors that the user can fix by changing permissions or choosing another path.
_REFUSED = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
    | {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)
# Two libraries raise no OSError: TensorStore, with which Orbax writes, gives the error number, and
# Riegeli, with which array_record writes, only the system's message.
_TENSORSTORE = re.compile(r"\[os_error_code='(\d+)'\]")
_RIEGELI = re.compile(r"\b(?:open|write|close|fsync|ftruncate)\(\) failed: (.+?); writing ")


@contextlib.contextmanager
def explain_storage_errors(*folders: Path) -> Iterator[None]:
    """Turns the errors of full, broken, read-only and forbidden paths into a `UserError`.

    A permission error is converted only if its file is in, or above, one of `folders`. For any
    other file it is a bug of this program and propagates.

    Args:
        folders: folders and files that the user has named.

    Raises:
        StorageError: a disk is full, broken or read-only.
        AccessError: the system denies access to a file in the folders.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax, TensorStore and TFDS have their own types of disk errors
        if isinstance(error, OSError) and _is_refusal(error, folders):
            raise AccessError(
                f"{os.fsdecode(error.filename)} cannot be used ({error.strerror}): fix this, or "
                "choose another path."
            ) from error
        number = next((n for n in map(_error_number, _chain(error)) if n in _STORAGE), None)
        if number is None:
            raise
        reason = os.strerror(number)
        free = (f"{f} has {_free_bytes(f) / 1e9:.3g} GB left" for f in folders)
        raise StorageError(
            f"A file could not be written ({reason}): {', '.join(free)}. All files saved before "
            "are complete. Fix this and run the same command again to resume."
        ) from error


def _is_refusal(error: OSError, paths: Sequence[Path]) -> bool:
    """Whether the system denies access to one of the paths, or to a file in or above one."""
    if error.errno not in _REFUSED or not isinstance(error.filename, (str, bytes)):
        return False
    names = [os.fsdecode(error.filename), *map(str, paths)]
    for resolve in (os.path.abspath, os.path.realpath):
        refused, *candidates = (Path(resolve(name)) for name in names)
        for path in candidates:
            if refused == path or path in refused.parents or refused in path.parents:
                return True
    return False


def _nearest_existing(path: Path) -> Path:
    """Returns the path, or the nearest folder above it that exists."""
    absolute = Path(os.path.abspath(path))
    return next(x for x in (absolute, *absolute.parents) if os.path.exists(x))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Iterates over an error and the errors that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _error_number(error: BaseException) -> int | None:
    """Returns the system's error number (errno) of a file error; None if the error has none."""
    if isinstance(error, OSError):
        return error.errno
    if match := _TENSORSTORE.search(str(error)):
        return int(match[1])
    if match := _RIEGELI.search(str(error)):
        return next((n for n in _STORAGE if os.strerror(n) == match[1]), None)
    return None


def _free_bytes(folder: Path) -> int:
    """Returns the free space of the disk with the folder, which need not exist yet."""
    return shutil.disk_usage(_nearest_existing(folder)).free


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that even after a crash it is either complete or unchanged.

    Every process that calls this writes: check `hosts.is_primary` first on several hosts.

    Raises:
        AccessError: the system does not allow the file at `path`.
    """
    with open_atomically(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def require_output(path: Path, suffixes: Sequence[str], inputs: Iterable[Path] = ()) -> None:
    """Checks that an output file can be written and overwrites none of the inputs.

    Args:
        path: path of the output file.
        suffixes: allowed suffixes, in lower case, such as '.csv'.
        inputs: files that the command reads.

    Raises:
        AccessError: the suffix is another one, the path is a folder, a device or one of `inputs`,
            or its folder is not writable.
    """
    if path.suffix.lower() not in suffixes:
        raise AccessError(f"{path} must end in {' or '.join(suffixes)}.")
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "not a regular file"
        raise AccessError(f"{path} is {kind}; give the path of a file to write.")
    existing = [x for x in inputs if os.path.exists(x)] if os.path.exists(path) else []
    if any(os.path.samefile(path, x) for x in existing):
        raise AccessError(f"{path} is one of the input files and would be overwritten.")
    require_writable(path.parent, str(path))


def require_readable(path: Path) -> None:
    """Checks that a file, if it exists, may be read; few readers tell forbidden from damaged files.

    Raises:
        AccessError: the system denies access to the file.
    """
    if os.path.exists(path):
        with explain_storage_errors(path):
            path.open("rb").close()


def require_writable(folder: Path, named: str) -> None:
    """Checks that files can be written to a folder, which need not exist yet.

    Args:
        folder: path of the folder; the folders above it need not exist either.
        named: how the user named the folder, such as '--out=results', for the message.

    Raises:
        AccessError: the path, or one above it, is a file, or the folder is not writable.
    """
    existing = _nearest_existing(folder)
    problem = "not writable" if existing.is_dir() else "a file, not a folder"
    is_writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    if is_writable:
        try:  # `os.access` can be wrong on NFS, over quota and for root
            tempfile.TemporaryFile(dir=existing).close()
        except OSError as error:
            problem, is_writable = f"not writable ({error.strerror})", False
    if not is_writable:
        raise AccessError(f"{named} cannot be written to: {existing} is {problem}.")


@contextlib.contextmanager
def open_atomically(path: Path, mode: str, **options: Any) -> Iterator[IO[Any]]:
    """Opens a file that replaces `path` when the block ends, and is removed if the block raises.

    Args:
        path: path of the file; its folder is created if needed.
        mode: 'w' or 'wb'.
        **options: further arguments of `open`.

    Yields:
        The open file.

    Raises:
        AccessError: the system does not allow the file at `path`.
    """
    with explain_storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with explain_storage_errors(path.parent):
            opened = partial.open(mode, **options)
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with explain_storage_errors(path.parent):
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def natural_key(name: str) -> list[tuple[bool, Any]]:
    """Sort key that orders names by their numbers: 'benign (2).png' before 'benign (10).png'."""
    parts = (int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", name))
    return [(isinstance(x, str), x) for x in parts]


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically (see `write_atomically`)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A path's bytes that are not valid UTF-8 become JSON escapes.
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def write_json_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON list with one row on each line, atomically."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    write_atomically(path, f"[\n{lines}\n]\n")


def read_json(path: Path, remedy: str = REMAKE, kind: type = dict) -> Any:
    """Reads a JSON file.

    Args:
        path: path of the file.
        remedy: end of the error's message, an imperative.
        kind: expected type of the content, dict or list.

    Raises:
        DamagedFileError: the file is missing, unreadable, or not JSON of this type.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise DamagedFileError(path, error, remedy) from None
    try:
        content = json.loads(encoded.decode(), parse_constant=_reject_constant)
    except ValueError as error:
        raise DamagedFileError(path, error, remedy) from None
    except RecursionError:
        raise DamagedFileError(path, "it is nested too deeply", remedy) from None
    if not isinstance(content, kind):
        actual = type(content).__name__
        raise DamagedFileError(path, f"it holds a {actual}, not a {kind.__name__}", remedy)
    return content


def _reject_constant(text: str) -> NoReturn:
    """Rejects NaN and Infinity, which Python's parser accepts."""
    raise ValueError(f"{text} is not valid JSON")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object and the SHA-256 of its content, which `read_sealed` checks."""
    write_json(path, value | {"sha256": _digest(value)})


def read_sealed(path: Path, remedy: str = REMAKE) -> dict[str, Any]:
    """Reads a JSON object that `write_sealed` wrote.

    Raises:
        DamagedFileError: the file is missing, unreadable, or changed since it was written.
    """
    value = read_json(path, remedy)
    if value.pop("sha256", None) != _digest(value):
        raise DamagedFileError(path, "its SHA-256 does not match its content", remedy)
    return value


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays to an npz file by name, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz file, by name, after checking their sizes.

    Raises:
        ValueError: the file is not an npz file, holds pickled objects or two arrays of one name,
            the size of an array differs from its header, or the arrays are more than 100 times
            larger than the file.
        AccessError: the system denies access to the file.
    """
    require_readable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > _MAX_COMPRESSION_RATIO * path.stat().st_size:
                raise ValueError(f"it unpacks to {unpacked} bytes and may be a zip bomb")
            if len({member.filename for member in members}) < len(members):
                raise ValueError("it holds two arrays with the same name")
            for member in members:
                _require_npy(archive, member)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # noqa: BLE001 (damaged archives raise many types of errors)
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _require_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Checks the size in an array's header, because numpy allocates it before reading.

    Raises:
        ValueError: the array has another size, or the member is not an array.
    """
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):  # the versions that numpy writes
            raise ValueError(f"{member.filename} has npy version {version}, not 1.0 or 2.0")
        read = np.lib.format.read_array_header_2_0
        if version == (1, 0):
            read = np.lib.format.read_array_header_1_0
        shape, _, dtype = read(file)
        expected = file.tell() + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and expected != member.file_size:
        raise ValueError(
            f"{member.filename} has {member.file_size} bytes, but its header says {expected}"
        )
