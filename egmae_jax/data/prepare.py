"""From a folder of images to records: every file is read, checked and described once.

TFDS writes the records as array_record, with images as encoded bytes: the one way it has that needs
no TensorFlow. What splits and audits are made from (hashes, grey thumbnails, sizes) lies beside
them in index.npz, so nothing is decoded twice and no start reads all the images. Both are kept in a
cache folder named after the files' names, sizes and times; when a file changes, they are written
anew.

Files are read a few hundred at a time, so memory does not grow with the data set but for its index,
about a kilobyte an image. A set appears when it is whole; of two processes, one writes it.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import tensorflow_datasets as tfds

from egmae_jax.data import datasets, duplicates, images
from egmae_jax.data.datasets import DataError, Dataset, ImageFile
from egmae_jax.files import DamagedFileError, write_atomically

_VERSION = "3.0.0"  # of the records; raise it when what they hold changes
_INDEX = "index.npz"
_SHOWN = 10  # how many files an error or warning names

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set, described and at hand. Index i is the i-th file in sorted order.

    Attributes:
        name: of the data set, as in the config.
        title: of the data set, as people call it.
        citation: of the data set; empty where there is none.
        classes: names, sorted; a label is an index into them.
        files: paths relative to the data folder.
        labels: int [N].
        groups: int [N]; images of one patient or lesion and near-duplicates share a number.
        pairs: int [P, 2]; the near-duplicates among them, i < j.
        duplicate_groups: how many groups of near-duplicates there are.
        official: str [N]; the data set's own split of an image, '' where it has none.
        sizes: int [N, 2], height and width.
        fast: bool [N]; `images.decode_fast` gives the pixels of `images.decode`.
        modes: str [N], how the file stores its pixels: 'L', 'RGB', 'I;16', 'DICOM', ...
        descriptors: uint8 [N, 32, 32], grey thumbnails.
        pixel_hashes: str [N]; identical for identical pixels.
        sha256: of each file's bytes.
        skipped: files left out because they cannot be read, each with the reason.
        records: random access to records; `records.image(i)` are the i-th file's bytes.
    """

    name: str
    title: str
    citation: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray
    pairs: np.ndarray
    duplicate_groups: int
    official: np.ndarray
    sizes: np.ndarray
    modes: np.ndarray
    fast: np.ndarray
    descriptors: np.ndarray
    pixel_hashes: np.ndarray
    sha256: tuple[str, ...]
    skipped: tuple[str, ...]
    records: "Records"


def prepare(
    name: str,
    folder: Path,
    cache: Path,
    *,
    on_error: str,
    near_duplicate_threshold: float,
    classes: Sequence[str] = (),
) -> Prepared:
    """Describes the data set `name` below `folder`, from the cache where nothing has changed.

    Args:
        name: one of `datasets.names()`.
        folder: where the files are; generated if the data set knows how and nothing is there.
        cache: folder for the records.
        on_error: 'raise' stops at unreadable images, 'skip' leaves them out.
        near_duplicate_threshold: correlation above which two images are the same one.
        classes: the ones to keep; all if empty.

    Raises:
        DataError: the folder or a class is missing, a class is empty, an image cannot be read, the
            records cannot be written.
    """
    dataset = datasets.get(name)
    if dataset.make is not None:
        if not folder.exists():
            logger.info("Writing %s into %s", dataset.title, folder)
        dataset.make(folder)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} (data.dir). {dataset.obtain}")
    listed = dataset.list_images(folder)
    found = tuple(sorted({image.label for image in listed}))
    if unknown := set(classes) - set(found):
        raise DataError(
            f"data.classes names {', '.join(sorted(unknown))}; {folder} has {', '.join(found)}."
        )
    if classes:
        found = tuple(sorted(classes))
        listed = [image for image in listed if image.label in found]
    builder = _builder(dataset, folder, listed, found, cache, on_error)
    skipped = tuple(builder.info.metadata["skipped"])
    if skipped:
        logger.warning("%d unreadable images are left out: %s", len(skipped), _some(skipped))

    index = _read_index(builder.index_path)
    records = Records(builder, index["sha256"].tolist())
    pairs = duplicates.duplicate_pairs(
        index["descriptor"], index["pixel_hash"].tolist(), threshold=near_duplicate_threshold
    )
    count = len(records)
    near = duplicates.group_ids(count, pairs)
    known = [group or None for group in index["group"].tolist()]
    return Prepared(
        name=name,
        title=dataset.title,
        citation=dataset.citation,
        classes=found,
        files=tuple(index["path"].tolist()),
        labels=index["label"],
        groups=duplicates.group_ids(count, pairs, known),
        pairs=pairs,
        duplicate_groups=int((np.bincount(near) > 1).sum()),
        official=index["split"],
        sizes=index["size"],
        modes=index["mode"],
        fast=index["fast"],
        descriptors=index["descriptor"],
        pixel_hashes=index["pixel_hash"],
        sha256=tuple(index["sha256"].tolist()),
        skipped=skipped,
        records=records,
    )


class Records:
    """Random access to the records of a data set; says which folder is damaged.

    Every image is held to its hash, which splits.json names too: from a file cut short array_record
    (0.8) returns records without an image and says nothing.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, sha256: Sequence[str]):
        self._folder, self._sha256 = Path(builder.data_dir), sha256
        self._source = builder.as_data_source(
            split="images", decoders={"image": tfds.decode.SkipDecoding()}
        )

    def __len__(self) -> int:
        return len(self._sha256)

    def image(self, index: int) -> bytes:
        """The bytes of one file."""
        try:
            encoded = self._source[index]["image"]
            intact = hashlib.sha256(encoded).hexdigest() == self._sha256[index]
        except Exception as error:  # array_record raises RuntimeError, protobuf its own
            raise DamagedFileError(self._folder, error) from None
        if not intact:
            raise DamagedFileError(self._folder, f"record {index} is not the file it was")
        return encoded


def _write_index(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes {name: values of all records}."""
    columns: dict[str, Any] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    write_atomically(path, buffer.getvalue())


def _read_index(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedFileError(path, error) from None


def _builder(
    dataset: Dataset,
    folder: Path,
    listed: list[ImageFile],
    classes: tuple[str, ...],
    cache: Path,
    on_error: str,
) -> "_Records":
    """The builder of this very folder's records, which it has written or found."""
    state: list[tuple[ImageFile, int | None, int | None]] = []
    for image in listed:
        try:
            stat = (folder / image.file).stat()
            state.append((image, stat.st_size, stat.st_mtime_ns))
        except OSError:  # a link to nothing; reading it will say so
            state.append((image, None, None))
    identity = [str(folder.resolve()), _VERSION, on_error, state]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    # TFDS announces itself on standard output; our own log says what happens.
    tfds.disable_progress_bar()
    data_dir = cache / dataset.name / fingerprint
    try:
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        with (
            filelock.FileLock(f"{data_dir}.lock"),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            if not (data_dir / _INDEX).exists():  # never written, or not to the end
                shutil.rmtree(data_dir, ignore_errors=True)
            # Made under the lock: it reads what is there when it is made.
            builder = _Records(folder, listed, classes, on_error, data_dir=data_dir)
            builder.download_and_prepare()
            if builder.index:
                _write_index(builder.index_path, builder.index)
    except OSError as error:
        raise DataError(
            f"The records of {folder} cannot be written to {data_dir} (data.cache_dir): {error}."
        ) from error
    return builder


class _Records(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of one image folder."""

    VERSION = tfds.core.Version(_VERSION)
    name = "records"

    def __init__(
        self,
        folder: Path,
        listed: list[ImageFile],
        classes: tuple[str, ...],
        on_error: str,
        *,
        data_dir: Path,
    ):
        self._folder, self._listed, self._classes = folder, listed, classes
        self._on_error = on_error
        self.index_path = data_dir / _INDEX
        self.index: list[dict[str, Any]] = []  # a row for each record, once they are written
        super().__init__(data_dir=os.fspath(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        # Encoded bytes; all else is in the index.
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None,) * 3)})
        return tfds.core.DatasetInfo(
            builder=self,
            features=features,
            disable_shuffling=True,  # record i is the i-th file
            metadata=tfds.core.MetadataDict(skipped=[]),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {"images": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        logger.info("Reading %d images from %s", len(self._listed), self._folder)
        unreadable = []
        key = itertools.count()
        for image, record in _describe_all(self._folder, self._listed, self._classes):
            if isinstance(record, str):
                unreadable.append(f"{image.file} ({record})")
            else:
                yield next(key), {"image": record.pop("image")}
                self.index.append(record)
        none_left = len(unreadable) == len(self._listed)
        if none_left or (unreadable and self._on_error == "raise"):
            remedy = "" if none_left else ", or leave them out by --config.data.on_error=skip"
            raise DataError(
                f"{len(unreadable)} of {len(self._listed)} images in {self._folder} cannot be "
                f"read: {_some(unreadable)}. Mend or remove them{remedy}."
            )
        self.info.metadata["skipped"] = unreadable


def _describe_all(
    folder: Path, listed: list[ImageFile], classes: Sequence[str]
) -> Iterator[tuple[ImageFile, dict[str, Any] | str]]:
    """Each image with its record, or with the reason why it cannot be read, in order."""
    labels = {name: label for label, name in enumerate(classes)}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # A chunk at a time, so that a large data set's bytes are never all in memory.
        for start in range(0, len(listed), 256):
            chunk = listed[start : start + 256]
            records = pool.map(lambda image: _describe(folder, image, labels[image.label]), chunk)
            yield from zip(chunk, records, strict=True)


def _describe(folder: Path, image: ImageFile, label: int) -> dict[str, Any] | str:
    try:
        encoded = (folder / image.file).read_bytes()
        pixels = images.decode(encoded)
        mode = images.stored_mode(encoded)
        fast = images.is_fast(encoded, pixels)
    except (OSError, images.UnreadableImageError) as error:
        return str(error)
    return {
        "image": encoded,
        "label": label,
        "path": image.file,
        "group": image.group or "",
        "split": image.split or "",
        "size": np.array((pixels.height, pixels.width), np.int32),
        "mode": mode,
        "fast": fast,
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "pixel_hash": duplicates.pixel_hash(pixels),
        "descriptor": duplicates.descriptor(pixels),
    }


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
