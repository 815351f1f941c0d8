"""What the entropy guides, drawn and measured.

Draws, image by image and on one sheet, the entropy H of the patches, the noise's sigma, the
corrupted input, the masked patches M and, of a workdir whose pre-training is finished, the
reconstruction and its error. Measures where the noise falls over the whole data set: by class, and,
where the data set has masks of its lesions, inside them, in a ring around them and outside.

A config alone needs no training: then there is no reconstruction.
"""

import difflib
import logging
import runpy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core.files import write_json
from egmae_jax.data.datasets import DataError
from egmae_jax.data.prepare import Prepared
from egmae_jax.explain import noise
from egmae_jax.explain.cam_study import spread
from egmae_jax.explain.lesions_figure import draw_lesions
from egmae_jax.explain.overlay import picture_name
from egmae_jax.explain.panels import common_scales, draw_sheet
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
    indices = find(source.prepared, files)
    if not indices:
        among = np.arange(len(source.prepared.files))
        if workdir is not None:  # pre-training has not seen them
            among = held_out(source)
        indices = choose(source.prepared, count, among)
    pictures = draw(source, indices, out)
    logger.info("Written to %s: sheet.png and %d figures of single images", out, len(pictures) - 1)
    if not statistics:
        return
    result, rows = noise.measure(source)
    write_json(out / "noise.json", result)
    (out / "lesions.png").unlink(missing_ok=True)
    if rows:
        title = (
            f"{source.prepared.title}: {len(rows)} images with a lesion in the evaluation view, "
            + describe(source.config).split(". ")[0]
        )
        draw_lesions(rows, title).savefig(out / "lesions.png")
    noise.show(result)
    logger.info("Written to %s: noise.json%s", out, ", lesions.png" if rows else "")


def held_out(source: Source) -> np.ndarray:
    """Indices of the validation images of a run's first split."""
    files = source.prepared.files
    return np.flatnonzero([source.part_of.get(file) == "validation" for file in files])


def choose(prepared: Prepared, count: int, among: np.ndarray) -> list[int]:
    """Indices of `count` images out of `among`, of all classes alike: see `spread`."""
    return among[spread(prepared.labels[among], count)].tolist()


def find(prepared: Prepared, names: Sequence[str]) -> list[int]:
    """Indices of files, by their path in the data folder or the end of it.

    Raises:
        DataError: a name is that of no image, or of several.
    """
    indices = []
    for name in names:
        matching = [k for k, file in enumerate(prepared.files) if f"/{file}".endswith(f"/{name}")]
        if len(matching) > 1:
            several = ", ".join(prepared.files[k] for k in matching[:5])
            raise DataError(f"--file={name} is {len(matching)} images: {several}. Give the path.")
        if not matching:
            by_name = {Path(file).name: file for file in prepared.files}
            (nearest,) = difflib.get_close_matches(Path(name).name, by_name, n=1, cutoff=0.0)
            raise DataError(
                f"--file={name}: the data set has no such image. Did you mean {by_name[nearest]!r}?"
            )
        indices.append(matching[0])
    return indices


def draw(source: Source, indices: Sequence[int], folder: Path) -> list[Path]:
    """Writes sheet.png and a figure of each image, all of one scale; returns the files."""
    panels = [source.panels(index) for index in indices]
    lesions: list[np.ndarray | None] = []
    for index in indices:
        try:
            lesions.append(source.lesion(index))
        except DataError as error:
            logger.warning("No outline: %s", error)
            lesions.append(None)
    captions = [source.caption(index) for index in indices]
    scales, note = common_scales(panels), describe(source.config)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "sheet.png"]
    draw_sheet(panels, captions, scales=scales, lesions=lesions, note=note).savefig(files[0])
    for index, panel, caption, lesion in zip(indices, panels, captions, lesions, strict=True):
        files.append(folder / picture_name(source.prepared.files[index].replace("/", "_")))
        figure = draw_sheet([panel], [caption], scales=scales, lesions=[lesion], note=note)
        figure.savefig(files[-1])
    return files


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
