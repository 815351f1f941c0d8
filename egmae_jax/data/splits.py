"""Train, validation and test parts that do not leak (paper section 4.1; METHOD.md section 2).

What is split are groups, not images: a patient's or lesion's images and near-duplicates go to one
part together. Assignment is greedy and stratified: groups in random order, the largest first, each
to the part that lacks its classes most.
"""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from egmae_jax.data.datasets import DataError
from egmae_jax.files import RESTORE, DamagedFileError, read_json, write_atomically

SPLITS = ("train", "validation", "test")
PROTOCOLS = ("grouped", "official", "image_level")
LEFT_OUT = -1  # the part of an image that is in none


def assign(
    labels: np.ndarray, groups: np.ndarray, shares: Sequence[float], seed: int
) -> np.ndarray:
    """Assigns whole groups to parts so that every part gets its share of every class.

    Args:
        labels: int [N].
        groups: int [N].
        shares: positive, adding up to 1, one a part.
        seed: of the random order.

    Returns:
        int [N], the part of each image.
    """
    rng = np.random.default_rng(seed)
    num_classes = labels.max() + 1
    _, members = np.unique(groups, return_inverse=True)
    # content[g, c]: how many images of class c the group g holds.
    content = np.zeros((members.max() + 1, num_classes))
    np.add.at(content, (members, labels), 1)
    target = np.outer(shares, content.sum(axis=0))  # [parts, classes]
    filled = np.zeros_like(target)
    parts = np.empty(len(content), int)

    shuffled = rng.permutation(len(content))
    by_size = shuffled[np.argsort(-content[shuffled].sum(axis=1), kind="stable")]
    for group in by_size:
        # Need is relative: a part that should get 8 of a class and has 4 is as empty as one that
        # should get 56 and has 28. Ties go to the part with most room left.
        need = ((1 - filled / target.clip(1e-9)) * content[group]).sum(axis=1)
        room = (target - filled).sum(axis=1)
        parts[group] = np.lexsort((room, need))[-1]
        filled[parts[group]] += content[group]
    return parts[members]


def fixed_split(
    labels: np.ndarray,
    groups: np.ndarray,
    classes: Sequence[str],
    *,
    validation_share: float,
    test_share: float,
    seed: int,
) -> np.ndarray:
    """One split: indices into SPLITS, int [N].

    Raises:
        DataError: a class has too few groups to be in all three parts.
    """
    _require_groups(labels, groups, classes, 3, "train, validation and test")
    shares = (1 - validation_share - test_share, validation_share, test_share)
    parts = assign(labels, groups, shares, seed)
    _require_every_class(parts, labels, classes)
    return parts


def fold_split(
    labels: np.ndarray,
    groups: np.ndarray,
    classes: Sequence[str],
    *,
    fold: int,
    num_folds: int,
    validation_share: float,
    seed: int,
) -> np.ndarray:
    """The split whose test part is one of `num_folds` folds: indices into SPLITS, int [N].

    Validation takes `validation_share` of all images from the other folds.

    Raises:
        DataError: a class has too few groups.
    """
    _require_groups(labels, groups, classes, max(3, num_folds), f"{num_folds} folds")
    folds = assign(labels, groups, [1 / num_folds] * num_folds, seed)
    rest = folds != fold
    share = validation_share * num_folds / (num_folds - 1)
    parts = np.full(len(labels), SPLITS.index("test"))
    parts[rest] = assign(labels[rest], groups[rest], (1 - share, share), seed + 1 + fold)
    _require_every_class(parts, labels, classes)
    return parts


def official_split(
    official: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    classes: Sequence[str],
    *,
    validation_share: float,
    test_share: float,
    drop_leaks: bool,
    seed: int,
) -> np.ndarray:
    """The data set's own split: indices into SPLITS, or LEFT_OUT, int [N].

    Parts that the data set does not have are taken from its train part, by groups, with the shares
    they are given of the train part.

    Args:
        official: str [N], of SPLITS; '' counts as train.
        labels: int [N].
        groups: int [N].
        classes: names of the labels.
        validation_share: of the validation part, where there is none.
        test_share: likewise.
        drop_leaks: leaves out train images whose group reaches into validation or test, and
            validation images whose group reaches into test.
        seed: of the parts that are taken.

    Raises:
        DataError: a class has too few groups, or none in one of the parts.
    """
    train, validation, test = range(3)
    parts = np.array([SPLITS.index(name) if name else train for name in official])
    shares = {
        part: share
        for part, share in ((validation, validation_share), (test, test_share))
        if not (parts == part).any()
    }
    if drop_leaks:
        of_test = np.isin(groups, groups[parts == test])
        parts[of_test & (parts != test)] = LEFT_OUT
        of_validation = np.isin(groups, groups[parts == validation])
        parts[of_validation & (parts == train)] = LEFT_OUT
    if shares:
        pool = np.flatnonzero(parts == train)
        _require_groups(
            labels[pool], groups[pool], classes, 1 + len(shares), "the parts to be made"
        )
        made = assign(
            labels[pool], groups[pool], (1 - sum(shares.values()), *shares.values()), seed
        )
        parts[pool] = np.array([train, *shares])[made]
    _require_every_class(parts, labels, classes)
    return parts


def left_out(
    labels: np.ndarray,
    pairs: np.ndarray,
    pixel_hashes: np.ndarray,
    official: np.ndarray,
    *,
    on_conflict: str,
    deduplicate: bool,
) -> np.ndarray:
    """Which images no part gets: bool [N].

    Args:
        labels: int [N].
        pairs: int [P, 2], near-duplicates.
        pixel_hashes: str [N].
        official: str [N], the data set's own split; '' for none.
        on_conflict: 'drop' leaves out both images of a pair with different labels.
        deduplicate: keeps one of images of identical pixels, of the official test part before
            validation before train.
    """
    out = np.zeros(len(labels), bool)
    if on_conflict == "drop":
        out[conflicts(labels, pairs).ravel()] = True
    if deduplicate:
        rank = np.array([-SPLITS.index(name) if name else 0 for name in official])
        order = np.lexsort((np.arange(len(labels)), rank))
        order = order[~out[order]]
        _, first = np.unique(pixel_hashes[order], return_index=True)
        out[np.delete(order, first)] = True
    return out


def conflicts(labels: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The pairs of near-duplicates whose labels differ, int [Q, 2]."""
    return pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]


def _require_groups(
    labels: np.ndarray, groups: np.ndarray, classes: Sequence[str], needed: int, purpose: str
) -> None:
    for label, name in enumerate(classes):
        count = len(np.unique(groups[labels == label]))
        if count < needed:
            images = int((labels == label).sum())
            raise DataError(
                f"The class {name!r} has {images} images in {count} groups (patients, lesions, "
                f"near-duplicates); {purpose} need at least {needed} groups of it."
            )


def _require_every_class(parts: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
    for part, split in enumerate(SPLITS):
        for label, name in enumerate(classes):
            if not ((parts == part) & (labels == label)).any():
                raise DataError(
                    f"No image of the class {name!r} came into the {split} part: its groups are "
                    "too few or too large. Raise data.validation_share or data.test_share, or "
                    "choose another data.split_seed."
                )


def write(
    path: Path,
    files: Sequence[str],
    labels: Sequence[str],
    parts: np.ndarray,
    groups: np.ndarray,
    sha256: Sequence[str],
) -> None:
    """Writes splits.json: a list of {"file", "label", "split", "group", "sha256"}.

    Images that are in no part are not listed.
    """
    rows = [
        {"file": f, "label": label, "split": SPLITS[part], "group": int(group), "sha256": digest}
        for f, label, part, group, digest in zip(files, labels, parts, groups, sha256, strict=True)
        if part != LEFT_OUT
    ]
    text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
    write_atomically(path, text)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows that `write` wrote.

    Raises:
        DamagedFileError: the file is not whole, or not what was written.
    """
    rows = read_json(path, RESTORE, list)
    files = set()
    for number, row in enumerate(rows):
        problem = _problem(row)
        if problem is None and row["file"] in files:
            problem = f"{row['file']!r} is listed before"
        if problem is not None:
            raise DamagedFileError(path, f"row {number}: {problem}", RESTORE)
        files.add(row["file"])
    return rows


def _problem(row: Any) -> str | None:
    """What is wrong with a row of splits.json, if anything."""
    kinds = {"file": str, "label": str, "split": str, "group": int, "sha256": str}
    if not isinstance(row, dict):
        return f"{row!r} is no object"
    for name, kind in kinds.items():
        if not isinstance(row.get(name), kind):
            return f"{name} is {row.get(name)!r}, not of {kind.__name__}"
    if row["split"] not in SPLITS:
        return f"the split is {row['split']!r}; it can be {', '.join(SPLITS)}"
    file = PurePosixPath(row["file"])
    if file.is_absolute() or ".." in file.parts or not file.parts:
        return f"the file {row['file']!r} does not lie below the data folder"
    return None
