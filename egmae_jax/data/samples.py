"""The values that an image file stores, and how they become 8 bits.

What values mean is what the file declares (bits, sign, polarity, range), never the mode that a
library gives them. The modules of `formats` read them.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from egmae_jax.core.errors import UserError

Rule = Literal["type", "declared", "dataset"]
RULES = get_args(Rule)
GREY, RGB, CMYK = 1, 3, 4  # samples of a colour
CONVERT = "convert it to 8 or 16 bits of grey or RGB"
SAMPLE_FORMATS = {1: "uint", 2: "int", 3: "float"}  # TIFF's SampleFormat
_WIDEST = 16  # bits of integers whose type says what is black and what is white


class SamplesError(UserError):
    """The file's values cannot be shown; the message names what they are and what would do."""


class IntensityRange(NamedTuple):
    """Which values of files with more than 8 bits a value become black and white.

    Attributes:
        rule: 'type', 'declared' or 'dataset'; see data.intensity_range in run/default_config.py.
        of_dataset: for rule 'dataset', the least and largest value of the set's files by the type
            of their values, such as {'uint16': (0, 4095)}.
    """

    rule: Rule = "type"
    of_dataset: Mapping[str, tuple[float, float]] = {}


BY_TYPE = IntensityRange()


def to_json(intensity: IntensityRange) -> dict[str, Any]:
    """Converts a range of intensities to JSON-like values."""
    ranges = {kind: list(ends) for kind, ends in intensity.of_dataset.items()}
    return {"rule": intensity.rule, "of_dataset": ranges}


def from_json(content: Any) -> IntensityRange:
    """Converts what `to_json` returned back to a range of intensities.

    Raises:
        ValueError: the content is something else.
    """
    try:
        ranges = {kind: (low, high) for kind, (low, high) in content["of_dataset"].items()}
        return IntensityRange(content["rule"], ranges)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"no range of intensities: {error!r}") from None


def listed(intensity: IntensityRange) -> str:
    """Describes the ranges of a data set in words: 'uint16 from 0 to 4095'."""
    ranges = [f"{k} from {low:g} to {high:g}" for k, (low, high) in intensity.of_dataset.items()]
    return ", ".join(ranges) or "no type of more than 8 bits"


def lies_beyond(intensity: IntensityRange, kind: str, least: float, largest: float) -> bool:
    """Whether a file has values beyond the range of the data set, which become black or white.

    Args:
        intensity: the range by which the file is decoded.
        kind: type of the file's values, such as 'uint16'.
        least, largest: extremes of the file's values.
    """
    if intensity.rule != "dataset" or kind not in intensity.of_dataset:
        return False
    low, high = intensity.of_dataset[kind]
    return least < low or largest > high


class Samples(NamedTuple):
    """The pixels of one image as its file stores them.

    Attributes:
        values: [H, W] of grey, [H, W, 3] of RGB or [H, W, 4] of CMYK; integers or floats.
        type: type of the values as the file declares it, such as 'uint12', 'int16' or 'float32'.
        min_is_white: whether the least value is white (TIFF's PhotometricInterpretation 0).
        declared: the least and largest value that the file itself declares, by PNG's sBIT or
            TIFF's SMinSampleValue and SMaxSampleValue; None if it declares none.
        orientation: EXIF's, 1 to 8, still to be applied.
    """

    values: np.ndarray
    type: str
    min_is_white: bool = False
    declared: tuple[float, float] | None = None
    orientation: int = 1

    @property
    def mode(self) -> str:
        """How the pixels are stored, for people: Pillow's mode 'L', 'RGB', or such as 'L;int16'."""
        channels = self.values.shape[2] if self.values.ndim == 3 else GREY
        name = {GREY: "L", RGB: "RGB", CMYK: "CMYK"}[channels]
        return name if self.type == "uint8" else f"{name};{self.type}"

    @property
    def bits(self) -> int:
        """Bits of a value as the file declares them."""
        return int("".join(filter(str.isdigit, self.type)))

    @property
    def extremes(self) -> tuple[float, float]:
        """The least and the largest value.

        Raises:
            SamplesError: some values are no finite numbers.
        """
        low, high = self.values.min(), self.values.max()
        if not np.isfinite([low, high]).all():  # one NaN makes both NaN
            raise SamplesError("it holds values that are no finite numbers")
        return low.item(), high.item()


def to_image(samples: Samples, intensity: IntensityRange = BY_TYPE) -> PIL.Image.Image:
    """Converts values to an upright 8-bit image, grey or RGB, in which more is brighter.

    Raises:
        SamplesError: it is not known which of the values are black and white.
    """
    pixels = _to_uint8(samples, intensity)
    if samples.min_is_white:
        pixels = 255 - pixels
    image = PIL.Image.fromarray(pixels)
    if samples.values.ndim == 3 and samples.values.shape[2] == CMYK:
        image = PIL.Image.frombytes("CMYK", image.size, pixels.tobytes()).convert("RGB")
    image.getexif()[PIL.ExifTags.Base.Orientation] = samples.orientation
    return PIL.ImageOps.exif_transpose(image)


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
    return high_byte(values, bits)


def high_byte(values: np.ndarray, bits: int) -> np.ndarray:
    """Highest byte of unsigned values, uint8; fewer than 8 bits are stretched to 0 to 255."""
    if bits < 8:
        return np.round(values * (255 / ((1 << bits) - 1))).astype(np.uint8)
    return (values >> (bits - 8)).astype(np.uint8)


def _bounds(samples: Samples, intensity: IntensityRange) -> tuple[float, float] | None:
    """Values that become black and white; None: the least and largest of their type."""
    kind, is_wide = samples.type, samples.bits > 8
    if intensity.rule == "dataset" and is_wide:
        if kind not in intensity.of_dataset:
            raise SamplesError(
                f"its values are {kind}, of which the data set has none "
                f"(data.intensity_range='dataset': {listed(intensity)})"
            )
        samples.extremes  # noqa: B018 (refuses values that are no numbers)
        return intensity.of_dataset[kind]
    if intensity.rule == "declared" and is_wide and samples.declared is not None:
        low, high = samples.declared
        least, largest = samples.extremes
        if math.isnan(high):
            raise SamplesError(f"it declares another range for each of its colours; {CONVERT}")
        if not low < high or least < low or largest > high:
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
            f"largest value of the data set, or {CONVERT}"
        )
    return None


def require_bounded(pixels: int) -> None:
    """Refuses more pixels than Pillow does.

    Raises:
        SamplesError: there are more.
    """
    if pixels > 2 * (PIL.Image.MAX_IMAGE_PIXELS or pixels):
        raise SamplesError(f"{pixels} pixels: it could be a decompression bomb")
