"""The programs of GPUs and TPUs, whose forms differ from a CPU's, checked on this machine."""

import functools

import jax
import numpy as np
import pytest
from flax import traverse_util

from egmae_jax import models
from egmae_jax.core import platform, sharding
from egmae_jax.data.pipeline import Images, StreamedSteps
from egmae_jax.models.init import initial_variables
from egmae_jax.run import default_config
from egmae_jax.training import finetune, loop, optim, pretrain
from egmae_jax.training.state import TrainState
from tests import tiny

SIZE, BATCH = 32, 8
ESSENTIAL = [pytest.mark.slow, pytest.mark.essential]
STAGES = [
    ("pretrain", tiny.MODEL),
    pytest.param("finetune", tiny.MODEL, marks=ESSENTIAL),
    pytest.param("finetune", tiny.ASFF, marks=ESSENTIAL),
    pytest.param("finetune", "squeezenet1_1", marks=ESSENTIAL),
]


def trace(stage, name, dtype, target):
    """A training step by a platform's forms, not yet lowered, and what it is called with."""
    jax.clear_caches()  # of what was traced for another platform
    tiny.register()
    config = default_config.get_config()
    config.data.image_size, config.finetune.resize, config.decoder.dim = SIZE, SIZE + 2, 16
    section, model = config[stage], models.create(name, 3, dtype=dtype)
    inputs = [jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.float32)]
    step = finetune.finetune_step
    if stage == "pretrain":
        model = pretrain.MaskedAutoencoder(model, config.decoder.dim, config.decoder.depth)
        inputs.append(jax.ShapeDtypeStruct((1, 2, 2), np.float32))
        step = pretrain.pretrain_step
    variables = initial_variables(model, 0, *inputs, kernel_init="fan_in", layer_scale=0.5)
    optimizer = optim.adamw(
        optim.cosine_schedule(1e-3, total_steps=9, warmup_steps=1),
        variables["params"],
        weight_decay=section.weight_decay,
        betas=section.betas,
    )
    mesh, rng = sharding.make_mesh(), np.random.default_rng(0)
    images = Images(
        rng.integers(0, 256, (1, BATCH, 40, 48, 3)).astype(np.uint8),
        np.tile(np.int32([40, 48]), (1, BATCH, 1)),
        rng.integers(0, 3, (1, BATCH)).astype(np.int32),
    )
    arguments = (
        TrainState.create(variables, optimizer, mesh),
        StreamedSteps(images, 0),
        jax.random.key(1),
        1,
    )
    step = functools.partial(step, model=model, optimizer=optimizer, config=config)
    with platform.tracing_for(target):
        return loop.compile_steps(step, mesh).trace(*arguments), arguments


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="both forms run on a CPU alone")
@pytest.mark.parametrize(("stage", "name"), STAGES)
def test_the_forms_of_a_gpu_train_as_those_of_a_cpu(stage, name):
    runs = []
    for target in ("cpu", "gpu"):
        traced, arguments = trace(stage, name, np.float32, target)
        state, metrics = traced.lower().compile()(*arguments)
        # The first moments are the gradients, whose scale AdamW's step would not tell.
        gradients = traverse_util.flatten_dict(state.opt_state.mu)
        runs.append((float(metrics["loss"][0]), gradients))
    (cpu_loss, cpu), (gpu_loss, gpu) = runs
    assert gpu_loss == pytest.approx(cpu_loss, rel=1e-5)
    assert cpu.keys() == gpu.keys()
    largest = max(np.abs(x).max() for x in cpu.values())
    for path, x in cpu.items():
        # Of the leaf; some are 0 but for rounding, being followed by a norm.
        tolerance = 1e-4 * np.abs(x).max() + 1e-6 * largest
        np.testing.assert_allclose(gpu[path], x, rtol=0, atol=tolerance, err_msg=str(path))


@pytest.mark.parametrize("target", ["gpu", "tpu"])
@pytest.mark.parametrize(("stage", "name"), STAGES)
def test_training_steps_can_be_lowered_for_a_platform_that_is_not_here(stage, name, target):
    traced, _ = trace(stage, name, jax.numpy.bfloat16, target)
    text = traced.lower(lowering_platforms=("cuda" if target == "gpu" else target,)).as_text()
    assert ("optimization_barrier" in text) == (target == "gpu")  # a form of CPUs and GPUs
    assert ("feature_group_count = 8" in text) == (name == tiny.MODEL)
