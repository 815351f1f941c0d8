"""Converts matplotlib figures to SVG in the colours of the page: light, dark or print.

Figures are drawn in placeholder colours, which `to_svg` replaces with CSS variables of style.css.
"""

import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT = "#010101", "#020202"
_SERIES = tuple(f"#0{i}0{i}0{i}" for i in range(3, 9))
_VARIABLES = {INK: "--ink", FAINT: "--faint"}
_VARIABLES |= {color: f"--series-{k}" for k, color in enumerate(_SERIES)}
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)))
_STYLE: Any = {
    "svg.fonttype": "none",  # keeps text searchable and in the page's font
    "svg.hashsalt": "egmae_jax",  # makes the ids of equal figures equal
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $x$
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def style(k: int) -> dict[str, Any]:
    """Returns colour and dashes of the k-th curve of a figure, distinct for the first 36 curves."""
    cycle, index = divmod(k, len(_SERIES))
    return {"color": _SERIES[index], "linestyle": _DASHES[(index + cycle) % len(_DASHES)]}


@contextlib.contextmanager
def new_figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Creates a figure with one pair of axes in the report's style.

    Args:
        width: width in inches.
        height: height in inches.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def to_svg(figure: Figure, alt: str) -> Markup:
    """Converts a figure of `new_figure` to SVG that can be embedded in a page.

    Args:
        figure: figure in the colours of `style`, INK and FAINT.
        alt: alternative text for screen readers.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():  # the browser renders the text
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', r'\1 style="max-width:\2pt"', svg, count=1)
    # Ids must be unique on the page.
    ids = set(re.findall(r'\bid="([^"]+)"', svg))
    unique = "f" + hashlib.sha256((alt + svg).encode()).hexdigest()[:8]
    svg = re.sub(
        r'(\bid="|"#|url\(#)([^")]+)(?=["\)])',
        lambda match: f"{match[1]}{unique}-{match[2]}" if match[2] in ids else match[0],
        svg,
    )
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    label = Markup('<svg role="img" aria-label="{}"').format(alt)
    return Markup(svg.replace("<svg", str(label), 1))
