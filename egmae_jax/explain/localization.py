"""Scores of a heat map against a lesion mask: share of the heat inside, and pointing game."""

import math

import numpy as np

# Pixels with at least this share of the maximum count as equally hot: at the edge of an image, the
# pixels of one cell of the layer have the same heat up to rounding.
_EQUAL = 1 - 1e-6


def heat_in_mask(heat: np.ndarray, mask: np.ndarray) -> float:
    """Returns the share of an image's heat inside its mask (the energy-based pointing game).

    Heat that ignores the lesion is expected to score `area_share(mask)`.

    Args:
        heat: heat map, float [H, W], at least 0.
        mask: lesion mask, bool [H, W].

    Returns:
        Share from 0 to 1; NaN if all heat is 0.
    """
    heat = np.asarray(heat, np.float64)
    total = heat.sum()
    return float(heat[mask].sum() / total) if total > 0 else math.nan


def pointing_game(heat: np.ndarray, mask: np.ndarray) -> float:
    """Scores whether the hottest pixel lies inside the mask (pointing game, Zhang et al. 2016).

    Args:
        heat: heat map, float [H, W], at least 0.
        mask: lesion mask, bool [H, W].

    Returns:
        1 or 0; if several pixels are equally hot, the share of them inside the mask. NaN if all
        heat is 0.
    """
    top = heat.max()
    return float(mask[heat >= _EQUAL * top].mean()) if top > 0 else math.nan


def area_share(mask: np.ndarray) -> float:
    """Returns the mask's share of the area: the expected score of both measures by chance."""
    return float(np.mean(mask))
