"""torch, torchvision and timm; a test that asks for one skips where it is not installed."""

import contextlib
import importlib
import sys

import numpy as np

from egmae_jax.core.errors import MissingExtraError
from egmae_jax.core.extras import require


def _module(name):
    """The module; a test skips where it is not installed, a benchmark ends."""
    tested = sys.modules.get("pytest")
    return tested.importorskip(name) if tested else importlib.import_module(name)


def torch():
    """The module."""
    return _module("torch")


def torchvision():
    """The module, also where it was built for another torch."""
    torch()
    with contextlib.suppress(MissingExtraError):  # told by `_module`
        require("torchvision", extra="parity")
    return _module("torchvision")


def timm():
    """The module."""
    torchvision()
    return _module("timm")


def random_convnext(name, *, num_classes=5, seed=0, **options):
    """timm's model `name` in evaluation mode, every parameter drawn anew so that none hides.

    Fresh parameters would: biases are zero and layer scales 1e-6, so half of the network's
    mistakes would not show.
    """
    return randomize(timm().create_model(name, num_classes=num_classes, **options), seed).eval()


def randomize(model, seed=0):
    """Draws every parameter and running statistic of a network anew."""
    torch_ = torch()
    rng = np.random.default_rng(seed)
    with torch_.no_grad():
        for key, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            if parameter.ndim > 1:
                value = rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))
            elif key.endswith(("gamma", "weight")):  # layer scale, norm
                value = rng.uniform(0.5, 1.5, shape)
            else:
                value = rng.uniform(-0.5, 0.5, shape)
            parameter.copy_(torch_.from_numpy(np.asarray(value, np.float32)))
        for key, statistic in model.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                low = -0.5 if key.endswith("mean") else 0.5
                value = rng.uniform(low, low + 1, tuple(statistic.shape))
                statistic.copy_(torch_.from_numpy(np.asarray(value, np.float32)))
    return model
