"""The context that all stages of a run share: config, data, devices, workdir and log."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from egmae_jax import models
from egmae_jax.core import console
from egmae_jax.models.init import initial_variables
from egmae_jax.run import branches
from egmae_jax.run.branches import Branch
from egmae_jax.run.logs import MetricsLog
from egmae_jax.run.nonfinite import Policy
from egmae_jax.run.rounds import LABELLED, RoundData
from egmae_jax.run.workdir import Paths
from egmae_jax.training.loop import Plan, Stage

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Run:
    """Config, workdir, devices, data and log of one run."""

    config: FrozenConfigDict
    paths: Paths
    mesh: Mesh
    data: RoundData
    log: MetricsLog
    trained: tuple[str, ...] = ("pretrain", "finetune")  # stages that this process trains
    # Last measured images/s by name of the stage, for the time left.
    _speeds: dict[str, float] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def branches(self) -> tuple[Branch, ...]:
        """Classifiers that are fine-tuned and fused, in the order of config.branches."""
        return branches.from_config(self.config)

    @property
    def explained_branch(self) -> Branch:
        """Branch that the report explains: 'mae' if the run has it, else the first branch."""
        return next((branch for branch in self.branches if branch.is_mae), self.branches[0])

    @property
    def rounds(self) -> range:
        """Indices of the rounds."""
        return range(self.config.rounds.count)

    @property
    def pretrainings(self) -> range:
        """Indices of the splits with a pre-training each; empty without the branch 'mae'."""
        has_mae = any(branch.is_mae for branch in self.branches)
        return range(self.data.num_splits if has_mae else 0)

    def plan(
        self,
        stage: str,
        index: int,
        parts: tuple[str, ...],
        *,
        batch_size: int,
        epochs: int,
        unlabelled: bool = False,
        sampling_weights: np.ndarray | None = None,
    ) -> Plan:
        """Returns the training plan of a stage.

        Args:
            stage: 'pretrain', or 'finetune/' and the branch.
            index: index of the split (for 'pretrain') or of the round.
            parts: names of the parts to train on, such as ('train',); see `RoundData.indices`.
            batch_size: number of images per step, on all devices together.
            epochs: number of epochs.
            unlabelled: whether to train on the run's unlabelled images, too.
            sampling_weights: see `Plan`.
        """
        images, indices = self.data.training_images(index, parts, unlabelled=unlabelled)
        files = [images.files[i] for i in indices]
        seed = self.config.seed + index
        return Plan(stage, index, seed, files, batch_size, epochs, sampling_weights)

    def stage(
        self, plan: Plan, parts: tuple[str, ...], *, unlabelled: bool = False, **fields: Any
    ) -> Stage:
        """Returns a stage with the run's images, log and policy; `fields` are its other fields.

        `parts` and `unlabelled` are those given to `plan`.
        """
        return Stage(
            plan,
            feed=lambda: self.data.feed(
                plan.round_index,
                parts,
                plan.order,
                total_steps=plan.total_steps,
                unlabelled=unlabelled,
            ),
            save_seconds=self.config.checkpoint.save_seconds,
            log=self.log,
            policy=self.policy,
            seconds_left=self._seconds_left(plan) if console.terminal.is_terminal else None,
            **fields,
        )

    def _seconds_left(self, plan: Plan) -> Callable[[int, float], float]:
        """Returns the estimate of the seconds left of the run during a stage.

        A later stage is taken to be as fast as the last of its name, or as this one before there
        was any. Validation, prediction, report and the compiling of programs are not counted.
        """
        later = [
            (stage, images)
            for stage, index, images, result in self._stages()
            if (stage, index) != (plan.stage, plan.round_index) and not result.exists()
        ]

        def estimate(step: int, images_per_second: float) -> float:
            self._speeds[plan.stage] = images_per_second
            work = [(plan.stage, (plan.total_steps - step) * plan.batch_size), *later]
            return sum(images / self._speeds.get(s, images_per_second) for s, images in work)

        return estimate

    def _stages(self) -> Iterator[tuple[str, int, int, Path]]:
        """Yields name, index, number of training images over all epochs, and result of stages."""
        pretrain, epochs = self.config.pretrain, self.config.finetune.epochs
        for split in self.pretrainings if "pretrain" in self.trained else ():
            images = self.data.training_images(split, pretrain.splits, unlabelled=True)[1]
            yield "pretrain", split, len(images) * pretrain.epochs, self.paths.autoencoder(split)
        for index in self.rounds if "finetune" in self.trained else ():
            images = self.data.indices(index, LABELLED)
            for name in (branch.name for branch in self.branches):
                result = self.paths.finetuned(name, index)
                yield f"finetune/{name}", index, len(images) * epochs, result

    @property
    def policy(self) -> Policy:
        """Policy for steps whose loss or gradient is not finite."""
        return Policy(self.paths.nonfinite, self.config.nonfinite.max_skipped)

    def classifier(self, branch: Branch, frozen: frozenset[str] = frozenset()) -> models.Model:
        """Creates a branch's network; batch norms of `frozen` layers keep their statistics."""
        return branches.classifier(
            branch, self.config, len(self.data.prepared.classes), frozen=frozen
        )

    def initial_variables(self, network: Any, seed: int) -> PyTree:
        """Draws a network's initial variables by config.model."""
        return initial_variables(
            network,
            seed,
            kernel_init=self.config.model.kernel_init,
            layer_scale=self.config.model.layer_scale,
        )
