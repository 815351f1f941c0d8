"""Entropy-guided corruption (paper section 3.3, equation 4) and the loss on what it masks.

    x~[k] = x[k] + eps, eps ~ N(0, H[k])     `corrupt(..., kind="entropy_noise")`, normalised image

All corruptions stand behind one function, so that the ablation is a config.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egmae_jax.method.entropy import patch_entropy

__all__ = ["Corruption", "corrupt", "kinds", "masked_mse", "patch_entropy", "register", "to_pixels"]

_CORRUPTIONS: dict[str, Callable[..., "Corruption"]] = {}  # by kind


class Corruption(NamedTuple):
    """What a corruption returns."""

    image: jax.Array  # [B, H, W, C], corrupted, normalised units
    mask: jax.Array  # M: [B, H/P, W/P] float32, 1 = masked (scored by the loss), 0 = not
    sigma: jax.Array  # [B, H/P, W/P], the noise's standard deviation; 0 where none is added


def to_pixels(patch_values: jax.Array, patch_size: int) -> jax.Array:
    """[B, H/P, W/P] -> [B, H, W, 1]: every pixel gets its patch's value."""
    x = jnp.repeat(jnp.repeat(patch_values, patch_size, axis=1), patch_size, axis=2)
    return x[..., None]


def register(kind: str) -> Callable[[Callable[..., Corruption]], Callable[..., Corruption]]:
    """Decorates a corruption, so that `corruption.kind` may name it.

    The function takes `key, images, entropy` and the keywords `patch_size, scale, threshold,
    mask_ratio, mask_token`, which `corrupt` describes, and returns a `Corruption`. JAX traces it.
    """

    def add(function: Callable[..., Corruption]) -> Callable[..., Corruption]:
        _CORRUPTIONS[kind] = function
        return function

    return add


def kinds() -> tuple[str, ...]:
    """The names of all corruptions, the paper's first."""
    return tuple(_CORRUPTIONS)


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
    """Corrupts images by one of `kinds()`.

    Args:
        key: random key of the noise, or of the choice of patches.
        images: float32 [B, H, W, C], normalised.
        entropy: [B, H/P, W/P] of `patch_entropy`, of the same images.
        kind: 'entropy_noise' (the paper), 'uniform_noise', 'entropy_topk', 'entropy_sampled',
            'random_mask', or a registered one.
        patch_size: P, in pixels.
        scale: noise variance per unit of entropy; the noise kinds read it.
        threshold: a patch is masked where its noise variance exceeds this; the noise kinds read it.
        mask_ratio: share of masked patches; the mask kinds read it.
        mask_token: value(s) that replace masked pixels, a scalar or [C]; the mask kinds read it.

    Raises:
        ValueError: `kind` is unknown.
    """
    if kind not in _CORRUPTIONS:
        raise ValueError(f"corruption.kind must be one of {', '.join(kinds())}; got {kind!r}.")
    return _CORRUPTIONS[kind](
        key,
        images,
        entropy,
        patch_size=patch_size,
        scale=scale,
        threshold=threshold,
        mask_ratio=mask_ratio,
        mask_token=mask_token,
    )


@register("entropy_noise")
def entropy_noise(key, images, entropy, *, patch_size, scale, threshold, **_) -> Corruption:
    """Gaussian noise of variance scale * H on each patch, independent by pixel and channel (eq. 4).

    A patch is masked where its variance exceeds the threshold.
    """
    return _add_noise(key, images, scale * entropy, patch_size, threshold)


@register("entropy_topk")
def entropy_topk(key, images, entropy, *, patch_size, mask_ratio, mask_token, **_) -> Corruption:
    """Masks the patches of highest entropy."""
    return _mask_highest(images, entropy, patch_size, mask_ratio, mask_token)


@register("entropy_sampled")
def entropy_sampled(key, images, entropy, *, patch_size, mask_ratio, mask_token, **_) -> Corruption:
    """Masks patches drawn without replacement in proportion to their entropy."""
    # Gumbel noise on log-weights makes the top k such a draw. log 0 = -inf: flat patches come last.
    score = jnp.log(entropy) + jax.random.gumbel(key, entropy.shape)
    return _mask_highest(images, score, patch_size, mask_ratio, mask_token)


@register("random_mask")
def random_mask(key, images, entropy, *, patch_size, mask_ratio, mask_token, **_) -> Corruption:
    """Masks patches drawn uniformly."""
    score = jax.random.gumbel(key, entropy.shape)
    return _mask_highest(images, score, patch_size, mask_ratio, mask_token)


@register("uniform_noise")
def uniform_noise(key, images, entropy, *, patch_size, scale, threshold, **_) -> Corruption:
    """The mean noise variance of 'entropy_noise' in each image, on all of its patches alike."""
    mean = (scale * entropy).mean(axis=(1, 2), keepdims=True)
    return _add_noise(key, images, jnp.broadcast_to(mean, entropy.shape), patch_size, threshold)


def _add_noise(key, images, variance, patch_size, threshold) -> Corruption:
    """Gaussian noise of a variance for each patch, [B, H/P, W/P]."""
    sigma = jnp.sqrt(variance)
    # Drawn in one row: the same numbers as in the images' shape, in half the time on CPU.
    noise = jax.random.normal(key, (images.size,), images.dtype).reshape(images.shape)
    mask = (variance > threshold).astype(jnp.float32)
    return Corruption(images + to_pixels(sigma, patch_size) * noise, mask, sigma)


def _mask_highest(images, score, patch_size, mask_ratio, mask_token) -> Corruption:
    """Replaces the round(mask_ratio * h * w) patches of each image with the highest scores."""
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
    """Mean squared error over the pixels of masked patches (paper equation 7); 0 without any.

    Args:
        prediction: [B, H, W, C].
        target: [B, H, W, C], the image before corruption.
        mask: M, [B, H/P, W/P].
        patch_size: P, in pixels.
    """
    squared = jnp.square(prediction.astype(jnp.float32) - target)
    weight = to_pixels(mask, patch_size)
    masked_values = weight.sum() * target.shape[-1]
    return (squared * weight).sum() / jnp.maximum(masked_values, 1.0)
