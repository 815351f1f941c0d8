"""Convolution and pooling: their gradients are lax's, in forms that XLA runs fast, or at all."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from egmae_jax.core import platform
from egmae_jax.models.kernels.convolution import conv2d
from egmae_jax.models.layers import max_pool

SIZES, STRIDES = (1, 3, 5, 7), (1, 2, 3)


def plain(x, kernel, strides, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def draw(batch, height, width, size, channels=3, features=4, dtype=jnp.float32):
    rng = np.random.default_rng(size)
    x = rng.standard_normal((batch, height, width, channels), np.float32)
    kernel = rng.standard_normal((size, size, channels, features), np.float32)
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def value_and_gradients(conv, x, kernel, strides, padding):
    """The output and, for a random gradient of it, those of image and kernel."""
    value, backward = jax.vjp(lambda *pair: conv(*pair, strides, padding), x, kernel)
    weights = jnp.asarray(np.random.default_rng(0).standard_normal(value.shape), value.dtype)
    return value, *backward(weights)


def compare(cases, dtype=jnp.float32, tolerance=1e-5):
    """All cases (batch, height, width, size, strides, padding) in one program: compiling counts."""
    arrays = [draw(*case[:4], dtype=dtype) for case in cases]

    def program(conv, arrays):
        return [
            value_and_gradients(conv, *pair, *case[4:])
            for pair, case in zip(arrays, cases, strict=True)
        ]

    options = {"compiler_options": {"xla_backend_optimization_level": 0}}
    ours = jax.jit(functools.partial(program, conv2d), **options)(arrays)
    theirs = jax.jit(functools.partial(program, plain), **options)(arrays)
    for case, mine, other in zip(cases, ours, theirs, strict=True):
        for what, a, b in zip(("value", "image", "kernel"), mine, other, strict=True):
            assert a.shape == b.shape, (case, what)
            assert a.dtype == b.dtype == dtype, (case, what)
            a, b = (np.asarray(z, np.float32) for z in (a, b))
            np.testing.assert_allclose(
                a, b, rtol=0, atol=tolerance * max(abs(b).max(), 1e-3), err_msg=f"{case} {what}"
            )


@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_are_those_of_lax(size):
    paddings = sorted({0, 1, size // 2})
    sides = ((8, 9), (11, 7))
    compare(
        [
            (2, *side, size, strides, padding)
            for side, strides, padding in itertools.product(sides, STRIDES, paddings)
            if padding < size and min(side) + 2 * padding >= size
        ]
    )


@pytest.mark.parametrize("size", [3, 5, 7])
def test_images_smaller_than_the_kernel(size):
    """Deep in a network a map of 1x1 meets a padded 3x3 kernel."""
    compare(
        [
            (2, height, width, size, strides, size // 2)
            for height, width in ((1, 1), (2, 1), (1, size + 2), (size - 1, size))
            for strides in STRIDES
        ]
    )


def test_rows_that_no_window_reaches_have_no_gradient():
    x, kernel = draw(1, 8, 8, 3)
    _, gradient, _ = value_and_gradients(conv2d, x, kernel, 3, 0)  # windows at 0 and 3: up to 5
    gradient = np.asarray(gradient)
    assert not gradient[:, 6:].any()
    assert not gradient[:, :, 6:].any()
    assert gradient[:, :6, :6].all()


def test_bfloat16_is_as_exact_as_laxs():
    compare(
        [(2, 9, 8, size, strides, size // 2) for size in SIZES for strides in STRIDES],
        dtype=jnp.bfloat16,
        tolerance=2**-7,
    )


# Max pooling


@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (0, 0))])
@pytest.mark.parametrize("side", [7, 12])
def test_deterministic_max_pooling_gives_the_gradient_to_the_first_of_equal_maxima(
    padding, side, monkeypatch
):
    draw = np.random.default_rng(side)
    x = jnp.asarray(draw.integers(-2, 3, (2, side, side + 1, 3)), jnp.float32)  # many are equal
    usual, pull = jax.vjp(lambda x: max_pool(x, padding), x)
    gradient = jnp.asarray(draw.normal(size=usual.shape), jnp.float32)
    (expected,) = pull(gradient)
    monkeypatch.setenv("XLA_FLAGS", "")
    platform.make_deterministic()
    pooled, pull = jax.vjp(lambda x: max_pool(x, padding), x)
    np.testing.assert_array_equal(pooled, usual)
    np.testing.assert_allclose(pull(gradient)[0], expected, rtol=1e-6)
    # The operation that a deterministic GPU program refuses is not there.
    program = jax.jit(lambda x: jax.grad(lambda x: max_pool(x, padding).sum())(x))
    assert "select_and_scatter" not in program.lower(x).as_text()


@pytest.mark.parametrize(("size", "dtype"), [(4, jnp.float32), (2, jnp.float32), (2, jnp.bfloat16)])
def test_patches_on_a_tpu_have_the_gradients_of_lax(size, dtype):
    x, kernel = draw(3, 3 * size, 5 * size, size, dtype=dtype)
    with platform.tracing_for("tpu"):
        function = functools.partial(value_and_gradients, conv2d, strides=size, padding=0)
        ours = platform.jit(function)(x, kernel)
        text = str(jax.make_jaxpr(platform.with_backward_rules(function))(x, kernel))
    assert "dot_general" in text  # by the backward rule
    theirs = value_and_gradients(plain, x, kernel, size, 0)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype == dtype
        a, b = (np.asarray(z, np.float32) for z in (a, b))
        tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * abs(b).max())
