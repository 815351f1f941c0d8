"""The run that all stages share: its config, data, devices, workdir and log."""

import dataclasses
import functools
from typing import Any

import jax
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
    """One run: its config, data, devices and workdir."""

    config: FrozenConfigDict
    paths: Paths
    mesh: Mesh
    data: RoundData
    log: MetricsLog

    @functools.cached_property
    def branches(self) -> tuple[Branch, ...]:
        """The classifiers that are fine-tuned and fused."""
        return branches.of(self.config)

    @property
    def rounds(self) -> range:
        """Indices of the rounds."""
        return range(self.config.rounds.count)

    @property
    def pretrainings(self) -> range:
        """Indices of the splits that are pre-trained on; none without the branch 'mae'."""
        wanted = any(branch.is_mae for branch in self.branches)
        return range(self.data.num_splits if wanted else 0)

    def plan(
        self, stage: str, index: int, parts: tuple[str, ...], *, batch_size: int, epochs: int
    ) -> Plan:
        """Plans what a stage trains on, and for how long.

        Args:
            stage: 'pretrain', or 'finetune/' and the branch.
            index: index of the split that is pre-trained on, or of the round.
            parts: parts whose images are trained on, such as ('train',).
            batch_size: images per step, of all devices together.
            epochs: number of epochs.
        """
        files = [self.data.prepared.files[i] for i in self.data.indices(index, *parts)]
        return Plan(stage, index, self.config.seed + index, files, batch_size, epochs)

    @property
    def policy(self) -> Policy:
        """How steps that are not finite are handled."""
        return Policy(self.paths.nonfinite, self.config.nonfinite.max_skipped)

    def classifier(self, branch: Branch, frozen: frozenset[str] = frozenset()) -> models.Model:
        """Creates the network of a branch; batch norms of `frozen` layers keep their statistics."""
        return branches.classifier(
            branch, self.config, len(self.data.prepared.classes), frozen=frozen
        )

    def initial_variables(self, network: Any, seed: int, *inputs: jax.ShapeDtypeStruct) -> PyTree:
        """Fresh variables of a network for inputs of those shapes, by config.model."""
        return initial_variables(
            network,
            seed,
            *inputs,
            kernel_init=self.config.model.kernel_init,
            layer_scale=self.config.model.layer_scale,
        )
