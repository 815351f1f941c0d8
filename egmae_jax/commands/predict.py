"""Classifies new images by a finished run.

python -m egmae_jax.predict --workdir=W --images DIR|FILE [DIR|FILE ...] --out=predictions.csv
    [--round=I|all] [--uncalibrated] [--gradcam=DIR] [--branch=NAME] [--batch=N]

--out has a row an image: its file, the class that the ensemble predicts, and the probability of
every class by the ensemble and by each branch, in columns such as `ensemble:benign`. Folders are
searched to the bottom, in natural order ('2.png' before '10.png'); `file` is the path as it was
found, so it opens from where the command ran. A path that a spreadsheet would take for a formula,
beginning with = + - or @, is written as ./=..., which is the same file; names of classes, which are
the run's own, are written as they are.

--gradcam gets a picture an image: the regions that raise the score which the network of a branch
gives the class that the row says, no finer than the grid of the layer that is named in the log and
in each picture's Description. They lie as the images do below the folder that all images share.

Exit status: 0; 1 where nothing was written, and a sentence says why; 3 where some files could not
be read: these are listed with the reason, and the rest is written.
"""

import argparse
import csv
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from egmae_jax.core import console
from egmae_jax.core.files import (
    natural_key,
    open_atomically,
    require_output,
    require_readable,
    require_writable,
    storage_errors_told,
)
from egmae_jax.data.datasets.base import Found
from egmae_jax.data.datasets.base import find_images as find_below
from egmae_jax.deploy.predictor import Part, Predictions, Predictor
from egmae_jax.explain.overlay import picture_name, write_overlay
from egmae_jax.run.saved_run import RunError

UNREADABLE = 3  # exit status
_FIRST_COLUMNS = ["file", "predicted"]
logger = logging.getLogger("egmae_jax.commands.predict")  # __name__ is __main__ by -m
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def find_images(given: Sequence[Path]) -> list[Path]:
    """The files that are given and those below the folders that are, each once.

    Files below a folder come in natural order; they are told by their suffix or, where that is
    not known, by their bytes. A file that is named itself may have any.

    Raises:
        RunError: something given is not there, or there is no image in all.
    """
    found: dict[str, Path] = {}  # by what it is called however it is spelled
    folders = Found()
    for path in given:
        if path.is_dir():
            of_folder = find_below(path)
            of_folder.report(path)
            folders += of_folder
            below = sorted(of_folder.images, key=lambda p: [*map(natural_key, p.parts)])
        elif path.is_file():
            below = [path]
        else:
            kind = "is neither a file nor a folder" if path.exists() else "is not there"
            raise RunError(f"{path} {kind} (--images).")
        for file in below:
            found.setdefault(os.path.abspath(file), file)
    if not found:
        raise RunError(f"There is no image in {', '.join(map(str, given))} {folders.nothing}.")
    return list(found.values())


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
            raise RunError(_list(f"No image can be read; {out} is not written:", unreadable))
    return counts, unreadable


def _list(title: str, unreadable: dict[Path, str]) -> str:
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


# --- The command ---------------------------------------------------------------------------------


def _run(
    workdir: Path,
    images: Sequence[Path],
    out: Path,
    *,
    which: str,
    calibrated: bool,
    pictures: Path | None,
    branch: str | None,
    batch: int,
) -> dict[Path, str]:
    """Returns the reason by file that cannot be read; raises as what it calls."""
    if pictures is not None and pictures.exists() and not pictures.is_dir():
        raise RunError(f"{pictures} is a file; --gradcam is a folder for pictures.")
    if branch is not None and pictures is None:
        raise RunError("--branch says whose network --gradcam explains, which is not given.")
    with storage_errors_told(*images):
        files = find_images(images)
    require_output(out, (".csv",), files)
    _require_own_table(out)
    if pictures is not None:
        _require_none_replaced(pictures, files)
        require_writable(pictures, f"--gradcam={pictures}")
    predictor = Predictor(
        workdir,
        round_index=int(which) if which.isdecimal() else which,  # type: ignore[arg-type]
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


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m egmae_jax.predict",
        description="Classifies images by a finished run: a table of the probabilities of every "
        "branch and of the ensemble.",
        epilog=f"Exit status: 0; 1 where nothing was written; {UNREADABLE} where some files could "
        "not be read, which are listed, and the rest is written.",
    )
    add = parser.add_argument
    add("--workdir", required=True, type=Path, metavar="W", help="of the run")
    add("--images", required=True, type=Path, nargs="+", action="extend", metavar="DIR|FILE",
        help="images, and folders that are searched for images")  # fmt: skip
    add("--out", required=True, type=Path, metavar="FILE", help="the table to write, CSV")
    add("--round", default="0", metavar="I", dest="which",
        help="of the run; 0 if not given; 'all' averages the probabilities of all")  # fmt: skip
    add("--uncalibrated", action="store_false", dest="calibrated",
        help="probabilities as the networks give them, not scaled by the temperatures")  # fmt: skip
    add("--gradcam", type=Path, metavar="DIR", dest="pictures",
        help="for pictures of the regions that raise the predicted class's score")  # fmt: skip
    add("--branch", metavar="NAME",
        help="whose network --gradcam explains; mae, or without it the first")  # fmt: skip
    add("--batch", type=int, default=64, metavar="N", help="images at a time; 64 if not given")
    options = vars(parser.parse_args(arguments))
    console.set_up_logging()
    try:
        unreadable = _run(**options)
    except KeyboardInterrupt:
        console.stopped(f"by Ctrl-C: {options['out']} is not written.")
        return 130
    if unreadable:
        count = f"{len(unreadable)} image{'s' * (len(unreadable) > 1)}"
        left_out = f"{count} cannot be read and {'are' if len(unreadable) > 1 else 'is'} left out:"
        console.fail(_list(left_out, unreadable), UNREADABLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
