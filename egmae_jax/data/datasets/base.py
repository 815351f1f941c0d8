"""The interface of a data set, and the registry of data sets by name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from egmae_jax.core.errors import UserError
from egmae_jax.core.registry import Registry


class DataError(UserError):
    """The data cannot be used as they are; the message names the folder, file or class at fault."""


class ImageFile(NamedTuple):
    """One labelled image of a data set.

    Attributes:
        file: path relative to the data folder, with forward slashes.
        label: name of the class.
        group: name of the patient or lesion, whose images stay in one part; None if unknown.
        part: official part, 'train', 'validation' or 'test'; None if the data set defines none.
    """

    file: str
    label: str
    group: str | None = None
    part: str | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A supported data set.

    Attributes:
        name: value of `config.data.name` that selects the data set.
        title: name of the data set in figures and reports.
        citation: reference of the paper to cite; empty if there is none.
        obtain: one or more sentences on how to obtain the data set, for error messages.
        list_images: function that lists the labelled files below a folder, sorted by path; raises
            DataError.
        classes: names of all classes, which must be there unless `config.data.classes` names fewer;
            empty if the files or a table tell which classes there are.
        make: function that writes a generated data set into a folder unless it exists already, and
            raises DataError if the folder contains anything else. None: the data set is not
            generated.
        archives: URLs of the files that `egmae_jax.data.download` fetches; empty if users have to
            download the data set themselves.
        masks: function that returns the lesion mask files of an image, given the data folder and
            the path of the image below it; None if the data set has no masks.
    """

    name: str
    title: str
    citation: str
    obtain: str
    list_images: Callable[[Path], list[ImageFile]]
    classes: tuple[str, ...] = ()
    make: Callable[[Path], None] | None = None
    archives: tuple[str, ...] = ()
    masks: Callable[[Path, str], list[Path]] | None = None


DATASETS: Registry[Dataset] = Registry("data set")


def register(dataset: Dataset) -> None:
    """Registers a data set, so that `config.data.name` accepts its name.

    Raises:
        ValueError: a data set of the package has this name.
    """
    DATASETS.register(dataset.name)(dataset)


def names() -> tuple[str, ...]:
    """Returns the names of all registered data sets."""
    return DATASETS.names()


def get(name: str) -> Dataset:
    """Returns the data set that is registered as `name`.

    Raises:
        ConfigError: no data set is registered under this name.
    """
    return DATASETS.get(name)


def leads_elsewhere(name: str) -> bool:
    """Whether a path from a table or an archive is empty, absolute, or leads out of its folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or not path.parts
