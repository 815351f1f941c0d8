"""Curves of the report as SVG, whose colours are those of the page: light, dark or print.

Matplotlib draws with placeholders for colours; `_to_svg` turns them into CSS variables.
"""

import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import matplotlib.ticker
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn import metrics as sk

from egmae_jax.evaluation import calibration
from egmae_jax.explain.lettering import wrap

_INK, _FAINT = "#010101", "#020202"
_SERIES = tuple(f"#0{i}0{i}0{i}" for i in range(3, 9))  # as many as there are distinct colours
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)))
_TITLE = 26  # columns of a line above a figure
_GRID = np.linspace(0, 1, 101)
_STYLE: Any = {
    "svg.fonttype": "none",  # letters stay letters: they take the page's font and can be searched
    "svg.hashsalt": "egmae_jax",  # equal figures have equal names inside
    "font.size": 9,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.alpha": 0.25,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "text.parse_math": False,  # a class may be called $x$
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


class Said(NamedTuple):
    """What one classifier says of a round's test images."""

    labels: np.ndarray  # int [N]
    probabilities: np.ndarray  # [N, num_classes]
    calibrated: np.ndarray  # likewise, scaled by its temperature


def style(k: int) -> dict[str, Any]:
    """Colour and dash of the k-th curve of a figure; no two of the first 36 have both in common."""
    turn, place = divmod(k, len(_SERIES))
    return {"color": _SERIES[place], "linestyle": _DASHES[(place + turn) % len(_DASHES)]}


def roc_curves(said: Mapping[str, Sequence[Said]], label: int, name: str) -> Markup:
    """Of one class against the rest: a curve of each classifier, the mean over rounds.

    Args:
        said: of each classifier, round by round.
        label: of the class.
        name: of the class.
    """

    def curve(x: Said) -> np.ndarray:
        fpr, tpr, _ = sk.roc_curve(x.labels == label, x.probabilities[:, label])
        return np.interp(_GRID, fpr, tpr)

    def area(x: Said) -> float:
        return float(sk.roc_auc_score(x.labels == label, x.probabilities[:, label]))

    with _figure(2.9, 3.2) as (figure, axes):
        axes.plot((0, 1), (0, 1), color=_FAINT, linewidth=0.8, linestyle=":")
        areas = _mean_curves(axes, said, curve, area, first=0.0)
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=wrap(name, _TITLE))
        _legend(figure)
        return _to_svg(figure, f"ROC curves of {name} against the rest; area: {areas}.")


def precision_recall_curves(said: Mapping[str, Sequence[Said]], label: int, name: str) -> Markup:
    """As `roc_curves`, of precision over recall; the dotted line is the class's share.

    Nothing is interpolated: the area of the steps drawn is the average precision.
    """

    def curve(x: Said) -> np.ndarray:
        precision, recall, _ = sk.precision_recall_curve(
            x.labels == label, x.probabilities[:, label]
        )
        # Of the fewest images that are said to be of the class for no less recall; scikit-learn's
        # last point, of recall 0, is of none.
        return precision[::-1][np.searchsorted(recall[::-1], np.maximum(_GRID, 1e-9))]

    def area(x: Said) -> float:
        return float(sk.average_precision_score(x.labels == label, x.probabilities[:, label]))

    with _figure(2.9, 3.2) as (figure, axes):
        share = float(np.mean([np.mean(x.labels == label) for x in next(iter(said.values()))]))
        axes.plot((0, 1), (share, share), color=_FAINT, linewidth=0.8, linestyle=":")
        areas = _mean_curves(axes, said, curve, area)
        axes.set(xlabel="recall", ylabel="precision", title=wrap(name, _TITLE))
        _legend(figure)
        return _to_svg(
            figure, f"Precision over recall of {name} against the rest; average precision: {areas}."
        )


def reliability_diagram(said: Sequence[Said], name: str) -> Markup:
    """Accuracy over confidence of a classifier, all rounds pooled, before and after scaling."""
    labels = np.concatenate([x.labels for x in said])
    drawn = {
        "as it is": np.concatenate([x.probabilities for x in said]),
        "calibrated": np.concatenate([x.calibrated for x in said]),
    }
    errors = []
    with _figure(2.9, 3.2) as (figure, axes):
        axes.plot((0, 1), (0, 1), color=_FAINT, linewidth=0.8, linestyle=":")
        for k, (title, probabilities) in enumerate(drawn.items()):
            look = style(k)
            bins = calibration.reliability(labels, probabilities)
            filled = bins.images > 0
            error = calibration.expected_error(labels, probabilities)
            errors.append(f"{title} {_number(error)}")
            axes.plot(
                bins.confidence[filled],
                bins.accuracy[filled],
                **look,
                linewidth=1.4,
                label=title,
            )
            axes.scatter(
                bins.confidence[filled],
                bins.accuracy[filled],
                s=4 + 90 * bins.images[filled] / len(labels),
                color=look["color"],
                alpha=0.7,
                linewidths=0,
            )
        axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), title=wrap(name, _TITLE))
        axes.set(xlabel="confidence", ylabel="accuracy")
        _legend(figure)
        return _to_svg(
            figure,
            f"Reliability of {name}: accuracy over confidence, all images pooled; expected "
            f"calibration error {', '.join(errors)}.",
        )


def learning_curve(
    rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str], title: str, label: str
) -> Markup | None:
    """Metrics of a stage over its epochs: a thin line a round, a thick one their mean.

    Args:
        rows: of metrics.jsonl.
        metrics: {name in the rows: name in the legend}.
        title: above.
        label: of the upright axis.

    Returns:
        None where the rows have none of them.
    """
    ends = []
    with _figure(3.4, 2.7) as (figure, axes):
        for k, (metric, legend) in enumerate(metrics.items()):
            lines: dict[int, dict[int, float]] = {}
            for row in rows:
                if isinstance(row.get(metric), int | float):
                    lines.setdefault(row["round"], {})[row["epoch"]] = row[metric]
            look = style(k)
            marker = "o" if lines and max(map(len, lines.values())) == 1 else None
            if len(lines) > 1:
                for line in lines.values():
                    axes.plot(*zip(*sorted(line.items()), strict=True), alpha=0.4, lw=0.7, **look)
            epochs = sorted(set.intersection(*map(set, lines.values()))) if lines else []
            if not epochs:
                continue
            means = [float(np.mean([line[epoch] for line in lines.values()])) for epoch in epochs]
            axes.plot(epochs, means, lw=1.6, marker=marker, ms=3, label=legend, **look)
            ends.append(f"{legend} from {means[0]:.3g} to {means[-1]:.3g}")
        if not ends:
            return None
        axes.set(xlabel="epoch", ylabel=label, title=wrap(title, _TITLE))
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
        if len(metrics) > 1:
            _legend(figure)
        return _to_svg(figure, f"{title}, over the epochs: {'; '.join(ends)}.")


def _legend(figure: Figure) -> None:
    """Below the axes, where it hides nothing."""
    handles, _ = figure.axes[0].get_legend_handles_labels()
    columns = 2 if len(handles) == 2 else 1
    figure.legend(loc="outside lower center", handlelength=2.6, ncols=columns)


def _mean_curves(
    axes: Axes,
    said: Mapping[str, Sequence[Said]],
    curve: Callable[[Said], np.ndarray],
    area: Callable[[Said], float],
    first: float | None = None,
) -> str:
    """Draws a curve of each classifier, the last on top; returns their areas in words."""
    words = []
    for k, (name, rounds) in enumerate(said.items()):
        curves = np.stack([curve(x) for x in rounds])
        mean, spread = curves.mean(axis=0), curves.std(axis=0)
        x, y = _GRID, mean
        if first is not None:
            x, y = np.insert(_GRID, 0, 0.0), np.insert(mean, 0, first)
        look = style(k)
        if len(rounds) > 1:
            low, high = mean - spread, mean + spread
            axes.fill_between(_GRID, low, high, color=look["color"], alpha=0.13, linewidth=0)
        value = _number(float(np.mean([area(x) for x in rounds])))
        words.append(f"{name} {value}")
        axes.plot(
            *(x, y),
            **look,
            linewidth=1.8 if name == "ensemble" else 1.2,
            label=f"{wrap(name, 16, lines=1)} {value}",
        )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return ", ".join(words)


@contextlib.contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes, in the report's style; sizes in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def _to_svg(figure: Figure, alt: str) -> Markup:
    """SVG to stand in a page, in the page's colours; `alt` is read out in its place."""
    buffer = io.StringIO()
    with warnings.catch_warnings():  # the browser has fonts of its own
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', r'\1 style="max-width:\2pt"', svg, count=1)
    # Inside one page names must differ from figure to figure.
    names = set(re.findall(r'\bid="([^"]+)"', svg))
    unique = "f" + hashlib.sha256((alt + svg).encode()).hexdigest()[:8]
    svg = re.sub(
        r'(\bid="|"#|url\(#)([^")]+)(?=["\)])',
        lambda found: f"{found[1]}{unique}-{found[2]}" if found[2] in names else found[0],
        svg,
    )
    variables = {_INK: "--ink", _FAINT: "--faint"}
    variables |= {color: f"--series-{k}" for k, color in enumerate(_SERIES)}
    for color, variable in variables.items():
        svg = svg.replace(color, f"var({variable})")
    label = Markup('<svg role="img" aria-label="{}"').format(alt)
    return Markup(svg.replace("<svg", str(label), 1))


def _number(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")
