"""The pre-training stage of a run (paper section 3.3), once per split."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from egmae_jax.core import hosts, platform, rng, sharding
from egmae_jax.core.files import write_sealed
from egmae_jax.models import transfer
from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.models.transfer import save_params
from egmae_jax.run.context import Run
from egmae_jax.run.features import EncoderProbe
from egmae_jax.run.nonfinite import require_finite
from egmae_jax.run.pretrained import PretrainedWeights
from egmae_jax.training import loop, optim, pretrain
from egmae_jax.training.checkpoint import Checkpoints, delete_checkpoints
from egmae_jax.training.state import TrainState

PyTree = Any
logger = logging.getLogger(__name__)


class Pretraining:
    """Writes pretrain/autoencoder.safetensors, and its validation losses to report.json."""

    def __init__(
        self,
        run: Run,
        weights: PretrainedWeights | None,
        make_panels: Callable[[Run, int, MaskedAutoencoder], Callable[[int, int, PyTree], None]],
    ):
        """Sets up the stage.

        Args:
            run: context of the run.
            weights: weights to start from; None: random weights.
            make_panels: function of the run, the split and the network. It returns a function of
                epoch, step and variables, which is called after each epoch to draw reconstructions.
        """
        self._run = run
        self._weights = weights
        self._make_panels = make_panels
        self._probe = functools.cache(self._make_probe)

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
            fresh, can_reconstruct = self._start(split)
            if result.exists():
                params = transfer.load_autoencoder(result, self._autoencoder)
            elif self._run.config.pretrain.epochs == 0:
                params = fresh
            else:
                params = self._train(split, folder, fresh)
            losses = self._reconstruction_losses(params, split) if can_reconstruct else {}
            probe = {}
            if self._run.config.pretrain.probe_epochs:
                probe["probe"] = self._probe(split).report(fresh, params)
            if hosts.is_primary():
                write_sealed(report, losses | probe)
                save_params(result, params)
            if losses:
                logger.info(
                    "Reconstruction loss on validation images: %.4f; always predicting the mean "
                    "colour gives %.4f",
                    losses["reconstruction_loss"],
                    losses["mean_colour_loss"],
                )
        delete_checkpoints(folder)  # also if the run was killed before this

    def _make_probe(self, split: int) -> EncoderProbe:
        return EncoderProbe(self._run, split, self._autoencoder)

    def _start(self, split: int) -> tuple[PyTree, bool]:
        """Returns the parameters at the start, and whether the decoder is trained at the end.

        With weights to start from, started_from.json records or checks them.
        """
        seed = self._run.config.seed + split
        fresh = self._run.initial_variables(self._autoencoder, seed)["params"]
        if self._weights is None:
            return fresh, True
        record = self._run.paths.started_from(split)
        if record.exists():
            self._weights.require_same(record, split)
        elif hosts.is_primary():
            write_sealed(record, self._weights.records[split])
        params, has_decoder = self._weights.start(split, fresh)
        return params, has_decoder or self._run.config.pretrain.epochs > 0

    def _train(self, split: int, folder: Path, fresh: PyTree) -> PyTree:
        """Trains to the last epoch.

        Args:
            split: index of the split.
            folder: folder of the checkpoints.
            fresh: parameters at the start.

        Returns:
            The parameters as numpy arrays on the host.
        """
        config = self._run.config.pretrain
        plan = self._run.plan(
            "pretrain",
            split,
            config.splits,
            batch_size=config.batch_size,
            epochs=config.epochs,
            unlabelled=True,
        )
        schedule, optimizer, program = self._make_program(fresh, plan.steps_per_epoch)
        draw, probe = self._make_panels(self._run, split, self._autoencoder), self._probe(split)

        def after_epoch(epoch: int, step: int, variables: PyTree) -> dict[str, float]:
            draw(epoch, step, variables)
            return probe.score_epoch(epoch, variables)

        with Checkpoints(folder) as checkpoints:
            stage = self._run.stage(
                plan,
                config.splits,
                unlabelled=True,
                program=program,
                create=lambda: TrainState.create({"params": fresh}, optimizer, self._run.mesh),
                schedule=schedule,
                checkpoints=checkpoints,
                after_epoch=after_epoch,
            )
            state, _ = loop.train(stage)
        return sharding.to_host(state.params)

    def _make_program(
        self, fresh: PyTree, steps_per_epoch: int
    ) -> tuple[optax.Schedule, optax.GradientTransformation, Callable]:
        """Returns schedule, optimizer and compiled steps."""
        config = self._run.config.pretrain
        schedule = optim.cosine_schedule(
            config.learning_rate,
            total_steps=config.epochs * steps_per_epoch,
            warmup_steps=config.warmup_epochs * steps_per_epoch,
        )
        optimizer = optim.adamw(
            schedule,
            fresh,
            weight_decay=config.weight_decay,
            betas=config.betas,
            clip_norm=config.clip_norm,
        )
        step = functools.partial(
            pretrain.pretrain_step,
            model=self._autoencoder,
            optimizer=optimizer,
            config=self._run.config,
        )
        return schedule, optimizer, loop.compile_steps(step, self._run.mesh)

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
        subject = f"Reconstructions of validation images after pretrain, split {split},"
        require_finite(list(losses.values()), subject, "pretrain")
        return losses
