"""How often the nominal 95 % intervals hold the truth, by simulation of what they are to tell of.

    python -m benchmarks.coverage

A population of cases (groups of images that networks judge alike) and of networks is known, so its
accuracy, macro F1 and macro AUC are. Test sets and networks are drawn from it; printed is how often
the interval of a network's metric and that of a sweep held the truth, and what the first would if
it took images for independent. --trials=200 is a look, the default takes minutes.
"""

import argparse
import concurrent.futures
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from egmae_jax.evaluation.metrics import weighted_metrics
from egmae_jax.evaluation.significance import Resampled, Round

METRICS = ("accuracy", "f1", "auc")
BALANCED, UNEQUAL = (1 / 3, 1 / 3, 1 / 3), (0.7, 0.2, 0.1)
BETTER = 1.15  # times the signal: the second recipe of a difference
_TRUTH_CASES = 60_000


class Population(NamedTuple):
    """Of cases and networks: a network's score of a class is signal where it is true, and noise."""

    shares: tuple[float, ...] = BALANCED  # of the classes
    signal: float = 1.5  # in standard deviations of the noise
    seed_std: float = 0.1  # of a network's signal, between networks of a recipe
    case_share: float = 0.8  # of the noise's variance that is the case's, the same for all networks
    alike: float = 1.0  # share of the noise's variance that all images of a group have in common
    bias: float = 0.0  # of every score of the first class, which is the easier for it

    def labels(self, groups: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """The classes of groups, int [G]: drawn, each at least once, or in the exact shares."""
        count = len(self.shares)
        if rng is None:
            return np.repeat(np.arange(count), np.round(np.array(self.shares) * groups).astype(int))
        while len(np.unique(labels := rng.choice(count, groups, p=self.shares))) < count:
            pass
        return labels

    def scores(self, labels: np.ndarray, signal: float, noise: np.ndarray) -> np.ndarray:
        """What a network says: probabilities [N, C], of labels [N] and noise [N, C]."""
        one_hot = np.eye(len(self.shares))
        return special.softmax(signal * one_hot[labels] + self.bias * one_hot[0] + noise, axis=1)

    def draw(
        self,
        rng: np.random.Generator,
        labels: np.ndarray,
        size: int,
        networks: Sequence[float],
    ) -> list[np.ndarray]:
        """What networks say of new cases: probabilities [G * size, C] each.

        Args:
            rng: draws cases, networks and what is neither's.
            labels: int [G], of the groups.
            size: images of a group.
            networks: the mean signal of the recipe of each.
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
            self.scores(
                of_images, signal + self.seed_std * rng.normal(), of_case + of_both * noise()
            )
            for signal in networks
        ]

    @functools.cache  # noqa: B019, of a tuple
    def truth(self, signal: float) -> dict[str, float]:
        """The mean of each metric over all networks of a recipe, of endlessly many cases."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(5 if self.seed_std else 1)
        labels = self.labels(_TRUTH_CASES)
        noise = np.random.default_rng(1).normal(size=(len(labels), len(self.shares)))
        found = dict.fromkeys(METRICS, 0.0)
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            said = self.scores(labels, signal + self.seed_std * node, noise)
            values = weighted_metrics(labels, said, np.ones((1, len(labels))))
            for name in METRICS:
                found[name] += float(weight * values[name][0])
        return found


def of_networks(
    population: Population,
    groups: int,
    size: int,
    *,
    trials: int,
    resamples: int,
    by_group: bool = True,
) -> dict[str, float]:
    """How often the interval of a network's metric holds it: {metric: share}.

    Args:
        population: of cases; its networks are all the same.
        groups: of a test set.
        size: images of a group.
        trials: test sets.
        resamples: of the bootstrap.
        by_group: resamples groups; else images, as if they were independent.
    """
    population = population._replace(seed_std=0.0)
    rng, truth = np.random.default_rng(size), population.truth(population.signal)
    members = np.repeat(np.arange(groups), size)
    ids = np.arange(groups * size)
    unit = members if by_group else ids
    held = dict.fromkeys(METRICS, 0)
    for trial in range(trials):
        labels = population.labels(groups, rng)
        (said,) = population.draw(rng, labels, size, [population.signal])
        tested = [Round(ids.astype(str), labels[members], [said], unit)]
        found = Resampled(tested, resamples=resamples, seed=trial)
        for name in METRICS:
            _, low, high = found.estimate(0, name)
            held[name] += low <= truth[name] <= high
    return {name: count / trials for name, count in held.items()}


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
    """How often the interval of a recipe's metric, and that of two recipes' difference, hold it.

    Args:
        population: of cases and networks.
        groups: of a test set.
        size: images of a group.
        rounds: networks of each recipe.
        trials: pairs of recipes.
        resamples: of the bootstrap.
        folds: each round has groups / rounds groups of its own instead of all.

    Returns:
        {metric: share} each.
    """
    rng = np.random.default_rng(size)
    signals = population.signal, population.signal * BETTER
    truths = [population.truth(signal) for signal in signals]
    members = np.repeat(np.arange(groups // rounds if folds else groups), size)
    held = [dict.fromkeys(METRICS, 0) for _ in range(2)]
    for trial in range(trials):
        labels = [population.labels(members[-1] + 1, rng) for _ in range(rounds if folds else 1)]
        if folds:
            said = [population.draw(rng, own, size, signals) for own in labels]
        else:
            each = population.draw(rng, labels[0], size, np.repeat(signals, rounds).tolist())
            said = list(zip(each[:rounds], each[rounds:], strict=True))
        tested = []
        for index, pair in enumerate(said):
            first, own = (index * len(members), labels[index]) if folds else (0, labels[0])
            ids = (first + np.arange(len(members))).astype(str)
            tested.append(Round(ids, own[members], pair, first + members))
        found = Resampled(tested, resamples=resamples, seed=trial, random_rounds=True)
        for name in METRICS:
            value, difference = found.estimate(0, name), found.difference(0, 1, name)
            held[0][name] += value.low <= truths[0][name] <= value.high
            gain = truths[1][name] - truths[0][name]
            held[1][name] += difference.low <= gain <= difference.high
    return tuple({name: n / trials for name, n in one.items()} for one in held)  # type: ignore[return-value]


def _rows(trials: int, resamples: int) -> Iterator[tuple[str, functools.partial]]:
    options = {"trials": trials, "resamples": resamples}
    for shares, signal, all_groups in (
        (BALANCED, 1.5, (15, 30, 60, 150)),
        (BALANCED, 2.5, (30, 60, 150)),
        (UNEQUAL, 1.5, (30, 60, 150)),
        (UNEQUAL, 2.5, (60, 150, 300)),
    ):
        population = Population(shares, signal)
        for groups in all_groups:
            for size in (1, 2, 3) if (signal, groups, shares) == (1.5, 60, BALANCED) else (2,):
                call = functools.partial(of_networks, population, groups, size, **options)
                yield f"network | {_described(population, size, groups)}", call
    for shares, bias, groups in (((0.5, 0.5), 2.0, 80), ((0.7, 0.3), 1.0, 80), (BALANCED, 1.0, 60)):
        population = Population(shares, bias=bias)
        call = functools.partial(of_networks, population, groups, 2, **options)
        yield f"network, bias {bias} | {_described(population, 2, groups)}", call
    halves = Population(alike=0.5)
    call = functools.partial(of_networks, halves, 60, 3, **options)
    yield f"network, images of a group half alike | {_described(halves, 3, 60)}", call
    for size in (2, 3):
        call = functools.partial(of_networks, Population(), 60, size, by_group=False, **options)
        yield f"network, images resampled | {_described(Population(), size, 60)}", call
    for rounds in (2, 3, 5):
        for size in (1, 2, 3):
            call = functools.partial(of_recipes, Population(), 60, size, rounds, **options)
            yield f"recipe, {rounds} rounds | {_described(Population(), size, 60)}", call
        for changes in (
            *({"seed_std": 0.3}, {"seed_std": 0.0, "case_share": 0.5}, {"signal": 2.5}),
            {"bias": 1.0},
        ):
            population = Population()._replace(**changes)  # type: ignore[arg-type]
            call = functools.partial(of_recipes, population, 60, 2, rounds, **options)
            said = ", ".join(f"{name} {value}" for name, value in changes.items())
            yield f"recipe, {rounds} rounds, {said} | {_described(population, 2, 60)}", call
    population = Population(signal=2.5)
    call = functools.partial(of_recipes, population, 240, 2, 3, **options)
    yield f"recipe, 3 rounds, signal 2.5 | {_described(population, 2, 240)}", call
    for folds in (3, 5):
        call = functools.partial(of_recipes, Population(), 150, 2, folds, folds=True, **options)
        yield f"recipe, {folds} folds | {_described(Population(), 2, 150)}", call


def _described(population: Population, size: int, groups: int) -> str:
    shares = "/".join(f"{share:.2g}".lstrip("0") for share in population.shares)
    truth = population.truth(population.signal)
    auc = f"{truth['accuracy']:.2f} | {truth['auc']:.3f}".replace("0.", ".")
    return f"{shares} | {auc} | {groups} | {size}"


def _cells(held: Mapping[str, float]) -> str:
    return " | ".join(f"{held[name]:.3f}".lstrip("0") for name in METRICS)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000, help="test sets of each row")
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap")
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of the processes below
    rows = list(_rows(options.trials, options.resamples))
    error = (0.05 * 0.95 / options.trials) ** 0.5
    print(f"Share of intervals that hold the truth; {options.trials} trials, error {error:.3f}.\n")
    print("| interval of | classes | accuracy | AUC | groups | images of each "
          "| accuracy | F1 | AUC | difference: accuracy | F1 | AUC |")  # fmt: skip
    print("|---" * 12 + "|")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        for (name, _), done in zip(rows, [pool.submit(call) for _, call in rows], strict=True):
            found = done.result()
            value, difference = found if isinstance(found, tuple) else (found, None)
            last = " | | |" if difference is None else f" {_cells(difference)} |"
            print(f"| {name} | {_cells(value)} |{last}", flush=True)


if __name__ == "__main__":
    main()
