"""Entropy against numpy and scikit-image."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage.measure import shannon_entropy

from egmae_jax.method.entropy import COLORS, _luma, patch_entropy, patchify


def random_images(seed, batch, height, width, channels=3):
    return np.random.default_rng(seed).integers(
        0, 256, (batch, height, width, channels), dtype=np.uint8
    )


def patches_of(images, size):
    """(index, [P, P, C]) of every patch."""
    batch, height, width, _ = images.shape
    for b, i, j in itertools.product(range(batch), range(height // size), range(width // size)):
        yield (b, i, j), images[b, i * size : (i + 1) * size, j * size : (j + 1) * size]


def entropy_by_numpy(values, num_bins, base):
    share = np.bincount(values.ravel() // (256 // num_bins), minlength=num_bins) / values.size
    share = share[share > 0]
    return -(share * np.log(share)).sum() / np.log(base)


def reference_entropy(images, size, color, one_histogram):
    """Entropies of all patches, by `one_histogram(values)` of each histogram the colour takes."""
    batch, height, width, channels = images.shape
    result = np.zeros((batch, height // size, width // size))
    for index, patch in patches_of(images, size):
        if color == "per_channel":
            result[index] = np.mean([one_histogram(patch[..., c]) for c in range(channels)])
        elif color == "joint":
            result[index] = one_histogram(patch)
        else:
            result[index] = one_histogram(np.asarray(Image.fromarray(patch).convert("L")))
    return result


def test_patchify_cuts_rows_of_patches_and_keeps_pixels_in_reading_order():
    images = random_images(0, 2, 12, 20)
    patches = np.asarray(patchify(jnp.asarray(images), 4))
    assert patches.shape == (2, 3, 5, 16, 3)
    for index, patch in patches_of(images, 4):
        np.testing.assert_array_equal(patches[index], patch.reshape(16, 3))


@pytest.mark.parametrize("num_bins", [16, 256])
@pytest.mark.parametrize("color", COLORS)
def test_entropy_equals_numpys_on_random_images(color, num_bins):
    images = random_images(1, 4, 96, 128)
    images[1:] //= np.array([2, 16, 128], np.uint8)[:, None, None, None]  # ever fewer full bins
    entropy = patch_entropy(jnp.asarray(images), 16, color=color, num_bins=num_bins)
    expected = reference_entropy(images, 16, color, lambda x: entropy_by_numpy(x, num_bins, math.e))
    assert entropy.dtype == jnp.float32
    np.testing.assert_allclose(entropy, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("patch_size", "base"), [(4, np.e), (32, np.e), (16, 2)])
def test_entropy_of_other_patch_sizes_and_bases_equals_scikit_images(patch_size, base):
    images = random_images(2, 2, 32, 64) // 8
    entropy = patch_entropy(jnp.asarray(images), patch_size, base=base)
    expected = reference_entropy(
        images, patch_size, "per_channel", lambda x: shannon_entropy(x, base=base)
    )
    np.testing.assert_allclose(entropy, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("color", "size"),
    [*((color, 8) for color in COLORS), *(("per_channel", n) for n in (1, 11, 48))],
)
def test_flat_patches_have_exactly_zero_entropy(color, size):
    grey = np.arange(256, dtype=np.uint8)[:, None, None, None]  # a flat image of every value
    images = np.broadcast_to(grey, (256, size, size, 3))
    entropy = np.asarray(patch_entropy(jnp.asarray(images), size, color=color))
    assert (entropy == 0).all()
    assert not np.signbit(entropy).any()


def test_a_flat_coloured_patch_has_zero_entropy_by_channel_and_ln3_jointly():
    images = jnp.broadcast_to(jnp.array([10, 20, 30], jnp.uint8), (1, 16, 16, 3))
    assert patch_entropy(images, 16, color="per_channel").item() == 0
    assert patch_entropy(images, 16, color="luma").item() == 0
    assert patch_entropy(images, 16, color="joint").item() == pytest.approx(math.log(3), abs=1e-6)


@pytest.mark.parametrize("num_bins", [16, 256])
def test_a_patch_of_all_values_reaches_the_upper_bound(num_bins):
    values = np.random.default_rng(0).permutation(256).astype(np.uint8).reshape(1, 16, 16, 1)
    entropy = patch_entropy(jnp.asarray(np.repeat(values, 3, axis=-1)), 16, num_bins=num_bins)
    assert entropy.item() == pytest.approx(math.log(num_bins), abs=1e-5)


def test_luma_is_bit_for_bit_pillows():
    levels = np.arange(0, 256, 5, dtype=np.uint8)  # 0 and 255 among them
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    for rgb in (grid, random_images(5, 1, 300, 300)[0]):
        expected = np.asarray(Image.fromarray(rgb).convert("L"))
        np.testing.assert_array_equal(_luma(jnp.asarray(rgb)), expected)


def test_only_8_bit_images_are_taken():
    with pytest.raises(TypeError, match=r"uint8.*float32"):
        patch_entropy(jnp.zeros((1, 16, 16, 3), jnp.float32), 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bins": 100}, "num_bins must be a divisor of 256; got 100"),
        ({"num_bins": 512}, "num_bins must be a divisor of 256; got 512"),
        ({"color": "hsv"}, "per_channel, joint, luma; got 'hsv'"),
        ({"base": 1.0}, "base must be greater than 1; got 1.0"),
        ({"patch_size": 0}, "at least 1; got 0"),
        ({"patch_size": 15}, "16x32 images cannot be cut .* 15x15"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        patch_entropy(jnp.zeros((1, 16, 32, 3), jnp.uint8), **{"patch_size": 16, **options})
