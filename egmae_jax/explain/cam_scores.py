"""How much of the heat of test images lies in their lesions: scores, their means, and a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text

from egmae_jax.explain import localization
from egmae_jax.explain.gradcam import Layer

SCORES = ("heat_in_mask", "pointing_game", "area_share", "pointing_game_chance")


def score(heat: np.ndarray, mask: np.ndarray | None, tolerance: float) -> dict[str, Any]:
    """Scores the heat of one image.

    Args:
        heat: float [H, W].
        mask: bool [H, W] of the lesion; None: the image has no mask that can be used.
        tolerance: tolerance of the pointing game, in pixels.

    Returns:
        'lesion', whether there is one, None without a mask; 'heat', whether there is any; and
        SCORES, None without a lesion or heat.
    """
    lesion = None if mask is None else bool(mask.any())
    values: tuple[Any, ...] = (None,) * len(SCORES)
    if mask is not None and lesion and heat.any():
        values = (
            localization.heat_in_mask(heat, mask),
            localization.pointing_game(heat, mask, tolerance=tolerance),
            localization.area_share(mask),
            localization.area_share(localization.widen(mask, tolerance)),
        )
        values = tuple(round(float(x), 6) for x in values)
    scores = dict(zip(SCORES, values, strict=True))
    return {"lesion": lesion, "heat": bool(heat.any()), **scores}


def note(row: Mapping[str, Any]) -> str:
    """The scores of an image in words, for a contact sheet."""
    if row["heat_in_mask"] is not None:
        return (
            f"heat in lesion: {row['heat_in_mask']:.0%}\n"
            f"lesion's area: {row['area_share']:.0%}\n"
            f"hottest pixel: {'inside' if row['pointing_game'] >= 0.5 else 'outside'}"
        )
    if not row["heat"]:
        return "no heat: nothing here\nraises the score"
    return "no mask that can be used" if row["lesion"] is None else "no lesion in view"


def summarize(
    files: Sequence[Mapping[str, Any]], unusable: Sequence[str], tolerance: float
) -> dict[str, Any]:
    """Means of the scores over images with a lesion, and how many images are left out.

    Args:
        files: rows of gradcam.json.
        unusable: a sentence for each image whose mask cannot be used.
        tolerance: tolerance of the pointing game, in pixels.
    """
    scored = [row for row in files if row["heat_in_mask"] is not None]
    return {
        "tolerance": tolerance,
        "all": _means(scored),
        "right": _means([row for row in scored if row["predicted"] == row["true"]]),
        "wrong": _means([row for row in scored if row["predicted"] != row["true"]]),
        "by_class": {
            name: _means([row for row in scored if row["true"] == name])
            for name in sorted({row["true"] for row in scored})
        },
        "left_out": {
            "without_lesion": sum(row["lesion"] is False for row in files),
            "without_heat": sum(bool(row["lesion"]) and not row["heat"] for row in files),
            "without_mask": sum(row["lesion"] is None for row in files) - len(unusable),
            "unusable_masks": list(unusable),
        },
    }


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means = {s: float(np.mean([row[s] for row in rows])) if rows else None for s in SCORES}
    return {"images": len(rows), **means}


def show(content: Mapping[str, Any], out: Path) -> None:
    """Prints the content of gradcam.json, at most 80 columns wide but for the folder."""
    terminal = rich.console.Console(highlight=False, emoji=False)
    layer = Layer(content["layer"], tuple(content["grid"]), content["part"])
    terminal.print(
        f"\n{content['model']}, branch {content['branch']!r}, round {content['round']}: "
        f"{content['images']} test images,\n{content['right']} of them right, explained at\n"
        f"{layer}",
        markup=False,
        soft_wrap=True,
    )
    terminal.print(f"Explained: {content['explained']}.", markup=False)
    if content["masks"] is None:
        terminal.print("The data set has no masks of lesions: nothing to score.")
    else:
        _show_masks(content["masks"], terminal)
    terminal.print(f"Pictures and gradcam.json are in {out}", markup=False, soft_wrap=True)


def _show_masks(masks: Mapping[str, Any], terminal: rich.console.Console) -> None:
    groups = {"all": masks["all"], **masks["by_class"]}
    groups |= {"predicted right": masks["right"], "predicted wrong": masks["wrong"]}
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
    table.add_column("", overflow="fold")
    for title in ("Images", "Heat in lesion", "Pointing game", "Lesion's area"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in groups.items():
        if row["images"]:
            cells = (f"{row[s]:.3f}".lstrip("0") for s in SCORES[:3])
            table.add_row(rich.text.Text(name), str(row["images"]), *cells)
    terminal.print(table)
    left_out = masks["left_out"]
    counts = {**left_out, "unusable_masks": len(left_out["unusable_masks"])}
    reasons = [f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n]
    terminal.print("Heat that ignores the lesions scores their area.")
    terminal.print(f"Left out: {', '.join(reasons) or 'none'}.", markup=False)
