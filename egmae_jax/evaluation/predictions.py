"""Predictions of a branch for the images of a part, and their files."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egmae_jax.core.files import REEVALUATE, DamagedFileError, read_npz, write_atomically


class NoGroupsError(DamagedFileError):
    """Predictions of an older version, which hold no groups: splits.json has them."""


class Predictions(NamedTuple):
    """What a branch says of a split."""

    ids: np.ndarray  # [N] str, the images' files
    labels: np.ndarray  # int [N]
    probabilities: np.ndarray  # float [N, num_classes]
    groups: np.ndarray  # int [N]; images of one (patient, lesion, near-duplicates) are not split


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Writes ids, labels, probabilities and groups as .npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **predictions._asdict())
    write_atomically(path, buffer.getvalue())


def load_predictions(path: Path, group_of: Mapping[str, int] | None = None) -> Predictions:
    """Reads what `save_predictions` wrote.

    Args:
        path: of the .npz file.
        group_of: the group of each file, as splits.json has it, for predictions of an older version
            that hold none (`SavedRun.predictions` takes it from there).

    Raises:
        DamagedFileError: the file is not there, not whole, or `group_of` lacks one of its images.
        NoGroupsError: it holds no groups, and none are given.
    """
    if not path.exists():
        raise DamagedFileError(path, "it is missing", REEVALUATE)
    try:
        arrays = read_npz(path)
        if "groups" not in arrays:
            arrays["groups"] = _groups(path, arrays["ids"], group_of)
        found = Predictions(*(arrays[name] for name in Predictions._fields))
    except (ValueError, KeyError) as error:
        raise DamagedFileError(path, error) from None
    kinds = tuple(array.dtype.kind for array in found)
    dimensions = tuple(array.ndim for array in found)
    expected = ("U", "i", "f", "i"), (1, 1, 2, 1)
    if (kinds, dimensions) != expected or len({*map(len, found)}) > 1:
        said = ", ".join(f"{n} {a.dtype}{list(a.shape)}" for n, a in found._asdict().items())
        raise DamagedFileError(path, f"it holds {said}")
    if not np.isfinite(found.probabilities).all():
        raise DamagedFileError(path, "a probability is no finite number")
    return found


def _groups(path: Path, ids: np.ndarray, group_of: Mapping[str, int] | None) -> np.ndarray:
    if group_of is None:
        reason = "it holds no groups: it is of an older version, whose splits.json has them"
        raise NoGroupsError(path, reason, REEVALUATE)
    files = ids.ravel().tolist()
    if missing := [file for file in files if file not in group_of]:
        reason = f"it holds no groups and splits.json does not name {missing[0]!r}"
        raise DamagedFileError(path, reason, REEVALUATE)
    return np.array([group_of[file] for file in files], int)
