"""Data sets by name, one file each: where its files are, their labels and groups, citation."""

import difflib

from egmae_jax.data.datasets import (
    brain_tumor,
    busi,
    covid,
    image_folder,
    isic2018,
    kvasir,
    manifest,
    phantoms,
    skin_lesions,
)
from egmae_jax.data.datasets.base import Archive, DataError, Dataset, ImageFile

__all__ = ["Archive", "DataError", "Dataset", "ImageFile", "get", "names"]

_DATASETS = {
    dataset.name: dataset
    for dataset in (
        busi.DATASET,
        isic2018.DATASET,
        isic2018.BINARY,
        kvasir.DATASET,
        kvasir.V1,
        covid.DATASET,
        skin_lesions.DATASET,
        brain_tumor.DATASET,
        brain_tumor.BRISC,
        image_folder.DATASET,
        manifest.DATASET,
        phantoms.DATASET,
    )
}


def names() -> tuple[str, ...]:
    """Every name that `get` takes."""
    return tuple(_DATASETS)


def get(name: str) -> Dataset:
    """Returns the data set `name`.

    Raises:
        DataError: no such data set.
    """
    if name not in _DATASETS:
        nearest = difflib.get_close_matches(name, _DATASETS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise DataError(f"There is no data set {name!r}.{hint} Known: {', '.join(names())}.")
    return _DATASETS[name]
