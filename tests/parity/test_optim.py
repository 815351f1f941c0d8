"""AdamW and its schedules against torch's: parameter groups, layer decay, cosine annealing."""

import jax
import numpy as np
import pytest

from egmae_jax import models
from egmae_jax.training import optim
from tests import torch_reference
from tests.training.toy import DEPTH_GROUPS, LAYERS, draw_leaves, nested, run_optimizer

torch = torch_reference.torch()


def run_torch(schedule, steps, *, weight_decay, betas, layer_decay=1.0, clip_norm=None):
    """A group for every leaf, with its own decay and its own learning rate."""
    params = {path: torch.nn.Parameter(torch.from_numpy(x)) for path, x in draw_leaves(0).items()}
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
        for path, gradient in draw_leaves(step + 1).items():
            params[path].grad = torch.from_numpy(gradient)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), clip_norm)
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
    options = {"layer_decay": layer_decay, "depth_groups": DEPTH_GROUPS}
    optimizer = optim.adamw(
        schedule, nested(draw_leaves(0)), weight_decay=0.3, betas=betas, **options
    )
    theirs = run_torch(schedule, 20, weight_decay=0.3, betas=betas, layer_decay=layer_decay)
    assert_same(run_optimizer(optimizer, 20), theirs, draw_leaves(0))


@pytest.mark.parametrize("clip_norm", [1.0, 13.5, 100.0])  # of norms of about 13.4
def test_gradients_are_clipped_as_torchs(clip_norm):
    schedule = optim.cosine_schedule(0.05, total_steps=20, warmup_steps=4)
    options = {"weight_decay": 0.3, "betas": (0.9, 0.95), "clip_norm": clip_norm}
    optimizer = optim.adamw(schedule, nested(draw_leaves(0)), **options)
    theirs = run_torch(schedule, 20, **options)
    assert_same(run_optimizer(optimizer, 20), theirs, draw_leaves(0))


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
