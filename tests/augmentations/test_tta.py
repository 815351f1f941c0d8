"""Views of test-time augmentation against torchvision's, and their mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egmae_jax import models
from egmae_jax.augmentations import tta
from egmae_jax.models.init import initial_variables
from egmae_jax.training import finetune
from tests import tiny, torch_reference

torch = torch_reference.torch()
torch_reference.torchvision()
from torchvision.transforms import v2  # noqa: E402

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 37, 37, 3), np.uint8)


@pytest.mark.parametrize("side", [32, 37])
def test_five_crops_are_torchvisions(side):
    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    *corners, centre = v2.FiveCrop(side)(images)
    ours = tta.views(jnp.asarray(IMAGES), ["five_crop"], side)
    assert len(ours) == 5
    for view, crop in zip(ours, [centre, *corners], strict=True):
        np.testing.assert_array_equal(view, crop.numpy().transpose(0, 2, 3, 1))


def test_each_flip_doubles_the_views():
    plain, mirrored, *upside_down = tta.views(IMAGES, tta.KINDS[:2], 37, flip=np.flip)
    np.testing.assert_array_equal(plain, IMAGES)
    np.testing.assert_array_equal(mirrored, IMAGES[:, :, ::-1])
    np.testing.assert_array_equal(upside_down[0], IMAGES[:, ::-1])
    np.testing.assert_array_equal(upside_down[1], IMAGES[:, ::-1, ::-1])
    assert len(tta.views(IMAGES, tta.KINDS, 32)) == 20
    (only,) = tta.views(IMAGES, (), 37)
    np.testing.assert_array_equal(only, IMAGES)


def test_the_same_views_of_torchs_arrays():
    theirs = tta.views(torch.from_numpy(IMAGES), tta.KINDS, 32, flip=torch.flip)
    for a, b in zip(tta.views(IMAGES, tta.KINDS, 32), theirs, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_only_crops_need_a_larger_image():
    assert tta.input_size(("horizontal_flip",), 224, 256) == 224
    assert tta.input_size(tta.KINDS, 224, 256) == 256


def test_probabilities_are_averaged_over_the_views():
    tiny.register()
    model = models.create(tiny.MODEL, 3)
    variables = initial_variables(model, 0, kernel_init="fan_in", layer_scale=0.1)
    views = functools.partial(tta.views, kinds=tta.KINDS, size=32)
    predict = functools.partial(finetune.class_probabilities, variables, model=model)
    mean = np.mean([predict(view) for view in views(jnp.asarray(IMAGES))], axis=0)
    result = jax.jit(functools.partial(predict, views=views))(IMAGES)
    np.testing.assert_allclose(result, mean, atol=1e-6)
    assert np.abs(mean - predict(tta.centre_crop(IMAGES, 32))).max() > 1e-4
