"""Writes the pages: fills templates, which escape all that they are given."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from egmae_jax.core.files import write_atomically
from egmae_jax.report import content
from egmae_jax.report.formats import interval, number, p_value
from egmae_jax.run.saved_run import SavedRun


def write_report(workdir: Path, out: Path, *, data_dir: Path | None = None) -> None:
    """Writes the page of a run that has been evaluated.

    Args:
        workdir: of the run.
        out: the HTML file.
        data_dir: where the images are now, if not where the run found them. Without them the page
            has no pictures and says so.

    Raises:
        RunError: the run has not been evaluated.
        DamagedFileError: a file of the workdir cannot be read.
    """
    run = content.Content(SavedRun(workdir), data_dir)
    _write(out, "run.html.j2", run=run, title=run.results["dataset"]["title"])


def write_comparison(workdirs: Sequence[Path], out: Path) -> None:
    """Writes a page that compares several runs: results, differences and tests, configs.

    Args:
        workdirs: of runs that have been evaluated; two or more.
        out: the HTML file.

    Raises:
        RunError: a run has not been evaluated, or is given twice.
        DamagedFileError: a file of a workdir cannot be read.
    """
    comparison = content.compare(workdirs)
    _write(out, "comparison.html.j2", comparison=comparison, title=f"{len(workdirs)} runs")


def environment() -> jinja2.Environment:
    """The pages' templates: they escape all that they are given, and fail of what is not given."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("egmae_jax.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"number": number, "interval": interval, "p_value": p_value}
    return found


def _write(out: Path, template: str, **context: Any) -> None:
    html = environment().get_template(template).render(METRICS=content.METRICS, **context)
    write_atomically(out, html.encode("utf-8", "backslashreplace"))
