"""Features of images by a network, in an .npz file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from egmae_jax.core.files import write_npz
from egmae_jax.evaluation.arrays import load_arrays


class Features(NamedTuple):
    """Features of N images, in their order."""

    ids: np.ndarray  # str [N], file name of each image
    labels: np.ndarray  # int [N]
    parts: np.ndarray  # str [N], 'train' or 'test'
    features: np.ndarray  # float32 [N, D]

    def part(self, name: str) -> "Features":
        """Returns the features of the images in one part."""
        return Features(*(array[self.parts == name] for array in self))


def save_features(path: Path, features: Features) -> None:
    """Writes the arrays of `features` to an .npz file, atomically."""
    write_npz(path, features._asdict())


def load_features(path: Path) -> Features:
    """Reads what `save_features` wrote.

    Raises:
        DamagedFileError: the file is missing or does not hold such features.
    """
    return load_arrays(path, Features, [("U", 1), ("i", 1), ("U", 1), ("f", 2)], "features")
