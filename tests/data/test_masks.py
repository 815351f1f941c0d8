"""Masks lie as their images do."""

import numpy as np
import PIL.Image
import pytest

from egmae_jax.data import datasets, images, masks


def save(mask, path, mode="L"):
    PIL.Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert(mode).save(path)
    return path


def half(height=4, width=6):
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask


def test_several_masks_of_an_image_are_united_whatever_their_mode(tmp_path):
    first, second = np.zeros((2, 5, 7), bool)
    first[1, 1] = second[3, 4:6] = True
    paths = [save(first, tmp_path / "a.png", "1"), save(second, tmp_path / "b.png", "RGBA")]
    np.testing.assert_array_equal(masks.read_mask(paths, (5, 7)), first | second)
    assert not masks.read_mask([], (5, 7)).any()


def test_a_mask_of_another_size_and_a_broken_one_are_refused(tmp_path):
    path = save(half(), tmp_path / "a.png")
    with pytest.raises(masks.MaskError, match=r"a\.png has 6x4 pixels, but its image has 4x6"):
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


@pytest.mark.parametrize("resize", images.RESIZE_MODES)
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (41, 137), (224, 224), (500, 31)])
@pytest.mark.parametrize("resized", [64, 72])
def test_a_mask_lies_where_its_pixels_lie_in_the_image(resize, size, resized):
    # The image is its own mask: white lesions on black.
    width, height = size
    y, x = np.mgrid[:height, :width]
    lesion = (x / width - 0.45) ** 2 + (y / height - 0.6) ** 2 < 0.06
    lesion |= (x > 0.8 * width) & (y < 0.2 * height)
    image = PIL.Image.fromarray(np.where(lesion, 255, 0).astype(np.uint8)).convert("RGB")
    view = images.to_array(images.evaluation_view(image, resize, 64, resized))
    mask = masks.mask_view(lesion, resize, 64, resized)
    assert mask.shape == (64, 64)
    assert 0.01 < mask.mean() < 0.7
    np.testing.assert_array_equal(mask, view[..., 0] > 127)


def test_padding_is_outside_of_the_lesion():
    mask = masks.mask_view(np.ones((30, 60), bool), "pad", 64)
    assert mask.mean() == 0.5
