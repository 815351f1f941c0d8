"""Reads TIFF files according to their tags (TIFF 6.0, sections 8 and 19)."""

import enum
import io
import math
from typing import Any, NamedTuple, NoReturn

import numpy as np
import tifffile

from egmae_jax.data.samples import (
    CMYK,
    CONVERT,
    GREY,
    RGB,
    SAMPLE_FORMATS,
    Samples,
    SamplesError,
    require_bounded,
)

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COLOURS = {0: GREY, 1: GREY, 2: RGB, 3: GREY, 5: CMYK}  # PhotometricInterpretation: channels
_RGB, _PALETTE, _CMYK, _YCBCR = 2, 3, 5, 6  # values of PhotometricInterpretation
_PREMULTIPLIED = 1  # value of ExtraSamples for colours that are multiplied by their alpha
# Compressions that do not need libtiff for 8 bits: none, LZW, Deflate, PackBits, LZMA, Zstandard,
# WebP.
_WITHOUT_LIBTIFF = (1, 5, 8, 32773, 32946, 34925, 50000, 50001)


class _Tags(NamedTuple):
    """Tags of a TIFF file that define the meaning of the values of its first image."""

    page: Any  # tifffile.TiffPage
    images: int  # number of images in the file
    bits: tuple[int, ...]  # BitsPerSample, one for all channels or one for each
    formats: tuple[int, ...]  # SampleFormat, one for all channels or one for each
    photometric: int | None  # PhotometricInterpretation
    extra: tuple[int, ...]  # ExtraSamples

    @property
    def type(self) -> str:
        """Type of the values, such as 'uint12' or 'float32'."""
        return f"{SAMPLE_FORMATS.get(self.formats[0], 'unknown')}{self.bits[0]}"


def is_tiff(encoded: bytes) -> bool:
    """Whether the bytes begin with the signature of a TIFF file."""
    return encoded.startswith(SIGNATURES)


def read(encoded: bytes) -> Samples | None:
    """Reads the samples of a grey, RGB, CMYK or palette TIFF file.

    Returns:
        The samples, or None for files that Pillow should read or reject: damaged files, and files
        of up to 8 bits in YCbCr or in a compression that needs libtiff.

    Raises:
        SamplesError: the values are not supported, and the message names the tag with the reason;
            or the file is truncated, or contains several images or too many pixels.
    """
    try:
        tags = _open(encoded)
    except Exception:  # noqa: BLE001 (Pillow reads it, or says what is wrong)
        return None
    is_8_bit = set(tags.formats) == {1} and len(set(tags.bits)) == 1 and tags.bits[0] <= 8
    is_known = tags.photometric in (*_COLOURS, None) and _PREMULTIPLIED not in tags.extra
    is_readable = is_known and tags.page.compression in _WITHOUT_LIBTIFF
    if is_8_bit and tags.images == 1 and not is_readable:
        _require_read_by_pillow(tags)
        return None
    return _read_page(encoded, tags)


def _open(encoded: bytes) -> _Tags:
    file = tifffile.TiffFile(io.BytesIO(encoded))
    page = file.pages.first
    tags = page.tags
    return _Tags(
        page,
        len(file.pages),
        bits=_each(tags.get(258), 1),
        formats=_each(tags.get(339), 1),
        photometric=int(tags[262].value) if 262 in tags else None,
        extra=_each(tags.get(338), 0),
    )


def _refuse(tags: _Tags, name: str, value: Any) -> NoReturn:
    raise SamplesError(f"a TIFF of {tags.type} whose {name} is {value} is not supported; {CONVERT}")


def _require_read_by_pillow(tags: _Tags) -> None:
    """Raises SamplesError for files that Pillow would read wrongly or report as damaged."""
    is_ycbcr, is_premultiplied = tags.photometric == _YCBCR, _PREMULTIPLIED in tags.extra
    if tags.page.planarconfig == 2 and (is_ycbcr or is_premultiplied):
        _refuse(tags, "PlanarConfiguration", 2)
    is_compressed_ycbcr = is_ycbcr and tags.page.compression != 1
    if not is_compressed_ycbcr and tags.photometric not in _COLOURS:
        _refuse(tags, "PhotometricInterpretation", tags.photometric)


def _require_supported(tags: _Tags) -> None:
    """Raises SamplesError, with name and value of the tag, for values that are not supported."""
    page, bits, formats, photometric = tags.page, tags.bits, tags.formats, tags.photometric
    is_partial = formats[0] == 2 and bits[0] not in (8, 16, 32, 64)
    is_palette_known = formats[0] == 1 and bits[0] <= 16 and 320 in page.tags
    # Grey may have one extra channel, alpha. RGB and CMYK may have more, which are ignored.
    colours, samples = _COLOURS.get(photometric or 0, GREY), page.samplesperpixel
    full_range = (0, (1 << bits[0]) - 1)
    inks, dots = _each(page.tags.get(332), 1)[0], _each(page.tags.get(336), None)[:2]
    levels = _ratios(page.tags.get(532))
    for name, value, is_supported in (
        ("SampleFormat", formats, len(set(formats)) == 1 and formats[0] in SAMPLE_FORMATS),
        ("BitsPerSample", bits, len(set(bits)) == 1 and page.dtype is not None and not is_partial),
        ("PhotometricInterpretation", photometric, photometric in _COLOURS),
        ("ColorMap", "missing or too long", photometric != _PALETTE or is_palette_known),
        ("SamplesPerPixel", samples, colours <= samples <= (2 if colours == GREY else 8)),
        ("ExtraSamples", tags.extra, _PREMULTIPLIED not in tags.extra),
        ("InkSet", inks, photometric != _CMYK or inks == 1),
        ("DotRange", dots, photometric != _CMYK or dots in ((None,), full_range)),
        ("ReferenceBlackWhite", levels, photometric != _RGB or levels in ((), 3 * full_range)),
    ):
        if not is_supported:
            _refuse(tags, name, value)


def _read_page(encoded: bytes, tags: _Tags) -> Samples:
    page, kind = tags.page, tags.type
    if tags.images > 1 or page.imagedepth > 1:
        raise SamplesError(f"{max(tags.images, page.imagedepth)} frames; one image is expected")
    _require_supported(tags)
    require_bounded(page.imagewidth * page.imagelength)
    ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if len(ends) < math.prod(page.chunked) or max(ends) > len(encoded):
        raise SamplesError("damaged or truncated: pixels are missing")
    if 0 in page.databytecounts[: len(ends)]:
        raise SamplesError("damaged: some of its strips or tiles are empty")
    colours = _COLOURS[tags.photometric or 0]
    separate, _, height, width, together = page.shaped
    values = page.asarray(maxworkers=1).reshape(separate, height, width, together)
    values = np.moveaxis(values, 0, -1).reshape(height, width, -1)[..., :colours]
    values = values[..., 0] if colours == GREY else np.ascontiguousarray(values)
    values = values.astype(np.uint8) if values.dtype == bool else values
    if tags.photometric == _PALETTE:
        values, kind = _apply_palette(values, page), "uint8"
    lows, highs = (_each(page.tags.get(code), None) for code in (340, 341))  # one per channel
    is_declared = None not in (*lows, *highs)
    orientation = _each(page.tags.get(274), 1)[0]
    return Samples(
        values,
        kind,
        min_is_white=tags.photometric == 0,
        declared=(float(min(lows)), float(max(highs))) if is_declared else None,
        orientation=orientation if orientation in range(1, 9) else 1,
    )


def _apply_palette(indices: np.ndarray, page: Any) -> np.ndarray:
    """Returns the colours of palette indices [H, W] as uint8 [H, W, 3]."""
    table = np.asarray(page.tags[320].value).reshape(3, -1)  # 16 bits per colour
    if indices.max() >= table.shape[1]:
        raise SamplesError("damaged: it has colours beyond its palette")
    table = table if table.max() < 256 else table >> 8  # some writers store 8 bits, as in libtiff
    return np.asarray(table.T.astype(np.uint8)[indices])


def _each(tag: Any, default: Any) -> tuple[Any, ...]:
    """Returns the values of a tag, one for all channels or one for each; `default` if missing."""
    if tag is None:
        return (default,)
    values = tag.value if isinstance(tag.value, tuple) else (tag.value,)
    return tuple(int(x) if isinstance(x, enum.IntEnum) else x for x in values)


def _ratios(tag: Any) -> tuple[float, ...]:
    """Returns the values of a tag of rational numbers; empty if it is missing."""
    if tag is None:
        return ()
    top, bottom = tag.value[::2], tag.value[1::2]
    return tuple(round(a / b, 4) if b else math.inf for a, b in zip(top, bottom, strict=True))
