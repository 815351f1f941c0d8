"""TIFF, read by its own tags (TIFF 6.0, sections 8 and 19)."""

import io
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tifffile

from egmae_jax.core.quiet import silenced
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
_PHOTOMETRICS = {
    **{4: "transparency mask", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab"},
    **{32803: "colour filter array", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw"},
}
_COLOURS = {0: GREY, 1: GREY, 2: RGB, 3: GREY, 5: CMYK}  # samples of a pixel, by photometric
_PALETTE = 3
# Compressions of 8 bits that need nothing of libtiff: none, LZW, Deflate, PackBits, LZMA,
# Zstandard, WebP.
_WITHOUT_LIBTIFF = (1, 5, 8, 32773, 32946, 34925, 50000, 50001)


class _Tags(NamedTuple):
    page: Any  # tifffile's, the first
    images: int
    bits: tuple[int, ...]  # BitsPerSample, of one or of each channel
    formats: tuple[int, ...]  # SampleFormat, likewise
    photometric: int | None  # PhotometricInterpretation
    is_premultiplied: bool  # colours are multiplied by their alpha


def is_tiff(encoded: bytes) -> bool:
    """Whether the bytes begin as a TIFF file does."""
    return encoded.startswith(SIGNATURES)


def read(encoded: bytes) -> Samples:
    """Reads the values of a TIFF file of grey, RGB, CMYK or a palette.

    Raises:
        SamplesError: the values are of a kind that is not supported; names it. Or the file is cut
            short, holds several images, or too many pixels.
    """
    with silenced("tifffile"):
        return _read_page(encoded, _open(encoded))


def read_unless_pillow(encoded: bytes) -> Samples | None:
    """Reads the values as `read`; None for files that are Pillow's to read, or to refuse.

    These are of at most 8 bits in colours or a compression that libtiff knows better.
    """
    with silenced("tifffile"):
        try:
            tags = _open(encoded)
        except Exception:  # Pillow says what is wrong, or copes
            return None
        is_plain = set(tags.formats) == {1} and len(set(tags.bits)) == 1 and tags.bits[0] <= 8
        is_known = tags.photometric in (*_COLOURS, None) and not tags.is_premultiplied
        is_ours = is_known and tags.page.compression in _WITHOUT_LIBTIFF
        if is_plain and tags.images == 1 and not is_ours:
            _refuse(_misread_by_pillow(tags))
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
        is_premultiplied=1 in _each(tags.get(338), 0),
    )


def _refuse(problems: Iterator[str]) -> None:
    """Raises SamplesError for the first problem, if there is one."""
    for problem in problems:
        raise SamplesError(f"{problem} is not supported; {CONVERT}")


def _misread_by_pillow(tags: _Tags) -> Iterator[str]:
    """Names what Pillow would read wrongly, or call damaged."""
    page = tags.page
    if page.planarconfig == 2 and (tags.photometric not in _COLOURS or tags.is_premultiplied):
        kind = _PHOTOMETRICS.get(tags.photometric or 0) or "multiplied by their alpha"
        yield f"a TIFF whose colours are {kind} in separate planes"
    if tags.photometric == 6 and page.compression == 1:  # Pillow overlooks how it is coded
        yield "an uncompressed TIFF of YCbCr"


def _unsupported(tags: _Tags, kind: str) -> Iterator[str]:
    """Names what is not supported of a file's values."""
    page, bits, formats, photometric = tags.page, tags.bits, tags.formats, tags.photometric
    name = f"a TIFF of {'/'.join(map(str, sorted(set(bits))))} bits"
    largest = (1 << bits[0]) - 1
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        yield f"{name} that differ by channel"
    if formats[0] not in SAMPLE_FORMATS:
        yield f"{name} whose SampleFormat is {formats[0]}"
    if photometric not in _COLOURS:
        meaning = _PHOTOMETRICS.get(photometric or 0)
        value = "missing" if photometric is None else photometric
        yield f"{name} whose PhotometricInterpretation is {value}" + (
            f" ({meaning})" if meaning else ""
        )
    if photometric == 5 and _each(page.tags.get(332), 1)[0] != 1:
        yield f"{name} of inks other than CMYK"
    black_white = _ratios(page.tags.get(532))
    if photometric == 2 and black_white and black_white != (0, largest) * 3:
        yield f"{name} of RGB whose ReferenceBlackWhite is {black_white}"
    dots = _each(page.tags.get(336), 0)
    if photometric == 5 and 336 in page.tags and dots[:2] != (0, largest):
        yield f"{name} of CMYK whose DotRange is {dots}"
    if photometric == _PALETTE and (formats[0] != 1 or bits[0] > 16 or 320 not in page.tags):
        yield f"{name} ({kind}) that are a palette's"
    # Beyond its colours a pixel may have alpha; what more there is beside RGB is no colour.
    colours, samples = _COLOURS.get(photometric or 0, GREY), page.samplesperpixel
    if not colours <= samples <= (2 if colours == GREY else 8):
        yield f"{name} of {samples} samples a pixel"
    if tags.is_premultiplied:
        yield f"{name} whose colours are multiplied by their alpha"
    is_partial = kind.startswith("int") and bits[0] not in (8, 16, 32, 64)
    if is_partial or page.dtype is None or page.dtype.kind not in "buif":
        yield f"{name} ({kind})"


def _read_page(encoded: bytes, tags: _Tags) -> Samples:
    page = tags.page
    kind = f"{SAMPLE_FORMATS.get(tags.formats[0], 'unknown')}{tags.bits[0]}"
    if tags.images > 1 or page.imagedepth > 1:
        raise SamplesError(f"{max(tags.images, page.imagedepth)} frames; one image is expected")
    _refuse(_unsupported(tags, kind))
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
    mode = _mode(kind, tags.bits[0], colours, has_alpha=page.samplesperpixel > colours)
    if tags.photometric == _PALETTE:
        values, kind, mode = _coloured(values, page), "uint8", "P"
    lows, highs = (_each(page.tags.get(code), None) for code in (340, 341))  # of each channel
    is_declared = None not in (*lows, *highs)
    orientation = _each(page.tags.get(274), 1)[0]
    return Samples(
        values,
        kind,
        min_is_white=tags.photometric == 0,
        declared=(float(min(lows)), float(max(highs))) if is_declared else None,
        orientation=orientation if orientation in range(1, 9) else 1,
        mode=mode,
    )


def _coloured(indices: np.ndarray, page: Any) -> np.ndarray:
    """Colours of a palette's indices, uint8 [H, W, 3]."""
    table = np.asarray(page.tags[320].value).reshape(3, -1)  # 16 bits a colour
    if indices.max() >= table.shape[1]:
        raise SamplesError("damaged: it has colours beyond its palette")
    table = table if table.max() < 256 else table >> 8  # some write 8 bits, as libtiff knows
    return np.asarray(table.T.astype(np.uint8)[indices])


def _mode(kind: str, bits: int, colours: int, has_alpha: bool) -> str:
    """Pillow's name for such pixels, or one made after it, such as 'L;16S'."""
    name = {GREY: "L", RGB: "RGB", CMYK: "CMYK"}[colours]
    if kind == "uint1" and name == "L":
        return "1"
    if kind in ("uint2", "uint4", "uint8"):
        return f"{name}A" if has_alpha and name != "CMYK" else name
    if (kind, name) == ("uint16", "L"):
        return "I;16"
    return f"{name};{bits}{ {'u': '', 'i': 'S', 'f': 'F'}[kind[0]] }"


def _each(tag: Any, default: Any) -> tuple[Any, ...]:
    """A tag's values, of one or of each sample."""
    if tag is None:
        return (default,)
    return tag.value if isinstance(tag.value, tuple) else (tag.value,)


def _ratios(tag: Any) -> tuple[float, ...]:
    """Values of a tag of rational numbers, each of two integers; nothing where it is missing."""
    if tag is None:
        return ()
    above, below = tag.value[::2], tag.value[1::2]
    return tuple(round(a / b, 4) if b else math.inf for a, b in zip(above, below, strict=True))
