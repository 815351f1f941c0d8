"""Generated ultrasound phantoms, for the demo and the tests."""

from pathlib import Path

from egmae_jax.data import phantoms
from egmae_jax.data.datasets.base import Dataset, ImageFile, register
from egmae_jax.data.datasets.folders import class_folders

IMAGES_PER_CLASS = 1000


def _list_images(root: Path) -> list[ImageFile]:
    return class_folders(root, root, phantoms.CLASSES)


def _make(folder: Path) -> None:
    phantoms.write(folder, images_per_class=IMAGES_PER_CLASS, seed=0)


register(
    Dataset(
        name="phantoms",
        title="generated B-mode ultrasound phantoms",
        citation="",
        obtain="It is generated in the folder --config.data.dir, which must be new or empty.",
        list_images=_list_images,
        make=_make,
    )
)
