"""Images without labels: every image below a folder, for pre-training only."""

from pathlib import Path

from egmae_jax.data.datasets.base import Dataset, ImageFile, register
from egmae_jax.data.datasets.folders import find_images

NAME = "unlabelled"  # name of the data set, and of its only class


def _list_images(root: Path) -> list[ImageFile]:
    return sorted(ImageFile(p.relative_to(root).as_posix(), NAME) for p in find_images(root))


register(
    Dataset(
        name=NAME,
        title="images without labels",
        citation="",
        obtain="It must hold images (--images of egmae pretrain); its subfolders have no meaning.",
        list_images=_list_images,
    )
)
