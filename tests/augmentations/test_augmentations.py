"""Named augmentations: what they draw against torchvision's distributions, and their grammar."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from egmae_jax import augmentations
from egmae_jax.augmentations import base, image_ops, mixing, single
from egmae_jax.core.errors import ConfigError
from tests import torch_reference
from tests.augmentations.test_image_ops import assert_same, to_torch

torch = torch_reference.torch()
torch_reference.torchvision()
from torchvision.transforms import v2  # noqa: E402

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(6, 20, 24, 3)).astype(np.float32)
ALL = (
    "vertical_flip()",
    "rotate(15)",
    "affine(10, translate=(0.1, 0.2), scale=(0.8, 1.2), shear=(-5, 5))",
    "color_jitter(0.2, 0.3, 0.4, 0.05, p=0.8)",
    "brightness((0.8, 1.1))",
    "contrast(0.2)",
    "gamma(0.3)",
    "gaussian_blur(5, sigma=(0.1, 2), p=0.5)",
    "random_erasing(scale=(0.1, 0.2), value=0.5)",
    "mixup(0.2)",
    "cutmix",
)


def apply(calls, images=IMAGES, seed=0):
    steps = augmentations.parse(calls)
    return np.asarray(
        jax.jit(augmentations.apply, static_argnums=2)(jax.random.key(seed), images, steps)
    )


def drawn(function, count=3000):
    """What a function of a key draws, as arrays [count]."""
    keys = jax.random.split(jax.random.key(1), count)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(function))(keys))


def assert_same_distribution(ours, theirs, name=""):
    assert stats.ks_2samp(np.asarray(ours, float), np.asarray(theirs, float)).pvalue > 0.005, name


# --- Grammar -------------------------------------------------------------------------------------


def test_a_call_has_arguments_by_position_and_by_name():
    assert augmentations.parse(["rotate(15, p=0.5)", " vertical_flip "]) == (
        single.Rotate(15, p=0.5),
        single.VerticalFlip(0.5),
    )
    assert {call.split("(")[0] for call in ALL} == set(augmentations.names())
    assert len(augmentations.parse(ALL)) == len(ALL)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("rotate(15", "is not a name with numbers in brackets, such as 'rotate"),
        ("rotate(x)", "is not a name with numbers"),
        ("__import__('os').system('x')", "is not a name with numbers"),
        ("", "is not a name with numbers"),
        ("rotat(15)", "no augmentation 'rotat'. Did you mean 'rotate'"),
        ("rotate()", r"'rotate\(\)' does not fit rotate\(degrees, p=1.0\)"),
        ("rotate(15, angle=3)", r"does not fit rotate\(degrees, p=1.0\)"),
        ("rotate(-15)", "has degrees=-15; it must be a number of at least 0 or"),
        ("rotate('a')", "has degrees='a'"),
        ("rotate(1e999)", "has degrees=inf"),
        ("rotate(15, p=2)", "has p=2; it must be between 0 and 1"),
        ("affine(translate=0.1)", r"has translate=0.1; it must be \(share, share\)"),
        ("affine(translate=(2, 0))", "has translate=2.* between -1 and 1"),
        ("affine(scale=0.1)", r"has scale=0.1; it must be \(lowest, highest\)"),
        ("color_jitter(hue=0.6)", "has hue=0.6.* between -0.5 and 0.5"),
        ("color_jitter((1.2, 0.8))", r"has brightness=\(1.2, 0.8\)"),
        ("gaussian_blur(4)", "has kernel_size=4; it must be an odd number"),
        ("gaussian_blur(5, sigma=0)", "has sigma=0; it must be positive"),
        ("random_erasing(scale=0.1)", "has a scale or ratio that is not"),
        ("random_erasing(value=2)", "has value=2; it must be between 0 and 1"),
        ("mixup(0)", "has alpha=0; it must be positive"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ConfigError, match=message):
        augmentations.parse([call])


def test_what_mixes_images_comes_last():
    with pytest.raises(ConfigError, match=r"'mixup\(0.2\)' mixes images; it must stand after"):
        augmentations.parse(["mixup(0.2)", "rotate(15)"])


def test_an_augmentation_of_ones_own_has_a_free_name(monkeypatch):
    monkeypatch.setattr(base.AUGMENTATIONS, "entries", dict(base.AUGMENTATIONS.entries))

    @augmentations.register("posterize")
    @dataclasses.dataclass(frozen=True)
    class Posterize(augmentations.Augmentation):
        levels: int

        def apply(self, key, image):
            return jnp.round(image * (self.levels - 1)) / (self.levels - 1)

    assert set(np.unique(apply(["posterize(3)"]))) == {0, 0.5, 1}
    with pytest.raises(
        ValueError, match="has the augmentation 'rotate'; register yours by another"
    ):
        augmentations.register("rotate")


# --- Each image on its own -----------------------------------------------------------------------


def test_nothing_to_do_changes_nothing():
    np.testing.assert_array_equal(apply(["mixup(0.2)"]), IMAGES)
    np.testing.assert_array_equal(apply(["rotate(90, p=0)", "gamma(3, p=0)"]), IMAGES)


@pytest.mark.parametrize("call", ALL[:9])
def test_each_image_is_augmented_by_its_own_numbers(call):
    channels = 1 if "contrast" in call or "rotate" in call else 3
    images = np.broadcast_to(IMAGES[:1, ..., :channels], (32, 20, 24, channels))
    result = apply([call], images)
    assert result.dtype == np.float32
    assert result.shape == images.shape
    assert np.isfinite(result).all()
    assert result.min() >= -1e-6
    assert result.max() <= 1 + 1e-6
    different = len(np.unique(result.round(4).reshape(32, -1), axis=0))
    assert different == 2 if call == "vertical_flip()" else different > 10
    np.testing.assert_array_equal(apply([call], images), result)
    assert (apply([call], images, seed=1) != result).any()


def test_images_at_once_are_those_one_by_one(monkeypatch):
    """As a GPU computes them, and as a CPU does."""
    one_by_one = apply(ALL)
    monkeypatch.setattr(base, "for_cpu", lambda: False)
    steps = augmentations.parse(ALL)
    at_once = jax.jit(lambda key, images: augmentations.apply(key, images, steps))
    np.testing.assert_allclose(at_once(jax.random.key(0), IMAGES), one_by_one, atol=1e-4)


def test_a_share_p_of_the_images_is_augmented():
    images = np.broadcast_to(IMAGES[:1], (2000, 20, 24, 3))
    for call in ("vertical_flip(0.3)", "rotate((90, 90), p=0.3)", "gamma((2, 2), p=0.3)"):
        changed = (apply([call], images) != images).any(axis=(1, 2, 3))
        assert stats.binomtest(int(changed.sum()), 2000, 0.3).pvalue > 0.01, call


def test_consecutive_geometric_ones_resample_only_once():
    image, key = IMAGES[0], jax.random.key(5)
    rotate, affine = augmentations.parse(["rotate(40)", ALL[2]])
    result = base._apply_to_one(key, image, (rotate, affine))
    keys = [jax.random.fold_in(key, i) for i in range(2)]
    matrix = rotate.matrix(keys[0], (20, 24)) @ affine.matrix(keys[1], (20, 24))
    np.testing.assert_allclose(result, image_ops.affine(image, matrix), atol=1e-6)


# --- What is drawn -------------------------------------------------------------------------------


def test_a_rotation_has_torchvisions_direction():
    matrix = single.Rotate((30, 30)).matrix(jax.random.key(0), (20, 24))
    theirs = v2.functional.rotate(
        to_torch(IMAGES[0]), 30.0, interpolation=v2.InterpolationMode.BILINEAR
    )
    assert_same(image_ops.affine(IMAGES[0], matrix), theirs, atol=1e-4)


def test_affine_transforms_are_distributed_as_torchvisions():
    affine = augmentations.parse([ALL[2]])[0]
    theirs = v2.RandomAffine(10, (0.1, 0.2), (0.8, 1.2), (-5, 5))
    torch.manual_seed(0)
    parameters = [theirs.make_params([to_torch(IMAGES[0])]) for _ in range(3000)]
    names = ("angle", "translate", "scale", "shear")
    columns = [jnp.array([p[name] for p in parameters], jnp.float32) for name in names]
    expected = jax.vmap(image_ops.affine_matrix)(
        columns[0], tuple(columns[1].T), columns[2], tuple(columns[3].T)
    )
    ours = drawn(lambda key: affine.matrix(key, (20, 24)))
    for row in range(2):
        for column in range(3):
            assert_same_distribution(ours[:, row, column], expected[:, row, column], (row, column))
    shifts = drawn(lambda key: affine.matrix(key, (20, 24)))[:, :2]
    # The inverse matrix maps the shift to the centre: it is whole pixels, as torchvision's.
    shift = -np.linalg.solve(shifts[:, :, :2], shifts[:, :, 2:])[..., 0]
    np.testing.assert_allclose(shift, np.round(shift), atol=1e-3)


def test_color_jitter_does_what_torchvision_does_for_given_factors_in_any_order():
    factors = (0.7, 1.4, 0.5, 0.1)
    functions = [
        getattr(v2.functional, f"adjust_{x}")
        for x in ("brightness", "contrast", "saturation", "hue")
    ]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        expected = to_torch(IMAGES[0])
        for index in order:
            expected = functions[index](expected, factors[index])
        ours = jax.jit(single.jitter)(IMAGES[0], tuple(map(jnp.float32, factors)), jnp.array(order))
        assert_same(ours, expected, atol=1e-5)


def test_rectangles_to_erase_are_distributed_as_torchvisions():
    theirs = v2.RandomErasing(1.0)
    torch.manual_seed(0)
    image = torch.zeros(3, 40, 50)
    expected = [theirs.make_params([image]) for _ in range(3000)]
    expected = {name: [p[name] for p in expected if p["v"] is not None] for name in "ijhw"}
    top, left, height, width = drawn(lambda key: single.RandomErasing().rectangle(key, (40, 50)))
    for name, ours in zip("ijhw", (top, left, height, width), strict=True):
        assert_same_distribution(ours, expected[name], name)
    assert (top + height <= 40).all()
    assert (left + width <= 50).all()


def test_a_rectangle_that_never_fits_erases_nothing():
    erasing = single.RandomErasing(1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    image = IMAGES[0][:20, :20]
    np.testing.assert_array_equal(erasing.apply(jax.random.key(0), image), image)


# --- Mixing --------------------------------------------------------------------------------------

TARGETS = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]


def torchvisions(transform, parameters):
    """Images and targets as torchvision mixes them with given parameters."""
    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(TARGETS)
    given = {**parameters, "labels": labels, "batch_size": len(images), "num_classes": 3}
    mixed = transform.transform(images, given)
    return mixed.numpy().transpose(0, 2, 3, 1), transform.transform(labels, given).numpy()


def test_mixup_is_torchvisions():
    for seed in range(3):
        key = jax.random.key(seed)
        mixup = mixing.Mixup(0.4)
        ours = jax.jit(mixup.mix)(key, IMAGES, TARGETS)
        theirs = torchvisions(v2.MixUp(num_classes=3), {"lam": float(mixup.draw_share(key))})
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("share", "row", "column"),
    [(0.3, 10, 12), (0.9, 0, 23), (0.5, 19, 3), (1.0, 5, 5), (0.0, 9, 9)],
)
def test_the_rectangle_of_cutmix_is_torchvisions(share, row, column, monkeypatch):
    (top, left, height, width), left_share = mixing.cut(jnp.float32(share), row, column, (20, 24))
    transform = v2.CutMix(num_classes=3)
    monkeypatch.setattr(transform, "_dist", type("Given", (), {"sample": lambda *_: share}))
    given = iter([torch.tensor([column]), torch.tensor([row])])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(given))
    theirs = transform.make_params([torch.zeros(6, 3, 20, 24)])
    assert theirs["box"] == (left, top, left + width, top + height)
    assert theirs["lam_adjusted"] == pytest.approx(float(left_share), abs=1e-6)


def test_cutmix_replaces_a_rectangle_and_mixes_labels_by_its_area():
    images, targets = jax.jit(mixing.Cutmix(1.0).mix)(jax.random.key(3), IMAGES, TARGETS)
    own, other = images == IMAGES, images == np.roll(IMAGES, 1, axis=0)
    assert (own | other).all()
    share = np.asarray(own.all(axis=-1)).mean()
    assert 0 < share < 1
    np.testing.assert_allclose(
        targets, share * TARGETS + (1 - share) * np.roll(TARGETS, 1, 0), atol=1e-6
    )


def test_shares_have_a_beta_distribution_or_are_one():
    shares = drawn(mixing.Mixup(0.4).draw_share)
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 0.005
    skipped = (drawn(mixing.Mixup(0.4, p=0.25).draw_share) == 1).sum()
    assert stats.binomtest(int(skipped), 3000, 0.75).pvalue > 0.01


def test_of_two_that_mix_each_batch_takes_one():
    steps = augmentations.parse(["mixup(1.0)", "cutmix(1.0)"])
    mix = jax.jit(augmentations.mix, static_argnums=3)
    blended = 0
    for seed in range(60):
        images, _ = mix(jax.random.key(seed), IMAGES, TARGETS, steps)
        own, other = images == IMAGES, images == np.roll(IMAGES, 1, axis=0)
        blended += not (own | other).all()
    assert stats.binomtest(blended, 60).pvalue > 0.01
