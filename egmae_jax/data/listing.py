"""Lists the labelled files of a data set and settles its classes and groups, reading no image."""

import collections
import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from egmae_jax.core.errors import shorten_list
from egmae_jax.core.files import explain_storage_errors
from egmae_jax.data import datasets, similar_names
from egmae_jax.data.datasets import DataError, Dataset, ImageFile

logger = logging.getLogger(__name__)

# Line breaks and other control characters, which would break terminals, tables and figures, and
# surrogates, which stand for bytes that are not valid text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Listing:
    """The labelled files of a data set, as its folder or table lists them.

    Attributes:
        dataset: the data set.
        folder: data folder, to which the files' paths are relative.
        images: files of the selected classes, sorted by path. Spellings of a group that look alike
            are replaced by one of them.
        classes: names of the selected classes, sorted.
        other_classes: {class: number of files} of the classes that are not selected.
    """

    dataset: Dataset
    folder: Path
    images: list[ImageFile]
    classes: tuple[str, ...]
    other_classes: dict[str, int]


def list_files(
    name: str,
    folder: Path,
    *,
    classes: Sequence[str] = (),
    group_pattern: str = "",
    field: str = "data.dir",
) -> Listing:
    """Lists the files of a data set, without reading the images.

    Args:
        name: name of the data set, one of `datasets.names()`.
        folder: data folder; a generated data set is written there first.
        classes: names of the classes to keep, in upper or lower case; empty keeps all classes.
        group_pattern: regular expression with capture groups, searched for in each file's name.
            Files with equal captures form a group, whatever groups the data set defines. Empty:
            the groups of the data set are used.
        field: config field that names the folder, for messages. Files of another folder than
            data.dir may have names that the pattern does not match.

    Raises:
        DataError: the folder or a class is missing; a class is empty; a class name looks like
            another one or like a missing value; a name contains control characters; or the pattern
            matches no file name.
        AccessError: the folder cannot be read.
    """
    dataset = datasets.get(name)
    if dataset.make is not None:
        with explain_storage_errors(folder):
            dataset.make(folder)
    if folder.is_file():
        raise DataError(f"{folder} is a file, not a folder ({field}).")
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} ({field}). {dataset.obtain}")
    with explain_storage_errors(folder):
        images = dataset.list_images(folder)
    if not images:
        raise DataError(f"The data set {name!r} finds no image in {folder} ({field}).")
    _require_printable_names(images)
    if not classes:
        _require_all_classes(dataset, images, folder)
    kept = _choose_classes(images, classes, folder)
    others = collections.Counter(image.label for image in images if image.label not in kept)
    images = [image for image in images if image.label in kept]
    if group_pattern:
        images = _group_by_name(images, group_pattern, required=field == "data.dir")
    return Listing(dataset, folder, _join_groups(images), kept, dict(sorted(others.items())))


def _require_printable_names(images: Sequence[ImageFile]) -> None:
    """Raises DataError if the name of a file or a class has characters that cannot be shown."""
    for image in images:
        for kind, text in (("file", image.file), ("class", image.label)):
            if _CONTROL.search(text):
                raise DataError(
                    f"The name of the {kind} {text!r} contains a line break, another control "
                    "character or bytes that are not UTF-8; rename it."
                )


def _require_all_classes(dataset: Dataset, images: Sequence[ImageFile], folder: Path) -> None:
    """Raises DataError if a class of the data set has no image."""
    present = {image.label for image in images}
    if missing := [label for label in dataset.classes if label not in present]:
        raise DataError(
            f"{folder} has no images of {', '.join(missing)}; it has {', '.join(sorted(present))}. "
            "Complete the data set, or name the classes to use: "
            f'--config.data.classes="{tuple(sorted(present))}".'
        )


def _choose_classes(
    images: Sequence[ImageFile], selected: Sequence[str], folder: Path
) -> tuple[str, ...]:
    """Returns the names of the classes to keep, sorted; raises DataError like `list_files`."""
    counts = collections.Counter(image.label for image in images)
    first_file = {image.label: image.file for image in reversed(images)}
    by_key = {similar_names.key(name): name for name in counts}
    keys = {similar_names.key(name): name for name in selected} or dict.fromkeys(by_key, "")

    def describe(name: str) -> str:
        spelling = similar_names.spelled_out([name])
        return f"{spelling}, {counts[name]} images such as {first_file[name]}"

    for names in similar_names.groups(counts):
        if similar_names.key(names[0]) in keys:
            raise DataError(
                f"{folder} has classes whose names look alike: "
                f"{'; '.join(map(describe, names))}. Use one spelling for each class, and names "
                "that differ clearly for different classes."
            )
    for key, name in keys.items():
        if key not in by_key:
            raise DataError(
                f"data.classes contains {name!r}, but the classes of {folder} are "
                f"{', '.join(sorted(counts))}."
            )
        if selected and name != by_key[key]:
            logger.info("data.classes: %r selects the class %r", name, by_key[key])
        if not selected and similar_names.is_missing(by_key[key]):
            raise DataError(
                f"Some images have a label that means a missing value: {describe(by_key[key])}. "
                "Label or remove these images. If it is the name of a class, list all classes in "
                "--config.data.classes."
            )
    return tuple(sorted(by_key[key] for key in keys))


def _join_groups(images: list[ImageFile]) -> list[ImageFile]:
    """Replaces group names that look alike by one of them, since they may be one patient."""
    alike = similar_names.groups({image.group for image in images if image.group})
    if alike:
        logger.warning(
            "The names of %d groups (patients, lesions) have several spellings. The images of each "
            "group are kept in one part: %s. If these are different groups, give them names that "
            "differ clearly.",
            len(alike),
            shorten_list([similar_names.spelled_out(names) for names in alike]),
        )
    name_of: dict[str | None, str] = {name: names[0] for names in alike for name in names}
    return [image._replace(group=name_of.get(image.group, image.group)) for image in images]


def _group_by_name(images: list[ImageFile], pattern: str, *, required: bool) -> list[ImageFile]:
    """Replaces the groups of the images whose file names match a pattern.

    Raises:
        DataError: the pattern matches no file name, but is required to.
    """
    matches = [re.search(pattern, PurePosixPath(image.file).name) for image in images]
    # An empty match would put unrelated patients into one group.
    names = [match.groups() if match and any(match.groups()) else None for match in matches]
    without = [image.file for image, name in zip(images, names, strict=True) if name is None]
    if required and len(without) == len(images):
        raise DataError(
            f"data.group_pattern {pattern!r} matches none of the {len(images)} file names, such as "
            f"{images[0].file}."
        )
    logger.info("data.group_pattern matches %d groups", len(set(names) - {None}))
    if without:
        logger.warning(
            "data.group_pattern does not match %d of %d file names. Each of these images is "
            "treated as its own group unless the data set defines one: %s",
            len(without),
            len(images),
            shorten_list(without),
        )
    return [
        image if name is None else image._replace(group=json.dumps(name))
        for image, name in zip(images, names, strict=True)
    ]
