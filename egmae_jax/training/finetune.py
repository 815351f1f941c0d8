"""Fine-tuning of a classifier (paper section 3.4): training step, prediction, initial variables."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import optax
from flax import traverse_util
from ml_collections import FrozenConfigDict

from egmae_jax.data.pipeline import Images
from egmae_jax.method import augment
from egmae_jax.models import Model
from egmae_jax.training.state import EVERYTHING, TrainState, merge, partition

PyTree = Any


def finetune_step(
    state: TrainState,
    batch: Images,
    key: jax.Array,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    config: FrozenConfigDict,
    prefixes: tuple[str, ...] = EVERYTHING,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Runs one optimizer step: resize, crop, flip, classify, update (paper equations 8-10).

    Args:
        state: parameters, running statistics and optimizer state.
        batch: uint8 images on canvases [B, H, W, 3 or 1], with their sizes and labels.
        key: random key of this step.
        model: the classifier.
        optimizer: optimizer of the trainable parameters.
        config: the whole config.
        prefixes: path prefixes of the trainable parameters. Gradients are only computed down to the
            lowest of their layers.

    Returns:
        The new state and the scalar metrics "loss" and "accuracy" of the batch.
    """
    crop_key, flip_key, drop_path_key, dropout_key, noise_key = jax.random.split(key, 5)
    images = _augment(batch, crop_key, flip_key, noise_key, config)
    trained, frozen = partition(state.params, prefixes)

    def loss_fn(trained):
        variables = {"params": merge(frozen, trained), "batch_stats": state.batch_stats}
        rngs = {"drop_path": drop_path_key, "dropout": dropout_key}
        logits, updated = model.apply(  # equation 8
            variables, images, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        # Equations 9 and 10: cross-entropy of the softmax.
        targets = jax.nn.one_hot(batch.labels, logits.shape[-1])
        targets = optax.smooth_labels(targets, config.finetune.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        return loss, (logits, updated.get("batch_stats", {}))

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(trained)
    accuracy = (logits.argmax(axis=-1) == batch.labels).mean()
    state = state.update(optimizer, gradients, batch_stats)
    return state, {"loss": loss, "accuracy": accuracy}


def _augment(
    batch: Images,
    crop_key: jax.Array,
    flip_key: jax.Array,
    noise_key: jax.Array,
    config: FrozenConfigDict,
) -> jax.Array:
    """Resizes, crops, flips and normalises images and adds noise; float32 [B, H, W, 3]."""
    crop = augment.resized_random_crop(
        crop_key, batch.sizes, resize=config.finetune.resize, crop=config.data.image_size
    )
    flip = augment.random_flip(flip_key, len(batch))
    pixels = augment.resample(batch.pixels, crop, flip, size=config.data.image_size)
    images = augment.normalize(pixels)
    if config.finetune.input_noise > 0:
        images += augment.pixel_noise(noise_key, images.shape, config.finetune.input_noise)
    return images


def class_probabilities(
    variables: PyTree, pixels: jax.Array, noise: jax.Array | float = 0.0, *, model: Model
) -> jax.Array:
    """Predicts the class probabilities of images (paper equation 9).

    Args:
        variables: variables of the classifier.
        pixels: uint8 [B, H, W, 3 or 1], resized and cropped for evaluation.
        noise: noise to add to the normalised images.
        model: the classifier.

    Returns:
        float32 [B, num_classes].
    """
    images = augment.normalize(pixels) + noise
    logits = cast(jax.Array, model.apply(variables, images))
    return jax.nn.softmax(logits, axis=-1)


def start_from(fresh: PyTree, pretrained: PyTree, *, keep_fresh: Sequence[str]) -> PyTree:
    """Returns the variables at the start of fine-tuning: pre-trained ones with a new head.

    Args:
        fresh: initial variables of the classifier, {"params": ..., "batch_stats": ...}.
        pretrained: pre-trained variables.
        keep_fresh: path prefixes of the leaves to take from `fresh`, such as 'head/'. `pretrained`
            must have all other leaves, with the same shapes, and no further ones.

    Raises:
        ValueError: leaves are missing, extra or of another shape; the message names all of them.
    """
    kept = tuple(f"{collection}/{prefix}" for collection in fresh for prefix in keep_fresh)
    flat_fresh, flat_pretrained = (
        traverse_util.flatten_dict(tree, sep="/") for tree in (fresh, pretrained)
    )
    expected, actual = (
        {path: leaf for path, leaf in flat.items() if not path.startswith(kept)}
        for flat in (flat_fresh, flat_pretrained)
    )
    require_fit(expected, actual)
    return traverse_util.unflatten_dict(flat_fresh | actual, sep="/")


def require_fit(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    """Checks that two sets of leaves, by path, have the same paths and shapes.

    Raises:
        ValueError: leaves are missing, extra or of another shape; the message names all of them.
    """
    problems = [f"missing: {path} {x.shape}" for path, x in expected.items() if path not in actual]
    problems += [f"extra: {path} {x.shape}" for path, x in actual.items() if path not in expected]
    problems += [
        f"shape: {path} is {actual[path].shape}, the model's is {leaf.shape}"
        for path, leaf in expected.items()
        if path in actual and actual[path].shape != leaf.shape
    ]
    if problems:
        raise ValueError("The pre-trained variables do not fit:\n  " + "\n  ".join(problems))
