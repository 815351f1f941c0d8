"""Gradients accumulated over parts of a batch against those of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import FrozenConfigDict

from egmae_jax import models
from egmae_jax.core import sharding
from egmae_jax.data.pipeline import Images
from egmae_jax.models.init import initial_variables
from egmae_jax.training import accumulation, finetune, pretrain
from egmae_jax.training.losses import ClassBalance
from egmae_jax.training.state import TrainState
from tests import tiny
from tests.tiny import flatten

OPTIMIZER = optax.sgd(0.5)  # AdamW would magnify the rounding errors of small gradients
RNG = np.random.default_rng(0)
BATCH = Images(
    RNG.integers(0, 256, (8, 40, 40, 3), np.uint8),
    np.full((8, 2), 40, np.int32),
    RNG.integers(0, 3, 8).astype(np.int32),
)
BATCH.pixels[3:5, :20] = 7  # flat patches, which have no noise and are not scored


def run(step, network, parts, steps=3):
    variables = initial_variables(network, 0, kernel_init="fan_in", layer_scale=0.1)
    state = TrainState.create(variables, OPTIMIZER, sharding.make_mesh())
    program = jax.jit(
        functools.partial(step, config=FrozenConfigDict(make_config(parts))),
        compiler_options={"xla_backend_optimization_level": 0},  # compiles faster
    )
    for number in range(steps):
        state, metrics = program(state, BATCH, jax.random.key(number))
    return flatten(variables), flatten(state.variables), metrics


def make_config(parts):
    return tiny.make_config(
        "data",
        "cache",
        corruption__kind="entropy_topk",  # which draws nothing
        pretrain__accumulation_steps=parts,
        pretrain__clip_norm=1.0,
        finetune__accumulation_steps=parts,
        finetune__label_smoothing=0.1,
        finetune__augment=("mixup(0.4)",),
        finetune__clip_norm=1.0,
    )


def assert_same_steps(step, network):
    start, whole, metrics = run(step, network, 1)
    _, accumulated, accumulated_metrics = run(step, network, 4)
    for name, value in metrics.items():
        np.testing.assert_allclose(accumulated_metrics[name], value, rtol=1e-5, err_msg=name)
    for path, x in whole.items():
        moved = np.abs(x - start[path]).max()
        error = np.abs(accumulated[path] - x).max()
        assert error <= 1e-4 * moved + 1e-7, path
        assert moved > 0, path


@pytest.mark.essential
@pytest.mark.slow
def test_fine_tuning_in_parts_equals_the_whole_batch():
    tiny.register()
    network = models.create(tiny.MODEL, 3)  # without drop path, which draws for each part
    # With unequal weights, parts count by the weights of their classes.
    balance = ClassBalance(weights=np.array([0.5, 1.0, 3.0], np.float32))
    step = functools.partial(
        finetune.finetune_step, model=network, optimizer=OPTIMIZER, balance=balance
    )
    assert_same_steps(step, network)


@pytest.mark.essential
@pytest.mark.slow
def test_pre_training_in_parts_equals_the_whole_batch():
    tiny.register()
    network = pretrain.create_autoencoder(make_config(1))
    step = functools.partial(pretrain.pretrain_step, model=network, optimizer=OPTIMIZER)
    assert_same_steps(step, network)


def test_each_part_counts_by_its_weight():
    """A mean over unequally many numbers in each part, as over the masked pixels."""
    x, weights = jnp.arange(12.0).reshape(4, 3), jnp.array([0.0, 1.0, 2.0, 5.0])

    def loss_fn(a, carry, part, key):
        x, weights = part
        losses = jnp.square(x @ a).ravel() * weights
        total = weights.sum()
        return losses.sum() / jnp.maximum(total, 1), (total, {"count": total}, carry + 1)

    a = jnp.array([0.1, -0.2, 0.3])
    results = [
        accumulation.value_and_gradients(
            loss_fn, a, 0, (x, weights), jax.random.key(0), num_microbatches=parts
        )
        for parts in (1, 2, 4)
    ]
    for parts, (loss, metrics, carry, gradient) in zip((1, 2, 4), results, strict=True):
        np.testing.assert_allclose(loss, results[0][0], rtol=1e-6)
        np.testing.assert_allclose(gradient, results[0][3], rtol=1e-5)
        assert metrics["count"] == weights.sum() / parts
        assert carry == parts


def test_running_statistics_take_the_parts_one_after_the_other():
    tiny.register()
    network = models.create(tiny.RESNET, 3)
    variables = initial_variables(network, 0, kernel_init="fan_in")
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))

    def loss_fn(params, statistics, part, key):
        logits, updated = network.apply(
            {"params": params, "batch_stats": statistics}, part, train=True, mutable=["batch_stats"]
        )
        return jnp.square(logits).mean(), (len(part), {}, updated["batch_stats"])

    params, statistics = variables["params"], variables["batch_stats"]
    step = functools.partial(accumulation.value_and_gradients, loss_fn, num_microbatches=2)
    result = jax.jit(step)(params, statistics, images, jax.random.key(0))
    forward = jax.jit(loss_fn)
    for part in (images[0::2], images[1::2]):
        statistics = forward(params, statistics, part, None)[1][2]
    for path, x in flatten(result[2]).items():
        np.testing.assert_allclose(x, flatten(statistics)[path], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_parts_take_less_memory():
    network = models.create("convnext_atto", 3)
    shapes = jax.eval_shape(lambda: initial_variables(network, 0))
    batch = jax.eval_shape(
        lambda: Images(
            jnp.zeros((16, 64, 64, 3), jnp.uint8),
            jnp.zeros((16, 2), jnp.int32),
            jnp.zeros(16, jnp.int32),
        )
    )
    sizes = {}
    for parts in (1, 8):
        config = make_config(parts)
        config.update_from_flattened_dict({"data.image_size": 64, "finetune.resize": 68})
        step = functools.partial(
            finetune.finetune_step,
            model=network,
            optimizer=OPTIMIZER,
            config=FrozenConfigDict(config),
        )
        state = TrainState(
            jax.ShapeDtypeStruct((), jnp.int32),
            shapes["params"],
            {},
            OPTIMIZER.init(shapes["params"]),
        )
        lowered = jax.jit(step).lower(state, batch, jax.random.key(0))
        sizes[parts] = lowered.compile().memory_analysis().temp_size_in_bytes
    print(sizes)
    assert sizes[8] < 0.5 * sizes[1]
