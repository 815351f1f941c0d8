"""Distribution of entropy and noise over a whole data set: noise.json, and its table."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from egmae_jax.core import console
from egmae_jax.core.numbers import format_mean_std
from egmae_jax.data.datasets import DataError
from egmae_jax.explain.lesions import (
    measure_image,
    measure_lesion,
    summarize_images,
    summarize_lesions,
)
from egmae_jax.explain.source import Source

logger = logging.getLogger(__name__)


def measure(source: Source) -> dict[str, Any]:
    """Measures entropy and noise of all images of a data set.

    Returns:
        The content of noise.json.
    """
    prepared, config = source.prepared, source.config
    images: dict[str, list[dict[str, float]]] = {name: [] for name in prepared.classes}
    lesions: dict[str, list[dict[str, Any]]] = {name: [] for name in prepared.classes}
    without_lesion, left_out = 0, []
    for index, file in enumerate(prepared.files):
        panel = source.panels(index, reconstruct=False)
        label = prepared.classes[prepared.labels[index]]
        images[label].append(measure_image(panel))
        try:
            lesion = source.lesion(index)
        except DataError as error:
            left_out.append(f"{file}: {error}")
            continue
        if lesion is not None and lesion.any():
            row = {"file": file, "label": label, "group": int(prepared.groups[index])}
            lesions[label].append(row | measure_lesion(panel, lesion))
        else:
            without_lesion += 1
    if left_out:
        logger.warning("%d lesion masks are left out: %s", len(left_out), "; ".join(left_out[:5]))
    result: dict[str, Any] = {
        "dataset": prepared.title,
        "view": f"evaluation view, {config.data.image_size} pixels",
        "entropy": config.entropy.to_dict(),
        "corruption": config.corruption.to_dict(),
        "seed": config.seed,
        "images": _summarize(summarize_images, images),
    }
    if any(lesions.values()):
        result["lesions"] = {
            "ring_pixels": config.corruption.patch_size,
            "images_without_lesion": without_lesion,
            "images_left_out": left_out,
            **_summarize(summarize_lesions, lesions),
            "rows": [row for class_rows in lesions.values() for row in class_rows],
        }
    return result


def _summarize(
    summarize: Callable[[Sequence[Any]], dict[str, Any]], by_class: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Summarizes the rows of all images, and those of each class that has any."""
    every = [row for class_rows in by_class.values() for row in class_rows]
    summaries = {name: summarize(rows) for name, rows in by_class.items() if rows}
    return {"all": summarize(every), "by_class": summaries}


def show(result: Mapping[str, Any]) -> None:
    """Prints the content of noise.json as tables."""
    table = console.table(["All images"], ["n", "H (nats)", "noise variance", "masked"])
    for name, row in _all_and_classes(result["images"]):
        cells = (_cell(row[key]) for key in ("entropy", "noise_variance", "masked_share"))
        table.add_row(name, str(row["images"]), *cells)
    console.terminal.print(table)
    lesions = result.get("lesions")
    if lesions is None:
        console.terminal.print("No lesion masks: lesions are not measured.")
        return
    titles = ["n", "H inside", "H ring", "H outside", "noise/area", "p"]
    table = console.table(["Lesions"], titles)
    for name, row in _all_and_classes(lesions):
        ratio = row["noise_enrichment"]
        ratio = row["mask_enrichment"] if ratio["mean"] is None else ratio
        p = "" if ratio["p"] is None else f"{ratio['p']:.2g}"
        cells = (_cell(row["entropy"][region]) for region in ("inside", "ring", "outside"))
        table.add_row(name, str(row["images"]), *cells, _cell(ratio), p)
    console.terminal.print(table)
    console.terminal.print(
        "noise/area: the lesion's share of the noise variance (of the masked patches if the "
        "corruption adds no noise), divided by its share of the area; below 1, lesions get less "
        "noise than the rest. p: Wilcoxon signed-rank test over groups of related images."
    )


def _all_and_classes(summaries: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [("all", summaries["all"]), *summaries["by_class"].items()]


def _cell(value: Mapping[str, float | None]) -> str:
    return format_mean_std(value["mean"], value["std"], digits=2)
