"""Evaluates a finished run on labelled images from elsewhere (external validation).

The networks, the fusion and the calibration are those of the run; nothing is fitted. Images that
are not independent of the run's training are left out and named.
"""

import csv
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from egmae_jax.core import console, provenance
from egmae_jax.core.errors import shorten_list
from egmae_jax.core.files import (
    AccessError,
    explain_storage_errors,
    open_atomically,
    require_writable,
    write_json,
)
from egmae_jax.data import splits
from egmae_jax.data.datasets import DataError
from egmae_jax.data.listing import Listing, list_files
from egmae_jax.data.prepare import Prepared, prepare
from egmae_jax.deploy.predictions import spreadsheet_name
from egmae_jax.deploy.predictor import Predictor
from egmae_jax.evaluation import calibration
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.scores import score_images, summarize
from egmae_jax.evaluation.significance import Round
from egmae_jax.run import tables
from egmae_jax.run.saved_run import SavedRun
from egmae_jax.run.seen import Overlap, find_overlap

logger = logging.getLogger(__name__)

MANIFEST = "manifest.csv"
_MAX_PRINTED = 20  # images that are left out; results.json names all


class External(NamedTuple):
    """Evaluation of a run on labelled images from elsewhere.

    Attributes:
        results: content of results.json.
        predictions: uncalibrated predictions of the evaluated images by branch, for each round.
    """

    results: dict[str, Any]
    predictions: list[dict[str, Predictions]]


def evaluate(
    workdir: Path,
    images: Path,
    out: Path,
    *,
    renamed: Sequence[str] = (),
    group_pattern: str = "",
    data_dir: Path | None = None,
    batch: int = 64,
) -> External:
    """Scores all branches and rounds of a run, and their ensembles, on labelled images.

    Writes results.json and predictions.csv to a folder and prints the results.

    Args:
        workdir: folder of the run.
        images: folder with one subfolder per class, or a table manifest.csv.
        out: folder to write to.
        renamed: 'OTHER=OURS' for each class that the run has by another name.
        group_pattern: regular expression with capture groups, searched for in each file's name;
            images with equal captures are of one patient. Empty: groups are those of the table.
        data_dir: folder of the run's images, if they were moved; None: the folder in its config.
        batch: batch size.

    Raises:
        RunError: the run is not finished, or `batch` is not positive.
        DataError: there are no images, a class is unknown, or fewer than two classes are left.
        AccessError: the folder `out` is that of a run, is among the images or cannot be written to.
        DamagedFileError: a file of the workdir cannot be read.
    """
    _require_folder_of_its_own(out, images)
    run = SavedRun(workdir)
    own = run.results()
    listing = rename_classes(_list_images(images, group_pattern), renamed, run.classes())
    predictor = Predictor(workdir, round_index="all", calibrated=False, batch=batch)
    prepared = _prepare(run, listing)
    overlap = find_overlap(run, prepared, data_dir)
    kept = _choose_images(prepared, overlap)
    predictions = _predict(predictor, listing.folder, prepared, kept)
    asked = {"renamed": list(renamed), "group_pattern": group_pattern}
    dataset = _dataset(prepared, kept, overlap, images) | asked
    results = _results(run, own, dataset, predictions)
    with explain_storage_errors(out):
        write_json(out / "results.json", results)
        _write_table(out / "predictions.csv", run, predictions, predictor.classifiers)
    _print(results)
    return External(results, predictions)


def rename_classes(listing: Listing, renamed: Sequence[str], classes: Sequence[str]) -> Listing:
    """Gives the classes of a listing the names that a run has for them.

    Args:
        listing: labelled images from elsewhere.
        renamed: 'OTHER=OURS' for each class that the run has by another name.
        classes: names of the run's classes.

    Raises:
        DataError: a name is unknown, or renamed twice; the message lists the names.
    """
    names = {name: name for name in listing.classes if name in classes}
    given: set[str] = set()
    ours, theirs = ", ".join(classes), ", ".join(listing.classes)
    for text in renamed:
        pairs = [(text[:i], text[i + 1 :]) for i, letter in enumerate(text) if letter == "="]
        known = [(a, b) for a, b in pairs if a in listing.classes and b in classes]
        if not known:
            raise DataError(
                f"--map is {text!r}; it must be OTHER=OURS, with a class of the images ({theirs}) "
                f"and a class of the run ({ours})."
            )
        (other, name), *_ = known
        if other in given:
            raise DataError(f"--map renames the class {other!r} twice.")
        given.add(other)
        names[other] = name
    if unknown := [name for name in listing.classes if name not in names]:
        raise DataError(
            f"The run has no class {', '.join(map(repr, unknown))}; its classes are {ours}. Name "
            f"its class for these images by --map={unknown[0]!r}=CLASS, or take them out."
        )
    images = [image._replace(label=names[image.label]) for image in listing.images]
    return Listing(listing.dataset, listing.folder, images, tuple(classes), listing.other_classes)


def _require_folder_of_its_own(out: Path, images: Path) -> None:
    """Raises AccessError unless --out can be written to and is neither a run nor among images."""
    if (out / "config.json").exists():
        raise AccessError(f"--out={out} is the folder of a run; choose another folder.")
    if images.is_dir() and out.resolve().is_relative_to(images.resolve()):
        raise AccessError(f"--out={out} is in the folder of the images; choose another folder.")
    require_writable(out, f"--out={out}")


def _list_images(images: Path, group_pattern: str) -> Listing:
    """Lists the labelled images of a folder or of a manifest.csv, with the names of their table."""
    if not images.exists():
        raise DataError(f"{images} does not exist (--images).")
    if images.is_dir():
        name, folder = "image_folder", images
    elif images.name == MANIFEST:
        name, folder = "manifest", images.parent
    else:
        raise DataError(
            f"{images} is not a folder; a table of images must have the name {MANIFEST} (--images)."
        )
    return list_files(name, folder, group_pattern=group_pattern, field="--images")


def _prepare(run: SavedRun, listing: Listing) -> Prepared:
    """Reads the images once, for their hashes, near-duplicates and groups."""
    data, intensity = run.config.data, run.intensity
    return prepare(
        listing,
        Path(data.cache_dir).expanduser() / "datasets",
        on_error="skip",
        near_duplicate_threshold=data.near_duplicate_threshold,
        intensity_range=intensity if intensity.rule == "dataset" else intensity.rule,
    )


def _choose_images(prepared: Prepared, overlap: Overlap) -> np.ndarray:
    """Returns the indices of the images that the run has not seen.

    Raises:
        DataError: they are of fewer than two classes.
    """
    if overlap.problem:
        logger.warning(
            "Near-duplicates of the run's training and validation images cannot all be looked for, "
            "only the same files: %s If the images were moved, name their folder by --data_dir.",
            overlap.problem,
        )
    kept = np.setdiff1d(np.arange(len(prepared.files)), list(overlap.reasons))
    present = [prepared.classes[label] for label in np.unique(prepared.labels[kept])]
    if len(present) < 2:
        left = f"only images of {present[0]} are" if present else "no image is"
        raise DataError(
            f"Of {len(prepared.files)} readable images, {left} left after "
            f"{len(prepared.files) - len(kept)} that the run has seen; an evaluation needs images "
            "of two or more classes."
        )
    return kept


def _predict(
    predictor: Predictor, folder: Path, prepared: Prepared, kept: np.ndarray
) -> list[dict[str, Predictions]]:
    """Predicts the kept images; returns uncalibrated predictions by branch, for each round."""
    files = [folder / prepared.files[i] for i in kept]
    batches: list[Sequence[Mapping[str, np.ndarray]]] = []
    with console.progress_bar("images") as bar:
        task = bar.add_task("Evaluating", total=len(files), status="")
        for batch in predictor.stream(files):
            for i, reason in batch.unreadable.items():
                raise DataError(f"{files[i]} cannot be read any more: {reason}.")
            batches.append(batch.rounds)
            bar.update(task, advance=len(batch.indices))
    ids = np.array([prepared.files[i] for i in kept])
    labels, groups = prepared.labels[kept], prepared.groups[kept]
    return [
        {
            branch.name: Predictions(
                ids, labels, np.concatenate([rounds[k][branch.name] for rounds in batches]), groups
            )
            for branch in predictor.run.branches
        }
        for k in predictor.run.rounds
    ]


def _results(
    run: SavedRun,
    own: Mapping[str, Any],
    dataset: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Predictions]],
) -> dict[str, Any]:
    """Returns the content of results.json, of the same form as that of the run, `own`."""
    rounds = [_score(run, own["rounds"][i], by_branch) for i, by_branch in enumerate(predictions)]
    return {
        "run": str(run.workdir),
        "config": own["config"],
        "dataset": dataset,
        "pretraining_saw_test": False,
        **{key: own[key] for key in ("branches", "imagenet_weights", "imagenet_sha256")},
        "rounds": rounds,
        "summary": summarize(rounds),
        "summary_by_class": summarize(rounds, "by_class"),
        "made_with": provenance.describe_process(),
    }


def _score(
    run: SavedRun, own: Mapping[str, Any], predictions: Mapping[str, Predictions]
) -> dict[str, Any]:
    """Returns the entry of one round in results.json.

    Args:
        run: the run.
        own: the entry of the round in the results.json of the run.
        predictions: predictions by branch.
    """
    probabilities = _with_ensemble(run, own["round"], predictions)
    fits = {}
    for name in probabilities:
        c = own["calibration"][name]
        fits[name] = calibration.Fit(
            *(c["temperature"], c["least_probability"], c["evidence"]),
            *(c["likeliest_temperature"], c["limit"]),
        )
    first = next(iter(predictions.values()))
    scores = score_images(
        Round(first.ids, first.labels, list(probabilities.values()), first.groups),
        fits,
        classes=run.classes(),
        resamples=run.config.evaluation.bootstrap_resamples,
    )
    taken = {key: own[key] for key in ("round", "seed", "trainable", "fusion") if key in own}
    return taken | scores


def _with_ensemble(
    run: SavedRun, index: int, predictions: Mapping[str, Predictions]
) -> dict[str, np.ndarray]:
    """Returns the uncalibrated probabilities of every classifier in a round, float [N, C] each."""
    by_branch = {name: branch.probabilities for name, branch in predictions.items()}
    return run.ensemble(index).apply(by_branch, calibrated=False)


def _dataset(
    prepared: Prepared, kept: np.ndarray, overlap: Overlap, images: Path
) -> dict[str, Any]:
    """Returns the entry "dataset" of results.json: classes, and the numbers of images by use."""
    count = np.bincount(prepared.labels[kept], minlength=len(prepared.classes)).tolist()
    counts = dict(zip(prepared.classes, count, strict=True))
    left_out = {"not independent of the run's training": len(overlap.reasons)}
    used = {"evaluated": len(kept)}
    return {
        "name": prepared.name,
        "title": f"External images in {images}",
        "classes": list(prepared.classes),
        "counts": {"test": counts},
        "absent_classes": [name for name, number in counts.items() if not number],
        "protocol": "external",
        "found": prepared.num_found,
        "left_out": len(overlap.reasons),
        "left_out_by_reason": left_out,
        "left_out_files": [
            {"file": prepared.files[i], "reason": reason} for i, reason in overlap.reasons.items()
        ],
        "near_duplicates_problem": overlap.problem,
        "account": splits.account(used, left_out, len(prepared.skipped), {}),
        "skipped": list(prepared.skipped),
    }


def _write_table(
    path: Path,
    run: SavedRun,
    predictions: Sequence[Mapping[str, Predictions]],
    classifiers: Sequence[str],
) -> None:
    """Writes predictions.csv: one row per round and image, with uncalibrated probabilities."""
    classes = run.classes()
    with open_atomically(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as f:
        writer = csv.writer(f)
        columns = map(":".join, itertools.product(classifiers, classes))
        writer.writerow(["round", "file", "group", "label", "predicted", *columns])
        for index, by_branch in enumerate(predictions):
            first = next(iter(by_branch.values()))
            probabilities = _with_ensemble(run, index, by_branch)
            rows = np.concatenate([probabilities[name] for name in classifiers], axis=1)
            predicted = probabilities[classifiers[0]].argmax(axis=1)
            for file, group, label, guess, row in zip(
                first.ids.tolist(), first.groups, first.labels, predicted, rows, strict=True
            ):
                name = spreadsheet_name(file)
                values = (f"{probability:.8g}" for probability in row)
                writer.writerow([index, name, group, classes[label], classes[guess], *values])


def _print(results: Mapping[str, Any]) -> None:
    """Prints the results, and the images and classes that they are without."""
    tables.print_results(results)
    dataset = results["dataset"]
    left_out = [f"{row['file']} ({row['reason']})" for row in dataset["left_out_files"]]
    if left_out:
        listed = shorten_list(left_out, most=_MAX_PRINTED)
        console.terminal.print(f"Left out: {listed}", soft_wrap=True)
    if absent := dataset["absent_classes"]:
        console.terminal.print(
            f"No image is of {', '.join(absent)}: macro averages are over the other classes.",
            style="bold yellow",
        )
