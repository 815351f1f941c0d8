"""Train, validation and test parts that do not leak (paper section 4.1; METHOD.md section 2).

What is split are groups, not images: a patient's or lesion's images and near-duplicates go to one
part together. Assignment is greedy and stratified: groups in random order, the largest first, each
to the part that lacks its classes most.
"""

import itertools
import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egmae_jax.core.files import RESTORE, DamagedFileError, read_json, write_atomically
from egmae_jax.data.datasets import DataError
from egmae_jax.data.datasets.base import leads_elsewhere

PARTS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)  # indices into PARTS
PROTOCOLS = ("grouped", "official", "image_level")
_KEYS = {"file", "label", "split", "group", "sha256"}  # of a row of splits.json
LEFT_OUT = -1  # in place of such an index, for an image that is in no part


def assign(
    labels: np.ndarray, groups: np.ndarray, shares: Sequence[float], seed: int
) -> np.ndarray:
    """Assigns whole groups to parts so that every part gets its share of every class.

    Args:
        labels: int [N].
        groups: int [N].
        shares: share of each part; positive, adding up to 1.
        seed: for the random order of the groups.

    Returns:
        int [N], part of each image, as an index into `shares`.
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
    """Splits all images once.

    Returns:
        int [N], indices into PARTS.

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
    """Splits all images so that the test part is one of `num_folds` folds.

    Validation takes `validation_share` of all images from the other folds.

    Returns:
        int [N], indices into PARTS.

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
    """Keeps the data set's own parts, and takes those that it lacks from its train part by groups.

    Args:
        official: str [N], names of PARTS; '' counts as train.
        labels: int [N].
        groups: int [N].
        classes: names of the labels.
        validation_share: share of the train part that becomes validation where there is none.
        test_share: share of the train part that becomes test where there is none.
        drop_leaks: whether train images whose group reaches into validation or test, and
            validation images whose group reaches into test, are left out.
        seed: for the parts that are taken.

    Returns:
        int [N], indices into PARTS, or LEFT_OUT.

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
        purpose = f"{names}, taken from the official train part,"
        _require_groups(labels[pool], groups[pool], classes, 1 + len(shares), purpose)
        all_shares = (1 - sum(shares.values()), *shares.values())
        taken = assign(labels[pool], groups[pool], all_shares, seed)
        parts[pool] = np.array([TRAIN, *shares])[taken]
    _require_every_class(parts, labels, classes, made={TRAIN, *shares} if shares else set())
    return parts


def require_official(official: Sequence[str]) -> None:
    """Refuses protocol 'official' for a data set that has no validation and no test part.

    Args:
        official: name of each image's part; '' for none.

    Raises:
        DataError: says how its images can be split instead.
    """
    if any(part in PARTS[1:] for part in official):
        return
    of_train = sum(part == "train" for part in official)
    raise DataError(
        "data.protocol=official keeps the data set's own parts, but it has no validation and no "
        f"test part: of {len(official)} images {of_train} are in its train part and "
        f"{len(official) - of_train} in none. To split all by groups (patients, lesions, "
        "near-duplicates): --config.data.protocol=grouped. A manifest tells the parts in a column "
        "split."
    )


def made_parts(official: np.ndarray) -> tuple[str, ...]:
    """Held-out parts that a data set lacks, so that they are taken from its train part.

    Args:
        official: str [N], name of each image's part; '' counts as train.
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
    """Chooses the images that no part gets.

    Args:
        labels: int [N].
        pairs: int [P, 2], near-duplicates.
        pixel_hashes: str [N].
        official: str [N], name of each image's official part; '' for none.
        on_conflict: 'drop' leaves out both images of a pair with different labels.
        deduplicate: keeps one of images with identical pixels, rather one of the official test part
            than of validation, and of validation than of train.

    Returns:
        bool [N].
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
    """The pairs of near-duplicates whose labels differ, int [Q, 2]."""
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
                "it."
            )


def _require_every_class(
    parts: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    made: Container[int] = (TRAIN, VALIDATION, TEST),
) -> None:
    """Refuses parts without an image of some class; `made` are those that are not official."""
    for (part, name), (label, class_name) in itertools.product(
        enumerate(PARTS), enumerate(classes)
    ):
        if ((parts == part) & (labels == label)).any():
            continue
        if part in made:
            raise DataError(
                f"No image of the class {class_name!r} came into the {name} part: its groups are "
                "too few or too large. Raise data.validation_share or data.test_share, or choose "
                "another data.split_seed."
            )
        raise DataError(
            f"The official {name} part has no image of the class {class_name!r}, or all share a "
            "group (patient, lesion, near-duplicates) with images that are tested on. Keep these "
            "by --config.data.drop_leaks=False, split all images anew by "
            "--config.data.protocol=grouped, or leave the class out by --config.data.classes."
        )


def account(
    parts: Mapping[str, int],
    left_out: Mapping[str, int],
    unreadable: int,
    other_classes: Mapping[str, int],
) -> str:
    """Says where all images of a data set have gone, in a sentence whose counts add up.

    Args:
        parts: {part: number of images}.
        left_out: {reason: number of readable images that are in no part}.
        unreadable: number of images that cannot be read.
        other_classes: {class: number of images} of the classes that were not asked for.
    """
    rest = [f"{count} {reason}" for reason, count in left_out.items() if count]
    gone = [f"{sum(left_out.values())} left out ({', '.join(rest)})"] if rest else []
    gone += [f"{unreadable} unreadable"] if unreadable else []
    if other_classes:
        names = ", ".join(list(other_classes)[:10]) + ", ..." * (len(other_classes) > 10)
        gone += [f"{sum(other_classes.values())} of classes not asked for ({names})"]
    total = sum((*parts.values(), *left_out.values(), unreadable, *other_classes.values()))
    each = [f"{count} {part}" for part, count in parts.items()]
    return f"{total} images found: {', '.join(each + gone)}"


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
        {"file": f, "label": label, "split": PARTS[part], "group": int(group), "sha256": digest}
        for f, label, part, group, digest in zip(files, labels, parts, groups, sha256, strict=True)
        if part != LEFT_OUT
    ]
    text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
    write_atomically(path, text)


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of splits.json.

    Raises:
        DamagedFileError: the file is not what `write` wrote.
    """
    rows = read_json(path, RESTORE, list)
    try:
        is_whole = all(row["split"] in PARTS and set(row) == _KEYS for row in rows)
        is_whole = is_whole and not any(leads_elsewhere(row["file"]) for row in rows)
    except (TypeError, LookupError):
        is_whole = False
    if not is_whole:
        raise DamagedFileError(path, "it is not what was written", RESTORE)
    return rows
