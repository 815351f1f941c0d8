"""TIFF of every kind of values against the formulas of TIFF 6.0, as three writers write it."""

import io
import itertools

import numpy as np
import PIL.Image
import pytest
import tifffile

from egmae_jax.data import images
from egmae_jax.data.images import UnreadableImageError
from egmae_jax.data.samples import IntensityRange
from tests.data.writers import (
    RIGHT,
    SIDE,
    extremes,
    in_eight_bits,
    of_dataset,
    ramp,
    spread,
    steps,
    tiff,
)

WIDE = [(kind, bits) for kind in ("uint", "int", "float") for bits in (16, 32, 64)]
NARROW = [("uint", bits) for bits in (1, 2, 4, 6, 8, 10, 12, 14)] + [("int", 8)]


@pytest.mark.parametrize(("kind", "bits"), NARROW + WIDE)
def test_tiff(kind, bits):
    low, high = extremes(kind, bits)
    row = ramp(low, high, kind) if high - low >= 7 else np.arange(8) % (high + 1)
    row = row.astype({"uint": "u8", "int": "i8", "float": "f8"}[kind])
    grey = spread(row)
    alpha = np.full_like(grey, low)  # transparent, which is not looked at
    rgb = np.stack([grey, grey[:, ::-1], grey], axis=-1)
    by_type = kind != "float" and bits <= 16
    intensity = IntensityRange() if by_type else of_dataset(f"{kind}{bits}", low, high)
    right = in_eight_bits(row, kind, bits) if by_type else RIGHT
    if by_type and bits >= 8:
        np.testing.assert_array_equal(right, RIGHT)
    for order, planar, fill in itertools.product("<>", (1, 2), (1, 2)):
        deflate = (order == "<") == (planar == fill)
        options = {"order": order, "planar": planar, "fill": fill, "deflate": deflate}
        for white in (0, 1):
            encoded = tiff(grey, bits, kind, white, **options)
            result = steps(encoded, intensity)
            np.testing.assert_array_equal(result, right if white else 255 - right, str(options))
        if bits < 8:
            continue
        for array, photometric, extra in (
            (np.stack([grey, alpha], axis=-1), 1, (2,)),
            (np.stack([grey, alpha], axis=-1), 1, (0,)),
            (rgb, 2, ()),
            (np.concatenate([rgb, alpha[..., None]], axis=-1), 2, (2,)),
        ):
            encoded = tiff(array, bits, kind, photometric, extra=extra, **options)
            np.testing.assert_array_equal(steps(encoded, intensity), right, str(options))
            if photometric == 2:
                np.testing.assert_array_equal(steps(encoded, intensity, channel=1), right[::-1])
    if not by_type:
        message = rf"its values have {bits} bits \({kind}{bits}\).*intensity_range='dataset'"
        with pytest.raises(UnreadableImageError, match=message):
            images.decode(tiff(grey, bits, kind))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_tiff_palettes_of_16_bits(bits):
    row = np.arange(8) % 2**bits
    colours = np.round(ramp(0, 65535)).astype(int)  # of the indices
    table = np.zeros((3, 2**bits), int)
    table[:, : min(8, 2**bits)] = np.stack([colours, colours[::-1], colours])[:, : 2**bits]
    for order in "<>":
        encoded = tiff(
            spread(row), bits, photometric=3, order=order, tags={320: (3, table.ravel().tolist())}
        )
        np.testing.assert_array_equal(steps(encoded), RIGHT[row])
        np.testing.assert_array_equal(steps(encoded, channel=1), RIGHT[::-1][row])


@pytest.mark.parametrize("compression", ["none", "zlib", "lzw", "packbits", "lzma", "zstd"])
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "float16", "float32"]
)
def test_tiff_of_tifffile(dtype, compression):
    low, high = extremes(dtype.rstrip("0123456789"), int("".join(filter(str.isdigit, dtype))))
    grey = spread(ramp(low, high, dtype.rstrip("0123456789"))).astype(dtype)
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    intensity = IntensityRange()
    if dtype in ("uint32", "float16", "float32"):
        intensity = of_dataset(dtype, float(grey.min()), float(grey.max()))
    for array, photometric, options in (
        (grey, "minisblack", {}),
        (grey, "minisblack", {"tile": (16, 16)}),
        (grey, "minisblack", {"rowsperstrip": 3}),
        (grey, "minisblack", {"predictor": compression != "none"}),
        (grey, "minisblack", {"bigtiff": True}),
        (rgb, "rgb", {"byteorder": ">"}),
        (rgb.transpose(2, 0, 1), "rgb", {"planarconfig": "separate"}),
    ):
        file = io.BytesIO()
        compress = None if compression == "none" else compression
        if compression == "packbits" and options.get("predictor"):
            continue
        tifffile.imwrite(file, array, photometric=photometric, compression=compress, **options)
        result = steps(file.getvalue(), intensity)
        np.testing.assert_allclose(result, RIGHT, atol=dtype == "float16")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "CMYK", "LA", "RGBA"])
def test_tiff_of_pillow(mode, compression):
    grey = spread(RIGHT).astype(np.uint8)
    if mode == "I;16":
        image = PIL.Image.fromarray(spread(ramp(0, 65535)).astype(np.uint16))
    elif mode == "CMYK":
        ink = np.stack([255 - grey] * 3 + [np.zeros_like(grey)], axis=-1)
        image = PIL.Image.frombytes("CMYK", (64, 8), ink.tobytes())
    else:
        image = PIL.Image.fromarray(grey).convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF", compression=compression)
    np.testing.assert_array_equal(steps(file.getvalue()), RIGHT)


STUDIO = [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1]  # of ReferenceBlackWhite


def test_tiff_of_webp():
    file = io.BytesIO()
    rgb = np.stack([spread(RIGHT).astype(np.uint8)] * 3, axis=-1)
    options = {"compression": "webp", "compressionargs": {"lossless": True}}
    tifffile.imwrite(file, rgb, photometric="rgb", **options)
    np.testing.assert_array_equal(steps(file.getvalue()), RIGHT)


def test_tiff_palette_of_8_bits_written_as_16():
    table = np.stack([RIGHT, RIGHT[::-1], RIGHT])
    table = np.pad(table, ((0, 0), (0, 8))).ravel().tolist()
    encoded = tiff(spread(np.arange(8)), 4, photometric=3, tags={320: (3, table)})
    np.testing.assert_array_equal(steps(encoded), RIGHT)
    np.testing.assert_array_equal(steps(encoded, channel=1), RIGHT[::-1])


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (lambda g: tiff(g, 16, photometric=3), "uint16 whose ColorMap is missing"),
        (lambda g: tiff(g, 8, photometric=4), "PhotometricInterpretation is 4 is not supported"),
        (lambda g: tiff(g, 8, tags={262: (3, [])}), "PhotometricInterpretation is None"),
        (lambda g: tiff(np.stack([g] * 3, -1), 8, photometric=8), "PhotometricInterpretation is 8"),
        (lambda g: tiff(np.stack([g] * 5, -1), 8, extra=(0,) * 4), "SamplesPerPixel is 5"),
        (lambda g: tiff(np.stack([g] * 2, -1), 16, extra=(1,)), r"ExtraSamples is \(1,\)"),
        (lambda g: tiff(g, 12, "int"), r"int12 whose BitsPerSample is \(12,\) is not supported"),
        (lambda g: tiff(g, 32, tags={339: (3, [6])}), r"SampleFormat is \(6,\)"),
        (
            lambda g: tiff(np.stack([g] * 4, -1), 16, photometric=5, tags={332: (3, [2])}),
            "InkSet is 2",
        ),
        (
            lambda g: tiff(np.stack([g] * 3, -1), 8, tags={258: (3, [8, 8, 16])}),
            r"BitsPerSample is \(8, 8, 16\)",
        ),
        (
            lambda g: tiff(np.stack([g] * 9, -1), 8, photometric=2, extra=(0,) * 6),
            "SamplesPerPixel is 9",
        ),
        (lambda g: tiff(np.stack([g] * 3, -1), 8, photometric=6), "PhotometricInterpretation is 6"),
        (
            lambda g: tiff(np.stack([g] * 3, -1), 8, photometric=6, planar=2),
            "PlanarConfiguration is 2",
        ),
        (
            lambda g: tiff(np.stack([g] * 3, -1), 8, photometric=2, tags={532: (5, STUDIO)}),
            "ReferenceBlackWhite is .16",
        ),
        (
            lambda g: tiff(np.stack([g] * 4, -1), 8, photometric=5, tags={336: (3, [255, 0])}),
            r"DotRange is \(255, 0\)",
        ),
        (lambda g: tiff(g, 16)[:-900], "truncated"),
        (lambda g: tiff(g, 16, tags={256: (4, [60000]), 257: (4, [60000])}), "decompression bomb"),
        (lambda g: tiff(g * np.nan, 32, "float"), "not finite"),
    ],
)
def test_tiff_that_is_refused(encoded, message):
    grey = spread(np.arange(8.0))
    intensity = of_dataset("float32", 0, 7) if "finite" in message else IntensityRange()
    with pytest.raises(UnreadableImageError, match=message):
        images.decode(encoded(grey), intensity=intensity)


def test_tiff_that_declares_its_range():
    grey = spread(np.linspace(-1000, 3000, 8).round())
    declared = IntensityRange("declared")
    for bits, kind, tags in (
        (16, "int", {340: (8, [-1000]), 341: (8, [3000])}),
        (32, "float", {340: (11, [-1000.0]), 341: (11, [3000.0])}),
        (32, "int", {340: (9, [-1000]), 341: (9, [3000])}),
    ):
        encoded = tiff(grey, bits, kind, tags=tags)
        np.testing.assert_allclose(steps(encoded, declared), RIGHT, atol=1)
        with pytest.raises(UnreadableImageError, match="declares values of -1000 to 3000 but has"):
            images.decode(tiff(grey + 500, bits, kind, tags=tags), intensity=declared)


def test_tiff_of_rgb_and_more():
    grey = spread(ramp(0, 255))
    encoded = tiff(
        np.stack([grey, grey, grey, 255 - grey, grey], -1), 8, photometric=2, extra=(2, 0)
    )
    np.testing.assert_array_equal(steps(encoded), RIGHT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_wide_tiff_is_turned_upright(orientation):
    grey = np.arange(600).reshape(20, 30) * 100
    encoded = tiff(grey, 16, "int", tags={274: (3, [orientation])})
    eight = tiff((grey + 32768) >> 8, 8, tags={274: (3, [orientation])})
    expected = np.asarray(images.decode(eight))
    np.testing.assert_array_equal(np.asarray(images.decode(encoded)), expected)


@pytest.mark.parametrize(
    ("bits", "kind", "white"), [(8, "uint", 0), (16, "uint", 0), (12, "uint", 1), (8, "int", 1)]
)
def test_tiff_that_pillow_has_opened(bits, kind, white):
    row = ramp(*extremes(kind, bits))
    image = PIL.Image.open(io.BytesIO(tiff(spread(row), bits, kind, white)))
    result = np.asarray(images.convert(image))[0, ::SIDE, 0]
    np.testing.assert_array_equal(result, RIGHT if white else 255 - RIGHT)


def test_the_range_of_the_data_set_is_of_its_own_types_and_clips():
    encoded = tiff(spread([-500, 0, 100, 200, 300, 400, 700, 900]), 16, "int")
    result = steps(encoded, of_dataset("int16", 0, 700))
    np.testing.assert_array_equal(result, [0, 0, 36, 73, 109, 146, 255, 255])
    with pytest.raises(UnreadableImageError, match=r"int16.*not contain.*uint16 from 0 to 4095"):
        images.decode(encoded, intensity=of_dataset("uint16", 0, 4095))
