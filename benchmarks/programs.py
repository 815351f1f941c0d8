"""The programs of a run with shapes instead of arrays: training steps and inference."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import FrozenConfigDict

from benchmarks.inputs import NUM_CLASSES, make_images
from egmae_jax import models
from egmae_jax.core import sharding
from egmae_jax.data.pipeline import MAX_STEPS, Images, ResidentSteps
from egmae_jax.models.init import abstract_variables
from egmae_jax.run import branches, default_config
from egmae_jax.training import finetune, optim, pretrain
from egmae_jax.training.state import TrainState

PyTree = Any
SECTIONS = {"train": "finetune", "pretrain": "pretrain"}  # of the config, by training work


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step and the shapes of its state."""

    function: Callable
    state: TrainState


def make_config(model: str, image_size: int, **model_fields: Any) -> FrozenConfigDict:
    """Returns the default recipe at another size; `model_fields` such as dtype='bfloat16'."""
    config = default_config.get_config()
    config.update_from_flattened_dict({f"model.{name}": x for name, x in model_fields.items()})
    config.model.name = model
    config.data.image_size = image_size
    return FrozenConfigDict(config)


def make_step(work: str, config: FrozenConfigDict) -> Step:
    """Returns the step of 'train' or 'pretrain', from shapes alone."""
    size, patch = config.data.image_size, config.corruption.patch_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    section = config[SECTIONS[work]]
    if work == "pretrain":
        model: Any = pretrain.create_autoencoder(config)
        mask = jax.ShapeDtypeStruct((1, size // patch, size // patch), np.float32)
        inputs, function = (image, mask), pretrain.pretrain_step
    else:
        branch = branches.Branch("imagenet", config.model.name)
        model = branches.classifier(branch, config, NUM_CLASSES)
        inputs, function = (image,), finetune.finetune_step
    variables = abstract_variables(model, *inputs)
    params = variables["params"]
    schedule = optim.cosine_schedule(section.learning_rate, total_steps=10**6, warmup_steps=10)
    optimizer = optim.adamw(
        schedule, params, weight_decay=section.weight_decay, betas=section.betas
    )
    state = TrainState(
        jax.ShapeDtypeStruct((), np.int32),
        params,
        variables.get("batch_stats", {}),
        jax.eval_shape(optimizer.init, params),
    )
    function = functools.partial(function, model=model, optimizer=optimizer, config=config)
    return Step(function, state)


def classifier_variables(config: FrozenConfigDict) -> tuple[Any, PyTree]:
    """Returns the classifier and the shapes of its variables, for inference."""
    dtype = np.dtype(config.model.dtype)
    model = models.create(config.model.name, NUM_CLASSES, dtype=dtype)
    size = config.data.image_size
    return model, abstract_variables(model, jax.ShapeDtypeStruct((1, size, size, 3), np.float32))


def batch_shapes(batch: int, size: int) -> Images:
    """Returns the shapes of random images, somewhat larger than the crops."""
    one = make_images(1, size)
    return Images(*(jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in one))


def resident_steps(batch: int, size: int, mesh: Mesh) -> ResidentSteps:
    """Returns the shapes of a feed whose images, ten batches, are on every device."""
    images = _with_sharding(batch_shapes(10 * batch, size), sharding.replicated(mesh))
    indices = jax.ShapeDtypeStruct((MAX_STEPS, batch), np.int32)
    return ResidentSteps(images, _with_sharding(indices, sharding.replicated(mesh)))


def placed(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns the shapes of parameters or optimizer state, sharded as in a run."""
    return jax.tree.map(_with_sharding, tree, sharding.state_shardings(tree, mesh))


def replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns shapes of arrays that every device has in full."""
    return _with_sharding(tree, sharding.replicated(mesh))


def split(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns shapes of arrays whose first axis is split over the devices."""
    return _with_sharding(tree, NamedSharding(mesh, P(("data", "fsdp"))))


def _with_sharding(tree: PyTree, where: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
