"""Which layers are fine-tuned, over the noise on the input: entropy-based layer selection.

egmae sweep --config=configs/sweeps/layer_selection.py:brain_tumor,squeezenet1_1,cpu \
    --config.data.dir=<folder> --config.imagenet.weights=<squeezenet1_1.npz> \
    --config.rounds.count=3 --out=runs/layers --all_on_test

The words after the colon are a recipe and its own words. Lines: 'low_entropy' trains the head and
the convolutions whose outputs have the lowest entropy, 'random' the head and as many random ones,
'head' the classifier and 'all' the whole network. The noise is that of the publication's ablation,
a share of the pixel range, in training and in evaluation.
"""

from ml_collections import ConfigDict

from egmae_jax.method import layer_entropy
from egmae_jax.sweep import variants

NOISE = (0.0, 0.1, 0.2, 0.3, 0.4)


def get_config(words: str | None = None) -> ConfigDict:
    """The recipe named by `words`, for each choice of layers and each level of noise."""
    config = variants.base(words, pretrains=False)
    changes = {
        f"{mode}/{noise:g}": {"finetune.trainable": mode, "finetune.input_noise": noise}
        for noise in NOISE
        for mode in layer_entropy.MODES
    }
    return variants.attach(config, changes, baseline="all", axis="finetune.input_noise")
