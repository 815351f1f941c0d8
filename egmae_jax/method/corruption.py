"""Entropy-guided corruption (paper section 3.3, equation 4) and the loss on masked patches.

    x~[k] = x[k] + eps, eps ~ N(0, H[k])     `corrupt(..., kind="entropy_noise")`, normalised image

All corruptions have the same interface, `corrupt`, so ablations need only a config.
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egmae_jax.core.registry import Registry
from egmae_jax.method.entropy import patch_entropy

__all__ = [
    "Corruption",
    "corrupt",
    "kinds",
    "masked_mse",
    "patch_entropy",
    "register",
    "settings",
    "to_pixels",
]

_CORRUPTIONS: Registry[Callable[..., "Corruption"]] = Registry("corruption")


class Corruption(NamedTuple):
    """Result of a corruption."""

    image: jax.Array  # [B, H, W, C], the corrupted images in normalised units
    mask: jax.Array  # M: [B, H/P, W/P] float32, 1 = masked (scored by the loss), 0 = not
    sigma: jax.Array  # [B, H/P, W/P], the noise's standard deviation; 0 without noise


def to_pixels(patch_values: jax.Array, patch_size: int) -> jax.Array:
    """Gives every pixel its patch's value: [B, H/P, W/P] -> [B, H, W, 1]."""
    x = jnp.repeat(jnp.repeat(patch_values, patch_size, axis=1), patch_size, axis=2)
    return x[..., None]


def register(kind: str) -> Callable[[Callable[..., Corruption]], Callable[..., Corruption]]:
    """Registers the decorated function as a kind of corruption.

    The function takes `key, images, entropy` and the keywords `patch_size, scale, threshold,
    mask_ratio, mask_token`, see `corrupt`, and returns a `Corruption`. It names those that it reads
    and takes the others as `**_`. JAX traces it.

    Args:
        kind: name of the corruption in the config, `corruption.kind`.

    Raises:
        ValueError: a corruption of this module has this name.
    """
    return _CORRUPTIONS.register(kind)


def kinds() -> tuple[str, ...]:
    """Returns the names of all corruptions, starting with the paper's."""
    return _CORRUPTIONS.names()


def settings(kind: str) -> tuple[str, ...]:
    """Returns which of `scale`, `threshold` and `mask_ratio` a kind of corruption reads."""
    known = inspect.signature(_CORRUPTIONS.get(kind)).parameters
    return tuple(name for name in ("scale", "threshold", "mask_ratio") if name in known)


@functools.partial(
    jax.jit, static_argnames=("kind", "patch_size", "scale", "threshold", "mask_ratio")
)
def corrupt(
    key: jax.Array,
    images: jax.Array,
    entropy: jax.Array,
    *,
    kind: str,
    patch_size: int,
    scale: float = 1.0,
    threshold: float = 0.0,
    mask_ratio: float = 0.6,
    mask_token: jax.Array | float = 0.0,
) -> Corruption:
    """Corrupts images by one of `kinds()` (paper section 3.3).

    Args:
        key: random key of the noise or of the choice of patches.
        images: float32 [B, H, W, C], normalised.
        entropy: [B, H/P, W/P], the `patch_entropy` of the same images.
        kind: 'entropy_noise' (the paper), 'shuffled_entropy', 'contrast_noise', 'uniform_noise',
            'entropy_topk', 'entropy_sampled', 'random_mask', or a registered name.
        patch_size: P, in pixels.
        scale: noise variance per unit of entropy; only for kinds that add noise.
        threshold: noise variance above which a patch is masked; only for kinds that add noise.
        mask_ratio: fraction of masked patches; only for kinds that mask.
        mask_token: value that replaces masked pixels, a scalar or [C]; only for kinds that mask.

    Raises:
        ConfigError: `kind` is unknown.
        TypeError: a registered corruption does not return a `Corruption` of the right shapes.
    """
    result = _CORRUPTIONS.get(kind)(
        key,
        images,
        entropy,
        patch_size=patch_size,
        scale=scale,
        threshold=threshold,
        mask_ratio=mask_ratio,
        mask_token=mask_token,
    )
    expected = jax.tree.map(jnp.shape, Corruption(images, entropy, entropy))
    if (shapes := jax.tree.map(jnp.shape, result)) != expected:
        raise TypeError(f"The corruption {kind!r} returned {shapes}; it must return {expected}.")
    return result


@register("entropy_noise")
def entropy_noise(key, images, entropy, *, patch_size, scale, threshold, **_) -> Corruption:
    """Adds Gaussian noise of variance scale * H to each patch (paper equation 4).

    The noise is independent for each pixel and channel. Patches whose variance exceeds the
    threshold are masked.
    """
    return _add_noise(key, images, scale * entropy, patch_size, threshold)


@register("entropy_topk")
def entropy_topk(key, images, entropy, *, patch_size, mask_ratio, mask_token, **_) -> Corruption:
    """Masks the patches of highest entropy."""
    return _mask_highest(images, entropy, patch_size, mask_ratio, mask_token)


@register("entropy_sampled")
def entropy_sampled(key, images, entropy, *, patch_size, mask_ratio, mask_token, **_) -> Corruption:
    """Masks patches drawn without replacement in proportion to their entropy."""
    # The top k of log-weights plus Gumbel noise are such a sample; log 0 = -inf puts flat patches
    # last.
    score = jnp.log(entropy) + jax.random.gumbel(key, entropy.shape)
    return _mask_highest(images, score, patch_size, mask_ratio, mask_token)


@register("random_mask")
def random_mask(key, images, entropy, *, patch_size, mask_ratio, mask_token, **_) -> Corruption:
    """Masks patches drawn uniformly at random."""
    score = jax.random.gumbel(key, entropy.shape)
    return _mask_highest(images, score, patch_size, mask_ratio, mask_token)


@register("uniform_noise")
def uniform_noise(key, images, entropy, *, patch_size, scale, threshold, **_) -> Corruption:
    """Adds noise of equal variance to all patches of an image: the mean of 'entropy_noise'."""
    mean = (scale * entropy).mean(axis=(1, 2), keepdims=True)
    return _add_noise(key, images, jnp.broadcast_to(mean, entropy.shape), patch_size, threshold)


@register("shuffled_entropy")
def shuffled_entropy(key, images, entropy, *, patch_size, scale, threshold, **_) -> Corruption:
    """Adds the variances of 'entropy_noise' to other patches: permuted within each image."""
    noise_key, order_key = jax.random.split(key)
    flat = (scale * entropy).reshape(len(entropy), -1)
    shuffled = jax.random.permutation(order_key, flat, axis=1, independent=True)
    return _add_noise(noise_key, images, shuffled.reshape(entropy.shape), patch_size, threshold)


@register("contrast_noise")
def contrast_noise(key, images, entropy, *, patch_size, scale, threshold, **_) -> Corruption:
    """Adds noise in proportion to each patch's contrast, with the mean of 'entropy_noise'.

    The contrast is the variance of the patch's pixels, averaged over the channels.
    """
    batch, rows, columns = entropy.shape
    patches = images.reshape(batch, rows, patch_size, columns, patch_size, -1)
    contrast = patches.var(axis=(2, 4)).mean(axis=-1)
    ratio = entropy.sum(axis=(1, 2)) / jnp.maximum(contrast.sum(axis=(1, 2)), 1e-12)
    variance = scale * contrast * ratio[:, None, None]
    return _add_noise(key, images, variance, patch_size, threshold)


_CORRUPTIONS.reserve()


def _add_noise(key, images, variance, patch_size, threshold) -> Corruption:
    """Adds Gaussian noise with a variance for each patch, [B, H/P, W/P]."""
    sigma = jnp.sqrt(variance)
    # Drawing a flat array gives the same numbers in half the time on CPU.
    noise = jax.random.normal(key, (images.size,), images.dtype).reshape(images.shape)
    mask = (variance > threshold).astype(jnp.float32)
    return Corruption(images + to_pixels(sigma, patch_size) * noise, mask, sigma)


def _mask_highest(images, score, patch_size, mask_ratio, mask_token) -> Corruption:
    """Masks the round(mask_ratio * h * w) patches of each image that have the highest scores."""
    batch, rows, columns = score.shape
    count = round(mask_ratio * rows * columns)
    _, chosen = jax.lax.top_k(score.reshape(batch, -1), count)
    mask = jnp.zeros((batch, rows * columns), jnp.float32)
    mask = mask.at[jnp.arange(batch)[:, None], chosen].set(1.0).reshape(score.shape)
    image = jnp.where(to_pixels(mask, patch_size) > 0, mask_token, images)
    return Corruption(image, mask, jnp.zeros_like(score))


def masked_mse(
    prediction: jax.Array, target: jax.Array, mask: jax.Array, patch_size: int
) -> jax.Array:
    """Mean squared error over the pixels of masked patches (paper equation 7).

    Args:
        prediction: [B, H, W, C], the reconstructed images.
        target: [B, H, W, C], the images before corruption.
        mask: M, [B, H/P, W/P], 1 for masked patches.
        patch_size: P, in pixels.

    Returns:
        float32 scalar; 0 if no patch is masked.
    """
    squared = jnp.square(prediction.astype(jnp.float32) - target)
    weight = to_pixels(mask, patch_size)
    masked_values = mask.sum() * (patch_size**2 * target.shape[-1])
    return (squared * weight).sum() / jnp.maximum(masked_values, 1.0)
