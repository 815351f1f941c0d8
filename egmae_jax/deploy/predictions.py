"""Writes the table of predictions of new images, and pictures of what raises the scores."""

import csv
import itertools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from egmae_jax.core import console
from egmae_jax.core.files import (
    AccessError,
    explain_storage_errors,
    open_atomically,
    require_output,
    require_writable,
)
from egmae_jax.data.datasets.folders import find_given
from egmae_jax.deploy.predictor import Batch, Classification, Predictor
from egmae_jax.explain.overlay import picture_name, write_overlay
from egmae_jax.run.saved_run import RunError

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # beginnings of a spreadsheet's formula
logger = logging.getLogger(__name__)


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
    """Classifies images by a finished run, after checking that all results can be written.

    Args:
        workdir: folder of the run.
        images: files, and folders that are searched for images.
        out: CSV file to write; it is there once all images are classified.
        round_index: round of the run; 'all' averages the probabilities of all rounds.
        calibrated: whether probabilities are scaled by the temperatures.
        pictures: folder for Grad-CAM overlays; None: no overlays.
        branch: branch that the overlays explain; None: as `SavedRun.branch`.
        batch: number of images that go through a network together.

    Returns:
        The reason for each file that cannot be read.

    Raises:
        RunError: the run cannot be used so, or no image can be read.
        DataError: there are no such images.
        AccessError: something cannot be written, or would replace an image.
    """
    if branch is not None and pictures is None:
        raise RunError("--branch says whose network --gradcam explains, which is not given.")
    with explain_storage_errors(*images):
        files = find_given(images)
    require_output(out, (".csv",), files)
    paths = _picture_paths(files, pictures) if pictures else []
    predictor = Predictor(workdir, round_index=round_index, calibrated=calibrated, batch=batch)
    explained = predictor.run.branch(branch).name
    if pictures:
        logger.info("Grad-CAM of %s at %s", explained, predictor.heat_layer(explained))
    start = time.monotonic()
    with explain_storage_errors(out.parent, *([pictures] if pictures else [])):
        counts, unreadable = _write(predictor, files, out, paths, explained)
    console.print_predictions(
        dict(zip(predictor.classes, counts.tolist(), strict=True)), time.monotonic() - start, out
    )
    return unreadable


def list_unreadable(title: str, unreadable: dict[Path, str]) -> str:
    """A title, and below it a line for each file with the reason."""
    lines = (f"{file}: {reason}".replace("\n", "\\n") for file, reason in unreadable.items())
    return "\n  ".join([title, *lines])


def _write(
    predictor: Predictor, files: Sequence[Path], out: Path, pictures: Sequence[Path], branch: str
) -> tuple[np.ndarray, dict[Path, str]]:
    """Writes the table and, where paths are given, pictures.

    Returns:
        How many images are predicted to be of each class, int [num_classes], and the reason for
        each file that cannot be read.
    """
    counts = np.zeros(len(predictor.classes), int)
    unreadable: dict[Path, str] = {}
    with (
        open_atomically(out, "w", newline="", encoding="utf-8", errors="backslashreplace") as table,
        console.progress_of_images("Predicting", len(files)) as advance,
    ):
        writer = csv.writer(table)
        columns = map(":".join, itertools.product(predictor.classifiers, predictor.classes))
        writer.writerow(["file", "predicted", *columns])
        for batch in predictor.stream(files):
            writer.writerows(_rows([files[i] for i in batch.indices], batch.classification))
            if pictures:
                _draw(predictor, batch, branch, [pictures[i] for i in batch.indices])
            counts += np.bincount(batch.classification.labels, minlength=len(counts))
            unreadable |= {files[i]: reason for i, reason in batch.unreadable.items()}
            advance(len(batch.indices) + len(batch.unreadable))
        if len(unreadable) == len(files):
            nothing = f"No image can be read; {out} is not written:"
            raise RunError(list_unreadable(nothing, unreadable))
    return counts, unreadable


def _rows(files: Sequence[Path], classification: Classification) -> Iterator[list[str]]:
    columns = np.concatenate(list(classification.probabilities.values()), axis=1)
    for file, label, row in zip(map(str, files), classification.predicted, columns, strict=True):
        file = os.path.join(".", file) if file.startswith(_FORMULA) else file
        yield [file, label, *(f"{probability:.8g}" for probability in row)]


def _picture_paths(files: Sequence[Path], folder: Path) -> list[Path]:
    """The path of each image's picture: as the images lie below the folder that all share.

    Raises:
        AccessError: the folder cannot be written to, or a picture would replace an image or
            another picture.
    """
    require_writable(folder, f"--gradcam={folder}")
    absolute = [Path(os.path.abspath(file)) for file in files]
    shared = os.path.commonpath([path.parent for path in absolute])
    pictures = [folder / x.relative_to(shared).with_name(picture_name(x.name)) for x in absolute]
    taken = {os.path.realpath(file) for file in files}
    for picture in pictures:
        if (place := os.path.realpath(picture)) in taken:
            raise AccessError(
                f"--gradcam={folder} would write {picture} over an image or another image's "
                "picture: take another folder, or rename the image."
            )
        taken.add(place)
    return pictures


def _draw(predictor: Predictor, batch: Batch, branch: str, paths: Sequence[Path]) -> None:
    text = f"Grad-CAM of {branch} at {predictor.heat_layer(branch)}"
    heats = predictor.heat(batch, branch)
    for path, pixels, heat in zip(paths, batch.pixels, heats, strict=True):
        write_overlay(path, pixels, heat, text=text)
