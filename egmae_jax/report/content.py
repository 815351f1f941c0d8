"""Numbers of one run for its report and table, read from the workdir."""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egmae_jax import models
from egmae_jax.core.errors import shorten_list
from egmae_jax.core.files import REEVALUATE
from egmae_jax.evaluation import operating_points
from egmae_jax.evaluation.metrics import INTERVAL_METRICS, TITLES
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.significance import Resampled, Round, mcnemar
from egmae_jax.models.init import abstract_variables
from egmae_jax.run.saved_run import RunError, SavedRun
from egmae_jax.run.workdir import local_path

logger = logging.getLogger(__name__)
RESAMPLES = 2000  # number of bootstrap resamples


class Content:
    """Numbers of one run for its report.

    Args:
        workdir: folder of a run that has been evaluated.
        data_dir: folder of the images; None: the folder in the run's config.

    Attributes:
        saved: the saved run.
        results: content of results.json.
        config: config of the run, from results.json.
        title: name of the data set.
        classes: names of the classes.
        classifiers: names of the branches; with several branches, 'ensemble' is last.
        data_dir: folder of the images.

    Raises:
        RunError: the run has not been evaluated.
        DamagedFileError: config.json or results.json cannot be read.
    """

    def __init__(self, workdir: Path, data_dir: Path | None = None):
        self.saved = SavedRun(workdir)
        self.results = self.saved.results()
        summary = next(iter(self.results["summary"].values()))
        if missing := [name for name in TITLES if name not in summary]:
            raise RunError(
                f"{self.saved.paths.results} has no {missing[0]}, because an earlier version wrote "
                f"it: {REEVALUATE}."
            )
        self.config: dict[str, Any] = self.results["config"]
        self.title: str = self.results["dataset"]["title"]
        self.classes: list[str] = self.results["dataset"]["classes"]
        self.classifiers = list(self.results["summary"])
        metrics = next(iter(self.results["summary"].values()))
        if unknown := [name for name in metrics if name not in TITLES]:
            logger.warning(
                "The report has no column for %s, which the run measured: import the module of "
                "yours that registers it by --import=MODULE",
                shorten_list(unknown),
            )
        self.data_dir = local_path(data_dir or self.saved.config.data.dir)

    # --- Predictions ---

    @functools.cached_property
    def predictions(self) -> list[dict[str, Predictions]]:
        """Test predictions of the branches by name, for each round."""
        return self._predictions("test")

    @functools.cached_property
    def validation(self) -> list[dict[str, Predictions]]:
        """Validation predictions of the branches by name, for each round."""
        return self._predictions("validation")

    def _predictions(self, part: str) -> list[dict[str, Predictions]]:
        return [
            {b.name: self.saved.predictions(b, index, part) for b in self.saved.branches}
            for index in self.saved.rounds
        ]

    def probabilities(
        self, index: int, *, calibrated: bool, part: str = "test"
    ) -> list[np.ndarray]:
        """Returns the probabilities of each classifier in a round, float [N, num_classes].

        Args:
            index: index of the round.
            calibrated: whether the probabilities are calibrated.
            part: 'validation' or 'test'.
        """
        predictions = (self.predictions if part == "test" else self.validation)[index]
        by_branch = {name: x.probabilities for name, x in predictions.items()}
        return list(self.saved.ensemble(index).apply(by_branch, calibrated=calibrated).values())

    @functools.cached_property
    def rounds(self) -> list[Round]:
        """Test predictions of all classifiers, for each round."""
        rounds = []
        for index, by_branch in enumerate(self.predictions):
            first = next(iter(by_branch.values()))
            probabilities = self.probabilities(index, calibrated=False)
            rounds.append(Round(first.ids, first.labels, probabilities, first.groups))
        return rounds

    @functools.cached_property
    def calibrated(self) -> list[Round]:
        """Test predictions of all classifiers with calibrated probabilities, for each round."""
        return [
            r._replace(probabilities=self.probabilities(index, calibrated=True))
            for index, r in enumerate(self.rounds)
        ]

    @functools.cached_property
    def operating_points(self) -> list[list[list[operating_points.Point]]]:
        """Operating points by classifier, class and target, of calibrated probabilities."""
        thresholds = []
        for index, by_branch in enumerate(self.validation):
            labels = next(iter(by_branch.values())).labels
            each = self.probabilities(index, calibrated=True, part="validation")
            thresholds.append([operating_points.choose_thresholds(labels, p) for p in each])
        return operating_points.estimate(self.calibrated, thresholds, resamples=RESAMPLES)

    @functools.cached_property
    def resampled(self) -> Resampled:
        """Bootstrap resamples of the classifiers' metrics."""
        return Resampled(self.rounds, resamples=RESAMPLES)

    # --- Tables ---

    @functools.cached_property
    def summary(self) -> list[dict[str, Any]]:
        """A row per classifier: name, model ('' for the ensemble), size, metrics and intervals."""
        trainable = self.results["rounds"][0]["trainable"]
        parameters = {name: trainable[name]["parameters"] for name in self.results["branches"]}
        return [
            {
                "name": name,
                "model": self.results["branches"].get(name, ""),
                "parameters": parameters.get(name, sum(parameters.values())),
                "metrics": self.results["summary"][name],
                "intervals": {m: self.resampled.estimate(k, m) for m in INTERVAL_METRICS},
            }
            for k, name in enumerate(self.classifiers)
        ]

    @property
    def gigaflops(self) -> dict[str, float]:
        """Multiply-adds for one image in 10^9, by classifier."""
        size = self.config["data"]["image_size"]
        flops = {
            branch.name: count_multiply_adds(branch.model_name, len(self.classes), size) / 1e9
            for branch in self.saved.branches
        }
        return flops | {"ensemble": sum(flops.values())}

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """Tests of the last classifier, the ensemble if there is one, against each other one."""
        *others, last = enumerate(self.classifiers)
        return [pair(self.rounds, self.resampled, other, last) for other in others]

    @property
    def confusion(self) -> dict[str, list[list[int]]]:
        """Confusion matrices by classifier, [true][predicted], summed over rounds."""
        rounds = self.results["rounds"]
        return {
            name: np.sum([r["confusion"][name] for r in rounds], axis=0).tolist()
            for name in self.classifiers
        }

    @property
    def calibrations(self) -> list[dict[str, Any]]:
        """A row per classifier: mean ECE before and after calibration, temperature by round."""
        rounds = self.results["rounds"]
        return [
            {
                "name": name,
                "before": np.mean([r["test"][name]["ece"] for r in rounds]),
                "after": np.mean([r["calibration"][name]["ece"] for r in rounds]),
                "temperatures": [r["calibration"][name]["temperature"] for r in rounds],
            }
            for name in self.classifiers
        ]

    @property
    def validated_groups(self) -> list[tuple[int, int]]:
        """Fewest groups of validation images with each class, and with the rest, in a round."""
        parts = [next(iter(by_branch.values())) for by_branch in self.validation]
        return [
            (
                min(len(np.unique(x.groups[x.labels == label])) for x in parts),
                min(len(np.unique(x.groups[x.labels != label])) for x in parts),
            )
            for label in range(len(self.classes))
        ]

    @property
    def tested_counts(self) -> dict[str, int]:
        """Number of test images of each class, over all folds."""
        dataset = self.results["dataset"]
        parts = [r["counts"] for r in self.results["rounds"] if "counts" in r]
        parts = parts or [dataset["counts"]]
        return {name: sum(counts["test"][name] for counts in parts) for name in self.classes}


class ExternalContent(Content):
    """Numbers of a run's evaluation on images from elsewhere.

    Args:
        workdir: folder of the run.
        results: results of the evaluation, laid out like those of a run.
        predictions: predictions of the branches by name, for each round.

    Attributes:
        own: results of the run on its own test images.
    """

    def __init__(
        self,
        workdir: Path,
        results: dict[str, Any],
        predictions: list[dict[str, Predictions]],
    ):
        super().__init__(workdir)
        self.own = self.results
        self.results, self.title = results, results["dataset"]["title"]
        self._external = predictions

    @functools.cached_property
    def predictions(self) -> list[dict[str, Predictions]]:
        """Predictions of the branches by name, for each round."""
        return self._external


def pair(
    rounds: Sequence[Round], resampled: Resampled, first: tuple[int, str], second: tuple[int, str]
) -> dict[str, Any]:
    """Compares two classifiers on the same test images.

    Args:
        rounds: test predictions of each round.
        resampled: bootstrap resamples of these rounds.
        first: index in `rounds[i].probabilities`, and name, of the first classifier.
        second: index and name of the second classifier.

    Returns:
        {"first": name, "second": name, "differences": {metric: `Estimate` of second minus first},
        "p": p-value of McNemar's test in each round}.
    """
    (i, first_name), (j, second_name) = first, second
    return {
        "first": first_name,
        "second": second_name,
        "differences": {m: resampled.difference(i, j, m) for m in ("accuracy", "f1", "auc")},
        "p": [
            mcnemar(r.labels, r.probabilities[i], r.probabilities[j], r.groups).p for r in rounds
        ],
    }


def count_multiply_adds(model_name: str, num_classes: int, image_size: int) -> float:
    """Counts the multiply-adds of a network for one image, as XLA does before it optimizes."""
    model = models.create(model_name, num_classes)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    program = jax.jit(model.apply).lower(abstract_variables(model, image), image)
    cost: Any = program.cost_analysis()
    return cost["flops"] / 2
