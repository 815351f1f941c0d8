"""Operations on images against torchvision's, for given parameters and float images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egmae_jax.augmentations import image_ops
from tests import torch_reference

torch = torch_reference.torch()
torch_reference.torchvision()
from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as F  # noqa: E402

RNG = np.random.default_rng(0)
SMOOTH = np.kron(RNG.uniform(size=(6, 8, 3)), np.ones((5, 6, 1))).astype(np.float32)
NOISE = RNG.uniform(size=(31, 44, 3)).astype(np.float32)
NOISE[:4] = 0  # black
NOISE[4:8] = NOISE[4:8, :, :1]  # grey, whose hue is undefined
IMAGES = {"smooth": SMOOTH, "noise": NOISE, "grey": NOISE[..., :1]}


def to_torch(image):
    return torch.from_numpy(np.moveaxis(np.asarray(image), -1, 0).copy())


def assert_same(ours, theirs, atol=1e-6):
    np.testing.assert_allclose(ours, np.moveaxis(theirs.numpy(), 0, -1), atol=atol)


@pytest.fixture(params=IMAGES)
def image(request):
    return IMAGES[request.param]


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_contrast", "adjust_saturation"])
def test_a_factor_changes_an_image_as_torchvisions(name, factor, image):
    ours = jax.jit(getattr(image_ops, name))(image, factor)
    assert_same(ours, getattr(F, name)(to_torch(image), factor))


@pytest.mark.parametrize("shift", [-0.5, -0.2, 0.0, 0.05, 0.5])
def test_a_shift_of_the_hue_is_torchvisions(shift, image):
    assert_same(jax.jit(image_ops.adjust_hue)(image, shift), F.adjust_hue(to_torch(image), shift))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.2])
def test_gamma_is_torchvisions(gamma, image):
    theirs = F.adjust_gamma(to_torch(image), gamma)
    assert_same(jax.jit(image_ops.adjust_gamma)(image, gamma), theirs)


@pytest.mark.parametrize(("size", "sigma"), [(1, 1.0), (3, 0.1), (5, 0.8), (11, 3.0)])
def test_blur_is_torchvisions(size, sigma, image):
    blur = jax.jit(image_ops.gaussian_blur, static_argnums=1)
    assert_same(blur(image, size, sigma), F.gaussian_blur(to_torch(image), [size] * 2, [sigma] * 2))


def test_erasing_is_torchvisions(image):
    ours = jax.jit(image_ops.erase)(image, 3, 10, 8, 20, 0.25)
    value = torch.full((1, 1, 1), 0.25)
    assert_same(ours, F.erase(to_torch(image), 3, 10, 8, 20, value))


@pytest.mark.parametrize(
    ("angle", "translate", "scale", "shear"),
    [
        (0.0, (0, 0), 1.0, (0.0, 0.0)),
        (25.0, (0, 0), 1.0, (0.0, 0.0)),
        (-170.0, (3, -5), 0.8, (0.0, 0.0)),
        (10.0, (-4, 2), 1.3, (12.0, -7.0)),
    ],
)
def test_an_affine_transform_is_torchvisions(angle, translate, scale, shear, image):
    ours = jax.jit(image_ops.affine)(image, image_ops.affine_matrix(angle, translate, scale, shear))
    theirs = F.affine(
        to_torch(image),
        angle,
        list(translate),
        scale,
        list(shear),
        interpolation=v2.InterpolationMode.BILINEAR,
    )
    assert_same(ours, theirs, atol=2e-4)  # float32 coordinates times the steps of the noise


def test_no_transform_changes_no_bit_and_a_half_turn_mirrors_both_axes(image):
    np.testing.assert_array_equal(image_ops.affine(image, jnp.eye(3)), image)
    turned = image_ops.affine(image, image_ops.affine_matrix(180.0))
    # The outermost pixels lie outside by rounding, and what is outside is black.
    expected = image[::-1, ::-1]
    np.testing.assert_allclose(turned[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-4)


def test_a_product_of_matrices_does_both_transforms_at_once():
    image = np.zeros((41, 41, 1), np.float32)
    image[18:23, 10:30] = 1
    first, second = image_ops.affine_matrix(30.0), image_ops.affine_matrix(0.0, (4, -3), 1.5)
    twice = image_ops.affine(image_ops.affine(image, first), second)
    at_once = image_ops.affine(image, first @ second)
    assert np.abs(twice - at_once).mean() < 0.02  # two resamplings blur more than one
    assert np.abs(twice - image_ops.affine(image, second @ first)).mean() > 0.03
