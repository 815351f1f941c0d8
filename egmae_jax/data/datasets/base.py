"""What a data set is to the rest of the project: where its files are, their labels and groups."""

import dataclasses
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from egmae_jax.core.errors import UserError


class DataError(UserError):
    """The data cannot be used as they are; the message names the folder, file or class."""


class ImageFile(NamedTuple):
    """One labelled image of a data set.

    Attributes:
        file: path relative to the data folder, with forward slashes.
        label: name of the class.
        group: patient or lesion whose images stay together; None where the data set names none.
        split: 'train', 'validation' or 'test'; None where the data set has no parts of its own.
    """

    file: str
    label: str
    group: str | None = None
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set the project knows.

    Attributes:
        name: value of `config.data.name`.
        title: what people call the data set.
        citation: the paper to cite.
        obtain: how to get the data set, a sentence for whoever does not have it.
        list_images: lists the labelled files below a folder, sorted by path; raises DataError.
        make: writes a generated data set into a folder, unless it is there already; raises
            DataError if the folder holds anything else. None: the data set is not generated.
        archives: addresses of the files that `egmae_jax.data.download` fetches; empty where a
            person must fetch them.
        masks: for the data folder and an image's path, the files that outline the image's lesions;
            None where the data set has no masks.
    """

    name: str
    title: str
    citation: str
    obtain: str
    list_images: Callable[[Path], list[ImageFile]]
    make: Callable[[Path], None] | None = None
    archives: tuple[str, ...] = ()
    masks: Callable[[Path, str], list[Path]] | None = None


_DATASETS: dict[str, Dataset] = {}


def register(dataset: Dataset) -> None:
    """Makes a data set known by its name, which `config.data.name` then takes."""
    _DATASETS[dataset.name] = dataset


def names() -> tuple[str, ...]:
    """Names of all registered data sets."""
    return tuple(_DATASETS)


def get(name: str) -> Dataset:
    """Returns the data set `name`.

    Raises:
        DataError: no data set of that name is registered.
    """
    if name not in _DATASETS:
        raise DataError(f"There is no data set {name!r}; there are {', '.join(names())}.")
    return _DATASETS[name]


def leads_elsewhere(name: str) -> bool:
    """Whether a path in a table or an archive is empty, absolute or leads out of its folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or not path.parts
