"""The unlabelled images of a run (pretrain.unlabelled), and those that pre-training may use."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import FrozenConfigDict

from egmae_jax.core import hosts
from egmae_jax.core.errors import shorten_list
from egmae_jax.core.files import RESTORE, DamagedFileError, read_json, write_json_rows
from egmae_jax.data import splits, unlabelled
from egmae_jax.data.datasets import DataError
from egmae_jax.data.listing import Listing
from egmae_jax.data.prepare import Prepared
from egmae_jax.run import images

_KEYS = {"folder", "file", "sha256", "use", "groups_of"}  # fields of a row of unlabelled.json
# Values of "use": trained on, or the reason why not.
USED, LEAK, COPY = "train", "leak", "copy"
_REASONS = {
    LEAK: "near-duplicates or patients of validation or test images",
    COPY: "identical copies of images that are used",
}


class Unlabelled:
    """The images in the folders of pretrain.unlabelled, and their use in each split.

    Which images are used is decided once, and recorded in unlabelled.json of the workdir, or with
    folds of round_<i>. A run that has begun keeps it, and its images must be unchanged.

    Args:
        config: config of the run.
        listing: listing of the labelled data set.
        labelled: the labelled images.
        listings: listing of each folder, from `images.list_unlabelled`.

    Attributes:
        images: the labelled images followed by the unlabelled ones, under one index.
    """

    def __init__(
        self,
        config: FrozenConfigDict,
        listing: Listing,
        labelled: Prepared,
        listings: Sequence[Listing],
    ):
        self._config = config
        folders = images.prepare_unlabelled(config, listings, labelled.intensity)
        self._sets = [(listing, labelled), *zip(listings, folders, strict=True)]
        names = [str(name) for name in config.pretrain.unlabelled]
        self.images = unlabelled.join(labelled, list(zip(names, folders, strict=True)))
        self._num_labelled = len(labelled.files)
        self._files = [
            {"folder": name, "file": file, "sha256": digest}
            for name, folder in zip(names, folders, strict=True)
            for file, digest in zip(folder.files, folder.sha256, strict=True)
        ]
        self._num_unreadable = sum(len(folder.skipped) for folder in folders)
        self._rows: list[list[dict[str, Any]]] = []  # content of unlabelled.json for each split

    def settle(self, path: Path, part_of: np.ndarray, *, begun: bool) -> None:
        """Decides which images the next split uses, or reads it from unlabelled.json.

        Args:
            path: unlabelled.json of the split.
            part_of: part of each labelled image, int [N], as an index into PARTS or LEFT_OUT.
            begun: whether the run has begun, so that the file exists.

        Raises:
            DataError: no image is left, or files differ from those in unlabelled.json.
            DamagedFileError: unlabelled.json is missing or damaged.
        """
        rows = _read(path, self._files) if begun else self._decide(part_of)
        if not any(row["use"] == USED for row in rows) and not self._config.pretrain.splits:
            raise DataError(
                f"None of the {len(rows)} images in pretrain.unlabelled can be used: "
                f"{splits.account({}, _left_out(rows), 0, {})}."
            )
        if not begun and hosts.is_primary():
            write_json_rows(path, rows)
        self._rows.append(rows)

    def used(self, split: int) -> np.ndarray:
        """Returns the indices into `images` of the unlabelled images that a split uses."""
        used = np.array([row["use"] == USED for row in self._rows[split]])
        return self._num_labelled + np.flatnonzero(used)

    def report(self, split: int) -> dict[str, Any]:
        """Returns the entry of a split in results.json: folders, and the number of images by use.

        "groups_of" counts the images that are used although they are in a group with images of the
        validation or test part, by part.
        """
        rows = self._rows[split]
        used = [row for row in rows if row["use"] == USED]
        return {
            "folders": list(self._config.pretrain.unlabelled),
            "used": len(used),
            "left_out": _left_out(rows),
            "unreadable": self._num_unreadable,
            "groups_of": {
                part: sum(part in row["groups_of"] for row in used) for part in splits.PARTS[1:]
            },
        }

    def account(self, split: int) -> str:
        """Sentence that accounts for all unlabelled images of a split, see `splits.account`."""
        report = self.report(split)
        counts = {"used without labels": report["used"]}
        return splits.account(counts, report["left_out"], report["unreadable"], {})

    @functools.cached_property
    def _groups(self) -> np.ndarray:
        threshold = self._config.data.near_duplicate_threshold
        return unlabelled.common_groups(self._sets, near_duplicate_threshold=threshold)

    def _decide(self, part_of: np.ndarray) -> list[dict[str, Any]]:
        """Returns the rows of unlabelled.json for a split."""
        count, config = self._num_labelled, self._config.pretrain
        groups_of: list[list[str]] = [[] for _ in self._files]
        for part in (name for name in splits.PARTS[1:] if name not in config.splits):
            groups = self._groups[:count][part_of == splits.PARTS.index(part)]
            for i in np.flatnonzero(np.isin(self._groups[count:], groups)):
                groups_of[i].append(part)
        hashes = unlabelled.pixel_hashes(self._sets)
        trained = np.isin(part_of, [splits.PARTS.index(name) for name in config.splits])
        known = set(hashes[:count][trained].tolist())
        rows = []
        for file, pixels, parts in zip(
            self._files, hashes[count:].tolist(), groups_of, strict=True
        ):
            use = LEAK if parts and config.drop_leaks else COPY if pixels in known else USED
            if use == USED:
                known.add(pixels)
            rows.append({**file, "use": use, "groups_of": parts})
        return rows


def _left_out(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {reason: sum(row["use"] == use for row in rows) for use, reason in _REASONS.items()}


def _read(path: Path, files: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Reads unlabelled.json, which must list the files that are there now."""
    rows = read(path)
    now, before = (
        {(row["folder"], row["file"]): row["sha256"] for row in listed} for listed in (files, rows)
    )
    changed = ["/".join(name) for name in now | before if now.get(name, "") != before.get(name, "")]
    if changed:
        raise DataError(
            f"The unlabelled images are not those listed in {path}: {shorten_list(changed)} were "
            "added, removed or changed. Restore the images, or start in another --workdir."
        )
    by_name = {(row["folder"], row["file"]): row for row in rows}
    return [by_name[file["folder"], file["file"]] for file in files]


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of unlabelled.json: folder, file, sha256, use and groups_of of each image.

    Raises:
        DamagedFileError: the file is missing, or its content is of another form.
    """
    rows = read_json(path, RESTORE, list)
    if not all(isinstance(row, dict) and set(row) == _KEYS for row in rows):
        raise DamagedFileError(path, "it is not a list of unlabelled images", RESTORE)
    return rows
