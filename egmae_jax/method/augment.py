"""On-device augmentation: crop, resize, flip and normalise uint8 images inside the jitted step.

The geometry is torchvision's, the resampling Pillow's (antialiased bilinear), up to the rounding of
8-bit intermediates. Images come on a common canvas, each in its upper left corner, with its true
size beside it. Every example has its own random numbers, drawn by position in the batch, so a step
on eight devices takes the same crops as a step on one.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egmae_jax.core.platform import for_cpu, materialize

# Of ImageNet, in units of pixel value / 255 (paper section 4.2).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Crop(NamedTuple):
    """A rectangle of each image and the pixels that resampling may look at, all float32 [B]."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array
    # Half-open bounds of the pixels that may be read: the rectangle itself where the image is cut
    # before it is resized, the whole image where it is resized before it is cut.
    bounds: tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # top, bottom, left, right


def normalize(images: jax.Array) -> jax.Array:
    """uint8 [..., 3] -> float32 [..., 3] with ImageNet's mean and standard deviation.

    Of grey images [..., 1] all three channels are made.
    """
    return (images.astype(jnp.float32) / 255.0 - jnp.array(MEAN)) / jnp.array(STD)


def pixel_noise(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
    """Gaussian noise for normalised images [..., 3].

    Args:
        key: random key.
        shape: shape of the images.
        std: standard deviation as a share of the pixels' range, before normalisation.
    """
    return std / jnp.array(STD) * jax.random.normal(key, shape)


def random_resized_crop(
    key: jax.Array,
    sizes: jax.Array,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Crop:
    """Rectangles as torchvision's RandomResizedCrop draws them (paper section 4.2, pre-training).

    Args:
        key: random key of all rectangles.
        sizes: int32 [B, 2], height and width of each image.
        scale: bounds of the rectangle's share of the image's area.
        ratio: bounds of its width / height, drawn log-uniformly.
    """
    attempts = 10  # torchvision's: ten draws, then a central crop
    batch = sizes.shape[0]
    height, width = sizes[:, :1].astype(jnp.float32), sizes[:, 1:].astype(jnp.float32)  # [B, 1]
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    shape = (batch, attempts)
    area = height * width * jax.random.uniform(area_key, shape, minval=scale[0], maxval=scale[1])
    low, high = jnp.log(jnp.array(ratio))
    aspect = jnp.exp(jax.random.uniform(ratio_key, shape, minval=low, maxval=high))
    crop_height = jnp.round(jnp.sqrt(area / aspect))
    crop_width = jnp.round(jnp.sqrt(area * aspect))
    fits = (crop_height > 0) & (crop_height <= height) & (crop_width > 0) & (crop_width <= width)
    first = jnp.argmax(fits, axis=1, keepdims=True)

    # Where no draw fits: the largest central rectangle whose ratio is within bounds.
    clipped = jnp.clip(width / height, *ratio)
    fallback_height = jnp.where(width / height < ratio[0], jnp.round(width / clipped), height)
    fallback_width = jnp.where(width / height > ratio[1], jnp.round(height * clipped), width)
    any_fits = fits.any(axis=1, keepdims=True)
    crop_height = jnp.where(any_fits, jnp.take_along_axis(crop_height, first, 1), fallback_height)
    crop_width = jnp.where(any_fits, jnp.take_along_axis(crop_width, first, 1), fallback_width)
    top, left = (
        jnp.where(any_fits, _random_offset(k, slack), jnp.floor(slack / 2))
        for k, slack in ((top_key, height - crop_height), (left_key, width - crop_width))
    )
    top, left, crop_height, crop_width = (x[:, 0] for x in (top, left, crop_height, crop_width))
    bounds = (top, top + crop_height, left, left + crop_width)
    return Crop(top, left, crop_height, crop_width, bounds)


def resized_random_crop(key: jax.Array, sizes: jax.Array, *, resize: int, crop: int) -> Crop:
    """Rectangles of torchvision's Resize(resize) followed by RandomCrop(crop) (fine-tuning).

    The shorter side is resized to `resize`. Cutting a resized image is resampling a rectangle of
    the original one, so both happen in one step.
    """
    short = sizes.min(axis=1, keepdims=True)
    resized = sizes * resize // short  # int32, truncated as torchvision does
    pixels = sizes.astype(jnp.float32) / resized.astype(
        jnp.float32
    )  # original ones per resized one
    slack = (resized - crop).astype(jnp.float32)
    offset = jnp.concatenate(
        [_random_offset(k, slack[:, i : i + 1]) for i, k in enumerate(jax.random.split(key))],
        axis=1,
    )
    start, extent = offset * pixels, crop * pixels
    zero = jnp.zeros(sizes.shape[0])
    bounds = (zero, sizes[:, 0].astype(jnp.float32), zero, sizes[:, 1].astype(jnp.float32))
    return Crop(start[:, 0], start[:, 1], extent[:, 0], extent[:, 1], bounds)


def _random_offset(key: jax.Array, slack: jax.Array) -> jax.Array:
    """Whole numbers, uniform in [0, slack]; float32 of slack's shape [B, 1]."""
    uniform = jax.random.uniform(key, slack.shape)
    return jnp.minimum(jnp.floor(uniform * (slack + 1)), slack)


def random_flip(key: jax.Array, batch: int) -> jax.Array:
    """bool [B]: which images to mirror, each with probability 1/2."""
    return jax.random.bernoulli(key, 0.5, (batch,))


class _Axis(NamedTuple):
    """How one axis is resampled: each output pixel is a weighted sum of a few neighbouring ones."""

    positions: jax.Array  # int32 [B, size, taps], of input pixels, some outside of the canvas
    weights: jax.Array  # float32 [B, size, taps], 0 where a pixel must not be read


@functools.partial(jax.jit, static_argnames=("size",))
def resample(images: jax.Array, crop: Crop, flip: jax.Array, *, size: int) -> jax.Array:
    """Cuts a rectangle from each image, resizes it to size x size, mirrors it where told.

    Args:
        images: uint8 [B, H, W, C], the canvas.
        crop: the rectangles.
        flip: bool [B].
        size: side of the result.

    Returns:
        uint8 [B, size, size, C].
    """
    top, bottom, left, right = crop.bounds
    height, width = images.shape[1:3]
    upright = jnp.zeros_like(flip)
    rows = _resampling(crop.top, crop.height, top, bottom, upright, length=height, size=size)
    columns = _resampling(crop.left, crop.width, left, right, flip, length=width, size=size)
    if for_cpu():  # an image at a time stays in the cache
        return jax.lax.map(lambda x: _resample_one(*x), (images, rows, columns))
    return jax.vmap(_resample_one)(images, rows, columns)


def _resample_one(image: jax.Array, rows: _Axis, columns: _Axis) -> jax.Array:
    """uint8 [H, W, C] -> uint8 [size, size, C]."""
    x = materialize(_weighted_sum(image, rows, 0))
    x = _weighted_sum(x, columns, 1)
    return materialize(jnp.floor(x + 0.5).astype(jnp.uint8))


def _weighted_sum(image: jax.Array, along: _Axis, axis: int) -> jax.Array:
    """float32: `image` [H, W, C] with `axis` resampled."""
    shape = [1, 1, 1]
    shape[axis] = -1
    total = jnp.zeros(())
    for tap in range(along.weights.shape[1]):
        pixels = jnp.take(image, along.positions[:, tap], axis, mode="clip")
        total += along.weights[:, tap].reshape(shape) * pixels.astype(jnp.float32)
    return total


def _resampling(
    start: jax.Array,
    extent: jax.Array,
    low: jax.Array,
    high: jax.Array,
    mirror: jax.Array,
    *,
    length: int,
    size: int,
) -> _Axis:
    """Pillow's antialiased bilinear filter along one axis of `length` pixels."""
    taps = math.ceil(2 * max(1.0, length / size))  # enough for the largest rectangle
    step = (extent / size)[:, None, None]
    support = jnp.maximum(step, 1.0)
    pixel = jnp.arange(size, dtype=jnp.float32)[:, None]
    pixel = jnp.where(mirror[:, None, None], size - 1 - pixel, pixel)
    centre = start[:, None, None] + (pixel + 0.5) * step  # [B, size, 1]
    # The first pixel whose middle the filter covers.
    first = jnp.ceil(centre - support - 0.5).astype(jnp.int32)
    position = first + jnp.arange(taps)
    weight = jnp.maximum(0.0, 1.0 - jnp.abs(position + 0.5 - centre) / support)
    low, high = (x[:, None, None] for x in (low, high))
    weight = jnp.where((position >= low) & (position < high), weight, 0.0)
    total = weight.sum(axis=-1, keepdims=True)  # 0 where the rectangle is empty
    return _Axis(position, weight / jnp.where(total > 0, total, 1.0))
