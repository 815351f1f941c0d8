"""DICOM files as 8-bit images (needs pydicom: pip install -e '.[dicom]')."""

import importlib.metadata
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from egmae_jax.core.errors import MissingExtraError, UserError
from egmae_jax.core.quiet import unlogged

# Of files without the preamble: elements that a data set begins with, and representations of values
# (PS3.5, 6.2) that stand in them.
_FIRST = {2: (0x00, 0x01, 0x02), 8: (0x00, 0x01, 0x05, 0x06, 0x08, 0x10, 0x12, 0x14, 0x16, 0x18)}
_REPRESENTATIONS = (b"UL", b"OB", b"CS", b"UI", b"SH", b"LO", b"DA", b"TM", b"RET", b"LT")
_LOGGERS = ("pydicom", "pydicom.pixels.decoders.base", "pydicom.pixels.utils")
_DECODERS = (
    *("pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle"),
    *("pyjpegls", "python-gdcm"),
)
_TABLED = 1 << 16  # of values that so many differ at most, each is computed once
_REQUIRED = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation"),
)
_SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}  # PS3.3, C.8.11.3.1.2
_GREY = tuple(_SHAPES)
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


class DicomError(UserError):
    """The file cannot be shown as one image; the message says why."""


class DicomImage(NamedTuple):
    """One frame as an image, and the values that its file stores.

    Attributes:
        image: 8-bit, grey or RGB.
        bits: that the file uses of a value: BitsStored.
        extremes: the least and the largest stored value, padding left out.
    """

    image: PIL.Image.Image
    bits: int
    extremes: tuple[float, float]


def is_dicom(encoded: bytes) -> bool:
    """Whether the bytes are a DICOM file, whatever its name, also one without preamble."""
    return encoded[128:132] == b"DICM" or _is_bare(encoded)


def _is_bare(encoded: bytes) -> bool:
    """Whether a data set begins at the first byte, as in files that have lost their preamble."""
    if len(encoded) < 132:
        return False
    for order in "<>":
        group, element, length = struct.unpack_from(f"{order}HHL", encoded)
        if element in _FIRST.get(group, ()):
            return encoded[4:6] in _REPRESENTATIONS or length <= 64
    return False


def decoders() -> list[str]:
    """Those packages for compressed DICOM that are installed, and pydicom, with their versions."""
    installed = ((name, _version(name)) for name in _DECODERS)
    return [f"{name} {version}" for name, version in installed if version]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def decode(encoded: bytes) -> DicomImage:
    """Decodes a DICOM file of one frame.

    Grey values go through the modality transformation (rescale slope and intercept or its table)
    and then through the VOI table, of which the least and the largest entry become black and white,
    or through the first window; without either the image's own extremes become black and white.
    These are of the frame's functional groups, where it has any. Padding (PixelPaddingValue and its
    range) is black and no part of the extremes. MONOCHROME1 is inverted, so that more is brighter.
    YBR and palettes become RGB.

    Raises:
        DicomError: several frames, no pixels, too many, a compression without decoder, or anything
            that is not supported or contradicts itself, by name.
        MissingExtraError: pydicom is not installed.
    """
    try:
        import pydicom  # noqa: F401 (what it lacks is told here)
    except ImportError:
        raise MissingExtraError("reading DICOM needs pydicom: pip install -e '.[dicom]'") from None
    try:
        with unlogged(*_LOGGERS):
            dataset = _read(encoded)
            _require_supported(dataset)
            return _shown(dataset)
    except (DicomError, MemoryError):
        raise
    except Exception as error:  # pydicom raises much besides its own errors
        raise DicomError(f"damaged or not supported DICOM: {error}") from None


# --- the file ------------------------------------------------------------------------------------


def _read(encoded: bytes) -> Any:
    import pydicom
    from pydicom import uid

    start = 132 if encoded[128:132] == b"DICM" else 0
    _require_bounded(encoded, start)
    dataset = pydicom.dcmread(io.BytesIO(encoded), force=start == 0)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        if not little and implicit:
            raise DicomError("it names no transfer syntax, and is in none that could be told")
        native = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = native if little else uid.ExplicitVRBigEndian
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise DicomError("its pixels are compressed, and it names no transfer syntax")
    return dataset


def _require_bounded(encoded: bytes, start: int) -> None:
    """Of a file that is deflated as a whole, pydicom inflates whatever is there at once.

    Raises:
        DicomError: it would be more than two bytes for each of the pixels an image may have.
    """
    from pydicom import filereader, uid

    file = io.BytesIO(encoded)
    file.seek(start)
    if struct.unpack_from("<H", encoded, start)[0] != 2:  # a data set at once
        return
    meta = filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag >= 0x00030000)
    if meta.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
        return
    most = 4 * (PIL.Image.MAX_IMAGE_PIXELS or np.inf)
    inflater, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, file.read()
    while rest and not inflater.eof:
        size += len(inflater.decompress(rest, 1 << 20))
        rest = inflater.unconsumed_tail
        if size > most:
            raise DicomError(f"it inflates to more than {most} bytes: a decompression bomb")


def _require_supported(dataset: Any) -> None:
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DicomError(f"{frames} frames; one image is expected, so export the one you mean")
    if "NumberOfFrames" in dataset:
        dataset.NumberOfFrames = frames  # pydicom warns of 0 and of an empty one
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            raise DicomError(
                f"its pixels are in {keyword}, floating-point values, which are not supported; "
                "save them as integers with RescaleSlope and RescaleIntercept"
            )
    if "PixelData" not in dataset:
        raise DicomError("this DICOM file holds no pixels (PixelData), or is cut short before them")
    for keyword in _REQUIRED:
        if not _given(dataset, keyword):
            raise DicomError(f"this DICOM file lacks {keyword}")
    count = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
    if count > 2 * (PIL.Image.MAX_IMAGE_PIXELS or count):  # Pillow's bound for other formats
        raise DicomError(f"{count} pixels: it could be a decompression bomb")
    colours, samples = dataset.PhotometricInterpretation, dataset.SamplesPerPixel
    expected = 3 if colours in _COLOURS else 1
    if colours not in (*_GREY, *_COLOURS, "PALETTE COLOR") or samples != expected:
        raise DicomError(
            f"PhotometricInterpretation {colours} of {samples} samples a pixel is not supported"
        )
    if samples == 3 and dataset.PixelRepresentation == 1:
        raise DicomError("signed colours (PixelRepresentation 1) are not supported")
    high = _high_bit(dataset)
    if not 0 < dataset.BitsStored <= high + 1 <= dataset.BitsAllocated:
        raise DicomError(
            f"BitsStored {dataset.BitsStored}, HighBit {high} and BitsAllocated "
            f"{dataset.BitsAllocated} contradict each other"
        )
    if dataset.get("PixelPresentation") in ("COLOR", "MIXED"):
        raise DicomError(
            "its colours are a palette laid over grey (PixelPresentation "
            f"{dataset.PixelPresentation}), which is not supported"
        )
    if _given(dataset, "PresentationLUTSequence"):
        raise DicomError("a PresentationLUTSequence is not supported")
    shape = dataset.get("PresentationLUTShape")
    if colours in _GREY and shape in _SHAPES.values() and shape != _SHAPES[colours]:
        raise DicomError(
            f"PhotometricInterpretation {colours} and PresentationLUTShape {shape} contradict each "
            f"other: {_SHAPES[colours]} is expected (DICOM PS3.3, C.8.11.3.1.2)"
        )


def _high_bit(dataset: Any) -> int:
    """The highest bit of a value in its cell; where none is said, the one of today's standard."""
    return int(dataset.HighBit) if _given(dataset, "HighBit") else int(dataset.BitsStored) - 1


def _given(dataset: Any, name: str) -> bool:
    """Whether an element is there and not empty, as anonymisation may leave it."""
    value = dataset.get(name)
    return value not in (None, "") and (not hasattr(value, "__len__") or len(value) > 0)


def _module(dataset: Any, macro: str) -> Any:
    """Where a transformation is: the frame's functional groups, the shared ones, or the top."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for item in dataset.get(groups) or ():
            if _given(item, macro):
                return item[macro].value[0]
    return dataset


# --- the pixels ----------------------------------------------------------------------------------


def _shown(dataset: Any) -> DicomImage:
    cells = _cells(dataset)
    stored, bits = _stored(dataset, cells), int(dataset.BitsStored)
    if dataset.SamplesPerPixel == 3:
        image = PIL.Image.fromarray(_high_byte(stored, bits))
        return DicomImage(image, bits, (stored.min().item(), stored.max().item()))
    outside = _padding(dataset, cells, stored)
    inside = stored if outside is None else stored[~outside]
    if not inside.size:
        return DicomImage(PIL.Image.fromarray(np.zeros(stored.shape, np.uint8)), bits, (0, 0))
    low, high = int(inside.min()), int(inside.max())
    show = _palette(dataset) if dataset.PhotometricInterpretation == "PALETTE COLOR" else None
    show = show or _grey(dataset)
    if high - low < _TABLED:
        used = np.zeros(high - low + 1, bool)
        used[inside.astype(np.int64) - low] = True
        table = show(low + np.arange(high - low + 1), used)
        places = stored if outside is None else np.clip(stored, low, high)
        pixels = table[places.astype(np.int64) - low]
    else:
        pixels = show(stored, np.ones(stored.shape, bool) if outside is None else ~outside)
    if outside is not None:
        pixels[outside] = 0
    return DicomImage(PIL.Image.fromarray(pixels), bits, (low, high))


def _cells(dataset: Any) -> np.ndarray:
    """The values with all bits of their cells, signed where PixelRepresentation says so.

    YBR is converted to RGB. [H, W] or [H, W, 3].
    """
    from pydicom import pixels

    return np.asarray(pixels.pixel_array(dataset, correct_unused_bits=False))


def _stored(dataset: Any, array: np.ndarray) -> np.ndarray:
    """The values of cells, without the bits that are not theirs."""
    from pydicom import uid

    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if allocated == bits or allocated == 1:
        return array
    syntax = dataset.file_meta.TransferSyntaxUID
    in_cells = not syntax.is_encapsulated or syntax == uid.RLELossless  # else the codec's values
    unused = _high_bit(dataset) + 1 - bits if in_cells else 0
    # The lowest bit of the value goes to bit 0, its highest to the cell's, and back with the sign.
    array = (array >> unused) << (8 * array.itemsize - bits)
    return np.asarray(array >> (8 * array.itemsize - bits))


def _padding(dataset: Any, cells: np.ndarray, stored: np.ndarray) -> np.ndarray | None:
    """bool [H, W], which stored values are padding; None: none is.

    It may be a value of the whole cell, of more bits than are stored.
    """
    if not _given(dataset, "PixelPaddingValue"):
        return None
    if dataset.PhotometricInterpretation not in _GREY:
        return None
    names = ["PixelPaddingValue"]
    if _given(dataset, "PixelPaddingRangeLimit"):
        names.append("PixelPaddingRangeLimit")
    allocated, signed = int(dataset.BitsAllocated), dataset.PixelRepresentation == 1
    ends = [_signed(int(dataset[name].value), allocated, signed) for name in names]
    outside = (stored >= min(ends)) & (stored <= max(ends))
    outside |= (cells >= min(ends)) & (cells <= max(ends))
    if outside.any():
        return outside
    bits = int(dataset.BitsStored)
    for name, end in zip(names, ends, strict=True):
        cut = _signed(end, bits, signed)
        if cut != end and (stored == cut).any():
            raise DicomError(
                f"{name} {end} has more bits than BitsStored, {bits}, and there are pixels of "
                f"{cut}, which is the rest of it: whether they are padding is not known"
            )
    return None


def _signed(value: int, bits: int, signed: bool) -> int:
    """A whole number of so many bits that may have been written in the other sign."""
    value %= 1 << bits
    return value - (1 << bits) if signed and value >= 1 << bits - 1 else value


def _high_byte(array: np.ndarray, bits: int) -> np.ndarray:
    if bits < 8:
        return np.round(array * (255 / ((1 << bits) - 1))).astype(np.uint8)
    return (array >> (bits - 8)).astype(np.uint8)


# --- grey ----------------------------------------------------------------------------------------

# From stored values, and which of them occur in the image and are no padding, to 8 bits.
_Show = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _grey(dataset: Any) -> _Show:
    modality = _module(dataset, "PixelValueTransformationSequence")
    view = _module(dataset, "FrameVOILUTSequence")
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"

    def show(stored: np.ndarray, used: np.ndarray) -> np.ndarray:
        values = _rescaled(dataset, modality, stored)
        shares = _windowed(dataset, view, modality, values, used)
        if not (np.isfinite(shares).all() and np.isfinite(values).all()):
            raise DicomError("its rescaling or window makes values that are no finite numbers")
        shares = np.clip(1 - shares if inverted else shares, 0, 1)
        return np.asarray(np.round(255 * shares).astype(np.uint8))

    return show


def _rescaled(dataset: Any, module: Any, stored: np.ndarray) -> np.ndarray:
    """What the values mean: PS3.3, C.11.1."""
    if _given(module, "ModalityLUTSequence"):
        signed = dataset.PixelRepresentation == 1
        entries, first = _table(dataset, module.ModalityLUTSequence[0], signed=signed)
        return entries[_places(stored, first, len(entries))].astype(np.float64)
    slope = float(module.RescaleSlope) if _given(module, "RescaleSlope") else 1.0
    intercept = float(module.RescaleIntercept) if _given(module, "RescaleIntercept") else 0.0
    if slope == 0:
        raise DicomError("RescaleSlope is 0, which makes one value of all")
    with np.errstate(all="ignore"):  # what is not finite is told by the caller
        return stored.astype(np.float64) * slope + intercept


def _windowed(
    dataset: Any, module: Any, modality: Any, values: np.ndarray, used: np.ndarray
) -> np.ndarray:
    """The values from 0, black, to 1, white, or beyond: PS3.3, C.11.2."""
    if _given(module, "VOILUTSequence"):
        signed = _may_be_negative(dataset, modality)
        entries, first = _table(dataset, module.VOILUTSequence[0], signed=signed)
        found = entries[_places(values, first, len(entries))]
        return _between(found.astype(np.float64), float(entries.min()), float(entries.max()))
    if not (_given(module, "WindowWidth") and _given(module, "WindowCenter")):
        return _between(values, values[used].min(), values[used].max())
    center, width = (float(_first(module.get(n))) for n in ("WindowCenter", "WindowWidth"))
    if not (np.isfinite(center) and np.isfinite(width)):
        raise DicomError(f"WindowCenter {center:g} and WindowWidth {width:g} are no finite numbers")
    function = str(module.get("VOILUTFunction") or "LINEAR").upper()
    least = 1 if function == "LINEAR" else 0
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise DicomError(f"VOILUTFunction {function} is not supported")
    if width < least or width <= 0:
        raise DicomError(
            f"WindowWidth is {width:g}; of a {function} window it must be "
            f"{'at least 1' if least else 'above 0'} (DICOM PS3.3, C.11.2.1.2). "
            + ("A narrower one is LINEAR_EXACT, by VOILUTFunction" if least else "")
        )
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return np.where(values > center, 1.0, 0.0)
    return (values - center) / width + 0.5


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if low == high:
        return np.zeros(values.shape)
    with np.errstate(all="ignore"):
        return (values - low) / (high - low)


def _may_be_negative(dataset: Any, module: Any) -> bool:
    """Whether the modality transformation can give negative values."""
    if _given(module, "ModalityLUTSequence"):
        return False
    signed, bits = dataset.PixelRepresentation == 1, int(dataset.BitsStored)
    ends = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return bool(_rescaled(dataset, module, np.array(ends)).min() < 0)


def _first(value: Any) -> Any:
    return value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value


def _places(values: np.ndarray, first: int, count: int) -> np.ndarray:
    """Where values are found in a table: what lies before or beyond it, at its ends."""
    return np.clip(np.round(values) - first, 0, count - 1).astype(np.int64)


def _table(dataset: Any, item: Any, prefix: str = "LUT", *, signed: bool) -> tuple[np.ndarray, int]:
    """The entries of a table and the value of the first: PS3.3, C.11.1.1 and C.7.6.3.1.5.

    Entries of 8 bits may be packed two a word, the first in its low byte.

    Args:
        dataset: tells the order of bytes.
        item: holds the table.
        prefix: of the names of its elements.
        signed: whether the values that are looked up can be negative.
    """
    count, first, _ = (int(x) for x in item[f"{prefix}Descriptor"].value)
    count, first = count % (1 << 16) or 1 << 16, _signed(first, 16, signed)
    element = item[f"{prefix}Data"]
    data = element.value
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, f"{order}u2")
    data = np.atleast_1d(np.asarray(data))
    if len(data) < count <= 2 * len(data):
        data = data.astype("<u2").view(np.uint8)
    if len(data) < count:
        raise DicomError(f"{element.name} has {len(data)} entries; its descriptor says {count}")
    return data[:count], first


def _palette(dataset: Any) -> _Show:
    """RGB by the palette: PS3.3, C.7.6.3.1.5 and C.7.9."""
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    signed = dataset.PixelRepresentation == 1
    if "RedPaletteColorLookupTableData" in dataset:
        tables = [_table(dataset, dataset, name, signed=signed) for name in names]
        first = tables[0][1]
        if any(place != first for _, place in tables) or len({len(x) for x, _ in tables}) > 1:
            raise DicomError("the tables of its palette differ in length or first value")
        colours = np.stack([entries for entries, _ in tables], axis=-1)
    else:  # in segments, which pydicom joins
        from pydicom import pixels

        count, first, depth = (int(x) for x in dataset[f"{names[0]}Descriptor"].value)
        count, first = count % (1 << 16) or 1 << 16, _signed(first, 16, signed)
        if depth == 8 and count > 256:
            raise DicomError(f"a palette of {count} entries of 8 bits in segments is not supported")
        colours = pixels.apply_color_lut(first + np.arange(count), dataset)
    bits = int(dataset[f"{names[0]}Descriptor"].value[2])
    # Entries of 8 bits may be stored in 16, some in the high byte, and 16 be declared of those that
    # have 8: what they hold tells.
    if colours.max() >= 1 << bits:
        bits = 8 * colours.itemsize
    elif colours.max() < 1 << 8:
        bits = 8
    shown = _high_byte(colours[..., :3], bits)
    return lambda stored, used: shown[_places(stored, first, len(shown))]
