"""The paper's figure 2: numbers of pre-training and fine-tuning epochs.

egmae sweep --config=configs/sweeps/epochs.py:busi --config.data.dir=<folder> --out=runs/epochs
    For a GPU with ImageNet weights. Not run, so neither wall time nor figures are known.

The words after the colon are a recipe and its own words: `busi,cpu` is configs/busi.py:cpu. The
additional word `divide=5` divides all epochs by five: 20/6, 20/9, 100/6, 100/9 and 200/3. The word
`scratch=60` compares the branch 'mae' alone, with the same network from random weights, '0/60',
fine-tuned for 60 epochs.
"""

import re
from typing import Any

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.sweep import variants

FIGURE_2 = ((100, 30), (100, 45), (500, 30), (500, 45), (1000, 15))
BASELINE = (1000, 15)  # the best in the paper


def get_config(words: str | None = None) -> ConfigDict:
    """The recipe named by `words`, with each pair of pre-training and fine-tuning epochs."""
    chosen = words.split(",") if words else []
    divisors, scratch = ([x for x in chosen if x.startswith(y)] for y in ("divide", "scratch"))
    config = variants.base(",".join(x for x in chosen if x not in divisors + scratch))
    divisor = _number(divisors, "divide=5", default=1)
    changes: dict[str, dict[str, Any]] = {}
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
    baseline = "{}/{}".format(*_divided(BASELINE, divisor))
    if scratch:
        epochs = _number(scratch, "scratch=60")
        baseline = f"0/{epochs}"
        config.branches = ("mae",)
        # A branch with the name of its network, so that imagenet.model may be another.
        weights = {"branches": ("{model.name}",), "imagenet.weights": "none"}
        changes[baseline] = weights | {"finetune.epochs": epochs}
    return variants.attach(config, changes, baseline=baseline)


def _number(words: list[str], example: str, default: int = 0) -> int:
    """Returns the number of the last word, such as 5 of 'divide=5'."""
    if not words:
        return default
    match = re.fullmatch(r"[a-z]+=([1-9]\d*)", words[-1])
    if not match:
        raise ConfigError(f"{words[-1]!r} needs a whole number, such as {example}.")
    return int(match[1])


def _divided(pair: tuple[int, int], divisor: int) -> list[int]:
    return [max(1, round(epochs / divisor)) for epochs in pair]
