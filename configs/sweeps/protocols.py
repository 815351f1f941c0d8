"""Compares splits that keep groups together with splits by image, as most papers make them.

egmae sweep --config=configs/sweeps/protocols.py:busi,cpu --config.data.dir=<folder> \
    --config.rounds.kind=folds --config.rounds.count=3 --out=runs/protocols --all_on_test

The words after the colon are a recipe and its own words: `busi,cpu` is configs/busi.py:cpu. Both
variants pre-train and fine-tune all branches of the recipe. 'image_level' lets near-duplicates of
test images, and images of their patients, into the training part; the difference is what that is
worth.
"""

from ml_collections import ConfigDict

from egmae_jax.sweep import variants

PROTOCOLS = ("grouped", "image_level")


def get_config(words: str | None = None) -> ConfigDict:
    """The recipe named by `words`, with each protocol of splitting."""
    config = variants.base(words)
    changes = {protocol: {"data.protocol": protocol} for protocol in PROTOCOLS}
    return variants.attach(config, changes, baseline="grouped")
