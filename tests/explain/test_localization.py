"""The figures of hand-made heat are those worked out by hand."""

import numpy as np
import pytest

from egmae_jax.explain import localization


def half(height=4, width=6):
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask


# Figures


def test_the_share_of_heat_is_what_lies_inside():
    heat = np.zeros((4, 6))
    heat[0, 0], heat[1, 5], heat[3, 2] = 1.0, 0.5, 0.5
    assert localization.heat_in_mask(heat, half()) == pytest.approx(0.75)
    assert localization.heat_in_mask(heat, ~half()) == pytest.approx(0.25)
    assert (
        localization.heat_in_mask(np.ones((4, 6)), half()) == localization.area_share(half()) == 0.5
    )


def test_the_pointing_game_asks_for_the_hottest_pixel():
    heat = np.zeros((4, 6))
    heat[1, 1], heat[1, 4] = 0.9, 1.0
    assert localization.pointing_game(heat, half()) == 0
    heat[1, 1] = 1.1
    assert localization.pointing_game(heat, half()) == 1


def test_of_equally_hot_pixels_the_share_inside_counts():
    heat = np.zeros((4, 6))
    heat[1, 1:5] = 1.0
    assert localization.pointing_game(heat, half()) == 0.5
    heat[1, 3] = 1 - 1e-8  # equal but for rounding
    assert localization.pointing_game(heat, half()) == 0.5
    assert localization.pointing_game(np.ones((4, 6)), half()) == localization.area_share(half())


@pytest.mark.parametrize(("tolerance", "hit"), [(0, 0), (1, 0), (1.9, 0), (2, 1), (5, 1)])
def test_tolerance_is_a_distance_in_pixels(tolerance, hit):
    heat = np.zeros((4, 6))
    heat[2, 4] = 1.0  # the mask's last column is 2
    assert localization.pointing_game(heat, half(), tolerance=tolerance) == hit


def test_tolerance_widens_a_mask_by_a_disc():
    mask = np.zeros((7, 7), bool)
    mask[3, 3] = True
    assert localization.widen(mask, 1).sum() == 5
    assert localization.widen(mask, 1.5).sum() == 9
    assert not localization.widen(np.zeros((7, 7), bool), 2).any()


def test_without_heat_there_is_no_figure_and_batches_are_scored_at_once():
    heat = np.stack([np.zeros((4, 6)), np.ones((4, 6))])
    both = np.stack([half(), half()])
    np.testing.assert_array_equal(localization.heat_in_mask(heat, both), [np.nan, 0.5])
    np.testing.assert_array_equal(localization.pointing_game(heat, both), [np.nan, 0.5])
    np.testing.assert_array_equal(localization.area_share(both), [0.5, 0.5])


# Files
