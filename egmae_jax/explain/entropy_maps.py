"""Draws and measures entropy, noise and reconstructions of a data set: `egmae entropy_maps`."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core.files import write_json
from egmae_jax.data.datasets import DataError
from egmae_jax.data.prepare import Prepared
from egmae_jax.explain import noise
from egmae_jax.explain.cam_study import choose_evenly
from egmae_jax.explain.lesions_figure import draw_lesions
from egmae_jax.explain.panels import draw_sheet
from egmae_jax.explain.source import Source
from egmae_jax.method.corruption import settings

logger = logging.getLogger(__name__)


def run(
    config: ConfigDict,
    workdir: Path | None,
    out: Path,
    *,
    files: Sequence[str] = (),
    count: int = 6,
    statistics: bool = True,
) -> None:
    """Draws some images of a data set, and measures all of them.

    Args:
        config: config of the data and the corruption.
        workdir: folder of a run whose pre-training is finished; None: no image is reconstructed.
        out: folder for sheet.png, noise.json and, if there are lesions, lesions.png.
        files: names of the images to draw; empty: `count` images of all classes, of the validation
            part if there is a workdir.
        count: number of images to draw if `files` is empty.
        statistics: whether all images are measured, for noise.json and lesions.png.

    Raises:
        ConfigError, RunError, DataError, DamagedFileError: see `Source`.
    """
    source = Source(config, workdir)
    indices = find(source.prepared, files) or choose(
        source.prepared, count, source.unseen_indices()
    )
    figure, _ = draw(source, indices)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "sheet.png")
    logger.info("Wrote sheet.png to %s", out)
    if not statistics:
        return
    result = noise.measure(source)
    write_json(out / "noise.json", result)
    (out / "lesions.png").unlink(missing_ok=True)
    if "lesions" in result:
        rows = result["lesions"]["rows"]
        title = (
            f"{source.prepared.title}: {len(rows)} images with a lesion in the evaluation view, "
            + describe_corruption(source.config).split(". ")[0]
        )
        draw_lesions(rows, title).savefig(out / "lesions.png")
    noise.show(result)
    logger.info("Wrote noise.json%s to %s", " and lesions.png" * ("lesions" in result), out)


def choose(prepared: Prepared, count: int, among: np.ndarray) -> list[int]:
    """Chooses images of all classes in equal numbers, see `choose_evenly`.

    Args:
        prepared: images of the data set.
        count: largest number of images to choose.
        among: indices of the images to choose from, int [N].

    Returns:
        Indices of the chosen images.
    """
    return among[choose_evenly(prepared.labels[among], count)].tolist()


def find(prepared: Prepared, names: Sequence[str]) -> list[int]:
    """Finds images by their path in the data folder, or by the last parts of the path.

    Returns:
        The index of the image of each name.

    Raises:
        DataError: no image has one of the names, or several images have it.
    """
    indices = []
    for name in names:
        matching = [k for k, file in enumerate(prepared.files) if f"/{file}".endswith(f"/{name}")]
        if len(matching) != 1:
            several = f" ({', '.join(prepared.files[k] for k in matching[:5])})" if matching else ""
            raise DataError(
                f"--file={name} is the name of {len(matching)} images{several}. Give the path of "
                f"one image in the data folder, such as {prepared.files[0]}."
            )
        indices += matching
    return indices


def draw(source: Source, indices: Sequence[int]) -> tuple[Figure, list[str]]:
    """Draws a sheet with one row per image, and the outlines of their lesions.

    Args:
        source: images, and their corruption and reconstruction.
        indices: indices of the images.

    Returns:
        The figure, and the caption of each image.
    """
    lesions: list[np.ndarray | None] = []
    for index in indices:
        try:
            lesions.append(source.lesion(index))
        except DataError as error:
            logger.warning("The outline of a lesion is not drawn: %s", error)
            lesions.append(None)
    panels = [source.panels(index) for index in indices]
    captions = [source.caption(index) for index in indices]
    note = describe_corruption(source.config)
    return draw_sheet(panels, captions, lesions=lesions, note=note), captions


def describe_corruption(config: FrozenConfigDict) -> str:
    """Describes the corruption in words, such as 'entropy_noise, scale 1, threshold 0. ...'."""
    corruption = config.corruption
    read = settings(corruption.kind)
    values = "".join(f", {name.replace('_', ' ')} {corruption[name]:g}" for name in read)
    return f"{corruption.kind}{values}. Training sees random crops, corrupted in the same way."
