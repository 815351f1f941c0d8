"""Comparison of several runs: distinct names, paired tests, and config differences."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.significance import Resampled, Round
from egmae_jax.report.content import RESAMPLES, Content, pair
from egmae_jax.run.config import flatten
from egmae_jax.run.saved_run import RunError


class Comparison:
    """Runs to compare with the first of them.

    Args:
        workdirs: folders of runs that have been evaluated.

    Attributes:
        runs: contents of the runs by distinct names, in the order of `workdirs`.

    Raises:
        RunError: a run has not been evaluated, or a folder appears twice.
        DamagedFileError: a file of a workdir cannot be read.
    """

    def __init__(self, workdirs: Sequence[Path]):
        if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
            raise RunError("The same --workdir is given twice; give each run once.")
        contents = map(Content, workdirs)
        self.runs = dict(zip(_distinct_names(workdirs), contents, strict=True))

    @functools.cached_property
    def incomparable(self) -> list[str]:
        """Names of the runs whose test images differ from the first run's in a common round."""
        base, *_ = self.runs.values()
        return [
            name
            for name, run in self.runs.items()
            if not all(same_images(a, b) for a, b in zip(base.rounds, run.rounds, strict=False))
        ]

    @functools.cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """Tests of each comparable run's last classifier against the first run's; see `pair`.

        Rounds are paired by index; rounds that only one run has are ignored.
        """
        (first, base), *others = self.runs.items()
        return [
            _pair(first, base, name, run) for name, run in others if name not in self.incomparable
        ]

    @property
    def config_differences(self) -> list[tuple[str, list[Any]]]:
        """Config fields that differ, each with the values of all runs; None for a missing field."""
        flats = [flatten(run.config) for run in self.runs.values()]
        fields = dict.fromkeys(field for flat in flats for field in flat)
        rows = [(field, [flat.get(field) for flat in flats]) for field in fields]
        return [row for row in rows if any(value != row[1][0] for value in row[1])]


def same_images(first: Round | Predictions, second: Round | Predictions) -> bool:
    """Returns whether two sets of predictions have the same images in the same order."""
    return np.array_equal(first.ids, second.ids) and np.array_equal(first.labels, second.labels)


def _pair(first: str, base: Content, second: str, run: Content) -> dict[str, Any]:
    rounds = [
        Round(a.ids, a.labels, (a.probabilities[-1], b.probabilities[-1]), a.groups)
        for a, b in zip(base.rounds, run.rounds, strict=False)
    ]
    resampled = Resampled(rounds, resamples=RESAMPLES)
    return pair(rounds, resampled, (0, first), (1, second))


def _distinct_names(workdirs: Sequence[Path]) -> list[str]:
    """Returns the names of the folders, with as many parent folders as make them distinct."""
    parts = [workdir.resolve().parts for workdir in workdirs]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]
