"""Masks of lesions that some data sets have beside their images, as pixels of a view."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from egmae_jax.data import images
from egmae_jax.data.datasets import DataError, Dataset


class MaskError(DataError):
    """A mask cannot be used; the message names its file and says why."""


def read_mask(paths: Sequence[Path], size: tuple[int, int]) -> np.ndarray:
    """Reads the union of one image's masks.

    Args:
        paths: the mask files; a pixel brighter than half is inside.
        size: height and width of the image.

    Returns:
        bool [H, W].

    Raises:
        MaskError: a file cannot be read, holds values of which none is brighter than half, or has
            another size than the image.
    """
    union = np.zeros(size, bool)
    for path in paths:
        try:
            decoded = images.examine(path.read_bytes())
        except (images.UnreadableImageError, OSError) as error:
            raise MaskError(f"The mask {path} cannot be read: {error}.") from None
        grey = decoded.image.convert("L")
        mask = np.asarray(grey)
        _, low, high = decoded.stored or ("", *grey.getextrema())
        if high > low and not (mask > 127).any():
            raise MaskError(
                f"The mask {path} has values of {low:g} to {high:g}, none of them brighter than "
                "half: make it black and white (0 and 255 in 8 bits)."
            )
        if mask.shape != size:
            raise MaskError(
                f"The mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels, its image "
                f"{size[1]}x{size[0]}: they cannot be laid over each other."
            )
        union |= mask > 127
    return union


def mask_view(
    mask: np.ndarray, resize: images.Resize, image_size: int, resized: int | None = None
) -> np.ndarray:
    """Makes the view of a mask in which its image is evaluated (`images.evaluation_view`).

    Returns:
        bool [image_size, image_size]; a pixel is inside if more than half of what it is made of is.
    """
    grey = PIL.Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
    return np.asarray(images.evaluation_view(grey, resize, image_size, resized)) > 127


def lesion_mask(
    root: Path,
    file: str,
    dataset: Dataset,
    *,
    image_shape: tuple[int, int],
    resize: images.Resize,
    image_size: int,
    resized: int | None = None,
) -> np.ndarray | None:
    """Finds the pixels of an image's evaluation view that are lesion.

    Args:
        root: the data folder.
        file: path of the image below it.
        dataset: the data set, which knows the image's masks.
        image_shape: height and width of the image.
        resize: as for `images.evaluation_view`.
        image_size: side of the view in pixels.
        resized: as for `images.evaluation_view`.

    Returns:
        bool [image_size, image_size], without any True for a mask that is empty; None where the
        data set or the image has no masks.

    Raises:
        MaskError: see `read_mask`.
    """
    paths = dataset.masks(root, file) if dataset.masks is not None else []
    if not paths:
        return None
    return mask_view(read_mask(paths, image_shape), resize, image_size, resized)
