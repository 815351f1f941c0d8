"""Kvasir: endoscopic images in eight classes (paper section 4.1); 8000 in version 2, 4000 in 1."""

import functools
from pathlib import Path

from egmae_jax.data.datasets.base import Dataset, ImageFile, register
from egmae_jax.data.datasets.folders import class_folders, top_folder

_CLASSES = (
    "dyed-lifted-polyps",
    "dyed-resection-margins",
    "esophagitis",
    "normal-cecum",
    "normal-pylorus",
    "normal-z-line",
    "polyps",
    "ulcerative-colitis",
)
_CITATION = (
    "Pogorelov et al., KVASIR: a multi-class image dataset for computer aided gastrointestinal "
    "disease detection, ACM Multimedia Systems Conference, 2017"
)


def _list_images(root: Path, archive_folder: str) -> list[ImageFile]:
    return class_folders(root, top_folder(root, archive_folder), _CLASSES)


def _version(name: str, title: str, archive_folder: str) -> Dataset:
    url = f"https://datasets.simula.no/downloads/kvasir/{archive_folder}.zip"
    return Dataset(
        name=name,
        title=title,
        citation=_CITATION,
        obtain=(
            f"`egmae download {name} <folder>` downloads it. Or unpack {url} "
            f"and set --config.data.dir=<folder> to the folder that contains {archive_folder}/."
        ),
        list_images=functools.partial(_list_images, archive_folder=archive_folder),
        classes=_CLASSES,
        archives=(url,),
    )


register(_version("kvasir", "Kvasir v2", "kvasir-dataset-v2"))
register(_version("kvasir_v1", "Kvasir v1", "kvasir-dataset"))
