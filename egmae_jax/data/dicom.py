"""DICOM files as 8-bit images (needs pydicom: pip install -e '.[dicom]')."""

import importlib.util
import io
import logging
import zlib
from typing import Any

import numpy as np
import PIL.Image

from egmae_jax.errors import MissingExtraError, UserError


class DicomError(UserError):
    """The file cannot be shown as one image; the message says why."""


def is_dicom(encoded: bytes) -> bool:
    """Whether the bytes are a DICOM file, whatever its name."""
    return encoded[128:132] == b"DICM"


def decoders() -> list[str]:
    """Those packages for compressed DICOM that are installed, and pydicom itself."""
    known = ("pydicom", "pylibjpeg", "libjpeg", "openjpeg", "rle", "gdcm")
    return [name for name in known if importlib.util.find_spec(name)]


def decode(encoded: bytes) -> PIL.Image.Image:
    """Decodes a DICOM file of one frame.

    Grey values go through the modality transformation (rescale slope and intercept or its table),
    then through the first window or VOI table; without either, the image's own extremes become
    black and white. MONOCHROME1 is inverted, so that more is brighter. YBR and palettes become RGB.

    Raises:
        DicomError: several frames, no pixels, too many, or a compression without decoder.
        MissingExtraError: pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom import pixels
    except ImportError:
        raise MissingExtraError("reading DICOM needs pydicom: pip install -e '.[dicom]'") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it logs tracebacks; our error says it
    try:
        _require_bounded(encoded)
        dataset = pydicom.dcmread(io.BytesIO(encoded))
        frames = int(dataset.get("NumberOfFrames") or 1)
        if frames != 1:
            raise DicomError(f"{frames} frames; one image is expected, so export the one you mean")
        count = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
        if count > 2 * (PIL.Image.MAX_IMAGE_PIXELS or count):  # Pillow's bound for other formats
            raise DicomError(f"{count} pixels: it could be a decompression bomb")
        array = pixels.pixel_array(dataset)  # YBR is converted to RGB
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            colours = pixels.apply_color_lut(array, dataset)
            return PIL.Image.fromarray(_high_byte(colours, 8 * colours.itemsize))
        if dataset.SamplesPerPixel == 3:
            return PIL.Image.fromarray(_high_byte(array, dataset.BitsStored))
        values = pixels.apply_modality_lut(array, dataset).astype(np.float64)
        has_window = _given(dataset, "WindowWidth") and _given(dataset, "WindowCenter")
        if has_window or _given(dataset, "VOILUTSequence"):
            # The two extremes tell which values the window shows as black and white.
            windowed = pixels.apply_voi_lut(
                np.append(values.ravel(), (values.min() - 1e6, values.max() + 1e6)), dataset
            )
            values, (low, high) = windowed[:-2].reshape(values.shape), windowed[-2:]
        else:
            low, high = values.min(), values.max()
        if not (np.isfinite(values).all() and np.isfinite(high - low)):
            raise DicomError("its rescaling or window makes values that are no finite numbers")
    except (DicomError, MemoryError):
        raise
    except Exception as error:  # pydicom raises much besides its own errors
        raise DicomError(f"damaged or not supported DICOM: {error}") from None
    grey = (values - low) / (high - low) if high != low else np.zeros_like(values)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return PIL.Image.fromarray(np.round(255 * np.clip(grey, 0, 1)).astype(np.uint8))


def _require_bounded(encoded: bytes) -> None:
    """Of a file that is deflated as a whole, pydicom inflates whatever is there at once.

    Raises:
        DicomError: it would be more than two bytes for each of the pixels an image may have.
    """
    from pydicom import filereader, uid

    file = io.BytesIO(encoded)
    file.seek(132)
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


def _given(dataset: Any, name: str) -> bool:
    """Whether an element is there and not empty, as anonymisation may leave it."""
    value = dataset.get(name)
    return value not in (None, "") and (not hasattr(value, "__len__") or len(value) > 0)


def _high_byte(array: np.ndarray, bits: int) -> np.ndarray:
    return (array >> max(bits - 8, 0)).astype(np.uint8)
