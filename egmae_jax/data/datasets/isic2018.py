"""ISIC 2018 task 3: dermoscopic images of seven diagnoses (paper section 4.1), or of two.

The training part is HAM10000: 10015 images of 7470 lesions. Either of two tables gives the lesion
of each image.
"""

import dataclasses
import logging
from pathlib import Path

from egmae_jax.core.errors import shorten_list
from egmae_jax.data import formats
from egmae_jax.data.datasets.base import DataError, Dataset, ImageFile, register
from egmae_jax.data.datasets.tables import read_columns

logger = logging.getLogger(__name__)

_CLASSES = ("AKIEC", "BCC", "BKL", "DF", "MEL", "NV", "VASC")
_PARTS = {"train": "Training", "validation": "Validation", "test": "Test"}
_LESION_TABLES = (  # file, column of the image, column of the lesion
    ("ISIC2018_Task3_Training_LesionGroupings.csv", "image", "lesion_id"),
    ("HAM10000_metadata.csv", "image_id", "lesion_id"),
)


def _list_images(root: Path) -> list[ImageFile]:
    lesions = _lesions(root)
    return sorted(image for part in _PARTS for image in _list_part(root, part, lesions))


def _list_part(root: Path, part: str, lesions: dict[str, str]) -> list[ImageFile]:
    """Lists the images of one part; empty if a validation or test folder does not exist."""
    folder = root / f"ISIC2018_Task3_{_PARTS[part]}_Input"
    table = f"ISIC2018_Task3_{_PARTS[part]}_GroundTruth.csv"
    if not folder.is_dir():
        if part == "train":
            raise DataError(f"{root} has no folder {folder.name}.")
        return []  # many users have only the training part
    if (truth := _find(root, table)) is None:
        raise DataError(f"{root} contains {folder.name}, but no {table}.")
    diagnoses = _diagnoses(truth)
    by_stem = {path.stem: path for path in folder.glob("[!.]*") if formats.is_image(path)}
    if missing := sorted(diagnoses.keys() - by_stem.keys()):
        raise DataError(
            f"{len(missing)} images that {truth} lists are not in {folder}, such as {missing[0]}."
        )
    if unlisted := sorted(by_stem.keys() - diagnoses.keys()):
        logger.warning(
            "%d images in %s are not used because %s does not list them: %s",
            len(unlisted),
            folder,
            truth,
            shorten_list(unlisted),
        )
    if lesions and part == "train" and (alone := sorted(diagnoses.keys() - lesions.keys())):
        logger.warning(
            "%d images have no lesion in the table, and each is treated as a lesion of its own: %s",
            len(alone),
            shorten_list(alone),
        )
    return [
        ImageFile(by_stem[name].relative_to(root).as_posix(), label, lesions.get(name), part)
        for name, label in diagnoses.items()
    ]


def _diagnoses(truth: Path) -> dict[str, str]:
    """Reads a table of one-hot diagnoses; returns {image: class}."""
    diagnoses = {}
    for number, row in read_columns(truth, ("image", *_CLASSES)):
        marked = [label for label in _CLASSES if row[label] in ("1", "1.0")]
        if len(marked) != 1:
            raise DataError(
                f"{truth}, line {number}: {len(marked)} classes are 1; exactly one must be."
            )
        name = row["image"]
        if name in diagnoses:
            raise DataError(f"{truth}, line {number}: {name} is listed twice.")
        diagnoses[name] = marked[0]
    return diagnoses


def _lesions(root: Path) -> dict[str, str]:
    """Returns {image: lesion} from the first of the tables that exists; empty if none exists."""
    for file, image, lesion in _LESION_TABLES:
        if (path := _find(root, file)) is not None:
            return {row[image]: row[lesion] for _, row in read_columns(path, (image, lesion))}
    logger.warning(
        "%s contains neither %s: images of one lesion are kept in one part only if they are "
        "near-duplicates.",
        root,
        " nor ".join(file for file, *_ in _LESION_TABLES),
    )
    return {}


def _find(root: Path, file: str) -> Path | None:
    """Finds a table in the data folder or in the folder that its archive unpacks to."""
    return next((p for p in (root / file, root / Path(file).stem / file) if p.is_file()), None)


_MALIGNANT = ("AKIEC", "BCC", "MEL")


def _list_binary(root: Path) -> list[ImageFile]:
    return [
        image._replace(label="malignant" if image.label in _MALIGNANT else "benign")
        for image in _list_images(root)
    ]


_URL = "https://isic-challenge-data.s3.amazonaws.com/2018/ISIC2018_Task3_"
_ISIC2018 = Dataset(
    name="isic2018",
    title="ISIC 2018 task 3 (HAM10000)",
    citation=(
        "Tschandl et al., The HAM10000 dataset, Scientific Data 5, 2018; Codella et al., "
        "arXiv:1902.03368, 2019"
    ),
    obtain=(
        "`egmae download isic2018 <folder>` downloads it. Or download the "
        "files of task 3 from https://challenge.isic-archive.com/data/#2018 and set "
        "--config.data.dir=<folder> to the folder that contains ISIC2018_Task3_Training_Input/."
    ),
    list_images=_list_images,
    archives=tuple(
        _URL + file
        for file in (
            "Training_Input.zip",
            "Training_GroundTruth.zip",
            "Training_LesionGroupings.csv",
            "Validation_Input.zip",
            "Validation_GroundTruth.zip",
            "Test_Input.zip",
            "Test_GroundTruth.zip",
        )
    ),
)
_BINARY = dataclasses.replace(
    _ISIC2018,
    name="isic2018_binary",
    title="ISIC 2018 task 3, malignant (MEL, BCC, AKIEC) or benign",
    list_images=_list_binary,
)

register(_ISIC2018)
register(_BINARY)
