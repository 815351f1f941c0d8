"""Any tree with one folder a class: the folders' names are the classes."""

import logging
import re
from pathlib import Path

from egmae_jax.data.datasets.base import DataError, Dataset, ImageFile, register
from egmae_jax.data.datasets.folders import class_folders
from egmae_jax.data.datasets.tables import part_of

logger = logging.getLogger(__name__)

_MASK = re.compile(r"_mask(_\d+)?$")


def _list_images(root: Path) -> list[ImageFile]:
    hidden = (".", "__MACOSX")  # what macOS leaves in archives is no class
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(hidden))
    if len(classes) < 2:
        raise DataError(
            f"{root} must hold a folder for each of two or more classes; found: "
            f"{', '.join(classes) or 'none'}. (Images that a table lists are read as manifest.csv "
            "by --config.data.name=manifest.)"
        )
    parts = [name for name in classes if part_of(name)]
    if len(parts) > 1:
        raise DataError(
            f"{root} holds {', '.join(parts)}: these are parts, not classes. The folders on top "
            "must be the classes, which the project splits itself; to keep the parts, list the "
            "images in a manifest.csv with a column split (--config.data.name=manifest "
            "--config.data.protocol=official)."
        )
    images = class_folders(root, root, classes)
    # 'a_mask.png' beside 'a.png' is a lesion's outline, as BUSI has them.
    stems = {image.file: image.file.rsplit(".", 1)[0] for image in images}
    whole = set(stems.values())
    masks = [f for f, s in stems.items() if _MASK.search(s) and _MASK.sub("", s) in whole]
    if masks:
        logger.warning(
            "%d files look like masks of images beside them, and are trained on as images: %s and "
            "so on. Move them elsewhere; configs/busi.py knows BUSI's.",
            len(masks),
            masks[0],
        )
    return images


register(
    Dataset(
        name="image_folder",
        title="a folder of images, one folder a class",
        citation="",
        obtain="Put the images into <folder>/<class>/ and give --config.data.dir=<folder>.",
        list_images=_list_images,
    )
)
