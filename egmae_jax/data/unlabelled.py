"""Images without labels, which pre-training may use beside a labelled data set.

An unlabelled image must not show what a run is tested on. It is in the same group as a labelled
image if it is a near-duplicate of it, or of the same patient where names tell, or linked to it by
further images of either kind; these are the groups that splits keep together (`duplicates`).
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from egmae_jax.data import duplicates, images, similar_names
from egmae_jax.data.listing import Listing
from egmae_jax.data.prepare import Prepared


class Joined(NamedTuple):
    """The images of several data sets under one index, which `pipeline.View` reads.

    Attributes:
        files: names of the N images, for messages.
        labels: int [N]; 0 for images without labels.
        sizes: int [N, 2], height and width in pixels.
        records: random access to the images.
    """

    files: tuple[str, ...]
    labels: np.ndarray
    sizes: np.ndarray
    records: "_JoinedRecords"


class _JoinedRecords:
    def __init__(self, sets: Sequence[Prepared]):
        self._records = [prepared.records for prepared in sets]
        self._ends = list(itertools.accumulate(len(prepared.files) for prepared in sets))

    def pixels(self, index: int, color: images.Color = "rgb") -> np.ndarray:
        number = bisect.bisect_right(self._ends, index)
        first = self._ends[number - 1] if number else 0
        return self._records[number].pixels(index - first, color)


def join(labelled: Prepared, folders: Sequence[tuple[str, Prepared]]) -> Joined:
    """Joins a data set and the images of folders, in this order.

    Args:
        labelled: the data set.
        folders: name and images of each folder.
    """
    sets = [labelled, *(prepared for _, prepared in folders)]
    files = [f"{name}/{file}" for name, prepared in folders for file in prepared.files]
    return Joined(
        files=(*labelled.files, *files),
        labels=np.concatenate([labelled.labels, np.zeros(len(files), labelled.labels.dtype)]),
        sizes=np.concatenate([prepared.sizes for prepared in sets]),
        records=_JoinedRecords(sets),
    )


def common_groups(
    sets: Sequence[tuple[Listing, Prepared]], *, near_duplicate_threshold: float
) -> np.ndarray:
    """Numbers the groups of the images of a data set and of folders.

    All pairs of images are compared, see `duplicates.duplicate_pairs` for time and memory.

    Args:
        sets: listing and images of the data set, then of each folder.
        near_duplicate_threshold: correlation above which two images are near-duplicates.

    Returns:
        int64 [N], group of each image in the order of `join`.
    """
    labelled = sets[0][1]
    descriptors = np.concatenate([prepared.descriptors for _, prepared in sets])
    pairs = duplicates.duplicate_pairs(
        descriptors, pixel_hashes(sets).tolist(), threshold=near_duplicate_threshold
    )
    # The data set's own groups, also those that names do not tell.
    known = [(members[0], i) for members in duplicates.members(labelled.groups) for i in members]
    return duplicates.group_ids(
        len(descriptors),
        np.concatenate([pairs, np.array(known, np.int64).reshape(-1, 2)]),
        [name for listing, prepared in sets for name in _group_names(listing, prepared)],
    )


def pixel_hashes(sets: Sequence[tuple[Listing, Prepared]]) -> np.ndarray:
    """Returns the digest of each image's size and pixels, str [N], in the order of `join`."""
    return np.concatenate([prepared.pixel_hashes for _, prepared in sets])


def _group_names(listing: Listing, prepared: Prepared) -> list[str | None]:
    """Returns the name of each image's patient, in a form in which equal names are equal."""
    by_file = {image.file: image.group for image in listing.images}
    names = [by_file[file] for file in prepared.files]
    return [similar_names.key(name) if name else None for name in names]
