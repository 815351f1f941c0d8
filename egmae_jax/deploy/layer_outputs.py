"""The output of every layer of a network, computed by PyTorch and by ours from the same weights."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from egmae_jax import models
from egmae_jax.core import platform
from egmae_jax.models.convnext import ConvNeXt
from egmae_jax.models.resnet import ResNet

PyTree = Any
Paths = Mapping[str, tuple[str, ...]]
# Normalised images [B, H, W, 3] -> output of each layer by PyTorch's name, channels last.
Program = Callable[[np.ndarray], dict[str, np.ndarray]]


def layer_paths(network: models.Model) -> dict[str, tuple[str, ...]]:
    """Path of our module for each layer of PyTorch that is compared, in the order of computation.

    Returns:
        Such as {'stages.0.blocks.1': ('stages_0', 'blocks_1')}; the last layer gives the logits.
    """
    first: dict[str, tuple[str, ...]] = {}
    last: dict[str, tuple[str, ...]]
    if isinstance(network, ConvNeXt):
        names = ["stem"]
        for stage, depth in enumerate(network.depths):
            names += [f"stages.{stage}.downsample"] if stage else []
            names += [f"stages.{stage}.blocks.{block}" for block in range(depth)]
        last = {"head.norm": ("head", "norm"), "head.fc": ("head", "fc")}
    elif isinstance(network, ResNet):
        names = [f"layer{k}.{i}" for k, depth in enumerate(network.depths, 1) for i in range(depth)]
        first = {"bn1": ("stem",)}
        last = {"fc": ("head", "fc")}
    else:
        names = list(dict.fromkeys(x.split("/")[0].replace("_", ".") for x in network.layers))
        last = {"classifier": ("head",)}
    paths = {name: tuple(re.sub(r"\.(\d)", r"_\1", name).split(".")) for name in names}
    return {**first, **paths, **last}


def our_program(network: models.Model, variables: PyTree, paths: Paths) -> Program:
    """Our network as a program that returns the output of each layer."""

    @platform.jit
    def program(variables: PyTree, normalized: jax.Array) -> dict[str, jax.Array]:
        _, state = network.apply(
            variables,
            normalized,
            capture_intermediates=lambda module, _: module.path in paths.values(),
            mutable=["intermediates"],
        )
        outputs = {}
        for name, path in paths.items():
            module = functools.reduce(lambda tree, key: tree[key], path, state["intermediates"])
            *_, outputs[name] = module["__call__"]  # an Mlp shares its block's scope
        return outputs

    variables = jax.device_put(variables)

    def run(normalized: np.ndarray) -> dict[str, np.ndarray]:
        # TF32, a GPU's default, differs more from float32 than the errors looked for.
        with jax.default_matmul_precision("highest"):
            return jax.device_get(program(variables, normalized))

    return run


def their_program(
    model: str, num_classes: int, tensors: Mapping[str, np.ndarray], paths: Paths
) -> Program:
    """timm's or torchvision's network as a program that returns the output of each layer."""
    import timm
    import torch
    import torchvision

    in_torchvision = models.family(model) == "squeezenet"
    create = torchvision.models.get_model if in_torchvision else timm.create_model
    network = create(model, num_classes=num_classes).float().eval()
    # Only batch norm's counters may be missing, which have no effect: our conversion checks that.
    counters = {k: x for k, x in network.state_dict().items() if k.endswith("num_batches_tracked")}
    weights = {k: torch.from_numpy(x) for k, x in tensors.items()}
    network.load_state_dict(counters | weights, strict=True)
    outputs: dict[str, np.ndarray] = {}

    def keep(name: str, module: Any, inputs: Any, output: Any) -> None:
        if output.ndim == 4:
            output = output.permute(0, 2, 3, 1)
        if name in ("head.norm", "classifier"):  # pooled features: one pixel
            output = output[:, 0, 0]
        outputs[name] = output.numpy().copy()  # later layers may work in place

    for name in paths:
        network.get_submodule(name).register_forward_hook(functools.partial(keep, name))

    def run(normalized: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            network(torch.from_numpy(normalized).permute(0, 3, 1, 2))
        return dict(outputs)

    return run
