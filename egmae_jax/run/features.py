"""Features of a network for the images of a part: its last feature map, averaged over pixels."""

from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np

from egmae_jax.core import platform, sharding
from egmae_jax.evaluation import probe
from egmae_jax.method import augment
from egmae_jax.models.mae import MaskedAutoencoder
from egmae_jax.models.model import Model
from egmae_jax.run.context import Run
from egmae_jax.run.nonfinite import require_finite
from egmae_jax.run.rounds import LABELLED

PyTree = Any


def pooled(model: Model, variables: PyTree, images: jax.Array) -> jax.Array:
    """Computes the mean of a network's last feature map over its pixels.

    Args:
        model: a network with the method `features`.
        variables: variables of the network; a classifier's head is not needed.
        images: normalised images [B, H, W, 3].

    Returns:
        float32 [B, D].
    """
    features = cast(jax.Array, model.apply(variables, images, method="features"))
    return features.astype("float32").mean(axis=(1, 2))


class EncoderProbe:
    """Scores the frozen features of pre-training's encoder: labelled training images -> validation.

    Args:
        run: the run.
        split: index of the split used for pre-training.
        model: the masked autoencoder.
    """

    def __init__(self, run: Run, split: int, model: MaskedAutoencoder):
        self._run, self._split = run, split
        self._program = _program(run, model.encoder)

    def score_epoch(self, epoch: int, variables: PyTree) -> dict[str, float]:
        """Returns the scores of an epoch as metrics to log; {} if it is not due.

        It is due every `pretrain.probe_epochs` epochs, and after the last one.
        """
        pretrain = self._run.config.pretrain
        if not pretrain.probe_epochs:
            return {}
        if epoch % pretrain.probe_epochs and epoch != pretrain.epochs:
            return {}
        scores = self.score(variables["params"])
        return {f"validation_{name}": value for name, value in scores.items()}

    def score(self, params: PyTree) -> dict[str, float]:
        """Returns probe_accuracy and knn_accuracy of the autoencoder's parameters, see `probe`.

        Raises:
            NonFiniteError: features are not finite, because training diverged.
        """
        encoder = {"params": params["encoder"]}
        features = [self._features(encoder, part) for part in (LABELLED, "validation")]
        (train, train_labels), (held_out, held_out_labels) = features
        return probe.score(train, train_labels, held_out, held_out_labels)

    def report(self, before: PyTree, after: PyTree) -> dict[str, Any]:
        """Returns the scores before and after pre-training, and those of the largest class."""
        labels, held_out_labels = (self._labels(part) for part in (LABELLED, "validation"))
        return {
            "before": self.score(before),
            "after": self.score(after),
            "majority_accuracy": probe.majority_accuracy(labels, held_out_labels),
        }

    def _labels(self, part: str) -> np.ndarray:
        data = self._run.data
        return data.prepared.labels[data.indices(self._split, part)]

    def _features(self, encoder: PyTree, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the features [N, D] and the classes [N] of the images of a part."""
        images = self._run.data.evaluation(self._split, part)
        size = sharding.divisible(self._run.config.evaluation.batch_size, self._run.mesh)
        batches = [self._program(encoder, *batch[:2]) for batch in images.batches(size)]
        features = np.concatenate([np.asarray(batch) for batch in batches])[: len(images)]
        subject = f"The encoder's features of {part} images in pretrain, split {self._split},"
        require_finite(features, subject, "pretrain")
        return features, self._labels(part)


def _program(run: Run, encoder: Any) -> Callable:
    """Compiles (variables, images, indices) -> features [B, D] of an encoder."""

    @platform.jit
    def program(variables, images, indices):
        batch = images.take(sharding.split_batch(indices, run.mesh))
        features = pooled(encoder, variables, augment.normalize(batch.pixels))
        return sharding.gather(features, run.mesh)

    return program
