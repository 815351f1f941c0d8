"""Computes what the page shows of an image, without widgets."""

import math
from typing import NamedTuple

import numpy as np

from egmae_jax.data.images import UnreadableImageError
from egmae_jax.deploy.predictor import Predictor
from egmae_jax.explain.gradcam import Layer
from egmae_jax.explain.overlay import overlay
from egmae_jax.method.corruption import patch_entropy


class Examined(NamedTuple):
    """An image with everything that the page shows of it."""

    pixels: np.ndarray  # uint8 [S, S, 3], or 1 for grey: as the networks see it
    predicted: str  # class
    probabilities: dict[str, np.ndarray]  # [num_classes]: the ensemble, if any, then each branch
    overlays: dict[str, np.ndarray]  # Grad-CAM of the predicted class by branch, uint8 [S, S, 3]
    layers: dict[str, Layer]  # layer of the Grad-CAM by branch
    entropy: np.ndarray | None  # nats [S/P, S/P]; None where patches do not fill the image


def examine(predictor: Predictor, encoded: bytes) -> Examined:
    """Classifies an image, explains it, and measures the entropy of its patches.

    Args:
        predictor: predictor of a run.
        encoded: bytes of an image file.

    Raises:
        UnreadableImageError: they are no image that can be used; says why.
        MissingExtraError: reading them needs a package that is not installed; says which.
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


def greatest_entropy(predictor: Predictor) -> float:
    """The entropy in nats that no patch of the run exceeds."""
    config = predictor.run.config
    values = config.corruption.patch_size**2
    if config.entropy.color == "joint" and config.data.color == "rgb":
        values *= 3
    return math.log(min(config.entropy.num_bins, values))
