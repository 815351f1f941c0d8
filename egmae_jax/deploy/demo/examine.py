"""Computes what the page shows of an image, without widgets."""

from typing import NamedTuple

import numpy as np

from egmae_jax.data.images import UnreadableImageError
from egmae_jax.deploy.predictor import Predictor
from egmae_jax.explain.gradcam import Layer
from egmae_jax.explain.overlay import overlay
from egmae_jax.method.corruption import patch_entropy


class Examined(NamedTuple):
    """An image with everything that the page shows of it.

    Attributes:
        pixels: the image as the networks see it, uint8 [S, S, 3], or 1 for grey.
        predicted: name of the predicted class.
        probabilities: float [num_classes] by classifier, the ensemble first.
        overlays: Grad-CAM of the predicted class over the image by branch, uint8 [S, S, 3].
        layers: layer of the Grad-CAM by branch.
        entropy: nats of the patches [S/P, S/P]; None where patches do not fill the image.
    """

    pixels: np.ndarray
    predicted: str
    probabilities: dict[str, np.ndarray]
    overlays: dict[str, np.ndarray]
    layers: dict[str, Layer]
    entropy: np.ndarray | None


def examine(predictor: Predictor, encoded: bytes) -> Examined:
    """Classifies an image, explains it, and measures the entropy of its patches.

    Args:
        predictor: predictor of a run.
        encoded: bytes of an image file.

    Raises:
        UnreadableImageError: the bytes are no image that can be used.
        MissingExtraError: reading the image needs a package that is not installed.
    """
    (batch,) = predictor.stream([encoded])
    for reason in batch.unreadable.values():
        raise UnreadableImageError(reason)
    pixels, names = batch.pixels[0], [branch.name for branch in predictor.run.branches]
    result = batch.classification
    return Examined(
        pixels,
        result.predicted[0],
        {name: probabilities[0] for name, probabilities in result.probabilities.items()},
        {name: overlay(pixels, predictor.heat(batch, name)[0]) for name in names},
        {name: predictor.heat_layer(name) for name in names},
        _entropy(predictor, pixels),
    )


def _entropy(predictor: Predictor, pixels: np.ndarray) -> np.ndarray | None:
    config = predictor.run.config
    patch, entropy = config.corruption.patch_size, config.entropy
    if len(pixels) % patch:
        return None
    (values,) = patch_entropy(pixels[None], patch, num_bins=entropy.num_bins, color=entropy.color)
    return np.asarray(values)
