"""Any images listed in a table: manifest.csv with the columns path, label, [group], [split].

Names of columns are matched without regard to case, spaces and punctuation, and common other names
are taken for them; the log says which, and names the columns that are not used.
"""

import collections
import logging
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from egmae_jax.core.errors import shorten_list
from egmae_jax.data import lookalikes
from egmae_jax.data.datasets.base import (
    DataError,
    Dataset,
    ImageFile,
    leads_elsewhere,
    register,
)
from egmae_jax.data.datasets.tables import column_key, part_of, read_table

logger = logging.getLogger(__name__)

_FILE = "manifest.csv"
# What else a column may be called, as `column_key` has it.
_SYNONYMS = {
    "path": (
        *("file", "files", "filename", "filepath", "imagepath", "imagefile", "imagefilename"),
        *("image", "images", "imagename", "img", "imgpath", "imgname", "relativepath"),
        *("imageid", "isicid"),
    ),
    "label": (
        *("labels", "class", "classes", "classname", "classlabel", "target", "targets"),
        *("category", "diagnosis", "dx", "groundtruth", "labelname", "finding"),
    ),
    "group": (
        *("groups", "groupid", "patient", "patients", "patientid", "patientno", "patientnumber"),
        *("patientname", "patientcode", "pid", "subject", "subjects", "subjectid", "participant"),
        *("participantid", "person", "personid", "lesion", "lesions", "lesionid", "case", "caseid"),
        *("study", "studyid", "studyinstanceuid", "exam", "examid", "examination", "mrn"),
    ),
    "split": (
        *("splits", "part", "parts", "partition", "subset", "set", "fold", "folds", "usage"),
        *("phase", "dataset", "datasplit", "traintest", "trainvaltest"),
    ),
}


def _list_images(root: Path) -> list[ImageFile]:
    table = root / _FILE
    if not table.is_file():
        tables = sorted(p.name for p in root.iterdir() if p.suffix.lower() in (".csv", ".tsv"))
        raise DataError(
            f"{root} has no {_FILE}" + (f"; it has {shorten_list(tables)}." if tables else ".")
        )
    names, rows = read_table(table)
    place = _columns(table, names, [values for _, values in rows])
    images: dict[str, ImageFile] = {}
    renamed: collections.Counter[str] = collections.Counter()
    for number, values in rows:
        row = {column: values[k] for column, k in place.items()}
        where = f"{table}, line {number}"
        path = _locate(root, row["path"], where)
        part = _part(row.get("split", ""), where)
        if not row["label"]:
            raise DataError(f"{where}: the label is empty.")
        if path in images:
            raise DataError(f"{where}: {path} is listed before.")
        if part and row["split"] != part:
            renamed[f"{row['split']!r} is read as {part}"] += 1
        group = None if lookalikes.is_missing(row.get("group", "")) else row["group"]
        images[path] = ImageFile(path, row["label"], group, part)
    for reading, count in sorted(renamed.items()):
        logger.info("%s: the split %s (%d lines)", table, reading, count)
    _check(table, list(images.values()), has_groups="group" in place)
    return sorted(images.values())


def _part(name: str, where: str) -> str | None:
    if lookalikes.is_missing(name):
        return None
    if (part := part_of(name)) is None:
        raise DataError(f"{where}: the split is {name!r}; it can be train, validation, test.")
    return part


def _check(table: Path, images: Sequence[ImageFile], has_groups: bool) -> None:
    """Refuses a table of one class or with parts for some images; warns of missing groups."""
    if len({image.label for image in images}) < 2:
        raise DataError(f"{table} must list images of two or more classes.")
    without_part = sum(image.split is None for image in images)
    if 0 < without_part < len(images):
        raise DataError(f"{table}: {without_part} of {len(images)} lines have no split.")
    without_group = sum(image.group is None for image in images)
    if has_groups and without_group:
        logger.warning(
            "%s: %d of %d lines have no group: each of these images counts as its own group",
            table,
            without_group,
            len(images),
        )


def _columns(table: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, int]:
    """{path, label and, where there are, group and split: index of the column}.

    Raises:
        DataError: a column that is needed is missing, or several columns could be one.
    """
    place: dict[str, int] = {}
    for column, synonyms in _SYNONYMS.items():
        places = [k for k, name in enumerate(names) if name == column]
        places = places or [k for k, name in enumerate(names) if column_key(name) == column]
        if not places:
            places = [k for k, name in enumerate(names) if column_key(name) in synonyms]
            if column == "split":  # a part may be of the body, a set a collection
                places = [k for k in places if any(part_of(row[k]) for row in rows)]
        if len(places) > 1:
            raise DataError(
                f"{table} has {len(places)} columns that could be the {column}: "
                f"{shorten_list([names[k] for k in places])}. Call the one that is meant "
                f"{column!r}."
            )
        if places:
            place[column] = places[0]
    if missing := [column for column in ("path", "label") if column not in place]:
        raise DataError(
            f"{table} has no column {', '.join(missing)}; its columns are "
            f"{', '.join(names) or 'none'}."
        )
    taken = [f"{names[k]!r} for {column!r}" for column, k in place.items() if names[k] != column]
    if taken:
        logger.info("%s: taken %s", table, ", ".join(taken))
    unused = [name for k, name in enumerate(names) if name and k not in place.values()]
    if unused:
        logger.warning("%s: not used: %s", table, shorten_list(unused, most=20))
    return place


def _locate(root: Path, text: str, where: str) -> str:
    """A listed file's path below `root`, which another system may have written.

    Raises:
        DataError: the path leads elsewhere, or there is no such file.
    """
    slashes = text.replace("\\", "/")
    # Files from a Mac have decomposed letters in their names.
    composed, decomposed = (unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))
    for path in (text, slashes, composed, decomposed):
        if leads_elsewhere(path):
            raise DataError(f"{where}: the path {text!r} must lead below {root}.")
        if os.path.isfile(root / path):
            return PurePosixPath(path).as_posix()
    raise DataError(f"{where}: there is no file {root / text}.")


register(
    Dataset(
        name="manifest",
        title="images listed in a manifest",
        citation="",
        obtain=(
            "Give the folder that holds manifest.csv, with the columns path (below that folder), "
            "label and, if you like, group and split, as --config.data.dir=<folder>."
        ),
        list_images=_list_images,
    )
)
