"""A sheet of images as fine-tuning sees them: `egmae augment`."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core import platform, rng
from egmae_jax.core.files import open_atomically
from egmae_jax.data import pipeline
from egmae_jax.explain.cam_study import choose_evenly
from egmae_jax.explain.fonts import use_fallback_fonts, wrap
from egmae_jax.explain.panels import to_display
from egmae_jax.run import images, rules
from egmae_jax.training import finetune

_CAPTION = 26  # columns per line of a caption


def run(config: ConfigDict, out: Path, *, count: int, draws: int) -> None:
    """Draws some images of a data set in several random augmentations each.

    Args:
        config: config of a run.
        out: picture to write.
        count: number of images, which also are the batch within which images are mixed.
        draws: number of augmentations per image.

    Raises:
        ConfigError: the config is invalid.
        DataError: the images cannot be read.
    """
    rules.check(config, num_devices=1)
    frozen = FrozenConfigDict(config)
    prepared = images.prepare_images(config, images.list_images(config))
    indices = np.array(choose_evenly(prepared.labels, count))
    data = frozen.data
    evaluation = pipeline.evaluation_view(
        prepared, color=data.color, **images.view_settings(frozen)
    ).load(indices)
    batch = pipeline.training_view(
        prepared, indices, color=data.color, resize=data.resize, store_size=data.store_size
    ).load(indices)
    views, targets = _augment(frozen, batch, len(prepared.classes), draws)
    captions = [
        f"{Path(prepared.files[index]).name}\n{prepared.classes[prepared.labels[index]]}"
        for index in indices
    ]
    mixtures = [[_describe_target(row, prepared.classes) for row in draw] for draw in targets]
    figure = _draw(evaluation.pixels, views, captions, mixtures, _describe(frozen))
    with open_atomically(out, "wb") as file:
        figure.savefig(file, format="png")


def _augment(
    config: FrozenConfigDict, batch: pipeline.Images, num_classes: int, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [draws, N, S, S, 3] and class probabilities [draws, N, num_classes]."""
    program = platform.jit(
        functools.partial(finetune.augmented_batch, config=config, num_classes=num_classes)
    )
    stage_key = rng.stage_key(config.seed, "finetune/augment")
    results = [
        program(batch, finetune.StepKeys.split(jax.random.fold_in(stage_key, step)))
        for step in range(draws)
    ]
    views, targets = (np.stack(list(map(np.asarray, x))) for x in zip(*results, strict=True))
    return to_display(views), targets


def _describe_target(target: np.ndarray, classes: Sequence[str]) -> str:
    """Describes the class probabilities of a mixed image, such as '61 % benign, 39 % normal'."""
    shares = [f"{share:.0%} {name}" for share, name in zip(target, classes, strict=True) if share]
    return ", ".join(shares) if len(shares) > 1 else ""


def _describe(config: FrozenConfigDict) -> str:
    steps = [
        f"resize {config.finetune.resize}",
        f"random crop {config.data.image_size}",
        "horizontal flip",
        *config.finetune.augment,
    ]
    if config.finetune.input_noise > 0:
        steps.append(f"noise of {config.finetune.input_noise:g} of the pixel range")
    return f"Training: {', '.join(steps)}."


@use_fallback_fonts()
def _draw(
    evaluation: np.ndarray,
    views: np.ndarray,
    captions: Sequence[str],
    mixtures: Sequence[Sequence[str]],
    note: str,
) -> Figure:
    draws, rows = views.shape[:2]
    figure = Figure(figsize=(0.5 + 1.9 * (draws + 1), 0.9 + 2.0 * rows), layout="constrained")
    grid = figure.subplots(rows, draws + 1, squeeze=False)
    for row, axes in enumerate(grid):
        pictures = [np.broadcast_to(evaluation[row], views.shape[2:]), *views[:, row]]
        for axis, picture in zip(axes, pictures, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.imshow(picture)
        for axis, mixture in zip(axes[1:], [draw[row] for draw in mixtures], strict=True):
            axis.set_xlabel(wrap(mixture, _CAPTION), fontsize=8, parse_math=False)
        lines = (wrap(line, _CAPTION, lines=1) for line in captions[row].splitlines())
        axes[0].set_ylabel("\n".join(lines), fontsize=8, parse_math=False)
    grid[0, 0].set_title("evaluation", fontsize=10)
    for draw, axis in enumerate(grid[0, 1:], 1):
        axis.set_title(f"training, draw {draw}", fontsize=10)
    figure.supxlabel(wrap(note, 20 * (draws + 1), lines=4), x=0.01, ha="left", fontsize=9)
    return figure
