"""Bar chart of the entropy of each layer's output, coloured by which layers train."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draws one bar per layer, from input to output, and writes the figure.

    Args:
        result: content of the JSON file of a layer selection, with the entropy of each layer.
        path: image file to write; its folder is created.
    """
    from matplotlib.figure import Figure  # importing matplotlib is slow
    from matplotlib.patches import Patch

    layers = result["layers"]
    colors = {True: "#d55e00", False: "#56b4e9"}
    figure = Figure(figsize=(8, 1.4 + 0.2 * len(layers)), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        range(len(layers)),
        [layer["entropy"] for layer in layers],
        color=[colors[layer["trains"]] for layer in layers],
    )
    axes.set_yticks(range(len(layers)), [layer["layer"] for layer in layers], fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, math.log(256))
    axes.set_xlabel("entropy of the output's channels, nats (at most ln 256)", fontsize=9)
    share = result["trainable_parameters"] / result["parameters"]
    axes.set_title(f"{result['trainable']}: {share:.1%} of the parameters train", fontsize=10)
    handles = [
        Patch(color=colors[True], label="trains"),
        Patch(color=colors[False], label="frozen"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
