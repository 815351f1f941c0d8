"""Coverage of the 95 % confidence intervals, by simulation.

    python -m benchmarks.coverage [--trials=1000] [--resamples=200] [--json=FILE]

Test sets and networks are drawn from a population whose true accuracy, macro F1 and macro AUC are
known. The program prints how often the interval of a network, of a recipe and of the difference
between two recipes contains the true value, and how often it would if images of a group were taken
for independent. `--trials=200` gives a first impression; the default takes six minutes of CPU time.
"""

import argparse
import concurrent.futures
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from benchmarks.table import markdown
from egmae_jax.core.numbers import number
from egmae_jax.evaluation.metrics import weighted_metrics
from egmae_jax.evaluation.significance import Resampled, Round

METRICS = ("accuracy", "f1", "auc")
BALANCED, UNEQUAL = (1 / 3, 1 / 3, 1 / 3), (0.7, 0.2, 0.1)
BETTER = 1.15  # signal of the second recipe of a difference, relative to the first
_TRUTH_CASES = 60_000


class Population(NamedTuple):
    """A population of cases (groups of images) and networks.

    The logit of a class is the network's signal if the class is the true one, plus Gaussian noise.
    """

    shares: tuple[float, ...] = BALANCED  # of the classes
    signal: float = 1.5  # mean over networks, in standard deviations of the noise
    seed_std: float = 0.1  # standard deviation of the signal between the networks of a recipe
    case_share: float = 0.8  # share of the noise's variance that all networks have in common
    alike: float = 1.0  # share of the noise's variance that all images of a group have in common
    bias: float = 0.0  # added to the first class's logit, which makes that class easier

    def labels(self, groups: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Returns the classes of groups, int [G]: random with each class at least once, or exact.

        Args:
            groups: number of groups G.
            rng: random number generator; None for exactly the shares of the population.
        """
        count = len(self.shares)
        if rng is None:
            return np.repeat(np.arange(count), np.round(np.array(self.shares) * groups).astype(int))
        while len(np.unique(labels := rng.choice(count, groups, p=self.shares))) < count:
            pass
        return labels

    def probabilities(self, labels: np.ndarray, signal: float, noise: np.ndarray) -> np.ndarray:
        """Returns a network's probabilities, float [N, C], given labels [N] and noise [N, C]."""
        one_hot = np.eye(len(self.shares))
        return special.softmax(signal * one_hot[labels] + self.bias * one_hot[0] + noise, axis=1)

    def draw(
        self,
        rng: np.random.Generator,
        labels: np.ndarray,
        size: int,
        networks: Sequence[float],
    ) -> list[np.ndarray]:
        """Returns the probabilities of several networks for new cases, float [G * size, C] each.

        Args:
            rng: random number generator.
            labels: class of each group, int [G].
            size: number of images in a group.
            networks: mean signal of each network's recipe.
        """
        shape = len(labels), len(self.shares)

        def noise() -> np.ndarray:
            common = np.repeat(rng.normal(size=shape), size, axis=0)
            if self.alike == 1:
                return common
            own = rng.normal(size=common.shape)
            return np.sqrt(self.alike) * common + np.sqrt(1 - self.alike) * own

        of_images, of_case = np.repeat(labels, size), np.sqrt(self.case_share) * noise()
        of_both = np.sqrt(1 - self.case_share)
        return [
            self.probabilities(
                of_images, signal + self.seed_std * rng.normal(), of_case + of_both * noise()
            )
            for signal in networks
        ]

    @functools.cache  # noqa: B019, a tuple is no object that the cache keeps alive in vain
    def truth(self, signal: float) -> dict[str, float]:
        """Returns each metric's mean over all networks of a recipe, for infinitely many cases."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(5 if self.seed_std else 1)
        labels = self.labels(_TRUTH_CASES)
        noise = np.random.default_rng(1).normal(size=(len(labels), len(self.shares)))
        means = dict.fromkeys(METRICS, 0.0)
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            probabilities = self.probabilities(labels, signal + self.seed_std * node, noise)
            values = weighted_metrics(labels, probabilities, np.ones((1, len(labels))))
            for name in METRICS:
                means[name] += float(weight * values[name][0])
        return means


def of_networks(
    population: Population,
    groups: int,
    size: int,
    *,
    trials: int,
    resamples: int,
    by_group: bool = True,
) -> dict[str, float]:
    """Returns the coverage of the interval of a network's metric, {metric: share of trials}.

    Args:
        population: population of cases; all its networks are alike.
        groups: number of groups in a test set.
        size: number of images in a group.
        trials: number of test sets.
        resamples: number of bootstrap resamples.
        by_group: whether groups are resampled; otherwise images, as if they were independent.
    """
    population = population._replace(seed_std=0.0)
    rng, truth = np.random.default_rng(size), population.truth(population.signal)
    members = np.repeat(np.arange(groups), size)
    ids = np.arange(groups * size)
    unit = members if by_group else ids
    covered = dict.fromkeys(METRICS, 0)
    for trial in range(trials):
        labels = population.labels(groups, rng)
        probabilities = population.draw(rng, labels, size, [population.signal])
        rounds = [Round(ids.astype(str), labels[members], probabilities, unit)]
        resampled = Resampled(rounds, resamples=resamples, seed=trial)
        for name in METRICS:
            _, low, high = resampled.estimate(0, name)
            covered[name] += low <= truth[name] <= high
    return {name: count / trials for name, count in covered.items()}


def of_recipes(
    population: Population,
    groups: int,
    size: int,
    rounds: int,
    *,
    trials: int,
    resamples: int,
    folds: bool = False,
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the coverage of a recipe's interval, and of that of the difference of two recipes.

    Args:
        population: population of cases and networks.
        groups: number of groups in a test set.
        size: number of images in a group.
        rounds: number of networks of each recipe.
        trials: number of pairs of recipes.
        resamples: number of bootstrap resamples.
        folds: whether each round has groups / rounds groups of its own instead of all.

    Returns:
        {metric: share of trials} for the recipe, and for the difference.
    """
    rng = np.random.default_rng(size)
    signals = population.signal, population.signal * BETTER
    truths = [population.truth(signal) for signal in signals]
    members = np.repeat(np.arange(groups // rounds if folds else groups), size)
    covered = dict.fromkeys(METRICS, 0), dict.fromkeys(METRICS, 0)
    for trial in range(trials):
        labels = [population.labels(members[-1] + 1, rng) for _ in range(rounds if folds else 1)]
        if folds:
            predicted = [population.draw(rng, own, size, signals) for own in labels]
        else:
            each = population.draw(rng, labels[0], size, np.repeat(signals, rounds).tolist())
            predicted = list(zip(each[:rounds], each[rounds:], strict=True))
        tested = []
        for index, pair in enumerate(predicted):
            first, own = (index * len(members), labels[index]) if folds else (0, labels[0])
            ids = (first + np.arange(len(members))).astype(str)
            tested.append(Round(ids, own[members], pair, first + members))
        resampled = Resampled(tested, resamples=resamples, seed=trial, random_rounds=True)
        for name in METRICS:
            value, difference = resampled.estimate(0, name), resampled.difference(0, 1, name)
            covered[0][name] += value.low <= truths[0][name] <= value.high
            gain = truths[1][name] - truths[0][name]
            covered[1][name] += difference.low <= gain <= difference.high
    recipe, difference = ({name: n / trials for name, n in x.items()} for x in covered)
    return recipe, difference


class Case(NamedTuple):
    """What is simulated in one row of the table."""

    interval: str  # what the interval is of
    population: Population = Population()
    groups: int = 60
    size: int = 2
    rounds: int = 0  # networks of a recipe; 0 for the interval of a network
    folds: bool = False  # each round has groups / rounds groups of its own
    by_group: bool = True  # groups are resampled, not images


def cases() -> list[Case]:
    """Returns the rows of the table."""
    found = []
    for shares, signal, all_groups in (
        (BALANCED, 1.5, (15, 30, 60, 150)),
        (BALANCED, 2.5, (30, 60, 150)),
        (UNEQUAL, 1.5, (30, 60, 150)),
        (UNEQUAL, 2.5, (60, 150, 300)),
    ):
        for groups in all_groups:
            sizes = (1, 2, 3) if (signal, groups, shares) == (1.5, 60, BALANCED) else (2,)
            found += [Case("network", Population(shares, signal), groups, x) for x in sizes]
    for shares, bias, groups in (((0.5, 0.5), 2.0, 80), ((0.7, 0.3), 1.0, 80), (BALANCED, 1.0, 60)):
        found.append(Case(f"network, bias {bias}", Population(shares, bias=bias), groups))
    alike = Population(alike=0.5)
    found.append(Case("network, images of a group half alike", alike, size=3))
    for size in (2, 3):
        found.append(Case("network, images resampled", size=size, by_group=False))
    for rounds in (2, 3, 5):
        name = f"recipe, {rounds} rounds"
        found += [Case(name, size=size, rounds=rounds) for size in (1, 2, 3)]
        changes: tuple[dict[str, float], ...] = (
            {"seed_std": 0.3},
            {"seed_std": 0.0, "case_share": 0.5},
            {"signal": 2.5},
            {"bias": 1.0},
        )
        for each in changes:
            changed = ", ".join(f"{field} {value}" for field, value in each.items())
            population = Population()._replace(**each)  # type: ignore[arg-type]
            found.append(Case(f"{name}, {changed}", population, rounds=rounds))
    found.append(Case("recipe, 3 rounds, signal 2.5", Population(signal=2.5), 240, rounds=3))
    for folds in (3, 5):
        found.append(Case(f"recipe, {folds} folds", groups=150, rounds=folds, folds=True))
    return found


def measure(case: Case, *, trials: int, resamples: int) -> dict[str, Any]:
    """Simulates a case; returns its row, with coverages by metric."""
    population, sizes = case.population, (case.groups, case.size)
    options = {"trials": trials, "resamples": resamples}
    difference = None
    if case.rounds:
        coverage, difference = of_recipes(
            population, *sizes, case.rounds, **options, folds=case.folds
        )
    else:
        coverage = of_networks(population, *sizes, **options, by_group=case.by_group)
    truth = population.truth(population.signal)
    return {
        "interval": case.interval,
        "classes": "/".join(f"{share:.2g}".lstrip("0") for share in population.shares),
        "truth": {name: round(truth[name], 4) for name in ("accuracy", "auc")},
        "groups": case.groups,
        "images_of_a_group": case.size,
        "coverage": coverage,
        "coverage_of_difference": difference,
    }


def table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the cells of the printed table, with a heading."""
    heads = ["interval of", "classes", "accuracy", "AUC", "groups", "images of each"]
    heads += ["accuracy", "F1", "AUC", "difference: accuracy", "F1", "AUC"]
    cells = [heads]
    for row in rows:
        truth = number(row["truth"]["accuracy"], 2), number(row["truth"]["auc"])
        sizes = str(row["groups"]), str(row["images_of_a_group"])
        shares = [
            number(covered[name]) if covered else ""
            for covered in (row["coverage"], row["coverage_of_difference"])
            for name in METRICS
        ]
        cells.append([row["interval"], row["classes"], *truth, *sizes, *shares])
    return cells


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000, help="test sets of each row")
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # in the processes below
    call = functools.partial(measure, trials=options.trials, resamples=options.resamples)
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(call, cases()))
    error = (0.05 * 0.95 / options.trials) ** 0.5
    print(f"Share of {options.trials} intervals that contain the truth; standard error {error:.3f}")
    print(markdown(table(rows)))
    if options.json:
        found = {"trials": options.trials, "resamples": options.resamples, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
