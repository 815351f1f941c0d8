"""Data sets by name, one file each: where its files are, their labels and groups, citation."""

from egmae_jax.data.datasets import (  # noqa: F401 (each registers its data sets)
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
from egmae_jax.data.datasets.base import DataError, Dataset, ImageFile, get, names, register

__all__ = ["DataError", "Dataset", "ImageFile", "get", "names", "register"]
