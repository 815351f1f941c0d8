"""Entropies of a real network's layers against PyTorch's hooks and numpy's histograms."""

import functools

import numpy as np
import pytest

from egmae_jax import models
from egmae_jax.models import timm as interop
from egmae_jax.run.layer_selection import layer_entropies
from tests import torch_reference
from tests.conftest import SQUEEZENET_WEIGHTS
from tests.run.histograms import TOLERANCE, in_batches, numpy_entropies


@functools.cache
def squeezenet():
    """PyTorch's network and our variables, of ImageNet where they are at hand."""
    torch = torch_reference.torch()
    network = torch_reference.torchvision().models.squeezenet1_1(num_classes=1000).eval()
    if SQUEEZENET_WEIGHTS.is_file():
        with np.load(SQUEEZENET_WEIGHTS) as archive:
            network.load_state_dict({k: torch.from_numpy(archive[k]) for k in archive.files})
    else:
        torch_reference.randomize(network)
    tensors = {key: x.numpy().copy() for key, x in network.state_dict().items()}
    return network, interop.convert(tensors, "squeezenet1_1", "PyTorch's network")


def scenes(count, side=96):
    """Smooth colours with noise, differing in contrast, normalised."""
    rng = np.random.default_rng(3)
    coarse = rng.standard_normal((count, side // 16, side // 16, 3))
    smooth = coarse.repeat(16, axis=1).repeat(16, axis=2)
    contrast = rng.uniform(0.2, 1.5, (count, 1, 1, 1))
    return (contrast * (smooth + 0.2 * rng.standard_normal(smooth.shape))).astype(np.float32)


@pytest.mark.slow
def test_entropies_of_squeezenets_layers_are_those_of_pytorchs_hooks():
    torch = torch_reference.torch()
    network, variables = squeezenet()
    model, images = models.create("squeezenet1_1", 1000), scenes(6)
    ours = layer_entropies(model, variables, in_batches(images, 4))
    assert list(ours) == list(model.layers)

    outputs = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d) and name.startswith("features"):
            module.register_forward_hook(
                lambda _, __, x, name=name: outputs.update({name: x.numpy().copy()})
            )
    with torch.inference_mode():
        network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    theirs = {
        "/".join(name.replace("features.", "features_").split(".")): numpy_entropies(
            x.transpose(0, 2, 3, 1)
        ).mean()
        for name, x in outputs.items()
    }
    assert theirs.keys() == ours.keys()
    for layer, expected in theirs.items():
        assert ours[layer] == pytest.approx(expected, abs=TOLERANCE), layer
    assert len({round(x, 2) for x in theirs.values()}) > 10  # they do differ
