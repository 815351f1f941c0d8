"""Writes a branch's weights to a folder for `timm.create_model("local-dir:FOLDER", ...)`."""

import math
from pathlib import Path
from typing import Any

from egmae_jax import models
from egmae_jax.core.files import write_atomically, write_json
from egmae_jax.deploy.export.system import System
from egmae_jax.models.timm_names import module_name

# timm's `crop_mode` for each `data.resize`. It has none for 'pad', because timm pads with the mean
# colour instead of black.
_CROP_MODES = {"shorter_side": "center", "squash": "squash"}


def write(system: System, weights: Path, folder: Path) -> None:
    """Writes model.safetensors and, for timm's architectures, config.json.

    Args:
        system: a branch.
        weights: weight file of the branch in the workdir, in timm's or torchvision's names.
        folder: folder to write to.
    """
    write_atomically(folder / "model.safetensors", weights.read_bytes())
    if models.library(system.networks[0].branch.model_name) == "timm":
        write_json(folder / "config.json", _config(system))


def _config(system: System) -> dict[str, Any]:
    """Returns the content of config.json in the format of timm's `save_config_for_hf`."""
    ((branch, model, variables),) = system.networks
    num_classes, size = len(system.classes), system.size
    mean, std = models.normalization(branch.model_name)
    # The arguments with which timm creates the network for this image size.
    options = model.timm_options(size)
    config = {
        "architecture": branch.model_name,
        "num_classes": num_classes,
        "num_features": variables["params"]["head"]["fc"]["kernel"].shape[0],
        "global_pool": model.global_pool,
        "label_names": list(system.classes),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": model.fixed_input_size and not options,
            "interpolation": "bilinear",
            "crop_pct": _crop_pct(size, system.view.resized),
            "mean": mean,
            "std": std,
            "num_classes": num_classes,
            # What timm can replace.
            "first_conv": module_name(f"{next(iter(model.layers))}/kernel", branch.model_name),
            "classifier": module_name("head/fc/bias", branch.model_name),
        },
    }
    if options:
        config["model_args"] = options
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
