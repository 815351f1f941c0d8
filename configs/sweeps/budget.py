"""Compares pre-training with none at equal passes over the images, each in its best setting.

egmae sweep --config=configs/sweeps/budget.py:busi,cpu,passes=60 --config.data.dir=<folder> \
    --config.rounds.kind=folds --config.rounds.count=3 --out=runs/budget --all_on_test

The words after the colon are a recipe and its own words: `busi,cpu` is configs/busi.py:cpu. The
additional word `passes=60` sets the number of epochs of a variant, pre-training and fine-tuning
together. A setting is how they are divided and the learning rate of fine-tuning; for each variant,
the best on validation images counts. 'scratch' starts from random weights and may also end earlier;
the others are pre-trained with the paper's corruption, at scale 1 and at a smaller one.
"""

from typing import Any

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.sweep import variants

FINETUNING = (1.0, 0.5, 0.25)  # shares of the passes; the rest pre-trains
RATES = (0.5, 1.0, 2.0)  # times the recipe's learning rate
SCALES = (1.0, 0.05)  # of the corruption


def get_config(words: str | None = None) -> ConfigDict:
    """The recipe named by `words`, with and without pre-training, in several settings."""
    chosen = words.split(",") if words else []
    given = [word for word in chosen if word.startswith("passes=")]
    config = variants.base(",".join(word for word in chosen if word not in given))
    passes = _passes(given) or config.pretrain.epochs + config.finetune.epochs
    starts: dict[str, dict[str, Any]] = {
        # A branch with the name of its network, so that imagenet.model may be another.
        "scratch": {"branches": ("{model.name}",), "imagenet.weights": "none"},
    }
    for scale in SCALES:
        name = "entropy_noise" if scale == 1 else f"entropy_noise_{scale:g}"
        starts[name] = {"branches": ("mae",), "corruption.scale": scale}
    changes = {}
    for name, fields in starts.items():
        for share in FINETUNING if name == "scratch" else FINETUNING[1:]:
            finetuning = round(passes * share)
            pretraining = 0 if name == "scratch" else passes - finetuning
            for factor in RATES:
                rate = config.finetune.learning_rate * factor
                changes[f"{name}/{pretraining}+{finetuning}, {rate:g}"] = {
                    **fields,
                    **({"pretrain.epochs": pretraining} if pretraining else {}),
                    "finetune.epochs": finetuning,
                    "finetune.learning_rate": rate,
                }
    return variants.attach(config, changes, baseline="scratch", tuned=True)


def _passes(words: list[str]) -> int:
    text = words[-1].removeprefix("passes=") if words else "0"
    if not text.isdecimal() or (words and int(text) < 4):
        raise ConfigError(f"{words[-1]!r} needs a number of epochs from 4, such as passes=60.")
    return int(text)
