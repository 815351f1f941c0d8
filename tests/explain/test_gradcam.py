"""Grad-CAM where it has a closed form, batches, classes, layers, and what is refused."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from egmae_jax import models
from egmae_jax.explain.gradcam import LayerError, explain, gradcam, layer_at, layers
from egmae_jax.models.layers import Conv, tap
from egmae_jax.models.model import Model

CLASSES = 3


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return tap(self, x + nn.relu(Conv(x.shape[-1], 3, padding=1, name="conv")(x)))


class Pooled(Model):
    """Eleven blocks, then global average pooling and a linear layer."""

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, images, *, train=False):
        x = Conv(6, 4, strides=4, dtype=self.dtype, name="stem")(images)
        for index in range(11):
            x = Block(name=f"blocks_{index}")(x)
        x = tap(self, x.mean(axis=(1, 2)), "pooled")
        return nn.Dense(CLASSES, name="fc")(x)


class Plain(Model):
    num_classes: int = CLASSES
    tapped: bool = True

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Conv(CLASSES, (1, 1))(images)
        return (tap(self, x, "last") if self.tapped else x).mean(axis=(1, 2))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((3, 16, 24, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(images):
    return Pooled().init(jax.random.key(1), images)


def scaled(x):
    x = x - x.min(axis=(1, 2), keepdims=True)
    return x / x.max(axis=(1, 2), keepdims=True)


def test_before_pooling_and_a_linear_layer_it_is_the_class_activation_map(images, variables):
    # The gradient by every pixel of channel c is W[c, class] / (h * w).
    _, state = Pooled().apply(variables, images, mutable=["intermediates"])
    features = np.asarray(state["intermediates"]["blocks_10"]["output"], np.float64)
    weights = np.asarray(variables["params"]["fc"]["kernel"], np.float64)
    for label in range(CLASSES):
        activation_maps = np.maximum(features @ weights[:, label], 0)
        expected = scaled(np.stack([cv2.resize(x, (24, 16)) for x in scaled(activation_maps)]))
        ours = gradcam(Pooled(), variables, images, classes=label)
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_an_image_has_the_same_heat_alone_and_in_a_batch(images, variables):
    together = np.asarray(gradcam(Pooled(), variables, images))
    alone = [np.asarray(gradcam(Pooled(), variables, x[None]))[0] for x in images]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together.dtype == np.float32
    assert together.shape == (3, 16, 24)
    assert together.min() >= 0
    np.testing.assert_allclose(together.max(axis=(1, 2)), 1, atol=1e-5)


def test_without_classes_the_predicted_ones_are_explained(images, variables):
    explained = explain(Pooled(), variables, images)
    logits = Pooled().apply(variables, images)
    np.testing.assert_allclose(explained.logits, logits, atol=1e-5)
    np.testing.assert_array_equal(explained.classes, logits.argmax(axis=1))
    same = explain(Pooled(), variables, images, classes=explained.classes)
    np.testing.assert_array_equal(explained.heat, same.heat)
    other = explain(Pooled(), variables, images, classes=(explained.classes + 1) % CLASSES)
    assert np.abs(explained.heat - other.heat).max() > 0.1
    once = gradcam(Pooled(), variables, images, classes=1)
    np.testing.assert_array_equal(once, gradcam(Pooled(), variables, images, classes=[1, 1, 1]))


def test_what_nothing_speaks_for_has_no_heat(images, variables):
    fc = variables["params"]["fc"] | {"kernel": jnp.zeros((6, CLASSES))}
    negative = {"params": variables["params"] | {"fc": fc}}
    np.testing.assert_array_equal(gradcam(Pooled(), negative, images), np.zeros((3, 16, 24)))


def test_bfloat16_activations_give_nearly_the_same_heat(images, variables):
    exact = gradcam(Pooled(), variables, images, classes=0)
    rough = gradcam(Pooled(dtype=jnp.bfloat16), variables, images, classes=0)
    assert rough.dtype == jnp.float32
    assert np.abs(exact - rough).max() < 0.1


def test_layers_are_listed_in_the_order_of_the_network():
    addresses = layers(Pooled())
    blocks = [f"blocks_{k}" for k in range(11)]
    assert addresses == ("stem", *(x for block in blocks for x in (f"{block}/conv", block)))
    assert layer_at(Pooled()).address == "blocks_10"
    assert layers(Plain()) == ("last",)
    assert layer_at(Plain()).address == "last"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "block_10"}, r"no layer 'block_10'. The nearest: .*blocks_10"),
        ({"layer": "pooled"}, "no layer 'pooled'"),  # has no rows and columns
        ({"classes": [0, -1, 3]}, r"classes is \[0, -1, 3\]; it must be .* from 0 to 2"),
        ({"classes": [0, 1]}, r"classes is \[0, 1\].* one for each of the 3 images"),
        ({"classes": 0.5}, "classes is 0.5"),
    ],
)
def test_what_cannot_be_is_refused(options, message, images, variables):
    with pytest.raises((ValueError, LayerError), match=message):
        gradcam(Pooled(), variables, images, **options)


def test_a_model_without_taps_is_refused():
    with pytest.raises(ValueError, match="Plain taps no activation"):
        layers(Plain(tapped=False))


# Stage strides are 4, 8, 16, 32, rounded up; SqueezeNet's by its unpadded convolution and pooling.
GRIDS = {
    ("convnext_tiny", 224): ("stages_3/blocks_2", 7),
    ("convnext_atto", 96): ("stages_1/blocks_1", 12),
    ("resnet18", 193): ("layer4_1", 7),
    ("resnet18", 192): ("layer3_1", 12),
    ("squeezenet1_1", 224): ("features_12", 13),
    ("asff_resnet18", 64): ("layer2_1", 8),
}


@pytest.mark.parametrize(("name", "size"), GRIDS)
def test_the_default_layer_is_the_deepest_block_of_seven_by_seven(name, size):
    model = models.create(name, CLASSES)
    address, side = GRIDS[name, size]
    layer = layer_at(model, size)
    assert layer == (address, (side, side), "")
    assert str(layer) == f"layer {address}, {side} x {side} grid"


def test_the_default_layer_follows_the_shorter_side_and_else_the_largest_grid(images, variables):
    model = models.create("resnet18", CLASSES)
    assert layer_at(model, (64, 224)) == ("layer2_1", (8, 28), "")
    # All blocks of four by six: the last of them, and it is called coarse.
    assert str(layer_at(Pooled(), (16, 24))) == "layer blocks_10, 4 x 6 grid, coarser than 7 x 7"
    heat = gradcam(Pooled(), variables, images)
    np.testing.assert_array_equal(heat, gradcam(Pooled(), variables, images, layer="blocks_10"))


def test_what_passes_one_branch_of_an_asff_is_called_so():
    model = models.create("asff_resnet50", CLASSES)
    assert str(layer_at(model, 224)) == "layer layer4_2, 7 x 7 grid, high-level branch alone"
    assert layer_at(model, 224, "fusion/mid/conv").feeds == "mid-level branch alone"
    assert layer_at(model, 224, "layer3_5").feeds == ""
