"""What the stored values of a DICOM file mean, and how bright they are shown."""

from typing import Any

import numpy as np

from egmae_jax.core.errors import UserError
from egmae_jax.data.samples import high_byte


class DicomError(UserError):
    """The file cannot be shown as one image; the message says why."""


def has_value(dataset: Any, name: str) -> bool:
    """Whether an element is there and not empty, as anonymisation may leave it."""
    value = dataset.get(name)
    return value not in (None, "") and (not hasattr(value, "__len__") or len(value) > 0)


def high_bit(dataset: Any) -> int:
    """The highest bit of a value in its cell; the one of today's standard where none is given."""
    return int(dataset.HighBit) if has_value(dataset, "HighBit") else int(dataset.BitsStored) - 1


def stored_values(dataset: Any, cells: np.ndarray) -> np.ndarray:
    """Values of cells, int [H, W] or [H, W, 3], without the bits that are not theirs."""
    from pydicom import uid

    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if allocated == bits or allocated == 1:
        return cells
    syntax = dataset.file_meta.TransferSyntaxUID
    in_cells = not syntax.is_encapsulated or syntax == uid.RLELossless  # else the codec's values
    unused = high_bit(dataset) + 1 - bits if in_cells else 0
    # The lowest bit of the value goes to bit 0, its highest to the cell's, and back with the sign.
    cells = (cells >> unused) << (8 * cells.itemsize - bits)
    return np.asarray(cells >> (8 * cells.itemsize - bits))


def padding(dataset: Any, cells: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Finds the pixels that are padding, bool [H, W].

    Args:
        dataset: holds the padding's value, which may have all bits of a cell.
        cells: [H, W], the values with all bits of their cells.
        stored: [H, W], the values alone.

    Raises:
        DicomError: it is not known whether pixels of the padding's lower bits are padding.
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
        cut = _signed(end, bits, is_signed)
        if not is_padding.any() and cut != end and (stored == cut).any():
            raise DicomError(
                f"{name} {end} has more bits than BitsStored, {bits}, and there are pixels of "
                f"{cut}, which is the rest of it: whether they are padding is not known"
            )
    return is_padding


def _signed(value: int, bits: int, is_signed: bool) -> int:
    """A whole number of so many bits that may have been written in the other sign."""
    value %= 1 << bits
    return value - (1 << bits) if is_signed and value >= 1 << bits - 1 else value


def grey(dataset: Any, levels: np.ndarray) -> np.ndarray:
    """Brightness of grey values, uint8 [K].

    Args:
        dataset: holds the transformations.
        levels: [K], the values that occur in the image, padding left out.

    Raises:
        DicomError: a transformation contradicts the standard or is not supported.
    """
    modality = _module(dataset, "PixelValueTransformationSequence")
    view = _module(dataset, "FrameVOILUTSequence")
    values = _rescaled(dataset, modality, levels)
    shares = _windowed(dataset, view, modality, values)
    if not (np.isfinite(shares).all() and np.isfinite(values).all()):
        raise DicomError("its rescaling or window makes values that are no finite numbers")
    shares = 1 - shares if dataset.PhotometricInterpretation == "MONOCHROME1" else shares
    return np.asarray(np.round(255 * np.clip(shares, 0, 1)).astype(np.uint8))


def _module(dataset: Any, macro: str) -> Any:
    """Where a transformation is: the frame's functional groups, the shared ones, or the top."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for item in dataset.get(groups) or ():
            if has_value(item, macro):
                return item[macro].value[0]
    return dataset


def _rescaled(dataset: Any, module: Any, stored: np.ndarray) -> np.ndarray:
    """What the stored values mean, float64, such as Hounsfield units (PS3.3, C.11.1)."""
    if has_value(module, "ModalityLUTSequence"):
        signed = dataset.PixelRepresentation == 1
        entries, first = _table(dataset, module.ModalityLUTSequence[0], signed=signed)
        return entries[_places(stored, first, len(entries))].astype(np.float64)
    slope = float(module.RescaleSlope) if has_value(module, "RescaleSlope") else 1.0
    intercept = float(module.RescaleIntercept) if has_value(module, "RescaleIntercept") else 0.0
    if slope == 0:
        raise DicomError("RescaleSlope is 0, which makes one value of all")
    with np.errstate(all="ignore"):  # the caller refuses what is not finite
        return stored.astype(np.float64) * slope + intercept


def _windowed(dataset: Any, module: Any, modality: Any, values: np.ndarray) -> np.ndarray:
    """Brightness of the values, from 0 for black to 1 for white, or beyond (PS3.3, C.11.2)."""
    if has_value(module, "VOILUTSequence"):
        signed = _may_be_negative(dataset, modality)
        entries, first = _table(dataset, module.VOILUTSequence[0], signed=signed)
        looked_up = entries[_places(values, first, len(entries))].astype(np.float64)
        return _between(looked_up, float(entries.min()), float(entries.max()))
    if not (has_value(module, "WindowWidth") and has_value(module, "WindowCenter")):
        return _between(values, values.min(), values.max())
    center, width = (float(_first(module.get(n))) for n in ("WindowCenter", "WindowWidth"))
    if not (np.isfinite(center) and np.isfinite(width)):
        raise DicomError(f"WindowCenter {center:g} and WindowWidth {width:g} are no finite numbers")
    function = str(module.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise DicomError(f"VOILUTFunction {function} is not supported")
    if width < 1 if function == "LINEAR" else width <= 0:
        least = "at least 1" if function == "LINEAR" else "above 0"
        raise DicomError(
            f"WindowWidth is {width:g}; of a {function} window it must be {least} (DICOM PS3.3, "
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


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if low == high:
        return np.zeros(values.shape)
    with np.errstate(all="ignore"):
        return (values - low) / (high - low)


def _may_be_negative(dataset: Any, module: Any) -> bool:
    """Whether the modality transformation can give negative values."""
    if has_value(module, "ModalityLUTSequence"):
        return False
    signed, bits = dataset.PixelRepresentation == 1, int(dataset.BitsStored)
    ends = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return bool(_rescaled(dataset, module, np.array(ends)).min() < 0)


def _first(value: Any) -> Any:
    return value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value


def _places(values: np.ndarray, first: int, count: int) -> np.ndarray:
    """Indices of values in a table; a value before or beyond it takes the entry at that end."""
    return np.clip(np.round(values) - first, 0, count - 1).astype(np.int64)


def _table(dataset: Any, item: Any, prefix: str = "LUT", *, signed: bool) -> tuple[np.ndarray, int]:
    """The entries of a lookup table and the value of the first (PS3.3, C.11.1.1, C.7.6.3.1.5).

    Entries of 8 bits may be packed two a word, the first in its low byte.

    Args:
        dataset: tells the order of bytes.
        item: holds the table.
        prefix: beginning of the names of the table's elements.
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


def palette(dataset: Any, levels: np.ndarray) -> np.ndarray:
    """Colours of a palette's values, uint8 [K, 3] (PS3.3, C.7.6.3.1.5 and C.7.9).

    Raises:
        DicomError: its tables are missing, in segments, or differ in length or first value.
    """
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    if lacking := [f"{name}Data" for name in names if f"{name}Data" not in dataset]:
        raise DicomError(f"it lacks {', '.join(lacking)}; a palette in segments is not supported")
    signed = dataset.PixelRepresentation == 1
    tables = [_table(dataset, dataset, name, signed=signed) for name in names]
    if len({(len(entries), first) for entries, first in tables}) > 1:
        raise DicomError("the tables of its palette differ in length or first value")
    colours, first = np.stack([entries for entries, _ in tables], axis=-1), tables[0][1]
    bits = int(dataset[f"{names[0]}Descriptor"].value[2])
    # Entries of 8 bits may be stored in 16, some in the high byte, and 16 be declared of those that
    # have 8: what they hold tells.
    if colours.max() >= 1 << bits:
        bits = 8 * colours.itemsize
    elif colours.max() < 1 << 8:
        bits = 8
    return high_byte(colours[:, :3], bits)[_places(levels, first, len(colours))]
