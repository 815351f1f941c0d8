"""The paper's figure 2: numbers of pre-training and fine-tuning epochs.

egmae sweep --config=configs/sweeps/epochs.py:busi --config.data.dir=<folder> --out=runs/epochs
    For a GPU with ImageNet weights. Not run, so neither wall time nor figures are known.

The words after the colon are a recipe and its own words: `busi,cpu` is configs/busi.py:cpu. The
additional word `divide=5` divides all epochs by five: 20/6, 20/9, 100/6, 100/9 and 200/3.
"""

import re

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.sweep import variants

FIGURE_2 = ((100, 30), (100, 45), (500, 30), (500, 45), (1000, 15))
BASELINE = (1000, 15)  # the best in the paper


def get_config(words: str | None = None) -> ConfigDict:
    """The recipe named by `words`, with each pair of pre-training and fine-tuning epochs."""
    chosen = words.split(",") if words else []
    divisors = [word for word in chosen if word.startswith("divide")]
    config = variants.base(",".join(word for word in chosen if word not in divisors))
    divisor = _divisor(divisors)
    changes = {}
    for pair in FIGURE_2:
        pretraining, finetuning = _divided(pair, divisor)
        changes[f"{pretraining}/{finetuning}"] = {
            "pretrain.epochs": pretraining,
            "finetune.epochs": finetuning,
        }
    if len(changes) < len(FIGURE_2):
        raise ConfigError(
            f"divide={divisor} makes equals of figure 2's epochs; take a smaller one."
        )
    return variants.attach(config, changes, baseline="{}/{}".format(*_divided(BASELINE, divisor)))


def _divisor(words: list[str]) -> int:
    if not words:
        return 1
    match = re.fullmatch(r"divide=([1-9]\d*)", words[-1])
    if not match:
        raise ConfigError(f"{words[-1]!r} needs a whole number, such as divide=5.")
    return int(match[1])


def _divided(pair: tuple[int, int], divisor: int) -> list[int]:
    return [max(1, round(epochs / divisor)) for epochs in pair]
