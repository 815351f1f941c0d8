"""The operations' own gradient rules give what JAX derives from their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from egmae_jax.models.kernels.depthwise import depthwise_conv
from egmae_jax.models.kernels.operations import EPSILON, layer_norm, linear, vector_product


def plain_layer_norm(x, scale, bias):
    y = x - x.mean(axis=-1, keepdims=True)
    return y / jnp.sqrt(jnp.square(y).mean(axis=-1, keepdims=True) + EPSILON) * scale + bias


def plain_depthwise(x, kernel, bias):
    layout = ("NHWC", "HWIO", "NHWC")
    groups = x.shape[-1]
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=groups
    )
    return y + bias


@pytest.mark.parametrize(
    ("ours", "plain", "shapes"),
    [
        (linear, lambda x, w, b: x @ w + b, [(6, 4), (4, 9), (9,)]),
        (linear, lambda x, w, b: x @ w + b, [(6, 9), (9, 4), (4,)]),
        (layer_norm, plain_layer_norm, [(2, 3, 5), (5,), (5,)]),
        (vector_product, lambda x, w: x @ w, [(6,), (6, 4)]),
        (depthwise_conv, plain_depthwise, [(2, 8, 8, 3), (7, 7, 1, 3), (3,)]),
    ],
    ids=["wide linear", "narrow linear", "layer norm", "vector product", "depthwise"],
)
def test_gradients_of_all_arguments_are_those_of_the_formula(ours, plain, shapes):
    rng = np.random.default_rng(0)
    arguments = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    weight = rng.standard_normal(plain(*arguments).shape).astype(np.float32)

    def gradients(function):
        loss = jax.jit(lambda arguments: (function(*arguments) * weight).sum())
        return jax.grad(loss)(arguments)

    for mine, theirs in zip(gradients(ours), gradients(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
