"""Programs give the same whether compiled by the platform's options or without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from egmae_jax.core import platform
from egmae_jax.models.convnext import ConvNeXt
from egmae_jax.models.init import initial_variables
from egmae_jax.models.kernels.depthwise import depthwise_conv


@pytest.mark.slow
def test_rematerialized_gradients_are_the_same_for_less_memory():
    shape = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    images = np.random.default_rng(0).standard_normal((4, 64, 64, 3)).astype(np.float32)

    def gradient_program(remat):
        model = ConvNeXt((1, 1, 1, 1), (8, 16, 24, 32), num_classes=3, remat=remat)
        variables = initial_variables(model, 0, shape, kernel_init="fan_in", layer_scale=0.5)

        def loss(params):
            return jnp.square(model.apply({"params": params}, images, train=True)).sum()

        params = variables["params"]
        return params, platform.jit(jax.grad(loss)).lower(params).compile()

    params, kept = gradient_program(False)
    _, again = gradient_program(True)
    for a, b in zip(*(jax.tree.leaves(p(params)) for p in (again, kept)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    kept, again = (p.memory_analysis().temp_size_in_bytes for p in (kept, again))
    assert again < 0.8 * kept


def test_a_barrier_over_several_arrays_in_a_small_loop_does_not_crash():
    # XLA aborts the process here when small loops are hoisted and barriers kept.
    def program(x):
        def body(_, carry):
            return tuple(y + 1 for y in jax.lax.optimization_barrier(carry))

        return jax.lax.fori_loop(0, 3, body, (x, 2 * x))

    first, second = platform.jit(program)(jnp.ones(4))
    np.testing.assert_array_equal(first, 4)
    np.testing.assert_array_equal(second, 5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other platforms have no forms of ours")
def test_a_portable_program_has_each_platforms_own_convolution():
    arrays = jnp.ones((2, 8, 8, 4)), jnp.ones((7, 7, 1, 4)), jnp.ones(4)
    expected = depthwise_conv(*arrays)  # traced for the CPU, with the same shapes

    def lowered(target):
        return export.export(jax.jit(depthwise_conv), platforms=(target,))(*arrays).mlir_module()

    with platform.portable():
        on_cpu, on_tpu = lowered("cpu"), lowered("tpu")
        both = export.export(jax.jit(depthwise_conv), platforms=("cpu", "tpu"))(*arrays)
    assert "optimization_barrier" in on_cpu
    assert "stablehlo.convolution" not in on_cpu
    assert "optimization_barrier" not in on_tpu
    assert "feature_group_count = 4" in on_tpu
    np.testing.assert_array_equal(both.call(*arrays), expected)
    assert "feature_group_count" not in lowered("cpu")  # the state ends with the block


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
