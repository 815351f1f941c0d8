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
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from egmae_jax.core.errors import UserError

REMAKE = "delete it and run again"  # for what the same command makes anew
RESTORE = "restore it, or start in another --workdir"  # for what it cannot
REEVALUATE = "run main.py with --stage=evaluate, which makes it anew"  # for results.json
logger = logging.getLogger(__name__)
_MOST_INFLATED = 100  # times its file that an npz may unpack to: weights do not compress so well


class DamagedFileError(UserError):
    """A file of the workdir cannot be read; the message names it and says what to do."""

    def __init__(self, path: Path, reason: object, remedy: str = REMAKE):
        if isinstance(reason, OSError) and not isinstance(reason, FileNotFoundError):
            what = f"cannot be read ({reason.strerror or reason})"
        else:
            what = f"is damaged ({reason})" if os.path.exists(path) else "is missing"
        super().__init__(f"{path} {what}: {remedy}.")


def damaged(path: Path, reason: str, error: Exception, remedy: str) -> DamagedFileError:
    """The error for a file whose content lacks, or has of another kind, what its use needs.

    A field that is missing says that by itself. For what else went wrong the file is only suspect,
    so the traceback is logged: the fault may be this program's.

    Args:
        path: path of the file.
        reason: what cannot be done with it.
        error: what its use raised.
        remedy: what to do.
    """
    if not isinstance(error, LookupError):
        logger.error("%s: %s", path, reason, exc_info=error)
    return DamagedFileError(path, f"{reason} ({error!r})", remedy)


class AccessError(UserError):
    """A file or folder cannot be read or written as was asked; the message says which and why."""


class StorageError(UserError):
    """A disk takes no more; the message says which, and that nothing is lost."""


_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# What the system may refuse of a place, which its owner can mend or whoever names another.
_REFUSED = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
    | {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)
# Of libraries that raise no OSError: how TensorStore (by which Orbax writes) gives the number, and
# Riegeli (by which array_record writes) the system's words alone.
_TENSORSTORE = re.compile(r"\[os_error_code='(\d+)'\]")
_RIEGELI = re.compile(r"\b(?:open|write|close|fsync|ftruncate)\(\) failed: (.+?); writing ")


@contextlib.contextmanager
def explain_storage_errors(*folders: Path) -> Iterator[None]:
    """Turns the errors of full, broken, read-only and forbidden places into a sentence.

    A file that the system refuses is reported only if it lies in one of the folders.

    Args:
        folders: folders and files that the user has named.

    Raises:
        StorageError: a disk is full, broken or read-only.
        AccessError: the system refuses a file in the folders.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax, TensorStore and TFDS raise errors of their own for a disk
        if isinstance(error, OSError) and _is_refusal(error, folders):
            raise AccessError(
                f"{os.fsdecode(error.filename)} cannot be used ({error.strerror}): mend that, or "
                "name another place."
            ) from error
        number = next((n for n in map(_error_number, _chain(error)) if n in _STORAGE), None)
        if number is None:
            raise
        reason = os.strerror(number)
        left = (f"{f} has {_free(f) / 1e9:.3g} GB left" for f in folders)
        raise StorageError(
            f"A file could not be written ({reason}): {', '.join(left)}. What was saved before is "
            "whole: the same command goes on once this is mended."
        ) from error


def _is_refusal(error: OSError, given: Sequence[Path]) -> bool:
    """Whether the system refuses a file that is given, or lies in or above one that is."""
    if error.errno not in _REFUSED or not isinstance(error.filename, (str, bytes)):
        return False
    names = [os.fsdecode(error.filename), *map(str, given)]
    for spell in (os.path.abspath, os.path.realpath):
        refused, *places = (Path(spell(name)) for name in names)
        for place in places:
            if refused == place or place in refused.parents or refused in place.parents:
                return True
    return False


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    whole = Path(os.path.abspath(path))
    return next(place for place in (whole, *whole.parents) if os.path.exists(place))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _error_number(error: BaseException) -> int | None:
    """The system's number of what went wrong with a file."""
    if isinstance(error, OSError):
        return error.errno
    if match := _TENSORSTORE.search(str(error)):
        return int(match[1])
    if match := _RIEGELI.search(str(error)):
        return next((n for n in _STORAGE if os.strerror(n) == match[1]), None)
    return None


def _free(folder: Path) -> int:
    """Bytes left where a folder is, or would be."""
    return shutil.disk_usage(_nearest(folder)).free


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes `content` to `path` so that no reader, and no crash, ever sees half of it.

    Of several hosts of a run each would write: the caller asks `sharding.is_primary` first.
    """
    with open_atomically(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def require_output(path: Path, suffixes: Sequence[str], inputs: Iterable[Path] = ()) -> None:
    """Asks of a file that a user wants written that nothing of theirs is lost by it.

    Raises:
        AccessError: it ends otherwise, is a folder or a device, or is one of the files read; or
            nothing can be written where it is to be.
    """
    if path.suffix.lower() not in suffixes:
        raise AccessError(f"{path} must end in {' or '.join(suffixes)}.")
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "no file"
        raise AccessError(f"{path} is {kind}; a file is to be written.")
    existing = [x for x in inputs if os.path.exists(x)] if os.path.exists(path) else []
    if any(os.path.samefile(path, x) for x in existing):
        raise AccessError(f"{path} is one of the files to be read; it would be overwritten.")
    require_writable(path.parent, str(path))


def require_readable(path: Path) -> None:
    """Opens a file, if there is one: readers seldom tell one that is forbidden from a damaged one.

    Raises:
        AccessError: the system does not let it be read.
    """
    if os.path.exists(path):
        with explain_storage_errors(path):
            path.open("rb").close()


def require_writable(folder: Path, named: str) -> None:
    """Tries whether a folder that is there, or that would be made, can be written to.

    Args:
        folder: to be written to; neither it nor one above it needs to be there yet.
        named: what the user gave for it, for the message, such as '--out=results'.

    Raises:
        AccessError: it is a file, or the system lets no file be made in it.
    """
    existing = _nearest(folder)
    kind = "not writable" if existing.is_dir() else "a file, not a folder"
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    if writable:
        try:  # what `os.access` says is not always so: of NFS, of a quota, to root
            tempfile.TemporaryFile(dir=existing).close()
        except OSError as error:
            kind, writable = f"not writable ({error.strerror})", False
    if not writable:
        raise AccessError(f"{named} cannot be written to: {existing} is {kind}.")


@contextlib.contextmanager
def open_atomically(path: Path, mode: str, **options: Any) -> Iterator[IO[Any]]:
    """A file to write that is at `path` once the block ends, and not at all if it fails.

    Args:
        path: path of the file, whose folder is made if needed.
        mode: 'w' or 'wb'.
        **options: of `open`.

    Raises:
        AccessError: the system does not let it be there.
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
        encoded = path.read_bytes()
    except OSError as error:
        raise DamagedFileError(path, error, remedy) from None
    try:
        content = json.loads(encoded.decode(), parse_constant=_no_number)
    except ValueError as error:
        raise DamagedFileError(path, error, remedy) from None
    except RecursionError:
        raise DamagedFileError(path, "it is nested too deeply", remedy) from None
    if not isinstance(content, kind):
        held = type(content).__name__
        raise DamagedFileError(path, f"it holds a {held}, not a {kind.__name__}", remedy)
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
        AccessError: the system does not let it be read.
    """
    require_readable(path)
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
