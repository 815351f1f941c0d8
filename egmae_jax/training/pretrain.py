"""Entropy-guided MAE pre-training (paper section 3.3): training step and validation loss."""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import FrozenConfigDict

from egmae_jax import models
from egmae_jax.core import platform, rng
from egmae_jax.data.datasets import DataError
from egmae_jax.data.pipeline import Images
from egmae_jax.method import augment
from egmae_jax.method.corruption import Corruption, corrupt, masked_mse, patch_entropy, to_pixels
from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.training import accumulation
from egmae_jax.training.state import TrainState

PyTree = Any


class Reconstruction(NamedTuple):
    """A batch before and after corruption, and its reconstruction."""

    target: jax.Array  # [B, H, W, 3], the images in normalised units
    entropy: jax.Array  # H: [B, H/P, W/P], in nats
    corruption: Corruption  # the corrupted images, M and sigma
    image: jax.Array | None  # [B, H, W, 3], the reconstruction, normalised; None without a model


def create_autoencoder(config: FrozenConfigDict) -> MaskedAutoencoder:
    """Creates the masked autoencoder of a config."""
    encoder: Any = models.create(  # always a ConvNeXt, as `run.branches` checks
        config.model.name,
        num_classes=1,  # for the head, which the autoencoder leaves out
        dtype=jnp.dtype(config.model.dtype),
        remat=config.model.rematerialize,
    )
    return MaskedAutoencoder(encoder, config.decoder.dim, config.decoder.depth)


@platform.with_backward_rules
def pretrain_step(
    state: TrainState,
    batch: Images,
    key: jax.Array,
    *,
    model: MaskedAutoencoder,
    optimizer: optax.GradientTransformation,
    config: FrozenConfigDict,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Runs one optimizer step: crop, flip, corrupt, reconstruct, update (paper equations 4-7).

    Args:
        state: parameters and optimizer state.
        batch: uint8 images on canvases [B, H, W, 3 or 1], with their sizes.
        key: random key of this step.
        model: the masked autoencoder.
        optimizer: optimizer of all parameters.
        config: the whole config.

    Returns:
        The new state and the scalar metrics "loss", "masked_share", the fraction of masked
        patches, and with pretrain.clip_norm "gradient_norm", the global norm before clipping.
    """
    crop_key, flip_key, corruption_key = rng.split(key, 3)
    with jax.named_scope("augment"):
        crop = augment.random_resized_crop(crop_key, batch.sizes, scale=config.pretrain.crop_scale)
        flip = augment.random_flip(flip_key, len(batch))
        pixels = augment.resample(batch.pixels, crop, flip, size=config.data.image_size)

    def loss_fn(params, _, pixels, key):
        output = reconstruct(params, pixels, key, model=model, config=config, train=True)
        mask = output.corruption.mask
        loss = masked_mse(output.image, output.target, mask, config.corruption.patch_size)  # eq. 7
        return loss, (mask.sum(), {"masked_share": mask.mean()}, {})

    loss, metrics, _, gradients = accumulation.value_and_gradients(
        loss_fn,
        state.params,
        {},
        pixels,
        corruption_key,
        num_microbatches=config.pretrain.accumulation_steps,
    )
    if config.pretrain.clip_norm > 0:
        metrics["gradient_norm"] = optax.global_norm(gradients)
    return state.update(optimizer, gradients), {"loss": loss, **metrics}


def reconstruct(
    params: PyTree,
    pixels: jax.Array,
    key: jax.Array,
    *,
    model: MaskedAutoencoder | None,
    config: FrozenConfigDict,
    train: bool = False,
) -> Reconstruction:
    """Measures the entropy of images, corrupts and reconstructs them (paper equations 4-6).

    Args:
        params: parameters of the masked autoencoder; None uses the initial mask token, 0.
        pixels: uint8 [B, H, W, 3 or 1].
        key: random key of the corruption.
        model: the masked autoencoder; None omits the reconstruction.
        config: the whole config.
        train: whether gradients will be computed.
    """
    entropy = patch_entropy(pixels, config.corruption.patch_size, **config.entropy)
    target = augment.normalize(pixels)
    mask_token = 0.0 if params is None else params["mask_token"]
    corrupted = corrupt(key, target, entropy, **config.corruption, mask_token=mask_token)
    if model is None:
        return Reconstruction(target, entropy, corrupted, None)
    image = model.apply({"params": params}, corrupted.image, corrupted.mask, train=train)
    return Reconstruction(target, entropy, corrupted, cast(jax.Array, image))


def reconstruction_sums(
    params,
    pixels: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    *,
    model: MaskedAutoencoder,
    config: FrozenConfigDict,
) -> dict[str, jax.Array]:
    """Computes the sums over the masked pixels of one batch, for `reconstruction_losses`.

    Args:
        params: parameters of the masked autoencoder.
        pixels: uint8 [B, H, W, 3 or 1], resized and cropped for evaluation.
        valid: float32 [B], 0 for padding.
        key: random key of the corruption.
        model: the masked autoencoder.
        config: the whole config.

    Returns:
        For each channel, [3]: number of masked pixels ("count"), sum of squared errors ("error"),
        of target values ("value") and of squared target values ("square").
    """
    output = reconstruct(params, pixels, key, model=model, config=config)
    target, image, mask = output.target, cast(jax.Array, output.image), output.corruption.mask
    weight = to_pixels(mask, config.corruption.patch_size) * valid[:, None, None, None]
    weight = jnp.broadcast_to(weight, target.shape)
    return {
        "count": weight.sum(axis=(0, 1, 2)),
        "error": (weight * jnp.square(image - target)).sum(axis=(0, 1, 2)),
        "value": (weight * target).sum(axis=(0, 1, 2)),
        "square": (weight * jnp.square(target)).sum(axis=(0, 1, 2)),
    }


def reconstruction_losses(sums: Iterable[dict[str, jax.Array]]) -> dict[str, float]:
    """Computes the mean squared error over all masked pixels from the sums of the batches.

    Args:
        sums: results of `reconstruction_sums`.

    Returns:
        "reconstruction_loss" of the model, and for comparison "mean_colour_loss", the error of
        predicting the mean colour of the masked pixels everywhere.

    Raises:
        DataError: no pixel is masked.
    """
    total = jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), axis=0), *sums)
    count = total["count"].sum()
    if count == 0:
        raise DataError(
            "No patch of the validation images is masked, so pre-training learns nothing: every "
            "patch has a single colour or a noise variance of at most corruption.threshold. Choose "
            "a lower corruption.threshold."
        )
    mean_colour = total["value"] / total["count"]
    mean_colour_error = (total["square"] - total["count"] * mean_colour**2).sum()
    return {
        "reconstruction_loss": float(total["error"].sum() / count),
        "mean_colour_loss": float(mean_colour_error / count),
    }
