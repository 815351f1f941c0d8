"""The records of a data set: all images in one cache folder, with an index that describes them.

TFDS writes the records in the array_record format, with images as bytes, which needs no TensorFlow.
A record contains the file itself for JPEG and WebP, and packed pixels for formats that are slow to
decode, unless the pixels are many times larger than the file. The file index.npz beside them has
everything that splits and audits need (hashes, grey thumbnails, sizes), so that a run starts
without reading all images. The name of the cache folder is a fingerprint of the names, sizes and
modification times of the files; if a file changes, the records are written again.

Files are read a few at a time and written immediately, so memory grows with the data set only by
the index, two kilobytes per image. The folder appears when it is complete; if there are several
processes, one of them writes it.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import tensorflow_datasets as tfds

from egmae_jax.core.errors import MissingExtraError, shorten_list
from egmae_jax.core.files import (
    AccessError,
    DamagedFileError,
    StorageError,
    explain_storage_errors,
    read_npz,
)
from egmae_jax.data import duplicates, images, packing, pixels, samples
from egmae_jax.data.datasets import DataError
from egmae_jax.data.formats import dicom
from egmae_jax.data.listing import Listing
from egmae_jax.data.samples import IntensityRange, Rule
from egmae_jax.data.threads import read_ahead

logger = logging.getLogger(__name__)

_VERSION = "11.0.0"  # increase it if the content of the records or of the index changes
_INDEX = "index.npz"
_SPLIT = "images"  # name of the only split in TFDS's sense
_IMAGES_PER_FILE = 10_000
# Pixels are packed only up to this size and this ratio to the file size, which limits the memory
# that preparation needs and the size of the records.
_MAX_PACKED_BYTES, _MAX_PACKED_RATIO = 16e6, 8


class Records:
    """Random access to the images of a data set.

    Each record is compared with its digest, because array_record (0.8) silently returns records
    without an image from a truncated file.

    Args:
        folder: folder of the records.
        index: columns of the index, from `read_index`.

    Raises:
        DamagedFileError: the records cannot be opened.
    """

    def __init__(self, folder: Path, index: Mapping[str, np.ndarray]):
        self._folder, self._digests = folder, index["digest"].tolist()
        self._sizes = index["size"].tolist()
        self._packed, self._fast = index["packed"].tolist(), index["fast"].tolist()
        self._intensity = intensity_of(index)
        try:
            self._source = tfds.builder_from_directory(folder).as_data_source(
                split=_SPLIT, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except Exception as error:  # noqa: BLE001 (TFDS, protobuf, array_record have own errors)
            raise DamagedFileError(folder, error) from None

    def pixels(self, index: int, color: images.Color = "rgb") -> np.ndarray:
        """Returns the upright pixels of one image, uint8 [H, W, 3], or [H, W, 1] for 'grey'.

        Raises:
            DamagedFileError: the record has changed since it was written.
        """
        record = self._read(index)
        if self._packed[index]:
            height, width = self._sizes[index]
            return packing.unpack(record, height, width, color)
        if self._fast[index]:
            return packing.decode_fast(record, color)
        return images.to_array(images.decode(record, color, self._intensity))

    def _read(self, index: int) -> bytes:
        try:
            record = self._source[index]["image"]
            is_intact = hashlib.sha256(record).hexdigest() == self._digests[index]
        except Exception as error:  # noqa: BLE001 (RuntimeError, or protobuf's own)
            raise DamagedFileError(self._folder, error) from None
        if not is_intact:
            raise DamagedFileError(self._folder, f"record {index} has changed since it was written")
        return record


def intensity_of(index: Mapping[str, np.ndarray]) -> IntensityRange:
    """Returns the range of intensities with which the images of an index were decoded."""
    return samples.from_json(json.loads(index["intensity"].item()))


def read_index(folder: Path) -> dict[str, np.ndarray]:
    """Reads the index in a folder of records; returns its columns by name.

    Raises:
        DamagedFileError: the index is missing or damaged.
    """
    try:
        return read_npz(folder / _INDEX)
    except ValueError as error:
        raise DamagedFileError(folder / _INDEX, error) from None


def find_or_write(
    listing: Listing, cache: Path, on_error: str, rule: Rule | IntensityRange
) -> Path:
    """Returns the folder with the records of the listed files, and writes them if they are missing.

    Args:
        listing: files of the data set.
        cache: folder for the records of all data sets.
        on_error: 'raise' for an error if images are unreadable, 'skip' to leave them out.
        rule: which values of files with more than 8 bits become black and white; or the range of
            another data set.

    Raises:
        DataError: an image cannot be read, or the records cannot be written.
    """
    folder = cache / listing.dataset.name / _fingerprint(listing, rule)
    if (folder / _INDEX).exists():  # folders are renamed to this name when they are complete
        return folder
    problem = f"The records of {listing.folder} cannot be written to {folder} (data.cache_dir): "
    lock = filelock.FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise DataError(f"{problem}{error}.") from error
    incomplete = folder.with_suffix(".incomplete")
    try:
        with explain_storage_errors(folder):
            if not (folder / _INDEX).exists():  # another process may have written it meanwhile
                shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(incomplete, ignore_errors=True)  # left by a process that was killed
                incomplete.mkdir()
                _write(incomplete, listing, on_error, rule)
                incomplete.rename(folder)
    except (AccessError, StorageError) as error:
        raise DataError(f"{problem}{error}") from error
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
        lock.release()
    return folder


def _fingerprint(listing: Listing, rule: Rule | IntensityRange) -> str:
    """Returns 16 hex digits that depend on the files, the rule and the installed decoders."""
    state: list[tuple[str, int | None, int | None]] = []
    for image in listing.images:
        try:
            stat = (listing.folder / image.file).stat()
            state.append((image.file, stat.st_size, stat.st_mtime_ns))
        except OSError:  # a broken link, which is reported when it is read
            state.append((image.file, None, None))
    # A newly installed decoder may read files that were left out before.
    settings = rule if isinstance(rule, str) else samples.to_json(rule)
    identity = [str(listing.folder.resolve()), _VERSION, state, settings, dicom.decoders()]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _write(target: Path, listing: Listing, on_error: str, rule: Rule | IntensityRange) -> None:
    """Writes the records of all readable images and their index.

    Raises:
        DataError: an image cannot be read and `on_error` is 'raise', or no image can be read.
        OSError: the records cannot be written.
        RuntimeError: array_record cannot write the records.
    """
    folder, files = listing.folder, [image.file for image in listing.images]
    if isinstance(rule, str):
        of_dataset = _range_of_dataset(folder, files) if rule == "dataset" else {}
        rule = IntensityRange(rule, of_dataset)
    intensity = rule
    logger.info("Reading %d images from %s", len(files), folder)
    rows: list[dict[str, Any]] = []
    unreadable: list[str] = []

    def examples() -> Iterator[dict[str, bytes]]:
        descriptions = read_ahead(lambda k: _describe(folder, files[k], intensity), 0, len(files))
        for file, row in zip(files, descriptions, strict=True):
            if isinstance(row, str):
                unreadable.append(f"{file} ({row})")
            else:
                rows.append(row)
                yield {"image": row.pop("record")}

    _write_records(target, examples())
    if unreadable and (on_error == "raise" or not rows):
        raise unreadable_error(folder, unreadable, len(files))
    columns: dict[str, Any] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    columns["skipped"] = np.array(unreadable, str)
    columns["intensity"] = np.array(json.dumps(samples.to_json(intensity)))
    np.savez(target / _INDEX, **columns)


def _write_records(target: Path, examples: Iterable[dict[str, bytes]]) -> None:
    """Writes examples to a folder one by one, as array_record files of TFDS."""
    identity = tfds.core.DatasetIdentity(
        name="records",
        version=tfds.core.Version(_VERSION),
        data_dir=os.fspath(target),
        module_name=__name__,
    )
    # TFDS stores bytes unchanged as images of any shape.
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None,) * 3)})
    writer = tfds.core.SequentialWriter(
        tfds.core.DatasetInfo(builder=identity, features=features),
        max_examples_per_shard=_IMAGES_PER_FILE,
        file_format="array_record",
    )
    writer.initialize_splits([_SPLIT])
    writer.add_examples({_SPLIT: examples})
    writer.close_splits([_SPLIT])


def unreadable_error(folder: Path, files: Sequence[str], count: int) -> DataError:
    """Returns the error for unreadable images.

    Args:
        folder: data folder.
        files: the unreadable files, each with the reason.
        count: number of all files of the data set.
    """
    remedy = ", or leave them out by --config.data.on_error=skip" if len(files) < count else ""
    return DataError(
        f"{len(files)} of {count} images in {folder} cannot be read: {shorten_list(files)}. "
        f"Repair or remove them{remedy}."
    )


def _range_of_dataset(folder: Path, files: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Returns {type: (smallest, largest value)} of all files with more than 8 bits per value."""

    logger.info("Measuring the range of values of %d images in %s", len(files), folder)

    def stored(k: int) -> tuple[str, float, float]:
        try:
            return images.stored_range((folder / files[k]).read_bytes()) or ("", 0, 0)
        except (OSError, images.UnreadableImageError):
            return ("", 0, 0)  # `_describe` reports the reason

    ranges: dict[str, tuple[float, float]] = {}
    for kind, low, high in read_ahead(stored, 0, len(files)):
        if kind:
            least, largest = ranges.get(kind, (low, high))
            ranges[kind] = min(least, low), max(largest, high)
    return ranges


def _describe(folder: Path, file: str, intensity: IntensityRange) -> dict[str, Any] | str:
    """Returns a file's record and row of the index, or the reason why it cannot be read.

    Raises:
        DataError: the file exists, but the system cannot read it.
        MissingExtraError: the file is DICOM, and pydicom is not installed.
    """
    path = folder / file
    try:
        encoded = path.read_bytes()
    except FileNotFoundError as error:
        return str(error)
    except OSError as error:  # not cached as unreadable, because it may be temporary
        raise DataError(f"{path} cannot be read: {error!r}.") from None
    try:
        decoded = images.examine(encoded, intensity)
    except images.UnreadableImageError as error:
        return str(error)
    except MissingExtraError as error:
        raise MissingExtraError(f"{path} cannot be read: {error}.") from None
    image, sha256 = decoded.image, hashlib.sha256(encoded).hexdigest()
    record, digest, is_packed = encoded, sha256, False
    max_bytes = min(_MAX_PACKED_BYTES, _MAX_PACKED_RATIO * len(encoded))
    if not decoded.lossy and image.width * image.height <= max_bytes:
        packed = packing.pack(image)
        if is_packed := len(packed) <= max_bytes:
            record, digest = packed, hashlib.sha256(packed).hexdigest()
    grey = image.convert("L")
    levels, greys = pixels.levels(grey)
    kind, low, high = decoded.stored or ("", *greys)
    return {
        "record": record,
        "path": file,
        "size": np.array((image.height, image.width), np.int32),
        "mode": decoded.mode,
        "packed": is_packed,
        "fast": not is_packed and packing.is_fast(encoded, image),
        "digest": digest,
        "sha256": sha256,
        "pixel_hash": duplicates.pixel_hash(image),
        "descriptor": duplicates.descriptor(grey),
        "types": kind,
        "bits": np.int16(decoded.bits),
        "stored": np.array((low, high), np.float64),
        "levels": np.int16(levels),
        "greys": np.array(greys, np.int16),
    }
