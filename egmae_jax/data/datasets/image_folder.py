"""Any tree with one folder a class: the folders' names are the classes."""

import logging
import re
from pathlib import Path

from egmae_jax.core.errors import some_of
from egmae_jax.data.datasets.base import DataError, Dataset, ImageFile, class_folders, split_of

logger = logging.getLogger(__name__)

_MASK = re.compile(r"_mask(_\d+)?$")


def _list_images(root: Path) -> list[ImageFile]:
    hidden = (".", "__MACOSX")  # what macOS leaves in archives is no class
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(hidden))
    if len(classes) < 2:
        found = ", ".join(classes) or "none"
        tables = sorted(p.name for p in root.iterdir() if p.suffix.lower() in (".csv", ".tsv"))
        hint = (
            f" It holds {some_of(tables)}: a table that lists the images is read as manifest.csv "
            "by --config.data.name=manifest."
        )
        raise DataError(
            f"{root} must hold a folder for each of two or more classes; found: {found}."
            + (hint if tables else "")
        )
    splits = [name for name in classes if split_of(name)]
    if len(splits) > 1:
        raise DataError(
            f"{root} holds {', '.join(splits)}: these are splits, not classes. The folders on top "
            "must be the classes, which the project splits itself; to keep the parts, list the "
            "images in a manifest.csv with a column split (--config.data.name=manifest "
            "--config.data.protocol=official)."
        )
    images = class_folders(root, root, classes)
    _warn_of_masks(images)
    return images


def _warn_of_masks(images: list[ImageFile]) -> None:
    """'a_mask.png' beside 'a.png' is a lesion's outline, as BUSI has them."""
    stems = {image.file: image.file.rsplit(".", 1)[0] for image in images}
    whole = set(stems.values())
    found = [f for f, s in stems.items() if _MASK.search(s) and _MASK.sub("", s) in whole]
    if found:
        logger.warning(
            "%d files look like masks of images beside them, and are trained on as images: %s and "
            "so on. Move them elsewhere; configs/busi.py knows BUSI's.",
            len(found),
            found[0],
        )


DATASET = Dataset(
    name="image_folder",
    title="a folder of images, one folder a class",
    citation="",
    obtain="Put the images into <folder>/<class>/ and give --config.data.dir=<folder>.",
    list_images=_list_images,
)
