"""Which of their possible values the images of a data set use, and what is odd about it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from egmae_jax.core.errors import shorten_list
from egmae_jax.data.samples import IntensityRange

FEW_LEVELS = 32  # images with fewer grey levels are odd
NARROW = 0.1  # share of the range from black to white; images that use less are odd


def levels(image: PIL.Image.Image) -> tuple[int, tuple[int, int]]:
    """Number of different values of a grey 8-bit image, with the least and the largest."""
    used = np.flatnonzero(image.histogram())
    return len(used), (int(used[0]), int(used[-1]))


class Finding(NamedTuple):
    """One thing that is odd about a data set.

    Attributes:
        about: a word or two, such as 'near-duplicates'.
        finding: sentences that say what is odd.
        advice: sentences that say what to do, by the name of the field or command.
    """

    about: str
    finding: str
    advice: str


class PixelStatistics(NamedTuple):
    """Statistics of the values of N images, as their files store them and as they are decoded.

    Attributes:
        types: str [N], type of the stored values, such as 'uint16'; 'DICOM', whose files say
            themselves what is black and white; '' for at most 8 bits.
        bits: int [N], bits of a value as the file declares them; BitsStored of DICOM.
        stored: float64 [N, 2], the least and the largest value that the file stores, without
            DICOM's padding; of most 8-bit colours their luma's.
        levels: int [N], how many of 256 grey values (luma) the decoded image has.
        greys: int [N, 2], the least and the largest of these, from 0 to 255.
    """

    types: np.ndarray
    bits: np.ndarray
    stored: np.ndarray
    levels: np.ndarray
    greys: np.ndarray

    @property
    def bits_used(self) -> np.ndarray:
        """int [N], bits that each image's values need; all bits where values are not whole."""
        low, high = np.floor(self.stored[:, 0]), np.ceil(self.stored[:, 1])
        is_signed = low < 0
        largest = np.where(is_signed, np.maximum(high, -low - 1), high)
        needed = np.ceil(np.log2(largest + 1)) + is_signed
        is_whole = (self.stored == np.floor(self.stored)).all(axis=1)
        return np.where(is_whole, np.minimum(needed, self.bits), self.bits).astype(int)

    @property
    def is_odd(self) -> np.ndarray:
        """bool [N], which decoded images have few grey levels or use little of the range."""
        return self.has_few_levels | self.is_narrow

    @property
    def has_few_levels(self) -> np.ndarray:
        """bool [N], which decoded images have fewer than 32 grey levels."""
        return self.levels < FEW_LEVELS

    @property
    def is_narrow(self) -> np.ndarray:
        """bool [N], which decoded images use less than a tenth of the range, black to white."""
        return np.ptp(self.greys, axis=1) < NARROW * 255


def findings(
    files: Sequence[str], pixels: PixelStatistics, intensity: IntensityRange
) -> list[Finding]:
    """What is odd about the pixels of a data set.

    Args:
        files: names of the N images.
        pixels: their statistics.
        intensity: range of intensities by which they were decoded.
    """
    results = []
    if odd := np.flatnonzero(pixels.is_odd).tolist():
        named = [
            f"{files[i]} (values {pixels.stored[i, 0]:g} to {pixels.stored[i, 1]:g}, "
            f"{pixels.levels[i]} grey levels)"
            for i in odd
        ]
        finding = (
            f"{len(odd)} of {len(files)} images have fewer than {FEW_LEVELS} grey levels or less "
            f"than a tenth of the range from black to white: {shorten_list(named, 3)}."
        )
        advice = "Look at them: they may be masks, or use few of the values of their type."
        results.append(Finding("grey levels", finding, advice))
    for kind in sorted({*pixels.types.tolist()} - {"", "DICOM"}):
        of_kind = pixels.types == kind
        bits, used = int(pixels.bits[of_kind].max()), int(pixels.bits_used[of_kind].max())
        if intensity.rule != "dataset" and used < bits:
            low, high = pixels.stored[of_kind, 0].min(), pixels.stored[of_kind, 1].max()
            finding = (
                f"{int(of_kind.sum())} files of {kind} use {used} of {bits} bits (values {low:g} "
                f"to {high:g}), so they fill little of the range from black to white."
            )
            advice = "--config.data.intensity_range=dataset makes these values black and white."
            results.append(Finding("bits", finding, advice))
    return results
