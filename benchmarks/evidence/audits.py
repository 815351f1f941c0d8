"""Audits of the data sets: docs/evidence/audits.json and the table of docs/howto/datasets.md."""

from pathlib import Path
from typing import Any

from benchmarks.evidence import plan
from benchmarks.evidence.record import FOLDER
from egmae_jax.core.files import write_json
from egmae_jax.core.numbers import number
from egmae_jax.data.audit import audit
from egmae_jax.run import config_files, images

FILE = FOLDER / "audits.json"
_ACROSS = ("pairs_across_classes", "pairs_across_official_parts")
_CONFOUNDERS = ("size", "mode", "corners", "brightness")


def write(data: Path) -> None:
    """Audits the data sets below a folder and writes docs/evidence/audits.json."""
    rows = {}
    for name, source in plan.DATA.items():
        config = config_files.load(source.recipe)
        fields = dict(source.fields) | {"data.dir": str(data / source.folder)}
        config.update_from_flattened_dict(fields)
        prepared = images.prepare_images(config, images.list_images(config), on_error="skip")
        rows[name] = _summary(audit(prepared))
    write_json(FILE, rows)


def _summary(audited: dict[str, Any]) -> dict[str, Any]:
    duplicates, confounders = audited["near_duplicates"], audited["confounders"]
    return {
        "images": audited["images"],
        "extra_copies": audited["identical_pixels"]["extra_copies"],
        **{key: duplicates[key] for key in ("pairs", *_ACROSS)},
        "groups": audited["groups"]["number"],
        **{key: round(confounders[key], 5) for key in ("chance", "threshold", *_CONFOUNDERS)},
    }


def rows(audited: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the table; balanced accuracies above the audit's threshold are bold."""
    counts = [
        "images",
        "identical copies",
        "near-duplicate pairs",
        "of two classes",
        "of two parts",
    ]
    table = [["data set", *counts, "groups", "chance", *_CONFOUNDERS]]
    for name, row in audited.items():
        cells = [str(row[x]) for x in ("images", "extra_copies", "pairs", *_ACROSS, "groups")]
        for key in ("chance", *_CONFOUNDERS):
            text = number(row[key])
            cells.append(f"**{text}**" if row[key] > row["threshold"] else text)
        table.append([plan.DATA[name].title, *cells])
    return table
