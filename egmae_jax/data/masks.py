"""The outlines of lesions that some data sets have beside their images, as pixels of a view."""

from pathlib import Path

import numpy as np
import PIL.Image

from egmae_jax.data import images
from egmae_jax.data.datasets import DataError, Dataset

_LESION = 128  # grey value from which a pixel of a mask is lesion


def lesion_mask(
    root: Path,
    file: str,
    dataset: Dataset,
    *,
    image_shape: tuple[int, int],
    resize: images.Resize,
    image_size: int,
) -> np.ndarray | None:
    """Which pixels of an image's evaluation view are lesion; several masks are united.

    Args:
        root: the data folder.
        file: of the image, relative to it.
        dataset: knows which files are its masks.
        image_shape: height and width of the image, which its masks must have as well.
        resize: as for `images.evaluation_view`.
        image_size: side of the view in pixels.

    Returns:
        bool [image_size, image_size], without any True for a mask that is empty; None where the
        data set or the image has no masks.

    Raises:
        DataError: a mask cannot be read, or is of another size than its image.
    """
    masks = dataset.masks(root, file) if dataset.masks is not None else []
    if not masks:
        return None
    united = np.zeros(image_shape, bool)
    for mask in masks:
        try:
            lesion = np.asarray(images.decode((root / mask).read_bytes(), "grey")) >= _LESION
        except (images.UnreadableImageError, OSError) as error:
            raise DataError(f"The mask {root / mask} cannot be read: {error}.") from None
        if lesion.shape != united.shape:
            raise DataError(
                f"The mask {root / mask} has {lesion.shape[1]}x{lesion.shape[0]} pixels, its image "
                f"{file} {united.shape[1]}x{united.shape[0]}: they cannot be laid over each other."
            )
        united |= lesion
    view = images.evaluation_view(
        PIL.Image.fromarray(united), resize, image_size, PIL.Image.Resampling.NEAREST
    )
    return np.asarray(view)
