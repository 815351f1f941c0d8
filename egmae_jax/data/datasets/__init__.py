"""Supported data sets, one module each: file locations, labels, groups and citation."""

from egmae_jax.data.datasets import (  # noqa: F401 (each registers its data sets)
    brain_tumor,
    busi,
    covid,
    hyperkvasir,
    image_folder,
    isic2018,
    kvasir,
    manifest,
    phantoms,
    skin_lesions,
    unlabelled,
)
from egmae_jax.data.datasets.base import (
    DATASETS,
    DataError,
    Dataset,
    ImageFile,
    get,
    names,
    register,
)

DATASETS.reserve()

__all__ = ["DataError", "Dataset", "ImageFile", "get", "names", "register"]
