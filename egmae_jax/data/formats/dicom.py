"""Decodes DICOM files to 8-bit images (needs pydicom: pip install -e '.[dicom]')."""

import contextlib
import importlib.metadata
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from egmae_jax.core.errors import MissingExtraError
from egmae_jax.data.formats.dicom_values import (
    DicomError,
    grey,
    has_value,
    high_bit,
    padding,
    palette,
    stored_values,
)
from egmae_jax.data.samples import high_byte

# Files without a preamble are recognised by their first element: its group and element number, and
# its value representation (PS3.5, 6.2).
_FIRST_ELEMENTS = {
    2: (0x00, 0x01, 0x02),
    8: (0x00, 0x01, 0x05, 0x06, 0x08, 0x10, 0x12, 0x14, 0x16, 0x18),
}
_VALUE_REPRESENTATIONS = (b"UL", b"OB", b"CS", b"UI", b"SH", b"LO", b"DA", b"TM", b"RET", b"LT")
_DECODERS = (
    *("pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle"),
    *("pyjpegls", "python-gdcm"),
)
_REQUIRED = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation"),
)
_SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}  # PS3.3, C.8.11.3.1.2
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


class DicomImage(NamedTuple):
    """A decoded frame, with the bit depth and range of its stored values.

    Attributes:
        image: 8-bit image, grey or RGB.
        bits: BitsStored, the number of bits per stored value.
        extremes: smallest and largest stored value, without padding.
    """

    image: PIL.Image.Image
    bits: int
    extremes: tuple[float, float]


def is_dicom(encoded: bytes) -> bool:
    """Whether the bytes are those of a DICOM file, with or without a preamble."""
    return encoded[128:132] == b"DICM" or _lacks_preamble(encoded)


def _lacks_preamble(encoded: bytes) -> bool:
    """Whether a DICOM data set begins at the first byte, as in files without a preamble."""
    if len(encoded) < 132:
        return False
    for order in "<>":
        group, element, length = struct.unpack_from(f"{order}HHL", encoded)
        if element in _FIRST_ELEMENTS.get(group, ()):
            return encoded[4:6] in _VALUE_REPRESENTATIONS or length <= 64
    return False


def decoders() -> list[str]:
    """Returns the installed packages that decode DICOM, with their versions."""
    installed = []
    for name in _DECODERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed.append(f"{name} {importlib.metadata.version(name)}")
    return installed


def decode(encoded: bytes) -> DicomImage:
    """Decodes a DICOM file with one frame.

    The modality transformation (rescale slope and intercept, or a lookup table) is applied to grey
    values first. Then the VOI lookup table, whose smallest and largest entries become black and
    white, or the first window is applied; if there is neither, the smallest and largest value of
    the image become black and white. Transformations in the functional groups of the frame take
    precedence over those at the top level. Padding (PixelPaddingValue and its range) becomes black
    and is excluded from the extremes. MONOCHROME1 is inverted, so that larger values are brighter.
    YBR and palette colours are converted to RGB.

    Raises:
        DicomError: the file has several frames, no pixels or too many pixels, needs a decoder that
            is not installed, is not supported, or contradicts itself; the message says which.
        MissingExtraError: pydicom is not installed.
    """
    try:
        import pydicom  # noqa: F401 (checks that it is installed)
    except ImportError:
        raise MissingExtraError("reading DICOM needs pydicom: pip install -e '.[dicom]'") from None
    try:
        dataset = _read(encoded)
        for problem in _problems(dataset):
            raise DicomError(problem)
        return _to_image(dataset)
    except (DicomError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (pydicom raises many types of errors)
        raise DicomError(f"damaged or not supported DICOM: {error}") from None


def _read(encoded: bytes) -> Any:
    import pydicom
    from pydicom import uid

    start = 132 if encoded[128:132] == b"DICM" else 0
    _require_bounded(encoded, start)
    dataset = pydicom.dcmread(io.BytesIO(encoded), force=start == 0)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        if not little and implicit:
            raise DicomError("it has no TransferSyntaxUID, and its encoding cannot be detected")
        native = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = native if little else uid.ExplicitVRBigEndian
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise DicomError("its pixels are compressed, but it has no TransferSyntaxUID")
    return dataset


def _require_bounded(encoded: bytes, start: int) -> None:
    """Raises DicomError for decompression bombs, which pydicom would inflate in one piece.

    A deflated file may inflate to two bytes for each pixel that an image may have: Pillow accepts
    at most 2 * PIL.Image.MAX_IMAGE_PIXELS pixels.
    """
    from pydicom import filereader, uid

    file = io.BytesIO(encoded)
    file.seek(start)
    if struct.unpack_from("<H", encoded, start)[0] != 2:  # no file meta information
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
            raise DicomError(
                f"it inflates to more than {most} bytes: it could be a decompression bomb"
            )


def _problems(dataset: Any) -> Iterator[str]:
    """Yields a sentence for everything in a file that is not supported or contradicts itself."""
    if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
        yield f"{frames} frames; one image is expected, so export a single frame"
    if "NumberOfFrames" in dataset:
        dataset.NumberOfFrames = 1  # pydicom warns if it is 0 or empty
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            yield f"its pixels are in {keyword}: floating-point values are not supported"
    if "PixelData" not in dataset:
        yield "this DICOM file has no pixels (PixelData), or is truncated before them"
    for keyword in _REQUIRED:
        if not has_value(dataset, keyword):
            yield f"this DICOM file lacks {keyword}"
    count = int(dataset.Rows) * int(dataset.Columns)
    if count > 2 * (PIL.Image.MAX_IMAGE_PIXELS or count):  # Pillow's limit for other formats
        yield f"{count} pixels: it could be a decompression bomb"
    colours, samples = dataset.PhotometricInterpretation, dataset.SamplesPerPixel
    is_known = colours in (*_SHAPES, *_COLOURS, "PALETTE COLOR")
    if not is_known or samples != (3 if colours in _COLOURS else 1):
        yield f"PhotometricInterpretation {colours} with SamplesPerPixel {samples} is not supported"
    if samples == 3 and dataset.PixelRepresentation == 1:
        yield "signed colours (PixelRepresentation 1) are not supported"
    high = high_bit(dataset)
    if not 0 < dataset.BitsStored <= high + 1 <= dataset.BitsAllocated:
        yield (
            f"BitsStored {dataset.BitsStored}, HighBit {high} and BitsAllocated "
            f"{dataset.BitsAllocated} contradict each other"
        )
    if (presentation := dataset.get("PixelPresentation")) in ("COLOR", "MIXED"):
        yield f"PixelPresentation {presentation} (colours over grey) is not supported"
    if has_value(dataset, "PresentationLUTSequence"):
        yield "a PresentationLUTSequence is not supported"
    shape = dataset.get("PresentationLUTShape")
    if colours in _SHAPES and shape in _SHAPES.values() and shape != _SHAPES[colours]:
        yield (
            f"PhotometricInterpretation {colours} and PresentationLUTShape {shape} contradict each "
            f"other: {_SHAPES[colours]} is expected (DICOM PS3.3, C.8.11.3.1.2)"
        )


def _to_image(dataset: Any) -> DicomImage:
    from pydicom import pixels

    # Includes the unused bits of each cell (BitsAllocated); YBR is converted to RGB.
    cells = np.asarray(pixels.pixel_array(dataset, correct_unused_bits=False))
    stored, bits = stored_values(dataset, cells), int(dataset.BitsStored)
    if dataset.SamplesPerPixel == 3:
        image = PIL.Image.fromarray(high_byte(stored, bits))
        return DicomImage(image, bits, (stored.min().item(), stored.max().item()))
    is_padding = np.zeros(stored.shape, bool)
    if dataset.PhotometricInterpretation in _SHAPES:
        is_padding = padding(dataset, cells, stored)
    if is_padding.all():
        return DicomImage(PIL.Image.fromarray(np.zeros(stored.shape, np.uint8)), bits, (0, 0))
    levels, indices = np.unique(stored[~is_padding], return_inverse=True)
    is_palette = dataset.PhotometricInterpretation == "PALETTE COLOR"
    displayed = palette(dataset, levels) if is_palette else grey(dataset, levels)
    array = np.zeros((*stored.shape, *displayed.shape[1:]), np.uint8)
    array[~is_padding] = displayed[indices]
    return DicomImage(PIL.Image.fromarray(array), bits, (int(levels[0]), int(levels[-1])))
