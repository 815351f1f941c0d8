"""A run that has finished, opened to be used: its config, classes, networks and how it fuses them.

    run = SavedRun(Path("runs/busi"))
    model, variables, _ = run.classifier(run.branch("mae"), round_index=0)

Only the workdir is read, so it may have been moved from where it was made.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from egmae_jax import models
from egmae_jax.core.errors import ConfigError, UserError
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
from egmae_jax.evaluation import calibration
from egmae_jax.evaluation.calibration import Scaling
from egmae_jax.evaluation.predictions import NoGroupsError, Predictions, load_predictions
from egmae_jax.method.fusion import Fusion
from egmae_jax.models import timm
from egmae_jax.run import branches, rules
from egmae_jax.run import config as configs
from egmae_jax.run.branches import Branch
from egmae_jax.run.workdir import Paths, local_folder, read_intensity_range

PyTree = Any
# What is read here and by those who use a run; a damaged config.json is told by these.
_FIELDS = {
    "data": ("name", "dir", "color", "intensity_range", "resize", "image_size"),
    "model": ("name", "dtype"),
    "imagenet": ("model",),
    "finetune": ("input_noise",),
    "evaluation": ("resize",),
    "rounds": ("kind", "count"),
}


class RunError(UserError):
    """The run cannot be used so; the message says what is missing and what would do."""


class Classifier(NamedTuple):
    """A fine-tuned branch."""

    model: nn.Module
    variables: PyTree
    weights: Path


class Ensemble(NamedTuple):
    """What is done with the probabilities of a round's branches; both fitted on validation."""

    fusion: Fusion | None  # of the branches, in their order; None where there is but one
    scalings: dict[str, Scaling]  # by branch, and of 'ensemble' where there is one
    limits: dict[str, str]  # of those that a limit acted on: `calibration.explain`

    def apply(
        self, probabilities: Mapping[str, np.ndarray], *, calibrated: bool
    ) -> dict[str, np.ndarray]:
        """What results.json scores: of every branch, then of 'ensemble' where there are several.

        Args:
            probabilities: [N, C], of every branch in the order of the run.
            calibrated: scales them as was fitted on validation. That is of the probabilities as
                the networks give them, the ensemble's of those fused: it is fused before it is
                scaled.

        Returns:
            [N, C] each; float64 where calibrated.
        """
        found = dict(probabilities)
        if self.fusion is not None:
            found["ensemble"] = self.fusion.apply(list(probabilities.values()))
        if not calibrated:
            return found
        return {name: self.scalings[name].apply(p) for name, p in found.items()}


class SavedRun:
    """A run whose fine-tuning has finished.

    Args:
        workdir: of the run.

    Attributes:
        workdir: as given.
        config: of the run.
        paths: where it left what.
        branches: its classifiers, in the order of config.branches.
        rounds: their indices.

    Raises:
        RunError: there is no run.
        DamagedFileError: config.json cannot be read, or lacks a field.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir = local_folder(workdir)
        self.config = _read_config(workdir)
        self.paths = Paths(workdir, folds=self.config.rounds.kind == "folds")
        self.branches = branches.of(self.config)
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
            raise RunError(f"The run has no branch {name!r}; its branches are {_listed(of_run)}.")
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
            DamagedFileError: the file is missing, not whole, or names no test image.
        """
        self.require_round(round_index)
        path = self.paths.splits(round_index)
        if not path.is_file():
            raise DamagedFileError(path, "it is missing", RESTORE)
        rows = splits.read(path)
        if not any(row["split"] == "test" for row in rows):
            raise DamagedFileError(path, "it names no test image", RESTORE)
        return rows

    def predictions(self, branch: Branch, round_index: int, split: str) -> Predictions:
        """What a branch said of the validation or test images of a round, with their groups.

        Predictions of an older version hold no groups: they are those of splits.json.

        Raises:
            RunError: there is no such round.
            DamagedFileError: the file is missing, not whole, or its groups are nowhere.
        """
        self.require_round(round_index)
        path = self.paths.predictions(branch.name, round_index, split)
        try:
            return load_predictions(path)
        except NoGroupsError:
            group_of = {row["file"]: row["group"] for row in self.split(round_index)}
            return load_predictions(path, group_of)

    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the networks' outputs; raises as `split`."""
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
            found = [f"--branch={match[2]} --round={match[1]}" for match in exported if match]
            raise RunError(
                f"There is no {weights}. Fine-tuned are: {', '.join(found) or 'none yet'}."
            )
        name = branch.model_name
        model = models.create(name, num_classes, dtype=jnp.dtype(self.config.model.dtype))
        variables = timm.load(weights, name)
        if (width := len(variables["params"]["head"]["fc"]["bias"])) != num_classes:
            raise RunError(f"{weights} has {width} classes, the run's images {num_classes}.")
        return Classifier(model, jax.device_put(variables), weights)

    def ensemble(self, round_index: int) -> Ensemble:
        """How a round fuses and calibrates what its branches say.

        Raises:
            RunError: there is no such round, or the run has not been evaluated.
            DamagedFileError: results.json does not say how, being damaged or of an older version.
        """
        self.require_round(round_index)
        results, num_classes = self.results(), len(self.classes())
        try:
            row = results["rounds"][round_index]
            names = [branch.name for branch in self.branches]
            names += ["ensemble"] if len(names) > 1 else []
            scalings = {name: _scaling(row["calibration"][name], num_classes) for name in names}
            told = {name: calibration.explain(row["calibration"][name]) for name in names}
            limits = {name: sentence for name, sentence in told.items() if sentence}
            if len(self.branches) == 1:
                return Ensemble(None, scalings, limits)
            fitted = {k: v for k, v in row["fusion"].items() if k not in ("kind", "branches")}
            fusion = Fusion(row["fusion"]["kind"], fitted)
            fusion.apply([np.full((1, num_classes), 0.5)] * len(self.branches))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = "it does not say how branches are fused and calibrated"
            raise damaged(self.paths.results, reason, error, REEVALUATE) from error
        return Ensemble(fusion, scalings, limits)

    def results(self) -> dict[str, Any]:
        """The content of results.json, which is read once; all callers get the same object.

        Raises:
            RunError: the run has not been evaluated.
            DamagedFileError: the file cannot be read.
        """
        return self._results

    @functools.cached_property
    def _results(self) -> dict[str, Any]:
        path = self.paths.results
        if not path.is_file():
            raise RunError(f"There is no {path}: the run has not been evaluated yet.")
        return read_json(path, REEVALUATE)


def _scaling(row: Mapping[str, Any], num_classes: int) -> Scaling:
    """Scaling as results.json has it; older versions have no least probability."""
    scaling = Scaling(float(row["temperature"]), float(row.get("least_probability", 0.0)))
    if not (0 < scaling.temperature < np.inf and 0 <= scaling.least <= 1 / num_classes):
        raise ValueError(f"a calibration is {scaling}")
    return scaling


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _read_config(workdir: Path) -> ConfigDict:
    path = workdir / "config.json"
    with explain_storage_errors(workdir):
        is_run = path.is_file()
    if not is_run:
        raise RunError(f"{workdir} holds no run: there is no config.json in it.")
    config = configs.load(path)
    for section, fields in _FIELDS.items():
        for field in fields:
            try:
                config[section][field]
            except (KeyError, TypeError, AttributeError):
                raise DamagedFileError(path, f"it has no {section}.{field}", RESTORE) from None
    names = {f"{section}.{field}" for section, fields in _FIELDS.items() for field in fields}
    names |= {"branches"} & set(config)
    for problem in rules.type_problems(config, names):
        raise DamagedFileError(path, problem.removesuffix("."), RESTORE)
    try:
        branches.of(config)
    except AttributeError:
        raise DamagedFileError(path, "it has no branches", RESTORE) from None
    except (TypeError, ValueError, ConfigError) as error:
        raise DamagedFileError(path, f"branches: {error}", RESTORE) from None
    return config
