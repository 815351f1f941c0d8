"""Access to a finished run: its config, classes, networks, predictions and ensembles.

    run = SavedRun(Path("runs/busi"))
    model, variables, _ = run.classifier(run.branch("mae"), round_index=0)

It reads nothing but the workdir, which may have been moved.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from egmae_jax import models
from egmae_jax.core.errors import UserError
from egmae_jax.core.files import (
    REEVALUATE,
    RESTORE,
    DamagedFileError,
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
from egmae_jax.run.branches import Branch
from egmae_jax.run.config import load_config
from egmae_jax.run.workdir import Paths, local_path, read_intensity_range

PyTree = Any


class RunError(UserError):
    """The run cannot be used as requested; the message says what is missing or available."""


class Classifier(NamedTuple):
    """A fine-tuned branch: its network, variables, and the file they come from."""

    model: models.Model
    variables: PyTree  # "params" and, if the network has any, "batch_stats"; on the device
    weights: Path  # safetensors file with timm's tensor names


class Ensemble(NamedTuple):
    """Fusion and calibration of the probabilities of one round's branches."""

    fusion: Fusion | None  # fusion of the branches, in their order; None for a single branch
    scalings: dict[str, Scaling]  # by branch, and for 'ensemble' if there is a fusion

    def apply(
        self, probabilities: Mapping[str, np.ndarray], *, calibrated: bool
    ) -> dict[str, np.ndarray]:
        """Returns the probabilities of every branch and, if there are several, of 'ensemble'.

        Args:
            probabilities: probabilities by branch, in the order of the run, float [N, C] each.
            calibrated: whether to apply the calibration fitted on validation images. The ensemble
                is fused from uncalibrated probabilities and calibrated afterwards.

        Returns:
            Probabilities by name, [N, C] each; float64 if calibrated.
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
        paths: paths of the files in the workdir.
        branches: branches of the run, in the order of config.branches.
        rounds: indices of the rounds.

    Raises:
        RunError: the folder holds no run.
        DamagedFileError: config.json cannot be read or lacks a field.
        ConfigError: config.json names a branch whose network is unknown.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir = local_path(workdir)
        self.config = _read_config(workdir)
        self.paths = Paths.of(workdir, self.config)
        self.branches = branches.from_config(self.config)
        self.rounds = range(self.config.rounds.count)

    @functools.cached_property
    def intensity(self) -> IntensityRange:
        """Stored values of black and white in files with more than 8 bits per value.

        Raises:
            DamagedFileError: data.intensity_range is 'dataset', and intensity_range.json is missing
                or damaged.
        """
        if (rule := self.config.data.intensity_range) == "dataset":
            return read_intensity_range(self.paths)
        return IntensityRange(rule)

    def branch(self, name: str | None = None) -> Branch:
        """Returns a branch by name; None returns 'mae' if the run has it, else the first branch.

        Raises:
            RunError: the run has no such branch; the message lists its branches.
        """
        by_name = {branch.name: branch for branch in self.branches}
        if name is None:
            return by_name.get("mae", self.branches[0])
        if name not in by_name:
            known = ", ".join(map(repr, by_name))
            raise RunError(f"The run has no branch {name!r}; its branches are {known}.")
        return by_name[name]

    def require_round(self, index: int) -> None:
        """Raises RunError if the run has no round of this index."""
        if index not in self.rounds:
            last = self.rounds[-1]
            raise RunError(f"There is no round {index}; the run's are 0 to {last}.")

    def split(self, round_index: int) -> list[dict[str, Any]]:
        """Returns the rows of a round's splits.json.

        Raises:
            RunError: the run has no such round.
            DamagedFileError: splits.json is missing or damaged.
        """
        self.require_round(round_index)
        return splits.read(self.paths.splits(round_index))

    def predictions(self, branch: Branch, round_index: int, part: str) -> Predictions:
        """Loads the predictions of a branch for the 'validation' or 'test' part of a round.

        Raises:
            RunError: the run has no such round.
            DamagedFileError: the file of predictions is missing or damaged.
        """
        self.require_round(round_index)
        return load_predictions(self.paths.predictions(branch.name, round_index, part))

    def classes(self) -> tuple[str, ...]:
        """Returns the names of the classes, in the order of the networks' outputs.

        Raises:
            DamagedFileError: splits.json is missing or damaged.
        """
        return tuple(sorted({row["label"] for row in self.split(0)}))

    def classifier(self, branch: Branch, round_index: int) -> Classifier:
        """Loads the network of a branch with its fine-tuned weights.

        Raises:
            RunError: the weights do not exist, or have another number of classes.
            CheckpointError: the weights do not fit the network.
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
        dtype = jnp.dtype(self.config.model.dtype)
        model = models.create(name, num_classes, dtype=dtype, imagenet_input=True)
        variables = timm.load(weights, name)
        if (width := len(variables["params"]["head"]["fc"]["bias"])) != num_classes:
            raise RunError(f"{weights} has {width} classes, but splits.json has {num_classes}.")
        return Classifier(model, jax.device_put(variables), weights)

    def ensemble(self, round_index: int) -> Ensemble:
        """Reads the fusion and calibration of a round from results.json.

        Raises:
            RunError: the run has no such round, or has not been evaluated.
            DamagedFileError: results.json cannot be read.
        """
        self.require_round(round_index)
        row = self.results()["rounds"][round_index]
        scalings = {
            name: Scaling(x["temperature"], x["least_probability"])
            for name, x in row["calibration"].items()
        }
        if len(self.branches) == 1:
            return Ensemble(None, scalings)
        return Ensemble(Fusion(row["fusion"]["kind"], row["fusion"]), scalings)

    def results(self) -> dict[str, Any]:
        """Reads results.json.

        Raises:
            RunError: the run has not been evaluated.
            DamagedFileError: results.json cannot be read.
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
    config = load_config(path)
    for problem in rules.type_problems(config):
        raise DamagedFileError(path, problem.removesuffix("."), RESTORE)
    return config
