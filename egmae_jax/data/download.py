"""Downloads the files of data sets that allow it, and unpacks zip archives.

A zip archive with links, with members that lead out of the folder, or with more content than the
disk can hold is rejected before anything is unpacked. The unpacked files appear when all of them
are complete.
"""

import logging
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import pooch

from egmae_jax.core.errors import UserError
from egmae_jax.core.files import explain_storage_errors
from egmae_jax.data.datasets import DataError
from egmae_jax.data.datasets.base import leads_elsewhere

logger = logging.getLogger(__name__)

# Largest ratio of an archive's unpacked size to its own; images hardly compress. Up to the second
# limit, in bytes, any ratio is allowed, because tables and blank images compress well.
_MAX_COMPRESSION_RATIO = 200
_ALWAYS_ALLOWED_BYTES = 1 << 20


def download(urls: Iterable[str], folder: Path) -> None:
    """Downloads files that do not exist yet into a folder, and unpacks the zip archives.

    Args:
        urls: addresses of the files.
        folder: folder for the files and the content of the archives.

    Raises:
        DataError: a file cannot be downloaded; or an archive is damaged, contains links or members
            that lead out of the folder, or unpacks to too many bytes, and is not unpacked.
    """
    for url in urls:
        path = folder / PurePosixPath(url).name
        if not path.exists():
            _fetch(url, path)
        if path.suffix != ".zip":
            continue
        try:
            with explain_storage_errors(folder):
                _unpack(path, folder)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 (zipfile raises many types of errors)
            raise DataError(
                f"{path} cannot be unpacked ({error!r}); delete it and run the command again."
            ) from None


def _fetch(url: str, path: Path) -> None:
    try:
        with explain_storage_errors(path.parent):  # pooch moves complete files there
            pooch.retrieve(url, None, path.name, path.parent, progressbar=True)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 (pooch passes on all errors of its HTTP library)
        raise DataError(f"{url} cannot be downloaded ({type(error).__name__}: {error}).") from None


def _unpack(path: Path, folder: Path) -> None:
    """Unpacks an archive into a temporary folder, and moves the files when all are complete."""
    with zipfile.ZipFile(path) as archive:
        _require_safe(path, archive.infolist())
        logger.info("Unpacking %s", path)
        with tempfile.TemporaryDirectory(prefix=".unpacking_", dir=folder) as unpacked:
            archive.extractall(unpacked)
            for file in sorted(p for p in Path(unpacked).rglob("*") if p.is_file()):
                target = folder / file.relative_to(unpacked)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)


def _require_safe(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raises DataError if an archive is too large, has links, or leads out of the folder."""
    unpacked = sum(member.file_size for member in members)
    size, free = path.stat().st_size, shutil.disk_usage(path.parent).free
    problem = None
    if unpacked > max(_MAX_COMPRESSION_RATIO * size, _ALWAYS_ALLOWED_BYTES):
        problem = f"would unpack from {size} to {unpacked} bytes: it could be a decompression bomb"
    elif unpacked > free:
        problem = f"would unpack to {unpacked} bytes, but {path.parent} has only {free} bytes free"
    for member in members:
        if leads_elsewhere(member.filename) or stat.S_ISLNK(member.external_attr >> 16):
            problem = f"contains {member.filename!r}, which leads out of the folder or is a link"
    if problem:
        raise DataError(f"{path} {problem}; nothing was unpacked.")
