"""A run that has finished, opened to be used: its config, classes, networks and how it fuses them.

    run = SavedRun(Path("runs/busi"))
    model, variables, _ = run.classifier(run.branch("mae"), round_index=0)

Only the workdir is read, so it may have been moved from where it was made.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from egmae_jax import models
from egmae_jax.core.errors import UserError
from egmae_jax.core.files import (
    REEVALUATE,
    RESTORE,
    DamagedFileError,
    damaged,
    explain_storage_errors,
    read_json,
)
from egmae_jax.data import splits
from egmae_jax.data.samples import IntensityRange
from egmae_jax.evaluation.calibration import Scaling
from egmae_jax.evaluation.predictions import Predictions, load_predictions
from egmae_jax.method.fusion import Fusion
from egmae_jax.models import timm
from egmae_jax.run import branches, rules
from egmae_jax.run import config as configs
from egmae_jax.run.branches import Branch
from egmae_jax.run.workdir import Paths, local_folder, read_intensity_range

PyTree = Any


class RunError(UserError):
    """The run cannot be used; the message names what is missing and what would do."""


class Classifier(NamedTuple):
    """A fine-tuned branch."""

    model: nn.Module
    variables: PyTree
    weights: Path


class Ensemble(NamedTuple):
    """How the probabilities of a round's branches are fused and calibrated."""

    fusion: Fusion | None  # how the branches, in their order, are fused; None for a single one
    scalings: dict[str, Scaling]  # by branch, and for 'ensemble' where there are several

    def apply(
        self, probabilities: Mapping[str, np.ndarray], *, calibrated: bool
    ) -> dict[str, np.ndarray]:
        """Probabilities of every branch, then of 'ensemble' where there are several.

        Args:
            probabilities: [N, C] of every branch, in the order of the run.
            calibrated: whether they are scaled as was fitted on validation. The ensemble is fused
                from what the networks give, and scaled after that.

        Returns:
            [N, C] each; float64 where calibrated.
        """
        result = dict(probabilities)
        if self.fusion is not None:
            result["ensemble"] = self.fusion.apply(list(probabilities.values()))
        if not calibrated:
            return result
        return {name: self.scalings[name].apply(p) for name, p in result.items()}


class SavedRun:
    """A run whose fine-tuning has finished.

    Args:
        workdir: folder of the run.

    Attributes:
        workdir: folder of the run, with the home folder in place of `~`.
        config: config of the run.
        paths: paths of the files that it left.
        branches: its classifiers, in the order of config.branches.
        rounds: indices of its rounds.

    Raises:
        RunError: there is no run.
        DamagedFileError: config.json cannot be read, or lacks a field.
        ConfigError: config.json names a branch whose network is not known.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir = local_folder(workdir)
        self.config = _read_config(workdir)
        self.paths = Paths(workdir, folds=self.config.rounds.kind == "folds")
        self.branches = branches.from_config(self.config)
        self.rounds = range(self.config.rounds.count)

    @functools.cached_property
    def intensity(self) -> IntensityRange:
        """Which stored values of files with more than 8 bits a value are black and white.

        Raises:
            DamagedFileError: they are the data set's, and the file that holds them is missing or
                damaged.
        """
        if (rule := self.config.data.intensity_range) == "dataset":
            return read_intensity_range(self.paths)
        return IntensityRange(rule)

    def branch(self, name: str | None = None) -> Branch:
        """A branch by its name; None: 'mae' if the run has it, else the first.

        Raises:
            RunError: the run has no such branch; names those it has.
        """
        of_run = {branch.name: branch for branch in self.branches}
        if name is None:
            return of_run.get("mae", self.branches[0])
        if name not in of_run:
            known = ", ".join(map(repr, of_run))
            raise RunError(f"The run has no branch {name!r}; its branches are {known}.")
        return of_run[name]

    def require_round(self, index: int) -> None:
        """Raises RunError where there is no such round."""
        if index not in self.rounds:
            last = self.rounds[-1]
            raise RunError(f"There is no round {index}; the run's are 0 to {last}.")

    def split(self, round_index: int) -> list[dict[str, Any]]:
        """The rows of a round's splits.json.

        Raises:
            RunError: there is no such round.
            DamagedFileError: the file is missing or damaged.
        """
        self.require_round(round_index)
        return splits.read(self.paths.splits(round_index))

    def predictions(self, branch: Branch, round_index: int, part: str) -> Predictions:
        """Predictions of a branch for the validation or test images of a round.

        Raises:
            RunError: there is no such round.
            DamagedFileError: the file is missing or damaged.
        """
        self.require_round(round_index)
        return load_predictions(self.paths.predictions(branch.name, round_index, part))

    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the networks' outputs; raises as `split`."""
        return tuple(sorted({row["label"] for row in self.split(0)}))

    def classifier(self, branch: Branch, round_index: int) -> Classifier:
        """The model of a branch with its fine-tuned weights.

        Raises:
            RunError: there are none yet, or of another number of classes.
            CheckpointError: they are not the model's.
        """
        num_classes = len(self.classes())
        weights = self.paths.finetuned(branch.name, round_index)
        if not weights.is_file():
            exported = (
                re.fullmatch(r"round_(\d+)_(.+)", path.stem)
                for path in sorted(weights.parent.glob("round_*_*.safetensors"))
            )
            finished = [f"--branch={match[2]} --round={match[1]}" for match in exported if match]
            raise RunError(
                f"There is no {weights}. Fine-tuned are: {', '.join(finished) or 'none yet'}."
            )
        name = branch.model_name
        model = models.create(name, num_classes, dtype=jnp.dtype(self.config.model.dtype))
        variables = timm.load(weights, name)
        if (width := len(variables["params"]["head"]["fc"]["bias"])) != num_classes:
            raise RunError(f"{weights} has {width} classes, the run's images {num_classes}.")
        return Classifier(model, jax.device_put(variables), weights)

    def ensemble(self, round_index: int) -> Ensemble:
        """How a round fuses and calibrates the probabilities of its branches.

        Raises:
            RunError: there is no such round, or the run has not been evaluated.
            DamagedFileError: results.json does not say how.
        """
        self.require_round(round_index)
        results = self.results()
        try:
            row = results["rounds"][round_index]
            scalings = {
                name: Scaling(x["temperature"], x["least_probability"])
                for name, x in row["calibration"].items()
            }
            if len(self.branches) == 1:
                return Ensemble(None, scalings)
            return Ensemble(Fusion(row["fusion"]["kind"], row["fusion"]), scalings)
        except (LookupError, TypeError, AttributeError) as error:
            reason = "it does not say how branches are fused and calibrated"
            raise damaged(self.paths.results, reason, error, REEVALUATE) from error

    def results(self) -> dict[str, Any]:
        """The content of results.json.

        Raises:
            RunError: the run has not been evaluated.
            DamagedFileError: the file cannot be read.
        """
        path = self.paths.results
        if not path.is_file():
            raise RunError(f"There is no {path}: the run has not been evaluated yet.")
        return read_json(path, REEVALUATE)


def _read_config(workdir: Path) -> ConfigDict:
    path = workdir / "config.json"
    with explain_storage_errors(workdir):
        is_run = path.is_file()
    if not is_run:
        raise RunError(f"{workdir} holds no run: there is no config.json in it.")
    config = configs.load(path)
    for problem in rules.type_problems(config):
        raise DamagedFileError(path, problem.removesuffix("."), RESTORE)
    return config
