"""Assigns each image to a part (train, validation or test), by the config or splits.json."""

from pathlib import Path

import numpy as np
from ml_collections import FrozenConfigDict

from egmae_jax.core.errors import shorten_list
from egmae_jax.data import splits
from egmae_jax.data.datasets import DataError
from egmae_jax.data.prepare import Prepared


def excluded(data: Prepared, config: FrozenConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """Returns which images are left out, bool [N]: as conflicts, and as conflicts or copies."""
    images = (data.labels, data.pairs, data.pixel_hashes, data.official)
    conflict, either = (
        splits.left_out(*images, on_conflict=config.data.on_conflict, deduplicate=deduplicate)
        for deduplicate in (False, config.data.deduplicate)
    )
    return conflict, either


def assign(data: Prepared, config: FrozenConfigDict, fold: int) -> np.ndarray:
    """Assigns every image to a part, as the config says.

    Args:
        data: prepared data set of N images.
        config: config of the run.
        fold: index of the test fold, used only with rounds.kind='folds'.

    Returns:
        Index into PARTS of each image, or LEFT_OUT, int [N].

    Raises:
        DataError: a class has too few images or groups.
    """
    _, out = excluded(data, config)
    try:
        return _assign(data, config, fold, np.flatnonzero(~out))
    except DataError as error:
        explanation = ""
        if out.any():
            explanation += (
                f" {out.sum()} images were left out before, as copies or as near-duplicates with "
                "different labels (data.deduplicate, data.on_conflict)."
            )
        if data.skipped:
            explanation += f" Unreadable files ({len(data.skipped)}): {shorten_list(data.skipped)}."
        raise DataError(f"{error}{explanation}") from None


def _assign(data: Prepared, config: FrozenConfigDict, fold: int, kept: np.ndarray) -> np.ndarray:
    settings, part_of = config.data, np.full(len(data.files), splits.LEFT_OUT)
    labels, groups = data.labels[kept], data.groups[kept]
    if settings.protocol == "image_level":
        groups = kept
    if config.rounds.kind == "folds":
        part_of[kept] = splits.fold_split(
            labels,
            groups,
            data.classes,
            fold=fold,
            num_folds=config.rounds.count,
            validation_share=settings.validation_share,
            seed=settings.split_seed,
        )
    elif settings.protocol == "official":
        part_of[kept] = splits.official_split(
            data.official[kept],
            labels,
            groups,
            data.classes,
            validation_share=settings.validation_share,
            test_share=settings.test_share,
            drop_leaks=settings.drop_leaks,
            seed=settings.split_seed,
        )
    else:
        part_of[kept] = splits.fixed_split(
            labels,
            groups,
            data.classes,
            validation_share=settings.validation_share,
            test_share=settings.test_share,
            seed=settings.split_seed,
        )
    return part_of


def write(path: Path, data: Prepared, part_of: np.ndarray) -> None:
    """Writes the part of each image to splits.json, except for images that are left out."""
    labels = [data.classes[label] for label in data.labels]
    splits.write(path, data.files, labels, part_of, data.groups, data.sha256)


def read(path: Path, data: Prepared, left_out: np.ndarray) -> np.ndarray:
    """Reads the part of every image from splits.json, which must list the same images.

    Args:
        path: path of splits.json.
        data: prepared data set of N images.
        left_out: images that may be missing in splits.json, bool [N].

    Returns:
        Index into PARTS of each image, or LEFT_OUT, int [N].

    Raises:
        DataError: files were added, removed or changed; the message names them.
        DamagedFileError: splits.json is missing or damaged.
    """
    rows = {row["file"]: row for row in splits.read(path)}
    now = dict(zip(data.files, data.sha256, strict=True))
    changes = [f"removed: {file}" for file in rows if file not in now]
    changes += [
        f"added: {file}"
        for file, out in zip(data.files, left_out, strict=True)
        if file not in rows and not out
    ]
    changes += [
        f"changed: {file}" for file in rows if now.get(file, "") not in ("", rows[file]["sha256"])
    ]
    if changes:
        first = "\n  ".join(changes[:10])
        raise DataError(
            f"The images are not those listed in {path}; {len(changes)} files differ:\n  "
            f"{first}\nRestore the images, or start in another --workdir."
        )
    part_of = {file: splits.PARTS.index(row["split"]) for file, row in rows.items()}
    return np.array([part_of.get(file, splits.LEFT_OUT) for file in data.files])
