"""Scores of hand-made heat are those worked out by hand."""

import math

import numpy as np
import pytest

from egmae_jax.explain import localization

HALF = np.zeros((4, 6), bool)
HALF[:, :3] = True


def test_the_share_of_heat_is_what_lies_inside():
    heat = np.zeros((4, 6))
    heat[0, 0], heat[1, 5], heat[3, 2] = 1.0, 0.5, 0.5
    assert localization.heat_in_mask(heat, HALF) == pytest.approx(0.75)
    assert localization.heat_in_mask(heat, ~HALF) == pytest.approx(0.25)
    assert localization.heat_in_mask(np.ones((4, 6)), HALF) == localization.area_share(HALF) == 0.5


def test_the_pointing_game_asks_for_the_hottest_pixel():
    heat = np.zeros((4, 6))
    heat[1, 1], heat[1, 4] = 0.9, 1.0
    assert localization.pointing_game(heat, HALF) == 0
    heat[1, 1] = 1.1
    assert localization.pointing_game(heat, HALF) == 1


def test_of_equally_hot_pixels_the_share_inside_counts():
    heat = np.zeros((4, 6))
    heat[1, 1:5] = 1.0
    heat[1, 3] = 1 - 1e-8  # equal but for rounding
    assert localization.pointing_game(heat, HALF) == 0.5


def test_without_heat_there_is_no_score():
    assert math.isnan(localization.heat_in_mask(np.zeros((4, 6)), HALF))
    assert math.isnan(localization.pointing_game(np.zeros((4, 6)), HALF))
