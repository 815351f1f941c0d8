"""What the pages and tables of runs say, gathered from their workdirs.

It is text and numbers as they are; whoever writes them down escapes them.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egmae_jax.core.errors import UserError
from egmae_jax.core.files import REEVALUATE, DamagedFileError, read_json
from egmae_jax.evaluation import bootstrap, calibration
from egmae_jax.evaluation.bootstrap import Evidence
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.significance import Resampled, Round, mcnemar
from egmae_jax.explain.gradcam import Layer
from egmae_jax.report import complexity, figures, pictures, published
from egmae_jax.run import config as configs
from egmae_jax.run import logs
from egmae_jax.run.saved_run import RunError, SavedRun
from egmae_jax.run.workdir import local_folder

METRICS = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "auc": "AUC",
    "specificity": "Specificity",
    "pr_auc": "PR-AUC",
    "ece": "ECE",
}
WITH_INTERVALS = ("accuracy", "precision", "recall", "f1", "auc")
_COMPARED = ("accuracy", "f1", "auc")
_CASES = 3  # images of each kind
_RECONSTRUCTED = 4  # images
_RESAMPLES = 2000

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two classifiers of a run, or of two."""

    first: str
    second: str
    differences: Mapping[str, Any]  # metric -> Estimate of second minus first
    p: Sequence[float]  # McNemar's, round by round


class Content:
    """What is said of a run; every property is computed where it is asked for."""

    def __init__(self, run: SavedRun, data_dir: Path | None):
        self.run = run
        self.results = run.results()
        try:
            self.config = self.results["config"]
            self.classes = self.results["dataset"]["classes"]
        except (LookupError, TypeError) as error:
            reason = f"it does not say of what it is ({error!r})"
            raise DamagedFileError(run.paths.results, reason, REEVALUATE) from None
        self.moved = data_dir is not None
        self.data_dir = local_folder(data_dir or run.config.data.dir, "--data_dir")
        self.flat_config = configs.flatten(self.config)

    # --- Predictions ---

    @functools.cached_property
    def classifiers(self) -> list[str]:
        """The branches, and the ensemble where there is one."""
        return list(self.results["summary"])

    @functools.cached_property
    def predictions(self) -> list[dict[str, Predictions]]:
        """Of the test images, by branch, round by round."""
        return [
            {
                branch.name: self.run.predictions(branch, index, "test")
                for branch in self.run.branches
            }
            for index in self.run.rounds
        ]

    @functools.cached_property
    def tested(self) -> list[Round]:
        """What all classifiers say of the test images, round by round."""
        found = []
        for index, of_round in enumerate(self.predictions):
            first = next(iter(of_round.values()))
            said = list(self._said(index, False).values())
            found.append(Round(first.ids, first.labels, said, first.groups))
        return found

    def _said(self, index: int, calibrated: bool) -> dict[str, np.ndarray]:
        """Probabilities of a round's test images by classifier."""
        of_branches = {name: x.probabilities for name, x in self.predictions[index].items()}
        return self.run.ensemble(index).apply(of_branches, calibrated=calibrated)

    @functools.cached_property
    def resampled(self) -> Resampled:
        """Their metrics on resampled images.

        Raises:
            DamagedFileError: results.json is not of these predictions.
        """
        found = Resampled(self.tested, resamples=_RESAMPLES)
        for k, name in enumerate(self.classifiers):
            for metric in WITH_INTERVALS:
                said = self.results["summary"][name][metric]["mean"]
                if abs(said - found.estimate(k, metric).mean) > 1e-6:
                    reason = f"its {metric} of {name} is not that of predictions/"
                    remedy = "run main.py with --stage=evaluate, which makes both anew"
                    raise DamagedFileError(self.run.paths.results, reason, remedy)
        return found

    @functools.cached_property
    def said(self) -> dict[str, list[figures.Said]]:
        """The same by classifier, with calibrated probabilities, for the curves."""
        said: dict[str, list[figures.Said]] = {name: [] for name in self.classifiers}
        for index, tested in enumerate(self.tested):
            calibrated = self._said(index, True)
            for name, p in zip(self.classifiers, tested.probabilities, strict=True):
                said[name].append(figures.Said(tested.labels, p, calibrated[name]))
        return said

    # --- Tables ---

    @property
    def summary(self) -> list[dict[str, Any]]:
        """A row a classifier: name, {metric: mean and std}, {metric: estimate with interval}."""
        return [
            {
                "name": name,
                "model": self.results["branches"].get(name, ""),
                "metrics": self.results["summary"][name],
                "intervals": {m: self.resampled.estimate(k, m) for m in WITH_INTERVALS},
            }
            for k, name in enumerate(self.classifiers)
        ]

    @property
    def pairs(self) -> list[Pair]:
        """Every classifier against the last, which is the ensemble where there is one."""
        last = len(self.classifiers) - 1
        return [
            Pair(
                self.classifiers[k],
                self.classifiers[last],
                {m: self.resampled.difference(k, last, m) for m in _COMPARED},
                [
                    mcnemar(t.labels, t.probabilities[k], t.probabilities[last], t.groups).p
                    for t in self.tested
                ],
            )
            for k in range(last)
        ]

    @property
    def published(self) -> published.Table | None:
        """The paper's table of this data set."""
        return published.table_of(self.results["dataset"]["name"], len(self.classes))

    @property
    def recipe(self) -> str:
        """What was run, in words, where it is not the paper's; else ''."""
        model, size = self.config["model"]["name"], self.config["data"]["image_size"]
        epochs = self.config["pretrain"]["epochs"], self.config["finetune"]["epochs"]
        if (model, size, epochs) == ("convnext_tiny", 224, (1000, 15)):
            return ""
        return f"{model} at {size} pixels, {epochs[0]} / {epochs[1]} epochs"

    @functools.cached_property
    def costs(self) -> dict[str, complexity.Complexity]:
        """Of each classifier; the ensemble's is the sum."""
        size = self.config["data"]["image_size"]
        found = {
            name: complexity.of_network(model, len(self.classes), size)
            for name, model in self.results["branches"].items()
        }
        if "ensemble" in self.classifiers:
            each = found.values()
            found["ensemble"] = complexity.Complexity(
                sum(c.parameters for c in each), sum(c.multiply_adds for c in each)
            )
        return found

    @property
    def confusion(self) -> dict[str, list[list[dict[str, float]]]]:
        """By classifier, [true][predicted]: images, summed over rounds, and share of the true."""
        tables = {}
        for name in self.classifiers:
            counts = np.sum([r["confusion"][name] for r in self.results["rounds"]], axis=0)
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            tables[name] = [
                [{"count": int(n), "share": float(s)} for n, s in zip(*row, strict=True)]
                for row in zip(counts, shares, strict=True)
            ]
        return tables

    @property
    def confusion_digits(self) -> int:
        """Digits of the largest count in `confusion`, which its columns must have room for."""
        counts = [cell["count"] for t in self.confusion.values() for row in t for cell in row]
        return len(str(max(counts)))

    @property
    def calibrations(self) -> list[dict[str, Any]]:
        """A row a classifier: mean ECE before and after, the rounds' temperatures."""
        rounds = self.results["rounds"]
        return [
            {
                "name": name,
                "before": float(np.mean([r["test"][name]["ece"] for r in rounds])),
                "after": float(np.mean([r["calibration"][name]["ece"] for r in rounds])),
                "temperatures": [r["calibration"][name]["temperature"] for r in rounds],
            }
            for name in self.classifiers
        ]

    @property
    def calibration_limits(self) -> list[str]:
        """What acted on the fits of the temperatures, a sentence each, with whose and when."""
        return calibration.explain_rounds(self.results["rounds"], self.classifiers)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """{split: {class: images}}, of the first round where rounds differ."""
        return self.results["dataset"]["counts"]

    @property
    def tested_counts(self) -> dict[str, int]:
        """{class: test images}, in all folds: each image is in the test part of one."""
        parts = [r["counts"] for r in self.results["rounds"] if "counts" in r] or [self.counts]
        return {name: sum(counts["test"][name] for counts in parts) for name in self.classes}

    @property
    def evidence(self) -> Evidence:
        """The groups of all test images; what intervals rest on."""
        return self.resampled.evidence

    @functools.cached_property
    def audit(self) -> dict[str, Any] | None:
        """audit.json, where the run has left one."""
        path = self.run.paths.audit
        return read_json(path) if path.exists() else None

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before any figure."""
        found = []
        results, dataset = self.results, self.results["dataset"]
        if results["pretraining_saw_test"]:
            found.append("Pre-training saw the test images (without their labels).")
        if dataset["protocol"] == "image_level":
            found.append(
                "Images were split one by one (data.protocol='image_level'): near-duplicates and "
                "images of one patient may be in training and test both, which flatters."
            )
        at_random = [b for b, source in results["imagenet_weights"].items() if source == "none"]
        if at_random:
            found.append(
                f"{', '.join(at_random)} started from random weights instead of ImageNet's: these "
                "are not the method's figures."
            )
        if few := bootstrap.too_few(self.evidence, self.classes):
            found.append(few)
        if dataset["skipped"]:
            found.append(f"Unreadable images, left out: {len(dataset['skipped'])}.")
        if results["skipped_steps"]:
            count = len(results["skipped_steps"])
            found.append(f"Training steps that were not finite, left out: {count}.")
        if len(self.machines) > 1:
            found.append(
                f"The run was on {len(self.machines)} machines or versions of its libraries, whose "
                "numbers agree up to rounding: see How it was made."
            )
        return found

    @property
    def made_with(self) -> dict[str, Any]:
        """Versions, devices and command; empty for results of an older version."""
        return self.results.get("made_with", {})

    @property
    def machines(self) -> list[str]:
        """The machines and versions that the run was on, in their order; empty for older ones."""
        return [
            ", ".join(
                [found.get("processor", found["device"])]
                + [f"{name} {version}" for name, version in found["versions"].items()]
            )
            for found in self.made_with.get("machines", [])
        ]

    @property
    def config_text(self) -> str:
        """The config as JSON."""
        return json.dumps(self.config, indent=2, ensure_ascii=False)

    # --- Figures ---

    @property
    def roc(self) -> list[Any]:
        """A figure a class."""
        return [figures.roc_curves(self.said, k, name) for k, name in enumerate(self.classes)]

    @property
    def precision_recall(self) -> list[Any]:
        """A figure a class."""
        return [
            figures.precision_recall_curves(self.said, k, name)
            for k, name in enumerate(self.classes)
        ]

    @property
    def reliability(self) -> list[Any]:
        """A figure a classifier."""
        return [figures.reliability_diagram(rounds, name) for name, rounds in self.said.items()]

    @property
    def learning_curves(self) -> list[Any]:
        """Of every stage: its loss, and what it reached in validation."""
        stages: dict[str, list[dict[str, Any]]] = {}
        for _, row in logs.read(self.run.paths.metrics):
            if isinstance(row.get("epoch"), int):
                stages.setdefault(row["stage"], []).append(row)
        found = []
        for stage, rows in stages.items():
            losses = {"loss": "training", "validation_loss": "validation"}
            found.append(figures.learning_curve(rows, losses, f"{stage}: loss", "loss"))
            scores = {"validation_auc": "AUC", "validation_accuracy": "accuracy"}
            title = f"{stage}: validation"
            found.append(figures.learning_curve(rows, scores, title, "AUC, accuracy"))
        return [figure for figure in found if figure is not None]

    # --- Pictures ---

    @property
    def explained_branch(self) -> str:
        """Whose heat is shown."""
        return self.run.branch().name

    @property
    def heat_scale(self) -> str:
        """A picture of the colours of heat."""
        return pictures.heat_scale()

    @functools.cached_property
    def cases(self) -> dict[str, list[pictures.Case]] | str:
        """Test images of note with Grad-CAM, by kind; or why there are none."""
        branch = self.run.branch()
        try:
            return pictures.explain_cases(
                *(self.run, branch, 0, self.predictions[0][branch.name]),
                data_dir=self.data_dir,
                count=_CASES,
            )
        except UserError as error:
            return self._missing("Grad-CAM", error)

    @property
    def heat_layer(self) -> Layer | None:
        """The layer that the cases' heat is of; None where there are none."""
        cases = {} if isinstance(self.cases, str) else self.cases
        return next((case.layer for of_kind in cases.values() for case in of_kind), None)

    @functools.cached_property
    def reconstructions(self) -> tuple[str, list[str], str] | str | None:
        """What `pictures.reconstructions` makes; None for a run without 'mae'; or why not."""
        if not any(branch.is_mae for branch in self.run.branches):
            return None
        config = configs.load(self.run.workdir / "config.json")
        with config.unlocked():
            config.data.dir = str(self.data_dir)
        try:
            return pictures.reconstructions(config, self.run.workdir, _RECONSTRUCTED)
        except UserError as error:
            return self._missing("Reconstructions", error)

    def _missing(self, what: str, error: Exception) -> str:
        if isinstance(error, DamagedFileError):
            raise error
        logger.warning("The report has no pictures (%s): %s", what, error)
        return str(error).replace("--config.data.dir", "--data_dir")  # this command's own flag


def compare(workdirs: Sequence[Path]) -> "Comparison":
    """Opens runs side by side.

    Args:
        workdirs: of runs that have been evaluated.

    Raises:
        RunError: a run has not been evaluated, or is given twice.
        DamagedFileError: a file of a workdir cannot be read.
    """
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise RunError("A --workdir is given twice.")
    runs = [Content(SavedRun(workdir), None) for workdir in workdirs]
    return Comparison(runs, _distinct_names(workdirs))


class Comparison:
    """What is said of several runs."""

    def __init__(self, runs: Sequence[Content], names: Sequence[str]):
        self.runs = list(zip(names, runs, strict=True))

    @property
    def rows(self) -> list[tuple[str, Content, list[dict[str, Any]]]]:
        """Name, run and its summary."""
        return [(name, run, run.summary) for name, run in self.runs]

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """The last classifier of each run against the first run's, where the images are the same.

        Rounds are paired in their order, so far as both runs have them.
        """
        (first, base), *others = self.runs
        return [
            _compare(first, base, name, run)
            for name, run in others
            if name not in self.incomparable
        ]

    @functools.cached_property
    def incomparable(self) -> list[str]:
        """Runs that were tested on other images than the first, in a round that both have."""
        base = self.runs[0][1].tested
        return [
            name
            for name, run in self.runs[1:]
            if not all(_same_images(a, b) for a, b in zip(base, run.tested, strict=False))
        ]

    @property
    def config_differences(self) -> list[tuple[str, list[Any]]]:
        """The fields in which the runs differ, with each run's value."""
        flats = [run.flat_config for _, run in self.runs]
        fields = dict.fromkeys(field for flat in flats for field in flat)
        rows = [(field, [flat.get(field) for flat in flats]) for field in fields]
        return [row for row in rows if any(value != row[1][0] for value in row[1])]


def _same_images(first: Round, second: Round) -> bool:
    return np.array_equal(first.ids, second.ids) and np.array_equal(first.labels, second.labels)


def _compare(first: str, base: Content, second: str, run: Content) -> Pair:
    rounds = [
        Round(a.ids, a.labels, (a.probabilities[-1], b.probabilities[-1]), a.groups)
        for a, b in zip(base.tested, run.tested, strict=False)
    ]
    resampled = Resampled(rounds, resamples=_RESAMPLES)
    return Pair(
        first,
        second,
        {m: resampled.difference(0, 1, m) for m in _COMPARED},
        [mcnemar(t.labels, t.probabilities[0], t.probabilities[1], t.groups).p for t in rounds],
    )


def _distinct_names(workdirs: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as tell them apart."""
    parts = [workdir.resolve().parts for workdir in workdirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(workdir) for workdir in workdirs]
