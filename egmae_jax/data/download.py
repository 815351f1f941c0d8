"""Fetches the files of a data set that may be fetched, and unpacks its zip archives.

A zip archive with a member that leads out of the folder, is a link, or would fill the disk, is
refused before anything is unpacked; what is unpacked appears when all of it is whole.
"""

import logging
import runpy
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

_MOST_INFLATED = 200  # times its size that an archive may unpack to: images hardly compress
_LEAST_INFLATED = 1 << 20  # bytes that any archive may unpack to: tables and blank images compress


def download(urls: Iterable[str], folder: Path) -> None:
    """Fetches files into `folder` and unpacks the zip archives; what is there is not fetched again.

    Raises:
        DataError: a file cannot be fetched, or an archive is damaged, has members that lead
            elsewhere, or unpacks to absurdly much; nothing of it is unpacked.
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
        except Exception as error:  # damaged archives bring whatever their reader stumbles upon
            raise DataError(
                f"{path} cannot be unpacked ({error!r}); delete it and try again."
            ) from None


def _fetch(url: str, path: Path) -> None:
    try:
        with explain_storage_errors(path.parent):  # pooch moves the file there when it is whole
            pooch.retrieve(url, None, path.name, path.parent, progressbar=True)
    except UserError:
        raise
    except Exception as error:  # pooch passes on whatever its HTTP library raises
        raise DataError(f"{url} cannot be fetched ({type(error).__name__}: {error}).") from None


def _unpack(path: Path, folder: Path) -> None:
    """Unpacks an archive beside, and moves every file to its place once all are there."""
    with zipfile.ZipFile(path) as archive:
        _require_harmless(path, archive.infolist())
        logger.info("Unpacking %s", path)
        with tempfile.TemporaryDirectory(prefix=".unpacking_", dir=folder) as unpacked:
            archive.extractall(unpacked)
            for file in sorted(p for p in Path(unpacked).rglob("*") if p.is_file()):
                target = folder / file.relative_to(unpacked)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)


def _require_harmless(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuses an archive that unpacks to too much, or holds a member outside of the folder."""
    inflated = sum(member.file_size for member in members)
    size, free = path.stat().st_size, shutil.disk_usage(path.parent).free
    problem = None
    if inflated > max(_MOST_INFLATED * size, _LEAST_INFLATED):
        problem = f"would unpack from {size} to {inflated} bytes: it could be a decompression bomb"
    elif inflated > free:
        problem = f"would unpack to {inflated} bytes, of which {path.parent} has {free} free"
    for member in members:
        if leads_elsewhere(member.filename) or stat.S_ISLNK(member.external_attr >> 16):
            problem = f"holds {member.filename!r}, which leads out of the folder or is a link"
    if problem:
        raise DataError(f"{path} {problem}; nothing was unpacked.")


if __name__ == "__main__":
    runpy.run_module("egmae_jax.commands.download", run_name="__main__")
