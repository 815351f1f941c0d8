"""Writes the tables of docs/evidence/*.json into the pages, between two comments.

<!-- evidence: controls -->
(the tables)
<!-- end of evidence -->
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import calibration, coverage
from benchmarks.evidence import audits, demo, figures, plan, speed
from benchmarks.evidence.record import FOLDER, path_of
from benchmarks.table import markdown
from egmae_jax.core.files import read_json
from egmae_jax.core.numbers import format_mean_std, number
from egmae_jax.sweep.variants import line

PAGES = (
    FOLDER.parents[1] / "README.md",
    FOLDER.parent / "results.md",
    FOLDER.parent / "howto/datasets.md",
)
# Tables of files of another kind: audits of the data sets, the demo's scores, speed, simulations.
OTHERS = {
    "audits": audits.rows,
    "demo": demo.rows,
    "speed": speed.step_rows,
    "pipeline": speed.pipeline_rows,
    "coverage": lambda record: coverage.table(record["rows"]),
    "calibration": lambda record: calibration.table(record["rows"]),
}
_SECTION = re.compile(r"(<!-- evidence: (\w+) -->\n).*?(<!-- end of evidence -->)", re.DOTALL)
_LABELS = {
    "scratch": "no pre-training",
    "no_pretraining": "no pre-training",
    "no_pretraining_longer": "no pre-training, equal passes",
}

Record = dict[str, Any]


def write_pages() -> None:
    """Writes the tables into all pages, and the figures that they show."""
    for name in plan.EXPERIMENTS:
        if records := load(name):
            figures.draw(name, {x: _compared(record) for x, record in records.items()}, _LABELS)
    for path in PAGES:
        text = path.read_text()
        if (written := fill(text)) != text:
            path.write_text(written)


def fill(page: str) -> str:
    """Returns a page with the tables of its experiments."""
    return _SECTION.sub(lambda found: found[1] + tables(found[2]) + found[3], page)


def tables(name: str) -> str:
    """Returns the Markdown of an experiment: scores of all variants, differences, commands.

    For a name in OTHERS, it is the table that the file of that name gives.
    """
    records = load(name)
    if not records:
        return "\nNot run yet.\n\n"
    if name in OTHERS:
        return "\n" + markdown(OTHERS[name](records[name])) + "\n\n"
    figure = f"![AUC of all variants, by data set](evidence/{name}.svg)"
    parts = [_scores(records), _contrasts(name, records), figure, _about(records)]
    return "\n" + "\n\n".join(part for part in parts if part) + "\n\n"


def load(name: str) -> dict[str, Any]:
    """Returns what is recorded of an experiment, by data set; a file of OTHERS, by its name."""
    if name in OTHERS:
        paths = {name: FOLDER / f"{name}.json"}
    else:
        paths = {x: path_of(name, x) for x in plan.EXPERIMENTS[name].datasets}
    return {dataset: read_json(path) for dataset, path in paths.items() if path.exists()}


def _scores(records: dict[str, Record]) -> str:
    """A row for each variant, in its best setting; a pair of columns for each data set."""
    compared = {dataset: _compared(record) for dataset, record in records.items()}
    names = list(dict.fromkeys(name for rows in compared.values() for name in rows))
    titles = [
        f"{plan.DATA[dataset].title}: {x}" for dataset in records for x in ("accuracy", "AUC")
    ]
    rows = [["variant", *titles]]
    for name in names:
        cells = []
        for dataset in records:
            row = compared[dataset].get(name)
            for metric in ("accuracy", "auc"):
                values = [x["test"][metric] for x in row["rounds"]] if row else []
                cells.append(
                    format_mean_std(np.mean(values), np.std(values, ddof=1)) if values else ""
                )
            if row and line(row["name"]) == name and records[dataset]["tuned"]:
                cells[-1] += f" ({row['name'].rpartition('/')[2]})"
        rows.append([_LABELS.get(name, f"`{name}`"), *cells])
    return markdown(rows)


def _compared(record: Record) -> dict[str, Record]:
    """Returns the rows by variant; if settings are chosen, those of the best validation AUC."""
    rows = {row["name"]: row for row in record["variants"]}
    if not record["tuned"]:
        return rows
    variants = dict.fromkeys(line(name) for name in rows)  # in the sweep's order
    by_score = sorted(
        rows, key=lambda x: np.mean([y["validation"]["auc"] for y in rows[x]["rounds"]])
    )
    return variants | {line(name): rows[name] for name in by_score}


def _contrasts(name: str, records: dict[str, Record]) -> str:
    """A row for each contrast: differences of AUC, by data set and over all folds."""
    experiment = plan.EXPERIMENTS[name]
    summed = ["all folds"] if experiment.in_folds else []
    rows = [["AUC, difference", *(plan.DATA[x].title for x in records), *summed]]
    for contrast in experiment.contrasts:
        cells, folds = [], []
        for record in records.values():
            if not experiment.in_folds:
                difference = record["differences"].get(contrast.title)
                cells.append(_interval(**difference["auc"]) if difference else "")
            elif differences := _differences(contrast, _compared(record)):
                cells.append(_signed(np.mean(differences)) + _spread(differences))
                folds += differences
            else:
                cells.append("")
        if any(cells):
            over_all = [over_folds(folds, len(experiment.contrasts))] if folds else []
            rows.append([contrast.title, *cells, *over_all])
    return markdown(rows) if len(rows) > 1 else ""


def _differences(contrast: plan.Contrast, rows: dict[str, Record]) -> list[float]:
    """Returns the difference of each fold; an empty list if a variant is missing."""
    if not {*contrast.first, *contrast.second} <= rows.keys():
        return []
    means = [
        np.mean([[x["test"]["auc"] for x in rows[name]["rounds"]] for name in names], axis=0)
        for names in (contrast.first, contrast.second)
    ]
    return [float(x) for x in means[0] - means[1]]


def over_folds(differences: Sequence[float], comparisons: int) -> str:
    """Student's interval of the mean difference over folds, each with its own pre-training.

    All intervals of an experiment hold together 95 % of the time (Bonferroni).
    """
    mean, error = np.mean(differences), stats.sem(differences)
    spread = error * stats.t.ppf(1 - 0.025 / comparisons, len(differences) - 1)
    return _interval(mean, mean - spread, mean + spread)


def _interval(mean: float, low: float, high: float) -> str:
    return f"{_signed(mean)} ({_signed(low)} to {_signed(high)})"


def _spread(values: Sequence[float]) -> str:
    return f" ± {number(np.std(values, ddof=1))}"


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "") + number(value)


def _about(records: dict[str, Record]) -> str:
    """The commands, and what was run with them."""
    sentences, commands = [], []
    for dataset, record in records.items():
        groups = sum(x["test_groups"] for x in record["variants"][0]["rounds"])
        changes = (row["changes"] for row in record["variants"])
        protocols = dict.fromkeys(x.get("data.protocol", record["protocol"]) for x in changes)
        state = "" if record["complete"] else "; not all variants have been run yet"
        sentences.append(
            f"{plan.DATA[dataset].title}: {record['images']} images, tested in {groups} groups, "
            f"protocol{'s' * (len(protocols) > 1)} {' and '.join(map(repr, protocols))}{state}."
        )
        commands.append(record["command"])
    return " ".join(sentences) + "\n\n```text\n" + "\n".join(commands) + "\n```"
