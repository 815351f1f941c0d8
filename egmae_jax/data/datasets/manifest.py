"""Any images that are listed in manifest.csv, with the columns path, label, [group] and [split].

Column names are matched without regard to case, spaces and punctuation, and common synonyms are
accepted. The log names the synonyms and the unused columns.
"""

import collections
import logging
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from egmae_jax.core.errors import shorten_list
from egmae_jax.data import similar_names
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
# Accepted names of each column, in the form that `column_key` returns.
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
    indices = _find_columns(table, names, [values for _, values in rows])
    images: dict[str, ImageFile] = {}
    notes: collections.Counter[str] = collections.Counter()
    for number, values in rows:
        row = {column: values[k] for column, k in indices.items()}
        location = f"{table}, line {number}"
        path = _locate(root, row["path"], location)
        part = _part(row.get("split", ""), location)
        if not row["label"]:
            raise DataError(f"{location}: the label is empty.")
        if path in images:
            raise DataError(f"{location}: {path} is listed twice.")
        if part and row["split"] != part:
            notes[f"{row['split']!r} is read as {part}"] += 1
        group = None if similar_names.is_missing(row.get("group", "")) else row["group"]
        images[path] = ImageFile(path, row["label"], group, part)
    for note, count in sorted(notes.items()):
        logger.info("%s: the split %s (%d lines)", table, note, count)
    _check(table, list(images.values()), has_groups="group" in indices)
    return sorted(images.values())


def _part(name: str, location: str) -> str | None:
    if similar_names.is_missing(name):
        return None
    if (part := part_of(name)) is None:
        raise DataError(f"{location}: the split is {name!r}; it must be train, validation or test.")
    return part


def _check(table: Path, images: Sequence[ImageFile], has_groups: bool) -> None:
    """Raises DataError for a single class or missing parts; warns about missing groups."""
    if len({image.label for image in images}) < 2:
        raise DataError(f"{table} must list images of at least two classes.")
    without_part = sum(image.part is None for image in images)
    if 0 < without_part < len(images):
        raise DataError(
            f"{table}: {without_part} of {len(images)} lines have no split; give one to all lines "
            "or to none."
        )
    without_group = sum(image.group is None for image in images)
    if has_groups and without_group:
        logger.warning(
            "%s: %d of %d lines have no group; each of these images is treated as its own group",
            table,
            without_group,
            len(images),
        )


def _find_columns(
    table: Path, names: Sequence[str], rows: Sequence[Sequence[str]]
) -> dict[str, int]:
    """Returns {'path', 'label' and, if present, 'group' and 'split': index of the column}.

    Raises:
        DataError: a required column is missing, or several columns match one name.
    """
    indices: dict[str, int] = {}
    for column, synonyms in _SYNONYMS.items():
        matches = [k for k, name in enumerate(names) if name == column]
        matches = matches or [k for k, name in enumerate(names) if column_key(name) == column]
        if not matches:
            matches = [k for k, name in enumerate(names) if column_key(name) in synonyms]
            if column == "split":  # "part" may be a body part, and "set" a collection
                matches = [k for k in matches if any(part_of(row[k]) for row in rows)]
        if len(matches) > 1:
            raise DataError(
                f"{table} has {len(matches)} columns that could be the {column}: "
                f"{shorten_list([names[k] for k in matches])}. Rename the correct one to "
                f"{column!r}."
            )
        if matches:
            indices[column] = matches[0]
    if missing := [column for column in ("path", "label") if column not in indices]:
        raise DataError(
            f"{table} has no column {', '.join(missing)}; its columns are "
            f"{', '.join(names) or 'none'}."
        )
    synonyms_used = [f"{names[k]!r} as {c!r}" for c, k in indices.items() if names[k] != c]
    if synonyms_used:
        logger.info("%s: columns are read as follows: %s", table, ", ".join(synonyms_used))
    unused = [name for k, name in enumerate(names) if name and k not in indices.values()]
    if unused:
        logger.warning("%s: columns that are not used: %s", table, shorten_list(unused, most=20))
    return indices


def _locate(root: Path, text: str, location: str) -> str:
    """Returns a listed file's path below `root`, which may be spelled as on another system.

    Raises:
        DataError: the path leads out of `root`, or there is no such file.
    """
    slashes = text.replace("\\", "/")
    # File names from macOS have decomposed letters.
    composed, decomposed = (unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))
    for path in (text, slashes, composed, decomposed):
        if leads_elsewhere(path):
            raise DataError(f"{location}: the path {text!r} must be relative to {root} and in it.")
        if os.path.isfile(root / path):
            return PurePosixPath(path).as_posix()
    raise DataError(f"{location}: there is no file {root / text}.")


register(
    Dataset(
        name="manifest",
        title="images listed in a manifest",
        citation="",
        obtain=(
            "Set --config.data.dir=<folder> to a folder with a file manifest.csv, whose columns "
            "are path (relative to that folder), label and, optionally, group and split."
        ),
        list_images=_list_images,
    )
)
