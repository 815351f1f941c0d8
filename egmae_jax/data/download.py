"""Fetches the files of a data set that may be fetched, and unpacks its archives.

Pooch fetches the files and shows progress. Their SHA-256 is compared with the one the project
knows; where the publisher tells none, it is written to the folder's checksums.json at the first
download, and later ones must agree with it. An archive with a member that leads out of the folder,
is a link, or would fill the disk, is refused before anything is unpacked; what is unpacked appears
when all of it is whole.
"""

import functools
import logging
import runpy
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import pooch

from egmae_jax.core.errors import UserError
from egmae_jax.core.files import explain_storage_errors, read_json, write_json
from egmae_jax.data.datasets import Archive, DataError

logger = logging.getLogger(__name__)

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")
_MOST_INFLATED = 200  # times its size that an archive may unpack to: images hardly compress
_LEAST_INFLATED = 1 << 20  # bytes that any archive may unpack to: tables and blank images compress


def download(archives: Iterable[Archive], folder: Path) -> None:
    """Fetches files into `folder` and unpacks those that are archives; what is there is kept.

    Raises:
        DataError: a file cannot be fetched, has another checksum, or is an archive whose members
            lead elsewhere or unpack to absurdly much; nothing of it is unpacked.
        DamagedFileError: checksums.json is damaged.
    """
    notes = folder / "checksums.json"
    known = read_json(notes) if notes.exists() else {}
    for archive in archives:
        name = PurePosixPath(archive.url).name
        path = folder / name
        expected = archive.sha256 or known.get(name)
        if not path.exists():
            _fetch(archive.url, path, expected)
        digest = pooch.file_hash(str(path))
        if expected is not None and digest != expected:
            raise DataError(
                f"{path} has SHA-256 {digest}, not {expected}; delete it and try again."
            )
        try:
            with explain_storage_errors(folder):
                _unpack(path, folder)
        except UserError:
            raise
        except Exception as error:  # damaged archives bring whatever their readers stumble upon
            raise DataError(
                f"{path} cannot be unpacked ({error!r}); delete it and try again."
            ) from None
        known[name] = digest
        write_json(notes, known)


def _fetch(url: str, path: Path, sha256: str | None) -> None:
    try:
        with explain_storage_errors(path.parent):
            pooch.retrieve(url, sha256, path.name, path.parent, progressbar=True)
    except UserError:
        raise
    except Exception as error:  # pooch's alone is called: it passes on what its HTTP library raises
        raise DataError(f"{url} cannot be fetched ({type(error).__name__}: {error}).") from None


def _unpack(path: Path, folder: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _require_room(path, sum(member.file_size for member in members))
            _require_plain(path, (m.filename for m in members))
            _require_none(
                path, (m.filename for m in members if stat.S_ISLNK(m.external_attr >> 16))
            )
            _extract(path, folder, archive.extractall)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            inflated = 0
            for member in archive:  # tells its size before it is read over
                inflated += member.size
                _require_room(path, inflated)
            _require_plain(path, archive.getnames())
            _require_none(path, (m.name for m in archive if not (m.isfile() or m.isdir())))
            _extract(path, folder, functools.partial(archive.extractall, filter="data"))
    elif path.name.endswith(_ARCHIVES):
        raise DataError(f"{path} is no archive; the server sent something else, or not all of it.")


def _extract(path: Path, folder: Path, extract: Callable[[Path], None]) -> None:
    """Unpacks beside, and moves every file to its place once all are there."""
    logger.info("Unpacking %s", path)
    with tempfile.TemporaryDirectory(prefix=".unpacking_", dir=folder) as unpacked:
        extract(Path(unpacked))
        for file in sorted(p for p in Path(unpacked).rglob("*") if p.is_file()):
            target = folder / file.relative_to(unpacked)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)


def _require_room(path: Path, inflated: int) -> None:
    size, free = path.stat().st_size, shutil.disk_usage(path.parent).free
    problem = ""
    if inflated > max(_MOST_INFLATED * size, _LEAST_INFLATED):
        problem = f"from {size}: it could be a decompression bomb"
    elif inflated > free:
        problem = f"of which {path.parent} has {free} free"
    if problem:
        raise DataError(
            f"{path} would unpack to {inflated} bytes or more, {problem}; nothing was unpacked."
        )


def _require_plain(path: Path, names: Iterable[str]) -> None:
    """Refuses an archive with a member whose name leads out of the folder."""
    parsed = ((name, PurePosixPath(name.replace("\\", "/"))) for name in names)
    _require_none(path, (name for name, p in parsed if p.is_absolute() or ".." in p.parts))


def _require_none(path: Path, members: Iterable[str]) -> None:
    """Refuses an archive of which some members are named as wrong."""
    for member in members:
        raise DataError(
            f"{path} holds {member!r}, which leads out of the folder or is no plain file; nothing "
            "was unpacked."
        )


if __name__ == "__main__":
    runpy.run_module("egmae_jax.commands.download", run_name="__main__")
