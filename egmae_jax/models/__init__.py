"""Classifiers in Flax, created by timm's names: `models.create("convnext_tiny", num_classes=3)`."""

from egmae_jax.models import (  # importing registers their names
    asff,
    convnext,
    densenet,
    efficientnet,
    resnet,
    squeezenet,
    swin,
    vit,
)
from egmae_jax.models.model import MIN_SIDE, Model, Normalization
from egmae_jax.models.registry import (
    NETWORKS,
    create,
    default_weights,
    imagenet_model,
    library,
    names,
    normalization,
    register,
)

NETWORKS.reserve()

__all__ = [
    "MIN_SIDE",
    "Model",
    "Normalization",
    "asff",
    "convnext",
    "create",
    "default_weights",
    "densenet",
    "efficientnet",
    "imagenet_model",
    "library",
    "names",
    "normalization",
    "register",
    "resnet",
    "squeezenet",
    "swin",
    "vit",
]
