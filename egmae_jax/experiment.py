"""The recipe from top to bottom: prepare -> pre-train -> fine-tune the branches -> fuse them.

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
    augment,
    branches,
    compilation,
    console,
    evaluate,
    finetune,
    layer_selection,
    loop,
    models,
    optim,
    pretrain,
    rng,
    sharding,
)
from egmae_jax import config as configs
from egmae_jax.branches import Branch
from egmae_jax.checkpoint import Checkpoints, delete_checkpoints, load_params, save_params
from egmae_jax.data import splits
from egmae_jax.data.datasets import DataError
from egmae_jax.data.pipeline import Images, Order
from egmae_jax.data.prepare import prepare
from egmae_jax.data.rounds import RoundData
from egmae_jax.evaluate import Predictions
from egmae_jax.explain import fusion_weights
from egmae_jax.files import DamagedFileError, read_json, write_json
from egmae_jax.imagenet import ImagenetWeights
from egmae_jax.interop import timm
from egmae_jax.layer_selection import Selection
from egmae_jax.metrics_log import MetricsLog
from egmae_jax.models.initialize import initial_params
from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.workdir import has_begun, lock, record_config, require_same_run

PyTree = Any
STAGES = ("all", "pretrain", "finetune", "evaluate")

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
        if stage == "pretrain" and not experiment.pretrainings:
            raise StageError("No branch of config.branches is pre-trained here; 'mae' would be.")
        if stage in ("all", "pretrain"):
            for split in experiment.pretrainings:
                experiment.pretrain(split)
        if stage in ("all", "finetune"):
            experiment.require_pretrained()
            for round_index in rounds:
                for branch in experiment.branches:
                    experiment.finetune(branch, round_index)
        if stage in ("all", "evaluate"):
            experiment.require_finetuned()
            for round_index in rounds:
                for branch in experiment.branches:
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
        self.branches = branches.of(self.config)
        self.imagenet = ImagenetWeights(
            config.imagenet.weights, self.branches, workdir / "imagenet_weights.json"
        )
        if stage in ("all", "finetune"):
            rounds = range(config.rounds.count)
            self.imagenet.load(
                [
                    branch.name
                    for branch in self.branches
                    if not all(self._finetuned_path(branch, r).exists() for r in rounds)
                ],
                begun=[b.name for b in self.branches if any(workdir.glob(f"round_*/{b.name}"))],
            )
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
            ", ".join(f"{b.name} ({b.model_name})" for b in self.branches),
            self.config.model.dtype,
            self.mesh.size,
            jax.devices()[0].device_kind,
            self.workdir,
        )
        parts_of = {"finetune": ("train",)}
        parts_of |= {"pretrain": self.config.pretrain.splits} if self.pretrainings else {}
        for stage, parts in parts_of.items():
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

    @property
    def pretrainings(self) -> range:
        """The splits that are pre-trained on; none without the branch 'mae'."""
        return range(self.data.num_splits if any(b.is_mae for b in self.branches) else 0)

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
        self._require(map(self._pretrained_path, self.pretrainings), "pretrain")

    # --- Fine-tuning (paper section 3.4) -------------------------------------------------------

    @functools.cache  # noqa: B019 (lives as long as the process)
    def classifier(self, branch: Branch, frozen: frozenset[str] = frozenset()) -> models.Model:
        """The network of a branch; batch norms of `frozen` layers stay as they were."""
        kind, rate = models.family(branch.model_name), self.config.finetune.drop_path_rate
        return models.create(
            branch.model_name,
            len(self.data.prepared.classes),
            drop_path_rate=0.0 if kind == "squeezenet" else rate,
            dtype=jnp.dtype(self.config.model.dtype),
            rematerialize=self.config.model.rematerialize and kind == "convnext",
            frozen=frozen,
        )

    @functools.cache  # noqa: B019
    def _finetune_program(
        self, branch: Branch, selection: Selection, steps_per_epoch: int
    ) -> tuple[optax.Schedule, optax.GradientTransformation, Callable]:
        """Schedule, optimizer and compiled steps, which rounds (and equal networks) share."""
        config = self.config.finetune
        schedule = optim.cosine_schedule(
            config.learning_rate,
            total_steps=config.epochs * steps_per_epoch,
            warmup_steps=config.warmup_epochs * steps_per_epoch,
        )
        fresh = self._initial_classifier(branch, seed=0)
        optimizer = optim.adamw(
            schedule,
            fresh,
            weight_decay=config.weight_decay,
            betas=config.betas,
            layer_decay=config.layer_decay,
        )
        step = functools.partial(
            finetune.finetune_step,
            model=self.classifier(branch, selection.frozen),
            optimizer=optimizer,
            config=self.config,
            prefixes=selection.prefixes,
        )
        return schedule, optimizer, loop.compile_steps(step, self.mesh)

    def _tested(
        self, images: Images, indices: jax.Array, first: jax.Array
    ) -> tuple[jax.Array, jax.Array | float]:
        """uint8 pixels of the evaluation view, and the noise to add once they are normalised.

        `first` is the place of the first image in its split.
        """
        batch = images.take(sharding.split_batch(indices, self.mesh))
        std = self.config.finetune.input_noise
        noise: jax.Array | float = 0.0
        if std > 0:  # an image's noise depends on its place in the split alone
            keys = jax.vmap(jax.random.fold_in, (None, 0))(
                rng.stage_key(self.config.seed, "noise"), first + jnp.arange(len(batch))
            )
            shape = (*batch.pixels.shape[1:3], 3)
            noise = jax.vmap(lambda key: augment.pixel_noise(key, shape, std))(keys)
        return batch.pixels, noise

    @functools.cache  # noqa: B019
    def _predict_program(self, branch: Branch) -> Callable:
        @compilation.jit
        def program(params, images, indices, first):
            pixels, noise = self._tested(images, indices, first)
            model = self.classifier(branch)
            return finetune.class_probabilities(params, pixels, noise, model=model)

        return program

    @functools.cache  # noqa: B019
    def _weights_program(self, branch: Branch) -> Callable:
        @compilation.jit
        def program(params, images, indices, first):
            pixels, noise = self._tested(images, indices, first)
            normalized = augment.normalize(pixels) + noise
            return fusion_weights.fusion_weights(self.classifier(branch), params, normalized)

        return program

    def _select_layers(self, branch: Branch, round_index: int, params: PyTree) -> Selection:
        """Which layers of a branch train; decided once, in round_<i>/<branch>/layers.json."""
        config = self.config.finetune
        layers = self.classifier(branch).layers
        path = self._layers_path(branch, round_index)
        if not path.exists():
            seed = self.config.seed + round_index
            entropies = None
            if config.trainable == "low_entropy":
                entropies = self._layer_entropies(branch, round_index, params)
            chosen = layer_selection.select(
                config.trainable,
                layers,
                params,
                share=config.trainable_share,
                entropies=entropies,
                seed=seed,
            )
            report = layer_selection.report(config.trainable, layers, params, chosen, entropies)
            if entropies is not None:
                layer_selection.plot(report, path.with_suffix(".png"))
                console.print_layers(f"{branch.name}, round {round_index}", report)
            write_json(path, report)
        rows = read_json(path)["layers"]
        return layer_selection.selection(layers, [row["layer"] for row in rows if row["trains"]])

    def _layers_path(self, branch: Branch, round_index: int) -> Path:
        return self.workdir / f"round_{round_index}" / branch.name / "layers.json"

    def _layer_entropies(
        self, branch: Branch, round_index: int, params: PyTree
    ) -> dict[str, float]:
        """Of training images, in the evaluation view."""
        images = self.data.calibration(round_index, self.config.finetune.calibration_images)
        take = jax.jit(
            lambda images, indices: augment.normalize(
                images.take(sharding.split_batch(indices, self.mesh)).pixels
            )
        )
        return layer_selection.layer_entropies(
            self.classifier(branch),
            sharding.replicate(params, self.mesh),
            (
                (take(batch, indices), jnp.asarray(valid))
                for batch, indices, valid in images.batches(self.config.evaluation.batch_size)
            ),
        )

    def finetune(self, branch: Branch, round_index: int) -> None:
        """Fine-tunes a branch; leaves export/round_<i>_<branch>.safetensors, the best epoch's."""
        result = self._finetuned_path(branch, round_index)
        folder = self._layers_path(branch, round_index).parent / "checkpoints"
        if result.exists():
            logger.info("Fine-tuning is complete (%s)", result)
            delete_checkpoints(folder)  # a kill may have come before
            return
        config = self.config.finetune
        stage, seed = f"finetune/{branch.name}", self.config.seed + round_index
        num_images = len(self.data.indices(round_index, "train"))
        steps_per_epoch = max(1, num_images // config.batch_size)
        params = self._start_of(branch, round_index, seed)
        selection = self._select_layers(branch, round_index, params)
        schedule, optimizer, program = self._finetune_program(branch, selection, steps_per_epoch)
        with Checkpoints(folder) as checkpoints:
            _, best = loop.train(
                stage=stage,
                round_index=round_index,
                program=program,
                state=loop.TrainState.create(params, optimizer, self.mesh, selection.prefixes),
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
                evaluate=lambda params: self._validate(branch, params, round_index),
            )
        assert best is not None  # there is at least one epoch
        timm.save(best.params, result, branch.model_name)
        delete_checkpoints(folder)
        logger.info(
            "%s, round %d: best epoch %d, validation AUC %.4f",
            stage,
            round_index,
            best.epoch,
            best.score[0],
        )

    def _finetuned_path(self, branch: Branch, round_index: int) -> Path:
        return self.workdir / "export" / f"round_{round_index}_{branch.name}.safetensors"

    def _initial_classifier(self, branch: Branch, seed: int) -> PyTree:
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        return self._initial_params(self.classifier(branch), seed, image)

    def _start_of(self, branch: Branch, round_index: int, seed: int) -> PyTree:
        """Where a branch starts from: pre-trained parameters below a fresh head."""
        fresh = self._initial_classifier(branch, seed)
        if branch.is_mae:
            autoencoder = load_params(self._pretrained_path(self.data.split_of(round_index)))
            return finetune.start_from(fresh, autoencoder["encoder"], keep_fresh=("head/",))
        if branch.name not in self.imagenet.params:
            return fresh
        keep_fresh = self.classifier(branch).fresh_prefixes
        return finetune.start_from(fresh, self.imagenet.params[branch.name], keep_fresh=keep_fresh)

    def _validate(
        self, branch: Branch, params: PyTree, round_index: int
    ) -> tuple[tuple[float, ...], dict[str, float]]:
        """Score (validation AUC; of equal ones the lower loss) and metrics to log."""
        predictions = self._predictions(branch, params, round_index, "validation")
        metrics = evaluate.compute_metrics(predictions.labels, predictions.probabilities)
        loss = evaluate.cross_entropy(predictions.labels, predictions.probabilities)
        row = {
            "validation_auc": metrics["auc"],
            "validation_accuracy": metrics["accuracy"],
            "validation_loss": loss,
        }
        return (metrics["auc"], -loss), row

    def _predictions(
        self, branch: Branch, params: PyTree, round_index: int, split: str
    ) -> Predictions:
        images = self.data.evaluation(round_index, split)
        prepared = self.data.prepared
        indices = self.data.indices(round_index, split)
        return Predictions(
            ids=np.array([prepared.files[i] for i in indices]),
            labels=prepared.labels[indices],
            probabilities=evaluate.predict(
                self._predict_program(branch), params, images, self.config.evaluation.batch_size
            ),
        )

    def require_finetuned(self) -> None:
        """Raises StageError where fine-tuning of a branch has not finished."""
        rounds = range(self.config.rounds.count)
        paths = (self._finetuned_path(b, r) for r in rounds for b in self.branches)
        self._require(paths, "finetune")

    @staticmethod
    def _require(paths: Iterable[Path], stage: str) -> None:
        missing = [str(path) for path in paths if not path.exists()]
        if missing:
            raise StageError(
                f"{missing[0]} is not there: run --stage={stage} (or no --stage at all) first."
            )

    # --- Ensemble and results (paper sections 3.5 and 4.4) --------------------------------------

    def predict(self, branch: Branch, round_index: int, *, again: bool) -> None:
        """Writes a branch's predictions for validation and test, once, or `again`.

        Of an ASFF also the fusion weights of the test images, by class.
        """
        paths = {
            split: self._predictions_path(branch, round_index, split)
            for split in ("validation", "test")
        }
        weights = self._weights_path(branch, round_index)
        needed = [*paths.values(), *([weights] if _fuses(branch) else [])]
        if not again and all(path.exists() for path in needed):
            return
        params = timm.load(self._finetuned_path(branch, round_index), branch.model_name)
        params = sharding.replicate(params, self.mesh)
        for split, path in paths.items():
            evaluate.save_predictions(path, self._predictions(branch, params, round_index, split))
        if _fuses(branch):
            write_json(weights, self._fusion_weights(branch, params, round_index))

    def _fusion_weights(self, branch: Branch, params: PyTree, round_index: int) -> dict[str, Any]:
        """Of the test images, by class."""
        values = evaluate.predict(
            self._weights_program(branch),
            params,
            self.data.evaluation(round_index, "test"),
            self.config.evaluation.batch_size,
        )
        prepared = self.data.prepared
        labels = prepared.labels[self.data.indices(round_index, "test")]
        return fusion_weights.by_class(values, labels, prepared.classes)

    def _predictions_path(self, branch: Branch, round_index: int, split: str) -> Path:
        return self.workdir / "predictions" / f"round_{round_index}_{branch.name}_{split}.npz"

    def _weights_path(self, branch: Branch, round_index: int) -> Path:
        folder = self.workdir / "predictions"
        return folder / f"round_{round_index}_{branch.name}_fusion_weights.json"

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
            "pretraining_saw_test": bool(self.pretrainings)
            and "test" in self.config.pretrain.splits,
            "pretraining": [
                read_json(self._pretrained_path(split).parent / "report.json")
                for split in self.pretrainings
            ],
            "branches": {branch.name: branch.model_name for branch in self.branches},
            "imagenet_weights": self.imagenet.sources,
            "imagenet_sha256": self.imagenet.recorded(),
            "rounds": [self._score(round_index) for round_index in range(self.config.rounds.count)],
        }
        results["summary"] = evaluate.summarize(results["rounds"])
        write_json(self.workdir / "results.json", results)
        console.print_results(results)
        return results

    def _score(self, round_index: int) -> dict[str, Any]:
        predictions = {
            split: {
                branch.name: evaluate.load_predictions(
                    self._predictions_path(branch, round_index, split)
                )
                for branch in self.branches
            }
            for split in ("validation", "test")
        }
        scores = evaluate.score(
            predictions["validation"],
            predictions["test"],
            fusion_kind=self.config.fusion.kind,
            resamples=self.config.evaluation.bootstrap_resamples,
        )
        row: dict[str, Any] = {"round": round_index, "seed": self.config.seed + round_index}
        row["trainable"] = {
            branch.name: read_json(self._layers_path(branch, round_index))
            for branch in self.branches
        }
        weights = {
            branch.name: read_json(self._weights_path(branch, round_index))
            for branch in self.branches
            if _fuses(branch)
        }
        if weights:
            row["fusion_weights"] = weights
        if self.data.num_splits > 1:  # dataset.counts are the first round's
            row["counts"] = self.data.counts(round_index)
        return row | scores


def _fuses(branch: Branch) -> bool:
    return models.family(branch.model_name) == "asff_resnet"
