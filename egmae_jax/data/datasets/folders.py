"""Images in folders: trees with one folder a class, and all images below a folder."""

import collections
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from egmae_jax.core.errors import shorten_list
from egmae_jax.core.files import explain_storage_errors, natural_key
from egmae_jax.data import formats
from egmae_jax.data.datasets.base import DataError, ImageFile

logger = logging.getLogger(__name__)


def top_folder(root: Path, *names: str) -> Path:
    """The first of `names` that is a folder in `root`, as archives unpack to one; else `root`."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def class_folders(
    root: Path,
    folder: Path,
    classes: Sequence[str],
    is_image: Callable[[Path], bool] = lambda path: True,
    split: str | None = None,
) -> list[ImageFile]:
    """Lists the images of a tree with one folder a class, sorted by path.

    Hidden files and folders (.ipynb_checkpoints, macOS's ._x.png) are passed over in silence; other
    files that are no images, links to folders, and what lies beside the class folders, with a
    warning.

    Args:
        root: the data folder, which the returned paths are relative to.
        folder: the folder that holds the class folders, `root` or below it.
        classes: names of the class folders.
        is_image: tells images to classify from masks and the like.
        split: the part that the data set puts these images into; None where it has no parts.

    Raises:
        DataError: a class folder is missing or holds no image, or a name is no valid text.
    """
    images: list[ImageFile] = []
    ignored: collections.Counter[str] = collections.Counter()
    for label in classes:
        class_folder = folder / label
        if not class_folder.is_dir():
            names = sorted(_shown(p.name) for p in folder.iterdir() if p.is_dir())
            raise DataError(
                f"{folder} has no class folder {label!r}; folders found: "
                f"{', '.join(names) or 'none'}."
            )
        search = find_images(class_folder)
        paths = [path for path in search.images if is_image(path)]
        if not paths:
            raise DataError(
                f"The class {label!r} is empty: {class_folder} holds no image {search.nothing}."
            )
        ignored += search.ignored
        images += [ImageFile(_name(path, root), label, split=split) for path in paths]
    Search([], ignored).report(folder)
    beside = [p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX"))]
    others = sorted(
        _shown(p.name)
        for p in beside
        if (p.name not in classes if p.is_dir() else p.is_file() and formats.is_image(p))
    )
    if others:
        logger.warning(
            "Not read in %s, being no class folder and in none: %s", folder, shorten_list(others)
        )
    return sorted(images)


def split_folders(
    root: Path, folders: Mapping[str, Path], classes: Sequence[str]
) -> list[ImageFile]:
    """Lists the images of {part: folder with one folder a class}; see `class_folders`."""
    images = sorted(
        image
        for part, folder in folders.items()
        for image in class_folders(root, folder, classes, split=part)
    )
    for parent in {folder.parent for folder in folders.values()}:
        for beside in sorted(parent.iterdir()):
            if beside not in folders.values() and any((beside / name).is_dir() for name in classes):
                logger.warning("Not read: %s, which holds classes, but is no part known", beside)
    return images


class Search(NamedTuple):
    """Result of a search for images below a folder.

    Attributes:
        images: the images, in no order.
        ignored: number of files and links that were passed over, by suffix or kind.
    """

    images: list[Path]
    ignored: collections.Counter[str]

    def report(self, folder: Path) -> None:
        """Warns of what was passed over in a folder."""
        if self.ignored:
            logger.warning("Ignored in %s, being no images: %s", folder, self._counts)

    @property
    def nothing(self) -> str:
        """Words for a sentence that there is no image: what counts as one, and what there is."""
        suffixes = ", ".join(sorted(formats.SUFFIXES))
        instead = f"; there are {self._counts}" if self.ignored else ""
        return f"({suffixes}, and other names by their bytes: {', '.join(formats.READ)}){instead}"

    @property
    def _counts(self) -> str:
        return shorten_list([f"{count} {kind}" for kind, count in self.ignored.most_common()])


def find_images(folder: Path) -> Search:
    """Finds all images below a folder, by their suffix or, where that is not known, by their bytes.

    Hidden files and folders and links to folders are not looked into. A link to nothing that is
    named as an image counts as one: whoever reads it reports it as unreadable.

    Raises:
        AccessError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> NoReturn:
        raise error

    images: list[Path] = []
    ignored: collections.Counter[str] = collections.Counter()
    with explain_storage_errors(folder):
        for parent, folders, files in os.walk(folder, onerror=refuse):
            links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
            ignored["links to folders"] += len(links)
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(parent, name) for name in files if not name.startswith(".")):
                if path.exists() and not path.is_file():
                    ignored["pipes or devices"] += 1
                elif formats.is_image(path):
                    images.append(path)
                else:
                    ignored[_shown("".join(path.suffixes[-1:])) or "without suffix"] += 1
    return Search(images, +ignored)


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, in no order; warns of what it passes over."""
    search = find_images(folder)
    search.report(folder)
    return search.images


def find_given(given: Sequence[Path]) -> list[Path]:
    """Lists the files that are given and the images below the folders that are, each once.

    Images below a folder come in natural order. A file that is given itself may have any name.

    Raises:
        DataError: something given is not there, or there is no image at all.
    """
    files: dict[str, Path] = {}  # by absolute path, however it is spelled
    ignored: collections.Counter[str] = collections.Counter()
    for path in given:
        if path.is_dir():
            search = find_images(path)
            search.report(path)
            ignored += search.ignored
            below = sorted(search.images, key=lambda p: [*map(natural_key, p.parts)])
        elif path.is_file():
            below = [path]
        else:
            problem = "is neither a file nor a folder" if path.exists() else "is not there"
            raise DataError(f"{path} {problem} (--images).")
        for file in below:
            files.setdefault(os.path.abspath(file), file)
    if not files:
        nothing = Search([], ignored).nothing
        raise DataError(f"There is no image in {', '.join(map(str, given))} {nothing}.")
    return list(files.values())


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
