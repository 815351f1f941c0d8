"""The values that an image file stores, read by the file's own tags, and how they become 8 bits.

TIFF comes through here, and so do PNG and JPEG of more than 8 bits a value: which bits, sign,
polarity and range values have is what the file declares (TIFF 6.0, sections 8 and 19; PNG, IHDR and
sBIT; JPEG's precision), never the mode that a library gives them. All else Pillow reads.
"""

import io
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import imagecodecs
import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import tifffile

from egmae_jax.core.errors import UserError
from egmae_jax.core.quiet import unlogged

Rule = Literal["type", "declared", "dataset"]
RULES = get_args(Rule)
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREY, _RGB, _CMYK = 1, 3, 4  # samples of a colour
_WIDEST = 16  # bits of integers whose type says what is black and what is white
_CONVERT = "convert it to 8 or 16 bits of grey or RGB"


class SamplesError(UserError):
    """The file's values cannot be shown; the message names what they are and what would do."""


class IntensityRange(NamedTuple):
    """Which values of files with more than 8 bits a value become black and white.

    Attributes:
        rule: 'type', 'declared' or 'dataset'; see data.intensity_range in run/default_config.py.
        of_dataset: with 'dataset', the least and largest value of the set's files by the type of
            their values, such as {'uint16': (0, 4095)}.
    """

    rule: Rule = "type"
    of_dataset: Mapping[str, tuple[float, float]] = {}


BY_TYPE = IntensityRange()


def to_json(intensity: IntensityRange) -> dict[str, Any]:
    """As JSON keeps it; see `from_json`."""
    return {
        "rule": intensity.rule,
        "of_dataset": {k: list(v) for k, v in intensity.of_dataset.items()},
    }


def listed(intensity: IntensityRange) -> str:
    """The ranges of a data set for people: 'uint16 from 0 to 4095'."""
    ranges = [f"{k} from {low:g} to {high:g}" for k, (low, high) in intensity.of_dataset.items()]
    return ", ".join(ranges) or "no type of more than 8 bits"


def lies_beyond(intensity: IntensityRange, kind: str, least: float, largest: float) -> bool:
    """Whether a file has values outside the range of the data set: they become black or white.

    Args:
        intensity: by which it is decoded.
        kind: type of its values, such as 'uint16'.
        least, largest: of its values.
    """
    if intensity.rule != "dataset" or kind not in intensity.of_dataset:
        return False
    low, high = intensity.of_dataset[kind]
    return least < low or largest > high


def from_json(content: Any) -> IntensityRange:
    """The inverse of `to_json`.

    Raises:
        ValueError: it is not what `to_json` gives.
    """
    try:
        rule, of_dataset = content["rule"], content["of_dataset"]
        ranges = {str(kind): (float(low), float(high)) for kind, (low, high) in of_dataset.items()}
        if rule not in RULES or not np.isfinite(list(ranges.values())).all():
            raise ValueError(rule)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"no range of intensities: {error!r}") from None
    return IntensityRange(rule, ranges)


class Samples(NamedTuple):
    """The pixels of one image as its file stores them.

    Attributes:
        values: [H, W] of grey, [H, W, 3] of RGB or [H, W, 4] of CMYK; integers or floats.
        type: of the values as the file declares it, such as 'uint12', 'int16' or 'float32'.
        min_is_white: whether the least value is white (TIFF's PhotometricInterpretation 0).
        declared: the least and largest value that the file itself declares, if it does: PNG's
            sBIT, TIFF's SMinSampleValue and SMaxSampleValue.
        orientation: EXIF's, 1 to 8, still to be applied.
        mode: for people: Pillow's mode where it has one, such as 'I;16', else such as 'L;16S'.
        lossy: whether the file's format is, so that it is much smaller than its pixels.
    """

    values: np.ndarray
    type: str
    min_is_white: bool = False
    declared: tuple[float, float] | None = None
    orientation: int = 1
    mode: str = ""
    lossy: bool = False

    @property
    def bits(self) -> int:
        """Bits of a value as the file declares them."""
        return _bits(self.type)

    @property
    def extremes(self) -> tuple[float, float]:
        """The least and the largest value.

        Raises:
            SamplesError: there is none, some being no finite numbers.
        """
        low, high = self.values.min(), self.values.max()
        if not np.isfinite([low, high]).all():  # one NaN makes both NaN
            raise SamplesError("it holds values that are no finite numbers")
        return low.item(), high.item()


def read(encoded: bytes) -> Samples | None:
    """The values of a TIFF, or of a PNG or JPEG of more than 8 bits a value.

    Returns:
        None for every other file, and for TIFFs of at most 8 bits in colours or a compression that
        libtiff knows better: Pillow reads them, or refuses.

    Raises:
        SamplesError: the file's values are of a kind that is not supported; names it.
    """
    if encoded.startswith(_PNG):
        return _read_png(encoded) if encoded[24:25] == b"\x10" else None
    if is_tiff(encoded):
        return _read_tiff(encoded)
    if encoded.startswith(b"\xff\xd8\xff"):
        return _read_jpeg(encoded)
    return None


def is_tiff(encoded: bytes) -> bool:
    """Whether the bytes begin as a TIFF file does."""
    return encoded.startswith(_TIFF)


def plain_range(encoded: bytes, image: PIL.Image.Image) -> tuple[float, float] | None:
    """The least and the largest value that a grey file of at most 8 bits stores, which Pillow read.

    Returns:
        None where they are those of the image: of colours, and of 8 bits of which 0 is black.
    """
    most = (1 << plain_bits(encoded, image)) - 1
    white = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0
    if image.mode not in ("1", "L") or (most == 255 and not white):
        return None
    low, high = (round(int(end) * most / 255) for end in np.ravel(image.getextrema()))
    return (most - high, most - low) if white else (low, high)


def plain_bits(encoded: bytes, image: PIL.Image.Image) -> int:
    """Bits of a value, as the file of an image declares them that Pillow has opened: 1, 2, 4 or 8.

    A palette's colours have 8.
    """
    if image.mode in ("P", "PA"):
        return 8
    if image.format == "PNG":
        return encoded[24]
    if image.format == "TIFF":
        return int(getattr(image, "tag_v2", {}).get(258, (1,))[0])
    return 1 if image.mode == "1" else 8


def to_image(samples: Samples, intensity: IntensityRange = BY_TYPE) -> PIL.Image.Image:
    """The values as an upright 8-bit image, grey or RGB, in which more is brighter.

    Raises:
        SamplesError: what is black and what is white is not known of such values.
    """
    pixels = _to_uint8(samples, intensity)
    if samples.min_is_white:
        pixels = 255 - pixels
    image = PIL.Image.fromarray(pixels)
    if samples.values.ndim == 3 and samples.values.shape[2] == _CMYK:
        image = PIL.Image.frombytes("CMYK", image.size, pixels.tobytes()).convert("RGB")
    if samples.orientation != 1:
        image.getexif()[PIL.ExifTags.Base.Orientation] = samples.orientation
        image = PIL.ImageOps.exif_transpose(image)
    return image


def _to_uint8(samples: Samples, intensity: IntensityRange) -> np.ndarray:
    values, bits = samples.values, samples.bits
    bounds = _bounds(samples, intensity)
    if bounds is not None:
        low, high = bounds
        if low == high:
            return np.zeros(values.shape, np.uint8)
        share = (values.astype(np.float64) - low) / (high - low)
        return np.round(255 * np.clip(share, 0, 1)).astype(np.uint8)
    if samples.type.startswith("int"):
        values = values.astype(np.int32) + (1 << bits - 1)
    if bits > 8:
        return (values >> bits - 8).astype(np.uint8)
    if bits == 8:
        return values.astype(np.uint8)
    return np.round(values * (255 / ((1 << bits) - 1))).astype(np.uint8)


def _bounds(samples: Samples, intensity: IntensityRange) -> tuple[float, float] | None:
    """The values that become black and white; None: the least and largest of their type."""
    kind, wide = samples.type, samples.bits > 8
    if intensity.rule == "dataset" and wide:
        samples.extremes  # noqa: B018 (refuses values that are no numbers)
        if kind not in intensity.of_dataset:
            raise SamplesError(
                f"its values are {kind}, of which the data set has none "
                f"(data.intensity_range='dataset': {listed(intensity)})"
            )
        low, high = intensity.of_dataset[kind]
        return low, high
    if intensity.rule == "declared" and wide and samples.declared is not None:
        low, high = samples.declared
        least, largest = samples.extremes
        if math.isnan(high):
            raise SamplesError(f"it declares another range for each of its colours; {_CONVERT}")
        if not low < high:
            raise SamplesError(f"it declares the range {low:g} to {high:g}, which is none")
        if least < low or largest > high:
            raise SamplesError(
                f"it declares values of {low:g} to {high:g} and holds {least:g} to {largest:g}: "
                "data.intensity_range='type' takes the whole range of their type, 'dataset' the "
                "range of the data set"
            )
        return low, high
    if kind.startswith("float") or samples.bits > _WIDEST:
        raise SamplesError(
            f"its values have {samples.bits} bits ({kind}), and this type does not say what is "
            "black and what is white; data.intensity_range='dataset' takes the least and the "
            f"largest value of the data set, or {_CONVERT}"
        )
    return None


def _require_bounded(pixels: int) -> None:
    if pixels > 2 * (PIL.Image.MAX_IMAGE_PIXELS or pixels):  # as Pillow does
        raise SamplesError(f"{pixels} pixels: it could be a decompression bomb")


# --- PNG -----------------------------------------------------------------------------------------


def _read_png(encoded: bytes) -> Samples:
    with PIL.Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise SamplesError(f"{frames} frames; one image is expected")
        image.load()
        orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
        mode = image.mode
        values = np.asarray(image) if mode == "I;16" else None
    if values is None:  # of colours of 16 bits Pillow keeps the high byte
        with unlogged("imagecodecs"):
            values = imagecodecs.png_decode(encoded)
    channels = values.shape[2] if values.ndim == 3 else 1
    if channels in (2, 4):  # the last is alpha
        values = values[..., 0] if channels == 2 else values[..., :3]
    if mode != "I;16":  # Pillow's names of colours do not tell 8 bits from 16
        mode += ";16"
    declared = _range_of_significant(values, _significant_bits(encoded, channels))
    return Samples(values, "uint16", declared=declared, orientation=orientation, mode=mode)


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
    position = len(_PNG)
    while position + 8 <= len(encoded):
        length, name = struct.unpack_from(">I4s", encoded, position)
        if name == b"sBIT":
            content = encoded[position + 8 : position + 8 + length]
            return [bits for bits in content[: channels - (channels in (2, 4))] if 0 < bits <= 16]
        if name == b"IDAT":
            break
        position += length + 12
    return []


# --- JPEG ----------------------------------------------------------------------------------------

_JPEG_KINDS = {
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG"),
    **dict.fromkeys((0xCB,), "lossless JPEG in arithmetic coding"),
    0xF7: "JPEG-LS",
}


def _read_jpeg(encoded: bytes) -> Samples | None:
    precision, components, adobe, orientation, scan, pixels = 8, 0, False, 1, 0, 0
    for marker, start, content in _jpeg_segments(encoded):
        if marker in _JPEG_KINDS:
            raise SamplesError(f"{_JPEG_KINDS[marker]} is not supported; {_CONVERT}")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(content) > 5:
            precision, height, width, components = struct.unpack_from(">BHHB", content)
            pixels = height * width
        elif marker == 0xEE and content.startswith(b"Adobe"):
            adobe = True
        elif marker == 0xE1 and content.startswith(b"Exif\0\0"):
            exif = PIL.Image.Exif()
            exif.load(content)
            orientation = exif.get(PIL.ExifTags.Base.Orientation, 1)
        elif marker == 0xDA:
            scan = start
    if components == _CMYK and not adobe:
        raise SamplesError(
            "a JPEG of four channels without Adobe's marker does not say which they are, nor "
            "whether 0 is ink or none; convert it to RGB"
        )
    if precision == 8 or not components:
        return None
    if components not in (_GREY, _RGB):
        raise SamplesError(f"a JPEG of {precision} bits and {components} channels; {_CONVERT}")
    _require_bounded(pixels)
    if encoded.rfind(b"\xff\xd9") < scan or not scan:
        raise SamplesError("damaged or truncated: the end of the JPEG is missing")
    values = imagecodecs.jpeg8_decode(encoded)
    mode = f"{'L' if components == _GREY else 'RGB'};{precision}"
    return Samples(values, f"uint{precision}", orientation=orientation, mode=mode, lossy=True)


def _jpeg_segments(encoded: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Marker, position and content of each segment before the entropy-coded data."""
    position = 2
    while position + 4 <= len(encoded) and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:  # without content
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", encoded, position + 2)
        yield marker, position, encoded[position + 4 : position + 2 + length]
        if marker == 0xDA:
            return
        position += 2 + length


# --- TIFF ----------------------------------------------------------------------------------------

_PHOTOMETRICS = {
    **{4: "transparency mask", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab"},
    **{32803: "colour filter array", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw"},
}
_FORMATS = {1: "uint", 2: "int", 3: "float"}  # TIFF's SampleFormat
_COLOURS = {0: _GREY, 1: _GREY, 2: _RGB, 3: _GREY, 5: _CMYK}  # samples of a pixel, by photometric
# Compressions of 8 bits that need nothing of libtiff: none, LZW, Deflate, PackBits, LZMA,
# Zstandard, WebP.
_OURS = (1, 5, 8, 32773, 32946, 34925, 50000, 50001)


def read_tiff(encoded: bytes) -> Samples:
    """The values of any TIFF file of grey, RGB, CMYK or a palette.

    Raises:
        SamplesError: the values are of a kind that is not supported; names it. Or the file is cut
            short, holds several images, or too many pixels.
    """
    with unlogged("tifffile"):
        return _read_page(encoded, _open_tiff(encoded))


def _read_tiff(encoded: bytes) -> Samples | None:
    """`read_tiff`; None of files whose tags cannot be read, and of those that are libtiff's."""
    with unlogged("tifffile"):
        try:
            tags = _open_tiff(encoded)
        except Exception:  # Pillow says what is wrong, or copes
            return None
        page = tags.page
        plain = set(tags.formats) == {1} and len(set(tags.bits)) == 1 and tags.bits[0] <= 8
        known = tags.photometric in (*_COLOURS, None) and not tags.is_premultiplied
        if plain and tags.images == 1 and not (known and page.compression in _OURS):
            _require_of_pillow(tags)
            return None
        return _read_page(encoded, tags)


class _Tags(NamedTuple):
    page: Any  # tifffile's, the first
    images: int
    bits: tuple[int, ...]  # BitsPerSample, of one or of each channel
    formats: tuple[int, ...]  # SampleFormat, likewise
    photometric: int | None  # PhotometricInterpretation
    is_premultiplied: bool  # colours are multiplied by their alpha


def _require_of_pillow(tags: _Tags) -> None:
    """Raises SamplesError, by name, for what Pillow would read wrongly or call damaged."""
    page = tags.page
    kind = _PHOTOMETRICS.get(tags.photometric or 0) or "multiplied by their alpha"
    if page.planarconfig == 2 and not (tags.photometric in _COLOURS and not tags.is_premultiplied):
        raise SamplesError(
            f"a TIFF whose colours are {kind} in separate planes is not supported; {_CONVERT}"
        )
    if tags.photometric != 6 or page.compression != 1:
        return
    # Of uncompressed YCbCr Pillow takes no notice of how it is coded; of other, libtiff does.
    full, sampling = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0), page.tags.get(530)
    for name, found, read in (
        ("YCbCrCoefficients", _ratios(page.tags.get(529)), (0.299, 0.587, 0.114)),
        ("YCbCrSubSampling", sampling.value if sampling else (2, 2), (1, 1)),
        ("ReferenceBlackWhite", _ratios(page.tags.get(532)), full),
    ):
        if found and (len(found) != len(read) or not np.allclose(found, read, atol=1e-3)):
            raise SamplesError(
                f"an uncompressed TIFF of YCbCr whose {name} is {found} is not supported; "
                f"{_CONVERT}"
            )


def _open_tiff(encoded: bytes) -> _Tags:
    file = tifffile.TiffFile(io.BytesIO(encoded))
    page = file.pages.first
    tags = page.tags
    bits, formats = _each(tags.get(258), 1), _each(tags.get(339), 1)
    photometric = int(tags[262].value) if 262 in tags else None
    premultiplied = 1 in _each(tags.get(338), 0)
    return _Tags(page, len(file.pages), bits, formats, photometric, premultiplied)


def _read_page(encoded: bytes, tags: _Tags) -> Samples:
    page = tags.page
    kind = _require_supported(tags)
    colours = _COLOURS[tags.photometric or 0]
    ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if len(ends) < math.prod(page.chunked) or max(ends) > len(encoded):
        raise SamplesError("damaged or truncated: pixels are missing")
    if 0 in page.databytecounts[: len(ends)]:
        raise SamplesError("damaged: some of its strips or tiles are empty")
    values = page.asarray(maxworkers=1)
    separate, _, height, width, together = page.shaped
    values = values.reshape(separate, height, width, together)
    values = np.moveaxis(values, 0, -1).reshape(height, width, -1)[..., :colours]
    values = values[..., 0] if colours == _GREY else np.ascontiguousarray(values)
    values = values.astype(np.uint8) if values.dtype == bool else values
    mode = _mode(kind, colours, extra=page.samplesperpixel - colours)
    if tags.photometric == 3:
        table = np.asarray(page.tags[320].value).reshape(3, -1)  # 16 bits a colour
        if values.max() >= table.shape[1]:
            raise SamplesError("damaged: it has colours beyond its palette")
        table = table if table.max() < 256 else table >> 8  # some write 8 bits, as libtiff knows
        values, kind, mode = table.T.astype(np.uint8)[values], "uint8", "P"
    lows, highs = (_each(page.tags.get(code), None) for code in (340, 341))  # of each channel
    declares = None not in (*lows, *highs)
    orientation = _each(page.tags.get(274), 1)[0]
    return Samples(
        values,
        kind,
        min_is_white=tags.photometric == 0,
        declared=(float(min(lows)), float(max(highs))) if declares else None,
        orientation=orientation if orientation in range(1, 9) else 1,
        mode=mode,
    )


def _require_supported(tags: _Tags) -> str:
    """The type of the values.

    Raises:
        SamplesError: names what is not supported.
    """
    page, bits, formats = tags.page, tags.bits, tags.formats
    name = f"a TIFF of {'/'.join(map(str, sorted(set(bits))))} bits"
    kind = f"{_FORMATS.get(formats[0], 'unknown')}{bits[0]}"
    if tags.images > 1:
        raise SamplesError(f"{tags.images} frames; one image is expected")
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise SamplesError(f"{name} that differ by channel is not supported; {_CONVERT}")
    if formats[0] not in _FORMATS:
        raise SamplesError(
            f"{name} whose SampleFormat is {formats[0]} is not supported; {_CONVERT}"
        )
    if tags.photometric not in _COLOURS:
        unknown = "missing" if tags.photometric is None else tags.photometric
        meaning = _PHOTOMETRICS.get(tags.photometric or 0)
        raise SamplesError(
            f"{name} whose PhotometricInterpretation is {unknown}"
            f"{f' ({meaning})' if meaning else ''} is not supported; {_CONVERT}"
        )
    if tags.photometric == 5 and _each(page.tags.get(332), 1)[0] != 1:
        raise SamplesError(f"{name} of inks other than CMYK is not supported; {_CONVERT}")
    black_white = _ratios(page.tags.get(532))
    if tags.photometric == 2 and black_white and black_white != (0, (1 << bits[0]) - 1) * 3:
        raise SamplesError(
            f"{name} of RGB whose ReferenceBlackWhite is {black_white} is not supported; {_CONVERT}"
        )
    dots = _each(page.tags.get(336), 0)
    if tags.photometric == 5 and 336 in page.tags and dots[:2] != (0, (1 << bits[0]) - 1):
        raise SamplesError(f"{name} of CMYK whose DotRange is {dots} is not supported; {_CONVERT}")
    if tags.photometric == 3 and (formats[0] != 1 or bits[0] > 16 or 320 not in page.tags):
        raise SamplesError(f"{name} ({kind}) that are a palette's is not supported; {_CONVERT}")
    colours, samples = _COLOURS[tags.photometric], page.samplesperpixel
    # Beyond its colours a pixel may have alpha; what more there is beside RGB is no colour.
    if not colours <= samples <= (2 if colours == _GREY else 8):
        raise SamplesError(f"{name} of {samples} samples a pixel is not supported; {_CONVERT}")
    if tags.is_premultiplied:
        raise SamplesError(
            f"{name} whose colours are multiplied by their alpha is not supported; {_CONVERT}"
        )
    _require_bounded(page.imagewidth * page.imagelength)
    if page.imagedepth > 1:
        raise SamplesError(f"a volume of {page.imagedepth} slices; one image is expected")
    partial = kind.startswith("int") and bits[0] not in (8, 16, 32, 64)
    if partial or page.dtype is None or page.dtype.kind not in "buif":
        raise SamplesError(f"{name} ({kind}) is not supported; {_CONVERT}")
    return kind


def _bits(kind: str) -> int:
    return int("".join(filter(str.isdigit, kind)))


def _mode(kind: str, colours: int, extra: int) -> str:
    name = {_GREY: "L", _RGB: "RGB", _CMYK: "CMYK"}[colours]
    if kind == "uint1" and name == "L":
        return "1"
    if kind in ("uint2", "uint4", "uint8"):
        return f"{name}{'A' if extra and name != 'CMYK' else ''}"
    if (kind, name) == ("uint16", "L"):
        return "I;16"
    letter = {"u": "", "i": "S", "f": "F"}[kind[0]]
    return f"{name};{_bits(kind)}{letter}"


def _each(tag: Any, default: Any) -> tuple[Any, ...]:
    """A tag's values, of one or of each sample."""
    if tag is None:
        return (default,)
    return tag.value if isinstance(tag.value, tuple) else (tag.value,)


def _ratios(tag: Any) -> tuple[float, ...]:
    """A tag of rational numbers, each of two integers; nothing where it is missing."""
    if tag is None:
        return ()
    above, below = tag.value[::2], tag.value[1::2]
    return tuple(round(a / b, 4) if b else math.inf for a, b in zip(above, below, strict=True))


# --- images of Pillow ----------------------------------------------------------------------------


def of_pillow(image: PIL.Image.Image) -> Samples | None:
    """The values of a loaded Pillow image that has more than 8 bits a value, or signed ones.

    What Pillow's mode leaves out, the tags of the TIFF file tell, if it was opened from one.

    Returns:
        None for all other images.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits = tags.get(258, (0,))[0] or {"I": 32, "F": 32}.get(image.mode, 16)
    kind = _FORMATS.get(tags.get(339, (1,))[0], "uint") if tags else ""
    white = tags.get(262) == 0
    if image.mode.startswith("I;16"):
        array = np.asarray(image)
        values, kind = array.astype(array.dtype.newbyteorder("=")), f"{kind or 'uint'}{bits}"
        return Samples(values, kind, white, mode=image.mode)
    if image.mode == "I":
        return Samples(np.asarray(image), f"{kind or 'int'}{bits}", white, mode="I")
    if image.mode == "F":
        return Samples(np.asarray(image), f"float{bits}", white, mode="F")
    if image.mode == "L" and kind == "int":
        return Samples(np.asarray(image).view(np.int8), "int8", white, mode="L")
    return None
