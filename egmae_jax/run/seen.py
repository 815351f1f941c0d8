"""The images that a run was trained on, and those held out, or from elsewhere, among them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core.errors import UserError
from egmae_jax.data import duplicates, splits
from egmae_jax.data import unlabelled as unlabelled_data
from egmae_jax.data.datasets import DataError
from egmae_jax.data.listing import Listing, list_files
from egmae_jax.data.prepare import Prepared
from egmae_jax.run import images, unlabelled
from egmae_jax.run.config import load_config, split_indices
from egmae_jax.run.rounds import RoundData
from egmae_jax.run.saved_run import SavedRun
from egmae_jax.run.workdir import Paths

logger = logging.getLogger(__name__)


class Seen(NamedTuple):
    """Images that a run's pre-training was on, and those of the runs whose weights it started from.

    Attributes:
        sha256: SHA-256 of the files.
        configs: configs of these runs.
        is_complete: whether all are known; not if one started from a file or from timm's weights.
    """

    sha256: frozenset[str]
    configs: tuple[ConfigDict, ...]
    is_complete: bool


def run_folder(source: str) -> Path | None:
    """Returns the folder of a run, or None; a model for timm has model.safetensors, too."""
    folder = Path(source).expanduser()
    is_run = (folder / "config.json").is_file() and not (folder / "model.safetensors").exists()
    return folder if is_run else None


def read(run: Path, split: int) -> Seen:
    """Reads which images a run's pre-training was on.

    Args:
        run: folder of the run.
        split: index of the split; of a run without folds, there is only one.

    Raises:
        DamagedFileError: a file of the run is missing or damaged.
    """
    config = load_config(run / "config.json")
    paths = Paths.of(run, config)
    index = paths.split_index(split)
    rows = splits.read(paths.splits(index))
    sha256 = {row["sha256"] for row in rows if row["split"] in config.pretrain.splits}
    if (record := paths.unlabelled(index)).exists():
        listed = unlabelled.read(record)
        sha256 |= {row["sha256"] for row in listed if row["use"] == unlabelled.USED}
    source = config.pretrain.weights
    before = run_folder(source) if source else None
    if before is None:
        return Seen(frozenset(sha256), (config,), is_complete=not source)
    earlier = read(before, split)
    return Seen(earlier.sha256 | sha256, (*earlier.configs, config), earlier.is_complete)


def held_out(
    seen: Seen, config: FrozenConfigDict, listing: Listing, data: RoundData, split: int
) -> dict[str, list[str]]:
    """Returns the files that a run holds out although an earlier pre-training was on them.

    Files are compared by SHA-256. Images that are not in the run's data set are compared as
    `pretrain.unlabelled` is, by groups of near-duplicates and patients; if they are not where they
    were, a warning says that they are not.

    Args:
        seen: images of the earlier pre-training.
        config: config of the run.
        listing: listing of its labelled data set.
        data: its images.
        split: index of the split.

    Returns:
        Files by part that the run does not pre-train on, 'validation' or 'test'.
    """
    prepared = data.prepared
    is_seen = np.isin(prepared.sha256, list(seen.sha256))
    if foreign := seen.sha256.difference(prepared.sha256):
        is_seen |= _in_groups_of(foreign, seen.configs, config, (listing, prepared))
    parts = [part for part in splits.PARTS[1:] if part not in config.pretrain.splits]
    indices = {part: data.indices(split, part) for part in parts}
    return {part: [prepared.files[i] for i in x[is_seen[x]]] for part, x in indices.items()}


def _in_groups_of(
    foreign: frozenset[str],
    earlier: tuple[ConfigDict, ...],
    config: FrozenConfigDict,
    labelled: tuple[Listing, Prepared],
) -> np.ndarray:
    """Returns which labelled images are in a group with an image of other runs, bool [N]."""
    count = len(labelled[1].files)
    try:
        others = [
            pair for each in earlier for pair in _read_images(each, config, "pretrain.weights")
        ]
    except UserError as error:
        logger.warning(
            "pretrain.weights: near-duplicates of validation and test images cannot be looked for "
            "among the images of the earlier pre-training, only the same files: %s",
            error,
        )
        return np.zeros(count, bool)
    groups = unlabelled_data.common_groups(
        [labelled, *others], near_duplicate_threshold=config.data.near_duplicate_threshold
    )
    sha256 = [digest for _, prepared in others for digest in prepared.sha256]
    return np.isin(groups[:count], groups[count:][np.isin(sha256, list(foreign))])


class Overlap(NamedTuple):
    """Images from elsewhere that a run was trained on or chosen by.

    Attributes:
        reasons: reason to leave an image out, by its index.
        problem: why near-duplicates could not all be looked for; '' if they were.
    """

    reasons: dict[int, str]
    problem: str


def find_overlap(run: SavedRun, prepared: Prepared, data_dir: Path | None) -> Overlap:
    """Finds images that are identical to, or near-duplicates of, images a run has seen.

    Seen are the training and validation images of all rounds, and all images of the pre-trainings
    that led to the run. Files are compared by SHA-256 with those that the workdir records. If the
    run's images are at hand, near-duplicates are found as in a data set, and with them all images
    of their groups.

    Args:
        run: the run.
        prepared: the images from elsewhere.
        data_dir: folder of the run's images; None: the folder in its config.

    Raises:
        DamagedFileError: a file of the workdir, or of an earlier run, is missing or damaged.
    """
    known, configs = _seen_images(run)
    if data_dir is not None:
        configs[-1].data.dir = str(data_dir)
    sets: list[Prepared] = []
    problems: list[str] = []
    for config in configs:
        try:
            sets += [own for _, own in _read_images(config, run.config, "data.dir")]
        except UserError as error:
            problems.append(str(error))
    missing = len(known.keys() - {digest for own in sets for digest in own.sha256})
    if missing and not problems:
        problems.append(f"{missing} of {len(known)} images are missing or have changed.")
    reasons = _near_duplicates(run, prepared, sets, known) if sets else {}
    reasons |= {
        i: f"identical to {known[digest]}"
        for i, digest in enumerate(prepared.sha256)
        if digest in known
    }
    first: dict[int, int] = {}  # an image to leave out, by its group
    for i in sorted(reasons):
        first.setdefault(int(prepared.groups[i]), i)
    for i, group in enumerate(prepared.groups.tolist()):
        if group in first:
            reasons.setdefault(i, f"in one group with {prepared.files[first[group]]}")
    return Overlap(dict(sorted(reasons.items())), " ".join(problems))


def _seen_images(run: SavedRun) -> tuple[dict[str, str], tuple[ConfigDict, ...]]:
    """Returns what each seen image was, by SHA-256, and the configs of the runs that saw them.

    The last config is that of the run itself.
    """
    known: dict[str, str] = {}
    configs: tuple[ConfigDict, ...] = ()
    for index in split_indices(run.config):
        for row in splits.read(run.paths.splits(index)):
            if row["split"] != "test":
                known.setdefault(row["sha256"], f"the {row['split']} image {row['file']}")
        pretrained_on = read(run.workdir, index)
        configs = pretrained_on.configs
        for digest in sorted(pretrained_on.sha256):
            known.setdefault(digest, "an image of pre-training")
    return known, configs


def _near_duplicates(
    run: SavedRun, prepared: Prepared, sets: Sequence[Prepared], known: Mapping[str, str]
) -> dict[int, str]:
    """Returns the reason for each image that is a near-duplicate of a known one, by its index.

    Args:
        run: the run.
        prepared: the images from elsewhere.
        sets: images of the run.
        known: what each image was, by SHA-256.
    """
    digests = [digest for own in sets for digest in own.sha256]
    kept = np.flatnonzero([digest in known for digest in digests])
    descriptors = np.concatenate([own.descriptors for own in sets])[kept]
    hashes = np.concatenate([own.pixel_hashes for own in sets])[kept]
    count = len(prepared.files)
    pairs = duplicates.duplicate_pairs(
        np.concatenate([prepared.descriptors, descriptors]),
        [*prepared.pixel_hashes.tolist(), *hashes.tolist()],
        threshold=run.config.data.near_duplicate_threshold,
    )
    reasons: dict[int, str] = {}
    for i, j in pairs[(pairs[:, 0] < count) & (pairs[:, 1] >= count)].tolist():
        is_same = prepared.pixel_hashes[i] == hashes[j - count]
        kind = "identical to" if is_same else "near-duplicate of"
        reasons.setdefault(i, f"{kind} {known[digests[kept[j - count]]]}")
    return reasons


def _read_images(
    earlier: Mapping[str, Any] | ConfigDict, config: ConfigDict | FrozenConfigDict, field: str
) -> list[tuple[Listing, Prepared]]:
    """Lists and reads the images of an earlier run, with the group pattern of this one.

    Args:
        earlier: config of the earlier run.
        config: config of this run.
        field: field that leads to the images, for messages.
    """
    settings = ConfigDict(earlier)
    folder = Path(settings.data.dir).expanduser()
    if not folder.is_dir():  # `list_files` would write generated images there
        raise DataError(f"There is no folder {folder}.")
    settings.data.group_pattern = config.data.group_pattern
    settings.data.cache_dir, settings.data.on_error = config.data.cache_dir, "skip"
    listing = list_files(
        settings.data.name,
        folder,
        classes=settings.data.classes,
        group_pattern=settings.data.group_pattern,
        field=field,
    )
    prepared = images.prepare_images(settings, listing)
    folders = images.list_unlabelled(settings)
    others = images.prepare_unlabelled(settings, folders, prepared.intensity)
    return [(listing, prepared), *zip(folders, others, strict=True)]
