"""Reads PNG files with 16 bits per sample, whose sBIT chunk may declare fewer significant bits."""

import io
import math
import struct

import imagecodecs
import numpy as np
import PIL.ExifTags
import PIL.Image

from egmae_jax.data.samples import Samples, SamplesError

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read(encoded: bytes) -> Samples | None:
    """Reads the samples of a PNG file; returns None for up to 8 bits, which Pillow reads correctly.

    Raises:
        SamplesError: the file contains several frames.
    """
    if encoded[24:25] != b"\x10":
        return None
    with PIL.Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise SamplesError(f"{frames} frames; one image is expected")
        image.load()
        orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
        values = np.asarray(image) if image.mode == "I;16" else None
    if values is None:  # Pillow keeps only the high byte of 16-bit colours
        values = imagecodecs.png_decode(encoded)
    channels = values.shape[2] if values.ndim == 3 else 1
    if channels in (2, 4):  # the last channel is alpha
        values = values[..., 0] if channels == 2 else values[..., :3]
    declared = _range_of_significant(values, _significant_bits(encoded, channels))
    return Samples(values, "uint16", declared=declared, orientation=orientation)


def _range_of_significant(values: np.ndarray, bits: list[int]) -> tuple[float, float] | None:
    """Returns the range of values that sBIT declares; None: the full range of 16 bits.

    By the PNG specification (section 11.3.2.4) values are scaled to the full range, with their
    significant bits on top, so sBIT does not change their meaning. Many writers leave the
    significant bits at the bottom instead. If the values are not scaled, the declared range is that
    of the significant bits, or (0, NaN) if it differs among the channels.

    Args:
        values: uint16 [H, W] or [H, W, 3].
        bits: significant bits of each channel; empty if there is no sBIT chunk.
    """
    if not bits or min(bits) == 16:
        return None
    per_channel = np.array(bits if values.ndim == 3 else bits[0], np.uint16)
    unused = np.uint16(16) - per_channel
    top = values >> unused
    if ((values == top << unused) | (values == _replicated(top, per_channel))).all():
        return None
    # `samples.to_image` rejects NaN if data.intensity_range is 'declared'.
    return 0, (1 << bits[0]) - 1 if len(set(bits)) == 1 else math.nan


def _replicated(top: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Scales `bits`-bit values to 16 bits by left bit replication (PNG section 13.12)."""
    values = top << (np.uint16(16) - bits)
    for times in (1, 2, 4, 8):
        values = values | values >> np.uint16(times) * bits  # shifts beyond 16 bits give 0
    return np.asarray(values)


def _significant_bits(encoded: bytes, channels: int) -> list[int]:
    """Returns the significant bits of each colour from the sBIT chunk; empty if there is none."""
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
