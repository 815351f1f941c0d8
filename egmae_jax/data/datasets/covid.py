"""COVID-19 Radiography: chest X-rays in four classes (paper section 4.1).

Each class folder contains `images/`, `masks/` (lung masks) and a spreadsheet; only the images are
read. The paper calls its data set "COVID2" and does not name its classes; `configs/covid.py:covid2`
uses COVID and Normal.
"""

from pathlib import Path

from egmae_jax.data.datasets.base import Dataset, ImageFile, register
from egmae_jax.data.datasets.folders import class_folders, top_folder

_CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")


def _list_images(root: Path) -> list[ImageFile]:
    folder = top_folder(root, "COVID-19_Radiography_Dataset")
    return class_folders(root, folder, _CLASSES, lambda path: path.parent.name != "masks")


register(
    Dataset(
        name="covid",
        title="COVID-19 Radiography",
        citation=(
            "Chowdhury et al., Can AI help in screening viral and COVID-19 pneumonia?, IEEE Access "
            "8, 2020; Rahman et al., Computers in Biology and Medicine 132, 2021"
        ),
        obtain=(
            "Download it from https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-"
            "database, unpack it, and set --config.data.dir=<folder> to the folder that contains "
            "COVID-19_Radiography_Dataset/."
        ),
        list_images=_list_images,
        classes=_CLASSES,
    )
)
