"""Brain tumour MRI in four classes (Kaggle), or BRISC 2025 by --config.data.name=brisc2025.

The entropy-based layer selection: a ResNet-18 with ImageNet weights, of which the layers of low
entropy are fine-tuned.

python main.py --config=configs/brain_tumor.py --config.data.dir=<folder> --workdir=runs/brain
    For a GPU. Not run at full size.
python main.py --config=configs/brain_tumor.py:squeezenet1_1,cpu --config.data.dir=<folder> \
    --config.imagenet.weights=<squeezenet1_1.npz> --workdir=runs/brain_cpu
    On two CPU cores, 83 ms a step. To expect, of 1319 test images over five seeds: accuracy .888 ±
    .022, AUC .984 ± .004; with `all` behind the colon too, .893 ± .006 and .985 ± .001
    (docs/howto/companions.md).

Words behind a colon change that, joined by commas (configs/brain_tumor.py:resnet34,random):
  resnet34, squeezenet1_0, ...   another backbone; 'egmae' is the paper's recipe, both branches
  all, head, random              what trains instead of the low-entropy layers
  noise=0.1                      noise on the input (the source has .1, .2, .3 and .4)
  cpu                            for two CPU cores: 96 pixels and three epochs; with egmae the
                                 preset of that recipe

300 groups of images have identical pixels, 189 of which span Training and Testing: copies are left
out and the rest is split anew by near-duplicates. --config.data.protocol=official keeps Testing as
it is and leaves its copies out of Training; --config.data.drop_leaks=False keeps those too.
"""

from ml_collections import ConfigDict

from egmae_jax import models
from egmae_jax.core.errors import ConfigError
from egmae_jax.method import layer_entropy
from egmae_jax.run import default_config

# Shares of the parameters that the source trains: about 10 % and 18 % fewer than all.
_SHARES = {"resnet18": 0.90, "resnet34": 0.82}


def get_config(words: str | None = None) -> ConfigDict:
    """The layer selection on a ResNet-18, changed by the words, in whatever order; see above."""
    config = default_config.get_config()
    config.data.name = "brain_tumor"
    config.data.dir = "data/brain_tumor_mri"
    config.data.color = "grey"  # files are grey or RGB, and which of them tells the class
    config.data.deduplicate = True
    chosen = words.split(",") if words else []
    networks = [word for word in chosen if word in (*models.names(), "egmae")] or ["resnet18"]
    modes = [word for word in chosen if word in layer_entropy.MODES]
    if len(networks) > 1 or len(modes) > 1:
        raise ConfigError(f"{', '.join(max(networks, modes, key=len))} exclude each other.")
    if networks == ["egmae"]:
        modes = modes or ["all"]
    else:
        default_config.set_companion(config, networks[0])
        config.finetune.trainable_share = _SHARES.get(networks[0], 0.5)
    config.finetune.trainable = (modes or ["low_entropy"])[0]
    if "cpu" in chosen and networks == ["egmae"]:
        default_config.set_cpu(config)
    elif "cpu" in chosen:
        config.data.image_size = 96
        config.data.store_size = 112
        config.finetune.resize = 101
        config.finetune.epochs = 3
        config.finetune.learning_rate = 3e-4
    for word in chosen:
        name, _, value = word.partition("=")
        if name == "noise":
            config.finetune.input_noise = _number(word, value)
        elif word not in (*networks, *modes, "cpu"):
            known = (*layer_entropy.MODES, "noise=<std>", "cpu", "egmae", *models.names())
            raise ConfigError(f"There is no preset {word!r}. Words: {', '.join(known)}.")
    return config


def _number(word: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{word!r} needs a number, such as noise=0.1.") from None
