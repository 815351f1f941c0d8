"""Overlays: the image stays where there is no heat; sheets are whole PNG files."""

import matplotlib
import numpy as np
import PIL.Image
import pytest

from egmae_jax.explain.gradcam import Layer
from egmae_jax.explain.overlay import (
    COLORMAP,
    Example,
    ExplainedExample,
    contact_sheet,
    overlay,
)

MASK = np.zeros((20, 30), bool)
MASK[5:10, 5:12] = True


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_without_heat_the_image_stays_as_it_is(channels, image):
    drawn = overlay(image[..., :channels], np.zeros((20, 30)))
    np.testing.assert_array_equal(drawn, np.broadcast_to(image[..., :channels], (20, 30, 3)))


def test_the_greatest_heat_has_three_quarters_of_the_maps_last_colour(image):
    heat = np.zeros((20, 30))
    heat[3, 4] = 1.0
    last = np.array(matplotlib.colormaps[COLORMAP](1.0)[:3]) * 255
    drawn = overlay(image, heat)
    np.testing.assert_allclose(drawn[3, 4], 0.25 * image[3, 4] + 0.75 * last, atol=0.5)
    assert (drawn != image).any(axis=2).sum() == 1


def test_the_outline_is_the_masks_border_and_nothing_else(image):
    before = image.copy()
    drawn = overlay(image, np.zeros((20, 30)), MASK)
    np.testing.assert_array_equal(image, before)
    border = MASK.copy()
    border[6:9, 6:11] = False
    np.testing.assert_array_equal((drawn != image).any(axis=2), border)


@pytest.mark.parametrize("count", [1, 5])
def test_a_sheet_is_a_picture_of_all_rows(count, image, tmp_path):
    heat = np.linspace(0, 1, 600).reshape(20, 30)
    layer = Layer("stages_3/blocks_2", (7, 7))
    one = Example("a/an_image$_^.png", "benign", image, MASK)
    other = Example("b.png", "benign", image[..., :1], None)
    rows = [ExplainedExample(one, layer, heat, "malignant", 0.7)]
    rows += [ExplainedExample(other, layer, heat, "benign", 0.7)] * (count - 1)
    path = tmp_path / "new" / "sheet.png"
    contact_sheet(rows, path, note="a note")
    with PIL.Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    # Three panels of four for each image; here they are as wide as high, the images wider.
    assert pixels.shape[:2] == (int(140 * (2 * count + 0.55)), 1106)
    assert (pixels < 250).any(axis=2).mean() > 0.35  # more than paper
