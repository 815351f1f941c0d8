"""Stored values of an image file, and their conversion to 8 bits.

The meaning of the values (bits, sign, polarity, range) is what the file declares, not the mode that
an image library assigns. The modules of `formats` read the values.
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
GREY, RGB, CMYK = 1, 3, 4  # number of channels
CONVERT = "convert it to grey or RGB with 8 or 16 bits"
SAMPLE_FORMATS = {1: "uint", 2: "int", 3: "float"}  # TIFF's SampleFormat
_MAX_BITS = 16  # integers of more bits rarely use the full range of their type


class SamplesError(UserError):
    """The values of a file cannot be converted to 8 bits; the message names the reason."""


class IntensityRange(NamedTuple):
    """Rule for the values that become black and white, in files with more than 8 bits per value.

    Attributes:
        rule: 'type', 'declared' or 'dataset'; see data.intensity_range in run/default_config.py.
        of_dataset: smallest and largest value in the files of the data set, by type of the values,
            such as {'uint16': (0, 4095)}; empty unless the rule is 'dataset'.
    """

    rule: Rule = "type"
    of_dataset: Mapping[str, tuple[float, float]] = {}


BY_TYPE = IntensityRange()


def to_json(intensity: IntensityRange) -> dict[str, Any]:
    """Converts a range of intensities to JSON-like values."""
    ranges = {kind: list(ends) for kind, ends in intensity.of_dataset.items()}
    return {"rule": intensity.rule, "of_dataset": ranges}


def from_json(content: Any) -> IntensityRange:
    """Converts the result of `to_json` back to a range of intensities.

    Raises:
        ValueError: the content is not such a result.
    """
    try:
        ranges = {kind: (low, high) for kind, (low, high) in content["of_dataset"].items()}
        return IntensityRange(content["rule"], ranges)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"not a range of intensities: {error!r}") from None


def listed(intensity: IntensityRange) -> str:
    """Describes the ranges of a data set for messages, such as 'uint16 from 0 to 4095'."""
    ranges = [f"{k} from {low:g} to {high:g}" for k, (low, high) in intensity.of_dataset.items()]
    return ", ".join(ranges) or "no type with more than 8 bits"


def lies_beyond(intensity: IntensityRange, kind: str, least: float, largest: float) -> bool:
    """Whether a file has values outside the range of the data set, which are clipped.

    Args:
        intensity: range of intensities with which the file is decoded.
        kind: type of the file's values, such as 'uint16'.
        least: smallest value of the file.
        largest: largest value of the file.
    """
    if intensity.rule != "dataset" or kind not in intensity.of_dataset:
        return False
    low, high = intensity.of_dataset[kind]
    return least < low or largest > high


class Samples(NamedTuple):
    """The pixels of one image as its file stores them.

    Attributes:
        values: integers or floats, [H, W] for grey, [H, W, 3] for RGB or [H, W, 4] for CMYK.
        type: type of the values as the file declares it, such as 'uint12', 'int16' or 'float32'.
        min_is_white: whether the smallest value is white (TIFF's PhotometricInterpretation 0).
        declared: smallest and largest value that the file declares with PNG's sBIT or with TIFF's
            SMinSampleValue and SMaxSampleValue; None if it declares none.
        orientation: EXIF orientation, 1 to 8, which is not applied to the values yet.
    """

    values: np.ndarray
    type: str
    min_is_white: bool = False
    declared: tuple[float, float] | None = None
    orientation: int = 1

    @property
    def mode(self) -> str:
        """Storage mode for reports: a mode of Pillow such as 'L', with the type if not uint8."""
        channels = self.values.shape[2] if self.values.ndim == 3 else GREY
        name = {GREY: "L", RGB: "RGB", CMYK: "CMYK"}[channels]
        return name if self.type == "uint8" else f"{name};{self.type}"

    @property
    def bits(self) -> int:
        """Number of bits per value, as the file declares it."""
        return int("".join(filter(str.isdigit, self.type)))

    @property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest value.

        Raises:
            SamplesError: a value is infinite or not a number.
        """
        low, high = self.values.min(), self.values.max()
        if not np.isfinite([low, high]).all():  # one NaN makes both NaN
            raise SamplesError("it has values that are not finite")
        return low.item(), high.item()


def to_image(samples: Samples, intensity: IntensityRange = BY_TYPE) -> PIL.Image.Image:
    """Converts values to an upright 8-bit image, grey or RGB, in which larger values are brighter.

    Raises:
        SamplesError: the rule does not determine which values become black and white.
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
    """Returns the high byte of unsigned values, uint8; fewer than 8 bits are scaled to 0..255."""
    if bits < 8:
        return np.round(values * (255 / ((1 << bits) - 1))).astype(np.uint8)
    return (values >> (bits - 8)).astype(np.uint8)


def _bounds(samples: Samples, intensity: IntensityRange) -> tuple[float, float] | None:
    """Returns the values that become black and white; None: the limits of their type."""
    kind, is_wide = samples.type, samples.bits > 8
    if intensity.rule == "dataset" and is_wide:
        if kind not in intensity.of_dataset:
            raise SamplesError(
                f"its values are {kind}, a type that the data set does not contain "
                f"(data.intensity_range='dataset': {listed(intensity)})"
            )
        samples.extremes  # noqa: B018 (raises an error for values that are not finite)
        return intensity.of_dataset[kind]
    if intensity.rule == "declared" and is_wide and samples.declared is not None:
        low, high = samples.declared
        least, largest = samples.extremes
        if math.isnan(high):
            raise SamplesError(f"it declares different ranges for its colours; {CONVERT}")
        if not low < high or least < low or largest > high:
            raise SamplesError(
                f"it declares values of {low:g} to {high:g} but has values of {least:g} to "
                f"{largest:g}; data.intensity_range='type' uses the full range of their type, "
                "'dataset' the range of the data set"
            )
        return low, high
    if kind.startswith("float") or samples.bits > _MAX_BITS:
        raise SamplesError(
            f"its values have {samples.bits} bits ({kind}), a type that does not determine black "
            "and white; data.intensity_range='dataset' uses the smallest and largest value of the "
            f"data set, or {CONVERT}"
        )
    return None


def require_bounded(pixels: int) -> None:
    """Raises SamplesError for a number of pixels that Pillow, too, would reject."""
    if pixels > 2 * (PIL.Image.MAX_IMAGE_PIXELS or pixels):
        raise SamplesError(f"{pixels} pixels: it could be a decompression bomb")
