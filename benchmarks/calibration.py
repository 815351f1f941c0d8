"""What a temperature fitted on few validation images costs on other images, by their number.

python -m benchmarks.calibration [--draws=100] [--json=FILE]

Networks of known truth: labels are drawn from the softmax of random logits, which is what a perfect
temperature gives, whatever the network multiplied its logits by. By how much is the cross-entropy
of new images above that, in nats, when probabilities are scaled by the likeliest temperature of n
validation images, or by what `egmae_jax.evaluation.calibration` fits to them, also from fewer than
it asks for? And when they are left as a network gives them that multiplied its logits by 1.5, or
by 3? Mean over the draws of the n images; a probability of 0 counts as 1e-12.
"""

import argparse
import json
from typing import NamedTuple

import numpy as np
import rich.console
import rich.table
from scipy import special

from egmae_jax.evaluation import calibration

COUNTS = (5, 10, 20, 30, 50, 100, 300)
_NETWORKS = ((2, 2.0), (3, 3.0), (8, 5.0))  # classes, spread of logits: right four times of five
_TESTED = 20_000


class Excess(NamedTuple):
    """Cross-entropy in nats above that of the true temperature."""

    classes: int
    count: int  # validation images
    unscaled_1_5: float  # of a network whose true temperature is 1.5
    unscaled_3: float
    likeliest: float
    fitted: float


def measure(classes: int, spread: float, count: int, draws: int, seed: int = 0) -> Excess:
    """Fits to `count` images, `draws` times, and tests on the same 20,000 others."""
    rng = np.random.default_rng(seed)

    def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
        logits = spread * rng.standard_normal((size, classes))
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        return labels, special.softmax(logits, axis=1)

    labels, tested = draw(_TESTED)

    def loss(temperature: float, least: float = 0.0) -> float:
        scaled = calibration.Scaling(temperature, least).apply(tested)
        return -np.log(np.maximum(scaled[np.arange(_TESTED), labels], calibration.TINY)).mean()

    likeliest, fitted = [], []
    for _ in range(draws):
        validation = draw(count)
        likeliest.append(loss(calibration.fit_temperature(*validation, np.inf)))
        least = calibration.least_probability(count, classes)
        fitted.append(loss(calibration.fit_temperature(*validation, count), least))
    losses = (loss(1 / 1.5), loss(1 / 3), np.mean(likeliest), np.mean(fitted))
    return Excess(classes, count, *(float(x - loss(1.0)) for x in losses))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    found = [
        measure(classes, spread, count, arguments.draws)
        for classes, spread in _NETWORKS
        for count in COUNTS
    ]
    table = rich.table.Table(title="Cross-entropy above that of the true temperature, nats")
    for name in ("classes", "images", "unscaled, 1.5", "unscaled, 3", "likeliest", "fitted"):
        table.add_column(name, justify="right")
    for row in found:
        table.add_row(
            *map(str, row[:2]),
            *(f"{x:.3f}" for x in row[2:]),
            end_section=row.count == COUNTS[-1],
        )
    rich.console.Console().print(table)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump([row._asdict() for row in found], file, indent=1)


if __name__ == "__main__":
    main()
