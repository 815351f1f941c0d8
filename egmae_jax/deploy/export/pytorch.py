"""Loads exported weights in timm or torchvision, and writes ONNX programs; needs torch."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from egmae_jax import models
from egmae_jax.augmentations import tta
from egmae_jax.core.files import write_atomically
from egmae_jax.deploy.export.system import System
from egmae_jax.evaluation import calibration
from egmae_jax.method.entropy import LUMA
from egmae_jax.models.weights import read


def load_network(folder: Path, model_name: str, num_classes: int) -> Any:
    """Loads the weights of an exported folder in PyTorch, in evaluation mode.

    Args:
        folder: exported folder; timm creates the network from its config.json.
        model_name: name of the model; a SqueezeNet is created by torchvision.
        num_classes: number of classes, for torchvision.
    """
    if models.library(model_name) == "torchvision":
        import torch
        import torchvision

        tensors = {k: torch.tensor(x) for k, x in read(folder / "model.safetensors").items()}
        module = torchvision.models.get_model(model_name, num_classes=num_classes)
        module.load_state_dict(tensors, strict=True)
        return module.eval()
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def compute_logits(module: Any, images: np.ndarray) -> np.ndarray:
    """Computes logits [B, C] of normalised images float32 [B, S, S, 3] with a PyTorch module."""
    import torch

    with torch.inference_mode():
        return module(torch.tensor(images).permute(0, 3, 1, 2)).numpy()


def write_onnx(system: System, path: Path) -> None:
    """Writes a branch as an ONNX program with the same inputs and outputs as the StableHLO program.

    Args:
        system: a branch with a network that timm or torchvision has.
        path: file to write, in the folder of the branch's exported weights.
    """
    import onnx
    import torch

    (branch, _, _) = system.networks[0]
    network = load_network(path.parent, branch.model_name, len(system.classes))
    classifier = _make_classifier(system, network)
    size = system.view.size
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own code
        program = torch.onnx.export(
            classifier,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["probabilities", "calibrated"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
        )
    assert program is not None  # dynamo=True always returns a program
    content = program.model_proto
    properties = {"classes": json.dumps(system.classes), "preprocessing": system.view.describe()}
    onnx.helper.set_model_props(content, properties)
    write_atomically(path, content.SerializeToString())


def _make_classifier(system: System, network: Any) -> Any:
    """Returns `System.probabilities` of a branch as a PyTorch module around the given network."""
    import torch

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network
            mean, std = models.normalization(system.networks[0].branch.model_name)
            for name, values in (("mean", mean), ("std", std), ("luma", LUMA)):
                self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

        def forward(self, images):
            pixels = images.to(torch.float32)
            if system.view.color == "grey":
                luma = (pixels * self.luma).sum(dim=-1, keepdim=True)
                pixels = torch.floor(luma / 65536 + 0.5)
            normalized = (pixels / 255 - self.mean) / self.std
            views = tta.views(normalized, system.tta, system.size, flip=torch.flip)
            each = [self.network(x.permute(0, 3, 1, 2)).softmax(dim=-1) for x in views]
            probabilities = torch.stack(each).mean(dim=0) if system.tta else each[0]
            temperature, least = system.scaling
            scaled = (probabilities.clamp(min=calibration.TINY).log() / temperature).softmax(dim=-1)
            return probabilities, least + (1 - len(system.classes) * least) * scaled

    return Classifier().eval()


def load_onnx(path: Path) -> Any:
    """Loads a program as a function of images uint8 [B, S, S, 3], which onnxruntime runs on CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))
