"""Predictions of a branch for the images of a part, and the files that hold them."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egmae_jax.core.files import REEVALUATE, DamagedFileError, read_npz, write_atomically


class NoGroupsError(DamagedFileError):
    """A file of predictions by an older version has no groups, and none were given."""


class Predictions(NamedTuple):
    """Predictions of a branch, or of the ensemble, for the images of a part."""

    ids: np.ndarray  # str [N], file of each image
    labels: np.ndarray  # int [N]
    probabilities: np.ndarray  # float [N, num_classes]
    groups: np.ndarray  # int [N], equal for images of one patient, lesion or set of near-duplicates


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Writes ids, labels, probabilities and groups as .npz, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **predictions._asdict())
    write_atomically(path, buffer.getvalue())


def load_predictions(path: Path, group_of: Mapping[str, int] | None = None) -> Predictions:
    """Reads what `save_predictions` wrote.

    Args:
        path: the .npz file.
        group_of: group of each image file, for predictions of an older version, which hold none
            (splits.json has them); None: there are no others than those in the file.

    Raises:
        NoGroupsError: the file holds no groups and `group_of` is None.
        DamagedFileError: the file is missing or damaged, or `group_of` lacks one of its images.
    """
    if not path.exists():
        raise DamagedFileError(path, "it is missing", REEVALUATE)
    try:
        arrays = read_npz(path)
        if "groups" not in arrays:
            arrays["groups"] = _groups(path, arrays["ids"], group_of)
        predictions = Predictions(*(arrays[name] for name in Predictions._fields))
    except (ValueError, KeyError) as error:
        raise DamagedFileError(path, error) from None
    types = [(array.dtype.kind, array.ndim) for array in predictions]
    if types != [("U", 1), ("i", 1), ("f", 2), ("i", 1)] or len(set(map(len, predictions))) > 1:
        shapes = (f"{k} {x.dtype}{list(x.shape)}" for k, x in predictions._asdict().items())
        raise DamagedFileError(path, f"it holds {', '.join(shapes)}")
    if not np.isfinite(predictions.probabilities).all():
        raise DamagedFileError(path, "a probability is not finite")
    return predictions


def _groups(path: Path, ids: np.ndarray, group_of: Mapping[str, int] | None) -> np.ndarray:
    """Groups of the images, for predictions that hold none."""
    if group_of is None:
        reason = "it holds no groups, being of an older version; its splits.json has them"
        raise NoGroupsError(path, reason, REEVALUATE)
    try:
        return np.array([group_of[file] for file in ids.ravel().tolist()], int)
    except KeyError as missing:
        reason = f"it holds no groups and splits.json does not name {missing}"
        raise DamagedFileError(path, reason, REEVALUATE) from None
