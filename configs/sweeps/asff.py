"""Compares the ASFF ResNet-50 with its backbone and other CNNs, without the hub.

egmae sweep --config=configs/sweeps/asff.py:skin_asff,cpu,weights=<folder> \
    --config.data.dir=<folder of ISIC 2018> --config.rounds.kind=folds --config.rounds.count=3 \
    --out=runs/asff --all_on_test

The words after the colon are a recipe and its own words: `skin_asff,cpu` is
configs/skin_asff.py:cpu. ResNets start from random weights. SqueezeNet 1.1 and EfficientNet-Lite0,
whose ImageNet weights are Python packages or one file (docs/howto/weights.md), start from the
weights in the folder of the additional word `weights=`, and from random weights, too.
`weights=none` leaves these out. configs/sweeps/backbones.py compares more networks, from the hub's
weights.
"""

from typing import Any

from ml_collections import ConfigDict

from egmae_jax.sweep import variants

PRETRAINED = ("squeezenet1_1", "tf_efficientnet_lite0")


def get_config(words: str | None = None) -> ConfigDict:
    """The recipe named by `words`, with each network as its only branch."""
    chosen = words.split(",") if words else []
    weights = [word for word in chosen if word.startswith("weights=")]
    rest = ",".join(word for word in chosen if word not in weights)
    config = variants.base(rest, pretrains=False)
    config.imagenet.weights = (weights or ["weights=none"])[-1].removeprefix("weights=")
    changes: dict[str, dict[str, Any]] = {}
    for name in ("asff_resnet50", "resnet50", "resnet18", *PRETRAINED):
        changes[name] = {"branches": (name,), "imagenet.weights": "none"}
    if config.imagenet.weights != "none":
        for name in PRETRAINED:
            changes[f"{name}-imagenet"] = {"branches": (name,)}
    return variants.attach(config, changes, baseline="resnet50")
