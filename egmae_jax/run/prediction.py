"""Predictions of the branches (paper section 3.5), and fusion weights of ASFF networks."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egmae_jax import models
from egmae_jax.augmentations import tta
from egmae_jax.core import hosts, platform, rng, sharding
from egmae_jax.core.files import write_sealed
from egmae_jax.data.pipeline import Images
from egmae_jax.evaluation import asff_weights
from egmae_jax.evaluation.features import Features, save_features
from egmae_jax.evaluation.predictions import Predictions, save_predictions
from egmae_jax.method import augment
from egmae_jax.models import asff, timm
from egmae_jax.run.branches import Branch
from egmae_jax.run.context import Run
from egmae_jax.run.features import pooled
from egmae_jax.run.images import tta_views
from egmae_jax.run.nonfinite import require_finite
from egmae_jax.training import finetune

PyTree = Any
logger = logging.getLogger(__name__)


class Prediction:
    """Predicts validation and test images, and writes the results to predictions/."""

    def __init__(self, run: Run):
        self._run = run
        self._program = functools.cache(self._make_program)

    def save(self, branch: Branch, round_index: int, *, again: bool) -> None:
        """Writes the predictions of a branch for the validation and test parts.

        For an ASFF, the fusion weights of the test images are also written, averaged by class.

        Args:
            branch: a fine-tuned branch.
            round_index: index of the round.
            again: whether to overwrite existing predictions.
        """
        paths = {
            part: self._run.paths.predictions(branch.name, round_index, part)
            for part in ("validation", "test")
        }
        weights = self._run.paths.fusion_weights(branch.name, round_index)
        needed = [*paths.values(), *([weights] if has_fusion_weights(branch) else [])]
        if not again and all(path.exists() for path in needed):
            return
        logger.info("Predicting validation and test images: %s, round %d", branch.name, round_index)
        variables = timm.load(
            self._run.paths.finetuned(branch.name, round_index), branch.model_name
        )
        variables = sharding.replicate(variables, self._run.mesh)
        for part, path in paths.items():
            predictions = self.predict(branch, variables, round_index, part)
            if hosts.is_primary():
                save_predictions(path, predictions)
        if has_fusion_weights(branch):
            prepared = self._run.data.prepared
            by_class = asff_weights.by_class(
                self._outputs(branch, variables, round_index, "test", self._fusion_weights),
                prepared.labels[self._run.data.indices(round_index, "test")],
                prepared.classes,
            )
            if hosts.is_primary():
                write_sealed(weights, by_class)

    def save_features(self, branch: Branch, round_index: int, *, again: bool) -> None:
        """Writes the features of the training and test images by a fine-tuned branch.

        Args:
            branch: a fine-tuned branch.
            round_index: index of the round.
            again: whether to overwrite existing features.
        """
        path = self._run.paths.features(branch.name, round_index)
        if path.exists() and not again:
            return
        data, parts = self._run.data, ("train", "test")
        variables = timm.load(
            self._run.paths.finetuned(branch.name, round_index), branch.model_name
        )
        variables = sharding.replicate(variables, self._run.mesh)
        outputs = [self._outputs(branch, variables, round_index, x, self._features) for x in parts]
        indices = [data.indices(round_index, part) for part in parts]
        if hosts.is_primary():
            features = Features(
                ids=np.array([data.prepared.files[i] for i in np.concatenate(indices)]),
                labels=data.prepared.labels[np.concatenate(indices)],
                parts=np.repeat(parts, [len(x) for x in indices]),
                features=np.concatenate(outputs),
            )
            save_features(path, features)

    def predict(
        self, branch: Branch, variables: PyTree, round_index: int, part: str
    ) -> Predictions:
        """Predicts the images of one part with the variables of a branch.

        Raises:
            NonFiniteError: probabilities are not finite, because the parameters are too large.
        """
        prepared = self._run.data.prepared
        indices = self._run.data.indices(round_index, part)
        probabilities = self._outputs(
            branch, variables, round_index, part, self._class_probabilities
        )
        subject = f"The {part} predictions of finetune/{branch.name}, round {round_index},"
        require_finite(probabilities, subject, "finetune")
        return Predictions(
            ids=np.array([prepared.files[i] for i in indices]),
            labels=prepared.labels[indices],
            probabilities=probabilities,
            groups=prepared.groups[indices],
        )

    def _outputs(
        self, branch: Branch, variables: PyTree, round_index: int, part: str, function: Callable
    ) -> np.ndarray:
        """Applies a function of a network to all images of a part, in order; returns [N, ...]."""
        config, images = self._run.config, self._run.data.tta_evaluation(round_index, part)
        program = self._program(branch, function)
        key = rng.stage_key(config.seed + round_index, f"noise/{part}")
        size = sharding.divisible(config.evaluation.batch_size, self._run.mesh)
        batches = [
            program(variables, batch, indices, i * size, key)
            for i, (batch, indices, _) in enumerate(images.batches(size))
        ]
        return np.concatenate([np.asarray(batch) for batch in batches])[: len(images)]

    def _make_program(self, branch: Branch, function: Callable) -> Callable:
        """Compiles `function(network, variables, pixels, noise)` for batches of images."""

        @platform.jit
        def program(variables, images, indices, first, key):
            pixels, noise = self._take_batch(images, indices, first, key)
            outputs = function(self._run.classifier(branch), variables, pixels, noise)
            return sharding.gather(outputs, self._run.mesh)

        return program

    def _take_batch(
        self, images: Images, indices: jax.Array, first: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array | float]:
        """Returns the uint8 pixels of a batch, and the noise to add after normalisation.

        Args:
            images: images that the batch is taken from.
            indices: indices of the batch's images.
            first: position in the part of the batch's first image.
            key: random key of the part and round.
        """
        batch = images.take(sharding.split_batch(indices, self._run.mesh))
        std = self._run.config.finetune.input_noise
        noise: jax.Array | float = 0.0
        if std > 0:  # the noise of an image depends only on its position in the part
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(len(batch)))
            shape = (*(self._run.config.data.image_size,) * 2, 3)
            noise = jax.vmap(lambda key: augment.pixel_noise(key, shape, std))(keys)
        return batch.pixels, noise

    def _class_probabilities(
        self, model: models.Model, variables: PyTree, pixels: Any, noise: Any
    ) -> jax.Array:
        views = tta_views(self._run.config)
        return finetune.class_probabilities(variables, pixels, noise, model=model, views=views)

    def _fusion_weights(
        self, model: models.Model, variables: PyTree, pixels: Any, noise: Any
    ) -> jax.Array:
        centre = tta.centre_crop(pixels, self._run.config.data.image_size)
        return asff.fusion_weights(model, variables, augment.normalize(centre) + noise)

    def _features(
        self, model: models.Model, variables: PyTree, pixels: Any, noise: Any
    ) -> jax.Array:
        centre = tta.centre_crop(pixels, self._run.config.data.image_size)
        return pooled(model, variables, augment.normalize(centre) + noise)


def has_fusion_weights(branch: Branch) -> bool:
    """Whether the network of a branch has fusion weights, as an ASFF has."""
    return models.create(branch.model_name, 1).has_fusion_weights
