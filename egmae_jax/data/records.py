"""The images of a data set as records, with an index of what is known of each.

TFDS writes the records as array_record, with images as bytes: the one way it has that needs no
TensorFlow. A record is the file itself for JPEG and WebP, and the packed pixels for formats that
take long to decode, unless the pixels are many times larger than the file. What splits and audits
are made from (hashes, grey thumbnails, sizes) lies beside them in index.npz, so that no start reads
all images. Both lie in a cache folder named after the files' names, sizes and times; when a file
changes, they are written anew.

Files are read a few at a time and written at once, so memory does not grow with the data set but
for the index, two kilobytes an image. A set appears when it is whole; of several processes, one
writes it.
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

_VERSION = "11.0.0"  # of the records; raise it when what they or the index hold changes
_INDEX = "index.npz"
_SPLIT = "images"  # TFDS's name for all of them
_IMAGES_PER_FILE = 10_000
# Pixels are packed if they are not larger than this, and than so many times the file. It bounds the
# memory while preparing, and the records.
_PACKED_BYTES, _PACKED_TIMES = 16e6, 8


class Records:
    """Random access to the images of a data set.

    Every record is compared with its digest: from a file cut short array_record (0.8) returns
    records without an image and says nothing.

    Args:
        folder: folder of the records.
        index: columns of their index, from `read_index`.
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
        except Exception as error:  # TFDS's, protobuf's, array_record's
            raise DamagedFileError(folder, error) from None

    def pixels(self, index: int, color: images.Color = "rgb") -> np.ndarray:
        """Pixels of one image, upright: uint8 [H, W, 3], or [H, W, 1] for color 'grey'.

        Raises:
            DamagedFileError: the record is not what was written.
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
        except Exception as error:  # array_record raises RuntimeError, protobuf its own
            raise DamagedFileError(self._folder, error) from None
        if not is_intact:
            raise DamagedFileError(self._folder, f"record {index} is not what was written")
        return record


def intensity_of(index: Mapping[str, np.ndarray]) -> IntensityRange:
    """Range of intensities by which the images of an index were decoded."""
    return samples.from_json(json.loads(index["intensity"].item()))


def read_index(folder: Path) -> dict[str, np.ndarray]:
    """Reads the columns of the index beside the records in a folder.

    Raises:
        DamagedFileError: the index is not what was written.
    """
    try:
        return read_npz(folder / _INDEX)
    except ValueError as error:
        raise DamagedFileError(folder / _INDEX, error) from None


def find_or_write(listing: Listing, cache: Path, on_error: str, rule: Rule) -> Path:
    """Returns the folder of the records of the listed files; writes it where it is not there.

    Args:
        listing: the files.
        cache: folder for the records of all data sets.
        on_error: 'raise' stops at unreadable images, 'skip' leaves them out.
        rule: which values of files with more than 8 bits become black and white.

    Raises:
        DataError: an image cannot be read, or the records cannot be written.
    """
    folder = cache / listing.dataset.name / _fingerprint(listing, rule)
    if (folder / _INDEX).exists():  # a folder of this name is whole
        return folder
    refused = f"The records of {listing.folder} cannot be written to {folder} (data.cache_dir): "
    lock = filelock.FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise DataError(f"{refused}{error}.") from error
    incomplete = folder.with_suffix(".incomplete")
    try:
        with explain_storage_errors(folder):
            if not (folder / _INDEX).exists():  # another process may have written it meanwhile
                shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(incomplete, ignore_errors=True)  # of a process that was killed
                incomplete.mkdir()
                _write(incomplete, listing, on_error, rule)
                incomplete.rename(folder)
    except (AccessError, StorageError) as error:
        raise DataError(f"{refused}{error}") from error
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
        lock.release()
    return folder


def _fingerprint(listing: Listing, rule: Rule) -> str:
    """Sixteen hex digits that change with the files and with whatever decodes them."""
    state: list[tuple[str, int | None, int | None]] = []
    for image in listing.images:
        try:
            stat = (listing.folder / image.file).stat()
            state.append((image.file, stat.st_size, stat.st_mtime_ns))
        except OSError:  # a link to nothing; reading it will say so
            state.append((image.file, None, None))
    # With another decoder installed, what was left out may be read.
    identity = [str(listing.folder.resolve()), _VERSION, state, rule, dicom.decoders()]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _write(target: Path, listing: Listing, on_error: str, rule: Rule) -> None:
    """Writes the records of all readable images and their index.

    Raises:
        DataError: an image cannot be read and `on_error` is 'raise', or no image can.
        OSError, RuntimeError: the records cannot be written; the latter is array_record's.
    """
    folder, files = listing.folder, [image.file for image in listing.images]
    of_dataset = _range_of_dataset(folder, files) if rule == "dataset" else {}
    intensity = IntensityRange(rule, of_dataset)
    logger.info("Reading %d images from %s", len(files), folder)
    rows: list[dict[str, Any]] = []
    unreadable: list[str] = []

    def examples() -> Iterator[dict[str, bytes]]:
        described = read_ahead(lambda k: _describe(folder, files[k], intensity), 0, len(files))
        for file, row in zip(files, described, strict=True):
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
    """Writes examples one by one as TFDS's array_record files into a folder."""
    identity = tfds.core.DatasetIdentity(
        name="records",
        version=tfds.core.Version(_VERSION),
        data_dir=os.fspath(target),
        module_name=__name__,
    )
    # Bytes, which TFDS takes as they are; all else is in the index.
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
    """The error that names the unreadable ones, with reasons, of `count` files of a folder."""
    remedy = ", or leave them out by --config.data.on_error=skip" if len(files) < count else ""
    return DataError(
        f"{len(files)} of {count} images in {folder} cannot be read: {shorten_list(files)}. "
        f"Mend or remove them{remedy}."
    )


def _range_of_dataset(folder: Path, files: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Least and largest value of all files with more than 8 bits, by the type of the values."""

    logger.info("Looking for the range of values of %d images in %s", len(files), folder)

    def stored(k: int) -> tuple[str, float, float]:
        try:
            return images.stored_range((folder / files[k]).read_bytes()) or ("", 0, 0)
        except (OSError, images.UnreadableImageError):
            return ("", 0, 0)  # reported when it is described

    ranges: dict[str, tuple[float, float]] = {}
    for kind, low, high in read_ahead(stored, 0, len(files)):
        if kind:
            least, largest = ranges.get(kind, (low, high))
            ranges[kind] = min(least, low), max(largest, high)
    return ranges


def _describe(folder: Path, file: str, intensity: IntensityRange) -> dict[str, Any] | str:
    """The record of a file with its row of the index, or the reason why it cannot be read."""
    path = folder / file
    try:
        encoded = path.read_bytes()
    except FileNotFoundError as error:
        return str(error)
    except OSError as error:  # may be mended, the file being the same
        raise DataError(f"{path} cannot be read: {error!r}.") from None
    try:
        decoded = images.examine(encoded, intensity)
    except images.UnreadableImageError as error:
        return str(error)
    except MissingExtraError as error:
        raise MissingExtraError(f"{path} cannot be read: {error}.") from None
    image, sha256 = decoded.image, hashlib.sha256(encoded).hexdigest()
    record, digest, is_packed = encoded, sha256, False
    most = min(_PACKED_BYTES, _PACKED_TIMES * len(encoded))
    if not decoded.lossy and image.width * image.height <= most:
        packed = packing.pack(image)
        if is_packed := len(packed) <= most:
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
