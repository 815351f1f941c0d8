"""One image from encoded bytes to uint8 pixels: decoding and the two views the project keeps."""

import io
from typing import Literal

import numpy as np
import PIL.Image
import PIL.ImageOps

Resize = Literal["shorter_side", "squash", "pad"]
RESIZE_MODES = ("shorter_side", "squash", "pad")
_LONGEST = 16  # times the shorter side: of a longer image only the middle is used


class UnreadableImageError(ValueError):
    """The bytes are no image that can be used; the message says why."""


def decode(encoded: bytes) -> PIL.Image.Image:
    """Decodes a whole image to 8-bit RGB, upright by its EXIF orientation.

    Raises:
        UnreadableImageError: empty, truncated, no image, too large, or more than 8 bits a value.
    """
    if not encoded:
        raise UnreadableImageError("the file is empty")
    try:
        image = PIL.Image.open(io.BytesIO(encoded))
        # Pillow opens colours of 16 bits as if they had 8; only the raw mode of the tiles tells.
        modes = [image.mode, *(str(tile[3]) for tile in image.tile)]
        image.load()
        if image.mode in ("I", "F") or any(";16" in mode for mode in modes):
            raise UnreadableImageError(
                f"{image.mode!r} has more than 8 bits a value: not supported"
            )
        return PIL.ImageOps.exif_transpose(image).convert("RGB")
    except UnreadableImageError:
        raise
    except PIL.UnidentifiedImageError:
        raise UnreadableImageError("not an image") from None
    except PIL.Image.DecompressionBombError as error:
        raise UnreadableImageError(str(error)) from None
    except Exception as error:  # damaged files bring whatever Pillow's parsers stumble upon
        raise UnreadableImageError(f"damaged or truncated: {error!r}") from None


def training_view(image: PIL.Image.Image, resize: Resize, store_size: int) -> PIL.Image.Image:
    """What random crops are taken from: the image itself, reduced if it is large.

    Args:
        image: RGB.
        resize: 'shorter_side' keeps the aspect; 'squash' and 'pad' make a square, once, here.
        store_size: upper bound of the shorter side in pixels; the longer may be twice that.
    """
    if resize == "squash":
        return image.resize((store_size, store_size), PIL.Image.Resampling.BILINEAR)
    if resize == "pad":
        image = _shorten(image)
        side = min(max(image.size), store_size)
        return PIL.ImageOps.pad(image, (side, side), PIL.Image.Resampling.BILINEAR)
    short, long = sorted(image.size)
    factor = min(1.0, store_size / short, 2 * store_size / long)
    width, height = (max(1, round(side * factor)) for side in image.size)
    reduced = (width, height)
    return image if factor == 1.0 else image.resize(reduced, PIL.Image.Resampling.BILINEAR)


def evaluation_view(image: PIL.Image.Image, resize: Resize, image_size: int) -> PIL.Image.Image:
    """What is evaluated: torchvision's Resize(image_size) and CenterCrop(image_size).

    'squash' resizes both sides to image_size; 'pad' pads to a square with black first.
    """
    square = (image_size, image_size)
    if resize == "squash":
        return image.resize(square, PIL.Image.Resampling.BILINEAR)
    if resize == "pad":
        return PIL.ImageOps.pad(_shorten(image), square, PIL.Image.Resampling.BILINEAR)
    image = _shorten(image)
    short = min(image.size)
    width, height = (image_size * side // short for side in image.size)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    resized = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + image_size, top + image_size))


def to_array(image: PIL.Image.Image) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.asarray(image, np.uint8)


def _shorten(image: PIL.Image.Image) -> PIL.Image.Image:
    """The middle of a long strip, which resized or padded as a whole could fill the memory."""
    longest = _LONGEST * min(image.size)
    width, height = (min(side, longest) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))
