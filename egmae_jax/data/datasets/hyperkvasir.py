"""HyperKvasir: endoscopic images in 23 classes of the upper and lower gastrointestinal tract."""

from pathlib import Path

from egmae_jax.data.datasets.base import DataError, Dataset, ImageFile, register
from egmae_jax.data.datasets.folders import find_images


def _list_images(root: Path) -> list[ImageFile]:
    """Lists images by the folder that contains them, at any depth: the class.

    The labelled images lie in labeled-images/<tract>/<kind of finding>/<class>/. Where this folder
    is found, the unlabelled images beside it are left out.
    """
    tops = [*root.glob("labeled-images"), *root.glob("*/labeled-images")]
    paths = [path for top in tops or [root] for path in find_images(top)]
    if loose := [path for path in paths if path.parent in (root, *tops)]:
        raise DataError(f"{loose[0]} is not in the folder of a class.")
    return sorted(ImageFile(path.relative_to(root).as_posix(), path.parent.name) for path in paths)


_URL = "https://datasets.simula.no/downloads/hyper-kvasir/hyper-kvasir-labeled-images.zip"
register(
    Dataset(
        name="hyperkvasir",
        title="HyperKvasir",
        citation="Borgli et al., HyperKvasir, a comprehensive multi-class image and video dataset "
        "for gastrointestinal endoscopy, Scientific Data 7, 283, 2020",
        obtain=(
            "`egmae download hyperkvasir <folder>` downloads it. Or unpack "
            f"{_URL} and set --config.data.dir=<folder> to the folder that contains "
            "labeled-images/."
        ),
        list_images=_list_images,
        archives=(_URL,),
    )
)
