"""The recipe from top to bottom: prepare -> pre-train -> fine-tune the branches -> fuse them.

`run` is what main.py calls. Every stage leaves its result in the workdir, and one that has is not
run again, so the same command starts, resumes and completes a run.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core import platform, preemption, sharding
from egmae_jax.core.files import storage_errors_told
from egmae_jax.data import splits
from egmae_jax.data.prepare import describe, list_files
from egmae_jax.explain import layer_selection
from egmae_jax.explain.pretraining_panels import ReconstructionPanels
from egmae_jax.run import branches, environment, results, rules
from egmae_jax.run.context import Run, StageError, require
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
        trackers: told of the numbers of every epoch.

    Returns:
        The content of results.json, or None where the stage does not write it.

    Raises:
        ConfigError, DataError, CheckpointError, DamagedFileError, MissingWeightsError, AccessError,
            StageError: before any training.
        NonFiniteError: training diverged.
    """
    workdir = local_folder(workdir)
    cache = Path(str(config.data.cache_dir)).expanduser()
    require_own_folder(workdir, config)
    with (
        preemption.outranks_errors(),
        storage_errors_told(workdir, cache),
        lock(workdir),
        platform.kept_in(cache / "compiled"),
    ):
        experiment = Experiment(config, workdir, stage, trackers)
        each = [(b, r) for r in experiment.run.rounds for b in experiment.run.branches]
        if stage in ("all", "pretrain"):
            for split in experiment.run.pretrainings:
                sharding.wait_for_all(f"pre-training {split}")
                preemption.goes_on_from(f"pretrain, round {split}")
                experiment.pretraining.train(split)
        if stage in ("all", "finetune"):
            sharding.wait_for_all("pre-training is complete")
            experiment.pretraining.require()
            for branch, round_index in each:
                sharding.wait_for_all(f"fine-tuning {branch} {round_index}")
                preemption.goes_on_from(f"finetune/{branch.name}, round {round_index}")
                experiment.finetuning.train(branch, round_index)
        if stage in ("all", "evaluate"):
            sharding.wait_for_all("fine-tuning is complete")
            preemption.goes_on_from("the evaluation")
            experiment.finetuning.require()
            for branch, round_index in each:
                sharding.wait_for_all(f"prediction {branch} {round_index}")
                experiment.prediction.save(branch, round_index, again=stage == "evaluate")
            sharding.wait_for_all("predictions are complete")
            found = results.report(experiment.run, experiment.imagenet)
            if config.evaluation.report and sharding.is_primary():
                from egmae_jax import report  # imports matplotlib

                path = experiment.run.paths.report
                report.write_report(workdir, path)
                logger.info("The report is in %s", path)
            return found
    return None


class Experiment:
    """A run whose config, data and weights are found to be in order, and its stages."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        stage: str = "all",
        trackers: Sequence[Tracker] = (),
    ):
        rules.check(config, jax.device_count())
        batch_sizes = (config.pretrain.batch_size, config.finetune.batch_size)
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, batch_sizes)
        frozen = FrozenConfigDict(config)
        paths = Paths(workdir, folds=config.rounds.kind == "folds")
        require_same_run(workdir, config)
        recorded, begun = has_record(workdir), has_begun(workdir)
        environment.require_same(paths.environment, begun=recorded)
        sharding.wait_for_all("the workdir is as it was")
        cache = Path(config.data.cache_dir).expanduser()
        chosen = branches.of(frozen)
        # What costs nothing comes first, then fetching weights, then reading all images.
        _require_earlier_stages(stage, chosen, frozen, paths)
        listing = list_files(
            config.data.name,
            Path(config.data.dir).expanduser(),
            classes=config.data.classes,
            group_pattern=config.data.group_pattern,
        )
        if config.data.protocol == "official" and not begun:
            splits.require_official([image.split or "" for image in listing.images])
        self.imagenet = ImagenetWeights(
            config.imagenet.weights, chosen, workdir / "imagenet_weights.json"
        )
        if stage in ("all", "finetune"):
            rounds = range(config.rounds.count)
            self.imagenet.load(
                [
                    branch.name
                    for branch in chosen
                    if not all(paths.finetuned(branch.name, r).exists() for r in rounds)
                ],
                begun=[b.name for b in chosen if any(workdir.glob(f"round_*/{b.name}"))],
            )
        prepared = describe(
            listing,
            cache / "datasets",
            on_error=config.data.on_error,
            near_duplicate_threshold=config.data.near_duplicate_threshold,
            intensity_range=config.data.intensity_range,
        )
        data = RoundData(prepared, frozen, paths, mesh, begun=begun)
        record_intensity_range(paths, prepared.intensity, begun=begun)
        if sharding.is_primary():
            environment.record(paths.environment, begun=recorded)
            record_config(workdir, config)
            self.imagenet.record()
        events = EventFiles(workdir / "tensorboard") if config.tensorboard.events else None
        log = MetricsLog(paths.metrics, events, trackers)
        self.run = Run(frozen, paths, mesh, data, log)
        log.complete_events(self.run.stages)
        self.prediction = Prediction(self.run)
        self.pretraining = Pretraining(self.run, make_panels=ReconstructionPanels)
        self.finetuning = Finetuning(
            self.run, self.imagenet, self.prediction, draw_layers=layer_selection.plot
        )
        _announce(self.run)


def _require_earlier_stages(
    stage: str, chosen: Sequence[branches.Branch], config: FrozenConfigDict, paths: Paths
) -> None:
    """Raises StageError where a single stage lacks what the one before it should have left."""
    rounds = range(config.rounds.count)
    is_pretrained = any(branch.is_mae for branch in chosen)
    if stage == "pretrain" and not is_pretrained:
        raise StageError("No branch of config.branches is pre-trained here; 'mae' would be.")
    if stage == "finetune" and is_pretrained:
        of_splits = rounds if paths.folds else range(1)
        require(map(paths.autoencoder, of_splits), "pretrain")
    if stage == "evaluate":
        require((paths.finetuned(b.name, r) for r in rounds for b in chosen), "finetune")


def _announce(run: Run) -> None:
    """Says what is about to run, and what of it is odd."""
    prepared = run.data.prepared
    of_groups = np.unique(prepared.groups, return_counts=True)[1]
    logger.info(
        "%d images in %d classes and %d groups, which are not split: %d of several images, "
        "%d of one; protocol %s",
        len(prepared.files),
        len(prepared.classes),
        len(of_groups),
        int((of_groups > 1).sum()),
        int((of_groups == 1).sum()),
        run.data.protocol,
    )
    logger.info("%s", run.data.account)
    if run.data.made_parts:
        logger.warning(
            "The data set has no %s part of its own: taken by groups from its train part",
            " and no ".join(run.data.made_parts),
        )
    held_out = int(prepared.held_out.sum())
    if held_out and run.config.data.protocol != "official":
        logger.warning(
            "%d images are in official validation or test parts, which data.protocol=%s "
            "splits anew; data.protocol=official keeps them",
            held_out,
            run.config.data.protocol,
        )
    conflicts = splits.conflicts(prepared.labels, prepared.pairs)
    if len(conflicts):
        first = [f"{prepared.files[i]} | {prepared.files[j]}" for i, j in conflicts[:10]]
        logger.warning(
            "%d pairs of near-duplicates have different labels (data.on_conflict is %s), "
            "such as %s",
            len(conflicts),
            run.config.data.on_conflict,
            ", ".join(first),
        )
    logger.info(
        "%s in %s on %d x %s; results go to %s",
        ", ".join(f"{b.name} ({b.model_name})" for b in run.branches),
        run.config.model.dtype,
        run.mesh.size,
        jax.devices()[0].device_kind,
        run.paths.workdir,
    )
    if (copies := run.mesh.shape["copy"]) > 1:
        logger.warning(
            "pretrain.batch_size=%d and finetune.batch_size=%d divide among %d of the devices: "
            "%d of them compute the same",
            run.config.pretrain.batch_size,
            run.config.finetune.batch_size,
            run.mesh.size // copies,
            copies,
        )
    if run.config.finetune.trainable != "all" and run.config.imagenet.weights == "none":
        at_random = [branch.name for branch in run.branches if not branch.is_mae]
        if at_random:
            logger.warning(
                "finetune.trainable=%s freezes layers of %s at random weights; a ResNet's frozen "
                "blocks then add nothing at all, their last norm starting from 0",
                run.config.finetune.trainable,
                ", ".join(at_random),
            )
    parts_of = {"finetune": ("train",)}
    parts_of |= {"pretrain": run.config.pretrain.splits} if run.pretrainings else {}
    for stage, parts in parts_of.items():
        config = run.config[stage]
        count = len(run.data.indices(0, *parts))
        if config.batch_size > count:
            logger.warning(
                "%s.batch_size is %d, but there are %d images: a batch holds some twice",
                stage,
                config.batch_size,
                count,
            )
        if config.warmup_epochs >= config.epochs:
            logger.warning(
                "%s.warmup_epochs is %s of %d epochs: the learning rate rises to the end",
                stage,
                config.warmup_epochs,
                config.epochs,
            )
