"""DICOM files as 8-bit images (needs pydicom: pip install -e '.[dicom]')."""

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
from egmae_jax.core.quiet import silenced
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

# Of files without the preamble: elements that a data set begins with, and representations of values
# (PS3.5, 6.2) that stand in them.
_FIRST = {2: (0x00, 0x01, 0x02), 8: (0x00, 0x01, 0x05, 0x06, 0x08, 0x10, 0x12, 0x14, 0x16, 0x18)}
_REPRESENTATIONS = (b"UL", b"OB", b"CS", b"UI", b"SH", b"LO", b"DA", b"TM", b"RET", b"LT")
_LOGGERS = ("pydicom", "pydicom.pixels.decoders.base", "pydicom.pixels.utils")
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
    """One frame as an image, with what its file stores.

    Attributes:
        image: 8-bit, grey or RGB.
        bits: BitsStored, how many bits of a value the file uses.
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
    """Installed packages that decode DICOM, with their versions."""
    installed = []
    for name in _DECODERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed.append(f"{name} {importlib.metadata.version(name)}")
    return installed


def decode(encoded: bytes) -> DicomImage:
    """Decodes a DICOM file of one frame.

    Grey values go through the modality transformation (rescale slope and intercept, or its table)
    and then through the VOI table, whose least and largest entry become black and white, or through
    the first window; without either the image's own extremes become black and white. The frame's
    functional groups come before the elements at the top. Padding (PixelPaddingValue and its range)
    is black and no part of the extremes. MONOCHROME1 is inverted, so that more is brighter. YBR and
    palettes become RGB.

    Raises:
        DicomError: the file has several frames, no pixels or too many, needs a decoder that is not
            installed, or holds what is not supported or contradicts itself; the message names it.
        MissingExtraError: pydicom is not installed.
    """
    try:
        import pydicom  # noqa: F401 (whether it is there)
    except ImportError:
        raise MissingExtraError("reading DICOM needs pydicom: pip install -e '.[dicom]'") from None
    try:
        with silenced(*_LOGGERS):
            dataset = _read(encoded)
            for problem in _problems(dataset):
                raise DicomError(problem)
            return _to_image(dataset)
    except (DicomError, MemoryError):
        raise
    except Exception as error:  # pydicom raises much besides its own errors
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
            raise DicomError("it names no transfer syntax, and its encoding cannot be recognised")
        native = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = native if little else uid.ExplicitVRBigEndian
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise DicomError("its pixels are compressed, and it names no transfer syntax")
    return dataset


def _require_bounded(encoded: bytes, start: int) -> None:
    """Refuses a deflated file that inflates to absurdly much, which pydicom would do at once.

    Raises:
        DicomError: it inflates to more than two bytes for each of the pixels an image may have.
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


def _problems(dataset: Any) -> Iterator[str]:
    """Whatever of a file is not supported or contradicts itself, in sentences."""
    if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
        yield f"{frames} frames; one image is expected, so export the one you mean"
    if "NumberOfFrames" in dataset:
        dataset.NumberOfFrames = 1  # pydicom warns of 0 and of an empty one
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            yield f"its pixels are in {keyword}: floating-point values are not supported"
    if "PixelData" not in dataset:
        yield "this DICOM file holds no pixels (PixelData), or is cut short before them"
    for keyword in _REQUIRED:
        if not has_value(dataset, keyword):
            yield f"this DICOM file lacks {keyword}"
    count = int(dataset.Rows) * int(dataset.Columns)
    if count > 2 * (PIL.Image.MAX_IMAGE_PIXELS or count):  # Pillow's bound for other formats
        yield f"{count} pixels: it could be a decompression bomb"
    colours, samples = dataset.PhotometricInterpretation, dataset.SamplesPerPixel
    is_known = colours in (*_SHAPES, *_COLOURS, "PALETTE COLOR")
    if not is_known or samples != (3 if colours in _COLOURS else 1):
        yield f"PhotometricInterpretation {colours} of {samples} samples a pixel is not supported"
    if samples == 3 and dataset.PixelRepresentation == 1:
        yield "signed colours (PixelRepresentation 1) are not supported"
    high = high_bit(dataset)
    if not 0 < dataset.BitsStored <= high + 1 <= dataset.BitsAllocated:
        yield (
            f"BitsStored {dataset.BitsStored}, HighBit {high} and BitsAllocated "
            f"{dataset.BitsAllocated} contradict each other"
        )
    if (presentation := dataset.get("PixelPresentation")) in ("COLOR", "MIXED"):
        yield f"PixelPresentation {presentation}, colours laid over grey, is not supported"
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

    # With all bits of their cells; YBR is converted to RGB.
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
    levels, places = np.unique(stored[~is_padding], return_inverse=True)
    is_palette = dataset.PhotometricInterpretation == "PALETTE COLOR"
    pixels_of = palette(dataset, levels) if is_palette else grey(dataset, levels)
    array = np.zeros((*stored.shape, *pixels_of.shape[1:]), np.uint8)
    array[~is_padding] = pixels_of[places]
    return DicomImage(PIL.Image.fromarray(array), bits, (int(levels[0]), int(levels[-1])))
