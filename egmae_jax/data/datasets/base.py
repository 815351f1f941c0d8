"""What a data set is to the rest of the project: where its files are, their labels and groups."""

import collections
import csv
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from egmae_jax.errors import UserError

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".dicom"}
)

logger = logging.getLogger(__name__)


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


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and {column: value} of every row of a CSV file, values stripped.

    Raises:
        DataError: a column is missing, a row has too few or too many values, no UTF-8 text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            found = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = found
            if twice := sorted({name for name in found if found.count(name) > 1}):
                raise DataError(f"{path} has two columns {twice[0]!r}.")
            if missing := [name for name in columns if name not in found]:
                raise DataError(
                    f"{path} has no column {', '.join(missing)}; its columns are "
                    f"{', '.join(found) or 'none'}."
                )
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}: expected {len(found)} values."
                    )
                yield reader.line_num, {name: value.strip() for name, value in row.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file in UTF-8: {error}.") from None


def class_folders(
    root: Path,
    folder: Path,
    classes: Iterable[str],
    is_image: Callable[[Path], bool] = lambda path: True,
    split: str | None = None,
) -> list[ImageFile]:
    """Images of a tree with one folder a class, sorted by file.

    Hidden files and folders (.ipynb_checkpoints, macOS's ._x.png) are passed over in silence; other
    files that are no images by their suffix, and links to folders, with a warning.

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
    ignored: collections.Counter[str] = collections.Counter()
    for label in classes:
        class_folder = folder / label
        if not class_folder.is_dir():
            names = sorted(_shown(p.name) for p in folder.iterdir() if p.is_dir())
            found = ", ".join(names) or "none"
            raise DataError(f"{folder} has no class folder {label!r}; folders found: {found}.")
        paths = [path for path in _image_files(class_folder, ignored) if is_image(path)]
        if not paths:
            raise DataError(
                f"The class {label!r} is empty: {class_folder} holds no image "
                f"({', '.join(sorted(IMAGE_SUFFIXES))})."
            )
        images += [ImageFile(_name(path, root), label, split=split) for path in paths]
    _warn_of(ignored, folder)
    return sorted(images)


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, in no order; what is passed over is told as `class_folders` does.

    A link to nothing is one of them: whoever reads it reports it as unreadable.
    """
    ignored: collections.Counter[str] = collections.Counter()
    paths = _image_files(folder, ignored)
    _warn_of(ignored, folder)
    return paths


def _image_files(folder: Path, ignored: collections.Counter[str]) -> list[Path]:
    """Counts, by kind, what is passed over."""
    paths = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_dir():
            ignored["links to folders"] += 1
        elif path.exists() and not path.is_file():
            ignored["pipes or devices"] += 1
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            ignored[_shown(path.suffix) or "without suffix"] += 1
        else:
            paths.append(path)
    return paths


def _warn_of(ignored: collections.Counter[str], folder: Path) -> None:
    if ignored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in ignored.most_common())
        logger.warning("Ignored in %s, being no images: %s", folder, kinds)


def split_folders(
    root: Path, folders: Mapping[str, Path], classes: Sequence[str]
) -> list[ImageFile]:
    """Images of {split: folder with one folder a class}, sorted by file; see `class_folders`."""
    return sorted(
        image
        for split, folder in folders.items()
        for image in class_folders(root, folder, classes, split=split)
    )


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
