"""Brain tumour MRI in four classes (Kaggle), or BRISC 2025 with --config.data.name=brisc2025.

The default is entropy-based layer selection: fine-tuning only the low-entropy layers of a ResNet-18
with ImageNet weights.

python main.py --config=configs/brain_tumor.py --config.data.dir=<folder> --workdir=runs/brain
    For a GPU with ImageNet weights. Not run, so neither wall time nor figures are known.
python main.py --config=configs/brain_tumor.py:squeezenet1_1,cpu --config.data.dir=<folder> \
    --config.imagenet.weights=<squeezenet1_1.npz> --workdir=runs/brain_cpu
    On two CPU cores, 83 ms per step; the total wall time was not recorded. Expected on 1319 test
    images over five seeds: accuracy .888 ± .022, AUC .984 ± .004. With the additional word `all`:
    .893 ± .006 and .985 ± .001 (docs/howto/companions.md).

Words after the colon change the recipe (configs/brain_tumor.py:resnet34,random):
  resnet34, squeezenet1_0, ...   another backbone; 'egmae' is the paper's recipe with both branches
  all, head, random              trains these instead of the low-entropy layers
  noise=0.1                      noise on the input (the publication uses .1, .2, .3 and .4)
  cpu                            for two CPU cores: 96 pixels and three epochs; with 'egmae', the
                                 CPU preset of that recipe

300 groups of images have identical pixels, and 189 of them span Training and Testing. Copies are
left out, and the other images are split anew, with near-duplicates kept together.
--config.data.protocol=official keeps Testing as it is and leaves its copies out of Training;
--config.data.drop_leaks=False keeps these copies, too.
"""

from ml_collections import ConfigDict

from egmae_jax import models
from egmae_jax.core.errors import ConfigError
from egmae_jax.method import layer_entropy
from egmae_jax.run import default_config

# Shares of the parameters that the publication trains: about 10 % and 18 % fewer than all.
_SHARES = {"resnet18": 0.90, "resnet34": 0.82}


def get_config(words: str | None = None) -> ConfigDict:
    """Layer selection on a ResNet-18, changed by the words after the colon, in any order."""
    config = default_config.get_config()
    config.data.name = "brain_tumor"
    config.data.dir = "data/brain_tumor_mri"
    config.data.color = "grey"  # greyscale or RGB mode predicts the class
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
