"""The recipe from top to bottom: prepare -> pre-train -> fine-tune the branches -> fuse them.

`run` is what main.py calls. Every stage leaves its result in the workdir, and one that has is not
run again, so the same command starts, resumes and completes a run.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core import hosts, platform, preemption, sharding
from egmae_jax.core.errors import UserError
from egmae_jax.core.files import explain_storage_errors
from egmae_jax.data import splits
from egmae_jax.data.listing import Listing, list_files
from egmae_jax.data.prepare import Prepared, describe
from egmae_jax.explain import layer_selection
from egmae_jax.explain.reconstructions import ReconstructionPanels
from egmae_jax.run import announcement, branches, environment, results, rules
from egmae_jax.run.context import Run
from egmae_jax.run.finetuning import Finetuning
from egmae_jax.run.imagenet import ImagenetWeights
from egmae_jax.run.logs import MetricsLog
from egmae_jax.run.prediction import Prediction
from egmae_jax.run.pretraining import Pretraining
from egmae_jax.run.rounds import RoundData
from egmae_jax.run.tensorboard import EventFiles
from egmae_jax.run.trackers import Tracker
from egmae_jax.run.workdir import (
    Paths,
    has_begun,
    has_record,
    local_folder,
    lock,
    record_config,
    record_intensity_range,
    require_own_folder,
    require_same_run,
)

STAGES = ("all", "pretrain", "finetune", "evaluate")

logger = logging.getLogger(__name__)


class StageError(UserError):
    """A stage lacks what an earlier one should have left in the workdir."""


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    stage: str = "all",
    trackers: Sequence[Tracker] = (),
) -> dict[str, Any] | None:
    """Runs the recipe, or one stage of it, resuming whatever the workdir holds.

    Args:
        config: with the fields of run/default_config.py.
        workdir: folder for everything the run leaves.
        stage: one of STAGES. 'pretrain' and 'finetune' stop after theirs; 'evaluate' makes
            predictions and results anew from what fine-tuning left.
        trackers: take the metrics of every epoch.

    Returns:
        The content of results.json, or None where the stage does not write it.

    Raises:
        ConfigError, DataError, CheckpointError, DamagedFileError, MissingWeightsError, AccessError,
            StageError: before any training.
        NonFiniteError: training diverged.
    """
    workdir = local_folder(workdir)
    rules.check(config, jax.device_count())
    cache = Path(config.data.cache_dir).expanduser()
    require_own_folder(workdir, config)
    with (
        preemption.treat_lost_hosts_as_preemption(),
        explain_storage_errors(workdir, cache),
        lock(workdir),
        platform.compilation_cache(cache / "compiled"),
    ):
        experiment = Experiment(config, workdir, stage, trackers)
        if stage in ("all", "pretrain"):
            experiment.pretrain()
        if stage in ("all", "finetune"):
            experiment.finetune()
        if stage in ("all", "evaluate"):
            return experiment.evaluate(again=stage == "evaluate")
    return None


class Experiment:
    """A run whose config has been checked, and its stages; checks data, workdir and weights."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        stage: str = "all",
        trackers: Sequence[Tracker] = (),
    ):
        require_same_run(workdir, config)
        frozen = FrozenConfigDict(config)
        paths = Paths(workdir, folds=config.rounds.kind == "folds")
        recorded, begun = has_record(workdir), has_begun(workdir)
        environment.require_same(paths.environment, begun=recorded)
        hosts.wait_for_all("the workdir is as it was")
        # What costs nothing comes first, then fetching weights, then reading all images.
        _require_earlier_stages(stage, frozen, paths)
        listing = list_files(
            config.data.name,
            Path(config.data.dir).expanduser(),
            classes=config.data.classes,
            group_pattern=config.data.group_pattern,
        )
        if config.data.protocol == "official" and not begun:
            splits.require_official([image.split or "" for image in listing.images])
        self.imagenet = ImagenetWeights(
            config.imagenet.weights, branches.from_config(frozen), workdir / "imagenet_weights.json"
        )
        if stage in ("all", "finetune"):
            _load_weights(self.imagenet, frozen, paths)
        prepared = _describe(listing, config)
        batch_sizes = (config.pretrain.batch_size, config.finetune.batch_size)
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, batch_sizes)
        data = RoundData(prepared, frozen, paths, mesh, begun=begun)
        record_intensity_range(paths, prepared.intensity, begun=begun)
        if hosts.is_primary():
            environment.record(paths.environment, begun=recorded)
            record_config(workdir, config)
            self.imagenet.record()
        events = EventFiles(workdir / "tensorboard") if config.tensorboard.events else None
        self.run = Run(frozen, paths, mesh, data, MetricsLog(paths.metrics, events, trackers))
        self.prediction = Prediction(self.run)
        self.pretraining = Pretraining(self.run, make_panels=ReconstructionPanels)
        self.finetuning = Finetuning(
            self.run, self.imagenet, self.prediction, draw_layers=layer_selection.plot
        )
        announcement.announce(self.run)

    @property
    def _each(self) -> Iterator[tuple[branches.Branch, int]]:
        """Every branch of every round."""
        return ((b, r) for r in self.run.rounds for b in self.run.branches)

    def pretrain(self) -> None:
        """Pre-trains the autoencoder, once for each split."""
        for split in self.run.pretrainings:
            hosts.wait_for_all(f"pre-training {split}")
            preemption.set_resume_point(f"pretrain, round {split}")
            self.pretraining.train(split)

    def finetune(self) -> None:
        """Fine-tunes the branches of every round."""
        hosts.wait_for_all("pre-training is complete")
        for branch, round_index in self._each:
            hosts.wait_for_all(f"fine-tuning {branch} {round_index}")
            preemption.set_resume_point(f"finetune/{branch.name}, round {round_index}")
            self.finetuning.train(branch, round_index)

    def evaluate(self, *, again: bool) -> dict[str, Any]:
        """Predicts, fuses, scores and reports; returns the content of results.json.

        Args:
            again: whether predictions that are there are made anew.
        """
        hosts.wait_for_all("fine-tuning is complete")
        preemption.set_resume_point("the evaluation")
        for branch, round_index in self._each:
            hosts.wait_for_all(f"prediction {branch} {round_index}")
            self.prediction.save(branch, round_index, again=again)
        hosts.wait_for_all("predictions are complete")
        scores = results.report(self.run, self.imagenet)
        if self.run.config.evaluation.report and hosts.is_primary():
            from egmae_jax import report  # imports matplotlib

            report.write_report(self.run.paths.workdir, self.run.paths.report)
            logger.info("The report is in %s", self.run.paths.report)
        return scores


def _load_weights(imagenet: ImagenetWeights, config: FrozenConfigDict, paths: Paths) -> None:
    """Reads the ImageNet weights of the branches that are not yet fine-tuned in every round."""
    chosen, rounds = branches.from_config(config), range(config.rounds.count)
    imagenet.load(
        [b.name for b in chosen if not all(paths.finetuned(b.name, r).exists() for r in rounds)],
        begun=[b.name for b in chosen if any(paths.workdir.glob(f"round_*/{b.name}"))],
    )


def _describe(listing: Listing, config: ConfigDict) -> Prepared:
    """Reads all images once: hashes, duplicates, the range of their values."""
    return describe(
        listing,
        Path(config.data.cache_dir).expanduser() / "datasets",
        on_error=config.data.on_error,
        near_duplicate_threshold=config.data.near_duplicate_threshold,
        intensity_range=config.data.intensity_range,
    )


def _require_earlier_stages(stage: str, config: FrozenConfigDict, paths: Paths) -> None:
    """Raises StageError where a single stage lacks what the one before it should have left."""
    chosen, rounds = branches.from_config(config), range(config.rounds.count)
    is_pretrained = any(branch.is_mae for branch in chosen)
    if stage == "pretrain" and not is_pretrained:
        raise StageError("No branch of config.branches is pre-trained here; 'mae' would be.")
    needed, before = list[Path](), ""
    if stage == "finetune" and is_pretrained:
        of_splits = rounds if paths.folds else range(1)
        needed, before = [paths.autoencoder(split) for split in of_splits], "pretrain"
    elif stage == "evaluate":
        needed, before = [paths.finetuned(b.name, r) for r in rounds for b in chosen], "finetune"
    if missing := next((path for path in needed if not path.exists()), None):
        raise StageError(
            f"{missing} is not there: run --stage={before} (or no --stage at all) first."
        )
