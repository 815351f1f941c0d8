"""Table of results for a paper or a spreadsheet, with notes on how they were obtained."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from egmae_jax.core import markup
from egmae_jax.core.files import require_output, write_atomically
from egmae_jax.core.numbers import number
from egmae_jax.evaluation.metrics import PAPER_METRICS, TITLES
from egmae_jax.report import notes
from egmae_jax.report.comparison import Comparison
from egmae_jax.report.content import Content
from egmae_jax.report.render import environment

# Jinja's default delimiters would be hard to read among the braces of LaTeX.
_LATEX_SYNTAX: Mapping[str, Any] = {
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}


def write_table(workdirs: Sequence[Path], out: Path) -> None:
    """Writes a table of accuracy, precision, recall, F1 and AUC of every classifier.

    Args:
        workdirs: folders of runs that have been evaluated.
        out: file to write; its suffix selects LaTeX with booktabs (.tex), Markdown (.md) or
            comma-separated values (.csv).

    Raises:
        AccessError: `out` has another suffix or cannot be written.
        RunError: a run has not been evaluated, or a folder appears twice.
        DamagedFileError: a file of a workdir cannot be read.
    """
    require_output(out, SUFFIXES)
    text = _WRITERS[out.suffix.lower()](Comparison(workdirs), out)
    write_atomically(out, text.encode("utf-8", "backslashreplace"))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats rows with equal keys as comma-separated values, with the keys as header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _latex(comparison: Comparison, out: Path) -> str:
    template = environment(markup.latex, **_LATEX_SYNTAX).get_template("table.tex.j2")
    label = re.sub(r"[^A-Za-z0-9]+", "-", out.stem).strip("-") or "results"
    return template.render(_context(comparison, intervals=True), label=label)


def _markdown(comparison: Comparison, out: Path) -> str:
    template = environment(markup.markdown).get_template("table.md.j2")
    return template.render(_context(comparison, intervals=False))


def _csv(comparison: Comparison, out: Path) -> str:
    """Formats one row per classifier, with unrounded numbers and the facts of its run."""
    rows = []
    for run_name, run in comparison.runs.items():
        for classifier in run.summary:
            row = {
                "run": run_name,
                "classifier": classifier["name"],
                "model": classifier["model"],
                "started_from": notes.origin(run, classifier["name"]),
            }
            for metric, interval in classifier["intervals"].items():
                values = classifier["metrics"][metric]
                row |= {metric: values["mean"], f"{metric}_std": values["std"]}
                row |= {f"{metric}_low": interval.low, f"{metric}_high": interval.high}
            rows.append(row | _columns(run))
    return csv_text(rows)


_WRITERS: Mapping[str, Callable[[Comparison, Path], str]] = {
    ".tex": _latex,
    ".md": _markdown,
    ".csv": _csv,
}
SUFFIXES = tuple(_WRITERS)


def _best(comparison: Comparison) -> dict[str, dict[str, str]]:
    """Returns the highest printed mean of each metric, for each run.

    The maximum is taken over all runs if they have the same test images, otherwise within each run.
    It is left out if there is only one classifier.
    """
    compared = (
        [[run] for run in comparison.runs] if comparison.incomparable else [[*comparison.runs]]
    )
    best: dict[str, dict[str, str]] = {}
    for names in compared:
        rows = [row["metrics"] for name in names for row in comparison.runs[name].summary]
        highest = {m: number(max(row[m]["mean"] for row in rows)) for m in PAPER_METRICS}
        best |= dict.fromkeys(names, highest if len(rows) > 1 else {})
    return best


def _context(comparison: Comparison, *, intervals: bool) -> dict[str, Any]:
    """Returns the variables of the templates; notes that all runs share are in `notes`."""
    best, runs = _best(comparison), comparison.runs
    facts = {name: notes.facts(run) for name, run in runs.items()}
    common = [x for x in next(iter(facts.values())) if all(x in own for own in facts.values())]
    own = {name: [x for x in sentences if x not in common] for name, sentences in facts.items()}
    if len({run.title for run in runs.values()}) > 1:
        own = {name: [f"{runs[name].title}.", *sentences] for name, sentences in own.items()}
    reading = _reading(bool(comparison.incomparable), any(best.values()), intervals)
    return {
        "caption": _caption(list(runs.values())),
        "metrics": {metric: TITLES[metric] for metric in PAPER_METRICS},
        "rows": {name: run.summary for name, run in runs.items()},
        "best": best,
        "notes": [*common, *reading],
        "own_notes": {name: sentences for name, sentences in own.items() if sentences},
    }


def _columns(run: Content) -> dict[str, Any]:
    """Returns columns of facts about a run for a spreadsheet."""
    return {
        "dataset": run.title,
        "test_images": sum(run.tested_counts.values()),
        "test_groups": run.resampled.evidence.groups,
        "classes": len(run.classes),
        "split_protocol": run.results["dataset"]["protocol"],
        "rounds": len(run.results["rounds"]),
        "rounds_kind": run.config["rounds"]["kind"],
        "averages": "macro",
        "pretraining_saw_test": str(run.results["pretraining_saw_test"]).lower(),
    }


def _caption(runs: Sequence[Content]) -> str:
    titles = {run.title for run in runs}
    data = titles.pop() if len(titles) == 1 else "several data sets"
    rounds = {f"{len(run.results['rounds'])} {run.config['rounds']['kind']}" for run in runs}
    if all(len(run.results["rounds"]) == 1 for run in runs):
        over = "one round"
    else:
        over = rounds.pop() if len(rounds) == 1 else "the rounds of a run"
        over = f"mean ± standard deviation over {over}"
    return f"Results on the test images of {data}, {over}."


def _reading(incomparable: bool, has_best: bool, intervals: bool) -> list[str]:
    """Returns sentences that explain the columns and marks of the table."""
    sentences = ["Precision, recall and F1 are macro averages; AUC is one-vs-rest, macro."]
    if intervals:
        sentences.append(
            "In brackets, 95 % intervals by a bootstrap of the groups of test images (patients, "
            "lesions, near-duplicates); they do not account for other seeds."
        )
    if has_best:
        bold = "The highest mean of each column is bold"
        if incomparable:
            bold += " within a run, as not all runs were tested on the same images"
        sentences.append(f"{bold}; this is not a test of differences.")
    return sentences
