"""The context that all stages of a run share: config, data, devices, workdir and log."""

import dataclasses
import functools
from typing import Any

from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from egmae_jax import models
from egmae_jax.models.init import initial_variables
from egmae_jax.run import branches
from egmae_jax.run.branches import Branch
from egmae_jax.run.logs import MetricsLog
from egmae_jax.run.rounds import RoundData
from egmae_jax.run.workdir import Paths
from egmae_jax.training.loop import Plan
from egmae_jax.training.nonfinite import Policy

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Run:
    """Config, workdir, devices, data and log of one run."""

    config: FrozenConfigDict
    paths: Paths
    mesh: Mesh
    data: RoundData
    log: MetricsLog

    @functools.cached_property
    def branches(self) -> tuple[Branch, ...]:
        """Classifiers that are fine-tuned and fused, in the order of config.branches."""
        return branches.from_config(self.config)

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
        self, stage: str, index: int, parts: tuple[str, ...], *, batch_size: int, epochs: int
    ) -> Plan:
        """Returns the training plan of a stage.

        Args:
            stage: 'pretrain', or 'finetune/' and the branch.
            index: index of the split (for 'pretrain') or of the round.
            parts: names of the parts to train on, such as ('train',).
            batch_size: number of images per step, on all devices together.
            epochs: number of epochs.
        """
        files = [self.data.prepared.files[i] for i in self.data.indices(index, *parts)]
        return Plan(stage, index, self.config.seed + index, files, batch_size, epochs)

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
