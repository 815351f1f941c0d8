"""Test-time augmentation: class probabilities are averaged over views of an image."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

KINDS = ("horizontal_flip", "vertical_flip", "five_crop")


def input_size(kinds: Sequence[str], size: int, resized: int) -> int:
    """Returns the side of the square images that `views` needs, in pixels.

    Args:
        kinds: some of KINDS.
        size: side of a view.
        resized: side before the centre crop (of the shorter side, if the image is not square).
    """
    return resized if "five_crop" in kinds else size


def views(
    images: Any, kinds: Sequence[str], size: int, *, flip: Callable[[Any, Any], Any] = jnp.flip
) -> list[Any]:
    """Returns the views of images, beginning with the one without augmentation.

    'five_crop' adds the four corners to the central crop, as torchvision's FiveCrop; each flip
    doubles the views, so that all three give twenty.

    Args:
        images: [B, R, R, C], with the side of `input_size`.
        kinds: some of KINDS.
        size: side of a view.
        flip: function that reverses some axes, for arrays of another library.

    Returns:
        Arrays [B, size, size, C].
    """
    far = images.shape[1] - size
    corners = [(0, 0), (0, far), (far, 0), (far, far)] if "five_crop" in kinds else []
    result = [centre_crop(images, size)]
    result += [images[:, top : top + size, left : left + size] for top, left in corners]
    for kind, axis in (("horizontal_flip", 2), ("vertical_flip", 1)):
        if kind in kinds:
            result += [flip(view, (axis,)) for view in result]
    return result


def centre_crop(images: Any, size: int) -> Any:
    """Returns the central squares [B, size, size, C] of images [B, R, R, C]."""
    start = round((images.shape[1] - size) / 2)  # as in torchvision
    return images[:, start : start + size, start : start + size]
