"""What a data set is to the rest of the project: where its files are, their labels and groups."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


class DataError(ValueError):
    """The data cannot be used as they are; the message names the folder, file or class."""


class ImageFile(NamedTuple):
    """One labelled image of a data set."""

    file: str  # path relative to the data folder, with forward slashes
    label: str  # class name
    group: str | None = (
        None  # patient or lesion, where the data set tells; such images stay together
    )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set the project knows.

    Attributes:
        name: what `config.data.name` says.
        title: what people call it.
        citation: the paper to cite.
        obtain: how to get it, a sentence for whoever does not have it.
        list_images: the labelled files below a folder, sorted by file; raises DataError.
        make: writes the data set into a folder, for the ones that are generated.
    """

    name: str
    title: str
    citation: str
    obtain: str
    list_images: Callable[[Path], list[ImageFile]]
    make: Callable[[Path], None] | None = None


def class_folders(
    root: Path,
    folder: Path,
    classes: Iterable[str],
    is_image: Callable[[Path], bool] = lambda path: True,
) -> list[ImageFile]:
    """Images of a tree with one folder a class, sorted by file.

    Args:
        root: the data folder, which the returned paths are relative to.
        folder: the folder that holds the class folders, `root` or below it.
        classes: names of the class folders.
        is_image: tells images to classify from files that only look like some (masks).

    Raises:
        DataError: a class folder is missing or holds no image.
    """
    images = []
    for label in classes:
        class_folder = folder / label
        if not class_folder.is_dir():
            found = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir())) or "none"
            raise DataError(f"{folder} has no class folder {label!r}; folders found: {found}.")
        paths = [
            path
            for path in class_folder.rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES
            and not path.name.startswith(".")  # macOS archives: '._x.png' is no image
            and path.is_file()
            and is_image(path)
        ]
        if not paths:
            raise DataError(
                f"The class {label!r} is empty: {class_folder} holds no image "
                f"({', '.join(sorted(IMAGE_SUFFIXES))})."
            )
        images += [ImageFile(path.relative_to(root).as_posix(), label) for path in paths]
    return sorted(images)
