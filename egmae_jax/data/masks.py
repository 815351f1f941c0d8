"""Reads the lesion masks of data sets that have them, and resizes them like their images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from egmae_jax.data import images
from egmae_jax.data.datasets import DataError, Dataset


class MaskError(DataError):
    """A mask cannot be used; the message names its file and the reason."""


def read_mask(paths: Sequence[Path], size: tuple[int, int]) -> np.ndarray:
    """Reads the masks of one image and returns their union.

    Args:
        paths: mask files, in which pixels above half of the full brightness are lesion.
        size: height and width of the image.

    Returns:
        bool [H, W], True for lesion.

    Raises:
        MaskError: a file cannot be read, has several values but none above half of the full
            brightness, or differs from the image in size.
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
                f"The mask {path} has values of {low:g} to {high:g}, none of them above half of "
                "the full brightness: save it in black and white (0 and 255 in 8 bits)."
            )
        if mask.shape != size:
            raise MaskError(
                f"The mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels, but its image has "
                f"{size[1]}x{size[0]}: they must have the same size."
            )
        union |= mask > 127
    return union


def mask_view(
    mask: np.ndarray, resize: images.Resize, image_size: int, resized: int | None = None
) -> np.ndarray:
    """Resizes and crops a mask like its image in `images.evaluation_view`.

    Args:
        mask: bool [H, W].
        resize: resize mode; see `images.evaluation_view`.
        image_size: side of the view in pixels.
        resized: side before the centre crop; see `images.evaluation_view`.

    Returns:
        bool [image_size, image_size]; a pixel is True if more than half of its weight is.
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
    """Returns the lesion mask of an image's evaluation view.

    Args:
        root: data folder.
        file: path of the image, relative to the data folder.
        dataset: data set of the image, which finds the mask files.
        image_shape: height and width of the image.
        resize: resize mode; see `images.evaluation_view`.
        image_size: side of the view in pixels.
        resized: side before the centre crop; see `images.evaluation_view`.

    Returns:
        bool [image_size, image_size], all False for an empty mask; None if the data set or the
        image has no masks.

    Raises:
        MaskError: a mask cannot be used; see `read_mask`.
    """
    paths = dataset.masks(root, file) if dataset.masks is not None else []
    if not paths:
        return None
    return mask_view(read_mask(paths, image_shape), resize, image_size, resized)
