"""Predictions of a classifier for the images of a part, and the .npz files that store them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from egmae_jax.core.files import write_npz
from egmae_jax.evaluation.arrays import load_arrays


class Predictions(NamedTuple):
    """Predictions of a branch or of the ensemble for the images of a part."""

    ids: np.ndarray  # str [N], file name of each image
    labels: np.ndarray  # int [N]
    probabilities: np.ndarray  # float [N, num_classes]
    groups: np.ndarray  # int [N], equal for images of one patient, lesion or set of near-duplicates


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Writes ids, labels, probabilities and groups to an .npz file, atomically."""
    write_npz(path, predictions._asdict())


def load_predictions(path: Path) -> Predictions:
    """Reads what `save_predictions` wrote.

    Raises:
        DamagedFileError: the file is missing or does not hold such predictions.
    """
    return load_arrays(path, Predictions, [("U", 1), ("i", 1), ("f", 2), ("i", 1)], "predictions")
