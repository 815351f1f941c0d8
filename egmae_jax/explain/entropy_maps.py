"""What the entropy guides, drawn and measured: `egmae entropy_maps --help` says what is written."""

import logging
import runpy
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
    """Draws some images and measures all of them.

    Args:
        config: config of the data and the corruption.
        workdir: folder of a run whose pre-training is finished; None: nothing is reconstructed.
        out: folder for the figures and noise.json.
        files: images to draw; empty: some of all classes, of the validation part of a run.
        count: how many images are drawn where `files` is empty.
        statistics: whether all images are measured, too.
    """
    source = Source(config, workdir)
    indices = find(source.prepared, files) or choose(
        source.prepared, count, source.unseen_indices()
    )
    figure, _ = draw(source, indices)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "sheet.png")
    logger.info("Written to %s: sheet.png", out)
    if not statistics:
        return
    result = noise.measure(source)
    write_json(out / "noise.json", result)
    (out / "lesions.png").unlink(missing_ok=True)
    if "lesions" in result:
        rows = result["lesions"]["rows"]
        title = (
            f"{source.prepared.title}: {len(rows)} images with a lesion in the evaluation view, "
            + describe(source.config).split(". ")[0]
        )
        draw_lesions(rows, title).savefig(out / "lesions.png")
    noise.show(result)
    logger.info("Written to %s: noise.json%s", out, ", lesions.png" * ("lesions" in result))


def choose(prepared: Prepared, count: int, among: np.ndarray) -> list[int]:
    """Indices of `count` images out of `among`, of all classes alike: see `choose_evenly`."""
    return among[choose_evenly(prepared.labels[among], count)].tolist()


def find(prepared: Prepared, names: Sequence[str]) -> list[int]:
    """Indices of files, by their path in the data folder or the end of it.

    Raises:
        DataError: a name is that of no image, or of several.
    """
    indices = []
    for name in names:
        matching = [k for k, file in enumerate(prepared.files) if f"/{file}".endswith(f"/{name}")]
        if len(matching) != 1:
            several = f" ({', '.join(prepared.files[k] for k in matching[:5])})" if matching else ""
            raise DataError(
                f"--file={name} is the name of {len(matching)} images{several}. Give the path of "
                f"one below the data folder, such as {prepared.files[0]}."
            )
        indices += matching
    return indices


def draw(source: Source, indices: Sequence[int]) -> tuple[Figure, list[str]]:
    """Draws a sheet of images with the outlines of their lesions; returns it and the captions."""
    lesions: list[np.ndarray | None] = []
    for index in indices:
        try:
            lesions.append(source.lesion(index))
        except DataError as error:
            logger.warning("No outline: %s", error)
            lesions.append(None)
    panels = [source.panels(index) for index in indices]
    captions = [source.caption(index) for index in indices]
    note = describe(source.config)
    return draw_sheet(panels, captions, lesions=lesions, note=note), captions


def describe(config: FrozenConfigDict) -> str:
    """The corruption in words."""
    corruption = config.corruption
    if corruption.kind in ("entropy_noise", "uniform_noise"):
        how = f"scale {corruption.scale:g}, threshold {corruption.threshold:g}"
    else:
        how = f"mask ratio {corruption.mask_ratio:g}"
    return f"{corruption.kind}, {how}. Training sees random crops, corrupted in the same way."


if __name__ == "__main__":
    runpy.run_module("egmae_jax.commands.entropy_maps", run_name="__main__")
