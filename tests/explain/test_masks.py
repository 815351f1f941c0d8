"""Masks lie as their images do; the figures of hand-made heat are those worked out by hand."""

import numpy as np
import PIL.Image
import pytest

from egmae_jax.data import datasets, images
from egmae_jax.explain import masks


def save(mask, path, mode="L"):
    PIL.Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert(mode).save(path)
    return path


def half(height=4, width=6):
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask


# Figures


def test_the_share_of_heat_is_what_lies_inside():
    heat = np.zeros((4, 6))
    heat[0, 0], heat[1, 5], heat[3, 2] = 1.0, 0.5, 0.5
    assert masks.heat_in_mask(heat, half()) == pytest.approx(0.75)
    assert masks.heat_in_mask(heat, ~half()) == pytest.approx(0.25)
    assert masks.heat_in_mask(np.ones((4, 6)), half()) == masks.area_share(half()) == 0.5


def test_the_pointing_game_asks_for_the_hottest_pixel():
    heat = np.zeros((4, 6))
    heat[1, 1], heat[1, 4] = 0.9, 1.0
    assert masks.pointing_game(heat, half()) == 0
    heat[1, 1] = 1.1
    assert masks.pointing_game(heat, half()) == 1


def test_of_equally_hot_pixels_the_share_inside_counts():
    heat = np.zeros((4, 6))
    heat[1, 1:5] = 1.0
    assert masks.pointing_game(heat, half()) == 0.5
    heat[1, 3] = 1 - 1e-8  # equal but for rounding
    assert masks.pointing_game(heat, half()) == 0.5
    assert masks.pointing_game(np.ones((4, 6)), half()) == masks.area_share(half())


@pytest.mark.parametrize(("tolerance", "hit"), [(0, 0), (1, 0), (1.9, 0), (2, 1), (5, 1)])
def test_tolerance_is_a_distance_in_pixels(tolerance, hit):
    heat = np.zeros((4, 6))
    heat[2, 4] = 1.0  # the mask's last column is 2
    assert masks.pointing_game(heat, half(), tolerance=tolerance) == hit


def test_tolerance_widens_a_mask_by_a_disc():
    mask = np.zeros((7, 7), bool)
    mask[3, 3] = True
    assert masks.widen(mask, 1).sum() == 5
    assert masks.widen(mask, 1.5).sum() == 9
    assert not masks.widen(np.zeros((7, 7), bool), 2).any()


def test_without_heat_there_is_no_figure_and_batches_are_scored_at_once():
    heat = np.stack([np.zeros((4, 6)), np.ones((4, 6))])
    both = np.stack([half(), half()])
    np.testing.assert_array_equal(masks.heat_in_mask(heat, both), [np.nan, 0.5])
    np.testing.assert_array_equal(masks.pointing_game(heat, both), [np.nan, 0.5])
    np.testing.assert_array_equal(masks.area_share(both), [0.5, 0.5])


# Files


def test_several_masks_of_an_image_are_united_whatever_their_mode(tmp_path):
    first, second = np.zeros((2, 5, 7), bool)
    first[1, 1] = second[3, 4:6] = True
    paths = [save(first, tmp_path / "a.png", "1"), save(second, tmp_path / "b.png", "RGBA")]
    np.testing.assert_array_equal(masks.read_mask(paths, (5, 7)), first | second)
    assert not masks.read_mask([], (5, 7)).any()


def test_a_mask_of_another_size_and_a_broken_one_are_refused(tmp_path):
    path = save(half(), tmp_path / "a.png")
    with pytest.raises(masks.MaskError, match=r"a\.png has 6x4 pixels, its image 4x6"):
        masks.read_mask([path], (6, 4))
    path.write_bytes(b"nothing")
    with pytest.raises(masks.MaskError, match=r"a\.png cannot be read: not an image"):
        masks.read_mask([path], (4, 6))
    with pytest.raises(masks.MaskError, match=r"b\.png cannot be read"):
        masks.read_mask([tmp_path / "b.png"], (4, 6))


def test_busi_finds_the_masks_of_an_image_and_of_no_other(tmp_path):
    folder = tmp_path / "Dataset_BUSI_with_GT" / "benign"
    folder.mkdir(parents=True)
    for name in (
        *("benign (4).png", "benign (4)_mask.png", "benign (4)_mask_1.png", "benign (5).png"),
        *("benign (4)_mask_x.png", "benign (44).png", "benign (44)_mask.png", "a[1].png"),
        "a[1]_mask.png",
    ):
        (folder / name).touch()
    find = datasets.get("busi").masks

    def names(file):
        return [path.name for path in find(tmp_path, f"Dataset_BUSI_with_GT/benign/{file}")]

    assert names("benign (4).png") == ["benign (4)_mask.png", "benign (4)_mask_1.png"]
    assert names("benign (44).png") == ["benign (44)_mask.png"]
    assert names("a[1].png") == ["a[1]_mask.png"]
    assert names("benign (5).png") == []


# Geometry


@pytest.mark.parametrize("resize", images.RESIZE_MODES)
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (41, 137), (224, 224), (500, 31)])
def test_a_mask_lies_where_its_pixels_lie_in_the_image(resize, size):
    # The image is its own mask: white lesions on black.
    width, height = size
    y, x = np.mgrid[:height, :width]
    lesion = (x / width - 0.45) ** 2 + (y / height - 0.6) ** 2 < 0.06
    lesion |= (x > 0.8 * width) & (y < 0.2 * height)
    image = PIL.Image.fromarray(np.where(lesion, 255, 0).astype(np.uint8)).convert("RGB")
    view = images.to_array(images.evaluation_view(image, resize, 64))
    mask = masks.mask_view(lesion, resize, 64)
    assert mask.shape == (64, 64)
    assert 0.01 < masks.area_share(mask) < 0.7
    np.testing.assert_array_equal(mask, view[..., 0] > 127)


def test_padding_is_outside_of_the_lesion():
    mask = masks.mask_view(np.ones((30, 60), bool), "pad", 64)
    assert masks.area_share(mask) == 0.5
