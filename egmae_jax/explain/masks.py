"""Whether the heat is where the lesion is: masks in the geometry of the heat, and two figures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from scipy import ndimage

from egmae_jax.data import images

# Of the maximum: where a whole cell of a layer is the hottest, the heat at an image's edge is the
# same but for rounding.
_EQUAL = 1 - 1e-6


class MaskError(ValueError):
    """A mask cannot be used; the message names its file and says why."""


def read_mask(paths: Sequence[Path], size: tuple[int, int]) -> np.ndarray:
    """The union of one image's masks.

    Args:
        paths: of the mask files; a pixel brighter than half is inside.
        size: height and width of the image.

    Returns:
        bool [H, W].

    Raises:
        MaskError: a file cannot be read, or has another size than the image: nobody knows then
            which pixel is which.
    """
    union = np.zeros(size, bool)
    for path in paths:
        try:
            mask = np.asarray(images.decode(path.read_bytes(), "grey"))
        except (images.UnreadableImageError, OSError) as error:
            raise MaskError(f"{path} cannot be read: {error}") from None
        if mask.shape != size:
            raise MaskError(
                f"{path} has {mask.shape[1]}x{mask.shape[0]} pixels, its image {size[1]}x{size[0]}"
            )
        union |= mask > 127
    return union


def mask_view(mask: np.ndarray, resize: images.Resize, image_size: int) -> np.ndarray:
    """The mask as its image is evaluated: bool [image_size, image_size].

    It goes through the very code that images go through; a pixel is inside if more than half of
    what it is made of is.
    """
    grey = PIL.Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
    return np.asarray(images.evaluation_view(grey, resize, image_size)) > 127


def heat_in_mask(heat: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The share of an image's heat that lies inside its mask (the energy-based pointing game).

    Heat that knows nothing of the lesion has the mask's share of the area, `area_share`.

    Args:
        heat: float [..., H, W], at least 0.
        mask: bool [..., H, W].

    Returns:
        float [...], in [0, 1]; NaN where there is no heat.
    """
    heat = np.asarray(heat, np.float64)
    total = heat.sum(axis=(-2, -1))
    inside = np.where(mask, heat, 0.0).sum(axis=(-2, -1))
    return np.divide(inside, total, out=np.full(np.shape(total), np.nan), where=total > 0)


def pointing_game(heat: np.ndarray, mask: np.ndarray, *, tolerance: float = 0) -> np.ndarray:
    """Whether the hottest pixel lies inside the mask (Zhang et al. 2016, 'pointing game').

    Args:
        heat: float [..., H, W], at least 0.
        mask: bool [..., H, W].
        tolerance: how far outside it may lie, in pixels. The paper's is 15; here the default is 0.

    Returns:
        float [...]: 1 or 0; of several pixels that are equally hot, the share that lies inside. NaN
        where there is no heat.
    """
    heat = np.asarray(heat, np.float64)
    top = heat.max(axis=(-2, -1), keepdims=True)
    hottest = (heat >= _EQUAL * top) & (top > 0)
    count = hottest.sum(axis=(-2, -1))
    inside = (hottest & widen(mask, tolerance)).sum(axis=(-2, -1))
    return np.divide(inside, count, out=np.full(np.shape(count), np.nan), where=count > 0)


def area_share(mask: np.ndarray) -> np.ndarray:
    """The mask's share of the image, float [...]: what both figures are where chance decides."""
    return np.mean(mask, axis=(-2, -1))


def widen(mask: np.ndarray, pixels: float) -> np.ndarray:
    """The mask and what is no further from it than so many pixels, bool [..., H, W]."""
    mask = np.asarray(mask, bool)
    if pixels <= 0 or not mask.any():
        return mask
    flat = mask.reshape(-1, *mask.shape[-2:])
    wider = [ndimage.distance_transform_edt(~x) <= pixels if x.any() else x for x in flat]
    return np.stack(wider).reshape(mask.shape)
