"""Fine-tuning of a classifier (paper section 3.4): training step and prediction."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from ml_collections import FrozenConfigDict

from egmae_jax import augmentations
from egmae_jax.core import platform, rng
from egmae_jax.data.pipeline import Images
from egmae_jax.method import augment
from egmae_jax.models import Model
from egmae_jax.training import accumulation
from egmae_jax.training.losses import ALIKE, ClassBalance, classification_loss, loss_weight
from egmae_jax.training.state import EVERYTHING, TrainState, merge, partition

PyTree = Any


@platform.with_backward_rules
def finetune_step(
    state: TrainState,
    batch: Images,
    key: jax.Array,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    config: FrozenConfigDict,
    prefixes: tuple[str, ...] = EVERYTHING,
    balance: ClassBalance = ALIKE,
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
        balance: weights and shares of the classes, for losses that use them.

    Returns:
        The new state and the scalar metrics of the batch: "loss", "accuracy", and with
        finetune.clip_norm "gradient_norm", the global norm before clipping.
    """
    settings, keys = config.finetune, StepKeys.split(key)
    with jax.named_scope("augment"):
        images, targets = augmented_batch(batch, keys, config, model.num_classes)
    trained, frozen = partition(state.params, prefixes)
    loss, metrics, batch_stats, gradients = accumulation.value_and_gradients(
        functools.partial(_loss, frozen=frozen, model=model, settings=settings, balance=balance),
        trained,
        state.batch_stats,
        (images, targets),
        (keys.drop_path, keys.dropout),
        num_microbatches=settings.accumulation_steps,
    )
    if settings.clip_norm > 0:
        metrics["gradient_norm"] = optax.global_norm(gradients)
    state = state.update(optimizer, gradients, batch_stats, ema_decay=settings.ema_decay)
    return state, {"loss": loss, **metrics}


def _loss(trained, batch_stats, part, keys, *, frozen, model, settings, balance):
    """Mean loss of a microbatch, for `accumulation.value_and_gradients`."""
    images, targets = part
    variables = {"params": merge(frozen, trained), "batch_stats": batch_stats}
    rngs = {"drop_path": keys[0], "dropout": keys[1]}
    logits, updated = model.apply(  # equation 8
        variables, images, train=True, rngs=rngs, mutable=["batch_stats"]
    )
    # Equations 9 and 10: cross-entropy of the softmax, unless config.finetune.loss is another.
    loss = classification_loss(logits, targets, settings, balance)
    is_right = logits.argmax(axis=-1) == targets.argmax(axis=-1)
    accuracy = platform.join(is_right.astype(jnp.float32)).mean()
    statistics = updated.get("batch_stats", {})
    return loss, (loss_weight(targets, balance), {"accuracy": accuracy}, statistics)


class StepKeys(NamedTuple):
    """Random keys of one step."""

    crop: jax.Array
    flip: jax.Array
    drop_path: jax.Array
    dropout: jax.Array
    noise: jax.Array
    augmentation: jax.Array

    @classmethod
    def split(cls, key: jax.Array) -> "StepKeys":
        """Splits the key of a step."""
        return cls(*rng.split(key, len(cls._fields)))


def augmented_batch(
    batch: Images, keys: StepKeys, config: FrozenConfigDict, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Returns a batch as the network sees it in training.

    Images are resized, cropped and flipped, augmented by finetune.augment, and normalised; then
    noise is added (finetune.input_noise).

    Args:
        batch: uint8 images on canvases [B, H, W, 3 or 1], with their sizes and labels.
        keys: random keys of the step.
        config: the whole config.
        num_classes: number of classes.

    Returns:
        Images float32 [B, S, S, 3], and class probabilities float32 [B, num_classes]; one-hot
        unless images are mixed.
    """
    settings, size = config.finetune, config.data.image_size
    crop = augment.resized_random_crop(keys.crop, batch.sizes, resize=settings.resize, crop=size)
    flip = augment.random_flip(keys.flip, len(batch))
    pixels = augment.resample(batch.pixels, crop, flip, size=size)
    targets = jax.nn.one_hot(batch.labels, num_classes)
    if settings.augment:
        steps = augmentations.parse(settings.augment)
        single_key, mixing_key = jax.random.split(keys.augmentation)
        images = augmentations.apply(single_key, pixels.astype(jnp.float32) / 255, steps)
        images, targets = augmentations.mix(mixing_key, images, targets, steps)
        images = augment.standardize(images)
    else:
        images = augment.normalize(pixels)
    if settings.input_noise > 0:
        images += augment.pixel_noise(keys.noise, images.shape, settings.input_noise)
    return images, targets


def class_probabilities(
    variables: PyTree,
    pixels: jax.Array,
    noise: jax.Array | float = 0.0,
    *,
    model: Model,
    views: Callable[[jax.Array], Sequence[jax.Array]] | None = None,
) -> jax.Array:
    """Predicts the class probabilities of images (paper equation 9).

    Args:
        variables: variables of the classifier.
        pixels: uint8 [B, H, W, 3 or 1], resized and cropped for evaluation.
        noise: noise to add to the normalised images.
        model: the classifier.
        views: for test-time augmentation, returns the views of the pixels, of one shape, over which
            probabilities are averaged; None: the pixels themselves are the only view.

    Returns:
        float32 [B, num_classes].
    """

    def predict(view: jax.Array) -> jax.Array:
        images = augment.normalize(view) + noise
        logits = cast(jax.Array, model.apply(variables, images))
        return jax.nn.softmax(logits, axis=-1)

    if views is None:
        return predict(pixels)
    # A loop, so that the network is compiled once and holds the activations of one view.
    return jax.lax.map(predict, jnp.stack(views(pixels))).mean(axis=0)
