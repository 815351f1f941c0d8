"""The recipe from top to bottom: prepare -> pre-train -> fine-tune both branches -> ensemble.

`run` is what main.py calls. Every stage leaves its result in the workdir, and one that has is not
run again, so the same command starts, resumes and completes a run.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax import (
    compilation,
    console,
    evaluate,
    finetune,
    loop,
    models,
    optim,
    pretrain,
    rng,
    sharding,
)
from egmae_jax import config as configs
from egmae_jax.checkpoint import Checkpoints, delete_checkpoints, load_params, save_params
from egmae_jax.data import splits
from egmae_jax.data.datasets import DataError
from egmae_jax.data.pipeline import Order
from egmae_jax.data.prepare import prepare
from egmae_jax.data.rounds import RoundData
from egmae_jax.evaluate import Predictions
from egmae_jax.files import DamagedFileError, read_json, write_json
from egmae_jax.imagenet import ImagenetWeights
from egmae_jax.interop import timm
from egmae_jax.metrics_log import MetricsLog
from egmae_jax.models.initialize import initial_params
from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.workdir import has_begun, lock, record_config, require_same_run

PyTree = Any
STAGES = ("all", "pretrain", "finetune", "evaluate")
BRANCHES = ("imagenet", "mae")

logger = logging.getLogger(__name__)


class StageError(RuntimeError):
    """A stage lacks what an earlier one should have left in the workdir."""


# Raised for what a user can mend; main.py shows their message without a traceback.
USER_ERRORS = (
    configs.ConfigError,
    DamagedFileError,
    DataError,
    loop.NonFiniteLossError,
    StageError,
    FileNotFoundError,
    timm.CheckpointError,
)


def run(
    config: ConfigDict, workdir: str | os.PathLike, stage: str = "all"
) -> dict[str, Any] | None:
    """Runs the recipe, or one stage of it, resuming whatever the workdir holds.

    Args:
        config: with the fields of configs/default.py.
        workdir: folder for everything the run leaves.
        stage: one of STAGES. 'pretrain' and 'finetune' stop after theirs; 'evaluate' makes
            predictions and results anew from what fine-tuning left.

    Returns:
        The content of results.json, or None where the stage does not write it.

    Raises:
        ConfigError, DataError, CheckpointError, DamagedFileError, FileNotFoundError, StageError:
            before any training.
        NonFiniteLossError: training diverged.
    """
    with lock(Path(workdir)):
        experiment = Experiment(config, Path(workdir), stage)
        rounds = range(config.rounds.count)
        if stage in ("all", "pretrain"):
            for split in range(experiment.data.num_splits):
                experiment.pretrain(split)
        if stage in ("all", "finetune"):
            experiment.require_pretrained()
            for round_index in rounds:
                for branch in BRANCHES:
                    experiment.finetune(branch, round_index)
        if stage in ("all", "evaluate"):
            experiment.require_finetuned()
            for round_index in rounds:
                for branch in BRANCHES:
                    experiment.predict(branch, round_index, again=stage == "evaluate")
            return experiment.report()
    return None


class Experiment:
    """One run: its config, data and devices, with a method for each stage."""

    def __init__(self, config: ConfigDict, workdir: Path, stage: str = "all"):
        self.mesh = sharding.make_mesh()
        configs.check(config, self.mesh.size)
        require_same_run(workdir, config)
        begun = has_begun(workdir)
        self.config = FrozenConfigDict(config)
        self.workdir = workdir
        cache = Path(config.data.cache_dir).expanduser()
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
        self.imagenet = ImagenetWeights(
            config.imagenet.weights, config.model.name, workdir / "imagenet_weights.json"
        )
        results = [self._finetuned_path("imagenet", r) for r in range(config.rounds.count)]
        if stage in ("all", "finetune") and not all(path.exists() for path in results):
            self.imagenet.load(begun=any(workdir.glob("round_*/imagenet")))
        prepared = prepare(
            config.data.name,
            Path(config.data.dir).expanduser(),
            cache / "datasets",
            on_error=config.data.on_error,
            near_duplicate_threshold=config.data.near_duplicate_threshold,
            classes=config.data.classes,
            group_pattern=config.data.group_pattern,
        )
        self.data = RoundData(prepared, self.config, workdir, self.mesh, begun=begun)
        record_config(workdir, config)
        self.imagenet.record()
        self.log = MetricsLog(workdir / "metrics.jsonl")
        self._announce()

    def _announce(self) -> None:
        prepared = self.data.prepared
        logger.info(
            "%d images in %d classes, %d groups of near-duplicates, %d of images that stay "
            "together; protocol %s: %s",
            len(prepared.files),
            len(prepared.classes),
            prepared.duplicate_groups,
            int((np.bincount(prepared.groups) > 1).sum()),
            self.data.protocol,
            ", ".join(f"{len(self.data.indices(0, split))} {split}" for split in splits.SPLITS),
        )
        held_out = int(prepared.held_out.sum())
        if held_out and self.config.data.protocol != "official":
            logger.warning(
                "%d images are in official validation or test parts, which data.protocol=%s "
                "splits anew; data.protocol=official keeps them",
                held_out,
                self.config.data.protocol,
            )
        conflicts = splits.conflicts(prepared.labels, prepared.pairs)
        if len(conflicts):
            first = [f"{prepared.files[i]} | {prepared.files[j]}" for i, j in conflicts[:10]]
            logger.warning(
                "%d pairs of near-duplicates have different labels (data.on_conflict is %s), "
                "such as %s",
                len(conflicts),
                self.config.data.on_conflict,
                ", ".join(first),
            )
        logger.info(
            "%s in %s on %d x %s; results go to %s",
            self.config.model.name,
            self.config.model.dtype,
            self.mesh.size,
            jax.devices()[0].device_kind,
            self.workdir,
        )
        for stage, parts in (("pretrain", self.config.pretrain.splits), ("finetune", ("train",))):
            config = self.config[stage]
            count = len(self.data.indices(0, *parts))
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

    def _initial_params(self, network: nn.Module, seed: int, *inputs: Any) -> PyTree:
        return initial_params(
            network,
            seed,
            *inputs,
            kernel_init=self.config.model.kernel_init,
            layer_scale=self.config.model.layer_scale,
        )

    # --- Pre-training (paper section 3.3) ------------------------------------------------------

    @functools.cached_property
    def autoencoder(self) -> MaskedAutoencoder:
        """The network of pre-training."""
        return pretrain.create_autoencoder(self.config, len(self.data.prepared.classes))

    def pretrain(self, split: int) -> None:
        """Pre-trains on the training images of a split; leaves pretrain/autoencoder.safetensors."""
        result = self._pretrained_path(split)
        folder, report = result.parent / "checkpoints", result.parent / "report.json"
        if result.exists():
            logger.info("Pre-training is complete (%s)", result)
            delete_checkpoints(folder)  # a kill may have come before
            if not report.exists():
                write_json(report, self._reconstruction_losses(load_params(result), split))
            return
        config = self.config.pretrain
        seed = self.config.seed + split
        indices = self.data.indices(split, *config.splits)
        steps_per_epoch = max(1, len(indices) // config.batch_size)
        schedule = optim.cosine_schedule(
            config.learning_rate,
            total_steps=config.epochs * steps_per_epoch,
            warmup_steps=config.warmup_epochs * steps_per_epoch,
        )
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        mask = jax.ShapeDtypeStruct((1, 1, 1), jnp.float32)
        fresh = self._initial_params(self.autoencoder, seed, image, mask)
        optimizer = optim.adamw(
            schedule, fresh, weight_decay=config.weight_decay, betas=config.betas
        )
        step = functools.partial(
            pretrain.pretrain_step, model=self.autoencoder, optimizer=optimizer, config=self.config
        )
        with Checkpoints(folder) as checkpoints:
            state, _ = loop.train(
                stage="pretrain",
                round_index=split,
                program=loop.compile_steps(step, self.mesh),
                state=loop.TrainState.create(fresh, optimizer, self.mesh),
                feed=lambda: self.data.feed(
                    split,
                    config.splits,
                    Order(len(indices), config.batch_size, (seed, rng.stage_id("pretrain"))),
                    total_steps=config.epochs * steps_per_epoch,
                ),
                batch_size=config.batch_size,
                key=rng.stage_key(seed, "pretrain"),
                epochs=config.epochs,
                steps_per_epoch=steps_per_epoch,
                schedule=schedule,
                checkpoints=checkpoints,
                save_seconds=self.config.checkpoint.save_seconds,
                log=self.log,
            )
        losses = self._reconstruction_losses(state.params, split)
        write_json(report, losses)
        save_params(result, state.params)
        delete_checkpoints(folder)
        logger.info(
            "Reconstruction loss on validation images %.4f; %.4f if it always said the mean colour",
            losses["reconstruction_loss"],
            losses["mean_colour_loss"],
        )

    def _pretrained_path(self, split: int) -> Path:
        folds = self.data.num_splits > 1
        folder = self.workdir / f"round_{split}" if folds else self.workdir
        return folder / "pretrain" / "autoencoder.safetensors"

    def _reconstruction_losses(self, params: PyTree, split: int) -> dict[str, float]:
        program = compilation.jit(
            functools.partial(
                pretrain.reconstruction_sums, model=self.autoencoder, config=self.config
            )
        )
        images = self.data.evaluation(split, "validation")
        key = rng.stage_key(self.config.seed + split, "reconstruction")
        batches = images.batches(self.config.pretrain.batch_size)
        sums = [
            program(params, images.take(indices).pixels, valid, jax.random.fold_in(key, i))
            for i, (images, indices, valid) in enumerate(batches)
        ]
        return pretrain.reconstruction_losses(sums)

    def require_pretrained(self) -> None:
        """Raises StageError where pre-training has not finished."""
        self._require(map(self._pretrained_path, range(self.data.num_splits)), "pretrain")

    # --- Fine-tuning (paper section 3.4) -------------------------------------------------------

    @functools.cached_property
    def classifier(self) -> models.ConvNeXt:
        """The network of fine-tuning."""
        return self._create_model(drop_path_rate=self.config.finetune.drop_path_rate)

    @functools.cache  # noqa: B019 (lives as long as the process)
    def _finetune_program(
        self, steps_per_epoch: int
    ) -> tuple[optax.Schedule, optax.GradientTransformation, Callable]:
        """Schedule, optimizer and compiled steps, which all branches and rounds share."""
        config = self.config.finetune
        schedule = optim.cosine_schedule(
            config.learning_rate,
            total_steps=config.epochs * steps_per_epoch,
            warmup_steps=config.warmup_epochs * steps_per_epoch,
        )
        optimizer = optim.adamw(
            schedule,
            self._initial_classifier(seed=0),
            weight_decay=config.weight_decay,
            betas=config.betas,
            layer_decay=config.layer_decay,
        )
        step = functools.partial(
            finetune.finetune_step, model=self.classifier, optimizer=optimizer, config=self.config
        )
        return schedule, optimizer, loop.compile_steps(step, self.mesh)

    @functools.cached_property
    def _predict_program(self) -> Callable:
        @compilation.jit
        def program(params, images, indices):
            batch = images.take(sharding.split_batch(indices, self.mesh))
            return finetune.class_probabilities(params, batch.pixels, model=self.classifier)

        return program

    def finetune(self, branch: str, round_index: int) -> None:
        """Fine-tunes a branch; leaves export/round_<i>_<branch>.safetensors, the best epoch's."""
        result = self._finetuned_path(branch, round_index)
        folder = self.workdir / f"round_{round_index}" / branch / "checkpoints"
        if result.exists():
            logger.info("Fine-tuning is complete (%s)", result)
            delete_checkpoints(folder)  # a kill may have come before
            return
        config = self.config.finetune
        stage, seed = f"finetune/{branch}", self.config.seed + round_index
        num_images = len(self.data.indices(round_index, "train"))
        steps_per_epoch = max(1, num_images // config.batch_size)
        schedule, optimizer, program = self._finetune_program(steps_per_epoch)
        params = self._start_of(branch, round_index, seed)
        with Checkpoints(folder) as checkpoints:
            _, best = loop.train(
                stage=stage,
                round_index=round_index,
                program=program,
                state=loop.TrainState.create(params, optimizer, self.mesh),
                feed=lambda: self.data.feed(
                    round_index,
                    ("train",),
                    Order(num_images, config.batch_size, (seed, rng.stage_id(stage))),
                    total_steps=config.epochs * steps_per_epoch,
                ),
                batch_size=config.batch_size,
                key=rng.stage_key(seed, stage),
                epochs=config.epochs,
                steps_per_epoch=steps_per_epoch,
                schedule=schedule,
                checkpoints=checkpoints,
                save_seconds=self.config.checkpoint.save_seconds,
                log=self.log,
                evaluate=lambda params: self._validate(params, round_index),
            )
        assert best is not None  # there is at least one epoch
        timm.save(best.params, result, self.config.model.name)
        delete_checkpoints(folder)
        logger.info(
            "%s, round %d: best epoch %d, validation AUC %.4f",
            stage,
            round_index,
            best.epoch,
            best.score[0],
        )

    def _finetuned_path(self, branch: str, round_index: int) -> Path:
        return self.workdir / "export" / f"round_{round_index}_{branch}.safetensors"

    def _create_model(self, drop_path_rate: float) -> models.ConvNeXt:
        return models.create(
            self.config.model.name,
            len(self.data.prepared.classes),
            drop_path_rate=drop_path_rate,
            dtype=jnp.dtype(self.config.model.dtype),
            rematerialize=self.config.model.rematerialize,
        )

    def _initial_classifier(self, seed: int) -> PyTree:
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        return self._initial_params(self.classifier, seed, image)

    def _start_of(self, branch: str, round_index: int, seed: int) -> PyTree:
        """Where a branch starts from: pre-trained parameters below a fresh head."""
        fresh = self._initial_classifier(seed)
        if branch == "mae":
            autoencoder = load_params(self._pretrained_path(self.data.split_of(round_index)))
            return finetune.start_from(fresh, autoencoder["encoder"], keep_fresh=("head/",))
        if self.imagenet.params is None:
            return fresh
        return finetune.start_from(fresh, self.imagenet.params, keep_fresh=("head/fc/",))

    def _validate(
        self, params: PyTree, round_index: int
    ) -> tuple[tuple[float, ...], dict[str, float]]:
        """Score (validation AUC; of equal ones the lower loss) and metrics to log."""
        predictions = self._predictions(params, round_index, "validation")
        metrics = evaluate.compute_metrics(predictions.labels, predictions.probabilities)
        loss = evaluate.cross_entropy(predictions.labels, predictions.probabilities)
        row = {
            "validation_auc": metrics["auc"],
            "validation_accuracy": metrics["accuracy"],
            "validation_loss": loss,
        }
        return (metrics["auc"], -loss), row

    def _predictions(self, params: PyTree, round_index: int, split: str) -> Predictions:
        images = self.data.evaluation(round_index, split)
        prepared = self.data.prepared
        indices = self.data.indices(round_index, split)
        return Predictions(
            ids=np.array([prepared.files[i] for i in indices]),
            labels=prepared.labels[indices],
            probabilities=evaluate.predict(
                self._predict_program, params, images, self.config.evaluation.batch_size
            ),
        )

    def require_finetuned(self) -> None:
        """Raises StageError where fine-tuning of a branch has not finished."""
        rounds = range(self.config.rounds.count)
        self._require((self._finetuned_path(b, r) for r in rounds for b in BRANCHES), "finetune")

    @staticmethod
    def _require(paths: Iterable[Path], stage: str) -> None:
        missing = [str(path) for path in paths if not path.exists()]
        if missing:
            raise StageError(
                f"{missing[0]} is not there: run --stage={stage} (or no --stage at all) first."
            )

    # --- Ensemble and results (paper sections 3.5 and 4.4) --------------------------------------

    def predict(self, branch: str, round_index: int, *, again: bool) -> None:
        """Writes a branch's predictions for validation and test, once, or `again`."""
        paths = {
            split: self._predictions_path(branch, round_index, split)
            for split in ("validation", "test")
        }
        if not again and all(path.exists() for path in paths.values()):
            return
        params = timm.load(self._finetuned_path(branch, round_index), self.config.model.name)
        params = sharding.replicate(params, self.mesh)
        for split, path in paths.items():
            evaluate.save_predictions(path, self._predictions(params, round_index, split))

    def _predictions_path(self, branch: str, round_index: int, split: str) -> Path:
        return self.workdir / "predictions" / f"round_{round_index}_{branch}_{split}.npz"

    def report(self) -> dict[str, Any]:
        """Scores every branch and the ensemble; writes results.json and prints the table."""
        prepared = self.data.prepared
        results: dict[str, Any] = {
            "config": self.config.to_dict(),
            "dataset": {
                "name": prepared.name,
                "title": prepared.title,
                "classes": list(prepared.classes),
                "citation": prepared.citation,
                "counts": self.data.counts(0),
                "protocol": self.data.protocol,
                "duplicate_groups": prepared.duplicate_groups,
                "left_out": self.data.num_left_out,
                "skipped": list(prepared.skipped),
            },
            "pretraining_saw_test": "test" in self.config.pretrain.splits,
            "pretraining": [
                read_json(self._pretrained_path(split).parent / "report.json")
                for split in range(self.data.num_splits)
            ],
            "imagenet_weights": self.imagenet.source,
            "imagenet_sha256": self.imagenet.recorded_sha256(),
            "rounds": [self._score(round_index) for round_index in range(self.config.rounds.count)],
        }
        results["summary"] = evaluate.summarize(results["rounds"])
        write_json(self.workdir / "results.json", results)
        console.print_results(results)
        return results

    def _score(self, round_index: int) -> dict[str, Any]:
        branches = {
            branch: evaluate.load_predictions(self._predictions_path(branch, round_index, "test"))
            for branch in BRANCHES
        }
        scores = evaluate.score(branches, self.config.evaluation.bootstrap_resamples)
        row: dict[str, Any] = {"round": round_index, "seed": self.config.seed + round_index}
        if self.data.num_splits > 1:  # dataset.counts are the first round's
            row["counts"] = self.data.counts(round_index)
        return row | scores
