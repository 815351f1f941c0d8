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

_OUTLINE = "#00e5ff"  # of lesions
_LONGEST_CAPTION = 30  # characters of a line
_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}


class Panels(NamedTuple):
    """One image as pre-training sees it; numpy arrays."""

    pixels: np.ndarray  # uint8 [H, W, 3 or 1]
    entropy: np.ndarray  # H: [H/P, W/P], nats
    sigma: np.ndarray  # of the noise: [H/P, W/P], normalised units; 0 where none is added
    corrupted: np.ndarray  # [H, W, 3], normalised units
    mask: np.ndarray  # M: [H/P, W/P], 1 = masked
    reconstruction: np.ndarray | None  # [H, W, 3], normalised units
    squared_error: np.ndarray | None  # [H, W], mean over channels; NaN where it is not scored


class Scales(NamedTuple):
    """Highest values of the colour bars, shared by all images of a sheet."""

    entropy: float
    sigma: float
    error: float


def compute_panels(
    reconstruct: Callable[[np.ndarray, jax.Array], pretrain.Reconstruction],
    pixels: np.ndarray,
    key: jax.Array,
) -> Panels:
    """Computes the panels of one image.

    Args:
        reconstruct: `pretrain.reconstruct` with params, model and config bound.
        pixels: uint8 [H, W, 3 or 1], the evaluation view.
        key: key of the corruption.
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


def common_scales(panels: Sequence[Panels]) -> Scales:
    """Scales of a sheet: its highest entropy and sigma, the 99th percentile of its errors."""
    errors = [x.squared_error for x in panels if x.squared_error is not None]
    scored = np.concatenate([x[np.isfinite(x)] for x in errors]) if errors else np.zeros(0)
    return Scales(
        entropy=max(float(x.entropy.max()) for x in panels) or 1.0,
        sigma=max(float(x.sigma.max()) for x in panels) or 1.0,
        error=float(np.percentile(scored, 99)) if scored.size else 1.0,
    )


def to_display(normalized: np.ndarray) -> np.ndarray:
    """Turns normalised values [..., 3] into uint8 [..., 3], clipped to 0 ... 255."""
    values = (normalized * np.array(augment.STD) + np.array(augment.MEAN)) * 255
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def to_pixels(patch_values: np.ndarray, side: int) -> np.ndarray:
    """Gives every pixel its patch's value: [h, w] -> [side, side]."""
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
    """Draws a row of panels for each image and a colour bar below each column that has a scale.

    Args:
        panels: one or more images; all with a reconstruction or all without.
        captions: name and class of each image.
        scales: scales of the colour bars; None: those of these images.
        lesions: bool [H, W] of each image, whose outlines are drawn; None for one without.
        note: text below the figure.
    """
    scales = scales or common_scales(panels)
    lesions = lesions or [None] * len(panels)
    titles = _titles(panels[0])
    rows = len(panels)
    inches = (0.5 + 2.1 * len(titles), 1.5 + 2.1 * rows)
    figure = Figure(figsize=inches, dpi=110, layout="constrained")
    ratios = [1.0] * rows + [0.05]
    grid = figure.subplots(rows + 1, len(titles), squeeze=False, height_ratios=ratios)
    bars: dict[int, tuple[Any, str, str]] = {}
    for axes, panel, caption, lesion in zip(grid[:-1], panels, captions, lesions, strict=True):
        for axis in axes:
            axis.set(xticks=[], yticks=[], box_aspect=1)
        lines = map(_shorten, caption.splitlines())
        axes[0].set_ylabel("\n".join(lines), fontsize=9, parse_math=False)
        bars |= _draw_row(axes, panel, scales, lesion)
    for column, title in enumerate(titles):
        grid[0, column].set_title(title, fontsize=11, linespacing=1.25)
        grid[-1, column].set_axis_off()
    for column, (image, label, extend) in bars.items():
        cax = grid[-1, column]
        cax.set_axis_on()
        bar = figure.colorbar(image, cax=cax, orientation="horizontal", extend=extend)
        bar.set_label(label, fontsize=9)
        bar.ax.tick_params(labelsize=8)
    if any(lesion is not None and lesion.any() for lesion in lesions):
        note = f"{note} The line is the lesion's outline, from its mask.".strip()
    figure.supxlabel(note, x=0.01, ha="left", fontsize=9)
    return figure


def _titles(panel: Panels) -> list[str]:
    patch = panel.pixels.shape[0] // panel.mask.shape[0]
    titles = [
        "Image\nevaluation view",
        f"Entropy H\nof {patch}x{patch} pixels",
        "Noise $\\sigma$\nstandard deviation",
        "Corrupted input\nshown clipped to 0-255",
        "Masked patches M\nyellow: masked, scored",
    ]
    if panel.reconstruction is not None:
        titles += ["Reconstruction\nshown clipped to 0-255", "Squared error\non masked patches"]
    return titles


def _draw_row(
    axes: Sequence[Axes], panel: Panels, scales: Scales, lesion: np.ndarray | None
) -> dict[int, tuple[Any, str, str]]:
    """Draws an image's panels; returns (image, unit, extend) of each column with a colour bar."""
    side = panel.pixels.shape[0]
    extent = (-0.5, side - 0.5, side - 0.5, -0.5)  # patches over the pixels they hold
    noise = bool(panel.sigma.any())
    axes[0].imshow(panel.pixels.squeeze(), cmap="gray", vmin=0, vmax=255)
    entropy = axes[1].imshow(
        panel.entropy, cmap="viridis", vmin=0, vmax=scales.entropy, extent=extent
    )
    bars = {1: (entropy, "nats", "neither")}
    if noise:
        sigma = axes[2].imshow(panel.sigma, cmap="magma", vmin=0, vmax=scales.sigma, extent=extent)
        bars[2] = (sigma, "normalised units", "neither")
    else:
        middle: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes[2].transAxes}
        axes[2].text(0.5, 0.5, "no noise is added", **middle)
    axes[3].imshow(to_display(panel.corrupted))
    colors = matplotlib.colors.ListedColormap(["#30343c", "#f2c14e"])
    axes[4].imshow(panel.mask, cmap=colors, vmin=0, vmax=1, extent=extent)
    _label(axes[4], f"{100 * panel.mask.mean():.0f} % masked")
    if panel.reconstruction is not None and panel.squared_error is not None:
        axes[5].imshow(to_display(panel.reconstruction))
        axes[6].set_facecolor("#b8b8b8")
        error = axes[6].imshow(panel.squared_error, cmap="inferno", vmin=0, vmax=scales.error)
        scored = panel.mask.any()
        _label(axes[6], f"mean {np.nanmean(panel.squared_error):.3f}" if scored else "none scored")
        bars[6] = (error, "normalised units squared", "max")
    if lesion is not None and lesion.any() and not lesion.all():
        for axis in axes[:3] if noise else axes[:2]:
            axis.contour(lesion, levels=[0.5], colors=_OUTLINE, linewidths=1.0)
    return bars


def _label(axis: Axes, text: str) -> None:
    axis.text(0.03, 0.03, text, fontsize=9, transform=axis.transAxes, bbox=_BOX)


def _shorten(caption: str) -> str:
    if len(caption) <= _LONGEST_CAPTION:
        return caption
    half = (_LONGEST_CAPTION - 1) // 2
    return f"{caption[:half]}…{caption[-half:]}"
