"""Loads named tuples of arrays with one row for each image from .npz files, and checks them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from egmae_jax.core.files import REEVALUATE, DamagedFileError, read_npz

T = TypeVar("T", bound=tuple)


def load_arrays(path: Path, kind: type[T], types: Sequence[tuple[str, int]], content: str) -> T:
    """Loads the arrays of a named tuple from the .npz file that `write_npz` wrote of it.

    Args:
        path: path of the file.
        kind: type of the named tuple; all its arrays have the same length.
        types: kind of the dtype ('f' for float) and number of axes of each array.
        content: what the file should hold, such as 'predictions', for the error message.

    Raises:
        DamagedFileError: the file is missing, does not hold such arrays, or some are not finite.
    """
    if not path.exists():
        raise DamagedFileError(path, "it is missing", REEVALUATE)
    fields: Any = kind
    try:
        arrays = read_npz(path)
        loaded = [arrays[name] for name in fields._fields]
    except (ValueError, KeyError) as error:
        raise DamagedFileError(path, error, REEVALUATE) from None
    fits = [(array.dtype.kind, array.ndim) for array in loaded] == list(types)
    fits = fits and len({len(array) for array in loaded}) == 1
    if not fits or not all(np.isfinite(x).all() for x in loaded if x.dtype.kind == "f"):
        raise DamagedFileError(path, f"it does not hold {content}", REEVALUATE)
    return fields(*loaded)
