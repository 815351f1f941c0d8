"""On-device augmentation: crop, resize, flip and normalise uint8 images inside the jitted step.

The geometry is torchvision's and the resampling Pillow's (antialiased bilinear), up to the rounding
of 8-bit intermediates. The images of a batch lie in the upper left corners of canvases of one size,
and their true sizes are passed separately. Random numbers are drawn for the whole batch, so a step
on eight devices takes the same crops as a step on one.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egmae_jax.core import rng
from egmae_jax.core.platform import for_cpu, join, materialize

# Mean and standard deviation of ImageNet by channel, of pixel values / 255 (paper section 4.2).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP_RATIO = (3 / 4, 4 / 3)  # width / height of random crops: torchvision's default


class Crop(NamedTuple):
    """Rectangle of each image and the bounds of the pixels that resampling reads, float32 [B]."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array
    # Half-open bounds of the pixels that may be read: the rectangle itself if the image is cropped
    # before it is resized, the whole image if it is resized before it is cropped.
    bounds: tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # top, bottom, left, right


def normalize(
    images: jax.Array, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> jax.Array:
    """Normalises images by the mean and standard deviation of each channel.

    Args:
        images: uint8 [..., 3], or greyscale [..., 1], which becomes three channels.
        mean: mean of the pixel values / 255; ImageNet's by default.
        std: their standard deviation; ImageNet's by default.

    Returns:
        float32 [..., 3].
    """
    return standardize(images.astype(jnp.float32) / 255.0, mean, std)


def standardize(
    images: jax.Array, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> jax.Array:
    """Normalises images float32 [..., 3 or 1] with values in [0, 1]; see `normalize`."""
    return (images - jnp.array(mean)) / jnp.array(std)


def pixel_noise(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
    """Draws Gaussian noise to add to normalised images.

    Args:
        key: random key.
        shape: shape of the images, [..., 3].
        std: standard deviation as a fraction of the pixel range [0, 255], before normalisation.

    Returns:
        float32 of this shape, in normalised units.
    """
    return std / jnp.array(STD) * jax.random.normal(key, shape)


def random_resized_crop(
    key: jax.Array,
    sizes: jax.Array,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = CROP_RATIO,
) -> Crop:
    """Draws rectangles as torchvision's RandomResizedCrop (paper section 4.2, pre-training).

    Args:
        key: random key of all rectangles.
        sizes: int32 [B, 2], height and width of each image.
        scale: bounds of the rectangle's area as a fraction of the image's area.
        ratio: bounds of the rectangle's width / height, drawn log-uniformly.
    """
    attempts = 10  # as in torchvision: ten draws, then a centre crop
    batch = sizes.shape[0]
    height, width = sizes[:, :1].astype(jnp.float32), sizes[:, 1:].astype(jnp.float32)  # [B, 1]
    area_key, ratio_key, top_key, left_key = rng.split(key, 4)
    shape = (batch, attempts)
    area = height * width * jax.random.uniform(area_key, shape, minval=scale[0], maxval=scale[1])
    low, high = jnp.log(jnp.array(ratio))
    aspect = jnp.exp(jax.random.uniform(ratio_key, shape, minval=low, maxval=high))
    crop_height = jnp.round(jnp.sqrt(area / aspect))
    crop_width = jnp.round(jnp.sqrt(area * aspect))
    fits = (crop_height > 0) & (crop_height <= height) & (crop_width > 0) & (crop_width <= width)
    # Number of the first draw that fits; `attempts` if none does.
    first = jnp.where(fits, jnp.arange(attempts), attempts).min(axis=1, keepdims=True)

    # If no draw fits, torchvision takes the largest centre crop whose ratio is within the bounds.
    clipped = jnp.clip(width / height, *ratio)
    fallback_height = jnp.where(width / height < ratio[0], jnp.round(width / clipped), height)
    fallback_width = jnp.where(width / height > ratio[1], jnp.round(height * clipped), width)
    any_fits = first < attempts
    crop_height, crop_width = (
        jnp.where(any_fits, jnp.take_along_axis(drawn, first, 1, mode="clip"), fallback)
        for drawn, fallback in ((crop_height, fallback_height), (crop_width, fallback_width))
    )
    top, left = (
        jnp.where(any_fits, _random_offset(k, slack), jnp.floor(slack / 2))
        for k, slack in ((top_key, height - crop_height), (left_key, width - crop_width))
    )
    top, left, crop_height, crop_width = (x[:, 0] for x in (top, left, crop_height, crop_width))
    bounds = (top, top + crop_height, left, left + crop_width)
    return Crop(top, left, crop_height, crop_width, bounds)


def resized_random_crop(key: jax.Array, sizes: jax.Array, *, resize: int, crop: int) -> Crop:
    """Draws the rectangles of torchvision's Resize(resize) and RandomCrop(crop) (fine-tuning).

    Cropping a resized image is the same as resampling a rectangle of the original image, so
    `resample` does both at once.

    Args:
        key: random key of all rectangles.
        sizes: int32 [B, 2], height and width of each image.
        resize: length of the shorter side after resizing, in pixels.
        crop: side of the crop, in resized pixels.
    """
    short = jnp.minimum(sizes[:, :1], sizes[:, 1:])
    # Truncated as torchvision does; `//` would also look at the signs, in one more kernel of a GPU.
    resized = jax.lax.div(sizes * resize, jnp.broadcast_to(short, sizes.shape))
    step = sizes.astype(jnp.float32) / resized.astype(jnp.float32)  # original per resized pixel
    slack = (resized - crop).astype(jnp.float32)
    top, left = (
        _random_offset(k, slack[:, i : i + 1])[:, 0] * step[:, i]
        for i, k in enumerate(jax.random.split(key))
    )
    zero = jnp.zeros(sizes.shape[0])
    bounds = (zero, sizes[:, 0].astype(jnp.float32), zero, sizes[:, 1].astype(jnp.float32))
    return Crop(top, left, crop * step[:, 0], crop * step[:, 1], bounds)


def _random_offset(key: jax.Array, slack: jax.Array) -> jax.Array:
    """Draws integers uniformly from [0, slack], as float32 of slack's shape [B, 1]."""
    uniform = jax.random.uniform(key, slack.shape)
    return jnp.minimum(jnp.floor(uniform * (slack + 1)), slack)


def random_flip(key: jax.Array, batch: int) -> jax.Array:
    """Draws which images to mirror, each with probability 1/2: bool [B]."""
    return jax.random.bernoulli(key, 0.5, (batch,))


class _Axis(NamedTuple):
    """Resampling of one axis: each output pixel is a weighted sum of adjacent input pixels."""

    positions: jax.Array  # int32 [B, size, taps], indices of input pixels, perhaps out of range
    weights: jax.Array  # float32 [B, size, taps], 0 for pixels outside of the bounds


@functools.partial(jax.jit, static_argnames=("size",))
def resample(images: jax.Array, crop: Crop, flip: jax.Array, *, size: int) -> jax.Array:
    """Crops a rectangle from each image, resizes it to size x size, and mirrors some images.

    Args:
        images: uint8 [B, H, W, C], on canvases of one size.
        crop: rectangle of each image.
        flip: bool [B], whether to mirror the image horizontally.
        size: side of the result in pixels.

    Returns:
        uint8 [B, size, size, C].
    """
    top, bottom, left, right = crop.bounds
    height, width = images.shape[1:3]
    no_flip = jnp.zeros_like(flip)
    rows = _resampling(crop.top, crop.height, top, bottom, no_flip, length=height, size=size)
    columns = _resampling(crop.left, crop.width, left, right, flip, length=width, size=size)
    if for_cpu():  # a single image fits the processor's cache
        return jax.lax.map(lambda x: _resample_one(*x), (images, rows, columns))
    return jax.vmap(_resample_one)(images, rows, columns)


def _resample_one(image: jax.Array, rows: _Axis, columns: _Axis) -> jax.Array:
    """Resamples one image, uint8 [H, W, C] -> uint8 [size, size, C]."""
    x = materialize(_weighted_sum(image, rows, 0))
    x = _weighted_sum(x, columns, 1)
    return materialize(jnp.floor(x + 0.5).astype(jnp.uint8))


def _weighted_sum(image: jax.Array, resampling: _Axis, axis: int) -> jax.Array:
    """Resamples one axis of an image [H, W, C]; float32."""
    shape = [1, 1, 1]
    shape[axis] = -1
    total = jnp.zeros(())
    for tap in range(resampling.weights.shape[1]):
        pixels = jnp.take(image, resampling.positions[:, tap], axis, mode="clip")
        total += resampling.weights[:, tap].reshape(shape) * pixels.astype(jnp.float32)
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
    """Returns the positions and weights of Pillow's antialiased bilinear filter along one axis.

    Args:
        start: first pixel of the rectangle, float32 [B].
        extent: length of the rectangle, float32 [B].
        low: first pixel that may be read, float32 [B].
        high: one more than the last pixel that may be read, float32 [B].
        mirror: bool [B], whether to reverse the axis.
        length: length of the input axis.
        size: length of the output axis.
    """
    taps = math.ceil(2 * max(1.0, length / size))  # enough for the largest rectangle
    step = (extent / size)[:, None, None]
    support = jnp.maximum(step, 1.0)
    pixel = jnp.arange(size, dtype=jnp.float32)[:, None]
    pixel = jnp.where(mirror[:, None, None], size - 1 - pixel, pixel)
    centre = start[:, None, None] + (pixel + 0.5) * step  # [B, size, 1]
    # First pixel whose centre is within the filter's support.
    first = jnp.ceil(centre - support - 0.5).astype(jnp.int32)
    position = first + jnp.arange(taps)
    weight = jnp.maximum(0.0, 1.0 - jnp.abs(position + 0.5 - centre) / support)
    low, high = (x[:, None, None] for x in (low, high))
    weight = jnp.where((position >= low) & (position < high), weight, 0.0)
    total = weight.sum(axis=-1, keepdims=True)  # 0 for an empty rectangle
    return _Axis(position, join(weight / jnp.where(total > 0, total, 1.0)))
