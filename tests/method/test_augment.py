"""Resampling against Pillow, crops against the distributions torchvision draws from."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from egmae_jax.method import augment
from egmae_jax.method.augment import Crop
from tests import torch_reference
from tests.conftest import SHARED_DATA

BILINEAR = Image.Resampling.BILINEAR
CANVAS = (150, 180)
SIZES = ((150, 112), (97, 180), (64, 64), (150, 180))  # height, width


def make_pictures():
    """Noise and smooth shapes, by turns: the hardest images to resample and the commonest."""
    rng = np.random.default_rng(0)
    pictures = []
    for index, (height, width) in enumerate(SIZES):
        coarse = (height, width) if index % 2 else (9, 7)
        values = rng.integers(0, 256, (*coarse, 3), dtype=np.uint8)
        pictures.append(Image.fromarray(values).resize((width, height), BILINEAR))
    return pictures


def on_canvas(pictures):
    """uint8 [B, H, W, 3]; what lies beside an image is noise, so that reading it would show."""
    canvas = np.random.default_rng(1).integers(0, 256, (len(pictures), *CANVAS, 3), dtype=np.uint8)
    for target, picture in zip(canvas, pictures, strict=True):
        target[: picture.height, : picture.width] = np.asarray(picture)
    return canvas


PICTURES = make_pictures()


def sizes_of(pictures):
    return jnp.array([(p.height, p.width) for p in pictures], jnp.int32)


def resample(pictures, crop, flip=False, size=64):
    flips = jnp.full(len(pictures), flip)
    return np.asarray(augment.resample(jnp.asarray(on_canvas(pictures)), crop, flips, size=size))


def cut_before_resizing(boxes):
    top, left, height, width = jnp.array(boxes, jnp.float32).T
    return Crop(top, left, height, width, (top, top + height, left, left + width))


def assert_equal_up_to_rounding(result, pictures):
    """Pillow rounds to 8 bits between its two passes, we do not: one grey level at most."""
    expected = np.stack([np.asarray(p) for p in pictures])
    difference = np.abs(result.astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.3


# Resampling


# Reduces all of the boxes, enlarges all; whole blocks of output pixels, and not.
@pytest.mark.parametrize("size", [7, 48, 50, 224])
def test_crop_then_resize_is_pillows(size):
    boxes = [(3, 5, 140, 100), (20, 31, 77, 149), (0, 0, 64, 64), (50, 60, 100, 120)]
    expected = [
        picture.crop((left, top, left + width, top + height)).resize((size, size), BILINEAR)
        for picture, (top, left, height, width) in zip(PICTURES, boxes, strict=True)
    ]
    assert_equal_up_to_rounding(resample(PICTURES, cut_before_resizing(boxes), size=size), expected)


@pytest.mark.parametrize(("resize", "crop"), [(57, 48), (236, 224)])  # reduces all, enlarges all
def test_resize_then_crop_is_pillows(resize, crop):
    sizes = sizes_of(PICTURES)
    rectangles = augment.resized_random_crop(jax.random.key(0), sizes, resize=resize, crop=crop)
    expected = []
    for index, picture in enumerate(PICTURES):
        short = min(picture.size)
        width, height = (resize * side // short for side in picture.size)
        # The rectangle in pixels of the resized image.
        top = round(rectangles.top[index].item() * height / picture.height)
        left = round(rectangles.left[index].item() * width / picture.width)
        resized = picture.resize((width, height), BILINEAR)
        expected.append(resized.crop((left, top, left + crop, top + crop)))
        assert top + crop <= height
        assert left + crop <= width
    assert_equal_up_to_rounding(resample(PICTURES, rectangles, size=crop), expected)


def real_pictures():
    folder = SHARED_DATA / "isic2018" / "ISIC2018_Task3_Training_Input"
    if not folder.is_dir():
        pytest.skip("the real ISIC images are not at hand")
    pictures = []
    for path in sorted(folder.iterdir())[:4]:
        with Image.open(path) as image:
            pictures.append(image.convert("RGB").crop((0, 0, 180, 150)))
    return pictures


@pytest.mark.parametrize("pictures", [lambda: PICTURES, real_pictures], ids=["made", "real"])
def test_random_crops_resampled_are_pillows_crops(pictures):
    pictures = pictures()
    crop = augment.random_resized_crop(
        jax.random.key(0), sizes_of(pictures), scale=(0.05, 1.0), ratio=(0.5, 2.0)
    )
    expected = []
    for index, picture in enumerate(pictures):
        top, left, height, width = (int(x[index]) for x in crop[:4])
        cut = picture.crop((left, top, left + width, top + height))
        expected.append(cut.resize((64, 64), BILINEAR))
    assert_equal_up_to_rounding(resample(pictures, crop), expected)


def test_images_resampled_at_once_are_those_resampled_one_by_one(monkeypatch):
    crop = augment.random_resized_crop(
        jax.random.key(0), sizes_of(PICTURES), scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)
    )
    one_by_one = resample(PICTURES, crop)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(augment, "resample", augment.resample.__wrapped__)  # forgets the compiled
    at_once = resample(PICTURES, crop)
    np.testing.assert_allclose(at_once.astype(int), one_by_one, atol=1)  # summation order
    assert (at_once != one_by_one).mean() < 1e-3


def test_the_whole_image_at_its_own_size_stays_as_it_is():
    picture = PICTURES[2]
    result = resample([picture], cut_before_resizing([(0, 0, 64, 64)]))
    np.testing.assert_array_equal(result[0], np.asarray(picture))


def test_a_flip_mirrors_left_and_right_of_the_flipped_images_only():
    crop = augment.random_resized_crop(
        jax.random.key(1), sizes_of(PICTURES), scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)
    )
    canvas = jnp.asarray(on_canvas(PICTURES))
    plain = resample(PICTURES, crop)
    flip = np.array([True, False, True, False])
    mixed = np.asarray(augment.resample(canvas, crop, jnp.asarray(flip), size=64))
    np.testing.assert_array_equal(mixed[flip], plain[flip][:, :, ::-1])
    np.testing.assert_array_equal(mixed[~flip], plain[~flip])


def test_half_of_the_images_are_flipped_each_on_its_own():
    first, second = (np.asarray(augment.random_flip(jax.random.key(s), 10_000)) for s in (0, 1))
    for flips in (first, second):
        assert stats.binomtest(int(flips.sum()), 10_000).pvalue > 0.01
        changes = int((flips[1:] != flips[:-1]).sum())
        assert stats.binomtest(changes, 9_999).pvalue > 0.01
    assert stats.binomtest(int((first == second).sum()), 10_000).pvalue > 0.01


def test_normalisation_is_torchvisions():
    torchvision = torch_reference.torchvision()
    preset = torchvision.models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1.transforms()
    images = np.arange(256 * 3, dtype=np.uint32).astype(np.uint8).reshape(16, 16, 3)
    to_tensor = torchvision.transforms.ToTensor()
    expected = torchvision.transforms.Normalize(preset.mean, preset.std)(to_tensor(images))
    result = augment.normalize(jnp.asarray(images))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected.permute(1, 2, 0), atol=1e-6)


# Boxes of pre-training

DRAWS = 4000
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def our_boxes(size, scale=SCALE, ratio=RATIO, draws=DRAWS, seed=0):
    """float [draws, 4]: top, left, height, width."""
    sizes = jnp.broadcast_to(jnp.array(size, jnp.int32), (draws, 2))
    crop = augment.random_resized_crop(jax.random.key(seed), sizes, scale=scale, ratio=ratio)
    np.testing.assert_array_equal(crop.bounds[0], crop.top)
    np.testing.assert_array_equal(crop.bounds[1], crop.top + crop.height)
    np.testing.assert_array_equal(crop.bounds[2], crop.left)
    np.testing.assert_array_equal(crop.bounds[3], crop.left + crop.width)
    return np.stack(crop[:4], axis=1).astype(float)


def torchvisions_boxes(size, scale=SCALE, ratio=RATIO, draws=DRAWS):
    torchvision, torch = torch_reference.torchvision(), torch_reference.torch()
    get_params = torchvision.transforms.RandomResizedCrop.get_params
    image = torch.empty(3, *size, dtype=torch.uint8, device="meta")
    torch.manual_seed(0)
    return np.array(
        [get_params(image, scale=list(scale), ratio=list(ratio)) for _ in range(draws)], float
    )


# In the last, 47 % of the draws end in the central crop.
@pytest.mark.parametrize("size", [(300, 400), (601, 299), (100, 400)])
def test_boxes_are_distributed_as_torchvisions(size):
    ours, theirs = our_boxes(size), torchvisions_boxes(size)
    quantities = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "log ratio": lambda b: np.log(b[:, 3] / b[:, 2]),
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "bottom margin": lambda b: size[0] - b[:, 0] - b[:, 2],
        "right margin": lambda b: size[1] - b[:, 1] - b[:, 3],
    }
    for name, quantity in quantities.items():
        assert stats.ks_2samp(quantity(ours), quantity(theirs)).pvalue > 0.005, name


def test_boxes_are_whole_pixels_inside_the_image():
    for size in ((300, 400), (37, 53), (3, 2), (1, 1)):
        boxes = our_boxes(size)
        np.testing.assert_array_equal(boxes, np.round(boxes))
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] >= 1).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= size).all()


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [
        (SCALE, RATIO),  # images more than 5 * 4/3 times as long as wide
        ((2.0, 3.0), (0.1, 10.0)),  # the ratio is fine but no share is: the whole image
    ],
)
def test_the_central_crop_is_torchvisions_where_no_draw_fits(scale, ratio):
    for size in ((64, 1280), (1280, 64), (63, 601), (601, 63), (45, 333), (333, 46), (10, 77)):
        ours = our_boxes(size, scale, ratio, draws=4)
        theirs = torchvisions_boxes(size, scale, ratio, draws=4)
        np.testing.assert_array_equal(ours, theirs, str(size))


def test_the_images_of_a_batch_get_different_boxes_and_keep_to_their_own_size():
    sizes = jnp.tile(jnp.array([(40, 400), (400, 40), (224, 224)], jnp.int32), (50, 1))
    crop = augment.random_resized_crop(jax.random.key(0), sizes, scale=(0.01, 0.1), ratio=RATIO)
    assert (crop.top + crop.height <= sizes[:, 0]).all()
    assert (crop.left + crop.width <= sizes[:, 1]).all()
    assert len(np.unique(np.stack(crop[:4], axis=1), axis=0)) > 140


# Boxes of fine-tuning


def test_offsets_in_the_resized_image_are_uniform_whole_pixels():
    size, resized = (300, 257), (275, 236)  # 236 * 300 / 257 = 275.5
    sizes = jnp.broadcast_to(jnp.array(size, jnp.int32), (20_000, 2))
    crop = augment.resized_random_crop(jax.random.key(0), sizes, resize=236, crop=224)
    offsets = []
    for start, side, new_side in zip((crop.top, crop.left), size, resized, strict=True):
        offset = np.asarray(start, float) * new_side / side
        np.testing.assert_allclose(offset, np.round(offset), atol=1e-3)
        offset = np.round(offset).astype(int)
        slack = new_side - 224
        assert offset.max() <= slack
        counts = np.bincount(offset, minlength=slack + 1)
        assert stats.chisquare(counts).pvalue > 0.01
        offsets.append(offset)
    assert abs(np.corrcoef(*offsets)[0, 1]) < 4 / np.sqrt(20_000)


def test_the_resized_size_is_truncated_as_torchvision_does():
    functional = torch_reference.torchvision().transforms.functional
    sides = (224, 225, 255, 256, 257, 299, 333, 448, 601, 767, 1023, 6001)
    sizes = list(itertools.product(sides, sides))
    for resize in (101, 236, 257):
        crop = augment.resized_random_crop(
            jax.random.key(0), jnp.array(sizes, jnp.int32), resize=resize, crop=96
        )
        # A crop of 96 resized pixels spans 96 * side / resized side of the original ones.
        resized = 96 * np.array(sizes) / np.stack([crop.height, crop.width], axis=1)
        np.testing.assert_allclose(resized, np.round(resized), rtol=1e-5)
        expected = [functional._compute_resized_output_size(size, [resize]) for size in sizes]
        np.testing.assert_array_equal(np.round(resized), expected)


def test_no_slack_means_no_offset():
    sizes = jnp.array([(224, 224), (448, 448)], jnp.int32)
    crop = augment.resized_random_crop(jax.random.key(0), sizes, resize=224, crop=224)
    np.testing.assert_array_equal(np.stack(crop[:4], axis=1), [(0, 0, 224, 224), (0, 0, 448, 448)])
    for bound, expected in zip(crop.bounds, [(0, 0), (224, 448)] * 2, strict=True):
        np.testing.assert_array_equal(bound, expected)
