"""Pictures of heat: over its image, and sheets that show several images at a glance."""

import hashlib
import math
import os
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

from egmae_jax.explain.lettering import fonts_of_all_letters, wrap

COLORMAP = "inferno"  # perceptually uniform: equal steps of heat look equal
_OUTLINE = (64, 224, 255)  # a colour that neither grey images nor the colormap have
_RIGHT, _WRONG = "#1b7837", "#b2182b"
_PANEL = 2.0  # inches, a panel's side
_DPI = 140
_LINE = 26  # columns of text beside a panel


def overlay(
    image: np.ndarray,
    heat: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    colormap: str = COLORMAP,
    opacity: float = 0.75,
) -> np.ndarray:
    """Heat over its image. The hotter, the less transparent: where nothing is, the image stays.

    Args:
        image: uint8 [H, W, 3 or 1].
        heat: float [H, W], in [0, 1].
        mask: bool [H, W], whose outline is drawn.
        colormap: any of matplotlib's.
        opacity: of the greatest heat.

    Returns:
        uint8 [H, W, 3].
    """
    heat = np.clip(heat, 0.0, 1.0)[..., None]
    # The lower third of perceptually uniform maps is nearly black, and would only darken.
    colors = matplotlib.colormaps[colormap](0.3 + 0.7 * heat[..., 0])[..., :3] * 255
    share = opacity * heat
    mixed = np.rint((1 - share) * image + share * colors).astype(np.uint8)
    return mixed if mask is None else outline(mixed, mask)


def write_overlay(
    path: Path,
    image: np.ndarray,
    heat: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    text: str = "",
) -> None:
    """Writes the `overlay` as a PNG, `text` as its Description; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = PIL.PngImagePlugin.PngInfo()
    if text:
        about.add_text("Description", text)
    PIL.Image.fromarray(overlay(image, heat, mask)).save(path, format="PNG", pnginfo=about)


def picture_name(name: str) -> str:
    """The name of the PNG of a file of that name; of one that is too long for it, the beginning.

    File systems take 255 bytes; images have names of that length, to which '.png' is added.
    """
    picture = name if name.lower().endswith(".png") else f"{name}.png"
    if len(os.fsencode(picture)) <= 255:
        return picture
    encoded = os.fsencode(name)
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[:230].decode(errors='ignore')}~{digest}.png"


def outline(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of the image, uint8 [H, W, 3], with the mask's border pixels coloured."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    drawn = np.ascontiguousarray(image).copy()
    cv2.drawContours(drawn, contours, -1, _OUTLINE, thickness=1)
    return drawn


class Row(NamedTuple):
    """An image of a contact sheet."""

    image: np.ndarray  # uint8 [H, W, 3 or 1]
    heat: np.ndarray  # float [H, W], in [0, 1]
    mask: np.ndarray | None  # bool [H, W]
    title: str
    true: str  # class
    predicted: str
    probability: float  # of the predicted class
    note: str = ""


@fonts_of_all_letters()
def contact_sheet(
    rows: Sequence[Row], path: Path, *, colormap: str = COLORMAP, note: str = ""
) -> None:
    """Writes a PNG: image, heat, overlay with the mask's outline, and what the model says.

    More than four images stand in two columns. `note` stands above: of which layer the heat is.
    """
    columns = 2 if len(rows) > 4 else 1
    lines = math.ceil(len(rows) / columns)
    widths = [1.0, 1.0, 1.0, 0.95] * columns
    head = 0.55 if note else 0.3  # inches
    height = _PANEL * lines + head
    figure = Figure(figsize=(_PANEL * sum(widths), height), dpi=_DPI)
    figure.text(0.01, 1 - 0.05 / height, note, fontsize=9, va="top", parse_math=False)
    grid = figure.subplots(
        lines,
        len(widths),
        squeeze=False,
        gridspec_kw={
            **{"width_ratios": widths, "wspace": 0.03, "hspace": 0.03},
            **{"left": 0.005, "right": 0.995, "bottom": 0.005},
            "top": 1 - head / height,
        },
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for k, row in enumerate(rows):
        line, column = k % lines, k // lines
        _draw_row(grid[line, 4 * column : 4 * column + 4], row, colormap)
        if line == 0:
            both = "both, and lesion" if any(row.mask is not None for row in rows) else "both"
            for axes, name in zip(grid[0, 4 * column :], ("image", "heat", both), strict=False):
                axes.set_title(name, fontsize=9, pad=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_row(panels: np.ndarray, row: Row, colormap: str) -> None:
    plain, heat, both, text = cast(Sequence[Axes], panels)
    image = np.broadcast_to(row.image, (*row.image.shape[:2], 3))
    plain.imshow(image)
    heat.imshow(row.heat, cmap=colormap, vmin=0, vmax=1)
    both.imshow(overlay(image, row.heat, colormap=colormap))
    if row.mask is not None and row.mask.any() and not row.mask.all():
        for axes in (heat, both):
            color = [[x / 255 for x in _OUTLINE]]
            axes.contour(row.mask, levels=[0.5], colors=color, linewidths=1.2)
    right = row.true == row.predicted
    said = f"{row.predicted} ({row.probability:.0%})"
    entries = [
        (row.title, "black"),
        (f"true: {row.true}", "black"),
        (f"says: {said}", _RIGHT if right else _WRONG),
        *((line, "dimgrey") for line in row.note.splitlines()),
    ]
    y = 0.92
    for entry, ink in entries:
        for line in wrap(entry, _LINE, lines=3).splitlines():
            text.text(0.05, y, line, color=ink, fontsize=7.5, va="top", parse_math=False)
            y -= 0.08
        y -= 0.04
