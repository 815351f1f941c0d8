"""Writes the predictions of new images as a CSV table, and Grad-CAM overlays."""

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

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes text that starts so for a formula
logger = logging.getLogger(__name__)


def predict_files(
    workdir: Path,
    images: Sequence[Path],
    out: Path,
    *,
    round_index: int | Literal["all"] | None,
    calibrated: bool,
    pictures: Path | None,
    branch: str | None,
    batch: int,
) -> dict[Path, str]:
    """Classifies images with a finished run and writes the table and the overlays.

    Whether the files can be written is checked before the images are classified.

    Args:
        workdir: folder of the run.
        images: image files, and folders that are searched recursively.
        out: CSV file to write; it appears when all images are classified.
        round_index: see `Predictor`.
        calibrated: whether probabilities are calibrated by the temperatures of the run.
        pictures: folder for Grad-CAM overlays; None writes no overlays.
        branch: branch that the overlays explain; None chooses as `SavedRun.branch`.
        batch: batch size.

    Returns:
        The reason for each file that cannot be read; these are missing from the table.

    Raises:
        RunError: the run does not allow the request, or no image can be read.
        DataError: an image path does not exist, or a folder contains no images.
        AccessError: a file cannot be written, or would replace an image.
    """
    if branch is not None and pictures is None:
        raise RunError(
            "--branch selects the branch that --gradcam explains, but --gradcam is not set; set "
            "--gradcam=FOLDER or omit --branch."
        )
    with explain_storage_errors(*images):
        files = find_given(images)
    require_output(out, (".csv",), files)
    paths = _picture_paths(files, pictures) if pictures else []
    predictor = Predictor(workdir, round_index=round_index, calibrated=calibrated, batch=batch)
    explained = predictor.run.branch(branch).name
    if pictures:
        logger.info("Grad-CAM explains %s at %s", explained, predictor.heat_layer(explained))
    start = time.monotonic()
    with explain_storage_errors(out.parent, *([pictures] if pictures else [])):
        counts, unreadable = _write_results(predictor, files, out, paths, explained)
    _print_summary(predictor.classes, counts, time.monotonic() - start, out)
    return unreadable


def list_unreadable(title: str, unreadable: dict[Path, str]) -> str:
    """Returns a title followed by one indented line per file, 'FILE: REASON'."""
    lines = (f"{file}: {reason}".replace("\n", "\\n") for file, reason in unreadable.items())
    return "\n  ".join([title, *lines])


def _write_results(
    predictor: Predictor, files: Sequence[Path], out: Path, pictures: Sequence[Path], branch: str
) -> tuple[np.ndarray, dict[Path, str]]:
    """Classifies the files, writes the table and, unless `pictures` is empty, the overlays.

    Returns:
        The number of images that are predicted as each class, int [num_classes], and the reason for
        each file that cannot be read.
    """
    counts = np.zeros(len(predictor.classes), int)
    unreadable: dict[Path, str] = {}
    with (
        open_atomically(out, "w", newline="", encoding="utf-8", errors="backslashreplace") as table,
        console.progress_bar("images") as bar,
    ):
        task = bar.add_task("Predicting", total=len(files), status="compiling")
        writer = csv.writer(table)
        columns = map(":".join, itertools.product(predictor.classifiers, predictor.classes))
        writer.writerow(["file", "predicted", *columns])
        for batch in predictor.stream(files):
            writer.writerows(_make_rows([files[i] for i in batch.indices], batch.classification))
            if pictures:
                _write_overlays(predictor, batch, branch, [pictures[i] for i in batch.indices])
            counts += np.bincount(batch.classification.labels, minlength=len(counts))
            unreadable |= {files[i]: reason for i, reason in batch.unreadable.items()}
            bar.update(task, advance=len(batch.indices) + len(batch.unreadable))
            bar.update(task, status=f"{60 * (bar.tasks[task].speed or 0):.0f} per minute")
        if len(unreadable) == len(files):
            title = f"No image can be read; {out} is not written:"
            raise RunError(list_unreadable(title, unreadable))
    return counts, unreadable


def spreadsheet_name(file: str) -> str:
    """Returns the path of a file so that no spreadsheet takes it for a formula: ./=a.png."""
    return os.path.join(".", file) if file.startswith(_FORMULA) else file


def _print_summary(classes: Sequence[str], counts: np.ndarray, seconds: float, out: Path) -> None:
    """Prints the number of images predicted as each class, the speed and the output path."""
    by_class = ", ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=True))
    speed = 60 * counts.sum() / seconds
    console.terminal.print(
        f"{counts.sum()} images in {seconds:.1f} s ({speed:.0f} per minute): {by_class}"
    )
    console.terminal.print(f"Written to {out}", soft_wrap=True)


def _make_rows(files: Sequence[Path], classification: Classification) -> Iterator[list[str]]:
    columns = np.concatenate(list(classification.probabilities.values()), axis=1)
    for file, label, row in zip(map(str, files), classification.predicted, columns, strict=True):
        yield [spreadsheet_name(file), label, *(f"{probability:.8g}" for probability in row)]


def _picture_paths(files: Sequence[Path], folder: Path) -> list[Path]:
    """Returns the path of each image's overlay in `folder`.

    Overlays are arranged in subfolders like the images below their common parent folder.

    Raises:
        AccessError: the folder cannot be written to, or an overlay would replace an image or
            another overlay.
    """
    require_writable(folder, f"--gradcam={folder}")
    absolute = [Path(os.path.abspath(file)) for file in files]
    parent = os.path.commonpath([path.parent for path in absolute])
    pictures = [folder / x.relative_to(parent).with_name(picture_name(x.name)) for x in absolute]
    occupied = {os.path.realpath(file) for file in files}
    for picture in pictures:
        if (path := os.path.realpath(picture)) in occupied:
            raise AccessError(
                f"--gradcam={folder} would write {picture} over an image or the overlay of another "
                "image. Choose another folder or rename the image."
            )
        occupied.add(path)
    return pictures


def _write_overlays(predictor: Predictor, batch: Batch, branch: str, paths: Sequence[Path]) -> None:
    text = f"Grad-CAM of {branch} at {predictor.heat_layer(branch)}"
    heats = predictor.heat(batch, branch)
    for path, pixels, heat in zip(paths, batch.pixels, heats, strict=True):
        write_overlay(path, pixels, heat, text=text)
