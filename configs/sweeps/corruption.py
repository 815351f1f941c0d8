"""Compares kinds and scales of corruption with no pre-training.

egmae sweep --config=configs/sweeps/corruption.py:busi,cpu --config.data.dir=<folder> \
    --config.data.image_size=64 --config.data.store_size=80 --config.rounds.kind=folds \
    --config.rounds.count=3 --out=runs/corruption
    About four minutes of one CPU core for each variant. Expected AUC over three folds: .699 ± .026
    without pre-training, .715 ± .040 with the paper's equation 4, .756 ± .021 with scale .05
    (docs/results.md).

The words after the colon are a recipe and its own words: `busi,cpu` is configs/busi.py:cpu. Only
the branch 'mae' runs, because the branch 'imagenet' is the same in all variants. Without
pre-training, the network starts from the random weights that pre-training starts from: it is
fine-tuned for as many epochs as the others ('no_pretraining'), and for as many as their
pre-training and fine-tuning have together ('no_pretraining_longer'). Other epochs than the preset's
are therefore a word of the recipe, such as `busi,cpu,20/30`.
"""

from typing import Any

from ml_collections import ConfigDict

from egmae_jax.method import corruption
from egmae_jax.sweep import variants

# 1 is the paper's equation 4; 0.18 = 1 / ln 256 scales the entropy to [0, 1].
SCALES = (0.05, 1.0, 0.18)


def get_config(words: str | None = None) -> ConfigDict:
    """The recipe named by `words`, with each corruption and without pre-training."""
    config = variants.base(words)
    config.branches = ("mae",)
    passes = config.pretrain.epochs + config.finetune.epochs
    random_start = {"branches": ("imagenet",), "imagenet.weights": "none", "imagenet.model": ""}
    changes: dict[str, dict[str, Any]] = {
        "no_pretraining": random_start,
        "no_pretraining_longer": random_start | {"finetune.epochs": passes},
    }
    for scale in SCALES:  # all kinds at one scale before the next
        for kind in corruption.kinds():
            if scale != 1 and "scale" not in corruption.settings(kind):
                continue  # a mask
            name = kind if scale == 1 else f"{kind}_{scale:g}"
            changes[name] = {"corruption.kind": kind, "corruption.scale": scale}
    return variants.attach(config, changes, baseline="no_pretraining")
