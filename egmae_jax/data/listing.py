"""The labelled files of a data set, with its classes and groups settled before an image is read."""

import collections
import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from egmae_jax.core.errors import shorten_list
from egmae_jax.core.files import explain_storage_errors
from egmae_jax.data import datasets, lookalikes
from egmae_jax.data.datasets import DataError, Dataset, ImageFile

logger = logging.getLogger(__name__)

# Line breaks and other control characters, which are commands in terminals, tables and figures, and
# bytes that are no text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Listing:
    """The labelled files of a data set, as its folder or table lists them.

    Attributes:
        dataset: the data set.
        folder: the data folder, which the files' paths are relative to.
        images: files of the chosen classes, sorted by path; a group has one name even where the
            data set spells it in several ways.
        classes: names of the chosen classes, sorted.
        other_classes: {class: number of files} of the classes that were not chosen.
    """

    dataset: Dataset
    folder: Path
    images: list[ImageFile]
    classes: tuple[str, ...]
    other_classes: dict[str, int]


def list_files(
    name: str, folder: Path, *, classes: Sequence[str] = (), group_pattern: str = ""
) -> Listing:
    """Lists the data set `name` below `folder`, which takes seconds at most.

    Args:
        name: one of `datasets.names()`.
        folder: where the files are; a generated data set is written there first.
        classes: names of the classes to keep, in any case; empty keeps all.
        group_pattern: regular expression that is searched in each file's name; files with the same
            matched groups belong together, whatever the data set says. Empty: the data set decides.

    Raises:
        DataError: the folder or a class is missing, a class is empty, names of classes look alike,
            stand for a missing value or hold control characters, or no name matches the pattern.
        AccessError: the folder cannot be read.
    """
    dataset = datasets.get(name)
    if dataset.make is not None:
        with explain_storage_errors(folder):
            dataset.make(folder)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} (data.dir). {dataset.obtain}")
    with explain_storage_errors(folder):
        images = dataset.list_images(folder)
    for image in images:
        for kind, text in (("file", image.file), ("class", image.label)):
            if _CONTROL.search(text):
                raise DataError(
                    f"The name of the {kind} {text!r} holds a line break, another control "
                    "character or bytes that are not UTF-8; rename it."
                )
    kept = _choose_classes(images, classes, folder)
    others = collections.Counter(image.label for image in images if image.label not in kept)
    images = [image for image in images if image.label in kept]
    if group_pattern:
        images = _group_by_name(images, group_pattern)
    return Listing(dataset, folder, _join_groups(images), kept, dict(sorted(others.items())))


def _choose_classes(
    images: Sequence[ImageFile], chosen: Sequence[str], folder: Path
) -> tuple[str, ...]:
    """Returns the names of the classes to keep, sorted; raises DataError as `list_files`."""
    counts = collections.Counter(image.label for image in images)
    first_file = {image.label: image.file for image in reversed(images)}
    by_key = {lookalikes.key(name): name for name in counts}
    keys = {lookalikes.key(name): name for name in chosen} or dict.fromkeys(by_key, "")

    def described(name: str) -> str:
        spelled = lookalikes.spelled_out([name])
        return f"{spelled}, {counts[name]} images such as {first_file[name]}"

    for names in lookalikes.groups(counts):
        if lookalikes.key(names[0]) in keys:
            raise DataError(
                f"{folder} has classes whose names look alike: "
                f"{'; '.join(map(described, names))}. Give one class one name, and two classes "
                "names that differ by more."
            )
    for key, name in keys.items():
        if key not in by_key:
            raise DataError(
                f"data.classes names {name!r}; {folder} has {', '.join(sorted(counts))}."
            )
        if chosen and name != by_key[key]:
            logger.info("data.classes: %r is taken for %r", by_key[key], name)
        if not chosen and lookalikes.is_missing(by_key[key]):
            raise DataError(
                f"The label of some images stands for a missing one: {described(by_key[key])}. "
                "Label them or take them out; if it is a class, name all classes by "
                "--config.data.classes."
            )
    return tuple(sorted(by_key[key] for key in keys))


def _join_groups(images: list[ImageFile]) -> list[ImageFile]:
    """Gives groups whose names look alike one name: they may be one patient."""
    alike = lookalikes.groups({image.group for image in images if image.group})
    if alike:
        logger.warning(
            "%d groups (patients, lesions) are spelled in several ways, and all images of each are "
            "kept together: %s. If they are different ones, give them names that differ by more.",
            len(alike),
            shorten_list([lookalikes.spelled_out(names) for names in alike]),
        )
    name_of: dict[str | None, str] = {name: names[0] for names in alike for name in names}
    return [image._replace(group=name_of.get(image.group, image.group)) for image in images]


def _group_by_name(images: list[ImageFile], pattern: str) -> list[ImageFile]:
    """Replaces groups by those that a pattern finds in the files' names.

    Raises:
        DataError: the pattern finds no group in any name.
    """
    matches = [re.search(pattern, PurePosixPath(image.file).name) for image in images]
    # An empty match tells no patient from another.
    names = [match.groups() if match and any(match.groups()) else None for match in matches]
    without = [image.file for image, name in zip(images, names, strict=True) if name is None]
    if len(without) == len(images):
        raise DataError(
            f"data.group_pattern {pattern!r} finds nothing in any of {len(images)} names, such as "
            f"{images[0].file}."
        )
    logger.info("data.group_pattern finds %d groups", len(set(names) - {None}))
    if without:
        logger.warning(
            "data.group_pattern finds nothing in %d of %d names: each of these images counts as "
            "its own group unless the data set tells another: %s",
            len(without),
            len(images),
            shorten_list(without),
        )
    return [
        image if name is None else image._replace(group=json.dumps(name))
        for image, name in zip(images, names, strict=True)
    ]
