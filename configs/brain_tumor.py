"""Brain tumour MRI in four classes (Kaggle), or BRISC 2025 by --config.data.name=brisc2025.

The entropy-based layer selection: a ResNet-18 with ImageNet weights, of which the layers of low
entropy are fine-tuned.

python main.py --config=configs/brain_tumor.py --config.data.dir=<folder> --workdir=runs/brain

Words behind a colon change that, joined by commas (configs/brain_tumor.py:resnet34,random):
  resnet34, squeezenet1_0, ...   another backbone; 'egmae' is the paper's recipe, both branches
  all, head, random              what trains instead of the low-entropy layers
  noise=0.1                      noise on the input (the source has .1, .2, .3 and .4)
  cpu                            96 pixels and three epochs, for two CPU cores

300 groups of images have identical pixels, 189 of which span Training and Testing: copies are left
out and the rest is split anew by near-duplicates. --config.data.protocol=official keeps Testing as
it is and leaves its copies out of Training; --config.data.drop_leaks=False keeps those too.
"""

from ml_collections import ConfigDict

from configs import default
from egmae_jax import layer_selection, models

# Shares of the parameters that the source trains: about 10 % and 18 % fewer than all.
_SHARES = {"resnet18": 0.90, "resnet34": 0.82}


def get_config(words: str | None = None) -> ConfigDict:
    """The layer selection on a ResNet-18, changed by the words; see above."""
    config = default.get_config()
    config.data.name = "brain_tumor"
    config.data.dir = "data/brain_tumor_mri"
    config.data.color = "grey"  # files are grey or RGB, and which of them tells the class
    config.data.deduplicate = True
    default.set_companion(config, "resnet18")
    config.finetune.trainable = "low_entropy"
    config.finetune.trainable_share = _SHARES["resnet18"]
    for word in words.split(",") if words else ():
        _apply(config, word)
    return config


def _apply(config: ConfigDict, word: str) -> None:
    name, _, value = word.partition("=")
    if word in models.names():
        config.imagenet.model = word
        config.finetune.trainable_share = _SHARES.get(word, 0.5)
    elif word in layer_selection.MODES:
        config.finetune.trainable = word
    elif name == "noise":
        config.finetune.input_noise = _number(word, value)
    elif word == "cpu":
        config.data.image_size = 96
        config.data.store_size = 112
        config.finetune.resize = 101
        config.finetune.epochs = 3
        config.finetune.learning_rate = 3e-4
    elif word == "egmae":
        config.branches = ("imagenet", "mae")
        config.imagenet.model = ""
        config.finetune.trainable = "all"
        config.finetune.drop_path_rate = 0.1
    else:
        known = (*layer_selection.MODES, "noise=<std>", "cpu", "egmae", *models.names())
        raise ValueError(f"There is no preset {word!r}. Words: {', '.join(known)}.")


def _number(word: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{word!r} needs a number, such as noise=0.1.") from None
