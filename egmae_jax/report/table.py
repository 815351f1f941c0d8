"""The results as a table for a paper or a spreadsheet, with what a reader must know of them."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from egmae_jax.core import markup
from egmae_jax.core.files import REEVALUATE, damaged, require_output, write_atomically
from egmae_jax.report import content
from egmae_jax.report.content import Comparison, Content
from egmae_jax.report.formats import number

_COLUMNS = {metric: content.METRICS[metric] for metric in content.WITH_INTERVALS}
_MOST_CLASSES = 10  # that a note names
_FUSIONS = {
    "mean": "the mean of the branches' class probabilities",
    "weighted": "a mean of the branches' class probabilities with weights fitted on validation "
    "images",
    "stacked": "a logistic regression on the branches' log-probabilities, fitted on validation "
    "images",
}
# By a LaTeX document's braces Jinja's own would not be seen.
_LATEX_SYNTAX: Mapping[str, Any] = {
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}


class _Cell(NamedTuple):
    """A metric of a classifier."""

    mean: float
    std: float | None  # None for a single round
    low: float  # of the mean's 95 % interval
    high: float
    best: bool = False


class _Row(NamedTuple):
    """A classifier."""

    name: str
    model: str  # '' for the ensemble
    origin: str  # what it started from; '' for the ensemble
    cells: Mapping[str, _Cell]


class _Group(NamedTuple):
    """A run."""

    name: str
    rows: Sequence[_Row]
    facts: Sequence[str]  # sentences
    columns: dict[str, Any]  # the same for a spreadsheet


def write_table(workdirs: Sequence[Path], out: Path) -> None:
    """Writes accuracy, precision, recall, F1 and AUC of every classifier.

    Args:
        workdirs: of runs that have been evaluated.
        out: the table, by its suffix LaTeX for booktabs (.tex), Markdown (.md) or comma-separated
            values (.csv).

    Raises:
        AccessError: of another suffix, or the file cannot be written.
        RunError: a run has not been evaluated, or is given twice.
        DamagedFileError: a file of a workdir cannot be read.
    """
    require_output(out, SUFFIXES)
    text = _WRITERS[out.suffix.lower()](content.compare(workdirs), out)
    write_atomically(out, text.encode("utf-8", "backslashreplace"))


def _latex(comparison: Comparison, out: Path) -> str:
    environment = _environment(markup.latex, **_LATEX_SYNTAX)
    label = re.sub(r"[^A-Za-z0-9]+", "-", out.stem).strip("-") or "results"
    return _filled(environment, "table.tex.j2", comparison, intervals=True, label=label)


def _markdown(comparison: Comparison, out: Path) -> str:
    return _filled(_environment(markup.markdown), "table.md.j2", comparison, intervals=False)


def _csv(comparison: Comparison, out: Path) -> str:
    """A row a classifier, numbers in full; what else is known of a run is repeated in its rows."""
    rows = []
    for group in _groups(comparison):
        for row in group.rows:
            cells: dict[str, Any] = {
                "run": group.name,
                "classifier": row.name,
                "model": row.model,
                "started_from": row.origin,
            }
            for metric, cell in row.cells.items():
                cells |= {
                    metric: cell.mean,
                    f"{metric}_std": cell.std,
                    f"{metric}_low": cell.low,
                    f"{metric}_high": cell.high,
                }
            rows.append(cells | group.columns)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


_WRITERS: Mapping[str, Callable[[Comparison, Path], str]] = {
    ".tex": _latex,
    ".md": _markdown,
    ".csv": _csv,
}
SUFFIXES = tuple(_WRITERS)


def _environment(escape: Callable[[str], str], **syntax: Any) -> jinja2.Environment:
    """Whose templates escape all that they are given, as Jinja by itself does for HTML alone."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("egmae_jax.report", "templates"),
        finalize=lambda value: escape(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **syntax,
    )
    environment.filters["number"] = number
    return environment


def _filled(
    environment: jinja2.Environment,
    template: str,
    comparison: Comparison,
    *,
    intervals: bool,
    **more: str,
) -> str:
    groups = _groups(comparison)
    common = [fact for fact in groups[0].facts if all(fact in group.facts for group in groups)]
    own = {group.name: [x for x in group.facts if x not in common] for group in groups}
    if len({group.columns["dataset"] for group in groups}) > 1:
        own = {group.name: [f"{group.columns['dataset']}.", *own[group.name]] for group in groups}
    return environment.get_template(template).render(
        caption=_caption(groups),
        titles=list(_COLUMNS.values()),
        groups=groups,
        notes=[*common, *_reading(groups, bool(comparison.incomparable), intervals)],
        own_notes={name: facts for name, facts in own.items() if facts},
        **more,
    )


# --- What the table holds -------------------------------------------------------------------------


def _groups(comparison: Comparison) -> list[_Group]:
    groups = []
    for name, run in comparison.runs:
        try:
            rows = [_row(run, row) for row in run.summary]
            groups.append(_Group(name, rows, _facts(run), _columns(run)))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = "a table cannot be made of it"
            raise damaged(run.run.paths.results, reason, error, REEVALUATE) from error
    if comparison.incomparable:
        return [marked for group in groups for marked in _with_best([group])]
    return _with_best(groups)


def _row(run: Content, row: Mapping[str, Any]) -> _Row:
    cells = {}
    for metric in _COLUMNS:
        mean, std = (row["metrics"][metric][key] for key in ("mean", "std"))
        low, high = row["intervals"][metric][-2:]
        cells[metric] = _Cell(float(mean), None if std is None else float(std), low, high)
    return _Row(row["name"], row["model"], _origin(run, row["name"]), cells)


def _with_best(groups: Sequence[_Group]) -> list[_Group]:
    """Marks the highest mean of each metric and what is printed like it, but none that is alone."""
    rows = [row for group in groups for row in group.rows]
    if len(rows) == 1:
        return list(groups)
    best = {metric: number(max(row.cells[metric].mean for row in rows)) for metric in _COLUMNS}

    def marked(row: _Row) -> _Row:
        cells = {m: c._replace(best=number(c.mean) == best[m]) for m, c in row.cells.items()}
        return row._replace(cells=cells)

    return [group._replace(rows=[marked(row) for row in group.rows]) for group in groups]


def _origin(run: Content, classifier: str) -> str:
    """What a branch started from; '' for the ensemble."""
    if classifier == "mae":
        parts = " and ".join(run.config["pretrain"]["splits"])
        return f"pre-training on the {parts} images"
    source = run.results["imagenet_weights"].get(classifier, "")
    return "random weights" if source == "none" else Path(source).name


def _columns(run: Content) -> dict[str, Any]:
    return {
        "dataset": run.results["dataset"]["title"],
        "test_images": sum(run.tested_counts.values()),
        "test_groups": run.evidence.groups,
        "classes": len(run.classes),
        "split_protocol": run.results["dataset"]["protocol"],
        "rounds": len(run.results["rounds"]),
        "rounds_kind": run.config["rounds"]["kind"],
        "averages": "macro",
        "pretraining_saw_test": str(bool(run.results["pretraining_saw_test"])).lower(),
    }


# --- What a reader must know ----------------------------------------------------------------------


def _caption(groups: Sequence[_Group]) -> str:
    titles = {group.columns["dataset"] for group in groups}
    data = titles.pop() if len(titles) == 1 else "several data sets"
    rounds = {(group.columns["rounds"], group.columns["rounds_kind"]) for group in groups}
    if {count for count, _ in rounds} == {1}:
        over = "one round"
    else:
        what = " ".join(map(str, rounds.pop())) if len(rounds) == 1 else "the rounds of a run"
        over = f"mean ± standard deviation over {what}"
    return f"Results on the test images of {data}, {over}."


def _facts(run: Content) -> list[str]:
    """Sentences on how a run's figures came to be."""
    results, counts = run.results, run.tested_counts
    each = ", ".join(f"{name} {count}" for name, count in counts.items())
    tested = f"{sum(counts.values())} test images"
    tested += f" ({each if len(counts) <= _MOST_CLASSES else f'{len(counts)} classes'})"
    tested += f" in {run.evidence.groups} groups"
    if run.config["rounds"]["kind"] == "folds":
        tested += f", each in the test part of one of {len(results['rounds'])} folds"
    unseen = results["pretraining"] and not results["pretraining_saw_test"]
    return [
        f"{tested}.",
        *_protocol(run),
        _rounds(run),
        *_networks(run),
        *(["Pre-training saw no test image."] if unseen else []),
        *run.warnings,
    ]


def _protocol(run: Content) -> list[str]:
    """Of the split; `Content.warnings` has one that leaks."""
    protocol = run.results["dataset"]["protocol"]
    if protocol == "grouped":
        return [
            "Grouped split (near-duplicates, and images of a patient or lesion where these are "
            "known, are in one part)."
        ]
    if protocol == "official":
        dropped = "left out" if run.config["data"]["drop_leaks"] else "kept"
        return [
            "Official split (the data set's own parts; training images in a group with test "
            f"images were {dropped})."
        ]
    return []


def _rounds(run: Content) -> str:
    seeds = [row["seed"] for row in run.results["rounds"]]
    if len(seeds) == 1:
        return f"One round (seed {seeds[0]}), so nothing is known of the spread over seeds."
    pretrained = bool(run.results["pretraining"])
    if run.config["rounds"]["kind"] == "folds":
        what = ", the folds of a cross-validation"
        what += ", each with a pre-training of its own" if pretrained else ""
    else:
        what = " on one split" + (" and one pre-training" if pretrained else "")
    rounds = f"{len(seeds)} rounds (seeds {seeds[0]} to {seeds[-1]})"
    return f"{rounds}{what}; deviations are the sample's (n - 1)."


def _networks(run: Content) -> list[str]:
    """What the classifiers' names mean; `Content.warnings` has those that started at random."""
    found = []
    for name, model in run.results["branches"].items():
        words = [name] if name == model else [name, "is", model]
        if (origin := _origin(run, name)) != "random weights":
            words += ["from", origin]
        if len(words) > 1:
            found.append(" ".join(words))
    if "ensemble" in run.classifiers:
        found.append(f"ensemble is {_FUSIONS[run.config['fusion']['kind']]}")
    return [f"{'; '.join(found)}."] if found else []


def _reading(groups: Sequence[_Group], apart: bool, intervals: bool) -> list[str]:
    """Sentences on what the figures are.

    Args:
        groups: of the table.
        apart: whether runs were tested on different images.
        intervals: whether the table has them.
    """
    found = ["Precision, recall and F1 are macro averages; AUC is one-vs-rest, macro."]
    if intervals:
        found.append(
            "In brackets, 95 % intervals by a bootstrap of the groups of test images (patients, "
            "lesions, near-duplicates); they say nothing of other seeds."
        )
    if any(cell.best for group in groups for row in group.rows for cell in row.cells.values()):
        bold = "The highest mean of each column is bold"
        if apart:
            bold += " within a run, as not all runs were tested on the same images"
        found.append(f"{bold}; that is no test of a difference.")
    return found
