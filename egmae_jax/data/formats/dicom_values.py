"""Converts the stored values of a DICOM file to grey levels or colours for display."""

from typing import Any

import numpy as np

from egmae_jax.core.errors import UserError
from egmae_jax.data.samples import high_byte


class DicomError(UserError):
    """A DICOM file cannot be decoded to one image; the message says why."""


def has_value(dataset: Any, name: str) -> bool:
    """Whether a data set has an element that is not empty; anonymisation may empty elements."""
    value = dataset.get(name)
    return value not in (None, "") and (not hasattr(value, "__len__") or len(value) > 0)


def high_bit(dataset: Any) -> int:
    """Returns HighBit, or BitsStored - 1, which the standard requires today, if it is missing."""
    return int(dataset.HighBit) if has_value(dataset, "HighBit") else int(dataset.BitsStored) - 1


def stored_values(dataset: Any, cells: np.ndarray) -> np.ndarray:
    """Extracts the BitsStored bits of each value from its cell.

    Args:
        dataset: pydicom data set.
        cells: int [H, W] or [H, W, 3], values with all BitsAllocated bits of their cells.

    Returns:
        The values, in the shape and type of `cells`.
    """
    from pydicom import uid

    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if allocated == bits or allocated == 1:
        return cells
    syntax = dataset.file_meta.TransferSyntaxUID
    # Other compressed formats decode to values, without unused bits below them.
    has_cells = not syntax.is_encapsulated or syntax == uid.RLELossless
    unused = high_bit(dataset) + 1 - bits if has_cells else 0
    # Shifting to the top of the cell and back removes the bits above, and extends the sign.
    cells = (cells >> unused) << (8 * cells.itemsize - bits)
    return np.asarray(cells >> (8 * cells.itemsize - bits))


def padding(dataset: Any, cells: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Finds the padding pixels, bool [H, W], by PixelPaddingValue and PixelPaddingRangeLimit.

    Args:
        dataset: pydicom data set; the padding value may use all bits of a cell.
        cells: int [H, W], values with all BitsAllocated bits of their cells.
        stored: int [H, W], values from `stored_values`.

    Raises:
        DicomError: the padding value has more bits than BitsStored, and it is unclear whether
            pixels that agree in the lower bits are padding.
    """
    is_padding = np.zeros(stored.shape, bool)
    names = [x for x in ("PixelPaddingValue", "PixelPaddingRangeLimit") if has_value(dataset, x)]
    if "PixelPaddingValue" not in names:
        return is_padding
    is_signed, bits = dataset.PixelRepresentation == 1, int(dataset.BitsStored)
    ends = [_signed(int(dataset[x].value), int(dataset.BitsAllocated), is_signed) for x in names]
    for values in (stored, cells):
        is_padding |= (values >= min(ends)) & (values <= max(ends))
    for name, end in zip(names, ends, strict=True):
        truncated = _signed(end, bits, is_signed)
        if not is_padding.any() and truncated != end and (stored == truncated).any():
            raise DicomError(
                f"{name} {end} has more bits than BitsStored {bits}, and some pixels equal its "
                f"lower bits, {truncated}: it is unclear whether they are padding"
            )
    return is_padding


def _signed(value: int, bits: int, is_signed: bool) -> int:
    """Interprets the lowest `bits` bits of an integer as a signed or unsigned value."""
    value %= 1 << bits
    return value - (1 << bits) if is_signed and value >= 1 << bits - 1 else value


def grey(dataset: Any, levels: np.ndarray) -> np.ndarray:
    """Converts stored grey values to display brightness, uint8 [K].

    Args:
        dataset: pydicom data set with the transformations.
        levels: int [K], the stored values that occur in the image, without padding.

    Raises:
        DicomError: a transformation contradicts the standard or is not supported.
    """
    modality = _module(dataset, "PixelValueTransformationSequence")
    view = _module(dataset, "FrameVOILUTSequence")
    values = _rescaled(dataset, modality, levels)
    shares = _windowed(dataset, view, modality, values)
    if not (np.isfinite(shares).all() and np.isfinite(values).all()):
        raise DicomError("its rescaling or window gives values that are not finite")
    shares = 1 - shares if dataset.PhotometricInterpretation == "MONOCHROME1" else shares
    return np.asarray(np.round(255 * np.clip(shares, 0, 1)).astype(np.uint8))


def _module(dataset: Any, macro: str) -> Any:
    """Returns the data set with a transformation's elements: a functional group or the top level.

    Args:
        dataset: pydicom data set.
        macro: name of the sequence in the functional groups. Those of the frame take precedence
            over shared ones.
    """
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for item in dataset.get(groups) or ():
            if has_value(item, macro):
                return item[macro].value[0]
    return dataset


def _rescaled(dataset: Any, module: Any, stored: np.ndarray) -> np.ndarray:
    """Applies the modality transformation, for example to Hounsfield units (PS3.3, C.11.1)."""
    if has_value(module, "ModalityLUTSequence"):
        signed = dataset.PixelRepresentation == 1
        entries, first = _table(dataset, module.ModalityLUTSequence[0], signed=signed)
        return entries[_table_indices(stored, first, len(entries))].astype(np.float64)
    slope = float(module.RescaleSlope) if has_value(module, "RescaleSlope") else 1.0
    intercept = float(module.RescaleIntercept) if has_value(module, "RescaleIntercept") else 0.0
    if slope == 0:
        raise DicomError("RescaleSlope is 0, which makes all values equal; it must not be 0")
    with np.errstate(all="ignore"):  # the caller rejects values that are not finite
        return stored.astype(np.float64) * slope + intercept


def _windowed(dataset: Any, module: Any, modality: Any, values: np.ndarray) -> np.ndarray:
    """Applies the VOI table or window: 0 is black and 1 is white, not clipped (PS3.3, C.11.2)."""
    if has_value(module, "VOILUTSequence"):
        signed = _may_be_negative(dataset, modality)
        entries, first = _table(dataset, module.VOILUTSequence[0], signed=signed)
        looked_up = entries[_table_indices(values, first, len(entries))].astype(np.float64)
        return _normalise(looked_up, float(entries.min()), float(entries.max()))
    if not (has_value(module, "WindowWidth") and has_value(module, "WindowCenter")):
        return _normalise(values, values.min(), values.max())
    center, width = (float(_first(module.get(n))) for n in ("WindowCenter", "WindowWidth"))
    if not (np.isfinite(center) and np.isfinite(width)):
        raise DicomError(f"WindowCenter {center:g} and WindowWidth {width:g} must be finite")
    function = str(module.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise DicomError(f"VOILUTFunction {function} is not supported")
    if width < 1 if function == "LINEAR" else width <= 0:
        bound = "at least 1" if function == "LINEAR" else "above 0"
        raise DicomError(
            f"WindowWidth is {width:g}; for a {function} window it must be {bound} (DICOM PS3.3, "
            "C.11.2.1.2)"
        )
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return np.where(values > center, 1.0, 0.0)
    return (values - center) / width + 0.5


def _normalise(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if low == high:
        return np.zeros(values.shape)
    with np.errstate(all="ignore"):
        return (values - low) / (high - low)


def _may_be_negative(dataset: Any, module: Any) -> bool:
    """Whether the modality transformation can return negative values."""
    if has_value(module, "ModalityLUTSequence"):
        return False
    signed, bits = dataset.PixelRepresentation == 1, int(dataset.BitsStored)
    ends = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return bool(_rescaled(dataset, module, np.array(ends)).min() < 0)


def _first(value: Any) -> Any:
    return value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value


def _table_indices(values: np.ndarray, first: int, count: int) -> np.ndarray:
    """Returns the table index of each value; values outside the table get the nearest end's."""
    return np.clip(np.round(values) - first, 0, count - 1).astype(np.int64)


def _table(dataset: Any, item: Any, prefix: str = "LUT", *, signed: bool) -> tuple[np.ndarray, int]:
    """Reads a lookup table (PS3.3, C.11.1.1 and C.7.6.3.1.5).

    8-bit entries may be packed in pairs into 16-bit words, the first in the low byte.

    Args:
        dataset: pydicom data set, whose transfer syntax gives the byte order.
        item: data set that contains the table.
        prefix: prefix of the names of the table's elements.
        signed: whether the values that are looked up can be negative.

    Returns:
        The entries, and the value that the first entry stands for.
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
        raise DicomError(f"{element.name} has {len(data)} entries, but its descriptor says {count}")
    return data[:count], first


def palette(dataset: Any, levels: np.ndarray) -> np.ndarray:
    """Converts the values of a PALETTE COLOR image to RGB (PS3.3, C.7.6.3.1.5 and C.7.9).

    Args:
        dataset: pydicom data set with the palette.
        levels: int [K], the stored values that occur in the image.

    Returns:
        uint8 [K, 3].

    Raises:
        DicomError: the tables of the palette are missing or segmented, or differ in length or first
            value.
    """
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    if lacking := [f"{name}Data" for name in names if f"{name}Data" not in dataset]:
        raise DicomError(f"it lacks {', '.join(lacking)}; segmented palettes are not supported")
    signed = dataset.PixelRepresentation == 1
    tables = [_table(dataset, dataset, name, signed=signed) for name in names]
    if len({(len(entries), first) for entries, first in tables}) > 1:
        raise DicomError("the tables of its palette differ in length or first value")
    colours, first = np.stack([entries for entries, _ in tables], axis=-1), tables[0][1]
    bits = int(dataset[f"{names[0]}Descriptor"].value[2])
    # 8-bit entries may be stored in the low or high byte of 16 bits, and 16 bits may be declared
    # for entries of 8, so the size of the entries decides.
    if colours.max() >= 1 << bits:
        bits = 8 * colours.itemsize
    elif colours.max() < 1 << 8:
        bits = 8
    return high_byte(colours[:, :3], bits)[_table_indices(levels, first, len(colours))]
