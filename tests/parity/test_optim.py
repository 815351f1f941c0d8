"""AdamW and its schedules against torch's: parameter groups, layer decay, cosine annealing."""

import math

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from egmae_jax import models
from egmae_jax.training import optim
from egmae_jax.training.state import partition, restrict
from tests import torch_reference

torch = torch_reference.torch()

# Leaves of a network of two stages with two blocks each, and the layer each belongs to: the stem
# is 0, blocks are 1 to 4 (the downsampling goes with the block after it), the head is 5.
LAYERS = {
    "stem/conv/kernel": 0,
    "stem/conv/bias": 0,
    "stem/norm/scale": 0,
    "stages_0/blocks_0/conv_dw/kernel": 1,
    "stages_0/blocks_0/gamma": 1,
    "stages_0/blocks_1/fc1/kernel": 2,
    "stages_0/blocks_1/fc1/bias": 2,
    "stages_1/downsample/norm/scale": 3,
    "stages_1/downsample/conv/kernel": 3,
    "stages_1/blocks_0/fc2/kernel": 3,
    "stages_1/blocks_1/fc2/kernel": 4,
    "stages_1/blocks_1/norm/bias": 4,
    "head/norm/scale": 5,
    "head/fc/kernel": 5,
    "head/fc/bias": 5,
}


def nested(flat):
    return traverse_util.unflatten_dict(flat, sep="/")


def toy(seed):
    rng = np.random.default_rng(seed)
    return {path: rng.standard_normal((3, 4)).astype(np.float32) for path in LAYERS}


def run_ours(optimizer, steps):
    params = nested(toy(0))
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(nested(toy(step + 1)), state, params)
        params = optax.apply_updates(params, updates)
    return traverse_util.flatten_dict(params, sep="/")


def run_torch(schedule, steps, *, weight_decay, betas, layer_decay=1.0):
    """A group for every leaf, with its own decay and its own learning rate."""
    params = {path: torch.nn.Parameter(torch.from_numpy(x)) for path, x in toy(0).items()}
    groups = [
        {
            "params": [parameter],
            "weight_decay": weight_decay if path.endswith("/kernel") else 0.0,
            "factor": layer_decay ** (5 - LAYERS[path]),
        }
        for path, parameter in params.items()
    ]
    optimizer = torch.optim.AdamW(groups, betas=betas)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(step)) * group["factor"]
        for path, gradient in toy(step + 1).items():
            params[path].grad = torch.from_numpy(gradient)
        optimizer.step()
    return {path: parameter.detach().numpy() for path, parameter in params.items()}


def assert_same(ours, theirs, moved_from):
    assert ours.keys() == theirs.keys()
    for path in theirs:
        np.testing.assert_allclose(ours[path], theirs[path], rtol=2e-6, atol=1e-6, err_msg=path)
        assert not np.allclose(theirs[path], moved_from[path], atol=1e-3), path


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95)])
def test_twenty_steps_are_torchs_with_decay_of_kernels_only(betas, layer_decay):
    schedule = optim.cosine_schedule(0.05, total_steps=20, warmup_steps=4)
    optimizer = optim.adamw(
        schedule, nested(toy(0)), weight_decay=0.3, betas=betas, layer_decay=layer_decay
    )
    theirs = run_torch(schedule, 20, weight_decay=0.3, betas=betas, layer_decay=layer_decay)
    assert_same(run_ours(optimizer, 20), theirs, toy(0))


def test_leaves_that_train_alone_step_as_they_do_among_all():
    """Frozen layers still count: what trains keeps its distance from the head."""
    schedule = optim.cosine_schedule(0.05, total_steps=20, warmup_steps=4)
    prefixes = ("stages_0/blocks_0/", "stages_1/blocks_0/", "head/")
    optimizer = optim.adamw(schedule, nested(toy(0)), weight_decay=0.3, layer_decay=0.7)
    together = run_ours(optimizer, 5)
    params = partition(nested(toy(0)), prefixes)[0]
    state = optimizer.init(params)
    for step in range(5):
        gradients = restrict(nested(toy(step + 1)), params)
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
    shapes = jax.eval_shape(models.create(name, 3).init, jax.random.key(0), image)["params"]
    for path, scale in traverse_util.flatten_dict(
        optim.layer_rate_factors(shapes, 0.5), sep="/"
    ).items():
        block = path.split("/")[0]
        above = len(blocks) - blocks.index(block) if block in blocks else None
        if block in ("stem", "features_0"):
            above = len(blocks) + 1
        assert -math.log2(scale) == (above or 0), path


def test_what_decays_is_what_timm_decays():
    timm = torch_reference.timm()
    timm_optim = pytest.importorskip("timm.optim")
    with torch.device("meta"):
        theirs = timm.create_model("convnext_atto", num_classes=3)
    undecayed, decayed = timm_optim.param_groups_weight_decay(theirs, weight_decay=0.05)
    assert (undecayed["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(models.create("convnext_atto", 3).init, jax.random.key(0), image)
    mask = jax.tree.leaves(optim.decay_mask(shapes["params"]))
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes["params"])]
    for group, decays in ((decayed, True), (undecayed, False)):
        ours = sorted(size for size, m in zip(sizes, mask, strict=True) if m == decays)
        assert ours == sorted(p.numel() for p in group["params"])


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 5), (4, 4)])
def test_a_warmup_longer_than_the_run_still_trains(total, warmup):
    schedule = optim.cosine_schedule(0.3, total_steps=total, warmup_steps=warmup)
    rates = [float(schedule(step)) for step in range(total)]
    assert all(0 < rate <= 0.3 + 1e-6 for rate in rates)
    assert max(rates) == pytest.approx(0.3)
