"""Entropy-guided MAE pre-training (paper section 3.3): one step, and what it reaches."""

from collections.abc import Iterable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import FrozenConfigDict

from egmae_jax import augment
from egmae_jax.corruption import Corruption, corrupt, masked_mse, patch_entropy, to_pixels
from egmae_jax.data.datasets import DataError
from egmae_jax.data.pipeline import Images
from egmae_jax.loop import TrainState
from egmae_jax.models.mae import MaskedAutoencoder


def pretrain_step(
    state: TrainState,
    batch: Images,
    key: jax.Array,
    *,
    model: MaskedAutoencoder,
    optimizer: optax.GradientTransformation,
    config: FrozenConfigDict,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step: crop, corrupt, reconstruct, update.

    Args:
        state: parameters and optimizer state.
        batch: uint8 images on a canvas, [B, H, W, 3 or 1], with their sizes.
        key: of this step.
        model: the masked autoencoder.
        optimizer: its optimizer.
        config: the whole config.

    Returns:
        The new state and {"loss", "masked_share"}, scalars.
    """
    crop_key, flip_key, corruption_key = jax.random.split(key, 3)
    crop = augment.random_resized_crop(
        crop_key, batch.sizes, scale=config.pretrain.crop_scale, ratio=config.pretrain.crop_ratio
    )
    flip = augment.random_flip(flip_key, len(batch))
    pixels = augment.resample(batch.pixels, crop, flip, size=config.data.image_size)
    target = augment.normalize(pixels)

    def loss_fn(params):
        corrupted = _corrupt(corruption_key, pixels, params["mask_token"], config)
        reconstruction = model.apply(
            {"params": params}, corrupted.image, corrupted.mask, train=True
        )
        loss = masked_mse(reconstruction, target, corrupted.mask, config.corruption.patch_size)
        return loss, corrupted.mask.mean()

    (loss, masked_share), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.update(optimizer, gradients), {"loss": loss, "masked_share": masked_share}


def _corrupt(
    key: jax.Array, pixels: jax.Array, mask_token: jax.Array, config: FrozenConfigDict
) -> Corruption:
    entropy = patch_entropy(
        pixels,
        config.corruption.patch_size,
        num_bins=config.entropy.num_bins,
        color=config.entropy.color,
    )
    return corrupt(
        key,
        augment.normalize(pixels),
        entropy,
        kind=config.corruption.kind,
        patch_size=config.corruption.patch_size,
        scale=config.corruption.scale,
        threshold=config.corruption.threshold,
        mask_ratio=config.corruption.mask_ratio,
        mask_token=mask_token,
    )


def reconstruction_sums(
    params,
    pixels: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    *,
    model: MaskedAutoencoder,
    config: FrozenConfigDict,
) -> dict[str, jax.Array]:
    """Sums over the masked pixels of one evaluation batch, for `reconstruction_losses`.

    Args:
        params: of the masked autoencoder.
        pixels: uint8 [B, H, W, 3 or 1], the evaluation view.
        valid: float32 [B], 0 for padding.
        key: of the corruption.
        model: the masked autoencoder.
        config: the whole config.
    """
    target = augment.normalize(pixels)
    corrupted = _corrupt(key, pixels, params["mask_token"], config)
    reconstruction = cast(
        jax.Array, model.apply({"params": params}, corrupted.image, corrupted.mask)
    )
    weight = to_pixels(corrupted.mask, config.corruption.patch_size) * valid[:, None, None, None]
    weight = jnp.broadcast_to(weight, target.shape)
    return {
        "count": weight.sum(axis=(0, 1, 2)),  # [3], a value a channel, as all of these
        "error": (weight * jnp.square(reconstruction - target)).sum(axis=(0, 1, 2)),
        "value": (weight * target).sum(axis=(0, 1, 2)),
        "square": (weight * jnp.square(target)).sum(axis=(0, 1, 2)),
    }


def reconstruction_losses(sums: Iterable[dict[str, jax.Array]]) -> dict[str, float]:
    """Mean squared error over masked pixels, and that of always predicting their mean colour.

    Raises:
        DataError: no pixel is masked.
    """
    total = jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), axis=0), *sums)
    count = total["count"].sum()
    if count == 0:
        raise DataError(
            "No patch of the validation images is masked, so pre-training learns nothing: each is "
            "of one colour, or its noise variance is below corruption.threshold."
        )
    mean_colour = total["value"] / total["count"]
    mean_colour_error = (total["square"] - total["count"] * mean_colour**2).sum()
    return {
        "reconstruction_loss": float(total["error"].sum() / count),
        "mean_colour_loss": float(mean_colour_error / count),
    }
