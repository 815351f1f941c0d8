"""Which of their possible values the images of a data set use, and what is odd about it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from egmae_jax.data.samples import IntensityRange

FEW_LEVELS = 32  # images with fewer grey levels are odd
NARROW = 0.1  # share of the range from black to white; images that use less are odd
_FILES_SHOWN = 3


def levels(image: PIL.Image.Image) -> tuple[int, tuple[int, int]]:
    """Number of different values of a grey 8-bit image, with the least and the largest."""
    used = np.flatnonzero(image.histogram())
    return len(used), (int(used[0]), int(used[-1]))


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
    def has_few_levels(self) -> np.ndarray:
        """bool [N], which decoded images have fewer than 32 grey levels."""
        return self.levels < FEW_LEVELS

    @property
    def is_narrow(self) -> np.ndarray:
        """bool [N], which decoded images use less than a tenth of the range, black to white."""
        return np.ptp(self.greys, axis=1) < NARROW * 255


def describe(
    files: Sequence[str], pixels: PixelStatistics, intensity: IntensityRange
) -> dict[str, Any]:
    """Describes a data set's pixels for the audit, as JSON-like values.

    Args:
        files: names of the N images.
        pixels: their statistics.
        intensity: range of intensities by which they were decoded.
    """
    used = pixels.bits_used
    return {
        "intensity_range": intensity.rule,
        "range_of_dataset": {kind: list(ends) for kind, ends in intensity.of_dataset.items()},
        "bits": _count(pixels.bits),
        "bits_used": {  # by the bits that the files declare
            str(bits): _count(used[pixels.bits == bits]) for bits in np.unique(pixels.bits).tolist()
        },
        "grey_levels": {
            "least": int(pixels.levels.min()),
            "median": float(np.median(pixels.levels)),
            "most": int(pixels.levels.max()),
        },
        "share_below_32_levels": float(pixels.has_few_levels.mean()),
        "share_below_a_tenth_of_the_range": float(pixels.is_narrow.mean()),
        "findings": findings(files, pixels, intensity),
        "odd": [
            {
                "file": files[i],
                "bits": int(pixels.bits[i]),
                "bits_used": int(used[i]),
                "stored": pixels.stored[i].tolist(),
                "grey_levels": int(pixels.levels[i]),
                "greys": pixels.greys[i].tolist(),
            }
            for i in np.flatnonzero(pixels.has_few_levels | pixels.is_narrow).tolist()
        ],
    }


def findings(files: Sequence[str], pixels: PixelStatistics, intensity: IntensityRange) -> list[str]:
    """Lists what is odd about a data set's pixels, a sentence each, with what to do about it.

    Args:
        files: names of the N images.
        pixels: their statistics.
        intensity: range of intensities by which they were decoded.
    """
    sentences = []
    if odd := np.flatnonzero(pixels.has_few_levels | pixels.is_narrow).tolist():
        named = [
            f"{files[i]} (values {pixels.stored[i, 0]:g} to {pixels.stored[i, 1]:g}, "
            f"{pixels.levels[i]} grey levels)"
            for i in odd[:_FILES_SHOWN]
        ]
        more = f" and {len(odd) - _FILES_SHOWN} more" if len(odd) > _FILES_SHOWN else ""
        sentences.append(
            f"{len(odd)} of {len(files)} images have fewer than {FEW_LEVELS} grey levels or less "
            f"than a tenth of the range from black to white: {', '.join(named)}{more}. Look at "
            "them: they may be masks, or use few of the values of their type"
        )
    for kind in sorted({*pixels.types.tolist()} - {"", "DICOM"}):
        of_kind = pixels.types == kind
        bits, used = int(pixels.bits[of_kind].max()), int(pixels.bits_used[of_kind].max())
        if intensity.rule != "dataset" and used < bits:
            low, high = pixels.stored[of_kind, 0].min(), pixels.stored[of_kind, 1].max()
            sentences.append(
                f"{int(of_kind.sum())} files of {kind} use {used} of {bits} bits (values {low:g} "
                f"to {high:g}), so they fill little of the range from black to white: "
                "--config.data.intensity_range=dataset makes black and white of these two values"
            )
    return sentences


def _count(values: np.ndarray) -> dict[str, int]:
    different, counts = np.unique(values, return_counts=True)
    return dict(zip(map(str, different.tolist()), counts.tolist(), strict=True))
