"""Prepares a folder of images as a data set that can be split and read."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from egmae_jax.core.errors import shorten_list
from egmae_jax.data import duplicates, pixels, records
from egmae_jax.data.listing import Listing
from egmae_jax.data.pixels import Finding, PixelStatistics
from egmae_jax.data.records import Records
from egmae_jax.data.samples import IntensityRange, Rule

logger = logging.getLogger(__name__)


class ImageSet(Protocol):
    """Images that can be read by index: `Prepared` or `unlabelled.Joined`.

    Attributes:
        files: names of the N images.
        labels: int [N].
        sizes: int [N, 2], height and width in pixels.
        records: random access; `records.pixels(i, color)` returns the pixels of image i.
    """

    @property
    def files(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def sizes(self) -> np.ndarray: ...

    @property
    def records(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set of N readable images, with a description of each image, sorted by path.

    Attributes:
        name: value of `config.data.name`.
        title: name of the data set in figures and reports.
        citation: reference of the paper to cite; empty if there is none.
        classes: names of the classes, sorted; labels are indices into them.
        files: paths of the N images, relative to the data folder.
        labels: int [N], index of each image's class.
        groups: int [N]; images of one patient or lesion, and near-duplicates, share a number.
        pairs: int [P, 2], near-duplicates as pairs i < j of image indices.
        official: str [N], official part of each image; '' if it has none.
        sizes: int [N, 2], height and width in pixels.
        modes: str [N], storage mode of the file's pixels: 'L', 'RGB', 'L;uint16', 'DICOM', ...
        descriptors: uint8 [N, 32, 32], grey thumbnails.
        pixel_hashes: str [N], digests of size and pixels.
        sha256: SHA-256 digests of the N files, in hex.
        pixels: statistics of the pixel values, as stored and as decoded.
        intensity: which values of files with more than 8 bits became black and white.
        skipped: unreadable files that were left out, each with the reason.
        records: random access to the images; `records.pixels(i)` returns the pixels of image i.
        other_classes: {class: number of files} of the classes that are not selected.
    """

    name: str
    title: str
    citation: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray
    pairs: np.ndarray
    official: np.ndarray
    sizes: np.ndarray
    modes: np.ndarray
    descriptors: np.ndarray
    pixel_hashes: np.ndarray
    sha256: tuple[str, ...]
    pixels: PixelStatistics
    intensity: IntensityRange
    skipped: tuple[str, ...]
    records: Records
    other_classes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def num_found(self) -> int:
        """Number of images in the folder: readable, unreadable, and of classes not selected."""
        return len(self.files) + len(self.skipped) + sum(self.other_classes.values())

    @property
    def near_duplicates(self) -> list[np.ndarray]:
        """Groups of near-duplicates, each as the indices of two or more images."""
        return duplicates.members(duplicates.group_ids(len(self.files), self.pairs))

    @property
    def held_out(self) -> np.ndarray:
        """Which images are in the official validation or test part, bool [N]."""
        return np.isin(self.official, ("validation", "test"))


def prepare(
    listing: Listing,
    cache: Path,
    *,
    on_error: str,
    near_duplicate_threshold: float | None,
    intensity_range: Rule | IntensityRange = "type",
) -> Prepared:
    """Reads all images of a listing, or loads the cached records of unchanged files.

    Args:
        listing: files of the data set.
        cache: folder for the records of all data sets.
        on_error: 'raise' for an error if images are unreadable, 'skip' to leave them out.
        near_duplicate_threshold: correlation above which two images are near-duplicates; None
            looks for none.
        intensity_range: which values of files with more than 8 bits become black and white; see
            data.intensity_range. 'dataset' reads these files twice. The range of another data set
            is used as it is.

    Raises:
        DataError: an image cannot be read, or the records cannot be written.
        DamagedFileError: the cache is damaged.
    """
    folder = records.find_or_write(listing, cache, on_error, intensity_range)
    index = records.read_index(folder)
    skipped = index["skipped"].tolist()
    if skipped and on_error == "raise":  # the records were written with 'skip'
        raise records.unreadable_error(listing.folder, skipped, len(listing.images))
    files, intensity = index["path"].tolist(), records.intensity_of(index)
    statistics = PixelStatistics(*(index[name] for name in PixelStatistics._fields))
    _warn(skipped, pixels.findings(files, statistics, intensity))
    pairs = np.zeros((0, 2), np.int64)
    if near_duplicate_threshold is not None:
        pairs = duplicates.duplicate_pairs(
            index["descriptor"], index["pixel_hash"].tolist(), threshold=near_duplicate_threshold
        )
    by_file = {image.file: image for image in listing.images}
    images = [by_file[file] for file in files]
    return Prepared(
        name=listing.dataset.name,
        title=listing.dataset.title,
        citation=listing.dataset.citation,
        classes=listing.classes,
        files=tuple(files),
        labels=np.array([listing.classes.index(image.label) for image in images]),
        groups=duplicates.group_ids(len(files), pairs, [image.group or None for image in images]),
        pairs=pairs,
        official=np.array([image.part or "" for image in images]),
        sizes=index["size"],
        modes=index["mode"],
        descriptors=index["descriptor"],
        pixel_hashes=index["pixel_hash"],
        sha256=tuple(index["sha256"].tolist()),
        pixels=statistics,
        intensity=intensity,
        skipped=tuple(skipped),
        records=Records(folder, index),
        other_classes=listing.other_classes,
    )


def _warn(skipped: Sequence[str], findings: Sequence[Finding]) -> None:
    """Logs which images are left out, and the problems with the pixels of the others."""
    if skipped:
        logger.warning("%d unreadable images are left out: %s", len(skipped), shorten_list(skipped))
    for _, finding, advice in findings:
        logger.warning("%s %s", finding, advice)
