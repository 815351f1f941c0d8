"""Listing of images in folders, with or without one subfolder per class."""

import collections
import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from egmae_jax.core.errors import shorten_list
from egmae_jax.core.files import explain_storage_errors, natural_key
from egmae_jax.core.markup import printable
from egmae_jax.data import formats
from egmae_jax.data.datasets.base import DataError, ImageFile

logger = logging.getLogger(__name__)


def top_folder(root: Path, name: str) -> Path:
    """Returns `root / name`, the folder an archive unpacks to, if it exists, otherwise `root`."""
    return root / name if (root / name).is_dir() else root


def class_folders(
    root: Path,
    folder: Path,
    classes: Sequence[str],
    is_image: Callable[[Path], bool] = lambda path: True,
    part: str | None = None,
) -> list[ImageFile]:
    """Lists the images of the class folders that a folder contains, sorted by path.

    Hidden files and folders (.ipynb_checkpoints, macOS's ._x.png) are ignored silently. Other files
    that are not images, links to folders, and images or folders beside the class folders are
    ignored with a warning.

    Args:
        root: data folder, to which the returned paths are relative.
        folder: folder with the class folders; `root` or a folder below it.
        classes: names of the class folders.
        is_image: function that returns False for files to leave out, such as masks.
        part: official part of these images; None if the data set defines no parts.

    Raises:
        DataError: there is none of the class folders, or one contains no image.
    """
    present = [label for label in classes if (folder / label).is_dir()]
    if not present:
        names = sorted(printable(p.name) for p in folder.iterdir() if p.is_dir())
        raise DataError(
            f"{folder} has none of the class folders {', '.join(classes)}; its folders are: "
            f"{', '.join(names) or 'none'}."
        )
    images: list[ImageFile] = []
    for label in present:
        class_folder = folder / label
        paths = [path for path in find_images(class_folder) if is_image(path)]
        if not paths:
            raise DataError(
                f"The class {label!r} is empty: {class_folder} has no images ({formats.KNOWN})."
            )
        files = (path.relative_to(root).as_posix() for path in paths)
        images += [ImageFile(file, label, part=part) for file in files]
    _warn_of_others(folder, classes)
    return sorted(images)


def _warn_of_others(folder: Path, classes: Sequence[str]) -> None:
    """Logs a warning about images and folders beside the class folders, which are ignored."""
    others = [
        printable(path.name)
        for path in sorted(folder.iterdir())
        if not path.name.startswith((".", "__MACOSX"))
        and path.name not in classes
        and (path.is_dir() or (path.is_file() and formats.is_image(path)))
    ]
    if others:
        logger.warning(
            "Ignored in %s because they are not in a class folder: %s", folder, shorten_list(others)
        )


def part_folders(
    root: Path, folders: Mapping[str, Path], classes: Sequence[str]
) -> list[ImageFile]:
    """Lists the images of several official parts, sorted by path; see `class_folders`.

    Args:
        root: data folder, to which the returned paths are relative.
        folders: {official part: folder with one subfolder per class}.
        classes: names of the class folders.

    Raises:
        DataError: a part lacks a class that another part has, or as `class_folders`.
    """
    images = [
        image
        for part, folder in folders.items()
        for image in class_folders(root, folder, classes, part=part)
    ]
    there = {(image.part, image.label) for image in images}
    for part, label in itertools.product(folders, {image.label for image in images}):
        if (part, label) not in there:
            raise DataError(f"{folders[part]} has no class folder {label!r}; other parts have it.")
    return sorted(images)


def find_images(folder: Path) -> list[Path]:
    """Finds all images below a folder, in arbitrary order; warns about files that are not images.

    Images are recognised by their suffix or, if the suffix is unknown, by their content. Hidden
    files and folders are ignored, and links to folders are not followed. A broken link with the
    suffix of an image counts as an image, which is reported as unreadable when it is decoded.

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
                is_pipe = path.exists() and not path.is_file()
                if not is_pipe and formats.is_image(path):
                    images.append(path)
                else:
                    ignored[printable(path.suffix) or "without suffix"] += 1
    if kinds := [f"{count} {kind}" for kind, count in (+ignored).most_common()]:
        logger.warning("Ignored in %s because they are not images: %s", folder, shorten_list(kinds))
    return images


def find_given(paths: Sequence[Path]) -> list[Path]:
    """Lists the given files, and the images below the given folders in natural order, each once.

    A file that is given directly may have any suffix.

    Raises:
        DataError: a path does not exist, or there are no images.
    """
    files: dict[str, Path] = {}  # by absolute path, however it is spelled
    for path in paths:
        if path.is_dir():
            below = sorted(find_images(path), key=lambda p: [*map(natural_key, p.parts)])
        elif path.is_file():
            below = [path]
        else:
            problem = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise DataError(f"{path} {problem} (--images).")
        for file in below:
            files.setdefault(os.path.abspath(file), file)
    if not files:
        folders = ", ".join(map(str, paths))
        raise DataError(f"There are no images in {folders} ({formats.KNOWN}).")
    return list(files.values())
