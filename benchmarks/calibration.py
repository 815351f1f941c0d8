"""Cost of calibrating on few validation images, by simulation.

    python -m benchmarks.calibration [--draws=100] [--json=FILE]

The true probabilities of the simulated networks are known: labels are drawn from the softmax of
random logits, so the true temperature is that by which a network multiplied its logits. The table
shows by how much the cross-entropy of new images exceeds that of the true temperature, in nats, if
probabilities are scaled by the maximum-likelihood temperature of n validation images, or by the one
that `egmae_jax.evaluation.calibration` fits (also with fewer images than it requires), and if they
are not scaled although the true temperature is 1.5 or 3. Values are means over the draws of the n
images; a probability of 0 counts as 1e-12.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from benchmarks.table import markdown
from egmae_jax.core.numbers import number
from egmae_jax.evaluation import calibration

COUNTS = (5, 10, 20, 30, 50, 100, 300)
# Classes, and a spread of the logits at which four of five predictions are correct.
_NETWORKS = ((2, 2.0), (3, 3.0), (8, 5.0))
_TESTED = 20_000


class Excess(NamedTuple):
    """Cross-entropy in nats above that of the true temperature."""

    classes: int
    count: int  # validation images
    unscaled_1_5: float  # of a network whose true temperature is 1.5
    unscaled_3: float
    maximum_likelihood: float
    fitted: float  # as the package fits it


def measure(classes: int, spread: float, count: int, draws: int, seed: int = 0) -> Excess:
    """Fits to `count` images, `draws` times, and tests each on the same 20,000 other images."""
    rng = np.random.default_rng(seed)

    def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
        logits = spread * rng.standard_normal((size, classes))
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        return labels, special.softmax(logits, axis=1)

    labels, tested = draw(_TESTED)

    def loss(temperature: float, least: float = 0.0) -> float:
        scaled = calibration.Scaling(temperature, least).apply(tested)
        return -np.log(np.maximum(scaled[np.arange(_TESTED), labels], calibration.TINY)).mean()

    maximum_likelihood, fitted = [], []
    for _ in range(draws):
        validation = draw(count)
        maximum_likelihood.append(loss(calibration.fit_temperature(*validation, np.inf)))
        least = calibration.least_probability(count, classes)
        fitted.append(loss(calibration.fit_temperature(*validation, count), least))
    losses = (loss(1 / 1.5), loss(1 / 3), np.mean(maximum_likelihood), np.mean(fitted))
    return Excess(classes, count, *(float(x - loss(1.0)) for x in losses))


def table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the cells of the printed table, with a heading.

    Args:
        rows: fields of each `Excess`, by number of classes and then of images.
    """
    unscaled = "not scaled, the true temperature being 1.5, 3"
    cells = [["classes", "temperature", *(f"n = {x}" for x in COUNTS), unscaled]]
    for classes, _ in _NETWORKS:
        of_network = [row for row in rows if row["classes"] == classes]
        for key, title in (
            ("maximum_likelihood", "maximum likelihood"),
            ("fitted", "as fitted here"),
        ):
            both = f"{number(of_network[0]['unscaled_1_5'])}, {number(of_network[0]['unscaled_3'])}"
            last = both if key == "maximum_likelihood" else ""
            cells.append([str(classes), title, *(number(row[key]) for row in of_network), last])
    return cells


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100, help="draws of the validation images")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args()
    rows = [
        measure(classes, spread, count, options.draws)._asdict()
        for classes, spread in _NETWORKS
        for count in COUNTS
    ]
    print("Cross-entropy above that of the true temperature, nats")
    print(markdown(table(rows)))
    if options.json:
        found = {"draws": options.draws, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
