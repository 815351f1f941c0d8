"""Any images listed in a table: manifest.csv with the columns path, label, [group], [split].

Names of columns are matched without regard to case, spaces and punctuation, and what other tables
call them is taken for them; what is taken for what, and what is not used, is said.
"""

import collections
import difflib
import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from egmae_jax.core.errors import some_of
from egmae_jax.data import formats, lookalikes
from egmae_jax.data.datasets.base import (
    SPLIT_NAMES,
    DataError,
    Dataset,
    ImageFile,
    column_key,
    open_table,
    split_of,
)

logger = logging.getLogger(__name__)

_FILE = "manifest.csv"
# What else a column may be called, as `column_key` has it.
_SYNONYMS = {
    "path": (
        *("file", "files", "filename", "filepath", "imagepath", "imagefile", "imagefilename"),
        *("image", "images", "imagename", "img", "imgpath", "imgname", "imgfile", "paths"),
        *("relativepath", "relpath", "pathtoimage", "imageid", "isicid"),
    ),
    "label": (
        *("labels", "class", "classes", "classname", "classlabel", "target", "targets"),
        *("category", "diagnosis", "dx", "groundtruth", "labelname", "finding"),
    ),
    "group": (
        *("groups", "groupid", "patient", "patients", "patientid", "patientno", "patientnumber"),
        *("patientname", "patientcode", "pid", "subject", "subjects", "subjectid", "subjectno"),
        *("participant", "participantid", "person", "personid", "lesion", "lesions", "lesionid"),
        *("case", "caseid", "caseno", "study", "studyid", "studyinstanceuid", "exam", "examid"),
        *("examination", "series", "seriesid", "mrn", "individual", "individualid"),
    ),
    "split": (
        *("splits", "part", "parts", "partition", "subset", "set", "fold", "folds", "usage"),
        *("phase", "dataset", "datasplit", "datasetsplit", "splitname", "traintest"),
        *("trainvaltest", "trainvalidtest"),
    ),
}
_NEAR = 0.8  # difflib's ratio from which an unknown column's name may be a slip


def _list_images(root: Path) -> list[ImageFile]:
    table = _find_table(root)
    names, rows = _rows(table)
    used = _columns(table, names, rows)
    place = {column: names.index(name) for column, name in used.items()}
    images: dict[str, ImageFile] = {}
    renamed: collections.Counter[str] = collections.Counter()
    groups = collections.Counter[bool]()
    for number, values in rows:
        row = {column: values[k] for column, k in place.items()}
        where = f"{table}, line {number}"
        path, how = _locate(root, row["path"], where)
        renamed[how] += 1
        label, split = row["label"], _split(row.get("split", ""), where, renamed)
        if not label:
            raise DataError(f"{where}: the label is empty.")
        if str(path) in images:
            raise DataError(f"{where}: {path} is listed before.")
        group = row.get("group", "")
        group = "" if lookalikes.is_missing(group) else group
        groups[bool(group)] += 1
        images[str(path)] = ImageFile(str(path), label, group or None, split)
    if len({image.label for image in images.values()}) < 2:
        raise DataError(f"{table} must list images of two or more classes.")
    some = [image.split is not None for image in images.values()]
    if any(some) and not all(some):
        raise DataError(f"{table}: {some.count(False)} of {len(some)} lines have no split.")
    for how, count in sorted(renamed.items()):
        if how:
            logger.info("%s: %s (%d lines)", table, how, count)
    if groups[False] and "group" in used:
        logger.warning(
            "%s: %d of %d lines have no %s: each of these images counts as its own group",
            table,
            groups[False],
            groups.total(),
            used["group"],
        )
    return sorted(images.values())


def _find_table(root: Path) -> Path:
    """The manifest, also in capitals or in part."""
    table = root / _FILE
    if table.is_file():
        return table
    alike = sorted(path for path in root.iterdir() if path.name.casefold() == _FILE)
    if len(alike) == 1 and alike[0].is_file():
        logger.info("%s is taken for %s", alike[0], _FILE)
        return alike[0]
    suffixes = (".csv", ".tsv", ".txt", ".xlsx", ".xls")
    others = sorted(path.name for path in root.iterdir() if path.suffix.lower() in suffixes)
    hint = f"; it has {some_of(others)}" if others else ""
    raise DataError(f"{root} has no {_FILE}{hint}.")


def _rows(table: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    known = {*_SYNONYMS, *(key for keys in _SYNONYMS.values() for key in keys)}
    names, rows = open_table(table, known)
    return names, list(rows)


def _columns(
    table: Path, names: Sequence[str], rows: Sequence[tuple[int, list[str]]]
) -> dict[str, str]:
    """{path, label and, where there are, group and split: the table's name of the column}.

    Says what is taken for what, and which columns are not used.

    Raises:
        DataError: one that is needed is missing, or is there twice, or several could be it.
    """
    by_column: dict[str, list[str]] = {}
    values = {name: [row[k] for _, row in rows] for k, name in enumerate(names)}
    for column, synonyms in _SYNONYMS.items():
        same = [name for name in names if column_key(name) == column]
        found = [name for name in same if name == column] or same
        if len(found) > 1:
            raise DataError(f"{table} has two columns {column!r}.")
        if not found:
            found = [name for name in names if column_key(name) in synonyms]
            if column == "split":  # a part may be of the body, a set a collection
                found = [name for name in found if any(map(split_of, values[name]))]
        if len(found) > 1:
            stays = ", by whose values images must stay together" if column == "group" else ""
            raise DataError(
                f"{table} has {len(found)} columns that could be the {column}: {some_of(found)}. "
                f"Call the one that is meant {column!r}{stays}."
            )
        by_column[column] = found
    used = {column: found[0] for column, found in by_column.items() if found}
    if missing := [column for column in ("path", "label") if column not in used]:
        near = {column: _near(column, names) for column in missing}
        hint = [f" Is it {name!r}? Call it {column!r}." for column, name in near.items() if name]
        raise DataError(
            f"{table} has no column {', '.join(missing)}; its columns are "
            f"{', '.join(names) or 'none'}.{''.join(hint)}"
        )
    taken = [f"{name!r} for {column!r}" for column, name in used.items() if name != column]
    if taken:
        logger.info("%s: taken %s", table, ", ".join(taken))
    _warn_of_unused(table, used, values)
    return used


def _warn_of_unused(table: Path, used: dict[str, str], values: dict[str, list[str]]) -> None:
    """Names the columns that nothing is read from; those that could mean something, with why."""
    unused = [name for name in values if name not in used.values() and any(values[name])]
    if not unused:
        return
    notes = [note for name in unused for note in _notes(name, used, values)]
    logger.warning("%s: not used: %s%s", table, some_of(unused, most=20), "".join(notes))


def _notes(name: str, used: dict[str, str], values: dict[str, list[str]]) -> Iterator[str]:
    """What should be known of a column that is not used."""
    key = column_key(name)
    if key in _SYNONYMS["split"] or key == "split":
        shown = some_of(sorted(set(values[name]) - {""}), most=5)
        yield (
            f"; {name!r} holds {shown}, which are no names of parts (train, validation, test)"
            + (
                "; folds are made by --config.rounds.kind=folds"
                if key in ("fold", "folds") and "split" not in used
                else ""
            )
        )
    elif key in ("group", *_SYNONYMS["group"]) and "group" in used:
        groups: dict[str, set[str]] = {}
        for one, group in zip(values[name], values[used["group"]], strict=True):
            if one:
                groups.setdefault(one, set()).add(group)
        parted = sum(len(found) > 1 for found in groups.values())
        if parted:
            yield (
                f"; {parted} of {len(groups)} values of {name!r} have images in several groups "
                f"of {used['group']!r}, which may come into several parts"
            )
    else:
        for column in ("group", "split"):
            if column not in used and _near(column, [name]):
                yield f"; if {name!r} is the {column}, call it {column!r}"


def _near(column: str, names: Sequence[str]) -> str | None:
    """The one of some names that may be a slip for a column's."""
    keys = (column, *(x for x in _SYNONYMS[column] if 5 <= len(x) <= 9))
    for name in names:
        if difflib.get_close_matches(column_key(name), keys, n=1, cutoff=_NEAR):
            return name
    return None


def _split(value: str, where: str, renamed: collections.Counter[str]) -> str | None:
    if lookalikes.is_missing(value):
        return None
    split = split_of(value)
    if split is None:
        raise DataError(f"{where}: the split is {value!r}; it can be {', '.join(SPLIT_NAMES)}.")
    if value != split:
        renamed[f"the split {value!r} is read as {split}"] += 1
    return split


def _locate(root: Path, given: str, where: str) -> tuple[PurePosixPath, str]:
    """A listed file, and in which way its path was read if not as it stands."""
    path = PurePosixPath(given)
    slashes = given.replace("\\", "/")
    for text, how in (
        (given, ""),
        (slashes, "backslashes are read as slashes"),
        (unicodedata.normalize("NFC", slashes), "decomposed letters are read as composed ones"),
        (unicodedata.normalize("NFD", slashes), "composed letters are read as decomposed ones"),
    ):
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise DataError(f"{where}: the path {given!r} must lead below {root}.")
        try:
            if not (root / path).is_file():
                continue
        except OSError as error:  # a name that is too long
            raise DataError(f"{where}: {error.strerror}: {str(path)[:80]!r}.") from None
        if path.suffix.lower() not in formats.SUFFIXES:
            _require_readable(root / path, where)
        return path, how
    raise DataError(f"{where}: there is no file {root / given}{_instead(root / slashes)}.")


def _require_readable(path: Path, where: str) -> None:
    try:
        kind = formats.format_of(path)
    except OSError:
        return  # reading it says why
    if kind and kind not in formats.READ:
        raise DataError(
            f"{where}: {path} is a file of the kind {kind}; {', '.join(formats.READ)} are read."
        )


def _instead(path: Path) -> str:
    """Says which file of nearly that name there is."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    key = path.name.casefold()
    alike = [x for x in names if x.casefold() == key or Path(x).stem.casefold() == key]
    stem = [x for x in names if Path(x).stem.casefold() == path.stem.casefold()]
    found = sorted(alike or stem)
    return f"; there is {some_of(found, most=3)}" if found else ""


DATASET = Dataset(
    name="manifest",
    title="images listed in a manifest",
    citation="",
    obtain=(
        "Give the folder that holds manifest.csv, with the columns path (below that folder), label "
        "and, if you like, group and split, as --config.data.dir=<folder>."
    ),
    list_images=_list_images,
)
