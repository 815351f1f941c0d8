"""Brain tumour MRI in four classes: the Kaggle data set, and BRISC 2025."""

from pathlib import Path

from egmae_jax.data.datasets.base import Dataset, ImageFile, register
from egmae_jax.data.datasets.folders import part_folders, top_folder

_KAGGLE_CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
_BRISC_CLASSES = ("glioma", "meningioma", "no_tumor", "pituitary")


def _list_kaggle(root: Path) -> list[ImageFile]:
    folders = {"train": root / "Training", "test": root / "Testing"}
    return part_folders(root, folders, _KAGGLE_CLASSES)


def _list_brisc(root: Path) -> list[ImageFile]:
    folder = top_folder(root, "brisc2025") / "classification_task"
    folders = {part: folder / part for part in ("train", "test")}
    return part_folders(root, folders, _BRISC_CLASSES)


register(
    Dataset(
        name="brain_tumor",
        title="Brain tumour MRI (Kaggle)",
        citation="Nickparvar, Brain Tumor MRI Dataset, Kaggle, 2021, "
        "doi:10.34740/kaggle/dsv/2645886",
        obtain=(
            "Download it from "
            "https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset, unpack it, "
            "and set --config.data.dir=<folder> to the folder that contains Training/ and Testing/."
        ),
        list_images=_list_kaggle,
        classes=_KAGGLE_CLASSES,
    )
)
register(
    Dataset(
        name="brisc2025",
        title="BRISC 2025",
        citation="Fateh et al., BRISC: annotated dataset for brain tumor segmentation and "
        "classification, arXiv:2506.14318, 2025",
        obtain=(
            "Download it from https://www.kaggle.com/datasets/briscdataset/brisc2025, unpack it, "
            "and set --config.data.dir=<folder> to the folder that contains brisc2025/."
        ),
        list_images=_list_brisc,
        classes=_BRISC_CLASSES,
    )
)
