"""The table of predictions of new images, and pictures of what raised them."""

import csv
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from egmae_jax.core import console
from egmae_jax.core.files import (
    open_atomically,
    require_output,
    require_readable,
    require_writable,
    storage_errors_told,
)
from egmae_jax.data.datasets.folders import find_given
from egmae_jax.deploy.predictor import Part, Predictions, Predictor
from egmae_jax.explain.overlay import picture_name, write_overlay
from egmae_jax.run.saved_run import RunError

_FIRST_COLUMNS = ["file", "predicted"]
logger = logging.getLogger(__name__)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def predict_files(
    workdir: Path,
    images: Sequence[Path],
    out: Path,
    *,
    round_index: int | Literal["all"],
    calibrated: bool,
    pictures: Path | None,
    branch: str | None,
    batch: int,
) -> dict[Path, str]:
    """Classifies images by a finished run, once everything that is written to can be.

    Args:
        workdir: of the run.
        images: files, and folders that are searched for images.
        out: the table to write, CSV.
        round_index: of the run; 'all' averages the probabilities of all.
        calibrated: whether probabilities are scaled by the temperatures.
        pictures: folder for Grad-CAM overlays, if there are to be any.
        branch: whose network they explain; None: as `SavedRun.branch`.
        batch: images at a time.

    Returns:
        The reason by file that cannot be read.

    Raises:
        RunError: see its message.
        DataError: there are no such images.
        AccessError: something cannot be written to.
    """
    if pictures is not None and pictures.exists() and not pictures.is_dir():
        raise RunError(f"{pictures} is a file; --gradcam is a folder for pictures.")
    if branch is not None and pictures is None:
        raise RunError("--branch says whose network --gradcam explains, which is not given.")
    with storage_errors_told(*images):
        files = find_given(images)
    require_output(out, (".csv",), files)
    _require_own_table(out)
    if pictures is not None:
        _require_none_replaced(pictures, files)
        require_writable(pictures, f"--gradcam={pictures}")
    predictor = Predictor(
        workdir,
        round_index=round_index,
        calibrated=calibrated,
        batch=batch,
    )
    start = time.monotonic()
    with storage_errors_told(out.parent, *([pictures] if pictures else [])):
        counts, unreadable = write_predictions(
            predictor, files, out, pictures=pictures, branch=branch
        )
    console.print_predictions(
        dict(zip(predictor.classes, counts.tolist(), strict=True)), time.monotonic() - start, out
    )
    return unreadable


def write_predictions(
    predictor: Predictor,
    files: Sequence[Path],
    out: Path,
    *,
    pictures: Path | None = None,
    branch: str | None = None,
) -> tuple[np.ndarray, dict[Path, str]]:
    """Writes the table, and pictures where a folder for them is given.

    Args:
        predictor: of a run.
        files: of images.
        out: a CSV file; it is there once all images are classified.
        pictures: folder for Grad-CAM overlays.
        branch: whose network they explain; None: as `SavedRun.branch`.

    Returns:
        How many images are predicted to be of each class, int [num_classes]; the reason by file
        that cannot be read.

    Raises:
        RunError: the run has no such branch, or no image can be read.
    """
    branch = predictor.run.branch(branch).name
    places = _places(files) if pictures else []
    if pictures:
        logger.info("Grad-CAM is of %s at %s", branch, predictor.heat_layer(branch))
    counts = np.zeros(len(predictor.classes), int)
    unreadable: dict[Path, str] = {}
    with (
        open_atomically(out, "w", newline="", encoding="utf-8", errors="backslashreplace") as table,
        console.progress_of_images("Predicting", len(files)) as advance,
    ):
        writer = csv.writer(table)
        for number, part in enumerate(predictor.stream(files)):
            if number == 0:
                writer.writerow(_header(part.predictions))
            names = [files[i] for i in part.indices]
            writer.writerows(_rows(names, part.predictions))
            if pictures:
                _draw(predictor, part, branch, [pictures / places[i] for i in part.indices])
            counts += np.bincount(part.predictions.labels, minlength=len(counts))
            unreadable |= {files[i]: reason for i, reason in part.unreadable.items()}
            advance(len(part.indices) + len(part.unreadable))
        if len(unreadable) == len(files):
            nothing = f"No image can be read; {out} is not written:"
            raise RunError(list_unreadable(nothing, unreadable))
    return counts, unreadable


def list_unreadable(title: str, unreadable: dict[Path, str]) -> str:
    """A title, and below it each file with the reason, a line each."""
    lines = (f"{file}: {why}".replace("\n", "\\n") for file, why in unreadable.items())
    return "\n  ".join([title, *lines])


# --- The table -----------------------------------------------------------------------------------


def _header(predictions: Predictions) -> list[str]:
    columns = (f"{name}:{c}" for name in _ensemble_first(predictions) for c in predictions.classes)
    return [*_FIRST_COLUMNS, *columns]


def _require_own_table(out: Path) -> None:
    """Raises RunError where another table would be lost."""
    if not out.exists():
        return
    require_readable(out)
    with out.open(encoding="utf-8", errors="replace") as file:
        begin = file.read(1000).partition("\n")[0]
    if begin and begin.split(",")[:2] != _FIRST_COLUMNS:
        raise RunError(
            f"--out={out} is there and no table of predictions (it begins with {begin[:40]!r}): "
            "take another name, or delete it."
        )


def _rows(files: Sequence[Path], predictions: Predictions) -> Iterator[list[str]]:
    columns = np.concatenate(list(_ensemble_first(predictions).values()), axis=1)
    for file, label, row in zip(files, predictions.predicted, columns, strict=True):
        yield [_cell(str(file)), label, *(f"{probability:.8g}" for probability in row)]


def _ensemble_first(predictions: Predictions) -> dict[str, np.ndarray]:
    *branches, last = predictions.probabilities.items()
    return dict([last, *branches])


def _cell(file: str) -> str:
    return os.path.join(".", file) if file.startswith(_FORMULA) else file


# --- Pictures ------------------------------------------------------------------------------------


def _places(files: Sequence[Path]) -> list[Path]:
    """Where each image's picture goes: as the images lie, no two in one place."""
    absolute = [Path(os.path.abspath(file)) for file in files]
    shared = os.path.commonpath([path.parent for path in absolute])
    places: list[Path] = []
    taken: set[str] = set()
    for path in absolute:
        place = path.relative_to(shared).with_name(picture_name(path.name))
        if str(place).casefold() in taken:  # a.jpg and a.jpg.png; or a and A, where these are one
            digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
            place = place.with_name(picture_name(f"{path.name}~{digest}"))
        taken.add(str(place).casefold())
        places.append(place)
    return places


def _require_none_replaced(pictures: Path, files: Sequence[Path]) -> None:
    """Raises RunError where a picture would take the place of an image."""
    images = {os.path.realpath(file) for file in files}
    for place in _places(files):
        if os.path.realpath(pictures / place) in images:
            raise RunError(
                f"--gradcam={pictures} would write a picture over the image {pictures / place}: "
                "take another folder."
            )


def _draw(predictor: Predictor, part: Part, branch: str, paths: Sequence[Path]) -> None:
    text = f"Grad-CAM of {branch} at {predictor.heat_layer(branch)}"
    for path, pixels, heat in zip(paths, part.pixels, predictor.heat(part, branch), strict=True):
        write_overlay(path, pixels, heat, text=text)
