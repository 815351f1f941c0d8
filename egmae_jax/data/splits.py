"""Train, validation and test parts that do not leak (paper section 4.1; METHOD.md section 2).

What is split are groups, not images: a patient's or lesion's images and near-duplicates go to one
part together. Assignment is greedy and stratified: groups in random order, the largest first, each
to the part that lacks its classes most.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from egmae_jax.core.files import RESTORE, DamagedFileError, read_json, write_atomically
from egmae_jax.data.datasets import DataError

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
        DataError: a class has too few groups, or no image in one of the parts.
    """
    train, validation, test = range(3)
    parts = np.array([SPLITS.index(name) if name else train for name in official])
    given = parts.copy()
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
        made_of = [SPLITS[part] for part in (train, *shares)]
        _require_groups(
            labels[pool],
            groups[pool],
            classes,
            1 + len(shares),
            f"{' and '.join(made_of)}, taken from the official train part,",
        )
        made = assign(
            labels[pool], groups[pool], (1 - sum(shares.values()), *shares.values()), seed
        )
        parts[pool] = np.array([train, *shares])[made]
    for part in range(len(SPLITS)):
        if part not in shares and not (part == train and shares):
            _require_every_official_class(part, parts, given, labels, classes)
    _require_every_class(parts, labels, classes)
    return parts


def require_official(official: Sequence[str]) -> None:
    """Refuses protocol 'official' for a data set that has no validation and no test part.

    Args:
        official: the part of each image, of SPLITS; '' for none.

    Raises:
        DataError: says how its images can be split instead.
    """
    if any(part in SPLITS[1:] for part in official):
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
    """The parts that a data set does not have itself, so that they are taken from its train part.

    Args:
        official: str [N], of SPLITS; '' counts as train.
    """
    return tuple(name for name in SPLITS[1:] if name not in official)


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


def _require_every_official_class(
    part: int, parts: np.ndarray, given: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> None:
    """Of a part that the data set has itself; the advice of `_require_every_class` is of no use."""
    for label, name in enumerate(classes):
        if ((parts == part) & (labels == label)).any():
            continue
        before = int(((given == part) & (labels == label)).sum())
        why = (
            f"All {before} images of the class {name!r} in the official {SPLITS[part]} part share "
            "a group (patient, lesion, near-duplicates) with images that are tested on, and are "
            "left out. Keep them by --config.data.drop_leaks=False, split"
            if before
            else f"The official {SPLITS[part]} part has no image of the class {name!r}. Split"
        )
        raise DataError(
            f"{why} all images anew by --config.data.protocol=grouped, or leave the class out by "
            "--config.data.classes."
        )


def account(
    parts: Mapping[str, int],
    left_out: Mapping[str, int],
    unreadable: int,
    other_classes: Mapping[str, int],
) -> str:
    """Where all the images that were found have gone, as a sentence whose counts add up.

    Args:
        parts: {part: number of images}.
        left_out: {reason: number of images} of readable images that are in no part.
        unreadable: images that cannot be read.
        other_classes: {class: number of images} of classes that were not asked for.
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
