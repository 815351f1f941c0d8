"""A linear fit, trained by the loop as a network would be, and leaves for an optimizer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from egmae_jax.core import sharding
from egmae_jax.data.pipeline import Images, Resident
from egmae_jax.models.convnext import ConvNeXt
from egmae_jax.run.logs import MetricsLog
from egmae_jax.run.nonfinite import Policy
from egmae_jax.training import loop
from egmae_jax.training.checkpoint import Checkpoints
from egmae_jax.training.state import TrainState

OPTIMIZER = optax.adam(0.1)


def fit_step(state, batch, key):
    """A linear fit of labels from pixels, with noise from the key so that randomness matters."""
    x = batch.pixels.reshape(len(batch), -1).astype(jnp.float32) / 255
    x = x + 0.1 * jax.random.normal(key, x.shape)

    def loss_fn(params):
        return jnp.square(x @ params["w"] - batch.labels).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.update(OPTIMIZER, gradients), {"loss": loss}


def make_images(count=20):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    return Images(pixels, np.full((count, 2), 2), (pixels[:, 0, 0, 0] // 128).astype(np.int32))


def make_variables():
    return {"params": {"w": np.zeros(12, np.float32)}}


def score(variables):
    value = -(float(jnp.abs(variables["params"]["w"]).sum() - 1.0) ** 2)
    return (value,), {"validation_score": value}


def make_plan(images, epochs):
    return loop.Plan("test", 0, 0, [f"{i}.png" for i in range(len(images))], 4, epochs)


def train(
    folder,
    *,
    epochs=4,
    step=fit_step,
    images=None,
    stop_after=None,
    save_seconds=0.0,
    max_skipped=0,
    evaluate=None,
    patience=0,
    averages=False,
):
    """Trains; `stop_after` checkpoints it dies as a killed process would, leaving what it left."""
    images = images or make_images()
    plan = make_plan(images, epochs)
    mesh = sharding.make_mesh()
    log = MetricsLog(folder / "metrics.jsonl")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        if stop_after is not None:
            save, saved = checkpoints.save, []

            def counted(*args):
                save(*args)
                saved.append(args[0])
                if len(saved) == stop_after:
                    raise KeyboardInterrupt

            checkpoints.save = counted
        stage = loop.Stage(
            plan,
            program=loop.compile_steps(step, mesh),
            create=lambda: TrainState.create(make_variables(), OPTIMIZER, mesh, averages=averages),
            feed=lambda: Resident(sharding.replicate(images, mesh), plan.order),
            schedule=optax.constant_schedule(0.1),
            checkpoints=checkpoints,
            save_seconds=save_seconds,
            log=log,
            policy=Policy(folder / "nonfinite", max_skipped),
            evaluate=evaluate or score,
            patience=patience,
        )
        return loop.train(stage)


def read_rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = map(json.loads, lines)
    return [{k: v for k, v in r.items() if k not in ("images_per_second", "time")} for r in rows]


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


DEPTH_GROUPS = ConvNeXt(depths=(2, 2), dims=(4, 8), num_classes=2).depth_groups


def nested(flat):
    return traverse_util.unflatten_dict(flat, sep="/")


def draw_leaves(seed):
    rng = np.random.default_rng(seed)
    return {path: rng.standard_normal((3, 4)).astype(np.float32) for path in LAYERS}


def run_optimizer(optimizer, steps):
    params = nested(draw_leaves(0))
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(nested(draw_leaves(step + 1)), state, params)
        params = optax.apply_updates(params, updates)
    return traverse_util.flatten_dict(params, sep="/")
