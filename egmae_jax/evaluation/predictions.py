"""Predictions of a classifier for the images of a part, and the .npz files that store them."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egmae_jax.core.files import REEVALUATE, DamagedFileError, read_npz, write_atomically


class Predictions(NamedTuple):
    """Predictions of a branch or of the ensemble for the images of a part."""

    ids: np.ndarray  # str [N], file name of each image
    labels: np.ndarray  # int [N]
    probabilities: np.ndarray  # float [N, num_classes]
    groups: np.ndarray  # int [N], equal for images of one patient, lesion or set of near-duplicates


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Writes ids, labels, probabilities and groups to an .npz file, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **predictions._asdict())
    write_atomically(path, buffer.getvalue())


def load_predictions(path: Path) -> Predictions:
    """Reads what `save_predictions` wrote.

    Raises:
        DamagedFileError: the file is missing or does not hold such predictions.
    """
    if not path.exists():
        raise DamagedFileError(path, "it is missing", REEVALUATE)
    try:
        arrays = read_npz(path)
        predictions = Predictions(*(arrays[name] for name in Predictions._fields))
    except (ValueError, KeyError) as error:
        raise DamagedFileError(path, error, REEVALUATE) from None
    types = [(array.dtype.kind, array.ndim) for array in predictions]
    if (
        types != [("U", 1), ("i", 1), ("f", 2), ("i", 1)]
        or len(set(map(len, predictions))) > 1
        or not np.isfinite(predictions.probabilities).all()
    ):
        raise DamagedFileError(path, "it does not hold predictions", REEVALUATE)
    return predictions
