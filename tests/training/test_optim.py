"""Which layers learn at which rate, and the schedule's ends; tests/parity compares with PyTorch."""

import math

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from egmae_jax import models
from egmae_jax.training import optim
from egmae_jax.training.state import partition, restrict
from tests.training.toy import DEPTH_GROUPS, LAYERS, draw_leaves, nested, run_optimizer


def test_leaves_that_train_alone_step_as_they_do_among_all():
    """Frozen layers still count: what trains keeps its distance from the head."""
    schedule = optim.cosine_schedule(0.05, total_steps=20, warmup_steps=4)
    prefixes = ("stages_0/blocks_0/", "stages_1/blocks_0/", "head/")
    options = {"weight_decay": 0.3, "layer_decay": 0.7, "depth_groups": DEPTH_GROUPS}
    optimizer = optim.adamw(schedule, nested(draw_leaves(0)), **options)
    together = run_optimizer(optimizer, 5)
    params = partition(nested(draw_leaves(0)), prefixes)[0]
    state = optimizer.init(params)
    for step in range(5):
        gradients = restrict(nested(draw_leaves(step + 1)), params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    alone = traverse_util.flatten_dict(params, sep="/")
    assert alone.keys() == {path for path in LAYERS if path.startswith(prefixes)}
    for path, x in alone.items():
        np.testing.assert_allclose(x, together[path], rtol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("squeezenet1_1", [f"features_{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)]),
        ("asff_resnet18", [f"layer{s}_{i}" for s in (1, 2, 3, 4) for i in (0, 1)]),
    ],
)
def test_blocks_of_other_backbones_are_layers(name, blocks):
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    model = models.create(name, 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    factors = optim.layer_rate_factors(shapes, 0.5, model.depth_groups)
    for path, scale in traverse_util.flatten_dict(factors, sep="/").items():
        block = path.split("/")[0]
        above = len(blocks) - blocks.index(block) if block in blocks else None
        if block in ("stem", "features_0"):
            above = len(blocks) + 1
        assert -math.log2(scale) == (above or 0), path


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 5), (4, 4)])
def test_a_warmup_longer_than_the_run_still_trains(total, warmup):
    schedule = optim.cosine_schedule(0.3, total_steps=total, warmup_steps=warmup)
    rates = [float(schedule(step)) for step in range(total)]
    assert all(0 < rate <= 0.3 + 1e-6 for rate in rates)
    assert max(rates) == pytest.approx(0.3)
