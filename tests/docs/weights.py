"""Weights of noise where ImageNet's would be: python -m tests.docs.weights MODEL [FILE|FOLDER]."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from egmae_jax import models
from egmae_jax.models import timm_names

CLASSES = 1000  # ImageNet's


def write(path: Path, model_name: str) -> Path:
    """Writes a checkpoint of the model in timm's names, as .npz or .safetensors."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {
        # Variances must be positive, and what scales a block near nothing, as in trained networks.
        key: np.abs(rng.normal(scale=0.05, size=shape)).astype(np.float32)
        for key, (_, shape, _) in timm_names.expected_tensors(model_name, CLASSES).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **tensors)
    else:
        safetensors.numpy.save_file(tensors, path)
    return path


def model_of(name: str) -> str:
    """The model that a file or a repository of the hub is named after, or begins with."""
    stem = Path(name).stem
    found = [each for each in models.names() if stem.startswith(each)]
    return max(found, key=len, default="convnext_tiny")


def locate(source: str) -> Path | None:
    """A file for a repository of the hub, made where the hub would keep it; None for another."""
    repository = source.removeprefix("hf-hub:").removeprefix("hf_hub:")
    if repository not in map(models.default_weights, models.names()) or "://" in repository:
        return None
    path = Path("~/.cache/huggingface", f"{repository}.safetensors").expanduser()
    return path if path.exists() else write(path, model_of(repository))


def main(name: str, out: str = "") -> None:
    """Writes the weights of what `name` begins with to a file or folder, or as the hub would."""
    path = Path(out)
    if out and path.suffix not in (".npz", ".safetensors"):
        path /= "model.safetensors"
    print(write(path, model_of(name)) if out else locate(name))


if __name__ == "__main__":
    main(*sys.argv[1:])
