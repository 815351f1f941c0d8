"""The data sets by name. One file each: where the files are, labels, groups, citation."""

import difflib

from egmae_jax.data.datasets import busi, image_folder, phantoms
from egmae_jax.data.datasets.base import DataError, Dataset, ImageFile

__all__ = ["DataError", "Dataset", "ImageFile", "get", "names"]

_DATASETS = {m.DATASET.name: m.DATASET for m in (busi, image_folder, phantoms)}
_NOT_YET = {"isic2018": "ISIC 2018 task 3", "kvasir": "Kvasir", "covid": "COVID-19 Radiography"}


def names() -> tuple[str, ...]:
    """Every name that `get` takes."""
    return tuple(_DATASETS)


def get(name: str) -> Dataset:
    """The data set `name`.

    Raises:
        ValueError: no such data set, or one whose loader is not written yet.
    """
    if name in _NOT_YET:
        raise ValueError(
            f"The loader of {_NOT_YET[name]} (data.name={name!r}) is not written yet. Sort its "
            "images into one folder a class and use configs/image_folder.py meanwhile."
        )
    if name not in _DATASETS:
        nearest = difflib.get_close_matches(name, _DATASETS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"There is no data set {name!r}.{hint} Known: {', '.join(names())}.")
    return _DATASETS[name]
