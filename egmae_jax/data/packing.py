"""Pixels of records: packed, or decoded from a JPEG file in half of Pillow's time."""

import cv2
import numpy as np
import PIL.Image

from egmae_jax.data.formats import JPEG
from egmae_jax.data.images import Color, to_array

_CV2_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def pack(image: PIL.Image.Image) -> bytes:
    """Packs the pixels of an RGB image as records compress them well and read them fast.

    Grey images keep one channel. Each pixel but the first of a row is its difference to the one
    before it, which the records' compression makes about as small as PNG.
    """
    array = np.asarray(image)
    if (array == array[..., :1]).all():
        array = array[..., :1]
    return np.diff(array, axis=1, prepend=np.uint8(0)).tobytes()


def unpack(packed: bytes, height: int, width: int, color: Color = "rgb") -> np.ndarray:
    """Unpacks what `pack` made: uint8 [H, W, 3], or [H, W, 1] for color 'grey'."""
    differences = np.frombuffer(packed, np.uint8).reshape(height, width, -1)
    array = np.cumsum(differences, axis=1, dtype=np.uint8)
    if color == "rgb" and array.shape[2] == 1:
        return np.asarray(cv2.merge([array] * 3))
    if color == "grey" and array.shape[2] == 3:
        return to_array(PIL.Image.fromarray(array).convert("L"))
    return array


def decode_fast(encoded: bytes, color: Color = "rgb") -> np.ndarray:
    """Decodes a JPEG file to the pixels that `images.decode` returns, by OpenCV.

    Only for files of which `is_fast` says so: OpenCV passes over damage, and knows less of modes
    and orientation.

    Returns:
        uint8 [H, W, 3], or [H, W, 1] for color 'grey'.
    """
    array = np.asarray(cv2.imdecode(np.frombuffer(encoded, np.uint8), _CV2_FLAGS))
    return array if color == "rgb" else to_array(PIL.Image.fromarray(array).convert("L"))


def is_fast(encoded: bytes, image: PIL.Image.Image) -> bool:
    """Whether a file is a JPEG that OpenCV decodes to exactly the pixels of `image`."""
    if not encoded.startswith(JPEG):
        return False
    array = cv2.imdecode(np.frombuffer(encoded, np.uint8), _CV2_FLAGS)
    return array is not None and np.array_equal(array, np.asarray(image))
