"""Explains the test images of a finished run: Grad-CAM pictures, and scores against lesion masks.

`egmae explain --help` lists the output files. If the data set has lesion masks, all test images are
scored, also those that are not drawn.
"""

import hashlib
import itertools
import logging
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from egmae_jax.core.files import natural_key, write_json
from egmae_jax.data import datasets, images, masks, pipeline
from egmae_jax.explain import cam_scores, gradcam
from egmae_jax.explain.overlay import (
    Example,
    ExplainedExample,
    contact_sheet,
    picture_name,
    write_overlay,
)
from egmae_jax.method import augment
from egmae_jax.run.branches import Branch
from egmae_jax.run.images import view_settings
from egmae_jax.run.saved_run import Classifier, RunError, SavedRun
from egmae_jax.run.workdir import local_path

_PAGE = 8  # images per contact sheet
_BATCH = 16  # largest batch size
logger = logging.getLogger(__name__)


def explain_run(
    workdir: Path,
    out: Path,
    *,
    branch: str | None = None,
    round_index: int | None = 0,
    layer: str | None = None,
    max_images: int = 24,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Explains the test images of one branch, and writes pictures and gradcam.json.

    Args:
        workdir: folder of a run whose fine-tuning has finished.
        out: folder for the pictures and gradcam.json.
        branch: branch to explain, such as 'mae' or 'resnet18'; None: 'mae' if the run has it, else
            the first branch.
        round_index: round of the run; None: all rounds, each with its own folder of pictures.
        layer: address of the layer, see `gradcam.gradcam`.
        max_images: largest number of images per round to draw.
        data_dir: folder of the images; None: the folder in the run's config.

    Returns:
        The content of gradcam.json.

    Raises:
        RunError: the run has no such branch, round or results, or an image is missing or has
            changed since the run.
        LayerError: the network has no such layer.
        DamagedFileError, CheckpointError: a file of the workdir cannot be read.
    """
    run = SavedRun(workdir)
    explained_branch, data_dir = run.branch(branch), data_dir or Path(run.config.data.dir)
    has_masks = datasets.get(run.config.data.name).masks is not None
    files: list[dict[str, Any]] = []
    for index in run.rounds if round_index is None else [round_index]:
        rows, drawn = _test_images(run, index, max_images, include_all=has_masks)
        folder = out if index == round_index else out / f"round_{index}"
        explanations = explain_images(run, explained_branch, index, rows, data_dir, layer)
        rows, at = _write(explanations, folder, drawn)
        files += [{"round": index, **row} for row in rows]
    content = {
        "workdir": str(workdir),
        "branch": explained_branch.name,
        "round": "all" if round_index is None else round_index,
        "model": explained_branch.model_name,
        "layer": at.address,
        "grid": list(at.grid),
        "part": at.feeds,
        "images": len(files),
        "right": sum(row["predicted"] == row["true"] for row in files),
        "masks": cam_scores.summarize(files) if has_masks else None,
        "files": files,
    }
    write_json(out / "gradcam.json", content)
    return content


def explain_images(
    run: SavedRun,
    branch: Branch,
    round_index: int,
    rows: Sequence[Mapping[str, Any]],
    data_dir: Path,
    layer: str | None = None,
) -> Iterator[ExplainedExample]:
    """Explains the predicted class of some test images.

    Args:
        run: run whose fine-tuning has finished.
        branch: branch to explain.
        round_index: round of the run.
        rows: rows of splits.json, one per image.
        data_dir: folder of the images.
        layer: address of the layer, see `gradcam.gradcam`.

    Returns:
        Iterator over the explained images, in the order of `rows`; each batch is read and computed
        when it is needed.

    Raises:
        RunError: an image is missing, or differs from the one in splits.json.
        LayerError: the network has no such layer.
        CheckpointError: the weights cannot be read.
    """
    folder = local_path(data_dir)
    if not folder.is_dir():
        raise RunError(f"There is no folder {folder}; --data_dir sets the folder of the images.")
    classifier = run.classifier(branch, round_index)
    at = gradcam.layer_at(classifier.model, run.config.data.image_size, layer)
    logger.info("Explaining %d test images at %s", len(rows), at)
    examples = (_read_example(folder, run, row) for row in rows)
    return _explain(classifier, examples, at, min(_BATCH, max(1, len(rows))), run.classes())


def choose_evenly(labels: Sequence[Any] | np.ndarray, count: int) -> list[int]:
    """Chooses images of all classes in equal numbers, evenly spaced within each class.

    Args:
        labels: class of each image.
        count: largest number of images to choose.

    Returns:
        Indices of the chosen images, ascending; if a class has too few, others fill up the number.
    """
    labels = np.asarray(labels)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    chosen: list[int] = []
    for k, indices in enumerate(sorted(members, key=len)):  # larger classes fill up for small ones
        share = min(len(indices), math.ceil((count - len(chosen)) / (len(members) - k)))
        positions = np.linspace(0, len(indices) - 1, share).round().astype(int)
        chosen += indices[positions].tolist()
    return sorted(chosen)


def _test_images(
    run: SavedRun, round_index: int, max_images: int, *, include_all: bool
) -> tuple[list[dict[str, Any]], set[str]]:
    """Selects the test images of a round.

    Returns:
        Rows of splits.json of all test images, or only of those to draw; and the files to draw.
    """
    if max_images < 1:
        raise RunError(f"--images is {max_images}; it must be positive.")
    rows = [row for row in run.split(round_index) if row["split"] == "test"]
    rows.sort(key=lambda row: (row["label"], natural_key(row["file"])))
    drawn = {rows[i]["file"] for i in choose_evenly([row["label"] for row in rows], max_images)}
    return [row for row in rows if include_all or row["file"] in drawn], drawn


def read_view(folder: Path, run: SavedRun, row: Mapping[str, Any]) -> np.ndarray:
    """Returns the evaluation view of an image of the run, uint8 [S, S, 3 or 1].

    Args:
        folder: folder of the images.
        run: the run.
        row: row of splits.json.

    Raises:
        RunError: the image is missing, or differs from the one in splits.json.
    """
    image = _read_image(folder, run, row)
    return images.to_array(images.evaluation_view(image, **view_settings(run.config)))


def _read_image(folder: Path, run: SavedRun, row: Mapping[str, Any]) -> PIL.Image.Image:
    path = folder / row["file"]
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}); --data_dir sets the folder of the images."
        ) from None
    if hashlib.sha256(encoded).hexdigest() != row["sha256"]:
        raise RunError(f"{path} is not the file that the run used.")
    return images.decode(encoded, run.config.data.color, run.intensity)


def _read_example(folder: Path, run: SavedRun, row: Mapping[str, Any]) -> Example:
    image, settings = _read_image(folder, run, row), view_settings(run.config)
    view = images.evaluation_view(image, **settings)
    mask, mask_error = None, ""
    try:
        mask = masks.lesion_mask(
            folder,
            row["file"],
            datasets.get(run.config.data.name),
            image_shape=(image.height, image.width),
            **settings,
        )
    except masks.MaskError as error:
        logger.warning("%s This image is not scored.", error)
        mask_error = str(error)
    return Example(row["file"], row["label"], images.to_array(view), mask, mask_error)


def _explain(
    classifier: Classifier,
    examples: Iterator[Example],
    layer: gradcam.Layer,
    batch: int,
    classes: Sequence[str],
) -> Iterator[ExplainedExample]:
    """Explains the examples in batches of equal size, so that the program compiles only once."""
    while chunk := list(itertools.islice(examples, batch)):
        pixels = pipeline.pad_batch(np.stack([example.pixels for example in chunk]), batch)
        heat, predicted, logits = jax.device_get(
            gradcam.explain(
                classifier.model,
                classifier.variables,
                augment.normalize(jnp.asarray(pixels)),
                layer=layer.address,
            )
        )
        probabilities = np.asarray(jax.nn.softmax(logits)).max(axis=1)
        for k, example in enumerate(chunk):
            name = classes[predicted[k]]
            yield ExplainedExample(example, layer, heat[k], name, float(probabilities[k]))


def _write(
    explanations: Iterable[ExplainedExample], out: Path, drawn: Container[str]
) -> tuple[list[dict[str, Any]], gradcam.Layer]:
    """Writes the pictures of one round.

    Args:
        explanations: explained images, at least one.
        out: folder for the pictures.
        drawn: files to draw.

    Returns:
        Rows of gradcam.json, and the layer of the heat maps.
    """
    files, on_sheets = [], []
    for explained in explanations:
        example = explained.example
        row = {
            "file": example.file,
            "true": example.label,
            "predicted": explained.predicted,
            "probability": round(explained.probability, 6),
            "mask_error": example.mask_error,
            **cam_scores.score(explained.heat, example.mask),
        }
        files.append(row)
        if example.file in drawn:
            path = out / "overlays" / picture_name(example.file)
            text = f"Grad-CAM at {explained.layer}"
            write_overlay(path, example.pixels, explained.heat, example.mask, text=text)
            on_sheets.append(explained)
    for k in range(math.ceil(len(on_sheets) / _PAGE)):
        page = on_sheets[k * _PAGE : (k + 1) * _PAGE]
        contact_sheet(page, out / f"sheet_{k}.png", note=str(explained.layer))
    return files, explained.layer
