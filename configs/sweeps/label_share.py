"""Scores over the share of labels, with and without pre-training and ImageNet weights.

egmae sweep --config=configs/sweeps/label_share.py:busi,cpu,weights=none \
    --config.data.dir=<folder> --config.rounds.count=5 --out=runs/label_share --all_on_test

The words after the colon are a recipe and its own words: `busi,cpu` is configs/busi.py:cpu. The
additional word `weights=FILE` sets the ImageNet weights (see imagenet.weights), and `weights=none`
leaves out the lines that need them. Lines: 'scratch' starts from random weights, 'mae' from
pre-training on all training images, 'imagenet' from ImageNet weights, and 'imagenet+mae' is the
ensemble of the latter two. All shares train for about the same number of steps: a tenth of the
labels for ten times the epochs.
"""

from typing import Any

from ml_collections import ConfigDict

from egmae_jax.sweep import variants

SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)


def get_config(words: str | None = None) -> ConfigDict:
    """The recipe named by `words`, for each share of the labels and each way to start."""
    chosen = words.split(",") if words else []
    weights = [word for word in chosen if word.startswith("weights=")]
    config = variants.base(",".join(word for word in chosen if word not in weights))
    if weights:
        config.imagenet.weights = weights[-1].removeprefix("weights=")
    lines: dict[str, dict[str, Any]] = {
        # A branch with the name of its network, so that imagenet.model may be another.
        "scratch": {"branches": ("{model.name}",), "imagenet.weights": "none"},
        "mae": {"branches": ("mae",)},
    }
    if config.imagenet.weights != "none":
        lines |= {
            "imagenet": {"branches": ("imagenet",)},
            "imagenet+mae": {"branches": ("imagenet", "mae")},
        }
    changes = {
        f"{line}/{share:g}": {
            **fields,
            "finetune.label_share": share,
            "finetune.epochs": round(config.finetune.epochs / share),
            "finetune.warmup_epochs": round(config.finetune.warmup_epochs / share),
        }
        for share in SHARES
        for line, fields in lines.items()
    }
    return variants.attach(config, changes, baseline="scratch", axis="finetune.label_share")
