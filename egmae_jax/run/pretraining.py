"""The pre-training stage of a run (paper section 3.3), once per split."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from egmae_jax.core import hosts, platform, rng, sharding
from egmae_jax.core.files import write_sealed
from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.run.context import Run
from egmae_jax.training import loop, optim, pretrain
from egmae_jax.training.checkpoint import Checkpoints, delete_checkpoints, save_params
from egmae_jax.training.nonfinite import HINT, NonFiniteError
from egmae_jax.training.state import TrainState

PyTree = Any
logger = logging.getLogger(__name__)


class Pretraining:
    """Writes pretrain/autoencoder.safetensors, and its validation losses to report.json."""

    def __init__(
        self,
        run: Run,
        make_panels: Callable[[Run, int, MaskedAutoencoder], Callable[[int, int, PyTree], None]],
    ):
        """Sets up the stage.

        Args:
            run: context of the run.
            make_panels: function of the run, the split and the network. It returns a function of
                epoch, step and variables, which is called after each epoch to draw reconstructions.
        """
        self._run = run
        self._make_panels = make_panels

    @functools.cached_property
    def _autoencoder(self) -> MaskedAutoencoder:
        return pretrain.create_autoencoder(self._run.config)

    def train(self, split: int) -> None:
        """Pre-trains on the training images of a split, resuming from its newest checkpoint."""
        result = self._run.paths.autoencoder(split)
        folder, report = result.parent / "checkpoints", self._run.paths.pretraining_report(split)
        if result.exists() and report.exists():
            logger.info("Pre-training is complete (%s)", result)
        else:
            if result.exists():
                params = pretrain.load_autoencoder(result, self._autoencoder)
            else:
                params = self._train(split, folder)
            losses = self._reconstruction_losses(params, split)
            if hosts.is_primary():
                write_sealed(report, losses)
                save_params(result, params)
            logger.info(
                "Reconstruction loss on validation images: %.4f; always predicting the mean colour "
                "gives %.4f",
                losses["reconstruction_loss"],
                losses["mean_colour_loss"],
            )
        delete_checkpoints(folder)  # also if the run was killed before this

    def _train(self, split: int, folder: Path) -> PyTree:
        """Trains to the last epoch; returns the parameters as numpy arrays on the host."""
        config = self._run.config.pretrain
        plan = self._run.plan(
            "pretrain",
            split,
            config.splits,
            batch_size=config.batch_size,
            epochs=config.epochs,
        )
        schedule = optim.cosine_schedule(
            config.learning_rate,
            total_steps=plan.total_steps,
            warmup_steps=config.warmup_epochs * plan.steps_per_epoch,
        )
        fresh = self._run.initial_variables(self._autoencoder, plan.seed)
        optimizer = optim.adamw(
            schedule, fresh["params"], weight_decay=config.weight_decay, betas=config.betas
        )
        step = functools.partial(
            pretrain.pretrain_step,
            model=self._autoencoder,
            optimizer=optimizer,
            config=self._run.config,
        )
        with Checkpoints(folder) as checkpoints:
            stage = loop.Stage(
                plan,
                program=loop.compile_steps(step, self._run.mesh),
                create=lambda: TrainState.create(fresh, optimizer, self._run.mesh),
                feed=lambda: self._run.data.feed(
                    split, config.splits, plan.order, total_steps=plan.total_steps
                ),
                schedule=schedule,
                checkpoints=checkpoints,
                save_seconds=self._run.config.checkpoint.save_seconds,
                log=self._run.log,
                policy=self._run.policy,
                after_epoch=self._make_panels(self._run, split, self._autoencoder),
            )
            state, _ = loop.train(stage)
        return sharding.to_host(state.params)

    def _reconstruction_losses(self, params: PyTree, split: int) -> dict[str, float]:
        @platform.jit
        def program(params, pixels, valid, key):
            sums = pretrain.reconstruction_sums(
                params, pixels, valid, key, model=self._autoencoder, config=self._run.config
            )
            return sharding.gather(sums, self._run.mesh)

        images = self._run.data.evaluation(split, "validation")
        key = rng.stage_key(self._run.config.seed + split, "reconstruction")
        batches = images.batches(self._run.config.pretrain.batch_size)
        sums = [
            program(params, images.take(indices).pixels, valid, jax.random.fold_in(key, i))
            for i, (images, indices, valid) in enumerate(batches)
        ]
        losses = pretrain.reconstruction_losses(sums)
        if not np.isfinite(list(losses.values())).all():
            raise NonFiniteError(
                f"The reconstruction of validation images after pretrain, split {split}, is not "
                f"finite: the training diverged. {HINT.format('pretrain')}"
            )
        return losses
