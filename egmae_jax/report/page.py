"""Writes the HTML pages: the report of a run and the comparison of several."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup

from egmae_jax.core.errors import UserError
from egmae_jax.core.files import REEVALUATE, DamagedFileError, read_json, write_atomically
from egmae_jax.evaluation import calibration
from egmae_jax.evaluation.metrics import TITLES
from egmae_jax.explain.cam_study import ExplainedExample
from egmae_jax.explain.overlay import overlay
from egmae_jax.report import figures, notes, pictures, published
from egmae_jax.report.comparison import Comparison
from egmae_jax.report.content import Content
from egmae_jax.report.render import environment
from egmae_jax.run import logs

_CASES = 3  # number of test images of each kind with Grad-CAM
_RECONSTRUCTED = 4  # number of reconstructed validation images

T = TypeVar("T")
logger = logging.getLogger(__name__)


def write_report(workdir: Path, out: Path, *, data_dir: Path | None = None) -> None:
    """Writes the HTML report of a run.

    Args:
        workdir: folder of a run that has been evaluated.
        out: HTML file to write.
        data_dir: folder of the images, if they were moved since the run; None: the folder in the
            run's config. Without the images, the page has a sentence in place of the pictures.

    Raises:
        RunError: the run has not been evaluated.
        DamagedFileError: a file of the workdir cannot be read.
    """
    run = Content(workdir, data_dir)
    classes = list(enumerate(run.classes))
    command = f"egmae report --workdir={workdir}" + (f" --data_dir={data_dir}" if data_dir else "")
    _write(
        out,
        "run.html.j2",
        run=run,
        title=run.title,
        warnings=notes.warnings(run),
        published=published.find_table(run.results["dataset"]["name"], len(run.classes)),
        curves=[
            [figures.class_curves(curve, run.rounds, run.classifiers, *x) for x in classes]
            for curve in (figures.ROC, figures.PRECISION_RECALL)
        ],
        calibration_limits=calibration.explain_rounds(run.results["rounds"], run.classifiers),
        reliability=_reliability(run),
        learning_curves=_learning_curves(run.saved.paths.metrics),
        cases=_cases(run),
        heat_scale=pictures.heat_scale(),
        embed=pictures.embed,
        overlay=overlay,
        reconstructions=_reconstructions(run),
        audit=read_json(run.saved.paths.audit, REEVALUATE),
        config_text=json.dumps(run.config, indent=2, ensure_ascii=False),
        command=command,
    )


def write_comparison(workdirs: Sequence[Path], out: Path) -> None:
    """Writes an HTML page that compares runs: results, tests of differences, and configs.

    Args:
        workdirs: folders of two or more runs that have been evaluated.
        out: HTML file to write.

    Raises:
        RunError: a run has not been evaluated, or a folder appears twice.
        DamagedFileError: a file of a workdir cannot be read.
    """
    comparison = Comparison(workdirs)
    warnings = {name: notes.warnings(run) for name, run in comparison.runs.items()}
    title = f"{len(workdirs)} runs"
    _write(out, "comparison.html.j2", comparison=comparison, warnings=warnings, title=title)


def _write(out: Path, template: str, **context: Any) -> None:
    html = environment().get_template(template).render(METRICS=TITLES, **context)
    write_atomically(out, html.encode("utf-8", "backslashreplace"))


def _reliability(run: Content) -> list[Markup]:
    """Draws a reliability diagram per classifier."""
    labels = np.concatenate([r.labels for r in run.rounds])
    after = [run.probabilities(index, calibrated=True) for index in run.saved.rounds]
    return [
        figures.reliability_diagram(
            labels,
            np.concatenate([r.probabilities[k] for r in run.rounds]),
            np.concatenate([calibrated[k] for calibrated in after]),
            name,
        )
        for k, name in enumerate(run.classifiers)
    ]


def _learning_curves(metrics: Path) -> list[Markup]:
    """Draws loss and validation scores of each stage over its epochs, from metrics.jsonl."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for _, row in logs.read(metrics):
        stages.setdefault(row["stage"], []).append(row)
    losses = {"loss": "training", "validation_loss": "validation"}
    scores = {"validation_auc": "AUC", "validation_accuracy": "accuracy"}
    curves = []
    for stage, rows in stages.items():
        curves += [
            figures.learning_curve(rows, losses, f"{stage}: loss", "loss"),
            figures.learning_curve(rows, scores, f"{stage}: validation", "AUC, accuracy"),
        ]
    return [figure for figure in curves if figure is not None]


def _cases(run: Content) -> dict[str, list[ExplainedExample]] | str:
    """Returns test images with Grad-CAM by kind, or the reason why they cannot be drawn."""
    branch = run.saved.branch()
    predictions = run.predictions[0][branch.name]
    return _try_drawing(
        "Grad-CAM pictures",
        lambda: pictures.explain_cases(run.saved, branch, predictions, run.data_dir, _CASES),
    )


def _reconstructions(run: Content) -> pictures.Sheet | str | None:
    """Draws reconstructed validation images.

    Returns:
        The sheet, or the reason why it cannot be drawn; None if no branch is pre-trained.
    """
    if not any(branch.is_mae for branch in run.saved.branches):
        return None
    return _try_drawing(
        "reconstructions",
        lambda: pictures.reconstructions(run.saved.workdir, run.data_dir, _RECONSTRUCTED),
    )


def _try_drawing(title: str, draw: Callable[[], T]) -> T | str:
    """Returns the result of `draw`, or the reason why the images cannot be read."""
    try:
        return draw()
    except DamagedFileError:
        raise
    except UserError as error:
        logger.warning("The report has no %s: %s", title, error)
        return str(error).replace("--config.data.dir", "--data_dir")  # the flag of `egmae report`
