"""3297 ISIC images, benign or malignant, 224x224: the data of the ASFF ResNet-50."""

from pathlib import Path

from egmae_jax.data.datasets.base import Dataset, ImageFile, register
from egmae_jax.data.datasets.folders import split_folders, top_folder

_CLASSES = ("benign", "malignant")


def _list_images(root: Path) -> list[ImageFile]:
    # The archive holds the same images twice, in train/ and test/ and again below data/.
    folder = root if (root / "train").is_dir() else top_folder(root, "data")
    return split_folders(root, {split: folder / split for split in ("train", "test")}, _CLASSES)


register(
    Dataset(
        name="skin_lesions",
        title="Skin cancer: malignant vs. benign (ISIC)",
        citation="ISIC Archive, https://www.isic-archive.com; selection by C. Fanconi on Kaggle, "
        "2019",
        obtain=(
            "Download it from "
            "https://www.kaggle.com/datasets/fanconic/skin-cancer-malignant-vs-benign, unpack it "
            "and give the folder that holds train/ and test/ as --config.data.dir=<folder>."
        ),
        list_images=_list_images,
    )
)
