"""Maps of what entropy-guided pre-training does to an image, side by side."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egmae_jax.explain.lettering import fonts_of_all_letters
from egmae_jax.method import augment
from egmae_jax.training import pretrain

_PANEL = 2.0  # inches of a side
_OUTLINE = "#00e5ff"  # of lesions
_LONGEST_CAPTION = 30  # characters of a line


class Panels(NamedTuple):
    """One image as pre-training sees it, numpy arrays on the host."""

    pixels: np.ndarray  # uint8 [H, W, 3 or 1]
    entropy: np.ndarray  # H: [H/P, W/P], nats
    sigma: np.ndarray  # [H/P, W/P], of the noise in normalised units; 0 where none is added
    corrupted: np.ndarray  # [H, W, 3], normalised units
    mask: np.ndarray  # M: [H/P, W/P], 1 = masked
    reconstruction: np.ndarray | None  # [H, W, 3], normalised units
    squared_error: np.ndarray | None  # [H, W], mean over channels; NaN where it is not scored


class Scales(NamedTuple):
    """The highest values of the colour bars, which all images of a sheet share."""

    entropy: float
    sigma: float
    error: float


def compute_panels(
    reconstruct: Callable[[np.ndarray, jax.Array], pretrain.Reconstruction],
    pixels: np.ndarray,
    key: jax.Array,
) -> Panels:
    """The panels of one image.

    Args:
        reconstruct: `pretrain.reconstruct` with params, model and config bound.
        pixels: uint8 [H, W, 3 or 1], the evaluation view.
        key: of the corruption.
    """
    found = jax.device_get(reconstruct(pixels[None], key))
    mask = found.corruption.mask[0]
    error = None
    if found.image is not None:
        error = np.square(found.image[0] - found.target[0]).mean(axis=-1)
        error = np.where(to_pixels(mask, error.shape[0]) > 0, error, np.nan)
    return Panels(
        pixels=pixels,
        entropy=found.entropy[0],
        sigma=found.corruption.sigma[0],
        corrupted=found.corruption.image[0],
        mask=mask,
        reconstruction=None if found.image is None else found.image[0],
        squared_error=error,
    )


def common_scales(panels: Sequence[Panels]) -> Scales:
    """The scales of a sheet: its highest entropy and sigma, the 99th percentile of its errors."""
    errors = [x.squared_error for x in panels if x.squared_error is not None]
    scored = np.concatenate([x[np.isfinite(x)] for x in errors]) if errors else np.zeros(0)
    return Scales(
        entropy=max(float(x.entropy.max()) for x in panels) or 1.0,
        sigma=max(float(x.sigma.max()) for x in panels) or 1.0,
        error=float(np.percentile(scored, 99)) if scored.size else 1.0,
    )


def to_display(normalized: np.ndarray) -> np.ndarray:
    """Normalised [..., 3] -> uint8 [..., 3]: what lies outside of 0 ... 255 is clipped."""
    values = (normalized * np.array(augment.STD) + np.array(augment.MEAN)) * 255
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def to_pixels(patch_values: np.ndarray, side: int) -> np.ndarray:
    """[h, w] -> [side, side]: every pixel gets its patch's value."""
    patch = side // patch_values.shape[0]
    return patch_values.repeat(patch, axis=0).repeat(patch, axis=1)


@fonts_of_all_letters()
def draw_sheet(
    panels: Sequence[Panels],
    captions: Sequence[str],
    *,
    scales: Scales | None = None,
    lesions: Sequence[np.ndarray | None] | None = None,
    note: str = "",
) -> Figure:
    """A row of panels for each image, a colour bar below each column that has a scale.

    Args:
        panels: of one or more images; all with a reconstruction or all without.
        captions: an image's name and class, one each.
        scales: of the colour bars; by default those of these images.
        lesions: bool [H, W] of each image, which are outlined; None for one without.
        note: below the figure.
    """
    scales = scales or common_scales(panels)
    lesions = lesions or [None] * len(panels)
    titles = ["Image", "Entropy H", "Noise $\\sigma$", "Corrupted input", "Masked patches M"]
    if panels[0].reconstruction is not None:
        titles += ["Reconstruction", "Squared error"]
    rows, columns = len(panels), len(titles)
    # Inches: captions at the left, titles above, colour bars and the note below.
    left, top, bottom, gap = 0.5, 0.62, 1.0, 0.1
    width = left + columns * (_PANEL + gap)
    height = top + rows * (_PANEL + gap) + bottom
    figure = Figure(figsize=(width, height), dpi=110)
    bars: dict[int, tuple[Any, str, str]] = {}
    for row, (panel, caption, lesion) in enumerate(zip(panels, captions, lesions, strict=True)):
        axes = []
        for column in range(columns):
            x, y = left + column * (_PANEL + gap), height - top - (row + 1) * (_PANEL + gap) + gap
            box = (x / width, y / height, _PANEL / width, _PANEL / height)
            axes.append(figure.add_axes(box, xticks=[], yticks=[]))
        lines = map(_shorten, caption.splitlines())
        axes[0].set_ylabel("\n".join(lines), fontsize=9, parse_math=False)
        bars |= _draw_row(axes, panel, scales, lesion)
        if row == 0:
            for axis, title in zip(axes, titles, strict=True):
                axis.set_title(_title(title, panel), fontsize=11, linespacing=1.25)
    for column, (shown, label, extend) in bars.items():
        x = left + column * (_PANEL + gap)
        box = ((x + 0.1) / width, (bottom - 0.16) / height, (_PANEL - 0.2) / width, 0.1 / height)
        bar = figure.colorbar(
            shown, cax=figure.add_axes(box), orientation="horizontal", extend=extend
        )
        bar.set_label(label, fontsize=9)
        bar.ax.tick_params(labelsize=8)
    notes = [note] if note else []
    if any(lesion is not None and lesion.any() for lesion in lesions):
        notes.append("The line is the lesion's outline, from its mask.")
    figure.text(left / width, 0.12 / height, " ".join(notes), fontsize=9, va="bottom")
    return figure


def _draw_row(
    axes: Sequence[Axes], panel: Panels, scales: Scales, lesion: np.ndarray | None
) -> dict[int, tuple[Any, str, str]]:
    """Draws an image's panels; returns {column: (what is shown, its unit, extend)} of scales."""
    side = panel.pixels.shape[0]
    extent = (-0.5, side - 0.5, side - 0.5, -0.5)  # patches over the pixels they hold
    noise = bool(panel.sigma.any())
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
    axes[0].imshow(panel.pixels.squeeze(), **grey)
    maps = {
        1: axes[1].imshow(panel.entropy, cmap="viridis", vmin=0, vmax=scales.entropy, extent=extent)
    }
    bars = {1: (maps[1], "nats", "neither")}
    if noise:
        shown = axes[2].imshow(panel.sigma, cmap="magma", vmin=0, vmax=scales.sigma, extent=extent)
        bars[2] = (shown, "normalised units", "neither")
    else:
        axes[2].text(
            0.5, 0.5, "no noise is added", ha="center", va="center", transform=axes[2].transAxes
        )
    axes[3].imshow(to_display(panel.corrupted))
    two = matplotlib.colors.ListedColormap(["#30343c", "#f2c14e"])
    axes[4].imshow(panel.mask, cmap=two, vmin=0, vmax=1, extent=extent)
    axes[4].text(
        *(0.03, 0.03, f"{100 * panel.mask.mean():.0f} % masked"),
        fontsize=9,
        transform=axes[4].transAxes,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )
    if panel.reconstruction is not None and panel.squared_error is not None:
        axes[5].imshow(to_display(panel.reconstruction))
        axes[6].set_facecolor("#b8b8b8")
        error = axes[6].imshow(panel.squared_error, cmap="inferno", vmin=0, vmax=scales.error)
        mean = f"mean {np.nanmean(panel.squared_error):.3f}" if panel.mask.any() else "none scored"
        axes[6].text(
            *(0.03, 0.03, mean),
            fontsize=9,
            transform=axes[6].transAxes,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
        bars[6] = (error, "normalised units squared", "max")
    if lesion is not None and lesion.any() and not lesion.all():
        for axis in axes[:3] if noise else axes[:2]:
            axis.contour(lesion, levels=[0.5], colors=_OUTLINE, linewidths=1.0)
    return bars


def _title(title: str, panel: Panels) -> str:
    patch = panel.pixels.shape[0] // panel.mask.shape[0]
    below = {
        "Image": "evaluation view",
        "Entropy H": f"of {patch}x{patch} pixels",
        "Noise $\\sigma$": "standard deviation",
        "Corrupted input": "shown clipped to 0-255",
        "Masked patches M": "yellow: masked, scored",
        "Reconstruction": "shown clipped to 0-255",
        "Squared error": "on masked patches",
    }
    return f"{title}\n{below[title]}"


def _shorten(caption: str) -> str:
    if len(caption) <= _LONGEST_CAPTION:
        return caption
    half = (_LONGEST_CAPTION - 1) // 2
    return f"{caption[:half]}…{caption[-half:]}"
