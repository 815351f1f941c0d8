"""Pictures of a run's images for the report: regions that raise a score, what pre-training sees.

They need the images themselves, which may be elsewhere by now; then there are none.
"""

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.explain import cam_study, entropy_maps
from egmae_jax.explain.gradcam import Layer
from egmae_jax.explain.overlay import overlay
from egmae_jax.explain.panels import common_scales, draw_sheet
from egmae_jax.run.branches import Branch
from egmae_jax.run.saved_run import SavedRun

_SIDE = 192  # pixels of a picture: on a page it is shown smaller
_QUALITY = 82


class Case(NamedTuple):
    """A test image of note, as a classifier sees it."""

    image: str  # data: address
    heat: str  # likewise, Grad-CAM of the predicted class over it
    layer: Layer  # that the heat is of
    file: str
    true: str  # class
    predicted: str
    probability: float  # of the predicted class


KINDS = (
    "right and most confident",
    "right and least",
    "wrong and most confident",
    "wrong and least",
)


def choose_cases(predictions: Predictions, count: int) -> dict[str, list[int]]:
    """The images that a classifier is most and least sure of: {kind of KINDS: indices}.

    Args:
        predictions: of the test images.
        count: at most so many of each kind; none is of two kinds.
    """
    confidence = predictions.probabilities.max(axis=1)
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    chosen = {}
    for of_kind, name in ((right, "right"), (~right, "wrong")):
        members = np.flatnonzero(of_kind)
        members = members[np.argsort(-confidence[members], kind="stable")].tolist()
        half = min(count, (len(members) + 1) // 2)
        chosen[f"{name} and most confident"] = members[:half]
        least = members[half:][::-1]
        chosen[f"{name} and least"] = least[:count]
    return chosen


def explain_cases(
    run: SavedRun,
    branch: Branch,
    round_index: int,
    predictions: Predictions,
    *,
    data_dir: Path,
    count: int,
) -> dict[str, list[Case]]:
    """The cases of `choose_cases` with Grad-CAM of the predicted class.

    Args:
        run: whose fine-tuning has finished.
        branch: to explain.
        round_index: of the run.
        predictions: of that branch and round, for the test images.
        data_dir: where the images are.
        count: see `choose_cases`.

    Raises:
        RunError: an image is not there, or not the one that was tested on.
    """
    chosen = choose_cases(predictions, count)
    wanted = {str(predictions.ids[i]) for members in chosen.values() for i in members}
    rows = [row for row in run.split(round_index) if row["file"] in wanted]
    explained = cam_study.explain_images(run, branch, round_index, rows, data_dir)
    cases = {}
    classes = run.classes()
    for found in explained:
        image = found.example.pixels
        cases[found.example.file] = Case(
            image=embed(image),
            heat=embed(overlay(image, found.heat)),
            layer=found.layer,
            file=found.example.file,
            true=classes[found.example.label],
            predicted=classes[found.predicted],
            probability=found.probability,
        )
    return {
        kind: [cases[str(predictions.ids[i])] for i in members] for kind, members in chosen.items()
    }


def heat_scale() -> str:
    """A data: address of all heat from 0 to 1 over grey."""
    heat = np.tile(np.linspace(0, 1, _SIDE), (12, 1))
    return embed(overlay(np.full((*heat.shape, 3), 128, np.uint8), heat))


def reconstructions(config: ConfigDict, workdir: Path, count: int) -> tuple[str, list[str], str]:
    """Validation images, their entropy, noise, corruption and reconstruction, on one sheet.

    Args:
        config: of the run, with data.dir where the images are.
        workdir: of the run, whose pre-training has finished.
        count: of images.

    Returns:
        The picture as a data: address, the images' captions, and the corruption in words.

    Raises:
        DataError, OSError: the images cannot be had.
    """
    source = entropy_maps.Source(config, workdir)
    files = source.prepared.files
    held = np.flatnonzero([source.part_of.get(file) == "validation" for file in files])
    indices = entropy_maps.choose(source.prepared, count, held)
    panels = [source.panels(index) for index in indices]
    captions = [source.caption(index) for index in indices]
    note = entropy_maps.describe(source.config)
    figure = draw_sheet(panels, captions, scales=common_scales(panels), note=note)
    return embed_figure(figure), [caption.replace("\n", ": ") for caption in captions], note


def embed(pixels: np.ndarray) -> str:
    """uint8 [H, W, 3 or 1] -> a data: address of at most _SIDE pixels a side."""
    image = PIL.Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    image.thumbnail((_SIDE, _SIDE), PIL.Image.Resampling.LANCZOS)
    return _address(image, _QUALITY)


def embed_figure(figure: Figure) -> str:
    """A data: address of a figure with pictures in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _address(PIL.Image.open(buffer).convert("RGB"), 88)


def _address(image: PIL.Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
