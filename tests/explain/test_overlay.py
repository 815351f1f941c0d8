"""Overlays: the image stays where there is no heat; sheets are whole PNG files."""

import matplotlib
import numpy as np
import PIL.Image
import pytest

from egmae_jax.explain.overlay import COLORMAP, Row, contact_sheet, outline, overlay


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


def test_without_heat_the_image_stays_as_it_is(image):
    np.testing.assert_array_equal(overlay(image, np.zeros((20, 30))), image)
    grey = image[..., :1]
    expected = np.repeat(grey, 3, axis=2)
    np.testing.assert_array_equal(overlay(grey, np.zeros((20, 30))), expected)


def test_the_greatest_heat_has_the_maps_last_colour(image):
    heat = np.zeros((20, 30))
    heat[3, 4] = 1.0
    last = np.array(matplotlib.colormaps[COLORMAP](1.0)[:3]) * 255
    drawn = overlay(image, heat, opacity=1.0)
    np.testing.assert_allclose(drawn[3, 4], last, atol=0.5)
    half = overlay(image, heat, opacity=0.5)
    np.testing.assert_allclose(half[3, 4], (image[3, 4] + last) / 2, atol=0.5)
    assert drawn.dtype == np.uint8
    assert (drawn != image).any(axis=2).sum() == 1


def test_a_colormap_is_chosen_by_its_name(image):
    heat = np.ones((20, 30))
    expected = np.rint(np.array(matplotlib.colormaps["viridis"](1.0)[:3]) * 255)
    drawn = overlay(image, heat, colormap="viridis", opacity=1.0)
    np.testing.assert_array_equal(drawn, np.broadcast_to(expected, drawn.shape))


def test_the_outline_is_the_masks_border_and_nothing_else(image):
    mask = np.zeros((20, 30), bool)
    mask[5:10, 5:12] = True
    before = image.copy()
    drawn = outline(image, mask)
    np.testing.assert_array_equal(image, before)
    border = mask.copy()
    border[6:9, 6:11] = False
    np.testing.assert_array_equal((drawn != image).any(axis=2), border)


@pytest.mark.parametrize("count", [1, 5])
def test_a_sheet_is_a_picture_of_all_rows(count, image, tmp_path):
    mask = np.zeros((20, 30), bool)
    mask[5:10, 5:12] = True
    heat = np.linspace(0, 1, 600).reshape(20, 30)
    rows = [Row(image, heat, mask, "an_image$_^", "benign", "malignant", 0.7, "a\nb")]
    rows += [Row(image[..., :1], heat, None, "b", "benign", "benign", 0.7)] * (count - 1)
    path = tmp_path / "new" / "sheet.png"
    contact_sheet(rows, path)
    with PIL.Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    # Three panels of four for each image; here they are as wide as high, the images wider.
    assert pixels.shape[1] == (1 if count == 1 else 2) * 1106
    assert (pixels < 250).any(axis=2).mean() > 0.35  # more than paper
