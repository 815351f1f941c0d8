"""Operations on one image with given parameters, as in torchvision.transforms.v2.functional.

Images are float32 [H, W, 3], or [H, W, 1] for greyscale, with values in [0, 1]. Parameters may be
traced, so that `augmentations` can draw them for each image. The results equal those of torchvision
for float tensors up to rounding.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue in a grey value


def affine_matrix(
    angle: jax.Array | float = 0.0,
    translate: tuple[jax.Array | float, jax.Array | float] = (0.0, 0.0),
    scale: jax.Array | float = 1.0,
    shear: tuple[jax.Array | float, jax.Array | float] = (0.0, 0.0),
) -> jax.Array:
    """Returns the matrix with which `affine` resamples as torchvision's `affine`.

    Args:
        angle: rotation in degrees, clockwise.
        translate: shift to the right and down, in pixels.
        scale: factor of the size.
        shear: shear along x and y, in degrees.

    Returns:
        float32 [3, 3]: maps (x, y, 1) of an output pixel to the input, both in pixels from the
        centre of the image, to the right and down.
    """
    rotation, shear_x, shear_y = (jnp.deg2rad(jnp.float32(x)) for x in (angle, *shear))
    cos, sin = (f(rotation - shear_y) / jnp.cos(shear_y) for f in (jnp.cos, jnp.sin))
    forward = scale * jnp.array(
        [
            [cos, -(cos * jnp.tan(shear_x) + jnp.sin(rotation))],
            [sin, jnp.cos(rotation) - sin * jnp.tan(shear_x)],
        ]
    )
    (a, b), (c, d) = forward
    inverse = jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
    shift = -inverse @ jnp.array(translate, jnp.float32)
    return jnp.concatenate(
        [jnp.concatenate([inverse, shift[:, None]], axis=1), jnp.array([[0.0, 0.0, 1.0]])]
    )


def affine(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Resamples an image bilinearly by a matrix of `affine_matrix`; outside of it, all is black.

    A product of matrices applies several transforms with a single resampling: with `a @ b`, first
    `a`, then `b`.
    """
    height, width = image.shape[:2]
    y, x = jnp.meshgrid(*(jnp.arange(n) - (n - 1) / 2 for n in (height, width)), indexing="ij")
    (a, b, c), (d, e, f), _ = matrix
    rows = d * x + e * y + f + (height - 1) / 2
    columns = a * x + b * y + c + (width - 1) / 2
    sample = jax.vmap(lambda channel: map_coordinates(channel, (rows, columns), 1), 2, 2)
    return sample(image)


def adjust_brightness(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Multiplies an image by a factor; 1 leaves it as it is."""
    return jnp.clip(image * factor, 0.0, 1.0)


def adjust_contrast(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Blends an image with its mean grey value; 1 leaves it as it is, 0 is uniform grey."""
    return _blend(image, _to_grey(image).mean(), factor)


def adjust_saturation(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Blends an image with its greyscale version; 1 leaves it as it is, 0 is greyscale."""
    return _blend(image, _to_grey(image), factor) if image.shape[-1] == 3 else image


def adjust_hue(image: jax.Array, shift: jax.Array | float) -> jax.Array:
    """Shifts the hue of an image by a share of the colour circle, -0.5 to 0.5."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = (image[..., i] for i in range(3))
    value, least = image.max(axis=-1), image.min(axis=-1)
    chroma = value - least
    divisor = jnp.where(chroma == 0, 1.0, chroma)
    hue = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    position = (hue + 6 * shift)[..., None] + jnp.array([5.0, 3.0, 1.0])
    position = jnp.mod(position, 6.0)
    weight = jnp.clip(jnp.minimum(position, 4 - position), 0.0, 1.0)
    return value[..., None] - chroma[..., None] * weight


def adjust_gamma(image: jax.Array, gamma: jax.Array | float) -> jax.Array:
    """Raises every value to the power `gamma`: above 1 darker, below 1 brighter."""
    return image**gamma


def gaussian_blur(image: jax.Array, kernel_size: int, sigma: jax.Array | float) -> jax.Array:
    """Blurs an image, which is reflected at its edges.

    Args:
        image: float32 [H, W, C].
        kernel_size: number of pixels along each axis that are averaged; odd.
        sigma: standard deviation of the Gaussian in torchvision's units, pixels.
    """
    limit = (kernel_size - 1) / (2 * math.sqrt(2))
    weights = jax.nn.softmax(-((jnp.linspace(-limit, limit, kernel_size) / sigma) ** 2))
    for axis in (0, 1):
        pad = [(kernel_size // 2,) * 2 if i == axis else (0, 0) for i in range(3)]
        padded, length = jnp.pad(image, pad, mode="reflect"), image.shape[axis]
        image = jnp.zeros_like(image)
        for k in range(kernel_size):
            image += weights[k] * jax.lax.slice_in_dim(padded, k, k + length, axis=axis)
    return image


def erase(
    image: jax.Array,
    top: jax.Array | int,
    left: jax.Array | int,
    height: jax.Array | int,
    width: jax.Array | int,
    value: float = 0.0,
) -> jax.Array:
    """Sets the pixels of a rectangle, in pixels, to a value."""
    return jnp.where(inside(image.shape[:2], top, left, height, width)[..., None], value, image)


def inside(
    shape: tuple[int, ...],
    top: jax.Array | int,
    left: jax.Array | int,
    height: jax.Array | int,
    width: jax.Array | int,
) -> jax.Array:
    """Returns which pixels of an image of this shape lie in a rectangle: bool [H, W]."""
    rows, columns = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])
    in_rows, in_columns = (
        (x >= start) & (x < start + extent)
        for x, start, extent in ((rows, top, height), (columns, left, width))
    )
    return in_rows & in_columns


def _to_grey(image: jax.Array) -> jax.Array:
    """Returns grey values [H, W, 1]."""
    if image.shape[-1] == 1:
        return image
    return (image * jnp.array(_LUMA)).sum(axis=-1, keepdims=True)


def _blend(image: jax.Array, other: jax.Array, factor: jax.Array | float) -> jax.Array:
    return jnp.clip(factor * image + (1 - factor) * other, 0.0, 1.0)
