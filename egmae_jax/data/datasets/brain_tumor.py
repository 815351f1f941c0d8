"""Brain tumour MRI in four classes: the Kaggle data set, and BRISC 2025."""

from pathlib import Path

from egmae_jax.data.datasets.base import Dataset, ImageFile, register
from egmae_jax.data.datasets.folders import split_folders, top_folder


def _list_kaggle(root: Path) -> list[ImageFile]:
    classes = ("glioma", "meningioma", "notumor", "pituitary")
    return split_folders(root, {"train": root / "Training", "test": root / "Testing"}, classes)


def _list_brisc(root: Path) -> list[ImageFile]:
    classes = ("glioma", "meningioma", "no_tumor", "pituitary")
    folder = top_folder(root, "brisc2025") / "classification_task"
    return split_folders(root, {split: folder / split for split in ("train", "test")}, classes)


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
    )
)
