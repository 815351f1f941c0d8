"""Stock Flax, JAX and optax work on every network, none of them knowing of ours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, traverse_util
from flax.nnx import bridge

from egmae_jax import models
from egmae_jax.core import platform
from egmae_jax.models import registry
from egmae_jax.models.init import initial_variables
from egmae_jax.models.mae import MaskedAutoencoder
from tests import tiny

NAMES = {
    "convnext_atto": "stages_0/blocks_0/conv_dw",
    "convnextv2_atto": "stages_0/blocks_0/fc1",
    "resnet18": "layer1_0/conv1",
    "resnet50": "layer1_0/conv1",
    "squeezenet1_1": "features_3/squeeze",
    "asff_resnet18": "fusion/fc1",
    "autoencoder": "decoder/blocks_0/conv_dw",
}
every_model = pytest.mark.parametrize("name", NAMES)
SLOW = [pytest.mark.slow, pytest.mark.essential]
# Programs are compiled: one network with batch norms and one without are quick tests.
every_program = pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=() if x in ("convnext_atto", "resnet18") else SLOW) for x in NAMES],
)
QUICK = {"xla_backend_optimization_level": 0}  # compiles soon


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(registry.NETWORKS, "entries", dict(registry.NETWORKS.entries))
    tiny.shrink_networks()


def make(name):
    """A network and its inputs."""
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    if name == "autoencoder":
        return MaskedAutoencoder(models.create("convnext_atto", 3), 16), (
            images,
            np.ones((2, 2, 2)),
        )
    return models.create(name, 3), (images,)


def variables_of(model, inputs):
    """Variables whose layer scales do not make every block the identity."""
    shapes = (jax.ShapeDtypeStruct(x.shape, np.float32) for x in inputs)
    variables = initial_variables(model, 0, *shapes, kernel_init="fan_in", layer_scale=0.5)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    for path, leaf in flat.items():
        if path.endswith(("scale", "grn_bias")):
            flat[path] = leaf + np.float32(0.3)
    return variables | {"params": traverse_util.unflatten_dict(flat, sep="/")}


@every_model
def test_init_makes_the_parameters_that_apply_takes(name):
    model, inputs = make(name)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    result, initialized = jax.eval_shape(model.init_with_output, jax.random.key(0), *inputs)
    assert initialized == variables
    assert jax.eval_shape(model.apply, variables, *inputs) == result
    ours = initial_variables(model, 0, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs))
    assert jax.tree.structure(ours) == jax.tree.structure(variables)


@every_model
def test_a_table_lists_every_layer(name):
    model, inputs = make(name)
    table = nn.tabulate(model, jax.random.key(0), console_kwargs={"width": 250})(*inputs)
    assert NAMES[name] in table
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    total = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert f"Total Parameters: {total:,}" in table


@every_program
def test_what_was_initialized_is_computed_with(name):
    """The output while initializing is that of applying the result."""
    model, inputs = make(name)
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles in no time
    program = jax.jit(model.init_with_output, compiler_options=QUICK)
    output, variables = program(key, *inputs)
    again = jax.jit(model.apply, compiler_options=QUICK)(variables, *inputs)
    np.testing.assert_allclose(output, again, rtol=1e-5, atol=1e-6)


@every_program
def test_derivatives_of_every_kind_agree(name):
    """Forward, backward, second derivatives, and the backward rules of our own programs."""
    model, inputs = make(name)
    variables = variables_of(model, inputs)

    def loss(scale):
        """A function of three numbers through which all layers are seen."""
        scaled = jax.tree.map(lambda leaf: leaf * scale[0], variables["params"])
        return jnp.square(
            model.apply(
                variables | {"params": scaled}, inputs[0] * scale[1:, None, None, None], *inputs[1:]
            )
        ).mean()

    @functools.partial(jax.jit, compiler_options=QUICK)
    def derivatives(scale, direction):
        _, tangent = jax.jvp(loss, (scale,), (direction,))
        return tangent, jax.grad(loss)(scale), jax.hessian(loss)(scale)

    scale, direction = jnp.ones(3), jnp.array([0.3, -1.0, 0.5])
    tangent, gradient, hessian = derivatives(scale, direction)
    np.testing.assert_allclose(tangent, gradient @ direction, rtol=1e-3)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-3, atol=1e-3 * np.abs(hessian).max())
    assert np.abs(hessian).max() > 1e-6
    ours = platform.jit(jax.grad(loss))(scale)
    np.testing.assert_allclose(ours, gradient, rtol=1e-3, atol=1e-4 * np.abs(gradient).max())


@pytest.mark.parametrize("name", ["resnet18", pytest.param("asff_resnet18", marks=SLOW)])
def test_batch_norms_in_training_have_forward_derivatives(name):
    model, inputs = make(name)
    variables = variables_of(model, inputs)

    def loss(scale):
        scaled = variables | {"params": jax.tree.map(lambda x: x * scale, variables["params"])}
        logits, _ = model.apply(scaled, *inputs, train=True, mutable=["batch_stats"])
        return jnp.square(logits).mean()

    @functools.partial(jax.jit, compiler_options=QUICK)
    def derivatives(scale):
        return jax.jvp(loss, (scale,), (jnp.ones(()),))[1], jax.grad(loss)(scale)

    tangent, gradient = derivatives(jnp.ones(()))
    np.testing.assert_allclose(tangent, gradient, rtol=1e-3)
    np.testing.assert_allclose(platform.jit(jax.grad(loss))(jnp.ones(())), gradient, rtol=1e-3)


@every_program
def test_stock_adamw_trains(name):
    model, inputs = make(name)
    variables = variables_of(model, inputs)
    optimizer = optax.adamw(1e-3)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, state):
        def loss(params):
            return jnp.square(model.apply(variables | {"params": params}, *inputs) - 1).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return value, optax.apply_updates(params, updates), state

    params, state = variables["params"], optimizer.init(variables["params"])
    losses = []
    for _ in range(3):
        value, params, state = step(params, state)
        losses.append(float(value))
    assert losses[2] < losses[0]


@every_program
def test_the_bridge_to_nnx_computes_the_same(name):
    model, inputs = make(name)
    variables = variables_of(model, inputs)
    bridged = nnx.jit(lambda: bridge.lazy_init(bridge.ToNNX(model, rngs=nnx.Rngs(0)), *inputs))()
    graph, params, statistics, rest = nnx.split(bridged, nnx.Param, nnx.BatchStat, ...)
    nnx.replace_by_pure_dict(params, variables["params"])
    nnx.replace_by_pure_dict(statistics, variables.get("batch_stats", {}))
    bridged = nnx.merge(graph, params, statistics, rest)
    result = nnx.jit(lambda bridged, *inputs: bridged(*inputs))(bridged, *inputs)
    expected = jax.jit(model.apply, compiler_options=QUICK)(variables, *inputs)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
