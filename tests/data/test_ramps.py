"""A ramp of eight values in every combination of bits, sign, polarity, range and packing.

Files are written by the tests' own writers (TIFF 6.0, PNG), by Pillow, tifffile and pydicom; the
right values come from the standards' formulas, written here.
"""

import io
import itertools
import struct
import zlib

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile

from egmae_jax.data import images
from egmae_jax.data.images import UnreadableImageError
from egmae_jax.data.samples import IntensityRange

RIGHT = np.array([0, 36, 73, 109, 146, 182, 219, 255])  # k / 7 of 255
SIDE = 8  # pixels of a step, so that one is a block of JPEG


def ramp(low, high, kind="uint"):
    """[8]: k / 7 of the way from low to high, as whole numbers unless they are 'float'."""
    if kind == "float":
        return low + np.arange(8) * ((high - low) / 7)
    values = [low + (2 * (high - low) * k + 7) // 14 for k in range(8)]
    return np.array(values, np.uint64 if high >= 2**63 else np.int64)


def spread(row):
    """[8, 64]: every value as a square."""
    return np.repeat(np.repeat(np.asarray(row)[None], SIDE, axis=0), SIDE, axis=1)


def steps(encoded, intensity=IntensityRange(), channel=0):  # noqa: B008 (is not changed)
    """int [8]: what a ramp is read as, every step being of one value."""
    image = images.decode(encoded, intensity=intensity)
    array = np.asarray(image).astype(int)
    assert array.shape == (SIDE, 8 * SIDE, 3)
    blocks = array[..., channel].reshape(SIDE, 8, SIDE)
    assert (blocks == blocks[:1, :, :1]).all()
    return blocks[0, :, 0]


def of_dataset(kind, low, high):
    return IntensityRange("dataset", {kind: (low, high)})


def extremes(kind, bits):
    """The least and largest value of a type."""
    if kind == "int":
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return (0, 2**bits - 1) if kind == "uint" else (-3.5, 1000.0)


# --- TIFF: TIFF 6.0 and the sample formats of its section 19 -------------------------------------


def tiff(
    values,
    bits,
    kind="uint",
    photometric=1,
    *,
    order="<",
    planar=1,
    fill=1,
    deflate=False,
    extra=(),
    tags=(),
):
    """A TIFF of one strip a plane. values: [H, W] or [H, W, channels] as they are to be stored."""
    values = values.reshape(*values.shape[:2], -1)
    height, width, channels = values.shape
    planes = [values] if planar == 1 else [values[..., k : k + 1] for k in range(channels)]
    strips = []
    for plane in planes:
        if kind == "float" or bits in (32, 64):
            name = {"uint": "u", "int": "i", "float": "f"}[kind]
            content = plane.astype(f"{order}{name}{bits // 8}").tobytes()
        elif bits == 16:
            content = plane.astype(np.int64).astype(np.uint16).astype(f"{order}u2").tobytes()
        else:  # packed from the highest bit on, rows beginning at a byte
            numbers = plane.reshape(height, -1).astype(np.int64) & (1 << bits) - 1
            ones = numbers[..., None] >> np.arange(bits - 1, -1, -1) & 1
            content = np.packbits(ones.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
        if deflate:
            content = zlib.compress(content)
        if fill == 2:
            content = bytes(int(f"{byte:08b}"[::-1], 2) for byte in content)
        strips.append(content)
    start, offsets = 8, []
    for strip in strips:
        offsets.append(start)
        start += len(strip) + len(strip) % 2
    code = {"uint": 1, "int": 2, "float": 3}[kind]
    entries = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [bits] * channels),
        259: (3, [8 if deflate else 1]),
        262: (3, [photometric]),
        266: (3, [fill]),
        273: (4, offsets),
        277: (3, [channels]),
        278: (3, [height]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [planar]),
        338: (3, list(extra)),
        339: (3, [code] * channels),
        **dict(tags),
    }
    entries = {tag: entry for tag, entry in sorted(entries.items()) if entry[1]}
    letters = {3: "H", 4: "I", 5: "I", 8: "h", 9: "i", 11: "f", 12: "d"}
    after = start + 2 + 12 * len(entries) + 4
    directory, longer = struct.pack(f"{order}H", len(entries)), b""
    for tag, (form, content) in entries.items():
        packed = struct.pack(f"{order}{len(content)}{letters[form]}", *content)
        if len(packed) > 4:
            field = struct.pack(f"{order}I", after + len(longer))
            longer += packed + b"\0" * (len(packed) % 2)
        else:
            field = packed.ljust(4, b"\0")
        count = len(content) // 2 if form == 5 else len(content)  # ratios are of two each
        directory += struct.pack(f"{order}HHI", tag, form, count) + field
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    body = b"".join(strip + b"\0" * (len(strip) % 2) for strip in strips)
    return head + body + directory + b"\0\0\0\0" + longer


def in_eight_bits(values, kind, bits):
    """The values in 0 to 255, when the type's range is black to white; of 9 to 16 the high byte."""
    low, _ = extremes(kind, bits)
    shifted = values.astype(np.int64) - low
    return shifted >> bits - 8 if bits > 8 else np.round(255 * shifted / (2**bits - 1)).astype(int)


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
            found = steps(encoded, intensity)
            np.testing.assert_array_equal(found, right if white else 255 - right, str(options))
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
        found = steps(file.getvalue(), intensity)
        np.testing.assert_allclose(found, RIGHT, atol=dtype == "float16")


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


def uncompressed_ycbcr(grey, ratios=None):
    """Of the sampling that Pillow reads, where other tags, of ratios, are given."""
    values = np.stack([grey, np.full_like(grey, 128), np.full_like(grey, 128)], -1)
    tags = {tag: (5, content) for tag, content in (ratios or {}).items()}
    return tiff(values, 8, photometric=6, tags=tags | ({530: (3, [1, 1])} if ratios else {}))


def test_uncompressed_ycbcr_that_pillow_reads_right():
    usual = {
        529: [299, 1000, 587, 1000, 114, 1000],
        532: [0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1],
    }
    np.testing.assert_array_equal(steps(uncompressed_ycbcr(spread(RIGHT), usual)), RIGHT)


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
        (lambda g: tiff(g, 16, photometric=3), r"16 bits \(uint16\) that are a palette's"),
        (lambda g: tiff(g, 8, photometric=4), "is 4 .transparency mask. is not supported"),
        (lambda g: tiff(g, 8, tags={262: (3, [])}), "PhotometricInterpretation is missing"),
        (lambda g: tiff(np.stack([g] * 3, -1), 16, photometric=8), r"is 8 \(CIELab\)"),
        (lambda g: tiff(np.stack([g] * 3, -1), 8, photometric=8), "CIELab"),
        (lambda g: tiff(np.stack([g] * 5, -1), 16, extra=(0,) * 4), "5 samples a pixel"),
        (lambda g: tiff(np.stack([g] * 5, -1), 8, extra=(0,) * 4), "5 samples a pixel"),
        (lambda g: tiff(np.stack([g] * 2, -1), 16, extra=(1,)), "multiplied by their alpha"),
        (lambda g: tiff(g, 12, "int"), r"12 bits \(int12\) is not supported"),
        (lambda g: tiff(g, 16, tags={339: (3, [4])}), "SampleFormat is 4"),
        (lambda g: tiff(g, 32, tags={339: (3, [6])}), "SampleFormat is 6"),
        (
            lambda g: tiff(np.stack([g] * 4, -1), 16, photometric=5, tags={332: (3, [2])}),
            "inks other than CMYK",
        ),
        (lambda g: tiff(np.stack([g] * 3, -1), 8, tags={258: (3, [8, 8, 16])}), "differ by ch"),
        (lambda g: tiff(np.stack([g] * 9, -1), 8, photometric=2, extra=(0,) * 6), "9 samples a p"),
        (lambda g: uncompressed_ycbcr(g), r"YCbCrSubSampling is \(2, 2\)"),  # which is the default
        (lambda g: uncompressed_ycbcr(g, {529: [2126, 10000, 7152, 10000, 722, 10000]}), "Coeff"),
        (lambda g: uncompressed_ycbcr(g, {532: STUDIO}), "ReferenceBlackWhite is .16"),
        (lambda g: tiff(np.stack([g] * 3, -1), 8, photometric=6, planar=2), "separate planes"),
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
        (lambda g: tiff(g * np.nan, 32, "float"), "no finite numbers"),
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
        with pytest.raises(UnreadableImageError, match="declares values of -1000 to 3000 and hol"):
            images.decode(tiff(grey + 500, bits, kind, tags=tags), intensity=declared)


def test_tiff_of_rgb_and_more():
    grey = spread(ramp(0, 255))
    encoded = tiff(
        np.stack([grey, grey, grey, 255 - grey, grey], -1), 8, photometric=2, extra=(2, 0)
    )
    np.testing.assert_array_equal(steps(encoded), RIGHT)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["tiff", "palette", "deflated", "png", "jpeg", "dicom"])
def test_damaged_bytes_bring_no_other_exception(kind):
    values = spread(ramp(0, 4095))
    encoded = {
        "tiff": lambda: tiff(values, 12, planar=2),
        "palette": lambda: tiff(values >> 4, 8, photometric=3, tags={320: (3, [9] * 768)}),
        "deflated": lambda: tiff(values, 16, "int", deflate=True),
        "png": lambda: png(np.stack([values] * 3, -1), 16, 2, [(b"sBIT", b"\x0c" * 3)]),
        "jpeg": lambda: imagecodecs.jpeg8_encode(values.astype("u2"), bitspersample=12),
        "dicom": lambda: dicom(values, bits=12, preamble=False, VOILUTSequence=[table([9], 0, 8)]),
    }[kind]()
    rng = np.random.default_rng(0)
    whole = np.frombuffer(encoded, np.uint8)
    for trial in range(150):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=4)] = rng.integers(0, 256, 4)
        damaged = damaged[: len(whole) if trial % 3 else rng.integers(len(whole))]
        for rule in (IntensityRange(), IntensityRange("declared")):
            try:
                images.decode(damaged.tobytes(), intensity=rule)  # what still decodes is an image
            except UnreadableImageError as error:
                assert str(error)  # noqa: PT017 (either outcome is right)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_wide_tiff_is_turned_upright(orientation):
    grey = np.arange(600).reshape(20, 30) * 100
    encoded = tiff(grey, 16, "int", tags={274: (3, [orientation])})
    eight = tiff((grey + 32768) >> 8, 8, tags={274: (3, [orientation])})
    opened = PIL.Image.open(io.BytesIO(encoded))
    opened.load()
    expected = np.asarray(images.decode(eight))
    np.testing.assert_array_equal(np.asarray(images.decode(encoded)), expected)
    np.testing.assert_array_equal(np.asarray(images.convert(opened)), expected)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    ("bits", "kind", "white"),
    [
        *((8, "uint", 0), (16, "uint", 0), (16, "uint", 1), (12, "uint", 1)),
        *((8, "int", 1), (16, "int", 1)),
    ],
)
def test_tiff_that_pillow_has_opened(bits, kind, white, loaded):
    row = ramp(*extremes(kind, bits))
    image = PIL.Image.open(io.BytesIO(tiff(spread(row), bits, kind, white)))
    if loaded:
        image.load()
    found = np.asarray(images.convert(image))[0, ::SIDE, 0]
    np.testing.assert_array_equal(found, RIGHT if white else 255 - RIGHT)


# --- PNG -----------------------------------------------------------------------------------------


def png(values, bits, colour_type, chunks=()):
    """values: [H, W, channels] as they are stored."""

    def chunk(name, data):
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    values = values.reshape(*values.shape[:2], -1)
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        ones = values.astype(np.int64)[..., None] >> np.arange(bits - 1, -1, -1) & 1
        packed = np.packbits(ones.reshape(len(values), -1).astype(np.uint8), axis=1)
        rows = [row.tobytes() for row in packed]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(name, data)
        for name, data in (
            (b"IHDR", header),
            *chunks,
            (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            (b"IEND", b""),
        )
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
    for encoded in (plain, with_sbit):
        found = steps(encoded, of_dataset("uint16", 0, 2**bits - 1))
        np.testing.assert_allclose(found, RIGHT, atol=1)
    declared = IntensityRange("declared")
    np.testing.assert_allclose(steps(with_sbit, declared), RIGHT, atol=1)
    np.testing.assert_array_equal(steps(plain, declared), row >> 8)
    # PNG (13.12) asks for the significant bits on top, and below them the same again or nothing.
    for low in (row >> (2 * bits - 16), 0):
        full = np.repeat(spread(row << (16 - bits) | low)[..., None], channels, axis=-1)
        scaled = png(full, 16, colour_type, [(b"sBIT", bytes([bits] * channels))])
        for intensity in (IntensityRange("type"), declared):
            np.testing.assert_allclose(steps(scaled, intensity), RIGHT, atol=1)
    full[0] = 4099  # is neither
    odd = png(full, 16, colour_type, [(b"sBIT", bytes([bits] * channels))])
    with pytest.raises(UnreadableImageError, match=r"declares values of 0 to .* and holds 0 to 6"):
        images.decode(odd, intensity=declared)
    for color in images.COLORS:  # not yet read, it is as the file
        opened = PIL.Image.open(io.BytesIO(plain))
        intensity = of_dataset("uint16", 0, 2**bits - 1)
        found = images.convert(opened, color, intensity)
        assert found.tobytes() == images.decode(plain, color, intensity).tobytes()


def test_another_range_for_each_colour_is_refused_where_it_is_asked_for():
    values = np.stack([spread(ramp(0, most)) for most in (31, 63, 31)], -1).astype(int)
    encoded = png(values, 16, 2, [(b"sBIT", b"\5\6\5")])
    np.testing.assert_array_equal(steps(encoded), 0)  # by type
    with pytest.raises(UnreadableImageError, match="another range for each of its colours"):
        images.decode(encoded, intensity=IntensityRange("declared"))


def test_a_type_of_which_the_data_set_has_none_is_refused():
    encoded = tiff(spread(ramp(-100, 100)), 16, "int")
    with pytest.raises(UnreadableImageError, match=r"int16.*has none.*uint16 from 0 to 4095"):
        images.decode(encoded, intensity=of_dataset("uint16", 0, 4095))


def test_values_beyond_the_range_are_black_and_white():
    encoded = tiff(spread([-500, 0, 100, 200, 300, 400, 700, 900]), 16, "int")
    found = steps(encoded, of_dataset("int16", 0, 700))
    np.testing.assert_array_equal(found, [0, 0, 36, 73, 109, 146, 255, 255])


# --- JPEG, BMP, WebP -----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("bits", "lossless"), [(8, False), (12, False), (12, True), (16, True)])
def test_jpeg(bits, lossless, channels):
    grey = spread(ramp(0, 2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    values = grey if channels == 1 else np.repeat(grey[..., None], 3, axis=-1)
    encoded = imagecodecs.jpeg8_encode(values, level=100, bitspersample=bits, lossless=lossless)
    found = np.asarray(images.decode(encoded)).astype(int)[4, 4::SIDE]
    np.testing.assert_allclose(found, np.repeat(RIGHT[:, None], 3, axis=1), atol=1)
    if bits > 8:
        assert images.stored_range(encoded)[0] == f"uint{bits}"
        with pytest.raises(UnreadableImageError, match="truncated"):
            images.decode(encoded[: len(encoded) - 30])


def test_jpeg_of_12_bits_is_turned_upright():
    values = np.zeros((16, 24), np.uint16)
    values[:, :8] = 4095
    encoded = imagecodecs.jpeg8_encode(values, level=100, bitspersample=12)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left is the top
    content = exif.tobytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
    turned = np.asarray(images.decode(encoded[:2] + segment + encoded[2:]))
    assert turned.shape == (24, 16, 3)
    assert turned[:8].min() > 250
    assert turned[8:].max() < 5


def cmyk_jpeg():
    grey = spread(RIGHT).astype(np.uint8)
    ink = np.stack([255 - grey] * 3 + [np.zeros_like(grey)], axis=-1)
    file = io.BytesIO()
    PIL.Image.frombytes("CMYK", (64, 8), ink.tobytes()).save(file, "JPEG", quality=100)
    return file.getvalue()


def test_cmyk_jpeg_is_inverted_as_adobe_does():
    found = np.asarray(images.decode(cmyk_jpeg())).astype(int)[4, 4::SIDE, 0]
    np.testing.assert_allclose(found, RIGHT, atol=2)


def test_cmyk_jpeg_without_adobes_marker_is_refused():
    encoded = cmyk_jpeg()
    start = encoded.index(b"\xff\xee")
    (length,) = struct.unpack_from(">H", encoded, start + 2)
    with pytest.raises(UnreadableImageError, match="without Adobe's marker"):
        images.decode(encoded[:start] + encoded[start + 2 + length :])


@pytest.mark.parametrize("marker", [0xC5, 0xCB, 0xF7])
def test_kinds_of_jpeg_that_are_not_read_are_named(marker):
    encoded = imagecodecs.jpeg8_encode(spread(RIGHT).astype(np.uint8), level=90)
    place = encoded.index(b"\xff\xc0")
    changed = encoded[: place + 1] + bytes([marker]) + encoded[place + 2 :]
    with pytest.raises(UnreadableImageError, match=r"(hierarchical|lossless|JPEG-LS).*not supp"):
        images.decode(changed)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("file_format", ["BMP", "WEBP", "PNG"])
def test_eight_bits_of_other_formats(file_format, mode):
    image = PIL.Image.fromarray(spread(RIGHT).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, file_format, **({"lossless": True} if file_format == "WEBP" else {}))
    np.testing.assert_array_equal(steps(file.getvalue()), RIGHT)


def test_bmp_of_5_bits_a_channel():
    row = ramp(0, 31).astype(int)
    values = (spread(row) << 10 | spread(row) << 5 | spread(row)).astype("<u2")
    size = 14 + 40 + values.nbytes
    head = struct.pack("<2sIHHI", b"BM", size, 0, 0, 54)
    head += struct.pack("<IiiHHIIiiII", 40, 64, 8, 1, 16, 0, values.nbytes, 0, 0, 0, 0)
    np.testing.assert_allclose(steps(head + values.tobytes()), np.round(row * 255 / 31), atol=1)


# --- DICOM: PS3.3, C.7.6.3.1 (pixels), C.11.1 (modality), C.11.2 (VOI), C.7.5.1.1.2 (padding) ----


def dicom(
    stored,
    *,
    bits=16,
    allocated=16,
    high=None,
    signed=False,
    garbage=0,
    syntax="explicit",
    preamble=True,
    meta=True,
    colours="MONOCHROME2",
    groups=None,
    **elements,
):
    """A DICOM file's bytes.

    Args:
        stored: the values, [H, W] or [H, W, 3].
        bits, allocated, high, signed: BitsStored, BitsAllocated, HighBit (the highest of the value
            if None) and PixelRepresentation.
        garbage: what stands in the bits of a cell that are not the value's, as overlays do.
        syntax: of SYNTAXES.
        preamble, meta: whether these are written.
        groups: 'shared' or 'frame': the functional group that RescaleSlope, RescaleIntercept and
            the window are put into; None: the top.
        **elements: by keyword.
    """
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset

    high = bits - 1 if high is None else high
    cells = (np.asarray(stored).astype(np.int64) & (1 << bits) - 1) << high + 1 - bits
    mask = ((1 << bits) - 1) << high + 1 - bits
    cells |= garbage & ((1 << allocated) - 1) & ~mask
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    dataset.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = cells.shape[:2]
    dataset.SamplesPerPixel = 3 if cells.ndim == 3 else 1
    if cells.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = colours
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, high
    dataset.PixelRepresentation = int(signed)
    order = ">" if syntax == "big" else "<"
    content = cells.astype(f"{order}u{allocated // 8}").tobytes()
    if groups is not None:
        dataset.NumberOfFrames = 1
        group, modality, view = Dataset(), Dataset(), Dataset()
        for name in ("RescaleSlope", "RescaleIntercept"):
            setattr(modality, name, elements.pop(name))
        for name in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
            setattr(view, name, elements.pop(name))
        group.PixelValueTransformationSequence = [modality]
        group.FrameVOILUTSequence = [view]
        # What stands at the top or in the group that gives way is not of the frame.
        wrong = Dataset()
        wrong.RescaleSlope, wrong.RescaleIntercept = 7, 77
        other = Dataset()
        other.PixelValueTransformationSequence = [wrong]
        if groups == "frame":
            dataset.PerFrameFunctionalGroupsSequence = [group]
            dataset.SharedFunctionalGroupsSequence = [other]
        else:
            dataset.PerFrameFunctionalGroupsSequence = [Dataset()]
            dataset.SharedFunctionalGroupsSequence = [group]
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = content
    dataset["PixelData"].VR = "OB" if allocated == 8 and syntax != "implicit" else "OW"
    if syntax == "rle":
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.compress(uid.RLELossless)
    file = io.BytesIO()
    dataset.preamble = b"\0" * 128
    dataset.save_as(file, enforce_file_format=True)
    encoded = file.getvalue()
    if not meta:  # the data set alone
        (length,) = struct.unpack_from("<I", encoded, 140)
        return encoded[144 + length :]
    return encoded if preamble else encoded[132:]


SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big": "1.2.840.10008.1.2.2",
    "rle": "1.2.840.10008.1.2.1",
}


def table(entries, first, bits, vr="US"):
    """A lookup table as PS3.3, C.11.1.1.1 has it."""
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

    item = Dataset()
    item.add(DataElement(0x00283002, "SS" if first < 0 else "US", [len(entries), first, bits]))
    value = [int(entry) for entry in entries]
    if vr == "OW":
        value = np.array(value, "<u2").tobytes()
    item.add(DataElement(0x00283006, vr, value))
    return item


def linear(values, center, width):
    """PS3.3, C.11.2.1.2.1, from 0 to 255."""
    low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    between = ((values - (center - 0.5)) / max(width - 1, 1e-9) + 0.5) * 255
    return np.where(values <= low, 0, np.where(values > high, 255, between))


def linear_exact(values, center, width):
    """PS3.3, C.11.2.1.3.2, from 0 to 255."""
    between = ((values - center) / width + 0.5) * 255
    low, high = center - width / 2, center + width / 2
    return np.where(values <= low, 0, np.where(values > high, 255, between))


def sigmoid(values, center, width):
    """PS3.3, C.11.2.1.3.1, from 0 to 255."""
    return 255 / (1 + np.exp(-4 * (values - center) / width))


WINDOWS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}


def dicom_steps(*args, **elements):
    return steps(dicom(*args, **elements))


pydicom = pytest.importorskip("pydicom")


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.filterwarnings("error")
def test_dicom(bits, signed, syntax, every):
    low, high = extremes("int" if signed else "uint", bits)
    row = ramp(low, high)
    stored = spread(row)
    cells = [(8, 7)] if bits == 8 else []
    cells += [(16, place) for place in sorted({bits - 1, 13, 15}) if place >= bits - 1]
    rescales = [None, (1, -1024), (2.5, 100), (-1, 0)]
    views = [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"]
    if syntax == "rle":  # pydicom writes one byte of values of 8 bits, whatever is allocated
        cells = [cell for cell in cells if bits > 8 or cell[0] == 8]
    if not every:
        cells, rescales = cells[:: max(len(cells) - 1, 1)], rescales[::2]
        views = views if syntax == "explicit" and bits in (8, 12) else [None, "LINEAR"]
    for (allocated, place), colours, rescale, view in itertools.product(
        cells, ("MONOCHROME1", "MONOCHROME2"), rescales, views
    ):
        elements, values = {}, row.astype(float)
        if rescale:
            elements["RescaleSlope"], elements["RescaleIntercept"] = rescale
            values = rescale[0] * values + rescale[1]
        right = 255 * (values - values.min()) / np.ptp(values)
        if view:
            center, width = np.median(values).round(), (0.8 * np.ptp(values)).round()
            elements |= {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": view}
            right = WINDOWS[view](values, center, width)
        if colours == "MONOCHROME1":
            right = 255 - right
        options = {"bits": bits, "allocated": allocated, "high": place, "signed": signed}
        found = dicom_steps(
            stored, syntax=syntax, garbage=0xA5A5, colours=colours, **options, **elements
        )
        np.testing.assert_allclose(found, right, atol=0.51, err_msg=f"{options} {elements}")
        if view is None and rescale != (-1, 0):
            expected = RIGHT if colours == "MONOCHROME2" else 255 - RIGHT
            np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize("groups", ["shared", "frame"])
@pytest.mark.parametrize("function", WINDOWS)
def test_dicom_functional_groups(function, groups):
    row = ramp(0, 4095)
    found = dicom_steps(
        *(spread(row),),
        **{"bits": 12, "groups": groups, "RescaleSlope": 2, "RescaleIntercept": -1000},
        **{"WindowCenter": 2000, "WindowWidth": 4000, "VOILUTFunction": function},
    )
    right = WINDOWS[function](2.0 * row - 1000, 2000, 4000)
    np.testing.assert_allclose(found, right, atol=0.51)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.filterwarnings("error")
def test_dicom_voi_table(bits, vr, signed):
    first = -4 if signed else 20
    stored = spread(first + np.arange(8))
    up = ramp(0, 2**bits - 1).astype(int)
    tables = {
        "ascends": up,
        "descends": up[::-1],
        "equal ends": [0, *up[1:-1], 0],
        "rises and falls": [*up[::2], *up[1::2][::-1]],
        "part of the range": up // 2 + up[1],
        "one value": [up[3]] * 8,
    }
    for (name, entries), colours in itertools.product(
        tables.items(), ("MONOCHROME1", "MONOCHROME2")
    ):
        entries = np.asarray(entries)
        span = max(np.ptp(entries), 1)
        right = 255 * (entries - entries.min()) / span
        right = 255 - right if colours == "MONOCHROME1" else right
        for voi in (table(entries, first, bits, vr), table(entries, first, 16, vr)):
            options = {"signed": signed, "colours": colours, "VOILUTSequence": [voi]}
            np.testing.assert_allclose(
                dicom_steps(stored, **options), right, atol=0.51, err_msg=name
            )
        if not signed:  # with a rescale that makes the values negative
            voi = table(entries, first - 100, bits, vr)
            options |= {"VOILUTSequence": [voi], "RescaleSlope": 1, "RescaleIntercept": -100}
            np.testing.assert_allclose(dicom_steps(stored, **options), right, atol=0.51)


def test_dicom_table_beyond_whose_ends_values_take_these():
    voi = table([100, 200, 300], 3, 16)
    found = dicom_steps(spread(np.arange(8)), VOILUTSequence=[voi])
    np.testing.assert_allclose(found, [0, 0, 0, 0, 127.5, 255, 255, 255], atol=0.51)


def test_dicom_table_of_signed_entries():
    entries = [-700, -600, -500, -400, -300, -200, -100, 0]
    found = dicom_steps(spread(np.arange(8)), VOILUTSequence=[table(entries, 0, 16, "SS")])
    np.testing.assert_array_equal(found, RIGHT)


@pytest.mark.parametrize("syntax", ["explicit", "big"])
def test_dicom_table_of_8_bits_packed_in_words(syntax):
    from pydicom.dataelem import DataElement

    voi = table(RIGHT, 0, 8)
    packed = RIGHT.astype(np.uint8).view("<u2").astype(">u2" if syntax == "big" else "<u2")
    voi[0x00283006] = DataElement(0x00283006, "OW", packed.tobytes())
    found = dicom_steps(spread(np.arange(8)), syntax=syntax, VOILUTSequence=[voi])
    np.testing.assert_array_equal(found, RIGHT)


@pytest.mark.parametrize("signed", [False, True])
def test_dicom_modality_table(signed):
    first = -3 if signed else 5
    entries = [0, 5, 60, 1000, 2000, 50000, 60000, 65535]
    options = {"signed": signed, "ModalityLUTSequence": [table(entries, first, 16)]}
    found = dicom_steps(spread(first + np.arange(8)), **options)
    np.testing.assert_allclose(found, 255 * np.array(entries) / 65535, atol=0.51)
    window = {"WindowCenter": 1000.5, "WindowWidth": 2001}
    found = dicom_steps(spread(first + np.arange(8)), **options, **window)
    np.testing.assert_allclose(found, linear(np.array(entries), 1000.5, 2001), atol=0.51)


@pytest.mark.parametrize("limit", [None, 3, -2])
@pytest.mark.parametrize("colours", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("signed", "value"), [(True, -2000), (True, 2000), (False, 0), (False, 4095)]
)
@pytest.mark.parametrize("rescale", [(1, 0), (2, -1000)])
@pytest.mark.parametrize("view", [None, "LINEAR", "table"])
@pytest.mark.filterwarnings("error")
def test_dicom_padding(view, rescale, signed, value, colours, limit):
    bits = 16 if signed else 12
    row = ramp(1000, 1700) - (500 if signed else 0)
    row[2] = value
    elements = {"PixelPaddingValue": value}
    if limit is not None:
        if not 0 <= value + limit < 4096 and not signed:
            limit = -limit
        elements["PixelPaddingRangeLimit"] = value + limit
        row[5] = value + np.sign(limit)
    padding = np.isin(row, [value, value + np.sign(limit or 0)])
    elements["RescaleSlope"], elements["RescaleIntercept"] = rescale
    values = rescale[0] * row.astype(float) + rescale[1]
    kept = values[~padding]
    right = 255 * (values - kept.min()) / np.ptp(kept)
    if view == "LINEAR":
        elements |= {"WindowCenter": kept.mean(), "WindowWidth": np.ptp(kept) // 2}
        right = linear(values, kept.mean(), np.ptp(kept) // 2)
    elif view == "table":
        first = int(kept.min())
        entries = np.arange(int(np.ptp(kept)) + 1)
        elements["VOILUTSequence"] = [table(entries, first, 16)]
    if colours == "MONOCHROME1":
        right = 255 - right
    right[padding] = 0
    found = dicom_steps(spread(row), bits=bits, signed=signed, colours=colours, **elements)
    np.testing.assert_allclose(found, right, atol=0.51)


def test_dicom_padding_written_in_the_other_sign():
    from pydicom.dataelem import DataElement

    row = np.array([-2000, 0, 100, 200, 300, 400, 500, 700])
    dataset = pydicom.dcmread(io.BytesIO(dicom(spread(row), signed=True)))
    dataset[0x00280120] = DataElement(0x00280120, "US", 63536)
    file = io.BytesIO()
    dataset.save_as(file)
    np.testing.assert_allclose(steps(file.getvalue())[1:], 255 * row[1:] / 700, atol=0.51)


def test_dicom_that_is_padding_all_over_is_black():
    found = dicom_steps(spread([5] * 8), PixelPaddingValue=5, colours="MONOCHROME1")
    assert (found == 0).all()


def padded(row, cell, value):
    """A DICOM file of 12 bits in cells of 16, the first of them `cell`, with this padding."""
    from pydicom.dataelem import DataElement

    dataset = pydicom.dcmread(io.BytesIO(dicom(spread(row), bits=12)))
    cells = np.frombuffer(dataset.PixelData, "<u2").copy()
    cells[cells == row[0]] = cell
    dataset.PixelData = cells.tobytes()
    dataset.add(DataElement(0x00280120, "US", value))
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def test_dicom_padding_of_more_bits_than_are_stored():
    row = np.array([0x830, 0, 100, 200, 300, 400, 500, 700])
    expected = [0, *np.round(255 * row[1:] / 700)]
    for cell in (0xF830, 0x830):  # where it is written with these bits
        np.testing.assert_allclose(steps(padded(row, cell, cell)), expected, atol=1)
    row[0] = 4095
    with pytest.raises(UnreadableImageError, match="PixelPaddingValue 65535 has more bits than"):
        images.decode(padded(row, 4095, 65535))
    row[0] = 0  # no pixel could be it
    np.testing.assert_allclose(steps(padded(row, 0, 65535)), np.round(255 * row / 700), atol=1)


def test_dicom_palette_of_8_bits_declared_as_16():
    elements = {}
    for name in ("Red", "Green", "Blue"):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [8, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = RIGHT.astype("<u2").tobytes()
    encoded = dicom(spread(np.arange(8)), colours="PALETTE COLOR", **elements)
    np.testing.assert_array_equal(steps(encoded), RIGHT)


@pytest.mark.parametrize("frames", [0, ""])
@pytest.mark.filterwarnings("error")
def test_dicom_without_a_number_of_frames_has_one(frames):
    encoded = dicom(spread(ramp(0, 65535)), NumberOfFrames=frames)
    np.testing.assert_array_equal(steps(encoded), RIGHT)


@pytest.mark.parametrize("first", [0, 200, 1000])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("count", [8, 300])
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big"])
def test_dicom_palette(syntax, count, bits, first):
    largest = 2**bits - 1
    red = np.full(count, largest)
    red[:8] = ramp(0, largest)
    columns = {"Red": red, "Green": largest - red, "Blue": red}
    elements = {}
    for name, column in columns.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [count, first, bits]
        kind = "u1" if bits == 8 else (">u2" if syntax == "big" else "<u2")
        content = column.astype(kind)
        if bits == 8 and syntax == "big":  # packed in words
            content = content.view("<u2").astype(">u2")
        elements[f"{name}PaletteColorLookupTableData"] = content.tobytes()
    row = first + np.arange(8)
    encoded = dicom(spread(row), syntax=syntax, colours="PALETTE COLOR", **elements)
    np.testing.assert_array_equal(steps(encoded), RIGHT)
    np.testing.assert_array_equal(steps(encoded, channel=1), 255 - RIGHT)
    row[7] = first + count + 700  # beyond the table: its last entry
    encoded = dicom(spread(row), syntax=syntax, colours="PALETTE COLOR", **elements)
    expected = [*RIGHT[:7], 255]
    np.testing.assert_array_equal(steps(encoded), expected)


@pytest.mark.parametrize(("bits", "allocated"), [(8, 8), (12, 16), (16, 16)])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_dicom_rgb(syntax, bits, allocated):
    grey = spread(ramp(0, 2**bits - 1))
    rgb = np.stack([grey, grey[:, ::-1], grey], axis=-1)
    encoded = dicom(rgb, bits=bits, allocated=allocated, syntax=syntax, colours="RGB")
    np.testing.assert_array_equal(steps(encoded), RIGHT)
    np.testing.assert_array_equal(steps(encoded, channel=1), RIGHT[::-1])


def test_dicom_ybr():
    grey = spread(RIGHT)
    ybr = np.stack([grey, np.full_like(grey, 128), np.full_like(grey, 128)], axis=-1)
    found = dicom_steps(ybr, bits=8, allocated=8, colours="YBR_FULL")
    np.testing.assert_allclose(found, RIGHT, atol=1)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [12, 16])
def test_dicom_of_lossless_codecs(bits, signed):
    from pydicom import uid
    from pydicom.encaps import encapsulate

    low, high = extremes("int" if signed else "uint", bits)
    row = ramp(low, high)
    dataset = pydicom.dcmread(io.BytesIO(dicom(spread(row), bits=bits, signed=signed)))
    frame = imagecodecs.jpeg2k_encode(
        spread(row).astype(np.int16 if signed else np.uint16),
        level=0, codecformat="j2k", bitspersample=bits, reversible=True,
    )  # fmt: skip
    dataset.PixelData = encapsulate([frame])
    dataset.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    file = io.BytesIO()
    dataset.save_as(file)
    np.testing.assert_allclose(steps(file.getvalue()), RIGHT, atol=1)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big"])
@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.filterwarnings("error")
def test_dicom_without_preamble(meta, syntax):
    encoded = dicom(spread(ramp(0, 65535)), syntax=syntax, preamble=False, meta=meta)
    assert encoded[128:132] != b"DICM"
    np.testing.assert_array_equal(steps(encoded), RIGHT)


def with_float_pixels():
    from pydicom.dataelem import DataElement

    dataset = pydicom.dcmread(io.BytesIO(dicom(spread(RIGHT))))
    del dataset.PixelData
    dataset.BitsAllocated = 32
    dataset.add(DataElement(0x7FE00008, "OF", spread(RIGHT).astype("<f4").tobytes()))
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"WindowCenter": 5, "WindowWidth": 0.5}, r"WindowWidth is 0.5; of a LINEAR window.*at le"),
        (
            {"WindowCenter": 5, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
            "SIGMOID window it must be above 0",
        ),
        (
            {"WindowCenter": 5, "WindowWidth": 5, "VOILUTFunction": "CUBIC"},
            "CUBIC is not supported",
        ),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "RescaleSlope is 0"),
        ({"PresentationLUTShape": "INVERSE"}, "contradict each other"),
        (
            {"PresentationLUTShape": "IDENTITY", "colours": "MONOCHROME1"},
            "contradict each other: INVERSE is expected",
        ),
        ({"WindowCenter": 5, "WindowWidth": "9e9999"}, "WindowWidth inf are no finite numbers"),
        ({"bits": 12, "allocated": 16, "high": 10}, "HighBit 10.*contradict"),
        ({"colours": "HSV"}, "HSV of 1 samples a pixel is not supported"),
        ({"colours": "RGB"}, "RGB of 1 samples"),
        ({"PixelPresentation": "COLOR"}, "PixelPresentation COLOR"),
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"colours": None}, "lacks PhotometricInterpretation"),
        ({"Rows": None}, "lacks Rows"),
    ],
)
def test_dicom_that_is_refused(elements, message):
    high = elements.pop("high", None) if "high" in elements else None
    encoded = dicom(spread(np.arange(8)), **elements)
    if high is not None:
        dataset = pydicom.dcmread(io.BytesIO(encoded))
        dataset.HighBit = high
        file = io.BytesIO()
        dataset.save_as(file)
        encoded = file.getvalue()
    with pytest.raises(UnreadableImageError, match=message):
        images.decode(encoded)


def test_dicom_without_high_bit_has_it_where_the_standard_wants_it():
    dataset = pydicom.dcmread(io.BytesIO(dicom(spread(ramp(0, 4095)), bits=12, garbage=0xF000)))
    del dataset.HighBit
    file = io.BytesIO()
    dataset.save_as(file)
    np.testing.assert_array_equal(steps(file.getvalue()), RIGHT)


def test_dicom_of_floats_is_refused():
    with pytest.raises(UnreadableImageError, match=r"FloatPixelData.*not supported"):
        images.decode(with_float_pixels())


@pytest.mark.parametrize("width", [0.001, 0.5, 1, 3])
@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_dicom_narrow_windows(function, width):
    values = np.arange(8) * 0.001
    options = {"RescaleSlope": 0.001, "RescaleIntercept": 0, "VOILUTFunction": function}
    found = dicom_steps(spread(np.arange(8)), WindowCenter=0.003, WindowWidth=width, **options)
    np.testing.assert_allclose(found, WINDOWS[function](values, 0.003, width), atol=0.51)


def test_dicom_linear_window_of_width_1_is_a_step():
    found = dicom_steps(spread(np.arange(8)), WindowCenter=4, WindowWidth=1)
    np.testing.assert_array_equal(found, [0, 0, 0, 0, 255, 255, 255, 255])
