"""BUSI: 780 breast ultrasound images in three classes, with lesion masks (paper section 4.1)."""

import glob
import re
from pathlib import Path

from egmae_jax.data.datasets.base import Dataset, ImageFile, register
from egmae_jax.data.datasets.folders import class_folders, top_folder

_CLASSES = ("benign", "malignant", "normal")
_MASK = re.compile(r"_mask(_\d+)?$")  # 'benign (4)_mask_1.png' is the mask of a lesion


def _list_images(root: Path) -> list[ImageFile]:
    folder = top_folder(root, "Dataset_BUSI_with_GT")
    return class_folders(root, folder, _CLASSES, lambda path: not _MASK.search(path.stem))


def _masks(root: Path, file: str) -> list[Path]:
    """Returns the mask files of one image, one per lesion; masks of normal images are all black."""
    image = root / file
    masks = image.parent.glob(f"{glob.escape(image.stem)}_mask*{glob.escape(image.suffix)}")
    return sorted(path for path in masks if _MASK.sub("", path.stem) == image.stem)


register(
    Dataset(
        name="busi",
        title="Breast Ultrasound Images (BUSI)",
        citation="Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28, 2020",
        obtain=(
            "Download Dataset_BUSI.zip from https://scholar.cu.edu.eg/?q=afahmy/pages/dataset, "
            "unpack it, and set --config.data.dir=<folder> to the folder that contains "
            "Dataset_BUSI_with_GT/."
        ),
        list_images=_list_images,
        classes=_CLASSES,
        masks=_masks,
    )
)
