"""The fine-tuning stage of a run (paper section 3.4): initial weights, trained layers, steps."""

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from egmae_jax.core import hosts, sharding
from egmae_jax.core.files import write_sealed
from egmae_jax.method import augment, layer_entropy
from egmae_jax.models import timm, transfer
from egmae_jax.models.init import abstract_variables
from egmae_jax.run import class_balance, epoch_selection, layer_selection
from egmae_jax.run.branches import Branch
from egmae_jax.run.context import Run
from egmae_jax.run.imagenet import ImagenetWeights
from egmae_jax.run.layer_selection import Selection
from egmae_jax.run.prediction import Prediction
from egmae_jax.run.rounds import LABELLED
from egmae_jax.training import finetune, loop, optim, pretrain
from egmae_jax.training.checkpoint import Checkpoints, delete_checkpoints
from egmae_jax.training.state import TrainState, count_parameters

PyTree = Any
logger = logging.getLogger(__name__)
_CALIBRATION_IMAGES = 256  # [D] number of training images that layer entropies are measured on


class Finetuning:
    """Writes the best epoch to export/round_<i>_<branch>.safetensors, and layers.json."""

    def __init__(
        self,
        run: Run,
        imagenet: ImagenetWeights,
        prediction: Prediction,
        draw_layers: Callable[[Mapping[str, Any], Path], None],
    ):
        """Sets up the stage.

        Args:
            run: context of the run.
            imagenet: ImageNet weights of the branches.
            prediction: predicts validation images after each epoch.
            draw_layers: draws the content of layers.json to a picture file.
        """
        self._run = run
        self._draw_layers = draw_layers
        self._imagenet = imagenet
        self._prediction = prediction
        self._program = functools.cache(self._make_program)

    def train(self, branch: Branch, round_index: int) -> None:
        """Fine-tunes a branch, resuming from its newest checkpoint."""
        result = self._run.paths.finetuned(branch.name, round_index)
        folder = self._run.paths.layers(branch.name, round_index).parent / "checkpoints"
        if result.exists():
            logger.info("Fine-tuning is complete (%s)", result)
            delete_checkpoints(folder)  # in case the run was killed before this
            return
        config, prepared = self._run.config.finetune, self._run.data.prepared
        labels = prepared.labels[self._run.data.indices(round_index, LABELLED)]
        plan = self._run.plan(
            f"finetune/{branch.name}",
            round_index,
            (LABELLED,),
            batch_size=config.batch_size,
            epochs=config.epochs,
            sampling_weights=class_balance.sampling_weights(config, labels),
        )
        variables = self.starting_variables(branch, round_index, plan.seed)
        selection = self._select_layers(branch, round_index, variables)
        schedule, optimizer, program = self._program(branch, selection, plan.steps_per_epoch)
        with Checkpoints(folder) as checkpoints:
            stage = self._run.stage(
                plan,
                (LABELLED,),
                program=functools.partial(
                    program, balance=class_balance.of_loss(config, prepared.classes, labels)
                ),
                create=lambda: TrainState.create(
                    variables,
                    optimizer,
                    self._run.mesh,
                    selection.prefixes,
                    averages=config.ema_decay > 0,
                ),
                schedule=schedule,
                checkpoints=checkpoints,
                evaluate=lambda variables: self._validate(branch, variables, round_index),
                patience=config.patience,
            )
            state, best = loop.train(stage)
        assert best is not None  # because there is at least one epoch
        if hosts.is_primary():
            timm.save(best.variables, result, branch.model_name)
        delete_checkpoints(folder)
        epochs = int(state.step) // plan.steps_per_epoch
        score = f"{epoch_selection.describe(config.select)} {abs(best.score[0]):.4f}"
        score += " of the averaged weights" if config.ema_decay > 0 else ""
        at = f"best epoch {best.epoch} of {epochs}"
        logger.info("%s, round %d: %s, %s", plan.stage, round_index, at, score)

    def starting_variables(self, branch: Branch, round_index: int, seed: int) -> PyTree:
        """Returns the variables that a branch starts from: pre-trained ones below a fresh head."""
        fresh = self._run.initial_variables(self._run.classifier(branch), seed)
        if branch.is_mae:
            paths = self._run.paths
            path = paths.autoencoder(paths.split_index(round_index))
            model = pretrain.create_autoencoder(self._run.config)
            encoder = transfer.load_autoencoder(path, model)["encoder"]
            return transfer.start_finetuning(fresh, {"params": encoder}, keep_fresh=("head/",))
        if branch.name not in self._imagenet.variables:
            return fresh
        keep_fresh = self._run.classifier(branch).fresh_prefixes
        return transfer.start_finetuning(
            fresh, self._imagenet.variables[branch.name], keep_fresh=keep_fresh
        )

    def _make_program(
        self, branch: Branch, selection: Selection, steps_per_epoch: int
    ) -> tuple[optax.Schedule, optax.GradientTransformation, Callable]:
        """Returns schedule, optimizer and compiled steps, which all rounds share."""
        config = self._run.config.finetune
        schedule = optim.cosine_schedule(
            config.learning_rate,
            total_steps=config.epochs * steps_per_epoch,
            warmup_steps=config.warmup_epochs * steps_per_epoch,
        )
        network = self._run.classifier(branch)
        optimizer = optim.adamw(
            schedule,
            abstract_variables(network)["params"],
            weight_decay=config.weight_decay,
            betas=config.betas,
            layer_decay=config.layer_decay,
            depth_groups=network.depth_groups,
            clip_norm=config.clip_norm,
        )
        step = functools.partial(
            finetune.finetune_step,
            model=self._run.classifier(branch, selection.frozen),
            optimizer=optimizer,
            config=self._run.config,
            prefixes=selection.prefixes,
        )
        return schedule, optimizer, loop.compile_steps(step, self._run.mesh)

    def _select_layers(self, branch: Branch, round_index: int, variables: PyTree) -> Selection:
        """Selects the layers that train; once, in round_<i>/<branch>/layers.json."""
        config, params = self._run.config.finetune, variables["params"]
        layers = self._run.classifier(branch).layers
        path = self._run.paths.layers(branch.name, round_index)
        if not path.exists():
            entropies = None
            if config.trainable == "low_entropy":
                entropies = self.layer_entropies(branch, round_index, variables)
            chosen = layer_entropy.select(
                config.trainable,
                layer_selection.sizes(layers, params),
                count_parameters(params),
                share=config.trainable_share,
                entropies=entropies,
                seed=self._run.config.seed + round_index,
            )
            report = layer_selection.make_report(
                config.trainable, layers, params, chosen, entropies
            )
            if hosts.is_primary():
                if entropies is not None:
                    self._draw_layers(report, path.with_suffix(".png"))
                write_sealed(path, report)
            logger.info(
                "%s, round %d: %d of %d parameters are trained (%s)",
                branch.name,
                round_index,
                report["trainable_parameters"],
                report["parameters"],
                path,
            )
        hosts.wait_for_all(f"{path} is written")
        return layer_selection.selection(layers, layer_selection.read_report(path, layers))

    def layer_entropies(
        self, branch: Branch, round_index: int, variables: PyTree
    ) -> dict[str, float]:
        """Computes the entropy of each layer's output, in nats, on 256 training images."""
        run = self._run
        images = run.data.calibration(round_index, _CALIBRATION_IMAGES)
        take = jax.jit(lambda images, indices: augment.normalize(images.take(indices).pixels))
        return layer_selection.layer_entropies(
            run.classifier(branch),
            sharding.replicate(variables, sharding.local_mesh()),
            (
                (take(batch, indices), jnp.asarray(valid))
                for batch, indices, valid in images.batches(run.config.evaluation.batch_size)
            ),
        )

    def _validate(
        self, branch: Branch, variables: PyTree, round_index: int
    ) -> tuple[tuple[float, ...], dict[str, float]]:
        """Returns the validation score of an epoch by finetune.select, and the metrics to log."""
        predictions = self._prediction.predict(branch, variables, round_index, "validation")
        select = self._run.config.finetune.select
        return epoch_selection.score(select, predictions.labels, predictions.probabilities)
