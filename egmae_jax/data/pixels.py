"""Statistics of the pixel values of a data set, and the problems that they show."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from egmae_jax.core.errors import shorten_list
from egmae_jax.data.samples import IntensityRange

FEW_LEVELS = 32  # images with fewer grey levels are reported
NARROW = 0.1  # images that use a smaller share of the range from black to white are reported


def levels(image: PIL.Image.Image) -> tuple[int, tuple[int, int]]:
    """Returns the number of distinct values of an 8-bit grey image, and their range."""
    used = np.flatnonzero(image.histogram())
    return len(used), (int(used[0]), int(used[-1]))


class Finding(NamedTuple):
    """One problem of a data set.

    Attributes:
        about: topic in one or two words, such as 'near-duplicates'.
        finding: sentences that describe the problem.
        advice: sentences that tell the user what to do, with the config field or command.
    """

    about: str
    finding: str
    advice: str


class PixelStatistics(NamedTuple):
    """Statistics of the pixel values of N images, both as stored and as decoded.

    Attributes:
        types: str [N], type of the stored values, such as 'uint16'; 'DICOM' for DICOM files, which
            define black and white themselves; '' for up to 8 bits.
        bits: int [N], bits per value as the file declares them; BitsStored for DICOM.
        stored: float64 [N, 2], smallest and largest stored value, without the padding of DICOM. For
            most 8-bit colour images these are the values of luma.
        levels: int [N], number of distinct grey values (luma, of 256) of the decoded image.
        greys: int [N, 2], smallest and largest of these grey values, from 0 to 255.
    """

    types: np.ndarray
    bits: np.ndarray
    stored: np.ndarray
    levels: np.ndarray
    greys: np.ndarray

    @property
    def bits_used(self) -> np.ndarray:
        """Number of bits that each image's values need, int [N]; all bits for non-integers."""
        low, high = np.floor(self.stored[:, 0]), np.ceil(self.stored[:, 1])
        is_signed = low < 0
        largest = np.where(is_signed, np.maximum(high, -low - 1), high)
        needed = np.ceil(np.log2(largest + 1)) + is_signed
        is_whole = (self.stored == np.floor(self.stored)).all(axis=1)
        return np.where(is_whole, np.minimum(needed, self.bits), self.bits).astype(int)

    @property
    def is_odd(self) -> np.ndarray:
        """Which decoded images have few grey levels or a narrow range, bool [N]."""
        return self.has_few_levels | self.is_narrow

    @property
    def has_few_levels(self) -> np.ndarray:
        """Which decoded images have fewer than 32 grey levels, bool [N]."""
        return self.levels < FEW_LEVELS

    @property
    def is_narrow(self) -> np.ndarray:
        """Which decoded images use less than a tenth of the range from black to white, bool [N]."""
        return np.ptp(self.greys, axis=1) < NARROW * 255


def findings(
    files: Sequence[str], pixels: PixelStatistics, intensity: IntensityRange
) -> list[Finding]:
    """Lists the problems with the pixel values of a data set.

    Args:
        files: names of the N images.
        pixels: statistics of the N images.
        intensity: range of intensities with which the images were decoded.
    """
    results = []
    if odd := np.flatnonzero(pixels.is_odd).tolist():
        descriptions = [
            f"{files[i]} (values {pixels.stored[i, 0]:g} to {pixels.stored[i, 1]:g}, "
            f"{pixels.levels[i]} grey levels)"
            for i in odd
        ]
        finding = (
            f"{len(odd)} of {len(files)} images have fewer than {FEW_LEVELS} grey levels or less "
            f"than a tenth of the range from black to white: {shorten_list(descriptions, 3)}."
        )
        advice = (
            "Inspect these images: they may be masks, or use only a small part of the range of "
            "their type."
        )
        results.append(Finding("grey levels", finding, advice))
    for kind in sorted({*pixels.types.tolist()} - {"", "DICOM"}):
        selected = pixels.types == kind
        bits, used = int(pixels.bits[selected].max()), int(pixels.bits_used[selected].max())
        if intensity.rule != "dataset" and used < bits:
            low, high = pixels.stored[selected, 0].min(), pixels.stored[selected, 1].max()
            finding = (
                f"{int(selected.sum())} files of type {kind} use {used} of {bits} bits (values "
                f"{low:g} to {high:g}), so they use little of the range from black to white."
            )
            advice = (
                f"--config.data.intensity_range=dataset makes {low:g} black and {high:g} white."
            )
            results.append(Finding("bits", finding, advice))
    return results
