"""On-device augmentation: crop, resize, flip and normalise uint8 images inside the jitted step.

The geometry is torchvision's, the resampling Pillow's (antialiased bilinear), up to the rounding of
8-bit intermediates. Images come on a common canvas, each in its upper left corner, with its true
size beside it. Every example has its own random numbers, drawn by position in the batch, so a step
on eight devices takes the same crops as a step on one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

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
    """uint8 [..., 3] -> float32 [..., 3] with ImageNet's mean and standard deviation."""
    return (images.astype(jnp.float32) / 255.0 - jnp.array(MEAN)) / jnp.array(STD)


def random_resized_crop(
    key: jax.Array,
    sizes: jax.Array,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Crop:
    """Rectangles as torchvision's RandomResizedCrop draws them (paper section 4.2, pre-training).

    Args:
        key: for all rectangles.
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
    found = fits.any(axis=1, keepdims=True)
    crop_height = jnp.where(found, jnp.take_along_axis(crop_height, first, 1), fallback_height)
    crop_width = jnp.where(found, jnp.take_along_axis(crop_width, first, 1), fallback_width)
    top, left = (
        jnp.where(found, _random_offset(k, slack), jnp.floor(slack / 2))
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
    rows = _resampling_weights(crop.top, crop.height, top, bottom, images.shape[1], size)
    columns = _resampling_weights(crop.left, crop.width, left, right, images.shape[2], size)
    columns = jnp.where(flip[:, None, None], columns[:, ::-1], columns)
    # Two small matrix products an image. 8-bit exactness needs more than TF32 or bfloat16 products.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    x = product("boh,bhwc->bowc", rows, images.astype(jnp.float32))
    x = product("bpw,bowc->bopc", columns, x)
    return jnp.clip(jnp.floor(x + 0.5), 0, 255).astype(jnp.uint8)


def _resampling_weights(
    start: jax.Array, extent: jax.Array, low: jax.Array, high: jax.Array, length: int, size: int
) -> jax.Array:
    """Pillow's antialiased bilinear filter along one axis, as a matrix [B, size, length]."""
    step = (extent / size)[:, None, None]  # input pixels per output pixel
    support = jnp.maximum(step, 1.0)
    centre = start[:, None, None] + (jnp.arange(size)[:, None] + 0.5) * step
    position = jnp.arange(length, dtype=jnp.float32)
    weight = jnp.maximum(0.0, 1.0 - jnp.abs(position + 0.5 - centre) / support)
    readable = (position >= low[:, None, None]) & (position < high[:, None, None])
    weight = jnp.where(readable, weight, 0.0)
    return weight / weight.sum(axis=-1, keepdims=True)
