"""Predictions of the branches (paper section 3.5), and how an ASFF weighs its features."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egmae_jax import models
from egmae_jax.core import platform, rng, sharding
from egmae_jax.core.files import write_sealed
from egmae_jax.data.pipeline import Evaluation, Images
from egmae_jax.evaluation import fusion_weights
from egmae_jax.evaluation.predictions import Predictions, save_predictions
from egmae_jax.method import augment
from egmae_jax.models import asff, timm
from egmae_jax.run.branches import Branch
from egmae_jax.run.context import Run
from egmae_jax.training import finetune
from egmae_jax.training.nonfinite import HINT, NonFiniteError

PyTree = Any


class Prediction:
    """Writes predictions/: probabilities of validation and test images, an ASFF's weights."""

    def __init__(self, run: Run):
        self._run = run
        self._probabilities_program = functools.cache(self._make_probabilities_program)
        self._weights_program = functools.cache(self._make_weights_program)

    def save(self, branch: Branch, round_index: int, *, again: bool) -> None:
        """Writes a branch's predictions for validation and test, once, or `again`.

        Of an ASFF also the fusion weights of the test images, by class.
        """
        paths = {
            split: self._run.paths.predictions(branch.name, round_index, split)
            for split in ("validation", "test")
        }
        weights = self._run.paths.fusion_weights(branch.name, round_index)
        needed = [*paths.values(), *([weights] if fuses(branch) else [])]
        if not again and all(path.exists() for path in needed):
            return
        variables = timm.load(
            self._run.paths.finetuned(branch.name, round_index), branch.model_name
        )
        variables = sharding.replicate(variables, self._run.mesh)
        for split, path in paths.items():
            predictions = self.of(branch, variables, round_index, split)
            if sharding.is_primary():
                save_predictions(path, predictions)
        if fuses(branch):
            by_class = self._fusion_weights(branch, variables, round_index)
            if sharding.is_primary():
                write_sealed(weights, by_class)

    def of(self, branch: Branch, variables: PyTree, round_index: int, split: str) -> Predictions:
        """Predicts the images of one part by a branch with these variables.

        Raises:
            NonFiniteError: parameters are finite, but too large for their activations to be.
        """
        prepared = self._run.data.prepared
        indices = self._run.data.indices(round_index, split)
        program = self._probabilities_program(branch)
        probabilities = self._over(program, variables, round_index, split)
        if not np.isfinite(probabilities).all():
            raise NonFiniteError(
                f"The {split} predictions of finetune/{branch.name}, round {round_index}, are not "
                f"finite: its training diverged. {HINT.format('finetune')}"
            )
        return Predictions(
            ids=np.array([prepared.files[i] for i in indices]),
            labels=prepared.labels[indices],
            probabilities=probabilities,
            groups=prepared.groups[indices],
        )

    def _over(
        self, program: Callable, variables: PyTree, round_index: int, split: str
    ) -> np.ndarray:
        config = self._run.config
        key = rng.stage_key(config.seed + round_index, f"noise/{split}")
        return predict(
            lambda *batch: program(variables, *batch, key),
            self._run.data.evaluation(round_index, split),
            sharding.divisible(config.evaluation.batch_size, self._run.mesh),
        )

    def _fusion_weights(
        self, branch: Branch, variables: PyTree, round_index: int
    ) -> dict[str, Any]:
        """Fusion weights of an ASFF for the test images, by class."""
        values = self._over(self._weights_program(branch), variables, round_index, "test")
        prepared = self._run.data.prepared
        labels = prepared.labels[self._run.data.indices(round_index, "test")]
        return fusion_weights.by_class(values, labels, prepared.classes)

    def _make_probabilities_program(self, branch: Branch) -> Callable:
        @platform.jit
        def program(variables, images, indices, first, key):
            pixels, noise = self._tested(images, indices, first, key)
            model = self._run.classifier(branch)
            found = finetune.class_probabilities(variables, pixels, noise, model=model)
            return sharding.gather(found, self._run.mesh)

        return program

    def _make_weights_program(self, branch: Branch) -> Callable:
        @platform.jit
        def program(variables, images, indices, first, key):
            pixels, noise = self._tested(images, indices, first, key)
            normalized = augment.normalize(pixels) + noise
            found = asff.fusion_weights(self._run.classifier(branch), variables, normalized)
            return sharding.gather(found, self._run.mesh)

        return program

    def _tested(
        self, images: Images, indices: jax.Array, first: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array | float]:
        """uint8 pixels of the evaluation view, and the noise to add once they are normalised.

        `first` is the place of the first image in its split, `key` that split's and round's.
        """
        batch = images.take(sharding.split_batch(indices, self._run.mesh))
        std = self._run.config.finetune.input_noise
        noise: jax.Array | float = 0.0
        if std > 0:  # an image's noise depends on its place in the split alone
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(len(batch)))
            shape = (*batch.pixels.shape[1:3], 3)
            noise = jax.vmap(lambda key: augment.pixel_noise(key, shape, std))(keys)
        return batch.pixels, noise


def predict(program: Callable, images: Evaluation, batch_size: int) -> np.ndarray:
    """Class probabilities of all images, float32 [N, num_classes].

    Args:
        program: jitted, (images, indices [B], place of the first in the split) -> probabilities
            [B, num_classes].
        images: to classify.
        batch_size: of one call.
    """
    batches = [
        program(batch, indices, i * batch_size)
        for i, (batch, indices, _) in enumerate(images.batches(batch_size))
    ]
    return np.concatenate([np.asarray(batch) for batch in batches])[: len(images)]


def fuses(branch: Branch) -> bool:
    """Whether a branch has fusion weights."""
    return models.family(branch.model_name) == "asff_resnet"
