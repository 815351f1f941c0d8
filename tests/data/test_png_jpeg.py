"""PNG, JPEG, BMP and WebP of every kind of values against the formulas of the standards."""

import io
import struct

import imagecodecs
import numpy as np
import PIL.Image
import pytest

from egmae_jax.data import images
from egmae_jax.data.images import UnreadableImageError
from egmae_jax.data.samples import IntensityRange
from tests.data.writers import (
    RIGHT,
    SIDE,
    encode,
    in_eight_bits,
    of_dataset,
    png,
    ramp,
    spread,
    steps,
)

PNG_COLOURS = {0: 1, 2: 3, 4: 2, 6: 4}  # channels by colour type


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("colour_type", PNG_COLOURS)
def test_png(colour_type, bits):
    if colour_type and bits < 8:
        pytest.skip("PNG has no such type")
    largest = 2**bits - 1
    row = ramp(0, largest) if largest >= 7 else np.arange(8) % (largest + 1)
    values = np.repeat(spread(row)[..., None], PNG_COLOURS[colour_type], axis=-1)
    right = in_eight_bits(row, "uint", bits)
    clear = () if colour_type > 2 else [(b"tRNS", b"\0\0" * PNG_COLOURS[colour_type])]
    for chunks in ((), clear, [(b"gAMA", struct.pack(">I", 100000))]):
        np.testing.assert_array_equal(steps(png(values, bits, colour_type, chunks)), right)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_palette(bits):
    row = np.arange(8) % 2**bits
    table = np.stack([RIGHT, RIGHT[::-1], RIGHT], axis=-1)[: 2**bits].astype(np.uint8)
    encoded = png(spread(row), bits, 3, [(b"PLTE", table.tobytes()), (b"tRNS", b"\0\x80")])
    np.testing.assert_array_equal(steps(encoded), RIGHT[row])
    np.testing.assert_array_equal(steps(encoded, channel=1), RIGHT[::-1][row])


@pytest.mark.parametrize("colour_type", PNG_COLOURS)
@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15])
def test_png_that_uses_some_of_its_16_bits(bits, colour_type):
    channels = PNG_COLOURS[colour_type]
    row = ramp(0, 2**bits - 1).astype(int)
    values = np.repeat(spread(row)[..., None], channels, axis=-1)
    if channels in (2, 4):
        values[..., -1] = 65535  # alpha is no part of the range
    plain = png(values, 16, colour_type)
    with_sbit = png(values, 16, colour_type, [(b"sBIT", bytes([bits] * channels))])
    np.testing.assert_array_equal(steps(plain), row >> 8)  # by type
    np.testing.assert_array_equal(steps(with_sbit), row >> 8)
    intensity, declared = of_dataset("uint16", 0, 2**bits - 1), IntensityRange("declared")
    for encoded in (plain, with_sbit):
        np.testing.assert_allclose(steps(encoded, intensity), RIGHT, atol=1)
    np.testing.assert_allclose(steps(with_sbit, declared), RIGHT, atol=1)
    np.testing.assert_array_equal(steps(plain, declared), row >> 8)
    # PNG (13.12) asks for the significant bits on top, and below them the same again or nothing.
    for low in (row >> (2 * bits - 16), 0):
        full = np.repeat(spread(row << (16 - bits) | low)[..., None], channels, axis=-1)
        scaled = png(full, 16, colour_type, [(b"sBIT", bytes([bits] * channels))])
        for rule in (IntensityRange("type"), declared):
            np.testing.assert_allclose(steps(scaled, rule), RIGHT, atol=1)
    full[0] = 4099  # is neither
    odd = png(full, 16, colour_type, [(b"sBIT", bytes([bits] * channels))])
    with pytest.raises(UnreadableImageError, match=r"values of 0 to .* but has values of 0"):
        images.decode(odd, intensity=declared)
    opened = images.convert(PIL.Image.open(io.BytesIO(plain)), "rgb", intensity)  # not yet read
    np.testing.assert_allclose(np.asarray(opened)[0, ::SIDE, 0], RIGHT, atol=1)


def test_another_range_for_each_colour_is_refused_where_it_is_asked_for():
    values = np.stack([spread(ramp(0, most)) for most in (31, 63, 31)], -1).astype(int)
    encoded = png(values, 16, 2, [(b"sBIT", b"\5\6\5")])
    np.testing.assert_array_equal(steps(encoded), 0)  # by type
    with pytest.raises(UnreadableImageError, match="different ranges for its colours"):
        images.decode(encoded, intensity=IntensityRange("declared"))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg(channels):
    grey = spread(RIGHT).astype(np.uint8)
    values = grey if channels == 1 else np.repeat(grey[..., None], 3, axis=-1)
    result = np.asarray(images.decode(imagecodecs.jpeg8_encode(values, level=100)))
    np.testing.assert_allclose(result[4, 4::SIDE], np.repeat(RIGHT[:, None], 3, axis=1), atol=1)


@pytest.mark.parametrize(("bits", "lossless"), [(12, False), (12, True), (16, True)])
def test_jpeg_of_more_than_8_bits_is_refused(bits, lossless):
    values = spread(ramp(0, 2**bits - 1)).astype(np.uint16)
    encoded = imagecodecs.jpeg8_encode(values, bitspersample=bits, lossless=lossless)
    with pytest.raises(UnreadableImageError, match="with more than 8 bits per value"):
        images.decode(encoded)


def test_cmyk_jpeg_is_inverted_as_adobe_does_and_refused_without_its_marker():
    grey = spread(RIGHT).astype(np.uint8)
    ink = np.stack([255 - grey] * 3 + [np.zeros_like(grey)], axis=-1)
    encoded = encode(PIL.Image.frombytes("CMYK", (64, 8), ink.tobytes()), "JPEG", quality=100)
    result = np.asarray(images.decode(encoded)).astype(int)[4, 4::SIDE, 0]
    np.testing.assert_allclose(result, RIGHT, atol=2)
    start = encoded.index(b"\xff\xee")
    (length,) = struct.unpack_from(">H", encoded, start + 2)
    unmarked = encoded[:start] + encoded[start + 2 + length :]
    for read in (images.decode, lambda x: images.convert(PIL.Image.open(io.BytesIO(x)))):
        with pytest.raises(UnreadableImageError, match="without Adobe's marker"):
            read(unmarked)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("file_format", ["BMP", "WEBP", "PNG"])
def test_eight_bits_of_other_formats(file_format, mode):
    image = PIL.Image.fromarray(spread(RIGHT).astype(np.uint8)).convert(mode)
    options = {"lossless": True} if file_format == "WEBP" else {}
    np.testing.assert_array_equal(steps(encode(image, file_format, **options)), RIGHT)


def test_bmp_of_5_bits_a_channel():
    row = ramp(0, 31).astype(int)
    values = (spread(row) << 10 | spread(row) << 5 | spread(row)).astype("<u2")
    size = 14 + 40 + values.nbytes
    head = struct.pack("<2sIHHI", b"BM", size, 0, 0, 54)
    head += struct.pack("<IiiHHIIiiII", 40, 64, 8, 1, 16, 0, values.nbytes, 0, 0, 0, 0)
    np.testing.assert_allclose(steps(head + values.tobytes()), np.round(row * 255 / 31), atol=1)


def test_a_loaded_png_that_may_have_had_16_bits_is_not_scaled_as_8():
    encoded = imagecodecs.png_encode(np.full((8, 8, 3), 4095, np.uint16))
    loaded = PIL.Image.open(io.BytesIO(encoded))
    loaded.load()
    assert images.convert(loaded).getpixel((0, 0)) == (15, 15, 15)  # the high byte, as in decode
    scaled = IntensityRange("dataset", {"uint16": (0.0, 4095.0)})
    opened = PIL.Image.open(io.BytesIO(encoded))
    assert images.convert(opened, intensity=scaled).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(UnreadableImageError, match="may have had 16 bits per value"):
        images.convert(loaded, intensity=scaled)
