"""PNG of 16 bits a value: IHDR and sBIT say what its values mean."""

import io
import math
import struct

import imagecodecs
import numpy as np
import PIL.ExifTags
import PIL.Image

from egmae_jax.core.quiet import silenced
from egmae_jax.data.samples import Samples, SamplesError

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read(encoded: bytes) -> Samples | None:
    """Reads the values of a PNG file; None for at most 8 bits a value, which Pillow reads.

    Raises:
        SamplesError: the file holds several frames.
    """
    if encoded[24:25] != b"\x10":
        return None
    with PIL.Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise SamplesError(f"{frames} frames; one image is expected")
        image.load()
        orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
        values = np.asarray(image) if image.mode == "I;16" else None
    if values is None:  # of colours of 16 bits Pillow keeps the high byte
        with silenced("imagecodecs"):
            values = imagecodecs.png_decode(encoded)
    channels = values.shape[2] if values.ndim == 3 else 1
    if channels in (2, 4):  # the last is alpha
        values = values[..., 0] if channels == 2 else values[..., :3]
    declared = _range_of_significant(values, _significant_bits(encoded, channels))
    return Samples(values, "uint16", declared=declared, orientation=orientation)


def _range_of_significant(values: np.ndarray, bits: list[int]) -> tuple[float, float] | None:
    """The range that sBIT declares, or None: the whole of 16 bits.

    PNG (section 11.3.2.4) has values scaled to the whole range, their significant bits on top, so
    that sBIT changes none. Many writers leave the bits at the bottom: where values are not scaled
    so and the significant bits hold them, those are the range.
    """
    if not bits or min(bits) == 16:
        return None
    per_channel = np.array(bits if values.ndim == 3 else bits[0], np.uint16)
    unused = np.uint16(16) - per_channel
    top = values >> unused
    if ((values == top << unused) | (values == _replicated(top, per_channel))).all():
        return None
    # Another range for each colour is none: refused where the declared one is asked for.
    return 0, (1 << bits[0]) - 1 if len(set(bits)) == 1 else math.nan


def _replicated(top: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """16-bit values that begin with `bits` bits and go on with the same again (section 13.12)."""
    values = top << (np.uint16(16) - bits)
    for times in (1, 2, 4, 8):
        values = values | values >> np.uint16(times) * bits  # beyond 16 bits nothing is left
    return np.asarray(values)


def _significant_bits(encoded: bytes, channels: int) -> list[int]:
    """What PNG's sBIT says of each colour; nothing where there is no such chunk."""
    position = len(SIGNATURE)
    while position + 8 <= len(encoded):
        length, name = struct.unpack_from(">I4s", encoded, position)
        if name == b"sBIT":
            content = encoded[position + 8 : position + 8 + length]
            return [bits for bits in content[: channels - (channels in (2, 4))] if 0 < bits <= 16]
        if name == b"IDAT":
            break
        position += length + 12
    return []
