"""3297 ISIC images, benign or malignant, 224x224: the data set of the ASFF ResNet-50 paper."""

from pathlib import Path

from egmae_jax.data.datasets.base import Dataset, ImageFile, register
from egmae_jax.data.datasets.folders import part_folders, top_folder

_CLASSES = ("benign", "malignant")


def _list_images(root: Path) -> list[ImageFile]:
    # The archive contains the same images twice: in train/ and test/, and again below data/.
    folder = root if (root / "train").is_dir() else top_folder(root, "data")
    return part_folders(root, {part: folder / part for part in ("train", "test")}, _CLASSES)


register(
    Dataset(
        name="skin_lesions",
        title="Skin cancer: malignant vs. benign (ISIC)",
        citation="ISIC Archive, https://www.isic-archive.com; selection by C. Fanconi on Kaggle, "
        "2019",
        obtain=(
            "Download it from "
            "https://www.kaggle.com/datasets/fanconic/skin-cancer-malignant-vs-benign, unpack it, "
            "and set --config.data.dir=<folder> to the folder that contains train/ and test/."
        ),
        list_images=_list_images,
        classes=_CLASSES,
    )
)
