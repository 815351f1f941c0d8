"""Entropy against numpy and scikit-image, noise and masks against their distributions."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from skimage.measure import shannon_entropy

from egmae_jax.method import corruption
from egmae_jax.method.corruption import corrupt, masked_mse, to_pixels
from egmae_jax.method.entropy import (
    COLORS,
    _count_by_comparison,
    _count_by_scatter,
    _luma,
    patch_entropy,
    patchify,
)
from tests.conftest import SHARED_DATA

NOISE_KINDS = ("entropy_noise", "uniform_noise")
MASK_KINDS = ("entropy_topk", "entropy_sampled", "random_mask")


def random_images(seed, batch, height, width, channels=3):
    return np.random.default_rng(seed).integers(
        0, 256, (batch, height, width, channels), dtype=np.uint8
    )


@pytest.fixture(scope="module")
def real_images():
    """uint8 [4, 96, 128, 3]: ultrasound, skin, chest X-ray and brain MRI."""
    folders = (
        "busi/Dataset_BUSI_with_GT/malignant",
        "isic2018/ISIC2018_Task3_Training_Input",
        "covid_xray/Pneumonia",
        "brain_tumor_mri/Testing/glioma",
    )
    if not all((SHARED_DATA / folder).is_dir() for folder in folders):
        pytest.skip("the real images are not at hand")
    images = []
    for folder in folders:
        path = min(p for p in (SHARED_DATA / folder).iterdir() if p.suffix in {".png", ".jpg"})
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB"))[:96, :128])
    return np.stack(images)


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


# Patches


def test_patchify_cuts_rows_of_patches_and_keeps_pixels_in_reading_order():
    images = random_images(0, 2, 12, 20)
    patches = np.asarray(patchify(jnp.asarray(images), 4))
    assert patches.shape == (2, 3, 5, 16, 3)
    for index, patch in patches_of(images, 4):
        np.testing.assert_array_equal(patches[index], patch.reshape(16, 3))


def test_to_pixels_is_a_kronecker_product():
    values = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    pixels = np.asarray(to_pixels(jnp.asarray(values), 4))
    np.testing.assert_array_equal(pixels[..., 0], np.kron(values, np.ones((1, 4, 4), np.float32)))


# Entropy


@pytest.mark.parametrize("num_bins", [16, 256])
@pytest.mark.parametrize("color", COLORS)
def test_entropy_equals_numpys_on_random_images(color, num_bins):
    images = random_images(1, 4, 96, 128)
    images[1:] //= np.array([2, 16, 128], np.uint8)[:, None, None, None]  # ever fewer full bins
    entropy = patch_entropy(jnp.asarray(images), 16, color=color, num_bins=num_bins)
    expected = reference_entropy(images, 16, color, lambda x: entropy_by_numpy(x, num_bins, math.e))
    assert entropy.dtype == jnp.float32
    np.testing.assert_allclose(entropy, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("color", COLORS)
def test_entropy_equals_scikit_images_on_real_images(real_images, color):
    entropy = patch_entropy(jnp.asarray(real_images), 16, color=color)
    expected = reference_entropy(real_images, 16, color, lambda x: shannon_entropy(x, base=np.e))
    np.testing.assert_allclose(entropy, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("total", [49, 256, 2**16])
def test_histograms_of_all_platforms_count_the_same(total):
    rows = np.random.default_rng(0).integers(0, 64, (5, total), np.int32)
    rows[0] = 63
    counts = (np.array(f(rows, 64), int) for f in (_count_by_comparison, _count_by_scatter))
    compared, scattered = counts
    assert scattered[0, 63] == total
    if total == 256:  # counted in 8 bits
        compared[0, 63] += 256
    np.testing.assert_array_equal(compared, scattered)


@pytest.mark.parametrize(("patch_size", "base"), [(4, np.e), (32, np.e), (16, 2)])
def test_entropy_of_other_patch_sizes_and_bases_equals_scikit_images(patch_size, base):
    images = random_images(2, 2, 32, 64) // 8
    entropy = patch_entropy(jnp.asarray(images), patch_size, base=base)
    expected = reference_entropy(
        images, patch_size, "per_channel", lambda x: shannon_entropy(x, base=base)
    )
    np.testing.assert_allclose(entropy, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("patch_size", [1, 11, 48])
def test_flat_patches_of_every_size_have_exactly_zero_entropy(patch_size):
    images = jnp.full((1, 2 * patch_size, patch_size, 3), 7, jnp.uint8)
    assert not patch_entropy(images, patch_size).any()


@pytest.mark.parametrize("color", COLORS)
def test_flat_patches_have_exactly_zero_entropy(color):
    grey = np.arange(256, dtype=np.uint8)[:, None, None, None]  # a flat image of every value
    images = np.broadcast_to(grey, (256, 8, 8, 3))
    entropy = np.asarray(patch_entropy(jnp.asarray(images), 8, color=color))
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


# Corruption, what is returned

ENTROPY = np.random.default_rng(10).uniform(0.5, 5.0, (2, 4, 6)).astype(np.float32)
ENTROPY[:, 0, :2] = 0  # flat background
IMAGES = np.random.default_rng(11).normal(size=(2, 64, 96, 3)).astype(np.float32)
TOKEN = np.array([0.25, -1.5, 3.0], np.float32)
SCALE = 0.5


def corrupted(kind, seed=0, *, images=IMAGES, entropy=ENTROPY, **changes):
    # Few combinations of options: each is a program to compile.
    options = {"scale": SCALE, "threshold": 0.0, "mask_ratio": 0.6, "mask_token": TOKEN} | changes
    return corrupt(jax.random.key(seed), images, entropy, kind=kind, patch_size=16, **options)


@pytest.mark.parametrize("kind", corruption.kinds())
def test_shapes_and_dtypes(kind):
    image, mask, sigma = corrupted(kind)
    assert (image.shape, image.dtype) == (IMAGES.shape, jnp.float32)
    assert (mask.shape, mask.dtype) == (ENTROPY.shape, jnp.float32)
    assert (sigma.shape, sigma.dtype) == (ENTROPY.shape, jnp.float32)
    assert set(np.unique(mask)) == {0.0, 1.0} or kind == "uniform_noise"


def test_entropy_noise_has_variance_scale_times_entropy_and_masks_what_it_corrupts():
    result = corrupted("entropy_noise")
    np.testing.assert_allclose(result.sigma, np.sqrt(SCALE * ENTROPY), rtol=1e-6)
    np.testing.assert_array_equal(result.mask, ENTROPY > 0)
    changed = (np.asarray(result.image) != IMAGES).reshape(2, 4, 16, 6, 16, 3)
    np.testing.assert_array_equal(changed.any(axis=(2, 4, 5)), ENTROPY > 0)


def test_threshold_is_a_variance():
    result = corrupted("entropy_noise", threshold=1.0)
    np.testing.assert_array_equal(result.mask, ENTROPY > 1.0 / SCALE)
    # What is scored changes, not what is corrupted.
    np.testing.assert_array_equal(result.image, corrupted("entropy_noise").image)


def test_uniform_noise_has_each_images_mean_variance_on_all_its_patches():
    result = corrupted("uniform_noise")
    for sigma, entropy in zip(result.sigma, ENTROPY, strict=True):
        np.testing.assert_allclose(sigma, np.sqrt(SCALE * entropy.mean(dtype=float)), rtol=1e-5)
    np.testing.assert_array_equal(result.mask, 1.0)


def test_a_flat_image_is_neither_corrupted_nor_scored_by_noise():
    for kind in NOISE_KINDS:
        image, mask, sigma = corrupted(kind, entropy=np.zeros_like(ENTROPY))
        np.testing.assert_array_equal(image, IMAGES)
        assert not mask.any()
        assert not sigma.any()


@pytest.mark.parametrize(
    ("kind", "ratio"),
    [*((kind, 0.6) for kind in MASK_KINDS), ("random_mask", 0.0), ("entropy_sampled", 1.0)],
)
def test_masks_cover_the_ratio_of_every_image_and_add_no_noise(kind, ratio):
    result = corrupted(kind, mask_ratio=ratio)
    np.testing.assert_array_equal(result.mask.sum(axis=(1, 2)), round(ratio * 24))
    assert not result.sigma.any()


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_masked_pixels_are_the_token_and_the_others_are_untouched(kind):
    result = corrupted(kind)
    masked = np.kron(result.mask, np.ones((1, 16, 16))) > 0
    expected = np.where(masked[..., None], TOKEN, IMAGES)
    np.testing.assert_array_equal(result.image, expected)


def test_topk_masks_exactly_the_highest_entropies():
    for ratio in (0.2, 0.6):  # 4.8 and 14.4 of 24: rounded up and down
        count = round(ratio * 24)
        mask = np.asarray(corrupted("entropy_topk", mask_ratio=ratio).mask)
        for chosen, entropy in zip(mask.reshape(2, -1), ENTROPY.reshape(2, -1), strict=True):
            assert set(np.flatnonzero(chosen)) == set(np.argsort(entropy)[-count:])


DETERMINISTIC = ("entropy_topk",)  # kinds that draw nothing


@pytest.mark.parametrize("kind", corruption.kinds())
def test_the_key_alone_decides(kind):
    first, again, other = (corrupted(kind, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    same = np.array_equal(first.image, other.image)
    assert same == (kind in DETERMINISTIC)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"entropy_noise, .*; got 'blur'"):
        corrupted("blur")


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_gradients_flow_to_the_token_from_the_pixels_it_replaces(kind):
    weight = np.random.default_rng(12).normal(size=IMAGES.shape).astype(np.float32)

    def total(token):
        result = corrupted(kind, mask_token=token)
        return (result.image * weight).sum(), result.mask

    (_, mask), gradient = jax.value_and_grad(total, has_aux=True)(jnp.zeros(3))
    replaced = np.kron(mask, np.ones((1, 16, 16)))[..., None]
    np.testing.assert_allclose(gradient, (weight * replaced).sum(axis=(0, 1, 2)), atol=1e-3)


# Corruption, the distribution of the noise


def noise(kind, seed=0, batch=4):
    """Noise [batch, 128, 128, 3] on zero images, in units of its standard deviation."""
    entropy = np.random.default_rng(seed).uniform(0.3, 5.5, (batch, 8, 8)).astype(np.float32)
    image, _, sigma = corrupt(
        jax.random.key(seed),
        jnp.zeros((batch, 128, 128, 3)),
        jnp.asarray(entropy),
        kind=kind,
        patch_size=16,
        scale=0.7,
    )
    variance = 0.7 * entropy.astype(float)
    if kind == "uniform_noise":
        variance = np.broadcast_to(variance.mean(axis=(1, 2), keepdims=True), variance.shape)
    np.testing.assert_allclose(sigma, np.sqrt(variance), rtol=1e-5)
    return np.asarray(image) / np.kron(np.sqrt(variance), np.ones((1, 16, 16)))[..., None]


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_the_variance_of_every_patch_is_that_of_sigma_squared(kind):
    z = noise(kind).reshape(4, 8, 16, 8, 16, 3).transpose(0, 1, 3, 2, 4, 5).reshape(256, 768)
    # The sum of 768 squares of a standard normal is chi-square with as many degrees of freedom.
    sums = (z**2).sum(axis=1)
    assert stats.kstest(sums, stats.chi2(768).cdf).pvalue > 0.01
    low, high = stats.chi2(768).ppf([0.005 / 256, 1 - 0.005 / 256])  # 99 % of all 256 at once
    assert low < sums.min()
    assert sums.max() < high


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_the_noise_is_normal_and_independent_across_pixels_channels_and_examples(kind):
    z = noise(kind)
    assert abs(z.mean()) < 3 / math.sqrt(z.size)
    assert stats.kstest(z.ravel(), "norm").pvalue > 0.01
    pairs = {
        "channels": (z[..., 0], z[..., 1]),
        "other channels": (z[..., 0], z[..., 2]),
        "columns": (z[:, :, 1:], z[:, :, :-1]),
        "rows": (z[:, 1:], z[:, :-1]),
        "patches, across": (z[:, :, 16:], z[:, :, :-16]),
        "patches, down": (z[:, 16:], z[:, :-16]),
        "examples": (z[1:], z[:-1]),
    }
    for name, (x, y) in pairs.items():
        assert abs(np.mean(x * y)) < 4 / math.sqrt(x.size), name


def test_the_noise_does_not_depend_on_the_image():
    on_image = corrupted("entropy_noise").image - IMAGES
    on_zeros = corrupted("entropy_noise", images=np.zeros_like(IMAGES)).image
    np.testing.assert_allclose(on_image, on_zeros, atol=2e-6)


# Corruption, the distribution of the masks: a batch of one-pixel patches is many draws at once


def frequencies_of_sets(kind, entropy, count, draws=20_000, seed=0):
    """How often each set of `count` of five patches is masked: {frozenset of indices: count}."""
    entropy = np.broadcast_to(np.array(entropy, np.float32), (draws, 1, 5))
    images = np.zeros((draws, 1, 5, 1), np.float32)
    key = jax.random.key(seed)
    mask = corrupt(key, images, entropy, kind=kind, patch_size=1, mask_ratio=count / 5).mask
    rows, counts = np.unique(np.asarray(mask)[:, 0], axis=0, return_counts=True)
    return {
        frozenset(np.flatnonzero(row).tolist()): int(n) for row, n in zip(rows, counts, strict=True)
    }


def probabilities_of_sets(weights, count):
    """Exact: one after another is drawn in proportion to weight from those that are left."""
    probabilities = {}
    for order in itertools.permutations(range(len(weights)), count):
        left, probability = sum(weights), 1.0
        for index in order:
            probability *= weights[index] / left
            left -= weights[index]
        chosen = frozenset(order)
        probabilities[chosen] = probabilities.get(chosen, 0.0) + probability
    return probabilities


def goodness_of_fit(observed, probabilities):
    total = sum(observed.values())
    names = list(probabilities)
    assert observed.keys() <= set(names)
    expected = [total * probabilities[name] for name in names]
    return stats.chisquare([observed.get(name, 0) for name in names], expected).pvalue


@pytest.mark.parametrize(("weights", "count"), [((0.5, 1, 2, 4, 5.5), 2), ((3, 1, 1, 5, 0.2), 3)])
def test_entropy_sampled_draws_in_proportion_without_replacement(weights, count):
    observed = frequencies_of_sets("entropy_sampled", weights, count)
    assert goodness_of_fit(observed, probabilities_of_sets(weights, count)) > 0.01


def test_entropy_sampled_takes_flat_patches_only_when_no_other_is_left():
    weights = (0.0, 1.0, 0.0, 1e-3, 5.0)
    for count in (2, 3):
        for chosen in frequencies_of_sets("entropy_sampled", weights, count):
            assert chosen <= {1, 3, 4}
            assert len(chosen) == count
    for chosen in frequencies_of_sets("entropy_sampled", weights, 4):
        assert chosen > {1, 3, 4}
    for chosen in frequencies_of_sets("entropy_sampled", (0.0,) * 5, 3):
        assert len(chosen) == 3


def test_random_mask_is_uniform_whatever_the_entropy():
    observed = frequencies_of_sets("random_mask", (0.0, 1.0, 2.0, 4.0, 5.0), 2)
    assert len(observed) == 10
    assert stats.chisquare(list(observed.values())).pvalue > 0.01


# The loss


def test_masked_mse_is_the_mean_over_masked_pixels():
    rng = np.random.default_rng(20)
    prediction, target = rng.normal(size=(2, 2, 32, 48, 3)).astype(np.float32)
    mask = (rng.uniform(size=(2, 4, 6)) < 0.4).astype(np.float32)
    m = np.kron(mask, np.ones((1, 8, 8)))
    mse = ((prediction - target).astype(float) ** 2).mean(axis=-1)
    expected = (mse * m).sum() / m.sum()
    assert masked_mse(prediction, target, mask, 8) == pytest.approx(expected, rel=1e-5)


def test_masked_mse_does_not_see_pixels_outside_the_mask():
    target = jnp.asarray(IMAGES)
    mask = jnp.zeros((2, 4, 6)).at[:, 1, 2].set(1.0)
    inside = to_pixels(mask, 16)
    assert masked_mse(target + 1e6 * (1 - inside), target, mask, 16) == 0
    assert masked_mse(target + 3 * inside, target, mask, 16) == pytest.approx(9, rel=1e-5)


def test_masked_mse_without_masked_patches_is_zero_with_zero_gradient():
    def loss(prediction):
        return masked_mse(prediction, jnp.asarray(IMAGES), jnp.zeros((2, 4, 6)), 16)

    value, gradient = jax.value_and_grad(loss)(jnp.ones(IMAGES.shape))
    assert value == 0
    assert (gradient == 0).all()


def test_masked_mse_is_computed_in_float32():
    prediction = jnp.full((1, 64, 64, 3), 0.1, jnp.bfloat16)
    loss = masked_mse(prediction, jnp.zeros((1, 64, 64, 3)), jnp.ones((1, 4, 4)), 16)
    assert loss.dtype == jnp.float32
    assert loss == pytest.approx(float(prediction[0, 0, 0, 0]) ** 2, rel=1e-5)
