"""Several runs side by side: names that tell them apart, paired tests, config differences."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.significance import Resampled, Round
from egmae_jax.report.content import RESAMPLES, Content, pair
from egmae_jax.run import config as configs
from egmae_jax.run.saved_run import RunError


class Comparison:
    """Runs that are compared with the first of them.

    Args:
        workdirs: folders of runs that have been evaluated.

    Attributes:
        runs: content of each run, by a name that tells it apart.

    Raises:
        RunError: a run has not been evaluated, or is given twice.
        DamagedFileError: a file of a workdir cannot be read.
    """

    def __init__(self, workdirs: Sequence[Path]):
        if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
            raise RunError("A --workdir is given twice.")
        contents = map(Content, workdirs)
        self.runs = dict(zip(_distinct_names(workdirs), contents, strict=True))

    @functools.cached_property
    def incomparable(self) -> list[str]:
        """Runs with other test images than the first, in a round that both have."""
        base, *_ = self.runs.values()
        return [
            name
            for name, run in self.runs.items()
            if not all(same_images(a, b) for a, b in zip(base.rounds, run.rounds, strict=False))
        ]

    @functools.cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """The last classifier of each run paired with the first run's, on the same images.

        Rounds are paired in order, as far as both runs have them.
        """
        (first, base), *others = self.runs.items()
        return [
            _pair(first, base, name, run) for name, run in others if name not in self.incomparable
        ]

    @property
    def config_differences(self) -> list[tuple[str, list[Any]]]:
        """Config fields that differ, with each run's value; None: the run has no such field."""
        flats = [configs.flatten(run.config) for run in self.runs.values()]
        fields = dict.fromkeys(field for flat in flats for field in flat)
        rows = [(field, [flat.get(field) for flat in flats]) for field in fields]
        return [row for row in rows if any(value != row[1][0] for value in row[1])]


def same_images(first: Round | Predictions, second: Round | Predictions) -> bool:
    """Whether two sets of predictions are of the same images in the same order."""
    return np.array_equal(first.ids, second.ids) and np.array_equal(first.labels, second.labels)


def _pair(first: str, base: Content, second: str, run: Content) -> dict[str, Any]:
    rounds = [
        Round(a.ids, a.labels, (a.probabilities[-1], b.probabilities[-1]), a.groups)
        for a, b in zip(base.rounds, run.rounds, strict=False)
    ]
    resampled = Resampled(rounds, resamples=RESAMPLES)
    return pair(rounds, resampled, (0, first), (1, second))


def _distinct_names(workdirs: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as tell them apart."""
    parts = [workdir.resolve().parts for workdir in workdirs]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]
