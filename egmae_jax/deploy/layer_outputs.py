"""Computes the output of every layer of a network, in PyTorch and in JAX."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from egmae_jax import models
from egmae_jax.core import platform

PyTree = Any
# Normalised images float32 [B, H, W, 3] -> output of each layer by its name in PyTorch, with
# channels last.
Program = Callable[[np.ndarray], dict[str, np.ndarray]]


def make_jax_program(network: models.Model, variables: PyTree, paths: Mapping[str, str]) -> Program:
    """Returns a program that computes the layer outputs of our network.

    Args:
        network: the model.
        variables: parameters and running statistics of the model.
        paths: paths of the compared modules by their names in PyTorch, `network.torch_modules`.
    """

    @platform.jit
    def program(variables: PyTree, normalized: jax.Array) -> dict[str, jax.Array]:
        _, state = network.apply(
            variables,
            normalized,
            capture_intermediates=lambda module, _: "/".join(module.path) in paths.values(),
            mutable=["intermediates"],
        )
        outputs = {}
        for name, path in paths.items():
            module = functools.reduce(
                lambda tree, key: tree[key], path.split("/"), state["intermediates"]
            )
            # An Mlp shares its block's scope; the block's own output is the last.
            *_, outputs[name] = module["__call__"]
        return outputs

    variables = jax.device_put(variables)

    def run(normalized: np.ndarray) -> dict[str, np.ndarray]:
        # TF32, the default on GPUs, would cause larger differences than those to be detected.
        with jax.default_matmul_precision("highest"):
            return jax.device_get(program(variables, normalized))

    return run


def make_torch_program(
    model: str,
    num_classes: int,
    tensors: Mapping[str, np.ndarray],
    paths: Mapping[str, str],
    options: Mapping[str, Any],
) -> Program:
    """Returns a program that computes the layer outputs of timm's or torchvision's network.

    Args:
        model: name of the model, one of `models.names()`.
        num_classes: number of classes.
        tensors: state dict of the network.
        paths: paths of the compared modules by their names in PyTorch, `network.torch_modules`.
        options: further arguments of the library's function that creates the network.
    """
    import timm
    import torch
    import torchvision

    in_torchvision = models.library(model) == "torchvision"
    create = torchvision.models.get_model if in_torchvision else timm.create_model
    network = create(model, num_classes=num_classes, **options).float().eval()
    # `models.timm.convert` has checked that at most the counters of batch norm are missing, which
    # have no effect.
    counters = {k: x for k, x in network.state_dict().items() if k.endswith("num_batches_tracked")}
    weights = {k: torch.from_numpy(x) for k, x in tensors.items()}
    network.load_state_dict(counters | weights, strict=True)
    outputs: dict[str, np.ndarray] = {}

    def save_output(name: str, module: Any, inputs: Any, output: Any) -> None:
        if output.ndim == 4:
            output = output.permute(0, 2, 3, 1)
        outputs[name] = output.numpy().copy()  # later layers may modify it in place

    for name in paths:
        network.get_submodule(name).register_forward_hook(functools.partial(save_output, name))

    def run(normalized: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            network(torch.from_numpy(normalized).permute(0, 3, 1, 2))
        return dict(outputs)

    return run
