"""From a folder of images to records: every file is read, checked and described once.

TFDS writes the records as array_record, with images as encoded bytes: the one way it has that needs
no TensorFlow. A record also carries what splits are made from (content hash, pixel hash, grey
thumbnail), so nothing is decoded twice. Records are kept in a cache folder named after the files'
names, sizes and times; when a file changes, they are written anew.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from egmae_jax.data import datasets, duplicates, images
from egmae_jax.data.datasets import DataError, Dataset, ImageFile

_VERSION = "1.0.0"  # of the records; raise it when what they hold changes
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
        duplicate_groups: how many groups hold near-duplicates.
        sha256: of each file's bytes.
        skipped: files left out because they cannot be read, each with the reason.
        records: random access to records; `records[i]["image"]` are the i-th file's bytes.
    """

    name: str
    title: str
    citation: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray
    duplicate_groups: int
    sha256: tuple[str, ...]
    skipped: tuple[str, ...]
    records: Sequence[dict[str, Any]]


def prepare(
    name: str, folder: Path, cache: Path, *, on_error: str, near_duplicate_threshold: float
) -> Prepared:
    """Describes the data set `name` below `folder`, from the cache where nothing has changed.

    Args:
        name: one of `datasets.names()`.
        folder: where the files are; generated if the data set knows how and nothing is there.
        cache: folder for the records.
        on_error: 'raise' stops at unreadable images, 'skip' leaves them out.
        near_duplicate_threshold: correlation above which two images are the same one.

    Raises:
        DataError: the folder or a class is missing, a class is empty, an image cannot be read.
    """
    dataset = datasets.get(name)
    if dataset.make is not None:
        if not folder.exists():
            logger.info("Writing %s into %s", dataset.title, folder)
        dataset.make(folder)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} (data.dir). {dataset.obtain}")
    listed = dataset.list_images(folder)
    classes = tuple(sorted({image.label for image in listed}))
    builder = _builder(dataset, folder, listed, classes, cache, on_error)
    skipped = tuple(builder.info.metadata["skipped"])
    if skipped:
        logger.warning("%d unreadable images are left out: %s", len(skipped), _some(skipped))

    records = builder.as_data_source(split="images", decoders={"image": tfds.decode.SkipDecoding()})
    rows = [records[i] for i in range(len(records))]
    pixel_hashes = [row["pixel_hash"].decode() for row in rows]
    pairs = duplicates.duplicate_pairs(
        np.stack([row["descriptor"] for row in rows]),
        pixel_hashes,
        threshold=near_duplicate_threshold,
    )
    near = duplicates.group_ids(len(rows), pairs)
    known = [row["group"].decode() or None for row in rows]
    return Prepared(
        name=name,
        title=dataset.title,
        citation=dataset.citation,
        classes=classes,
        files=tuple(row["file"].decode() for row in rows),
        labels=np.array([row["label"] for row in rows]),
        groups=duplicates.group_ids(len(rows), pairs, known),
        duplicate_groups=int((np.bincount(near) > 1).sum()),
        sha256=tuple(row["sha256"].decode() for row in rows),
        skipped=skipped,
        records=records,
    )


def _builder(
    dataset: Dataset,
    folder: Path,
    listed: list[ImageFile],
    classes: tuple[str, ...],
    cache: Path,
    on_error: str,
) -> tfds.core.DatasetBuilder:
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
    builder = _Records(
        folder, listed, classes, on_error, data_dir=cache / dataset.name / fingerprint
    )
    # TFDS announces itself on standard output; our own log says what happens.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
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
        super().__init__(data_dir=os.fspath(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        size = duplicates.DESCRIPTOR_SIZE
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, None)),  # encoded bytes
                "label": tfds.features.ClassLabel(names=self._classes),
                "file": tfds.features.Text(),
                "group": tfds.features.Text(),  # empty where the data set tells none
                "sha256": tfds.features.Text(),
                "pixel_hash": tfds.features.Text(),
                "descriptor": tfds.features.Tensor(shape=(size, size), dtype=np.uint8),
            }
        )
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
        for image, record in _describe_all(self._folder, self._listed):
            if isinstance(record, str):
                unreadable.append(f"{image.file} ({record})")
            else:
                yield next(key), record
        none_left = len(unreadable) == len(self._listed)
        if none_left or (unreadable and self._on_error == "raise"):
            remedy = "" if none_left else ", or leave them out by --config.data.on_error=skip"
            raise DataError(
                f"{len(unreadable)} of {len(self._listed)} images in {self._folder} cannot be "
                f"read: {_some(unreadable)}. Mend or remove them{remedy}."
            )
        self.info.metadata["skipped"] = unreadable


def _describe_all(
    folder: Path, listed: list[ImageFile]
) -> Iterator[tuple[ImageFile, dict[str, Any] | str]]:
    """Each image with its record, or with the reason why it cannot be read, in order."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # A chunk at a time, so that a large data set's bytes are never all in memory.
        for start in range(0, len(listed), 256):
            chunk = listed[start : start + 256]
            records = pool.map(lambda image: _describe(folder, image), chunk)
            yield from zip(chunk, records, strict=True)


def _describe(folder: Path, image: ImageFile) -> dict[str, Any] | str:
    try:
        encoded = (folder / image.file).read_bytes()
        pixels = images.decode(encoded)
    except (OSError, images.UnreadableImageError) as error:
        return str(error)
    return {
        "image": encoded,
        "label": image.label,
        "file": image.file,
        "group": image.group or "",
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "pixel_hash": duplicates.pixel_hash(pixels),
        "descriptor": duplicates.descriptor(pixels),
    }


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
