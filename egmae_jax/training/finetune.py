"""Fine-tuning of a classifier (paper section 3.4): one step, prediction, and where it starts."""

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
    """One optimizer step: resize, crop, flip, classify, update (equations 8-10).

    Args:
        state: parameters, running statistics and optimizer state.
        batch: uint8 images on a canvas, [B, H, W, 3 or 1], with sizes and labels.
        key: random key of this step.
        model: the classifier.
        optimizer: transforms the gradients of the parameters that train into updates.
        config: the whole config.
        prefixes: path prefixes of the parameters that train. Below the lowest of them no gradient
            is computed.

    Returns:
        The new state and {"loss", "accuracy"} of the batch, scalars.
    """
    crop_key, flip_key, drop_path_key, dropout_key, noise_key = jax.random.split(key, 5)
    images = _augmented(batch, crop_key, flip_key, noise_key, config)
    trained, frozen = partition(state.params, prefixes)

    def loss_fn(trained):
        variables = {"params": merge(frozen, trained), "batch_stats": state.batch_stats}
        rngs = {"drop_path": drop_path_key, "dropout": dropout_key}
        logits, changes = model.apply(  # equation 8
            variables, images, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        # Equations 9 and 10: cross-entropy of the softmax.
        targets = jax.nn.one_hot(batch.labels, logits.shape[-1])
        targets = optax.smooth_labels(targets, config.finetune.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        return loss, (logits, changes.get("batch_stats", {}))

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(trained)
    accuracy = (logits.argmax(axis=-1) == batch.labels).mean()
    state = state.update(optimizer, gradients, batch_stats)
    return state, {"loss": loss, "accuracy": accuracy}


def _augmented(
    batch: Images,
    crop_key: jax.Array,
    flip_key: jax.Array,
    noise_key: jax.Array,
    config: FrozenConfigDict,
) -> jax.Array:
    """Normalised images [B, H, W, 3], resized, cropped, flipped and made noisy at random."""
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
    """Class probabilities of images in the evaluation view (equation 9).

    Args:
        variables: variables of the classifier.
        pixels: uint8 [B, H, W, 3 or 1].
        noise: added to the normalised images.
        model: the classifier.

    Returns:
        [B, num_classes].
    """
    images = augment.normalize(pixels) + noise
    logits = cast(jax.Array, model.apply(variables, images))
    return jax.nn.softmax(logits, axis=-1)


def start_from(fresh: PyTree, pretrained: PyTree, *, keep_fresh: Sequence[str]) -> PyTree:
    """Variables to start fine-tuning from: the pre-trained ones below a fresh head.

    Args:
        fresh: initial variables of the classifier, {"params": ..., "batch_stats": ...}.
        pretrained: the variables that pre-training left.
        keep_fresh: path prefixes of the leaves that stay fresh, such as 'head/'. All others must be
            in `pretrained`, with the same shape, and nothing else may be.

    Raises:
        ValueError: names every leaf that is missing, extra or of another shape.
    """
    kept = tuple(f"{collection}/{prefix}" for collection in fresh for prefix in keep_fresh)
    ours, theirs = (traverse_util.flatten_dict(tree, sep="/") for tree in (fresh, pretrained))
    needed, given = (
        {path: leaf for path, leaf in flat.items() if not path.startswith(kept)}
        for flat in (ours, theirs)
    )
    require_fit(needed, given)
    return traverse_util.unflatten_dict(ours | given, sep="/")


def require_fit(needed: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compares leaves by their paths.

    Raises:
        ValueError: names every leaf that is missing, extra or of another shape.
    """
    problems = [f"missing: {path} {x.shape}" for path, x in needed.items() if path not in given]
    problems += [f"extra: {path} {x.shape}" for path, x in given.items() if path not in needed]
    problems += [
        f"shape: {path} is {given[path].shape}, the model's is {leaf.shape}"
        for path, leaf in needed.items()
        if path in given and given[path].shape != leaf.shape
    ]
    if problems:
        raise ValueError("The pre-trained variables do not fit:\n  " + "\n  ".join(problems))
