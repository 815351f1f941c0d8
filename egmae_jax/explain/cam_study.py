"""Explains the test images of a finished run: pictures, and how much of the heat is in the lesions.

`egmae explain --help` lists the files that are written. Where the data set has masks of the
lesions, all test images are scored, however many are drawn.
"""

import hashlib
import itertools
import logging
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from egmae_jax.core.files import natural_key, write_json
from egmae_jax.data import datasets, images, masks
from egmae_jax.explain import cam_scores, gradcam
from egmae_jax.explain.overlay import Row, contact_sheet, picture_name, write_overlay
from egmae_jax.method import augment
from egmae_jax.run.branches import Branch
from egmae_jax.run.saved_run import Classifier, RunError, SavedRun
from egmae_jax.run.workdir import local_folder

_PAGE = 8  # images of a contact sheet
logger = logging.getLogger(__name__)


class Example(NamedTuple):
    """A test image as it is evaluated."""

    file: str  # relative to the data folder
    label: int  # index of its class
    pixels: np.ndarray  # uint8 [S, S, 3 or 1]
    mask: np.ndarray | None  # bool [S, S]; None without a mask that can be used
    mask_error: str = ""  # why its mask cannot be used; '' where there is none or it can


class Explained(NamedTuple):
    """An example with the model's prediction and its Grad-CAM."""

    example: Example
    layer: gradcam.Layer  # layer of the heat
    heat: np.ndarray  # float32 [S, S]
    predicted: int  # index of the class
    probability: float  # of the predicted class


def explain_run(
    workdir: Path,
    out: Path,
    *,
    branch: str | None = None,
    round_index: int = 0,
    layer: str | None = None,
    max_images: int = 24,
    batch: int = 16,
    tolerance: float = 0,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Explains the predicted class of a branch's test images and writes pictures and scores.

    Args:
        workdir: folder of a run whose fine-tuning has finished.
        out: folder for the results.
        branch: branch to explain, such as 'mae' or 'resnet18'; None: 'mae', or the first of a run
            without it.
        round_index: round of the run.
        layer: see `gradcam.gradcam`.
        max_images: most images that pictures are made of.
        batch: images that go through the network together.
        tolerance: tolerance of the pointing game, in pixels of the evaluation view.
        data_dir: folder of the images; None: where the run found them.

    Returns:
        The content of gradcam.json.

    Raises:
        RunError: an argument is out of range, the run lacks what is asked for, or an image is
            missing or is not the one that was tested.
        DamagedFileError, CheckpointError: a file of the workdir cannot be read.
    """
    if min(batch, max_images) < 1 or tolerance < 0:
        raise RunError(
            f"batch is {batch}, images {max_images}, tolerance {tolerance}; the first two must be "
            "positive, the last not negative."
        )
    run = SavedRun(workdir)
    chosen, classes, data_dir = run.branch(branch), run.classes(), data_dir or run.config.data.dir
    rows = sorted((r for r in run.split(round_index) if r["split"] == "test"), key=_by_class)
    shown = {rows[i]["file"] for i in spread([row["label"] for row in rows], max_images)}
    has_masks = datasets.get(run.config.data.name).masks is not None
    rows = rows if has_masks else [row for row in rows if row["file"] in shown]
    explanations = explain_images(
        run, chosen, round_index, rows, data_dir, layer=layer, batch=batch
    )
    files, unusable, at = _write(explanations, out, shown, classes, tolerance, scored=has_masks)
    content = {
        "workdir": str(workdir),
        "data_dir": str(data_dir),
        "branch": chosen.name,
        "round": round_index,
        "weights": str(run.paths.finetuned(chosen.name, round_index)),
        "model": chosen.model_name,
        "layer": at.address,
        "grid": list(at.grid),
        "part": at.part,
        "explained": _explained(run.config),
        "images": len(files),
        "right": sum(row["predicted"] == row["true"] for row in files),
        "masks": cam_scores.summarize(files, unusable, tolerance) if has_masks else None,
        "files": files,
    }
    write_json(out / "gradcam.json", content)
    return content


def explain_rounds(workdir: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Runs `explain_run` for every round, each into a folder of its own, and pools the scores.

    With folds every image is explained by the network that was not trained on it.

    Args:
        workdir: folder of a run whose fine-tuning has finished.
        out: folder for the results.
        **options: options of `explain_run`.

    Returns:
        The content of gradcam.json, whose "files" are those of all rounds.

    Raises:
        RunError, DamagedFileError, CheckpointError: as `explain_run`.
    """
    rounds = [
        explain_run(workdir, out / f"round_{i}", round_index=i, **options)
        for i in SavedRun(workdir).rounds
    ]
    files = [{"round": result["round"], **row} for result in rounds for row in result["files"]]
    content = rounds[0] | {
        "round": "all",
        "weights": [result["weights"] for result in rounds],
        "images": len(files),
        "right": sum(result["right"] for result in rounds),
        "files": files,
    }
    if content["masks"] is not None:
        unusable = [x for result in rounds for x in result["masks"]["left_out"]["unusable_masks"]]
        content["masks"] = cam_scores.summarize(files, unusable, content["masks"]["tolerance"])
    write_json(out / "gradcam.json", content)
    return content


def explain_images(
    run: SavedRun,
    branch: Branch,
    round_index: int,
    rows: Sequence[Mapping[str, Any]],
    data_dir: Path | str,
    *,
    layer: str | None = None,
    batch: int = 16,
) -> Iterator[Explained]:
    """Explains the predicted class of some images.

    Args:
        run: run whose fine-tuning has finished.
        branch: branch to explain.
        round_index: round of the run.
        rows: rows of splits.json.
        data_dir: folder of the images.
        layer: see `gradcam.gradcam`.
        batch: images that go through the network together.

    Raises:
        RunError: an image is missing, or is not the one of splits.json.
        LayerError: the network has no such layer.
        CheckpointError: the weights cannot be read.
    """
    folder = local_folder(data_dir, "--data_dir")
    if not folder.is_dir():
        raise RunError(f"There is no folder {folder}; --data_dir says where the images are.")
    classifier = run.classifier(branch, round_index)
    at = gradcam.layer_at(classifier.model, run.config.data.image_size, layer)
    logger.info("Explaining %d test images at %s", len(rows), at)
    classes = run.classes()
    examples = (_read_example(folder, run, row, classes) for row in rows)
    return _explain(classifier, examples, at, min(batch, max(1, len(rows))))


def spread(labels: Sequence[Any] | np.ndarray, count: int) -> list[int]:
    """Indices of at most `count` images: as many of each class as there are, evenly spaced.

    Args:
        labels: class of each image, in an order that is meant to be covered.
        count: most indices.
    """
    labels = np.asarray(labels)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    chosen: list[int] = []
    for k, indices in enumerate(sorted(members, key=len)):  # what small classes lack, others give
        share = min(len(indices), math.ceil((count - len(chosen)) / (len(members) - k)))
        places = np.linspace(0, len(indices) - 1, share).round().astype(int)
        chosen += indices[places].tolist()
    return sorted(chosen)


def _by_class(row: Mapping[str, Any]) -> tuple:
    return row["label"], natural_key(row["file"])


def _explained(config: ConfigDict) -> str:
    """What the heat explains, in words."""
    if not config.finetune.input_noise > 0:
        return "the predicted class"
    return (
        "the predicted class of the clean image; the run trained and tested with noise on it "
        f"(finetune.input_noise={config.finetune.input_noise:g})"
    )


def _read_example(
    folder: Path, run: SavedRun, row: Mapping[str, Any], classes: Sequence[str]
) -> Example:
    path, data, resized = folder / row["file"], run.config.data, run.config.evaluation.resize
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}); --data_dir says where the images are."
        ) from None
    if hashlib.sha256(encoded).hexdigest() != row["sha256"]:
        raise RunError(f"{path} is not the file that the run was tested on.")
    image = images.decode(encoded, data.color, run.intensity)
    view = images.evaluation_view(image, data.resize, data.image_size, resized)
    mask, mask_error = None, ""
    try:
        mask = masks.lesion_mask(
            folder,
            row["file"],
            datasets.get(data.name),
            image_shape=(image.height, image.width),
            resize=data.resize,
            image_size=data.image_size,
            resized=resized,
        )
    except masks.MaskError as error:
        logger.warning("%s The image is not scored.", error)
        mask_error = str(error)
    label = classes.index(row["label"])
    return Example(row["file"], label, images.to_array(view), mask, mask_error)


def _explain(
    classifier: Classifier, examples: Iterator[Example], layer: gradcam.Layer, batch: int
) -> Iterator[Explained]:
    """Explains the examples in batches of one size, so that the program is compiled once."""
    while waiting := list(itertools.islice(examples, batch)):
        pixels = gradcam.filled(np.stack([example.pixels for example in waiting]), batch)
        heat, predicted, logits = jax.device_get(
            gradcam.explain(
                classifier.model,
                classifier.variables,
                augment.normalize(jnp.asarray(pixels)),
                layer=layer.address,
            )
        )
        probabilities = np.asarray(jax.nn.softmax(logits)).max(axis=1)
        for k, example in enumerate(waiting):
            yield Explained(example, layer, heat[k], int(predicted[k]), float(probabilities[k]))


def _write(
    explanations: Iterable[Explained],
    out: Path,
    shown: Container[str],
    classes: Sequence[str],
    tolerance: float,
    *,
    scored: bool,
) -> tuple[list[dict[str, Any]], list[str], gradcam.Layer]:
    """Writes the pictures.

    Returns:
        The rows of gradcam.json, a sentence for each mask that cannot be used, and the layer.
    """
    files, unusable, sheet_rows = [], [], []
    for explained in explanations:
        example, at = explained.example, explained.layer
        files.append(_row(explained, classes, tolerance))
        if example.mask_error:
            unusable.append(f"{example.file}: {example.mask_error}")
        if example.file in shown:
            sheet_rows.append(_draw(out / "overlays", explained, files[-1], scored=scored))
    for k in range(math.ceil(len(sheet_rows) / _PAGE)):
        page = sheet_rows[k * _PAGE : (k + 1) * _PAGE]
        contact_sheet(page, out / f"sheet_{k}.png", note=str(at))
    return files, unusable, at


def _row(explained: Explained, classes: Sequence[str], tolerance: float) -> dict[str, Any]:
    """A row of gradcam.json."""
    return {
        "file": explained.example.file,
        "true": classes[explained.example.label],
        "predicted": classes[explained.predicted],
        "probability": round(explained.probability, 6),
        **cam_scores.score(explained.heat, explained.example.mask, tolerance),
    }


def _draw(folder: Path, explained: Explained, row: Mapping[str, Any], *, scored: bool) -> Row:
    """Writes the overlay of an image and returns its row of a contact sheet."""
    example = explained.example
    path = folder / example.file
    path = path.with_name(picture_name(path.name))
    text = f"Grad-CAM at {explained.layer}"
    write_overlay(path, example.pixels, explained.heat, example.mask, text=text)
    return Row(
        image=example.pixels,
        heat=explained.heat,
        mask=example.mask,
        title=Path(example.file).stem,
        true=row["true"],
        predicted=row["predicted"],
        probability=explained.probability,
        note=cam_scores.note(row) if scored or not row["heat"] else "",
    )
