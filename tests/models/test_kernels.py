"""Each fast form gives the value and the gradients of its plain form, however it is compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from egmae_jax.core import platform
from egmae_jax.models.convnext import ConvNeXtBlock
from egmae_jax.models.kernels import mlp_tpu
from egmae_jax.models.kernels.convolution import conv2d, conv2d_plain
from egmae_jax.models.kernels.depthwise import depthwise_conv, depthwise_conv_plain
from egmae_jax.models.kernels.mlp import linear, linear_plain, mlp, mlp_plain
from egmae_jax.models.kernels.norm import layer_norm, layer_norm_plain
from egmae_jax.models.kernels.operations import (
    broadcast_to,
    column_sums,
    column_sums_plain,
    gelu,
    gelu_plain,
    pixel_sums,
    pixel_sums_plain,
)

COMPILERS = {"our programs": platform.jit, "stock JAX": jax.jit}
SHAPE = {"shape": (2, 3, 4, 5)}
STRIDED = {"strides": 2, "padding": 1}
DROPPED = {"scales": np.array([0, 1.25], np.float32)}  # drop-path factors of two examples
CASES = {
    "gelu": (gelu, gelu_plain, [(7, 5)]),
    "sums": (column_sums, column_sums_plain, [(7, 5)]),
    "broadcast": (
        functools.partial(broadcast_to, **SHAPE),
        functools.partial(jnp.broadcast_to, **SHAPE),
        [(5,)],
    ),
    "depthwise": (depthwise_conv, depthwise_conv_plain, [(2, 8, 8, 3), (7, 7, 1, 3), (3,)]),
    # The kernel lies mostly on the padding.
    "depthwise, small": (depthwise_conv, depthwise_conv_plain, [(2, 2, 3, 3), (7, 7, 1, 3), (3,)]),
    "depthwise, 3x3": (depthwise_conv, depthwise_conv_plain, [(2, 8, 5, 3), (3, 3, 1, 3), (3,)]),
    "convolution": (
        functools.partial(conv2d, **STRIDED),
        functools.partial(conv2d_plain, **STRIDED),
        [(2, 9, 8, 3), (3, 3, 3, 4)],
    ),
    "linear": (linear, linear_plain, [(2, 3, 7), (7, 8), (8,)]),
    "mlp": (
        functools.partial(mlp, **DROPPED),
        functools.partial(mlp_plain, **DROPPED),
        [(2, 3, 5, 7), (7, 8), (8,), (8, 4), (4,), (4,)],
    ),
    # More pixels than one sum of a kernel's gradient takes.
    "mlp, large": (
        functools.partial(mlp, **DROPPED),
        functools.partial(mlp_plain, **DROPPED),
        [(2, 35, 34, 3), (3, 5), (5,), (5, 4), (4,), (4,)],
    ),
    "layer norm": (layer_norm, layer_norm_plain, [(2, 5, 3, 7), (7,), (7,)]),
}


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_plain_form(case, compiler):
    fast, plain, shapes = CASES[case]
    rng = np.random.default_rng(0)
    arguments = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    weight = rng.standard_normal(jax.eval_shape(plain, *arguments).shape).astype(np.float32)

    def value_and_gradients(function, compile):
        def program(*arguments):
            value, backward = jax.vjp(function, *arguments)
            return value, *backward(weight)

        return compile(program)(*arguments)

    ours = value_and_gradients(fast, COMPILERS[compiler])
    theirs = value_and_gradients(plain, jax.jit)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_the_forms_of_a_gpu_are_the_plain_ones(case, dtype):
    fast, plain, shapes = CASES[case]
    rng = np.random.default_rng(0)
    arguments = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    weight = rng.standard_normal(jax.eval_shape(plain, *arguments).shape)

    def value_and_gradients(function, *arguments):
        value, backward = jax.vjp(function, *arguments)
        return value, *backward(jnp.asarray(weight, value.dtype))

    jax.clear_caches()  # of what was traced for a CPU
    with platform.tracing_for("gpu"):
        ours = platform.jit(functools.partial(value_and_gradients, fast))(*arguments)
    exact = (x.astype(np.float32) for x in arguments)
    theirs = jax.jit(functools.partial(value_and_gradients, plain))(*exact)
    # A few roundings by 2 ** -24 or 2 ** -8.
    tolerance = 3e-6 if dtype is np.float32 else 1.5e-2
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("shape", [(2, 3), (1, 37, 2), (3, 4, 31, 5), (40, 35, 8, 2)])
def test_sums_over_pixels_in_parts_are_those_over_all(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for weights in (None, np.arange(len(x), dtype=np.float32)):
        with platform.tracing_for("gpu"):
            sums = platform.jit(pixel_sums)(x, weights)
        np.testing.assert_allclose(sums, pixel_sums_plain(x, weights), rtol=1e-5, atol=1e-4)


def test_a_layer_norm_far_from_zero_keeps_its_gradients_on_a_gpu():
    rng = np.random.default_rng(0)
    x = (1000 + rng.standard_normal((2, 3, 3, 96))).astype(np.float32)
    scale, bias, weight = np.ones(96, np.float32), np.zeros(96, np.float32), x - 1000
    with platform.tracing_for("gpu"):
        ours = platform.jit(lambda *x: jax.vjp(layer_norm, *x)[1](weight))(x, scale, bias)
    y = x.astype(np.float64)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(ours[1], (weight * y).sum((0, 1, 2)), rtol=1e-4)


def test_depthwise_convolution_and_its_gradients_in_bfloat16_round_once():
    rng = np.random.default_rng(0)
    shapes = (2, 9, 11, 4), (7, 7, 1, 4), (2, 9, 11, 4)
    arrays = [jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes]

    def value_and_gradients(conv, x, kernel, weight):
        without_bias = functools.partial(conv, bias=jnp.zeros(4, x.dtype))
        value, backward = jax.vjp(without_bias, x, kernel)
        return value, *backward(weight)

    ours = jax.jit(functools.partial(value_and_gradients, depthwise_conv))(*arrays)
    exact = value_and_gradients(depthwise_conv_plain, *(x.astype(jnp.float32) for x in arrays))
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        # Half of the last of eight binary digits.
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (3, np.float32),
        (3, jnp.bfloat16),
        pytest.param(7, jnp.bfloat16, marks=[pytest.mark.slow, pytest.mark.essential]),
    ],
)
def test_the_convolution_of_a_tpu_is_the_plain_one(size, dtype):
    """Interpreted, with sides, channels and a kernel that fill no tile."""
    rng = np.random.default_rng(0)
    shapes = (16, 3, 5, 130), (size, size, 1, 130), (130,)
    x, kernel, bias = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    weight = jnp.asarray(rng.standard_normal(x.shape), dtype)

    def value_and_gradients(x, kernel, bias, weight):
        value, backward = jax.vjp(depthwise_conv, x, kernel, bias)
        return value, *backward(weight)

    jax.clear_caches()  # of what was traced for a CPU
    with platform.tracing_for("tpu"):
        ours = platform.jit(value_and_gradients)(x, kernel, bias, weight)
    assert ours[0].dtype == dtype
    exact = (np.asarray(a, np.float32) for a in (x, kernel, bias, weight))
    theirs = jax.jit(value_and_gradients)(*exact)
    tolerance = 2e-6 if dtype is np.float32 else 6e-3  # bfloat16 rounds by 2 ** -8
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.essential
@pytest.mark.parametrize(
    ("shape", "dtype", "drops"),
    [
        ((32, 2, 3, 130), np.float32, True),  # channels that fill no tile, two tiles of images
        ((16, 5, 14, 256), jnp.bfloat16, False),  # two tiles of pixels, several of the hidden layer
    ],
)
def test_the_block_of_a_tpu_is_the_plain_one(shape, dtype, drops):
    """Interpreted."""
    rng = np.random.default_rng(0)
    block = ConvNeXtBlock(dtype)
    x, weight = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    scales = jnp.asarray(rng.integers(0, 2, len(x)) / 0.5, np.float32) if drops else None
    params = jax.jit(block.init)(jax.random.key(0), x[:1])["params"]
    params = jax.tree.map(lambda a: a + 0.3 * rng.standard_normal(a.shape, np.float32), params)

    def value_and_gradients(params, x, weight, dtype):
        block = ConvNeXtBlock(dtype)
        apply = functools.partial(block.apply, scales=scales)
        y, backward = jax.vjp(lambda params, x: apply({"params": params}, x), params, x)
        return y, *backward(weight)

    jax.clear_caches()  # of what was traced for a CPU
    with platform.tracing_for("tpu"):
        program = platform.jit(functools.partial(value_and_gradients, dtype=dtype))
        assert "block_mlp_gradient" in str(program.trace(params, x, weight).jaxpr)
        ours = program(params, x, weight)
    assert ours[0].dtype == dtype
    exact = functools.partial(value_and_gradients, dtype=np.float32)
    theirs = jax.jit(exact)(params, *(np.asarray(a, np.float32) for a in (x, weight)))
    tolerance = 1e-4 if dtype is np.float32 else 1e-2
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        error = np.abs(np.asarray(a, np.float32) - b).max() / np.abs(b).max()
        assert error < tolerance, path


def test_the_normal_distribution_of_a_tpu_is_exact_to_a_rounding_of_bfloat16():
    x = np.linspace(-9, 9, 100_001, dtype=np.float32)
    exact = special.ndtr(x.astype(np.float64))
    error = np.abs(mlp_tpu.normal_cdf(x) - exact) * np.abs(x)
    rounding = 2.0**-9 * np.abs(x * exact)
    assert np.all(error < np.maximum(0.15 * rounding, 1e-6))
    far = np.float32([-1e6, 1e6, -np.inf, np.inf])
    np.testing.assert_array_equal(mlp_tpu.normal_cdf(far), [0, 1, 0, 1])
    assert np.isnan(mlp_tpu.normal_cdf(jnp.float32(np.nan)))


def test_gelu_is_the_normal_distributions():
    x = np.linspace(-6, 6, 101).astype(np.float32)
    np.testing.assert_allclose(gelu(x), x * special.ndtr(x), rtol=1e-5, atol=1e-6)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    expected = special.ndtr(x) + x * density
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), expected, rtol=1e-5, atol=1e-6)
    half = gelu(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, x * special.ndtr(x), rtol=2**-7, atol=1e-2)
