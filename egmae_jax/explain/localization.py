"""Whether heat lies where a lesion is: the share of the heat inside it, and the pointing game."""

import math

import numpy as np

# Share of the greatest heat from which a pixel counts as equally hot: where a whole cell of a layer
# is the hottest, the heat at an image's edge is the same but for rounding.
_EQUAL = 1 - 1e-6


def heat_in_mask(heat: np.ndarray, mask: np.ndarray) -> float:
    """Share of an image's heat that lies inside its mask (the energy-based pointing game).

    Heat that ignores the lesion is expected to score the mask's share of the area, `area_share`.

    Args:
        heat: float [H, W], at least 0.
        mask: bool [H, W].

    Returns:
        From 0 to 1; NaN where there is no heat.
    """
    heat = np.asarray(heat, np.float64)
    total = heat.sum()
    return float(heat[mask].sum() / total) if total > 0 else math.nan


def pointing_game(heat: np.ndarray, mask: np.ndarray) -> float:
    """Whether the hottest pixel lies inside the mask (Zhang et al. 2016, 'pointing game').

    Args:
        heat: float [H, W], at least 0.
        mask: bool [H, W].

    Returns:
        1 or 0; of several pixels that are equally hot, the share that lies inside. NaN where there
        is no heat.
    """
    top = heat.max()
    return float(mask[heat >= _EQUAL * top].mean()) if top > 0 else math.nan


def area_share(mask: np.ndarray) -> float:
    """Share of the image inside its mask: the score of both measures by chance."""
    return float(np.mean(mask))
