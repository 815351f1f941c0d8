"""Computes everything that the page shows about an image."""

from typing import NamedTuple

import numpy as np

from egmae_jax.data.images import UnreadableImageError
from egmae_jax.deploy.predictor import Predictor
from egmae_jax.explain.gradcam import Layer
from egmae_jax.explain.overlay import overlay
from egmae_jax.method.corruption import patch_entropy


class Examination(NamedTuple):
    """An image and the results that the page shows for it.

    Attributes:
        pixels: input of the networks, uint8 [S, S, 3], or [S, S, 1] for greyscale.
        predicted: name of the predicted class.
        probabilities: float [num_classes] by classifier, 'ensemble' first if there is one.
        overlays: Grad-CAM of the predicted class over the image, uint8 [S, S, 3] by branch.
        layers: layer that Grad-CAM uses, by branch.
        entropy: entropy of the patches, float [S/P, S/P] in nats; None if S is not a multiple of
            the patch size P.
    """

    pixels: np.ndarray
    predicted: str
    probabilities: dict[str, np.ndarray]
    overlays: dict[str, np.ndarray]
    layers: dict[str, Layer]
    entropy: np.ndarray | None


def examine(predictor: Predictor, encoded: bytes) -> Examination:
    """Classifies an image, and computes its Grad-CAM and the entropy of its patches.

    Args:
        predictor: predictor of a run.
        encoded: bytes of an image file.

    Raises:
        UnreadableImageError: the image cannot be read.
        MissingExtraError: the image format needs a package that is not installed.
    """
    (batch,) = predictor.stream([encoded])
    for reason in batch.unreadable.values():
        raise UnreadableImageError(reason)
    pixels, names = batch.pixels[0], [branch.name for branch in predictor.run.branches]
    result = batch.classification
    return Examination(
        pixels,
        result.predicted[0],
        {name: probabilities[0] for name, probabilities in result.probabilities.items()},
        {name: overlay(pixels, predictor.heat(batch, name)[0]) for name in names},
        {name: predictor.heat_layer(name) for name in names},
        _measure_entropy(predictor, pixels),
    )


def _measure_entropy(predictor: Predictor, pixels: np.ndarray) -> np.ndarray | None:
    config = predictor.run.config
    patch, entropy = config.corruption.patch_size, config.entropy
    if len(pixels) % patch:
        return None
    (values,) = patch_entropy(pixels[None], patch, num_bins=entropy.num_bins, color=entropy.color)
    return np.asarray(values)
