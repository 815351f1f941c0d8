"""Classifiers in Flax, created by timm's names: `models.create("convnext_tiny", num_classes=3)`."""

from egmae_jax.models import asff, convnext, resnet, squeezenet  # importing registers their names
from egmae_jax.models.registry import (
    Model,
    create,
    default_weights,
    family,
    imagenet_model,
    names,
    register,
)

__all__ = [
    "Model",
    "asff",
    "convnext",
    "create",
    "default_weights",
    "family",
    "imagenet_model",
    "names",
    "register",
    "resnet",
    "squeezenet",
]
