"""What the page shows of an image."""

import math
from typing import NamedTuple

import numpy as np

from egmae_jax.data.images import UnreadableImageError
from egmae_jax.deploy.predictor import Predictor
from egmae_jax.explain.gradcam import Layer
from egmae_jax.explain.overlay import overlay
from egmae_jax.method.corruption import patch_entropy


class Examined(NamedTuple):
    """What the page shows of an image."""

    pixels: np.ndarray  # uint8 [S, S, 3], or 1 for grey: as the networks see it
    predicted: str  # class
    # [num_classes], of the ensemble, if there is one, and then of each branch.
    probabilities: dict[str, np.ndarray]
    overlays: dict[str, np.ndarray]  # Grad-CAM of the predicted class by branch, uint8 [S, S, 3]
    layers: dict[str, Layer]  # that it is of, by branch
    entropy: np.ndarray | None  # nats [S/P, S/P]; None where patches do not fill the image


def examine(predictor: Predictor, encoded: bytes) -> Examined:
    """Classifies an image, explains it, and measures the entropy of its patches.

    Args:
        predictor: of a run.
        encoded: the bytes of an image file.

    Raises:
        UnreadableImageError: they are none that can be used; says why.
        MissingExtraError: reading them needs a package that is not installed; says which.
    """
    (part,) = predictor.stream([encoded])
    for reason in part.unreadable.values():
        raise UnreadableImageError(reason)
    pixels = part.pixels[0]
    *branches, decisive = part.predictions.probabilities.items()
    return Examined(
        pixels,
        part.predictions.predicted[0],
        {name: probabilities[0] for name, probabilities in (decisive, *branches)},
        {
            branch.name: overlay(pixels, predictor.heat(part, branch.name)[0])
            for branch in predictor.run.branches
        },
        {branch.name: predictor.heat_layer(branch.name) for branch in predictor.run.branches},
        _entropy(predictor, pixels),
    )


def _entropy(predictor: Predictor, pixels: np.ndarray) -> np.ndarray | None:
    config = predictor.run.config
    if len(pixels) % config.corruption.patch_size:
        return None
    return np.asarray(
        patch_entropy(
            pixels[None],
            config.corruption.patch_size,
            num_bins=config.entropy.num_bins,
            color=config.entropy.color,
        )[0]
    )


def greatest_entropy(predictor: Predictor) -> float:
    """The entropy in nats that no patch of the run exceeds."""
    config = predictor.run.config
    values = config.corruption.patch_size**2
    if config.entropy.color == "joint" and config.data.color == "rgb":
        values *= 3
    return math.log(min(config.entropy.num_bins, values))
