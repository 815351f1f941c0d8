"""Any folder with one subfolder per class, whose names are the names of the classes."""

import logging
import re
from pathlib import Path

from egmae_jax.data.datasets.base import DataError, Dataset, ImageFile, register
from egmae_jax.data.datasets.folders import class_folders
from egmae_jax.data.datasets.tables import part_of

logger = logging.getLogger(__name__)

_MASK = re.compile(r"_mask(_\d+)?$")


def _list_images(root: Path) -> list[ImageFile]:
    hidden = (".", "__MACOSX")  # macOS adds the latter to archives
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(hidden))
    if len(classes) < 2:
        raise DataError(
            f"{root} must contain a folder for each of two or more classes; it contains: "
            f"{', '.join(classes) or 'none'}. (To read images that are listed in a table, name the "
            "table manifest.csv and set --config.data.name=manifest; `egmae evaluate` takes the "
            "path of the table as --images.)"
        )
    parts = [name for name in classes if part_of(name)]
    if len(parts) > 1:
        raise DataError(
            f"{root} contains {', '.join(parts)}, which are parts, not classes. The top folders "
            "must be the classes; the images are then split automatically. To keep the parts, list "
            "the images in a manifest.csv with a column split (--config.data.name=manifest "
            "--config.data.protocol=official)."
        )
    images = class_folders(root, root, classes)
    # 'a_mask.png' beside 'a.png' is probably the mask of a lesion, as in BUSI.
    stems = {image.file: image.file.rsplit(".", 1)[0] for image in images}
    all_stems = set(stems.values())
    masks = [f for f, s in stems.items() if _MASK.search(s) and _MASK.sub("", s) in all_stems]
    if masks:
        logger.warning(
            "%d files look like masks of other images, but are used as images, such as %s. Move "
            "the masks to another folder; for BUSI, use configs/busi.py, which recognises them.",
            len(masks),
            masks[0],
        )
    return images


register(
    Dataset(
        name="image_folder",
        title="a folder of images, one folder per class",
        citation="",
        obtain="Put the images into <folder>/<class>/ and set --config.data.dir=<folder>.",
        list_images=_list_images,
    )
)
