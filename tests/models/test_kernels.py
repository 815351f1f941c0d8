"""Each fast form gives the value and the gradients of its plain form, however it is compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from egmae_jax.core import platform
from egmae_jax.models.kernels.convolution import conv2d, conv2d_plain
from egmae_jax.models.kernels.depthwise import depthwise_conv, depthwise_conv_plain
from egmae_jax.models.kernels.operations import (
    broadcast_to,
    column_sums,
    column_sums_plain,
    gelu,
    gelu_plain,
)

COMPILERS = {"our programs": platform.jit, "stock JAX": jax.jit}
SHAPE = {"shape": (2, 3, 4, 5)}
STRIDED = {"strides": 2, "padding": 1}
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


def test_gelu_is_the_normal_distributions():
    x = np.linspace(-6, 6, 101).astype(np.float32)
    np.testing.assert_allclose(gelu(x), x * special.ndtr(x), rtol=1e-5, atol=1e-6)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    expected = special.ndtr(x) + x * density
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), expected, rtol=1e-5, atol=1e-6)
    half = gelu(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, x * special.ndtr(x), rtol=2**-7, atol=1e-2)


def test_backward_rules_count_only_in_our_programs():
    @platform.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, gradient: (3 * gradient,))
    layer = platform.subroutine(lambda x: double(x))
    assert platform.jit(jax.grad(layer))(1.0) == 3
    assert jax.jit(jax.grad(layer))(1.0) == 2
    assert jax.jvp(layer, (1.0,), (1.0,)) == (2, 2)
    assert double.__name__ == "double"
