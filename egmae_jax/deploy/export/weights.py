"""Writes a branch's weights to a folder for `timm.create_model("local-dir:FOLDER", ...)`."""

import math
from pathlib import Path
from typing import Any

from egmae_jax import models
from egmae_jax.core.files import write_atomically, write_json
from egmae_jax.deploy.export.system import System
from egmae_jax.method import augment

# timm's names of the first convolution and of the classifier, which timm can replace.
_LAYERS = {
    "convnext": {"first_conv": "stem.0", "classifier": "head.fc"},
    "resnet": {"first_conv": "conv1", "classifier": "fc"},
}
# timm's `crop_mode` for each `data.resize`. It has none for 'pad', because timm pads with the mean
# colour instead of black.
_CROP_MODES = {"shorter_side": "center", "squash": "squash"}


def pytorch_library(model_name: str) -> str:
    """Returns the library that has a model: 'timm', 'torchvision' or, if neither has it, ''."""
    family = models.family(model_name)
    return "timm" if family in _LAYERS else "torchvision" if family == "squeezenet" else ""


def write(system: System, weights: Path, folder: Path) -> None:
    """Writes model.safetensors and, for timm's architectures, config.json.

    Args:
        system: a branch.
        weights: weight file of the branch in the workdir, in timm's or torchvision's names.
        folder: folder to write to.
    """
    write_atomically(folder / "model.safetensors", weights.read_bytes())
    if pytorch_library(system.networks[0].branch.model_name) == "timm":
        write_json(folder / "config.json", _config(system))


def _config(system: System) -> dict[str, Any]:
    """Returns the content of config.json in the format of timm's `save_config_for_hf`."""
    ((branch, _, variables),) = system.networks
    num_classes, size = len(system.classes), system.view.size
    config = {
        "architecture": branch.model_name,
        "num_classes": num_classes,
        "num_features": variables["params"]["head"]["fc"]["kernel"].shape[0],
        "global_pool": "avg",
        "label_names": list(system.classes),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": _crop_pct(size, system.view.resized),
            "mean": augment.MEAN,
            "std": augment.STD,
            "num_classes": num_classes,
            **_LAYERS[models.family(branch.model_name)],
        },
    }
    if system.view.resize in _CROP_MODES:
        config["pretrained_cfg"]["crop_mode"] = _CROP_MODES[system.view.resize]
    return config


def _crop_pct(size: int, resized: int) -> float:
    """Returns timm's `crop_pct`, the fraction of the resized side that the centre crop keeps.

    timm resizes to `floor(size / crop_pct)` pixels. If rounding makes this smaller than `resized`,
    the next smaller float is returned.
    """
    fraction = size / resized
    return fraction if math.floor(size / fraction) == resized else math.nextafter(fraction, 0)
