"""Augmentations that mix the images of a batch and their labels: mixup and CutMix."""

import dataclasses

import jax
import jax.numpy as jnp

from egmae_jax.augmentations import image_ops
from egmae_jax.augmentations.base import Mixing, is_applied, is_number, register


@register("mixup")
@dataclasses.dataclass(frozen=True)
class Mixup(Mixing):
    """Blends each image with another one (Zhang et al. 2018), as torchvision's MixUp.

    Attributes:
        alpha: the share of the image itself has the distribution Beta(alpha, alpha).
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.alpha) or self.alpha <= 0:
            raise ValueError(f"has alpha={self.alpha!r}; it must be positive")

    def draw_share(self, key: jax.Array) -> jax.Array:
        """Draws the share of the image itself; 1 if nothing is mixed."""
        share = jax.random.beta(key, self.alpha, self.alpha)
        return jnp.where(is_applied(key, self.p), share, 1.0)

    def mix(
        self, key: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        share = self.draw_share(key)
        return blend_with_previous(images, share), blend_with_previous(targets, share)


def blend_with_previous(x: jax.Array, share: jax.Array | float) -> jax.Array:
    """Blends each element of a batch with the one before it; the first with the last."""
    return share * x + (1 - share) * jnp.roll(x, 1, axis=0)


@register("cutmix")
@dataclasses.dataclass(frozen=True)
class Cutmix(Mixup):
    """Replaces a rectangle of each image by another one's (Yun et al. 2019), as torchvision's."""

    def mix(
        self, key: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        share_key, row_key, column_key = jax.random.split(key, 3)
        height, width = images.shape[1:3]
        row = jax.random.randint(row_key, (), 0, height)
        column = jax.random.randint(column_key, (), 0, width)
        rectangle, share = cut(self.draw_share(share_key), row, column, (height, width))
        replaced = image_ops.inside((height, width), *rectangle)[..., None]
        mixed = jnp.where(replaced, jnp.roll(images, 1, axis=0), images)
        return mixed, blend_with_previous(targets, share)


def cut(
    share: jax.Array, row: jax.Array, column: jax.Array, size: tuple[int, int]
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Returns CutMix's rectangle and the share of an image that is left, as torchvision does.

    Args:
        share: share of the image that is left if the rectangle lies inside of it.
        row: row of the rectangle's centre.
        column: column of the rectangle's centre.
        size: height and width of the image.

    Returns:
        Top, left, height and width in pixels; and the share that is left after clipping.
    """
    radius = 0.5 * jnp.sqrt(1 - share)
    top, bottom, left, right = (
        jnp.clip(centre + sign * jnp.floor(radius * side), 0, side)
        for centre, side in zip((row, column), size, strict=True)
        for sign in (-1, 1)
    )
    height, width = bottom - top, right - left
    return (top, left, height, width), 1 - height * width / (size[0] * size[1])
