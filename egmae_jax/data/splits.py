"""Train, validation and test parts without leakage (paper section 4.1).

Groups are split, not images: all images of one patient or lesion, and near-duplicates, are in the
same part. The assignment is greedy and stratified: groups in random order, the largest first, each
to the part that needs its classes most.
"""

import itertools
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egmae_jax.core.files import RESTORE, DamagedFileError, read_json, write_json_rows
from egmae_jax.data.datasets import DataError
from egmae_jax.data.datasets.base import leads_elsewhere

PARTS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)  # indices into PARTS
PROTOCOLS = ("grouped", "official", "image_level")
_KEYS = {"file", "label", "split", "group", "sha256"}  # fields of a row of splits.json
LEFT_OUT = -1  # index of images that are in no part


def count_by_group(labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts the images of each class in each group, for labels and groups of images, int [N].

    Returns:
        Row of each image's group in the counts, int [N], and the counts, int [groups, classes].
    """
    _, members = np.unique(groups, return_inverse=True)
    counts = np.zeros((members.max() + 1, labels.max() + 1), int)
    np.add.at(counts, (members, labels), 1)
    return members, counts


def assign(
    labels: np.ndarray, groups: np.ndarray, shares: Sequence[float], seed: int
) -> np.ndarray:
    """Assigns groups to parts so that each part gets about its share of each class.

    Args:
        labels: class of each image, int [N].
        groups: group of each image, int [N].
        shares: share of each part; positive, with sum 1.
        seed: seed of the random order of the groups.

    Returns:
        Part of each image, int [N], as an index into `shares`.
    """
    rng = np.random.default_rng(seed)
    members, content = count_by_group(labels, groups)
    target = np.outer(shares, content.sum(axis=0))  # [parts, classes]
    filled = np.zeros(target.shape)
    parts = np.empty(len(content), int)

    shuffled = rng.permutation(len(content))
    by_size = shuffled[np.argsort(-content[shuffled].sum(axis=1), kind="stable")]
    for group in by_size:
        # The need is relative: a part with 4 of its 8 images of a class is as empty as a part with
        # 28 of 56. Ties go to the part with the most room left.
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
    """Splits all images into train, validation and test by groups.

    Args:
        labels: class of each image, int [N].
        groups: group of each image, int [N].
        classes: names of the classes.
        validation_share: share of the images for validation.
        test_share: share of the images for test.
        seed: seed of the random order of the groups.

    Returns:
        Part of each image, int [N], as an index into PARTS.

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
    """Splits all images by groups, with one of several folds as the test part.

    Args:
        labels: class of each image, int [N].
        groups: group of each image, int [N].
        classes: names of the classes.
        fold: index of the fold that is the test part.
        num_folds: number of folds.
        validation_share: share of all images for validation, taken from the other folds.
        seed: seed of the random order of the groups.

    Returns:
        Part of each image, int [N], as an index into PARTS.

    Raises:
        DataError: a class has too few groups.
    """
    _require_groups(labels, groups, classes, max(3, num_folds), f"{num_folds} folds")
    folds = assign(labels, groups, [1 / num_folds] * num_folds, seed)
    rest = folds != fold
    share = validation_share * num_folds / (num_folds - 1)
    parts = np.full(len(labels), TEST)
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
    """Keeps the official parts, and splits missing ones off the official train part by groups.

    Args:
        official: official part of each image, str [N]; '' counts as train.
        labels: class of each image, int [N].
        groups: group of each image, int [N].
        classes: names of the classes.
        validation_share: share of the train part that becomes validation if there is no official
            validation part.
        test_share: share of the train part that becomes test if there is no official test part.
        drop_leaks: whether to leave out train images whose group has images in validation or test,
            and validation images whose group has images in test.
        seed: seed of the random order of the groups.

    Returns:
        Part of each image, int [N], as an index into PARTS or LEFT_OUT.

    Raises:
        DataError: a class has too few groups, or no image in one of the parts.
    """
    parts = np.array([PARTS.index(name) if name else TRAIN for name in official])
    shares = {VALIDATION: validation_share, TEST: test_share}
    shares = {part: share for part, share in shares.items() if not (parts == part).any()}
    if drop_leaks:
        for part in (TEST, VALIDATION):
            leaks = np.isin(groups, groups[parts == part]) & (parts < part)
            parts[leaks] = LEFT_OUT
    if shares:
        pool = np.flatnonzero(parts == TRAIN)
        names = " and ".join(PARTS[part] for part in (TRAIN, *shares))
        purpose = f"{names}, split off the official train part,"
        _require_groups(labels[pool], groups[pool], classes, 1 + len(shares), purpose)
        all_shares = (1 - sum(shares.values()), *shares.values())
        assigned = assign(labels[pool], groups[pool], all_shares, seed)
        parts[pool] = np.array([TRAIN, *shares])[assigned]
    _require_every_class(parts, labels, classes, made={TRAIN, *shares} if shares else set())
    return parts


def require_official(official: Sequence[str]) -> None:
    """Requires that a data set has an official validation or test part, for protocol 'official'.

    Args:
        official: official part of each image; '' if it has none.

    Raises:
        DataError: there is neither; the message describes the alternatives.
    """
    if any(part in PARTS[1:] for part in official):
        return
    num_train = sum(part == "train" for part in official)
    raise DataError(
        "data.protocol=official keeps the official parts of a data set, but this one has no "
        f"validation and no test part: of {len(official)} images {num_train} are in the train part "
        f"and {len(official) - num_train} in none. Set --config.data.protocol=grouped to split all "
        "images by groups (patients, lesions, near-duplicates), or list the images in a manifest "
        "with a column split."
    )


def made_parts(official: np.ndarray) -> tuple[str, ...]:
    """Returns the parts that a data set lacks, which are split off its official train part.

    Args:
        official: official part of each image, str [N]; '' if it has none.
    """
    return tuple(name for name in PARTS[1:] if name not in official)


def left_out(
    labels: np.ndarray,
    pairs: np.ndarray,
    pixel_hashes: np.ndarray,
    official: np.ndarray,
    *,
    on_conflict: str,
    deduplicate: bool,
) -> np.ndarray:
    """Selects the images to leave out of all parts.

    Args:
        labels: class of each image, int [N].
        pairs: near-duplicates, int [P, 2].
        pixel_hashes: digest of each image's pixels, str [N].
        official: official part of each image, str [N]; '' if it has none.
        on_conflict: 'drop' to leave out both images of each pair with different labels.
        deduplicate: whether to keep only one of several images with identical pixels, preferably
            one of the official test part, then of validation, then of train.

    Returns:
        bool [N], True for images to leave out.
    """
    out = np.zeros(len(labels), bool)
    if on_conflict == "drop":
        out[conflicts(labels, pairs).ravel()] = True
    if deduplicate:
        rank = np.array([-PARTS.index(name) if name else 0 for name in official])
        order = np.lexsort((np.arange(len(labels)), rank))
        order = order[~out[order]]
        _, first = np.unique(pixel_hashes[order], return_index=True)
        out[np.delete(order, first)] = True
    return out


def conflicts(labels: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Returns the pairs of near-duplicates that have different labels, int [Q, 2]."""
    return pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]


def _require_groups(
    labels: np.ndarray, groups: np.ndarray, classes: Sequence[str], needed: int, purpose: str
) -> None:
    for label, name in enumerate(classes):
        count = len(np.unique(groups[labels == label]))
        if count < needed:
            raise DataError(
                f"The class {name!r} has {(labels == label).sum()} images in {count} groups "
                f"(patients, lesions, near-duplicates); {purpose} need at least {needed} groups of "
                "each class."
            )


def _require_every_class(
    parts: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    made: Container[int] = (TRAIN, VALIDATION, TEST),
) -> None:
    """Raises DataError if a part has no image of a class.

    Args:
        parts: part of each image, int [N], as an index into PARTS or LEFT_OUT.
        labels: class of each image, int [N].
        classes: names of the classes.
        made: indices of the parts that are not official, for the message.
    """
    for (part, name), (label, class_name) in itertools.product(
        enumerate(PARTS), enumerate(classes)
    ):
        if ((parts == part) & (labels == label)).any():
            continue
        if part in made:
            raise DataError(
                f"The {name} part got no image of the class {class_name!r}, whose groups are too "
                "few or too large. Increase data.validation_share or data.test_share, or choose "
                "another data.split_seed."
            )
        raise DataError(
            f"The official {name} part has no image of the class {class_name!r}, or all of them "
            "are in a group (patient, lesion, near-duplicates) with held-out images. Keep these "
            "images with --config.data.drop_leaks=False, split all images again with "
            "--config.data.protocol=grouped, or leave the class out with --config.data.classes."
        )


def account(
    parts: Mapping[str, int],
    left_out: Mapping[str, int],
    unreadable: int,
    other_classes: Mapping[str, int],
) -> str:
    """Describes in one sentence, with counts that add up, how the images of a data set are used.

    Args:
        parts: {part: number of images}.
        left_out: {reason: number of readable images that are in no part}.
        unreadable: number of images that cannot be read.
        other_classes: {class: number of images} of the classes that are not selected.
    """
    reasons = [f"{count} {reason}" for reason, count in left_out.items() if count]
    unused = [f"{sum(left_out.values())} left out ({', '.join(reasons)})"] if reasons else []
    unused += [f"{unreadable} unreadable"] if unreadable else []
    if other_classes:
        names = ", ".join(list(other_classes)[:10]) + ", ..." * (len(other_classes) > 10)
        unused += [f"{sum(other_classes.values())} of classes not selected ({names})"]
    total = sum((*parts.values(), *left_out.values(), unreadable, *other_classes.values()))
    used = [f"{count} {part}" for part, count in parts.items()]
    return f"{total} images found: {', '.join(used + unused)}"


def write(
    path: Path,
    files: Sequence[str],
    labels: Sequence[str],
    parts: np.ndarray,
    groups: np.ndarray,
    sha256: Sequence[str],
) -> None:
    """Writes splits.json, a list of {"file", "label", "split", "group", "sha256"}.

    Args:
        path: path of splits.json.
        files: paths of the N images, relative to the data folder.
        labels: class names of the images.
        parts: part of each image, int [N], as an index into PARTS. Images that are LEFT_OUT are not
            listed.
        groups: group of each image, int [N].
        sha256: SHA-256 digests of the files, in hex.
    """
    rows = [
        {"file": f, "label": label, "split": PARTS[part], "group": int(group), "sha256": digest}
        for f, label, part, group, digest in zip(files, labels, parts, groups, sha256, strict=True)
        if part != LEFT_OUT
    ]
    write_json_rows(path, rows)


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of splits.json.

    Raises:
        DamagedFileError: the file is missing, or its content is not in the format of `write`.
    """
    rows = read_json(path, RESTORE, list)
    try:
        is_valid = all(row["split"] in PARTS and set(row) == _KEYS for row in rows)
        is_valid = is_valid and not any(leads_elsewhere(row["file"]) for row in rows)
    except (TypeError, LookupError):
        is_valid = False
    if not is_valid:
        raise DamagedFileError(path, "it is not a list of images with their parts", RESTORE)
    return rows
