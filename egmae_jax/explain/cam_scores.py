"""Scores of Grad-CAM heat maps against lesion masks, their means, and the table of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egmae_jax.core import console
from egmae_jax.core.numbers import number
from egmae_jax.explain import localization
from egmae_jax.explain.gradcam import Layer

SCORES = ("heat_in_mask", "pointing_game", "area_share")


def score(heat: np.ndarray, mask: np.ndarray | None) -> dict[str, Any]:
    """Scores the heat map of one image against the mask of its lesion.

    Args:
        heat: heat map, float [H, W], at least 0.
        mask: lesion mask, bool [H, W]; None if the image has no usable mask.

    Returns:
        Scores by name: 'lesion', whether the mask shows a lesion, or None without a mask; 'heat',
        whether any heat is above 0; and each of SCORES, None without a lesion or without heat.
    """
    scores: dict[str, Any] = {"lesion": None if mask is None else bool(mask.any())}
    scores |= {"heat": bool(heat.any()), **dict.fromkeys(SCORES)}
    if mask is not None and mask.any() and heat.any():
        scores |= {
            "heat_in_mask": round(localization.heat_in_mask(heat, mask), 6),
            "pointing_game": round(localization.pointing_game(heat, mask), 6),
            "area_share": round(localization.area_share(mask), 6),
        }
    return scores


def summarize(files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Averages the scores over images with a lesion, and counts the images left out by reason.

    Args:
        files: rows of gradcam.json, one per image.
    """
    unusable = [f"{row['file']}: {row['mask_error']}" for row in files if row["mask_error"]]
    scored = [row for row in files if row["heat_in_mask"] is not None]
    return {
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
            "unusable_masks": unusable,
        },
    }


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means = {s: float(np.mean([row[s] for row in rows])) if rows else None for s in SCORES}
    return {"images": len(rows), **means}


def show(content: Mapping[str, Any], out: Path) -> None:
    """Prints a summary of gradcam.json.

    Args:
        content: content of gradcam.json.
        out: folder that holds it.
    """
    layer = Layer(content["layer"], tuple(content["grid"]), content["part"])
    console.terminal.print(
        f"\n{content['model']}, branch {content['branch']!r}, round {content['round']}: "
        f"{content['images']} test images,\n"
        f"{content['right']} of them classified correctly, explained at\n{layer}",
        soft_wrap=True,
    )
    if content["masks"] is None:
        console.terminal.print("The data set has no lesion masks, so no scores are computed.")
    else:
        _show_masks(content["masks"])
    console.terminal.print(f"The pictures and gradcam.json are in {out}", soft_wrap=True)


def _show_masks(masks: Mapping[str, Any]) -> None:
    groups = {"all": masks["all"], **masks["by_class"]}
    groups |= {"predicted right": masks["right"], "predicted wrong": masks["wrong"]}
    table = console.table([""], ["Images", "Heat in lesion", "Pointing game", "Lesion's area"])
    for name, row in groups.items():
        if row["images"]:
            table.add_row(name, str(row["images"]), *(number(row[s]) for s in SCORES))
    console.terminal.print(table)
    left_out = masks["left_out"]
    counts = {**left_out, "unusable_masks": len(left_out["unusable_masks"])}
    reasons = [f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n]
    console.terminal.print(
        "Heat that ignores a lesion scores, on average, the lesion's share of the area."
    )
    console.terminal.print(f"Left out: {', '.join(reasons) or 'none'}.")
