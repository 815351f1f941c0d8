"""Figures of the report: ROC, precision-recall and learning curves; reliability diagrams."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn import metrics as sk

from egmae_jax.core.numbers import number
from egmae_jax.evaluation import calibration
from egmae_jax.evaluation.operating_points import NetBenefit
from egmae_jax.evaluation.significance import Round
from egmae_jax.explain.fonts import wrap
from egmae_jax.report.svg import FAINT, INK, new_figure, style, to_svg

_TITLE = 26  # columns per line of a title
_MARKERS = "o^sDvP*X"
_GRID = np.linspace(0, 1, 101)
THRESHOLDS = np.linspace(0.01, 0.99, 99)  # threshold probabilities of decision curves


def roc(truth: np.ndarray, scores: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, float]:
    """Computes the ROC curve of one class against the rest, and its area.

    Args:
        truth: whether each image belongs to the class, bool [N].
        scores: predicted probability of the class, float [N].
        grid: false positive rates from 0 to 1.

    Returns:
        Sensitivity at each rate of the grid, and the area under the exact curve.
    """
    false_positives, sensitivity, _ = sk.roc_curve(truth, scores)
    area = float(sk.roc_auc_score(truth, scores))
    return np.interp(grid, false_positives, sensitivity), area


def precision_recall(
    truth: np.ndarray, scores: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, float]:
    """Computes the precision-recall curve of one class against the rest, without interpolation.

    Args:
        truth: whether each image belongs to the class, bool [N].
        scores: predicted probability of the class, float [N].
        grid: recalls from 0 to 1.

    Returns:
        Precision at each recall of the grid, and the average precision, which is the area under the
        exact step curve.
    """
    precision, recall, _ = sk.precision_recall_curve(truth, scores)
    # At the highest threshold that reaches each recall; scikit-learn's point at recall 0 has none.
    steps = precision[::-1][np.searchsorted(recall[::-1], np.maximum(grid, 1e-9))]
    return steps, float(sk.average_precision_score(truth, scores))


class Curve(NamedTuple):
    """Kind of curve of one class against the rest."""

    points: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, float]]  # see `roc`
    xlabel: str
    ylabel: str
    alt: str  # alternative text, a template for the name of the class and the areas


ROC = Curve(roc, "1 - specificity", "sensitivity", "ROC curves of {} against the rest; area: {}.")
PRECISION_RECALL = Curve(
    precision_recall,
    "recall",
    "precision",
    "Precision over recall of {} against the rest; average precision: {}.",
)


def class_curves(
    curve: Curve, rounds: Sequence[Round], classifiers: Sequence[str], label: int, name: str
) -> Markup:
    """Draws the curve of each classifier for one class against the rest, as the mean over rounds.

    A dotted line shows the curve of random predictions.

    Args:
        curve: ROC or PRECISION_RECALL.
        rounds: test predictions of all classifiers, for each round.
        classifiers: names of the classifiers.
        label: index of the class.
        name: name of the class.
    """
    areas = []
    with new_figure(2.9, 3.2) as (figure, axes):
        share = float(np.mean([np.mean(r.labels == label) for r in rounds]))
        chance = (0, 1) if curve is ROC else (share, share)
        axes.plot((0, 1), chance, color=FAINT, linewidth=0.8, linestyle=":")
        for k, classifier in enumerate(classifiers):
            each = [
                curve.points(r.labels == label, r.probabilities[k][:, label], _GRID) for r in rounds
            ]
            y, area = np.stack([y for y, _ in each]), number(float(np.mean([a for _, a in each])))
            mean, spread, look = y.mean(axis=0), y.std(axis=0), style(k)
            if len(rounds) > 1:
                low, high = mean - spread, mean + spread
                axes.fill_between(_GRID, low, high, color=look["color"], alpha=0.13, linewidth=0)
            x, y = (_GRID, mean) if curve is not ROC else (np.r_[0, _GRID], np.r_[0, mean])
            width = 1.8 if classifier == "ensemble" else 1.2
            legend = f"{wrap(classifier, 16, lines=1)} {area}"
            axes.plot(x, y, **look, linewidth=width, label=legend)
            areas.append(f"{classifier} {area}")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title=wrap(name, _TITLE))
        axes.set(xlabel=curve.xlabel, ylabel=curve.ylabel)
        _legend(figure)
        return to_svg(figure, curve.alt.format(name, ", ".join(areas)))


def reliability_diagram(
    labels: np.ndarray, probabilities: np.ndarray, calibrated: np.ndarray, name: str
) -> Markup:
    """Draws accuracy over confidence, before and after calibration.

    Args:
        labels: true classes of the test images of all rounds, int [N].
        probabilities: uncalibrated probabilities, float [N, num_classes].
        calibrated: calibrated probabilities, float [N, num_classes].
        name: name of the classifier.
    """
    errors = []
    with new_figure(2.9, 3.2) as (figure, axes):
        axes.plot((0, 1), (0, 1), color=FAINT, linewidth=0.8, linestyle=":")
        for k, (title, p) in enumerate(
            (("uncalibrated", probabilities), ("calibrated", calibrated))
        ):
            look, bins = style(k), calibration.reliability(labels, p)
            filled = bins.images > 0
            x, y = bins.confidence[filled], bins.accuracy[filled]
            axes.plot(x, y, **look, linewidth=1.4, label=title)
            sizes = 4 + 90 * bins.images[filled] / len(labels)
            axes.scatter(x, y, s=sizes, color=look["color"], alpha=0.7, linewidths=0)
            errors.append(f"{title} {number(calibration.expected_error(labels, p))}")
        axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), title=wrap(name, _TITLE))
        axes.set(xlabel="confidence", ylabel="accuracy")
        _legend(figure)
        return to_svg(
            figure,
            f"Reliability of {name}: accuracy over confidence, all images pooled; expected "
            f"calibration error {', '.join(errors)}.",
        )


def decision_curve(by_classifier: Mapping[str, Sequence[NetBenefit]], name: str, k: int) -> Markup:
    """Draws net benefit over THRESHOLDS of one class against the rest, as the mean over rounds.

    Args:
        by_classifier: net benefit at THRESHOLDS in each round, by classifier.
        name: name of the class.
        k: index of the class.
    """
    with new_figure(2.9, 3.4) as (figure, axes):
        each = {c: np.stack([x.model[k] for x in rounds]) for c, rounds in by_classifier.items()}
        treat_all = np.mean([x.treat_all[k] for x in next(iter(by_classifier.values()))], axis=0)
        top = max(float(treat_all.max()), *(float(y.mean(axis=0).max()) for y in each.values()))
        axes.plot(THRESHOLDS, treat_all, color=INK, lw=0.8, ls="--", label="all positive")
        axes.axhline(0, color=INK, lw=0.8, ls=":", label="none positive")
        for i, (classifier, y) in enumerate(each.items()):
            mean, spread, look = y.mean(axis=0), y.std(axis=0), style(i)
            if len(y) > 1:
                band = (mean - spread, mean + spread)
                axes.fill_between(THRESHOLDS, *band, color=look["color"], alpha=0.13, linewidth=0)
            width = 1.8 if classifier == "ensemble" else 1.2
            axes.plot(THRESHOLDS, mean, **look, lw=width, label=wrap(classifier, 20, lines=1))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.4 * top, 1.1 * top), title=wrap(name, _TITLE))
        axes.set(xlabel="threshold probability", ylabel="net benefit")
        _legend(figure)
        middle = len(THRESHOLDS) // 2
        benefits = ", ".join(f"{c} {number(float(y[:, middle].mean()))}" for c, y in each.items())
        return to_svg(
            figure,
            f"Decision curves of {name} against the rest. Net benefit at a threshold probability "
            f"of {THRESHOLDS[middle]:.2g}: {benefits}, all positive "
            f"{number(float(treat_all[middle]))}, none positive 0.",
        )


def learning_curve(
    rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str], title: str, label: str
) -> Markup | None:
    """Draws metrics of a stage over its epochs; thin lines are rounds, thick lines their mean.

    Args:
        rows: rows of metrics.jsonl of this stage.
        metrics: names in the legend, by names in the rows.
        title: title of the figure.
        label: label of the y axis.

    Returns:
        The figure; None if no row has any of the metrics.
    """
    ends = []
    with new_figure(3.4, 2.7) as (figure, axes):
        for k, (metric, legend) in enumerate(metrics.items()):
            by_round: dict[int, dict[int, float]] = {}
            for row in rows:
                if row.get(metric) is not None:
                    by_round.setdefault(row["round"], {})[row["epoch"]] = row[metric]
            lines, look = list(by_round.values()), style(k)
            for line in lines if len(lines) > 1 else ():
                axes.plot(*zip(*sorted(line.items()), strict=True), alpha=0.4, lw=0.7, **look)
            epochs = sorted(set.intersection(*map(set, lines))) if lines else []
            if not epochs:
                continue
            means = [float(np.mean([line[epoch] for line in lines])) for epoch in epochs]
            marker = "o" if len(epochs) == 1 else None
            axes.plot(epochs, means, lw=1.6, marker=marker, ms=3, label=legend, **look)
            ends.append(f"{legend} from {means[0]:.3g} to {means[-1]:.3g}")
        if not ends:
            return None
        axes.set(xlabel="epoch", ylabel=label, title=wrap(title, _TITLE))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _legend(figure)
        return to_svg(figure, f"{title}, over the epochs: {'; '.join(ends)}.")


def feature_map(
    points: np.ndarray, labels: np.ndarray, wrong: np.ndarray, classes: Sequence[str]
) -> Markup:
    """Draws a map of images, with a colour and a marker for each class, and rings around errors.

    Args:
        points: place of each image, float [N, 2].
        labels: class of each image, int [N].
        wrong: whether each image is classified wrongly, bool [N].
        classes: names of the classes.
    """
    with new_figure(6.4, 4.6) as (figure, axes):
        for label, name in enumerate(classes):
            x, y = points[labels == label].T
            marker, color = _MARKERS[label % len(_MARKERS)], style(label)["color"]
            axes.scatter(x, y, s=28, lw=0, alpha=0.8, marker=marker, color=color, label=name)
        if wrong.any():
            x, y = points[wrong].T
            axes.scatter(x, y, s=80, lw=0.9, facecolors="none", edgecolors=INK, label="wrong")
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        figure.legend(loc="outside lower center", ncols=min(4, len(classes) + 1))
        text = f"Map of {len(points)} test images by class, {int(wrong.sum())} of them wrong."
        return to_svg(figure, text)


def _legend(figure: Figure) -> None:
    """Adds a legend below the axes, where it covers no curve."""
    handles, _ = figure.axes[0].get_legend_handles_labels()
    columns = 2 if len(handles) == 2 else 1
    figure.legend(loc="outside lower center", handlelength=2.6, ncols=columns)
