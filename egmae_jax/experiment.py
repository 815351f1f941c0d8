"""The whole recipe: prepare the data, pre-train, fine-tune the branches, fuse and evaluate them.

main.py calls `run`. Every stage writes its result to the workdir, and a stage with a result is not
repeated. Therefore the same command starts, resumes and completes a run.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core import hosts, platform, preemption, sharding
from egmae_jax.core.errors import UserError
from egmae_jax.core.files import explain_storage_errors
from egmae_jax.data import splits
from egmae_jax.data.datasets import unlabelled as unlabelled_images
from egmae_jax.data.listing import Listing
from egmae_jax.explain import layer_selection
from egmae_jax.explain.reconstructions import ReconstructionPanels
from egmae_jax.run import (
    announcement,
    branches,
    class_balance,
    environment,
    images,
    results,
    rules,
)
from egmae_jax.run.config import microbatch_sizes, split_indices
from egmae_jax.run.context import Run
from egmae_jax.run.finetuning import Finetuning
from egmae_jax.run.imagenet import ImagenetWeights
from egmae_jax.run.logs import MetricsLog
from egmae_jax.run.prediction import Prediction
from egmae_jax.run.pretrained import PretrainedWeights
from egmae_jax.run.pretraining import Pretraining
from egmae_jax.run.rounds import RoundData
from egmae_jax.run.tensorboard import EventFiles
from egmae_jax.run.trackers import Tracker
from egmae_jax.run.unlabelled import Unlabelled
from egmae_jax.run.workdir import (
    Paths,
    has_begun,
    has_record,
    local_path,
    lock,
    record_config,
    record_intensity_range,
    require_own_folder,
    require_same_run,
)

STAGES = ("all", "pretrain", "finetune", "evaluate")

logger = logging.getLogger(__name__)


class StageError(UserError):
    """The stage cannot run: the result of an earlier stage is missing, or it has nothing to do."""


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    stage: str = "all",
    trackers: Sequence[Tracker] = (),
) -> dict[str, Any] | None:
    """Runs the recipe, or one stage of it, and resumes the run in the workdir if there is one.

    Args:
        config: config with the fields of run/default_config.py.
        workdir: folder for all files of the run.
        stage: one of STAGES. 'pretrain' and 'finetune' run only that stage; 'evaluate' predicts and
            evaluates the fine-tuned branches again.
        trackers: trackers that receive the metrics of every epoch.

    Returns:
        The content of results.json; None for the stages 'pretrain' and 'finetune'.

    Raises:
        ConfigError, DataError, CheckpointError, DamagedFileError, MissingWeightsError, AccessError,
            StageError: config, data, weights or workdir are not usable; raised before training.
        NonFiniteError: training diverged.
    """
    workdir = local_path(workdir)
    rules.check(config, jax.device_count())
    if config.data.name == unlabelled_images.NAME and stage != "pretrain":
        raise StageError(
            f"data.name is {config.data.name!r}: images without labels are for pre-training only "
            "(egmae pretrain). Set data.name to a data set with labels."
        )
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
    """The stages of a run, with its images and weights. The config must have been checked.

    Creating it checks data, workdir and weights, decodes the images and writes the split.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        stage: str = "all",
        trackers: Sequence[Tracker] = (),
    ):
        require_same_run(workdir, config)
        frozen = FrozenConfigDict(config)
        paths = Paths.of(workdir, config)
        recorded, begun = has_record(workdir), has_begun(workdir)
        environment.require_same(paths.environment, recorded=recorded)
        hosts.wait_for_all("the workdir has been checked")
        # Quick checks come first, then downloading weights, then reading all images.
        _require_earlier_stages(stage, frozen, paths)
        listing = images.list_images(config)
        class_balance.require_classes(frozen.finetune, listing.classes)
        if config.data.protocol == "official" and not begun:
            splits.require_official([image.part or "" for image in listing.images])
        self.imagenet = ImagenetWeights(
            config.imagenet.weights, branches.from_config(frozen), workdir / "imagenet_weights.json"
        )
        if stage in ("all", "finetune"):
            _load_weights(self.imagenet, frozen, paths)
        folders, weights = _pretraining_inputs(stage, frozen, paths)
        prepared = images.prepare_images(config, listing)
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, microbatch_sizes(config))
        unlabelled = Unlabelled(frozen, listing, prepared, folders) if folders else None
        data = RoundData(prepared, frozen, paths, mesh, begun=begun, unlabelled=unlabelled)
        if weights:
            weights.check(listing, data)
        record_intensity_range(paths, prepared.intensity, begun=begun)
        if hosts.is_primary():
            environment.record(paths.environment, recorded=recorded)
            record_config(workdir, config)
            self.imagenet.record()
        events = EventFiles(workdir / "tensorboard") if config.tensorboard.events else None
        log = MetricsLog(paths.metrics, events, trackers)
        trained = ("pretrain", "finetune") if stage == "all" else (stage,)
        self.run = Run(frozen, paths, mesh, data, log, trained)
        self.prediction = Prediction(self.run)
        self.pretraining = Pretraining(self.run, weights, make_panels=ReconstructionPanels)
        self.finetuning = Finetuning(
            self.run, self.imagenet, self.prediction, draw_layers=layer_selection.plot
        )
        announcement.announce(self.run)

    @property
    def _branches_and_rounds(self) -> Iterator[tuple[branches.Branch, int]]:
        """All pairs of branch and round index, by round."""
        return ((b, r) for r in self.run.rounds for b in self.run.branches)

    def pretrain(self) -> None:
        """Pre-trains the autoencoder once per split."""
        for split in self.run.pretrainings:
            hosts.wait_for_all(f"pre-training {split}")
            preemption.set_resume_point(f"pretrain, round {split}")
            self.pretraining.train(split)

    def finetune(self) -> None:
        """Fine-tunes the branches of every round."""
        hosts.wait_for_all("pre-training is complete")
        for branch, round_index in self._branches_and_rounds:
            hosts.wait_for_all(f"fine-tuning {branch.name} {round_index}")
            preemption.set_resume_point(f"finetune/{branch.name}, round {round_index}")
            self.finetuning.train(branch, round_index)

    def evaluate(self, *, again: bool) -> dict[str, Any]:
        """Predicts, fuses, scores and reports; returns the content of results.json.

        Args:
            again: whether to overwrite existing predictions.
        """
        hosts.wait_for_all("fine-tuning is complete")
        preemption.set_resume_point("the evaluation")
        for branch, round_index in self._branches_and_rounds:
            hosts.wait_for_all(f"prediction {branch.name} {round_index}")
            self.prediction.save(branch, round_index, again=again)
        if self.run.config.evaluation.report:
            self.prediction.save_features(self.run.explained_branch, 0, again=again)
        hosts.wait_for_all("predictions are complete")
        logger.info("Scoring the predictions, with their intervals")
        scores = results.score_run(self.run, self.imagenet)
        if self.run.config.evaluation.report and hosts.is_primary():
            logger.info("Writing the report, for which Grad-CAM is compiled")
            started = time.monotonic()
            from egmae_jax import report  # imports matplotlib

            report.write_report(self.run.paths.workdir, self.run.paths.report)
            seconds = time.monotonic() - started
            logger.info("The report is in %s (%.0f s)", self.run.paths.report, seconds)
        return scores


def _load_weights(imagenet: ImagenetWeights, config: FrozenConfigDict, paths: Paths) -> None:
    """Reads the ImageNet weights of the branches that are not yet fine-tuned in every round."""
    chosen, rounds = branches.from_config(config), range(config.rounds.count)
    imagenet.load(
        [b.name for b in chosen if not all(paths.finetuned(b.name, r).exists() for r in rounds)],
        begun=[b.name for b in chosen if any(paths.workdir.glob(f"round_*/{b.name}"))],
    )


def _pretraining_inputs(
    stage: str, config: FrozenConfigDict, paths: Paths
) -> tuple[list[Listing], PretrainedWeights | None]:
    """Lists the folders of unlabelled images, and reads weights for the pre-trainings to be done.

    Without a pre-trained branch there are no folders; without pretrain.weights, the second is None.
    """
    if not any(branch.is_mae for branch in branches.from_config(config)):
        return [], None
    weights = PretrainedWeights(config) if config.pretrain.weights else None
    if weights and stage in ("all", "pretrain"):
        pretrainings = split_indices(config)
        outputs = [(paths.autoencoder(i), paths.pretraining_report(i)) for i in pretrainings]
        weights.load([i for i in pretrainings if not all(x.exists() for x in outputs[i])])
    return images.list_unlabelled(config), weights


def _require_earlier_stages(stage: str, config: FrozenConfigDict, paths: Paths) -> None:
    """Raises StageError if the stage lacks the result of an earlier stage, or has nothing to do."""
    chosen, rounds = branches.from_config(config), range(config.rounds.count)
    is_pretrained = any(branch.is_mae for branch in chosen)
    if stage == "pretrain" and not is_pretrained:
        raise StageError("config.branches has no branch to pre-train; add 'mae'.")
    needed, before = list[Path](), ""
    if stage == "finetune" and is_pretrained:
        needed, before = [paths.autoencoder(i) for i in split_indices(config)], "pretrain"
    elif stage == "evaluate":
        needed, before = [paths.finetuned(b.name, r) for r in rounds for b in chosen], "finetune"
    if missing := next((path for path in needed if not path.exists()), None):
        raise StageError(
            f"{missing} does not exist: run --stage={before} first, or omit --stage to run all."
        )
