"""Noise and masks against their distributions, and the loss over what is masked."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from egmae_jax.core.errors import ConfigError
from egmae_jax.method import corruption
from egmae_jax.method.corruption import corrupt, masked_mse, to_pixels

NOISE_KINDS = ("entropy_noise", "uniform_noise", "shuffled_entropy", "contrast_noise")
MASK_KINDS = ("entropy_topk", "entropy_sampled", "random_mask")


def test_to_pixels_is_a_kronecker_product():
    values = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    pixels = np.asarray(to_pixels(jnp.asarray(values), 4))
    np.testing.assert_array_equal(pixels[..., 0], np.kron(values, np.ones((1, 4, 4), np.float32)))


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
    assert set(np.unique(mask)) == {0.0, 1.0} or kind in ("uniform_noise", "contrast_noise")


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


def test_shuffled_entropy_permutes_the_variances_of_each_image_by_itself():
    sigma = np.asarray(corrupted("shuffled_entropy").sigma).reshape(2, -1)
    guided = np.asarray(corrupted("entropy_noise").sigma).reshape(2, -1)
    np.testing.assert_array_equal(np.sort(sigma), np.sort(guided))
    places = [list(np.argsort(x)) for x in guided], [list(np.argsort(x)) for x in sigma]
    assert places[0] != places[1]
    orders = [
        [int(np.flatnonzero(g == x)[0]) for x in s] for s, g in zip(sigma, guided, strict=True)
    ]
    assert orders[0] != orders[1]


def test_contrast_noise_is_in_proportion_to_each_patchs_variance_with_the_mean_of_entropy():
    images = IMAGES * np.kron(ENTROPY[:, ::-1] + 0.1, np.ones((1, 16, 16)))[..., None]
    images[0, :16, :16] = 1.0  # a flat patch
    variance = np.square(corrupted("contrast_noise", images=images.astype(np.float32)).sigma)
    contrast = images.reshape(2, 4, 16, 6, 16, 3).var(axis=(2, 4)).mean(axis=-1)
    for got, expected, entropy in zip(variance, contrast, ENTROPY, strict=True):
        target = expected * SCALE * entropy.mean() / expected.mean()
        np.testing.assert_allclose(got, target, rtol=1e-4, atol=1e-7)
    assert variance[0, 0, 0] == 0


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
    with pytest.raises(ConfigError, match=r"no corruption 'blur'\. Known: entropy_noise, "):
        corrupted("blur")


def test_a_registered_corruption_must_return_the_shapes_of_one():
    @corruption.register("mask of pixels")
    def per_pixel(key, images, entropy, **_):
        return corruption.Corruption(images, images[..., 0], entropy)

    with pytest.raises(TypeError, match=r"'mask of pixels' returned .* it must return"):
        corrupted("mask of pixels")
    del corruption._CORRUPTIONS.entries["mask of pixels"]


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
    variance = np.square(np.asarray(sigma, float))
    if kind == "uniform_noise":
        expected = np.broadcast_to(0.7 * entropy.mean(axis=(1, 2), keepdims=True), variance.shape)
        np.testing.assert_allclose(variance, expected, rtol=1e-5)
    return np.asarray(image) / np.kron(np.sqrt(variance), np.ones((1, 16, 16)))[..., None]


# A zero image has no contrast, and so no such noise.
ON_ZEROS = tuple(kind for kind in NOISE_KINDS if kind != "contrast_noise")


@pytest.mark.parametrize("kind", ON_ZEROS)
def test_the_variance_of_every_patch_is_that_of_sigma_squared(kind):
    z = noise(kind).reshape(4, 8, 16, 8, 16, 3).transpose(0, 1, 3, 2, 4, 5).reshape(256, 768)
    # The sum of 768 squares of a standard normal is chi-square with as many degrees of freedom.
    sums = (z**2).sum(axis=1)
    assert stats.kstest(sums, stats.chi2(768).cdf).pvalue > 0.01
    low, high = stats.chi2(768).ppf([0.005 / 256, 1 - 0.005 / 256])  # 99 % of all 256 at once
    assert low < sums.min()
    assert sums.max() < high


@pytest.mark.parametrize("kind", ON_ZEROS)
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
