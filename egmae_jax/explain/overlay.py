"""Pictures of heat maps: overlays over the image, and contact sheets of several images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import cv2
import matplotlib
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egmae_jax.explain.fonts import use_fallback_fonts, wrap
from egmae_jax.explain.gradcam import Layer

COLORMAP = "inferno"  # perceptually uniform: equal steps of heat look equal
_OPACITY = 0.75  # opacity of the hottest pixels
_OUTLINE = (64, 224, 255)  # absent from grey images and from the colormap
_RIGHT, _WRONG = "#1b7837", "#b2182b"
_PANEL = 2.0  # side of a panel, inches
_HEAD = 0.55  # height above the panels, inches
_DPI = 140
_LINE = 26  # columns per line of text beside a panel


def overlay(image: np.ndarray, heat: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Draws a heat map over its image; hotter pixels are more opaque.

    Args:
        image: uint8 [H, W, 3 or 1].
        heat: heat map, float [H, W], in [0, 1].
        mask: mask to outline, bool [H, W]; None: no outline.

    Returns:
        Picture, uint8 [H, W, 3]; equal to the image where the heat is 0.
    """
    heat = np.clip(heat, 0.0, 1.0)[..., None]
    # The lowest third of the colormap is nearly black and would only darken the image.
    colors = matplotlib.colormaps[COLORMAP](0.3 + 0.7 * heat[..., 0])[..., :3] * 255
    share = _OPACITY * heat
    mixed = np.rint((1 - share) * image + share * colors).astype(np.uint8)
    if mask is not None:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(mixed, contours, -1, _OUTLINE, thickness=1)
    return mixed


def write_overlay(
    path: Path, image: np.ndarray, heat: np.ndarray, mask: np.ndarray | None = None, *, text: str
) -> None:
    """Writes the `overlay` as a PNG.

    Args:
        path: file to write; its folder is created.
        image: uint8 [H, W, 3 or 1].
        heat: heat map, float [H, W], in [0, 1].
        mask: mask to outline, bool [H, W]; None: no outline.
        text: description in the metadata of the PNG.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("Description", text)
    PIL.Image.fromarray(overlay(image, heat, mask)).save(path, format="PNG", pnginfo=info)


def picture_name(name: str) -> str:
    """Returns the name of the PNG that shows the file `name`; adds '.png' if it is missing."""
    return name if name.lower().endswith(".png") else f"{name}.png"


class Example(NamedTuple):
    """A test image in its evaluation view, and its lesion mask."""

    file: str  # relative to the data folder
    label: str  # name of the true class
    pixels: np.ndarray  # uint8 [S, S, 3 or 1]
    mask: np.ndarray | None  # lesion mask, bool [S, S]; None without a usable mask
    mask_error: str = ""  # why the mask is unusable; '' if it is usable or absent


class ExplainedExample(NamedTuple):
    """A test image with the model's prediction and its Grad-CAM heat map."""

    example: Example
    layer: Layer  # layer of the heat map
    heat: np.ndarray  # heat map, float32 [S, S], in [0, 1]
    predicted: str  # name of the predicted class
    probability: float  # probability of the predicted class


@use_fallback_fonts()
def contact_sheet(rows: Sequence[ExplainedExample], path: Path, *, note: str) -> None:
    """Writes a PNG with one row per image: image, heat map, both, and the model's prediction.

    Args:
        rows: images, from top to bottom.
        path: file to write; its folder is created.
        note: text above the images, such as the layer of the heat maps.
    """
    widths = [1.0, 1.0, 1.0, 0.95]
    height = _PANEL * len(rows) + _HEAD
    figure = Figure(figsize=(_PANEL * sum(widths), height), dpi=_DPI)
    figure.text(0.01, 1 - 0.05 / height, note, fontsize=9, va="top", parse_math=False)
    edges = {"left": 0.005, "right": 0.995, "bottom": 0.005, "top": 1 - _HEAD / height}
    spaces = {"width_ratios": widths, "wspace": 0.03, "hspace": 0.03}
    grid = figure.subplots(len(rows), 4, squeeze=False, gridspec_kw={**edges, **spaces})
    for panels, row in zip(grid, rows, strict=True):
        _draw_row(panels, row)
    both = "both, and lesion" if any(row.example.mask is not None for row in rows) else "both"
    for axes, name in zip(grid[0], ("image", "heat", both), strict=False):
        axes.set_title(name, fontsize=9, pad=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_row(panels: np.ndarray, row: ExplainedExample) -> None:
    file, true, pixels, mask, _ = row.example
    plain, heat, both, text = cast(Sequence[Axes], panels)
    for axes in (plain, heat, both, text):
        axes.set_axis_off()
    plain.imshow(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    heat.imshow(row.heat, cmap=COLORMAP, vmin=0, vmax=1)
    both.imshow(overlay(pixels, row.heat))
    if mask is not None and mask.any() and not mask.all():
        for axes in (heat, both):
            color = [[x / 255 for x in _OUTLINE]]
            axes.contour(mask, levels=[0.5], colors=color, linewidths=1.2)
    entries = [
        (Path(file).stem, "black"),
        (f"true: {true}", "black"),
        (
            f"predicted: {row.predicted} ({row.probability:.0%})",
            _RIGHT if true == row.predicted else _WRONG,
        ),
    ]
    if not row.heat.any():
        entries.append(("no heat: no region raises the score", "dimgrey"))
    y = 0.92
    for entry, ink in entries:
        for line in wrap(entry, _LINE, lines=3).splitlines():
            text.text(0.05, y, line, color=ink, fontsize=7.5, va="top", parse_math=False)
            y -= 0.08
        y -= 0.04
