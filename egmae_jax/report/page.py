"""Writes the HTML pages: reports of a run and its evaluations, and comparisons of several."""

import json
import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup

from egmae_jax.core.errors import UserError
from egmae_jax.core.files import REEVALUATE, DamagedFileError, read_json, write_atomically
from egmae_jax.evaluation import calibration
from egmae_jax.evaluation.metrics import PAPER_METRICS, TITLES
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.explain.overlay import ExplainedExample, overlay
from egmae_jax.report import (
    checklist,
    figures,
    mistakes,
    neighbours,
    notes,
    operating,
    pictures,
    published,
)
from egmae_jax.report.comparison import Comparison
from egmae_jax.report.content import Content, ExternalContent
from egmae_jax.report.render import environment
from egmae_jax.run import epoch_selection, logs
from egmae_jax.run.tables import describe_labels

_CASES = 3  # number of test images of each kind with Grad-CAM
_WRONG, _NEIGHBOURS = 6, 3  # wrong test images, and training images shown beside each
_MISTAKES = 48  # largest number of wrong test images by loss; each takes about 5 kB
_RECONSTRUCTED = 4  # number of reconstructed validation images

T = TypeVar("T")
logger = logging.getLogger(__name__)


def write_report(
    workdir: Path, out: Path, *, data_dir: Path | None = None, prevalence: Sequence[str] = ()
) -> None:
    """Writes the HTML report of a run.

    Args:
        workdir: folder of a run that has been evaluated.
        out: HTML file to write.
        data_dir: folder of the images, if they were moved since the run; None: the folder in the
            run's config. Without the images, the page has a sentence in place of the pictures.
        prevalence: prevalence of classes, for predictive values; see `operating.read_prevalence`.

    Raises:
        RunError: the run has not been evaluated.
        ConfigError: `prevalence` is wrong.
        DamagedFileError: a file of the workdir cannot be read.
    """
    run = Content(workdir, data_dir)
    stated = operating.read_prevalence(prevalence, run.classes)
    command = f"egmae report --workdir={workdir}" + (f" --data_dir={data_dir}" if data_dir else "")
    command += "".join(f" {shlex.quote(f'--prevalence={value}')}" for value in prevalence)
    _write(
        out,
        "run.html.j2",
        run=run,
        title=run.title,
        warnings=notes.warnings(run),
        labels=describe_labels(run.results),
        balance=notes.balance(run),
        selected=epoch_selection.describe(run.saved.config.finetune.select),
        published=published.find_table(run.results["dataset"]["name"], len(run.classes)),
        curves=_curves(run),
        calibration_limits=calibration.explain_rounds(run.results["rounds"], run.classifiers),
        reliability=_reliability(run),
        prevalence=stated,
        operating=operating.tables(run, stated),
        decisions=operating.decision_curves(run),
        checklists=checklist.fill(run),
        learning_curves=_learning_curves(run.saved.paths.metrics),
        cases=_cases(run),
        feature_map=_feature_map(run),
        alike=_alike(run),
        mistakes=_try_drawing("worst mistakes", lambda: mistakes.worst(run, _MISTAKES)),
        heat_scale=pictures.heat_scale(),
        embed=pictures.embed,
        overlay=overlay,
        reconstructions=_reconstructions(run),
        audit=read_json(run.saved.paths.audit, REEVALUATE),
        config_text=json.dumps(run.config, indent=2, ensure_ascii=False),
        command=command,
    )


def write_external_report(
    workdir: Path,
    results: dict[str, Any],
    predictions: list[dict[str, Predictions]],
    out: Path,
) -> None:
    """Writes the HTML report of a run's evaluation on images from elsewhere.

    Args:
        workdir: folder of the run.
        results: results of the evaluation, laid out like those of a run.
        predictions: uncalibrated predictions of the branches by name, for each round.
        out: HTML file to write.

    Raises:
        RunError: the run has not been evaluated.
        DamagedFileError: a file of the workdir cannot be read.
    """
    run = ExternalContent(workdir, results, predictions)
    is_complete = not results["dataset"]["absent_classes"]
    _write(
        out,
        "external.html.j2",
        run=run,
        title=run.title,
        own={"title": run.own["dataset"]["title"], "summary": run.own["summary"]},
        warnings=notes.external_warnings(run),
        curves=_curves(run),
        calibration_limits=calibration.explain_rounds(run.results["rounds"], run.classifiers),
        reliability=_reliability(run),
        operating=operating.tables(run, {}) if is_complete else {},
        decisions=operating.decision_curves(run) if is_complete else [],
        prevalence={},
        PAPER_METRICS=PAPER_METRICS,
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


def _curves(run: Content) -> list[list[Markup]]:
    """Draws ROC and precision-recall curves of each class that occurs."""
    present = np.unique(np.concatenate([r.labels for r in run.rounds]))
    return [
        [
            figures.class_curves(curve, run.rounds, run.classifiers, label, run.classes[label])
            for label in present
        ]
        for curve in (figures.ROC, figures.PRECISION_RECALL)
    ]


def _reliability(run: Content) -> list[Markup]:
    """Draws a reliability diagram per classifier."""
    labels = np.concatenate([r.labels for r in run.rounds])
    return [
        figures.reliability_diagram(
            labels,
            np.concatenate([r.probabilities[k] for r in run.rounds]),
            np.concatenate([r.probabilities[k] for r in run.calibrated]),
            name,
        )
        for k, name in enumerate(run.classifiers)
    ]


def _learning_curves(metrics: Path) -> list[Markup]:
    """Draws loss and validation scores of each stage over its epochs, from metrics.jsonl."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for _, row in logs.read(metrics):
        stages.setdefault(row["stage"], []).append(row)
    losses = {
        "loss": "training",
        "validation_loss": "validation",
        "ema_validation_loss": "validation, averaged weights",
    }
    scores = {
        "validation_auc": "AUC",
        "validation_accuracy": "accuracy",
        "validation_f1": "F1",
        "validation_balanced_accuracy": "balanced accuracy",
        "ema_validation_auc": "AUC, averaged weights",
        "validation_probe_accuracy": "linear probe",
        "validation_knn_accuracy": "nearest neighbours",
    }
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


def _feature_map(run: Content) -> Markup | str | None:
    """Draws a map of the test images, or returns the reason why there is none.

    None if the test images are too few.
    """
    predictions = run.predictions[0][run.saved.branch().name]

    def draw() -> Markup | None:
        test = neighbours.read(run.saved).part("test")
        chosen = np.linspace(0, len(test.ids) - 1, min(len(test.ids), neighbours.MAX_POINTS))
        chosen = np.unique(chosen.astype(int))
        points = neighbours.project(test.features[chosen])
        wrong = predictions.probabilities.argmax(axis=1) != predictions.labels
        if points is None:
            return None
        return figures.feature_map(points, test.labels[chosen], wrong[chosen], run.classes)

    return _try_drawing("map of test images", draw)


def _alike(run: Content) -> list[neighbours.Case] | str:
    """Returns wrong test images with similar training images, or why they cannot be shown."""
    predictions = run.predictions[0][run.saved.branch().name]
    return _try_drawing(
        "training images like wrong ones",
        lambda: neighbours.wrong_cases(
            run.saved,
            neighbours.read(run.saved),
            predictions,
            run.data_dir,
            most=_WRONG,
            neighbours=_NEIGHBOURS,
        ),
    )


def _reconstructions(run: Content) -> pictures.Sheet | str | None:
    """Draws reconstructed validation images.

    Returns:
        The sheet, or the reason why it cannot be drawn; None if no branch is pre-trained.
    """
    if not any(branch.is_mae for branch in run.saved.branches):
        return None
    if "reconstruction_loss" not in run.results["pretraining"][0]:
        return "pretrain.epochs is 0, and the weights have no decoder that fits."
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
        return str(error)
