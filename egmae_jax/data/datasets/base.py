"""What a data set is to the rest of the project: where its files are, their labels and groups."""

import codecs
import collections
import csv
import dataclasses
import io
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from egmae_jax.core.errors import UserError, some_of
from egmae_jax.core.files import natural_key, storage_errors_told
from egmae_jax.data import formats

logger = logging.getLogger(__name__)

# What the parts of a data set are called, as `column_key` has it.
SPLIT_NAMES = {
    "train": ("train", "training", "trainset", "trainingset", "trn"),
    "validation": ("validation", "valid", "val", "validationset", "validset", "valset", "dev"),
    "test": ("test", "testing", "testset", "testingset", "tst"),
}


class DataError(UserError):
    """The data cannot be used as they are; the message names the folder, file or class."""


class ImageFile(NamedTuple):
    """One labelled image of a data set."""

    file: str  # path relative to the data folder, with forward slashes
    label: str  # class name
    group: str | None = None  # patient or lesion, where the data set tells; these stay together
    split: str | None = None  # 'train', 'validation' or 'test', where the data set has its own


class Archive(NamedTuple):
    """A file of a data set on the network; an archive is unpacked into the data folder."""

    url: str
    sha256: str | None = None  # None where its publisher tells none: noted at the first download


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set the project knows.

    Attributes:
        name: what `config.data.name` says.
        title: what people call it.
        citation: the paper to cite.
        obtain: how to get it, a sentence for whoever does not have it.
        archives: what `egmae_jax.data.download` fetches; empty where a person must.
        list_images: the labelled files below a folder, sorted by file; raises DataError.
        make: writes the data set into a folder, for the ones that are generated; leaves one that
            holds it as it is; raises DataError if it holds anything else.
        masks: for the data folder and an image's file, the files that outline its lesions, which
            are not images to classify; None where the data set has none.
    """

    name: str
    title: str
    citation: str
    obtain: str
    list_images: Callable[[Path], list[ImageFile]]
    make: Callable[[Path], None] | None = None
    archives: tuple[Archive, ...] = ()
    masks: Callable[[Path, str], list[Path]] | None = None


def top_folder(root: Path, *names: str) -> Path:
    """The first of `names` that is a folder in `root`, as archives unpack to one; else `root`."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def column_key(name: str) -> str:
    """A column's name without case, spaces, punctuation, invisible letters and compatible forms."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in plain if letter.isalnum())


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and {column: value} of every row of a CSV file, values stripped.

    A column whose name differs from one of `columns` by case, spaces and punctuation alone is taken
    for it. See `open_table`.

    Raises:
        DataError: a column is missing, a row has too few or too many values, no text.
    """
    wanted = {column_key(name): name for name in columns}
    names, rows = open_table(path, wanted)
    as_wanted = [wanted.get(column_key(name), name) for name in names]
    names = [
        theirs if theirs in columns or ours in names else ours
        for theirs, ours in zip(names, as_wanted, strict=True)
    ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path} has two columns {twice[0]!r}.")
    if missing := [name for name in columns if name not in names]:
        raise DataError(
            f"{path} has no column {', '.join(missing)}; its columns are "
            f"{', '.join(names) or 'none'}."
        )
    for number, values in rows:
        yield number, dict(zip(names, values, strict=True))


def split_of(name: str) -> str | None:
    """The part that a name usually stands for: 'train', 'validation', 'test'; None for others."""
    return next((split for split, keys in SPLIT_NAMES.items() if column_key(name) in keys), None)


def open_table(
    path: Path, known: Container[str]
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The columns' names of a CSV file, and line number and values of every row, all stripped.

    Commas, semicolons, tabs or bars part the values; the text is UTF-8 or, with a byte order mark,
    UTF-16.

    Args:
        path: of the file.
        known: keys of columns (`column_key`) by which the delimiter is told.

    Raises:
        DataError: a row has too few or too many values, no text.
    """
    text = _decoded(path)
    # Excel writes such a line where it was told what parts the values.
    told = re.match(r'"?sep=([,;\t|])"?\r?\n', text)
    text = text[told.end() :] if told else text
    first = text.lstrip("\r\n")
    above = bool(told) + text[: len(text) - len(first)].count("\n")
    delimiter = told[1] if told else _delimiter(first.partition("\n")[0], known)
    reader = csv.reader(
        io.StringIO(first, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for values in reader:
                number = reader.line_num + above
                if values and len(values) != len(names):
                    raise DataError(
                        f"{path}, line {number} has {len(values)} values; its first line names "
                        f"{len(names)} columns: {some_of(names)}."
                    )
                if values:
                    yield number, [value.strip() for value in values]
        except csv.Error as error:
            raise DataError(f"{path} is no CSV file in UTF-8: {error}.") from None

    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file in UTF-8: {error}.") from None
    names = [_without_invisible(name) for name in header]
    names = [name or f"(without name, the {k}.)" for k, name in enumerate(names, 1)]
    return names, rows()


def _decoded(path: Path) -> str:
    encoded = path.read_bytes()
    if encoded.startswith(b"PK\x03\x04"):
        raise DataError(f"{path} is a workbook, no CSV file: save it as CSV in UTF-8.")
    is_utf16 = encoded.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return encoded.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no CSV file in UTF-8: {error}; save it as that.") from None


def _delimiter(header: str, known: Container[str]) -> str:
    """Excel writes semicolons where a comma is the decimal point."""

    def score(delimiter: str) -> tuple[int, int]:
        names = header.split(delimiter)
        return sum(column_key(name) in known for name in names), len(names)

    return max(",;\t|", key=score)


def _without_invisible(name: str) -> str:
    return "".join(x for x in name if unicodedata.category(x) != "Cf").strip()


def class_folders(
    root: Path,
    folder: Path,
    classes: Iterable[str],
    is_image: Callable[[Path], bool] = lambda path: True,
    split: str | None = None,
) -> list[ImageFile]:
    """Images of a tree with one folder a class, sorted by file.

    Hidden files and folders (.ipynb_checkpoints, macOS's ._x.png) are passed over in silence; other
    files that are no images, links to folders, and what lies beside the class folders, with a
    warning.

    Args:
        root: the data folder, which the returned paths are relative to.
        folder: the folder that holds the class folders, `root` or below it.
        classes: names of the class folders.
        is_image: tells images to classify from files that only look like some (masks).
        split: the data set's own, that these images are in.

    Raises:
        DataError: a class folder is missing or holds no image, or a name is no valid text.
    """
    images = []
    found = Found()
    masks = 0
    classes = tuple(classes)
    for label in classes:
        class_folder = folder / label
        if not class_folder.is_dir():
            names = sorted(_shown(p.name) for p in folder.iterdir() if p.is_dir())
            raise DataError(
                f"{folder} has no class folder {label!r}; folders found: "
                f"{', '.join(names) or 'none'}."
            )
        of_class = find_images(class_folder)
        paths = [path for path in of_class.images if is_image(path)]
        if not paths:
            raise DataError(
                f"The class {label!r} is empty: {class_folder} holds no image {of_class.nothing}."
            )
        found += of_class
        masks += len(of_class.images) - len(paths)
        images += [ImageFile(_name(path, root), label, split=split) for path in paths]
    found.report(folder)
    if masks:
        logger.info("%s: %d masks and the like are no images to classify", folder, masks)
    _warn_of_others(folder, classes)
    return sorted(images)


def _warn_of_others(folder: Path, classes: Sequence[str]) -> None:
    """Names the folders and counts the images that lie beside class folders and are not read."""
    beside = [p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX"))]
    folders = sorted(_shown(p.name) for p in beside if p.is_dir() and p.name not in classes)
    loose = sorted(_shown(p.name) for p in beside if p.is_file() and formats.is_image(p))
    if folders:
        logger.warning("Not read in %s, being no classes of it: %s", folder, some_of(folders))
    if loose:
        logger.warning(
            "Not read in %s, being in no class folder: %d images (%s)",
            folder,
            len(loose),
            some_of(loose),
        )


@dataclasses.dataclass
class Found:
    """What a search for images below a folder has come upon.

    Attributes:
        images: the images, in no order; a link to nothing that is named as one is among them, and
            whoever reads it reports it as unreadable.
        by_bytes: how many of these were told by their bytes, by what they are.
        ignored: how many files and links were passed over, by what they are.
    """

    images: list[Path] = dataclasses.field(default_factory=list)
    by_bytes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    ignored: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __add__(self, other: "Found") -> "Found":
        return Found(
            self.images + other.images,
            self.by_bytes + other.by_bytes,
            self.ignored + other.ignored,
        )

    def report(self, folder: Path) -> None:
        """Logs what was told by its bytes, and warns of what was passed over."""
        if self.by_bytes:
            told = _kinds(self.by_bytes)
            logger.info("Told in %s by their bytes to be images: %s", folder, told)
        if self.ignored:
            logger.warning("Ignored in %s, being no images: %s", folder, _kinds(self.ignored))

    @property
    def nothing(self) -> str:
        """What was looked for and what was found instead, for a sentence that there is no image."""
        instead = f"; there are {_kinds(self.ignored)}" if self.ignored else ""
        suffixes = ", ".join(sorted(formats.SUFFIXES))
        return f"({suffixes}, and other names by their bytes: {', '.join(formats.READ)}){instead}"


def find_images(folder: Path) -> Found:
    """All images below a folder.

    Hidden files and folders and links to folders are not looked into. Files are told by their
    suffix, and where that is not known by their first bytes.

    Raises:
        AccessError: a folder cannot be listed.
    """
    _require_listable(folder)
    found = Found()
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or (path.is_dir() and not path.is_symlink()):
            continue
        suffix = path.suffix.lower()
        if path.is_dir():
            found.ignored["links to folders"] += 1
        elif path.exists() and not path.is_file():
            found.ignored["pipes or devices"] += 1
        elif suffix in formats.SUFFIXES:
            found.images.append(path)
        else:
            try:
                kind = formats.format_of(path)
            except OSError as error:
                found.ignored[f"that cannot be opened ({error.strerror})"] += 1
                continue
            suffixes = path.suffixes[-2:] if suffix == ".gz" else path.suffixes[-1:]
            named = _shown("".join(suffixes)) or "without suffix"
            if kind in formats.READ:
                found.by_bytes[f"{kind} {named}"] += 1
                found.images.append(path)
            else:
                found.ignored[f"{kind} {named}" if kind else named] += 1
    return found


def find_given(given: Sequence[Path]) -> list[Path]:
    """The files that are given and those below the folders that are, each once.

    Files below a folder come in natural order; they are told by their suffix or, where that is
    not known, by their bytes. A file that is named itself may have any.

    Raises:
        DataError: something given is not there, or there is no image in all.
    """
    found: dict[str, Path] = {}  # by what it is called however it is spelled
    folders = Found()
    for path in given:
        if path.is_dir():
            of_folder = find_images(path)
            of_folder.report(path)
            folders += of_folder
            below = sorted(of_folder.images, key=lambda p: [*map(natural_key, p.parts)])
        elif path.is_file():
            below = [path]
        else:
            kind = "is neither a file nor a folder" if path.exists() else "is not there"
            raise DataError(f"{path} {kind} (--images).")
        for file in below:
            found.setdefault(os.path.abspath(file), file)
    if not found:
        raise DataError(f"There is no image in {', '.join(map(str, given))} {folders.nothing}.")
    return list(found.values())


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, in no order; says what it passes over, as `class_folders` does."""
    found = find_images(folder)
    found.report(folder)
    return found.images


def _kinds(counts: collections.Counter[str]) -> str:
    return some_of([f"{count} {kind}" for kind, count in counts.most_common()])


def _require_listable(folder: Path) -> None:
    """Raises AccessError for a folder that the system does not list: `rglob` leaves it out."""

    def refuse(error: OSError) -> NoReturn:
        raise error

    with storage_errors_told(folder):
        for _ in os.walk(folder, onerror=refuse):
            pass


def split_folders(
    root: Path, folders: Mapping[str, Path], classes: Sequence[str]
) -> list[ImageFile]:
    """Images of {split: folder with one folder a class}, sorted by file; see `class_folders`."""
    images = sorted(
        image
        for split, folder in folders.items()
        for image in class_folders(root, folder, classes, split=split)
    )
    for parent in {folder.parent for folder in folders.values()}:
        for beside in sorted(parent.iterdir()):
            if beside not in folders.values() and any((beside / name).is_dir() for name in classes):
                logger.warning("Not read: %s, which holds classes, but is no part known", beside)
    return images


def _name(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of an old archive that are no UTF-8
        raise DataError(
            f"The name of {root}/{_shown(name)} is not UTF-8 text; rename it."
        ) from None
    return name


def _shown(name: str) -> str:
    """A file's name with the bytes that are no UTF-8 written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
