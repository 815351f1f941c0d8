"""Sheets that show entropy, noise, masks and reconstructions of images side by side."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egmae_jax.explain.fonts import use_fallback_fonts, wrap
from egmae_jax.method import augment
from egmae_jax.training import pretrain

_OUTLINE = "#00e5ff"  # colour of lesion outlines
_CAPTION = 30  # columns per line of a caption
_UNIT, _SQUARED = "normalised units", "normalised units squared"
_MASKED = matplotlib.colors.ListedColormap(["#30343c", "#f2c14e"])
_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}


class Panels(NamedTuple):
    """One image as pre-training sees it, with P the patch size."""

    pixels: np.ndarray  # uint8 [H, W, 3 or 1]
    entropy: np.ndarray  # entropy H of each patch, [H/P, W/P], nats
    sigma: np.ndarray  # standard deviation of the noise, [H/P, W/P], normalised units
    corrupted: np.ndarray  # input of the encoder, [H, W, 3], normalised units
    mask: np.ndarray  # M, [H/P, W/P], 1 = masked
    reconstruction: np.ndarray | None  # [H, W, 3], normalised units; None without a decoder
    # [H, W], mean over channels, NaN outside masked patches; None without a reconstruction
    squared_error: np.ndarray | None


def compute_panels(
    reconstruct: Callable[[np.ndarray, jax.Array], pretrain.Reconstruction],
    pixels: np.ndarray,
    key: jax.Array,
) -> Panels:
    """Computes the panels of one image.

    Args:
        reconstruct: `pretrain.reconstruct` with params, model and config bound.
        pixels: evaluation view of the image, uint8 [H, W, 3 or 1].
        key: random key of the corruption.
    """
    batch = jax.device_get(reconstruct(pixels[None], key))
    mask, image, error = batch.corruption.mask[0], None, None
    if batch.image is not None:
        image = batch.image[0]
        error = np.square(image - batch.target[0]).mean(axis=-1)
        error = np.where(to_pixels(mask, error.shape[0]) > 0, error, np.nan)
    return Panels(
        pixels=pixels,
        entropy=batch.entropy[0],
        sigma=batch.corruption.sigma[0],
        corrupted=batch.corruption.image[0],
        mask=mask,
        reconstruction=image,
        squared_error=error,
    )


def to_display(normalized: np.ndarray) -> np.ndarray:
    """Converts normalised values [..., 3] to uint8 [..., 3], clipped to 0 to 255."""
    values = (normalized * np.array(augment.STD) + np.array(augment.MEAN)) * 255
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def to_pixels(patch_values: np.ndarray, side: int) -> np.ndarray:
    """Repeats the value of each patch for its pixels: [h, w] -> [side, side]."""
    patch = side // patch_values.shape[0]
    return patch_values.repeat(patch, axis=0).repeat(patch, axis=1)


class _Cell(NamedTuple):
    """A picture of a sheet, in the row of one image."""

    title: str  # title of the column
    values: np.ndarray  # float [H, W] for a colormap, with NaN in grey; or uint8 [H, W, 3]
    colors: Any = None  # colormap
    unit: str = ""  # label of the column's colour bar; '' for no bar
    note: str = ""  # text on the picture


@use_fallback_fonts()
def draw_sheet(
    panels: Sequence[Panels],
    captions: Sequence[str],
    *,
    lesions: Sequence[np.ndarray | None] | None = None,
    note: str,
) -> Figure:
    """Draws one row of pictures per image, and a colour bar below each column with a scale.

    Args:
        panels: one or more images, either all or none with a reconstruction.
        captions: name and class of each image.
        lesions: lesion mask of each image to outline, bool [H, W], or None; None: no outlines.
        note: text below the figure.
    """
    cells, lesions = [_cells(panel) for panel in panels], lesions or [None] * len(panels)
    rows, columns = len(cells), len(cells[0])
    figure = Figure(figsize=(0.5 + 2.1 * columns, 1.5 + 2.1 * rows), dpi=110, layout="constrained")
    ratios = [1.0] * rows + [0.05]
    grid = figure.subplots(rows + 1, columns, squeeze=False, height_ratios=ratios)
    for axes, column in zip(grid.T, zip(*cells, strict=True), strict=True):
        _draw_column(figure, axes, column)
    for axes, caption, lesion in zip(grid[:-1], captions, lesions, strict=True):
        lines = (wrap(line, _CAPTION, lines=1) for line in caption.splitlines())
        axes[0].set_ylabel("\n".join(lines), fontsize=9, parse_math=False)
        if lesion is not None and lesion.any() and not lesion.all():
            for axis in axes[:3]:
                axis.contour(lesion, levels=[0.5], colors=_OUTLINE, linewidths=1.0)
    if any(lesion is not None and lesion.any() for lesion in lesions):
        note += " The line is the outline of the lesion mask."
    figure.supxlabel(note, x=0.01, ha="left", fontsize=9)
    return figure


def _cells(panel: Panels) -> list[_Cell]:
    side = panel.pixels.shape[0]
    patch = side // panel.mask.shape[0]
    entropy, sigma, mask = (to_pixels(x, side) for x in (panel.entropy, panel.sigma, panel.mask))
    no_noise = "" if panel.sigma.any() else "no noise is added"
    masked = f"{100 * panel.mask.mean():.0f} % masked"
    cells = [
        _Cell("Image\nevaluation view", np.broadcast_to(panel.pixels, (side, side, 3))),
        _Cell(f"Entropy H\nof {patch}x{patch} pixels", entropy, "viridis", "nats"),
        _Cell("Noise $\\sigma$\nstandard deviation", sigma, "magma", _UNIT, no_noise),
        _Cell("Corrupted input\nshown clipped to 0-255", to_display(panel.corrupted)),
        _Cell("Masked patches M\nyellow: masked, scored", mask, _MASKED, note=masked),
    ]
    if panel.reconstruction is not None and panel.squared_error is not None:
        error, scored = panel.squared_error, panel.mask.any()
        mean = f"mean {np.nanmean(error):.3f}" if scored else "none scored"
        cells += [
            _Cell("Reconstruction\nshown clipped to 0-255", to_display(panel.reconstruction)),
            _Cell("Squared error\non masked patches", error, "inferno", _SQUARED, mean),
        ]
    return cells


def _draw_column(figure: Figure, axes: Sequence[Axes], cells: Sequence[_Cell]) -> None:
    """Draws the pictures of a column on one scale, and its colour bar if it has a unit."""
    *pictures, below = axes
    title, unit = cells[0].title, cells[0].unit
    values = np.concatenate([cell.values[np.isfinite(cell.values)] for cell in cells])
    is_error = unit == _SQUARED  # a few outliers would darken the rest
    highest = float(np.percentile(values, 99 if is_error else 100)) if values.size else 0.0
    for axis, cell in zip(pictures, cells, strict=True):
        axis.set(xticks=[], yticks=[], box_aspect=1, facecolor="#b8b8b8")
        image = axis.imshow(cell.values, cmap=cell.colors, vmin=0, vmax=highest or 1.0)
        if cell.note:
            axis.text(0.03, 0.03, cell.note, fontsize=9, transform=axis.transAxes, bbox=_BOX)
    pictures[0].set_title(title, fontsize=11, linespacing=1.25)
    if not unit or not highest:
        below.set_axis_off()
        return
    extend = "max" if is_error else "neither"
    bar = figure.colorbar(image, cax=below, orientation="horizontal", extend=extend)
    bar.set_label(unit, fontsize=9)
    bar.ax.tick_params(labelsize=8)
