"""Pictures for the report of a run: Grad-CAM of test images, and reconstructions.

They need the image files, which may have been moved since the run.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from egmae_jax.data import images
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.explain import entropy_maps
from egmae_jax.explain.cam_study import explain_images
from egmae_jax.explain.overlay import ExplainedExample, overlay
from egmae_jax.run.branches import Branch
from egmae_jax.run.config import load_config
from egmae_jax.run.saved_run import SavedRun

_SIDE = 192  # largest side of a picture in pixels; the page shows it smaller


class Sheet(NamedTuple):
    """A sheet of reconstructed images."""

    picture: str  # data URI
    captions: list[str]  # one per image
    note: str  # description of the corruption


def choose_cases(predictions: Predictions, count: int) -> dict[str, list[int]]:
    """Chooses the test images that a classifier is most and least confident of.

    Args:
        predictions: predictions of the classifier for the test images.
        count: largest number of images of each kind.

    Returns:
        Indices of the images by kind, such as 'right and most confident'; each image has one kind.
    """
    confidence = predictions.probabilities.max(axis=1)
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    chosen = {}
    for mask, name in ((right, "right"), (~right, "wrong")):
        members = np.flatnonzero(mask)
        members = members[np.argsort(-confidence[members], kind="stable")].tolist()
        half = min(count, (len(members) + 1) // 2)
        chosen[f"{name} and most confident"] = members[:half]
        chosen[f"{name} and least confident"] = members[half:][::-1][:count]
    return chosen


def explain_cases(
    run: SavedRun, branch: Branch, predictions: Predictions, data_dir: Path, count: int
) -> dict[str, list[ExplainedExample]]:
    """Explains the predicted class of the images that `choose_cases` chooses, by Grad-CAM.

    Args:
        run: run whose fine-tuning has finished.
        branch: branch to explain, in the first round.
        predictions: predictions of the branch for the test images of the first round.
        data_dir: folder of the images.
        count: largest number of images of each kind.

    Returns:
        Explained images by kind.

    Raises:
        RunError: an image is missing or has changed since the run.
    """
    chosen = choose_cases(predictions, count)
    files = {str(predictions.ids[i]) for members in chosen.values() for i in members}
    rows = [row for row in run.split(0) if row["file"] in files]
    explained = {x.example.file: x for x in explain_images(run, branch, 0, rows, data_dir)}
    return {
        kind: [explained[str(predictions.ids[i])] for i in members]
        for kind, members in chosen.items()
    }


def heat_scale() -> str:
    """Returns a data URI of the colours of heat from 0 to 1 over a grey image."""
    heat = np.tile(np.linspace(0, 1, _SIDE), (12, 1))
    return embed(overlay(np.full((*heat.shape, 3), 128, np.uint8), heat))


def reconstructions(workdir: Path, data_dir: Path, count: int) -> Sheet:
    """Draws validation images with their entropy, noise, corruption and reconstruction.

    Args:
        workdir: folder of a run whose pre-training has finished.
        data_dir: folder of the images.
        count: number of images.

    Raises:
        DataError: the images cannot be read, or differ from those of the run.
    """
    config = load_config(workdir / "config.json")
    with config.unlocked():
        config.data.dir = str(data_dir)
    source = entropy_maps.Source(config, workdir)
    indices = entropy_maps.choose(source.prepared, count, source.unseen_indices())
    figure, captions = entropy_maps.draw(source, indices)
    buffer = io.BytesIO()
    figure.savefig(buffer)
    picture = images.data_uri(PIL.Image.open(buffer).convert("RGB"), "webp", quality=88)
    note = entropy_maps.describe_corruption(source.config)
    return Sheet(picture, [caption.replace("\n", ": ") for caption in captions], note)


def embed(pixels: np.ndarray) -> str:
    """Returns a data URI of an image, uint8 [H, W, 3 or 1], with sides of at most _SIDE pixels."""
    image = PIL.Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    image.thumbnail((_SIDE, _SIDE), PIL.Image.Resampling.LANCZOS)
    return images.data_uri(image, "webp", quality=82)
