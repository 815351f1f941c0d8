"""Entropy-guided self-supervised learning for medical image classification, in JAX."""

import os
from typing import TYPE_CHECKING, Literal

__path__ = [*__path__, os.path.join(__path__[0], "commands")]  # python -m egmae_jax.predict

if TYPE_CHECKING:
    from egmae_jax.deploy.predictor import Predictor


def load(
    workdir: str | os.PathLike,
    *,
    round_index: int | Literal["all"] = 0,
    calibrated: bool = True,
    batch: int = 64,
) -> "Predictor":
    """A finished run that classifies images: `egmae_jax.load("runs/busi").predict("new.png")`.

    See `predictor.Predictor` for the arguments. Only the workdir is read.
    """
    from egmae_jax.deploy.predictor import Predictor  # imports JAX: not before it is needed

    return Predictor(workdir, round_index=round_index, calibrated=calibrated, batch=batch)
