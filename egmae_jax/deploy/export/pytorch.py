"""Loads exported weights in timm or torchvision, and writes ONNX; needs torch."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from egmae_jax.core.files import write_atomically
from egmae_jax.core.quiet import quiet
from egmae_jax.deploy.export.system import LUMA, System
from egmae_jax.deploy.export.weights import library
from egmae_jax.evaluation import calibration
from egmae_jax.method import augment
from egmae_jax.models.weights import read


def network(folder: Path, model_name: str, num_classes: int) -> Any:
    """PyTorch's network in evaluation mode, with the weights of an exported folder.

    timm makes it from the folder's config.json; SqueezeNet is torchvision's.
    """
    if library(model_name) == "torchvision":
        import torch
        import torchvision

        tensors = {k: torch.tensor(x) for k, x in read(folder / "model.safetensors").items()}
        module = torchvision.models.get_model(model_name, num_classes=num_classes)
        module.load_state_dict(tensors, strict=True)
        return module.eval()
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def logits(module: Any, images: np.ndarray) -> np.ndarray:
    """Logits of normalised images, float32 [B, S, S, 3], by a module of torch."""
    import torch

    with torch.inference_mode():
        return module(torch.tensor(images).permute(0, 3, 1, 2)).numpy()


def write_onnx(system: System, path: Path) -> None:
    """Writes a branch as an ONNX program with the inputs and outputs of the StableHLO program.

    Args:
        system: a branch whose network timm or torchvision has.
        path: file to write, beside the branch's exported weights.
    """
    import onnx
    import torch

    (branch, _, _) = system.networks[0]
    classifier = _classifier(system, network(path.parent, branch.model_name, len(system.classes)))
    size = system.view.size
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with quiet("torch.onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own code
        program = torch.onnx.export(
            classifier,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["probabilities", "calibrated"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
        )
    assert program is not None  # by the dynamo exporter
    content = program.model_proto
    properties = {"classes": json.dumps(system.classes), "preprocessing": system.view.in_words()}
    onnx.helper.set_model_props(content, properties)
    write_atomically(path, content.SerializeToString())


def _classifier(system: System, network: Any) -> Any:
    """`System.probabilities` of a branch as a module of torch, from the branch's network."""
    import torch

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network
            for name, values in (("mean", augment.MEAN), ("std", augment.STD), ("luma", LUMA)):
                self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

        def forward(self, images):
            pixels = images.to(torch.float32)
            if system.view.color == "grey":
                luma = (pixels * self.luma).sum(dim=-1, keepdim=True)
                pixels = torch.floor(luma / 65536 + 0.5)
            normalized = (pixels / 255 - self.mean) / self.std
            probabilities = self.network(normalized.permute(0, 3, 1, 2)).softmax(dim=-1)
            temperature, least = system.scaling
            scaled = (probabilities.clamp(min=calibration.TINY).log() / temperature).softmax(dim=-1)
            return probabilities, least + (1 - len(system.classes) * least) * scaled

    return Classifier().eval()


def load_onnx(path: Path) -> Any:
    """Loads a program from its file, as a function of images that onnxruntime runs on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))
