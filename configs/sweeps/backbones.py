"""Compares backbones from their ImageNet weights, as papers do in their tables of comparators.

egmae sweep --config=configs/sweeps/backbones.py:busi --config.data.dir=<folder> --out=runs/papers
egmae sweep --config=configs/sweeps/backbones.py:skin_lesions ...    the ASFF paper's set, with ASFF
    For a GPU with ImageNet weights. Not run, so neither wall time nor figures are known.

The words after the colon are a recipe and its own words: `busi,cpu` is configs/busi.py:cpu. The
weights come from the Hugging Face hub, except those of SqueezeNet 1.1, which has to be converted
once: give its folder as --config.imagenet.weights=<folder>. Those of ViT-S/16 and Swin-B are
pre-trained on ImageNet-21k. `--config.imagenet.weights=none` compares random starts.
"""

from typing import Any

from ml_collections import ConfigDict

from egmae_jax.sweep import variants

# The ASFF paper compares with five classic CNNs that it does not name.
CLASSIC = ("resnet18", "resnet50", "densenet121", "efficientnet_b0", "squeezenet1_1")
ASFF = "asff_resnet50"
SWIN = "swin_base_patch4_window7_224"  # the paper's tables 1 to 4: 87.77 million parameters
OTHERS = ("swin_tiny_patch4_window7_224", "vit_small_patch16_224", "tf_efficientnet_lite0")


def get_config(words: str | None = None) -> ConfigDict:
    """The recipe named by `words`, with each backbone as its only branch."""
    config = variants.base(words)
    baseline = config.model.name  # the paper's ConvNeXt, from ImageNet weights alone
    changes: dict[str, dict[str, Any]] = {
        name: {"branches": (name,)} for name in (baseline, ASFF, *CLASSIC, SWIN, *OTHERS)
    }
    return variants.attach(config, changes, baseline=baseline)
