"""Whether heat lies where a lesion is: the share of the heat inside it, and the pointing game."""

import numpy as np
from scipy import ndimage

# Share of the greatest heat from which a pixel counts as equally hot: where a whole cell of a layer
# is the hottest, the heat at an image's edge is the same but for rounding.
_EQUAL = 1 - 1e-6


def heat_in_mask(heat: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of an image's heat that lies inside its mask (the energy-based pointing game).

    Heat that ignores the lesion is expected to score the mask's share of the area, `area_share`.

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
        tolerance: how far outside the mask a hit may lie, in pixels; the paper's is 15.

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
    """Share of the image inside its mask, float [...]: the score of both measures by chance."""
    return np.mean(mask, axis=(-2, -1))


def widen(mask: np.ndarray, pixels: float) -> np.ndarray:
    """Adds to a mask all pixels at most `pixels` away from it, bool [..., H, W]."""
    mask = np.asarray(mask, bool)
    if pixels <= 0 or not mask.any():
        return mask
    flat = mask.reshape(-1, *mask.shape[-2:])
    wider = [ndimage.distance_transform_edt(~x) <= pixels if x.any() else x for x in flat]
    return np.stack(wider).reshape(mask.shape)
