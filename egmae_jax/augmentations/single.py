"""Augmentations of single images: geometry, grey values and colours, blur, erasing."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from egmae_jax.augmentations import image_ops
from egmae_jax.augmentations.base import (
    Augmentation,
    Geometric,
    Interval,
    interval,
    is_number,
    register,
    uniform,
)


@register("vertical_flip")
@dataclasses.dataclass(frozen=True)
class VerticalFlip(Augmentation):
    """Turns an image upside down, as torchvision's RandomVerticalFlip."""

    p: float = 0.5

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        return image[::-1]


@register("rotate")
@dataclasses.dataclass(frozen=True)
class Rotate(Geometric):
    """Rotates by a random angle, as torchvision's RandomRotation with bilinear interpolation.

    Attributes:
        degrees: x for -x to x, or (lowest, highest), counterclockwise.
    """

    degrees: Interval

    def __post_init__(self) -> None:
        super().__post_init__()
        self._angles()

    def _angles(self) -> tuple[float, float]:
        return interval("degrees", self.degrees, 0.0, -math.inf)

    def matrix(self, key: jax.Array, size: tuple[int, ...]) -> jax.Array:
        return image_ops.affine_matrix(-uniform(key, self._angles()))


@register("affine")
@dataclasses.dataclass(frozen=True)
class Affine(Geometric):
    """Rotates, shifts, scales and shears, as torchvision's RandomAffine with interpolation.

    Attributes:
        degrees: as of `Rotate`, but clockwise.
        translate: largest shift to the sides and up or down, as shares of the width and height.
        scale: bounds of the factor of the size.
        shear: largest shear along x in degrees, or (lowest, highest).
    """

    degrees: Interval = 0.0
    translate: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    shear: Interval = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._intervals()

    def _intervals(self) -> tuple[tuple[float, float], ...]:
        """Returns the bounds of angle, translation along x and y, scale, and shear."""
        if not isinstance(self.translate, tuple | list) or len(self.translate) != 2:
            raise ValueError(f"has translate={self.translate!r}; it must be (share, share)")
        if not isinstance(self.scale, tuple | list) or min(self.scale) <= 0:
            raise ValueError(f"has scale={self.scale!r}; it must be (lowest, highest), above 0")
        return (
            interval("degrees", self.degrees, 0.0, -math.inf),
            *(interval("translate", share, 0.0, -1.0, 1.0) for share in self.translate),
            interval("scale", self.scale, 1.0),
            interval("shear", self.shear, 0.0, -math.inf),
        )

    def matrix(self, key: jax.Array, size: tuple[int, ...]) -> jax.Array:
        keys = jax.random.split(key, 5)
        angle, dx, dy, scale, shear = map(uniform, keys, self._intervals())
        shift = jnp.round(dx * size[1]), jnp.round(dy * size[0])  # whole pixels, as torchvision's
        return image_ops.affine_matrix(angle, shift, scale, (shear, 0.0))


@register("color_jitter")
@dataclasses.dataclass(frozen=True)
class ColorJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue in random order, as torchvision's.

    Attributes:
        brightness: x for factors of 1 - x to 1 + x, or (lowest, highest).
        contrast: the same for the contrast.
        saturation: the same for the saturation; without effect on greyscale images.
        hue: x for shifts of -x to x of the colour circle, or (lowest, highest), at most 0.5.
    """

    brightness: Interval = 0.0
    contrast: Interval = 0.0
    saturation: Interval = 0.0
    hue: Interval = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._intervals()

    def _intervals(self) -> tuple[tuple[float, float], ...]:
        return (
            *(interval(x, getattr(self, x), 1.0) for x in ("brightness", "contrast", "saturation")),
            interval("hue", self.hue, 0.0, -0.5, 0.5),
        )

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        *keys, order_key = jax.random.split(key, 5)
        factors = tuple(map(uniform, keys, self._intervals()))
        return jitter(image, factors, jax.random.permutation(order_key, 4))


_JITTERS = (
    image_ops.adjust_brightness,
    image_ops.adjust_contrast,
    image_ops.adjust_saturation,
    image_ops.adjust_hue,
)


def jitter(image: jax.Array, factors: Sequence[jax.Array], order: jax.Array) -> jax.Array:
    """Changes an image by the operations of ColorJitter.

    Args:
        image: float32 [H, W, 3 or 1] in [0, 1].
        factors: of brightness, contrast and saturation, and the shift of the hue.
        order: int [4], the order of these four operations.
    """
    operations = [
        lambda image, factors, i=i, function=function: function(image, factors[i])
        for i, function in enumerate(_JITTERS)
    ]
    for k in range(4):
        image = jax.lax.switch(order[k], operations, image, tuple(factors))
    return image


@register("brightness")
@dataclasses.dataclass(frozen=True)
class Brightness(Augmentation):
    """Multiplies all values by a factor of 1 - x to 1 + x, or between given bounds."""

    factor: Interval

    function: ClassVar[Callable] = staticmethod(image_ops.adjust_brightness)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._interval()

    def _interval(self) -> tuple[float, float]:
        return interval("factor", self.factor, 1.0)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        return self.function(image, uniform(key, self._interval()))


@register("contrast")
@dataclasses.dataclass(frozen=True)
class Contrast(Brightness):
    """Changes the contrast by a factor of 1 - x to 1 + x, or between given bounds."""

    function = staticmethod(image_ops.adjust_contrast)


@register("gamma")
@dataclasses.dataclass(frozen=True)
class Gamma(Brightness):
    """Raises all values to a power of 1 - x to 1 + x, or between given bounds."""

    function = staticmethod(image_ops.adjust_gamma)


@register("gaussian_blur")
@dataclasses.dataclass(frozen=True)
class GaussianBlur(Augmentation):
    """Blurs an image, as torchvision's GaussianBlur.

    Attributes:
        kernel_size: odd number of pixels along each axis that are averaged.
        sigma: bounds of the Gaussian's standard deviation in pixels, or the deviation itself.
    """

    kernel_size: int
    sigma: Interval = (0.1, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.kernel_size
        if not isinstance(size, int) or size < 1 or size % 2 == 0:
            raise ValueError(f"has kernel_size={size!r}; it must be an odd number, such as 5")
        if self._sigmas()[0] <= 0:
            raise ValueError(f"has sigma={self.sigma!r}; it must be positive")

    def _sigmas(self) -> tuple[float, float]:
        sigma = (self.sigma, self.sigma) if is_number(self.sigma) else self.sigma
        return interval("sigma", sigma, 0.0)

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        return image_ops.gaussian_blur(image, self.kernel_size, uniform(key, self._sigmas()))


@register("random_erasing")
@dataclasses.dataclass(frozen=True)
class RandomErasing(Augmentation):
    """Fills a random rectangle with one value (Zhong et al. 2020), as torchvision's RandomErasing.

    Attributes:
        p: probability of being applied.
        scale: bounds of the rectangle's area as a share of the image's.
        ratio: bounds of the rectangle's height / width, drawn log-uniformly.
        value: grey value from 0 (black) to 1 (white).
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.scale, tuple | list) or not isinstance(self.ratio, tuple | list):
            raise ValueError("has a scale or ratio that is not (lowest, highest)")
        interval("scale", self.scale, 0.0, 0.0, 1.0)
        if interval("ratio", self.ratio, 1.0)[0] <= 0:
            raise ValueError(f"has ratio={self.ratio!r}; it must be positive")
        if not is_number(self.value) or not 0 <= self.value <= 1:
            raise ValueError(f"has value={self.value!r}; it must be between 0 and 1")

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        top, left, height, width = self.rectangle(key, image.shape[:2])
        return image_ops.erase(image, top, left, height, width, self.value)

    def rectangle(self, key: jax.Array, size: tuple[int, ...]) -> tuple[jax.Array, ...]:
        """Draws top, left, height and width in pixels; height 0 if ten draws do not fit."""
        height, width = size
        keys = jax.random.split(key, 4)
        area = jax.random.uniform(keys[0], (10,), minval=self.scale[0], maxval=self.scale[1])
        low, high = jnp.log(jnp.array(self.ratio))
        ratio = jnp.exp(jax.random.uniform(keys[1], (10,), minval=low, maxval=high))
        heights = jnp.round(jnp.sqrt(area * height * width * ratio))
        widths = jnp.round(jnp.sqrt(area * height * width / ratio))
        fits = (heights < height) & (widths < width)
        first = jnp.argmax(fits)
        h, w = (jnp.where(fits.any(), x[first], 0.0) for x in (heights, widths))
        top, left = (
            jnp.floor(jax.random.uniform(k) * (side - extent + 1))
            for k, side, extent in ((keys[2], height, h), (keys[3], width, w))
        )
        return top, left, h, w
